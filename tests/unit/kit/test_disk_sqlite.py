"""SQLite on the simulated disk: it keeps its promises there, and breaks them where the disk breaks its own."""

from __future__ import annotations

import contextlib
import gc
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from itertools import product

import apsw
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.testing.disk.disk import EPOCH_NS, Disk, os_error
from tinyllm.testing.disk.sqlite import connect

pytestmark = pytest.mark.unit

quiet = settings(deadline=None, max_examples=150)

#: Each way to be durable that SQLite's documentation promises: its journal, and the least `synchronous` for it.
DURABLE = {"delete": "extra", "truncate": "full", "persist": "full", "wal": "full"}


# --- a program with transactions, a crash in it, and what is found afterwards ----------------------


@dataclass(frozen=True)
class Story:
    """Transactions, each of (key, size) pairs to put, a negative size to delete; a crash before one operation."""

    transactions: tuple[tuple[tuple[int, int], ...], ...]
    journal: str = "delete"
    synchronous: str = "extra"
    crash_at: int = 10**9
    unsynced: str = "lost"
    choice: int = 0
    fault_at: int | None = None
    fault: int = 5
    lies_about_sync: bool = False


class Power:
    """Counts the operations of the disk, lets one fail, and cuts the power before another."""

    def __init__(self, story):
        self.story, self.disk, self.count = story, None, -1

    def __call__(self, operation, path):
        self.count += 1
        if self.count == self.story.crash_at:
            self.disk.crash(self.story.unsynced, self.story.choice)
        return os_error(self.story.fault, path) if self.count == self.story.fault_at else None


def opened(disk, journal, synchronous):
    connection = connect(disk, "app.db", wal=journal == "wal")
    if journal != "wal":
        connection.pragma("journal_mode", journal)
    connection.pragma("synchronous", synchronous)
    return connection


def verdict(story):
    """Play the story and tell what is wrong with the database afterwards: `corrupt`, `lost`, `half` or nothing."""
    power = Power(story)
    with Disk(decide=power) as disk:
        power.disk = disk
        disk.lies_about_sync = story.lies_about_sync
        acknowledged, attempted = _lived(disk, story)
        if disk.incarnation == 0:
            disk.crash(story.unsynced, story.choice)
        disk.decide = lambda operation, path: None
        return _found(disk, story, acknowledged, attempted)


def _lived(disk, story):
    """What the last commit that returned has put there, and what the one that did not return would have."""
    acknowledged: dict | None = None
    attempted: dict = {}
    with contextlib.ExitStack() as stack:
        # Whether the fault or the crash stops it: what it has done is read from the disk.
        stack.enter_context(contextlib.suppress(apsw.Error))
        connection = stack.enter_context(contextlib.closing(opened(disk, story.journal, story.synchronous)))
        connection.execute("CREATE TABLE kept (key INTEGER PRIMARY KEY, value BLOB, mark INTEGER)")
        connection.execute("CREATE INDEX marks ON kept (mark)")
        acknowledged = {}
        for number, transaction in enumerate(story.transactions):
            attempted = dict(acknowledged)
            with connection:
                for key, size_bytes in transaction:
                    _put(connection, attempted, key, size_bytes, number)
            acknowledged = attempted
    return acknowledged, attempted


def _put(connection, attempted, key, size_bytes, number):
    if size_bytes < 0:
        attempted.pop(key, None)
        connection.execute("DELETE FROM kept WHERE key = ?", (key,))
    else:
        attempted[key] = bytes([number]) * size_bytes
        connection.execute("REPLACE INTO kept VALUES (?, ?, ?)", (key, attempted[key], number))


def _found(disk, story, acknowledged, attempted):
    try:
        with contextlib.closing(opened(disk, story.journal, story.synchronous)) as connection:
            if connection.pragma("integrity_check") != "ok":
                return "corrupt"
            if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'marks'").get:
                return "" if acknowledged is None else "lost"
            there = dict(connection.execute("SELECT key, value FROM kept"))
    except (apsw.CorruptError, apsw.NotADBError):
        return "corrupt"
    before = acknowledged or {}
    if there in (before, attempted):
        return ""
    return "half" if there.items() & (attempted.items() - before.items()) else "lost"


puts = st.tuples(st.integers(0, 5), st.sampled_from([-1, 0, 10, 700, 5_000, 20_000]))
stories = st.builds(
    Story,
    st.lists(st.lists(puts, max_size=4).map(tuple), max_size=6).map(tuple),
    crash_at=st.integers(0, 200),
    unsynced=st.sampled_from(["lost", "kept", "prefix", "torn", "reordered"]),
    choice=st.integers(0, 10_000),
)

EXAMPLE = (((1, 5_000), (2, 10)), ((1, 700), (3, 20_000)), ((2, -1), (3, 10)), ((4, 5_000),))


