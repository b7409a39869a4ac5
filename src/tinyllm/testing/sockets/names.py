"""The name service of the world: names of hosts, their addresses, and what every host calls itself.

Names are those of the simulated hosts, addresses theirs (IPv4 only). `localhost`, 127.0.0.1 and no name at
all mean the host that asks.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from tinyllm.testing.faults import DnsFailure, Latency
from tinyllm.testing.links import folded_name
from tinyllm.testing.points import Points
from tinyllm.testing.processes import Host, current_host
from tinyllm.testing.sockets.streams import end_wait
from tinyllm.testing.units import NS_PER_MS

if TYPE_CHECKING:
    from tinyllm.testing.sockets.pipes import Wire

__all__ = ["ANY_ADDRESS", "LOOPBACK", "AddressInfo", "Names", "SocketAddress"]

SocketAddress = tuple[str, int]
AddressInfo = tuple[socket.AddressFamily, socket.SocketKind, int, str, SocketAddress]

LOOPBACK: Final = "127.0.0.1"
ANY_ADDRESS: Final = "0.0.0.0"
#: Of a program that belongs to no host of the world.
_HOMELESS_ADDRESS: Final = "10.255.255.254"

_SERVICES: Final[Mapping[str, int]] = {"http": 80, "https": 443}
_KINDS: Final = (
    (socket.SOCK_STREAM, socket.IPPROTO_TCP),
    (socket.SOCK_DGRAM, socket.IPPROTO_UDP),
)


class Names:
    """Who is called what. *hosts* may grow while the world lives."""

    def __init__(self, wire: Wire, points: Points, hosts: Mapping[str, Host]) -> None:
        self._wire = wire
        self._points = points
        self._hosts = hosts

    def address_of(self, host: str) -> str:
        """The address of a host, by its name."""
        known = self._hosts.get(host)
        return _HOMELESS_ADDRESS if known is None else known.address

    def own_address(self, host: str, peer_address: str) -> str:
        """The address that *host* has on the way to another."""
        return LOOPBACK if peer_address.startswith("127.") else self.address_of(host)

    def host_at(self, address: str) -> str | None:
        """The name of the host at *address*, as the running code sees it; None if nobody is there."""
        here = current_host()
        if address in {ANY_ADDRESS, self.address_of(here)} or address.startswith("127."):
            return here
        return next((name for name, host in self._hosts.items() if host.address == address), None)

    def find(self, name: str) -> str:
        """The address of what is called *name*: a literal address is its own.

        Raises:
            socket.gaierror: EAI_NONAME, nobody is called so; EAI_FAMILY, it is an address of IPv6.
        """
        if (address := _literal(name)) is not None:
            return address
        if name == "localhost":
            return LOOPBACK
        host = self._called(name)
        if host is None:
            raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {name!r}")
        return self.address_of(host)

    def _called(self, name: str) -> str | None:
        here = current_host()
        for host in (*self._hosts, here):
            if folded_name(host) == folded_name(name):
                return host
        return None

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,  # noqa: A002 - the name in asyncio
        proto: int = 0,
        flags: int = 0,
    ) -> list[AddressInfo]:
        """What `socket.getaddrinfo` gives: one entry per kind of socket. A name is looked up at the point "lookup".

        Raises:
            socket.gaierror: nobody is called so (EAI_NONAME), a fault struck (EAI_AGAIN), only IPv4 is spoken
                here (EAI_FAMILY), or there is no such port (EAI_SERVICE).
        """
        if family not in {socket.AF_UNSPEC, socket.AF_INET}:
            raise socket.gaierror(socket.EAI_FAMILY, f"the hosts of this world have IPv4 addresses only, not {family}")
        number = _port_number(port)
        name = host.decode("ascii") if isinstance(host, bytes) else host
        if not name:
            address = ANY_ADDRESS if flags & socket.AI_PASSIVE else LOOPBACK
        elif name == "localhost" or _literal(name) is not None:
            address = self.find(name)
        else:
            await self._look_up(name)
            address = self.find(name)
        return [
            (socket.AF_INET, kind, protocol, "", (address, number))
            for kind, protocol in _KINDS
            if type in {0, kind} and proto in {0, protocol}
        ]

    async def _look_up(self, name: str) -> None:
        """Wait for the name service, which takes no time unless a fault says so, but comes from outside."""
        fault = self._points.strike("lookup", self._called(name) or name)
        answered: asyncio.Future[None] = self._wire.loop.create_future()
        delay_ns = fault.delay_ms * NS_PER_MS if isinstance(fault, Latency) else 0
        delay_ns += self._wire.loop.outside_delay_ns(f"the address of {name}")
        timer = self._wire.later(delay_ns, lambda: end_wait(answered))
        try:
            await answered
        finally:
            timer.cancel()
        if isinstance(fault, DnsFailure):
            raise socket.gaierror(socket.EAI_AGAIN, f"Temporary failure in name resolution: {name!r}")

    async def getnameinfo(self, sockaddr: Any, flags: int = 0) -> tuple[str, str]:
        """The name of the host at an address, and its port as a text; the address itself if nobody is there."""
        address, port = sockaddr[0], sockaddr[1]
        name = None if flags & socket.NI_NUMERICHOST else self.host_at(address)
        if name is None and flags & socket.NI_NAMEREQD:
            raise socket.gaierror(socket.EAI_NONAME, f"Name or service not known: {address!r}")
        if address.startswith("127.") and name is not None:
            name = "localhost"
        return name or address, str(port)


def _literal(name: str) -> str | None:
    """The address that *name* spells; None if it is a name.

    Raises:
        socket.gaierror: EAI_FAMILY, it spells one of IPv6.
    """
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return None
    if address.version != 4:
        raise socket.gaierror(socket.EAI_FAMILY, f"the hosts of this world have IPv4 addresses only, not {name!r}")
    return str(address)


def _port_number(port: bytes | str | int | None) -> int:
    if port is None:
        return 0
    text = port.decode("ascii") if isinstance(port, bytes) else str(port)
    number = _SERVICES.get(text, int(text) if text.isdecimal() else -1)
    if not 0 <= number < 1 << 16:
        raise socket.gaierror(socket.EAI_SERVICE, f"Servname not supported: {port!r}")
    return number
