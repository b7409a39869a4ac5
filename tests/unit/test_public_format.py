"""Files in the format of the public TinyLLM 0.1: they load as they are, and run to the exit that they mean.

The files here are written for these tests; keys, types and spellings are those of that format.
"""

from __future__ import annotations

import json
import textwrap
from itertools import pairwise
from typing import Any

import pytest

from tests.support.graphs_text import Place, errors_of, refusal_of, warnings_of
from tests.support.models import Said, ScriptedModel
from tests.support.runs import code, events, run_clean, visited
from tinyllm.config import NodeType
from tinyllm.executor import Executor
from tinyllm.graph import Graph, parse_graph
from tinyllm.message import TaskPayload
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

#: What these files call their small model, and their larger one.
SMALL, LARGE = "qwen2.5:0.5b", "qwen2.5:3b"


def ran(text: str, answers: Any, content: str = "question", **how: Any) -> tuple[RunResult, ScriptedModel]:
    model = ScriptedModel(answers)
    return run_clean(Executor(parse_graph(text), model=model).execute(TaskPayload(content=content), **how)), model


def the_exit(result: RunResult) -> str:
    """The node whose step ended last."""
    return str(events(result, EventKind.STEP_ENDED)[-1].node_id)


def told(text: str) -> list[tuple[str, str]]:
    return [(warning.code, warning.path) for warning in parse_graph(text).warnings]


# --- a router of several labels --------------------------------------------------------------------------

HELPDESK = """\
# Which desk answers
id: graph.helpdesk
version: 1.0.0
name: Help Desk
description: |
  Questions about one subject or two.
  Flow: Entry → Router → Specialist → Exit

nodes:
  - id: entry.main
    type: entry
    name: Main Entry
    config:
      required_fields: []

  - id: router.subject
    type: router
    name: Subject Router
    description: Finds one subject, or several
    config:
      model: qwen2.5:0.5b
      multi_label: true
      max_labels: 3
      fanout_enabled: false  # compound routes instead
      confidence_threshold: 0.0
      routes:
        - name: code
          description: Programs and scripts
          target: model.code
          priority: 2
          domains: [code, programs]
        - name: math
          description: Sums and proofs
          target: model.math
          priority: 1
          domains: [math]
        - name: general
          description: All the rest
          target: model.general
          priority: 0
      compound_routes:
        - domains: [code, math]
          target: model.code_math
          priority: 10
      default_route: general

  - id: model.code
    type: model
    config: {model: "qwen2.5:3b", system_prompt: You write code., stream: false}
  - id: model.math
    type: model
    config: {model: "qwen2.5:3b", tools_enabled: true, tool_ids: [calculator]}
  - id: model.general
    type: model
    config: {}
  - id: model.code_math
    type: model
    name: Both
    config:
      model: qwen2.5:3b
      temperature: 0.2
      max_tokens: 500

  - id: exit.success
    type: exit
    name: Success
    config:
      status: success

edges:
  - from_node: entry.main
    to_node: router.subject
    weight: 1.0
  - from_node: router.subject
    to_node: model.code
    condition: "route in ['code', 'shell']"
    weight: 0.5
  - from_node: router.subject
    to_node: model.math
    condition: "route == 'math'"
  - from_node: router.subject
    to_node: model.general
    condition: "route == 'general'"
  - from_node: router.subject
    to_node: model.code_math
    condition: "compound_route and 'code' in routes and 'math' in routes"
  - from_node: model.code
    to_node: exit.success
  - from_node: model.math
    to_node: exit.success
  - from_node: model.general
    to_node: exit.success
  - from_node: model.code_math
    to_node: exit.success

entry_points:
  - entry.main
exit_points:
  - exit.success
protected:
  - entry.main
  - exit.success

metadata:
  created_at: 2025-02-03
  author: Tests
  tags: [routing, "multi-label"]
"""


