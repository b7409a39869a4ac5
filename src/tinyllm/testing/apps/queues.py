"""The fault "queue full": for a while every bounded asyncio.Queue of a host takes nothing more.

The queue itself is asyncio's. It only finds itself full, and for so long it wakes none of those who wait to
put something in; they wait where asyncio has them wait, so that their order, cancelling them and `shutdown` are
asyncio's as well.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Self

from tinyllm.testing.apps.replacements import Replacements
from tinyllm.testing.processes import current_host

__all__ = ["Queues"]


class Queues:
    """While the `with` lasts, the queues of a host can be made full (`fill`), and free again (`drain`).

    A queue is a host's where code of that host uses it (`current_host`). An unbounded queue is never full, and
    neither is a subclass with a `full` of its own. Which hosts have full queues is kept between one `with` and
    the next.
    """

    def __init__(self) -> None:
        self._replacements = Replacements()
        # For each host with full queues those that somebody met, by address, in the order of meeting.
        self._met: dict[str, dict[int, asyncio.Queue[Any]]] = {}

    def __enter__(self) -> Self:
        really_full, wake_next = asyncio.Queue.full, asyncio.Queue._wakeup_next  # type: ignore[attr-defined]
        self._really_wake_next: Any = wake_next

        def full(queue: asyncio.Queue[Any]) -> bool:
            return self._is_held(queue) or really_full(queue)

        def wakeup_next(queue: asyncio.Queue[Any], waiters: deque[asyncio.Future[Any]]) -> None:
            # A putter that woke up now would find the queue full, and line up again behind those after it.
            if waiters is not queue._putters or not self._is_held(queue):  # type: ignore[attr-defined]
                wake_next(queue, waiters)

        self._replacements.put(asyncio.Queue, "full", full)
        self._replacements.put(asyncio.Queue, "_wakeup_next", wakeup_next)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._replacements.undo()

    def fill(self, host: str) -> None:
        """Let the queues of *host* be full from now on. Does nothing if they are."""
        self._met.setdefault(host, {})

    def drain(self, host: str) -> None:
        """Let the queues of *host* be as they are, and who waits go on in order. Does nothing if they are."""
        for queue in self._met.pop(host, {}).values():
            putters: deque[asyncio.Future[Any]] = queue._putters  # type: ignore[attr-defined]
            for _ in range(min(queue.maxsize - queue.qsize(), len(putters))):
                self._really_wake_next(queue, putters)

    def _is_held(self, queue: asyncio.Queue[Any]) -> bool:
        if not self._met or queue.maxsize <= 0:
            return False
        met = self._met.get(current_host())
        if met is None:
            return False
        met[id(queue)] = queue
        return True
