"""An asynchronous test that runs in a world: what stands behind `@pytest.mark.simulated`. Knows no pytest."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from tinyllm.testing.lives import (
    DETERMINISM_SHARE,
    STEPS_MAX,
    STILL_STEPS_MAX,
    Body,
    Life,
    NotDeterministicError,
    compare,
    finding,
    live,
)
from tinyllm.testing.loop_errors import SimulationError
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.telling import tell
from tinyllm.testing.world import World

__all__ = ["CancellationEscapedError", "SimulatedTest"]

#: So many failed lives are kept for their stories; Hypothesis raises the last ones.
FAILED_MAX: Final = 64


class CancellationEscapedError(SimulationError):
    """The test ended by a CancelledError that nobody had asked for; it is the cause."""


@dataclass(frozen=True, slots=True)
class _Failed:
    life: Life
    raised: BaseException
    #: What can be lived again, None if nothing can.
    body: Body | None


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
        self._how = {"max_steps": STEPS_MAX, "max_still_steps": STILL_STEPS_MAX, **(how or {})}
        self._lives = 0
        # The failed lives by the address of what was raised, which they keep alive.
        self._failed: dict[int, _Failed] = {}
        self._escaped: NotDeterministicError | None = None

    def __call__(self, /, *args: Any, **kwargs: Any) -> None:
        names = [name for name, value in kwargs.items() if isinstance(value, WorldPlan)]
        if len(names) > 1:
            raise TypeError(f"a test has one world, but {' and '.join(names)} are plans of worlds")
        plan: WorldPlan = kwargs[names[0]] if names else WorldPlan()
        if self._escaped is not None:  # whatever else it does, it is told as what it did first
            raise self._escaped.with_traceback(None)
        again = self._copied(args, kwargs)
        life = live(plan, self._body(names, args, kwargs), trace=True, **self._how)
        self._lives += 1
        if again is not None and (life.error is not None or self._lives % DETERMINISM_SHARE == 1):
            self._compare(life, plan, self._body(names, *again))
        if life.error is not None:
            raised = life.error
            if isinstance(raised, asyncio.CancelledError):  # as such it would pass through whoever runs tests
                raised = CancellationEscapedError("the test ended by CancelledError, and nobody had cancelled it")
                raised.__cause__ = life.error
            # Its steps are not told, and of 64 long lives they would take all memory.
            short = replace(life, chronicle=replace(life.chronicle, trace=None))
            self._keep(raised, _Failed(short, raised, None if again is None else self._body(names, *again)))
            raise raised

    def _keep(self, raised: BaseException, failed: _Failed) -> None:
        self._failed[id(raised)] = failed
        if len(self._failed) > FAILED_MAX:
            del self._failed[next(iter(self._failed))]

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
        if self._shared & kwargs.keys() or any(map(_draws_on, kwargs.values())):
            return None
        try:
            return args, copy.deepcopy(kwargs)
        except Exception:  # noqa: BLE001 - whatever an argument does when it is copied, it cannot be
            return None

    def explain(self, error: BaseException) -> None:
        """Add its story to *error*, and to each error of a group: the simplest life that fails so."""
        for inner in getattr(error, "exceptions", ()):
            self.explain(inner)
        failed = self._failed.get(id(error))
        if failed is None:
            return
        chronicle = failed.life.chronicle
        reachable = chronicle.plan.is_sound
        if failed.body is not None:
            found = finding(failed.life, failed.body, **self._how)
            chronicle, reachable = found.chronicle, found.reachable
        error.add_note("\n" + tell(chronicle, reachable=reachable, error=failed.life.error))


def _draws_on(value: object) -> bool:
    """Whether *value* is what `st.data()` gives: a second life would draw other values from it."""
    return type(value).__name__ == "DataObject" and type(value).__module__.startswith("hypothesis.")
