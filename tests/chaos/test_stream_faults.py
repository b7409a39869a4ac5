"""What goes wrong with streams: each fault bites exactly as it is named, and heals."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tinyllm.testing.faults import (
    At,
    Bandwidth,
    Crash,
    DnsFailure,
    Fault,
    Jitter,
    LastingFault,
    Latency,
    LostPacket,
    PacketLoss,
    Partition,
    Pause,
    ReadTimeout,
    Refused,
    Reset,
    SlowDrip,
    SlowLink,
)
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.world import World

pytestmark = pytest.mark.chaos

#: One way; so an answer comes 40 ms after the client has begun to connect.
LATENCY_MS = 10
ANSWER = b"0123456789"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer each byte with ten, until the client has no more or is gone."""
    with contextlib.suppress(ConnectionError):
        while await reader.read(1):
            writer.write(ANSWER)
            await writer.drain()
    writer.close()


async def serve() -> None:
    async with await asyncio.start_server(answer, None, 80) as server:
        await server.serve_forever()


async def ask(timeout_s: float = 10_000) -> list[Any]:
    """Connect to `db`, ask, and tell what came when, in milliseconds: the connection, pieces, the error."""
    loop = asyncio.get_running_loop()
    seen: list[Any] = []

    def note(what: Any) -> None:
        seen.append((round(loop.time() * 1_000), what))

    try:
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection("db", 80)
            note("connected")
            writer.write(b"?")
            try:
                missing = len(ANSWER)
                while missing and (data := await reader.read(missing)):
                    note(data)
                    missing -= len(data)
            finally:
                writer.close()
    except OSError as error:
        note((type(error).__name__, error.errno))
    return seen


def plan_of(fault: Fault | LastingFault, point: str = "connection db") -> WorldPlan:
    if isinstance(fault, LastingFault):
        return WorldPlan(lasting=(fault,))
    return WorldPlan(strikes=(At(point=point, number=0, fault=fault),))


def a_world(plan: WorldPlan = WorldPlan()) -> World:  # noqa: B008 - a frozen value
    world = World(plan, latency_ms=LATENCY_MS)
    world.host("db").start(serve)
    return world


def test_without_a_fault_an_answer_takes_two_round_trips():
    with a_world() as world:
        assert [(20, "connected"), (40, ANSWER)] == world.run(ask)


BITES: list[tuple[Fault | LastingFault, str, list[Any]]] = [
    (Latency(delay_ms=500), "connection db", [(520, "connected"), (540, ANSWER)]),
    (Latency(delay_ms=126_000), "connection", [(126_020, "connected"), (126_040, ANSWER)]),
    (Latency(delay_ms=127_000), "connection", [(127_000, ("TimeoutError", errno.ETIMEDOUT))]),
    (LostPacket(), "connection db", [(220, "connected"), (240, ANSWER)]),
    (Refused(), "connection db", [(20, ("ConnectionRefusedError", errno.ECONNREFUSED))]),
    (Reset(), "connection db", [(20, "connected"), (40, ("ConnectionResetError", errno.ECONNRESET))]),
    (
        Reset(after_bytes=3),
        "connection db",
        [(20, "connected"), (40, b"012"), (40, ("ConnectionResetError", errno.ECONNRESET))],
    ),
    (ReadTimeout(), "connection db", [(20, "connected"), (10_000_000, ("TimeoutError", None))]),
    (
        SlowDrip(delay_ms=1_000, size_bytes=4),
        "connection db",
        [(20, "connected"), (1_040, b"0123"), (2_040, b"4567"), (3_040, b"89")],
    ),
    (DnsFailure(), "lookup db", [(0, ("gaierror", socket.EAI_AGAIN))]),
    (Latency(delay_ms=500), "lookup db", [(520, "connected"), (540, ANSWER)]),
    (SlowLink(delay_ms=500), "", [(1_020, "connected"), (2_040, ANSWER)]),
    (Bandwidth(bytes_per_s=10), "", [(20, "connected"), (1_140, ANSWER)]),
    # Repeated after 200 ms, then after twice as long each time; the sixth copy comes through.
    (PacketLoss(percent=99), "", [(25_220, "connected"), (50_440, ANSWER)]),
    (PacketLoss(percent=100), "", [(127_000, ("TimeoutError", errno.ETIMEDOUT))]),
    (Partition(), "", [(127_000, ("TimeoutError", errno.ETIMEDOUT))]),
    (Partition(one_way=True), "", [(127_000, ("TimeoutError", errno.ETIMEDOUT))]),
    (Partition(hosts=("db",), one_way=True), "", [(127_000, ("TimeoutError", errno.ETIMEDOUT))]),
    (Partition(duration_ms=60_000), "", [(60_020, "connected"), (60_040, ANSWER)]),
    (Partition(start_ms=15, duration_ms=60_000), "", [(20, "connected"), (60_035, ANSWER)]),
    # The question is under way, and gets through; the answer does not.
    (Partition(start_ms=25, duration_ms=60_000), "", [(20, "connected"), (60_035, ANSWER)]),
    (Crash(host="db", start_ms=5), "", [(20, ("ConnectionRefusedError", errno.ECONNREFUSED))]),
    (Crash(host="db", start_ms=25), "", [(20, "connected"), (35, ("ConnectionResetError", errno.ECONNRESET))]),
    (Pause(host="db", start_ms=5, duration_ms=1_000), "", [(20, "connected"), (1_015, ANSWER)]),
]


