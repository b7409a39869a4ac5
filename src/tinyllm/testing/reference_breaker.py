"""Circuit breakers of the reference interpreter: what of a run they have seen, and whether they let a step through.

What happened is a list of marks. Marks of targets that run beside each other are ordered by time only, so those
of one moment are replayed in every order, and a breaker can be in several states.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal, TypeAlias

from tinyllm.config import CircuitBreakerConfig

ORDERED_MAX = 10  #: So many marks of one moment are tried in every order.

What: TypeAlias = Literal["began", "good", "bad", "over", "refused"]
Place: TypeAlias = tuple[tuple[int, int], ...]  #: For each fanout around a step, which one and in which slot.


class OpenBreakerError(Exception):
    """Too many marks of one moment to try every order."""


@dataclass(frozen=True, slots=True)
class Mark:
    """A step that a breaker let through `began`, or ended: `good`, `bad` (a recoverable failure), or just
    `over`. A step that is `refused` changes nothing."""

    at_ns: int
    breaker: str
    step: int
    what: What
    place: Place
    is_certain: bool = True


@dataclass(frozen=True, slots=True)
class _State:
    """`opened` counts how often the breaker opened; `running` are steps with what it was when they began."""

    failures: int = 0
    open_since_ns: int | None = None
    opened: int = 0
    probe: int | None = None
    running: frozenset[tuple[int, int]] = frozenset()

    def lets_through(self, at_ns: int, config: CircuitBreakerConfig) -> bool:
        if self.open_since_ns is None:
            return True
        return self.probe is None and at_ns >= self.open_since_ns + round(config.cooldown_s * 1_000_000_000)

    def agrees(self, mark: Mark, config: CircuitBreakerConfig) -> bool:
        if mark.what not in ("began", "refused"):
            return True
        return self.lets_through(mark.at_ns, config) == (mark.what == "began")

    def after(self, mark: Mark, config: CircuitBreakerConfig) -> _State:
        if mark.what == "refused":
            return self
        if mark.what == "began":
            running = self.running | {(mark.step, self.opened)}
            return replace(self, running=running, probe=None if self.open_since_ns is None else mark.step)
        begun = [opened for step, opened in self.running if step == mark.step]
        state = replace(self, running=frozenset(it for it in self.running if it[0] != mark.step))
        if mark.step == self.probe:
            return state._after_probe(mark)
        if begun != [self.opened] or self.open_since_ns is not None or mark.what == "over":
            return state
        if mark.what == "good":
            return replace(state, failures=0)
        if self.failures + 1 < config.threshold:
            return replace(state, failures=self.failures + 1)
        return replace(state, failures=0, open_since_ns=mark.at_ns, opened=self.opened + 1)

    def _after_probe(self, mark: Mark) -> _State:
        state = replace(self, probe=None)
        if mark.what == "good":
            return replace(state, failures=0, open_since_ns=None)
        if mark.what == "bad":
            return replace(state, open_since_ns=mark.at_ns, opened=self.opened + 1)
        return state


def verdicts(marks: Iterable[Mark], breaker: str, at_ns: int, place: Place, config: CircuitBreakerConfig) -> set[bool]:
    """Whether a step at this place is let through: both if that hangs on the order of things of one moment.

    Neither if the marks contradict each other. Raises OpenBreakerError if too many meet at one moment.
    """
    seen = [_seen(mark, at_ns, place) for mark in marks if mark.breaker == breaker and mark.at_ns <= at_ns]
    states = {_State()}
    for _, group in groupby(sorted(seen, key=lambda mark: mark.at_ns), key=lambda mark: mark.at_ns):
        states = _after_moment(states, [*group], config)
    return {state.lets_through(at_ns, config) for state in states}


def _seen(mark: Mark, at_ns: int, place: Place) -> Mark:
    """What another one did at the very moment may or may not have happened."""
    return replace(mark, is_certain=False) if mark.at_ns == at_ns and _is_beside(mark.place, place) else mark


def _after_moment(states: set[_State], now: Sequence[Mark], config: CircuitBreakerConfig) -> set[_State]:
    """What a breaker may be after the marks of one moment, in every order in which they may have come.

    Nothing if it would have judged the steps that began otherwise.
    """
    if len({mark.place for mark in now}) > 1 and len(now) > ORDERED_MAX:
        raise OpenBreakerError("too many steps of one circuit breaker begin or end at one moment")
    if len({mark.place for mark in now}) == 1:
        for mark in now:
            states = _replayed(states, mark, config)
        return states
    earlier = [sum(1 << i for i in range(k) if not _is_beside(now[i].place, now[k].place)) for k in range(len(now))]
    # For each set of marks that may have come first, as bits, what the breaker may be after them.
    after: list[set[_State]] = [states, *(set() for _ in range(1, 1 << len(now)))]
    for done, reached in enumerate(after):
        for k, mark in enumerate(now):
            if reached and not done >> k & 1 and earlier[k] & done == earlier[k]:
                after[done | 1 << k] |= _replayed(reached, mark, config)
    return after[-1]


def _replayed(states: set[_State], mark: Mark, config: CircuitBreakerConfig) -> set[_State]:
    after = {state.after(mark, config) for state in states if state.agrees(mark, config)}
    return after if mark.is_certain else states | after


def _is_beside(one: Place, other: Place) -> bool:
    """Whether two places lie in different slots of one fanout, so that only time orders them."""
    for a, b in zip(one, other, strict=False):
        if a != b:
            return a[0] == b[0]
    return False


def cut(marks: Sequence[Mark], end_ns: int, *, led: bool) -> tuple[list[Mark], list[Mark]]:
    """The marks of a fanout's target up to the fanout's end, and the ends of what is over then.

    What others did at that moment is open, unless `led`: this one ended the fanout.
    """
    kept = [mark for mark in marks if mark.at_ns <= end_ns]
    kept = [mark if led or mark.at_ns < end_ns else replace(mark, is_certain=False) for mark in kept]
    ended = {mark.step for mark in kept if mark.what != "began" and mark.is_certain}
    ran_on = [mark for mark in kept if mark.what == "began" and mark.step not in ended]
    return kept, [replace(mark, at_ns=end_ns, what="over", is_certain=True) for mark in ran_on]
