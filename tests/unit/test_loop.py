"""The loop: how often its body runs, on what, what it counts, and how it ends."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.nodes import Act, fails, in_turn, noting, says
from tests.support.runs import a_graph, a_message, an_executor, code, count, events, go, node, run_clean, visited
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.message import Message, MessageMetadata, MessagePayload, NodeResult
from tinyllm.nodes.base import passed_on, success
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

RUN_KEYS = ("max_steps", "failure_policy", "max_tokens", "cancel_grace_ms")
KEYS = ["iterations", "success_count", "failure_count", "success_rate", "termination", "results"]


class Looped:
    """What came of start -> loop -> last -> end."""

    def __init__(self, result: RunResult, after: list[tuple[Message, dict[str, Any]]]) -> None:
        self.result = result
        #: What the node after the loop received, and the variables then.
        self.payload: MessagePayload | None = after[0][0].payload if after else None
        self.variables = after[0][1] if after else None

    @property
    def account(self) -> dict[str, Any]:
        assert self.payload is not None
        account: dict[str, Any] = self.payload.metadata["loop_result"]
        return account

    @property
    def counts(self) -> tuple[int, int, int, str]:
        account = self.account
        return (*(account[key] for key in KEYS[:3]), account["termination"])


def loop(
    body: Act,
    kind: str = "fixed_count",
    expression: str | None = None,
    *,
    message: Message | None = None,
    variables: Mapping[str, Any] | None = None,
    of_body: Mapping[str, Any] | None = None,
    **config: Any,
) -> Looped:
    of_run = {key: config.pop(key) for key in RUN_KEYS if key in config}
    after: list[tuple[Message, dict[str, Any]]] = []

    async def last(message: Message, context: ExecutionContext) -> NodeResult:
        after.append((message, copy.deepcopy(context.variables)))
        return success(passed_on(message, context))

    if expression is not None:
        config["condition_expression"] = expression
    nodes = {
        "loop": node("loop", body_node="body", condition_type=kind, **config),
        "body": node("model", **(of_body or {})),
        "last": node("model"),
    }
    graph = a_graph(nodes, [("start", "loop"), ("loop", "last"), ("last", "end")])
    executor = an_executor(graph, {"body": body, "last": last}, **of_run)
    message = a_message(content="question") if message is None else message
    return Looped(run_clean(executor.run(message, run_id="r", variables=variables)), after)


def counting(*failing: int, after_ms: float = 0, log: list[Any] | None = None) -> Act:
    """Appends the number of its call to the content, which is how one sees on what it was run; some calls fail."""
    calls = [0]

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        calls[0] += 1
        number = calls[0]
        if log is not None:
            log.append(message.payload.content)
        await asyncio.sleep(after_ms / 1_000)
        if number in failing:
            raise NodeError(ErrorCode.MODEL_ERROR, f"no {number}")
        return success(passed_on(message, context, content=f"{message.payload.content} {number}"))

    return act


# --- how often -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "counts"),
    [
        ({}, (10, 10, 0, "count")),
        ({"fixed_count": 3}, (3, 3, 0, "count")),
        ({"fixed_count": 1}, (1, 1, 0, "count")),
        ({"max_iterations": 2}, (2, 2, 0, "count")),
        ({"max_iterations": 2, "fixed_count": 2}, (2, 2, 0, "count")),
    ],
)
def test_a_fixed_count_runs_that_many_times_and_ends_with_count(config, counts):
    assert counts == loop(counting(), **config).counts


def test_each_iteration_receives_the_last_good_output_with_its_number():
    seen: list[Any] = []

    async def body(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append((message.payload.content, message.payload.metadata.get("iteration"), context.path))
        if context.path == "2.2":
            raise NodeError(ErrorCode.MODEL_ERROR, "no")
        return success(passed_on(message, context, content=f"after {context.path}"))

    looped = loop(body, fixed_count=4, continue_on_error=True)

    assert [("question", 1, "2.1"), ("after 2.1", 2, "2.2"), ("after 2.1", 3, "2.3"), ("after 2.3", 4, "2.4")] == seen
    assert ("after 2.4", 8) == (looped.payload.content, looped.result.nodes_executed)


def test_a_loop_puts_out_the_last_good_payload_with_its_account():
    acts = in_turn(says("one", route="1"), says("two", route="2", metadata={"m": 1}), fails())
    looped = loop(acts, fixed_count=3, continue_on_error=True)

    assert ("two", "2", 1) == (looped.payload.content, looped.payload.route, looped.payload.metadata["m"])
    assert KEYS == list(looped.account)
    assert (3, 2, 1, 2 / 3, "count") == tuple(looped.account[key] for key in KEYS[:5])


def test_the_results_tell_of_every_iteration():
    acts = in_turn(says("one", metadata={"m": 1}), fails(text="no", after_ms=3, k=1), says("three"))
    results = loop(acts, fixed_count=3, continue_on_error=True).account["results"]
    told = {"code": "MODEL_ERROR", "message": "no", "details": {"k": 1}, "recoverable": True, "node_id": "body"}

    assert ["iteration", "success", "output", "metadata", "error"] == list(results[0])
    assert [1, 2, 3] == [result["iteration"] for result in results]
    assert [(True, "one", None), (False, None, told)] == [(r["success"], r["output"], r["error"]) for r in results[:2]]
    assert ({"m": 1}, {}) == (
        {k: v for k, v in results[0]["metadata"].items() if k != "iteration"},
        results[1]["metadata"],
    )


def test_until_success_stops_at_the_first_success_and_goes_on_after_failures():
    looped = loop(counting(1, 2), "until_success")

    assert ((3, 1, 2, "success"), "question 3") == (looped.counts, looped.payload.content)


def test_until_condition_asks_after_each_iteration():
    looped = loop(counting(), "until_condition", "content.endswith('3')")

    assert ((3, 3, 0, "condition"), "question 1 2 3") == (looped.counts, looped.payload.content)


def test_until_condition_runs_once_even_if_it_held_before():
    assert (1, 1, 0, "condition") == loop(counting(), "until_condition", "1").counts


def test_while_condition_asks_before_each_iteration():
    looped = loop(counting(), "while_condition", "not content.endswith('2')")

    assert ((2, 2, 0, "condition"), "question 1 2") == (looped.counts, looped.payload.content)


def test_a_while_condition_that_lets_none_begin_succeeds_with_what_it_received():
    message = a_message(content="q", structured={"k": 1}, metadata={"m": 1})
    looped = loop(fails(), "while_condition", "0", message=message)
    account = {"iterations": 0, "success_count": 0, "failure_count": 0, "success_rate": 0}

    assert {**account, "termination": "condition", "results": []} == looped.account
    assert ("q", {"k": 1}, 1) == (looped.payload.content, looped.payload.structured, looped.payload.metadata["m"])
    assert ("succeeded", 4) == (looped.result.status, looped.result.nodes_executed)


@pytest.mark.parametrize(
    ("kind", "expression", "termination"),
    [
        ("until_condition", "iteration == 3", "condition"),
        ("until_condition", "iteration == 4", "max_iterations"),
        ("while_condition", "iteration < 2", "condition"),
        ("while_condition", "iteration < 3", "max_iterations"),
        ("while_condition", "1", "max_iterations"),
    ],
)
def test_after_the_last_iteration_only_until_is_still_asked(kind, expression, termination):
    assert termination == loop(counting(), kind, expression, max_iterations=3).counts[3]


@pytest.mark.parametrize(("failing", "termination"), [((1, 2), "success"), ((1, 2, 3), None)])
def test_a_success_of_the_last_iteration_still_counts(failing, termination):
    looped = loop(counting(*failing), "until_success", max_iterations=3)

    assert termination == (None if looped.payload is None else looped.counts[3])


def test_a_while_condition_is_not_asked_after_the_last_iteration():
    looped = loop(counting(), "while_condition", "1 / (2 - iteration) > 0", max_iterations=2)

    assert (2, 2, 0, "max_iterations") == looped.counts
    assert 0 == count(looped.result, EventKind.CONDITION_ERROR)


# --- what conditions know ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "iterations"),
    [
        ("iteration >= 2", 2),
        ("success_count == 2", 3),
        ("failure_count == 1", 2),
        ("last_success == False", 2),
        ("last_output == 'question 1 3'", 3),
        ("last_error and last_error['message'] == 'no 2'", 2),
        ("len(results) == 3", 3),
        ("last_result.get('iteration') == 2 and not last_result.get('success')", 2),
        ("last_result.get('error') and last_result['error']['code'] == 'MODEL_ERROR'", 2),
        ("results[-1]['output'] == 'question 1 3'", 3),
        ("content == 'question 1' and iteration == 2", 2),
        ("metadata.get('iteration') == 3", 3),
        ("task == 't' and variables.get('v') == 1", 1),
    ],
)
def test_conditions_know_how_the_loop_stands(expression, iterations):
    looped = loop(
        counting(2),
        "until_condition",
        expression,
        continue_on_error=True,
        max_iterations=5,
        message=a_message(content="question", task="t"),
        variables={"v": 1},
    )

    assert (iterations, "condition") == (looped.counts[0], looped.counts[3])


@pytest.mark.parametrize(
    "at_first",
    [
        "iteration == 0 and success_count == 0 and failure_count == 0",
        "results == [] and last_result == {}",
        "last_success == None and last_output == None and last_error == None",
        "content == 'question'",
    ],
)
def test_at_first_nothing_has_happened(at_first):
    assert 1 == loop(counting(), "while_condition", at_first).counts[0]


def test_after_a_failure_the_last_output_and_the_last_error_are_told_apart():
    """`last_*` are the last iteration's: a failure has no output, a success no error."""
    until = "last_success == False and last_output == None"

    assert 2 == loop(counting(2), "until_condition", until, continue_on_error=True).counts[0]
    assert (
        3
        == loop(counting(2), "until_condition", "iteration == 3 and last_error == None", continue_on_error=True).counts[
            0
        ]
    )


