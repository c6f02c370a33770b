"""WordPiece vocabularies (BERT, DistilBERT …): read from a package's files, translate, and write smaller ones.

A word (what the tokenizer's normalizer and pre-tokenizer leave) becomes pieces from left to right, the longest that
fits first (Schuster and Nakajima 2012); pieces that continue a word carry the prefix `##`. A word with a part that no
piece covers is [UNK] as a whole, so a vocabulary with every character as a piece of both kinds never needs [UNK].
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgesdk.encode import packaged_tokenizer
from edgesdk.errors import ModelError

LARGEST_ID = 1 << 22
"""More than any vocabulary has; a list of all ids is made."""
KINDS = "only WordPiece vocabularies (BERT, DistilBERT) can be made smaller"
# Word piece tokenizers read a vocab.txt alone, too.
WORDPIECE_CLASSES = ("bert", "distilbert", "electra", "mobilebert", "mpnet")


@dataclass(frozen=True, eq=False)
class WordPiece:
    """A WordPiece tokenizer with its vocabulary.

    Attributes:
        tokens: piece of each id; ids that no piece has are "".
        special: pieces that text is never split into: [CLS], [UNK] … and whatever was added to the tokenizer.
        longest: characters of the longest word that is split; longer ones are [UNK].
        backend: the `tokenizers.Tokenizer` behind it.
    """

    tokens: tuple[str, ...]
    special: frozenset[str]
    unknown: str
    prefix: str
    longest: int
    backend: Any

    @cached_property
    def ids(self) -> dict[str, int]:
        """Piece → id."""
        return {token: index for index, token in enumerate(self.tokens) if token}

    @cached_property
    def pieces(self) -> frozenset[str]:
        """What words are split into."""
        return frozenset(self.ids) - self.special

    def token(self, index: int) -> str:
        """The piece of an id, [UNK] for ids that no piece has: tables may have more rows than the tokenizer tokens."""
        return (self.tokens[index] if 0 <= index < len(self.tokens) else "") or self.unknown

    def words(self, text: str) -> list[str]:
        """Normalized words of a text."""
        normalizer, splitter = self.backend.normalizer, self.backend.pre_tokenizer
        plain = text if normalizer is None else normalizer.normalize_str(text)
        return [plain] if splitter is None else [word for word, _ in splitter.pre_tokenize_str(plain)]

    def count(self, texts: Iterable[str]) -> Counter[str]:
        """How often each word occurs; words that are too long to be split are left out."""
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(self.words(text))
        return Counter({word: count for word, count in counts.items() if len(word) <= self.longest})

    def translate(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], new: WordPiece
    ) -> dict[str, NDArray[np.int64]]:
        """Rows [N, S] in the tokens of `new`, as encoding their texts again would give them: words are put together
        and split anew, special tokens stay, rows that grow beyond S lose pieces in front of their last token."""
        pad = new.ids.get(self.token(int(ids[mask == 0][0])), 0) if (mask == 0).any() else 0
        made = {"input_ids": np.full_like(ids, pad), "attention_mask": np.zeros_like(mask)}
        for row, length in enumerate(mask.sum(1)):
            tokens = [self.token(int(index)) for index in ids[row, :length]]
            found = [new.ids[piece] for piece in self._split_anew(tokens, new)]
            if len(found) > ids.shape[1]:
                found = [*found[: ids.shape[1] - 1], found[-1]]
            made["input_ids"][row, : len(found)] = found
            made["attention_mask"][row, : len(found)] = 1
        return made

    def _split_anew(self, tokens: Sequence[str], new: WordPiece) -> list[str]:
        words: list[list[str]] = []
        for token in tokens:
            continues = token not in self.special and token.startswith(self.prefix)
            if continues and words and words[-1][-1] not in self.special:
                words[-1].append(token.removeprefix(self.prefix))
            else:
                words.append([token])
        pieces: list[str] = []
        for word in words:
            whole = "".join(word)
            pieces += [whole] if whole in self.special else split(whole, new.pieces, new.prefix) or [new.unknown]
        return pieces


def split(word: str, pieces: frozenset[str] | set[str], prefix: str = "##", without: str | None = None) -> list[str]:
    """Pieces of a word, longest first from the left; empty where a part of it is covered by none. `without` is a piece
    that may not be used."""
    found: list[str] = []
    start = 0
    while start < len(word):
        for end in range(len(word), start, -1):
            piece = word[start:end] if start == 0 else prefix + word[start:end]
            if piece in pieces and piece != without:
                found.append(piece)
                start = end
                break
        else:
            return []
    return found


def read_wordpiece(preprocess: Mapping[str, bytes]) -> WordPiece:
    """The WordPiece tokenizer in the files of a package.

    Raises:
        ModelError: there is no tokenizer, it is of another kind, or its ids are no vocabulary's.
        ConfigError: its files do not load.
    """
    tokenizer = packaged_tokenizer(preprocess)
    if tokenizer is None:
        raise ModelError("the package has no tokenizer", KINDS)
    _check_class(preprocess)
    backend = getattr(tokenizer.inner, "backend_tokenizer", None)
    document = {} if backend is None else json.loads(backend.to_str())
    model = document.get("model") or {}
    if model.get("type") != "WordPiece":
        raise ModelError(f"its tokenizer is {model.get('type') or type(tokenizer.inner).__name__}", KINDS)
    added = {entry["content"]: entry["id"] for entry in document.get("added_tokens") or ()}
    numbered = {**model["vocab"], **added}
    file = "tokenizer.json" if "tokenizer.json" in preprocess else "vocab.txt"
    _check_ids(numbered, model["unk_token"], file)
    tokens = [""] * (max(numbered.values()) + 1)
    for token, index in numbered.items():
        tokens[index] = token
    special = {model["unk_token"], *added, *tokenizer.inner.all_special_tokens}
    return WordPiece(
        tuple(tokens), frozenset(special & set(tokens)), model["unk_token"], model["continuing_subword_prefix"],
        int(model["max_input_chars_per_word"]), backend,
    )


def _check_ids(numbered: Mapping[str, int], unknown: str, file: str) -> None:
    largest = max(numbered, key=lambda token: numbered[token], default="")
    if unknown not in numbered:
        raise ModelError(f"{file} of the package: no token {unknown[:50]!r} for unknown words", KINDS)
    if numbered[largest] > LARGEST_ID:
        raise ModelError(f"{file} of the package: token {largest[:50]!r} has id {numbered[largest]}, over {LARGEST_ID}")
    if len(set(numbered.values())) < len(numbered):
        twice, _ = Counter(numbered.values()).most_common(1)[0]
        found = [token[:50] for token, index in numbered.items() if index == twice][:2]
        raise ModelError(f"{file} of the package: id {twice} belongs to {found[0]!r} and {found[1]!r}")


def _check_class(preprocess: Mapping[str, bytes]) -> None:
    """transformers decides by the class in the settings what a vocab.txt means; only BERT's kind is known here."""
    name = str(_object(preprocess, "tokenizer_config.json").get("tokenizer_class") or "BertTokenizer")
    plain = name.removesuffix("Fast").removesuffix("Tokenizer").lower()
    if plain not in (*WORDPIECE_CLASSES, "pretrained", "tokenizersbackend"):
        raise ModelError(f"its tokenizer is a {name[:100]}", KINDS)


