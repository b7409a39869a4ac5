"""Loop: runs its body again and again, on the last good output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from tinyllm import expressions
from tinyllm.config import LoopConfig, NodeDefinition
from tinyllm.context import ExecutionContext, Limit, StepOutcome
from tinyllm.errors import ErrorCode, ExpressionError
from tinyllm.message import ErrorInfo, Message, MessagePayload, NodeResult
from tinyllm.nodes.base import BaseNode, inner_steps, success

Termination = Literal["count", "success", "condition", "max_iterations", "timeout"]
#: Where the loop's own account is published.
RESULT_KEY = "loop_result"


class LoopNode(BaseNode):
    """Ends by its count, by a success, by its condition or by a limit; a limit is no failure by itself."""

    wraps: ClassVar[bool] = True

    def __init__(self, definition: NodeDefinition) -> None:
        super().__init__(definition)
        config = self.config_as(LoopConfig)
        asks = config.condition_type in ("until_condition", "while_condition")
        source = config.condition_expression if asks else None
        self._condition = None if source is None else expressions.parse(source)

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(LoopConfig)
        state = _State(message, context.variables)
        goes_on = config.continue_on_error or config.condition_type == "until_success"
        with inner_steps(context).limit(config.timeout_ms) as limit:
            while (termination := self._ends_before(config, state, limit, context)) is None:
                outcome = await self._iterate(config, state, limit)
                if outcome is None:
                    termination = "timeout"
                    break
                state.add(outcome)
                if outcome.error is not None and not goes_on:
                    return NodeResult(success=False, error=outcome.error)
                if (termination := self._ends_after(config, state, context)) is not None:
                    break
        return self._ended(state, termination, context)

    async def _iterate(self, config: LoopConfig, state: _State, limit: Limit) -> StepOutcome | None:
        number = state.iterations + 1
        payload = _with_metadata(state.good.payload, iteration=number)
        return await limit.run(config.body_node, state.good, payload, state.variables, suffix=f".{number}")

    def _ends_before(
        self, config: LoopConfig, state: _State, limit: Limit, context: ExecutionContext
    ) -> Termination | None:
        if limit.over():
            return "timeout"
        if state.iterations >= config.max_iterations:
            return "max_iterations"
        if config.condition_type == "while_condition" and not self._holds(state, context):
            return "condition"
        return None

    def _ends_after(self, config: LoopConfig, state: _State, context: ExecutionContext) -> Termination | None:
        match config.condition_type:
            case "fixed_count" if state.iterations >= config.count:
                return "count"
            case "until_success" if state.successes:
                return "success"
            case "until_condition" if self._holds(state, context):
                return "condition"
        return None

    def _holds(self, state: _State, context: ExecutionContext) -> bool:
        assert self._condition is not None
        names = {**expressions.names_of(state.good, state.variables), **state.names()}
        try:
            return bool(self._condition.evaluate(names))
        except ExpressionError as error:
            context.condition_failed(self._condition.source, str(error))
            return False

    def _ended(self, state: _State, termination: Termination, context: ExecutionContext) -> NodeResult:
        if not state.successes and not (termination == "condition" and not state.iterations):
            text = f"{self.id!r} reached its time before an iteration ended"
            error = state.last_error or ErrorInfo(code=ErrorCode.TIMEOUT, message=text, node_id=self.id)
            return NodeResult(success=False, error=error)
        context.variables = dict(state.variables)
        payload = _with_metadata(state.good.payload, **{RESULT_KEY: state.told(termination)})
        if not state.successes:
            payload = payload.replace(error=None)
        return success(context.child_owning(state.received, payload))


@dataclass(slots=True)
class _State:
    """What the iterations of one attempt have come to."""

    received: Message
    variables: Mapping[str, Any]
    good: Message = field(init=False)
    iterations: int = 0
    successes: int = 0
    results: list[dict[str, Any]] = field(default_factory=list)
    last_error: ErrorInfo | None = None

    def __post_init__(self) -> None:
        self.good = self.received

    def add(self, outcome: StepOutcome) -> None:
        """Count an iteration that has ended."""
        self.iterations += 1
        self.last_error = outcome.error
        if outcome.error is None:
            self.successes += 1
            self.good = outcome.message
            self.variables = outcome.variables
        self.results.append(
            {
                "iteration": self.iterations,
                "success": outcome.success,
                "output": outcome.message.payload.content if outcome.success else None,
                "metadata": self._metadata_of(outcome.message) if outcome.success else {},
                "error": None if outcome.error is None else outcome.error.model_dump(mode="json"),
            }
        )

    def _metadata_of(self, message: Message) -> dict[str, Any]:
        """The metadata as conditions see it, without what the loop received under its own key.

        A body that passes it on would have it copied into every result, and those into the next one's: loops in
        a loop would grow without bound.
        """
        metadata: dict[str, Any] = expressions.names_of(message, {})["metadata"]
        received = self.received.payload.metadata.get(RESULT_KEY)
        if received is not None and metadata.get(RESULT_KEY) == received:
            del metadata[RESULT_KEY]
        return metadata

    def names(self) -> dict[str, Any]:
        """What a loop's conditions know beside what every condition knows."""
        last = self.results[-1] if self.results else {}
        return {
            "iteration": self.iterations,
            "success_count": self.successes,
            "failure_count": self.iterations - self.successes,
            "results": self.results,
            "last_result": last,
            "last_success": last.get("success"),
            "last_output": last.get("output"),
            "last_error": last.get("error"),
        }

    def told(self, termination: Termination) -> dict[str, Any]:
        """The loop's account of itself."""
        return {
            "iterations": self.iterations,
            "success_count": self.successes,
            "failure_count": self.iterations - self.successes,
            "success_rate": self.successes / self.iterations if self.iterations else 0.0,
            "termination": termination,
            "results": self.results,
        }


def _with_metadata(payload: MessagePayload, **metadata: Any) -> MessagePayload:
    return payload.replace(metadata={**payload.metadata, **metadata})
