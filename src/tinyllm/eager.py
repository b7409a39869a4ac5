"""Coroutines that begin at once, inside whoever starts them, and cost a task and turns of the loop only if they wait.

What Python 3.12 calls eager tasks, for 3.11 too, and cheaper: a coroutine that never waits runs in a task that does not
exist until somebody looks at it. All that a run starts share one such task, one after another, for as long as none of
them keeps it. Two things differ from a task of asyncio's: one that nobody has asked anything is not in
`asyncio.all_tasks()`, and one that is first asked after its coroutine has ended is done one turn of the loop later.
"""

from __future__ import annotations

import asyncio
import sys
import types

# Made for loops and tasks that are not asyncio's own: "Extending" in Python's documentation of asyncio.
from asyncio.tasks import _enter_task, _leave_task, current_task
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import cache
from sys import getrefcount
from typing import Any
from weakref import getweakrefcount

AnyTask = asyncio.Task[Any]

#: Where more than this share of the frames that Python allows is used up, a run begins on a stack of its own.
STACK_SHARE = 1 / 4


def _references_of_a_local() -> int:
    thing = object()
    return getrefcount(thing)


#: The references to a task that only a local variable holds, as `getrefcount` tells them: Python versions differ.
_OURS = _references_of_a_local()


@dataclass(frozen=True, slots=True)
class Raised:
    """What a coroutine raised; one that returns an exception did not raise it."""

    error: BaseException


class EagerTasks:
    """Starts coroutines one after another, without a turn of the loop between them."""

    __slots__ = ("_body", "_loop", "_pristine", "_spare", "_unborn")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pristine = copy_context()
        self._unborn = _unborn(_kind_of_tasks(loop))
        #: A task of which nobody knows yet, for the next that is started; None while one runs in it.
        self._spare: AnyTask | None = None
        #: What the newest of them runs.
        self._body: Started

    def _new_task(self) -> AnyTask:
        self._body = Started(self._loop, self._pristine)
        task: AnyTask = self._unborn.__new__(self._unborn)
        object.__setattr__(task, _BODY, self._body)
        return task

    def start(self, coroutine: Coroutine[Any, Any, Any], *name: str) -> Any:
        """Run `coroutine` until it waits or ends: what it returned, `Raised`, or `Started` if it waits.

        From its first line to its last it sees the same `asyncio.current_task()`, called by the words of `name`, and
        nothing of what another did to that task or to its context variables. One that cancelled its own task, and
        returned before that arrived, has raised CancelledError. Raises KeyboardInterrupt, as the loop would.
        """
        loop = self._loop
        task = self._spare
        if task is None:
            task = self._new_task()
        # Nobody else may take it: what runs may run the loop, which may start another.
        self._spare, body = None, self._body
        # Always a new one: whether a coroutine set something could only be found by asking its values for equality.
        body.name, body.context = name, self._pristine.copy()
        starter = current_task(loop)
        if starter is not None:
            _leave_task(loop, starter)
        _enter_task(loop, task)
        try:
            awaited = body.context.run(coroutine.send, None)
        except StopIteration as stop:
            outcome = stop.value
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # noqa: BLE001 - whoever started it judges it
            # Without this frame, which would hold the error in its turn, and both until a garbage collection.
            outcome = Raised(error.with_traceback(error.__traceback__ and error.__traceback__.tb_next))
        else:
            body.take_on(coroutine, awaited, task)
            # The loop has to know a task that waits: any question makes it real.
            task.get_name()
            return body
        finally:
            _leave_task(loop, task)
            if starter is not None:
                _enter_task(loop, starter)
        if type(task) is self._unborn:
            # One that somebody keeps is nobody else's; it becomes real, and ends, when it is asked anything. Not now:
            # what garbage still holds, and when that is collected, must not decide how many tasks there are.
            if getrefcount(task) == _OURS and not getweakrefcount(task):
                self._spare, self._body = task, body
        # A request that was taken back says nothing, whether or not it would still have arrived.
        elif task.cancelling() and type(outcome) is not Raised:
            return Raised(asyncio.CancelledError())
        return outcome