def rewrite(preprocess: Mapping[str, bytes], kept: Sequence[str], max_length: int | None) -> dict[str, bytes]:
    """The files with the vocabulary `kept`, a piece's place in it its new id; `max_length` bounds the tokens of a row.

    Ids also stand in added tokens, in the template that puts [CLS] and [SEP] around a text, in padding, and in
    `added_tokens_decoder` of the settings. Padding and truncation of tokenizer.json go: rows are padded to the
    package's sequence.
    """
    ids = {token: index for index, token in enumerate(kept)}
    files = dict(preprocess)
    if "vocab.txt" in files:
        files["vocab.txt"] = "".join(f"{token}\n" for token in kept).encode()
    if "tokenizer.json" in files:
        document = _object(files, "tokenizer.json")
        document["model"]["vocab"] = ids
        document["added_tokens"] = [
            {**entry, "id": ids[entry["content"]]} for entry in document.get("added_tokens") or ()
        ]
        document["padding"] = document["truncation"] = None
        document["post_processor"] = _renumbered(document.get("post_processor"), ids)
        files["tokenizer.json"] = _dump(document)
    if "tokenizer_config.json" in files:
        settings = _object(files, "tokenizer_config.json")
        if "added_tokens_decoder" in settings:
            entries = settings["added_tokens_decoder"].values()
            settings["added_tokens_decoder"] = {str(ids[entry["content"]]): entry for entry in entries}
        if max_length is not None:
            settings["model_max_length"] = max_length
        files["tokenizer_config.json"] = _dump(settings)
    return files


def _renumbered(part: Any, ids: Mapping[str, int]) -> Any:
    """A post-processor (or a list of them) with new ids."""
    if isinstance(part, list):
        return [_renumbered(entry, ids) for entry in part]
    if not isinstance(part, dict):
        return part
    made = {key: _renumbered(value, ids) if key == "processors" else value for key, value in part.items()}
    for side in ("sep", "cls"):  # BertProcessing: ["[SEP]", 102]
        if isinstance(made.get(side), list):
            made[side] = [made[side][0], ids[made[side][0]]]
    if isinstance(made.get("special_tokens"), dict):  # TemplateProcessing
        made["special_tokens"] = {
            name: {**entry, "ids": [ids[token] for token in entry["tokens"]]}
            for name, entry in made["special_tokens"].items()
        }
    return made


def _object(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    """A JSON object among the files; empty where the file is missing."""
    try:
        document = json.loads(files.get(name, b"{}"))
    except (ValueError, RecursionError) as problem:
        raise ModelError(f"{name} of the package is not readable as JSON: {problem}") from problem
    if not isinstance(document, dict):
        raise ModelError(f"{name} of the package: expected an object, found {type(document).__name__}")
    return document


def _dump(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, ensure_ascii=False) + "\n").encode()
