"""What the simulated loop runs: tasks, futures and handles that do not know their own addresses.

asyncio keeps tasks in sets, and a set of ordinary objects iterates in the order of their addresses, which
differs from run to run. Here a task's hash is its creation number, and so is a future's. Names and reprs
hold numbers, never addresses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Generator
from contextvars import Context, ContextVar, copy_context
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, Final, TypeAlias, TypeVar

if TYPE_CHECKING:
    from tinyllm.testing.loop import SimulatedLoop
    from tinyllm.testing.processes import Process

_T = TypeVar("_T")

Runnable: TypeAlias = "SimulatedHandle | SimulatedTimer"

OWNER: ContextVar[object] = ContextVar("tinyllm_owner", default=None)
"""Whose work this is, a simulated host for example. Tasks and timers inherit it from whoever creates them."""


class Nobody(Enum):
    """Stands for no process at all, where None would mean that of the host on which programs run by default."""

    NOBODY = "nobody"


PROCESS: ContextVar[Process | Nobody | None] = ContextVar("tinyllm_process", default=None)
"""The process whose work this is, inherited in the same way; `Nobody.NOBODY` for the world's own."""


def process_of(context: Context) -> Process | None:
    """The process that what runs in *context* says it belongs to; None if it says none."""
    process = context.get(PROCESS)
    return None if isinstance(process, Nobody) else process


def current_process() -> Process | None:
    """The process that the running code says it belongs to; None if it says none."""
    process = PROCESS.get()
    return None if isinstance(process, Nobody) else process


def nobodys_context() -> Context:
    """An empty context for what the world does by itself: no process can hold it up, and no crash end it."""
    context = Context()
    context.run(PROCESS.set, Nobody.NOBODY)
    return context


# What made a task ready: nobody outside the program; some step of it, where that is told apart; a timer; or
# simulated input and executor jobs.
NOBODY: Final = 0
STEP: Final = 1
TIMER: Final = 2
OUTSIDE: Final = 3

# What a task offers to call as a callback, `task.cancel` for example: its own, but no wake-up of it.
_PUBLIC_METHODS: Final = frozenset(name for name in dir(asyncio.Task) if not name.startswith("_"))


def woken_by(callback: Callable[..., object]) -> asyncio.Task[Any] | None:
    """The task that *callback* starts or wakes; None for every other callback.

    A task schedules something of its own that is bound to it, but no method that others may call.
    """
    task = getattr(callback, "__self__", None)
    if not isinstance(task, asyncio.Task) or getattr(callback, "__name__", None) in _PUBLIC_METHODS:
        return None
    return task


def name_of(thing: object) -> str:
    """The qualified name of a function or coroutine, or of its type: never an address."""
    return getattr(thing, "__qualname__", None) or type(thing).__qualname__


class SimulatedTask(asyncio.Task[_T]):
    """A task whose hash is its creation number, counted from 1 in each loop.

    Without a name it is called after its coroutine: `fetch#7`. `owner` and `process` are the values of
    `OWNER` and `PROCESS` in its context at the moment it was created; a task of no process belongs to that of
    the loop's `home`, if it has one.

    Raises:
        FencedError: *eager_start* is true: a task that runs at creation is not in the hands of the schedule.
    """

    __slots__ = ("number", "owner", "process")
    _log_destroy_pending: bool

    def __init__(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        loop: SimulatedLoop,
        name: str | None = None,
        context: Context | None = None,
        eager_start: bool = False,
    ) -> None:
        if eager_start:
            loop.refuse("eager_start")
        # Both come before the constructor of the base class, which puts the task into a set and schedules it.
        self.number: int = loop.next_task_number()
        self.owner: object = OWNER.get() if context is None else context.get(OWNER)
        process = PROCESS.get() if context is None else context.get(PROCESS)
        if process is None and loop.home is not None:
            process = loop.home.process
        self.process: Process | None = None if isinstance(process, Nobody) else process
        if name is None:
            name = f"{name_of(coro)}#{self.number}"
        body: Any = coro
        super().__init__(body, loop=loop, name=name, context=context)
        if loop._debug:
            forget_maker(self)
        loop.remember(self)

    def cancel(self, msg: Any | None = None) -> bool:
        """Cancel as asyncio does; a wake-up that is held back goes at once.

        On asyncio the answer that the hold keeps away would simply not have come yet, and a task that
        waits for it can be cancelled at any moment. A task of a dead process counts as cancelled at once, and
        runs none of its code: who awaits it shall not wait for ever.
        """
        if self.process is not None and self.process.dead:
            self.get_loop().keep_dead(self)  # type: ignore[attr-defined]
            return asyncio.Future.cancel(self, msg)
        cancelled = super().cancel(msg)
        if cancelled:
            self.get_loop().cut_hold(self)  # type: ignore[attr-defined]
        return cancelled

    def __hash__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"<SimulatedTask {self.get_name()!r} {_state(self)}>"


