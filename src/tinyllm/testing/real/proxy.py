"""A TCP proxy on the loopback, between a real client and a real server, that does what bad networks do.

What was looked at before it was written, on 2026-11-28:

- Toxiproxy is the model for all of these and well kept, but its server is a Go binary that neither PyPI nor
  Debian has; `toxiproxy-python` (2019) and the npm packages are clients for it.
- `faulty` 0.2.1 (2026, alpha) is asyncio too: no reset, no cut at a byte, no partition; no half-close; latency
  holds up the bytes behind it; its randomness has no seed; leaving it abandons its tasks and connections.
- `toxic-proxy` 0.1.0 (2023) and `sloww` 0.1.0 (2025): latency and bandwidth only.
- `netshape` 1.0 (2026) is an HTTP proxy that the client has to know of. mitmproxy is made for reading and
  changing messages, not for breaking connections. `vaurien` ended in 2014.
- Debian has `simpleproxy` and `6tunnel`, without faults, and libfiu, which makes system calls of a process fail
  rather than a network.
"""

from __future__ import annotations

import asyncio
import socket
from types import TracebackType
from typing import Self

from tinyllm.testing.real.connection import KERNEL_BYTES, Connection
from tinyllm.testing.real.lane import Lane
from tinyllm.testing.real.toxics import Cut, Reset, Toxic, ToxicError

__all__ = ["FaultyProxy"]


class FaultyProxy:
    """A proxy on 127.0.0.1 to one server; without toxics it passes everything on, half-closes and resets too.

        async with FaultyProxy("127.0.0.1", server_port) as proxy:
            proxy.begin(Latency(delay_ms=50, direction="down"))
            ...  # the client connects to (proxy.host, proxy.port)
            proxy.heal()

    *upstream_host* is an IP address. *seed* decides the jitter. Leaving the block closes all connections and
    leaves no task behind. To be used in one event loop, and from its thread only.

    A server that refuses is noticed late: the client is accepted first and reset then.
    """

    def __init__(self, upstream_host: str, upstream_port: int, *, seed: int = 0) -> None:
        self.host = "127.0.0.1"
        self._upstream = (upstream_host, upstream_port)
        self._seed = seed
        self._toxics: list[Toxic] = []
        self._up = Lane("up")
        self._down = Lane("down")
        self._connections: dict[int, Connection] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._errors: list[BaseException] = []
        self._accepted = 0
        self._listener: socket.socket | None = None

    @property
    def port(self) -> int:
        """The port to connect to. RuntimeError outside the `async with` block."""
        if self._listener is None:
            raise RuntimeError("a FaultyProxy has a port only inside its `async with` block")
        port: int = self._listener.getsockname()[1]
        return port

    @property
    def url(self) -> str:
        """The same as an HTTP client wants it."""
        return f"http://{self.host}:{self.port}"

    @property
    def toxics(self) -> tuple[Toxic, ...]:
        """What is in force, in the order in which it began."""
        return tuple(self._toxics)

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def begin(self, toxic: Toxic) -> None:
        """Let *toxic* be in force from now on, for open connections and for new ones.

        Raises:
            ToxicError: it is no toxic.
        """
        if not isinstance(toxic, Toxic):
            raise ToxicError(f"a toxic is a Latency, Jitter, Bandwidth, Reset, Cut or Partition, not {toxic!r}")
        self._toxics.append(toxic)
        self._tell()
        if isinstance(toxic, Cut | Reset):
            for connection in self._connections.values():
                connection.begin(toxic)

    def end(self, toxic: Toxic) -> None:
        """Let *toxic* be in force no longer, once if it began twice. Does nothing if it is not in force."""
        if toxic not in self._toxics:
            return
        self._toxics.remove(toxic)
        if isinstance(toxic, Cut | Reset):
            for connection in self._connections.values():
                connection.finish(toxic)
        self._tell()

    def heal(self) -> None:
        """End all toxics. What they held back flows, in order; connections that are gone stay gone."""
        for toxic in self.toxics:
            self.end(toxic)

    def _tell(self) -> None:
        self._up.set(self._toxics)
        self._down.set(self._toxics)

    async def __aenter__(self) -> Self:
        self._listener = socket.socket()
        # Before listen(): accepted sockets inherit it, and the window is agreed on when they connect.
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        self._listener.setblocking(False)
        self._listener.bind((self.host, 0))
        self._listener.listen()
        # A task in sock_accept() could be cancelled between its socket and its next step, and lose the socket.
        asyncio.get_running_loop().add_reader(self._listener, self._accept, self._listener)
        return self

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if self._listener is not None:
            asyncio.get_running_loop().remove_reader(self._listener)
            self._listener.close()
            self._listener = None
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._errors:
            # A bug of the proxy must not pass for a fault.
            raise self._errors[0]

    def _accept(self, listener: socket.socket) -> None:
        try:
            client, _ = listener.accept()
        except BlockingIOError:
            # The client has left again, or the loop has woken us for nothing: both are allowed.
            return
        number = self._accepted
        self._accepted += 1
        connection = Connection(client, self._upstream, self._up, self._down, f"{self._seed}/{number}")
        for toxic in self._toxics:
            if isinstance(toxic, Cut | Reset):
                connection.begin(toxic)
        task = asyncio.create_task(connection.run(), name=f"faulty proxy, connection {number}")
        self._connections[number] = connection
        self._tasks[number] = task
        task.add_done_callback(lambda task: self._ended(number, task))

    def _ended(self, number: int, task: asyncio.Task[None]) -> None:
        del self._tasks[number]
        # Again, because a task that is cancelled before its first step runs no `finally`.
        self._connections.pop(number).close()
        if not task.cancelled() and (error := task.exception()) is not None:
            self._errors.append(error)
