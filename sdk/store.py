"""The results store: every build and every attempt of it in SQLite, raw samples as content-addressed files.

    results.sqlite          tables meta, builds, attempts (append-only; triggers refuse UPDATE and DELETE)
    samples/<sha256>        raw samples and raw outputs of the measurements, named by their digest

An attempt is one candidate of one build: the columns one queries, and the whole document beside them. Writers in other
processes are waited for (SQLite's WAL mode, 30 s).
"""

from __future__ import annotations

import copy
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateTable

from edgesdk.errors import ConfigError, MeasureError
from edgesdk.files import canonical_json, inside, sha256_bytes, write_atomic
from edgesdk.record import BuildRecord, CandidateRecord, build_from_plain, candidate_from_plain, plain

if TYPE_CHECKING:
    import pandas

FORMAT, VERSION = "edgesdk.store", 1
DEFAULT_PATH = Path(".edgesdk/results.sqlite")


_FIGURES: dict[str, tuple[sql.types.TypeEngine[Any], tuple[str | int, ...]]] = {
    "p50_ms": (sql.Float(), ("latency_ms", "p50")),
    "p90_ms": (sql.Float(), ("latency_ms", "p90")),
    "ci_low_ms": (sql.Float(), ("latency_ms", "ci95", 0)),
    "ci_high_ms": (sql.Float(), ("latency_ms", "ci95", 1)),
    "rounds": (sql.Integer(), ("latency_ms", "rounds")),
    "latency_provenance": (sql.String(), ("latency_ms", "provenance")),
    "instructions": (sql.Integer(), ("instructions", "value")),
    "instructions_provenance": (sql.String(), ("instructions", "provenance")),
    "peak_rss_bytes": (sql.Integer(), ("peak_rss_bytes", "value")),
    "peak_rss_provenance": (sql.String(), ("peak_rss_bytes", "provenance")),
    "energy_mj": (sql.Float(), ("energy_mj", "value")),
    "energy_boundary": (sql.String(), ("energy_mj", "boundary")),
    "energy_provenance": (sql.String(), ("energy_mj", "provenance")),
}

_metadata = sql.MetaData()
_meta = sql.Table(
    "meta", _metadata, sql.Column("key", sql.String, primary_key=True), sql.Column("value", sql.String, nullable=False)
)
_builds = sql.Table(
    "builds",
    _metadata,
    sql.Column("build", sql.Integer, primary_key=True),
    *(sql.Column(name, sql.String, nullable=False) for name in ("created", "model", "target", "board")),
    sql.Column("document", sql.Text, nullable=False),
)
_attempts = sql.Table(
    "attempts",
    _metadata,
    sql.Column("attempt", sql.Integer, primary_key=True),
    sql.Column("build", sql.ForeignKey("builds.build"), nullable=False, index=True),
    *(sql.Column(name, sql.String, nullable=False) for name in ("name", "converter", "scheme", "recipe")),
    sql.Column("accuracy", sql.Float),
    sql.Column("accuracy_lower95", sql.Float),
    sql.Column("n", sql.Integer),
    sql.Column("accuracy_provenance", sql.String),
    *(sql.Column(name, kind) for name, (kind, _) in _FIGURES.items()),
    sql.Column("bytes", sql.Integer),
    sql.Column("bytes_with_runtime", sql.Integer),
    sql.Column("valid", sql.Boolean, nullable=False),
    sql.Column("reasons", sql.Text, nullable=False),
    sql.Column("document", sql.Text, nullable=False),
)
COLUMNS = [column.name for column in _builds.c if column.name != "document"]
COLUMNS += [column.name for column in _attempts.c if column.name not in ("attempt", "build", "document")]


