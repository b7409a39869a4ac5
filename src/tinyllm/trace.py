"""What happened in a run, event by event, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Literal, overload

from tinyllm.errors import ErrorCode
from tinyllm.message import ErrorInfo, Message, utc_now

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
    BREAKER_CHANGED = "breaker changed"
    MESSAGES_PRUNED = "messages pruned"
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


_NO_DETAILS: Mapping[str, Any] = {}


class Trace(Sequence[TraceEvent]):
    """Events in the order in which they happened; empty if tracing is off.

    What is put down while the run goes on is one record for each moment, which may stand for two events; the
    events are made when somebody looks. All records lie in one flat list: a thousand runs at once would otherwise
    keep the garbage collector busy with their tuples. `on_event` hears each event at once.
    """

    __slots__ = (
        *("_began", "_clock", "_count", "_counted", "_events", "_flat", "_loop_time", "_read"),
        *("on", "on_event"),
    )

    def __init__(self, loop_time: Callable[[], float], clock: Callable[[], datetime], *, on: bool = True) -> None:
        self._loop_time = loop_time
        # The stock clock is asked for a plain number, which becomes a datetime when somebody looks.
        self._clock: Callable[[], Any] = time.time if clock is utc_now else clock
        self._began = loop_time()
        self._flat: list[Any] = []
        self._count = self._counted = 0
        self._events: list[TraceEvent] | None = None
        self._read = 0
        self.on = on
        self.on_event: Callable[[TraceEvent], None] | None = None

    def began(self) -> None:
        """Count the run's time from now."""
        self._began = self._loop_time()

    def elapsed_ms(self) -> float:
        """Loop time since the run began; rounded to the nanosecond, so that equal moments are equal."""
        return self._since_ms(self._loop_time())

    def _since_ms(self, moment: float) -> float:
        return round((moment - self._began) * 1_000, 6)

    def add(
        self,
        kind: EventKind,
        node_id: str | None = None,
        path: str | None = None,
        attempt: int | None = None,
        code: ErrorCode | None = None,
        cause: int | None = None,
        details: Mapping[str, Any] = _NO_DETAILS,
    ) -> None:
        """Append an event; with tracing off, does nothing."""
        if not self.on:
            return
        moment = (self._loop_time(), self._clock(), _ONE)
        self._flat += (*moment, kind, node_id, path, attempt, code, cause, details or None)
        if self.on_event is not None:
            self._tell()

    def step_began(self, node_id: str, path: str, now: float) -> None:
        """The events of a step that starts with its first attempt at loop time `now`."""
        if self.on:
            self._flat += (now, self._clock(), _STEP_BEGAN, node_id, path)
            if self.on_event is not None:
                self._tell()

    def step_succeeded(self, node_id: str, path: str, attempt: int, tokens: int, now: float) -> None:
        """The events of a step that ends at loop time `now` with a successful attempt, which used so many tokens."""
        if self.on:
            self._flat += (now, self._clock(), _STEP_SUCCEEDED, node_id, path, attempt, tokens)
            if self.on_event is not None:
                self._tell()

    def way_chosen(self, node_id: str, visit: int, to: str, why: str) -> None:
        """The event of a way that the token takes."""
        if self.on:
            self._flat += (self._loop_time(), self._clock(), _WAY_CHOSEN, node_id, visit, to, why)
            if self.on_event is not None:
                self._tell()

    def _tell(self) -> None:
        assert self.on_event is not None
        heard = len(self._events or ())
        for event in self._made()[heard:]:
            self.on_event(event)

    @property
    def newest(self) -> int:
        """The sequence number of the last event; -1 without any."""
        return len(self) - 1

    def __len__(self) -> int:
        while self._counted < len(self._flat):
            length, events, _ = _READERS[self._flat[self._counted + 2]]
            self._counted += length
            self._count += events
        return self._count

    @overload
    def __getitem__(self, index: int) -> TraceEvent: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[TraceEvent]: ...
    def __getitem__(self, index: int | slice) -> TraceEvent | Sequence[TraceEvent]:
        return self._made()[index]

    def __iter__(self) -> Iterator[TraceEvent]:
        return iter(self._made())

    def __eq__(self, other: object) -> bool:
        return self._made() == other._made() if isinstance(other, Trace) else NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Trace of {len(self)} events>"

    def _made(self) -> list[TraceEvent]:
        flat, events = self._flat, self._events
        if events is None:
            events = self._events = []
        while self._read < len(flat):
            at, wall, how = flat[self._read : self._read + 3]
            length, _, read = _READERS[how]
            fields = flat[self._read + 3 : self._read + length]
            self._read += length
            wall = datetime.fromtimestamp(wall, UTC) if isinstance(wall, float) else wall
            for event in read(*fields):
                events.append(TraceEvent(sequence=len(events), at_ms=self._since_ms(at), wall=wall, **event))
        return events


# How to read what was put down: each gives the fields of one or two events.


def _one(
    kind: EventKind,
    node_id: str | None,
    path: str | None,
    attempt: int | None,
    code: ErrorCode | None,
    cause: int | None,
    details: Mapping[str, Any] | None,
) -> Iterator[dict[str, Any]]:
    where = {"node_id": node_id, "path": path, "attempt": attempt}
    yield {"kind": kind, **where, "code": code, "cause": cause, "details": details or {}}


def _step_began(node_id: str, path: str) -> Iterator[dict[str, Any]]:
    yield {"kind": EventKind.STEP_STARTED, "node_id": node_id, "path": path}
    yield {"kind": EventKind.ATTEMPT_STARTED, "node_id": node_id, "path": path, "attempt": 1}


def _step_succeeded(node_id: str, path: str, attempt: int, tokens: int) -> Iterator[dict[str, Any]]:
    details = {"tokens": tokens} if tokens else {}
    where = {"node_id": node_id, "path": path}
    yield {"kind": EventKind.ATTEMPT_ENDED, **where, "attempt": attempt, "details": details}
    yield {"kind": EventKind.STEP_ENDED, **where}


def _way_chosen(node_id: str, visit: int, to: str, why: str) -> Iterator[dict[str, Any]]:
    details = {"to": to, "why": why}
    yield {"kind": EventKind.WAY_CHOSEN, "node_id": node_id, "path": str(visit), "details": details}


_ONE, _STEP_BEGAN, _STEP_SUCCEEDED, _WAY_CHOSEN = range(4)
#: The length of a record, how many events it stands for, and how to read what follows loop time, wall time and number.
_READERS: tuple[tuple[int, int, Callable[..., Iterator[dict[str, Any]]]], ...] = (
    (10, 1, _one),
    (5, 2, _step_began),
    (7, 2, _step_succeeded),
    (7, 1, _way_chosen),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """What came of a run.

    `message` is the last one that the token carried; `content` and `structured` are its. `error` is None
    for `succeeded`, and says why for every other status that a failure led to. `trace` is empty if tracing is off.
    """

    run_id: str
    trace_id: str
    status: RunStatus
    error: ErrorInfo | None
    message: Message
    nodes_executed: int
    tokens_used: int
    total_latency_ms: float
    trace: Sequence[TraceEvent] = field(repr=False)

    @property
    def content(self) -> str | None:
        return self.message.payload.content

    @property
    def structured(self) -> dict[str, Any] | None:
        return self.message.payload.structured
