"""Fanout: runs targets at once and makes one answer of theirs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from tinyllm import expressions
from tinyllm.config import FanoutConfig
from tinyllm.context import ExecutionContext, Joined, StepOutcome
from tinyllm.errors import ErrorCode
from tinyllm.message import ErrorInfo, Message, NodeResult
from tinyllm.nodes.base import BaseNode, inner_steps, passed_payload, success

Outcomes = Sequence[StepOutcome | None]


class FanoutNode(BaseNode):
    """Joins what its targets give by one of four strategies. Ties go to the target that was named first."""

    wraps: ClassVar[bool] = True

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(FanoutConfig)
        stop_at: Literal["failure", "success"] | None = "failure" if config.stops_at_failure else None
        if config.aggregation_strategy == "first_success":
            stop_at = "success"
        joined = await inner_steps(context).run_targets(
            config.target_nodes,
            message,
            context.variables,
            timeout_ms=config.timeout_ms,
            at_once=config.at_once,
            stop_at=stop_at,
        )
        return self._result(config, message, joined, context)

    def _result(
        self, config: FanoutConfig, message: Message, joined: Joined, context: ExecutionContext
    ) -> NodeResult:
        strategy = config.aggregation_strategy
        failed = [outcome.error for outcome in joined.outcomes if outcome is not None and outcome.error is not None]
        if strategy == "first_success":
            return self._winner(config, joined.decided_by, message, joined, context)
        if failed and (config.require_all_success or config.fail_fast):
            return self._failed(config, joined, "a target failed")
        if strategy == "all":
            return self._all(config, message, joined, context)
        winner = (
            winning_vote(count_votes(_contents(joined.outcomes)), config.votes_needed)
            if strategy == "majority_vote"
            else best_score(_scores(joined.outcomes, config.score_field))
        )
        return self._winner(config, winner, message, joined, context)

    def _winner(
        self, config: FanoutConfig, winner: int | None, message: Message, joined: Joined, context: ExecutionContext
    ) -> NodeResult:
        chosen = None if winner is None else joined.outcomes[winner]
        if chosen is None:
            votes = config.aggregation_strategy == "majority_vote"
            return self._failed(
                config, joined, f"no answer has {config.votes_needed} votes" if votes else "no target succeeded"
            )
        context.variables = dict(chosen.variables)
        return success(context.child_of(message, chosen.message.payload), **_told(config, joined))

    def _all(
        self, config: FanoutConfig, message: Message, joined: Joined, context: ExecutionContext
    ) -> NodeResult:
        good = [outcome for outcome in joined.outcomes if outcome is not None and outcome.success]
        if not good:
            return self._failed(config, joined, "no target succeeded")
        received = message.payload.structured or {}
        results = [
            _listed(target, outcome, received)
            for target, outcome in zip(config.target_nodes, joined.outcomes, strict=True)
        ]
        contents = [text for outcome in good if (text := outcome.message.payload.content) is not None]
        before = dict(context.variables)
        for outcome in good:
            if outcome.variables or before:
                context.variables = merged(context.variables, before, outcome.variables)
        payload = passed_payload(
            message,
            content="\n\n".join(contents) if contents else None,
            structured={**received, "results": results},
        )
        return success(context.child_owning(message, payload))

    def _failed(self, config: FanoutConfig, joined: Joined, why: str) -> NodeResult:
        failures = [
            (target, outcome.error)
            for target, outcome in zip(config.target_nodes, joined.outcomes, strict=True)
            if outcome is not None and outcome.error is not None
        ]
        listed = [{"node": target, "code": e.code.value, "message": e.message} for target, e in failures]
        details = {**_told(config, joined), "failures": listed}
        if failures:
            _, first = failures[0]
            text = f"{why}; {first.node_id}: {first.message}"
            # `failures` comes last: a nested fanout's own list must not hide this one's.
            error = first.model_copy(update={"message": text, "details": {**first.details, **details}})
        else:
            error = ErrorInfo(code=ErrorCode.GATE_FAILED, message=why, details=details, node_id=self.id)
        return NodeResult(success=False, error=error)


def _told(config: FanoutConfig, joined: Joined) -> dict[str, Any]:
    """What a result says about a vote."""
    if config.aggregation_strategy != "majority_vote":
        return {}
    votes = count_votes(_contents(joined.outcomes))
    return {"votes": {text: len(voters) for text, voters in votes.items()}, "needed": config.votes_needed}


def _contents(outcomes: Outcomes) -> list[str | None]:
    return [o.message.payload.content if o is not None and o.success else None for o in outcomes]


def _listed(target: str, outcome: StepOutcome | None, received: Mapping[str, Any]) -> dict[str, Any]:
    """One target's entry in `structured.results`; what it merely passed on of an earlier such list is left out."""
    if outcome is None or outcome.error is not None:
        error = None if outcome is None or outcome.error is None else outcome.error.model_dump(mode="json")
        return {"node": target, "success": False, "content": None, "structured": None, "error": error}
    payload = outcome.message.payload
    structured = payload.structured
    if structured is not None and "results" in received and structured.get("results") == received["results"]:
        structured = {key: value for key, value in structured.items() if key != "results"}
    return {"node": target, "success": True, "content": payload.content, "structured": structured, "error": None}


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


def best_score(scores: Sequence[tuple[int, float | None]]) -> int | None:
    """The index with the highest score; a missing one is lowest, ties go to the first. None without any."""
    return max(scores, key=lambda scored: (scored[1] is not None, scored[1] or 0), default=(None, None))[0]


def _scores(outcomes: Outcomes, field: str) -> list[tuple[int, float | None]]:
    """The score of each target that succeeded: a number in its metadata, else in `structured`."""
    scores: list[tuple[int, float | None]] = []
    for index, outcome in enumerate(outcomes):
        if outcome is not None and outcome.success:
            metadata = expressions.names_of(outcome.message, {})["metadata"]
            structured = outcome.message.payload.structured or {}
            given = (metadata.get(field), structured.get(field))
            scores.append((index, next((score for score in given if type(score) in (int, float)), None)))
    return scores


def merged(into: Mapping[str, Any], before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """`into` with what one target wrote: the names that it set, changed or deleted."""
    result = dict(into)
    for name in before.keys() - after.keys():
        result.pop(name, None)
    written = {name: value for name, value in after.items() if name not in before or _differ(before[name], value)}
    return {**result, **written}


def _differ(one: Any, other: Any) -> bool:
    """Compared as JSON: 1, 1.0 and true are different values there."""
    return json.dumps(one, sort_keys=True) != json.dumps(other, sort_keys=True)