def test_a_file_with_dotted_ids_metadata_weights_and_protected_nodes_loads_unchanged():
    graph = parse_graph(HELPDESK)

    assert ("graph.helpdesk", "1.0.0", "entry.main") == (graph.id, graph.definition.version, graph.entry)
    assert ("entry.main", "exit.success") == graph.definition.protected
    assert {"created_at": "2025-02-03", "author": "Tests", "tags": ["routing", "multi-label"]} == (
        graph.definition.metadata
    )
    assert [1.0, 0.5, 1.0] == [edge.weight for edge in graph.definition.edges[:3]]
    assert ("model.code", "model.math", "model.general", "model.code_math") == graph.ways("router.subject")


def test_what_has_no_meaning_here_is_warned_about_with_its_place():
    assert [
        ("ignored_key", "nodes[1].config.fanout_enabled", 24, 7),
        ("ignored_key", "nodes[1].config.confidence_threshold", 25, 7),
        ("ignored_key", "nodes[1].config.routes[0].domains", 31, 20),
        ("ignored_key", "nodes[1].config.routes[1].domains", 36, 20),
        ("ignored_key", "nodes[2].config.stream", 49, 67),
        ("ignored_key", "nodes[3].config.tools_enabled", 52, 35),
        ("ignored_key", "nodes[3].config.tool_ids", 52, 66),
    ] == warnings_of(HELPDESK)


@pytest.mark.parametrize(
    ("answer", "visits", "route", "routes", "compound"),
    [
        ("code", "model.code", "code", ["code"], False),
        ("Math.", "model.math", "math", ["math"], False),
        ("math, code", "model.code_math", "code+math", ["math", "code"], True),
        ("general\nmath", "model.math", "math", ["general", "math"], False),
        ("cookery", "model.general", "general", ["general"], False),
    ],
)
def test_one_subject_or_two_find_their_way(answer, visits, route, routes, compound):
    result, model = ran(HELPDESK, {SMALL: answer, LARGE: "done"})
    payload = result.message.payload.fields()

    assert ("succeeded", "done") == (result.status, result.content)
    assert ["entry.main", "router.subject", visits, "exit.success"] == visited(result)
    assert (route, routes, compound) == tuple(payload[key] for key in ("route", "routes", "compound_route"))
    assert [SMALL, LARGE] == model.asked


def test_the_calls_are_those_that_the_file_describes():
    _, model = ran(HELPDESK, {SMALL: "code", LARGE: "done"}, "2 + 2?")
    question, answer = model.requests

    assert all(name in question.prompt for name in ("code", "Programs and scripts", "math", "2 + 2?"))
    assert ("2 + 2?", "You write code.", 0.7, None) == (
        answer.prompt,
        answer.system,
        answer.temperature,
        answer.max_tokens,
    )


# --- gates with English expressions, fanouts with edges to their targets -----------------------------------

REVIEW = """\
id: workflow.review
version: "1.0.0"
name: Review
nodes:
  - id: entry.main
    type: entry
  - id: fanout.readers
    type: dynamic_fanout
    config:
      target_nodes: [model.first, model.second, model.third]
      aggregation_strategy: all
      parallel: true
      timeout_ms: 45000
      require_all_success: false
  - id: model.first
    type: model
    config: {model: "first"}
  - id: model.second
    type: model
    config: {model: "second"}
  - id: model.third
    type: model
    config: {model: "third"}
  - id: gate.quality
    type: gate
    name: Quality Gate
    config:
      mode: llm
      model: qwen2.5:0.5b
      evaluation_prompt: |
        Judge this report:

        {content}

        Reply with ONLY one word, "pass" or "fail".
      conditions:
        - name: pass
          expression: the report is good enough, or better
          target: transform.frame
        - name: fail
          expression: the report isn't
          target: exit.poor
  - id: transform.frame
    type: transform
    config:
      transforms:
        - type: strip
          params: {}
        - type: template
          params:
            template: |
              === REPORT ===
              {content}
              === END ===
      stop_on_error: true
  - id: exit.good
    type: exit
    config:
      status: success
  - id: exit.poor
    type: exit
    config:
      status: failure
      message: The report was not good enough
edges:
  - {from_node: entry.main, to_node: fanout.readers}
  # The targets, once more
  - {from_node: fanout.readers, to_node: model.first}
  - {from_node: fanout.readers, to_node: model.second}
  - {from_node: fanout.readers, to_node: model.third}
  - {from_node: fanout.readers, to_node: gate.quality}
  - {from_node: gate.quality, to_node: transform.frame, condition: "matched_condition == 'pass'"}
  - {from_node: gate.quality, to_node: exit.poor, condition: "matched_condition == 'fail'"}
  - {from_node: transform.frame, to_node: exit.good}
entry_points: [entry.main]
exit_points: [exit.good, exit.poor]
protected: []
"""

