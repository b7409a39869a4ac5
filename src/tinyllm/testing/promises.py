"""The checks that hold a graph to what its author claims of it."""

from __future__ import annotations

from collections.abc import Iterator

from tinyllm.config import FanoutConfig, ModelConfig
from tinyllm.config.problems import placed
from tinyllm.config.promises import Promises, promise_findings
from tinyllm.errors import ErrorCode, GraphConfigError
from tinyllm.graph import Graph
from tinyllm.testing.agreement import expected_without_faults, unjudged
from tinyllm.testing.checks import Breach, Check
from tinyllm.testing.history import History, RunRecord
from tinyllm.testing.reference import TooManyOutcomesError
from tinyllm.testing.script import leaves_of, models_of
from tinyllm.testing.units import NS_PER_MS

DEAD_ENDS = (ErrorCode.ROUTING_ERROR, ErrorCode.GATE_FAILED, ErrorCode.BOUNDS_EXCEEDED)


def promises_of(graph: Graph) -> Promises:
    """What the graph's file promises; raises GraphConfigError where that makes no sense, with positions."""
    raw = graph.definition.metadata.get("promises")
    if raw is None:
        return Promises()
    if found := [*promise_findings(raw, graph.document)]:
        problems = tuple(placed(problem, path, graph.document) for path, problem in found)
        raise GraphConfigError(problems, source=_source(graph))
    return Promises.model_validate(raw)


def graph_checks(promises: Promises) -> dict[str, Check]:
    """The checks that judge a user's graph: *no dead end*, and each promise it makes."""
    checks: dict[str, Check] = {"no dead end": no_dead_end}
    if promises != Promises():
        checks["keeps its promises"] = lambda history: keeps_promises(history, promises)
    return checks


def no_dead_end(history: History) -> Iterator[Breach]:
    """No run ends with `ROUTING_ERROR`, `GATE_FAILED` or `BOUNDS_EXCEEDED`, unless all it asked was down."""
    for record, code in _errors(history):
        if code in DEAD_ENDS and not _all_down(history, record):
            error = record.result.error if record.result else None
            assert error is not None
            yield _breach(record, f"{record.run_id} met a dead end at {error.node_id}: {code}: {error.message}")


def keeps_promises(history: History, promises: Promises) -> Iterator[Breach]:
    """Every promise of the file holds in this history."""
    yield from _never(history, promises)
    yield from _answers_within(history, promises)
    yield from _tolerates(history, promises)


def _never(history: History, promises: Promises) -> Iterator[Breach]:
    for record, code in _errors(history):
        if code in promises.never and not _all_down(history, record):
            yield _breach(record, f"never: [{code}] was promised, and {record.run_id} ended with {code}")


def _answers_within(history: History, promises: Promises) -> Iterator[Breach]:
    limit_ms = promises.answers_within_ms
    if limit_ms is None or history.paused:
        return
    for record in history.runs:
        result = record.result
        if result is not None and record.cancelled_ns is None and result.total_latency_ms > limit_ms:
            took = f"{record.run_id} took {result.total_latency_ms:g} ms"
            yield _breach(record, f"answers_within_ms: {limit_ms} was promised, and {took}")


def tolerance_judged(history: History, promises: Promises) -> bool:
    """Whether some run of this history could have broken `tolerates_failures`."""
    return any(_tolerance_at_stake(history, record, promises) for record in history.runs)


def _tolerates(history: History, promises: Promises) -> Iterator[Breach]:
    for record in history.runs:
        result = record.result
        if result is None or result.status == "succeeded":
            continue
        down = _tolerance_at_stake(history, record, promises)
        if not down:
            continue
        why = f"{result.error.code} at {result.error.node_id}" if result.error else "by its exit"
        promised = f"tolerates_failures: {promises.tolerates_failures} was promised"
        ended = f"with {' and '.join(down)} down {record.run_id} ended {result.status} ({why})"
        yield _breach(record, f"{promised}, and {ended}; with every host up it succeeds")


