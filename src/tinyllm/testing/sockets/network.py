"""The network as programs see it: what `asyncio.open_connection`, `start_server` and datagrams reach.

`SimulatedLoop` sends the methods of asyncio that need a network here, when its `network` is set. Everything
stays inside the world: hosts have names and addresses, ports are given out in order, and what arrives comes
through `call_external`, so that a schedule may let the wake-ups it causes wait. Unix sockets, sockets of
one's own and TLS do not exist here; the loop's errors say what to use instead.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import Callable, Container, Iterable, Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final

from tinyllm.testing.faults import Fault, Latency, LostPacket, ReadTimeout, Refused, Reset, SlowDrip
from tinyllm.testing.fences import TLS
from tinyllm.testing.links import RESEND_NS, Links
from tinyllm.testing.loop_errors import FencedError
from tinyllm.testing.points import Points
from tinyllm.testing.processes import Host, Process, current_host
from tinyllm.testing.sockets.connections import Connection, End, new_connection, os_error
from tinyllm.testing.sockets.datagrams import Datagrams, DatagramTransport
from tinyllm.testing.sockets.listeners import Listener, SimulatedServer
from tinyllm.testing.sockets.names import ANY_ADDRESS, Names, SocketAddress
from tinyllm.testing.sockets.pipes import Wire
from tinyllm.testing.sockets.streams import StreamTransport
from tinyllm.testing.tasks import OWNER, PROCESS, Nobody, current_process
from tinyllm.testing.units import NS_PER_MS

if TYPE_CHECKING:
    from tinyllm.testing.loop import SimulatedLoop

__all__ = ["SocketNetwork"]

_FIRST_FREE_PORT: Final = 49_152
_LAST_PORT: Final = 65_535
_NO_SOCKET: Final = "name a host and a port; the world makes the sockets"


class SocketNetwork:
    """TCP, UDP and names between *hosts*, over *links*, with the faults of *points*.

    *hosts* may grow while the world lives. `window_bytes` is what a kernel takes for a reader that does not
    read; what is written beyond it stays in the writer's buffer.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        links: Links,
        points: Points,
        hosts: Mapping[str, Host],
        *,
        window_bytes: int = 64 * 1024,
    ) -> None:
        if window_bytes < 1:
            raise ValueError(f"window_bytes must be 1 or more, not {window_bytes}")
        self._loop = loop
        self._points = points
        self._window_bytes = window_bytes
        self._hosts = hosts
        self._wire = Wire(loop, links, _context_of_nobody(), self._window_of)
        self._names = Names(self._wire, points, hosts)
        self._datagrams = Datagrams(self._wire, points, self._names)
        self._listeners: dict[tuple[str, int], list[Listener]] = {}
        self._live: dict[int, Connection] = {}
        self._opened = 0
        self._next_ports: dict[str, int] = {}
        self._watched: set[str] = set()
        links.changed.append(self._kick)

    @property
    def connections(self) -> list[Connection]:
        """The connections that are open at one end at least, in the order of opening."""
        return list(self._live.values())

    def heal(self) -> None:
        """End what faults of one moment still do: who is silent speaks, what drips flows, nothing breaks later."""
        for connection in self.connections:
            for end in connection.ends:
                end.cut_bytes = None
                end.out.flow()
        self._datagrams.heal()

    def _kick(self) -> None:
        for connection in self.connections:
            for end in connection.ends:
                end.out.kick()

    # --- names ---------------------------------------------------------------------------------------

    async def getaddrinfo(self, host: Any, port: Any, **hints: int) -> list[Any]:
        """As `Names.getaddrinfo`."""
        return list(await self._names.getaddrinfo(host, port, **hints))

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> tuple[str, str]:
        """As `Names.getnameinfo`."""
        return await self._names.getnameinfo(sockaddr, flags)

    # --- connecting ----------------------------------------------------------------------------------

    async def create_connection(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        ssl: Any = None,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        sock: Any = None,
        local_addr: Any = None,
        server_hostname: str | None = None,
        **_tuning: Any,
    ) -> tuple[StreamTransport, Any]:
        """Connect to a host of the world, by name or address.

        Raises:
            FencedError: TLS, or a socket of one's own.
            ConnectionRefusedError: nobody listens there, or the host is down.
            TimeoutError: no answer within 127 s.
            OSError: EHOSTUNREACH, no host has the address; EADDRNOTAVAIL, *local_addr* is none of one's own.
            socket.gaierror: as `Names.getaddrinfo`.
        """
        self._refuse_tls(ssl, server_hostname)
        self._refuse_socket(sock)
        if host is None and port is None:
            raise ValueError("host and port was not specified and no sock specified")
        infos = await self._names.getaddrinfo(
            host, port, family=family, type=socket.SOCK_STREAM, proto=proto, flags=flags
        )
        client = await self._connect(infos[0][4], await self._local_name(local_addr))
        try:
            protocol = protocol_factory()
        except BaseException:
            client.close()
            raise
        transport = StreamTransport(self._wire, client, copy_context())
        await self._begin(transport, protocol)
        return transport, protocol

    async def _local_name(self, local_addr: Any) -> SocketAddress | None:
        if local_addr is None:
            return None
        infos = await self._names.getaddrinfo(local_addr[0], local_addr[1], type=socket.SOCK_STREAM)
        self._check_own(infos[0][4])
        return infos[0][4]

    async def _connect(self, to: SocketAddress, local_name: SocketAddress | None) -> End:
        here = current_host()
        there = self._names.host_at(to[0])
        if there is None:
            raise os_error(errno.EHOSTUNREACH, f"Connect call failed {to}")
        process = current_process()
        self._watch(process)
        address, port = local_name or (self._names.own_address(here, to[0]), 0)
        client = End(self._wire, here, (address, port or self._free_port(here, ())), process)
        server = End(self._wire, there, to, None)
        self._opened += 1
        connection = new_connection(self._wire, self._opened, client, server, self._forget)
        self._live[connection.number] = connection
        fault = self._points.strike("connection", there)
        server.on_syn = lambda: None if isinstance(fault, Refused) else self._listener(there, to)
        client.on_open = lambda: _afflict(client, fault)
        opened = client.open(_extra_ns(fault))
        try:
            await opened
        except BaseException as error:
            if not opened.cancelled() and opened.exception() is None:
                client.close()  # it was open already: the other end has heard of it
            else:
                connection.abandon()
            if isinstance(error, OSError):
                raise os_error(error.errno or 0, f"Connect call failed {to}") from None
            raise
        return client

    def _window_of(self, host: str) -> int:
        """The receive window of *host*."""
        machine = self._hosts.get(host)
        return self._window_bytes if machine is None else machine.window(self._window_bytes)

    def _forget(self, connection: Connection) -> None:
        self._live.pop(connection.number, None)

    def _listener(self, host: str, to: SocketAddress) -> Listener | None:
        """Who listens at an address of *host*."""
        for listener in self._listeners.get((host, to[1]), ()):
            if listener.listening and listener.name[0] in {ANY_ADDRESS, to[0]}:
                return listener
        return None

    # --- listening -----------------------------------------------------------------------------------

    async def create_server(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        host: Any = None,
        port: Any = None,
        *,
        family: int = 0,
        flags: int = socket.AI_PASSIVE,
        sock: Any = None,
        ssl: Any = None,
        start_serving: bool = True,
        **_tuning: Any,
    ) -> SimulatedServer:
        """Listen on the caller's own host; without *host* on all its addresses. Port 0 is the next free one.

        Any number of connections may wait to be accepted.

        Raises:
            FencedError: TLS, or a socket of one's own.
            OSError: EADDRINUSE, somebody has the port; EADDRNOTAVAIL, the address is none of one's own.
            socket.gaierror: as `Names.getaddrinfo`.
        """
        self._refuse_tls(ssl, None)
        self._refuse_socket(sock)
        names = [host] if host is None or isinstance(host, str | bytes) else list(host)
        addresses: dict[SocketAddress, None] = {}
        for name in names:
            infos = await self._names.getaddrinfo(
                name, port, family=family, type=socket.SOCK_STREAM, flags=flags
            )
            addresses[infos[0][4]] = None
        server = SimulatedServer(self._loop, self._bind_all(addresses), protocol_factory, self._release)
        if start_serving:
            server.serve()
            # asyncio skips an iteration here, too.
            await asyncio.sleep(0)
        return server

    def _bind_all(self, names: Iterable[SocketAddress]) -> list[Listener]:
        bound: list[Listener] = []
        try:
            for name in names:
                bound.append(self._bind(name))  # noqa: PERF401 - those before a failure must be released
        except OSError:
            for listener in bound:
                self._release(listener)
            raise
        return bound

    def _bind(self, name: SocketAddress) -> Listener:
        here = current_host()
        self._check_own(name)
        self._watch(current_process())
        port = name[1] or self._free_port(here, self._listeners)
        others = self._listeners.setdefault((here, port), [])
        if any(ANY_ADDRESS in {name[0], other.name[0]} or name[0] == other.name[0] for other in others):
            raise _cannot_bind(errno.EADDRINUSE, (name[0], port))
        listener = Listener(self._wire, here, (name[0], port), copy_context())
        others.append(listener)
        return listener

    def _release(self, listener: Listener) -> None:
        listener.closed = True
        listener.listening = False
        others = self._listeners.get((listener.host, listener.name[1]), [])
        if listener in others:
            others.remove(listener)
        if not others:
            self._listeners.pop((listener.host, listener.name[1]), None)

    # --- datagrams -----------------------------------------------------------------------------------

    async def create_datagram_endpoint(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        local_addr: Any = None,
        remote_addr: Any = None,
        *,
        family: int = 0,
        proto: int = 0,
        flags: int = 0,
        sock: Any = None,
        **_tuning: Any,
    ) -> tuple[DatagramTransport, Any]:
        """Open a datagram socket; without *local_addr* it is bound to the next free port at once.

        Raises:
            FencedError: a socket of one's own.
            OSError: EADDRINUSE, EADDRNOTAVAIL as `create_server`.
            ValueError: neither an address nor a family.
            socket.gaierror: as `Names.getaddrinfo`.
        """
        self._refuse_socket(sock)
        if not (local_addr or remote_addr or family):
            raise ValueError("unexpected address family")
        hints: dict[str, Any] = {"family": family, "proto": proto, "flags": flags, "type": socket.SOCK_DGRAM}
        local = (await self._names.getaddrinfo(*local_addr[:2], **hints))[0][4] if local_addr else (ANY_ADDRESS, 0)
        peer = (await self._names.getaddrinfo(*remote_addr[:2], **hints))[0][4] if remote_addr else None
        transport = self._bind_datagrams(local, peer)
        protocol = protocol_factory()
        await self._begin(transport, protocol)
        return transport, protocol

    def _bind_datagrams(self, name: SocketAddress, peer: SocketAddress | None) -> DatagramTransport:
        here = current_host()
        self._check_own(name)
        self._watch(current_process())
        address, port = name[0], name[1] or self._free_port(here, self._datagrams.bound)
        if (here, port) in self._datagrams.bound:
            raise _cannot_bind(errno.EADDRINUSE, (address, port))
        if peer is not None and address == ANY_ADDRESS:
            address = self._names.own_address(here, peer[0])
        return DatagramTransport(self._datagrams, self._wire, here, (address, port), peer, copy_context())

    # --- what all have in common ---------------------------------------------------------------------

    async def _begin(self, transport: StreamTransport | DatagramTransport, protocol: Any) -> None:
        """Tell *protocol* of its transport, which is closed if nobody waits for that any more."""
        begun: asyncio.Future[None] = self._loop.create_future()
        transport.begin(protocol, begun)
        try:
            await begun
        except BaseException:
            transport.close()
            raise

    def _free_port(self, host: str, taken: Container[tuple[str, int]]) -> int:
        """The next port of *host* that is not taken. Each port is given out once before the first comes again."""
        for _ in range(_FIRST_FREE_PORT, _LAST_PORT + 1):
            port = self._next_ports.get(host, _FIRST_FREE_PORT)
            self._next_ports[host] = _FIRST_FREE_PORT if port == _LAST_PORT else port + 1
            if (host, port) not in taken:
                return port
        raise os_error(errno.EADDRINUSE)

    def _check_own(self, name: SocketAddress) -> None:
        own = name[0] in {ANY_ADDRESS, self._names.address_of(current_host())}
        if not own and not name[0].startswith("127."):
            raise _cannot_bind(errno.EADDRNOTAVAIL, name)

    def _watch(self, process: Process | None) -> None:
        """Hear of the crashes of the host that *process* is a life of."""
        if process is not None and process.host.name not in self._watched:
            self._watched.add(process.host.name)
            process.host.on_crash.append(self._crashed)

    def _crashed(self, process: Process) -> None:
        """Close all sockets of a process that has died; nothing is called in it."""
        listeners = [one for others in self._listeners.values() for one in others]
        for listener in listeners:
            if listener.process is process:
                self._release(listener)
        for transport in list(self._datagrams.bound.values()):
            if transport.process is process:
                transport.vanish()
        for connection in self.connections:
            for end in connection.ends:
                if end.process is process:
                    end.die()

    def _refuse_tls(self, ssl: Any, server_hostname: str | None) -> None:
        if ssl:
            raise FencedError("TLS", TLS)
        if server_hostname is not None:
            raise ValueError("server_hostname is only meaningful with ssl")

    def _refuse_socket(self, sock: Any) -> None:
        if sock is not None:
            raise FencedError("a socket of one's own", _NO_SOCKET)


def _context_of_nobody() -> Context:
    """A context that belongs to no process and to no owner."""
    context = copy_context()
    context.run(PROCESS.set, Nobody.NOBODY)
    context.run(OWNER.set, None)
    return context


def _cannot_bind(number: int, name: SocketAddress) -> OSError:
    error = os_error(number)
    text = (error.strerror or "").lower()
    return os_error(number, f"error while attempting to bind on address {name!r}: {text}")


def _extra_ns(fault: Fault | None) -> int:
    """How much longer a fault lets the opening take."""
    if isinstance(fault, Latency):
        return fault.delay_ms * NS_PER_MS
    return RESEND_NS if isinstance(fault, LostPacket) else 0


def _afflict(client: End, fault: Fault | None) -> None:
    """Let a fault have what the server sends from here on."""
    if isinstance(fault, Reset):
        client.cut_bytes = fault.after_bytes
    elif isinstance(fault, ReadTimeout):
        client.into.silent = True
    elif isinstance(fault, SlowDrip):
        client.into.drip = fault
