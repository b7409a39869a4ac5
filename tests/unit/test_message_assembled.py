"""Values that are put together from checked parts, without validation: nobody can tell them from validated ones."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import pytest
from hypothesis import given, settings
from pydantic import BaseModel, ValidationError, model_validator

from tinyllm.message import Message, MessagePayload, NodeResult, TaskPayload, new_id
from tinyllm_strategies.messages import messages, payloads

pytestmark = pytest.mark.unit

WAYS: dict[str, Callable[[Any], Any]] = {
    "copied": copy.copy,
    "copied deeply": copy.deepcopy,
    "pickled": lambda value: pickle.loads(pickle.dumps(value)),
    "model_copy": lambda value: value.model_copy(),
    "model_copy deep": lambda value: value.model_copy(deep=True),
    "validated again": lambda value: type(value).model_validate(value),
    "from json": lambda value: type(value).from_json(value.to_json()),
}


def validated(value: Any) -> Any:
    """The same value, built by Pydantic."""
    fields = {name: validated(part) if isinstance(part, BaseModel) else part for name, part in vars(value).items()}
    return type(value).model_validate({**fields, **(value.model_extra or {})})


def assert_same(assembled: Any, way: str) -> None:
    expected, again = validated(assembled), WAYS[way](assembled)

    assert (expected, expected) == (assembled, again)
    assert repr(expected) == repr(assembled)
    assert expected.model_dump() == assembled.model_dump() == again.model_dump()
    assert expected.model_dump_json() == assembled.model_dump_json()
    assert expected.to_json() == again.to_json()
    assert expected.model_extra == assembled.model_extra


@settings(max_examples=100)
@pytest.mark.parametrize("way", WAYS)
@given(parent=messages())
def test_a_child_is_like_a_validated_message(way, parent):
    assert_same(parent.create_child("node"), way)


@settings(max_examples=100)
@pytest.mark.parametrize("way", WAYS)
@given(payload=payloads())
def test_a_payload_with_a_field_replaced_is_like_a_validated_one(way, payload):
    assert_same(payload.replace(route="x", more=[1, {"a": None}]), way)


@settings(max_examples=100)
@pytest.mark.parametrize("way", WAYS)
@given(message=messages())
def test_a_result_of_one_message_is_like_a_validated_one(way, message):
    assert_same(NodeResult(success=True, output_messages=[message]), way)


@pytest.mark.parametrize("way", WAYS)
def test_the_input_of_a_task_is_like_a_validated_payload(way):
    assert_same(TaskPayload(content="q", context="c", options={"a": [1]}).to_payload(), way)


def test_fields_count_as_set_that_are_not_what_they_are_without_being_named():
    parent = Message(trace_id="t", source_node="user", payload=MessagePayload(content="x"))
    child = parent.create_child("node")

    assert {"message_id", "trace_id", "parent_id", "source_node", "payload", "created_at"} == child.model_fields_set
    assert {"content"} == child.payload.model_fields_set
    assert {"content": "x", "more": 1} == child.payload.replace(more=1).model_dump(exclude_unset=True)
    assert {"success", "output_messages"} == NodeResult(success=True, output_messages=[child]).model_fields_set


def test_a_name_that_no_value_has_is_an_attribute_error():
    child = Message(trace_id="t", source_node="user", payload=MessagePayload()).create_child("node")

    for value in (child, child.payload, NodeResult(success=True, output_messages=[child])):
        with pytest.raises(AttributeError, match="nothing"):
            _ = value.nothing


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, ["success"]),
        ({"output_messages": []}, ["success"]),
        ({"success": 1}, ["success"]),
        ({"success": None}, ["success"]),
        ({"success": True, "output_messages": None}, ["output_messages"]),
        ({"success": True, "output_messages": ["text"]}, ["output_messages"]),
        ({"success": True, "output_messages": ()}, ["output_messages"]),
        ({"success": True, "unknown": 1}, ["unknown"]),
        ({"success": True, "output_messages": [], "next_nodes": "a"}, ["next_nodes"]),
    ],
    ids=str,
)
def test_a_wrong_result_is_refused_with_the_name_of_its_field(fields, named):
    with pytest.raises(ValidationError) as refused:
        NodeResult(**fields)

    assert named == [error["loc"][0] for error in refused.value.errors()]


class Scored(NodeResult):
    """A result of a user's own."""

    score: float = 0.5

    @model_validator(mode="after")
    def in_range(self) -> Self:
        if not 0 <= self.score <= 1:
            raise ValueError("a score is between 0 and 1")
        return self


def test_a_kind_of_result_of_a_user_s_own_is_validated_and_has_its_defaults():
    message = Message(trace_id="t", source_node="user", payload=MessagePayload())

    assert 0.5 == Scored(success=True, output_messages=[message]).score
    with pytest.raises(ValidationError, match="between 0 and 1"):
        Scored(success=True, output_messages=[message], score=2.0)


def test_the_signature_of_a_result_names_its_fields():
    assert [*NodeResult.model_fields] == [*inspect.signature(NodeResult).parameters]
    assert [*Scored.model_fields] == [*inspect.signature(Scored).parameters]


def test_a_result_takes_no_list_that_changes_later():
    message = Message(trace_id="t", source_node="user", payload=MessagePayload())
    outputs = [message]
    result = NodeResult(success=True, output_messages=outputs)
    outputs.clear()

    assert [message] == result.output_messages


# --- ids -------------------------------------------------------------------------------------------------


def test_no_two_ids_are_alike_whichever_thread_asks():
    with ThreadPoolExecutor(4) as pool:
        found = [*pool.map(lambda _: [new_id() for _ in range(500)], range(20))]
    ids = [one for some in found for one in some]

    assert 10_000 == len(set(ids))
    assert {32} == {len(one) for one in ids}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks here")
def test_a_forked_process_has_other_ids_than_its_parent():
    program = """
import os
from tinyllm.message import new_id
new_id()
if os.fork() == 0:
    print(new_id(), flush=True)
    os._exit(0)
os.wait()
print(new_id())
"""
    told = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)

    assert 2 == len(set(told.stdout.split()))
