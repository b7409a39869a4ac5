"""Where faults of one moment strike: the points of the world are counted as the program comes to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from tinyllm.testing.faults import At, Fault

__all__ = ["Points", "Strike"]


@dataclass(frozen=True, slots=True)
class Strike:
    """A fault that struck: when, at which point, whom, and how often the world had come there before."""

    at_ns: int
    point: str
    number: int
    fault: Fault
    name: str


class Points:
    """Counts how often the world has come to each point, and says which fault strikes there.

    Every point is counted twice: for itself ("request api") and for all of its kind ("request"). Where both
    have a fault, the particular one strikes. `struck` has what did; after `heal` nothing does any more.
    """

    def __init__(self, calls: Iterable[At], *, time_ns: Callable[[], int]) -> None:
        self.struck: list[Strike] = []
        self.healed = False
        #: Called once when it is healed, the first first.
        self.on_heal: list[Callable[[], object]] = []
        self._time_ns = time_ns
        self._calls = tuple(calls)
        self._faults = {(call.point, call.number): call.fault for call in self._calls}
        self._kinds = {call.point.partition(" ")[0] for call in self._calls}
        self._counts: Counter[str] = Counter()

    def strike(self, kind: str, name: str, *, general: bool = True) -> Fault | None:
        """Come to the point *kind* of *name*, "request" of a host for example; give the fault that strikes.

        Unless it is *general* it does not count among all of its kind.
        """
        if kind not in self._kinds:
            return None
        where = self._where(kind, name, general=general)
        self.pass_by(kind, name, general=general)
        if where is None:
            return None
        self.struck.append(Strike(self._time_ns(), *where, self._faults[where], name))
        return self._faults[where]

    def upcoming(self, kind: str, name: str, *, general: bool = True) -> Fault | None:
        """The fault that would strike if the world came there now. Nothing is counted."""
        where = self._where(kind, name, general=general)
        return None if where is None else self._faults[where]

    def _where(self, kind: str, name: str, *, general: bool) -> tuple[str, int] | None:
        """The point, and its number, that has a fault for the next visit."""
        if self.healed:
            return None
        visits = ((point, self._counts[point]) for point in reversed(_points(kind, name, general=general)))
        return next((visit for visit in visits if visit in self._faults), None)

    def pass_by(self, kind: str, name: str, *, general: bool = True) -> None:
        """Come to a point, and let nothing strike there."""
        for point in _points(kind, name, general=general):
            self._counts[point] += 1

    @property
    def missed(self) -> tuple[At, ...]:
        """The faults that never struck, because the world did not come to their points so often."""
        struck = {(strike.point, strike.number) for strike in self.struck}
        return tuple(call for call in self._calls if (call.point, call.number) not in struck)

    def expects(self, kind: str) -> bool:
        """Whether the plan has a fault at any point of this kind."""
        return kind in self._kinds

    def heal(self) -> None:
        """Let nothing strike from now on. Points are counted as before."""
        self.healed = True
        for call in self.on_heal:
            call()
        self.on_heal.clear()


def _points(kind: str, name: str, *, general: bool) -> tuple[str, ...]:
    """What is counted there, the particular point last."""
    particular = f"{kind} {name}"
    return (kind, particular) if general else (particular,)