READERS: dict[str, Said | list[Said]] = {"first": " one ", "second": "two", "third": RuntimeError("down")}


def test_edges_from_a_fanout_to_its_own_targets_are_no_ways_and_no_dead_ends():
    graph = parse_graph(REVIEW)

    assert () == graph.warnings
    assert NodeType.FANOUT is graph.nodes["fanout.readers"].type
    assert ("gate.quality",) == graph.ways("fanout.readers")
    assert ["model.first", "model.second", "model.third"] == list(graph.shape.wrapped)


@pytest.mark.parametrize(
    ("verdict", "ends", "status", "failed"),
    [
        ("pass", "exit.good", "succeeded", None),
        (" Pass.\n", "exit.good", "succeeded", None),
        ("fail", "exit.poor", "failed", "EXIT_FAILED"),
        ("I would say fail", "exit.poor", "failed", "EXIT_FAILED"),
        ("pass or fail", "gate.quality", "failed", "GATE_FAILED"),
    ],
)
def test_a_gate_asks_its_model_in_english_and_goes_where_it_says(verdict, ends, status, failed):
    result, model = ran(REVIEW, {**READERS, SMALL: verdict})

    assert (ends, status, failed) == (the_exit(result), result.status, code(result))
    assert 'Reply with ONLY one word, "pass" or "fail".' in model.requests[-1].prompt
    assert "Judge this report:\n\n one \n\ntwo\n\n" in model.requests[-1].prompt


def test_the_report_is_framed_and_an_exit_tells_why():
    good, _ = ran(REVIEW, {**READERS, SMALL: "pass"})
    poor, _ = ran(REVIEW, {**READERS, SMALL: "fail"})

    assert "=== REPORT ===\none \n\ntwo\n=== END ===\n" == good.content
    assert [True, True, False] == [entry["success"] for entry in (good.structured or {})["results"]]
    assert "The report was not good enough" == (poor.error and poor.error.message)


def test_fanout_and_dynamic_fanout_are_one_type():
    other = REVIEW.replace("dynamic_fanout", "fanout")

    assert parse_graph(REVIEW).definition == parse_graph(other).definition
    assert parse_graph(REVIEW).digest == parse_graph(other).digest


# --- loops -----------------------------------------------------------------------------------------------


def looping(condition_type: str, expression: str | None, **more: Any) -> str:
    given = {"condition_expression": expression, **more}
    lines = "\n".join(f"      {key}: {value!r}" if isinstance(value, str) else f"      {key}: {str(value).lower()}"
                      for key, value in given.items() if value is not None)  # fmt: skip
    if expression is not None:
        lines = lines.replace(repr(expression), '"' + expression + '"')
    return f"""\
id: workflow.refine
version: "1.0.0"
name: Refine
nodes:
  - id: entry.main
    type: entry
  - id: loop.refine
    type: loop
    name: Refinement
    config:
      body_node: model.refiner
      condition_type: {condition_type}
      max_iterations: 5
      timeout_ms: 120000
      collect_results: true
      pass_iteration_number: true
{lines}
  - id: model.refiner
    type: model
    config: {{model: refiner}}
  - id: gate.good
    type: gate
    config:
      mode: expression
      conditions:
        - name: high
          expression: "metadata.get('loop_result', {{}}).get('success_rate', 0) > 0.5"
          target: exit.good
        - name: low
          expression: "True"
          target: exit.weak
      default_target: exit.weak
  - id: exit.good
    type: exit
    config: {{status: success}}
  - id: exit.weak
    type: exit
    config: {{status: partial_success, message: Could be better}}
edges:
  - {{from_node: entry.main, to_node: loop.refine}}
  - {{from_node: loop.refine, to_node: gate.good}}
  - {{from_node: gate.good, to_node: exit.good, condition: "matched_condition == 'high'"}}
  - {{from_node: gate.good, to_node: exit.weak, condition: "matched_condition == 'low'"}}
entry_points: [entry.main]
exit_points: [exit.good, exit.weak]
"""


