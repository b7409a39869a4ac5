"""Wrappers in wrappers: paths, steps, variables, ways, and which of several limits is told."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.models import ScriptedModel
from tests.support.nodes import Act, fails, in_turn, noting, says
from tests.support.runs import a_graph, a_message, an_executor, code, count, events, go, node, run_clean
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, GraphConfigError, NodeError
from tinyllm.message import Message, NodeResult
from tinyllm.nodes.base import passed_on, success
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit


def fan(*targets: str, **config: Any) -> dict[str, Any]:
    return node("fanout", target_nodes=[*targets], **config)


def loop(body: str, times: int = 2, **config: Any) -> dict[str, Any]:
    return node("loop", body_node=body, max_iterations=times, **config)


def within(inner: str, ms: int = 1_000, **config: Any) -> dict[str, Any]:
    return node("timeout", inner_node=inner, timeout_ms=ms, **config)


def wrapped(acts: Mapping[str, Act] | None = None, *, model: Any = None, **parts: Any) -> RunResult:
    """start -> w -> last -> end; parts in capital letters are the executor's, the others are nodes."""
    config = {key.lower(): parts.pop(key) for key in [*parts] if key.isupper()}
    variables = config.pop("variables", None)
    nodes = {**parts, "last": node("transform")}
    graph = a_graph(nodes, [("start", "w"), ("w", "last"), ("last", "end")])
    executor = an_executor(graph, acts, model=model, **config)
    return run_clean(executor.run(a_message(content="q"), run_id="r", variables=variables))


def steps(result: RunResult) -> list[tuple[str | None, str | None]]:
    return [(e.path, e.node_id) for e in events(result, EventKind.STEP_STARTED)]


def told(result: RunResult) -> tuple[Any, ...]:
    return result.status, code(result), result.error and result.error.node_id


def check_trace(result: RunResult) -> None:
    """Every start has one end, every number sums up, and each failed attempt is one later event's cause."""
    for began, over in (("STEP_STARTED", "STEP_ENDED"), ("ATTEMPT_STARTED", "ATTEMPT_ENDED")):
        starts = [(e.path, e.node_id, e.attempt) for e in events(result, EventKind[began])]
        ends = [(e.path, e.node_id, e.attempt) for e in events(result, EventKind[over])]
        assert sorted(starts, key=str) == sorted(ends, key=str)
    assert result.nodes_executed == count(result, EventKind.STEP_STARTED)
    assert sorted(e.at_ms for e in result.trace) == [e.at_ms for e in result.trace]
    failed = [e.sequence for e in events(result, EventKind.ATTEMPT_ENDED) if e.code is not None]
    causes = [e.cause for e in result.trace if e.cause is not None]
    assert sorted(failed) == sorted(causes)
    assert [] == [e for e in result.trace if e.cause is not None and e.cause >= e.sequence]


# --- paths and steps -----------------------------------------------------------------------------------


def test_each_wrapper_adds_its_part_to_the_path_and_a_timeout_none():
    result = wrapped({"a": says("x")}, w=fan("l", "a"), l=loop("t"), t=within("f"), f=fan("a", "a"), a=node("model"))
    inside = [("2.1.1", "t"), ("2.1.1", "f"), ("2.1.1.1", "a"), ("2.1.1.2", "a")]
    again = [(str(path).replace("2.1.1", "2.1.2", 1), name) for path, name in inside]
    expected = [("1", "start"), ("2", "w"), ("2.1", "l"), ("2.2", "a"), *inside, *again, ("3", "last"), ("4", "end")]

    assert sorted(expected) == sorted(steps(result), key=str)
    assert (14, "succeeded") == (result.nodes_executed, result.status)
    check_trace(result)


def test_a_node_may_be_visited_and_wrapped_more_than_once():
    nodes = {"w": fan("a", "l"), "l": loop("a"), "a": node("model")}
    graph = a_graph(nodes, [("start", "a"), ("a", "w"), ("w", "end")])
    result = go(an_executor(graph, {"a": says("x")}))

    assert ["2", "3.1", "3.2.1", "3.2.2"] == sorted(str(e.path) for e in events(result, EventKind.STEP_STARTED, "a"))
    check_trace(result)


