"""Config of a transform: its steps, each with the parameters of its type."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, SerializeAsAny, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from tinyllm.config.base import Name, NodeConfig, Part
from tinyllm.errors import PatternError
from tinyllm.message import Text
from tinyllm.patterns import compiled, group_of

#: `\1` and `\g<name>` in a replacement.
GROUP_REFERENCE = re.compile(r"\\(?:(\d+)|g<([^<>]*)>)")


def groups_named(replacement: str) -> list[int | str]:
    """The groups that a replacement stands for, in order."""
    found = GROUP_REFERENCE.findall(replacement)
    return [int((number or name)[:9]) if (number or name).isdigit() else name for number, name in found]


def _require(check: Callable[[], object]) -> None:
    """Make what RE2 refuses a problem of the field that is being validated."""
    try:
        check()
    except PatternError as error:
        raise PydanticCustomError("pattern", "{problem}", {"problem": str(error)}) from None


class NoParams(Part):
    """A step without parameters."""


class TruncateParams(Part):
    """At most `max_length` characters, `suffix` among them."""

    max_length: Annotated[int, Field(ge=0)]
    suffix: Text = "..."


class PathParams(Part):
    """A dotted path of keys and list indexes."""

    path: Name


class WrapParams(Part):
    """The key under which the text is put."""

    key: Text = "content"


def _known_pattern(pattern: str) -> str:
    _require(lambda: compiled(pattern))
    return pattern


#: Text that RE2 reads as a regular expression.
Pattern = Annotated[Text, AfterValidator(_known_pattern)]


class ExtractParams(Part):
    """The group, by number or name, of the first match."""

    pattern: Pattern
    group: int | Name = Field(default=0, validate_default=True)

    @field_validator("group")
    @classmethod
    def _of_the_pattern(cls, group: int | str, info: ValidationInfo) -> int | str:
        if "pattern" in info.data:
            _require(lambda: group_of(info.data["pattern"], group))
        return group


class ReplaceParams(Part):
    """Every match is replaced; `\\1` and `\\g<name>` in the replacement stand for groups."""

    pattern: Pattern
    replacement: Text

    @field_validator("replacement")
    @classmethod
    def _with_groups_of_the_pattern(cls, replacement: str, info: ValidationInfo) -> str:
        for group in groups_named(replacement) if "pattern" in info.data else ():
            _require(partial(group_of, info.data["pattern"], group))
        return replacement


class TemplateParams(Part):
    """A template; `{content}` is the text so far."""

    template: Text


class SplitParams(Part):
    """The part at `index`; without one a JSON list of all parts."""

    separator: Name
    index: int | None = None


class JoinParams(Part):
    """What stands between the items of a JSON list."""

    separator: Text


StepType = Literal[
    "uppercase",
    "lowercase",
    "strip",
    "truncate",
    "json_parse",
    "json_stringify",
    "json_extract",
    "json_wrap",
    "regex_extract",
    "regex_replace",
    "template",
    "split",
    "join",
]
#: The parameters of each type of step; the others have none.
PARAMS: dict[str, type[Part]] = {
    "truncate": TruncateParams,
    "json_extract": PathParams,
    "json_wrap": WrapParams,
    "regex_extract": ExtractParams,
    "regex_replace": ReplaceParams,
    "template": TemplateParams,
    "split": SplitParams,
    "join": JoinParams,
}


class Step(Part):
    """One transformation; `params` are those of its type. The 0.1 format lets `strip` go without saying."""

    type: StepType = "strip"
    params: SerializeAsAny[Part] = Field(default_factory=dict, validate_default=True)

    @field_validator("params", mode="plain")
    @classmethod
    def _of_its_type(cls, value: Any, info: ValidationInfo) -> Part:
        kind = PARAMS.get(info.data.get("type", ""), NoParams)
        # A refused type says nothing about its parameters.
        return kind.model_validate(value) if "type" in info.data else NoParams()


class TransformConfig(NodeConfig):
    """A transform applies `transforms` in order to the content, text to text."""

    LISTED: ClassVar[Mapping[str, type[Part]]] = {"transforms": Step}

    transforms: Annotated[tuple[Step, ...], Field(strict=False)] = ()
    stop_on_error: bool = True
