"""Tasks of the engine: such as begin at once, and such as can be left to somebody else.

Eager tasks take turns of the loop only if they wait for something: what Python 3.12 calls by that name, for 3.11 too,
and cheaper, since coroutines that never wait share one task. Each sees the same `asyncio.current_task()` from its first
line to its last.

A movable coroutine goes on in a new task after `yield MOVE`. The old one has then ended: whoever still holds it, as a
timeout does inside a node that was abandoned, can no longer cancel the engine with it.
"""

from __future__ import annotations

import asyncio

# Made for loops and tasks that are not asyncio's own: "Extending" in Python's documentation of asyncio.
from asyncio.tasks import _enter_task, _leave_task
from collections.abc import Callable, Coroutine, Generator
from contextvars import copy_context
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")


class Ended(Generic[T]):
    """How a coroutine ended that never waited."""

    __slots__ = ("_error", "_value")

    def __init__(self, value: T | None, error: BaseException | None = None) -> None:
        self._value = value
        self._error = error

    def result(self) -> T:
        """What it returned; raises what it raised."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def done(self) -> bool:
        """True, as a task would say."""
        return True


class Moved(Generic[T]):
    """The result of a task whose coroutine goes on in another."""

    def __init__(self, task: asyncio.Task[T | Moved[T]]) -> None:
        self.task = task


#: What a coroutine yields to go on in a new task.
MOVE: Final = object()


class Movable(Coroutine[Any, Any, Any]):
    """What a task runs whose coroutine may `yield MOVE`; the task's result is then `Moved`."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine: Coroutine[Any, Any, Any] | None = coroutine

    def send(self, value: Any) -> Any:
        assert self._coroutine is not None
        return self._turn(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        assert self._coroutine is not None
        return self._turn(self._coroutine.throw, *error)

    def _turn(self, turn: Callable[..., Any], *what: Any) -> Any:
        awaited = turn(*what)
        if awaited is not MOVE:
            return awaited
        coroutine, self._coroutine = self._coroutine, None
        assert coroutine is not None
        raise StopIteration(Moved(asyncio.get_running_loop().create_task(Movable(coroutine))))

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
        return getattr(self._coroutine, "cr_code", Movable.send.__code__)

    @property
    def cr_frame(self) -> Any:
        return getattr(self._coroutine, "cr_frame", None)

    @property
    def cr_running(self) -> bool:
        return bool(getattr(self._coroutine, "cr_running", False))

    @property
    def cr_suspended(self) -> bool:
        return bool(getattr(self._coroutine, "cr_suspended", False))


def can_move(task: asyncio.Task[Any]) -> bool:
    """Whether the coroutine that this task runs may `yield MOVE`."""
    return isinstance(task.get_coro(), Movable)


class EagerTasks(Generic[T]):
    """Starts coroutines one after another, without a turn of the loop between them."""

    def __init__(self) -> None:
        self._starter = asyncio.current_task()
        self._spare: _Adopter | None = None

    def start(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T | Moved[T]] | Ended[T]:
        """Run it until it waits or ends: its task, or how it ended.

        Raises KeyboardInterrupt, as the loop would.
        """
        adopter = self._spare or _Adopter()
        ended = adopter.begin(coroutine, self._starter)
        # The task of one that did not wait serves the next.
        self._spare = adopter if ended is not None else None
        if ended is not None:
            return ended
        task = adopter.task
        assert task is not None
        task.set_name(name)
        return task

    def pause(self) -> None:
        """To be called before the loop may turn: a task that nobody needed ends then, and serves nobody any more."""
        self._spare = None


class _Adopter(Movable):
    """What a task runs: nothing, or a coroutine that has begun before the task's first turn."""

    def __init__(self) -> None:
        self._coroutine = None
        self._awaited: Any = None
        self._taken_up = False
        self._context = copy_context()
        #: None once it has ended: the two would keep each other in memory.
        self.task: asyncio.Task[Any] | None = asyncio.get_running_loop().create_task(
            self, name="a task to spare", context=self._context
        )

    def begin(self, coroutine: Coroutine[Any, Any, Any], starter: asyncio.Task[Any] | None) -> Ended[Any] | None:
        """Run `coroutine` as this task until it waits (None), or ends.

        `starter` is the task that runs now.
        """
        task = self.task
        assert task is not None, "a spare task that has ended serves nobody"
        loop = task.get_loop()
        if starter is not None:
            _leave_task(loop, starter)
        _enter_task(loop, task)
        try:
            self._awaited = self._context.run(coroutine.send, None)
            self._coroutine = coroutine
        except StopIteration as stop:
            return Ended(stop.value)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whoever asks for the result gets it
            return Ended(None, error)
        finally:
            _leave_task(loop, task)
            if starter is not None:
                _enter_task(loop, starter)
        return None

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
        self._taken_up = True
        if self._coroutine is None:
            self.task = None
            raise error[0]
        return self._turn(self._coroutine.throw, *error)

    def _turn(self, turn: Callable[..., Any], *what: Any) -> Any:
        try:
            return super()._turn(turn, *what)
        except BaseException:
            self.task = None
            raise