def test_idempotency_keys_of_nested_steps_are_all_different_and_stay_over_attempts():
    keys: list[str] = []

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        keys.append(context.idempotency_key)
        if len(keys) <= 4:
            raise NodeError(ErrorCode.MODEL_ERROR, "not yet")
        return success(passed_on(message, context))

    wrapped(
        {"a": act},
        w=loop("f", 2, condition_type="until_success", retry_count=1, retry_delay_ms=1),
        f=fan("a", "a"),
        a=node("model"),
    )

    assert ["r:2.1.1:a", "r:2.1.2:a", "r:2.2.1:a", "r:2.2.2:a", "r:2.1.1:a", "r:2.1.2:a"] == keys


def test_tokens_of_all_depths_sum_up():
    result = wrapped(model=ScriptedModel("x"), w=loop("f", 3), f=fan("t", "a"), t=within("a"), a=node("model"))

    assert 6 * 5 == result.tokens_used


def test_wrappers_may_nest_64_levels_deep_and_no_deeper():
    def deep(levels: int) -> RunResult:
        nodes: dict[str, Any] = {f"t{level}": within(f"t{level + 1}") for level in range(1, levels)}
        return wrapped({"a": says("x")}, w=within("t1"), **nodes, **{f"t{levels}": within("a")}, a=node("model"))

    assert ("succeeded", 64 + 4) == (deep(63).status, deep(63).nodes_executed)
    with pytest.raises(GraphConfigError) as caught:
        deep(64)
    assert {"too_deep"} == {problem.code for problem in caught.value.problems}


@pytest.mark.parametrize("wrapper", [fan, lambda inner: loop(inner, 1)], ids=["all", "loop"])
@pytest.mark.parametrize(("levels", "code"), [(10, None), (30, "VALIDATION_ERROR")])
def test_what_wrappers_tell_of_their_insides_counts_to_the_levels_of_a_message(wrapper, levels, code):
    nodes = {f"t{level}": wrapper(f"t{level + 1}") for level in range(1, levels)}
    result = wrapped({"a": says("x")}, w=wrapper("t1"), **nodes, **{f"t{levels}": wrapper("a")}, a=node("model"))

    assert code == told(result)[1]


# --- payloads and variables ----------------------------------------------------------------------------


def writing(name: str, value: Any = 1, act: Act | None = None) -> Act:
    async def write(message: Message, context: ExecutionContext) -> Any:
        context.variables.setdefault("list", []).append(f"{name} {context.path}")
        context.variables[name] = value
        return await (act or says("x"))(message, context)

    return write


