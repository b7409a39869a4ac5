"""Worlds: equal values live equal lives, faults end when they are healed, and all that breaks is put down."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from tests.support.nodes import Acting, swallows
from tests.support.runs import a_graph, a_line, node
from tinyllm.config import ExecutorConfig
from tinyllm.nodes.base import passed_on, success
from tinyllm.testing.checks import ENGINE_CHECKS, judge, no_orphans, settles, worst
from tinyllm.testing.faults import FaultPlan, HostDown, Latency, OnCall, Refused
from tinyllm.testing.graph_world import GraphWorld, RunPlan
from tinyllm.testing.history import first_difference
from tinyllm.testing.ollama_host import OllamaHost
from tinyllm.testing.schedule import Hold
from tinyllm.testing.script import SERVICE_MS, Says, Script, hosts_of
from tinyllm.testing.units import EPOCH

pytestmark = pytest.mark.unit

MS = 1_000_000
NO_FAULTS = FaultPlan()
LINE = a_line(node("model", model="m1"))
VOTE = a_graph(
    {
        "work": node("fanout", target_nodes=["one", "two"], aggregation_strategy="majority_vote"),
        "one": node("model", model="m1", retry_count=1, retry_backoff="exponential"),
        "two": node("model", model="m2"),
    },
    [("start", "work"), ("work", "end")],
)


def a_world(graph=LINE, *, faults=NO_FAULTS, says=(), **how):
    return GraphWorld(graph, Script(hosts=hosts_of(graph), faults=faults, says=says), **how)


def lived(graph=LINE, *plans, acts=None, **how):
    """The history of a world in which the nodes of `acts` do what they say instead."""
    with a_world(graph, **how) as world:
        for node_id, act in (acts or {}).items():
            world.executor.nodes[node_id] = Acting(graph.nodes[node_id], act)
        for plan in plans or (RunPlan(),):
            world.submit(plan)
        return world.finish()


def statuses(history):
    return [record.result.status if record.result else record.raised for record in history.runs]


# --- the same life -------------------------------------------------------------------------------------


def test_two_worlds_of_equal_values_live_the_same_life():
    def life():
        refused = FaultPlan(calls=(OnCall(run=0, node="one", branch=".1", fault=Refused()),))
        schedule = (Hold(gap=0, level=3), Hold(gap=0, level=8))
        return lived(VOTE, RunPlan(), RunPlan(cancel_after_ms=12), faults=refused, schedule=schedule, seed=3)

    assert None is first_difference(life(), life())


def test_worlds_that_live_at_the_same_time_do_not_meet():
    with a_world() as one, a_world() as other:
        for world in (one, other):
            world.submit(RunPlan(content="a"))
        one.advance(5)
        other.advance(7)
        one.advance(5)
        histories = one.finish(), other.finish()

    assert histories[0].lines == lived(LINE, RunPlan(content="a")).lines
    assert histories[1].lines == histories[0].lines


def test_another_seed_gives_other_seeds_to_the_runs():
    assert first_difference(lived(seed=1), lived(seed=2)) is not None


def test_the_wall_clock_starts_at_the_epoch_and_follows_the_loop():
    with a_world() as world:
        assert datetime(2026, 1, 1, tzinfo=UTC) == EPOCH == world.clock()
        world.advance(1_500)

        assert EPOCH + timedelta(seconds=1.5) == world.clock()


def test_no_identifier_is_given_twice():
    with a_world() as world:
        assert ["id-1", "id-2", "id-3"] == [world.new_id() for _ in range(3)]


# --- runs ----------------------------------------------------------------------------------------------


def test_nothing_happens_until_time_passes():
    with a_world() as world:
        assert 0 == world.submit(RunPlan(start_ms=3))
        assert 1 == world.submit(RunPlan())
        assert [None, None] == [record.started_ns for record in world.runs]
        world.advance(2)

        assert [None, 0] == [record.started_ns for record in world.runs]
        assert [0] == [call.ask.at_ns for call in world.calls]


def test_a_run_starts_after_its_delay_and_ends_when_its_model_has_answered():
    record = lived(LINE, RunPlan(content="why", start_ms=7)).runs[0]

    assert (7 * MS, (7 + SERVICE_MS) * MS) == (record.started_ns, record.ended_ns)
    assert "run-1" == record.run_id == record.result.run_id


def test_the_last_run_is_the_one_after_the_storm():
    history = lived(LINE, RunPlan(), RunPlan())

    assert ["", "", "after the storm"] == [call.prompt for call in history.calls]
    assert ["run-1", "run-2", "run-3"] == [record.run_id for record in history.runs]
    assert history.runs[2].started_ns == history.runs[1].ended_ns + MS


def test_a_world_without_runs_has_only_the_one_after_the_storm():
    with a_world() as world:
        assert ["succeeded"] == statuses(world.finish())


def test_answers_go_to_the_run_the_branch_and_the_call_they_are_meant_for():
    says = (
        Says(node="one", text="every"),
        Says(node="one", text="first run", run=0),
        Says(node="one", text="first run, first call", run=0, branch=".1", call=0),
    )
    refused = FaultPlan(calls=(OnCall(run=1, node="one", branch=".1", fault=Refused()),))
    history = lived(VOTE, RunPlan(), RunPlan(), faults=refused, says=says)
    told = [(call.ask.run, call.ask.call, call.reply.text) for call in history.calls if call.ask.node == "one"]

    assert [(0, 0, "first run, first call"), (1, 0, None), (1, 1, "every"), (2, 0, "every")] == sorted(told)


# --- healing -------------------------------------------------------------------------------------------


def test_the_run_after_the_storm_finds_the_world_whole():
    history = lived(LINE, faults=FaultPlan(lasting=(HostDown(host="m1"),)))

    assert ["failed", "succeeded"] == statuses(history)
    assert history.script.healed_at_ns == history.runs[0].ended_ns


def test_a_world_that_is_healed_midway_is_whole_from_then_on():
    faults = FaultPlan(
        calls=tuple(OnCall(run=run, node="work", fault=Refused()) for run in range(3)),
        lasting=(HostDown(host="m1", start_ms=100),),
    )
    with a_world(faults=faults) as world:
        world.submit(RunPlan())
        world.submit(RunPlan(start_ms=20))
        world.submit(RunPlan(start_ms=100))
        world.advance(10)
        world.heal()
        history = world.finish()

    assert ["failed", "succeeded", "succeeded", "succeeded"] == statuses(history)


def test_what_a_call_met_before_the_healing_stays():
    with a_world(faults=FaultPlan(calls=(OnCall(run=0, node="work", fault=Latency(delay_ms=500)),))) as world:
        world.submit(RunPlan())
        world.advance(5)
        world.heal()
        history = world.finish()

    assert 510 * MS == history.runs[0].ended_ns


def test_healing_twice_is_the_same_as_once():
    with a_world() as world:
        world.advance(5)
        world.heal()
        world.advance(5)
        world.heal()

        assert 5 * MS == world.script.healed_at_ns


# --- cancelling ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("after_ms", [0, 5])
def test_a_planned_cancel_ends_the_run_at_its_moment(after_ms):
    history = lived(LINE, RunPlan(start_ms=2, cancel_after_ms=after_ms))
    record = history.runs[0]

    assert ["cancelled", "succeeded"] == statuses(history)
    assert (2 + after_ms) * MS == record.cancelled_ns == record.ended_ns
    assert () == record.orphans
    assert "ok" == worst(judge(history, ENGINE_CHECKS))


def test_a_cancel_that_comes_too_late_never_was():
    history = lived(LINE, RunPlan(cancel_after_ms=11))

    assert ["succeeded", "succeeded"] == statuses(history)
    assert None is history.runs[0].cancelled_ns


def test_a_cancel_reaches_only_its_own_run():
    history = lived(LINE, RunPlan(), RunPlan(cancel_after_ms=5), RunPlan())

    assert ["succeeded", "cancelled", "succeeded", "succeeded"] == statuses(history)


def test_cancelling_by_hand_does_nothing_before_the_start_and_after_the_end():
    with a_world() as world:
        world.submit(RunPlan(start_ms=5))
        world.cancel(0)
        world.advance(50)
        world.cancel(0)
        history = world.finish()

    assert (["succeeded", "succeeded"], None) == (statuses(history), history.runs[0].cancelled_ns)


def test_cancelling_by_hand_ends_the_run():
    with a_world() as world:
        world.submit(RunPlan())
        world.advance(4)
        world.cancel(0)
        history = world.finish()

    assert ("cancelled", 4 * MS) == (history.runs[0].result.status, history.runs[0].cancelled_ns)
    assert [False, True] == [call.delivered for call in history.calls]


# --- what is left and what breaks ----------------------------------------------------------------------


def leaving(leave):
    """A node that answers and leaves something behind."""

    async def act(message, context):
        leave()
        return success(passed_on(message, context, content="ok"))

    return act


def test_a_task_that_outlives_its_run_is_an_orphan():
    kept: list[object] = []

    def leave():
        kept.append(asyncio.get_running_loop().create_task(asyncio.sleep(60), name="stray"))

    history = lived(acts={"work": leaving(leave)})

    assert ("task stray", "timer for 60.000 s") == history.runs[0].orphans
    assert "run-1 ended and left task stray behind" == next(no_orphans(history)).reason
    assert (True, ()) == (history.rest.at_rest, history.rest.left)


def test_a_timer_that_outlives_its_run_is_an_orphan():
    history = lived(acts={"work": leaving(lambda: asyncio.get_running_loop().call_later(2.5, int))})

    assert [("timer for 2.500 s",), ("timer for 2.501 s",)] == [record.orphans for record in history.runs]


def test_a_connection_that_outlives_its_run_is_an_orphan():
    with a_world() as world:
        world.executor.nodes["work"] = Acting(LINE.nodes["work"], leaving(lambda: world.network.connect("m1")))
        world.submit(RunPlan())
        history = world.finish()

    assert [("connection 1 to m1",), ("connection 2 to m1",)] == [record.orphans for record in history.runs]


def test_the_orphans_of_one_run_are_not_told_of_another():
    kept: list[object] = []

    async def act(message, context):
        if not kept:
            kept.append(asyncio.get_running_loop().create_task(asyncio.sleep(60), name="stray"))
        return success(passed_on(message, context, content="ok"))

    history = lived(LINE, RunPlan(), RunPlan(start_ms=5), acts={"work": act})

    assert [True, False, False] == [bool(record.orphans) for record in history.runs]


def test_what_waits_for_nothing_is_left_at_rest():
    kept: list[object] = []

    async def waits():
        await asyncio.get_running_loop().create_future()

    history = lived(
        acts={"work": leaving(lambda: kept.append(asyncio.get_running_loop().create_task(waits(), name="stray")))}
    )

    assert (True, ("task stray", "task stray")) == (history.rest.at_rest, history.rest.left)


def test_a_world_that_is_busy_for_hours_does_not_come_to_rest():
    history = lived(acts={"work": leaving(lambda: asyncio.get_running_loop().call_later(10_000, int))})

    assert (False, "still busy 3600 s after the last run") == (history.rest.at_rest, history.rest.reason)


def test_a_node_that_swallows_its_cancellation_is_told_as_left_behind():
    history = lived(LINE, RunPlan(cancel_after_ms=5), acts={"work": swallows(None)})

    assert ["cancelled", "failed"] == statuses(history)
    assert "task work 2" == history.runs[0].orphans[0]


def test_a_livelock_is_put_down_and_raised_through_nobody(monkeypatch):
    async def spins(message, context):
        for _ in range(10**9):
            await asyncio.sleep(0)

    monkeypatch.setattr("tinyllm.testing.graph_world.STEPS_MAX", 500)
    with a_world() as world:
        world.executor.nodes["work"] = Acting(LINE.nodes["work"], spins)
        world.submit(RunPlan())
        world.advance(1)
        history = world.finish()

    assert (False, "LivelockError") == (history.rest.at_rest, history.rest.reason.partition(":")[0])
    assert [None, None] == [record.result for record in history.runs]


def test_a_mistake_in_the_test_itself_is_raised():
    """Only what stops the world is put down; another exception is the caller's."""
    with a_world() as world, pytest.raises(ZeroDivisionError), world._watched():
        1 / 0  # noqa: B018


