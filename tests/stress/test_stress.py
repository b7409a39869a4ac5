"""Sizes beyond the ordinary. Each size is drawn, so that a failure shrinks to the smallest that shows it."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.graph import Graph, build_graph, load_graph
from tinyllm.message import Message, MessagePayload
from tinyllm.testing.checks import ENGINE_CHECKS, judge
from tinyllm.testing.faults import FaultPlan, OnCall, ServerError
from tinyllm.testing.graph_world import RunPlan
from tinyllm.testing.scenario import Scenario, play
from tinyllm.testing.script import Says
from tinyllm_strategies import schedules

pytestmark = pytest.mark.stress

CONSENSUS = load_graph(Path(__file__).parents[2] / "examples" / "graphs" / "consensus.yaml")
VOTERS = ("voter.qwen", "voter.llama", "voter.smollm")


def chain(length: int) -> Graph:
    """An entry, `length` models in a row, an exit."""
    names = ["entry", *(f"n{number}" for number in range(length)), "exit"]
    kinds = ["entry", *["model"] * length, "exit"]
    return build_graph(
        {
            "id": "chain",
            "version": "1.0.0",
            "name": "chain",
            "nodes": [{"id": name, "type": kind} for name, kind in zip(names, kinds, strict=True)],
            "edges": [{"from_node": a, "to_node": b} for a, b in pairwise(names)],
            "entry_points": ["entry"],
            "exit_points": ["exit"],
        }
    )


def check_history(history) -> None:
    verdicts = judge(history, ENGINE_CHECKS)

    assert [] == [verdict for verdict in verdicts if verdict.verdict != "ok"]


@settings(max_examples=15)
@given(runs=st.integers(1, 150), schedule=schedules(timed=False))
def test_many_runs_at_once_stay_apart(runs, schedule):
    """Every run has an answer of its own, and gets it back."""
    says = tuple(Says(run=run, node=voter, text=f"yes {run}") for run in range(runs) for voter in VOTERS)
    history = play(Scenario(runs=(RunPlan(),) * runs, says=says, schedule=schedule), CONSENSUS)

    check_history(history)
    assert [f"yes {run}" for run in range(runs)] == [record.result.content for record in history.runs[:runs]]


@settings(max_examples=15)
@given(size=st.integers(0, 300_000), answer_size=st.integers(0, 300_000))
def test_large_contents_arrive_whole(size, answer_size):
    question, answer = "q" * size, "a" * answer_size
    history = play(Scenario(runs=(RunPlan(content=question),), plain_answer=answer), chain(1))

    check_history(history)
    assert question == history.calls[0].prompt
    assert answer == history.runs[0].result.content


@settings(max_examples=20)
@given(levels=st.integers(1, 300))
def test_deep_message_hierarchies_keep_their_lineage(levels):
    root = Message(trace_id="trace", source_node="user", payload=MessagePayload(content="x", structured={"a": [1]}))
    line = [root]
    for number in range(levels):
        line.append(line[-1].create_child(f"n{number}"))

    assert {"trace"} == {message.trace_id for message in line}
    assert [message.message_id for message in line[:-1]] == [message.parent_id for message in line[1:]]
    assert root.payload == line[-1].payload


@settings(max_examples=15)
@given(length=st.integers(1, 98))
def test_long_chains_take_one_step_for_each_node(length):
    history = play(Scenario(), chain(length))

    check_history(history)
    assert length + 2 == history.runs[0].result.nodes_executed
    assert length * 10.0 == history.runs[0].result.total_latency_ms


@settings(max_examples=20)
@given(runs=st.integers(1, 40), failing=st.binary(min_size=240, max_size=240))
def test_when_most_calls_fail_every_run_still_ends_as_the_reference_says(runs, failing):
    """Seven calls of ten fail: each voter's first and second attempt is decided by a byte of its own."""
    slots = [(run, index, call) for run in range(runs) for index in range(3) for call in range(2)]
    calls = tuple(
        OnCall(run=run, node=VOTERS[index], branch=f".{index + 1}", call=call, fault=ServerError())
        for byte, (run, index, call) in zip(failing, slots, strict=False)
        if byte >= 77
    )
    history = play(Scenario(runs=(RunPlan(),) * runs, faults=FaultPlan(calls=calls)), CONSENSUS)

    check_history(history)
