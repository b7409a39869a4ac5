"""One direction of a connection: what is sent arrives in order, each when the link lets it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any

from tinyllm.testing.links import Links
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.units import NS_PER_S

__all__ = ["Lane"]


class Lane:
    """From host *source* to host *target*. What arrives is called in *context*, that of no process.

    While the link does not pass, what is sent is kept; call `unblock` whenever the links have changed.
    """

    __slots__ = ("_arrives_ns", "_context", "_links", "_loop", "_source", "_target", "kept")

    def __init__(self, loop: SimulatedLoop, links: Links, source: str, target: str, context: Context) -> None:
        self._loop = loop
        self._links = links
        self._source = source
        self._target = target
        self._context = context
        self._arrives_ns = 0
        self.kept: deque[tuple[int, Callable[..., object], tuple[Any, ...]]] = deque()

    @property
    def free(self) -> bool:
        """Whether what is sent now arrives now."""
        links = self._links
        undisturbed = self._source == self._target or not (links.faults or links.latency_ns)
        return undisturbed and not self.kept and self._arrives_ns <= self._loop.time_ns

    @property
    def open(self) -> bool:
        """Whether the link passes now."""
        return self._links.passes(self._source, self._target)

    def send(self, size_bytes: int, call: Callable[..., object], *args: Any) -> None:
        """Let *size_bytes* arrive, which calls *call* with *args*: at once, if nothing delays them."""
        late_ns = self._loop.outside_delay_ns(f"what {self._source} sends to {self._target}")
        if self.free and not late_ns:
            call(*args)
        elif self.kept or not self._links.passes(self._source, self._target):
            self.kept.append((size_bytes, call, args))
        else:
            self._depart(size_bytes, call, args, late_ns)

    def unblock(self) -> None:
        """Send what was kept, if the link passes again."""
        while self.kept and self._links.passes(self._source, self._target):
            self._depart(*self.kept.popleft())

    def _depart(
        self, size_bytes: int, call: Callable[..., object], args: tuple[Any, ...], late_ns: int = 0
    ) -> None:
        now_ns, links = self._loop.time_ns, self._links
        delay_ns = late_ns + links.delay_ns(self._source, self._target, size_bytes, now_ns)
        delay_ns += links.resend_ns(self._source, self._target)
        # A connection keeps its order: nothing overtakes what is under way.
        self._arrives_ns = max(self._arrives_ns, now_ns + delay_ns)
        self._loop.call_external_later((self._arrives_ns - now_ns) / NS_PER_S, call, *args, context=self._context)
