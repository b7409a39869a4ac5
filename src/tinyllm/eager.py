"""Coroutines that begin at once, inside whoever starts them, and cost a task and turns of the loop only if they wait.

What Python 3.12 calls eager tasks, for 3.11 too, and cheaper: a coroutine that never waits runs in a task that does not
exist until somebody looks at it. All that a run starts share one such task and one copy of the run's context variables,
one after another, for as long as none of them touches either.
"""

from __future__ import annotations

import asyncio
import types

# Made for loops and tasks that are not asyncio's own: "Extending" in Python's documentation of asyncio.
from asyncio.tasks import _enter_task, _leave_task, current_task
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, copy_context
from dataclasses import dataclass
from functools import cache
from typing import Any

AnyTask = asyncio.Task[Any]


@dataclass(frozen=True, slots=True)
class Raised:
    """What a coroutine raised; one that returns an exception did not raise it."""

    error: BaseException


class EagerTasks:
    """Starts coroutines one after another, without a turn of the loop between them."""

    __slots__ = ("_body", "_loop", "_pristine", "_task", "_unborn")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pristine = copy_context()
        self._unborn = _unborn(_kind_of_tasks(loop))
        self._renew()

    def _renew(self) -> None:
        """A task of which nobody knows yet, for those that are started from now on."""
        self._body = Started(self._loop, self._pristine.copy())
        self._task: AnyTask = self._unborn.__new__(self._unborn)
        object.__setattr__(self._task, _BODY, self._body)

    def start(self, coroutine: Coroutine[Any, Any, Any], *name: str) -> Any:
        """Run `coroutine` until it waits or ends: what it returned, `Raised`, or `Started` if it waits.

        From its first line to its last it sees the same `asyncio.current_task()`, called by the words of `name`, and
        nothing of what another did to that task or to its context variables. One that cancelled its own task, and
        returned before that arrived, has raised CancelledError. Raises KeyboardInterrupt, as the loop would.
        """
        loop, body, task = self._loop, self._body, self._task
        body.name = name
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
            outcome = Raised(error)
        else:
            body.take_on(coroutine, awaited, task)
            # The loop has to know a task that waits: any question makes it real.
            task.get_name()
            self._renew()
            return body
        finally:
            _leave_task(loop, task)
            if starter is not None:
                _enter_task(loop, starter)
        if type(task) is self._unborn and body.context == self._pristine:
            return outcome
        self._renew()
        # A request that was taken back says nothing, whether or not it would still have arrived.
        if type(task) is not self._unborn and task.cancelling() and type(outcome) is not Raised:
            return Raised(asyncio.CancelledError())
        return outcome


def start_own(coroutine: Coroutine[Any, Any, Any], *name: str) -> Any:
    """Run a coroutine of our own in the caller's task until it waits; from then on it has a task of its own.

    What it returned, or `Started` if it waits. What it raises before that is raised here. It must not ask which
    task it is in, nor set context variables: both change when it waits.
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    loop = asyncio.get_running_loop()
    body = Started(loop, copy_context())
    body.name = name
    body.take_on(coroutine, awaited, None)
    # It waits already, so that an eager task factory does no harm.
    body.task = loop.create_task(body, name=" ".join(name))
    return body


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

    def result(self) -> Any:
        """What it returned, once it has ended; raises what it raised."""
        assert self.has_ended
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


# --- tasks that are not there yet --------------------------------------------------------------------

#: Under this name a task that is not born yet holds what it will run.
_BODY = "_tinyllm_body"


class NodeTask(AnyTask):
    """A task like asyncio's own, whose class, unlike that one's, may be given to an object that is there already."""

    __slots__ = ()


def _kind_of_tasks(loop: asyncio.AbstractEventLoop) -> type[AnyTask]:
    """The class of tasks on this loop, as far as the one that runs now can tell."""
    running = current_task(loop)
    if running is None or loop.get_task_factory() is not None:
        return NodeTask
    # One that is not born yet tells what it will be.
    kind = running.__class__
    return NodeTask if kind is asyncio.Task else kind


class _Unborn:
    """Makes tasks of its subclasses become real when anything is asked of them: `born` is their class then."""

    __slots__ = ()
    born: type[AnyTask]

    def __getattribute__(self, name: str) -> Any:
        # Whoever walks all objects of a process and asks for their kind must not make tasks.
        if name == "__class__":
            return type(self).born
        _bear(self)
        return getattr(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _bear(self)
        setattr(self, name, value)

    def __repr__(self) -> str:
        _bear(self)
        return repr(self)

    def __hash__(self) -> int:
        _bear(self)
        return hash(self)

    def __del__(self) -> None:
        """Nobody looked: there is nothing to say."""


def _bear(task: Any) -> None:
    body = object.__getattribute__(task, _BODY)
    object.__delattr__(task, _BODY)
    object.__setattr__(task, "__class__", type(task).born)
    body.bear(task)


@cache
def _unborn(kind: type[AnyTask]) -> type[AnyTask]:
    """The class of such tasks as will be of `kind`."""
    return type(kind.__name__, (_Unborn, kind), {"__slots__": (), "born": kind})
