"""Hostile and careless code around the engine: nodes, models, tools, clocks and callers that do what they should not.
"""

from __future__ import annotations

import asyncio
import copy
import math
import pickle
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tinyllm
from tests.support.nodes import fails, raises, returns, says
from tests.support.runs import a_graph, a_line, a_message, an_executor, code, count, go, node, run_clean, visited
from tinyllm import expressions
from tinyllm.builder import GraphBuilder
from tinyllm.config import ExecutorConfig
from tinyllm.errors import (
    ErrorCode,
    ExpressionError,
    GraphConfigError,
    NodeError,
    OverloadedError,
    TinyLLMError,
    UsageError,
)
from tinyllm.executor import Executor
from tinyllm.message import ErrorInfo, Message, MessagePayload, NodeResult, TaskPayload
from tinyllm.models.base import ModelResponse
from tinyllm.nodes.base import passed_on, success
from tinyllm.testing.loop import run
from tinyllm.tools import default_tools, tool
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

TASK = TaskPayload(content="question")
PLAIN = node("transform")


def run_of(act: Any, **config: Any) -> RunResult:
    return go(an_executor(a_line(PLAIN), {"work": act}, **config))


# --- what a node raises --------------------------------------------------------------------------------


class ForgotSuper(NodeError):
    def __init__(self, text: str) -> None:
        Exception.__init__(self, text)


class ExitsWhenShown(Exception):
    def __str__(self) -> str:
        raise SystemExit(3)


class FailsWhenShown(Exception):
    def __str__(self) -> str:
        raise KeyError


def odd_recoverable() -> NodeError:
    error = NodeError(ErrorCode.MODEL_ERROR, "x")
    error.recoverable = 1  # type: ignore[assignment]
    return error


