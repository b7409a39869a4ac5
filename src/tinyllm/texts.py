"""Values as text and text as values: what templates, transforms and tools share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from tinyllm.message import checked_json


def as_text(value: Any) -> str:
    """Text as it is, any other value as JSON on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def parsed(text: str) -> Any:
    """The value of a JSON text; raises ValueError for what is none, or is none that a message could carry."""
    try:
        return checked_json(json.loads(text, parse_constant=_refused))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refused(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def at_path(value: Any, path: str) -> Any:
    """What stands at a dotted path of keys and list indexes; None where there is nothing."""
    for key in path.split("."):
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isascii() and key.isdigit() and len(key) < 10 and int(key) < len(value):
            value = value[int(key)]
        else:
            return None
    return value
