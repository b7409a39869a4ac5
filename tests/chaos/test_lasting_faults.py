"""Faults that last: each bites a plain program as it is named, ends at its time, and heals."""

from __future__ import annotations

import asyncio
import errno
from itertools import pairwise

import httpx
import pytest

from tinyllm.testing.faults import (
    FAULTS,
    Bandwidth,
    ClockDrift,
    ClockJump,
    CpuSaturation,
    Crash,
    DiskFull,
    HostDown,
    Jitter,
    Lasting,
    LostWrites,
    MemoryPressure,
    PacketLoss,
    Partition,
    Pause,
    QueueFull,
    ReorderedWrites,
    Restart,
    SlowLink,
    SlowSync,
    TornWrite,
)
from tinyllm.testing.http.values import Answer, Chunk, text_answer
from tinyllm.testing.memory import OutOfMemoryError
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.world import World

pytestmark = pytest.mark.chaos

LASTING = [kind for kind in FAULTS.values() if issubclass(kind, Lasting)]
TESTED: set[type] = set()


def about(kind):
    """Notes which fault a test is about; the last test holds the list against the table."""
    TESTED.add(kind)
    return lambda test: test


def world_with(*lasting, **how):
    return World(WorldPlan(lasting=lasting), **how)


async def echo(reader, writer):
    while data := await reader.read(100_000):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve():
    server = await asyncio.start_server(echo, "db", 7)
    await server.serve_forever()


