"""Steps and their attempts: how a node is executed, timed, retried, counted and told.

Decisions that need no await are in `policy.py` and `breaker.py`, deadlines and cancellation in `scopes.py`, the
code of nodes is run by `leaf.py`. Where the token goes between visits is `running.py`'s business.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from tinyllm.breaker import CircuitBreaker, Permit
from tinyllm.context import ExecutionContext, StepOutcome
from tinyllm.eager import EagerTasks, Raised, Started
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.failures import clean, error_of, error_of_result, spoiled_error, wrong_type
from tinyllm.inner import InnerSteps
from tinyllm.leaf import ABANDONED, called, leaf_end
from tinyllm.message import (
    ErrorInfo,
    Message,
    MessageMetadata,
    MessagePayload,
    NodeResult,
    checked_json,
    child_owning,
    unfit,
)
from tinyllm.models.base import ModelClient
from tinyllm.nodes.base import BaseNode
from tinyllm.policy import RetryDelays, may_retry
from tinyllm.scopes import ROUNDING, CutShort, Scope, nanoseconds
from tinyllm.tools.registry import ToolRegistry
from tinyllm.trace import EventKind, Trace

if TYPE_CHECKING:
    from tinyllm.executor import Executor

#: Why a run's own scope is closed.
CANCELLED, STEPS_LIMIT, TOKENS_LIMIT = "cancelled", "steps", "tokens"

Variables = Mapping[str, Any]
#: Nobody can write into it.
NO_VARIABLES: Variables = MappingProxyType({})


class Stepper:
    """Executes the steps of one run and keeps its accounts."""

    __slots__ = (
        *("_breakers", "_grace_s", "_scope", "_seed", "_steps_max", "_tokens_max"),
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
        self.tasks = EagerTasks(scope.tree.loop)
        self._breakers = executor.breakers
        self._steps_max = executor.config.max_steps
        self._tokens_max = executor.config.max_tokens
        self._grace_s = executor.config.cancel_grace_ms / 1_000

    async def step(
        self, node: BaseNode, message: Message, path: str, scope: Scope, variables: Variables
    ) -> StepOutcome:
        """One step: attempts until one succeeds, fails for good, or none is left.

        Before it come cancellation and deadline, limits, breaker. Raises CutShort when `scope` or one around it
        is over, which a step that crosses `max_tokens` brings about itself.
        """
        begun = self.begin(node, message, path, scope, variables)
        return begun if type(begun) is StepOutcome else await self.rest(begun, message)

    def begin(
        self, node: BaseNode, message: Message, path: str, scope: Scope, variables: Variables
    ) -> StepOutcome | Attempt:
        """The beginning of `step`: what came of it if it ended well without waiting, else what `rest` goes on with."""
        now = self.now()
        if not scope.tree.is_quiet or now >= scope.safe_until:
            scope.check()
        if self.steps >= self._steps_max:
            self._end_run(STEPS_LIMIT, scope)
        breaker = self._breakers.get(node.id) if self._breakers else None
        permit = None
        if breaker is not None:
            permit = self._admitted(breaker, node, path)
            # What the breaker told may have a later time.
            now = self.now()
        self.steps += 1
        if breaker is not None and permit is None:
            return self._refused(node, message, path)
        self.trace.step_began(node.id, path, now)
        attempt = Attempt(self, node, path, 1, scope, variables, now)
        if breaker is not None or node.wraps:
            attempt.permit = permit
            return attempt
        # As in `_begun`, without a call more for each of the steps that make up most runs.
        try:
            execute = node.execute(message, attempt) if node.is_async else called(node.execute, message, attempt)
            result = self.tasks.start(execute, node.id, path)
            if type(result) is Started:
                attempt.begun = result
                return attempt
            outcome = self._ended(attempt, result, message)
        except BaseException as error:
            self._cut_off(attempt, error)
            if isinstance(error, CutShort):
                self._check_tokens(scope)
            raise
        if outcome.error is not None:
            attempt.begun = outcome
            return attempt
        self.trace.step_succeeded(node.id, path, 1, attempt.tokens, attempt.ended_at)
        if self._tokens_max is not None:
            self._check_tokens(scope)
        return outcome

    async def rest(self, attempt: Attempt, message: Message, *, fails_at: Scope | None = None) -> StepOutcome:
        """The rest of a step that has begun. Being cut off by `fails_at` is its failure, not of something around it."""
        node, path = attempt.node, attempt.path
        outcome: StepOutcome | None = None
        try:
            if attempt.begun is None:
                if fails_at is not None:
                    # All targets of a fanout begin before anything else: a node inside one of them, or the end of one
                    # that does not wait, which another's breaker would hear of.
                    await asyncio.sleep(0)
                attempt.deadline = self.now() + node.timeout_s
                outcome = self._begun(attempt, message)
            elif type(attempt.begun) is StepOutcome:
                outcome = attempt.begun
            outcome = outcome or await self._to_the_end(attempt, message)
            if outcome.error is None:
                self.trace.step_succeeded(node.id, path, 1, attempt.tokens, attempt.ended_at)
            else:
                outcome = await self._after_failed(attempt, message, outcome)
        except CutShort as cut:
            # A failed attempt before that was not the step's end.
            outcome = None
            if cut.scope is fails_at:
                outcome = StepOutcome(message, error=ErrorInfo(code=ErrorCode.TIMEOUT, message="", node_id=node.id))
            self._check_tokens(attempt.scope)
            raise
        finally:
            if attempt.permit is not None:
                self._judged(self._breakers[node.id], attempt.permit, node, path, outcome)
        self._check_tokens(attempt.scope)
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
        try:
            execute = node.execute(message, attempt) if node.is_async else called(node.execute, message, attempt)
            result = self.tasks.start(execute, node.id, attempt.path)
            if type(result) is Started:
                attempt.begun = result
                return None
            return self._ended(attempt, result, message)
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
        node, begun = attempt.node, attempt.begun
        if type(begun) is not Started:
            return await _guarded_wrapper(node, message, attempt)
        result = await leaf_end(begun, attempt.scope, deadline=attempt.deadline, grace_s=self._grace_s)
        if result is ABANDONED:
            self.trace.add(EventKind.TASK_ABANDONED, node.id, attempt.path, attempt.number)
        return result

    def _ended(self, attempt: Attempt, result: Any, message: Message) -> StepOutcome:
        """What came of an attempt. Whatever it gave, it is cut off if a scope around it is over, and late if it is."""
        scope, now = attempt.scope, self.now()
        if not scope.tree.is_quiet or now >= scope.safe_until:
            scope.check()
        attempt.ended_at = now
        if result is ABANDONED or (now >= attempt.deadline - ROUNDING and attempt.is_late()):
            node = attempt.node
            text = f"{node.id!r} took {node.config.timeout_ms} ms"
            return StepOutcome(message, error=ErrorInfo(code=ErrorCode.TIMEOUT, message=text, node_id=node.id))
        # A result that was built without validation may hold anything.
        given = result.__dict__ if isinstance(result, NodeResult) else {}
        if given.get("success") is not True:
            return StepOutcome(message, error=_error_in(result, message, attempt.node.id))
        outputs, named = given.get("output_messages"), given.get("next_nodes")
        if type(outputs) is not list or type(named) is not list or (named and type(named[0]) is not str):
            text = f"messages ({type(outputs).__name__}) or next nodes ({type(named).__name__}) of the wrong type"
            return StepOutcome(message, error=wrong_type(attempt.node.id, text))
        output = outputs[-1] if outputs else attempt.child_of(message)
        if not isinstance(output, Message) or not isinstance(output.__dict__.get("payload"), MessagePayload):
            return StepOutcome(message, error=wrong_type(attempt.node.id, _what_it_is(output)))
        outcome = StepOutcome(output, tuple(named[:1]) if named else (), None, NO_VARIABLES)
        return _with_variables(outcome, attempt, message) if attempt.variables else outcome

    async def _after_failed(self, attempt: Attempt, message: Message, outcome: StepOutcome) -> StepOutcome:
        """Try again until an attempt succeeds or none is left."""
        trace, node, path, scope = self.trace, attempt.node, attempt.path, attempt.scope
        delays = RetryDelays(node.config, seed=self._seed, path=path)
        while (failure := outcome.error) is not None:
            details = {**attempt.told(), "message": failure.message}
            trace.add(EventKind.ATTEMPT_ENDED, node.id, path, attempt.number, failure.code, details=details)
            cause = trace.newest
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
            attempt = Attempt(self, node, path, attempt.number + 1, scope, attempt.variables_before, self.now())
            trace.add(EventKind.ATTEMPT_STARTED, node.id, path, attempt.number)
            outcome = self._begun(attempt, message) or await self._to_the_end(attempt, message)
        trace.step_succeeded(node.id, path, attempt.number, attempt.tokens, attempt.ended_at)
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
        attempt.ended_at = self.now()
        details = {**attempt.told(), "cut_off": True}
        self.trace.add(EventKind.ATTEMPT_ENDED, attempt.node.id, attempt.path, attempt.number, details=details)
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
        return child_owning(message, payload, source, target, executor.ids(), executor.clock())


class Attempt(ExecutionContext):
    """One attempt of one step: what its node gets to see, and its share of the accounts.

    Most of what a context shows is the run's or the executor's; it is looked up there when a node asks.
    """

    __slots__ = (
        *("_stepper", "begun", "deadline", "ended_at", "node", "number"),
        *("permit", "scope", "tokens", "variables_before"),
    )

    def __init__(  # Not the base's: that would copy a dozen things which most nodes never look at.
        self, stepper: Stepper, node: BaseNode, path: str, number: int, scope: Scope, variables: Variables, now: float
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
        #: Loop time; infinite while it runs.
        self.ended_at = math.inf
        #: Loop time; infinite for a wrapper, which has no time of its own.
        self.deadline = now + node.timeout_s
        #: What a breaker let it through with.
        self.permit: Permit | None = None
        #: The node's code if it waits, or what came of it if it failed; None for a wrapper, and before it begins.
        self.begun: Started | StepOutcome | None = None

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

    def child_owning(
        self, message: Message, payload: MessagePayload, metadata: MessageMetadata | None = None
    ) -> Message:
        """What the base class gives, without a look at a property for each part."""
        executor = self._stepper.executor
        return child_owning(message, payload, self.node.id, None, executor.ids(), executor.clock(), metadata)

    def is_late(self) -> bool:
        """Whether its own time is up."""
        return self.deadline < math.inf and nanoseconds(self._stepper.now()) >= nanoseconds(self.deadline)

    def is_over(self) -> bool:
        """Whether its time is up, or that of something around it."""
        return self.is_late() or self.scope.outermost_over() is not None

    def count_tokens(self, tokens: int) -> None:
        """Count them for the run, unless this attempt is over: what comes at its deadline is late.

        Raises NodeError `VALIDATION_ERROR` for what is no number of tokens.
        """
        if type(tokens) is not int or not 0 <= tokens < 2**63:
            raise NodeError(ErrorCode.VALIDATION_ERROR, f"{tokens!r:.40} is no number of tokens")
        if self.ended_at == math.inf and not self.is_over():
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


def _what_it_is(output: Any) -> str:
    if isinstance(output, Message):
        return f"a message whose payload is {type(output.__dict__.get('payload')).__name__}"
    return f"a message that is {type(output).__name__}"


def _error_in(result: Any, message: Message, node_id: str) -> ErrorInfo:
    """The error of what an attempt gave that is no success."""
    if isinstance(result, Raised):
        spoiled = unfit(message)
        return error_of(result.error, node_id) if spoiled is None else spoiled_error(spoiled, node_id)
    if not isinstance(result, NodeResult):
        return wrong_type(node_id, f"{type(result).__name__}, not a NodeResult")
    return error_of_result(result, node_id)


def _with_variables(outcome: StepOutcome, attempt: Attempt, message: Message) -> StepOutcome:
    """The outcome with a copy of the variables that the attempt wrote, or the failure of writing what is no JSON."""
    try:
        outcome.variables = checked_json(dict(attempt.variables))
    except Exception as problem:  # noqa: BLE001 - whatever a node put there is code, too
        node_id = attempt.node.id
        text = clean(f"{node_id!r} wrote variables that are no JSON: {problem}")
        return StepOutcome(message, error=ErrorInfo(code=ErrorCode.VALIDATION_ERROR, message=text, node_id=node_id))
    return outcome
