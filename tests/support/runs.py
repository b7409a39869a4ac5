"""Small graphs, executors with nodes of a test's own, and runs that must leave nothing behind."""

from __future__ import annotations

import random
from collections.abc import Coroutine, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from tests.support.models import ScriptedModel
from tests.support.nodes import Act, Acting
from tinyllm.config import ExecutorConfig
from tinyllm.executor import Executor
from tinyllm.graph import Graph, build_graph
from tinyllm.message import Message, MessagePayload, TaskPayload
from tinyllm.models.base import ModelClient
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.trace import EventKind, RunResult, TraceEvent

T = TypeVar("T")
Edge = tuple[Any, ...]


def node(kind: str, *, on_error: str | None = None, **config: Any) -> dict[str, Any]:
    """A node without its id, as a graph file would hold it."""
    return {"type": kind, "config": config, **({} if on_error is None else {"on_error": on_error})}


def a_graph(nodes: Mapping[str, Any], edges: Sequence[Edge], **more: Any) -> Graph:
    """A graph with the entry `start` and the exit `end`; an edge is (from, to, condition, priority)."""
    parts = {"start": node("entry"), "end": node("exit"), **nodes}
    keys = ("from_node", "to_node", "condition", "priority")
    value = {
        "id": "g",
        "version": "1.0.0",
        "name": "g",
        "nodes": [{"id": node_id, **rest} for node_id, rest in parts.items()],
        "edges": [dict(zip(keys, edge, strict=False)) for edge in edges],
        "entry_points": [node_id for node_id, rest in parts.items() if rest["type"] == "entry"],
        "exit_points": [node_id for node_id, rest in parts.items() if rest["type"] == "exit"],
        **more,
    }
    return build_graph(value)


def a_line(*work: Mapping[str, Any]) -> Graph:
    """start -> work -> work2 -> ... -> end; without arguments one plain model node `work`."""
    parts = work or (node("model"),)
    names = ["work" if number == 0 else f"work{number + 1}" for number in range(len(parts))]
    path = ["start", *names, "end"]
    return a_graph(dict(zip(names, parts, strict=True)), list(pairwise(path)))


def an_executor(
    graph: Graph, acts: Mapping[str, Act] | None = None, *, model: ModelClient | None = None, **config: Any
) -> Executor:
    """An executor in which the nodes of `acts` do what they say instead."""
    model = ScriptedModel() if model is None else model
    executor = Executor(graph, config=ExecutorConfig(**config), model=model, rng=random.Random(7))
    for node_id, act in (acts or {}).items():
        executor.nodes[node_id] = Acting(graph.nodes[node_id], act)
    return executor


def run_clean(main: Coroutine[Any, Any, T]) -> T:
    """The result of `main` on a loop of its own; no task, no timer and no unseen error may be left."""
    loop = SimulatedLoop()
    try:
        result = loop.run_until_complete(main)
        loop.run_until_idle(0)
        assert () == loop.pending_tasks()
        assert () == loop.pending_timers()
    finally:
        loop.close()
    assert [] == loop.unhandled
    return result


def go(executor: Executor, content: str = "question", **how: Any) -> RunResult:
    """One run that leaves nothing behind."""
    return run_clean(executor.execute(TaskPayload(content=content), **how))


def visited(result: RunResult) -> list[str]:
    """The nodes that the token visited, in order."""
    return [str(e.node_id) for e in events(result, EventKind.STEP_STARTED) if "." not in str(e.path)]


def events(result: RunResult, kind: EventKind, node_id: str | None = None) -> list[TraceEvent]:
    return [e for e in result.trace if e.kind is kind and node_id in (None, e.node_id)]


def count(result: RunResult, kind: EventKind, node_id: str | None = None) -> int:
    return len(events(result, kind, node_id))


def code(result: RunResult) -> str | None:
    return None if result.error is None else result.error.code.value


def a_message(**payload: Any) -> Message:
    return Message(trace_id="t", source_node="user", payload=MessagePayload(**payload))
