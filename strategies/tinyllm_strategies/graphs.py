"""Valid graphs: topology first, then node kinds, then their settings (`presets.py`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

from hypothesis import strategies as st

from tinyllm.graph import Graph, build_graph
from tinyllm_strategies import presets
from tinyllm_strategies.presets import Json

NODES_MAX = 16
#: Wrappers inside each other.
DEPTH_MAX = 3
#: Wrapped nodes of one graph beyond which no further wrapper begins, and how often one visit may run a node.
WRAPPED_MAX = 10
TIMES_MAX = 4

#: A place among the nodes that a way may lead to; taken modulo their number.
_PLACES = st.integers(0, NODES_MAX - 1)
_MODES = st.sampled_from(("expression", "llm", "hybrid"))
_MAYBE = st.integers(0, 2)
_LEAVES = ("model", "transform", "router", "gate", "tool")
#: Leaves first: a wrapper around one shrinks to it.
_KINDS = st.sampled_from((*_LEAVES, "fanout", "loop", "timeout", "fanout", "loop"))
#: A `shared` one is a node that the token can visit, too.
_INNER_KINDS = st.sampled_from((*["model"] * 7, *_LEAVES[1:], "shared", "fanout", "loop", "timeout"))
_INNER_LEAVES = st.sampled_from((*["model"] * 6, *_LEAVES[1:]))
_WIDTHS = st.sampled_from((3, 2, 1))
_NARROW = st.sampled_from((2, 1))
_CYCLES = st.sampled_from((False, False, True))


@st.composite
def graphs(draw: st.DrawFn, *, max_nodes: int = 4) -> Graph:
    """Graphs of every node type, with wrappers in wrappers, cycles, error ways and conditions that branch.

    Between an entry and an exit stand up to `max_nodes` nodes in a row, each with a way forward; other
    ways lead anywhere. Valid by construction. Shrinks to an entry that leads to an exit.
    """
    middle = [f"n{number}" for number in range(draw(_lengths(max_nodes)))]
    cycles = draw(_CYCLES)
    exits = ["end", "spare"]
    drawing = _Drawing(draw)
    drawing.add("start", "entry", {"required_fields": list(draw(presets.REQUIRED))})
    edges: list[Json] = []
    row = ["start", *middle, "end"]
    for position, node_id in enumerate(row[:-1]):
        ahead = [*middle[position:], *exits]
        anywhere = [*ahead, *middle[:position]] if cycles else ahead
        if node_id != "start":
            drawing.visited(node_id, anywhere)
        edges += _edges(draw, node_id, row[position + 1], anywhere)
    for exit_id in exits:
        drawing.add(exit_id, "exit", {"status": draw(presets.EXITS)})
    return build_graph(
        {
            "id": "drawn",
            "version": "1.0.0",
            "name": "drawn",
            "nodes": drawing.nodes,
            "edges": edges,
            "entry_points": ["start"],
            "exit_points": exits,
            "allow_cycles": cycles,
        }
    )


@cache
def _lengths(most: int) -> st.SearchStrategy[int]:
    """How many nodes stand in a row, longer rows more often than shorter ones."""
    return st.sampled_from([*range(most + 1), *range(1, most + 1), *range(1 + most // 2, most + 1)])


def _edges(draw: st.DrawFn, from_node: str, forward: str, anywhere: list[str]) -> list[Json]:
    """Conditional edges anywhere, and one forward that is conditional now and then."""
    edges = [
        {
            "from_node": from_node,
            "to_node": _at(anywhere, draw(_PLACES)),
            "condition": condition,
            "priority": priority,
        }
        for condition, priority in draw(presets.EDGES)
    ]
    condition, priority = draw(presets.FORWARD)
    return [*edges, {"from_node": from_node, "to_node": forward, "condition": condition, "priority": priority}]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a node stands: where its ways may lead, how deep wrappers may go, how often one visit may run it."""

    anywhere: list[str]
    depth: int = DEPTH_MAX
    times: int = 1

    def inside(self, *, times: int = 1) -> _Place:
        """A place whose ways nobody follows: any exit will do."""
        return _Place(["end"], self.depth - 1, self.times * times)