class Store:
    """The results store at `path` (default: the variable EDGESDK_STORE, else `.edgesdk/results.sqlite`).

    Raises:
        ConfigError: not a store, a store of another version, or (with `create` False) no file.
    """

    def __init__(self, path: Path | str | None = None, create: bool = True) -> None:
        self.path = Path(path or os.environ.get("EDGESDK_STORE") or DEFAULT_PATH).absolute()
        if not self.path.is_file() and not create:
            raise ConfigError(f"no results store at {self.path}", "run `edgesdk build`, or set EDGESDK_STORE")
        self._engine = sql.create_engine(
            sql.URL.create("sqlite", database=str(self.path)), poolclass=sql.NullPool, connect_args={"timeout": 30}
        )
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._open()
        except (OSError, DBAPIError) as problem:
            reason = problem.orig if isinstance(problem, DBAPIError) else problem
            raise ConfigError(f"{self.path}: not usable as a results store: {reason}") from problem

    @contextmanager
    def _connection(self) -> Iterator[sql.Connection]:
        """A transaction; what SQLite refuses (locked for 30 s, malformed, disk full) becomes one clear message."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as problem:
            raise ConfigError(f"{self.path}: {problem.orig}", "edgesdk verify looks at the whole store") from problem

    @property
    def samples(self) -> Path:
        """The folder of raw samples, each named by its sha256."""
        return self.path.parent / "samples"

    def add_build(self, record: BuildRecord) -> int:
        """Store a build with all of its candidates in one transaction; returns the number of the build.

        Raises:
            MeasureError: raw samples are missing or have another digest, or a figure is not finite.
        """
        try:
            candidates = [self._take_samples(candidate) for candidate in record.candidates]
            build = {
                "created": record.started, "model": record.model, "target": record.target, "board": record.board,
                "document": _text(plain(record)),
            }
            rows = [_row(candidate) for candidate in candidates]
        except ValueError as problem:
            raise MeasureError(f"build of {record.model} for {record.target}: not storable: {problem}") from problem
        with self._connection() as connection:
            number: int = connection.execute(sql.insert(_builds).values(build).returning(_builds.c.build)).scalar_one()
            if rows:
                connection.execute(sql.insert(_attempts), [{"build": number, **row} for row in rows])
        return number

    def build(self, number: int) -> BuildRecord:
        """A build as it was stored. The paths of raw samples are relative to the folder of the store.

        Raises:
            ConfigError: no such build.
        """
        with self._connection() as connection:
            text = connection.scalar(sql.select(_builds.c.document).where(_builds.c.build == number))
            query = sql.select(_attempts.c.document).where(_attempts.c.build == number).order_by(_attempts.c.attempt)
            candidates = tuple(candidate_from_plain(json.loads(document)) for document in connection.scalars(query))
        if text is None:
            raise ConfigError(f"{self.path}: no build {number}", "`edgesdk report --csv` lists the builds")
        return dataclasses.replace(build_from_plain(json.loads(text)), candidates=candidates)

    def latest(self, target: str | None = None, board: str | None = None, model: str | None = None) -> int:
        """The number of the newest build for a target, a board, a model.

        Raises:
            ConfigError: there is none.
        """
        query = _filter(sql.select(sql.func.max(_builds.c.build)), target, board, model)
        with self._connection() as connection:
            number = connection.scalar(query)
        if number is None:
            wanted = {"target": target, "board": board, "model": model}
            described = ", ".join(f"{key} {value}" for key, value in wanted.items() if value is not None)
            raise ConfigError(f"{self.path}: no build for {described or 'anything'}", "run `edgesdk build` first")
        return int(number)

    def attempts(self, build: int | None = None) -> list[dict[str, Any]]:
        """All attempts (of one build), oldest first: the columns and the whole `document`."""
        query = sql.select(_attempts).order_by(_attempts.c.attempt)
        if build is not None:
            query = query.where(_attempts.c.build == build)
        with self._connection() as connection:
            rows = [dict(row) for row in connection.execute(query).mappings()]
        return [{**row, "document": json.loads(row["document"])} for row in rows]

    def results(
        self, target: str | None = None, board: str | None = None, model: str | None = None, build: int | None = None
    ) -> pandas.DataFrame:
        """One row per attempt, oldest first, in the columns `COLUMNS`; missing figures are NA.

        Units: milliseconds, bytes, millijoules; accuracy is a fraction; `created` is when the build started (UTC).
        """
        import pandas  # half a second that the command line does not owe to everybody

        columns = [(_builds if name in _builds.c else _attempts).c[name] for name in COLUMNS]
        query = sql.select(*columns).join(_attempts, _attempts.c.build == _builds.c.build)
        query = _filter(query, target, board, model).order_by(_attempts.c.attempt)
        if build is not None:
            query = query.where(_builds.c.build == build)
        with self._connection() as connection:
            rows = [tuple(row) for row in connection.execute(query)]
        kinds = {sql.Integer: "Int64", sql.Float: "float64", sql.Boolean: "bool"}
        types = {column.name: kinds.get(type(column.type), "string") for column in columns}
        return pandas.DataFrame(rows, columns=COLUMNS).astype(types)

    def _open(self) -> None:
        with _locked(self.path.with_name(self.path.name + ".lock")), self._engine.connect() as connection:
            if sql.inspect(connection).has_table("meta"):
                found = {str(key): str(value) for key, value in connection.execute(sql.select(_meta))}
                if (found.get("format"), found.get("version")) != (FORMAT, str(VERSION)):
                    raise ConfigError(
                        f"{self.path}: {found.get('format')} version {found.get('version')}; "
                        f"this EdgeSDK reads {FORMAT} version {VERSION}",
                        "install the EdgeSDK release that wrote it, or name another file in EDGESDK_STORE",
                    )
                return
            if sql.inspect(connection).get_table_names():
                raise ConfigError(f"{self.path}: a database, but not a results store", "name another EDGESDK_STORE")
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            for table in _metadata.sorted_tables:
                connection.execute(CreateTable(table))
                for index in table.indexes:
                    index.create(connection)
            for table in (_builds, _attempts):
                for action in ("UPDATE", "DELETE"):
                    connection.exec_driver_sql(
                        f"CREATE TRIGGER {table.name}_{action.lower()} BEFORE {action} ON {table.name} "
                        f"BEGIN SELECT RAISE(ABORT, '{table.name} is append-only'); END"
                    )
            meta = [{"key": "format", "value": FORMAT}, {"key": "version", "value": str(VERSION)}]
            connection.execute(sql.insert(_meta), meta)
            connection.commit()

    def _take_samples(self, candidate: CandidateRecord) -> CandidateRecord:
        """Copy raw files into the store; the document then names them by digest."""
        if candidate.measurement is None:
            return candidate
        measurement = copy.deepcopy(dict(candidate.measurement))
        for holder, key in raw_files(measurement):
            source = inside(candidate.workdir or Path.cwd(), holder[key], MeasureError)
            try:
                data = source.read_bytes()
            except OSError as problem:
                raise MeasureError(f"{candidate.name}: raw samples {source}: {problem.strerror}") from problem
            digest = sha256_bytes(data)
            if digest != holder.get("sha256"):
                raise MeasureError(f"{candidate.name}: raw samples {source}: sha256 is not that of the measurement")
            if not (self.samples / digest).is_file():
                write_atomic(self.samples / digest, data)
            holder[key] = f"{self.samples.name}/{digest}"
        return dataclasses.replace(candidate, measurement=measurement)


def verify_store(path: Path) -> dict[str, int]:
    """Recompute every figure of a store from its raw samples; see `edgesdk.store_verify`."""
    from edgesdk.store_verify import verify_store as verify  # it imports the harness, which this module must not

    return verify(path)


def raw_files(measurement: Mapping[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Every place of a measurement that names a raw file, as (holder, key); `holder["sha256"]` is its digest."""
    for entry in measurement.get("rounds") or ():
        if entry.get("samples"):
            yield entry, "samples"
    evaluation = measurement.get("evaluation")
    if evaluation and evaluation.get("outputs"):
        yield evaluation, "outputs"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Let one process at a time make the tables."""
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _filter(query: Any, target: str | None, board: str | None, model: str | None) -> Any:
    for column, value in ((_builds.c.target, target), (_builds.c.board, board), (_builds.c.model, model)):
        if value is not None:
            query = query.where(column == value)
    return query


def _row(candidate: CandidateRecord) -> dict[str, Any]:
    return columns_of(candidate) | {"document": _text(plain(candidate))}


def columns_of(candidate: CandidateRecord) -> dict[str, Any]:
    """The columns of an attempt that repeat what its document says."""
    accuracy = candidate.accuracy
    row: dict[str, Any] = {name: candidate.figure(*keys) for name, (_, keys) in _FIGURES.items()}
    row |= {name: getattr(candidate, name) for name in ("name", "converter", "scheme", "recipe", "valid")}
    row |= {name: getattr(candidate, name) for name in ("bytes", "bytes_with_runtime")}
    row |= {
        "accuracy": accuracy and accuracy.value,
        "accuracy_lower95": accuracy and accuracy.lower95,
        "n": accuracy and accuracy.n,
        "accuracy_provenance": accuracy and accuracy.provenance,
        "reasons": "; ".join(candidate.reasons),
    }
    return row


def _text(value: Any) -> str:
    return canonical_json(value).decode()
