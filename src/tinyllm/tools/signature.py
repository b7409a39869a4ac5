"""What a typed function takes and gives, as JSON Schemas, and the ways between its values and JSON."""

from __future__ import annotations

import inspect
import json
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NotRequired

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import to_jsonable_python
from typing_extensions import TypedDict

from tinyllm.errors import UsageError
from tinyllm.tools.context import ToolContext

#: NaN stays what it is, to be refused as no JSON; by default it would silently become null.
_CONFIG = ConfigDict(ser_json_inf_nan="constants")
_KINDS_REFUSED = {
    inspect.Parameter.VAR_POSITIONAL: "takes any number of arguments; take a list instead",
    inspect.Parameter.VAR_KEYWORD: "takes any names; take a dict instead",
    inspect.Parameter.POSITIONAL_ONLY: "can only be given by position, and a tool's arguments have names; remove the /",
}


#: By another name, since a checker wants to know the fields of a TypedDict.
_typed_dict: Any = TypedDict


class ArgumentsError(ValueError):
    """Checked JSON from which the function's types cannot be made; `problems` says why."""

    def __init__(self, error: ValidationError) -> None:
        self.problems = [
            f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
            for problem in error.errors(include_url=False, include_context=False, include_input=False)
        ]
        super().__init__("; ".join(self.problems))


@dataclass(frozen=True, slots=True)
class Signature:
    """The two schemas of a function, and what stands between them and it."""

    input_schema: dict[str, Any]
    output_schema: dict[str, Any] | None
    arguments: TypeAdapter[Any]
    output: TypeAdapter[Any] | None
    context_names: tuple[str, ...]

    @classmethod
    def of(cls, tool_id: str, function: Callable[..., Any]) -> Signature:
        """Read a function's signature; raises UsageError that names the parameter and what to do."""
        hints = _hints(tool_id, function)
        parameters = _parameters(tool_id, function, hints)
        contexts = tuple(name for name in parameters if _is_context(hints[name]))
        wanted = {name: parameter for name, parameter in parameters.items() if name not in contexts}
        arguments, input_schema = _arguments(tool_id, wanted, hints)
        output, output_schema = _output(tool_id, hints)
        return cls(input_schema, output_schema, arguments, output, contexts)

    def unpack(self, arguments: dict[str, Any], context: ToolContext) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The function's keyword arguments; raises ArgumentsError."""
        try:
            # From text, so that what JSON has no type for (dates, enums, sets) is read from how JSON writes it.
            # The schema has already refused what has the wrong type, such as "42" for an integer.
            values = self.arguments.validate_json(json.dumps(arguments))
        except ValidationError as error:
            raise ArgumentsError(error) from None
        return (), {**values, **dict.fromkeys(self.context_names, context)}

    def pack(self, result: Any) -> Any:
        """The result as JSON, as the return annotation says; raises what Pydantic raises if it is another type."""
        if self.output is None:
            return plain_json(result)
        return self.output.dump_python(result, mode="json", by_alias=True, warnings="error")


def plain_json(result: Any) -> Any:
    """The result as JSON by its own type: tuples, sets, dataclasses, Pydantic models, enums, dates."""
    return to_jsonable_python(result, by_alias=True)


def _hints(tool_id: str, function: Callable[..., Any]) -> dict[str, Any]:
    if not isinstance(function, types.FunctionType | types.MethodType):
        raise UsageError(f"tool '{tool_id}': a function is needed, not {type(function).__name__}; wrap it in one")
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise UsageError(
            f"tool '{tool_id}': its annotations cannot be read ({error}); define the types at the top of the module"
        ) from error


def _parameters(
    tool_id: str, function: Callable[..., Any], hints: Mapping[str, Any]
) -> Mapping[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        where = f"tool '{tool_id}': the parameter {name}"
        if parameter.kind in _KINDS_REFUSED:
            raise UsageError(f"{where} {_KINDS_REFUSED[parameter.kind]}")
        if name not in hints:
            raise UsageError(f"{where} has no annotation; write what it takes, as in `{name}: str`")
        if isinstance(parameter.default, FieldInfo):
            raise UsageError(f"{where} has a Field as its default; write Annotated[..., Field(...)] instead")
    return parameters


def _is_context(hint: Any) -> bool:
    return hint is ToolContext or ToolContext in typing.get_args(hint)


def _arguments(
    tool_id: str, parameters: Mapping[str, inspect.Parameter], hints: Mapping[str, Any]
) -> tuple[TypeAdapter[Any], dict[str, Any]]:
    # A TypedDict, not a model: a parameter may have any name, and one left out keeps the function's own default.
    fields: dict[str, Any] = {
        name: hints[name] if parameter.default is parameter.empty else NotRequired[hints[name]]
        for name, parameter in parameters.items()
    }
    kind = _typed_dict("Arguments", fields)
    kind.__pydantic_config__ = ConfigDict(extra="forbid")
    for name in fields:
        # Each alone first, so that the error names the parameter.
        _adapter(f"tool '{tool_id}': the parameter {name}", hints[name])
    where = f"tool '{tool_id}': its parameters"
    adapter = _adapter(where, kind)
    schema = _json_schema(where, adapter, "validation")
    schema.pop("title", None)
    for name, parameter in parameters.items():
        _note_default(schema["properties"][name], parameter.default)
    return adapter, schema


def _note_default(schema: dict[str, Any], default: Any) -> None:
    """Tell the default to whoever reads the schema, if it is plain JSON; the function applies it either way."""
    if default is None or type(default) in (bool, int, str):
        schema.setdefault("default", default)


def _output(tool_id: str, hints: Mapping[str, Any]) -> tuple[TypeAdapter[Any] | None, dict[str, Any] | None]:
    if "return" not in hints:
        return None, None
    where = f"tool '{tool_id}': what it returns"
    adapter = _adapter(where, hints["return"])
    return adapter, _json_schema(where, adapter, "serialization")


def _adapter(where: str, kind: Any) -> TypeAdapter[Any]:
    try:
        try:
            return TypeAdapter(kind, config=_CONFIG)
        except PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
            return TypeAdapter(kind)  # models, dataclasses and TypedDicts carry their own
    except Exception as error:
        raise UsageError(f"{where} has a type that Pydantic cannot read: {_first_line(error)}") from error


def _json_schema(where: str, adapter: TypeAdapter[Any], mode: typing.Literal["validation", "serialization"]) -> Any:
    try:
        return adapter.json_schema(mode=mode)
    except Exception as error:
        raise UsageError(f"{where}: there is no JSON Schema for its type: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n", maxsplit=1)[0][:300]
