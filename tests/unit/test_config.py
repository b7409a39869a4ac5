"""The parts of a graph file one by one: their keys, types and ranges, and how a refusal is worded."""

from __future__ import annotations

import difflib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from tests.support.graphs_text import EVERY_TYPE, errors_of, framed, refusal_of, warnings_of
from tinyllm.config import (
    CONFIGS,
    CircuitBreakerConfig,
    EdgeDefinition,
    ExecutorConfig,
    ExtractParams,
    FanoutConfig,
    GateConfig,
    LoopConfig,
    ModelConfig,
    NodeConfig,
    NodeDefinition,
    NodeType,
    RouterConfig,
    TimeoutConfig,
    ToolConfig,
    TransformConfig,
    TruncateParams,
    short,
    spelled,
)
from tinyllm.config.problems import LOOP_NAMES, condition_findings
from tinyllm.errors import GraphConfigError, Problem
from tinyllm.graph import Graph, build_graph, parse_graph
from tinyllm.message import checked_json
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit

VOTE = {"target_nodes": ["m"], "aggregation_strategy": "majority_vote"}
WAY = {"default_target": "done"}
ROUTE = {"name": "a", "target": "done"}
#: What a config of these types cannot do without, or not without a warning.
NEEDED: dict[str, dict[str, Any]] = {
    "fanout": VOTE,
    "gate": WAY,
    "router": {"routes": [ROUTE]},
    "tool": {"tool_id": "t"},
    "loop": {"body_node": "m"},
    "timeout": {"inner_node": "m"},
}
MS_MAX = 2**31 - 1


def graph_with(node: Any, **top: Any) -> Graph:
    """A graph in which `node`, which is `nodes[0]`, may be anything: if it is sound, it loads."""
    ends = [{"id": "start", "type": "entry", "on_error": "m"}, {"id": "done", "type": "exit"}]
    others = [*ends, {"id": "m", "type": "model"}]
    edges = [{"from_node": a, "to_node": b} for a, b in (("start", "n"), ("n", "done"), ("m", "done"))]
    fields = {"id": "g", "version": "1.0.0", "name": "g", "entry_points": ["start"], "exit_points": ["done"]}
    return build_graph({**fields, "nodes": [node, *others], "edges": edges, **top})


def config_of(kind: str, config: Any) -> NodeConfig:
    graph = graph_with({"id": "n", "type": kind, "config": {**NEEDED.get(kind, {}), **config}})
    return graph.nodes["n"].config


def is_json(value: Any) -> bool:
    try:
        checked_json(value)
    except ValueError:
        return False
    return True


def problem_of(node: Any, **top: Any) -> Problem:
    with pytest.raises(GraphConfigError) as error:
        graph_with(node, **top)
    (problem,) = error.value.problems
    return problem


# --- configs ---------------------------------------------------------------------------------------------

