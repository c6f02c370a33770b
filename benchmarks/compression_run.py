"""Make the rows of the compression table and measure them; everything lands in the cache, so a killed run resumes."""

from __future__ import annotations

import dataclasses
import shutil
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from compression_cpu import CpuBook
from compression_measure import answers, kept, latency_ratio, work
from compression_rows import Row
from compression_store import Store, freeze
from compression_teacher import TARGET, Subject

from edgesdk.cli.output import say
from edgesdk.compress import compress
from edgesdk.converters import converter
from edgesdk.converters.artifact import read_artifact
from edgesdk.errors import ConfigError, ConvertError, EdgeSDKError
from edgesdk.files import atomic_folder, sha256_file
from edgesdk.package import Package, content_digest
from edgesdk.recipe import Recipe, check_recipe
from edgesdk.stages import Progress
from edgesdk.targets import load_target

CONVERTER = "onnx"


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
        subject = self.subjects[row.corpus]
        try:
            with self.book.measure(f"make {row.key} {self.recipe(row).digest}"):
                facts = self._facts(row, subject)
        except Exception as problem:  # one row that fails must not cost the others their hours
            if not isinstance(problem, EdgeSDKError):
                traceback.print_exc()
            text = problem.message if isinstance(problem, EdgeSDKError) else f"{type(problem).__name__}: {problem}"
            self.store.write("rows", row.key, {"error": text[:500].replace(str(self.cache), "CACHE")})
            say(f"{row.key}: not made: {text}")
            return False
        self.store.write("rows", row.key, facts)
        say(
            f"{row.key}: {facts['bytes']:,} bytes, {100 * facts['size']:.2f} % of fp32; on {facts['holdout']['rows']} "
            f"held-out rows {100 * facts['holdout']['kept']:.2f} % kept; {facts['cpu'] / 60:.1f} CPU minutes; recipe "
            f"{facts['recipe'][:12]}"
        )
        return True

    def _facts(self, row: Row, subject: Subject) -> dict[str, Any]:
        recipe = self.recipe(row)
        package, seconds = self._compress(subject, recipe)
        folder = self._artifact(package)
        model, base = folder / "model.onnx", self._artifact(subject.teacher) / "model.onnx"
        size = read_artifact(folder).bytes
        spec = package.spec
        return {
            "recipe": recipe.digest, "package": content_digest(package), "model": sha256_file(model),
            "artifact": folder.name, "bytes": size, "size": size / base.stat().st_size, "scheme": package.scheme,
            "parameters": spec.parameters(), "macs": spec.macs(package.sequence),
            "encoder": _encoder_parameters(package) / _encoder_parameters(subject.teacher),
            "cpu": sum(seconds), "stages": [stage.name for stage in recipe.stages], "cpu_stages": seconds,
            "holdout": self._holdout(subject, package, model, base),
        }

    def _compress(self, subject: Subject, recipe: Recipe) -> tuple[Package, list[float]]:
        """The package, and the CPU seconds of each stage, those of earlier runs where it comes from the cache."""
        context = dataclasses.replace(subject.context, progress=self.progress)
        reasons, _ = check_recipe(recipe, context.outline(subject.teacher))
        if reasons:
            raise ConfigError("; ".join(reasons))
        package, seconds = subject.teacher, []
        for stage in recipe.stages:
            one = Recipe(recipe.name, (stage,), recipe.seed)
            key = f"stage {content_digest(package)} {one.digest} {context.train.digest if context.train else None}"
            with self.book.measure(key) as watched:
                watching = dataclasses.replace(context, progress=watched(self.progress))
                package = compress(package, one, watching, self.cache / "packages").package
            seconds.append(self.book.seconds(key))
        return package, seconds

    def _artifact(self, package: Package) -> Path:
        """The folder of the shipped file."""
        folder = self.cache / "artifacts" / content_digest(package).removeprefix("sha256:")[:32]
        if folder.is_dir():
            try:
                read_artifact(folder)
                return folder
            except ConvertError:
                shutil.rmtree(folder)
        with atomic_folder(folder) as empty:
            converter(CONVERTER).convert(package, load_target(TARGET), empty)
        return folder

    def _holdout(self, subject: Subject, package: Package, model: Path, base: Path) -> dict[str, Any]:
        """What the file keeps on rows that are not the test split: for choosing recipes."""
        data = subject.holdout
        assert data.labels is not None
        found, reference = (
            self._answers(subject, path, one, "holdout") for path, one in ((model, package), (base, subject.teacher))
        )
        figures = kept(found, reference, data.labels, self.seed)
        return {"rows": len(data), **dataclasses.asdict(figures)}

    def _answers(self, subject: Subject, model: Path, package: Package, split: str) -> np.ndarray[Any, Any]:
        """Answers of a file on the held-out or test rows, kept by the digest of the file."""
        name = f"{subject.corpus.name} {split} {sha256_file(model)[:32]}"
        known = self.store.read("answers", name)
        if known is None:
            data = subject.holdout if split == "holdout" else subject.test()
            self.progress(f"{subject.corpus.name}: {split} rows", 0, 1)
            known = {"answers": answers(model, package, data).tolist()}
            self.store.write("answers", name, known)
        return np.array(known["answers"], np.int64)

    def latency(self, row: Row) -> None:
        """Measure the file by turns with the fp32 file, on held-out rows."""
        facts = self._made(row)
        if facts is None:
            return
        name = f"{row.key} {facts['model'][:32]}"
        if self.store.read("latency", name) is not None:
            return
        subject = self.subjects[row.corpus]
        package, model, base = self._shipped(row, facts)
        with self.book.measure(f"latency {name}"):
            figures = latency_ratio(model, package, base, subject.teacher, subject.holdout, self.seed)
        self.store.write("latency", name, figures)
        say(f"{row.key}: {figures['ratio']:.3f} of the CPU time of fp32 ({figures['fp32_ms']:.2f} ms)")

    def freeze(self, thaw: bool) -> list[str]:
        """Write down the digests of all recipes and made files, before the test split is read."""
        found: dict[str, dict[str, str | None]] = {}
        for row in self.rows:
            try:
                digest = self.recipe(row).digest
            except ConfigError:
                digest = "not a recipe"
            facts = self._made(row)
            found[row.key] = {"recipe": digest, "model": None if facts is None else facts["model"]}
        thawed = freeze(self.store, found, thaw)
        for name, digests in found.items():
            say(f"frozen: {name}: recipe {str(digests['recipe'])[:16]}")
        return thawed

    def test(self, row: Row) -> None:
        """The figures on the test split; only after `freeze`."""
        facts = self._made(row)
        if facts is None or self.store.read("tested", f"{row.key} {facts['model'][:32]}") is not None:
            return
        subject, name = self.subjects[row.corpus], f"{row.key} {facts['model'][:32]}"
        package, model, base = self._shipped(row, facts)
        data = subject.test()
        assert data.labels is not None
        with self.book.measure(f"tested {name}"):
            found = self._answers(subject, model, package, "test")
            figures = kept(found, self._answers(subject, base, subject.teacher, "test"), data.labels, self.seed)
            macs = work(package, subject.teacher, data)
        document = {"rows": len(data), **dataclasses.asdict(figures), "macs": macs}
        self.store.write("tested", name, document)
        say(f"{row.key}: test accuracy {100 * figures.accuracy:.2f} %, {100 * figures.kept:.2f} % kept")

    def _shipped(self, row: Row, facts: dict[str, Any]) -> tuple[Package, Path, Path]:
        """The package of a row, its file, and the fp32 file.

        Raises:
            ConfigError: the recipe now makes another file than the one that the facts are about.
        """
        subject = self.subjects[row.corpus]
        package, _ = self._compress(subject, self.recipe(row))
        model = self._artifact(package) / "model.onnx"
        if sha256_file(model) != facts["model"]:
            raise ConfigError(
                f"{row.key}: EdgeSDK's code changed since this row was made, and now makes another file",
                f"make it again: --only {row.part}",
            )
        return package, model, self._artifact(subject.teacher) / "model.onnx"

    def _made(self, row: Row) -> dict[str, Any] | None:
        """Facts of a row that was made by the recipe of now."""
        facts = self.store.read("rows", row.key)
        if facts is None or "error" in facts:
            return None
        try:
            return facts if facts["recipe"] == self.recipe(row).digest else None
        except ConfigError:
            return None

    def teacher(self, corpus: str) -> dict[str, Any]:
        """Figures of the fp32 model; those of the test split only where the freeze let it be read."""
        subject = self.subjects[corpus]
        package = subject.teacher
        model = self._artifact(package) / "model.onnx"
        known = self.store.read("answers", f"{corpus} test {sha256_file(model)[:32]}")
        document: dict[str, Any] = {
            "bytes": model.stat().st_size, "parameters": package.spec.parameters(), "sequence": package.sequence,
            "macs_worst": package.spec.macs(package.sequence), "cpu": subject.cpu, "accuracy": None, "rows": 0,
        }
        if known is None:
            return document
        labels = subject.test().labels
        assert labels is not None
        accuracy = float((np.array(known["answers"]) == labels).mean())
        return document | {"accuracy": accuracy, "rows": len(labels)}

    def results(self, row: Row) -> dict[str, Any]:
        """Everything that is known of a row, for the table."""
        facts = self.store.read("rows", row.key)
        document: dict[str, Any] = {
            "corpus": row.corpus, "name": row.name, "family": row.family, "part": row.part, "recovery": row.recovery,
            "preset": row.preset,
        }
        made = self._made(row)
        if made is None:
            return document | {"error": (facts or {}).get("error", "not made yet")}
        document |= {key: made[key] for key in ("recipe", "bytes", "size", "scheme", "parameters", "encoder", "cpu")}
        document["macs_worst"] = made["macs"]
        name = f"{row.key} {made['model'][:32]}"
        for kind, label in (("tested", "test"), ("latency", "latency")):
            found = self.store.read(kind, name)
            if found is not None:
                document[label] = {key: value for key, value in found.items() if key not in ("format", "version")}
        works = (f"make {row.key} {made['recipe']}", f"latency {name}", f"tested {name}")
        document["cpu_here"] = sum(self.book.seconds(what) for what in works)
        return document


def _encoder_parameters(package: Package) -> int:
    """Stored weights of the layers: without embeddings, heads, exits and gates."""
    shapes = package.spec.weight_shapes().items()
    return sum(
        int(np.prod(shape)) for name, shape in shapes
        if name.startswith("layers.") and name.split(".")[2] not in ("exit", "gate")
    )
