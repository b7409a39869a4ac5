"""Where errors go that nobody waits for: into a list, for whoever judges the run. Nothing is printed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeAlias

from tinyllm.testing.fences import FencedLoop

__all__ = ["ReportingLoop", "described"]

_ExceptionHandler: TypeAlias = Callable[[asyncio.AbstractEventLoop, dict[str, Any]], object]


def described(context: dict[str, Any]) -> str:
    """What reached an exception handler, in words."""
    error = context.get("exception")
    return f"{context.get('message')}" + ("" if error is None else f": {type(error).__name__}: {error}")


class ReportingLoop(FencedLoop):
    """The part of the loop that takes errors. `unhandled` has what reached the default handler."""

    def __init__(self) -> None:
        self.unhandled: list[dict[str, Any]] = []
        self._exception_handler: _ExceptionHandler | None = None
        self._closed = False

    def is_closed(self) -> bool:
        return self._closed

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("Event loop is closed")

    def set_exception_handler(self, handler: _ExceptionHandler | None) -> None:
        """Let *handler* take the errors; None for the default.

        Raises:
            TypeError: it cannot be called.
        """
        if handler is not None and not callable(handler):
            raise TypeError(f"A callable object or None is expected, got {handler!r}")
        self._exception_handler = handler

    def get_exception_handler(self) -> _ExceptionHandler | None:
        return self._exception_handler

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Append *context* to `unhandled`.

        Does nothing once the loop is closed: what comes then is sent by the garbage collector.
        """
        if not self._closed:
            self.unhandled.append(context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Hand *context* to the exception handler; if that fails, with the failure to the default one.

        What fails in a default handler of a subclass is in `unhandled`.
        From Python 3.12 on a handler runs in the context of the task or handle that the error is about.
        """
        if self._exception_handler is None:
            self._call_default_handler(context)
            return
        try:
            culprits = (context.get(key) for key in ("task", "future", "handle"))
            get_context = getattr(next(filter(None, culprits), None), "get_context", None)
            if get_context is None:  # the name is new in 3.12, and so is the rule
                self._exception_handler(self, context)
            else:
                get_context().run(self._exception_handler, self, context)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - nor may an error about an error
            message = "Unhandled error in exception handler"
            self._call_default_handler({"message": message, "exception": error, "context": context})

    def _call_default_handler(self, context: dict[str, Any]) -> None:
        try:
            self.default_exception_handler(context)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - reported
            message = "Exception in default exception handler"
            self.unhandled.append({"message": message, "exception": error, "context": context})