def left_by(acts: Mapping[str, Act], **parts: Any) -> dict[str, Any]:
    """The variables after the wrapper."""
    seen: list[dict[str, Any]] = []

    async def last(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append(copy.deepcopy(context.variables))
        return success(passed_on(message, context))

    wrapped({**acts, "last": last}, **parts)
    return seen[0]


def test_writes_pass_out_through_every_wrapper():
    left = left_by({"a": writing("a")}, w=within("l"), l=loop("f"), f=fan("a"), a=node("model"))

    assert {"list": ["a 2.1.1", "a 2.2.1"], "a": 1} == left


def test_a_lost_race_s_writes_are_lost_with_all_inside():
    acts = {"a": writing("a", act=says("x", after_ms=9)), "b": writing("b", act=says("x", after_ms=20))}
    race = fan("l", "b", aggregation_strategy="first_success")
    left = left_by(acts, w=race, l=loop("a", 3), a=node("model"), b=node("model"))

    assert {"list": ["b 2.2"], "b": 1} == left


def test_a_skipped_timeout_keeps_no_writes_of_the_iterations_it_cut_off():
    acts = {"a": writing("a", act=says("x", after_ms=10))}

    assert {"given": 1} == left_by(
        acts, w=within("l", 25, on_timeout="skip"), l=loop("a", 5), a=node("model"), VARIABLES={"given": 1}
    )


def test_a_loop_whose_own_time_is_up_keeps_the_writes_of_what_counted():
    acts = {"a": writing("a", act=says("x", after_ms=10))}
    left = left_by(acts, w=within("l"), l=loop("a", 5, timeout_ms=25), a=node("model"))

    assert {"list": ["a 2.1", "a 2.2"], "a": 1} == left


def test_all_merges_nested_writes_in_the_order_of_targets():
    acts = {"a": writing("k", "from a", says("x", after_ms=20)), "b": writing("k", "from b")}
    left = left_by(acts, w=fan("l", "t"), l=loop("a", 1), t=within("b"), a=node("model"), b=node("model"))

    assert "from b" == left["k"]


def test_a_failed_target_s_loop_leaves_no_writes_though_iterations_succeeded():
    acts = {"a": writing("a", act=in_turn(says("x"), fails())), "b": writing("b")}
    left = left_by(acts, w=fan("l", "b"), l=loop("a", 3), a=node("model"), b=node("model"))

    assert {"list": ["b 2.2"], "b": 1} == left


def test_a_retried_wrapper_runs_anew_with_the_variables_it_was_given():
    seen: list[Any] = []

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append((context.path, copy.deepcopy(context.variables), message.payload.content))
        context.variables["n"] = len(seen)
        if len(seen) == 2:
            raise NodeError(ErrorCode.MODEL_ERROR, "no")
        return success(passed_on(message, context, content=f"{len(seen)}"))

    wrapped({"a": act}, w=within("l", retry_count=1, retry_delay_ms=1), l=loop("a", 2), a=node("model"))

    assert [("2.1", {}, "q"), ("2.2", {"n": 1}, "1"), ("2.1", {}, "q"), ("2.2", {"n": 3}, "3")] == seen


def test_retries_multiply():
    log: list[Any] = []
    retry: dict[str, Any] = {"retry_count": 1, "retry_delay_ms": 0}
    result = wrapped(
        {"a": noting(log, fails())},
        w=within("l", **retry),
        l=loop("f", 1, **retry),
        f=fan("a", **retry),
        a=node("model", **retry),
    )

    assert (16, ("failed", "MODEL_ERROR", "a")) == (len(log), told(result))
    # Of a step's own attempts each runs what it wraps anew: 1 + 2 + 4 + 8 steps, and start and w are no part of it.
    assert 1 + 1 + 2 + 4 + 8 == result.nodes_executed
    check_trace(result)


@pytest.mark.parametrize("wrapper", [fan, within, loop], ids=["fanout", "timeout", "loop"])
def test_a_wrapper_waits_as_long_as_the_error_that_it_passes_on_asks(wrapper):
    acts = {"a": in_turn(fails(retry_after_s=5), says("x"))}
    config: dict[str, Any] = {"retry_count": 1, "retry_delay_ms": 1}

    assert 5_000.0 == wrapped(acts, w=wrapper("a", **config), a=node("model")).total_latency_ms


def test_an_unrecoverable_timeout_passes_through_a_fanout_and_is_followed_without_retry():
    w = within("f", on_timeout="skip", retry_count=2)
    result = wrapped({"a": fails(ErrorCode.TIMEOUT, recoverable=False)}, w=w, f=fan("a"), a=node("model"))

    assert ("succeeded", 0.0, "skip") == (
        result.status,
        result.total_latency_ms,
        result.message.payload.metadata["timeout"]["action"],
    )


def test_a_loop_s_body_may_change_what_a_race_inside_decides():
    race = fan("slow", "quick", aggregation_strategy="first_success")
    acts = {"slow": says("slow", after_ms=20), "quick": in_turn(fails(), says("quick", after_ms=5))}
    result = wrapped(acts, w=loop("f", 2), f=race, slow=node("model"), quick=node("model"))

    assert ("quick", 25.0) == (result.content, result.total_latency_ms)
    check_trace(result)


# --- ways ----------------------------------------------------------------------------------------------


def test_the_way_of_a_gate_inside_a_timeout_inside_a_loop_is_dropped():
    gate = node("gate", conditions=[{"name": "n", "expression": "1", "target": "end"}])
    result = wrapped(w=loop("t"), t=within("g"), g=gate)

    assert ["3", "4"] == [path for path, name in steps(result) if name in {"last", "end"}]


def test_ways_and_error_ways_of_what_is_wrapped_are_ignored():
    nodes = {
        "w": loop("f", 1),
        "f": {**fan("a"), "on_error": "other"},
        "a": node("model", on_error="other"),
        "other": node("transform"),
    }
    edges = [("start", "w"), ("w", "end"), ("a", "other"), ("f", "other"), ("other", "end"), ("start", "other", "0")]
    result = go(an_executor(a_graph(nodes, edges), {"a": fails()}))

    assert ("failed", "MODEL_ERROR", "a") == told(result)


# --- time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outer_ms", "inner_ms", "told_by"),
    [(50, 51, "w"), (50, 50, "w"), (51, 50, "t2"), (99, 20, "t2")],
)
def test_of_nested_timeouts_the_earlier_is_told_and_at_one_moment_the_outer(outer_ms, inner_ms, told_by):
    result = wrapped(
        {"a": says("late", after_ms=999)}, w=within("t2", outer_ms), t2=within("a", inner_ms), a=node("model")
    )

    assert (("failed", "TIMEOUT", told_by), float(min(outer_ms, inner_ms))) == (told(result), result.total_latency_ms)
    check_trace(result)


