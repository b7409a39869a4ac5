"""What happened in a run, event by event, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, Literal

from tinyllm.errors import ErrorCode
from tinyllm.message import ErrorInfo, Message

RunStatus = Literal["succeeded", "degraded", "failed", "timed_out", "cancelled"]


class EventKind(StrEnum):
    """The kinds of event; every `started` has exactly one `ended`."""

    RUN_STARTED = "run started"
    RUN_ENDED = "run ended"
    STEP_STARTED = "step started"
    STEP_ENDED = "step ended"
    ATTEMPT_STARTED = "attempt started"
    ATTEMPT_ENDED = "attempt ended"
    RETRY_WAITING = "retry waiting"
    WAY_CHOSEN = "way chosen"
    CONDITION_ERROR = "condition error"
    TASK_ABANDONED = "task abandoned"


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceEvent:
    """One event. `at_ms` is loop time since the run began; `wall` may jump, `sequence` and `at_ms` never go back.

    `cause` is the sequence number of the failed attempt that led to this event, if one did.
    """

    sequence: int
    at_ms: float
    wall: datetime
    kind: EventKind
    node_id: str | None = None
    path: str | None = None
    attempt: int | None = None
    code: ErrorCode | None = None
    cause: int | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


class Trace:
    """Events in the order in which they happened."""

    def __init__(self, loop_time: Callable[[], float], clock: Callable[[], datetime]) -> None:
        self._loop_time = loop_time
        self._clock = clock
        self._began = loop_time()
        self.events: list[TraceEvent] = []

    def elapsed_ms(self) -> float:
        """Loop time since the run began; rounded to the nanosecond, so that equal moments are equal."""
        return round((self._loop_time() - self._began) * 1_000, 6)

    def add(self, kind: EventKind, **what: Any) -> int:
        """Append an event and return its sequence number."""
        sequence = len(self.events)
        event = TraceEvent(sequence=sequence, at_ms=self.elapsed_ms(), wall=self._clock(), kind=kind, **what)
        self.events.append(event)
        return sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came of a run.

    `message` is the last one that the token carried; `content` and `structured` are its. `error` is None
    for `succeeded`, and says why for every other status that a failure led to.
    """

    run_id: str
    trace_id: str
    status: RunStatus
    error: ErrorInfo | None
    message: Message
    nodes_executed: int
    tokens_used: int
    total_latency_ms: float
    trace: tuple[TraceEvent, ...] = field(repr=False)

    @property
    def content(self) -> str | None:
        return self.message.payload.content

    @property
    def structured(self) -> dict[str, Any] | None:
        return self.message.payload.structured
