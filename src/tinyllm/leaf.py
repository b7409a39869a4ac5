"""Runs the code of a node, which is not ours, inside the engine's own task, and stops it when its time is up.

A node that never waits costs no task and no timer. One that waits is driven by `_Driven`: everything it awaits
passes through there, so that its scope can cancel it (by cancelling the task, which then waits for nothing
else) and, if it swallows that for all of its grace, take the task back and leave the node to a task of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import partial
from types import CoroutineType, FrameType
from typing import Any

from tinyllm.scopes import Scope

#: How often a node that swallows its cancellation is cancelled again at once, and then spread over its grace.
RECANCEL_AT_ONCE = 10
RECANCEL_SPREAD = 10


@dataclass(frozen=True, slots=True)
class Raised:
    """What a node raised; a node that returns an exception did not raise it."""

    error: BaseException


class Abandoned:
    """The node swallowed every cancellation and was left to itself."""


ABANDONED = Abandoned()


class Begun:
    """A coroutine that waits: `await_to_the_end` drives it on."""

    __slots__ = ("_driven", "_task")

    def __init__(self, driven: _Driven, task: asyncio.Task[Any]) -> None:
        self._driven = driven
        self._task = task

    async def to_the_end(self, scope: Scope, *, deadline: float | None, grace_s: float, name: str) -> Any:
        """See `run_leaf`."""
        return await _waited_for(self._driven, self._task, scope, deadline=deadline, grace_s=grace_s, name=name)


async def run_leaf(call: Callable[[], Any], scope: Scope, *, deadline: float | None, grace_s: float, name: str) -> Any:
    """What the coroutine that `call` makes returned, or `Raised`, or `ABANDONED`.

    It is cancelled at its next await once loop time `deadline` has come or `scope` is over; whether that was so
    is for the caller to ask. A node that cancelled its own task, and did not wait for that, is `Raised` with
    CancelledError. Raises KeyboardInterrupt only.
    """
    result = begin_leaf(call)
    if type(result) is Begun:
        return await result.to_the_end(scope, deadline=deadline, grace_s=grace_s, name=name)
    return await settled(result)


def begin_leaf(call: Callable[..., Any], *arguments: Any) -> Any:
    """Run the coroutine that `call` makes until it waits for something, or ends.

    Gives its result or `Raised`, which is to be `settled`, or `Begun`.
    """
    context = copy_context()
    try:
        coroutine = context.run(call, *arguments)
        if type(coroutine) is not CoroutineType:
            coroutine = _awaiting(coroutine)
        awaited = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit too is only this node's failure
        return Raised(error)
    task = asyncio.current_task()
    assert task is not None
    return Begun(_Driven(coroutine, awaited, context, task), task)


async def settled(result: Any) -> Any:
    """What a node gave that never waited; it may have cancelled its own task meanwhile."""
    task = asyncio.current_task()
    return await _settled(task, result) if task is not None and task.cancelling() else result


async def _awaiting(made: Any) -> Any:
    return await made


async def _settled(task: asyncio.Task[Any], result: Any) -> Any:
    """Take in a cancellation of the engine's task that was asked for and may not have arrived."""
    arrived = True
    try:
        await asyncio.sleep(0)
        arrived = False
    except asyncio.CancelledError:
        pass
    while task.cancelling():
        task.uncancel()
    return Raised(asyncio.CancelledError()) if arrived else result


async def _waited_for(
    driven: _Driven, task: asyncio.Task[Any], scope: Scope, *, deadline: float | None, grace_s: float, name: str
) -> Any:
    """Drive a coroutine to its end, or to the end of its grace once it should have ended."""
    engine_name = task.get_name()
    # Whoever looks at the tasks that wait wants to know which node it is.
    task.set_name(name)
    with Scope(scope, deadline=deadline) as limit:
        stopper = _Stopper(driven, task, grace_s)
        stop = stopper.stop
        limit.on_over(stop)
        if limit.outermost_over() is not None:
            # It took its time, or ended its own run, before it began to wait.
            stop()
        try:
            result = await driven
        finally:
            stopper.end()
            task.set_name(engine_name)
    # A count that is not ours is the node's own, which may have come too late for it to notice.
    if stopper.owes_cancellation or task.cancelling() > stopper.cancellations:
        return await _settled(task, result)
    while task.cancelling():
        task.uncancel()
    return result