EVERY = ("model", "gate", "fanout", "router", "tool", "transform", "loop", "timeout")
SOUND: list[tuple[tuple[str, ...], str, list[Any]]] = [
    (EVERY, "timeout_ms", [1, MS_MAX]),
    (EVERY, "retry_count", [0, 1_000]),
    (EVERY, "retry_delay_ms", [0, MS_MAX]),
    (EVERY, "retry_backoff", ["fixed", "exponential"]),
    (("model", "gate", "router"), "model", ["a", "qwen2.5:3b"]),
    (("model",), "system_prompt", [None, "", "x"]),
    (("model",), "prompt_template", [None, "", "{content}"]),
    (("model", "router"), "prompt_id", [None, "a/b"]),
    (("model",), "temperature", [0, 0.0, 2, 1.5]),
    (("model",), "max_tokens", [None, 1, 1_000_000]),
    (("model",), "response_schema", [None, {}, {"type": "object", "properties": {"a": {"type": "integer"}}}]),
    (("model",), "repair_attempts", [0, 100]),
    (("model",), "enable_fallback", [True, False]),
    (("model",), "fallback_models", [[], ["a", "a"]]),
    (("model",), "fallback_timeout_ms", [None, 1, MS_MAX]),
    (("model",), "fallback_strategy", ["sequential", "fastest"]),
    (("gate",), "mode", ["expression", "llm", "hybrid"]),
    (("gate",), "conditions", [[], [{"name": "a", "expression": "1", "target": "done"}]]),
    (("gate",), "evaluation_prompt", [None, "", "x"]),
    (("fanout",), "target_nodes", [["m"], ["m", "m"], ["m"] * 1_000]),
    (("fanout",), "aggregation_strategy", ["all", "first_success", "majority_vote", "best_score"]),
    (("fanout",), "quorum", [None, 1, 1_001]),
    (("fanout",), "parallel", [True, False]),
    (("fanout",), "max_parallel_branches", [None, 1]),
    (("fanout",), "require_all_success", [True, False]),
    (("fanout",), "fail_fast", [True, False]),
    (("fanout",), "score_field", ["x"]),
    (("router",), "mode", ["model", "keywords"]),
    (("router",), "default_route", [None, "a", " A "]),
    (("router",), "multi_label", [True, False]),
    (("router",), "max_labels", [1, 1_000]),
    (("router",), "compound_routes", [[]]),
    (("tool",), "tool_id", ["x"]),
    (("tool",), "input_mapping", [{}, {"a": "content", "b": "structured.x.0"}]),
    (("tool",), "continue_on_error", [True, False]),
    (("transform",), "transforms", [[], [{"type": "strip", "params": {}}] * 100]),
    (("transform",), "stop_on_error", [True, False]),
    (("loop",), "condition_type", ["fixed_count", "until_success"]),
    (("loop",), "max_iterations", [1, 1_000]),
    (("loop",), "fixed_count", [None, 1, 10]),
    (("loop",), "continue_on_error", [True, False]),
    (("loop",), "collect_results", [True, False]),
    (("loop",), "pass_iteration_number", [True, False]),
    (("timeout",), "on_timeout", ["error", "skip"]),
    (("timeout",), "fallback_response", [None, "", "late"]),
    (("timeout",), "propagate_metadata", [True, False]),
]
WRONG: list[tuple[tuple[str, ...], str, list[Any]]] = [
    (EVERY, "timeout_ms", [0, -1, MS_MAX + 1, 1.0, "1", True, None, [1]]),
    (EVERY, "retry_count", [-1, 1_001, 1.0, False, "0", None]),
    (EVERY, "retry_delay_ms", [-1, MS_MAX + 1, 0.5, None]),
    (EVERY, "retry_backoff", ["linear", "", None, 1]),
    (("model", "gate", "router"), "model", ["", None, 3, ["a"], "\ud800"]),
    (("model",), "system_prompt", [5, ["x"], "\udfff"]),
    (("model",), "prompt_template", [5, {}]),
    (("model", "router"), "prompt_id", [5]),
    (("model",), "response_schema", ["x", [], {"type": "number"[:3]}, {"$ref": "http://there/"}, {"a": float("nan")}]),
    (("model",), "repair_attempts", [-1, 101, 1.0, None]),
    (("model",), "temperature", [-0.1, 2.1, float("nan"), float("inf"), True, "0.5", None]),
    (("model",), "max_tokens", [0, 1_000_001, 1.5, "many"]),
    (("model",), "enable_fallback", ["yes", 1, None]),
    (("model",), "fallback_models", ["a", None, [""], [5], {}]),
    (("model",), "fallback_timeout_ms", [0, 0.5]),
    (("gate",), "mode", ["model", None]),
    (("gate",), "conditions", [None, {}, "x", ["x"], [{}]]),
    (("gate",), "evaluation_prompt", [5]),
    (("fanout",), "target_nodes", [[], None, "m", [5], ["M"], {}, ["m"] * 1_001]),
    (("fanout",), "aggregation_strategy", ["vote", None, "", "ALL"]),
    (("fanout",), "quorum", [0, -1, 1.0, True]),
    (("fanout",), "parallel", [1, None]),
    (("fanout",), "max_parallel_branches", [0, "1"]),
    (("fanout",), "score_field", ["", None]),
    (("router",), "mode", ["llm", "expression", None]),
    (("router",), "routes", [None, {}, ["a"], [{}], [{"name": "", "target": "done"}], [{"name": "a", "target": "A"}]]),
    (
        ("router",),
        "routes",
        [[{**ROUTE, "priority": 2**31}], [{**ROUTE, "keywords": "a"}], [{**ROUTE, "keywords": [""]}]],
    ),
    (("router",), "default_route", ["b", "", 5]),
    (("router",), "multi_label", [1, None]),
    (("router",), "max_labels", [0, 1_001, None]),
    (
        ("router",),
        "compound_routes",
        [None, [{}], [{"domains": [], "target": "done"}], [{"domains": "a", "target": "m"}]],
    ),
    (("tool",), "tool_id", ["", None, 5]),
    (("tool",), "input_mapping", [None, [], {"a": 5}, {"a": ""}, {"": "a"}]),
    (("tool",), "continue_on_error", [1, None]),
    (("transform",), "transforms", [None, {}, ["strip"], [{"type": "reverse"}], [{"type": "strip", "params": None}]]),
    (("transform",), "stop_on_error", [0, "no"]),
    (("loop",), "body_node", [None, "M", 5, ["m"]]),
    (("loop",), "condition_type", ["count", None, ""]),
    (("loop",), "max_iterations", [0, 1_001, 2.0, None]),
    (("loop",), "fixed_count", [0, -1, 11, 1.0, True]),
    (("loop",), "condition_expression", [5, [], "\ud800"]),
    (("loop",), "continue_on_error", ["no", None]),
    (("loop",), "collect_results", [1, None]),
    (("loop",), "pass_iteration_number", ["yes", None]),
    (("timeout",), "inner_node", [None, "M", 5, ["m"]]),
    (("timeout",), "on_timeout", ["fail", None, ""]),
    (("timeout",), "fallback_response", [5, {}]),
    (("timeout",), "propagate_metadata", [1, None]),
    (("entry",), "required_fields", ["content", [""], [5], None]),
    (("exit",), "status", ["ok", None, True]),
    (("exit",), "message", [5, []]),
]


def flat(table: list[tuple[tuple[str, ...], str, list[Any]]]) -> list[Any]:
    rows = [(kind, key, value) for kinds, key, values in table for kind in kinds for value in values]
    return [pytest.param(*row, id=f"{row[0]}.{row[1]}={short(row[2])}") for row in rows]


@pytest.mark.parametrize(("kind", "key", "value"), flat(SOUND))
def test_a_value_within_its_range_is_taken_as_it_is(kind, key, value):
    taken = config_of(kind, {key: value}).model_dump()[key]

    assert value == (list(taken) if isinstance(taken, tuple) else taken)


@pytest.mark.parametrize(("kind", "key", "value"), flat(WRONG))
def test_a_value_outside_its_range_is_refused_by_its_path(kind, key, value):
    node = {"id": "n" if kind in EVERY else "k", "type": kind, "config": {**NEEDED.get(kind, {}), key: value}}

    with pytest.raises(GraphConfigError) as error:
        graph_with(node)

    paths = [problem.path for problem in error.value.problems if problem.path.startswith("nodes[0].")]
    # What JSON cannot carry is refused for the config as a whole.
    place = f"nodes[0].config.{key}" if is_json(value) else "nodes[0].config"
    assert paths
    assert all(path.startswith(place) for path in paths)


@pytest.mark.parametrize("status", ["success", "fallback", "partial_success", "failure", "error", "timeout"])
def test_every_status_of_an_exit_is_known(status):
    text = EVERY_TYPE.replace("status: failure", f"status: {status}")

    assert {"status": status, "message": "sorry"} == (
        parse_graph(text).nodes["failed"].config.model_dump(include={"status", "message"})
    )


