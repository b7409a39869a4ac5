"""What can be said about the tools that a graph names before anybody hands them in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tinyllm.config import Finding, NodeDefinition, ToolConfig, a_warning, short
from tinyllm.config.problems import likeness
from tinyllm.tools.base import Tool
from tinyllm.tools.registry import default_tools


def tool_findings(nodes: Iterable[tuple[int, NodeDefinition]]) -> Iterator[Finding]:
    """Warnings, since an executor may have other tools: ids that are not built in, arguments that never fit."""
    tools = default_tools()
    for index, node in nodes:
        if not isinstance(node.config, ToolConfig):
            continue
        tool_id = node.config.tool_id
        if tool_id in tools:
            yield from _misfits(tools.get(tool_id), node.config, index)
        else:
            close = likeness(tool_id, tools.ids)
            hint = f"Did you mean {close}?" if close else "An executor has to be given it."
            message = f"there is no built-in tool {short(tool_id)}"
            yield ("nodes", index, "config", "tool_id"), a_warning("unknown_tool", message, hint=hint)


def _misfits(tool: Tool, config: ToolConfig, index: int) -> Iterator[Finding]:
    schema: dict[str, Any] = tool.input_schema
    known = [*schema.get("properties", {}), *tool.aliases]
    given = config.mapping()
    hint = f"It takes {', '.join(known)}."
    for name in given:
        if name not in known and schema.get("additionalProperties") is False:
            path = ("nodes", index, "config", *(("input_mapping", name) if config.input_mapping else ("tool_id",)))
            message = f"the tool {tool.id!r} takes no {short(name)}"
            yield path, a_warning("tool_arguments", message, hint=hint)
    for name in schema.get("required", ()):
        if not {name, *(alias for alias, real in tool.aliases.items() if real == name)} & given.keys():
            message = f"the tool {tool.id!r} needs {short(name)}, which `input_mapping` does not give"
            yield ("nodes", index, "config"), a_warning("tool_arguments", message, hint=hint)
