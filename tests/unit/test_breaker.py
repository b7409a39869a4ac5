"""Circuit breakers: what opens them, who is let through, and what closes them again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import ScriptedModel
from tests.support.nodes import Act, fails, in_turn, noting, says
from tests.support.runs import a_graph, a_line, a_message, an_executor, code, count, events, node, run_clean
from tinyllm.config import CircuitBreakerConfig, NodeConfig
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, ModelError, NodeError
from tinyllm.executor import Executor
from tinyllm.message import Message, NodeResult
from tinyllm.nodes import forget_node_type, node_type
from tinyllm.nodes.base import BaseNode
from tinyllm.tools import Tool, ToolRegistry
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

WAIT_MS = 1_000


def breaker(threshold: int = 2, cooldown_s: float = WAIT_MS / 1_000) -> CircuitBreakerConfig:
    return CircuitBreakerConfig(threshold=threshold, cooldown_s=cooldown_s)


def guarded(act: Act | None = None, *, model: ScriptedModel | None = None, of_work: Any = None, **how: Any) -> Executor:
    """start -> work -> end with a breaker of threshold 2 and a second of cooldown."""
    config = {"breaker": breaker(), **how}
    acts = {} if act is None else {"work": act}
    return an_executor(a_line(node("model", **(of_work or {}))), acts, model=model, **config)


async def run(executor: Executor, content: str = "q", **how: Any) -> RunResult:
    return await executor.run(a_message(content=content), **how)


def codes_of(executor: Executor, waits_ms: Sequence[float]) -> list[str | None]:
    """The codes of runs one after another, each after the wait before it."""

    async def main() -> list[str | None]:
        codes = []
        for wait_ms in waits_ms:
            await asyncio.sleep(wait_ms / 1_000)
            codes.append(code(await run(executor)))
        return codes

    return run_clean(main())


def turning(*what: ErrorCode | None) -> Act:
    """Fails with these codes in turn; None is a success, and so is everything after them."""
    return in_turn(*[says("ok") if its is None else fails(its) for its in what], says("ok"))


M, V = ErrorCode.MODEL_ERROR, ErrorCode.VALIDATION_ERROR
OPEN = "CIRCUIT_OPEN"


# --- opening -------------------------------------------------------------------------------------------


def test_exactly_threshold_failures_in_a_row_open_it():
    assert ["MODEL_ERROR", "MODEL_ERROR", OPEN, OPEN] == codes_of(guarded(fails()), [0, 0, 0, 0])


@pytest.mark.parametrize("threshold", [1, 3, 5])
def test_the_threshold_is_exact(threshold):
    got = codes_of(guarded(fails(), breaker=breaker(threshold)), [0] * (threshold + 1))

    assert ["MODEL_ERROR"] * threshold + [OPEN] == got


def test_a_success_resets_the_count():
    assert ["MODEL_ERROR", None, "MODEL_ERROR", None] == codes_of(guarded(turning(M, None, M)), [0] * 4)


@pytest.mark.parametrize("between", [V, ErrorCode.GATE_FAILED, ErrorCode.CANCELLED])
def test_codes_that_are_not_recoverable_neither_count_nor_reset(between):
    assert ["MODEL_ERROR", between.value, "MODEL_ERROR", OPEN] == codes_of(guarded(turning(M, between, M)), [0] * 4)
    assert [between.value] * 4 == codes_of(guarded(fails(between)), [0] * 4)


@pytest.mark.parametrize("its", [ErrorCode.TOOL_ERROR, ErrorCode.TIMEOUT, ErrorCode.UNKNOWN])
def test_every_recoverable_code_counts(its):
    assert [its.value, its.value, OPEN] == codes_of(guarded(fails(its)), [0, 0, 0])


def test_an_error_that_says_it_is_not_recoverable_does_not_count():
    assert ["MODEL_ERROR"] * 3 == codes_of(guarded(fails(recoverable=False)), [0, 0, 0])


def test_a_step_that_is_too_late_counts():
    executor = guarded(says("late", after_ms=99), of_work={"timeout_ms": 50})

    assert ["TIMEOUT", "TIMEOUT", OPEN] == codes_of(executor, [0, 0, 0])


def test_steps_count_not_attempts():
    executor = guarded(fails(), of_work={"retry_count": 4, "retry_delay_ms": 1})

    assert ["MODEL_ERROR", "MODEL_ERROR", OPEN] == codes_of(executor, [0, 0, 0])


def test_a_step_that_succeeds_after_retries_is_a_success():
    executor = guarded(in_turn(fails(), says("x")), of_work={"retry_count": 1}, breaker=breaker(1))

    assert [None, None] == codes_of(executor, [0, 0])


def test_steps_of_which_the_run_s_deadline_cuts_off_are_cancelled_and_change_nothing():
    executor = guarded(says("late", after_ms=99), timeout_ms=50)

    assert ["TIMEOUT"] * 4 == codes_of(executor, [0] * 4)


def test_cancelled_steps_change_nothing():
    log: list[Any] = []

    async def main() -> list[str]:
        executor = guarded(noting(log, says("late", after_ms=99)))
        statuses: list[str] = []
        for _ in range(4):
            task = asyncio.create_task(run(executor, run_id="r"))
            await asyncio.sleep(0.01)
            executor.cancel("r")
            statuses.append((await task).status)
        return statuses

    assert (["cancelled"] * 4, 4) == (run_clean(main()), len(log))


def test_without_a_breaker_nothing_opens():
    assert ["MODEL_ERROR"] * 9 == codes_of(guarded(fails(), breaker=None), [0] * 9)


def test_a_step_that_it_fails_is_a_step_without_attempt_and_is_not_retried():
    log: list[Any] = []
    executor = guarded(noting(log, fails()), of_work={"retry_count": 1, "retry_delay_ms": 1})

    async def main() -> RunResult:
        await run(executor)
        await run(executor)
        return await run(executor)

    result = run_clean(main())

    assert (4, 2, 0.0) == (len(log), result.nodes_executed, result.total_latency_ms)
    assert (1, 0) == (
        count(result, EventKind.STEP_STARTED, "work"),
        count(result, EventKind.ATTEMPT_STARTED, "work"),
    )
    assert ("CIRCUIT_OPEN", "work", False) == (code(result), result.error.node_id, result.error.recoverable)


def test_policies_and_error_ways_follow_an_open_breaker_as_any_failure():
    nodes = {"work": node("model", on_error="other"), "other": node("transform", transforms=[
        {"type": "template", "params": {"template": "{error.code}"}}
    ])}  # fmt: skip
    graph = a_graph(nodes, [("start", "work"), ("work", "end"), ("other", "end")])
    executor = an_executor(graph, {"work": fails()}, breaker=breaker(1))

    async def main() -> tuple[RunResult, RunResult]:
        return await run(executor), await run(executor)

    first, second = run_clean(main())

    assert [("succeeded", "MODEL_ERROR"), ("succeeded", OPEN)] == [(r.status, r.content) for r in (first, second)]


# --- cooldown and probe --------------------------------------------------------------------------------


@pytest.mark.parametrize(("after_ms", "expected"), [(WAIT_MS - 1, OPEN), (WAIT_MS, None), (WAIT_MS + 1, None)])
def test_from_the_moment_of_its_cooldown_one_is_let_through(after_ms, expected):
    assert ["MODEL_ERROR", "MODEL_ERROR", expected] == codes_of(guarded(turning(M, M)), [0, 0, after_ms])


@pytest.mark.parametrize("cooldown_s", [0.1, 0.3, 0.7, 1.1, 0.001])
def test_the_cooldown_is_exact_at_moments_that_floats_cannot_hold(cooldown_s):
    executor = guarded(turning(M, M), breaker=breaker(2, cooldown_s))

    assert [OPEN, None] == codes_of(executor, [13.7, 100.1, round(cooldown_s * 1_000) - 0.001, 0.001])[2:]


def test_the_cooldown_counts_from_the_end_of_the_step_that_opened_it():
    executor = guarded(in_turn(fails(), fails(after_ms=500), says("ok")))

    assert ["MODEL_ERROR", "MODEL_ERROR", OPEN, None] == codes_of(executor, [0, 0, WAIT_MS - 1, 1])


def test_what_it_refuses_does_not_put_off_the_probe():
    assert ["MODEL_ERROR"] * 2 + [OPEN] * 3 + [None] == codes_of(guarded(turning(M, M)), [0, 0, 300, 300, 300, 100])


def test_a_cooldown_of_nothing_lets_the_very_next_through():
    executor = guarded(turning(M, M), breaker=breaker(2, 0))

    assert ["MODEL_ERROR", "MODEL_ERROR", None] == codes_of(executor, [0, 0, 0])


def test_a_probe_that_succeeds_closes_it_with_a_fresh_count():
    executor = guarded(turning(M, M, None, M, None, M, M))
    waits = [0, 0, WAIT_MS, 0, 0, 0, 0, 0]

    assert ["MODEL_ERROR", "MODEL_ERROR", None, "MODEL_ERROR", None, "MODEL_ERROR", "MODEL_ERROR", OPEN] == codes_of(
        executor, waits
    )


def test_a_probe_that_fails_opens_it_again_for_a_whole_cooldown():
    executor = guarded(in_turn(fails(), fails(), fails(after_ms=100), says("ok")))
    waits = [0, 0, WAIT_MS, 0, WAIT_MS - 1, 1]

    assert ["MODEL_ERROR"] * 3 + [OPEN, OPEN, None] == codes_of(executor, waits)


@pytest.mark.parametrize("told_nothing", [V, ErrorCode.CANCELLED])
def test_a_probe_that_tells_nothing_leaves_the_next_to_be_the_probe(told_nothing):
    executor = guarded(turning(M, M, told_nothing, M, None))
    waits = [0, 0, WAIT_MS, 0, 0]

    assert ["MODEL_ERROR", "MODEL_ERROR", told_nothing.value, "MODEL_ERROR", OPEN] == codes_of(executor, waits)


def test_while_one_probes_the_others_fail():
    executor = guarded(in_turn(fails(), fails(), says("probed", after_ms=50), says("after")))

    async def main() -> list[str | None]:
        await run(executor)
        await run(executor)
        await asyncio.sleep(WAIT_MS / 1_000)
        probe = asyncio.create_task(run(executor))
        await asyncio.sleep(0.01)
        during = [code(await run(executor)), code(await run(executor))]
        await asyncio.sleep(0.04)
        return [*during, code(await probe), code(await run(executor))]

    assert [OPEN, OPEN, None, None] == run_clean(main())


def test_of_steps_that_begin_at_one_moment_one_is_the_probe():
    log: list[Any] = []
    executor = guarded(in_turn(fails(), fails(), noting(log, says("x", after_ms=5))))

    async def main() -> list[str | None]:
        await run(executor)
        await run(executor)
        await asyncio.sleep(WAIT_MS / 1_000)
        return [code(result) for result in await asyncio.gather(*[run(executor) for _ in range(4)])]

    codes = run_clean(main())

    assert (1, 3, 1) == (codes.count(None), codes.count(OPEN), len(log))


def test_a_cancelled_probe_leaves_the_next_to_be_the_probe():
    executor = guarded(in_turn(fails(), fails(), says("never", after_ms=99), says("ok")))

    async def main() -> list[str | None]:
        await run(executor)
        await run(executor)
        await asyncio.sleep(WAIT_MS / 1_000)
        probe = asyncio.create_task(run(executor, run_id="probe"))
        await asyncio.sleep(0.01)
        refused = code(await run(executor))
        executor.cancel("probe")
        return [refused, code(await probe), code(await run(executor)), code(await run(executor))]

    assert [OPEN, "CANCELLED", None, None] == run_clean(main())


def test_a_probe_s_retries_belong_to_it():
    work = {"retry_count": 1, "retry_delay_ms": 10}
    executor = guarded(in_turn(*[fails()] * 5, says("ok")), of_work=work)

    assert ["MODEL_ERROR", "MODEL_ERROR", None] == codes_of(executor, [0, 0, WAIT_MS])


# --- steps begun before --------------------------------------------------------------------------------


def test_steps_that_began_before_it_opened_change_nothing():
    """A late success does not close it; a late failure does not count for what follows."""
    slow_good, slow_bad = says("slow", after_ms=50), fails(after_ms=60)
    executor = guarded(in_turn(slow_good, slow_bad, fails(after_ms=1), fails(after_ms=1), says("ok")))

    async def main() -> list[str | None]:
        slow = [asyncio.create_task(run(executor)) for _ in range(2)]
        await asyncio.sleep(0)
        opening = [code(await run(executor)), code(await run(executor))]
        ended = [code(result) for result in await asyncio.gather(*slow)]
        return [*opening, *ended, code(await run(executor))]

    assert ["MODEL_ERROR", "MODEL_ERROR", None, "MODEL_ERROR", OPEN] == run_clean(main())


def test_a_step_from_before_that_fails_while_it_probes_or_later_changes_nothing():
    executor = guarded(
        in_turn(fails(after_ms=WAIT_MS + 50), fails(), fails(), says("probe", after_ms=100), fails(), says("ok"))
    )

    async def main() -> list[str | None]:
        slow = asyncio.create_task(run(executor))
        await asyncio.sleep(0.001)
        opening = [code(await run(executor)), code(await run(executor))]
        await asyncio.sleep(WAIT_MS / 1_000)
        probe = asyncio.create_task(run(executor))
        late = code(await slow)
        return [*opening, late, code(await probe), code(await run(executor)), code(await run(executor))]

    assert ["MODEL_ERROR", "MODEL_ERROR", "MODEL_ERROR", None, "MODEL_ERROR", None] == run_clean(main())


def test_failures_of_steps_at_once_count_in_the_order_of_their_ends():
    executor = guarded(in_turn(fails(after_ms=10), says("x", after_ms=20), fails(after_ms=30), says("ok")))

    async def main() -> list[str | None]:
        await asyncio.gather(*[run(executor) for _ in range(3)])
        return [code(await run(executor))]

    assert [None] == run_clean(main())


# --- who shares one ------------------------------------------------------------------------------------


def one_after_another(nodes: Mapping[str, Any], *, model: Any = None, tools: Any = None, acts: Any = None) -> list[Any]:
    """The code of each node's step, in one run per node, with a breaker that one failure opens."""
    edges = [("start", name, f"content == '{name}'") for name in nodes]
    graph = a_graph(nodes, [*edges, ("start", "end"), *((name, "end") for name in nodes)])
    executor = an_executor(graph, acts or {}, model=model, breaker=breaker(1))
    if tools is not None:
        executor.tools = tools

    async def main() -> list[Any]:
        return [code(await run(executor, name)) for name in nodes]

    return run_clean(main())


