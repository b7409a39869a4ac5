"""The timeout: its inner step within its time, and what follows when the time is up."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import Any

import pytest

from tests.support.models import ScriptedModel
from tests.support.nodes import Act, fails, in_turn, noting, says, swallows
from tests.support.runs import a_graph, a_message, an_executor, code, count, events, go, node, run_clean, visited
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.message import Message, MessageMetadata, NodeResult
from tinyllm.nodes.base import passed_on, success
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

RUN_KEYS = ("max_steps", "failure_policy", "max_tokens", "cancel_grace_ms")


def within(
    inner: Act,
    *,
    message: Message | None = None,
    variables: Mapping[str, Any] | None = None,
    of_inner: Mapping[str, Any] | None = None,
    seen: list[Any] | None = None,
    run_timeout_ms: int | None = None,
    **config: Any,
) -> RunResult:
    """start -> wrap -> last -> end, where `wrap` bounds `inner`, and `last` puts what it sees into `seen`."""
    of_run = {key: config.pop(key) for key in RUN_KEYS if key in config}
    if run_timeout_ms is not None:
        of_run["timeout_ms"] = run_timeout_ms

    async def last(message: Message, context: ExecutionContext) -> NodeResult:
        if seen is not None:
            seen.append((message, copy.deepcopy(context.variables)))
        return success(passed_on(message, context))

    nodes = {
        "wrap": node("timeout", inner_node="inner", **config),
        "inner": node("model", **(of_inner or {})),
        "last": node("model"),
    }
    graph = a_graph(nodes, [("start", "wrap"), ("wrap", "last"), ("last", "end")])
    executor = an_executor(graph, {"inner": inner, "last": last}, **of_run)
    message = a_message(content="question") if message is None else message
    return run_clean(executor.run(message, run_id="r", variables=variables))


def told(result: RunResult) -> tuple[Any, ...]:
    return result.status, code(result), result.error and result.error.node_id


# --- in time -------------------------------------------------------------------------------------------


def test_in_time_it_passes_the_inner_payload_and_its_writes_on():
    async def inner(message: Message, context: ExecutionContext) -> NodeResult:
        context.variables["v"] = 1
        return success(passed_on(message, context, content="answer", route="r", metadata={"m": 1}))

    seen: list[Any] = []
    within(inner, seen=seen, message=a_message(content="q", task="t"))
    payload = seen[0][0].payload

    assert ("answer", "r", "t", {"m": 1}) == (payload.content, payload.route, payload.task, payload.metadata)
    assert {"v": 1} == seen[0][1]


def test_its_inner_step_has_its_own_path_and_is_a_step():
    result = within(says("x"))

    assert [("wrap", "2"), ("inner", "2")] == [
        (e.node_id, e.path) for e in events(result, EventKind.STEP_STARTED) if e.path == "2"
    ]
    assert 5 == result.nodes_executed


@pytest.mark.parametrize(("after_ms", "content"), [(0, "x"), (49, "x"), (50, "question"), (51, "question")])
def test_the_deadline_wins_against_work_that_ends_at_the_same_moment(after_ms, content):
    result = within(says("x", after_ms=after_ms), timeout_ms=50, on_timeout="skip")

    assert (content, float(min(50, after_ms))) == (result.content, result.total_latency_ms)


def test_the_time_bounds_the_retries_and_waits_of_the_inner_step():
    log: list[Any] = []
    inner = {"retry_count": 9, "retry_delay_ms": 20}
    result = within(noting(log, fails(after_ms=10)), timeout_ms=50, of_inner=inner)

    assert ([0.0, 30.0], ("failed", "TIMEOUT", "wrap"), 50.0) == (log, told(result), result.total_latency_ms)


def test_the_inner_step_has_all_its_attempts_within_the_time():
    result = within(in_turn(fails(), fails(), says("third")), of_inner={"retry_count": 2, "retry_delay_ms": 10})

    assert ("third", 20.0) == (result.content, result.total_latency_ms)


def test_an_inner_failure_is_passed_on_with_the_node_it_came_from():
    result = within(fails(text="why", k=1))

    assert ("failed", "MODEL_ERROR", "inner") == told(result)
    assert ("why", {"k": 1}) == (result.error.message, result.error.details)


@pytest.mark.parametrize("on_timeout", ["skip", "fallback"])
def test_what_follows_a_timeout_follows_no_other_failure(on_timeout):
    more: dict[str, Any] = {"fallback_response": "f"} if on_timeout == "fallback" else {}

    assert ("failed", "MODEL_ERROR", "inner") == told(within(fails(), on_timeout=on_timeout, **more))


# --- the time is up ------------------------------------------------------------------------------------


def test_by_default_the_timeout_is_an_error_of_its_own():
    result = within(says("late", after_ms=99), timeout_ms=50)

    assert (("failed", "TIMEOUT", "wrap"), 50.0) == (told(result), result.total_latency_ms)
    assert result.error.recoverable


def test_an_inner_timeout_is_passed_on_as_the_inner_node_s():
    result = within(says("late", after_ms=99), timeout_ms=50, of_inner={"timeout_ms": 49})

    assert (("failed", "TIMEOUT", "inner"), 49.0) == (told(result), result.total_latency_ms)


def test_of_two_deadlines_at_one_moment_the_outer_one_is_told():
    result = within(says("late", after_ms=99), timeout_ms=50, of_inner={"timeout_ms": 50})

    assert ("failed", "TIMEOUT", "wrap") == told(result)


def test_the_run_s_deadline_at_the_same_moment_ends_the_run():
    result = within(says("late", after_ms=99), timeout_ms=50, on_timeout="skip", run_timeout_ms=50)

    assert ("timed_out", "TIMEOUT", "wrap") == told(result)


@pytest.mark.parametrize("own", [True, False], ids=["its own", "the inner one's"])
def test_skip_puts_out_the_payload_as_received(own):
    seen: list[Any] = []

    async def inner(message: Message, context: ExecutionContext) -> NodeResult:
        context.variables["v"] = 1
        await asyncio.sleep(1)
        return success(passed_on(message, context, content="late"))

    message = a_message(content="q", task="t", structured={"k": [1]}, metadata={"m": 1}, mine=2)
    limits: dict[str, Any] = {"timeout_ms": 50} if own else {"of_inner": {"timeout_ms": 50}}
    result = within(inner, message=message, on_timeout="skip", seen=seen, variables={"given": 0}, **limits)
    out, variables = seen[0]

    assert ("succeeded", None, 50.0) == (result.status, result.error, result.total_latency_ms)
    assert {"m": 1, "timeout": {"timed_out": True, "action": "skip"}} == out.payload.metadata
    assert {**message.payload.fields(), "metadata": out.payload.metadata} == out.payload.fields()
    assert ({"given": 0}, MessageMetadata()) == (variables, out.metadata)


@pytest.mark.parametrize("own", [True, False], ids=["its own", "the inner one's"])
def test_fallback_puts_out_its_response(own):
    limits: dict[str, Any] = {"timeout_ms": 50} if own else {"of_inner": {"timeout_ms": 50}}
    seen: list[Any] = []
    message = a_message(content="q", structured={"k": 1}, metadata={"m": 1, "timeout": "old"})
    within(
        says("late", after_ms=99), message=message, on_timeout="fallback", fallback_response="soon", seen=seen, **limits
    )
    payload = seen[0][0].payload

    assert ("soon", {"k": 1}) == (payload.content, payload.structured)
    told_there = {"timed_out": True, "action": "fallback"}
    assert {"m": 1, "fallback": True, "timeout": told_there} == payload.metadata


@pytest.mark.parametrize(("on_timeout", "metadata"), [("skip", {"m": 1}), ("fallback", {"m": 1, "fallback": True})])
def test_without_propagate_metadata_the_timeout_itself_is_not_told(on_timeout, metadata):
    seen: list[Any] = []
    more: dict[str, Any] = {"fallback_response": ""} if on_timeout == "fallback" else {}
    message = a_message(content="q", metadata={"m": 1})
    within(
        says("late", after_ms=99),
        timeout_ms=50,
        on_timeout=on_timeout,
        propagate_metadata=False,
        message=message,
        seen=seen,
        **more,
    )

    assert metadata == seen[0][0].payload.metadata
    assert ("" if on_timeout == "fallback" else "q") == seen[0][0].payload.content


@pytest.mark.parametrize("on_timeout", ["skip", "fallback"])
def test_the_error_that_was_received_is_not_put_out(on_timeout):
    more: dict[str, Any] = {"fallback_response": "f"} if on_timeout == "fallback" else {}
    seen: list[Any] = []

    async def inner(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append(message.payload.error.message)
        await asyncio.sleep(1)
        return success(passed_on(message, context))

    nodes = {
        "bad": node("model", on_error="wrap"),
        "wrap": node("timeout", inner_node="inner", timeout_ms=50, on_timeout=on_timeout, **more),
        "inner": node("model"),
    }
    graph = a_graph(nodes, [("start", "bad"), ("bad", "end"), ("wrap", "end")])
    result = go(an_executor(graph, {"bad": fails(text="why"), "inner": inner}))

    assert ("succeeded", None, ["why"]) == (result.status, result.message.payload.error, seen)


def test_in_time_nothing_is_said_of_a_timeout():
    seen: list[Any] = []
    within(says("x"), timeout_ms=50, on_timeout="skip", seen=seen)

    assert {} == seen[0][0].payload.metadata


def test_a_skipped_timeout_is_no_failure_for_policies():
    result = within(says("late", after_ms=99), timeout_ms=50, on_timeout="skip", failure_policy="skip_failed")

    assert "succeeded" == result.status


def test_an_error_way_follows_a_timeout_that_is_an_error():
    nodes = {
        "wrap": node("timeout", inner_node="inner", timeout_ms=50, on_error="other"),
        "inner": node("model", on_error="end"),
        "other": node("transform", transforms=[
            {"type": "template", "params": {"template": "{error.code} {error.node_id}"}}
        ]),
    }  # fmt: skip
    graph = a_graph(nodes, [("start", "wrap"), ("wrap", "end"), ("other", "end")])
    result = go(an_executor(graph, {"inner": says("late", after_ms=99)}))

    assert ("succeeded", "TIMEOUT wrap") == (result.status, result.content)


# --- retries -------------------------------------------------------------------------------------------


def test_each_attempt_is_one_inner_step_with_the_whole_time():
    log: list[Any] = []
    result = within(noting(log, says("late", after_ms=99)), timeout_ms=50, retry_count=2, retry_delay_ms=10)

    assert ([0.0, 60.0, 120.0], 170.0) == (log, result.total_latency_ms)
    assert (("failed", "TIMEOUT", "wrap"), 2 + 3) == (told(result), result.nodes_executed)


def test_what_follows_a_timeout_comes_after_all_retries():
    log: list[Any] = []
    inner = noting(log, in_turn(says("late", after_ms=99), says("in time", after_ms=5)))
    recovered = within(inner, timeout_ms=50, on_timeout="skip", retry_count=1, retry_delay_ms=10)
    never = within(says("late", after_ms=99), timeout_ms=50, on_timeout="skip", retry_count=1, retry_delay_ms=10)

    assert ([0.0, 60.0], "in time") == (log, recovered.content)
    assert ("question", 110.0, 2) == (
        never.content,
        never.total_latency_ms,
        count(never, EventKind.ATTEMPT_STARTED, "wrap"),
    )


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (says("late", after_ms=99), fails(), "failed"),
        (fails(), says("late", after_ms=99), "succeeded"),
        (says("late", after_ms=99), fails(ErrorCode.TIMEOUT), "succeeded"),
    ],
    ids=["not last", "last", "inner last"],
)
def test_only_the_last_attempt_s_timeout_is_followed(first, second, status):
    result = within(in_turn(first, second), timeout_ms=50, on_timeout="skip", retry_count=1, retry_delay_ms=1)

    assert status == result.status


def test_a_timeout_of_the_inner_node_that_is_not_recoverable_is_not_retried_but_followed():
    log: list[Any] = []
    inner = noting(log, fails(ErrorCode.TIMEOUT, recoverable=False))
    skipped = within(inner, on_timeout="skip", retry_count=3)
    failed = within(fails(ErrorCode.TIMEOUT, recoverable=False), retry_count=3)

    assert ("succeeded", [0.0]) == (skipped.status, log)
    assert ("failed", "TIMEOUT", "inner") == told(failed)


def test_an_attempt_begins_anew():
    seen: list[Any] = []

    async def inner(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append((message.payload.structured, copy.deepcopy(context.variables), context.idempotency_key))
        context.variables["v"] = 1
        raise NodeError(ErrorCode.MODEL_ERROR, "no")

    within(inner, message=a_message(content="q", structured={"k": 1}), retry_count=1, retry_delay_ms=1)

    assert [({"k": 1}, {}, "r:2:inner")] * 2 == seen


# --- what happens inside -------------------------------------------------------------------------------


def test_tokens_of_a_call_that_was_cut_off_do_not_count_and_those_before_do():
    nodes = {
        "wrap": node("timeout", inner_node="loop", timeout_ms=25, on_timeout="skip"),
        "loop": node("loop", body_node="ask", fixed_count=3),
        "ask": node("model"),
    }
    graph = a_graph(nodes, [("start", "wrap"), ("wrap", "end")])
    result = go(an_executor(graph, model=ScriptedModel((10, "x"))))

    assert ("succeeded", 10, "question") == (result.status, result.tokens_used, result.content)


@pytest.mark.parametrize(("max_steps", "status"), [(5, "succeeded"), (3, "failed"), (2, "failed")])
def test_max_steps_inside_end_the_run_whatever_the_timeout_says(max_steps, status):
    result = within(says("x"), on_timeout="skip", max_steps=max_steps, failure_policy="skip_failed", retry_count=2)

    assert (status, max_steps) == (result.status, result.nodes_executed)
    if status == "failed":
        assert ("failed", "BOUNDS_EXCEEDED", "wrap" if max_steps == 2 else "last") == told(result)


def test_an_inner_node_that_does_not_stop_is_waited_for_until_its_grace():
    result = within(swallows(1, ms=40), timeout_ms=50, on_timeout="skip", cancel_grace_ms=25)

    assert ("swallowed", 40.0) == (result.content, result.total_latency_ms)


def test_an_inner_node_that_answers_its_cancellation_late_is_late():
    result = within(swallows(1, ms=60), timeout_ms=50, on_timeout="skip", cancel_grace_ms=25)

    assert ("question", 50.0) == (result.content, result.total_latency_ms)


def test_cancelling_ends_the_run_and_is_not_followed():
    async def main() -> RunResult:
        nodes = {"wrap": node("timeout", inner_node="inner", on_timeout="skip"), "inner": node("model")}
        graph = a_graph(nodes, [("start", "wrap"), ("wrap", "end")])
        executor = an_executor(graph, {"inner": says("late", after_ms=99)})
        task = asyncio.create_task(executor.run(a_message(content="q"), run_id="r"))
        await asyncio.sleep(0.02)
        executor.cancel("r")
        return await task

    assert ("cancelled", "CANCELLED", "wrap") == told(run_clean(main()))


# --- ways ----------------------------------------------------------------------------------------------

GATE = node(
    "gate", conditions=[{"name": "n", "expression": "content == 'question'", "target": "b"}], default_target="a"
)
ROUTER = node("router", routes=[{"name": "a", "target": "a"}, {"name": "b", "target": "b"}])


@pytest.mark.parametrize("inner", [GATE, ROUTER], ids=["gate", "router"])
@pytest.mark.parametrize("deep", [False, True])
def test_it_goes_the_way_that_a_router_or_gate_inside_names(inner, deep):
    nodes = {
        "wrap": node("timeout", inner_node="wrap2" if deep else "inner"),
        "wrap2": node("timeout", inner_node="inner"),
        "inner": inner,
        "a": node("transform"),
        "b": node("transform"),
    }
    graph = a_graph(nodes, [("start", "wrap"), ("wrap", "a"), ("a", "end"), ("b", "end")])

    assert ["start", "wrap", "b", "end"] == [
        e.node_id
        for e in events(go(an_executor(graph, model=ScriptedModel("b"))), EventKind.STEP_STARTED)
        if e.node_id in {"start", "wrap", "a", "b", "end"}
    ]


def test_when_the_time_is_up_it_goes_its_own_edges():
    nodes = {
        "wrap": node("timeout", inner_node="inner", timeout_ms=50, on_timeout="skip"),
        "inner": ROUTER,
        "a": node("transform"),
        "b": node("transform"),
    }
    graph = a_graph(nodes, [("start", "wrap"), ("wrap", "a"), ("a", "end"), ("b", "end")])
    result = go(an_executor(graph, model=ScriptedModel((60, "b"))))

    assert "a" in visited(result)
    assert "b" not in visited(result)


def test_a_way_that_is_neither_its_own_nor_a_router_s_is_a_routing_error():
    result = within(says("x", way="start"))

    assert ("failed", "ROUTING_ERROR", "wrap") == told(result)


def test_a_way_of_its_own_that_the_inner_node_names_is_taken():
    assert "succeeded" == within(says("x", way="last")).status


def test_condition_edges_see_what_was_told_of_the_timeout():
    nodes = {
        "wrap": node("timeout", inner_node="inner", timeout_ms=50, on_timeout="skip"),
        "inner": node("model"),
        "late": node("transform"),
    }
    edges = [("start", "wrap"), ("wrap", "late", "metadata.get('timeout').get('timed_out')"), ("wrap", "end"),
             ("late", "end")]  # fmt: skip
    graph = a_graph(nodes, edges)

    assert "late" in visited(go(an_executor(graph, {"inner": says("x", after_ms=60)})))
    assert "late" not in visited(go(an_executor(graph, {"inner": says("x")})))
