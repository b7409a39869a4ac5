"""How fast the engine is, side by side with langgraph and pydantic-graph, as ratios of one run.

    make bench

makes an environment of its own (`benchmarks/requirements.txt`) and runs this file in it; `measuring.py` says how
it measures. All that is compared takes turns in one process, on one stock event loop.

Every node does nothing. Ours are a custom node type that puts out a child of what it received; a linear graph of
10 nodes has an entry and an exit among the ten, theirs have ten beside their start and end markers.
"""

from __future__ import annotations

import argparse
import asyncio
import operator
import statistics
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from typing import Annotated, Any, TypedDict
from uuid import uuid4

from measuring import Turn, ratio, seconds_by_round, show_growth, show_heading, shown, timed, timed_on

from tinyllm.config import ExecutorConfig
from tinyllm.context import ExecutionContext
from tinyllm.executor import Executor
from tinyllm.graph import Graph, build_graph
from tinyllm.message import Message, MessageMetadata, MessagePayload, NodeResult, TaskPayload
from tinyllm.nodes import node_type
from tinyllm.nodes.base import BaseNode

Work = Callable[[], Awaitable[Any]]
TASK = TaskPayload(content="question")


@node_type("benchmark_noop")
class NoOp(BaseNode):
    """Puts out a child of what it received."""

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:  # noqa: ARG002
        return NodeResult(success=True, output_messages=[message.create_child(self.id)])


# --- ours ----------------------------------------------------------------------------------------------


def linear(nodes: int) -> Graph:
    """An entry, no-ops, an exit: `nodes` of them in a row."""
    ids = ["start", *(f"n{number}" for number in range(nodes - 2)), "end"]
    types = {"start": "entry", "end": "exit"}
    return _graph(
        [{"id": node_id, "type": types.get(node_id, "benchmark_noop")} for node_id in ids],
        list(pairwise(ids)),
    )


def fanout(targets: int) -> Graph:
    """An entry, a fanout of `targets` no-ops that joins them all, an exit."""
    names = [f"t{number}" for number in range(targets)]
    nodes: list[dict[str, Any]] = [
        {"id": "start", "type": "entry"},
        {"id": "fan", "type": "fanout", "config": {"target_nodes": names, "aggregation_strategy": "all"}},
        *({"id": name, "type": "benchmark_noop"} for name in names),
        {"id": "end", "type": "exit"},
    ]
    return _graph(nodes, [("start", "fan"), ("fan", "end")])


def _graph(nodes: list[dict[str, Any]], edges: list[tuple[str, str]]) -> Graph:
    return build_graph(
        {
            "id": "benchmark",
            "version": "1.0.0",
            "name": "benchmark",
            "nodes": nodes,
            "edges": [{"from_node": one, "to_node": other} for one, other in edges],
            "entry_points": ["start"],
            "exit_points": ["end"],
        }
    )


def run_of(graph: Graph, **config: Any) -> Work:
    """One run of the graph, checked once to succeed."""
    executor = Executor(graph, config=ExecutorConfig(max_steps=10_000, **config))

    return lambda: executor.execute(TASK)


# --- theirs --------------------------------------------------------------------------------------------


class _State(TypedDict):
    content: str
    results: Annotated[list[str], operator.add]


def langgraph_linear(nodes: int) -> Work:
    from langgraph.graph import END, START, StateGraph

    async def noop(state: _State) -> dict[str, Any]:
        return {"content": state["content"]}

    graph = StateGraph(_State)
    previous = START
    for number in range(nodes):
        graph.add_node(f"n{number}", noop)
        graph.add_edge(previous, f"n{number}")
        previous = f"n{number}"
    graph.add_edge(previous, END)
    app = graph.compile()
    return lambda: app.ainvoke({"content": "question", "results": []})


def langgraph_fanout(targets: int) -> Work:
    from langgraph.graph import END, START, StateGraph

    async def noop(state: _State) -> dict[str, Any]:
        return {"results": [state["content"]]}

    async def start(state: _State) -> dict[str, Any]:  # noqa: ARG001
        return {}

    async def join(state: _State) -> dict[str, Any]:
        return {"content": "\n\n".join(state["results"])}

    graph = StateGraph(_State)
    graph.add_node("start", start)
    graph.add_node("join", join)
    graph.add_edge(START, "start")
    names = [f"t{number}" for number in range(targets)]
    for name in names:
        graph.add_node(name, noop)
        graph.add_edge("start", name)
    graph.add_edge(names, "join")
    graph.add_edge("join", END)
    app = graph.compile()
    return lambda: app.ainvoke({"content": "question", "results": []})


def pydantic_graph_linear(nodes: int) -> Work:
    from pydantic_graph import GraphBuilder, StepContext

    builder = GraphBuilder(input_type=str, output_type=str)

    async def noop(context: StepContext[Any, Any, str]) -> str:
        return context.inputs

    steps = [builder.step(node_id=f"n{number}")(noop) for number in range(nodes)]
    builder.add(builder.edge_from(builder.start_node).to(steps[0]))
    for one, other in pairwise(steps):
        builder.add(builder.edge_from(one).to(other))
    builder.add(builder.edge_from(steps[-1]).to(builder.end_node))
    graph = builder.build()
    return lambda: graph.run(inputs="question")


