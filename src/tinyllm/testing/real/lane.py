"""One direction of the link: which toxics are in force there, and how long they let bytes wait."""

from __future__ import annotations

import asyncio
import time
from typing import Final, Literal

from tinyllm.testing.real.toxics import Bandwidth, Jitter, Latency, Partition, Toxic
from tinyllm.testing.units import NS_PER_MS, NS_PER_S

__all__ = ["Lane"]

#: Connections share the bandwidth by turns of this many parts of a second.
_TURNS_PER_S: Final = 20


class Lane:
    """What is in force in one direction, for all connections together. Waiting ends when that changes."""

    def __init__(self, name: Literal["up", "down"]) -> None:
        self.name = name
        self._toxics: list[Toxic] = []
        self._busy_until_ns = 0
        self._waiting: list[asyncio.Future[None]] = []

    def set(self, toxics: list[Toxic]) -> None:
        """Let those of *toxics* be in force that concern this direction, and wake whoever waits."""
        self._toxics = [toxic for toxic in toxics if toxic.direction in (self.name, "both")]
        self._busy_until_ns = 0
        for changed in self._waiting:
            if not changed.done():
                changed.set_result(None)

    @property
    def held(self) -> bool:
        """Whether a partition keeps everything back."""
        return any(isinstance(toxic, Partition) for toxic in self._toxics)

    def piece_bytes(self, size_bytes: int) -> int:
        """How many of *size_bytes* may pass in one turn; at least 1."""
        rate = self._bytes_per_s()
        return size_bytes if rate is None else min(size_bytes, max(1, rate // _TURNS_PER_S))

    async def until_open(self) -> None:
        """Wait until no partition keeps everything back."""
        while self.held:
            await self._change(None)

    async def until_arrived(self, sent_ns: int, chance: float) -> None:
        """Wait until what was sent at *sent_ns* arrives; *chance*, in [0, 1), is its share of the jitter."""
        while True:
            await self.until_open()
            wait_ns = sent_ns + self._delay_ns(chance) - time.monotonic_ns()
            if wait_ns <= 0:
                return
            await self._change(wait_ns)

    async def until_sent(self, size_bytes: int) -> None:
        """Wait as long as *size_bytes* take at the bandwidth, after those that came before."""
        while True:
            await self.until_open()
            rate = self._bytes_per_s()
            if rate is None:
                return
            starts_ns = max(self._busy_until_ns, time.monotonic_ns())
            # Rounded up: a byte is never early.
            ends_ns = self._busy_until_ns = starts_ns - (-size_bytes * NS_PER_S // rate)
            if not await self._reached(ends_ns):
                continue
            return

    async def _reached(self, at_ns: int) -> bool:
        """Wait for a moment; False if something changed before it."""
        while (wait_ns := at_ns - time.monotonic_ns()) > 0:
            if await self._change(wait_ns):
                return False
        return True

    async def _change(self, wait_ns: int | None) -> bool:
        """Wait for a change, at most *wait_ns*; whether there was one. May wake early by the timer's resolution."""
        changed = asyncio.get_running_loop().create_future()
        self._waiting.append(changed)
        try:
            await asyncio.wait([changed], timeout=None if wait_ns is None else wait_ns / NS_PER_S)
        finally:
            self._waiting.remove(changed)
        return changed.done()

    def _delay_ns(self, chance: float) -> int:
        delay_ns = 0
        for toxic in self._toxics:
            if isinstance(toxic, Latency):
                delay_ns += toxic.delay_ms * NS_PER_MS
            elif isinstance(toxic, Jitter):
                delay_ns += int(chance * toxic.delay_ms * NS_PER_MS)
        return delay_ns

    def _bytes_per_s(self) -> int | None:
        return min((toxic.bytes_per_s for toxic in self._toxics if isinstance(toxic, Bandwidth)), default=None)
