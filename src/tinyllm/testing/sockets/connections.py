"""Simulated TCP below the programs: a connection, and its two ends in the kernels of their hosts.

A kernel goes on while its process stands still: it opens connections, takes what arrives up to the receive
window, and sends what is left of a process that closed its sockets. What it tells its process, and when, is
what Linux tells.
"""

from __future__ import annotations

import asyncio
import errno
import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tinyllm.testing.sockets.pipes import Pipe, Segment, Signal, Wire
from tinyllm.testing.tasks import OWNER, Runnable
from tinyllm.testing.units import NS_PER_S

if TYPE_CHECKING:
    from tinyllm.testing.processes import Process
    from tinyllm.testing.sockets.listeners import Listener
    from tinyllm.testing.sockets.names import SocketAddress
    from tinyllm.testing.sockets.streams import StreamTransport

__all__ = ["Connection", "End", "new_connection", "os_error"]

#: So long Linux waits for the answer to an opening.
CONNECT_NS: Final = 127 * NS_PER_S


def os_error(number: int, text: str | None = None) -> OSError:
    """The OSError of *number*, of the class that belongs to it."""
    return OSError(number, text or os.strerror(number))


@dataclass(slots=True, eq=False)
class Connection:
    """A connection from host `source` to host `target`; `owner` is the value of OWNER where it was opened."""

    number: int
    client: End
    server: End
    owner: object
    forget: Callable[[Connection], None]

    @property
    def source(self) -> str:
        return self.client.host

    @property
    def target(self) -> str:
        return self.server.host

    @property
    def ends(self) -> tuple[End, End]:
        return self.client, self.server

    def __repr__(self) -> str:
        return f"<Connection {self.number} {self.client} -> {self.server}>"

    def end_closed(self) -> None:
        """Called when an end has closed; with both gone there is nothing left to carry."""
        if self.client.closed and self.server.closed:
            self.abandon()

    def abandon(self) -> None:
        """Give the connection up, with all that is under way."""
        for end in self.ends:
            end.closed = True
            end.end_patience()
            end.out.close()
        self.forget(self)


