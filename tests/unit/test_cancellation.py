"""Cancelling a run: by the executor, by the caller, twice, too late, and against nodes that will not have it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.models import ScriptedModel
from tests.support.nodes import Act, Wrapping, blocks, fails, in_turn, now_ms, raises, says, swallows
from tests.support.runs import a_graph, a_line, an_executor, code, count, events, go, node, run_clean, visited
from tinyllm.executor import Executor
from tinyllm.message import Message, NodeResult, TaskPayload
from tinyllm.nodes.base import passed_on, success
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

TASK = TaskPayload(content="question")


def cancelled_at(ms: float, executor: Executor, *, times: int = 1) -> tuple[RunResult, list[bool]]:
    """The result of a run that is cancelled after `ms`, and what `cancel` answered."""
    answers: list[bool] = []

    async def main() -> RunResult:
        for _ in range(times):
            asyncio.get_running_loop().call_later(ms / 1_000, lambda: answers.append(executor.cancel("r")))
        return await executor.execute(TASK, run_id="r")

    return run_clean(main()), answers


def caller_cancelled_at(ms: float, executor: Executor, *, times: int = 1) -> float:
    """When the caller got its CancelledError."""

    async def main() -> float:
        caller = asyncio.create_task(executor.execute(TASK, run_id="r"))
        for _ in range(times):
            asyncio.get_running_loop().call_later(ms / 1_000, caller.cancel)
        with pytest.raises(asyncio.CancelledError):
            await caller
        return now_ms()

    return run_clean(main())


# --- executor.cancel -----------------------------------------------------------------------------------


def test_cancel_ends_the_run_at_its_next_await_and_gives_the_caller_a_result():
    result, answers = cancelled_at(5, an_executor(a_line(), {"work": says("x", after_ms=50)}))

    assert [True] == answers
    assert ("cancelled", "CANCELLED", "work") == (
        result.status,
        code(result),
        result.error and result.error.node_id,
    )
    assert "question" == result.content
    assert 5.0 == result.total_latency_ms
    assert ["start", "work"] == visited(result)


def test_cancelling_twice_is_the_same_as_once():
    once, _ = cancelled_at(5, an_executor(a_line(), {"work": says("x", after_ms=50)}))
    twice, answers = cancelled_at(5, an_executor(a_line(), {"work": says("x", after_ms=50)}), times=2)

    assert [True, False] == answers
    assert (once.status, once.total_latency_ms) == (twice.status, twice.total_latency_ms)


def test_cancelling_again_does_not_restart_the_grace_time():
    executor = an_executor(a_line(), {"work": swallows(None)}, cancel_grace_ms=100)

    async def main() -> RunResult:
        for ms in (10, 50, 90):
            asyncio.get_running_loop().call_later(ms / 1_000, executor.cancel, "r")
        return await executor.execute(TASK, run_id="r")

    loop = SimulatedLoop()
    result = loop.run_until_complete(main())
    loop.close()

    assert 110.0 == result.total_latency_ms


def test_cancelling_after_the_end_or_an_unknown_run_does_nothing():
    executor = an_executor(a_line())

    assert executor.cancel("r") is False
    assert "succeeded" == go(executor, run_id="r").status
    assert executor.cancel("r") is False


def test_a_run_begins_with_its_caller_and_is_cancelled_where_it_first_waits():
    executor = an_executor(a_line())

    async def main() -> RunResult:
        task = asyncio.create_task(executor.execute(TASK, run_id="r"))
        # After the caller's first step the run waits for its model.
        asyncio.get_running_loop().call_soon(executor.cancel, "r")
        return await task

    result = run_clean(main())

    assert ("cancelled", 2, "work") == (result.status, result.nodes_executed, result.error and result.error.node_id)


def test_a_run_that_waits_for_a_retry_is_cancelled_at_once():
    graph = a_line(node("model", retry_count=1, retry_delay_ms=60_000))
    result, _ = cancelled_at(5, an_executor(graph, {"work": fails()}))

    assert ("cancelled", 5.0) == (result.status, result.total_latency_ms)


def test_a_cancelled_run_goes_to_no_on_error_and_absorbs_nothing():
    graph = a_graph(
        {"work": node("model", on_error="rescue", retry_count=3), "rescue": node("model")},
        [("start", "work"), ("work", "end"), ("rescue", "end")],
    )
    executor = an_executor(graph, {"work": says("x", after_ms=50)}, failure_policy="skip_failed")
    result, _ = cancelled_at(5, executor)

    assert ("cancelled", ["start", "work"]) == (result.status, visited(result))
    assert 1 == count(result, EventKind.ATTEMPT_STARTED, "work")


def test_cancelling_ends_every_branch_of_nested_fanouts():
    inner = node("fanout", target_nodes=["a", "b"], aggregation_strategy="majority_vote")
    outer = node("fanout", target_nodes=["inner", "a"], aggregation_strategy="majority_vote")
    graph = a_graph(
        {"outer": outer, "inner": inner, "a": node("model"), "b": node("model")},
        [("start", "outer"), ("outer", "end")],
    )
    acts = {"a": says("x", after_ms=50), "b": says("x", after_ms=50)}
    result, _ = cancelled_at(5, an_executor(graph, acts))

    assert ("cancelled", "outer") == (result.status, result.error and result.error.node_id)
    assert (2, 1) == (count(result, EventKind.STEP_STARTED, "a"), count(result, EventKind.STEP_STARTED, "b"))
    assert count(result, EventKind.STEP_STARTED) == count(result, EventKind.STEP_ENDED)


def test_other_runs_of_the_executor_go_on():
    executor = an_executor(a_line(), {"work": says("x", after_ms=50)})

    async def main() -> tuple[RunResult, RunResult]:
        asyncio.get_running_loop().call_later(0.005, executor.cancel, "r")
        one = asyncio.create_task(executor.execute(TASK, run_id="r"))
        other = asyncio.create_task(executor.execute(TASK, run_id="other"))
        return await one, await other

    assert ["cancelled", "succeeded"] == [result.status for result in run_clean(main())]


def test_a_node_may_cancel_its_own_run():
    graph = a_line(node("model"), node("model"))
    executor = an_executor(graph)

    async def act(message: Message, context: Any) -> NodeResult:
        executor.cancel(context.run_id)
        return success(passed_on(message, context, content="done all the same"))

    executor = an_executor(graph, {"work": act})
    result = go(executor)

    assert ("cancelled", ["start", "work"], "question") == (result.status, visited(result), result.content)


def test_a_cancel_at_the_moment_of_the_deadline_comes_too_late():
    """Whoever asks at the very moment finds the run over."""
    result, answers = cancelled_at(50, an_executor(a_line(), {"work": says("x", after_ms=99)}, timeout_ms=50))

    assert ("timed_out", [False]) == (result.status, answers)


def test_a_cancel_before_the_deadline_decides_even_if_the_node_is_late():
    executor = an_executor(a_line(), {"work": swallows(1, ms=60)}, timeout_ms=50)
    result, answers = cancelled_at(40, executor)

    assert ("cancelled", [True], 40.0) == (result.status, answers, result.total_latency_ms)


# --- the caller's own cancellation -----------------------------------------------------------------------


def test_a_cancelled_caller_gets_its_cancellation_once_the_run_has_ended():
    assert 5.0 == caller_cancelled_at(5, an_executor(a_line(), {"work": says("x", after_ms=50)}))


def test_a_caller_cancelled_twice_still_waits_for_the_end_of_the_run():
    log: list[float] = []

    async def tidy(message: Message, context: Any) -> NodeResult:
        try:
            await asyncio.sleep(1)
        finally:
            log.append(now_ms())
        raise AssertionError("unreachable")

    assert 5.0 == caller_cancelled_at(5, an_executor(a_line(), {"work": tidy}), times=2)
    assert [5.0] == log


def test_a_caller_that_is_cancelled_while_a_node_cleans_up_waits_for_it():
    executor = an_executor(a_line(), {"work": swallows(3, ms=30)}, cancel_grace_ms=1_000)

    async def main() -> float:
        caller = asyncio.create_task(executor.execute(TASK, run_id="r"))
        for ms in (5, 5, 5):
            asyncio.get_running_loop().call_later(ms / 1_000, caller.cancel)
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert executor.cancel("r") is False
        return now_ms()

    assert 5.0 == run_clean(main())


def test_a_timeout_around_the_call_is_the_caller_s():
    executor = an_executor(a_line(), {"work": says("x", after_ms=50)})

    async def main() -> float:
        try:
            async with asyncio.timeout(0.005):
                await executor.execute(TASK)
        except TimeoutError:
            return now_ms()
        raise AssertionError("nothing was raised")

    assert 5.0 == run_clean(main())


def test_a_caller_in_a_task_group_is_cancelled_with_it():
    executor = an_executor(a_line(), {"work": says("x", after_ms=50)})

    async def fail() -> None:
        await asyncio.sleep(0.005)
        raise ValueError("the other one")

    async def main() -> float:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(executor.execute(TASK))
                group.create_task(fail())
        except* ValueError:
            ended = now_ms()
        return ended

    assert 5.0 == run_clean(main())


def test_the_run_s_id_is_free_again_after_the_caller_was_cancelled():
    executor = an_executor(a_line(), {"work": says("x", after_ms=50)})
    caller_cancelled_at(5, executor)

    assert "succeeded" == go(executor, run_id="r").status


# --- nodes that swallow their cancellation -----------------------------------------------------------------


def run_dirty(main: Callable[[], Any]) -> Any:
    """Like run_clean, for nodes that are abandoned: what they leave ends with the loop."""
    loop = SimulatedLoop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


@pytest.mark.parametrize("times", [1, 2, 9])
def test_a_node_that_swallows_its_cancellation_changes_nothing(times):
    """It is cancelled again at each await; what it answers in the end is dropped."""
    log: list[float] = []
    result, _ = cancelled_at(5, an_executor(a_line(), {"work": swallows(times, log=log)}))

    assert ("cancelled", "question") == (result.status, result.content)
    assert [5.0] * times == log
    assert 0 == count(result, EventKind.TASK_ABANDONED)


@pytest.mark.parametrize("times", [1, 9])
def test_a_node_that_swallows_its_deadline_changes_nothing(times):
    graph = a_line(node("model", timeout_ms=20, retry_count=1, retry_delay_ms=0))
    acts = {"work": in_turn(swallows(times), says("second"))}
    result = go(an_executor(graph, acts))

    assert ("succeeded", "second", 20.0) == (result.status, result.content, result.total_latency_ms)
    assert ["TIMEOUT", None] == [e.code for e in events(result, EventKind.ATTEMPT_ENDED, "work")]


def test_a_node_that_swallows_a_while_ends_within_its_grace():
    log: list[float] = []
    executor = an_executor(a_line(), {"work": swallows(15, log=log)}, cancel_grace_ms=1_000)
    result, _ = cancelled_at(5, executor)

    assert "cancelled" == result.status
    assert 15 == len(log)
    assert log[-1] == result.total_latency_ms < 1_005.0
    assert 0 == count(result, EventKind.TASK_ABANDONED)


@pytest.mark.parametrize("ms", [1, 3, 5, 7])
@pytest.mark.parametrize("grace_ms", [0, 1, 70, 100, 1_000])
def test_a_node_that_swallows_without_end_is_abandoned_after_its_grace_exactly(ms, grace_ms):
    executor = an_executor(a_line(), {"work": swallows(None)}, cancel_grace_ms=grace_ms)

    async def main() -> RunResult:
        asyncio.get_running_loop().call_later(ms / 1_000, executor.cancel, "r")
        return await executor.execute(TASK, run_id="r")

    result = run_dirty(main)
    told = events(result, EventKind.TASK_ABANDONED)

    assert ("cancelled", ms + grace_ms) == (result.status, result.total_latency_ms)
    assert [("work", "2", 1)] == [(e.node_id, e.path, e.attempt) for e in told]


def test_a_node_abandoned_at_its_deadline_fails_with_timeout_and_the_run_goes_on():
    graph = a_line(node("model", timeout_ms=20), node("model"))
    executor = an_executor(
        graph, {"work": swallows(None), "work2": says("x")}, cancel_grace_ms=100, failure_policy="skip_failed"
    )
    result = run_dirty(lambda: executor.execute(TASK))

    assert ("degraded", "TIMEOUT", "x") == (result.status, code(result), result.content)
    assert 120.0 == result.total_latency_ms
    assert 1 == count(result, EventKind.TASK_ABANDONED)


@pytest.mark.parametrize(("timeout_ms", "status"), [(100, "timed_out"), (120, "timed_out"), (121, "degraded")])
def test_a_deadline_that_passes_while_a_node_swallows_its_own_decides(timeout_ms, status):
    """The run ends late, by the grace at most, and for the outer reason."""
    graph = a_line(node("model", timeout_ms=20), node("model"))
    executor = an_executor(
        graph,
        {"work": swallows(None), "work2": says("x")},
        cancel_grace_ms=100,
        timeout_ms=timeout_ms,
        failure_policy="skip_failed",
    )
    result = run_dirty(lambda: executor.execute(TASK))

    assert (status, 120.0) == (result.status, result.total_latency_ms)


def test_an_abandoned_node_counts_no_tokens_and_writes_nothing_any_more():
    async def stubborn(message: Message, context: Any) -> NodeResult:
        while now_ms() < 60:
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                context.count_tokens(100)
                context.variables["x"] = 1
        return success(passed_on(message, context))

    graph = a_line(node("model", timeout_ms=20), node("model"))
    seen: list[Any] = []

    async def later(message: Message, context: Any) -> NodeResult:
        await asyncio.sleep(0.2)
        seen.append(dict(context.variables))
        return success(passed_on(message, context))

    executor = an_executor(
        graph, {"work": stubborn, "work2": later}, cancel_grace_ms=10, failure_policy="skip_failed"
    )
    result = run_dirty(lambda: executor.execute(TASK))

    assert ("degraded", 0) == (result.status, result.tokens_used)
    assert [{}] == seen


def test_an_abandoned_branch_of_a_fanout_delays_it_by_its_grace():
    fanout = node("fanout", target_nodes=["a", "b"], aggregation_strategy="majority_vote", fail_fast=True)
    graph = a_graph(
        {"fan": fanout, "a": node("model"), "b": node("model")}, [("start", "fan"), ("fan", "end")]
    )
    executor = an_executor(graph, {"a": fails(after_ms=5), "b": swallows(None)}, cancel_grace_ms=100)
    result = run_dirty(lambda: executor.execute(TASK))

    assert ("failed", "MODEL_ERROR", 105.0) == (result.status, code(result), result.total_latency_ms)
    assert ["b"] == [e.node_id for e in events(result, EventKind.TASK_ABANDONED)]


def test_a_node_that_answers_its_cancellation_with_an_error_is_cancelled_all_the_same():
    async def rude(message: Message, context: Any) -> NodeResult:
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            raise ValueError("how dare you") from None
        raise AssertionError("unreachable")

    result, _ = cancelled_at(5, an_executor(a_line(), {"work": rude}))

    assert ("cancelled", "CANCELLED") == (result.status, code(result))


def test_a_node_may_take_time_to_clean_up_within_its_grace():
    """Every await of a cleanup is cancelled again, so only shielded work goes on."""
    done: list[float] = []

    async def tidy_up() -> None:
        await asyncio.sleep(0.03)
        done.append(now_ms())

    async def act(message: Message, context: Any) -> NodeResult:
        try:
            await asyncio.sleep(1)
        finally:
            cleanup = asyncio.create_task(tidy_up())
            while not cleanup.done():
                try:
                    await asyncio.shield(cleanup)
                except asyncio.CancelledError:
                    continue
        raise AssertionError("unreachable")

    result, _ = cancelled_at(5, an_executor(a_line(), {"work": act}))

    assert [35.0] == done
    assert "cancelled" == result.status
    assert 0 == count(result, EventKind.TASK_ABANDONED)


# --- cancellations and exceptions of a node's own making -------------------------------------------------------


def cancels_its_task_and_returns(awaits: bool) -> Act:
    async def act(message: Message, context: Any) -> NodeResult:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        if awaits:
            await asyncio.sleep(0)
        return success(passed_on(message, context))

    return act


@pytest.mark.parametrize(
    "act",
    [raises(asyncio.CancelledError()), cancels_its_task_and_returns(True), cancels_its_task_and_returns(False)],
    ids=["raised", "its own task", "its own task, without an await after it"],
)
def test_a_cancellation_of_the_node_s_own_making_is_a_failure_and_not_retried(act):
    graph = a_line(node("model", retry_count=3), node("model"))
    result = go(an_executor(graph, {"work": act}, failure_policy="skip_failed"))

    assert ("degraded", "CANCELLED", "work") == (
        result.status,
        code(result),
        result.error and result.error.node_id,
    )
    assert 1 == count(result, EventKind.ATTEMPT_STARTED, "work")


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(3),
        GeneratorExit(),
        BaseException("base"),
        StopAsyncIteration(),
        BaseExceptionGroup("g", [SystemExit()]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_any_exception_but_keyboard_interrupt_is_a_failure(error):
    graph = a_line(node("model", retry_count=1, retry_delay_ms=0))
    result = go(an_executor(graph, {"work": raises(error)}))

    assert ("failed", "UNKNOWN") == (result.status, code(result))
    assert result.error is not None
    assert result.error.message.startswith(type(error).__name__)
    assert 2 == count(result, EventKind.ATTEMPT_STARTED, "work")


def test_keyboard_interrupt_is_for_whoever_runs_the_loop():
    loop = SimulatedLoop()
    executor = an_executor(a_line(), {"work": raises(KeyboardInterrupt(), after_ms=5)})
    try:
        with pytest.raises(KeyboardInterrupt):
            loop.run_until_complete(executor.execute(TASK))
    finally:
        loop.close()


# --- blocking code -------------------------------------------------------------------------------------


def test_blocking_code_is_late_when_it_returns():
    graph = a_line(node("model", timeout_ms=20))
    result = go(an_executor(graph, {"work": blocks(50)}))

    assert ("failed", "TIMEOUT", 50.0) == (result.status, code(result), result.total_latency_ms)


def test_blocking_code_that_fails_too_late_is_late():
    graph = a_line(node("model", timeout_ms=20))

    assert "TIMEOUT" == code(go(an_executor(graph, {"work": blocks(50, fails())})))


def test_blocking_code_within_its_time_is_in_time():
    graph = a_line(node("model", timeout_ms=20))

    assert "succeeded" == go(an_executor(graph, {"work": blocks(19)})).status


def test_blocking_code_over_the_run_s_deadline_ends_the_run():
    result = go(an_executor(a_line(), {"work": blocks(50)}, timeout_ms=40))

    assert ("timed_out", "question", 50.0) == (result.status, result.content, result.total_latency_ms)


def test_a_cancel_during_blocking_code_counts_when_it_returns():
    result, answers = cancelled_at(5, an_executor(a_line(), {"work": blocks(50, says("x", after_ms=1))}))

    assert ("cancelled", [True], 50.0) == (result.status, answers, result.total_latency_ms)


@pytest.mark.parametrize("act", [says("x"), fails()], ids=["answers", "fails"])
def test_a_wrapper_s_own_code_over_the_run_s_deadline_ends_the_run(act):
    fanout = node("fanout", target_nodes=["a"], aggregation_strategy="majority_vote")
    graph = a_graph({"work": fanout, "a": node("model")}, [("start", "work"), ("work", "end")])
    executor = an_executor(graph, timeout_ms=40)
    executor.nodes["work"] = Wrapping(graph.nodes["work"], blocks(50, act))
    result = go(executor)

    assert ("timed_out", "question", "work") == (result.status, result.content, result.error and result.error.node_id)


def test_a_wrapper_s_own_code_over_the_time_of_the_wrapper_around_it_is_late():
    nodes = {
        "fan": node("fanout", target_nodes=["inner"], aggregation_strategy="majority_vote", timeout_ms=40),
        "inner": node("fanout", target_nodes=["a"], aggregation_strategy="majority_vote"),
        "a": node("model"),
    }
    graph = a_graph(nodes, [("start", "fan"), ("fan", "end")])
    executor = an_executor(graph)
    executor.nodes["inner"] = Wrapping(graph.nodes["inner"], blocks(50))
    result = go(executor)

    assert ("failed", "TIMEOUT", "inner") == (result.status, code(result), result.error and result.error.node_id)


# --- ties ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("act", [says("x", after_ms=20), fails(after_ms=20)], ids=["answers", "fails"])
def test_work_that_ends_at_the_moment_of_its_deadline_is_late(act):
    graph = a_line(node("model", timeout_ms=20))

    assert "TIMEOUT" == code(go(an_executor(graph, {"work": act})))


def test_work_whose_timer_was_set_before_the_deadline_s_is_late_all_the_same():
    """Timers of one moment fire in the order in which they were set; the clock decides, not they."""
    graph = a_line(node("model", timeout_ms=20))

    async def main() -> RunResult:
        rang = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_later(0.02, rang.set_result, None)

        async def waits(message: Message, context: Any) -> NodeResult:
            await rang
            return success(passed_on(message, context))

        return await an_executor(graph, {"work": waits}).execute(TASK)

    result = run_clean(main())

    assert ("failed", "TIMEOUT") == (result.status, code(result))


def test_of_three_deadlines_at_one_moment_the_outermost_is_told():
    fanout = node("fanout", target_nodes=["a"], aggregation_strategy="majority_vote", timeout_ms=20)
    graph = a_graph({"fan": fanout, "a": node("model", timeout_ms=20)}, [("start", "fan"), ("fan", "end")])
    acts = {"a": says("x", after_ms=99)}
    with_run = go(an_executor(graph, acts, timeout_ms=20))
    without = go(an_executor(graph, acts, timeout_ms=21))

    assert ("timed_out", "fan") == (with_run.status, with_run.error and with_run.error.node_id)
    assert ("failed", "TIMEOUT", "a") == (without.status, code(without), without.error and without.error.node_id)
    assert without.error is not None
    assert "'a' took the 20 ms that 'fan' allows" in without.error.message


def test_a_cancelled_model_call_is_cancelled_at_once():
    model = ScriptedModel((60_000, "x"))
    result, _ = cancelled_at(5, an_executor(a_line(node("model", retry_count=2)), model=model))

    assert ("cancelled", 5.0, 1) == (result.status, result.total_latency_ms, len(model.requests))
