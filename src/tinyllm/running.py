"""One run: the token's walk, step by step, attempt by attempt.

Decisions that need no await are in `policy.py`; deadlines and cancellation in `scopes.py`. Here they are put
together, and everything that happens is written into the run's trace.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tinyllm import expressions
from tinyllm.config import ExitConfig, NodeType
from tinyllm.context import ExecutionContext, StepOutcome
from tinyllm.errors import RECOVERABLE, ErrorCode, ExpressionError, NodeError
from tinyllm.message import ErrorInfo, Message, NodeResult, checked_json
from tinyllm.nodes.base import BaseNode
from tinyllm.policy import RetryDelays, after_failure, may_retry
from tinyllm.scopes import DEADLINE, CutShort, Scope, stop_task
from tinyllm.trace import EventKind, RunResult, RunStatus, Trace

if TYPE_CHECKING:
    from tinyllm.executor import Executor

MESSAGE_CHARS_MAX = 2_000
#: Why a run's own scopes are closed.
CANCELLED, LIMIT, SIBLING = "cancelled", "limit", "a sibling failed"

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

    def __init__(
        self, executor: Executor, run_id: str, message: Message, start: str, variables: Mapping[str, Any]
    ) -> None:
        self.run_id = run_id
        self._executor = executor
        self._config = executor.config
        self._graph = executor.graph
        self._variables = dict(variables)
        self._walk = _Walk(start, message)
        self._seed = executor.rng.getrandbits(64)
        self._steps = 0
        self._tokens = 0
        self._ended = False
        self._loop = asyncio.get_running_loop()
        self._trace = Trace(self._loop.time, executor.clock)
        self._scope = Scope(deadline=self._loop.time() + self._config.timeout_ms / 1_000)

    def cancel(self) -> bool:
        """End the run as cancelled; False if it is over already."""
        if self._ended or self._scope.over() is not None:
            return False
        self._scope.close(CANCELLED)
        return True

    async def walk(self) -> RunResult:
        """Walk the token until the run ends."""
        trace_id = self._walk.message.trace_id
        self._trace.add(EventKind.RUN_STARTED, details={"run_id": self.run_id, "seed": self._seed})
        with self._scope:
            try:
                ending = None
                while ending is None:
                    ending = await self._visit()
            except CutShort as cut:
                ending = self._cut_off(cut.scope)
        self._ended = True
        code = ending.error.code if ending.error else None
        self._trace.add(EventKind.RUN_ENDED, code=code, details={"status": ending.status})
        return RunResult(
            run_id=self.run_id,
            trace_id=trace_id,
            status=ending.status,
            error=ending.error,
            message=ending.message,
            nodes_executed=self._steps,
            tokens_used=self._tokens,
            total_latency_ms=self._trace.elapsed_ms(),
            trace=tuple(self._trace.events),
        )

    def _cut_off(self, scope: Scope) -> _Ending:
        """How a run ends whose own scope is over: nothing inside could outlive that."""
        assert scope is self._scope, "an inner scope leaked out of its owner"
        status, code, text = {
            CANCELLED: ("cancelled", ErrorCode.CANCELLED, "the run was cancelled"),
            DEADLINE: ("timed_out", ErrorCode.TIMEOUT, f"the run took {self._config.timeout_ms} ms"),
            LIMIT: ("failed", ErrorCode.BOUNDS_EXCEEDED, f"the run reached max_steps, {self._config.max_steps}"),
        }[scope.reason or DEADLINE]
        error = ErrorInfo(code=code, message=text, node_id=self._walk.node_id)
        return _Ending(status, error, self._walk.message)  # type: ignore[arg-type]

    # --- visits ------------------------------------------------------------------------------------

    async def _visit(self) -> _Ending | None:
        """One visit of the token: a step, then where it leads; an ending when it leads nowhere."""
        walk = self._walk
        walk.visit += 1
        node = self._executor.nodes[walk.node_id]
        outcome = await self._step(node, walk.message, str(walk.visit), self._scope)
        self._scope.check()
        if outcome.error is not None:
            return self._after_failure(node, outcome.error)
        walk.message = outcome.message
        self._variables.update(outcome.variables)
        if node.definition.type is NodeType.EXIT:
            return self._at_exit(node.config_as(ExitConfig))
        return self._go_on(node, outcome.next_nodes)

    def _after_failure(self, node: BaseNode, error: ErrorInfo) -> _Ending | None:
        walk = self._walk
        onward = after_failure(node.definition, self._config, walk.absorbed)
        if onward.how == "end":
            return _Ending("failed", error, walk.message)
        if onward.how == "on_error":
            assert node.definition.on_error is not None
            payload = walk.message.payload.replace(error=error)
            walk.message = self._child(walk.message, node.id, payload=payload)
            return self._take(node, node.definition.on_error, "on_error")
        walk.absorbed += 1
        walk.first_absorbed = walk.first_absorbed or error
        if onward.how == "stop":
            return walk.ending("degraded", walk.first_absorbed)
        if onward.fallback:
            payload = walk.message.payload
            marked = {**payload.metadata, "fallback": True}
            payload = payload.replace(content=self._config.fallback_response, metadata=marked)
            walk.message = self._child(walk.message, node.id, payload=payload)
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
        ways = self._graph.ways(node.id)
        if next_nodes:
            if next_nodes[0] in ways:
                return self._take(node, next_nodes[0], "named by the node")
            return self._no_way(node, f"{node.id!r} named {next_nodes[0]!r}, which is not one of its ways")
        names = expressions.names_of(self._walk.message, self._variables)
        edges = self._graph.edges_from(node.id)
        for edge in edges:
            if edge.condition is not None and self._holds(edge.condition, names, node.id):
                return self._take(node, edge.to_node, edge.condition)
        for edge in edges:
            if edge.condition is None:
                return self._take(node, edge.to_node, "unconditional")
        return self._no_way(node, f"no edge from {node.id!r} holds and none is unconditional")

    def _holds(self, condition: str, names: Mapping[str, Any], node_id: str) -> bool:
        try:
            return bool(self._executor.conditions[condition].evaluate(names))
        except ExpressionError as error:
            self._condition_failed(node_id, str(self._walk.visit), condition, str(error))
            return False

    def _take(self, node: BaseNode, to: str, why: str) -> _Ending | None:
        details = {"to": to, "why": why}
        self._trace.add(EventKind.WAY_CHOSEN, node_id=node.id, path=str(self._walk.visit), details=details)
        self._walk.node_id = to
        return None

    def _no_way(self, node: BaseNode, text: str) -> _Ending:
        error = ErrorInfo(code=ErrorCode.ROUTING_ERROR, message=_clean(text), node_id=node.id)
        return _Ending("failed", error, self._walk.message)

    # --- steps -------------------------------------------------------------------------------------

    async def _step(self, node: BaseNode, message: Message, path: str, scope: Scope) -> StepOutcome:
        """One step: attempts until one succeeds, fails for good, or none is left."""
        scope.check()
        if self._steps >= self._config.max_steps:
            self._scope.close(LIMIT)
            scope.check()
        self._steps += 1
        self._trace.add(EventKind.STEP_STARTED, node_id=node.id, path=path)
        ended = _StepEnd()
        try:
            outcome = await self._attempts(node, message, path, scope, ended)
            ended.code = outcome.error.code if outcome.error else None
            return outcome
        except CutShort as cut:
            ended.details = {"cut_off": cut.scope.reason}
            raise
        finally:
            told = {"code": ended.code, "cause": ended.cause, "details": ended.details}
            self._trace.add(EventKind.STEP_ENDED, node_id=node.id, path=path, **told)

    async def _attempts(
        self, node: BaseNode, message: Message, path: str, scope: Scope, ended: _StepEnd
    ) -> StepOutcome:
        config = node.definition.config
        delays = RetryDelays(config, seed=self._seed, path=path)
        attempt = 0
        while True:
            attempt += 1
            outcome = await self._attempt(node, message, path, attempt, scope, ended)
            if outcome.error is None or not may_retry(config, attempt, outcome.error):
                return outcome
            delay_ms = delays.next_ms(outcome.error)
            self._trace.add(
                EventKind.RETRY_WAITING,
                node_id=node.id,
                path=path,
                attempt=attempt,
                cause=ended.cause,
                details={"delay_ms": delay_ms},
            )
            ended.cause = None
            await scope.sleep_until(self._loop.time() + delay_ms / 1_000)

    async def _attempt(
        self, node: BaseNode, message: Message, path: str, attempt: int, scope: Scope, ended: _StepEnd
    ) -> StepOutcome:
        where: dict[str, Any] = {"node_id": node.id, "path": path, "attempt": attempt}
        self._trace.add(EventKind.ATTEMPT_STARTED, **where)
        ended.tokens = 0
        outcome: StepOutcome | None = None
        try:
            context = self._context(node, path, scope)
            if node.wraps:
                outcome = self._outcome(await _guarded_wrapper(node, message, context), node, message, context)
            else:
                outcome = await self._leaf(node, message, context, scope, where, ended)
            return outcome
        finally:
            error = outcome.error if outcome else None
            details: dict[str, Any] = {"tokens": ended.tokens} if ended.tokens else {}
            if outcome is None:
                details["cut_off"] = True
            elif error is not None:
                details["message"] = error.message
            code = error.code if error else None
            sequence = self._trace.add(EventKind.ATTEMPT_ENDED, **where, code=code, details=details)
            ended.cause = sequence if error else None

    async def _leaf(
        self,
        node: BaseNode,
        message: Message,
        context: ExecutionContext,
        scope: Scope,
        where: dict[str, Any],
        ended: _StepEnd,
    ) -> StepOutcome:
        """An attempt of a node that is not a wrapper: foreign code, in a task of its own, with a deadline."""
        timeout_ms = node.definition.config.timeout_ms
        with Scope(scope, deadline=self._loop.time() + timeout_ms / 1_000) as limit:

            def count(tokens: int) -> None:
                # An answer that arrives at the moment of the deadline is late, and its tokens do not count.
                if limit.outermost_over() is None:
                    self._tokens += tokens
                    ended.tokens += tokens

            context.count_tokens = count
            task = self._loop.create_task(_guarded(node, message, context), name=f"{node.id} {context.path}")
            try:
                await limit.wait(task)
            finally:
                # Only an end of the event loop itself gets here with the task undone and the limit not over.
                if not task.done() and limit.outermost_over() is None:
                    task.cancel()
            if limit.outermost_over() is None:
                # A node that cancelled its own task and returned without another await ends it as cancelled.
                result = _Raised(asyncio.CancelledError()) if task.cancelled() else task.result()
                return self._outcome(result, node, message, context)
            await self._stop(task, where)
        scope.check()
        text = f"{node.id!r} took {timeout_ms} ms"
        return _failed(message, ErrorInfo(code=ErrorCode.TIMEOUT, message=text, recoverable=True, node_id=node.id))

    async def _stop(self, task: asyncio.Task[Any], where: dict[str, Any]) -> None:
        if task.done():
            return
        if not await stop_task(task, grace_s=self._config.cancel_grace_ms / 1_000):
            self._trace.add(EventKind.TASK_ABANDONED, **where)

    def _outcome(
        self, result: NodeResult | _Raised | object, node: BaseNode, message: Message, context: ExecutionContext
    ) -> StepOutcome:
        """What an attempt's result or exception means."""
        if isinstance(result, _Raised):
            return _failed(message, _error_of(result.error, node.id))
        if not isinstance(result, NodeResult):
            text = f"{node.id!r} returned {type(result).__name__}, not a NodeResult"
            return _failed(message, ErrorInfo(code=ErrorCode.VALIDATION_ERROR, message=text, node_id=node.id))
        if not result.success:
            unknown = ErrorInfo(code=ErrorCode.UNKNOWN, message="failed without an error", recoverable=True)
            error = result.error or unknown
            told = {
                "node_id": error.node_id or node.id,
                # Whatever the node says of them, the other codes never are.
                "recoverable": error.recoverable and error.code in RECOVERABLE,
            }
            return _failed(message, error.model_copy(update=told))
        try:
            variables = checked_json(dict(context.variables))
        except (TypeError, ValueError) as error:
            text = _clean(f"{node.id!r} wrote variables that are no JSON: {error}")
            return _failed(message, ErrorInfo(code=ErrorCode.VALIDATION_ERROR, message=text, node_id=node.id))
        output = result.output_messages[-1] if result.output_messages else context.child_of(message)
        return StepOutcome(message=output, next_nodes=tuple(result.next_nodes[:1]), variables=variables)

    # --- what nodes get ----------------------------------------------------------------------------

    def _context(self, node: BaseNode, path: str, scope: Scope) -> ExecutionContext:
        return ExecutionContext(
            run_id=self.run_id,
            node_id=node.id,
            path=path,
            # A deep copy: what a failed attempt changed inside a value must not be seen by anyone.
            variables=checked_json(self._variables),
            model=self._executor.model,
            steps=_Targets(self, node.id, path, scope) if node.wraps else None,
            ids=self._executor.ids,
            clock=self._executor.clock,
            condition_failed=lambda source, reason: self._condition_failed(node.id, path, source, reason),
        )

    def _child(self, message: Message, node_id: str, **more: Any) -> Message:
        return message.create_child(
            node_id, message_id=self._executor.ids(), created_at=self._executor.clock(), **more
        )

    def _condition_failed(self, node_id: str, path: str, source: str, reason: str) -> None:
        details = {"condition": source, "reason": reason}
        self._trace.add(EventKind.CONDITION_ERROR, node_id=node_id, path=path, details=details)

    async def run_target(
        self, target: str, message: Message, source: str, path: str, scope: Scope, timeout_ms: int
    ) -> StepOutcome:
        """One target of a wrapper, within its own limit; being cut off by that limit is its `TIMEOUT`."""
        child = self._child(message, source, target_node=target)
        with Scope(scope, deadline=self._loop.time() + timeout_ms / 1_000) as limit:
            try:
                outcome = await self._step(self._executor.nodes[target], child, path, limit)
                limit.check()
                return outcome
            except CutShort as cut:
                if cut.scope is not limit:
                    raise
        text = f"{target!r} took the {timeout_ms} ms that {source!r} allows"
        error = ErrorInfo(code=ErrorCode.TIMEOUT, message=text, recoverable=True, node_id=target)
        return _failed(child, error)


