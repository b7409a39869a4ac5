"""`tinyllm run` as a shell sees it: what is read, what is printed where, exit codes, and Ctrl-C."""

from __future__ import annotations

import io
import json
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest
from click.testing import CliRunner, Result

from tests.support.graphs_text import framed
from tests.support.model_server import model_server
from tinyllm.cli import run as run_command
from tinyllm.cli.interrupts import on_ctrl_c
from tinyllm.cli.main import cli
from tinyllm.config import FailurePolicy

pytestmark = pytest.mark.unit

ECHO = framed()
ASKING = framed(
    "- {id: ask, type: model, config: {model: m}}",
    edges="""
    - {from_node: start, to_node: ask}
    - {from_node: ask, to_node: done}
    """,
)
TEMPLATE = framed(
    "- {id: say, type: transform, config: {transforms: [{type: template, params: {template: '%s'}}]}}",
    edges="""
    - {from_node: start, to_node: say}
    - {from_node: say, to_node: done}
    """,
)
FAILING = framed(edges="- {from_node: start, to_node: done, condition: \"content == 'never'\"}")
COMMAND = [sys.executable, "-P", "-c", "from tinyllm.cli.main import main; main()"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def tinyllm(*arguments: str, stdin: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), input=stdin)


def run(text: str, *arguments: str, stdin: str | bytes | None = None) -> Result:
    """`tinyllm run` of a file with this text."""
    Path("graph.yaml").write_text(text, encoding="utf-8")
    return tinyllm("run", "graph.yaml", *arguments, stdin=stdin)


def reply_of(result: Result) -> dict[str, Any]:
    """The one JSON object on standard output."""
    reply = json.loads(result.stdout)
    assert isinstance(reply, dict)
    return reply


def a_closed_port() -> str:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


# --- the question --------------------------------------------------------------------------------------


def test_the_content_stands_alone_on_stdout_and_the_summary_on_stderr():
    result = run(ECHO, "hello")

    assert (0, "hello\n") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("succeeded (2 steps, no tokens, ")


@pytest.mark.parametrize("arguments", [(), ("-",)])
@pytest.mark.parametrize("stdin", ["grüße\n", "grüße\r\n", "grüße", b"\xef\xbb\xbfgr\xc3\xbc\xc3\x9fe\n"])
def test_without_a_question_stdin_is_read_and_its_last_line_end_dropped(arguments, stdin):
    result = run(ECHO, "--format", "json", *arguments, stdin=stdin)

    assert "grüße" == reply_of(result)["content"]


def test_only_one_line_end_is_dropped():
    assert "a\n\nb\n" == reply_of(run(ECHO, "--format", "json", stdin="a\n\nb\n\n"))["content"]


def test_stdin_that_is_not_utf_8_exits_2():
    result = run(ECHO, stdin=b"ab\xff")

    assert 2 == result.exit_code
    assert "not UTF-8" in result.stderr
    assert "byte 3" in result.stderr


def test_a_question_larger_than_the_limit_exits_2(monkeypatch):
    monkeypatch.setattr(run_command, "QUESTION_BYTES_MAX", 4)

    assert 0 == run(ECHO, stdin=b"1234").exit_code
    assert 2 == run(ECHO, stdin=b"12345").exit_code


def test_a_terminal_as_stdin_is_told_what_to_do(monkeypatch, capsys):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    Path("graph.yaml").write_text(ECHO, encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", Terminal())

    with pytest.raises(SystemExit) as ended:
        cli(["run", "graph.yaml"])

    assert 2 == ended.value.code
    assert "pipe it in" in capsys.readouterr().err


def test_a_question_that_no_text_can_be_exits_2():
    result = run(ECHO, "a\udcffb")

    assert 2 == result.exit_code
    assert "QUESTION" in result.stderr
    assert "Traceback" not in result.stderr


def test_the_graph_can_come_from_stdin_but_not_together_with_the_question():
    assert "hi\n" == tinyllm("run", "-", "hi", stdin=ECHO).stdout
    assert 2 == tinyllm("run", "-", stdin=ECHO).exit_code
    assert 2 == tinyllm("run", "-", "-", stdin=ECHO).exit_code


# --- options -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ("n=1", "1"),
        ("n=[1, 2]", "[1, 2]"),
        ("n=hello there", "hello there"),
        ('n="quoted"', "quoted"),
        ("n=NaN", "NaN"),
        ("n=-Infinity", "-Infinity"),
        ("n=", ""),
        ("n=a=b", "a=b"),
    ],
)
def test_a_variable_is_json_or_else_text(given, shown):
    result = run(TEMPLATE % "<{variables.n}>", "q", "--var", given)

    assert f"<{shown}>\n" == result.stdout


