"""Prompt templates: `{name}` and `{name.key}` become values, `{{name}}` becomes `{name}`, the rest is text."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tinyllm.errors import TemplateError
from tinyllm.texts import as_text

_FIELD = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)?"
_PLACE = re.compile(rf"\{{\{{({_FIELD})\}}\}}|\{{({_FIELD})\}}")


def render(template: str, names: Mapping[str, Any], *, chars_max: int | None = None) -> str:
    """Replace every `{name}` in one pass; what a value contains is never replaced again.

    Text stands as it is, any other value as JSON. Raises TemplateError for a name that is missing or
    null: a prompt with a hole in it is worse than no prompt; and for a result over `chars_max`.
    """
    size = len(template)

    def filled(place: re.Match[str]) -> str:
        nonlocal size
        text = _filled(place, names)
        size += len(text) - len(place.group())
        if chars_max is not None and size > max(chars_max, len(template)):
            raise TemplateError(f"the text would have more than {chars_max} characters")
        return text

    return _PLACE.sub(filled, template)


def _filled(place: re.Match[str], names: Mapping[str, Any]) -> str:
    escaped, field = place.groups()
    if escaped is not None:
        return f"{{{escaped}}}"
    value: Any = names
    for key in field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        raise TemplateError(f"the template names {{{field}}}, which is missing or null")
    return as_text(value)
