"""A host with all that belongs to it: its processes, its disk, its clock and its memory."""

from __future__ import annotations

import errno
from functools import cached_property
from typing import TYPE_CHECKING, Final

from tinyllm.testing.clocks import WallClock
from tinyllm.testing.disk.disk import Disk, Operation, Unsynced, os_error
from tinyllm.testing.memory import Memory
from tinyllm.testing.points import Points
from tinyllm.testing.processes import Governor, Host

if TYPE_CHECKING:
    from tinyllm.testing.loop import SimulatedLoop

__all__ = ["Machine"]

#: The points at which operations of a disk can be struck.
_POINT_OF: Final[dict[Operation, str]] = {"read": "read", "write": "write", "truncate": "write", "sync": "sync"}


class Machine(Host):
    """A host of the world. Made by `World.host`; disk, clock and memory come into being when they are first used."""

    def __init__(
        self, name: str, number: int, loop: SimulatedLoop, governor: Governor, points: Points, *, seed: int
    ) -> None:
        super().__init__(name, number, loop, governor)
        self._points = points
        self._seed = seed
        #: What the disk can hold when no fault says otherwise; None for no end.
        self.capacity_bytes: int | None = None
        self._disk: Disk | None = None

    @cached_property
    def clock(self) -> WallClock:
        """The host's wall clock. Time since the world began is the loop's, and the same on every host."""
        return WallClock(self._time_ns)

    def _time_ns(self) -> int:
        return self._loop.time_ns

    @cached_property
    def memory(self) -> Memory:
        """What the host may allocate; without end until a budget is set."""
        return Memory(None)

    @property
    def disk(self) -> Disk:
        """The host's disk. What was synced stays through every crash."""
        if self._disk is None:
            self._disk = Disk(
                capacity_bytes=self.capacity_bytes,
                charge=self.charge,
                decide=self._disk_error,
                wall_ns=self._wall_ns,
                seed=self._seed,
            )
        return self._disk

    def _wall_ns(self) -> int:
        return self.clock.time_ns()

    def _disk_error(self, operation: Operation, path: str) -> OSError | None:
        point = _POINT_OF.get(operation)
        struck = None if point is None else self._points.strike(point, self.name)
        return None if struck is None else os_error(errno.EIO, path)

    def crash(self, unsynced: Unsynced = "lost", choice: int = 0) -> None:
        """Lose power, and of what the disk had not synced all but what *unsynced* and *choice* say.

        Does nothing if the host is down.
        """
        if self.process.dead:
            return
        super().crash()
        if self._disk is not None:
            self._disk.crash(unsynced, choice)
        self.memory.clear()

    def close(self) -> None:
        """Give up what others hold of the disk."""
        if self._disk is not None:
            self._disk.close()


