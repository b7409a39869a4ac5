"""JSON tools: parse, query, validate, transform, merge, flatten.

Every `data` is JSON or its text. Text has at most 1,000,000 characters and must be JSON to the letter: NaN,
infinities, duplicate keys, numbers too large for a float or 4,096 bits, lone surrogates, and nesting over 64
are refused. So is a result that would be larger than what JSON text of 1,000,000 characters can hold.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field
from typing_extensions import TypedDict

from tinyllm.errors import NodeError, SchemaError
from tinyllm.message import checked_json
from tinyllm.schemas import Schema
from tinyllm.tools.base import Tool
from tinyllm.tools.decorator import tool
from tinyllm.tools.failures import refusal, text_of

TEXT_CHARS_MAX = 1_000_000
PATH_CHARS_MAX = 1_000
OPERATIONS_MAX = 100
SIZE_MAX = 1_000_000

Data = Annotated[dict[str, Any] | list[Any] | str, Field(description="A JSON object or list, or JSON text")]
Path = Annotated[str, Field(max_length=PATH_CHARS_MAX, description="Like $.users[0].name, users.0.name, users[*].name")]

OF_DATA = {"input": "data"}


# --- reading -------------------------------------------------------------------------------------------


def parsed(text: str) -> Any:
    """The value of a JSON text; raises NodeError (`TOOL_ERROR`, not recoverable) that says what is wrong where."""
    if len(text) > TEXT_CHARS_MAX:
        raise refusal(f"a text of {len(text)} characters; at most {TEXT_CHARS_MAX}")
    try:
        value = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_no_constant, parse_float=_finite, parse_int=_small
        )
        return checked_json(value)
    except json.JSONDecodeError as error:
        raise refusal(f"no JSON: {error.msg} (line {error.lineno}, column {error.colno})") from None
    except ValueError as error:
        raise refusal(f"no JSON that can be used: {text_of(error)}") from None
    except RecursionError:
        raise refusal("no JSON that can be used: nested too deep") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {repeated[:100]!r} stands twice in one object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {digits[:20]} is too large")
    return value


def _small(digits: str) -> int:
    if len(digits) > 1_300:
        raise ValueError(f"an integer of {len(digits)} digits is too large")
    return int(digits)


def _data(data: Any) -> Any:
    return parsed(data) if isinstance(data, str) else data


def _object(data: Any, which: str) -> dict[str, Any]:
    value = _data(data)
    if not isinstance(value, dict):
        raise refusal(f"{which} is no JSON object but {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "a list", str: "text", bool: "a boolean", type(None): "null"}
    return kinds.get(type(value), "a number")


@tool(aliases=OF_DATA)
async def json_parse(
    data: Annotated[str, Field(max_length=TEXT_CHARS_MAX, description="JSON text")],
    strict: Annotated[bool, Field(description="Whether to fail; if not, what is no JSON gives null")] = True,
) -> Any:
    """Parse JSON text and return its value."""
    if strict:
        return parsed(data)
    try:
        return parsed(data)
    except NodeError:
        return None


# --- paths ---------------------------------------------------------------------------------------------

_STEP = re.compile(r"""\.?(?:\[(-?\d{1,9}|\*)\]|\['([^']*)'\]|\["([^"]*)"\]|([^.\[\]'"]+))""", re.ASCII)


class _All:
    """The step `*`."""


ALL = _All()
Step = str | int | _All


def _steps(path: str) -> list[Step]:
    """`$.a[0]['b'].*` as steps; a number between dots is a key of an object and an index of a list."""
    start = 1 if path.startswith("$") else 0
    steps: list[Step] = []
    while start < len(path):
        match = _STEP.match(path, start)
        if match is None or (steps and path[start] not in ".["):
            raise refusal(f"the path {path!r} is wrong at column {start + 1}; use .key, [0], ['key'] and *")
        index, single, double, name = match.groups()
        if index is not None:
            steps.append(ALL if index == "*" else int(index))
        elif name is not None:
            steps.append(ALL if name == "*" else name)
        else:
            steps.append(single if single is not None else double)
        start = match.end()
    return steps