DOWN = RuntimeError("down")
DONE = "last_success and 'DONE' in str(last_output)"
QUALITY = "last_result.get('metadata', {}).get('quality_score', 0) > 0.8"
COUNTED = "iteration >= variables.get('target_count', 3)"
CAREFUL = {"continue_on_error": True}


@pytest.mark.parametrize(
    ("kind", "expression", "more", "answers", "iterations", "termination", "ends"),
    [
        ("until_condition", DONE, {}, ["a", "DONE", "c"], 2, "condition", "exit.good"),
        ("until_condition", COUNTED, {}, ["a"], 3, "condition", "exit.good"),
        ("until_condition", QUALITY, {}, ["a"], 5, "max_iterations", "exit.good"),
        ("until_condition", "success_count >= 2", CAREFUL, ["a", DOWN, DOWN, "b", "c"], 4, "condition", "exit.weak"),
        ("while_condition", "iteration < 4", {}, ["a"], 4, "condition", "exit.good"),
        ("while_condition", "len(content) < 3", {}, ["ab", "abc", "abcd"], 2, "condition", "exit.good"),
        ("until_success", None, {}, [DOWN, DOWN, "c"], 3, "success", "exit.weak"),
        ("fixed_count", None, {"fixed_count": 2}, ["a"], 2, "count", "exit.good"),
        ("fixed_count", None, {}, ["a"], 5, "count", "exit.good"),
        ("fixed_count", None, {**CAREFUL, "fixed_count": 3}, [DOWN, DOWN, "c"], 3, "count", "exit.weak"),
    ],
)  # fmt: skip
def test_a_loop_ends_by_its_condition_and_publishes_its_rate(
    kind, expression, more, answers, iterations, termination, ends
):
    text = looping(kind, expression, **more)
    result, model = ran(text, {"refiner": answers}, "x")
    loop_result = result.message.payload.metadata["loop_result"]

    assert () == parse_graph(text).warnings
    assert (iterations, termination) == (loop_result["iterations"], loop_result["termination"])
    assert (ends, iterations) == (the_exit(result), len(model.requests))
    assert ("succeeded" if ends == "exit.good" else "degraded") == result.status


def test_a_loop_knows_the_variables_of_its_run():
    result, model = ran(looping("until_condition", COUNTED), "a", variables={"target_count": 2})

    assert ("succeeded", 2) == (result.status, len(model.requests))


def test_a_loop_without_continue_on_error_fails_with_its_body():
    result, _ = ran(looping("fixed_count", None, continue_on_error=False), {"refiner": ["a", DOWN]})

    assert ("failed", "MODEL_ERROR", "loop.refine") == (result.status, code(result), the_exit(result))


def test_loop_keys_without_effect_are_warned_about():
    text = looping("until_success", "iteration > 2", fixed_count=3).replace(
        "collect_results: true", "collect_results: false"
    )

    assert [
        ("ignored_key", "nodes[1].config.collect_results"),
        ("ignored_key", "nodes[1].config.condition_expression"),
        ("ignored_key", "nodes[1].config.fixed_count"),
    ] == told(text)


# --- timeouts and fallback models ------------------------------------------------------------------------