def every_crash(unsynced, choices, **settings_):
    """The verdicts of the example, crashed before each of its operations, with how often each came."""
    quiet_run = Power(Story(EXAMPLE, **settings_))
    with Disk(decide=quiet_run) as disk:
        _lived(disk, quiet_run.story)
    points = product(range(quiet_run.count + 2), choices)
    return Counter(verdict(Story(EXAMPLE, crash_at=at, unsynced=unsynced, choice=c, **settings_)) for at, c in points)


@pytest.mark.parametrize("journal", DURABLE)
@quiet
@given(story=stories)
def test_no_crash_takes_away_or_halves_what_was_committed(journal, story):
    assert "" == verdict(replace(story, journal=journal, synchronous=DURABLE[journal]))


@pytest.mark.parametrize("journal", DURABLE)
@quiet
@given(story=stories, fault_at=st.integers(0, 150), fault=st.sampled_from([5, 28]))
def test_nor_does_a_crash_after_a_fault(journal, story, fault_at, fault):
    told = replace(story, journal=journal, synchronous=DURABLE[journal], fault_at=fault_at, fault=fault)
    assert "" == verdict(told)


@pytest.mark.parametrize("unsynced", ["lost", "prefix", "torn", "reordered"])
@pytest.mark.parametrize("journal", DURABLE)
def test_nor_does_a_crash_at_any_operation_of_a_long_example(journal, unsynced):
    choices = [0] if unsynced == "lost" else range(1, 3)
    found = every_crash(unsynced, choices, journal=journal, synchronous=DURABLE[journal])
    assert {""} == set(found)
    assert 40 < found[""]


def test_removing_a_journal_without_a_sync_of_its_directory_can_undo_the_last_transaction_and_only_that():
    found = every_crash("lost", [0], journal="delete", synchronous="full")
    assert {"", "lost"} == set(found)


# --- the same with a disk, or a setting, that breaks the promise -----------------------------------


@pytest.mark.parametrize("journal", DURABLE)
def test_a_disk_that_lies_about_sync_loses_transactions(journal):
    found = every_crash("lost", [0], journal=journal, synchronous=DURABLE[journal], lies_about_sync=True)
    assert found["lost"]


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist"])
def test_a_disk_that_lies_about_sync_and_reorders_corrupts_the_database(journal):
    found = every_crash("reordered", range(1, 5), journal=journal, synchronous=DURABLE[journal], lies_about_sync=True)
    assert found["corrupt"]


def test_without_synchronous_a_crash_loses_transactions_and_corrupts_the_database_if_writes_are_reordered():
    assert every_crash("prefix", [1], synchronous="off")["lost"]
    assert every_crash("reordered", range(1, 5), synchronous="off")["corrupt"]


def test_without_a_journal_a_torn_write_leaves_half_of_a_transaction_or_worse():
    found = every_crash("torn", range(4), journal="off", synchronous="full")
    assert found["corrupt"] + found["half"]


# --- faults reach the program and heal -------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "number", "kind"),
    [("write", 5, apsw.IOError), ("write", 28, apsw.FullError), ("sync", 5, apsw.IOError)],
)
@pytest.mark.parametrize("journal", DURABLE)
def test_a_fault_fails_the_transaction_with_its_own_error_and_the_next_one_works(journal, operation, number, kind):
    with Disk() as disk:
        connection = opened(disk, journal, DURABLE[journal])
        connection.execute("CREATE TABLE t (x)")
        disk.decide = lambda asked, path: os_error(number, path) if asked == operation else None
        with pytest.raises(kind) as caught:
            connection.execute("INSERT INTO t VALUES (1)")
        assert number == caught.value.__cause__.errno
        disk.decide = lambda asked, path: None
        connection.execute("INSERT INTO t VALUES (2)")
        assert [(2,)] == connection.execute("SELECT x FROM t").fetchall()
        connection.close()


@pytest.mark.parametrize(("operation", "kind"), [("read", apsw.IOError), ("open", apsw.CantOpenError)])
def test_a_database_that_cannot_be_read_or_opened_says_so_and_can_be_later(operation, kind):
    with Disk() as disk:
        a_table(disk)
        disk.decide = lambda asked, path: os_error(5, path) if asked == operation else None
        with pytest.raises(kind):
            connect(disk, "app.db").execute("SELECT x FROM t")
        disk.decide = lambda asked, path: None
        connection = connect(disk, "app.db")
        assert [(1,)] == connection.execute("SELECT x FROM t").fetchall()
        connection.close()


def a_table(disk):
    connection = connect(disk, "app.db")
    connection.execute("CREATE TABLE t (x); INSERT INTO t VALUES (1)")
    connection.close()


