"""Data sets: every source loads, every fault is named, and junk makes nothing but a ConfigError."""

from __future__ import annotations

import dataclasses
import io
import json
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgesdk.data import Dataset, check_dataset, load_data
from edgesdk.errors import ConfigError
from edgesdk.transformer.spec import FeatureEmbedding, Layer, PatchEmbedding, TokenEmbedding, TransformerSpec

COMMON: dict[str, Any] = {
    "hidden": 8, "layers": (Layer(2, 2, 4, 16),), "norm": "post", "norm_epsilon": 1e-5, "activation": "gelu",
}
TOKENS = TransformerSpec(TokenEmbedding(vocabulary=30, max_length=12), pooling="cls", classes=3, **COMMON)
ENCODER = TransformerSpec(TokenEmbedding(vocabulary=30, max_length=12), pooling="mean", **COMMON)
PATCHES = TransformerSpec(PatchEmbedding(channels=1, size=8, patch=4), pooling="cls", classes=3, **COMMON)
FEATURES = TransformerSpec(FeatureEmbedding(max_length=6), pooling="none", **COMMON)


class Letters:
    """A tokenizer: one token a letter."""

    def encode(self, texts: Sequence[str], sequence: int) -> dict[str, NDArray[np.int64]]:
        ids = np.zeros((len(texts), sequence), np.int64)
        mask = np.zeros_like(ids)
        for row, text in enumerate(texts):
            letters = [1, *(ord(letter) % 30 for letter in text)][:sequence]
            ids[row, : len(letters)] = letters
            mask[row, : len(letters)] = 1
        return {"input_ids": ids, "attention_mask": mask}


def tokens(**changes: Any) -> dict[str, Any]:
    """Good arrays for TOKENS, 4 rows of 5, with changes; None leaves a key out."""
    lengths = np.array([[5], [2], [1], [4]])
    mask = (np.arange(5) < lengths).astype(np.int64)
    ids = np.arange(20).reshape(4, 5) * mask
    arrays = {"input_ids": ids, "attention_mask": mask, "labels": np.array([0, 1, 2, 0])} | changes
    return {name: value for name, value in arrays.items() if value is not None}


def pixels(**changes: Any) -> dict[str, Any]:
    return {"pixel_values": np.ones((4, 1, 8, 8), np.float32), "labels": np.array([0, 1, 2, 0])} | changes


def changed(array: NDArray[Any], index: Any, value: Any) -> NDArray[Any]:
    array = array.copy()
    array[index] = value
    return array


def npz(folder: Path, arrays: dict[str, Any]) -> str:
    path = folder / "data.npz"
    np.savez(path, **arrays)
    return str(path)


def refusal(source: str, spec: TransformerSpec, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        load_data(source, spec, **options)
    return str(caught.value)


# --- the data set -------------------------------------------------------------------------------------------------


def test_rows_and_digest() -> None:
    data = check_dataset(Dataset(tokens(labels=None), np.array([0, 1, 2, 0]), "d"), TOKENS)
    assert len(data) == 4
    part = data.take([2, 0])
    assert part.labels is not None and part.labels.tolist() == [2, 0]
    assert part.inputs["input_ids"][1].tolist() == [0, 1, 2, 3, 4]
    assert len(data.head(3)) == 3 and len(data.head(99)) == 4
    assert data.digest == data.head(99).digest != part.digest
    assert data.digest == Dataset(data.inputs, data.labels, "another name").digest
    assert data.digest != Dataset(data.inputs, None).digest
    wider = {name: value.astype(np.int32) for name, value in data.inputs.items()}
    assert data.digest != Dataset(wider, data.labels).digest
    texts = dataclasses.replace(data, texts=("a", "b", "c", "\ud800"), tokenizer="one")
    others = [dataclasses.replace(texts, texts=("a", "b", "c", "e")), dataclasses.replace(texts, tokenizer="two")]
    assert len({entry.digest for entry in (data, texts, *others)}) == 4


def test_sample_of_sorted_rows_has_all_labels() -> None:
    data = Dataset({"x": np.arange(60)}, np.repeat(np.arange(6), 10))
    part = data.sample(18, 0)
    assert part.labels is not None and np.bincount(part.labels).tolist() == [3] * 6
    assert part.inputs["x"].tolist() == sorted(part.inputs["x"])
    assert part.digest == data.sample(18, 0).digest != data.sample(18, 1).digest
    assert data.sample(60, 0) is data.sample(99, 0) is data
    assert len(Dataset(data.inputs, None).sample(7, 0)) == 7


@settings(deadline=None)
@given(
    labels=st.lists(st.integers(0, 3), min_size=10, max_size=80),
    fraction=st.floats(0.1, 0.9),
    seed=st.integers(0, 100),
)
def test_split_is_a_stratified_partition(labels: list[int], fraction: float, seed: int) -> None:
    data = Dataset({"x": np.arange(len(labels))}, np.array(labels))
    rest, part = data.split(fraction, seed)
    assert len(part) == round(fraction * len(labels))
    assert sorted([*rest.inputs["x"], *part.inputs["x"]]) == list(range(len(labels)))
    assert part.labels is not None and rest.labels is not None
    for label in set(labels):
        share = len(part) / len(labels) * labels.count(label)
        assert abs(int((part.labels == label).sum()) - share) <= 1
    again = data.split(fraction, seed)[1]
    assert again.digest == part.digest


def test_split_depends_on_the_seed_and_needs_rows() -> None:
    data = Dataset({"x": np.arange(50)}, None)
    assert data.split(0.2, 0)[1].digest != data.split(0.2, 1)[1].digest
    with pytest.raises(ConfigError, match="cannot split 0.1 of 3 rows"):
        data.head(3).split(0.1, 0)


# --- arrays -------------------------------------------------------------------------------------------------------


def test_npz_of_tokens(tmp_path: Path) -> None:
    path = npz(tmp_path, tokens(input_ids=tokens()["input_ids"].astype(np.uint8), extra=np.array(["ignored"])))
    data = load_data(path, TOKENS)
    assert data.inputs["input_ids"].dtype == np.int64 and set(data.inputs) == {"input_ids", "attention_mask"}
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2, 0]
    assert data.inputs["input_ids"].shape == (4, 5)
    assert data.name == path


