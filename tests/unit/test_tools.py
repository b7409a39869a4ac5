"""Tools: what goes in, what comes out, and that nothing a function does can be worse than a NodeError."""

from __future__ import annotations

import asyncio
import datetime
import enum
import functools
import threading
from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, field_validator
from typing_extensions import TypedDict

from tests.support.runs import run_clean
from tinyllm.errors import ErrorCode, ModelError, NodeError, SchemaError, UsageError
from tinyllm.schemas import Schema
from tinyllm.tools import Tool, ToolContext, ToolRegistry, default_tools, tool
from tinyllm.tools.failures import MESSAGE_CHARS_MAX
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Level(enum.IntEnum):
    LOW = 1


class Person(BaseModel):
    name: str
    age: Annotated[int, Field(ge=0)] = 3

    @field_validator("name")
    @classmethod
    def not_nobody(cls, name: str) -> str:
        if name == "nobody":
            raise ValueError("nobody is no name")
        return name


@dataclass
class Point:
    x: int
    y: int = 0


class Options(TypedDict):
    verbose: bool


class Tree(BaseModel):
    children: list[Tree] = []


def double(n: int) -> int:
    """Double a number.

    More about it.
    """
    return n * 2


def call(function: Any, context: ToolContext | None = None, /, **arguments: Any) -> Any:
    made = function if isinstance(function, Tool) else tool(function)
    return run_clean(made.call(arguments, context))


def failure(function: Any, /, **arguments: Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        call(function, **arguments)
    assert len(caught.value.message) <= MESSAGE_CHARS_MAX
    return caught.value


# --- making ---------------------------------------------------------------------------------------------


def test_a_typed_function_is_a_tool():
    made = tool(double)

    assert "double" == made.id
    assert "Double a number." == made.description
    assert {"n": {"title": "N", "type": "integer"}} == made.input_schema["properties"]
    assert ["n"] == made.input_schema["required"]
    assert made.input_schema["additionalProperties"] is False
    assert {"type": "integer"} == made.output_schema
    assert 4 == made(2)
    assert 4 == call(made, n=2)


def test_a_decorated_tool_can_be_named_and_described():
    @tool(id="math.double", description="Twice.", aliases={"input": "n"})
    async def anything(n: int):
        return n * 2

    assert ("math.double", "Twice.") == (anything.id, anything.description)
    assert anything.output_schema is None
    assert 6 == call(anything, input=3)
    assert "'input' was unexpected" in failure(anything, input=3, n=3).message


def test_defaults_make_parameters_optional_and_are_told():
    def greet(name: str, *, times: Annotated[int, Field(description="How often")] = 2, sep: float = 1.5) -> str:
        return f"{name}{times}{sep}"

    made = tool(greet)
    assert ["name"] == made.input_schema["required"]
    assert 2 == made.input_schema["properties"]["times"]["default"]
    assert "How often" == made.input_schema["properties"]["times"]["description"]
    assert "a21.5" == call(made, name="a")
    assert "a31.5" == call(made, name="a", times=3)


def test_the_schema_given_out_is_a_copy():
    made = tool(double)
    made.input_schema["properties"].clear()

    assert 2 == call(made, n=1)
    assert "VALIDATION_ERROR" == failure(made, n="x").code


@pytest.mark.parametrize("name", ["schema", "json", "copy", "model_config", "_hidden", "self", "class_"])
def test_a_parameter_may_have_any_name(name):
    space: dict[str, Any] = {}
    exec(f"def f({name}: int) -> int:\n    return {name}", space)

    assert 5 == call(space["f"], **{name: 5})


def test_the_context_is_passed_and_is_not_in_the_schema():
    def key(n: int, context: ToolContext, again: ToolContext | None = None) -> str:
        assert again is context
        return context.idempotency_key

    made = tool(key)
    assert ["n"] == list(made.input_schema["properties"])
    assert "run:1:node" == call(made, n=1)
    assert "r:2:x" == call(made, ToolContext(idempotency_key="r:2:x", run_id="r", node_id="x"), n=1)
    assert "VALIDATION_ERROR" == failure(made, n=1, context={}).code


def _variadic(*args: int): ...
def _named(**kwargs: int): ...
def _positional(a: int, /): ...
def _bare(a): ...
def _field(a: int = Field(default=1)): ...
def _strange(a: threading.Lock): ...
def _callback(a: Any) -> threading.Thread: ...  # type: ignore[empty-body]
def _unknown(a: NoSuchType): ...  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_variadic, ["args", "list"]),
        (_named, ["kwargs", "dict"]),
        (_positional, ["parameter a", "remove the /"]),
        (_bare, ["parameter a", "annotation"]),
        (_field, ["parameter a", "Annotated"]),
        (_strange, ["parameter a", "cannot read"]),
        (_callback, ["returns"]),
        (_unknown, ["NoSuchType"]),
        (functools.partial(double, 1), ["wrap it"]),
        (Person, ["wrap it"]),
        (tool(double), ["already"]),
    ],
)
def test_what_cannot_be_a_tool_is_refused_with_what_to_do(function, words):
    with pytest.raises(UsageError) as caught:
        tool(id="named")(function)

    for word in words:
        assert word in str(caught.value)