def test_a_simulated_host_that_fails_is_told_as_unhandled(monkeypatch):
    def fails(self, request):
        raise KeyError("what")

    monkeypatch.setattr(OllamaHost, "answer", fails)
    history = lived()

    assert ("a simulated host failed: KeyError: 'what'",) * 2 == history.rest.unhandled
    assert "nobody handled: a simulated host failed: KeyError: 'what'" in [b.reason for b in settles(history)]


def test_an_answer_that_no_wire_carries_is_the_hosts_failure():
    history = lived(says=(Says(node="work", text="\ud800", run=0),))

    told = "a simulated host failed: UnicodeEncodeError: "
    assert [told] == [text[: len(told)] for text in history.rest.unhandled]


def test_a_callback_that_fails_is_told_as_unhandled():
    def fails():
        raise ValueError("lost")

    history = lived(acts={"work": leaving(lambda: asyncio.get_running_loop().call_later(0.001, fails))})

    assert [True, True] == [text.endswith(": ValueError: lost") for text in history.rest.unhandled]


def test_a_run_that_raises_is_put_down_with_what_it_raised():
    record = lived(LINE, RunPlan(content="\ud800")).runs[0]

    assert (None, True) == (record.result, record.raised.startswith("ValidationError: "))
    assert record.ended_ns == record.started_ns


def test_a_hold_that_lets_time_pass_is_a_pause():
    long, short = (Hold(gap=0, level=8),), (Hold(gap=0, level=2),)

    assert [True, False, False] == [lived(VOTE, schedule=schedule).paused for schedule in (long, short, ())]
    assert "ok" == worst(judge(lived(VOTE, schedule=long), ENGINE_CHECKS))


def test_the_limits_of_the_config_hold_in_the_world():
    history = lived(config=ExecutorConfig(max_steps=1))

    assert ["BOUNDS_EXCEEDED"] * 2 == [record.result.error.code for record in history.runs]
    assert 1 == history.config.max_steps


def test_closing_twice_is_the_same_as_once():
    world = a_world()
    world.close()
    world.close()

    assert world.loop.is_closed()