def test_the_defaults_are_those_of_the_specification():
    step = {"timeout_ms": 30_000, "retry_count": 0, "retry_delay_ms": 1_000, "retry_backoff": "fixed"}

    assert {**step, "required_fields": ()} == CONFIGS[NodeType.ENTRY]().model_dump()
    assert {**step, "status": "success", "message": None} == CONFIGS[NodeType.EXIT]().model_dump()
    assert ("qwen2.5:3b", "qwen2.5:0.5b") == (ModelConfig().model, GateConfig().model)
    assert ("expression", "sequential", True) == (
        GateConfig().mode,
        ModelConfig().fallback_strategy,
        FanoutConfig(target_nodes=("m",)).parallel,
    )
    assert {**step, "transforms": (), "stop_on_error": True} == TransformConfig().model_dump()
    assert {**step, "tool_id": "t", "input_mapping": {}, "continue_on_error": False} == (
        ToolConfig(tool_id="t").model_dump()
    )
    assert {"input": "content"} == ToolConfig(tool_id="t").mapping()
    assert ("all", None, None, False, False, "quality_score") == tuple(
        FanoutConfig(target_nodes=("m",)).model_dump(exclude={*step, "target_nodes", "parallel"}).values()
    )
    assert ("model", "qwen2.5:0.5b", None, (), None, False, 3, ()) == tuple(
        RouterConfig().model_dump(exclude={*step}).values()
    )
    assert {
        **step,
        "timeout_ms": 60_000,
        "body_node": "m",
        "condition_type": "fixed_count",
        "max_iterations": 10,
        "fixed_count": None,
        "condition_expression": None,
        "continue_on_error": False,
        "collect_results": True,
        "pass_iteration_number": True,
    } == LoopConfig(body_node="m").model_dump()
    assert {
        **step,
        "inner_node": "m",
        "on_timeout": "error",
        "fallback_response": None,
        "propagate_metadata": True,
    } == TimeoutConfig(inner_node="m").model_dump()
    assert (1, None, True) == (
        ModelConfig().repair_attempts,
        ModelConfig().response_schema,
        ModelConfig().enable_fallback,
    )
    assert {"threshold": 5, "cooldown_s": 30.0} == CircuitBreakerConfig().model_dump()
    assert {
        "max_steps": 100,
        "timeout_ms": 600_000,
        "cancel_grace_ms": 1_000,
        "failure_policy": "fail_fast",
        "fallback_response": "",
        "max_node_failures": 3,
        "max_tokens": None,
        "max_messages": None,
        "max_message_bytes": None,
        "prune": False,
        "breaker": None,
        "max_concurrent_runs": None,
        "max_queued_runs": 100,
        "tracing": True,
    } == ExecutorConfig().model_dump()


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("max_steps", [0, 1_000_000], [-1, 1_000_001, 1.0, True]),
        ("timeout_ms", [1, MS_MAX], [0, MS_MAX + 1]),
        ("cancel_grace_ms", [0, MS_MAX], [-1, MS_MAX + 1]),
        ("failure_policy", ["fail_fast", "skip_failed", "fallback_simple", "best_effort"], ["retry", None]),
        ("fallback_response", ["", "sorry"], [None, 5]),
        ("max_node_failures", [0, 1_000_000], [-1, 1_000_001]),
        ("max_tokens", [None, 0, 2**63 - 1], [-1, 2**63, 1.0, True]),
        ("max_messages", [None, 1], [0, -1, 2**63]),
        ("max_message_bytes", [None, 1], [0, -1, 2**63]),
        ("prune", [True, False], [1, None]),
        ("max_concurrent_runs", [None, 1, 1_000_000], [0, 1_000_001]),
        ("max_queued_runs", [0, 1_000_000], [-1, 1_000_001, None]),
        ("tracing", [True, False], [1, None]),
        ("unknown", [], [1]),
    ],
)
def test_an_executor_is_configured_within_bounds(key, good, bad):
    for value in good:
        assert value == ExecutorConfig(**{key: value}).model_dump()[key]
    for value in bad:
        with pytest.raises(ValidationError, match=key):
            ExecutorConfig(**{key: value})


@pytest.mark.parametrize(("targets", "votes"), [(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)])
def test_more_than_half_of_all_targets_are_needed_unless_a_quorum_is_set(targets, votes):
    assert votes == FanoutConfig(target_nodes=("m",) * targets).votes_needed
    assert 1 == FanoutConfig(target_nodes=("m",) * targets, quorum=1).votes_needed


def test_fallback_models_are_asked_unless_that_is_switched_off():
    assert ("a", "b", "c") == ModelConfig(model="a", fallback_models=("b", "c")).models()
    assert ("a",) == ModelConfig(model="a", fallback_models=("b", "c"), enable_fallback=False).models()


def test_a_config_cannot_be_changed():
    config = config_of("model", {"fallback_models": ["a"]})

    with pytest.raises(ValidationError, match="frozen"):
        config.timeout_ms = 5
    assert ("a",) == config.model_dump()["fallback_models"]


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("threshold", [1, 1_000_000], [0, -1, 1_000_001, 1.0, None]),
        ("cooldown_s", [0.0, 0.5, MS_MAX / 1_000], [-0.1, 1e9, float("nan"), float("inf"), "1", None]),
        ("unknown", [], [1]),
    ],
)
def test_a_breaker_is_configured_within_bounds(key, good, bad):
    for value in good:
        assert value == getattr(CircuitBreakerConfig(**{key: value}), key)
    for value in bad:
        with pytest.raises(ValidationError, match=key):
            CircuitBreakerConfig(**{key: value})


# --- beyond single values --------------------------------------------------------------------------------


def said_of(kind: str, config: dict[str, Any]) -> list[str]:
    """`severity code place-inside-the-config` of all that is said about this config."""
    node = {"id": "n", "type": kind, "config": {**NEEDED.get(kind, {}), **config}}
    try:
        problems: tuple[Problem, ...] = graph_with(node).warnings
    except GraphConfigError as error:
        problems = error.problems
    places = [told.path.removeprefix("nodes[0].config").lstrip(".") for told in problems]
    return [f"{told.severity} {told.code} {at}".strip() for told, at in zip(problems, places, strict=True)]


def route(name: str = "a", **more: Any) -> dict[str, Any]:
    return {"name": name, "target": "done", **more}


def step(kind: str, **params: Any) -> dict[str, Any]:
    return {"transforms": [{"type": kind, "params": params}]}


COMPOUND = {"domains": ["a"], "target": "done"}


