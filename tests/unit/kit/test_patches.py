"""Patches: time, chance and ids are the world's inside, and as they were outside."""

from __future__ import annotations

import asyncio
import datetime as datetime_module
import importlib
import os
import pickle
import random
import secrets
import sys
import tempfile
import threading
import time
import types
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime, timedelta
from os import urandom as borrowed_urandom
from time import monotonic as borrowed_monotonic
from time import sleep as borrowed_sleep

import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.testing.apps.patches import SLEEPS_PER_STEP_MAX, Patches
from tinyllm.testing.clocks import WallClock
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.loop_errors import FencedError, SimulationError
from tinyllm.testing.processes import PROCESS, Governor, Host
from tinyllm.testing.units import EPOCH

pytestmark = pytest.mark.unit

S = 1_000_000_000


class Life:
    """A host that runs inside patches."""

    def __init__(self, seed: int = 0) -> None:
        self.loop = SimulatedLoop()
        self.governor = Governor(self.loop)
        self.hosts = [Host(name, number, self.loop, self.governor) for number, name in enumerate("ab", 1)]
        self.clock = WallClock(lambda: self.loop.time_ns)
        self.patches = Patches(self.loop, seed=seed, clock_of=lambda: self.clock, block_ns=self.block)

    def block(self, duration_ns: int) -> None:
        PROCESS.get().host.charge(duration_ns)

    def run(self, program):
        with self.patches:
            return self.loop.run_until_complete(self.hosts[0].start(program))


@pytest.fixture
def life():
    life = Life()
    yield life
    life.loop.close()


def everything_random():
    """One of each that the standard library has."""
    return [
        random.random(),
        random.Random().random(),
        random.SystemRandom().random(),
        secrets.token_hex(8),
        secrets.randbelow(1_000_000),
        os.urandom(8),
        borrowed_urandom(8),
        uuid.uuid4(),
        uuid.uuid1(),
        uuid.uuid1(),
    ]


# --- time ------------------------------------------------------------------------------------------------


def test_all_clocks_show_the_time_of_the_world(life):
    async def program():
        await asyncio.sleep(90)
        assert [90.0] * 4 == [time.monotonic(), time.perf_counter(), borrowed_monotonic(), time.process_time()]
        assert [90 * S] * 2 == [time.monotonic_ns(), time.perf_counter_ns()]
        assert EPOCH.timestamp() + 90 == time.time()
        assert EPOCH.timestamp() * S + 90 * S == time.time_ns()
        assert asyncio.get_running_loop().time() == time.monotonic()

    life.run(program)


def test_dates_are_those_of_the_world(life):
    async def program():
        await asyncio.sleep(0.123456)
        expected = EPOCH + timedelta(microseconds=123_456)
        assert expected == datetime.now(UTC) == datetime_module.datetime.now(tz=UTC)
        assert expected == datetime.now().astimezone() == datetime.today().astimezone()
        assert expected.replace(tzinfo=None) == datetime.utcnow()  # noqa: DTZ003
        assert expected.astimezone().date() == date.today()  # noqa: DTZ011

    life.run(program)


def test_broken_down_times_are_those_of_the_world(life):
    async def program():
        assert (2026, 1, 1, 0, 0, 0) == time.gmtime()[:6]
        assert EPOCH.timestamp() == time.mktime(time.localtime())
        assert time.asctime(time.localtime()) == time.asctime() == time.ctime()
        assert time.strftime("%Y", time.localtime()) == time.strftime("%Y")
        assert (1970, "1970") == (time.gmtime(0)[0], time.strftime("%Y", time.gmtime(0)))

    life.run(program)


def test_a_wall_clock_that_jumps_takes_no_monotonic_time_with_it(life):
    async def program():
        life.clock.jump(-3_600_000)
        assert EPOCH - timedelta(hours=1) == datetime.now(UTC)
        assert EPOCH.timestamp() - 3_600 == time.time()
        assert 0.0 == time.monotonic()
        life.clock.correct()
        assert EPOCH == datetime.now(UTC)

    life.run(program)


def test_datetime_stays_the_class_that_it_is(life):
    class Event(pydantic.BaseModel):
        at: datetime

    class Later(datetime):
        pass

    async def program():
        class Inside(pydantic.BaseModel):
            at: datetime

        now = datetime.now(UTC)
        assert datetime is type(now)
        assert isinstance(now, datetime)
        assert now == pickle.loads(pickle.dumps(now)) == Event(at=now).at == Inside(at=now).at
        assert Later is type(Later.now(UTC))
        assert now == Later.now(UTC)

    life.run(program)


# --- sleeping --------------------------------------------------------------------------------------------


