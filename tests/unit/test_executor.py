"""The walk: edges, on_error, failure policies, exits, limits, deadlines, and what is refused as misuse."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from itertools import count as counter
from typing import Any

import pytest

from tests.support.models import ScriptedModel
from tests.support.nodes import blocks, fails, in_turn, noting, raises, returns, says
from tests.support.runs import (
    a_graph,
    a_line,
    a_message,
    an_executor,
    code,
    count,
    events,
    go,
    node,
    run_clean,
    visited,
)
from tinyllm.config import ExecutorConfig
from tinyllm.errors import ErrorCode, NodeError, UsageError
from tinyllm.executor import Executor
from tinyllm.message import ErrorInfo, Message, MessagePayload, NodeResult, TaskPayload
from tinyllm.nodes.base import passed_on, success
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit


# --- the walk ------------------------------------------------------------------------------------------


def test_a_run_walks_from_entry_to_exit_and_tells_what_came_of_it():
    result = go(an_executor(a_line(), {"work": says("answer", after_ms=5)}))

    assert "succeeded" == result.status
    assert "answer" == result.content
    assert result.error is None
    assert ["start", "work", "end"] == visited(result)
    assert 3 == result.nodes_executed
    assert 5.0 == result.total_latency_ms


def test_the_task_becomes_task_content_context_and_options():
    seen: list[Message] = []

    async def look(message: Message, context: Any) -> NodeResult:
        seen.append(message)
        return success(passed_on(message, context))

    task = TaskPayload(content="c", context="x", options={"o": 1})
    run_clean(an_executor(a_line(), {"work": look}).execute(task))
    payload = seen[0].payload

    assert ("c", "c") == (payload.task, payload.content)
    assert {"context": "x"} == payload.structured
    assert {"options": {"o": 1}} == payload.metadata


def test_structured_of_the_last_message_is_the_result_s():
    result = go(an_executor(a_line(), {"work": says("a", structured={"k": 1})}))

    assert {"k": 1} == result.structured


def test_every_message_of_a_run_has_its_trace_id_and_the_one_before_as_parent():
    seen: list[Message] = []

    async def look(message: Message, context: Any) -> NodeResult:
        seen.append(message)
        return success(passed_on(message, context))

    graph = a_line(node("model"), node("model"))
    message = a_message(content="q")
    result = run_clean(an_executor(graph, {"work": look, "work2": look}).run(message))

    assert {message.trace_id} == {seen[0].trace_id, seen[1].trace_id, result.trace_id, result.message.trace_id}
    assert seen[0].message_id == seen[1].parent_id
    assert ["start", "work"] == [m.source_node for m in seen]


def test_ids_and_times_come_from_what_was_handed_in():
    numbers = counter(1)
    moment = datetime(2030, 1, 1, tzinfo=UTC)
    executor = Executor(
        a_line(), model=ScriptedModel(), clock=lambda: moment, ids=lambda: f"id-{next(numbers)}"
    )
    result = go(executor)

    assert result.run_id.startswith("id-")
    assert result.message.message_id.startswith("id-")
    assert moment == result.message.created_at
    assert {moment} == {event.wall for event in result.trace}


def test_the_run_id_is_the_one_given():
    assert "mine" == go(an_executor(a_line()), run_id="mine").run_id


def test_a_run_starts_at_the_entry_that_is_named():
    graph = a_graph({"other": node("entry")}, [("start", "end"), ("other", "end")])

    assert ["other", "end"] == visited(go(an_executor(graph), entry="other"))
    assert ["start", "end"] == visited(go(an_executor(graph)))


def test_a_run_is_the_same_again_and_again_after_failures():
    executor = an_executor(a_line(), {"work": in_turn(fails(), says("second"))})

    assert "failed" == go(executor).status
    assert "succeeded" == go(executor).status
    assert "succeeded" == go(executor, run_id="x").status
    assert "succeeded" == go(executor, run_id="x").status


# --- edges ---------------------------------------------------------------------------------------------

BRANCHES = {"a": node("model"), "b": node("model"), "c": node("model")}
ONWARD = [("a", "end"), ("b", "end"), ("c", "end")]


def where(*edges: tuple[Any, ...], content: str = "question", **how: Any) -> str:
    """The node that the token goes to from `start`."""
    graph = a_graph(BRANCHES, [*edges, *ONWARD])
    return visited(go(an_executor(graph), content, **how))[1]


def test_the_first_condition_that_holds_is_taken_before_an_unconditional_edge():
    assert "b" == where(("start", "c"), ("start", "a", "content == 'no'"), ("start", "b", "content == 'question'"))


def test_of_two_conditions_that_hold_the_first_in_the_file_is_taken():
    assert "a" == where(("start", "a", "1"), ("start", "b", "1"), ("start", "c"))


def test_a_higher_priority_is_asked_first():
    assert "b" == where(("start", "a", "1", 1), ("start", "b", "1", 2), ("start", "c"))


def test_priority_does_not_put_an_unconditional_edge_before_a_condition():
    assert "a" == where(("start", "c", None, 9), ("start", "a", "1", -9))


def test_of_two_unconditional_edges_the_higher_priority_is_taken():
    assert "b" == where(("start", "a", None, 1), ("start", "b", None, 2))


def test_a_condition_that_fails_is_false_and_is_traced():
    graph = a_graph(BRANCHES, [("start", "a", "1 / 0 > 0"), ("start", "b"), *ONWARD])
    result = go(an_executor(graph))
    told = events(result, EventKind.CONDITION_ERROR)

    assert ["start", "b", "end"] == visited(result)
    assert [("start", "1", "1 / 0 > 0")] == [(e.node_id, e.path, e.details["condition"]) for e in told]
    assert "ZeroDivisionError" in told[0].details["reason"]


def test_conditions_read_the_message_that_was_put_out_and_the_variables():
    graph = a_graph(
        {"work": node("model"), **BRANCHES},
        [("start", "work"), ("work", "a", "content == 'new' and variables.get('v') == 2"), ("work", "b"), *ONWARD],
    )

    async def act(message: Message, context: Any) -> NodeResult:
        context.variables["v"] = 2
        return success(passed_on(message, context, content="new"))

    assert ["start", "work", "a", "end"] == visited(go(an_executor(graph, {"work": act})))


def test_without_a_way_the_run_fails_at_the_node_that_had_none():
    graph = a_graph({"work": node("model")}, [("start", "work"), ("work", "end", "content == 'x'")])
    result = go(an_executor(graph, {"work": says("put out")}, failure_policy="skip_failed"))

    assert "failed" == result.status
    assert ("ROUTING_ERROR", "work") == (code(result), result.error and result.error.node_id)
    assert "put out" == result.content


def test_the_way_that_a_node_names_comes_before_its_edges():
    graph = a_graph({"work": node("model"), **BRANCHES}, [("start", "work"), ("work", "a"), ("work", "b"), *ONWARD])

    assert ["start", "work", "b", "end"] == visited(go(an_executor(graph, {"work": says("x", way="b")})))


def test_only_the_first_way_that_a_node_names_counts():
    graph = a_graph({"work": node("model"), **BRANCHES}, [("start", "work"), ("work", "a"), ("work", "b"), *ONWARD])

    async def act(message: Message, context: Any) -> NodeResult:
        return success(passed_on(message, context), "b", "nowhere")

    assert ["start", "work", "b", "end"] == visited(go(an_executor(graph, {"work": act})))


@pytest.mark.parametrize("named", ["start", "nowhere", ""])
def test_a_node_that_names_what_is_not_its_way_fails_the_run_whatever_the_policy(named):
    result = go(an_executor(a_line(), {"work": says("x", way=named)}, failure_policy="skip_failed"))

    assert ("failed", "ROUTING_ERROR") == (result.status, code(result))
    assert "x" == result.content


def test_a_cycle_is_walked_until_a_condition_leaves_it():
    graph = a_graph(
        {"work": node("model")},
        [("start", "work"), ("work", "end", "variables.get('n') == 3"), ("work", "work")],
        allow_cycles=True,
    )

    async def act(message: Message, context: Any) -> NodeResult:
        context.variables["n"] = context.variables.get("n", 0) + 1
        return success(passed_on(message, context))

    result = go(an_executor(graph, {"work": act}))

    assert ["start", "work", "work", "work", "end"] == visited(result)
    assert ["1", "2", "3", "4", "5"] == [e.path for e in events(result, EventKind.STEP_STARTED)]


# --- results of nodes ----------------------------------------------------------------------------------


def test_the_last_output_message_goes_on():
    async def act(message: Message, context: Any) -> NodeResult:
        first, last = (passed_on(message, context, content=text) for text in ("first", "last"))
        return NodeResult(success=True, output_messages=[first, last])

    assert "last" == go(an_executor(a_line(), {"work": act})).content


def test_without_an_output_message_a_child_of_the_input_goes_on():
    result = go(an_executor(a_line(), {"work": returns(NodeResult(success=True))}))

    assert ("succeeded", "question") == (result.status, result.content)


@pytest.mark.parametrize("wrong", [None, "text", {}, ValueError("returned, not raised"), NodeResult])
def test_a_node_that_returns_the_wrong_type_fails_with_validation_error(wrong):
    result = go(an_executor(a_line(node("model", retry_count=3)), {"work": returns(wrong)}))

    assert ("failed", "VALIDATION_ERROR") == (result.status, code(result))
    assert 1 == count(result, EventKind.ATTEMPT_STARTED, "work")
    assert result.error is not None
    assert type(wrong).__name__ in result.error.message


def test_a_failed_result_without_an_error_is_unknown_and_recoverable():
    result = go(an_executor(a_line(node("model", retry_count=1)), {"work": returns(NodeResult(success=False))}))

    assert ("UNKNOWN", "work") == (code(result), result.error and result.error.node_id)
    assert 2 == count(result, EventKind.ATTEMPT_STARTED, "work")


def test_a_failed_result_keeps_the_node_that_its_error_came_from():
    error = ErrorInfo(code=ErrorCode.MODEL_ERROR, message="m", node_id="elsewhere")
    result = go(an_executor(a_line(), {"work": returns(NodeResult(success=False, error=error))}))

    assert "elsewhere" == (result.error and result.error.node_id)


def test_a_failed_result_s_error_is_given_its_node():
    error = ErrorInfo(code=ErrorCode.MODEL_ERROR, message="m")
    result = go(an_executor(a_line(), {"work": returns(NodeResult(success=False, error=error))}))

    assert "work" == (result.error and result.error.node_id)


def test_codes_that_are_never_recoverable_are_not_retried_even_if_the_node_says_so():
    error = ErrorInfo(code=ErrorCode.VALIDATION_ERROR, message="m", recoverable=True)
    graph = a_line(node("model", retry_count=3))
    result = go(an_executor(graph, {"work": returns(NodeResult(success=False, error=error))}))

    assert 1 == count(result, EventKind.ATTEMPT_STARTED, "work")
    assert result.error is not None
    assert result.error.recoverable is False


def test_a_failed_node_s_output_is_dropped():
    async def act(message: Message, context: Any) -> NodeResult:
        return NodeResult(success=False, output_messages=[passed_on(message, context, content="never seen")])

    assert "question" == go(an_executor(a_line(), {"work": act})).content


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class Nameless:
    def __repr__(self) -> str:
        raise RuntimeError("no name")


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ValueError("v"), ("UNKNOWN", "ValueError: v", True)),
        (TimeoutError("t"), ("UNKNOWN", "TimeoutError: t", True)),
        (NodeError(ErrorCode.TOOL_ERROR, "t"), ("TOOL_ERROR", "t", True)),
        (NodeError(ErrorCode.TOOL_ERROR, "t", recoverable=False), ("TOOL_ERROR", "t", False)),
        (NodeError(ErrorCode.GATE_FAILED, "g", recoverable=True), ("GATE_FAILED", "g", False)),
        (ValueError("\ud800"), ("UNKNOWN", "ValueError: ?", True)),
        (ValueError("x" * 5_000), ("UNKNOWN", "ValueError: " + "x" * 1_988, True)),
        (Unspeakable(), ("UNKNOWN", "Unspeakable: (what it says cannot be shown)", True)),
        (NodeError("TOOL_ERROR", "t"), ("UNKNOWN", "NodeError: t", True)),  # type: ignore[arg-type]
        (NodeError(ErrorCode.TOOL_ERROR, 7), ("TOOL_ERROR", "7", True)),  # type: ignore[arg-type]
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_exception_of_a_node_becomes_an_error_that_json_can_carry(raised, expected):
    result = go(an_executor(a_line(), {"work": raises(raised)}))
    error = result.error

    assert error is not None
    assert expected == (error.code, error.message, error.recoverable)
    assert error == ErrorInfo.from_json(error.to_json())


@pytest.mark.parametrize(
    ("details", "shown"),
    [
        ({"k": 1}, {"k": 1}),
        ({"k": {1}}, {"repr": "{'k': {1}}"}),
        ({"k": Nameless()}, {"repr": "(what it says cannot be shown)"}),
    ],
)
def test_details_that_json_cannot_carry_are_shown_as_text(details, shown):
    result = go(an_executor(a_line(), {"work": fails(**details)}))

    assert shown == (result.error and result.error.details)


# --- on_error and failure policies -----------------------------------------------------------------------


def test_after_a_failure_the_token_goes_to_on_error_with_the_payload_received_and_the_error():
    graph = a_graph(
        {"work": node("model", on_error="rescue"), "rescue": node("model")},
        [("start", "work"), ("work", "end"), ("rescue", "end")],
    )
    seen: list[MessagePayload] = []

    async def rescue(message: Message, context: Any) -> NodeResult:
        seen.append(message.payload)
        return success(passed_on(message, context))

    result = go(an_executor(graph, {"work": fails(text="why"), "rescue": rescue}))

    assert ["start", "work", "rescue", "end"] == visited(result)
    assert ("succeeded", None) == (result.status, result.error)
    assert "question" == seen[0].content
    assert ("MODEL_ERROR", "why", "work") == (
        seen[0].error and seen[0].error.code,
        seen[0].error and seen[0].error.message,
        seen[0].error and seen[0].error.node_id,
    )
    assert result.message.payload.error is None


def test_on_error_comes_before_every_policy_and_absorbs_nothing():
    graph = a_graph(
        {"work": node("model", on_error="work2"), "work2": node("model")},
        [("start", "work"), ("work", "end"), ("work2", "end")],
    )
    acts = {"work": fails(), "work2": fails(text="second")}
    result = go(an_executor(graph, acts, failure_policy="skip_failed", max_node_failures=1))

    assert "degraded" == result.status
    assert "second" == (result.error and result.error.message)


def failing(policy: str, **config: Any) -> RunResult:
    """start -> work (fails) -> work2 (answers) -> end."""
    acts = {"work": fails(text="first"), "work2": in_turn(says("answer"))}
    return go(an_executor(a_line(node("model"), node("model")), acts, failure_policy=policy, **config))


def test_fail_fast_is_the_default_and_ends_the_run_with_the_error():
    result = failing(ExecutorConfig().failure_policy)

    assert ("failed", "MODEL_ERROR", "work") == (result.status, code(result), result.error and result.error.node_id)
    assert ["start", "work"] == visited(result)
    assert "question" == result.content


def test_skip_failed_goes_on_with_the_payload_unchanged_and_degrades():
    acts = {"work": fails(text="first"), "work2": says("answer")}
    graph = a_line(node("model"), node("model"))
    seen: list[Message] = []

    async def look(message: Message, context: Any) -> NodeResult:
        seen.append(message)
        return success(passed_on(message, context))

    result = go(an_executor(graph, {**acts, "work2": look}, failure_policy="skip_failed"))

    assert ("degraded", "first") == (result.status, result.error and result.error.message)
    assert ["start", "work", "work2", "end"] == visited(result)
    assert MessagePayload(task="question", content="question") == seen[0].payload


def test_fallback_simple_goes_on_with_the_fallback_response():
    graph = a_line(node("model"), node("gate", default_target="end"))
    result = go(
        an_executor(graph, {"work": fails()}, failure_policy="fallback_simple", fallback_response="sorry")
    )

    assert ("degraded", "sorry") == (result.status, result.content)
    assert result.message.payload.metadata["fallback"] is True
    assert "question" == result.message.payload.task


def test_fallback_simple_keeps_what_the_metadata_said():
    result = run_clean(
        an_executor(a_line(), {"work": fails()}, failure_policy="fallback_simple").execute(
            TaskPayload(content="q", options={"o": 1})
        )
    )

    assert {"o": 1} == result.message.payload.metadata["options"]


def test_best_effort_ends_the_run_with_the_message_received():
    result = failing("best_effort")

    assert ("degraded", "question") == (result.status, result.content)
    assert ["start", "work"] == visited(result)
    assert "first" == (result.error and result.error.message)


@pytest.mark.parametrize("policy", ["skip_failed", "fallback_simple", "best_effort"])
def test_a_failed_entry_fails_the_run_under_every_policy(policy):
    graph = a_graph({"start": node("entry", required_fields=["route"])}, [("start", "end")])
    result = go(an_executor(graph, failure_policy=policy))

    assert ("failed", "VALIDATION_ERROR", "start") == (
        result.status,
        code(result),
        result.error and result.error.node_id,
    )


@pytest.mark.parametrize(
    ("allowed", "status", "message"), [(0, "failed", "0"), (1, "failed", "1"), (2, "degraded", "0")]
)
def test_exactly_max_node_failures_are_absorbed_and_the_next_fails_the_run(allowed, status, message):
    acts = {"work": fails(text="0"), "work2": fails(text="1")}
    graph = a_line(node("model"), node("model"))
    result = go(an_executor(graph, acts, failure_policy="skip_failed", max_node_failures=allowed))

    assert (status, message) == (result.status, result.error and result.error.message)


def test_best_effort_absorbs_nothing_if_nothing_may_be_absorbed():
    assert "failed" == failing("best_effort", max_node_failures=0).status


def test_a_skipped_node_without_a_way_on_is_a_routing_error():
    graph = a_graph({"work": node("model")}, [("start", "work"), ("work", "end", "content == 'x'")])
    result = go(an_executor(graph, {"work": fails()}, failure_policy="skip_failed"))

    assert ("failed", "ROUTING_ERROR") == (result.status, code(result))


# --- exits ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exit_status", "status"),
    [
        ("success", "succeeded"),
        ("fallback", "degraded"),
        ("partial_success", "degraded"),
        ("failure", "failed"),
        ("error", "failed"),
        ("timeout", "failed"),
    ],
)
def test_an_exit_decides_the_status_of_the_run(exit_status, status):
    graph = a_graph({"end": node("exit", status=exit_status, message="told")}, [("start", "end")])
    result = go(an_executor(graph))

    assert status == result.status
    assert ("EXIT_FAILED" if status == "failed" else None) == code(result)
    assert ("told" if status == "failed" else None) == (result.error and result.error.message)
    assert ("end" if status == "failed" else None) == (result.error and result.error.node_id)
    assert exit_status == result.message.payload.metadata["exit_status"]
    assert "told" == result.message.payload.metadata["exit_message"]


def test_an_exit_without_a_message_says_which_it_was():
    result = go(an_executor(a_graph({"end": node("exit", status="error")}, [("start", "end")])))

    assert "the run ended at the exit 'end' with status error" == (result.error and result.error.message)


@pytest.mark.parametrize(("exit_status", "told"), [("fallback", "first"), ("failure", "the end")])
def test_an_exit_after_an_absorbed_failure(exit_status, told):
    """A degraded end keeps the failure that was absorbed; a failed end is the exit's own."""
    graph = a_graph(
        {"work": node("model"), "end": node("exit", status=exit_status, message="the end")},
        [("start", "work"), ("work", "end")],
    )
    result = go(an_executor(graph, {"work": fails(text="first")}, failure_policy="skip_failed"))

    assert told == (result.error and result.error.message)


