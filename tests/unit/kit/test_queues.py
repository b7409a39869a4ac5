"""The fault "queue full": it bites on the queues of one host, heals in order, and leaves asyncio as it was."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import Any

import pytest

from tinyllm.testing.apps.queues import Queues
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.processes import Governor, Host

pytestmark = pytest.mark.unit


def bounded(maxsize: int) -> asyncio.Queue[Any]:
    return asyncio.Queue(maxsize)


class Scene:
    """Two hosts, and queues that can be made full."""

    def __init__(self) -> None:
        self.loop = SimulatedLoop()
        governor = Governor(self.loop)
        self.a, self.b = (Host(name, number, self.loop, governor) for number, name in enumerate("ab", 1))
        self.queues = Queues()

    def run(self, program, host=None):
        with self.queues:
            return self.loop.run_until_complete((host or self.a).start(program))


@pytest.fixture
def scene():
    scene = Scene()
    yield scene
    scene.loop.close()


def test_a_full_queue_takes_nothing_at_once(scene):
    async def program():
        queue = bounded(5)
        queue.put_nowait("before")
        scene.queues.fill("a")
        assert queue.full()
        with pytest.raises(asyncio.QueueFull):
            queue.put_nowait("while")
        assert "before" == queue.get_nowait()

    scene.run(program)


def test_after_the_fault_a_queue_takes_what_fits(scene):
    async def program():
        queue = bounded(1)
        scene.queues.fill("a")
        with pytest.raises(asyncio.QueueFull):
            queue.put_nowait(1)
        scene.queues.drain("a")
        queue.put_nowait(1)
        assert queue.full()

    scene.run(program)


def test_who_waits_goes_on_in_order_when_it_ends_and_only_as_far_as_there_is_room(scene):
    async def program():
        queue = bounded(2)
        scene.queues.fill("a")
        putters = [asyncio.create_task(queue.put(number)) for number in range(3)]
        await asyncio.sleep(1)
        assert [False] * 3 == [putter.done() for putter in putters]
        scene.queues.drain("a")
        await asyncio.sleep(1)
        assert [True, True, False] == [putter.done() for putter in putters]
        assert [0, 1, 2] == [await queue.get() for _ in range(3)]

    scene.run(program)


def test_who_waited_before_the_fault_keeps_the_place_in_line(scene):
    async def program():
        queue = bounded(1)
        putters = [asyncio.create_task(queue.put(number)) for number in range(4)]
        await asyncio.sleep(1)
        scene.queues.fill("a")
        assert 0 == await queue.get()
        await asyncio.sleep(1)
        assert [True, False, False, False] == [putter.done() for putter in putters]
        scene.queues.drain("a")
        assert [1, 2, 3] == [await queue.get() for _ in range(3)]

    scene.run(program)


def test_queues_of_other_hosts_are_not_full(scene):
    async def program():
        queue = bounded(1)
        queue.put_nowait(1)
        return queue.full()

    scene.queues.fill("a")
    assert scene.run(program, scene.b)


def test_an_unbounded_queue_is_never_full(scene):
    async def program():
        queue = bounded(0)
        scene.queues.fill("a")
        await queue.put(1)
        return await queue.get()

    assert 1 == scene.run(program)


def test_a_putter_that_is_cancelled_leaves_the_line(scene):
    async def program():
        queue = bounded(1)
        scene.queues.fill("a")
        first, second = (asyncio.create_task(queue.put(number)) for number in range(2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        scene.queues.drain("a")
        await second
        assert first.cancelled()
        return queue.get_nowait()

    assert 1 == scene.run(program)


@pytest.mark.parametrize("kind", [asyncio.LifoQueue, asyncio.PriorityQueue])
def test_other_kinds_of_queues_are_full_too(scene, kind):
    async def program():
        scene.queues.fill("a")
        with pytest.raises(asyncio.QueueFull):
            kind(maxsize=1).put_nowait(1)

    scene.run(program)


def test_a_fault_outlasts_the_end_of_one_run_of_the_world(scene):
    queue = bounded(1)

    async def put():
        await queue.put(1)

    async def wait():
        await asyncio.sleep(1)
        return queue.qsize()

    scene.queues.fill("a")
    putter = scene.a.start(put)
    assert 0 == scene.run(wait)
    with scene.queues:
        scene.queues.drain("a")
        scene.loop.run_until_complete(putter)
    assert 1 == queue.qsize()


def test_draining_a_host_whose_queues_are_not_full_does_nothing(scene):
    scene.queues.drain("a")


def test_nothing_of_it_stays_in_asyncio(scene):
    before = dict(vars(asyncio.Queue))
    with contextlib.suppress(ZeroDivisionError), scene.queues:
        scene.queues.fill("local")
        assert asyncio.Queue(maxsize=1).full()
        raise ZeroDivisionError
    assert before == dict(vars(asyncio.Queue))
    assert not asyncio.Queue(maxsize=1).full()


@pytest.mark.skipif(sys.version_info < (3, 13), reason="asyncio.Queue.shutdown came with Python 3.13")
def test_shutdown_ends_the_wait_for_a_full_queue(scene):
    async def program():
        queue = bounded(1)
        scene.queues.fill("a")
        putter = asyncio.create_task(queue.put(1))
        await asyncio.sleep(0)
        queue.shutdown()
        with pytest.raises(asyncio.QueueShutDown):
            await putter

    scene.run(program)
