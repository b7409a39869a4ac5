"""The transport into the world: clients of httpx and httpx2 work in it, and keep their four timeouts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import pytest

from tests.support.nets import MODULES, MS, URL, Net, both, echo, got, slow, streams
from tinyllm.testing.faults import Bandwidth, Jitter, PacketLoss, Partition
from tinyllm.testing.http.pool import Pool
from tinyllm.testing.http.values import Answer, Chunk, HttpRequest, json_answer, text_answer
from tinyllm.testing.processes import current_host

pytestmark = pytest.mark.unit


# --- what is asked, and what comes back --------------------------------------------------------------------


@both
def test_a_host_answers_what_it_was_asked(module):
    seen: list[HttpRequest] = []

    def server(request: HttpRequest) -> Answer:
        seen.append(request)
        return json_answer({"ü": request.json}, status=201, headers=[("x-one", "1"), ("x-one", "2")])

    with Net({"api": server}) as net:
        response = got(net, module, json={"a": 1}, headers={"X-Key": "k"})

        assert (201, {"ü": {"a": 1}}) == (response.status_code, response.json())
        assert ["1", "2"] == response.headers.get_list("x-one")
        assert str(len(response.content)) == response.headers["content-length"]
        assert isinstance(response, module.Response)
    [request] = seen
    assert ("POST", "/path", URL, "local", "api") == (
        request.method,
        request.path,
        str(request.url),
        request.source,
        request.host,
    )
    assert "k" == request.headers["x-key"]
    assert ("delivered", 201, 0) == (request.ended, request.status, request.ended_ns)


@both
def test_a_host_answers_on_every_port_and_with_encryption(module):
    with Net({"api": echo}) as net:
        for url in ("https://api/", "http://api:8080/", "https://api:8443/"):
            assert "x" == got(net, module, url=url, content=b"x").text


@both
def test_the_answer_comes_when_its_host_says(module):
    with Net({"api": slow(30)}) as net:
        assert "late" == got(net, module).text
        assert 30 == net.now_ms


@pytest.mark.parametrize("host", ["api", "down", "silent", "nobody"])
def test_nothing_comes_before_the_others_had_their_turn(host):
    """A client that asks again and again at no cost must not keep everything else from running."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def main() -> None:
        task = asyncio.create_task(other())
        async with httpx.AsyncClient() as client:
            for _ in range(5):
                before.append(turns)
                with contextlib.suppress(httpx.ConnectError):
                    await client.post(f"http://{host}/")
                after.append(turns)
        task.cancel()

    before: list[int] = []
    after: list[int] = []
    with Net({"api": echo, "down": echo}) as net:
        net.host("down").crash()
        net.host("silent")
        net.run(main)
        assert all(now > then for then, now in zip(before, after, strict=True))


def test_a_head_request_has_the_length_and_not_the_body():
    with Net({"api": lambda request: text_answer("body")}) as net:
        response = got(net, method="HEAD")

        assert ("4", b"") == (response.headers["content-length"], response.content)


def test_a_coroutine_function_serves_as_a_task_of_its_host():
    async def server(request: HttpRequest) -> Answer:
        await asyncio.sleep(0.02)
        task = asyncio.current_task()
        assert task is not None
        return text_answer(f"{task.get_name()} on {current_host()}")

    with Net({"api": server}) as net:
        net.host("api")
        assert "api: POST /path on api" == got(net).text
        assert 20 == net.now_ms


def test_a_server_that_streams_as_it_goes_sends_each_piece_when_it_is_made():
    async def pieces() -> Any:
        for number in range(3):
            yield Chunk(str(number).encode())
            await asyncio.sleep(0.01)

    async def main() -> list[tuple[str, float]]:
        async with httpx.AsyncClient() as client, client.stream("GET", URL) as response:
            return [(text, net.now_ms) async for text in response.aiter_text()]

    with Net({"api": lambda request: Answer(chunks=pieces())}) as net:
        assert [("0", 0), ("1", 10), ("2", 20)] == net.run(main)
        assert 30 == net.now_ms


