"""`tinyllm nodes` as a shell sees it: every type and every key, as the config classes have them now."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Any

import pytest
from click.testing import CliRunner, Result
from pydantic import Field

from tinyllm.cli.main import cli
from tinyllm.config import CONFIGS, NodeConfig, add_custom_config, kinds, remove_custom_config
from tinyllm.config.transform import PARAMS
from tinyllm.tools import default_tools

pytestmark = pytest.mark.unit


class WordsConfig(NodeConfig):
    """Counts words. `least` is how many there must be.

    More about it.
    """

    least: Annotated[int, Field(ge=1, le=9)] = 3
    mood: Annotated[str, Field(description="How to count.")]
    kinds: dict[str, int] = Field(default_factory=dict)


class SilentConfig(NodeConfig):
    pass


@pytest.fixture
def _custom() -> Iterator[None]:
    add_custom_config("acme.words", WordsConfig)
    add_custom_config("acme.silent", SilentConfig)
    yield
    remove_custom_config("acme.words")
    remove_custom_config("acme.silent")


def nodes(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["nodes", *arguments])


def value_of(result: Result) -> Any:
    assert 0 == result.exit_code
    return json.loads(result.stdout)


def test_the_list_has_a_line_for_each_type():
    result = nodes()

    assert 0 == result.exit_code
    assert list(CONFIGS) == [line.split()[0] for line in result.stdout.splitlines()]
    assert all(len(line.split()) > 3 for line in result.stdout.splitlines())


@pytest.mark.parametrize("name", CONFIGS)
def test_every_key_of_a_type_is_told(name):
    text = nodes(name).stdout

    lines = [line.split() for line in text.splitlines()]
    assert {*CONFIGS[name].model_fields} <= {words[0] for words in lines if words}


@pytest.mark.parametrize("name", CONFIGS)
def test_the_schema_of_a_type_has_every_key(name):
    schema = value_of(nodes(name, "--format", "json"))

    assert {*CONFIGS[name].model_fields} == set(schema["properties"])
    assert schema["additionalProperties"] is False


def test_a_key_is_told_with_type_default_and_bounds():
    lines = nodes("model").stdout.splitlines()

    assert "  temperature          number; default 0.7; >= 0, <= 2" in lines


def test_required_keys_and_the_keys_of_parts_are_told():
    text = nodes("gate").stdout

    assert "GateCondition: A named way out." in text
    assert "    target      text; required" in text


def test_keys_without_effect_are_named():
    assert "without effect here: input_schema, output_field, output_schema" in nodes("tool").stdout


def test_every_step_of_a_transform_has_its_parameters():
    schema = value_of(nodes("transform", "--format", "json"))

    assert {kind.__name__ for kind in PARAMS.values()} < set(schema["$defs"])


def test_all_describes_every_type():
    text = nodes("--all").stdout

    assert all(f"{name}: " in text for name in CONFIGS)
    assert "aggregation_strategy" in text


def test_json_without_a_type_has_the_schema_of_each():
    schemas = value_of(nodes("--format", "json"))

    assert {*CONFIGS} == {*schemas}
    assert schemas["model"] == value_of(nodes("model", "--format", "json"))


def test_another_spelling_is_the_type_itself():
    assert nodes("fanout").stdout == nodes("dynamic_fanout").stdout


@pytest.mark.usefixtures("_custom")
def test_custom_types_are_listed_in_their_own_words():
    lines = nodes().stdout.splitlines()

    assert "acme.words   Counts words. `least` is how many there must be." in lines
    assert "acme.silent" in [line.strip() for line in lines]


@pytest.mark.usefixtures("_custom")
def test_a_custom_type_is_described_by_its_class():
    lines = nodes("acme.words").stdout.splitlines()

    assert "  least           integer; default 3; >= 1, <= 9" in lines
    assert "                    `least` is how many there must be." in lines
    assert "  mood            text; required" in lines
    assert "                    How to count." in lines
    assert "  kinds           mapping to integer; default {}" in lines


def test_a_type_whose_package_is_broken_hides_no_other(monkeypatch):
    class Broken:
        name = "acme.broken"
        value = "acme.nodes:Broken"

        @staticmethod
        def load():
            raise ImportError("no such thing")

    def found(group, name=None):
        return [Broken()] if name in (None, Broken.name) else []

    monkeypatch.setattr(kinds, "entry_points", found)
    monkeypatch.setattr(kinds, "_loaded", set())

    result = nodes()

    assert 0 == result.exit_code
    assert list(CONFIGS) == [line.split()[0] for line in result.stdout.splitlines()]
    assert "'acme.broken' is installed, but acme.nodes:Broken" in result.stderr
    assert "cannot be loaded: ImportError: no such thing" in result.stderr


@pytest.mark.parametrize(
    ("name", "told"), [("modle", "did you mean model?"), ("zzz", "there are entry"), ("reasoning", "not run here")]
)
def test_an_unknown_type_exits_2_with_advice(name, told):
    result = nodes(name)

    assert 2 == result.exit_code
    assert told in result.stderr


def test_a_hostile_type_name_is_told_shortly():
    result = nodes("\x1b[31m" + "x" * 100_000)

    assert 2 == result.exit_code
    assert "\x1b" not in result.stderr
    assert len(result.stderr) < 500


def test_the_tool_type_lists_the_built_in_tools_with_their_parameters():
    result = nodes("tool")

    assert 0 == result.exit_code
    assert all(tool.id in result.stdout for tool in default_tools())
    assert "text_split(text, [separator], [regex], [max_splits], [keep_empty])" in result.stdout
