"""`tinyllm validate` as a shell sees it: verdicts, places, exit codes, and files that are none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.graphs_text import framed
from tinyllm.cli.main import cli

pytestmark = pytest.mark.unit

SOUND = framed()
#: A warning on line 5, and nothing else.
DOUBTFUL = framed("- {id: alone, type: model}")
#: Errors on lines 5 and 9; a warning on line 6.
WRONG = framed(
    "- {id: ask, type: model, config: {timeout_ms: -1}}\n- {id: also, type: model, config: {stream: true}}",
    edges="- {from_node: start, to_node: dome}",
)
THROUGH_T = "- {from_node: start, to_node: t}\n- {from_node: t, to_node: done}"
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def validate(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["validate", *arguments], input=stdin)


def written(text: str | bytes, name: str = "graph.yaml") -> str:
    Path(name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return name


def files_of(result: Result) -> list[dict[str, Any]]:
    files = json.loads(result.stdout)["files"]
    assert isinstance(files, list)
    return files


def test_a_sound_file_is_ok_and_its_parts_are_counted():
    result = validate(written(SOUND))

    assert (0, "graph.yaml: ok (2 nodes, 1 edge, no warnings)\n") == (result.exit_code, result.stdout)


def test_warnings_refuse_nothing_and_are_told_with_their_place():
    result = validate(written(DOUBTFUL))

    first, second = result.stdout.splitlines()
    assert 0 == result.exit_code
    assert "graph.yaml: ok (3 nodes, 1 edge, 1 warning)" == first
    assert second.startswith("  graph.yaml:5:3: warning: no way leads to 'alone'")


def test_strict_refuses_warnings():
    result = validate(written(DOUBTFUL), "--strict")

    assert 2 == result.exit_code
    assert result.stdout.startswith("graph.yaml: refused by --strict (1 warning)")


def test_strict_lets_a_sound_file_pass():
    assert 0 == validate(written(SOUND), "--strict").exit_code


def test_a_refused_file_lists_problems_and_warnings_in_the_order_of_the_file():
    result = validate(written(WRONG))

    lines = result.stdout.splitlines()
    assert 2 == result.exit_code
    assert "graph.yaml: refused (2 problems, 1 warning)" == lines[0]
    assert [("5", "error"), ("6", "warning"), ("10", "error")] == [
        (line.split(":")[1], line.split(":")[3].strip()) for line in lines[1:]
    ]


def test_one_bad_file_does_not_hide_the_others():
    result = validate(written(WRONG, "a.yaml"), "missing.yaml", written(SOUND, "b.yaml"))

    heads = [line for line in result.stdout.splitlines() if not line.startswith(" ")]
    assert 2 == result.exit_code
    assert ["a.yaml: refused", "missing.yaml: refused", "b.yaml: ok"] == [line.partition(" (")[0] for line in heads]


def test_a_dash_is_standard_input():
    result = validate("-", stdin=WRONG)

    assert 2 == result.exit_code
    assert "<stdin>:5:" in result.stdout


def test_json_is_one_object_with_a_verdict_on_each_file():
    result = validate(written(WRONG, "a.yaml"), written(DOUBTFUL, "b.yaml"), "--format", "json")

    wrong, doubtful = files_of(result)
    assert 2 == result.exit_code
    assert "refused" == json.loads(result.stdout)["verdict"]
    assert ("a.yaml", "refused", 2, 1) == (
        wrong["file"],
        wrong["verdict"],
        len(wrong["problems"]),
        len(wrong["warnings"]),
    )
    assert ("b.yaml", "ok", 3, 1, []) == tuple(
        doubtful[key] for key in ("file", "verdict", "nodes", "edges", "problems")
    )
    assert {"code": "unreached", "line": 5, "column": 3}.items() <= doubtful["warnings"][0].items()


def test_json_of_sound_files_says_ok():
    result = validate(written(SOUND), "--format", "json")

    assert (0, "ok") == (result.exit_code, json.loads(result.stdout)["verdict"])


NO_GRAPHS = {
    "empty": b"",
    "a list": b"- 1",
    "not UTF-8": b"id: \xff\xfe",
    "UTF-16": "id: x".encode("utf-16"),
    "NUL bytes": b"id: a\0b",
    "a bomb of aliases": BOMB.encode(),
    "deep YAML": b"a: " + b"[" * 10_000,
    "deep JSON": b'{"a":' + b"[" * 10_000,
    "deep blocks": "".join(f"{' ' * level}a:\n" for level in range(1_000)).encode(),
    "a tag": b"!!python/object/apply:os.system ['true']",
    "two documents": b"--- {}\n--- {}\n",
    "a terminal's orders": b'"\\e[31m": 1',
}


@pytest.mark.parametrize("name", NO_GRAPHS)
def test_a_file_that_is_no_graph_is_refused_without_a_traceback(name):
    result = validate(written(NO_GRAPHS[name]))

    assert 2 == result.exit_code
    assert "graph.yaml: refused" in result.stdout
    assert "Traceback" not in result.output
    assert "\x1b" not in result.output


def test_a_file_of_two_gigabytes_is_refused_unread():
    with Path("huge.yaml").open("wb") as file:
        os.truncate(file.fileno(), 2 << 30)

    result = validate("huge.yaml")

    assert 2 == result.exit_code
    assert "[too_large]" in result.stdout


def test_a_folder_a_pipe_and_a_dangling_link_are_refused():
    Path("folder").mkdir()
    os.mkfifo("pipe")
    Path("link.yaml").symlink_to("nowhere")

    files = files_of(validate("folder", "pipe", "link.yaml", "--format", "json"))

    assert [("not_a_file", None), ("not_a_file", None), ("unreadable", None)] == [
        (file["problems"][0]["code"], file["problems"][0]["line"]) for file in files
    ]


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read_is_refused():
    path = Path(written(SOUND))
    path.chmod(0)

    assert "[unreadable]" in validate(str(path)).stdout


def test_a_file_name_that_is_no_text_can_be_told():
    name = os.fsdecode(b"graph\xff.yaml")
    Path(name).write_text(SOUND, encoding="utf-8")
    command = [sys.executable, "-P", "-c", "from tinyllm.cli.main import main; main()", "validate", name]

    done = subprocess.run(command, capture_output=True, check=False)

    assert 0 == done.returncode
    assert b": ok (2 nodes" in done.stdout


def test_without_a_file_it_exits_2():
    assert 2 == validate().exit_code


def test_promises_that_make_no_sense_are_refused_with_their_places():
    wrong = framed(more="metadata: {promises: {tolerate_failures: 1, never: [TIMOUT]}}\n")
    result = validate(written(wrong))

    assert 2 == result.exit_code
    assert "metadata.promises.tolerate_failures [promise]" in result.stdout
    assert "metadata.promises.never[0] [promise]" in result.stdout


@pytest.mark.parametrize(
    ("config", "code", "told"),
    [
        ("{tool_id: calculater}", "unknown_tool", "Did you mean calculator?"),
        ("{tool_id: my.own}", "unknown_tool", "An executor has to be given it."),
        ("{tool_id: calculator, input_mapping: {expresion: content}}", "tool_arguments", "takes no 'expresion'"),
        ("{tool_id: text_join, input_mapping: {separator: content}}", "tool_arguments", "needs 'parts'"),
    ],
)
def test_tools_that_are_not_built_in_and_arguments_that_never_fit_are_doubtful(config, code, told):
    text = framed(f"- {{id: t, type: tool, config: {config}}}", THROUGH_T)
    result = validate(written(text))

    assert 0 == result.exit_code
    assert f"[{code}]" in result.stdout
    assert told in result.stdout


@pytest.mark.parametrize(
    "config", ["{tool_id: calculator}", "{tool_id: text_case, input_mapping: {text: content, operation: route}}"]
)
def test_built_in_tools_with_their_arguments_are_beyond_doubt(config):
    text = framed(f"- {{id: t, type: tool, config: {config}}}", THROUGH_T)

    assert "no warnings" in validate(written(text)).stdout
