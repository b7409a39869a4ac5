"""Tools: functions that a graph can call, each behind schemas for what goes in and what comes out."""

from tinyllm.tools.base import Tool
from tinyllm.tools.context import ToolContext
from tinyllm.tools.decorator import tool
from tinyllm.tools.registry import ToolRegistry, default_tools

__all__ = ["Tool", "ToolContext", "ToolRegistry", "default_tools", "tool"]