class SimulatedFuture(asyncio.Future[_T]):
    """A future whose hash is its creation number, counted from 1 in each loop, apart from the tasks."""

    __slots__ = ("number",)

    def __init__(self, *, loop: SimulatedLoop) -> None:
        self.number: int = loop.next_future_number()
        super().__init__(loop=loop)
        if loop._debug:
            forget_maker(self)

    def __hash__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"<SimulatedFuture #{self.number} {_state(self)}>"


def forget_maker(future: asyncio.Future[Any]) -> None:
    """Let the place where *future* was made, which debug mode keeps, be the caller's and not our own last line."""
    made_at: list[Any] | None = future._source_traceback  # type: ignore[attr-defined]
    if made_at:
        del made_at[-1]


def _state(future: asyncio.Future[Any]) -> str:
    if not future.done():
        return "cancelling" if isinstance(future, asyncio.Task) and future.cancelling() else "pending"
    return "cancelled" if future.cancelled() else "finished"


def _nothing() -> None:
    """What a cancelled handle calls."""


class SimulatedHandle(asyncio.Handle):
    """A callback that is ready to run.

    `task` is the task it starts or wakes, if any. `external` says what woke whatever it wakes: `NOBODY`
    outside the program, a `TIMER`, or something `OUTSIDE`, simulated input for example. `eligible` is what
    woke its own task, if a hold may delay it for that, else NOBODY.
    """

    __slots__ = ("eligible", "external", "task")
    _callback: Callable[..., object]
    _context: Context

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimulatedLoop,
        context: Context | None,
        eligible: int,
    ) -> None:
        # The base constructor is not called: it does the same after asking for the debug mode, and this
        # is the busiest constructor of a run.
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = copy_context() if context is None else context
        self._cancelled = False
        self._source_traceback = None
        self._repr = None
        self.task = woken_by(callback)
        self.external = NOBODY
        self.eligible = eligible

    def cancel(self) -> None:
        """Never run it. Does nothing the second time or when it has run."""
        self._cancelled = True
        self._callback = _nothing
        self._args = ()


class SimulatedTimer(asyncio.TimerHandle):
    """A callback for a moment of virtual time; `when_ns` is None if that moment never comes.

    `owner` is the value of `OWNER` in its context at the moment it was created.
    """

    __slots__ = ("external", "owner", "when_ns")
    _callback: Callable[..., object]
    _context: Context
    _loop: SimulatedLoop
    _when: float
    _scheduled: bool

    task: ClassVar[None] = None
    eligible: ClassVar[int] = NOBODY

    def __init__(
        self,
        when_ns: int | None,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: SimulatedLoop,
        context: Context | None,
    ) -> None:
        self.when_ns = when_ns
        self.external = TIMER
        self.owner: object = OWNER.get() if context is None else context.get(OWNER)
        self._when = float("inf") if when_ns is None else when_ns / 1e9
        self._scheduled = False
        self._callback = callback
        self._args = args
        self._loop = loop
        self._context = copy_context() if context is None else context
        self._cancelled = False
        self._source_traceback = None
        self._repr = None

    def cancel(self) -> None:
        """Never run it. Does nothing the second time or when it has run."""
        if self._cancelled:
            return
        self._cancelled = True
        self._callback = _nothing
        self._args = ()
        if self._scheduled:
            self._loop.forget_timer()
