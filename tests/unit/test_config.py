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
    UNBUILT_TYPES,
    ExecutorConfig,
    FanoutConfig,
    GateConfig,
    ModelConfig,
    NodeConfig,
    NodeType,
    condition_findings,
    short,
    spelled,
)
from tinyllm.errors import GraphConfigError, Problem
from tinyllm.graph import Graph, build_graph, parse_graph
from tinyllm.message import checked_json
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit

VOTE = {"target_nodes": ["m"], "aggregation_strategy": "majority_vote"}
WAY = {"default_target": "done"}
MS_MAX = 2**31 - 1


def graph_with(node: Any, **top: Any) -> Graph:
    """A graph in which `node`, which is `nodes[0]`, may be anything: if it is sound, it loads."""
    ends = [{"id": "start", "type": "entry", "on_error": "m"}, {"id": "done", "type": "exit"}]
    others = [*ends, {"id": "m", "type": "model"}]
    edges = [{"from_node": a, "to_node": b} for a, b in (("start", "n"), ("n", "done"), ("m", "done"))]
    fields = {"id": "g", "version": "1.0.0", "name": "g", "entry_points": ["start"], "exit_points": ["done"]}
    return build_graph({**fields, "nodes": [node, *others], "edges": edges, **top})


def config_of(kind: str, config: Any) -> NodeConfig:
    needed: dict[str, dict[str, Any]] = {"fanout": VOTE, "gate": WAY}
    graph = graph_with({"id": "n", "type": kind, "config": {**needed.get(kind, {}), **config}})
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

EVERY = ("model", "gate", "fanout")
SOUND: list[tuple[tuple[str, ...], str, list[Any]]] = [
    (EVERY, "timeout_ms", [1, MS_MAX]),
    (EVERY, "retry_count", [0, 1_000]),
    (EVERY, "retry_delay_ms", [0, MS_MAX]),
    (EVERY, "retry_backoff", ["fixed", "exponential"]),
    (("model", "gate"), "model", ["a", "qwen2.5:3b"]),
    (("model",), "system_prompt", [None, "", "x"]),
    (("model",), "prompt_template", [None, "", "{content}"]),
    (("model",), "prompt_id", [None, "a/b"]),
    (("model",), "temperature", [0, 0.0, 2, 1.5]),
    (("model",), "max_tokens", [None, 1, 1_000_000]),
    (("model",), "enable_fallback", [True, False]),
    (("model",), "fallback_models", [[], ["a", "a"]]),
    (("model",), "fallback_timeout_ms", [None, 1, MS_MAX]),
    (("model",), "fallback_strategy", ["sequential", "fastest"]),
    (("gate",), "mode", ["expression", "llm", "hybrid"]),
    (("gate",), "conditions", [[], [{"name": "a", "expression": "1", "target": "done"}]]),
    (("gate",), "evaluation_prompt", [None, "", "x"]),
    (("fanout",), "target_nodes", [["m"], ["m", "m"], ["m"] * 1_000]),
    (("fanout",), "quorum", [None, 1, 1_001]),
    (("fanout",), "parallel", [True, False]),
    (("fanout",), "max_parallel_branches", [None, 1]),
    (("fanout",), "require_all_success", [True, False]),
    (("fanout",), "fail_fast", [True, False]),
    (("fanout",), "score_field", ["x"]),
]
WRONG: list[tuple[tuple[str, ...], str, list[Any]]] = [
    (EVERY, "timeout_ms", [0, -1, MS_MAX + 1, 1.0, "1", True, None, [1]]),
    (EVERY, "retry_count", [-1, 1_001, 1.0, False, "0", None]),
    (EVERY, "retry_delay_ms", [-1, MS_MAX + 1, 0.5, None]),
    (EVERY, "retry_backoff", ["linear", "", None, 1]),
    (("model", "gate"), "model", ["", None, 3, ["a"], "\ud800"]),
    (("model",), "system_prompt", [5, ["x"], "\udfff"]),
    (("model",), "prompt_template", [5, {}]),
    (("model",), "prompt_id", [5]),
    (("model",), "temperature", [-0.1, 2.1, float("nan"), float("inf"), True, "0.5", None]),
    (("model",), "max_tokens", [0, 1_000_001, 1.5, "many"]),
    (("model",), "enable_fallback", ["yes", 1, None]),
    (("model",), "fallback_models", ["a", None, [""], [5], {}]),
    (("model",), "fallback_timeout_ms", [0, 0.5]),
    (("gate",), "mode", ["model", None]),
    (("gate",), "conditions", [None, {}, "x", ["x"], [{}]]),
    (("gate",), "evaluation_prompt", [5]),
    (("fanout",), "target_nodes", [[], None, "m", [5], ["M"], {}, ["m"] * 1_001]),
    (("fanout",), "aggregation_strategy", ["vote", None, "all", "first_success", "best_score"]),
    (("fanout",), "quorum", [0, -1, 1.0, True]),
    (("fanout",), "parallel", [1, None]),
    (("fanout",), "max_parallel_branches", [0, "1"]),
    (("fanout",), "score_field", ["", None]),
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
    needed: dict[str, dict[str, Any]] = {"fanout": VOTE, "gate": WAY}
    node = {"id": "n" if kind in EVERY else "k", "type": kind, "config": {**needed.get(kind, {}), key: value}}

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
    assert {
        "max_steps": 100,
        "timeout_ms": 600_000,
        "cancel_grace_ms": 1_000,
        "failure_policy": "fail_fast",
        "fallback_response": "",
        "max_node_failures": 3,
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


@pytest.mark.parametrize("key", ["response_schema", "repair_attempts"])
def test_what_is_not_built_yet_is_refused_and_never_ignored(key):
    problem = problem_of({"id": "n", "type": "model", "config": {key: 1}})

    assert ("unbuilt", f"nodes[0].config.{key}") == (problem.code, problem.path)


@pytest.mark.parametrize("kind", sorted(UNBUILT_TYPES))
def test_a_node_type_that_is_not_built_yet_is_refused_as_such(kind):
    problem = problem_of({"id": "n", "type": kind, "config": {"anything": 1}})

    assert ("unbuilt", "nodes[0].type") == (problem.code, problem.path)
    assert "This version runs entry, exit, model, gate, fanout." == problem.hint


@pytest.mark.parametrize("kind", ["reasoning", "custom", "Model", "", "modle", "x" * 1_000])
def test_an_unknown_node_type_is_refused(kind):
    problem = problem_of({"id": "n", "type": kind})

    assert ("unknown_type", "nodes[0].type") == (problem.code, problem.path)
    assert "One of entry, exit, model, gate, fanout." == problem.hint


def test_dynamic_fanout_is_a_fanout():
    assert NodeType.FANOUT is graph_with({"id": "n", "type": "dynamic_fanout", "config": VOTE}).nodes["n"].type


@pytest.mark.parametrize("strategy", [{}, {"aggregation_strategy": "all"}])
def test_a_fanout_must_say_majority_vote(strategy):
    problem = problem_of({"id": "n", "type": "fanout", "config": {"target_nodes": ["m"], **strategy}})

    assert ("unbuilt", "nodes[0].config.aggregation_strategy") == (problem.code, problem.path)


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

    assert (
        "3:1: error: this should be a valid string (got 5) at name [invalid_value]. Put it in quotes." == str(problem)
    )
