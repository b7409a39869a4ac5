"""Graphs written in Python, checked like graphs read from files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Self

from tinyllm.config import NodeConfig
from tinyllm.graph import Graph, build_graph

Settings = Mapping[str, Any]


class GraphBuilder:
    """Collects nodes and edges, one call each, and builds a graph of them.

    Nothing is judged before `build`, so that parts may come in any order and every problem is told at once.
    Entry and exit points are the nodes of those types, in order, unless they are named.

        graph = (
            GraphBuilder("triage")
            .entry("start")
            .model("answer", model="qwen2.5:3b", retry_count=2)
            .exit("done")
            .chain("start", "answer", "done")
            .build()
        )
    """

    def __init__(
        self, id: str, *, version: str = "1.0.0", name: str | None = None, description: str | None = None  # noqa: A002
    ) -> None:
        self._top: dict[str, Any] = {"id": id, "version": version, "name": id if name is None else name}
        if description is not None:
            self._top["description"] = description
        self._nodes: list[dict[str, Any]] = []
        self._edges: list[dict[str, Any]] = []

    # --- nodes -------------------------------------------------------------------------------------

    def node(
        self,
        id: str,  # noqa: A002 - what it is called everywhere else
        type: str,  # noqa: A002
        config: NodeConfig | Settings | None = None,
        *,
        name: str | None = None,
        description: str | None = None,
        on_error: str | None = None,
        **settings: Any,
    ) -> Self:
        """Add a node of any type, also a custom one; its settings are given as a config, by name, or both."""
        given: Any = config.model_dump(mode="json", exclude_unset=True) if isinstance(config, NodeConfig) else config
        # What is no mapping is told with all the other problems.
        whole = {**(given or {}), **settings} if isinstance(given, Mapping | None) else given
        node: dict[str, Any] = {"id": id, "type": str(type), "config": whole}
        texts = {"name": name, "description": description, "on_error": on_error}
        self._nodes.append({**node, **{key: text for key, text in texts.items() if text is not None}})
        return self

    def entry(self, id: str, **settings: Any) -> Self:  # noqa: A002
        """Add an entry: see `EntryConfig` for its settings, and `node` for what every node takes."""
        return self.node(id, "entry", **settings)

    def exit(self, id: str, **settings: Any) -> Self:  # noqa: A002
        """Add an exit (`ExitConfig`)."""
        return self.node(id, "exit", **settings)

    def transform(self, id: str, *steps: str | Settings, **settings: Any) -> Self:  # noqa: A002
        """Add a transform (`TransformConfig`); a step is its type, or `{"type": ..., "params": {...}}`."""
        transforms = [{"type": step} if isinstance(step, str) else step for step in steps]
        return self.node(id, "transform", {"transforms": transforms} if steps else None, **settings)

    def router(self, id: str, routes: Iterable[Settings] = (), **settings: Any) -> Self:  # noqa: A002
        """Add a router (`RouterConfig`); a route is `{"name": ..., "target": ...}` and more."""
        return self.node(id, "router", routes=_listed(routes), **settings)

    def gate(self, id: str, conditions: Iterable[Settings] = (), **settings: Any) -> Self:  # noqa: A002
        """Add a gate (`GateConfig`); a condition is `{"name": ..., "expression": ..., "target": ...}`."""
        return self.node(id, "gate", conditions=_listed(conditions), **settings)

    def model(self, id: str, **settings: Any) -> Self:  # noqa: A002
        """Add a model (`ModelConfig`)."""
        return self.node(id, "model", **settings)

    def tool(self, id: str, tool_id: str, **settings: Any) -> Self:  # noqa: A002
        """Add a tool (`ToolConfig`)."""
        return self.node(id, "tool", tool_id=tool_id, **settings)

    def fanout(self, id: str, target_nodes: Iterable[str], **settings: Any) -> Self:  # noqa: A002
        """Add a fanout around nodes (`FanoutConfig`)."""
        return self.node(id, "fanout", target_nodes=_listed(target_nodes), **settings)

    def loop(self, id: str, body_node: str, **settings: Any) -> Self:  # noqa: A002
        """Add a loop around a node (`LoopConfig`)."""
        return self.node(id, "loop", body_node=body_node, **settings)

    def timeout(self, id: str, inner_node: str, **settings: Any) -> Self:  # noqa: A002
        """Add a timeout around a node (`TimeoutConfig`)."""
        return self.node(id, "timeout", inner_node=inner_node, **settings)

    # --- the rest ----------------------------------------------------------------------------------

    def edge(
        self,
        from_node: str,
        to_node: str,
        condition: str | None = None,
        *,
        priority: int | None = None,
        weight: float | None = None,
    ) -> Self:
        """Add an edge, taken if `condition` holds; without one, if no other edge is."""
        given = {"condition": condition, "priority": priority, "weight": weight}
        settings = {key: value for key, value in given.items() if value is not None}
        self._edges.append({"from_node": from_node, "to_node": to_node, **settings})
        return self

    def chain(self, *ids: str) -> Self:
        """Add an unconditional edge from each node to the next."""
        for one, other in pairwise(ids):
            self.edge(one, other)
        return self

    def entry_points(self, *ids: str) -> Self:
        """Name the entry points; the first is where a run starts unless told otherwise."""
        self._top["entry_points"] = [*ids]
        return self

    def exit_points(self, *ids: str) -> Self:
        """Name the exit points."""
        self._top["exit_points"] = [*ids]
        return self

    def metadata(self, **metadata: Any) -> Self:
        """Add to the graph's metadata, `promises=...` for example."""
        self._top["metadata"] = {**self._top.get("metadata", {}), **metadata}
        return self

    def protect(self, *ids: str) -> Self:
        """Name nodes as protected."""
        self._top["protected"] = [*self._top.get("protected", ()), *ids]
        return self

    def allow_cycles(self) -> Self:
        """Let the ways form cycles."""
        self._top["allow_cycles"] = True
        return self

    def value(self) -> dict[str, Any]:
        """What a graph file would hold."""
        points = {
            "entry_points": [node["id"] for node in self._nodes if node["type"] == "entry"],
            "exit_points": [node["id"] for node in self._nodes if node["type"] == "exit"],
        }
        return {**points, **self._top, "nodes": [*self._nodes], "edges": [*self._edges]}

    def build(self) -> Graph:
        """The graph; raises GraphConfigError with every problem, like a file, but without lines and columns."""
        return build_graph(self.value(), source=f"GraphBuilder({self._top['id']!r})")


def _listed(items: Any) -> Any:
    """Items as a list; what is none is told by `build`, with all the other problems."""
    return [*items] if isinstance(items, Iterable) and not isinstance(items, str | Mapping) else items
