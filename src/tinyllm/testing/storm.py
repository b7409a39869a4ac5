"""The faults of a plan that last: they begin at their time, end at theirs, and healing ends them all."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from tinyllm.testing.disk.disk import Unsynced
from tinyllm.testing.faults import (
    ClockDrift,
    ClockJump,
    CpuSaturation,
    Crash,
    DiskFull,
    HostDown,
    LastingFault,
    LostWrites,
    MemoryPressure,
    OfLinks,
    Pause,
    QueueFull,
    ReorderedWrites,
    Restart,
    SlowSync,
    TornWrite,
)
from tinyllm.testing.loop import SimulatedLoop, SimulatedTimer
from tinyllm.testing.tasks import nobodys_context
from tinyllm.testing.units import NS_PER_MS

if TYPE_CHECKING:
    from tinyllm.testing.world import World

__all__ = ["Storm"]

#: Faults that take a host down, and what is left of the writes that it had not synced.
_POWER: Final[dict[type[LastingFault], Unsynced]] = {
    Crash: "lost",
    HostDown: "lost",
    Restart: "lost",
    LostWrites: "prefix",
    TornWrite: "torn",
    ReorderedWrites: "reordered",
}


class Storm:
    """Begins and ends the lasting faults of one world.

    Of faults that set the same thing on the same host the latest to begin decides, and when it ends those
    that still last do again. A fault that was to begin after the healing never does.
    """

    def __init__(self, world: World, faults: Iterable[LastingFault]) -> None:
        self._world = world
        self._loop: SimulatedLoop = world.loop
        self._active: list[tuple[int, LastingFault]] = []
        self._timers: list[SimulatedTimer] = []
        self._first: list[tuple[SimulatedTimer, int, LastingFault]] = []
        for number, fault in enumerate(faults):
            timer = self._set(fault.start_ms, self._begin, number, fault)
            if not fault.start_ms:
                self._first.append((timer, number, fault))

    def _set(self, at_ms: int, call: Callable[..., None], *args: object) -> SimulatedTimer:
        # The weather belongs to no host, and goes on when all of them stand still.
        delay_ns = max(0, at_ms * NS_PER_MS - self._loop.time_ns)
        timer = self._loop.call_later(delay_ns / 1e9, call, *args, context=nobodys_context())
        self._timers.append(timer)
        return timer

    def set_in(self) -> None:
        """Begin, before anything runs, the faults that last from the start. Afterwards it does nothing."""
        first, self._first = self._first, []
        for timer, number, fault in first:
            if not (timer.cancelled() or self._loop.batch):
                timer.cancel()
                self._begin(number, fault)

    def _begin(self, number: int, fault: LastingFault) -> None:
        self._note(fault, "begins")
        begin(self._world, fault)
        if isinstance(fault, Restart):
            self._world.host(fault.host).restart()
            return
        self._active.append((number, fault))
        if fault.duration_ms is not None:
            self._set(fault.start_ms + fault.duration_ms, self._end, number)

    def _end(self, number: int) -> None:
        entry = next((entry for entry in self._active if entry[0] == number), None)
        if entry is None:
            return
        self._active.remove(entry)
        fault = entry[1]
        self._note(fault, "ends")
        others = [other for _, other in self._active if _same_thing(other, fault)]
        if type(fault) in _POWER and others:
            return
        end(self._world, fault)
        for other in others:
            begin(self._world, other)

    def _note(self, fault: LastingFault, what: str) -> None:
        about = ", ".join(fault.hosts) or "all links" if isinstance(fault, OfLinks) else fault.host
        self._world.note(f"{fault!r} {what}", who=about)

    def heal(self) -> None:
        """End whatever lasts, in the order in which it began, and let nothing begin any more."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        for number, _ in list(self._active):
            self._end(number)


def _same_thing(one: LastingFault, other: LastingFault) -> bool:
    """Whether both set the same thing of the same host. Faults of links and jumps of clocks add up, and never do."""
    if isinstance(one, OfLinks | ClockJump) or isinstance(other, OfLinks) or one.host != other.host:
        return False
    return type(one) is type(other) or (type(one) in _POWER and type(other) in _POWER)


def begin(world: World, fault: LastingFault) -> None:
    """Let *fault* begin."""
    if isinstance(fault, OfLinks):
        world.links.begin(fault)
        return
    host = world.host(fault.host)
    if (unsynced := _POWER.get(type(fault))) is not None:
        host.crash(unsynced, getattr(fault, "choice", 0))
        return
    match fault:
        case Pause():
            host.pause()
        case CpuSaturation(step_us=step_us):
            host.saturate(step_us * 1_000)
        case DiskFull(free_bytes=free_bytes):
            host.disk.capacity_bytes = host.disk.used_bytes + free_bytes
        case SlowSync(delay_ms=delay_ms):
            host.disk.sync_cost_ns = delay_ms * NS_PER_MS
        case ClockJump(jump_ms=jump_ms):
            host.clock.jump(jump_ms)
        case ClockDrift(ppm=ppm):
            host.clock.drift(ppm)
        case MemoryPressure(budget_bytes=budget_bytes):
            host.memory.shrink(budget_bytes)
            host.window_bytes = budget_bytes
        case QueueFull():
            world.queues.fill(host.name)


def end(world: World, fault: LastingFault) -> None:
    """Let *fault* last no longer, and with it all that sets the same thing."""
    if isinstance(fault, OfLinks):
        world.links.end(fault)
        return
    host = world.host(fault.host)
    if type(fault) in _POWER:
        if host.process.dead:  # or somebody has started it in the meantime
            host.restart()
        return
    match fault:
        case Pause():
            host.resume()
        case CpuSaturation():
            host.saturate(0)
        case DiskFull():
            host.disk.capacity_bytes = host.capacity_bytes
        case SlowSync():
            host.disk.sync_cost_ns = 0
        case ClockJump(jump_ms=jump_ms):
            host.clock.jump(-jump_ms)
        case ClockDrift():
            host.clock.correct_drift()
        case MemoryPressure():
            host.memory.restore()
            host.window_bytes = None
        case QueueFull():
            world.queues.drain(host.name)
