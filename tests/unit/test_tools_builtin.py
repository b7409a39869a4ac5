"""The built-in tools: what they give, and that no input makes them do anything but give it or raise a NodeError."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.runs import run_clean
from tinyllm.errors import ErrorCode, NodeError
from tinyllm.tools import default_tools
from tinyllm.tools.calculator import calculate
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit

TOOLS = default_tools()


def use(tool_id: str, **arguments: Any) -> Any:
    return run_clean(TOOLS.get(tool_id).call(arguments))


def refused(tool_id: str, **arguments: Any) -> str:
    """The message of the refusal, which would be the same the next time."""
    with pytest.raises(NodeError) as caught:
        use(tool_id, **arguments)
    assert (ErrorCode.TOOL_ERROR, False) == (caught.value.code, caught.value.recoverable)
    assert len(caught.value.message) <= 2000
    return caught.value.message


def test_the_built_in_tools_are_these():
    assert [
        "calculator",
        *("text_regex_match", "text_regex_replace", "text_split", "text_join"),
        *("text_clean", "text_case", "text_extract", "text_truncate"),
        *("json_parse", "json_query", "json_validate", "json_transform", "json_merge", "json_flatten"),
    ] == list(TOOLS.ids)


def test_each_takes_its_main_text_as_input_and_has_a_description():
    for tool in TOOLS:
        assert "input" in tool.aliases
        assert tool.aliases["input"] in tool.input_schema["properties"]
        assert tool.description.endswith(".")


# --- calculator -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("1 + 2 * 3", 7),
        ("(1 + 2) * 3", 9),
        ("7 // 2", 3),
        ("-7 % 3", 2),
        ("7 / 2", 3.5),
        ("2 ** 10", 1024),
        ("2 ** -1", 0.5),
        ("0 ** 5", 0),
        ("1 ** 10**9", 1),
        ("(-1) ** (10**9 + 1)", -1),
        ("--5", 5),
        (" +5 ", 5),
        ("1_000", 1000),
        ("0x10", 16),
        ("2 ** 4095", 2**4095),
        ("2**4095 + 2**4095 - 1", None),
        ("sqrt(16)", 4.0),
        ("log(8, 2)", 3.0),
        ("round(2.567, 2)", 2.57),
        ("round(1234, -2)", 1200),
        ("floor(2.9) + ceil(2.1)", 5),
        ("min(3, 1, 2)", 1),
        ("max([3, 1, 2])", 3),
        ("sum((1, 2, 3))", 6),
        ("sum()", 0),
        ("factorial(5)", 120),
        ("gcd(12, 18)", 6),
        ("pow(2, 8)", 256),
        ("hypot(3, 4)", 5.0),
        ("degrees(pi)", 180.0),
        ("tau - 2 * pi", 0.0),
        ("abs(-3)", 3),
        ("e", math.e),
        ("+".join(["1"] * 400), 400),
    ],
)
def test_the_calculator_calculates_as_python_does(expression, value):
    if value is None:
        assert "4096 bits" in refused("calculator", expression=expression)
    else:
        result = use("calculator", input=expression)
        assert (value, type(value)) == (result, type(result))


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("9**9**9", "4096 bits"),
        ("10**10**10", "4096 bits"),
        ("pow(2, 10**9)", "4096 bits"),
        ("2**4096", "4096 bits"),
        ("(-2)**4096", "4096 bits"),
        ("2**4095*2", "4096 bits"),
        ("sum(2**4095, 2**4095)", "4096 bits"),
        ("factorial(1000)", "4096 bits"),
        ("factorial(10**6)", "factorial"),
        ("factorial(1001)", "factorial"),
        ("factorial(-1)", "factorial"),
        ("factorial(2.0)", "factorial"),
        ("2**-(10**9)", "close to zero"),
        ("1<<10**9", "not allowed (column 1)"),
        ("1 + foo", "the name foo"),
        ("  1 + foo", "column 7"),
        ("(1 +\n foo)", "line 2, column 2"),
        ("'é' + 1", "column 1"),
        ("é2 + x", "é2"),
        ("round(1, 10**9)", "digits"),
        ("round(1, 2.0)", "digits"),
        ("(" * 300 + "1" + ")" * 300, "parse"),
        ("(" * 100 + "1" + "+1)" * 100, "1"),
        ("-" * 40 + "1", "32 levels"),
        ("2**" * 40 + "1", "32 levels"),
        ("1" * 1001, "1001 characters"),
        ("", "empty"),
        (" \n", "empty"),
        ("1 +", "parse"),
        ("1\x00", "parse"),
        ("1; 2", "parse"),
        ("1e999", "not finite"),
        ("1e308 * 10", "not finite"),
        ("-1e308 * 10", "not finite"),
        ("1e308 * 10 - 1e308 * 10", "not finite"),
        ("10**400 * 1.0", "cannot calculate"),
        ("sqrt(10**1000)", "cannot calculate"),
        ("exp(1000)", "cannot calculate"),
        ("1 / 0", "division by zero"),
        ("1 % 0", "cannot calculate"),
        ("0 ** -1", "cannot calculate"),
        ("sqrt(-1)", "cannot calculate"),
        ("log(0)", "cannot calculate"),
        ("min()", "cannot calculate"),
        ("min([])", "cannot calculate"),
        ("gcd(1.5, 2)", "cannot calculate"),
        ("(-8) ** 0.5", "real number"),
        ("1j", "1j"),
        ("True", "True"),
        ("None", "None"),
        ("'a'", "'a'"),
        ("...", "..."),
        ("[1]", "[1]"),
        ("sqrt", "sqrt"),
        ("sqr(4)", "did you mean sqrt?"),
        ("sqrt()", "0 arguments"),
        ("sqrt(1, 2)", "2 arguments"),
        ("sqrt(*[1])", "not allowed"),
        ("round(1.5, ndigits=1)", "not allowed"),
        ("2 ^ 3", "write **"),
        ("1 < 2", "not allowed"),
        ("1 is 1", "not allowed"),
        ("1 if 1 else 2", "not allowed"),
        ("(lambda: 1)()", "not allowed"),
        ("__import__('os').system('x')", "not allowed"),
        ("(1).real", "not allowed"),
        ("nan", "nan"),
        ("inf", "inf"),
        ("(x := 5)", "not allowed"),
        ("1 @ 2", "not allowed"),
        ("~1", "not allowed"),
    ],
)
def test_the_calculator_refuses_with_a_reason(expression, words):
    if expression.startswith("((") and "+1)" in expression:
        assert 101 == use("calculator", expression=expression)  # deep to a parser, a sum to a reader
    else:
        assert words in refused("calculator", expression=expression)


PIECES = [
    "9",
    "**",
    "*",
    "//",
    "%",
    "-",
    "+",
    "(",
    ")",
    ",",
    "factorial",
    "pow",
    "sum",
    "[",
    "]",
    "1e308",
    ".",
    "e",
    " ",
]


@given(st.lists(st.sampled_from(PIECES), max_size=60).map("".join) | st.text(max_size=40))
def test_any_text_is_a_finite_number_or_a_refusal(text):
    try:
        value = calculate(text)
    except NodeError as error:
        refusal = (error.code, error.recoverable)
    else:
        refusal = (ErrorCode.TOOL_ERROR, False)
        assert type(value) in (int, float)
        assert math.isfinite(value)
        assert not isinstance(value, int) or value.bit_length() <= 4096
    assert (ErrorCode.TOOL_ERROR, False) == refusal


numbers = st.integers(-50, 50).map(str) | st.floats(-50, 50).map(lambda x: f"{x:.3f}")
expressions = st.recursive(
    numbers,
    lambda inner: (
        st.builds("({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner)
        | st.builds("{}({})".format, st.sampled_from(["-", "abs", "round", "-abs"]), inner)
        | st.builds("max({}, {})".format, inner, inner)
    ),
    max_leaves=12,
)


@given(expressions)
def test_the_calculator_agrees_with_python(expression):
    try:
        expected = eval(expression, {"abs": abs, "round": round, "max": max})
    except ZeroDivisionError:
        assert "zero" in refused("calculator", expression=expression) or "modulo" in refused(
            "calculator", expression=expression
        )
        return
    result = calculate(expression)
    assert (expected, type(expected)) == (result, type(result))


# --- text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tool_id", "arguments", "output"),
    [
        ("text_split", {"input": " a b  c "}, ["a", "b", "c"]),
        ("text_split", {"text": "a,,b", "separator": ","}, ["a", "b"]),
        ("text_split", {"text": "a,,b", "separator": ",", "keep_empty": True}, ["a", "", "b"]),
        ("text_split", {"text": "a,b,c", "separator": ",", "max_splits": 1}, ["a", "b,c"]),
        ("text_split", {"text": "a1b22c", "separator": "[0-9]+", "regex": True}, ["a", "b", "c"]),
        ("text_split", {"text": "a1b2c", "separator": "[0-9]", "regex": True, "max_splits": 1}, ["a", "b2c"]),
        ("text_split", {"text": "abc", "separator": "x*", "regex": True}, ["abc"]),
        ("text_join", {"parts": ["a", "b"], "separator": "-", "prefix": "<", "suffix": ">"}, "<a-b>"),
        ("text_join", {"input": '["a", "b"]'}, "ab"),
        ("text_join", {"parts": []}, ""),
        ("text_clean", {"input": " a \n b "}, "a b"),
        ("text_clean", {"text": "<b>A</b>1!_", "operations": ["html", "digits", "punctuation", "lowercase"]}, "a_"),
        ("text_clean", {"text": "e\u0301é", "operations": ["unicode"]}, "éé"),
        ("text_clean", {"text": "aé", "operations": ["non_ascii"]}, "a"),
        ("text_clean", {"text": " a ", "operations": []}, " a "),
        ("text_case", {"input": "someThing else-now", "operation": "snake"}, "some_thing_else_now"),
        ("text_case", {"text": "some_thing else", "operation": "camel"}, "someThingElse"),
        ("text_case", {"text": "", "operation": "camel"}, ""),
        ("text_case", {"text": "Some Thing", "operation": "kebab"}, "some-thing"),
        ("text_case", {"text": "aB c", "operation": "upper"}, "AB C"),
        ("text_case", {"text": "aB c", "operation": "lower"}, "ab c"),
        ("text_case", {"text": "aB c", "operation": "swap"}, "Ab C"),
        ("text_case", {"text": "aB c", "operation": "title"}, "Ab C"),
        ("text_case", {"text": "aB c", "operation": "capitalize"}, "Ab c"),
        (
            "text_extract",
            {"input": "a@b.co, c.d+e@f.example.org!", "extract_type": "emails"},
            ["a@b.co", "c.d+e@f.example.org"],
        ),
        (
            "text_extract",
            {"text": "see https://a.b/c?d=1 or www.x.org", "extract_type": "urls"},
            ["https://a.b/c?d=1", "www.x.org"],
        ),
        ("text_extract", {"text": "call +49 30 1234567 now", "extract_type": "phones"}, ["+49 30 1234567"]),
        ("text_extract", {"text": "1, -2.5 and 3.", "extract_type": "numbers"}, ["1", "-2.5", "3"]),
        ("text_extract", {"text": "2024-01-02 or 3/4/2024", "extract_type": "dates"}, ["2024-01-02", "3/4/2024"]),
        ("text_extract", {"text": "10.0.0.1 and 999.1.1.1", "extract_type": "ips"}, ["10.0.0.1"]),
        ("text_extract", {"text": "#Zoë #b @c", "extract_type": "hashtags"}, ["#Zoë", "#b"]),
        ("text_extract", {"text": "#Zoë #b @c", "extract_type": "mentions"}, ["@c"]),
        ("text_extract", {"text": "Zoë's a a", "extract_type": "words"}, ["Zoë", "s", "a", "a"]),
        ("text_extract", {"text": "a a b c", "extract_type": "words", "unique": True, "limit": 2}, ["a", "b"]),
        (
            "text_extract",
            {"text": "One. Two!  3.5 is three? ", "extract_type": "sentences"},
            ["One.", "Two!", "3.5 is three?"],
        ),
        ("text_extract", {"text": "a\n\n b\r\nc", "extract_type": "lines"}, ["a", " b", "c"]),
        ("text_truncate", {"input": "abcdefgh", "max_length": 5}, "ab..."),
        ("text_truncate", {"text": "abcde", "max_length": 5}, "abcde"),
        ("text_truncate", {"text": "abcdefgh", "max_length": 5, "position": "start"}, "...gh"),
        ("text_truncate", {"text": "abcdefgh", "max_length": 6, "position": "middle"}, "a...gh"),
        ("text_truncate", {"text": "abcdefgh", "max_length": 2}, ".."),
        ("text_truncate", {"text": "abcdefgh", "max_length": 3, "ellipsis": ""}, "abc"),
        ("text_truncate", {"text": "one two three", "max_length": 12, "word_boundary": True}, "one two..."),
        ("text_regex_replace", {"input": "a1b2", "pattern": "([0-9])", "replacement": r"<\1>"}, "a<1>b<2>"),
        (
            "text_regex_replace",
            {"text": "a1b2", "pattern": "(?P<n>[0-9])", "replacement": r"\g<n>\g<n>", "count": 1},
            "a11b2",
        ),
        ("text_regex_replace", {"text": "é1é", "pattern": "É", "replacement": "x", "flags": ["I"]}, "x1x"),
        ("text_regex_replace", {"text": "abc", "pattern": "z", "replacement": "x"}, "abc"),
        ("text_regex_match", {"input": "abc", "pattern": "z"}, []),
    ],
)
def test_a_text_tool_gives(tool_id, arguments, output):
    assert output == use(tool_id, **arguments)


def test_matches_have_places_in_characters_and_groups():
    first = {"match": "1", "start": 2, "end": 3, "groups": ["1", None], "group_dict": {"n": "1"}}
    second = {"match": "2", "start": 3, "end": 4, "groups": [], "group_dict": {}}
    pattern = r"(?P<n>\d)(x)?"

    assert [first] == use("text_regex_match", text="aé12", pattern=pattern, find_all=False)
    assert second == use("text_regex_match", text="aé12", pattern=pattern, include_groups=False)[1]


@pytest.mark.parametrize(
    ("tool_id", "arguments", "words"),
    [
        ("text_regex_match", {"text": "a", "pattern": "(a"}, "missing )"),
        ("text_regex_match", {"text": "a", "pattern": "(?=a)"}, "RE2"),
        ("text_regex_match", {"text": "a", "pattern": "a", "flags": ["x"]}, "unknown flag 'x'"),
        ("text_regex_match", {"text": "a" * 10_001, "pattern": "a"}, "10000 matches"),
        ("text_regex_match", {"text": "a" * 90_000, "pattern": "(" * 20 + "a*" + ")" * 20}, "1000000 characters"),
        ("text_regex_match", {"text": "a", "pattern": "(?:a{1000}){1000}"}, "RE2"),
        ("text_regex_replace", {"text": "a", "pattern": "a", "replacement": r"\7"}, "replacement"),
        ("text_regex_replace", {"text": "a", "pattern": "a", "replacement": r"\g<no>"}, "replacement"),
        ("text_regex_replace", {"text": "a" * 90_000, "pattern": "(.*)", "replacement": r"\1" * 400}, "too long"),
        ("text_regex_replace", {"text": "a" * 90_000, "pattern": "(.*)", "replacement": r"\1" * 50}, "1000000"),
        ("text_regex_replace", {"text": "a" * 9_000, "pattern": "a", "replacement": "x" * 1000}, "1000000"),
        ("text_split", {"text": "a" * 100_001, "separator": "b", "regex": True}, "100001"),
        ("text_split", {"text": "a", "separator": "(", "regex": True}, "RE2"),
        ("text_join", {"input": "no list"}, "JSON list"),
        ("text_join", {"input": "[1]"}, "JSON list"),
        ("text_join", {"input": "[" * 100_000}, "JSON list"),
        ("text_join", {"input": "[" + " " * 1_000_000 + "]"}, "at most"),
        ("text_join", {"parts": ["x"] * 2000, "separator": "y" * 1000}, "characters; at most"),
        ("text_case", {"text": "ß" * 600_000, "operation": "upper"}, "1200000"),
        ("text_clean", {"text": "a" + "\u0301" * 101, "operations": ["unicode"]}, "combining marks"),
        ("text_clean", {"text": "\ufb2c" * 400_000, "operations": ["unicode"]}, "1200000"),
    ],
)
def test_a_text_tool_refuses(tool_id, arguments, words):
    assert words in refused(tool_id, **arguments)


def test_texts_that_are_too_long_do_not_fit():
    for tool_id, arguments in [
        ("text_case", {"text": "a" * 1_000_001, "operation": "upper"}),
        ("text_extract", {"text": "a" * 100_001, "extract_type": "words"}),
        ("text_regex_match", {"text": "a", "pattern": "a" * 1001}),
        ("json_parse", {"data": "1" * 1_000_001}),
    ]:
        with pytest.raises(NodeError, match="longer than") as caught:
            use(tool_id, **arguments)
        assert ErrorCode.VALIDATION_ERROR is caught.value.code


def test_a_name_of_one_long_word_is_cased():
    assert "a" * 1_000_000 == use("text_case", text="A" * 1_000_000, operation="snake")


@given(
    st.text(max_size=30),
    st.integers(1, 40),
    st.sampled_from(["end", "start", "middle"]),
    st.text(max_size=5),
    st.booleans(),
)
def test_a_truncated_text_is_never_longer_than_asked(text, max_length, position, ellipsis, word_boundary):
    if any("\ud800" <= char <= "\udfff" for char in text + ellipsis):
        return
    result = use(
        "text_truncate",
        text=text,
        max_length=max_length,
        position=position,
        ellipsis=ellipsis,
        word_boundary=word_boundary,
    )
    assert len(result) <= max_length
    assert len(text) > max_length or result == text


# --- json -----------------------------------------------------------------------------------------------

BOOKS = {"books": [{"title": "A", "price": 1}, {"title": "B"}], "0": "zero", "a.b": {"c'd": 5}}


@given(json_values())
def test_parsing_gives_what_was_written(value):
    assert value == use("json_parse", input=json.dumps(value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "line 1, column 1"),
        ('{"a":\n x}', "line 2, column 2"),
        ("[1] 2", "Extra data"),
        ("NaN", "NaN"),
        ("[-Infinity]", "-Infinity"),
        ("1e999", "1e999"),
        ("9" * 5_000, "5000 digits"),
        ("9" * 1_300, "4096"),
        ("-" + "9" * 1_300, "1301 digits"),
        ('{"a": 1, "b": 2, "a": 3}', "'a' stands twice"),
        ('"\\ud800"', "surrogate"),
        ("[" * 65 + "]" * 65, "64 levels"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ("'a'", "no JSON"),
        ("[1,]", "no JSON"),
    ],
)
def test_what_is_no_json_is_refused_where_it_goes_wrong(text, words):
    assert words in refused("json_parse", data=text)
    assert use("json_parse", data=text, strict=False) is None


@pytest.mark.parametrize(
    ("path", "values"),
    [
        ("$", [BOOKS]),
        ("", [BOOKS]),
        ("$.books[0].title", ["A"]),
        ("books.0.title", ["A"]),
        ("$.books[-1].title", ["B"]),
        ("$.books[*].title", ["A", "B"]),
        ("books.*.price", [1]),
        ("$.*.*", [*BOOKS["books"], 5]),
        ("$['a.b'][\"c'd\"]", [5]),
        ("$.0", ["zero"]),
        ("$.books[2]", []),
        ("$.books[-3]", []),
        ("$.nope.title", []),
        ("$.books.title", []),
        ("$.0.x", []),
    ],
)
def test_a_query_gives_the_values_at_a_path(path, values):
    assert values == use("json_query", data=BOOKS, jsonpath=path)
    assert values == use("json_query", input=json.dumps(BOOKS), jsonpath=path)


@pytest.mark.parametrize("path", ["$..a", "$.a[?(@.x)]", "$.a[1:2]", "$.a[", "$a b[", "a.", "$.a]", "a['b'", "[0]x"])
def test_a_path_that_is_not_understood_is_refused(path):
    assert "is wrong at column" in refused("json_query", data=BOOKS, jsonpath=path)


def test_a_verdict_is_a_result():
    schema = {"properties": {"a": {"type": "integer"}}}

    assert {"valid": True, "errors": []} == use("json_validate", data={"a": 1}, schema=schema)
    verdict = use("json_validate", input='{"a": "x"}', schema=schema)
    assert {"valid": False, "errors": ['a: "x" is not of type "integer"']} == verdict
    assert "without end" in refused("json_validate", data=[], schema={"$ref": "#"})
    assert "no JSON" in refused("json_validate", data="{", schema={})


@pytest.mark.parametrize(
    ("operations", "result"),
    [
        ([], {"a": 1, "l": [1, 2]}),
        ([{"op": "set", "path": "$.b", "value": {"c": None}}], {"a": 1, "l": [1, 2], "b": {"c": None}}),
        ([{"op": "set", "path": "l[-1]", "value": 3}], {"a": 1, "l": [1, 3]}),
        ([{"op": "delete", "path": "a"}], {"l": [1, 2]}),
        ([{"op": "delete", "path": "l[0]"}], {"a": 1, "l": [2]}),
        ([{"op": "rename", "from": "a", "to": "z"}], {"l": [1, 2], "z": 1}),
        (
            [{"op": "copy", "from": "l", "to": "$.m"}, {"op": "set", "path": "m.0", "value": 9}],
            {"a": 1, "l": [1, 2], "m": [9, 2]},
        ),
        ([{"op": "move", "from": "a", "to": "b"}], {"l": [1, 2], "b": 1}),
        ([{"op": "copy", "from": "l", "to": "l[0]"}], {"a": 1, "l": [[1, 2], 2]}),
    ],
)
def test_a_transformation_applies_operations_in_order(operations, result):
    assert result == use("json_transform", data={"a": 1, "l": [1, 2]}, operations=operations)


@pytest.mark.parametrize(
    ("operations", "words"),
    [
        ([{"op": "delete", "path": "x"}], "names nothing"),
        ([{"op": "delete", "path": "l[5]"}], "names nothing"),
        ([{"op": "delete", "path": "$"}], "no place"),
        ([{"op": "delete", "path": "l[*]"}], "no place"),
        ([{"op": "delete", "path": "*.x"}], "names nothing"),
        ([{"op": "set", "path": "$", "value": 1}], "no place"),
        ([{"op": "set", "path": "l[2]", "value": 1}], "no item"),
        ([{"op": "set", "path": "a.b", "value": 1}], "no place"),
        ([{"op": "rename", "from": "x", "to": "y"}], "no key 'x'"),
        ([{"op": "copy", "from": "x", "to": "y"}], "names nothing"),
        (
            [{"op": "copy", "from": "l", "to": f"l{i}"} for i in range(2)]
            + [{"op": "set", "path": "a..b", "value": 1}],
            "wrong",
        ),
        (
            [{"op": "set", "path": "d", "value": {"x": "y" * 1000}}]
            + [{"op": "copy", "from": "d", "to": f"d.d{i}"} for i in range(20)],
            "larger",
        ),
    ],
)
def test_a_transformation_refuses(operations, words):
    assert words in refused("json_transform", data={"a": 1, "l": [1, 2]}, operations=operations)


def test_unknown_operations_do_not_fit():
    for operation in ({"op": "nope", "path": "a"}, {"op": "set"}, {"op": "copy", "from": "a"}, {}):
        with pytest.raises(NodeError) as caught:
            use("json_transform", data={}, operations=[operation])
        assert ErrorCode.VALIDATION_ERROR is caught.value.code


def test_merging_lets_the_source_win():
    target, source = {"a": {"x": 1, "y": 1}, "b": 1}, {"a": {"y": 2}, "b": {"c": 3}}

    assert {"a": {"x": 1, "y": 2}, "b": {"c": 3}} == use("json_merge", target=target, source=source)
    assert {"a": {"y": 2}, "b": {"c": 3}} == use("json_merge", input=json.dumps(target), source=source, deep=False)
    assert "source is no JSON object but a list" in refused("json_merge", target={}, source="[]")


def test_flattening_keeps_everything():
    value = {"a": {"b": [1, {"c": 2}]}, "d": {}, "e": []}

    assert {"a.b[0]": 1, "a.b[1].c": 2, "d": {}, "e": []} == use("json_flatten", input=json.dumps(value))
    assert ["a.b[0]", "a.b[1].c", "d", "e"] == list(use("json_flatten", data=value))
    assert {"a/b": [1, {"c": 2}], "d": {}, "e": []} == use("json_flatten", data=value, separator="/", max_depth=2)
    assert {} == use("json_flatten", data={})
    assert "two values" in refused("json_flatten", data={"a": {"b": 1}, "a.b": 2})
    assert "1000000" in refused("json_flatten", data={"k" * 1000: dict.fromkeys(map(str, range(1001)), 0)})
    assert "no JSON object" in refused("json_flatten", data="5")
