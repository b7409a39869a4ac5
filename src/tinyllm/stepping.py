"""Steps and their attempts: how a node is executed, timed, retried, counted and told.

Decisions that need no await are in `policy.py` and `breaker.py`, deadlines and cancellation in `scopes.py`, the
code of nodes is run by `leaf.py`. Where the token goes between visits is `running.py`'s business.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from tinyllm.breaker import CircuitBreaker, Permit
from tinyllm.context import ExecutionContext, Joined, StepOutcome
from tinyllm.eager import EagerTasks, Started
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.failures import clean, error_of, error_of_result, wrong_type
from tinyllm.leaf import ABANDONED, Raised, begin_leaf, called, leaf_end, outcome_of
from tinyllm.message import ErrorInfo, Message, MessagePayload, NodeResult, checked_json
from tinyllm.models.base import ModelClient
from tinyllm.nodes.base import BaseNode
from tinyllm.policy import RetryDelays, may_retry
from tinyllm.scopes import CutShort, Scope, nanoseconds
from tinyllm.tools.registry import ToolRegistry
from tinyllm.trace import EventKind, Trace

if TYPE_CHECKING:
    from tinyllm.executor import Executor

#: Why a run's own scope is closed.
CANCELLED, STEPS_LIMIT, TOKENS_LIMIT = "cancelled", "steps", "tokens"
#: Why the scope around the targets of a fanout is closed.
SIBLING = "a sibling decided"

Variables = Mapping[str, Any]


class Stepper:
    """Executes the steps of one run and keeps its accounts."""

    __slots__ = (
        *("_grace_s", "_scope", "_seed", "_steps_max", "_tokens_max"),
        *("executor", "history", "now", "run_id", "steps", "tasks", "tokens", "trace"),
    )

    def __init__(
        self, executor: Executor, run_id: str, scope: Scope, trace: Trace, seed: int, history: Sequence[Message]
    ) -> None:
        self.executor = executor
        self.run_id = run_id
        self.trace = trace
        self.steps = 0
        self.tokens = 0
        self.history = history
        self._scope = scope
        self._seed = seed
        self.now = scope.now
        self.tasks = EagerTasks(asyncio.get_running_loop())
        self._steps_max = executor.config.max_steps
        self._tokens_max = executor.config.max_tokens
        self._grace_s = executor.config.cancel_grace_ms / 1_000

    async def step(
        self,
        node: BaseNode,
        message: Message,
        path: str,
        scope: Scope,
        variables: Variables,
        *,
        fails_at: Scope | None = None,
    ) -> StepOutcome:
        """One step: attempts until one succeeds, fails for good, or none is left.

        Before it come cancellation and deadline, limits, breaker. Raises CutShort when `scope` or one around it
        is over, which a step that crosses `max_tokens` brings about itself. Being cut off by `fails_at` is a failure
        of this step, not of something around it.
        """
        if scope.closed or self.now() >= scope.safe_until:
            scope.check()
        if self.steps >= self._steps_max:
            self._end_run(STEPS_LIMIT, scope)
        breaker = self.executor.breakers.get(node.id)
        permit = None if breaker is None else self._admitted(breaker, node, path)
        self.steps += 1
        if breaker is not None and permit is None:
            return self._refused(node, message, path)
        self.trace.step_began(node.id, path)
        outcome: StepOutcome | None = None
        try:
            attempt = Attempt(self, node, path, 1, scope, variables)
            if fails_at is not None and (node.wraps or breaker is not None):
                # All targets of a fanout begin before anything else: a node inside one of them, or the end of one
                # that does not wait, which another's breaker would hear of.
                await asyncio.sleep(0)
            outcome = self._begun(attempt, message) or await self._to_the_end(attempt, message)
            if outcome.error is None:
                self.trace.step_succeeded(node.id, path, 1, attempt.tokens)
            else:
                outcome = await self._after_failed(attempt, message, outcome)
        except CutShort as cut:
            # A failed attempt before that was not the step's end.
            outcome = None
            if cut.scope is fails_at:
                outcome = StepOutcome(message, error=ErrorInfo(code=ErrorCode.TIMEOUT, message="", node_id=node.id))
            self._check_tokens(scope)
            raise
        finally:
            if breaker is not None and permit is not None:
                self._judged(breaker, permit, node, path, outcome)
        if self._tokens_max is not None:
            self._check_tokens(scope)
        return outcome

    def _check_tokens(self, scope: Scope) -> None:
        """End the run if it has used too many; asked as each step ends."""
        if self._tokens_max is not None and self.tokens > self._tokens_max:
            self._end_run(TOKENS_LIMIT, scope)

    def _end_run(self, reason: str, scope: Scope) -> None:
        self._scope.close(reason)
        scope.check()

    # --- attempts ----------------------------------------------------------------------------------

    def _begun(self, attempt: Attempt, message: Message) -> StepOutcome | None:
        """Begin an attempt: what came of it if it did not wait for anything, else None."""
        node = attempt.node
        if node.wraps:
            attempt.steps = InnerSteps(self, attempt)
            return None
        attempt.deadline = deadline = self.now() + node.config.timeout_ms / 1_000
        # Before this nobody needs to compare moments exactly.
        attempt.safe_until = deadline - 1e-6
        try:
            execute = node.execute(message, attempt) if node.is_async else called(node.execute, message, attempt)
            started = begin_leaf(self.tasks, execute, name=f"{node.id} {attempt.path}")
            if not started.has_ended:
                attempt.started = started
                return None
            return self._ended(attempt, outcome_of(started), message)
        except BaseException as error:
            self._cut_off(attempt, error)
            raise

    async def _to_the_end(self, attempt: Attempt, message: Message) -> StepOutcome:
        """The rest of an attempt that waits."""
        try:
            return self._ended(attempt, await self._result(attempt, message), message)
        except BaseException as error:
            self._cut_off(attempt, error)
            raise

    async def _result(self, attempt: Attempt, message: Message) -> Any:
        node, started = attempt.node, attempt.started
        if started is None:
            return await _guarded_wrapper(node, message, attempt)
        assert attempt.deadline is not None
        result = await leaf_end(started, attempt.scope, deadline=attempt.deadline, grace_s=self._grace_s)
        if result is ABANDONED:
            self.trace.add(EventKind.TASK_ABANDONED, node.id, attempt.path, attempt.number)
        return result

    def _ended(self, attempt: Attempt, result: Any, message: Message) -> StepOutcome:
        """What came of an attempt. Whatever it gave, it is cut off if a scope around it is over, and late if it is."""
        node, scope, now = attempt.node, attempt.scope, self.now()
        if scope.closed or now >= scope.safe_until:
            scope.check()
        attempt.ended = True
        if result is ABANDONED or (now >= attempt.safe_until and attempt.is_late()):
            text = f"{node.id!r} took {node.config.timeout_ms} ms"
            return StepOutcome(message, error=ErrorInfo(code=ErrorCode.TIMEOUT, message=text, node_id=node.id))
        return _outcome(result, node, message, attempt)

    async def _after_failed(
        self, attempt: Attempt, message: Message, outcome: StepOutcome
    ) -> StepOutcome:
        """Try again until an attempt succeeds or none is left."""
        trace, node, path, scope = self.trace, attempt.node, attempt.path, attempt.scope
        delays = RetryDelays(node.config, seed=self._seed, path=path)
        while (failure := outcome.error) is not None:
            details = {**attempt.told(), "message": failure.message}
            cause = trace.add(EventKind.ATTEMPT_ENDED, node.id, path, attempt.number, failure.code, details=details)
            if not may_retry(node.config, attempt.number, failure):
                return self._failed_for_good(attempt, message, outcome, cause)
            delay_ms = delays.next_ms(failure)
            details = {"delay_ms": delay_ms}
            trace.add(EventKind.RETRY_WAITING, node.id, path, attempt.number, cause=cause, details=details)
            try:
                # Also without a delay: the targets beside this one begin before it tries again.
                await asyncio.sleep(0)
                await scope.sleep_until(self.now() + delay_ms / 1_000)
            except BaseException as error:
                self._step_cut_off(attempt, error)
                raise
            attempt = Attempt(self, node, path, attempt.number + 1, scope, attempt.variables_before)
            trace.add(EventKind.ATTEMPT_STARTED, node.id, path, attempt.number)
            outcome = self._begun(attempt, message) or await self._to_the_end(attempt, message)
        trace.step_succeeded(node.id, path, attempt.number, attempt.tokens)
        return outcome

    def _failed_for_good(self, attempt: Attempt, message: Message, outcome: StepOutcome, cause: int) -> StepOutcome:
        """The last attempt failed: so does the step, unless its node has something else to put out."""
        node = attempt.node
        assert outcome.error is not None
        instead = node.instead_of(outcome.error, message, attempt)
        code = outcome.error.code if instead is None else None
        self.trace.add(EventKind.STEP_ENDED, node.id, attempt.path, code=code, cause=cause)
        return outcome if instead is None else StepOutcome(instead, variables=attempt.variables_before)

    def _cut_off(self, attempt: Attempt, error: BaseException) -> None:
        attempt.ended = True
        details = {**attempt.told(), "cut_off": True}
        self.trace.add(
            EventKind.ATTEMPT_ENDED, attempt.node.id, attempt.path, attempt.number, details=details
        )
        self._step_cut_off(attempt, error)

    def _step_cut_off(self, attempt: Attempt, error: BaseException) -> None:
        details = {"cut_off": error.scope.reason} if isinstance(error, CutShort) else {}
        self.trace.add(EventKind.STEP_ENDED, attempt.node.id, attempt.path, details=details)

    # --- breakers ----------------------------------------------------------------------------------

    def _admitted(self, breaker: CircuitBreaker, node: BaseNode, path: str) -> Permit | None:
        before = breaker.state
        permit = breaker.admit(nanoseconds(self.now()))
        self._told_if_changed(breaker, before, node, path)
        return permit

    def _judged(
        self, breaker: CircuitBreaker, permit: Permit, node: BaseNode, path: str, outcome: StepOutcome | None
    ) -> None:
        """Tell the breaker how a step ended; None: it was cut off."""
        before = breaker.state
        error = None if outcome is None else outcome.error
        breaker.ended(permit, error, nanoseconds(self.now()), cancelled=outcome is None)
        self._told_if_changed(breaker, before, node, path)

    def _told_if_changed(self, breaker: CircuitBreaker, before: str, node: BaseNode, path: str) -> None:
        if breaker.state != before:
            details = {"state": breaker.state, "was": before}
            self.trace.add(EventKind.BREAKER_CHANGED, node.id, path, details=details)

    def _refused(self, node: BaseNode, message: Message, path: str) -> StepOutcome:
        """A step that an open breaker fails at once: it is a step, and makes no attempt."""
        text = f"{node.id!r} failed too often; its circuit breaker is open"
        error = ErrorInfo(code=ErrorCode.CIRCUIT_OPEN, message=text, node_id=node.id)
        self.trace.add(EventKind.STEP_STARTED, node.id, path)
        self.trace.add(EventKind.STEP_ENDED, node.id, path, code=error.code)
        return StepOutcome(message, error=error)

    # --- inner steps -------------------------------------------------------------------------------

    def child(self, message: Message, source: str, target: str | None, payload: MessagePayload) -> Message:
        """A message with this run's ids and clock, for a payload that nobody else holds."""
        executor = self.executor
        return message.child_owning(
            payload, source, target, message_id=executor.ids(), created_at=executor.clock()
        )


