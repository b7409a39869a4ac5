"""Who accepts connections: listening sockets of simulated hosts, and the server object that asyncio gives out.

A listener belongs to the process that made it, and so does every connection that it accepts: protocols are
made and called in a copy of the context in which the server was created.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any

from tinyllm.testing.sockets.connections import End
from tinyllm.testing.sockets.pipes import Wire
from tinyllm.testing.sockets.streams import SimulatedSocket, StreamTransport
from tinyllm.testing.tasks import process_of

if TYPE_CHECKING:
    from tinyllm.testing.sockets.names import SocketAddress

__all__ = ["Listener", "SimulatedServer"]


class Listener:
    """A bound socket of one host at `name`, an address and a port. It refuses until it is `listening`."""

    def __init__(self, wire: Wire, host: str, name: SocketAddress, context: Context) -> None:
        self._wire = wire
        self._context = context
        self.host = host
        self.name = name
        self.process = process_of(context)
        self.listening = False
        self.closed = False
        self.server: SimulatedServer

    def accept(self, end: End) -> None:
        """A connection is open; let the process know when it next runs."""
        self._wire.loop.call_external(self._accept, end, context=self._context)

    def _accept(self, end: End) -> None:
        if end.closed:
            return
        if self.closed:
            end.reject()
            return
        try:
            protocol = self.server.make_protocol()
        except Exception as error:  # noqa: BLE001 - it goes to the exception handler
            message = "Error on transport creation for incoming connection"
            self._wire.loop.call_exception_handler({"message": message, "exception": error})
            end.reject()
            return
        StreamTransport(self._wire, end, self._context.copy(), self.server).begin(protocol)


class SimulatedServer(asyncio.AbstractServer):
    """What `create_server` gives: as asyncio's own, of the Python that runs it.

    Up to Python 3.11 `wait_closed` returned at once after `close`; since then it waits for the connections.
    """

    def __init__(
        self,
        loop: Any,
        listeners: list[Listener],
        make_protocol: Callable[[], asyncio.BaseProtocol],
        release: Callable[[Listener], None],
    ) -> None:
        self.make_protocol = make_protocol
        self._loop = loop
        self._listeners = listeners
        self._release = release
        self._transports: dict[StreamTransport, None] = {}
        self._waiters: list[asyncio.Future[None]] = []
        self._closed = False
        self._serving = False
        self._forever: asyncio.Future[None] | None = None
        for listener in listeners:
            listener.server = self

    def __repr__(self) -> str:
        return f"<SimulatedServer {' '.join(map(repr, self.sockets)) or 'closed'}>"

    @property
    def sockets(self) -> tuple[SimulatedSocket, ...]:
        """A stand-in for each listening socket; none when closed."""
        return tuple(SimulatedSocket(socket.SOCK_STREAM, listener.name) for listener in self._listeners)

    def get_loop(self) -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = self._loop
        return loop

    def is_serving(self) -> bool:
        return self._serving

    def attach(self, transport: StreamTransport) -> None:
        """Called by each transport of this server when it begins."""
        self._transports[transport] = None

    def detach(self, transport: StreamTransport) -> None:
        """Called by each transport of this server when its protocol has been told of the end."""
        del self._transports[transport]
        self._wake_waiters()

    def serve(self) -> None:
        """Begin to accept connections. Does nothing if it does already."""
        self._serving = not self._closed
        for listener in self._listeners:
            listener.listening = True

    async def start_serving(self) -> None:
        self.serve()
        await asyncio.sleep(0)

    async def serve_forever(self) -> None:
        """Serve until cancelled, and then close.

        Raises:
            RuntimeError: somebody does it already, or the server is closed.
        """
        if self._forever is not None:
            raise RuntimeError(f"server {self!r} is already being awaited on serve_forever()")
        if self._closed:
            raise RuntimeError(f"server {self!r} is closed")
        self.serve()
        self._forever = self._loop.create_future()
        try:
            await self._forever
        except asyncio.CancelledError:
            self.close()
            await self.wait_closed()
            raise
        finally:
            self._forever = None

    def close(self) -> None:
        """Accept no more connections; those that are open go on. Does nothing the second time."""
        if self._closed:
            return
        self._closed = True
        self._serving = False
        for listener in self._listeners:
            self._release(listener)
        self._listeners = []
        if self._forever is not None and not self._forever.done():
            self._forever.cancel()
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        if self._closed and not self._transports:
            waiters, self._waiters = self._waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(None)

    async def wait_closed(self) -> None:
        if self._closed and (not self._transports or sys.version_info < (3, 12)):
            return
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.append(waiter)
        await waiter

    if sys.version_info >= (3, 13):

        def close_clients(self) -> None:
            """Close the connections, the oldest first."""
            for transport in list(self._transports):
                transport.close()

        def abort_clients(self) -> None:
            """Break the connections, the oldest first."""
            for transport in list(self._transports):
                transport.abort()
