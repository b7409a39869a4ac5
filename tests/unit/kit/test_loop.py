"""The simulated loop: asyncio unchanged, no real time, and a schedule as the only freedom."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import os
import selectors
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.testing import loop as loop_module
from tinyllm.testing.loop import (
    OWNER,
    FencedError,
    LivelockError,
    SimulatedLoop,
    SimulatedTask,
    SimulationError,
    StuckError,
    run,
)
from tinyllm.testing.schedule import Hold, decode

pytestmark = pytest.mark.unit

Program = Callable[[list[Any]], Coroutine[Any, Any, Any]]
quiet = settings(deadline=None, max_examples=50)


# --- the loop of asyncio, with its clock replaced, to compare with ---------------------------------


class JumpingSelector(selectors.SelectSelector):
    """Waits by moving the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        self.now += timeout or 0.0
        return super().select(0)


class StockLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)

    def time(self) -> float:
        return self.jumping.now


def trace(program: Program, make_loop: Callable[[], asyncio.AbstractEventLoop]) -> list[Any]:
    """What the program logs, also while its loop is closed."""
    log: list[Any] = []
    loop = make_loop()
    if isinstance(loop, SimulatedLoop):
        log.append(("result", loop.run_until_complete(program(log))))
        loop.close()
    else:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            log.append(("result", runner.run(program(log))))
    return log


async def say(log: list[Any], name: str, delay: float, times: int = 2) -> str:
    try:
        for turn in range(times):
            log.append((name, turn, round(asyncio.get_running_loop().time(), 6)))
            await asyncio.sleep(delay)
    except asyncio.CancelledError:
        log.append((name, "cancelled"))
        raise
    log.append((name, "done"))
    return name


def name_of_current_task() -> str:
    task = asyncio.current_task()
    assert task is not None
    return task.get_name()


async def gathers(log):
    return await asyncio.gather(say(log, "a", 0), say(log, "b", 1), say(log, "c", 0, 4), say(log, "d", 1))


async def aborts_a_task_group(log):
    async def fails():
        await asyncio.sleep(1)
        log.append("raise")
        raise ValueError("one fails")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(say(log, "sibling", 5))
            group.create_task(fails())
    except* ValueError as errors:
        log.append(repr(errors.exceptions))


async def passes_through_a_queue(log):
    queue: asyncio.Queue[int | None] = asyncio.Queue(maxsize=2)

    async def produce():
        for number in range(5):
            await queue.put(number)
            log.append(("put", number))
        await queue.put(None)

    async def consume(name):
        while (item := await queue.get()) is not None:
            log.append((name, item))
            await asyncio.sleep(0)
        await queue.put(None)

    await asyncio.gather(consume("x"), produce(), consume("y"))


async def shares_a_lock_and_a_semaphore(log):
    lock, semaphore = asyncio.Lock(), asyncio.Semaphore(2)

    async def use(name):
        async with semaphore:
            log.append((name, "semaphore"))
            async with lock:
                log.append((name, "lock"))
                await asyncio.sleep(0.5)
        log.append((name, "free"))

    await asyncio.gather(*(use(name) for name in "abcde"))


async def runs_into_timeouts(log):
    for delay in (0, 0.5, 1, 2):
        try:
            async with asyncio.timeout(1):
                await say(log, f"timeout {delay}", delay, 1)
        except TimeoutError:
            log.append("too late")
        try:
            await asyncio.wait_for(say(log, f"wait_for {delay}", delay, 1), 1)
        except TimeoutError:
            log.append("too late")


async def streams_from_generators(log):
    async def numbers(name, delay):
        try:
            for number in range(3):
                yield number
                await asyncio.sleep(delay)
        finally:
            log.append((name, "closed"))

    async def read(name, delay, stop_at):
        async for number in numbers(name, delay):
            log.append((name, number))
            if number == stop_at:
                break
        log.append((name, "read"))
        await asyncio.sleep(0)

    await asyncio.gather(read("a", 0, 9), read("b", 1, 1), read("c", 0, 1))
    await asyncio.sleep(1)


async def waits_for_the_first(log):
    tasks = [asyncio.create_task(say(log, name, delay, 1)) for name, delay in (("a", 2), ("b", 1), ("c", 3))]
    done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    log.append([task.result() for task in done])
    log.append(len(pending))
    for task in tasks:
        task.cancel()
    return await asyncio.gather(*tasks[1:], return_exceptions=True) and None


async def takes_as_completed(log):
    tasks = [asyncio.create_task(say(log, name, delay, 1)) for name, delay in (("a", 2), ("b", 1), ("c", 3))]
    for next_one in asyncio.as_completed(tasks):
        log.append(await next_one)


async def sets_context_variables(log):
    variable = contextvars.ContextVar("variable", default="outer")

    async def inner(value):
        variable.set(value)
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(lambda: log.append(("callback", variable.get())))
        await asyncio.sleep(0)
        log.append(variable.get())

    await asyncio.gather(inner("a"), inner("b"))
    log.append(variable.get())


async def mixes_callbacks_and_timers_of_now(log):
    loop = asyncio.get_running_loop()
    loop.call_later(0, log.append, "timer of now")
    loop.call_soon(log.append, "soon")
    loop.call_soon(loop.call_later, 0, log.append, "timer of soon")
    loop.call_soon(loop.call_soon, log.append, "soon of soon")
    loop.call_at(loop.time() - 1, log.append, "timer of the past")
    loop.call_later(0.5, log.append, "cancelled").cancel()
    await asyncio.sleep(0)
    log.append("awake")
    await asyncio.sleep(1)


async def leaves_when_told_and_lets_the_batch_finish(log):
    loop = asyncio.get_running_loop()
    loop.call_soon(log.append, "one")
    loop.call_soon(loop.call_soon, log.append, "at close")
    return "result"


