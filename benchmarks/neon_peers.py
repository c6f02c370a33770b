"""ONNX Runtime and LiteRT on arm64 in every form that might be their best, counted side by side.

Both come from their arm64 wheels and run under the same qemu as our binaries, with the same markers, in a guest that
shows an ARM `/proc/cpuinfo` and CPU tree. Forms of EdgeSDK's converters hold the same scales as our build; the others
are the model's export by torch, quantized by ONNX Runtime's own tools (`neon_export.py`).

A form counts as an int8 peer only if the multiplications of its int8 dot products (sdot: 16, smull and smlal: 8) are
those of the linear layers, or of the whole model, within 2 %. And no peer counts for more than the best that is known
of it: `PUBLISHED`, found on other exports in November 2026 with the same versions and method. Where such a number is
the least, the figure says that it was not counted here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import neon_export
from neon_count import Counts, remembered
from neon_models import Model, attention_macs, macs

from edgesdk.converters import converter
from edgesdk.targets import load_target

A76, A72 = "cortex-a76", "cortex-a72"
TARGETS = {A76: "raspberry-pi/5", A72: "raspberry-pi/4"}
ONNX, LITE = "ONNX Runtime", "LiteRT"
WITHIN = 0.02
NOT_COUNTED = "published, not counted here"
# Millions of instructions of a runtime's best known form: total, and SIMD (of the form with the fewest of those).
PUBLISHED = {
    (ONNX, True, A76, 128): (219.90, 143.91), (LITE, True, A76, 128): (161.97, 120.61),
    (ONNX, True, A76, 32): (49.68, 31.89), (LITE, True, A76, 32): (33.41, 25.25),
    (ONNX, True, A72, 128): (427.68, 323.32), (LITE, True, A72, 128): (407.74, 292.64),
    (ONNX, True, A72, 32): (101.62, 75.78), (LITE, True, A72, 32): (94.65, 68.26),
    (ONNX, False, A76, 128): (501.16, 393.35), (LITE, False, A76, 128): (507.30, 389.39),
    (ONNX, False, A76, 32): (119.11, 93.25), (LITE, False, A76, 32): (129.99, 100.45),
    (ONNX, False, A72, 128): (501.16, 393.35), (LITE, False, A72, 128): (518.77, 378.00),
    (ONNX, False, A72, 32): (119.11, 93.26), (LITE, False, A72, 32): (122.43, 89.60),
}


@dataclass(frozen=True)
class Form:
    """A way to give the model to a runtime; `write` makes the folder that is counted."""

    runtime: str
    name: str
    int8: bool
    write: Callable[[Builder, str, int], Path]


@dataclass(frozen=True, eq=False)
class Builder:
    """Makes the artifacts of one model: those of EdgeSDK in `folder`, exports in `cache`."""

    model: Model
    folder: Path
    cache: Path

    def artifact(self, kind: str, scheme: str, cpu: str, sequence: int) -> Path:
        """What one of EdgeSDK's converters makes."""
        path = self.folder / f"{kind}-{scheme}-{cpu}-{sequence}"
        if not path.exists():
            path.mkdir(parents=True)
            converter(kind).convert(self.model.package(scheme, sequence), load_target(TARGETS[cpu]), path)
        return path

    def count(self, kind: str, scheme: str, cpu: str, sequence: int) -> Counts:
        """One inference of such an artifact."""
        return remembered([self.artifact(kind, scheme, cpu, sequence)], cpu)[0]


def _converted(runtime: str, kind: str, scheme: str) -> Form:
    return Form(runtime, f"EdgeSDK's converter, {scheme}", scheme != "fp32",
                lambda builder, cpu, sequence: builder.artifact(kind, scheme, cpu, sequence))


def _exported(form: str, name: str, int8: bool) -> Form:
    return Form(ONNX, f"torch's export, {name}", int8,
                lambda builder, _, sequence: neon_export.write(builder.model, form, sequence, builder.cache))