async def ask(text=b"hello", timeout_s=30):
    """What the echo server of `db` answers, and in how many milliseconds; raises what a plain client meets."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with asyncio.timeout(timeout_s):
        reader, writer = await asyncio.open_connection("db", 7)
        try:
            writer.write(text)
            answer = await reader.readexactly(len(text))
        finally:
            writer.close()
    assert text == answer
    return round((loop.time() - began) * 1e3, 3)


def with_server(world):
    world.host("db").start(serve)
    world.advance(0)
    return world


def ms_of(world, **how):
    return world.run(ask(**how))


# --- links -----------------------------------------------------------------------------------------------


@about(SlowLink)
def test_a_slow_link_delays_whatever_is_sent_until_it_ends():
    with with_server(world_with(SlowLink(hosts=("db",), delay_ms=100, duration_ms=1_000), latency_ms=1)) as world:
        assert 4 < ms_of(world)
        world.advance(2_000)
        assert 4 == ms_of(world)


@about(Jitter)
def test_jitter_delays_by_the_seed_and_no_longer_than_it_says():
    def times(seed):
        plan = WorldPlan(lasting=(Jitter(delay_ms=100, duration_ms=10_000),), seed=seed)
        with with_server(World(plan, latency_ms=1)) as world:
            shaken = [ms_of(world) for _ in range(5)]
            world.advance(10_000)
            return shaken, ms_of(world)

    shaken, calm = times(0)
    assert 5 == len(set(shaken))
    assert all(4 <= ms <= 404 for ms in shaken)
    assert 4 == calm
    assert (shaken, calm) == times(0)
    assert shaken != times(1)[0]


@about(Bandwidth)
def test_bandwidth_makes_much_take_long_until_it_ends():
    with with_server(world_with(Bandwidth(bytes_per_s=10_000, duration_ms=10_000))) as world:
        # 20,000 bytes each way; the answer begins when the first of them have arrived.
        assert 2_000 <= ms_of(world, text=b"x" * 20_000) <= 4_100
        world.advance(10_000)
        assert 0 == ms_of(world, text=b"x" * 20_000)


@about(PacketLoss)
def test_lost_packets_of_a_connection_come_late_and_all_of_them_come():
    with with_server(world_with(PacketLoss(percent=60))) as world:
        times = [ms_of(world, timeout_s=600) for _ in range(10)]
        assert any(ms >= 200 for ms in times)
        world.heal()
        assert 0 == ms_of(world)


@about(Partition)
@pytest.mark.parametrize("one_way", [False, True])
def test_a_partition_lets_nothing_through_until_it_ends(one_way):
    with with_server(world_with(Partition(hosts=("db",), one_way=one_way, duration_ms=60_000))) as world:
        with pytest.raises(TimeoutError):
            ms_of(world)
        assert 30_000 == world.now_ms
        assert 30_000 <= ms_of(world, timeout_s=120)
        assert 0 == ms_of(world)


def test_a_partition_in_one_direction_lets_the_other_pass():
    heard = []

    async def listens(reader, writer):
        heard.append((await reader.readexactly(2), asyncio.get_running_loop().time()))
        writer.write(b"ok")
        writer.close()

    async def serves():
        server = await asyncio.start_server(listens, "db", 7)
        await server.serve_forever()

    async def tell():
        reader, writer = await asyncio.open_connection("db", 7)
        await asyncio.sleep(2)
        writer.write(b"hi")
        answer = await reader.readexactly(2)
        writer.close()
        return answer, asyncio.get_running_loop().time()

    with world_with(Partition(hosts=("db",), one_way=True, start_ms=1_000, duration_ms=9_000)) as world:
        world.host("db").start(serves)
        world.advance(0)
        answer, at_s = world.run(tell)
    assert (b"ok", [(b"hi", 2.0)]) == (answer, heard)
    assert at_s >= 10


# --- processes -------------------------------------------------------------------------------------------


@about(Crash)
def test_a_crashed_host_refuses_until_it_starts_again_with_its_programs():
    with with_server(world_with(Crash(host="db", start_ms=10, duration_ms=1_000))) as world:
        assert 0 == ms_of(world)
        world.advance(20)
        with pytest.raises(ConnectionRefusedError):
            ms_of(world)
        world.advance(1_000)
        assert 0 == ms_of(world)


@about(HostDown)
def test_a_host_that_goes_down_breaks_what_is_open_until_healed():
    async def waits():
        reader, _ = await asyncio.open_connection("db", 7)
        await reader.read()

    with with_server(world_with(HostDown(host="db", start_ms=10))) as world:
        with pytest.raises(ConnectionResetError):
            world.run(waits)
        with pytest.raises(ConnectionRefusedError):
            ms_of(world)
        world.heal()
        assert 0 == ms_of(world)


@about(Restart)
def test_a_restart_breaks_what_is_open_and_the_host_is_back_at_once():
    with with_server(world_with(Restart(host="db", start_ms=10, duration_ms=5))) as world:
        first = world.host("db").process
        world.advance(20)
        assert 0 == ms_of(world)
        assert (1, 2) == (first.number, world.host("db").process.number)


@about(Pause)
def test_a_paused_host_answers_late_and_loses_nothing():
    with with_server(world_with(Pause(host="db", start_ms=1, duration_ms=5_000))) as world:
        world.advance(1)
        assert 5_000 == ms_of(world)
        assert 0 == ms_of(world)


# --- disks -----------------------------------------------------------------------------------------------


def journal(world):
    """A program that appends and syncs its first line, then appends two more, each of two sectors."""

    async def program():
        disk = world.host("db").disk
        if disk.exists("/log"):
            return
        with disk.open("/log", "ab") as log:
            log.write(b"first")
            log.fsync()
            for letter in (b"a", b"b"):
                log.write(letter * 1_024)
                log.flush()
            await asyncio.Event().wait()

    world.host("db").start(program)
    return world


def left_by(fault):
    with journal(world_with(fault)) as world:
        world.advance(100)
        return world.host("db").disk.read_bytes("/log")


def test_a_crash_loses_all_that_was_not_synced():
    assert b"first" == left_by(Crash(host="db", start_ms=10, duration_ms=10))


@about(LostWrites)
def test_lost_writes_keep_the_first_of_them_in_order():
    wrote = [b"first", b"first" + b"a" * 1_024, b"first" + b"a" * 1_024 + b"b" * 1_024]
    left = [left_by(LostWrites(host="db", start_ms=10, duration_ms=10, choice=choice)) for choice in range(12)]
    assert set(left) == set(wrote)
    assert wrote[0] == left[0]


@about(TornWrite)
def test_a_torn_write_leaves_some_of_its_sectors():
    left = {left_by(TornWrite(host="db", start_ms=10, duration_ms=10, choice=choice)) for choice in range(24)}
    whole = {b"first", b"first" + b"a" * 1_024, b"first" + b"a" * 1_024 + b"b" * 1_024}
    assert left - whole


@about(ReorderedWrites)
def test_reordered_writes_can_leave_a_later_one_without_an_earlier_one():
    left = [left_by(ReorderedWrites(host="db", start_ms=10, duration_ms=10, choice=choice)) for choice in range(60)]
    assert any(1_024 == content.count(b"b") > content.count(b"a") for content in left)


@about(DiskFull)
def test_a_full_disk_takes_nothing_more_until_it_ends():
    with world_with(DiskFull(free_bytes=3, duration_ms=1_000)) as world:
        disk = world.host("local").disk
        world.advance(1)
        with pytest.raises(OSError, match="No space left") as full:
            disk.write_bytes("/a", b"12345")
        assert errno.ENOSPC == full.value.errno
        world.advance(1_000)
        disk.write_bytes("/a", b"12345")
        assert b"12345" == disk.read_bytes("/a")


@about(SlowSync)
def test_a_slow_sync_blocks_its_thread_until_it_ends():
    async def main(world):
        loop = asyncio.get_running_loop()
        disk = world.host("local").disk

        def save():
            with disk.open("/a", "wb") as file:
                file.write(b"1")
                file.fsync()

        await asyncio.to_thread(save)
        slow = loop.time()
        await asyncio.sleep(10)
        began = loop.time()
        await asyncio.to_thread(save)
        return slow, loop.time() - began

    with world_with(SlowSync(delay_ms=700, duration_ms=5_000)) as world:
        assert (0.7, 0.0) == world.run(main, world)


# --- clocks ----------------------------------------------------------------------------------------------


def clock_story(world):
    """The wall clock's error in seconds, and the monotonic clock, after 5, 15 and 25 seconds."""
    import time

    async def main():
        first = time.time() - world.loop.time()
        story: list = []
        for _ in range(3):
            await asyncio.sleep(10 if story else 5)
            story.append((round(time.time() - world.loop.time() - first, 6), round(time.monotonic(), 6)))
        monotonic = [at for _, at in story]
        assert [10.0, 10.0] == [round(b - a, 6) for a, b in pairwise(monotonic)]
        return [error for error, _ in story]

    return world.run(main)