async def leaves_tasks_and_generators_behind(log):
    async def numbers():
        try:
            yield 1
        finally:
            log.append("generator closed")

    task = asyncio.create_task(say(log, "left", 5))
    task.kept = kept = numbers()
    await anext(kept)
    async for _ in numbers():
        break


PROGRAMS: list[Program] = [
    gathers,
    aborts_a_task_group,
    passes_through_a_queue,
    shares_a_lock_and_a_semaphore,
    runs_into_timeouts,
    streams_from_generators,
    waits_for_the_first,
    takes_as_completed,
    sets_context_variables,
    mixes_callbacks_and_timers_of_now,
    leaves_when_told_and_lets_the_batch_finish,
    leaves_tasks_and_generators_behind,
]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_without_a_schedule_a_program_runs_in_the_order_of_asyncio(program):
    assert trace(program, StockLoop) == trace(program, SimulatedLoop)


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@quiet
@given(data=st.binary(max_size=16), external_only=st.booleans())
def test_the_same_schedule_gives_the_same_trace(program, data, external_only):
    def make():
        return SimulatedLoop(decode(data), external_only=external_only)

    assert trace(program, make) == trace(program, make)


# --- time --------------------------------------------------------------------------------------------


def test_an_hour_of_sleep_takes_an_hour_of_virtual_time_and_few_steps():
    loop = SimulatedLoop()
    loop.run_until_complete(asyncio.sleep(3600))

    assert loop.time_ns == 3600 * 10**9
    assert loop.time() == 3600.0
    assert loop.steps < 10
    loop.close()


def test_time_does_not_drift():
    loop = SimulatedLoop()

    async def sleeps():
        for _ in range(1000):
            await asyncio.sleep(0.001)

    loop.run_until_complete(sleeps())
    assert loop.time_ns == 10**9
    loop.close()


def test_a_timer_at_infinity_never_fires_and_keeps_nobody_waiting():
    with pytest.raises(StuckError):
        run(asyncio.sleep(float("inf")))


def test_cancelled_timers_neither_move_the_clock_nor_pile_up():
    loop = SimulatedLoop()
    kept = loop.call_later(1, lambda: None)
    for _ in range(10_000):
        loop.call_later(100, lambda: None).cancel()

    assert loop.pending_timers() == (kept,)
    assert len(loop._timers) < 200
    assert loop.run_until_idle()
    assert loop.time_ns == 10**9
    loop.close()


def test_timers_run_in_order_after_many_were_cancelled():
    loop = SimulatedLoop()
    seen: list[int] = []
    timers = [loop.call_later(number * 37 % 1000, seen.append, number * 37 % 1000) for number in range(1000)]
    for timer in timers[:900]:
        timer.cancel()
    loop.run_until_idle()

    assert seen == sorted(number * 37 % 1000 for number in range(900, 1000))
    assert loop._cancelled_timers == 0
    loop.close()


def test_a_timer_of_the_past_runs_now_and_does_not_turn_the_clock_back():
    loop = SimulatedLoop()
    loop.advance(10**9)
    seen: list[int] = []
    loop.call_at(0.5, lambda: seen.append(loop.time_ns))
    loop.run_until_idle()

    assert seen == [10**9]
    loop.close()


@given(st.integers(0, 10**12), st.sampled_from((1e-9, 1e-7, 0.1, 0.3, 0.7, 1.1, 2.2, 1e6)))
def test_whoever_sets_a_timer_until_the_clock_has_come_there_is_done_in_a_nanosecond(start_ns, delay):
    loop = SimulatedLoop(max_steps=10)
    loop.advance(start_ns)
    deadline = loop.time() + delay
    done: list[int] = []

    def look():
        if loop.time() >= deadline:
            done.append(loop.time_ns)
        else:
            loop.call_at(deadline, look)

    loop.call_at(deadline, look)
    assert loop.run_until_idle()
    loop.close()

    # Moments that differ by rounding only are one moment, and the timer of a deadline is a timer of it.
    assert done[0] - round(deadline * 1e9) in (0, 1)


@pytest.mark.parametrize("wait", [asyncio.sleep, lambda left: asyncio.wait_for(asyncio.Event().wait(), left)])
@given(start_ns=st.integers(0, 10**12), delay=st.sampled_from((0.1, 0.3, 0.7, 2.2)), part=st.sampled_from((1, 2, 3, 7)))
def test_waiting_for_what_is_left_until_a_deadline_comes_to_an_end(wait, start_ns, delay, part):
    loop = SimulatedLoop(max_steps=200)
    loop.advance(start_ns)

    async def main():
        deadline = loop.time() + delay
        while (left := deadline - loop.time()) > 0:
            with contextlib.suppress(TimeoutError):
                await wait(min(left, delay / part))

    loop.run_until_complete(main())
    assert abs(loop.time_ns - start_ns - delay * 1e9) <= part + 1
    loop.close()


def test_a_deadline_and_a_sleep_of_the_same_length_end_at_the_same_moment():
    loop = SimulatedLoop()
    loop.advance(1_100_000_000)
    seen: list[int] = []
    loop.call_at(loop.time() + 2.2, lambda: seen.append(loop.time_ns))  # 3.3000000000000003
    loop.call_later(2.2, lambda: seen.append(loop.time_ns))
    loop.run_until_idle()
    loop.close()

    assert [3_300_000_000] * 2 == seen