def test_an_outer_timeout_follows_an_inner_one_that_was_passed_on():
    result = wrapped(
        {"a": says("late", after_ms=999)}, w=within("t2", 99, on_timeout="skip"), t2=within("a", 20), a=node("model")
    )

    assert ("succeeded", 20.0, {"timed_out": True, "action": "skip"}) == (
        result.status,
        result.total_latency_ms,
        result.message.payload.metadata["timeout"],
    )


def test_an_inner_skip_is_a_success_for_the_outer_one():
    result = wrapped(
        {"a": says("late", after_ms=999)},
        w=within("t2", 99, on_timeout="fallback", fallback_response="outer"),
        t2=within("a", 20, on_timeout="skip"),
        a=node("model"),
    )

    assert ("q", "skip") == (result.content, result.message.payload.metadata["timeout"]["action"])


@pytest.mark.parametrize(
    ("fanout_ms", "loop_ms", "expected"),
    [(50, 60, ("failed", "TIMEOUT", "l")), (50, 50, ("failed", "TIMEOUT", "l")), (60, 50, ("succeeded", None, None))],
)
def test_a_fanout_s_time_comes_before_that_of_a_loop_inside_at_the_same_moment(fanout_ms, loop_ms, expected):
    """Cut off by the fanout, the loop has failed whatever it had; by its own time it succeeds with what counted."""
    result = wrapped(
        {"a": says("x", after_ms=20)}, w=fan("l", timeout_ms=fanout_ms), l=loop("a", 9, timeout_ms=loop_ms),
        a=node("model"),
    )  # fmt: skip

    assert (expected, 50.0) == (told(result), result.total_latency_ms)