@pytest.mark.parametrize(
    ("kind", "config", "said"),
    [
        # A gate's expressions are conditions, but for a model only descriptions.
        ("gate", {"conditions": [{**ROUTE, "expression": "x +"}]}, ["error condition conditions[0].expression"]),
        (
            "gate",
            {"mode": "hybrid", "conditions": [{**ROUTE, "expression": "a b"}]},
            ["error condition conditions[0].expression"],
        ),
        ("gate", {"mode": "llm", "conditions": [{**ROUTE, "expression": "good enough, or so"}]}, []),
        ("gate", {"conditions": [{**ROUTE, "expression": "lang"}]}, ["warning unknown_name conditions[0].expression"]),
        ("gate", {"default_target": None}, ["warning gate_without_ways"]),
        # Routers.
        ("router", {"routes": []}, ["warning router_without_ways"]),
        ("router", {"default_route": "A "}, []),
        ("router", {"default_route": "b"}, ["error unknown_route default_route"]),
        ("router", {"routes": [], "default_route": "b"}, ["error unknown_route default_route"]),
        ("router", {"mode": "rules"}, ["error missing_key routes[0]"]),
        ("router", {"mode": "rules", "routes": [route(condition="1")]}, []),
        (
            "router",
            {"mode": "rules", "routes": [route(condition="1"), route(condition="=")]},
            ["error condition routes[1].condition"],
        ),
        (
            "router",
            {"mode": "rules", "routes": [route(condition="lang")]},
            ["warning unknown_name routes[0].condition"],
        ),
        ("router", {"mode": "keywords", "routes": [route(keywords=["x"])]}, []),
        ("router", {"mode": "keywords"}, ["warning never_taken routes[0]"]),
        ("router", {"routes": [route(condition="=")]}, ["warning ignored_key routes[0].condition"]),
        ("router", {"routes": [route(keywords=["x"])]}, ["warning ignored_key routes[0].keywords"]),
        ("router", {"routes": [route(domains=["x"])]}, ["warning ignored_key routes[0].domains"]),
        (
            "router",
            {"fanout_enabled": True, "confidence_threshold": 0.5},
            ["warning ignored_key fanout_enabled", "warning ignored_key confidence_threshold"],
        ),
        ("router", {"prompt_id": "x"}, ["warning unknown_prompt prompt_id"]),
        (
            "router",
            {"mode": "keywords", "multi_label": True, "routes": [route(keywords=["x"])]},
            ["warning ignored_key multi_label"],
        ),
        ("router", {"compound_routes": [COMPOUND]}, ["warning ignored_key compound_routes"]),
        ("router", {"multi_label": True, "compound_routes": [COMPOUND]}, []),
        (
            "router",
            {"multi_label": True, "compound_routes": [{**COMPOUND, "domains": ["A", "b"]}]},
            ["warning unknown_route compound_routes[0].domains[1]"],
        ),
        # Models.
        ("model", {"response_schema": {"type": "object"}}, []),
        ("model", {"response_schema": {"type": "thing"}}, ["error schema response_schema"]),
        (
            "model",
            {"prompt_id": "x", "fallback_strategy": "fastest"},
            ["warning unknown_prompt prompt_id", "warning ignored_key fallback_strategy"],
        ),
        # Tools.
        (
            "tool",
            {"output_field": "x", "input_schema": "a", "output_schema": None},
            [
                "warning ignored_key output_field",
                "warning ignored_key input_schema",
                "warning ignored_key output_schema",
            ],
        ),
        # Fanouts.
        ("fanout", {"quorum": 1}, []),
        ("fanout", {"quorum": 2}, ["warning quorum_out_of_reach quorum"]),
        ("fanout", {"quorum": 2, "aggregation_strategy": "all"}, ["warning ignored_key quorum"]),
        ("fanout", {"require_all_success": True}, []),
        (
            "fanout",
            {"require_all_success": True, "aggregation_strategy": "first_success"},
            ["warning ignored_key require_all_success"],
        ),
        # Loops.
        ("loop", {"fixed_count": 10}, []),
        ("loop", {"fixed_count": 11}, ["error too_many_iterations fixed_count"]),
        ("loop", {"fixed_count": 2, "condition_type": "until_success"}, ["warning ignored_key fixed_count"]),
        ("loop", {"condition_type": "until_condition"}, ["error missing_key"]),
        ("loop", {"condition_type": "while_condition"}, ["error missing_key"]),
        ("loop", {"condition_type": "until_condition", "condition_expression": "last_output == 'x' and iteration"}, []),
        (
            "loop",
            {"condition_type": "while_condition", "condition_expression": "iteration <"},
            ["error condition condition_expression"],
        ),
        (
            "loop",
            {"condition_type": "while_condition", "condition_expression": "lang"},
            ["warning unknown_name condition_expression"],
        ),
        ("loop", {"condition_expression": "iteration <"}, ["warning ignored_key condition_expression"]),
        (
            "loop",
            {"collect_results": False, "pass_iteration_number": False},
            ["warning ignored_key collect_results", "warning ignored_key pass_iteration_number"],
        ),
        # Timeouts.
        ("timeout", {"on_timeout": "fallback"}, ["error missing_key"]),
        ("timeout", {"on_timeout": "fallback", "fallback_response": ""}, []),
        ("timeout", {"fallback_response": "x"}, ["warning ignored_key fallback_response"]),
        # Transforms.
        ("transform", step("truncate", max_length=0), []),
        ("transform", step("truncate"), ["error missing_key transforms[0].params.max_length"]),
        ("transform", step("truncate", max_length=-1), ["error invalid_value transforms[0].params.max_length"]),
        ("transform", step("truncate", max_length=5, sufix="x"), ["error unknown_key transforms[0].params.sufix"]),
        ("transform", step("uppercase", how="much"), ["error unknown_key transforms[0].params.how"]),
        ("transform", step("json_extract"), ["error missing_key transforms[0].params.path"]),
        ("transform", step("json_extract", path=""), ["error invalid_value transforms[0].params.path"]),
        ("transform", step("json_wrap"), []),
        ("transform", step("template"), ["error missing_key transforms[0].params.template"]),
        ("transform", step("split", separator=""), ["error invalid_value transforms[0].params.separator"]),
        ("transform", step("split", separator="x", index="1"), ["error invalid_value transforms[0].params.index"]),
        ("transform", step("join"), ["error missing_key transforms[0].params.separator"]),
        ("transform", step("join", separator=""), []),
        ("transform", step("reverse", anything=1), ["error invalid_value transforms[0].type"]),
        ("transform", {"transforms": [{}]}, []),
        ("transform", {"transforms": [{"step": "strip"}]}, ["error unknown_key transforms[0].step"]),
        ("transform", step("regex_extract"), ["error missing_key transforms[0].params.pattern"]),
        ("transform", step("regex_extract", pattern="(a", group=7), ["error pattern transforms[0].params.pattern"]),
        ("transform", step("regex_extract", pattern=r"(a)\1"), ["error pattern transforms[0].params.pattern"]),
        ("transform", step("regex_extract", pattern="(a)", group=2), ["error pattern transforms[0].params.group"]),
        ("transform", step("regex_extract", pattern="(a)", group=-1), ["error pattern transforms[0].params.group"]),
        ("transform", step("regex_extract", pattern="(?P<x>a)", group="x"), []),
        (
            "transform",
            step("regex_extract", pattern="(?P<x>a)", group="y"),
            ["error pattern transforms[0].params.group"],
        ),
        ("transform", step("regex_replace", pattern="a"), ["error missing_key transforms[0].params.replacement"]),
        ("transform", step("regex_replace", pattern="(a)", replacement=r"\1\0"), []),
        (
            "transform",
            step("regex_replace", pattern="(a)", replacement=r"\2\3"),
            ["error pattern transforms[0].params.replacement"],
        ),
        (
            "transform",
            step("regex_replace", pattern="(?P<x>a)", replacement=r"\g<x>\g<y>"),
            ["error pattern transforms[0].params.replacement"],
        ),
        (
            "transform",
            step("regex_replace", pattern="(a", replacement=r"\9"),
            ["error pattern transforms[0].params.pattern"],
        ),
    ],
    ids=lambda value: short(value) if isinstance(value, dict) else "",
)
def test_what_does_not_fit_together_is_told_at_its_place(kind, config, said):
    assert said == said_of(kind, config)


