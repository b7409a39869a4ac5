"""Every error that TinyLLM raises, and the codes with which a run fails.

    TinyLLMError
    ├── UsageError              the call is wrong: your mistake
    ├── GraphConfigError        the graph file is wrong: lists every problem with its position
    ├── ExpressionError         a condition cannot be parsed, or failed to evaluate
    ├── PatternError            a regular expression is none of RE2's
    ├── OverloadedError         as many runs as allowed are running and waiting
    ├── TemplateError           a template names something that is missing
    ├── SchemaError             a JSON Schema is wrong, or cannot be checked safely
    └── NodeError               raised by a node: ends the attempt with its code
        └── ModelError          a model call failed

What goes wrong *inside* a run is never raised at the caller: it is an `ErrorInfo` in the result, whose
`code` is one of `ErrorCode`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal


class ErrorCode(StrEnum):
    """Why a step or a run failed."""

    MODEL_ERROR = "MODEL_ERROR"
    TOOL_ERROR = "TOOL_ERROR"
    TIMEOUT = "TIMEOUT"
    UNKNOWN = "UNKNOWN"
    VALIDATION_ERROR = "VALIDATION_ERROR"
    ROUTING_ERROR = "ROUTING_ERROR"
    GATE_FAILED = "GATE_FAILED"
    BOUNDS_EXCEEDED = "BOUNDS_EXCEEDED"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    CANCELLED = "CANCELLED"
    EXIT_FAILED = "EXIT_FAILED"
    STORE_ERROR = "STORE_ERROR"


#: Codes after which trying again can help, unless the error itself says it cannot.
RECOVERABLE = frozenset({ErrorCode.MODEL_ERROR, ErrorCode.TOOL_ERROR, ErrorCode.TIMEOUT, ErrorCode.UNKNOWN})


class TinyLLMError(Exception):
    """Base of every error of this package; values (messages, configs) refuse fields with Pydantic's ValidationError."""


class UsageError(TinyLLMError):
    """The call itself is wrong; nothing was started."""


class OverloadedError(TinyLLMError):
    """The executor runs as many runs as it may, and as many wait: try again later. Nothing was started."""


class ExpressionError(TinyLLMError):
    """A condition does not parse, or failed while it was evaluated."""


class PatternError(TinyLLMError):
    """A regular expression is none of RE2's, or has no such group."""


class TemplateError(TinyLLMError):
    """A template names a field that is missing or null."""


class SchemaError(TinyLLMError):
    """A JSON Schema is wrong, too large, or asks for what this package never does (fetch another one)."""


class NodeError(TinyLLMError):
    """A node's attempt failed.

    `recoverable` defaults to what the code says; an error may only take hope away (`False`), or
    give it for a code that has it, since the codes outside `RECOVERABLE` are never recoverable.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        details: Mapping[str, Any] | None = None,
        recoverable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.details = dict(details or {})
        self.recoverable = code in RECOVERABLE and recoverable is not False

    def __reduce__(self) -> tuple[Any, ...]:
        # The stock way calls the class with the message alone.
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(kind: type[NodeError], args: tuple[Any, ...], state: dict[str, Any]) -> NodeError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class ModelError(NodeError):
    """A model call failed; `recoverable=False` when asking again cannot help (an unknown model, say)."""

    def __init__(
        self, message: str, *, details: Mapping[str, Any] | None = None, recoverable: bool | None = None
    ) -> None:
        super().__init__(ErrorCode.MODEL_ERROR, message, details=details, recoverable=recoverable)


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is wrong, or doubtful, in a graph file.

    `path` is like `nodes[3].config.timeout_ms`; `line` and `column` count from 1 and are None for graphs
    that were not read from text; `value` is the offending value as short text; `hint` says what would be right.
    """

    code: str
    message: str
    path: str
    line: int | None = None
    column: int | None = None
    value: str | None = None
    hint: str | None = None
    severity: Literal["error", "warning"] = "error"

    def __str__(self) -> str:
        where = f"{self.line}:{self.column}: " if self.line is not None else ""
        at = f" at {self.path}" if self.path else ""
        value = f" (got {self.value})" if self.value is not None else ""
        hint = f". {self.hint}" if self.hint else ""
        return f"{where}{self.severity}: {self.message}{value}{at} [{self.code}]{hint}"


class GraphConfigError(TinyLLMError):
    """A graph was refused. `problems` lists all that is wrong (at most 100), in the order of the file."""

    def __init__(self, problems: tuple[Problem, ...], *, source: str = "<graph>") -> None:
        self.problems = problems
        self.source = source
        count = f"{len(problems)} problem" + ("" if len(problems) == 1 else "s")
        super().__init__("\n".join([f"{source}: {count}", *(f"  {problem}" for problem in problems)]))
