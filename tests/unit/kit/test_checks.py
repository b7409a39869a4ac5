"""Each check of a history: one that passes, and for each thing it judges one that fails, with the reason named."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.nodes import Acting, blocks, says, swallows
from tests.support.runs import a_graph, a_line, node
from tinyllm.config import CircuitBreakerConfig, ExecutorConfig
from tinyllm.errors import ErrorCode
from tinyllm.message import ErrorInfo
from tinyllm.testing.agreement import unjudged, visits_of
from tinyllm.testing.checks import (
    ENGINE_CHECKS,
    Breach,
    Verdict,
    accounts_balance,
    agrees,
    deterministic,
    judge,
    limits_exact,
    no_orphans,
    settles,
    worst,
)
from tinyllm.testing.faults import CutMidBody, FaultPlan, HostDown, Latency, OnCall, Refused, ServerError
from tinyllm.testing.graph_world import GraphWorld, RunPlan
from tinyllm.testing.history import Rest
from tinyllm.testing.holds import AppliedHold
from tinyllm.testing.reference import TooManyOutcomesError
from tinyllm.testing.scenario import Scenario, play
from tinyllm.testing.schedule import Hold
from tinyllm.testing.script import Script, hosts_of
from tinyllm.trace import EventKind

pytestmark = pytest.mark.unit

LINE = a_line()
RETRYING = a_line(node("model", retry_count=1, retry_delay_ms=5))


def fanned(**settings):
    """Two different targets, the first of them twice."""
    wrapper = node("fanout", target_nodes=["one", "two", "one"], aggregation_strategy="majority_vote", **settings)
    nodes = {"work": wrapper, **FANOUT_TARGETS}
    return a_graph(nodes, [("start", "work"), ("work", "end")])


FANOUT_TARGETS = {
    "one": node("model", model="m1", retry_count=1),
    "two": node("model", model="m2", fallback_models=["m1"]),
}
FANOUT, CAPPED, SERIAL = fanned(), fanned(max_parallel_branches=2), fanned(parallel=False)
FAST = {
    "work": node("fanout", target_nodes=["one", "two"], aggregation_strategy="majority_vote", fail_fast=True, quorum=1),
    "one": node("model", model="m1"),
    "two": node("model", model="m2"),
}
FAULTS = (
    OnCall(run=0, node="one", branch=".1", fault=Refused()),
    OnCall(run=0, node="two", branch=".2", fault=ServerError()),
    OnCall(run=1, node="one", branch=".3", fault=CutMidBody()),
    OnCall(run=1, node="two", branch=".2", fault=Latency(delay_ms=60_000)),
)
STORM = Scenario(
    runs=(RunPlan(content="a"), RunPlan(content="b", start_ms=5), RunPlan(content="c", cancel_after_ms=12)),
    faults=FaultPlan(calls=FAULTS, lasting=(HostDown(host="m2", start_ms=10, duration_ms=1_000),)),
    schedule=(Hold(gap=0, level=2), Hold(gap=1, level=4)),
)
#: A hold that keeps a wake-up waiting while simulated time passes.
PAUSE = (Hold(gap=0, level=8),)


def reasons(check, history):
    return [breach.reason for breach in check(history)]


def with_run(history, **changes):
    """The history with another first run."""
    return replace(history, runs=(replace(history.runs[0], **changes), *history.runs[1:]))


def with_result(history, **changes):
    return with_run(history, result=replace(history.runs[0].result, **changes))


def with_events(history, change):
    """The history with `change` applied to the list of the first run's events."""
    events = list(history.runs[0].result.trace)
    change(events)
    return with_result(history, trace=tuple(events))


def with_event(history, number, /, **changes):
    """The history with one event of the first run changed."""

    def change(events):
        events[number] = replace(events[number], **changes)

    return with_events(history, change)


def first(history, kind, node_id=None):
    """The sequence number of the first such event of the first run."""
    return next(e.sequence for e in history.runs[0].result.trace if e.kind is kind and node_id in (None, e.node_id))


def lived(graph, acts, *plans, config=None):
    """The history of a world in which the nodes of `acts` do what they say instead."""
    with GraphWorld(graph, Script(hosts=hosts_of(graph)), config=config) as world:
        for node_id, act in acts.items():
            world.executor.nodes[node_id] = Acting(graph.nodes[node_id], act)
        for plan in plans or (RunPlan(),):
            world.submit(plan)
        return world.finish()


@pytest.fixture(scope="module")
def plain():
    """One run of start -> work -> end without faults, and the one after the storm."""
    return play(Scenario(), LINE)


@pytest.fixture(scope="module")
def retried():
    """One run whose first call is refused and whose second one is answered."""
    return play(Scenario(faults=FaultPlan(calls=(OnCall(run=0, node="work", fault=Refused()),))), RETRYING)


