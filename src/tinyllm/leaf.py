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

from tinyllm.eager import MOVE, can_move
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

    def __repr__(self) -> str:
        return "ABANDONED"


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
        made = context.run(call, *arguments)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit too is only this node's failure
        return Raised(error)
    coroutine = made if type(made) is CoroutineType else _awaiting(made)
    try:
        awaited = context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001
        return Raised(error)
    task = asyncio.current_task()
    assert task is not None
    return Begun(_Driven(coroutine, awaited, context, task), task)


async def settled(result: Any) -> Any:
    """What a node gave that never waited; it may have cancelled its own task meanwhile."""
    task = asyncio.current_task()
    return await _settled(task, result) if task is not None and is_cancelling(task) else result


def is_cancelling(task: asyncio.Task[Any]) -> bool:
    """Whether the task was asked to cancel itself, which it may not have noticed yet.

    Before Python 3.13 a request that was taken back (`uncancel`) still arrives.
    """
    return bool(task.cancelling()) or bool(getattr(task, "_must_cancel", False))


async def _awaiting(made: Any) -> Any:
    return await made


async def _settled(task: asyncio.Task[Any], result: Any) -> Any:
    """Take in a cancellation of the engine's task that was asked for and may not have arrived."""
    asked = bool(task.cancelling())
    arrived = True
    try:
        await asyncio.sleep(0)
        arrived = False
    except asyncio.CancelledError:
        pass
    while task.cancelling():
        task.uncancel()
    # What the node raised says more than the cancellation, and what was taken back says nothing.
    return Raised(asyncio.CancelledError()) if arrived and asked and type(result) is not Raised else result


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
    if result is ABANDONED and asyncio.current_task() is not task:
        return result
    # A count that is not ours is the node's own, which may have come too late for it to notice.
    if stopper.owes_cancellation or task.cancelling() > stopper.cancellations or getattr(task, "_must_cancel", False):
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
        self.task = task
        #: Told each time a cancellation reached the coroutine, or what it waits for, and that goes on.
        self.on_swallowed: Callable[[], None] | None = None
        #: Told when a cancellation arrives.
        self.on_cancelled: Callable[[], None] | None = None
        self.give_up = False
        self._stand_in: _StandIn | None = None

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._drive(self._awaited)

    def _drive(self, awaited: Any) -> Generator[Any, Any, Any]:
        while True:
            thrown = yield from self._wait(awaited)
            if self.give_up:
                self._leave_to_itself(awaited, thrown)
                if self.task is not None and can_move(self.task):
                    # The node may hold the task it ran in, and cancel it some day.
                    yield MOVE
                return ABANDONED
            step: Callable[[], Any] = (
                partial(self._coroutine.send, None) if thrown is None else partial(self._coroutine.throw, thrown)
            )
            try:
                awaited = self._context.run(step)
            except StopIteration as stop:
                return stop.value
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001 - SystemExit too is only this node's failure
                return Raised(error)
            if isinstance(thrown, asyncio.CancelledError) and self.on_swallowed is not None:
                self.on_swallowed()

    def _wait(self, awaited: Any) -> Generator[Any, Any, BaseException | None]:
        """Wait for what the coroutine waits for; gives what is to be raised there, None for nothing.

        The task waits for a stand-in, never for the node's own future: so it can always be taken back, even from a
        `gather` of tasks that swallow their cancellation, and no exception but a cancellation is raised in it.
        """
        if not _is_ours_to_wait_for(awaited, self.task):
            # A bare turn of the loop, or something for which the task raises an error.
            return (yield from self._turn(awaited))
        awaited._asyncio_future_blocking = False
        if self.give_up:
            return None
        if not awaited.done():
            self._stand_in = stand_in = _StandIn(awaited, self)
            cancelled = yield from self._turn(stand_in.waited_for())
            self._stand_in = None
            stand_in.let_go()
            if cancelled is not None or self.give_up:
                return cancelled
        elif getattr(self.task, "_must_cancel", False):
            return (yield from self._turn(None))
        try:
            awaited.result()
        except BaseException as error:  # noqa: BLE001 - it belongs to the coroutine, whatever it is
            return error
        return None

    def _turn(self, awaited: Any) -> Generator[Any, Any, BaseException | None]:
        """Let the task wait, and give what it is woken with: None, or what is raised in it."""
        try:
            yield awaited
        except GeneratorExit:
            # Nobody's answer: the engine's own task is being closed, as when its loop is.
            self._coroutine.close()
            raise
        except BaseException as error:  # noqa: BLE001 - it belongs to the coroutine, whatever it is
            if isinstance(error, asyncio.CancelledError) and self.on_cancelled is not None:
                self.on_cancelled()
            return error
        return None

    def passed_on(self, awaited: asyncio.Future[Any]) -> None:
        """A cancellation of the task went to what the coroutine waits for."""
        if self.on_cancelled is not None:
            self.on_cancelled()
        if not awaited.done() and self.on_swallowed is not None:
            self.on_swallowed()

    def take_back(self) -> None:
        """Wake the task, whatever the coroutine waits for; it is given up."""
        self.give_up = True
        if self._stand_in is not None:
            self._stand_in.wake()

    def _leave_to_itself(self, awaited: Any, thrown: BaseException | None) -> None:
        """Let a task of its own drive the coroutine on, with a last cancellation of what it waits for."""
        if isinstance(awaited, asyncio.Future):
            awaited.cancel()
        rest = _Driven(self._coroutine, awaited, self._context, None)
        name = None if self.task is None else self.task.get_name()
        task = asyncio.get_running_loop().create_task(rest._to_the_end(thrown), name=name)
        # A loop knows its tasks only weakly.
        _abandoned.add(task)
        task.add_done_callback(_abandoned.discard)

    async def _to_the_end(self, thrown: BaseException | None) -> None:
        self.task = asyncio.current_task()
        if isinstance(self._awaited, asyncio.Future) and not self._awaited.done():
            self._awaited._asyncio_future_blocking = True
        else:
            try:
                step = partial(self._coroutine.send, None) if thrown is None else partial(self._coroutine.throw, thrown)
                self._awaited = self._context.run(step)
            except BaseException:  # noqa: BLE001 - nobody waits for it any more; that is what abandoned means
                return
        await _Generator(self._drive(self._awaited))