@pytest.mark.parametrize("given", ["n", "=1", "n=" + "[" * 200_000, "n=" + "9" * 5_000, 'n="\\ud800"'])
def test_a_bad_variable_exits_2(given):
    result = run(ECHO, "q", "--var", given)

    assert 2 == result.exit_code
    assert "Traceback" not in result.stderr


def test_of_equal_names_the_last_variable_counts():
    assert "2\n" == run(TEMPLATE % "{variables.n}", "q", "--var", "n=1", "--var", "n=2").stdout


def test_context_and_run_id_reach_the_run():
    reply = reply_of(run(ECHO, "q", "--context", "c", "--run-id", "r1", "--format", "json"))

    assert ("r1", {"context": "c"}) == (reply["run_id"], reply["structured"])


def test_entry_names_where_to_start():
    text = ECHO.replace("entry_points: [start]", "entry_points: [start, other]")
    text = text.replace("edges:\n", "- {id: other, type: entry}\nedges:\n- {from_node: other, to_node: done}\n")

    assert ["other", "done"] == reply_of(run(text, "q", "--entry", "other", "--format", "json"))["path"]


def test_an_unknown_entry_exits_2_and_the_known_ones_are_named():
    result = run(ECHO, "q", "--entry", "nowhere")

    assert 2 == result.exit_code
    assert "there are start" in result.stderr


def test_max_steps_bounds_the_run():
    reply = reply_of(run(ECHO, "q", "--max-steps", "1", "--format", "json"))

    assert ("failed", "BOUNDS_EXCEEDED", 1) == (reply["status"], reply["error"]["code"], reply["nodes_executed"])


@pytest.mark.parametrize(
    "options",
    [("--max-steps", "-1"), ("--timeout-ms", "0"), ("--timeout-ms", "x"), ("--failure-policy", "hope")],
)
def test_a_bound_out_of_range_exits_2_and_is_named(options):
    result = run(ECHO, "q", *options)

    assert 2 == result.exit_code
    assert options[0] in result.stderr


def test_the_policies_are_those_of_the_config():
    assert get_args(FailurePolicy) == run_command.POLICIES


@pytest.mark.parametrize("host", ["http://", "ftp://x", "http://h:port", "http://h:99999", ""])
def test_a_host_that_is_no_url_exits_2(host):
    result = run(ASKING, "q", "--host", host)

    assert 2 == result.exit_code
    assert "--host" in result.stderr


def test_an_empty_run_id_exits_2():
    assert 2 == run(ECHO, "q", "--run-id", "").exit_code


# --- what is printed -----------------------------------------------------------------------------------


def test_json_is_one_object_with_everything():
    reply = reply_of(run(ECHO, "q", "--format", "json"))

    assert {
        *("run_id", "trace_id", "status", "content", "structured", "error", "nodes_executed"),
        *("tokens_used", "total_latency_ms", "path"),
    } == set(reply)
    assert ("succeeded", "q", None, ["start", "done"]) == tuple(
        reply[key] for key in ("status", "content", "error", "path")
    )


def test_trace_prints_one_event_a_line_on_stderr():
    lines = run(ECHO, "q", "--trace").stderr.splitlines()

    assert "run started" in lines[0]
    assert any("step started" in line and "start path=1" in line for line in lines)
    assert "run ended" in lines[-2]


def test_trace_in_json_holds_the_events_in_order():
    result = run(ECHO, "q", "--trace", "--format", "json")

    events = reply_of(result)["trace"]
    assert list(range(len(events))) == [event["sequence"] for event in events]
    assert ("run started", "run ended") == (events[0]["kind"], events[-1]["kind"])
    assert "" == result.stderr


def test_what_a_terminal_would_obey_does_not_reach_stderr():
    text = framed().replace("type: exit}", 'type: exit, config: {status: failure, message: "\\e[31mred"}}')

    result = run(text, "q")

    assert 1 == result.exit_code
    assert "\x1b" not in result.stderr


def test_a_failed_run_exits_1_with_code_and_node_and_prints_no_content():
    result = run(FAILING, "q")

    assert (1, "") == (result.exit_code, result.stdout)
    assert "failed with ROUTING_ERROR at start" in result.stderr


def test_a_degraded_run_exits_0_and_says_so():
    result = run(framed().replace("type: exit}", "type: exit, config: {status: fallback, message: sorry}}"), "q")

    assert (0, "q\n") == (result.exit_code, result.stdout)
    assert result.stderr.startswith("degraded, sorry")


def test_warnings_are_counted_and_validate_is_named():
    result = run(FAILING, "q")

    assert "1 warning about the graph: see `tinyllm validate`" in result.stderr


def test_a_refused_graph_exits_2_with_every_problem_and_its_place():
    result = run(framed("- {id: ask, type: model, config: {timeout_ms: -1}}", edges="- {from_node: s, to_node: t}"))

    assert 2 == result.exit_code
    assert "graph.yaml is refused:" == result.stderr.splitlines()[0]
    places = [line.split(": ")[0] for line in result.stderr.splitlines()[1:]]
    assert ["  graph.yaml:5:35", "  graph.yaml:9:4", "  graph.yaml:9:18"] == places