def test_advance_runs_what_is_due_and_leaves_the_clock_exactly_there():
    loop = SimulatedLoop()
    seen: list[str] = []
    loop.call_later(1, seen.append, "at 1 s")
    loop.call_later(2, seen.append, "at 2 s")
    loop.advance(2 * 10**9 - 1)

    assert (seen, loop.time_ns) == (["at 1 s"], 1_999_999_999)
    loop.advance(1)
    assert (seen, loop.time_ns) == (["at 1 s", "at 2 s"], 2 * 10**9)
    with pytest.raises(ValueError, match="time does not go back"):
        loop.advance(-1)
    loop.close()


def test_run_until_idle_tells_whether_the_world_came_to_rest():
    loop = SimulatedLoop()
    loop.call_later(5, lambda: None)

    assert not loop.run_until_idle(10**9)
    assert loop.time_ns == 10**9
    assert loop.run_until_idle(10**10)
    assert loop.time_ns == 5 * 10**9
    loop.close()


# --- order of sets, names and owners ------------------------------------------------------------------


def abort_order() -> list[int]:
    cancelled: list[int] = []

    async def sibling(number):
        try:
            await asyncio.sleep(10)
        finally:
            cancelled.append(number)

    async def fails():
        await asyncio.sleep(1)
        raise ValueError

    async def main():
        try:
            async with asyncio.TaskGroup() as group:
                for number in range(12):
                    group.create_task(sibling(number))
                group.create_task(fails())
        except* ValueError:
            pass

    run(main())
    return cancelled


def test_a_task_group_aborts_its_tasks_in_one_order_wherever_they_lie_in_memory():
    orders, ballast = set(), []
    for attempt in range(300):
        ballast.append([object() for _ in range(attempt % 17)])  # moves the next tasks to other addresses
        orders.add(tuple(abort_order()))

    assert len(orders) == 1


def test_futures_in_a_set_come_out_in_one_order():
    kept: list[Any] = []

    async def main():
        loop = asyncio.get_running_loop()
        futures = []
        for _ in range(5):
            kept.append([object() for _ in range(len(kept) % 17)])  # moves the next one to another address
            futures.append(loop.create_future())
        kept.append(futures)
        return tuple(futures.index(future) for future in set(futures))

    assert len({run(main()) for _ in range(100)}) == 1


def test_a_task_is_called_after_its_coroutine_and_its_number_unless_it_has_a_name():
    async def work():
        return name_of_current_task()

    async def main():
        named = await asyncio.create_task(work(), name="own name")
        async with asyncio.TaskGroup() as group:
            grouped = group.create_task(work(), name="in a group")
        return named, await grouped.get_loop().create_task(work()), grouped.get_name()

    base = (
        f"{test_a_task_is_called_after_its_coroutine_and_its_number_unless_it_has_a_name.__name__}.<locals>."
    )
    assert run(main()) == ("own name", f"{base}work#4", "in a group")


def test_reprs_have_no_addresses():
    async def main():
        loop = asyncio.get_running_loop()
        task = loop.create_task(asyncio.sleep(1))
        before = repr(task)
        task.cancel()
        await asyncio.wait([task])
        return before, repr(task), repr(loop.create_future()), repr(loop)

    assert run(main()) == (
        "<SimulatedTask 'sleep#2' pending>",
        "<SimulatedTask 'sleep#2' cancelled>",
        "<SimulatedFuture #2 pending>",
        "<SimulatedLoop running at 0 ns>",
    )


def test_tasks_and_timers_inherit_their_owner_from_who_creates_them():
    loop = SimulatedLoop()

    async def child():
        await asyncio.sleep(5)

    async def host():
        await asyncio.gather(child(), child())

    for name in ("one", "two"):
        context = contextvars.copy_context()
        context.run(OWNER.set, name)
        loop.create_task(host(), context=context)
    loop.create_task(child())
    loop.advance(0)

    assert [task.owner for task in loop.pending_tasks(owner=None)] == [None]
    assert [task.number for task in loop.pending_tasks(owner="one")] == [1, 4, 5]
    assert [task.number for task in loop.pending_tasks()] == [1, 2, 3, 4, 5, 6, 7]
    assert [timer.owner for timer in loop.pending_timers(owner="two")] == ["two", "two"]
    assert len(loop.pending_timers()) == 5
    loop.close()


def test_finished_tasks_are_not_kept_unless_nobody_saw_how_they_failed():
    loop = SimulatedLoop()

    async def nothing():
        pass

    async def fails():
        raise ValueError

    async def main():
        asyncio.create_task(fails())  # noqa: RUF006
        for _ in range(10_000):
            await asyncio.create_task(nothing())

    loop.run_until_complete(main())
    assert len(loop._tasks) < 200
    loop.close()
    assert [type(context["exception"]) for context in loop.unhandled] == [ValueError]
    assert "was never retrieved" in loop.unhandled[0]["message"]
    assert (
        "fails#2" in loop.unhandled[0]["message"]
    )  # found by looking, not by the destructor, which names nobody


CROSS_PROCESS_PROGRAM = """
import asyncio
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.schedule import decode

log = []

async def worker(name, queue):
    try:
        for turn in range(3):
            await asyncio.sleep(0.1)
            await queue.put((name, turn))
            log.append((asyncio.current_task().get_name(), turn, asyncio.get_running_loop().time_ns))
        await asyncio.sleep(100)
    finally:
        log.append((name, "ends"))

async def main():
    queue = asyncio.Queue(4)
    try:
        async with asyncio.timeout(2), asyncio.TaskGroup() as group:
            for name in {"red", "green", "blue"} and ("red", "green", "blue"):
                group.create_task(worker(name, queue))
            while True:
                log.append(await queue.get())
    except TimeoutError:
        log.append("timeout")
    await asyncio.to_thread(log.append, "thread")
    log.append(sorted(task.get_name() for task in asyncio.all_tasks()))

loop = SimulatedLoop(decode(bytes(range(16, 80, 3))), external_only=False)
loop.run_until_complete(main())
loop.close()
print(log, loop.applied_holds, loop.steps, loop.time_ns)
"""


