"""One run: the token's walk from visit to visit, and how it ends.

Steps are executed by `stepping.py`; what a failed visit leads to is decided in `policy.py`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tinyllm import expressions
from tinyllm.config import EdgeDefinition, ExitConfig
from tinyllm.context import StepOutcome
from tinyllm.eager import TURN_EVERY, one_turn
from tinyllm.errors import ErrorCode, ExpressionError
from tinyllm.failures import clean, spoiled_error
from tinyllm.held import HeldMessages, UnfitError
from tinyllm.message import ErrorInfo, Message, MessagePayload, has_texts_as_ids, unfit
from tinyllm.nodes.base import BaseNode
from tinyllm.policy import after_failure
from tinyllm.scopes import DEADLINE, CutShort, Scope
from tinyllm.stepping import CANCELLED, STEPS_LIMIT, TOKENS_LIMIT, Stepper
from tinyllm.trace import EventKind, RunResult, RunStatus, Trace

if TYPE_CHECKING:
    from tinyllm.executor import Executor


EXIT_STATUS: dict[str, RunStatus] = {
    "success": "succeeded",
    "fallback": "degraded",
    "partial_success": "degraded",
    "failure": "failed",
    "error": "failed",
    "timeout": "failed",
}


@dataclass(slots=True)
class _Ending:
    """How a run ends, decided where it ends."""

    status: RunStatus
    error: ErrorInfo | None
    message: Message


@dataclass(slots=True)
class _Walk:
    """What the token carries and how often failures were absorbed."""

    node_id: str
    message: Message
    visit: int = 0
    absorbed: int = 0
    first_absorbed: ErrorInfo | None = None

    def ending(self, status: RunStatus, error: ErrorInfo | None) -> _Ending:
        """This walk's end; a success after absorbed failures is a degraded one, with the first of them."""
        if status == "succeeded" and self.first_absorbed is not None:
            return _Ending("degraded", self.first_absorbed, self.message)
        return _Ending(status, error or self.first_absorbed, self.message)