def test_generators_are_refused_when_the_tool_is_made():
    def many(n: int) -> Any:
        yield n

    async def many_later(n: int) -> Any:
        yield n

    for function in (many, many_later):
        with pytest.raises(UsageError, match="generator"):
            tool(function)
        with pytest.raises(UsageError, match="generator"):
            Tool.from_schema("t", "", {"type": "object"}, function)


@pytest.mark.parametrize("tool_id", ["", "A", "getWeather", "1a", "a b", "a\n", "é", "_a", "a-b"])
def test_an_id_is_like_a_node_id(tool_id):
    with pytest.raises(UsageError, match="no id of a tool"):
        tool(id=tool_id)(double)


# --- arguments ------------------------------------------------------------------------------------------


def echo_of(kind: Any) -> Tool:
    def seen(value) -> str:
        return repr(value)

    seen.__annotations__ = {"value": kind, "return": str}
    return tool(seen)


@pytest.mark.parametrize(
    ("kind", "value", "seen"),
    [
        (int, 3, "3"),
        (int, 3.0, "3"),
        (float, 3, "3.0"),
        (Colour, "red", "<Colour.RED: 'red'>"),
        (Level, 1, "<Level.LOW: 1>"),
        (Literal["a", 2], 2, "2"),
        (datetime.date, "2024-01-02", "datetime.date(2024, 1, 2)"),
        (datetime.datetime, "2024-01-02T03:04:05", "datetime.datetime(2024, 1, 2, 3, 4, 5)"),
        (tuple[int, str], [1, "a"], "(1, 'a')"),
        (set[int], [2], "{2}"),
        (frozenset[str], ["a"], "frozenset({'a'})"),
        (Decimal, "1.50", "Decimal('1.50')"),
        (bytes, "ab", "b'ab'"),
        (Person, {"name": "A"}, "Person(name='A', age=3)"),
        (Point, {"x": 1}, "Point(x=1, y=0)"),
        (Options, {"verbose": True}, "{'verbose': True}"),
        (Tree, {"children": [{}]}, "Tree(children=[Tree(children=[])])"),
        (list[Person | int], [1, {"name": "B", "age": 1}], "[1, Person(name='B', age=1)]"),
        (int | str, "42", "'42'"),
        (bool | int, 1, "1"),
        (dict[str, Any], {"a": [None]}, "{'a': [None]}"),
        (int | None, None, "None"),
        (Any, {"a": 1}, "{'a': 1}"),
    ],
)
def test_json_arrives_as_what_the_annotation_says(kind, value, seen):
    assert seen == call(echo_of(kind), value=value)


