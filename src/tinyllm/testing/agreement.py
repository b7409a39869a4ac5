"""The engine's result held against what the reference interpreter allows."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from tinyllm.errors import NodeError
from tinyllm.message import ErrorInfo, MessagePayload, TaskPayload
from tinyllm.testing import reference
from tinyllm.testing.faults import FaultPlan
from tinyllm.testing.history import History, RunRecord
from tinyllm.testing.script import TOKENS_IN, Ask, Script
from tinyllm.tools.registry import default_tools
from tinyllm.trace import EventKind, RunResult

#: Of each side of a difference; payloads can be long.
SHOWN_CHARS = 1_000
#: A nanosecond for each sum of floats that means the same moment.
ELAPSED_TOLERANCE_NS = 1_000


_PLAIN = re.compile("[A-Za-z0-9 ]+")
_CUT_OFF = re.compile("took the [0-9]+ ms that ")
#: Shorter ones could stand in any text.
WORDS_CHARS_MIN = 8
#: What every ErrorInfo has as JSON: wherever in a payload these keys stand together, an error stands.
_ERROR_KEYS = frozenset(ErrorInfo.model_fields)


def unjudged(history: History, record: RunRecord) -> str | None:
    """Why the reference cannot know how this run should have ended; None if it can."""
    if history.paused:
        return "a hold let time pass, and no script knows how long a call took"
    if record.result is None or record.started_ns is None or record.ended_ns is None:
        return "it has no result"
    if record.cancelled_ns is not None:
        return "it was cancelled, and the moment decides"
    if history.config.max_message_bytes is not None:
        return "max_message_bytes counts the ids and times of messages"
    if history.config.breaker is not None and not _is_alone(history, record):
        return "it shared circuit breakers with other runs"
    if _holds_words(record.result):
        return "what an error says became text, and its words are free"
    return None


def _holds_words(result: RunResult) -> bool:
    """Whether a text of the last payload holds what some failed attempt said: a tool or a template put it there."""
    said = [str(event.details.get("message", "")) for event in result.trace if event.kind is EventKind.ATTEMPT_ENDED]
    # Escaped as often as texts lie inside texts, so that only plain words can be looked for.
    words = [max(_PLAIN.findall(text), key=len, default="") for text in said]
    words = [word for word in words if len(word) >= WORDS_CHARS_MIN]
    texts = [*_texts(_comparable(result.message.payload))]
    # Of a target that was cut off the trace says no more than that.
    return any(_CUT_OFF.search(text) or any(word in text for word in words) for text in texts)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | dict):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _texts(item)


def _is_alone(history: History, record: RunRecord) -> bool:
    """Whether no other run began before this one's end."""
    others = (other.started_ns for other in history.runs if other is not record)
    return all(started_ns is None or started_ns > (record.ended_ns or 0) for started_ns in others)


def disagreements(history: History, record: RunRecord) -> Iterator[str]:
    """How the run's result differs from the nearest outcome that the reference allows; nothing if it is one."""
    assert record.result is not None
    expected = expected_outcomes(history, record)
    actual = _told_by_engine(record.result)
    differences = [_differing(actual, _told_by_reference(outcome)) for outcome in expected]
    nearest = min(differences, key=len)
    for name, (mine, theirs) in nearest.items():
        yield f"{name} is {_shown(mine)}; the reference allows {_shown(theirs)}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}... ({len(text):,} characters)"


def expected_outcomes(history: History, record: RunRecord) -> tuple[reference.Outcome, ...]:
    """What the reference allows for this run in the world it lived in."""
    return _interpreted(history, record, history.script)[0]


def expected_without_faults(history: History, record: RunRecord) -> tuple[tuple[reference.Outcome, ...], set[str]]:
    """What the reference would allow if no fault had happened, and the nodes that would have asked a model."""
    return _interpreted(history, record, replace(history.script, faults=FaultPlan()))


def _interpreted(history: History, record: RunRecord, script: Script) -> tuple[tuple[reference.Outcome, ...], set[str]]:
    assert record.started_ns is not None
    assert record.result is not None
    task = TaskPayload(content=record.plan.content, context=record.plan.context)
    reply = reference_script(script, run=record.index, started_ns=record.started_ns)
    asked: set[str] = set()

    def noted(call: reference.Call) -> reference.Reply:
        asked.add(call.node_id)
        return reply(call)

    seed = seed_of(record.result)
    outcomes = reference.interpret(history.graph, history.config, task.to_payload(), noted, seed=seed, tools=tool_reply)
    return outcomes, asked