@pytest.mark.parametrize(("fault", "point", "seen"), BITES, ids=repr)
def test_a_fault_bites_as_it_is_named_and_heals(fault, point, seen):
    with a_world(plan_of(fault, point)) as world:
        world.loop.advance(0)

        assert seen == world.run(ask)

        world.heal()
        world.advance(100)
        began_ms = round(world.now_ms)
        assert [(began_ms + 20, "connected"), (began_ms + 40, ANSWER)] == world.run(ask)
        world.loop.run_until_idle()
        assert ([], (), []) == (world.sockets.connections, world.loop.pending_timers(), world.loop.unhandled)


def test_healing_lets_a_silent_connection_speak():
    with a_world(plan_of(ReadTimeout())) as world:
        world.loop.call_later(5, world.heal)

        assert [(20, "connected"), (5_010, ANSWER)] == world.run(ask)


def test_healing_lets_a_drip_flow():
    with a_world(plan_of(SlowDrip(delay_ms=1_000, size_bytes=4))) as world:
        world.loop.call_later(1.5, world.heal)

        assert [(20, "connected"), (1_040, b"0123"), (1_500, b"456789")] == world.run(ask)


def test_a_drip_does_not_delay_the_end():
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"1234")
        writer.close()

    async def serve_talk() -> None:
        await asyncio.start_server(talk, None, 80)

    async def main() -> tuple[bytes, float]:
        reader, writer = await asyncio.open_connection("db", 80)
        data = await reader.read()
        writer.close()
        return data, world.now_ms

    with World(plan_of(SlowDrip(delay_ms=1_000, size_bytes=4))) as world:
        world.host("db").start(serve_talk)

        assert (b"1234", 1_000) == world.run(main)


def test_after_healing_a_dripping_connection_is_as_fast_as_others():
    async def main() -> list[int]:
        reader, writer = await asyncio.open_connection("db", 80)
        times = []
        for _ in range(3):
            writer.write(b"?")
            await reader.readexactly(10)
            times.append(round(world.now_ms))
        writer.close()
        return times

    with a_world(plan_of(SlowDrip(delay_ms=1_000, size_bytes=4))) as world:
        world.loop.call_later(1.5, world.heal)

        assert [1_500, 1_520, 1_540] == world.run(main)


def test_healing_calls_off_a_reset_that_has_not_struck():
    async def read_on() -> bytes:
        reader, writer = await asyncio.open_connection("db", 80)
        data = b""
        for _ in range(3):
            writer.write(b"?")
            data += await reader.read(10)
            await asyncio.sleep(1)
        writer.close()
        return data

    with a_world(plan_of(Reset(after_bytes=15))) as world, pytest.raises(ConnectionResetError):
        world.run(read_on)
    with a_world(plan_of(Reset(after_bytes=15))) as world:
        world.loop.call_later(0.5, world.heal)

        assert ANSWER * 3 == world.run(read_on)


