"""What an exception, or a failed result, of a node means as an ErrorInfo."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic import ValidationError

from tinyllm.errors import RECOVERABLE, ErrorCode, NodeError
from tinyllm.message import ErrorInfo, NodeResult

MESSAGE_CHARS_MAX = 2_000


def error_of(raised: BaseException, node_id: str) -> ErrorInfo:
    """The ErrorInfo of an exception that a node raised; never raises itself, whatever the exception is like."""
    if isinstance(raised, asyncio.CancelledError):
        return ErrorInfo(code=ErrorCode.CANCELLED, message="the node cancelled itself", node_id=node_id)
    told = _told_by(raised) if isinstance(raised, NodeError) else None
    if told is None:
        text = f"{type(raised).__name__}: {_shown(str, raised)}"
        return ErrorInfo(code=ErrorCode.UNKNOWN, message=clean(text), node_id=node_id)
    code, text, recoverable, details = told
    info: dict[str, Any] = {"code": code, "message": clean(text), "recoverable": recoverable, "node_id": node_id}
    try:
        return ErrorInfo(**info, details=details)
    except ValidationError:
        # Details that JSON cannot carry are shown, not lost.
        return ErrorInfo(**info, details={"repr": clean(_shown(repr, details))})


def _told_by(error: NodeError) -> tuple[ErrorCode, str, bool, Any] | None:
    """Code, text, whether it is recoverable, and details; None for an error that was not built as one."""
    code = getattr(error, "code", None)
    if not isinstance(code, ErrorCode):
        return None
    text = _shown(str, getattr(error, "message", error))
    recoverable = code in RECOVERABLE and getattr(error, "recoverable", True) is not False
    return code, text, recoverable, getattr(error, "details", {})


def error_of_result(result: NodeResult, node_id: str) -> ErrorInfo:
    """The error of a failed result; it keeps the node it came from, and `UNKNOWN` stands for none."""
    unknown = ErrorInfo(code=ErrorCode.UNKNOWN, message="failed without an error", recoverable=True)
    # A result that was built without validation may hold anything.
    given: Any = result.__dict__.get("error")
    error: Any = unknown if given is None else given
    try:
        fields = error.__dict__ if isinstance(error, ErrorInfo) else {}
        error = ErrorInfo(**{name: fields[name] for name in ErrorInfo.model_fields})
    except (KeyError, RecursionError, TypeError, ValueError):
        return wrong_type(node_id, f"an error that is {type(error).__name__}, and no ErrorInfo that holds")
    # Whatever the node says of them, the other codes are never recoverable.
    told = {"node_id": error.node_id or node_id, "recoverable": error.recoverable and error.code in RECOVERABLE}
    copy: ErrorInfo = error.model_copy(update=told)
    return copy


def wrong_type(node_id: str, what: str) -> ErrorInfo:
    """The error of a node that returned something else than it must."""
    return ErrorInfo(code=ErrorCode.VALIDATION_ERROR, message=clean(f"{node_id!r} returned {what}"), node_id=node_id)


def spoiled_error(problem: str, node_id: str) -> ErrorInfo:
    """The error of a step that received a message which some node has changed into none."""
    text = clean(f"the message at hand is none any more: {problem}")
    return ErrorInfo(code=ErrorCode.VALIDATION_ERROR, message=text, node_id=node_id)


def clean(text: str) -> str:
    """Text that JSON can carry and a log can bear, whatever an exception said."""
    return text.encode("utf-8", "replace").decode()[:MESSAGE_CHARS_MAX]


def _shown(how: Callable[[object], str], thing: object) -> str:
    try:
        return str(how(thing))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001 - an error that cannot even be shown must not become another one
        return "(what it says cannot be shown)"
