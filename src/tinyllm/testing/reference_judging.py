"""What wrappers make of the results inside them, in the reference interpreter: votes, scores, lists, tallies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tinyllm.config import FanoutConfig
from tinyllm.errors import RECOVERABLE, ErrorCode
from tinyllm.message import ErrorInfo, MessagePayload
from tinyllm.testing.reference_text import Token, names_on

NEVER = float("-inf")


def failure(code: ErrorCode, node_id: str, **details: Any) -> ErrorInfo:
    return ErrorInfo(code=code, message="", details=details, recoverable=code in RECOVERABLE, node_id=node_id)


def put_out(payload: MessagePayload, node_id: str, **fields: Any) -> Token | ErrorInfo:
    """`payload`, without its error, with these fields; a failure if no message could carry that."""
    try:
        return Token(payload.replace(**{"error": None, **fields}))
    except ValueError:
        return failure(ErrorCode.VALIDATION_ERROR, node_id)


def passed_on(errors: Sequence[ErrorInfo]) -> ErrorInfo:
    """The first of the targets' errors; its details tell all."""
    failures = [{"node": error.node_id, "code": error.code.value, "message": ""} for error in errors]
    return errors[0].model_copy(update={"details": {**errors[0].details, "failures": failures}})


# --- fanouts -------------------------------------------------------------------------------------------


def judged(
    node_id: str, received: MessagePayload, config: FanoutConfig, results: Sequence[Token | ErrorInfo | None]
) -> Token | ErrorInfo:
    """What a fanout puts out when all targets ended, or why it fails."""
    errors = [result for result in results if isinstance(result, ErrorInfo)]
    tokens = [result for result in results if isinstance(result, Token)]
    if tokens and not (errors and config.require_all_success):
        match config.aggregation_strategy:
            case "all":
                return _listed(node_id, received, config, results)
            case "best_score":
                # `max` takes the first of equals.
                return Token(max(tokens, key=lambda token: _score(token, config.score_field)).payload)
            case "majority_vote":
                voters = _most(tokens)
                if len(voters) >= config.votes_needed:
                    return Token(voters[0].payload)
    return passed_on(errors) if errors else failure(ErrorCode.GATE_FAILED, node_id, failures=[])


def _most(tokens: Sequence[Token]) -> Sequence[Token]:
    """Those who gave the answer with most votes."""
    voters: dict[str, list[Token]] = {}
    for token in tokens:
        if words := (token.payload.content or "").casefold().split():
            voters.setdefault(" ".join(words), []).append(token)
    # `max` takes the first of equals, and the answers stand in the order of their first voters.
    return max(voters.values(), key=len, default=[])


def _score(token: Token, name: str) -> float:
    for values in (names_on(token, {})["metadata"], token.payload.structured or {}):
        value = values.get(name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
    return NEVER


def _listed(
    node_id: str, received: MessagePayload, config: FanoutConfig, results: Sequence[Token | ErrorInfo | None]
) -> Token | ErrorInfo:
    contents = [result.payload.content for result in results if isinstance(result, Token)]
    texts = [content for content in contents if content is not None]
    entries = [
        _entry(target, received, result)
        for target, result in zip(config.target_nodes, results, strict=True)
        if result is not None
    ]
    structured = {**(received.structured or {}), "results": entries}
    return put_out(received, node_id, content="\n\n".join(texts) if texts else None, structured=structured)


def _entry(target: str, received: MessagePayload, result: Token | ErrorInfo) -> dict[str, Any]:
    if isinstance(result, ErrorInfo):
        return {"node": target, "success": False, "content": None, "structured": None, "error": _untold(result)}
    structured = _without("results", result.payload.structured, received.structured)
    content = result.payload.content
    return {"node": target, "success": True, "content": content, "structured": structured, "error": None}


def _without(key: str, values: dict[str, Any] | None, received: dict[str, Any] | None) -> dict[str, Any] | None:
    """`values` without what stands under `key`, if that is what was received."""
    if values is None or received is None or key not in values or key not in received:
        return values
    if values[key] != received[key]:
        return values
    return {name: value for name, value in values.items() if name != key}


def _untold(error: ErrorInfo) -> dict[str, Any]:
    """An error as JSON, without its details."""
    return error.model_copy(update={"details": {}}).model_dump(mode="json")


# --- loops ---------------------------------------------------------------------------------------------


def iteration(number: int, result: Token | ErrorInfo, received: MessagePayload) -> dict[str, Any]:
    """What a loop tells of an iteration."""
    if isinstance(result, ErrorInfo):
        error = _untold(result)
        return {"iteration": number, "success": False, "output": None, "metadata": {}, "error": error}
    metadata = _without("loop_result", names_on(result, {})["metadata"], received.metadata)
    content = result.payload.content
    return {"iteration": number, "success": True, "output": content, "metadata": metadata, "error": None}


def tally(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How many iterations there were, and how they went."""
    successes = sum(result["success"] for result in results)
    return {
        "iterations": len(results),
        "success_count": successes,
        "failure_count": len(results) - successes,
        "success_rate": successes / len(results) if results else 0.0,
    }


def loop_names(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the conditions of a loop know beside the names on its message."""
    last = results[-1] if results else {}
    counts = tally(results)
    return {
        "iteration": len(results),
        "success_count": counts["success_count"],
        "failure_count": counts["failure_count"],
        "results": [*results],
        "last_result": dict(last),
        "last_success": last.get("success"),
        "last_output": last.get("output"),
        "last_error": last.get("error"),
    }
