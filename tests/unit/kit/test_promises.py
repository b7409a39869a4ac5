"""The checks of a user's graph: what breaks a promise, and what is not judged."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.support.runs import a_graph, a_line, node
from tinyllm.config import ExecutorConfig
from tinyllm.config.promises import Promises
from tinyllm.errors import ErrorCode
from tinyllm.testing.checks import judge, worst
from tinyllm.testing.faults import FaultPlan, HostDown, Latency, OnCall, Refused, ServerError
from tinyllm.testing.graph_world import RunPlan
from tinyllm.testing.promises import graph_checks, keeps_promises, no_dead_end, tolerance_judged
from tinyllm.testing.scenario import Scenario, play
from tinyllm.testing.schedule import Hold
from tinyllm.testing.script import Says

pytestmark = pytest.mark.unit

ONE = a_line(node("model", model="m1"))
BACKED = a_line(node("model", model="m1", fallback_models=["m2"]))
#: Only content that says `yes` leads on; m1 is asked, then m2.
PICKY = a_graph(
    {"work": node("model", model="m1"), "more": node("model", model="m2")},
    [("start", "work"), ("work", "end", "content == 'yes'"), ("work", "more", "content == 'more'"), ("more", "end")],
)
VOTE = a_graph(
    {
        "work": node("fanout", target_nodes=["one", "two", "three"], aggregation_strategy="majority_vote"),
        "one": node("model", model="m1"),
        "two": node("model", model="m2"),
        "three": node("model", model="m3"),
    },
    [("start", "work"), ("work", "end")],
)
STRICT = a_graph(
    {
        "work": node("fanout", target_nodes=["one", "two", "three"], aggregation_strategy="majority_vote", quorum=3),
        "one": node("model", model="m1"),
        "two": node("model", model="m2"),
        "three": node("model", model="m3"),
    },
    [("start", "work"), ("work", "end")],
)


def down(*hosts, start_ms=0, duration_ms=None):
    return FaultPlan(lasting=tuple(HostDown(host=host, start_ms=start_ms, duration_ms=duration_ms) for host in hosts))


def reasons(history, **promises):
    return [breach.reason for breach in keeps_promises(history, Promises(**promises))]


def dead_ends(history):
    return [breach.reason for breach in no_dead_end(history)]


def judged(history, tolerated=1):
    return tolerance_judged(history, Promises(tolerates_failures=tolerated))


# --- which checks --------------------------------------------------------------------------------------


def test_a_graph_without_promises_is_judged_for_dead_ends_only():
    assert ["no dead end"] == list(graph_checks(Promises()))


@pytest.mark.parametrize(
    "promises",
    [
        Promises(tolerates_failures=0),
        Promises(answers_within_ms=1),
        Promises(never=(ErrorCode.TIMEOUT,)),
    ],
    ids=["tolerates_failures", "answers_within_ms", "never"],
)
def test_any_promise_is_judged_by_a_check_of_its_own(promises):
    assert ["no dead end", "keeps its promises"] == list(graph_checks(promises))


def test_the_checks_of_a_graph_judge_a_history():
    history = play(Scenario(plain_answer="no"), PICKY)
    checks = graph_checks(Promises(never=(ErrorCode.ROUTING_ERROR,)))

    assert ["bad", "bad"] == [verdict.verdict for verdict in judge(history, checks)]


def test_a_graph_that_keeps_all_its_promises_passes():
    history = play(Scenario(faults=down("m1")), BACKED)
    checks = graph_checks(Promises(tolerates_failures=1, answers_within_ms=10, never=tuple(ErrorCode)))

    assert "ok" == worst(judge(history, checks))


# --- no dead end ---------------------------------------------------------------------------------------


def test_an_answer_that_leads_nowhere_is_a_dead_end():
    found = list(no_dead_end(play(Scenario(plain_answer="no"), PICKY)))

    assert [0, 1] == [breach.run for breach in found]
    assert found[0].reason.startswith("run-1 met a dead end at work: ROUTING_ERROR: ")


def test_the_breach_of_a_graph_points_at_the_end_of_the_run():
    history = play(Scenario(plain_answer="no"), PICKY)

    assert len(history.runs[0].result.trace) - 1 == next(iter(no_dead_end(history))).event


def test_a_gate_without_a_way_is_a_dead_end():
    gate = node("gate", conditions=[{"name": "yes", "expression": "content == 'yes'", "target": "end"}])
    graph = a_graph({"work": gate}, [("start", "work")])

    assert dead_ends(play(Scenario(), graph))[0].startswith("run-1 met a dead end at work: GATE_FAILED: ")


def test_a_walk_without_end_is_a_dead_end():
    graph = a_graph(
        {"work": node("model")}, [("start", "work"), ("work", "work", "True"), ("work", "end")], allow_cycles=True
    )
    history = play(Scenario(config=ExecutorConfig(max_steps=5)), graph)

    assert dead_ends(history)[0].startswith("run-1 met a dead end at work: BOUNDS_EXCEEDED: ")


@pytest.mark.parametrize("answer", ["yes", "more"])
def test_an_answer_with_a_way_on_is_no_dead_end(answer):
    assert [] == dead_ends(play(Scenario(plain_answer=answer), PICKY))


def test_a_model_that_fails_is_no_dead_end():
    calls = (OnCall(run=0, node="work", fault=ServerError()),)
    history = play(Scenario(faults=FaultPlan(calls=calls)), ONE)

    assert "MODEL_ERROR" == history.runs[0].result.error.code
    assert [] == dead_ends(history)


def test_a_vote_that_is_lost_because_every_host_was_down_is_no_dead_end():
    history = play(Scenario(faults=down("m1", "m2", "m3")), STRICT)

    assert "failed" == history.runs[0].result.status
    assert [] == dead_ends(history)


def test_a_cancelled_run_is_no_dead_end():
    history = play(Scenario(plain_answer="no"), PICKY)
    cancelled = replace(history, runs=tuple(replace(run, cancelled_ns=1) for run in history.runs))

    assert [] == dead_ends(cancelled)


# --- never ---------------------------------------------------------------------------------------------

BROKEN = FaultPlan(calls=(OnCall(run=0, node="work", fault=ServerError()),))


def test_a_code_that_was_never_to_come_breaks_the_promise():
    expected = ["never: [MODEL_ERROR] was promised, and run-1 ended with MODEL_ERROR"]

    assert expected == reasons(play(Scenario(faults=BROKEN), ONE), never=("TIMEOUT", "MODEL_ERROR"))


def test_other_codes_may_come():
    assert [] == reasons(play(Scenario(faults=BROKEN), ONE), never=("TIMEOUT", "GATE_FAILED"))


def test_a_run_whose_hosts_were_all_down_breaks_no_never():
    assert [] == reasons(play(Scenario(faults=down("m1")), ONE), never=("MODEL_ERROR",))


def test_a_run_that_met_another_fault_besides_is_held_to_never():
    calls = (OnCall(run=0, node="work", call=1, fault=ServerError()),)
    faults = replace(down("m1"), calls=calls)
    history = play(Scenario(faults=faults), BACKED)

    assert ["never: [MODEL_ERROR] was promised, and run-1 ended with MODEL_ERROR"] == reasons(
        history, never=("MODEL_ERROR",)
    )


def test_a_run_that_asked_nobody_is_held_to_never():
    graph = a_graph({"start": node("entry", required_fields=["structured"])}, [("start", "end")])
    expected = [f"never: [VALIDATION_ERROR] was promised, and run-{n} ended with VALIDATION_ERROR" for n in (1, 2)]

    assert expected == reasons(play(Scenario(), graph), never=("VALIDATION_ERROR",))


def test_a_cancelled_run_may_end_with_any_code():
    history = play(Scenario(runs=(RunPlan(cancel_after_ms=5),)), ONE)

    assert "cancelled" == history.runs[0].result.status
    assert [] == reasons(history, never=("CANCELLED",))


# --- answers_within_ms ---------------------------------------------------------------------------------


def test_an_answer_at_the_promised_moment_is_in_time():
    assert [] == reasons(play(Scenario(), ONE), answers_within_ms=10)


def test_an_answer_after_the_promised_moment_breaks_the_promise():
    expected = [f"answers_within_ms: 9 was promised, and run-{number} took 10 ms" for number in (1, 2)]

    assert expected == reasons(play(Scenario(), ONE), answers_within_ms=9)


def test_time_counts_from_the_start_of_the_run():
    assert [] == reasons(play(Scenario(runs=(RunPlan(start_ms=500),)), ONE), answers_within_ms=10)


def test_a_failed_run_is_late_too():
    faults = FaultPlan(calls=(OnCall(run=0, node="work", fault=Latency(delay_ms=60_000)),))
    history = play(Scenario(faults=faults), ONE)

    assert ["answers_within_ms: 29999 was promised, and run-1 took 30000 ms"] == reasons(
        history, answers_within_ms=29_999
    )
    assert [] == reasons(history, answers_within_ms=30_000)


def test_a_process_that_was_paused_is_not_held_to_a_time():
    scenario = Scenario(schedule=(Hold(gap=0, level=8),), external_only=False)
    history = play(scenario, ONE)

    assert history.paused
    assert [] == reasons(history, answers_within_ms=1)
    assert 2 == len(reasons(replace(history, holds=()), answers_within_ms=1))


def test_a_process_that_was_paused_is_not_held_to_tolerance():
    history = play(Scenario(faults=down("m1"), schedule=(Hold(gap=0, level=8),), external_only=False), ONE)

    assert (True, False) == (history.paused, judged(history))
    assert judged(replace(history, holds=()))


def test_a_cancelled_run_is_not_held_to_a_time():
    history = play(Scenario(runs=(RunPlan(cancel_after_ms=5),)), ONE)

    assert [1] == [b.run for b in keeps_promises(history, Promises(answers_within_ms=4))]


# --- tolerates_failures --------------------------------------------------------------------------------


def test_a_host_whose_failure_fails_the_run_breaks_the_promise():
    expected = (
        "tolerates_failures: 1 was promised, and with m1 down run-1 ended failed (MODEL_ERROR at work); "
        "with every host up it succeeds"
    )

    assert [expected] == reasons(play(Scenario(faults=down("m1")), ONE), tolerates_failures=1)


@pytest.mark.parametrize("graph", [BACKED, VOTE], ids=["fallback", "vote"])
@pytest.mark.parametrize("host", ["m1", "m2"])
def test_a_host_that_is_made_up_for_keeps_the_promise(graph, host):
    history = play(Scenario(faults=down(host)), graph)

    assert [] == reasons(history, tolerates_failures=1)
    assert judged(history)


@pytest.mark.parametrize("policy", ["skip_failed", "fallback_simple", "best_effort"])
def test_a_degraded_run_breaks_the_promise(policy):
    scenario = Scenario(faults=down("m1"), config=ExecutorConfig(failure_policy=policy))
    found = reasons(play(scenario, ONE), tolerates_failures=1)

    assert ["with m1 down run-1 ended degraded (MODEL_ERROR at work)"] == [
        reason[reason.index("with m1") : reason.index(";")] for reason in found
    ]


def test_a_run_that_ends_at_a_failing_exit_breaks_the_promise():
    graph = a_graph(
        {"work": node("model", model="m1", on_error="bad"), "bad": node("exit", status="fallback")},
        [("start", "work"), ("work", "end")],
    )

    assert ["(by its exit)"] == [
        reason[reason.index("(") : reason.index(";")]
        for reason in reasons(play(Scenario(faults=down("m1")), graph), tolerates_failures=1)
    ]


def test_two_hosts_down_are_judged_only_where_two_are_promised():
    history = play(Scenario(faults=down("m1", "m2")), VOTE)

    assert (False, []) == (judged(history, 1), reasons(history, tolerates_failures=1))
    assert (True, 1) == (judged(history, 2), len(reasons(history, tolerates_failures=2)))
    assert "with m1 and m2 down" in reasons(history, tolerates_failures=2)[0]


def test_one_host_down_twice_is_one_host():
    twice = FaultPlan(lasting=(HostDown(host="m1"), HostDown(host="m1", duration_ms=10**6)))

    assert judged(play(Scenario(faults=twice), ONE))


def test_nothing_is_at_stake_without_the_promise():
    history = play(Scenario(faults=down("m1")), ONE)

    assert not tolerance_judged(history, Promises(never=(ErrorCode.TIMEOUT,)))
    assert not judged(history, 0)
    assert [] == reasons(history, answers_within_ms=10**6, tolerates_failures=0)


@pytest.mark.parametrize(
    "scenario",
    [
        Scenario(),
        Scenario(faults=down("m1", start_ms=5)),
        Scenario(faults=down("m1", duration_ms=5), runs=(RunPlan(start_ms=10),)),
        Scenario(faults=replace(down("m1"), calls=(OnCall(run=0, node="work", fault=Refused()),))),
        Scenario(faults=down("m1"), says=(Says(node="work", text="x", run=0),)),
        Scenario(faults=down("m1"), says=(Says(node="work", text="x", call=0),)),
        Scenario(faults=down("m1"), says=(Says(node="work", text="x", branch=""),)),
        Scenario(faults=down("m1"), config=ExecutorConfig(max_steps=1)),
    ],
    ids=[
        "no host down",
        "down later",
        "up again",
        "another fault",
        "says per run",
        "says per call",
        "says per branch",
        "fails anyway",
    ],
)
def test_a_run_in_which_not_only_hosts_were_down_throughout_is_not_judged(scenario):
    history = play(scenario, ONE)

    assert (False, []) == (judged(history), reasons(history, tolerates_failures=1))


def test_a_run_that_was_cancelled_is_not_judged():
    graph = a_line(node("model", model="m1", retry_count=1))
    history = play(Scenario(faults=down("m1"), runs=(RunPlan(cancel_after_ms=5),)), graph)

    assert "cancelled" == history.runs[0].result.status
    assert (False, []) == (judged(history), reasons(history, tolerates_failures=1))


def wrapped_vote(**third):
    """A vote of three models, each behind a loop or a timeout, and of a third that is something else."""
    return a_graph(
        {
            "work": node("fanout", target_nodes=["a", "b", "c"], aggregation_strategy="majority_vote", quorum=2),
            "a": node("loop", body_node="one", fixed_count=1),
            "b": node("timeout", inner_node="two"),
            "c": third or node("model", model="m3"),
            "one": node("model", model="m1"),
            "two": node("model", model="m2"),
        },
        [("start", "work"), ("work", "end")],
    )


@pytest.mark.parametrize(("one", "two", "stake"), [("a", "a", True), ("a", "b", False), (" ", " ", False)])
def test_targets_that_wrap_models_give_what_those_say(one, two, stake):
    says = tuple(Says(node=name, text=text) for name, text in (("one", one), ("two", two), ("c", one)))
    history = play(Scenario(faults=down("m2"), says=says), wrapped_vote())

    assert stake == judged(history)
    assert [] == reasons(history, tolerates_failures=1)


def test_a_vote_among_others_than_models_is_not_judged():
    graph = wrapped_vote(**node("transform", transforms=[]))
    history = play(Scenario(faults=down("m1")), graph)

    assert (False, []) == (judged(history), reasons(history, tolerates_failures=1))


@pytest.mark.parametrize("strategy", ["all", "first_success", "best_score"])
def test_other_strategies_are_judged_with_whatever_targets(strategy):
    graph = a_graph(
        {
            "work": node("fanout", target_nodes=["one", "two"], aggregation_strategy=strategy),
            "one": node("model", model="m1"),
            "two": node("transform", transforms=[]),
        },
        [("start", "work"), ("work", "end")],
    )
    history = play(Scenario(faults=down("m1")), graph)

    assert (True, []) == (judged(history), reasons(history, tolerates_failures=1))


def test_targets_of_one_fanout_that_disagree_are_not_judged():
    says = (Says(node="one", text="a"), Says(node="two", text="b"))
    history = play(Scenario(faults=down("m3"), says=says), VOTE)

    assert "failed" == history.runs[0].result.status
    assert (False, []) == (judged(history), reasons(history, tolerates_failures=1))


def test_targets_that_agree_are_judged_whatever_they_say():
    says = tuple(Says(node=name, text="a") for name in ("one", "two", "three"))

    assert judged(play(Scenario(faults=down("m3"), says=says), VOTE))


def test_a_vote_that_needs_every_target_breaks_the_promise():
    found = reasons(play(Scenario(faults=down("m3")), STRICT), tolerates_failures=1)

    assert ["run-1 ended failed (MODEL_ERROR at three)"] == [
        reason[reason.index("run-1") : reason.index(";")] for reason in found
    ]


def test_an_answer_that_only_the_failure_brought_into_play_is_not_judged_unless_all_say_the_same():
    """With m1 down another node is asked, which says what leads nowhere; no host's failure did that."""
    graph = a_graph(
        {"work": node("model", model="m1", on_error="spare"), "spare": node("model", model="m2")},
        [("start", "work"), ("work", "end"), ("spare", "end", "content == 'ok'")],
    )
    said = play(Scenario(faults=down("m1"), says=(Says(node="spare", text="no"),)), graph)
    same = play(Scenario(faults=down("m1"), plain_answer="no"), graph)

    assert (False, []) == (judged(said), reasons(said, tolerates_failures=1))
    assert (True, 1) == (judged(same), len(reasons(same, tolerates_failures=1)))


def test_the_run_after_the_storm_is_not_judged_for_tolerance():
    history = play(Scenario(faults=down("m1")), BACKED)
    after = replace(history, runs=history.runs[1:])

    assert (True, False) == (judged(history), judged(after))


def test_a_run_without_a_result_is_not_judged():
    history = play(Scenario(faults=down("m1")), ONE)
    unended = replace(history, runs=tuple(replace(run, result=None) for run in history.runs))
    everything = {"tolerates_failures": 1, "answers_within_ms": 1, "never": tuple(ErrorCode)}

    assert (False, [], []) == (judged(unended), reasons(unended, **everything), dead_ends(unended))