@dataclass(slots=True)
class _Drawing:
    """The nodes of one graph so far; wrapped ones stand before what wraps them."""

    draw: st.DrawFn
    nodes: list[Json] = field(default_factory=list)
    #: Visited nodes that wrap nothing.
    leaves: list[str] = field(default_factory=list)

    def add(self, node_id: str, kind: str, config: Json, on_error: str | None = None) -> None:
        self.nodes.append({"id": node_id, "type": kind, "config": config, "on_error": on_error})

    def visited(self, node_id: str, anywhere: list[str]) -> None:
        kind = self.draw(_KINDS)
        config = self._config(node_id, kind, _Place(anywhere))
        on_error = _at(anywhere, self.draw(_PLACES)) if self.draw(_MAYBE) == 1 else None
        self.add(node_id, kind, config, on_error)
        if kind in _LEAVES:
            self.leaves.append(node_id)

    def _inner(self, node_id: str, place: _Place, *, shares: bool = True) -> str:
        """A node to wrap, by its id: a new one of this id, or one that is there already."""
        deep = place.depth > 0 and place.times <= TIMES_MAX and len(self.nodes) < WRAPPED_MAX
        kind = self.draw(_INNER_KINDS if deep else _INNER_LEAVES)
        if kind == "shared":
            if shares and self.leaves:
                return self.leaves[-1]
            kind = "model"
        self.add(node_id, kind, self._config(node_id, kind, place))
        return node_id

    def _config(self, node_id: str, kind: str, place: _Place) -> Json:
        match kind:
            case "model":
                return {**self.draw(presets.COMMON), **self.draw(presets.ASKING), **self.draw(presets.ANSWERING)}
            case "gate":
                return {**self.draw(presets.COMMON), **self._gate(place)}
            case "router":
                return {**self.draw(presets.COMMON), **self._router(place)}
            case "transform":
                steps = self.draw(presets.TRANSFORMS)
                return {"transforms": steps, "stop_on_error": self.draw(_MAYBE) == 0}
            case "tool":
                return self.draw(presets.CALLS)
        config = self.draw(presets.RETRIES)
        match kind:
            case "fanout":
                return {**config, **self._fanout(node_id, place)}
            case "loop":
                return {**config, **self._loop(node_id, place)}
        return {**config, **self._timeout(node_id, place)}

    def _way(self, place: _Place) -> str:
        """Where a choice leads; what is wrapped leads nowhere, and all ways are the same."""
        return _at(place.anywhere, self.draw(_PLACES)) if len(place.anywhere) > 1 else place.anywhere[0]

    def _gate(self, place: _Place) -> Json:
        conditions = [
            {"name": name, "expression": expression, "target": self._way(place)}
            for name, expression in zip(presets.GATE_NAMES, self.draw(presets.GATES), strict=False)
        ]
        default = self._way(place) if self.draw(_MAYBE) else None
        gate: Json = {"mode": self.draw(_MODES), "model": "m1", "conditions": conditions, "default_target": default}
        if gate["mode"] != "expression":
            gate["evaluation_prompt"] = self.draw(presets.EVALUATIONS)
        return gate

    def _router(self, place: _Place) -> Json:
        config = self.draw(presets.ROUTERS)
        names, priorities, most, default = self.draw(presets.ROUTES)
        routes: list[Json] = [
            {
                "name": names[number],
                "target": self._way(place),
                "priority": priorities[number],
                "condition": condition if config["mode"] == "rules" else None,
                "keywords": list(presets.KEYWORDS[number]) if config["mode"] == "keywords" else [],
            }
            for number, condition in enumerate(self.draw(presets.RULES)[:most])
        ]
        router: Json = {**config, "routes": routes}
        if routes and default is not None:
            router["default_route"] = routes[default]["name"]
        if routes and config["mode"] == "model" and config.get("multi_label"):
            router["compound_routes"] = [
                {
                    "domains": [names[number] for number in domains if number < len(routes)] or [names[0]],
                    "target": self._way(place),
                    "priority": priority,
                }
                for domains, priority in self.draw(presets.COMPOUNDS)
            ]
        return router

    def _fanout(self, node_id: str, place: _Place) -> Json:
        """A target may be repeated, or be visited by the token, too."""
        draw = self.draw
        width = draw(_WIDTHS if place.depth == DEPTH_MAX else _NARROW)
        targets = [self._inner(f"{node_id}.t{number}", place.inside()) for number in range(width)]
        if draw(_MAYBE) == 2:
            targets.append(targets[0])
        strategy = draw(presets.STRATEGIES)
        config: Json = {"target_nodes": targets, "aggregation_strategy": strategy, **draw(presets.FANOUTS)}
        if strategy == "majority_vote":
            config["quorum"] = draw(presets.QUORUMS)
        elif strategy == "best_score":
            config["score_field"] = draw(presets.SCORES)
        return config

    def _loop(self, node_id: str, place: _Place) -> Json:
        draw = self.draw
        config: Json = dict(draw(presets.LOOPS))
        if config["condition_type"] == "fixed_count":
            count = draw(presets.COUNTS)
            config["fixed_count"] = None if count is None else min(count, config["max_iterations"])
        elif config["condition_type"] != "until_success":
            config["condition_expression"] = draw(presets.ENDS_OF_LOOPS)
        times = config.get("fixed_count") or config["max_iterations"]
        config["body_node"] = self._inner(f"{node_id}.body", place.inside(times=times))
        return config

    def _timeout(self, node_id: str, place: _Place) -> Json:
        """It passes on the ways of a gate or router inside it, which then lead where its own may."""
        config: Json = dict(self.draw(presets.TIMEOUTS))
        if config["on_timeout"] == "fallback":
            config["fallback_response"] = "a"
        inside = _Place(place.anywhere, place.depth - 1, place.times)
        # A gate that the token visits, too, may lead back to where this timeout must not.
        config["inner_node"] = self._inner(f"{node_id}.in", inside, shares=False)
        return config


def _at(names: list[str], place: int) -> str:
    return names[place % len(names)]
