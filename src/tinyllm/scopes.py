"""Deadlines and cancellation as a tree of scopes.

Everything a run does happens inside a scope, scopes lie inside each other, and the outermost one that is
over decides. Only the engine's leaves (attempts of nodes, which run code that is not ours) live in tasks that
are cancelled; the engine's own code asks its scope and leaves by raising `CutShort`. So a node that
swallows its cancellation can delay an answer, but it can never make the engine forget why it was stopped.
"""

from __future__ import annotations

import asyncio
from typing import Any

#: How often a task that swallows its cancellation is cancelled again at once, and then spread over its grace.
RECANCEL_AT_ONCE = 10
RECANCEL_SPREAD = 10
#: Why a scope is over when nobody closed it.
DEADLINE = "deadline"


class CutShort(Exception):
    """Unwinds the engine's own code up to the owner of `scope`, which is over."""

    def __init__(self, scope: Scope) -> None:
        super().__init__(scope.reason)
        self.scope = scope


class Scope:
    """A region that ends at `deadline` (loop time; None: never) or when it is closed.

    Whether a scope is over is a question to the clock, not to the order in which timers fire: at the very
    moment of a deadline it is over, for everyone who asks. Moments are compared as whole nanoseconds,
    because sums of floats that mean the same moment differ in their last bit.
    """

    def __init__(self, parent: Scope | None = None, *, deadline: float | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._parent = parent
        self._deadline_ns = None if deadline is None else _nanoseconds(deadline)
        self._children: dict[int, Scope] = {}
        self._waiters: dict[int, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.reason: str | None = None
        if parent is not None:
            parent._children[id(self)] = self
        if deadline is not None:
            self._timer = self._loop.call_at(deadline, self._expire)

    def __enter__(self) -> Scope:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._parent is not None:
            self._parent._children.pop(id(self), None)

    def close(self, reason: str) -> None:
        """End this scope now. A second close, or one after the deadline, changes nothing."""
        if self.over() is None:
            self.reason = reason
        self._wake()

    def over(self) -> str | None:
        """Why this scope itself is over, or None: the reason it was closed for, or `deadline`."""
        deadline_ns = self._deadline_ns if self.reason is None else None
        if deadline_ns is not None and _nanoseconds(self._loop.time()) >= deadline_ns:
            self.reason = DEADLINE
        return self.reason

    def outermost_over(self) -> Scope | None:
        """The outermost scope around here that is over, or None."""
        outermost: Scope | None = None
        scope: Scope | None = self
        while scope is not None:
            if scope.over() is not None:
                outermost = scope
            scope = scope._parent
        return outermost

    def check(self) -> None:
        """Raise CutShort if this scope or one around it is over."""
        outermost = self.outermost_over()
        if outermost is not None:
            raise CutShort(outermost)

    async def wait(self, *tasks: asyncio.Future[Any]) -> None:
        """Return when one of the tasks is done, or this scope or one around it is over."""
        if self.outermost_over() is not None or any(task.done() for task in tasks):
            return
        waiter = self._loop.create_future()

        def wake(_: object) -> None:
            if not waiter.done():
                waiter.set_result(None)

        self._waiters[id(waiter)] = waiter
        for task in tasks:
            task.add_done_callback(wake)
        try:
            await waiter
        finally:
            del self._waiters[id(waiter)]
            for task in tasks:
                task.remove_done_callback(wake)

    async def sleep_until(self, when: float) -> None:
        """Wait until loop time `when`; raises CutShort when this scope or one around it is over before."""
        with Scope(self, deadline=when) as pause:
            while pause.over() is None:
                await pause.wait()
                self.check()
        self.check()

    def _expire(self) -> None:
        # The stock loop runs a timer up to its clock's resolution early; what it ran is over.
        self.reason = self.reason or DEADLINE
        self._wake()

    def _wake(self) -> None:
        """Wake whoever waits in this scope or inside it, outer ones first."""
        scopes = [self]
        while scopes:
            scope = scopes.pop()
            for waiter in scope._waiters.values():
                if not waiter.done():
                    waiter.set_result(None)
            scopes += reversed(scope._children.values())


async def stop_task(task: asyncio.Task[Any], *, grace_s: float) -> bool:
    """Cancel `task` until it ends; False if it swallowed every cancellation for `grace_s` seconds.

    It is cancelled again at each of its first awaits, then at intervals: a task that swallows without end
    would otherwise keep the loop from ever moving on.
    """
    loop = asyncio.get_running_loop()
    deadline_ns = _nanoseconds(loop.time() + grace_s)
    rounds = 0
    while not task.done():
        task.cancel()
        rounds += 1
        pause_s = 0.0 if rounds <= RECANCEL_AT_ONCE else grace_s / RECANCEL_SPREAD
        await asyncio.wait({task}, timeout=pause_s)
        if _nanoseconds(loop.time()) >= deadline_ns and rounds > RECANCEL_AT_ONCE:
            break
    return task.done()


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