@pytest.mark.parametrize(
    ("kind", "value", "words"),
    [
        (int, "42", ['"42"', "integer"]),
        (int, True, ["integer"]),
        (int, 1.5, ["integer"]),
        (bool, 1, ["boolean"]),
        (str, 1, ["string"]),
        (float, "1", ["number"]),
        (Colour, "green", ["green", "red"]),
        (Literal["a"], "b", ["a"]),
        (datetime.date, "tomorrow", ["date"]),
        (datetime.date, 5, ["string"]),
        (set[int], [1, 1], ["unique"]),
        (tuple[int, int], [1], ["2"]),
        (Annotated[int, Field(ge=3)], 2, ["minimum of 3"]),
        (Person, {"name": "A", "age": -1}, ["value.age", "minimum"]),
        (Person, {"name": "nobody"}, ["value.name", "nobody is no name"]),
        (Person, [], ["object"]),
        (list[int], [1, "x" * 5000], ["value[1]", "integer"]),
        (str, "x\ud800", ["surrogate"]),
        (float, float("nan"), ["nan"]),
        (Any, (1,), ["tuple"]),
        (Any, object(), ["object"]),
    ],
)
def test_arguments_that_do_not_fit_are_refused_by_name(kind, value, words):
    error = failure(echo_of(kind), value=value)

    assert (ErrorCode.VALIDATION_ERROR, False) == (error.code, error.recoverable)
    for word in words:
        assert word in error.message
    if isinstance(value, int | str | list) and "surrogate" not in words:
        assert "value" in error.message


def test_a_missing_and_an_unknown_parameter_are_named_with_what_the_tool_takes():
    assert '"n" is a required property. It takes n (required)' in failure(double).message
    assert "'m' was unexpected" in failure(double, n=1, m=2).message


class BadMapping(dict[str, Any]):
    def keys(self) -> Any:
        raise RuntimeError("no keys today")

    __iter__ = keys


@pytest.mark.parametrize("arguments", [None, 5, "text", [1], {1: 2}, {"n": {1}}, BadMapping(n=1)])
def test_arguments_that_are_no_json_object_are_refused(arguments):
    with pytest.raises(NodeError, match="tool 'double'") as caught:
        run_clean(tool(double).call(arguments))

    assert caught.value.code is ErrorCode.VALIDATION_ERROR


@given(json_values())
def test_any_json_comes_through_a_tool_as_it_is(value):
    def same(value: Any) -> Any:
        return value

    assert value == call(same, value=value)


def test_arguments_and_output_are_shared_with_nobody():
    kept: list[Any] = []

    async def keep(value: list[int]) -> list[int]:
        kept.append(value)
        return value

    mine = [1]
    output = call(keep, value=mine)
    kept[0].append(2)
    assert ([1], [1]) == (mine, output)


# --- what comes back ------------------------------------------------------------------------------------


def giver(value: Any, kind: Any = None) -> Tool:
    def give():
        return value

    if kind is not None:
        give.__annotations__ = {"return": kind}
    return tool(give)


@pytest.mark.parametrize(
    ("value", "kind", "output"),
    [
        ((1, "a"), tuple[int, str], [1, "a"]),
        (Person(name="A"), Person, {"name": "A", "age": 3}),
        ([Point(1)], list[Point], [{"x": 1, "y": 0}]),
        (Colour.RED, Colour, "red"),
        (datetime.date(2024, 1, 2), datetime.date, "2024-01-02"),
        ({1}, set[int], [1]),
        (None, type(None), None),
        (1, float, 1.0),
        (True, int, 1),
        ((1, (2,)), None, [1, [2]]),
        ((1, (2,)), Any, [1, [2]]),
        ({"p": Person(name="A")}, None, {"p": {"name": "A", "age": 3}}),
        (None, None, None),
    ],
)
def test_output_becomes_json(value, kind, output):
    assert output == call(giver(value, kind))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("x", int),
        ([1, "x"], list[int]),
        (3, type(None)),
        (float("nan"), float),
        (float("inf"), None),
        ((float("nan"),), Any),
        (object(), None),
        (object(), Any),
        (b"\xff", None),
        ("\ud800", str),
        (2**5000, int),
        (-1, Annotated[int, Field(ge=0)]),
    ],
)
def test_output_that_is_no_json_or_does_not_fit_is_refused(value, kind):
    error = failure(giver(value, kind))

    assert ErrorCode.VALIDATION_ERROR is error.code
    assert "output" in error.message


