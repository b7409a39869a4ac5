"""What the public strategies shrink to, what they reach, and what the profiles mean."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any, get_args

import pytest
from hypothesis import HealthCheck, Phase, assume, find, given, settings
from hypothesis import strategies as st

import tinyllm_strategies
from tests.support.runs import a_graph, a_line, node
from tinyllm.config import (
    ExecutorConfig,
    FanoutConfig,
    GateConfig,
    LoopConfig,
    ModelConfig,
    NodeType,
    RouterConfig,
    TimeoutConfig,
    ToolConfig,
    TransformConfig,
)
from tinyllm.errors import ErrorCode
from tinyllm.graph import build_graph, wrapped_by
from tinyllm.message import ErrorInfo, MessageMetadata, MessagePayload, TaskPayload
from tinyllm.testing.faults import (
    FAULTS,
    CallFaultKind,
    CutMidBody,
    FaultPlan,
    HostDown,
    Latency,
    OnCall,
    Refused,
    ServerError,
)
from tinyllm.testing.graph_world import RunPlan
from tinyllm.testing.scenario import Scenario
from tinyllm.testing.schedule import Hold
from tinyllm.testing.script import SERVICE_MS, hosts_of
from tinyllm_strategies import (
    answers_for,
    executor_configs,
    fault_plans,
    graphs,
    host_downs,
    json_values,
    lives,
    messages,
    model_answers,
    payloads,
    profiles,
    scenarios,
    schedules,
    tasks,
)
from tinyllm_strategies.answers import LENGTH_MAX, ODD_ANSWERS, short_answers, voices
from tinyllm_strategies.faults import FAMILIES, decode_faults
from tinyllm_strategies.messages import error_infos, json_objects, task_texts
from tinyllm_strategies.scenarios import run_plans

pytestmark = pytest.mark.unit

#: Nothing is kept and the same examples are drawn each time, whatever the profile: what is asked here is whether a
#: strategy can give something, not whether today's luck does.
FINDING = settings(
    max_examples=3_000, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)

LINE = a_line(node("model", model="m1", timeout_ms=500))
VOTE = a_graph(
    {
        "work": node("fanout", target_nodes=["one", "two"], aggregation_strategy="majority_vote"),
        "one": node("model", model="m1"),
        "two": node("model", model="m2", retry_count=1, fallback_models=["m1"]),
    },
    [("start", "work"), ("work", "end")],
)
GATED = a_graph(
    {
        "ask": node("model", model="m1"),
        "look": node(
            "gate",
            mode="hybrid",
            model="m2",
            conditions=[{"name": "Positive", "expression": "content == 'blue' or len(content) > 37", "target": "end"}],
            default_target="end",
        ),
    },
    [("start", "ask"), ("ask", "end", "'green' in content and confidence < 0.25"), ("ask", "look")],
)


SHAPES = a_graph(
    {
        "way": node(
            "router",
            multi_label=True,
            routes=[{"name": "C++", "target": "ask"}, {"name": "it", "target": "ask"}],
        ),
        "ask": node(
            "model",
            response_schema={
                "type": "object",
                "properties": {"n": {"type": "integer", "minimum": 7}, "kind": {"enum": ["x", "y"]}},
                "required": ["kind"],
            },
        ),
        "again": node(
            "loop", body_node="body", condition_type="until_condition", condition_expression="last_output == 'DONE'"
        ),
        "body": node("tool", tool_id="calculator"),
        "cut": node(
            "transform",
            transforms=[
                {"type": "json_extract", "params": {"path": "items.1.name"}},
                {"type": "split", "params": {"separator": ";"}},
                {"type": "regex_extract", "params": {"pattern": "^total"}},
            ],
        ),
    },
    [("start", "way"), ("ask", "again"), ("again", "cut"), ("cut", "end")],
)


def minimal(strategy, condition=lambda value: True):
    return find(strategy, condition, settings=FINDING)


# --- what they shrink to -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "strategy"),
    [
        (None, json_values()),
        ({}, json_objects()),
        (MessagePayload(), payloads()),
        (TaskPayload(content=""), tasks()),
        ("", task_texts()),
        ("ok", model_answers()),
        ("ok", short_answers()),
        ("ok", answers_for(LINE)),
        ("ok", answers_for(GATED)),
        ("ok", answers_for(SHAPES)),
        ("ok", short_answers(SHAPES)),
        ((), schedules()),
        (ExecutorConfig(), executor_configs()),
        (FaultPlan(), fault_plans(VOTE, runs=2)),
        (HostDown(host="m2"), host_downs(["m2", "m1"])),
        (RunPlan(), run_plans(cancels=True)),
        (Scenario(), scenarios(GATED, cancels=True)),
        (Scenario(), scenarios(VOTE, cancels=True)),
        (Scenario(faults=FaultPlan(lasting=(HostDown(host="m1"),))), scenarios(VOTE, tolerated=1)),
    ],
)
def test_the_plainest_value_is_what_the_docstring_says(expected, strategy):
    assert expected == minimal(strategy)


def test_the_plainest_error_is_a_model_error_without_a_message():
    assert ErrorInfo(code=ErrorCode.MODEL_ERROR, message="", recoverable=False) == minimal(error_infos())


def test_the_plainest_message_is_empty():
    message = minimal(messages())

    assert (MessagePayload(), MessageMetadata()) == (message.payload, message.metadata)
    assert (None, None) == (message.parent_id, message.target_node)


def test_the_plainest_graph_is_an_entry_that_leads_to_an_exit():
    graph = minimal(graphs())

    assert {"start": NodeType.ENTRY, "end": NodeType.EXIT, "spare": NodeType.EXIT} == {
        name: it.type for name, it in graph.nodes.items()
    }
    assert [("start", "end", None)] == [(e.from_node, e.to_node, e.condition) for e in graph.definition.edges]


def test_the_plainest_life_is_the_plainest_scenario_in_the_plainest_graph():
    graph, scenario = minimal(lives(cancels=True))

    assert minimal(graphs()).definition == graph.definition
    assert Scenario() == scenario


def test_the_plainest_life_with_hosts_down_is_one_run_with_the_first_host_down():
    found = minimal(scenarios(VOTE, tolerated=1), lambda scenario: scenario.faults.lasting)

    assert Scenario(faults=FaultPlan(lasting=(HostDown(host="m1"),))) == found


@pytest.mark.parametrize(
    ("expected", "kind"),
    [
        (["gate"], GateConfig),
        (["model"], ModelConfig),
        (["router"], RouterConfig),
        (["tool"], ToolConfig),
        (["transform"], TransformConfig),
        (["fanout", "model"], FanoutConfig),
        (["loop", "model"], LoopConfig),
        (["model", "timeout"], TimeoutConfig),
    ],
)
def test_the_plainest_graph_with_a_node_of_a_type_has_nothing_else(expected, kind):
    graph = minimal(graphs(max_nodes=1), lambda graph: configs(graph, kind))
    middle = {str(it.type) for it in graph.nodes.values()} - {"entry", "exit"}

    assert expected == sorted(middle)


def test_the_plainest_schedule_with_a_hold_has_the_shortest_and_the_soonest():
    assert (Hold(gap=0, level=0),) == minimal(schedules(), bool)


def test_the_plainest_fault_is_one():
    assert 1 == len(minimal(fault_plans(VOTE, runs=2), lambda plan: plan.calls).calls)


# --- what they reach -----------------------------------------------------------------------------------

GRAPH_FEATURES = {
    **{
        f"a node of type {kind}": lambda graph, kind=kind: any(it.type is kind for it in graph.nodes.values())
        for kind in NodeType
    },
    "a gate that asks": lambda graph: any(c.mode == "llm" and c.conditions for c in configs(graph, GateConfig)),
    "a gate that asks if none holds": lambda graph: any(c.mode == "hybrid" for c in configs(graph, GateConfig)),
    "a gate without a default": lambda graph: any(not c.default_target for c in configs(graph, GateConfig)),
    "a fanout in a fanout": lambda graph: any(
        isinstance(graph.nodes[target].config, FanoutConfig)
        for config in configs(graph, FanoutConfig)
        for target in config.target_nodes
    ),
    "a target twice": lambda graph: any(
        len(set(c.target_nodes)) < len(c.target_nodes) for c in configs(graph, FanoutConfig)
    ),
    "a gate in a fanout": lambda graph: any(
        isinstance(graph.nodes[target].config, GateConfig)
        for config in configs(graph, FanoutConfig)
        for target in config.target_nodes
    ),
    "one after another": lambda graph: any(not c.parallel for c in configs(graph, FanoutConfig)),
    "a cap on branches": lambda graph: any(c.max_parallel_branches for c in configs(graph, FanoutConfig)),
    "fail_fast": lambda graph: any(c.fail_fast for c in configs(graph, FanoutConfig)),
    "require_all_success": lambda graph: any(c.require_all_success for c in configs(graph, FanoutConfig)),
    "a quorum": lambda graph: any(c.quorum for c in configs(graph, FanoutConfig)),
    "fallback models with a limit": lambda graph: any(
        c.fallback_timeout_ms and c.fallback_models and c.enable_fallback for c in configs(graph, ModelConfig)
    ),
    "fallback switched off": lambda graph: any(
        c.fallback_models and not c.enable_fallback for c in configs(graph, ModelConfig)
    ),
    "a template": lambda graph: any(c.prompt_template for c in configs(graph, ModelConfig)),
    "retries that back off": lambda graph: any(
        it.config.retry_count and it.config.retry_backoff == "exponential" for it in graph.nodes.values()
    ),
    "a timeout that an answer just meets": lambda graph: any(
        c.timeout_ms == SERVICE_MS for c in configs(graph, ModelConfig)
    ),
    "an error way": lambda graph: any(it.on_error for it in graph.nodes.values()),
    "an entry that checks": lambda graph: any(
        it.config.required_fields for it in graph.nodes.values() if it.type is NodeType.ENTRY
    ),
    "a condition": lambda graph: any(edge.condition for edge in graph.definition.edges),
    "a priority": lambda graph: any(edge.priority for edge in graph.definition.edges),
    "a cycle": lambda graph: any(
        edge.to_node <= edge.from_node for edge in graph.definition.edges if edge.to_node.startswith("n")
    ),
    **{
        f"the strategy {name}": lambda graph, name=name: any(
            it.aggregation_strategy == name for it in configs(graph, FanoutConfig)
        )
        for name in ("all", "majority_vote", "first_success", "best_score")
    },
    **{
        f"a loop of {name}": lambda graph, name=name: any(
            it.condition_type == name for it in configs(graph, LoopConfig)
        )
        for name in ("fixed_count", "until_success", "until_condition", "while_condition")
    },
    **{
        f"the action {name}": lambda graph, name=name: any(
            it.on_timeout == name for it in configs(graph, TimeoutConfig)
        )
        for name in ("error", "fallback", "skip")
    },
    **{
        f"a router by {name}": lambda graph, name=name: any(it.mode == name for it in configs(graph, RouterConfig))
        for name in ("model", "rules", "keywords")
    },
    "a loop over a model that is cut short": lambda graph: any(
        it.timeout_ms < 2 * SERVICE_MS and isinstance(graph.nodes[it.body_node].config, ModelConfig)
        for it in configs(graph, LoopConfig)
    ),
    "a timeout around what names its way": lambda graph: any(
        isinstance(graph.nodes[it.inner_node].config, GateConfig | RouterConfig) for it in configs(graph, TimeoutConfig)
    ),
    "wrappers three deep": lambda graph: any(depth(graph, name) == 3 for name in graph.nodes),
    "no wrappers deeper": lambda graph: all(depth(graph, name) <= 3 for name in graph.nodes),
    "a node both visited and wrapped": lambda graph: graph.shape.visitable.keys() & graph.shape.wrapped.keys(),
    "compound routes": lambda graph: any(len(it.compound_routes) > 1 for it in configs(graph, RouterConfig)),
    "several labels, but not all": lambda graph: any(
        it.multi_label and it.max_labels < len(it.routes) for it in configs(graph, RouterConfig)
    ),
    "a router without routes": lambda graph: any(not it.routes for it in configs(graph, RouterConfig)),
    "a default route": lambda graph: any(it.default_route for it in configs(graph, RouterConfig)),
    "a schema without repairs": lambda graph: any(
        it.response_schema and not it.repair_attempts for it in configs(graph, ModelConfig)
    ),
    "a schema for fallback models too": lambda graph: any(
        it.response_schema and len(it.models()) > 1 for it in configs(graph, ModelConfig)
    ),
    "a transform of three steps": lambda graph: any(len(it.transforms) == 3 for it in configs(graph, TransformConfig)),
    "a transform that goes on": lambda graph: any(
        it.transforms and not it.stop_on_error for it in configs(graph, TransformConfig)
    ),
    "a tool that passes its failure on": lambda graph: any(it.continue_on_error for it in configs(graph, ToolConfig)),
    "four nodes in a row": lambda graph: "n3" in graph.nodes,
    "an exit that fails": lambda graph: any(
        it.config.status == "failure" for it in graph.nodes.values() if it.type is NodeType.EXIT
    ),
}


def depth(graph, name):
    return max((1 + depth(graph, inner) for inner in wrapped_by(graph.nodes[name].config)), default=0)


def configs(graph, kind):
    return [it.config for it in graph.nodes.values() if isinstance(it.config, kind)]


def reaches(strategy, feature):
    """Some value of the strategy has the feature; it is not shrunk."""
    looking = settings(FINDING, phases=[Phase.generate])
    return find(strategy, feature, settings=looking)


@pytest.mark.parametrize("feature", GRAPH_FEATURES)
def test_drawn_graphs_reach(feature):
    assert GRAPH_FEATURES[feature](reaches(graphs(), GRAPH_FEATURES[feature]))


@settings(max_examples=100)
@given(graphs())
def test_drawn_graphs_are_valid_in_a_file_too(graph):
    again = build_graph(graph.definition.model_dump(mode="json", exclude_none=True))

    assert graph.definition == again.definition


@settings(max_examples=100)
@given(st.integers(0, 6).flatmap(lambda most: st.tuples(st.just(most), graphs(max_nodes=most))))
def test_no_more_nodes_stand_in_a_row_than_allowed(drawn):
    most, graph = drawn

    assert most >= sum("." not in name for name in graph.nodes) - 3


# What the model calls of a graph and their hosts meet; the other faults strike programs in a world.
LIFE_FAULTS = (*get_args(CallFaultKind), HostDown)
LIFE_FEATURES = {
    **{
        f"the fault {name}": lambda scenario, kind=kind: any(
            isinstance(fault, kind) for fault in [*(c.fault for c in scenario.faults.calls), *scenario.faults.lasting]
        )
        for name, kind in FAULTS.items()
        if kind in LIFE_FAULTS
    },
    "three runs": lambda scenario: len(scenario.runs) == 3,
    "a later run": lambda scenario: any(run.start_ms for run in scenario.runs),
    "a cancel": lambda scenario: any(run.cancel_after_ms is not None for run in scenario.runs),
    "a cancel at the moment of an answer": lambda scenario: any(
        run.cancel_after_ms == SERVICE_MS for run in scenario.runs
    ),
    "an empty context": lambda scenario: any(run.context == "" for run in scenario.runs),
    "a hold for steps": lambda scenario: any(hold.steps for hold in scenario.schedule),
    "a hold for a time": lambda scenario: any(hold.time_ns for hold in scenario.schedule),
    "an answer to one call": lambda scenario: any(said.call == 1 for said in scenario.says),
    "a limit of steps": lambda scenario: scenario.config.max_steps < 100,
    "no step at all": lambda scenario: scenario.config.max_steps == 0,
    "a limit of time": lambda scenario: scenario.config.timeout_ms < 600_000,
    "a limit of tokens": lambda scenario: scenario.config.max_tokens is not None,
    "a limit of messages": lambda scenario: scenario.config.max_messages is not None and not scenario.config.prune,
    "pruning": lambda scenario: scenario.config.prune,
    "a breaker": lambda scenario: scenario.config.breaker is not None,
    "a failure absorbed": lambda scenario: scenario.config.failure_policy == "skip_failed",
    "no failure absorbed": lambda scenario: scenario.config.max_node_failures == 0,
}


@pytest.mark.parametrize("feature", LIFE_FEATURES)
def test_drawn_lives_reach(feature):
    strategy = executor_configs().flatmap(lambda config: scenarios(VOTE, config=config, cancels=True))

    assert LIFE_FEATURES[feature](reaches(strategy, LIFE_FEATURES[feature]))


@settings(max_examples=50)
@given(lives())
def test_nobody_cancels_unless_asked(life):
    assert {None} == {run.cancel_after_ms for run in life[1].runs}


@settings(max_examples=100)
@given(schedules(timed=False))
def test_schedules_without_time_hold_for_steps_only(schedule):
    assert [None] * len(schedule) == [hold.time_ns for hold in schedule]


@settings(max_examples=100)
@given(lives(cancels=True))
def test_faults_and_answers_are_for_nodes_that_ask(life):
    graph, scenario = life
    asking = {speaker for speaker, _ in voices(graph, most=10**6)}

    assert asking >= {call.node for call in scenario.faults.calls} | {said.node for said in scenario.says}
    assert set(hosts_of(graph).values()) >= {down.host for down in scenario.faults.lasting}


@settings(max_examples=50)
@given(scenarios(VOTE, tolerated=1))
def test_lives_with_hosts_down_have_just_these_down_throughout(scenario):
    assume(scenario.faults.lasting and not scenario.faults.calls and len(scenario.runs) == 1)
    assume(all(down == HostDown(host=down.host) for down in scenario.faults.lasting))

    assert {"m1", "m2"} >= {down.host for down in scenario.faults.lasting}


# --- answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "word",
    [
        "blue", "BLUE", " blue.", "I think: blue!", "unbluely",
        "green", "positive", "POSITIVE", "Positive",
        "37", "38", "36", "0.25", "1.25", "-0.75",
        "x" * 36, "x" * 37, "x" * 38, "Positive green blue", "Positive or green", "blue " + "x" * 37,
        *ODD_ANSWERS[:4],
    ],
)
def test_answers_for_a_graph_contain(word):
    looking = settings(FINDING, phases=[Phase.generate])

    assert word == find(answers_for(GATED), lambda answer: answer == word, settings=looking)


def test_no_answer_is_made_as_long_as_a_condition_asks_beyond_the_limit():
    graph = a_graph({"work": node("model")}, [("start", "work"), ("work", "end", f"len(content) > {LENGTH_MAX + 1}")])

    @settings(FINDING, max_examples=200)
    @given(answers_for(graph))
    def short_enough(answer):
        assert len(max(ODD_ANSWERS, key=len)) >= len(answer)

    short_enough()


LOOPED = a_graph(
    {
        "work": node("loop", body_node="limit", fixed_count=2),
        "limit": node("timeout", inner_node="vote", timeout_ms=50),
        "vote": node("fanout", target_nodes=["one", "way"]),
        "one": node("model", model="m1"),
        "way": node("router", model="m2", routes=[{"name": "C++", "target": "end"}, {"name": "it", "target": "end"}]),
    },
    [("start", "work"), ("work", "end")],
)


def test_iterations_and_timeouts_have_voices_of_their_own():
    expected = [("one", ".1.1"), ("way", ".1.2"), ("one", ".2.1"), ("way", ".2.2")]

    assert expected == voices(LOOPED)


def test_a_router_asks_only_if_it_has_routes_and_no_rules():
    assert {"m1": "m1", "m2": "m2"} == hosts_of(LOOPED)
    configs: list[dict[str, Any]] = [{"mode": "keywords"}, {"routes": []}]
    for config in configs:
        way: dict[str, Any] = {"model": "m3", "routes": [{"name": "a", "target": "end", "keywords": ["a"]}], **config}
        assert {} == hosts_of(a_line(node("router", **way)))


@pytest.mark.parametrize(
    "word",
    [
        "C++", "it", "C++, it", "it\nC++", "DONE", "done", "1 + 1",
        '{"n": 7, "kind": "x"}', '{"kind": "x"}', '{"n": [7], "kind": ["x"]}', "{}",
        '{"items": [{"name": "x"}, {"name": "x"}]}', "a;b;c", "total",
    ],
)  # fmt: skip
def test_answers_have_the_shape_that_a_graph_takes_apart(word):
    looking = settings(FINDING, phases=[Phase.generate])

    assert word == find(answers_for(SHAPES), lambda answer: answer == word, settings=looking)


@pytest.mark.parametrize("word", ["C++, it", "1 + 2 * 3", '{"kind": "x"}', "b,a b"])
def test_short_answers_know_what_only_some_nodes_can_use(word):
    looking = settings(FINDING, phases=[Phase.generate])

    assert word == find(short_answers(SHAPES), lambda answer: answer == word, settings=looking)


def test_voices_are_counted_per_branch_and_visited_nodes_come_first():
    assert [("one", ".1"), ("two", ".2")] == voices(VOTE)
    assert [("ask", ""), ("look", "")] == voices(GATED)
    assert [("one", ".1")] == voices(VOTE, most=1)


# --- faults --------------------------------------------------------------------------------------------

SLOTS = [(0, 0, "work", ""), (1, 0, "work", ""), (0, 1, "work", "")]


def decoded(data, *, rate=0.3, families=FAMILIES, graph=LINE):
    return decode_faults(data, SLOTS, graph, families=families, rate=rate)


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("data", [b"", bytes(1), bytes(3)])
def test_zero_and_missing_bytes_are_no_fault(data, rate):
    assert () == decoded(data, rate=rate)


def test_a_byte_decides_the_call_of_its_own_slot():
    first = decoded(b"\xff\x00\x00")[0].fault

    assert [(0, 0), (1, 0), (0, 1)] == [
        (call.call, call.run) for data in (b"\xff", b"\0\xff", b"\0\0\xff") for call in decoded(data)
    ]
    assert (OnCall(run=1, node="work", call=0, fault=first),) == decoded(b"\x00\x00\xff")


def test_a_byte_is_a_fault_from_the_threshold_up():
    assert [False, False, True, True] == [bool(decoded(bytes([byte]))) for byte in (1, 178, 179, 255)]


def test_bytes_reach_every_kind_of_fault_and_one_that_is_just_late():
    faults = {decoded(bytes([byte]))[0].fault for byte in range(179, 256)}

    assert {Refused(), CutMidBody(), ServerError(), ServerError(status=503)} < faults
    assert Latency(delay_ms=500 - SERVICE_MS) in faults


@pytest.mark.parametrize(("family", "others"), [("network", ServerError), ("model", (Refused, CutMidBody, Latency))])
def test_a_family_that_is_left_out_never_happens(family, others):
    faults = [call.fault for byte in range(256) for call in decoded(bytes([byte]), families=(family,))]

    assert [] == [fault for fault in faults if isinstance(fault, others)]
    assert faults


# --- profiles ------------------------------------------------------------------------------------------

DRAWING = """
from hypothesis import given, settings
from tinyllm_strategies import lives, profiles
profiles.register()
@settings(max_examples=5)
@given(lives(cancels=True))
def draw(life):
    print(life[1])
