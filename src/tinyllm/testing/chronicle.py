"""What one life of a world leaves behind: what happened when, and what is wrong with it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from tinyllm.testing.faults import At
from tinyllm.testing.holds import AppliedHold
from tinyllm.testing.loop_errors import SimulationError
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.units import NS_PER_MS

if TYPE_CHECKING:
    from tinyllm.testing.world import World

__all__ = ["Chronicle", "Event", "Problem", "WorldError", "events_of", "first_difference"]

#: What the world notes when it is healed.
HEALED = "is healed"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the world did, or that was done to it: when, to whom, and what."""

    at_ns: int
    who: str
    what: str

    def __str__(self) -> str:
        return f"{self.at_ns / NS_PER_MS:>12.3f}  {self.who:<18}  {self.what}"


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is wrong with a life, and the exception behind it if there is one."""

    text: str
    error: BaseException | None = None


class WorldError(SimulationError):
    """What was wrong with a life of a world after its storm; `problems` has each."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(problem.text for problem in self.problems))


@dataclass(frozen=True, kw_only=True)
class Chronicle:
    """One life of a world.

    `left` are the tasks that were still there at its end, `missed` the faults that never struck; `trace` has
    every step that ran, if the world kept it.
    """

    plan: WorldPlan
    events: tuple[Event, ...]
    problems: tuple[Problem, ...]
    left: tuple[str, ...]
    simulated_ns: int
    steps: int
    missed: tuple[At, ...] = ()
    trace: tuple[tuple[int, str], ...] | None = None

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """Everything that happened, a line each, in a fixed order."""
        return tuple(self._lines())

    def _lines(self) -> Iterator[str]:
        for at_ns, name in self.trace or ():
            yield f"{at_ns} {name}"
        for event in self.events:
            yield f"{event.at_ns} {event.who}: {event.what}"
        for problem in self.problems:
            yield problem.text
        yield f"left {', '.join(self.left)}; {self.simulated_ns} ns, {self.steps} steps"

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all lines: equal lives have equal digests, in every process."""
        return hashlib.sha256("\n".join(self.lines).encode("utf-8", "surrogatepass")).hexdigest()

    def raise_problems(self) -> None:
        """Raise WorldError if anything is wrong; the first exception behind it is its cause."""
        if self.problems:
            cause = next((problem.error for problem in self.problems if problem.error is not None), None)
            raise WorldError(self.problems) from cause


def events_of(world: World) -> tuple[Event, ...]:
    """All that the parts of a world put down, by time; what happened at one moment in a fixed order.

    Then the healing, and whatever is noted after it, comes after all that struck before.
    """
    before = [note for note in world.notes if note.what != HEALED]
    after = [note for note in world.notes if note.what == HEALED]
    events = [
        *before,
        *(Event(hold.at_ns, hold.task, _held(hold)) for hold in world.loop.applied_holds),
        *(Event(at.at_ns, at.name, f"{at.fault!r} strikes ({at.point}, {at.number})") for at in world.points.struck),
    ]
    for name, served in world.network.servers.items():
        for request in served.requests:
            events.append(Event(request.at_ns, name, f"gets {request} from {request.source}"))
            if request.ended_ns is not None:
                events.append(Event(request.ended_ns, name, f"{request}: status {request.status}, {request.ended}"))
    return tuple(sorted([*events, *after], key=lambda event: event.at_ns))


def _held(applied: AppliedHold) -> str:
    hold = applied.hold
    if applied.kind == "steps":
        return f"is ready to go on, and held back for {hold.steps} steps of others"
    length = f"{(hold.time_ns or 0) / NS_PER_MS:g} ms" if hold.steps is None else f"{hold.steps} us"
    if applied.kind == "late":
        return f"comes {length} later"
    if applied.kind == "stall":
        return f"is about to go on at {applied.where}, and its whole process stalls for {length}"
    return f"is ready to go on, and held back for {length}"


def first_difference(one: Chronicle, other: Chronicle) -> str | None:
    """The first thing that happened in one life and not in the other, or None if they are the same."""
    if one.lines == other.lines:
        return None
    for number, (mine, theirs) in enumerate(zip(one.lines, other.lines, strict=False)):
        if mine != theirs:
            return f"line {number + 1}, first: {mine}\nline {number + 1}, then:  {theirs}"
    return f"first {len(one.lines)} lines, then {len(other.lines)}"
