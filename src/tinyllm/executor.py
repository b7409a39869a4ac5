"""The one place that awaits nodes: walks a token through a graph and says what came of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from tinyllm import expressions
from tinyllm.config import ExecutorConfig, GateConfig, NodeType
from tinyllm.errors import UsageError
from tinyllm.graph import Graph
from tinyllm.message import Message, TaskPayload, checked_json, new_id, utc_now
from tinyllm.models.base import ModelClient
from tinyllm.nodes import make_node
from tinyllm.running import Run
from tinyllm.trace import RunResult


class Executor:
    """Runs one graph, any number of times and at once.

    Runs share nothing but the model client. `clock`, `ids` and `rng` are all the time, names and chance
    that the engine uses beside the event loop's own time.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        config: ExecutorConfig | None = None,
        model: ModelClient | None = None,
        clock: Callable[[], datetime] = utc_now,
        ids: Callable[[], str] = new_id,
        rng: random.Random | None = None,
    ) -> None:
        self.graph = graph
        self.config = config or ExecutorConfig()
        self.model = model
        self.clock = clock
        self.ids = ids
        self.rng = rng or random.Random()
        self.nodes = {node.id: make_node(node) for node in graph.definition.nodes}
        self.conditions = _parsed_conditions(graph)
        self._runs: dict[str, Run] = {}
        if model is None and (asking := _asking_nodes(graph)):
            raise UsageError(f"{', '.join(asking)} ask a model: hand one in, as in Executor(graph, model=...)")

    async def execute(
        self,
        task: TaskPayload,
        *,
        run_id: str | None = None,
        entry: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> RunResult:
        """Run the graph on a task; see `run`."""
        message = Message(
            message_id=self.ids(),
            trace_id=self.ids(),
            source_node="user",
            payload=task.to_payload(),
            created_at=self.clock(),
        )
        return await self.run(message, run_id=run_id, entry=entry, variables=variables)

    async def run(
        self,
        message: Message,
        *,
        run_id: str | None = None,
        entry: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> RunResult:
        """Run the graph on a message, from `entry` (default: the first entry point).

        Never raises for what happens inside the graph. Raises UsageError if `entry` is no entry point,
        `variables` are no JSON or `run_id` is running here already; CancelledError if the caller is
        cancelled, once the run has ended.
        """
        start = self.graph.entry if entry is None else entry
        if start not in self.graph.definition.entry_points:
            known = ", ".join(self.graph.definition.entry_points)
            raise UsageError(f"{start!r} is no entry point of this graph; there are {known}")
        run_id = self.ids() if run_id is None else run_id
        if run_id in self._runs:
            raise UsageError(f"the run {run_id!r} is running here already")
        try:
            given = checked_json(dict(variables or {}))
        except ValueError as error:
            raise UsageError(f"variables are JSON values by name: {error}") from None
        run = Run(self, run_id, message, start, given)
        self._runs[run_id] = run
        try:
            return await _until_ended(run)
        finally:
            del self._runs[run_id]

    def cancel(self, run_id: str) -> bool:
        """Ask a run to stop: its caller gets a result with status `cancelled`.

        Again, after the end, or for an unknown run it does nothing and returns False.
        """
        run = self._runs.get(run_id)
        return run is not None and run.cancel()


async def _until_ended(run: Run) -> RunResult:
    """The run's result; the caller's own cancellation is passed to the run and raised when it has ended."""
    task = asyncio.get_running_loop().create_task(run.walk(), name=f"run {run.run_id}")
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
            run.cancel()
    if cancelled is not None:
        raise cancelled
    return task.result()


def _asking_nodes(graph: Graph) -> list[str]:
    def asks(node_type: NodeType, config: Any) -> bool:
        return node_type is NodeType.MODEL or (isinstance(config, GateConfig) and config.mode != "expression")

    return [node.id for node in graph.definition.nodes if asks(node.type, node.config)]


def _parsed_conditions(graph: Graph) -> dict[str, expressions.Expression]:
    """Every edge condition of the graph, parsed once."""
    sources = [edge.condition for edge in graph.definition.edges if edge.condition is not None]
    return {source: expressions.parse(source) for source in sources}
