"""What a world leaves behind: everything that happened, as values that checks can judge afterwards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from tinyllm.config import ExecutorConfig
from tinyllm.graph import Graph
from tinyllm.testing.holds import AppliedHold
from tinyllm.testing.ollama_host import CallRecord
from tinyllm.testing.script import Script
from tinyllm.trace import RunResult, TraceEvent

if TYPE_CHECKING:
    from tinyllm.testing.graph_world import RunPlan


@dataclass(slots=True, kw_only=True)
class RunRecord:
    """One run: what was asked, when it began and ended, and what was left of it when it ended.

    `result` is None if the run has not ended or raised; `cancelled_ns` is when a cancel reached it.
    """

    index: int
    run_id: str
    plan: RunPlan
    started_ns: int | None = None
    ended_ns: int | None = None
    cancelled_ns: int | None = None
    result: RunResult | None = None
    raised: str | None = None
    orphans: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Rest:
    """How the world came to rest: `reason` says why it did not, `left` what is still waiting on its loop."""

    at_rest: bool
    reason: str | None = None
    left: tuple[str, ...] = ()
    unhandled: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class History:
    """One life of a world. The last run is the one after the storm."""

    graph: Graph
    config: ExecutorConfig
    script: Script
    runs: tuple[RunRecord, ...]
    calls: tuple[CallRecord, ...]
    holds: tuple[AppliedHold, ...]
    rest: Rest
    simulated_ns: int

    @property
    def paused(self) -> bool:
        """Whether a hold kept some task waiting while simulated time passed."""
        return any(hold.kind == "time" for hold in self.holds)

    @cached_property
    def lines(self) -> tuple[str, ...]:
        """Everything that happened, one JSON text each, in a fixed order."""
        return tuple(json.dumps(line, sort_keys=True, ensure_ascii=False) for line in self._lines())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all lines: equal histories have equal digests, in every process."""
        return hashlib.sha256("\n".join(self.lines).encode("utf-8", "surrogatepass")).hexdigest()

    def calls_of(self, run: int) -> list[CallRecord]:
        """The calls of one run, in the order in which they were made."""
        return [call for call in self.calls if call.ask.run == run]

    def _lines(self) -> Iterator[dict[str, Any]]:
        for record in self.runs:
            yield {
                "run": record.run_id,
                "started_ns": record.started_ns,
                "ended_ns": record.ended_ns,
                "cancelled_ns": record.cancelled_ns,
                "raised": record.raised,
                "orphans": record.orphans,
                "result": None if record.result is None else result_to_json(record.result),
            }
            for event in record.result.trace if record.result else ():
                yield {"run": record.run_id, **event_to_json(event)}
        for call in self.calls:
            yield {"call": asdict(call)}
        for hold in self.holds:
            yield {"hold": asdict(hold)}
        yield {"rest": asdict(self.rest), "simulated_ns": self.simulated_ns}


def event_to_json(event: TraceEvent) -> dict[str, Any]:
    """A trace event as plain JSON."""
    # Not `asdict`, which copies deeply and was a fifth of the time of a life.
    return {
        "sequence": event.sequence,
        "at_ms": event.at_ms,
        "wall": event.wall.isoformat(),
        "kind": event.kind,
        "node_id": event.node_id,
        "path": event.path,
        "attempt": event.attempt,
        "code": event.code,
        "cause": event.cause,
        "details": dict(event.details),
    }


def result_to_json(result: RunResult) -> dict[str, Any]:
    """A run's result as plain JSON, without its trace."""
    return {
        "status": result.status,
        "error": None if result.error is None else result.error.model_dump(mode="json"),
        "message": result.message.model_dump(mode="json"),
        "nodes_executed": result.nodes_executed,
        "tokens_used": result.tokens_used,
        "total_latency_ms": result.total_latency_ms,
    }


def first_difference(one: History, other: History) -> str | None:
    """The first thing that happened in one life and not in the other, or None if they are the same."""
    if one.lines == other.lines:
        return None
    for mine, theirs in zip(one.lines, other.lines, strict=False):
        if mine != theirs:
            return f"first: {mine}\nthen:  {theirs}"
    return f"first {len(one.lines)} events, then {len(other.lines)}"