def test_a_reset_breaks_both_ends():
    errors: list[str] = []

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(b"talk")
                await writer.drain()
                await asyncio.sleep(1)
        except ConnectionError as error:
            errors.append(type(error).__name__)
            writer.close()

    async def serve_talk() -> None:
        await asyncio.start_server(talk, None, 80)

    async def main() -> None:
        reader, writer = await asyncio.open_connection("db", 80)
        try:
            await reader.read()
        except ConnectionResetError:
            errors.append("ConnectionResetError of the client")
        writer.close()
        await asyncio.sleep(10)

    with World(plan_of(Reset(after_bytes=6)), latency_ms=LATENCY_MS) as world:
        world.host("db").start(serve_talk)
        world.run(main)
        assert [] == world.sockets.connections

    assert ["ConnectionResetError of the client", "ConnectionResetError"] == errors


# --- partitions -------------------------------------------------------------------------------------------


def test_what_was_held_goes_before_what_is_written_when_the_partition_ends():
    async def main() -> bytes:
        reader, writer = await asyncio.open_connection("db", 80)
        await asyncio.sleep(1)
        writer.write(b"held,")
        # Called before the network hears that the link passes again.
        world.links.changed.insert(0, lambda: writer.write(b"later"))
        await asyncio.sleep(1)
        writer.write_eof()
        data = await reader.read()
        writer.close()
        return data

    async def serve_echo() -> None:
        async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.read())
            writer.close()

        await asyncio.start_server(echo, None, 80)

    with World(plan_of(Partition(start_ms=500, duration_ms=1_000)), latency_ms=LATENCY_MS) as world:
        world.host("db").start(serve_echo)

        assert b"held,later" == world.run(main)


async def talk_into_a_partition(log: list[Any]) -> None:
    """Open a connection, write once each second from 1 s on, and tell when and how it ends."""
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection("db", 80)
    reading = asyncio.ensure_future(reader.read())
    await asyncio.sleep(1)
    writer.write(b"?")
    try:
        log.append(await reading)
    except OSError as error:
        log.append((round(loop.time()), type(error).__name__, error.errno))
    writer.close()


@pytest.mark.parametrize("partition", [
    Partition(start_ms=500),
    Partition(start_ms=500, one_way=True),
    Partition(start_ms=500, hosts=("db",), one_way=True),
], ids=repr)  # fmt: skip
def test_data_that_gets_no_answer_from_the_other_kernel_for_924_s_breaks_the_connection(partition):
    """Also where only the way back is cut: the data arrives, and the sender never knows."""
    log: list[Any] = []
    with a_world(plan_of(partition)) as world:
        world.run(talk_into_a_partition(log))
        world.heal()

    assert [(925, "TimeoutError", errno.ETIMEDOUT)] == log


def test_a_connection_on_which_nobody_writes_survives_any_partition():
    async def main() -> bytes:
        reader, writer = await asyncio.open_connection("db", 80)
        await asyncio.sleep(5_000)
        writer.write(b"?")
        data = await reader.read(100)
        writer.close()
        return data

    with a_world(plan_of(Partition(start_ms=500, duration_ms=4_000_000))) as world:
        assert ANSWER == world.run(main)


@pytest.mark.parametrize("paused", [False, True])
def test_who_was_given_up_hears_of_it_when_it_writes(paused):
    """A half-open connection: the server's end does not know that the client's is gone.

    The client's kernel says so, whatever the process does.
    """
    log: list[Any] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        reading = asyncio.ensure_future(reader.read(100))
        await asyncio.sleep(3_000)
        log.append(reading.done())  # what the client had sent went down with its end
        writer.write(b"are you there?")
        try:
            await reading
        except OSError as error:
            log.append((round(loop.time() * 1_000), type(error).__name__))
        writer.close()

    async def serve_keep() -> None:
        await asyncio.start_server(keep, None, 80)

    async def main() -> None:
        await talk_into_a_partition(log)
        await asyncio.sleep(4_000)

    plan = plan_of(Partition(hosts=("app",), start_ms=500, duration_ms=1_500_000))
    with World(plan, latency_ms=LATENCY_MS) as world:
        world.host("db").start(serve_keep)
        app = world.host("app")
        app.start(main)
        if paused:
            world.advance(900_000)
            app.pause()
        world.loop.run_until_idle(4_000_000_000_000)
        if paused:
            # The process itself does not know yet.
            log.insert(0, (925, "TimeoutError", errno.ETIMEDOUT))
            app.resume()
            world.loop.run_until_idle(1)
            assert (3_000, "TimeoutError", errno.ETIMEDOUT) == log.pop()
        assert [] == world.sockets.connections

    assert [(925, "TimeoutError", errno.ETIMEDOUT), False, (3_000_050, "ConnectionResetError")] == log


