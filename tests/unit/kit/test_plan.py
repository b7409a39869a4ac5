"""Plans of worlds: values that print as code, travel as JSON, and know what is simpler."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest
from hypothesis import given

from tests.support.examples import a_share
from tinyllm.testing import faults as all_faults
from tinyllm.testing.faults import (
    FAMILIES,
    FAULTS,
    At,
    Crash,
    FaultError,
    Lasting,
    Latency,
    OnCall,
    Partition,
    Refused,
    Reset,
    ServerError,
    fault_from_json,
    fault_to_json,
)
from tinyllm.testing.plan import PlanError, WorldPlan, plan_from_json, plan_to_json, simpler_plans, simplest_plan
from tinyllm.testing.schedule import Hold
from tinyllm_strategies import plans

NAMES = {**vars(all_faults), "Hold": Hold, "WorldPlan": WorldPlan}
REQUIRED = {"latency": {"delay_ms": 5}}

drawn = plans.worlds(hosts=("api", "db"))


def example(kind):
    return kind(**REQUIRED.get(kind.name, {}))


@pytest.mark.parametrize("kind", FAULTS.values(), ids=FAULTS)
def test_every_fault_prints_as_the_code_that_makes_it_and_travels_as_json(kind):
    fault = example(kind)
    assert fault == eval(repr(fault), dict(NAMES))
    assert fault == fault_from_json(json.loads(json.dumps(fault_to_json(fault))))


@pytest.mark.parametrize("kind", FAULTS.values(), ids=FAULTS)
def test_every_fault_has_a_family_and_strikes_somewhere_or_lasts(kind):
    assert kind.family in FAMILIES
    if issubclass(kind, Lasting):
        assert not hasattr(kind, "points")
    else:
        assert set(kind.points) <= set(all_faults.POINTS)
        assert kind.points


@pytest.mark.parametrize("kind", FAULTS.values(), ids=FAULTS)
def test_every_setting_of_every_fault_refuses_what_it_cannot_be(kind):
    for one in fields(kind):
        for wrong in (-(1 << 70), 1.5, "", ("a", "a"), object()):
            with pytest.raises(FaultError):
                kind(**{**REQUIRED.get(kind.name, {}), one.name: wrong})


@pytest.mark.parametrize(
    ("kind", "settings", "why"),
    [
        (At, {"point": "lunch", "fault": Refused()}, "point begins with one of request, .*, not 'lunch'"),
        (At, {"point": 7, "fault": Refused()}, "point begins with"),
        (At, {"point": "read db", "fault": Refused()}, "'refused' strikes at request or connection, not at 'read'"),
        (At, {"point": "request", "fault": Crash()}, "is no fault of one moment"),
        (At, {"point": "request", "number": -1, "fault": Refused()}, "number is a whole number"),
        (Partition, {"hosts": ()}, "has one host at least"),
        (Partition, {"hosts": ("a", "b"), "others": ("b",)}, "'b' on both sides"),
        (Partition, {"hosts": ("a",), "one_way": 1}, "one_way is true or false"),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_reason(kind, settings, why):
    with pytest.raises(FaultError, match=why):
        kind(**settings)


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ({"strikes": (OnCall(run=0, node="n", fault=Refused()),)}, "strikes has OnCall.*, which is no At"),
        ({"strikes": [At(point="request", fault=Refused())]}, "strikes is a tuple of At"),
        ({"lasting": (Refused(),)}, "lasting has .*, which is no Lasting"),
        ({"schedule": ((0, 1),)}, "schedule has .*, which is no Hold"),
        ({"seed": 1.0}, "seed is a value of type int"),
        ({"external_only": 0}, "external_only is a value of type bool"),
    ],
)
def test_parts_of_another_type_are_refused(parts, why):
    with pytest.raises(PlanError, match=why):
        WorldPlan(**parts)


@a_share(5)
@given(plan=drawn)
def test_a_plan_prints_as_the_code_that_makes_it_and_travels_as_json(plan):
    assert plan == eval(repr(plan), dict(NAMES))
    assert plan == plan_from_json(json.loads(json.dumps(plan_to_json(plan))))


def test_the_plainest_plan_prints_plainly():
    assert "WorldPlan()" == repr(WorldPlan())
    assert "WorldPlan(seed=3)" == repr(WorldPlan(seed=3))


@pytest.mark.parametrize(
    "change",
    [
        {"schedule": [{"gap": 99, "level": 0}]},
        {"strikes": [{"point": "request", "number": 0, "fault": "lunch"}]},
        {"strikes": [{"point": "request", "fault": "refused"}]},
        {"strikes": None},
        {"lasting": [{"fault": "refused"}]},
        {"lasting": 3},
        {"seed": "1"},
        {"seed": True},
        {"external_only": 1},
    ],
)
def test_json_that_is_no_plan_is_refused(change):
    with pytest.raises(PlanError, match="this is no plan of a world"):
        plan_from_json({**plan_to_json(WorldPlan()), **change})


@pytest.mark.parametrize("value", [None, [], "plan", {}])
def test_what_is_not_even_an_object_is_refused(value):
    with pytest.raises(PlanError):
        plan_from_json(value)


# --- simpler ones ----------------------------------------------------------------------------------------


@a_share(5)
@given(plan=drawn)
def test_following_simpler_plans_ends_at_the_plainest(plan):
    assert WorldPlan(external_only=plan.external_only) == simplest_plan(plan, lambda _: True, tries=100_000)


@a_share(5)
@given(plan=drawn)
def test_no_plan_is_among_those_simpler_than_it(plan):
    assert plan not in list(simpler_plans(plan))


def test_the_simplest_plan_keeps_what_the_failure_needs_and_nothing_else():
    needed = At(point="request", number=2, fault=Reset())
    plan = WorldPlan(
        schedule=(Hold(1, 3), Hold(0, 8)),
        strikes=(At(point="request", fault=Refused()), needed), lasting=(Crash(host="db"),),
        seed=7,
    )

    def fails(candidate):
        return needed in candidate.strikes and any(hold.level >= 8 for hold in candidate.schedule)

    # The hold stays at the wake-up that it met, which the dropped one let pass.
    assert WorldPlan(schedule=(Hold(2, 8),), strikes=(needed,)) == simplest_plan(plan, fails)


def test_lengths_get_smaller_as_far_as_the_failure_allows():
    slow = WorldPlan(strikes=(At(point="request", fault=Latency(delay_ms=60_000)),))

    def fails(candidate):
        return any(call.fault.delay_ms >= 500 for call in candidate.strikes)

    assert 600 == simplest_plan(slow, fails).strikes[0].fault.delay_ms


def test_no_more_plans_are_tried_than_allowed():
    tried = []

    def holds(candidate):
        tried.append(candidate)
        return False

    simplest_plan(WorldPlan(schedule=(Hold(0, 3),) * 10), holds, tries=5)
    assert 5 == len(tried)


# --- drawn ones ------------------------------------------------------------------------------------------


def test_no_bytes_and_zeros_are_no_faults():
    assert () == plans.decode_strikes(b"", families=FAMILIES, rate=0.6)
    assert () == plans.decode_strikes(bytes(40), families=FAMILIES, rate=0.6)
    assert () == plans.decode_lasting(bytes(12), families=FAMILIES, hosts=("a",))
    assert () == plans.decode_lasting(b"\x01\x01", families=FAMILIES, hosts=("a",))
    assert () == plans.decode_strikes(b"\xff", families=(), rate=0.6)


def test_every_fault_of_the_table_can_be_drawn():
    strikes = {call.fault.name for call in plans.decode_strikes(bytes(range(256)), families=FAMILIES, rate=0.02)}
    kinds = bytes(byte for kind in range(256) for byte in (kind, 0, 0))
    lasting = {fault.name for fault in plans.decode_lasting(kinds, families=FAMILIES, hosts=("a",))}
    assert FAULTS.keys() == strikes | lasting | {"cancel"}


def test_each_fault_strikes_at_each_of_its_points():
    calls = plans.decode_strikes(bytes(range(256)), families=FAMILIES, rate=0.02)
    places = {(call.fault.name, call.point) for call in calls}
    expected = {(fault.name, point) for fault in plans.STRIKES for point in fault.points}
    assert expected == places


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_that_is_not_wanted_is_not_drawn(family):
    wanted = tuple(other for other in FAMILIES if other != family)

    @a_share(5)
    @given(plans.worlds(hosts=("a",), families=wanted))
    def check(plan):
        assert all(fault.family != family for fault in plan.lasting)
        assert all(call.fault.family != family for call in plan.strikes)

    check()


@a_share(5)
@given(plans.worlds())
def test_without_named_hosts_no_host_is_taken_down_or_cut_off(plan):
    for fault in plan.lasting:
        assert not isinstance(fault, Partition)
        assert getattr(fault, "host", "local") == "local"
        assert fault.name not in {"crash", "restart", "pause", "host down", "torn write"}


@a_share(5)
@given(plans.worlds(timed=False, external_only=False))
def test_without_times_no_hold_lasts_for_one(plan):
    assert not plan.external_only
    assert all(hold.time_ns is None for hold in plan.schedule)


def test_an_unknown_family_is_refused():
    with pytest.raises(FaultError, match="there is no family 'weather'; there are network"):
        plans.worlds(families=("weather",))


def test_worlds_shrink_to_the_plainest_and_before_that_to_one_thing():
    from hypothesis import find, settings

    chosen = settings(max_examples=2_000, database=None, deadline=None, derandomize=True)
    assert WorldPlan() == find(drawn, lambda plan: True, settings=chosen)
    assert 1 == find(drawn, lambda plan: plan.schedule, settings=chosen).decisions

    def struck(plan):
        return any(isinstance(at.fault, ServerError) for at in plan.strikes)

    assert 1 == find(drawn, struck, settings=chosen).decisions


@a_share(5)
@given(plan=drawn)
def test_plans_are_values(plan):
    assert plan == replace(plan)
    assert hash(plan) == hash(replace(plan))