def test_a_server_that_fails_is_told_to_the_world_and_answered_500():
    def server(request: HttpRequest) -> Answer:
        raise KeyError("what")

    net = Net({"api": server})
    assert (500, "a simulated host failed: KeyError: 'what'") == (got(net).status_code, got(net).text)
    assert ["what"] * 2 == [context["exception"].args[0] for context in net.loop.unhandled]
    net.loop.close()


def test_a_server_that_answers_nothing_is_told_to_the_world():
    async def server(request: HttpRequest) -> Any:
        return "text"

    net = Net({"api": server})
    assert 500 == got(net).status_code
    [context] = net.loop.unhandled
    assert "answers with an Answer or a Break, not 'text'" in str(context["exception"])
    net.loop.close()


def test_what_is_no_server_is_refused():
    with pytest.raises(TypeError, match="a server is a function or has a method `answer`, but 'api' got 7"):
        Net({"api": 7})


# --- names --------------------------------------------------------------------------------------------------


@both
def test_an_unknown_name_is_not_known(module):
    with Net() as net:
        error = got(net, module)

        assert isinstance(error, module.ConnectError)
        assert "[Errno -2] Name or service not known" == str(error)
        assert URL == str(error.request.url)


def test_a_host_that_serves_nothing_refuses():
    with Net() as net:
        net.host("api")
        error = got(net)

        assert (httpx.ConnectError, "connection refused") == (type(error), str(error))


def test_localhost_is_the_host_that_asks_and_addresses_are_known():
    with Net({"local": lambda request: text_answer("home"), "api": lambda request: text_answer("api")}) as net:
        api = net.host("api")

        assert ["home", "home", "api"] == [
            got(net, url=f"http://{name}:11434/").text for name in ("localhost", "127.0.0.1", api.address)
        ]


# --- time on the way ----------------------------------------------------------------------------------------


@both
def test_a_request_pays_for_its_connection_and_the_next_one_does_not(module):
    async def main() -> list[float]:
        async with module.AsyncClient() as client:
            times = []
            for _ in range(2):
                await client.post(URL)
                times.append(net.now_ms)
            await asyncio.sleep(6)  # longer than a connection is kept
            await client.post(URL)
            return [*times, net.now_ms]

    with Net({"api": slow(5)}, latency_ms=10) as net:
        assert [45, 70, 6115] == net.run(main)


def test_a_host_has_no_latency_to_itself():
    with Net({"local": echo}, latency_ms=10) as net:
        assert 200 == got(net, url="http://localhost/").status_code
        assert 0 == net.now_ms


def test_the_request_arrives_after_the_links_latency_and_not_before():
    with Net({"api": echo}, latency_ms=10) as net:
        got(net)

        [request] = net.network.servers["api"].requests
        assert (30 * MS, 40 * MS) == (request.at_ns, request.ended_ns)


def test_a_lost_packet_of_a_link_comes_later():
    with Net({"api": echo}) as net:
        net.lasting(PacketLoss(percent=99))
        assert 200 == got(net).status_code

        sent_six_times_ms = 200 * 63
        # The two packets of the connection, the request, and head, body and end of the answer together.
        assert 4 * sent_six_times_ms <= net.now_ms <= 6 * sent_six_times_ms


def test_bytes_take_the_time_of_the_bandwidth_each_way():
    with Net({"api": echo}) as net:
        net.lasting(Bandwidth(bytes_per_s=1_000))
        assert "x" * 2_000 == got(net, content=b"x" * 2_000).text

        heads_ms = 200 * 3 - 200  # that of the connection's wish, of the request and of the answer; 0 bytes accept
        assert 2 * 2_000 + heads_ms + 200 == net.now_ms


