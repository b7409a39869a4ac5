"""An asynchronous test that runs in a world: what stands behind `@pytest.mark.simulated`. Knows no pytest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tinyllm.testing.lives import Body, Life, NotDeterministicError, canonical, compare, live, reachable
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.telling import tell
from tinyllm.testing.world import World

__all__ = ["STEPS_MAX", "SimulatedTest"]

#: One life in so many is lived twice, to see that it is the same life; so is every one that fails.
DETERMINISM_SHARE: Final = 20
#: Steps of one life; a program that is stuck in a loop is told after these.
STEPS_MAX: Final = 100_000


@dataclass(frozen=True, slots=True)
class _Failed:
    life: Life
    body: Body


class SimulatedTest:
    """*test*, a coroutine function, as a function: each call is one life.

    An argument that is a WorldPlan decides the world, and the test gets the World in its place; without one
    stock asyncio runs and nothing goes wrong. *shared* names arguments that a second life could not be given
    as they were, fixtures for example: with any of them each life is lived once. *how* goes to World.
    """

    def __init__(
        self,
        test: Callable[..., Coroutine[Any, Any, Any]],
        *,
        shared: Collection[str] = (),
        how: Mapping[str, Any] | None = None,
    ) -> None:
        self._test = test
        self._shared = frozenset(shared)
        self._how = {"max_steps": STEPS_MAX, **(how or {})}
        self._lives = 0
        self._failed: _Failed | None = None
        self._escaped: NotDeterministicError | None = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> None:
        names = [name for name, value in kwargs.items() if isinstance(value, WorldPlan)]
        if len(names) > 1:
            raise TypeError(f"a test has one world, but {' and '.join(names)} are plans of worlds")
        plan: WorldPlan = kwargs[names[0]] if names else WorldPlan()
        if self._escaped is not None:  # whatever else it does, it is told as what it did first
            raise self._escaped
        again = self._copied(args, kwargs)
        life = live(plan, self._body(names, args, kwargs), trace=True, **self._how)
        self._lives += 1
        if again is not None and (life.error is not None or self._lives % DETERMINISM_SHARE == 1):
            self._compare(life, plan, self._body(names, *again))
        if life.error is not None:
            kept = (args, kwargs) if again is None else again
            self._failed = _Failed(life, self._body(names, *kept))
            raise life.error

    def _compare(self, life: Life, plan: WorldPlan, body: Body) -> None:
        try:
            compare(life, live(plan, body, trace=True, **self._how))
        except NotDeterministicError as error:
            self._escaped = error
            raise

    def _body(self, names: list[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Body:
        def body(world: World) -> Coroutine[Any, Any, Any]:
            return self._test(*args, **{**kwargs, **dict.fromkeys(names, world)})

        body.__qualname__ = getattr(self._test, "__qualname__", "test")
        return body

    def _copied(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Arguments for a second life, or None if there is nothing that could be handed to one."""
        if self._shared & kwargs.keys():
            return None
        try:
            return args, copy.deepcopy(kwargs)
        except Exception:  # noqa: BLE001 - whatever an argument does when it is copied, it cannot be
            return None

    def explain(self, error: BaseException) -> None:
        """Add the story of the last failure to *error*, if that is what it was: after shrinking, the simplest."""
        failed = self._failed
        if failed is None or failed.life.error is not error:
            return
        plan = canonical(failed.life.chronicle.plan, failed.body, error, **self._how)
        life = live(plan, failed.body, trace=True, **self._how)
        error.add_note("\n" + tell(life.chronicle, reachable=reachable(plan, failed.body, error, **self._how)))
