"""The pytest plugin: `@pytest.mark.simulated` runs an asynchronous test in a simulated world.

Nothing of TinyLLM is imported before a test needs it, so that it costs nobody else anything.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

_MARK = "simulated"
_OPTIONS = {"plan", "latency_ms", "max_steps", "max_still_steps", "patched", "real_sockets"}
#: Where Hypothesis keeps the settings of a test.
_SETTINGS = "_hypothesis_internal_use_settings"
_USAGE = (
    "simulated(plan=WorldPlan(), **options): run this `async def` test in a simulated world; an argument that is a "
    "WorldPlan, drawn by `@given(world=worlds())` for example, decides it, and the test gets the World in its place"
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _USAGE)


@pytest.fixture(scope="session")
def world() -> Any:
    """The simulated world that the test runs in. In a test without the mark: a world to call `run` on."""
    # Each test, and each example of one, gets a world of its own in the place of this: see pytest_pyfunc_call.
    from tinyllm.testing.plan import WorldPlan

    return WorldPlan()


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    marker = pyfuncitem.get_closest_marker(_MARK)
    if marker is not None:
        return (yield from _run_simulated(pyfuncitem, marker))
    if "world" in pyfuncitem.funcargs and _is_plan(pyfuncitem.funcargs["world"]):
        from tinyllm.testing.world import World

        with World() as pyfuncitem.funcargs["world"]:
            return (yield)
    return (yield)


def _is_plan(value: object) -> bool:
    """Whether *value* is a WorldPlan, asked without importing anything for those who have none."""
    return type(value).__module__ == "tinyllm.testing.plan"


def _run_simulated(pyfuncitem: pytest.Function, marker: pytest.Mark) -> Generator[None, object, object]:
    from tinyllm.testing.simulated import SimulatedTest

    outer = pyfuncitem.obj
    drawn = getattr(outer, "hypothesis", None)
    test = outer if drawn is None else drawn.inner_test
    _require_good_use(test, pyfuncitem.nodeid, marker)
    if "plan" in marker.kwargs and drawn is not None and "world" not in pyfuncitem.funcargs:
        pytest.fail(f"{pyfuncitem.nodeid}: the mark has a plan, and @given draws another; leave one of them")
    if "world" in pyfuncitem.funcargs and "plan" in marker.kwargs:
        pyfuncitem.funcargs["world"] = marker.kwargs["plan"]
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
        with _settings_of_a_world(outer):
            return (yield)
    except BaseException as error:
        simulated.explain(error)
        raise
    finally:
        if drawn is None:
            pyfuncitem.obj = outer
        else:
            drawn.inner_test = test


@contextmanager
def _settings_of_a_world(test: Any) -> Iterator[None]:
    """Keep Hypothesis from tracing every line of the world to explain a failure: a life took 15 times as long.

    The story explains it. Nor has a life a deadline in real time, since some are lived twice. Does nothing for a
    test without `@given`.
    """
    function = getattr(test, "__func__", test)
    chosen = getattr(function, _SETTINGS, None)
    if chosen is None:
        yield
        return
    from hypothesis import Phase, settings

    phases = [phase for phase in chosen.phases if phase is not Phase.explain]
    setattr(function, _SETTINGS, settings(chosen, phases=phases, deadline=None))
    try:
        yield
    finally:
        setattr(function, _SETTINGS, chosen)


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
    if unknown := sorted(marker.kwargs.keys() - _OPTIONS):
        pytest.fail(f"{name}: the mark takes {', '.join(sorted(_OPTIONS))}, not {unknown[0]}")


def _plain(simulated: Any, test: Any) -> Any:
    """A function like *test*, but not asynchronous, for those who look at what they call."""
    import functools

    @functools.wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        simulated(*args, **kwargs)

    # `__wrapped__` stays: Hypothesis knows a test by the source that it leads to.
    return run