def test_a_failed_exit_node_is_a_failure_like_any_other():
    assert "failed" == go(an_executor(a_line(), {"end": fails()})).status


# --- retries -------------------------------------------------------------------------------------------


def test_a_step_is_tried_again_after_its_delay_until_it_succeeds():
    log: list[float] = []
    graph = a_line(node("model", retry_count=5, retry_delay_ms=100))
    result = go(an_executor(graph, {"work": noting(log, in_turn(fails(after_ms=10), fails(after_ms=10), says("x")))}))

    assert "succeeded" == result.status
    assert [0.0, 110.0, 220.0] == log
    assert 3 == result.nodes_executed


def test_a_step_fails_with_its_last_attempt_s_error_after_all_retries():
    graph = a_line(node("model", retry_count=2, retry_delay_ms=0))
    result = go(an_executor(graph, {"work": in_turn(fails(text="1"), fails(text="2"), fails(text="3"), says("x"))}))

    assert "3" == (result.error and result.error.message)
    assert 3 == count(result, EventKind.ATTEMPT_STARTED, "work")


def test_nothing_is_retried_by_default():
    assert 1 == count(go(an_executor(a_line(), {"work": fails()})), EventKind.ATTEMPT_STARTED, "work")


def test_a_failure_that_is_not_recoverable_is_not_tried_again():
    graph = a_line(node("model", retry_count=5))
    result = go(an_executor(graph, {"work": in_turn(fails(), fails(recoverable=False), says("x"))}))

    assert 2 == count(result, EventKind.ATTEMPT_STARTED, "work")
    assert "failed" == result.status


