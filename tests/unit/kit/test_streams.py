"""Streams of the simulated world: as those of asyncio over loopback, but in virtual time."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import socket
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.testing.faults import At, Jitter, Latency, PacketLoss, Partition, SlowDrip, SlowLink
from tinyllm.testing.links import Links
from tinyllm.testing.loop import OWNER, FencedError, SimulatedLoop
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.points import Points
from tinyllm.testing.processes import current_host
from tinyllm.testing.schedule import Hold
from tinyllm.testing.sockets.network import SocketNetwork
from tinyllm.testing.world import World

pytestmark = pytest.mark.unit

Program = Callable[[list[Any]], Coroutine[Any, Any, Any]]
WINDOW_BYTES = 64 * 1024


async def turns(number: int = 20) -> None:
    """Let everything go on that takes no time."""
    for _ in range(number):
        await asyncio.sleep(0)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1_000):
        writer.write(data)
        await writer.drain()
    writer.close()


async def serve_echo(host: str | None = None, port: int = 80) -> None:
    async with await asyncio.start_server(echo, host, port) as server:
        await server.serve_forever()


def set_window(world: World, window_bytes: int) -> None:
    """Give the kernels of *world* another receive window."""
    network = SocketNetwork(world.loop, world.links, world.points, world.hosts, window_bytes=window_bytes)
    world.sockets = world.loop.network = network


def port_of(server: Any) -> int:
    port: int = server.sockets[0].getsockname()[1]
    return port


class Recorder(asyncio.Protocol):
    """Takes down what happens to it."""

    def __init__(self, *, keep_open: bool = False, pause: bool = False) -> None:
        self.log: list[Any] = []
        self.keep_open = keep_open
        self.pause = pause
        self.transport: Any = None
        self.made = asyncio.get_running_loop().create_future()
        self.eof = asyncio.get_running_loop().create_future()
        self.resumed = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.log.append("made")
        self.made.set_result(None)
        if self.pause:
            transport.pause_reading()

    def data_received(self, data: bytes) -> None:
        self.log.append(data)

    def eof_received(self) -> bool:
        self.log.append("eof")
        self.eof.set_result(None)
        return self.keep_open

    def pause_writing(self) -> None:
        self.log.append("pause")

    def resume_writing(self) -> None:
        self.log.append("resume")
        self.resumed.set_result(None)

    def connection_lost(self, exc: BaseException | None) -> None:
        self.log.append(("lost", type(exc).__name__))
        self.lost.set_result(None)


async def a_pair(server_settings: dict[str, bool], client_settings: dict[str, bool]) -> tuple[Any, Any, Any]:
    """A server, the protocol at its end of one connection, and that at the client's end."""
    accepted = asyncio.get_running_loop().create_future()

    def accept() -> Recorder:
        recorder = Recorder(**server_settings)
        accepted.set_result(recorder)
        return recorder

    loop = asyncio.get_running_loop()
    server = await loop.create_server(accept, "127.0.0.1", 0)
    _, client = await loop.create_connection(lambda: Recorder(**client_settings), "127.0.0.1", port_of(server))
    there = await accepted
    await there.made
    return server, there, client


# --- the same program over real loopback and in the world -------------------------------------------------


async def lines(log: list[Any]) -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
    for number in range(3):
        writer.write(b"line %d\n" % number)
        log.append(await reader.readline())
    writer.close()
    await writer.wait_closed()
    log.append(await reader.read())
    server.close()
    await server.wait_closed()


async def half_closed(log: list[Any]) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.read()
        for number in range(3):
            writer.write(b"%d " % number + question)
            await turns()
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(server))
        writer.write(b"question ")
        log.append(writer.can_write_eof())
        writer.write_eof()
        log.append(await reader.read())
        writer.close()
        await writer.wait_closed()


async def events_of_both_ends(log: list[Any]) -> None:
    server, there, here = await a_pair({}, {})
    here.transport.write(b"one")
    await turns()
    there.transport.writelines([b"two", b"three"])
    await turns()
    here.transport.close()
    await asyncio.gather(here.lost, there.lost)
    log += [here.log, there.log, here.transport.is_closing(), here.transport.get_protocol()]
    server.close()


async def closing_sends_what_is_written(log: list[Any]) -> None:
    server, there, here = await a_pair({}, {})
    here.transport.write(b"x" * 3_000_000)
    here.transport.close()
    await asyncio.gather(here.lost, there.lost)
    log += [sum(len(data) for data in there.log if isinstance(data, bytes)), here.log[-1], there.log[-2:]]
    server.close()


async def closing_with_something_unread_breaks_the_connection(log: list[Any]) -> None:
    server, there, here = await a_pair({"pause": True}, {})
    here.transport.write(b"unread")
    await turns()
    there.transport.close()
    await asyncio.gather(here.lost, there.lost)
    log += [here.log, there.log]
    server.close()