class Run:
    """One run of one executor; `walk` runs it once."""

    __slots__ = (
        *("_config", "_ended", "_executor", "_graph", "_held", "_scope", "_seed", "_variables", "_walk"),
        *("run_id", "trace"),
    )

    def __init__(
        self, executor: Executor, run_id: str, message: Message, start: str, variables: Mapping[str, Any]
    ) -> None:
        self.run_id = run_id
        self._scope = Scope()
        self.trace = Trace(self._scope.now, executor.clock, on=executor.config.tracing)
        self._executor = executor
        self._config = executor.config
        self._graph = executor.graph
        self._variables = variables
        self._walk = _Walk(start, message)
        self._held = HeldMessages(self._config, message)
        self._seed = executor.rng.getrandbits(64)
        self._ended = False

    def cancel(self) -> bool:
        """End the run as cancelled; False if it is over already."""
        if self._ended or self._scope.over() is not None:
            return False
        self._scope.close(CANCELLED)
        return True

    def is_lost(self) -> bool:
        """Whether its event loop was closed before it ended: it never will."""
        return not self._ended and self._scope.tree.loop.is_closed()

    async def wait_for(self, turn: asyncio.Future[None]) -> None:
        """Wait for this run's turn to begin, or until it is cancelled; this takes none of the run's time."""
        await self._scope.wait(turn)

    async def walk(self) -> RunResult:
        """Walk the token until the run ends. Its time counts from here."""
        walk, nodes, held = self._walk, self._executor.nodes, self._held
        trace_id = walk.message.trace_id
        self.trace.began()
        self.trace.add(EventKind.RUN_STARTED, details={"run_id": self.run_id, "seed": self._seed})
        with self._scope as scope:
            scope.expire_at(scope.now() + self._config.timeout_ms / 1_000)
            stepper = Stepper(self._executor, self.run_id, scope, self.trace, self._seed, self._held)
            try:
                ending = None
                while ending is None:
                    walk.visit += 1
                    if walk.visit % TURN_EVERY == 0:
                        # A run that never waits must not keep its loop from everybody else, or nobody could cancel it.
                        await one_turn()
                    node = nodes[walk.node_id]
                    begun = stepper.begin(node, walk.message, str(walk.visit), scope, self._variables)
                    outcome = begun if type(begun) is StepOutcome else await stepper.rest(begun, walk.message)
                    ending = self._after_visit(node, outcome)
                    if ending is None:
                        held.add(walk.message)
                        if held.bounded:
                            ending = self._over_bounds()
                # What an exit puts out it has copied, and so checked, but for the ids.
                doubtful = ending.status == "degraded" or not has_texts_as_ids(ending.message)
                if ending.status != "failed" and doubtful and (problem := unfit(ending.message)) is not None:
                    ending = self._spoiled(problem)
            except CutShort as cut:
                ending = self._cut_off(cut.scope, stepper)
            except (ValidationError, UnfitError) as error:
                ending = self._spoiled(str(error))
            except (AttributeError, KeyError, TypeError) as error:
                # What is no fault of the message at hand is one of ours.
                problem = unfit(self._walk.message)
                if problem is None:
                    raise
                ending = self._spoiled(f"{type(error).__name__}, since {problem}")
        self._ended = True
        code = ending.error.code if ending.error else None
        self.trace.add(EventKind.RUN_ENDED, code=code, details={"status": ending.status})
        return RunResult(
            run_id=self.run_id,
            trace_id=trace_id,
            status=ending.status,
            error=ending.error,
            message=ending.message,
            nodes_executed=stepper.steps,
            tokens_used=stepper.tokens,
            total_latency_ms=self.trace.elapsed_ms(),
            trace=self.trace,
        )

    def _spoiled(self, problem: str) -> _Ending:
        """How a run ends in which a node changed what it had received into something that no message may hold."""
        return _Ending("failed", spoiled_error(problem, self._walk.node_id), self._walk.message)

    def _cut_off(self, scope: Scope, stepper: Stepper) -> _Ending:
        """How a run ends whose own scope is over: nothing inside could outlive that."""
        assert scope is self._scope, "an inner scope leaked out of its owner"
        config = self._config
        tokens = f"the run used {stepper.tokens} tokens, max_tokens is {config.max_tokens}"
        endings: dict[str, tuple[RunStatus, ErrorCode, str]] = {
            CANCELLED: ("cancelled", ErrorCode.CANCELLED, "the run was cancelled"),
            DEADLINE: ("timed_out", ErrorCode.TIMEOUT, f"the run took {config.timeout_ms} ms"),
            STEPS_LIMIT: ("failed", ErrorCode.BOUNDS_EXCEEDED, f"the run reached max_steps, {config.max_steps}"),
            TOKENS_LIMIT: ("failed", ErrorCode.BOUNDS_EXCEEDED, tokens),
        }
        status, code, text = endings[scope.reason or DEADLINE]
        error = ErrorInfo(code=code, message=text, node_id=self._walk.node_id)
        return _Ending(status, error, self._walk.message)

    # --- visits ------------------------------------------------------------------------------------

    def _after_visit(self, node: BaseNode, outcome: StepOutcome) -> _Ending | None:
        """Where a visit leads; an ending when it leads nowhere."""
        if outcome.error is not None:
            return self._after_failure(node, outcome.error)
        walk = self._walk
        walk.message = outcome.message
        self._variables = outcome.variables
        conditional, to = self._executor.edges[node.id]
        if to is not None and not conditional and not outcome.next_nodes:
            # What most visits lead to, without the calls that all the others take.
            self.trace.way_chosen(node.id, walk.visit, to, "unconditional")
            walk.node_id = to
            return None
        if node.is_exit:
            return self._at_exit(node.config_as(ExitConfig))
        return self._go_on(node, outcome.next_nodes)

    def _over_bounds(self) -> _Ending | None:
        """An ending if the run holds more than it may, now that a visit that leads on has put something out."""
        held, walk = self._held, self._walk
        if self._config.prune and (dropped := held.prune()):
            self.trace.add(EventKind.MESSAGES_PRUNED, walk.node_id, details={"dropped": dropped})
        exceeded = held.exceeded()
        if exceeded is None:
            return None
        # The deadline and a cancellation come before any limit.
        self._scope.check()
        error = ErrorInfo(code=ErrorCode.BOUNDS_EXCEEDED, message=exceeded, node_id=walk.node_id)
        return _Ending("failed", error, walk.message)

    def _after_failure(self, node: BaseNode, error: ErrorInfo) -> _Ending | None:
        walk = self._walk
        onward = after_failure(node.definition, self._config, walk.absorbed)
        if onward.how == "end":
            return _Ending("failed", error, walk.message)
        if onward.how == "on_error":
            assert node.definition.on_error is not None
            payload = walk.message.payload.replace(error=error)
            walk.message = self._child(walk.message, node.id, payload)
            self._take(node, node.definition.on_error, "on_error")
            return None
        walk.absorbed += 1
        walk.first_absorbed = walk.first_absorbed or error
        if onward.how == "stop":
            return walk.ending("degraded", walk.first_absorbed)
        if onward.fallback:
            payload = walk.message.payload
            marked = {**payload.metadata, "fallback": True}
            payload = payload.replace(content=self._config.fallback_response, metadata=marked)
            walk.message = self._child(walk.message, node.id, payload)
        return self._go_on(node, ())

    def _at_exit(self, config: ExitConfig) -> _Ending:
        status = EXIT_STATUS[config.status]
        if status != "failed":
            return self._walk.ending(status, None)
        text = config.message or f"the run ended at the exit {self._walk.node_id!r} with status {config.status}"
        error = ErrorInfo(code=ErrorCode.EXIT_FAILED, message=text, node_id=self._walk.node_id)
        return _Ending("failed", error, self._walk.message)

    def _go_on(self, node: BaseNode, next_nodes: tuple[str, ...]) -> _Ending | None:
        """Follow the node's own word, else the first edge that holds."""
        if next_nodes:
            if next_nodes[0] in self._graph.ways(node.id):
                self._take(node, next_nodes[0], "named by the node")
                return None
            return self._no_way(node, f"{node.id!r} named {next_nodes[0]!r}, which is not one of its ways")
        conditional, to = self._executor.edges[node.id]
        why = "unconditional"
        if conditional and (edge := self._first_that_holds(conditional, node.id)) is not None:
            to, why = edge.to_node, str(edge.condition)
        if to is None:
            return self._no_way(node, f"no edge from {node.id!r} holds and none is unconditional")
        self._take(node, to, why)
        return None

    def _first_that_holds(self, edges: tuple[EdgeDefinition, ...], node_id: str) -> EdgeDefinition | None:
        try:
            names = expressions.names_of(self._walk.message, self._variables)
        except Exception as problem:  # noqa: BLE001 - a message that was built without validation may hold anything
            reason = f"the message at hand is none: {type(problem).__name__}"
            for edge in edges:
                self._condition_failed(str(edge.condition), reason, node_id)
            return None
        return next((edge for edge in edges if self._holds(str(edge.condition), names, node_id)), None)

    def _holds(self, condition: str, names: Mapping[str, Any], node_id: str) -> bool:
        try:
            return bool(self._executor.conditions[condition].evaluate(names))
        except ExpressionError as error:
            self._condition_failed(condition, str(error), node_id)
            return False

    def _condition_failed(self, condition: str, reason: str, node_id: str) -> None:
        details = {"condition": condition, "reason": clean(reason)}
        self.trace.add(EventKind.CONDITION_ERROR, node_id, str(self._walk.visit), details=details)

    def _take(self, node: BaseNode, to: str, why: str) -> None:
        """Follow a way."""
        walk = self._walk
        self.trace.way_chosen(node.id, walk.visit, to, why)
        walk.node_id = to

    def _child(self, message: Message, node_id: str, payload: MessagePayload) -> Message:
        executor = self._executor
        return message.create_child(node_id, payload=payload, message_id=executor.ids(), created_at=executor.clock())

    def _no_way(self, node: BaseNode, text: str) -> _Ending:
        error = ErrorInfo(code=ErrorCode.ROUTING_ERROR, message=clean(text), node_id=node.id)
        return _Ending("failed", error, self._walk.message)
