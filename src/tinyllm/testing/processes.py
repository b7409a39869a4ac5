"""Hosts of the world, and the processes that run on them: they crash, restart, pause and get slow.

A *host* is a name that stays; a *process* is one life of it. Tasks, timers and callbacks belong to the
process in whose context they were created, so whatever a program starts goes down with it. A crash is no
cancellation: nothing of the process runs any more, no `finally` either, until the loop is closed and all is
over; what is left of it is then closed, in a world in which it can reach nothing.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Literal

from tinyllm.testing.faults import HOME
from tinyllm.testing.loop_errors import SimulationError
from tinyllm.testing.tasks import PROCESS, Runnable, name_of

if TYPE_CHECKING:
    from tinyllm.testing.loop import SimulatedLoop
    from tinyllm.testing.tasks import SimulatedTask

__all__ = ["PROCESS", "Governor", "Host", "HostError", "Process", "current_host"]

State = Literal["up", "paused", "dead"]
Program = Callable[..., Coroutine[Any, Any, Any]]


class HostError(SimulationError):
    """Something was asked of a host that it cannot do in its state; says which, and what to call first."""


class Process:
    """One life of a host, counted from 1. `parked` are the callbacks that it could not run."""

    __slots__ = ("busy_until_ns", "host", "number", "parked", "state", "step_ns")

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.number = number
        self.state: State = "up"
        self.parked: deque[Runnable] = deque()
        self.step_ns = 0
        self.busy_until_ns = 0

    def __repr__(self) -> str:
        return f"<Process {self.number} of {self.host.name} {self.state}>"

    @property
    def dead(self) -> bool:
        return self.state == "dead"


def current_host() -> str:
    """The name of the host that the running code belongs to; `HOME` for code that belongs to none."""
    process = PROCESS.get()
    return HOME if process is None else process.host.name


class Governor:
    """Decides which callbacks may run, while some process is not simply up. The loop asks it before each.

    `awaits`, if set, is told each task that is about to go on, so that a fault can cancel it just there.
    """

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._odd: set[tuple[str, int]] = set()
        self.awaits: Callable[[SimulatedTask[Any]], None] | None = None

    def watch(self, process: Process) -> None:
        """Called whenever the state or the speed of *process* has changed."""
        key = (process.host.name, process.number)
        if process.state == "up" and not process.step_ns and process.busy_until_ns <= self._loop.time_ns:
            self._odd.discard(key)
        else:
            self._odd.add(key)
        self.engage()

    def engage(self) -> None:
        """Have the loop ask, or not ask, as there is something to decide or not."""
        self._loop.governor = self if self._odd or self.awaits is not None else None

    def takes(self, handle: Runnable) -> bool:
        """Whether *handle* must not run now. It is then kept, or will come again later."""
        process = handle._context.get(PROCESS)
        if process is not None:
            if process.state != "up":
                process.parked.append(handle)
                return True
            if handle.task is not None and (process.step_ns or process.busy_until_ns):
                now_ns = self._loop.time_ns
                if process.busy_until_ns > now_ns:
                    self._loop.defer(handle, process.busy_until_ns)
                    return True
                process.busy_until_ns = now_ns + process.step_ns
        if self.awaits is not None and handle.task is not None:
            self.awaits(handle.task)  # type: ignore[arg-type]
        return False


class Host:
    """A machine of the world. Made by `World.host`.

    `programs` run on it, and start again when it does. `on_crash` is called with the process that died, in
    the order of the list: the network breaks its connections there, the disk forgets what was not synced.
    """

    def __init__(self, name: str, number: int, loop: SimulatedLoop, governor: Governor) -> None:
        self.name = name
        self.address = f"10.0.{number >> 8}.{number & 255}"
        self._loop = loop
        self._governor = governor
        self.process = Process(self, 1)
        self.on_crash: list[Callable[[Process], None]] = []
        self._programs: list[tuple[Program, tuple[Any, ...], str | None]] = []

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.process.state}>"

    @property
    def up(self) -> bool:
        """Whether it is neither crashed nor paused."""
        return self.process.state == "up"

    def context(self) -> Context:
        """A copy of the current context that belongs to this host's process."""
        context = copy_context()
        context.run(PROCESS.set, self.process)
        return context

    def start(self, program: Program, *args: Any, name: str | None = None) -> SimulatedTask[Any]:
        """Run `program(*args)` as a task of this host, now and again each time the host restarts.

        Its exceptions are the world's to judge, as those of every task that nobody awaits.

        Raises:
            HostError: the host is down.
            TypeError: *program* is a coroutine, which could not start again.
        """
        if not callable(program):
            getattr(program, "close", _nothing)()
            raise TypeError(f"start takes a coroutine function, not {name_of(program)}: it may have to start again")
        if self.process.dead:
            raise HostError(f"host {self.name!r} is down; restart it first")
        self._programs.append((program, args, name))
        return self._begin(program, args, name)

    def _begin(self, program: Program, args: tuple[Any, ...], name: str | None) -> SimulatedTask[Any]:
        context = self.context()
        return self._loop.create_task(context.run(program, *args), name=name, context=context)

    def run(self, call: Callable[..., Any], *args: Any) -> Any:
        """Call *call* as this host would, and return what it returns: a client made here belongs to it."""
        return self.context().run(call, *args)

    def crash(self) -> None:
        """Lose power. Does nothing if it is down."""
        process = self.process
        if process.dead:
            return
        process.state = "dead"
        self._governor.watch(process)
        for call in self.on_crash:
            call(process)

    def restart(self) -> None:
        """Start again with all programs; a host that is up or paused crashes first."""
        self.crash()
        self.process = Process(self, self.process.number + 1)
        for program in self._programs:
            self._begin(*program)

    def pause(self) -> None:
        """Stand still. Does nothing if it is paused or down."""
        if self.process.state == "up":
            self.process.state = "paused"
            self._governor.watch(self.process)

    def resume(self) -> None:
        """Go on after a pause: all that waited runs, in its order. Does nothing if it is up or down."""
        process = self.process
        if process.state == "paused":
            process.state = "up"
            self._governor.watch(process)
            self._loop.make_ready(process.parked)
            process.parked.clear()

    def saturate(self, step_ns: int) -> None:
        """Let each step of its tasks take *step_ns* nanoseconds from now on, and its tasks take turns; 0 ends it."""
        self.process.step_ns = step_ns
        self._governor.watch(self.process)

    def charge(self, duration_ns: int) -> None:
        """Let the host's one thread of tasks be busy for *duration_ns* from now: a call that blocks."""
        if duration_ns > 0:
            process = self.process
            process.busy_until_ns = max(process.busy_until_ns, self._loop.time_ns) + duration_ns
            self._governor.watch(process)


def _nothing() -> None:
    """What is called of things that need no closing."""
