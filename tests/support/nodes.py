"""Nodes that behave as a test says, put into a real executor in the place of the node that the graph names."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from tinyllm.config import NodeDefinition
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.message import Message, NodeResult
from tinyllm.nodes.base import BaseNode, passed_on, success

Act = Callable[[Message, ExecutionContext], Awaitable[Any]]


class Acting(BaseNode):
    """Does what `act` does."""

    def __init__(self, definition: NodeDefinition, act: Act) -> None:
        super().__init__(definition)
        self.act = act

    async def execute(self, message: Message, context: ExecutionContext) -> Any:
        return await self.act(message, context)


class Wrapping(Acting):
    """The same for a wrapper, whose own code no attempt's deadline bounds."""

    wraps = True


def now_ms() -> float:
    return round(asyncio.get_running_loop().time() * 1_000, 6)


def says(text: str, *, after_ms: float = 0, way: str | None = None, **fields: Any) -> Act:
    """Answers `text`, and names `way` as the next node."""

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        await asyncio.sleep(after_ms / 1_000)
        ways = () if way is None else (way,)
        return success(passed_on(message, context, content=text, **fields), *ways)

    return act


def fails(
    code: ErrorCode = ErrorCode.MODEL_ERROR,
    *,
    after_ms: float = 0,
    recoverable: bool | None = None,
    text: str = "broken",
    **details: Any,
) -> Act:
    return raises(NodeError(code, text, recoverable=recoverable, details=details), after_ms=after_ms)


def raises(error: BaseException, *, after_ms: float = 0) -> Act:
    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        await asyncio.sleep(after_ms / 1_000)
        raise error

    return act


def returns(value: Any) -> Act:
    async def act(message: Message, context: ExecutionContext) -> Any:
        return value

    return act


def in_turn(*acts: Act) -> Act:
    """The k-th attempt does the k-th act; the last one stays."""
    left = list(acts)

    async def act(message: Message, context: ExecutionContext) -> Any:
        chosen = left.pop(0) if len(left) > 1 else left[0]
        return await chosen(message, context)

    return act


def noting(log: list[Any], act: Act) -> Act:
    """Puts the moment of each attempt into `log`."""

    async def noted(message: Message, context: ExecutionContext) -> Any:
        log.append(now_ms())
        return await act(message, context)

    return noted


def blocks(ms: int, act: Act | None = None) -> Act:
    """Keeps the whole loop busy: time passes and nobody else runs."""

    async def busy(message: Message, context: ExecutionContext) -> Any:
        loop: Any = asyncio.get_running_loop()
        loop._now_ns += ms * 1_000_000
        return await (act or says("late"))(message, context)

    return busy


def swallows(times: int | None, *, ms: float = 3_600_000, log: list[float] | None = None) -> Act:
    """Waits, and goes on waiting when cancelled: `times` times, or for ever if None. Then it answers."""

    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        left = times
        while left is None or left > 0:
            try:
                await asyncio.sleep(ms / 1_000)
                break
            except asyncio.CancelledError:
                if log is not None:
                    log.append(now_ms())
                if left is not None:
                    left -= 1
        return success(passed_on(message, context, content="swallowed"))

    return act