@dataclass(slots=True)
class _StepEnd:
    """What the event of a step's end will say, and the tokens of the attempt that runs."""

    code: ErrorCode | None = None
    cause: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    tokens: int = 0


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a node raised; a node that returns an exception did not raise it."""

    error: BaseException


class _Targets:
    """Runs the targets of one wrapper's attempt."""

    def __init__(self, run: Run, source: str, path: str, scope: Scope) -> None:
        self._run = run
        self._source = source
        self._path = path
        self._scope = scope

    async def run_targets(
        self,
        targets: tuple[str, ...],
        message: Message,
        *,
        timeout_ms: int,
        at_once: int,
        stop_at_failure: bool,
    ) -> list[StepOutcome | None]:
        """See `Steps.run_targets`. When a scope around all of them is over, all end before CutShort is raised."""
        with Scope(self._scope) as group:
            branches = _Branches(group, stop_at_failure)
            waiting = list(enumerate(targets))
            while waiting or branches.running:
                while waiting and len(branches.running) < at_once and group.outermost_over() is None:
                    index, target = waiting.pop(0)
                    path = f"{self._path}.{index + 1}"
                    work = self._run.run_target(target, message, self._source, path, group, timeout_ms)
                    branches.start(index, work, name=f"{target} {path}")
                if not branches.running:
                    break
                await branches.collect()
        self._scope.check()
        return [branches.outcomes.get(index) for index in range(len(targets))]