def test_processes_with_different_hash_seeds_give_the_same_history():
    source = str(Path(loop_module.__file__).parents[2])
    outputs = set()
    for seed in ("0", "1", "4242"):
        env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": source}
        program = [sys.executable, "-c", CROSS_PROCESS_PROGRAM]
        outputs.add(subprocess.run(program, env=env, capture_output=True, text=True, check=True).stdout)

    assert len(outputs) == 1
    assert "AppliedHold" in outputs.pop()


# --- holds --------------------------------------------------------------------------------------------


async def loses_an_update_if_the_order_of_two_timers_turns() -> int:
    value = 0

    async def slow_write():
        nonlocal value
        read = value
        await asyncio.sleep(2)
        value = read + 1

    async def late_write():
        nonlocal value
        await asyncio.sleep(2)
        read = value
        await asyncio.sleep(1)
        value = read + 1

    await asyncio.gather(slow_write(), late_write())
    return value


async def never_loses_an_update_on_asyncio() -> int:
    """Between reading and writing there is only a wake-up that comes in turn, never one from outside."""
    value = 0

    async def slow_write():
        nonlocal value
        read = value
        await asyncio.sleep(0)
        value = read + 1

    async def late_write():
        nonlocal value
        await asyncio.sleep(0)
        read = value
        await asyncio.sleep(0)
        value = read + 1

    await asyncio.sleep(1)  # even after a wake-up from outside
    await asyncio.gather(slow_write(), late_write())
    return value


def test_a_lost_update_between_timers_is_found_with_one_hold():
    program = loses_an_update_if_the_order_of_two_timers_turns
    found = [byte for byte in range(256) if run(program(), schedule=decode(bytes([byte]))) == 1]

    assert run(program()) == 2
    assert decode(bytes(found[:1])) == (Hold(gap=0, level=0),)


def test_a_race_that_asyncio_cannot_have_is_found_only_when_every_wake_up_may_be_held():
    def results(external_only):
        return {
            run(
                never_loses_an_update_on_asyncio(),
                schedule=decode(bytes([byte])),
                external_only=external_only,
            )
            for byte in range(256)
        }

    assert results(external_only=True) == {2}
    assert results(external_only=False) == {1, 2}


@pytest.mark.parametrize("program", [passes_through_a_queue, sets_context_variables])
@quiet
@given(data=st.binary(max_size=64))
def test_a_program_that_nothing_wakes_from_outside_has_one_trace_in_sound_mode(program, data):
    assert trace(program, SimulatedLoop) == trace(program, lambda: SimulatedLoop(decode(data)))


def steps_of_sleepers(schedule, *, sleepers=4, steps=8, external_only=False):
    """Who takes the steps when all wake up at 1 s and then yield in turn."""
    order: list[str] = []

    async def sleeper(name):
        await asyncio.sleep(1)
        for _ in range(steps):
            order.append(name)
            await asyncio.sleep(0)

    loop = SimulatedLoop(schedule, external_only=external_only)
    for number in range(sleepers):
        loop.create_task(sleeper("abcdefgh"[number]), name="abcdefgh"[number])
    loop.run_until_idle()
    loop.close()
    return "".join(order), loop


@pytest.mark.parametrize("level", range(5))
def test_a_hold_for_steps_lets_exactly_so_many_steps_of_other_tasks_pass(level):
    order, loop = steps_of_sleepers((Hold(0, level),), external_only=True)

    assert order.index("a") == 2**level
    assert [(held.task, held.kind, held.at_ns) for held in loop.applied_holds] == [("a", "steps", 10**9)]


@pytest.mark.parametrize("gap", range(3))
def test_the_gap_is_the_number_of_contested_wake_ups_that_pass_first(gap):
    _, loop = steps_of_sleepers((Hold(gap, 0),), external_only=True)

    assert "abcd"[gap] == loop.applied_holds[0].task


def test_the_last_wake_up_is_not_contested_unless_another_one_is_held():
    def held(schedule):
        loop = SimulatedLoop(schedule)
        for name in "abc":
            loop.create_task(asyncio.sleep(1), name=name)
        loop.run_until_idle()
        loop.close()
        return [each.task for each in loop.applied_holds]

    assert held((Hold(2, 0),)) == []
    assert held((Hold(0, 6), Hold(1, 6))) == ["a", "c"]


def test_wake_ups_whose_holds_end_together_go_in_the_order_in_which_they_came():
    order, _ = steps_of_sleepers((Hold(0, 1), Hold(0, 1)), external_only=True)

    assert order.startswith("cdab")


def test_a_wake_up_is_held_once():
    _, loop = steps_of_sleepers((Hold(0, 0), Hold(1, 0)), external_only=True)

    assert [held.task for held in loop.applied_holds] == ["a", "c"]


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
@quiet
@given(data=st.binary(max_size=16))
def test_at_rest_no_wake_up_is_counted_as_ready_or_held(program, data):
    loop = SimulatedLoop(decode(data), external_only=False)
    task = loop.create_task(program([]))

    assert loop.run_until_idle()
    assert task.done()
    assert (loop._ready_wakeups, loop._holds.held, loop._cancelled_timers) == (0, 0, 0)
    loop.close()


def test_a_hold_for_steps_ends_when_nothing_else_is_ready_before_time_moves():
    order, loop = steps_of_sleepers((Hold(0, 6),), sleepers=2, external_only=True)

    assert order == "bbbbbbbb" + "aaaaaaaa"
    assert loop.time_ns == 10**9


