"""Invariants over a finished history: record first, judge afterwards.

Each check is a function from a history to what it found; nothing found is `ok`. `judge` runs them all. A
check that itself fails gives `unknown`, which is never taken for `ok`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from tinyllm.config import FanoutConfig
from tinyllm.errors import ErrorCode
from tinyllm.testing.agreement import disagreements
from tinyllm.testing.history import History, RunRecord, first_difference
from tinyllm.testing.reference import TooManyOutcomesError
from tinyllm.testing.script import NS_PER_MS, models_of
from tinyllm.trace import EventKind, TraceEvent

VerdictWord = Literal["ok", "unknown", "bad"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Breach:
    """One thing that a check found. `run` and `event` point at the step of the story that broke the rule."""

    reason: str
    run: int | None = None
    event: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What one check says of one history; `breach` is the first thing it found."""

    check: str
    verdict: VerdictWord
    breach: Breach | None = None


Check = Callable[[History], Iterable[Breach]]


def judge(history: History, checks: Mapping[str, Check]) -> tuple[Verdict, ...]:
    """The verdict of each check, in order."""
    return tuple(_judged(name, check, history) for name, check in checks.items())


def worst(verdicts: Iterable[Verdict]) -> VerdictWord:
    """The worst word among the verdicts; `ok` for none."""
    order: tuple[VerdictWord, ...] = ("ok", "unknown", "bad")
    return max((verdict.verdict for verdict in verdicts), key=order.index, default="ok")


def _judged(name: str, check: Check, history: History) -> Verdict:
    try:
        breach = next(iter(check(history)), None)
    except Exception as error:  # noqa: BLE001 - a check that fails says `unknown`, whatever it failed with
        return Verdict(check=name, verdict="unknown", breach=Breach(reason=f"{type(error).__name__}: {error}"))
    return Verdict(check=name, verdict="ok" if breach is None else "bad", breach=breach)


# --- the engine's checks -------------------------------------------------------------------------------


def settles(history: History) -> Iterator[Breach]:
    """Every run ends with a result, a cancelled one as cancelled, and the healed world comes to rest."""
    for record in history.runs:
        if record.raised is not None:
            yield Breach(reason=f"{record.run_id} raised {record.raised}", run=record.index)
        elif record.result is None:
            yield Breach(reason=f"{record.run_id} never ended: {history.rest.reason}", run=record.index)
        elif (record.cancelled_ns is not None) != (record.result.status == "cancelled"):
            was = "was cancelled" if record.cancelled_ns is not None else "was not cancelled"
            yield Breach(reason=f"{record.run_id} {was} and ended as {record.result.status}", run=record.index)
    if not history.rest.at_rest:
        yield Breach(reason=f"the world did not come to rest: {history.rest.reason}")
    for text in history.rest.unhandled:
        yield Breach(reason=f"nobody handled: {text}")


def agrees(history: History) -> Iterator[Breach]:
    """Each run's result is one that the reference interpreter allows.

    Not judged: runs that were cancelled, since the moment decides; worlds in which a hold let time pass,
    since then no script knows how long a call took; runs in which so much meets at one moment that the
    reference gives up following every order.
    """
    if history.paused:
        return
    for record in history.runs:
        if record.result is not None and record.cancelled_ns is None:
            try:
                reasons = list(disagreements(history, record))
            except TooManyOutcomesError:
                continue
            for reason in reasons:
                yield Breach(reason=f"{record.run_id}: {reason}", run=record.index)


def no_orphans(history: History) -> Iterator[Breach]:
    """No task, timer or connection outlives its run, and a run that has ended asks no model any more."""
    for record in history.runs:
        for orphan in record.orphans:
            yield Breach(reason=f"{record.run_id} ended and left {orphan} behind", run=record.index)
        if record.ended_ns is not None:
            for call in history.calls_of(record.index):
                if call.ask.at_ns > record.ended_ns:
                    yield Breach(reason=f"{record.run_id} ended and then asked {call.host}", run=record.index)
    for left in history.rest.left:
        yield Breach(reason=f"{left} was left waiting when everything else had ended")


def limits_exact(history: History) -> Iterator[Breach]:
    """k are allowed and k are used at most: steps, attempts, calls, branches at once, milliseconds."""
    for record in history.runs:
        if record.result is not None:
            for reason, event in _over_limit(history, record, record.result.trace):
                yield Breach(reason=f"{record.run_id}: {reason}", run=record.index, event=event)


