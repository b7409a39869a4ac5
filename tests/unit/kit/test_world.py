"""The world: programs live in it, a storm passes over them, it is healed, comes to rest and is judged."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import uuid
from datetime import UTC, datetime

import httpx
import pytest

from tinyllm.testing.chronicle import WorldError
from tinyllm.testing.faults import AnswerLost, At, Cancelled, Crash, Partition, Pause, Refused, ToolRaises
from tinyllm.testing.loop import FencedError, LivelockError, StuckError
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.schedule import Hold
from tinyllm.testing.servers.ollama import OllamaServer
from tinyllm.testing.world import World


def striking(*calls, lasting=()):
    return WorldPlan(strikes=calls, lasting=tuple(lasting))


# --- running ---------------------------------------------------------------------------------------------


def test_a_program_runs_in_virtual_time_and_gives_its_result():
    async def main(hours):
        await asyncio.sleep(hours * 3_600)
        return asyncio.get_running_loop().time()

    with World() as world:
        assert 7_200 == world.run(main, 2)
        assert 7_200_000 == world.now_ms


def test_what_a_program_raises_is_raised():
    class OddError(BaseException):
        pass

    async def main(error):
        raise error

    for error in (ValueError("x"), OddError(), asyncio.CancelledError()):
        with World() as world, pytest.raises(type(error)):
            world.run(main, error)


def test_clock_chance_and_ids_are_the_worlds_and_follow_from_the_seed():
    async def main():
        await asyncio.sleep(1.5)
        return datetime.now(UTC), time.monotonic(), random.random(), uuid.uuid4()

    def lived(seed):
        with World(WorldPlan(seed=seed)) as world:
            return world.run(main)

    assert datetime(2026, 1, 1, 0, 0, 1, 500_000, tzinfo=UTC) == lived(0)[0]
    assert lived(0) == lived(0)
    assert lived(0)[2:] != lived(1)[2:]


def test_unpatched_a_program_keeps_its_own_clock_and_chance():
    async def main():
        return time.monotonic()

    before = time.monotonic()
    with World(patched=False) as world:
        assert before <= world.run(main) <= time.monotonic()


def test_any_httpx_client_inside_reaches_the_world_and_none_a_real_socket():
    async def main():
        async with httpx.AsyncClient() as client:
            body = {"model": "m", "prompt": "q", "stream": False}
            answer = await client.post("http://llm:11434/api/generate", json=body)
        return answer.json()["response"]

    with World() as world:
        world.host("llm", OllamaServer(answers=["hello"]))
        assert "hello" == world.run(main)

        async def real():
            import socket

            socket.create_connection(("127.0.0.1", 9))

        with pytest.raises(FencedError):
            world.run(real)


def test_a_function_starts_again_when_its_host_does_and_the_first_life_to_end_counts():
    lives = []

    async def main():
        lives.append(1)
        await asyncio.sleep(1)
        return len(lives)

    with World(striking(lasting=[Crash(start_ms=500, duration_ms=500)])) as world:
        assert 2 == world.run(main)
        world.host("local").restart()
        world.advance(10_000)
    assert 2 == len(lives)


def test_a_coroutine_cannot_start_again_and_is_stuck_when_its_host_has_crashed():
    async def main():
        await asyncio.sleep(1)

    with World(striking(lasting=[Crash(start_ms=500)])) as world, pytest.raises(StuckError) as stuck:
        world.run(main())
    assert ["  host local is dead"] == stuck.value.__notes__


def test_a_stuck_run_tells_what_lasts():
    async def main():
        await asyncio.open_connection("db", 1)

    plan = striking(lasting=[Partition(hosts=("db",)), Pause(host="db")])

    async def listen():
        await asyncio.start_server(lambda *_: None, "db", 1)

    async def waits_for_nobody():
        await asyncio.Event().wait()

    with World(plan) as world:
        world.host("db").start(listen)
        with pytest.raises(StuckError) as stuck:
            world.run(waits_for_nobody)
    assert ["  host db is paused", "  Partition(hosts=('db',)) lasts"] == stuck.value.__notes__


def test_a_life_without_end_is_told_after_its_budget_of_steps():
    async def main():
        while True:
            await asyncio.sleep(0)

    with World(max_steps=1_000) as world, pytest.raises(LivelockError):
        world.run(main)


def test_programs_of_hosts_go_on_while_time_passes():
    ticks = []

    async def ticker():
        while True:
            await asyncio.sleep(1)
            ticks.append(asyncio.get_running_loop().time())

    with World() as world:
        world.host("db").start(ticker)
        world.advance(2_500)
    assert [1.0, 2.0] == ticks


def test_a_host_is_the_same_whenever_it_is_named():
    with World() as world:
        assert world.host("db") is world.host("db")
        assert ["local", "db"] == list(world.hosts)
        assert "10.0.0.1" != world.host("db").address


# --- tools and cancellation ------------------------------------------------------------------------------


def test_a_tool_of_the_world_can_be_struck_by_its_name_and_heals():
    calls = []

    async def search(text):
        calls.append(text)
        return [text]

    async def main(tool):
        with pytest.raises(RuntimeError):
            await tool("a")
        with pytest.raises(ConnectionError):
            await tool("b")
        return await tool("c")

    plan = striking(
        At(point="tool search", fault=ToolRaises()), At(point="tool search", number=1, fault=AnswerLost())
    )
    with World(plan) as world:
        assert ["c"] == world.run(main, world.tool(search, "search"))
    assert ["b", "c"] == calls


@pytest.mark.parametrize("number", range(3))
def test_a_task_that_may_be_cancelled_is_at_the_await_that_the_plan_says(number):
    reached = []

    async def work():
        for step in range(3):
            await asyncio.sleep(1)
            reached.append(step)

    async def main(world):
        task = world.may_cancel(work())
        await asyncio.wait([task])
        return task.cancelled(), world.now_ms

    with World(striking(At(point="await", number=number, fault=Cancelled()))) as world:
        assert (True, 1_000 * (number + 1)) == world.run(main, world)
    assert list(range(number)) == reached


def test_a_task_that_nobody_offered_is_cancelled_by_its_name_only():
    async def worker():
        await asyncio.sleep(1)

    worker.__qualname__ = "worker"

    async def main():
        task = asyncio.create_task(worker())
        await asyncio.wait([task])
        return task.cancelled()

    with World(striking(At(point="await", fault=Cancelled()))) as world:
        assert not world.run(main)
    with World(striking(At(point="await worker", fault=Cancelled()))) as world:
        assert world.run(main)


def test_work_that_may_time_out_does_so_as_timeouts_do_and_gives_its_result_otherwise():
    async def work():
        await asyncio.sleep(1)
        return "done"

    async def main(world):
        try:
            return await world.may_time_out(work())
        except TimeoutError:
            return "late"

    with World() as world:
        assert "done" == world.run(main, world)
    with World(striking(At(point="await", fault=Cancelled()))) as world:
        assert "late" == world.run(main, world)
        assert () == world.loop.pending_tasks()


def test_cancelling_who_waits_for_it_is_no_timeout():
    async def work():
        await asyncio.sleep(10)

    async def main(world):
        waiting = asyncio.create_task(world.may_time_out(work()))
        await asyncio.sleep(1)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return len(world.loop.pending_tasks())

    with World() as world:
        assert 1 == world.run(main, world)


# --- healing, rest, judgement ----------------------------------------------------------------------------


def test_after_the_storm_the_world_is_healed_and_comes_to_rest():
    async def main():
        with pytest.raises(httpx.ConnectError):
            await get()
        asyncio.create_task(asyncio.sleep(5))  # noqa: RUF006

    async def get():
        async with httpx.AsyncClient() as client:
            return (await client.get("http://llm/api/tags")).status_code

    plan = WorldPlan(strikes=tuple(At(point="request", number=n, fault=Refused()) for n in range(9)))
    with World(plan) as world:
        world.host("llm", OllamaServer(answers=[]))
        world.run(main)
        chronicle = world.finish()
        assert 200 == world.run(get)
    assert () == chronicle.problems
    assert () == chronicle.left
    assert 5_000_000_000 == chronicle.simulated_ns


def test_exceptions_that_nobody_saw_are_wrong():
    async def fails():
        raise ValueError("unseen")

    async def main():
        asyncio.create_task(fails())  # noqa: RUF006
        await asyncio.sleep(1)

    with World() as world:
        world.run(main)
        chronicle = world.finish()
    with pytest.raises(WorldError, match="was never retrieved: ValueError: unseen") as caught:
        chronicle.raise_problems()
    assert isinstance(caught.value.__cause__, ValueError)
    assert 1 == len(caught.value.problems)


def test_a_stream_handler_that_is_cancelled_at_the_end_is_nothing_wrong():
    async def handles(reader, writer):
        await reader.read()

    async def serve():
        await (await asyncio.start_server(handles, "db", 7)).serve_forever()

    async def main():
        await asyncio.sleep(1)
        _, writer = await asyncio.open_connection("db", 7)
        await asyncio.sleep(1)
        kept.append(writer)

    kept: list = []
    with World() as world:
        world.host("db").start(serve)
        world.run(main)
        chronicle = world.finish()
        kept.pop().close()
    assert () == chronicle.problems
    assert 2 <= len(chronicle.left)


def test_conditions_are_judged_when_all_is_healed_and_the_world_at_rest():
    async def writes():
        await asyncio.sleep(1)
        written.append(1)

    async def written_later():
        await asyncio.sleep(0)
        return bool(written)

    written: list = []
    with World(striking(lasting=[Pause(host="db")])) as world:
        world.eventually(written_later)
        world.host("db").start(writes)
        world.advance(10_000)
        assert [] == written
        assert () == world.finish().problems


@pytest.mark.parametrize("condition", [lambda: False, lambda: 1 / 0])
def test_a_condition_fails_by_false_or_by_raising(condition):
    with World() as world:
        world.eventually(condition)
        problems = world.finish().problems
    assert "<lambda> does not hold after all is healed" in problems[0].text


def test_tasks_that_wait_for_ever_or_work_on_are_told_and_not_wrong():
    async def waits():
        await asyncio.Event().wait()

    async def beats():
        while True:
            await asyncio.sleep(1)

    with World() as world:
        world.host("db").start(waits, name="waits")
        world.host("db").start(beats, name="beats")
        chronicle = world.finish(rest_ms=10_000)
    assert ("waits", "beats") == chronicle.left
    assert () == chronicle.problems
    assert 10_000_000_000 == chronicle.simulated_ns


def test_a_world_that_never_rests_is_wrong():
    async def spins():
        while True:
            await asyncio.sleep(0)

    with World(max_steps=1_000) as world:
        world.host("db").start(spins)
        assert "not at an end after 1000 steps" in world.finish().problems[0].text


def test_a_heartbeat_is_no_livelock_however_long_it_beats():
    async def beats():
        while True:
            await asyncio.sleep(0.001)

    with World(max_steps=10_000, max_still_steps=1_000) as world:
        world.host("db").start(beats)
        assert () == world.finish().problems


def test_the_chronicle_tells_what_was_asked_what_struck_and_what_was_held():
    async def main():
        async with httpx.AsyncClient() as client:
            await client.get("http://llm/api/tags")
            with pytest.raises(httpx.ConnectError):
                await client.get("http://llm/api/tags")
        world.note("a line of my own")

    plan = WorldPlan(
        schedule=(Hold(0, 8),),
        strikes=(At(point="request llm", number=1, fault=Refused()),), lasting=(Pause(host="db", duration_ms=5),),
    )
    with World(plan) as world:
        world.host("llm", OllamaServer(answers=[]))
        world.run(main)
        lines = [f"{event.at_ns // 1_000_000} {event.who}: {event.what}" for event in world.finish().events]
    assert "0 db: Pause(duration_ms=5, host='db') begins" in lines
    assert "5 db: Pause(duration_ms=5, host='db') ends" in lines
    assert "10 llm: gets GET /api/tags from local" in lines
    assert "10 llm: Refused() strikes (request llm, 1)" in lines
    assert "10 note: a line of my own" in lines
    assert any("main" in line and "its whole process stalls for 10 ms" in line for line in lines)


def test_two_worlds_of_one_plan_live_the_same_life_step_by_step():
    async def main():
        async def worker(number):
            await asyncio.sleep(random.random())
            return number

        async with asyncio.TaskGroup() as group:
            for number in range(5):
                group.create_task(worker(number))

    def lived(seed):
        with World(WorldPlan(seed=seed), trace=True) as world:
            world.run(main)
            return world.finish()

    assert lived(0).digest == lived(0).digest
    assert lived(0).digest != lived(1).digest
    assert len(lived(0).trace) >= 10


def test_closing_twice_is_as_closing_once():
    world = World()
    world.close()
    world.close()
    assert world.loop.is_closed()


def test_all_tasks_are_those_of_the_process_that_asks_and_no_jobs():
    beats = []

    async def beat():
        while True:
            beats.append(asyncio.get_running_loop().time())
            await asyncio.sleep(0.01)

    async def shuts_down():
        job = asyncio.get_running_loop().run_in_executor(None, lambda: "done")
        mine = asyncio.create_task(asyncio.sleep(100))
        await asyncio.sleep(0.1)
        late = asyncio.get_running_loop().run_in_executor(None, lambda: "late")
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.sleep(1)
        return others == {mine}, await job, await late

    with World() as world:
        world.host("other").start(beat)
        assert (True, "done", "late") == world.run(shuts_down)
        assert beats[-1] >= 1


@pytest.mark.parametrize("how", ["gather", "group", "task"])
def test_who_leaves_in_the_middle_of_a_wait_interrupts_what_runs_for_it(how):
    accounts = {"a": 5, "b": 0}

    async def move():
        accounts["a"] -= 5
        await asyncio.sleep(0.1)
        accounts["b"] += 5

    async def handler():
        if how == "gather":
            await asyncio.gather(move(), asyncio.sleep(0.05))
        elif how == "group":
            async with asyncio.TaskGroup() as group:
                group.create_task(move())
        else:
            await asyncio.create_task(move())

    async def main(world):
        with contextlib.suppress(asyncio.CancelledError):
            await world.may_cancel(handler())
        return world.now_ms

    for after_ms, at_ms, expected in ((20, 20, {"a": 0, "b": 0}), (200, 100, {"a": 0, "b": 5})):
        accounts.update(a=5, b=0)
        with World(striking(At(point="await", fault=Cancelled(after_ms=after_ms)))) as world:
            assert at_ms == world.run(main, world)
            assert expected == accounts
            chronicle = world.finish()
        assert (after_ms == 20) == (() == chronicle.missed)