# --- verdicts ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scenario", "graph"),
    [(Scenario(), LINE), (STORM, FANOUT), (STORM, CAPPED), (replace(STORM, schedule=PAUSE), FANOUT)],
    ids=["plain", "storm", "capped", "paused"],
)
def test_a_life_of_the_real_engine_passes_every_check(scenario, graph):
    history = play(scenario, graph)

    assert [Verdict(check=name, verdict="ok") for name in ENGINE_CHECKS] == list(judge(history, ENGINE_CHECKS))


def test_the_engine_is_judged_by_exactly_these_checks():
    assert {
        "settles": settles,
        "agrees": agrees,
        "no orphans": no_orphans,
        "limits exact": limits_exact,
        "accounts balance": accounts_balance,
    } == ENGINE_CHECKS


def test_a_check_that_crashes_is_unknown_and_says_why(plain):
    def crashing(history):
        raise LookupError("no such event")

    verdict = Verdict(check="crashing", verdict="unknown", breach=Breach(reason="LookupError: no such event"))

    assert (verdict,) == judge(plain, {"crashing": crashing})


def test_a_check_that_crashes_before_it_finds_anything_does_not_stop_the_others(plain):
    def crashing(history):
        yield from [][1:]
        raise RuntimeError

    assert ["unknown", "ok"] == [v.verdict for v in judge(plain, {"crashing": crashing, "settles": settles})]


def test_a_check_that_crashes_on_a_mangled_history_is_unknown(plain):
    mangled = with_event(plain, 7, node_id="nobody")

    assert "unknown" == judge(mangled, {"limits exact": limits_exact})[0].verdict


def test_a_verdict_holds_the_first_breach_of_its_check_only(plain):
    breaches = [Breach(reason="first", run=1, event=2), Breach(reason="second")]

    assert (Verdict(check="picky", verdict="bad", breach=breaches[0]),) == judge(plain, {"picky": lambda _: breaches})


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ("ok", []),
        ("ok", ["ok", "ok"]),
        ("unknown", ["ok", "unknown", "ok"]),
        ("bad", ["unknown", "bad", "ok"]),
        ("bad", ["bad", "unknown"]),
    ],
)
def test_the_worst_verdict_wins(expected, words):
    assert expected == worst(Verdict(check="some", verdict=word) for word in words)


# --- settles -------------------------------------------------------------------------------------------


def test_a_run_that_raises_does_not_settle(plain):
    raising = with_run(plain, raised="ValueError: oh", result=None)

    assert ["run-1 raised ValueError: oh"] == reasons(settles, raising)


def test_a_misuse_in_a_world_is_told_as_raised(plain):
    """A plan that no engine could accept is the nearest thing to an engine that raises."""
    history = play(Scenario(runs=(RunPlan(content="\ud800"),)), LINE)

    assert [True] == [reason.startswith("run-1 raised ") for reason in reasons(settles, history)]


def test_a_run_that_never_ends_does_not_settle(plain):
    history = replace(with_run(plain, result=None), rest=Rest(at_rest=True, reason="why not"))

    assert ["run-1 never ended: why not"] == reasons(settles, history)


def test_a_node_that_spins_for_ever_makes_a_world_that_does_not_settle(monkeypatch):
    async def spins(message, context):
        for _ in range(10**9):
            await asyncio.sleep(0)

    monkeypatch.setattr("tinyllm.testing.graph_world.STEPS_MAX", 500)
    found = reasons(settles, lived(LINE, {"work": spins}))

    assert ["run-1 never ended", "run-2 never ended", "the world did not come to rest"] == [
        reason.partition(": LivelockError: ")[0] for reason in found
    ]


@pytest.mark.parametrize("moment", [0, 5])
def test_a_cancelled_run_ends_as_nothing_else(plain, moment):
    expected = ["run-1 was cancelled and ended as succeeded"]

    assert expected == reasons(settles, with_run(plain, cancelled_ns=moment))


def test_nobody_ends_as_cancelled_by_himself(plain):
    history = with_result(plain, status="cancelled")

    assert ["run-1 was not cancelled and ended as cancelled"] == reasons(settles, history)


def test_a_world_that_stays_busy_does_not_settle(plain):
    history = replace(plain, rest=Rest(at_rest=False, reason="still busy"))

    assert ["the world did not come to rest: still busy"] == reasons(settles, history)


def test_each_error_that_nobody_handled_is_told(plain):
    history = replace(plain, rest=Rest(at_rest=True, unhandled=("this", "that")))

    assert ["nobody handled: this", "nobody handled: that"] == reasons(settles, history)