DOWN = ScriptedModel(ModelError("down"))
ROUTES = [{"name": "a", "target": "end"}]
CONDITIONS = [{"name": "a", "expression": "0", "target": "end"}]


@pytest.mark.parametrize(
    "second",
    [
        node("model", model="m"),
        node("model", model="m", fallback_models=["other"]),
        node("router", model="m", routes=ROUTES),
        node("gate", mode="llm", model="m", conditions=CONDITIONS),
    ],
    ids=["model", "fallback", "router", "gate"],
)
def test_nodes_of_one_model_share_a_breaker(second):
    assert ["MODEL_ERROR", OPEN] == one_after_another({"one": node("model", model="m"), "two": second}, model=DOWN)
    assert ["MODEL_ERROR", OPEN] == one_after_another({"two": second, "one": node("model", model="m")}, model=DOWN)


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (node("model", model="n"), "MODEL_ERROR"),
        (node("model", model="n", fallback_models=["m"]), "MODEL_ERROR"),
        (node("gate", mode="hybrid", model="m", conditions=CONDITIONS), "MODEL_ERROR"),
        (node("gate", model="m", conditions=CONDITIONS), "GATE_FAILED"),
        (node("router", mode="rules", model="m", routes=[{**ROUTES[0], "condition": "0"}]), "ROUTING_ERROR"),
        (node("router", mode="keywords", model="m", routes=[{**ROUTES[0], "keywords": ["k"]}]), "ROUTING_ERROR"),
        (node("transform"), None),
    ],
    ids=["other model", "other first model", "hybrid", "expression", "rules", "keywords", "transform"],
)
def test_other_nodes_do_not(second, expected):
    assert ["MODEL_ERROR", expected] == one_after_another({"one": node("model", model="m"), "two": second}, model=DOWN)


