"""`tinyllm nodes [TYPE]`: the node types and every key of their configs, read from the classes that judge files."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from tinyllm.cli.replies import FINE, guarded, note, on_one_line, refuse, say, say_json

if TYPE_CHECKING:
    from pydantic import BaseModel

    from tinyllm.config import NodeConfig

Schema = Mapping[str, Any]
#: How a bound of JSON Schema is told.
BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "pattern": "matches {}",
}
TYPES = {"integer": "integer", "number": "number", "string": "text", "boolean": "boolean", "null": "null"}


@click.command()
@click.argument("type_name", metavar="[TYPE]", required=False)
@click.option("--all", "every", is_flag=True, help="Show the keys of every type.")
@click.option("--format", "style", type=click.Choice(("text", "json")), default="text", help="What to print.")
def nodes(type_name: str | None, every: bool, style: str) -> None:
    """List the node types; of one TYPE, or with --all, also what its config may say.

    Types of installed packages are among them. As JSON each config is a JSON Schema: of one TYPE that schema
    alone, else an object with the schemas by type.

    Exit code 0, or 2 for a TYPE that nobody knows.
    """
    guarded(lambda: _listed(type_name, every, style))


def _listed(type_name: str | None, every: bool, style: str) -> int:
    if type_name is not None:
        name, kind = _known(type_name)
        if style == "json":
            say_json(schema_of(kind))
        else:
            say("\n".join(_described(name, kind)))
        return FINE
    kinds = dict(_all_types())
    if style == "json":
        say_json({name: schema_of(kind) for name, kind in kinds.items()})
    elif every:
        say("\n\n".join("\n".join(_described(name, kind)) for name, kind in kinds.items()))
    else:
        width = max(map(len, kinds))
        say("\n".join(f"{name:<{width}}  {_first_line(kind)}" for name, kind in kinds.items()))
    return FINE


def _all_types() -> Iterator[tuple[str, type[NodeConfig]]]:
    from tinyllm.config import config_class, type_names
    from tinyllm.errors import UsageError

    for name in type_names():
        try:
            kind = config_class(name)
        except UsageError as error:
            # Another package's code, which must not hide the other types.
            note(on_one_line(str(error)))
            continue
        if kind is not None:
            yield str(name), kind


def _known(name: str) -> tuple[str, type[NodeConfig]]:
    from tinyllm.config import config_class, type_names
    from tinyllm.config.kinds import REFUSED_TYPES, node_type

    if name in REFUSED_TYPES:
        refuse(f"the node type {name!r} of the 0.1 format is not run here")
    kind = config_class(name)
    if kind is None:
        known = [str(known) for known in type_names()]
        close = difflib.get_close_matches(name[:60], known, 1)
        hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(known)}"
        refuse(f"there is no node type {on_one_line(name)[:60]!r}; {hint}")
    return str(node_type(name)), kind


# --- schemas -------------------------------------------------------------------------------------------


def schema_of(kind: type[BaseModel]) -> dict[str, Any]:
    """The JSON Schema of a config. Where Pydantic checks by a function of ours, anything goes as far as it can say."""
    from pydantic.json_schema import GenerateJsonSchema

    class Lenient(GenerateJsonSchema):
        def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:  # noqa: ARG002
            return {}

    schema: dict[str, Any] = kind.model_json_schema(schema_generator=Lenient)
    _explain(schema, kind)
    _add_parameters(schema)
    return schema


def _add_parameters(schema: dict[str, Any]) -> None:
    """The parameters of a transform's steps, whose class depends on the step's type: Pydantic's schema lacks them."""
    from tinyllm.config.transform import PARAMS, Step

    step = schema.get("$defs", {}).get(Step.__name__)
    if step is None:
        return
    kinds = dict.fromkeys(PARAMS.values())
    for kind in kinds:
        schema["$defs"][kind.__name__] = kind.model_json_schema()
        types = ", ".join(name for name, params in PARAMS.items() if params is kind)
        text = schema["$defs"][kind.__name__].get("description", "")
        schema["$defs"][kind.__name__]["description"] = f"Parameters of {types}. {text}"
    step["properties"]["params"] = {
        "anyOf": [{"$ref": f"#/$defs/{kind.__name__}"} for kind in kinds] + [{"type": "object", "maxProperties": 0}],
        "default": {},
    }