def test_the_breach_points_at_the_run(plain):
    history = replace(plain, runs=(plain.runs[0], replace(plain.runs[1], raised="x", result=None)))

    assert [1] == [breach.run for breach in settles(history)]


# --- agrees --------------------------------------------------------------------------------------------


def other_payload(history, **fields):
    message = history.runs[0].result.message
    return {"message": message.model_copy(update={"payload": message.payload.model_copy(update=fields)})}


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("run-1: status is 'degraded'; the reference allows 'succeeded'", {"status": "degraded"}),
        ("run-1: steps is 4; the reference allows 3", {"nodes_executed": 4}),
        ("run-1: tokens is 5; the reference allows 4", {"tokens_used": 5}),
        ("run-1: elapsed_ns is 10002000; the reference allows 10000000", {"total_latency_ms": 10.002}),
        ("run-1: elapsed_ns is 9998000; the reference allows 10000000", {"total_latency_ms": 9.998}),
    ],
)
def test_a_result_that_the_reference_does_not_allow_is_told_field_by_field(plain, reason, changes):
    assert [reason] == reasons(agrees, with_result(plain, **changes))


def test_an_error_that_the_reference_does_not_allow_is_told_with_code_and_node(plain):
    error = ErrorInfo(code=ErrorCode.TIMEOUT, message="late", recoverable=True, node_id="work")

    assert [
        "run-1: error code is 'TIMEOUT'; the reference allows None",
        "run-1: error node is 'work'; the reference allows None",
    ] == reasons(agrees, with_result(plain, error=error))


def test_what_an_error_says_in_words_is_free():
    history = play(Scenario(faults=FaultPlan(calls=(OnCall(run=0, node="work", fault=ServerError()),))), LINE)
    error = history.runs[0].result.error.model_copy(update={"message": "in other words", "details": {"a": 1}})

    assert [] == reasons(agrees, with_result(history, error=error))


@pytest.mark.parametrize("fields", [{"content": "ko"}, {"metadata": {}}, {"route": "x"}, {"structured": {}}])
def test_a_payload_that_the_reference_does_not_allow_is_told(plain, fields):
    found = reasons(agrees, with_result(plain, **other_payload(plain, **fields)))

    assert [True] == [reason.startswith("run-1: payload is {") for reason in found]


def test_of_a_long_payload_so_much_is_told_as_can_be_read(plain):
    (told,) = reasons(agrees, with_result(plain, **other_payload(plain, content="x" * 500_000)))

    assert len(told) < 3_000
    assert "(500," in told


def test_a_path_that_the_reference_does_not_allow_is_told(plain):
    history = with_event(plain, first(plain, EventKind.STEP_STARTED, "work"), node_id="start")

    assert ["run-1: path is ['start', 'start', 'end']; the reference allows ['start', 'work', 'end']"] == reasons(
        agrees, history
    )


def test_an_attempt_too_many_is_told(plain):
    history = with_events(plain, lambda events: events.append(events[first(plain, EventKind.ATTEMPT_STARTED)]))

    assert ["run-1: attempts is 4; the reference allows 3"] == reasons(agrees, history)


def test_a_nanosecond_of_rounding_is_no_disagreement(plain):
    assert [] == reasons(agrees, with_result(plain, total_latency_ms=10.001))


def test_a_node_that_answers_what_its_model_never_said_disagrees():
    found = reasons(agrees, lived(LINE, {"work": says("no", after_ms=10)}))

    assert [(1, "payload"), (1, "tokens"), (2, "payload"), (2, "tokens")] == [
        (int(reason[4]), reason[7:].partition(" is ")[0]) for reason in found
    ]


def test_the_nearest_of_several_allowed_outcomes_is_told():
    history = play(Scenario(), a_graph(FAST, [("start", "work"), ("work", "end")]))

    assert ["run-1: status is 'degraded'; the reference allows 'succeeded'"] == reasons(
        agrees, with_result(history, status="degraded")
    )


def test_a_run_that_was_cancelled_is_not_held_against_the_reference(plain):
    assert [] == reasons(agrees, with_run(with_result(plain, nodes_executed=99), cancelled_ns=3))


def test_a_run_without_a_result_is_not_held_against_the_reference(plain):
    assert [] == reasons(agrees, with_run(plain, result=None))


@pytest.mark.parametrize(("kind", "told"), [("time", 0), ("steps", 1)])
def test_a_world_in_which_a_hold_let_time_pass_is_not_held_against_the_reference(plain, kind, told):
    hold = AppliedHold(at_ns=0, task="run-1", hold=Hold(gap=0, level=8), kind=kind)
    history = replace(with_result(plain, nodes_executed=99), holds=(hold,))

    assert told == len(reasons(agrees, history))


