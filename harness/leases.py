"""Leases: which harness may use a board now. Rows in SQLite with a time to live and a fencing epoch.

    with Leases().acquire(board, wait_s=300) as lease:      # a thread renews it
        lease.check()                                        # before each step that cannot be undone
        start(job, epoch=lease.epoch)                        # the board refuses epochs older than it has seen

No lock on a host is safe on its own: a harness may be stopped for minutes and wake up. So the epoch goes to the board
with each job, and the board, which remembers the largest one, has the last word (`harness/worker/fence.py`).
Epochs grow with every lease and are at least the time of day in seconds, so that a new database does not start below
what the boards have seen. Times to live are CLOCK_BOOTTIME of this host: the file must lie on a local disk, and a jump
of the wall clock changes nothing.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import sqlalchemy as sql
from sqlalchemy.exc import DBAPIError

from edgesdk.errors import Busy, ConfigError, LeaseLost, Quarantined
from edgesdk.harness import owners
from edgesdk.harness.board import Board

TTL_SECONDS = 120.0
LOCKED_SECONDS = 30.0
POLL_SECONDS = 0.5
RENEWALS_PER_TTL = 4
log = logging.getLogger("edgesdk.leases")

_metadata = sql.MetaData()
_lease = sql.Table(
    "lease",
    _metadata,
    sql.Column("board", sql.String, primary_key=True),
    sql.Column("owner", sql.String),
    sql.Column("epoch", sql.BigInteger, nullable=False, default=0),
    sql.Column("expires", sql.Float, nullable=False, default=0.0),
    sql.Column("boot_id", sql.String),
)
_quarantine = sql.Table(
    "quarantine",
    _metadata,
    sql.Column("board", sql.String, primary_key=True),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("since", sql.Float, nullable=False),
)


def default_path() -> Path:
    """`$EDGESDK_LEASES`, or `~/.local/state/edgesdk/leases.sqlite`."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state")
    return Path(os.environ.get("EDGESDK_LEASES") or state / "edgesdk/leases.sqlite").absolute()


def lease_key(board: Board) -> str:
    """What a lease is on: the address, whatever a farm file calls the board; this machine is `host`."""
    return "host" if board.host is None else f"{board.host}:{board.port}"


