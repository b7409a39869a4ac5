"""An HTTP network on a loop of its own, with links, hosts and faults, and nothing else of a world."""

from __future__ import annotations

from typing import Any

import httpx
import httpx2
import pytest

from tinyllm.testing.faults import At
from tinyllm.testing.http.clients import HttpxClients
from tinyllm.testing.http.network import Network
from tinyllm.testing.http.values import Answer, Chunk, HttpRequest, text_answer
from tinyllm.testing.links import Links
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.points import Points
from tinyllm.testing.processes import Governor, Host
from tinyllm.testing.schedule import Schedule

MS = 1_000_000
URL = "http://api/path?q=1"
MODULES = [httpx, httpx2]
#: Runs a test for clients of either module.
both = pytest.mark.parametrize("module", MODULES, ids=["httpx", "httpx2"])


class Net:
    """A network with servers under their names; `faults` are those of the first requests to any of them.

    Leaving it asserts that nothing is left of any exchange and that nobody complained.
    """

    def __init__(
        self, servers: Any = None, *faults: Any, latency_ms: int = 0, at: tuple[At, ...] = (), schedule: Schedule = ()
    ) -> None:
        self.loop = SimulatedLoop(schedule)
        self.links = Links(latency_ns=latency_ms * MS)
        strikes = [At(point="request", number=number, fault=fault) for number, fault in enumerate(faults) if fault]
        self.points = Points([*strikes, *at], time_ns=lambda: self.loop.time_ns)
        self.hosts: dict[str, Host] = {}
        self.network = Network(self.loop, links=self.links, points=self.points, hosts=self.hosts)
        self._governor = Governor(self.loop)
        for name, server in (servers or {}).items():
            self.network.serve(name, server)

    def host(self, name: str) -> Host:
        """A host that can crash and pause."""
        self.hosts[name] = Host(name, len(self.hosts) + 1, self.loop, self._governor)
        return self.hosts[name]

    def __enter__(self) -> Net:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.rest()
            assert {} == self.network._exchanges
            assert () == self.loop.pending_timers()
        self.loop.close()
        if kind is None:
            assert [] == self.loop.unhandled

    @property
    def now_ms(self) -> float:
        return self.loop.time_ns / MS

    def run(self, main: Any, *args: Any) -> Any:
        """What `main(*args)` gives, with all clients of httpx and httpx2 in this network."""
        with HttpxClients(self.network):
            return self.loop.run_until_complete(main(*args))

    def rest(self) -> None:
        """Let everything that is under way come to its end."""
        with HttpxClients(self.network):
            assert self.loop.run_until_idle()

    def heal_after(self, ms: int) -> None:
        """Heal all faults of one moment then."""
        self.loop.call_later(ms / 1_000, self.network.heal)

    def lasting(self, fault: Any, start_ms: int = 0, end_ms: int | None = None) -> None:
        """Let a fault of the links last."""
        if start_ms:
            self.loop.call_later(start_ms / 1_000, self.links.begin, fault)
        else:
            self.links.begin(fault)
        if end_ms is not None:
            self.loop.call_later(end_ms / 1_000, self.links.end, fault)


def echo(request: HttpRequest) -> Answer:
    """What it was asked, at once."""
    return text_answer(request.body.decode())


def slow(after_ms: int) -> Any:
    """A server that answers "late"."""
    return lambda request: text_answer("late", after_ns=after_ms * MS)


def streams(*pieces: tuple[bytes, int]) -> Any:
    """A server that streams pieces, each so many milliseconds after the one before it."""
    return lambda request: Answer(chunks=tuple(Chunk(data, ms * MS) for data, ms in pieces), streamed=True)


def got(net: Net, module: Any = httpx, *, method: str = "POST", url: str = URL, timeout: Any = None, **how: Any) -> Any:
    """The response of one call, or the exception it raises; by a client that closes its connection."""

    async def main() -> Any:
        async with module.AsyncClient(timeout=timeout) as client:
            return await client.request(method, url, **how)

    try:
        return net.run(main)
    except Exception as error:
        return error
