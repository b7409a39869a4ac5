"""What a node may know and use while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from tinyllm.message import ErrorInfo, Message, MessagePayload, new_id, utc_now
from tinyllm.models.base import ModelClient


@dataclass(frozen=True, slots=True, kw_only=True)
class StepOutcome:
    """How a step ended: with `message` and `next_nodes`, or with `error`."""

    message: Message
    next_nodes: tuple[str, ...] = ()
    error: ErrorInfo | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        return self.error is None


class Steps(Protocol):
    """How a wrapper runs the nodes inside it."""

    async def run_targets(
        self,
        targets: tuple[str, ...],
        message: Message,
        *,
        timeout_ms: int,
        at_once: int,
        stop_at_failure: bool,
    ) -> list[StepOutcome | None]:
        """Run each target on a child of `message` and give their outcomes in order.

        At most `at_once` run at a time, each at most `timeout_ms` from its own start. With
        `stop_at_failure` the first failure stops the others: None stands for what was cut off or never began.
        """
        ...


@dataclass(slots=True, kw_only=True)
class ExecutionContext:
    """One attempt's view of its run. `ExecutionContext()` is enough to execute a single node in a test."""

    run_id: str = "run"
    node_id: str = "node"
    path: str = "1"
    variables: dict[str, Any] = field(default_factory=dict)
    model: ModelClient | None = None
    steps: Steps | None = None
    ids: Callable[[], str] = new_id
    clock: Callable[[], datetime] = utc_now
    count_tokens: Callable[[int], None] = lambda tokens: None
    condition_failed: Callable[[str, str], None] = lambda source, reason: None

    @property
    def idempotency_key(self) -> str:
        """Names this step: the same in every attempt, and different for every other step of every run."""
        return f"{self.run_id}:{self.path}:{self.node_id}"

    def child_of(self, message: Message, payload: MessagePayload | None = None) -> Message:
        """A message of this node that follows from `message`, with this run's ids and clock."""
        return message.create_child(
            self.node_id, payload=payload, message_id=self.ids(), created_at=self.clock()
        )
