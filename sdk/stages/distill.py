"""`distill`: train the package against a teacher; it is also how a model recovers from the stages before it.

Three losses are added: that of `targets.recovery_loss` on the outputs; `hidden` times the squared error of normalised
hidden states between layers that are mapped evenly (Jiao et al. 2020, arXiv:1909.10351); `attention` times the
divergence of the relations Q·Qᵀ, K·Kᵀ and V·Vᵀ of the last layers, heads split anew so that their numbers may differ
(MiniLMv2, Wang et al. 2021, arXiv:2012.15828).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import Field, model_validator

from edgesdk.encode import encoded_for
from edgesdk.errors import EdgeSDKError, StageError
from edgesdk.package import Package, package_digest, read_package
from edgesdk.package_files import read_manifest
from edgesdk.stages.base import Change, Context, Options, Outline, Stage
from edgesdk.stages.train import TrainingOptions, fit


class DistillOptions(TrainingOptions):
    """`hidden` and `attention` weigh the losses inside the model, 0 leaves them out; `teacher` is the path of an
    .edgepkg of the same task and labels, by default the imported model teaches. `teacher_digest` is filled in, so that
    lineage and cache know who taught."""

    hidden: float = Field(default=0.0, ge=0, le=1000)
    attention: float = Field(default=0.0, ge=0, le=1000)
    teacher: str | None = None
    teacher_digest: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _digest(cls, values: Any) -> Any:
        if not isinstance(values, Mapping) or not isinstance(values.get("teacher"), str):
            return values
        if values.get("teacher_digest") is not None:
            return values
        try:
            return {**values, "teacher_digest": package_digest(values["teacher"])}
        except EdgeSDKError:  # `requires` says what is wrong with it
            return values


class Distill(Stage):
    """Recovery by knowledge distillation."""

    name: ClassVar[str] = "distill"
    options_type: ClassVar[type[Options]] = DistillOptions
    options: DistillOptions

    def requires(self, outline: Outline) -> list[str]:
        reasons = training_reasons(outline)
        if self.options.attention and not outline.spec.layers:
            reasons.append("the attention loss needs a layer")
        if self.options.teacher is not None:
            reasons += _teacher_reasons(Path(self.options.teacher), outline)
        return reasons

    def ensures(self, outline: Outline) -> Outline:
        return outline

    def apply(self, package: Package, context: Context) -> Change:
        from edgesdk.stages.distill_inside import InsideLoss
        from edgesdk.stages.targets import recovery_loss
        from edgesdk.transformer.module import build, weights_of

        context = dataclasses.replace(context, teacher=self._teacher(package, context))
        module = build(package.spec, package.weights)
        if self.options.hidden or self.options.attention:
            _check_tokens(context)
            inside = InsideLoss(package.spec, context, self.options)
            fit(module, context, self.options, inside, what=self.name, extra=inside.projection)
        else:
            fit(module, context, self.options, recovery_loss(context, self.options), what=self.name)
        return Change(weights=weights_of(module))

    def _read(self, path: str) -> Package:
        """The package of another teacher.

        Raises:
            StageError: it is another one than when the recipe was read. PackageError: see `read_package`.
        """
        teacher = read_package(path)
        if package_digest(path) != self.options.teacher_digest:
            raise StageError(f"stage distill: teacher {path} is not the package that the recipe was read with")
        return teacher

    def _teacher(self, package: Package, context: Context) -> Package:
        """The teacher, which must answer the same question.

        Raises:
            StageError: another task, other outputs or other labels.
        """
        where = "the imported model" if self.options.teacher is None else self.options.teacher
        teacher = context.teacher if self.options.teacher is None else self._read(self.options.teacher)
        for what, own, found in (
            ("task", package.task, teacher.task),
            ("output", package.spec.output, teacher.spec.output),
            ("number of classes", package.spec.classes, teacher.spec.classes),
            ("kind of input", package.spec.embedding.kind, teacher.spec.embedding.kind),
        ):
            if own != found:
                raise StageError(
                    f"stage distill: teacher {where}: {what} {found}, the student's is {own}",
                    "give a teacher of the same task",
                )
        if package.labels is not None and teacher.labels is not None and package.labels != teacher.labels:
            pairs = zip(package.labels, teacher.labels, strict=True)
            index, (own, found) = next((i, pair) for i, pair in enumerate(pairs) if pair[0] != pair[1])
            raise StageError(
                f"stage distill: teacher {where}: label {index} is {found!r}, the student's is {own!r}",
                "give a teacher that was trained on the same labels in the same order",
            )
        if package.spec.classes is None and package.spec.hidden != teacher.spec.hidden:
            raise StageError(
                f"stage distill: teacher {where}: outputs of width {teacher.spec.hidden}, the student's have "
                f"{package.spec.hidden}", "an encoder's student must have the width of its teacher",
            )
        return teacher


def training_reasons(outline: Outline) -> list[str]:
    """Why an fp32 package cannot be trained; empty when it can."""
    reasons = []
    if not outline.training:
        labelled = "training data" if outline.spec.classes is None else "labelled training data"
        reasons.append(f"it needs {labelled}: give --train-data")
    if outline.scheme != "fp32":
        reasons.append(f"it trains fp32 packages, this one is {outline.scheme}; put it before the quantize stage")
    if outline.spec.lm_head:
        reasons.append("it trains classifiers and encoders, this model makes token logits")
    return reasons


def _teacher_reasons(path: Path, outline: Outline) -> list[str]:
    """What the manifest of the teacher's package says against it; the rest is checked when it is read."""
    try:
        manifest, _ = read_manifest(path)
    except EdgeSDKError as problem:
        return [f"teacher {path}: {problem.message}"]
    reasons = []
    if manifest.get("task") != outline.task:
        reasons.append(f"teacher {path}: its task is {manifest.get('task')}, this model's is {outline.task}")
    labels = manifest.get("labels")
    if isinstance(labels, list) and outline.spec.classes is not None and len(labels) != outline.spec.classes:
        reasons.append(f"teacher {path}: it has {len(labels)} classes, this model has {outline.spec.classes}")
    return reasons


def _check_tokens(context: Context) -> None:
    """Losses inside the model compare token with token, so teacher and student must read the same tokens."""
    assert context.train is not None
    rows = encoded_for(context.teacher, context.train)
    same = all(np.array_equal(value, rows.inputs.get(name, ())) for name, value in context.train.inputs.items())
    if not same:
        raise StageError(
            "stage distill: hidden and attention losses need a teacher with the same tokenizer",
            "set hidden and attention to 0, or put distill before the stage that changes the tokenizer",
        )