def test_output_that_contains_itself_is_refused():
    loop: list[Any] = []
    loop.append(loop)

    assert ErrorCode.VALIDATION_ERROR is failure(giver(loop)).code


# --- what a function may do -----------------------------------------------------------------------------


class Unprintable(Exception):
    def __str__(self) -> str:
        raise SystemExit("even this")


class Sudden(BaseException): ...


RAISED = [
    ValueError("x" * 10_000),
    ValueError("\ud800"),
    Unprintable(),
    StopIteration(1),
    SystemExit(3),
    GeneratorExit(),
    Sudden("now"),
    RecursionError(),
    TimeoutError("late"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("how", ["sync", "async", "async after a wait", "awaitable"])
def test_whatever_a_function_raises_is_a_tool_error(error, how):
    def fail() -> int:
        raise error

    async def fail_later() -> int:
        if how == "async after a wait":
            await asyncio.sleep(1)
        raise error

    def fail_by_another():
        return fail_later()

    function = {"sync": fail, "awaitable": fail_by_another}.get(how, fail_later)
    told = failure(function)
    assert (ErrorCode.TOOL_ERROR, True) == (told.code, told.recoverable)
    assert "tool 'fail" in told.message
    # A coroutine cannot raise StopIteration; Python makes it a RuntimeError.
    if not isinstance(error, StopIteration):
        assert type(error).__name__ in told.message
        assert type(error).__name__ == told.details["exception"]
    told.message.encode()


def test_a_keyboard_interrupt_passes_through_an_async_function_only():
    def fail() -> int:
        raise KeyboardInterrupt

    async def fail_here() -> int:
        raise KeyboardInterrupt

    assert ErrorCode.TOOL_ERROR is failure(fail).code
    coroutine = tool(fail_here).call({})
    with pytest.raises(KeyboardInterrupt):
        drive(coroutine)


def drive(coroutine: Any) -> Any:
    """Run a coroutine that waits for nothing, with a task around it that is nobody's."""

    async def outer() -> Any:
        try:
            return await coroutine
        except KeyboardInterrupt as error:
            return error

    result = run_clean(outer())
    if isinstance(result, BaseException):
        raise result
    return result


@pytest.mark.parametrize(
    "error",
    [
        NodeError(ErrorCode.TOOL_ERROR, "never", recoverable=False),
        NodeError(ErrorCode.TIMEOUT, "later", details={"retry_after_s": 3}),
        ModelError("down"),
    ],
)
def test_a_node_error_passes_through_unchanged(error):
    def fail() -> int:
        raise error

    async def fail_here() -> int:
        raise error

    assert error is failure(fail)
    assert error is failure(fail_here)


def test_a_cancellation_that_nobody_asked_for_is_the_tool_s_failure():
    def fail() -> int:
        raise asyncio.CancelledError("mine")

    async def fail_here() -> int:
        raise asyncio.CancelledError("mine")

    for function in (fail, fail_here):
        with pytest.raises(NodeError, match="mine") as caught:
            call(function)
        assert ErrorCode.TOOL_ERROR is caught.value.code


def test_cancelling_the_caller_stops_an_async_tool():
    seen: list[str] = []

    async def wait() -> int:
        try:
            await asyncio.sleep(100)
        finally:
            seen.append("stopped")
        return 1

    async def main() -> None:
        task = asyncio.create_task(tool(wait).call({}))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_clean(main())
    assert ["stopped"] == seen


def test_a_cancelled_sync_tool_ends_unseen():
    def fail() -> int:
        raise SystemExit("unseen")

    async def main() -> None:
        task = asyncio.create_task(tool(fail).call({}))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run_clean(main())


def test_a_sync_tool_runs_outside_the_loop_and_an_async_one_inside():
    def outside() -> bool:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return True
        return False

    async def inside() -> bool:
        return asyncio.get_running_loop() is not None

    assert call(outside)
    assert call(inside)


def test_a_sync_tool_runs_in_a_real_thread_on_a_real_loop():
    def where() -> bool:
        return threading.current_thread() is threading.main_thread()

    assert asyncio.run(tool(where).call({})) is False


def test_closing_a_waiting_call_raises_nothing():
    async def wait() -> None:
        await asyncio.get_running_loop().create_future()

    async def main() -> Any:
        waiting = tool(wait).call({})
        waiting.send(None)
        return waiting

    run_clean(main()).close()


def test_a_wrapped_async_function_is_awaited():
    async def later(n: int) -> int:
        await asyncio.sleep(1)
        return n

    @functools.wraps(later)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return later(*args, **kwargs)

    assert 5 == call(wrapper, n=5)


def test_a_method_can_be_a_tool():
    class Counter:
        count = 0

        def add(self, n: int) -> int:
            self.count += n
            return self.count

    counter = Counter()
    add = tool(counter.add)
    assert [2, 5] == [call(add, n=2), call(add, n=3)]


# --- explicit schemas -----------------------------------------------------------------------------------

NAMED = {"type": "object", "properties": {"user-name": {"type": "string"}}, "required": ["user-name"]}


def test_a_tool_of_schemas_gets_its_arguments_as_one_dict():
    made = Tool.from_schema("greet", "Greets.", NAMED, lambda given: given["user-name"].upper(), {"type": "string"})

    assert "ZOË" == call(made, **{"user-name": "Zoë"})
    assert "user-name" in failure(made, name="x").message
    assert NAMED == made.input_schema
    assert {"type": "string"} == made.output_schema


def test_a_tool_of_schemas_can_ask_for_the_context_and_be_async():
    async def key(given: dict[str, Any], *, context: ToolContext) -> str:
        return context.node_id

    assert "node" == call(Tool.from_schema("key", "", {"type": "object"}, key))


def test_the_output_of_a_tool_of_schemas_is_checked():
    made = Tool.from_schema(
        "t",
        "",
        {"type": "object"},
        lambda given: {"a": (1, "x")},
        {"properties": {"a": {"items": {"type": "integer"}}}},
    )

    assert "a[1]" in failure(made).message


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"type": "nonsense"}, "nonsense"),
        ({"type": "string"}, "object"),
        ({}, "object"),
        ({"type": "object", "$ref": "https://example.com/x"}, "example.com"),
        ({"type": "object", "$ref": "#"}, "without end"),
        ([], "dict"),
    ],
)
def test_a_bad_schema_is_refused_when_the_tool_is_made(schema, word):
    with pytest.raises(UsageError, match=word):
        Tool.from_schema("t", "", schema, lambda given: 1)
    if word != "object":
        with pytest.raises(UsageError, match=f"output.*{word}"):
            Tool.from_schema("t", "", {"type": "object"}, lambda given: 1, schema)


