"""Configs of the nodes that run other nodes inside themselves: fanout, loop, timeout."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import Field

from tinyllm.config.base import Milliseconds, Name, NodeConfig, NodeId
from tinyllm.config.problems import KNOWN_NAMES, LOOP_NAMES, Finding, a_warning, an_error, condition_findings
from tinyllm.message import Text


class FanoutConfig(NodeConfig):
    """A fanout runs its targets on copies of the message and puts out one answer.

    `timeout_ms` bounds each target's step, retries included. `quorum` is the number of equal answers
    needed; None means more than half of all targets.
    """

    target_nodes: Annotated[tuple[NodeId, ...], Field(strict=False, min_length=1, max_length=1_000)]
    aggregation_strategy: Literal["majority_vote", "all", "first_success", "best_score"] = "all"
    quorum: Annotated[int, Field(ge=1)] | None = None
    parallel: bool = True
    max_parallel_branches: Annotated[int, Field(ge=1)] | None = None
    require_all_success: bool = False
    fail_fast: bool = False
    score_field: Name = "quality_score"

    def findings(self) -> Iterable[Finding]:
        votes = self.aggregation_strategy == "majority_vote"
        if self.quorum is not None and not votes:
            message = f"'quorum' has no effect on {self.aggregation_strategy!r}"
            yield (("quorum",), a_warning("ignored_key", message))
        elif self.quorum is not None and self.quorum > len(self.target_nodes):
            message = f"a quorum of {self.quorum} cannot be reached by {len(self.target_nodes)} targets"
            yield (("quorum",), a_warning("quorum_out_of_reach", message))
        if self.require_all_success and self.aggregation_strategy == "first_success":
            yield (("require_all_success",), a_warning("ignored_key", "no effect on 'first_success'"))

    def wrapped(self) -> tuple[str, ...]:
        return self.target_nodes

    def references(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        for number, target in enumerate(self.target_nodes):
            yield ("target_nodes", number), target

    @property
    def votes_needed(self) -> int:
        """The quorum, or more than half of all targets."""
        return self.quorum if self.quorum is not None else len(self.target_nodes) // 2 + 1

    @property
    def at_once(self) -> int:
        """How many targets may run at the same time."""
        if not self.parallel:
            return 1
        return len(self.target_nodes) if self.max_parallel_branches is None else self.max_parallel_branches

    @property
    def stops_at_failure(self) -> bool:
        """Whether the first failed target ends it; `first_success` goes on to the next."""
        return self.fail_fast and self.aggregation_strategy != "first_success"


class LoopConfig(NodeConfig):
    """A loop runs its body again and again, on the last good output.

    `timeout_ms` bounds an attempt of the whole loop. `fixed_count` None means `max_iterations` times.
    """

    body_node: NodeId
    condition_type: Literal["fixed_count", "until_success", "until_condition", "while_condition"] = "fixed_count"
    max_iterations: Annotated[int, Field(ge=1, le=1_000)] = 10
    timeout_ms: Milliseconds = 60_000
    fixed_count: Annotated[int, Field(ge=1)] | None = None
    condition_expression: Text | None = None
    continue_on_error: bool = False
    collect_results: bool = True
    pass_iteration_number: bool = True

    def findings(self) -> Iterable[Finding]:
        if self.fixed_count is not None and self.fixed_count > self.max_iterations:
            message = f"{self.fixed_count} iterations are more than max_iterations, {self.max_iterations}"
            yield (("fixed_count",), an_error("too_many_iterations", message, hint="Raise max_iterations."))
        if self.fixed_count is not None and self.condition_type != "fixed_count":
            message = f"'fixed_count' has no effect on {self.condition_type!r}"
            yield (("fixed_count",), a_warning("ignored_key", message))
        yield from self._condition_findings()
        for key in ("collect_results", "pass_iteration_number"):
            if not getattr(self, key):
                yield ((key,), a_warning("ignored_key", f"{key!r} has no effect here: it is always on"))

    def _condition_findings(self) -> Iterable[Finding]:
        path = ("condition_expression",)
        asks = self.condition_type in ("until_condition", "while_condition")
        if self.condition_expression is None:
            if asks:
                yield ((), an_error("missing_key", f"{self.condition_type!r} needs a condition_expression"))
        elif asks:
            yield from condition_findings(self.condition_expression, path, (*KNOWN_NAMES, *LOOP_NAMES))
        else:
            message = f"'condition_expression' has no effect on {self.condition_type!r}"
            yield (path, a_warning("ignored_key", message))

    def wrapped(self) -> tuple[str, ...]:
        return (self.body_node,)

    def references(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        yield ("body_node",), self.body_node

    @property
    def count(self) -> int:
        """How many iterations there are at most."""
        return self.fixed_count if self.condition_type == "fixed_count" and self.fixed_count else self.max_iterations


class TimeoutConfig(NodeConfig):
    """A timeout runs its inner node within `timeout_ms`, and says what follows when the time is up."""

    inner_node: NodeId
    on_timeout: Literal["error", "fallback", "skip"] = "error"
    fallback_response: Text | None = None
    propagate_metadata: bool = True

    def findings(self) -> Iterable[Finding]:
        if self.on_timeout == "fallback" and self.fallback_response is None:
            yield ((), an_error("missing_key", "'on_timeout: fallback' needs a fallback_response"))
        elif self.on_timeout != "fallback" and self.fallback_response is not None:
            message = f"'fallback_response' has no effect on_timeout: {self.on_timeout}"
            yield (("fallback_response",), a_warning("ignored_key", message))

    def wrapped(self) -> tuple[str, ...]:
        return (self.inner_node,)

    def references(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        yield ("inner_node",), self.inner_node