def test_a_run_of_which_the_reference_gives_up_following_every_order_is_not_judged(plain, monkeypatch):
    def gives_up(history, record):
        if record.index == 0:
            raise TooManyOutcomesError("too many")
        yield "judged"

    monkeypatch.setattr("tinyllm.testing.checks.disagreements", gives_up)

    assert ["run-2: judged"] == reasons(agrees, plain)


# --- no orphans ----------------------------------------------------------------------------------------


def test_what_a_run_left_behind_is_told(plain):
    history = with_run(plain, orphans=("task work", "connection 1 to m1"))

    assert ["run-1 ended and left task work behind", "run-1 ended and left connection 1 to m1 behind"] == reasons(
        no_orphans, history
    )


def test_a_call_after_the_end_of_its_run_is_told(plain):
    late = replace(plain.calls[0], ask=replace(plain.calls[0].ask, at_ns=plain.runs[0].ended_ns + 1))

    assert ["run-1 ended and then asked qwen2.5-3b"] == reasons(no_orphans, replace(plain, calls=(late,)))


def test_a_call_at_the_end_of_its_run_is_none_after_it(plain):
    last = replace(plain.calls[0], ask=replace(plain.calls[0].ask, at_ns=plain.runs[0].ended_ns))

    assert [] == reasons(no_orphans, replace(plain, calls=(last,)))


def test_what_still_waits_when_everything_else_has_ended_is_told(plain):
    history = replace(plain, rest=Rest(at_rest=True, left=("task x",)))

    assert ["task x was left waiting when everything else had ended"] == reasons(no_orphans, history)


def test_a_node_that_is_abandoned_is_an_orphan():
    found = reasons(no_orphans, lived(LINE, {"work": swallows(None)}, RunPlan(cancel_after_ms=5)))

    assert "run-1 ended and left task work 2 behind" == found[0]


# --- limits exact --------------------------------------------------------------------------------------


def limited(history, **limits):
    return replace(history, config=ExecutorConfig(**limits))


def test_a_step_more_than_allowed_is_told_with_its_event(plain):
    found = list(limits_exact(limited(plain, max_steps=2)))

    assert Breach(reason="run-1: 3 steps began, 2 are allowed", run=0, event=11) == found[0]
    assert [0, 1] == [breach.run for breach in found]


def test_as_many_steps_as_allowed_are_fine(plain):
    assert [] == reasons(limits_exact, limited(plain, max_steps=3))


def test_the_bounds_are_exceeded_only_when_all_steps_are_used():
    history = play(Scenario(config=ExecutorConfig(max_steps=2)), LINE)

    assert [] == reasons(limits_exact, history)
    assert [f"run-{n}: BOUNDS_EXCEEDED after 2 steps, and no bound was reached" for n in (1, 2)] == reasons(
        limits_exact, limited(history, max_steps=3)
    )


def test_an_attempt_more_than_allowed_is_told_with_its_event(retried):
    second = next(e.sequence for e in retried.runs[0].result.trace if e.attempt == 2)
    found = list(limits_exact(replace(retried, graph=LINE)))

    assert Breach(reason="run-1: attempt 2 of work, 1 are allowed", run=0, event=second) == found[0]


def test_as_many_attempts_as_allowed_are_fine(retried):
    assert [] == reasons(limits_exact, retried)


def test_attempts_count_anew_when_a_wrapper_repeats_its_targets():
    """The only target fails twice, the fanout is retried, and the target has two attempts again."""
    graph = a_graph(
        {
            "work": node("fanout", target_nodes=["one"], aggregation_strategy="majority_vote", retry_count=1),
            "one": node("model", model="m1", retry_count=1),
        },
        [("start", "work"), ("work", "end")],
    )
    calls = tuple(OnCall(run=0, node="one", branch=".1", call=number, fault=Refused()) for number in range(3))
    history = play(Scenario(faults=FaultPlan(calls=calls)), graph)

    assert (4, "succeeded") == (len(history.calls_of(0)), history.runs[0].result.status)
    assert [] == reasons(limits_exact, history)


def test_a_call_that_no_attempt_accounts_for_is_told(plain):
    history = replace(plain, calls=(*plain.calls, plain.calls[0]))

    assert ["run-1: work at 2 asked 2 times, its attempts allow 1"] == reasons(limits_exact, history)


def test_fallback_models_allow_a_call_each():
    history = play(STORM, FANOUT)

    assert [] == reasons(limits_exact, history)
    assert max(len(history.calls_of(run.index)) for run in history.runs) > 3