PATIENT = """\
id: graph.patient
version: "1.0.0"
name: Patient
nodes:
  - id: start
    type: entry
    config: {}
  - id: router.strategy
    type: router
    config:
      model: qwen2.5:0.5b
      prompt_id: routing/task_router
      routes:
        - {name: fast, description: Quick, target: timeout.error}
        - {name: slow_fallback, description: With words, target: timeout.fallback}
        - {name: slow_skip, description: Without, target: timeout.skip}
  - id: timeout.error
    type: timeout
    config: {inner_node: model.work, timeout_ms: 5000, on_timeout: error, retry_count: 2, retry_delay_ms: 500}
  - id: timeout.fallback
    type: timeout
    config:
      inner_node: model.work
      timeout_ms: 5000
      on_timeout: fallback
      fallback_response: "Sorry, this takes too long."
      retry_count: 1
      retry_delay_ms: 1000
      propagate_metadata: false
  - id: timeout.skip
    type: timeout
    config: {inner_node: model.work, timeout_ms: 3000, on_timeout: skip, propagate_metadata: true}
  - id: model.work
    type: model
    config:
      model: qwen2.5:3b
      enable_fallback: true
      fallback_models: ["qwen2.5:1.5b"]
      fallback_strategy: "load_balanced"
      fallback_timeout_ms: 20000
  - id: gate.check
    type: gate
    config:
      mode: expression
      conditions:
        - name: timeout_occurred
          expression: "metadata.get('timeout', {}).get('timed_out', False)"
          target: exit.timeout
        - {name: fallback_used, expression: "metadata.get('fallback', False)", target: exit.fallback}
        - {name: success, expression: "True", target: end}
      default_target: end
  - id: end
    type: exit
    config: {}
  - id: exit.timeout
    type: exit
    config: {status: timeout}
  - id: exit.fallback
    type: exit
    config: {status: fallback}
edges:
  - {from_node: start, to_node: router.strategy, weight: 1.0}
  - {from_node: router.strategy, to_node: timeout.error, condition: "route == 'fast'"}
  - {from_node: router.strategy, to_node: timeout.fallback, condition: "route == 'slow_fallback'"}
  - {from_node: router.strategy, to_node: timeout.skip, condition: "route == 'slow_skip'"}
  - {from_node: timeout.error, to_node: gate.check}
  - {from_node: timeout.fallback, to_node: gate.check}
  - {from_node: timeout.skip, to_node: gate.check}
entry_points: [start]
exit_points: [end, exit.timeout, exit.fallback]
"""


def test_prompts_and_strategies_of_the_0_1_format_are_warned_about():
    assert [
        ("unknown_prompt", "nodes[1].config.prompt_id"),
        ("ignored_key", "nodes[5].config.fallback_strategy"),
    ] == told(PATIENT)


@pytest.mark.parametrize(
    ("route", "after_ms", "ends", "status", "content", "ms"),
    [
        ("fast", 100, "end", "succeeded", "work", 100),
        ("fast", 9_000, "timeout.error", "failed", "question", 3 * 5_000 + 2 * 500),
        ("slow_fallback", 100, "end", "succeeded", "work", 100),
        ("slow_fallback", 9_000, "exit.fallback", "degraded", "Sorry, this takes too long.", 2 * 5_000 + 1_000),
        ("slow_skip", 9_000, "exit.timeout", "failed", "question", 3_000),
    ],
)
def test_a_timeout_does_what_it_says_when_its_time_is_up(route, after_ms, ends, status, content, ms):
    result, _ = ran(PATIENT, {SMALL: route, LARGE: (after_ms, "work")})

    assert (ends, status, content) == (the_exit(result), result.status, result.content)
    assert ms == result.total_latency_ms


def test_fallback_models_are_asked_in_order_whatever_the_strategy_says():
    result, model = ran(PATIENT, {SMALL: "fast", LARGE: RuntimeError("down"), "qwen2.5:1.5b": "spare"})

    assert ("succeeded", "spare") == (result.status, result.content)
    assert [SMALL, LARGE, "qwen2.5:1.5b"] == model.asked


# --- transforms, tools, and what nothing leads to --------------------------------------------------------

