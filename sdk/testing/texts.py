"""Tiny models that read text: a WordPiece tokenizer of some hundred tokens, packages that carry it, data with texts."""

from __future__ import annotations

import dataclasses
import json
import string
from functools import cache

import numpy as np

from edgesdk.data import Dataset
from edgesdk.encode import encoded_for, packaged_tokenizer
from edgesdk.evaluate import golden_outputs
from edgesdk.package import Package
from edgesdk.stages.base import Context
from edgesdk.testing.models import BERT, BERT_MEAN, GOLDEN_ROWS, random_package
from edgesdk.transformer.spec import TokenEmbedding, TransformerSpec

SPECIAL = ("[PAD]", "[unused0]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation + "éøßжд中’…"
WORDS = (
    "the", "play", "stop", "song", "light", "kitchen", "transfer", "money", "to", "my", "account", "weather", "what",
    "is", "in", "set", "alarm", "for", "seven", "turn", "on", "off", "transferring", "lighting", "player", "songs",
)
PARTS = ("##er", "##ing", "##ring", "##light", "##let", "##ter", "##count", "##arm")
VOCABULARY = (*SPECIAL, *CHARACTERS, *(f"##{c}" for c in CHARACTERS), *WORDS, *PARTS)


@cache
def tokenizer_files() -> dict[str, bytes]:
    """The files of a BERT tokenizer with `VOCABULARY`, as transformers writes them."""
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "strip_accents": False}
    files = {
        "vocab.txt": "".join(f"{token}\n" for token in VOCABULARY).encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
    }
    tokenizer = packaged_tokenizer(files)
    assert tokenizer is not None
    return {**files, "tokenizer.json": tokenizer.inner.backend_tokenizer.to_str().encode()}


def random_texts(rows: int, seed: int = 0) -> tuple[str, ...]:
    """Texts of one to six words; some end with punctuation, some words are in no vocabulary."""
    random = np.random.default_rng(seed)
    words = [*WORDS, "playing", "lighter", "Mozart", "alarms", "counter"]
    # Zipf's law, so that a smaller vocabulary has something to choose.
    chances = 1.0 / np.arange(1, len(words) + 1)
    texts = []
    for _ in range(rows):
        chosen = random.choice(words, size=int(random.integers(1, 7)), p=chances / chances.sum())
        texts.append(" ".join(chosen) + str(random.choice(["", "?", "!", "."])))
    return tuple(texts)


def text_spec(spec: TransformerSpec) -> TransformerSpec:
    """The spec with a table for `VOCABULARY`."""
    assert isinstance(spec.embedding, TokenEmbedding)
    return dataclasses.replace(spec, embedding=dataclasses.replace(spec.embedding, vocabulary=len(VOCABULARY)))


def text_dataset(package: Package, rows: int, seed: int = 0) -> Dataset:
    """Texts in the tokens of a package, with random labels where it has classes."""
    classes = package.spec.classes
    labels = None if classes is None else np.random.default_rng(seed + 1).integers(0, classes, rows)
    empty = np.zeros((rows, 0), np.int64)
    data = Dataset({"input_ids": empty, "attention_mask": empty}, labels, "texts", texts=random_texts(rows, seed))
    return encoded_for(package, data)


def text_package(spec: TransformerSpec = BERT, seed: int = 0) -> Package:
    """A random fp32 package that carries the tokenizer; its samples are texts."""
    package = dataclasses.replace(random_package(text_spec(spec), seed), preprocess=tokenizer_files())
    golden = text_dataset(package, GOLDEN_ROWS, seed + 1).inputs
    outputs, _ = golden_outputs(package.spec, package.weights, package.graph, False, golden)
    samples = dataclasses.replace(
        package.samples, calibration=text_dataset(package, 8, seed + 2).inputs, golden_inputs=golden,
        golden_reference=outputs, golden_float=outputs, golden_outputs=outputs,
    )
    return dataclasses.replace(package, samples=samples)


def text_packages() -> list[Package]:
    """A classifier and an encoder."""
    return [text_package(BERT), text_package(BERT_MEAN)]


def text_context(package: Package, seed: int = 0) -> Context:
    """What stages may use: 24 rows of texts of each kind."""
    data = text_dataset(package, 24, seed + 10)
    return Context(text_dataset(package, 24, seed + 20), data, data, package, seed)