def test_each_attempt_has_the_whole_timeout_and_a_late_one_is_tried_again():
    log: list[float] = []
    graph = a_line(node("model", retry_count=1, retry_delay_ms=5, timeout_ms=50))
    result = go(an_executor(graph, {"work": noting(log, in_turn(says("late", after_ms=60), says("x", after_ms=49)))}))

    assert ("succeeded", "x") == (result.status, result.content)
    assert [0.0, 55.0] == log
    assert 104.0 == result.total_latency_ms


def test_a_longer_retry_after_is_waited_for():
    log: list[float] = []
    graph = a_line(node("model", retry_count=2, retry_delay_ms=100))
    act = noting(log, in_turn(fails(retry_after_s=2), fails(retry_after_s=0.01), says("x")))
    go(an_executor(graph, {"work": act}))

    assert [0.0, 2_000.0, 2_100.0] == log


@pytest.mark.parametrize("asked", [10**1_000, 1e308, -5, "soon", None], ids=["10**1000", "1e308", "-5", "text", "null"])
def test_a_senseless_retry_after_ends_no_run_with_an_exception(asked):
    graph = a_line(node("model", retry_count=1, retry_delay_ms=100))
    result = go(an_executor(graph, {"work": in_turn(fails(retry_after_s=asked), says("x"))}))

    assert ("timed_out" if isinstance(asked, int | float) and asked > 0 else "succeeded") == result.status