def test_tokens_are_fitted_to_the_sequence(tmp_path: Path) -> None:
    wide = load_data(npz(tmp_path, tokens()), TOKENS, sequence=9)
    assert wide.inputs["attention_mask"].sum(1).tolist() == [5, 2, 1, 4]
    assert wide.inputs["input_ids"].shape == (4, 9)
    message = refusal(npz(tmp_path, tokens()), TOKENS, sequence=4)
    assert "row 0 has 5 tokens, the sequence is 4" in message
    rows = {name: value[1:3] for name, value in tokens().items()}
    narrow = load_data(npz(tmp_path, rows), TOKENS, sequence=2)
    assert narrow.inputs["input_ids"].tolist() == [[5, 6], [10, 0]]


def test_npz_of_pixels_and_features(tmp_path: Path) -> None:
    data = load_data(npz(tmp_path, pixels(pixel_values=np.ones((4, 1, 8, 8)))), PATCHES, sequence=5)
    assert data.inputs["pixel_values"].dtype == np.float32
    features = load_data(npz(tmp_path, {"features": np.ones((2, 6, 8), np.float16)}), FEATURES)
    assert features.labels is None and features.inputs["features"].dtype == np.float32


IDS, MASK = tokens()["input_ids"], tokens()["attention_mask"]


