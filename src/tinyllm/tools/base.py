"""What a tool is: a function behind two schemas.

`call` is the only way in for a graph. It checks the arguments, runs the function, and checks what comes back;
whatever goes wrong is a `NodeError`, so that no tool can take a run down.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from tinyllm.errors import NodeError, SchemaError, UsageError
from tinyllm.message import checked_json
from tinyllm.schemas import Schema
from tinyllm.tools.context import ToolContext
from tinyllm.tools.failures import misfit, raised, text_of
from tinyllm.tools.signature import plain_json

#: Makes the function's own arguments of the checked JSON; raises ValueError where that is not possible.
Unpack = Callable[[dict[str, Any], ToolContext], tuple[tuple[Any, ...], dict[str, Any]]]
#: Makes JSON of what the function returned; may raise anything.
Pack = Callable[[Any], Any]

_ID = re.compile(r"[a-z][a-z0-9_.]*")


class Tool:
    """A function that a graph can call by its `id`, with JSON in and JSON out.

    Made by `@tool` of a typed function, or by `Tool.from_schema`. It holds nothing of any call, so that one
    object serves all runs at once. Calling the tool itself calls the function as it was written, unchecked.
    """

    def __init__(
        self,
        id: str,  # noqa: A002 - what it is called everywhere else
        description: str,
        input_schema: Mapping[str, Any],
        output_schema: Mapping[str, Any] | None,
        *,
        function: Callable[..., Any],
        unpack: Unpack,
        pack: Pack,
        aliases: Mapping[str, str] | None = None,
    ) -> None:
        """For `tool` and `from_schema`, which know how to unpack and pack; raises UsageError."""
        if not _ID.fullmatch(id):
            raise UsageError(f"{id!r} is no id of a tool; use lower-case letters, digits, _ and . after a first letter")
        _require_plain_function(id, function)
        self.id = id
        self.description = description
        self.aliases = dict(aliases or {})
        self._function = function
        self._unpack = unpack
        self._pack = pack
        self._input = _schema(id, "input", input_schema)
        self._output = None if output_schema is None else _schema(id, "output", output_schema)
        if self.input_schema.get("type") != "object":
            raise UsageError(f"tool '{id}': the input schema needs `type: object`; arguments have names")

    @classmethod
    def from_schema(
        cls,
        id: str,  # noqa: A002
        description: str,
        input_schema: Mapping[str, Any],
        function: Callable[..., Any],
        output_schema: Mapping[str, Any] | None = None,
    ) -> Tool:
        """A tool of explicit JSON Schemas.

        `function(arguments)`, sync or async, gets the arguments as one dict of its own and, if it has a
        parameter named `context`, the `ToolContext` by that name. Defaults in the schema are not filled in.

        Raises UsageError for a bad id, a bad schema, or a function that is a generator.
        """
        wants_context = "context" in _parameters(id, function)

        def unpack(arguments: dict[str, Any], context: ToolContext) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return (arguments,), {"context": context} if wants_context else {}

        return cls(id, description, input_schema, output_schema, function=function, unpack=unpack, pack=plain_json)

    @property
    def input_schema(self) -> dict[str, Any]:
        """The JSON Schema of the arguments, as a copy."""
        return self._input.as_dict()

    @property
    def output_schema(self) -> dict[str, Any] | None:
        """The JSON Schema of the result, as a copy; None if anything goes."""
        return None if self._output is None else self._output.as_dict()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as it was written: nothing is checked or converted."""
        return self._function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Tool {self.id}>"

    async def call(self, arguments: Mapping[str, Any], context: ToolContext | None = None) -> Any:
        """Check the arguments, run the function, and return what it gave as JSON that is shared with nobody.

        A synchronous function runs in a thread: when the caller is cancelled, the thread may end unseen.

        Raises:
            NodeError: `VALIDATION_ERROR` for arguments or an output that do not fit their schema or are no
                JSON; `TOOL_ERROR` for whatever the function raises, SystemExit too, and a CancelledError that
                nobody asked of the caller. A NodeError of the function's own passes through as it is, and so
                does, from an async function, KeyboardInterrupt.
        """
        args, kwargs = self._unpacked(arguments, ToolContext() if context is None else context)
        return self._packed(await self._run(args, kwargs))

    def _unpacked(self, arguments: Any, context: ToolContext) -> tuple[tuple[Any, ...], dict[str, Any]]:
        wrong = "the arguments do not fit"
        try:
            given = checked_json(dict(arguments))
        except Exception as error:  # noqa: BLE001 - a Mapping is code, too
            raise misfit(self.id, wrong, [f"not a JSON object: {text_of(error)}"]) from None
        for alias, name in self.aliases.items():
            if alias in given and name not in given:
                given[name] = given.pop(alias)
        if problems := self._input.problems(given):
            raise misfit(self.id, wrong, problems, self._takes())
        try:
            return self._unpack(given, context)
        except Exception as error:  # noqa: BLE001 - validators of a user's types are code
            problems = getattr(error, "problems", None) or [text_of(error)]
            raise misfit(self.id, wrong, problems, self._takes()) from None

    def _takes(self) -> str:
        schema = self.input_schema
        required = schema.get("required", [])
        names = [f"{name} (required)" if name in required else name for name in schema.get("properties", {})]
        return f". It takes {', '.join(names[:20])}" if names else ". It takes no named arguments"

    async def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        caller = asyncio.current_task()
        try:
            if inspect.iscoroutinefunction(self._function):
                return await self._function(*args, **kwargs)
            result, error = await asyncio.to_thread(_outcome, self._function, args, kwargs)
            if error is not None:
                raise raised(self.id, error) from error
            # A wrapper around an async function is no async function itself.
            return await result if inspect.isawaitable(result) else result
        except (NodeError, KeyboardInterrupt):
            raise
        except asyncio.CancelledError as error:
            if is_being_cancelled():
                raise
            raise raised(self.id, error) from error
        except GeneratorExit as error:
            if _current_task() is not caller:
                raise  # not the function's: somebody closes this coroutine while it waits
            raise raised(self.id, error) from error
        except BaseException as error:
            raise raised(self.id, error) from error

    def _packed(self, result: Any) -> Any:
        wrong = "the output does not fit"
        try:
            output = checked_json(self._pack(result))
        except Exception as error:  # noqa: BLE001 - serializers of a user's types are code
            raise misfit(self.id, wrong, [f"it is no JSON: {text_of(error)}"]) from None
        if self._output is not None and (problems := self._output.problems(output)):
            raise misfit(self.id, wrong, problems)
        return output