@about(ClockJump)
@pytest.mark.parametrize("jump_ms", [3_600_000, -3_600_000])
def test_a_wall_clock_that_jumps_is_right_again_when_it_ends_and_monotonic_time_never_goes_back(jump_ms):
    with world_with(ClockJump(jump_ms=jump_ms, start_ms=10_000, duration_ms=10_000)) as world:
        assert [0, jump_ms / 1e3, 0] == clock_story(world)


@about(ClockDrift)
def test_a_wall_clock_that_drifts_is_right_again_when_it_ends():
    with world_with(ClockDrift(ppm=100_000, start_ms=10_000, duration_ms=10_000)) as world:
        assert [0, 0.5, 0] == clock_story(world)


def test_clocks_are_each_hosts_own():
    with world_with(ClockJump(host="db", jump_ms=60_000)) as world:
        world.advance(1)
        assert 60 == round(world.host("db").clock.time() - world.host("local").clock.time())


# --- resources -------------------------------------------------------------------------------------------


@about(MemoryPressure)
def test_memory_pressure_refuses_what_goes_beyond_the_budget_until_it_ends():
    with world_with(MemoryPressure(budget_bytes=100, duration_ms=1_000)) as world:
        memory = world.host("local").memory
        world.advance(1)
        with memory.reserve(100), pytest.raises(OutOfMemoryError):
            memory.allocate(1)
        world.advance(1_000)
        memory.allocate(1_000_000)


def test_under_memory_pressure_receive_windows_shrink_until_it_ends():
    async def reads_nothing(reader, writer):
        await asyncio.Event().wait()

    async def serves():
        server = await asyncio.start_server(reads_nothing, "db", 7, limit=1)
        await server.serve_forever()

    async def unsent(world):
        _, writer = await asyncio.open_connection("db", 7)
        writer.write(b"x" * 10_000)
        await asyncio.sleep(1)
        size_bytes = writer.transport.get_write_buffer_size()
        writer.transport.abort()
        return size_bytes

    with world_with(MemoryPressure(host="db", budget_bytes=1_000, start_ms=1, duration_ms=10_000)) as world:
        world.host("db").start(serves)
        world.advance(1)
        assert 8_000 <= world.run(unsent, world) <= 9_000
        world.advance(10_000)
        assert 0 == world.run(unsent, world)


@about(CpuSaturation)
def test_on_a_saturated_host_steps_take_time_until_it_ends():
    async def main():
        loop = asyncio.get_running_loop()
        for _ in range(10):
            await asyncio.sleep(0)
        return loop.time()

    with world_with(CpuSaturation(step_us=1_000, duration_ms=500)) as world:
        world.advance(1)
        assert 0.011 == round(world.run(main), 6)
        world.advance(1_000)
        before = world.loop.time()
        assert before == world.run(main)


def paced(request):
    return Answer(chunks=(Chunk(b"a"), Chunk(b"b", 1_000_000)))


async def answered():
    return text_answer("ok")


