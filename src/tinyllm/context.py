"""What a node may know and use while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, Protocol, final

from tinyllm.message import ErrorInfo, Message, MessageMetadata, MessagePayload, child_owning, new_id, utc_now
from tinyllm.models.base import ModelClient
from tinyllm.tools.registry import ToolRegistry


@final
@dataclass(slots=True)
class StepOutcome:
    """How a step ended: with `message` and `next_nodes`, or with `error`.

    `variables` are all variables as a successful step left them.
    """

    message: Message
    next_nodes: tuple[str, ...] = ()
    error: ErrorInfo | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        return self.error is None


@dataclass(frozen=True, slots=True)
class Joined:
    """What came of targets that ran at once, in their order; None for one that was cut off or never began.

    `decided_by` is the index of the target that stopped the others, if one did.
    """

    outcomes: Sequence[StepOutcome | None]
    decided_by: int | None = None


class Limit(Protocol):
    """A time in which inner steps run."""

    def over(self) -> bool:
        """Whether the time is up."""
        ...

    async def run(
        self, node_id: str, message: Message, payload: MessagePayload, variables: Mapping[str, Any], *, suffix: str = ""
    ) -> StepOutcome | None:
        """One step of an inner node on a child of `message` that carries `payload`; None if the time was up first.

        `suffix` is what the path of the inner step adds to the wrapper's, as `.3` for a third iteration.
        """
        ...


class Steps(Protocol):
    """How a wrapper runs the nodes inside it."""

    async def run_targets(
        self,
        targets: tuple[str, ...],
        message: Message,
        variables: Mapping[str, Any],
        *,
        timeout_ms: int,
        at_once: int,
        stop_at: Literal["failure", "success"] | None,
    ) -> Joined:
        """Run each target on a child of `message` that carries a copy of its payload.

        At most `at_once` run at a time, each at most `timeout_ms` from its own start. The first failure, or the
        first success, stops the others if `stop_at` says so.
        """
        ...

    def limit(self, timeout_ms: int) -> AbstractContextManager[Limit]:
        """A time that begins now, for `with`."""
        ...


@dataclass(slots=True, kw_only=True)
class ExecutionContext:
    """One attempt's view of its run. `ExecutionContext()` is enough to execute a single node in a test.

    `variables` are this attempt's own copy: what it writes is kept if the step succeeds. `history` holds the
    messages that the run still holds: its input, and what each visit before this one put out. `is_over` says whether
    the attempt's time is up, which a node that works without waiting may want to ask.
    """

    run_id: str = "run"
    node_id: str = "node"
    path: str = "1"
    variables: dict[str, Any] = field(default_factory=dict)
    history: Sequence[Message] = ()
    model: ModelClient | None = None
    tools: ToolRegistry | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    steps: Steps | None = None
    ids: Callable[[], str] = new_id
    clock: Callable[[], datetime] = utc_now
    is_over: Callable[[], bool] = lambda: False
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

    def child_owning(
        self, message: Message, payload: MessagePayload, metadata: MessageMetadata | None = None
    ) -> Message:
        """The same for a payload that nobody else holds: it is taken as it is."""
        return child_owning(message, payload, self.node_id, None, self.ids(), self.clock(), metadata)
