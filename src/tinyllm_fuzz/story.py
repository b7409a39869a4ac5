"""A story: how a graph broke, told so that a tired reader sees why, and stored so that it plays again.

A story is plain JSON made from a finding alone: no clock, no path, no chance. Made twice from the same
scenario it is the same text, bit for bit.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tinyllm.config import FanoutConfig, LoopConfig, NodeConfig, TimeoutConfig
from tinyllm.errors import ErrorCode, TinyLLMError
from tinyllm.graph import Graph, wrapped_by
from tinyllm.testing.history import History, RunRecord
from tinyllm.testing.ollama_host import CallRecord
from tinyllm.testing.scenario import Scenario, scenario_to_json
from tinyllm.testing.script import Says
from tinyllm.testing.units import NS_PER_MS
from tinyllm.trace import EventKind, TraceEvent
from tinyllm_fuzz.hunt import Finding

FORMAT = 1
TEXT_MAX = 60
Story = dict[str, Any]


class StoryError(TinyLLMError):
    """A file that is no story of this version."""


def tell(finding: Finding, graph: Graph) -> Story:
    """The story of a finding, as plain JSON values."""
    breach = finding.verdict.breach
    assert breach is not None
    return {
        "format": FORMAT,
        "check": finding.verdict.check,
        "reason": breach.reason,
        "graph": graph_to_json(graph),
        "scenario": scenario_to_json(finding.scenario),
        "happened": [line.to_json() for line in _timeline(finding)],
        "reachable_on_stock_asyncio": finding.scenario.external_only,
        "history": finding.history.digest,
    }


def graph_to_json(graph: Graph) -> dict[str, Any]:
    """The graph as a file would hold it, under the name of the file it came from."""
    value = graph.document.value if graph.document else graph.definition.model_dump(mode="json")
    return {"name": Path(graph.document.source).name if graph.document else graph.id, "definition": value}


def digest(story: Story) -> str:
    """Names the story: 16 hexadecimal digits of the SHA-256 of its JSON."""
    return hashlib.sha256(dumped(story).encode()).hexdigest()[:16]


def dumped(story: Story) -> str:
    """The story as the text of its file."""
    return json.dumps(story, indent=1, sort_keys=True, ensure_ascii=True) + "\n"


def save(story: Story, directory: Path) -> Path:
    """Write the story to `<directory>/<digest>.json` and return that path; the same story is the same file."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{digest(story)}.json"
    path.write_text(dumped(story), encoding="utf-8")
    return path


def load(path: Path) -> Story:
    """Read a story; raises StoryError with what is wrong."""
    try:
        story = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise StoryError(f"{path}: cannot be read as a story: {error}") from None
    if not isinstance(story, dict) or story.get("format") != FORMAT:
        found = story.get("format") if isinstance(story, dict) else type(story).__name__
        raise StoryError(f"{path}: this is no story of format {FORMAT} (found {found!r})")
    missing = [key for key in ("check", "graph", "scenario", "happened", "history") if key not in story]
    if missing:
        raise StoryError(f"{path}: the story lacks {', '.join(missing)}")
    return story


# --- text ----------------------------------------------------------------------------------------------


def command() -> str:
    """This program as its user called it, so that a line to paste works where `tinyllm` is not on the PATH."""
    return sys.argv[0] if Path(sys.argv[0]).name == "tinyllm" and not shutil.which("tinyllm") else "tinyllm"


def render(story: Story, *, path: str | None) -> str:
    """The story as text; `path` is where its file lies, None if it has none."""
    lines = [f"{story['check']} is broken in {story['graph']['name']}", "", f"  {story['reason']}", ""]
    lines += _given(story["scenario"])
    lines += ["", "What happened (simulated milliseconds)", ""]
    lines += _table(story["happened"])
    stock = "yes" if story["reachable_on_stock_asyncio"] else "no"
    lines += ["", f"Reachable on stock asyncio: {stock}"]
    if path is not None:
        lines += ["", "Replay it", "", f"  {shlex.quote(command())} replay {shlex.quote(path)}"]
    return "\n".join(map(_printable, lines)) + "\n"