def test_a_sleep_that_blocks_holds_up_its_host_and_no_other(life):
    seen = []

    async def other(host):
        await asyncio.sleep(1)
        seen.append((host, time.monotonic()))

    async def program():
        life.hosts[0].start(other, "a")
        life.hosts[1].start(other, "b")
        await asyncio.sleep(0)
        time.sleep(4)  # noqa: ASYNC251 - what it is about
        borrowed_sleep(1)  # noqa: ASYNC251
        assert 5.0 == time.monotonic() == time.time() - EPOCH.timestamp()
        await asyncio.sleep(0)
        assert 5.0 == time.monotonic() == asyncio.get_running_loop().time()

    life.run(program)
    assert [("b", 1.0), ("a", 5.0)] == seen


def test_a_host_that_restarts_while_it_sleeps_has_the_true_time_again(life):
    seen = []

    async def sleeper():
        seen.append(time.monotonic())
        time.sleep(10)  # noqa: ASYNC251
        seen.append(time.monotonic())

    async def program():
        life.hosts[1].start(sleeper)
        await asyncio.sleep(1)
        life.hosts[1].restart()
        await asyncio.sleep(1)

    life.run(program)
    assert [0.0, 10.0, 1.0, 11.0] == seen


def test_a_job_that_sleeps_answers_later_and_holds_up_nobody(life):
    def job():
        time.sleep(5)
        return time.monotonic()

    async def program():
        answer = asyncio.create_task(asyncio.to_thread(job))
        await asyncio.sleep(1)
        assert (1.0, False) == (time.monotonic(), answer.done())
        assert 5.0 == await answer == time.monotonic()

    life.run(program)


def test_a_loop_that_sleeps_until_some_time_comes_to_its_end(life):
    async def program():
        end = time.time() + 3
        rounds = 0
        while time.time() < end:
            time.sleep(0.5)  # noqa: ASYNC251
            rounds += 1
        return rounds

    assert 6 == life.run(program)


def test_a_loop_that_sleeps_until_somebody_else_acts_is_refused(life):
    acted = threading.Event()

    def job():
        while not acted.is_set():
            time.sleep(1)

    async def program():
        asyncio.get_running_loop().call_later(1, acted.set)
        await asyncio.to_thread(job)

    with pytest.raises(FencedError, match=f"time.sleep, {SLEEPS_PER_STEP_MAX + 1} times in one step"):
        life.run(program)


@pytest.mark.parametrize(
    ("seconds", "error"),
    [(-1, ValueError), (float("nan"), ValueError), (float("inf"), ValueError), ("1", TypeError), (None, TypeError)],
)
def test_a_sleep_that_is_no_time_is_refused(life, seconds, error):
    async def program():
        time.sleep(seconds)  # noqa: ASYNC251

    with pytest.raises(error):
        life.run(program)


# --- chance ----------------------------------------------------------------------------------------------


async def draw():
    return everything_random()


def drawn(seed):
    life = Life(seed)
    try:
        return life.run(draw)
    finally:
        life.loop.close()


def test_the_same_seed_gives_the_same_chance_and_ids():
    random.seed(1)
    first = drawn(7)
    random.seed(2)
    assert drawn(7) == first


def test_another_seed_gives_others_in_every_place():
    assert not any(one == other for one, other in zip(drawn(7), drawn(8), strict=True))


def test_what_was_drawn_is_not_drawn_again_in_the_next_run_of_the_same_world(life):
    first, second = life.run(draw), life.run(draw)
    assert not any(one == other for one, other in zip(first, second, strict=True))


def test_an_id_with_a_time_in_it_has_the_time_of_the_world_and_no_address_of_this_machine(life):
    async def program():
        await asyncio.sleep(1)
        return uuid.uuid1()

    made = life.run(program)
    since_1582 = EPOCH - datetime(1582, 10, 15, tzinfo=UTC)
    assert (since_1582 + timedelta(seconds=1)) // timedelta(microseconds=1) * 10 == made.time
    assert 0x02_00_00_00_00_01 == made.node


def test_a_generator_with_a_seed_of_its_own_keeps_it(life):
    async def program():
        return random.Random(5).random(), random.Random("five").random()

    assert (random.Random(5).random(), random.Random("five").random()) == life.run(program)


def test_seeding_from_the_system_seeds_from_the_world():
    async def program():
        random.seed()
        return random.random()

    def life_of(seed):
        life = Life(seed)
        try:
            return life.run(program)
        finally:
            life.loop.close()

    assert life_of(3) == life_of(3) != life_of(4)


