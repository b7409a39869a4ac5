"""Connections of simulated clients: made again, closed, kept and not, and what hosts may be called."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.nets import MS, URL, Net, both, echo, got, slow
from tinyllm.testing.faults import At, Bandwidth, DnsFailure, DuplicateChunk, PacketLoss, Partition, Refused
from tinyllm.testing.http.values import Answer, Chunk, ServerTypeError, text_answer

pytestmark = pytest.mark.unit


def asking(net: Net, module: Any, retries: int, **how: Any) -> Any:
    async def main() -> Any:
        async with module.AsyncClient(transport=module.AsyncHTTPTransport(retries=retries), **how) as client:
            try:
                return (await client.get(URL)).status_code
            except module.HTTPError as error:
                return type(error).__name__

    return net.run(main), net.now_ms


@both
@pytest.mark.parametrize("fault", [Refused(), DnsFailure()], ids=repr)
def test_a_connection_that_a_fault_refused_is_made_again_if_the_client_says_so(module, fault):
    with Net({"api": echo}, fault) as net:
        assert (200, 0) == asking(net, module, 1)
    with Net({"api": echo}, fault) as net:
        assert ("ConnectError", 0) == asking(net, module, 0)


@both
@pytest.mark.parametrize(("retries", "after_ms"), [(1, 0), (2, 500), (3, 1_500), (4, 3_500)])
def test_the_tries_come_at_once_and_then_each_twice_as_late(module, retries, after_ms):
    refused = [At(point="connection api", number=number, fault=Refused()) for number in range(retries)]
    with Net({"api": echo}, at=tuple(refused)) as net:
        assert (200, after_ms) == asking(net, module, retries)
    with Net({"api": echo}, at=(*refused, At(point="connection api", number=retries, fault=Refused()))) as net:
        assert ("ConnectError", after_ms) == asking(net, module, retries)


def test_each_try_has_the_whole_connect_timeout_and_no_reply_to_one_before():
    with Net({"api": echo}) as net:
        net.lasting(Partition(), end_ms=250)
        assert ("ConnectTimeout", 200) == asking(net, httpx, 1, timeout=httpx.Timeout(None, connect=0.1))
        net.rest()
    with Net({"api": echo}, latency_ms=60) as net:  # the replies come after 120 ms
        assert ("ConnectTimeout", 200) == asking(net, httpx, 1, timeout=httpx.Timeout(None, connect=0.1))


@both
def test_reading_from_a_closed_client_fails_also_while_it_waits(module):
    async def main() -> list[str]:
        failed = []
        for waits in (False, True):
            async with module.AsyncClient() as client:
                response = await client.send(client.build_request("GET", URL), stream=True)
                reader = asyncio.ensure_future(response.aread())
                if waits:
                    await asyncio.sleep(0.01)
            try:
                await reader
            except module.ReadError as error:
                failed.append(f"{error} at {net.now_ms}")
        return failed

    def half(request: Any) -> Answer:
        return Answer(chunks=(Chunk(b"a"), Chunk(b"b", 1_000 * MS)))

    with Net({"api": half}) as net:
        assert ["the client was closed at 0.0", "the client was closed at 10.0"] == net.run(main)


@both
@pytest.mark.parametrize("who", ["the client", "the server", "nobody"])
def test_a_connection_that_is_to_be_closed_is_not_used_again(module, who):
    def server(request: Any) -> Answer:
        return Answer(headers=(("Connection", "Close"),) if who == "the server" else ())

    headers = {"Connection": "close"} if who == "the client" else {}

    async def main() -> float:
        async with module.AsyncClient(headers=headers) as client:
            await client.get(URL)
            before_ms = net.now_ms
            await client.get(URL)
            return net.now_ms - before_ms

    with Net({"api": server}, latency_ms=10) as net:
        assert (20 if who == "nobody" else 40) == net.run(main)


@pytest.mark.parametrize("url", ["http://LLM/", "http://llm./", "http://Llm.:80/"])
@pytest.mark.parametrize("name", ["LLM", "llm", "Llm."])
def test_the_case_of_a_name_tells_nothing(url, name):
    async def main() -> int:
        async with httpx.AsyncClient() as client:
            return (await client.get(url)).status_code

    with Net({name: echo}) as net:
        assert 200 == net.run(main)


def test_the_read_timeout_begins_when_the_request_is_sent_and_not_when_it_arrives():
    with Net({"api": slow(1_000)}, latency_ms=40) as net:
        error = got(net, timeout=httpx.Timeout(None, read=0.1), content=b"x")

        assert isinstance(error, httpx.ReadTimeout)
        assert 80 + 100 == net.now_ms


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_that_has_no_body_tells_no_length(status):
    with Net({"api": lambda request: text_answer("", status=status)}) as net:
        headers = got(net).headers

    assert not {"content-length", "transfer-encoding"} & headers.keys()


def test_an_answer_with_a_body_that_http_does_not_allow_is_told_to_the_world():
    net = Net({"api": lambda request: text_answer("x", status=204)})
    assert 500 == got(net).status_code
    assert [ServerTypeError] == [type(context["exception"]) for context in net.loop.unhandled]
    net.loop.close()


def test_a_body_with_a_piece_that_came_twice_has_the_length_that_it_tells():
    with Net({"api": lambda request: Answer(chunks=(Chunk(b"ab"), Chunk(b"c")))}, DuplicateChunk(chunk=7)) as net:
        response = got(net)

    assert ("abcc", ["4"]) == (response.text, response.headers.get_list("content-length"))


def test_where_every_packet_is_lost_nothing_passes_until_that_is_healed():
    with Net({"api": echo}) as net:
        net.lasting(PacketLoss(percent=100), end_ms=60_000)
        assert 200 == got(net, timeout=None).status_code
        assert 60_000 == net.now_ms


@pytest.mark.parametrize(("window_bytes", "kind"), [(1_000, httpx.WriteTimeout), (None, httpx.Response)])
def test_a_host_short_of_memory_takes_less_of_a_request_before_it_reads(window_bytes, kind):
    with Net({"api": echo}) as net:
        net.host("api").window_bytes = window_bytes
        net.lasting(Bandwidth(bytes_per_s=1_000))
        assert kind is type(got(net, content=b"x" * 3_000, timeout=httpx.Timeout(None, write=0.5)))


def test_scheme_and_port_have_connections_of_their_own():
    async def main() -> list[float]:
        times = []
        async with httpx.AsyncClient() as client:
            for url in ("http://api/", "http://api:81/", "https://api/", "http://api/", "https://api/"):
                before_ms = net.now_ms
                await client.get(url)
                times.append(net.now_ms - before_ms)
        return times

    with Net({"api": echo}, latency_ms=10) as net:
        assert [40, 40, 40, 20, 20] == net.run(main)


@both
@pytest.mark.parametrize("url", ["ftp://api/", "api/x", "http:///x"])
def test_what_is_no_url_of_http_is_refused(module, url):
    async def main() -> None:
        async with module.AsyncClient() as client:
            await client.get(url)

    with Net({"api": echo}) as net, pytest.raises(module.UnsupportedProtocol):
        net.run(main)


def test_a_connection_that_breaks_during_an_upload_is_noticed_there():
    async def pieces() -> Any:
        for number in range(10):
            await asyncio.sleep(0.1)
            sent.append(number)
            yield b"x"

    sent: list[int] = []
    with Net({"api": echo}) as net:
        host = net.host("api")
        net.loop.call_later(0.35, host.crash)
        error = got(net, content=pieces())

        assert isinstance(error, httpx.ReadError)
        assert 400 == net.now_ms
        assert 4 == len(sent)
