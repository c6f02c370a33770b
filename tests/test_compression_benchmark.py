"""The compression benchmark on a tiny model and made-up sentences: splits, teacher, rows, freeze, figures, page."""

from __future__ import annotations

import csv
import dataclasses
import importlib
import itertools
import json
import string
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgesdk.errors import ConfigError, ModelError
from edgesdk.files import sha256_file
from edgesdk.stages.base import silent
from edgesdk.stages.train import TrainingOptions

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
cpu = importlib.import_module("compression_cpu")
data = importlib.import_module("compression_data")
jobs = importlib.import_module("compression_jobs")
main = importlib.import_module("compression")
measure = importlib.import_module("compression_measure")
progress = importlib.import_module("compression_progress")
results = importlib.import_module("compression_results")
rows = importlib.import_module("compression_rows")
run = importlib.import_module("compression_run")
store = importlib.import_module("compression_store")
table = importlib.import_module("compression_table")
teacher = importlib.import_module("compression_teacher")

TEACHER = TrainingOptions(epochs=3, learning_rate=2e-3, head_learning_rate=1e-2, batch=16)
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLASSES = {"weather": ("rain", "sun", "wind"), "money": ("card", "bank", "cash"), "food": ("bread", "rice", "soup")}
FILL = ("the", "a", "my", "is", "it", "now", "please", "today")


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """(text, class), sorted by class as the real files are."""
    random, found = np.random.default_rng(seed), []
    for index in range(count):
        name = sorted(CLASSES)[index * len(CLASSES) // count]
        words = [*random.choice(FILL, random.integers(1, 6)), *random.choice(CLASSES[name], 2)]
        found.append((" ".join(words[at] for at in random.permutation(len(words))), name))
    return found


def write_clinc(folder: Path, train: int = 120, validation: int = 90) -> Path:
    folder.mkdir()
    splits = {"train": sentences(train, 1), "val": sentences(validation, 2), "test": sentences(60, 3), "oos_test": []}
    (folder / "data_full.json").write_text(json.dumps(splits))
    return folder


def write_model(folder: Path, layers: int = 2, words: int = 0) -> Path:
    """A BERT encoder with random weights and a tokenizer; `words` made-up ones on top of those of the sentences."""
    import torch
    import transformers

    extra = ("".join(letters) for letters in itertools.product(string.ascii_lowercase, repeat=3))
    vocabulary = [*SPECIAL, *string.ascii_lowercase, *("##" + letter for letter in string.ascii_lowercase)]
    known = dict.fromkeys([*vocabulary, *FILL, *itertools.chain(*CLASSES.values()), *itertools.islice(extra, words)])
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(known) + "\n")
    transformers.BertTokenizer(str(folder / "vocab.txt")).save_pretrained(folder)
    config = transformers.BertConfig(
        vocab_size=len(known), hidden_size=48, num_hidden_layers=layers, num_attention_heads=12, intermediate_size=96,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(known) + "\n")
    return folder


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("compression")
    corpus = data.read_clinc(write_clinc(folder / "clinc"), 0)
    cache = folder / "cache"
    made = teacher.make_subject(
        corpus, write_model(folder / "model"), TEACHER, 0, cache, cpu.CpuBook(cache / "cpu"), silent
    )
    return made, cache


INT8_ROW = rows.Row(
    "int8", "quantize.ptq", "family-quantize", stages=(rows.INT8,),
    goals=(rows.Goal("size", 60), rows.Goal("kept", 50)),
)
NEURONS_ROW = rows.Row(
    "half", "prune.neurons", "family-prune", recovery="training", goals=(rows.Goal("over", 1, "int8"),),
    stages=({"stage": "prune.neurons", "keep": 0.5}, rows.distill(1)),
)
BROKEN_ROW = rows.Row("none", "prune.heads", "family-prune", stages=({"stage": "prune.heads", "keep": 99},),
                      goals=(rows.Goal("kept", 99),))


def bench(subject: Any, *chosen: Any) -> Any:
    made, cache = subject
    return run.Bench({rows.CLINC: made}, chosen, cache, 1.0, 0, silent)