def test_a_hold_for_a_time_ends_after_that_time_although_nothing_else_is_ready():
    order, loop = steps_of_sleepers((Hold(0, 10),), sleepers=2, external_only=True)

    assert order == "bbbbbbbb" + "aaaaaaaa"
    assert loop.time_ns == 2 * 10**9
    assert [held.kind for held in loop.applied_holds] == ["time"]


def test_a_hold_for_a_time_crosses_a_timer_where_a_hold_for_steps_does_not():
    def crossed(level):
        log: list[str] = []

        async def main():
            asyncio.get_running_loop().call_later(1.5, log.append, "timer")
            await asyncio.gather(waker("first"), waker("second"), asyncio.sleep(9))

        async def waker(name):
            await asyncio.sleep(1)
            log.append(name)

        run(main(), schedule=(Hold(0, level),))
        return log

    assert crossed(6) == ["second", "first", "timer"]
    assert crossed(10) == ["second", "timer", "first"]


def test_a_held_wake_up_counts_as_unrest_and_is_no_timer():
    loop = SimulatedLoop((Hold(0, 11),))

    async def waker():
        await asyncio.sleep(1)

    loop.create_task(waker())
    loop.create_task(waker())
    loop.advance(10**9)

    assert [task.get_name().split(".")[-1].split("#")[0] for task in loop.pending_tasks()] == ["waker"]
    assert loop.pending_timers() == ()
    assert not loop.run_until_idle(10**9)
    assert loop.run_until_idle()
    assert loop.time_ns == 11 * 10**9
    loop.close()


def test_what_simulated_input_wakes_may_be_held_and_what_a_plain_callback_wakes_may_not():
    def order(call_name):
        log: list[str] = []

        async def main():
            loop = asyncio.get_running_loop()
            futures = [loop.create_future() for _ in range(2)]
            waiting = [
                asyncio.create_task(wait(future, name)) for future, name in zip(futures, "ab", strict=True)
            ]
            await asyncio.sleep(0)
            for future in futures:
                getattr(loop, call_name)(future.set_result, None)
            await asyncio.gather(*waiting)

        async def wait(future, name):
            await future
            log.append(name)

        run(main(), schedule=(Hold(0, 0),))
        return "".join(log)

    assert order("call_soon") == "ab"
    assert order("call_external") == "ba"


def test_cancelling_a_task_from_a_callback_is_no_wake_up():
    loop = SimulatedLoop()
    task = loop.create_task(asyncio.sleep(1))
    wake_up = loop._ready[-1]

    assert wake_up.task is task
    assert loop.call_soon(task.cancel).task is None
    loop.close()


@pytest.mark.parametrize("make", [SimulatedTask, asyncio.Task])
def test_the_start_and_the_wake_ups_of_a_task_are_recognised(make):
    class Spy(SimulatedLoop):
        def call_soon(self, callback: Any, *args: Any, context: Any = None) -> Any:  # type: ignore[override]
            handle = super().call_soon(callback, *args, context=context)
            woken.append(handle.task)
            return handle

    async def main():
        await asyncio.sleep(0)
        await asyncio.sleep(1)

    woken: list[Any] = []
    loop = Spy()
    task = make(main(), loop=loop)
    loop.run_until_complete(task)

    assert [task, task, task] == [each for each in woken if each is not None]
    loop.close()


# --- stuck and livelock -------------------------------------------------------------------------------


def test_a_stuck_run_says_who_waits_where_for_what():
    async def waits_for_an_item(queue):
        await queue.get()

    async def locks(lock):
        async with lock:
            pass

    async def main():
        lock = asyncio.Lock()
        await lock.acquire()
        queue: asyncio.Queue[int] = asyncio.Queue()
        await asyncio.sleep(1.5)
        async with asyncio.TaskGroup() as group:
            group.create_task(waits_for_an_item(queue), name="reader")
            group.create_task(locks(lock), name="writer")
            await group.create_task(never(), name="third")

    async def never():
        await asyncio.get_running_loop().create_future()

    with pytest.raises(StuckError) as caught:
        run(main())
    reader, writer, third = caught.value.waiting[1:]
    first = main.__code__.co_firstlineno

    assert [main.__qualname__ + "#1", "reader", "writer", "third"] == [
        each.task for each in caught.value.waiting
    ]
    assert (reader.file, reader.line, reader.on) == (
        __file__,
        waits_for_an_item.__code__.co_firstlineno + 1,
        "Queue.get",
    )
    assert (writer.function, writer.on) == (locks.__qualname__, "Lock.acquire")
    assert third.on.startswith("future #")
    assert (caught.value.waiting[0].line, caught.value.waiting[0].on) == (first + 8, "task third")
    text = str(caught.value)
    assert text.startswith("stuck at 1.5 s of virtual time: nothing is ready and no timer is set\n")
    assert (
        f"\n  reader waits at {__file__}:{reader.line}:{waits_for_an_item.__qualname__} on Queue.get" in text
    )


def test_a_stuck_report_looks_into_asynchronous_generators_and_gathers():
    async def numbers():
        yield 1
        await asyncio.Event().wait()

    async def reads():
        async for _ in numbers():
            pass

    async def main():
        await asyncio.gather(reads())

    with pytest.raises(StuckError) as caught:
        run(main())
    outer, inner = caught.value.waiting

    assert (inner.function, inner.line, inner.on) == (
        numbers.__qualname__,
        numbers.__code__.co_firstlineno + 2,
        "Event.wait",
    )
    assert outer.on == f"gather of task {reads.__qualname__}#2"


def test_a_future_that_nobody_works_on_is_stuck_without_tasks():
    loop = SimulatedLoop()

    with pytest.raises(StuckError, match="no task is left that could go on"):
        loop.run_until_complete(loop.create_future())
    with pytest.raises(StuckError):
        loop.run_forever()
    loop.close()