class _Branches:
    """Branches that run at once: their tasks, and what came of those that ended."""

    def __init__(self, group: Scope, stop_at_failure: bool) -> None:
        self._group = group
        self._stop_at_failure = stop_at_failure
        self.running: dict[int, asyncio.Task[StepOutcome]] = {}
        self.outcomes: dict[int, StepOutcome] = {}

    def start(self, index: int, work: Any, *, name: str) -> None:
        self.running[index] = asyncio.get_running_loop().create_task(work, name=name)

    async def collect(self) -> None:
        """Wait until a branch has ended, and take the results of all that have, in order."""
        await asyncio.wait(self.running.values(), return_when=asyncio.FIRST_COMPLETED)
        for index, task in list(self.running.items()):
            if not task.done():
                continue
            del self.running[index]
            try:
                outcome = task.result()
            except CutShort:
                continue
            self.outcomes[index] = outcome
            if self._stop_at_failure and not outcome.success:
                self._group.close(SIBLING)


async def _guarded(node: BaseNode, message: Message, context: ExecutionContext) -> NodeResult | _Raised:
    """The node's result, or what it raised: foreign code must not end the engine's tasks by an exception."""
    try:
        return await node.execute(message, context)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # noqa: BLE001 - SystemExit too is only this node's failure
        return _Raised(error)