DATA = """\
id: workflow.data
version: "1.0.0"
name: Data
nodes:
  - id: entry.main
    type: entry
    config: {input_schema: RawData, required_fields: [content]}
  - id: transform.parse
    type: transform
    config:
      transforms:
        - type: strip
          params: {}
        - type: json_parse
          params: {}
        - type: json_extract
          params: {path: "data.items"}
  - id: transform.find
    type: transform
    config:
      transforms:
        - type: regex_extract
          params:
            pattern: "Content: (.+?)(?:Score:|$)"
            group: 1
      stop_on_error: false
  - id: tool.count
    type: tool
    config:
      tool_id: calculator
      input_mapping: {expression: structured.context}
      output_field: result
      continue_on_error: true
  - id: loop.lonely
    type: loop
    config: {body_node: model.lonely}
  - id: model.lonely
    type: model
  - id: exit.success
    type: exit
    config: {status: success, output_schema: Clean}
edges:
  - {from_node: entry.main, to_node: transform.parse}
  - {from_node: transform.parse, to_node: transform.find}
  - {from_node: transform.find, to_node: tool.count}
  - {from_node: tool.count, to_node: exit.success}
entry_points: [entry.main]
exit_points: [exit.success]
protected: [entry.main, loop.lonely]
"""


def test_what_nothing_leads_to_is_a_warning_and_schemas_by_name_are_too():
    assert [
        ("ignored_key", "nodes[0].config.input_schema"),
        ("ignored_key", "nodes[3].config.output_field"),
        ("unreached", "nodes[4]"),
        ("unreached", "nodes[5]"),
        ("ignored_key", "nodes[6].config.output_schema"),
    ] == told(DATA)


def test_transforms_and_tools_of_a_file_do_their_work():
    model = ScriptedModel()
    executor = Executor(parse_graph(DATA), model=model)
    task = TaskPayload(content=' {"data": {"items": "Content: all of it Score: 1"}} ', context="6 * 7")
    result = run_clean(executor.execute(task))
    found = result.message.payload.tool_result

    assert ("succeeded", []) == (result.status, model.asked)
    assert found is not None
    assert found.success
    assert "42" in str(found.output)


def test_a_transform_that_fails_ends_the_run_unless_told_otherwise():
    result, _ = ran(DATA, "x", "no JSON")
    lenient, _ = ran(DATA, "x", '{"data": {"items": "nothing here"}}')

    assert ("failed", "VALIDATION_ERROR", "transform.parse") == (result.status, code(result), the_exit(result))
    assert ("succeeded", False) == (lenient.status, getattr(lenient.message.payload.tool_result, "success", None))
    assert "nothing here" == lenient.content


CYCLE = """\
id: g
version: 1.0.0
name: g
nodes:
  - {id: start, type: entry}
  - {id: model.draft, type: model, config: {model: draft}}
  - id: gate.again
    type: gate
    config:
      conditions: [{name: fail, expression: "'bad' in content", target: model.draft}]
      default_target: end
  - {id: end, type: exit}
edges:
  - {from_node: start, to_node: model.draft}
  - {from_node: model.draft, to_node: gate.again}
  - {from_node: gate.again, to_node: model.draft, condition: "matched_condition == 'fail'"}
entry_points: [start]
exit_points: [end]
"""


def test_a_cycle_is_refused_unless_the_file_allows_it_and_then_walked():
    assert [("cycle", "nodes[1]", 6, 5)] == errors_of(CYCLE)
    result, model = ran(CYCLE + "allow_cycles: true\n", {"draft": ["bad", "bad", "good"]})

    assert ("succeeded", "good", 3) == (result.status, result.content, len(model.asked))
    assert ("failed", "BOUNDS_EXCEEDED") == (
        (endless := ran(CYCLE + "allow_cycles: true\n", "bad")[0]).status,
        code(endless),
    )