def boot_seconds() -> float:
    """Seconds since this host started, time asleep included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) if hasattr(time, "CLOCK_BOOTTIME") else time.monotonic()


@dataclass(frozen=True)
class Holder:
    """A row: who holds a board, its epoch, and for how long yet (0 where the lease is over)."""

    board: str
    owner: str | None
    epoch: int
    seconds_left: float


class Leases:
    """The lease database of this host.

    Args:
        path: default `default_path()`.
        ttl_s: default `TTL_SECONDS`; after so long without a renewal the board is free.
        clock: seconds that only grow, the same for all processes of the host.

    Raises:
        ConfigError: the file cannot be used.
    """

    def __init__(
        self, path: Path | None = None, ttl_s: float | None = None, clock: Callable[[], float] = boot_seconds
    ) -> None:
        self.path = path or default_path()
        self.ttl_s = ttl_s or TTL_SECONDS
        self.clock = clock
        url = sql.URL.create("sqlite", database=str(self.path))
        self._engine = sql.create_engine(url, poolclass=sql.NullPool, connect_args={"timeout": LOCKED_SECONDS})
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as problem:
            raise ConfigError(f"{self.path}: not usable for leases: {problem}", "set EDGESDK_LEASES") from problem
        with self._transaction() as connection:
            connection.exec_driver_sql("PRAGMA journal_mode=WAL")
            for table in _metadata.sorted_tables:
                connection.execute(sql.schema.CreateTable(table, if_not_exists=True))

    def acquire(self, board: Board, wait_s: float = 0.0, owner: str | None = None) -> Lease:
        """Take a board, waiting until it is free.

        A board is free when nobody holds it, when the time to live is over, when this host restarted since, and when
        the process that holds it has died on this host.

        Raises:
            Quarantined: the board was set aside. Busy: somebody held it all the time. ConfigError: the database.
        """
        key, owner = lease_key(board), owner or owners.this_process()
        end = time.monotonic() + wait_s
        with self._transaction() as connection:
            connection.execute(sql.insert(_lease).prefix_with("OR IGNORE").values(board=key))
        while True:
            self.refuse_quarantined(board)
            asked = self.clock()
            epoch = self._take(key, owner, asked)
            if epoch is not None:
                return Lease(self, board, owner, epoch, asked + self.ttl_s)
            if time.monotonic() >= end:
                holder = self.holder(board)
                raise Busy(
                    f"{board.name}: in use by {owners.describe(holder.owner)} (E_BUSY), lease for "
                    f"{holder.seconds_left:.0f} s more unless it is renewed",
                    "wait for the other job, or `edgesdk boards list`",
                )
            time.sleep(min(POLL_SECONDS, max(0.0, end - time.monotonic())))

    def holder(self, board: Board) -> Holder:
        """Who has a board now."""
        key = lease_key(board)
        with self._transaction() as connection:
            row = connection.execute(sql.select(_lease).where(_lease.c.board == key)).one_or_none()
        if row is None:
            return Holder(key, None, 0, 0.0)
        same_boot = row.boot_id == owners.boot_id()
        left = max(0.0, row.expires - self.clock()) if row.owner is not None and same_boot else 0.0
        return Holder(key, row.owner if left else None, row.epoch, left)

    def quarantine(self, board: Board, reason: str) -> None:
        """Set a board aside: nobody gets it until `lift`. A second reason replaces the first."""
        values = {"board": lease_key(board), "reason": reason, "since": time.time()}
        with self._transaction() as connection:
            connection.execute(sql.insert(_quarantine).prefix_with("OR REPLACE").values(values))

    def lift(self, board: Board) -> bool:
        """End the quarantine of a board; was it in one?"""
        with self._transaction() as connection:
            gone = connection.execute(sql.delete(_quarantine).where(_quarantine.c.board == lease_key(board)))
            return gone.rowcount > 0

    def quarantined(self, board: Board) -> str | None:
        """Why a board is set aside, or None."""
        with self._transaction() as connection:
            query = sql.select(_quarantine.c.reason).where(_quarantine.c.board == lease_key(board))
            found = connection.execute(query).scalar_one_or_none()
        return None if found is None else str(found)

    def refuse_quarantined(self, board: Board) -> None:
        """Raise `Quarantined` for a board that was set aside."""
        reason = self.quarantined(board)
        if reason is not None:
            raise Quarantined(
                f"{board.name}: in quarantine: {reason}",
                f"repair it, then `edgesdk boards lift {board.name}`",
            )

    def renew(self, board: Board, owner: str, epoch: int) -> float | None:
        """Until when (on `clock`) the lease now holds; None where the row belongs to another. ConfigError: database."""
        until = self.clock() + self.ttl_s
        query = sql.update(_lease).where(*_mine(board, owner, epoch))
        with self._transaction() as connection:
            found = connection.execute(query.values(expires=until, boot_id=owners.boot_id()))
            return until if found.rowcount else None

    def release(self, board: Board, owner: str, epoch: int) -> bool:
        """Give a board back; False where the row belongs to another by now. ConfigError: database."""
        query = sql.update(_lease).where(*_mine(board, owner, epoch)).values(owner=None, expires=0.0)
        with self._transaction() as connection:
            return connection.execute(query).rowcount > 0

    def _take(self, key: str, owner: str, now: float) -> int | None:
        """One atomic statement decides; returns the new epoch, or None where another holds the board."""
        with self._transaction() as connection:
            row = connection.execute(sql.select(_lease.c.owner, _lease.c.epoch).where(_lease.c.board == key)).one()
        free = [_lease.c.owner.is_(None), _lease.c.expires < now, _lease.c.boot_id != owners.boot_id()]
        if row.owner is not None and owners.is_dead(row.owner):
            free.append(sql.and_(_lease.c.owner == row.owner, _lease.c.epoch == row.epoch))
        values = {
            "owner": owner, "expires": now + self.ttl_s, "boot_id": owners.boot_id(),
            "epoch": sql.func.max(_lease.c.epoch + 1, int(time.time())),
        }
        query = sql.update(_lease).where(_lease.c.board == key, sql.or_(*free)).values(values)
        with self._transaction() as connection:
            epoch = connection.execute(query.returning(_lease.c.epoch)).scalar_one_or_none()
        return None if epoch is None else int(epoch)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[sql.Connection]:
        """One short transaction; a database locked by another process is waited for `LOCKED_SECONDS`."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as problem:
            raise ConfigError(
                f"{self.path}: lease database: {problem.orig}", "set EDGESDK_LEASES to a file on a local disk"
            ) from problem


def _mine(board: Board, owner: str, epoch: int) -> tuple[sql.ColumnElement[bool], ...]:
    return _lease.c.board == lease_key(board), _lease.c.owner == owner, _lease.c.epoch == epoch


class Lease:
    """A board that is held, renewed by a thread until `release`."""

    def __init__(self, leases: Leases, board: Board, owner: str, epoch: int, expires: float) -> None:
        self.leases = leases
        self.board = board
        self.owner = owner
        self.epoch = epoch
        self._expires = expires
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name=f"lease-{board.name}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def renew(self) -> None:
        """Hold it for another time to live.

        A renewal that fails (a locked or missing database, a row that another has) is only bad once the time to live
        that is known to be granted is really over.

        Raises:
            LeaseLost: it is over.
        """
        found = "the database cannot be used"
        try:
            until = self.leases.renew(self.board, self.owner, self.epoch)
            if until is not None:
                self._expires = until
                return
            found = "another harness has the board"
        except ConfigError as problem:
            found = problem.message
        if self.leases.clock() >= self._expires:
            raise LeaseLost(
                f"{self.board.name}: lease lost (E_LEASE_LOST): epoch {self.epoch} was not renewed within "
                f"{self.leases.ttl_s:g} s: {found}",
                "was this process stopped, or the machine asleep? run the same command again",
            )

    def check(self) -> None:
        """Call this before each step that cannot be undone (start, evict, power cycle).

        Raises:
            LeaseLost: the time to live is over and could not be renewed.
        """
        if self.leases.clock() >= self._expires:
            self.renew()

    def release(self) -> None:
        """Give the board back and end the thread; may be called twice. A lease that is lost is not an error here."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._thread.join()
        try:
            if not self.leases.release(self.board, self.owner, self.epoch):
                log.warning("%s: lease %d was taken over before its release", self.board.name, self.epoch)
        except ConfigError as problem:
            log.warning("%s: lease %d ends by itself: %s", self.board.name, self.epoch, problem.message)

    def _beat(self) -> None:
        while not self._ended.wait(self.leases.ttl_s / RENEWALS_PER_TTL):
            try:
                self.renew()
            except LeaseLost as problem:
                log.warning("%s", problem.message)
                return
