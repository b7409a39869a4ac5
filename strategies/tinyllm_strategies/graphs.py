"""Valid graphs: topology first, then node kinds, then their settings."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tinyllm.graph import Graph, build_graph

MODELS = ("m1", "m2", "m3")
#: Conditions that really branch on the answers `a`, `b` and the others that graphs of this file look for.
CONDITIONS = (
    "content == 'a'",
    "'b' in content",
    "len(content) > 2",
    "content > 3",
    "error != None",
    "matched_condition == 'is_a'",
    "metadata.get('fallback')",
    "missing.get('x')",
    "structured['context'] == ''",
)
TIMES_MS = (30_000, 10, 15, 1_010)


@st.composite
def graphs(draw: st.DrawFn, *, max_nodes: int = 6) -> Graph:
    """Graphs of every node type, with nested fanouts, cycles, error ways and conditions that branch.

    Between an entry and an exit stand up to `max_nodes` nodes in a row, each with a way forward; other
    ways lead anywhere. Valid by construction. Shrinks to an entry that leads to an exit.
    """
    middle = [f"n{number}" for number in range(draw(st.integers(0, max_nodes)))]
    cycles = draw(st.booleans())
    exits = ["end", *(["spare"] if draw(st.booleans()) else [])]
    nodes: list[dict[str, Any]] = [{"id": "start", "type": "entry"}]
    edges: list[dict[str, Any]] = []
    row = ["start", *middle, "end"]
    for position, node_id in enumerate(row[:-1]):
        anywhere = [*exits, *middle] if cycles else [*exits, *middle[position:]]
        if node_id != "start":
            nodes += draw(_nodes(node_id, anywhere))
        edges += draw(_edges(node_id, row[position + 1], anywhere))
    for exit_id in exits:
        nodes.append({"id": exit_id, "type": "exit", "config": {"status": draw(_STATUSES)}})
    return build_graph(
        {
            "id": "drawn",
            "version": "1.0.0",
            "name": "drawn",
            "nodes": nodes,
            "edges": edges,
            "entry_points": ["start"],
            "exit_points": exits,
            "allow_cycles": cycles,
        }
    )


_STATUSES = st.sampled_from(("success", "fallback", "partial_success", "failure", "error", "timeout"))
_RETRIES = st.fixed_dictionaries(
    {},
    optional={
        "retry_count": st.integers(0, 2),
        "retry_delay_ms": st.sampled_from((0, 1, 10, 1_000)),
        "retry_backoff": st.sampled_from(("fixed", "exponential")),
        "timeout_ms": st.sampled_from(TIMES_MS),
    },
)


@st.composite
def _edges(draw: st.DrawFn, from_node: str, forward: str, anywhere: list[str]) -> list[dict[str, Any]]:
    """Conditional edges anywhere, and one forward: unconditional but in one of eight draws."""
    edges = [
        {"from_node": from_node, "to_node": to, "condition": condition, "priority": priority}
        for to, condition, priority in draw(
            st.lists(
                st.tuples(st.sampled_from(anywhere), st.sampled_from(CONDITIONS), st.integers(0, 2)), max_size=2
            )
        )
    ]
    condition = draw(st.sampled_from((None,) * 7 + (CONDITIONS[0],)))
    return [*edges, {"from_node": from_node, "to_node": forward, "condition": condition}]


@st.composite
def _nodes(draw: st.DrawFn, node_id: str, anywhere: list[str]) -> list[dict[str, Any]]:
    """A visited node, after the nodes that it wraps."""
    kind = draw(st.sampled_from(("model", "gate", "fanout")))
    inner: list[dict[str, Any]] = []
    if kind == "fanout":
        inner, config = draw(_fanouts(node_id, depth=2))
    else:
        config = draw(_models() if kind == "model" else _gates(anywhere))
    on_error = draw(st.none() | st.sampled_from(anywhere))
    return [*inner, {"id": node_id, "type": kind, "config": {**config, **draw(_RETRIES)}, "on_error": on_error}]


def _models() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {"model": st.sampled_from(MODELS)},
        optional={
            "prompt_template": st.sampled_from(("{content}", "{task}?", "{lang}", "{{task}} {metadata.fallback}")),
            "fallback_models": st.lists(st.sampled_from(MODELS), max_size=2),
            "fallback_timeout_ms": st.sampled_from((10, 15, 1_000)),
            "enable_fallback": st.booleans(),
        },
    )


@st.composite
def _gates(draw: st.DrawFn, anywhere: list[str]) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(("is_a", "is_b", "other")), max_size=3, unique=True))
    conditions = [
        {"name": name, "expression": draw(st.sampled_from(CONDITIONS)), "target": draw(st.sampled_from(anywhere))}
        for name in names
    ]
    default = draw(st.none() | st.sampled_from(anywhere))
    mode = draw(st.sampled_from(("expression", "llm", "hybrid")))
    return {"mode": mode, "model": "m1", "conditions": conditions, "default_target": default}


@st.composite
def _fanouts(draw: st.DrawFn, node_id: str, *, depth: int) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The wrapped nodes and the config of a fanout; targets may repeat, and at `depth` 2 be fanouts themselves."""
    inner: list[dict[str, Any]] = []
    own: list[str] = []
    for number in range(draw(st.integers(1, 3))):
        target = f"{node_id}.t{number}"
        own.append(target)
        kinds = ("model", "model", "fanout", "gate") if depth > 1 else ("model",)
        kind = draw(st.sampled_from(kinds))
        if kind == "fanout":
            deeper, config = draw(_fanouts(target, depth=depth - 1))
            inner += deeper
        else:
            config = draw(_models() if kind == "model" else _gates(["end"]))
        inner.append({"id": target, "type": kind, "config": {**config, **draw(_RETRIES)}})
    targets = own + draw(st.lists(st.sampled_from(own), max_size=1))
    settings = st.fixed_dictionaries(
        {},
        optional={
            "quorum": st.integers(1, len(targets)),
            "parallel": st.booleans(),
            "max_parallel_branches": st.integers(1, 2),
            "require_all_success": st.booleans(),
            "fail_fast": st.booleans(),
        },
    )
    return inner, {"target_nodes": targets, "aggregation_strategy": "majority_vote", **draw(settings)}
