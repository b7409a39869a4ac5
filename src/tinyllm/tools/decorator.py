"""`@tool`: a tool of any typed function."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, overload

from tinyllm.errors import UsageError
from tinyllm.tools.base import Tool
from tinyllm.tools.signature import Signature


@overload
def tool(function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(
    *,
    id: str | None = None,
    description: str | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., Any]], Tool]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    id: str | None = None,  # noqa: A002
    description: str | None = None,
    aliases: Mapping[str, str] | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a typed function, sync or async: `@tool` or `@tool(id="weather.now")`.

    The input schema comes from the signature: a parameter with a default is optional, no other arguments are
    accepted, and `Annotated[int, Field(description=...)]`, Pydantic models, dataclasses, enums and the like
    arrive as such objects. A parameter annotated `ToolContext` gets the context and is not part of the schema.
    The output schema comes from the return annotation; without one anything that is JSON may be returned.

    `id` defaults to the function's name, `description` to the first paragraph of its docstring, else "".
    `aliases` are other names of parameters, which are accepted but not part of the schema.

    Raises UsageError for `*args`, `**kwargs`, a parameter that has no annotation or only a position, a type
    without a JSON Schema, a generator, and a bad id; it says which and what to do.
    """
    if function is None:
        return lambda given: _made(given, id, description, aliases)
    return _made(function, id, description, aliases)


def _made(
    function: Callable[..., Any], tool_id: str | None, description: str | None, aliases: Mapping[str, str] | None
) -> Tool:
    if isinstance(function, Tool):
        raise UsageError(f"{function!r} is a tool already; decorate the function once")
    name = tool_id if tool_id is not None else getattr(function, "__name__", "")
    signature = Signature.of(name, function)
    return Tool(
        name,
        _first_paragraph(function) if description is None else description,
        signature.input_schema,
        signature.output_schema,
        function=function,
        unpack=signature.unpack,
        pack=signature.pack,
        aliases=aliases,
    )


def _first_paragraph(function: Callable[..., Any]) -> str:
    paragraph = (inspect.getdoc(function) or "").split("\n\n")[0]
    return " ".join(paragraph.split())