async def writing_to_who_has_left_breaks_the_connection(log: list[Any]) -> None:
    server, there, here = await a_pair({"keep_open": True}, {})
    here.transport.close()
    await asyncio.gather(here.lost)
    await there.eof
    for _ in range(2):
        there.transport.write(b"anybody?")
        await turns()
    await there.lost
    there.transport.write(b"more is ignored")
    log += [here.log, there.log]
    server.close()


async def aborted(log: list[Any]) -> None:
    server, there, here = await a_pair({}, {})
    here.transport.abort()
    here.transport.abort()
    await asyncio.gather(here.lost, there.lost)
    log += [here.log, there.log]
    server.close()


async def aborted_with_something_unsent(log: list[Any]) -> None:
    server, there, here = await a_pair({"pause": True}, {})
    here.transport.write(b"x" * 20_000_000)
    log.append(here.transport.get_write_buffer_size() > 0)
    here.transport.abort()
    log.append(here.transport.get_write_buffer_size())
    there.transport.resume_reading()
    await asyncio.gather(here.lost, there.lost)
    log += [here.log, there.log[-2:]]
    server.close()


async def a_writer_that_waits_and_does_not_read_hears_of_a_reset(log: list[Any]) -> None:
    server, there, here = await a_pair({"pause": True}, {"pause": True})
    here.transport.write(b"x" * 20_000_000)
    await turns()
    there.transport.close()
    await asyncio.gather(here.lost, there.lost)
    log += [here.log, there.log]
    server.close()


async def contexts(log: list[Any]) -> None:
    """Each connection has a context of its own, a copy of the server's."""
    said: contextvars.ContextVar[str] = contextvars.ContextVar("said", default="nothing")

    class Saying(Recorder):
        def connection_made(self, transport: Any) -> None:
            log.append(said.get())
            said.set("something")
            super().connection_made(transport)

    loop = asyncio.get_running_loop()
    said.set("by the server")
    server = await loop.create_server(Saying, "127.0.0.1", 0)
    said.set("by the client")
    for _ in range(2):
        _, here = await loop.create_connection(Recorder, "127.0.0.1", port_of(server))
        await turns()
        here.transport.close()
        await here.lost
    server.close()


async def paused_reading(log: list[Any]) -> None:
    server, there, here = await a_pair({"pause": True}, {})
    here.transport.write(b"waits")
    await turns()
    log += [list(there.log), there.transport.is_reading()]
    there.transport.resume_reading()
    there.transport.pause_reading()
    await turns()
    log += [list(there.log), there.transport.is_reading()]
    there.transport.resume_reading()
    there.transport.resume_reading()
    await turns()
    log += [list(there.log), there.transport.is_reading()]
    here.transport.close()
    await there.lost
    server.close()


async def back_pressure(log: list[Any]) -> None:
    server, there, here = await a_pair({"pause": True}, {})
    here.transport.set_write_buffer_limits(high=10_000)
    log.append(here.transport.get_write_buffer_limits())
    here.transport.write(b"x" * 20_000_000)
    log.append(list(here.log))
    there.transport.resume_reading()
    await here.resumed
    log.append(list(here.log))
    here.transport.close()
    await asyncio.gather(here.lost, there.lost)
    log.append(sum(len(data) for data in there.log if isinstance(data, bytes)))
    server.close()


async def misuse(log: list[Any]) -> None:
    server, there, here = await a_pair({}, {})
    for call in (lambda: here.transport.write("text"), lambda: here.transport.write(b"late")):
        try:
            call()
        except (TypeError, RuntimeError) as error:
            log.append(repr(error))
        here.transport.write_eof()
    here.transport.close()
    await asyncio.gather(here.lost, there.lost)
    server.close()


async def failing_protocol(log: list[Any]) -> None:
    class Failing(Recorder):
        def data_received(self, data: bytes) -> None:
            raise LookupError(data)

    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: log.append((context["message"], repr(context["exception"]))))
    server = await loop.create_server(Failing, "127.0.0.1", 0)
    _, here = await loop.create_connection(Recorder, "127.0.0.1", port_of(server))
    here.transport.write(b"bad")
    await here.lost
    log.append(here.log)
    server.close()


async def buffered(log: list[Any]) -> None:
    class Buffered(asyncio.BufferedProtocol):
        def __init__(self) -> None:
            self.buffer = bytearray(4)
            self.lost = asyncio.get_running_loop().create_future()

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            log.append(bytes(self.buffer[:nbytes]))

        def connection_lost(self, exc: BaseException | None) -> None:
            self.lost.set_result(exc)

    server, there, here = await a_pair({"pause": True}, {})
    protocol = Buffered()
    there.transport.set_protocol(protocol)
    here.transport.write(b"ten bytes!")
    await turns()
    there.transport.resume_reading()
    here.transport.close()
    log.append(await protocol.lost)
    server.close()


