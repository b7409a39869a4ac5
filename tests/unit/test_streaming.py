"""A run read event by event: what is told, when, and what readers can and cannot change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.models import ScriptedModel
from tests.support.nodes import Act, fails, in_turn, now_ms, says
from tests.support.runs import a_graph, a_line, a_message, an_executor, code, go, node, run_clean
from tinyllm.context import ExecutionContext
from tinyllm.errors import OverloadedError, UsageError
from tinyllm.executor import Executor
from tinyllm.message import Message, NodeResult, TaskPayload
from tinyllm.nodes.base import passed_on, success
from tinyllm.streaming import RunStream
from tinyllm.trace import EventKind, RunResult, TraceEvent

pytestmark = pytest.mark.unit


def streaming(acts: Mapping[str, Act] | None = None, **config: Any) -> Executor:
    """start -> work -> work2 -> end; each work takes 10 ms."""
    works = {"work": says("one", after_ms=10), "work2": says("two", after_ms=10), **(acts or {})}
    return an_executor(a_line(node("model"), node("model")), works, **config)


async def read(stream: RunStream) -> list[TraceEvent]:
    return [event async for event in stream]


def opened(executor: Executor, run_id: str = "r", **how: Any) -> RunStream:
    return executor.stream(TaskPayload(content="q"), run_id=run_id, **how)


def kinds(events: list[TraceEvent]) -> list[EventKind]:
    return [event.kind for event in events]


# --- what is told --------------------------------------------------------------------------------------


def test_a_stream_is_the_trace_of_its_result_in_order():
    executor = streaming({"work": in_turn(fails(after_ms=3), says("x"))}, failure_policy="skip_failed")

    async def main() -> tuple[list[TraceEvent], RunResult]:
        stream = opened(executor)
        return await read(stream), stream.result

    got, result = run_clean(main())

    assert [*result.trace] == got
    assert [*range(len(got))] == [event.sequence for event in got]
    assert (EventKind.RUN_STARTED, EventKind.RUN_ENDED) == (got[0].kind, got[-1].kind)


def test_streams_of_wrapped_steps_that_run_at_once_are_their_trace_too():
    nodes = {
        "loop": node("loop", body_node="fan", max_iterations=3),
        "fan": node("fanout", target_nodes=["a", "b", "a"], max_parallel_branches=2),
        "a": node("model", retry_count=1, retry_delay_ms=3),
        "b": node("timeout", inner_node="c", timeout_ms=5, on_timeout="skip"),
        "c": node("model"),
    }
    graph = a_graph(nodes, [("start", "loop"), ("loop", "end", "1 / 0"), ("loop", "end")])
    acts = {"a": in_turn(says("x", after_ms=2), fails(after_ms=1), says("y")), "c": says("z", after_ms=7)}

    async def main() -> tuple[list[TraceEvent], RunResult]:
        stream = opened(an_executor(graph, acts))
        return await read(stream), stream.result

    got, result = run_clean(main())

    assert ("succeeded", [*result.trace]) == (result.status, got)


def test_a_stream_and_a_run_come_to_the_same():
    async def main() -> RunResult:
        stream = opened(streaming())
        await read(stream)
        return stream.result

    streamed, ran = run_clean(main()), go(streaming(), "q", run_id="r")

    assert (ran.status, ran.content, ran.nodes_executed, kinds([*ran.trace])) == (
        streamed.status,
        streamed.content,
        streamed.nodes_executed,
        kinds([*streamed.trace]),
    )


def test_events_are_told_as_they_happen():
    async def main() -> list[tuple[float, float]]:
        return [(event.at_ms, now_ms()) async for event in opened(streaming())]

    moments = run_clean(main())

    assert [at for at, _ in moments] == [now for _, now in moments]
    assert {0.0, 10.0, 20.0} == {now for _, now in moments}


def test_a_message_can_be_streamed_as_well_as_a_task():
    async def main() -> RunResult:
        stream = streaming().stream(a_message(content="mine"), entry="start", variables={"v": 1})
        await read(stream)
        return stream.result

    assert "succeeded" == run_clean(main()).status


def test_the_stream_knows_its_run_id_from_the_beginning():
    async def main() -> tuple[str, str, str]:
        named, unnamed = opened(streaming()), streaming().stream(TaskPayload(content="q"))
        first = (await read(unnamed))[0]
        await read(named)
        return named.run_id, unnamed.run_id, first.details["run_id"]

    named, unnamed, told = run_clean(main())

    assert ("r", told) == (named, unnamed)


@pytest.mark.parametrize(
    ("acts", "config", "status"),
    [
        ({"work": fails()}, {}, "failed"),
        ({"work": says("late", after_ms=99)}, {"timeout_ms": 50}, "timed_out"),
        ({}, {"max_steps": 0}, "failed"),
        ({"work": fails()}, {"failure_policy": "best_effort"}, "degraded"),
    ],
)
def test_however_the_run_ends_the_stream_ends_with_it_and_raises_nothing(acts, config, status):
    async def main() -> tuple[list[TraceEvent], RunResult]:
        stream = opened(streaming(acts, **config))
        return await read(stream), stream.result

    got, result = run_clean(main())

    assert (status, [*result.trace], EventKind.RUN_ENDED) == (result.status, got, got[-1].kind)


# --- the result ----------------------------------------------------------------------------------------


def test_the_result_is_there_after_the_last_event_and_not_before():
    async def main() -> RunResult:
        stream = opened(streaming())
        with pytest.raises(UsageError, match="'r'"):
            _ = stream.result
        async for event in stream:
            if event.kind is not EventKind.RUN_ENDED:
                with pytest.raises(UsageError):
                    _ = stream.result
        return stream.result

    assert "succeeded" == run_clean(main()).status


def test_the_result_is_the_same_object_each_time():
    async def main() -> bool:
        stream = opened(streaming())
        await read(stream)
        return stream.result is stream.result

    assert run_clean(main())


def test_a_stream_that_was_read_to_its_end_stays_at_its_end():
    async def main() -> list[list[TraceEvent]]:
        stream = opened(streaming())
        first = await read(stream)
        return [first[:0], await read(stream), await read(stream)]

    assert [[], [], []] == run_clean(main())


# --- readers -------------------------------------------------------------------------------------------


def test_a_slow_reader_changes_nothing_of_the_run():
    async def main() -> RunResult:
        stream = opened(streaming())
        async for _ in stream:
            await asyncio.sleep(1)
        return stream.result

    result = run_clean(main())

    assert ("succeeded", 20.0) == (result.status, result.total_latency_ms)
    assert {0.0, 10.0, 20.0} == {event.at_ms for event in result.trace}


def test_a_run_begins_and_ends_without_any_reader():
    done: list[float] = []

    async def noting(message: Message, context: ExecutionContext) -> NodeResult:
        done.append(now_ms())
        return success(passed_on(message, context))

    async def main() -> RunResult:
        stream = opened(streaming({"work2": noting}))
        await asyncio.sleep(1)
        return stream.result

    assert ("succeeded", [10.0]) == (run_clean(main()).status, done)


def test_a_reader_that_comes_late_still_reads_everything():
    async def main() -> tuple[list[TraceEvent], RunResult]:
        stream = opened(streaming())
        await asyncio.sleep(1)
        return await read(stream), stream.result

    got, result = run_clean(main())

    assert [*result.trace] == got


def test_a_reader_that_stops_changes_nothing_of_the_run():
    async def main() -> RunResult:
        stream = opened(streaming())
        async for event in stream:
            if event.kind is EventKind.STEP_STARTED:
                break
        await asyncio.sleep(1)
        return stream.result

    result = run_clean(main())

    assert ("succeeded", 20.0) == (result.status, result.total_latency_ms)


def test_who_stops_reading_can_go_on():
    async def main() -> tuple[list[TraceEvent], RunResult]:
        stream = opened(streaming())
        got = []
        async for event in stream:
            got.append(event)
            if len(got) == 3:
                break
        got += await read(stream)
        return got, stream.result

    got, result = run_clean(main())

    assert [*result.trace] == got


def test_a_reader_that_is_cancelled_while_it_waits_cancels_the_run():
    async def main() -> tuple[float, RunResult]:
        stream = opened(streaming())
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0.005)
        reader.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reader
        return now_ms(), stream.result

    at, result = run_clean(main())

    assert (5.0, "cancelled", "CANCELLED") == (at, result.status, code(result))


def test_what_a_cancelled_run_told_can_still_be_read():
    async def main() -> tuple[list[TraceEvent], RunResult]:
        stream = opened(streaming())
        first = await stream.__anext__()
        await asyncio.sleep(0.005)
        await stream.aclose()
        return [first, *(await read(stream))], stream.result

    got, result = run_clean(main())

    assert ("cancelled", [*result.trace], EventKind.RUN_ENDED) == (result.status, got, got[-1].kind)


def test_two_readers_share_the_events_between_them():
    """Every event goes to somebody once, and both readers end."""

    async def main() -> tuple[list[int], RunResult]:
        stream = opened(streaming())
        both = await asyncio.wait_for(asyncio.gather(read(stream), read(stream)), 5)
        return sorted(event.sequence for part in both for event in part), stream.result

    numbers, result = run_clean(main())

    assert [event.sequence for event in result.trace] == numbers


# --- cancelling and closing ----------------------------------------------------------------------------


def test_executor_cancel_ends_a_stream_with_its_last_events():
    executor = streaming()

    async def main() -> tuple[list[TraceEvent], RunResult]:
        stream = opened(executor)
        asyncio.get_running_loop().call_later(0.005, executor.cancel, "r")
        return await read(stream), stream.result

    got, result = run_clean(main())

    assert ("cancelled", 5.0, EventKind.RUN_ENDED) == (result.status, result.total_latency_ms, got[-1].kind)
    assert [*result.trace] == got


def test_aclose_cancels_the_run_and_waits_until_it_has_ended():
    cleaned: list[float] = []

    async def careful(message: Message, context: ExecutionContext) -> NodeResult:
        try:
            await asyncio.sleep(1)
        finally:
            cleaned.append(now_ms())
        return success(passed_on(message, context))

    async def main() -> tuple[str, list[float]]:
        stream = opened(streaming({"work": careful}))
        await asyncio.sleep(0.005)
        await stream.aclose()
        await stream.aclose()
        return stream.result.status, [*cleaned]

    assert ("cancelled", [5.0]) == run_clean(main())


def test_aclose_after_the_end_changes_nothing():
    async def main() -> str:
        stream = opened(streaming())
        await read(stream)
        await stream.aclose()
        return stream.result.status

    assert "succeeded" == run_clean(main())


def test_aclose_before_the_run_took_its_first_step_runs_none():
    async def main() -> RunResult:
        stream = opened(streaming())
        await stream.aclose()
        return stream.result

    result = run_clean(main())

    assert ("cancelled", 0) == (result.status, result.nodes_executed)


def test_leaving_async_with_cancels_a_run_that_has_not_ended():
    async def main() -> RunResult:
        async with opened(streaming()) as stream:
            async for event in stream:
                if event.kind is EventKind.STEP_STARTED:
                    break
        return stream.result

    assert "cancelled" == run_clean(main()).status


def test_leaving_async_with_after_the_end_leaves_the_result():
    async def main() -> RunResult:
        async with opened(streaming()) as stream:
            await read(stream)
        return stream.result

    assert "succeeded" == run_clean(main()).status


def test_an_error_inside_async_with_is_the_reader_s_and_ends_the_run():
    async def main() -> RunResult:
        stream = opened(streaming())
        with pytest.raises(ZeroDivisionError):
            async with stream:
                raise ZeroDivisionError
        return stream.result

    assert "cancelled" == run_clean(main()).status


def test_the_run_id_is_free_again_after_a_closed_stream():
    executor = streaming()

    async def main() -> str:
        async with opened(executor):
            with pytest.raises(UsageError):
                opened(executor)
        async with opened(executor) as stream:
            await read(stream)
        return stream.result.status

    assert "succeeded" == run_clean(main())


class CleansUp:
    """A node that ends 10 ms after its cancellation, whatever else it is told."""

    def __init__(self) -> None:
        self.ended_at: float | None = None

    async def act(self, message: Message, context: ExecutionContext) -> NodeResult:
        until: float | None = None
        while until is None or now_ms() < until:
            try:
                await asyncio.sleep(1 if until is None else (until - now_ms()) / 1_000)
            except asyncio.CancelledError:
                until = now_ms() + 10 if until is None else until
        self.ended_at = now_ms()
        return success(passed_on(message, context))


# BUG: a cancelled `aclose` does not wait for the end of the run.
@pytest.mark.parametrize("cancels", [1, 2])
def test_one_who_is_cancelled_while_closing_still_waits_for_the_end(cancels):
    node = CleansUp()

    async def main() -> tuple[bool, float, float | None, str]:
        stream = opened(streaming({"work": node.act}))
        await asyncio.sleep(0.005)
        closing = asyncio.create_task(stream.aclose())
        for _ in range(cancels):
            await asyncio.sleep(0.001)
            closing.cancel()
        await asyncio.gather(closing, return_exceptions=True)
        at = now_ms()
        await asyncio.sleep(1)
        return closing.cancelled(), at, node.ended_at, stream.result.status

    assert (True, 15.0, 15.0, "cancelled") == run_clean(main())


# BUG: the second cancellation does not wait for the end of the run.
@pytest.mark.parametrize("cancels", [1, 2, 3])
def test_a_reader_that_is_cancelled_still_waits_for_the_end(cancels):
    node = CleansUp()

    async def main() -> tuple[bool, float, float | None, str]:
        stream = opened(streaming({"work": node.act}))
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0.005)
        for _ in range(cancels):
            reader.cancel()
            await asyncio.sleep(0.001)
        await asyncio.gather(reader, return_exceptions=True)
        at = now_ms()
        await asyncio.sleep(1)
        return reader.cancelled(), at, node.ended_at, stream.result.status

    assert (True, 15.0, 15.0, "cancelled") == run_clean(main())


def test_a_reader_that_waits_while_another_closes_reads_to_the_end():
    async def main() -> tuple[list[TraceEvent], RunResult]:
        stream = opened(streaming())
        reader = asyncio.create_task(read(stream))
        await asyncio.sleep(0.005)
        await stream.aclose()
        return await reader, stream.result

    got, result = run_clean(main())

    assert ("cancelled", [*result.trace]) == (result.status, got)


# --- streams that wait their turn ----------------------------------------------------------------------


def test_a_stream_may_wait_its_turn():
    executor = streaming(max_concurrent_runs=1)

    async def main() -> list[Any]:
        first, second = opened(executor, "a"), opened(executor, "b")
        got = await asyncio.gather(read(first), read(second))
        return [(events[0].at_ms, events[-1].at_ms, [*s.result.trace] == events)
                for events, s in zip(got, (first, second), strict=True)]  # fmt: skip

    assert [(0.0, 20.0, True)] * 2 == run_clean(main())


def test_a_stream_that_is_closed_while_it_waits_never_begins():
    executor = streaming(max_concurrent_runs=1, max_queued_runs=1)

    async def main() -> list[Any]:
        first, second = opened(executor, "a"), opened(executor, "b")
        with pytest.raises(OverloadedError):
            opened(executor, "c")
        await asyncio.sleep(0.005)
        await second.aclose()
        third = opened(executor, "c")
        await asyncio.gather(read(first), read(third))
        return [(s.result.status, s.result.nodes_executed) for s in (first, second, third)]

    assert [("succeeded", 4), ("cancelled", 0), ("succeeded", 4)] == run_clean(main())


# --- misuse --------------------------------------------------------------------------------------------


def test_without_tracing_there_is_nothing_to_stream():
    async def main() -> None:
        with pytest.raises(UsageError, match="tracing"):
            opened(streaming(tracing=False))

    run_clean(main())


@pytest.mark.parametrize("wrong", [{"entry": "nowhere"}, {"variables": {"x": object()}}])
def test_misuse_is_raised_at_once_and_starts_nothing(wrong):
    executor = streaming()

    async def main() -> str:
        with pytest.raises(UsageError):
            opened(executor, **wrong)
        async with opened(executor) as stream:
            await read(stream)
        return stream.result.status

    assert "succeeded" == run_clean(main())


def test_streams_at_once_are_told_apart():
    model = ScriptedModel((10, "x"))
    executor = an_executor(a_line(), model=model)

    async def main() -> list[bool]:
        streams = [opened(executor, f"r{number}") for number in range(5)]
        got = await asyncio.gather(*[read(stream) for stream in streams])
        return [[*stream.result.trace] == events for stream, events in zip(streams, got, strict=True)]

    assert [True] * 5 == run_clean(main())


def test_a_stream_whose_task_is_cancelled_before_its_first_turn_gives_its_place_and_id_back():
    executor = streaming(max_concurrent_runs=1, max_queued_runs=0)

    async def main() -> str:
        before = asyncio.all_tasks()
        opened(executor)
        # As `asyncio.run` does when it ends.
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        stream = opened(executor)
        await read(stream)
        return stream.result.status

    assert "succeeded" == run_clean(main())


def test_a_stream_that_no_task_can_be_made_for_gives_its_place_and_id_back():
    def refuses(loop: asyncio.AbstractEventLoop, coro: Any, **how: Any) -> asyncio.Task[Any]:
        raise ValueError("no tasks here")

    executor = streaming(max_concurrent_runs=1, max_queued_runs=0)

    async def main() -> str:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(refuses)
        with pytest.raises(ValueError, match="no tasks here"):
            opened(executor)
        loop.set_task_factory(None)
        return (await executor.execute(TaskPayload(content="q"), run_id="r")).status

    assert "succeeded" == asyncio.run(main())
