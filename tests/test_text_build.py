"""A build over texts: packages of different vocabularies are each measured on their own tokens of the same rows."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from edgesdk.data import load_data
from edgesdk.encode import packaged_tokenizer
from edgesdk.errors import ConfigError
from edgesdk.evaluate import evaluate_package
from edgesdk.package import read_package, write_package
from edgesdk.pipeline import build
from edgesdk.plan import make_plan
from edgesdk.request import Request
from edgesdk.testing.texts import VOCABULARY, random_texts, text_package

RECIPE = "format: edgesdk.recipe\nversion: 1\nstages:\n  - {stage: prune.vocabulary, size: 130}\n"


def _silent(*_: object) -> None:
    pass


def _texts(path: Path, rows: int, seed: int) -> str:
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["text", "label"])
        writer.writerows((text, row % 3) for row, text in enumerate(random_texts(rows, seed)))
    return str(path)


@pytest.fixture
def request_of_texts(tmp_path: Path) -> Request:
    write_package(text_package(), tmp_path / "model.edgepkg")
    (tmp_path / "small.yaml").write_text(RECIPE)
    return Request(
        model=str(tmp_path / "model.edgepkg"), data=_texts(tmp_path / "test.csv", 60, 1),
        train_data=_texts(tmp_path / "train.csv", 60, 2), recipes=["fp32", str(tmp_path / "small.yaml")],
        converters=["onnx"], profile="quick", sequence=8, state=tmp_path / "state", store=tmp_path / "store.db",
        out=tmp_path / "out",
    )


def test_accuracy_on_the_board_is_that_of_each_packages_own_tokens(request_of_texts: Request, tmp_path: Path) -> None:
    built = build(request_of_texts, _silent, _silent)
    found = {candidate.recipe: candidate.accuracy for candidate in built.record.candidates}
    assert found.keys() == {"fp32", "small"}
    for recipe, record in found.items():
        package = read_package(tmp_path / "out" / "packages" / f"{recipe}.edgepkg")
        tokenizer = packaged_tokenizer(package.preprocess)
        data = load_data(request_of_texts.data, package.spec, sequence=8, tokenizer=tokenizer)
        assert record is not None and record.n == 60
        assert record.value == pytest.approx(evaluate_package(package, data))
    assert (len(VOCABULARY), 130) == tuple(
        read_package(tmp_path / "out" / "packages" / f"{recipe}.edgepkg").spec.embedding.vocabulary for recipe in found
    )


def test_the_plan_knows_that_there_are_texts(request_of_texts: Request) -> None:
    plan = make_plan(request_of_texts)
    assert plan["reasons"] == []
    sizes = [candidate["bytes"]["value"] for candidate in plan["candidates"]]
    assert sizes[0] - sizes[1] == 4 * 16 * (len(VOCABULARY) - 130)


def test_arrays_of_tokens_are_refused_before_any_work(request_of_texts: Request, tmp_path: Path) -> None:
    import dataclasses

    import numpy as np

    data = load_data(
        request_of_texts.data, text_package().spec, sequence=8, tokenizer=packaged_tokenizer(text_package().preprocess)
    )
    assert data.labels is not None
    np.savez(tmp_path / "tokens.npz", labels=data.labels, **data.inputs)
    asked = dataclasses.replace(request_of_texts, data=str(tmp_path / "tokens.npz"), train_data=None)
    with pytest.raises(ConfigError, match=r"stages\[0\] \(line 4\) prune.vocabulary: it encodes texts anew"):
        build(asked, _silent, _silent)
