"""Invariants over a finished history: record first, judge afterwards.

Each check is a function from a history to what it found; nothing found is `ok`. `judge` runs them all. A
check that itself fails gives `unknown`, which is never taken for `ok`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from tinyllm.config import ExecutorConfig, FanoutConfig, LoopConfig, NodeDefinition
from tinyllm.errors import ErrorCode
from tinyllm.testing.agreement import disagreements, unjudged, visits_of
from tinyllm.testing.history import History, RunRecord, first_difference
from tinyllm.testing.reference import TooManyOutcomesError
from tinyllm.testing.script import calls_of
from tinyllm.testing.units import NS_PER_MS
from tinyllm.trace import EventKind, RunResult, TraceEvent

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

    Not judged: runs of which the reference cannot know enough (`unjudged` says why); runs in which so much meets
    at one moment that it gives up following every order.
    """
    for record in history.runs:
        if unjudged(history, record) is None:
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
    """k are allowed and k are used at most: steps, tokens, messages, attempts, calls, branches at once, iterations,
    milliseconds."""
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


def _over_limit(history: History, record: RunRecord, trace: Sequence[TraceEvent]) -> Iterator[Found]:
    config = history.config
    steps = [event for event in trace if event.kind is EventKind.STEP_STARTED]
    if len(steps) > config.max_steps:
        yield f"{len(steps)} steps began, {config.max_steps} are allowed", steps[config.max_steps].sequence
    assert record.result is not None
    error = record.result.error
    if error is not None and error.code is ErrorCode.BOUNDS_EXCEEDED and not _reached(config, record.result):
        yield f"BOUNDS_EXCEEDED after {len(steps)} steps, and no bound was reached", trace[-1].sequence
    yield from _tokens_over_limit(config, record.result)
    yield from _messages_over_limit(config, record.result)
    yield from _attempts_over_limit(history, trace)
    yield from _calls_over_limit(history, record, trace)
    yield from _branches_over_limit(history, trace)
    yield from _iterations_over_limit(history, trace)
    if not history.paused:
        yield from _times_over_limit(history, trace)
        yield from _inner_steps_over_time(history, trace)


def _reached(config: ExecutorConfig, result: RunResult) -> bool:
    """Whether a run that ended with BOUNDS_EXCEEDED used up what one of its bounds allows."""
    held = 1 + len(visits_of(result))
    return (
        result.nodes_executed == config.max_steps
        or (config.max_tokens is not None and result.tokens_used > config.max_tokens)
        or (config.max_messages is not None and (min(held, 2) if config.prune else held) > config.max_messages)
        or config.max_message_bytes is not None
    )


def _tokens_over_limit(config: ExecutorConfig, result: RunResult) -> Iterator[Found]:
    """The step that crosses the bound is the last: none begins after its end, and the run tells."""
    if config.max_tokens is None:
        return
    used, over = 0, False
    for event in result.trace:
        if event.kind is EventKind.STEP_STARTED and over:
            yield f"{event.node_id} began after {used} tokens, {config.max_tokens} are allowed", event.sequence
            return
        if event.kind is EventKind.ATTEMPT_ENDED:
            used += event.details.get("tokens", 0)
        # A step that is cut off does not end by itself, and looks at no bound.
        over |= event.kind is EventKind.STEP_ENDED and "cut_off" not in event.details and used > config.max_tokens
    told = result.error is not None and result.error.code in (ErrorCode.BOUNDS_EXCEEDED, *_FROM_OUTSIDE)
    if used > config.max_tokens and not told:
        yield f"the run used {used} tokens of {config.max_tokens} and ended {result.status}", result.trace[-1].sequence


#: How the run's own deadline and its user end it, whatever else happens at that moment.
_FROM_OUTSIDE = (ErrorCode.TIMEOUT, ErrorCode.CANCELLED)


def _messages_over_limit(config: ExecutorConfig, result: RunResult) -> Iterator[Found]:
    """Before visit k of a run its input and k - 1 messages are held; pruning leaves two of them."""
    visits = len(visits_of(result))
    held = min(visits, 2) if config.prune else visits
    if config.max_messages is not None and visits > 1 and held > config.max_messages:
        yield f"{held} messages were held before visit {visits}, {config.max_messages} are allowed", None


def _key(event: TraceEvent) -> tuple[str, str]:
    return str(event.path), str(event.node_id)


def _attempts_over_limit(history: History, trace: Sequence[TraceEvent]) -> Iterator[Found]:
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


def _calls_over_limit(history: History, record: RunRecord, trace: Sequence[TraceEvent]) -> Iterator[Found]:
    """What reached the hosts, held against what the trace admits to."""
    attempts = Counter(_key(event) for event in trace if event.kind is EventKind.ATTEMPT_STARTED)
    calls = Counter((call.path, call.ask.node) for call in history.calls_of(record.index))
    for (path, node), count in calls.items():
        allowed = attempts[path, node] * calls_of(history.graph.nodes[node].config)
        if count > allowed:
            yield f"{node} at {path} asked {count} times, its attempts allow {allowed}", None