def test_a_hybrid_gate_has_none():
    gate = node("gate", mode="hybrid", model="m", conditions=CONDITIONS)

    assert ["MODEL_ERROR", "MODEL_ERROR"] == one_after_another({"one": gate, "two": gate}, model=DOWN)


async def broken(arguments: dict[str, Any]) -> str:
    raise ValueError("broken")


TOOLS = ToolRegistry([Tool.from_schema(name, "broken", {"type": "object"}, broken) for name in ("t", "u")])


def test_tool_nodes_share_the_one_of_their_tool():
    nodes = {"one": node("tool", tool_id="t"), "two": node("tool", tool_id="t"), "three": node("tool", tool_id="u")}
    edges = [("start", name, f"content == '{name}'") for name in nodes]
    graph = a_graph(nodes, [*edges, ("start", "end"), *((name, "end") for name in nodes)])
    executor = Executor(graph, tools=TOOLS, config=an_executor(a_line(), breaker=breaker(1)).config)

    async def main() -> list[Any]:
        return [code(await run(executor, name)) for name in nodes]

    assert ["TOOL_ERROR", OPEN, "TOOL_ERROR"] == run_clean(main())


def test_a_tool_failure_that_is_passed_on_is_a_success_of_the_step():
    graph = a_line(node("tool", tool_id="t", continue_on_error=True))
    executor = Executor(graph, tools=TOOLS, config=an_executor(a_line(), breaker=breaker(1)).config)

    assert [None, None, None] == codes_of(executor, [0, 0, 0])


