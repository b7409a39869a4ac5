"""Serves an ASGI application in the world: any service of one's own, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from tinyllm.testing.http.values import WINDOW_BYTES, Answer, Break, Chunk, HttpRequest, Piece

__all__ = ["AsgiServer"]

_Event: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[
    [_Event, Callable[[], Awaitable[_Event]], Callable[[_Event], Awaitable[None]]], Awaitable[None]
]


class AsgiServer:
    """*app* under ASGI 3.0, HTTP only; each request is a task of the server's host.

    Its head and what it streams are sent as they come; `send` waits while a client does not read. It gets
    `http.disconnect` when its client leaves; what it sends to one that has left goes nowhere. There are no lifespan
    events: start beforehand what it needs. An exception of the application, also one for what it sends against
    the protocol, is told to the world, and answered 500 if it has not begun to answer.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._calls: dict[HttpRequest, _Call] = {}

    async def answer(self, request: HttpRequest) -> Answer | Break:
        """What the application answers."""
        call = self._calls[request] = _Call(request)
        if request.ended is not None:
            call.leave()
        call.task = asyncio.ensure_future(self._run(call))
        await call.began.wait()
        if call.head is None:
            self._calls.pop(request, None)
            await call.task  # it raises what the application raised
            if call.left.is_set():
                return Break(how="reset")  # nobody waits for an answer
            raise RuntimeError("the application ended without an answer")
        return Answer(status=call.head["status"], headers=_headers(call.head), chunks=call.body())

    def finished(self, request: HttpRequest) -> None:
        """The client is gone."""
        call = self._calls.pop(request, None)
        if call is not None:
            call.leave()

    async def _run(self, call: _Call) -> None:
        try:
            await self._app(_scope(call.request), call.receive, call.send)
            if call.head is not None and not (call.over or call.left.is_set()):
                raise RuntimeError("the application ended before its answer did")
        finally:
            call.began.set()
            call.pieces.put_nowait(None)


class _Call:
    """One request to the application; `pieces` are those of its answer, None their end."""

    def __init__(self, request: HttpRequest) -> None:
        self.request = request
        self.head: _Event | None = None
        self.began = asyncio.Event()
        self.left = asyncio.Event()
        self.over = False
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task: asyncio.Future[None] | None = None
        self._asked = False
        self._room = asyncio.Event()
        self._unsent_bytes = 0
        self._sent_bytes = 0
        self._told_bytes: int | None = None
        self._at_once: bytes | None = None

    def leave(self) -> None:
        """The client is gone."""
        self.left.set()
        self._room.set()

    async def receive(self) -> _Event:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.request.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: _Event) -> None:
        if self.left.is_set():
            return
        kind = event["type"]
        if self.over or (kind == "http.response.body") != (self.head is not None):
            raise RuntimeError(f"the application sends {kind!r} where the protocol has no place for it")
        if kind == "http.response.start":
            self.head = event
            if self.request.method != "HEAD" and event["status"] != 304:
                self._told_bytes = _length(event)
            self.began.set()
        else:
            await self._send_body(bytes(event.get("body", b"")), more=bool(event.get("more_body", False)))

    async def _send_body(self, data: bytes, *, more: bool) -> None:
        self._check_length(len(data), more=more)
        if not more:
            self.over = True
            self._at_once = data if self.pieces.empty() and not self._sent_bytes else None
        self._sent_bytes += len(data)
        self._unsent_bytes += len(data)
        if data:
            self.pieces.put_nowait(data)
        if not more:
            self.pieces.put_nowait(None)
        while more and self._unsent_bytes >= WINDOW_BYTES and not self.left.is_set():
            self._room.clear()
            await self._room.wait()

    def _check_length(self, size_bytes: int, *, more: bool) -> None:
        told, sent = self._told_bytes, self._sent_bytes + size_bytes
        if told is not None and (sent > told or (sent < told and not more)):
            raise RuntimeError(f"the application told a length of {told} bytes, and its answer has {sent}")

    def body(self) -> tuple[Piece, ...] | AsyncIterator[Piece]:
        """All of it if it came at once, and else piece by piece."""
        return self._stream() if self._at_once is None else (Chunk(self._at_once),)

    async def _stream(self) -> AsyncIterator[Piece]:
        while (data := await self.pieces.get()) is not None:
            self._unsent_bytes -= len(data)
            self._room.set()
            yield Chunk(data)
        if self.task is not None and self.task.done() and self.task.exception() is not None:
            context = {"message": "a simulated host failed", "exception": self.task.exception()}
            asyncio.get_running_loop().call_exception_handler(context)
            if not self.over:
                yield Break(how="cut")


def _length(head: _Event) -> int | None:
    """The length of the body that the head tells, None if it does not."""
    found = [bytes(value) for name, value in head.get("headers", ()) if bytes(name).lower() == b"content-length"]
    return int(found[0]) if found else None


def _headers(head: _Event) -> tuple[tuple[str, str], ...]:
    """The application's headers without the one that says how the body is cut into pieces, which the network does."""
    headers = head.get("headers", ())
    pairs = ((bytes(name).decode("latin-1").lower(), bytes(value).decode("latin-1")) for name, value in headers)
    return tuple((name, value) for name, value in pairs if name != "transfer-encoding")


def _scope(request: HttpRequest) -> _Event:
    url = request.url
    path, _, query = url.raw_path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": request.path,
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in _raw(request)],
        "client": (request.source, 0),
        "server": (request.host, url.port or (443 if url.scheme == "https" else 80)),
        "state": {},
    }


def _raw(request: HttpRequest) -> list[tuple[bytes, bytes]]:
    headers: Any = request.headers
    return [(bytes(name), bytes(value)) for name, value in headers.raw]