def _found(value: Any, step: Step) -> list[Any]:
    if isinstance(step, _All):
        return list(value.values()) if isinstance(value, dict) else list(value) if isinstance(value, list) else []
    if isinstance(value, dict):
        key = str(step)
        return [value[key]] if key in value else []
    index = _index(step)
    if isinstance(value, list) and index is not None and -len(value) <= index < len(value):
        return [value[index]]
    return []


def _index(step: Step) -> int | None:
    if isinstance(step, int):
        return step
    return int(step) if isinstance(step, str) and re.fullmatch(r"-?[0-9]{1,9}", step) else None


@tool(aliases=OF_DATA)
async def json_query(data: Data, jsonpath: Path) -> list[Any]:
    """Find the values at a path: `.key`, `[0]`, `[-1]`, `['key']` and `*`; an empty list if there are none."""
    values = [_data(data)]
    for step in _steps(jsonpath):
        values = [inner for value in values for inner in _found(value, step)]
    return values


# --- judging -------------------------------------------------------------------------------------------


class Verdict(TypedDict):
    """Whether data fits a schema, and what is wrong, at most ten problems."""

    valid: bool
    errors: list[str]


@tool(aliases=OF_DATA)
async def json_validate(data: Data, schema: dict[str, Any]) -> Verdict:
    """Validate JSON data against a JSON Schema; the problems are the result, not a failure."""
    try:
        problems = Schema(schema).problems(_data(data))
    except SchemaError as error:
        raise refusal(f"the schema is wrong: {error}") from None
    return Verdict(valid=not problems, errors=problems)


# --- changing ------------------------------------------------------------------------------------------


class SetOperation(TypedDict):
    """Put `value` at `path`."""

    op: Literal["set"]
    path: Path
    value: Any


class DeleteOperation(TypedDict):
    """Remove what is at `path`."""

    op: Literal["delete"]
    path: Path


#: `from` is a word of Python's own, so this one cannot be a class.
FromTo = TypedDict("FromTo", {"op": Literal["rename", "copy", "move"], "from": Path, "to": Path})


@tool(aliases=OF_DATA)
async def json_transform(
    data: Data,
    operations: Annotated[
        list[SetOperation | DeleteOperation | FromTo],
        Field(max_length=OPERATIONS_MAX, description='Like {"op": "set", "path": "$.a", "value": 1}, in order'),
    ],
) -> Any:
    """Change JSON data: set (path, value), delete (path), copy and move (from, to: paths), rename (from, to: a key
    of the outermost object). A path that names nothing fails.
    """
    change = _Change.of(checked_json(_data(data)))
    for operation in operations:
        change.apply(dict(operation))
    return change.value


@dataclass(slots=True)
class _Change:
    """A value under change, and how large it may have become: what is put in counts, what is taken out does not."""

    value: Any
    size: int

    @classmethod
    def of(cls, value: Any) -> _Change:
        return cls(value, _size(value))

    def apply(self, operation: dict[str, Any]) -> None:
        match operation:
            case {"op": "set", "path": path, "value": value}:
                self._put(path, value)
            case {"op": "delete", "path": path}:
                holder, key = self._place(path)
                _require_there(holder, key, path)
                del holder[key]
            case {"op": "rename", "from": old, "to": new}:
                self._rename(old, new)
            case {"op": "copy" | "move" as op, "from": source, "to": target}:
                holder, key = self._place(source)
                _require_there(holder, key, source)
                value = holder[key]
                if op == "move":
                    del holder[key]
                self._put(target, value)

    def _rename(self, old: str, new: str) -> None:
        if not isinstance(self.value, dict) or old not in self.value:
            raise refusal(f"there is no key {old!r} in the outermost object")
        self.value[new] = self.value.pop(old)

    def _put(self, path: str, value: Any) -> None:
        # Measured before it is copied: copying a value into itself doubles it each time.
        self.size += _size(value)
        if self.size > SIZE_MAX:
            raise refusal(f"the result is larger than {SIZE_MAX}")
        try:
            value = checked_json(value)
        except ValueError as error:
            raise refusal(f"the result cannot be used: {error}") from None
        holder, key = self._place(path)
        if isinstance(holder, list) and not -len(holder) <= key < len(holder):
            raise refusal(f"the path {path!r} names no item of the list")
        holder[key] = value

    def _place(self, path: str) -> tuple[Any, Any]:
        """The object or list that holds the last step of `path`, and its key or index there."""
        *steps, last = _steps(path) or [""]
        holder = self.value
        for step in steps:
            inner = [] if isinstance(step, _All) else _found(holder, step)
            if not inner:
                raise refusal(f"the path {path!r} names nothing")
            holder = inner[0]
        if isinstance(holder, dict) and path not in ("", "$") and not isinstance(last, _All):
            return holder, str(last)
        if isinstance(holder, list) and (index := _index(last)) is not None:
            return holder, index
        raise refusal(f"the path {path!r} names no place in an object or a list")


