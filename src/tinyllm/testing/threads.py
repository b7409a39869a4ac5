"""What would be a thread: a function that runs inline, between two steps of the tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from tinyllm.testing.tasks import SimulatedFuture, name_of

if TYPE_CHECKING:
    from tinyllm.testing.loop import SimulatedLoop

__all__ = ["job_name", "run_job"]

_T = TypeVar("_T")


def job_name(func: Callable[..., object]) -> str:
    """The name of a job, after the function that does the work."""
    # asyncio.to_thread hands in Context.run with the function as its first argument.
    inner = func.args[0] if isinstance(func, partial) and func.args else func
    return f"executor:{name_of(inner)}"


async def run_job(
    loop: SimulatedLoop, future: SimulatedFuture[_T], func: Callable[..., _T], args: tuple[Any, ...]
) -> None:
    """Run *func* as if no loop were running, and put what comes of it into *future* if that still waits."""
    result: Any = None
    failure: BaseException | None = None
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
    loop.come_from_outside()
    if future.done():
        return
    if failure is None:
        future.set_result(result)
    else:
        future.set_exception(failure)