# --- limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("max_steps", "status"), [(0, "failed"), (2, "failed"), (3, "succeeded")])
def test_max_steps_run_and_the_next_never_starts(max_steps, status):
    result = go(an_executor(a_line(), max_steps=max_steps))

    assert status == result.status
    assert max_steps == result.nodes_executed == count(result, EventKind.STEP_STARTED)


def test_bounds_exceeded_names_the_node_that_was_about_to_be_visited():
    result = go(an_executor(a_line(), {"work": says("put out")}, max_steps=2, failure_policy="skip_failed"))

    assert ("BOUNDS_EXCEEDED", "end") == (code(result), result.error and result.error.node_id)
    assert "put out" == result.content


def test_bounds_inside_a_fanout_end_the_run_whatever_is_around():
    fanout = node("fanout", target_nodes=["a", "a", "a"], aggregation_strategy="majority_vote", quorum=1, retry_count=3)
    graph = a_graph(
        {"fan": {**fanout, "on_error": "end"}, "a": node("model")}, [("start", "fan"), ("fan", "end")]
    )
    result = go(an_executor(graph, {"a": says("x", after_ms=50)}, max_steps=4, failure_policy="skip_failed"))

    assert ("failed", "BOUNDS_EXCEEDED", "fan") == (
        result.status,
        code(result),
        result.error and result.error.node_id,
    )
    assert 4 == result.nodes_executed
    assert 0.0 == result.total_latency_ms


