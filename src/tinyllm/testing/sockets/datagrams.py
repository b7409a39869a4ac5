"""Simulated UDP: datagrams arrive each on its own, once, twice, late, out of order or never."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from asyncio.transports import _FlowControlMixin
from collections.abc import Callable
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

from tinyllm.testing.faults import DuplicateChunk, Fault, Latency, LostPacket, ReorderedChunks
from tinyllm.testing.points import Points
from tinyllm.testing.sockets.connections import os_error
from tinyllm.testing.sockets.pipes import Wire
from tinyllm.testing.sockets.streams import SimulatedSocket, end_wait
from tinyllm.testing.tasks import process_of
from tinyllm.testing.units import NS_PER_MS

if TYPE_CHECKING:
    from tinyllm.testing.sockets.names import Names, SocketAddress

__all__ = ["DatagramTransport", "Datagrams"]

#: What fits into one datagram of IPv4.
DATAGRAM_BYTES_MAX: Final = 65_507


class Datagrams:
    """The datagram sockets of all hosts by host and port, and what is under way between them."""

    def __init__(self, wire: Wire, points: Points, names: Names) -> None:
        self._wire = wire
        self._points = points
        self._names = names
        self.bound: dict[tuple[str, int], DatagramTransport] = {}
        # Datagrams that wait for the next one to the same place, by place.
        self._overtaken: dict[tuple[str, int], list[Callable[[int], None]]] = {}

    def send(self, sender: DatagramTransport, data: bytes, to: SocketAddress) -> None:
        """Let *data* travel to an address or a name. Nobody hears what becomes of it."""
        to = (self._names.find(to[0]), to[1])
        target = self._names.host_at(to[0])
        if target is None:
            return
        fault = self._points.strike("datagram", target)
        if isinstance(fault, LostPacket) or self._vanishes(sender.host, target):
            return
        place = (target, to[1])
        source = self._name_seen(sender, to)

        def arrive_in(delay_ns: int) -> None:
            self._wire.later(delay_ns, lambda: self._arrive(sender, source, place, data))

        if isinstance(fault, ReorderedChunks):
            self._overtaken.setdefault(place, []).append(arrive_in)
            return
        delay_ns = self._delay_ns(sender.host, target, len(data), fault)
        delay_ns += self._wire.loop.outside_delay_ns(f"what {sender.host} sends to {target}")
        for arrival in (arrive_in, *self._overtaken.pop(place, ())):
            arrival(delay_ns)
        if isinstance(fault, DuplicateChunk):
            arrive_in(delay_ns)

    def _vanishes(self, source: str, target: str) -> bool:
        links = self._wire.links
        if source == target:
            return False
        return not links.passes(source, target) or links.loses(source, target)

    def _delay_ns(self, source: str, target: str, size_bytes: int, fault: Fault | None) -> int:
        delay_ns = self._wire.links.delay_ns(source, target, size_bytes, self._wire.loop.time_ns)
        return delay_ns + fault.delay_ms * NS_PER_MS if isinstance(fault, Latency) else delay_ns

    def _name_seen(self, sender: DatagramTransport, to: SocketAddress) -> SocketAddress:
        """The address from which a datagram seems to come."""
        return self._names.own_address(sender.host, to[0]), sender.name[1]

    def _arrive(
        self, sender: DatagramTransport, source: SocketAddress, place: tuple[str, int], data: bytes
    ) -> None:
        receiver = self.bound.get(place)
        if receiver is not None:
            receiver.receive(data, source)
        elif self._wire.links.passes(place[0], sender.host):
            delay_ns = self._wire.links.delay_ns(place[0], sender.host, 0, self._wire.loop.time_ns)
            self._wire.later(delay_ns, sender.unreachable)

    def heal(self) -> None:
        """Let those go on that wait to be overtaken."""
        waiting, self._overtaken = self._overtaken, {}
        for arrivals in waiting.values():
            for arrival in arrivals:
                arrival(0)


class DatagramTransport(_FlowControlMixin, asyncio.DatagramTransport):
    """A UDP transport of *host*, bound to *name*, and connected to *peer_name* if that is given."""

    def __init__(
        self,
        datagrams: Datagrams,
        wire: Wire,
        host: str,
        name: SocketAddress,
        peer_name: SocketAddress | None,
        context: Context,
    ) -> None:
        stand_in = SimulatedSocket(socket.SOCK_DGRAM, name, peer_name)
        super().__init__({"socket": stand_in, "sockname": name, "peername": peer_name}, wire.loop)
        self._datagrams = datagrams
        self._wire = wire
        self._context = context
        self._peer_name = peer_name
        self._protocol: Any = None
        self._closing = False
        self.host = host
        self.name = name
        self.process = process_of(context)

    def __repr__(self) -> str:
        return f"<DatagramTransport {self.host}:{self.name[1]} {'closed' if self._closing else 'open'}>"

    def begin(self, protocol: asyncio.BaseProtocol, waiter: asyncio.Future[None]) -> None:
        """Tell *protocol* of its transport, and then let *waiter* go on."""
        self._protocol = protocol
        self._datagrams.bound[self.host, self.name[1]] = self
        self._wire.loop.call_soon(protocol.connection_made, self, context=self._context)
        self._wire.loop.call_soon(end_wait, waiter, context=self._context)

    def _call(self, call: Callable[..., object], *args: Any) -> None:
        self._wire.loop.call_external(call, *args, context=self._context)

    def sendto(self, data: bytes | bytearray | memoryview, addr: Any = None) -> None:
        """Send *data*; without an address to the one the socket is connected to. Names are resolved at once.

        What is longer than 65,507 bytes reaches `error_received` as OSError EMSGSIZE.

        Raises:
            TypeError: it is not bytes-like.
            ValueError: another address than the one the socket is connected to, or none at all.
        """
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"data argument must be a bytes-like object, not {type(data).__name__!r}")
        if self._closing or (not data and sys.version_info < (3, 13)):
            return
        if self._peer_name is not None and addr not in {None, self._peer_name}:
            raise ValueError(f"Invalid address: must be None or {self._peer_name}")
        to = self._peer_name or addr
        if to is None:
            raise ValueError("a datagram needs an address: the socket is connected to none")
        if len(data) > DATAGRAM_BYTES_MAX:
            self._call(self._protocol.error_received, os_error(errno.EMSGSIZE))
            return
        self._datagrams.send(self, bytes(data), to)

    def receive(self, data: bytes, source: SocketAddress) -> None:
        """A datagram has arrived from the address *source*."""
        if self._peer_name is None or self._peer_name == source:
            self._call(self._hand_over, data, source)

    def _hand_over(self, data: bytes, source: SocketAddress) -> None:
        if not self._closing:
            self._protocol.datagram_received(data, source)

    def unreachable(self) -> None:
        """Nobody was there; only a connected socket hears of it."""
        if self._peer_name is not None and not self._closing:
            self._call(self._protocol.error_received, os_error(errno.ECONNREFUSED))

    def get_write_buffer_size(self) -> int:
        """0: a datagram is on its way at once, or lost."""
        return 0

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if self._closing:
            return
        self.vanish()
        self._wire.loop.call_soon(self._protocol.connection_lost, None, context=self._context)

    def abort(self) -> None:
        self.close()

    def vanish(self) -> None:
        """Be bound no more; for a process that has died."""
        self._closing = True
        self._datagrams.bound.pop((self.host, self.name[1]), None)