def _tolerance_at_stake(history: History, record: RunRecord, promises: Promises) -> tuple[str, ...]:
    """The hosts whose failure this run must bear; none if their failure is not all that went wrong."""
    if promises.tolerates_failures is None or record.result is None or record.cancelled_ns is not None:
        return ()
    down = _hosts_down_throughout(history, record)
    if not 0 < len(down) <= promises.tolerates_failures:
        return ()
    return down if _succeeds_otherwise(history, record) else ()


def _succeeds_otherwise(history: History, record: RunRecord) -> bool:
    """Whether the same run, with every host up and answering the same, would have succeeded.

    "The same" needs each node to have one answer, and the targets of one fanout to agree: a vote that is
    lost by disagreement is no host's failure. What a node says that only the failure brought into play is
    known only if all nodes say the same; if its host was down it said nothing.
    """
    script = history.script
    constant = all((said.run, said.branch, said.call) == (None, None, None) for said in script.says)
    if not constant or unjudged(history, record) is not None or not _targets_agree(history):
        return False
    try:
        outcomes, asked = expected_without_faults(history, record)
    except TooManyOutcomesError:
        return False
    answered = {call.ask.node for call in history.calls_of(record.index) if call.reply.how == "answered"}
    if answered - asked and script.says:
        return False
    return all(outcome.status == "succeeded" for outcome in outcomes)


def _targets_agree(history: History) -> bool:
    """Whether each fanout's targets give one answer that counts: an empty one is no vote.

    What targets give that wrap others is what all models inside them say. A vote among nodes that are no
    models is not known to be one of agreement.
    """
    graph = history.graph
    answers = {said.node: said.text for said in history.script.says}
    for node in graph.definition.nodes:
        if not isinstance(node.config, FanoutConfig):
            continue
        leaves = {leaf for target in node.config.target_nodes for leaf in leaves_of(graph, target)}
        asking = {leaf for leaf in leaves if models_of(graph.nodes[leaf].config)}
        given = {answers.get(leaf, history.script.plain_answer) for leaf in asking}
        if len(given) > 1 or not all(text.strip() for text in given):
            return False
        votes = node.config.aggregation_strategy == "majority_vote"
        if votes and not all(isinstance(graph.nodes[leaf].config, ModelConfig) for leaf in leaves):
            return False
    return True


def _hosts_down_throughout(history: History, record: RunRecord) -> tuple[str, ...]:
    """The hosts that were down for the whole run, if nothing else went wrong in it; else none."""
    script = history.script
    if any(call.run == record.index for call in script.faults.calls):
        return ()
    healed_ns = script.healed_at_ns
    if record.ended_ns is None or record.started_ns is None or (healed_ns is not None and record.ended_ns > healed_ns):
        return ()
    lasting = script.faults.lasting
    whole = [
        fault.host
        for fault in lasting
        if fault.start_ms * NS_PER_MS <= record.started_ns and fault.ends_ms() * NS_PER_MS >= record.ended_ns
    ]
    return tuple(dict.fromkeys(whole)) if len(whole) == len(lasting) else ()


def _all_down(history: History, record: RunRecord) -> bool:
    """Whether the run asked some model, and each host it asked was down each time."""
    calls = history.calls_of(record.index)
    return bool(calls) and all(call.reply.fault in history.script.faults.lasting for call in calls)


def _errors(history: History) -> Iterator[tuple[RunRecord, ErrorCode]]:
    for record in history.runs:
        if record.result is not None and record.result.error is not None and record.cancelled_ns is None:
            yield record, record.result.error.code


def _breach(record: RunRecord, reason: str) -> Breach:
    assert record.result is not None
    return Breach(reason=reason, run=record.index, event=len(record.result.trace) - 1)


def _source(graph: Graph) -> str:
    return graph.document.source if graph.document else "<graph>"
