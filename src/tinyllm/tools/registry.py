"""Which tools there are."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from tinyllm.errors import UsageError
from tinyllm.tools.base import Tool
from tinyllm.tools.decorator import tool as tool_of


class ToolRegistry:
    """Tools by id. Each executor has one of its own; there is no global one."""

    def __init__(self, tools: Iterable[Tool] = ()) -> None:
        self._tools: dict[str, Tool] = {}
        for tool in tools:
            self.register(tool)

    def register(self, tool: Tool | Callable[..., Any], *, replace: bool = False) -> Tool:
        """Add a tool, or the tool that `@tool` makes of a typed function, and return it.

        Raises UsageError for an id that is taken, unless `replace`; the new one then has the old one's place.
        """
        added = tool if isinstance(tool, Tool) else tool_of(tool)
        if added.id in self._tools and not replace:
            raise UsageError(f"there is a tool '{added.id}' already; give another id, or replace=True")
        self._tools[added.id] = added
        return added

    def get(self, tool_id: str) -> Tool:
        """The tool of that id; raises UsageError that names the known ones and the nearest."""
        if tool_id in self._tools:
            return self._tools[tool_id]
        nearest = difflib.get_close_matches(str(tool_id)[:100], self.ids, n=1)
        hint = f". Did you mean '{nearest[0]}'?" if nearest else ""
        known = ", ".join(self.ids) if self._tools else "none"
        raise UsageError(f"there is no tool '{str(tool_id)[:100]}'; known are: {known[:1500]}{hint}")

    @property
    def ids(self) -> tuple[str, ...]:
        """All ids, in order of registration."""
        return tuple(self._tools)

    def __contains__(self, tool_id: object) -> bool:
        return tool_id in self._tools

    def __len__(self) -> int:
        return len(self._tools)

    def __iter__(self) -> Iterator[Tool]:
        """The tools, in order of registration, as they were when the iteration began."""
        return iter(tuple(self._tools.values()))

    def __repr__(self) -> str:
        return f"<ToolRegistry {', '.join(self.ids) or 'empty'}>"


def default_tools() -> ToolRegistry:
    """A fresh registry with the tools that come with TinyLLM, all of them pure and bounded."""
    from tinyllm.tools.calculator import calculator
    from tinyllm.tools.json_tool import JSON_TOOLS
    from tinyllm.tools.text import TEXT_TOOLS

    return ToolRegistry([calculator, *TEXT_TOOLS, *JSON_TOOLS])
