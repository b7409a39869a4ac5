"""`tinyllm check` and `tinyllm replay` as a shell sees them: exit codes, what is printed, and where."""

from __future__ import annotations

import itertools
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.graphs_text import framed
from tinyllm.cli import main as cli_main
from tinyllm.cli.main import cli
from tinyllm.testing import scenario
from tinyllm.testing.checks import Breach
from tinyllm.testing.history import History
from tinyllm_fuzz import check as check_command
from tinyllm_fuzz import hunt as hunting
from tinyllm_fuzz import replay as replay_command

pytestmark = pytest.mark.unit

EXAMPLES = Path(__file__).parents[2] / "examples" / "graphs"
#: Nothing in it can fail.
SOUND = framed()
#: Leads to no exit unless the model says yes.
BROKEN = framed(
    """
    - {id: ask, type: model}
    - {id: judge, type: gate, config: {conditions: [{name: y, expression: "content == 'yes'", target: done}]}}
    """,
    edges="""
    - {from_node: start, to_node: ask}
    - {from_node: ask, to_node: judge}
    """,
)
#: Two problems, on lines 5 and 9.
REFUSED = framed("- {id: ask, type: model, config: {timeout_ms: -1}}", edges="- {from_node: start, to_node: dome}")
#: Its one model never runs, so no host's failure can be at stake.
BESIDE_THE_POINT = framed(
    """
    - {id: ask, type: model}
    - {id: sorry, type: exit, config: {status: fallback}}
    """,
    edges="""
    - {from_node: start, to_node: ask}
    - {from_node: ask, to_node: sorry}
    """,
    more="metadata: {promises: {tolerates_failures: 1}}\n",
).replace("exit_points: [done]", "exit_points: [done, sorry]")


TO_ASK = """
    - {from_node: start, to_node: ask}
    - {from_node: ask, to_node: done}
"""


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TINYLLM_PROFILE", raising=False)


def tinyllm(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])


def check(text: str, *options: str, name: str = "graph.yaml") -> Result:
    """`tinyllm check` of a file with this text in the current folder, few examples, always the same."""
    Path(name).write_text(text, encoding="utf-8")
    return tinyllm("check", name, "--seed", "1", "--max-examples", "30", *options)


def reply_of(result: Result) -> dict[str, Any]:
    """The one JSON object on standard output."""
    reply = json.loads(result.stdout)
    assert isinstance(reply, dict)
    return reply


def story_files() -> list[Path]:
    return sorted(Path(".tinyllm").rglob("*")) if Path(".tinyllm").exists() else []


def interrupted(*_arguments: Any) -> History:
    raise KeyboardInterrupt


def never_sure(history: History) -> Iterator[Breach]:
    raise LookupError("who knows")


# --- check: exit code 0 --------------------------------------------------------------------------------


def test_a_graph_that_held_exits_0_with_every_check_and_figure():
    result = check(SOUND)

    assert 0 == result.exit_code
    assert "graph.yaml held" in result.stdout
    for told in ("no dead end", "agrees", "deterministic", "examples", "simulated time", "seed"):
        assert told in result.stdout


def test_a_promise_appears_in_the_figures():
    result = check(framed(more="metadata: {promises: {answers_within_ms: 5}}\n"))

    assert 0 == result.exit_code
    assert "keeps its promises" in result.stdout
    assert "answers_within_ms" in result.stdout


def test_a_graph_that_held_leaves_no_story():
    check(SOUND)

    assert [] == story_files()


def test_held_as_json_is_one_object():
    result = check(framed(more="metadata: {promises: {never: [TIMEOUT]}}\n"), "--format", "json")

    reply = reply_of(result)
    assert 0 == result.exit_code
    assert ("held", 1, {"never": ["TIMEOUT"]}) == (reply["verdict"], reply["seed"], reply["promises"])
    assert {"no dead end", "keeps its promises", "deterministic"} < set(reply["checks"])
    assert 30 >= reply["examples"] > 0
    assert reply["runs"] == sum(reply["endings"].values())
    assert "graph.yaml" == reply["graph"]


def test_max_examples_limits_the_hunt():
    Path("graph.yaml").write_text(SOUND, encoding="utf-8")

    assert 3 == reply_of(tinyllm("check", "graph.yaml", "--max-examples", "3", "--format", "json"))["examples"]