class Attempt(ExecutionContext):
    """One attempt of one step: what its node gets to see, and its share of the accounts.

    Most of what a context shows is the run's or the executor's; it is looked up there when a node asks.
    """

    __slots__ = (
        *("_stepper", "deadline", "ended", "node", "number"),
        *("safe_until", "scope", "started", "tokens", "variables_before"),
    )

    def __init__(  # Not the base's: that would copy a dozen things which most nodes never look at.
        self, stepper: Stepper, node: BaseNode, path: str, number: int, scope: Scope, variables: Variables
    ) -> None:
        self._stepper = stepper
        self.node = node
        self.path = path
        self.number = number
        self.scope = scope
        self.variables_before = variables
        # A deep copy: what a failed attempt changed inside a value must not be seen by anyone.
        self.variables = checked_json(dict(variables)) if variables else {}
        self.steps = None
        self.tokens = 0
        self.ended = False
        #: Loop time; None for a wrapper, which has no time of its own.
        self.deadline: float | None = None
        self.safe_until = math.inf
        #: The node's code, if it waits.
        self.started: Started | None = None

    @property
    def run_id(self) -> str:  # type: ignore[override]
        return self._stepper.run_id

    @property
    def node_id(self) -> str:  # type: ignore[override]
        return self.node.id

    @property
    def history(self) -> Sequence[Message]:  # type: ignore[override]
        return self._stepper.history

    @property
    def model(self) -> ModelClient | None:  # type: ignore[override]
        return self._stepper.executor.model

    @property
    def tools(self) -> ToolRegistry | None:  # type: ignore[override]
        return self._stepper.executor.tools

    @property
    def prompts(self) -> Mapping[str, str]:  # type: ignore[override]
        return self._stepper.executor.prompts

    @property
    def ids(self) -> Callable[[], str]:  # type: ignore[override]
        return self._stepper.executor.ids

    @property
    def clock(self) -> Callable[[], datetime]:  # type: ignore[override]
        return self._stepper.executor.clock

    def is_late(self) -> bool:
        """Whether its own time is up."""
        return self.deadline is not None and nanoseconds(self._stepper.now()) >= nanoseconds(self.deadline)

    def is_over(self) -> bool:
        """Whether its time is up, or that of something around it."""
        return self.is_late() or self.scope.outermost_over() is not None

    def count_tokens(self, tokens: int) -> None:
        """Count them for the run, unless this attempt is over: what comes at its deadline is late.

        Raises NodeError `VALIDATION_ERROR` for what is no number of tokens.
        """
        if type(tokens) is not int or not 0 <= tokens < 2**63:
            raise NodeError(ErrorCode.VALIDATION_ERROR, f"{tokens!r:.40} is no number of tokens")
        if not self.ended and not self.is_over():
            self.tokens += tokens
            self._stepper.tokens += tokens

    def condition_failed(self, source: str, reason: str) -> None:
        """Put a condition that failed to evaluate into the trace."""
        details = {"condition": source, "reason": reason}
        self._stepper.trace.add(EventKind.CONDITION_ERROR, self.node.id, self.path, details=details)

    def told(self) -> dict[str, Any]:
        """What the event of its end says about tokens."""
        return {"tokens": self.tokens} if self.tokens else {}


