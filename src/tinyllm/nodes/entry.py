"""Entry: where a run starts, and where its input is checked."""

from __future__ import annotations

from tinyllm.config import EntryConfig
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.message import Message, NodeResult
from tinyllm.nodes.base import BaseNode, passed_on, success


class EntryNode(BaseNode):
    """Fails with `VALIDATION_ERROR` if a required field is missing or null."""

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        if required := self.config_as(EntryConfig).required_fields:
            fields = message.payload.fields()
            missing = [name for name in required if fields.get(name) is None]
            if missing:
                text = f"required and missing: {', '.join(missing)}"
                raise NodeError(ErrorCode.VALIDATION_ERROR, text, details={"missing": missing})
        return success(passed_on(message, context))