def test_a_condition_that_fails_is_false_and_traced():
    until = loop(counting(), "until_condition", "1 / (iteration - 1) > 0", max_iterations=2)
    during = loop(counting(), "while_condition", "content + 1")

    assert ((2, 2, 0, "condition"), 1) == (until.counts, count(until.result, EventKind.CONDITION_ERROR, "loop"))
    assert (0, 0, 0, "condition") == during.counts
    assert ["2"] == [e.path for e in events(during.result, EventKind.CONDITION_ERROR)]


def test_conditions_see_the_variables_as_the_iterations_left_them():
    async def body(message: Message, context: ExecutionContext) -> NodeResult:
        context.variables["n"] = context.variables.get("n", 0) + 1
        return success(passed_on(message, context))

    looped = loop(body, "until_condition", "variables.get('n') == 3")

    assert (3, {"n": 3}) == (looped.counts[0], looped.variables)


# --- failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "expression"), [("fixed_count", None), ("until_condition", "0"), ("while_condition", "1")]
)
def test_a_failed_iteration_fails_the_loop_with_its_error(kind, expression):
    log: list[Any] = []
    looped = loop(counting(2, log=log), kind, expression)

    assert ("failed", "MODEL_ERROR", "body") == (looped.result.status, code(looped.result), looped.result.error.node_id)
    assert 2 == len(log)


