"""Prompt templates: `{name}` and `{name.key}` become values, `{{name}}` becomes `{name}`, the rest is text."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from tinyllm.errors import TemplateError

_FIELD = r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z0-9_]+)?"
_PLACE = re.compile(rf"\{{\{{({_FIELD})\}}\}}|\{{({_FIELD})\}}")


def render(template: str, names: Mapping[str, Any]) -> str:
    """Replace every `{name}` in one pass; what a value contains is never replaced again.

    Text stands as it is, any other value as JSON. Raises TemplateError for a name that is missing or
    null: a prompt with a hole in it is worse than no prompt.
    """
    return _PLACE.sub(lambda place: _filled(place, names), template)


def _filled(place: re.Match[str], names: Mapping[str, Any]) -> str:
    escaped, field = place.groups()
    if escaped is not None:
        return f"{{{escaped}}}"
    value: Any = names
    for key in field.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        raise TemplateError(f"the template names {{{field}}}, which is missing or null")
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
