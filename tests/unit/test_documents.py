"""YAML and JSON text to plain values with positions, and what is refused on the way."""

from __future__ import annotations

import gc
import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.documents import (
    ALIASED_VALUES_MAX,
    FILE_BYTES_MAX,
    NUMBER_CHARS_MAX,
    VALUES_MAX,
    Document,
    parse_document,
    read_document,
)
from tinyllm.errors import GraphConfigError, Problem
from tinyllm_strategies.messages import json_objects, json_values

pytestmark = pytest.mark.unit

GENERATIONS = list(zip("abcdefgh", "bcdefghi", strict=True))
BOMB = "a: &a [x]\n" + "\n".join(f"{new}: &{new} [{', '.join(['*' + old] * 10)}]" for old, new in GENERATIONS)
SPACE = st.sampled_from(["", " ", "\n", "\t", "\r\n"])


def refused(text: str | bytes) -> Problem:
    """The one problem for which this text is refused."""
    with pytest.raises(GraphConfigError) as error:
        parse_document(text)
    (problem,) = error.value.problems
    return problem


def place(problem: Problem) -> tuple[str, int | None, int | None]:
    return (problem.code, problem.line, problem.column)


def unread(path: Path) -> Problem:
    """The one problem for which this file is not read."""
    with pytest.raises(GraphConfigError) as error:
        read_document(path)
    (problem,) = error.value.problems
    assert str(path) == error.value.source
    return problem


# --- values ----------------------------------------------------------------------------------------------


@given(json_objects() | st.lists(json_values(), max_size=3), st.sampled_from([None, 1, "\t"]))
def test_json_means_what_python_reads_in_it(value, indent):
    text = json.dumps(value, indent=indent)

    assert repr(json.loads(text)) == repr(parse_document(text).value)


@given(json_objects(), st.data())
def test_the_white_space_of_json_does_not_matter(value, data):
    text = json.dumps(value, indent=1)
    spaced = "".join(data.draw(SPACE) if part == "\n" else part for part in text)

    assert value == parse_document(data.draw(SPACE) + spaced + data.draw(SPACE)).value


@given(json_values())
def test_yaml_means_what_pyyaml_reads_in_it(value):
    text = yaml.safe_dump(value, allow_unicode=True)

    assert repr(yaml.safe_load(text)) == repr(parse_document(text).value)


@given(json_objects())
def test_text_bytes_and_bytes_with_a_mark_are_the_same_document(value):
    text = yaml.safe_dump(value)

    assert parse_document(text) == parse_document(text.encode()) == parse_document(b"\xef\xbb\xbf" + text.encode())
    assert parse_document(text) == parse_document("\ufeff" + text)


def test_a_byte_order_mark_changes_nothing_in_json():
    text = '{"a": "\\ud83d\\ude00",\t"b": 1}'

    for marked in ("\ufeff" + text, b"\xef\xbb\xbf" + text.encode()):
        assert {"a": "😀", "b": 1} == parse_document(marked).value
        assert (1, 23) == parse_document(marked).position(("b",))


@pytest.mark.parametrize(
    ("spelled", "value"),
    [
        ("yes", True),
        ("no", False),
        ("on", True),
        ("off", False),
        ("~", None),
        ("", None),
        ("null", None),
        ("010", 8),
        ("0x1F", 31),
        ("0b11", 3),
        ("1_000", 1000),
        ("1:30", 90),
        ("1.5", 1.5),
        ("1e3", "1e3"),
        ("1.0e+3", 1000.0),
        ("1.2.3", "1.2.3"),
        ("2025-01-15", "2025-01-15"),
        ("2025-01-15T10:00:00Z", "2025-01-15T10:00:00Z"),
        ("'5'", "5"),
        ('"yes"', "yes"),
        ("=", "="),
        ("<<", "<<"),
        ("y", "y"),
        ("|\n  5\n", "5\n"),
    ],
)
def test_plain_yaml_words_become_their_values_and_dates_stay_text(spelled, value):
    assert repr({"k": value}) == repr(parse_document(f"k: {spelled}").value)


