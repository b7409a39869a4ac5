"""Faults of disks in a world: an operation fails once, SQLite survives what a crash leaves, and all of it heals."""

from __future__ import annotations

import asyncio
import errno

import apsw
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import a_share
from tinyllm.testing.disk.sqlite import connect
from tinyllm.testing.faults import At, Crash, DiskError, LostWrites, ReorderedWrites, TornWrite
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.world import World
from tinyllm_strategies import worlds

pytestmark = pytest.mark.chaos

OPERATIONS = {
    "read": lambda file: file.read_at(0, 1),
    "write": lambda file: file.write_at(0, b"1"),
    "sync": lambda file: file.sync(),
}


@pytest.mark.parametrize("point", OPERATIONS)
@pytest.mark.parametrize("name", ["", " db"])
def test_a_disk_error_strikes_one_operation_and_the_next_is_fine(point, name):
    plan = WorldPlan(strikes=(At(point=f"{point}{name}", number=1, fault=DiskError()),))
    operate = OPERATIONS[point]
    with World(plan) as world:
        world.host("db").disk.open("/a", "wb").close()
        file = world.host("db").disk.open_file("/a")
        operate(file)
        with pytest.raises(OSError, match="Input/output error") as failed:
            operate(file)
        assert errno.EIO == failed.value.errno
        operate(file)
        assert [f"{point}{name}"] == [strike.point for strike in world.points.struck]


def test_after_healing_no_operation_fails():
    plan = WorldPlan(strikes=tuple(At(point="read", number=number, fault=DiskError()) for number in range(5)))
    with World(plan) as world:
        disk = world.host("db").disk
        disk.write_bytes("/a", b"1")
        with pytest.raises(OSError, match="Input/output error"):
            disk.read_bytes("/a")
        world.heal()
        assert b"1" == disk.read_bytes("/a")


def test_a_disk_error_on_another_host_does_not_strike():
    with World(WorldPlan(strikes=(At(point="write other", fault=DiskError()),))) as world:
        world.host("db").disk.write_bytes("/a", b"1")
        with pytest.raises(OSError, match="Input/output error"):
            world.host("other").disk.write_bytes("/a", b"1")


# --- SQLite on the disk of a host ------------------------------------------------------------------------


def counter(world, acknowledged):
    """A service of the host `db` that counts in a database, and notes each number once its commit is acknowledged."""

    async def program():
        database = connect(world.host("db").disk, "/app.db", wal=True)
        try:
            database.execute("PRAGMA synchronous=FULL").fetchall()
            database.execute("CREATE TABLE IF NOT EXISTS counted(number INTEGER PRIMARY KEY, twice INTEGER)")
            while True:
                await asyncio.sleep(0.001)
                number = 1 + len(database.execute("SELECT number FROM counted").fetchall())
                database.execute("INSERT INTO counted VALUES (?, ?)", (number, 2 * number))
                acknowledged.append(number)
        except (apsw.IOError, apsw.FullError):
            # What a service does that cannot write: it ends, and whoever watches it starts it again.
            asyncio.get_running_loop().call_later(0.05, world.host("db").restart)
        finally:
            database.close()

    return program


def counted(world):
    disk = world.host("db").disk
    if not disk.exists("/app.db"):
        return []
    database = connect(disk, "/app.db", wal=True)
    try:
        assert [("ok",)] == database.execute("PRAGMA integrity_check").fetchall()
        if database.table_exists(None, "counted"):
            return database.execute("SELECT number, twice FROM counted ORDER BY number").fetchall()
        return []
    finally:
        database.close()


CRASHES = st.builds(
    lambda kind, start_ms, choice: kind(host="db", start_ms=start_ms, duration_ms=20, **choice),
    st.sampled_from((Crash,)),
    st.integers(1, 60),
    st.just({}),
) | st.builds(
    lambda kind, start_ms, choice: kind(host="db", start_ms=start_ms, duration_ms=20, choice=choice),
    st.sampled_from((LostWrites, TornWrite, ReorderedWrites)),
    st.integers(1, 60),
    st.integers(0, 255),
)


@a_share(5)
@given(crashes=st.lists(CRASHES, min_size=1, max_size=3), drawn=worlds(families=("disk",), hosts=("db",)))
def test_nothing_that_sqlite_acknowledged_is_lost_whatever_happens_to_its_host(crashes, drawn):
    plan = WorldPlan(schedule=drawn.schedule, strikes=drawn.strikes, lasting=tuple(crashes), seed=drawn.seed)
    acknowledged: list = []
    with World(plan) as world:
        world.host("db").start(counter(world, acknowledged))
        world.advance(100)
        world.heal()
        world.advance(10)
        world.host("db").pause()
        world.host("db").crash()
        rows = counted(world)
    assert [(number, 2 * number) for number in range(1, len(rows) + 1)] == rows
    assert len(rows) >= max(acknowledged, default=0)


def test_the_service_counts_and_starts_again_where_it_was():
    acknowledged: list = []
    with World(WorldPlan(lasting=(Crash(host="db", start_ms=30, duration_ms=20),))) as world:
        world.host("db").start(counter(world, acknowledged))
        world.advance(100)
        world.host("db").crash()
        assert list(range(1, 80)) == acknowledged
        assert 79 == len(counted(world))


def test_a_disk_that_lies_about_sync_loses_what_was_acknowledged():
    acknowledged: list = []
    with World(WorldPlan()) as world:
        world.host("db").disk.lies_about_sync = True
        world.host("db").start(counter(world, acknowledged))
        world.advance(50)
        world.host("db").crash()
        assert len(counted(world)) < len(acknowledged)