@pytest.mark.parametrize(
    ("kind", "expression"),
    [("fixed_count", None), ("until_condition", "0"), ("while_condition", "1"), ("until_success", None)],
)
def test_a_loop_without_any_success_fails_with_the_last_iteration_s_error(kind, expression):
    looped = loop(counting(1, 2, 3), kind, expression, continue_on_error=True, max_iterations=3)

    assert ("failed", "MODEL_ERROR", "body") == (looped.result.status, code(looped.result), looped.result.error.node_id)
    assert "no 3" in looped.result.error.message


def test_a_condition_that_ends_a_loop_without_any_success_fails_it_too():
    looped = loop(counting(1, 2), "until_condition", "failure_count == 2", continue_on_error=True)
    during = loop(counting(1, 2), "while_condition", "failure_count < 2", continue_on_error=True)

    assert [("failed", "no 2")] * 2 == [
        (one.result.status, one.result.error.message.split(": ")[-1]) for one in (looped, during)
    ]


def test_continue_on_error_succeeds_if_one_iteration_did():
    looped = loop(counting(1, 3), fixed_count=3, continue_on_error=True)

    assert ((3, 1, 2, "count"), "question 2", "succeeded") == (
        looped.counts,
        looped.payload.content,
        looped.result.status,
    )


def test_only_a_failure_of_the_whole_step_of_the_body_is_an_iteration():
    looped = loop(counting(1, 2), fixed_count=2, of_body={"retry_count": 2, "retry_delay_ms": 1})

    assert ((2, 2, 0, "count"), "question 3 4") == (looped.counts, looped.payload.content)


