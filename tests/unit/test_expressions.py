"""Conditions: Python's meaning within their bounds, and no way out of them."""

from __future__ import annotations

import ast
import string
import warnings
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tinyllm import expressions
from tinyllm.errors import ErrorCode, ExpressionError
from tinyllm.expressions import names_of, parse
from tinyllm.message import ErrorInfo, Message, MessageMetadata, MessagePayload
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit

MILLION = 1_000_000
TEXT = "x" * MILLION
CALLABLE = {"len": len, "str": str, "int": int, "float": float, "bool": bool}
CALLABLE |= {"min": min, "max": max, "sum": sum, "any": any, "all": all}
#: Reasons for which a condition fails where Python would give a value.
OUR_BOUNDS = ("at most", "a number is needed")


def value_of(source: str, **names: Any) -> Any:
    return parse(source).evaluate(names)


def python_value_of(source: str) -> Any:
    with warnings.catch_warnings():
        # Python doubts `0 is None` and `0[0]`, and evaluates them.
        warnings.simplefilter("ignore")
        return eval(source, {"__builtins__": {}, **CALLABLE}, NAMES)


def failure_of(source: str, **names: Any) -> str:
    """Why this condition, which parses, fails."""
    expression = parse(source)
    with pytest.raises(ExpressionError) as error:
        expression.evaluate(names)
    return str(error.value)


def refusal_of(source: str) -> str:
    """Why this condition does not parse."""
    with pytest.raises(ExpressionError) as error:
        parse(source)
    return str(error.value)


# --- against Python --------------------------------------------------------------------------------------

LITERALS = st.one_of(
    st.integers(-3, 3).map(str),
    st.sampled_from(["1.5", "0.0", "-0.0", "1e308", "None", "True", "False", "''", "'a'", "'Ab '", "'12'", "' 7 '"]),
    st.sampled_from(["9223372036854775807", "18446744073709551615", "[]", "{}", "()", "'inf'", "'nan'"]),
)
NAMES: dict[str, Any] = {
    "t": "some Text",
    "n": 7,
    "f": 2.5,
    "xs": [3, 1, 2],
    "m": {"a": 1, "b": {"c": "deep"}, "n": None},
    "none": None,
    "yes": True,
}


def _larger(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    arithmetic, compared = ["+", "-", "*", "/", "//", "%"], ["==", "!=", "<", "<=", ">", ">=", "in", "not in"]
    binary = st.sampled_from([*arithmetic, *compared, "and", "or"])
    calls = st.sampled_from(["len", "str", "int", "float", "bool", "min", "max", "sum", "any", "all"])
    methods = st.sampled_from(["get", "lower", "upper", "strip", "startswith", "endswith"])
    arguments = st.lists(inner, max_size=2).map(", ".join)
    return st.one_of(
        st.builds("({} {} {})".format, inner, binary, inner),
        st.builds("({} {} {} {} {})".format, inner, binary, inner, binary, inner),
        st.builds("({} {})".format, st.sampled_from(["not", "-", "+"]), inner),
        st.builds("({} is {})".format, inner, st.sampled_from(["None", "not None", "True", "not False"])),
        st.builds("({})[{}]".format, inner, inner),
        st.builds("{}({})".format, calls, arguments),
        st.builds("({}).{}({})".format, inner, methods, arguments),
        st.builds("[{}]".format, arguments),
        st.builds("({},)".format, inner),
        st.builds("{{{}: {}}}".format, inner, inner),
    )


SOURCES = st.recursive(LITERALS | st.sampled_from(sorted(NAMES)), _larger, max_leaves=8)


@given(SOURCES)
@example("(1 < 2 > 1)")
@example("(1 == 1.0 == True)")
@example("(m and xs or t)")
@example("m['b'].get('c').upper()")
@example("-7 // 2 + -7 % 2")
def test_a_condition_means_what_python_means(source):
    try:
        expression = parse(source)
    except ExpressionError as refusal:
        reason = str(refusal)
        assert "arguments is not allowed" in reason or "32 levels" in reason
        return
    try:
        ours = expression.evaluate(NAMES)
    except ExpressionError as failure:
        if not any(bound in str(failure) for bound in OUR_BOUNDS):
            with pytest.raises((TypeError, ValueError, ArithmeticError, LookupError, AttributeError)):
                python_value_of(source)
        return
    assert repr(python_value_of(source)) == repr(ours)


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("content", "hi"),
        ("missing", None),
        ("missing == None", True),
        ("missing is None", True),
        ("not missing", True),
        ("content is not None and len(content) > 1", True),
        ("missing and missing['x']", None),
        ("content or missing['x']", "hi"),
        ("structured['list'][0]", 1),
        ("structured['list'][-1]", 3),
        ("structured.get('nothing', 'else')", "else"),
        ("structured.get('nothing')", None),
        ("content[0]", "h"),
        ("content in ['hi', 'ho']", True),
        ("content not in ('ho',)", True),
        ("'h' in content", True),
        ("1 < 2 < 3", True),
        ("1 < 3 < 2", False),
        ("7 // 2 * 2 + 7 % 2", 7),
        ("1 / 2", 0.5),
        ("True + True", 2),
        ("'a' + 'b'", "ab"),
        ("[1] + [2]", [1, 2]),
        ("(1,) + (2,)", (1, 2)),
        ("-5 % 3", 1),
        ("+5 - -5", 10),
        ("' x '.strip()", "x"),
        ("'xx'.strip('x')", ""),
        ("'AB'.lower() + 'ab'.upper()", "abAB"),
        ("'ab'.startswith('a') and 'ab'.endswith(('x', 'b'))", True),
        ("min(3, 1, 2) + max([3, 1])", 4),
        ("sum([1, 2.5]) + sum([], 1)", 4.5),
        ("any([0, 1]) and not all([0, 1])", True),
        ("int('12') + int(1.9) + int()", 13),
        ("float('1.5')", 1.5),
        ("str(1.0) + str(None) + str([1])", "1.0None[1]"),
        ("bool('')", False),
        ("len({'a': 1})", 1),
        ("0x10 + 0b1 + 1_000", 1017),
        ("'a' 'b'", "ab"),
        ("  content  ", "hi"),
        ("(content\n  )", "hi"),
        ("len", None),
    ],
)
def test_every_part_of_the_language_works(source, value):
    names = {"content": "hi", "structured": {"list": [1, 2, 3]}}

    assert repr(value) == repr(parse(source).evaluate(names))


