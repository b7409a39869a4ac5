"""The client's end of one HTTP exchange: connects, sends and reads, as long as the client's timeouts allow.

A client that leaves takes nothing back: a request that was sent arrives, and has its effects.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Callable
from typing import TYPE_CHECKING, Any

from tinyllm.testing.faults import DnsFailure, Latency, LostPacket, Refused
from tinyllm.testing.http.arrivals import Arrival, pause
from tinyllm.testing.http.failures import UNKNOWN_NAME, NetworkFailure, Stage, failure_of
from tinyllm.testing.http.hosts import Served
from tinyllm.testing.http.lanes import Lane
from tinyllm.testing.http.pool import Connection, Pool
from tinyllm.testing.http.serving import HEAD_BYTES, Serving, window_of
from tinyllm.testing.http.values import Answer, Break, Ended, HttpRequest
from tinyllm.testing.links import RESEND_NS
from tinyllm.testing.loop import SimulatedTimer
from tinyllm.testing.processes import Process
from tinyllm.testing.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from tinyllm.testing.http.network import Network

__all__ = ["Exchange"]


class Exchange:
    """One request of process *client*, served by process *server* (None: a name without a host behind it).

    Call `connect`, `send` and `answer` in this order, then `read` until it gives None; and `leave` at any
    moment. The methods whose names end in `came` are called by what arrives. Whoever makes an exchange has
    entered the pool; the exchange leaves it.
    """

    __slots__ = (
        "_accepted", "_arrival", "_client", "_connection", "_down", "_gave_up", "_head", "_inbox", "_network", "_over",
        "_pool", "_read_bytes", "_sent", "_server", "_serving", "_timer", "_tries", "_up", "_up_bytes", "number",
        "request", "unread_bytes",
    )  # fmt: skip

    def __init__(
        self,
        network: Network,
        number: int,
        request: HttpRequest,
        served: Served,
        pool: Pool,
        client: Process | None,
        server: Process | None,
    ) -> None:
        loop, links, wire = network.loop, network.links, network.wire
        self.number = number
        self.request = request
        self.unread_bytes = 0
        self._network = network
        self._pool = pool
        self._client = client
        self._server = server
        self._up = Lane(loop, links, request.source, request.host, wire)
        self._down = Lane(loop, links, request.host, request.source, wire)
        self._serving = Serving(loop, served, request, self._down, self, server, network.context_of(server))
        self._connection: Connection | None = None
        self._arrival: Arrival | None = None
        self._timer: SimulatedTimer | None = None
        self._accepted = False
        self._tries = 0
        self._sent = False
        # Whether the last wait for something was ended by something else.
        self._gave_up = False
        self._up_bytes = 0
        self._head: Answer | None = None
        self._inbox: deque[bytes] = deque()
        self._read_bytes = 0
        # None as long as more may come; then a Break, or True for the end of a whole body.
        self._over: Break | bool | None = None
        pool.on_close[number] = self._closed

    # --- a connection --------------------------------------------------------------------------------

    async def connect(self, limit_s: float | None) -> None:
        """Use an idle connection, or make one, which takes a round trip of the link.

        One that cannot be made is tried as often again as the pool says, in the way of httpcore: at once, then
        half a second later, and each time twice as long. A fault of this one request strikes its first try only.

        Raises:
            NetworkFailure: a ConnectError, or a ConnectTimeout after *limit_s* seconds for each try.
        """
        for number in range(self._pool.retries):
            try:
                await self._connect(limit_s)
            except NetworkFailure:
                self._give_up_connecting()
            else:
                return
            await pause(self._network.loop, NS_PER_S // 4 << number if number else 0)
        await self._connect(limit_s)

    def _give_up_connecting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._connection is not None:
            self._network.disconnect(self._connection)
        if isinstance(self.request.fault, Refused | DnsFailure):
            self.request.fault = None
        self._connection = self._over = None
        self._tries += 1

    async def _connect(self, limit_s: float | None) -> None:
        host = self.request.host
        if not isinstance(self.request.fault, Refused | DnsFailure):
            self._connection = self._pool.take(self._origin(), self._client, self._server)
        if self._connection is not None:
            self._network.use(self._connection)
            self._accepted = True
            return
        self._connection = self._network.connect(host, self._client, self._server, self._origin())
        self._knock_after(self._met_faults(host))
        if self._over is not None:
            await pause(self._network.loop)
        elif not self._accepted:
            await self._wait(limit_s, "ConnectTimeout", "no connection", self._network.loop.time_ns)
        self._raise_if_broken()

    def _origin(self) -> str:
        url = self.request.url
        return f"{url.scheme}://{self.request.host}:{url.port or ''}"

    def _met_faults(self, host: str) -> int:
        """Come to the points of a new connection; give by how many nanoseconds their faults delay it."""
        delay_ns = 0
        for kind in ("lookup", "connection"):
            fault = self._network.strike(kind, host)
            if isinstance(fault, Latency):
                delay_ns += fault.delay_ms * NS_PER_MS
            elif fault is not None and self.request.fault is None:
                self.request.fault = fault
        return delay_ns

    def _knock_after(self, delay_ns: int) -> None:
        fault = self.request.fault
        if isinstance(fault, DnsFailure):
            self._later(delay_ns, self.over_came, UNKNOWN_NAME)
        elif isinstance(fault, Refused):
            self._later(delay_ns, self.over_came, Break(how="refused"))
        else:
            self._later(delay_ns, self._up.send, HEAD_BYTES, self._knock, self._tries)

    def _later(self, ns: int, call: Callable[..., object], *args: Any) -> None:
        if ns:
            loop, wire = self._network.loop, self._network.wire
            self._timer = loop.call_external_later(ns / NS_PER_S, call, *args, context=wire)
        else:
            call(*args)

    def _knock(self, number: int) -> None:
        """The wish for a connection is at the host. One that is paused takes it, as its system does."""
        refused = self._server is not None and self._server.dead
        self._down.send(0, self.reply_came, number, Break(how="refused") if refused else None)

    def reply_came(self, number: int, refused: Break | None) -> None:
        if number != self._tries:  # the client has given that one up
            return
        if refused is not None:
            self.over_came(refused)
        else:
            self._accepted = True
            self._wake()

    # --- the request ---------------------------------------------------------------------------------

    async def send(self, body: bytes | AsyncIterable[bytes], limit_s: float | None) -> None:
        """Send the request with its body.

        Raises:
            NetworkFailure: a WriteError, or a WriteTimeout if a part of the body is not taken in *limit_s* seconds.
        """
        if isinstance(body, bytes):
            await self._send_part(body, limit_s)
            self.request.body = body
        else:
            parts: list[bytes] = []
            async for part in body:
                await self._send_part(part, limit_s)
                parts.append(part)
            self.request.body = b"".join(parts)
        self._sent = True
        late_ns = RESEND_NS if isinstance(self.request.fault, LostPacket) else 0
        self._later(late_ns, self._up.send, HEAD_BYTES, self._serving.arrive)

    async def _send_part(self, part: bytes, limit_s: float | None) -> None:
        began_ns = self._network.loop.time_ns
        self._raise_if_broken()
        start = 0
        while start < len(part):
            size_bytes = min(window_of(self._server), len(part) - start)
            start += size_bytes
            self._up_bytes += size_bytes
            self._up.send(size_bytes, self.part_came, size_bytes)
            while self._up_bytes > window_of(self._server):
                await self._wait(limit_s, "WriteTimeout", "the request was not taken", began_ns)
                self._raise_if_broken()

    def part_came(self, size_bytes: int) -> None:
        self._up_bytes -= size_bytes
        self._wake()

    # --- the answer ----------------------------------------------------------------------------------

    async def answer(self, limit_s: float | None) -> Answer:
        """The head of the answer.

        Raises:
            NetworkFailure: a ReadError, or a ReadTimeout after *limit_s* seconds.
        """
        began_ns = self._network.loop.time_ns
        while self._head is None:
            self._raise_if_broken()
            await self._wait(limit_s, "ReadTimeout", "no answer", began_ns)
        return self._head

    async def read(self, limit_s: float | None) -> bytes | None:
        """The next piece of the body; None at its end.

        Raises:
            NetworkFailure: a ReadError, a RemoteProtocolError where the body ends too early, or a ReadTimeout
                after *limit_s* seconds.
        """
        began_ns = self._network.loop.time_ns
        length = self._length()
        while not self._inbox or self._read_bytes == length:
            if self._over is True or self._read_bytes == length:
                self._finish("delivered")
                return None
            self._raise_if_broken()
            await self._wait(limit_s, "ReadTimeout", "nothing more of the answer", began_ns)
        came = self._inbox.popleft()
        self.unread_bytes -= len(came)
        data = came if length is None else came[: length - self._read_bytes]  # the rest is no part of the answer
        self._read_bytes += len(data)
        self._serving.room_came()
        return data

    @property
    def window_bytes(self) -> int:
        """How many bytes of the answer the client's system takes for it."""
        return window_of(self._client)

    def head_came(self, answer: Answer) -> None:
        self._head = answer
        self.request.status = answer.status
        self._wake()

    def chunk_came(self, data: bytes) -> None:
        self._inbox.append(data)
        self._wake()

    def over_came(self, how: Break | None) -> None:
        if self._over is None:
            self._over = how or True
            self._wake()

    # --- waiting, and the end ------------------------------------------------------------------------

    async def _wait(self, limit_s: float | None, kind: str, what: str, began_ns: int) -> None:
        """Wait until something comes; fail if nothing does until *limit_s* seconds after *began_ns*."""
        loop = self._network.loop
        self._arrival = arrival = Arrival(loop)
        in_time = False
        try:
            left_s = None if limit_s is None else max(0.0, limit_s - (loop.time_ns - began_ns) / NS_PER_S)
            in_time = await arrival.wait(left_s)
        finally:
            self._arrival = None
            self._gave_up = not in_time
        if not in_time:
            raise NetworkFailure(kind, f"{what} within {limit_s} s")

    def _wake(self) -> None:
        if self._arrival is not None:
            self._arrival.come()

    def _raise_if_broken(self) -> None:
        if isinstance(self._over, Break):
            stage: Stage = "sent" if self._sent else "connected" if self._accepted else "connecting"
            raise failure_of(self._over, stage, self._read_bytes, self._length())

    def _length(self) -> int | None:
        """How long the answer says its body is."""
        length = None if self._head is None else self._head.header("content-length")
        return None if length is None else int(length)

    def _closes(self) -> bool:
        """Whether one of the two ends said that the connection serves no other request."""
        told = None if self._head is None else self._head.header("connection")
        return "close" in (self.request.headers.get("connection", "").lower(), (told or "").lower())

    def _closed(self) -> None:
        """The client has closed all its connections."""
        self._over = Break(how="closed")
        self._inbox.clear()
        self._wake()

    def leave(self) -> None:
        """The client goes. Does nothing if the exchange is over."""
        broken = isinstance(self._over, Break) or not (self._up.open and self._down.open)
        self._finish("broken" if broken else "left")

    def crash(self, process: Process) -> None:
        """A process has died: of the server, whose connection is then reset, or of the client, who is gone."""
        if process is self._server:
            self._serving.crash()
        elif process is self._client:
            self._finish("broken")

    def unblock(self) -> None:
        """The links have changed."""
        self._up.unblock()
        self._down.unblock()

    def heal(self) -> None:
        """Let what hangs or drips because of a fault come to its end."""
        self._serving.heal()

    def _finish(self, how: Ended) -> None:
        if self.request.ended is not None:
            return
        self.request.ended = how
        delivered = how == "delivered"
        all_read = self._serving.whole_sent and self._head is not None and not self.unread_bytes
        self.request.all_read = delivered or all_read
        self.request.heard = delivered or (all_read and not self._gave_up)
        self.request.hindered = self._network.disturbed()
        self.request.ended_ns = self._network.loop.time_ns
        self._network.forget(self.number, self._connection)
        self._pool.on_close.pop(self.number, None)
        if self._timer is not None and not self._sent:
            self._timer.cancel()
        if self._connection is not None and delivered and not self._closes():
            self._pool.keep(self._connection)
        self._pool.leave()
        self._serving.leave()
