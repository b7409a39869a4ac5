"""The promises of a graph file, read with the place of everything that is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given

from tests.support.graphs_text import Place, framed, place
from tinyllm.config.promises import Promises
from tinyllm.errors import ErrorCode, GraphConfigError
from tinyllm.graph import build_graph, parse_graph
from tinyllm.testing.promises import promises_of
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit

PLAIN: dict[str, Any] = {
    "id": "g",
    "version": "1.0.0",
    "name": "g",
    "nodes": [{"id": "start", "type": "entry"}, {"id": "done", "type": "exit"}],
    "edges": [{"from_node": "start", "to_node": "done"}],
    "entry_points": ["start"],
    "exit_points": ["done"],
}


def promises_in(metadata: Any) -> Promises:
    return promises_of(build_graph({**PLAIN, "metadata": metadata}))


def refusals(lines: str) -> list[Place]:
    """What is wrong with these lines under `promises:`, the first of which is line 14."""
    graph = parse_graph(framed(more="metadata:\n  promises:\n" + lines))
    with pytest.raises(GraphConfigError) as error:
        promises_of(graph)
    return [place(problem) for problem in error.value.problems]


def test_every_promise_is_read():
    metadata = {"promises": {"tolerates_failures": 2, "answers_within_ms": 900, "never": ["TIMEOUT", "GATE_FAILED"]}}

    assert Promises(
        tolerates_failures=2, answers_within_ms=900, never=(ErrorCode.TIMEOUT, ErrorCode.GATE_FAILED)
    ) == promises_in(metadata)


@pytest.mark.parametrize("metadata", [None, {}, {"author": "x"}, {"promises": None}, {"promises": {}}])
def test_a_file_without_promises_promises_nothing(metadata):
    assert Promises() == promises_in(metadata)


@pytest.mark.parametrize("code", ErrorCode)
def test_every_error_code_can_be_ruled_out(code):
    assert (code,) == promises_in({"promises": {"never": [code.value]}}).never


@pytest.mark.parametrize(
    "promises",
    [
        {"tolerates_failures": 0},
        {"tolerates_failures": 100},
        {"tolerates_failures": None},
        {"answers_within_ms": 1},
        {"answers_within_ms": 2**31 - 1},
        {"answers_within_ms": None},
        {"never": []},
        {"never": ["TIMEOUT", "TIMEOUT"]},
    ],
)
def test_the_bounds_belong_to_what_can_be_promised(promises):
    promises_in({"promises": promises})


NO_PROMISES: dict[str, list[Any]] = {
    "tolerates_failures": [-1, 101, 1.0, True, "1", [1]],
    "answers_within_ms": [0, 2**31, 0.5, False, "900", {}],
    "never": ["TIMEOUT", None, 5, {"TIMEOUT": 1}, True],
    "tolerates_failure": [1, None],
    "": [1],
}


@pytest.mark.parametrize(("key", "value"), [(key, value) for key, values in NO_PROMISES.items() for value in values])
def test_what_cannot_be_promised_is_refused_by_name(key, value):
    with pytest.raises(GraphConfigError) as error:
        promises_in({"promises": {key: value}})

    (problem,) = error.value.problems
    assert f"metadata.promises.{key}" == problem.path if key else problem.path.startswith("metadata.promises[")
    assert ("promise", None, None) == (problem.code, problem.line, problem.column)
    assert "Promises are tolerates_failures, answers_within_ms, never." == problem.hint


@pytest.mark.parametrize("promises", ["x", 5, True, [], ["never"], 1.5])
def test_promises_are_a_mapping(promises):
    with pytest.raises(GraphConfigError, match="promises are a mapping"):
        promises_in({"promises": promises})


@pytest.mark.parametrize(
    ("lines", "problems"),
    [
        ("    tolerates_failures: yes\n", [("promise", "metadata.promises.tolerates_failures", 14, 5)]),
        ("    never: [TIMEOUT, LATE]\n", [("promise", "metadata.promises.never[1]", 14, 22)]),
        ("    never:\n      - timeout\n", [("promise", "metadata.promises.never[0]", 15, 9)]),
        ("    nevr: [TIMEOUT]\n", [("promise", "metadata.promises.nevr", 14, 11)]),
        ("    'a b': 1\n", [("promise", "metadata.promises['a b']", 14, 5)]),
        ("    - never\n", [("promise", "metadata.promises", 14, 5)]),
        (
            "    typo: 1\n    never: [X, TIMEOUT, Y]\n    tolerates_failures: -1\n",
            [
                ("promise", "metadata.promises.typo", 14, 5),
                ("promise", "metadata.promises.never[0]", 15, 13),
                ("promise", "metadata.promises.never[2]", 15, 25),
                ("promise", "metadata.promises.tolerates_failures", 16, 5),
            ],
        ),
    ],
)
def test_every_problem_is_told_with_its_place_in_the_order_of_the_file(lines, problems):
    assert problems == refusals(lines)


def test_at_most_100_problems_are_told_the_first_of_the_file():
    found = refusals("    never: [" + "X, " * 150 + "]\n    typo: 1\n")

    assert [f"metadata.promises.never[{number}]" for number in range(100)] == [path for _, path, _, _ in found]


def test_a_value_is_shown_short_however_long_it_is():
    with pytest.raises(GraphConfigError) as error:
        promises_in({"promises": {"never": [["x" * 10_000] * 1_000]}})

    assert len(str(error.value)) < 1_000


def test_an_unknown_promise_is_called_one():
    with pytest.raises(GraphConfigError, match="unknown promise"):
        promises_in({"promises": {"always": 1}})


@given(json_values())
def test_anything_is_promises_or_a_refusal(value):
    text = json.dumps({**PLAIN, "metadata": {"promises": value}})

    try:
        promises_of(parse_graph(text))
    except GraphConfigError as error:
        refused = error.problems
    else:
        refused = ()

    assert {"promise"} >= {problem.code for problem in refused}
    assert all(problem.path.startswith("metadata.promises") and problem.line == 1 for problem in refused)
