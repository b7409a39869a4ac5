"""The transport between a client and the simulated network, for each module that clients are built on.

`httpx` and its successor `httpx2` have the same interface and classes of their own, so a transport is made
for one of them. Neither is imported before somebody needs it.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterable, AsyncIterator
from functools import cache
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from tinyllm.testing.http.exchange import Exchange
from tinyllm.testing.http.failures import NetworkFailure
from tinyllm.testing.http.pool import Pool

if TYPE_CHECKING:
    import httpx

    from tinyllm.testing.http.network import Network

__all__ = ["Dialect", "transport_for"]


class WorldTransport:
    """A transport into *network*; mixed with the base class of a module."""

    def __init__(self, network: Network, pool: Pool, dialect: Dialect) -> None:
        self._network = network
        self._pool = pool
        self._dialect = dialect
        self._sockets: httpx.AsyncBaseTransport | None = None

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        name = self._network.name_of(request.url.host)
        if self._network.reaches_socket(name):
            if self._sockets is None:
                self._sockets = self._dialect.socket_transport()
            return await self._sockets.handle_async_request(request)
        return await self._dialect.respond(self._network, self._pool, name, request)

    async def aclose(self) -> None:
        self._pool.close()
        if self._sockets is not None:
            await self._sockets.aclose()


class WorldBody:
    """The body of a response; its exchange is under way until it is read to its end or closed."""

    def __init__(self, dialect: Dialect, exchange: Exchange, request: httpx.Request, limit_s: float | None) -> None:
        self._dialect = dialect
        self._exchange = exchange
        self._request = request
        self._limit_s = limit_s

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read, limit_s = self._exchange.read, self._limit_s
        try:
            while (data := await read(limit_s)) is not None:
                yield data
        except NetworkFailure as failure:
            self._exchange.leave()
            raise self._dialect.error(failure, self._request) from None

    async def aclose(self) -> None:
        self._exchange.leave()


class Dialect:
    """One module's classes."""

    def __init__(self, module: ModuleType) -> None:
        classes: Any = module
        self._module = classes
        self.transport: Any = type("WorldTransport", (WorldTransport, classes.AsyncBaseTransport), {})
        self._body: Any = type("WorldBody", (WorldBody, classes.AsyncByteStream), {})

    def socket_transport(self) -> httpx.AsyncBaseTransport:
        """The module's own transport. Nothing is encrypted between simulated sockets, so it verifies nothing."""
        transport: httpx.AsyncBaseTransport = self._module.AsyncHTTPTransport(verify=False)
        return transport

    async def respond(self, network: Network, pool: Pool, name: str, request: httpx.Request) -> httpx.Response:
        """What comes of *request* to host *name*; raises the exceptions of the module."""
        limits = request.extensions.get("timeout", {})
        if request.url.scheme not in {"http", "https"} or not request.url.host:
            text = f"no http:// or https:// URL: {str(request.url)!r}"
            raise self._module.UnsupportedProtocol(text, request=request)
        try:
            exchange = await self._begun(network, pool, name, request, limits.get("pool"))
            try:
                await exchange.connect(limits.get("connect"))
                await exchange.send(self._body_of(request), limits.get("write"))
                answer = await exchange.answer(limits.get("read"))
            except BaseException:
                exchange.leave()
                raise
        except NetworkFailure as failure:
            raise self.error(failure, request) from None
        body = self._body(self, exchange, request, limits.get("read"))
        response: httpx.Response = self._module.Response(answer.status, headers=answer.headers, stream=body)
        return response

    async def _begun(
        self, network: Network, pool: Pool, name: str, request: httpx.Request, limit_s: float | None
    ) -> Exchange:
        await pool.enter(limit_s)
        try:
            return await network.begin(request, name, pool)
        except BaseException:
            pool.leave()
            raise

    def _body_of(self, request: httpx.Request) -> bytes | AsyncIterable[bytes]:
        body: Any
        try:
            body = request.content
        except self._module.RequestNotRead:
            body = request.stream
        return cast("bytes | AsyncIterable[bytes]", body)

    def error(self, failure: NetworkFailure, request: httpx.Request) -> Exception:
        """The exception of the module for *failure*."""
        error: Exception = getattr(self._module, failure.kind)(str(failure), request=request)
        return error


@cache
def dialect_of(module: ModuleType) -> Dialect:
    """The classes for *module*, made once."""
    return Dialect(module)


def transport_for(network: Network, pool: Pool, module: ModuleType | None) -> httpx.AsyncBaseTransport:
    """A transport into *network* for clients of *module*, httpx if that is None."""
    dialect = dialect_of(importlib.import_module("httpx") if module is None else module)
    transport: httpx.AsyncBaseTransport = dialect.transport(network, pool, dialect)
    return transport
