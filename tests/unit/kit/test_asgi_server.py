"""ASGI applications as servers of the world."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from tests.support.nets import MS, Net
from tinyllm.testing.faults import (
    CutMidBody,
    CutMidStream,
    DuplicateChunk,
    EmptyBody,
    EndlessStream,
    GarbageBytes,
    ReorderedChunks,
    Reset,
    SlowDrip,
    TruncatedJson,
    WrongShape,
)
from tinyllm.testing.http.asgi import AsgiServer
from tinyllm.testing.http.values import WINDOW_BYTES
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


def heard(net: Net) -> list[tuple[str, float]]:
    """What came of the stream and when, with the name of the exception that ended it."""
    pieces: list[tuple[str, float]] = []

    async def main() -> None:
        async with httpx.AsyncClient() as client, client.stream("GET", "http://api/") as response:
            pieces.append(("head", net.now_ms))
            async for text in response.aiter_text():
                pieces.append((text, net.now_ms))  # noqa: PERF401 - what came before an exception counts

    async def told() -> None:
        try:
            await main()
        except httpx.HTTPError as error:
            pieces.append((type(error).__name__, net.now_ms))

    net.run(told)
    return pieces


async def endless(scope: Any, receive: Any, send: Any) -> None:
    """A piece each 10 ms until the client has left."""
    await receive()
    left = asyncio.ensure_future(receive())
    await send(start())
    while not left.done():
        await asyncio.sleep(0.01)
        await send(body(b"x", more=True))


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (Reset(after_bytes=2), [("head", 0), ("x", 10), ("x", 20), ("ReadError", 30)]),
        (Reset(after_bytes=0), [("ReadError", 0)]),
        (CutMidStream(chunks=0), [("head", 0), ("RemoteProtocolError", 0)]),
        (CutMidStream(chunks=2), [("head", 0), ("x", 10), ("x", 20), ("RemoteProtocolError", 20)]),
        (CutMidBody(), [("head", 0), ("x", 10), ("RemoteProtocolError", 10)]),
        (EmptyBody(), [("head", 0)]),
        (WrongShape(), [("head", 0), ("[]", 0)]),
        (TruncatedJson(), [("head", 0), ("x", 10)]),
    ],
    ids=repr,
)
def test_faults_end_a_stream_that_has_no_end(fault, expected):
    with Net({"api": AsgiServer(endless)}, fault) as net:
        assert expected == heard(net)
        net.rest()
        assert () == net.loop.pending_tasks()


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (SlowDrip(delay_ms=5, size_bytes=1), [("0", 5), ("1", 15), ("2", 25)]),
        (DuplicateChunk(chunk=1), [("0", 0), ("1", 10), ("1", 10), ("2", 20)]),
        (DuplicateChunk(chunk=5), [("0", 0), ("1", 10), ("2", 20), ("2", 30)]),
        (ReorderedChunks(chunk=0), [("1", 10), ("0", 10), ("2", 20)]),
        (ReorderedChunks(chunk=5), [("0", 0), ("1", 10), ("2", 20)]),
        (Reset(after_bytes=3), [("0", 0), ("1", 10), ("2", 20)]),
        (CutMidStream(chunks=5), [("0", 0), ("1", 10), ("2", 20), ("RemoteProtocolError", 30)]),
    ],
    ids=repr,
)
def test_faults_strike_the_pieces_of_a_stream_as_they_come(fault, expected):
    with Net({"api": AsgiServer(ticks)}, fault) as net:
        assert [("head", 0), *expected] == heard(net)


@pytest.mark.parametrize("fault", [EndlessStream(delay_ms=7), SlowDrip(delay_ms=1_000, size_bytes=1)], ids=repr)
def test_a_stream_that_a_fault_slows_ends_when_that_is_healed(fault):
    with Net({"api": AsgiServer(ticks)}, fault) as net:
        net.heal_after(25)
        told = heard(net)

    assert "012" == "".join(dict.fromkeys("".join(text for text, _ in told[1:])))
    assert ("2", 25) in told


def test_the_head_of_an_application_comes_before_its_body():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, (b"content-length", b"1")))
        await asyncio.sleep(0.4)
        await send(body(b"x"))

    with Net({"api": AsgiServer(app)}) as net:
        assert [("head", 0), ("x", 400)] == heard(net)


def test_an_application_waits_for_a_client_that_does_not_read():
    sent: list[float] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        for _ in range(10):
            await send(body(bytes(WINDOW_BYTES), more=True))
            sent.append(net.now_ms)
        await send(body(b""))

    async def main() -> int:
        async with httpx.AsyncClient() as client, client.stream("GET", "http://api/") as response:
            await asyncio.sleep(1)
            return len(await response.aread())

    with Net({"api": AsgiServer(app)}) as net:
        assert 10 * WINDOW_BYTES == net.run(main)
        assert [0, 0, 1_000] == [*sent[:2], sent[-1]]
        assert sent.count(0) < 4


@pytest.mark.parametrize("pieces", [[b"x"], [b"xx", b"yy"], []], ids=repr)
def test_an_application_that_breaks_its_word_about_the_length_is_told_to_the_world(pieces):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, (b"content-length", b"3")))
        for number, piece in enumerate(pieces, 1):
            await send(body(piece, more=number < len(pieces)))

    net = Net({"api": AsgiServer(app)})
    assert isinstance(got(net), httpx.RemoteProtocolError)
    assert [RuntimeError] == [type(context["exception"]) for context in net.loop.unhandled]
    net.loop.close()


@pytest.mark.parametrize("event", [body(b"x"), {"type": "http.response.trailers"}], ids=["body", "other"])
def test_an_application_that_begins_with_no_head_is_told_to_the_world(event):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(event)

    net = Net({"api": AsgiServer(app)})
    assert 500 == got(net).status_code
    assert [RuntimeError] == [type(context["exception"]) for context in net.loop.unhandled]
    net.loop.close()


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


# --- as uvicorn has it ---------------------------------------------------------------------------------------


def test_a_client_that_gives_up_before_the_head_is_nothing_to_tell():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(1)
        await send(start())
        await send(body(b"late"))

    async def returns(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await receive()

    for served in (app, returns):
        with Net({"api": AsgiServer(served)}) as net:
            assert isinstance(got(net, timeout=0.5), httpx.ReadTimeout)


def test_work_after_a_whole_answer_spoils_nothing_of_it_when_it_fails():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start())
        await send(body(b"a", more=True))
        await send(body(b"b"))
        raise KeyError("background")

    net = Net({"api": AsgiServer(app)})
    assert "ab" == got(net).text
    net.rest()
    net.loop.close()
    assert ["KeyError('background')"] == [repr(context["exception"]) for context in net.loop.unhandled]


def test_an_answer_is_whole_when_its_length_is_there_whatever_the_application_does_then():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, (b"content-length", b"5")))
        await send(body(b"hello", more=True))
        await asyncio.sleep(60)
        await send(body(b""))

    with Net({"api": AsgiServer(app)}) as net:
        assert ("hello", 0) == (got(net, timeout=0.5).text, net.now_ms)


def test_a_piece_that_comes_twice_does_not_make_a_body_longer_than_it_says():
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(200, (b"content-length", b"6")))
        for piece in (b"aa", b"bb", b"cc"):
            await send(body(piece, more=True))
            await asyncio.sleep(0.01)
        await send(body(b""))

    with Net({"api": AsgiServer(app)}, DuplicateChunk()) as net:
        assert "aaaabb" == got(net).text


@pytest.mark.parametrize(("method", "status"), [("HEAD", 200), ("GET", 304)])
def test_a_head_may_tell_the_length_of_a_body_that_does_not_come(method, status):
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(start(status, (b"content-length", b"5")))
        await send(body(b""))

    async def main() -> Any:
        async with httpx.AsyncClient() as client:
            return await client.request(method, "http://api/")

    faults = (None, CutMidBody(), CutMidStream(), *((GarbageBytes(), WrongShape()) if status == 304 else ()))
    for fault in faults:
        with Net({"api": AsgiServer(app)}, fault) as net:
            response = net.run(main)
            assert (b"", ["5"]) == (response.content, response.headers.get_list("content-length"))
