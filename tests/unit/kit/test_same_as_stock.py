"""A program of asyncio's primitives has one outcome, on the loop of asyncio and on the simulated one.

Four things of asyncio's loop are settled for the comparison, because there they hang on an address, on the real
world, or on nothing that is promised: its clock jumps; timers of the same moment go in the order in which they were
set (in asyncio, in that of a heap); tasks hash to their number, so that the sets of TaskGroup, wait and all_tasks have
one order, and generators are kept in order; a job for a thread runs inline, as a task of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import heapq
import selectors
import weakref
from collections.abc import Callable, Iterator
from contextvars import Context, copy_context
from itertools import count
from typing import Any

import pytest
from hypothesis import Phase, find, given, settings

from tests.support.asyncio_programs import (
    TICK_S,
    Call,
    Fail,
    Generate,
    Group,
    Held,
    InThread,
    OnDone,
    Program,
    SetVariable,
    Sleep,
    outcome,
    programs,
)
from tests.support.examples import a_share
from tinyllm.testing.loop import SimulatedLoop, run
from tinyllm.testing.loop_errors import FencedError, StuckError

pytestmark = pytest.mark.unit

# --- the two loops -----------------------------------------------------------------------------------


class JumpingSelector(selectors.SelectSelector):
    """Waits by moving the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        if timeout is None:
            raise StuckError((), round(self.now * 1e9))
        self.now += timeout
        return super().select(0)


class NumberedTimer(asyncio.TimerHandle):
    def __init__(self, number: int, *args: Any) -> None:
        super().__init__(*args)
        self.number = number

    def __lt__(self, other: Any) -> bool:
        return (self._when, self.number) < (other._when, other.number)


class NumberedTask(asyncio.Task[Any]):
    def __init__(self, coro: Any, *, loop: Any, **kwargs: Any) -> None:
        self.number = loop.next_number()
        super().__init__(coro, loop=loop, **kwargs)

    def __hash__(self) -> int:
        return self.number


class OrderedWeakSet:
    def __init__(self) -> None:
        self.items: dict[int, Any] = {}

    def add(self, item: Any) -> None:
        self.items[id(item)] = weakref.ref(item)

    def discard(self, item: Any) -> None:
        self.items.pop(id(item), None)

    def clear(self) -> None:
        self.items.clear()

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Any]:
        return iter([item for ref in self.items.values() if (item := ref()) is not None])


class StockLoop(asyncio.SelectorEventLoop):
    def __init__(self, closing: Callable[[], None]) -> None:
        self.jumping = JumpingSelector()
        super().__init__(self.jumping)
        self.closing = closing
        self.next_number = count(1).__next__
        self.next_timer = count(1).__next__
        self._asyncgens = OrderedWeakSet()
        self.set_task_factory(lambda loop, coro, **kwargs: NumberedTask(coro, loop=loop, **kwargs))

    def time(self) -> float:
        return self.jumping.now

    def call_at(self, when, callback, *args, context=None):  # type: ignore[override]
        self._check_closed()
        timer: Any = NumberedTimer(self.next_timer(), when, callback, args, self, context or copy_context())
        heapq.heappush(self._scheduled, timer)
        timer._scheduled = True
        return timer

    def run_in_executor(self, executor, func, *args):  # type: ignore[override]
        future = self.create_future()

        async def job() -> None:
            asyncio._set_running_loop(None)
            try:
                result = func(*args)
            except Exception as error:
                asyncio._set_running_loop(self)
                if not future.done():
                    future.set_exception(error)
            else:
                asyncio._set_running_loop(self)
                if not future.done():
                    future.set_result(result)

        future.job = self.create_task(job())
        return future

    def close(self) -> None:
        self.closing()
        super().close()


class OurLoop(SimulatedLoop):
    def __init__(self, closing: Callable[[], None]) -> None:
        super().__init__()
        self.closing = closing

    def close(self) -> None:
        self.closing()
        super().close()


# --- the property ------------------------------------------------------------------------------------


@pytest.fixture(autouse=True, scope="module")
def _nothing_is_collected_by_chance() -> Iterator[None]:
    """When the collector comes it closes generators of its own accord."""
    gc.collect()
    gc.freeze()
    gc.disable()
    yield
    gc.enable()
    gc.unfreeze()