def test_what_was_written_before_closing_arrives_after_the_partition():
    got: list[Any] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.read())
        writer.close()

    async def serve_take() -> None:
        await asyncio.start_server(take, None, 80)

    async def main() -> None:
        _, writer = await asyncio.open_connection("db", 80)
        await asyncio.sleep(1)
        writer.write(b"last words")
        writer.close()
        await writer.wait_closed()

    with World(plan_of(Partition(start_ms=500, duration_ms=9_500)), latency_ms=LATENCY_MS) as world:
        world.host("db").start(serve_take)
        world.run(main)
        world.loop.run_until_idle()

        assert [b"last words"] == got
        assert ([], ()) == (world.sockets.connections, world.loop.pending_timers())


# --- links that are slow ----------------------------------------------------------------------------------


def test_a_bandwidth_lets_a_long_answer_arrive_packet_by_packet():
    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(4_000))
        writer.close()

    async def serve_talk() -> None:
        await asyncio.start_server(talk, None, 80)

    async def main() -> list[Any]:
        reader, writer = await asyncio.open_connection("db", 80)
        seen = []
        while data := await reader.read(10_000):
            seen.append((round(asyncio.get_running_loop().time() * 1_000), len(data)))
        writer.close()
        return seen

    with World(plan_of(Bandwidth(bytes_per_s=1_000)), latency_ms=LATENCY_MS) as world:
        world.host("db").start(serve_talk)

        assert [(1_500, 1_460), (2_960, 1_460), (4_040, 1_080)] == world.run(main)


def test_jitter_lets_the_same_answer_come_at_another_time_in_each_world():
    times = set()
    for seed in range(10):
        plan = WorldPlan(lasting=(Jitter(delay_ms=1_000),), seed=seed)
        with a_world(plan) as world:
            times.add(world.run(ask)[-1][0])
        with a_world(plan) as world:
            assert world.run(ask)[-1][0] in times

    assert len(times) > 5
    assert all(40 <= time_ms <= 4_040 for time_ms in times)


def test_two_worlds_of_one_plan_live_the_same_life():
    async def many() -> list[Any]:
        return await asyncio.gather(*(ask(30) for _ in range(8)))

    def life() -> tuple[Any, Any, Any]:
        partition, crash = Partition(start_ms=500, duration_ms=900), Crash(host="db", start_ms=3_000)
        lasting = (Jitter(), PacketLoss(percent=30), partition, crash)
        calls = (At(point="connection db", number=3, fault=Reset(after_bytes=4)),)
        with World(WorldPlan(strikes=calls, lasting=lasting, seed=5), trace=True) as world:
            world.host("db").start(serve)
            seen = world.run(many)
            chronicle = world.finish()
            return seen, chronicle.trace, chronicle.problems

    first = life()

    assert len(first[1]) > 200
    assert first == life()


# --- hosts that die ---------------------------------------------------------------------------------------