def accounts_balance(history: History) -> Iterator[Breach]:
    """Every start has one end, each failed attempt one consequence, and the result counts what the trace shows."""
    for record in history.runs:
        if record.result is not None:
            for reason, event in _imbalances(record, record.result.trace):
                yield Breach(reason=f"{record.run_id}: {reason}", run=record.index, event=event)


ENGINE_CHECKS: Mapping[str, Check] = {
    "settles": settles,
    "agrees": agrees,
    "no orphans": no_orphans,
    "limits exact": limits_exact,
    "accounts balance": accounts_balance,
}


def deterministic(one: History, other: History) -> Verdict:
    """The same choices give the same history, byte for byte."""
    difference = first_difference(one, other)
    breach = None if difference is None else Breach(reason=f"two lives of one world differ\n{difference}")
    return Verdict(check="deterministic", verdict="ok" if breach is None else "bad", breach=breach)


# --- limits --------------------------------------------------------------------------------------------

Found = tuple[str, int | None]


def _over_limit(history: History, record: RunRecord, trace: tuple[TraceEvent, ...]) -> Iterator[Found]:
    config = history.config
    steps = [event for event in trace if event.kind is EventKind.STEP_STARTED]
    if len(steps) > config.max_steps:
        yield f"{len(steps)} steps began, {config.max_steps} are allowed", steps[config.max_steps].sequence
    assert record.result is not None
    error = record.result.error
    if error is not None and error.code is ErrorCode.BOUNDS_EXCEEDED and len(steps) != config.max_steps:
        yield f"BOUNDS_EXCEEDED after {len(steps)} steps, {config.max_steps} are allowed", trace[-1].sequence
    yield from _attempts_over_limit(history, trace)
    yield from _calls_over_limit(history, record, trace)
    yield from _branches_over_limit(history, trace)
    if not history.paused:
        yield from _times_over_limit(history, trace)
        yield from _targets_over_time(history, trace)


def _key(event: TraceEvent) -> tuple[str, str]:
    return str(event.path), str(event.node_id)


def _attempts_over_limit(history: History, trace: tuple[TraceEvent, ...]) -> Iterator[Found]:
    """Per step, which may itself be repeated when a wrapper around it is retried."""
    made: Counter[tuple[str, str]] = Counter()
    for event in trace:
        if event.kind is EventKind.STEP_STARTED:
            made[_key(event)] = 0
        elif event.kind is EventKind.ATTEMPT_STARTED:
            made[_key(event)] += 1
            allowed = 1 + history.graph.nodes[str(event.node_id)].config.retry_count
            if made[_key(event)] > allowed:
                yield f"attempt {made[_key(event)]} of {event.node_id}, {allowed} are allowed", event.sequence


def _calls_over_limit(history: History, record: RunRecord, trace: tuple[TraceEvent, ...]) -> Iterator[Found]:
    """What reached the hosts, held against what the trace admits to."""
    attempts = Counter(_key(event) for event in trace if event.kind is EventKind.ATTEMPT_STARTED)
    calls = Counter((call.path, call.ask.node) for call in history.calls_of(record.index))
    for (path, node), count in calls.items():
        allowed = attempts[path, node] * len(models_of(history.graph.nodes[node].config))
        if count > allowed:
            yield f"{node} at {path} asked {count} times, its attempts allow {allowed}", None


def _branches_over_limit(history: History, trace: tuple[TraceEvent, ...]) -> Iterator[Found]:
    running: Counter[str] = Counter()
    around: dict[str, FanoutConfig] = {}
    for event in trace:
        config = history.graph.nodes[event.node_id].config if event.node_id else None
        if event.kind is EventKind.STEP_STARTED and isinstance(config, FanoutConfig):
            around[str(event.path)] = config
        parent = str(event.path).rpartition(".")[0]
        if parent not in around or event.kind not in (EventKind.STEP_STARTED, EventKind.STEP_ENDED):
            continue
        running[parent] += 1 if event.kind is EventKind.STEP_STARTED else -1
        fanout = around[parent]
        cap = fanout.max_parallel_branches if fanout.parallel else 1
        if cap is not None and running[parent] > cap:
            yield f"{running[parent]} branches at once, {cap} are allowed", event.sequence