def test_a_run_that_does_not_end_names_who_kept_running():
    async def spins():
        for _ in itertools.count():
            await asyncio.sleep(0)

    async def main():
        asyncio.create_task(asyncio.sleep(1000), name="sleeper")  # noqa: RUF006
        await asyncio.gather(
            asyncio.create_task(spins(), name="ping"), asyncio.create_task(spins(), name="pong")
        )

    with pytest.raises(LivelockError) as caught:
        run(main(), max_steps=1000)

    assert {"ping", "pong"} == set(caught.value.tasks)
    assert "ping (32 times)" in str(caught.value)
    assert "after 1000 steps" in str(caught.value)


def test_time_that_passes_without_end_is_a_livelock_too():
    async def main():
        for _ in itertools.count():
            await asyncio.sleep(1)

    with pytest.raises(LivelockError, match="s of virtual time"):
        run(main(), max_steps=100)


def test_the_budget_is_the_number_of_steps_that_may_run():
    loop = SimulatedLoop(max_steps=10)
    seen: list[int] = []
    for number in range(11):
        loop.call_soon(seen.append, number)

    with pytest.raises(LivelockError):
        loop.run_until_idle()
    assert (list(range(10)), 10) == (seen, loop.steps)
    loop.close()
    assert seen == list(range(11))


# --- fences -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "instead"),
    [
        (lambda: asyncio.open_connection("localhost", 1), "simulated network"),
        (lambda: asyncio.start_server(lambda *_: None, "localhost", 1), "simulated network"),
        (lambda: asyncio.get_running_loop().getaddrinfo("localhost", 1), "simulated network"),
        (lambda: asyncio.create_subprocess_exec("true"), "in place of the process"),
        (lambda: asyncio.create_subprocess_shell("true"), "in place of the process"),
        (lambda: asyncio.get_running_loop().connect_read_pipe(asyncio.Protocol, None), "asyncio.Queue"),
        (lambda: asyncio.get_running_loop().add_reader(0, print), "call_external"),
        (lambda: asyncio.get_running_loop().add_signal_handler(2, print), "cancel the task"),
    ],
)
def test_what_needs_the_real_world_is_refused_with_what_to_use_instead(call, instead):
    async def main():
        await call()

    with pytest.raises(FencedError, match=instead) as caught:
        run(main())
    assert isinstance(caught.value, SimulationError)
    assert caught.value.what in str(caught.value)


def test_no_method_of_an_event_loop_is_left_unimplemented():
    inherited = {
        name
        for name, value in vars(asyncio.AbstractEventLoop).items()
        if callable(value) and getattr(SimulatedLoop, name) is value and not name.startswith("__")
    }

    assert inherited <= {"_timer_handle_cancelled"}


def test_taking_away_what_was_never_there_is_harmless():
    loop = SimulatedLoop()

    removed = loop.remove_reader(0), loop.remove_writer(0), loop.remove_signal_handler(2)
    assert removed == (False, False, False)
    loop.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_task_factories_are_refused():
    loop = SimulatedLoop()

    makers: Any = asyncio  # the names are unknown to type checkers of older versions
    for factory in (makers.eager_task_factory, makers.create_eager_task_factory(SimulatedTask)):
        with pytest.raises(FencedError, match="eager"):
            loop.set_task_factory(factory)
    loop.close()


def test_an_eager_start_is_refused():
    loop = SimulatedLoop()
    coro = asyncio.sleep(1)

    with pytest.raises(FencedError, match="when the schedule says so"):
        loop.create_task(coro, eager_start=True)
    coro.close()
    loop.close()


def test_other_task_factories_work_if_they_make_simulated_tasks():
    def wraps(loop, coro, **kwargs):
        return SimulatedTask(coro, loop=loop, name="from the factory", **kwargs)

    def strays(loop, coro, **kwargs):
        return asyncio.Task(coro, loop=loop, **kwargs)

    async def name():
        return name_of_current_task()

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(wraps)
        assert loop.get_task_factory() is wraps
        names = [await asyncio.create_task(name()), await asyncio.create_task(name(), name="own")]
        loop.set_task_factory(strays)
        with pytest.raises(FencedError, match="SimulatedTask"):
            loop.create_task(name()).cancel()
        loop.set_task_factory(None)
        return names

    assert run(main()) == ["from the factory", "own"]


def test_call_soon_threadsafe_is_refused_from_another_thread_and_call_soon_from_its_own():
    loop = SimulatedLoop()
    seen: list[Any] = []

    def elsewhere():
        try:
            loop.call_soon_threadsafe(seen.append, "never")
        except FencedError as error:
            seen.append(error.what)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    loop.call_soon_threadsafe(seen.append, "own thread")
    loop.run_until_idle()

    assert seen == ["call_soon_threadsafe from another thread", "own thread"]
    loop.close()


# --- executor jobs ------------------------------------------------------------------------------------


def test_to_thread_runs_inline_with_the_context_copied():
    variable = contextvars.ContextVar("variable", default="unset")

    def job():
        seen = variable.get()
        variable.set("changed")
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        return seen, threading.get_ident()

    async def main():
        variable.set("outer")
        return await asyncio.to_thread(job), variable.get(), asyncio.get_running_loop().is_running()

    assert run(main()) == (("outer", threading.get_ident()), "outer", True)


def test_an_error_of_a_job_reaches_who_waits_for_it():
    def fails():
        raise ValueError("in the job")

    def ends():
        raise StopIteration

    async def main():
        loop = asyncio.get_running_loop()
        return await asyncio.gather(
            loop.run_in_executor(None, fails), loop.run_in_executor(None, ends), return_exceptions=True
        )

    first, second = run(main())
    assert (repr(first), type(second)) == ("ValueError('in the job')", RuntimeError)