def test_a_branch_more_than_allowed_at_once_is_told():
    history = play(Scenario(), FANOUT)
    found = list(limits_exact(replace(history, graph=CAPPED)))

    assert "run-1: 3 branches at once, 2 are allowed" == found[0].reason
    third = [e for e in history.runs[0].result.trace if e.kind is EventKind.STEP_STARTED and e.path == "2.3"]
    assert third[0].sequence == found[0].event


def test_one_after_another_means_one_at_once():
    history = play(Scenario(), FANOUT)

    assert "run-1: 2 branches at once, 1 are allowed" == reasons(limits_exact, replace(history, graph=SERIAL))[0]
    assert [] == reasons(limits_exact, play(Scenario(), SERIAL))
    assert [] == reasons(limits_exact, play(Scenario(), CAPPED))


def test_an_attempt_that_takes_too_long_is_told():
    history = lived(LINE, {"work": blocks(31_001)})
    found = reasons(limits_exact, history)

    assert [f"run-{n}: an attempt of work took 31001.0 ms of 30000" for n in (1, 2)] == found
    assert [] == reasons(limits_exact, lived(LINE, {"work": blocks(31_000)}))


def test_a_run_that_takes_too_long_is_told():
    history = lived(LINE, {"work": blocks(21_001)}, config=ExecutorConfig(timeout_ms=20_000))

    assert [f"run-{n}: the run took 21001.0 ms of 20000" for n in (1, 2)] == reasons(limits_exact, history)


@pytest.mark.parametrize(("kind", "told"), [("time", 0), ("steps", 2)])
def test_times_are_not_judged_in_a_world_in_which_a_hold_let_time_pass(kind, told):
    history = lived(LINE, {"work": blocks(40_000)})
    hold = AppliedHold(at_ns=0, task="run-1", hold=Hold(gap=0, level=8), kind=kind)

    assert told == len(reasons(limits_exact, replace(history, holds=(hold,))))


def test_the_step_that_crosses_the_bound_of_tokens_is_the_last(plain):
    last = [e.sequence for e in plain.runs[0].result.trace if e.kind is EventKind.ATTEMPT_ENDED][-1]
    crossed_at_the_end = with_event(plain, last, details={"tokens": 4})

    assert "run-1: end began after 4 tokens, 3 are allowed" == reasons(limits_exact, limited(plain, max_tokens=3))[0]
    assert ["run-1: the run used 8 tokens of 7 and ended succeeded"] == reasons(
        limits_exact, limited(crossed_at_the_end, max_tokens=7)
    )
    assert [] == reasons(limits_exact, limited(plain, max_tokens=4))


@pytest.mark.parametrize("tokens", [0, 3, 4])
def test_a_run_that_is_ended_by_its_tokens_passes(tokens):
    assert [] == reasons(limits_exact, play(Scenario(config=ExecutorConfig(max_tokens=tokens)), LINE))


def test_a_visit_more_than_messages_allow_is_told(plain):
    told = [f"run-{n}: 3 messages were held before visit 3, 2 are allowed" for n in (1, 2)]

    assert told == reasons(limits_exact, limited(plain, max_messages=2))
    assert [] == reasons(limits_exact, limited(plain, max_messages=3))
    assert [] == reasons(limits_exact, limited(plain, max_messages=2, prune=True))


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("held", [1, 2, 3])
def test_a_run_that_is_ended_by_its_messages_passes(held, prune):
    config = ExecutorConfig(max_messages=held, prune=prune)

    assert [] == reasons(limits_exact, play(Scenario(config=config), LINE))


def looped(count, **settings):
    """A loop over a timeout over a model."""
    return a_graph(
        {
            "work": node("loop", body_node="limit", max_iterations=count, **settings),
            "limit": node("timeout", inner_node="ask", timeout_ms=50, retry_count=1, retry_delay_ms=0),
            "ask": node("model", model="m1"),
        },
        [("start", "work"), ("work", "end")],
    )


def test_an_iteration_more_than_allowed_is_told_with_its_event():
    history = play(Scenario(), looped(3))
    found = list(limits_exact(replace(history, graph=looped(2))))
    third = [e for e in history.runs[0].result.trace if e.kind is EventKind.STEP_STARTED and e.path == "2.3"]

    assert Breach(reason="run-1: iteration 3 of limit began, 2 are allowed", run=0, event=third[0].sequence) == found[0]
    assert [] == reasons(limits_exact, history)


def test_an_iteration_that_is_left_out_is_told():
    history = play(Scenario(), looped(3))

    def change(events):
        events[:] = [
            replace(event, path=f"{event.path[:-1]}3") if (event.path or "").startswith("2.2") else event
            for event in events
        ]

    assert "run-1: iteration 3 of limit began after 1 others" in reasons(limits_exact, with_events(history, change))


