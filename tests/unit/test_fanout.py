"""The fanout, strategy by strategy: who wins, what is put out, what is told of failures, and who is stopped.

`test_nodes.py` has the votes and the order in which targets start.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.nodes import Act, fails, in_turn, noting, says, swallows
from tests.support.runs import a_graph, a_message, an_executor, code, count, events, go, node, run_clean, visited
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.message import Message, MessageMetadata, NodeResult
from tinyllm.nodes.base import passed_on, success
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

RUN_KEYS = ("max_steps", "failure_policy", "max_tokens", "cancel_grace_ms")


def fan(
    strategy: str,
    acts: Mapping[str, Act],
    targets: Sequence[str] | None = None,
    *,
    message: Message | None = None,
    of_target: Mapping[str, Any] | None = None,
    variables: Mapping[str, Any] | None = None,
    seen: list[Any] | None = None,
    **config: Any,
) -> RunResult:
    """start -> fan -> last -> end; the targets do what `acts` says, and `last` puts what it sees into `seen`."""
    of_run = {key: config.pop(key) for key in RUN_KEYS if key in config}
    targets = [*acts] if targets is None else [*targets]

    async def last(message: Message, context: ExecutionContext) -> NodeResult:
        if seen is not None:
            seen.append((message, dict(context.variables)))
        return success(passed_on(message, context))

    nodes = {name: node("model", **(of_target or {})) for name in acts}
    nodes["fan"] = node("fanout", target_nodes=targets, aggregation_strategy=strategy, **config)
    nodes["last"] = node("model")
    graph = a_graph(nodes, [("start", "fan"), ("fan", "last"), ("last", "end")])
    executor = an_executor(graph, {**acts, "last": last}, **of_run)
    message = a_message(content="question") if message is None else message
    return run_clean(executor.run(message, run_id="r", variables=variables))


def writes(variables: Mapping[str, Any], act: Act | None = None) -> Act:
    async def writing(message: Message, context: ExecutionContext) -> Any:
        context.variables.update(variables)
        return await (act or says("written"))(message, context)

    return writing


def puts(content: str | None, quality: float | None = None, **fields: Any) -> Act:
    """Answers `content`, null too, with a `quality_score` measured."""

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        out = passed_on(message, context, content=content, **fields)
        if quality is not None:
            payload = passed_on(message, context, content=content, **fields).payload
            out = context.child_owning(message, payload, MessageMetadata(quality_score=quality))
        return success(out)

    return act


def told(result: RunResult) -> list[tuple[str, str, str]]:
    """`details.failures` of the error."""
    assert result.error is not None
    return [(f["node"], f["code"], f["message"]) for f in result.error.details["failures"]]


def started(result: RunResult) -> list[str | None]:
    return [e.path for e in events(result, EventKind.STEP_STARTED) if "." in str(e.path)]


def ended(result: RunResult) -> dict[str | None, str | None]:
    """How the step of each path inside ended: with a code, cut off, or None for a success."""
    return {
        e.path: "cut off" if "cut_off" in e.details else (e.code and e.code.value)
        for e in events(result, EventKind.STEP_ENDED)
        if "." in str(e.path)
    }


# --- all -----------------------------------------------------------------------------------------------


def test_all_joins_the_contents_in_order_and_lists_every_result():
    acts = {"a": says("A", after_ms=30, structured={"x": 1}), "b": fails(text="no"), "c": says("C", after_ms=10)}
    result = fan("all", acts, ["c", "b", "a"], message=a_message(content="q", structured={"given": 1}))
    results = (result.structured or {}).pop("results")

    assert ("succeeded", "C\n\nA", 30.0) == (result.status, result.content, result.total_latency_ms)
    assert {"given": 1} == result.structured
    assert [
        {"node": "c", "success": True, "content": "C", "structured": {"given": 1}, "error": None},
        {"node": "a", "success": True, "content": "A", "structured": {"x": 1}, "error": None},
    ] == [results[0], results[2]]
    assert ("b", False, None, None) == tuple(results[1][key] for key in ("node", "success", "content", "structured"))
    assert {
        "code": "MODEL_ERROR",
        "message": "no",
        "details": {},
        "recoverable": True,
        "node_id": "b",
    } == results[1]["error"]
    assert ["node", "success", "content", "structured", "error"] == list(results[1])


def test_all_passes_on_the_payload_received_with_only_content_and_results_replaced():
    message = a_message(content="q", task="t", route="r", metadata={"m": 1}, mine=2)
    seen: list[Any] = []
    fan("all", {"a": says("A", route="other", task="other", metadata={"x": 1}, mine=3)}, message=message, seen=seen)
    fields = seen[0][0].payload.fields()
    results = fields["structured"]["results"]

    assert {**message.payload.fields(), "content": "A", "structured": {"results": results}} == fields


@pytest.mark.parametrize(
    ("contents", "joined"),
    [((None, "b"), "b"), (("a", None, "c"), "a\n\nc"), ((None, None), None), (("", "b"), "\n\nb"), (("", None), "")],
)
def test_all_leaves_out_what_is_null_but_not_what_is_empty(contents, joined):
    acts = {name: puts(text) for name, text in zip("abc", contents, strict=False)}

    assert joined == fan("all", acts).content


def test_all_fails_only_if_every_target_failed_with_the_first_error_in_order():
    acts = {"a": fails(text="of a", after_ms=9), "b": fails(ErrorCode.GATE_FAILED, text="of b", after_ms=1)}
    result = fan("all", acts)

    assert ("failed", "MODEL_ERROR", "a", "of a") == (
        result.status,
        code(result),
        result.error.node_id,
        result.error.message.split(": ")[-1],
    )
    assert [("a", "MODEL_ERROR", "of a"), ("b", "GATE_FAILED", "of b")] == told(result)


def test_all_merges_the_writes_of_every_success_in_order():
    seen: list[Any] = []
    acts = {
        "a": writes({"both": "a", "a": 1}, says("x", after_ms=20)),
        "b": writes({"both": "b", "b": 1}, says("x", after_ms=1)),
        "c": writes({"both": "c", "c": 1}, fails()),
    }
    fan("all", acts, variables={"given": 0}, seen=seen)

    assert {"given": 0, "both": "b", "a": 1, "b": 1} == seen[0][1]


@pytest.mark.parametrize("strategy", ["all", "majority_vote", "best_score", "first_success"])
def test_targets_do_not_see_each_other_s_writes(strategy):
    seen: list[Any] = []

    async def look(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append(copy.deepcopy(context.variables))
        context.variables["list"].append(len(seen))
        raise NodeError(ErrorCode.MODEL_ERROR, "no")

    fan(strategy, {"a": look}, ["a", "a", "a"], parallel=False, variables={"list": []})

    assert [{"list": []}] * 3 == seen


def test_one_target_s_merge_keeps_what_another_left_alone():
    """A target's writes are what it changed, not the whole of its copy."""
    seen: list[Any] = []
    acts = {"a": writes({"x": "new"}), "b": writes({"y": "new"})}
    fan("all", acts, variables={"x": "old", "y": "old"}, seen=seen)

    assert {"x": "new", "y": "new"} == seen[0][1]