def _printable(line: str) -> str:
    """The line without anything that a terminal would act on: names come from the graph's file as they are."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def _given(scenario: dict[str, Any]) -> list[str]:
    lines = ["What was given", ""]
    for number, run in enumerate(scenario["runs"], 1):
        context = "" if run["context"] is None else f", context {_short(run['context'])}"
        lines.append(f"  input      run-{number} {_short(run['content'])}{context}, at {run['start_ms']} ms")
    lines.append(f"  answers    every model says {_short(scenario['plain_answer'])}")
    lines += [f"             but {_saying(Says(**said))}" for said in scenario["says"]]
    faults = [_fault(fault) for fault in [*scenario["faults"]["lasting"], *scenario["faults"]["calls"]]]
    lines += [f"  {'faults' if not index else '':<10} {fault}" for index, fault in enumerate(faults or ["none"])]
    holds = ", ".join(f"Hold(gap={hold['gap']}, level={hold['level']})" for hold in scenario["schedule"])
    lines.append(f"  schedule   {holds or 'stock asyncio'}")
    return lines


def _saying(said: Says) -> str:
    run = "" if said.run is None else f"run-{said.run + 1} "
    branch = f" (branch {said.branch})" if said.branch else ""
    call = "" if said.call is None else f" in call {said.call + 1}"
    return f"{run}{said.node}{branch} gets {_short(said.text)}{call}"


def _fault(fault: dict[str, Any]) -> str:
    where = ""
    if "node" in fault:
        where = f" on call {fault['call'] + 1} of {fault['node']} in run-{fault['run'] + 1}"
    hidden = ("fault", "run", "node", "branch", "call")
    told = ", ".join(f"{key}={value!r}" for key, value in fault.items() if key not in hidden and value is not None)
    return f"{fault['fault']}{f' ({told})' if told else ''}{where}"


def _table(happened: list[dict[str, Any]]) -> list[str]:
    who_width = max((len(line["who"]) for line in happened), default=0)
    return [
        f"{'>>' if line['broke'] else '  '} {line['at_ms']:>10.3f}  {line['who']:<{who_width}}  {line['what']}"
        for line in happened
    ]


def _short(text: str) -> str:
    shown = json.dumps(text, ensure_ascii=True)
    return shown if len(shown) <= TEXT_MAX else f"{shown[: TEXT_MAX - 3]}... ({len(text)} characters)"


# --- what happened -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    """One line of the timeline; `order` sorts those of one moment."""

    at_ns: int
    order: tuple[float, ...]
    who: str
    what: str
    broke: bool = False

    def to_json(self) -> dict[str, Any]:
        return {"at_ms": self.at_ns / NS_PER_MS, "who": self.who, "what": self.what, "broke": self.broke}


def _timeline(finding: Finding) -> list[_Line]:
    """Who did what at which moment; the run after the storm is told only if it is the one that broke."""
    history, breach = finding.history, finding.verdict.breach
    assert breach is not None
    last = len(history.runs) - 1
    told = [record for record in history.runs if record.index < last or record.index == breach.run]
    lines = [*_surroundings(finding.scenario, history)]
    for record in told:
        lines += _run_lines(record, history, breach.event if record.index == breach.run else None)
    lines.sort(key=lambda line: (line.at_ns, line.order))
    if lines and not any(line.broke for line in lines):
        own = f"run-{breach.run + 1}" if breach.run is not None else ""
        last_own = max((i for i, line in enumerate(lines) if line.who.split(" ")[0] == own), default=len(lines) - 1)
        lines[last_own] = replace(lines[last_own], broke=True)
    return lines


def _surroundings(scenario: Scenario, history: History) -> Iterator[_Line]:
    for fault in scenario.faults.lasting:
        until = "until healed" if fault.duration_ms is None else f"for {fault.duration_ms} ms"
        yield _Line(fault.start_ms * NS_PER_MS, (-1,), fault.host, f"goes down, {until}")
    for hold in history.holds:
        kind = f"{hold.hold.steps} steps" if hold.kind == "steps" else f"{(hold.hold.time_ns or 0) // NS_PER_MS} ms"
        yield _Line(hold.at_ns, (-0.5,), "schedule", f"holds task {hold.task} back for {kind}")


def _run_lines(record: RunRecord, history: History, broke: int | None) -> Iterator[_Line]:
    trace = record.result.trace if record.result else ()
    for event in trace:
        what = _told(event, trace, record, history)
        if what is not None or event.sequence == broke:
            at_ns = _at_ns(event, record)
            who = record.run_id if event.node_id is None else f"{record.run_id} {event.node_id}"
            order = (record.index, event.sequence)
            yield _Line(at_ns, order, who, what or str(event.kind), broke=event.sequence == broke)
    yield from _call_lines(record, history, trace)
    if record.cancelled_ns is not None:
        yield _Line(record.cancelled_ns, (record.index, -0.1), record.run_id, "is cancelled by its user")
    if record.raised is not None:
        yield _Line(record.ended_ns or 0, (record.index, 1e9), record.run_id, f"raises {record.raised}")
    for orphan in record.orphans:
        yield _Line(record.ended_ns or 0, (record.index, 1e9), record.run_id, f"leaves {orphan} behind")


def _told(event: TraceEvent, trace: Sequence[TraceEvent], record: RunRecord, history: History) -> str | None:
    """What an event says in a story, or None for one that tells nothing new."""
    details = event.details
    match event.kind:
        case EventKind.RUN_STARTED:
            return f"starts with {_short(record.plan.content)}"
        case EventKind.RUN_ENDED:
            because = f": {event.code}" if event.code else ""
            return f"ends {details['status']}{because}"
        case EventKind.STEP_STARTED:
            return _beginning(event, trace, history.graph)
        case EventKind.STEP_ENDED if "cut_off" in details:
            return f"is cut off: {details['cut_off']}"
        case EventKind.STEP_ENDED if event.code is ErrorCode.CIRCUIT_OPEN and event.cause is None:
            return "fails at once: its circuit breaker is open"
        case EventKind.STEP_ENDED if event.code is None and event.cause is not None:
            return f"goes on all the same{_instead(history.graph.nodes[str(event.node_id)].config)}"
        case EventKind.ATTEMPT_ENDED if event.code is not None:
            return f"attempt {event.attempt} fails with {event.code}: {_cut(str(details.get('message', '')))}"
        case EventKind.RETRY_WAITING:
            return f"waits {details['delay_ms']:g} ms before it tries again"
        case EventKind.WAY_CHOSEN:
            return f"leads to {details['to']} ({details['why']})"
        case EventKind.BREAKER_CHANGED:
            return f"turns its circuit breaker from {details['was']} to {details['state']}"
        case EventKind.MESSAGES_PRUNED:
            return f"{details['dropped']} old messages are dropped"
        case EventKind.CONDITION_ERROR:
            return f"a condition fails and counts as false: {_cut(str(details['reason']))}"
        case EventKind.TASK_ABANDONED:
            return "swallowed its cancellation and is abandoned"
    return None


def _beginning(event: TraceEvent, trace: Sequence[TraceEvent], graph: Graph) -> str:
    """What begins, and inside what: an iteration of a loop, a target of a fanout, what a timeout waits for."""
    kind, path = graph.nodes[str(event.node_id)].type, str(event.path)
    outer, _, number = path.rpartition(".")
    before = [it for it in trace[: event.sequence] if it.kind is EventKind.STEP_STARTED]
    inside = ""
    for other in reversed(before):
        config = graph.nodes[str(other.node_id)].config
        if other.path == path and event.node_id in wrapped_by(config) and isinstance(config, TimeoutConfig):
            inside = f", at most {config.timeout_ms} ms inside {other.node_id}"
        elif other.path == outer and event.node_id in wrapped_by(config) and isinstance(config, LoopConfig):
            inside = f", iteration {number} of {other.node_id}"
        elif other.path == outer and event.node_id in wrapped_by(config) and isinstance(config, FanoutConfig):
            inside = f", target {number} of {other.node_id}"
        if inside:
            break
    return f"begins ({kind}, path {path}{inside})"


def _instead(config: NodeConfig) -> str:
    return f" (on_timeout: {config.on_timeout})" if isinstance(config, TimeoutConfig) else ""


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 2 * TEXT_MAX else f"{line[: 2 * TEXT_MAX - 3]}..."


def _call_lines(record: RunRecord, history: History, trace: Sequence[TraceEvent]) -> Iterator[_Line]:
    """What was asked of hosts and what came back, between the attempt's start and its end."""
    asked: set[int] = set()
    for number, call in enumerate(history.calls_of(record.index)):
        begin, end = _attempt_around(call, record, trace)
        after, before = begin.sequence if begin else 0, end.sequence if end else 1e8
        # An attempt's further calls, to fallback models, follow the answer to the one before.
        place = (after + 0.1, number, 0) if after not in asked else (before - 0.5, number, 0)
        asked.add(after)
        question = f"asks {call.ask.model} on {call.host}: {_short(call.prompt)}"
        yield _Line(call.ask.at_ns, (record.index, *place), f"{record.run_id} {call.ask.node}", question)
        answer = f"{_came_back(call)} ({call.ask.node})"
        yield _Line(call.ended_ns or call.ask.at_ns, (record.index, before - 0.5, number, 1), call.host, answer)


