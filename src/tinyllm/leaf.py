"""The code of a node, which is not ours, runs in a task of its own (see `eager.py`); here it is stopped in time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from inspect import isawaitable
from types import CoroutineType
from typing import Any

from tinyllm.eager import Raised, Started
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.scopes import Scope, nanoseconds

#: How often a task that swallows its cancellation is cancelled again at once, and then spread over its grace.
RECANCEL_AT_ONCE = 10
RECANCEL_SPREAD = 10


class Abandoned:
    """The node swallowed every cancellation and was left to itself."""

    def __repr__(self) -> str:
        return "ABANDONED"


ABANDONED = Abandoned()


async def called(call: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives that may be any awaitable, or none."""
    made = call(*arguments)
    if type(made) is CoroutineType:
        return await made
    if not isawaitable(made):
        text = f"execute must be `async def`, or give something to await, not {type(made).__name__}"
        raise NodeError(ErrorCode.VALIDATION_ERROR, text)
    return await _awaited(made)


async def _awaited(made: Any) -> Any:
    return await made


async def leaf_end(started: Started, scope: Scope, *, deadline: float, grace_s: float) -> Any:
    """Wait for the end of a node that waits: what it returned, or `Raised`, or `ABANDONED`.

    It is cancelled at its next await once loop time `deadline` has come or `scope` is over; whether that was so
    is for the caller to ask.
    """
    task = started.task
    assert task is not None
    with Scope(scope, deadline=deadline) as limit:
        try:
            await limit.wait(task)
        finally:
            # Only an end of the event loop itself gets here with the task undone and the limit not over.
            if not task.done() and limit.outermost_over() is None and not scope.tree.loop.is_closed():
                task.cancel()
        if limit.outermost_over() is not None and not await stop_task(task, grace_s=grace_s):
            return ABANDONED
    if isinstance(started.error, KeyboardInterrupt):
        # It has ended the loop, and somebody goes on with that; what it interrupted is over all the same.
        task.exception()
        raise started.error
    if started.error is not None:
        return Raised(started.error)
    # A cancellation that was asked for and had not arrived when the node returned ends the task as cancelled.
    return started.value if started.has_ended and not task.cancelled() else Raised(asyncio.CancelledError())


async def stop_task(task: asyncio.Task[Any], *, grace_s: float) -> bool:
    """Cancel `task` until it ends; False if it swallowed every cancellation for `grace_s` seconds.

    It is cancelled again at each of its first awaits, then at intervals: a task that swallows without end
    would otherwise keep the loop from ever moving on.
    """
    loop = asyncio.get_running_loop()
    deadline_ns = nanoseconds(loop.time() + grace_s)
    rounds = 0
    while not task.done():
        task.cancel()
        rounds += 1
        pause_s = 0.0 if rounds <= RECANCEL_AT_ONCE else grace_s / RECANCEL_SPREAD
        await asyncio.wait({task}, timeout=pause_s)
        if nanoseconds(loop.time()) >= deadline_ns and rounds > RECANCEL_AT_ONCE:
            break
    return task.done()