draw()
print(settings().max_examples, settings().deadline, settings().derandomize, settings().database)
"""


def told_under(profile):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    environment.pop("TINYLLM_PROFILE", None)
    environment.update({} if profile is None else {"TINYLLM_PROFILE": profile})
    return subprocess.run(
        [sys.executable, "-P", "-c", DRAWING], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def test_ci_draws_the_same_examples_in_two_processes():
    one, other = told_under("ci").stdout.splitlines(), told_under("ci").stdout.splitlines()

    assert one == other
    assert "1000 None True None" == one[-1]
    assert 4 < len(set(one))


def test_a_profile_that_does_not_exist_is_refused_with_those_that_do():
    told = told_under("fast")

    assert 1 == told.returncode
    assert "ValueError: TINYLLM_PROFILE is 'fast'; there are dev, ci, nightly" == told.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", profiles.PROFILES)
def test_no_profile_has_a_deadline(name):
    chosen = profiles.profile_settings(name)

    assert (None, profiles.MAX_EXAMPLES[name]) == (chosen.deadline, chosen.max_examples)
    assert (name == "ci") == chosen.derandomize
    assert (name == "ci") == (chosen.database is None)


def test_the_public_names_are_exactly_the_documented_ones():
    offered = {name for name, value in vars(tinyllm_strategies).items() if callable(value)}

    assert offered == set(tinyllm_strategies.__all__)