@pytest.mark.parametrize("version", ["1.0.0", '"1.0.0"', "'1.0.0'"])
def test_a_version_needs_no_quotes(version):
    assert "1.0.0" == parse_graph(CYCLE.replace("1.0.0", version) + "allow_cycles: true").definition.version


@pytest.mark.parametrize("text", [HELPDESK, REVIEW, PATIENT, DATA, looping("while_condition", "iteration < 5")])
def test_its_definition_loads_again_as_the_same_graph(text):
    graph: Graph = parse_graph(text)

    assert graph.digest == parse_graph(json.dumps(graph.definition.model_dump(mode="json"))).digest


# --- what is refused -------------------------------------------------------------------------------------


def wrong(nodes: str, *ids: str) -> str:
    """A file in which the entry leads to each of these nodes, one after another; the nodes begin on line 5."""
    path = ["start", *ids, "end"]
    edges = "".join(f"  - {{from_node: {a}, to_node: {b}}}\n" for a, b in pairwise(path))
    body = textwrap.indent(textwrap.dedent(nodes).strip("\n"), "  ")
    return (
        f'id: g\nversion: "1.0.0"\nname: g\nnodes:\n{body}\n'
        "  - {id: start, type: entry}\n  - {id: end, type: exit}\n"
        f"edges:\n{edges}entry_points: [start]\nexit_points: [end]\n"
    )


@pytest.mark.parametrize("kind", ["reasoning", "custom"])
def test_types_that_are_not_run_here_are_refused_with_their_place(kind):
    text = wrong(f"- id: n\n  type: {kind}\n  config: {{anything: 1}}", "n")

    assert [("unknown_type", "nodes[0].type", 6, 5)] == errors_of(text)
    assert f"the node type '{kind}' of the 0.1 format is not run here" == refusal_of(text).problems[0].message