@pytest.mark.parametrize(
    ("spec", "arrays", "words"),
    [
        (TOKENS, tokens(attention_mask=None), ["attention_mask is missing", "input_ids"]),
        (TOKENS, tokens(labels=None), ["labels is missing"]),
        (TOKENS, tokens(input_ids=IDS.astype(float)), ["input_ids has type float64"]),
        (TOKENS, tokens(attention_mask=MASK.astype(float)), ["attention_mask has type float64"]),
        (TOKENS, tokens(input_ids=IDS[0]), ["input_ids has shape [5]", "[N, S]"]),
        (TOKENS, tokens(attention_mask=MASK[:3]), ["[4, 5]", "[3, 5]"]),
        (TOKENS, tokens(input_ids=changed(IDS, (2, 0), 30)), ["input_ids row 2, token 0 is 30", "0 to 29"]),
        (TOKENS, tokens(input_ids=changed(IDS, (1, 1), -1)), ["input_ids row 1, token 1 is -1"]),
        (TOKENS, tokens(input_ids=np.full((4, 5), 2**64 - 1, np.uint64)), ["row 0, token 0 is 18446744073709551615"]),
        (TOKENS, tokens(attention_mask=changed(MASK, (3, 0), 2)), ["attention_mask row 3, token 0 is 2"]),
        (TOKENS, tokens(attention_mask=changed(MASK, 2, 0)), ["attention_mask row 2 has no tokens"]),
        (TOKENS, tokens(attention_mask=changed(MASK, (1, 0), 0)), ["row 1 begins with padding"]),
        (TOKENS, tokens(attention_mask=changed(MASK, (1, 4), 1)), ["row 1 has a token after padding, at 4"]),
        (TOKENS, {name: value[:0] for name, value in tokens().items()}, ["empty"]),
        (TOKENS, tokens(labels=np.array([0, 1, 3, 0])), ["labels row 2 is 3", "3 classes"]),
        (TOKENS, tokens(labels=np.array([0, -1, 1, 0])), ["labels row 1 is -1"]),
        (TOKENS, tokens(labels=np.array([0.0, 1, 1, 0])), ["labels has type float64"]),
        (TOKENS, tokens(labels=np.array([0, 1])), ["labels has shape [2]", "[4]"]),
        (TOKENS, {name: np.ones((1, 13), int) for name in ("input_ids", "attention_mask")}, ["13 tokens", "12"]),
        (PATCHES, pixels(pixel_values=np.ones((4, 1, 8, 8), np.uint8)), ["pixel_values has type uint8"]),
        (PATCHES, pixels(pixel_values=np.ones((4, 3, 8, 8), np.float32)), ["[4, 3, 8, 8]", "[N, 1, 8, 8]"]),
        (PATCHES, pixels(pixel_values=np.full((4, 1, 8, 8), 1e300)), ["pixel_values row 0", "not finite"]),
        (
            PATCHES,
            pixels(pixel_values=changed(pixels()["pixel_values"], (2, 0, 1, 1), np.nan)),
            ["pixel_values row 2", "not finite"],
        ),
        (PATCHES, {"pixel_values": np.ones((0, 1, 8, 8), np.float32), "labels": np.ones(0, int)}, ["empty"]),
        (FEATURES, {"features": np.ones((2, 7, 8), np.float32)}, ["7 tokens", "6"]),
        (FEATURES, {"features": np.ones((2, 6, 9), np.float32)}, ["[N, S, 8]"]),
    ],
)
def test_bad_arrays_are_named(tmp_path: Path, spec: TransformerSpec, arrays: dict[str, Any], words: list[str]) -> None:
    path = npz(tmp_path, arrays)
    message = refusal(path, spec)
    assert all(word in message for word in [path, *words]), message
    inputs = {name: value for name, value in arrays.items() if name != "labels"}
    with pytest.raises(ConfigError) as caught:  # the same for a data set that came as an object
        check_dataset(Dataset(inputs, arrays.get("labels"), "object"), spec)
    assert all(word in str(caught.value) for word in words)


def test_a_pickle_in_an_npz_is_refused(tmp_path: Path) -> None:
    path = npz(tmp_path, tokens(input_ids=np.array([[1], [2, 3]], dtype=object)))
    assert "input_ids" in (message := refusal(path, TOKENS)) and "pickle" in message


def test_an_npz_that_claims_more_than_it_holds(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<i8", "fortran_order": False, "shape": (1 << 40, 5)})
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        for name in ("input_ids", "attention_mask"):
            archive.writestr(f"{name}.npy", stream.getvalue())
    assert "its header says [1099511627776, 5]" in refusal(str(tmp_path / "data.npz"), TOKENS)


# --- text ---------------------------------------------------------------------------------------------------------


def text_file(folder: Path, name: str, content: str) -> str:
    path = folder / name
    path.write_bytes(content.encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", 'text,label\n"ab, c",0\nd,1\n"two\nlines",2\n'),
        ("d.csv", '\ufefflabel,other,text\n0,x,"ab, c"\n1,x,d\n2,x,"two\nlines"\n'),
        ("d.jsonl", '{"text": "ab, c", "label": 0}\n\n{"text": "d", "label": "1"}\n{"text": "two\\nlines","label": 2}'),
        ("d.jsonl", "".join(
            json.dumps({"text": text, "label": f"LABEL_{label}"}) + "\n"
            for label, text in enumerate(["ab, c", "d", "two\nlines"])
        )),
    ],
)
def test_text(tmp_path: Path, name: str, content: str) -> None:
    data = load_data(text_file(tmp_path, name, content), TOKENS, sequence=8, tokenizer=Letters())
    assert data.labels is not None and data.labels.tolist() == [0, 1, 2]
    assert data.inputs["attention_mask"].sum(1).tolist() == [6, 2, 8]
    assert data.inputs["input_ids"].shape == (3, 8)
    assert data.texts == ("ab, c", "d", "two\nlines") and data.tokenizer is None
    assert data.take([2, 0]).texts == ("two\nlines", "ab, c")


