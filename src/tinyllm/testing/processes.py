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
from typing import TYPE_CHECKING, Any, Literal, cast

from tinyllm.testing.faults import HOME
from tinyllm.testing.tasks import (
    PROCESS,
    Nobody,
    Runnable,
    SimulatedTimer,
    current_process,
    name_of,
    nobodys_context,
)

if TYPE_CHECKING:
    from tinyllm.testing.loop import SimulatedLoop
    from tinyllm.testing.tasks import SimulatedTask

__all__ = ["Governor", "Host", "Process", "current_host"]

State = Literal["up", "paused", "dead"]
Program = Callable[..., Coroutine[Any, Any, Any]]


class Process:
    """One life of a host, counted from 1.

    While it stands still its callbacks wait as they would in front of a loop of its own: the `rest` of the batch
    in which it stopped, what is `following` for the next batch, and the `timers` that became due meanwhile and
    go behind that. A loop that was `late` to wake up takes the timers first: see `Governor.release`.
    """

    __slots__ = (
        "batch", "busy_until_ns", "following", "granted", "host", "late", "number", "rest", "state",
        "timers", "wakes",
    )  # fmt: skip

    def __init__(self, host: Host, number: int) -> None:
        self.host = host
        self.number = number
        self.state: State = "up"
        self.rest: deque[Runnable] = deque()
        self.following: deque[Runnable] = deque()
        self.timers: deque[Runnable] = deque()
        #: The loop's batch in which it came to stand still.
        self.batch = 0
        #: How many callbacks are in front of everything else now because it may go on.
        self.granted = 0
        self.late = False
        self.busy_until_ns = 0
        #: Whether a timer is set that lets it go on.
        self.wakes = False

    def __repr__(self) -> str:
        return f"<Process {self.number} of {self.host.name} {self.state}>"

    @property
    def dead(self) -> bool:
        return self.state == "dead"

    @property
    def waits(self) -> bool:
        """Whether it has callbacks that it could not run yet."""
        return bool(self.rest or self.following or self.timers)

    def idle(self, now_ns: int) -> bool:
        """Whether it would run now what came to it now."""
        return self.state == "up" and self.busy_until_ns <= now_ns and not self.waits


def current_host() -> str:
    """The name of the host that the running code belongs to; `HOME` for code that belongs to none."""
    process = current_process()
    return HOME if process is None else process.host.name


class Governor:
    """Decides which callbacks may run, while some process is not simply up. The loop asks it before each.

    `awaits`, if set, is told each task that is about to go on, so that a fault can cancel it just there.
    `trace`, if set, gets whatever runs: when, and the name of the task or of the callback.
    Call `engage` after setting either.
    """

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._odd: set[tuple[str, int]] = set()
        self.awaits: Callable[[SimulatedTask[Any]], None] | None = None
        self.trace: list[tuple[int, str]] | None = None

    def watch(self, process: Process) -> None:
        """Called whenever the state or the speed of *process* has changed."""
        key = (process.host.name, process.number)
        busy = process.busy_until_ns > self._loop.batch_ns
        if process.state == "up" and not process.host.step_ns and not busy and not process.waits:
            self._odd.discard(key)
        else:
            self._odd.add(key)
        self.engage()

    def engage(self) -> None:
        """Have the loop ask, or not ask, as there is something to decide or not."""
        needed = self._odd or self.awaits is not None or self.trace is not None
        self._loop.governor = self if needed else None

    def begins(self, handle: Runnable) -> None:
        """Called with each callback that is about to run."""
        if handle.task is not None:
            process = self._process_of(handle)
            if process is not None and process.host.step_ns:
                self.occupy(process, process.host.step_ns)
        if self.trace is not None:
            name = name_of(handle._callback) if handle.task is None else handle.task.get_name()
            self.trace.append((self._loop.batch_ns, name))
        if self.awaits is not None and handle.task is not None:
            self.awaits(cast("SimulatedTask[Any]", handle.task))

    def keeps(self, handle: Runnable) -> bool:
        """Keep *handle* if its process stands still, or has others to run before it; tell whether it does.

        What is kept runs when its process can; never if it is dead.
        """
        self._loop.blocked_ns = 0
        process = self._process_of(handle)
        if process is None:
            return False
        granted = process.granted > 0
        process.granted -= granted
        stands = process.state != "up" or process.busy_until_ns > self._loop.batch_ns
        if not stands and (granted or not process.waits):
            return False
        self._put(process, handle, granted=granted)
        self._wake_later(process)
        return True

    def _process_of(self, handle: Runnable) -> Process | None:
        if handle.task is not None:
            return getattr(handle.task, "process", None)
        process = handle._context.get(PROCESS)
        if process is None:
            return None if self._loop.home is None else self._loop.home.process
        return None if isinstance(process, Nobody) else process

    def stall(self, process: Process, handle: Runnable, duration_ns: int, *, late: bool) -> None:
        """Keep *handle*, which was about to run, and all that comes after it, for so long."""
        self.occupy(process, duration_ns)
        process.late = late
        process.rest.append(handle)
        self._wake_later(process)

    def _put(self, process: Process, handle: Runnable, *, granted: bool) -> None:
        if granted or (process.batch == self._loop.batch and not isinstance(handle, SimulatedTimer)):
            process.rest.append(handle)
        elif isinstance(handle, SimulatedTimer):
            process.timers.append(handle)
        else:
            process.following.append(handle)

    def stop(self, process: Process) -> None:
        """Called when *process* comes to stand still."""
        if not process.waits:
            process.batch = self._loop.batch

    def occupy(self, process: Process, duration_ns: int) -> None:
        """Let *process* be busy for so much longer."""
        self.stop(process)
        process.busy_until_ns = max(process.busy_until_ns, self._loop.batch_ns) + duration_ns
        self.watch(process)

    def _wake_later(self, process: Process) -> None:
        if process.state == "up" and not process.wakes:
            process.wakes = True
            delay_ns = max(0, process.busy_until_ns - self._loop.batch_ns)
            self._loop.call_later(delay_ns / 1e9, self._wake, process, context=nobodys_context())

    def _wake(self, process: Process) -> None:
        process.wakes = False
        if process.busy_until_ns > self._loop.batch_ns:
            self._wake_later(process)
        elif process.state == "up":
            self.release(process)

    def go_on(self, process: Process) -> None:
        """Called when *process* was paused and is no longer."""
        if process.waits:
            self._wake_later(process)
        self.watch(process)

    def release(self, process: Process) -> None:
        """Let *process* go on with the rest of its batch, or with the next one, as a loop of its own would.

        asyncio collects the timers that are due between two batches, behind what the steps of the batch before
        made ready. One that wakes up late collects them before it wakes any task.
        """
        # Some may have been set while it stood still, for moments before those of others that were due already.
        timers = sorted(process.timers, key=_moment)
        if process.late:
            # Those in the rest were woken by timers of the same moment, and go on with what these wake now.
            batch = timers
            process.following.extendleft(reversed(process.rest))
            process.timers.clear()
        elif process.rest:
            batch = list(process.rest)
        else:
            batch = [*process.following, *timers]
            process.following.clear()
            process.timers.clear()
        process.late = False
        process.rest.clear()
        process.granted = len(batch)
        self._loop.put_in_front(batch)
        if process.waits:
            self._wake_later(process)


