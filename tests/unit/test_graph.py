"""How the parts of a graph fit together: its ways, and every error and warning about its structure."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tests.support.graphs_text import EVERY_TYPE, errors_of, framed, judged, refusal_of, warnings_of
from tinyllm import graph as graph_module
from tinyllm.config import NodeType
from tinyllm.errors import GraphConfigError
from tinyllm.graph import Graph, build_graph, load_graph, parse_graph
from tinyllm_strategies.graphs import graphs
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit

#: A graph as version 0.1 wrote them: dotted ids, edges from the fanout to its targets, keys that have no effect here.
OLD = """\
# Multi-model consensus
id: workflow.consensus
version: "1.0.0"
name: Multi-Model Consensus
description: |
  Asks three models at once.

nodes:
  - id: entry.main
    type: entry
    name: Entry
    description: Entry point
    config:
      required_fields: []
      input_schema: {type: object}

  - id: fanout.models
    type: dynamic_fanout
    name: Fanout
    config:
      target_nodes:
        - model.primary
        - model.secondary
        - model.tertiary
      aggregation_strategy: majority_vote
      parallel: true
      timeout_ms: 30000
      require_all_success: false

  - id: model.primary
    type: model
    config:
      model: "qwen2.5:3b"
      temperature: 0.5
      stream: false
      enable_fallback: true
      fallback_models:
        - "qwen2.5:1.5b"
      fallback_strategy: "fastest"
      fallback_timeout_ms: 15000
  - id: model.secondary
    type: model
    config: {}
  - id: model.tertiary
    type: model

  - id: exit.success
    type: exit
    config:
      status: success

edges:
  - from_node: entry.main
    to_node: fanout.models
    weight: 1.0
  - from_node: fanout.models
    to_node: model.primary
  - from_node: fanout.models
    to_node: model.secondary
  - from_node: fanout.models
    to_node: model.tertiary
  - from_node: fanout.models
    to_node: exit.success

entry_points:
  - entry.main
exit_points:
  - exit.success
protected:
  - entry.main
  - exit.success

metadata:
  created_at: 2025-01-15
  author: TinyLLM
  tags: [fanout, parallel]
