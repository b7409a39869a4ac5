"""Bounds of a run: tokens as each step ends, messages and their bytes between visits, and what pruning drops."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import ScriptedModel
from tests.support.nodes import Act, fails, says
from tests.support.runs import a_graph, a_message, an_executor, code, count, events, go, node, run_clean, visited
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, ModelError, NodeError
from tinyllm.message import Message, NodeResult
from tinyllm.nodes.base import passed_on, success
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit


def line(works: int, acts: Mapping[str, Act] | None = None, *, work: Any = None, **config: Any) -> RunResult:
    """start -> w1 -> w2 -> ... -> end; each of the model nodes costs 5 tokens, or does what `acts` says."""
    names = [f"w{index + 1}" for index in range(works)]
    graph = a_graph(
        {name: node("model") if work is None else work for name in names}, [*pairwise(["start", *names, "end"])]
    )
    return go(an_executor(graph, acts, **config))


def ended(result: RunResult) -> tuple[Any, ...]:
    return result.status, code(result), result.error and result.error.node_id


def spends(tokens: int, act: Act | None = None) -> Act:
    async def spending(message: Message, context: ExecutionContext) -> Any:
        context.count_tokens(tokens)
        return await (act or says("x"))(message, context)

    return spending


# --- tokens --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("max_tokens", "steps", "tokens", "status"),
    [
        (None, 5, 15, "succeeded"),
        (15, 5, 15, "succeeded"),
        (14, 4, 15, "failed"),
        (10, 4, 15, "failed"),
        (9, 3, 10, "failed"),
        (4, 2, 5, "failed"),
        (0, 2, 5, "failed"),
    ],
)
def test_the_step_that_crosses_is_the_last(max_tokens, steps, tokens, status):
    result = line(3, max_tokens=max_tokens)

    assert (status, steps, tokens) == (result.status, result.nodes_executed, result.tokens_used)
    if status == "failed":
        assert ("failed", "BOUNDS_EXCEEDED") == ended(result)[:2]
        assert 0 == result.total_latency_ms


def test_the_node_that_crossed_is_named_and_its_output_carried():
    result = line(2, {"w1": spends(9, says("put out"))}, max_tokens=8)

    assert ("failed", "BOUNDS_EXCEEDED", "w1") == ended(result)
    assert 2 == result.nodes_executed


def test_without_tokens_zero_is_enough():
    assert "succeeded" == line(2, {"w1": says("x"), "w2": says("x")}, max_tokens=0).status


def test_tokens_of_an_exit_count_even_if_it_was_the_last_step():
    result = line(1, {"w1": says("x"), "end": spends(2)}, max_tokens=1)

    assert ("failed", "BOUNDS_EXCEEDED", "end") == ended(result)


def test_a_step_that_fails_and_crosses_ends_the_run_before_any_policy_or_error_way():
    graph = a_graph({"w1": node("model", on_error="other"), "other": node("transform")},
                    [("start", "w1"), ("w1", "end"), ("other", "end")])  # fmt: skip
    result = go(an_executor(graph, {"w1": spends(2, fails())}, max_tokens=1))
    skipping = line(1, {"w1": spends(2, fails())}, max_tokens=1, failure_policy="skip_failed")

    assert [("failed", "BOUNDS_EXCEEDED", "w1")] * 2 == [ended(result), ended(skipping)]
    assert ["start", "w1"] == visited(result)


def test_tokens_are_checked_as_a_step_ends_and_not_between_its_attempts():
    result = line(1, {"w1": spends(2, fails())}, work=node("model", retry_count=2, retry_delay_ms=1), max_tokens=1)

    assert (6, 3, "BOUNDS_EXCEEDED") == (
        result.tokens_used,
        count(result, EventKind.ATTEMPT_STARTED, "w1"),
        code(result),
    )


def test_tokens_inside_a_fanout_end_the_run_as_that_step_ends():
    model = ScriptedModel({"a": (99, "x"), "b": (10, "x"), "c": (20, "x")})
    nodes = {name: node("model", model=name) for name in "abc"}
    nodes["fan"] = node("fanout", target_nodes=["a", "b", "c"])
    graph = a_graph(nodes, [("start", "fan"), ("fan", "end")])
    executor = an_executor(graph, model=model, max_tokens=9, failure_policy="skip_failed")
    result = go(executor)

    assert (("failed", "BOUNDS_EXCEEDED", "fan"), 20.0, 5) == (
        ended(result),
        result.total_latency_ms,
        result.nodes_executed,
    )


def test_tokens_inside_a_loop_end_the_run_whatever_the_loop_says():
    nodes = {"loop": node("loop", body_node="w", continue_on_error=True, max_iterations=9), "w": node("model")}
    graph = a_graph(nodes, [("start", "loop"), ("loop", "end")])
    result = go(an_executor(graph, model=ScriptedModel("x"), max_tokens=12, failure_policy="skip_failed"))

    assert (("failed", "BOUNDS_EXCEEDED", "loop"), 15, 5) == (
        ended(result),
        result.tokens_used,
        result.nodes_executed,
    )


def test_tokens_and_the_deadline_at_one_moment_are_the_deadline():
    result = line(1, {"w1": spends(9, says("x", after_ms=50))}, max_tokens=1, timeout_ms=50)

    assert ("timed_out", "TIMEOUT", "w1") == ended(result)


def test_calls_that_failed_or_were_cut_off_do_not_spend():
    down = ScriptedModel({"m": ModelError("down"), "f": "x"})
    graph = a_graph({"w": node("model", model="m", fallback_models=["f"])}, [("start", "w"), ("w", "end")])

    result = go(an_executor(graph, model=down, max_tokens=5))

    assert ("succeeded", 5) == (result.status, result.tokens_used)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.integers(0, 20))
def test_the_run_ends_with_the_first_step_that_crosses(costs, max_tokens):
    acts = {f"w{index + 1}": spends(cost) for index, cost in enumerate(costs)}
    total, crossing = 0, None
    for index, cost in enumerate(costs):
        total += cost
        if total > max_tokens:
            crossing = f"w{index + 1}"
            break
    result = line(len(costs), acts, max_tokens=max_tokens)

    assert total == result.tokens_used
    assert (("failed", "BOUNDS_EXCEEDED", crossing) if crossing else ("succeeded", None, None)) == ended(result)


# --- messages held -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("works", "max_messages", "steps"),
    [(2, 4, 4), (2, 3, 3), (2, 2, 2), (2, 1, 1), (0, 2, 2), (0, 1, 1)],
)
def test_the_input_and_what_each_visit_put_out_are_held_and_the_exit_s_is_not_checked(works, max_messages, steps):
    """start, w1, w2 put out one each; so the visit of the exit begins with four messages held."""
    result = line(works, max_messages=max_messages)

    assert steps == result.nodes_executed
    assert ("succeeded" if steps == works + 2 else "failed") == result.status


def test_too_many_messages_end_the_run_before_the_next_visit_and_name_it():
    result = line(2, max_messages=2)

    assert ("failed", "BOUNDS_EXCEEDED", "w2") == ended(result)
    assert ["start", "w1"] == visited(result)
    assert "ok" == result.content


def test_no_policy_absorbs_it():
    assert "failed" == line(2, max_messages=2, failure_policy="skip_failed").status
    assert "failed" == line(2, max_messages=2, failure_policy="best_effort").status


def test_wrapped_steps_put_nothing_out_that_is_held():
    nodes = {"loop": node("loop", body_node="fan", max_iterations=5), "fan": node("fanout", target_nodes=["a"] * 4),
             "a": node("transform")}  # fmt: skip
    graph = a_graph(nodes, [("start", "loop"), ("loop", "end")])

    assert "succeeded" == go(an_executor(graph, max_messages=3)).status
    assert "failed" == go(an_executor(graph, max_messages=2)).status


def test_what_error_ways_and_absorbed_failures_put_out_is_held_too():
    nodes = {"w": node("model", on_error="other"), "other": node("transform")}
    graph = a_graph(nodes, [("start", "w"), ("w", "end"), ("other", "end")])

    assert "succeeded" == go(an_executor(graph, {"w": fails()}, max_messages=4)).status
    assert ("failed", "BOUNDS_EXCEEDED", "end") == ended(go(an_executor(graph, {"w": fails()}, max_messages=3)))
    for policy in ("skip_failed", "fallback_simple"):
        absorbed = line(1, {"w1": fails()}, failure_policy=policy, max_messages=2)
        assert ("failed", "BOUNDS_EXCEEDED", "end") == ended(absorbed)
        assert "degraded" == line(1, {"w1": fails()}, failure_policy=policy, max_messages=3).status


# --- their bytes ---------------------------------------------------------------------------------------


def size_of(message: Message) -> int:
    return len(message.to_json().encode())


def held_before(works: int, act: Act, content: str) -> list[int]:
    """The bytes held before each visit: of the input, then with what each one put out."""
    seen: list[int] = []

    async def looking(message: Message, context: ExecutionContext) -> Any:
        seen.append(sum(size_of(one) for one in context.history))
        return await act(message, context)

    acts = {f"w{index + 1}": looking for index in range(works)}
    names = ["start", *acts, "end"]
    graph = a_graph({name: node("model") for name in acts}, [*pairwise(names)])
    go(an_executor(graph, {**acts, "end": looking}), content)
    return seen


@pytest.mark.parametrize("content", ["question", "frägé 😀", "x" * 5_000])
def test_exactly_so_many_bytes_may_be_held(content):
    before = held_before(2, says(content), content)
    graph = a_graph({name: node("model") for name in ("w1", "w2")}, [*pairwise(["start", "w1", "w2", "end"])])
    acts = {"w1": says(content), "w2": says(content)}
    for index, at in enumerate(["w1", "w2", "end"]):
        enough = go(an_executor(graph, acts, max_message_bytes=before[index]), content)
        less = go(an_executor(graph, acts, max_message_bytes=before[index] - 1), content)
        assert at in visited(enough)
        assert ("failed", "BOUNDS_EXCEEDED", at) == ended(less)


def test_an_input_that_is_too_large_is_found_between_the_first_visit_and_the_second():
    result = go(an_executor(a_graph({}, [("start", "end")]), max_message_bytes=100), "x" * 200)

    assert (("failed", "BOUNDS_EXCEEDED", "end"), 1) == (ended(result), result.nodes_executed)
    assert "x" * 200 == result.content


# --- pruning -------------------------------------------------------------------------------------------


def histories(works: int, **config: Any) -> tuple[RunResult, list[list[str]]]:
    """The sources of the messages that each visit finds held."""
    seen: list[list[str]] = []

    async def looking(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append([one.source_node for one in context.history])
        return success(passed_on(message, context))

    acts = {f"w{index + 1}": looking for index in range(works)}
    graph = a_graph({name: node("model") for name in acts}, [*pairwise(["start", *acts, "end"])])
    return go(an_executor(graph, acts, **config)), seen


def test_the_history_is_the_input_and_what_each_visit_before_put_out():
    _, seen = histories(3)

    assert [["user", "start"], ["user", "start", "w1"], ["user", "start", "w1", "w2"]] == seen


def test_pruning_drops_the_oldest_but_never_the_input_nor_the_newest():
    result, seen = histories(4, max_messages=3, prune=True)

    assert "succeeded" == result.status
    assert [["user", "start"], ["user", "start", "w1"], ["user", "w1", "w2"], ["user", "w2", "w3"]] == seen


def test_with_room_for_two_the_input_and_the_newest_stay():
    result, seen = histories(3, max_messages=2, prune=True)

    assert ("succeeded", [["user", "start"], ["user", "w1"], ["user", "w2"]]) == (result.status, seen)


def test_if_the_input_and_the_newest_alone_are_too_many_the_run_ends():
    result, seen = histories(3, max_messages=1, prune=True)

    assert (("failed", "BOUNDS_EXCEEDED", "w1"), []) == (ended(result), seen)


def test_pruning_bounds_bytes_too_and_drops_no_more_than_it_must():
    sizes = held_before(3, says("y" * 100), "q")
    one = sizes[2] - sizes[1]
    room = sizes[2] + one // 2
    acts = {f"w{index + 1}": says("y" * 100) for index in range(6)}
    kept: list[int] = []

    async def look(message: Message, context: ExecutionContext) -> NodeResult:
        kept.append(len(context.history))
        assert sum(size_of(held) for held in context.history) <= room
        return success(passed_on(message, context))

    result = line(6, {**acts, "w6": look, "w5": look}, max_message_bytes=room, prune=True)

    assert ("succeeded", True) == (result.status, min(kept) >= 3)


def test_an_output_that_alone_is_too_large_ends_the_run_though_pruning_is_on():
    result = line(3, {"w2": says("y" * 10_000)}, max_message_bytes=5_000, prune=True)

    assert ("failed", "BOUNDS_EXCEEDED", "w3") == ended(result)


def test_the_trace_tells_what_was_pruned():
    result, _ = histories(4, max_messages=3, prune=True)
    told = events(result, EventKind.MESSAGES_PRUNED)

    assert [1, 1] == [next(v for v in e.details.values() if isinstance(v, int)) for e in told[:2]]
    assert 0 == count(histories(4)[0], EventKind.MESSAGES_PRUNED)


def test_the_result_is_the_same_whether_messages_were_pruned_or_not():
    pruned, _ = histories(5, max_messages=2, prune=True)
    whole, _ = histories(5)

    assert (whole.status, whole.content, whole.nodes_executed) == (pruned.status, pruned.content, pruned.nodes_executed)


@given(st.lists(st.integers(0, 60), max_size=7), st.integers(1, 8), st.booleans())
def test_messages_held_are_those_of_a_plain_model(lengths, most, prune):
    held = ["user", "start"]
    expected: list[list[str]] = []
    fails_at: str | None = None if most >= 1 else "start"
    names = [f"w{index + 1}" for index in range(len(lengths))]
    for name in [*names, "end"]:
        while prune and len(held) > most and len(held) > 2:
            del held[1]
        if len(held) > most:
            fails_at = name
            break
        expected.append([*held])
        held.append(name)
    seen: list[list[str]] = []

    def looking(length: int) -> Act:
        async def act(message: Message, context: ExecutionContext) -> NodeResult:
            seen.append([one.source_node for one in context.history])
            return success(passed_on(message, context, content="x" * length))

        return act

    acts = {name: looking(length) for name, length in zip(names, lengths, strict=True)}
    result = line(len(lengths), {**acts, "end": looking(1)}, max_messages=most, prune=prune)

    assert expected == seen
    assert (("failed", "BOUNDS_EXCEEDED", fails_at) if fails_at else ("succeeded", None, None)) == ended(result)


def test_nodes_inside_wrappers_see_the_history_of_the_visit():
    seen: list[Sequence[str]] = []

    async def looking(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append([one.source_node for one in context.history])
        return success(passed_on(message, context))

    nodes = {"loop": node("loop", body_node="fan", max_iterations=2), "fan": node("fanout", target_nodes=["a", "a"]),
             "a": node("model")}  # fmt: skip
    graph = a_graph(nodes, [("start", "loop"), ("loop", "end")])
    go(an_executor(graph, {"a": looking}))

    assert [["user", "start"]] * 4 == seen


def test_a_node_cannot_change_what_is_held():
    async def meddling(message: Message, context: ExecutionContext) -> NodeResult:
        for change in ("clear", "append", "pop"):
            if hasattr(context.history, change):
                raise NodeError(ErrorCode.UNKNOWN, change)
        return success(passed_on(message, context))

    assert "succeeded" == line(1, {"w1": meddling}).status


# --- limits against each other -------------------------------------------------------------------------


def test_max_steps_zero_runs_nothing():
    result = line(1, max_steps=0)

    assert (("failed", "BOUNDS_EXCEEDED", "start"), 0, "question") == (
        ended(result),
        result.nodes_executed,
        result.content,
    )


def test_at_the_deadline_the_run_is_timed_out_though_a_limit_is_exceeded_too():
    late = {"w1": says("x", after_ms=50)}

    assert "timed_out" == line(2, late, max_steps=2, timeout_ms=50).status
    assert "timed_out" == line(2, late, max_messages=2, timeout_ms=50).status


def test_message_is_what_the_token_carried_when_a_bound_ended_the_run():
    message = a_message(content="q", structured={"k": 1})
    graph = a_graph({"w": node("model")}, [("start", "w"), ("w", "end")])
    result = run_clean(an_executor(graph, {"w": says("answer")}, max_steps=2).run(message))

    assert ("answer", {"k": 1}) == (result.content, result.structured)
