"""Streams of the simulated world: the transport that a program holds of a TCP connection.

It acts as that of asyncio's selector loop does, in the context of the process that connected or listened.

TCP keeps no boundaries: a reader gets all that has arrived since it last looked, in one piece, and may get
two writes as one, or one as several.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from asyncio.transports import _FlowControlMixin
from collections.abc import Callable, Iterable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from tinyllm.testing.sockets.connections import End, os_error
from tinyllm.testing.sockets.pipes import Wire

if TYPE_CHECKING:
    from tinyllm.testing.sockets.listeners import SimulatedServer
    from tinyllm.testing.sockets.names import SocketAddress

__all__ = ["SimulatedSocket", "StreamTransport", "end_wait"]

#: What asyncio reads at once.
_READ_BYTES: Final = 256 * 1024


class SimulatedSocket:
    """What stands in for `transport.get_extra_info("socket")`: it has addresses and options, and no descriptor."""

    family: Final = socket.AF_INET

    def __init__(self, kind: socket.SocketKind, name: SocketAddress, peer_name: SocketAddress | None = None) -> None:
        self.type = kind
        self.proto = socket.IPPROTO_TCP if kind == socket.SOCK_STREAM else socket.IPPROTO_UDP
        self._name = name
        self._peer_name = peer_name
        self._options: dict[tuple[int, int], Any] = {}

    def __repr__(self) -> str:
        return f"<SimulatedSocket {self._name[0]}:{self._name[1]}>"

    def fileno(self) -> int:
        """-1, as of a closed socket: there is no descriptor."""
        return -1

    def getsockname(self) -> SocketAddress:
        return self._name

    def getpeername(self) -> SocketAddress:
        if self._peer_name is None:
            raise os_error(errno.ENOTCONN)
        return self._peer_name

    def setsockopt(self, level: int, name: int, value: Any) -> None:
        """Remember an option. None has an effect: there is no Nagle, no keep-alive."""
        self._options[level, name] = value

    def getsockopt(self, level: int, name: int) -> Any:
        """What was set, 0 at first."""
        return self._options.get((level, name), 0)


class StreamTransport(_FlowControlMixin):
    """A TCP transport. It acts as that of asyncio's selector loop; flow control is asyncio's own code.

    Every call of the protocol happens in *context*, and so belongs to its process.
    """

    # Of the base class, which its stub does not tell.
    _maybe_pause_protocol: Callable[[], None]
    _maybe_resume_protocol: Callable[[], None]

    def __init__(self, wire: Wire, end: End, context: Context, server: SimulatedServer | None = None) -> None:
        stand_in = SimulatedSocket(socket.SOCK_STREAM, end.name, end.peer.name)
        super().__init__({"socket": stand_in, "sockname": end.name, "peername": end.peer.name}, wire.loop)
        self._wire = wire
        self._end = end
        self._context = context
        self._server = server
        self._protocol: Any = None
        self._buffer = bytearray()
        self._closing = False
        self._lost = False
        self._paused = False
        self._begun = False
        self._finished = False
        self._eof_seen = False
        self._noticed = False

    def __repr__(self) -> str:
        state = "closed" if self._lost else "closing" if self._closing else "open"
        return f"<StreamTransport {self._end} -> {self._end.peer} {state}>"

    def begin(self, protocol: asyncio.BaseProtocol, waiter: asyncio.Future[None] | None = None) -> None:
        """Tell *protocol* of its connection, let *waiter* go on, and begin to read.

        None of it comes from outside: that the connection is open did, and has woken whoever calls this. So
        no data arrives before *waiter* goes on, whatever the schedule: with asyncio it never does.
        """
        self.set_protocol(protocol)
        self._end.transport = self
        self._end.out.on_room = self._flush
        self._end.out.room_context = self._context
        if self._server is not None:
            self._server.attach(self)
        loop = self._wire.loop
        loop.call_soon(protocol.connection_made, self, context=self._context)
        if waiter is not None:
            loop.call_soon(end_wait, waiter, context=self._context)
        loop.call_soon(self._begin_reading, context=self._context)

    def _begin_reading(self) -> None:
        self._begun = True
        self.notice()

    # --- reading -------------------------------------------------------------------------------------

    def notice(self) -> None:
        """Have the process look at its socket, if it would see anything there."""
        if not self._noticed and not self._lost and self._has_news():
            self._noticed = True
            self._wire.loop.call_external(self._look, context=self._context)

    def _has_news(self) -> bool:
        end = self._end
        if end.error is not None and self._buffer:
            return True
        if not self._begun or not self.is_reading() or self._eof_seen:
            return False
        return bool(end.incoming) or end.eof or end.error is not None

    def _look(self) -> None:
        self._noticed = False
        end = self._end
        if self._lost or not self._has_news():
            return
        if end.error is not None and self._buffer:
            self._fail(end.error, "Fatal write error on socket transport")
        elif end.incoming:
            self._read()
        elif end.eof:
            self._read_eof()
        elif end.error is not None:
            self._fail(end.error, "Fatal read error on socket transport")
        self.notice()

    def _read(self) -> None:
        step = "data_received()"
        try:
            if isinstance(self._protocol, asyncio.BufferedProtocol):
                step = "get_buffer()"
                buffer = memoryview(self._protocol.get_buffer(-1))
                if not buffer:
                    raise RuntimeError("get_buffer() returned an empty buffer")
                data = self._end.take(buffer.nbytes)
                buffer[: len(data)] = data
                step = "buffer_updated()"
                self._protocol.buffer_updated(len(data))
            else:
                self._protocol.data_received(self._end.take(_READ_BYTES))
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - it goes to the exception handler
            self._fail(error, f"Fatal error: protocol.{step} call failed.")

    def _read_eof(self) -> None:
        self._eof_seen = True
        try:
            keep_open = self._protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - it goes to the exception handler
            self._fail(error, "Fatal error: protocol.eof_received() call failed.")
            return
        if not keep_open:
            self.close()

    def is_reading(self) -> bool:
        return not self._closing and not self._paused

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        if not self._closing and self._paused:
            self._paused = False
            self.notice()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    # --- writing -------------------------------------------------------------------------------------

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send *data*, or keep what the receive window has no room for. Does nothing once the connection is lost.

        Raises:
            TypeError: it is not bytes-like.
            RuntimeError: it comes after write_eof.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._finished:
            raise RuntimeError("Cannot call write() after write_eof()")
        if isinstance(data, memoryview):
            data = data.cast("B") if data.contiguous else data.tobytes()
        if not data or self._lost:
            return
        if not self._buffer:
            if self._end.error is not None:
                self._fail(self._end.error, "Fatal write error on socket transport")
                return
            sent_bytes = self._end.send(data)
            if sent_bytes == len(data):
                return
            data = memoryview(data)[sent_bytes:]
        self._buffer += data
        self._end.out.wanted = True
        self._maybe_pause_protocol()

    def writelines(self, list_of_data: Iterable[bytes | bytearray | memoryview]) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if self._closing or self._finished:
            return
        self._finished = True
        if not self._buffer:
            self._end.finish()

    def get_write_buffer_size(self) -> int:
        return len(self._buffer)

    def _flush(self) -> None:
        """There is room again."""
        if self._lost or self._end.error is not None:
            return
        del self._buffer[: self._end.send(self._buffer)]
        self._end.out.wanted = bool(self._buffer)
        self._maybe_resume_protocol()
        if self._buffer:
            return
        if self._closing:
            self._lost = True
            self._call_connection_lost(None)
        elif self._finished:
            self._end.finish()

    # --- the end -------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        # What ended with its process or its loop is closed: a StreamWriter asks when it is collected, and the
        # moment of that must mean nothing. Leaks are found in `SocketNetwork.connections`.
        return self._closing or self._end.closed or self._wire.loop.is_closed()

    def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        if not self._buffer:
            self._lost = True
            self._wire.loop.call_soon(self._call_connection_lost, None, context=self._context)

    def abort(self) -> None:
        self._lose(None)

    def _lose(self, error: BaseException | None) -> None:
        if self._lost:
            return
        self._buffer.clear()
        self._closing = self._lost = True
        call = self._wire.loop.call_soon if error is None else self._wire.loop.call_external
        call(self._call_connection_lost, error, context=self._context)

    def _fail(self, error: BaseException, message: str) -> None:
        if not isinstance(error, OSError):
            context = {"message": message, "exception": error, "transport": self, "protocol": self._protocol}
            self._wire.loop.call_exception_handler(context)
        self._lose(error)

    def _call_connection_lost(self, error: BaseException | None) -> None:
        try:
            self._protocol.connection_lost(error)
        finally:
            self._end.close()
            self._protocol = None
            if self._server is not None:
                self._server.detach(self)
                self._server = None


def end_wait(waiter: asyncio.Future[None]) -> None:
    """Let whoever waits for *waiter* go on, if anybody still does."""
    if not waiter.done():
        waiter.set_result(None)
