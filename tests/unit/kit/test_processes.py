"""Processes: what belongs to a host goes down with it, stands still with it, and takes turns on it."""

from __future__ import annotations

import asyncio
import gc

import pytest

from tinyllm.testing.faults import HOME
from tinyllm.testing.loop import SimulatedLoop, StuckError
from tinyllm.testing.processes import Governor, Host, current_host


@pytest.fixture
def loop():
    loop = SimulatedLoop()
    yield loop
    loop.close()
    assert [] == loop.unhandled


@pytest.fixture
def db(loop):
    return Host("db", 1, loop, Governor(loop))


def test_a_crash_runs_no_finally_before_the_loop_is_closed(loop, db):
    log = []

    async def program():
        try:
            await asyncio.sleep(5)
        finally:
            log.append("finally")

    async def main():
        db.start(program)
        await asyncio.sleep(1)
        db.crash()
        await asyncio.sleep(10)

    loop.run_until_complete(main())
    assert [] == log

    loop.close()
    assert ["finally"] == log


def test_after_a_crash_nothing_of_the_process_runs_whoever_started_it(loop, db):
    log = []

    async def child():
        await asyncio.sleep(2)
        log.append("child")

    async def generates():
        try:
            yield 1
            yield 2
        finally:
            log.append("generator")

    async def program():
        running = asyncio.get_running_loop()
        running.call_later(2, log.append, "timer")
        tasks = [asyncio.create_task(child()), asyncio.create_task(asyncio.to_thread(log.append, "job"))]
        async for _ in generates():
            await asyncio.gather(*tasks)

    async def main():
        db.start(program)
        await asyncio.sleep(0)
        db.crash()
        await asyncio.sleep(10)

    loop.run_until_complete(main())
    assert [] == log
    assert () == loop.pending_tasks()


def test_what_is_left_of_a_dead_process_cannot_reach_the_world_when_it_is_closed(loop, db):
    async def program():
        try:
            await asyncio.sleep(5)
        finally:
            asyncio.get_running_loop().call_soon(print)

    async def main():
        db.start(program)
        await asyncio.sleep(1)
        db.crash()

    loop.run_until_complete(main())
    loop.close()
    assert [] == loop.unhandled


def test_a_restart_starts_the_programs_again_as_a_new_process(loop, db):
    log = []

    async def program(word):
        log.append((word, db.process.number, current_host()))
        await asyncio.Event().wait()

    async def main():
        db.start(program, "hello")
        await asyncio.sleep(1)
        db.crash()
        await asyncio.sleep(1)
        db.restart()
        await asyncio.sleep(1)
        db.restart()
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert [("hello", 1, "db"), ("hello", 2, "db"), ("hello", 3, "db")] == log


def test_a_program_that_is_forgotten_does_not_start_again(loop, db):
    starts = []

    async def program():
        starts.append(1)

    async def main():
        db.start(program)
        await asyncio.sleep(1)
        db.forget(program)
        db.restart()
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert [1] == starts


def test_who_watches_is_told_of_a_crash_once(loop, db):
    told = []
    db.on_crash.append(lambda process: told.append((process.number, process.dead)))
    db.crash()
    db.crash()
    db.restart()
    db.crash()
    assert [(1, True), (2, True)] == told


def test_a_paused_host_does_afterwards_what_came_meanwhile_in_its_order(loop, db):
    log = []

    async def program(name):
        for number in range(2):
            await asyncio.sleep(1)
            log.append((name, number, loop.time()))

    async def main():
        db.start(program, "a")
        db.start(program, "b")
        await asyncio.sleep(0.5)
        db.pause()
        db.pause()
        await asyncio.sleep(9.5)
        assert not db.up
        db.resume()
        db.resume()
        await asyncio.sleep(5)

    loop.run_until_complete(main())
    assert [("a", 0, 10.0), ("b", 0, 10.0), ("a", 1, 11.0), ("b", 1, 11.0)] == log


def test_a_crash_in_a_pause_is_a_crash(loop, db):
    log = []

    async def program():
        await asyncio.sleep(1)
        log.append("ran")

    async def main():
        db.start(program)
        await asyncio.sleep(0.5)
        db.pause()
        await asyncio.sleep(1)
        db.crash()
        db.resume()
        await asyncio.sleep(5)

    loop.run_until_complete(main())
    assert [] == log


