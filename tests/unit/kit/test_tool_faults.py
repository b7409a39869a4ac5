"""Faults of tools: each bites once, where it should, and heals."""

from __future__ import annotations

import asyncio
import inspect

import pytest

from tinyllm.testing.faults import AnswerLost, At, ToolHangs, ToolRaises, ToolSlow, WrongType
from tinyllm.testing.loop import SimulatedLoop, StuckError
from tinyllm.testing.loop_errors import FencedError
from tinyllm.testing.points import Points
from tinyllm.testing.processes import Governor, Host
from tinyllm.testing.tool_faults import faulty
from tinyllm.tools import tool

pytestmark = pytest.mark.unit


class Scene:
    """One host, and a tool that remembers what it was asked."""

    def __init__(self, *faults, answer="found"):
        self.loop = SimulatedLoop()
        calls = [At(point="tool search", number=number, fault=fault) for number, fault in enumerate(faults)]
        self.points = Points(calls, time_ns=lambda: self.loop.time_ns)
        self.host = Host("local", 1, self.loop, Governor(self.loop))
        self.done: list[str] = []

        def search(query: str) -> str:
            self.done.append(query)
            return answer

        async def search_async(query: str) -> str:
            return search(query)

        self.inline = faulty(search, "search", self.points, loop=self.loop)
        self.coroutine = faulty(search_async, "search", self.points, loop=self.loop)

    async def in_a_thread(self, query):
        return await asyncio.to_thread(self.inline, query)

    def run(self, program, *args):
        return self.loop.run_until_complete(self.host.start(program, *args))


WAYS = ("coroutine", "in_a_thread")


@pytest.fixture(params=WAYS)
def way(request):
    return request.param


def test_without_a_fault_the_tool_works_as_it_does(way):
    scene = Scene()
    assert "found" == scene.run(getattr(scene, way), "x")
    assert (["x"], 0) == (scene.done, scene.loop.time_ns)


def test_a_tool_that_raises_does_no_work_and_works_the_next_time(way):
    scene = Scene(ToolRaises())
    with pytest.raises(RuntimeError, match="tool 'search' failed"):
        scene.run(getattr(scene, way), "x")
    assert [] == scene.done
    assert "found" == scene.run(getattr(scene, way), "x")


def test_a_lost_answer_comes_after_the_work_and_only_once(way):
    scene = Scene(AnswerLost())
    with pytest.raises(ConnectionError, match="tool 'search' did its work"):
        scene.run(getattr(scene, way), "x")
    assert ["x"] == scene.done
    assert "found" == scene.run(getattr(scene, way), "x")


def test_an_answer_of_the_wrong_type_is_none_or_0_for_none(way):
    scene, silent = Scene(WrongType()), Scene(WrongType(), answer=None)
    assert scene.run(getattr(scene, way), "x") is None
    assert 0 == silent.run(getattr(silent, way), "x")
    assert "found" == scene.run(getattr(scene, way), "x")
    assert silent.run(getattr(silent, way), "x") is None


def test_a_slow_tool_takes_its_time_once(way):
    scene = Scene(ToolSlow(delay_ms=1_500))
    assert "found" == scene.run(getattr(scene, way), "x")
    assert 1_500_000_000 == scene.loop.time_ns
    assert "found" == scene.run(getattr(scene, way), "x")
    assert 1_500_000_000 == scene.loop.time_ns


def test_a_tool_that_hangs_answers_when_the_world_is_healed(way):
    scene = Scene(ToolHangs())

    async def program():
        call = asyncio.create_task(getattr(scene, way)("x"))
        await asyncio.sleep(3_600)
        assert not call.done()
        scene.points.heal()
        return await call

    assert "found" == scene.run(program)
    assert ["x"] == scene.done