@pytest.mark.parametrize(
    "source",
    [
        *("1 / 0", "1 // 0", "1 % 0", "1.0 / 0", "[][0]", "{}['a']", "'a'[1]", "'a'['b']", "none[0]", "5[0]"),
        *("1 < 'a'", "none > 3", "'a' in 5", "1 + 'a'", "{} + {}", "-'a'", "+[]", "len(5)", "int('x')"),
        *("int('')", "float([])", "min([])", "max(5)", "sum(5)", "sum('ab')", "sum([[1], [2]], [])"),
        *("any(5)", "'a'.get('b')", "[].get(0)", "none.lower()", "5 .strip()", "'a'.startswith(5)"),
        *("'a'.strip(5)", "{}.get([])", "{[]: 1}", "{}[[]]", "int('1' * 2)", "int(float('inf'))"),
        *("'%s' % 'a'", "'%9d' % (1,)", "'%s' % {}"),
        *("int(float('nan'))", "'%s' % 5", "'a' * 3", "[1] * 3", "3 * [1]", "'a' - 'b'", "[1] % 2"),
        *("{} - {}", "'a' / 'b'", "[] // 2"),
    ],
)
def test_what_does_not_fit_fails_as_an_expression_error_that_quotes_the_condition(source):
    assert repr(source) in failure_of(source)


# --- what parses -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        *("x.__class__", "x.lower", "x.format('a')", "x.get", "''.join(x)", "x.__class__()"),
        *("x.get.__self__", "len.__call__(x)", "__import__('os')", "__builtins__"),
        *("x.__class__.__mro__[1].__subclasses__()", "eval('1')", "open('/etc/passwd')", "getattr(x, 'y')"),
        *("type(x)", "print(x)", "range(10)", "sorted(x)", "abs(1)", "round(1)", "set(x)", "tuple(x)"),
        *("(lambda: 1)()", "lambda: 1", "[y for y in x]", "{y for y in x}", "{y: 1 for y in x}"),
        *("(y for y in x)", "any(y for y in x)", "x if y else z", "(x := 1)", "x ** 2", "x @ y", "x << 1"),
        *("x >> 1", "x | y", "x & y", "x ^ y", "~x", "x[1:2]", "x[:]", "x[1:2, 3]", "x[...]", "f'{x}'"),
        *("f'x'", "b'x'", "1j", "...", "{1, 2}", "{**x}", "[*x]", "len(*x)", "len(**x)", "min(x, key=len)"),
        *("str(x, encoding='a')", "await x", "(yield)", "(yield from x)", "len()", "len(1, 2)", "str(1, 2)"),
        *("x.lower(1)", "x.get()", "x.get(1, 2, 3)", "x.startswith()", "x.startswith(1, 2)", "int('1', 2)"),
        *("sum()", "sum(x, 1, 2)", "min()", "x.strip(1, 2)", "x()", "x()()", "'a'()", "[len][0]('a')"),
        *("x is 1", "x is 0", "x is 1.0", "x is 0.0", "x is 'a'", "x is y", "x is not []", "None is x"),
        *("x is None is y",),
    ],
)
def test_nothing_else_can_be_called_or_reached(source):
    assert "is not allowed in a condition (column " in refusal_of(source)


