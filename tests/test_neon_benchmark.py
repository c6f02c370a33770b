"""The NEON benchmark without its counting: parts that are kept, fair peers, empty models, the page."""

from __future__ import annotations

import importlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk.package import write_package
from edgesdk.testing.models import random_package
from edgesdk.transformer.spec import Layer, TokenEmbedding, TransformerSpec

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
count = importlib.import_module("neon_count")
models = importlib.import_module("neon_models")
neon = importlib.import_module("neon")
page = importlib.import_module("_page")
parts = importlib.import_module("_parts")
peers = importlib.import_module("neon_peers")
results = importlib.import_module("_results")

MODEL = models.random_model()
A76, A72 = peers.A76, peers.A72
DOCUMENT = {"inputs": [{"name": name, "dtype": "int64", "shape": [1, 7]} for name in ("input_ids", "attention_mask")]}


def counts(total: float, dot: int = 0, mull8: int = 0) -> dict[str, int]:
    return dict.fromkeys(count.CLASSES, 0) | {"total": int(total), "simd": int(total / 2), "dot": dot, "mull8": mull8}


def form(runtime: str, int8: bool, name: str) -> Any:
    return peers.Form(runtime, name, int8, lambda builder, cpu, sequence: Path())


def test_a_peer_that_does_other_work_does_not_count() -> None:
    linear = (models.macs(128) - models.attention_macs(128)) // 16
    found = [
        (form(peers.LITE, True, "fair"), counts(150e6, dot=linear)),
        (form(peers.LITE, True, "everything"), counts(155e6, dot=models.macs(128) // 16)),
        (form(peers.LITE, True, "half of it"), counts(90e6, dot=linear // 2)),
        (form(peers.LITE, False, "float"), counts(80e6)),
        (form(peers.ONNX, True, "another"), counts(70e6, dot=linear)),
    ]
    best = peers.best(found, peers.LITE, True, A76, MODEL, 128)
    assert (best.total, best.simd, best.form) == (150e6, 75e6, "fair")
    assert [peers.runs_in_int8(entry, MODEL, 128) for _, entry in found[:3]] == ["linear layers", "everything", None]
    assert "**something else**" in str(peers.table(found, MODEL, A76, 128)[2])


def test_no_peer_counts_for_more_than_the_best_known() -> None:
    linear = (models.macs(128) - models.attention_macs(128)) // 8
    found = [(form(peers.LITE, True, "slow"), counts(500e6, mull8=linear))]
    best = peers.best(found, peers.LITE, True, A72, MODEL, 128)
    assert (best.total, best.form) == (pytest.approx(407.74e6), "published, not counted here")
    assert (best.simd, best.simd_form) == (250e6, "slow"), "of SIMD instructions its own are the fewest"


def test_our_row_is_attention_in_floats_or_integers_with_two_digits() -> None:
    """Nothing else: no surplus counts as fair."""
    whole, attention = models.macs(128), models.attention_macs(128)
    twice = whole + attention / 2
    for products, done in (
        (0, "nothing"), (whole - attention, "linear layers"), (whole, "everything"),
        (twice, "everything; probabilities are two digits"), (1.03 * twice, "**something else**"),
        (2 * whole, "**something else**"),
    ):
        assert peers.our_work(counts(100e6, dot=round(products / 16)), MODEL, 128) == done


def test_rows_are_full_and_real_tokens() -> None:
    rows = MODEL.inputs(33, 3)
    assert rows["input_ids"].shape == rows["attention_mask"].shape == (3, 33) and rows["attention_mask"].all()
    np.testing.assert_array_equal(rows["input_ids"].reshape(-1), MODEL.tokens[:99])


def test_a_count_is_of_the_first_golden_row(tmp_path: Path) -> None:
    """Of each input: a block holds all rows of one input, then those of the next."""
    (tmp_path / "golden").mkdir()
    (tmp_path / "artifact.json").write_text(json.dumps(DOCUMENT | {"golden": {"n": 3}}))
    blocks = np.arange(2 * 3 * 7, dtype=np.int64).reshape(2, 3, 7)
    (tmp_path / "golden/in.bin").write_bytes(blocks.tobytes())
    assert count._ours("count", tmp_path, tmp_path)[-4:] == ["--inputs", str(tmp_path / "in.bin"), "--n", "1"]
    np.testing.assert_array_equal(np.fromfile(tmp_path / "in.bin", np.int64), blocks[:, 0].reshape(-1))


def test_the_weights_of_a_part_are_all_that_was_trained(tmp_path: Path) -> None:
    """Another int8 recipe of the same float model, and other test rows, are other weights."""
    spec = TransformerSpec(TokenEmbedding(11, 8), 8, (Layer(1, 1, 8, 8),), "post", 1e-12, "gelu", "mean", classes=2)

    def weights(name: str, seed: int) -> str:
        if name == "test.npz":
            np.savez(tmp_path / name, labels=np.array([seed]))
        else:
            shutil.rmtree(tmp_path / name, ignore_errors=True)
            write_package(random_package(spec, seed), tmp_path / name)
        found: str = neon.parts_of(tmp_path, tmp_path)["counts"].weights
        return found

    np.savez(tmp_path / "test.npz", labels=np.array([0]))
    names = ("fp32.edgepkg", "w8a8.edgepkg", "w8a8-dynamic.edgepkg", "test.npz")
    seen = [weights(name, seed) for seed in (0, 1) for name in names]
    assert len(set(seen)) == len(seen) - 1, "the fourth has the seed of what was there before"
    assert seen[3] == seen[2] and seen[0].startswith("sha256:")
    assert weights("w8a8.edgepkg", 1) == seen[-1], "and the same content has the same digest"


def test_empty_models_run(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    session = onnxruntime.InferenceSession(count.EMPTY["onnx"](DOCUMENT), providers=["CPUExecutionProvider"])
    rows = {entry["name"]: np.ones((1, 7), np.int64) for entry in DOCUMENT["inputs"]}
    assert session.run(None, rows)[0].tolist() == [1, 7]
    lite = interpreter.Interpreter(model_content=count.EMPTY["tflite"](DOCUMENT))
    lite.allocate_tensors()
    assert {detail["name"] for detail in lite.get_input_details()} == set(rows)
    lite.invoke()


def test_parts_are_kept_and_what_is_missing_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    runs: list[str] = []

    def one() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        runs.append("one")
        table = {"title": "A table:", "columns": ["a", "b"], "rows": [[1234, None]]}
        return [results.figure("x", 1.0, "s", "≤ 2", True) | {"note": "as it was"}], [table]

    def two() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        raise parts.Missing("no board")

    table = {"one": parts.Part(one), "two": parts.Part(two, [("y", "≤ 3")]), "three": parts.Part(one, [("z", "≤ 4")])}
    parts.run_parts("trial", table, ["one", "two"])
    parts.run_parts("trial", {"one": table["one"], "two": table["two"]}, None)
    assert runs == ["one"]
    parts.write("trial", table, "python benchmarks/trial.py")
    document = json.loads((tmp_path / "results/trial.json").read_text())
    figures = document["figures"]
    found = {entry["figure"]: (entry["value"], entry["provenance"], entry.get("reason")) for entry in figures}
    assert found == {
        "x": (1.0, "measured", None), "y": (None, "unmeasured", "no board"),
        "z": (None, "unmeasured", "run it with --only three"),
    }
    assert page._table(document["tables"][0]) == "\nA table:\n\n| a | b |\n| --- | --- |\n| 1,234 |  |\n"
    parts.run_parts("trial", {"one": table["one"]}, ["one"])
    assert runs == ["one", "one"]


def test_a_part_of_another_state_is_marked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that fails later keeps its figures, with the reason beside them."""
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")

    def good() -> Any:
        return [results.figure("x", 1.0, "s")], []

    def bad() -> Any:
        raise parts.Missing("no board")

    def document() -> Any:
        return json.loads((tmp_path / "results/trial.json").read_text())

    parts.run_parts("trial", {"one": parts.Part(good, weights="random")}, None, arguments="--trained FOLDER")
    first = document()
    assert first["command"] == first["parts"]["one"]["command"] == "python benchmarks/trial.py --trained FOLDER"
    assert first["parts"]["one"]["differs"] == [] and first["parts"]["one"]["commit"] == first["commit"]
    assert page._part("one", first["parts"]["one"]) == ""
    monkeypatch.setattr(parts, "commit", lambda: "0123456789ab")
    parts.run_parts("trial", {"one": parts.Part(bad, weights="sha256:12")}, ["one"], arguments="--trained FOLDER")
    later = document()["parts"]["one"]
    assert document()["figures"][0]["value"] == 1.0 and later["weights"] == "random"
    assert later["differs"] == ["commit", "weights"] and later["failed"] == "no board"
    text = page._part("one", later)
    assert "weights random" in text and text.endswith("Kept from before, as a later run failed: no board.\n")
    parts.run_parts("trial", {"one": parts.Part(good, weights="sha256:12")}, ["one"], arguments="--trained FOLDER")
    assert "failed" not in document()["parts"]["one"] and document()["parts"]["one"]["differs"] == []
    kept = tmp_path / ".edgesdk/benchmark-trial/one.json"
    kept.write_text(json.dumps({"figures": [], "tables": [], "seconds": 1.0}))
    parts.write("trial", {"one": parts.Part(good)}, "python benchmarks/trial.py")
    assert "commit unknown" in page._part("one", document()["parts"]["one"])


def test_a_part_that_was_not_run_here_stays_with_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a fresh clone, which has the document and nothing that is kept."""
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")

    def found(value: float, title: str) -> Any:
        return lambda: ([results.figure(title, value, "s")], [{"title": title, "columns": ["a"], "rows": [[value]]}])

    def bad() -> Any:
        raise parts.Missing("no board")

    def document() -> Any:
        return json.loads((tmp_path / "results/trial.json").read_text())

    monkeypatch.setattr(parts, "commit", lambda: "0123456789ab")
    monkeypatch.setattr(parts, "machine", lambda: "another machine")
    first = {"one": parts.Part(found(1.0, "x")), "gone": parts.Part(found(2.0, "y"))}
    parts.run_parts("trial", first, None)
    shutil.rmtree(tmp_path / ".edgesdk")
    monkeypatch.undo()
    monkeypatch.setattr(parts, "ROOT", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    table = {"one": first["one"], "two": parts.Part(found(3.0, "z")), "three": parts.Part(bad, [("w", "≤ 4")])}
    parts.run_parts("trial", table, ["two"])
    assert [(entry["figure"], entry["value"], entry["part"]) for entry in document()["figures"]] == [
        ("x", 1.0, "one"), ("z", 3.0, "two"), ("w", None, "three"),
    ]
    assert [(entry["title"], entry["part"]) for entry in document()["tables"]] == [("x", "one"), ("z", "two")]
    state = document()["parts"]["one"]
    assert (state["commit"], state["machine"]) == ("0123456789ab", "another machine")
    assert state["differs"] == ["commit", "machine"] and document()["parts"]["two"]["differs"] == []
    again = document()
    parts.run_parts("trial", table, [])
    assert document() == again, "what was carried once is carried again"

    parts.run_parts("trial", table | {"one": parts.Part(bad)}, ["one"])
    assert document()["figures"] == again["figures"] and document()["parts"]["one"]["failed"] == "no board"
    shutil.rmtree(tmp_path / ".edgesdk")
    (tmp_path / ".edgesdk/benchmark-trial").mkdir(parents=True)
    (tmp_path / ".edgesdk/benchmark-trial/one.json").write_text('{"figures": {}, "seconds": 1.0}')
    parts.run_parts("trial", table, [])
    assert document()["figures"] == again["figures"], "what has not the form of a part is none"
    assert document()["parts"]["one"] == state | {"failed": "no board"}
    parts.run_parts("trial", table, ["one"])
    assert document()["parts"]["one"]["differs"] == [] and "failed" not in document()["parts"]["one"]