def test_names_of_loops_are_known_in_loops_and_nowhere_else():
    source = " and ".join(LOOP_NAMES)
    looping = {"condition_type": "until_condition", "condition_expression": source}

    assert [] == said_of("loop", looping)
    assert len(LOOP_NAMES) == len(list(condition_findings(source, ())))


def test_a_file_that_names_every_wrong_value_of_a_transform_tells_each_with_its_place():
    text = framed(
        """
        - id: t
          type: transform
          config:
            transforms:
              - {type: truncate}
              - {type: regex_extract, params: {pattern: "(", group: 3}}
              - {type: split, params: {separator: ",", indx: 1}}
        """,
        "- {from_node: start, to_node: t}\n- {from_node: t, to_node: done}",
    )

    assert [
        ("missing_key", "nodes[0].config.transforms[0].params.max_length", 9, 9),
        ("pattern", "nodes[0].config.transforms[1].params.pattern", 10, 40),
        ("unknown_key", "nodes[0].config.transforms[2].params.indx", 11, 48),
    ] == errors_of(text)


@pytest.mark.parametrize(
    ("kind", "config", "ways", "wrapped"),
    [
        (
            "router",
            {"routes": [route(target="b"), route("x")], "compound_routes": [{**COMPOUND, "target": "c"}]},
            ("b", "done", "c"),
            (),
        ),
        ("gate", {"conditions": [{**route(target="b"), "expression": "1"}], "default_target": "c"}, ("b", "c"), ()),
        ("gate", {}, (), ()),
        ("fanout", {"target_nodes": ["b", "c", "b"]}, (), ("b", "c", "b")),
        ("loop", {"body_node": "b"}, (), ("b",)),
        ("timeout", {"inner_node": "b"}, (), ("b",)),
        ("transform", {}, (), ()),
    ],
)
def test_ways_and_wrapped_nodes_are_those_that_the_config_names(kind, config, ways, wrapped):
    made = NodeDefinition.model_validate({"id": "n", "type": kind, "config": config}).config

    assert (ways, wrapped) == (made.ways(), made.wrapped())
    assert sorted([*ways, *wrapped]) == sorted(name for _, name in made.references())


def test_the_first_route_of_a_name_is_the_first_in_the_order_of_routes():
    routes = [route("x", target="one"), route(" X ", target="two", priority=1), route("y", priority=1)]
    config = RouterConfig.model_validate({"routes": routes})
    found = config.route_named("x")

    assert [" X ", "y", "x"] == [r.name for r in config.in_order()]
    assert found is not None
    assert "two" == found.target
    assert config.route_named("z") is None


@pytest.mark.parametrize(
    ("config", "at_once", "stops"),
    [
        ({}, 3, False),
        ({"parallel": False}, 1, False),
        ({"max_parallel_branches": 2}, 2, False),
        ({"parallel": False, "max_parallel_branches": 2}, 1, False),
        ({"fail_fast": True}, 3, True),
        ({"fail_fast": True, "aggregation_strategy": "first_success"}, 3, False),
    ],
)
def test_a_fanout_knows_how_many_run_at_once_and_whether_a_failure_stops_it(config, at_once, stops):
    made = FanoutConfig.model_validate({"target_nodes": ["a", "b", "c"], **config})

    assert (at_once, stops) == (made.at_once, made.stops_at_failure)


@pytest.mark.parametrize(
    ("config", "count"),
    [({}, 10), ({"fixed_count": 3}, 3), ({"fixed_count": 3, "condition_type": "until_success"}, 10)],
)
def test_a_loop_knows_how_often_it_runs_at_most(config, count):
    assert count == LoopConfig.model_validate({"body_node": "m", **config}).count


# --- definitions -----------------------------------------------------------------------------------------


def test_a_definition_makes_its_config_of_a_mapping_or_of_nothing():
    def made(**more: Any) -> NodeDefinition:
        return NodeDefinition.model_validate({"id": "n", "type": "model", **more})

    assert ModelConfig(model="x") == made(config={"model": "x"}).config
    assert ModelConfig() == made(config=None).config == made().config
    assert made(config={"model": "x"}) == NodeDefinition(id="n", type=NodeType.MODEL, config=ModelConfig(model="x"))


