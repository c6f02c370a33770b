"""What training aims at: the teacher's answers, computed once, and the loss that recovers them.

Soft labels at temperature T after Hinton et al. 2015 (arXiv:1503.02531): α · cross-entropy + (1 − α) · T² ·
KL(teacher ‖ student); the factor T² keeps the two gradients of one size. This module loads torch: import it inside
`apply`.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict

import torch
from torch import Tensor
from torch.nn import functional

from edgesdk.data import Dataset
from edgesdk.encode import encoded_for
from edgesdk.errors import StageError
from edgesdk.evaluate import accuracy, cosines
from edgesdk.package import Package, content_digest
from edgesdk.stages.base import Context
from edgesdk.stages.forward import predict
from edgesdk.stages.train import Loss, TrainingOptions
from edgesdk.transformer.module import Tap, Transformer, build, no_tap

KEPT = 6
_ANSWERS: OrderedDict[tuple[str, str], Tensor] = OrderedDict()
_DIGESTS: weakref.WeakKeyDictionary[Package, str] = weakref.WeakKeyDictionary()


def soft_logits(package: Package, data: Dataset, context: Context) -> Tensor:
    """The teacher's outputs in full precision, float32 [N, …]: logits [N, C] of its last layer, or embeddings. Texts
    are encoded by its own tokenizer. Kept for the next call; do not change them."""
    rows = encoded_for(package, data)
    key = (package_key(package), rows.digest)
    if key not in _ANSWERS:
        context.progress(f"teacher: {len(rows)} rows", 0, 1)
        teacher = build(package.spec, package.weights)
        if torch.cuda.is_available():
            teacher.to("cuda")
        with torch.autocast(next(teacher.parameters()).device.type, enabled=False):
            _ANSWERS[key] = predict(teacher, rows.inputs, lambda batch: teacher.trace(batch).output)
        while len(_ANSWERS) > KEPT:
            _ANSWERS.popitem(last=False)
    _ANSWERS.move_to_end(key)
    return _ANSWERS[key]


def package_key(package: Package) -> str:
    """The content digest of a package object, computed once."""
    if package not in _DIGESTS:
        _DIGESTS[package] = content_digest(package)
    return _DIGESTS[package]


def recovery_loss(context: Context, options: TrainingOptions, tap: Tap = no_tap) -> Loss:
    """The loss that brings a changed model back to `context.teacher`.

    Classifiers: α · cross-entropy + (1 − α) · T² · KL; without labels the teacher alone decides. Every exit answers to
    the same targets, with weights that rise with its depth. Encoders: mean squared error (relative to the mean square
    of the teacher's output) plus 1 − cosine, over tokens that are not padding where the output has tokens. `tap` sees
    the model's tensors.

    Raises:
        StageError: no training data, or teacher and model cannot be compared.
    """
    data = context.train
    if data is None:
        raise StageError("recovery: there is no training data", "give --train-data")
    if context.teacher.spec.lm_head:
        raise StageError("recovery: the teacher makes token logits; only classifiers and encoders are recovered")
    # With hard labels alone nobody has to ask the teacher.
    soft = None
    if data.labels is None or options.alpha < 1 or context.teacher.spec.classes is None:
        soft = soft_logits(context.teacher, data, context)
    labels = None if data.labels is None else torch.from_numpy(data.labels.copy())

    def loss(module: Transformer, batch: dict[str, Tensor], rows: Tensor) -> Tensor:
        trace = module.trace(batch, tap)
        target = None if soft is None else soft[rows.to(soft.device)].to(rows.device)
        if module.spec.classes is None:
            assert target is not None
            return embedding_loss(trace.output.float(), target, batch.get("attention_mask"))
        hard = None if labels is None else labels[rows.to(labels.device)].to(rows.device)
        answers = [*trace.exits.items(), (len(module.spec.layers), trace.output)]
        weights = [index + 1 for index, _ in answers]
        parts = [
            weight * classification_loss(logits.float(), target, hard, options)
            for weight, (_, logits) in zip(weights, answers, strict=True)
        ]
        return torch.stack(parts).sum() / sum(weights)

    return loss


def validation_score(context: Context, module: Transformer, tap: Tap = no_tap) -> float:
    """Accuracy of the last output on the validation data (agreement with the teacher where there are no labels), or
    mean cosine to the teacher's output for encoders."""
    data = context.validation
    outputs = predict(module, data.inputs, lambda batch: module.trace(batch, tap).output).numpy()
    if module.spec.classes is None:
        return float(cosines(outputs, soft_logits(context.teacher, data, context).numpy()).mean())
    if data.labels is None:
        return accuracy(outputs, soft_logits(context.teacher, data, context).numpy().argmax(-1))
    return accuracy(outputs, data.labels)


def classification_loss(
    logits: Tensor, teacher: Tensor | None, labels: Tensor | None, options: TrainingOptions
) -> Tensor:
    """α · cross-entropy + (1 − α) · T² · KL(teacher ‖ student), mean over the rows of logits [B, C] and labels [B];
    one of the two alone where the other is None."""
    if teacher is None:
        assert labels is not None
        return functional.cross_entropy(logits, labels)
    temperature = options.temperature
    student = (logits / temperature).log_softmax(-1)
    soft = (teacher / temperature).log_softmax(-1)
    divergence = temperature**2 * functional.kl_div(student, soft, reduction="batchmean", log_target=True)
    if labels is None:
        return divergence
    return options.alpha * functional.cross_entropy(logits, labels) + (1 - options.alpha) * divergence


def embedding_loss(output: Tensor, teacher: Tensor, mask: Tensor | None) -> Tensor:
    """Relative squared error plus 1 − cosine of embeddings [B, H] or hidden states [B, S, H] (padding left out)."""
    if output.dim() == 3:
        teacher = teacher[:, : output.shape[1]]
        kept = torch.ones(output.shape[:2], dtype=torch.bool, device=output.device) if mask is None else mask.bool()
        output, teacher = output[kept], teacher[kept]
    if output.shape != teacher.shape:
        raise StageError(f"recovery: outputs {tuple(output.shape)} against the teacher's {tuple(teacher.shape)}")
    squared = functional.mse_loss(output, teacher) / teacher.square().mean().clamp_min(1e-12)
    return squared + (1 - functional.cosine_similarity(output, teacher, dim=-1)).mean()