@pytest.mark.parametrize("strategy", ["all", "majority_vote", "best_score"])
def test_all_but_first_success_wait_for_every_target(strategy):
    acts = {"a": says("x", after_ms=1), "b": says("x", after_ms=1), "c": says("y", after_ms=99)}

    assert 99.0 == fan(strategy, acts).total_latency_ms


# --- first_success -------------------------------------------------------------------------------------


def test_first_success_puts_out_the_earliest_and_cancels_the_rest():
    acts = {"a": says("late", after_ms=50), "b": says("first", after_ms=10, route="b"), "c": fails(after_ms=5)}
    result = fan("first_success", acts)

    assert ("succeeded", "first", "b", 10.0) == (
        result.status,
        result.content,
        result.message.payload.route,
        result.total_latency_ms,
    )
    assert {"2.1": "cut off", "2.2": None, "2.3": "MODEL_ERROR"} == ended(result)


def test_first_success_keeps_only_the_winner_s_writes():
    seen: list[Any] = []
    acts = {
        "a": writes({"a": 1}, fails()),
        "b": writes({"b": 1}, says("x", after_ms=9)),
        "c": writes({"c": 1}, says("x", after_ms=99)),
    }
    fan("first_success", acts, seen=seen)

    assert {"b": 1} == seen[0][1]


def test_first_success_awaits_what_it_cancels():
    acts = {"a": says("first", after_ms=10), "b": swallows(1, ms=40)}
    result = fan("first_success", acts, cancel_grace_ms=25)

    assert ("first", 10.0) == (result.content, result.total_latency_ms)