class _Driven:
    """Awaits for a coroutine: what that waits for, the task of whoever awaits this waits for."""

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], awaited: Any, context: Context, task: asyncio.Task[Any] | None
    ) -> None:
        self._coroutine = coroutine
        self._awaited = awaited
        self._context = context
        self._task = task
        #: Told each time a cancellation reached the coroutine and it went on waiting.
        self.on_swallowed: Callable[[], None] | None = None
        #: Told when a cancellation arrives.
        self.on_cancelled: Callable[[], None] | None = None
        self.give_up = False

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._drive(self._awaited, None)

    def _drive(self, awaited: Any, thrown: BaseException | None) -> Generator[Any, Any, Any]:
        step: Callable[[], Any]
        while True:
            if thrown is None:
                try:
                    yield awaited
                    step = partial(self._coroutine.send, None)
                except BaseException as error:
                    if isinstance(error, GeneratorExit) and _current_task() is not self._task:
                        # Nobody's answer: the engine's own task is being closed, as when its loop is.
                        self._coroutine.close()
                        raise
                    thrown = error
            cancelled = isinstance(thrown, asyncio.CancelledError)
            if thrown is not None:
                if cancelled and self.on_cancelled is not None:
                    self.on_cancelled()
                if self.give_up:
                    self._leave_to_itself(thrown)
                    return ABANDONED
                step = partial(self._coroutine.throw, thrown)
                thrown = None
            try:
                awaited = self._context.run(step)
            except StopIteration as stop:
                return stop.value
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - SystemExit too is only this node's failure
                return Raised(error)
            if cancelled and self.on_swallowed is not None:
                self.on_swallowed()

    def _leave_to_itself(self, error: BaseException) -> None:
        rest = _Driven(self._coroutine, None, self._context, None)
        task = asyncio.get_running_loop().create_task(rest._to_the_end(error), name="an abandoned node")
        # A loop knows its tasks only weakly.
        _abandoned.add(task)
        task.add_done_callback(_abandoned.discard)

    async def _to_the_end(self, error: BaseException) -> None:
        self._task = asyncio.current_task()
        await _Generator(self._drive(None, error))


def driven_by(frame: FrameType) -> Coroutine[Any, Any, Any] | None:
    """The coroutine that the driver of this frame drives; None if it is no driver's. For reports on what waits."""
    driver = frame.f_locals.get("self") if frame.f_code is _Driven._drive.__code__ else None
    return driver._coroutine if isinstance(driver, _Driven) else None


def _current_task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs
        return None


class _Generator:
    """Makes a generator awaitable."""

    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self._generator = generator

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._generator


#: Tasks of nodes that nobody waits for any more. They hold nothing of a run but their own context.
_abandoned: set[asyncio.Task[None]] = set()


class _Stopper:
    """Cancels a driven coroutine at each of its awaits until it ends, or its grace is over."""

    def __init__(self, driven: _Driven, task: asyncio.Task[Any], grace_s: float) -> None:
        self._driven = driven
        self._task = task
        self._grace_s = grace_s
        self._rounds = 0
        self._grace_over = False
        self._ended = False
        self._handles: list[asyncio.Handle] = []
        self.cancellations = 0
        self.owes_cancellation = False

    def stop(self) -> None:
        """Begin to stop it; again changes nothing."""
        if self._rounds == 0 and not self._ended:
            loop = self._task.get_loop()
            self._driven.on_swallowed = self._again
            self._driven.on_cancelled = self._delivered
            self._handles.append(loop.call_at(loop.time() + self._grace_s, self._grace_ends))
            self._cancel()

    def end(self) -> None:
        """It has ended, or was left to itself: cancel nothing any more."""
        self._ended = True
        for handle in self._handles:
            handle.cancel()

    def _cancel(self) -> None:
        if not self._ended and not self.owes_cancellation:
            self._rounds += 1
            self._cancel_task()

    def _cancel_task(self) -> None:
        self.owes_cancellation = True
        self.cancellations += 1
        self._task.cancel()

    def _delivered(self) -> None:
        self.owes_cancellation = False

    def _again(self) -> None:
        """The node goes on waiting: cancel it again, at once at first, for one that swallows without end would
        otherwise keep time from passing."""
        if self._grace_over and self._rounds > RECANCEL_AT_ONCE:
            self._give_up()
        elif self._rounds < RECANCEL_AT_ONCE or self._grace_over:
            self._handles.append(self._task.get_loop().call_soon(self._cancel))
        else:
            pause_s = 0.0 if self._rounds == RECANCEL_AT_ONCE else self._grace_s / RECANCEL_SPREAD
            self._handles.append(self._task.get_loop().call_later(pause_s, self._cancel))

    def _grace_ends(self) -> None:
        self._grace_over = True
        if self._rounds > RECANCEL_AT_ONCE:
            self._give_up()

    def _give_up(self) -> None:
        if not self._ended:
            self._driven.give_up = True
            self._cancel_task()