@pytest.mark.parametrize("ms", [20, 40])
def test_an_iteration_that_ends_at_the_moment_of_the_loop_s_deadline_does_not_count(ms):
    result = wrapped({"a": says("x", after_ms=20)}, w=within("l"), l=loop("a", 9, timeout_ms=ms), a=node("model"))
    counted = result.message.payload.metadata.get("loop_result", {}).get("iterations", 0)

    assert (ms // 20 - 1, float(ms)) == (counted, result.total_latency_ms)


def test_the_run_s_deadline_ends_everything_at_once_and_names_the_visit():
    result = wrapped(
        {"a": says("x", after_ms=40)},
        w=loop("t", 9, continue_on_error=True, timeout_ms=100),
        t=within("f", 100, on_timeout="skip"),
        f=fan("a", "a", timeout_ms=100),
        a=node("model", timeout_ms=100),
        TIMEOUT_MS=100,
        FAILURE_POLICY="skip_failed",
    )

    assert (("timed_out", "TIMEOUT", "w"), 100.0) == (told(result), result.total_latency_ms)
    check_trace(result)


def test_waits_between_attempts_inside_are_bounded_by_every_time_around():
    retrying = node("model", retry_count=9, retry_delay_ms=60_000)
    result = wrapped({"a": fails()}, w=within("l", 30, on_timeout="skip"), l=loop("a", 3), a=retrying)

    assert ("succeeded", 30.0) == (result.status, result.total_latency_ms)
    check_trace(result)


def test_a_fanout_s_own_timeout_bounds_its_targets_not_itself():
    result = wrapped(
        {"a": says("x", after_ms=40)}, w=fan("a", "a", "a", parallel=False, timeout_ms=50), a=node("model")
    )

    assert ("succeeded", 120.0) == (result.status, result.total_latency_ms)


def test_a_loop_of_fanouts_has_its_time_for_all_iterations():
    result = wrapped({"a": says("x", after_ms=40)}, w=loop("f", 5, timeout_ms=100), f=fan("a", "a"), a=node("model"))

    assert (2, "timeout", 100.0) == (
        result.message.payload.metadata["loop_result"]["iterations"],
        result.message.payload.metadata["loop_result"]["termination"],
        result.total_latency_ms,
    )


def test_a_target_that_waits_for_its_turn_has_its_whole_time():
    result = wrapped(
        {"a": says("x", after_ms=30)},
        w=fan("t", "t", "t", max_parallel_branches=1),
        t=within("a", 31),
        a=node("model"),
    )

    assert ("succeeded", "x\n\nx\n\nx") == (result.status, result.content)


# --- bounds and cancellation ---------------------------------------------------------------------------

DEEP: dict[str, Any] = {
    "w": within("l", on_timeout="skip"),
    "l": loop("f", 3, continue_on_error=True),
    "f": fan("a", "a", aggregation_strategy="first_success", parallel=False),
    "a": node("model", retry_count=1, retry_delay_ms=1),
}


@pytest.mark.parametrize("max_steps", [*range(14)])
def test_max_steps_is_exact_at_every_depth(max_steps):
    """start, w, l, three times f with two targets that fail, last, end: 14 steps if l's failure is absorbed."""
    result = wrapped({"a": fails()}, **DEEP, MAX_STEPS=max_steps, FAILURE_POLICY="skip_failed")

    assert (max_steps, "BOUNDS_EXCEEDED", "failed") == (result.nodes_executed, code(result), result.status)
    expected = "start" if max_steps == 0 else "w" if max_steps < 12 else "last" if max_steps == 12 else "end"
    assert expected == result.error.node_id
    check_trace(result)


def test_with_one_more_step_it_ends_by_itself():
    result = wrapped({"a": fails()}, **DEEP, MAX_STEPS=14, FAILURE_POLICY="skip_failed")

    assert (("degraded", "MODEL_ERROR", "a"), 14) == (told(result), result.nodes_executed)
    check_trace(result)


@pytest.mark.parametrize("at_ms", [0, 5, 10, 15, 20, 25, 35])
def test_cancelling_at_any_moment_leaves_a_whole_trace(at_ms):
    parts = {**DEEP, "last": node("model")}
    graph = a_graph(parts, [("start", "w"), ("w", "last"), ("last", "end")])
    acts = {"a": in_turn(fails(after_ms=10), says("x", after_ms=10)), "last": says("y", after_ms=500)}

    async def main() -> RunResult:
        executor = an_executor(graph, acts)
        task = asyncio.create_task(executor.run(a_message(content="q"), run_id="r"))
        await asyncio.sleep(at_ms / 1_000)
        executor.cancel("r")
        return await task

    result = run_clean(main())

    assert ("cancelled", "CANCELLED") == told(result)[:2]
    check_trace(result)


def test_the_bound_of_tokens_ends_races_and_loops_alike():
    model = ScriptedModel((10, "x"))
    result = wrapped(model=model, w=loop("f", 9, continue_on_error=True), f=fan("t", "a"), t=within("a"),
                     a=node("model"), MAX_TOKENS=12, FAILURE_POLICY="skip_failed")  # fmt: skip

    assert (("failed", "BOUNDS_EXCEEDED", "w"), 20.0) == (told(result), result.total_latency_ms)
    check_trace(result)


# --- sizes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        {"w": loop("f", 30), "f": fan("a", "a")},
        {"w": loop("f", 30), "f": fan("l2", "a"), "l2": loop("a", 2)},
        {"w": loop("l2", 30), "l2": loop("f", 2), "f": fan("a")},
        {"w": loop("f", 30), "f": fan("f2", "f2"), "f2": fan("a", "a")},
        {"w": loop("t", 30), "t": within("f"), "f": fan("l2"), "l2": loop("f2", 1), "f2": fan("a")},
        {"w": loop("f", 30), "f": fan("l2", aggregation_strategy="first_success"), "l2": loop("a", 2)},
        {"w": loop("f", 30), "f": fan("l2", aggregation_strategy="majority_vote"), "l2": loop("f2", 2),
         "f2": fan("a", "a")},
    ],
    ids=["f", "f(l,a)", "l(f)", "f(f)", "t(f(l(f)))", "race(l)", "vote(l(f))"],
)  # fmt: skip
def test_nothing_grows_over_thirty_iterations(parts):
    sizes: list[tuple[str, int]] = []

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        sizes.append((context.path.split(".")[1], len(message.to_json())))
        return success(passed_on(message, context, content="x"))

    result = wrapped({"a": act}, **parts, a=node("model"), MAX_STEPS=100_000)
    largest = {number: max(size for n, size in sizes if n == number) for number, _ in sizes}

    assert ("succeeded", 30) == (result.status, len(largest))
    assert max(largest.values()) <= max(largest[str(n)] for n in range(1, 6)) + 60