def test_the_same_seed_looks_at_the_same_examples():
    def figures_of(seed: int) -> dict[str, Any]:
        Path("graph.yaml").write_text(framed("- {id: ask, type: model}", edges=TO_ASK), encoding="utf-8")
        arguments = ("--max-examples", "10", "--seed", str(seed), "--format", "json")
        reply = reply_of(tinyllm("check", "graph.yaml", *arguments))
        return {key: value for key, value in reply.items() if key not in {"elapsed_s", "examples_per_s", "seed"}}

    assert figures_of(1) == figures_of(1)
    assert any(figures_of(1) != figures_of(seed) for seed in (2, 3))


def test_without_a_seed_ci_has_its_own_and_dev_a_new_one_each_time():
    Path("graph.yaml").write_text(SOUND, encoding="utf-8")

    def seed_of(profile: str) -> int:
        arguments = ("--profile", profile, "--max-examples", "1", "--format", "json")
        return int(reply_of(tinyllm("check", "graph.yaml", *arguments))["seed"])

    assert check_command.CI_SEED == seed_of("ci") == seed_of("ci")
    assert 1 < len({seed_of("dev") for _ in range(4)})


def test_the_environment_names_the_profile(monkeypatch):
    Path("graph.yaml").write_text(SOUND, encoding="utf-8")
    monkeypatch.setenv("TINYLLM_PROFILE", "ci")

    reply = reply_of(tinyllm("check", "graph.yaml", "--max-examples", "1", "--format", "json"))

    assert check_command.CI_SEED == reply["seed"]


# --- check: exit code 1 --------------------------------------------------------------------------------


def test_a_broken_graph_exits_1_with_a_story_that_names_everything():
    result = check(BROKEN)

    (story,) = Path(".tinyllm/stories").iterdir()
    lines = result.stdout.splitlines()
    assert 1 == result.exit_code
    assert "no dead end is broken in graph.yaml" == lines[0]
    assert "run-1 met a dead end at judge: GATE_FAILED" in lines[2]
    assert any(line.split() == ["faults", "none"] for line in lines)
    assert 1 == sum(line.startswith(">>") for line in lines)
    assert f"  tinyllm replay {story}" in lines
    assert "(seed 1)" in lines[-1]


def test_broken_as_json_is_one_object_with_the_story_in_it():
    result = check(BROKEN, "--format", "json")

    reply = reply_of(result)
    assert 1 == result.exit_code
    assert ("broken", "no dead end", 1) == (reply["verdict"], reply["story"]["check"], reply["seed"])
    assert reply["story"] == json.loads(Path(reply["story_file"]).read_text(encoding="utf-8"))


def test_the_same_seed_tells_the_same_story():
    first, second = check(BROKEN), check(BROKEN)

    assert first.stdout == second.stdout
    assert 1 == len(list(Path(".tinyllm/stories").iterdir()))


def test_a_story_does_not_tell_where_its_graph_lay(tmp_path):
    path = tmp_path / "somewhere" / "graph.yaml"
    path.parent.mkdir()
    path.write_text(BROKEN, encoding="utf-8")

    there = reply_of(tinyllm("check", path, "--seed", "1", "--max-examples", "30", "--format", "json"))

    assert str(tmp_path) not in json.dumps(there["story"])
    assert str(tmp_path) not in Path(there["story_file"]).read_text(encoding="utf-8")
    assert there["story"] == reply_of(check(BROKEN, "--format", "json"))["story"]


# --- check: exit code 2 --------------------------------------------------------------------------------


def test_a_bad_file_exits_2_with_every_problem_its_line_and_its_column():
    result = check(REFUSED)

    assert 2 == result.exit_code
    assert "" == result.stdout
    assert "graph.yaml is refused" in result.stderr
    assert "graph.yaml:5:" in result.stderr
    assert "nodes[0].config.timeout_ms" in result.stderr
    assert "graph.yaml:9:" in result.stderr
    assert "edges[0].to_node" in result.stderr


def test_refused_as_json_is_one_object_with_every_problem():
    result = check(REFUSED, "--format", "json")

    reply = reply_of(result)
    problems = {problem["path"]: (problem["line"], problem["column"]) for problem in reply["problems"]}
    assert (2, "refused", "graph.yaml") == (result.exit_code, reply["verdict"], reply["graph"])
    assert (5, 35) == problems["nodes[0].config.timeout_ms"]
    assert (9, 22) == problems["edges[0].to_node"]


