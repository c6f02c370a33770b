"""Compares an import with its original on sample inputs; an import that disagrees is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from edgesdk.errors import ModelError
from edgesdk.transformer.importers.draft import Draft
from edgesdk.transformer.module import Transformer
from edgesdk.transformer.spec import PatchEmbedding, TokenEmbedding, TransformerSpec

# Largest difference that rounding explains: |imported − original| / max(1, |original|).
TOLERANCE = 1e-4
# Tokens of the padded samples where the caller names no sequence.
SAMPLE_TOKENS = 64


def sample_inputs(
    spec: TransformerSpec, sequence: int | None, padding: int | None = None
) -> list[dict[str, NDArray[Any]]]:
    """Batches of random inputs, always the same ones for a spec.

    Token models get rows of several lengths, padded at the end, and one row of the full length, so that every position
    is compared; patches and features have no padding. `padding` is the id of padded tokens (else 0) and of no other.
    """
    generator = np.random.default_rng(0)
    if isinstance(spec.embedding, PatchEmbedding):
        shape = (3, spec.embedding.channels, spec.embedding.size, spec.embedding.size)
        return [{"pixel_values": generator.standard_normal(shape, np.float32)}]
    tokens = min(sequence or SAMPLE_TOKENS, spec.max_length)
    if not isinstance(spec.embedding, TokenEmbedding):
        widths = sorted({tokens, max(1, tokens // 2)})
        return [{"features": generator.standard_normal((2, n, spec.hidden), np.float32)} for n in widths]
    batches = []
    for lengths in ([tokens, (tokens + 1) // 2, 1], [spec.max_length]):
        width = lengths[0]
        ids = generator.integers(0, spec.embedding.vocabulary, (len(lengths), width))
        mask = (np.arange(width) < np.array(lengths)[:, None]).astype(np.int64)
        if padding is not None:
            ids[ids == padding] = (padding + 1) % spec.embedding.vocabulary
        ids = np.where(mask == 1, ids, padding or 0)
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def relative_difference(value: Tensor, reference: Tensor) -> float:
    """max |value − reference| / max(1, |reference|); NaN where either is not finite, infinity for other shapes."""
    if value.shape != reference.shape:
        return float("inf")
    return float(((value - reference).abs() / reference.abs().clamp(min=1.0)).max())


def check(draft: Draft, module: Transformer, sequence: int | None) -> float:
    """Largest difference between import and original over all samples.

    Raises:
        ModelError: the difference is above `TOLERANCE`; names the first part that diverges where it can be told.
    """
    worst = 0.0
    for inputs in sample_inputs(draft.spec, sequence, draft.padding):
        tensors = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.inference_mode():
            difference = relative_difference(module(tensors), original_output(draft, tensors))
        if not difference <= TOLERANCE:  # also true for NaN
            part = first_divergence(draft, module, {name: value[:1] for name, value in tensors.items()})
            raise ModelError(
                f"import: the imported model differs from the original by {difference:.2e} on sample inputs "
                f"(tolerance {TOLERANCE:.0e}){f'; it begins in {part}' if part else ''}",
                "the model computes something that the canonical Transformer does not; nothing was imported",
            )
        worst = max(worst, difference)
    return worst


def original_output(draft: Draft, inputs: Mapping[str, Tensor]) -> Tensor:
    """The output of the original; whatever it raises becomes a ModelError."""
    # The fast path of torch.nn.TransformerEncoder takes GELU(approximate="tanh") for the exact GELU (torch 2.13), which
    # is not what was trained.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        return draft.forward(inputs).float()
    except Exception as problem:  # the user's own code
        raise ModelError(
            f"import: the original model failed on sample inputs: {type(problem).__name__}: {problem}",
            f"it must accept {', '.join(inputs)} as its family does",
        ) from problem
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def first_divergence(draft: Draft, module: Transformer, inputs: Mapping[str, Tensor]) -> str | None:
    """Name of the first part whose output differs on one unpadded row; None where no part does."""
    found: dict[str, dict[str, Tensor]] = {"imported": {}, "original": {}}

    def recorder(side: str, name: str) -> Any:
        def record(owner: nn.Module, arguments: Any, output: Any) -> None:
            value = output[0] if isinstance(output, tuple) else output
            value = value.to_padded_tensor(0.0) if value.is_nested else value
            if name in found[side]:  # a module that several layers share: the first of them counts
                return
            found[side][name] = value.detach().float().reshape(-1)  # one row: [1, S, H] and [S, 1, H] become alike

        return record

    hooks = [part.register_forward_hook(recorder("original", name)) for name, part in draft.parts.items()]
    hooks += [module.get_submodule(name).register_forward_hook(recorder("imported", name)) for name in draft.parts]
    try:
        with torch.inference_mode():
            module(inputs)
            original_output(draft, inputs)
    finally:
        for hook in hooks:
            hook.remove()
    for name in draft.parts:
        if name in found["original"] and name in found["imported"]:
            if not relative_difference(found["imported"][name], found["original"][name]) <= TOLERANCE:
                return name
    return None