async def refused(log: list[Any]) -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = port_of(server)
    server.close()
    await server.wait_closed()
    try:
        await asyncio.open_connection("127.0.0.1", port)
    except OSError as error:
        log.append((type(error), error.errno, str(error).replace(str(port), "PORT")))


async def taken_ports(log: list[Any]) -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    port = port_of(server)
    for host in ("127.0.0.1", None):
        try:
            await asyncio.start_server(echo, host, port, family=socket.AF_INET)
        except OSError as error:
            log.append((type(error), error.errno))
    # What was bound before the failure is free again.
    for hosts in (["127.0.0.2", "127.0.0.1"], ["127.0.0.2"]):
        try:
            (await asyncio.start_server(echo, hosts, port)).close()
            log.append("bound")
        except OSError as error:
            log.append((type(error), error.errno))
    server.close()


async def serving(log: list[Any]) -> None:
    server = await asyncio.start_server(echo, "127.0.0.1", 0, start_serving=False)
    port = port_of(server)
    log.append(server.is_serving())
    forever = asyncio.ensure_future(server.serve_forever())
    await turns()
    log.append(server.is_serving())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"there")
    log.append(await reader.read(100))
    writer.close()
    await writer.wait_closed()
    log.append(await reader.read())
    await turns()
    try:
        await server.serve_forever()
    except RuntimeError as error:
        log.append(str(error).endswith("is already being awaited on serve_forever()"))
    forever.cancel()
    await asyncio.wait([forever])
    log.append(forever.cancelled())
    log += [server.is_serving(), server.sockets]
    await server.wait_closed()
    server.close()


async def closing_a_server_with_a_connection(log: list[Any]) -> None:
    server, there, here = await a_pair({}, {})
    server.close()
    closed = asyncio.ensure_future(server.wait_closed())
    await turns()
    log.append(closed.done())
    here.transport.close()
    await asyncio.gather(here.lost, there.lost, closed)
    log.append(server.is_serving())


async def closing_or_aborting_clients(log: list[Any]) -> None:
    for method in ("close_clients", "abort_clients"):
        server, there, here = await a_pair({}, {})
        log.append(hasattr(server, method))
        getattr(server, method, there.transport.close)()
        await asyncio.gather(here.lost, there.lost)
        log += [here.log, there.log]
        server.close()
        await server.wait_closed()


async def what_a_transport_tells(log: list[Any]) -> None:
    server, there, here = await a_pair({}, {})
    port = port_of(server)
    info = here.transport.get_extra_info
    log += [info("peername") == ("127.0.0.1", port), info("sockname") == there.transport.get_extra_info("peername")]
    stand_in = info("socket")
    log += [stand_in.family, stand_in.type, stand_in.getpeername() == info("peername"), info("nothing", 7)]
    stand_in.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    log.append(stand_in.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE))
    here.transport.close()
    await asyncio.gather(here.lost, there.lost)
    server.close()