def test_custom_nodes_have_one_each():
    class Down(BaseNode):
        async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
            raise NodeError(ErrorCode.UNKNOWN, "down")

    node_type("testing.down", config=NodeConfig)(Down)
    try:
        nodes = {"one": node("testing.down"), "two": node("testing.down")}
        edges = [("start", name, f"content == '{name}'") for name in nodes]
        graph = a_graph(nodes, [*edges, ("start", "end"), *((name, "end") for name in nodes)])
        executor = an_executor(graph, breaker=breaker(1))

        async def main() -> list[Any]:
            return [code(await run(executor, name)) for name in ("one", "two", "one", "two")]

        assert ["UNKNOWN", "UNKNOWN", OPEN, OPEN] == run_clean(main())
    finally:
        forget_node_type("testing.down")


@pytest.mark.parametrize(
    "wrapper",
    [
        node("fanout", target_nodes=["work"]),
        node("loop", body_node="work"),
        node("timeout", inner_node="work"),
    ],
    ids=["fanout", "loop", "timeout"],
)
def test_wrappers_have_none_but_what_they_run_has(wrapper):
    graph = a_graph({"wrap": wrapper, "work": node("model")}, [("start", "wrap"), ("wrap", "end")])
    log: list[Any] = []
    executor = an_executor(graph, {"work": noting(log, fails())}, breaker=breaker(2))

    assert ["MODEL_ERROR", "MODEL_ERROR", OPEN, OPEN] == codes_of(executor, [0] * 4)
    assert 2 == len(log)