def test_steps_of_a_saturated_host_take_their_time_and_turns_and_those_of_others_do_not(loop, db):
    log = []

    async def program(name):
        for _ in range(2):
            log.append((name, round(loop.time(), 3)))
            await asyncio.sleep(0)

    async def main():
        db.saturate(100_000_000)
        db.start(program, "a")
        db.start(program, "b")
        await asyncio.sleep(0.05)
        log.append(("free", loop.time()))
        await asyncio.sleep(1)
        db.saturate(0)
        db.start(program, "c")
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert [("a", 0), ("free", 0.05), ("b", 0.1), ("a", 0.2), ("b", 0.3), ("c", 1.05), ("c", 1.05)] == log


def test_a_call_that_blocks_keeps_all_tasks_and_timers_of_the_host_waiting(loop, db):
    log = []

    async def blocks():
        db.charge(2_000_000_000)
        log.append(("goes on in its step", loop.time()))
        await asyncio.sleep(0)
        log.append(("blocked", loop.time()))

    async def other():
        asyncio.get_running_loop().call_later(1, lambda: log.append(("timer", loop.time())))
        await asyncio.sleep(0)
        log.append(("other", loop.time()))

    async def main():
        db.start(other)
        db.start(blocks)
        await asyncio.sleep(5)

    loop.run_until_complete(main())
    assert [("goes on in its step", 2.0), ("other", 2.0), ("blocked", 2.0), ("timer", 2.0)] == log


def test_after_a_call_that_blocks_a_sleep_counts_from_its_end(loop, db):
    log = []

    async def blocks():
        db.charge(2_000_000_000)
        db.charge(1_000_000_000)
        await asyncio.sleep(1)
        log.append(loop.time())

    async def main():
        db.start(blocks)
        await asyncio.sleep(1)
        log.append(loop.time())
        await asyncio.sleep(9)

    loop.run_until_complete(main())
    assert [1.0, 4.0] == log


def test_in_a_job_a_call_that_blocks_delays_its_answer_only(loop, db):
    log = []

    def job():
        db.charge(2_000_000_000)
        return "done"

    async def waits():
        log.append((await asyncio.to_thread(job), loop.time()))

    async def other():
        await asyncio.sleep(1)
        log.append(("other", loop.time()))

    async def main():
        db.start(waits)
        db.start(other)
        await asyncio.sleep(5)

    loop.run_until_complete(main())
    assert [("other", 1.0), ("done", 2.0)] == log


def test_a_program_of_a_host_that_is_down_starts_with_it(loop, db):
    starts = []

    async def program():
        starts.append(loop.time())

    async def main():
        db.crash()
        assert db.start(program) is None
        await asyncio.sleep(1)
        db.restart()
        await asyncio.sleep(1)

    loop.run_until_complete(main())
    assert [1.0] == starts


def test_a_coroutine_is_no_program_because_it_cannot_start_again(db):
    async def program():
        pass

    with pytest.raises(TypeError, match="it may have to start again"):
        db.start(program())


def test_a_client_made_for_a_host_belongs_to_it(db):
    assert HOME == current_host()
    assert "db" == db.run(current_host)
    assert HOME == current_host()


def test_a_task_of_a_dead_process_is_cancelled_without_running(loop, db):
    log = []

    async def program():
        try:
            await asyncio.Event().wait()
        finally:
            log.append("finally")

    async def main():
        task = db.start(program)
        await asyncio.sleep(1)
        db.crash()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(task, 5)
        del task
        gc.collect()
        return loop.time()

    assert 6 == loop.run_until_complete(main())
    assert [] == log


def test_a_run_that_waits_for_the_dead_is_stuck_and_does_not_name_them(loop, db):
    async def program():
        await asyncio.Event().wait()

    async def main():
        task = db.start(program)
        await asyncio.sleep(1)
        db.crash()
        await task

    with pytest.raises(StuckError) as stuck:
        loop.run_until_complete(main())
    assert 1 == len(stuck.value.waiting)


def test_the_loop_asks_nobody_while_all_hosts_are_simply_up(loop, db):
    asked = [loop.governor is not None]
    for change in (db.pause, db.resume, lambda: db.saturate(1), lambda: db.saturate(0)):
        change()
        asked.append(loop.governor is not None)
    assert [False, True, False, True, False] == asked
