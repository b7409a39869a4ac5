"""Backpressure: how many runs of an executor go on at once, how many wait their turn, and who is refused."""

from __future__ import annotations

import asyncio
from collections import deque

from tinyllm.config import ExecutorConfig
from tinyllm.errors import OverloadedError


class Admission:
    """The turnstile of one executor: first come, first served."""

    def __init__(self, config: ExecutorConfig) -> None:
        self._runs_max = config.max_concurrent_runs
        self._queued_max = config.max_queued_runs
        self._running = 0
        self._queue: deque[asyncio.Future[None]] = deque()

    def ask(self) -> asyncio.Future[None] | None:
        """Take a place: None if the run may begin at once, else what to wait for before it.

        Raises OverloadedError at once if as many as allowed run and wait.
        """
        if self._runs_max is None or (self._running < self._runs_max and not self._queue):
            self._running += 1
            return None
        if len(self._queue) >= self._queued_max:
            text = f"{self._running} runs are under way and {len(self._queue)} wait"
            raise OverloadedError(f"{text}: max_concurrent_runs and max_queued_runs allow no more")
        turn = asyncio.get_running_loop().create_future()
        self._queue.append(turn)
        return turn

    def leave(self, turn: asyncio.Future[None] | None) -> None:
        """Give the place back, whether the run has ended or never got its turn."""
        if turn is not None and not turn.done():
            turn.cancel()
            self._queue.remove(turn)
            return
        if turn is not None and turn.cancelled():
            return
        self._running -= 1
        while self._queue and self._runs_max is not None and self._running < self._runs_max:
            following = self._queue.popleft()
            if not following.done():
                self._running += 1
                following.set_result(None)