async def _guarded_wrapper(node: BaseNode, message: Message, context: ExecutionContext) -> NodeResult | Raised:
    """What a wrapper gave: its code is the engine's, and what unwinds that passes through it."""
    try:
        return await node.execute(message, context)
    except CutShort:
        raise
    except ValidationError as error:
        # What it would put out is none: accounts inside accounts, nested deeper than a message may be.
        return Raised(NodeError(ErrorCode.VALIDATION_ERROR, str(error)))
    except Exception as error:  # noqa: BLE001 - a wrapper that fails is a failed node like any other
        return Raised(error)


def _outcome(result: Any, node: BaseNode, message: Message, context: ExecutionContext) -> StepOutcome:
    """What an attempt's result or exception means."""
    if isinstance(result, Raised):
        return StepOutcome(message, error=error_of(result.error, node.id))
    if not isinstance(result, NodeResult):
        error = wrong_type(node.id, f"{type(result).__name__}, not a NodeResult")
        return StepOutcome(message, error=error)
    if result.success is not True:
        return StepOutcome(message, error=error_of_result(result, node.id))
    try:
        written: Any = context.variables
        variables = checked_json(dict(written)) if written else {}
    except Exception as problem:  # noqa: BLE001 - whatever a node put there is code, too
        text = clean(f"{node.id!r} wrote variables that are no JSON: {problem}")
        error = ErrorInfo(code=ErrorCode.VALIDATION_ERROR, message=text, node_id=node.id)
        return StepOutcome(message, error=error)
    # A result that was built without validation may hold anything.
    outputs: list[Any] = result.output_messages
    output = outputs[-1] if outputs else context.child_of(message)
    if not isinstance(output, Message):
        return StepOutcome(message, error=wrong_type(node.id, f"a message that is {type(output).__name__}"))
    return StepOutcome(output, next_nodes=tuple(result.next_nodes[:1]), variables=variables)