@pytest.mark.parametrize("seed", range(5))
def test_jitter_delays_pieces_and_keeps_their_order(seed):
    async def main() -> list[tuple[str, float]]:
        async with httpx.AsyncClient() as client, client.stream("GET", URL) as response:
            return [(text, net.now_ms) async for text in response.aiter_text()]

    with Net({"api": streams(*[(str(number).encode(), 1) for number in range(9)])}) as net:
        net.links.seed = seed
        net.lasting(Jitter(delay_ms=100))
        heard = net.run(main)

        assert "012345678" == "".join(text for text, _ in heard)
        assert heard[-1][1] > 50


# --- the four timeouts --------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("limit_ms", [29, 30])
def test_the_read_timeout_passes_where_no_answer_begins(module, limit_ms):
    with Net({"api": slow(30)}) as net:
        error = got(net, module, timeout=limit_ms / 1_000)

        assert isinstance(error, module.ReadTimeout)
        assert limit_ms == net.now_ms
        assert "left" == net.network.servers["api"].requests[0].ended


def test_an_answer_just_before_the_read_timeout_is_in_time():
    with Net({"api": slow(30)}) as net:
        assert 200 == got(net, timeout=0.030_000_001).status_code


@both
def test_the_read_timeout_holds_for_each_piece_of_a_body(module):
    with Net({"api": streams((b"a", 8), (b"b", 8), (b"c", 12))}) as net:
        error = got(net, module, timeout=0.01)

        assert isinstance(error, module.ReadTimeout)
        assert 26 == net.now_ms


@both
def test_the_connect_timeout_passes_where_the_host_cannot_be_reached(module):
    with Net({"api": echo}) as net:
        net.lasting(Partition(), end_ms=500)
        error = got(net, module, timeout=module.Timeout(None, connect=0.1))

        assert isinstance(error, module.ConnectTimeout)
        assert 100 == net.now_ms
        net.rest()
        assert [] == net.network.servers["api"].requests


@both
def test_the_write_timeout_passes_where_the_request_is_not_taken(module):
    with Net({"api": echo}) as net:
        net.lasting(Bandwidth(bytes_per_s=1_000))
        body = b"x" * 200_000  # two windows too long
        error = got(net, module, content=body, timeout=module.Timeout(None, write=1))

        assert isinstance(error, module.WriteTimeout)
        assert 200 + 1_000 == net.now_ms


@both
def test_the_pool_timeout_passes_where_no_connection_becomes_free(module):
    async def main() -> list[str]:
        limits = module.Limits(max_connections=2)
        async with module.AsyncClient(limits=limits, timeout=module.Timeout(None, pool=0.015)) as client:

            async def one() -> str:
                try:
                    return f"{(await client.post(URL)).text} at {net.now_ms}"
                except module.PoolTimeout:
                    return f"no connection at {net.now_ms}"

            return await asyncio.gather(*(one() for _ in range(6)))

    with Net({"api": slow(10)}) as net:
        late = ["late at 10.0"] * 2 + ["late at 20.0"] * 2
        assert [*late, *["no connection at 15.0"] * 2] == net.run(main)


def test_a_client_cancelled_while_it_waits_for_a_connection_leaves_the_place_to_others():
    async def main() -> str:
        async with httpx.AsyncClient(limits=httpx.Limits(max_connections=1)) as client:
            first, second = (asyncio.create_task(client.post(URL)) for _ in range(2))
            await asyncio.sleep(0.005)
            second.cancel()
            third = asyncio.create_task(client.post(URL))
            return f"{(await first).text} {(await third).text} {net.now_ms}"

    with Net({"api": slow(10)}) as net:
        assert "late late 20.0" == net.run(main)


def test_a_place_that_comes_to_one_who_is_cancelled_goes_to_the_next():
    async def main() -> None:
        pool = Pool(net.loop, max_connections=1)
        await pool.enter(None)
        waiting = [asyncio.create_task(pool.enter(None)) for _ in range(2)]
        await asyncio.sleep(0)
        pool.leave()
        waiting[0].cancel()
        await waiting[1]
        pool.leave()
        await pool.enter(0.001)

    with Net() as net:
        net.run(main)
        assert 0 == net.now_ms