def _require_there(holder: Any, key: Any, path: str) -> None:
    if not (key in holder if isinstance(holder, dict) else -len(holder) <= key < len(holder)):
        raise refusal(f"the path {path!r} names nothing")


def _size(value: Any) -> int:
    """About as many characters as `value` has as JSON text."""
    size, waiting = 0, [value]
    while waiting:
        match waiting.pop():
            case str() as text:
                size += len(text) + 2
            case list() as items:
                size += 2
                waiting += items
            case dict() as mapping:
                size += 2 + sum(len(key) + 4 for key in mapping)
                waiting += mapping.values()
            case int() as number:
                size += 1 + number.bit_length() // 3
            case _:
                size += 5
    return size


# --- putting together and taking apart -----------------------------------------------------------------


@tool(aliases={"input": "target"})
async def json_merge(
    target: Annotated[dict[str, Any] | str, Field(description="The JSON object to start with, or its text")],
    source: Annotated[dict[str, Any] | str, Field(description="The JSON object that wins, or its text")],
    deep: Annotated[bool, Field(description="Whether objects within are merged, too, or replaced")] = True,
) -> dict[str, Any]:
    """Merge two JSON objects; where both have a value, the source's counts."""
    first, second = _object(target, "target"), _object(source, "source")
    return _merged(first, second) if deep else {**first, **second}


def _merged(target: dict[str, Any], source: dict[str, Any]) -> dict[str, Any]:
    result = dict(target)
    for key, value in source.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        result[key] = _merged(result[key], value) if both else value
    return result


@tool(aliases=OF_DATA)
async def json_flatten(
    data: Annotated[dict[str, Any] | str, Field(description="A JSON object, or its text")],
    separator: Annotated[str, Field(max_length=100)] = ".",
    max_depth: Annotated[int, Field(ge=1, description="How many levels become one; null for all")] | None = None,
) -> dict[str, Any]:
    """Flatten a JSON object into one level with keys like `a.b[0]`; empty objects and lists stay as they are."""
    flat: dict[str, Any] = {}
    chars = 0
    waiting: list[tuple[str, Any, int]] = [("", _object(data, "data"), 0)]
    while waiting:
        name, value, depth = waiting.pop()
        if depth and (not isinstance(value, dict | list) or not value or depth == max_depth):
            if name in flat:
                raise refusal(f"two values would have the key {name[:100]!r}; choose another separator")
            flat[name] = value
            continue
        for inner_name, inner in _named(name, value, separator):
            # A long key is repeated for every value below it.
            chars += len(inner_name)
            if chars > SIZE_MAX:
                raise refusal(f"the keys have more than {SIZE_MAX} characters")
            waiting.append((inner_name, inner, depth + 1))
    return dict(reversed(flat.items()))


def _named(name: str, value: Any, separator: str) -> list[tuple[str, Any]]:
    if isinstance(value, dict):
        return [(f"{name}{separator}{key}" if name else key, inner) for key, inner in value.items()]
    return [(f"{name}[{index}]", inner) for index, inner in enumerate(value)]


JSON_TOOLS: tuple[Tool, ...] = (json_parse, json_query, json_validate, json_transform, json_merge, json_flatten)
