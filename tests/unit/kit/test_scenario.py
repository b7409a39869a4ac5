"""Scenarios: values that go through JSON, live the same life every time, and are made as simple as they can be."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.runs import a_graph, a_line, node
from tinyllm.config import ExecutorConfig
from tinyllm.errors import TinyLLMError
from tinyllm.testing.checks import deterministic
from tinyllm.testing.faults import CutMidBody, FaultPlan, HostDown, Latency, OnCall, Refused, ServerError
from tinyllm.testing.graph_world import RunPlan
from tinyllm.testing.scenario import (
    Scenario,
    ScenarioError,
    play,
    scenario_from_json,
    scenario_to_json,
    simpler,
    simplest,
)
from tinyllm.testing.schedule import Hold
from tinyllm.testing.script import Says
from tinyllm_strategies import lives
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit

LINE = a_line(node("model", model="m1", retry_count=2, retry_backoff="exponential"))
FANOUT = a_graph(
    {
        "work": node(
            "fanout",
            target_nodes=["one", "two", "one"],
            aggregation_strategy="majority_vote",
            fail_fast=True,
            retry_count=1,
        ),
        "one": node("model", model="m1", retry_count=2, retry_backoff="exponential"),
        "two": node("model", model="m2", fallback_models=["m1", "m3"]),
    },
    [("start", "work"), ("work", "end")],
)
EVERY_FAULT = FaultPlan(
    calls=(
        OnCall(run=0, node="one", branch=".1", fault=Refused()),
        OnCall(run=0, node="two", branch=".2", fault=Latency(delay_ms=7)),
        OnCall(run=1, node="one", branch=".3", call=1, fault=CutMidBody()),
        OnCall(run=1, node="two", branch=".2", fault=ServerError(status=503)),
    ),
    lasting=(HostDown(host="m1", start_ms=15, duration_ms=40), HostDown(host="m2")),
)
#: Everything that a scenario can hold, none of it at its default.
FULL = Scenario(
    runs=(RunPlan(content="a", context="c"), RunPlan(content="b", start_ms=5, cancel_after_ms=8), RunPlan(content="d")),
    plain_answer="well",
    says=(Says(node="one", text="yes"), Says(node="two", text=" YES", run=1, branch=".2", call=0)),
    faults=EVERY_FAULT,
    schedule=(Hold(gap=0, level=3), Hold(gap=1, level=8), Hold(gap=2, level=5)),
    external_only=False,
    seed=7,
    config=ExecutorConfig(failure_policy="skip_failed", max_steps=40),
)
REFUSED_TWICE = tuple(OnCall(run=0, node="work", call=call, fault=Refused()) for call in (0, 1))
#: Lives whose digests are compared: faults alone, holds alone, a cancel, and everything at once.
STORIES = (
    (Scenario(), LINE),
    (Scenario(faults=FaultPlan(calls=REFUSED_TWICE)), LINE),
    (Scenario(faults=EVERY_FAULT, runs=(RunPlan(), RunPlan(start_ms=1))), FANOUT),
    (Scenario(schedule=(Hold(gap=0, level=2), Hold(gap=0, level=4))), FANOUT),
    (Scenario(runs=(RunPlan(cancel_after_ms=10), RunPlan())), FANOUT),
    (FULL, FANOUT),
)


def digests():
    return [play(scenario, graph).digest for scenario, graph in STORIES]


# --- the same life -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(STORIES)))
def test_a_scenario_lives_the_same_life_twice(number):
    scenario, graph = STORIES[number]
    one, other = play(scenario, graph), play(scenario, graph)

    assert one.lines == other.lines
    assert one.digest == other.digest
    assert "ok" == deterministic(one, other).verdict


def test_different_scenarios_live_different_lives():
    assert len(STORIES) == len(set(digests()))


def test_another_seed_waits_otherwise_between_retries():
    scenario, graph = STORIES[1]

    assert play(scenario, graph).simulated_ns != play(replace(scenario, seed=1), graph).simulated_ns


@pytest.mark.parametrize("hash_seed", ["0", "4242"])
def test_a_scenario_lives_the_same_life_in_every_process(hash_seed):
    program = "from tests.unit.kit.test_scenario import digests; print(*digests())"
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    told = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True, timeout=120
    )

    assert digests() == told.stdout.split()


@settings(max_examples=30)
@given(lives(cancels=True))
def test_a_scenario_that_went_through_json_lives_the_same_life(life):
    graph, scenario = life
    copy = scenario_from_json(json.loads(json.dumps(scenario_to_json(scenario))))

    assert "ok" == deterministic(play(scenario, graph), play(copy, graph)).verdict


# --- JSON ----------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(lives(cancels=True))
def test_every_scenario_equals_itself_after_json(life):
    scenario = life[1]

    assert scenario == scenario_from_json(json.loads(json.dumps(scenario_to_json(scenario))))


def test_a_scenario_with_everything_equals_itself_after_json():
    assert FULL == scenario_from_json(json.loads(json.dumps(scenario_to_json(FULL))))


@pytest.mark.parametrize("value", [None, 1, "x", [], {}, {"runs": []}, [["runs", []]]])
def test_what_is_no_scenario_at_all_is_refused(value):
    with pytest.raises(ScenarioError, match="this is no scenario"):
        scenario_from_json(value)


@pytest.mark.parametrize("key", list(scenario_to_json(Scenario())))
def test_a_scenario_lacks_nothing(key):
    value = scenario_to_json(FULL)
    del value[key]

    with pytest.raises(ScenarioError, match=key):
        scenario_from_json(value)


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        (("runs",), 3),
        (("runs",), "no"),
        (("runs",), ""),
        (("says",), {}),
        (("faults", "calls"), {}),
        (("faults", "lasting"), ""),
        (("faults", "calls", 0), {"run": 0, "node": "a", "branch": "", "call": 0, "fault": "host down", "host": "m1"}),
        (("runs", 0), "x"),
        (("runs", 0), {"prompt": "x"}),
        (("runs", 0, "unknown"), 1),
        (("says",), None),
        (("says", 0), {"text": "x"}),
        (("says", 0, "unknown"), 1),
        (("faults",), []),
        (("faults", "calls", 0, "fault"), "flood"),
        (("faults", "calls", 0, "fault"), "host down"),
        (("faults", "calls", 0, "delay_ms"), 5),
        (("faults", "calls", 1, "delay_ms"), -1),
        (("faults", "calls", 1, "delay_ms"), "7"),
        (("faults", "calls", 3, "status"), 200),
        (("faults", "lasting", 0), {"fault": "refused"}),
        (("faults", "lasting", 0, "start_ms"), None),
        (("faults", "lasting", 0, "host"), ""),
        (("schedule",), {}),
        (("schedule",), [3]),
        (("schedule", 0, "gap"), 16),
        (("schedule", 0, "level"), -1),
        (("config",), []),
        (("config", "max_steps"), "40"),
        (("config", "unknown"), 1),
        (("config", "failure_policy"), "hope"),
    ],
)
def test_a_scenario_with_a_bad_part_is_refused(path, bad):
    with pytest.raises(ScenarioError):
        scenario_from_json(spoilt(path, bad))


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        (("runs", 0, "content"), 3),
        (("runs", 0, "content"), None),
        (("runs", 0, "content"), "\ud800"),
        (("says", 0, "text"), "\ud800"),
        (("runs", 0, "context"), []),
        (("runs", 0, "start_ms"), "5"),
        (("runs", 0, "start_ms"), -5),
        (("runs", 0, "start_ms"), True),
        (("runs", 0, "start_ms"), 10**400),
        (("runs", 0, "cancel_after_ms"), 1.5),
        (("runs", 0, "cancel_after_ms"), -1),
        (("plain_answer",), None),
        (("says", 0, "text"), 3),
        (("says", 0, "node"), []),
        (("says", 0, "run"), "1"),
        (("says", 0, "call"), True),
        (("faults", "calls", 0, "run"), "0"),
        (("faults", "calls", 0, "node"), None),
        (("faults", "calls", 0, "branch"), 1),
        (("faults", "calls", 0, "call"), [0]),
        (("external_only",), "no"),
        (("seed",), "7"),
        (("seed",), None),
    ],
)
def test_a_scenario_with_a_value_of_a_wrong_type_is_refused(path, bad):
    with pytest.raises(ScenarioError):
        scenario_from_json(spoilt(path, bad))


@settings(max_examples=100)
@given(json_values() | st.dictionaries(st.sampled_from(list(scenario_to_json(FULL))), json_values()))
def test_json_is_a_scenario_or_is_refused_as_none(value):
    with pytest.raises(ScenarioError) as error:
        scenario_from_json(value)

    assert isinstance(error.value, TinyLLMError)


@settings(max_examples=60)
@given(st.data())
def test_a_scenario_with_one_part_replaced_is_refused_or_can_be_played(data):
    """Whatever comes from a file lives or is refused: nothing that is taken breaks the world later."""
    value = scenario_to_json(FULL)
    paths = list(places(value))
    path = data.draw(st.sampled_from(paths))
    spoil(value, path, data.draw(json_values(max_leaves=2)))
    try:
        scenario = scenario_from_json(value)
    except ScenarioError:
        return

    assert scenario == scenario_from_json(json.loads(json.dumps(scenario_to_json(scenario))))
    play(replace(scenario, seed=0), FANOUT)


def places(value, path=()):
    """The path of every part of a JSON value."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield (*path, key)
        yield from places(part, (*path, key))


