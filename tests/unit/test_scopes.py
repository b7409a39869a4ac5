"""Scopes: what is over, and who is told."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest

from tests.support.nodes import now_ms
from tests.support.runs import run_clean
from tinyllm.scopes import CutShort, Scope

pytestmark = pytest.mark.unit


def at(ms: float) -> float:
    return ms / 1_000


async def until(ms: float) -> None:
    await asyncio.sleep(at(ms) - asyncio.get_running_loop().time())


# --- what is over --------------------------------------------------------------------------------------


def test_a_scope_without_a_deadline_is_never_over_by_itself():
    async def main() -> Any:
        with Scope() as scope:
            await until(1_000_000)
            return scope.over(), scope.outermost_over()

    assert (None, None) == run_clean(main())


@pytest.mark.parametrize(("asked_at_ms", "reason"), [(9, None), (10, "deadline"), (11, "deadline")])
def test_a_scope_is_over_from_the_very_moment_of_its_deadline(asked_at_ms, reason):
    async def main() -> Any:
        with Scope(deadline=at(10)) as scope:
            await until(asked_at_ms)
            return scope.over()

    assert reason == run_clean(main())


def test_whoever_asks_at_the_moment_before_the_timer_has_fired_hears_that_it_is_over():
    """Two timers of one moment: the one set first fires first, and already finds the scope over."""

    async def main() -> Any:
        heard: list[Any] = []
        scopes: list[Scope] = []
        asyncio.get_running_loop().call_at(at(10), lambda: heard.append(scopes[0].over()))
        with Scope(deadline=at(10)) as scope:
            scopes.append(scope)
            await until(20)
        return heard

    assert ["deadline"] == run_clean(main())


def test_a_deadline_made_of_floats_that_do_not_add_up_is_met_exactly():
    """0.1 + 0.2 > 0.3, but it is the same moment."""

    async def main() -> Any:
        with Scope(deadline=0.1 + 0.2) as scope:
            await until(300)
            return scope.over()

    assert "deadline" == run_clean(main())


def test_closing_gives_the_reason_once():
    async def main() -> Any:
        with Scope(deadline=at(10)) as scope:
            scope.close("first")
            scope.close("second")
            await until(20)
            return scope.over()

    assert "first" == run_clean(main())


def test_closing_after_the_deadline_changes_nothing():
    async def main() -> Any:
        with Scope(deadline=at(10)) as scope:
            await until(10)
            scope.close("late")
            return scope.over()

    assert "deadline" == run_clean(main())


def test_the_outermost_scope_that_is_over_decides():
    async def main() -> Any:
        with Scope() as outer, Scope(outer) as middle, Scope(middle) as inner:
            names = {id(outer): "outer", id(middle): "middle", id(inner): "inner", id(None): "none"}
            heard = [names[id(inner.outermost_over())]]
            inner.close("inner")
            heard.append(names[id(inner.outermost_over())])
            outer.close("outer")
            heard.append(names[id(inner.outermost_over())])
            heard.append(names[id(middle.outermost_over())])
            return heard, middle.over()

    assert (["none", "inner", "outer", "outer"], None) == run_clean(main())


def test_an_inner_scope_that_is_over_says_nothing_about_the_outer():
    async def main() -> Any:
        with Scope() as outer, Scope(outer) as inner:
            inner.close("inner")
            outer.check()
            return outer.outermost_over()

    assert run_clean(main()) is None


def test_check_raises_for_the_outermost_with_its_reason():
    async def main() -> Any:
        with Scope() as outer, Scope(outer) as inner:
            inner.check()
            outer.close("why")
            with pytest.raises(CutShort, match="why") as caught:
                inner.check()
            return caught.value.scope is outer

    assert run_clean(main()) is True


def test_a_scope_that_was_left_keeps_no_timer():
    async def main() -> Any:
        with Scope(deadline=at(10)):
            pass
        loop: Any = asyncio.get_running_loop()
        return loop.pending_timers()

    assert () == run_clean(main())


def test_a_scope_that_was_left_is_forgotten_by_the_one_around_it():
    async def main() -> Any:
        with Scope() as outer:
            with Scope(outer):
                pass
            return dict(outer._children or {})

    assert {} == run_clean(main())


# --- waiting -------------------------------------------------------------------------------------------


async def waited(scope: Scope, *tasks: asyncio.Future[Any]) -> float:
    await scope.wait(*tasks)
    return now_ms()


def test_waiting_ends_when_a_task_is_done():
    async def main() -> float:
        task = asyncio.create_task(asyncio.sleep(at(5)))
        with Scope(deadline=at(10)) as scope:
            return await waited(scope, task)

    assert 5.0 == run_clean(main())


def test_waiting_for_several_ends_with_the_first():
    async def main() -> float:
        tasks = [asyncio.create_task(asyncio.sleep(at(ms))) for ms in (7, 5, 6)]
        with Scope() as scope:
            ended = await waited(scope, *tasks)
        await asyncio.wait(tasks)
        return ended

    assert 5.0 == run_clean(main())


def test_waiting_ends_at_once_for_a_task_that_is_done():
    async def main() -> float:
        task = asyncio.create_task(asyncio.sleep(0))
        await until(1)
        with Scope(deadline=at(10)) as scope:
            return await waited(scope, task)

    assert 1.0 == run_clean(main())


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_waiting_ends_at_the_deadline_of_any_scope_around(depth):
    async def main() -> float:
        with ExitStack() as stack:
            inner = stack.enter_context(Scope(deadline=at(10)))
            for _ in range(depth):
                inner = stack.enter_context(Scope(inner, deadline=at(99)))
            return await waited(inner, asyncio.get_running_loop().create_future())

    assert 10.0 == run_clean(main())


def test_waiting_ends_when_the_scope_around_is_closed():
    async def main() -> float:
        with Scope() as outer, Scope(outer) as inner:
            asyncio.get_running_loop().call_at(at(5), outer.close, "enough")
            return await waited(inner, asyncio.get_running_loop().create_future())

    assert 5.0 == run_clean(main())


def test_waiting_in_a_scope_that_is_over_ends_at_once():
    async def main() -> float:
        with Scope() as scope:
            scope.close("enough")
            return await waited(scope, asyncio.get_running_loop().create_future())

    assert 0.0 == run_clean(main())


def test_waiting_leaves_nothing_on_the_task():
    async def main() -> Any:
        task = asyncio.create_task(asyncio.sleep(at(5)))
        with Scope(deadline=at(1)) as scope:
            await scope.wait(task)
            left = dict(scope._wakers or {}), task.done()
        await task
        return left

    assert ({}, False) == run_clean(main())


class Watched(asyncio.Future[None]):
    """Counts who waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.waiting = 0

    def add_done_callback(self, *args: Any, **more: Any) -> None:
        self.waiting += 1
        super().add_done_callback(*args, **more)

    def remove_done_callback(self, *args: Any) -> int:
        self.waiting -= 1
        return super().remove_done_callback(*args)