def test_first_success_does_not_start_the_rest():
    log: list[Any] = []
    acts = {"a": noting(log, in_turn(fails(after_ms=5), says("second", after_ms=5), says("third")))}
    result = fan("first_success", acts, ["a", "a", "a"], parallel=False)

    assert ("second", [0.0, 5.0], ["2.1", "2.2"], 6) == (result.content, log, started(result), result.nodes_executed)


def test_first_success_fails_if_nobody_succeeds_with_the_first_error_in_order():
    acts = {"a": fails(text="of a", after_ms=20), "b": fails(ErrorCode.TOOL_ERROR, text="of b")}
    result = fan("first_success", acts)

    assert ("failed", "of a", "a") == (result.status, result.error.message.split(": ")[-1], result.error.node_id)
    assert [("a", "MODEL_ERROR", "of a"), ("b", "TOOL_ERROR", "of b")] == told(result)


@pytest.mark.parametrize("config", [{"fail_fast": True}, {"require_all_success": True}, {"quorum": 2}])
def test_first_success_is_not_concerned_by_what_the_others_ask_of_failures(config):
    acts = {"a": fails(), "b": says("x", after_ms=5)}

    assert ("succeeded", "x") == (fan("first_success", acts, **config).status, fan("first_success", acts).content)


def test_at_one_moment_any_of_the_successes_may_win_and_its_payload_is_whole():
    acts = {name: writes({"who": name}, says(name, after_ms=10, route=name)) for name in "abc"}
    seen: list[Any] = []
    result = fan("first_success", acts, seen=seen)
    payload = seen[0][0].payload

    assert str(payload.content) in {"a", "b", "c"}
    assert ({payload.content}, 10.0) == ({payload.route, seen[0][1]["who"]}, result.total_latency_ms)


def test_a_target_that_succeeds_at_the_moment_of_its_deadline_has_not_succeeded():
    acts = {"a": says("late", after_ms=30), "b": says("in time", after_ms=29)}

    assert "in time" == fan("first_success", acts, ["a", "b"], timeout_ms=30).content
    assert "TIMEOUT" == code(fan("first_success", acts, ["a"], timeout_ms=30))


def test_first_success_tries_the_next_after_a_target_that_was_too_late():
    acts = {"a": says("late", after_ms=99), "b": says("x", after_ms=5)}
    result = fan("first_success", acts, parallel=False, timeout_ms=30)

    assert ("x", 35.0) == (result.content, result.total_latency_ms)


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=5), st.integers(1, 5))
def test_first_success_is_that_of_a_plain_model_of_when_targets_end(drawn, at_once):
    """Targets start in order when a place is free; the winner is one of those that succeed earliest."""
    names = [f"t{index}" for index in range(len(drawn))]
    acts = {
        name: says(name, after_ms=10 * ms) if good else fails(after_ms=10 * ms)
        for name, (ms, good) in zip(names, drawn, strict=True)
    }
    places = [0] * at_once
    ends: list[int] = []
    for ms, _ in drawn:
        begin = min(places)
        places[places.index(begin)] = begin + 10 * ms
        ends.append(begin + 10 * ms)
    good_ends = [end for end, (_, good) in zip(ends, drawn, strict=True) if good]
    result = fan("first_success", acts, max_parallel_branches=at_once)
    if not good_ends:
        assert ("failed", "t0", float(max(ends))) == (result.status, result.error.node_id, result.total_latency_ms)
    else:
        first = min(good_ends)
        may_win: set[Any] = {n for n, end, (_, good) in zip(names, ends, drawn, strict=True) if good and end == first}
        assert (float(first), True) == (result.total_latency_ms, result.content in may_win)


# --- best_score ----------------------------------------------------------------------------------------


def best(*acts: Act, **config: Any) -> str | None:
    return fan("best_score", {f"t{index}": act for index, act in enumerate(acts)}, **config).content


def test_best_score_puts_out_the_payload_with_the_highest_number():
    result = fan("best_score", {n: puts(n, metadata={"quality_score": s}) for n, s in (("a", 1), ("b", 2.5), ("c", 2))})

    assert ("b", 2.5) == (result.content, result.message.payload.metadata["quality_score"])