@a_share(3)
@given(program=programs)
def test_a_program_has_the_same_outcome_on_the_loop_of_asyncio(program):
    assert outcome(StockLoop, program) == outcome(OurLoop, program)


# --- that it would find a difference ------------------------------------------------------------------


def differs(program: Program) -> bool:
    return outcome(StockLoop, program) != outcome(OurLoop, program)


def on_ours() -> bool:
    return isinstance(asyncio._get_running_loop(), OurLoop)


def done_callbacks_run_last_first(monkeypatch: pytest.MonkeyPatch) -> None:
    original = OurLoop.call_soon

    def call_soon(self, callback, *args, context=None):
        handle = original(self, callback, *args, context=context)
        ready = self._ready
        before = ready[-2] if len(ready) > 1 else None
        if before is not None and args and before._args[:1] == args[:1] and isinstance(args[0], asyncio.Future):
            ready[-1], ready[-2] = ready[-2], ready[-1]
        return handle

    monkeypatch.setattr(OurLoop, "call_soon", call_soon)


def a_lock_wakes_who_came_last(monkeypatch: pytest.MonkeyPatch) -> None:
    original = asyncio.Lock._wake_up_first

    def wake_up_first(self):
        if on_ours() and self._waiters:
            self._waiters.rotate(1)
        original(self)

    monkeypatch.setattr(asyncio.Lock, "_wake_up_first", wake_up_first)


def timers_of_one_moment_go_last_first(monkeypatch: pytest.MonkeyPatch) -> None:
    original = OurLoop.__init__

    def init(self, closing):
        original(self, closing)
        self._next_sequence = count(0, -1).__next__

    monkeypatch.setattr(OurLoop, "__init__", init)


def a_callback_loses_its_context(monkeypatch: pytest.MonkeyPatch) -> None:
    original = OurLoop.call_later

    def call_later(self, delay, callback, *args, context=None):
        return original(self, delay, callback, *args, context=Context())

    monkeypatch.setattr(OurLoop, "call_later", call_later)


def a_generator_that_is_dropped_is_not_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OurLoop, "_end_asyncgen", lambda self, agen: None)


def generators_are_closed_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def shutdown_asyncgens(self):
        for agen in self.open_asyncgens():
            with contextlib.suppress(Exception):
                await agen.aclose()

    monkeypatch.setattr(OurLoop, "shutdown_asyncgens", shutdown_asyncgens)


def timers_come_a_tick_late(monkeypatch: pytest.MonkeyPatch) -> None:
    original = OurLoop.call_at

    def call_at(self, when, callback, *args, context=None):
        return original(self, when + TICK_S, callback, *args, context=context)

    monkeypatch.setattr(OurLoop, "call_at", call_at)


def a_group_is_aborted_last_first(monkeypatch: pytest.MonkeyPatch) -> None:
    original = asyncio.TaskGroup._abort

    def abort(self):
        if on_ours():
            self._tasks = dict.fromkeys(sorted(self._tasks, key=hash, reverse=True))
            original(self)
            self._tasks = set(self._tasks)
        else:
            original(self)

    monkeypatch.setattr(asyncio.TaskGroup, "_abort", abort)


def a_job_fails_with_another_error(monkeypatch: pytest.MonkeyPatch) -> None:
    original = OurLoop.run_in_executor

    def run_in_executor(self, executor, func, *args):
        def job():
            try:
                return func(*args)
            except KeyError:
                raise RuntimeError from None

        return original(self, executor, job)

    monkeypatch.setattr(OurLoop, "run_in_executor", run_in_executor)


def an_error_in_a_callback_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OurLoop, "call_exception_handler", lambda self, context: None)


_TWO_GENERATORS = (Generate(1, "keep", (), (Sleep(2),)),) * 2