def _is_ours_to_wait_for(awaited: Any, task: asyncio.Task[Any] | None) -> bool:
    if not getattr(awaited, "_asyncio_future_blocking", False) or awaited is task or task is None:
        return False
    return awaited.get_loop() is task.get_loop()


class _StandIn(asyncio.Future[None]):
    """What the task waits for while the coroutine waits for `awaited`: done when that is, cancelled like it."""

    def __init__(self, awaited: asyncio.Future[Any], driven: _Driven) -> None:
        super().__init__(loop=awaited.get_loop())
        self.awaited = awaited
        #: The task that this wakes, for loops that look at what they wake.
        self.wakes = driven.task
        self._driven = driven
        awaited.add_done_callback(self.wake)

    def waited_for(self) -> asyncio.Future[None]:
        """This, as an `await` would hand it to the task."""
        self._asyncio_future_blocking = True
        return self

    def wake(self, _: object = None) -> None:
        """Let the task go on."""
        if not self.done():
            self.set_result(None)

    def cancel(self, msg: Any = None) -> bool:
        """Pass it on, as a task that waits for a task does: the end of `awaited` tells the rest."""
        passed_on = self.awaited.cancel(msg)
        if passed_on:
            self._driven.passed_on(self.awaited)
        if self.awaited.done():
            self.wake()
        return passed_on

    def let_go(self) -> None:
        """Nobody waits any more."""
        self.awaited.remove_done_callback(self.wake)


def driven_by(frame: FrameType) -> Coroutine[Any, Any, Any] | None:
    """The coroutine that the driver of this frame drives; None if it is no driver's. For reports on what waits."""
    driver = frame.f_locals.get("self") if frame.f_code is _Driven._turn.__code__ else None
    return driver._coroutine if isinstance(driver, _Driven) else None


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
        self._next: asyncio.Handle | None = None
        self._last: asyncio.Handle | None = None
        self.cancellations = 0
        self.owes_cancellation = False

    def stop(self) -> None:
        """Begin to stop it; again changes nothing."""
        if self._rounds == 0 and not self._ended:
            loop = self._task.get_loop()
            self._driven.on_swallowed = self._again
            self._driven.on_cancelled = self._delivered
            self._last = loop.call_at(loop.time() + self._grace_s, self._grace_ends)
            self._cancel()

    def end(self) -> None:
        """It has ended, or was left to itself: cancel nothing any more."""
        self._ended = True
        for handle in (self._next, self._last):
            if handle is not None:
                handle.cancel()

    def _cancel(self) -> None:
        self._next = None
        if not self._ended and not self.owes_cancellation:
            self._rounds += 1
            self.owes_cancellation = True
            self.cancellations += 1
            self._task.cancel()

    def _delivered(self) -> None:
        self.owes_cancellation = False

    def _again(self) -> None:
        """It goes on: cancel it again, at once at first; but one that swallows without end must not keep time from
        passing."""
        if self._grace_over and self._rounds > RECANCEL_AT_ONCE:
            self._give_up()
        elif self._next is None and (self._rounds < RECANCEL_AT_ONCE or self._grace_over):
            self._next = self._task.get_loop().call_soon(self._cancel)
        elif self._next is None:
            pause_s = 0.0 if self._rounds == RECANCEL_AT_ONCE else self._grace_s / RECANCEL_SPREAD
            self._next = self._task.get_loop().call_later(pause_s, self._cancel)

    def _grace_ends(self) -> None:
        self._grace_over = True
        if self._rounds > RECANCEL_AT_ONCE:
            self._give_up()

    def _give_up(self) -> None:
        if not self._ended:
            self._driven.take_back()