def is_being_cancelled() -> bool:
    """Whether somebody has asked the task that runs to stop, so that a CancelledError is meant for it."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _outcome(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Any, BaseException | None]:
    """Result and error of a function in a thread.

    Nothing is raised there but what a call passes on: a future takes no StopIteration, and SystemExit and
    KeyboardInterrupt would end the loop.
    """
    try:
        return function(*args, **kwargs), None
    except (asyncio.CancelledError, NodeError):
        raise
    except BaseException as error:  # noqa: BLE001
        return None, error


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs: the coroutine is closed from outside
        return None


def _schema(tool_id: str, which: str, schema: Mapping[str, Any]) -> Schema:
    try:
        return Schema(schema)
    except SchemaError as error:
        raise UsageError(f"tool '{tool_id}': the {which} schema is wrong: {error}") from error


def _require_plain_function(tool_id: str, function: Any) -> None:
    if not callable(function):
        raise UsageError(f"tool '{tool_id}': a function is needed, not {type(function).__name__}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise UsageError(f"tool '{tool_id}': a generator gives many values and a tool one; return a list instead")


def _parameters(tool_id: str, function: Any) -> Mapping[str, inspect.Parameter]:
    _require_plain_function(tool_id, function)
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        raise UsageError(f"tool '{tool_id}': the function tells no signature; wrap it in one of your own") from None
