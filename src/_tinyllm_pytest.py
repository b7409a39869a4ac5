"""The pytest plugin: `@pytest.mark.simulated` runs an asynchronous test in a simulated world.

Nothing of TinyLLM is imported before a test needs it, so that it costs nobody else anything.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import Any

import pytest

_MARK = "simulated"
_USAGE = (
    "simulated(plan=WorldPlan(), **options): run this `async def` test in a simulated world; an argument that is a "
    "WorldPlan, drawn by `@given(world=worlds())` for example, decides it, and the test gets the World in its place"
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _USAGE)


@pytest.fixture
def world(request: pytest.FixtureRequest) -> Iterator[Any]:
    """The simulated world that the test runs in. In a test without the mark: a world to call `run` on."""
    from tinyllm.testing.plan import WorldPlan
    from tinyllm.testing.world import World

    marker = request.node.get_closest_marker(_MARK)
    if marker is not None:
        yield marker.kwargs.get("plan", WorldPlan())
        return
    with World() as made:
        yield made


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    marker = pyfuncitem.get_closest_marker(_MARK)
    if marker is None:
        return (yield)
    from tinyllm.testing.simulated import SimulatedTest

    outer = pyfuncitem.obj
    drawn = getattr(outer, "hypothesis", None)
    test = outer if drawn is None else drawn.inner_test
    _require_good_use(test, pyfuncitem.nodeid, marker)
    # Parameters are values, and can be given to a second life; what fixtures made, an earlier life may have changed.
    values = {"world", *getattr(getattr(pyfuncitem, "callspec", None), "params", ())}
    shared = pyfuncitem.funcargs.keys() - values
    how = {name: value for name, value in marker.kwargs.items() if name != "plan"}
    simulated = SimulatedTest(test, shared=shared, how=how)
    run = _plain(simulated, test)
    if drawn is None:
        pyfuncitem.obj = run
    else:
        drawn.inner_test = run
    try:
        return (yield)
    except Exception as error:
        simulated.explain(error)
        raise
    finally:
        if drawn is None:
            pyfuncitem.obj = outer
        else:
            drawn.inner_test = test


def _require_good_use(test: Any, name: str, marker: pytest.Mark) -> None:
    import inspect

    if not inspect.iscoroutinefunction(test):
        pytest.fail(f"{name} is marked as simulated and is no `async def`; take the fixture `world` and call its `run`")
    if marker.args:
        pytest.fail(f"{name}: the mark takes keywords only, plan=WorldPlan(...) for example, not {marker.args!r}")
    from tinyllm.testing.plan import WorldPlan

    plan = marker.kwargs.get("plan", WorldPlan())
    if not isinstance(plan, WorldPlan):
        pytest.fail(f"{name}: plan is a WorldPlan, not {plan!r}")


def _plain(simulated: Any, test: Any) -> Any:
    """A function like *test*, but not asynchronous, for those who look at what they call."""
    import functools

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        simulated(*args, **kwargs)

    # Whoever asks whether this is a coroutine function must not find the one inside.
    del run.__wrapped__
    return run
