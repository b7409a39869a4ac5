"""Lives of a program: lived once, lived twice to see that it is the same, and made simpler where it failed."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from tinyllm.testing.chronicle import Chronicle, WorldError, first_difference
from tinyllm.testing.loop_errors import SimulationError
from tinyllm.testing.plan import WorldPlan, simplest_plan
from tinyllm.testing.world import World

__all__ = [
    "Body",
    "Life",
    "NotDeterministicError",
    "canonical",
    "compare",
    "live",
    "live_twice",
    "reachable",
    "same_failure",
]

#: A program that is handed the world it lives in.
Body = Callable[[World], Coroutine[Any, Any, Any]]


class NotDeterministicError(SimulationError):
    """The same plan gave two different lives; the message has the first difference.

    Something in the program escapes the world: real time, real chance, an address, the order of a set, a
    value that an earlier life left behind.
    """


@dataclass(frozen=True, slots=True)
class Life:
    """One life of a program: what it raised, or what was wrong after the storm; None if nothing was."""

    chronicle: Chronicle
    error: Exception | None
    value: Any = None


def live(plan: WorldPlan, body: Body, *, trace: bool = False, **how: Any) -> Life:
    """Live `body(world)` on the world of *plan*; `how` goes to World.

    What body raises is the life's error, if it is an Exception; anything else is raised.
    """
    with World(plan, trace=trace, **how) as world, world.inside():
        error: Exception | None = None
        value = None
        try:
            value = world.run(body, world)
        except Exception as failure:  # noqa: BLE001 - it is the finding
            error = failure
        chronicle = world.finish()
        if error is None:
            try:
                chronicle.raise_problems()
            except WorldError as problems:
                error = problems
        return Life(chronicle, error, value)


def live_twice(plan: WorldPlan, body: Body, **how: Any) -> Life:
    """Live it twice, step by step.

    Raises:
        NotDeterministicError: the lives differ.
    """
    first = live(plan, body, trace=True, **how)
    compare(first, live(plan, body, trace=True, **how))
    return first


def compare(first: Life, again: Life) -> None:
    """Hold two lives of one plan against each other, step by step if their worlds kept a trace.

    Raises:
        NotDeterministicError: they differ.
    """
    difference = first_difference(first.chronicle, again.chronicle)
    if difference is None and not same_failure(first.error, again.error):
        difference = f"first: {first.error!r}\nthen:  {again.error!r}"
    if difference is not None:
        raise NotDeterministicError(
            "one plan, two lives: something escapes the world (real time, chance, ids, an order of addresses, the "
            f"state of an earlier life)\n{difference}"
        ) from first.error


def same_failure(one: BaseException | None, other: BaseException | None) -> bool:
    """Whether two lives failed in the same way: by the same type at the same line of the program, or not at all."""
    return _kind_of(one) == _kind_of(other)


def _kind_of(error: BaseException | None) -> object:
    if error is None:
        return None
    trace = error.__traceback__
    place = None
    while trace is not None:
        place = (trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        trace = trace.tb_next
    return type(error), place


def canonical(plan: WorldPlan, body: Body, error: BaseException, *, tries: int = 200, **how: Any) -> WorldPlan:
    """The simplest plan near *plan* under which *body* fails as *error* does."""
    return simplest_plan(plan, lambda nearby: same_failure(live(nearby, body, **how).error, error), tries=tries)


def reachable(plan: WorldPlan, body: Body, error: BaseException, **how: Any) -> bool:
    """Whether stock asyncio could fail so: without holds, or also when only waits for the outside are held."""
    if not plan.schedule or plan.external_only:
        return True
    return same_failure(live(replace(plan, external_only=True), body, **how).error, error)