def test_clinc_is_split_by_class_and_shuffled(subject: Any) -> None:
    corpus = subject[0].corpus
    splits = (corpus.validation, corpus.choice, corpus.holdout)
    assert [len(corpus.train), *map(len, splits)] == [120, 23, 22, 45]
    together = splits[0].joined(splits[1]).joined(splits[2])
    assert sorted(together.texts) == sorted(text for text, _ in sentences(90, 2))  # each row is in one split
    assert len(corpus.read_test()) == 60
    assert np.bincount(corpus.holdout.labels).tolist() == [15, 15, 15]
    assert not set(corpus.validation.texts) - {text for text, _ in sentences(90, 2)}
    assert (np.diff(corpus.train.labels) < 0).any()
    for text, label in zip(corpus.train.texts, corpus.train.labels, strict=True):
        assert set(text.split()) & set(CLASSES[corpus.labels[label]])


def test_banking_holds_out_a_tenth_of_training(tmp_path: Path) -> None:
    for split, count in (("train", 100), ("test", 30)):
        with (tmp_path / f"{split}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([("text", "category"), *((f"{i} {t}", c) for i, (t, c) in
                                                                  enumerate(sentences(count, 4)))])
    corpus = data.read_banking(tmp_path, 0)
    assert (len(corpus.train), len(corpus.validation), corpus.choice, corpus.holdout) == (90, 10, None, None)
    assert not set(corpus.train.texts) & set(corpus.validation.texts)
    assert len(corpus.read_test()) == 30
    assert len(corpus.limited(20).train) == 20


@pytest.mark.parametrize("text", ["", "{}", '{"train": [["a"]]}', '{"train": []}'])
def test_a_file_that_is_no_clinc_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "data_full.json").write_text(text)
    with pytest.raises(ConfigError, match="data_full.json"):
        data.read_clinc(tmp_path, 0)


def test_sequence_holds_nearly_all_texts(subject: Any) -> None:
    tokenizer = subject[0].tokenizer
    assert data.sequence_for(tokenizer, ["rain now"] * 3) == 4
    assert data.sequence_for(tokenizer, ["rain"] * 999 + ["the rain now please"]) in (3, 6)
    assert data.sequence_for(tokenizer, ["rain " * 100]) == data.LONGEST


def test_another_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelError, match="no such file"):
        teacher.check_model(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"others")
    with pytest.raises(ModelError, match="sha256"):
        teacher.check_model(tmp_path)
    monkeypatch.setattr(teacher, "MODEL_SHA256", sha256_file(tmp_path / "model.safetensors"))
    teacher.check_model(tmp_path)


def test_the_teacher_learned_and_comes_from_the_cache(subject: Any) -> None:
    made, cache = subject
    assert made.teacher.baseline.accuracy > 0.8
    assert made.teacher.spec.pooling == "mean"
    assert made.teacher.labels == ("food", "money", "weather")
    assert made.cpu > 0
    assert len(list((cache / "teachers").iterdir())) == 1


