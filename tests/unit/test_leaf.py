"""Code that is not ours: what it sees, how it is stopped, what it leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import itertools
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.nodes import now_ms
from tests.support.runs import run_clean
from tinyllm.eager import EagerTasks, Raised, Started
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.leaf import ABANDONED, called, leaf_end
from tinyllm.scopes import Scope
from tinyllm.testing.loop import SimulatedLoop, run

pytestmark = pytest.mark.unit

Call = Callable[[], Any]
LONG_MS = 3_600_000


def a_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


async def until(ms: float) -> None:
    await asyncio.sleep(ms / 1_000 - asyncio.get_running_loop().time())


async def run_leaf(
    tasks: EagerTasks, call: Call, scope: Scope, *, deadline: float, grace_s: float, name: str
) -> Any:
    """As the engine runs a node: at once, and to its end if it waits."""
    outcome = tasks.start(called(call), name)
    if type(outcome) is not Started:
        return outcome
    return await leaf_end(outcome, scope, deadline=deadline, grace_s=grace_s)


async def leaf(call: Call, scope: Scope | None = None, *, within_ms: float = LONG_MS, grace_ms: float = 100) -> Any:
    """What `run_leaf` gives. In every case the engine's task must be as it was, and not be cancelled later."""
    task, name = a_task(), a_task().get_name()
    with Scope(scope) as around:
        deadline = asyncio.get_running_loop().time() + within_ms / 1_000
        tasks = EagerTasks(asyncio.get_running_loop())
        result = await run_leaf(tasks, call, around, deadline=deadline, grace_s=grace_ms / 1_000, name="the node")
        assert not around._wakers
        assert not around._children
    assert (0, name) == (task.cancelling(), task.get_name())
    began_ms = now_ms()
    for _ in range(5):
        # A cancellation that was asked for and has not arrived yet would arrive here.
        await asyncio.sleep(0)
    assert (0, began_ms) == (task.cancelling(), now_ms())
    assert task is asyncio.current_task()
    return result


def led(call: Call, **how: Any) -> Any:
    """The same on a loop of its own, which must be empty afterwards."""
    return run_clean(leaf(call, **how))


def raised(result: Any) -> BaseException:
    assert isinstance(result, Raised)
    return result.error


async def forever() -> Any:
    await asyncio.get_running_loop().create_future()


async def swallowing(log: list[float], times: int | None) -> str:
    """Waits on and on through that many cancellations."""
    while times is None or len(log) < times:
        try:
            await asyncio.sleep(LONG_MS / 1_000)
        except asyncio.CancelledError:
            log.append(now_ms())
    return "at last"


# --- code that never waits -------------------------------------------------------------------------------