@pytest.mark.parametrize(
    "error",
    [
        SystemExit(1),
        GeneratorExit(),
        StopIteration(1),
        StopAsyncIteration(),
        MemoryError(),
        BaseExceptionGroup("g", [SystemExit(), KeyboardInterrupt()]),
        FailsWhenShown(),
        ForgotSuper("x"),
        ExitsWhenShown(),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_a_node_raises_is_an_unknown_failure(error: BaseException):
    assert "UNKNOWN" == code(run_of(raises(error)))


def test_an_error_with_a_recoverable_of_another_type_still_fails_the_step():
    assert "MODEL_ERROR" == code(run_of(raises(odd_recoverable())))


def test_details_that_hold_themselves_are_shown():
    details: dict[str, Any] = {}
    details["self"] = details
    result = run_of(raises(NodeError(ErrorCode.TOOL_ERROR, "x", details=details)))

    assert result.error is not None
    assert ["repr"] == [*result.error.details]


@pytest.mark.parametrize("asked", [-5, "5", None, 0.001, pytest.param(-(10**1_200), id="far below")])
def test_an_odd_retry_after_is_no_error_of_its_own(asked: Any):
    work = node("transform", retry_count=1, retry_delay_ms=1)
    result = go(an_executor(a_line(work), {"work": fails(retry_after_s=asked)}))

    assert "MODEL_ERROR" == code(result)


# --- what a node returns, writes and changes -----------------------------------------------------------


@pytest.mark.parametrize("value", [None, "text", ValueError(), NodeResult, object(), 5])
def test_what_is_no_result_is_a_validation_error(value: Any):
    assert "VALIDATION_ERROR" == code(run_of(returns(value)))


def test_a_failed_result_without_a_proper_error_fails_the_step():
    wrong: Any = "bad"
    result = run_of(returns(NodeResult.model_construct(success=False, error=wrong)))

    assert "failed" == result.status


def test_a_result_whose_messages_are_none_is_the_fault_of_its_node():
    wrong: Any = ["junk"]
    result = run_of(returns(NodeResult.model_construct(success=True, output_messages=wrong, next_nodes=[])))

    assert ("VALIDATION_ERROR", "work") == (code(result), result.error and result.error.node_id)


@pytest.mark.parametrize(
    "fields",
    [{"output_messages": 5}, {"output_messages": None}, {"next_nodes": 5}, {"next_nodes": [[]]}, {"next_nodes": None}],
    ids=str,
)
def test_a_result_built_without_validation_is_the_fault_of_its_node(fields: dict[str, Any]):
    result = run_of(returns(NodeResult.model_construct(success=True, **fields)))

    assert ("VALIDATION_ERROR", "work") == (code(result), result.error and result.error.node_id)


@pytest.mark.parametrize("fields", [{}, {"payload": None}, {"payload": {"content": "x"}}], ids=str)
def test_a_message_without_a_payload_is_the_fault_of_its_node(fields: dict[str, Any]):
    bad = Message.model_construct(message_id="m", trace_id="t", source_node="s", **fields)
    result = run_of(returns(NodeResult(success=True, output_messages=[bad])))

    assert ("VALIDATION_ERROR", "work") == (code(result), result.error and result.error.node_id)


@pytest.mark.parametrize("payload", [{"metadata": None}, {"metadata": {1: 2}}, {"structured": [1]}], ids=str)
def test_conditions_on_a_message_that_is_none_do_not_hold(payload: dict[str, Any]):
    wrong = MessagePayload.model_construct(**payload)
    bad = Message.model_construct(message_id="m", trace_id="t", source_node="s", payload=wrong)
    nodes = {"work": node("transform"), "then": PLAIN}
    edges = [("start", "work"), ("work", "then", 'metadata.get("x") == 1'), ("work", "end"), ("then", "end")]
    acts = {"work": returns(NodeResult(success=True, output_messages=[bad])), "end": says("x")}
    result = go(an_executor(a_graph(nodes, edges), acts))

    assert result.status in {"succeeded", "failed"}
    assert "then" not in visited(result)


@pytest.mark.parametrize(
    "fields",
    [
        *({"message": "x"}, {"code": ErrorCode.UNKNOWN}, {"code": ErrorCode.UNKNOWN, "message": 5}),
        {"code": ErrorCode.UNKNOWN, "message": "x", "details": None},
        {"code": ErrorCode.UNKNOWN, "message": "\ud800", "details": {}, "recoverable": True, "node_id": None},
        {"code": ErrorCode.UNKNOWN, "message": "x", "details": {1: 2}, "recoverable": True, "node_id": None},
    ],
    ids=ascii,
)
def test_an_error_built_without_validation_is_the_fault_of_its_node(fields: dict[str, Any]):
    error = ErrorInfo.model_construct(**fields)
    result = run_of(returns(NodeResult.model_construct(success=False, error=error)), failure_policy="best_effort")

    assert ("VALIDATION_ERROR", "work") == (code(result), result.error and result.error.node_id)
    assert result.error is not None
    assert result.error == ErrorInfo.from_json(result.error.to_json())


def test_a_result_without_anything_is_the_fault_of_its_node():
    assert "UNKNOWN" == code(run_of(returns(NodeResult.__new__(NodeResult))))


@pytest.mark.parametrize(
    "fields", [{"trace_id": 5}, {"message_id": [5]}, {"trace_id": "\ud800"}, {"message_id": "\ud800"}], ids=ascii
)
def test_ids_that_no_message_could_have_fail_the_run(fields: dict[str, Any]):
    whole = {"message_id": "m", "trace_id": "t", "source_node": "s", "payload": MessagePayload(), **fields}
    result = run_of(returns(NodeResult(success=True, output_messages=[Message.model_construct(**whole)])))

    assert "VALIDATION_ERROR" == code(result)


def clears(message: Message) -> None:
    message.__dict__.clear()


def clears_payload(message: Message) -> None:
    message.payload.__dict__.clear()


@pytest.mark.parametrize("policy", ["fail_fast", "fallback_simple", "best_effort"])
@pytest.mark.parametrize("empty", [clears, clears_payload])
@pytest.mark.parametrize("then", ["fails", "ends"])
def test_a_node_that_empties_its_input_does_not_take_the_run_down(empty: Any, then: str, policy: str):
    async def act(message: Message, context: Any) -> NodeResult:
        empty(message)
        if then == "fails":
            raise LookupError
        return NodeResult(success=True)

    assert "VALIDATION_ERROR" == code(run_of(act, failure_policy=policy))


@pytest.mark.parametrize(
    "fields",
    [{}, {"payload": MessagePayload.model_construct(metadata={"x": object()})}, {"trace_id": 5}],
    ids=["nothing", "payload", "trace_id"],
)
def test_a_message_that_is_none_is_refused_before_anything_begins(fields: dict[str, Any]):
    whole = {"message_id": "m", "trace_id": "t", "source_node": "s", **fields} if fields else {}
    bad = Message.model_construct(**whole)
    executor = an_executor(a_line(PLAIN), max_message_bytes=100_000, max_concurrent_runs=1, max_queued_runs=0)

    async def main() -> str:
        with pytest.raises(UsageError, match="without validation"):
            await executor.run(bad)
        return (await executor.execute(TASK)).status

    assert "succeeded" == run_clean(main())


class Tenant(Message):
    """A message of a user's own."""

    tenant: str = "acme"


def test_a_message_of_a_user_s_own_kind_is_one():
    async def act(message: Message, context: Any) -> NodeResult:
        mine = Tenant(trace_id=message.trace_id, source_node="work", payload=message.payload)
        return NodeResult(success=True, output_messages=[mine])

    nodes = {"work": PLAIN, "then": node("transform", retry_count=2, retry_delay_ms=1)}
    graph = a_graph(nodes, [("start", "work"), ("work", "then"), ("then", "end")])
    result = go(an_executor(graph, {"work": act, "then": fails(ErrorCode.MODEL_ERROR)}))

    assert ("MODEL_ERROR", 3) == (code(result), count(result, EventKind.ATTEMPT_STARTED, "then"))


def spoils(value: Any) -> Any:
    async def act(message: Message, context: Any) -> NodeResult:
        message.payload.metadata["x"] = value
        return success(message)

    return act


def a_cycle() -> dict[str, Any]:
    cycle: dict[str, Any] = {}
    cycle["itself"] = cycle
    return cycle


@pytest.mark.parametrize("config", [{}, {"max_message_bytes": 10_000}, {"max_messages": 9}], ids=str)
@pytest.mark.parametrize("way", ["plain", "conditional", "last"])
@pytest.mark.parametrize("value", [object(), a_cycle(), "\ud800", math.nan], ids=["object", "cycle", "text", "nan"])
def test_a_message_that_a_node_has_made_none_fails_the_run(value, way, config):
    edges: dict[str, list[tuple[str, ...]]] = {
        "plain": [("start", "work"), ("work", "then"), ("then", "end")],
        "conditional": [("start", "work"), ("work", "then", "metadata['y']"), ("work", "end"), ("then", "end")],
        "last": [("start", "work"), ("work", "end"), ("then", "end")],
    }
    graph = a_graph({"work": PLAIN, "then": PLAIN}, edges[way])
    result = go(an_executor(graph, {"work": spoils(value)}, **config))

    assert ("failed", "VALIDATION_ERROR") == (result.status, code(result))
    assert result.error is not None
    assert not result.error.recoverable


@pytest.mark.parametrize("policy", ["best_effort", "skip_failed", "fallback_simple"])
def test_a_message_that_a_node_has_made_none_is_no_partial_success(policy):
    graph = a_graph({"work": PLAIN, "then": PLAIN}, [("start", "work"), ("work", "then"), ("then", "end")])
    acts = {"work": spoils(object()), "then": fails()}

    assert "failed" == go(an_executor(graph, acts, failure_policy=policy)).status


def test_a_content_that_is_no_text_is_no_result():
    async def act(message: Message, context: Any) -> NodeResult:
        return success(message.model_copy(update={"payload": message.payload.model_copy(update={"content": 42})}))

    assert "VALIDATION_ERROR" == code(run_of(act))


class Unreadable(dict[str, Any]):
    def keys(self) -> Any:
        raise RuntimeError("unreadable")

    def __iter__(self) -> Any:
        raise RuntimeError("unreadable")


@pytest.mark.parametrize(
    "variables",
    [5, [1], {1: 2}, {"a": object()}, {"a": math.nan}, Unreadable(a=1)],
    ids=["number", "list", "key", "object", "nan", "unreadable"],
)
def test_variables_that_are_none_fail_the_step(variables: Any):
    async def act(message: Message, context: Any) -> NodeResult:
        context.variables = variables
        return success(passed_on(message, context))

    assert "VALIDATION_ERROR" == code(run_of(act))


def test_a_node_that_spoils_its_input_and_fails_does_not_take_the_run_down():
    async def act(message: Message, context: Any) -> NodeResult:
        message.payload.metadata["x"] = object()
        raise ValueError

    nodes = {"work": node("transform", on_error="after"), "after": PLAIN}
    graph = a_graph(nodes, [("start", "work"), ("work", "end"), ("after", "end")])

    assert go(an_executor(graph, {"work": act})).status in {"succeeded", "failed"}


@pytest.mark.parametrize("tokens", [-1_000, math.nan])
def test_tokens_that_are_no_count_do_not_cheat_the_limit(tokens: Any):
    async def act(message: Message, context: Any) -> NodeResult:
        context.count_tokens(tokens)
        context.count_tokens(50)
        return success(passed_on(message, context))

    result = run_of(act, max_tokens=10)

    assert "failed" == result.status


# --- nodes that reach for the executor and the loop ----------------------------------------------------


def test_a_node_may_run_its_own_executor():
    box: list[Executor] = []

    async def act(message: Message, context: Any) -> NodeResult:
        if not context.variables:
            inner = await box[0].execute(TASK, variables={"inner": True})
            return success(passed_on(message, context, content=inner.status))
        return success(passed_on(message, context))

    box.append(an_executor(a_line(PLAIN), {"work": act}))

    assert "succeeded" == go(box[0]).content


@pytest.mark.parametrize("waits", [False, True])
def test_a_node_may_cancel_its_own_run(waits: bool):
    box: list[Executor] = []

    async def act(message: Message, context: Any) -> NodeResult:
        box[0].cancel(context.run_id)
        if waits:
            await asyncio.sleep(5)
        return success(passed_on(message, context))

    box.append(an_executor(a_line(PLAIN), {"work": act}))

    assert "cancelled" == go(box[0]).status


def test_a_node_that_waits_for_a_run_that_waits_for_it_ends_with_the_deadline():
    box: list[Executor] = []

    async def act(message: Message, context: Any) -> NodeResult:
        await box[0].execute(TASK)
        return success(passed_on(message, context))

    box.append(an_executor(a_line(PLAIN), {"work": act}, max_concurrent_runs=1, max_queued_runs=1, timeout_ms=300))

    assert "timed_out" == go(box[0]).status
    assert "timed_out" == go(box[0]).status


def leaves_a_cancellation(after_s: float, then: Callable[..., Any]) -> Any:
    async def act(message: Message, context: Any) -> Any:
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_later(after_s, task.cancel)
        return await then(message, context)

    return act


def test_a_cancellation_that_a_node_left_behind_does_not_reach_the_caller_through_a_retry():
    work = node("transform", retry_count=1, retry_delay_ms=100)
    executor = an_executor(a_line(work), {"work": leaves_a_cancellation(0.02, fails())})

    # Not `go`: what the node left behind is there when the run has ended.
    assert "failed" == run(executor.execute(TaskPayload(content="question"))).status


def test_a_cancellation_that_a_node_left_behind_leaves_no_targets_behind():
    nodes = {"work": PLAIN, "wide": node("fanout", target_nodes=["one", "two"]), "one": PLAIN, "two": PLAIN}
    graph = a_graph(nodes, [("start", "work"), ("work", "wide"), ("wide", "end")])
    late = says("y", after_ms=200)
    acts = {"work": leaves_a_cancellation(0.02, says("x")), "one": late, "two": late}

    assert "succeeded" == go(an_executor(graph, acts)).status


def test_a_cancellation_that_a_node_left_behind_is_not_the_next_node_s():
    acts = {"work": leaves_a_cancellation(0.02, says("x")), "work2": says("y", after_ms=200)}

    assert "succeeded" == go(an_executor(a_line(PLAIN, PLAIN), acts)).status


# --- models that answer nonsense -----------------------------------------------------------------------


class Answering:
    def __init__(self, answer: Callable[[Any], Any]) -> None:
        self.answer = answer
        self.asked: list[str] = []

    async def complete(self, request: Any) -> Any:
        self.asked.append(request.model)
        return self.answer(request)


def answer(**fields: Any) -> Any:
    return ModelResponse(**{"text": "x", "model": "m", "tokens_in": 1, "tokens_out": 1, **fields})


NONSENSE = {
    "none": None,
    "text": "x",
    "object": {"text": "x"},
    "bytes": answer(text=b"x"),
    "surrogate": answer(text="\ud800"),
    "negative": answer(tokens_in=-1),
    "huge": answer(tokens_in=10**30),
    "fraction": answer(tokens_in=0.5),
    "no count": answer(tokens_out=None),
}


@pytest.mark.parametrize("given_answer", NONSENSE.values(), ids=NONSENSE)
def test_a_nonsensical_answer_fails_the_step_and_nothing_else(given_answer: Any):
    result = go(an_executor(a_line(), model=Answering(lambda _: given_answer)))

    assert "failed" == result.status
    assert result.error is not None
    assert "work" == result.error.node_id


@pytest.mark.parametrize("given_answer", [v for k, v in NONSENSE.items() if k != "none"])
def test_after_a_nonsensical_answer_the_next_model_is_asked(given_answer: Any):
    model = Answering(lambda request: given_answer if request.model == "one" else answer())
    result = go(an_executor(a_line(node("model", model="one", fallback_models=["two"])), model=model))

    assert "succeeded" == result.status
    assert ["one", "two"] == model.asked


@pytest.mark.parametrize("tokens", [-1_000, math.nan, 10**5_000], ids=["negative", "nan", "huge"])
def test_a_model_cannot_cheat_the_token_limit(tokens: Any):
    routes = [{"name": "a", "target": "more"}]
    nodes = {"work": node("router", routes=routes), "more": node("model")}
    graph = a_graph(nodes, [("start", "work"), ("more", "end")])
    told = iter([answer(text="a", tokens_in=tokens), answer(tokens_in=500)])
    result = go(an_executor(graph, model=Answering(lambda _: next(told)), max_tokens=100))

    assert "failed" == result.status
    assert 0 <= result.tokens_used


def test_an_error_that_a_client_raises_again_and_again_does_not_grow():
    error = tinyllm.ModelError("down")

    def down(_: Any) -> Any:
        raise error

    work = node("model", model="one", fallback_models=["two"], retry_count=3, retry_delay_ms=1)
    result = go(an_executor(a_line(work), model=Answering(down)))

    assert result.error is not None
    assert 1 == result.error.message.count("no model answered")


@pytest.mark.parametrize(
    ("said", "route"),
    [
        *(("STRASSE", "straße"), ("“c++”", "c++"), ("İSTANBUL", "İstanbul")),
        *(("a.*(", "a.*("), ("\u2028straße\x85", "straße")),
    ],
)
def test_names_with_odd_letters_are_met_literally(said: str, route: str):
    routes = [{"name": name, "target": "end"} for name in ("straße", "İstanbul", "a.*(", "c++")]
    graph = a_graph({"work": node("router", routes=routes)}, [("start", "work")])

    assert route == go(an_executor(graph, model=Answering(lambda _: answer(text=said)))).message.payload.route


# --- tools ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit, StopIteration, ExitsWhenShown])
def test_whatever_a_tool_raises_is_a_tool_error(error: type[BaseException]):
    @tool
    def broken(x: str) -> str:
        """Break."""
        raise error

    assert "TOOL_ERROR" == code(asyncio.run(with_tool(broken).execute(TASK)))


def circle() -> Any:
    values: list[Any] = []
    values.append(values)
    return values


@pytest.mark.parametrize("made", [circle, object, lambda: math.nan, lambda: "\ud800", lambda: 10**10_000])
def test_what_a_tool_gives_that_is_no_json_is_a_validation_error(made: Callable[[], Any]):
    @tool
    def odd(x: str):
        """Give something odd."""
        return made()

    assert "VALIDATION_ERROR" == code(asyncio.run(with_tool(odd).execute(TASK)))


def with_tool(given_tool: Any) -> Executor:
    graph = a_line(node("tool", tool_id=given_tool.id, input_mapping={"x": "content"}))
    return Executor(graph, tools=[given_tool])


# --- clocks, ids, chance, and how an executor is called ------------------------------------------------


class NoChance(random.Random):
    def getrandbits(self, k: int) -> int:
        raise OSError("no chance")


def test_a_run_that_could_not_be_made_keeps_no_place():
    executor = an_executor(a_line(PLAIN), max_concurrent_runs=1, max_queued_runs=0)
    executor.rng = NoChance()
    with pytest.raises(OSError, match="no chance"):
        go(executor)
    executor.rng = random.Random(1)
    try:
        status: str = go(executor).status
    except OverloadedError:
        status = "refused"

    assert "succeeded" == status


@pytest.mark.parametrize("name", ["same", "é\u2028", ""])
def test_ids_may_be_any_text_and_even_repeat(name: str):
    assert "succeeded" == go(Executor(a_line(PLAIN), ids=lambda: name)).status


@pytest.mark.parametrize("moment", [datetime(2020, 1, 1), "now"])  # noqa: DTZ001 - that is the point
def test_a_clock_that_tells_no_time_is_misuse(moment: Any):
    with pytest.raises(TinyLLMError):
        go(Executor(a_line(PLAIN), clock=lambda: moment))


def test_a_clock_may_go_backwards():
    years = iter(range(2999, 1000, -1))

    assert "succeeded" == go(Executor(a_line(PLAIN), clock=lambda: datetime(next(years), 1, 1, tzinfo=UTC))).status


@pytest.mark.parametrize("task", ["text", None, {"content": "x"}, MessagePayload()])
def test_a_task_of_another_type_is_misuse(task: Any):
    with pytest.raises(TinyLLMError):
        run_clean(an_executor(a_line(PLAIN)).execute(task))


@pytest.mark.parametrize(
    "how",
    [
        {"entry": "end"},
        {"entry": 5},
        {"variables": {1: 2}},
        {"variables": {"a": b"bytes"}},
        {"variables": [1]},
        {"variables": 5},
        {"run_id": 5},
        {"run_id": "\ud800"},
        {"run_id": []},
    ],
    ids=str,
)
def test_odd_arguments_are_misuse(how: dict[str, Any]):
    with pytest.raises(TinyLLMError):
        go(an_executor(a_line(PLAIN)), **how)


def test_one_executor_serves_one_loop_after_another():
    executor = an_executor(a_line(PLAIN), {"work": says("x", after_ms=1)}, max_concurrent_runs=2, max_queued_runs=9)

    async def several() -> list[str]:
        return [result.status for result in await asyncio.gather(*(executor.execute(TASK) for _ in range(5)))]

    async def dropped() -> None:
        executor.stream(TASK)
        executor.stream(TASK)
        executor.stream(TASK)

    for program in (several, dropped, several):
        told = asyncio.run(program())

    assert ["succeeded"] * 5 == told


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="from Python 3.12 on")
def test_a_loop_with_eager_tasks_runs_graphs_too():
    async def main() -> str:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        result = await an_executor(a_line(PLAIN), {"work": says("x", after_ms=1)}).execute(TASK)
        return result.status

    assert "succeeded" == asyncio.run(main())


# --- values --------------------------------------------------------------------------------------------


def test_messages_and_results_can_be_pickled_and_copied():
    error = ErrorInfo(code=ErrorCode.TIMEOUT, message="m")
    message = a_message(content="c", structured={"a": [1]}, error=error, more={"x": 1})
    result = asyncio.run(an_executor(a_line(PLAIN)).execute(TASK))

    assert message == pickle.loads(pickle.dumps(message)) == copy.deepcopy(message)
    assert result == pickle.loads(pickle.dumps(result)) == copy.deepcopy(result)


def test_a_node_error_can_be_pickled():
    error = pickle.loads(pickle.dumps(NodeError(ErrorCode.TOOL_ERROR, "m", details={"a": 1})))

    assert (ErrorCode.TOOL_ERROR, "m", {"a": 1}) == (error.code, error.message, error.details)


def test_extra_keys_may_be_called_like_methods():
    async def act(message: Message, context: Any) -> NodeResult:
        return success(passed_on(message, context, copied=1, replace=2, fields=3, self=4))

    result = go(an_executor(a_line(PLAIN, PLAIN), {"work": act}))

    assert {"copied": 1, "replace": 2, "fields": 3, "self": 4}.items() <= result.message.payload.fields().items()


def test_every_public_name_can_be_had():
    assert [] == [name for name in tinyllm.__all__ if getattr(tinyllm, name, None) is None]


# --- graphs in Python ----------------------------------------------------------------------------------


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "odd",
    [object(), nested(5_000), math.nan, {1: 2}, "\ud800", b"x"],
    ids=["object", "deep", "nan", "key", "surrogate", "bytes"],
)
def test_metadata_that_is_no_json_is_refused_with_its_place(odd: Any):
    builder = GraphBuilder("g").entry("s").exit("e").chain("s", "e").metadata(odd=odd)
    with pytest.raises(GraphConfigError) as refused:
        builder.build()

    assert refused.value.problems[0].path.startswith("metadata")


