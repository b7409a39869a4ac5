"""Graph files as text, and what the loader says about them."""

from __future__ import annotations

import textwrap

from tinyllm.errors import GraphConfigError, Problem
from tinyllm.graph import Graph, parse_graph

#: A graph of every node type without anything to complain about.
EVERY_TYPE = """\
id: support.triage
version: 1.2.3
name: Triage
description: Answers easy questions, asks three models for the others.
metadata:
  author: tests
nodes:
  - id: start
    type: entry
    config:
      required_fields: [content]
  - id: look
    type: gate
    config:
      conditions:
        - {name: short, expression: "len(content) < 80", target: answer}
      default_target: ask
  - id: answer
    type: model
    config: {model: small, retry_count: 2}
    on_error: failed
  - id: ask
    type: fanout
    config:
      target_nodes: [one, two, three]
      aggregation_strategy: majority_vote
  - {id: one, type: model}
  - {id: two, type: model}
  - {id: three, type: model, config: {prompt_template: "Again: {content}"}}
  - {id: done, type: exit}
  - {id: failed, type: exit, config: {status: failure, message: sorry}}
  - {id: back, type: entry}
  - id: sort
    type: router
    config:
      mode: rules
      routes:
        - {name: sum, condition: "content.startswith('=')", target: count}
        - {name: text, condition: "True", target: shorten, priority: -1}
  - id: count
    type: tool
    config: {tool_id: calculator, input_mapping: {expression: content}}
  - id: shorten
    type: transform
    config:
      transforms:
        - {type: strip}
        - {type: truncate, params: {max_length: 80}}
  - {id: again, type: loop, config: {body_node: quick, fixed_count: 2}}
  - {id: quick, type: timeout, config: {inner_node: one, timeout_ms: 500, on_timeout: skip}}
edges:
  - {from_node: start, to_node: look}
  - {from_node: answer, to_node: failed, condition: "content == ''", priority: 1}
  - {from_node: answer, to_node: done}
  - {from_node: ask, to_node: done}
  - {from_node: back, to_node: sort}
  - {from_node: count, to_node: done}
  - {from_node: shorten, to_node: again}
  - {from_node: again, to_node: done}
entry_points: [start, back]
exit_points: [done, failed]
protected: [start]
"""

#: The top level of a graph from `start` to `done`; `nodes`, lines of YAML, stand between the two, on line 5 and on.
FRAME = """\
id: g
version: 1.0.0
name: g
nodes:
{nodes}
- {{id: start, type: entry}}
- {{id: done, type: exit}}
edges:
{edges}
entry_points: [start]
exit_points: [done]
"""

Place = tuple[str, str, int | None, int | None]


def framed(nodes: str = "", edges: str = "- {from_node: start, to_node: done}", more: str = "") -> str:
    """A whole file around some nodes (from line 5 on) and edges."""
    text = FRAME.format(nodes=textwrap.dedent(nodes).strip("\n"), edges=textwrap.dedent(edges).strip("\n"))
    return text + textwrap.dedent(more)


def refusal_of(text: str | bytes) -> GraphConfigError:
    """The error with which this text is refused."""
    try:
        graph = parse_graph(text)
    except GraphConfigError as error:
        return error
    raise AssertionError(f"this loaded, with {graph.warnings}")


def errors_of(text: str | bytes) -> list[Place]:
    """(code, path, line, column) of each problem for which this text is refused."""
    return [place(problem) for problem in refusal_of(text).problems]


def warnings_of(text: str | bytes) -> list[Place]:
    """(code, path, line, column) of each warning about a text that loads."""
    return [place(problem) for problem in parse_graph(text).warnings]


def place(problem: Problem) -> Place:
    return (problem.code, problem.path, problem.line, problem.column)


def judged(text: str | bytes) -> Graph | GraphConfigError:
    """The graph or the refusal; every promise that holds for both is asserted here."""
    result: Graph | GraphConfigError
    try:
        result = parse_graph(text)
    except GraphConfigError as error:
        result = error
    problems = result.warnings if isinstance(result, Graph) else result.problems
    severity = "warning" if isinstance(result, Graph) else "error"
    assert {severity} >= {problem.severity for problem in problems}
    assert len(problems) in (range(101) if isinstance(result, Graph) else range(1, 101))
    places = [(problem.line or 0, problem.column or 0) for problem in problems]
    assert places == sorted(places)
    lines = (text if isinstance(text, str) else text.decode("utf-8", "replace")).count("\n") + 1
    # What is missing at the end stands on the line after the last.
    assert all(1 <= (problem.line or 1) <= lines + 1 for problem in problems)
    for problem in problems:
        # What is told fits a terminal, whatever the file held.
        told = str(problem)
        assert told.isprintable()
        assert len(told.encode("utf-8")) < 10_000
    return result
