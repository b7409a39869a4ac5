"""Backpressure: how many runs of an executor go on at once, how many wait their turn, and who is refused."""

from __future__ import annotations

import asyncio
from collections import deque

from tinyllm.config import ExecutorConfig
from tinyllm.errors import OverloadedError, UsageError


class Admission:
    """The turnstile of one executor: first come, first served."""

    def __init__(self, config: ExecutorConfig) -> None:
        self._runs_max = config.max_concurrent_runs
        self._queued_max = config.max_queued_runs
        self._running = 0
        self._queue: deque[asyncio.Future[None]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    def ask(self) -> asyncio.Future[None] | None:
        """Take a place: None if the run may begin at once, else what to wait for before it.

        Raises OverloadedError at once if as many as allowed run and wait; UsageError while runs of another event
        loop hold places, since who waits here could not be woken from there.
        """
        self.require_room()
        if self._runs_max is None:
            return None
        if self._running < self._runs_max and not self._queue:
            self._running += 1
            return None
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        return turn

    def require_room(self) -> None:
        """Raise what `ask` would, and take nothing."""
        if self._runs_max is None:
            return
        self._serve(asyncio.get_running_loop())
        if (self._running >= self._runs_max or self._queue) and len(self._queue) >= self._queued_max:
            text = f"{self._running} runs are under way and {len(self._queue)} wait"
            raise OverloadedError(f"{text}: max_concurrent_runs and max_queued_runs allow no more")

    def leave(self, turn: asyncio.Future[None] | None) -> None:
        """Give the place back, whether the run has ended or never got its turn."""
        if self._runs_max is None:
            return
        if turn is not None and not turn.done():
            turn.cancel()
            self._queue.remove(turn)
            return
        if turn is not None and turn.cancelled():
            return
        self._running -= 1
        while self._queue and self._running < self._runs_max:
            following = self._queue.popleft()
            if not following.done():
                self._running += 1
                following.set_result(None)

    def _serve(self, loop: asyncio.AbstractEventLoop) -> None:
        """Serve this event loop from now on, if nobody of another one is left."""
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed() and (self._running or self._queue):
            raise UsageError("with max_concurrent_runs an executor serves one event loop at a time; make one for each")
        # What a closed loop left behind will never end.
        self._loop, self._running = loop, 0
        self._queue.clear()
