"""Tools as a place where faults strike: a function, and around it what can go wrong with its calls."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from tinyllm.testing.faults import AnswerLost, Fault, ToolHangs, ToolRaises, ToolSlow, WrongType
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.loop_errors import FencedError
from tinyllm.testing.points import Points
from tinyllm.testing.tasks import current_process
from tinyllm.testing.units import NS_PER_MS

__all__ = ["faulty"]

_F = TypeVar("_F", bound=Callable[..., Any])


def faulty(function: _F, name: str, points: Points, *, loop: SimulatedLoop) -> _F:
    """*function*, sync or async, as the point "tool NAME": each call comes to it once and may be struck there.

    It keeps its name, documentation and signature. An async tool that is slow or hangs does its work afterwards,
    and none if it is cancelled before. A synchronous one cannot stand still, so it does its work at once: in
    `asyncio.to_thread` its answer comes late, or not until the world is healed; on the loop its host is busy
    for so long, or stands still until then.

    Raises:
        TypeError: it is a generator function, which gives no one answer.
    """
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise TypeError(f"a tool gives one answer, and {name!r} is a generator function")
    strike = functools.partial(points.strike, "tool", name)

    @functools.wraps(function)
    async def call_async(*args: Any, **kwargs: Any) -> Any:
        fault = strike()
        await _delay(fault, points, loop)
        _raise_before(fault, name)
        return _answer(await function(*args, **kwargs), fault, name)

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        fault = strike()
        _block(fault, points, loop)
        _raise_before(fault, name)
        return _answer(function(*args, **kwargs), fault, name)

    return call_async if _is_async(function) else call  # type: ignore[return-value]


def _is_async(function: Callable[..., Any]) -> bool:
    # An object that is called as a function is asynchronous if its class says so.
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


def _raise_before(fault: Fault | None, name: str) -> None:
    if isinstance(fault, ToolRaises):
        raise RuntimeError(f"tool {name!r} failed, as the plan of this world says")


def _answer(result: Any, fault: Fault | None, name: str) -> Any:
    if isinstance(fault, AnswerLost):
        raise ConnectionError(f"tool {name!r} did its work, and the connection was lost before it could answer")
    if isinstance(fault, WrongType):
        return 0 if result is None else None
    return result


async def _delay(fault: Fault | None, points: Points, loop: SimulatedLoop) -> None:
    if isinstance(fault, ToolSlow):
        await asyncio.sleep(fault.delay_ms / 1_000)
    elif isinstance(fault, ToolHangs):
        await _healed(points, loop)


def _block(fault: Fault | None, points: Points, loop: SimulatedLoop) -> None:
    """Let the thread stand still that a synchronous tool runs in: that of a job, or the one of the host."""
    if not isinstance(fault, ToolSlow | ToolHangs):
        return
    in_job = loop.job_cost_ns is not None
    if isinstance(fault, ToolHangs) and in_job:
        loop.job_awaits = _healed(points, loop)
        return
    process = current_process()
    if process is None:
        what = "a synchronous tool that blocks, outside of every host,"
        raise FencedError(what, "call it in a program that runs on a host")
    if isinstance(fault, ToolSlow):
        process.host.charge(fault.delay_ms * NS_PER_MS)
    else:
        process.host.pause()
        points.on_heal.append(process.host.resume)


def _healed(points: Points, loop: SimulatedLoop) -> asyncio.Future[None]:
    """A future that is done when the world is healed."""
    healed: asyncio.Future[None] = loop.create_future()
    points.on_heal.append(lambda: None if healed.done() else healed.set_result(None))
    return healed
