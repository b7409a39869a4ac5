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
    """The ErrorInfo of an exception that a node raised; never raises itself."""
    if isinstance(raised, NodeError) and isinstance(raised.code, ErrorCode):
        code, details, recoverable = raised.code, raised.details, raised.recoverable
        text = _shown(str, raised.message)
    elif isinstance(raised, asyncio.CancelledError):
        code, text, details, recoverable = ErrorCode.CANCELLED, "the node cancelled itself", {}, False
    else:
        text = f"{type(raised).__name__}: {_shown(str, raised)}"
        code, details, recoverable = ErrorCode.UNKNOWN, {}, True
    info: dict[str, Any] = {"code": code, "message": clean(text), "recoverable": recoverable, "node_id": node_id}
    try:
        return ErrorInfo(**info, details=details)
    except ValidationError:
        # Details that JSON cannot carry are shown, not lost.
        return ErrorInfo(**info, details={"repr": clean(_shown(repr, details))})


def error_of_result(result: NodeResult, node_id: str) -> ErrorInfo:
    """The error of a failed result; it keeps the node it came from, and `UNKNOWN` stands for none."""
    unknown = ErrorInfo(code=ErrorCode.UNKNOWN, message="failed without an error", recoverable=True)
    error = result.error or unknown
    # Whatever the node says of them, the other codes are never recoverable.
    told = {"node_id": error.node_id or node_id, "recoverable": error.recoverable and error.code in RECOVERABLE}
    return error.model_copy(update=told)


def clean(text: str) -> str:
    """Text that JSON can carry and a log can bear, whatever an exception said."""
    return text.encode("utf-8", "replace").decode()[:MESSAGE_CHARS_MAX]


def _shown(how: Callable[[object], str], thing: object) -> str:
    try:
        return how(thing)
    except Exception:  # noqa: BLE001 - an error that cannot even be shown must not become another one
        return "(what it says cannot be shown)"