async def addresses(log: list[Any]) -> None:
    loop = asyncio.get_running_loop()
    log.append(await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_DGRAM))
    log.append(await loop.getaddrinfo("127.0.0.1", "http", type=socket.SOCK_STREAM))
    log.append(await loop.getaddrinfo(None, 0, family=socket.AF_INET, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE))
    log.append(await loop.getnameinfo(("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV))


PROGRAMS: list[Program] = [
    lines,
    half_closed,
    events_of_both_ends,
    closing_sends_what_is_written,
    closing_with_something_unread_breaks_the_connection,
    writing_to_who_has_left_breaks_the_connection,
    aborted,
    aborted_with_something_unsent,
    a_writer_that_waits_and_does_not_read_hears_of_a_reset,
    contexts,
    paused_reading,
    back_pressure,
    misuse,
    failing_protocol,
    buffered,
    refused,
    taken_ports,
    serving,
    closing_a_server_with_a_connection,
    closing_or_aborting_clients,
    what_a_transport_tells,
    addresses,
]


@pytest.mark.skipif(sys.platform != "linux", reason="what a broken connection says is Linux's")
@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_sees_in_the_world_what_it_sees_over_real_loopback(program):
    stock: list[Any] = []
    asyncio.run(program(stock))
    simulated: list[Any] = []
    with World() as world:
        world.run(program(simulated))
        world.loop.run_until_idle()
        left = world.sockets.connections, world.loop.pending_timers(), world.loop.unhandled

    assert stock
    assert stock == simulated
    assert ([], (), []) == left


# --- time, order, and who is called -----------------------------------------------------------------------


def test_opening_takes_a_round_trip_and_an_answer_another_one():
    async def main() -> list[float]:
        loop, times = asyncio.get_running_loop(), []
        reader, writer = await asyncio.open_connection("db", 80)
        times.append(loop.time())
        for _ in range(2):
            writer.write(b"ping")
            await reader.read(100)
            times.append(loop.time())
        writer.close()
        await writer.wait_closed()
        return times

    with World(latency_ms=50) as world:
        world.host("db").start(serve_echo)

        assert [0.1, 0.2, 0.3] == world.run(main)
        world.loop.run_until_idle()
        assert ([], ()) == (world.sockets.connections, world.loop.pending_timers())


def test_within_a_host_nothing_takes_time():
    async def main() -> float:
        server = await asyncio.start_server(echo, "localhost", 0)
        reader, writer = await asyncio.open_connection(None, port_of(server))
        writer.write(b"ping")
        assert b"ping" == await reader.read(100)
        writer.close()
        server.close()
        return asyncio.get_running_loop().time()

    with World(latency_ms=50) as world:
        assert 0.0 == world.run(main)


def test_jitter_never_lets_data_overtake():
    async def main() -> bytes:
        reader, writer = await asyncio.open_connection("db", 80)
        for number in range(200):
            writer.write(b"%d," % number)
            await asyncio.sleep(0.001)
        writer.write_eof()
        data = await reader.read()
        writer.close()
        return data

    plan = WorldPlan(lasting=(Jitter(), PacketLoss(percent=30)))
    with World(plan) as world:
        world.host("db").start(serve_echo)

        assert b"".join(b"%d," % number for number in range(200)) == world.run(main)
        assert world.now_ms > 1_000


def test_two_writes_may_arrive_as_one():
    """TCP keeps no boundaries, and nor does the world."""

    async def main() -> bytes:
        reader, writer = await asyncio.open_connection("db", 80)
        writer.write(b"one")
        writer.write(b"two")
        data = await reader.read(100)
        writer.close()
        return data

    with World() as world:
        world.host("db").start(serve_echo)

        assert b"onetwo" == world.run(main)


def test_a_reader_who_does_not_read_stops_the_writer_at_the_window():
    async def main() -> list[Any]:
        seen: list[Any] = []
        _, writer = await asyncio.open_connection("db", 80)
        transport = writer.transport
        writer.write(b"x" * WINDOW_BYTES)
        seen.append(transport.get_write_buffer_size())
        writer.write(b"y" * 70_000)
        seen.append(transport.get_write_buffer_size())
        try:
            async with asyncio.timeout(5):
                await writer.drain()
        except TimeoutError:
            seen.append("drain waits")
        world.host("db").run(readers[0].transport.resume_reading)
        await writer.drain()
        seen += [transport.get_write_buffer_size(), asyncio.get_running_loop().time()]
        writer.close()
        return seen

    readers: list[Any] = []

    async def serve() -> None:
        def accept() -> Recorder:
            readers.append(Recorder(pause=True))
            return readers[-1]

        await asyncio.get_running_loop().create_server(accept, None, 80)

    with World(latency_ms=10) as world:
        world.host("db").start(serve)

        # The news of the room takes 10 ms, then the window is full again.
        assert [0, 70_000, "drain waits", 70_000 - WINDOW_BYTES, 5.03] == world.run(main)


def test_a_small_window_lets_only_so_much_be_under_way():
    async def main() -> tuple[int, float]:
        reader, writer = await asyncio.open_connection("db", 80)
        writer.write(b"0123456789")
        waiting = writer.transport.get_write_buffer_size()
        data = await reader.readexactly(10)
        assert b"0123456789" == data
        writer.close()
        return waiting, asyncio.get_running_loop().time()

    with World(latency_ms=1_000) as world:
        set_window(world, 4)
        world.host("db").start(serve_echo)

        # Two seconds for the opening, then three pieces: out, and the news of the room back; the last comes back.
        assert (6, 8.0) == world.run(main)


def test_what_a_paused_writer_has_not_handed_to_its_kernel_waits_for_it():
    """And a dead one's is lost: the reader gets what the kernel had, and then hears of the end."""

    async def serve() -> None:
        def accept() -> Recorder:
            readers.append(Recorder(pause=True))
            return readers[-1]

        await asyncio.get_running_loop().create_server(accept, None, 80)

    async def write() -> None:
        _, writer = await asyncio.open_connection("db", 80)
        writers.append(writer)
        writer.write(bytes(WINDOW_BYTES + 1_000))
        await writer.drain()

    def received() -> int:
        return sum(len(data) for data in readers[0].log if isinstance(data, bytes))

    for down in ("pause", "crash"):
        readers: list[Any] = []
        writers: list[Any] = []
        with World() as world:
            app, db = world.host("app"), world.host("db")
            db.start(serve)
            app.start(write)
            world.loop.run_until_idle()
            getattr(app, down)()
            db.run(readers[0].transport.resume_reading)
            world.loop.run_until_idle()
            assert WINDOW_BYTES == received()
            app.resume()
            world.loop.run_until_idle()

            assert WINDOW_BYTES + (1_000 if down == "pause" else 0) == received()
            assert (down == "crash") == (("lost", "ConnectionResetError") in readers[0].log)


def test_callbacks_belong_to_who_listened_and_who_connected():
    hosts: dict[str, list[str]] = {"server": [], "client": []}
    class Where(asyncio.Protocol):
        def __init__(self, side: str) -> None:
            self.side = side
            hosts[side].append(current_host())

        def connection_made(self, transport: Any) -> None:
            hosts[self.side].append(current_host())
            if self.side == "client":
                transport.write(b"x")

        def data_received(self, data: bytes) -> None:
            hosts[self.side].append(current_host())

        def connection_lost(self, exc: BaseException | None) -> None:
            hosts[self.side].append(current_host())

    async def serve() -> None:
        await asyncio.get_running_loop().create_server(lambda: Where("server"), None, 80)

    async def main() -> None:
        transport, _ = await asyncio.get_running_loop().create_connection(lambda: Where("client"), "db", 80)
        await turns()
        transport.close()
        await turns()

    with World() as world:
        world.host("db").start(serve)
        world.run(main, host="app")

    assert {"server": ["db"] * 4, "client": ["app"] * 3} == hosts


def test_a_server_that_can_make_no_protocol_is_reported_and_breaks_the_connection():
    """asyncio would tell of it in debug mode only."""

    def fail() -> asyncio.Protocol:
        raise LookupError("no protocol")

    async def serve() -> None:
        await asyncio.get_running_loop().create_server(fail, None, 80)

    async def main() -> list[Any]:
        _, here = await asyncio.get_running_loop().create_connection(Recorder, "db", 80)
        await here.lost
        return here.log

    with World() as world:
        world.host("db").start(serve)

        assert ["made", ("lost", "ConnectionResetError")] == world.run(main)
        assert ["LookupError('no protocol')"] == [repr(context["exception"]) for context in world.loop.unhandled]


def test_a_paused_host_accepts_in_its_kernel_and_serves_afterwards():
    async def main() -> tuple[float, float]:
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("db", 80)
        connected = loop.time()
        writer.write(b"ping")
        loop.call_later(3, world.host("db").resume)
        await reader.read(100)
        writer.close()
        return connected, loop.time()

    with World() as world:
        world.host("db").start(serve_echo)
        world.loop.run_until_idle()
        world.host("db").pause()

        assert (0.0, 3.0) == world.run(main)


def test_a_server_that_closes_before_it_has_accepted_breaks_the_connection():
    class Closer(asyncio.DatagramProtocol):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            servers[0].close()

    servers: list[Any] = []

    async def serve() -> None:
        servers.append(await asyncio.start_server(echo, None, 80))
        await asyncio.get_running_loop().create_datagram_endpoint(Closer, local_addr=("0.0.0.0", 80))

    async def main() -> str:
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
            asyncio.DatagramProtocol, remote_addr=("db", 80)
        )
        transport.sendto(b"close")
        reader, writer = await asyncio.open_connection("db", 80)
        world.host("db").resume()
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        return "reset"

    with World() as world:
        world.host("db").start(serve)
        world.advance(500)
        world.host("db").pause()

        assert "reset" == world.run(main)


def test_the_network_belongs_to_no_host_and_no_owner():
    async def main() -> list[Any]:
        connecting = asyncio.ensure_future(asyncio.open_connection("db", 80))
        await asyncio.sleep(0.5)
        seen: list[Any] = [len(world.loop.pending_timers("who built it"))]
        world.host("builder").crash()
        with pytest.raises(ConnectionRefusedError):
            await connecting
        return seen

    with World(latency_ms=1_000) as world:
        context = world.host("builder").context()
        context.run(OWNER.set, "who built it")
        context.run(set_window, world, WINDOW_BYTES)
        world.host("db")

        assert [0] == world.run(main)


def test_what_arrives_may_be_held_back_by_the_schedule():
    async def main() -> float:
        spinning = asyncio.ensure_future(spin())
        reader, writer = await asyncio.open_connection("db", 80)
        writer.write(b"ping")
        await reader.read(100)
        writer.close()
        spinning.cancel()
        return asyncio.get_running_loop().time()

    async def spin() -> None:
        for _ in range(100):
            await asyncio.sleep(0.5)

    with World(WorldPlan(schedule=tuple(Hold(0, 11) for _ in range(3)))) as world:
        world.host("db").start(serve_echo)

        assert world.run(main) >= 10
        assert world.loop.applied_holds


@pytest.mark.parametrize("gap", range(4))
@pytest.mark.parametrize("level", [0, 3, 6, 7, 11])
def test_no_schedule_lets_data_arrive_before_the_connection_is_given_out(gap, level):
    """On asyncio a protocol gets its first data after `create_connection` has returned."""
    log: list[str] = []

    class Welcoming(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            transport.write(b"welcome")

    class Client(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            log.append("data")

    async def main() -> None:
        await loop.create_server(Welcoming, None, 80)
        others = [asyncio.ensure_future(turns(100)) for _ in range(2)]
        transport, _ = await loop.create_connection(Client, "127.0.0.1", 80)
        log.append("given out")
        await asyncio.gather(*others)
        await asyncio.sleep(20)
        transport.close()

    loop = SimulatedLoop((Hold(gap, level),))
    loop.network = SocketNetwork(loop, Links(), Points((), time_ns=lambda: loop.time_ns), {})
    loop.run_until_complete(main())
    assert bool(loop.applied_holds) == (gap == 0)  # only the opening comes from outside
    loop.close()

    assert ["given out", "data"] == log


# --- names, addresses and ports ---------------------------------------------------------------------------


def test_hosts_are_reached_by_name_and_by_address_and_tell_theirs():
    async def main() -> list[Any]:
        seen = []
        for name in ("db", "DB.", world.host("db").address):
            _, writer = await asyncio.open_connection(name, 80)
            seen.append((writer.get_extra_info("sockname"), writer.get_extra_info("peername")))
            writer.close()
        return seen

    with World() as world:
        here, there = world.host("local").address, world.host("db").address
        world.host("db").start(serve_echo)

        assert [((here, port), (there, 80)) for port in (49152, 49153, 49154)] == world.run(main)


def test_nobody_else_reaches_what_listens_on_the_loopback_address():
    async def main() -> str:
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("db", 80)
        return "refused"

    async def inside() -> bytes:
        reader, writer = await asyncio.open_connection("localhost", 80)
        writer.write(b"inside")
        data = await reader.read(100)
        writer.close()
        return data

    with World() as world:
        world.host("db").start(serve_echo, "127.0.0.1")

        assert "refused" == world.run(main)
        assert b"inside" == world.run(inside, host="db")


@pytest.mark.parametrize(
    ("host", "port", "settings", "number"),
    [
        ("nobody", 80, {}, socket.EAI_NONAME),
        ("::1", 80, {}, socket.EAI_FAMILY),
        ("db", 80, {"family": socket.AF_INET6}, socket.EAI_FAMILY),
        ("db", "gopher", {}, socket.EAI_SERVICE),
        ("10.9.9.9", 80, {}, errno.EHOSTUNREACH),
        ("db", 80, {"local_addr": ("10.9.9.9", 0)}, errno.EADDRNOTAVAIL),
    ],
)
def test_what_is_not_there_is_a_clear_error(host, port, settings, number):
    async def main() -> None:
        await asyncio.open_connection(host, port, **settings)

    with World() as world:
        world.host("db").start(serve_echo)
        with pytest.raises(OSError, match=r".") as caught:
            world.run(main)

    assert number == caught.value.errno


def test_a_program_that_belongs_to_no_host_has_an_address_too():
    async def main() -> bytes:
        server = await asyncio.start_server(echo, None, 80)
        transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, remote_addr=("10.1.1.1", 80))
        own_address = transport.get_extra_info("sockname")[0]
        reader, writer = await asyncio.open_connection(own_address, 80)
        writer.write(b"to myself")
        data = await reader.read(100)
        writer.close()
        server.close()
        return data

    loop = SimulatedLoop()
    loop.network = SocketNetwork(loop, Links(), Points((), time_ns=lambda: loop.time_ns), {})

    assert b"to myself" == loop.run_until_complete(main())
    loop.close()


def test_a_server_cannot_listen_at_the_address_of_another_host():
    async def main() -> None:
        await asyncio.start_server(echo, "db", 80)

    with World() as world:
        world.host("db")
        with pytest.raises(OSError, match="error while attempting to bind on address") as caught:
            world.run(main)

    assert errno.EADDRNOTAVAIL == caught.value.errno


def test_free_ports_are_given_out_in_order_and_each_host_has_its_own():
    async def main() -> list[int]:
        taken = await asyncio.start_server(echo, None, 49_153)
        servers = [await asyncio.start_server(echo, None, 0) for _ in range(3)]
        ports = [port_of(server) for server in servers]
        for server in (taken, *servers):
            server.close()
        return ports

    with World() as world:
        assert [49152, 49154, 49155] == world.run(main)
        assert [49152, 49154, 49155] == world.run(main, host="other")


def test_a_local_address_is_the_one_that_the_server_sees():
    async def main() -> Any:
        _, writer = await asyncio.open_connection("db", 80, local_addr=("0.0.0.0", 1_234))
        name = writer.get_extra_info("sockname")
        writer.close()
        return name[1]

    with World() as world:
        world.host("db").start(serve_echo)

        assert 1_234 == world.run(main)


# --- what a world does not have ---------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["create_connection", "create_server", "create_datagram_endpoint", "getaddrinfo"])
def test_a_loop_without_a_network_refuses_and_says_what_to_use(call):
    loop = SimulatedLoop()
    with pytest.raises(FencedError, match=rf"loop\.{call} leaves the simulated world; use the simulated network"):
        getattr(loop, call)(None, None)
    loop.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"ssl": True}, r"TLS leaves .*use http://"), ({"sock": object()}, r"a socket of one's own leaves .*host and a")],
)
def test_tls_and_sockets_of_ones_own_are_refused_with_what_to_use(settings, words):
    async def connect() -> None:
        await asyncio.open_connection("db", 80, **settings)

    async def listen() -> None:
        await asyncio.start_server(echo, "db", 80, **settings)

    with World() as world:
        for main in (connect, listen):
            with pytest.raises(FencedError, match=words):
                world.run(main)


