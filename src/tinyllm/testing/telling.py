"""The story of a life that failed: what was given, what happened, and the line that lives it again."""

from __future__ import annotations

from collections.abc import Iterator

from tinyllm.testing.chronicle import Chronicle
from tinyllm.testing.plan import WorldPlan

__all__ = ["tell"]

#: So many events are told; of more, the first and the last.
EVENTS_MAX = 60


def tell(chronicle: Chronicle, *, reachable: bool) -> str:
    """The story of *chronicle* as lines of text, times in virtual milliseconds."""
    return "\n".join(_lines(chronicle, reachable=reachable))


def _lines(chronicle: Chronicle, *, reachable: bool) -> Iterator[str]:
    yield "What was given"
    yield ""
    yield from _given(chronicle.plan)
    yield ""
    yield "What happened (virtual milliseconds)"
    yield ""
    yield from _happened(chronicle)
    yield ""
    yield f"Reachable on stock asyncio: {'yes' if reachable else 'no'}"
    yield f"Live it again: {chronicle.plan!r}"


def _given(plan: WorldPlan) -> Iterator[str]:
    faults = [*plan.lasting, *plan.strikes]
    for number, fault in enumerate(faults):
        yield f"  {'' if number else 'faults':<10} {fault!r}"
    if not faults:
        yield f"  {'faults':<10} none"
    if not plan.schedule:
        yield f"  {'schedule':<10} stock asyncio"
    for number, hold in enumerate(plan.schedule):
        length = f"{hold.steps} steps" if hold.steps is not None else f"{(hold.time_ns or 0) // 1_000_000} ms"
        yield f"  {'' if number else 'schedule':<10} {hold.gap} wake-ups pass, the next is held for {length}"


def _happened(chronicle: Chronicle) -> Iterator[str]:
    events = chronicle.events
    if not events:
        yield "  nothing but the program itself"
    if len(events) <= EVENTS_MAX:
        yield from map(str, events)
        return
    half = EVENTS_MAX // 2
    yield from map(str, events[:half])
    yield f"{'...':>12}  {len(events) - EVENTS_MAX} more"
    yield from map(str, events[-half:])