def start_own(coroutine: Coroutine[Any, Any, Any], *name: str) -> Any:
    """Run a coroutine of our own in the caller's task until it waits; from then on it has a task of its own.

    What it returned, or `Started` if it waits. What it raises before that is raised here, and so is what the loop's
    task factory raises, after the coroutine was closed. It must not ask which task it is in, nor set context
    variables: both change when it waits.
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    loop = asyncio.get_running_loop()
    body = Started(loop, copy_context())
    body.name = name
    body.take_on(coroutine, awaited, None)
    # A coroutine of Python's would not pass on a cancellation that comes before its first turn.
    runs = body if loop.get_task_factory() is None else _go_on(body)
    try:
        # It waits already, so that an eager task factory does no harm.
        body.task = task = loop.create_task(runs, name=" ".join(name))
    except BaseException:
        runs.close()
        body.close()
        raise
    if runs is not body:
        # What the factory put around it may have been cancelled before it came to this.
        when_done(task, runs.close, body.close)
    return body


def when_done(task: AnyTask, *calls: Callable[[], object]) -> None:
    """Make these calls, in order, once `task` has ended."""

    def make_them(_: object) -> None:
        for call in calls:
            call()

    task.add_done_callback(make_them)


async def _go_on(body: Started) -> None:
    """What a task factory gets, since it may insist on a true coroutine."""
    await body


def stack_is_short() -> bool:
    """Whether so much of the stack is used up, by runs inside runs say, that what begins needs one of its own."""
    try:
        sys._getframe(int(sys.getrecursionlimit() * STACK_SHARE))
    except ValueError:
        return False
    return True


#: So many steps may follow each other without a turn of the loop, whether or not they wait.
TURN_EVERY = 100


@types.coroutine
def one_turn() -> Generator[None, None, None]:
    """Let everybody else have a turn: `asyncio.sleep(0)` without its two layers."""
    yield


class Started(Coroutine[Any, Any, Any]):
    """A coroutine that has begun and waits, as what its task runs.

    Once the coroutine `has_ended`, `value` is what it returned, or `error` what it raised; the task ends with it,
    without a result of its own.
    """

    has_ended = False
    value: Any = None
    error: BaseException | None = None
    #: What its task is called, in words.
    name: tuple[str, ...] = ()
    #: None once it has ended: the two would keep each other in memory.
    task: AnyTask | None = None
    _coroutine: Coroutine[Any, Any, Any] | None = None
    _awaited: Any = None
    _taken_up = False

    def __init__(self, loop: asyncio.AbstractEventLoop, context: Context) -> None:
        self._loop = loop
        self.context = context

    def take_on(self, coroutine: Coroutine[Any, Any, Any], awaited: Any, task: AnyTask | None) -> None:
        """Go on with a coroutine that waits for `awaited`."""
        self._coroutine, self._awaited, self.task = coroutine, awaited, task
        # Under this name tasks are shown.
        self.__qualname__ = getattr(coroutine, "__qualname__", type(coroutine).__qualname__)

    def bear(self, task: AnyTask) -> None:
        """Make `task` real: it will run this."""
        task.__init__(self, loop=self._loop, name=" ".join(self.name), context=self.context)  # type: ignore[misc]

    def is_over(self) -> bool:
        """Whether it will not go on: it has ended, or its task has without it."""
        return self.has_ended or (self.task is not None and self.task.done())

    def result(self) -> Any:
        """What it returned, once it is over; raises what it raised."""
        if not self.has_ended:
            assert self.task is not None
            return self.task.result()
        if self.error is not None:
            raise self.error
        return self.value

    # --- what the task runs ------------------------------------------------------------------------

    def send(self, value: Any) -> Any:
        """The task's turn: its first one takes up what the coroutine waits for already."""
        if self._coroutine is None:
            # Somebody looked at the task, and then nobody needed it.
            raise StopIteration
        if not self._taken_up:
            self._taken_up = True
            return self._awaited
        return self._turn(self._coroutine.send, value)

    def throw(self, *error: Any) -> Any:
        """The task's turn after it was cancelled, or what it waits for failed."""
        if self._coroutine is None:
            # It ends like a task of nothing, without an error to keep in memory.
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
        except KeyboardInterrupt as error:
            # It also ends the loop, unless somebody goes on with that.
            self.has_ended, self.error, self.task = True, error, None
            raise
        except BaseException as error:  # noqa: BLE001 - the loop must not hear of SystemExit, nor log what we keep
            self.has_ended, self.error = True, error
        self.task = None
        raise StopIteration

    def close(self) -> None:
        """Give up what its task will not go on with; does nothing if that has ended."""
        if self._coroutine is not None:
            self._coroutine.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        return self

    def __iter__(self) -> Started:
        return self

    def __next__(self) -> Any:
        return self.send(None)

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


# --- tasks that are not there yet --------------------------------------------------------------------

#: Under this name a task that is not born yet holds what it will run.
_BODY = "_tinyllm_body"
_get = object.__getattribute__


def _kind_of_tasks(loop: asyncio.AbstractEventLoop) -> type[AnyTask]:
    """What a loop says that its tasks are, which it may if it makes them itself; else a task like asyncio's own."""
    kind: type[AnyTask] | None = getattr(loop, "tinyllm_task_class", None)
    return _node_task(asyncio.Task) if kind is None else kind


@cache
def _node_task(kind: type[AnyTask]) -> type[AnyTask]:
    """Tasks of this kind, whose class, unlike that of asyncio's own, may be given to an object that is there already.

    Asked for each run: there are programs that put Python's own task in the place of the compiled one.
    """
    return type("NodeTask", (kind,), {"__slots__": ()})


@cache
def _unborn(kind: type[AnyTask]) -> type[AnyTask]:
    """The class of tasks that will be of `kind`: they become real when anything is asked of them."""
    # Not a second base class: an object may change to a class of the same layout only.
    return type(kind.__name__, (kind,), {"__slots__": (), "born": kind, **_UNBORN})


def _bear(task: Any) -> None:
    body = _get(task, _BODY)
    object.__delattr__(task, _BODY)
    object.__setattr__(task, "__class__", type(task).born)
    body.bear(task)


def _asked_for(task: Any, name: str) -> Any:
    # Whoever walks all objects of a process and asks for their kind must not make tasks.
    if name == "__class__":
        return type(task).born
    _bear(task)
    return getattr(task, name)


def _given(task: Any, name: str, value: Any) -> None:
    _bear(task)
    setattr(task, name, value)


def _awaited(task: Any) -> Any:
    _bear(task)
    return task.__await__()


def _shown(task: Any) -> str:
    _bear(task)
    return repr(task)


def _hashed(task: Any) -> int:
    _bear(task)
    return hash(task)


def _unmissed(_: Any) -> None:
    """Nobody looked: there is nothing to say."""


#: What Python asks of the class, not of the object, and what is asked of the object.
_UNBORN: dict[str, Callable[..., Any]] = {
    "__await__": _awaited,
    "__del__": _unmissed,
    "__getattribute__": _asked_for,
    "__hash__": _hashed,
    "__iter__": _awaited,
    "__repr__": _shown,
    "__setattr__": _given,
}
