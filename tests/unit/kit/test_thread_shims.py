"""Libraries that start threads run inline in the world, and other threads are refused."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import queue
import sqlite3
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import aiosqlite
import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from aiosqlite import core as aiosqlite_core
from anyio._backends._asyncio import AsyncIOBackend
from hypothesis import given, settings

from tinyllm.testing.apps.thread_shims import ThreadShims
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.loop_errors import FencedError
from tinyllm_strategies.schedules import schedules

pytestmark = pytest.mark.unit

THREADED = (threading.Thread, threading.Condition, AsyncIOBackend, aiosqlite_core)
WHO = contextvars.ContextVar("who", default="nobody")


def live(program, schedule=()):
    loop = SimulatedLoop(schedule)
    with ThreadShims():
        try:
            return loop.run_until_complete(program())
        finally:
            loop.close()
            assert [] == loop.unhandled


# --- threads ---------------------------------------------------------------------------------------------


def test_a_thread_is_refused_with_what_to_use_instead():
    async def program():
        threading.Thread(target=live).start()

    with pytest.raises(FencedError, match=r"a thread of .*test_thread_shims .*; use asyncio.to_thread"):
        live(program)


def test_a_pool_of_threads_works_through_the_loop_and_not_by_itself():
    async def program():
        with ThreadPoolExecutor() as pool:
            assert 3 == await asyncio.get_running_loop().run_in_executor(pool, len, "abc")
            with pytest.raises(FencedError, match=r"a thread of concurrent\.futures"):
                pool.submit(len, "abc")

    live(program)


@pytest.mark.parametrize(
    "wait",
    [lambda: threading.Event().wait(), lambda: Future().result(), lambda: queue.Queue().get()],
    ids=["event", "future", "queue"],
)
def test_waiting_for_another_thread_is_refused_and_does_not_hang(wait):
    async def program():
        await asyncio.to_thread(wait)

    with pytest.raises(FencedError, match=r"waiting for another thread leaves .*; await an asyncio\.Event"):
        live(program)


def test_waiting_for_another_thread_with_a_timeout_takes_its_time_in_vain(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)

    async def program():
        return await asyncio.to_thread(threading.Event().wait, 2.5)

    assert live(program) is False
    assert [2.5] == slept


def test_what_another_thread_has_done_already_is_not_waited_for():
    async def program():
        done: Future[str] = Future()
        done.set_result("there")
        return await asyncio.to_thread(done.result)

    assert "there" == live(program)


def _start_and_join():
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def test_other_threads_of_the_process_may_start_threads():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with ThreadShims():
            done = pool.submit(_start_and_join)
            while not done.done():
                pass  # this thread may not wait for another one
            done.result()


def test_a_library_that_comes_too_late_is_named(monkeypatch):
    async def with_anyio():
        await anyio.to_thread.run_sync(int)

    async def with_aiosqlite():
        await aiosqlite.connect(":memory:")

    for name, program in (("anyio", with_anyio), ("aiosqlite", with_aiosqlite)):
        with monkeypatch.context() as patch:
            patch.delitem(sys.modules, name)
            with pytest.raises(FencedError, match=f"import {name} before the world"):
                live(program)


def test_nothing_of_it_stays_behind():
    before = [dict(vars(owner)) for owner in THREADED]
    with pytest.raises(ZeroDivisionError), ThreadShims():
        raise ZeroDivisionError
    assert before == [dict(vars(owner)) for owner in THREADED]
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


# --- anyio -----------------------------------------------------------------------------------------------


def test_work_that_anyio_gives_to_a_thread_runs_inline_in_its_context():
    def work(number):
        return number + 1, WHO.get(), threading.get_ident()

    async def program():
        WHO.set("caller")
        return await anyio.to_thread.run_sync(work, 1)

    assert (2, "caller", threading.get_ident()) == live(program)


def test_what_such_work_raises_reaches_who_awaits_it():
    def work():
        raise LookupError("gone")

    async def program():
        await anyio.to_thread.run_sync(work)

    with pytest.raises(LookupError, match="gone"):
        live(program)


def test_such_work_changes_no_context_but_its_own():
    async def program():
        await anyio.to_thread.run_sync(WHO.set, "work")
        return WHO.get()

    assert "nobody" == live(program)


def test_a_limiter_of_anyio_is_respected():
    async def program():
        limiter = anyio.CapacityLimiter(1)
        await limiter.acquire_on_behalf_of("somebody else")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await anyio.to_thread.run_sync(int, limiter=limiter)
        limiter.release_on_behalf_of("somebody else")
        return await anyio.to_thread.run_sync(int, limiter=limiter)

    assert 0 == live(program)


def test_work_waits_for_its_end_unless_it_may_be_abandoned():
    def work(loop):
        loop.job_cost_ns += 10_000_000_000  # as time.sleep(10) does in a world

    async def cancelled(abandon_on_cancel):
        loop = asyncio.get_running_loop()
        with anyio.move_on_after(1):
            await anyio.to_thread.run_sync(work, loop, abandon_on_cancel=abandon_on_cancel)
        return loop.time()

    assert 1.0 == live(lambda: cancelled(True))
    assert 10.0 == live(lambda: cancelled(False))


@pytest.mark.parametrize("abandon_on_cancel", [False, True])
def test_such_work_can_ask_whether_it_is_cancelled(abandon_on_cancel):
    seen = []

    def work(scope):
        anyio.from_thread.check_cancelled()
        anyio.from_thread.run_sync(scope.cancel)
        try:
            anyio.from_thread.check_cancelled()
        except asyncio.CancelledError:
            seen.append("cancelled")

    async def program():
        with anyio.CancelScope() as scope:
            await anyio.to_thread.run_sync(work, scope, abandon_on_cancel=abandon_on_cancel)

    live(program)
    assert ["cancelled"] == seen


def test_such_work_may_call_functions_of_the_loop_but_run_nothing_on_it():
    async def program():
        loop = asyncio.get_running_loop()
        assert loop is await anyio.to_thread.run_sync(anyio.from_thread.run_sync, asyncio.get_running_loop)
        with pytest.raises(FencedError, match=r"anyio\.from_thread\.run of sleep .*; let the coroutine that started"):
            await anyio.to_thread.run_sync(anyio.from_thread.run, asyncio.sleep, 1)

    live(program)


# --- aiosqlite -------------------------------------------------------------------------------------------


def test_a_database_in_memory_works_inline():
    async def program():
        async with aiosqlite.connect(":memory:") as database:
            await database.execute("create table words (word text)")
            await database.executemany("insert into words values (?)", [("one",), ("two",)])
            await database.commit()
            async with database.execute("select word from words order by word desc") as cursor:
                assert ["two", "one"] == [row[0] async for row in cursor]
            cursor = await database.execute("select count(*) from words")
            assert (2,) == await cursor.fetchone()
            await cursor.close()

    live(program)


def test_a_file_keeps_what_was_committed_and_only_that(tmp_path):
    path = tmp_path / "words.db"

    async def program():
        async with aiosqlite.connect(path) as database:
            await database.execute("create table words (word text)")
            await database.execute("insert into words values ('kept')")
            await database.commit()
            await database.execute("insert into words values ('taken back')")
            await database.rollback()
            await database.execute("insert into words values ('not committed')")
        async with aiosqlite.connect(path) as database:
            return await database.execute_fetchall("select word from words")

    assert [("kept",)] == live(program)


def test_errors_of_the_database_reach_who_awaits():
    async def program():
        with pytest.raises(sqlite3.OperationalError, match="unable to open"):
            await aiosqlite.connect("/no/such/folder/words.db")
        async with aiosqlite.connect(":memory:") as database:
            with pytest.raises(sqlite3.OperationalError, match="no such table"):
                await database.execute("select * from nowhere")
            assert [(1,)] == list(await database.execute_fetchall("select 1"))
        with pytest.raises(ValueError, match="no active connection"):
            await database.execute("select 1")

    live(program)


@given(schedule=schedules())
@settings(max_examples=30)
def test_statements_of_one_connection_run_in_the_order_in_which_they_were_given(schedule):
    given_order = []

    async def insert(database, number):
        given_order.append((number,))
        await database.execute("insert into numbers values (?)", (number,))

    async def program():
        async with aiosqlite.connect(":memory:") as database:
            await database.execute("create table numbers (number integer)")
            await asyncio.gather(*(insert(database, number) for number in range(5)))
            return await database.execute_fetchall("select number from numbers order by rowid")

    assert live(program, schedule) == given_order


def test_other_tasks_run_between_two_statements():
    async def program():
        steps = 0

        async def count():
            nonlocal steps
            while True:
                steps += 1
                await asyncio.sleep(0)

        counter = asyncio.create_task(count())
        async with aiosqlite.connect(":memory:") as database:
            for _ in range(5):
                await database.execute("select 1")
        counter.cancel()
        return steps

    assert live(program) > 5


def test_a_statement_whose_caller_has_left_is_done_all_the_same():
    async def program():
        async with aiosqlite.connect(":memory:") as database:
            await database.execute("create table words (word text)")
            insert = asyncio.create_task(database.execute("insert into words values ('done')"))
            await asyncio.sleep(0)
            insert.cancel()
            found = await database.execute_fetchall("select word from words")
        gc.collect()  # a job that failed unseen tells the loop now
        return found

    assert [("done",)] == live(program)


def test_a_connection_that_nobody_closed_is_closed_when_it_vanishes():
    async def program():
        database = await aiosqlite.connect(":memory:")
        inner = database._conn
        with pytest.warns(ResourceWarning, match="deleted before being closed"):
            del database
        await asyncio.sleep(1)
        with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
            inner.execute("select 1")

    live(program)


@pytest.mark.parametrize("other_loop", [False, True])
def test_a_connection_that_outlives_its_loop_is_closed_when_it_vanishes(other_loop):
    async def program():
        return await aiosqlite.connect(":memory:")

    database = live(program)
    inner = database._conn
    # Of the loop that aiosqlite finds, if any, it would have a future.
    with contextlib.closing(asyncio.new_event_loop()) as loop:
        asyncio.set_event_loop(loop if other_loop else None)
        with pytest.warns(ResourceWarning, match="deleted before being closed"):
            del database
        asyncio.set_event_loop(None)
    with pytest.raises(sqlite3.ProgrammingError, match="closed database"):
        inner.execute("select 1")