@pytest.mark.parametrize(
    ("text", "line"),
    [("- 1\n", 1), ("id: [\n", 2), ("a: 1\na: 2\n", 2), ("id: \x00", 1), ("x: !!python/object:os.x\n", 1)],
)
@pytest.mark.parametrize("style", ["text", "json"])
def test_text_that_is_no_graph_exits_2_with_its_place(text, line, style):
    result = check(text, "--format", style)

    assert 2 == result.exit_code
    if style == "json":
        assert line in [problem["line"] for problem in reply_of(result)["problems"]]
    else:
        assert f"graph.yaml:{line}:" in result.stderr


@pytest.mark.parametrize("text", ["", "{", "# nothing\n"])
def test_a_file_that_says_nothing_exits_2(text):
    result = check(text)

    assert 2 == result.exit_code
    assert "graph.yaml is refused" in result.stderr


def test_bytes_that_are_no_text_exit_2():
    Path("graph.yaml").write_bytes(b"id: \xff\xfe\x00")

    assert 2 == tinyllm("check", "graph.yaml").exit_code


@pytest.mark.parametrize("style", ["text", "json"])
@pytest.mark.parametrize("path", ["missing.yaml", ".", "no/such/folder.yaml"])
def test_what_cannot_be_read_exits_2_and_is_named(path, style):
    result = tinyllm("check", path, "--format", style)

    assert 2 == result.exit_code
    if style == "json":
        assert ("refused", path) == (reply_of(result)["verdict"], reply_of(result)["graph"])
    else:
        assert path in result.stderr


def test_promises_that_make_no_sense_exit_2_with_their_place():
    bad = framed(more="metadata:\n  promises:\n    tolerates_failures: many\n")

    as_text, as_json = check(bad), check(bad, "--format", "json")

    assert (2, 2) == (as_text.exit_code, as_json.exit_code)
    assert "graph.yaml:14:5" in as_text.stderr
    (problem,) = reply_of(as_json)["problems"]
    assert ("metadata.promises.tolerates_failures", 14, 5) == (problem["path"], problem["line"], problem["column"])


@pytest.mark.parametrize(
    "options",
    [
        ["--profile", "fast"],
        ["--max-examples", "0"],
        ["--max-examples", "many"],
        ["--seed", "-1"],
        ["--seed", str(2**64)],
        ["--format", "xml"],
        ["--no-such-option"],
        ["another.yaml"],
    ],
)
def test_an_option_that_makes_no_sense_exits_2(options):
    result = check(SOUND, *options)

    assert 2 == result.exit_code
    assert "Usage:" in result.stderr


def test_a_profile_in_the_environment_that_does_not_exist_exits_2(monkeypatch):
    monkeypatch.setenv("TINYLLM_PROFILE", "fast")

    assert 2 == check(SOUND).exit_code


@pytest.mark.parametrize("command", ["check", "replay"])
def test_without_a_file_the_exit_code_is_2(command):
    assert 2 == tinyllm(command).exit_code


# --- check: exit codes 3 and 130 -----------------------------------------------------------------------


def test_a_check_that_cannot_say_exits_3_and_never_0(monkeypatch):
    monkeypatch.setattr(hunting, "ENGINE_CHECKS", {"mystery": never_sure})

    result = check(SOUND)

    assert 3 == result.exit_code
    assert "nothing is known about the graph" in result.stderr
    assert "'mystery' could not say: LookupError: who knows" in result.stderr
    assert "held" not in result.stdout


def test_error_as_json_is_one_object(monkeypatch):
    monkeypatch.setattr(hunting, "ENGINE_CHECKS", {"mystery": never_sure})

    result = check(SOUND, "--format", "json")

    assert (3, "error") == (result.exit_code, reply_of(result)["verdict"])
    assert "who knows" in reply_of(result)["reason"]


def test_a_promise_that_could_not_be_judged_exits_3():
    result = check(BESIDE_THE_POINT)

    assert 3 == result.exit_code
    assert "tolerates_failures could not be judged" in result.stderr


