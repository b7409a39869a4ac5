"""Fanout: runs targets at once and makes one answer of theirs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from tinyllm.config import FanoutConfig
from tinyllm.context import ExecutionContext, StepOutcome
from tinyllm.errors import ErrorCode
from tinyllm.message import ErrorInfo, Message, NodeResult
from tinyllm.nodes.base import BaseNode, success


class FanoutNode(BaseNode):
    """A majority vote among its targets."""

    wraps: ClassVar[bool] = True

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(FanoutConfig)
        if context.steps is None:
            raise TypeError("a fanout runs other nodes: execute it through an Executor")
        at_once = len(config.target_nodes) if config.max_parallel_branches is None else config.max_parallel_branches
        outcomes = await context.steps.run_targets(
            config.target_nodes,
            message,
            timeout_ms=config.timeout_ms,
            at_once=at_once if config.parallel else 1,
            stop_at_failure=config.fail_fast,
        )
        return self._joined(config, message, outcomes, context)

    def _joined(
        self,
        config: FanoutConfig,
        message: Message,
        outcomes: Sequence[StepOutcome | None],
        context: ExecutionContext,
    ) -> NodeResult:
        failures = [outcome.error for outcome in outcomes if outcome is not None and outcome.error is not None]
        votes = count_votes([o.message.payload.content if o is not None and o.success else None for o in outcomes])
        told = {"votes": {text: len(voters) for text, voters in votes.items()}, "needed": config.votes_needed}
        strict = config.require_all_success or config.fail_fast
        if failures and strict:
            return self._failed(failures, "a target failed", told)
        winner = winning_vote(votes, config.votes_needed)
        if winner is None:
            return self._failed(failures, f"no answer has {config.votes_needed} votes", told)
        chosen = outcomes[winner]
        assert chosen is not None
        context.variables.update(chosen.variables)
        return success(context.child_of(message, chosen.message.payload), **told)

    def _failed(self, failures: Sequence[ErrorInfo], why: str, told: dict[str, Any]) -> NodeResult:
        listed = [{"node": e.node_id, "code": e.code.value, "message": e.message} for e in failures]
        details = {**told, "failures": listed}
        if failures:
            first = failures[0]
            text = f"{why}; {first.node_id}: {first.message}"
            # `failures` comes last: a nested fanout's own list must not hide this one's.
            error = first.model_copy(update={"message": text, "details": {**first.details, **details}})
        else:
            error = ErrorInfo(code=ErrorCode.GATE_FAILED, message=why, details=details, node_id=self.id)
        return NodeResult(success=False, error=error)


def count_votes(contents: Sequence[str | None]) -> dict[str, list[int]]:
    """Who voted for what: answers without case and with white space folded, each with its voters in order.

    None and empty answers are no votes.
    """
    votes: dict[str, list[int]] = {}
    for index, content in enumerate(contents):
        answer = " ".join((content or "").split()).casefold()
        if answer:
            votes.setdefault(answer, []).append(index)
    return votes


def winning_vote(votes: dict[str, list[int]], needed: int) -> int | None:
    """The first voter of the answer with most votes, if those are enough; ties go to the earlier first voter."""
    enough = [voters for voters in votes.values() if len(voters) >= needed]
    return min(enough, key=lambda voters: (-len(voters), voters[0]))[0] if enough else None