def test_cancelling_a_job_does_not_stop_it_and_its_late_result_is_discarded():
    done: list[str] = []

    async def main():
        job = asyncio.get_running_loop().run_in_executor(None, done.append, "effect")
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        await asyncio.sleep(1)

    loop = SimulatedLoop()
    loop.run_until_complete(main())
    loop.close()
    assert (done, loop.unhandled) == (["effect"], [])


def test_a_job_may_start_and_end_late():
    log: list[str] = []

    async def main():
        job = asyncio.to_thread(log.append, "job")
        await asyncio.gather(job, say([], "other", 0, 3), tell())

    async def tell():
        await asyncio.sleep(0)
        log.append("loop")

    run(main())
    usual, log = log, []
    run(main(), schedule=(Hold(0, 2),))

    assert (usual, log) == (["job", "loop"], ["loop", "job"])


def test_the_start_and_the_end_of_a_job_count_as_woken_from_outside():
    def held(gap):
        loop = SimulatedLoop((Hold(gap, 0),))
        for name in "ab":
            loop.create_task(asyncio.to_thread(len, name), name=name)
        loop.run_until_idle()
        loop.close()
        return [each.task for each in loop.applied_holds]

    assert [held(gap) for gap in range(4)] == [["executor:len#3"], ["executor:len#4"], ["a"], []]


def test_a_job_may_run_an_event_loop_of_its_own():
    async def main():
        return await asyncio.to_thread(run, asyncio.sleep(5, "inner"))

    assert run(main()) == "inner"


# --- running, stopping, errors ------------------------------------------------------------------------


def test_a_runner_of_asyncio_accepts_the_loop():
    with asyncio.Runner(loop_factory=SimulatedLoop) as runner:
        assert runner.run(asyncio.sleep(10, "done")) == "done"


def test_errors_of_callbacks_are_kept_and_the_run_goes_on():
    loop = SimulatedLoop()
    loop.call_soon(lambda: 1 / 0)
    seen: list[int] = []
    loop.call_soon(seen.append, 1)
    loop.run_until_idle()

    assert ([1], [ZeroDivisionError]) == (seen, [type(context["exception"]) for context in loop.unhandled])
    loop.close()


def test_an_exception_handler_replaces_the_list_unless_it_fails():
    loop = SimulatedLoop()
    seen: list[str] = []
    loop.set_exception_handler(lambda _, context: seen.append(context["message"]))
    loop.call_exception_handler({"message": "one"})
    loop.set_exception_handler(lambda *_: 1 / 0)
    loop.call_exception_handler({"message": "two"})

    assert seen == ["one"]
    assert [context["context"] for context in loop.unhandled] == [{"message": "two"}]
    loop.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_exit_leaves_the_run_and_the_loop_can_go_on(error):
    async def leaves():
        raise error

    loop = SimulatedLoop()
    with pytest.raises(error):
        loop.run_until_complete(leaves())

    assert not loop.is_running()
    assert loop.run_until_complete(asyncio.sleep(1, "later")) == "later"
    loop.close()
    assert loop.unhandled == []


def test_stop_ends_the_run_and_the_next_one_goes_on():
    loop = SimulatedLoop()
    seen: list[str] = []
    loop.call_later(1, loop.stop)
    loop.call_later(1, seen.append, "same batch")
    loop.call_later(2, seen.append, "later")
    loop.run_forever()
    assert (seen, loop.time_ns) == (["same batch"], 10**9)
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        loop.run_until_complete(loop.create_future())
    loop.close()


def test_a_closed_or_running_loop_refuses_as_asyncio_does():
    loop = SimulatedLoop()

    async def main():
        coro = asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_until_complete(coro)
        with pytest.raises(RuntimeError, match="Cannot close"):
            loop.close()
        with pytest.raises(RuntimeError, match="another loop is running"):
            SimulatedLoop().run_until_idle()
        coro.close()

    loop.run_until_complete(main())
    loop.close()
    loop.close()
    assert loop.is_closed()
    for call in (loop.run_forever, lambda: loop.call_soon(print), lambda: loop.call_later(1, print)):
        with pytest.raises(RuntimeError, match="closed"):
            call()


def test_the_hooks_for_asynchronous_generators_are_put_back():
    before = sys.get_asyncgen_hooks()
    run(asyncio.sleep(1))

    assert before == sys.get_asyncgen_hooks()


def test_a_schedule_of_something_else_is_refused():
    with pytest.raises(TypeError, match=r"schedule\.decode"):
        SimulatedLoop((3,))  # type: ignore[arg-type]


# --- leftovers ----------------------------------------------------------------------------------------


def test_leftover_tasks_are_cancelled_in_creation_order_and_may_clean_up_in_virtual_time():
    log: list[Any] = []
    loop = SimulatedLoop()

    async def left(name, delay):
        try:
            await asyncio.sleep(1000)
        finally:
            log.append(name)
            await asyncio.sleep(delay)
            log.append((name, loop.time_ns))

    for name, delay in (("a", 2), ("b", 1), ("c", 0)):
        loop.create_task(left(name, delay))
    loop.advance(0)
    loop.close()

    assert log == ["a", "b", "c", ("c", 0), ("b", 10**9), ("a", 2 * 10**9)]
    assert loop.unhandled == []


def test_exceptions_that_nobody_retrieved_are_found_by_looking():
    loop = SimulatedLoop()

    async def fails(name):
        raise ValueError(name)

    async def main():
        for name in "ab":
            asyncio.create_task(fails(name))  # noqa: RUF006
        seen = asyncio.create_task(fails("seen"))
        await asyncio.wait([seen])
        seen.exception()

    loop.run_until_complete(main())
    assert loop.unhandled == []
    loop.close()

    assert [repr(each["exception"]) for each in loop.unhandled] == ["ValueError('a')", "ValueError('b')"]


