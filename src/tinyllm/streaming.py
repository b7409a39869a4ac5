"""A run read event by event."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

from tinyllm.eager import when_done
from tinyllm.errors import UsageError
from tinyllm.running import Run
from tinyllm.trace import RunResult, TraceEvent


class RunStream:
    """The events of a run in order, for `async for`; the last is `run ended`.

    Whoever reads slowly, or stops reading, changes nothing: the run goes on to its end. To end it, cancel it, or
    use the stream in `async with`, which on leaving cancels a run that has not ended and waits until it has. A
    reader that is cancelled while it waits cancels the run, as a caller of `run` would.
    """

    def __init__(self, run: Run, until_ended: Coroutine[Any, Any, RunResult], let_go: Callable[[], None]) -> None:
        self.run_id = run.run_id
        self._run = run
        self._events: deque[TraceEvent] = deque()
        self._waiting: dict[asyncio.Future[None], None] = {}
        run.trace.on_event = self._heard
        try:
            self._task = asyncio.get_running_loop().create_task(until_ended, name=f"stream {run.run_id}")
        except BaseException:
            until_ended.close()
            let_go()
            raise
        # A task that is cancelled before its first turn runs nothing of its coroutine, not even what is in `finally`.
        when_done(self._task, until_ended.close, let_go)
        self._task.add_done_callback(self._wake)

    @property
    def result(self) -> RunResult:
        """The run's result; raises UsageError before the run has ended."""
        if not self._task.done():
            raise UsageError(f"the run {self.run_id!r} has not ended yet: read its stream to the end first")
        return self._task.result()

    def __aiter__(self) -> RunStream:
        return self

    async def __anext__(self) -> TraceEvent:
        while not self._events:
            if self._task.done():
                # Whatever broke the engine itself is told here.
                self._task.result()
                raise StopAsyncIteration
            woken = asyncio.get_running_loop().create_future()
            self._waiting[woken] = None
            try:
                await woken
            except asyncio.CancelledError:
                await self.aclose()
                raise
            finally:
                self._waiting.pop(woken, None)
        return self._events.popleft()

    async def __aenter__(self) -> RunStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Cancel the run unless it has ended, and wait until it has; what it told meanwhile can still be read.

        Raises CancelledError, if the caller is cancelled while it waits, once the run has ended.
        """
        self._run.cancel()
        cancelled: asyncio.CancelledError | None = None
        while not self._task.done():
            try:
                await asyncio.wait({self._task})
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    def _heard(self, event: TraceEvent) -> None:
        self._events.append(event)
        self._wake()

    def _wake(self, _: object = None) -> None:
        # Several readers share the events; which of them gets one is the loop's affair.
        for woken in self._waiting:
            if not woken.done():
                woken.set_result(None)