def test_a_definition_demands_the_config_of_its_type():
    with pytest.raises(ValidationError, match="has a ExitConfig, not a ModelConfig"):
        NodeDefinition(id="n", type=NodeType.EXIT, config=ModelConfig())
    with pytest.raises(ValidationError, match="there is no node type 'modle'"):
        NodeDefinition(id="n", type="modle", config=ModelConfig())
    with pytest.raises(ValidationError, match="temperature"):
        NodeDefinition.model_validate({"id": "n", "type": "model", "config": {"temperature": 3}})


def test_a_definition_knows_its_type_by_any_spelling():
    for spelling in ("fanout", "dynamic_fanout", NodeType.FANOUT):
        made = NodeDefinition.model_validate({"id": "n", "type": spelling, "config": VOTE})
        assert NodeType.FANOUT is made.type
        assert isinstance(made.config, FanoutConfig)


def test_a_dumped_definition_holds_the_whole_config_and_the_params_of_its_steps():
    transforms = [{"type": "truncate", "params": {"max_length": 3, "suffix": ""}}, {"type": "strip", "params": {}}]
    made = NodeDefinition.model_validate({"id": "n", "type": "transform", "config": {"transforms": transforms}})

    assert transforms == made.model_dump(mode="json")["config"]["transforms"]
    assert made == NodeDefinition.model_validate(made.model_dump(mode="json"))


def test_steps_have_the_parameters_of_their_types():
    extract = {"type": "regex_extract", "params": {"pattern": "a"}}
    config = TransformConfig.model_validate(
        {"transforms": [{"type": "truncate", "params": {"max_length": 3}}, extract]}
    )

    assert [TruncateParams(max_length=3, suffix="..."), ExtractParams(pattern="a", group=0)] == [
        step.params for step in config.transforms
    ]


def test_the_parts_of_a_node_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        EdgeDefinition(from_node="a", to_node="b").priority = 3


# --- keys ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["entry", "exit"])
@pytest.mark.parametrize("key", ["input_schema", "output_schema"])
def test_a_schema_of_an_entry_or_exit_has_no_effect_and_a_warning(kind, key):
    if kind == "exit":
        text, index, line = EVERY_TYPE.replace("{status: failure", f"{{{key}: {{}}, status: failure"), 8, 31
    else:
        text, index, line = EVERY_TYPE.replace("      required", f"      {key}: {{}}\n      required"), 0, 11

    assert [("ignored_key", f"nodes[{index}].config.{key}", line)] == [found[:3] for found in warnings_of(text)]


@pytest.mark.parametrize(
    "key",
    ["stream", "tools", "tools_enabled", "tool_ids", "output_format", "input_schema", "output_schema"],
)
@pytest.mark.parametrize("value", [None, False, [], {"any": ["thing"]}])
def test_a_key_of_the_0_1_format_without_meaning_gives_a_warning_whatever_its_value(key, value):
    graph = graph_with({"id": "n", "type": "model", "config": {key: value}})

    assert [("ignored_key", f"nodes[0].config.{key}")] == [(found.code, found.path) for found in graph.warnings]
    assert ModelConfig() == graph.nodes["n"].config


def test_a_fallback_strategy_and_a_prompt_id_are_warned_about():
    text = framed(
        "- {id: m, type: model, config: {fallback_strategy: fastest, prompt_id: a/b}}",
        "- {from_node: start, to_node: m}\n- {from_node: m, to_node: done}",
    )

    assert [
        ("ignored_key", "nodes[0].config.fallback_strategy", 5, 33),
        ("unknown_prompt", "nodes[0].config.prompt_id", 5, 61),
    ] == warnings_of(text)
    assert ["'fastest'", "'a/b'"] == [warning.value for warning in parse_graph(text).warnings]


TYPES = "entry, exit, transform, router, gate, model, tool, fanout, loop, timeout"


@pytest.mark.parametrize(
    ("kind", "hint"),
    [
        ("modle", "Did you mean model?"),
        ("Model", "Did you mean model?"),
        ("rooter", "Did you mean router?"),
        ("", f"One of {TYPES}."),
        ("x" * 1_000, f"One of {TYPES}."),
    ],
)
def test_an_unknown_node_type_is_refused_with_the_type_it_may_have_been(kind, hint):
    problem = problem_of({"id": "n", "type": kind})

    assert ("unknown_type", "nodes[0].type", "unknown node type") == (problem.code, problem.path, problem.message)
    assert hint == problem.hint


@pytest.mark.parametrize("kind", ["reasoning", "custom"])
def test_the_types_of_the_0_1_format_that_are_not_run_here_are_refused_as_such(kind):
    problem = problem_of({"id": "n", "type": kind, "config": {"anything": 1}})

    assert ("unknown_type", "nodes[0].type", repr(kind)) == (problem.code, problem.path, problem.value)
    assert f"the node type {kind!r} of the 0.1 format is not run here" == problem.message
    assert "@node_type" in str(problem.hint)


def test_dynamic_fanout_is_a_fanout():
    assert NodeType.FANOUT is graph_with({"id": "n", "type": "dynamic_fanout", "config": VOTE}).nodes["n"].type


@pytest.mark.parametrize("config", [None, {}, "absent"])
def test_a_node_may_have_no_config(config):
    node = {"id": "n", "type": "model", **({} if config == "absent" else {"config": config})}

    assert ModelConfig() == graph_with(node).nodes["n"].config


@pytest.mark.parametrize(
    ("lines", "path", "column", "hint"),
    [
        ("- {id: m, type: model, nmae: x}", "nodes[0].nmae", 24, "Did you mean name?"),
        ("- {id: m, type: model, config: {timeout: 1}}", "nodes[0].config.timeout", 33, "Did you mean timeout_ms?"),
        ("- {id: m, type: gate, config: {conditions: [{nam: a}]}}", "nodes[0].config.conditions[0].nam", 46, None),
        ("- {id: m, type: model, config: {a b: 1}}", "nodes[0].config['a b']", 33, None),
        ("- {id: m, type: model, config: {'': 1}}", "nodes[0].config['']", 33, None),
        (r'- {id: m, type: model, config: {"\e[2J": 1}}', r"nodes[0].config['\x1b[2J']", 33, None),
        ("- {id: m, type: model, config: {on_error: done}}", "nodes[0].config.on_error", 33, None),
    ],
)
def test_an_unknown_key_is_refused_with_the_key_it_may_have_been(lines, path, column, hint):
    text = framed(lines, "- {from_node: start, to_node: m}\n- {from_node: m, to_node: done}")
    problem = next(problem for problem in refusal_of(text).problems if problem.code == "unknown_key")

    assert (path, 5, column) == (problem.path, problem.line, problem.column)
    assert hint is None or hint == problem.hint


