"""Timeout: runs another node within a time of its own."""

from __future__ import annotations

from typing import Any, ClassVar

from tinyllm.config import TimeoutConfig
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode
from tinyllm.message import ErrorInfo, Message, NodeResult
from tinyllm.nodes.base import BaseNode, inner_steps, passed_on, success


class TimeoutNode(BaseNode):
    """Passes on what its inner node gives; what follows a `TIMEOUT` of the last attempt is for `on_timeout` to say."""

    wraps: ClassVar[bool] = True

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(TimeoutConfig)
        steps = inner_steps(context)
        with steps.limit(config.timeout_ms) as limit:
            outcome = await limit.run(config.inner_node, message, message.payload, context.variables)
        if outcome is None:
            text = f"{config.inner_node!r} took the {config.timeout_ms} ms of {self.id!r}"
            return NodeResult(success=False, error=ErrorInfo(code=ErrorCode.TIMEOUT, message=text, node_id=self.id))
        if outcome.error is not None:
            return NodeResult(success=False, error=outcome.error)
        context.variables = dict(outcome.variables)
        return success(context.child_of(message, outcome.message.payload), *outcome.next_nodes)

    def instead_of(self, error: ErrorInfo, message: Message, context: ExecutionContext) -> Message | None:
        config = self.config_as(TimeoutConfig)
        if error.code is not ErrorCode.TIMEOUT or config.on_timeout == "error":
            return None
        metadata: dict[str, Any] = dict(message.payload.metadata)
        if config.propagate_metadata:
            metadata["timeout"] = {"timed_out": True, "action": config.on_timeout}
        if config.on_timeout == "skip":
            return passed_on(message, context, metadata=metadata)
        return passed_on(message, context, content=config.fallback_response, metadata={**metadata, "fallback": True})
