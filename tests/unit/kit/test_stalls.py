"""Stalls: what a schedule does to wake-ups that nothing outside caused, and why stock asyncio could do it too."""

from __future__ import annotations

import asyncio
import selectors
from collections import Counter
from contextvars import Context
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.examples import a_share
from tests.support.protocols import a_task_for_each_message
from tinyllm.testing.holds import AppliedHold
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.schedule import Hold, decode
from tinyllm.testing.world import World

# --- the same stalls on the loop of asyncio --------------------------------------------------------------


@dataclass(frozen=True)
class Stall:
    """Before step `step` of a task, `ns` long; or, if it is late, when the loop would have woken up at `at_ns`."""

    task: str
    step: int
    at_ns: int
    ns: int
    late: bool


class StallingSelector(selectors.SelectSelector):
    """Waits by moving the clock, and oversleeps where a stall is late."""

    def __init__(self, stalls):
        super().__init__()
        self.now_ns = 0
        self.late = [stall for stall in stalls if stall.late]

    def select(self, timeout=None):
        self.now_ns += round((timeout or 0) * 1e9)
        while self.late and self.now_ns >= self.late[0].at_ns:
            self.now_ns += self.late.pop(0).ns
        return super().select(0)


class StallingLoop(asyncio.SelectorEventLoop):
    """The loop of asyncio in virtual time, in which steps take as long as *stalls* say."""

    def __init__(self, stalls):
        self.selector = StallingSelector(stalls)
        self.asked = 0
        super().__init__(self.selector)
        self.before = {(stall.task, stall.step): stall.ns for stall in stalls if not stall.late}

    def time(self):
        # On a real machine no two timers have the same moment, and asyncio's heap keeps no order of such.
        self.asked += 1
        return self.selector.now_ns / 1e9 + self.asked * 1e-13

    def begin_step(self, task, step):
        self.selector.now_ns += self.before.get((task, step), 0)


def record(loop):
    """Have *loop* note each stall so that it can be given to the loop of asyncio."""
    seen: Counter = Counter()
    stalls: list = []
    stall = loop._stall

    def recorded(handle, task, hold, *, late):
        ns = hold.time_ns if hold.steps is None else hold.steps * 1_000
        name = "main" if "#" in task.get_name() else task.get_name()
        stalls.append(Stall(name, seen[name], loop.time_ns, ns, late))
        return stall(handle, task, hold, late=late)

    loop._stall = recorded
    loop.begin_step = lambda task, step: seen.update({task: step + 1 - seen[task]})
    return stalls


class Stepped:
    """Awaits *coro* and tells the loop before each of its steps."""

    def __init__(self, coro, name):
        self.coro = coro
        self.name = name

    def __await__(self):
        loop = asyncio.get_running_loop()
        value, step = None, 0
        while True:
            loop.begin_step(self.name, step)
            step += 1
            try:
                awaited = self.coro.send(value)
            except StopIteration as stop:
                return stop.value
            value = yield awaited


async def run_stepped(coro, name):
    return await Stepped(coro, name)


async def sleepers(delays_of, log):
    """Tasks that sleep so many milliseconds each time, wait for each other through a lock, and log every step."""
    loop = asyncio.get_running_loop()
    lock = asyncio.Lock()

    async def sleeper(name, delays):
        for number, delay_ms in enumerate(delays):
            if delay_ms < 0:
                async with lock:
                    await asyncio.sleep(-delay_ms / 1e3)
            else:
                await asyncio.sleep(delay_ms / 1e3)
            log.append((name, number, round(loop.time() * 1e9)))

    loop.call_later(0.005, lambda: log.append(("timer", 5, round(loop.time() * 1e9))))
    tasks = []
    for index, delays in enumerate(delays_of):
        name = f"t{index}"
        tasks.append(loop.create_task(run_stepped(sleeper(name, delays), name), name=name))
    await asyncio.wait(tasks)


DELAYS = st.lists(st.lists(st.sampled_from((0, 1, 2, 5, 10, -1, -5)), min_size=1, max_size=4), min_size=1, max_size=4)


def alone(schedule, delays):
    """What happens on a loop without processes, and its stalls."""
    log: list = []
    loop = SimulatedLoop(schedule, stalls=True)
    recorded = record(loop)
    loop.run_until_complete(run_stepped(sleepers(delays, log), "main"))
    loop.close()
    return log, recorded


def on_a_host(schedule, delays):
    """What happens in a process of a world, and its stalls."""
    log: list = []
    with World(WorldPlan(schedule=schedule), patched=False) as world:
        recorded = record(world.loop)
        world.run(run_stepped(sleepers(delays, log), "main"))
    return log, recorded


@pytest.mark.parametrize("live", [alone, on_a_host])
@a_share(3)
@given(delays=DELAYS, data=st.binary(max_size=6))
def test_what_stalls_make_happen_stock_asyncio_does_when_its_steps_take_as_long(live, delays, data):
    ours, stalls = live(decode(bytes(byte & 0xF3 for byte in data)), delays)

    theirs: list = []
    with asyncio.Runner(loop_factory=lambda: StallingLoop(stalls)) as runner:
        runner.run(run_stepped(sleepers(delays, theirs), "main"))
    assert theirs == ours


# --- what they do ----------------------------------------------------------------------------------------


def order_of(schedule, *delays, stalls=True):
    """Who wakes up when, of tasks that sleep once."""
    log = []
    loop = SimulatedLoop(schedule, stalls=stalls)

    async def sleeper(delay):
        await asyncio.sleep(delay)
        log.append((delay, loop.time()))

    async def main():
        await asyncio.gather(*map(sleeper, delays))

    loop.run_until_complete(main())
    loop.close()
    return log, loop.applied_holds