def test_other_code_or_settings_make_another_teacher(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    made, cache = subject
    model = cache.parent / "model"

    def again() -> Any:
        return teacher.make_subject(made.corpus, model, TEACHER, 0, cache, cpu.CpuBook(cache / "cpu"), silent)

    class Trained(Exception):
        pass

    def fit(*_: Any, **__: Any) -> None:
        raise Trained

    monkeypatch.setattr(teacher, "fit", fit)
    assert again().teacher.weights.keys() == made.teacher.weights.keys()
    with monkeypatch.context() as patch, pytest.raises(Trained):
        patch.setattr(teacher, "code_digest", lambda module: "edited")
        again()
    config = (model / "config.json").read_text()
    (model / "config.json").write_text(config + "\n")
    with pytest.raises(Trained):
        again()
    (model / "config.json").write_text(config)
    with monkeypatch.context() as patch, pytest.raises(Trained):
        patch.setattr(teacher.importlib.metadata, "version", lambda name: "9.9")
        again()


def test_another_converter_makes_anotherartifact(subject: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    work = bench(subject)
    first = work.artifact(subject[0].teacher, [])
    assert work.artifact(subject[0].teacher, []) == first
    monkeypatch.setattr(run, "code_digest", lambda module: "edited")
    assert work.artifact(subject[0].teacher, []) != first


def test_kept_against_a_slow_bootstrap() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    reference = np.where(random.random(400) < 0.05, 3, labels)
    found = np.where(random.random(400) < 0.04, 3, reference)
    figures = measure.kept(found, reference, labels, 0)
    assert figures.kept == pytest.approx((found == labels).mean() / (reference == labels).mean())
    draws = random.integers(0, 400, (4000, 400))
    shares = (found == labels)[draws].mean(1) / (reference == labels)[draws].mean(1)
    assert figures.lower95 == pytest.approx(np.quantile(shares, 0.05), abs=0.003)
    assert figures.lower95 < figures.kept < 1
    same = measure.kept(reference, reference, labels, 0)
    assert (same.kept, same.lower95) == (1.0, 1.0)


def test_answers_are_those_of_each_row_alone(subject: Any, tmp_path: Path) -> None:
    made, _ = subject
    (tmp_path / "model.onnx").write_bytes(made.teacher.graph)
    found = measure.answers(tmp_path / "model.onnx", made.teacher, made.choosing)
    running = measure.session(tmp_path / "model.onnx")
    for row, inputs in measure.unpadded(made.choosing, made.teacher, 1):
        assert inputs["attention_mask"].all()
        assert running.run(None, inputs)[0].argmax() == found[row[0]]
    assert len(np.unique(found)) == 3


def test_rows_from_making_to_page(subject: Any, tmp_path: Path) -> None:
    made, cache = subject
    work = bench(subject, INT8_ROW, NEURONS_ROW, BROKEN_ROW)
    assert [work.make(row) for row in work.rows] == [True, True, False]
    facts = work.store.read("rows", INT8_ROW.key)
    model = cache / "artifacts" / facts["artifact"] / "model.onnx"
    assert facts["bytes"] == model.stat().st_size and facts["model"] == sha256_file(model)
    assert facts["size"] == pytest.approx(facts["bytes"] / len(made.teacher.graph))
    assert "text" not in json.dumps(results.row_results(work, INT8_ROW))  # nothing is tested yet
    for row in work.rows:
        work.latency(row)
    assert work.freeze(rows.CLINC, thaw=False) == []
    for row in work.rows:
        work.test(row)
    path = tmp_path / "compression.json"
    table.write_results(work, path)
    document = json.loads(path.read_text())
    assert document["command"] == table.COMMAND
    assert not any(str(folder) in path.read_text() for folder in (cache, tmp_path))
    figures = {entry["figure"]: entry for entry in document["figures"]}
    size = figures["CLINC150, quantize.ptq: int8: ONNX file, of the fp32 file"]
    assert size["value"] == pytest.approx(100 * facts["size"], abs=1e-3)
    assert size["met"] is (facts["size"] <= 0.6)
    broken = figures["CLINC150, prune.heads: none: accuracy kept (paired 95 % lower bound)"]
    assert (broken["value"], broken["met"]) == (None, False) and "99" in broken["reason"]
    page = table.page_of(document)
    assert page.count("\n| ") >= 4 and "not made" in page and "0 %" not in page.split("## CLINC150")[0]
    row = next(row for row in document["rows"] if row["name"] == "half")
    assert row["test"]["macs"]["share"] < 1 and row["latency"]["ratio"] > 0
    assert row["latency"]["load"] > 0 and page.count("\n| ---") >= 2
    pieces = {made.work, *(piece for kind in ("rows", "tested", "latency") for piece in pieces_of(cache, kind))}
    spent = results.spent_seconds(work)
    assert spent == pytest.approx(sum(work.book.seconds(piece) for piece in pieces)) and spent > row["cpu"] > 0
    assert work.make(NEURONS_ROW) and row["cpu"] <= results.row_results(work, NEURONS_ROW)["cpu"] < row["cpu"] + 5
    # Another teacher's or other rows' figures are none.
    other = dataclasses.replace(made, limit=100)
    elsewhere = run.Bench({rows.CLINC: other}, work.rows, cache, 1.0, 0, silent)
    assert "failed" not in results.row_results(elsewhere, INT8_ROW)
    with pytest.raises(ConfigError, match="3 rows are not made yet"):
        elsewhere.freeze(rows.CLINC, thaw=True)


def pieces_of(cache: Path, kind: str) -> set[str]:
    return {piece for path in (cache / kind).iterdir() for piece in json.loads(path.read_text())["works"]}


def test_no_figure_for_choosing_looks_at_rows_that_prove(subject: Any) -> None:
    made, cache = subject
    corpus = made.corpus
    assert made.choosing.texts == (*corpus.choice.texts, *corpus.validation.texts) and made.choice == len(corpus.choice)
    work = bench(subject, INT8_ROW)
    assert work.make(INT8_ROW)
    facts = work.store.read("rows", INT8_ROW.key)
    assert (facts["together"]["rows"], facts["choice"]["rows"]) == (45, 22) and "holdout" not in facts
    model = cache / "artifacts" / facts["artifact"] / "model.onnx"
    package, _ = work._compress(made, work.recipe(INT8_ROW), "int8", [])
    alone = dataclasses.replace(made.choosing.take(range(22)), name="alone")
    right = measure.answers(model, package, alone) == alone.labels
    assert facts["choice"]["accuracy"] == pytest.approx(right.mean())


def test_what_changes_after_the_freeze_is_refused(tmp_path: Path) -> None:
    kept = store.Store(tmp_path)
    row_a, row_b = ({"recipe": "1", "data": "d", "model": "m"}, {"recipe": "2", "data": "d", "model": None})
    first = {"a": row_a, "b": row_b}
    assert store.freeze(kept, "one", first, False) == []
    assert store.freeze(kept, "one", first, False) == []
    for rows_now, words in (
        ({**first, "a": {**row_a, "model": "other"}}, "a: changed"),
        ({**first, "a": {**row_a, "recipe": "9"}}, "a: changed"),
        ({**first, "a": {**row_a, "data": "others"}}, "a: changed"),
        ({**first, "a": {**row_a, "model": None}}, "a: no longer made"),
        ({**first, "b": {**row_b, "model": "n"}}, "b: made after the freeze"),
        ({**first, "c": row_a}, "c: new"),
        ({"b": row_b}, "a: left out"),
    ):
        with pytest.raises(ConfigError, match=words):
            store.freeze(kept, "one", rows_now, False)
    later = {**first, "b": {**row_b, "model": "n"}}
    assert store.freeze(kept, "one", later, True) == ["b: made after the freeze"]
    assert store.freeze(kept, "one", later, False) == ["b: made after the freeze"]
    assert store.freeze(kept, "two", later, False) == []  # a corpus of its own


def test_cpu_of_a_killed_run_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    book, clock = cpu.CpuBook(tmp_path), [0.0]
    monkeypatch.setattr(cpu, "cpu_seconds", lambda: clock[0])
    monkeypatch.setattr(cpu, "SECONDS_BETWEEN_NOTES", -1.0)
    with pytest.raises(KeyboardInterrupt), book.measure("work") as watched:
        clock[0] = 5.0
        watched(silent)("step", 1, 2)
        raise KeyboardInterrupt
    assert book.seconds("work") == 5.0
    with book.measure("work"):
        clock[0] = 8.0
    assert book.seconds("work") == 8.0
    with book.measure("work"):  # read back from a cache
        clock[0] = 9.0
    assert book.seconds("work") == 8.0
    with pytest.raises(ZeroDivisionError), book.measure("failing"):  # without a note on the way
        clock[0] = 11.0
        raise ZeroDivisionError
    assert book.seconds("failing") == 2.0


def test_lines_are_rare_and_say_how_far(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(progress, "say", said.append)
    lines = progress.Lines()
    for step in range(50):
        clock[0] = 0.5 * step
        lines(f"step {step}", step, 50)
    assert said == ["step 20: 20 of 50", "step 40: 40 of 50"]


def test_trials_have_a_cache_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def cache(*more: str) -> str:
        monkeypatch.setattr(sys, "argv", ["compression.py", "--cache", "c", *more])
        return main.cache_of(main.arguments()).as_posix()

    assert cache() == cache("--jobs", "2") == "c"
    trials = [cache("--rows", "200"), cache("--epochs-scale", "0.5"), cache("--rows", "200", "--epochs-scale", "0.5")]
    assert len(set(trials)) == 3 and all(path.startswith("c/trial-") for path in trials)


class Echo:
    """Makes nothing; rows named `bad` fail."""

    def make(self, row: Any) -> bool:
        return row.name != "bad"


def test_rows_that_share_training_go_to_one_process() -> None:
    rest = [row for group in jobs.groups(rows.ROWS) for row in group]
    assert sorted(row.key for row in rest) == sorted(row.key for row in rows.ROWS)
    where = {row.key: index for index, group in enumerate(jobs.groups(rows.ROWS)) for row in group}
    name = f"{rows.CLINC}: 12 → 6 heads"
    assert where[f"{name}, recovered"] == where[f"{name}, recovered, int8"] != where[name]
    bad = dataclasses.replace(INT8_ROW, name="bad")
    assert jobs.make_all([INT8_ROW, bad], 1, Echo, Echo()) == [True, False]


def test_the_best_of_the_same_scheme_is_the_one_to_beat() -> None:
    mine = dataclasses.replace(INT8_ROW, name="mine", goals=(rows.Goal("over-best", 1, "quantize.ptq"),))
    found = {
        f"{rows.CLINC}: {name}": {"corpus": rows.CLINC, "family": family, "scheme": scheme, "test": {"kept": kept}}
        for name, family, scheme, kept in (
            ("mine", "quantize.qat", "w4a8", 0.98), ("nearest", "quantize.ptq", "w4a8", 0.95),
            ("gptq", "quantize.ptq", "w4a8", 0.96), ("dynamic", "quantize.ptq", "w4a8-dynamic", 0.99),
        )
    }
    assert table.goal_value(mine, mine.goals[0], found)[0] == pytest.approx(2)
    assert table.goal_value(mine, rows.Goal("over", 1, "nearest"), found)[0] == pytest.approx(3)
    del found[f"{rows.CLINC}: gptq"]["test"], found[f"{rows.CLINC}: nearest"]["test"]
    assert table.goal_value(mine, mine.goals[0], found)[0] is None


@pytest.mark.parametrize(("hours", "complete", "met"), [(2.9, True, True), (3.1, True, False), (3.1, False, False),
                                                        (2.9, False, None)])
def test_three_hours_are_missed_also_where_rows_are(hours: float, complete: bool, met: bool | None) -> None:
    (whole,) = table.figures_of((), {}, {}, hours * 3600, complete)
    assert whole["met"] is met


def test_every_row_has_one_key_and_a_recipe_or_a_reason() -> None:
    assert len({row.key for row in rows.ROWS}) == len(rows.ROWS)
    made = [row for row in rows.ROWS if row.recipe().stages]
    assert len(made) == len(rows.ROWS)
    for row in rows.ROWS:
        for goal in row.goals:
            names = {other.family if goal.figure == "over-best" else other.name for other in rows.ROWS}
            assert not goal.than or goal.than in names


def test_epochs_scale_changes_what_trains_alone() -> None:
    recipe, scaled = NEURONS_ROW.recipe(), NEURONS_ROW.recipe(0.5)
    assert scaled.stages[1].options.epochs == 0.5 * recipe.stages[1].options.epochs
    assert scaled.stages[0].options == recipe.stages[0].options
    assert INT8_ROW.recipe(0.5).digest == INT8_ROW.recipe().digest
    with pytest.raises(ConfigError, match="row bad.*keep"):
        dataclasses.replace(BROKEN_ROW, name="bad", stages=({"stage": "prune.heads", "keep": 0},)).recipe()