class Counting(SimulatedLoop):
    """Counts the tasks and timers that are made on it."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks_made = 0
        self.timers_made = 0

    def remember(self, task: Any) -> None:
        self.tasks_made += 1
        super().remember(task)

    def call_at(self, when: float, callback: Any, *args: Any, **how: Any) -> Any:  # type: ignore[override]
        self.timers_made += 1
        return super().call_at(when, callback, *args, **how)


def made_for(call: Call) -> tuple[Any, int, int, int]:
    """The result, and how many tasks, timers and turns of the loop it took."""
    loop = Counting()

    async def main() -> Any:
        tasks = EagerTasks(loop)
        before = (loop.tasks_made, loop.timers_made, loop.steps)
        with Scope() as scope:
            result = await run_leaf(tasks, call, scope, deadline=5.0, grace_s=1.0, name="the node")
        after = (loop.tasks_made, loop.timers_made, loop.steps)
        return (result, *(b - a for a, b in zip(before, after, strict=True)))

    try:
        made: tuple[Any, int, int, int] = loop.run_until_complete(main())
    finally:
        loop.close()
    return made


def test_a_node_that_never_waits_costs_no_task_no_timer_and_no_turn_of_the_loop():
    async def quick() -> str:
        return "x"

    assert ("x", 0, 0, 0) == made_for(quick)


def test_a_node_that_awaits_only_what_never_waits_costs_nothing_either():
    async def inner() -> str:
        return "x"

    async def outer() -> str:
        async with asyncio.Lock():
            return await inner()

    assert ("x", 0, 0, 0) == made_for(outer)


def test_a_node_that_fails_without_waiting_costs_nothing():
    async def broken() -> None:
        raise KeyError("k")

    result, *cost = made_for(broken)

    assert "k" == raised(result).args[0]
    assert [0, 0, 0] == cost


def test_a_node_that_waits_costs_one_task():
    async def waits() -> str:
        await asyncio.sleep(1)
        return "x"

    assert ("x", 1) == made_for(waits)[:2]


def test_a_node_that_looks_at_its_task_costs_one_task():
    async def looks() -> str:
        return a_task().get_name()

    assert ("the node", 1) == made_for(looks)[:2]


# --- what it gives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "", "x", [1], ABANDONED], ids=repr)
@pytest.mark.parametrize("waits", [False, True])
def test_a_result_is_given_as_it_is(value, waits):
    async def work() -> Any:
        if waits:
            await asyncio.sleep(0.005)
        return value

    assert value is led(work)


@pytest.mark.parametrize("waits", [False, True])
def test_an_exception_that_is_returned_was_not_raised(waits):
    error = ValueError("as a value")

    async def work() -> Any:
        if waits:
            await asyncio.sleep(0.005)
        return error

    assert error is led(work)


ERRORS = [
    ValueError("x"),
    asyncio.CancelledError("mine"),
    TimeoutError("mine"),
    SystemExit(3),
    GeneratorExit("mine"),
    BaseExceptionGroup("two", [ValueError("a"), SystemExit(1)]),
    StopAsyncIteration("mine"),
]


EVERY_WAY = [(error, when) for error in ERRORS for when in ("made", "begun", "waited", "future")]


@pytest.mark.parametrize(
    ("error", "when"),
    [
        pytest.param(*way)
        for way in EVERY_WAY
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_whatever_a_node_raises_is_its_failure(error, when):
    """While the coroutine is made, before it waits, after it waited, or from a future that it awaits."""

    async def work() -> None:
        if when == "future":
            future = asyncio.get_running_loop().create_future()
            asyncio.get_running_loop().call_later(0.005, future.set_exception, error)
            await future
        if when == "waited":
            await asyncio.sleep(0.005)
        raise error

    def call() -> Awaitable[None]:
        if when == "made":
            raise error
        return work()

    assert error is raised(led(call))


def test_a_cancelled_future_that_it_awaits_is_its_failure():
    async def work() -> None:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.005, future.cancel, "why")
        await future

    assert ("why",) == raised(led(work)).args


@pytest.mark.parametrize(
    # GeneratorExit closes what it is raised in, as in every task.
    "error", [SystemExit(3), ValueError("x")], ids=repr
)
def test_what_a_future_raises_can_be_caught_and_waited_after(error):
    async def work() -> tuple[bool, float]:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.005, future.set_exception, error)
        try:
            await future
        except type(error) as caught:
            await asyncio.sleep(0.002)
            return caught is error, now_ms()
        raise AssertionError

    assert (True, 7.0) == led(work)


def test_ctrl_c_passes_through():
    """What interrupts a node that waits, the loop raises for whoever runs it: see test_cancellation.py."""
    closed: list[str] = []

    async def work() -> None:
        try:
            raise KeyboardInterrupt
        finally:
            closed.append("closed")

    async def main() -> tuple[int, str]:
        name = a_task().get_name()
        with pytest.raises(KeyboardInterrupt):
            await leaf(work)
        return a_task().cancelling(), "same" if name == a_task().get_name() else a_task().get_name()

    assert (0, "same") == run_clean(main())
    assert ["closed"] == closed


# --- awaitables that are no coroutines -------------------------------------------------------------------


class Awaiting:
    """Awaitable by its own method, with or without a wait."""

    def __init__(self, wait: bool) -> None:
        self.wait = wait

    def __await__(self) -> Generator[Any, Any, str]:
        if self.wait:
            yield from asyncio.sleep(0.005).__await__()
        return "x"


@pytest.mark.parametrize("wait", [False, True])
def test_an_object_with_an_await_of_its_own_is_awaited(wait):
    assert "x" == led(lambda: Awaiting(wait))


def test_a_future_is_awaited():
    def call() -> asyncio.Future[str]:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.005, future.set_result, "x")
        return future

    assert "x" == led(call)


def test_a_task_is_awaited_and_cancelled_with_the_node():
    async def main() -> Any:
        task = asyncio.create_task(forever())
        return type(raised(await leaf(lambda: task, within_ms=5))), task.cancelled(), now_ms()

    assert (asyncio.CancelledError, True, 5.0) == run_clean(main())


@pytest.mark.parametrize("thing", [None, 5, "text", [1], object], ids=repr)
def test_what_cannot_be_awaited_is_a_failure(thing):
    error = raised(led(lambda: thing))

    assert isinstance(error, NodeError)
    assert ErrorCode.VALIDATION_ERROR is error.code
    assert "await" in str(error)


def test_an_asynchronous_generator_is_no_awaitable():
    async def generator() -> Any:
        yield 1

    assert isinstance(raised(led(generator)), NodeError)


@pytest.mark.parametrize("value", [5, "text", ()], ids=repr)
def test_what_no_loop_can_wait_for_is_told_to_the_node_which_may_go_on(value):
    class Odd:
        def __await__(self) -> Generator[Any, Any, str]:
            with pytest.raises(RuntimeError, match="bad yield"):
                yield value
            yield from asyncio.sleep(0.005).__await__()
            return "went on"

    assert "went on" == led(Odd)


# --- what it sees ----------------------------------------------------------------------------------------


def test_it_sees_one_task_all_its_life_which_bears_its_name_while_it_waits():
    seen: list[asyncio.Task[Any]] = []
    names: list[str] = []

    async def work() -> None:
        seen.append(a_task())
        for _ in range(3):
            await asyncio.sleep(0.001)
            seen.append(a_task())
            names.append(a_task().get_name())

    async def main() -> int:
        await leaf(work)
        return len({a_task(), *seen})

    assert 2 == run_clean(main())
    assert ["the node"] * 3 == names


def test_a_timeout_inside_ends_what_it_should_and_nothing_else():
    async def work() -> list[Any]:
        told: list[Any] = []
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await forever()
        told.append(now_ms())
        async with asyncio.timeout(0.005) as unused:
            await asyncio.sleep(0.001)
        told.append((now_ms(), unused.expired(), a_task().cancelling()))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.010), asyncio.timeout(0.100):
                await forever()
        return [*told, now_ms()]

    assert [5.0, (6.0, False, 0), 16.0] == led(work)


def test_wait_for_gives_up_and_passes_on():
    async def work() -> list[Any]:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(forever(), 0.005)
        return [now_ms(), await asyncio.wait_for(asyncio.sleep(0.001, "x"), 5)]

    assert [5.0, "x"] == led(work)


def test_a_task_group_inside_waits_and_cancels():
    async def broken() -> None:
        await asyncio.sleep(0.003)
        raise ValueError("one of them")

    async def work() -> Any:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(asyncio.sleep(ms / 1_000, ms)) for ms in (2, 1)]
        assert ([2, 1], 2.0) == ([task.result() for task in tasks], now_ms())
        other = asyncio.create_task(forever())
        with pytest.raises(ExceptionGroup) as caught:
            await grouped(other)
        return [type(error) for error in caught.value.exceptions], other.cancelled(), now_ms(), a_task().cancelling()

    async def grouped(other: asyncio.Task[Any]) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(broken())
            await other

    assert ([ValueError], True, 5.0, 0) == led(work)


def test_gather_and_wait_inside_give_all_results():
    async def work() -> Any:
        results = await asyncio.gather(*(asyncio.sleep(ms / 1_000, ms) for ms in (3, 1, 2)))
        tasks = [asyncio.create_task(asyncio.sleep(ms / 1_000, ms)) for ms in (3, 1)]
        done, pending = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.gather(*pending)
        return results, [task.result() for task in done], now_ms()

    assert ([3, 1, 2], [1], 6.0) == led(work)


def test_a_shield_inside_protects_from_the_end_of_the_node():
    ended: list[float] = []

    async def protected() -> None:
        await until(9)
        ended.append(now_ms())

    async def main() -> Any:
        kept: list[asyncio.Task[None]] = []

        async def work() -> None:
            kept.append(asyncio.create_task(protected()))
            await asyncio.shield(kept[0])

        result = raised(await leaf(work, within_ms=5))
        at_ms = now_ms()
        await kept[0]
        return type(result), at_ms

    assert (asyncio.CancelledError, 5.0) == run_clean(main())
    assert [9.0] == ended


def test_locks_queues_and_events_pass_between_a_node_and_tasks():
    async def main() -> Any:
        lock, queue, event = asyncio.Lock(), asyncio.Queue[str](1), asyncio.Event()

        async def other() -> None:
            async with lock:
                await until(3)
            await queue.put("a")
            await queue.put("b")
            await until(6)
            event.set()

        async def work() -> Any:
            await asyncio.sleep(0)
            async with lock:
                locked_ms = now_ms()
            got = [await queue.get(), await queue.get()]
            await event.wait()
            return locked_ms, got, now_ms()

        task = asyncio.create_task(other())
        result = await leaf(work)
        await task
        return result

    assert (3.0, ["a", "b"], 6.0) == run_clean(main())


def test_a_node_that_is_stopped_gives_back_the_lock_it_holds_or_waits_for():
    async def main() -> Any:
        held, wanted = asyncio.Lock(), asyncio.Lock()
        await wanted.acquire()

        async def work() -> None:
            async with held, wanted:
                pass

        result = raised(await leaf(work, within_ms=5))
        wanted.release()
        async with asyncio.timeout(0), wanted:
            return type(result), held.locked()

    assert (asyncio.CancelledError, False) == run_clean(main())


VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")


@pytest.mark.parametrize("waits", [False, True])
def test_what_a_node_sets_in_its_context_is_seen_by_itself_and_nobody_else(waits):
    async def work() -> list[str]:
        seen = [VARIABLE.get()]
        VARIABLE.set("inside")
        if waits:
            await asyncio.sleep(0.001)
        seen.append(VARIABLE.get())
        seen.append(await asyncio.create_task(read()))
        return seen

    async def read() -> str:
        return VARIABLE.get()

    async def main() -> Any:
        VARIABLE.set("outside")
        return await leaf(work), await leaf(work), VARIABLE.get()

    assert (["outside", "inside", "inside"], ["outside", "inside", "inside"], "outside") == run_clean(main())


def test_what_is_set_while_the_coroutine_is_made_belongs_to_the_node_too():
    def call() -> Any:
        VARIABLE.set("made")
        return read()

    async def read() -> str:
        await asyncio.sleep(0.001)
        return VARIABLE.get()

    async def main() -> tuple[str, str]:
        return await leaf(call), VARIABLE.get()

    assert ("made", "unset") == run_clean(main())


def test_a_context_manager_around_an_await_sets_and_resets_in_one_context():
    async def work() -> str:
        token = VARIABLE.set("x")
        await asyncio.sleep(0.001)
        VARIABLE.reset(token)
        return VARIABLE.get()

    assert "unset" == led(work)


# --- being stopped ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("within_ms", [1, 5, 1_000])
def test_it_is_cancelled_at_its_deadline(within_ms):
    ended: list[float] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            ended.append(now_ms())

    assert isinstance(raised(led(work, within_ms=within_ms)), asyncio.CancelledError)
    assert [within_ms] == ended


def test_it_is_not_cancelled_before_its_deadline():
    async def work() -> float:
        await until(4.999999)
        return now_ms()

    assert 4.999999 == led(work, within_ms=5)


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_it_is_cancelled_when_a_scope_around_it_is_closed(depth):
    async def main() -> Any:
        with Scope() as outermost:
            scope = outermost
            for _ in range(depth):
                scope = Scope(scope)
            asyncio.get_running_loop().call_later(0.005, outermost.close, "enough")
            error = raised(await leaf(forever, scope))
            return type(error), now_ms(), outermost.reason

    assert (asyncio.CancelledError, 5.0, "enough") == run_clean(main())


def test_closing_twice_or_at_the_deadline_cancels_once():
    log: list[float] = []

    async def main() -> Any:
        with Scope() as scope:
            for ms in (5, 5, 6):
                asyncio.get_running_loop().call_later(ms / 1_000, scope.close, "enough")
            result = await leaf(lambda: swallowing(log, 1), scope, within_ms=5)
        await until(10)
        return result

    assert "at last" == run_clean(main())
    assert [5.0] == log


def test_a_node_that_ends_its_own_run_and_then_waits_is_cancelled_at_once():
    async def main() -> Any:
        with Scope() as scope:

            async def work() -> None:
                scope.close("enough")
                await forever()

            return type(raised(await leaf(work, scope))), now_ms()

    assert (asyncio.CancelledError, 0.0) == run_clean(main())


def test_a_node_that_ends_its_own_run_and_does_not_wait_gives_its_result():
    async def main() -> Any:
        with Scope() as scope:

            async def work() -> str:
                scope.close("enough")
                return "x"

            return await leaf(work, scope)

    assert "x" == run_clean(main())


def test_a_node_that_kept_the_loop_busy_beyond_its_deadline_is_cancelled_as_it_begins_to_wait():
    async def work() -> None:
        loop: Any = asyncio.get_running_loop()
        loop._now_ns += 7_000_000
        await forever()

    async def main() -> Any:
        return type(raised(await leaf(work, within_ms=5))), now_ms()

    assert (asyncio.CancelledError, 7.0) == run_clean(main())


def test_what_it_awaits_is_cancelled_with_it():
    async def main() -> Any:
        future = asyncio.get_running_loop().create_future()

        async def work() -> None:
            await future

        await leaf(work, within_ms=5)
        return future.cancelled()

    assert run_clean(main()) is True


def test_a_node_may_clean_up_at_its_leisure_within_its_grace():
    ended: list[float] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append(now_ms())

    async def main() -> Any:
        return type(raised(await leaf(work, within_ms=5))), now_ms()

    # A bare turn of the loop is no wait that a cancellation could meet.
    assert (asyncio.CancelledError, 5.0) == run_clean(main())
    assert [5.0] == ended


def test_what_a_stopped_node_returns_or_raises_instead_is_given():
    async def returns() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            return "instead"
        raise AssertionError

    async def raises() -> None:
        try:
            await forever()
        finally:
            raise ValueError("instead")

    assert "instead" == led(returns, within_ms=5)
    assert "instead" == str(raised(led(raises, within_ms=5)))


def test_a_stopped_node_s_own_timeout_is_not_mistaken_for_its_end():
    async def work() -> str:
        try:
            async with asyncio.timeout(0.005):
                await forever()
        except TimeoutError:
            return "my own"
        raise AssertionError

    async def main() -> Any:
        early = await leaf(work, within_ms=4)
        return type(raised(early)), await leaf(work, within_ms=6), now_ms()

    assert (asyncio.CancelledError, "my own", 9.0) == run_clean(main())


@pytest.mark.parametrize("within_ms", [4, 5, 6])
def test_a_timeout_of_the_same_moment_leaves_no_count_behind(within_ms):
    async def work() -> None:
        async with asyncio.timeout(0.005):
            await forever()

    # `leaf` asserts that no cancellation is counted, or arrives later.
    assert isinstance(raised(led(work, within_ms=within_ms)), asyncio.CancelledError | TimeoutError)


def test_an_awaited_future_that_is_done_at_the_moment_of_the_deadline_is_settled():
    async def main() -> Any:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_at(0.005, future.set_result, "x")

        async def work() -> str:
            result: str = await future
            return result

        result = await leaf(work, within_ms=5)
        return "x" if result == "x" else type(raised(result))

    assert run_clean(main()) in ("x", asyncio.CancelledError)


# --- swallowing ------------------------------------------------------------------------------------------


def stopped(times: int | None, *, grace_ms: float, began_ms: float = 0) -> tuple[Any, list[float], float]:
    """What a node gives that swallows so often, when it was cancelled, and when its engine went on."""
    log: list[float] = []

    async def main() -> tuple[Any, list[float], float]:
        await until(began_ms)
        result = await leaf(lambda: swallowing(log, times), within_ms=0.001, grace_ms=grace_ms)
        return result, [round(ms, 2) for ms in log], round(now_ms(), 2)

    return run(main())


@pytest.mark.parametrize("times", range(1, 11))
def test_it_is_cancelled_at_each_of_its_first_ten_awaits_without_time_passing(times):
    assert ("at last", [0.0] * times, 0.0) == stopped(times, grace_ms=1_000)


@pytest.mark.parametrize("times", range(11, 21))
def test_then_at_intervals_that_share_the_grace(times):
    more = [100.0 * k for k in range(times - 10)]

    assert ("at last", [0.0] * 10 + more, more[-1]) == stopped(times, grace_ms=1_000)


def test_a_node_that_swallows_for_ever_is_left_to_itself_when_its_grace_is_over():
    result, log, through_ms = stopped(None, grace_ms=1_000)

    assert result is ABANDONED
    assert 1_000.0 == through_ms
    assert [0.0] * 10 + [100.0 * k for k in range(10)] == log


def test_without_any_grace_it_is_left_to_itself_after_its_first_awaits():
    result, log, through_ms = stopped(None, grace_ms=0)

    assert (True, 0.0) == (result is ABANDONED, through_ms)
    assert [0.0] * 11 == log


@pytest.mark.parametrize("times", [1, 10])
def test_without_any_grace_it_may_still_swallow_ten_times(times):
    assert ("at last", [0.0] * times, 0.0) == stopped(times, grace_ms=0)


@pytest.mark.parametrize("began_ms", range(12))
@pytest.mark.parametrize("grace_ms", [10, 30, 70, 100])
def test_the_grace_is_exact_whenever_it_begins(began_ms, grace_ms):
    """Its end is a sum of floats, which may lie a hair beyond the moment it means."""
    assert (True, began_ms + grace_ms) == (
        stopped(None, grace_ms=grace_ms, began_ms=began_ms)[0] is ABANDONED,
        stopped(None, grace_ms=grace_ms, began_ms=began_ms)[2],
    )


def test_a_node_that_ends_in_its_grace_is_not_cancelled_any_more():
    """It goes on waiting through one cancellation after the ten, and ends by itself before the next."""
    log: list[float] = []

    async def work() -> str:
        await swallowing(log, 11)
        try:
            await until(50)
        except asyncio.CancelledError:
            log.append(now_ms())
        return "by itself"

    async def main() -> Any:
        result = await leaf(work, within_ms=0.001, grace_ms=1_000)
        at_ms = now_ms()
        await until(2_000)
        return result, at_ms

    assert ("by itself", 50.0) == run_clean(main())
    assert 11 == len(log)


def test_a_node_that_swallows_while_it_works_without_waiting_is_only_late():
    async def work() -> str:
        try:
            await forever()
        except asyncio.CancelledError:
            loop: Any = asyncio.get_running_loop()
            loop._now_ns += 500_000_000
        return "late"

    async def main() -> Any:
        return await leaf(work, within_ms=5, grace_ms=100), now_ms()

    assert ("late", 505.0) == run_clean(main())


def test_what_an_abandoned_node_does_later_disturbs_nothing():
    later: list[Any] = []

    async def work() -> None:
        VARIABLE.set("inside")
        deaf_until = 300
        while now_ms() < deaf_until:
            with contextlib.suppress(asyncio.CancelledError):
                await until(deaf_until)
        later.append((now_ms(), VARIABLE.get(), a_task().get_name(), a_task().cancelling()))
        async with asyncio.timeout(1):
            await asyncio.sleep(0.050)
        later.append(now_ms())
        raise ValueError("nobody hears this")

    async def main() -> Any:
        engine = a_task()
        result = await leaf(work, within_ms=5, grace_ms=100)
        at_ms = now_ms()
        others = [task for task in asyncio.all_tasks() if task is not engine]
        names = [task.get_name() for task in others]
        del others
        gc.collect()
        await until(1_000)
        return result is ABANDONED, at_ms, names, engine.cancelling()

    assert (True, 105.0, ["the node"], 0) == run_clean(main())
    assert [(300.0, "inside", "the node", 20), 350.0] == later


def test_an_abandoned_node_can_be_cancelled_by_others_and_ends_with_the_loop():
    log: list[str] = []

    async def work() -> None:
        for _ in range(12):
            with contextlib.suppress(asyncio.CancelledError):
                await forever()
        try:
            await forever()
        finally:
            log.append("closed")

    async def main() -> Any:
        return await leaf(work, within_ms=5, grace_ms=0)

    assert ABANDONED is run(main())
    assert ["closed"] == log


async def in_tasks(how: str, log: list[float]) -> None:
    """Waits for what swallows every cancellation, in one of the ways that pass on a cancellation and wait on."""
    task = asyncio.create_task(swallowing(log, None))
    match how:
        case "task":
            await task
        case "gather":
            await asyncio.gather(task)
        case "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(swallowing(log, None))
                task.cancel()
        case "wait":
            await asyncio.wait({task})
        case "shield":
            await asyncio.shield(task)


@pytest.mark.parametrize(
    "how",
    ["task", "gather", "group", "wait", "shield"],
)
def test_a_node_that_waits_for_a_task_that_swallows_is_left_to_itself_no_later_than_its_grace(how):
    loop = SimulatedLoop()
    try:
        engine = loop.create_task(leaf(lambda: in_tasks(how, []), within_ms=5, grace_ms=1_000))
        loop.advance(1_005_000_000)
        assert engine.done()
        assert engine.result() is ABANDONED or isinstance(raised(engine.result()), asyncio.CancelledError)
    finally:
        loop.close()


# --- a node that cancels its own task --------------------------------------------------------------------


@pytest.mark.parametrize("waited_before", [False, True])
def test_own_cancellation_with_an_await_after_it_arrives_there(waited_before):
    log: list[str] = []

    async def work() -> None:
        if waited_before:
            await asyncio.sleep(0.001)
        a_task().cancel("mine")
        try:
            await asyncio.sleep(5)
        except asyncio.CancelledError as error:
            log.append(str(error))
            raise

    assert isinstance(raised(led(work)), asyncio.CancelledError)
    assert ["mine"] == log


@pytest.mark.parametrize("waited_before", [False, True])
def test_own_cancellation_without_an_await_after_it_is_a_failure(waited_before):
    """As of a task that ends before its cancellation arrived."""

    async def work() -> str:
        if waited_before:
            await asyncio.sleep(0.001)
        a_task().cancel()
        return "x"

    assert isinstance(raised(led(work)), asyncio.CancelledError)


@pytest.mark.parametrize("waited_before", [False, True])
def test_own_cancellation_does_not_hide_the_error_that_is_raised_before_it_arrives(waited_before):
    """As of a task that fails before its cancellation arrived."""

    async def work() -> None:
        if waited_before:
            await asyncio.sleep(0.001)
        a_task().cancel()
        raise LookupError("first")

    assert isinstance(raised(led(work)), LookupError)


@pytest.mark.parametrize("waited_before", [False, True])
@pytest.mark.parametrize("times", [1, 3])
def test_own_cancellation_that_was_swallowed_is_over(waited_before, times):
    async def work() -> str:
        if waited_before:
            await asyncio.sleep(0.001)
        for _ in range(times):
            a_task().cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(5)
        return "x"

    assert "x" == led(work)


@pytest.mark.parametrize("waited_before", [False, True])
def test_own_cancellation_that_was_taken_back_before_it_arrived(waited_before):
    """Before Python 3.13 a cancellation arrives even if it was taken back; it must arrive in the node or nowhere."""

    async def work() -> str:
        if waited_before:
            await asyncio.sleep(0.001)
        a_task().cancel()
        a_task().uncancel()
        return "x"

    result = led(work)

    assert result == "x" or isinstance(raised(result), asyncio.CancelledError)


def test_a_task_of_the_node_s_own_that_cancels_it_is_its_own_cancellation():
    async def work() -> None:
        asyncio.get_running_loop().call_later(0.005, a_task().cancel)
        await forever()

    async def main() -> Any:
        return type(raised(await leaf(work))), now_ms()

    assert (asyncio.CancelledError, 5.0) == run_clean(main())


def test_own_cancellation_and_a_deadline_of_one_moment_leave_nothing_behind():
    async def work() -> None:
        asyncio.get_running_loop().call_at(0.005, a_task().cancel)
        await forever()

    assert isinstance(raised(led(work, within_ms=5)), asyncio.CancelledError)


# --- the end of the loop ---------------------------------------------------------------------------------


def test_a_node_that_waits_while_its_loop_is_closed_is_cancelled_like_any_task():
    log: list[str] = []

    async def work() -> None:
        try:
            await forever()
        finally:
            log.append("closed")

    loop = SimulatedLoop()
    task = loop.create_task(leaf(work))
    loop.run_until_idle(0)
    loop.close()

    assert (["closed"], True) == (log, task.done())


async def run_in_scope(call: Call) -> Any:
    with Scope() as scope:
        deadline = asyncio.get_running_loop().time() + 3_600
        tasks = EagerTasks(asyncio.get_running_loop())
        return await run_leaf(tasks, call, scope, deadline=deadline, grace_s=1.0, name="the node")


def test_a_node_runs_on_the_loop_of_asyncio_as_well():
    async def work() -> str:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await forever()
        await asyncio.sleep(0)
        return "x"

    assert "x" == asyncio.run(run_in_scope(work))


# --- the same as in a task of its own --------------------------------------------------------------------


@dataclass(frozen=True)
class Do:
    """One statement of a small program."""

    what: str
    ms: int = 0
    body: tuple[Do, ...] = ()


def settle(future: asyncio.Future[None], do: Do) -> None:
    if do.what == "cancelled future":
        future.cancel()
    elif not future.done() and do.what == "broken future":
        future.set_exception(KeyError(do.ms))
    elif not future.done():
        future.set_result(None)


class Program:
    """Runs statements and writes down, with its moment, whatever it can see."""

    def __init__(self, statements: tuple[Do, ...]) -> None:
        self.statements = statements
        self.log: list[tuple[Any, ...]] = []
        self.left: list[asyncio.Task[Any]] = []

    async def main(self) -> str:
        await self.block(self.statements)
        return "end"

    async def block(self, statements: tuple[Do, ...]) -> None:
        for number, do in enumerate(statements):
            await self.statement(do)
            self.log.append((now_ms(), number, do.what, a_task().cancelling()))

    async def statement(self, do: Do) -> None:
        loop = asyncio.get_running_loop()
        match do.what:
            case "sleep":
                await asyncio.sleep(do.ms / 1_000)
            case "future" | "broken future" | "cancelled future":
                future: asyncio.Future[None] = loop.create_future()
                handle = loop.call_later(do.ms / 1_000, settle, future, do)
                try:
                    await future
                finally:
                    handle.cancel()
            case "timeout":
                async with asyncio.timeout(do.ms / 1_000):
                    await self.block(do.body)
            case "wait for":
                await asyncio.wait_for(self.block(do.body), do.ms / 1_000)
            case "shield":
                self.left.append(asyncio.create_task(self.block(do.body)))
                await asyncio.shield(self.left[-1])
            case "group":
                async with asyncio.TaskGroup() as group:
                    for one in do.body:
                        group.create_task(self.block((one,)))
            case "gather":
                told = await asyncio.gather(*(self.block((one,)) for one in do.body), return_exceptions=True)
                self.log.append((now_ms(), *(type(one).__name__ for one in told)))
            case "swallow":
                try:
                    await self.block(do.body)
                except asyncio.CancelledError:
                    self.log.append((now_ms(), "swallowed", a_task().cancelling()))
            case "catch":
                try:
                    await self.block(do.body)
                except Exception as error:
                    self.log.append((now_ms(), "caught", type(error).__name__))
            case "finally":
                try:
                    await self.block(do.body)
                finally:
                    await asyncio.sleep(do.ms / 1_000)
                    self.log.append((now_ms(), "finally"))
            case "cancel me":
                a_task().cancel()
            case "raise":
                # Not at once: see what is expected to fail of own cancellations.
                await asyncio.sleep(0)
                raise LookupError(do.ms)

    async def clean_up(self) -> None:
        """What was shielded, or abandoned, goes on after the program's end."""
        while others := asyncio.all_tasks() - {a_task()}:
            await asyncio.wait(others)
        # Not before: what is shielded may shield something in its turn.
        await asyncio.gather(*self.left, return_exceptions=True)