def test_the_run_s_timeout_ends_it_wherever_it_is():
    result = go(an_executor(a_line(), {"work": says("x", after_ms=500)}, timeout_ms=100))

    assert ("timed_out", "TIMEOUT", "work") == (result.status, code(result), result.error and result.error.node_id)
    assert "question" == result.content
    assert 100.0 == result.total_latency_ms


def test_the_run_s_timeout_bounds_waits_between_attempts_too():
    graph = a_line(node("model", retry_count=1, retry_delay_ms=60_000))
    result = go(an_executor(graph, {"work": fails()}, timeout_ms=100))

    assert ("timed_out", 100.0) == (result.status, result.total_latency_ms)


def test_the_run_s_timeout_is_no_failure_that_a_policy_could_absorb():
    graph = a_graph(
        {"work": node("model", on_error="rescue"), "rescue": node("model")},
        [("start", "work"), ("work", "end"), ("rescue", "end")],
    )
    result = go(an_executor(graph, {"work": says("x", after_ms=500)}, timeout_ms=100, failure_policy="skip_failed"))

    assert ("timed_out", ["start", "work"]) == (result.status, visited(result))


@pytest.mark.parametrize(("after_ms", "status"), [(99, "succeeded"), (100, "timed_out"), (101, "timed_out")])
def test_the_run_s_deadline_wins_at_its_very_moment(after_ms, status):
    result = go(an_executor(a_line(), {"work": says("x", after_ms=after_ms)}, timeout_ms=100))

    assert status == result.status
    assert min(100.0, after_ms) == result.total_latency_ms