def test_a_tool_that_hangs_can_be_left(way):
    scene = Scene(ToolHangs())

    async def program():
        async with asyncio.timeout(5):
            await getattr(scene, way)("x")

    with pytest.raises(TimeoutError):
        scene.run(program)
    scene.points.heal()
    scene.loop.run_until_idle()
    # A coroutine that was cancelled never came to its work; a thread had done it before it hung.
    assert ([] if way == "coroutine" else ["x"]) == scene.done


def test_nobody_ends_the_wait_for_a_tool_that_hangs(way):
    scene = Scene(ToolHangs())
    with pytest.raises(StuckError):
        scene.run(getattr(scene, way), "x")
    scene.loop.close()


def test_after_healing_nothing_strikes_any_more(way):
    scene = Scene(ToolRaises())
    scene.points.heal()
    assert "found" == scene.run(getattr(scene, way), "x")


def test_a_slow_tool_that_runs_on_the_loop_holds_up_its_host():
    scene = Scene(ToolSlow(delay_ms=2_000))
    ticks = []

    async def tick():
        await asyncio.sleep(1)
        ticks.append(scene.loop.time())

    async def program():
        ticking = asyncio.create_task(tick())
        await asyncio.sleep(0)
        assert "found" == scene.inline("x")
        await ticking

    scene.run(program)
    assert [2.0] == ticks


def test_a_tool_that_hangs_on_the_loop_stops_its_host_until_the_world_is_healed():
    scene = Scene(ToolHangs())

    async def program():
        scene.inline("x")
        await asyncio.sleep(0)
        return "went on"

    running = scene.host.start(program)
    scene.loop.advance(3_600_000_000_000)
    assert (False, "paused") == (running.done(), scene.host.process.state)
    scene.points.heal()
    assert "went on" == scene.loop.run_until_complete(running)


def test_a_tool_that_blocks_where_there_is_no_host_is_refused():
    scene = Scene(ToolHangs())
    with pytest.raises(FencedError, match="outside of every host"):
        scene.inline("x")


def test_calls_count_for_the_tool_and_for_all_tools():
    loop = SimulatedLoop()
    points = Points([At(point="tool", number=1, fault=ToolRaises())], time_ns=lambda: loop.time_ns)
    one, other = (faulty(abs, name, points, loop=loop) for name in ("one", "other"))
    assert 1 == one(-1)
    with pytest.raises(RuntimeError, match="'other'"):
        other(-1)


def test_a_faulty_tool_keeps_its_name_signature_and_kind():
    scene = Scene()
    for faulted, is_async in ((scene.inline, False), (scene.coroutine, True)):
        assert faulted.__name__ in {"search", "search_async"}
        assert "(query: 'str') -> 'str'" == str(inspect.signature(faulted))
        assert is_async is inspect.iscoroutinefunction(faulted)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_faulty_function_is_accepted_as_a_tool_of_the_engine(kind):
    loop = SimulatedLoop()
    points = Points([At(point="tool", number=0, fault=AnswerLost())], time_ns=lambda: loop.time_ns)

    async def add(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    def add_sync(a: int, b: int) -> int:
        """Add two numbers."""
        return a + b

    made = tool(faulty(add if kind == "async" else add_sync, "add", points, loop=loop))
    assert "Add two numbers." == made.description
    assert {"a", "b"} == set(made.input_schema["properties"])
    with pytest.raises(Exception, match="did its work, and the connection was lost"):
        loop.run_until_complete(made.call({"a": 1, "b": 2}))
    assert 3 == loop.run_until_complete(made.call({"a": 1, "b": 2}))


def test_an_object_with_an_async_call_is_an_async_tool():
    class Search:
        async def __call__(self, query):
            return query

    scene = Scene()
    assert "x" == scene.run(faulty(Search(), "search", scene.points, loop=scene.loop), "x")


def test_a_generator_is_refused():
    def many():
        yield 1

    async def many_async():
        yield 1

    scene = Scene()
    for function in (many, many_async):
        with pytest.raises(TypeError, match="a tool gives one answer, and 'many' is a generator function"):
            faulty(function, "many", scene.points, loop=scene.loop)