def test_what_is_repeated_inside_an_iteration_is_no_iteration():
    slow = tuple(OnCall(run=0, node="ask", branch=".2", call=call, fault=Latency(delay_ms=60)) for call in (0,))
    history = play(Scenario(faults=FaultPlan(calls=slow)), looped(3))

    assert "succeeded" == history.runs[0].result.status
    assert 4 == len(history.calls_of(0))
    assert [] == reasons(limits_exact, history)


def test_what_takes_longer_than_the_timeout_around_it_is_told():
    history = lived(looped(1), {"ask": blocks(1_051)})

    assert "run-1: ask took 1051.0 ms of the 50 of limit around it" in reasons(limits_exact, history)
    assert [] == reasons(limits_exact, lived(looped(1), {"ask": blocks(500)}))


def test_repairs_allow_further_calls():
    schema = {"type": "object", "required": ["a"]}
    graph = a_line(node("model", model="m1", response_schema=schema, repair_attempts=2))
    history = play(Scenario(), graph)

    assert 3 == len(history.calls_of(0))
    assert [] == reasons(limits_exact, history)
    assert "run-1: work at 2 asked 3 times, its attempts allow 1" in reasons(limits_exact, replace(history, graph=LINE))


# --- what is compared ----------------------------------------------------------------------------------

BREAKING = ExecutorConfig(failure_policy="skip_failed", breaker=CircuitBreakerConfig(threshold=1))
TWICE = a_graph(
    {"work": node("model", model="m1"), "again": node("model", model="m1")},
    [("start", "work"), ("work", "again"), ("again", "end")],
)
BROKEN = FaultPlan(calls=(OnCall(run=0, node="work", fault=ServerError()),))


@pytest.mark.parametrize(
    ("scenario", "why"),
    [
        (Scenario(), None),
        (Scenario(config=BREAKING), None),
        (
            Scenario(runs=(RunPlan(), RunPlan(start_ms=5)), config=BREAKING),
            "it shared circuit breakers with other runs",
        ),
        (Scenario(runs=(RunPlan(), RunPlan(start_ms=5))), None),
        (
            Scenario(config=ExecutorConfig(max_message_bytes=10**6)),
            "max_message_bytes counts the ids and times of messages",
        ),
        (Scenario(runs=(RunPlan(cancel_after_ms=5),)), "it was cancelled, and the moment decides"),
    ],
)
def test_what_the_reference_cannot_know_is_not_judged(scenario, why):
    history = play(scenario, LINE)

    assert why == unjudged(history, history.runs[0])
    assert "ok" == judge(history, {"agrees": agrees})[0].verdict


def test_a_world_in_which_a_hold_let_time_pass_is_not_judged(plain):
    hold = AppliedHold(at_ns=0, task="run-1", hold=Hold(gap=0, level=8), kind="time")
    history = replace(with_result(plain, status="failed"), holds=(hold,))

    assert "a hold let time pass, and no script knows how long a call took" == unjudged(history, history.runs[0])
    assert [] == reasons(agrees, history)


def test_a_run_after_another_that_shared_its_breakers_is_not_judged():
    history = play(Scenario(config=BREAKING), LINE)

    assert "it shared circuit breakers with other runs" == unjudged(history, history.runs[1])


TOOLS = a_graph(
    {
        "work": node("fanout", target_nodes=["sum", "cut", "lost"]),
        "sum": node("tool", tool_id="calculator"),
        "cut": node("tool", tool_id="calculator", continue_on_error=True, input_mapping={"expression": "task"}),
        "lost": node("tool", tool_id="json_parse"),
        "again": node("tool", tool_id="calculator", continue_on_error=True),
    },
    [("start", "work"), ("work", "again"), ("again", "end")],
)


@pytest.mark.parametrize("content", ["1 + 1", "one", "[1]", ""])
def test_what_tools_give_is_compared_but_for_words_and_times(content):
    history = play(Scenario(runs=(RunPlan(content=content),)), TOOLS)

    assert "agrees" in ENGINE_CHECKS
    assert [] == reasons(agrees, history)


def test_another_result_of_a_tool_is_told():
    history = play(Scenario(runs=(RunPlan(content="1 + 1"),)), TOOLS)
    message = history.runs[0].result.message
    wrong = message.payload.tool_result.model_copy(update={"success": not message.payload.tool_result.success})
    changed = message.model_copy(update={"payload": message.payload.replace(tool_result=wrong)})

    assert reasons(agrees, with_result(history, message=changed))[0].startswith("run-1: payload is ")