def test_what_is_no_function_is_refused():
    with pytest.raises(UsageError, match="function"):
        Tool.from_schema("t", "", {"type": "object"}, 5)  # type: ignore[arg-type]


# --- schemas --------------------------------------------------------------------------------------------


def doubling(levels: int, op: str = "allOf") -> dict[str, Any]:
    parts: dict[str, Any] = {f"a{i}": {op: [{"$ref": f"#/$defs/a{i + 1}"}] * 2} for i in range(levels)}
    return {"$defs": {**parts, f"a{levels}": {"type": "integer"}}, "$ref": "#/$defs/a0"}


def chained(length: int) -> dict[str, Any]:
    parts: dict[str, Any] = {f"a{i}": {"properties": {"a": {"$ref": f"#/$defs/a{i + 1}"}}} for i in range(length)}
    return {"$defs": {**parts, f"a{length}": {}}, "$ref": "#/$defs/a0"}


def nested(levels: int, value: Any) -> Any:
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("schema", "word"),
    [
        ({"$ref": "#"}, "without end"),
        ({"allOf": [{"$ref": "#"}]}, "without end"),
        ({"not": {"anyOf": [{"if": {"$ref": "#"}}]}}, "without end"),
        ({"dependentSchemas": {"a": {"$ref": "#"}}}, "without end"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "without end"),
        ({"properties": {"a": {"oneOf": [{"$ref": "#/properties/a"}]}}}, "without end"),
        ({"$ref": "https://example.com/schema"}, "example.com"),
        ({"$ref": "other.json"}, "itself"),
        ({"$ref": "#anchor"}, "itself"),
        ({"$ref": 5}, "itself"),
        ({"properties": {"a": {"$ref": "file:///etc/passwd"}}}, "itself"),
        ({"$ref": "#/$defs/x"}, "names nothing"),
        ({"allOf": [{}], "$ref": "#/allOf/7"}, "names nothing"),
        ({"allOf": [{}], "$ref": "#/allOf/²"}, "names nothing"),
        ({"allOf": [{}], "$ref": "#/allOf"}, "names no schema"),
        ({"$dynamicRef": "#x"}, "use \\$ref"),
        ({"properties": {"a": {"$id": "https://example.com"}}}, "id"),
        ({"$schema": "https://example.com/draft"}, "schema"),
        ({"$schema": 5}, "schema"),
        ({"type": "nonsense"}, "type: "),
        ({"pattern": "(a"}, "pattern"),
        ({"pattern": "(?=a)b"}, "pattern"),
        ({"pattern": r"(a)\1"}, "pattern"),
        ({"pattern": "(?:a{1000}){1000}"}, "pattern"),
        ({"minimum": float("nan")}, "JSON"),
        ({1: 2}, "JSON"),
        ({"enum": ["x" * 100_000]}, "at most 100000"),
        (nested(65, {}), "JSON"),
        (doubling(40), "expands"),
        (doubling(1000, "anyOf"), "expands"),
        (chained(1000), "in a row"),
        ("text", "dict"),
        (None, "dict"),
    ],
)
def test_a_schema_that_is_wrong_or_unbounded_is_refused(schema, word):
    with pytest.raises(SchemaError, match=word):
        Schema(schema)


