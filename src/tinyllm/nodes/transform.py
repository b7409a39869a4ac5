"""Transform: changes a text, step by step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

from tinyllm import expressions
from tinyllm.config import (
    GROUP_REFERENCE,
    ExtractParams,
    JoinParams,
    NodeDefinition,
    PathParams,
    ReplaceParams,
    SplitParams,
    Step,
    TemplateParams,
    TransformConfig,
    TruncateParams,
    WrapParams,
)
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, NodeError, TemplateError
from tinyllm.message import Message, NodeResult
from tinyllm.nodes.asking import default_prompt
from tinyllm.nodes.base import BaseNode, passed_on, success
from tinyllm.patterns import compiled, found_in, group_of
from tinyllm.templates import render
from tinyllm.texts import as_text, at_path, parsed

#: A text may not grow beyond this, whatever steps are put together.
TEXT_CHARS_MAX = 1_000_000

#: Bounds of regular expressions: RE2 takes time in proportion to the text for each match.
SEARCHED_CHARS_MAX = 100_000
MATCHES_MAX = 10_000

Change = Callable[[str, Mapping[str, Any]], str]


class TransformNode(BaseNode):
    """Applies its steps to the content, else the task; a step that fails, fails it or is left out."""

    def __init__(self, definition: NodeDefinition) -> None:
        super().__init__(definition)
        self._steps = [(step.type, _change_of(step)) for step in self.config_as(TransformConfig).transforms]

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        text = default_prompt(message)
        names = expressions.names_of(message, context.variables)
        left_out: list[str] = []
        for number, (kind, change) in enumerate(self._steps, start=1):
            try:
                text = _bounded(change(text, names), text)
            except (ValueError, TemplateError) as error:
                what = f"step {number}, {kind}: {error}"
                if self.config_as(TransformConfig).stop_on_error:
                    raise NodeError(ErrorCode.VALIDATION_ERROR, what, details={"step": number}) from None
                left_out.append(what)
        return success(passed_on(message, context, content=text), left_out=left_out)


def _change_of(step: Step) -> Change:
    """What a step does; it raises ValueError, or TemplateError, where it fails."""
    params = step.params
    match step.type:
        case "uppercase":
            return lambda text, _: text.upper()
        case "lowercase":
            return lambda text, _: text.lower()
        case "strip":
            return lambda text, _: text.strip()
        case "json_parse":
            return lambda text, _: _if_json(text)
        case "json_stringify":
            return lambda text, _: _stringified(text)
    match params:
        case TruncateParams():
            return lambda text, _: _truncated(text, params)
        case PathParams():
            return lambda text, _: _found(at_path(parsed(text), params.path), f"nothing stands at {params.path!r}")
        case WrapParams():
            return lambda text, _: json.dumps({params.key: text}, ensure_ascii=False)
        case ExtractParams():
            return lambda text, _: _extracted(text, params)
        case ReplaceParams():
            return lambda text, _: _replaced(text, params)
        case TemplateParams():
            return lambda text, names: render(params.template, {**names, "content": text}, chars_max=TEXT_CHARS_MAX)
        case SplitParams():
            return lambda text, _: _split(text, params)
        case JoinParams():
            return lambda text, _: _joined(text, params)
    raise AssertionError(f"a step of type {step.type} with {type(params).__name__}")


def _bounded(changed: str, before: str) -> str:
    if len(changed) > max(TEXT_CHARS_MAX, len(before)):
        raise ValueError(f"the text would have {len(changed)} characters; at most {TEXT_CHARS_MAX}")
    return changed


def _found(value: Any, otherwise: str) -> str:
    if value is None:
        raise ValueError(otherwise)
    return as_text(value)


def _if_json(text: str) -> str:
    parsed(text)
    return text


def _stringified(text: str) -> str:
    try:
        value = parsed(text)
    except ValueError:
        return json.dumps(text, ensure_ascii=False)
    return json.dumps(value, indent=2, ensure_ascii=False)


def _truncated(text: str, params: TruncateParams) -> str:
    if len(text) <= params.max_length:
        return text
    suffix = params.suffix[: params.max_length]
    return text[: params.max_length - len(suffix)] + suffix


def _require_searchable(text: str) -> None:
    """Refuse texts that a search for match after match takes minutes over: each may look at all that is left."""
    if len(text) > SEARCHED_CHARS_MAX:
        raise ValueError(f"a text of {len(text)} characters; patterns are looked for in at most {SEARCHED_CHARS_MAX}")


def _extracted(text: str, params: ExtractParams) -> str:
    _require_searchable(text)
    match = compiled(params.pattern).search(text)
    group = None if match is None else match.group(group_of(params.pattern, params.group))
    return _found(group, f"{params.pattern!r} finds nothing")


def _replaced(text: str, params: ReplaceParams) -> str:
    _require_searchable(text)
    pieces: list[str] = []
    size, end = 0, 0
    for number, match in enumerate(found_in(compiled(params.pattern), text)):
        if number == MATCHES_MAX:
            raise ValueError(f"more than {MATCHES_MAX} matches")
        pieces += [text[end : match.start()], _expanded(params.replacement, match)]
        end = match.end()
        # Checked as it grows: a long replacement of every character would not fit anywhere.
        size += len(pieces[-2]) + len(pieces[-1])
        if size > max(TEXT_CHARS_MAX, len(text)):
            raise ValueError(f"the text would have more than {TEXT_CHARS_MAX} characters")
    return "".join([*pieces, text[end:]])


def _expanded(replacement: str, match: Any) -> str:
    r"""The replacement with `\1` and `\g<name>` filled in; every other backslash is text."""

    def filled(reference: re.Match[str]) -> str:
        number, name = reference.groups()
        group = match.group(int(number) if number else int(name) if name.isdigit() else name)
        return group or ""

    return GROUP_REFERENCE.sub(filled, replacement)


def _split(text: str, params: SplitParams) -> str:
    parts = text.split(params.separator)
    if params.index is None:
        return json.dumps(parts, ensure_ascii=False)
    if not -len(parts) <= params.index < len(parts):
        raise ValueError(f"there is no part {params.index}; the text has {len(parts)}")
    return parts[params.index]


def _joined(text: str, params: JoinParams) -> str:
    items = parsed(text)
    if not isinstance(items, list):
        raise ValueError(f"a JSON list is needed, not {type(items).__name__}")
    if len(items) * len(params.separator) > TEXT_CHARS_MAX + len(text):
        raise ValueError(f"the text would have more than {TEXT_CHARS_MAX} characters")
    return params.separator.join(as_text(item) for item in items)