@pytest.mark.parametrize(
    "source",
    [
        *("", " ", "\n", "#", "1 +", "x y", "(", ")", "'", "if x: y", "x = 1", "x; y", "import os", "x\ny"),
        *("x ==", "1x", "$x", "?", "\0", "x\0", "'\ud800'", "x = yield", "return x", "*x", "**x", "0777"),
        *("x!", "x === y", "&&", "a && b", "!a", "\\", "not", "is", "None = 1", "from", "def f(): 1", "'''"),
        *("(" * 300 + ")" * 300, "1__0", "0x", "99999999e"),
    ],
)
def test_what_is_no_expression_does_not_parse(source):
    assert refusal_of(source)


@pytest.mark.parametrize("name", ["__class__", "__", "__x"])
def test_names_that_start_with_two_underscores_cannot_be_read(name):
    assert f"the name {name} is not allowed" in refusal_of(name)


def test_a_refusal_says_what_and_where():
    assert "`x ** 2` is not allowed in a condition (column 5)" == refusal_of("1 + x ** 2")


def _broken(source: str) -> st.SearchStrategy[str]:
    half = source[: len(source) // 2]
    return st.sampled_from([half, source + source, source.replace("(", ""), source.replace(" ", "."), f"({source}"])


@given(st.text() | st.text(alphabet=string.printable) | SOURCES.flatmap(_broken))
@example("-" * 1_999 + "1")
@example("[" * 1_000)
@example("not " * 499 + "x")
@example("x" + ".lower()" * 200)
@example("x" + "[0]" * 600)
@example("f'" + "{" * 300)
@example("1" * 2_000)
@example("a" + "+a" * 900)
@example("\uff41\uff0b\uff11")
@example("# -*- coding: rot13 -*-")
def test_any_text_parses_or_is_an_expression_error_and_then_evaluates_or_is_one_too(source):
    try:
        expression = parse(source)
    except ExpressionError:
        return
    assert set(expression.names) <= {node.id for node in ast.walk(expression.body) if isinstance(node, ast.Name)}
    try:
        expression.evaluate(NAMES)
    except ExpressionError as failure:
        told = str(failure)
    else:
        told = repr(source)
    assert repr(source) in told


@given(SOURCES, st.dictionaries(st.sampled_from(sorted(NAMES)), json_values()))
def test_with_any_values_a_condition_gives_a_value_or_an_expression_error(source, names):
    try:
        expression = parse(source)
        expression.evaluate(names)
    except ExpressionError:
        pass


@given(SOURCES, st.dictionaries(st.sampled_from(sorted(NAMES)), json_values()))
def test_evaluating_changes_no_value_and_gives_the_same_again(source, names):
    before = repr(names)
    try:
        expression = parse(source)
        first = expression.evaluate(names)
    except ExpressionError:
        assert before == repr(names)
        return
    assert repr(first) == repr(expression.evaluate(names))
    assert before == repr(names)


def test_the_names_are_those_that_are_read_in_order():
    assert ("b", "a", "c") == parse("b > a and len(c) == b").names
    assert () == parse("len('x')").names


def test_methods_are_those_of_the_plain_types_whatever_a_value_defines():
    class Trap(dict[str, Any]):
        def get(self, *arguments: Any) -> Any:
            raise AssertionError("the value's own method was called")

    class Other:
        def get(self, key: str) -> str:
            raise AssertionError("a foreign object's method was called")

    assert 1 == value_of("x.get('a')", x=Trap(a=1))
    assert ".get needs a dict, not Other" in failure_of("x.get('a')", x=Other())


# --- bounds ----------------------------------------------------------------------------------------------


def test_2_000_characters_parse_and_one_more_does_not():
    assert len(TEXT[:1_998]) == value_of(f"'{TEXT[:1_998]}'").count("x")
    assert "2001 characters; a condition has at most 2000" == refusal_of(" " * 2_000 + "x")


@pytest.mark.parametrize(
    "wrap", ["not {}", "-{}", "[{}]", "len({})", "{}[0]", "{}.lower()", "({},)", "{{1: {}}}", "1 + ({})", "0 < ({})"]
)
def test_32_levels_parse_and_33_do_not(wrap):
    def levels(count: int) -> str:
        source = "x"
        for _ in range(count - 1):
            source = wrap.format(source)
        return source

    parse(levels(32))
    assert "nested more than 32 levels deep" == refusal_of(levels(33))


def test_long_chains_of_and_or_and_comparisons_are_flat():
    assert value_of(" and ".join(["1"] * 300)) == value_of(" or ".join(["0"] * 300 + ["1"])) == 1
    assert value_of(" == ".join(["1"] * 300)) is True


@pytest.mark.parametrize("sign", ["", "-"])
def test_integers_of_64_bits_are_values_and_of_65_are_not(sign):
    assert value_of(f"{sign}{2**64 - 1}") == int(f"{sign}{2**64 - 1}")
    assert "an integer of 65 bits; at most 64" in failure_of(f"{sign}{2**64}")


@pytest.mark.parametrize(
    "source",
    [
        *("n + 1", "n - -1", "n * 2", "n * n", "-(n + 1)", "-n - 1", "sum([n, n])", "sum([1], n)", "int(f)"),
        "int('18446744073709551616')",
    ],
)
def test_no_operation_gives_a_longer_integer(source):
    assert "at most 64" in failure_of(source, n=2**64 - 1, f=1e30)


def test_floats_may_be_as_large_as_floats_are():
    assert value_of("1e308 * 10") == value_of("float('inf')") == float("inf")
    assert 2.0**64 * 4 == value_of("18446744073709551615 * 4.0")


@pytest.mark.parametrize(
    ("source", "size"),
    [("t + u", MILLION), ("xs + ys", MILLION), ("t + ''", MILLION), ("str(t)", MILLION), ("t.upper()", MILLION)],
)
def test_a_million_is_a_size_that_may_be_built(source, size):
    half = {"t": TEXT[:500_000], "u": TEXT[:500_000], "xs": [0] * 500_000, "ys": [0] * 500_000}
    names = half if source in ("t + u", "xs + ys") else {"t": TEXT}

    assert size == len(value_of(source, **names))


@pytest.mark.parametrize("source", ["t + 'x'", "'x' + t", "t + t", "xs + [0]", "xs + xs", "tup + (0,)", "[0] + xs"])
def test_a_sum_over_a_million_fails_before_it_is_built(source, monkeypatch):
    monkeypatch.setitem(expressions._ARITHMETIC, ast.Add, lambda *_: pytest.fail("built"))

    assert "at most 1000000" in failure_of(source, t=TEXT, xs=[0] * MILLION, tup=(0,) * MILLION)


@pytest.mark.parametrize(
    "value",
    [
        *("[t, t]", "[t]", "(t, 0)", "{'k': t}", "{t: 1}", "xs", "[[[t], t], {'a': [t]}]", "big", "{1: t, 2: t}"),
        "{1: [t, t]}",
    ],
)
def test_a_text_over_a_million_is_never_written_out(value, monkeypatch):
    def written(*values: Any) -> str:
        assert len(repr(values)) < 2 * MILLION
        return str(*values)

    monkeypatch.setitem(expressions._FUNCTIONS, "str", (written, range(2)))

    assert "at most 1000000" in failure_of(f"str({value})", t=TEXT, xs=[[]] * (MILLION + 1), big=[[TEXT] * 99] * 99)


def test_a_text_that_grows_in_upper_case_stays_bounded():
    assert "at most 1000000" in failure_of("t.upper()", t="ß" * 600_000)


@pytest.mark.parametrize("source", ["float(t)", "m[t]", "int(t)", "t + 1", "{}[t]"])
def test_a_failure_is_told_in_a_short_line(source):
    assert len(failure_of(source, t=TEXT, m={})) < 400


# --- the names -------------------------------------------------------------------------------------------


def message(payload: MessagePayload, metadata: MessageMetadata | None = None) -> Message:
    return Message(
        trace_id="t",
        source_node="s",
        payload=payload,
        metadata=metadata or MessageMetadata(),
        created_at=datetime(2025, 1, 1, tzinfo=UTC),
    )


def test_the_names_are_the_payload_as_json_and_the_variables():
    error = ErrorInfo(code=ErrorCode.TIMEOUT, message="late", node_id="n")
    payload = MessagePayload(content="c", structured={"a": [1]}, error=error, lang="en")

    names = names_of(message(payload), {"seen": [1]})

    assert ("c", {"a": [1]}, "en", None) == (names["content"], names["structured"], names["lang"], names["task"])
    assert {"code": "TIMEOUT", "message": "late", "details": {}, "recoverable": True, "node_id": "n"} == names["error"]
    assert {"seen": [1]} == names["variables"]
    assert {*MessagePayload.model_fields, "lang", "variables"} == names.keys()


def test_metadata_is_that_of_the_payload_completed_by_what_was_measured():
    payload = MessagePayload(metadata={"tokens_in": "mine", "own": 1})
    measured = MessageMetadata(tokens_in=3, tokens_out=2, latency_ms=None)

    assert {"tokens_in": "mine", "own": 1, "tokens_out": 2} == names_of(message(payload, measured), {})["metadata"]


def test_a_payload_cannot_pose_as_the_variables():
    payload = MessagePayload(variables={"a": 1})

    assert {"a": 2} == names_of(message(payload), {"a": 2})["variables"]