def _attempt_around(
    call: CallRecord, record: RunRecord, trace: Sequence[TraceEvent]
) -> tuple[TraceEvent | None, TraceEvent | None]:
    """The start and the end of the attempt that made the call."""
    begin: TraceEvent | None = None
    for event in trace:
        if (event.path, event.node_id) != (call.path, call.ask.node):
            continue
        at_ns = _at_ns(event, record)
        if event.kind is EventKind.ATTEMPT_STARTED and at_ns <= call.ask.at_ns:
            begin = event
        ends_it = begin is not None and event.kind is EventKind.ATTEMPT_ENDED and event.attempt == begin.attempt
        if ends_it and at_ns >= (call.ended_ns or call.ask.at_ns):
            return begin, event
    return begin, None


def _at_ns(event: TraceEvent, record: RunRecord) -> int:
    """When the event happened, in the world's time."""
    return (record.started_ns or 0) + round(event.at_ms * NS_PER_MS)


def _came_back(call: CallRecord) -> str:
    reply = call.reply
    because = f" [{reply.fault.name}]" if reply.fault else ""
    match reply.how:
        case "answered" if call.delivered:
            return f"answers {_short(reply.text or '')}{because}"
        case "answered":
            return f"is left before it answers{because}"
        case "error":
            return f"answers with status {reply.status}{because}"
        case "cut":
            return f"breaks off in the middle of its answer{because}"
        case "reset":
            return f"resets the connection{because}"
    return f"refuses the connection{because}"