"""


def chain(*ids: str) -> str:
    """Edges from each of these nodes to the next."""
    return "\n".join(f"- {{from_node: {a}, to_node: {b}}}" for a, b in pairwise(ids))


def fanout(node_id: str, *targets: str) -> str:
    config = f"{{aggregation_strategy: majority_vote, target_nodes: [{', '.join(targets)}]}}"
    return f"- {{id: {node_id}, type: fanout, config: {config}}}\n"


def model(*ids: str) -> str:
    return "".join(f"- {{id: {node_id}, type: model}}\n" for node_id in ids)


# --- what loads ------------------------------------------------------------------------------------------


def test_a_graph_of_every_type_loads_without_a_word():
    graph = parse_graph(EVERY_TYPE)

    assert () == graph.warnings
    assert ("support.triage", "start") == (graph.id, graph.entry)
    first = ["start", "look", "answer", "ask", "one", "two", "three", "done", "failed"]
    assert [*first, "back", "sort", "count", "shorten", "again", "quick"] == list(graph.nodes)
    assert set(NodeType) == {node.type for node in graph.nodes.values()}


def test_a_file_of_the_0_1_format_loads_and_names_what_has_no_effect():
    graph = parse_graph(OLD)

    assert NodeType.FANOUT is graph.nodes["fanout.models"].type
    assert ("exit.success",) == graph.ways("fanout.models")
    assert {"created_at": "2025-01-15", "author": "TinyLLM", "tags": ["fanout", "parallel"]} == (
        graph.definition.metadata
    )
    assert [
        ("ignored_key", "nodes[0].config.input_schema", 15, 21),
        ("ignored_key", "nodes[2].config.stream", 35, 7),
        ("ignored_key", "nodes[2].config.fallback_strategy", 39, 7),
    ] == warnings_of(OLD)


@pytest.mark.parametrize("text", [EVERY_TYPE, OLD])
def test_yaml_json_and_plain_values_are_the_same_graph(text):
    value = yaml.load(text, yaml.BaseLoader)  # every scalar as text, only to see that it is refused
    with pytest.raises(GraphConfigError):
        build_graph(value)
    graph = parse_graph(text)
    value = json.loads(json.dumps(graph.document.value if graph.document else None))

    for other in (json.dumps(value), json.dumps(value, indent="\t"), yaml.safe_dump(value)):
        assert graph.definition == parse_graph(other).definition
        assert graph.digest == parse_graph(other).digest
    assert graph.definition == build_graph(value).definition


def test_a_graph_file_is_read_like_its_text(tmp_path):
    path = tmp_path / "graph.yaml"
    path.write_text(EVERY_TYPE)

    assert parse_graph(EVERY_TYPE).definition == load_graph(path).definition == load_graph(str(path)).definition


def test_a_refused_file_is_named_in_the_error(tmp_path):
    path = tmp_path / "graph.yaml"
    path.write_text("[]")

    with pytest.raises(GraphConfigError) as error:
        load_graph(path)

    assert str(path) == error.value.source
    assert f"{path}: 1 problem\n  1:1: error: a list; a graph file is a mapping" in str(error.value)


def test_a_graph_built_from_values_has_problems_without_places():
    with pytest.raises(GraphConfigError) as error:
        build_graph({"id": "g"})

    assert {(None, None)} == {(problem.line, problem.column) for problem in error.value.problems}


def test_the_digest_tells_graphs_apart_and_not_texts():
    assert parse_graph(EVERY_TYPE).digest == parse_graph("# a comment\n" + EVERY_TYPE).digest
    assert parse_graph(EVERY_TYPE).digest != parse_graph(EVERY_TYPE.replace("retry_count: 2", "retry_count: 3")).digest


@given(graphs())
def test_every_drawn_graph_loads_again_from_its_own_definition(graph):
    value = graph.definition.model_dump(mode="json")

    assert graph.definition == build_graph(value).definition == parse_graph(json.dumps(value)).definition


# --- ways ------------------------------------------------------------------------------------------------


def test_edges_are_asked_by_priority_then_in_the_order_of_the_file():
    edges = """
    - {from_node: start, to_node: done, condition: "1", priority: -1}
    - {from_node: start, to_node: a}
    - {from_node: start, to_node: b, condition: "1", priority: 2}
    - {from_node: start, to_node: c, condition: "1"}
    - {from_node: start, to_node: d, condition: "1", priority: 2}
    - {from_node: a, to_node: done}
    - {from_node: b, to_node: done}
    - {from_node: c, to_node: done}
    - {from_node: d, to_node: done}
    """
    graph = parse_graph(framed(model("a", "b", "c", "d"), edges))

    assert ["b", "d", "a", "c", "done"] == [edge.to_node for edge in graph.edges_from("start")]
    assert ("b", "d", "a", "c", "done") == graph.ways("start")


def test_the_ways_are_edges_then_the_targets_of_the_config_then_on_error_each_once():
    graph = parse_graph(EVERY_TYPE)

    assert ("answer", "ask") == graph.ways("look")
    assert ("failed", "done") == graph.ways("answer")
    assert ("done",) == graph.ways("ask")
    assert () == graph.ways("done") == graph.ways("missing")


def test_an_edge_of_a_wrapper_to_a_node_it_wraps_is_no_way():
    graph = parse_graph(framed(fanout("f", "m") + model("m"), chain("start", "f", "m") + "\n" + chain("f", "done")))

    assert ["done"] == [edge.to_node for edge in graph.edges_from("f")]
    assert () == graph.warnings


def test_an_edge_from_an_exit_is_no_way():
    graph = parse_graph(framed(edges=chain("start", "done", "start")))

    assert () == graph.ways("done")
    assert () == graph.edges_from("done")


def test_a_node_may_be_visited_and_wrapped_and_wrapped_twice():
    text = framed(fanout("f", "m", "m") + fanout("g", "m", "f") + model("m"), chain("start", "m", "f", "g", "done"))

    assert [] == warnings_of(text)


def test_the_ways_of_a_wrapped_node_are_ignored():
    text = framed(fanout("f", "m") + "- {id: m, type: model, on_error: m}\n", chain("start", "f", "done"))

    assert [] == warnings_of(text)


# --- errors ----------------------------------------------------------------------------------------------

ERRORS: dict[str, tuple[str, list[Any]]] = {
    "a duplicate id": (
        framed(model("m", "m", "m"), chain("start", "m", "done")),
        [("duplicate_id", "nodes[1].id", 6, 4), ("duplicate_id", "nodes[2].id", 7, 4)],
    ),
    "an edge from nowhere": (
        framed(edges=chain("start", "done") + "\n" + chain("ghost", "done")),
        [("unknown_node", "edges[1].from_node", 10, 4)],
    ),
    "an edge to nowhere": (
        framed(edges=chain("start", "done") + "\n" + chain("start", "ghost")),
        [("unknown_node", "edges[1].to_node", 10, 22)],
    ),
    "an error way to nowhere": (
        framed("- {id: m, type: model, on_error: ghost}", chain("start", "m", "done")),
        [("unknown_node", "nodes[0].on_error", 5, 24)],
    ),
    "targets that are nowhere": (
        framed(fanout("f", "ghost", "m", "spirit") + model("m"), chain("start", "f", "done")),
        [
            ("unknown_node", "nodes[0].config.target_nodes[0]", 5, 86),
            ("unknown_node", "nodes[0].config.target_nodes[2]", 5, 96),
        ],
    ),
    "a gate that leads nowhere": (
        framed(
            """
            - id: g
              type: gate
              config:
                conditions:
                  - {name: a, expression: "1", target: ghost}
                default_target: spirit
            """,
            chain("start", "g", "done"),
        ),
        [
            ("unknown_node", "nodes[0].config.conditions[0].target", 9, 36),
            ("unknown_node", "nodes[0].config.default_target", 10, 5),
        ],
    ),
    "points that are nowhere": (
        framed(more="protected: [start, ghost]\n")
        .replace("entry_points: [start]", "entry_points: [start, ghost]")
        .replace("exit_points: [done]", "exit_points: [ghost, done]"),
        [
            ("unknown_node", "entry_points[1]", 10, 23),
            ("unknown_node", "exit_points[0]", 11, 15),
            ("unknown_node", "protected[1]", 12, 20),
        ],
    ),
    "an entry that is an exit": (
        framed().replace("entry_points: [start]", "entry_points: [start, done]"),
        [("wrong_type", "entry_points[1]", 10, 23)],
    ),
    "an exit that is a model": (
        framed(model("m"), chain("start", "m", "done")).replace("exit_points: [done]", "exit_points: [m]"),
        [("wrong_type", "exit_points[0]", 12, 15)],
    ),
    "a wrapped entry and a wrapped exit": (
        framed(fanout("f", "m", "start", "done") + model("m"), chain("start", "f") + "\n" + chain("f", "done"))
        .replace("from_node: f, to_node: done", "from_node: f, to_node: done2")
        .replace("- {id: done, type: exit}", "- {id: done, type: exit}\n- {id: done2, type: exit}"),
        [
            ("wrapped_point", "nodes[0].config.target_nodes[1]", 5, 89),
            ("wrapped_point", "nodes[0].config.target_nodes[2]", 5, 96),
        ],
    ),
    "a wrapper that contains itself": (
        framed(fanout("f", "m", "f") + model("m"), chain("start", "f", "done")),
        [("contains_itself", "nodes[0].config.target_nodes[1]", 5, 89)],
    ),
    "wrappers that contain each other, and one that only contains them": (
        framed(
            fanout("a", "b") + fanout("b", "m", "c") + fanout("c", "a") + fanout("d", "a", "m") + model("m"),
            chain("start", "d", "done"),
        ),
        [
            ("contains_itself", "nodes[0].config.target_nodes[0]", 5, 86),
            ("contains_itself", "nodes[1].config.target_nodes[1]", 6, 89),
            ("contains_itself", "nodes[2].config.target_nodes[0]", 7, 86),
        ],
    ),
    "no way out": (
        framed(model("m", "n"), chain("start", "m", "n") + "\n" + chain("start", "done")),
        [("no_way_out", "nodes[0]", 5, 3), ("no_way_out", "nodes[1]", 6, 3)],
    ),
    "no way out but by a node that cannot be visited": (
        framed(model("m", "n"), chain("start", "m") + "\n" + chain("n", "done") + "\n" + chain("start", "done")),
        [("no_way_out", "nodes[0]", 5, 3)],
    ),
    "an entry point without a way": (
        framed("- {id: start2, type: entry}").replace("entry_points: [start]", "entry_points: [start, start2]"),
        [("no_way_out", "nodes[0]", 5, 3)],
    ),
    "a cycle of edges": (
        framed(model("m", "n"), chain("start", "m", "n", "m") + "\n" + chain("n", "done")),
        [("cycle", "nodes[0]", 5, 3)],
    ),
    "a cycle of one": (
        framed(model("m"), chain("start", "m", "m") + "\n" + chain("m", "done")),
        [("cycle", "nodes[0]", 5, 3)],
    ),
    "a cycle over an error way": (
        framed(
            "- {id: m, type: model, on_error: n}\n" + model("n"), chain("start", "m", "done") + "\n" + chain("n", "m")
        ),
        [("cycle", "nodes[0]", 5, 3)],
    ),
    "a cycle over a gate": (
        framed(
            "- {id: g, type: gate, config: {default_target: done, conditions: [\n"
            "    {name: a, expression: '1', target: m}]}}\n" + model("m"),
            chain("start", "g") + "\n" + chain("m", "g"),
        ),
        [("cycle", "nodes[0]", 5, 3)],
    ),
    "a condition of an edge that does not parse": (
        framed(edges='- {from_node: start, to_node: done, condition: "1 +"}\n' + chain("start", "done")),
        [("condition", "edges[0].condition", 9, 37)],
    ),
    "a condition of a gate that does not parse": (
        framed(
            "- {id: g, type: gate, config: {conditions: [{name: a, expression: import os, target: done}]}}",
            chain("start", "g"),
        ),
        [("condition", "nodes[0].config.conditions[0].expression", 5, 55)],
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_what_does_not_fit_together_is_refused_where_it_stands(name):
    text, expected = ERRORS[name]

    assert expected == errors_of(text)


@pytest.mark.parametrize("name", ERRORS)
def test_without_a_text_the_same_is_refused_in_the_same_words(name):
    text, expected = ERRORS[name]

    with pytest.raises(GraphConfigError) as error:
        build_graph(yaml.safe_load(text))

    assert sorted((code, path, None, None) for code, path, _, _ in expected) == sorted(
        (problem.code, problem.path, problem.line, problem.column) for problem in error.value.problems
    )


def test_cycles_are_allowed_where_the_file_says_so():
    text, _ = ERRORS["a cycle of edges"]

    assert () == parse_graph(text + "allow_cycles: true\n").ways("done")


def test_a_cycle_that_the_token_cannot_walk_is_none():
    text = framed(fanout("f", "m") + model("m", "n"), chain("start", "f", "done") + "\n" + chain("m", "n", "m"))

    assert [("unreached", "nodes[2]", 7, 3)] == warnings_of(text)


def test_a_cycle_is_told_with_every_node_on_it():
    text = framed(model("a", "b", "c"), chain("start", "a", "b", "c", "b") + "\n" + chain("c", "done"))

    assert "the ways form a cycle: b -> c -> b" == refusal_of(text).problems[0].message


def test_an_exit_that_is_no_exit_point_is_a_way_out():
    text = framed("- {id: other, type: exit}", chain("start", "other"))

    assert [("unreached", "nodes[2]", 7, 3)] == warnings_of(text)


def test_a_reference_to_a_node_that_was_refused_is_no_second_error():
    text = framed("- {id: m, type: model, config: {max_tokens: 0}, on_error: done}", chain("start", "m", "done"))

    assert [("invalid_value", "nodes[0].config.max_tokens", 5, 33)] == errors_of(text)


def test_a_refused_node_draws_no_guesses_about_ways_after_it():
    text = framed("- {id: m, type: modle}", chain("start", "m", "done"))

    assert [("unknown_type", "nodes[0].type", 5, 11)] == errors_of(text)


def test_the_hint_for_an_unknown_node_names_some_that_there_are():
    text = framed(model(*(f"m{number}" for number in range(9))), chain("start", "ghost"))

    assert ["Nodes: m0, m1, m2, m3, m4, m5, m6, m7 ..."] == [
        problem.hint for problem in refusal_of(text).problems if problem.code == "unknown_node"
    ]


def test_several_problems_are_told_at_once_in_the_order_of_the_file():
    text = """\
