"""Messages: immutable, sharing nothing, and the same after a trip through JSON."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from tinyllm.errors import RECOVERABLE, ErrorCode, ModelError, NodeError
from tinyllm.message import (
    ErrorInfo,
    Message,
    MessageMetadata,
    MessagePayload,
    NodeResult,
    TaskPayload,
    ToolCall,
    ToolResult,
)
from tinyllm_strategies.messages import json_objects, messages, payloads

pytestmark = pytest.mark.unit

NOON = datetime(2025, 6, 1, 12, tzinfo=UTC)
RICH = MessagePayload(
    structured={"a": [1]},
    tool_call=ToolCall(tool_id="t", call_id="c", input={"k": [1]}),
    tool_result=ToolResult(tool_id="t", call_id="c", success=True, output={"o": [1]}),
    tool_calls=[{"x": [1]}],
    error=ErrorInfo(code=ErrorCode.TIMEOUT, message="late", details={"d": [1]}),
    metadata={"m": [1]},
    extra={"e": [1]},
)


def message(payload: MessagePayload | None = None, **fields: Any) -> Message:
    return Message(trace_id="t", source_node="s", payload=payload or MessagePayload(), **fields)


def containers(value: Any) -> dict[int, Any]:
    """Every list and dict that can be reached from a value, by identity."""
    found: dict[int, Any] = {}
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, BaseModel):
            waiting += [*item.__dict__.values(), *(item.model_extra or {}).values()]
        elif isinstance(item, list | dict) and id(item) not in found:
            found[id(item)] = item
            waiting += item.values() if isinstance(item, dict) else item
    return found



# --- JSON ------------------------------------------------------------------------------------------------


@given(messages())
def test_a_message_equals_itself_after_a_trip_through_json(sent):
    received = Message.from_json(sent.to_json())

    assert sent == received
    assert sent.to_json() == received.to_json(), "1, 1.0 and true are equal in Python, and different values"


@given(json_objects())
def test_json_is_one_line_with_sorted_keys_so_that_equal_values_give_equal_text(value):
    text = MessagePayload(structured=value).to_json()

    assert "\n" not in text
    assert text == MessagePayload(structured=dict(reversed(value.items()))).to_json()
    assert text == json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False)


def test_a_node_result_equals_itself_after_a_trip_through_json():
    sent = [message(), message(RICH, metadata=MessageMetadata(tokens_in=1, latency_ms=0.5))]
    result = NodeResult(success=False, output_messages=sent, next_nodes=["n"], error=RICH.error, metadata={"a": [1]})

    assert result == NodeResult.from_json(result.to_json())


@given(st.datetimes(timezones=st.timezones() | st.just(UTC)))
def test_every_moment_is_kept_in_utc_or_refused_by_name(moment):
    offset = moment.utcoffset()
    try:
        in_utc = moment.replace(tzinfo=None, fold=0) - offset
    except OverflowError:
        with pytest.raises(ValidationError, match="created_at"):
            message(created_at=moment)
        return

    sent = message(created_at=moment)

    assert in_utc == sent.created_at.replace(tzinfo=None)
    assert timedelta(0) == sent.created_at.utcoffset()
    assert sent == Message.from_json(sent.to_json())


@pytest.mark.parametrize(
    "moment",
    [
        datetime(9999, 12, 31, 23, 59, tzinfo=timezone(-timedelta(hours=1))),
        datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=1))),
    ],
)
def test_a_moment_that_utc_cannot_hold_is_refused(moment):
    with pytest.raises(ValidationError, match="created_at"):
        message(created_at=moment)
    with pytest.raises(ValidationError, match="created_at"):
        Message.from_json(json.dumps({**json.loads(message().to_json()), "created_at": moment.isoformat()}))


def test_a_moment_without_a_time_zone_is_refused():
    with pytest.raises(ValidationError, match="created_at"):
        message(created_at=datetime(2025, 1, 1))  # noqa: DTZ001 - the zone is missing on purpose


@given(st.text() | st.text(alphabet='{}[]":,01\\unultre\ud800'))
def test_any_text_is_a_message_or_a_validation_error(text):
    with pytest.raises(ValidationError):
        Message.from_json(text)


@given(st.floats(0, 1, exclude_max=True))
def test_a_torn_message_is_a_validation_error(part):
    text = message(RICH).to_json()

    with pytest.raises(ValidationError):
        Message.from_json(text[: int(part * len(text))])


# --- sharing nothing -------------------------------------------------------------------------------------


@given(messages(), st.none() | payloads())
def test_a_child_shares_no_list_and_no_dict_with_its_parent(parent, payload):
    child = parent.create_child("next", payload=payload)

    assert set() == containers(parent).keys() & containers(child).keys()
    assert set() == containers(payload).keys() & containers(child).keys()


def test_every_field_of_a_payload_that_can_change_is_copied():
    parent = message(RICH)

    child = parent.create_child("next")

    assert RICH == child.payload
    assert 15 == len(containers(child))
    assert set() == containers(parent).keys() & containers(child).keys()


def test_two_messages_built_from_one_payload_share_nothing():
    assert set() == containers(message(RICH)).keys() & containers(message(RICH)).keys()


def test_replacing_nothing_gives_an_equal_payload_that_shares_nothing():
    copy = RICH.replace()

    assert RICH == copy
    assert set() == containers(RICH).keys() & containers(copy).keys()


def test_replacing_a_field_keeps_the_others_and_the_unknown_keys():
    copy = RICH.replace(content="new", extra=1, other=2)

    assert RICH.model_dump() | {"content": "new", "extra": 1, "other": 2} == copy.model_dump()


def test_replacing_checks_the_new_value():
    with pytest.raises(ValidationError, match="confidence"):
        RICH.replace(confidence=2.0)


def test_a_dict_changed_after_it_was_handed_in_changes_no_message():
    structured = {"a": [1]}
    sent = message(MessagePayload(structured=structured))

    structured["a"].append(2)

    assert {"a": [1]} == sent.payload.structured


@pytest.mark.parametrize("value", [message(RICH), RICH, MessageMetadata(), RICH.error, RICH.tool_call])
def test_fields_cannot_be_set(value):
    field = next(iter(type(value).model_fields))

    with pytest.raises(ValidationError, match="frozen"):
        setattr(value, field, None)


# --- children --------------------------------------------------------------------------------------------


def test_a_child_keeps_the_trace_and_names_its_parent():
    parent = message(RICH, message_id="p", metadata=MessageMetadata(tokens_in=3))

    child = parent.create_child("from", "to", message_id="c", created_at=NOON)

    assert ("t", "p", "c", "from", "to") == (
        child.trace_id,
        child.parent_id,
        child.message_id,
        child.source_node,
        child.target_node,
    )
    assert MessageMetadata() == child.metadata
    assert (RICH, NOON) == (child.payload, child.created_at)


def test_a_child_carries_the_payload_it_is_given():
    assert MessagePayload(content="x") == message(RICH).create_child("n", payload=MessagePayload(content="x")).payload


def test_an_empty_payload_replaces_that_of_the_parent():
    assert MessagePayload() == message(RICH).create_child("n", payload=MessagePayload()).payload


def test_children_have_ids_of_their_own():
    parent = message()

    assert 3 == len({parent.message_id, parent.create_child("n").message_id, parent.create_child("n").message_id})


# --- what is refused -------------------------------------------------------------------------------------

NOT_JSON: list[tuple[Any, str]] = [
    (float("nan"), "nan is not JSON"),
    (float("inf"), "inf is not JSON"),
    (-float("inf"), "-inf is not JSON"),
    (b"x", "bytes is not JSON"),
    ((1,), "tuple is not JSON"),
    ({1}, "set is not JSON"),
    (object(), "object is not JSON"),
    ("\ud800", "lone surrogate U\\+D800 at character 0"),
    ("é\udfff", "lone surrogate U\\+DFFF at character 1"),
    ({1: 1}, "the key 1 is not text"),
    ({"\ud800": 1}, "lone surrogate"),
    ({None: 1}, "the key None is not text"),
    (2**4096, "an integer of 4097 bits"),
    (-(2**4096), "an integer of 4097 bits"),
    (NOON, "datetime is not JSON"),
]


@pytest.mark.parametrize(("value", "reason"), NOT_JSON, ids=[reason for _, reason in NOT_JSON])
@pytest.mark.parametrize("field", ["structured", "metadata", "anything"])
def test_what_json_cannot_carry_is_refused_with_the_name_of_its_field(field, value, reason):
    fields: Any = {field: {"deep": [value]}}

    with pytest.raises(ValidationError, match=f"(?s)^.*{field}.*{reason}"):
        MessagePayload(**fields)


@pytest.mark.parametrize(
    ("cls", "field", "value"),
    [
        (MessagePayload, "content", "\ud800"),
        (MessagePayload, "task", 5),
        (MessagePayload, "structured", [1]),
        (MessagePayload, "metadata", None),
        (MessagePayload, "confidence", 1.01),
        (MessagePayload, "confidence", -0.01),
        (MessagePayload, "confidence", float("nan")),
        (MessagePayload, "confidence", True),
        (MessagePayload, "tool_calls", [5]),
        (MessagePayload, "error", {"code": "NO_SUCH_CODE", "message": ""}),
        (MessageMetadata, "tokens_in", -1),
        (MessageMetadata, "tokens_out", 2**63),
        (MessageMetadata, "iteration", 1.0),
        (MessageMetadata, "latency_ms", -1.0),
        (MessageMetadata, "latency_ms", float("inf")),
        (MessageMetadata, "is_cached", 1),
        (MessageMetadata, "unknown", 1),
        (ErrorInfo, "unknown", 1),
        (TaskPayload, "content", None),
        (TaskPayload, "unknown", 1),
        (ToolResult, "output", b""),
        (NodeResult, "next_nodes", "text"),
    ],
)
def test_a_value_outside_its_field_is_refused_with_the_name_of_the_field(cls, field, value):
    needed: dict[Any, dict[str, Any]] = {
        ErrorInfo: {"code": ErrorCode.UNKNOWN, "message": ""},
        TaskPayload: {"content": ""},
        ToolResult: {"call_id": "", "tool_id": "", "success": True},
        NodeResult: {"success": True},
    }
    rest = needed.get(cls, {})
    cls(**rest)

    with pytest.raises(ValidationError) as refused:
        cls(**{**rest, field: value})

    assert {field} == {detail["loc"][0] for detail in refused.value.errors()}


@pytest.mark.parametrize(
    "field", ["tokens_in", "tokens_out", "iteration", "retry_count", "latency_ms", "quality_score"]
)
def test_a_number_too_long_to_print_is_refused(field):
    number: Any = {field: 10**5_000}

    with pytest.raises(ValidationError) as refused:
        MessageMetadata(**number)

    assert [(field,)] == [detail["loc"] for detail in refused.value.errors()]


def test_64_levels_are_carried_and_65_refused():
    def levels(count: int) -> dict[str, Any]:
        value: Any = {}
        for _ in range(count - 1):
            value = {"n": value}
        return value

    sent = message(MessagePayload(structured=levels(64), extra=levels(64)))

    assert sent == Message.from_json(sent.to_json())
    with pytest.raises(ValidationError, match=r"(?s)structured.*nested more than 64 levels deep"):
        MessagePayload(structured=levels(65))
    with pytest.raises(ValidationError, match=r"(?s)extra.*nested more than 64 levels deep"):
        MessagePayload(extra=levels(65))


def test_a_list_that_contains_itself_is_refused():
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(ValidationError, match="nested more than 64 levels deep"):
        MessagePayload(structured={"a": endless})


def test_the_largest_integer_is_carried():
    sent = MessagePayload(structured={"n": 2**4096 - 1, "m": 1 - 2**4096})

    assert sent == MessagePayload.from_json(sent.to_json())


def test_only_a_payload_keeps_unknown_keys():
    assert {"lang": "en"} == MessagePayload(lang="en").model_extra
    with pytest.raises(ValidationError, match="lang"):
        message(lang="en")


# --- the smaller values ----------------------------------------------------------------------------------


def test_a_task_becomes_task_content_context_and_options():
    assert MessagePayload(
        task="q", content="q", structured={"context": "c"}, metadata={"options": {"o": 1}}
    ) == TaskPayload(content="q", context="c", options={"o": 1}).to_payload()


def test_a_task_without_context_and_options_leaves_no_trace_of_them():
    assert MessagePayload(task="q", content="q") == TaskPayload(content="q").to_payload()


def test_an_empty_context_is_a_context():
    assert {"context": ""} == TaskPayload(content="q", context="").to_payload().structured


def test_the_output_of_a_result_is_the_content_of_its_last_message():
    first, last = message(MessagePayload(content="first")), message(MessagePayload(content="last"))

    assert "last" == NodeResult(success=True, output_messages=[first, last]).output
    assert NodeResult(success=True, output_messages=[first, message()]).output is None
    assert NodeResult(success=True).output is None


def test_a_result_holds_the_very_messages_it_was_given():
    sent = message(RICH)

    assert sent is NodeResult(success=True, output_messages=[sent]).output_messages[0]


# --- errors ----------------------------------------------------------------------------------------------


def test_the_codes_after_which_trying_again_can_help_are_four():
    assert {"MODEL_ERROR", "TOOL_ERROR", "TIMEOUT", "UNKNOWN"} == set(RECOVERABLE)


@pytest.mark.parametrize("code", ErrorCode)
def test_an_error_is_recoverable_as_its_code_says_unless_it_is_said(code):
    assert (code in RECOVERABLE) is ErrorInfo(code=code, message="").recoverable
    assert not ErrorInfo(code=code, message="", recoverable=False).recoverable


@pytest.mark.parametrize("code", ErrorCode)
def test_a_node_can_take_hope_away_and_never_give_it(code):
    assert (code in RECOVERABLE) is NodeError(code, "m").recoverable
    assert (code in RECOVERABLE) is NodeError(code, "m", recoverable=True).recoverable
    assert not NodeError(code, "m", recoverable=False).recoverable


def test_a_model_error_has_its_code_and_a_copy_of_its_details():
    details = {"status": 500}
    error = ModelError("no answer", details=details)
    details["status"] = 200

    assert (ErrorCode.MODEL_ERROR, "no answer", {"status": 500}) == (error.code, str(error), error.details)
    assert {} == ModelError("m").details
