"""`prune.vocabulary`: exactly the chosen tokens stay, their rows bit for bit, and what could be read can be read."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections import Counter
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from edgesdk import wordpiece
from edgesdk.encode import encoded_for, packaged_tokenizer
from edgesdk.errors import ConfigError, ModelError, StageError
from edgesdk.evaluate import run_graph
from edgesdk.package import Package
from edgesdk.recipe import load_recipes
from edgesdk.stages import Context, Stage, prune_vocabulary, run_stage
from edgesdk.stages.prune_vocabulary import PruneVocabulary, PruneVocabularyOptions
from edgesdk.testing.models import BERT, BERT_MEAN, VIT, random_context, random_package
from edgesdk.testing.stages import StageTestCase
from edgesdk.testing.texts import (
    CHARACTERS,
    SPECIAL,
    VOCABULARY,
    random_texts,
    text_context,
    text_package,
    text_packages,
    tokenizer_files,
)
from edgesdk.transformer.spec import TokenEmbedding
from edgesdk.vocabulary import alphabet, base_pieces, frequent, rebuilt
from edgesdk.wordpiece import read_wordpiece, rewrite, split

METHODS = ["rebuild", "frequent"]
SIZE = 130
LATIN = [*sorted(set(CHARACTERS) - set("жд中")), *"AZÉ"]
OLD = read_wordpiece(tokenizer_files())


def _prune(package: Package, **options: Any) -> Package:
    values = {"size": SIZE, **options}
    return run_stage(PruneVocabulary(PruneVocabularyOptions.model_validate(values)), package, text_context(package))


def _tokens(package: Package) -> list[str]:
    return package.preprocess["vocab.txt"].decode().splitlines()


class TestConformance(StageTestCase):
    def stage(self) -> Stage:
        return PruneVocabulary(PruneVocabularyOptions(size=SIZE, max_length=10))

    def packages(self) -> list[Package]:
        return text_packages()

    def context(self, package: Package) -> Context:
        return text_context(package)


@cache
def _pruned() -> tuple[Package, Package]:
    package = text_package()
    return package, _prune(package)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [125, SIZE, len(VOCABULARY)])
def test_size_is_exact_and_each_row_is_the_old_row(method: str, size: int) -> None:
    package = text_package()
    made = _prune(package, size=size, method=method)
    tokens = _tokens(made)
    assert isinstance(made.spec.embedding, TokenEmbedding)
    assert len(tokens) == len(set(tokens)) == made.spec.embedding.vocabulary == size
    old = package.weights["embedding.tokens.weight"]
    rows = np.stack([old[VOCABULARY.index(token)] for token in tokens])
    assert rows.tobytes() == made.weights["embedding.tokens.weight"].tobytes()


def test_size_below_one_is_a_share_of_the_vocabulary() -> None:
    package = text_package()
    made = _prune(package, size=0.75)
    assert len(_tokens(made)) == round(0.75 * len(VOCABULARY))
    assert _tokens(made) == _tokens(_prune(package, size=round(0.75 * len(VOCABULARY))))


def test_the_whole_vocabulary_is_the_same_model() -> None:
    package = text_package()
    made = _prune(package, size=len(VOCABULARY))
    data = text_context(package).validation
    np.testing.assert_array_equal(encoded_for(made, data).inputs["input_ids"], data.inputs["input_ids"])
    np.testing.assert_array_equal(made.weights["embedding.tokens.weight"], package.weights["embedding.tokens.weight"])


@settings(deadline=None, max_examples=150)
@given(st.lists(st.text(st.sampled_from(LATIN), min_size=1), max_size=6))
def test_texts_over_the_kept_characters_have_no_unknown_token(words: list[str]) -> None:
    """The corpus is ASCII: kept are ASCII, the letters of the Latin script, quotes and the ellipsis."""
    _, made = _pruned()
    tokenizer = packaged_tokenizer(made.preprocess)
    assert tokenizer is not None
    pieces = tokenizer.inner.tokenize(" ".join(words))
    assert OLD.unknown not in pieces
    # Nothing of the text is lost either.
    assert "".join(piece.removeprefix("##") for piece in pieces) == "".join("".join(words).lower().split())


@settings(deadline=None, max_examples=100)
@given(st.text(st.sampled_from(CHARACTERS + " "), max_size=30))
def test_all_characters_need_no_more_unknown_tokens_than_before(text: str) -> None:
    assert OLD.pieces >= base_pieces(OLD, [], "all") - OLD.special
    before = [word for word in OLD.words(text) if not split(word, OLD.pieces)]
    after = [word for word in OLD.words(text) if not split(word, base_pieces(OLD, [], "all"))]
    assert before == after == []


def test_characters_of_other_scripts_go_unless_the_corpus_has_them() -> None:
    latin = alphabet(OLD, ["play"], "scripts")
    assert {"a", "7", "$", "é", "ø", "ß", "’", "…"} <= latin
    assert not latin & set("жд中")
    assert {"ж", "д"} <= alphabet(OLD, ["д"], "scripts")
    assert alphabet(OLD, ["play"], "ascii") & set("éøж’") == {"’"}
    assert set(CHARACTERS) == alphabet(OLD, ["play"], "all")
    # A sign that splits words needs no piece inside words; the others need both.
    base = base_pieces(OLD, ["play"], "scripts")
    assert "!" in base and "##!" not in base and {"x", "##x"} <= base


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=4))
def test_the_backend_splits_as_we_do(seeds: list[int]) -> None:
    _, made = _pruned()
    tokenizer, new = packaged_tokenizer(made.preprocess), read_wordpiece(made.preprocess)
    assert tokenizer is not None
    for text in [text for seed in seeds for text in random_texts(4, seed)]:
        expected = [piece for word in new.words(text) for piece in split(word, new.pieces) or [new.unknown]]
        assert tokenizer.inner.tokenize(text) == expected


def test_translated_samples_are_the_texts_encoded_anew() -> None:
    package, made = _pruned()
    context = text_context(package)
    new = read_wordpiece(made.preprocess)
    for data in (context.validation, context.train):
        assert data is not None
        translated = OLD.translate(data.inputs["input_ids"], data.inputs["attention_mask"], new)
        expected = encoded_for(made, data).inputs
        # Rows that were cut when they were encoded have lost the words behind the cut.
        whole = data.inputs["attention_mask"].sum(1) < package.sequence
        assert whole.sum() > 10
        for name in expected:
            np.testing.assert_array_equal(translated[name][whole], expected[name][whole])
    assert (made.samples.golden_inputs["input_ids"] < SIZE).all()


def test_translation_keeps_unknown_words_and_the_last_token_of_rows_that_grow() -> None:
    kept = [*SPECIAL, "a", "##b", "##c", "d"]
    new = read_wordpiece(rewrite(tokenizer_files(), kept, None))
    old = dataclasses.replace(OLD, tokens=(*SPECIAL, "abc", "d", "##ing"))
    ids = np.array([[3, 6, 2, 7, 4, 0], [3, 6, 6, 6, 7, 4], [3, 7, 8, 2, 4, 0]])
    mask = np.array([[1, 1, 1, 1, 1, 0], [1] * 6, [1, 1, 1, 1, 1, 0]])
    made = old.translate(ids, mask, new)
    rows = [[kept[index] for index in row] for row in made["input_ids"]]
    assert rows == [
        ["[CLS]", "a", "##b", "##c", "[UNK]", "[SEP]"],
        ["[CLS]", "a", "##b", "##c", "a", "[SEP]"],
        ["[CLS]", "[UNK]", "[UNK]", "[SEP]", "[PAD]", "[PAD]"],
    ]
    assert made["attention_mask"].sum(1).tolist() == [6, 6, 4]


def test_ids_agree_everywhere() -> None:
    _, made = _pruned()
    tokens = _tokens(made)
    document = json.loads(made.preprocess["tokenizer.json"])
    assert document["model"]["vocab"] == {token: index for index, token in enumerate(tokens)}
    for entry in document["added_tokens"]:
        assert tokens[entry["id"]] == entry["content"]
    tokenizer = packaged_tokenizer(made.preprocess)
    assert tokenizer is not None
    inner = tokenizer.inner
    for token, index in ((inner.pad_token, inner.pad_token_id), (inner.unk_token, inner.unk_token_id),
                         (inner.cls_token, inner.cls_token_id), (inner.sep_token, inner.sep_token_id)):
        assert tokens[index] == token
    row = tokenizer.encode(["play"], 5)["input_ids"][0]
    assert [tokens[index] for index in row] == ["[CLS]", "play", "[SEP]", "[PAD]", "[PAD]"]


@pytest.mark.parametrize("left", ["tokenizer.json", "vocab.txt"])
def test_either_file_alone_is_enough(left: str) -> None:
    files = {name: content for name, content in tokenizer_files().items() if name in (left, "tokenizer_config.json")}
    package = dataclasses.replace(text_package(), preprocess=files)
    made = _prune(package)
    assert set(made.preprocess) == set(files)
    both = _pruned()[1]
    data = text_context(package).validation
    found, expected = (encoded_for(model, data).inputs["input_ids"] for model in (made, both))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("processor", ["template", "bert", "sequence"])
def test_ids_in_templates_and_settings_are_renumbered(processor: str) -> None:
    document = json.loads(tokenizer_files()["tokenizer.json"])
    bert = {"type": "BertProcessing", "sep": ["[SEP]", 4], "cls": ["[CLS]", 3]}
    if processor != "template":
        document["post_processor"] = bert
    if processor == "sequence":
        document["post_processor"] = {"type": "Sequence", "processors": [bert]}
    config = {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {
        str(index): {"content": token} for index, token in enumerate(SPECIAL) if token != "[unused0]"}}
    files = {"tokenizer.json": json.dumps(document).encode(), "tokenizer_config.json": json.dumps(config).encode()}
    kept = [token for token in VOCABULARY if token != "[unused0]"]
    made = rewrite(files, kept, 9)
    written = json.loads(made["tokenizer_config.json"])
    assert {kept[int(index)]: entry["content"] for index, entry in written["added_tokens_decoder"].items()} == {
        token: token for token in SPECIAL if token != "[unused0]"}
    assert written["model_max_length"] == 9
    found = json.loads(made["tokenizer.json"])["post_processor"]
    if processor == "template":
        assert {name: entry["ids"] for name, entry in found["special_tokens"].items()} == {"[CLS]": [2], "[SEP]": [3]}
    else:
        found = found["processors"][0] if processor == "sequence" else found
        assert (found["sep"], found["cls"]) == (["[SEP]", 3], ["[CLS]", 2])


def test_max_length_cuts_positions_and_not_the_output() -> None:
    package = text_package()
    made = _prune(package, size=len(VOCABULARY), max_length=package.sequence)
    assert made.spec.max_length == package.sequence < package.spec.max_length
    inputs = text_context(package).validation.inputs
    np.testing.assert_array_equal(run_graph(made.graph, inputs), run_graph(package.graph, inputs))
    with pytest.raises(StageError, match="max_length is 7.*8 tokens"):
        _prune(package, max_length=7)


def test_rebuilding_encodes_the_corpus_in_fewer_tokens() -> None:
    """Most of a long word is kept for its saving, though short ones are more frequent; by frequency alone it goes."""
    counts = Counter({"transferring": 3, "is": 4, "to": 4})
    base = base_pieces(OLD, counts, "ascii")

    def length(kept: set[str]) -> int:
        return sum(count * len(split(word, kept)) for word, count in counts.items())

    size = len(base) + 2
    smart, plain = (choose(OLD, counts, base, size) for choose in (rebuilt, frequent))
    assert "transfer" in smart and plain - base == {"is", "to"}
    assert len(smart) == len(plain) == size
    assert length(smart) < length(plain)


def test_a_word_that_goes_is_spelt_in_pieces_that_others_need() -> None:
    counts = Counter({"transferring": 1, "transfer": 50, "song": 50, "songs": 9, "stop": 2})
    base = base_pieces(OLD, counts, "ascii")
    kept = rebuilt(OLD, counts, base, len(base) + 3)
    assert kept - base == {"transfer", "song", "songs"}
    assert split("transferring", kept) == ["transfer", "##r", "##i", "##n", "##g"]


def test_what_is_left_over_goes_to_the_lowest_ids_and_reserved_tokens_last() -> None:
    base = base_pieces(OLD, [], "ascii")
    kept = rebuilt(OLD, {}, base, len(base) + 1)
    assert kept - base == {next(token for token in VOCABULARY if token not in base and token != "[unused0]")}
    assert "[unused0]" not in rebuilt(OLD, {}, base, len(VOCABULARY) - 1)


def test_a_corpus_file_decides(tmp_path: Path) -> None:
    package = text_package()
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("kitchen kitchen\nlighting lighting lighting\n")
    made = _prune(package, corpus=str(corpus), size=SIZE, characters="ascii")
    assert {"kitchen", "lighting"} <= set(_tokens(made))
    table = tmp_path / "corpus.csv"
    table.write_text("text\nkitchen kitchen\nlighting lighting lighting\n")
    assert _tokens(_prune(package, corpus=str(table), characters="ascii")) == _tokens(made)
    stage = PruneVocabulary(PruneVocabularyOptions(size=SIZE, corpus=str(corpus)))
    corpus.write_text("weather")
    assert PruneVocabularyOptions(size=SIZE, corpus=str(corpus)) != stage.options, "a cache key must see the content"
    with pytest.raises(StageError, match="not the file that the recipe was read with"):
        run_stage(stage, package, text_context(package))
    for content, message in ((b"\xff\xfe", "not readable as UTF-8"), (b" \n", "no text")):
        corpus.write_bytes(content)
        with pytest.raises(StageError, match=message):
            _prune(package, corpus=str(corpus))


def test_a_missing_corpus_is_refused_with_the_recipe(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "format: edgesdk.recipe\nversion: 1\nstages:\n  - {stage: prune.vocabulary, size: 9, corpus: nowhere.txt}\n"
    )
    with pytest.raises(ConfigError, match=r"stages\[0\].*corpus 'nowhere.txt' is not readable"):
        load_recipes(str(recipe))


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_a_corpus_that_is_no_plain_file_is_refused_at_once(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus = Path("/dev/zero") if kind == "device" else tmp_path / "corpus"
    if kind == "pipe":
        os.mkfifo(corpus)
    elif kind == "folder":
        corpus.mkdir()
    elif kind == "large":
        corpus.write_text("play the song")
        monkeypatch.setattr(prune_vocabulary, "TEXT_LIMIT", 12)
    with pytest.raises(ValidationError, match=r"not readable: .*(regular file|directory|13 bytes)"):
        PruneVocabularyOptions(size=SIZE, corpus=str(corpus))
    if kind != "large":
        stage = PruneVocabulary(PruneVocabularyOptions(size=SIZE, corpus=str(corpus), corpus_sha256="0" * 64))
        with pytest.raises(StageError, match="not readable"):
            run_stage(stage, text_package(), text_context(text_package()))


def test_a_link_to_a_corpus_is_followed(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_text("play the song")
    (tmp_path / "link.txt").symlink_to(tmp_path / "corpus.txt")
    found = PruneVocabularyOptions(size=SIZE, corpus=str(tmp_path / "link.txt")).corpus_sha256
    assert found == hashlib.sha256(b"play the song").hexdigest()


@pytest.mark.parametrize(
    ("tokens", "found"),
    [({"song": 1 << 40}, "'song' has id 1099511627776, over 4194304"), ({"song": 7, "play": 7}, "id 7 belongs to"),
     ({"[UNK]": None}, r"no token '\[UNK\]'")],
)
def test_ids_that_are_no_vocabulary_are_refused(
    tokens: dict[str, int | None], found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids of the backend are 32 bits wide; a list of 4 billion tokens must not be made of them."""
    document = json.loads(tokenizer_files()["tokenizer.json"])
    numbered = {**document["model"]["vocab"], **tokens}
    document["model"]["vocab"] = {token: index for token, index in numbered.items() if index is not None}
    document["added_tokens"] = []
    inner = SimpleNamespace(
        backend_tokenizer=SimpleNamespace(to_str=lambda: json.dumps(document)), all_special_tokens=list(SPECIAL)
    )
    monkeypatch.setattr(wordpiece, "packaged_tokenizer", lambda _: SimpleNamespace(inner=inner))
    with pytest.raises(ModelError, match=rf"tokenizer\.json of the package: .*{found}"):
        read_wordpiece(tokenizer_files())