def test_targets_of_one_fanout_share_one_too():
    graph = a_graph(
        {"fan": node("fanout", target_nodes=["work"] * 4, parallel=False), "work": node("model")},
        [("start", "fan"), ("fan", "end")],
    )
    executor = an_executor(graph, {"work": fails()}, breaker=breaker(2))
    result = run_clean(run(executor))

    assert ["MODEL_ERROR", "MODEL_ERROR", OPEN, OPEN] == [f["code"] for f in result.error.details["failures"]]
    assert (6, 2) == (result.nodes_executed, count(result, EventKind.ATTEMPT_STARTED, "work"))


def test_runs_of_one_executor_share_them_and_executors_do_not():
    first, second = guarded(fails()), guarded(fails())

    assert ["MODEL_ERROR", "MODEL_ERROR", OPEN] == codes_of(first, [0, 0, 0])
    assert ["MODEL_ERROR"] == codes_of(second, [0])


@pytest.mark.parametrize(
    ("wrapper", "third"),
    [
        (node("fanout", target_nodes=["work"], timeout_ms=50), OPEN),
        (node("timeout", inner_node="work", timeout_ms=50), "TIMEOUT"),
        (node("loop", body_node="work", timeout_ms=50), "TIMEOUT"),
    ],
    ids=["fanout", "timeout", "loop"],
)
def test_a_target_that_its_fanout_cuts_off_has_failed_and_what_others_cut_off_is_cancelled(wrapper, third):
    graph = a_graph({"wrap": wrapper, "work": node("model")}, [("start", "wrap"), ("wrap", "end")])
    executor = an_executor(graph, {"work": says("late", after_ms=99)}, breaker=breaker(2))

    assert ["TIMEOUT", "TIMEOUT", third] == codes_of(executor, [0] * 3)


