"""Work that libraries give to threads of their own runs inline in the world, as jobs of the loop.

`anyio.to_thread.run_sync`, and with it sync endpoints of Starlette and FastAPI, and `aiosqlite` are led to
`loop.run_in_executor`. Every other thread is refused with the name of what to use. Libraries count that are
imported when the `with` begins; whoever imports one inside is told to do so earlier.

Waiting for another thread (an Event, a Condition, the result of a Future of `concurrent.futures`) is refused rather
than hung in, because nobody could end it; with a timeout it sleeps as `time.sleep` does and has waited in vain. Locks
and `queue.SimpleQueue` are written in C and not fenced.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextvars import copy_context
from functools import lru_cache, partial
from threading import get_ident
from typing import Any, Final, NoReturn, Self, TypeAlias

from tinyllm.testing.apps.replacements import Replacements
from tinyllm.testing.loop_errors import FencedError

__all__ = ["ThreadShims"]

_Shim: TypeAlias = tuple[Any, str, Any]

_INSTEAD: Final = "use asyncio.to_thread, which runs the work inline"
_EARLIER: Final = "import {} before the world begins, so that its work can run inline"


class ThreadShims:
    """While the `with` lasts, this thread of the process starts no other, and work meant for one runs inline."""

    def __init__(self) -> None:
        self._replacements = Replacements()

    def __enter__(self) -> Self:
        shims = [*_fence(get_ident())]
        for package, shims_for in _LIBRARIES:
            if package in sys.modules:
                shims += shims_for()
        self._replacements.put_all(shims)
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._replacements.undo()


@lru_cache(maxsize=8)
def _fence(here: int) -> tuple[_Shim, ...]:
    start, wait = threading.Thread.start, threading.Condition.wait

    def start_elsewhere(thread: threading.Thread) -> None:
        if get_ident() == here:
            _refuse_thread(thread)
        start(thread)

    def wait_elsewhere(condition: threading.Condition, timeout: float | None = None) -> bool:
        if get_ident() != here:
            return wait(condition, timeout)
        if timeout is None or timeout >= threading.TIMEOUT_MAX:
            raise FencedError("waiting for another thread", "await an asyncio.Event or Future: no other thread can run")
        time.sleep(max(0.0, timeout))
        return False

    return (threading.Thread, "start", start_elsewhere), (threading.Condition, "wait", wait_elsewhere)


@lru_cache(maxsize=1)
def _anyio_inline() -> tuple[_Shim, ...]:
    from anyio._backends._asyncio import AsyncIOBackend

    return (
        (AsyncIOBackend, "run_sync_in_worker_thread", classmethod(_run_sync_inline)),
        (AsyncIOBackend, "run_async_from_thread", classmethod(_refuse_from_thread)),
        (AsyncIOBackend, "run_sync_from_thread", classmethod(_run_sync_at_once)),
    )


@lru_cache(maxsize=1)
def _aiosqlite_inline() -> tuple[_Shim, ...]:
    from aiosqlite import core

    if not hasattr(core, "SimpleQueue") or not hasattr(core, "_connection_worker_thread"):
        return ()  # before 0.22 a connection was a thread itself, and is refused as one
    return (core, "SimpleQueue", _Jobs), (core, "Thread", _NoThread)


_LIBRARIES: Final = (("anyio", _anyio_inline), ("aiosqlite", _aiosqlite_inline))


def _refuse_thread(thread: threading.Thread) -> NoReturn:
    target = getattr(thread, "_target", None)
    module = str(getattr(target, "__module__", None) or type(thread).__module__)
    package = module.partition(".")[0]
    what = f"a thread of {module}"
    if package not in {"anyio", "aiosqlite"}:
        raise FencedError(what, _INSTEAD)
    if package == "aiosqlite" and module == type(thread).__module__:
        raise FencedError(what, "use aiosqlite 0.22 or later, whose work can run inline")
    raise FencedError(what, _EARLIER.format(package))


# --- anyio -----------------------------------------------------------------------------------------------


async def _run_sync_inline(
    backend: Any,
    func: Callable[..., Any],
    args: tuple[Any, ...],
    abandon_on_cancel: bool = False,
    limiter: Any = None,
) -> Any:
    """What the worker threads of anyio do, as a job of the loop."""
    from anyio import CancelScope

    await backend.checkpoint()
    async with limiter or backend.current_default_thread_limiter():
        with CancelScope(shield=not abandon_on_cancel) as scope:
            outer = getattr(scope, "_parent_scope", None)
            seen = scope if abandon_on_cancel or outer is None else outer
            loop = asyncio.get_running_loop()
            job = partial(_run_anyio_job, func, args, seen, backend, loop)
            return await loop.run_in_executor(None, job)


def _run_anyio_job(func: Callable[..., Any], args: tuple[Any, ...], scope: Any, backend: Any, loop: Any) -> Any:
    """Run *func* with what anyio keeps in its threads: whom to call back, and which scope may cancel it."""
    from anyio._core._eventloop import claim_worker_thread, set_current_async_library, threadlocals

    set_current_async_library(None)  # in the context of the job, which is a copy of its caller's
    with claim_worker_thread(backend, loop):
        threadlocals.current_cancel_scope = scope
        try:
            return func(*args)
        finally:
            del threadlocals.current_cancel_scope


def _refuse_from_thread(_backend: Any, func: Callable[..., Any], args: Any, token: Any) -> NoReturn:  # noqa: ARG001
    what = f"anyio.from_thread.run of {getattr(func, '__qualname__', type(func).__qualname__)}"
    raise FencedError(what, "let the coroutine that started the thread await it: the loop stands still meanwhile")


def _run_sync_at_once(_backend: Any, func: Callable[..., Any], args: tuple[Any, ...], token: Any) -> Any:
    """Call *func* on the loop, which stands still for the job and so can take it at once."""
    from anyio._core._eventloop import threadlocals

    outer = asyncio._get_running_loop()
    asyncio._set_running_loop(token or threadlocals.current_token.native_token)
    try:
        return copy_context().run(func, *args)
    finally:
        asyncio._set_running_loop(outer)


# --- aiosqlite -------------------------------------------------------------------------------------------


class _NoThread:
    """In the place of a connection's thread, which has nothing to do: its jobs run when they are given."""

    def __init__(self, **_settings: Any) -> None:
        """Take what a thread takes."""

    def start(self) -> None:
        """Does nothing."""


class _Jobs:
    """In the place of the queue of a connection's thread: one job of the loop for each thing that is put in.

    Whichever of the jobs comes next does what was put in first, so that no schedule changes their order.
    """

    def __init__(self) -> None:
        self._waiting: deque[tuple[Any, Callable[[], Any]]] = deque()

    def put_nowait(self, job: tuple[Any, Callable[[], Any]]) -> None:
        """Take *job*, a future and a function whose result it waits for."""
        self._waiting.append(job)
        loop = None if job[0] is None else job[0].get_loop()
        if loop is None or not loop.is_running():
            self._run()  # the last thing, of a connection that nobody closed, after the end of its loop
        else:
            loop.run_in_executor(None, self._run, loop)

    def _run(self, loop: Any = None) -> None:
        future, function = self._waiting.popleft()
        result: Any = None
        failure: BaseException | None = None
        try:
            result = function()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - whoever awaits the future gets it
            failure = error
        if loop is not None:
            loop.come_from_outside()
        if future is None or future.done():
            return
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)
