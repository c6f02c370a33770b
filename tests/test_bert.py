"""A BERT-like encoder of `transformers` goes through the whole build, on this machine and on an emulated board."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

import edgesdk
from edgesdk.pipeline import Build


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `bert/` (4 layers, hidden 256, vocabulary 8000, random weights) and `data.npz` (sequence 64)."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=8000, hidden_size=256, num_hidden_layers=4, num_attention_heads=8, intermediate_size=1024,
        max_position_embeddings=512, num_labels=5,
    )
    BertForSequenceClassification(config).save_pretrained(folder / "bert")
    random = np.random.default_rng(0)
    lengths = random.integers(8, 65, 32)
    mask = (np.arange(64) < lengths[:, None]).astype(np.int64)
    ids = random.integers(1, 8000, (32, 64)) * mask
    np.savez(
        folder / "data.npz", input_ids=ids, attention_mask=mask, labels=random.integers(0, 5, 32)
    )
    return folder


def build(inputs: Path, target: str, out: Path, monkeypatch: pytest.MonkeyPatch) -> Build:
    """One build with a static and, on this machine, every scheme; accuracy of random weights is no goal."""
    monkeypatch.chdir(out)
    return edgesdk.build(
        str(inputs / "bert"), str(inputs / "data.npz"), target=target, profile="quick",
        recipe=["int8"] if target != "host" else ["fp32", "int8", "int8-dynamic"],
        goals={"accuracy": "max-degradation 100"},
    )


def check(built: Build, provenance: str) -> None:
    """Every artifact is within its tolerance of torch, and one is selected."""
    for candidate in built.record.candidates:
        assert candidate.valid, (candidate.name, candidate.reasons)
        assert candidate.figure("golden", "passed") is True
        assert candidate.accuracy is not None and candidate.accuracy.provenance == provenance
    assert {candidate.converter for candidate in built.record.candidates} == {"onnx", "tflite", "neon"}
    assert built.selection.selected is not None


def test_this_machine(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All three converters and schemes; int8 files of ONNX and TFLite are ≤ 27 % of the fp32 ONNX."""
    built = build(inputs, "host", tmp_path, monkeypatch)
    check(built, "measured")
    for candidate in built.record.candidates:
        if candidate.scheme != "fp32" and candidate.converter in ("onnx", "tflite"):
            assert candidate.bytes is not None
            assert candidate.bytes <= 0.27 * built.record.baseline.bytes, candidate.name


@pytest.mark.skipif(os.environ.get("EDGESDK_NO_EMULATION") == "1", reason="EDGESDK_NO_EMULATION=1")
def test_emulated_raspberry_pi(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same over SSH on ARM programs: instructions instead of time, no memory figure."""
    built = build(inputs, "rpi5", tmp_path, monkeypatch)
    check(built, "emulated")
    for candidate in built.record.candidates:
        assert candidate.figure("latency_ms", "p50") is None
        assert candidate.figure("peak_rss_bytes", "provenance") == "unmeasured"
        counted = candidate.figure("instructions", "value")
        assert counted > 1_000_000
        # Integer multiply-accumulates really ran: 16 of them in one dot-product instruction. Padding may be cut away.
        dots = candidate.figure("instructions", "classes", "dot")
        assert 16 * dots > 0.2 * built.record.lineage["int8"][0].after.macs
