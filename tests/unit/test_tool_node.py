"""The tool node: what a tool is called with, where its output goes, and how its failures are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.support.nodes import now_ms
from tests.support.runs import a_graph, a_line, a_message, code, count, go, node, run_clean, visited
from tinyllm.config import ExecutorConfig
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.executor import Executor
from tinyllm.graph import Graph
from tinyllm.message import Message, MessagePayload
from tinyllm.tools import Tool, ToolContext, ToolRegistry
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

ANYTHING: dict[str, Any] = {"type": "object"}


class Recorder:
    """A tool `t` that gives what it is told to, call by call, and remembers what it was called with."""

    def __init__(self, *given: Any, after_ms: float = 0, schema: Any = None, output_schema: Any = None) -> None:
        self.given = list(given) or ["done"]
        self.after_ms = after_ms
        self.arguments: list[Any] = []
        self.contexts: list[ToolContext] = []
        self.moments: list[float] = []
        self.tool = Tool.from_schema("t", "a tool", schema or ANYTHING, self.called, output_schema)

    async def called(self, arguments: dict[str, Any], context: ToolContext) -> Any:
        self.arguments.append(arguments)
        self.contexts.append(context)
        self.moments.append(now_ms())
        await asyncio.sleep(self.after_ms / 1_000)
        given = self.given[min(len(self.arguments), len(self.given)) - 1]
        if isinstance(given, BaseException):
            raise given
        return given

    @property
    def keys(self) -> list[str]:
        return [context.idempotency_key for context in self.contexts]


def an_executor(graph: Graph, recorder: Recorder, **config: Any) -> Executor:
    return Executor(graph, tools=ToolRegistry([recorder.tool]), config=ExecutorConfig(**config))


def called(recorder: Recorder, message: Message | None = None, variables: Any = None, **config: Any) -> RunResult:
    """start -> work -> end, where `work` calls the recorder."""
    graph = a_line(node("tool", tool_id="t", **config))
    message = a_message(content="question") if message is None else message
    return run_clean(an_executor(graph, recorder).run(message, run_id="r", variables=variables))


# --- what goes in --------------------------------------------------------------------------------------


def test_without_a_mapping_the_content_is_the_input():
    recorder = Recorder()
    called(recorder, a_message(content="c", task="t"))

    assert [{"input": "c"}] == recorder.arguments


def test_a_mapping_replaces_the_default_and_gives_values_as_they_are():
    recorder = Recorder()
    message = a_message(
        content="c", task="t", structured={"list": [1, {"k": True}], "7": 1.5}, confidence=0.5, mine={"x": []},
        metadata={"m": "md"},
    )  # fmt: skip
    mapping = {
        "a": "task",
        "b": "structured.list",
        "c": "structured.list.1.k",
        "d": "structured.7",
        "e": "confidence",
        "f": "mine",
        "g": "metadata.m",
        "h": "variables.v.0",
        "i": "variables",
    }
    called(recorder, message, variables={"v": ["first"]}, input_mapping=mapping)
    expected = {"a": "t", "b": [1, {"k": True}], "c": True, "d": 1.5, "e": 0.5, "f": {"x": []}, "g": "md"}

    assert [{**expected, "h": "first", "i": {"v": ["first"]}}] == recorder.arguments


def test_a_path_may_go_into_what_the_payload_holds_of_values_of_its_own():
    recorder = Recorder({"n": 1}, "second")
    graph = a_line(
        node("tool", tool_id="t"),
        node("tool", tool_id="t", input_mapping={"n": "tool_result.output.n", "ok": "tool_result.success"}),
    )
    go(an_executor(graph, recorder))

    assert {"n": 1, "ok": True} == recorder.arguments[1]


@pytest.mark.parametrize(
    "path",
    ["missing", "route", "structured.k", "structured.null", "structured.list.2", "structured.list.-1", "content.x"],
)
def test_a_field_that_is_missing_or_null_leaves_its_parameter_out(path):
    recorder = Recorder()
    message = a_message(content="c", structured={"null": None, "list": [1, 2]})
    called(recorder, message, input_mapping={"gone": path, "there": "content"})

    assert [{"there": "c"}] == recorder.arguments


def test_a_null_content_leaves_the_default_input_out():
    recorder = Recorder()
    called(recorder, a_message(task="t"))

    assert [{}] == recorder.arguments


def test_arguments_that_do_not_fit_fail_for_good_without_a_call():
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    recorder = Recorder(schema=schema)
    result = called(recorder, input_mapping={"n": "content"}, retry_count=2)

    assert ("failed", "VALIDATION_ERROR", "work") == (result.status, code(result), result.error.node_id)
    assert ([], 1) == (recorder.arguments, count(result, EventKind.ATTEMPT_STARTED, "work"))


def test_a_parameter_that_was_left_out_but_is_required_does_not_fit():
    schema = {"type": "object", "properties": {"n": {}}, "required": ["n"]}

    assert "VALIDATION_ERROR" == code(called(Recorder(schema=schema), input_mapping={"n": "route"}))


def test_a_tool_that_changes_its_arguments_changes_nothing_else():
    message = a_message(content="c", structured={"list": [1]})

    async def spoil(arguments: dict[str, Any]) -> str:
        arguments["x"].append(2)
        return "spoilt"

    tool = Tool.from_schema("t", "spoils", ANYTHING, spoil)
    graph = a_line(node("tool", tool_id="t", input_mapping={"x": "structured.list"}))
    result = run_clean(Executor(graph, tools=[tool]).run(message))

    assert ({"list": [1]}, {"list": [1]}) == (result.structured, message.payload.structured)


# --- what comes out ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("output", "content"),
    [
        ("plain é", "plain é"),
        ("", ""),
        (7, "7"),
        (1.5, "1.5"),
        (True, "true"),
        (None, "null"),
        ([1, "é", None], '[1, "é", null]'),
        ({"b": 1, "a": ["x"]}, '{"b": 1, "a": ["x"]}'),
    ],
)
def test_the_output_goes_to_the_tool_result_and_as_text_or_json_to_the_content(output, content):
    payload = called(Recorder(output)).message.payload

    assert content == payload.content
    assert (True, output, None) == (payload.tool_result.success, payload.tool_result.output, payload.tool_result.error)
    assert ("t", "r:2:work") == (payload.tool_result.tool_id, payload.tool_result.call_id)


@pytest.mark.parametrize(("output", "structured"), [({"new": 1}, {"new": 1}), ({}, {}), ([1], {"old": 1})])
def test_only_an_object_becomes_structured(output, structured):
    assert structured == called(Recorder(output), a_message(content="c", structured={"old": 1})).structured


def test_everything_else_is_passed_on():
    message = a_message(content="c", task="t", route="r", metadata={"m": 1}, mine=2)
    got = called(Recorder("new"), message).message.payload.fields()
    expected = message.payload.fields()
    expected["metadata"] = {"m": 1, "exit_status": "success", "exit_message": None}
    changed = {key for key, value in expected.items() if got[key] != value}

    assert {"content", "tool_result"} == changed
    assert expected.keys() == got.keys()


@pytest.mark.parametrize("output", [float("nan"), object(), "\ud800"])
def test_an_output_that_is_no_json_is_a_validation_error(output):
    result = called(Recorder(output), retry_count=2)

    assert ("VALIDATION_ERROR", 1) == (code(result), count(result, EventKind.ATTEMPT_STARTED, "work"))


def test_an_output_that_does_not_fit_its_schema_is_a_validation_error():
    assert "VALIDATION_ERROR" == code(called(Recorder("text", output_schema={"type": "integer"})))
    assert "succeeded" == called(Recorder(3, output_schema={"type": "integer"})).status


# --- failures ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError("broken"), KeyError("k"), SystemExit(3), StopAsyncIteration()], ids=repr)
def test_whatever_a_tool_raises_is_a_tool_error_and_is_tried_again(error):
    recorder = Recorder(error, "then it worked")
    failed, retried = called(Recorder(error)), called(recorder, retry_count=1)

    assert ("failed", "TOOL_ERROR", True) == (failed.status, code(failed), failed.error.recoverable)
    assert "work" == failed.error.node_id
    assert ("succeeded", "then it worked") == (retried.status, retried.content)


@pytest.mark.parametrize("its", [ErrorCode.UNKNOWN, ErrorCode.VALIDATION_ERROR, ErrorCode.GATE_FAILED])
def test_an_error_with_a_code_of_its_own_keeps_it(its):
    result = called(Recorder(NodeError(its, "mine", details={"k": 1})))

    assert (its, "mine", {"k": 1}) == (result.error.code, result.error.message, result.error.details)


def test_a_tool_that_takes_too_long_is_cut_off_and_tried_again():
    recorder = Recorder(after_ms=50)
    result = called(recorder, timeout_ms=50, retry_count=1, retry_delay_ms=7)

    assert ("failed", "TIMEOUT", [0.0, 57.0]) == (result.status, code(result), recorder.moments)


@pytest.mark.parametrize(
    ("recorder", "config"),
    [
        (Recorder(ValueError("broken")), {}),
        (Recorder(NodeError(ErrorCode.TOOL_ERROR, "broken", recoverable=False)), {}),
        (Recorder(NodeError(ErrorCode.UNKNOWN, "broken")), {}),
        (Recorder(object()), {}),
        (Recorder(schema={"type": "object", "required": ["n"]}), {}),
    ],
    ids=["raises", "for good", "own code", "no json", "misfit"],
)
def test_continue_on_error_passes_every_failure_on_as_a_failed_result(recorder, config):
    message = a_message(content="c", structured={"k": 1})
    plain = called(recorder, message, **config)
    payload = called(recorder, message, continue_on_error=True, **config).message.payload
    told = payload.tool_result

    assert "failed" == plain.status
    assert ("c", {"k": 1}) == (payload.content, payload.structured)
    assert (False, None, plain.error.message) == (told.success, told.output, told.error)
    assert ("t", "r:2:work") == (told.tool_id, told.call_id)
    assert payload.error is None


class Unbuilt(NodeError):
    def __init__(self) -> None:
        Exception.__init__(self, "hey")


@pytest.mark.parametrize(
    ("raised", "told"),
    [
        (asyncio.CancelledError("its own"), "its own"),
        (NodeError(ErrorCode.TOOL_ERROR, "bad \ud800"), "bad ?"),
        (Unbuilt(), "hey"),
    ],
    ids=["cancelled", "surrogate", "unbuilt"],
)
def test_continue_on_error_passes_on_whatever_a_tool_raises(raised, told):
    result = called(Recorder(raised), continue_on_error=True)

    assert "succeeded" == result.status
    failed = result.message.payload.tool_result
    assert failed is not None
    assert (False, True) == (failed.success, told in str(failed.error))


def test_a_tool_that_cancels_itself_has_failed():
    assert "TOOL_ERROR" == code(called(Recorder(asyncio.CancelledError())))


def test_continue_on_error_is_a_success_of_the_step_and_degrades_nothing():
    result = called(Recorder(ValueError("broken")), continue_on_error=True)

    assert ("succeeded", None, 3) == (result.status, result.error, result.nodes_executed)


def test_continue_on_error_does_not_pass_on_an_attempt_that_was_cut_off():
    result = called(Recorder(after_ms=50), continue_on_error=True, timeout_ms=50)

    assert ("failed", "TIMEOUT") == (result.status, code(result))


def test_continue_on_error_does_not_outlive_the_run():
    async def main() -> RunResult:
        executor = an_executor(a_line(node("tool", tool_id="t", continue_on_error=True)), Recorder(after_ms=50))
        task = asyncio.create_task(executor.run(a_message(content="c"), run_id="r"))
        await asyncio.sleep(0.01)
        executor.cancel("r")
        return await task

    assert "cancelled" == run_clean(main()).status


# --- the idempotency key -------------------------------------------------------------------------------


def test_the_key_is_the_same_in_every_attempt():
    recorder = Recorder(ValueError(), ValueError(), "third")
    result = called(recorder, retry_count=2)

    assert ["r:2:work"] * 3 == recorder.keys
    assert "r:2:work" == result.message.payload.tool_result.call_id
    assert {("r", "work")} == {(context.run_id, context.node_id) for context in recorder.contexts}


def test_each_visit_has_a_key_of_its_own():
    recorder = Recorder()
    nodes = {"work": node("tool", tool_id="t"), "again": node("transform")}
    edges = [("start", "work"), ("work", "again"), ("again", "end", "variables.get('x')"), ("again", "work")]
    graph = a_graph(nodes, edges, allow_cycles=True)
    run_clean(an_executor(graph, recorder, max_steps=6).run(a_message(content="c"), run_id="r"))

    assert ["r:2:work", "r:4:work", "r:6:work"] == recorder.keys


@pytest.mark.parametrize(
    ("wrapper", "keys"),
    [
        (node("fanout", target_nodes=["work", "work"], retry_count=1), ["r:2.1:work", "r:2.2:work"]),
        (node("loop", body_node="work", condition_type="until_success", max_iterations=2, retry_count=1),
         ["r:2.1:work", "r:2.2:work"]),
        (node("timeout", inner_node="work", retry_count=1), ["r:2:work"]),
    ],
    ids=["fanout", "loop", "timeout"],
)  # fmt: skip
def test_the_key_is_the_same_in_every_attempt_of_a_wrapper(wrapper, keys):
    recorder = Recorder(ValueError("broken"))
    graph = a_graph({"wrap": wrapper, "work": node("tool", tool_id="t")}, [("start", "wrap"), ("wrap", "end")])
    result = run_clean(an_executor(graph, recorder).run(a_message(content="c"), run_id="r"))

    assert ("failed", "TOOL_ERROR", "work") == (result.status, code(result), result.error.node_id)
    assert keys * 2 == recorder.keys


# --- misuse --------------------------------------------------------------------------------------------


def test_a_list_of_tools_joins_the_built_in_ones():
    graph = a_line(
        node("tool", tool_id="t"), node("tool", tool_id="calculator", input_mapping={"expression": "content"})
    )

    recorder = Recorder("6 * 7")
    result = go(Executor(graph, tools=[recorder.tool]))

    assert (["start", "work", "work2", "end"], "succeeded") == (visited(result), result.status)


def test_a_message_that_holds_a_tool_result_is_replaced_not_kept():
    first = called(Recorder("one")).message.payload
    second = called(Recorder(ValueError("no")), Message(trace_id="t", source_node="u", payload=first),
                    continue_on_error=True).message.payload  # fmt: skip

    assert isinstance(second, MessagePayload)
    assert ("one", False, None) == (second.content, second.tool_result.success, second.tool_result.output)
