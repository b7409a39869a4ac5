"""Stories: what they tell, how they are stored, and that they are the same each time."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.graphs_text import framed
from tinyllm.config import CircuitBreakerConfig, ExecutorConfig
from tinyllm.graph import Graph, build_graph, load_graph, parse_graph
from tinyllm.testing.checks import Breach, judge
from tinyllm.testing.faults import FaultPlan, HostDown, Latency, OnCall
from tinyllm.testing.graph_world import RunPlan
from tinyllm.testing.promises import graph_checks, promises_of
from tinyllm.testing.scenario import Scenario, play, scenario_from_json, scenario_to_json
from tinyllm.testing.script import Says
from tinyllm.trace import EventKind
from tinyllm_fuzz import story as stories
from tinyllm_fuzz.hunt import Finding
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit

#: Succeeds with `yes`, meets a dead end with anything else, and says sorry without its model.
JUDGE = parse_graph(
    framed(
        """
        - {id: ask, type: model, config: {retry_count: 1, retry_delay_ms: 500, timeout_ms: 2000}, on_error: sorry}
        - id: judge
          type: gate
          config: {conditions: [{name: y, expression: "content.strip() == 'yes'", target: done}]}
        - {id: sorry, type: exit, config: {status: fallback}}
        """,
        edges="""
        - {from_node: start, to_node: ask}
        - {from_node: ask, to_node: judge}
        """,
        more="metadata: {promises: {tolerates_failures: 1, answers_within_ms: 4000}}\n",
    ).replace("exit_points: [done]", "exit_points: [done, sorry]"),
    source="/home/ann/secret/judge.yaml",
)
HOST = "qwen2.5-3b"
DOWN = Scenario(plain_answer="yes", faults=FaultPlan(lasting=(HostDown(host=HOST),)))
SLOW = Scenario(
    plain_answer="yes",
    faults=FaultPlan(
        calls=tuple(OnCall(run=0, node="ask", branch="", call=call, fault=Latency(delay_ms=60_000)) for call in (0, 1))
    ),
)
DEAD_END, PROMISES = "no dead end", "keeps its promises"


def finding_of(scenario: Scenario, check: str, graph: Graph = JUDGE) -> Finding:
    history = play(scenario, graph)
    (verdict,) = judge(history, {check: graph_checks(promises_of(graph))[check]})
    assert "bad" == verdict.verdict
    return Finding(scenario, history, verdict)


def told(scenario: Scenario, check: str = DEAD_END, graph: Graph = JUDGE) -> stories.Story:
    return stories.tell(finding_of(scenario, check, graph), graph)


def text_of(scenario: Scenario, check: str = DEAD_END, graph: Graph = JUDGE) -> str:
    return stories.render(told(scenario, check, graph), path="s.json")


def timeline(text: str) -> list[str]:
    lines = text.splitlines()
    return lines[lines.index("What happened (simulated milliseconds)") + 2 : lines.index("Replay it") - 3]


# --- what it tells -------------------------------------------------------------------------------------


def test_the_first_lines_name_the_check_the_graph_and_the_reason():
    lines = text_of(Scenario()).splitlines()

    assert "no dead end is broken in judge.yaml" == lines[0]
    assert lines[2].startswith("  run-1 met a dead end at judge: GATE_FAILED: ")


def test_the_last_line_replays_it():
    assert "  tinyllm replay s.json" == text_of(Scenario()).splitlines()[-1]


def test_the_path_to_replay_can_be_pasted_into_a_shell():
    story = told(Scenario())

    assert "  tinyllm replay 'my stories/a.json'" == stories.render(story, path="my stories/a.json").splitlines()[-1]


def test_without_a_file_there_is_nothing_to_replay():
    assert "replay" not in stories.render(told(Scenario()), path=None).lower()


@pytest.mark.parametrize(("scenario", "check"), [(Scenario(), DEAD_END), (DOWN, PROMISES), (SLOW, PROMISES)])
def test_exactly_one_line_of_the_timeline_is_marked(scenario, check):
    text = text_of(scenario, check)

    assert 1 == sum(line.startswith(">> ") for line in timeline(text))
    assert 1 == text.count(">>")


def test_the_marked_line_is_the_end_of_the_run_that_broke_the_rule():
    runs = (RunPlan(), RunPlan(start_ms=50))
    scenario = Scenario(runs=runs, plain_answer="yes", says=(Says(text="no", run=1, node="ask"),))

    (marked,) = (line for line in timeline(text_of(scenario)) if line.startswith(">>"))

    assert ["60.000", "run-2", "ends", "failed:", "GATE_FAILED"] == marked.split()[1:]


def marked_lines(breach: Breach) -> list[tuple[str, str]]:
    found = finding_of(Scenario(), DEAD_END)
    story = stories.tell(replace(found, verdict=replace(found.verdict, breach=breach)), JUDGE)
    return [(line["who"], line["what"]) for line in story["happened"] if line["broke"]]


def test_the_step_that_broke_the_rule_is_marked_wherever_it_is():
    trace = finding_of(Scenario(), DEAD_END).history.runs[0].result.trace
    step = next(event for event in trace if event.kind is EventKind.STEP_STARTED and event.node_id == "ask")

    assert [("run-1 ask", "begins (model, path 2)")] == marked_lines(Breach(reason="", run=0, event=step.sequence))


@pytest.mark.parametrize("run", [0, None])
def test_a_breach_that_names_no_step_is_marked_at_the_end(run):
    assert [("run-1", "ends failed: GATE_FAILED")] == marked_lines(Breach(reason="", run=run))


def test_time_never_goes_back_in_the_timeline():
    moments = [line["at_ms"] for line in told(SLOW, PROMISES)["happened"]]

    assert sorted(moments) == moments


def test_retries_and_what_each_was_met_with_are_told():
    what = [line["what"] for line in told(SLOW, PROMISES)["happened"]]

    assert 2 == sum(line.startswith("attempt ") and "TIMEOUT" in line for line in what)
    assert ["waits 500 ms before it tries again"] == [line for line in what if line.startswith("waits")]
    assert 2 == sum(line.startswith("asks qwen2.5:3b on qwen2.5-3b") for line in what)
    assert "leads to sorry (on_error)" in what


NESTED = parse_graph(
    framed(
        """
        - {id: again, type: loop, config: {body_node: limit, fixed_count: 2}}
        - {id: limit, type: timeout, config: {inner_node: vote, timeout_ms: 1000, on_timeout: skip}}
        - {id: vote, type: fanout, config: {target_nodes: [ask]}}
        - {id: ask, type: model}
        - {id: judge, type: gate, config: {conditions: []}}
        """,
        edges="""
        - {from_node: start, to_node: again}
        - {from_node: again, to_node: judge}
        - {from_node: judge, to_node: done}
        """,
    ),
)


def test_steps_inside_wrappers_say_where_they_are():
    slow = OnCall(run=0, node="ask", branch=".2.1", fault=Latency(delay_ms=2_000))
    lines = stories.render(told(Scenario(faults=FaultPlan(calls=(slow,))), graph=NESTED), path=None).splitlines()
    text = "\n".join(" ".join(line.split()) for line in lines)

    for line in (
        "0.000 run-1 again begins (loop, path 2)",
        "0.000 run-1 limit begins (timeout, path 2.1, iteration 1 of again)",
        "0.000 run-1 vote begins (fanout, path 2.1, at most 1000 ms inside limit)",
        "0.000 run-1 ask begins (model, path 2.1.1, target 1 of vote)",
        "10.000 run-1 limit begins (timeout, path 2.2, iteration 2 of again)",
        "1010.000 run-1 ask is cut off: deadline",
        "1010.000 run-1 limit goes on all the same (on_timeout: skip)",
    ):
        assert line in text


def test_a_breaker_that_opens_and_refuses_is_told():
    config = ExecutorConfig(
        failure_policy="skip_failed", breaker=CircuitBreakerConfig(threshold=1), max_messages=2, prune=True
    )
    text = text_of(Scenario(faults=FaultPlan(lasting=(HostDown(host=HOST),)), config=config), graph=REFUSED)

    assert "run-1 ask turns its circuit breaker from closed to open" in " ".join(text.split())
    assert "run-1 more fails at once: its circuit breaker is open" in " ".join(text.split())
    assert "1 old messages are dropped" in text


REFUSED = parse_graph(
    framed(
        """
        - {id: ask, type: model}
        - {id: more, type: model}
        - {id: judge, type: gate, config: {conditions: []}}
        """,
        edges="""
        - {from_node: start, to_node: ask}
        - {from_node: ask, to_node: more}
        - {from_node: more, to_node: judge}
        - {from_node: judge, to_node: done, condition: "False"}
        """,
    )
)


def test_a_host_that_is_down_is_told_before_it_is_asked():
    happened = [(line["who"], line["what"]) for line in told(DOWN, PROMISES)["happened"]]

    down = happened.index((HOST, "goes down, until healed"))
    refused = happened.index((HOST, "refuses the connection [host down] (ask)"))
    assert down < refused


def test_what_was_given_names_inputs_answers_and_faults():
    scenario = replace(
        DOWN, runs=(RunPlan(content="hello", context="x", start_ms=5),), says=(Says(text="no", node="ask", call=1),)
    )
    story = {**told(DOWN, PROMISES), "scenario": scenario_to_json(scenario)}

    given_lines = stories.render(story, path="s").splitlines()

    assert '  input      run-1 "hello", context "x", at 5 ms' in given_lines
    assert '  answers    every model says "yes"' in given_lines
    assert '             but ask gets "no" in call 2' in given_lines
    assert "  faults     host down (host='qwen2.5-3b', start_ms=0)" in given_lines
    assert "  schedule   stock asyncio" in given_lines


def test_a_fault_of_one_call_says_which():
    assert "latency (delay_ms=60000) on call 2 of ask in run-1" in text_of(SLOW, PROMISES)


def test_the_run_after_the_storm_is_left_out_unless_it_broke():
    told_runs = {line["who"].split()[0] for line in told(DOWN, PROMISES)["happened"]}

    assert {"run-1", HOST} == told_runs


@pytest.mark.parametrize("answer", ["\x1b[2J", "a\nb", "\N{RIGHT-TO-LEFT OVERRIDE}x", "word " * 400])
def test_whatever_a_model_says_a_story_is_plain_lines_of_a_bearable_length(answer):
    lines = text_of(Scenario(plain_answer=answer)).splitlines()

    assert all(line.isascii() and (not line or line.isprintable()) for line in lines)
    assert 250 > max(map(len, lines))


@pytest.mark.parametrize("name", ["\x1b[2J", "a\nb", "\udcff", "\N{RIGHT-TO-LEFT OVERRIDE}"])
def test_no_name_in_a_graph_reaches_the_terminal_unprintable(name):
    story = told(Scenario())
    story["graph"]["name"] = story["happened"][0]["who"] = name

    lines = stories.render(story, path=name).splitlines()

    assert all(line.isprintable() for line in lines)
    assert 2 <= "".join(lines).count(name.encode("unicode_escape").decode())


# --- its file ------------------------------------------------------------------------------------------


def test_a_story_is_the_same_each_time():
    first, second = (stories.dumped(told(SLOW, PROMISES)) for _ in range(2))

    assert first == second


def test_a_story_holds_no_path_of_the_machine():
    assert "/home" not in stories.dumped(told(Scenario()))


def test_a_story_is_plain_json_that_is_read_back_as_it_was(tmp_path):
    story = told(SLOW, PROMISES)
    path = stories.save(story, tmp_path / "deep" / "stories")

    assert story == json.loads(path.read_bytes()) == stories.load(path)
    assert path.read_bytes().isascii()


def test_a_story_is_named_by_what_it_says(tmp_path):
    one, other = told(Scenario()), told(SLOW, PROMISES)
    names = [stories.save(story, tmp_path).name for story in (one, other, one)]

    assert names[0] == names[2] != names[1]
    assert all(re.fullmatch("[0-9a-f]{16}[.]json", name) for name in names)
    assert 2 == len(list(tmp_path.iterdir()))


def test_a_story_holds_all_it_takes_to_live_it_again():
    story = json.loads(stories.dumped(told(SLOW, PROMISES)))

    graph = build_graph(story["graph"]["definition"], source=story["graph"]["name"])
    scenario = scenario_from_json(story["scenario"])

    assert (SLOW, JUDGE.definition) == (scenario, graph.definition)
    assert story == stories.tell(finding_of(scenario, story["check"], graph), graph)


def test_a_graph_that_came_from_no_file_is_named_by_its_id(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(JUDGE.document.value if JUDGE.document else {}), encoding="utf-8")
    from_file = load_graph(path)

    assert "graph.json" == stories.graph_to_json(from_file)["name"]
    assert "g" == stories.graph_to_json(Graph(from_file.definition))["name"]


@given(json_values() | st.dictionaries(st.sampled_from(["format", "check", "graph"]), st.integers(2, 9)))
def test_no_other_json_is_taken_for_a_story(tmp_path_factory, value):
    path = Path(tmp_path_factory.getbasetemp()) / "no_story.json"
    path.write_text(json.dumps(value), encoding="utf-8")

    with pytest.raises(stories.StoryError, match=r"no_story\.json: this is no story of format 1"):
        stories.load(path)


@pytest.mark.parametrize("key", ["check", "graph", "scenario", "happened", "history"])
def test_a_story_that_lacks_something_says_what(key, tmp_path):
    story = told(Scenario())
    del story[key]
    path = tmp_path / "story.json"
    path.write_text(json.dumps(story), encoding="utf-8")

    with pytest.raises(stories.StoryError, match=f"lacks {key}"):
        stories.load(path)


@pytest.mark.parametrize(
    ("called", "on_path", "line"),
    [
        (".venv/bin/tinyllm", None, "  .venv/bin/tinyllm replay s.json"),
        (".venv/bin/tinyllm", "/usr/bin/tinyllm", "  tinyllm replay s.json"),
        ("pytest", None, "  tinyllm replay s.json"),
    ],
)
def test_the_line_to_paste_names_the_command_as_its_user_called_it(called, on_path, line, monkeypatch):
    monkeypatch.setattr("sys.argv", [called])
    monkeypatch.setattr("shutil.which", lambda name: on_path)

    assert line == stories.render(told(Scenario()), path="s.json").splitlines()[-1]