def test_an_unknown_key_of_a_condition_is_compared_with_the_keys_of_conditions():
    condition = {"name": "a", "expression": "1", "target": "done", "targt": "done", "mode": 1}
    with pytest.raises(GraphConfigError) as error:
        graph_with({"id": "n", "type": "gate", "config": {"conditions": [condition]}})

    assert ["Did you mean target?", "Known keys: name, expression, target."] == [
        problem.hint for problem in error.value.problems
    ]


def test_every_missing_key_is_told_where_it_is_missing():
    text = "nodes:\n  - {}\n  - {id: n, type: fanout}\nedges:\n  - {to_node: n}\nname: g\n"

    assert [
        ("missing_key", "id", 1, 1),
        ("missing_key", "version", 1, 1),
        ("missing_key", "entry_points", 1, 1),
        ("missing_key", "exit_points", 1, 1),
        ("missing_key", "nodes[0].id", 2, 5),
        ("missing_key", "nodes[0].type", 2, 5),
        ("missing_key", "nodes[1].config.target_nodes", 3, 5),
        ("missing_key", "edges[0].from_node", 5, 5),
    ] == errors_of(text)


# --- the top level, nodes and edges ----------------------------------------------------------------------

GOOD_IDS = ["a", "a1", "a_b", "a.b", "a..b.", "x" * 200]
BAD_IDS = ["", "A", "1a", "_a", ".a", "a-b", "a b", "ä", "a\n", "a/b", "x" * 201]


@pytest.mark.parametrize("node_id", GOOD_IDS)
def test_an_id_starts_with_a_small_letter(node_id):
    graph = build_graph(
        {
            "id": node_id,
            "version": "1.0.0",
            "name": "",
            "nodes": [{"id": "e", "type": "entry", "on_error": node_id}, {"id": node_id, "type": "exit"}],
            "edges": [{"from_node": "e", "to_node": node_id}],
            "entry_points": ["e"],
            "exit_points": [node_id],
            "protected": [node_id],
        }
    )

    assert (node_id,) == graph.ways("e")


@pytest.mark.parametrize("node_id", [*BAD_IDS, 5, None, True, ["a"]])
@pytest.mark.parametrize(
    "path",
    [
        *("id", "nodes[0].id", "nodes[0].on_error", "edges[0].from_node", "edges[0].to_node"),
        *("entry_points[0]", "exit_points[0]", "protected[0]"),
    ],
)
def test_no_other_text_and_no_other_value_is_an_id(path, node_id):
    if (path, node_id) == ("nodes[0].on_error", None):
        return
    node: dict[str, Any] = {"id": "n", "type": "model"}
    top: dict[str, Any] = {}
    match path.split("[")[0], path.split(".")[-1]:
        case "nodes", key:
            node[key] = node_id
        case "edges", key:
            top["edges"] = [{"from_node": "start", "to_node": "done", key: node_id}]
        case "id", _:
            top["id"] = node_id
        case key, _:
            top[key] = [node_id]

    with pytest.raises(GraphConfigError) as error:
        graph_with(node, **top)

    assert "invalid_value" in [problem.code for problem in error.value.problems if problem.path == path]


@pytest.mark.parametrize(
    "version",
    ["1.0", "1", "1.0.0.0", "v1.0.0", "1.0.0-rc1", "1.0.x", "", " 1.0.0", "1.0.0\n", "\u0661.0.0", 1.0, None],
)
def test_a_version_is_three_numbers(version):
    problem = problem_of({"id": "n", "type": "model"}, version=version)

    assert ("invalid_value", "version") == (problem.code, problem.path)


def test_a_version_that_yaml_reads_as_a_number_needs_quotes():
    assert "Put it in quotes." == refusal_of(framed().replace("version: 1.0.0", "version: 1.0")).problems[0].hint


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5),
        ("name", None),
        ("description", ["x"]),
        ("metadata", []),
        ("metadata", "x"),
        ("nodes", {}),
        ("nodes", []),
        ("nodes", None),
        ("edges", {}),
        ("edges", "x"),
        ("entry_points", []),
        ("entry_points", "start"),
        ("entry_points", None),
        ("exit_points", {}),
        ("protected", "start"),
        ("allow_cycles", "yes"),
        ("allow_cycles", 1),
        ("allow_cycles", None),
    ],
)
def test_a_top_level_value_of_another_type_is_refused_by_its_key(key, value):
    with pytest.raises(GraphConfigError) as error:
        graph_with({"id": "n", "type": "model"}, **{key: value})

    assert ("invalid_value", key) in [(problem.code, problem.path) for problem in error.value.problems]


@pytest.mark.parametrize("top", [{"metadata": None}, {"description": None}, {"protected": None}])
def test_an_optional_key_may_be_null(top):
    graph_with({"id": "n", "type": "model"}, **top)


def test_a_graph_may_have_no_edges():
    text = framed(edges="").replace("type: entry", "type: entry, on_error: done")

    assert () == parse_graph(text).definition.edges
    assert () == parse_graph(text.replace("edges:\n", "")).definition.edges


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("weight", [0, 1, 0.5], [-0.1, 1.1, float("nan"), "1", True, None]),
        ("priority", [0, -(2**31), 2**31 - 1], [2**31, -(2**31) - 1, 1.0, "1", True, None]),
        ("condition", [None, "1"], [5, True, ["1"]]),
        ("from_node", ["start"], [5, None]),
        ("to", [], ["done"]),
    ],
)
def test_an_edge_has_its_fields_within_bounds(key, good, bad):
    def edges(value: Any) -> list[Any]:
        way = {"from_node": "start", "to_node": "n"}
        return [{**way, key: value}, way, *({"from_node": node, "to_node": "done"} for node in ("n", "m"))]

    for value in good:
        graph_with({"id": "n", "type": "model"}, edges=edges(value))
    for value in bad:
        with pytest.raises(GraphConfigError) as error:
            graph_with({"id": "n", "type": "model"}, edges=edges(value))
        assert f"edges[0].{key}" in [problem.path for problem in error.value.problems]


