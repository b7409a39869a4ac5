"""Tool: calls a tool with fields of the message, and puts out what it gave."""

from __future__ import annotations

from typing import Any

from tinyllm import expressions
from tinyllm.config import ToolConfig
from tinyllm.context import ExecutionContext
from tinyllm.errors import NodeError
from tinyllm.failures import error_of
from tinyllm.message import Message, NodeResult, ToolResult
from tinyllm.nodes.base import BaseNode, passed_on, success
from tinyllm.texts import as_text, at_path
from tinyllm.tools.context import ToolContext
from tinyllm.tools.registry import default_tools


class ToolNode(BaseNode):
    """The output goes to `tool_result`, to `content` and, if it is an object, to `structured`."""

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(ToolConfig)
        tools = default_tools() if context.tools is None else context.tools
        tool = tools.get(config.tool_id)
        caller = ToolContext(
            idempotency_key=context.idempotency_key, run_id=context.run_id, node_id=context.node_id
        )
        try:
            output = await tool.call(self._arguments(config, message, context), caller)
        except NodeError as error:
            if not config.continue_on_error:
                raise
            # Its text as the step's error would have it, since the tool's author may have built it in any way.
            failed = self._result(config, context, success=False, error=error_of(error, self.id).message)
            return success(passed_on(message, context, tool_result=failed), tool=config.tool_id)
        fields: dict[str, Any] = {"structured": output} if isinstance(output, dict) else {}
        fields["tool_result"] = self._result(config, context, success=True, output=output)
        return success(passed_on(message, context, content=as_text(output), **fields), tool=config.tool_id)

    def _arguments(self, config: ToolConfig, message: Message, context: ExecutionContext) -> dict[str, Any]:
        """The parameters whose fields are there and not null."""
        names = expressions.names_of(message, context.variables)
        found = {parameter: at_path(names, path) for parameter, path in config.mapping().items()}
        return {parameter: value for parameter, value in found.items() if value is not None}

    def _result(self, config: ToolConfig, context: ExecutionContext, **what: Any) -> ToolResult:
        return ToolResult(call_id=context.idempotency_key, tool_id=config.tool_id, **what)
