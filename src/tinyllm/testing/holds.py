"""The holds of one run: which comes next, what is held now, and what was held so far."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Literal

from tinyllm.testing.schedule import Hold
from tinyllm.testing.tasks import SimulatedHandle

__all__ = ["AppliedHold", "Holds"]


@dataclass(frozen=True, slots=True)
class AppliedHold:
    """A hold that met the wake-up of `task` at `at_ns`: it delayed it for a number of steps or for a time, or
    stalled its process. If it made something `late`, `task` is what that is. `where` is the line at
    which a stalled task was."""

    at_ns: int
    task: str
    hold: Hold
    kind: Literal["steps", "time", "stall", "late"]
    where: str = ""


class Holds:
    """Consumes a schedule, which *begins* after so many contested wake-ups.

    `held` counts the wake-ups that are held, for steps or for a time.

    The loop asks `upcoming` and `for_steps` at each step, so they are plain attributes: the hold to apply
    next or None, and the heap of wake-ups held for steps, each with the number of the task step after
    which it goes.
    """

    __slots__ = ("_gap", "_next_sequence", "_rest", "applied", "for_steps", "held", "upcoming")

    def __init__(self, schedule: Iterable[Hold], begins: int = 0) -> None:
        self._rest = iter(schedule)
        self._next_sequence = count().__next__
        self.applied: list[AppliedHold] = []
        self.for_steps: list[tuple[int, int, SimulatedHandle]] = []
        self.held = 0
        self._advance()
        self._gap += begins

    def _advance(self) -> None:
        self.upcoming = next(self._rest, None)
        self._gap = 0 if self.upcoming is None else self.upcoming.gap

    def end(self) -> None:
        """Apply no further holds; what is held stays held for its time."""
        self.upcoming = None

    def next_of_contested(self) -> Hold | None:
        """Count one contested wake-up; return the hold that takes it, or None if it passes."""
        hold = self.upcoming
        if self._gap:
            self._gap -= 1
            return None
        self._advance()
        return hold

    def note(self, at_ns: int, task: str, hold: Hold) -> None:
        """Take down that *hold* was applied."""
        self.held += 1
        self.applied.append(AppliedHold(at_ns, task, hold, "time" if hold.steps is None else "steps"))

    def keep(self, handle: SimulatedHandle, until: int) -> None:
        """Hold *handle* back until task step number *until* has run."""
        heappush(self.for_steps, (until, self._next_sequence(), handle))

    def due(self, task_steps: int) -> list[SimulatedHandle]:
        """Give out what is to go after *task_steps* task steps, in the order in which it was due."""
        handles = []
        while self.for_steps and self.for_steps[0][0] <= task_steps:
            handles.append(self.earliest())
        return handles

    def take(self, task: object) -> SimulatedHandle | None:
        """Give out the wake-up of *task* that is held for steps, or None."""
        for entry in self.for_steps:
            if entry[2].task is task:
                self.for_steps.remove(entry)
                heapify(self.for_steps)
                self.held -= 1
                return entry[2]
        return None

    def earliest(self) -> SimulatedHandle:
        """Give out what is to go first, due or not."""
        self.held -= 1
        return heappop(self.for_steps)[2]
