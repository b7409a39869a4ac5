"""The story of a life that failed: what was given, what happened, and the line that lives it again."""

from __future__ import annotations

import re
from collections.abc import Iterator

from tinyllm.testing import faults
from tinyllm.testing.chronicle import Chronicle, WorldError
from tinyllm.testing.plan import WorldPlan

__all__ = ["tell"]

#: So many events are told; of more, the first and the last.
EVENTS_MAX = 60


def tell(chronicle: Chronicle, *, reachable: bool, error: BaseException | None = None) -> str:
    """The story of *chronicle* as lines of text, times in virtual milliseconds.

    What was wrong with the life beside the *error* that ended it is told, too.
    """
    return "\n".join(_lines(chronicle, reachable=reachable, error=error))


def _lines(chronicle: Chronicle, *, reachable: bool, error: BaseException | None) -> Iterator[str]:
    yield "What was given"
    yield ""
    yield from _given(chronicle.plan)
    yield ""
    yield "What happened (virtual milliseconds)"
    yield ""
    yield from _happened(chronicle)
    for missed in chronicle.missed:
        yield f"{'':>12}  {missed!r} never struck"
    yield ""
    if not isinstance(error, WorldError) and chronicle.problems:
        yield "Also wrong"
        yield ""
        for problem in chronicle.problems:
            yield f"  {problem.text}"
        yield ""
    yield f"Reachable on stock asyncio: {'yes' if reachable else 'no'}"
    yield f"Live it again: {chronicle.plan!r}"
    yield f"  ({'; '.join(_imports(repr(chronicle.plan)))})"


def _imports(code: str) -> Iterator[str]:
    """The imports that *code*, a plan, needs."""
    names = sorted(set(re.findall(r"\b([A-Z]\w+)\(", code)))
    of_faults = [name for name in names if hasattr(faults, name)]
    yield f"from tinyllm.testing import {', '.join(name for name in names if name not in of_faults)}"
    if of_faults:
        yield f"from tinyllm.testing.faults import {', '.join(of_faults)}"


def _given(plan: WorldPlan) -> Iterator[str]:
    faults = [*plan.lasting, *plan.strikes]
    for number, fault in enumerate(faults):
        yield f"  {'' if number else 'faults':<10} {fault!r}"
    if not faults:
        yield f"  {'faults':<10} none"
    if not plan.schedule:
        yield f"  {'schedule':<10} stock asyncio"
    for number, hold in enumerate(plan.schedule):
        passing = hold.gap if number else hold.gap + plan.begins
        short = f"{hold.steps} us" if plan.external_only else f"{hold.steps} steps of others"
        length = short if hold.steps is not None else f"{(hold.time_ns or 0) // 1_000_000} ms"
        when = f"{passing} wake-ups and arrivals pass, the next takes {length} longer"
        yield f"  {'' if number else 'schedule':<10} {when}"


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