def test_nothing_is_called_in_a_process_that_has_died_and_its_ports_are_free_again():
    log: list[str] = []

    class Server(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            log.append("made")
            transport.write(b"welcome")

        def data_received(self, data: bytes) -> None:
            log.append("data")

        def connection_lost(self, exc: BaseException | None) -> None:
            log.append("lost")

    async def serve_log() -> None:
        await asyncio.get_running_loop().create_server(Server, None, 80)

    async def main() -> list[Any]:
        seen: list[Any] = []
        for act in (lambda: None, world.host("db").restart):
            act()
            await asyncio.sleep(1)
            reader, writer = await asyncio.open_connection("db", 80)
            seen.append(await reader.read(100))
            world.loop.call_later(0.005, world.host("db").crash)
            writer.write(b"arrives too late")
            try:
                await reader.read(100)
            except ConnectionResetError:
                seen.append(round(world.now_ms) % 1_000)
            writer.close()
        return seen

    with World(latency_ms=LATENCY_MS) as world:
        world.host("db").start(serve_log)
        seen = world.run(main)
        assert [] == world.sockets.connections

    # Connected at 20, the welcome at 40, the crash at 45; the news of it takes 10 ms. So again, 55 ms later.
    assert [b"welcome", 55, b"welcome", 110] == seen
    assert ["made", "made"] == log


def test_a_client_that_dies_breaks_its_connections():
    log: list[Any] = []

    async def keep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionResetError:
            log.append(round(world.now_ms))
        writer.close()

    async def serve_keep() -> None:
        await asyncio.start_server(keep, None, 80)

    async def client() -> None:
        _, writer = await asyncio.open_connection("db", 80)
        try:
            await asyncio.sleep(3_600)
        finally:
            log.append("no finally runs")
            writer.close()

    with World(latency_ms=LATENCY_MS) as world:
        world.host("db").start(serve_keep)
        world.host("app").start(client)
        world.advance(1_000)
        world.host("app").crash()
        world.loop.run_until_idle(1_000_000_000)

        assert [1_010] == log
        assert [] == world.sockets.connections


def taking_into(got: list[Any]) -> Callable[[], Coroutine[Any, Any, None]]:
    """A server that puts what it reads into *got*, and how the connection broke."""

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                got.append(await reader.read(100))
        except ConnectionResetError:
            got.append("reset")
        writer.close()

    async def serve() -> None:
        await asyncio.start_server(take, None, 80)

    return serve


def test_what_a_partition_held_in_the_kernel_of_a_host_is_lost_when_it_crashes():
    got: list[Any] = []
    serve_take = taking_into(got)

    async def client() -> None:
        _, writer = await asyncio.open_connection("db", 80)
        writer.write(b"arrives")
        await asyncio.sleep(1)
        writer.write(b"is lost")
        await asyncio.sleep(10)

    plan = plan_of(Partition(hosts=("app",), start_ms=500, duration_ms=2_500))
    with World(plan, latency_ms=LATENCY_MS) as world:
        world.host("db").start(serve_take)
        world.host("app").start(client)
        world.advance(2_000)
        world.host("app").crash()
        world.advance(2_000)
        assert [] == world.sockets.connections

    assert [b"arrives", "reset"] == got


def test_a_paused_server_hears_the_last_words_of_a_client_that_has_died_meanwhile():
    got: list[Any] = []
    serve_take = taking_into(got)

    async def client() -> None:
        _, writer = await asyncio.open_connection("db", 80)
        writer.write(b"last words")
        await asyncio.sleep(10)

    with World(latency_ms=LATENCY_MS) as world:
        db, app = world.host("db"), world.host("app")
        db.start(serve_take)
        world.advance(0)
        db.pause()
        app.start(client)
        world.advance(1_000)
        app.crash()
        world.advance(1_000)
        assert [] == got
        db.resume()
        world.advance(0)
        assert [] == world.sockets.connections

    assert [b"last words", "reset"] == got


def test_a_client_that_dies_while_it_connects_waits_for_nothing_any_more():
    async def client() -> None:
        await asyncio.open_connection("db", 80)

    with a_world(plan_of(Partition())) as world:
        world.run(asyncio.sleep(0))
        local = world.host("local")
        local.start(client)
        world.advance(1_000)
        local.crash()

        # The news of the crash waits for the partition to end, as long as data would. Nobody waits for an answer.
        assert [925] == [round(timer.when()) for timer in world.loop.pending_timers()]


def test_a_crash_behind_a_partition_leaves_no_timer():
    """The way back is cut: the server hears of the client, and nobody can hear of the server."""

    async def client() -> None:
        await asyncio.open_connection("db", 80)

    with a_world(plan_of(Partition(hosts=("db",), one_way=True))) as world:
        world.host("app").start(client)
        world.advance(5)
        world.host("app").crash()
        world.advance(100)

        assert ([], ()) == (world.sockets.connections, world.loop.pending_timers())


@pytest.mark.parametrize("crash_ms", [5, 12, 15, 20, 22, 25, 31, 45])
@pytest.mark.parametrize("host", ["db", "app"])
def test_a_crash_at_any_moment_of_a_conversation_leaves_nothing_open(host, crash_ms):
    async def client() -> None:
        await ask()

    with a_world() as world:
        world.host("app").start(client)
        world.advance(crash_ms)
        world.host(host).crash()
        world.loop.run_until_idle()

        assert ([], ()) == (world.sockets.connections, world.loop.pending_timers())