# --- looking at connections -------------------------------------------------------------------------------


def test_open_connections_tell_who_opened_them_and_go_when_both_ends_have_closed():
    async def main() -> list[Any]:
        OWNER.set("run 1")
        _, writer = await asyncio.open_connection("db", 80)
        seen: list[Any] = [[(one.number, one.source, one.target, one.owner) for one in world.sockets.connections]]
        writer.close()
        await turns()
        seen.append(world.sockets.connections)
        return seen

    with World() as world:
        world.host("db").start(serve_echo)

        assert [[(1, "local", "db", "run 1")], []] == world.run(main)


@pytest.mark.parametrize(
    "plan",
    [
        WorldPlan(lasting=(Partition(),)),
        WorldPlan(strikes=(At(point="lookup", number=0, fault=Latency(delay_ms=5_000)),)),
        WorldPlan(strikes=(At(point="connection", number=0, fault=Latency(delay_ms=5_000)),)),
    ],
)
def test_a_connect_that_is_cancelled_leaves_nothing(plan):
    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(1):
                await asyncio.open_connection("db", 80)

    with World(plan) as world:
        world.host("db").start(serve_echo)
        world.run(main)

        assert ([], ()) == (world.sockets.connections, world.loop.pending_timers())


@pytest.mark.parametrize("turn", range(12))
def test_a_connect_that_is_cancelled_at_any_moment_leaves_nothing(turn):
    """Also when the server has heard of it already."""

    async def main() -> None:
        connecting = asyncio.ensure_future(asyncio.get_running_loop().create_connection(asyncio.Protocol, "db", 80))
        await turns(turn)
        connecting.cancel()
        await asyncio.wait([connecting])
        if not connecting.cancelled():
            connecting.result()[0].close()
        await turns()

    with World() as world:
        world.host("db").start(serve_echo)
        world.run(main)

        assert ([], (), []) == (world.sockets.connections, world.loop.pending_timers(), world.loop.unhandled)
        assert ["serve_echo#1"] == [task.get_name() for task in world.loop.pending_tasks()]


