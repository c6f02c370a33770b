"""The whole flow in one go: demo model → int8 → three converters → this machine → choice → report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import edgesdk
from edgesdk.cli import run


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    """One quick build of the demo on this machine, by the command line, and its JSON document."""
    folder = tmp_path_factory.mktemp("flow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        output = folder / "stdout.json"
        with output.open("w") as stream:
            patch.setattr("sys.stdout", stream)
            code = run(["build", "--recipe", "fp32", "--recipe", "int8", "--profile", "quick", "--json"])
    assert code == 0
    return folder, json.loads(output.read_text())


def test_the_document_has_the_promised_form(built: tuple[Path, dict[str, object]]) -> None:
    """The keys of `edgesdk build --json`, each figure with its provenance."""
    _, document = built
    assert {"format", "version", "target", "board", "package", "report", "baseline", "candidates", "selected",
            "why_not"} <= document.keys()
    assert (document["format"], document["version"]) == ("edgesdk.build", 1)
    candidates = document["candidates"]
    assert isinstance(candidates, list) and len(candidates) == 6
    for candidate in candidates:
        assert candidate["valid"], candidate["reasons"]
        assert candidate["accuracy"]["provenance"] == "measured"
        assert candidate["latency_ms"]["provenance"] == "measured"
        assert candidate["latency_ms"]["p50"] > 0
        assert candidate["instructions"] == {"value": None, "provenance": "unmeasured"}
        assert candidate["peak_rss_bytes"]["value"] > 0
        assert candidate["energy_mj"]["value"] is None and candidate["energy_mj"]["reason"]
        assert len(candidate["artifact"]["sha256"]) == 64


def test_one_is_selected_and_every_other_has_its_reason(built: tuple[Path, dict[str, object]]) -> None:
    """`selected` and `why_not` together name every candidate once."""
    _, document = built
    candidates, why_not = document["candidates"], document["why_not"]
    assert isinstance(candidates, list) and isinstance(why_not, dict)
    assert sorted([document["selected"], *why_not]) == sorted(candidate["name"] for candidate in candidates)
    assert all(why_not.values())


def test_int8_loses_at_most_a_point_and_a_small_file_remains(built: tuple[Path, dict[str, object]]) -> None:
    """The floor of the demo: ≤ 1 point lost; ONNX and TFLite int8 files ≤ 35 % of the fp32 ONNX file."""
    _, document = built
    baseline, candidates = document["baseline"], document["candidates"]
    assert isinstance(baseline, dict) and isinstance(candidates, list)
    for candidate in candidates:
        if candidate["scheme"] == "w8a8":
            assert candidate["accuracy"]["n"] == baseline["n"]
            assert candidate["accuracy"]["value"] >= baseline["accuracy"] - 0.01
            assert candidate["artifact"]["bytes"] <= 0.35 * baseline["bytes"]


def test_results_select_verify_and_report_work_from_the_store(
    built: tuple[Path, dict[str, object]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What was measured can be asked again without a board."""
    folder, document = built
    monkeypatch.chdir(folder)
    frame = edgesdk.results()
    assert len(frame) == 6 and set(frame["converter"]) == {"onnx", "tflite", "neon"}
    assert run(["select", "--target", "host", "--goal", "size=max 35%", "--json"]) == 0
    chosen = json.loads(capsys.readouterr().out)["selected"]
    assert chosen is not None and chosen.startswith("int8-")
    assert run(["select", "--target", "host", "--goal", "energy=max 5mJ"]) == 6
    assert run(["select", "--target", "host", "--goal", "size=max 1kB"]) == 1
    assert run(["verify", ".edgesdk/results.sqlite"]) == 0
    assert run(["report", "--csv"]) == 0
    assert "int8-neon" in capsys.readouterr().out
    page = Path(str(document["report"]))
    assert page.is_file() and (page.parent / "report.md").is_file()
    assert run(["verify", str(document["package"])]) == 0
    package = Path(str(document["package"])).with_name("int8.edgepkg")
    assert run(["verify", str(package)]) == 0
    (package / "graph" / "model.onnx").write_bytes(b"tampered")
    assert run(["verify", str(package)]) == 3


def test_plan_predicts_without_doing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`plan` names every candidate and leaves nothing behind; a goal that cannot be measured is refused there."""
    monkeypatch.chdir(tmp_path)
    assert run(["plan", "--target", "rpi5", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["provenance"] == "emulated" and len(document["candidates"]) == 13
    sizes = {entry["name"]: (entry["scheme"], entry["bytes"]["value"]) for entry in document["candidates"]}
    assert sizes["fp32-neon-fp16"] == ("fp16", sizes["fp32-neon"][1] // 2)
    assert all(candidate["bytes"]["provenance"] == "predicted" for candidate in document["candidates"])
    assert run(["plan", "--target", "rpi5", "--goal", "latency_p90=max 30ms"]) == 6
    assert list(tmp_path.iterdir()) == []


def test_the_same_build_twice_makes_the_same_packages(
    built: tuple[Path, dict[str, object]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages are content: a second build in another folder gives the same digests."""
    from edgesdk.importing import import_job
    from edgesdk.package import content_digest, package_digest
    from edgesdk.recipe import load_recipes
    from edgesdk.stages import run_stage

    folder, document = built
    monkeypatch.chdir(tmp_path)
    job = import_job(None, None, None)
    (recipe,) = load_recipes("int8")
    again = run_stage(recipe.stages[0], job.package, job.context(0, lambda what, done, total: None))
    packages = (folder / str(document["package"])).parent
    original = json.loads((packages / "int8.edgepkg" / "manifest.json").read_text())
    assert package_digest(packages / "fp32.edgepkg") == content_digest(job.package)
    assert original["lineage"][-1]["parent"] == again.lineage[-1].parent == content_digest(job.package)
