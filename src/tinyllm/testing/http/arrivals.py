"""Waiting for something that comes from outside, no longer than a client's timeout says."""

from __future__ import annotations

import asyncio

from tinyllm.testing.loop import SimulatedLoop, SimulatedTimer

__all__ = ["Arrival", "pause"]


class Arrival:
    """Something that one task waits for, once. What comes at the very moment of the limit comes too late."""

    __slots__ = ("_future", "_late", "_loop", "_timer", "came")

    def __init__(self, loop: SimulatedLoop) -> None:
        self._loop = loop
        self._future: asyncio.Future[None] = loop.create_future()
        self._timer: SimulatedTimer | None = None
        self._late = False
        self.came = False

    async def wait(self, limit_s: float | None) -> bool:
        """Wait until it comes, or *limit_s* seconds; tell whether it came in time."""
        if limit_s is not None:
            self._timer = self._loop.call_later(limit_s, self._settle_late)
        try:
            await self._future
        finally:
            self._future.cancel()
            if self._timer is not None:
                self._timer.cancel()
        return not self._late

    def come(self) -> None:
        """Let it be there."""
        self.came = True
        # Whoever waits may be woken late by the schedule; the limit does not strike what came before it.
        if self._timer is not None and self._timer.when_ns != self._loop.time_ns:
            self._timer.cancel()
        self._settle()

    def _settle_late(self) -> None:
        self._late = True
        self._settle()

    def _settle(self) -> None:
        if not self._future.done():
            self._future.set_result(None)


async def pause(loop: SimulatedLoop, ns: int = 0) -> None:
    """Wait *ns* nanoseconds for something that comes from outside; with 0 the others still get their turn."""
    arrival = Arrival(loop)
    timer = loop.call_external_later(ns / 1_000_000_000, arrival.come)
    try:
        await arrival.wait(None)
    finally:
        timer.cancel()