def test_another_code_inside_the_results_of_a_fanout_is_told():
    history = play(Scenario(runs=(RunPlan(content="1 + 1"),)), TOOLS)
    message = history.runs[0].result.message
    text = message.to_json()
    assert 1 == text.count('"TOOL_ERROR"')
    changed = type(message).from_json(text.replace('"TOOL_ERROR"', '"TIMEOUT"'))

    assert reasons(agrees, with_result(history, message=changed))[0].startswith("run-1: payload is ")


def test_what_a_timeout_wraps_is_no_visit():
    graph = a_graph(
        {"work": node("timeout", inner_node="ask"), "ask": node("model", model="m1")},
        [("start", "work"), ("work", "end")],
    )
    history = play(Scenario(), graph)

    assert ["start", "work", "end"] == visits_of(history.runs[0].result)  # type: ignore[arg-type]
    assert [] == reasons(agrees, history)


# --- accounts balance ----------------------------------------------------------------------------------


def test_a_step_that_a_breaker_refuses_makes_no_attempt():
    history = play(Scenario(faults=BROKEN, config=BREAKING), TWICE)
    ended = [e.sequence for e in history.runs[0].result.trace if e.kind is EventKind.STEP_ENDED][2]

    assert "CIRCUIT_OPEN" == history.runs[0].result.trace[ended].code
    assert [] == reasons(accounts_balance, history)
    assert ["run-1: again made 0 attempts and ended with TIMEOUT"] == reasons(
        accounts_balance, with_event(history, ended, code=ErrorCode.TIMEOUT)
    )


def test_a_timeout_that_goes_on_names_the_attempt_that_failed():
    graph = a_graph(
        {"work": node("timeout", inner_node="ask", timeout_ms=5, on_timeout="skip"), "ask": node("model", model="m1")},
        [("start", "work"), ("work", "end")],
    )
    history = play(Scenario(), graph)
    ended = first(history, EventKind.STEP_ENDED, "work")

    assert "succeeded" == history.runs[0].result.status
    assert [] == reasons(accounts_balance, history)
    assert reasons(accounts_balance, with_event(history, ended, cause=None))


def without(history, sequence):
    """The history without one event, the others numbered anew."""

    def change(events):
        del events[sequence]
        events[:] = [replace(event, sequence=number) for number, event in enumerate(events)]

    return with_events(history, change)


@pytest.mark.parametrize(
    ("kind", "node_id"),
    [(EventKind.RUN_ENDED, None), (EventKind.STEP_ENDED, "work"), (EventKind.ATTEMPT_ENDED, "start")],
)
def test_a_start_without_an_end_is_told(plain, kind, node_id):
    started = str(kind).replace("ended", "started")
    history = without(plain, first(plain, kind, node_id))

    assert f"run-1: {started} of {node_id} without an end" in reasons(accounts_balance, history)


@pytest.mark.parametrize(
    ("kind", "node_id"),
    [(EventKind.RUN_STARTED, None), (EventKind.STEP_STARTED, "work"), (EventKind.ATTEMPT_STARTED, "start")],
)
def test_an_end_without_a_start_is_told(plain, kind, node_id):
    ended = str(kind).replace("started", "ended")
    history = without(plain, first(plain, kind, node_id))

    assert f"run-1: {ended} of {node_id} without a start" in reasons(accounts_balance, history)


def test_an_end_of_another_attempt_is_no_end(plain):
    history = with_event(plain, first(plain, EventKind.ATTEMPT_ENDED, "work"), attempt=2)

    assert [
        "run-1: attempt ended of work without a start",
        "run-1: attempt started of work without an end",
    ] == reasons(accounts_balance, history)


def test_events_that_go_back_in_time_are_told(plain):
    history = with_event(plain, 9, at_ms=9.5)

    assert ["run-1: event 9 goes back in sequence or time"] == reasons(accounts_balance, history)


def test_events_that_skip_a_number_are_told(plain):
    history = with_event(plain, 9, sequence=10)

    assert "run-1: event 9 goes back in sequence or time" == reasons(accounts_balance, history)[0]


def test_a_failed_attempt_that_nothing_follows_from_is_told(retried):
    failed = next(e.sequence for e in retried.runs[0].result.trace if e.code)
    waiting = first(retried, EventKind.RETRY_WAITING)
    found = list(accounts_balance(with_event(retried, waiting, cause=None)))

    assert [Breach(reason=f"run-1: event {failed} is named as cause 0 times", run=0, event=failed)] == found


def test_a_failed_attempt_that_is_told_twice_is_told(retried):
    failed = next(e.sequence for e in retried.runs[0].result.trace if e.code)
    history = with_event(retried, first(retried, EventKind.RUN_ENDED), cause=failed)

    assert [f"run-1: event {failed} is named as cause 2 times"] == reasons(accounts_balance, history)


