"""Exploring programs: what is broken is found and shrunk, what stock asyncio cannot break is not reported."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from dataclasses import replace

import pytest

from tests.support.protocols import a_task_for_each_message
from tinyllm.testing.faults import At, Cancelled, Refused
from tinyllm.testing.lives import NotDeterministicError, canonical, live, live_twice, reachable, same_failure
from tinyllm.testing.loop import LivelockError, StuckError
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.schedule import Hold
from tinyllm_strategies.explore import explore

# --- programs with a bug ---------------------------------------------------------------------------------


async def loses_an_update(world):
    box = {"n": 0}

    async def add(delay):
        await asyncio.sleep(delay)
        value = box["n"]
        await asyncio.sleep(0.001)
        box["n"] = value + 1

    await asyncio.gather(add(0.001), add(0.01))
    assert box["n"] == 2


async def deadlocks(world):
    first, second = asyncio.Lock(), asyncio.Lock()

    async def take(one, other, delay):
        await asyncio.sleep(delay)
        async with one:
            await asyncio.sleep(0.001)
            async with other:
                pass

    await asyncio.gather(take(first, second, 0.001), take(second, first, 0.01))


async def leaks_its_lock_when_it_times_out(world):
    lock = asyncio.Lock()

    async def work():
        await lock.acquire()
        await asyncio.sleep(0.01)
        lock.release()

    with contextlib.suppress(TimeoutError):
        await world.may_time_out(work())
    async with asyncio.timeout(5):
        await lock.acquire()


async def fetches_twice(world):
    cache: dict = {}
    fetched = []

    async def get(delay):
        await asyncio.sleep(delay)
        if "key" not in cache:
            fetched.append(1)
            await asyncio.sleep(0.01)
            cache["key"] = 1

    await asyncio.gather(*(get(0.02 * number) for number in range(4)))
    assert 1 == len(fetched)


async def gives_up_on_a_slow_producer(world):
    queue: asyncio.Queue = asyncio.Queue()
    got: list = []

    async def produce():
        for number in range(3):
            await asyncio.sleep(0.01)
            await queue.put(number)

    async def consume():
        while len(got) < 3:
            try:
                got.append(await asyncio.wait_for(queue.get(), 0.05))
            except TimeoutError:
                return

    await asyncio.gather(produce(), consume())
    assert [0, 1, 2] == got


async def trusts_its_server(world):
    import httpx

    world.host("api", lambda request: _json_answer())
    async with httpx.AsyncClient() as client:
        (await client.get("http://api/")).json()


def _json_answer():
    from tinyllm.testing.http.values import json_answer

    return json_answer({"ok": True})


async def spins_until_somebody_sets_a_flag_late(world):
    flag: list = []

    async def sets():
        await asyncio.sleep(0.01)
        flag.append(1)

    task = asyncio.create_task(sets())
    # The loop's clock stands still while anything is ready, so this is a livelock in every life.
    while not flag:
        await asyncio.sleep(0)
    await task


BROKEN = [
    (loses_an_update, AssertionError, 200),
    (deadlocks, StuckError, 200),
    (leaks_its_lock_when_it_times_out, TimeoutError, 300),
    (fetches_twice, AssertionError, 200),
    (gives_up_on_a_slow_producer, AssertionError, 200),
    (trusts_its_server, Exception, 300),
    (spins_until_somebody_sets_a_flag_late, LivelockError, 1),
]


# Hunts: other tests measure the same lines, and measuring makes these take three times as long.
@pytest.mark.no_cover
@pytest.mark.parametrize(("program", "error", "examples"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize("seed", range(3))
def test_a_bug_is_found_and_shrunk_to_one_decision(program, error, examples, seed):
    found = explore(program, seed_number=seed, max_examples=2_000, max_still_steps=2_000)
    assert isinstance(found.finding.error, error)
    assert found.finding.reachable
    assert found.finding.plan.decisions <= 1
    assert found.examples <= examples


async def races_after_much_else(world):
    for _ in range(25):
        await asyncio.gather(*(asyncio.sleep(0) for _ in range(2)))
    await loses_an_update(world)


@pytest.mark.no_cover
@pytest.mark.parametrize("seed", range(3))
def test_a_race_that_comes_late_is_found_too_and_needs_one_decision(seed):
    found = explore(races_after_much_else, seed_number=seed, max_examples=5_000, families=())
    assert 1 == found.finding.plan.decisions


async def leaks_a_cancellation(world):
    task = asyncio.create_task(asyncio.sleep(1))
    await asyncio.sleep(0.001)
    task.cancel()
    await task


async def swallows_its_cancellation(world):
    async def stubborn():
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(1)

    asyncio.create_task(stubborn())  # noqa: RUF006


async def swallows_everything(world):
    async def stubborn():
        while True:
            with contextlib.suppress(BaseException):
                await asyncio.sleep(1)

    asyncio.create_task(stubborn())  # noqa: RUF006


@pytest.mark.parametrize(
    ("program", "what"),
    [
        (leaks_a_cancellation, "CancelledError"),
        (swallows_its_cancellation, "stubborn#2 would not end when it was cancelled"),
        (swallows_everything, "stubborn#2 would not end when it was cancelled"),
    ],
)
def test_cancellation_that_goes_wrong_is_a_finding(program, what):
    found = explore(program, max_examples=3)
    assert what in found.finding.story


# --- programs that stock asyncio cannot break ------------------------------------------------------------


async def relies_on_the_order_of_callbacks(world):
    log = []

    async def one(name):
        for _ in range(3):
            await asyncio.sleep(0)
            log.append(name)

    await asyncio.gather(one("a"), one("b"))
    assert list("ababab") == log


async def relies_on_the_order_of_timers(world):
    log = []

    async def one(number):
        await asyncio.sleep(0.001 * number)
        log.append(number)

    await asyncio.gather(*map(one, range(6)))
    assert sorted(log) == log


async def relies_on_the_fairness_of_a_lock(world):
    log = []
    lock = asyncio.Lock()

    async def one(number):
        async with lock:
            await asyncio.sleep(0.001)
            log.append(number)

    await asyncio.gather(*map(one, range(5)))
    assert sorted(log) == log


async def relies_on_the_order_of_waiters(world):
    log = []
    loop = asyncio.get_running_loop()
    answer: asyncio.Future = loop.run_in_executor(None, list)

    async def one(number):
        await answer
        log.append(number)

    await asyncio.gather(*(one(number) for number in range(3)))
    assert [0, 1, 2] == log


async def relies_on_the_order_of_a_stream(world):
    got: list = []

    world.host("db").start(a_task_for_each_message(got))
    writer = None
    while writer is None:
        with contextlib.suppress(ConnectionRefusedError):
            _, writer = await asyncio.open_connection("db", 7)
        await asyncio.sleep(1)
    for letter in b"abcd":
        writer.write(bytes([letter]))
        await asyncio.sleep(0.001)
    await asyncio.sleep(600)
    writer.close()
    assert b"abcd" == b"".join(got)


async def collects_as_completed(world):
    async def one(number):
        await asyncio.sleep(0.001)
        return number

    assert list(range(8)) == [await done for done in asyncio.as_completed([one(number) for number in range(8)])]


async def passes_through_a_bounded_queue(world):
    queue: asyncio.Queue = asyncio.Queue(2)

    async def produce():
        for number in range(5):
            await queue.put(number)

    async def consume():
        return [await queue.get() for _ in range(5)]

    _, got = await asyncio.gather(produce(), consume())
    assert list(range(5)) == got


async def keeps_a_heartbeat(world):
    async def beats():
        while True:
            await asyncio.sleep(0.05)

    asyncio.create_task(beats())  # noqa: RUF006
    await asyncio.sleep(0.1)


async def adds_without_an_await_between(world):
    box = {"n": 0}

    async def add():
        await asyncio.sleep(0)
        box["n"] += 1
        await asyncio.sleep(0.001)

    await asyncio.gather(*(add() for _ in range(4)))
    assert box["n"] == 4


SOUND = [
    relies_on_the_order_of_callbacks,
    relies_on_the_order_of_timers,
    relies_on_the_fairness_of_a_lock,
    relies_on_the_order_of_waiters,
    relies_on_the_order_of_a_stream,
    collects_as_completed,
    passes_through_a_bounded_queue,
    keeps_a_heartbeat,
    adds_without_an_await_between,
]


@pytest.mark.parametrize("families", [(), ("process", "clock", "resources")])
@pytest.mark.parametrize("program", SOUND, ids=lambda program: program.__name__)
def test_what_stock_asyncio_cannot_break_is_not_reported(program, families):
    found = explore(program, max_examples=150, families=families)
    assert found.finding is None
    assert 150 == found.examples


def test_orders_that_asyncio_never_has_are_found_when_asked_for_and_told_as_such():
    found = explore(relies_on_the_order_of_callbacks, external_only=False, max_examples=500)
    assert not found.finding.reachable
    assert "Reachable on stock asyncio: no" in found.finding.story


# --- what a finding tells --------------------------------------------------------------------------------


def test_a_story_tells_what_was_given_what_happened_and_how_to_live_it_again():
    finding = explore(loses_an_update, families=()).finding
    story = finding.story.splitlines()

    assert story[0].startswith("AssertionError")
    assert [f"Live it again: {finding.plan!r}", "  (from tinyllm.testing import Hold, WorldPlan)"] == story[-2:]
    assert any("at test_explore.py:" in line and "assert box" in line for line in story)
    assert "Reachable on stock asyncio: yes" in story
    assert any("its whole process stalls for" in line for line in story)
    assert len(story) <= 20


def test_a_finding_lives_again_the_same():
    finding = explore(deadlocks).finding
    again = live(finding.plan, deadlocks)
    assert same_failure(finding.error, again.error)
    assert str(finding.error) == str(again.error)


def test_without_families_only_the_schedule_is_explored():
    async def asks(world):
        import httpx

        world.host("api", lambda request: _json_answer())
        async with httpx.AsyncClient(timeout=None) as client:
            (await client.get("http://api/")).json()

    assert explore(asks, families=(), max_examples=200).finding is None


def test_the_same_seed_finds_the_same():
    one, other = explore(fetches_twice, seed_number=5), explore(fetches_twice, seed_number=5)
    assert (one.examples, one.shrinks, one.finding.plan) == (other.examples, other.shrinks, other.finding.plan)


# --- lives -----------------------------------------------------------------------------------------------


def test_a_program_that_differs_from_life_to_life_is_told_with_the_first_difference():
    lives = itertools.count()

    async def differs(world):
        await asyncio.sleep(next(lives))

    with pytest.raises(NotDeterministicError, match=r"(?s)one plan, two lives.*first: .*then: "):
        live_twice(WorldPlan(), differs)
    with pytest.raises(NotDeterministicError):
        explore(differs)


def test_a_program_that_fails_every_other_time_is_told():
    lives = itertools.count()

    async def fails(world):
        assert next(lives) % 2

    with pytest.raises(NotDeterministicError, match="AssertionError"):
        live_twice(WorldPlan(), fails)


async def fails_when_the_second_await_is_cancelled(world):
    async def work():
        await asyncio.sleep(1)
        try:
            await asyncio.sleep(1)
        except asyncio.CancelledError:
            raise ValueError("cancelled at the second") from None

    await asyncio.wait([task := world.may_cancel(work())])
    if not task.cancelled():
        await task


def test_the_canonical_plan_has_what_the_failure_needs_and_no_more():
    needed = At(point="await", number=1, fault=Cancelled())
    plan = WorldPlan(
        schedule=(Hold(5, 3), Hold(0, 0)), strikes=(needed, At(point="request", fault=Refused())), seed=3
    )
    life = live(plan, fails_when_the_second_await_is_cancelled)
    assert isinstance(life.error, ValueError)
    simplest = canonical(plan, fails_when_the_second_await_is_cancelled, life.error)
    assert WorldPlan(strikes=(needed,)) == simplest


def test_a_long_life_is_not_made_simpler_for_ever(monkeypatch):
    lives = []

    async def never_ends(world):
        lives.append(world)
        while True:
            await asyncio.sleep(0.001)

    plan = WorldPlan(strikes=tuple(At(point="request", number=number, fault=Refused()) for number in range(20)), seed=7)
    life = live(plan, never_ends, max_steps=1_000)
    assert life.error is not None
    monkeypatch.setattr("tinyllm.testing.lives.TRIES_STEPS", 5_000)

    simplest = canonical(plan, never_ends, life.error, max_steps=1_000)
    tried = len(lives) - 1
    assert tried == 20 - len(simplest.strikes)  # each was simpler, and the last was not the simplest
    assert 2 <= tried <= 5



def test_a_plan_without_holds_is_reachable_and_one_whose_holds_matter_only_out_of_order_is_not():
    plan = WorldPlan(schedule=(Hold(2, 6),) * 3, external_only=False)
    life = live(plan, relies_on_the_order_of_callbacks)
    assert isinstance(life.error, AssertionError)
    assert not reachable(plan, relies_on_the_order_of_callbacks, life.error)
    assert reachable(replace(plan, schedule=()), relies_on_the_order_of_callbacks, life.error)


def test_when_python_collects_cycles_is_no_part_of_a_life():
    async def leaves_generators_in_cycles(world):
        async def numbers():
            try:
                for number in range(3):
                    yield number
            finally:
                world.note("closed")
                await asyncio.sleep(0.001)

        for _ in range(10):
            kept = [numbers()]
            kept.append(kept)
            async for _number in kept[0]:
                break
            del kept, _number
            garbage.extend([] for _ in range(random_sizes.pop()))
            await asyncio.sleep(0.01)

    garbage: list = []
    random_sizes = [7, 3_000, 11, 0, 900, 5_000, 1, 20, 300, 700] * 20
    digests = {live(WorldPlan(), leaves_generators_in_cycles, trace=True).chronicle.digest for _ in range(20)}
    assert 1 == len(digests)


def test_a_generator_that_has_ended_and_is_still_kept_is_no_step_at_the_end():
    async def iterates(world):
        async def numbers():
            yield 1

        generator = numbers()
        async for _ in generator:
            pass
        kept.extend([generator] * keeps.pop())

    kept: list = []
    keeps = [0, 1, 0]
    digests = {live(WorldPlan(), iterates, trace=True).chronicle.digest for _ in range(3)}
    assert 1 == len(kept)
    assert 1 == len(digests)


@pytest.mark.parametrize("body", [None, 3])
def test_what_cannot_be_called_is_refused(body):
    with pytest.raises(TypeError, match="explore takes a coroutine function"):
        explore(body)