def test_a_bug_of_ours_exits_3_with_its_traceback(monkeypatch):
    def stumbling(_request):
        raise ZeroDivisionError("a bug of ours")

    monkeypatch.setattr(run_command, "_run", stumbling)

    result = run(ECHO, "q")

    assert 3 == result.exit_code
    assert "ZeroDivisionError: a bug of ours" in result.stderr


# --- models --------------------------------------------------------------------------------------------


def test_a_model_behind_the_host_is_asked_and_its_tokens_counted():
    with model_server("forty-two") as server:
        reply = reply_of(run(ASKING, "q", "--host", server.url, "--format", "json"))

    assert ("forty-two", 5, ["start", "ask", "done"]) == (reply["content"], reply["tokens_used"], reply["path"])


def test_the_host_is_taken_from_the_environment(monkeypatch):
    with model_server("here") as server:
        monkeypatch.setenv("OLLAMA_HOST", server.url)
        result = run(ASKING, "q")

    assert "here\n" == result.stdout


def test_a_model_that_cannot_be_reached_exits_1_with_a_hint():
    host = a_closed_port()

    result = run(ASKING, "q", "--host", host)

    assert (1, "") == (result.exit_code, result.stdout)
    assert "failed with MODEL_ERROR at ask" in result.stderr
    assert host in result.stderr
    assert "ollama serve" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_that_takes_too_long_exits_1():
    with model_server(None) as server:
        result = run(ASKING, "q", "--host", server.url, "--timeout-ms", "1", "--format", "json")

    assert (1, "timed_out", "TIMEOUT") == (
        result.exit_code,
        reply_of(result)["status"],
        reply_of(result)["error"]["code"],
    )


# --- Ctrl-C --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("style", ["json", "text"])
def test_ctrl_c_cancels_the_run_and_its_result_is_printed(style):
    Path("graph.yaml").write_text(ASKING, encoding="utf-8")
    with model_server(None) as server:
        command = [*COMMAND, "run", "graph.yaml", "q", "--host", server.url, "--format", style]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert server.asked.wait(120)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)

    assert 130 == process.returncode
    assert "Traceback" not in err
    if style == "json":
        assert ("cancelled", "CANCELLED") == (json.loads(out)["status"], json.loads(out)["error"]["code"])
    else:
        assert "" == out
        assert "cancelled with CANCELLED at ask" in err


def test_a_second_ctrl_c_does_not_wait_and_prints_no_traceback():
    script = (
        "import os, signal\n"
        "from tinyllm.cli.interrupts import on_ctrl_c\n"
        "with on_ctrl_c(lambda: print('cancelling', flush=True), 'no longer'):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "print('not reached')\n"
    )

    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)

    assert (130, "cancelling\n") == (done.returncode, done.stdout)
    assert "no longer\n" == done.stderr


def test_after_a_cancelled_run_ctrl_c_cannot_spoil_its_result():
    before = signal.getsignal(signal.SIGINT)
    try:
        with on_ctrl_c(lambda: None, "no longer"):
            signal.raise_signal(signal.SIGINT)
        assert signal.SIG_IGN == signal.getsignal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_after_a_run_that_ended_ctrl_c_is_as_before():
    before = signal.getsignal(signal.SIGINT)

    run(ECHO, "q")

    assert before is signal.getsignal(signal.SIGINT)


def test_ctrl_c_before_the_run_exits_130_without_traceback(monkeypatch):
    def interrupted(_request):
        raise KeyboardInterrupt

    monkeypatch.setattr(run_command, "_run", interrupted)

    result = run(ECHO, "q")

    assert 130 == result.exit_code
    assert "Traceback" not in result.stderr


def test_a_closed_pipe_ends_the_command_without_traceback():
    Path("graph.yaml").write_text(ECHO, encoding="utf-8")
    process = subprocess.Popen(
        [*COMMAND, "run", "graph.yaml"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    with process:
        # Nobody reads from the start, so that the first write already fails.
        process.stdout.close()
        process.stdin.write(b"q")
        process.stdin.close()
        err = process.stderr.read()

    assert 141 == process.returncode
    assert b"Traceback" not in err


def test_a_refused_graph_is_json_too_where_json_is_asked_for():
    result = run("id: g\n", "q", "--format", "json")
    reply = json.loads(result.stdout)

    assert (2, "refused") == (result.exit_code, reply["status"])
    assert "missing_key" in {problem["code"] for problem in reply["problems"]}
    assert "is refused" in result.stderr


def test_a_variable_that_no_message_can_carry_is_refused_by_its_name():
    result = run(ECHO, "q", "--var", "a=1e999")

    assert 2 == result.exit_code
    assert "--var a" in result.stderr