def test_a_connect_that_is_cancelled_after_the_server_has_accepted_closes_the_connection():
    """A schedule holds back the news that the connection is open, while the server already waits for data."""

    async def main() -> list[str]:
        await asyncio.start_server(echo, "127.0.0.1", 80)
        others = asyncio.ensure_future(turns(100))
        connecting = asyncio.ensure_future(loop.create_connection(asyncio.Protocol, "127.0.0.1", 80))
        await turns(20)
        seen = [task.get_name() for task in loop.pending_tasks()]
        connecting.cancel()
        await asyncio.wait([connecting, others])
        return seen

    loop = SimulatedLoop((Hold(0, 6),))
    loop.network = SocketNetwork(loop, Links(), Points((), time_ns=lambda: loop.time_ns), {})
    seen = loop.run_until_complete(main())
    assert ["turns#2", "SocketNetwork.create_connection#3", "echo#4"] == seen[1:]
    loop.run_until_idle()

    assert ((), []) == (loop.pending_tasks(), loop.network.connections)
    loop.close()


def test_a_client_that_can_make_no_protocol_closes_the_connection():
    def fail() -> asyncio.Protocol:
        raise LookupError("no protocol")

    async def main() -> None:
        with pytest.raises(LookupError, match="no protocol"):
            await asyncio.get_running_loop().create_connection(fail, "db", 80)
        await turns()

    with World() as world:
        world.host("db").start(serve_echo)
        world.run(main)

        assert [] == world.sockets.connections


