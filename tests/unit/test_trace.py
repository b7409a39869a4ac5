"""Traces: every start has its end, every failed attempt is told once, and the sums are the result's."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import ScriptedModel
from tests.support.nodes import Act, fails, in_turn, raises, says, swallows
from tests.support.runs import a_graph, a_line, an_executor, count, events, go, node
from tinyllm.errors import ErrorCode, ModelError
from tinyllm.executor import Executor
from tinyllm.message import Message, NodeResult, TaskPayload
from tinyllm.nodes.base import passed_on, success
from tinyllm.testing.loop import SimulatedLoop, run
from tinyllm.trace import EventKind, RunResult, Trace

pytestmark = pytest.mark.unit

STARTS = {
    EventKind.RUN_STARTED: EventKind.RUN_ENDED,
    EventKind.STEP_STARTED: EventKind.STEP_ENDED,
    EventKind.ATTEMPT_STARTED: EventKind.ATTEMPT_ENDED,
}


def told(result: RunResult) -> list[tuple[str, ...]]:
    return [(e.kind.value, str(e.node_id)) for e in result.trace]


# --- the whole of it -------------------------------------------------------------------------------------


def test_the_trace_of_a_plain_run_tells_everything_in_order():
    kinds = ("step started", "attempt started", "attempt ended", "step ended")
    steps = [(kind, name) for name in ("start", "end") for kind in kinds]
    expected = [("run started", "None"), *steps[:4], ("way chosen", "start"), *steps[4:], ("run ended", "None")]

    assert expected == told(go(an_executor(a_graph({}, [("start", "end")]))))


def test_it_begins_with_the_run_and_its_seed_and_ends_with_its_status():
    result = go(an_executor(a_line(), {"work": fails()}), run_id="r")
    first, last = result.trace[0], result.trace[-1]

    assert "r" == first.details["run_id"]
    assert isinstance(first.details["seed"], int)
    assert (EventKind.RUN_ENDED, "MODEL_ERROR", {"status": "failed"}) == (last.kind, last.code, last.details)


def test_the_seed_is_drawn_anew_for_each_run():
    executor = an_executor(a_line())
    seeds = {go(executor).trace[0].details["seed"] for _ in range(3)}

    assert 3 == len(seeds)


def test_the_seed_told_is_the_one_that_delays_come_from():
    graph = a_line(node("model", retry_count=1, retry_delay_ms=100, retry_backoff="exponential"))
    result = go(an_executor(graph, {"work": in_turn(fails(), says("x"))}))
    u = random.Random(f"{result.trace[0].details['seed']}:2").random()

    assert [100 * (0.5 + u / 2)] == [e.details["delay_ms"] for e in events(result, EventKind.RETRY_WAITING)]


def test_every_way_says_where_to_and_why():
    graph = a_graph(
        {"work": node("model", on_error="b"), "a": node("model"), "b": node("model")},
        [("start", "a", "content == 'question'"), ("start", "b"), ("a", "work"), ("work", "end"), ("b", "end")],
    )
    result = go(an_executor(graph, {"a": says("x", way="work"), "work": fails()}))
    ways = [(e.node_id, e.details["to"], e.details["why"]) for e in events(result, EventKind.WAY_CHOSEN)]

    assert [
        ("start", "a", "content == 'question'"),
        ("a", "work", "named by the node"),
        ("work", "b", "on_error"),
        ("b", "end", "unconditional"),
    ] == ways


# --- failures ------------------------------------------------------------------------------------------


def test_each_failed_attempt_is_the_cause_of_what_it_led_to():
    graph = a_line(node("model", retry_count=1, retry_delay_ms=7))
    result = go(an_executor(graph, {"work": in_turn(fails(text="first"), fails(text="second"))}))
    first, second = events(result, EventKind.ATTEMPT_ENDED, "work")
    waiting = events(result, EventKind.RETRY_WAITING)[0]
    ended = events(result, EventKind.STEP_ENDED, "work")[0]

    assert ("first", "second") == (first.details["message"], second.details["message"])
    assert ("MODEL_ERROR", "MODEL_ERROR", "MODEL_ERROR") == (first.code, second.code, ended.code)
    assert (first.sequence, second.sequence) == (waiting.cause, ended.cause)
    assert (1, 7) == (waiting.attempt, waiting.details["delay_ms"])
    assert [1, 2] == [e.attempt for e in events(result, EventKind.ATTEMPT_STARTED, "work")]


def test_a_step_that_succeeds_in_the_end_has_no_cause_and_no_code():
    graph = a_line(node("model", retry_count=1, retry_delay_ms=0))
    result = go(an_executor(graph, {"work": in_turn(fails(), says("x"))}))
    ended = events(result, EventKind.STEP_ENDED, "work")[0]

    assert (None, None) == (ended.cause, ended.code)


def test_what_is_cut_off_says_so_and_is_no_failure():
    result = go(an_executor(a_line(), {"work": says("x", after_ms=50)}, timeout_ms=10))
    attempt = events(result, EventKind.ATTEMPT_ENDED, "work")[0]
    step = events(result, EventKind.STEP_ENDED, "work")[0]

    assert (None, {"cut_off": True}) == (attempt.code, attempt.details)
    assert (None, None, {"cut_off": "deadline"}) == (step.code, step.cause, step.details)


def test_an_attempt_whose_run_ends_while_it_swallows_its_own_deadline_is_cut_off():
    graph = a_line(node("model", timeout_ms=10, retry_count=1))
    result = go(an_executor(graph, {"work": swallows(12)}, timeout_ms=30, cancel_grace_ms=200))
    attempt = events(result, EventKind.ATTEMPT_ENDED, "work")[0]

    assert ("timed_out", 30.0) == (result.status, result.total_latency_ms)
    assert (None, {"cut_off": True}) == (attempt.code, attempt.details)


def test_a_wrapper_whose_targets_are_cut_off_is_cut_off():
    fanout = node("fanout", target_nodes=["a", "b"], aggregation_strategy="majority_vote")
    graph = a_graph({"fan": fanout, "a": node("model"), "b": node("model")}, [("start", "fan"), ("fan", "end")])
    result = go(an_executor(graph, {"a": fails(), "b": says("x", after_ms=50)}, timeout_ms=10))
    attempt = events(result, EventKind.ATTEMPT_ENDED, "fan")[0]

    assert (None, {"cut_off": True}) == (attempt.code, attempt.details)


def test_a_run_cut_off_while_it_waits_tells_each_failure_once():
    graph = a_line(node("model", retry_count=1, retry_delay_ms=50))
    result = go(an_executor(graph, {"work": fails()}, timeout_ms=10))

    assert [] == unbalanced(result)
    assert events(result, EventKind.STEP_ENDED, "work")[0].cause is None


def test_a_failed_wrapper_is_told_like_any_other():
    fanout = node("fanout", target_nodes=["a"], aggregation_strategy="majority_vote", retry_count=1, retry_delay_ms=0)
    graph = a_graph({"fan": fanout, "a": node("model")}, [("start", "fan"), ("fan", "end")])
    result = go(an_executor(graph, {"a": fails()}))

    assert [] == unbalanced(result)
    assert 4 == sum(event.cause is not None for event in result.trace)


# --- tokens ----------------------------------------------------------------------------------------------


def test_each_attempt_tells_its_tokens():
    async def spends(message: Message, context: Any) -> NodeResult:
        context.count_tokens(2)
        context.count_tokens(3)
        return success(passed_on(message, context))

    async def spends_and_fails(message: Message, context: Any) -> NodeResult:
        context.count_tokens(7)
        raise ValueError("after all")

    graph = a_line(node("model", retry_count=1, retry_delay_ms=0))
    result = go(an_executor(graph, {"work": in_turn(spends_and_fails, spends)}))

    assert [7, 5] == [e.details["tokens"] for e in events(result, EventKind.ATTEMPT_ENDED, "work")]
    assert "tokens" not in events(result, EventKind.ATTEMPT_ENDED, "start")[0].details


def test_an_attempt_that_is_cut_off_tells_what_it_had_spent():
    async def spends_and_hangs(message: Message, context: Any) -> NodeResult:
        context.count_tokens(7)
        await asyncio.sleep(60)
        raise AssertionError("unreachable")

    result = go(an_executor(a_line(), {"work": spends_and_hangs}, timeout_ms=10))

    assert {"tokens": 7, "cut_off": True} == events(result, EventKind.ATTEMPT_ENDED, "work")[0].details
    assert 7 == result.tokens_used


# --- time ----------------------------------------------------------------------------------------------


def test_wall_time_may_go_back_but_loop_time_does_not():
    moments = [datetime(2030, 1, 1, tzinfo=UTC) - timedelta(hours=n) for n in range(100)]
    left = iter(moments)
    executor = Executor(a_line(), model=ScriptedModel((5, "x")), clock=lambda: next(left))
    result = go(executor)
    at = [event.at_ms for event in result.trace]

    assert at == sorted(at)
    assert (0.0, 5.0) == (at[0], at[-1])
    assert result.trace[-1].wall < result.trace[0].wall


def test_loop_time_counts_from_the_run_s_own_beginning():
    async def main() -> RunResult:
        await asyncio.sleep(1)
        return await an_executor(a_line(), {"work": says("x", after_ms=5)}).execute(TaskPayload(content="q"))

    result = run(main())

    assert (0.0, 5.0, 5.0) == (result.trace[0].at_ms, result.trace[-1].at_ms, result.total_latency_ms)


def test_equal_moments_are_equal_numbers():
    times = iter([1e5 + 0.1, 1e5 + 0.1 + 0.2, 1e5 + 0.3])
    trace = Trace(lambda: next(times), lambda: datetime.now(UTC))
    trace.add(EventKind.RUN_STARTED)
    trace.add(EventKind.RUN_ENDED)

    assert [200.0, 200.0] == [event.at_ms for event in trace]


def test_a_trace_is_not_printed_with_its_result():
    assert "TraceEvent" not in repr(go(an_executor(a_line())))


# --- whatever happens --------------------------------------------------------------------------------------


def unbalanced(result: RunResult) -> list[str]:
    """What is wrong with the books of this run."""
    wrong: list[str] = []
    if [e.sequence for e in result.trace] != list(range(len(result.trace))):
        wrong.append("sequence")
    if [e.at_ms for e in result.trace] != sorted(e.at_ms for e in result.trace):
        wrong.append("time")
    running: Counter[Any] = Counter()
    for event in result.trace:
        about = (event.node_id, event.path, event.attempt)
        if event.kind in STARTS:
            running[STARTS[event.kind], about] += 1
        elif event.kind in STARTS.values():
            running[event.kind, about] -= 1
            if running[event.kind, about] < 0:
                wrong.append(f"{event.kind} of {event.node_id} before its start")
    wrong += [f"{key} has no end" for key, open_now in running.items() if open_now > 0]
    failed = [e for e in result.trace if e.kind is EventKind.ATTEMPT_ENDED and e.code is not None]
    causes = Counter(e.cause for e in result.trace if e.cause is not None)
    if causes != Counter({e.sequence: 1 for e in failed}):
        wrong.append("causes")
    if any(e.cause is not None and e.cause >= e.sequence for e in result.trace):
        wrong.append("a cause after its effect")
    if count(result, EventKind.STEP_STARTED) != result.nodes_executed:
        wrong.append("steps")
    if sum(e.details.get("tokens", 0) for e in events(result, EventKind.ATTEMPT_ENDED)) != result.tokens_used:
        wrong.append("tokens")
    return wrong


ACTS: list[Act] = [
    says("x", after_ms=10),
    says("y"),
    fails(after_ms=5),
    fails(ErrorCode.VALIDATION_ERROR),
    raises(asyncio.CancelledError()),
    raises(ValueError("v"), after_ms=10),
    says("late", after_ms=99),
    swallows(2),
    swallows(None),
]
ways_to_act = st.lists(st.sampled_from(ACTS), min_size=1, max_size=4)


@settings(deadline=None, max_examples=150)
@given(
    a=ways_to_act,
    b=ways_to_act,
    policy=st.sampled_from(["fail_fast", "skip_failed", "fallback_simple", "best_effort"]),
    max_steps=st.integers(0, 9),
    timeout_ms=st.integers(1, 200),
    cancel_ms=st.none() | st.integers(0, 60),
    fail_fast=st.booleans(),
    retries=st.integers(0, 2),
)
def test_the_books_balance_whatever_happens(
    a, b, policy, max_steps, timeout_ms, cancel_ms, fail_fast, retries
):
    """Failures, deadlines, limits, cancellation and stubborn nodes in a fanout that is retried."""
    common = {"retry_count": retries, "retry_delay_ms": 10}
    fanout = node(
        "fanout",
        target_nodes=["a", "b", "m"],
        aggregation_strategy="majority_vote",
        fail_fast=fail_fast,
        timeout_ms=50,
        **common,
    )
    graph = a_graph(
        {
            "fan": fanout,
            "a": node("model", timeout_ms=30, **common),
            "b": node("model", timeout_ms=30),
            "m": node("model", fallback_models=["other"], fallback_timeout_ms=10),
        },
        [("start", "fan"), ("fan", "end")],
    )
    model = ScriptedModel({"qwen2.5:3b": [(5, "x"), (10, "x"), ModelError("down")]})
    executor = an_executor(
        graph,
        {"a": in_turn(*a), "b": in_turn(*b)},
        model=model,
        failure_policy=policy,
        max_steps=max_steps,
        timeout_ms=timeout_ms,
        cancel_grace_ms=20,
    )

    async def main() -> RunResult:
        if cancel_ms is not None:
            asyncio.get_running_loop().call_later(cancel_ms / 1_000, executor.cancel, "r")
        return await executor.execute(TaskPayload(content="q"), run_id="r")

    loop = SimulatedLoop()
    result = loop.run_until_complete(main())
    abandoned = count(result, EventKind.TASK_ABANDONED)
    left = len(loop.pending_tasks())
    loop.close()

    assert [] == unbalanced(result)
    assert abandoned >= left
    assert count(result, EventKind.STEP_STARTED) <= max_steps
    assert result.total_latency_ms <= timeout_ms + 20
    assert (result.error is None) is (result.status == "succeeded")