class InnerSteps:
    """Runs the nodes inside one wrapper's attempt."""

    def __init__(self, stepper: Stepper, attempt: Attempt) -> None:
        self._stepper = stepper
        self._source = attempt.node.id
        self._path = attempt.path
        self._scope = attempt.scope

    def limit(self, timeout_ms: int) -> InnerLimit:
        """See `Steps.limit`."""
        deadline = self._stepper.now() + timeout_ms / 1_000
        return InnerLimit(self._stepper, self._source, self._path, Scope(self._scope, deadline=deadline))

    async def run_targets(
        self,
        targets: tuple[str, ...],
        message: Message,
        variables: Variables,
        *,
        timeout_ms: int,
        at_once: int,
        stop_at: Literal["failure", "success"] | None,
    ) -> Joined:
        """See `Steps.run_targets`. When a scope around all of them is over, all end before CutShort is raised."""
        with Scope(self._scope) as group:
            branches = _Branches(group, self._stepper.tasks, stop_at)
            following, total = 0, len(targets)
            while following < total or branches.running:
                while following < total and len(branches.running) < at_once and group.outermost_over() is None:
                    target, path = targets[following], f"{self._path}.{following + 1}"
                    work = self._run_target(target, message, variables, path, group, timeout_ms)
                    branches.start(following, work, name=f"{target} {path}")
                    following += 1
                if not branches.running:
                    break
                await branches.collect()
        self._scope.check()
        return Joined([branches.outcomes.get(index) for index in range(len(targets))], branches.decided_by)

    async def _run_target(
        self, target: str, message: Message, variables: Variables, path: str, group: Scope, timeout_ms: int
    ) -> StepOutcome:
        """One target within its own limit; being cut off by that limit is its `TIMEOUT`."""
        stepper = self._stepper
        child = stepper.child(message, self._source, target, message.payload.copied())
        with Scope(group, deadline=stepper.now() + timeout_ms / 1_000) as limit:
            try:
                node = stepper.executor.nodes[target]
                outcome = await stepper.step(node, child, path, limit, variables, fails_at=limit)
                limit.check()
                return outcome
            except CutShort as cut:
                if cut.scope is not limit:
                    raise
        text = f"{target!r} took the {timeout_ms} ms that {self._source!r} allows"
        return StepOutcome(child, error=ErrorInfo(code=ErrorCode.TIMEOUT, message=text, node_id=target))