MS = st.integers(0, 4)
PLAIN = ("sleep", "sleep", "future", "broken future", "cancelled future", "cancel me", "raise")
#: Without `wait_for`: that of Python 3.11 loses exceptions when two timeouts meet.
AROUND = ("timeout", "shield", "group", "gather", "swallow", "catch", "finally")
#: Without what is cut off at odds with its grace: see the tests that are expected to fail.
CUTTABLE = ("timeout", "shield", "group", "swallow", "catch", "finally")


def programs(around: tuple[str, ...]) -> st.SearchStrategy[tuple[Do, ...]]:
    def statements(inner: st.SearchStrategy[Do]) -> st.SearchStrategy[Do]:
        bodies = st.lists(inner, min_size=1, max_size=3).map(tuple)
        return st.builds(Do, st.sampled_from(around), MS, bodies)

    one = st.recursive(st.builds(Do, st.sampled_from(PLAIN), MS), statements, max_leaves=8)
    return st.lists(one, min_size=1, max_size=4).map(lambda program: timed(program, itertools.count()))


def timed(program: Iterable[Do], numbers: Iterator[int]) -> tuple[Do, ...]:
    """The program with times of which no two sums are equal: within one moment the order is the loop's affair."""
    return tuple(Do(do.what, 2 ** next(numbers), timed(do.body, numbers)) for do in program)