id: Bad Id
version: 1.0
name: g
nodes:
  - {id: start, type: entry, confg: {}}
  - {id: m, type: model, config: {temperature: 3, max_tokens: many}}
  - {id: r, type: rooter}
  - {id: n, type: model}
  - {id: n, type: model, on_error: ghost}
  - {id: done, type: exit}
edges:
  - {from_node: start, to_node: m, condition: "x ="}
  - {from_node: n, to_node: spirit, weight: 2}
  - {from_node: n, to_node: phantom}
entry_points: [done]
exit_points: [yes]
colour: red
"""

    assert [
        ("invalid_value", "id", 1, 1),
        ("invalid_value", "version", 2, 1),
        ("unknown_key", "nodes[0].confg", 5, 37),
        ("invalid_value", "nodes[1].config.temperature", 6, 35),
        ("invalid_value", "nodes[1].config.max_tokens", 6, 51),
        ("unknown_type", "nodes[2].type", 7, 13),
        ("duplicate_id", "nodes[4].id", 9, 6),
        ("unknown_node", "nodes[4].on_error", 9, 26),
        ("condition", "edges[0].condition", 12, 36),
        ("invalid_value", "edges[1].weight", 13, 37),
        ("unknown_node", "edges[2].to_node", 14, 20),
        ("wrong_type", "entry_points[0]", 15, 16),
        ("invalid_value", "exit_points[0]", 16, 15),
        ("unknown_key", "colour", 17, 1),
    ] == errors_of(text)


@pytest.mark.parametrize(
    ("line", "code"),
    [("version: 1.0", "invalid_value"), ("extra: 1", "unknown_key"), ("description: 5", "invalid_value")],
)
def test_a_wrong_top_level_hides_no_problem_of_the_structure(line, code):
    text = framed(model("m"), chain("start", "m") + "\n" + chain("start", "done"))
    text = text.replace("exit_points: [done]", "exit_points: [ghost]")
    text = text.replace("version: 1.0.0", line) if line.startswith("version") else text + line + "\n"

    assert {code, "no_way_out", "unknown_node"} == {found for found, _, _, _ in errors_of(text)}


def test_at_most_100_problems_are_told_the_first_of_the_file():
    text = framed(model(*["m"] * 150), chain("start", "done") + "\n" + chain(*["ghost"] * 200))

    assert [("duplicate_id", f"nodes[{number}].id", 5 + number, 4) for number in range(1, 101)] == errors_of(text)


def test_the_first_100_problems_are_those_of_the_file_in_whatever_order_it_is_read():
    text = "edges:\n" + "- 5\n" * 150 + "nodes:\n" + "- 5\n" * 150

    missing = ["id", "version", "name", "entry_points", "exit_points"]
    assert [*missing, *(f"edges[{number}]" for number in range(95))] == [path for _, path, _, _ in errors_of(text)]


# --- warnings --------------------------------------------------------------------------------------------

WARNINGS: dict[str, tuple[str, list[Any]]] = {
    "a node that no way leads to": (
        framed(model("m") + fanout("f", "n") + model("n")),
        [("unreached", "nodes[0]", 5, 3), ("unreached", "nodes[1]", 6, 3), ("unreached", "nodes[2]", 7, 3)],
    ),
    "a second unconditional edge": (
        framed(model("m"), chain("start", "done") + "\n" + chain("start", "m", "done")),
        [("second_unconditional", "edges[1]", 10, 3)],
    ),
    "a second unconditional edge, by priority": (
        framed(
            model("m"),
            chain("start", "done") + "\n- {from_node: start, to_node: m, priority: 5}\n" + chain("m", "done"),
        ),
        [("second_unconditional", "edges[0]", 9, 3)],
    ),
    "the same edge twice, the second with priority": (
        framed(edges=chain("start", "done") + "\n- {from_node: start, to_node: done, priority: 5}"),
        [("duplicate_edge", "edges[1]", 10, 3)],
    ),
    "a timeout around a router that goes on without a way": (
        framed(
            "- {id: t, type: timeout, config: {inner_node: r, on_timeout: skip}}\n"
            "- {id: r, type: router, config: {routes: [{name: a, description: a, target: done}], default_route: a}}",
            chain("start", "t"),
        ),
        [("conditional_only", "nodes[0]", 5, 3)],
    ),
    "the same edge twice": (
        framed(edges=chain("start", "done") + "\n" + chain("start", "done")),
        [("duplicate_edge", "edges[1]", 10, 3)],
    ),
    "conditional edges only": (
        framed(edges='- {from_node: start, to_node: done, condition: "content"}'),
        [("conditional_only", "nodes[0]", 6, 3)],
    ),
    "an error way only": (
        framed("- {id: m, type: model, on_error: done}", chain("start", "m")),
        [("conditional_only", "nodes[0]", 5, 3)],
    ),
    "an edge from an exit": (
        framed(edges=chain("start", "done", "start")),
        [("edge_from_exit", "edges[1]", 10, 3)],
    ),
    "unknown names in a condition": (
        framed(edges='- {from_node: start, to_node: done, condition: "conten == langg"}\n' + chain("start", "done")),
        [("unknown_name", "edges[0].condition", 9, 37), ("unknown_name", "edges[0].condition", 9, 37)],
    ),
    "a gate without ways": (
        framed("- {id: g, type: gate, on_error: done}", chain("start", "g", "done")),
        [("gate_without_ways", "nodes[0].config", 5, 3)],
    ),
    "a quorum out of reach": (
        framed(
            fanout("f", "m", "m").replace("majority_vote,", "majority_vote, quorum: 3,") + model("m"),
            chain("start", "f", "done"),
        ),
        [("quorum_out_of_reach", "nodes[0].config.quorum", 5, 71)],
    ),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_what_is_doubtful_loads_with_a_warning_where_it_stands(name):
    text, expected = WARNINGS[name]

    assert expected == warnings_of(text)


@pytest.mark.parametrize("name", WARNINGS)
def test_a_warning_says_what_would_be_right_or_why_nothing_comes_of_it(name):
    text, _ = WARNINGS[name]

    assert all("warning: " in str(warning) and warning.message for warning in parse_graph(text).warnings)


@pytest.mark.parametrize(
    "edges",
    [
        "- {from_node: start, to_node: done, condition: '1'}\n- {from_node: start, to_node: done}",
        "\n".join(f"- {{from_node: start, to_node: done, condition: {text}}}" for text in ("'1'", "'2'", "~")),
    ],
)
def test_edges_that_differ_in_their_condition_are_no_duplicates(edges):
    assert [] == warnings_of(framed(edges=edges))


def test_a_gate_may_have_conditional_edges_only():
    gate = "- {id: g, type: gate, config: {default_target: done}}"

    assert [] == warnings_of(framed(gate, chain("start", "g") + "\n- {from_node: g, to_node: done, condition: '1'}"))


def test_the_edges_of_a_gate_are_not_asked_so_that_none_is_a_second():
    gate = "- {id: g, type: gate, config: {default_target: done}}"

    edges = chain("start", "g", "m", "done") + "\n" + chain("g", "done")

    assert [] == warnings_of(framed(gate + "\n" + model("m"), edges))


def test_an_expression_of_a_gate_that_asks_a_model_is_a_description():
    gate = "- {id: g, type: gate, config: {mode: llm, conditions: [{name: a, expression: is it good?, target: done}]}}"

    hybrid = gate.replace("llm", "hybrid")

    assert [] == warnings_of(framed(gate, chain("start", "g")))
    assert ["condition"] == [code for code, _, _, _ in errors_of(framed(hybrid, chain("start", "g")))]


def test_warnings_are_told_in_the_order_of_the_file_and_at_most_100():
    edges = "\n".join(f"- {{from_node: start, to_node: done, condition: name{number}}}" for number in range(150))
    text = framed(model("m"), edges + "\n" + chain("start", "done"))

    assert [("unreached", "nodes[0]", 5, 3)] + [
        ("unknown_name", f"edges[{number}].condition", 9 + number, 37) for number in range(99)
    ] == warnings_of(text)


# --- any input -------------------------------------------------------------------------------------------


@given(st.text() | st.binary() | st.text(alphabet="idnodes: -{}[],&*\n\t'\"#|>!%0"))
def test_any_text_and_any_bytes_load_or_are_refused(data):
    judged(data)


SNIPPETS = st.sampled_from(
    [
        *("\0", "\ufeff", "\t", "\r", "\n", " ", "  ", "-", ":", "{", "}", "[", "]", "'", '"', "|", ">", "#"),
        *("- ", "? ", "&a ", "*a", "!!x ", "<<: *a", "%TAG ! !", "---\n", "null", "~", "yes", "0x1f", "1e999", ".inf"),
        *("\\ud800", "nodes:", "id: start", "{id: start}", "type: fanout", "target_nodes: [ask]", "on_error: look"),
        *("[" * 70, "é", "😀", "\u2028", "\x85", "\x1b[2J", '"\\e[2J": 1'),
    ]
)


@given(st.data())
def test_a_mutated_copy_of_a_valid_text_loads_or_is_refused(data):
    text = EVERY_TYPE
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = data.draw(st.integers(start, min(len(text), start + 40)))
        other = data.draw(st.integers(0, len(text)))
        insert = data.draw(SNIPPETS | st.just("") | st.just(text[other : other + 40]) | st.text(max_size=3))
        text = text[:start] + insert + text[end:]

    judged(text)
    judged(text.encode("utf-8", "replace")[: -1 or None])


def _changed(draw: st.DrawFn, value: Any) -> Any:
    """A copy in which one value or key, anywhere, is another."""
    if not isinstance(value, dict | list) or not value or draw(st.integers(0, 5)) == 0:
        known = st.sampled_from(["start", "done", "ask", "one", "model", "fanout", 10**30, -1, "x =", ""])
        return draw(json_values() | known)
    if isinstance(value, list):
        at = draw(st.integers(0, len(value) - 1))
        new = [_changed(draw, value[at])] if draw(st.booleans()) else draw(st.sampled_from([[], [value[at]] * 2]))
        return [*value[:at], *new, *value[at + 1 :]]
    key = draw(st.sampled_from(sorted(value)))
    if draw(st.integers(0, 3)) == 0:
        renamed = draw(st.sampled_from(["", "typo", f"{key}s", "a b", "\x1b[2J"]))
        return {renamed if name == key else name: item for name, item in value.items()}
    return {**value, key: _changed(draw, value[key])}


@st.composite
def changed_graphs(draw: st.DrawFn) -> dict[str, Any]:
    """Valid graphs with up to three values, keys or items replaced. Shrinks to few and simple changes."""
    value = parse_graph(EVERY_TYPE).document
    assert value is not None
    changed = value.value
    for _ in range(draw(st.integers(1, 3))):
        changed = _changed(draw, changed)
    return changed if isinstance(changed, dict) else {"nodes": changed}


@given(changed_graphs())
def test_the_same_values_are_judged_the_same_as_json_as_yaml_and_as_values(value):
    def found(result: Graph | GraphConfigError) -> Any:
        problems = result.warnings if isinstance(result, Graph) else result.problems
        return type(result), sorted((problem.code, problem.path, problem.message) for problem in problems)

    try:
        built: Graph | GraphConfigError = build_graph(value)
    except GraphConfigError as error:
        built = error

    assert found(built) == found(judged(json.dumps(value)))
    assert found(built) == found(judged(yaml.safe_dump(value, sort_keys=False, width=10_000)))


@given(graphs())
def test_from_everywhere_the_token_can_be_a_way_leads_on_to_an_exit(graph):
    for node_id in graph.shape.visitable:
        node = graph.nodes[node_id]
        assert (node.type is NodeType.EXIT) is (graph.ways(node_id) == ())
        assert all(way in graph.nodes for way in graph.ways(node_id))
    for wrapped in graph.shape.wrapped:
        assert graph.nodes[wrapped].type not in (NodeType.ENTRY, NodeType.EXIT)


@pytest.mark.parametrize("value", [None, [], "text", 5, 1.5, True, [{}]])
def test_what_is_no_mapping_is_no_graph(value):
    assert [("not_a_graph", "", 1, 1)] == errors_of(json.dumps(value))


def test_an_empty_file_is_no_graph():
    assert [("not_a_graph", "", 1, 1)] == errors_of("") == errors_of(b"")
    assert "an empty document" in refusal_of("").problems[0].message


def test_yaml_s_yes_and_no_are_no_ids_without_quotes():
    text = framed("- {id: yes, type: model}\n- {id: 'no', type: model}", chain("start", "'no'", "done"))

    assert [("invalid_value", "nodes[0].id", 5, 4)] == errors_of(text)
    assert "Put it in quotes." == refusal_of(text).problems[0].hint
    assert "no" in parse_graph(text.replace("id: yes", "id: 'yes'")).nodes


# --- work that grows no faster than the file -------------------------------------------------------------


def test_nested_fanouts_are_looked_into_once_each(monkeypatch):
    """Fanouts that each wrap all after them: asking each target what lies inside it would take minutes."""
    asked = 0
    wrapped_by = graph_module.wrapped_by

    def counted(config: Any) -> tuple[str, ...]:
        nonlocal asked
        asked += 1
        return wrapped_by(config)

    monkeypatch.setattr(graph_module, "wrapped_by", counted)
    ids = [f"f{number}" for number in range(60)]
    nodes = "".join(fanout(node_id, *ids[number + 1 :], "m") for number, node_id in enumerate(ids)) + model("m")

    parse_graph(framed(nodes, chain("start", "f0", "done")))

    assert asked < 20 * len(ids)


def test_edges_are_not_compared_with_each_other(monkeypatch):
    """A node with thousands of edges: comparing each with the others would take minutes."""
    monkeypatch.setattr(BaseModel, "__eq__", lambda *_: pytest.fail("compared"))
    ids = [f"m{number}" for number in range(50)]
    edges = "\n".join(chain("start", node_id, "done") for node_id in ids)

    assert ["second_unconditional"] * 49 == [code for code, _, _, _ in warnings_of(framed(model(*ids), edges))]


def long_graph(nodes: list[dict[str, Any]], *row: str) -> dict[str, Any]:
    ends = [{"id": "start", "type": "entry"}, {"id": "done", "type": "exit"}]
    return {
        "id": "g",
        "version": "1.0.0",
        "name": "g",
        "nodes": [*ends, *nodes],
        "edges": [{"from_node": a, "to_node": b} for a, b in pairwise(("start", *row, "done"))],
        "entry_points": ["start"],
        "exit_points": ["done"],
    }


def test_a_row_of_thousands_of_nodes_is_no_deep_recursion():
    ids = [f"m{number}" for number in range(3_000)]
    graph = build_graph(long_graph([{"id": node_id, "type": "model"} for node_id in ids], *ids))

    assert ("m1",) == graph.ways("m0")
    assert 3_002 == len(graph.shape.visitable)


def nested_fanouts(levels: int) -> list[dict[str, Any]]:
    """Fanouts f0, f1 ... each around the next, and a model in the last."""
    fanouts = [
        {
            "id": f"f{number}",
            "type": "fanout",
            "config": {"aggregation_strategy": "majority_vote", "target_nodes": [f"f{number + 1}"]},
        }
        for number in range(levels)
    ]
    return [*fanouts, {"id": f"f{levels}", "type": "model"}]


def test_wrappers_may_lie_64_levels_deep_inside_each_other():
    assert 64 == len(build_graph(long_graph(nested_fanouts(64), "f0")).shape.wrapped)


@pytest.mark.parametrize("levels", [65, 3_000])
def test_wrappers_that_lie_deeper_are_refused_once(levels):
    with pytest.raises(GraphConfigError) as refusal:
        build_graph(long_graph(nested_fanouts(levels), "f0"))

    told = [(problem.code, problem.path) for problem in refusal.value.problems]
    assert [("too_deep", f"nodes[{levels - 63}].config")] == told


def test_thousands_of_fanouts_that_contain_each_other_are_refused_for_that():
    nodes = nested_fanouts(3_000)
    nodes[-2]["config"]["target_nodes"] = ["f0"]

    with pytest.raises(GraphConfigError, match="contains itself"):
        build_graph(long_graph(nodes, "f0"))