@pytest.mark.parametrize("module", MODULES)
def test_a_transport_made_by_the_network_has_its_own_limit(module):
    async def main() -> Any:
        transport = net.network.transport(module, max_connections=1)
        async with module.AsyncClient(transport=transport, timeout=module.Timeout(None, pool=0.001)) as client:
            return await asyncio.gather(client.post(URL), client.post(URL), return_exceptions=True)

    with Net({"api": slow(10)}) as net:
        assert [module.Response, module.PoolTimeout] == [type(one) for one in net.run(main)]


# --- bodies ---------------------------------------------------------------------------------------------------


@both
def test_a_body_that_is_made_piece_by_piece_arrives_whole(module):
    async def body() -> Any:
        for piece in (b"one ", b"two ", b"three"):
            yield piece
            await asyncio.sleep(0.01)

    with Net({"api": echo}) as net:
        assert "one two three" == got(net, module, content=body()).text
        assert 30 * MS == net.network.servers["api"].requests[0].at_ns


def test_a_body_that_fails_on_the_way_never_arrives():
    async def body() -> Any:
        yield b"one"
        raise KeyError("two")

    with Net({"api": echo}) as net:
        assert isinstance(got(net, content=body()), KeyError)
        net.rest()
        assert [] == net.network.servers["api"].requests


def test_lines_of_a_stream_come_as_they_are_sent():
    async def main() -> list[tuple[str, float]]:
        async with httpx.AsyncClient() as client, client.stream("GET", URL) as response:
            assert "content-length" not in response.headers
            return [(line, net.now_ms) async for line in response.aiter_lines()]

    with Net({"api": streams((b"a\nb", 0), (b"c\nd\n", 5))}, latency_ms=1) as net:
        assert [("a", 4), ("bc", 9), ("d", 9)] == net.run(main)


def test_a_client_that_closes_a_stream_early_is_seen_to_leave():
    async def main() -> None:
        async with httpx.AsyncClient() as client, client.stream("GET", URL) as response:
            async for _ in response.aiter_bytes():
                break
        await asyncio.sleep(1)

    with Net({"api": streams(*[(b"x", 10)] * 5)}) as net:
        net.run(main)
        [request] = net.network.servers["api"].requests

        assert ("left", 10 * MS) == (request.ended, request.ended_ns)


def test_a_generator_waits_for_a_client_that_does_not_read():
    sent: list[int] = []

    async def pieces() -> Any:
        for number in range(200):
            sent.append(number)
            yield Chunk(b"x" * 1_024, MS)

    async def main() -> tuple[int, int]:
        async with httpx.AsyncClient() as client, client.stream("GET", URL) as response:
            await asyncio.sleep(10)
            return len(sent), len(await response.aread())

    with Net({"api": lambda request: Answer(chunks=pieces())}) as net:
        assert (65, 200 * 1_024) == net.run(main)
        assert 10_000 + 135 == net.now_ms


def test_a_server_waits_for_a_client_that_does_not_read():
    sent: list[int] = []

    def pieces() -> Any:
        for number in range(1_000):
            sent.append(number)
            yield Chunk(b"x" * 1_024, MS)

    async def main() -> int:
        async with httpx.AsyncClient() as client, client.stream("GET", URL) as response:
            await asyncio.sleep(10)
            buffered = len(sent)
            assert 1_000 * 1_024 == len(await response.aread())
            return buffered

    with Net({"api": lambda request: Answer(chunks=pieces())}) as net:
        assert 64 == net.run(main)


def test_a_generator_that_streams_is_cancelled_when_its_client_leaves():
    ended: list[float] = []

    async def pieces() -> Any:
        try:
            while True:
                yield Chunk(b"x")
                await asyncio.sleep(0.01)
        finally:
            ended.append(net.now_ms)

    async def main() -> None:
        async with httpx.AsyncClient() as client, client.stream("GET", URL):
            await asyncio.sleep(0.025)

    with Net({"api": lambda request: Answer(chunks=pieces())}) as net:
        net.run(main)
        net.rest()
        assert [25] == ended
