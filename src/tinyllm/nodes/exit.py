"""Exit: where a run ends, and what its end is called."""

from __future__ import annotations

from tinyllm.config import ExitConfig
from tinyllm.context import ExecutionContext
from tinyllm.message import Message, NodeResult
from tinyllm.nodes.base import BaseNode, passed_on, success


class ExitNode(BaseNode):
    """Writes its status and message into the payload's metadata; the executor makes them the run's status."""

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(ExitConfig)
        ending = {"exit_status": config.status, "exit_message": config.message}
        return success(passed_on(message, context, metadata={**message.payload.metadata, **ending}))