class InnerLimit:
    """A time for the steps inside a loop or a timeout; use it in a `with`."""

    def __init__(self, stepper: Stepper, source: str, path: str, scope: Scope) -> None:
        self._stepper = stepper
        self._source = source
        self._path = path
        self._scope = scope

    def __enter__(self) -> InnerLimit:
        return self

    def __exit__(self, *_: object) -> None:
        self._scope.__exit__()

    def over(self) -> bool:
        """Whether this time is up; raises CutShort if something around it is over."""
        outermost = self._scope.outermost_over()
        if outermost is None or outermost is self._scope:
            return outermost is not None
        raise CutShort(outermost)

    async def run(
        self, node_id: str, message: Message, payload: MessagePayload, variables: Variables, *, suffix: str = ""
    ) -> StepOutcome | None:
        """See `Limit.run`."""
        stepper = self._stepper
        child = stepper.child(message, self._source, node_id, payload.copied())
        try:
            node = stepper.executor.nodes[node_id]
            outcome = await stepper.step(node, child, self._path + suffix, self._scope, variables)
        except CutShort as cut:
            if cut.scope is not self._scope:
                raise
            return None
        return None if self.over() else outcome


class _Branches:
    """Branches that run at once, and what came of those that ended."""

    def __init__(self, group: Scope, tasks: EagerTasks, stop_at: Literal["failure", "success"] | None) -> None:
        self._group = group
        self._tasks = tasks
        self._stop_at = stop_at
        self._someone_ended: asyncio.Future[None] | None = None
        #: Those whose end was not taken in yet, and of them those that wait.
        self.running: dict[int, Started | StepOutcome | BaseException] = {}
        self.outcomes: dict[int, StepOutcome] = {}
        self.decided_by: int | None = None

    def start(self, index: int, work: Coroutine[Any, Any, StepOutcome], *, name: str) -> None:
        started = self._tasks.start(work, name=name)
        if started.has_ended:
            # The next one to start may use what this one ran in.
            self.running[index] = started.value if started.error is None else started.error
        else:
            assert started.task is not None
            started.task.add_done_callback(self._wake)
            self.running[index] = started

    def _wake(self, _: object) -> None:
        if self._someone_ended is not None and not self._someone_ended.done():
            self._someone_ended.set_result(None)

    async def collect(self) -> None:
        """Wait until a branch has ended, and take the results of all that have, in order."""
        ended = self._ended()
        if not ended:
            self._someone_ended = asyncio.get_running_loop().create_future()
            await self._someone_ended
            ended = self._ended()
        for index in ended:
            result: Any = self.running.pop(index)
            if isinstance(result, Started):
                result = result.value if result.error is None else result.error
            if isinstance(result, CutShort):
                continue
            if isinstance(result, BaseException):
                raise result
            assert isinstance(result, StepOutcome)
            self.outcomes[index] = result
            if self.decided_by is None and self._stop_at == ("success" if result.success else "failure"):
                self.decided_by = index
                self._group.close(SIBLING)

    def _ended(self) -> list[int]:
        return [index for index, it in self.running.items() if not isinstance(it, Started) or it.has_ended]
