"""Templates: what is a place, what is text, and what happens where nothing stands."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.errors import TemplateError
from tinyllm.templates import render
from tinyllm_strategies.messages import json_values

pytestmark = pytest.mark.unit

NAMES = {"name": "Zoë", "n": 5, "yes": True, "list": [1, "é"], "map": {"key": {"deep": "x"}, "0": "zero"}, "empty": ""}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("Hi {name}!", "Hi Zoë!"),
        ("{name}{name}", "ZoëZoë"),
        ("{map.0}", "zero"),
        ("{n} {yes}", "5 true"),
        ("{list}", '[1, "é"]'),
        ("{map.key}", '{"deep": "x"}'),
        ("[{empty}]", "[]"),
        ("{{name}}", "{name}"),
        ("{{map.key}}", "{map.key}"),
        ("{{missing}}", "{missing}"),
        ("{{name}} {name}", "{name} Zoë"),
        ("{{name}", "{Zoë"),
        ("{name}}", "Zoë}"),
        ("{{{name}}}", "{{name}}"),
    ],
)
def test_a_place_is_filled_and_a_double_brace_is_a_brace(template, text):
    assert text == render(template, NAMES)


@pytest.mark.parametrize(
    "template",
    [
        *("", "{}", "{{}}", "{ name }", "{name }", "{0}", "{1name}", "{name!r}", "{name:>5}", "{name[0]}", "{na-me}"),
        *("%(name)s", "$name", "{name.}", "{.name}", "{name..key}", "{map.key.deep}", "{{map.key.deep}}", "{größe}"),
        *("{", "}", "}{", "{\nname}", '{"a": 1}', "{name", "name}"),
    ],
)
def test_all_other_braces_are_plain_text(template):
    assert template == render(template, NAMES)


@pytest.mark.parametrize(
    "template", ["{missing}", "{name.key}", "{map.missing}", "{list.0}", "{null}", "{null.key}", "{name} {missing}"]
)
def test_a_missing_or_null_name_is_an_error_that_tells_the_name(template):
    place = template.split()[-1]

    with pytest.raises(TemplateError) as error:
        render(template, {**NAMES, "null": None})

    assert place in str(error.value)


@given(st.text(alphabet=st.characters(exclude_characters="{")))
def test_text_without_an_opening_brace_stays_as_it_is(text):
    assert text == render(text, {})


@given(st.text(), st.text(), st.text())
def test_what_a_value_contains_is_never_replaced_again(before, value, after):
    before, after = before.replace("{", ""), after.replace("}", "").replace("{", "")

    assert f"{before}{value}{after}" == render(f"{before}{{value}}{after}", {"value": value, "name": "wrong"})


@given(json_values().filter(lambda value: value is not None and not isinstance(value, str)))
def test_a_value_that_is_no_text_stands_as_json(value):
    assert value == json.loads(render("{value}", {"value": value}))


PIECES = st.lists(st.sampled_from(["{", "}", "a", ".", "b", " ", "{a}", "{{a}}", "{a.b}", "{c}"])).map("".join)


@given(PIECES)
def test_a_template_fails_for_what_it_names_and_for_nothing_else(template):
    try:
        render(template, {"a": {"b": "x"}, "b": 1})
    except TemplateError as error:
        named = str(error).split("{")[1].split("}")[0]
        assert f"{{{named}}}" in template
        assert named not in ("a", "b", "a.b")