def test_an_id_without_a_token_is_unknown() -> None:
    """Tables may have more rows than the tokenizer tokens, and samples are only held against the table."""
    new = read_wordpiece(rewrite(tokenizer_files(), [*SPECIAL, "a"], None))
    old = dataclasses.replace(OLD, tokens=(*SPECIAL, "a", ""))
    made = old.translate(np.array([[3, 99, 6, 7, 4, 99]]), np.array([[1, 1, 1, 1, 1, 0]]), new)
    assert made["input_ids"][0, :5].tolist() == [3, 2, 6, 2, 4]


def test_models_with_an_output_for_each_token_are_refused() -> None:
    """Rows of the old tokens and of the new ones cannot be compared."""
    assert isinstance(BERT_MEAN.embedding, TokenEmbedding)
    rows = dataclasses.replace(BERT_MEAN, pooling="none")
    outline = dataclasses.replace(text_context(text_package()).outline(text_package()), spec=rows)
    small = PruneVocabulary(PruneVocabularyOptions(size=9))
    (reason,) = small.requires(outline)
    assert "hidden_states" in reason
    (reason,) = small.requires(dataclasses.replace(outline, spec=dataclasses.replace(rows, lm_head=True)))
    assert "lm_head" in reason


def test_what_is_refused_and_why() -> None:
    package = text_package()
    outline = text_context(package).outline(package)
    stage = PruneVocabulary(PruneVocabularyOptions(size=SIZE))
    assert "encodes texts anew" in stage.requires(dataclasses.replace(outline, text=False))[0]
    vit = random_package(VIT)
    assert "patches" in stage.requires(random_context(vit).outline(vit))[0]
    large = PruneVocabulary(PruneVocabularyOptions(size=1000, max_length=13))
    assert [text for text in ("size is 1000", "max_length is 13") if text in " ".join(large.requires(outline))] == [
        "size is 1000", "max_length is 13"]
    with pytest.raises(StageError, match=r"size is 50, but \d+ tokens keep texts encodable"):
        _prune(package, size=50)


def test_other_kinds_of_tokenizers_are_refused() -> None:
    package = text_package()
    document = json.loads(tokenizer_files()["tokenizer.json"])
    document["model"] = {"type": "BPE", "vocab": {token: i for i, token in enumerate(VOCABULARY)}, "merges": []}
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "[PAD]"}
    files = {"tokenizer.json": json.dumps(document).encode(), "tokenizer_config.json": json.dumps(settings).encode()}
    with pytest.raises(StageError, match=r"(?s)its tokenizer is BPE.*only WordPiece"):
        _prune(dataclasses.replace(package, preprocess=files))


def test_a_quantized_package_is_refused_by_name() -> None:
    outline = dataclasses.replace(text_context(text_package(BERT)).outline(text_package(BERT)), scheme="w8a8")
    (reason,) = PruneVocabulary(PruneVocabularyOptions(size=SIZE)).requires(outline)
    assert "before the quantize stage" in reason
