"""A token of a decoder with its cache against computing the whole sequence again: executed aarch64 instructions.

    python benchmarks/neon_decoder.py     (a few minutes; counts do not depend on the machine)

GPT-2's layers at MiniLM's size (6 layers, hidden 384, 12 heads, feed-forward 1536, 2000 tokens of vocabulary, up to 128
tokens, random weights), built for a Raspberry Pi 5 and counted under qemu-user by the product's plugin. "Again" is a
prompt of all tokens, by the same binary: logits of every token, as `model run` computes them.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

import neon_models as models
import numpy as np
from _results import figure, write_result
from neon_count import Counter

from edgesdk.converters import converter
from edgesdk.harness.worker.count import parse_counts
from edgesdk.targets import load_target
from edgesdk.transformer.spec import TokenEmbedding

CPU, TARGET, SEQUENCE = "cortex-a76", "raspberry-pi/5", 128
PAST = (16, 64, 127)
SPEC = dataclasses.replace(
    models.SPEC, embedding=TokenEmbedding(models.VOCABULARY, SEQUENCE, norm=False), norm="pre", norm_epsilon=1e-5,
    activation="gelu_tanh", pooling="none", final_norm=True, classes=None, causal=True, lm_head=True,
)


def counts(counter: Counter, artifact: Path, folder: Path, prompt: int, tokens: int) -> list[int]:
    """Instructions of the prompt and of each token behind it."""
    ids = models.inputs(SEQUENCE, SPEC)["input_ids"][:1]
    mask = (np.arange(SEQUENCE) < prompt).astype(np.int64)[None]
    (folder / "in.bin").write_bytes(ids.tobytes() + mask.tobytes())
    words = ("generate", "--inputs", str(folder / "in.bin"), "--n", "1", "--tokens", str(tokens))
    return [entry["total"] for entry in parse_counts(counter.lines(str(artifact / "model"), *words))]


def figures_of(scheme: str, folder: Path) -> list[dict[str, Any]]:
    """Counts of one scheme at several lengths."""
    artifact = folder / scheme
    artifact.mkdir()
    package = models.package(models.random_weights(SPEC), scheme, SEQUENCE, SPEC)
    converter("neon").convert(package, load_target(TARGET), artifact)
    arena = json.loads((artifact / "artifact.json").read_text())["runtime"]["arena_bytes"]
    entries = [figure(f"{scheme}, arena with the cache of {SEQUENCE} tokens", arena, "bytes")]
    with Counter(CPU) as counter:
        steps = counts(counter, artifact, folder, PAST[0], SEQUENCE - PAST[0] + 1)[1:]
        for past in PAST:
            step, again = steps[past - PAST[0]], counts(counter, artifact, folder, past + 1, 1)[0]
            name = f"{scheme}, one token behind {past}"
            entries += [
                figure(f"{name}, instructions", step, "", provenance="emulated"),
                figure(f"{name}, of computing all {past + 1} again", step / again, "×", provenance="emulated"),
            ]
    return entries


def main() -> None:
    """Count, write `results/neon_decoder.json`."""
    with tempfile.TemporaryDirectory(prefix="edgesdk-neon-decoder-") as name:
        entries = [entry for scheme in ("fp32", "w8a8") for entry in figures_of(scheme, Path(name))]
    write_result("neon_decoder", entries, extra={"cpu": CPU})


if __name__ == "__main__":
    main()