def test_a_recoverable_error_of_the_body_lets_the_loop_be_retried_anew():
    seen: list[Any] = []

    async def body(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append((context.path, message.payload.metadata["iteration"], copy.deepcopy(context.variables)))
        context.variables["n"] = len(seen)
        if len(seen) == 2:
            raise NodeError(ErrorCode.MODEL_ERROR, "no")
        return success(passed_on(message, context, content=f"{len(seen)}"))

    looped = loop(body, fixed_count=2, retry_count=1, retry_delay_ms=1)

    assert [("2.1", 1, {}), ("2.2", 2, {"n": 1}), ("2.1", 1, {}), ("2.2", 2, {"n": 3})] == seen
    assert ((2, 2, 0, "count"), 8, 1.0) == (
        looped.counts,
        looped.result.nodes_executed,
        looped.result.total_latency_ms,
    )


def test_an_error_that_is_not_recoverable_is_no_reason_to_retry_the_loop():
    looped = loop(fails(ErrorCode.VALIDATION_ERROR), retry_count=3)

    assert 1 == count(looped.result, EventKind.ATTEMPT_STARTED, "loop")


def test_a_failed_loop_keeps_no_writes_and_leaves_the_payload_received():
    async def body(message: Message, context: ExecutionContext) -> NodeResult:
        context.variables["n"] = 1
        if context.path == "2.2":
            raise NodeError(ErrorCode.MODEL_ERROR, "no")
        return success(passed_on(message, context, content="first"))

    looped = loop(body, failure_policy="skip_failed")

    assert ("question", {}, {}) == (looped.payload.content, looped.payload.metadata, looped.variables)
    assert ("degraded", "MODEL_ERROR") == (looped.result.status, code(looped.result))


# --- variables -----------------------------------------------------------------------------------------


def test_writes_of_good_iterations_are_seen_by_the_next_and_kept_and_those_of_failed_ones_dropped():
    seen: list[Any] = []

    async def body(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append(copy.deepcopy(context.variables))
        context.variables["list"].append(context.path)
        if context.path == "2.2":
            raise NodeError(ErrorCode.MODEL_ERROR, "no")
        return success(passed_on(message, context))

    looped = loop(body, fixed_count=3, continue_on_error=True, variables={"list": []})

    assert [{"list": []}, {"list": ["2.1"]}, {"list": ["2.1"]}] == seen
    assert {"list": ["2.1", "2.3"]} == looped.variables


def test_a_variable_that_the_body_takes_away_is_gone():
    async def body(message: Message, context: ExecutionContext) -> NodeResult:
        context.variables.pop("old", None)
        return success(passed_on(message, context))

    assert {"kept": 1} == loop(body, fixed_count=2, variables={"old": 1, "kept": 1}).variables


# --- time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("timeout_ms", "counts"),
    [(29, (2, 2, 0, "timeout")), (30, (2, 2, 0, "timeout")), (31, (3, 3, 0, "timeout")), (40, (3, 3, 0, "timeout"))],
)
def test_the_time_of_a_loop_is_no_failure_and_what_it_cuts_off_does_not_count(timeout_ms, counts):
    looped = loop(counting(after_ms=10), timeout_ms=timeout_ms)

    assert (counts, float(timeout_ms)) == (looped.counts, looped.result.total_latency_ms)
    assert ("succeeded", "question" + "".join(f" {n + 1}" for n in range(counts[0]))) == (
        looped.result.status,
        looped.payload.content,
    )


def test_a_last_iteration_that_ends_at_the_deadline_does_not_count():
    """At the moment of its deadline nothing of a loop counts any more."""
    met = loop(counting(after_ms=10), fixed_count=3, timeout_ms=30)
    before = loop(counting(after_ms=10), fixed_count=3, timeout_ms=31)

    assert ((2, 2, 0, "timeout"), (3, 3, 0, "count")) == (met.counts, before.counts)


def test_a_loop_whose_time_is_up_before_any_iteration_ended_fails_with_a_timeout_of_its_own():
    looped = loop(counting(after_ms=30), timeout_ms=30)

    assert ("failed", "TIMEOUT", "loop", 30.0) == (
        looped.result.status,
        code(looped.result),
        looped.result.error.node_id,
        looped.result.total_latency_ms,
    )


def test_a_loop_whose_time_is_up_after_failures_only_fails_with_the_last_one_s_error():
    looped = loop(counting(1, 2, 3, 4, after_ms=10), "until_success", timeout_ms=25)

    assert ("failed", "MODEL_ERROR", "body", 25.0) == (
        looped.result.status,
        code(looped.result),
        looped.result.error.node_id,
        looped.result.total_latency_ms,
    )
    assert "no 2" in looped.result.error.message


def test_the_time_of_a_loop_bounds_the_waits_of_its_body():
    looped = loop(fails(), timeout_ms=50, of_body={"retry_count": 9, "retry_delay_ms": 40})

    assert ("TIMEOUT", "loop", 50.0) == (
        code(looped.result),
        looped.result.error.node_id,
        looped.result.total_latency_ms,
    )


def test_each_attempt_of_a_loop_has_its_whole_time():
    log: list[Any] = []
    looped = loop(noting(log, says("late", after_ms=99)), timeout_ms=50, retry_count=1, retry_delay_ms=5)

    assert ([0.0, 55.0], "TIMEOUT", 105.0) == (log, code(looped.result), looped.result.total_latency_ms)


def test_the_default_time_of_a_loop_is_a_minute():
    looped = loop(counting(after_ms=25_000))

    assert ((2, 2, 0, "timeout"), 60_000.0) == (looped.counts, looped.result.total_latency_ms)


def test_the_body_s_own_timeout_is_an_iteration_s_failure():
    looped = loop(counting(after_ms=10), "until_success", max_iterations=2, of_body={"timeout_ms": 10})

    assert ("TIMEOUT", "body") == (code(looped.result), looped.result.error.node_id)


def test_a_loop_may_have_a_thousand_iterations():
    looped = loop(counting(), max_iterations=1_000, max_steps=2_000)

    assert (1_000, "count") == (looped.counts[0], looped.counts[3])


# --- bounds and cancellation ---------------------------------------------------------------------------


@pytest.mark.parametrize(("max_steps", "status"), [(7, "succeeded"), (6, "failed"), (4, "failed"), (2, "failed")])
def test_max_steps_inside_a_loop_end_the_run_whatever_the_loop_says(max_steps, status):
    log: list[Any] = []
    looped = loop(
        counting(log=log), fixed_count=3, continue_on_error=True, max_steps=max_steps, failure_policy="skip_failed"
    )

    assert (status, max_steps) == (looped.result.status, looped.result.nodes_executed)
    assert min(3, max_steps - 2) == len(log)
    if status == "failed":
        at = "loop" if max_steps < 5 else ("last" if max_steps == 5 else "end")
        assert ("BOUNDS_EXCEEDED", at) == (code(looped.result), looped.result.error.node_id)


def test_cancelling_ends_a_loop_at_its_next_await():
    async def main() -> RunResult:
        nodes = {"loop": node("loop", body_node="body", continue_on_error=True), "body": node("model")}
        executor = an_executor(a_graph(nodes, [("start", "loop"), ("loop", "end")]), {"body": counting(after_ms=10)})
        task = asyncio.create_task(executor.run(a_message(content="q"), run_id="r"))
        await asyncio.sleep(0.025)
        executor.cancel("r")
        return await task

    result = run_clean(main())

    assert ("cancelled", "CANCELLED", "loop", 25.0, 5) == (
        result.status,
        code(result),
        result.error.node_id,
        result.total_latency_ms,
        result.nodes_executed,
    )


def test_a_loop_without_an_await_inside_can_be_cancelled():
    """Many iterations in one moment are no reason to hear of nothing else."""

    async def main() -> RunResult:
        nodes = {"loop": node("loop", body_node="body", max_iterations=1_000), "body": node("model")}

        async def body(message: Message, context: ExecutionContext) -> NodeResult:
            if context.path == "2.10":
                executor.cancel("r")
            return success(passed_on(message, context))

        executor = an_executor(a_graph(nodes, [("start", "loop"), ("loop", "end")]), {"body": body}, max_steps=5_000)
        return await executor.run(a_message(content="q"), run_id="r")

    result = run_clean(main())

    assert ("cancelled", True) == (result.status, result.nodes_executed <= 13)


# --- ways and messages ---------------------------------------------------------------------------------


def test_a_way_that_the_body_names_is_dropped():
    looped = loop(says("x", way="nowhere"), fixed_count=2)

    assert ["start", "loop", "last", "end"] == visited(looped.result)


def test_the_body_receives_the_error_that_the_loop_received_and_no_measurements():
    seen: list[Message] = []

    async def body(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append(message)
        return success(passed_on(message, context))

    nodes = {
        "bad": node("model", on_error="loop"),
        "loop": node("loop", body_node="body", fixed_count=1),
        "body": node("model"),
    }
    graph = a_graph(nodes, [("start", "bad"), ("bad", "end"), ("loop", "end")])
    result = go(an_executor(graph, {"bad": fails(text="why"), "body": body}))

    assert [("why", MessageMetadata())] == [(m.payload.error.message, m.metadata) for m in seen]
    assert ("succeeded", None) == (result.status, result.message.payload.error)


def test_what_an_iteration_puts_out_shares_nothing_with_the_next():
    async def body(message: Message, context: ExecutionContext) -> NodeResult:
        structured = message.payload.structured or {"n": []}
        structured["n"].append(context.path)
        return success(passed_on(message, context, structured=structured))

    message = a_message(content="q", structured={"n": []})
    looped = loop(body, fixed_count=3, message=message)

    assert ({"n": ["2.1", "2.2", "2.3"]}, {"n": []}) == (looped.payload.structured, message.payload.structured)


# --- accounts ------------------------------------------------------------------------------------------


@settings(max_examples=80)
@given(
    st.lists(st.booleans(), min_size=1, max_size=8),
    st.sampled_from(["fixed_count", "until_success", "until_condition", "while_condition"]),
    st.integers(0, 8),
    st.booleans(),
    st.none() | st.integers(1, 90),
)
def test_the_account_of_a_loop_is_that_of_a_plain_model(good, kind, bound, goes_on, timeout_ms):
    """Each iteration takes 10 ms; the i-th succeeds if good[i]; conditions stop at `bound` iterations."""
    expression = {"until_condition": f"iteration >= {bound}", "while_condition": f"iteration < {bound}"}.get(kind)
    done: list[bool] = []
    termination = "failed"
    while True:
        if kind == "while_condition" and len(done) < len(good) and len(done) >= bound:
            termination = "condition"
            break
        if len(done) == len(good):
            termination = "count" if kind == "fixed_count" else "max_iterations"
            break
        if timeout_ms is not None and 10 * (len(done) + 1) >= timeout_ms:
            termination = "timeout"
            break
        done.append(good[len(done)])
        if kind == "until_success" and done[-1]:
            termination = "success"
            break
        if not done[-1] and kind != "until_success" and not goes_on:
            break
        if kind == "until_condition" and len(done) >= bound:
            termination = "condition"
            break
    failing = [index + 1 for index, ok in enumerate(good) if not ok]
    config: dict[str, Any] = {"max_iterations": len(good), "continue_on_error": goes_on}
    if timeout_ms is not None:
        config["timeout_ms"] = timeout_ms
    looped = loop(counting(*failing, after_ms=10), kind, expression, **config)
    succeeds = termination != "failed" and (True in done or (kind == "while_condition" and not done and bound == 0))

    assert succeeds == (looped.result.status == "succeeded")
    if succeeds:
        assert (len(done), done.count(True), done.count(False), termination) == looped.counts
        assert done == [result["success"] for result in looped.account["results"]]
        assert (done.count(True) / len(done) if done else 0) == looped.account["success_rate"]
        assert looped.account["iterations"] == looped.account["success_count"] + looped.account["failure_count"]
    else:
        assert ("MODEL_ERROR" if done else "TIMEOUT") == code(looped.result)


# --- results that hold results -------------------------------------------------------------------------


def size_over(nodes: Mapping[str, Any], edges: Sequence[Any], **config: Any) -> list[int]:
    """The sizes of the messages that the model nodes of a graph receive."""
    sizes: list[int] = []

    async def measured(message: Message, context: ExecutionContext) -> NodeResult:
        sizes.append(len(message.to_json()))
        return success(passed_on(message, context, content="x"))

    acts = {name: measured for name, what in nodes.items() if what["type"] == "model"}
    graph = a_graph(nodes, edges, allow_cycles=True)
    result = go(an_executor(graph, acts, max_steps=10_000, **config))
    assert "succeeded" == result.status
    return sizes


def test_a_metadata_entry_does_not_hold_the_loop_result_that_the_loop_received():
    message = a_message(content="q", metadata={"loop_result": {"old": 1}, "kept": 1})
    results = loop(says("x"), fixed_count=2, message=message).account["results"]
    own = loop(says("x", metadata={"loop_result": "own"}), fixed_count=1, message=message).account["results"]

    assert [False, False] == ["loop_result" in result["metadata"] for result in results]
    assert [1, 1] == [result["metadata"]["kept"] for result in results]
    assert "own" == own[0]["metadata"]["loop_result"]


def test_the_body_does_not_receive_more_with_every_iteration():
    nodes = {"loop": node("loop", body_node="body", max_iterations=30), "body": node("model")}
    sizes = size_over(nodes, [("start", "loop"), ("loop", "end")])

    assert (30, True) == (len(sizes), max(sizes) - min(sizes) < 20)


def test_a_loop_in_a_loop_grows_by_nothing():
    nodes = {
        "outer": node("loop", body_node="inner", max_iterations=30),
        "inner": node("loop", body_node="body", max_iterations=2),
        "body": node("model"),
    }
    sizes = size_over(nodes, [("start", "outer"), ("outer", "end")])

    assert 60 == len(sizes)
    assert max(sizes[4:]) - min(sizes[4:]) < 50


def test_a_loop_that_the_token_visits_again_and_again_grows_by_nothing():
    nodes = {"loop": node("loop", body_node="body", max_iterations=2), "body": node("model"), "after": node("gate",
             conditions=[{"name": "done", "expression": "variables.get('n') == 30", "target": "end"}],
             default_target="loop")}  # fmt: skip
    sizes: list[int] = []

    async def measured(message: Message, context: ExecutionContext) -> NodeResult:
        context.variables["n"] = context.variables.get("n", 0) + 1
        sizes.append(len(message.to_json()))
        return success(passed_on(message, context, content="x"))

    graph = a_graph(nodes, [("start", "loop"), ("loop", "after")], allow_cycles=True)
    result = go(an_executor(graph, {"body": measured}, max_steps=10_000))

    assert ("succeeded", 30) == (result.status, len(sizes))
    assert max(sizes[4:]) - min(sizes[4:]) < 50
