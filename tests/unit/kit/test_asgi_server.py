"""ASGI applications as servers of the world."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.nets import MS, Net
from tinyllm.testing.faults import CutMidStream, Reset
from tinyllm.testing.http.asgi import AsgiServer
from tinyllm.testing.processes import current_host

pytestmark = pytest.mark.unit


def start(status: int = 200, *headers: tuple[bytes, bytes]) -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": list(headers)}


def body(data: bytes, more: bool = False) -> dict[str, Any]:
    return {"type": "http.response.body", "body": data, "more_body": more}


async def ticks(scope: Any, receive: Any, send: Any) -> None:
    """Three pieces, 10 ms apart."""
    await send(start())
    for number in range(3):
        await send(body(str(number).encode(), more=True))
        await asyncio.sleep(0.01)
    await send(body(b""))


def got(net: Net, **how: Any) -> Any:
    async def main() -> Any:
        async with httpx.AsyncClient() as client:
            return await client.request("POST", "http://api:81/a%20b?c=d", **how)

    try:
        return net.run(main)
    except httpx.HTTPError as error:
        return error


def test_an_application_gets_the_request_and_gives_the_answer():
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.extend([scope, await receive(), current_host()])
        await send(start(201, (b"Content-Type", b"text/plain"), (b"Content-Length", b"2")))
        await send(body(b"ok"))

    with Net({"api": AsgiServer(app)}) as net:
        net.host("api")
        response = got(net, content=b"body", headers={"X-One": "1"})

    assert (201, "ok", "text/plain") == (response.status_code, response.text, response.headers["content-type"])
    assert ["2"] == response.headers.get_list("content-length")
    scope, message, host = seen
    assert ("POST", "/a b", b"/a%20b", b"c=d", "http", ("api", 81)) == tuple(
        scope[key] for key in ("method", "path", "raw_path", "query_string", "scheme", "server")
    )
    assert (b"x-one", b"1") in scope["headers"]
    assert ({"type": "http.request", "body": b"body", "more_body": False}, "api") == (message, host)


def test_what_an_application_streams_comes_as_it_is_sent():
    async def main() -> list[tuple[str, float]]:
        async with httpx.AsyncClient() as client, client.stream("GET", "http://api/") as response:
            assert "content-length" not in response.headers
            return [(text, net.now_ms) async for text in response.aiter_text()]

    with Net({"api": AsgiServer(ticks)}) as net:
        assert [("0", 0), ("1", 10), ("2", 20)] == net.run(main)


@pytest.mark.parametrize(("fault", "failure"), [(Reset(after_bytes=2), "ReadError"), (CutMidStream(), "RemoteProto")])
def test_faults_strike_a_stream_once_all_of_it_is_known(fault, failure):
    with Net({"api": AsgiServer(ticks)}, fault) as net:
        assert failure in type(got(net)).__name__ + "colError"
        assert 30 == net.now_ms
        assert "012" == got(net).text


def test_an_application_is_told_that_its_client_has_left():
    told: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send(start())
        await send(body(b"x", more=True))
        told.extend([await receive(), asyncio.get_running_loop().time()])
        await send(body(b"y", more=True))

    async def main() -> None:
        async with httpx.AsyncClient() as client, client.stream("GET", "http://api/"):
            await asyncio.sleep(0.05)

    with Net({"api": AsgiServer(app)}) as net:
        net.run(main)
        net.rest()
        assert [{"type": "http.disconnect"}, 0.05] == told
        assert () == net.loop.pending_tasks()


@pytest.mark.parametrize("before", [True, False])
def test_an_application_that_fails_is_told_to_the_world(before):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        if not before:
            await send(start())
            await send(body(b"x", more=True))
        raise KeyError("what")

    net = Net({"api": AsgiServer(app)})
    response = got(net)
    net.loop.close()

    if before:
        assert 500 == response.status_code
    else:
        assert isinstance(response, httpx.RemoteProtocolError)
    assert ["KeyError('what')"] == [repr(context["exception"]) for context in net.loop.unhandled]


def test_an_application_that_answers_nothing_is_told_to_the_world():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        return None

    net = Net({"api": AsgiServer(app)})
    assert 500 == got(net).status_code
    assert ["the application ended without an answer"] == [str(c["exception"]) for c in net.loop.unhandled]
    net.loop.close()


def test_a_request_waits_for_its_application():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.03)
        await send(start())
        await send(body(b"late"))

    with Net({"api": AsgiServer(app)}, latency_ms=1) as net:
        assert "late" == got(net).text
        assert 34 * MS == net.loop.time_ns