@pytest.mark.parametrize("raw", [None, 5, "text", [], [1]])
@pytest.mark.parametrize("part", ["nodes", "edges"])
def test_a_node_or_an_edge_that_is_no_mapping_is_refused(part, raw):
    text = framed().replace(f"{part}:\n", f"{part}:\n- {raw if raw is not None else '~'}\n")

    assert ("invalid_value", f"{part}[0]") in [found[:2] for found in errors_of(text)]


def test_a_list_of_wrong_items_is_not_also_called_empty():
    assert [("invalid_value", "exit_points[0]", 11, 15)] == errors_of(
        framed().replace("exit_points: [done]", "exit_points: [5]")
    )


def test_metadata_is_free_and_may_be_deep_but_is_json():
    deep = {"a": {"b": [1, None, {"c": "é"}]}}

    assert deep == graph_with({"id": "n", "type": "model"}, metadata=deep).definition.metadata
    assert "metadata" == problem_of({"id": "n", "type": "model"}, metadata={"a": float("nan")}).path
    assert "metadata" == problem_of({"id": "n", "type": "model"}, metadata={"a": (1,)}).path


@pytest.mark.parametrize("key", [5, None, 1.5, (1,), b"x"])
def test_keys_that_are_no_text_are_refused(key):
    with pytest.raises(GraphConfigError):
        graph_with({"id": "n", "type": "model"}, metadata={key: 1})
    with pytest.raises(GraphConfigError):
        graph_with({"id": "n", "type": "model", key: 1})
    with pytest.raises(GraphConfigError):
        build_graph({key: 1})


# --- conditions ------------------------------------------------------------------------------------------


def test_names_that_something_sets_are_known():
    known = "task content structured route confidence tool_call tool_result tool_calls error metadata variables"

    for name in (*known.split(), "matched_condition", "routes", "compound_route"):
        assert [] == list(condition_findings(f"len({name}) == 1", ()))


def test_an_unknown_name_is_a_warning_each_once_with_the_name_it_may_have_been():
    found = [problem for _, problem in condition_findings("conten == lang or conten == 1", ("edges", 0))]

    assert [
        ("warning", "unknown_name", "nothing is known to set 'conten'", "Did you mean content?"),
        ("warning", "unknown_name", "nothing is known to set 'lang'", "A payload key that is not set is null."),
    ] == [(problem.severity, problem.code, problem.message, problem.hint) for problem in found]


def test_every_unknown_name_is_told_and_only_the_first_are_compared(monkeypatch):
    compared: list[str] = []

    def compare(word: str, *_: Any) -> list[str]:
        compared.append(word)
        return []

    monkeypatch.setattr(difflib, "get_close_matches", compare)

    found = list(condition_findings(" or ".join(f"name{number}" for number in range(20)), ()))

    assert [f"nothing is known to set 'name{number}'" for number in range(20)] == [told.message for _, told in found]
    assert ["name0", "name1", "name2"] == compared


def test_a_condition_that_does_not_parse_is_one_error_that_quotes_it():
    ((path, problem),) = condition_findings("x +", ("edges", 0, "condition"))

    assert ("edges", 0, "condition") == path
    assert ("error", "condition", "'x +'") == (problem.severity, problem.code, problem.value)


# --- words -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("id",), "id"),
        (("nodes", 3, "config", "timeout_ms"), "nodes[3].config.timeout_ms"),
        ((0, "a"), "[0].a"),
        (("a b",), "['a b']"),
        (("a", "b-c", "d"), "a['b-c'].d"),
        (("a", "5"), "a['5']"),
        (("a", ""), "a['']"),
        (("a", "it's\n"), 'a["it\'s\\n"]'),
        (("a", "\ud800"), "a['\\ud800']"),
        (("a", "x" * 61), f"a['{'x' * 57}'... (61 characters)]"),
    ],
)
def test_a_path_is_spelled_as_people_write_it(path, text):
    assert text == spelled(path)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        ("x" * 60, repr("x" * 60)),
        ("x" * 61, f"'{'x' * 57}'... (61 characters)"),
        ("\x1b[2J", r"'\x1b[2J'"),
        (5, "5"),
        ({"a": [1]}, "{'a': [1]}"),
    ],
)
def test_a_value_is_shown_as_python_spells_it(value, text):
    assert text == short(value)


def test_a_number_too_long_to_spell_is_shown_by_its_type():
    assert ("int", "list") == (short(10**5_000), short([10**5_000]))


@given(json_values(max_leaves=40) | st.text() | st.lists(st.text(min_size=50)))
def test_a_value_is_shown_on_one_short_printable_line(value):
    assert short(value).isprintable()
    assert len(short(value)) <= 300


def test_a_value_is_never_spelled_out_in_full():
    spelled_out = 0

    class Counted:
        def __repr__(self) -> str:
            nonlocal spelled_out
            spelled_out += 1
            return "x" * 1_000_000

    assert len(short([Counted()] * 10_000)) <= 80
    assert len(short({number: Counted() for number in range(10_000)})) <= 80
    assert len(short([[Counted()] * 100] * 100)) <= 80
    assert spelled_out <= 1_000


def test_a_value_repeated_by_aliases_is_not_repeated_in_the_refusal():
    text = framed().replace("name: g", f"name: {{a: &a {'x' * 9_000}, b: [{'*a, ' * 900}]}}")

    assert [("invalid_value", "name", 3, 7)] == errors_of(text)
    assert len(str(refusal_of(text))) < 1_000


def test_a_problem_is_told_on_one_line():
    problem = refusal_of(framed().replace("name: g", "name: 5")).problems[0]

    assert "3:1: error: this should be a valid string (got 5) at name [invalid_value]. Put it in quotes." == str(
        problem
    )