def test_a_task_that_will_not_end_is_reported_and_its_coroutine_closed():
    loop = SimulatedLoop()
    log: list[str] = []

    async def stays():
        try:
            while True:
                try:
                    await loop.create_future()
                except asyncio.CancelledError:
                    log.append("no")
        finally:
            log.append("closed")

    loop.create_task(stays(), name="mule")
    loop.advance(0)
    loop.close()

    assert [each["message"] for each in loop.unhandled] == ["mule would not end when it was cancelled"]
    assert log[-1] == "closed"


def test_a_task_that_swallows_its_cancellation_is_cancelled_again():
    loop = SimulatedLoop()

    async def hesitates():
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await loop.create_future()

    loop.create_task(hesitates())
    loop.advance(0)
    loop.close()

    assert loop.unhandled == []


def test_the_schedule_plays_no_part_in_closing():
    loop = SimulatedLoop((Hold(2, 6),), external_only=False)
    log: list[str] = []

    async def left(name):
        try:
            await asyncio.sleep(1)
        finally:
            log.append(name)

    for name in "abc":
        loop.create_task(left(name))
    loop.advance(0)
    loop.close()

    assert (log, loop.applied_holds) == (["a", "b", "c"], [])


def test_a_leftover_that_keeps_running_uses_up_a_budget_of_its_own():
    loop = SimulatedLoop()

    async def spins():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    loop.create_task(spins(), name="mule")
    loop.call_soon(loop.stop)
    loop.run_forever()
    before = loop.steps
    loop.close()

    assert [each["message"] for each in loop.unhandled] == ["mule would not end when it was cancelled"]
    assert loop.steps - before == 10_000


def test_unfinished_generators_are_closed_in_the_order_in_which_they_started():
    log: list[str] = []
    kept = []

    async def numbers(name):
        try:
            yield name
        finally:
            await asyncio.sleep(1)
            log.append(name)

    async def main():
        for name in "cab":
            agen = numbers(name)
            kept.append(agen)
            await anext(agen)

    run(main())
    assert log == ["c", "a", "b"]


def test_an_error_while_a_generator_closes_does_not_keep_the_others_open():
    log: list[str] = []
    kept = []
    loop = SimulatedLoop()

    async def numbers(name):
        try:
            yield name
        finally:
            log.append(name)
            if name == "a":
                raise ValueError(name)

    async def main():
        for name in "ab":
            kept.append(numbers(name))
            await anext(kept[-1])

    loop.run_until_complete(main())
    loop.close()

    assert (log, [repr(each["exception"]) for each in loop.unhandled]) == (["a", "b"], ["ValueError('a')"])


def test_held_tasks_are_cancelled_at_close_without_waiting_for_the_end_of_their_holds():
    loop = SimulatedLoop((Hold(0, 11), Hold(0, 11)))
    log: list[str] = []

    async def waker(name):
        try:
            await asyncio.sleep(1)
        finally:
            log.append(name)

    for name in "ab":
        loop.create_task(waker(name))
    loop.advance(10**9)
    loop.close()

    assert log == ["a", "b"]
    assert (loop.unhandled, loop.time_ns) == ([], 10**9)


@pytest.mark.parametrize("level", [6, 11], ids=["held for steps", "held for a time"])
def test_cancelling_a_held_task_ends_the_hold_at_once(level):
    """Stock asyncio can cancel a task whose answer has not come; a hold is an answer that has not come."""

    async def main():
        loop = asyncio.get_running_loop()
        cancelled: list[tuple[str, float]] = []

        async def sleeper():
            try:
                await asyncio.sleep(1)
            except asyncio.CancelledError:
                cancelled.append((asyncio.current_task().get_name(), loop.time()))

        tasks = [loop.create_task(sleeper(), name=name) for name in "ab"]
        for _ in range(4):
            await asyncio.sleep(0.25)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return cancelled, [(hold.task, 1.0) for hold in loop.applied_holds]

    cancelled, held = run(main(), schedule=(Hold(0, level),))

    assert len(held) == 1
    assert cancelled == held


# --- what the loop keeps, and whose it is -------------------------------------------------------------------


def test_a_task_that_is_done_and_its_result_are_kept_by_those_who_hold_them_only():
    class Result:
        pass

    async def makes():
        return Result()

    async def main():
        task = asyncio.create_task(makes())
        kept = weakref.ref(await task), weakref.ref(task)
        del task
        await asyncio.sleep(0)
        return [reference() for reference in kept]

    assert [None, None] == run(main())


@pytest.mark.parametrize("gap", range(16))
def test_jobs_of_a_default_executor_with_one_thread_run_one_after_the_other(gap):
    async def main():
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))
        await asyncio.gather(*(asyncio.to_thread(done.append, number) for number in range(6)))

    done: list[int] = []
    run_stalled(main(), (Hold(gap, 0),))
    assert [0, 1, 2, 3, 4, 5] == done


def run_stalled(main, schedule):
    loop = SimulatedLoop(schedule, stalls=True)
    try:
        loop.run_until_complete(main)
    finally:
        loop.close()


def test_a_job_that_is_cancelled_while_it_waits_for_its_thread_never_runs():
    ran: list[str] = []

    async def main():
        loop, pool = asyncio.get_running_loop(), ThreadPoolExecutor(max_workers=1)
        first, second, third = (loop.run_in_executor(pool, ran.append, name) for name in ("a", "b", "c"))
        second.cancel()
        await asyncio.gather(first, third)

    run(main())
    assert ["a", "c"] == ran
