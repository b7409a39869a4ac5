"""The executor: runs a graph, any number of times and at once, and says what came of it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

from pydantic import ValidationError

from tinyllm import expressions
from tinyllm.admission import Admission
from tinyllm.breaker import CircuitBreaker, breaker_key
from tinyllm.config import (
    EdgeDefinition,
    ExecutorConfig,
    GateConfig,
    ModelConfig,
    NodeDefinition,
    RouterConfig,
    ToolConfig,
)
from tinyllm.eager import Started, one_turn, stack_is_short, start_own
from tinyllm.errors import UsageError
from tinyllm.graph import Graph
from tinyllm.message import Message, TaskPayload, checked_json, checked_text, new_id, unfit, utc_now
from tinyllm.models.base import ModelClient
from tinyllm.nodes import make_node
from tinyllm.running import Run
from tinyllm.streaming import RunStream
from tinyllm.tools.base import Tool
from tinyllm.tools.registry import ToolRegistry, default_tools
from tinyllm.trace import RunResult


class Executor:
    """Runs one graph, any number of times and at once.

    Runs share nothing but the model client, the tools and the circuit breakers. `clock`, `ids` and `rng` are
    all the time, names and chance that the engine uses beside the event loop's own time. `prompts` are what
    `prompt_id` in a graph can name. Without `tools` the built-in ones are known.

    Raises UsageError if the graph asks a model and there is none, or names a tool that is not known.
    """

    def __init__(
        self,
        graph: Graph,
        *,
        config: ExecutorConfig | None = None,
        model: ModelClient | None = None,
        tools: ToolRegistry | Iterable[Tool] | None = None,
        prompts: Mapping[str, str] | None = None,
        clock: Callable[[], datetime] = utc_now,
        ids: Callable[[], str] = new_id,
        rng: random.Random | None = None,
    ) -> None:
        _require(Graph, graph, "a graph, as load_graph gives")
        _require((ExecutorConfig, type(None)), config, "an ExecutorConfig")
        if model is not None and not callable(getattr(model, "complete", None)):
            raise UsageError(f"the model must be a client with `async def complete(request)`, not {_kind(model)}")
        for name, given in (("clock", clock), ("ids", ids)):
            if not callable(given):
                raise UsageError(f"{name} must be a function without arguments, not {_kind(given)}")
        _require((random.Random, type(None)), rng, "a random.Random")
        self.graph = graph
        self.config = config or ExecutorConfig()
        self.model = model
        self.tools = _registry(tools)
        self.prompts = _prompts(prompts)
        self.clock = clock
        self.ids = ids
        self.rng = rng or random.Random()
        self.nodes = {node.id: make_node(node) for node in graph.definition.nodes}
        self.conditions = _parsed_conditions(graph)
        self.edges = {node_id: _sorted_out(graph.edges_from(node_id)) for node_id in self.nodes}
        self.breakers = _breakers(graph, self.config)
        self._admission = Admission(self.config)
        self._runs: dict[str, Run] = {}
        if model is None and (asking := [node.id for node in graph.definition.nodes if _asks(node)]):
            raise UsageError(f"a model is asked by {', '.join(asking)}: hand one in, as in Executor(graph, model=...)")
        for node in graph.definition.nodes:
            if isinstance(node.config, ToolConfig):
                self._require_tool(node.id, node.config.tool_id)

    async def execute(
        self,
        task: TaskPayload,
        *,
        run_id: str | None = None,
        entry: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> RunResult:
        """Run the graph on a task; see `run`."""
        _require(TaskPayload, task, 'a TaskPayload, as in TaskPayload(content="...")')
        return await self._until_ended(*self._prepared(task, run_id, entry, variables))

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
        `variables` are no JSON or `run_id` is running here already; OverloadedError if too many runs are under
        way; CancelledError if the caller is cancelled, once the run has ended.
        """
        _require(Message, message, "a Message")
        return await self._until_ended(*self._prepared(message, run_id, entry, variables))

    def stream(
        self,
        task: TaskPayload | Message,
        *,
        run_id: str | None = None,
        entry: str | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> RunStream:
        """Run the graph and read the events of its trace as they happen, with `async for`.

        The run begins at once and does not wait for its reader, however slow. After the last event, `result`
        of the stream is the run's result. Raises like `run`, and UsageError if tracing is off.
        """
        if not self.config.tracing:
            raise UsageError("a stream is made of the trace: it needs ExecutorConfig(tracing=True)")
        _require((TaskPayload, Message), task, "a TaskPayload or a Message")
        run, turn = self._prepared(task, run_id, entry, variables)
        return RunStream(run, self._until_ended(run, turn), partial(self._let_go, run, turn))

    def cancel(self, run_id: str) -> bool:
        """Ask a run to stop: its caller gets a result with status `cancelled`. One that waits its turn never begins.

        Again, after the end, or for an unknown run it does nothing and returns False.
        """
        _require(str, run_id, "a run's id")
        run = self._runs.get(run_id)
        return run is not None and run.cancel()

    # --- inside ------------------------------------------------------------------------------------

    def _message_of(self, task: TaskPayload) -> Message:
        message_id, trace_id, created_at = self.ids(), self.ids(), self.clock()
        if not isinstance(created_at, datetime):
            raise UsageError(f"`clock` must give a datetime, not {_kind(created_at)}")
        try:
            return Message.of_task(task, message_id=message_id, trace_id=trace_id, created_at=created_at)
        except (AttributeError, TypeError, ValidationError, ValueError) as error:
            raise UsageError(f"the task, or what `ids` and `clock` give, makes no message: {error}") from None

    def _prepared(
        self, task: TaskPayload | Message, run_id: str | None, entry: str | None, variables: Mapping[str, Any] | None
    ) -> tuple[Run, asyncio.Future[None] | None]:
        """A run that has its place, and what it has to wait for before it begins."""
        start = self.graph.entry if entry is None else entry
        if start not in self.graph.definition.entry_points:
            known = ", ".join(self.graph.definition.entry_points)
            raise UsageError(f"{start!r} is no entry point of this graph; there are {known}")
        try:
            given = checked_json(dict(variables)) if variables else {}
        except (TypeError, ValueError) as error:
            raise UsageError(f"the variables are JSON values by name: {error}") from None
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise UsageError("a run needs a running event loop, as asyncio.run gives one") from None
        if run_id is not None:
            self._require_run_id(run_id)
        # A run that is refused leaves ids and chance to those that are not.
        self._admission.require_room()
        message = self._message_of(task) if isinstance(task, TaskPayload) else _fit(task)
        if run_id is None:
            run_id = self.ids()
            self._require_run_id(run_id)
        run = Run(self, run_id, message, start, given)
        # Last, because a place that is taken must be given back.
        turn = self._admission.ask()
        self._runs[run_id] = run
        return run, turn

    def _require_run_id(self, run_id: object) -> None:
        if not isinstance(run_id, str):
            raise UsageError(f"text as a run's id is needed here, not {_kind(run_id)}")
        try:
            checked_text(run_id)
        except ValueError as error:
            raise UsageError(f"a run's id is text: {error}") from None
        other = self._runs.get(run_id)
        if other is not None and other.is_lost():
            del self._runs[run_id]
        elif other is not None:
            raise UsageError(f"the run {run_id!r} is running here already")

    async def _until_ended(self, run: Run, turn: asyncio.Future[None] | None) -> RunResult:
        """The run's result; the caller's own cancellation is passed to the run and raised when it has ended."""
        begun: RunResult | Started = start_own(self._in_turn(run, turn), "run", run.run_id)
        if type(begun) is RunResult:
            # All that the run held is let go of before its caller goes on.
            del run, turn
            # A caller with many runs that never wait must not keep its loop from everybody else.
            await one_turn()
            return begun
        assert isinstance(begun, Started)
        task = begun.task
        assert task is not None
        cancelled: asyncio.CancelledError | None = None
        while not task.done():
            ended = asyncio.get_running_loop().create_future()
            wake = partial(_wake, ended)
            task.add_done_callback(wake)
            try:
                await ended
            except asyncio.CancelledError as error:
                cancelled = error
                task.remove_done_callback(wake)
                run.cancel()
        if cancelled is not None:
            raise cancelled
        result: RunResult = begun.result()
        return result

    async def _in_turn(self, run: Run, turn: asyncio.Future[None] | None) -> RunResult:
        try:
            if turn is not None:
                await run.wait_for(turn)
            elif stack_is_short():
                await one_turn()
            return await run.walk()
        finally:
            self._let_go(run, turn)

    def _let_go(self, run: Run, turn: asyncio.Future[None] | None) -> None:
        """Give back a run's place and id; the second time does nothing."""
        if self._runs.get(run.run_id) is run:
            del self._runs[run.run_id]
            self._admission.leave(turn)

    def _require_tool(self, node_id: str, tool_id: str) -> None:
        try:
            self.tools.get(tool_id)
        except UsageError as error:
            raise UsageError(f"{node_id!r}: {error} (others are handed in, as in Executor(graph, tools=...))") from None


def _kind(value: object) -> str:
    return f"a {type(value).__name__}"


def _require(kind: type | tuple[type, ...], value: object, what: str) -> None:
    if not isinstance(value, kind):
        raise UsageError(f"{what} is needed here, not {_kind(value)}")


def _fit(message: Message) -> Message:
    problem = unfit(message)
    if problem is not None:
        raise UsageError(f"the message was built without validation, and is none: {problem}")
    return message


def _prompts(prompts: Mapping[str, str] | None) -> dict[str, str]:
    _require((Mapping, type(None)), prompts, "prompts by name")
    for name, prompt in (prompts or {}).items():
        _require(str, prompt, f"text as the prompt {name!r}")
    return dict(prompts or {})


def _wake(waiter: asyncio.Future[None], _: object) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _registry(tools: ToolRegistry | Iterable[Tool] | None) -> ToolRegistry:
    """The tools of an executor: the built-in ones and those of a list, or just those of a registry."""
    if isinstance(tools, ToolRegistry):
        return tools
    registry = default_tools()
    _require((Iterable, type(None)), tools, "a ToolRegistry or a list of tools")
    for tool in tools or ():
        registry.register(tool, replace=True)
    return registry


def _asks(node: NodeDefinition) -> bool:
    """Whether this node may ask a model."""
    config = node.config
    if isinstance(config, RouterConfig):
        return config.mode == "model" and bool(config.routes)
    if isinstance(config, GateConfig):
        return config.mode != "expression" and bool(config.conditions)
    return isinstance(config, ModelConfig)


def _breakers(graph: Graph, config: ExecutorConfig) -> dict[str, CircuitBreaker]:
    """The breaker of each node that has one; nodes of one model or tool share it."""
    if config.breaker is None:
        return {}
    keys = {node.id: key for node in graph.definition.nodes if (key := breaker_key(node)) is not None}
    breakers = {key: CircuitBreaker(config.breaker) for key in dict.fromkeys(keys.values())}
    return {node_id: breakers[key] for node_id, key in keys.items()}


def _sorted_out(edges: tuple[EdgeDefinition, ...]) -> tuple[tuple[EdgeDefinition, ...], str | None]:
    """The conditional edges in the order in which they are asked, and where the first of the others leads."""
    conditional = tuple(edge for edge in edges if edge.condition is not None)
    return conditional, next((edge.to_node for edge in edges if edge.condition is None), None)


def _parsed_conditions(graph: Graph) -> dict[str, expressions.Expression]:
    """Every edge condition of the graph, parsed once."""
    sources = [edge.condition for edge in graph.definition.edges if edge.condition is not None]
    return {source: expressions.parse(source) for source in sources}
