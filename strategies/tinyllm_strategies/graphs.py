"""Valid graphs: topology first, then node kinds, then their settings.

Every setting is drawn as one choice out of all combinations, plain ones first, from strategies that are made
once: making and validating small strategies for every example cost more than drawing from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from hypothesis import strategies as st

from tinyllm.graph import Graph, build_graph

MODELS = ("m1", "m2", "m3")
#: Conditions that really branch on the answers of `short_answers`, that hold often, and that fail to evaluate.
CONDITIONS = (
    "content == 'a'",
    "content != 'a'",
    "'b' in content",
    "len(content) > 1 or content == 'b'",
    "error == None",
    "error != None",
    "matched_condition == 'is_a'",
    "metadata.get('fallback')",
    "structured['context'] == ''",
    "content > 3",
    "True",
)
GATE_NAMES = ("is_a", "is_b", "other")
STATUSES = ("success", "fallback", "partial_success", "failure", "error", "timeout")
NODES_MAX = 16
Json = dict[str, Any]


def _combined(**options: Sequence[Any]) -> tuple[Json, ...]:
    """Every combination of settings; None leaves a setting out."""
    return tuple(
        {key: value for key, value in zip(options, values, strict=True) if value is not None}
        for values in product(*options.values())
    )


_RETRIES = st.sampled_from(
    _combined(
        retry_count=(None, 1, 2),
        retry_delay_ms=(None, 0, 10),
        retry_backoff=(None, "exponential"),
        timeout_ms=(*[None] * 9, 10, 15, 1_010),
    )
)
_MODELS = st.sampled_from(
    _combined(
        model=MODELS,
        fallback_models=(None, None, ["m2"], ["m1", "m3"]),
        fallback_timeout_ms=(*[None] * 4, 10, 15),
        enable_fallback=(None, None, False),
        prompt_template=(*[None] * 4, "{content}", "{task}?", "{{task}}", "{structured.context}"),
    )
)
_FANOUTS = st.sampled_from(
    _combined(
        quorum=(None, 1, None, 2, 1),
        parallel=(None, None, False),
        max_parallel_branches=(None, None, 1, 2),
        require_all_success=(None, True),
        fail_fast=(None, None, True),
        timeout_ms=(*[None] * 6, 10, 1_010),
    )
)
#: A place among the nodes that a way may lead to; taken modulo their number.
_PLACES = st.integers(0, NODES_MAX - 1)
_CONDITIONS = st.sampled_from(CONDITIONS)
_CONDITIONAL_EDGES = st.lists(st.tuples(_PLACES, _CONDITIONS, st.integers(0, 2)), max_size=2)
_FORWARD_EDGES = st.sampled_from((*[(None, 0)] * 9, (None, 1), (CONDITIONS[0], 0)))
_MODES = st.sampled_from(("expression", "llm", "hybrid"))
_GATE_CONDITIONS = st.lists(st.tuples(_CONDITIONS, _PLACES), max_size=3)
_MAYBE = st.integers(0, 2)
_KINDS = st.sampled_from(("model", "fanout", "gate", "fanout"))
_TARGET_KINDS = st.sampled_from((*["model"] * 6, "fanout", "gate"))
_WIDTHS = st.sampled_from((3, 2, 1))
_REQUIRED = st.sampled_from((*[()] * 10, ("content",), ("structured",)))
_STATUSES = st.sampled_from((*["success"] * 3, *STATUSES))
_CYCLES = st.sampled_from((False, False, True))


@st.composite
def graphs(draw: st.DrawFn, *, max_nodes: int = 4) -> Graph:
    """Graphs of every node type, with nested fanouts, cycles, error ways and conditions that branch.

    Between an entry and an exit stand up to `max_nodes` nodes in a row, each with a way forward; other
    ways lead anywhere. Valid by construction. Shrinks to an entry that leads to an exit.
    """
    middle = [f"n{number}" for number in range(draw(st.integers(0, max_nodes)))]
    cycles = draw(_CYCLES)
    exits = ["end", "spare"]
    nodes: list[Json] = [{"id": "start", "type": "entry", "config": {"required_fields": list(draw(_REQUIRED))}}]
    edges: list[Json] = []
    row = ["start", *middle, "end"]
    for position, node_id in enumerate(row[:-1]):
        ahead = [*middle[position:], *exits]
        anywhere = [*ahead, *middle[:position]] if cycles else ahead
        if node_id != "start":
            nodes += draw(_nodes(node_id, anywhere))
        edges += draw(_edges(node_id, row[position + 1], anywhere))
    nodes += [{"id": exit_id, "type": "exit", "config": {"status": draw(_STATUSES)}} for exit_id in exits]
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


@st.composite
def _edges(draw: st.DrawFn, from_node: str, forward: str, anywhere: list[str]) -> list[Json]:
    """Conditional edges anywhere, and one forward that is conditional now and then."""
    edges = [
        {"from_node": from_node, "to_node": _at(anywhere, place), "condition": condition, "priority": priority}
        for place, condition, priority in draw(_CONDITIONAL_EDGES)
    ]
    condition, priority = draw(_FORWARD_EDGES)
    return [*edges, {"from_node": from_node, "to_node": forward, "condition": condition, "priority": priority}]


@st.composite
def _nodes(draw: st.DrawFn, node_id: str, anywhere: list[str]) -> list[Json]:
    """A visited node, after the nodes that it wraps."""
    kind = draw(_KINDS)
    inner: list[Json] = []
    if kind == "fanout":
        inner, config = draw(_fanouts(node_id, depth=2))
    else:
        config = draw(_MODELS) if kind == "model" else draw(_gates(anywhere))
    on_error = _at(anywhere, draw(_PLACES)) if draw(_MAYBE) == 1 else None
    return [*inner, {"id": node_id, "type": kind, "config": {**draw(_RETRIES), **config}, "on_error": on_error}]


@st.composite
def _gates(draw: st.DrawFn, anywhere: list[str]) -> Json:
    conditions = [
        {"name": name, "expression": expression, "target": _at(anywhere, place)}
        for name, (expression, place) in zip(GATE_NAMES, draw(_GATE_CONDITIONS), strict=False)
    ]
    default = _at(anywhere, draw(_PLACES)) if draw(_MAYBE) else None
    return {"mode": draw(_MODES), "model": "m1", "conditions": conditions, "default_target": default}


@st.composite
def _fanouts(draw: st.DrawFn, node_id: str, *, depth: int) -> tuple[list[Json], Json]:
    """The wrapped nodes and the config of a fanout; a target may be repeated, and at `depth` 2 be a fanout itself."""
    inner: list[Json] = []
    targets: list[str] = []
    for number in range(draw(_WIDTHS)):
        target = f"{node_id}.t{number}"
        targets.append(target)
        kind = draw(_TARGET_KINDS) if depth > 1 else "model"
        if kind == "fanout":
            deeper, config = draw(_fanouts(target, depth=depth - 1))
            inner += deeper
        else:
            config = draw(_MODELS) if kind == "model" else draw(_gates(["end"]))
        inner.append({"id": target, "type": kind, "config": {**draw(_RETRIES), **config}})
    if draw(_MAYBE) == 2:
        targets.append(targets[0])
    return inner, {"target_nodes": targets, "aggregation_strategy": "majority_vote", **draw(_FANOUTS)}


def _at(names: list[str], place: int) -> str:
    return names[place % len(names)]