def test_an_attempt_that_succeeded_is_nobodys_cause(plain):
    ended = first(plain, EventKind.ATTEMPT_ENDED, "work")
    history = with_event(plain, first(plain, EventKind.RUN_ENDED), cause=ended)

    assert [f"run-1: event {ended} is named as cause 1 times"] == reasons(accounts_balance, history)


@pytest.mark.parametrize("steps", [2, 4])
def test_a_result_that_counts_other_steps_than_its_trace_is_told(plain, steps):
    history = with_result(plain, nodes_executed=steps)

    assert [f"run-1: nodes_executed is {steps}, the trace has 3 steps"] == reasons(accounts_balance, history)


@pytest.mark.parametrize("tokens", [0, 3, 8])
def test_a_result_that_counts_other_tokens_than_its_trace_is_told(plain, tokens):
    history = with_result(plain, tokens_used=tokens)

    assert [f"run-1: tokens_used is {tokens}, the trace has 4 tokens"] == reasons(accounts_balance, history)


def test_a_run_that_took_longer_than_its_caller_waited_is_told(plain):
    history = with_result(plain, total_latency_ms=10.5)

    assert ["run-1: total_latency_ms is 10.5, the caller waited 10.0"] == reasons(accounts_balance, history)


@pytest.mark.parametrize("check", [limits_exact, accounts_balance], ids=["limits exact", "accounts balance"])
def test_a_run_without_a_result_has_no_trace_to_judge(plain, check):
    assert [] == reasons(check, with_run(plain, result=None))


# --- deterministic -------------------------------------------------------------------------------------


def test_two_lives_of_one_scenario_are_the_same():
    assert Verdict(check="deterministic", verdict="ok") == deterministic(play(STORM, FANOUT), play(STORM, FANOUT))


def test_the_first_difference_between_two_lives_is_told(plain):
    other = with_event(plain, 3, at_ms=0.5)
    verdict = deterministic(plain, other)

    assert ("deterministic", "bad") == (verdict.check, verdict.verdict)
    told, one, two = verdict.breach.reason.splitlines()
    assert "two lives of one world differ" == told
    assert (one.removeprefix("first: "), two.removeprefix("then:  ")) == (plain.lines[4], other.lines[4])


def test_a_life_that_goes_on_longer_differs(plain):
    longer = with_events(plain, lambda events: None)
    shorter = replace(longer, runs=longer.runs[:1], calls=())

    assert "bad" == deterministic(longer, shorter).verdict
    assert plain.digest != shorter.digest


@pytest.mark.parametrize(
    "changes",
    [{"simulated_ns": 1}, {"calls": ()}, {"rest": Rest(at_rest=True, unhandled=("x",))}, {"runs": ()}],
    ids=["time", "calls", "rest", "runs"],
)
def test_nothing_of_a_history_is_left_out_of_the_comparison(plain, changes):
    assert "bad" == deterministic(plain, replace(plain, **changes)).verdict


def test_a_run_that_made_text_of_what_an_error_says_is_not_judged():
    nodes = {
        "work": node("fanout", target_nodes=["ask", "say"], aggregation_strategy="all"),
        "ask": node("tool", tool_id="calculator"),
        "say": node("transform"),
        "last": node("tool", tool_id="json_flatten", input_mapping={"data": "structured"}),
    }
    graph = a_graph(nodes, [("start", "work"), ("work", "last"), ("last", "end")])
    history = play(Scenario(runs=(RunPlan(content="what is this"),)), graph)

    assert history.runs[0].result is not None
    assert "succeeded" == history.runs[0].result.status
    assert "what an error says became text, and its words are free" == unjudged(history, history.runs[0])
    assert () == tuple(agrees(history))


def test_a_run_whose_errors_stand_as_errors_is_judged():
    nodes = {
        "work": node("fanout", target_nodes=["ask", "say"], aggregation_strategy="all"),
        "ask": node("tool", tool_id="calculator"),
        "say": node("transform"),
    }
    graph = a_graph(nodes, [("start", "work"), ("work", "end")])
    history = play(Scenario(runs=(RunPlan(content="what is this"),)), graph)

    assert unjudged(history, history.runs[0]) is None


def test_a_run_that_made_text_of_a_target_s_cut_off_is_not_judged():
    nodes = {
        "work": node("fanout", target_nodes=["ask", "say"], aggregation_strategy="all", timeout_ms=5),
        "ask": node("model"),
        "say": node("transform"),
        "last": node("tool", tool_id="json_flatten", input_mapping={"data": "structured"}),
    }
    graph = a_graph(nodes, [("start", "work"), ("work", "last"), ("last", "end")])
    history = play(Scenario(), graph)

    assert "what an error says became text, and its words are free" == unjudged(history, history.runs[0])
    assert () == tuple(agrees(history))
