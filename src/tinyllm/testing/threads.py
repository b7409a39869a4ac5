"""What would be a thread: a function that runs inline, between two steps of the tasks.

It runs at once and to its end, so what it does is done when it begins. If it blocks on the way, in `time.sleep`
for example, only its answer comes later, as that of a thread would.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from inspect import getclosurevars
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from tinyllm.testing.loop_errors import FencedError
from tinyllm.testing.tasks import SimulatedFuture, name_of

if TYPE_CHECKING:
    from tinyllm.testing.loop import SimulatedLoop

__all__ = ["fence_wait", "is_job", "job_name", "run_job"]

_T = TypeVar("_T")


def job_name(func: Callable[..., object]) -> str:
    """The name of a job, after the function that does the work."""
    # asyncio.to_thread hands in Context.run with the function as its first argument.
    inner = func.args[0] if isinstance(func, partial) and func.args else func
    return f"executor:{name_of(inner)}"


async def run_job(
    loop: SimulatedLoop,
    future: SimulatedFuture[_T],
    func: Callable[..., _T],
    args: tuple[Any, ...],
    before: asyncio.Task[Any] | None = None,
) -> None:
    """Run *func* as if no loop were running, and put what comes of it into *future* if that still waits.

    What *func* costs in virtual time, a slow sync for example, passes before anybody sees what came of it, and
    so does what it left in the loop's `job_awaits`. It begins when the job *before* it has ended, unless *future*
    was cancelled by then.
    """
    if before is not None:
        await asyncio.wait([before])
        if future.cancelled():
            return
    if late_ns := loop.outside_delay_ns(f"the start of {job_name(func)}"):
        await asyncio.sleep(late_ns / 1e9)
    result: Any = None
    failure: BaseException | None = None
    loop.job_cost_ns = 0
    asyncio._set_running_loop(None)
    try:
        result = func(*args)
    except (SystemExit, KeyboardInterrupt):
        raise
    except StopIteration as error:  # the one exception that no future takes
        failure = RuntimeError(f"{name_of(func)} raised StopIteration")
        failure.__cause__ = error
    except BaseException as error:  # noqa: BLE001 - as a thread pool does
        failure = error
    finally:
        asyncio._set_running_loop(loop)
        cost_ns, loop.job_cost_ns = loop.job_cost_ns, None
        awaited, loop.job_awaits = loop.job_awaits, None
    cost_ns += loop.outside_delay_ns(f"the end of {job_name(func)}")
    if cost_ns:
        await asyncio.sleep(cost_ns / 1e9)
    if awaited is not None:
        await awaited
    loop.come_from_outside()
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)


def is_job(task: asyncio.Task[Any]) -> bool:
    """Whether *task* stands for a job, and would be a thread in earnest."""
    return getattr(task.get_coro(), "cr_code", None) is run_job.__code__


class _NoWait(threading.Condition):
    """The condition of a future that nobody can wait for, because the loop stands still meanwhile."""

    def wait(self, timeout: float | None = None) -> NoReturn:  # noqa: ARG002
        what = "waiting in a thread for asyncio.run_coroutine_threadsafe"
        raise FencedError(what, "let the coroutine that started the thread await it")


def fence_wait(callback: Callable[..., object]) -> None:
    """Let a job fail, rather than hang, that waits for what `asyncio.run_coroutine_threadsafe` gave it.

    *callback* is what that function hands to the loop; everything else is left alone. A job that does not wait
    is not refused.
    """
    if name_of(callback) == "run_coroutine_threadsafe.<locals>.callback":
        getclosurevars(callback).nonlocals["future"]._condition = _NoWait()