def pydantic_graph_fanout(targets: int) -> Work:
    from pydantic_graph import GraphBuilder, StepContext
    from pydantic_graph.join import reduce_list_append

    builder = GraphBuilder(input_type=str, output_type=list[str])

    async def noop(context: StepContext[Any, Any, str]) -> str:
        return context.inputs

    steps = [builder.step(node_id=f"t{number}")(noop) for number in range(targets)]
    join = builder.join(reduce_list_append, initial_factory=list[str])
    builder.add(
        builder.edge_from(builder.start_node).to(*steps),
        builder.edge_from(*steps).to(join),
        builder.edge_from(join).to(builder.end_node),
    )
    graph = builder.build()
    return lambda: graph.run(inputs="question")


# --- values --------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PlainMessage:
    """The fields of a message, without any check."""

    trace_id: str
    source_node: str
    payload: MessagePayload
    parent_id: str | None = None
    target_node: str | None = None
    metadata: MessageMetadata | None = None
    message_id: str = field(default_factory=lambda: str(uuid4()))
    created_at: datetime = field(default_factory=lambda: datetime.now(UTC))


# --- measuring -----------------------------------------------------------------------------------------


def _median_us(seconds: list[float]) -> str:
    return f"{statistics.median(seconds) * 1e6:10.1f} us"


def compared(runner: asyncio.Runner, rounds: int) -> None:
    """Runs per second against the others."""
    ours = {"linear": linear(10), "fanout": fanout(10)}
    others: dict[str, list[tuple[str, Callable[[int], Work], int]]] = {
        "linear": [("langgraph", langgraph_linear, 20), ("pydantic-graph", pydantic_graph_linear, 10)],
        "fanout": [("langgraph", langgraph_fanout, 15), ("pydantic-graph", pydantic_graph_fanout, 15)],
    }
    for shape, graph in ours.items():
        turns = {"tinyllm": Turn(timed_on(runner.run, run_of(graph)), 20)}
        turns |= {name: Turn(timed_on(runner.run, make(10)), 2) for name, make, _ in others[shape]}
        seconds = seconds_by_round(turns, rounds)
        for name, _, at_least in others[shape]:
            times = ratio(seconds, name, "tinyllm")
            work = f"{shape} graph of 10: times as fast as {name}"
            shown(work, f">= {at_least}", f"{times:.2f}", times >= at_least, _median_us(seconds["tinyllm"]))
    floor(rounds)


def floor(rounds: int) -> None:
    """What no engine of these semantics can do without: the values of a run, made in a plain loop."""
    parent = Message.of_task(TASK, message_id="m", trace_id="t", created_at=datetime.now(UTC))

    def made(nodes: int, messages: int) -> None:
        for _ in range(messages):
            child = parent.create_child("n1")
        for _ in range(nodes):
            NodeResult(success=True, output_messages=[child])

    # Every node puts out a message in a result, and every target of a fanout receives one of its own as well.
    counts = {"linear": (10, 11), "fanout": (13, 24)}
    turns = {shape: Turn(timed(partial(made, *count)), 20) for shape, count in counts.items()}
    seconds = seconds_by_round(turns, rounds)
    for shape in turns:
        shown(f"  {shape}: its messages and results alone", "", "", note=_median_us(seconds[shape]))


def scaling(runner: asyncio.Runner, rounds: int) -> None:
    """Cost per node, tracing, and many runs at once."""
    short, long = run_of(linear(10)), run_of(linear(1_000))

    def times_as_long(slow: tuple[Work, int], fast: tuple[Work, int], rounds: int = rounds) -> float:
        works = {"slow": slow, "fast": fast}
        turns = {name: Turn(timed_on(runner.run, work), times) for name, (work, times) in works.items()}
        return ratio(seconds_by_round(turns, rounds), "slow", "fast")

    grows = times_as_long((long, 1), (short, 100)) / 100
    shown("cost per node: 1,000 nodes against 10", "<= 1.20", f"{grows:.2f}", grows <= 1.2)
    traced = times_as_long((short, 20), (run_of(linear(10), tracing=False), 20))
    shown("tracing on against off", "<= 1.25", f"{traced:.2f}", traced <= 1.25)

    # Both keep their results, as a caller would: what is compared is running at once.
    async def thousand() -> Any:
        return await asyncio.gather(*(short() for _ in range(1_000)))

    async def one_by_one() -> Any:
        return [await short() for _ in range(1_000)]

    crowded = times_as_long((thousand, 1), (one_by_one, 1), max(5, rounds // 10))
    shown("1,000 runs at once against one at a time, per run", "<= 1.20", f"{crowded:.2f}", crowded <= 1.2)


def values(rounds: int) -> None:
    """Creating messages, against a frozen slotted dataclass."""
    payload = MessagePayload(task="question", content="question")
    parent = Message(trace_id="t", source_node="user", payload=payload)
    turns = {
        "plain": Turn(timed(lambda: PlainMessage("t", "user", payload)), 500),
        "message": Turn(timed(lambda: Message(trace_id="t", source_node="user", payload=payload)), 500),
        "child": Turn(timed(lambda: parent.create_child("n1")), 500),
    }
    seconds = seconds_by_round(turns, rounds)
    for name in ("message", "child"):
        times = ratio(seconds, name, "plain")
        work = f"creating a {name}: times a frozen dataclass"
        shown(work, "<= 2.00", f"{times:.2f}", times <= 2, _median_us(seconds[name]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="rounds per comparison; a figure is their median")
    rounds = parser.parse_args().rounds
    packages = ("tinyllm", "langgraph", "pydantic-graph", "pydantic")
    show_heading(packages, f"{rounds} rounds on the stock event loop")
    with asyncio.Runner() as runner:
        compared(runner, rounds)
        scaling(runner, rounds)
        values(rounds)
        show_growth(timed_on(runner.run, run_of(linear(10))), 10_000)
    return 0


if __name__ == "__main__":
    sys.exit(main())