@pytest.mark.parametrize(("after_ms", "outcome"), [(99, None), (100, "TIMEOUT"), (101, "TIMEOUT")])
def test_an_attempt_s_deadline_wins_at_its_very_moment(after_ms, outcome):
    result = go(an_executor(a_line(node("model", timeout_ms=100)), {"work": says("x", after_ms=after_ms)}))

    assert outcome == code(result)
    assert ("failed" if outcome else "succeeded") == result.status


def test_the_run_s_deadline_wins_against_an_attempt_s_at_the_same_moment():
    graph = a_line(node("model", timeout_ms=100))

    assert "timed_out" == go(an_executor(graph, {"work": says("x", after_ms=500)}, timeout_ms=100)).status


def test_at_the_moment_of_the_deadline_no_step_starts():
    """The second node would be reached at the very moment."""
    graph = a_line(node("model"), node("model"))
    result = go(an_executor(graph, {"work": blocks(100), "work2": says("x")}, timeout_ms=100))

    assert ("timed_out", ["start", "work"]) == (result.status, visited(result))


def test_a_wait_that_ends_at_the_deadline_does_not_start_another_attempt():
    graph = a_line(node("model", retry_count=1, retry_delay_ms=100))
    result = go(an_executor(graph, {"work": in_turn(fails(), says("x"))}, timeout_ms=100))

    assert "timed_out" == result.status
    assert 1 == count(result, EventKind.ATTEMPT_STARTED, "work")


