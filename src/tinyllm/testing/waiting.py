"""Where a task waits, and on what: the words of the report about a run that is stuck."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Iterator
from dataclasses import dataclass
from types import AsyncGeneratorType, FrameType
from typing import Any, Final

from tinyllm.testing.tasks import SimulatedFuture, SimulatedTask

__all__ = ["Waiting", "waiting"]

_ASYNCIO: Final = asyncio.__file__.removesuffix("__init__.py")

# Names that say less than the public function in front of them.
_PLAIN: Final = {"_wait": "asyncio.wait", "_AsCompletedIterator._wait_for_one": "asyncio.as_completed"}


@dataclass(frozen=True, slots=True)
class Waiting:
    """One task that waits: its name, its owner, the line of its own code where it waits, and on what."""

    task: str
    owner: object
    file: str
    line: int
    function: str
    on: str

    def __str__(self) -> str:
        return f"{self.task} waits at {self.file}:{self.line}:{self.function} on {self.on}"


def waiting(task: SimulatedTask[Any]) -> Waiting:
    """Where *task* waits now: the innermost line outside asyncio, or just the innermost."""
    frames = list(_frames(task.get_coro()))
    own = [frame for frame in frames if not _of_asyncio(frame)] or frames
    place = ("<unknown>", 0, "<unknown>")
    if own:
        code = own[-1].f_code
        place = (code.co_filename, own[-1].f_lineno, code.co_qualname)
    return Waiting(task.get_name(), task.owner, *place, on=_awaited_by(task, frames))


def place_of(task: SimulatedTask[Any]) -> str:
    """The line of its own code where *task* waits, or begins: `file.py:7`, without its folder."""
    here = waiting(task)
    return f"{here.file.rpartition('/')[2]}:{here.line}"


def _of_asyncio(frame: FrameType) -> bool:
    return frame.f_code.co_filename.startswith(_ASYNCIO)


def _frames(awaited: object) -> Iterator[FrameType]:
    """The frames from *awaited* inwards, along the chain of awaits."""
    while awaited is not None:
        for frame_name, inner_name in (
            ("cr_frame", "cr_await"),
            ("ag_frame", "ag_await"),
            ("gi_frame", "gi_yieldfrom"),
        ):
            if hasattr(awaited, frame_name):
                frame = getattr(awaited, frame_name)
                if frame is not None:
                    yield frame
                awaited = getattr(awaited, inner_name)
                break
        else:
            # One step of an asynchronous generator does not say whose step it is; its references do.
            inside = gc.get_referents(awaited) if type(awaited).__name__.startswith("async_generator") else []
            awaited = next((thing for thing in inside if isinstance(thing, AsyncGeneratorType)), None)


def _awaited_by(task: SimulatedTask[Any], frames: list[FrameType]) -> str:
    future = getattr(task, "_fut_waiter", None)
    if isinstance(future, asyncio.Task):
        return f"task {future.get_name()}"
    children = [child for child in getattr(future, "_children", ()) if not child.done()]
    if children:
        return "gather of " + ", ".join(_name(child) for child in children)
    if frames and _of_asyncio(frames[-1]):
        name = frames[-1].f_code.co_qualname
        return _PLAIN.get(name, name)
    return "nothing that is known" if future is None else _name(future)


def _name(future: asyncio.Future[Any]) -> str:
    if isinstance(future, asyncio.Task):
        return f"task {future.get_name()}"
    if isinstance(future, SimulatedFuture):
        return f"future #{future.number}"
    return f"a {type(future).__name__}"