def test_keys_are_text_whatever_they_look_like():
    assert ["yes", "1", "null", "1.5", ""] == list(parse_document("yes: 1\n1: 1\nnull: 1\n1.5: 1\n'': 1").value)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "\ufeff", b"", b"\xef\xbb\xbf", "~"])
def test_an_empty_document_is_null(text):
    assert parse_document(text).value is None


def test_json_escapes_above_the_basic_plane_are_one_character():
    text = '{"\\ud83d\\ude00": "\\uD83D\\uDE00", "b": "\\\\ud83d"}'

    assert {"😀": "😀", "b": "\\ud83d"} == parse_document(text).value


def test_what_only_looks_like_json_is_yaml():
    assert {"a": "b", "c": ["d"]} == parse_document("{a: b, c: [d],}").value
    assert {"a": "NaN", "b": "Infinity"} == parse_document('{"a": NaN, "b": Infinity}').value


def test_numbers_leave_nothing_behind():
    parse_document("[1, 2.5, true, null]\n")
    parse_document("a: 1\nb: 2.5\nc: true\nd: null\n")
    gc.collect()

    assert [] == [kept for kept in gc.get_objects() if isinstance(kept, yaml.ScalarNode)]


# --- aliases and merge keys ------------------------------------------------------------------------------


def test_an_alias_stands_for_its_anchor():
    assert {"a": {"x": [1]}, "b": {"x": [1]}, "c": [1]} == parse_document("a: &a {x: &x [1]}\nb: *a\nc: *x").value


def test_a_later_anchor_of_the_same_name_replaces_the_earlier_one():
    assert [1, 2, 2] == parse_document("[&a 1, &a 2, *a]").value
    assert [1, {"b": 2}, "b"] == parse_document("- &a 1\n- {&a b: 2}\n- *a").value


@pytest.mark.parametrize(
    ("text", "merged"),
    [
        ("{<<: *m, z: 0}", {"x": 1, "y": 2, "z": 0}),
        ("{x: 0, <<: *m}", {"x": 0, "y": 2}),
        ("{<<: *m, x: 0}", {"x": 0, "y": 2}),
        ("{<<: [*m, {x: 9, w: 9}]}", {"x": 1, "y": 2, "w": 9}),
        ("{<<: [{x: 9, w: 9}, *m]}", {"x": 9, "w": 9, "y": 2}),
        ("{<<: {}, '<<': 5}", {"<<": 5}),
        ("{'<<': 5, <<: *m}", {"<<": 5, "x": 1, "y": 2}),
        ("{<<: {x: 7}, <<: *m}", {"x": 7, "y": 2}),
        ("{<<: []}", {}),
    ],
)
def test_a_merge_key_brings_in_what_is_missing(text, merged):
    assert merged == parse_document(f"m: &m {{x: 1, y: 2}}\nk: {text}").value["k"]


@pytest.mark.parametrize("value", ["5", "x", "[5]", "[{}, x]", "~"])
def test_a_merge_key_needs_mappings(value):
    assert ("merge", 1) == place(refused(f"<<: {value}"))[:2]


@pytest.mark.parametrize(
    ("text", "line", "column"),
    [("a: *b", 1, 4), ("a: &a [*a]", 1, 8), ("a: &a\n  b: *a", 2, 6), ("&a {<<: *a}", 1, 9)],
)
def test_an_alias_of_nothing_or_of_what_it_stands_in_is_refused(text, line, column):
    assert ("alias", line, column) == place(refused(text))


def test_an_alias_of_what_it_stands_in_never_means_an_earlier_anchor():
    assert "the alias *a contains itself" == refused("- &a 1\n- &a [*a]").message
    assert "the alias *b names no anchor" == refused("- &a 1\n- *b").message