def test_a_deadline_is_exact_at_moments_that_floats_cannot_hold():
    """0.1 + 0.2 seconds are not 0.3 as floats; as moments they are."""
    graph = a_line(node("model", timeout_ms=700), node("model", timeout_ms=700))
    acts = {"work": says("x", after_ms=100), "work2": says("y", after_ms=200)}

    assert "timed_out" == go(an_executor(graph, acts, timeout_ms=300)).status
    assert "succeeded" == go(an_executor(graph, acts, timeout_ms=301)).status


# --- tokens and variables ------------------------------------------------------------------------------


def test_tokens_of_failed_attempts_count():
    async def spend_and_fail(message: Message, context: Any) -> NodeResult:
        context.count_tokens(7)
        raise ValueError("after all")

    graph = a_line(node("model", retry_count=1, retry_delay_ms=0))

    assert 14 == go(an_executor(graph, {"work": spend_and_fail})).tokens_used


def test_tokens_of_an_answer_that_is_too_late_do_not_count():
    model = ScriptedModel((100, "late"))
    graph = a_line(node("model", timeout_ms=100))

    assert 0 == go(an_executor(graph, model=model)).tokens_used


def test_tokens_counted_by_blocking_code_after_its_deadline_do_not_count():
    async def spend(message: Message, context: Any) -> NodeResult:
        context.count_tokens(7)
        return success(message)

    graph = a_line(node("model", timeout_ms=100))

    assert 0 == go(an_executor(graph, {"work": blocks(100, spend)})).tokens_used
    assert 7 == go(an_executor(graph, {"work": blocks(99, spend)})).tokens_used


def writes(**variables: Any) -> Any:
    async def act(message: Message, context: Any) -> NodeResult:
        context.variables.update(variables)
        return success(passed_on(message, context))

    return act


def shows(message: Message, context: Any) -> Any:
    return says(json.dumps(context.variables, sort_keys=True))(message, context)


def test_a_step_s_writes_are_kept_when_it_succeeds():
    graph = a_line(node("model"), node("model"))
    result = go(an_executor(graph, {"work": writes(b=2), "work2": shows}), variables={"a": 1})

    assert '{"a": 1, "b": 2}' == result.content


def test_a_failed_step_s_writes_are_lost_inside_values_too():
    async def write_and_fail(message: Message, context: Any) -> NodeResult:
        context.variables["x"] = 1
        context.variables["list"].append(2)
        raise ValueError("after all")

    graph = a_line(node("model", retry_count=1), node("model"))
    acts = {"work": write_and_fail, "work2": shows}
    given = {"list": [1]}
    result = go(an_executor(graph, acts, failure_policy="skip_failed"), variables=given)

    assert '{"list": [1]}' == result.content
    assert {"list": [1]} == given


def test_what_a_node_keeps_of_its_variables_cannot_change_the_run_later():
    kept: list[Any] = []

    async def keep(message: Message, context: Any) -> NodeResult:
        context.variables["list"] = [1]
        kept.append(context.variables)
        return success(passed_on(message, context))

    async def change(message: Message, context: Any) -> NodeResult:
        kept[0]["list"].append(2)
        return await shows(message, context)

    graph = a_line(node("model"), node("model"), node("model"))

    assert '{"list": [1]}' == go(an_executor(graph, {"work": keep, "work2": change, "work3": shows})).content


