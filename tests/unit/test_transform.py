"""The transform: text to text, step by step, and the one way in which it fails."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.runs import a_graph, a_line, a_message, an_executor, code, count, go, node, run_clean, visited
from tinyllm.config import NodeDefinition
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.executor import Executor
from tinyllm.message import Message, TaskPayload
from tinyllm.nodes import make_node
from tinyllm.trace import EventKind

pytestmark = pytest.mark.unit

TEXT_MAX = 1_000_000


def step(kind: str, **params: Any) -> dict[str, Any]:
    return {"type": kind, "params": params}


def put_out(message: Message, *steps: dict[str, Any], stop: bool = True, **context: Any) -> Message:
    """What a transform of these steps makes of `message`."""
    config = {"transforms": list(steps), "stop_on_error": stop}
    single = make_node(NodeDefinition.model_validate({"id": "n", "type": "transform", "config": config}))
    return run_clean(single.execute(message, ExecutionContext(**context))).output_messages[-1]


def made(text: str, *steps: dict[str, Any], stop: bool = True, **context: Any) -> str:
    content = put_out(a_message(content=text), *steps, stop=stop, **context).payload.content
    assert content is not None
    return content


def refusal(text: str, *steps: dict[str, Any], **context: Any) -> ErrorCode:
    """The code with which it fails, which must not be recoverable."""
    with pytest.raises(NodeError) as caught:
        made(text, *steps, **context)
    assert not caught.value.recoverable
    return caught.value.code


# --- the steps -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "what", "expected"),
    [
        ("aßé", step("uppercase"), "ASSÉ"),
        ("AÉ", step("lowercase"), "aé"),
        (" \n a b\t", step("strip"), "a b"),
        (" a ", {}, "a"),
        ("abcdefgh", step("truncate", max_length=5), "ab..."),
        ("abcde", step("truncate", max_length=5), "abcde"),
        ("abcdef", step("truncate", max_length=5, suffix=""), "abcde"),
        ("abcdef", step("truncate", max_length=5, suffix="é"), "abcdé"),
        ("abcdef", step("truncate", max_length=3), "..."),
        ("abcdef", step("truncate", max_length=2), ".."),
        ("abcdef", step("truncate", max_length=2, suffix="xyz"), "xy"),
        ("abcdef", step("truncate", max_length=0), ""),
        ("", step("truncate", max_length=0), ""),
        (' {"a":  1} ', step("json_parse"), ' {"a":  1} '),
        ("null", step("json_parse"), "null"),
        ('{"b":[1,"é"],"a":{}}', step("json_stringify"), '{\n  "b": [\n    1,\n    "é"\n  ],\n  "a": {}\n}'),
        ('say "hé"\n', step("json_stringify"), '"say \\"hé\\"\\n"'),
        ("NaN", step("json_stringify"), '"NaN"'),
        ("", step("json_stringify"), '""'),
        ("x", step("json_wrap"), '{"content": "x"}'),
        ('é"', step("json_wrap", key="ü"), '{"ü": "é\\""}'),
        ("a1b22", step("regex_extract", pattern=r"\d+"), "1"),
        ("a1b22", step("regex_extract", pattern=r"([a-z])(\d\d)", group=2), "22"),
        ("a1b22", step("regex_extract", pattern=r"b(?P<num>\d)", group="num"), "2"),
        ("abc", step("regex_extract", pattern="x*"), ""),
        ("aXbX", step("regex_replace", pattern="X", replacement="-"), "a-b-"),
        ("no match", step("regex_replace", pattern="X", replacement="-"), "no match"),
        ("k=v", step("regex_replace", pattern=r"(\w)=(?P<r>\w)", replacement=r"\g<r>=\1"), "v=k"),
        ("ab", step("regex_replace", pattern="(a)|(b)", replacement=r"[\1\2]"), "[a][b]"),
        ("ab", step("regex_replace", pattern="(a)|b", replacement=r"<\1>"), "<a><>"),
        ("ab", step("regex_replace", pattern="b", replacement="{content}$1&"), "a{content}$1&"),
        ("abc", step("regex_replace", pattern="$", replacement="!"), "abc!"),
        ("ab", step("regex_replace", pattern=r"\b", replacement="!"), "!ab!"),
        ("a\nb\nc", step("regex_replace", pattern="(?m)^", replacement="> "), "> a\n> b\n> c"),
        ("baac", step("regex_replace", pattern="a*", replacement="-"), "-b--c-"),
        ("a,b,,c", step("split", separator=","), '["a", "b", "", "c"]'),
        ("a, é", step("split", separator=", "), '["a", "é"]'),
        ("a,b,c", step("split", separator=",", index=0), "a"),
        ("a,b,c", step("split", separator=",", index=-1), "c"),
        ("a,b,c", step("split", separator=",", index=-3), "a"),
        ("abc", step("split", separator=","), '["abc"]'),
        ("", step("split", separator=",", index=0), ""),
        ('["a", 1, true, null, {"k": [1, "é"]}]', step("join", separator="|"), 'a|1|true|null|{"k": [1, "é"]}'),
        ("[]", step("join", separator="|"), ""),
        ('["a"]', step("join", separator="|"), "a"),
        ('["a", "b"]', step("join", separator=""), "ab"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_each_step_makes_of_its_text_what_the_page_says(text, what, expected):
    assert expected == made(text, what)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("text", "plain"),
        ("number", "1.5"),
        ("yes", "true"),
        ("list", '[1, "é", {"k": null}]'),
        ("list.0", "1"),
        ("list.1", "é"),
        ("object", '{"b": 1, "a": [2]}'),
        ("object.a.0", "2"),
        ("7", "a key of digits"),
        ("empty", ""),
        ("zero", "0"),
    ],
)
def test_a_json_path_goes_through_keys_and_indexes(path, expected):
    value = {
        "text": "plain",
        "number": 1.5,
        "yes": True,
        "list": [1, "é", {"k": None}],
        "object": {"b": 1, "a": [2]},
        "7": "a key of digits",
        "empty": "",
        "zero": 0,
    }

    assert expected == made(json.dumps(value), step("json_extract", path=path))


@pytest.mark.parametrize(
    "path", ["missing", "list.3", "list.-1", "list.k", "list.2.k", "text.0", "text.k", "null", "null.k", "object.0"]
)
def test_a_json_path_to_nothing_or_null_fails(path):
    text = '{"text": "t", "list": [1, "b", {"k": null}], "null": null, "object": {"a": 1}}'

    assert ErrorCode.VALIDATION_ERROR == refusal(text, step("json_extract", path=path))


NO_JSON = [
    "",
    "plain",
    "[1,]",
    "{'a': 1}",
    "NaN",
    "-Infinity",
    "[1, 1e999]",
    '"\\ud800"',
    '{"\\ud800": 1}',
    "[" * 65 + "]" * 65,
    str(2**4096),
    "9" * 5_000,
    "[" * 100_000,
]


@pytest.mark.parametrize("text", NO_JSON, ids=lambda text: text[:12])
def test_what_no_message_could_carry_is_no_json(text):
    assert ErrorCode.VALIDATION_ERROR == refusal(text, step("json_parse"))
    assert ErrorCode.VALIDATION_ERROR == refusal(text, step("json_extract", path="a"))
    assert ErrorCode.VALIDATION_ERROR == refusal(text, step("join", separator=","))
    assert json.dumps(text, ensure_ascii=False) == made(text, step("json_stringify"))


@pytest.mark.parametrize("text", ["[" * 64 + "]" * 64, str(2**4096 - 1), '"\\ud83d\\ude00"', "-0.0", " 1\n"])
def test_what_a_message_can_just_carry_is_json(text):
    assert text == made(text, step("json_parse"))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("abc", step("regex_extract", pattern="x")),
        ("b", step("regex_extract", pattern="(a)|b", group=1)),
        ("a,b", step("split", separator=",", index=2)),
        ("a,b", step("split", separator=",", index=-3)),
        ('{"a": 1}', step("join", separator=",")),
        ('"text"', step("join", separator=",")),
        ("x", step("template", template="{missing}")),
        ("x", step("template", template="{route}")),
        ("x", step("template", template="{content.key}")),
    ],
)
def test_a_step_that_finds_nothing_is_a_validation_error(text, what):
    assert ErrorCode.VALIDATION_ERROR == refusal(text, what)


def test_a_template_knows_the_text_so_far_as_content_and_the_rest_of_the_message():
    message = a_message(content="c", task="t", structured={"k": [1]}, metadata={"m": 2}, mine="x")
    what = step("template", template="{content} {task} {structured.k} {metadata.m} {mine} {variables.v} {{content}}")

    out = put_out(message, step("uppercase"), what, variables={"v": "var"})

    assert "C t [1] 2 x var {content}" == out.payload.content


def test_what_a_template_puts_in_is_never_filled_again():
    assert "<{task}>" == made("{task}", step("template", template="<{content}>"))


@pytest.mark.parametrize("replacement", ["\\", "C:\\path", "\\n", "\\x41", "\\d"])
def test_nothing_but_a_group_is_special_in_a_replacement(replacement):
    assert f"{replacement}b" == made("ab", step("regex_replace", pattern="a", replacement=replacement))


# --- together ------------------------------------------------------------------------------------------


def test_steps_are_applied_in_order():
    steps = [step("split", separator=";", index=1), step("strip"), step("json_wrap", key="k"), step("uppercase")]

    assert '{"K": "B"}' == made("a; b ;c", *steps)


def test_without_steps_the_content_stays():
    assert " as it is " == made(" as it is ")


def test_the_content_is_taken_and_without_one_the_task():
    assert "T" == put_out(a_message(task="t"), step("uppercase")).payload.content
    assert "C" == put_out(a_message(task="t", content="c"), step("uppercase")).payload.content
    assert "" == put_out(a_message(task="t", content=""), step("uppercase")).payload.content


@pytest.mark.parametrize("stop", [True, False])
@pytest.mark.parametrize("steps", [(), (step("strip"),)])
def test_with_neither_content_nor_task_it_fails(steps, stop):
    with pytest.raises(NodeError) as caught:
        put_out(a_message(structured={"k": 1}), *steps, stop=stop)

    assert ErrorCode.VALIDATION_ERROR == caught.value.code


def test_a_failing_step_is_left_out_if_it_may_be():
    steps = [step("uppercase"), step("json_parse"), step("split", separator="-", index=9), step("json_wrap", key="k")]

    assert ErrorCode.VALIDATION_ERROR == refusal("a-b", *steps)
    assert '{"k": "A-B"}' == made("a-b", *steps, stop=False)


def test_all_but_content_and_error_is_passed_on():
    message = a_message(content="c", task="t", structured={"k": 1}, route="r", metadata={"m": 1}, mine=[1])
    payload = put_out(message, step("uppercase")).payload

    assert {**message.payload.fields(), "content": "C"} == payload.fields()


def test_a_failure_ends_the_run_with_its_node_and_is_not_retried():
    failing = node("transform", transforms=[step("json_parse")], retry_count=3)
    result = go(an_executor(a_line(failing)), "no json")

    assert ("failed", "VALIDATION_ERROR", "work") == (result.status, code(result), result.error.node_id)
    assert 1 == count(result, EventKind.ATTEMPT_STARTED, "work")


def test_an_error_way_sees_the_text_as_it_was_received():
    nodes = {"work": node("transform", on_error="other", transforms=[step("uppercase"), step("json_parse")])}
    nodes["other"] = node("transform", transforms=[step("template", template="{content}: {error.code}")])
    graph = a_graph(nodes, [("start", "work"), ("work", "end"), ("other", "end")])
    result = go(an_executor(graph), "q")

    assert (["start", "work", "other", "end"], "q: VALIDATION_ERROR") == (visited(result), result.content)
    assert result.message.payload.error is None


def test_a_transform_needs_no_model():
    graph = a_line(node("transform", transforms=[step("uppercase")]))

    assert "Q" == run_clean(Executor(graph).execute(TaskPayload(content="q"))).content


# --- the bound -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("characters", "what"),
    [
        (TEXT_MAX // 2, step("template", template="{content}{content}")),
        (TEXT_MAX - 15, step("json_wrap")),
        (TEXT_MAX - 2, step("json_stringify")),
        (TEXT_MAX - 4, step("split", separator=",")),
    ],
    ids=lambda value: value["type"] if isinstance(value, dict) else "",
)
def test_a_text_of_exactly_the_bound_is_made_and_one_more_character_fails(characters, what):
    assert TEXT_MAX == len(made("x" * characters, what))
    assert ErrorCode.VALIDATION_ERROR == refusal("x" * (characters + 1), what)


def test_a_replacement_may_reach_the_bound_and_no_more():
    grown = step("regex_replace", pattern="x{500}", replacement="y" * 10_000)

    assert TEXT_MAX == len(made("x" * 50_000, grown))
    assert ErrorCode.VALIDATION_ERROR == refusal("x" * 50_001, grown)


def test_patterns_search_texts_of_bounded_length_and_replace_a_bounded_number_of_matches():
    taken = step("regex_replace", pattern="x", replacement="y")

    assert "y" * 10_000 == made("x" * 10_000, taken)
    assert ErrorCode.VALIDATION_ERROR == refusal("x" * 10_001, taken)
    assert "a" * 100_000 == made("a" * 100_000, taken)
    assert ErrorCode.VALIDATION_ERROR == refusal("a" * 100_001, taken)
    assert ErrorCode.VALIDATION_ERROR == refusal("x" * 100_001, step("regex_extract", pattern="x"))


def test_join_is_bounded_too():
    items = json.dumps([""] * 100_001, separators=(",", ":"))

    assert TEXT_MAX == len(made(items, step("join", separator="-" * 10)))
    assert ErrorCode.VALIDATION_ERROR == refusal(items, step("join", separator="-" * 11))


def test_a_text_that_was_longer_before_may_stay_so_but_not_grow():
    text = "X" * (TEXT_MAX + 5)

    assert text.lower() == made(text, step("lowercase"))
    assert TEXT_MAX + 4 == len(made(text, step("truncate", max_length=TEXT_MAX + 4)))
    assert ErrorCode.VALIDATION_ERROR == refusal(text, step("json_wrap"))


def test_upper_case_can_be_longer_and_is_bounded():
    assert ErrorCode.VALIDATION_ERROR == refusal("ß" * 500_001, step("uppercase"))


def test_doubling_without_end_fails_in_time():
    double = step("template", template="{content}{content}")

    assert ErrorCode.VALIDATION_ERROR == refusal("x" * 10, *[double] * 60)
    assert 10 * 2**16 == len(made("x" * 10, *[double] * 60, stop=False))


def test_a_replacement_that_names_a_long_group_often_fails_in_time():
    what = step("regex_replace", pattern="(.+)", replacement=r"\1" * 2_000)

    assert ErrorCode.VALIDATION_ERROR == refusal("x" * 500_000, what)


def test_an_evil_pattern_cannot_hang():
    assert ErrorCode.VALIDATION_ERROR == refusal("a" * 50_000, step("regex_extract", pattern="^(a+)+$b"))


# --- properties ----------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
json_values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4), max_leaves=12
)


@given(texts, st.integers(0, 50), st.text("ab.", max_size=8))
def test_truncate_never_exceeds_its_length_and_keeps_the_beginning(text, length, suffix):
    short = made(text, step("truncate", max_length=length, suffix=suffix))

    assert len(short) <= length
    if len(text) <= length:
        assert text == short
    else:
        assert length == len(short)
        assert (text[: max(0, length - len(suffix))] + suffix)[:length] == short


@given(texts, st.text("a,b é", min_size=1, max_size=3))
def test_split_then_join_is_the_text(text, separator):
    assert text == made(text, step("split", separator=separator), step("join", separator=separator))


@given(st.text("a,b", max_size=12), st.integers(-9, 9))
def test_the_part_at_an_index_is_that_of_the_list(text, index):
    parts = text.split(",")
    what = step("split", separator=",", index=index)
    if -len(parts) <= index < len(parts):
        assert parts[index] == made(text, what)
    else:
        assert ErrorCode.VALIDATION_ERROR == refusal(text, what)


@given(json_values)
def test_stringify_keeps_the_value_and_parse_keeps_the_text(value):
    text = json.dumps(value)

    assert text == made(text, step("json_parse"))
    assert json.dumps(value, indent=2, ensure_ascii=False) == made(text, step("json_stringify"))


@given(texts)
def test_wrapping_then_extracting_is_the_text(text):
    assert text == made(text, step("json_wrap", key="k"), step("json_extract", path="k"))


@given(st.dictionaries(st.text("abc1", min_size=1, max_size=3), json_values, min_size=1), st.data())
def test_a_path_leads_where_its_keys_lead(value, data):
    key = data.draw(st.sampled_from(sorted(value)))
    found, path = value[key], key
    if isinstance(found, list) and found:
        index = data.draw(st.integers(0, len(found) - 1))
        found, path = found[index], f"{key}.{index}"
    what = step("json_extract", path=path)
    if found is None:
        assert ErrorCode.VALIDATION_ERROR == refusal(json.dumps(value), what)
    else:
        expected = found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
        assert expected == made(json.dumps(value), what)


@given(st.lists(json_values, max_size=5), st.text(", |", max_size=2))
def test_join_shows_every_item_as_text_or_json(items, separator):
    shown = [item if isinstance(item, str) else json.dumps(item, ensure_ascii=False) for item in items]

    assert separator.join(shown) == made(json.dumps(items), step("join", separator=separator))


#: Patterns that mean the same to RE2 and to Python, and never match nothing.
PATTERNS = ["a", "a+", "(a)|b", "[ab]{2}", "(a)?b", "(?P<n>a|b)(c)?", "(?i)A", r"\.", "a|ab", "(a+)(b*)"]


@given(st.text("abcA.\n", max_size=20), st.sampled_from(PATTERNS), st.sampled_from(["", "-", r"<\1>", "x\\1y"]))
def test_every_match_is_replaced_as_python_would(text, pattern, replacement):
    if "(" not in pattern.replace("(?i)", ""):
        replacement = replacement.replace("\\1", "")

    assert re.sub(pattern, replacement, text) == made(
        text, step("regex_replace", pattern=pattern, replacement=replacement)
    )


@given(st.text("abcA.\n", max_size=20), st.sampled_from(PATTERNS))
def test_the_first_match_is_extracted_as_python_would(text, pattern):
    found = re.search(pattern, text)
    what = step("regex_extract", pattern=pattern)
    if found is None:
        assert ErrorCode.VALIDATION_ERROR == refusal(text, what)
    else:
        assert found[0] == made(text, what)


any_step = st.sampled_from(
    [
        {},
        step("uppercase"),
        step("lowercase"),
        step("truncate", max_length=7),
        step("json_parse"),
        step("json_stringify"),
        step("json_extract", path="content"),
        step("json_extract", path="0"),
        step("json_wrap"),
        step("regex_extract", pattern="(a)|(b)", group=2),
        step("regex_replace", pattern="", replacement="\\"),
        step("regex_replace", pattern="(a*)", replacement=r"\1\1"),
        step("template", template="{content}" * 12),
        step("template", template="{missing}"),
        step("split", separator='"'),
        step("split", separator="a", index=1),
        step("join", separator="\n"),
    ]
)


@settings(max_examples=60)
@given(texts, st.lists(any_step, max_size=8), st.booleans())
def test_whatever_the_steps_it_makes_a_bounded_text_or_fails_with_validation_error(text, steps, stop):
    try:
        content = made(text, *steps, stop=stop)
    except NodeError as error:
        content, ended_with = "", (error.code, stop)
    else:
        ended_with = (ErrorCode.VALIDATION_ERROR, True)

    assert (ErrorCode.VALIDATION_ERROR, True) == ended_with
    assert len(content) <= TEXT_MAX


@given(texts, st.lists(any_step, max_size=6))
def test_leaving_out_what_fails_is_the_same_as_applying_each_that_does_not(text, steps):
    expected = text
    for what in steps:
        try:
            expected = made(expected, what)
        except NodeError:
            continue

    assert expected == made(text, *steps, stop=False)