def test_texts_of_an_object_are_kept_and_checked() -> None:
    data = Dataset({name: value for name, value in tokens().items() if name != "labels"}, tokens()["labels"])
    texts = tuple("abcd")
    kept = check_dataset(dataclasses.replace(data, texts=texts, tokenizer="some"), TOKENS)
    assert (kept.texts, kept.tokenizer) == (texts, "some")
    for wrong in (("a",), ("a", "b", "c", 4)):
        with pytest.raises(ConfigError, match="texts are not one string for each of its 4 rows"):
            check_dataset(dataclasses.replace(data, texts=wrong), TOKENS)


def test_label_names(tmp_path: Path) -> None:
    path = text_file(tmp_path, "d.csv", "text,label\na,mid\nb,low\nc,high\nd, low\n")
    data = load_data(path, TOKENS, tokenizer=Letters())
    assert data.labels is not None and data.labels.tolist() == [2, 1, 0, 1]
    assert data.label_names == ("high", "low", "mid")
    data = load_data(path, TOKENS, tokenizer=Letters(), labels=["low", "mid", "high"])
    assert data.labels is not None and data.labels.tolist() == [1, 0, 2, 0]
    assert "unknown label 'mid'" in (
        message := refusal(path, TOKENS, tokenizer=Letters(), labels=["low", "high", "top"])
    ) and "line 2" in message
    two = text_file(tmp_path, "two.csv", "text,label\na,mid\nb,low\n")
    assert "2 different label names" in refusal(two, TOKENS, tokenizer=Letters())
    stars = text_file(tmp_path, "stars.csv", "text,label\na,3\nb,1\n")  # names that are digits stay names
    data = load_data(stars, TOKENS, tokenizer=Letters(), labels=["1", "2", "3"])
    assert data.labels is not None and data.labels.tolist() == [2, 0]


def test_text_without_labels_is_for_encoders(tmp_path: Path) -> None:
    path = text_file(tmp_path, "d.csv", "text\nabc\nde\n")
    data = load_data(path, ENCODER, tokenizer=Letters())
    assert data.labels is None and data.inputs["input_ids"].shape == (2, 12)
    assert "line 2: no label" in refusal(path, TOKENS, tokenizer=Letters())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("d.csv", "", ["empty"]),
        ("d.csv", "text,label\n", ["empty"]),
        ("d.csv", "sentence,label\na,1\n", ["no column text", "'sentence'"]),
        ("d.csv", "text,label\na,1\nb\n", ["line 3: no label"]),
        ("d.csv", "text,label\na,1\nb,x\n", ["line 3", "'x' is a name, others are numbers"]),
        ("d.csv", 'text,label\n"a"b,1\n', ["line 2", "CSV"]),
        ("d.csv", "text,label\na,7\n", ["labels row 0 is 7", "3 classes"]),
        ("d.jsonl", "\n\n", ["empty"]),
        ("d.jsonl", '{"text": "a", "label": 0}\n{"text"\n', ["line 2", "JSON"]),
        ("d.jsonl", "[1]\n", ["line 1", "list"]),
        ("d.jsonl", '{"label": 0}\n', ["line 1: no text"]),
        ("d.jsonl", '{"text": 5, "label": 0}\n', ["line 1: text is int"]),
        ("d.jsonl", '{"text": "a", "label": true}\n', ["line 1: label is True"]),
        ("d.jsonl", '{"text": "a", "label": 1.0}\n', ["line 1: label is 1.0"]),
        ("d.jsonl", '{"text": "a", "label": 99999999999999999999}\n', ["unknown label 99999999999999999999"]),
        ("d.jsonl", "[" * 100_000 + "\n", ["line 1", "JSON"]),
        ("d.txt", "a", ["'.txt'", ".jsonl"]),
    ],
)
def test_bad_text_is_named(tmp_path: Path, name: str, content: str, words: list[str]) -> None:
    path = text_file(tmp_path, name, content)
    message = refusal(path, TOKENS, tokenizer=Letters())
    assert all(word in message for word in [path, *words]), message


def test_text_needs_a_tokenizer_and_a_token_model(tmp_path: Path) -> None:
    path = text_file(tmp_path, "d.csv", "text,label\na,1\n")
    assert "tokenizer.save_pretrained" in refusal(path, TOKENS)
    assert "pixel_values" in refusal(path, PATCHES, tokenizer=Letters())


def test_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_bytes(b"text,label\na,1\n\xff,1\n")
    assert "line 3: not UTF-8" in refusal(str(tmp_path / "d.csv"), TOKENS, tokenizer=Letters())


