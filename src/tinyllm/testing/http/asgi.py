"""Serves an ASGI application in the world: any service of one's own, without a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from tinyllm.testing.http.values import Answer, Break, Chunk, HttpRequest, Piece

__all__ = ["AsgiServer"]

_Event: TypeAlias = MutableMapping[str, Any]
App: TypeAlias = Callable[
    [_Event, Callable[[], Awaitable[_Event]], Callable[[_Event], Awaitable[None]]], Awaitable[None]
]


class AsgiServer:
    """*app* under ASGI 3.0, HTTP only; each request is a task of the server's host.

    What the application streams is sent as it comes. It gets `http.disconnect` when its client leaves, and
    OSError if it sends to one that has left. There are no lifespan events: start beforehand what it needs. An
    exception of the application is told to the world, and answered 500 if it has not begun to answer.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._calls: dict[HttpRequest, _Call] = {}

    async def answer(self, request: HttpRequest) -> Answer:
        """What the application answers."""
        call = self._calls[request] = _Call(request)
        if request.ended is not None:
            call.left.set()
        call.task = asyncio.ensure_future(self._run(call))
        await call.began.wait()
        if call.head is None:
            self._calls.pop(request, None)
            await call.task  # it raises what the application raised
            raise RuntimeError("the application ended without an answer")
        return Answer(status=call.head["status"], headers=_headers(call.head), chunks=call.body())

    def finished(self, request: HttpRequest) -> None:
        """The client is gone."""
        call = self._calls.pop(request, None)
        if call is not None:
            call.left.set()

    async def _run(self, call: _Call) -> None:
        try:
            await self._app(_scope(call.request), call.receive, call.send)
        except OSError:
            if not call.left.is_set():  # then it is what `send` raised
                raise
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
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.task: asyncio.Future[None] | None = None
        self._asked = False
        self._whole: tuple[Piece, ...] | None = None

    async def receive(self) -> _Event:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self.request.body, "more_body": False}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, event: _Event) -> None:
        if self.left.is_set():
            raise OSError("the client has left")
        if event["type"] == "http.response.start":
            self.head = event
        elif event["type"] == "http.response.body":
            data, more = bytes(event.get("body", b"")), bool(event.get("more_body", False))
            if not self.began.is_set() and not more:
                self._whole = (Chunk(data),)
            elif data:
                self.pieces.put_nowait(data)
            if not more:
                self.pieces.put_nowait(None)
            self.began.set()

    def body(self) -> tuple[Piece, ...] | AsyncIterator[Piece]:
        """All of it if it came at once, and else piece by piece."""
        return self._stream() if self._whole is None else self._whole

    async def _stream(self) -> AsyncIterator[Piece]:
        while (data := await self.pieces.get()) is not None:
            yield Chunk(data)
        if self.task is not None and self.task.done() and self.task.exception() is not None:
            context = {"message": "a simulated host failed", "exception": self.task.exception()}
            asyncio.get_running_loop().call_exception_handler(context)
            yield Break(how="cut")


def _headers(head: _Event) -> tuple[tuple[str, str], ...]:
    """The application's headers without those that say how the body is framed, which the network says."""
    pairs = ((bytes(name).decode("latin-1").lower(), bytes(value).decode("latin-1")) for name, value in head["headers"])
    return tuple((name, value) for name, value in pairs if name not in {"content-length", "transfer-encoding"})


def _scope(request: HttpRequest) -> _Event:
    url = request.url
    path, _, query = url.raw_path.partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
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