@pytest.mark.parametrize(
    ("schema", "good", "bad"),
    [
        ({}, 1, None),
        ({"type": "integer"}, 2**4000, "1"),
        ({"properties": {"next": {"$ref": "#"}}, "required": ["v"]}, {"v": 1, "next": {"v": 2}}, {"v": 1, "next": {}}),
        ({"$defs": {"a/b~c": {"type": "null"}}, "$ref": "#/$defs/a~1b~0c"}, None, 1),
        ({"$defs": {"a b": {"type": "null"}}, "$ref": "#/$defs/a%20b"}, None, 1),
        ({"properties": {"$ref": {"type": "null"}}}, {"$ref": None}, {"$ref": 1}),
        ({"enum": [{"$ref": "https://example.com"}]}, {"$ref": "https://example.com"}, 1),
        ({"$id": "https://example.com", "type": "null"}, None, 1),
        ({"$schema": "http://json-schema.org/draft-07/schema#", "items": [{"type": "null"}]}, [None], [1]),
        ({"pattern": "^(a+)+$"}, "a" * 1000, "a" * 100_000 + "b"),
        ({"$defs": {"t": True}, "items": {"$ref": "#/$defs/t"}, "type": "array"}, [1], 1),
        (doubling(10), 1, "x"),
    ],
)
def test_a_schema_tells_what_fits(schema, good, bad):
    made = Schema(schema)

    assert [] == made.problems(good)
    if bad is not None:
        assert 1 == len(made.problems(bad))