def test_an_error_of_the_harness_exits_3_with_its_traceback(monkeypatch):
    def stumbling(*_arguments, **_keywords):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(check_command, "hunt", stumbling)

    result = check(SOUND, "--format", "json")

    assert (3, "error") == (result.exit_code, reply_of(result)["verdict"])
    assert "ZeroDivisionError: a bug of ours" == reply_of(result)["reason"]
    assert "Traceback" in result.stderr


def test_a_world_that_is_not_the_same_twice_exits_3(monkeypatch):
    monkeypatch.setattr(hunting, "DETERMINISM_SHARE", 1)
    monkeypatch.setattr(hunting, "play", _never_the_same(hunting.play))

    result = check(SOUND)

    assert 3 == result.exit_code
    assert "two lives of one world differ" in result.stderr


def test_ctrl_c_in_the_middle_of_a_hunt_exits_130_and_says_so(monkeypatch):
    lives = itertools.count()
    play = hunting.play
    monkeypatch.setattr(hunting, "play", lambda *given: play(*given) if next(lives) < 3 else interrupted())

    result = check(SOUND, "--format", "json")

    assert (130, "") == (result.exit_code, result.stdout)
    assert ["stopped"] == result.stderr.splitlines()


def test_a_finding_is_told_even_if_its_story_cannot_be_saved():
    Path(".tinyllm").touch()

    as_text, as_json = check(BROKEN), check(BROKEN, "--format", "json")

    assert (1, 1) == (as_text.exit_code, as_json.exit_code)
    assert "run-1 met a dead end at judge: GATE_FAILED" in as_text.stdout
    assert "tinyllm replay" not in as_text.stdout
    assert "the story could not be saved" in as_text.stderr
    assert ("broken", None) == (reply_of(as_json)["verdict"], reply_of(as_json)["story_file"])


def _never_the_same(play):
    """`play` with a seed that goes up: another life each time."""
    lives = 0

    def another(scenario, graph):
        nonlocal lives
        lives += 1
        history = play(scenario, graph)
        history.runs[0].run_id = f"life-{lives}"
        return history

    return another


# --- warnings ------------------------------------------------------------------------------------------

WARNED = framed("- {id: lonely, type: model}")


@pytest.mark.parametrize("style", ["text", "json"])
def test_warnings_go_to_standard_error_and_change_nothing(style):
    result = check(WARNED, "--format", style)

    assert 0 == result.exit_code
    assert "graph.yaml:5:" in result.stderr
    assert "warning" in result.stderr
    assert "warning" not in result.stdout
    if style == "json":
        assert "held" == reply_of(result)["verdict"]


# --- replay --------------------------------------------------------------------------------------------


def test_replay_shows_the_same_story_bit_for_bit_and_exits_1():
    told = check(BROKEN).stdout
    (story,) = Path(".tinyllm/stories").iterdir()

    again = tinyllm("replay", story)

    assert 1 == again.exit_code
    assert told[: told.index("\nFound after")] == again.stdout
    assert "" == again.stderr


def test_replay_needs_the_story_alone():
    check(BROKEN)
    (story,) = Path(".tinyllm/stories").iterdir()
    Path("graph.yaml").unlink()

    assert 1 == tinyllm("replay", story).exit_code


def changed(change) -> Path:
    """The story of BROKEN after a change, in a file of its own."""
    story = reply_of(check(BROKEN, "--format", "json"))["story"]
    change(story)
    path = Path("changed.json")
    path.write_text(json.dumps(story), encoding="utf-8")
    return path


def test_a_story_whose_graph_was_mended_holds_now():
    def mend(story):
        story["graph"]["definition"]["nodes"][1]["config"]["default_target"] = "done"

    result = tinyllm("replay", changed(mend))

    assert 0 == result.exit_code
    assert "no dead end holds now" in result.stdout


@pytest.mark.parametrize(
    ("key", "value"),
    [("reason", "another"), ("history", "0" * 64), ("happened", []), ("reachable_on_stock_asyncio", False)],
)
def test_a_story_that_happens_otherwise_exits_3_and_says_what_changed(key, value):
    result = tinyllm("replay", changed(lambda story: story.update({key: value})))

    assert 3 == result.exit_code
    assert f"{key} changed since" in result.stderr
    assert "no dead end is broken in graph.yaml" in result.stdout