async def _guarded_wrapper(node: BaseNode, message: Message, context: ExecutionContext) -> NodeResult | _Raised:
    """The same for a wrapper: it runs in the engine's own task, so what unwinds that passes through it."""
    try:
        return await node.execute(message, context)
    except CutShort:
        raise
    except Exception as error:  # noqa: BLE001 - a wrapper that fails is a failed node like any other
        return _Raised(error)


def _failed(message: Message, error: ErrorInfo) -> StepOutcome:
    return StepOutcome(message=message, error=error)


def _error_of(raised: BaseException, node_id: str) -> ErrorInfo:
    """The ErrorInfo of an exception that a node raised."""
    if isinstance(raised, NodeError) and isinstance(raised.code, ErrorCode):
        code, details, recoverable = raised.code, raised.details, raised.recoverable
        text = _shown(str, raised.message)
    elif isinstance(raised, asyncio.CancelledError):
        code, text, details, recoverable = ErrorCode.CANCELLED, "the node cancelled itself", {}, False
    else:
        text = f"{type(raised).__name__}: {_shown(str, raised)}"
        code, details, recoverable = ErrorCode.UNKNOWN, {}, True
    info: dict[str, Any] = {"code": code, "message": _clean(text), "recoverable": recoverable, "node_id": node_id}
    try:
        return ErrorInfo(**info, details=details)
    except ValidationError:
        # Details that JSON cannot carry are shown, not lost.
        return ErrorInfo(**info, details={"repr": _clean(_shown(repr, details))})


def _shown(how: Callable[[object], str], thing: object) -> str:
    try:
        return how(thing)
    except Exception:  # noqa: BLE001 - an error that cannot even be shown must not become another one
        return "(what it says cannot be shown)"


def _clean(text: str) -> str:
    """Text that JSON can carry and a log can bear, whatever an exception said."""
    return text.encode("utf-8", "replace").decode()[:MESSAGE_CHARS_MAX]