Outcome = tuple[Any, list[tuple[Any, ...]]]


def through_a_leaf(program: tuple[Do, ...], **how: Any) -> Outcome:
    async def main() -> Outcome:
        running = Program(program)
        result = await leaf(running.main, **how)
        at = (now_ms(), shown(result))
        await running.clean_up()
        return at, running.log

    return run_clean(main())


def in_a_task(program: tuple[Do, ...]) -> Outcome:
    async def main() -> Outcome:
        running = Program(program)
        task = asyncio.create_task(running.main())
        await asyncio.wait({task})
        result = Raised(asyncio.CancelledError()) if task.cancelled() else task.exception() or task.result()
        at = (now_ms(), shown(Raised(result) if isinstance(result, BaseException) else result))
        await running.clean_up()
        return at, running.log

    return run_clean(main())


def shown(result: Any) -> str:
    return f"raised {type(result.error).__name__}" if isinstance(result, Raised) else str(result)


@given(programs(AROUND))
def test_a_program_that_nobody_cuts_off_does_the_same_as_in_a_task_of_its_own(program):
    assert in_a_task(program) == through_a_leaf(program, within_ms=2**40)


@example(
    (Do("shield", 1, (Do("sleep", 2), Do("cancel me", 4), Do("shield", 8, (Do("broken future", 16),)))),), 0, 0
)
@given(programs(CUTTABLE), st.integers(0, 200), st.sampled_from([0, 1, 10]))
def test_a_program_that_is_cut_off_did_the_same_until_then_and_ends_within_its_grace(program, cut_ms, grace_ms):
    (at_ms, _), whole = in_a_task(program)
    (cut_at_ms, told), log = through_a_leaf(program, within_ms=cut_ms, grace_ms=grace_ms)

    def before(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        return [event for event in events if event[0] < cut_ms]

    assert before(whole) == before(log)
    assert cut_at_ms <= cut_ms + grace_ms
    assert at_ms >= cut_ms or (at_ms, told) == (cut_at_ms, in_a_task(program)[0][1])