# --- functions and paths ------------------------------------------------------------------------------------------


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "user_data", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    (tmp_path / "user_data.py").write_text(
        "import numpy as np\n"
        "from edgesdk.data import Dataset\n"
        "X = {'pixel_values': np.zeros((3, 1, 8, 8), np.float32)}\n"
        "Y = np.array([0, 1, 2])\n"
        "def dataset(): return Dataset(X, Y, 'mine', ('a', 'b', 'c'))\n"
        "def pair(): return X, [0, 1, 2]\n"
        "def keys(): return {**X, 'labels': Y, 'more': 1}\n"
        "def wrong(): return 5\n"
        "def ragged(): return {'pixel_values': [[1], [2, 3]], 'labels': Y}\n"
        "def bad_label(): return X, [0, 1, 3]\n"
        "def fails(): return 1 / 0\n"
    )


@pytest.mark.usefixtures("user_module")
def test_functions() -> None:
    loaded = [load_data(f"user_data:{name}", PATCHES) for name in ("dataset", "pair", "keys")]
    assert len({data.digest for data in loaded}) == 1
    assert loaded[0].name == "user_data:dataset" and loaded[0].label_names == ("a", "b", "c")


@pytest.mark.usefixtures("user_module")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("wrong", "it returned int"),
        ("ragged", "pixel_values is not an array"),
        ("bad_label", "labels row 2 is 3"),
        ("fails", "ZeroDivisionError"),
        ("absent", "has no absent"),
    ],
)
def test_functions_that_fail(name: str, words: str) -> None:
    assert words in refusal(f"user_data:{name}", PATCHES)


def test_wrong_paths_and_sequences(tmp_path: Path) -> None:
    path = npz(tmp_path, tokens())
    assert "data.npz" in refusal(str(tmp_path / "dta.npz"), TOKENS).split("has", 1)[1]
    assert "a folder" in refusal(str(tmp_path), TOKENS)
    for sequence in (0, 13):
        assert f"sequence is {sequence}" in refusal(path, TOKENS, sequence=sequence)


# --- junk ---------------------------------------------------------------------------------------------------------

ARRAYS = {}
for _spec, _arrays in ((TOKENS, tokens()), (PATCHES, pixels())):
    _stream = io.BytesIO()
    np.savez(_stream, **_arrays)
    ARRAYS[_spec.embedding] = _stream.getvalue()


def only_config_errors(path: Path, spec: TransformerSpec) -> None:
    try:
        data = load_data(str(path), spec, sequence=8, tokenizer=Letters())
    except ConfigError as problem:
        assert str(path) in str(problem)
    else:
        assert len(data) > 0 and data.labels is not None and data.labels.max() < 3


JUNK = settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@JUNK
@given(content=st.binary(max_size=80) | st.text(max_size=80).map(lambda text: ("text,label\n" + text).encode()))
@pytest.mark.parametrize("suffix", ["csv", "jsonl", "npz"])
def test_junk(tmp_path: Path, suffix: str, content: bytes) -> None:
    (tmp_path / f"junk.{suffix}").write_bytes(content)
    only_config_errors(tmp_path / f"junk.{suffix}", TOKENS)


@JUNK
@given(rows=st.lists(st.fixed_dictionaries({}, optional={"text": VALUES, "label": VALUES}), max_size=4))
def test_junk_rows(tmp_path: Path, rows: list[Any]) -> None:
    path = tmp_path / "junk.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    only_config_errors(path, TOKENS)


@JUNK
@given(
    spec=st.sampled_from([TOKENS, PATCHES]),
    flips=st.lists(st.tuples(st.integers(0), st.integers(0, 255))),
    keep=st.none() | st.integers(0, 4000),
)
def test_damaged_npz(tmp_path: Path, spec: TransformerSpec, flips: list[tuple[int, int]], keep: int | None) -> None:
    content = bytearray(ARRAYS[spec.embedding])
    for position, value in flips:
        content[position % len(content)] = value
    path = tmp_path / "junk.npz"
    path.write_bytes(content[:keep])
    only_config_errors(path, spec)


@JUNK
@given(
    header=st.text(alphabet="{}()'\",:0123456789<i8fO descrshapefortan_orderTrueFalse\n", max_size=60)
    | st.builds(
        "{{'descr': {!r}, 'fortran_order': {!r}, 'shape': {!r}, }}".format,
        st.sampled_from(["<i8", "<f4", "|O", "<U4", "|V8", "i", "junk"]),
        st.booleans(),
        st.lists(st.integers(-2, 2**70), max_size=3).map(tuple),
    ),
    body=st.binary(max_size=64),
)
def test_hostile_npy_headers(tmp_path: Path, header: str, body: bytes) -> None:
    text = header.encode("latin-1", "replace")
    member = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + body
    path = tmp_path / "junk.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("pixel_values", "labels"):
            archive.writestr(f"{name}.npy", member)
    only_config_errors(path, PATCHES)