def test_metadata_that_holds_itself_is_refused():
    with pytest.raises(GraphConfigError):
        GraphBuilder("g").entry("s").exit("e").chain("s", "e").metadata(odd=circle()).build()


@pytest.mark.parametrize("value", [None, 5, [1], "text"])
def test_what_is_no_graph_at_all_is_refused(value: Any):
    with pytest.raises(GraphConfigError):
        tinyllm.build_graph(value)


# --- conditions and the calculator ---------------------------------------------------------------------

WORDS = st.sampled_from(
    [
        *("content", "metadata", "x", "len", "str", "min", "sum", "not", "and", "or", "in", "is", "None", "lambda"),
        *("if", "else", "for", "(", ")", "[", "]", "{", "}", ",", ":", ".", ".get(", ".strip(", "+", "-", "*", "**"),
        *("//", "%", "<", "==", "1", "1e999", "9" * 30, "'a'", "f'{x}'", "\\", "\n", "\0", "\ud800", "__class__"),
        *("ß", "\uff10", "...", " "),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)


@settings(deadline=None, max_examples=500)
@given(st.lists(WORDS, max_size=15).map(" ".join) | st.text(max_size=40), VALUES, VALUES)
def test_a_condition_gives_a_value_or_an_expression_error(source: str, content: Any, x: Any):
    try:
        value = expressions.parse(source).evaluate({"content": content, "x": x})
    except ExpressionError:
        return

    assert isinstance(value, None | bool | int | float | str | list | tuple | dict)


@settings(deadline=None, max_examples=300)
@given(st.lists(WORDS, max_size=15).map("".join) | st.text("0123456789.+-*/%()e, jxX_'!<>=abspowsqrt", max_size=60))
def test_the_calculator_gives_json_or_a_node_error(source: str):
    calculator = default_tools().get("calculator")
    (parameter, *_) = calculator.input_schema["required"]
    try:
        value = asyncio.run(calculator.call({parameter: source}))
    except NodeError:
        return

    assert value is not None


def test_a_text_of_many_numbers_is_refused_before_it_is_built():
    source = f"len(str([{','.join(['x'] * 20)}]))"
    built: list[int] = []

    class Telling(int):
        def __repr__(self) -> str:
            built.append(1)
            return "9" * 1_200

    with pytest.raises(ExpressionError):
        expressions.parse(source).evaluate({"x": [Telling(10**1_200)] * 1_000})

    assert [] == built


def test_an_executor_config_is_checked():
    with pytest.raises(ValueError, match="max_steps"):
        ExecutorConfig(max_steps=-1)
