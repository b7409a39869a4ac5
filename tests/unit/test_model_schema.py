"""A model that must answer JSON: what is a good answer, how it is asked again, and who is asked next."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import ScriptedModel
from tests.support.runs import a_graph, a_line, a_message, an_executor, code, count, go, node, run_clean
from tinyllm.config import NodeDefinition
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, ModelError, NodeError
from tinyllm.message import Message
from tinyllm.nodes import make_node
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
GOOD, BAD = '{"n": 1}', '{"n": "one"}'


def answer(*answers: Any, schema: Any = None, message: Message | None = None, **config: Any) -> Message:
    """What the node puts out if model m gives these answers, the last one again and again."""
    model = ScriptedModel({"m": [*answers]})
    return put_out(model, schema=schema, message=message, **config)


def put_out(model: ScriptedModel, *, schema: Any = None, message: Message | None = None, **config: Any) -> Message:
    config = {"model": "m", "response_schema": SCHEMA if schema is None else schema, **config}
    single = make_node(NodeDefinition.model_validate({"id": "n", "type": "model", "config": config}))
    message = a_message(content="question") if message is None else message
    return run_clean(single.execute(message, ExecutionContext(model=model))).output_messages[-1]


def refusal(*answers: Any, **config: Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        answer(*answers, **config)
    return caught.value


def ran(model: ScriptedModel, **config: Any) -> RunResult:
    graph = a_line(node("model", model="m", response_schema=SCHEMA, **config))
    return go(an_executor(graph, model=model))


# --- good answers --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "structured"),
    [('{"n": 1}', {"n": 1}), (' \n{"n":1}\t\n', {"n": 1}), ('{\n"n": -7\n}', {"n": -7})],
)
def test_a_good_answer_becomes_structured_and_the_content_as_it_came(text, structured):
    payload = answer(text, message=a_message(content="q", task="t", structured={"old": 1}, mine=2)).payload

    assert (text, structured) == (payload.content, payload.structured)
    assert ("t", 2) == (payload.task, payload.fields()["mine"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "[1]",
        "1",
        "null",
        '"text"',
        '{"n": "one"}',
        "{}",
        '{"n": 1, "m": 2}',
        '{"n": 1.5}',
        '{"n": true}',
        '{"n": NaN}',
        '{"n": 1e999}',
        "{'n': 1}",
        '{"n": 1} and more',
        'Here: {"n": 1}',
        '```json\n{"n": 1}\n```',
        '{"n": ' + "9" * 2_000 + "}",
        '{"n": ' + "9" * 5_000 + "}",
        "[" * 100_000,
    ],
    ids=lambda text: text[:20],
)
def test_anything_else_is_no_good_answer(text):
    error = refusal(text)

    assert (ErrorCode.MODEL_ERROR, True) == (error.code, error.recoverable)


def test_an_object_that_no_message_could_carry_is_no_good_answer():
    anything = {"type": "object"}
    deep = '{"a":' * 65 + "1" + "}" * 65

    assert {"a": [1]} == answer('{"a": [1]}', schema=anything).payload.structured
    assert ErrorCode.MODEL_ERROR == refusal(deep, schema=anything).code
    assert ErrorCode.MODEL_ERROR == refusal('{"a": "\\ud800"}', schema=anything).code


def test_an_object_is_needed_even_if_the_schema_would_take_more():
    assert ErrorCode.MODEL_ERROR == refusal("[1]", schema={}).code
    assert {} == answer("{}", schema={}).payload.structured


def test_without_a_schema_json_is_text_and_structured_stays():
    graph = a_line(node("model", model="m"))
    message = a_message(content="q", structured={"old": 1})
    result = run_clean(an_executor(graph, model=ScriptedModel(GOOD)).run(message))

    assert (GOOD, {"old": 1}) == (result.content, result.structured)


def test_the_client_is_told_of_the_schema():
    model = ScriptedModel({"m": GOOD})
    put_out(model)

    assert SCHEMA == model.requests[0].response_schema


# --- asking again --------------------------------------------------------------------------------------


def test_after_a_bad_answer_the_same_model_is_asked_once_more():
    model = ScriptedModel({"m": ["bad", GOOD]})
    out = put_out(model)

    assert (GOOD, {"n": 1}, ["m", "m"]) == (out.payload.content, out.payload.structured, model.asked)


@pytest.mark.parametrize(("repairs", "calls"), [(0, 1), (1, 2), (3, 4)])
def test_a_model_is_asked_again_up_to_repair_attempts_times(repairs, calls):
    model = ScriptedModel({"m": BAD})
    with pytest.raises(NodeError) as caught:
        put_out(model, repair_attempts=repairs)

    assert (calls, ErrorCode.MODEL_ERROR) == (len(model.requests), caught.value.code)


def test_a_re_ask_shows_the_question_the_answer_and_its_error():
    model = ScriptedModel({"m": ['{"n": "secret braces {task}"}', GOOD]})
    put_out(model, system_prompt="be kind", temperature=0.3, max_tokens=9)
    first, second = model.requests

    assert [] == [part for part in ("question", "secret braces {task}") if part not in second.prompt]
    assert "integer" in second.prompt
    assert (first.system, first.temperature, first.max_tokens, first.idempotency_key, first.response_schema) == (
        second.system,
        second.temperature,
        second.max_tokens,
        second.idempotency_key,
        second.response_schema,
    )


def test_each_re_ask_shows_the_last_error():
    model = ScriptedModel({"m": ["not json at all", '{"n": "text"}', GOOD]})
    put_out(model, repair_attempts=2)

    assert "not json at all" in model.requests[1].prompt
    assert '{"n": "text"}' in model.requests[2].prompt


def test_the_metadata_names_the_model_that_answered():
    out = answer(BAD, GOOD)

    assert "m" == out.metadata.model_used


def test_bad_answers_count_their_tokens_for_the_run():
    repaired, never = ran(ScriptedModel({"m": [BAD, GOOD]})), ran(ScriptedModel({"m": BAD}))

    assert [(10, "succeeded"), (10, "failed")] == [(r.tokens_used, r.status) for r in (repaired, never)]


def test_a_model_that_fails_while_it_is_asked_again_has_failed():
    error = refusal(BAD, ModelError("down"))

    assert ("down", ErrorCode.MODEL_ERROR) == (error.message.split(": ")[-1], error.code)


def test_a_call_that_failed_for_good_is_no_bad_answer_and_not_asked_again():
    model = ScriptedModel({"m": ModelError("unknown model", recoverable=False)})
    result = ran(model, retry_count=3, repair_attempts=3)

    assert ("failed", "MODEL_ERROR", ["m"]) == (result.status, code(result), model.asked)


def test_a_bad_answer_is_recoverable_so_the_step_is_tried_again_with_all_its_repairs():
    model = ScriptedModel({"m": [BAD, BAD, BAD, GOOD]})
    result = ran(model, retry_count=1)

    assert ("succeeded", 4, 20, 2) == (
        result.status,
        len(model.requests),
        result.tokens_used,
        count(result, EventKind.ATTEMPT_STARTED, "work"),
    )


def test_a_failed_step_leaves_structured_alone():
    graph = a_graph({"work": node("model", model="m", response_schema=SCHEMA)}, [("start", "work"), ("work", "end")])
    message = a_message(content="q", structured={"old": 1})
    executor = an_executor(graph, model=ScriptedModel(BAD), failure_policy="skip_failed")
    result = run_clean(executor.run(message))

    assert ("degraded", "q", {"old": 1}) == (result.status, result.content, result.structured)


# --- together with fallback models ---------------------------------------------------------------------


def asked_of(answers: dict[str, Any], **config: Any) -> tuple[str | None, list[str]]:
    """The content put out, or the code of the failure; and who was asked."""
    model = ScriptedModel(answers)
    config = {"fallback_models": ["f", "g"], **config}
    try:
        return put_out(model, **config).payload.content, model.asked
    except NodeError as error:
        return error.code.value, model.asked


def test_after_its_repairs_a_model_has_failed_and_the_next_is_asked():
    assert (GOOD, ["m", "m", "f"]) == asked_of({"m": BAD, "f": GOOD})
    assert (GOOD, ["m", "f"]) == asked_of({"m": BAD, "f": GOOD}, repair_attempts=0)


def test_each_model_has_its_own_repairs():
    assert (GOOD, ["m", "m", "m", "f", "f"]) == asked_of({"m": BAD, "f": [BAD, GOOD]}, repair_attempts=2)


def test_a_model_that_fails_is_not_repaired_but_left():
    assert (GOOD, ["m", "f", "f"]) == asked_of({"m": ModelError("down"), "f": [BAD, GOOD]})
    assert (GOOD, ["m", "m", "f"]) == asked_of({"m": [BAD, ModelError("down")], "f": GOOD})


def test_if_all_fail_the_error_is_that_of_the_last():
    assert ("MODEL_ERROR", ["m", "m", "f", "f", "g", "g"]) == asked_of({"m": BAD, "f": BAD, "g": BAD})


def test_without_enable_fallback_the_others_are_not_asked():
    assert ("MODEL_ERROR", ["m", "m"]) == asked_of({"m": BAD}, enable_fallback=False)


def test_a_fallback_model_is_shown_the_question_and_nobody_else_s_mistakes():
    model = ScriptedModel({"m": '{"n": "wrong"}', "f": GOOD})
    put_out(model, fallback_models=["f"])

    assert (model.requests[0].prompt, "f") == (model.requests[2].prompt, model.requests[2].model)


def test_the_one_that_answered_is_named_and_its_tokens_are_the_message_s():
    out = put_out(ScriptedModel({"m": BAD, "f": GOOD}), fallback_models=["f"])

    assert "f" == out.metadata.model_used


@pytest.mark.parametrize(
    ("answers", "content", "took"),
    [
        ({"m": [(30, BAD), (30, GOOD)], "f": "unasked"}, GOOD, 60.0),
        ({"m": [(49, BAD), (50, GOOD)], "f": GOOD}, GOOD, 99.0),
        ({"m": [(50, BAD)], "f": [(49, GOOD)]}, GOOD, 99.0),
    ],
    ids=["in time", "repair late", "first late"],
)
def test_each_call_a_repair_too_has_the_fallback_timeout(answers, content, took):
    result = ran(ScriptedModel(answers), fallback_models=["f"], fallback_timeout_ms=50)

    assert ("succeeded", content, took) == (result.status, result.content, result.total_latency_ms)


def test_the_last_model_s_late_repair_is_a_timeout():
    result = ran(ScriptedModel({"m": ModelError("down"), "f": [BAD, (50, GOOD)]}), fallback_models=["f"],
                 fallback_timeout_ms=50)  # fmt: skip

    assert ("TIMEOUT", 50.0, 5) == (code(result), result.total_latency_ms, result.tokens_used)


def test_the_last_model_s_bad_answer_is_a_model_error_whatever_came_before():
    result = ran(ScriptedModel({"m": (99, GOOD), "f": BAD}), fallback_models=["f"], fallback_timeout_ms=50)

    assert ("MODEL_ERROR", 10) == (code(result), result.tokens_used)


def test_the_attempt_s_own_limit_bounds_all_of_them_together():
    result = ran(ScriptedModel({"m": (40, BAD), "f": (40, GOOD)}), fallback_models=["f"], timeout_ms=100)

    assert ("TIMEOUT", "work", 100.0, 10) == (
        code(result),
        result.error.node_id,
        result.total_latency_ms,
        result.tokens_used,
    )


# --- a property ----------------------------------------------------------------------------------------

KINDS = {"good": GOOD, "bad": BAD, "down": ModelError("down")}


@given(
    st.lists(st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=4), min_size=1, max_size=3),
    st.integers(0, 3),
)
def test_who_is_asked_is_as_a_plain_model_says(drawn, repairs):
    names = ["m", "f", "g"][: len(drawn)]
    asked: list[str] = []
    good_calls = 0
    succeeded = False
    for name, kinds in zip(names, drawn, strict=True):
        for call in range(repairs + 1):
            kind = kinds[min(call, len(kinds) - 1)]
            asked.append(name)
            good_calls += kind != "down"
            if kind != "bad":
                succeeded = kind == "good"
                break
        if succeeded:
            break
    model = ScriptedModel({name: [KINDS[kind] for kind in kinds] for name, kinds in zip(names, drawn, strict=True)})
    result = ran(model, fallback_models=names[1:], repair_attempts=repairs)

    assert (asked, succeeded, 5 * good_calls) == (model.asked, result.status == "succeeded", result.tokens_used)
    assert ({"n": 1} if succeeded else None) == (result.structured or None)