DIFFERENCES: dict[Callable[[pytest.MonkeyPatch], None], Program] = {
    done_callbacks_run_last_first: ((OnDone(False, 0, 2, False), Call("soon", 0, "set future", 0, False), Sleep(1)),),
    a_lock_wakes_who_came_last: ((Held("lock", 0, (Sleep(1),)),),) * 4,
    timers_of_one_moment_go_last_first: ((Sleep(1),), (Sleep(1),)),
    timers_come_a_tick_late: ((Call("at", 1, "say", 0, False), Sleep(4)),),
    a_callback_loses_its_context: ((SetVariable(1), Call("later", 1, "say", 0, False), Sleep(2)),),
    a_generator_that_is_dropped_is_not_closed: ((Generate(1, "drop", (), (Sleep(0),)), Sleep(1)),),
    generators_are_closed_one_after_the_other: (_TWO_GENERATORS,),
    a_group_is_aborted_last_first: ((Group(((Sleep(4),), (Sleep(4),)), (Sleep(1), Fail(0))),),),
    a_job_fails_with_another_error: ((InThread(True),),),
    an_error_in_a_callback_is_lost: ((Call("soon", 0, "fail", 0, False), Sleep(1)),),
}
"""Each with a program that shows it."""

FOUND_SOON = [
    done_callbacks_run_last_first,
    timers_of_one_moment_go_last_first,
    timers_come_a_tick_late,
    a_generator_that_is_dropped_is_not_closed,
    generators_are_closed_one_after_the_other,
    a_job_fails_with_another_error,
    an_error_in_a_callback_is_lost,
]
"""Those that 300 drawn programs show; the others need up to 1,700."""


@pytest.mark.parametrize("difference", DIFFERENCES, ids=lambda difference: difference.__name__)
def test_a_difference_shows(difference, monkeypatch):
    program = DIFFERENCES[difference]

    assert not differs(program)
    difference(monkeypatch)
    assert differs(program)


@pytest.mark.parametrize("difference", FOUND_SOON, ids=lambda difference: difference.__name__)
def test_a_difference_is_found(difference, monkeypatch):
    difference(monkeypatch)
    looking = settings(max_examples=1_000, database=None, derandomize=True, phases=[Phase.generate])
    program = find(programs, differs, settings=looking)

    monkeypatch.undo()
    assert not differs(program)


# --- what was different once ---------------------------------------------------------------------------

BOTH = pytest.mark.parametrize("make_loop", [StockLoop, OurLoop])


@BOTH
def test_a_loop_told_to_stop_before_it_begins_runs_what_is_due_and_does_not_wait(make_loop):
    loop = make_loop(lambda: None)
    log: list[str] = []
    loop.call_later(TICK_S, log.append, "later")
    for _ in range(2):
        loop.stop()
        loop.run_forever()
    loop.call_soon(log.append, "soon")
    loop.call_later(0, log.append, "due")
    loop.stop()
    loop.run_forever()

    assert (["soon", "due"], 0.0) == (log, loop.time())
    loop.close()


@BOTH
def test_a_generator_whose_cleanup_was_cancelled_does_not_fail_the_shutdown(make_loop):
    async def numbers():
        try:
            yield 1
        finally:
            raise asyncio.CancelledError

    async def main():
        kept.append(numbers())
        await anext(kept[0])

    kept: list[Any] = []
    loop = make_loop(lambda: None)
    loop.run_until_complete(main())

    assert None is loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@BOTH
def test_what_cannot_be_called_is_no_exception_handler(make_loop):
    loop = make_loop(lambda: None)
    with pytest.raises(TypeError, match="callable"):
        loop.set_exception_handler("no handler")
    loop.close()


def test_a_job_that_waits_for_a_coroutine_of_its_loop_fails_and_one_that_does_not_wait_succeeds():
    """On asyncio it would wait; here, where it runs inline, it would wait for ever."""
    log = []

    async def answer():
        log.append("runs")
        return 1

    async def main():
        loop = asyncio.get_running_loop()
        future = await asyncio.to_thread(asyncio.run_coroutine_threadsafe, answer(), loop)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(FencedError, match=r"^waiting in a thread .*; let the coroutine"):
            await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(answer(), loop).result())
        return future.result()

    assert 1 == run(main())
    assert ["runs", "runs"] == log


def test_an_error_in_a_default_handler_is_among_the_unhandled_ones():
    class Loop(SimulatedLoop):
        def default_exception_handler(self, context):
            raise KeyError("broken")

    loop = Loop()
    loop.call_exception_handler({"message": "first"})

    assert ["KeyError('broken')"] == [repr(each["exception"]) for each in loop.unhandled]
    assert {"message": "first"} == loop.unhandled[0]["context"]
    loop.close()