@pytest.mark.parametrize(("count", "loads"), [(ALIASED_VALUES_MAX, True), (ALIASED_VALUES_MAX + 1, False)])
def test_aliases_expand_to_10_000_values_and_no_more(count, loads):
    text = f"a: &a [{'1, ' * (count // 10 - 1)}]\nb: [{'*a, ' * 10}]\nc: &c 1\n" + "d: *c\n" * (count % 10)

    if loads:
        assert count // 10 - 1 == len(parse_document(text).value["b"][9])
    else:
        assert ("alias", 4, 4) == place(refused(text))


@pytest.mark.parametrize(
    "anchored", ["[[{items}]]", "{{k: [{items}]}}", "[[], {{}}, [{items}], 5]", "[*one, [{items}]]"]
)
def test_what_an_alias_holds_counts_however_deep_it_lies(anchored):
    text = f"- &one 1\n- &a {anchored.format(items='1, ' * 999)}\n"

    assert 11 == len(parse_document(text + "- *a\n" * 9).value)
    assert ("alias", 12, 3) == place(refused(text + "- *a\n" * 10))


def test_an_alias_bomb_is_refused_where_it_goes_off():
    assert ("alias", 5) == place(refused(BOMB))[:2]


def test_a_merge_bomb_is_refused():
    text = "a: &a {x: 1}\n" + "\n".join(
        f"{new}: &{new} {{{', '.join(f'{new}{n}: *{old}' for n in range(10))}, <<: *{old}}}"
        for old, new in GENERATIONS
    )

    assert ("alias", 5) == place(refused(text))[:2]


@pytest.mark.parametrize("anchored", ["&a {text}", "&a {{{text}: 1}}", "&a [{text}]"])
def test_a_long_text_counts_for_more_than_one_value(anchored):
    short, long = anchored.format(text="x" * 100), anchored.format(text="x" * 900)

    aliases = "*a, " * 900
    assert 901 == len(parse_document(f"[{short}, {aliases}]").value)
    assert 901 == len(parse_document(f"[{long}, {aliases}]").value)
    longest = anchored.format(text="? " + "x" * 12_000 if "{{" in anchored else "x" * 12_000)
    assert "alias" == refused(f"[{longest}, {aliases}]").code


# --- refused, with the place -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("a: 1\nb: 2\na: 3", "duplicate_key", 3, 1),
        ("a:\n  b: 1\n  b: 1", "duplicate_key", 3, 3),
        ('{"a": 1,\n "a": 2}', "duplicate_key", 2, 2),
        ('{"a": {"\\u0062": 1, "b": 2}}', "duplicate_key", 1, 21),
        ("{a: 1, 'a': 2}", "duplicate_key", 1, 8),
        ("a: !!python/object/apply:os.system [ls]", "tag", 1, 4),
        ("a: !!str 5", "tag", 1, 4),
        ("a: !mine {}", "tag", 1, 4),
        ("!!map\na: 1", "tag", 1, 1),
        ("%TAG ! tag:x,2025:\n---\na: 1", "tag", 1, 1),
        ("%YAML 1.1\n%TAG !a! x\n---\na: 1", "tag", 2, 1),
        ("[a, b]: 1", "key", 1, 1),
        ("? {a: 1}\n: 2", "key", 1, 3),
        ("a: &a b\n*a : 1", "key", 2, 1),
        ("a: 1\n---\nb: 2", "documents", 2, 1),
        ("---\na: 1\n---\n", "documents", 3, 1),
        ("a: .inf", "value", 1, 4),
        ("a: -.INF", "value", 1, 4),
        ("a: .nan", "value", 1, 4),
        ("a: 1.5e+999", "value", 1, 4),
        ("a: 0x_", "value", 1, 4),
        ("a: " + "1" * 5000, "value", 1, 4),
        ("a: " + "1:1" * 5000, "value", 1, 4),
        ("a: 0x" + "f" * 5000, "value", 1, 4),
        ("a: [1, 2", "syntax", 2, 1),
        ("a: 1\n b: 2", "syntax", 2, 3),
        ("a:\n\t- 1", "syntax", 2, 1),
        ('a: "x', "syntax", 1, 6),
        ("a: }", "syntax", 1, 4),
        ("a: \0", "character", 1, 4),
        ("\0", "character", 1, 1),
        ("é: ü\nüü: \x01", "character", 2, 5),
        ("a: 1\r\nb: \x07", "character", 2, 4),
        ('{"a": "\x7f"}', "character", 1, 8),
        ("a: \ud800", "character", 1, 4),
        (b"i\0d\0", "character", 1, 2),
        (b"\xff\xfei\0d\0", "encoding", 1, 1),
        (b"\xfe\xff\0i\0d", "encoding", 1, 1),
        (b"a: 1\nb: \xe9\n", "encoding", 2, 1),
        (b"a: 1\n\xed\xa0\x80", "encoding", 2, 1),
    ],
)
def test_hostile_text_is_refused_where_it_stands(text, code, line, column):
    assert (code, line, column) == place(refused(text))