def test_a_full_disk_refuses_a_transaction_whole_and_takes_it_when_there_is_room():
    with Disk() as disk:
        connection = opened(disk, "delete", "extra")
        connection.execute("CREATE TABLE t (x)")
        disk.capacity_bytes = disk.used_bytes + 3_000
        with pytest.raises(apsw.FullError):
            connection.execute("INSERT INTO t VALUES (zeroblob(20000))")
        assert 0 == connection.execute("SELECT count(*) FROM t").get
        disk.capacity_bytes = None
        connection.execute("INSERT INTO t VALUES (zeroblob(20000))")
        assert (1, "ok") == (connection.execute("SELECT count(*) FROM t").get, connection.pragma("integrity_check"))
        connection.close()


def test_a_slow_sync_charges_each_sync_of_a_transaction():
    charged: list[int] = []
    with Disk(charge=charged.append) as disk:
        connection = opened(disk, "wal", "full")
        connection.execute("CREATE TABLE t (x)")
        disk.sync_cost_ns = 5
        connection.execute("INSERT INTO t VALUES (1)")
        assert [5] == charged
        connection.close()


# --- connections -----------------------------------------------------------------------------------


def test_two_writers_lock_each_other_out_and_take_turns():
    with Disk() as disk:
        one, two = connect(disk, "app.db"), connect(disk, "app.db")
        one.execute("CREATE TABLE t (x); BEGIN IMMEDIATE; INSERT INTO t VALUES (1)")
        assert 0 == two.execute("SELECT count(*) FROM t").get
        with pytest.raises(apsw.BusyError):
            two.execute("BEGIN IMMEDIATE")
        one.execute("COMMIT")
        two.execute("INSERT INTO t VALUES (2)")
        assert 2 == one.execute("SELECT count(*) FROM t").get
        one.close()
        two.close()


def test_a_reader_keeps_a_writer_from_committing_until_it_is_done():
    with Disk() as disk:
        one, two, three = (connect(disk, "app.db") for _ in range(3))
        one.execute("CREATE TABLE t (x); INSERT INTO t VALUES (1), (2)")
        reader = one.execute("SELECT x FROM t")
        next(reader)
        two.execute("BEGIN; INSERT INTO t VALUES (3)")
        with pytest.raises(apsw.BusyError):
            two.execute("COMMIT")
        # The writer waits with its lock pending, which lets no new reader in.
        with pytest.raises(apsw.BusyError):
            three.execute("SELECT x FROM t")
        reader.fetchall()
        two.execute("COMMIT")
        assert 3 == three.execute("SELECT count(*) FROM t").get
        for connection in (one, two, three):
            connection.close()


def test_a_busy_timeout_sleeps_in_virtual_time():
    charged: list[int] = []
    with Disk(charge=charged.append) as disk:
        one, two = connect(disk, "app.db"), connect(disk, "app.db")
        one.execute("BEGIN EXCLUSIVE")
        two.set_busy_timeout(3_600_000)
        with pytest.raises(apsw.BusyError):
            two.execute("BEGIN EXCLUSIVE")
        assert 3_500 * 10**9 < sum(charged) <= 3_600 * 10**9
        one.close()
        two.close()


def test_a_write_ahead_log_belongs_to_one_connection():
    with Disk() as disk:
        one = connect(disk, "app.db", wal=True)
        one.execute("CREATE TABLE t (x)")
        with pytest.raises(apsw.BusyError):
            connect(disk, "app.db", wal=True)
        one.close()
        with contextlib.closing(connect(disk, "app.db")) as two, pytest.raises(apsw.CantOpenError):
            two.execute("SELECT * FROM t")
        with contextlib.closing(connect(disk, "app.db", wal=True)) as three:
            assert [] == three.execute("SELECT * FROM t").fetchall()


def test_without_exclusive_locking_sqlite_declines_a_write_ahead_log():
    with Disk() as disk:
        connection = connect(disk, "app.db")
        assert "delete" == connection.pragma("journal_mode", "wal")
        connection.close()


@pytest.mark.parametrize("journal", DURABLE)
def test_a_connection_of_a_crashed_host_changes_nothing_any_more(journal):
    with Disk() as disk:
        old = opened(disk, journal, DURABLE[journal])
        old.execute("CREATE TABLE t (x)")
        old.execute("BEGIN; INSERT INTO t VALUES (1)")
        disk.crash("kept")
        before = {name: disk.read_bytes(name) for name in disk.listdir()}
        with pytest.raises(apsw.Error):
            old.execute("COMMIT")
        with pytest.raises(apsw.Error):
            old.execute("INSERT INTO t VALUES (1)")
        with contextlib.suppress(apsw.IOError):
            old.close(force=True)  # which raises where closing would write
        assert before == {name: disk.read_bytes(name) for name in disk.listdir()}
        new = opened(disk, journal, DURABLE[journal])
        assert 0 == new.execute("SELECT count(*) FROM t").get
        new.close()