# --- with libraries ---------------------------------------------------------------------------------------


async def serve_http() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        path = request.split()[1]
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(path))
        await asyncio.sleep(1)
        writer.write(path)
        writer.close()

    async with await asyncio.start_server(answer, None, 8_080) as server:
        await server.serve_forever()


def test_httpx_with_its_own_transport_reaches_a_server_of_the_world():
    async def main() -> list[Any]:
        async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport()) as client:
            seen: list[Any] = [(await client.get(f"http://web:8080/{number}")).text for number in range(2)]
            for url in ("http://web:81/", "http://nobody/", "http://web:8080/"):
                with pytest.raises(httpx.TransportError) as caught:
                    await client.get(url, timeout=0.5)
                seen.append(caught.type)
        return seen

    # Patched, httpx would go to the hosts that answer HTTP themselves.
    with World(latency_ms=10, patched=False) as world:
        world.host("web").start(serve_http)
        expected = ["/0", "/1", httpx.ConnectError, httpx.ConnectError, httpx.ReadTimeout]

        assert expected == world.run(main)
        world.loop.run_until_idle()
        assert ([], []) == (world.sockets.connections, world.loop.unhandled)


def test_anyio_connects_through_the_world():
    async def main() -> bytes:
        async with await anyio.connect_tcp("db", 80) as stream:
            await stream.send(b"from anyio")
            data = await stream.receive()
            await stream.send_eof()
            with pytest.raises(anyio.EndOfStream):
                await stream.receive()
        return data

    with World() as world:
        world.host("db").start(serve_echo)

        assert b"from anyio" == world.run(main)