def test_the_names_of_temporary_files_repeat():
    async def program():
        return next(tempfile._RandomNameSequence())

    lives = [Life(), Life()]
    assert 1 == len({life.run(program) for life in lives})
    for life in lives:
        life.loop.close()


@given(data=st.data())
def test_hypothesis_draws_as_ever_inside(data):
    life = Life()

    async def program():
        numbers = data.draw(st.lists(st.integers(0, 9), min_size=1))
        await asyncio.sleep(60)
        assert data.draw(st.sampled_from(numbers)) in numbers
        return data.draw(st.randoms(use_true_random=True)).random()

    assert 0 <= life.run(program) < 1
    life.loop.close()


def test_a_failure_that_hypothesis_finds_inside_shrinks_and_repeats():
    @settings(database=None, max_examples=200)
    @given(number=st.integers(0, 1_000))
    def property_that_fails(number):
        life = Life()

        async def program():
            await asyncio.sleep(number)
            assert time.monotonic() < 100
            return random.random()

        try:
            life.run(program)
        finally:
            life.loop.close()

    with pytest.raises(AssertionError, match=r"assert 100\.0 < 100") as caught:
        property_that_fails()
    assert any("number=100," in note for note in caught.value.__notes__)


# --- the borders -----------------------------------------------------------------------------------------


def standard_library():
    modules = (time, random, os, uuid, asyncio, asyncio.events)
    found = {(module.__name__, name): value for module in modules for name, value in vars(module).items()}
    found |= {(cls.__name__, name): value for cls in (datetime, random.Random) for name, value in vars(cls).items()}
    found |= {("here", name): value for name, value in globals().items() if name.startswith("borrowed")}
    return found


def test_nothing_of_it_stays_behind(life):
    before, state = standard_library(), random.getstate()
    life.run(draw)
    with pytest.raises(ZeroDivisionError), life.patches:
        raise ZeroDivisionError
    after = standard_library()
    assert [] == [key for key in before.keys() | after.keys() if before.get(key) is not after.get(key)
                  and key != ("uuid", "_last_timestamp")]  # fmt: skip
    assert state == random.getstate()
    assert abs(time.time() - datetime.now(UTC).timestamp()) < 60
    assert time.monotonic() > 0


def test_patches_nest(life):
    inner = Life(1)
    with life.patches:
        outer_sleep = time.sleep
        with inner.patches:
            assert outer_sleep is not time.sleep
        assert outer_sleep is time.sleep
        assert EPOCH == datetime.now(UTC)
    inner.loop.close()


def test_other_threads_keep_the_real_clock_and_chance(life):
    real = time.monotonic()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()  # so that its thread is there
        with life.patches:
            assert real <= pool.submit(time.monotonic).result()
            assert EPOCH < pool.submit(datetime.now, UTC).result() != EPOCH
            assert pool.submit(os.urandom, 8).result() != pool.submit(os.urandom, 8).result()
            pool.submit(time.sleep, 0).result()
            elsewhere = pool.submit(lambda: random.Random().random()).result()
            inside = os.urandom(8)
    other = Life()
    with other.patches:
        assert inside == os.urandom(8)
        assert elsewhere != random.Random().random()
    other.loop.close()


def test_two_threads_cannot_be_in_a_world_at_once(life):
    other = Life()
    with ThreadPoolExecutor(1) as pool, life.patches:
        with pytest.raises(SimulationError, match="one process has one at a time"):
            pool.submit(other.patches.__enter__).result()
        assert EPOCH == datetime.now(UTC)
    other.loop.close()


def test_a_second_event_loop_is_refused(life):
    async def program():
        work = asyncio.sleep(1)
        with pytest.raises(FencedError, match="a second event loop"):
            await asyncio.to_thread(asyncio.run, work)
        work.close()

    life.run(program)


def test_a_module_that_is_imported_between_two_worlds_is_found(life, tmp_path, monkeypatch):
    life.run(draw)
    (tmp_path / "an_app_that_borrows.py").write_text("from time import monotonic, sleep as nap\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "an_app_that_borrows", raising=False)
    app = importlib.import_module("an_app_that_borrows")
    real = vars(app).copy()

    async def program():
        app.nap(2)
        return app.monotonic()

    assert 2.0 == life.run(program)
    assert real == vars(app)
    monkeypatch.delitem(sys.modules, "an_app_that_borrows")


def test_modules_of_installed_packages_and_of_python_keep_their_borrowed_names(life):
    installed = types.ModuleType("installed_and_borrowing")
    installed.__file__ = pydantic.__file__
    installed.clock = time.monotonic
    sys.modules["installed_and_borrowing"] = installed
    try:
        with life.patches:
            assert time.monotonic is not installed.clock
    finally:
        del sys.modules["installed_and_borrowing"]
