"""Look for a life of an asyncio program in which it fails, and for the simplest one like it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky

from tinyllm.testing.chronicle import Chronicle
from tinyllm.testing.faults import FAMILIES
from tinyllm.testing.lives import Body, Life, NotDeterministicError, canonical, live, live_twice, reachable
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.telling import tell
from tinyllm_strategies.plans import worlds

__all__ = ["Exploration", "Finding", "explore"]

#: One life in so many is lived twice, to see that it is the same life.
DETERMINISM_SHARE = 20
#: Steps of one life; a program that is stuck in a loop is told after these.
STEPS_MAX = 20_000


@dataclass(frozen=True)
class Finding:
    """The simplest life that was found to fail. `reachable`: stock asyncio could fail so too."""

    error: Exception
    chronicle: Chronicle
    reachable: bool

    @property
    def plan(self) -> WorldPlan:
        return self.chronicle.plan

    @cached_property
    def story(self) -> str:
        """What failed, what was given, what happened, and how to live it again."""
        failed = f"{type(self.error).__name__}: {self.error}"
        return f"{failed}\n\n{tell(self.chronicle, reachable=self.reachable)}"


@dataclass(frozen=True)
class Exploration:
    """How it went: `examples` lives were lived until the first that failed, or in all; `shrinks` after it."""

    finding: Finding | None
    examples: int
    shrinks: int


def explore(
    body: Body,
    *,
    max_examples: int = 1_000,
    seed_number: int = 0,
    hosts: Sequence[str] = (),
    families: Collection[str] = FAMILIES,
    external_only: bool = True,
    timed: bool = True,
    max_steps: int = STEPS_MAX,
    **how: Any,
) -> Exploration:
    """Live `body(world)` on drawn worlds until it fails: raises, gets stuck, or leaves something wrong behind.

    What was found is shrunk, made canonical and lived twice. The other arguments are those of
    `worlds`, and of `World`.

    Raises:
        NotDeterministicError: one plan gave two different lives.
    """
    how["max_steps"] = max_steps
    examples = shrinks = 0
    failed: list[Life] = []
    escaped: list[NotDeterministicError] = []

    def example(plan: WorldPlan) -> None:
        nonlocal examples, shrinks
        if escaped:  # whatever else it does, it is told as what it did first
            raise escaped[0]
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
            failed.append(life)
            raise life.error

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
    except Exception as error:
        if not failed or error is not failed[-1].error:
            raise
        return Exploration(_finding(failed[-1], body, how), examples, shrinks)
    return Exploration(None, examples, shrinks)


def _finding(life: Life, body: Body, how: dict[str, Any]) -> Finding:
    assert life.error is not None
    plan = canonical(life.chronicle.plan, body, life.error, **how)
    simplest = live_twice(plan, body, **how)
    error = simplest.error or life.error
    return Finding(error, simplest.chronicle, reachable(plan, body, error, **how))