# --- whatever happens, the bytes arrive -------------------------------------------------------------------


@st.composite
def storms(draw: st.DrawFn) -> WorldPlan:
    """Faults that delay and end. Shrinks to none."""
    moments: Any = st.builds(dict, start_ms=st.integers(0, 3_000), duration_ms=st.integers(0, 5_000))
    kinds = [
        lambda when: Partition(hosts=("local",), **when),
        lambda when: Partition(hosts=("local",), one_way=True, **when),
        lambda when: Partition(hosts=("db",), one_way=True, **when),
        lambda when: SlowLink(delay_ms=700, **when),
        lambda when: Jitter(delay_ms=900, **when),
        lambda when: PacketLoss(percent=40, **when),
    ]
    lasting = draw(st.lists(st.builds(lambda kind, when: kind(when), st.sampled_from(kinds), moments), max_size=4))
    faults = st.sampled_from([None, SlowDrip(delay_ms=20, size_bytes=97), Latency(delay_ms=1_500)])
    fault = draw(faults)
    calls = () if fault is None else (At(point="connection db", number=0, fault=fault),)
    return WorldPlan(strikes=calls, lasting=tuple(lasting), seed=draw(st.integers(0, 9)))


sizes = st.one_of(st.integers(0, 300), st.integers(0, 20_000))


@settings(max_examples=150)
@given(
    plan=storms(),
    writes=st.lists(st.tuples(sizes, st.integers(0, 900)), max_size=6),
    reads=st.lists(st.tuples(st.integers(1, 7_000), st.integers(0, 900)), max_size=6),
    latency_ms=st.sampled_from([0, 3]),
)
def test_the_bytes_that_arrive_are_the_bytes_that_were_sent(plan, writes, reads, latency_ms):
    """Both ways at once: what the client sends comes back, though either reads when it likes, in small windows."""
    sent = b"".join(bytes([number % 251]) * size for number, (size, _) in enumerate(writes))

    async def slow_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for size, delay_ms in reads:
            writer.write(await reader.read(size))
            await asyncio.sleep(delay_ms / 1_000)
        writer.write(await reader.read())
        writer.close()

    async def serve() -> None:
        async with await asyncio.start_server(slow_echo, None, 80) as server:
            await server.serve_forever()

    async def main() -> bytes:
        reader, writer = await asyncio.open_connection("db", 80)
        reading = asyncio.ensure_future(reader.read())
        for number, (size, delay_ms) in enumerate(writes):
            writer.write(bytes([number % 251]) * size)
            await writer.drain()
            await asyncio.sleep(delay_ms / 1_000)
        writer.write_eof()
        data = await reading
        writer.close()
        await writer.wait_closed()
        return data

    with World(plan, latency_ms=latency_ms) as world:
        set_window(world, 4_000)
        world.host("db").start(serve)

        assert sent == world.run(main)
        left = world.finish()
        assert () == left.problems
        assert [] == world.sockets.connections
        assert () == world.loop.pending_timers()