def _times_over_limit(history: History, trace: tuple[TraceEvent, ...]) -> Iterator[Found]:
    grace_ms = history.config.cancel_grace_ms
    began: dict[tuple[str, str], float] = {}
    for event in trace:
        if event.kind is EventKind.ATTEMPT_STARTED:
            began[_key(event)] = event.at_ms
        elif event.kind is EventKind.ATTEMPT_ENDED:
            config = history.graph.nodes[str(event.node_id)].config
            took_ms = event.at_ms - began[_key(event)]
            if not isinstance(config, FanoutConfig) and took_ms > config.timeout_ms + grace_ms:
                yield f"an attempt of {event.node_id} took {took_ms} ms of {config.timeout_ms}", event.sequence
    if trace[-1].at_ms > history.config.timeout_ms + grace_ms:
        yield f"the run took {trace[-1].at_ms} ms of {history.config.timeout_ms}", trace[-1].sequence


def _targets_over_time(history: History, trace: tuple[TraceEvent, ...]) -> Iterator[Found]:
    """A fanout's targets, each with all its attempts, against the time that the fanout allows them."""
    grace_ms = history.config.cancel_grace_ms
    around: dict[str, FanoutConfig] = {}
    began: dict[tuple[str, str], float] = {}
    for event in trace:
        config = history.graph.nodes[event.node_id].config if event.node_id else None
        if event.kind is EventKind.STEP_STARTED:
            began[_key(event)] = event.at_ms
            if isinstance(config, FanoutConfig):
                around[str(event.path)] = config
        fanout = around.get(str(event.path).rpartition(".")[0])
        if event.kind is EventKind.STEP_ENDED and fanout is not None:
            took_ms = event.at_ms - began[_key(event)]
            if took_ms > fanout.timeout_ms + grace_ms:
                yield f"{event.node_id} took {took_ms} ms of the {fanout.timeout_ms} of its fanout", event.sequence


# --- accounts ------------------------------------------------------------------------------------------

_ENDS = {
    EventKind.RUN_ENDED: EventKind.RUN_STARTED,
    EventKind.STEP_ENDED: EventKind.STEP_STARTED,
    EventKind.ATTEMPT_ENDED: EventKind.ATTEMPT_STARTED,
}


def _imbalances(record: RunRecord, trace: tuple[TraceEvent, ...]) -> Iterator[Found]:
    yield from _unpaired(trace)
    causes = Counter(event.cause for event in trace if event.cause is not None)
    for event in trace:
        failed = event.kind is EventKind.ATTEMPT_ENDED and event.code is not None
        if causes[event.sequence] != int(failed):
            yield f"event {event.sequence} is named as cause {causes[event.sequence]} times", event.sequence
    result = record.result
    assert result is not None
    steps = sum(event.kind is EventKind.STEP_STARTED for event in trace)
    if result.nodes_executed != steps:
        yield f"nodes_executed is {result.nodes_executed}, the trace has {steps} steps", None
    tokens = sum(event.details.get("tokens", 0) for event in trace if event.kind is EventKind.ATTEMPT_ENDED)
    if result.tokens_used != tokens:
        yield f"tokens_used is {result.tokens_used}, the trace has {tokens} tokens", None
    elapsed_ms = ((record.ended_ns or 0) - (record.started_ns or 0)) / NS_PER_MS
    if result.total_latency_ms > elapsed_ms:
        yield f"total_latency_ms is {result.total_latency_ms}, the caller waited {elapsed_ms}", None


def _unpaired(trace: tuple[TraceEvent, ...]) -> Iterator[Found]:
    open_now: Counter[tuple[EventKind, str | None, str | None, int | None]] = Counter()
    latest_ms = 0.0
    for number, event in enumerate(trace):
        if event.sequence != number or event.at_ms < latest_ms:
            yield f"event {number} goes back in sequence or time", event.sequence
        latest_ms = event.at_ms
        about = (event.node_id, event.path, event.attempt)
        if event.kind in _ENDS.values():
            open_now[event.kind, *about] += 1
        elif event.kind in _ENDS:
            begun = (_ENDS[event.kind], *about)
            open_now[begun] -= 1
            if open_now[begun] < 0:
                yield f"{event.kind} of {event.node_id} without a start", event.sequence
    for begun, count in open_now.items():
        if count > 0:
            yield f"{begun[0]} of {begun[1]} without an end", None
