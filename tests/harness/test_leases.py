"""Leases: one holder, epochs that grow, renewal, take-over, quarantine."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edgesdk.errors import Busy, ConfigError, LeaseLost, Quarantined
from edgesdk.harness import owners
from edgesdk.harness.board import Board
from edgesdk.harness.leases import Leases, lease_key

BOARD = Board("pi", "raspberry-pi/5", "192.0.2.1")
FOREIGN = "other-host some-boot pid:[1] 17 4 aa"


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def leases(tmp_path: Path, clock: Clock) -> Leases:
    return Leases(tmp_path / "state/leases.sqlite", clock=clock)


def test_one_holder(leases: Leases) -> None:
    """While one holds the board, another gets `Busy` with the holder's name; after the release it gets the board."""
    with leases.acquire(BOARD) as lease:
        lease.check()
        with pytest.raises(Busy, match=r"in use by process \d+ on .*E_BUSY"):
            leases.acquire(BOARD)
        with leases.acquire(Board("b", "t", "192.0.2.2")):
            pass
    with leases.acquire(BOARD) as again:
        assert again.epoch > lease.epoch
    assert leases.holder(BOARD).owner is None


def test_epoch_is_at_least_the_time(leases: Leases) -> None:
    """A new database starts above what older ones gave, and never goes back."""
    before = int(time.time())
    with leases.acquire(BOARD) as lease:
        assert lease.epoch >= before
    with sqlite3.connect(leases.path) as direct:
        direct.execute("UPDATE lease SET epoch = ?", (before + 10**6,))
    with leases.acquire(BOARD) as lease:
        assert lease.epoch == before + 10**6 + 1


def test_taken_over_after_its_time(leases: Leases, clock: Clock) -> None:
    """Not before the time to live is over; then the first holder knows at its next check, and does no harm."""
    first = leases.acquire(BOARD, owner=FOREIGN)
    clock.now += 119
    with pytest.raises(Busy):
        leases.acquire(BOARD)
    clock.now += 2
    second = leases.acquire(BOARD)
    with pytest.raises(LeaseLost, match="E_LEASE_LOST"):
        first.check()
    first.release()
    second.check()
    assert leases.holder(BOARD).epoch == second.epoch and leases.holder(BOARD).owner == second.owner
    second.release()


def test_expired_lease_that_nobody_took_goes_on(leases: Leases, clock: Clock) -> None:
    """A sleep longer than the time to live costs nothing where nobody came."""
    with leases.acquire(BOARD) as lease:
        clock.now += 500
        lease.check()
        assert leases.holder(BOARD).seconds_left == 120


def test_failed_renewal_is_not_the_end(leases: Leases, clock: Clock) -> None:
    """A database that cannot be written is forgiven as long as the time to live that was granted lasts."""
    with leases.acquire(BOARD) as lease:
        kept = leases.path.read_bytes()
        leases.path.write_bytes(b"not a database" * 100)
        clock.now += 119
        lease.renew()
        lease.check()
        clock.now += 2
        with pytest.raises(LeaseLost):
            lease.check()
        leases.path.write_bytes(kept)


def test_row_taken_by_force_is_only_lost_when_the_time_is_over(leases: Leases, clock: Clock) -> None:
    """A row of another epoch within the time to live (a clock that jumped, a hand in the database) stops nothing."""
    with leases.acquire(BOARD) as lease:
        with sqlite3.connect(leases.path) as direct:
            direct.execute("UPDATE lease SET epoch = epoch + 1, owner = 'x'")
        lease.renew()
        clock.now += 121
        with pytest.raises(LeaseLost, match="another harness"):
            lease.renew()


def test_heartbeat_keeps_it(tmp_path: Path) -> None:
    """The thread renews; without it another would get the board."""
    leases = Leases(tmp_path / "leases.sqlite", ttl_s=0.4)
    before = threading.active_count()
    with leases.acquire(BOARD), pytest.raises(Busy):
        leases.acquire(BOARD, wait_s=1)
    assert threading.active_count() == before


def test_dead_process_is_known_at_once(tmp_path: Path) -> None:
    """A holder that was killed on this host does not keep the board for its time to live; a foreign one does."""
    path = tmp_path / "leases.sqlite"
    code = (
        "import os, sys, pathlib; from edgesdk.harness.leases import Leases; from edgesdk.harness.board import Board\n"
        f"Leases(pathlib.Path({str(path)!r})).acquire(Board('pi', 't', '192.0.2.1')); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 9
    leases = Leases(path)
    leases.acquire(BOARD).release()
    held = leases.acquire(BOARD, owner=FOREIGN)
    with pytest.raises(Busy, match="process 17 on other-host"):
        leases.acquire(BOARD)
    held.release()


def test_owner_names() -> None:
    """This process lives; only a certain death counts."""
    mine = owners.this_process()
    assert not owners.is_dead(mine)
    words = mine.split(" ")
    assert owners.is_dead(" ".join([*words[:4], "1", words[5]]))
    for other in (FOREIGN, "", "x", " ".join([words[0], "other-boot", *words[2:4], "1", words[5]]), "\x1b[2J"):
        assert not owners.is_dead(other)
        assert owners.describe(other).isprintable()


def test_other_boot_frees_the_board(leases: Leases) -> None:
    """A host that restarted holds nothing, whatever its clock says."""
    lease = leases.acquire(BOARD, owner=FOREIGN)
    with sqlite3.connect(leases.path) as direct:
        direct.execute("UPDATE lease SET boot_id = 'before'")
    leases.acquire(BOARD).release()
    lease.release()


def test_no_two_holders(tmp_path: Path) -> None:
    """Threads that fight for a board: never two at once, and every epoch once."""
    leases = Leases(tmp_path / "leases.sqlite")
    inside: list[int] = []
    epochs: list[int] = []
    overlaps = []

    def fight() -> None:
        for _ in range(4):
            with leases.acquire(BOARD, wait_s=60) as lease:
                inside.append(lease.epoch)
                overlaps.append(len(inside))
                epochs.append(lease.epoch)
                inside.remove(lease.epoch)

    threads = [threading.Thread(target=fight) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(epochs) == len(set(epochs)) == 16
    assert set(overlaps) == {1}


def test_quarantine(leases: Leases) -> None:
    """A board that was set aside is refused with the reason until it is lifted."""
    leases.quarantine(BOARD, "worn SD card")
    with pytest.raises(Quarantined, match="worn SD card") as caught:
        leases.acquire(BOARD)
    assert caught.value.exit_code == 4 and "lift pi" in caught.value.hint
    assert leases.lift(BOARD) and not leases.lift(BOARD)
    leases.acquire(BOARD).release()


def test_keys() -> None:
    """The address is leased, not the name."""
    assert lease_key(Board("a", "t", "h", 2222)) == lease_key(Board("b", "t", "h", 2222)) == "h:2222"
    assert lease_key(Board("host", "host")) == "host"


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    """One clear message."""
    (tmp_path / "x").write_text("junk" * 1000)
    with pytest.raises(ConfigError, match="lease database"):
        Leases(tmp_path / "x")
