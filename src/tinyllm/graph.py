"""A graph whose parts fit together: its ways, what can be visited, and what is wrong with its structure.

Three words carry everything here. A wrapper *wraps* the nodes it runs inside itself. A node's *ways* are where
the token can go from it. The token can *visit* what ways reach from the entry points.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

from tinyllm.config import (
    EdgeDefinition,
    Finding,
    GraphDefinition,
    NodeConfig,
    NodeDefinition,
    NodeType,
    Reader,
    TimeoutConfig,
    a_warning,
    an_error,
    first_in_file,
)
from tinyllm.documents import VALUES_MAX, Document, PathKey, more_values_than, parse_document, read_document
from tinyllm.errors import GraphConfigError, Problem, UsageError

#: Wrappers inside each other; as many levels as a file may have.
WRAPPERS_MAX = 64


@dataclass(frozen=True)
class Graph:
    """A graph that passed every check. `warnings` refuse nothing; `document` is None unless read from text."""

    definition: GraphDefinition
    warnings: tuple[Problem, ...] = ()
    document: Document | None = field(default=None, compare=False, repr=False)

    @property
    def id(self) -> str:
        return self.definition.id

    @property
    def entry(self) -> str:
        """Where a run starts unless told otherwise: the first entry point."""
        return self.definition.entry_points[0]

    @cached_property
    def nodes(self) -> Mapping[str, NodeDefinition]:
        return {node.id: node for node in self.definition.nodes}

    @cached_property
    def shape(self) -> Shape:
        return Shape(self.definition.nodes, self.definition.edges, self.definition.entry_points)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that the graph says, whatever text it was read from."""
        text = json.dumps(self.definition.model_dump(mode="json"), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def edges_from(self, node_id: str) -> tuple[EdgeDefinition, ...]:
        """The edges that the token can take, in the order in which they are asked: priority, then file."""
        return self.shape.edges_from(node_id)

    def ways(self, node_id: str) -> tuple[str, ...]:
        """Where the token can go from this node, each once, in order."""
        return self.shape.ways(node_id)


def load_graph(path: str | Path) -> Graph:
    """Read a graph file; raises GraphConfigError with every problem, its line and its column."""
    if not isinstance(path, str | Path):
        raise UsageError(f"a graph file is named by text or a Path, not {type(path).__name__}")
    return _graph_of(read_document(Path(path)))


def parse_graph(text: str | bytes, *, source: str = "<graph>") -> Graph:
    """Read a graph from YAML or JSON text; raises GraphConfigError like `load_graph`."""
    if not isinstance(text, str | bytes):
        raise UsageError(f"a graph is read from text or bytes, not {type(text).__name__}")
    return _graph_of(parse_document(text, source=source))


def build_graph(value: Mapping[str, Any], *, source: str = "<graph>") -> Graph:
    """A graph from plain values, as a file would hold them; raises GraphConfigError without positions."""
    given: Any = value
    plain = dict(given) if isinstance(given, Mapping) else given
    if more_values_than(plain, VALUES_MAX):
        message = f"more than {VALUES_MAX} values"
        problem = Problem(code="too_large", message=message, path="", hint="A graph is no place for data.")
        raise GraphConfigError((problem,), source=source)
    return _graph_of(Document(plain, {}, source))


def _graph_of(document: Document) -> Graph:
    reader = Reader(document)
    for path, problem in structure_findings(reader):
        reader.report(path, problem)
    definition = reader.definition()
    return Graph(definition, first_in_file(reader.warnings), document)


# --- ways ----------------------------------------------------------------------------------------------


def wrapped_by(config: NodeConfig) -> tuple[str, ...]:
    """The nodes that a node of this config runs inside itself; empty for all but wrappers."""
    return config.wrapped()


class Shape:
    """Nodes and edges that are well-formed one by one; they need not fit together yet."""

    def __init__(
        self, nodes: Iterable[NodeDefinition], edges: Iterable[EdgeDefinition], entry_points: Iterable[str]
    ) -> None:
        self.nodes: dict[str, NodeDefinition] = {}
        for node in nodes:
            self.nodes.setdefault(node.id, node)
        grouped: dict[str, list[EdgeDefinition]] = {}
        for edge in edges:
            grouped.setdefault(edge.from_node, []).append(edge)
        self._edges = {
            node_id: tuple(sorted(out, key=lambda edge: -edge.priority)) for node_id, out in grouped.items()
        }
        self._ways: dict[str, tuple[str, ...]] = {}
        self.visitable = self._reached(entry_points)
        self.wrapped = self._wrapped()

    def edges_from(self, node_id: str) -> tuple[EdgeDefinition, ...]:
        node = self.nodes.get(node_id)
        if node is None or node.type is NodeType.EXIT:
            return ()
        inside = wrapped_by(node.config)
        return tuple(edge for edge in self._edges.get(node_id, ()) if edge.to_node not in inside)

    def targets(self, node_id: str) -> tuple[str, ...]:
        node = self.nodes.get(node_id)
        return wrapped_by(node.config) if node else ()

    def ways(self, node_id: str) -> tuple[str, ...]:
        if node_id not in self._ways:
            self._ways[node_id] = self._ways_of(node_id)
        return self._ways[node_id]

    def _ways_of(self, node_id: str) -> tuple[str, ...]:
        node = self.nodes.get(node_id)
        if node is None or node.type is NodeType.EXIT:
            return ()
        ways = [edge.to_node for edge in self.edges_from(node_id)]
        ways += self.chosen_ways(node_id)
        if node.on_error is not None:
            ways.append(node.on_error)
        return tuple(dict.fromkeys(ways))

    def chosen_ways(self, node_id: str) -> tuple[str, ...]:
        """The targets in the config of a router, of a gate, or of a timeout around one."""
        # A timeout passes on the way that its inner node names.
        _, node = self._timeouts_around(node_id)
        return () if node is None else node.config.ways()

    def names_its_way(self, node_id: str) -> bool:
        """Whether a node that succeeds always names where to go on, and so needs no edge for that.

        A timeout around a router does not if it succeeds when the time is up.
        """
        timeouts, node = self._timeouts_around(node_id)
        if node is None or any(timeout.on_timeout != "error" for timeout in timeouts):
            return False
        return node.type in (NodeType.GATE, NodeType.ROUTER) or bool(node.config.ways())

    def _timeouts_around(self, node_id: str) -> tuple[list[TimeoutConfig], NodeDefinition | None]:
        """The timeouts from this node inwards, none if it is not one, and the first node inside that is none."""
        node = self.nodes.get(node_id)
        timeouts: list[TimeoutConfig] = []
        passed: set[str] = set()
        # One inside itself is refused elsewhere.
        while node is not None and isinstance(node.config, TimeoutConfig) and node.id not in passed:
            passed.add(node.id)
            timeouts.append(node.config)
            node = self.nodes.get(node.config.inner_node)
        return timeouts, node

    def _reached(self, starts: Iterable[str]) -> dict[str, None]:
        reached: dict[str, None] = {}
        waiting = [start for start in starts if start in self.nodes]
        while waiting:
            node_id = waiting.pop()
            if node_id in reached:
                continue
            reached[node_id] = None
            waiting += [way for way in self.ways(node_id) if way in self.nodes]
        return reached

    def _wrapped(self) -> dict[str, None]:
        """What runs inside a node that can be visited, directly or deeper."""
        wrapped: dict[str, None] = {}
        waiting = list(self.visitable)
        while waiting:
            for target in self.targets(waiting.pop()):
                if target not in wrapped:
                    wrapped[target] = None
                    waiting.append(target)
        return wrapped


# --- structure -----------------------------------------------------------------------------------------


def structure_findings(reader: Reader) -> Iterator[Finding]:
    """What is wrong or doubtful in how the well-formed parts fit together."""
    shape = Shape((n for _, n in reader.nodes), (e for _, e in reader.edges), reader.points.entry_points)
    yield from _duplicate_ids(reader)
    yield from _unknown_references(reader, shape)
    yield from _points(reader, shape)
    yield from _wrappers(reader, shape)
    yield from _too_deep(reader, shape)
    if reader.refused_parts:
        # A refused node or edge could be the missing link; what follows would be guesses.
        return
    yield from _unreached(reader, shape)
    yield from _dead_ends(reader, shape)
    if not reader.points.allow_cycles:
        yield from _cycles(reader, shape)
    yield from _doubtful_edges(reader, shape)


def _duplicate_ids(reader: Reader) -> Iterator[Finding]:
    seen: dict[str, int] = {}
    for index, node in reader.nodes:
        if node.id in seen:
            message = f"{node.id!r} is also the id of nodes[{seen[node.id]}]"
            yield (("nodes", index, "id"), an_error("duplicate_id", message))
        seen.setdefault(node.id, index)


def references(reader: Reader) -> Iterator[tuple[PathKey, str]]:
    """Every place of a file that names a node, in the order of the file."""
    for index, node in reader.nodes:
        at: PathKey = ("nodes", index)
        for inner, name in node.config.references():
            yield (*at, "config", *inner), name
        if node.on_error is not None:
            yield (*at, "on_error"), node.on_error
    for index, edge in reader.edges:
        yield ("edges", index, "from_node"), edge.from_node
        yield ("edges", index, "to_node"), edge.to_node
    for key in ("entry_points", "exit_points", "protected"):
        for number, name in enumerate(getattr(reader.points, key) or ()):
            yield (key, number), name


def _unknown_references(reader: Reader, shape: Shape) -> Iterator[Finding]:
    known = [*shape.nodes]
    for path, name in references(reader):
        if name not in shape.nodes and name not in reader.refused_ids:
            hint = f"Nodes: {', '.join(known[:8])}{' ...' if len(known) > 8 else '.'}"
            yield path, an_error("unknown_node", f"there is no node {name!r}", hint=hint)


def _points(reader: Reader, shape: Shape) -> Iterator[Finding]:
    for key, kind in (("entry_points", NodeType.ENTRY), ("exit_points", NodeType.EXIT)):
        for number, name in enumerate(getattr(reader.points, key)):
            node = shape.nodes.get(name)
            if node is not None and node.type is not kind:
                yield (key, number), an_error("wrong_type", f"{name!r} is of type {node.type}, not {kind}")


def _wrappers(reader: Reader, shape: Shape) -> Iterator[Finding]:
    circles = _circles(shape)
    for index, node in reader.nodes:
        inside = wrapped_by(node.config)
        for inner_path, target in node.config.references():
            if target not in inside:
                continue
            path: PathKey = ("nodes", index, "config", *inner_path)
            inner = shape.nodes.get(target)
            if inner is not None and inner.type in (NodeType.ENTRY, NodeType.EXIT):
                text = f"{target!r} is of type {inner.type} and cannot run inside a node"
                yield path, an_error("wrapped_point", text)
            if circles[node.id] == circles.get(target):
                yield path, an_error("contains_itself", f"{node.id!r} contains itself through {target!r}")


def _too_deep(reader: Reader, shape: Shape) -> Iterator[Finding]:
    """Wrappers inside wrappers, more than `WRAPPERS_MAX` of them: a step would be as deep as that."""
    insides = TopologicalSorter({node_id: shape.targets(node_id) for node_id in shape.nodes})
    levels: dict[str, int] = {}
    try:
        for node_id in insides.static_order():
            levels[node_id] = max((1 + levels[target] for target in shape.targets(node_id)), default=0)
    except CycleError:
        # A wrapper that contains itself has no depth, and is refused for that.
        return
    for index, node in reader.nodes:
        if levels[node.id] == WRAPPERS_MAX + 1:
            message = f"{node.id!r} wraps nodes more than {WRAPPERS_MAX} levels deep"
            yield ("nodes", index, "config"), an_error("too_deep", message)


def _circles(shape: Shape) -> dict[str, str]:
    """One node's id for each node, the same for all that lie inside each other (Kosaraju's two walks).

    Asking for each target what lies inside it would be simpler, and take a file of 300 fanouts minutes.
    """
    ended: list[str] = []
    entered: set[str] = set()
    wrappers: dict[str, list[str]] = {}
    for root in shape.nodes:
        stack = [] if root in entered else [(root, iter(shape.targets(root)))]
        entered.add(root)
        while stack:
            node_id, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                ended.append(node_id)
                stack.pop()
                continue
            wrappers.setdefault(target, []).append(node_id)
            if target not in entered:
                entered.add(target)
                stack.append((target, iter(shape.targets(target))))
    circles: dict[str, str] = {}
    for root in reversed(ended):
        waiting = [root]
        while waiting:
            node_id = waiting.pop()
            if node_id not in circles:
                circles[node_id] = root
                waiting += wrappers.get(node_id, ())
    return circles


def _unreached(reader: Reader, shape: Shape) -> Iterator[Finding]:
    for index, node in reader.nodes:
        if node.id not in shape.visitable and node.id not in shape.wrapped:
            yield ("nodes", index), a_warning("unreached", f"no way leads to {node.id!r}")


def _dead_ends(reader: Reader, shape: Shape) -> Iterator[Finding]:
    arriving: dict[str, list[str]] = {}
    for node_id in shape.visitable:
        for way in shape.ways(node_id):
            arriving.setdefault(way, []).append(node_id)
    waiting = [node_id for node_id, node in shape.nodes.items() if node.type is NodeType.EXIT]
    leads_out: dict[str, None] = {}
    while waiting:
        node_id = waiting.pop()
        if node_id not in leads_out:
            leads_out[node_id] = None
            waiting += arriving.get(node_id, [])
    for index, node in reader.nodes:
        if node.id in shape.visitable and node.id not in leads_out:
            yield ("nodes", index), an_error("no_way_out", f"no way leads from {node.id!r} to an exit")


def _cycles(reader: Reader, shape: Shape) -> Iterator[Finding]:
    cycle = find_cycle(shape)
    if cycle:
        index = next(index for index, node in reader.nodes if node.id == cycle[0])
        hint = "Remove one of these ways, or say `allow_cycles: true`."
        yield ("nodes", index), an_error("cycle", f"the ways form a cycle: {' -> '.join(cycle)}", hint=hint)


def find_cycle(shape: Shape) -> list[str]:
    """The nodes of one cycle of ways that the token could walk, the first again at the end; [] if there is none."""
    entered: dict[str, bool] = {}
    for root in shape.visitable:
        stack = [(root, iter(shape.ways(root)))] if root not in entered else []
        entered.setdefault(root, True)
        while stack:
            node_id, ways = stack[-1]
            way = next(ways, None)
            if way is None:
                entered[node_id] = False
                stack.pop()
            elif entered.get(way):
                path = [name for name, _ in stack]
                return [*path[path.index(way) :], way]
            elif way not in entered and way in shape.nodes:
                entered[way] = True
                stack.append((way, iter(shape.ways(way))))
    return []


def _doubtful_edges(reader: Reader, shape: Shape) -> Iterator[Finding]:
    seen: dict[tuple[str, str, str | None], int] = {}
    taken = {node_id: _unconditional(shape, node_id) for node_id in shape.nodes}
    for index, edge in reader.edges:
        node = shape.nodes.get(edge.from_node)
        path: PathKey = ("edges", index)
        same = (edge.from_node, edge.to_node, edge.condition)
        if node is None:
            continue
        if node.type is NodeType.EXIT:
            yield path, a_warning("edge_from_exit", f"an exit ends the run; this edge from {node.id!r} is never taken")
        elif same in seen:
            yield path, a_warning("duplicate_edge", f"the same edge as edges[{seen[same]}]")
        elif edge.condition is not None or shape.chosen_ways(node.id) or edge.to_node in wrapped_by(node.config):
            pass
        elif (first := taken[node.id]) is not None and edge is not first and edge.to_node != first.to_node:
            message = f"a second unconditional edge from {node.id!r} is never taken"
            yield path, a_warning("second_unconditional", message, hint="Use a fanout to go several ways at once.")
        seen.setdefault(same, index)
    yield from _conditional_only(reader, shape)


def _unconditional(shape: Shape, node_id: str) -> EdgeDefinition | None:
    """The edge that is taken when no condition holds."""
    return next((edge for edge in shape.edges_from(node_id) if edge.condition is None), None)


def _conditional_only(reader: Reader, shape: Shape) -> Iterator[Finding]:
    for index, node in reader.nodes:
        edges = shape.edges_from(node.id)
        if node.id not in shape.visitable or node.type is NodeType.EXIT or shape.names_its_way(node.id):
            continue
        if not any(edge.condition is None for edge in edges):
            message = f"{node.id!r} has conditional edges only" if edges else f"{node.id!r} has no edge to go on by"
            hint = "When no condition holds the run fails with ROUTING_ERROR: add an edge without a condition."
            yield ("nodes", index), a_warning("conditional_only", message, hint=hint)
