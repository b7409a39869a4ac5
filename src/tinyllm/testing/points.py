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
        found: Fault | None = None
        for point in (kind, f"{kind} {name}") if general else (f"{kind} {name}",):
            number = self._counts[point]
            self._counts[point] += 1
            fault = self._faults.get((point, number))
            if fault is not None and not self.healed:
                found, where = fault, (point, number)
        if found is not None:
            self.struck.append(Strike(self._time_ns(), *where, found, name))
        return found

    def upcoming(self, kind: str, name: str, *, general: bool = True) -> Fault | None:
        """The fault that would strike if the world came there now. Nothing is counted."""
        if self.healed:
            return None
        points = (f"{kind} {name}", kind) if general else (f"{kind} {name}",)
        return next((found for it in points if (found := self._faults.get((it, self._counts[it])))), None)

    def pass_by(self, kind: str, name: str, *, general: bool = True) -> None:
        """Come to a point, and let nothing strike there."""
        for point in (kind, f"{kind} {name}") if general else (f"{kind} {name}",):
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
