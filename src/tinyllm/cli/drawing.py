"""A graph as a picture before it has any form: boxes with their lines of text, and links with their labels.

Mermaid and SVG are made of the same picture, so they can only differ in looks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from tinyllm.config import (
    EntryConfig,
    ExitConfig,
    FanoutConfig,
    GateConfig,
    LoopConfig,
    ModelConfig,
    NodeConfig,
    NodeDefinition,
    NodeType,
    RouterConfig,
    TimeoutConfig,
    ToolConfig,
    TransformConfig,
)
from tinyllm.graph import Graph, Shape

LinkKind = Literal["way", "error", "wraps", "idle"]

#: What the kinds of link mean, in the order of the legend.
MEANINGS: dict[LinkKind, str] = {
    "way": "way of the token",
    "error": "way after an error",
    "wraps": "runs it inside itself",
    "idle": "never taken",
}
ID_CHARS_MAX = 38
DETAIL_CHARS_MAX = 44
LABEL_CHARS_MAX = 32
LABEL_LINES_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A node. `point` says whether runs can start or end here; `reached`, whether any run can come here."""

    id: str
    type: str
    name: str
    detail: str = ""
    about: str = ""
    point: Literal["entry", "exit", ""] = ""
    reached: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A line from one box to another, by their ids. `labels` are lines of text."""

    start: str
    end: str
    kind: LinkKind
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """All that is drawn of a graph."""

    title: str
    about: str
    boxes: tuple[Box, ...]
    links: tuple[Link, ...]

    @property
    def kinds(self) -> tuple[LinkKind, ...]:
        """The kinds of link that occur, in the order of the legend."""
        return tuple(kind for kind in MEANINGS if any(link.kind == kind for link in self.links))


def picture_of(graph: Graph) -> Picture:
    """What there is to draw of `graph`: every node, and every way that its edges and configs name."""
    shape = graph.shape
    boxes = tuple(_box(node, graph) for node in graph.definition.nodes)
    definition = graph.definition
    return Picture(
        title=definition.name,
        about=definition.description or f"{definition.id} {definition.version}",
        boxes=boxes,
        links=tuple(_merged([*_edges(graph), *_choices(shape), *_errors(shape), *_insides(shape)])),
    )


# --- boxes ---------------------------------------------------------------------------------------------


def _box(node: NodeDefinition, graph: Graph) -> Box:
    definition, shape = graph.definition, graph.shape
    point: Literal["entry", "exit", ""] = ""
    if node.id in definition.entry_points:
        point = "entry"
    elif node.id in definition.exit_points:
        point = "exit"
    return Box(
        id=node.id,
        type=str(node.type),
        name=shortened(node.id, ID_CHARS_MAX),
        detail=shortened(_detail(node.config), DETAIL_CHARS_MAX),
        about=" - ".join(text for text in (node.name, node.description) if text),
        point=point,
        reached=node.id in shape.visitable or node.id in shape.wrapped,
    )


def _detail(config: NodeConfig) -> str:
    """The one thing to know about a node of this config, beside its id and type."""
    match config:
        case EntryConfig():
            return f"needs {', '.join(config.required_fields)}" if config.required_fields else ""
        case ExitConfig():
            return str(config.status)
        case ModelConfig():
            others = len(config.models()) - 1
            return config.model + (f" (+{others} to fall back on)" if others else "")
        case RouterConfig():
            return f"by {config.model}" if config.mode == "model" else f"by {config.mode}"
        case GateConfig():
            return "by conditions" if config.mode == "expression" else f"{config.mode}, {config.model}"
        case ToolConfig():
            return config.tool_id
        case FanoutConfig():
            votes = f", {config.votes_needed} votes" if config.aggregation_strategy == "majority_vote" else ""
            return f"{config.aggregation_strategy}{votes}"
        case LoopConfig():
            return _loop_detail(config)
        case TimeoutConfig():
            return f"{config.timeout_ms / 1_000:g} s, then {config.on_timeout}"
        case TransformConfig():
            return ", ".join(step.type for step in config.transforms)
        case _:
            return ""


def _loop_detail(config: LoopConfig) -> str:
    if config.condition_type in ("until_condition", "while_condition"):
        return f"{config.condition_type.partition('_')[0]} {config.condition_expression}"
    times = f"{config.count} times" if config.condition_type == "fixed_count" else f"at most {config.count} times"
    return times if config.condition_type == "fixed_count" else f"until success, {times}"


# --- links ---------------------------------------------------------------------------------------------


def _edges(graph: Graph) -> Iterator[Link]:
    for edge in graph.definition.edges:
        if edge.to_node in graph.shape.targets(edge.from_node):
            # Files of the 0.1 format draw an edge to what a wrapper runs; that link is drawn as what it is.
            continue
        labels = (edge.condition,) if edge.condition is not None else ()
        if edge.priority:
            labels = (*labels, f"priority {edge.priority}")
        taken = edge.from_node in graph.shape.visitable and edge in graph.edges_from(edge.from_node)
        yield Link(start=edge.from_node, end=edge.to_node, kind="way" if taken else "idle", labels=labels)


def _choices(shape: Shape) -> Iterator[Link]:
    """The ways in configs, from the node where the token stands when they are taken."""
    for node in shape.nodes.values():
        chooser = _innermost(node, shape)
        # What a timeout wraps chooses for the timeout, and is drawn there.
        if node.id in shape.wrapped and node.id not in shape.visitable:
            continue
        kind: LinkKind = "way" if node.id in shape.visitable else "idle"
        for target, label in _named_ways(chooser.config):
            yield Link(start=node.id, end=target, kind=kind, labels=(label,))


def _innermost(node: NodeDefinition, shape: Shape) -> NodeDefinition:
    while isinstance(node.config, TimeoutConfig):
        node = shape.nodes[node.config.inner_node]
    return node


def _named_ways(config: NodeConfig) -> Iterator[tuple[str, str]]:
    if isinstance(config, GateConfig):
        yield from ((condition.target, condition.name) for condition in config.conditions)
        if config.default_target is not None:
            yield config.default_target, "default"
    elif isinstance(config, RouterConfig):
        default = None if config.default_route is None else config.route_named(config.default_route)
        for route in config.routes:
            priority = f", priority {route.priority}" if route.priority else ""
            yield route.target, f"{route.name}{' (default)' if route is default else ''}{priority}"
        for compound in config.compound_routes:
            yield compound.target, " + ".join(compound.domains)
    else:
        # A custom type may name ways, too.
        yield from ((target, "") for target in config.ways())


def _errors(shape: Shape) -> Iterator[Link]:
    for node in shape.nodes.values():
        if node.on_error is not None:
            kind: LinkKind = "error" if node.id in shape.visitable and node.type is not NodeType.EXIT else "idle"
            yield Link(start=node.id, end=node.on_error, kind=kind, labels=("on error",))


def _insides(shape: Shape) -> Iterator[Link]:
    for node in shape.nodes.values():
        targets = shape.targets(node.id)
        for target in dict.fromkeys(targets):
            times = targets.count(target)
            yield Link(start=node.id, end=target, kind="wraps", labels=(f"{times} times",) if times > 1 else ())


def _merged(links: list[Link]) -> Iterator[Link]:
    """One link for all of the same kind between two nodes, with all that they say, cut to what can be read."""
    grouped: dict[tuple[str, str, LinkKind], list[str]] = {}
    for link in links:
        grouped.setdefault((link.start, link.end, link.kind), []).extend(link.labels)
    for (start, end, kind), labels in grouped.items():
        told = [shortened(label, LABEL_CHARS_MAX) for label in dict.fromkeys(labels) if label]
        if len(told) > LABEL_LINES_MAX:
            told = [*told[: LABEL_LINES_MAX - 1], f"and {len(told) - LABEL_LINES_MAX + 1} more"]
        yield Link(start=start, end=end, kind=kind, labels=tuple(told))


def shortened(text: str, chars_max: int) -> str:
    """`text` on one line of at most so many characters; the middle is left out, since ends tell names apart."""
    line = " ".join(text.split())
    if len(line) <= chars_max:
        return line
    tail = (chars_max - 1) // 3
    return f"{line[: chars_max - 1 - tail]}…{line[-tail:]}"
