"""The HTTP network of the world: hosts by name, the exchanges under way, and the connections that are open.

Clients built on httpx reach it through a transport (`tinyllm.testing.http.transport`) and never a socket. A
request takes, from the host on which it is made to the host that it names:

- a round trip of the link for a connection, unless its client has one to that host that is idle;
- the link's time for the request, which the server sees when all of it has arrived;
- as long as the server takes, and the link's time for each piece of the answer, in order.

Where a link does not pass, what is sent waits until it does; a host that is down refuses connections and
resets those it has, one that is paused answers when it goes on. Encryption takes no round trips of its own.

A host without a server here is left to the simulated sockets, if the loop has them: there a program may listen.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import Context, copy_context
from datetime import datetime, timedelta
from itertools import count
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from tinyllm.testing.faults import HOME, Fault
from tinyllm.testing.http.arrivals import pause
from tinyllm.testing.http.exchange import Exchange
from tinyllm.testing.http.failures import NAME_NOT_KNOWN, NetworkFailure
from tinyllm.testing.http.hosts import Served
from tinyllm.testing.http.pool import Connection, Pool
from tinyllm.testing.http.values import HttpRequest, Server
from tinyllm.testing.links import Links, folded_name
from tinyllm.testing.loop import OWNER, SimulatedLoop
from tinyllm.testing.points import Points
from tinyllm.testing.processes import Host, Process
from tinyllm.testing.tasks import PROCESS, Nobody, current_process
from tinyllm.testing.units import EPOCH

if TYPE_CHECKING:
    import httpx

__all__ = ["Network"]

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Network:
    """The HTTP servers of one loop. Without *links* nothing takes time, without *points* no fault strikes.

    *hosts* are those that crash and pause; a server under another name belongs to none and is always up.
    `localhost` is the host on which the request is made.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        *,
        links: Links | None = None,
        points: Points | None = None,
        hosts: Mapping[str, Host] | None = None,
    ) -> None:
        self.loop = loop
        self.links = Links() if links is None else links
        self.points = points
        self.hosts: Mapping[str, Host] = {} if hosts is None else hosts
        self.servers: dict[str, Served] = {}
        #: The context of what is under way: no process's and nobody's work.
        self.wire: Context = copy_context()
        self.wire.run(PROCESS.set, Nobody.NOBODY)
        self.wire.run(OWNER.set, None)
        self._contexts: dict[str, tuple[Process, Context]] = {}
        self._nobody = self.wire.copy()
        self._exchanges: dict[int, Exchange] = {}
        self._open: dict[int, Connection] = {}
        self._exchange_number = count(1).__next__
        self._connection_number = count(1).__next__
        self._watched: set[str] = set()
        self._pools: WeakKeyDictionary[Any, Pool] = WeakKeyDictionary()
        self.links.changed.append(self._unblock)

    # --- servers and clients -------------------------------------------------------------------------

    def serve(self, name: str, server: Server) -> Served:
        """Let *server* answer HTTP and HTTPS under *name*, on every port, in the place of any other before it.

        Raises:
            TypeError: *server* is neither a function nor has it a method `answer`.
        """
        served = self.servers[name] = Served(name, server)
        return served

    def transport(
        self, module: ModuleType | None = None, *, max_connections: int | None = None
    ) -> httpx.AsyncBaseTransport:
        """A transport into this network for any client built on *module*: httpx, which is the default, or httpx2.

        At most *max_connections* of its connections are in use at once; None for no limit.
        """
        from tinyllm.testing.http.transport import transport_for

        return transport_for(self, Pool(self.loop, max_connections=max_connections), module)

    def pool_of(self, client: Any, make: Callable[[SimulatedLoop, Any], Pool]) -> Pool:
        """The connections of *client*, a transport that is not this network's own."""
        pool = self._pools.get(client)
        if pool is None:
            pool = self._pools[client] = make(self.loop, client)
        return pool

    def name_of(self, host: str) -> str:
        """The name of the host that *host* means to the running code. Its case tells nothing, nor does a last dot."""
        if host in self.servers or host in self.hosts:
            return host
        if host in _LOOPBACK:
            process = current_process()
            return HOME if process is None else process.host.name
        folded = folded_name(host)
        named = (name for name in (*self.servers, *self.hosts) if folded_name(name) == folded)
        known = next(named, None) or next((name for name, it in self.hosts.items() if it.address == host), None)
        return known or host

    def reaches_socket(self, name: str) -> bool:
        """Whether requests for host *name* go through simulated sockets, to whatever program listens there."""
        return self.loop.network is not None and name in self.hosts and name not in self.servers

    # --- exchanges -----------------------------------------------------------------------------------

    async def begin(self, request: httpx.Request, name: str, pool: Pool) -> Exchange:
        """An exchange for *request* to host *name*, which has entered *pool*.

        Raises:
            NetworkFailure: a ConnectError: nobody of that name, or nobody who serves HTTP there.
        """
        fault = self.strike("request", name)
        served = self.servers.get(name)
        if served is None:
            await pause(self.loop)
            raise NetworkFailure("ConnectError", "connection refused" if name in self.hosts else NAME_NOT_KNOWN)
        host, client = self.hosts.get(name), current_process()
        told = HttpRequest(
            method=request.method,
            url=request.url,
            path=request.url.path,
            headers=request.headers,
            source=HOME if client is None else client.host.name,
            host=name,
            clock=self._now if host is None else _clock_of(host) or self._now,
            fault=fault,
        )
        for end in (host, None if client is None else client.host):
            if end is not None and end.name not in self._watched:
                self._watched.add(end.name)
                end.on_crash.append(self._crashed)
        server = None if host is None else host.process
        exchange = Exchange(self, self._exchange_number(), told, served, pool, client, server)
        self._exchanges[exchange.number] = exchange
        return exchange

    def strike(self, kind: str, name: str) -> Fault | None:
        """Come to a point of the world; give the fault that strikes there."""
        return None if self.points is None else self.points.strike(kind, name)

    def disturbed(self) -> bool:
        """Whether anything has departed from the plainest life so far: a fault, or a hold of the schedule."""
        struck = self.points is not None and self.points.struck
        hindered = any(host.hindered for host in self.hosts.values())
        return bool(struck or self.links.disturbed or self.loop.applied_holds or hindered)

    def context_of(self, process: Process | None) -> Context:
        """The context of what *process* does with requests. Enter it from no callback that runs in it."""
        if process is None:
            return self._nobody
        known = self._contexts.get(process.host.name)
        if known is None or known[0] is not process:
            context = self.wire.copy()
            context.run(PROCESS.set, process)
            known = self._contexts[process.host.name] = (process, context)
        return known[1]

    def _now(self) -> datetime:
        return EPOCH + timedelta(microseconds=self.loop.time_ns // 1_000)

    def _crashed(self, process: Process) -> None:
        for exchange in list(self._exchanges.values()):
            exchange.crash(process)

    def _unblock(self) -> None:
        for exchange in list(self._exchanges.values()):
            exchange.unblock()

    def heal(self) -> None:
        """Let every exchange that hangs or drips because of a fault come to its end."""
        for exchange in list(self._exchanges.values()):
            exchange.heal()

    def forget(self, number: int, connection: Connection | None) -> None:
        """Called by an exchange that is over."""
        self._exchanges.pop(number, None)
        if connection is not None:
            self.disconnect(connection)

    # --- connections ---------------------------------------------------------------------------------

    def open_connections(self, owner: object) -> list[Connection]:
        """The connections that *owner* uses, in the order of their making. Idle ones are nobody's."""
        return [connection for connection in self._open.values() if connection.owner == owner]

    def connect(
        self, host: str, client: Process | None = None, server: Process | None = None, origin: str = ""
    ) -> Connection:
        """A new connection, used by whoever owns the running code."""
        connection = Connection(self._connection_number(), host, None, client, server, origin)
        self.use(connection)
        return connection

    def use(self, connection: Connection) -> None:
        """Let whoever owns the running code use *connection*."""
        connection.owner = OWNER.get()
        self._open[connection.number] = connection

    def disconnect(self, connection: Connection) -> None:
        """Let nobody use *connection* any more."""
        self._open.pop(connection.number, None)


def _clock_of(host: Host) -> Callable[[], datetime] | None:
    """The wall clock of a host that has one."""
    clock = getattr(host, "clock", None)
    return None if clock is None else clock.now