def spoil(value, path, bad):
    *way, last = path
    for key in way:
        value = value[key]
    value[last] = bad


def spoilt(path, bad):
    value = json.loads(json.dumps(scenario_to_json(FULL)))
    spoil(value, path, bad)
    return value


# --- simpler ones --------------------------------------------------------------------------------------


def test_nothing_is_left_of_a_scenario_that_always_fails():
    bare = Scenario(plain_answer="well", external_only=False, seed=7, config=FULL.config)

    assert bare == simplest(FULL, lambda _: True)


def test_a_scenario_of_which_every_part_matters_stays():
    assert FULL == simplest(FULL, lambda scenario: scenario == FULL)


def test_what_does_nothing_goes_and_what_matters_stays():
    refused = OnCall(run=0, node="work", fault=Refused())
    idle = OnCall(run=0, node="nobody", fault=Refused())
    crowded = replace(
        FULL,
        runs=(RunPlan(content="a"), RunPlan(content="b")),
        faults=FaultPlan(calls=(idle, refused, idle), lasting=(HostDown(host="m9"),)),
        config=ExecutorConfig(),
    )

    def retries(scenario):
        return "retry waiting" in "".join(play(scenario, LINE).lines)

    plainest = replace(crowded, runs=(RunPlan(),), says=(), faults=FaultPlan(calls=(refused,)), schedule=())
    assert plainest == simplest(crowded, retries)