def test_replay_exits_3_where_the_check_cannot_say(monkeypatch):
    story = changed(lambda story: None)
    monkeypatch.setattr(replay_command, "graph_checks", lambda promises: {"no dead end": never_sure})

    result = tinyllm("replay", story)

    assert 3 == result.exit_code
    assert "the check 'no dead end' could not say: LookupError: who knows" in result.stderr
    assert "" == result.stdout


NO_STORIES = {
    "empty": "",
    "no JSON": "{",
    "a list": "[]",
    "a number": "1",
    "null": "null",
    "an object": "{}",
    "another format": '{"format": 2}',
    "a bare format": '{"format": 1}',
    "deep": "[" * 100_000,
    "a graph": SOUND,
    "a huge number": '{"format": 1' + "0" * 5_000 + "}",
    "a hollow one": '{"format": 1, "check": "x", "graph": {}, "scenario": [], "happened": [], "history": ""}',
}


@pytest.mark.parametrize("name", NO_STORIES)
def test_a_file_that_is_no_story_exits_2_and_is_named(name):
    Path("story.json").write_text(NO_STORIES[name], encoding="utf-8")

    result = tinyllm("replay", "story.json")

    assert 2 == result.exit_code
    assert "story.json" in result.stderr
    assert "Traceback" not in result.stderr


SPOILED = {
    "a check of another kind": lambda story: story.update(check=["no dead end"]),
    "a check that does not exist": lambda story: story.update(check="no check"),
    "a graph of another kind": lambda story: story.update(graph=[]),
    "a graph without definition": lambda story: story.update(graph={"name": "x"}),
    "a definition of another kind": lambda story: story["graph"].update(definition=[]),
    "a definition of no graph": lambda story: story["graph"].update(definition={"id": 1}),
    "a scenario of another kind": lambda story: story.update(scenario=5),
    "a scenario without runs": lambda story: story["scenario"].pop("runs"),
    "a run of another kind": lambda story: story["scenario"].update(runs=[5]),
    "a schedule of another kind": lambda story: story["scenario"].update(schedule=[{"gap": "x"}]),
    "a fault that does not exist": lambda story: story["scenario"]["faults"].update(lasting=[{"fault": "flood"}]),
    "a config of another kind": lambda story: story["scenario"].update(config={"max_steps": "many"}),
}


@pytest.mark.parametrize("name", SPOILED)
def test_a_story_with_a_part_that_is_none_exits_2_and_is_named(name):
    result = tinyllm("replay", changed(SPOILED[name]))

    assert 2 == result.exit_code
    assert "changed.json" in result.stderr
    assert "Traceback" not in result.stderr


def test_replay_exits_3_with_a_traceback_where_the_harness_fails(monkeypatch):
    def stumbling(*_arguments):
        raise ZeroDivisionError("a bug of ours")

    story = changed(lambda story: None)
    monkeypatch.setattr(replay_command, "play", stumbling)

    result = tinyllm("replay", story)

    assert 3 == result.exit_code
    assert "Traceback" in result.stderr
    assert "ZeroDivisionError: a bug of ours" in result.stderr


def test_ctrl_c_in_a_replay_exits_130(monkeypatch):
    story = changed(lambda story: None)
    monkeypatch.setattr(replay_command, "play", interrupted)

    assert 130 == tinyllm("replay", story).exit_code


@pytest.mark.parametrize("path", ["missing.json", "."])
def test_a_story_that_cannot_be_read_exits_2(path):
    result = tinyllm("replay", path)

    assert 2 == result.exit_code
    assert path in result.stderr


def test_bytes_that_are_no_text_are_no_story():
    Path("story.json").write_bytes(b"\xff\xfe{}")

    assert 2 == tinyllm("replay", "story.json").exit_code


# --- the examples --------------------------------------------------------------------------------------