def test_a_score_is_found_in_the_payload_s_metadata_then_the_message_s_then_structured():
    high = {"quality_score": 9}

    assert "a" == best(puts("a", quality=9), puts("b", quality=1))
    assert "b" == best(puts("a", quality=9, metadata={"quality_score": 1}), puts("b", quality=2))
    assert "a" == best(puts("a", structured=high), puts("b", quality=2))
    assert "b" == best(puts("a", quality=1, structured=high), puts("b", quality=2))


def test_the_field_of_the_score_can_be_named():
    acts = puts("a", metadata={"mine": 1, "quality_score": 9}), puts("b", structured={"mine": 2})

    assert "b" == best(*acts, score_field="mine")


@pytest.mark.parametrize("none", [True, "9", None, [9], {"n": 9}])
def test_only_numbers_are_scores_and_a_missing_one_is_lowest(none):
    assert "b" == best(puts("a", metadata={"quality_score": none}), puts("b", metadata={"quality_score": -1e300}))
    assert "b" == best(puts("a", structured={"quality_score": none}), puts("b", structured={"quality_score": -5}))


def test_a_metadata_score_that_is_no_number_leaves_structured_to_look_in():
    odd = puts("a", metadata={"quality_score": "good"}, structured={"quality_score": 5})

    assert "a" == best(odd, puts("b", metadata={"quality_score": 4}))


def test_ties_and_scores_that_nobody_has_go_to_the_order_of_targets():
    assert "a" == best(puts("a"), puts("b"), puts("c"))
    assert "b" == best(puts("a"), puts("b", metadata={"quality_score": 1}), puts("c", metadata={"quality_score": 1.0}))


def test_a_score_that_everybody_received_is_everybody_s():
    message = a_message(content="q", metadata={"quality_score": 9})
    result = fan("best_score", {"a": says("a"), "b": says("b", metadata={"quality_score": 1})}, message=message)

    assert "a" == result.content


@pytest.mark.parametrize(("big", "small"), [(2**70, 2.0**69), (2**53 + 1, float(2**53)), (10**400, 1e308)])
def test_huge_integers_are_compared_exactly(big, small):
    assert "b" == best(puts("a", metadata={"quality_score": small}), puts("b", metadata={"quality_score": big}))


def test_best_score_succeeds_if_one_target_did_and_fails_as_all_does():
    assert "b" == best(fails(), puts("b"))
    result = fan("best_score", {"a": fails(text="of a", after_ms=5), "b": fails(ErrorCode.TOOL_ERROR, text="of b")})

    assert ("a", [("a", "MODEL_ERROR", "of a"), ("b", "TOOL_ERROR", "of b")]) == (result.error.node_id, told(result))


def test_best_score_keeps_only_the_winner_s_writes():
    seen: list[Any] = []
    acts = {
        "a": writes({"a": 1}, puts("a", metadata={"quality_score": 1})),
        "b": writes({"b": 1}, puts("b", metadata={"quality_score": 2})),
    }
    fan("best_score", acts, seen=seen)

    assert {"b": 1} == seen[0][1]


# --- every strategy against a model of three lines -----------------------------------------------------

Drawn = tuple[str | None, float | None]
drawn_targets = st.lists(
    st.tuples(st.sampled_from(["a", "A ", "b", "", None, "fail"]), st.sampled_from([None, 1, 2.5, -1, 1.0])),
    min_size=1,
    max_size=6,
)


def acts_of(drawn: Sequence[Drawn]) -> dict[str, Act]:
    return {
        f"t{index}": fails(text=f"{index}")
        if text == "fail"
        else puts(text, route=f"{index}", metadata={} if score is None else {"quality_score": score})
        for index, (text, score) in enumerate(drawn)
    }


@settings(max_examples=60)
@given(drawn_targets, st.booleans(), st.booleans())
def test_all_and_best_score_are_those_of_a_plain_model(drawn, all_needed, parallel):
    good = [index for index, (text, _) in enumerate(drawn) if text != "fail"]
    config = {"require_all_success": all_needed, "parallel": parallel}
    joined = fan("all", acts_of(drawn), **config)
    top = fan("best_score", acts_of(drawn), **config)
    if not good or (all_needed and len(good) < len(drawn)):
        first = next(index for index in range(len(drawn)) if index not in good)
        assert {("failed", f"t{first}", len(drawn) - len(good))} == {
            (result.status, result.error.node_id, len(told(result))) for result in (joined, top)
        }
        return
    scores = {index: float("-inf") if drawn[index][1] is None else drawn[index][1] for index in good}
    contents = [str(drawn[index][0]) for index in good if drawn[index][0] is not None]

    assert ("\n\n".join(contents) if contents else None) == joined.content
    assert [index in good for index in range(len(drawn))] == [
        r["success"] for r in (joined.structured or {})["results"]
    ]
    assert str(max(good, key=lambda index: (scores[index], -index))) == top.message.payload.route


