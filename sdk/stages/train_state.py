"""The state of an unfinished training on disk: a folder of `state.safetensors` and `state.json`, replaced atomically.

Nothing in it is executed. A folder that does not fit (truncated, changed, of another training) is as good as none.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from edgesdk.files import atomic_folder, canonical_json, sha256_bytes

# What the facts of a training hold.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "step": int, "since": int, "loss": float, "best": (float, type(None)), "scores": list,
}
TENSORS, FACTS = "state.safetensors", "state.json"
FORMAT, VERSION = "edgesdk.training", 1


class Checkpoint:
    """Where one training keeps its state; without a folder it keeps none."""

    def __init__(self, folder: Path | None, key: str) -> None:
        self.path = None if folder is None else folder / key
        self.key = key

    def write(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Replace the state. `facts` is JSON."""
        if self.path is None:
            return
        document = {**facts, "format": FORMAT, "version": VERSION, "key": self.key}
        with atomic_folder(self.path) as folder:
            save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, folder / TENSORS)
            (folder / FACTS).write_bytes(canonical_json(document))

    def read(self, expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The state, where there is one with exactly these names, shapes and types of tensors."""
        if self.path is None or self.path.is_symlink() or not self.path.is_dir():
            return None
        try:
            facts = json.loads((self.path / FACTS).read_bytes())
            tensors = load_file(self.path / TENSORS)
        except Exception:  # whatever is wrong with it: the training starts anew
            return None
        if not isinstance(facts, dict) or (facts.get("format"), facts.get("version")) != (FORMAT, VERSION):
            return None
        if any(not isinstance(facts.get(name), kind) for name, kind in FIELDS.items()) or facts["step"] < 0:
            return None
        found = {name: (value.shape, value.dtype) for name, value in tensors.items()}
        wanted = {name: (value.shape, value.dtype) for name, value in expected.items()}
        fits = facts.get("key") == self.key and found == wanted and _are_random_states(tensors)
        return (tensors, facts) if fits else None

    def remove(self) -> None:
        """The training is over."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """Digest of named tensors: names, shapes, types and contents."""
    parts = []
    for name, value in sorted(tensors.items()):
        data = value.detach().cpu().contiguous().view(torch.uint8) if value.dim() else value.detach().cpu().reshape(1)
        parts.append([name, list(value.shape), str(value.dtype), sha256_bytes(data.numpy().tobytes())])
    return sha256_bytes(canonical_json(parts))


def random_states(device: torch.device) -> dict[str, Tensor]:
    """Where torch's random numbers stand: `random.cpu`, and `random.cuda` where the device is a GPU."""
    states = {"random.cpu": torch.get_rng_state()}
    return states if device.type == "cpu" else {**states, "random.cuda": torch.cuda.get_rng_state(device)}


def restore_random_states(tensors: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on from `random_states`."""
    torch.set_rng_state(tensors["random.cpu"])
    if device.type != "cpu":
        torch.cuda.set_rng_state(tensors["random.cuda"], device)


def _are_random_states(tensors: Mapping[str, Tensor]) -> bool:
    """Whether generators take what is stored for them; size and type alone do not tell."""
    try:
        for name, value in tensors.items():
            if name.startswith("random."):
                torch.Generator(name.removeprefix("random.")).set_state(value)
    except (RuntimeError, TypeError):
        return False
    return True
