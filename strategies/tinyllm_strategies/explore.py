"""Look for a life of an asyncio program in which it fails, and for the simplest one like it."""

from __future__ import annotations

from collections.abc import Collection, Coroutine, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from tinyllm.testing.faults import FAMILIES
from tinyllm.testing.lives import (
    DETERMINISM_SHARE,
    STEPS_MAX,
    STILL_STEPS_MAX,
    Body,
    Finding,
    Life,
    NotDeterministicError,
    finding,
    live,
    live_twice,
)
from tinyllm.testing.plan import WorldPlan
from tinyllm_strategies.plans import worlds

__all__ = ["Exploration", "Finding", "explore"]


class _Broken(Exception):
    """A life failed. What it raised is its cause: not everything that a program raises passes through Hypothesis."""


@dataclass(frozen=True)
class Exploration:
    """How it went: `examples` lives were lived until the first that failed, or in all; `shrinks` after it."""

    finding: Finding | None
    examples: int
    shrinks: int


@cache
def _broken_by(name: str) -> type[_Broken]:
    """A kind of its own for each type of error, so that shrinking does not slip from one to another."""
    return type(f"Broken[{name}]", (_Broken,), {})


def explore(
    body: Body | Coroutine[Any, Any, Any],
    *,
    max_examples: int = 1_000,
    seed_number: int = 0,
    hosts: Sequence[str] = (),
    families: Collection[str] = FAMILIES,
    external_only: bool = True,
    timed: bool = True,
    max_steps: int = STEPS_MAX,
    max_still_steps: int = STILL_STEPS_MAX,
    **how: Any,
) -> Exploration:
    """Live `body(world)` on drawn worlds until it fails: raises, gets stuck, or leaves something wrong behind.

    What was found is shrunk, made canonical and lived twice. The other arguments are those of
    `worlds`, and of `World`.

    Raises:
        TypeError: *body* is a coroutine, which lives once only.
        NotDeterministicError: one plan gave two different lives.
    """
    if isinstance(body, Coroutine):
        body.close()
    if not callable(body):
        raise TypeError(f"explore takes a coroutine function of one world, not {body!r}")
    how |= {"max_steps": max_steps, "max_still_steps": max_still_steps}
    examples = shrinks = 0
    failed: list[Life] = []
    escaped: list[NotDeterministicError] = []

    def example(plan: WorldPlan) -> None:
        nonlocal examples, shrinks
        if escaped:  # whatever else it does, it is told as what it did first
            raise escaped[0].with_traceback(None)
        if failed:
            shrinks += 1
        else:
            examples += 1
        twice = not failed and examples % DETERMINISM_SHARE == 1
        try:
            life = (live_twice if twice else live)(plan, body, **how)
        except NotDeterministicError as error:
            escaped.append(error)
            raise
        if life.error is not None:
            failed[:] = [life]  # the others would keep their worlds
            raise _broken_by(type(life.error).__qualname__)(str(life.error)) from life.error

    chosen = settings(
        max_examples=max_examples,
        deadline=None,
        database=None,
        derandomize=False,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        suppress_health_check=(HealthCheck.too_slow,),
    )
    strategy = worlds(hosts=hosts, families=families, external_only=external_only, timed=timed)
    try:
        seed(seed_number)(chosen(given(strategy)(example)))()
    except Flaky as error:
        raise escaped[0] if escaped else NotDeterministicError(f"one plan, two lives: {error}") from error
    except _Broken:
        return Exploration(finding(failed[-1], body, **how), examples, shrinks)
    return Exploration(None, examples, shrinks)