@settings(max_examples=60)
@given(drawn_targets, st.none() | st.integers(1, 6), st.booleans())
def test_majority_vote_is_that_of_a_plain_model(drawn, quorum, all_needed):
    good = [index for index, (text, _) in enumerate(drawn) if text != "fail"]
    votes = [str(drawn[index][0]).strip().casefold() for index in good if drawn[index][0]]
    needed = quorum or len(drawn) // 2 + 1
    winning = max(dict.fromkeys(votes), key=votes.count, default="")
    result = fan("majority_vote", acts_of(drawn), quorum=quorum, require_all_success=all_needed)
    won = votes.count(winning) >= needed and winning != ""
    if won and not (all_needed and len(good) < len(drawn)):
        first = next(index for index in good if str(drawn[index][0]).strip().casefold() == winning)
        assert ("succeeded", str(first)) == (result.status, result.message.payload.route)
    elif len(good) < len(drawn):
        first = next(index for index in range(len(drawn)) if index not in good)
        assert ("failed", f"t{first}") == (result.status, result.error.node_id)
    else:
        assert ("failed", "GATE_FAILED", "fan", []) == (result.status, code(result), result.error.node_id, told(result))


# --- failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["all", "best_score", "majority_vote"])
def test_require_all_success_fails_with_the_first_failed_target_in_order(strategy):
    acts = {
        "a": says("x"),
        "b": fails(text="of b", after_ms=20),
        "c": says("x"),
        "d": fails(ErrorCode.TOOL_ERROR, text="of d"),
        "e": says("x"),
    }
    result = fan(strategy, acts, require_all_success=True)

    assert ("failed", "of b", "b", 20.0) == (
        result.status,
        result.error.message.split(": ")[-1],
        result.error.node_id,
        result.total_latency_ms,
    )
    assert [("b", "MODEL_ERROR", "of b"), ("d", "TOOL_ERROR", "of d")] == told(result)


@pytest.mark.parametrize("strategy", ["all", "best_score", "majority_vote"])
def test_fail_fast_fails_at_the_first_failure_in_time_and_cancels_the_rest(strategy):
    acts = {"a": says("x", after_ms=50), "b": fails(text="of b", after_ms=20), "c": fails(text="of c", after_ms=10)}
    result = fan(strategy, acts, fail_fast=True)

    assert ("failed", "of c", 10.0) == (result.status, result.error.message.split(": ")[-1], result.total_latency_ms)
    assert [("c", "MODEL_ERROR", "of c")] == told(result)
    assert {"2.1": "cut off", "2.2": "cut off", "2.3": "MODEL_ERROR"} == ended(result)


def test_fail_fast_at_one_moment_tells_one_of_those_that_failed():
    acts = {name: fails(text=f"of {name}", after_ms=10) for name in "abc"}
    result = fan("all", acts, fail_fast=True)
    failures = told(result)

    assert str(result.error.node_id) in {"a", "b", "c"}
    assert (str(result.error.node_id), "MODEL_ERROR", result.error.message.split(": ")[-1]) in {*failures}
    assert sorted(failures) == failures


def test_a_target_that_was_cut_off_is_told_with_timeout_and_its_own_name():
    acts = {"a": says("x", after_ms=99), "b": fails(text="of b")}
    result = fan("all", acts, timeout_ms=30)

    assert ("TIMEOUT", "a", 30.0) == (code(result), result.error.node_id, result.total_latency_ms)
    assert [("a", "TIMEOUT"), ("b", "MODEL_ERROR")] == [failure[:2] for failure in told(result)]


def test_a_target_s_retries_and_waits_are_its_own():
    log: list[Any] = []
    acts = {"a": noting(log, in_turn(fails(), fails(), says("third"))), "b": says("x", after_ms=5)}
    result = fan("all", acts, of_target={"retry_count": 2, "retry_delay_ms": 10})

    assert ("third\n\nx", [0.0, 10.0, 20.0], 6) == (result.content, log, result.nodes_executed)


