"""What a run leaves behind, and how it ends: at close, in creation order, within the loop's budget of steps.

Everything here is found by looking. What the garbage collector would find, it finds at a moment of its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import TYPE_CHECKING, Any, Final

from tinyllm.testing.loop_errors import LivelockError, SimulationError, StuckError
from tinyllm.testing.tasks import SimulatedFuture, SimulatedTask, name_of

if TYPE_CHECKING:
    from tinyllm.testing.loop import SimulatedLoop

__all__ = ["bury_dead", "close_asyncgens", "end_leftovers", "report_unseen", "start_closing"]

_IMMORTAL: Final[list[Any]] = []
"""Coroutines that go on whatever is thrown into them. They are kept, because collecting one would hang Python."""

_ROUNDS: Final = 8
"""How often a task that swallows its cancellation is cancelled again."""


def end_leftovers(loop: SimulatedLoop) -> None:
    """Cancel the pending tasks, then close the asynchronous generators; report whatever would not end."""
    _end_tasks(loop)
    if loop.open_asyncgens():
        try:
            loop.run_until_complete(loop.shutdown_asyncgens())
        except SimulationError as error:
            message = "asynchronous generators would not end at close"
            loop.call_exception_handler({"message": message, "exception": error})
    for task in loop.pending_tasks():
        _abandon(loop, task)


def _end_tasks(loop: SimulatedLoop) -> None:
    for _ in range(_ROUNDS):
        leftovers = loop.pending_tasks()
        if not leftovers and not loop.has_ready():
            return
        for task in leftovers:
            task.cancel()
        try:
            loop.run_until_complete(_all_done(loop, leftovers))
        except StuckError:
            continue
        except LivelockError:
            return


def _all_done(loop: SimulatedLoop, tasks: tuple[SimulatedTask[Any], ...]) -> SimulatedFuture[None]:
    """A future for the end of all *tasks*; a task would be a leftover itself if they do not end."""
    future: SimulatedFuture[None] = loop.create_future()
    running = len(tasks)

    def one_is_done(_task: object) -> None:
        nonlocal running
        running -= 1
        if running <= 0:
            future.set_result(None)

    for task in tasks:
        task.add_done_callback(one_is_done)
    if not tasks:
        loop.call_soon(one_is_done, None)
    return future


async def close_asyncgens(loop: SimulatedLoop, agens: Iterable[AsyncGenerator[Any, Any]]) -> None:
    """Close *agens* side by side. An error in one is reported and does not keep the others open."""
    closing = list(agens)
    ends = await asyncio.gather(*(start_closing(loop, agen) for agen in closing), return_exceptions=True)
    for agen, end in zip(closing, ends, strict=True):
        if isinstance(end, Exception):  # so no cancellation, as in asyncio
            message = f"an error occurred during closing of asynchronous generator {name_of(agen)}"
            loop.call_exception_handler({"message": message, "exception": end, "asyncgen": agen})


def start_closing(loop: SimulatedLoop, agen: AsyncGenerator[Any, Any]) -> SimulatedTask[None]:
    """Close *agen* in a task of its own, which is called after it."""
    closing: Any = agen.aclose()
    task: SimulatedTask[None] = SimulatedTask(closing, loop=loop)
    task.set_name(f"{name_of(agen)}.aclose#{task.number}")
    return task


def _abandon(loop: SimulatedLoop, task: SimulatedTask[Any]) -> None:
    """Report a task that would not end, and close its coroutine now rather than when it is collected."""
    loop.call_exception_handler({"message": f"{task.get_name()} would not end when it was cancelled", "task": task})
    error = _closed(loop, task)
    if error is not None:
        message = f"{task.get_name()} failed when its coroutine was closed"
        loop.call_exception_handler({"message": message, "exception": error, "task": task})


def _closed(loop: SimulatedLoop, task: SimulatedTask[Any]) -> Exception | None:
    """Close the coroutine of *task*; give what it raised.

    As if the loop were running: code that catches everything and tries again would find none, catch that too,
    and never come back.
    """
    task._log_destroy_pending = False
    coro: Any = task.get_coro()
    asyncio._set_running_loop(loop)
    try:
        coro.close()
    except Exception as error:  # noqa: BLE001 - for whoever asks
        if coro.cr_frame is not None:
            _IMMORTAL.append(coro)
        return error
    finally:
        asyncio._set_running_loop(None)
    return None


def bury_dead(loop: SimulatedLoop, tasks: Iterable[SimulatedTask[Any]]) -> None:
    """Close what is left of crashed processes, when the loop will run nothing any more.

    Python lets no suspended coroutine vanish without running its `finally` blocks; what they begin here never
    happens. How they take it is nobody's finding: the process had died before.
    """
    for task in tasks:
        if task.process is not None and task.process.dead:
            _closed(loop, task)


def report_unseen(loop: SimulatedLoop, tasks: Iterable[SimulatedTask[Any]]) -> None:
    """Report each exception of *tasks* that nobody has looked at."""
    # _log_traceback is how a task remembers that nobody has looked. Looking clears it, and so silences the
    # destructor too.
    for task in tasks:
        if task.done() and task._log_traceback:
            message = f"exception of {task.get_name()} was never retrieved"
            loop.call_exception_handler({"message": message, "exception": task.exception(), "task": task})