def test_a_delay_becomes_no_longer_than_needed():
    slow = Scenario(faults=FaultPlan(calls=(OnCall(run=0, node="work", fault=Latency(delay_ms=60_000)),)))
    found = simplest(slow, lambda scenario: any(c.fault.delay_ms >= 50 for c in scenario.faults.calls))

    assert (Latency(delay_ms=60),) == tuple(call.fault for call in found.faults.calls)


def test_a_host_goes_down_at_the_start_if_that_will_do():
    late = Scenario(faults=FaultPlan(lasting=(HostDown(host="m1", start_ms=500),)))

    assert (HostDown(host="m1"),) == simplest(late, lambda scenario: scenario.faults.lasting != ()).faults.lasting


def test_what_is_said_and_done_to_later_runs_moves_when_one_goes():
    scenario = Scenario(
        runs=(RunPlan(content="a"), RunPlan(content="b"), RunPlan(content="c")),
        says=(Says(node="work", text="x", run=0), Says(node="work", text="y", run=2), Says(node="work", text="z")),
        faults=FaultPlan(calls=tuple(OnCall(run=run, node="work", fault=Refused()) for run in (0, 1, 2))),
    )
    third, second, first = [s for s in simpler(scenario) if len(s.runs) == 2]

    assert [("y", 1), ("z", None)] == [(said.text, said.run) for said in first.says]
    assert [("x", 0), ("y", 1), ("z", None)] == [(said.text, said.run) for said in second.says]
    assert [("x", 0), ("z", None)] == [(said.text, said.run) for said in third.says]
    assert [[0, 1]] * 3 == [[call.run for call in s.faults.calls] for s in (first, second, third)]
    assert ["bc", "ac", "ab"] == ["".join(run.content for run in s.runs) for s in (first, second, third)]


def test_the_last_run_stays():
    assert [] == list(simpler(Scenario()))
    assert [] == [s for s in simpler(Scenario(runs=(RunPlan(content="a"),))) if not s.runs]


@pytest.mark.parametrize("tries", [0, 1, 7])
def test_no_more_candidates_are_tried_than_allowed(tries):
    tried = []

    def never_fails(scenario):
        tried.append(scenario)
        return False

    simplest(FULL, never_fails, tries=tries)

    assert tries == len(tried)


@settings(max_examples=30)
@given(lives(cancels=True))
def test_following_simpler_scenarios_ends(life):
    """Taking always the last candidate is the slowest way down; a scenario is never its own candidate."""
    scenario = life[1]
    for _ in range(2_000):
        candidates = list(simpler(scenario))
        assert scenario not in candidates
        assert all(candidate.decisions <= scenario.decisions for candidate in candidates)
        if not candidates:
            return
        scenario = candidates[-1]
    raise AssertionError("still not at an end")


def test_decisions_count_what_departs_from_the_plainest_life():
    assert 0 == Scenario().decisions
    assert 2 + 6 + 3 + 2 == FULL.decisions
