"""The connections of one HTTP client: how many at once, and which are open without being used."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from tinyllm.testing.http.arrivals import Arrival
from tinyllm.testing.http.failures import NetworkFailure
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.processes import Process
from tinyllm.testing.units import NS_PER_S

__all__ = ["Connection", "Pool"]


@dataclass(slots=True, eq=False)
class Connection:
    """A connection to `host`; `owner` is the run that uses it, if one does.

    `client` and `server` are the processes at its ends, None where a name has no host behind it: with either
    of them the connection goes. It serves requests to one `origin`: scheme, host and port.
    """

    number: int
    host: str
    owner: object
    client: Process | None = None
    server: Process | None = None
    origin: str = ""
    idle_since_ns: int = 0


class Pool:
    """At most *max_connections* at once (None: no limit). At most *max_idle* are kept, each for *keepalive_ns*.

    The defaults are those of httpx but for the first, which is 100 there. A connection that cannot be made is
    tried *retries* times more.
    """

    def __init__(
        self,
        loop: SimulatedLoop,
        *,
        max_connections: int | None = None,
        max_idle: int | None = 20,
        keepalive_ns: int | None = 5 * NS_PER_S,
        retries: int = 0,
    ) -> None:
        self.retries = retries
        #: Called when the client closes, in order: by those who use its connections.
        self.on_close: dict[int, Callable[[], None]] = {}
        self._loop = loop
        self._max_connections = max_connections
        self._max_idle = max_idle
        self._keepalive_ns = keepalive_ns
        self._used = 0
        self._idle: list[Connection] = []
        self._waiting: deque[Arrival] = deque()

    async def enter(self, limit_s: float | None) -> None:
        """Take a place among the connections, in the order of asking; an idle connection makes room for a used one.

        Raises:
            NetworkFailure: a PoolTimeout, after *limit_s* seconds.
        """
        if self._max_connections is None or self._used < self._max_connections:
            self._used += 1
            return
        place = Arrival(self._loop)
        self._waiting.append(place)
        in_time = False
        try:
            in_time = await place.wait(limit_s)
        finally:
            if not in_time:
                self._give_up(place)
        if not in_time:
            raise NetworkFailure("PoolTimeout", f"no connection became free within {limit_s} s")

    def _give_up(self, place: Arrival) -> None:
        if place.came:
            self.leave()
        else:
            self._waiting.remove(place)

    def leave(self) -> None:
        """Give the place back, to the first that waits if one does."""
        if self._waiting:
            self._waiting.popleft().come()
        else:
            self._used -= 1

    def take(self, origin: str, client: Process | None, server: Process | None) -> Connection | None:
        """The idle connection between these two that was used last, if there is one; none to a process that is dead."""
        self._expire()
        if server is not None and server.dead:
            return None
        for index in range(len(self._idle) - 1, -1, -1):
            found = self._idle[index]
            if found.origin == origin and found.client is client and found.server is server:
                del self._idle[index]
                return found
        return None

    def keep(self, connection: Connection) -> None:
        """Keep *connection* open for the next request."""
        connection.idle_since_ns = self._loop.time_ns
        self._idle.append(connection)
        if self._max_idle is not None and len(self._idle) > self._max_idle:
            del self._idle[0]

    def close(self) -> None:
        """Close every connection, also those in use: whoever reads from one fails."""
        self._idle.clear()
        for call in list(self.on_close.values()):
            call()

    def _expire(self) -> None:
        """Close what was idle too long. A connection to a process that died fits nobody and goes in the same way."""
        if self._keepalive_ns is not None:
            oldest_ns = self._loop.time_ns - self._keepalive_ns
            while self._idle and self._idle[0].idle_since_ns <= oldest_ns:
                del self._idle[0]
