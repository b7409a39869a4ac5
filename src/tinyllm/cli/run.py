"""`tinyllm run GRAPH [QUESTION]`: run a graph on a question and print what came of it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from tinyllm.cli.interrupts import on_ctrl_c
from tinyllm.cli.replies import (
    FAILED,
    FINE,
    INTERRUPTED,
    STDIN,
    counted,
    graph_of,
    guarded,
    note,
    on_one_line,
    read_stdin,
    refuse,
    say,
    say_json,
)

if TYPE_CHECKING:
    from tinyllm.config import ExecutorConfig
    from tinyllm.graph import Graph
    from tinyllm.message import TaskPayload
    from tinyllm.trace import RunResult, TraceEvent

#: Longer questions are no questions; without a bound an endless pipe would fill the memory.
QUESTION_BYTES_MAX = 16 << 20
DEFAULT_HOST = "http://localhost:11434"
#: `tinyllm.config.FailurePolicy`, spelled out so that `tinyllm --help` need not import it; a test compares the two.
POLICIES = ("fail_fast", "skip_failed", "fallback_simple", "best_effort")
EXIT_CODES = {"succeeded": FINE, "degraded": FINE, "failed": FAILED, "timed_out": FAILED, "cancelled": INTERRUPTED}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """One run, as asked for."""

    graph: Graph
    task: TaskPayload
    config: ExecutorConfig
    host: str | None
    entry: str | None
    run_id: str
    variables: Mapping[str, Any]


@click.command()
@click.argument("graph", type=click.Path())
@click.argument("question", required=False)
@click.option("--format", "style", type=click.Choice(("text", "json")), default="text", help="What to print.")
@click.option("--trace", is_flag=True, help="Print every event of the run: to stderr, or within the JSON.")
@click.option("--entry", metavar="ID", help="Start at this entry point (default: the first).")
@click.option(
    "--var",
    "variables",
    multiple=True,
    metavar="NAME=JSON",
    help="Set a variable; what is no JSON is text. May be repeated; of equal names the last counts.",
)
@click.option("--context", metavar="TEXT", help="What the question is about: `structured.context` of the payload.")
@click.option("--run-id", metavar="TEXT", help="Name of the run (default: a new one).")
@click.option("--timeout-ms", type=int, metavar="MS", help="The whole run's time limit (default: 600000).")
@click.option("--max-steps", type=int, metavar="N", help="Steps at most (default: 100).")
@click.option("--failure-policy", type=click.Choice(POLICIES), help="What a failed node means (default: fail_fast).")
@click.option("--host", metavar="URL", help=f"Where Ollama listens (default: OLLAMA_HOST, else {DEFAULT_HOST}).")
def run(
    graph: str,
    question: str | None,
    style: str,
    trace: bool,
    entry: str | None,
    variables: tuple[str, ...],
    context: str | None,
    run_id: str | None,
    timeout_ms: int | None,
    max_steps: int | None,
    failure_policy: str | None,
    host: str | None,
) -> None:
    """Run GRAPH on QUESTION, which is read from standard input if it is `-` or left out.

    Prints the content of the last message; how the run went stands on standard error. Ctrl-C cancels the run;
    a second one does not wait for it to end.

    Exit code 0: the run succeeded, or is degraded. 1: it failed or timed out. 2: bad input. 130: cancelled.
    """
    bounds = {"timeout_ms": timeout_ms, "max_steps": max_steps, "failure_policy": failure_policy}

    def work() -> int:
        if graph == STDIN and question in (None, STDIN):
            refuse("GRAPH and QUESTION cannot both be read from standard input")
        loaded = _graph_of(graph, style)
        request = _Request(
            graph=loaded,
            task=_task_of(_question_of(question), context),
            config=_config_of({name: value for name, value in bounds.items() if value is not None}),
            host=_host_of(host),
            entry=entry,
            run_id=_run_id_of(run_id),
            variables=dict(map(_variable_of, variables)),
        )
        result = _run(request)
        if style == "json":
            say_json(_reply(result, with_trace=trace))
        else:
            _tell(result, request, with_trace=trace)
        return EXIT_CODES[result.status]

    guarded(work)


# --- input ---------------------------------------------------------------------------------------------


def _graph_of(path: str, style: str) -> Graph:
    from dataclasses import asdict

    from tinyllm.errors import GraphConfigError

    try:
        return graph_of(path)
    except GraphConfigError as error:
        if style == "json":
            problems = [asdict(problem) for problem in error.problems]
            say_json({"status": "refused", "graph": error.source, "problems": problems})
        raise


def _question_of(argument: str | None) -> str:
    if argument not in (None, STDIN):
        assert argument is not None
        return argument
    if sys.stdin is not None and sys.stdin.isatty():
        refuse("there is no question: give it as an argument, or pipe it in, as in `echo hello | tinyllm run GRAPH`")
    data = read_stdin(QUESTION_BYTES_MAX)
    if len(data) > QUESTION_BYTES_MAX:
        refuse(f"the question on standard input is larger than {QUESTION_BYTES_MAX} bytes")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        refuse(f"the question on standard input is not UTF-8: {error.reason} at byte {error.start + 1}")
    # `echo` and editors end the last line; the same question as an argument would not be.
    return text.removesuffix("\n").removesuffix("\r")


def _task_of(question: str, context: str | None) -> TaskPayload:
    from pydantic import ValidationError

    from tinyllm.message import TaskPayload

    try:
        return TaskPayload(content=question, context=context)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False)[0]
        name = "QUESTION" if detail["loc"] == ("content",) else "--context"
        refuse(f"{name}: {on_one_line(detail['msg'].removeprefix('Value error, '))}")


def _config_of(bounds: Mapping[str, Any]) -> ExecutorConfig:
    from pydantic import ValidationError

    from tinyllm.config import ExecutorConfig

    try:
        return ExecutorConfig(**bounds)
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False)[0]
        option = "--" + str(detail["loc"][0]).replace("_", "-")
        refuse(f"{option}: {detail['msg'].replace('Input should', 'this should')} (got {detail['input']})")


def _variable_of(given: str) -> tuple[str, Any]:
    from tinyllm.message import checked_json

    name, equals, text = given.partition("=")
    if not (name and equals):
        refuse(f"--var {on_one_line(given)}: give it as NAME=JSON")
    try:
        return name, checked_json(json.loads(text, parse_constant=_no_constant))
    except (json.JSONDecodeError, _NotJson):
        return name, text
    except (ValueError, RecursionError):
        refuse(f"--var {on_one_line(name)}: a number or a nesting that no message can carry")


class _NotJson(Exception):
    """NaN or an infinity, which Python reads and JSON does not know."""


def _no_constant(_: str) -> Any:
    raise _NotJson


def _run_id_of(given: str | None) -> str:
    from tinyllm.message import new_id

    if given == "":
        refuse("--run-id is empty")
    return new_id() if given is None else given


def _host_of(given: str | None) -> str | None:
    if given is None:
        return None
    try:
        # Only what is no URL at all: reading it the way Ollama does is its client's business.
        parts = urllib.parse.urlsplit(given if "://" in given else f"http://{given}")
        sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port)
    except ValueError:
        sound = False
    if not sound:
        refuse(f"--host {on_one_line(given)}: no URL such as {DEFAULT_HOST}")
    return given


# --- the run -------------------------------------------------------------------------------------------


def _run(request: _Request) -> RunResult:
    from tinyllm.executor import Executor
    from tinyllm.models.ollama import OllamaClient

    async def main() -> RunResult:
        # The client connects when it is first asked, so a graph without models needs no server.
        async with OllamaClient(request.host) as client:
            executor = Executor(request.graph, config=request.config, model=client)
            loop = asyncio.get_running_loop()

            def cancel() -> None:
                loop.call_soon_threadsafe(executor.cancel, request.run_id)

            with on_ctrl_c(cancel, "stopped; the run did not end in time"):
                return await executor.execute(
                    request.task, run_id=request.run_id, entry=request.entry, variables=request.variables
                )

    return asyncio.run(main())


# --- output --------------------------------------------------------------------------------------------


def _tell(result: RunResult, request: _Request, *, with_trace: bool) -> None:
    for event in result.trace if with_trace else ():
        note(_event_line(event))
    if request.graph.warnings:
        note(f"{counted(len(request.graph.warnings), 'warning')} about the graph: see `tinyllm validate`")
    if result.content is not None and result.status in ("succeeded", "degraded"):
        say(result.content)
    note(_summary(result))
    if hint := _hint(result, request.host):
        note(hint)


def _summary(result: RunResult) -> str:
    said = result.message.payload.metadata.get("exit_message")
    reason = f", {on_one_line(said)}" if isinstance(said, str) and result.status != "cancelled" else ""
    if result.error is not None:
        at = f" at {result.error.node_id}" if result.error.node_id else ""
        reason = f" with {result.error.code}{at}: {on_one_line(result.error.message)}"
    steps, tokens = counted(result.nodes_executed, "step"), counted(result.tokens_used, "token")
    return f"{result.status}{reason} ({steps}, {tokens}, {result.total_latency_ms / 1_000:.3f} s)"


def _hint(result: RunResult, host: str | None) -> str | None:
    """Where models were asked, if the run suffered from one that failed without an answer of its server."""
    errors = [] if result.error is None else [result.error]
    if result.status == "succeeded" or any("status" in (error.details or {}) for error in errors):
        return None
    if not any(event.code == "MODEL_ERROR" for event in result.trace):
        return None
    where = host or os.environ.get("OLLAMA_HOST") or DEFAULT_HOST
    return f"models were asked at {on_one_line(where)}: is Ollama running there (`ollama serve`)? --host names another"


def _event_line(event: TraceEvent) -> str:
    words = [f"{event.at_ms:>12.3f}", f"{event.kind:<15}", event.node_id or ""]
    for name in ("path", "attempt", "code", "cause"):
        value = getattr(event, name)
        if value is not None:
            words.append(f"{name}={value}")
    words += [f"{name}={json.dumps(value, default=str, ensure_ascii=False)}" for name, value in event.details.items()]
    line = f"{words[0]}  {words[1]}  {' '.join(on_one_line(word) for word in words[2:] if word)}"
    return line.rstrip()


def _reply(result: RunResult, *, with_trace: bool) -> dict[str, Any]:
    reply: dict[str, Any] = {
        "run_id": result.run_id,
        "trace_id": result.trace_id,
        "status": result.status,
        "content": result.content,
        "structured": result.structured,
        "error": None if result.error is None else result.error.model_dump(mode="json"),
        "nodes_executed": result.nodes_executed,
        "tokens_used": result.tokens_used,
        "total_latency_ms": result.total_latency_ms,
        "path": _visits(result),
    }
    if with_trace:
        reply["trace"] = [_event_value(event) for event in result.trace]
    return reply


def _visits(result: RunResult) -> list[str]:
    """The nodes that the token visited, in order; not what ran inside wrappers."""
    visits: dict[str, str] = {}
    for event in result.trace:
        if event.kind == "step started" and event.node_id is not None and event.path and "." not in event.path:
            # A timeout's inner step has its path, and starts after it.
            visits.setdefault(event.path, event.node_id)
    return list(visits.values())


def _event_value(event: TraceEvent) -> dict[str, Any]:
    value = {
        "sequence": event.sequence,
        "at_ms": event.at_ms,
        "wall": event.wall.isoformat(),
        "kind": str(event.kind),
        "node_id": event.node_id,
        "path": event.path,
        "attempt": event.attempt,
        "code": event.code,
        "cause": event.cause,
        "details": json.loads(json.dumps(dict(event.details), default=str)),
    }
    return {name: part for name, part in value.items() if part is not None and part != {}}
