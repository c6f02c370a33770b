"""Rows of text in the tokens of the package that sees them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from edgesdk import encode
from edgesdk.encode import encoded_for, packaged_tokenizer, tokenizer_digest
from edgesdk.errors import ConfigError
from edgesdk.evaluate import accuracy, evaluate_package, run_graph
from edgesdk.package import Package
from edgesdk.stages import run_stage
from edgesdk.stages.prune_vocabulary import PruneVocabulary, PruneVocabularyOptions
from edgesdk.testing.models import BERT, VIT, random_context, random_package
from edgesdk.testing.texts import text_context, text_dataset, text_package, tokenizer_files


def _pruned(package: Package) -> Package:
    return run_stage(PruneVocabulary(PruneVocabularyOptions(size=130)), package, text_context(package))


def test_rows_are_encoded_by_the_packages_own_tokenizer_at_its_sequence() -> None:
    package = text_package()
    made = _pruned(package)
    data = text_dataset(package, 12)
    rows = encoded_for(made, data)
    tokenizer = packaged_tokenizer(made.preprocess)
    assert tokenizer is not None and data.texts is not None
    for name, value in tokenizer.encode(data.texts, package.sequence).items():
        np.testing.assert_array_equal(rows.inputs[name], value)
    assert rows.tokenizer == tokenizer_digest(made.preprocess) == tokenizer.digest != data.tokenizer
    assert (rows.texts, rows.name, rows.label_names) == (data.texts, data.name, data.label_names)
    assert rows.labels is data.labels
    back = encoded_for(package, rows)
    assert back.digest == data.digest


def test_rows_of_another_sequence_are_encoded_anew() -> None:
    package = text_package()
    data = text_dataset(package, 12)
    short = dataclasses.replace(data, inputs={name: value[:, :5] for name, value in data.inputs.items()})
    assert encoded_for(package, short).digest == data.digest


def test_what_is_right_already_is_handed_on() -> None:
    package = text_package()
    data = text_dataset(package, 5)
    assert encoded_for(package, data) is data
    arrays = dataclasses.replace(data, texts=None, tokenizer=None)
    assert encoded_for(package, arrays) is arrays
    assert encoded_for(random_package(BERT), data) is data, "no tokenizer: nothing to encode with"
    vit = random_package(VIT)
    pixels = random_context(vit).validation
    assert encoded_for(vit, pixels) is pixels


def test_texts_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    package = _pruned(text_package())
    data = text_dataset(text_package(), 13, seed=77)
    first = encoded_for(package, data)

    def fail(*_: object) -> None:
        raise AssertionError("encoded again")

    monkeypatch.setattr(encode.Tokenizer, "encode", fail)
    np.testing.assert_array_equal(encoded_for(package, data).inputs["input_ids"], first.inputs["input_ids"])


def test_the_digest_is_that_of_what_decides_tokens() -> None:
    files = tokenizer_files()
    assert tokenizer_digest({}) is None
    assert tokenizer_digest({"preprocessor_config.json": b"{}", "tokenizer_config.json": b"{}"}) is None
    assert tokenizer_digest({**files, "preprocessor_config.json": b"{}"}) == tokenizer_digest(files)
    changed = {**files, "vocab.txt": files["vocab.txt"] + b"new\n"}
    assert tokenizer_digest(changed) != tokenizer_digest(files)


def test_accuracy_is_that_of_the_packages_own_tokens() -> None:
    package = text_package()
    made = _pruned(package)
    data = text_dataset(package, 40, seed=5)
    own = encoded_for(made, data)
    assert data.labels is not None
    assert evaluate_package(made, data) == accuracy(run_graph(made.graph, own.inputs), data.labels)
    assert evaluate_package(made, own) == evaluate_package(made, data)


def test_a_tokenizer_with_more_tokens_than_the_table_is_an_error() -> None:
    package = text_package()
    small = dataclasses.replace(random_package(BERT), preprocess=tokenizer_files())
    with pytest.raises(ConfigError, match="in the tokens of package 'random'"):
        encoded_for(small, dataclasses.replace(text_dataset(package, 12), tokenizer=None))


def test_a_broken_tokenizer_is_an_error() -> None:
    package = dataclasses.replace(text_package(), preprocess={"tokenizer.json": b"{"})
    with pytest.raises(ConfigError, match="does not load"):
        encoded_for(package, text_dataset(text_package(), 3))