def _explain(schema: dict[str, Any], kind: type[BaseModel]) -> None:
    """Give each key that says nothing about itself the sentences of the docstrings that name it."""
    for name, part in schema.get("properties", {}).items():
        field = kind.model_fields.get(name)
        if field is not None and field.default_factory is not None:
            part["default"] = field.get_default(call_default_factory=True, validated_data={})
        if "description" not in part and (sentences := _sentences_about(name, kind)):
            part["description"] = sentences


def _sentences_about(key: str, kind: type[BaseModel]) -> str:
    from pydantic import BaseModel

    texts = (vars(base).get("__doc__") or "" for base in kind.__mro__ if issubclass(base, BaseModel))
    sentences = (sentence for text in texts for sentence in re.split(r"(?<=\.)\s+", " ".join(text.split())))
    return " ".join(sentence for sentence in sentences if f"`{key}`" in sentence)


# --- text ----------------------------------------------------------------------------------------------


def _first_line(kind: type[BaseModel]) -> str:
    """What a class says it does. Its own words only: those of the class it is built on are not about it."""
    own = (vars(kind).get("__doc__") or "").strip()
    return on_one_line(own.partition("\n")[0])


def _described(name: str, kind: type[NodeConfig]) -> Iterator[str]:
    schema = schema_of(kind)
    yield f"{name}: {_first_line(kind)}".rstrip(" :")
    yield ""
    yield from _keys(schema)
    if kind.IGNORED:
        yield f"  without effect here: {', '.join(sorted(kind.IGNORED))}"
    for part_name, part in sorted(schema.get("$defs", {}).items()):
        yield ""
        yield f"  {part_name}: {on_one_line(str(part.get('description', '')))}".rstrip(" :")
        yield from (f"  {line}" for line in _keys(part))
    if "tool_id" in schema.get("properties", {}):
        yield from _built_in_tools()


def _built_in_tools() -> Iterator[str]:
    from tinyllm.tools.registry import default_tools

    yield ""
    yield "  Built-in tools, by `tool_id`, with their parameters; others are handed to an executor:"
    for tool in default_tools():
        schema = tool.input_schema
        required = schema.get("required", ())
        names = [name if name in required else f"[{name}]" for name in schema.get("properties", {})]
        yield f"  {tool.id}({', '.join(names)})"
        yield f"      {on_one_line(tool.description)}"


def _keys(schema: Schema) -> Iterator[str]:
    properties: Mapping[str, Schema] = schema.get("properties", {})
    required = schema.get("required", ())
    if not properties:
        yield "  (no keys)"
        return
    width = max(map(len, properties))
    for name, part in properties.items():
        default = "required" if name in required else f"default {_value(part.get('default'))}"
        bounds = _bounds(part)
        yield f"  {name:<{width}}  {_type(part)}; {default}{f'; {bounds}' if bounds else ''}"
        if text := part.get("description"):
            yield f"  {'':<{width}}    {on_one_line(str(text))}"


def _type(schema: Schema) -> str:
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema:
        return _value(schema["const"])
    if "enum" in schema:
        return " | ".join(_value(value) for value in schema["enum"])
    choices = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if choices:
        return " or ".join(dict.fromkeys(_type(choice) for choice in choices))
    kind = schema.get("type")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    if kind == "object":
        values = schema.get("additionalProperties")
        return f"mapping to {_type(values)}" if isinstance(values, dict) and values else "mapping"
    return TYPES.get(str(kind), "any value")


def _bounds(schema: Schema) -> str:
    parts = [text.format(schema[key]) for key, text in BOUNDS.items() if key in schema]
    if "type" in schema and schema["type"] == "array":
        parts += [f"each {text}" for text in [_bounds(schema.get("items", {}))] if text]
    for choice in schema.get("anyOf", ()):
        parts += [text for text in [_bounds(choice)] if text]
    return ", ".join(parts)


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