# --- what goes before ----------------------------------------------------------------------------------


def test_limits_come_before_the_breaker():
    executor = guarded(fails(), max_steps=2)

    async def main() -> RunResult:
        await run(executor)
        await run(executor)
        return await run(executor)

    assert OPEN == code(run_clean(main()))
    assert ["BOUNDS_EXCEEDED"] == codes_of(guarded(fails(), max_steps=1), [0])


def test_a_step_that_max_steps_refuses_is_no_probe():
    nodes = {"first": node("transform"), "work": node("model")}
    edges = [("start", "first", "content == 'long'"), ("start", "work"), ("first", "work"), ("work", "end")]
    executor = an_executor(
        a_graph(nodes, edges), {"work": turning(M, None)}, breaker=breaker(1), max_steps=2, failure_policy="fail_fast"
    )

    async def main() -> list[str | None]:
        first = code(await run(executor))
        await asyncio.sleep(WAIT_MS / 1_000)
        return [first, code(await run(executor, "long")), (await run(executor)).message.payload.content]

    assert ["MODEL_ERROR", "BOUNDS_EXCEEDED", "ok"] == run_clean(main())


# --- the trace -----------------------------------------------------------------------------------------


def test_the_trace_tells_every_change_with_its_node():
    executor = guarded(turning(M, M, None), breaker=breaker(2))

    async def main() -> list[RunResult]:
        results = [await run(executor), await run(executor), await run(executor)]
        await asyncio.sleep(WAIT_MS / 1_000)
        return [*results, await run(executor), await run(executor)]

    results = run_clean(main())
    told = [[(e.node_id, *e.details.values()) for e in events(r, EventKind.BREAKER_CHANGED)] for r in results]

    assert [0, 1, 0, 2, 0] == [len(changes) for changes in told]
    assert {"work"} == {change[0] for changes in told for change in changes}
    assert "open" in str(told[1])
    assert "half-open" in str(told[3][0])
    assert "closed" in str(told[3][1])


# --- a property ----------------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.sampled_from(["good", "bad", "odd"]), st.sampled_from([0, 400, 999, 1_000])), max_size=14),
    st.integers(1, 3),
)
def test_one_run_after_another_is_as_a_plain_model_says(drawn, threshold):
    acts = {"good": says("ok"), "bad": fails(), "odd": fails(V)}
    names = {"good": None, "bad": "MODEL_ERROR", "odd": "VALIDATION_ERROR"}
    expected: list[str | None] = []
    now, failures, opened = 0, 0, -1
    taken: list[Act] = []
    for kind, wait_ms in drawn:
        now += wait_ms
        probe = opened >= 0
        if probe and now - opened < WAIT_MS:
            expected.append(OPEN)
            continue
        taken.append(acts[kind])
        expected.append(names[kind])
        if kind == "good":
            failures, opened = 0, -1
        elif kind == "bad":
            failures += 1
            if probe or failures >= threshold:
                failures, opened = 0, now
    executor = guarded(in_turn(*taken, says("unused")), breaker=breaker(threshold))

    assert expected == codes_of(executor, [wait_ms for _, wait_ms in drawn])


def test_the_time_of_a_trace_never_goes_back_when_a_breaker_turns_half_open():
    """On a clock that goes on with each look, as a real one does."""
    executor = guarded(turning(M, M), breaker=breaker(2, 0.0))

    async def main() -> list[RunResult]:
        loop = asyncio.get_running_loop()
        looks = iter(range(1_000_000))
        moments = loop.time
        loop.time = lambda: moments() + next(looks) * 1e-6  # type: ignore[method-assign]
        try:
            return [await run(executor) for _ in range(4)]
        finally:
            loop.time = moments  # type: ignore[method-assign]

    results = run_clean(main())
    times = [[event.at_ms for event in result.trace] for result in results]

    assert any(count(result, EventKind.BREAKER_CHANGED) for result in results[2:])
    assert [sorted(each) for each in times] == times