def test_other_encodings_are_told_what_to_do():
    assert "Save the file as UTF-8." == refused("name: Zoë".encode("utf-16")).hint


def test_lines_are_counted_the_same_with_every_line_end():
    assert (2, 1) == parse_document("a: 1\r\nb: 2\r\n").position(("b",))
    assert parse_document("a: [1,\n  2]\nb: 3").positions == parse_document("a: [1,\r\n  2]\r\nb: 3").positions


# --- bounds ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("around", ["[]", "{}"])
def test_64_levels_are_read_and_65_refused(around):
    def levels(count: int) -> str:
        if around == "[]":
            return "[" * count + "]" * count
        return '{"k":' * (count - 1) + "{}" + "}" * (count - 1)

    for text in (levels(64), "---\n" + levels(64)):
        assert parse_document(text).value
    for text in (levels(65), "---\n" + levels(65)):
        assert "too_deep" == refused(text).code


@pytest.mark.parametrize("start", ["[", '{"a":', "- ", "{a: ", "[{a: "])
def test_ten_thousand_levels_are_refused_as_too_deep(start):
    assert "too_deep" == refused(start * 10_000).code


def test_a_file_full_of_brackets_is_refused_as_too_deep():
    assert "too_deep" == refused("[" * FILE_BYTES_MAX).code
    assert "too_deep" == refused("[" * (FILE_BYTES_MAX // 2) + "]" * (FILE_BYTES_MAX // 2)).code


def test_an_alias_counts_with_the_levels_it_brings():
    deep = "[" * 33 + "]" * 33

    assert parse_document(f"a: &a {deep}\nb: {'[' * 30}*a{']' * 30}").value
    assert ("too_deep", 2) == place(refused(f"a: &a {deep}\nb: {'[' * 31}*a{']' * 31}"))[:2]


@pytest.mark.parametrize("unit", ["x", "é", "😀"])
def test_a_mebibyte_is_read_and_a_byte_more_refused(unit):
    size = len(unit.encode())
    text = "# " + unit * ((FILE_BYTES_MAX - 2) // size)
    text += "x" * (FILE_BYTES_MAX - len(text.encode()))

    assert parse_document(text).value is None
    assert parse_document(text.encode()).value is None
    assert "too_large" == refused(text + "x").code
    assert "too_large" == refused((text + "x").encode()).code


def test_more_values_than_any_graph_holds_are_refused():
    assert VALUES_MAX - 6 == len(parse_document("[" + "1," * (VALUES_MAX - 6) + "]").value)
    assert "too_large" == refused("[" + "1," * VALUES_MAX + "]").code
    assert "too_large" == refused("{" + ",".join(f"k{number}: 1" for number in range(VALUES_MAX // 2)) + "}").code


@pytest.mark.parametrize("digits", ["1" * NUMBER_CHARS_MAX, "0x" + "f" * (NUMBER_CHARS_MAX - 2)])
def test_a_number_of_1_000_characters_is_read_and_a_longer_one_refused(digits):
    assert int(digits, 0) == parse_document(f"k: {digits}").value["k"]
    assert ("value", 1, 4) == place(refused(f"k: {digits}1"))


@given(st.text() | st.text(alphabet="ab:- \n\t[]{}&*!<'\"|>%?#,.0") | st.binary())
def test_any_text_and_any_bytes_are_a_document_or_a_refusal(data):
    try:
        document = parse_document(data)
    except GraphConfigError as refusal:
        told = str(refusal)
    else:
        told = repr(document.value)
        assert repr(document.value) == repr(json.loads(json.dumps(document.value)))
    assert told.encode("utf-8")


# --- positions -------------------------------------------------------------------------------------------

PLACED = """\
id: x
list:
  - a
  - {k: v, deep: [1, 2]}
map:
  one: 1
  'two': |
    text
again: &again
  - 5
alias: *again
"""


@pytest.mark.parametrize(
    ("path", "position"),
    [
        ((), (1, 1)),
        (("id",), (1, 1)),
        (("list",), (3, 3)),
        (("list", 0), (3, 5)),
        (("list", 1), (4, 5)),
        (("list", 1, "k"), (4, 6)),
        (("list", 1, "deep"), (4, 18)),
        (("list", 1, "deep", 1), (4, 22)),
        (("map",), (6, 3)),
        (("map", "one"), (6, 3)),
        (("map", "two"), (7, 3)),
        (("again", 0), (10, 5)),
        (("alias",), (11, 1)),
    ],
)
def test_every_value_has_its_place(path, position):
    assert position == parse_document(PLACED).position(path)


@pytest.mark.parametrize(
    ("path", "position"),
    [(("missing",), (1, 1)), (("map", "missing", 3), (6, 3)), (("list", 9), (3, 3)), (("alias", 0), (11, 1))],
)
def test_what_is_missing_has_the_place_of_what_is_around_it(path, position):
    assert position == parse_document(PLACED).position(path)


def test_tabs_and_escapes_of_json_take_the_room_they_take():
    text = '{\t"a": [1,\r\n\t\t{"b": "\\ud83d\\ude00", "c": null}]}'
    expected = {
        (): (1, 1),
        ("a",): (1, 8),
        ("a", 0): (1, 9),
        ("a", 1): (2, 3),
        ("a", 1, "b"): (2, 4),
        ("a", 1, "c"): (2, 25),
    }

    assert expected == parse_document(text).positions


def test_values_that_were_never_text_have_no_place():
    assert Document({"a": 1}, {}).position(("a",)) is None


# --- files -----------------------------------------------------------------------------------------------


def test_a_file_is_read_like_its_text(tmp_path):
    path = tmp_path / "graph.yaml"
    path.write_bytes("a: é\r\n".encode())

    assert ({"a": "é"}, str(path)) == (read_document(path).value, read_document(path).source)


def test_a_file_of_2_mebibytes_is_refused(tmp_path):
    path = tmp_path / "graph.yaml"
    path.write_bytes(b"#" * (2 << 20))

    assert "too_large" == unread(path).code


@pytest.mark.parametrize("path", [".", "/", "/dev/null", "/dev/zero"])
def test_what_is_no_regular_file_is_not_opened(path, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *_, **__: pytest.fail("opened"))

    assert "not_a_file" == unread(Path(path)).code


def test_a_pipe_is_not_opened(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)

    assert "not_a_file" == unread(path).code


def test_a_missing_file_is_refused(tmp_path):
    problem = unread(tmp_path / "missing.yaml")

    assert "unreadable" == problem.code
    assert "No such file" in problem.message


@pytest.mark.parametrize("name", ["a\0b", "x" * 300, "loop"])
def test_a_path_that_leads_nowhere_is_refused(name, tmp_path):
    (tmp_path / "loop").symlink_to(tmp_path / "loop")

    assert "unreadable" == unread(tmp_path / name).code


def test_a_file_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "graph.yaml"
    path.write_text("a: 1")

    def forbidden(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)

    assert "unreadable" == unread(path).code


def test_a_file_that_fails_while_it_is_read_is_refused():
    memory = Path("/proc/self/mem")
    if not memory.exists():
        pytest.skip("only Linux has a file that opens and cannot be read")

    assert "unreadable" == unread(memory).code