def test_a_crashed_host_reaches_the_files_of_the_next_one_by_no_other_way():
    with Disk() as disk:
        a_table(disk)
        old, old_vfs = connect(disk, ":memory:"), disk.vfs()
        disk.crash("kept")
        new = connect(disk, "app.db")
        with pytest.raises(apsw.Error):
            old.execute("ATTACH '/app.db' AS other; INSERT INTO other.t VALUES (2)")
        with pytest.raises(apsw.IOError):
            old_vfs.xDelete("/app.db", False)
        with pytest.raises(apsw.CantOpenError):
            old_vfs.xOpen("/app.db", [apsw.SQLITE_OPEN_MAIN_DB, 0])
        assert [(1,)] == new.execute("SELECT x FROM t").fetchall()
        old.close()
        new.close()


def test_temporary_tables_and_big_sorts_leave_nothing_in_a_crash():
    with Disk() as disk:
        connection = connect(disk, "app.db")
        connection.execute("PRAGMA temp_store = file; PRAGMA cache_size = 2; PRAGMA temp.cache_size = 2")
        rows = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 3000) SELECT i FROM n"
        asked = []
        disk.decide = lambda operation, path: asked.append((operation, path))
        unsynced_count = disk.unsynced_count
        connection.execute(f"CREATE TEMP TABLE t AS {rows}")
        assert (3_000,) == connection.execute("SELECT i FROM t ORDER BY i DESC").fetchone()
        assert ("write", "(temporary file)") in asked
        assert (["app.db"], 0, unsynced_count) == (disk.listdir(), disk.used_bytes, disk.unsynced_count)
        disk.crash("kept")
        assert 0 == disk.used_bytes


# --- nothing from outside, nothing left behind -----------------------------------------------------


def a_life(seed=0, wall_ns=EPOCH_NS):
    with Disk(seed=seed, wall_ns=lambda: wall_ns) as disk:
        random = []
        for _ in range(2):
            connection = opened(disk, "persist", "full")
            connection.execute("CREATE TABLE IF NOT EXISTS t (x, y); INSERT INTO t VALUES (random(), datetime('now'))")
            random += connection.execute("SELECT * FROM t").fetchall()
            connection.close()
        return random, {name: disk.read_bytes(name) for name in disk.listdir()}


def test_the_same_life_twice_leaves_the_same_bytes_and_another_seed_others():
    assert a_life() == a_life()
    assert a_life()[0] != a_life(seed=1)[0]


def test_neither_hash_seed_nor_process_changes_what_a_crash_leaves():
    program = """
from hashlib import sha256
from tinyllm.testing.disk.disk import Disk
from tinyllm.testing.disk.sqlite import connect
with Disk() as disk:
    connection = connect(disk, "app.db")
    connection.execute("PRAGMA synchronous = off; PRAGMA journal_mode = persist; CREATE TABLE t (x)").fetchall()
    for number in range(5):
        connection.execute("INSERT INTO t VALUES (random() || hex(randomblob(3000)))")
    disk.crash("reordered", 5)
    print([(name, disk.size_bytes(name), sha256(disk.read_bytes(name)).hexdigest()) for name in disk.listdir()])
"""
    told = {
        subprocess.run(
            [sys.executable, "-P", "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "1")
    }
    assert 1 == len(told)
    assert "app.db-journal" in told.pop()


def test_time_is_that_of_the_disk():
    assert "2026-01-01 00:00:00" == a_life()[0][0][1]
    assert "1970-01-01 00:00:01" == a_life(wall_ns=1_999_999_999)[0][0][1]


def test_ten_thousand_disks_leave_neither_a_name_nor_an_object():
    def live_and_die():
        with Disk() as disk:
            connection = connect(disk, "app.db")
            disk.crash("kept")
            connection.close()
            connect(disk, "app.db").close()

    def objects():
        gc.collect()
        return Counter(type(thing).__name__ for thing in gc.get_objects())

    live_and_die()
    names, before = apsw.vfs_names(), objects()
    for _ in range(10_000):
        live_and_die()
    grown = objects() - before
    assert names == apsw.vfs_names()
    # One object of a life that stays would make 10,000; the caches of Python may hold a few more than before.
    assert {} == {name: number for name, number in grown.items() if number >= 1_000}


def test_the_disk_works_without_apsw_and_sqlite_says_how_to_get_it():
    program = """
import sys
sys.modules["apsw"] = None
from tinyllm.testing.disk.disk import Disk
disk = Disk()
disk.write_bytes("a", b"x")
try:
    disk.vfs()
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'tinyllm[testing]'" in done.stdout