def _moment(timer: Runnable) -> int:
    return (timer.when_ns or 0) if isinstance(timer, SimulatedTimer) else 0


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
        #: How many bytes its kernel takes for a reader that does not read, if less than others.
        self.window_bytes: int | None = None
        #: How long each step of its tasks takes, also after a restart.
        self.step_ns = 0
        #: Whether anything has ever kept it from running as fast as it can.
        self.hindered = False
        self.on_crash: list[Callable[[Process], None]] = []
        self._programs: list[tuple[Program, tuple[Any, ...], str | None]] = []

    def __repr__(self) -> str:
        return f"<Host {self.name} {self.process.state}>"

    @property
    def up(self) -> bool:
        """Whether it is neither crashed nor paused."""
        return self.process.state == "up"

    def window(self, most_bytes: int) -> int:
        """How many bytes its kernel takes for a reader that does not read, if others take *most_bytes*.

        One byte at least, or nothing would ever arrive.
        """
        return most_bytes if self.window_bytes is None else max(1, min(most_bytes, self.window_bytes))

    def context(self) -> Context:
        """A copy of the current context that belongs to this host's process."""
        context = copy_context()
        context.run(PROCESS.set, self.process)
        return context

    def start(
        self, program: Program | Coroutine[Any, Any, Any], *args: Any, name: str | None = None
    ) -> Any:
        """Run `program(*args)` as a task of this host, now and again each time the host restarts; give the task.

        On a host that is down it starts with the host; then there is no task yet, and it gives None.

        Its exceptions are the world's to judge, as those of every task that nobody awaits.

        Raises:
            TypeError: *program* is a coroutine, which could not start again.
        """
        if isinstance(program, Coroutine):
            program.close()
            raise TypeError(f"start takes a coroutine function, not {name_of(program)}: it may have to start again")
        self._programs.append((program, args, name))
        return None if self.process.dead else self._begin(program, args, name)

    def forget(self, program: Program) -> None:
        """Let *program* not start again when the host does; what runs of it goes on."""
        self._programs = [entry for entry in self._programs if entry[0] is not program]

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
        self.hindered = True
        process.state = "dead"
        self._governor.watch(process)
        for call in self.on_crash:
            call(process)

    def restart(self) -> None:
        """Start again with all programs; a host that is up or paused crashes first."""
        self.crash()
        self.process = Process(self, self.process.number + 1)
        self._governor.watch(self.process)
        for program in self._programs:
            self._begin(*program)

    def pause(self) -> None:
        """Stand still. Does nothing if it is paused or down."""
        if self.process.state == "up":
            self.hindered = True
            self._governor.stop(self.process)
            self.process.state = "paused"
            self._governor.watch(self.process)

    def resume(self) -> None:
        """Go on after a pause: all that waited runs, in its order. Does nothing if it is up or down."""
        process = self.process
        if process.state == "paused":
            self.hindered = True
            process.state = "up"
            self._governor.go_on(process)

    def saturate(self, step_ns: int) -> None:
        """Let each step of its tasks take *step_ns* nanoseconds from now on, and its tasks take turns; 0 ends it."""
        self.hindered = True
        self.step_ns = step_ns
        self._governor.watch(self.process)

    def stall(self, handle: Runnable, duration_ns: int, *, late: bool) -> None:
        """Let the process stand still in front of a step: as if the step before took so long, or its loop woke up
        so *late*."""
        self._governor.stall(self.process, handle, duration_ns, late=late)

    def charge(self, duration_ns: int) -> None:
        """Let the thread that runs now be busy for *duration_ns*: a call that blocks.

        In an executor job only its result is late; elsewhere all tasks of the host wait.
        """
        if self._loop.job_cost_ns is not None:
            self._loop.job_cost_ns += duration_ns
        elif duration_ns > 0:
            self._governor.occupy(self.process, duration_ns)
            self._loop.blocked_ns += duration_ns