def _branches_over_limit(history: History, trace: Sequence[TraceEvent]) -> Iterator[Found]:
    running: dict[str, set[str]] = {}
    open_at: Counter[str] = Counter()
    around: dict[str, FanoutConfig] = {}
    for event in trace:
        if event.kind not in (EventKind.STEP_STARTED, EventKind.STEP_ENDED):
            continue
        path, config = str(event.path), history.graph.nodes[str(event.node_id)].config
        if event.kind is EventKind.STEP_STARTED and isinstance(config, FanoutConfig):
            around[path] = config
        # A timeout and the node inside it have one path, and are one branch.
        open_at[path] += 1 if event.kind is EventKind.STEP_STARTED else -1
        parent = path.rpartition(".")[0]
        if parent in around:
            branches = running.setdefault(parent, set())
            if open_at[path] > 0:
                branches.add(path)
            else:
                branches.discard(path)
            allowed = around[parent].at_once
            if len(branches) > allowed:
                yield f"{len(branches)} branches at once, {allowed} are allowed", event.sequence


def _iterations_over_limit(history: History, trace: Sequence[TraceEvent]) -> Iterator[Found]:
    """In each attempt of a loop its iterations are 1, 2, ..., as many as it may have, one after another."""
    around: dict[str, LoopConfig] = {}
    begun: dict[str, set[int]] = {}
    for event in trace:
        config = history.graph.nodes[event.node_id].config if event.node_id else None
        path = str(event.path)
        if event.kind is EventKind.ATTEMPT_STARTED and isinstance(config, LoopConfig):
            around[path], begun[path] = config, set()
        parent, _, number = path.rpartition(".")
        loop = around.get(parent)
        if event.kind is not EventKind.STEP_STARTED or loop is None:
            continue
        iteration, done = int(number), begun[parent]
        if iteration > loop.count:
            yield f"iteration {iteration} of {event.node_id} began, {loop.count} are allowed", event.sequence
        # A timeout and the node inside it have one path, and are one iteration.
        if iteration not in (len(done), len(done) + 1) or (iteration in done and event.node_id == loop.body_node):
            yield f"iteration {iteration} of {event.node_id} began after {len(done)} others", event.sequence
        done.add(iteration)


def _times_over_limit(history: History, trace: Sequence[TraceEvent]) -> Iterator[Found]:
    """Attempts against their own limit; that of a fanout is its targets'."""
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


def _inner_steps_over_time(history: History, trace: Sequence[TraceEvent]) -> Iterator[Found]:
    """What a wrapper runs, each step with all its attempts, against the time that the wrapper allows it."""
    grace_ms = history.config.cancel_grace_ms
    began: dict[tuple[str, str], tuple[float, NodeDefinition | None]] = {}
    open_at: dict[str, list[NodeDefinition]] = {}
    for event in trace:
        if event.kind not in (EventKind.STEP_STARTED, EventKind.STEP_ENDED):
            continue
        path, node = str(event.path), history.graph.nodes[str(event.node_id)]
        inside = open_at.setdefault(path, [])
        if event.kind is EventKind.STEP_STARTED:
            # A timeout around it has its path; a fanout or loop around it the path without its last part.
            outer = inside or open_at.get(path.rpartition(".")[0], [])
            began[_key(event)] = event.at_ms, outer[-1] if outer else None
            inside.append(node)
            continue
        begun = began.get(_key(event))
        if inside:
            inside.pop()
        if begun is None or begun[1] is None:
            continue
        took_ms, around = event.at_ms - begun[0], begun[1]
        if took_ms > around.config.timeout_ms + grace_ms:
            allowed = f"the {around.config.timeout_ms} of {around.id} around it"
            yield f"{node.id} took {took_ms} ms of {allowed}", event.sequence


# --- accounts ------------------------------------------------------------------------------------------

_ENDS = {
    EventKind.RUN_ENDED: EventKind.RUN_STARTED,
    EventKind.STEP_ENDED: EventKind.STEP_STARTED,
    EventKind.ATTEMPT_ENDED: EventKind.ATTEMPT_STARTED,
}


def _imbalances(record: RunRecord, trace: Sequence[TraceEvent]) -> Iterator[Found]:
    yield from _unpaired(trace)
    causes = Counter(event.cause for event in trace if event.cause is not None)
    for event in trace:
        failed = event.kind is EventKind.ATTEMPT_ENDED and event.code is not None
        if causes[event.sequence] != int(failed):
            yield f"event {event.sequence} is named as cause {causes[event.sequence]} times", event.sequence
    yield from _steps_without_account(trace)
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


def _steps_without_account(trace: Sequence[TraceEvent]) -> Iterator[Found]:
    """Every step makes an attempt, but one that a breaker refused; and a failed step names the attempt that failed."""
    made: Counter[tuple[str, str]] = Counter()
    for event in trace:
        if event.kind is EventKind.STEP_STARTED:
            made[_key(event)] = 0
        elif event.kind is EventKind.ATTEMPT_STARTED:
            made[_key(event)] += 1
        elif event.kind is EventKind.STEP_ENDED:
            refused = event.code is ErrorCode.CIRCUIT_OPEN and event.cause is None
            if refused != (made[_key(event)] == 0):
                yield f"{event.node_id} made {made[_key(event)]} attempts and ended with {event.code}", event.sequence
            elif event.code is not None and not refused and event.cause is None:
                yield f"{event.node_id} ended with {event.code} that no attempt of its own met", event.sequence


def _unpaired(trace: Sequence[TraceEvent]) -> Iterator[Found]:
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