@pytest.mark.parametrize(
    "parts",
    [
        {"w": loop("l2", 3), "l2": loop("a", 2)},
        {"w": loop("l2", 3), "l2": loop("f", 2), "f": fan("a", "a")},
        {"w": fan("l2", "f2"), "l2": loop("f2", 2), "f2": fan("a", "a")},
        {"w": fan("f", "f"), "f": fan("f2", "a"), "f2": fan("l", "a"), "l": loop("a", 2)},
    ],
    ids=["l(l)", "l(l(f))", "f(l(f),f)", "f(f(f(l)))"],
)
def test_nothing_grows_over_thirty_visits(parts):
    put_out: list[int] = []

    async def again(message: Message, context: ExecutionContext) -> NodeResult:
        context.variables["n"] = context.variables.get("n", 0) + 1
        put_out.append(len(message.to_json()))
        return success(passed_on(message, context))

    nodes = {**parts, "a": node("model"), "c": node("model")}
    edges = [("start", "w"), ("w", "c"), ("c", "end", "variables.get('n') == 30"), ("c", "w")]
    graph = a_graph(nodes, edges, allow_cycles=True)
    result = go(an_executor(graph, {"a": says("x"), "c": again}, max_steps=100_000))

    assert ("succeeded", 30) == (result.status, len(put_out))
    assert max(put_out) <= put_out[1] + 20


# --- a property ----------------------------------------------------------------------------------------


@st.composite
def nestings(draw: st.DrawFn) -> dict[str, Any]:
    """Wrappers w0 in w1 in ..., around a node `a`; the outermost is w."""
    inner, parts = "a", {"a": node("model", retry_count=draw(st.integers(0, 1)), retry_delay_ms=3)}
    depth = draw(st.integers(1, 4))
    for level in range(depth):
        name = "w" if level == depth - 1 else f"w{level}"
        ms = draw(st.sampled_from([7, 20, 50, 1_000]))
        parts[name] = draw(
            st.sampled_from(
                [
                    fan(inner, inner, aggregation_strategy="first_success", timeout_ms=ms),
                    fan(inner, "a", timeout_ms=ms, max_parallel_branches=1),
                    fan(inner, "a", timeout_ms=ms, aggregation_strategy="majority_vote", fail_fast=True),
                    loop(inner, 2, timeout_ms=ms, continue_on_error=True),
                    loop(inner, 2, timeout_ms=ms, condition_type="until_success", retry_count=1, retry_delay_ms=2),
                    within(inner, ms, on_timeout="skip", retry_count=1, retry_delay_ms=2),
                    within(inner, ms),
                ]
            )
        )
        inner = name
    return parts


@settings(max_examples=80)
@given(
    nestings(),
    st.lists(st.tuples(st.integers(0, 12), st.booleans()), min_size=1, max_size=6),
    st.sampled_from([6, 12, 1_000]),
    st.sampled_from([25, 10_000]),
)
def test_whatever_is_nested_ends_in_time_within_its_steps_with_a_whole_trace(parts, drawn, max_steps, timeout_ms):
    acts = [says("x", after_ms=ms) if good else fails(after_ms=ms) for ms, good in drawn]
    result = wrapped({"a": in_turn(*acts)}, **parts, MAX_STEPS=max_steps, TIMEOUT_MS=timeout_ms)

    check_trace(result)
    assert result.nodes_executed <= max_steps
    assert result.total_latency_ms <= timeout_ms
    assert result.status in {"succeeded", "failed", "timed_out"}
    if result.status == "timed_out":
        assert float(timeout_ms) == result.total_latency_ms
    if code(result) == "BOUNDS_EXCEEDED":
        assert max_steps == result.nodes_executed


def test_all_targets_begin_before_one_of_them_tries_again():
    """What fails at once, and is tried again at once, has made one attempt when the next target is a step too many."""

    async def refused(message: Message, context: ExecutionContext) -> NodeResult:
        raise NodeError(ErrorCode.MODEL_ERROR, "refused")

    nodes = {"w": fan("a", "b", "a"), "a": node("model"), "b": node("model", retry_count=2, retry_delay_ms=0)}
    graph = a_graph(nodes, [("start", "w"), ("w", "end")])
    result = go(an_executor(graph, {"a": refused, "b": refused}, max_steps=4))

    assert ("BOUNDS_EXCEEDED", 4) == (code(result), result.nodes_executed)
    assert 4 == count(result, EventKind.ATTEMPT_STARTED)
