"""How fast the engine is, side by side with langgraph and pydantic-graph, as ratios of one run.

    make bench

makes an environment of its own (`benchmarks/requirements.txt`) and runs this file in it. What is compared takes
turns in one process, many short rounds each; a figure is the median over the rounds of the ratio within a round,
because the machine's speed changes from one second to the next. Times are those of the process. Garbage is
collected before each turn, so that each pays for its own.

Every node does nothing. Ours are a custom node type that puts out a child of what it received; a linear graph of
10 nodes has an entry and an exit among the ten, theirs have ten beside their start and end markers.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import operator
import platform
import statistics
import sys
import time
import tracemalloc
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, TypedDict
from uuid import uuid4

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


async def _time_of(work: Work, times: int) -> float:
    """Seconds of processor time for one piece of work."""
    gc.collect()
    began = time.process_time()
    for _ in range(times):
        await work()
    return (time.process_time() - began) / times


async def medians(works: dict[str, tuple[Work, int]], rounds: int) -> dict[str, list[float]]:
    """Seconds per piece of each work, round by round, in turn."""
    for work, _ in works.values():
        await work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, (work, times) in works.items():
            seconds[name].append(await _time_of(work, times))
    return seconds


def ratio(seconds: dict[str, list[float]], slow: str, fast: str) -> float:
    """How many times as long `slow` takes as `fast`: the median over the rounds."""
    return statistics.median(one / other for one, other in zip(seconds[slow], seconds[fast], strict=True))


def shown(what: str, value: float, target: str, ok: bool, seconds: float | None = None) -> None:
    took = "" if seconds is None else f"{seconds * 1e6:10.1f} us"
    print(f"{what:58} {value:8.2f}   {target:16} {'ok' if ok else 'MISSED':7} {took}")


async def compared(rounds: int) -> None:
    """Runs per second against the others."""
    ours = {"linear": linear(10), "fanout": fanout(10)}
    others: dict[str, list[tuple[str, Callable[[int], Work], int]]] = {
        "linear": [("langgraph", langgraph_linear, 20), ("pydantic-graph", pydantic_graph_linear, 10)],
        "fanout": [("langgraph", langgraph_fanout, 15), ("pydantic-graph", pydantic_graph_fanout, 15)],
    }
    for shape, graph in ours.items():
        works = {"tinyllm": (run_of(graph), 20)}
        works |= {name: (make(10), 2) for name, make, _ in others[shape]}
        seconds = await medians(works, rounds)
        for name, _, at_least in others[shape]:
            times = ratio(seconds, name, "tinyllm")
            median = statistics.median(seconds["tinyllm"])
            shown(f"{shape} graph of 10: times as fast as {name}", times, f">= {at_least}", times >= at_least, median)
    await floor(rounds)


async def floor(rounds: int) -> None:
    """What no engine of these semantics can do without: the values of a run, made in a plain loop."""
    parent = Message.of_task(TASK, message_id="m", trace_id="t", created_at=datetime.now(UTC))

    def made(nodes: int, messages: int) -> Work:
        async def work() -> None:
            for _ in range(messages):
                child = parent.create_child("n1")
            for _ in range(nodes):
                NodeResult(success=True, output_messages=[child])

        return work

    # Every node puts out a message in a result, and every target of a fanout receives one of its own as well.
    works = {"linear": (made(10, 11), 20), "fanout": (made(13, 24), 20)}
    seconds = await medians(works, rounds)
    for shape in works:
        took = statistics.median(seconds[shape]) * 1e6
        print(f"{f'  {shape}: its messages and results alone':94} {took:10.1f} us")


async def scaling(rounds: int) -> None:
    """Cost per node, tracing, and many runs at once."""
    short, long = run_of(linear(10)), run_of(linear(1_000))
    seconds = await medians({"10": (short, 100), "1000": (long, 1)}, rounds)
    grows = ratio(seconds, "1000", "10") / 100
    shown("cost per node: 1,000 nodes against 10", grows, "<= 1.20", grows <= 1.2)
    seconds = await medians({"on": (short, 20), "off": (run_of(linear(10), tracing=False), 20)}, rounds)
    traced = ratio(seconds, "on", "off")
    shown("tracing on against off", traced, "<= 1.25", traced <= 1.25)

    # Both keep their results, as a caller would: what is compared is running at once.
    async def thousand() -> Any:
        return await asyncio.gather(*(short() for _ in range(1_000)))

    async def one_by_one() -> Any:
        return [await short() for _ in range(1_000)]

    seconds = await medians({"at once": (thousand, 1), "in turn": (one_by_one, 1)}, max(5, rounds // 10))
    crowded = ratio(seconds, "at once", "in turn")
    shown("1,000 runs at once against one at a time, per run", crowded, "<= 1.20", crowded <= 1.2)


async def values(rounds: int) -> None:
    """Creating messages, against a frozen slotted dataclass."""
    payload = MessagePayload(task="question", content="question")
    parent = Message(trace_id="t", source_node="user", payload=payload)

    def repeated(make: Callable[[], object]) -> Work:
        async def work() -> None:
            for _ in range(500):
                make()

        return work

    plain = repeated(lambda: PlainMessage("t", "user", payload))
    works = {
        "plain": (plain, 1),
        "message": (repeated(lambda: Message(trace_id="t", source_node="user", payload=payload)), 1),
        "child": (repeated(lambda: parent.create_child("n1")), 1),
    }
    seconds = await medians(works, rounds)
    for name in ("message", "child"):
        times = ratio(seconds, name, "plain")
        took = statistics.median(seconds[name]) / 500
        shown(f"creating a {name}: times a frozen dataclass", times, "<= 2.00", times <= 2, took)


async def memory(runs: int) -> None:
    """What stays after many runs whose results nobody holds."""
    run = run_of(linear(10))
    for _ in range(100):
        await run()
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(runs):
        await run()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    grown = (after - before) / runs
    more = len(gc.get_objects()) - objects
    shown(f"bytes that stay per run, after {runs:,} runs", grown, "< 1", grown < 1)
    shown(f"objects more, after {runs:,} runs", more, "< 100", more < 100)


def machine() -> str:
    """Where this ran, and with what."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = f"{len(names)} x {names[0].partition(':')[2].strip()}" if names else model
    return f"{platform.system()} {platform.release()}, {model}, Python {platform.python_version()}"


def versions() -> str:
    found = []
    for name in ("tinyllm", "langgraph", "pydantic-graph", "pydantic"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"{name} missing")
    return ", ".join(found)


async def everything(rounds: int) -> None:
    await compared(rounds)
    await scaling(rounds)
    await values(rounds)
    await memory(10_000)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="rounds per comparison; a figure is their median")
    rounds = parser.parse_args().rounds
    print(f"{machine()}\n{versions()}\n{rounds} rounds on the stock event loop\n")
    asyncio.run(everything(rounds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