def test_an_error_that_is_not_recoverable_stops_the_retries_of_the_fanout():
    acts = {"a": fails(ErrorCode.VALIDATION_ERROR), "b": fails()}
    result = fan("all", acts, retry_count=3)

    assert 1 == count(result, EventKind.ATTEMPT_STARTED, "fan")


def test_a_retried_fanout_starts_with_what_it_received():
    seen: list[Any] = []

    async def spoil(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append((message.payload.structured, copy.deepcopy(context.variables), context.path))
        context.variables["v"].append(len(seen))
        if len(seen) < 3:
            raise NodeError(ErrorCode.MODEL_ERROR, "not yet")
        return success(passed_on(message, context))

    message = a_message(content="q", structured={"k": [1]})
    result = fan("all", {"a": spoil}, message=message, variables={"v": []}, retry_count=2, retry_delay_ms=1)

    assert [({"k": [1]}, {"v": []}, "2.1")] * 3 == seen
    assert (["start", "fan", "last", "end"], 7) == (visited(result), result.nodes_executed)


def test_targets_receive_the_error_that_the_fanout_received_and_no_measurements():
    seen: list[Message] = []

    async def look(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append(message)
        return success(passed_on(message, context, content="seen"))

    nodes = {
        "bad": node("model", on_error="fan"),
        "fan": node("fanout", target_nodes=["a", "a"]),
        "a": node("model"),
    }
    graph = a_graph(nodes, [("start", "bad"), ("bad", "end"), ("fan", "end")])
    result = go(an_executor(graph, {"bad": fails(text="why"), "a": look}))

    assert [("why", MessageMetadata())] * 2 == [(m.payload.error.message, m.metadata) for m in seen]
    assert ("seen\n\nseen", None) == (result.content, result.message.payload.error)


def test_an_error_of_the_fanout_received_does_not_fail_a_target_that_keeps_it():
    async def keeps(message: Message, context: ExecutionContext) -> NodeResult:
        return success(context.child_of(message))

    nodes = {"bad": node("model", on_error="fan"), "fan": node("fanout", target_nodes=["a"]), "a": node("model")}
    graph = a_graph(nodes, [("start", "bad"), ("bad", "end"), ("fan", "end")])

    assert "succeeded" == go(an_executor(graph, {"bad": fails(), "a": keeps})).status


def test_a_way_that_a_target_names_is_not_the_fanout_s():
    gate = node("gate", conditions=[{"name": "n", "expression": "1", "target": "end"}])
    nodes = {"fan": node("fanout", target_nodes=["gate"]), "gate": gate, "last": node("transform")}
    graph = a_graph(nodes, [("start", "fan"), ("fan", "last"), ("last", "end")])

    assert ["start", "fan", "last", "end"] == visited(go(an_executor(graph)))


# --- order and steps -----------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["all", "majority_vote", "best_score"])
@pytest.mark.parametrize("config", [{}, {"parallel": False}, {"max_parallel_branches": 2}, {"quorum": 1}])
def test_the_strategy_has_no_say_in_the_number_of_steps(strategy, config):
    acts = {"a": says("x"), "b": says("x"), "c": fails(), "d": says("x"), "e": says("x")}
    result = fan(strategy, acts, **config)

    assert (["2.1", "2.2", "2.3", "2.4", "2.5"], 9) == (started(result), result.nodes_executed)


def test_targets_begin_before_anything_else_of_their_moment():
    kinds: list[str] = []

    async def quick(message: Message, context: ExecutionContext) -> NodeResult:
        kinds.append(f"{context.path} began")
        await asyncio.sleep(0)
        kinds.append(f"{context.path} went on")
        return success(passed_on(message, context))

    fan("all", {"a": quick}, ["a", "a", "a"])

    assert ["2.1 began", "2.2 began", "2.3 began"] == kinds[:3]


@pytest.mark.parametrize(("max_steps", "status"), [(7, "succeeded"), (6, "failed"), (3, "failed"), (2, "failed")])
def test_max_steps_counts_targets_and_ends_the_run(max_steps, status):
    acts = {"a": says("x", after_ms=5), "b": says("x", after_ms=6), "c": fails(after_ms=7)}
    result = fan("all", acts, max_steps=max_steps, failure_policy="skip_failed")

    assert (status, min(max_steps, 7)) == (result.status, result.nodes_executed)
    assert (None if status == "succeeded" else "BOUNDS_EXCEEDED") == code(result)


def test_a_thousand_targets_are_a_fanout():
    result = fan("all", {"a": says("x")}, ["a"] * 1_000, max_steps=2_000, max_parallel_branches=7)

    assert (1_004, 1_000) == (result.nodes_executed, len((result.structured or {})["results"]))


def test_cancelling_cancels_every_target_and_counts_none_that_did_not_start():
    async def main() -> RunResult:
        nodes = {"fan": node("fanout", target_nodes=["a"] * 5, max_parallel_branches=2), "a": node("model")}
        executor = an_executor(a_graph(nodes, [("start", "fan"), ("fan", "end")]), {"a": says("x", after_ms=50)})
        task = asyncio.create_task(executor.run(a_message(content="q"), run_id="r"))
        await asyncio.sleep(0.07)
        executor.cancel("r")
        return await task

    result = run_clean(main())

    assert ("cancelled", "fan", 6, 70.0) == (
        result.status,
        result.error.node_id,
        result.nodes_executed,
        result.total_latency_ms,
    )


# --- results that hold results -------------------------------------------------------------------------


def test_an_entry_does_not_hold_the_results_that_the_fanout_received():
    message = a_message(content="q", structured={"results": ["of before"], "kept": 1})
    result = fan("all", {"a": says("A"), "b": says("B", structured={"results": "own"})}, message=message)
    entries = (result.structured or {})["results"]

    assert [{"kept": 1}, {"results": "own"}] == [entry["structured"] for entry in entries]


def test_results_do_not_grow_when_a_fanout_is_repeated():
    nodes = {
        "loop": node("loop", body_node="fan", fixed_count=30, max_iterations=30),
        "fan": node("fanout", target_nodes=["a", "a", "a"]),
        "a": node("transform", transforms=[{"type": "truncate", "params": {"max_length": 5}}]),
    }
    sizes: list[int] = []

    class Measured:
        async def act(self, message: Message, context: ExecutionContext) -> NodeResult:
            sizes.append(len(message.to_json()))
            return success(passed_on(message, context, content="x"))

    graph = a_graph(nodes, [("start", "loop"), ("loop", "end")])
    result = go(an_executor(graph, {"a": Measured().act}, max_steps=1_000))

    assert "succeeded" == result.status
    assert max(sizes[3:]) - min(sizes[3:]) < 100


def test_results_do_not_grow_when_the_token_comes_again_and_again():
    nodes = {"fan": node("fanout", target_nodes=["a", "b"]), "a": node("model"), "b": node("model"), "c": node("model")}
    edges = [("start", "fan"), ("fan", "c"), ("c", "end", "variables.get('n') == 30"), ("c", "fan")]
    sizes: list[int] = []

    async def counts(message: Message, context: ExecutionContext) -> NodeResult:
        context.variables["n"] = context.variables.get("n", 0) + 1
        sizes.append(len(message.to_json()))
        return success(passed_on(message, context, content="x"))

    graph = a_graph(nodes, edges, allow_cycles=True)
    result = go(an_executor(graph, {"a": says("a"), "b": says("b"), "c": counts}, max_steps=1_000))

    assert ("succeeded", 30) == (result.status, len(sizes))
    assert max(sizes) - min(sizes) < 100


@pytest.mark.parametrize("parallel", [True, False])
def test_no_target_goes_on_when_what_runs_them_breaks(parallel):
    """The ids of the second target's message cannot be had."""
    ended: list[str] = []

    async def slow(message: Message, context: ExecutionContext) -> NodeResult:
        ids.append(None)
        try:
            await asyncio.sleep(5)
        finally:
            ended.append("slow")
        return success(passed_on(message, context))

    nodes = {"fan": node("fanout", target_nodes=["a", "b"], parallel=parallel), "a": node("model"), "b": node("model")}
    executor = an_executor(a_graph(nodes, [("start", "fan"), ("fan", "end")]), {"a": slow})
    ids: list[None] = []

    def an_id() -> str:
        if ids:
            raise OSError("no more ids")
        return "id"

    executor.ids = an_id
    failed = run_clean(executor.run(a_message(content="q"), run_id="r"))

    assert ("failed", ["slow"]) == (failed.status, ended)
    assert failed.error is not None
    assert "no more ids" in failed.error.message
