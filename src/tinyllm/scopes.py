"""Deadlines and cancellation as a tree of scopes.

Everything a run does happens inside a scope, scopes lie inside each other, and the outermost one that is
over decides. Only the engine's leaves (attempts of nodes, which run code that is not ours) are cancelled (see
`leaf.py`); the engine's own code asks its scope and leaves by raising `CutShort`. So a node that
swallows its cancellation can delay an answer, but it can never make the engine forget why it was stopped.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

#: Why a scope is over when nobody closed it.
DEADLINE = "deadline"
#: Seconds: more than the rounding of sums of floats that mean the same moment. Before that nobody compares exactly.
ROUNDING = 1e-6


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

    __slots__ = ("_children", "_deadline", "_parent", "_timer", "_wakers", "now", "reason", "safe_until", "tree")

    def __init__(self, parent: Scope | None = None, *, deadline: float | None = None) -> None:
        self._parent = parent
        self._deadline = deadline
        self._children: dict[int, Scope] | None = None
        self._wakers: dict[int, Callable[[], None]] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.reason: str | None = None
        if parent is None:
            self.tree = Tree(asyncio.get_running_loop())
            self.now = self.tree.now
            self.safe_until = math.inf
        else:
            self.tree, self.now = parent.tree, parent.now
            #: Before this loop time neither this scope nor one around it is over, unless one was closed. Whoever asks
            #: very often asks for this and for `tree.is_quiet` before calling anything.
            self.safe_until = parent.safe_until
        if deadline is not None and deadline - ROUNDING < self.safe_until:
            self.safe_until = deadline - ROUNDING

    def __enter__(self) -> Scope:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._parent is not None and self._parent._children is not None:
            self._parent._children.pop(id(self), None)

    def expire_at(self, deadline: float) -> None:
        """Give a scope that has no deadline this one, before anything happens in it."""
        self._deadline = deadline
        self.safe_until = min(self.safe_until, deadline - ROUNDING)

    def close(self, reason: str) -> None:
        """End this scope now. A second close, or one after the deadline, changes nothing."""
        if self.over() is None:
            self._end(reason)
        self._wake()

    def _end(self, reason: str) -> None:
        self.reason = reason
        self.tree.is_quiet = False

    def over(self) -> str | None:
        """Why this scope itself is over, or None: the reason it was closed for, or `deadline`."""
        deadline = self._deadline
        if self.reason is None and deadline is not None and nanoseconds(self.now()) >= nanoseconds(deadline):
            self._end(DEADLINE)
        return self.reason

    def outermost_over(self) -> Scope | None:
        """The outermost scope around here that is over, or None."""
        if self.tree.is_quiet and self.now() < self.safe_until:
            return None
        outermost: Scope | None = None
        scope: Scope | None = self
        while scope is not None:
            if scope.over() is not None:
                outermost = scope
            scope = scope._parent
        return outermost

    def is_over(self) -> bool:
        """Whether this scope or one around it is over."""
        return not (self.tree.is_quiet and self.now() < self.safe_until) and self.outermost_over() is not None

    def check(self) -> None:
        """Raise CutShort if this scope or one around it is over."""
        outermost = self.outermost_over()
        if outermost is not None:
            raise CutShort(outermost)

    async def wait(self, *tasks: asyncio.Future[Any]) -> None:
        """Return when one of the tasks is done, or this scope or one around it is over."""
        if self.outermost_over() is not None or any(task.done() for task in tasks):
            return
        waiter = self.tree.loop.create_future()

        def wake(_: object = None) -> None:
            if not waiter.done():
                waiter.set_result(None)

        self.on_over(wake)
        for task in tasks:
            task.add_done_callback(wake)
        try:
            await waiter
        finally:
            self.forget(wake)
            for task in tasks:
                task.remove_done_callback(wake)

    def on_over(self, waker: Callable[[], None]) -> None:
        """Call `waker` when this scope or one around it is over; it may be called again."""
        if self._wakers is None:
            self._wakers = {}
        self._wakers[id(waker)] = waker
        scope = self
        while True:
            # Only who waits needs a timer, and has to be found from outside: a scope in which nothing waits is cheap.
            if scope._timer is None and scope._deadline is not None:
                scope._timer = scope.tree.loop.call_at(scope._deadline, scope._expire)
            parent = scope._parent
            if parent is None:
                return
            if parent._children is None:
                parent._children = {}
            parent._children[id(scope)] = scope
            scope = parent

    def forget(self, waker: Callable[[], None]) -> None:
        """Undo `on_over`; does nothing if that was never called."""
        if self._wakers is not None:
            self._wakers.pop(id(waker), None)

    async def sleep_until(self, when: float) -> None:
        """Wait until loop time `when`; raises CutShort when this scope or one around it is over before."""
        with Scope(self, deadline=when) as pause:
            while pause.over() is None:
                await pause.wait()
                self.check()
        self.check()

    def _expire(self) -> None:
        # The stock loop runs a timer up to its clock's resolution early; what it ran is over.
        if self.reason is None:
            self._end(DEADLINE)
        self._wake()

    def _wake(self) -> None:
        """Wake whoever waits in this scope or inside it, outer ones first."""
        scopes = [self]
        while scopes:
            scope = scopes.pop()
            for waker in [*(scope._wakers or {}).values()]:
                waker()
            scopes += reversed((scope._children or {}).values())


class Tree:
    """What the scopes of one run have in common. `is_quiet` until one of them is over."""

    __slots__ = ("is_quiet", "loop", "now")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.now = time_of(loop)
        self.is_quiet = True


def time_of(loop: asyncio.AbstractEventLoop) -> Callable[[], float]:
    """What `loop.time` gives, without the step through the stock loop's method, which only calls this."""
    return time.monotonic if type(loop).time is asyncio.BaseEventLoop.time else loop.time


def nanoseconds(seconds: float) -> int:
    """Seconds as whole nanoseconds: sums of floats that mean the same moment become the same number."""
    return round(seconds * 1e9)