def tool_reply(call: reference.ToolCall) -> reference.ToolReply:
    """What a built-in tool gives: they are pure and never wait."""
    return _tool_reply(call.tool_id, json.dumps(call.arguments))


@lru_cache(maxsize=4_096)
def _tool_reply(tool_id: str, arguments: str) -> reference.ToolReply:
    tool = _TOOLS.get(tool_id)
    loop = asyncio.new_event_loop()
    try:
        return reference.ToolReply(output=loop.run_until_complete(tool.call(json.loads(arguments))))
    except NodeError as error:
        return reference.ToolReply(error_code=error.code, recoverable=error.recoverable)
    finally:
        loop.close()


_TOOLS = default_tools()


def reference_script(script: Script, *, run: int, started_ns: int) -> Callable[[reference.Call], reference.Reply]:
    """The world's script as the reference asks it: in time since the run began."""

    def reply(call: reference.Call) -> reference.Reply:
        ask = Ask(
            run=run,
            node=call.node_id,
            branch=call.branch,
            call=call.number,
            model=call.model,
            at_ns=started_ns + call.at_ns,
        )
        given = script.reply(ask)
        answered = given.how == "answered"
        return reference.Reply(
            duration_ns=given.duration_ns,
            text=given.text if answered else None,
            tokens_in=TOKENS_IN if answered else 0,
            tokens_out=given.tokens_out if answered else 0,
        )

    return reply


def seed_of(result: RunResult) -> int:
    """The seed that the run drew for its retry delays, as its trace tells."""
    return int(result.trace[0].details["seed"])


Told = Mapping[str, Any]


def _told_by_engine(result: RunResult) -> Told:
    return {
        "status": result.status,
        "error code": None if result.error is None else result.error.code.value,
        "error node": None if result.error is None else result.error.node_id,
        "payload": _comparable(result.message.payload),
        "path": visits_of(result),
        "steps": result.nodes_executed,
        "attempts": sum(event.kind is EventKind.ATTEMPT_STARTED for event in result.trace),
        "tokens": result.tokens_used,
        "elapsed_ns": round(result.total_latency_ms * 1_000_000),
    }


def visits_of(result: RunResult) -> list[str]:
    """The nodes that the token visited, in order. What a visited timeout wraps has the path of its visit, too."""
    visited: dict[str, str] = {}
    for event in result.trace:
        if event.kind is EventKind.STEP_STARTED and event.path and "." not in event.path:
            visited.setdefault(event.path, str(event.node_id))
    return [*visited.values()]


def _told_by_reference(outcome: reference.Outcome) -> Told:
    told = {
        "status": outcome.status,
        "error code": outcome.error_code,
        "error node": outcome.error_node,
        "payload": _comparable(outcome.payload),
        "path": list(outcome.visits),
        "elapsed_ns": outcome.elapsed_ns,
    }
    # Where several branches were cut off at one moment, how far each had come is open.
    if outcome.exact_steps:
        told["steps"] = outcome.steps
    if outcome.exact_attempts:
        told |= {"attempts": outcome.attempts, "tokens": outcome.tokens}
    return told


def _comparable(payload: MessagePayload) -> Any:
    """The payload as JSON, without what is free.

    Free is what an error says in words, and its details, wherever in the payload it stands; and of a tool's result
    the words of its error, its time, and its id, which holds the run's.
    """
    fields = payload.model_dump(mode="json")
    if fields["tool_result"] is not None:
        bound = {"call_id": None, "latency_ms": None, "error": fields["tool_result"]["error"] is not None}
        fields["tool_result"] = {**fields["tool_result"], **bound}
    return _without_words(fields)


def _without_words(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_words(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == _ERROR_KEYS:
        return {key: it for key, it in value.items() if key not in ("message", "details")}
    return {key: _without_words(it) for key, it in value.items()}


def _differing(actual: Told, expected: Told) -> dict[str, tuple[Any, Any]]:
    differing = {name: (actual[name], expected[name]) for name in expected if actual[name] != expected[name]}
    if "elapsed_ns" in differing and abs(actual["elapsed_ns"] - expected["elapsed_ns"]) <= ELAPSED_TOLERANCE_NS:
        del differing["elapsed_ns"]
    return differing
