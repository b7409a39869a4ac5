"""Messages and what they carry."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from tinyllm.errors import ErrorCode
from tinyllm.message import ErrorInfo, Message, MessageMetadata, MessagePayload, TaskPayload, ToolCall, ToolResult

_EARLIEST, _LATEST = (datetime(year, 1, 1) for year in (1970, 2100))  # noqa: DTZ001 - Hypothesis adds the zone
_FINITE = st.floats(allow_nan=False, allow_infinity=False)


def json_values(*, max_leaves: int = 8) -> st.SearchStrategy[Any]:
    """Whatever JSON can carry. Shrinks to None."""
    leaves = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | _FINITE | st.text(max_size=20)
    return st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | _objects(inner), max_leaves=max_leaves)


def _objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.text(max_size=8), values, max_size=3)


def json_objects() -> st.SearchStrategy[dict[str, Any]]:
    """JSON objects. Shrinks to {}."""
    return _objects(json_values())


def error_infos() -> st.SearchStrategy[ErrorInfo]:
    """Errors of every code. Shrinks to MODEL_ERROR with an empty message."""
    return st.builds(
        ErrorInfo,
        code=st.sampled_from(ErrorCode),
        message=st.text(max_size=20),
        details=json_objects(),
        recoverable=st.booleans(),
        node_id=st.none() | st.text(max_size=8),
    )


def payloads() -> st.SearchStrategy[MessagePayload]:
    """Payloads with any of their fields set, unknown keys too. Shrinks to the empty payload."""
    known = st.fixed_dictionaries(
        {},
        optional={
            "task": st.text(max_size=20),
            "content": st.text(max_size=40),
            "structured": json_objects(),
            "route": st.text(max_size=8),
            "confidence": st.floats(0, 1),
            "tool_call": st.builds(
                ToolCall, tool_id=st.text(max_size=5), input=json_objects(), call_id=st.text(max_size=5)
            ),
            "tool_result": st.builds(
                ToolResult,
                call_id=st.text(max_size=5),
                tool_id=st.text(max_size=5),
                success=st.booleans(),
                output=json_values(),
            ),
            "tool_calls": st.lists(json_objects(), max_size=2),
            "error": error_infos(),
            "metadata": json_objects(),
        },
    )
    unknown = st.dictionaries(
        st.sampled_from(["matched_condition", "lang", "_x", "self", "copy"]), json_values(), max_size=2
    )
    return st.builds(lambda fields, extra: MessagePayload(**{**extra, **fields}), known, unknown)


def messages() -> st.SearchStrategy[Message]:
    """Valid messages. Shrinks to one with an empty payload and empty metadata."""
    names = st.text(min_size=1, max_size=8)
    counts = st.none() | st.integers(0, 10**6)
    return st.builds(
        Message,
        message_id=names,
        trace_id=names,
        parent_id=st.none() | names,
        source_node=names,
        target_node=st.none() | names,
        payload=payloads(),
        metadata=st.builds(
            MessageMetadata, tokens_in=counts, tokens_out=counts, iteration=counts, is_cached=st.booleans()
        ),
        created_at=st.datetimes(_EARLIEST, _LATEST, timezones=st.just(UTC)),
    )


def tasks() -> st.SearchStrategy[TaskPayload]:
    """Inputs as users write them. Shrinks to empty content."""
    return st.builds(TaskPayload, content=task_texts(), context=st.none() | st.text(max_size=20))


def task_texts() -> st.SearchStrategy[str]:
    """Questions, plain ones first. Shrinks to the empty text."""
    return st.sampled_from(["", "hello", "What is the capital of France?"]) | st.text(max_size=40)
