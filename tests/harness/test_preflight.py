"""What is known before a candidate is sent."""

from __future__ import annotations

import dataclasses
import struct
from pathlib import Path
from typing import Any

import pytest
from harness_artifacts import describe

from edgesdk.harness.board import Board
from edgesdk.harness.elf import elf_machine, wanted_glibc
from edgesdk.harness.energy import unmeasured_energy
from edgesdk.harness.figures import board_codes
from edgesdk.harness.preflight import new_enough, problems
from edgesdk.targets.target import load_target

BOARD = Board("pi", "raspberry-pi/4", "192.0.2.1")
FACTS: dict[str, Any] = {
    "machine": "aarch64", "cpu_features": ["asimd", "fp"], "cpu_model": "Cortex-A72",
    "runtimes": {"onnxruntime": "1.16.3", "ai-edge-litert": None, "tflite-runtime": "2.14.0"},
}


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ({"name": "onnxruntime"}, None),
        ({"name": "onnxruntime", "min": ">=1.16"}, None),
        ({"name": "onnxruntime", "min": ">=1.23"}, "onnxruntime on pi is 1.16.3, the artifact wants >=1.23"),
        ({"name": "litert", "min": "ai-edge-litert 1.0"}, None),
        ({"name": "trtexec"}, "tensorrt is not installed"),
        ({"name": "hailo"}, "'hailo' is not one that the worker runs"),
        ({"name": "neon"}, "needs an executable"),
        ({"name": "onnxruntime", "isa": ["neon"]}, None),
        ({"name": "onnxruntime", "isa": ["neon", "dotprod"]}, "needs CPU feature dotprod, which Cortex-A72 lacks"),
    ],
)
def test_reasons(tmp_path: Path, runtime: dict[str, Any], words: str | None) -> None:
    """Runtime, version and CPU features are compared with the board's facts."""
    found = problems(tmp_path, describe("x", runtime, ["model.onnx"]), BOARD, FACTS)
    assert len(found) == (0 if words is None else 1), found
    assert words is None or words in found[0]


def test_missing_runtime(tmp_path: Path) -> None:
    """A board without the runtime."""
    facts = {**FACTS, "runtimes": {}}
    (reason,) = problems(tmp_path, describe("x", {"name": "litert"}, ["m"]), BOARD, facts)
    assert "ai-edge-litert or tflite-runtime is not installed" in reason


def test_names_that_the_worker_refuses(tmp_path: Path) -> None:
    """Paths beyond plain characters are a reason here, not a fault there."""
    (reason,) = problems(tmp_path, describe("x", {"name": "onnxruntime"}, ["a b"]), BOARD, FACTS)
    assert "illegal path 'a b'" in reason


@pytest.mark.parametrize(
    ("version", "wanted", "enough"),
    [
        ("1.23.0", ">=1.23", True), ("1.3", ">=1.23", False), ("2", ">=1.23", True), ("0.9", "package 1.0", False),
        ("unknown", ">=9", True), ("2.13", "2.14", True), ("1.0", "", True),
    ],
)
def test_versions(version: str, wanted: str, enough: bool) -> None:
    """Versions compare as numbers."""
    assert new_enough(version, wanted) is enough


@pytest.mark.parametrize(
    ("header", "machine"),
    [
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 183), "aarch64"),
        (b"\x7fELF\x02\x02\x01" + bytes(9) + struct.pack(">HH", 2, 62), "x86_64"),
        (b"\x7fELF\x02\x01\x01" + bytes(9) + struct.pack("<HH", 2, 9999), "machine 9999"),
        (b"#!/bin/sh\n", None), (b"", None), (b"\x7fELF\x02", None),
    ],
)
def test_elf_header(tmp_path: Path, header: bytes, machine: str | None) -> None:
    """Both byte orders; anything that is not ELF has no machine."""
    (tmp_path / "file").write_bytes(header)
    assert elf_machine(tmp_path / "file") == machine


@pytest.mark.parametrize(
    ("kinds", "names", "wanted"),
    [
        ((6, 3), b"\0GLIBC_2.4\0GLIBC_2.34\0GLIBC_2.17\0", (2, 34)), ((6, 3), b"\0GLIBC_2.3.4\0", (2, 3)),
        ((6,), b"\0GLIBC_2.34\0", None), ((6, 3), b"\0GLIBC_PRIVATE\0", None), ((), b"\0GLIBC_2.34\0", None),
    ],
)
def test_glibc_that_a_dynamic_program_wants(
    tmp_path: Path, kinds: tuple[int, ...], names: bytes, wanted: tuple[int, int] | None
) -> None:
    """The newest one named; static programs have no interpreter (3), and want none. A table that is cut off says
    nothing."""
    table = b"".join(struct.pack("<IIQQQQQQ", kind, 4, 0, 0, 0, 0, 0, 1) for kind in kinds)
    for entries, expected in ((len(kinds), wanted), (len(kinds) + 9, None)):
        header = b"\x7fELF\x02\x01\x01" + bytes(9)
        header += struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0, 64, 0, 0, 64, 56, entries, 0, 0, 0)
        (tmp_path / "program").write_bytes(header + table + names)
        assert wanted_glibc(tmp_path / "program") == expected


@pytest.mark.parametrize(("note", "lacks"), [(b"neon", None), (b"neon,dotprod", "dotprod"), (None, None)])
def test_the_note_of_a_binary_is_read_before_it_is_sent(tmp_path: Path, note: bytes | None, lacks: str | None) -> None:
    """Its document may say less than the binary needs."""
    text = b"" if note is None else struct.pack("<III", 8, len(note), 1) + b"EdgeSDK\0" + note
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, 183, 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    (tmp_path / "model").write_bytes(header + struct.pack("<IIQQQQQQ", 4, 4, 120, 0, 0, len(text), len(text), 4) + text)
    artifact = dataclasses.replace(describe("x", {"name": "neon", "isa": ["neon"]}, ["model"]), executable="model")
    found = problems(tmp_path, artifact, BOARD, FACTS)
    assert len(found) == (lacks is not None)
    assert not lacks or f"needs CPU feature {lacks}, which Cortex-A72 lacks" in found[0]


@pytest.mark.parametrize("name", ["host", "raspberry-pi/4", "raspberry-pi/5", "jetson/orin-nano"])
def test_energy_is_unmeasured_with_a_reason(name: str) -> None:
    """No sensor, no number: each target says why, and names no boundary that was not measured."""
    target = load_target(name)
    found = unmeasured_energy(BOARD, target, {})
    assert (found["value"], found["boundary"], found["provenance"]) == (None, None, "unmeasured")
    assert found["reason"].startswith("no power sensor: ")
    assert unmeasured_energy(BOARD, load_target("host"), {"rapl": ["x"]})["reason"] != found["reason"]


def test_codes_from_facts() -> None:
    """Busy before, throttled meanwhile; unknown facts give no code."""
    assert board_codes({}) == []
    assert board_codes({"loadavg1": 0.5, "cpus": 4, "throttle_count": 3, "after": {"throttle_count": 3}}) == []
    assert board_codes({"loadavg1": 0.9, "cpus": 4}) == ["E_LOAD"]
    assert board_codes({"throttle_count": 3, "after": {"throttle_count": 4}}) == ["E_THROTTLED"]
