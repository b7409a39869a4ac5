"""One direction of a simulated TCP connection: what is sent comes out at the other end, in order, in its time.

A packet takes as long as the link says when it departs; it never overtakes the one before it. While the link
does not pass, packets wait at the source and go on in order when it does. Nothing is lost for good: what the
link loses comes later by the time of its repetition, and so does everything behind it.

A write stays one packet unless a fault of links lasts: then it travels in packets of `PACKET_BYTES`, so that
bandwidth, jitter and loss act as they do in earnest. A dripping pipe has pieces of the drip's size.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from contextvars import Context
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Final

from tinyllm.testing.faults import SlowDrip
from tinyllm.testing.links import Links
from tinyllm.testing.tasks import Runnable
from tinyllm.testing.units import NS_PER_MS, NS_PER_S

if TYPE_CHECKING:
    from tinyllm.testing.loop import SimulatedLoop

__all__ = ["PACKET_BYTES", "Pipe", "Segment", "Signal", "Wire"]

#: What fits into one packet of an Ethernet link.
PACKET_BYTES: Final = 1_460
#: So long a connection tries to get data across before it gives up: Linux with its usual settings.
STALL_NS: Final = 924 * NS_PER_S


class Signal(Enum):
    """What travels beside data: opening (SYN, SYN_ACK, ACK), the end of one direction (FIN), the end of all (RST)."""

    SYN = "SYN"
    SYN_ACK = "SYN_ACK"
    ACK = "ACK"
    FIN = "FIN"
    RST = "RST"


Segment = bytes | Signal


@dataclass(frozen=True, slots=True)
class Wire:
    """What all connections of a world have in common. In `context` happens what no process does.

    `window_of` tells how many bytes the kernel of a host takes for a reader that does not read.
    """

    loop: SimulatedLoop
    links: Links
    context: Context
    window_of: Callable[[str], int]

    def later(self, delay_ns: int, call: Callable[[], None], context: Context | None = None) -> Runnable:
        """Call *call* in *delay_ns*, as something that comes from outside."""
        if context is None:
            context = self.context
        if delay_ns <= 0:
            return self.loop.call_external(call, context=context)
        return self.loop.call_external_later(delay_ns / NS_PER_S, call, context=context)


class Pipe:
    """Carries segments from host *source* to host *target* and hands them to *receive*, in their order.

    `unread_bytes` are under way or not taken yet by the reader; a sender keeps to `room_bytes` and, when it
    waits for more, sets `wanted` and is told by `on_room`. *on_stall* is called when something could not get
    across for 924 s. `silent` holds everything back, `drip` slows it down: faults of one connection.
    """

    __slots__ = (
        "_acks_held", "_closed", "_due_ns", "_event", "_flight", "_held", "_on_stall", "_receive", "_stall",
        "_untold_bytes", "_wire", "drip", "on_room", "room_context", "silent", "source", "target", "unread_bytes",
        "wanted",
    )  # fmt: skip

    def __init__(
        self,
        wire: Wire,
        source: str,
        target: str,
        receive: Callable[[Segment], None],
        on_stall: Callable[[], None],
    ) -> None:
        self._wire = wire
        self.source = source
        self.target = target
        self._receive = receive
        self._on_stall = on_stall
        self.silent = False
        self.drip: SlowDrip | None = None
        self.unread_bytes = 0
        self.wanted = False
        self.on_room: Callable[[], None] | None = None
        self.room_context: Context | None = None
        # Each with when it arrives, and when it would if it were alone.
        self._flight: deque[tuple[int, int, Segment]] = deque()
        self._held: deque[tuple[Segment, int]] = deque()
        self._event: Runnable | None = None
        self._stall: Runnable | None = None
        self._due_ns = 0
        self._acks_held = False
        self._untold_bytes = 0
        self._closed = False

    @property
    def room_bytes(self) -> int:
        """How many bytes may be sent now."""
        return self._wire.window_of(self.target) - self.unread_bytes

    def send(self, segment: Segment, extra_ns: int = 0) -> None:
        """Send *segment*, which takes *extra_ns* longer than the link says. Does nothing when closed."""
        if self._closed:
            return
        extra_ns += self._wire.loop.outside_delay_ns(f"what {self.source} sends to {self.target}")
        if type(segment) is bytes:
            self.unread_bytes += len(segment)
        if self._held or self._blocked():
            self._held.append((segment, extra_ns))
            self._watch()
        else:
            self._depart(segment, extra_ns)

    def _blocked(self) -> bool:
        return self.silent or not self._wire.links.passes(self.source, self.target)

    def _depart(self, segment: Segment, extra_ns: int) -> None:
        links, now_ns = self._wire.links, self._wire.loop.time_ns
        for packet in self._packets(segment):
            size_bytes = len(packet) if isinstance(packet, bytes) else 0
            delay_ns = links.delay_ns(self.source, self.target, size_bytes, now_ns) + extra_ns
            if links.faults:
                delay_ns += links.resend_ns(self.source, self.target)
            dripped_ns = self.drip.delay_ms * NS_PER_MS if self.drip is not None and size_bytes else 0
            self._fly(now_ns + delay_ns, dripped_ns, packet)
        self._schedule()

    def _fly(self, free_ns: int, dripped_ns: int, packet: Segment) -> None:
        """Put *packet* behind the others; alone it would arrive at *free_ns*."""
        self._due_ns = max(self._due_ns, free_ns) + dripped_ns
        self._flight.append((self._due_ns, free_ns, packet))

    def _packets(self, segment: Segment) -> Iterable[Segment]:
        packet_bytes = PACKET_BYTES if self._wire.links.faults and self.source != self.target else None
        if self.drip is not None:
            packet_bytes = min(packet_bytes or self.drip.size_bytes, self.drip.size_bytes)
        if packet_bytes is None or isinstance(segment, Signal):
            return (segment,)
        return (segment[start : start + packet_bytes] for start in range(0, len(segment), packet_bytes))

    def _schedule(self) -> None:
        # One event for the whole direction: what is in the queue cannot change places, whatever timers do.
        if self._event is None and self._flight:
            self._event = self._wire.later(self._flight[0][0] - self._wire.loop.time_ns, self._arrive)

    def _arrive(self) -> None:
        self._event = None
        flight, now_ns = self._flight, self._wire.loop.time_ns
        while flight and flight[0][0] <= now_ns:
            self._receive(flight.popleft()[2])
        self._schedule()
        if not self._acks_pass():
            self._acks_held = True
            self._watch()

    def _acks_pass(self) -> bool:
        return self._wire.links.passes(self.target, self.source)

    def taken(self, size_bytes: int) -> None:
        """The reader has taken so many bytes: there is room for as many, as soon as the sender hears of it."""
        if not self._acks_pass():
            self._untold_bytes += size_bytes
            return
        self.unread_bytes -= size_bytes
        self._tell_room()

    def _tell_room(self) -> None:
        if self.wanted and self.on_room is not None:
            self.wanted = False
            delay_ns = self._wire.links.delay_ns(self.target, self.source, 0, self._wire.loop.time_ns)
            self._wire.later(delay_ns, self.on_room, self.room_context)

    def kick(self) -> None:
        """A fault has begun or ended: go on as far as that is possible now."""
        if self._held and not self._blocked():
            held, self._held = self._held, deque()
            for segment, extra_ns in held:
                self._depart(segment, extra_ns)
        if self._acks_pass():
            self._acks_held = False
            if self._untold_bytes:
                self.unread_bytes -= self._untold_bytes
                self._untold_bytes = 0
                self._tell_room()
        self._watch()

    def _watch(self) -> None:
        """Begin to lose patience, or regain it."""
        links = self._wire.links
        stalled = self._acks_held or (bool(self._held) and not links.passes(self.source, self.target))
        stalled = stalled and not self._closed
        if stalled and self._stall is None:
            self._stall = self._wire.later(STALL_NS, self._give_up)
        elif not stalled and self._stall is not None:
            self._stall.cancel()
            self._stall = None

    def _give_up(self) -> None:
        self._stall = None
        self.clear()
        self._on_stall()

    def flow(self) -> None:
        """End the faults of this connection: what a drip kept arrives as the link alone would have it."""
        self.silent = False
        if self.drip is not None:
            self.drip = None
            flight, self._flight, self._due_ns = self._flight, deque(), 0
            for _, free_ns, packet in flight:
                self._fly(free_ns, 0, packet)
            if self._event is not None:
                self._event.cancel()
                self._event = None
            self._schedule()
        self.kick()

    def lose_held(self) -> None:
        """Forget what could not depart yet: the memory of its host is gone."""
        self._held.clear()
        self._watch()

    def clear(self) -> None:
        """Forget what is under way."""
        self._flight.clear()
        self._held.clear()
        self._acks_held = False
        if self._event is not None:
            self._event.cancel()
            self._event = None
        self._watch()

    def close(self) -> None:
        """Carry nothing any more: nobody is left to send it, or to have it."""
        self._closed = True
        self.clear()
