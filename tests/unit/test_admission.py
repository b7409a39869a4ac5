"""Backpressure: how many runs go on at once, who waits, in which order, and who is refused."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.nodes import Act, fails, noting, now_ms, says
from tests.support.runs import a_line, a_message, an_executor, code, run_clean
from tinyllm.context import ExecutionContext
from tinyllm.errors import OverloadedError, UsageError
from tinyllm.executor import Executor
from tinyllm.message import Message, NodeResult, TaskPayload
from tinyllm.nodes.base import passed_on, success
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

RUN_MS = 10


def gated(at_once: int | None = 1, queued: int = 100, act: Act | None = None, **config: Any) -> Executor:
    """start -> work -> end; each run takes 10 ms."""
    acts = {"work": act or says("x", after_ms=RUN_MS)}
    return an_executor(a_line(), acts, max_concurrent_runs=at_once, max_queued_runs=queued, **config)


def ask(executor: Executor, run_id: str = "", **how: Any) -> asyncio.Task[RunResult]:
    message = a_message(content=run_id or "q")
    return asyncio.create_task(executor.run(message, run_id=run_id or None, **how))


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def logging(log: list[Any], after_ms: float = RUN_MS) -> Act:
    """Notes which run works when."""

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        log.append((context.run_id, now_ms()))
        await asyncio.sleep(after_ms / 1_000)
        return success(passed_on(message, context))

    return act


# --- at once and in order ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("at_once", "starts"),
    [(1, [0.0, 10.0, 20.0, 30.0]), (2, [0.0, 0.0, 10.0, 10.0]), (4, [0.0] * 4), (None, [0.0] * 4)],
)
def test_so_many_runs_go_on_at_once_and_the_others_wait_their_turn(at_once, starts):
    log: list[Any] = []
    executor = gated(at_once, act=noting(log, says("x", after_ms=RUN_MS)))

    async def main() -> list[str]:
        return [result.status for result in await asyncio.gather(*[ask(executor) for _ in range(4)])]

    assert (["succeeded"] * 4, starts) == (run_clean(main()), log)


def test_runs_begin_in_the_order_in_which_they_asked():
    log: list[Any] = []
    executor = gated(2, act=logging(log))

    async def main() -> None:
        await asyncio.gather(*[ask(executor, f"r{number}") for number in range(7)])

    run_clean(main())

    assert [f"r{number}" for number in range(7)] == [run_id for run_id, _ in log]


def test_a_run_that_asks_when_a_place_is_free_but_others_wait_goes_last():
    log: list[Any] = []
    executor = gated(1, act=logging(log))

    async def main() -> None:
        first, second = ask(executor, "first"), ask(executor, "second")
        await first
        # The place is free at this moment, and it is the second's.
        third = ask(executor, "third")
        await asyncio.gather(second, third)

    run_clean(main())

    assert [("first", 0.0), ("second", 10.0), ("third", 20.0)] == log


def test_a_place_is_given_back_however_a_run_ends():
    acts = [fails(), says("x", after_ms=99), fails()]

    for act in acts:
        executor = gated(1, act=act, timeout_ms=50)

        async def main(executor: Executor = executor) -> int:
            return len(await asyncio.gather(*[ask(executor) for _ in range(3)]))

        assert 3 == run_clean(main())


def test_a_run_that_is_misused_takes_no_place():
    executor = gated(1, 0)

    async def main() -> str:
        for wrong in ({"entry": "nowhere"}, {"variables": {"x": object()}}):
            with pytest.raises(UsageError):
                await executor.run(a_message(content="q"), **wrong)
        return (await ask(executor)).status

    assert "succeeded" == run_clean(main())


def test_a_run_id_that_waits_is_taken():
    executor = gated(1)

    async def main() -> list[str]:
        first, second = ask(executor, "first"), ask(executor, "second")
        await settle()
        with pytest.raises(UsageError):
            await executor.run(a_message(content="q"), run_id="second")
        return [result.status for result in await asyncio.gather(first, second)]

    assert ["succeeded", "succeeded"] == run_clean(main())


# --- refusing ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("at_once", "queued"), [(1, 0), (1, 1), (2, 3), (3, 0)])
def test_the_next_after_those_that_run_and_wait_is_refused_at_once(at_once, queued):
    executor = gated(at_once, queued)

    async def main() -> tuple[float, list[str]]:
        allowed = [ask(executor) for _ in range(at_once + queued)]
        await settle()
        with pytest.raises(OverloadedError):
            await executor.run(a_message(content="one too many"))
        refused_at = now_ms()
        return refused_at, [result.status for result in await asyncio.gather(*allowed)]

    assert (0.0, ["succeeded"] * (at_once + queued)) == run_clean(main())


def test_a_refused_run_has_started_nothing_and_its_id_is_free():
    executor = gated(1, 0)

    async def main() -> str:
        first = ask(executor, "first")
        await settle()
        with pytest.raises(OverloadedError):
            await executor.run(a_message(content="q"), run_id="again")
        assert not executor.cancel("again")
        await first
        return (await ask(executor, "again")).status

    assert "succeeded" == run_clean(main())


def test_a_refused_run_takes_nothing_from_the_ids_and_the_chance_of_the_others():
    def told(refusals: int) -> list[tuple[str, str]]:
        executor = gated(1, 0)
        ids = iter(range(100))
        executor.ids = lambda: f"id{next(ids)}"

        async def main() -> list[RunResult]:
            first = ask(executor, "first")
            await settle()
            for _ in range(refusals):
                with pytest.raises(OverloadedError):
                    await executor.execute(TaskPayload(content="q"))
            return [await first, await executor.execute(TaskPayload(content="q"))]

        # Runs alike in all that the run itself draws: their seeds are in the first event.
        return [(result.run_id, str(result.trace[0].details["seed"])) for result in run_clean(main())]

    assert told(0) == told(3)


def test_after_one_has_ended_there_is_room_for_one_more():
    executor = gated(1, 1)

    async def main() -> list[str]:
        first, second = ask(executor), ask(executor)
        await first
        third = ask(executor)
        await settle()
        with pytest.raises(OverloadedError):
            await executor.run(a_message(content="q"))
        return [result.status for result in await asyncio.gather(second, third)]

    assert ["succeeded", "succeeded"] == run_clean(main())


def test_executors_do_not_wait_for_each_other():
    log: list[Any] = []
    first, second = gated(1, 0, logging(log)), gated(1, 0, logging(log))

    async def main() -> None:
        await asyncio.gather(ask(first, "a"), ask(second, "b"))

    run_clean(main())

    assert [0.0, 0.0] == [moment for _, moment in log]


def test_a_hundred_may_wait_by_default():
    executor = an_executor(a_line(), {"work": says("x", after_ms=RUN_MS)}, max_concurrent_runs=1)

    async def main() -> int:
        allowed = [ask(executor) for _ in range(101)]
        await settle()
        with pytest.raises(OverloadedError):
            await executor.run(a_message(content="q"))
        return len(await asyncio.gather(*allowed))

    assert 101 == run_clean(main())


# --- time ----------------------------------------------------------------------------------------------


def test_the_run_s_timeout_does_not_count_in_the_queue():
    executor = gated(1, timeout_ms=RUN_MS + 1)

    async def main() -> list[tuple[str, float]]:
        results = await asyncio.gather(*[ask(executor) for _ in range(4)])
        return [(result.status, result.total_latency_ms) for result in results]

    assert [("succeeded", 10.0)] * 4 == run_clean(main())


def test_the_trace_of_a_run_that_waited_begins_when_it_began():
    executor = gated(1)

    async def main() -> list[Any]:
        results = await asyncio.gather(ask(executor), ask(executor))
        return [(result.trace[0].kind, result.trace[0].at_ms, result.trace[-1].at_ms) for result in results]

    assert [(EventKind.RUN_STARTED, 0.0, 10.0)] * 2 == run_clean(main())


# --- cancelling who waits ------------------------------------------------------------------------------


def test_a_run_that_is_cancelled_while_it_waits_never_begins_and_gives_a_result_at_once():
    log: list[Any] = []
    executor = gated(1, act=logging(log))

    async def main() -> Any:
        first, second, third = ask(executor, "a"), ask(executor, "b"), ask(executor, "c")
        await asyncio.sleep(0.004)
        assert executor.cancel("b")
        result = await second
        at = now_ms()
        assert not executor.cancel("b")
        await asyncio.gather(first, third)
        return result, at

    result, at = run_clean(main())

    assert ("cancelled", "CANCELLED", "start", 4.0) == (result.status, code(result), result.error.node_id, at)
    assert (0, 0, 0.0, "b") == (result.nodes_executed, result.tokens_used, result.total_latency_ms, result.content)
    assert [("a", 0.0), ("c", 10.0)] == log


def test_the_trace_of_a_run_that_never_began_starts_and_ends_once():
    executor = gated(1)

    async def main() -> RunResult:
        first, second = ask(executor, "a"), ask(executor, "b")
        await settle()
        executor.cancel("b")
        await first
        return await second

    assert [EventKind.RUN_STARTED, EventKind.RUN_ENDED] == [event.kind for event in run_clean(main()).trace]


def test_a_caller_that_is_cancelled_while_it_waits_leaves_the_queue():
    log: list[Any] = []
    executor = gated(1, 1, act=logging(log))

    async def main() -> None:
        first, second = ask(executor, "a"), ask(executor, "b")
        await asyncio.sleep(0.004)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert 4.0 == now_ms()
        third = ask(executor, "b")
        await asyncio.gather(first, third)

    run_clean(main())

    assert [("a", 0.0), ("b", 10.0)] == log


def test_who_is_cancelled_while_waiting_makes_room_in_the_queue_at_once():
    executor = gated(1, 1)

    async def main() -> list[str]:
        first, second = ask(executor, "a"), ask(executor, "b")
        await settle()
        executor.cancel("b")
        await second
        third = ask(executor, "c")
        return [result.status for result in await asyncio.gather(first, second, third)]

    assert ["succeeded", "cancelled", "succeeded"] == run_clean(main())


@pytest.mark.parametrize("way", ["executor", "caller"])
@pytest.mark.parametrize("wait_ms", [9, 10, 11])
def test_a_cancel_around_the_moment_of_its_turn_loses_no_place(way, wait_ms):
    executor = gated(1)

    async def main() -> tuple[str, float]:
        first, second = ask(executor, "a"), ask(executor, "b")
        await asyncio.sleep(wait_ms / 1_000)
        if way == "executor":
            executor.cancel("b")
        else:
            second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        third = await ask(executor, "c")
        return third.status, third.total_latency_ms

    assert ("succeeded", 10.0) == run_clean(main())


@pytest.mark.parametrize("way", ["executor", "caller"])
def test_a_cancel_right_after_its_turn_came_loses_no_place(way):
    """The run before has ended, the turn is given, but the waiting task has not gone on yet."""
    executor = gated(1)

    async def main() -> str:
        first, second = ask(executor, "a"), ask(executor, "b")
        first.add_done_callback(lambda _: executor.cancel("b") if way == "executor" else second.cancel())
        await asyncio.gather(first, second, return_exceptions=True)
        return (await ask(executor, "c")).status

    assert "succeeded" == run_clean(main())


def test_a_run_that_is_cancelled_gives_its_place_to_the_next():
    log: list[Any] = []
    executor = gated(1, act=logging(log))

    async def main() -> None:
        first, second = ask(executor, "a"), ask(executor, "b")
        await asyncio.sleep(0.004)
        executor.cancel("a")
        await asyncio.gather(first, second)

    run_clean(main())

    assert [("a", 0.0), ("b", 4.0)] == log


def test_cancelling_every_run_that_waits_leaves_the_first_alone():
    executor = gated(1)

    async def main() -> list[str]:
        tasks = [ask(executor, f"r{number}") for number in range(5)]
        await settle()
        for number in (3, 1, 4, 2):
            executor.cancel(f"r{number}")
        return [result.status for result in await asyncio.gather(*tasks)]

    assert ["succeeded", *["cancelled"] * 4] == run_clean(main())


def test_runs_of_streams_have_places_too():
    executor = gated(1, 0)

    async def main() -> list[str]:
        stream = executor.stream(a_message(content="q"))
        with pytest.raises(OverloadedError):
            executor.stream(a_message(content="q"))
        async for _ in stream:
            pass
        return [stream.result.status, (await ask(executor)).status]

    assert ["succeeded", "succeeded"] == run_clean(main())


def test_a_run_that_waits_for_a_run_of_its_own_executor_waits_for_ever_and_can_be_cancelled():
    nested: list[Callable[[], Any]] = []

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        await nested[0]()
        return success(passed_on(message, context))

    executor = gated(1, act=act)
    nested.append(lambda: executor.run(a_message(content="inner"), run_id="inner"))

    async def main() -> str:
        outer = ask(executor, "outer")
        await asyncio.sleep(1)
        executor.cancel("outer")
        return (await outer).status

    assert "cancelled" == run_clean(main())


# --- a property ----------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(1, 3), st.none() | st.integers(0, 6)), max_size=8),
    st.integers(1, 3),
    st.integers(0, 4),
)
def test_runs_are_admitted_as_a_plain_model_says(drawn, at_once, queued):
    """(wait before it asks, how long it works, when it is cancelled after it asked), all at moments of their own."""
    log: list[Any] = []
    most = [0, 0]

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        most[0] += 1
        most[1] = max(most)
        log.append(context.run_id)
        try:
            await asyncio.sleep(drawn[int(context.run_id)][1] * 0.01)
        finally:
            most[0] -= 1
        return success(passed_on(message, context))

    executor = gated(at_once, queued, act)

    async def main() -> list[Any]:
        tasks, timers = [], []
        for number, (wait, _, cancel) in enumerate(drawn):
            # Odd fractions keep moments apart, so that nothing depends on who is first within one.
            await asyncio.sleep(wait * 0.01 + 0.000_1)
            tasks.append(ask(executor, str(number)))
            await settle()
            if cancel is not None:
                later = cancel * 0.01 + 0.000_01
                timers.append(asyncio.get_running_loop().call_later(later, executor.cancel, str(number)))
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        for timer in timers:
            timer.cancel()
        return ended

    ended = run_clean(main())
    statuses = ["refused" if isinstance(one, OverloadedError) else one.status for one in ended]

    assert sorted(log, key=int) == log
    assert most[1] <= at_once
    assert {"refused", "succeeded", "cancelled"} >= {*statuses}
    assert [n for n, s in enumerate(statuses) if s == "succeeded"] == [
        n for n in map(int, log) if statuses[n] == "succeeded"
    ]
    if len(drawn) <= at_once + queued:
        assert "refused" not in statuses