REFUSED: list[tuple[str, tuple[str, ...], list[Place]]] = [
    (
        """
        - id: t
          type: transform
          config:
            transforms:
              - type: truncate
                params: {}
              - type: reverse
              - type: regex_replace
                params: {pattern: a}
              - type: split
                params: {separator: "", index: x}
        """,
        ("t",),
        [
            ("missing_key", "nodes[0].config.transforms[0].params.max_length", 10, 19),
            ("invalid_value", "nodes[0].config.transforms[1].type", 11, 11),
            ("missing_key", "nodes[0].config.transforms[2].params.replacement", 13, 19),
            ("invalid_value", "nodes[0].config.transforms[3].params.separator", 15, 20),
            ("invalid_value", "nodes[0].config.transforms[3].params.index", 15, 35),
        ],
    ),
    (
        r"""
        - id: t
          type: transform
          config:
            transforms:
              - type: regex_extract
                params: {pattern: "(a", group: 1}
              - type: regex_extract
                params: {pattern: '(a)\1'}
              - type: regex_extract
                params: {pattern: "(a)", group: 2}
              - type: regex_replace
                params: {pattern: "a", replacement: '\1'}
              - type: regex_replace
                params: {pattern: "(?=a)", replacement: ""}
        """,
        ("t",),
        [
            ("pattern", "nodes[0].config.transforms[0].params.pattern", 10, 20),
            ("pattern", "nodes[0].config.transforms[1].params.pattern", 12, 20),
            ("pattern", "nodes[0].config.transforms[2].params.group", 14, 36),
            ("pattern", "nodes[0].config.transforms[3].params.replacement", 16, 34),
            ("pattern", "nodes[0].config.transforms[4].params.pattern", 18, 20),
        ],
    ),
    (
        """
        - id: r
          type: router
          config:
            routes:
              - {name: a, target: end}
              - {name: b, target: ghost, condition: "x"}
            default_route: c
        - id: s
          type: router
          config:
            mode: rules
            routes:
              - {name: a, target: end, condition: "route =="}
              - {name: b, target: end}
        """,
        ("r", "s"),
        [
            ("unknown_node", "nodes[0].config.routes[1].target", 10, 21),
            ("unknown_route", "nodes[0].config.default_route", 11, 7),
            ("condition", "nodes[1].config.routes[0].condition", 17, 34),
            ("missing_key", "nodes[1].config.routes[1]", 18, 11),
        ],
    ),
    (
        """
        - id: a
          type: loop
          config: {body_node: m, fixed_count: 11}
        - id: b
          type: loop
          config: {body_node: m, condition_type: until_condition}
        - id: c
          type: loop
          config: {body_node: m, condition_type: while_condition, condition_expression: "iteration <"}
        - id: d
          type: loop
          config: {condition_type: sometimes, max_iterations: 1001}
        - {id: m, type: model}
        """,
        ("a", "b", "c", "d"),
        [
            ("too_many_iterations", "nodes[0].config.fixed_count", 7, 28),
            ("missing_key", "nodes[1].config", 10, 13),
            ("condition", "nodes[2].config.condition_expression", 13, 61),
            ("missing_key", "nodes[3].config.body_node", 16, 13),
            ("invalid_value", "nodes[3].config.condition_type", 16, 14),
            ("invalid_value", "nodes[3].config.max_iterations", 16, 41),
        ],
    ),
    (
        """
        - id: t
          type: timeout
          config: {inner_node: m, on_timeout: fallback}
        - id: u
          type: timeout
          config: {inner_node: ghost, on_timeout: never}
        - id: m
          type: model
          config: {response_schema: {type: objekt}, repair_attempts: -1}
        - id: n
          type: model
          config: {response_schema: {type: objekt}}
        """,
        ("t", "u", "n"),
        [
            ("missing_key", "nodes[0].config", 7, 13),
            ("invalid_value", "nodes[1].config.on_timeout", 10, 33),
            ("invalid_value", "nodes[2].config.repair_attempts", 13, 47),
            ("schema", "nodes[3].config.response_schema", 16, 31),
        ],
    ),
    (
        """
        - {id: a, type: loop, config: {body_node: b}}
        - {id: b, type: timeout, config: {inner_node: a}}
        - {id: c, type: loop, config: {body_node: c}}
        - {id: d, type: fanout, config: {target_nodes: [m, end]}}
        - {id: e, type: timeout, config: {inner_node: start}}
        - {id: m, type: model}
        """,
        ("a", "c", "d", "e"),
        [
            ("contains_itself", "nodes[0].config.body_node", 5, 34),
            ("contains_itself", "nodes[1].config.inner_node", 6, 37),
            ("contains_itself", "nodes[2].config.body_node", 7, 34),
            ("wrapped_point", "nodes[3].config.target_nodes[1]", 8, 54),
            ("wrapped_point", "nodes[4].config.inner_node", 9, 37),
        ],
    ),
    (
        """
        - {id: t, type: tool}
        - {id: u, type: tool, config: {tool_id: "", input_mapping: {a: 5}}}
        - {id: r, type: router, config: {multi_label: true, max_labels: 0, compound_routes: [{domains: []}]}}
        - {id: g, type: gate, config: {conditions: [{name: a, expression: "is it good?", target: end}]}}
        """,
        ("t", "u", "r", "g"),
        [
            ("missing_key", "nodes[0].config.tool_id", 5, 5),
            ("invalid_value", "nodes[1].config.tool_id", 6, 34),
            ("invalid_value", "nodes[1].config.input_mapping.a", 6, 63),
            ("invalid_value", "nodes[2].config.max_labels", 7, 55),
            ("missing_key", "nodes[2].config.compound_routes[0].target", 7, 88),
            ("invalid_value", "nodes[2].config.compound_routes[0].domains", 7, 98),
            ("condition", "nodes[3].config.conditions[0].expression", 8, 57),
        ],
    ),
]


@pytest.mark.parametrize(
    ("nodes", "ids", "places"),
    REFUSED,
    ids=["params", "patterns", "routes", "loops", "timeouts", "wrappers", "tools and gates"],
)
def test_every_problem_of_a_wrong_file_is_told_with_line_and_column(nodes, ids, places):
    assert places == errors_of(wrong(nodes, *ids))
