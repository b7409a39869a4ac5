"""Tasks that begin at once, inside whoever starts them, and take turns of the loop only if they wait for something.

What Python 3.12 calls eager tasks, for 3.11 too, and cheaper: coroutines that never wait share one task, one after
another. Each sees the same `asyncio.current_task()` from its first line to its last, and nothing of what another
did to that task or to its context variables.
"""

from __future__ import annotations

import asyncio

# Made for loops and tasks that are not asyncio's own: "Extending" in Python's documentation of asyncio.
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from typing import Any


class EagerTasks:
    """Starts coroutines one after another, without a turn of the loop between them."""

    __slots__ = ("_loop", "_spare")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._spare: Started | None = None

    def start(self, coroutine: Coroutine[Any, Any, Any], *, name: str) -> Started:
        """Run `coroutine` until it waits or ends. Raises KeyboardInterrupt, as the loop would."""
        started = self._spare
        # One that the loop has run in the meantime has ended.
        if started is None or started.task is None:
            started = Started(self._loop)
        self._spare = None
        started.begin(coroutine, asyncio.current_task(self._loop))
        if started.has_ended and started.is_untouched():
            # What stands in it is to be read before the next start.
            self._spare = started
        elif started.task is not None and not started.has_ended:
            started.task.set_name(name)
        return started

    def close(self) -> None:
        """Nothing more will be started: let go of a task that nobody needed."""
        spare, self._spare = self._spare, None
        if spare is not None and spare.task is not None:
            spare.task.cancel()


class Started(Coroutine[Any, Any, Any]):
    """A coroutine that has begun, and the task that takes it on if it waits.

    `has_ended` says that it did not: then `value` is what it returned, or `error` what it raised. The task ends when
    the coroutine does, without a result of its own.
    """

    __slots__ = ("_awaited", "_context", "_coroutine", "_pristine", "_taken_up", "error", "has_ended", "task", "value")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._coroutine: Coroutine[Any, Any, Any] | None = None
        self._awaited: Any = None
        self._taken_up = False
        self._context = copy_context()
        self._pristine = self._context.copy()
        self.has_ended = False
        self.value: Any = None
        self.error: BaseException | None = None
        #: None once it has ended: the two would keep each other in memory.
        self.task: asyncio.Task[None] | None = _task_of(self, loop, self._context)

    def begin(self, coroutine: Coroutine[Any, Any, Any], starter: asyncio.Task[Any] | None) -> None:
        """Run `coroutine` as this task until it waits or ends; `starter` is the task that runs now."""
        task = self.task
        assert task is not None, "a task that has ended serves nobody"
        loop = task.get_loop()
        self.value = self.error = None
        if starter is not None:
            _leave_task(loop, starter)
        _enter_task(loop, task)
        try:
            self._awaited = self._context.run(coroutine.send, None)
        except StopIteration as stop:
            self.has_ended, self.value = True, stop.value
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whoever started it judges it
            self.has_ended, self.error = True, error
        else:
            self.has_ended, self._coroutine = False, coroutine
        finally:
            _leave_task(loop, task)
            if starter is not None:
                _enter_task(loop, starter)

    def is_untouched(self) -> bool:
        """Whether the coroutine left the task and its context variables as they were, for another to use."""
        return not self.is_cancelling() and self._context == self._pristine

    def is_cancelling(self) -> bool:
        """Whether the task was asked to cancel itself. Before Python 3.13 a request that was taken back arrives too."""
        return bool(self.task is not None and (self.task.cancelling() or getattr(self.task, "_must_cancel", False)))

    # --- what the task runs ------------------------------------------------------------------------

    def send(self, value: Any) -> Any:
        """The task's turn: its first one takes up what the coroutine waits for already."""
        if self._coroutine is None:
            self.task = None
            raise StopIteration
        if not self._taken_up:
            self._taken_up = True
            return self._awaited
        return self._turn(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """The task's turn after it was cancelled, or what it waits for failed."""
        if self._coroutine is None:
            # Nobody needed it: it ends like a task of nothing, without an error to keep in memory.
            self.task = None
            raise StopIteration
        awaited, self._awaited = self._awaited, None
        if not self._taken_up and isinstance(error[0], asyncio.CancelledError) and isinstance(awaited, asyncio.Future):
            # Cancelled before its first turn: as a task would, tell what it waits for, and wait for the end of that.
            self._taken_up = True
            if awaited.cancel(*error[0].args[:1]):
                return awaited
        self._taken_up = True
        return self._turn(self._coroutine.throw, *error)

    def _turn(self, turn: Callable[..., Any], *what: Any) -> Any:
        try:
            return turn(*what)
        except StopIteration as stop:
            self.has_ended, self.value = True, stop.value
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - the loop must not hear of SystemExit, nor log what we keep
            self.has_ended, self.error = True, error
        self.task = None
        raise StopIteration

    def close(self) -> None:
        if self._coroutine is not None:
            self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise NotImplementedError("a task runs this; nobody awaits it")

    # Whoever looks at a task's coroutine to see whether it has begun, and where it waits, sees the real one.

    @property
    def cr_await(self) -> Any:
        return getattr(self._coroutine, "cr_await", None)

    @property
    def cr_code(self) -> Any:
        return getattr(self._coroutine, "cr_code", Started.send.__code__)

    @property
    def cr_frame(self) -> Any:
        return getattr(self._coroutine, "cr_frame", None)

    @property
    def cr_running(self) -> bool:
        return bool(getattr(self._coroutine, "cr_running", False))

    @property
    def cr_suspended(self) -> bool:
        return bool(getattr(self._coroutine, "cr_suspended", False))


def _task_of(started: Started, loop: asyncio.AbstractEventLoop, context: Context) -> asyncio.Task[None]:
    if loop.get_task_factory() is None:
        return loop.create_task(started, name="a task to spare", context=context)
    # An eager factory would run it before there is anything to run.
    return asyncio.Task(started, loop=loop, name="a task to spare", context=context)