def test_problems_have_a_path_and_are_few_and_short():
    made = Schema({"properties": {"a": {"items": {"type": "integer"}}}})

    assert ['a[0]: "x" is not of type "integer"'] == made.problems({"a": ["x", 1]})
    many = made.problems({"a": ["x" * 100_000] * 50})
    assert 10 == len(many)
    assert all(len(problem) <= 300 and problem.endswith('is not of type "integer"') for problem in many)


def test_a_value_that_is_no_json_is_a_problem():
    for value in (float("nan"), (1,), "\ud800", {1: 2}, nested(65, 1)):
        (problem,) = Schema({}).problems(value)
        assert "no JSON" in problem


@pytest.mark.parametrize("op", ["allOf", "anyOf", "oneOf"])
def test_a_verdict_on_a_deep_value_takes_no_list(op):
    made = Schema({"properties": {"a": {op: [{"$ref": "#"}, {"$ref": "#"}]}}, "type": ["object", "integer"]})

    assert ["does not fit the schema (too large to say where)"] == made.problems(nested(60, "x"))
    assert (op == "oneOf") is bool(made.problems(nested(60, 1)))
    assert "too large" not in made.problems(nested(2, "x"))[0]


def test_a_very_large_value_takes_no_list():
    (problem,) = Schema({"items": {"type": "integer"}}).problems(["x"] * 600_000)

    assert "too large to say where" in problem


def test_a_schema_is_not_changed_from_outside():
    given = {"type": "object", "properties": {"a": {"type": "integer"}}}
    made = Schema(given)
    given["properties"].clear()
    made.as_dict()["properties"].clear()

    assert 1 == len(made.problems({"a": "x"}))
    assert {"a": {"type": "integer"}} == made.as_dict()["properties"]


schemas = st.recursive(
    st.sampled_from([{}, {"$ref": "#"}, {"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}, {"type": "integer"}, True, 5]),
    lambda inner: st.dictionaries(
        st.sampled_from(["allOf", "anyOf", "not", "properties", "items", "$defs", "if", "a", "b", "unevaluatedItems"]),
        inner | st.lists(inner, min_size=1, max_size=2),
        max_size=3,
    ),
    max_leaves=12,
)


@given(schemas, json_values())
def test_any_schema_is_refused_or_gives_a_verdict(schema, value):
    try:
        made = Schema(schema)
    except SchemaError:
        return
    assert len(made.problems(value)) <= 10


# --- registry -------------------------------------------------------------------------------------------


def test_a_registry_holds_tools_in_order():
    registry = ToolRegistry()

    @registry.register
    def second(n: int) -> int:
        return n

    registry.register(tool(double))
    assert ("second", "double") == registry.ids
    assert [second, registry.get("double")] == list(registry)
    assert 2 == len(registry)
    assert "double" in registry
    assert "other" not in registry
    assert isinstance(second, Tool)


def test_an_id_is_taken_once_unless_replaced():
    registry = ToolRegistry([tool(double), tool(id="other")(double)])
    new = tool(double)

    with pytest.raises(UsageError, match="'double' already"):
        registry.register(new)
    assert registry.get("double") is not new
    registry.register(new, replace=True)
    assert registry.get("double") is new
    assert ("double", "other") == registry.ids


def test_an_unknown_id_is_told_with_the_known_and_the_nearest():
    with pytest.raises(UsageError, match=r"known are: double\. Did you mean 'double'\?"):
        ToolRegistry([tool(double)]).get("duoble")
    with pytest.raises(UsageError, match="known are: none"):
        ToolRegistry().get("x" * 10_000)


def test_registries_share_nothing():
    first = default_tools()
    first.register(double)

    assert "double" not in default_tools()