def test_the_consensus_example_holds():
    options = ("--profile", "ci", "--max-examples", "60", "--format", "json")

    result = tinyllm("check", EXAMPLES / "consensus.yaml", *options)

    reply = reply_of(result)
    assert (0, "held") == (result.exit_code, reply["verdict"])
    assert 0 < reply["tolerance_judged"]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_fragile_example_is_found_and_its_story_names_the_shared_host(seed):
    result = tinyllm("check", EXAMPLES / "fragile.yaml", "--seed", str(seed), "--max-examples", "100")

    assert 1 == result.exit_code
    assert "keeps its promises is broken in fragile.yaml" in result.stdout
    assert "tolerates_failures: 1 was promised, and with qwen2.5-3b down" in result.stdout
    assert "voter.careful      asks qwen2.5:3b on qwen2.5-3b" in result.stdout
    assert "voter.second_look  asks qwen2.5:3b on qwen2.5-3b" in result.stdout


# --- the group -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_names_the_commands(option):
    result = tinyllm(option)

    assert 0 == result.exit_code
    assert {"check", "replay"} <= {line.split()[0] for line in result.stdout.splitlines() if line.startswith("  ")}


def test_an_unknown_command_exits_2():
    assert 2 == tinyllm("chekc").exit_code


def test_a_command_whose_packages_are_missing_says_what_to_install(monkeypatch):
    class Missing:
        name = "check"

        @staticmethod
        def load():
            raise ModuleNotFoundError("no", name="hypothesis")

    monkeypatch.setattr(cli_main, "entry_points", lambda group: [Missing()])

    result = tinyllm("check", "graph.yaml", "--seed", "1")

    assert 2 == result.exit_code
    assert "hypothesis is not installed" in result.stderr
    assert "pip install -e '.[testing]'" in result.stderr


# --- Ctrl-C, full disks, closed streams ----------------------------------------------------------------


@pytest.mark.parametrize("format_", ["text", "json"])
def test_ctrl_c_in_the_middle_of_a_life_ends_the_hunt_before_the_next(monkeypatch, format_):
    """Raised there, it would be taken for the outcome of whatever ran then, or be swallowed."""
    lives: list[None] = []

    def pressed(*arguments: Any) -> History:
        lives.append(None)
        if len(lives) == 1:
            signal.raise_signal(signal.SIGINT)
        return scenario.play(*arguments)

    monkeypatch.setattr(hunting, "play", pressed)
    before = signal.getsignal(signal.SIGINT)
    try:
        result = check(SOUND, "--format", format_)
    finally:
        signal.signal(signal.SIGINT, before)

    assert (130, "", "stopped\n") == (result.exit_code, result.stdout, result.stderr)
    # The first is lived twice.
    assert 2 >= len(lives)


def test_ctrl_c_while_a_command_is_loaded_is_no_finding(monkeypatch, capsys):
    def load() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_main, "entry_points", lambda group: [SimpleNamespace(name="check", load=load)])
    monkeypatch.setattr(sys, "argv", ["tinyllm", "check", "graph.yaml"])

    with pytest.raises(SystemExit) as ended:
        cli_main.main()

    assert 130 == ended.value.code
    assert "stopped" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate graph.yaml", "check graph.yaml --max-examples 3", "nodes", "--help"])
def test_an_output_that_cannot_be_written_is_told_in_one_line(command):
    Path("graph.yaml").write_text(SOUND, encoding="utf-8")
    full, closed = (
        subprocess.run(
            ["sh", "-c", f"'{sys.executable}' -P -c 'from tinyllm.cli.main import main; main()' {command} {where}"],
            capture_output=True,
            text=True,
            check=False,
        )
        for where in (">/dev/full", ">&-")
    )

    assert (3, 0) == (full.returncode, closed.returncode)
    # A hunt that takes long says how far it is.
    assert full.stderr.endswith("tinyllm: cannot write: [Errno 28] No space left on device\n")
    assert "Traceback" not in full.stderr + closed.stderr


def test_the_story_in_the_readme_is_the_one_that_check_tells():
    root = Path(__file__).parents[2]
    result = tinyllm("check", root / "examples" / "graphs" / "fragile.yaml", "--profile", "ci")

    assert 1 == result.exit_code
    # How `tinyllm` is called depends on how it was found.
    told = result.stdout.partition("Replay it")[0]
    assert told in (root / "README.md").read_text(encoding="utf-8")


def test_a_graph_can_be_checked_from_standard_input():
    result = CliRunner().invoke(cli, ["check", "-", "--seed", "1", "--max-examples", "5"], input=SOUND)

    assert 0 == result.exit_code
    assert "<stdin> held" in result.stdout
