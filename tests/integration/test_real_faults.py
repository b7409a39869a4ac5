"""Real faults: what a plain client meets through the proxy, and that the same request works once it is healed.

Time is never bounded from above: a fault that delays has a lower bound, or would last for years if healing
did not end it. `LIMIT_S` only keeps a test that hangs from hanging for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest

from tests.support.model_server import ModelServer, model_server
from tinyllm.testing.real.pipe import HELD_BYTES_MAX
from tinyllm.testing.real.proxy import FaultyProxy
from tinyllm.testing.real.toxics import Bandwidth, Cut, Jitter, Latency, Partition, Reset, Toxic, ToxicError

pytestmark = pytest.mark.integration

LIMIT_S = 120
A_DAY_MS = 24 * 3_600_000
#: How long a client waits that is to give up.
SHORT_S = 0.2

Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def named(value: object) -> str:
    return value.__name__ if isinstance(value, type) else repr(value)


def run(main: Coroutine[Any, Any, Any]) -> Any:
    async def limited() -> Any:
        async with asyncio.timeout(LIMIT_S):
            return await main

    return asyncio.run(limited())


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
        await writer.drain()


@contextlib.asynccontextmanager
async def through_proxy(serve: Serve = echo, *, seed: int = 0) -> AsyncIterator[FaultyProxy]:
    """A proxy before a server that closes each connection when *serve* returns."""

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A client that resets its connection is what these tests are about.
        with contextlib.suppress(ConnectionError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(served, "127.0.0.1", 0)
    async with server, FaultyProxy(*server.sockets[0].getsockname(), seed=seed) as proxy:
        yield proxy


@contextlib.asynccontextmanager
async def connected(proxy: FaultyProxy) -> AsyncIterator[Stream]:
    reader, writer = await asyncio.open_connection(proxy.host, proxy.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        # Closing waits for the connection to be gone, however it goes.
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def echoed(stream: Stream, data: bytes) -> bytes:
    """What comes back for *data*; all of it, or an error."""
    stream[1].write(data)
    return await stream[0].readexactly(len(data))


async def works(proxy: FaultyProxy) -> bool:
    """Whether a new connection echoes, however long that takes."""
    async with connected(proxy) as stream:
        return await echoed(stream, b"hello") == b"hello"


async def received(sock: socket.socket, into: list[bytes]) -> None:
    """Read *sock* to its end, piece by piece."""
    while data := await asyncio.get_running_loop().sock_recv(sock, 65_536):
        into.append(data)


class Elapsed:
    """Seconds of the monotonic clock since it was made."""

    def __init__(self) -> None:
        self._since_ns = time.monotonic_ns()

    @property
    def s(self) -> float:
        return (time.monotonic_ns() - self._since_ns) / 1e9


# --- no fault --------------------------------------------------------------------------------------------


def test_without_toxics_every_byte_passes_and_so_does_the_end_of_one_direction():
    data = random.Random(1).randbytes(1 << 20)

    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as (reader, writer):
            answer = asyncio.create_task(reader.read())
            writer.write(data)
            # The server answers the rest after this end, and only then closes.
            writer.write_eof()
            assert data == await answer

    run(main())


def test_a_reset_of_the_client_reaches_the_server_as_a_reset():
    async def main() -> None:
        seen: asyncio.Future[BaseException | bytes] = asyncio.get_running_loop().create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"x")
            try:
                seen.set_result(await reader.read())
            except ConnectionError as error:
                seen.set_result(error)

        async with through_proxy(serve) as proxy, connected(proxy) as (reader, writer):
            await reader.readexactly(1)
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()
            assert isinstance(await seen, ConnectionResetError)

    run(main())


def test_a_server_that_refuses_resets_the_client():
    async def main() -> None:
        with socket.socket() as taken:
            # Bound but not listening: nobody else can listen there either.
            taken.bind(("127.0.0.1", 0))
            async with FaultyProxy(*taken.getsockname()) as proxy:
                with pytest.raises(ConnectionError):
                    await works(proxy)

    run(main())


# --- latency and jitter ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("direction", "delay_s"), [("up", 0.05), ("down", 0.05), ("both", 0.1)])
def test_latency_delays_a_reply_by_at_least_as_much(direction, delay_s):
    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as stream:
            proxy.begin(Latency(delay_ms=50, direction=direction))
            for _ in range(3):
                elapsed = Elapsed()
                assert await echoed(stream, b"hello") == b"hello"
                assert delay_s <= elapsed.s

    run(main())


def test_delays_add_up():
    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as stream:
            proxy.begin(Latency(delay_ms=50, direction="up"))
            proxy.begin(Latency(delay_ms=60, direction="up"))
            elapsed = Elapsed()
            await echoed(stream, b"hello")
            assert 0.11 <= elapsed.s

    run(main())


def test_jitter_follows_the_seed():
    """The first piece down on connection 0 takes the first number of that stream of chance."""
    seed = next(seed for seed in range(1_000) if random.Random(f"{seed}/0/down").random() > 0.99)

    async def main() -> None:
        async with through_proxy(seed=seed) as proxy, connected(proxy) as stream:
            proxy.begin(Jitter(delay_ms=100, direction="down"))
            elapsed = Elapsed()
            await echoed(stream, b"hello")
            assert 0.099 <= elapsed.s

    run(main())


def test_jitter_keeps_the_order():
    data = random.Random(2).randbytes(200)

    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as (reader, writer):
            proxy.begin(Jitter(delay_ms=20))
            answer = asyncio.create_task(reader.readexactly(len(data)))
            for number in range(len(data)):
                writer.write(data[number : number + 1])
                await writer.drain()
                # Lets the proxy read each byte as a piece of its own.
                await asyncio.sleep(0)
            assert data == await answer

    run(main())


# --- bandwidth -------------------------------------------------------------------------------------------


def test_bandwidth_makes_bytes_take_their_time():
    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as stream:
            proxy.begin(Bandwidth(bytes_per_s=100_000, direction="down"))
            elapsed = Elapsed()
            await echoed(stream, bytes(20_000))
            assert 0.2 <= elapsed.s

    run(main())


def test_connections_share_the_bandwidth():
    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as one, connected(proxy) as other:
            proxy.begin(Bandwidth(bytes_per_s=100_000, direction="up"))
            elapsed = Elapsed()
            await asyncio.gather(echoed(one, bytes(10_000)), echoed(other, bytes(10_000)))
            assert 0.2 <= elapsed.s

    run(main())


# --- what lasts until it heals ---------------------------------------------------------------------------

LASTING = [
    Latency(delay_ms=A_DAY_MS),
    Jitter(delay_ms=A_DAY_MS),
    Bandwidth(bytes_per_s=1),
    Partition(),
    Partition(direction="up"),
    Partition(direction="down"),
]


@pytest.mark.parametrize("toxic", LASTING, ids=named)
def test_healing_lets_everything_flow_that_was_held_back_and_in_order(toxic):
    data = random.Random(3).randbytes(1 << 20)

    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as (reader, writer):
            answer = asyncio.create_task(reader.readexactly(len(data)))
            proxy.begin(toxic)
            writer.write(data)
            # At one byte per second this would be 12 days.
            done, _ = await asyncio.wait([answer], timeout=SHORT_S)
            assert set() == done
            proxy.heal()
            assert () == proxy.toxics
            assert data == await answer

    run(main())


@pytest.mark.parametrize("toxic", LASTING, ids=named)
def test_a_plain_http_client_times_out_while_it_lasts_and_works_when_it_is_healed(toxic):
    async def main(server: ModelServer) -> None:
        async with FaultyProxy(*server.server_address, seed=1) as proxy, httpx.AsyncClient() as client:
            proxy.begin(toxic)
            with pytest.raises(httpx.ReadTimeout):
                await client.post(proxy.url, json={"model": "m"}, timeout=SHORT_S)
            proxy.heal()
            answer = await client.post(proxy.url, json={"model": "m"}, timeout=LIMIT_S)
            assert answer.json()["message"]["content"] == "hello"

    with model_server("hello") as server:
        run(main(server))


def test_a_partition_of_one_direction_lets_the_other_pass():
    async def main() -> None:
        arrived = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readexactly(5) == b"first"
            writer.write(b"1")
            assert await reader.readexactly(6) == b"second"
            arrived.set()
            writer.write(b"2")

        async with through_proxy(serve) as proxy, connected(proxy) as (reader, writer):
            writer.write(b"first")
            assert await reader.readexactly(1) == b"1"
            proxy.begin(Partition(direction="down"))
            writer.write(b"second")
            await arrived.wait()
            answer = asyncio.create_task(reader.read())
            done, _ = await asyncio.wait([answer], timeout=SHORT_S)
            assert set() == done
            proxy.heal()
            assert await answer == b"2"

    run(main())


@pytest.mark.parametrize("direction", ["up", "down", "both"])
def test_a_partition_accepts_new_connections_that_the_server_does_not_see_until_it_heals(direction):
    async def main() -> None:
        seen = 0

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal seen
            seen += 1
            await echo(reader, writer)

        async with through_proxy(serve) as proxy:
            proxy.begin(Partition(direction=direction))
            async with connected(proxy) as stream:
                answer = asyncio.create_task(echoed(stream, b"hello"))
                done, _ = await asyncio.wait([answer], timeout=SHORT_S)
                assert (set(), 0) == (done, seen)
                proxy.heal()
                assert await answer == b"hello"
                assert 1 == seen

    run(main())


# --- reset and cut ---------------------------------------------------------------------------------------


def test_a_reset_breaks_open_connections_and_new_ones_until_it_is_healed():
    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as stream:
            await echoed(stream, b"hello")
            proxy.begin(Reset())
            with pytest.raises(ConnectionResetError):
                await stream[0].read()
            with pytest.raises(ConnectionError):
                await works(proxy)
            proxy.heal()
            assert await works(proxy)

    run(main())


def test_a_reset_after_some_bytes_lets_no_more_than_those_through():
    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with through_proxy() as proxy:
            proxy.begin(Reset(after_bytes=1_000, direction="down"))
            with socket.create_connection((proxy.host, proxy.port)) as sock:
                sock.setblocking(False)
                await loop.sock_sendall(sock, bytes(4_000))
                got: list[bytes] = []
                with pytest.raises(ConnectionResetError):
                    await received(sock, got)
                assert 1_000 >= len(b"".join(got))
            proxy.heal()
            assert await works(proxy)

    run(main())


def test_a_cut_after_some_bytes_lets_exactly_those_through_and_ends_both_sides():
    async def main() -> None:
        upstream_ended = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await echo(reader, writer)
            upstream_ended.set()

        async with through_proxy(serve) as proxy, connected(proxy) as (reader, writer):
            proxy.begin(Cut(after_bytes=1_000, direction="down"))
            writer.write(bytes(4_000))
            assert bytes(1_000) == await reader.read()
            await upstream_ended.wait()
            proxy.heal()
            assert await works(proxy)

    run(main())


def test_a_cut_ends_an_idle_connection_at_once():
    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as stream:
            await echoed(stream, b"hello")
            proxy.begin(Cut())
            assert await stream[0].read() == b""

    run(main())


def test_a_limit_counts_from_its_beginning():
    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as stream:
            await echoed(stream, bytes(1_000))
            proxy.begin(Cut(after_bytes=10, direction="down"))
            stream[1].write(bytes(1_000))
            assert bytes(10) == await stream[0].read()

    run(main())


def test_a_limit_that_is_healed_before_its_last_byte_leaves_nothing_of_itself():
    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as stream:
            proxy.begin(Reset(after_bytes=10))
            await echoed(stream, bytes(9))
            proxy.heal()
            assert bytes(1_000) == await echoed(stream, bytes(1_000))

    run(main())


def test_ending_one_of_two_equal_toxics_leaves_the_other():
    async def main() -> None:
        async with through_proxy() as proxy, connected(proxy) as stream:
            cut = Cut(after_bytes=10, direction="down")
            proxy.begin(cut)
            proxy.begin(cut)
            proxy.end(cut)
            assert (cut,) == proxy.toxics
            stream[1].write(bytes(20))
            assert bytes(10) == await stream[0].read()

    run(main())


BREAKING = [
    (Reset(), httpx.NetworkError),
    (Reset(after_bytes=60, direction="down"), httpx.NetworkError),
    (Cut(), httpx.RemoteProtocolError),
    (Cut(after_bytes=60, direction="down"), httpx.RemoteProtocolError),
]


@pytest.mark.parametrize(("toxic", "error"), BREAKING, ids=named)
def test_a_plain_http_client_fails_when_its_connection_breaks_and_works_when_it_is_healed(toxic, error):
    async def main(server: ModelServer) -> None:
        async with FaultyProxy(*server.server_address) as proxy, httpx.AsyncClient(timeout=LIMIT_S) as client:
            proxy.begin(toxic)
            with pytest.raises(error):
                await client.post(proxy.url, json={"model": "m"})
            proxy.heal()
            answer = await client.post(proxy.url, json={"model": "m"})
            assert answer.json()["message"]["content"] == "hello"

    with model_server("hello") as server:
        run(main(server))


# --- the official client of Ollama -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toxic", "error"),
    [
        (Partition(), httpx.ReadTimeout),
        (Partition(direction="down"), httpx.ReadTimeout),
        (Latency(delay_ms=A_DAY_MS, direction="down"), httpx.ReadTimeout),
        (Reset(after_bytes=60, direction="down"), httpx.NetworkError),
        (Cut(after_bytes=60, direction="down"), httpx.RemoteProtocolError),
    ],
    ids=named,
)
def test_the_ollama_client_lets_the_fault_through_and_works_when_it_is_healed(toxic: Toxic, error):
    async def chat(proxy: FaultyProxy, timeout_s: float) -> str | None:
        async with ollama.AsyncClient(proxy.url, timeout=timeout_s) as client:
            answer = await client.chat("m", [{"role": "user", "content": "hi"}])
            return answer.message.content

    async def main(server: ModelServer) -> None:
        async with FaultyProxy(*server.server_address) as proxy:
            proxy.begin(toxic)
            with pytest.raises(error):
                await chat(proxy, SHORT_S if error is httpx.ReadTimeout else LIMIT_S)
            proxy.heal()
            assert await chat(proxy, LIMIT_S) == "hello"

    with model_server("hello") as server:
        run(main(server))


# --- bounds, ends and mistakes ---------------------------------------------------------------------------


def test_a_slow_reader_slows_the_writer():
    """Far more than every buffer on the way holds: the writer can only end if the proxy holds too much."""
    size_bytes = 64 << 20

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with through_proxy() as proxy:
            with socket.create_connection((proxy.host, proxy.port)) as sock:
                sock.setblocking(False)
                # A connection that the partition finds open is read from; a new one would not be.
                await loop.sock_sendall(sock, b"hello")
                assert await loop.sock_recv(sock, 5) == b"hello"
                proxy.begin(Partition())
                sending = asyncio.create_task(loop.sock_sendall(sock, bytes(size_bytes)))
                done, _ = await asyncio.wait([sending], timeout=1)
                assert set() == done
                proxy.heal()
                got = 0
                while got < size_bytes:
                    got += len(await loop.sock_recv(sock, 1 << 20))
                await sending

    run(main())


def test_what_a_pipe_holds_is_bounded():
    assert HELD_BYTES_MAX <= 512 << 10


needs_dev_fd = pytest.mark.skipif(not Path("/dev/fd").exists(), reason="open files are counted in /dev/fd")


def open_files() -> set[str]:
    return {path.name for path in Path("/dev/fd").iterdir()}


@needs_dev_fd
@pytest.mark.parametrize("toxic", [None, Latency(delay_ms=A_DAY_MS), Partition(), Cut(after_bytes=2), Bandwidth()])
def test_closing_leaves_no_task_and_no_socket_and_its_clients_see_the_end(toxic):
    async def main() -> None:
        server = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
        server.close()
        await server.wait_closed()
        before = (asyncio.all_tasks(), open_files())
        async with through_proxy() as proxy, connected(proxy) as stream, connected(proxy) as idle:
            await echoed(stream, b"hello")
            if toxic is not None:
                proxy.begin(toxic)
            stream[1].write(b"hello")
            async with connected(proxy) as late:
                await proxy.__aexit__(None, None, None)
                assert 0 == proxy.connections
                for reader, _ in (stream, idle, late):
                    # Where bytes were unread in the proxy, the kernel says the end with a reset.
                    with contextlib.suppress(ConnectionError):
                        await reader.read()
        await asyncio.sleep(0)
        assert before == (asyncio.all_tasks(), open_files())

    run(main())


@needs_dev_fd
def test_closing_closes_a_connection_too_that_was_accepted_in_the_same_turn():
    async def main() -> None:
        async with through_proxy() as proxy:
            with socket.create_connection((proxy.host, proxy.port)):
                before = open_files()
                while not proxy.connections:
                    # Our turn comes before the first step of a task made in this one.
                    await asyncio.sleep(0)
                await proxy.__aexit__(None, None, None)
                assert len(before) - 1 == len(open_files())

    run(main())


def test_outside_its_block_a_proxy_has_no_port():
    with pytest.raises(RuntimeError, match="only inside its `async with` block"):
        assert FaultyProxy("127.0.0.1", 1).port


def test_only_toxics_begin():
    with pytest.raises(ToxicError, match="not 'slow'"):
        FaultyProxy("127.0.0.1", 1).begin("slow")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (Latency, {"delay_ms": -1}, "delay_ms is a whole number from 0 to 86400000, not -1"),
        (Jitter, {"delay_ms": 0.5}, "delay_ms is a whole number from 0 to 86400000, not 0.5"),
        (Bandwidth, {"bytes_per_s": 0}, "bytes_per_s is a whole number from 1 to 1099511627776, not 0"),
        (Cut, {"after_bytes": -1}, "after_bytes is a whole number from 0 to 1099511627776, not -1"),
        (Reset, {"after_bytes": True}, "after_bytes is a whole number from 0 to 1099511627776, not True"),
        (Partition, {"direction": "left"}, "direction is one of up, down, both, not 'left'"),
    ],
)
def test_a_toxic_out_of_its_bounds_says_what_is_allowed(kind, fields, message):
    with pytest.raises(ToxicError) as caught:
        kind(**fields)
    assert message == str(caught.value)