class End:
    """One end of a connection, in the kernel of its host. `out` leads to the other end, `into` from there.

    `incoming` has what arrived and was not read; `eof` that the other end has finished, `error` that the
    connection is broken. `closed` says that the process has closed its socket, or is dead, or never had one.
    """

    def __init__(self, wire: Wire, host: str, name: SocketAddress, process: Process | None) -> None:
        self._wire = wire
        self.host = host
        self.name = name
        self.process = process
        self.out: Pipe
        self.into: Pipe
        self.peer: End
        self.connection: Connection
        #: Where a connection that is being opened tells how it went.
        self.opened: asyncio.Future[None] | None = None
        self._patience: Runnable | None = None
        self.on_open: Callable[[], None] | None = None
        self.on_syn: Callable[[], Listener | None] | None = None
        self.listener: Listener | None = None
        self.transport: StreamTransport | None = None
        self.incoming: deque[bytes] = deque()
        self.eof = False
        self.error: OSError | None = None
        self.closed = False
        self._established = False
        self._finished = False
        #: After so many more bytes the connection breaks: a fault.
        self.cut_bytes: int | None = None

    def __repr__(self) -> str:
        return f"{self.host}:{self.name[1]}"

    # --- what arrives --------------------------------------------------------------------------------

    def receive(self, segment: Segment) -> None:
        """Take what comes out of the pipe."""
        if isinstance(segment, bytes):
            self._receive_data(segment)
        elif segment is Signal.FIN:
            self._receive_fin()
        elif segment is Signal.RST:
            self._receive_reset()
        else:
            self._shake_hands(segment)

    def _shake_hands(self, signal: Signal) -> None:
        if signal is Signal.SYN:
            self.listener = None if self.on_syn is None else self.on_syn()
            if self.listener is None:
                self.out.send(Signal.RST)
                return
            self.process = self.listener.process
            self.out.send(Signal.SYN_ACK)
        elif signal is Signal.SYN_ACK:
            self._established = True
            self.out.send(Signal.ACK)
            if self.on_open is not None:
                self.on_open()
            self._tell_opened(None)
        elif self.listener is not None:
            self._established = True
            self.listener.accept(self)

    def open(self, extra_ns: int) -> asyncio.Future[None]:
        """Begin to open the connection, which takes *extra_ns* longer than the link says.

        The future tells how it went: ConnectionRefusedError, or TimeoutError after 127 s without an answer.
        """
        self.opened = self._wire.loop.create_future()
        self._patience = self._wire.later(CONNECT_NS, self.stalled)
        self.out.send(Signal.SYN, extra_ns)
        return self.opened

    def end_patience(self) -> None:
        """Wait no longer for an answer to the opening."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _tell_opened(self, error: OSError | None) -> bool:
        """Tell whoever waits for the opening; whether anybody did."""
        self.end_patience()
        opened, self.opened = self.opened, None
        if opened is None or opened.done():
            return False
        if error is None:
            opened.set_result(None)
        else:
            opened.set_exception(error)
        return True

    def _receive_data(self, data: bytes) -> None:
        if self.cut_bytes is not None:
            if len(data) >= self.cut_bytes:
                self._cut(data)
                return
            self.cut_bytes -= len(data)
        if self.closed or self.error is not None:
            self._refuse()
            return
        self.incoming.append(data)
        self._wake()

    def _receive_fin(self) -> None:
        if self.cut_bytes is not None and not self.cut_bytes:
            self._cut(b"")
            return
        self.eof = True
        self._wake()

    def _cut(self, data: bytes) -> None:
        """Break the connection within *data*, for both ends."""
        if rest := data[: self.cut_bytes]:
            self.incoming.append(rest)
        self.cut_bytes = None
        self._refuse()
        self._receive_reset()

    def _receive_reset(self) -> None:
        if self._tell_opened(os_error(errno.ECONNREFUSED)):
            return
        # As Linux has it: who has been told that the other end is finished hears of a broken pipe.
        self._break(os_error(errno.EPIPE if self.eof else errno.ECONNRESET))

    def _break(self, error: OSError) -> None:
        if self.error is not None:
            return
        self.error = error
        if self._established:
            self._wake()  # or, before there is a transport, who gets one finds the error
        else:
            self._close()  # nobody will know that it ever was

    def stalled(self) -> None:
        """What was sent could not get across for so long that the connection is given up."""
        if not self._tell_opened(os_error(errno.ETIMEDOUT)):
            self._break(os_error(errno.ETIMEDOUT))

    def _wake(self) -> None:
        if self.transport is not None:
            self.transport.notice()

    # --- what the process does -----------------------------------------------------------------------

    def take(self, size_bytes: int) -> bytes:
        """Give out what has arrived, at most so many bytes."""
        data = self.incoming.popleft() if len(self.incoming) == 1 else b"".join(self.incoming)
        if len(self.incoming) > 1:
            self.incoming.clear()
        if len(data) > size_bytes:
            self.incoming.appendleft(data[size_bytes:])
            data = data[:size_bytes]
        self.into.taken(len(data))
        return data

    def send(self, data: bytes | bytearray | memoryview) -> int:
        """Send as much of *data* as there is room for; tell how much."""
        room_bytes = self.out.room_bytes
        if room_bytes <= 0:
            return 0
        if type(data) is not bytes or len(data) > room_bytes:
            data = bytes(memoryview(data)[:room_bytes])
        self.out.send(data)
        return len(data)

    def finish(self) -> None:
        """Send the end of this direction; the other one goes on. Does nothing the second time."""
        if self.error is None and not self._finished:
            self._finished = True
            self.out.send(Signal.FIN)

    def close(self) -> None:
        """The process has closed its socket.

        Closing with something unread breaks the connection, as everywhere: the other end must not believe
        that it was read.
        """
        if self.incoming:
            self._refuse()
        else:
            self.finish()
        self._close()

    def die(self) -> None:
        """The host has lost power: what is under way arrives, and then the other end is told."""
        if not self.closed:
            self.out.lose_held()
            self.transport = None
            self.opened = None
            self.end_patience()
            self.reject()

    def reject(self) -> None:
        """Break the connection."""
        self._refuse()
        self._close()

    def _refuse(self) -> None:
        self.out.send(Signal.RST)

    def _close(self) -> None:
        self.closed = True
        self.incoming.clear()
        self.connection.end_closed()


def new_connection(
    wire: Wire, number: int, client: End, server: End, forget: Callable[[Connection], None]
) -> Connection:
    """Join two ends. Nothing is sent yet."""
    there = Pipe(wire, client.host, server.host, server.receive, client.stalled)
    back = Pipe(wire, server.host, client.host, client.receive, server.stalled)
    client.out = server.into = there
    client.into = server.out = back
    client.peer, server.peer = server, client
    connection = Connection(number, client, server, OWNER.get(), forget)
    client.connection = server.connection = connection
    return connection
