"""Lives of a program: lived once, lived twice to see that it is the same, and made simpler where it failed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from traceback import extract_tb, format_exception_only
from typing import Any, Final

from tinyllm.testing.chronicle import Chronicle, WorldError, first_difference
from tinyllm.testing.loop_errors import SimulationError
from tinyllm.testing.plan import WorldPlan, simplest_plan
from tinyllm.testing.telling import tell
from tinyllm.testing.world import World

__all__ = [
    "DETERMINISM_SHARE",
    "STEPS_MAX",
    "STILL_STEPS_MAX",
    "Body",
    "Finding",
    "Life",
    "NotDeterministicError",
    "canonical",
    "compare",
    "finding",
    "is_failure",
    "live",
    "live_twice",
    "reachable",
    "same_failure",
]

#: One life in so many is lived twice, to see that it is the same life; so is every finding.
DETERMINISM_SHARE: Final = 20
#: Steps of one life, and of one moment of it, where somebody looks for lives that fail: one that does not end is
#: told after so many.
STEPS_MAX: Final = 200_000
STILL_STEPS_MAX: Final = 50_000
#: A life is made simpler by so many others, and so many steps of theirs.
TRIES: Final = 200
TRIES_STEPS: Final = 2_000_000
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
    error: BaseException | None
    value: Any = None


def live(plan: WorldPlan, body: Body, *, trace: bool = False, **how: Any) -> Life:
    """Live `body(world)` on the world of *plan*; `how` goes to World.

    What body raises is the life's error, if it is an Exception, a cancellation, or pytest's own failure;
    anything else is raised.
    """
    with World(plan, trace=trace, **how) as world, world.inside():
        error: BaseException | None = None
        value = None
        try:
            value = world.run(body, world)
        except BaseException as failure:
            if not is_failure(failure):
                raise
            error = failure
        chronicle = world.finish()
        if error is None:
            try:
                chronicle.raise_problems()
            except WorldError as problems:
                error = problems
        return Life(chronicle, error, value)


def is_failure(error: BaseException) -> bool:
    """Whether *error* says that a program failed, rather than that somebody wants it to stop."""
    # What `pytest.fail` raises is no Exception, and pytest may not be imported here.
    of_pytest = (type(error).__module__, type(error).__name__) == ("builtins", "Failed")
    return isinstance(error, Exception | asyncio.CancelledError) or of_pytest


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


@dataclass(frozen=True)
class Finding:
    """The simplest life that was found to fail. `reachable`: stock asyncio could fail so too."""

    error: BaseException
    chronicle: Chronicle
    reachable: bool

    @property
    def plan(self) -> WorldPlan:
        return self.chronicle.plan

    @cached_property
    def story(self) -> str:
        """What failed, what was given, what happened, and how to live it again."""
        failed = "".join(format_exception_only(self.error)).rstrip()
        return f"{failed}{_place(self.error)}\n\n{tell(self.chronicle, reachable=self.reachable, error=self.error)}"


def _place(error: BaseException) -> str:
    """The line of the program that raised *error*, in words; nothing if it is not of the program."""
    ours = str(Path(__file__).parent)
    frames = [frame for frame in extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    own = [frame for frame in frames if "/asyncio/" not in frame.filename and "site-packages" not in frame.filename]
    if not own:
        return ""
    return f"\n  at {Path(own[-1].filename).name}:{own[-1].lineno} in {own[-1].name}: {own[-1].line}"


def finding(life: Life, body: Body, **how: Any) -> Finding:
    """The simplest life near *life*, which failed; it is lived twice.

    Raises:
        NotDeterministicError: its two lives differ.
    """
    if life.error is None:
        raise ValueError("a life that did not fail is no finding")
    plan = canonical(life.chronicle.plan, body, life.error, **how)
    simplest = live_twice(plan, body, **how)
    error = simplest.error or life.error
    return Finding(error, simplest.chronicle, reachable(plan, body, error, **how))


def canonical(plan: WorldPlan, body: Body, error: BaseException, *, tries: int = TRIES, **how: Any) -> WorldPlan:
    """The simplest plan near *plan* under which *body* fails as *error* does, of those that *tries* lives found.

    Long lives are fewer: after 2,000,000 steps it stays as it is.
    """
    steps = 0

    def still_fails(nearby: WorldPlan) -> bool:
        nonlocal steps
        if steps >= TRIES_STEPS:
            return False
        life = live(nearby, body, **how)
        steps += life.chronicle.steps
        return same_failure(life.error, error)

    return simplest_plan(plan, still_fails, tries=tries)


def reachable(plan: WorldPlan, body: Body, error: BaseException, **how: Any) -> bool:
    """Whether stock asyncio could fail so: without holds, or also when only waits for the outside are held."""
    if plan.is_sound:
        return True
    return same_failure(live(replace(plan, external_only=True), body, **how).error, error)
