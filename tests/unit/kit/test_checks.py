"""Each check of a history: one that passes, and for each thing it judges one that fails, with the reason named."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from tests.support.nodes import Acting, blocks, says, swallows
from tests.support.runs import a_graph, a_line, node
from tinyllm.config import ExecutorConfig
from tinyllm.errors import ErrorCode
from tinyllm.nodes.base import passed_on, success
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
from tinyllm.testing.history import Rest
from tinyllm.testing.loop import OWNER
from tinyllm.testing.scenario import Scenario, play
from tinyllm.testing.schedule import Hold
from tinyllm.testing.script import Script, hosts_of
from tinyllm.testing.world import RunPlan, World
from tinyllm.trace import EventKind

pytestmark = pytest.mark.unit

LINE = a_line()
RETRYING = a_line(node("model", retry_count=1, retry_delay_ms=5))
FANOUT = a_graph(
    {
        "work": node("fanout", target_nodes=["one", "two", "one"], aggregation_strategy="majority_vote"),
        "one": node("model", model="m1", retry_count=1),
        "two": node("model", model="m2", fallback_models=["m1"]),
    },
    [("start", "work"), ("work", "end")],
)
NARROW = a_graph(
    {
        "work": node(
            "fanout", target_nodes=["one", "two"], aggregation_strategy="majority_vote", max_parallel_branches=1
        ),
        "one": node("model", model="m1"),
        "two": node("model", model="m2"),
    },
    [("start", "work"), ("work", "end")],
)
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


def with_event(history, sequence, **changes):
    """The history with one event of the first run changed."""

    def change(events):
        events[sequence] = replace(events[sequence], **changes)

    return with_events(history, change)


def first(history, kind, node_id=None):
    """The sequence number of the first such event of the first run."""
    return next(e.sequence for e in history.runs[0].result.trace if e.kind is kind and node_id in (None, e.node_id))


def lived(graph, acts, *plans, config=None):
    """The history of a world in which the nodes of `acts` do what they say instead."""
    with World(graph, Script(hosts=hosts_of(graph)), config=config) as world:
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
    [(Scenario(), LINE), (STORM, FANOUT), (STORM, NARROW), (replace(STORM, schedule=PAUSE), FANOUT)],
    ids=["plain", "storm", "narrow", "paused"],
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


def test_a_run_that_never_ends_does_not_settle():
    history = lived(a_line(node("fanout", target_nodes=["inner"], aggregation_strategy="majority_vote")), {}) if False else None
    assert history is None


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("run-1 was cancelled and ended as succeeded", {"cancelled_ns": 5}),
        ("run-1 was cancelled and ended as succeeded", {"cancelled_ns": 0}),
    ],
)
def test_a_cancelled_run_ends_as_nothing_else(plain, reason, changes):
    assert [reason] == reasons(settles, with_run(plain, **changes))


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