def test_a_timer_never_overtakes_an_earlier_one_however_long_its_task_stalls():
    # Wake-ups: main, the starts of both sleepers, then the first that a timer woke.
    log, applied = order_of((Hold(gap=3, level=8),), 0.001, 0.004)

    assert [(0.001, 0.011), (0.004, 0.011)] == log
    assert ["stall"] == [hold.kind for hold in applied]


def test_without_stalls_a_hold_of_one_timer_turns_two_of_one_moment_around():
    log, _ = order_of((Hold(gap=0, level=0),), 0.001, 0.001, 0.002, stalls=False)
    assert [0.001, 0.001, 0.002] == [delay for delay, _ in log]
    assert [0.001, 0.001, 0.002] == [at for _, at in log]


@pytest.mark.parametrize(
    ("level", "ms"), [(0, 0.001), (6, 0.064), (7, 1), (8, 10), (9, 100), (10, 1_000), (11, 10_000)]
)
def test_a_stall_lasts_a_microsecond_for_each_step_or_the_time_of_its_hold(level, ms):
    log, _ = order_of((Hold(gap=2, level=level),), 0.5)
    assert [(0.5, round(0.5 + ms / 1e3, 9))] == log


def test_what_comes_from_outside_may_come_late_while_all_else_goes_on():
    async def main():
        log = []

        async def asks():
            reader, writer = await asyncio.open_connection("db", 7)
            log.append(await reader.read())
            writer.close()

        async def sleeps():
            await asyncio.sleep(0.005)
            log.append(b"timer")

        await asyncio.gather(asks(), sleeps())
        return log

    def answers(reader, writer):
        writer.write(b"answer")
        writer.close()

    async def serve():
        await (await asyncio.start_server(answers, "db", 7)).serve_forever()

    def lived(schedule):
        with World(WorldPlan(schedule=schedule)) as world:
            world.host("db").start(serve)
            world.loop.run_until_idle()
            log = world.run(main)
            return log, [hold.kind for hold in world.loop.applied_holds]

    assert ([b"answer", b"timer"], []) == lived(())
    lives = [lived((Hold(gap, 8),)) for gap in range(16)]
    assert ([b"timer", b"answer"], ["late"]) in lives


def test_packets_of_one_connection_and_jobs_of_one_thread_keep_their_order_however_late():
    from concurrent.futures import ThreadPoolExecutor

    got: list = []

    async def main():
        loop = asyncio.get_running_loop()
        _, writer = await asyncio.open_connection("db", 7)
        for letter in "abc":
            writer.write(letter.encode())
            await asyncio.sleep(0.001)
        done: list = []
        with ThreadPoolExecutor(1) as pool:
            await asyncio.gather(*(loop.run_in_executor(pool, done.append, number) for number in range(3)))
        writer.close()
        return done

    for gap in range(16):
        for level in (0, 6, 7, 8):
            got.clear()
            with World(WorldPlan(schedule=(Hold(gap, level), Hold(gap, level)))) as world:
                world.host("db").start(a_task_for_each_message(got))
                world.loop.run_until_idle()
                assert [0, 1, 2] == world.run(main)
                world.loop.run_until_idle()
            assert b"abc" == b"".join(got)


def test_a_task_with_an_empty_context_stalls_with_its_host():
    async def main():
        log = []

        async def sleeper(name, ms):
            await asyncio.sleep(ms / 1e3)
            log.append(name)

        loop = asyncio.get_running_loop()
        first = loop.create_task(sleeper("a", 1))
        await asyncio.gather(first, loop.create_task(sleeper("b", 5), context=Context()))
        return log

    for gap in range(8):
        with World(WorldPlan(schedule=(Hold(gap, 8),))) as world:
            assert ["a", "b"] == world.run(main)


def test_two_tasks_that_only_give_way_to_each_other_have_one_order():
    async def main():
        log = []

        async def one(name):
            for _ in range(3):
                await asyncio.sleep(0)
                log.append(name)

        await asyncio.gather(one("a"), one("b"))
        return log

    for level in range(12):
        for gap in range(4):
            loop = SimulatedLoop((Hold(gap, level), Hold(gap, level)), stalls=True)
            assert list("ababab") == loop.run_until_complete(main())
            loop.close()


def test_an_applied_stall_tells_whose_step_it_was_in_front_of():
    _, applied = order_of((Hold(gap=1, level=7),), 0.5)
    assert [AppliedHold(0, applied[0].task, Hold(gap=1, level=7), "stall", applied[0].where)] == applied
    assert applied[0].where.startswith("test_stalls.py:")
    assert applied[0].task.startswith("order_of.<locals>.sleeper#")


@pytest.mark.parametrize("gap", range(6))
@pytest.mark.parametrize("level", range(12))
def test_timers_that_are_set_while_the_process_stalls_run_in_the_order_of_their_moments(gap, level):
    log: list[float] = []

    async def main():
        loop = asyncio.get_running_loop()
        began = loop.time()

        async def until(moment):
            future = loop.create_future()
            loop.call_at(began + moment, future.set_result, None)
            await future
            log.append(moment)

        await asyncio.gather(*(until(moment) for moment in (0.004, 0.002, 0.006, 0.001)))

    with World(WorldPlan(schedule=(Hold(gap, level),))) as world:
        world.run(main)

    assert sorted(log) == log