FORMS = (
    *(_converted(LITE, "tflite", scheme) for scheme in ("w8a8", "w8a8-dynamic", "fp32")),
    *(_converted(ONNX, "onnx", scheme) for scheme in ("w8a8", "w8a8-dynamic", "fp32")),
    _exported("dynamic", "quantize_dynamic by channel", True),
    _exported("static", "quantize_static, Q/DQ u8/s8 by channel", True),
    _exported("fp32", "fp32", False),
    _exported("fused", "fp32, fused by onnxruntime.transformers", False),
)


@dataclass(frozen=True)
class Best:
    """A runtime's fewest instructions, in all and SIMD, and the forms that they are from."""

    total: float
    simd: float
    form: str
    simd_form: str


def counted(builder: Builder, cpu: str, sequence: int, forms: tuple[Form, ...] = FORMS) -> list[tuple[Form, Counts]]:
    """Every form on one CPU."""
    counts = remembered([form.write(builder, cpu, sequence) for form in forms], cpu)
    return list(zip(forms, counts, strict=True))


def int8_macs(counts: Counts) -> int:
    """Multiplications of the int8 dot products; half-width instructions are counted as whole ones."""
    return 16 * counts["dot"] + 32 * counts["mmla"] + 8 * counts["mull8"]


def runs_in_int8(counts: Counts, model: Model, sequence: int) -> str | None:
    """`linear layers` or `everything`, whichever the int8 multiplications are within 2 %; None: neither."""
    whole = macs(sequence, model.spec)
    for what, expected in (("linear layers", whole - attention_macs(sequence, model.spec)), ("everything", whole)):
        if abs(int8_macs(counts) / expected - 1) <= WITHIN:
            return what
    return None


def our_work(counts: Counts, model: Model, sequence: int) -> str:
    """The same of our build, which may also attend in integers: probabilities are two digits, so that the product of
    probabilities and values, half of attention, is multiplied twice."""
    twice = macs(sequence, model.spec) + attention_macs(sequence, model.spec) / 2
    if abs(int8_macs(counts) / twice - 1) <= WITHIN:
        return "everything; probabilities are two digits"
    return runs_in_int8(counts, model, sequence) or ("**something else**" if int8_macs(counts) else "nothing")


def best(
    found: list[tuple[Form, Counts]], runtime: str, int8: bool, cpu: str, model: Model, sequence: int
) -> Best:
    """The best form of a runtime; a form in int8 must be fair."""
    fair = [
        (float(counts["total"]), float(counts["simd"]), form.name)
        for form, counts in found
        if form.runtime == runtime and form.int8 == int8 and (not int8 or runs_in_int8(counts, model, sequence))
    ]
    known = PUBLISHED.get((runtime, int8, cpu, sequence))
    if known is not None:
        fair.append((known[0] * 1e6, known[1] * 1e6, NOT_COUNTED))
    total, _, form = min(fair)
    _, simd, simd_form = min(fair, key=lambda one: one[1])
    return Best(total, simd, form, simd_form)


def table(found: list[tuple[Form, Counts]], model: Model, cpu: str, sequence: int) -> list[list[Any]]:
    """Rows for the page: CPU, S, runtime, form, millions of instructions by class, what runs in int8."""
    rows = []
    for form, counts in found:
        share = f"{100 * int8_macs(counts) / macs(sequence, model.spec):.1f} %"
        runs = runs_in_int8(counts, model, sequence) or ("**something else**" if int8_macs(counts) else "nothing")
        rows.append([cpu, sequence, form.runtime, form.name, *classes(counts), share, runs])
    return rows


CLASSES = ("total", "SIMD", "int8 products", "fmla", "loads and stores", "integer and branch")
COLUMNS = ["CPU", "S", "runtime", "form", *CLASSES, "int8, of the model's MACs", "in int8"]


def classes(counts: Counts) -> list[str]:
    """Millions of instructions by class, as in `CLASSES`."""
    products = counts["dot"] + counts["mmla"] + counts["mull8"]
    rest = counts["int"] + counts["branch"]
    numbers = (counts["total"], counts["simd"], products, counts["fmla"], counts["ldst"], rest)
    return [f"{number / 1e6:.2f}" for number in numbers]
