"""CPython's own tests of asyncio, led to the simulated loop.

`test.test_asyncio` comes with Python. Its cases get their loops in four ways: from the event loop policy, from
`new_test_loop` of their base class, from an attribute of a suite that exists once for each implementation, and
as `BaseEventLoop()`. Each is led to the simulated loop here. Nothing else of the cases is changed.
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import sys
import unittest
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import Any, Final
from unittest import mock

from tinyllm.testing.loop import SimulatedFuture, SimulatedLoop, SimulatedTask

_PACKAGE: Final = "test.test_asyncio"
_StockLoop: Final = asyncio.BaseEventLoop


class LoopUnderTest(SimulatedLoop):
    """The simulated loop, with the few private names of asyncio's loop by which the cases drive it."""

    _default_executor = None
    _current_handle = None

    def _run_once(self) -> None:
        self.call_soon(self.stop)
        self.run_forever()

    def default_exception_handler(self, context: dict[str, Any]) -> None:
        """Log it, too: the log is where the cases look."""
        super().default_exception_handler(context)
        _StockLoop.default_exception_handler(self, context)  # type: ignore[arg-type]


class GeneratedTimeLoop(LoopUnderTest):
    """In place of CPython's TestLoop, whose time goes on as a generator says.

    Here time goes on by itself, to the next timer. The generator, which also checks for which moments timers
    were set, is asked when the loop is closed.
    """

    def __init__(self, gen: Callable[[], Generator[Any, float, None]] | None) -> None:
        super().__init__()
        self._gen = gen
        self._moments: list[float] = []

    def call_at(self, when, callback, *args, context=None):  # type: ignore[override]
        self._moments.append(when)
        return super().call_at(when, callback, *args, context=context)

    def call_later(self, delay, callback, *args, context=None):  # type: ignore[override]
        self._moments.append(self.time() + delay)
        return super().call_later(delay, callback, *args, context=context)

    def advance_time(self, advance: float) -> None:
        self._now_ns += round(advance * 1e9)

    def close(self) -> None:
        super().close()
        gen, self._gen = self._gen, None
        if gen is None:
            return
        generator = gen()
        next(generator)
        for moment in self._moments:
            generator.send(moment)
        try:
            generator.send(0)
        except StopIteration:
            return
        raise AssertionError("the case names more moments than timers were set")


class SimulatedPolicy(asyncio.DefaultEventLoopPolicy):
    """Makes simulated loops."""

    _loop_factory = LoopUnderTest


class Task(SimulatedTask[Any]):
    """The simulated task with the name and the repr of asyncio's, which is where the cases look for its state."""

    __repr__ = asyncio.Task.__repr__


class Future(SimulatedFuture[Any]):
    """The simulated future with the repr of asyncio's."""

    __repr__ = asyncio.Future.__repr__


def _loop_of(_case: Any) -> LoopUnderTest:
    return LoopUnderTest()


def _set_up_without_processes(case: Any) -> None:
    sys.modules[f"{_PACKAGE}.test_events"].EventLoopTestsMixin.setUp(case)


def _future_of(case: Any) -> Future:
    return Future(loop=case.loop)


_CLASSES: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "base_events": {"BaseEventLoopTests": {}},
    "context": {},
    "events": {"SelectEventLoopTests": {"create_event_loop": _loop_of, "setUp": _set_up_without_processes}},
    "futures": {
        "CSubFutureDoneCallbackTests": {"_new_future": _future_of},
        "CSubFutureTests": {"cls": Future},
        "DuckTests": {},
    },
    "futures2": {},
    "locks": {},
    "pep492": {},
    "queues": {},
    "runners": {},
    "staggered": {},
    "streams": {},
    "taskgroups": {},
    "tasks": {
        "CCurrentLoopTests": {},
        "CTask_CFuture_Tests": {"Future": Future, "Task": Task},
        "CTask_Future_Tests": {},
        "CoroutineGatherTests": {},
        "FutureGatherTests": {},
        "GenericTaskTests": {},
        "RunCoroutineThreadsafeTests": {},
        "SleepTests": {},
    },
    "threads": {},
    "timeouts": {},
    "waitfor": {},
}
"""The modules, and of some only these classes with these attributes replaced.

The other classes there are the same suites for CPython's other implementations of tasks and futures, or are about
its selectors, processes and policies. `test_eager_task_factory` is not here because the simulated loop refuses such
factories. `staggered` has tests of its own only from Python 3.13 on.
"""


def has_cpythons_tests() -> bool:
    """Whether this Python came with them; that of Debian does not."""
    return find_spec("test") is not None and find_spec(_PACKAGE) is not None


def cases() -> dict[str, unittest.TestCase]:
    """Every case that this Python has, by `module.class.method`, sorted."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, classes in _CLASSES.items():
            if find_spec(f"{_PACKAGE}.test_{name}") is None:
                continue
            module = importlib.import_module(f"{_PACKAGE}.test_{name}")
            for case in _flat(unittest.defaultTestLoader.loadTestsFromModule(module)):
                if not classes or type(case).__name__ in classes:
                    found[f"{name}.{type(case).__name__}.{case._testMethodName}"] = case
    return dict(sorted(found.items()))


def _flat(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    for each in suite:
        if isinstance(each, unittest.TestSuite):
            yield from _flat(each)
        else:
            yield each


def run_case(case_id: str, case: unittest.TestCase) -> unittest.TestResult:
    """Run a new copy of *case* on the simulated loop. That a loop of asyncio's own ran is an error, too."""
    module, name, _method = case_id.split(".")
    result = unittest.TestResult()
    with _simulated_asyncio() as stock_ran, ExitStack() as stack:
        for attribute, value in _CLASSES[module].get(name, {}).items():
            stack.enter_context(mock.patch.object(type(case), attribute, value))
        unittest.TestSuite([type(case)(case._testMethodName)]).run(result)
        gc.collect()  # what a case leaves behind complains now, not in somebody else's test
    if stock_ran:
        result.errors.append((case, "a loop of asyncio's own ran"))
    return result


@contextmanager
def _simulated_asyncio() -> Iterator[list[asyncio.BaseEventLoop]]:
    utils = importlib.import_module(f"{_PACKAGE}.utils")

    def new_test_loop(self: Any, gen: Any = None) -> SimulatedLoop:
        loop = GeneratedTimeLoop(gen)
        self.set_event_loop(loop)
        return loop

    stock_ran: list[asyncio.BaseEventLoop] = []

    def stock_run_once(self: Any, run_once: Any = _StockLoop._run_once) -> None:
        stock_ran.append(self)
        run_once(self)

    with (
        mock.patch.object(_StockLoop, "_run_once", stock_run_once),
        mock.patch.object(asyncio, "BaseEventLoop", LoopUnderTest),
        mock.patch.object(asyncio.base_events, "BaseEventLoop", LoopUnderTest),
        mock.patch.object(asyncio.events, "_event_loop_policy", SimulatedPolicy()),
        mock.patch.object(utils.TestCase, "new_test_loop", new_test_loop),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield stock_ran