@pytest.mark.parametrize("written", [{"x": {1}}, {1: "x"}, {"x": float("nan")}, {"x": "\ud800"}, {"x": (1,)}])
def test_a_step_that_writes_what_is_no_json_fails(written):
    async def act(message: Message, context: Any) -> NodeResult:
        context.variables.update(written)
        return success(passed_on(message, context))

    result = go(an_executor(a_line(), {"work": act}))

    assert ("failed", "VALIDATION_ERROR", "work") == (
        result.status,
        code(result),
        result.error and result.error.node_id,
    )


# --- on the loop of asyncio --------------------------------------------------------------------------------


def test_a_run_is_the_same_on_every_event_loop():
    """Real time passes there, so the graph asks for none."""
    acts = {"work": in_turn(fails(), says("x"))}
    executor = an_executor(a_line(node("model", retry_count=1, retry_delay_ms=0)), acts)
    results = [asyncio.run(executor.execute(TaskPayload(content="q"))) for _ in range(2)]
    simulated = go(executor)

    assert ["succeeded"] * 3 == [result.status for result in (*results, simulated)]
    assert told(results[1]) == told(simulated)


def told(result: RunResult) -> list[tuple[str, str | None]]:
    return [(event.kind.value, event.node_id) for event in result.trace]


# --- misuse --------------------------------------------------------------------------------------------


def test_an_executor_without_a_model_is_refused_for_a_graph_that_asks_one():
    gate = node("gate", mode="llm", conditions=[{"name": "n", "expression": "d", "target": "end"}])
    graph = a_graph({"work": node("model"), "ask": gate}, [("start", "work"), ("work", "ask")])

    with pytest.raises(UsageError, match=r"a model is asked by work, ask: hand one in"):
        Executor(graph)


def test_a_gate_that_has_nothing_to_ask_needs_no_model():
    gate = node("gate", mode="llm", default_target="end")

    assert "succeeded" == go(Executor(a_graph({"g": gate}, [("start", "g")]))).status


@pytest.mark.parametrize("given", [{"rng": 5}, {"clock": 5}, {"ids": "id"}], ids=str)
def test_what_an_executor_draws_from_is_looked_at_when_it_is_built(given):
    with pytest.raises(UsageError, match=next(iter(given)).replace("rng", "Random")):
        Executor(a_graph({}, [("start", "end")]), **given)


def test_an_executor_without_a_model_is_enough_for_a_graph_that_asks_none():
    assert "succeeded" == go(Executor(a_graph({}, [("start", "end")]))).status


@pytest.mark.parametrize("entry", ["end", "nowhere", ""])
def test_an_entry_that_is_none_is_refused(entry):
    with pytest.raises(UsageError, match=f"'{entry}' is no entry point of this graph; there are start"):
        go(an_executor(a_line()), entry=entry)


@pytest.mark.parametrize("variables", [{"x": {1}}, {1: 2}, {"x": "\ud800"}])
def test_variables_that_are_no_json_are_refused(variables):
    with pytest.raises(UsageError, match="variables are JSON values by name"):
        go(an_executor(a_line()), variables=variables)


def test_a_run_id_that_is_running_is_refused_and_the_run_goes_on():
    executor = an_executor(a_line(), {"work": says("x", after_ms=10)})

    async def main() -> tuple[RunResult, RunResult]:
        first = asyncio.create_task(executor.execute(TaskPayload(content="q"), run_id="same"))
        await asyncio.sleep(0.001)
        with pytest.raises(UsageError, match="'same' is running here already"):
            await executor.execute(TaskPayload(content="q"), run_id="same")
        return await first, await executor.execute(TaskPayload(content="q"), run_id="same")

    assert ["succeeded", "succeeded"] == [result.status for result in run_clean(main())]


def test_runs_at_once_know_nothing_of_each_other():
    executor = an_executor(a_line(node("model"), node("model")), {"work": writes(x=1), "work2": shows})

    async def main() -> list[RunResult]:
        tasks = [
            asyncio.create_task(executor.execute(TaskPayload(content="q"), variables={f"v{n}": n})) for n in range(3)
        ]
        return [await task for task in tasks]

    assert ['{"v0": 0, "x": 1}', '{"v1": 1, "x": 1}', '{"v2": 2, "x": 1}'] == [r.content for r in run_clean(main())]