def test_waiting_in_vain_leaves_no_callback_behind():
    async def main() -> int:
        future = Watched()
        with Scope(deadline=at(1)) as scope:
            await scope.wait(future)
        return future.waiting

    assert 0 == run_clean(main())


def test_a_timer_that_fires_a_hair_early_ends_its_scope():
    """The loop of asyncio runs timers up to its clock's resolution too early."""

    async def main() -> Any:
        with Scope(deadline=at(10)) as scope:
            scope._expire()
            return scope.over(), now_ms()

    assert ("deadline", 0.0) == run_clean(main())


# --- sleeping ------------------------------------------------------------------------------------------


def test_sleeping_ends_at_its_moment():
    async def main() -> float:
        with Scope(deadline=at(10)) as scope:
            await scope.sleep_until(at(7))
            return now_ms()

    assert 7.0 == run_clean(main())


@pytest.mark.parametrize("when_ms", [10, 11, 1_000])
def test_sleeping_to_the_deadline_or_beyond_is_cut_short_there(when_ms):
    async def main() -> Any:
        with Scope(deadline=at(10)) as scope:
            with pytest.raises(CutShort) as caught:
                await scope.sleep_until(at(when_ms))
            return caught.value.scope is scope, now_ms()

    assert (True, 10.0) == run_clean(main())


def test_sleeping_is_cut_short_by_a_close_around_it():
    async def main() -> Any:
        with Scope() as outer, Scope(outer) as inner:
            asyncio.get_running_loop().call_at(at(5), outer.close, "enough")
            with pytest.raises(CutShort) as caught:
                await inner.sleep_until(at(10))
            return caught.value.scope is outer, now_ms()

    assert (True, 5.0) == run_clean(main())


def test_sleeping_until_now_takes_no_time_and_still_asks():
    async def main() -> Any:
        with Scope() as scope:
            await scope.sleep_until(0)
            scope.close("enough")
            with pytest.raises(CutShort):
                await scope.sleep_until(0)
            return now_ms()

    assert 0.0 == run_clean(main())
