"""JSON Schemas from strangers: checked before use, so that checking a value can neither hang, fetch nor crash.

`jsonschema_rs` does the checking. What it would follow without bound is refused here when a schema is made:
references to anywhere but a place in the schema itself, references that come back to where they are without
entering the value, and references whose expansion doubles at every step. Regular expressions are those of
Rust's `regex`, which takes linear time and has neither look-around nor back-references.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import jsonschema_rs

from tinyllm.errors import SchemaError
from tinyllm.message import checked_json

SCHEMA_CHARS_MAX = 100_000
#: How many subschemas one value can meet at once, over all the ways that lead to them.
PATHS_MAX = 100_000
#: How many subschemas may lead to each other in a row; the checker recurses along them.
CHAIN_MAX = 256
PROBLEMS_MAX = 10
PROBLEM_CHARS_MAX = 300
#: Problems are only listed where that costs at most so many visits; the verdict itself is always cheap.
VISITS_MAX = 1_000_000

_DRAFTS = (
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-07/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "https://json-schema.org/draft/2020-12/schema",
)
_REFUSED = {
    "$dynamicRef": "use $ref",
    "$recursiveRef": "use $ref",
    "$id": "only the schema itself has an $id; refer to its parts by #/$defs/name",
}
_HERE_ONE = ("not", "if", "then", "else")
_HERE_LIST = ("allOf", "anyOf", "oneOf")
_HERE_MAP = ("dependentSchemas", "dependencies")
_BELOW_ONE = (
    *("items", "additionalItems", "contains", "additionalProperties", "propertyNames"),
    *("unevaluatedItems", "unevaluatedProperties", "contentSchema"),
)
_BELOW_LIST = ("prefixItems", "items")
_BELOW_MAP = ("properties", "patternProperties")
_UNUSED_MAP = ("$defs", "definitions")


class Schema:
    """A checked JSON Schema (drafts 6 to 2020-12; without `$schema` it is the last).

    Raises SchemaError, when it is made, for what is no valid schema, for more than 100,000 characters or 64
    levels, and for references that leave the schema or do not end.
    """

    def __init__(self, schema: Mapping[str, Any]) -> None:
        self._schema = _checked(schema)
        self._graph = _Graph.of(self._schema)
        self._validator = _compiled(self._schema)

    def as_dict(self) -> dict[str, Any]:
        """The schema, as a copy of its own."""
        return copy.deepcopy(self._schema)

    def problems(self, value: Any) -> list[str]:
        """What is wrong with `value`, each with its path, at most 10; empty if it fits.

        A value that is no JSON has that as its only problem. Where a list would be too costly, which takes a
        recursive schema and a deep value, or a very large one, the only problem is that the value does not fit.
        """
        try:
            value = checked_json(value)
        except ValueError as error:
            return [_shortened(f"is no JSON: {error}")]
        if self._validator.is_valid(value):
            return []
        if self._graph.visits(value) > VISITS_MAX:
            return ["does not fit the schema (too large to say where)"]
        told = dict.fromkeys(_told(error) for error in self._validator.iter_errors(value))
        return list(told)[:PROBLEMS_MAX]


def _checked(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        raise SchemaError(f"a schema is a dict, not {type(schema).__name__}")
    try:
        checked: dict[str, Any] = checked_json(dict(schema))
    except ValueError as error:
        raise SchemaError(_shortened(f"the schema is no JSON: {error}")) from None
    size = len(json.dumps(checked, ensure_ascii=False))
    if size > SCHEMA_CHARS_MAX:
        raise SchemaError(f"a schema of {size} characters; at most {SCHEMA_CHARS_MAX}")
    draft = checked.get("$schema", _DRAFTS[-1])
    if not isinstance(draft, str) or draft.rstrip("#") not in _DRAFTS:
        raise SchemaError(_shortened(f"unknown $schema {draft!r}; known are {', '.join(_DRAFTS)}"))
    return checked


def _compiled(schema: dict[str, Any]) -> jsonschema_rs.Validator:
    try:
        return jsonschema_rs.validator_for(
            schema, retriever=_refuse_to_fetch, pattern_options=jsonschema_rs.RegexOptions()
        )
    # Also errors that its typing does not name: of its own, and ValueError.
    except Exception as error:  # noqa: BLE001
        what, where = getattr(error, "message", None) or str(error), getattr(error, "instance_path", ())
        raise SchemaError(_shortened(_placed(where, what))) from None


def _refuse_to_fetch(uri: str) -> Any:
    raise ValueError(f"{uri} is not part of the schema, and nothing is ever fetched")


def _told(error: jsonschema_rs.ValidationError) -> str:
    what = error.message
    if len(what) > 200:
        # It begins with the value, which may be long, and ends with what would be right.
        what = f"{what[:60]}...{what[-120:]}"
    return _shortened(_placed(error.instance_path, what))


def _placed(path: Any, what: str) -> str:
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).lstrip(".")
    return f"{where}: {what}" if where else what


def _shortened(text: str) -> str:
    return text if len(text) <= PROBLEM_CHARS_MAX else f"{text[: PROBLEM_CHARS_MAX - 3]}..."


# --- what a value can meet -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Part:
    """One subschema: which others look at the same value (`here`), and which at values inside it (`below`)."""

    here: tuple[int, ...]
    below: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Graph:
    """The subschemas by number, the root being 0. `order` has each after all that look at the same value."""

    parts: tuple[_Part, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, root: dict[str, Any]) -> _Graph:
        parts = _parts(root)
        order = _ordered(parts, here_only=True)
        _require_bounded(parts)
        return cls(parts, order)

    def visits(self, value: Any) -> int:
        """At least as many as the visits of subschemas in checking `value`; not exact beyond VISITS_MAX."""
        depth, count = _measured(value)
        below = [0] * len(self.parts)
        for _ in range(depth + 1):
            level = [0] * len(self.parts)
            for number in self.order:
                part = self.parts[number]
                level[number] = 1 + sum(level[n] for n in part.here) + sum(below[n] for n in part.below)
            if level[0] * count > VISITS_MAX or level == below:
                return level[0] * count
            below = level
        return below[0] * count


def _measured(value: Any) -> tuple[int, int]:
    """How deep a JSON value is nested, and of how many values it consists."""
    depth, count, level = 0, 0, [value]
    while level:
        count += len(level)
        depth += 1
        level = [inner for outer in level for inner in _inside(outer)]
    return depth, count


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return value if isinstance(value, list) else []


def _parts(root: dict[str, Any]) -> tuple[_Part, ...]:
    numbers, waiting = {id(root): 0}, [root]
    parts: list[_Part] = []

    def numbered(schema: Any) -> Iterator[int]:
        if not isinstance(schema, dict):
            return
        if id(schema) not in numbers:
            numbers[id(schema)] = len(waiting)
            waiting.append(schema)
        yield numbers[id(schema)]

    for schema in waiting:  # it grows on the way
        _require_plain(schema, root)
        here = [n for inner in _here(schema, root) for n in numbered(inner)]
        below = [n for inner in _below(schema) for n in numbered(inner)]
        for inner in _mapped(schema, _UNUSED_MAP):
            list(numbered(inner))
        parts.append(_Part(tuple(here), tuple(below)))
    return tuple(parts)


def _require_plain(schema: dict[str, Any], root: dict[str, Any]) -> None:
    for keyword, hint in _REFUSED.items():
        if keyword in schema and not (keyword == "$id" and schema is root):
            raise SchemaError(f"{keyword} is not supported: {hint}")


def _here(schema: dict[str, Any], root: dict[str, Any]) -> Iterator[Any]:
    if "$ref" in schema:
        yield _referred(schema["$ref"], root)
    yield from (schema[keyword] for keyword in _HERE_ONE if keyword in schema)
    yield from _listed(schema, _HERE_LIST)
    yield from _mapped(schema, _HERE_MAP)


def _below(schema: dict[str, Any]) -> Iterator[Any]:
    yield from (schema[keyword] for keyword in _BELOW_ONE if keyword in schema)
    yield from _listed(schema, _BELOW_LIST)
    yield from _mapped(schema, _BELOW_MAP)


def _listed(schema: dict[str, Any], keywords: tuple[str, ...]) -> Iterator[Any]:
    for keyword in keywords:
        if isinstance(inner := schema.get(keyword), list):
            yield from inner


def _mapped(schema: dict[str, Any], keywords: tuple[str, ...]) -> Iterator[Any]:
    for keyword in keywords:
        if isinstance(inner := schema.get(keyword), dict):
            yield from inner.values()


def _referred(reference: Any, root: dict[str, Any]) -> Any:
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        raise SchemaError(
            _shortened(f"$ref {reference!r}: only places in the schema itself can be referred to, as by #/$defs/name")
        )
    place: Any = root
    for step in unquote(reference[1:]).split("/")[1:]:
        key = step.replace("~1", "/").replace("~0", "~")
        if isinstance(place, dict) and key in place:
            place = place[key]
        elif isinstance(place, list) and key.isascii() and key.isdigit() and len(key) < 6 and int(key) < len(place):
            place = place[int(key)]
        else:
            raise SchemaError(_shortened(f"$ref {reference!r} names nothing in the schema"))
    if not isinstance(place, dict | bool):
        raise SchemaError(_shortened(f"$ref {reference!r} names no schema but a {type(place).__name__}"))
    return place


def _ordered(parts: tuple[_Part, ...], *, here_only: bool) -> tuple[int, ...]:
    """All parts, each after those it leads to; with `here_only` a way back is refused, else left out."""
    order: list[int] = []
    state = [0] * len(parts)  # 0 new, 1 on the way, 2 done
    for start in range(len(parts)):
        way = [start] if state[start] == 0 else []
        while way:
            number, part = way[-1], parts[way[-1]]
            if state[number] == 0:
                state[number] = 1
                ahead = part.here if here_only else (*part.here, *part.below)
                if here_only and any(state[n] == 1 for n in ahead):
                    raise SchemaError("the schema refers to itself without end: a $ref leads back to its own place")
                way += [n for n in ahead if state[n] == 0]
                continue
            way.pop()
            if state[number] == 1:
                state[number] = 2
                order.append(number)
    return tuple(order)


def _require_bounded(parts: tuple[_Part, ...]) -> None:
    """Refuse what expands without measure. A way back counts once: the checker remembers where it has been."""
    paths, chain = [1] * len(parts), [1] * len(parts)
    for number in _ordered(parts, here_only=False):
        ahead = (*parts[number].here, *parts[number].below)
        paths[number] = min(1 + sum(paths[n] for n in ahead), PATHS_MAX + 1)
        chain[number] = 1 + max((chain[n] for n in ahead), default=0)
    if max(paths) > PATHS_MAX:
        raise SchemaError(f"the schema expands to more than {PATHS_MAX} subschemas")
    if max(chain) > CHAIN_MAX:
        raise SchemaError(f"more than {CHAIN_MAX} subschemas lead to each other in a row")
