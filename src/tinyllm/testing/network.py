"""The network of the world: an httpx transport that leads to simulated hosts and never to a socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Protocol

import httpx

from tinyllm.testing.loop import OWNER, SimulatedLoop

NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """What a host does with one request, decided when it arrives.

    After `duration_ns`: `refused` and `reset` break the connection; otherwise status and body follow,
    of which `cut` lets only half arrive.
    """

    duration_ns: int = 0
    status: int = 200
    body: bytes = b""
    content_type: str = "application/json"
    refused: bool = False
    reset: bool = False
    cut: bool = False


class Host(Protocol):
    """A simulated server."""

    def receive(self, request: httpx.Request) -> Exchange:
        """Decide what comes of `request`; called at the moment it arrives."""
        ...

    def finish(self, request: httpx.Request, *, delivered: bool) -> None:
        """The exchange is over; not `delivered` if the client left before its end."""
        ...


@dataclass(slots=True, eq=False)
class Connection:
    """An open connection; `owner` is the run that opened it, if one did."""

    number: int
    host: str
    owner: object


class Network:
    """Hosts by name, and the connections that are open."""

    def __init__(self, loop: SimulatedLoop) -> None:
        self.loop = loop
        self.hosts: dict[str, Host] = {}
        self._open: dict[int, Connection] = {}
        self._opened = 0

    def transport(self) -> httpx.AsyncBaseTransport:
        """A transport for any client built on httpx."""
        return _Transport(self)

    def open_connections(self, owner: object) -> list[Connection]:
        """What `owner` has open, in the order of opening."""
        return [connection for connection in self._open.values() if connection.owner == owner]

    def connect(self, host: str) -> Connection:
        self._opened += 1
        connection = Connection(self._opened, host, OWNER.get())
        self._open[connection.number] = connection
        return connection

    def disconnect(self, connection: Connection) -> None:
        self._open.pop(connection.number, None)


class _Transport(httpx.AsyncBaseTransport):
    def __init__(self, network: Network) -> None:
        self._network = network

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = request.url.host
        host = self._network.hosts.get(name)
        if host is None:
            raise httpx.ConnectError(f"no host {name!r} in this world", request=request)
        await request.aread()
        connection = self._network.connect(name)
        delivered = False
        try:
            exchange = self._received(host, request)
            await self._pass_time(exchange, request)
            stream = _Body(exchange, self._network, connection, host, request)
            delivered = True
        finally:
            if not delivered:
                self._network.disconnect(connection)
                host.finish(request, delivered=False)
        headers = {"content-type": exchange.content_type, "content-length": str(len(exchange.body))}
        return httpx.Response(exchange.status, headers=headers, stream=stream)

    def _received(self, host: Host, request: httpx.Request) -> Exchange:
        try:
            return host.receive(request)
        except Exception as error:
            # A host that fails is a mistake in the world, and must not pass for a fault that the engine met.
            self._network.loop.call_exception_handler({"message": "a simulated host failed", "exception": error})
            raise

    async def _pass_time(self, exchange: Exchange, request: httpx.Request) -> None:
        """Wait for the answer's beginning, as long as the client's read timeout allows.

        Connections are made and requests sent in no time, so the connect, write and pool timeouts cannot pass.
        """
        if exchange.refused:
            raise httpx.ConnectError("connection refused", request=request)
        timeout_s = request.extensions.get("timeout", {}).get("read")
        limit_ns = None if timeout_s is None else round(timeout_s * NS_PER_S)
        late = limit_ns is not None and limit_ns <= exchange.duration_ns
        await _external_sleep(self._network.loop, limit_ns if late and limit_ns is not None else exchange.duration_ns)
        if late:
            raise httpx.ReadTimeout(f"no answer within {timeout_s} s", request=request)
        if exchange.reset:
            raise httpx.ReadError("connection reset by peer", request=request)


class _Body(httpx.AsyncByteStream):
    """A response body; its connection is open until it is read to its end or closed."""

    def __init__(
        self, exchange: Exchange, network: Network, connection: Connection, host: Host, request: httpx.Request
    ) -> None:
        self._exchange = exchange
        self._network = network
        self._connection = connection
        self._host = host
        self._request = request
        self._over = False

    async def __aiter__(self) -> AsyncIterator[bytes]:
        body = self._exchange.body
        middle = len(body) // 2
        yield body[:middle]
        if self._exchange.cut:
            text = f"peer closed the connection after {middle} of {len(body)} bytes of the body"
            raise httpx.RemoteProtocolError(text, request=self._request)
        yield body[middle:]
        self._finish(delivered=True)

    async def aclose(self) -> None:
        self._finish(delivered=False)

    def _finish(self, *, delivered: bool) -> None:
        if not self._over:
            self._over = True
            self._network.disconnect(self._connection)
            self._host.finish(self._request, delivered=delivered)


async def _external_sleep(loop: SimulatedLoop, duration_ns: int) -> None:
    """Wait for something that comes from outside: the schedule may hold such a wake-up back."""
    arrived: asyncio.Future[None] = loop.create_future()
    timer = loop.call_external_later(duration_ns / NS_PER_S, _arrive, arrived)
    try:
        await arrived
    finally:
        timer.cancel()


def _arrive(arrived: asyncio.Future[None]) -> None:
    if not arrived.done():
        arrived.set_result(None)