async def http_ms(url="http://api/"):
    loop = asyncio.get_running_loop()
    began = loop.time()
    async with httpx.AsyncClient(timeout=None) as client:
        await client.get(url)
    return round((loop.time() - began) * 1e3, 3)


@pytest.mark.parametrize(
    ("server", "slow_ms", "healthy_ms"),
    [(lambda request: text_answer("ok"), 5, 0), (paced, 11, 1), (lambda request: answered(), 5, 0)],
    ids=["a function", "pieces", "a coroutine"],
)
def test_a_saturated_host_serves_http_slowly_until_it_ends(server, slow_ms, healthy_ms):
    with world_with(CpuSaturation(host="api", step_us=5_000, duration_ms=500)) as world:
        world.host("api", server)
        assert slow_ms == world.run(http_ms)
        world.advance(1_000)
        assert healthy_ms == world.run(http_ms)


def test_a_saturated_host_serves_one_request_after_another():
    async def main():
        return await asyncio.gather(*(http_ms() for _ in range(3)))

    with world_with(CpuSaturation(host="api", step_us=5_000)) as world:
        world.host("api", lambda request: text_answer("ok"))
        assert [5, 10, 15] == world.run(main)


def test_under_memory_pressure_a_client_takes_less_of_an_answer_that_it_does_not_read():
    sent: list[None] = []

    async def pieces():
        for _ in range(10):
            sent.append(None)
            yield Chunk(bytes(1_000))

    async def main():
        async with httpx.AsyncClient() as client, client.stream("GET", "http://api/"):
            await asyncio.sleep(1)
            return len(sent)

    with world_with(MemoryPressure(budget_bytes=3_000, duration_ms=500)) as world:
        world.host("api", lambda request: Answer(chunks=pieces()))
        assert 4 == world.run(main)
        sent.clear()
        assert 10 == world.run(main)


@about(QueueFull)
def test_full_queues_take_nothing_until_it_ends():
    async def main():
        queue: asyncio.Queue = asyncio.Queue(2)
        with pytest.raises(asyncio.QueueFull):
            queue.put_nowait(1)
        await queue.put(2)
        late = asyncio.get_running_loop().time()
        queue.put_nowait(3)
        return late

    with world_with(QueueFull(duration_ms=3_000)) as world:
        world.advance(1)
        assert 3 == world.run(main)


@pytest.mark.parametrize("fault", [Partition(), HostDown(host="db"), Pause(host="db"), CpuSaturation(step_us=7_000)])
def test_what_lasts_from_the_start_is_there_before_the_first_step(fault):
    async def main():
        return await asyncio.wait_for(asyncio.open_connection("db", 7), 0.005)

    with world_with(fault) as world:
        world.host("db").start(serve)
        with pytest.raises((TimeoutError, ConnectionError)):
            world.run(main)


# --- all of them -----------------------------------------------------------------------------------------


def test_of_two_faults_that_set_the_same_thing_the_later_decides_and_then_the_earlier_does_again():
    jumps = (ClockJump(jump_ms=10_000), ClockJump(jump_ms=60_000, start_ms=5_000, duration_ms=5_000))
    with world_with(*jumps) as world:
        host, errors = world.host("local"), []
        for _ in range(3):
            world.advance(4_000)
            errors.append(round(host.clock.wrong_by_ns() / 1e9))
        world.heal()
    assert [10, 70, 10] == errors
    assert 0 == host.clock.wrong_by_ns()


def test_a_host_that_two_faults_hold_down_starts_when_both_have_ended():
    downs = (Crash(host="db", duration_ms=10), HostDown(host="db", start_ms=5, duration_ms=10))
    with with_server(world_with(*downs)) as world:
        world.advance(12)
        assert world.host("db").process.dead
        world.advance(5)
        assert world.host("db").up
        assert 2 == world.host("db").process.number


@pytest.mark.parametrize("kind", LASTING, ids=lambda kind: kind.name)
def test_whatever_lasts_until_healed_ends_then_and_what_had_not_begun_never_does(kind):
    late = {"hosts": ("db",)} if kind is Partition else {"host": "db"} if hasattr(kind, "host") else {}
    with with_server(world_with(kind(**late), kind(**late, start_ms=10_000))) as world:
        world.advance(5)
        world.heal()
        assert 0 == ms_of(world)
        assert [] == world.links.faults
        assert world.host("db").up
        world.advance(20_000)
        assert 0 == ms_of(world)
        assert () == world.loop.pending_timers()


def test_every_fault_that_lasts_has_its_test_here():
    assert set(LASTING) == TESTED
