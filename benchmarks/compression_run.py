"""Make the rows of the compression table and measure them; everything lands in the cache, so a killed run resumes.

A piece of work (a stage on a package, a conversion, answers of a file) has one name in the CPU book, whichever rows
need it, so that the whole table's time is the sum over the pieces.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import shutil
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from compression_cpu import CpuBook
from compression_measure import answers, kept, latency_ratio, work
from compression_rows import Row
from compression_store import Digests, Store, freeze
from compression_teacher import TARGET, Subject

from edgesdk.cli.output import say
from edgesdk.code_digest import code_digest
from edgesdk.compress import compress
from edgesdk.converters import converter
from edgesdk.converters.artifact import read_artifact
from edgesdk.data import Dataset
from edgesdk.errors import ConfigError, ConvertError, EdgeSDKError
from edgesdk.files import atomic_folder, canonical_json, sha256_bytes, sha256_file
from edgesdk.package import Package, content_digest
from edgesdk.recipe import Recipe, check_recipe
from edgesdk.stages import Progress, Stage
from edgesdk.targets import load_target

CONVERTER, CONVERTER_CODE = "onnx", "edgesdk.converters.onnx"
Works = list[str]


@dataclasses.dataclass(frozen=True)
class Bench:
    """One run of the benchmark: what it was asked for and where it keeps things."""

    subjects: dict[str, Subject]
    rows: tuple[Row, ...]
    cache: Path
    epochs_scale: float
    seed: int
    progress: Progress

    @property
    def store(self) -> Store:
        return Store(self.cache)

    @property
    def book(self) -> CpuBook:
        return CpuBook(self.cache / "cpu")

    def recipe(self, row: Row) -> Recipe:
        return dataclasses.replace(row.recipe(self.epochs_scale), seed=self.seed)

    def make(self, row: Row) -> bool:
        """Compress, convert, and keep the facts of the row; what is finished is read back. False where it failed."""
        subject, works = self.subjects[row.corpus], Works()
        try:
            recipe = self.recipe(row)
        except ConfigError as problem:
            self.store.write("rows", row.key, {"error": problem.message, "recipe": None, "data": subject.digest})
            say(f"{row.key}: not made: {problem.message}")
            return False
        marks: dict[str, Any] = {"recipe": recipe.digest, "data": subject.digest}
        try:
            facts = self._facts(row, subject, recipe, works)
        except Exception as problem:  # one row that fails must not cost the others their hours
            if not isinstance(problem, EdgeSDKError):
                traceback.print_exc()
            text = problem.message if isinstance(problem, EdgeSDKError) else f"{type(problem).__name__}: {problem}"
            error = text[:500].replace(str(self.cache), "CACHE")
            self.store.write("rows", row.key, {**marks, "error": error, "works": works})
            say(f"{row.key}: not made: {text}")
            return False
        self.store.write("rows", row.key, {**marks, **facts, "works": works})
        say(
            f"{row.key}: {facts['bytes']:,} bytes, {100 * facts['size']:.2f} % of fp32; kept "
            f"{_words(facts['together'])} for choosing, {_words(facts['choice'])} of them that no training saw; "
            f"{facts['cpu'] / 60:.1f} CPU minutes; recipe {recipe.digest[:12]}"
        )
        return True

    def _facts(self, row: Row, subject: Subject, recipe: Recipe, works: Works) -> dict[str, Any]:
        package, seconds = self._compress(subject, recipe, row.key, works)
        folder, base = self.artifact(package, works), self.artifact(subject.teacher, works) / "model.onnx"
        model, size, spec = folder / "model.onnx", read_artifact(folder).bytes, package.spec
        return {
            "package": content_digest(package), "model": sha256_file(model),
            "artifact": folder.name, "bytes": size, "size": size / base.stat().st_size, "scheme": package.scheme,
            "parameters": spec.parameters(), "macs": spec.macs(package.sequence),
            "encoder": _encoder_parameters(package) / _encoder_parameters(subject.teacher),
            "cpu": sum(seconds), "stages": [stage.name for stage in recipe.stages], "cpu_stages": seconds,
            **self._chosen_by(subject, package, model, base, works),
        }

    def _compress(self, subject: Subject, recipe: Recipe, what: str, works: Works) -> tuple[Package, list[float]]:
        """The package, and the CPU seconds of each stage, those of earlier runs where it comes from the cache."""
        context = dataclasses.replace(subject.context, progress=self._named(what))
        reasons, _ = check_recipe(recipe, context.outline(subject.teacher))
        if reasons:
            raise ConfigError("; ".join(reasons))
        package, seconds = subject.teacher, []
        for number, stage in enumerate(recipe.stages, 1):
            one = Recipe(f"stage {number} of {len(recipe.stages)}", (stage,), recipe.seed)
            key = f"stage {content_digest(package)} {_digest(stage, recipe.seed)} {subject.digest}"
            works.append(key)
            with self.book.measure(key) as watched:
                watching = dataclasses.replace(context, progress=watched(context.progress))
                package = compress(package, one, watching, self.cache / "packages").package
            seconds.append(self.book.seconds(key))
        return package, seconds

    def _named(self, what: str) -> Progress:
        """Progress that says which row it is about."""
        return lambda text, done, total: self.progress(f"{what}: {text}", done, total)

    def artifact(self, package: Package, works: Works) -> Path:
        """The folder of the shipped file; made anew when the converter or ONNX Runtime, which fuses, is another."""
        code = [code_digest(CONVERTER_CODE), importlib.metadata.version("onnxruntime"), TARGET]
        folder = self.cache / "artifacts" / sha256_bytes(canonical_json([content_digest(package), *code]))[:32]
        works.append(f"convert {folder.name}")
        with self.book.measure(works[-1]) as watched:
            if folder.is_dir():
                try:
                    read_artifact(folder)
                    return folder
                except ConvertError:
                    shutil.rmtree(folder)
            watched(self.progress)("converting", 0, 1)
            with atomic_folder(folder) as empty:
                converter(CONVERTER).convert(package, load_target(TARGET), empty)
        return folder

    def _chosen_by(
        self, subject: Subject, package: Package, model: Path, base: Path, works: Works
    ) -> dict[str, dict[str, Any]]:
        """What the file keeps on rows that recipes may be chosen by: with those of validation, which chose weights and
        so flatter a little, and without. Rows that prove promises are not among them."""
        data = subject.choosing
        assert data.labels is not None
        found, reference = (
            self._answers(subject, path, one, data, works) for path, one in ((model, package), (base, subject.teacher))
        )
        figures = {}
        for name, count in (("together", len(data)), ("choice", subject.choice)):
            share = kept(found[:count], reference[:count], data.labels[:count], self.seed)
            figures[name] = {"rows": count, **dataclasses.asdict(share)}
        return figures

    def _answers(
        self, subject: Subject, model: Path, package: Package, data: Dataset, works: Works
    ) -> np.ndarray[Any, Any]:
        """Answers of a file, kept by the digests of the file and of the rows."""
        name = f"{data.name} {data.digest[:16]} {sha256_file(model)[:32]}"
        works.append(f"answers {name}")
        with self.book.measure(works[-1]) as watched:
            known = self.store.read("answers", name)
            if known is None:
                found = answers(model, package, data, watched(self._named(data.name)))
                known = {"answers": found.tolist()}
                self.store.write("answers", name, known)
        return np.array(known["answers"], np.int64)

    def latency(self, row: Row) -> None:
        """Measure the file by turns with the fp32 file, on rows for choosing."""
        facts = self.made(row)
        if facts is None or self.figures("latency", row, facts) is not None:
            return
        subject, works = self.subjects[row.corpus], Works()
        package, model, base = self._shipped(row, facts, works)
        works.append(f"latency {_file_name(row, facts)}")
        with self.book.measure(works[-1]) as watched:
            progress = watched(self._named(f"{row.key}: latency"))
            figures = latency_ratio(model, package, base, subject.teacher, subject.choosing, self.seed, progress)
        self._keep("latency", row, facts, figures, works)
        say(f"{row.key}: {figures['ratio']:.3f} of the CPU time of fp32 ({figures['fp32_ms']:.2f} ms)")

    def freeze(self, corpus: str, thaw: bool) -> list[str]:
        """Write down the digests of a corpus's recipes, data and made files, before its test split is read.

        Raises:
            ConfigError: a row was neither made nor failed, or something changed since the freeze.
        """
        found: dict[str, Digests] = {}
        unmade = []
        for row in (row for row in self.rows if row.corpus == corpus):
            known, facts = self.settled(row), self.made(row)
            if known is None:
                unmade.append(row)
                continue
            model = None if facts is None else str(facts["model"])
            found[row.key] = {"recipe": known["recipe"], "data": known["data"], "model": model}
        if unmade:
            raise ConfigError(
                f"{corpus}: {len(unmade)} rows are not made yet: " + "; ".join(row.name for row in unmade[:6]),
                "make them first: --only " + " ".join(dict.fromkeys(row.part for row in unmade)),
            )
        thawed = freeze(self.store, corpus, found, thaw)
        for name, digests in found.items():
            say(f"frozen: {name}: recipe {str(digests['recipe'])[:16]}")
        return thawed

    def test(self, row: Row) -> None:
        """The figures on the test split; only after `freeze`."""
        facts = self.made(row)
        if facts is None or self.figures("tested", row, facts) is not None:
            return
        subject, works = self.subjects[row.corpus], Works()
        package, model, base = self._shipped(row, facts, works)
        data = subject.test
        assert data.labels is not None
        reference = self._answers(subject, base, subject.teacher, data, works)
        figures = kept(self._answers(subject, model, package, data, works), reference, data.labels, self.seed)
        works.append(f"macs {_file_name(row, facts)}")
        with self.book.measure(works[-1]):
            macs = work(package, subject.teacher, data)
        self._keep("tested", row, facts, {"rows": len(data), **dataclasses.asdict(figures), "macs": macs}, works)
        say(f"{row.key}: test accuracy {100 * figures.accuracy:.2f} %, {100 * figures.kept:.2f} % kept")

    def _shipped(self, row: Row, facts: dict[str, Any], works: Works) -> tuple[Package, Path, Path]:
        """The package of a row, its file, and the fp32 file.

        Raises:
            ConfigError: the recipe now makes another file than the one that the facts are about.
        """
        subject = self.subjects[row.corpus]
        package, _ = self._compress(subject, self.recipe(row), row.key, works)
        model = self.artifact(package, works) / "model.onnx"
        if sha256_file(model) != facts["model"]:
            raise ConfigError(
                f"{row.key}: EdgeSDK's code changed since this row was made, and now makes another file",
                f"make it again: --only {row.part}",
            )
        return package, model, self.artifact(subject.teacher, works) / "model.onnx"

    def settled(self, row: Row) -> dict[str, Any] | None:
        """Facts or error of a row by the recipe, the teacher and the rows of now; None where there are none."""
        known = self.store.read("rows", row.key)
        try:
            digest = self.recipe(row).digest
        except ConfigError:
            digest = None
        marks = (digest, self.subjects[row.corpus].digest)
        return known if known is not None and (known.get("recipe"), known.get("data")) == marks else None

    def made(self, row: Row) -> dict[str, Any] | None:
        """Facts of a row that was made by the recipe, the teacher and the rows of now."""
        known = self.settled(row)
        return None if known is None or "error" in known else known

    def _keep(self, kind: str, row: Row, facts: dict[str, Any], figures: dict[str, Any], works: Works) -> None:
        self.store.write(kind, _file_name(row, facts), {"data": facts["data"], "works": works, "figures": figures})

    def figures(self, kind: str, row: Row, facts: dict[str, Any]) -> dict[str, Any] | None:
        """What was measured of the row's file, with the same teacher and rows."""
        known = self.store.read(kind, _file_name(row, facts))
        return known if known is not None and known["data"] == facts["data"] else None


def _words(figures: dict[str, Any]) -> str:
    return f"{100 * figures['kept']:.2f} % (≥ {100 * figures['lower95']:.2f}) on {figures['rows']} rows"


def _digest(stage: Stage, seed: int) -> str:
    return sha256_bytes(canonical_json([stage.name, stage.options.model_dump(mode="json"), seed]))[:32]


def _file_name(row: Row, facts: dict[str, Any]) -> str:
    return f"{row.key} {facts['model'][:32]}"


def _encoder_parameters(package: Package) -> int:
    """Stored weights of the layers: without embeddings, heads, exits and gates."""
    shapes = package.spec.weight_shapes().items()
    return sum(
        int(np.prod(shape)) for name, shape in shapes
        if name.startswith("layers.") and name.split(".")[2] not in ("exit", "gate")
    )
