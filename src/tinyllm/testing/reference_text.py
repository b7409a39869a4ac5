"""What the reference interpreter does with text: names, templates, answers, JSON, the steps of a transform.

Nothing here knows time or runs; every function is pure.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import re2

from tinyllm import expressions
from tinyllm.config import (
    CompoundRoute,
    ExtractParams,
    JoinParams,
    PathParams,
    ReplaceParams,
    RouteDefinition,
    RouterConfig,
    SplitParams,
    Step,
    TemplateParams,
    TruncateParams,
    WrapParams,
)
from tinyllm.errors import ExpressionError
from tinyllm.message import MessagePayload, checked_json
from tinyllm.schemas import Schema

SEARCHED_MAX = 100_000  #: No pattern is looked for in a text longer than this.
MATCHES_MAX = 10_000  #: No more of them are replaced.
TEXT_MAX = 1_000_000  #: No step of a transform makes a text longer than this, unless it was longer before.
#: A name, or a name and a key, in a template; only a name if the braces are doubled, which makes them text.
_HOLE = re.compile(r"\{(\{[^\W\d]\w*(?:\.\w+)?\})\}|\{([^\W\d]\w*)(?:\.(\w+))?\}")
_GROUP = re.compile(r"\\(?:(\d+)|g<([^<>]*)>)")


class TextError(ValueError):
    """A template names something that is missing, or a text is not what a step needs."""


@dataclass(frozen=True, slots=True)
class Token:
    """The message at hand: its payload, the fields of its metadata that were set, and the way that was named."""

    payload: MessagePayload
    measured: Mapping[str, Any] = field(default_factory=dict)
    way: str | None = None


# --- names and templates -------------------------------------------------------------------------------


def names_on(token: Token, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What conditions and templates can name on a message."""
    names = token.payload.model_dump(mode="json")
    return {**names, "metadata": {**token.measured, **names["metadata"]}, "variables": dict(variables)}


def holds(condition: str, names: Mapping[str, Any]) -> bool:
    """Whether a condition is true; one that fails is not."""
    try:
        return bool(expressions.parse(condition).evaluate(names))
    except ExpressionError:
        return False


def rendered(template: str, names: Mapping[str, Any]) -> str:
    """`template` with its names replaced; TextError if one is missing or null."""

    def value(hole: re.Match[str]) -> str:
        plain, name, key = hole.groups()
        if plain is not None:
            return plain
        found = names.get(name)
        if key is not None:
            found = found.get(key) if isinstance(found, dict) else None
        if found is None:
            raise TextError(hole.group())
        return as_text(found)

    return _HOLE.sub(value, template)


def has_prompt(template: str | None, token: Token, variables: Mapping[str, Any], system: str | None = None) -> bool:
    """Whether all names of the templates have values; without a template, whether there is content or a task."""
    if template is None and text_of(token.payload) is None:
        return False
    names = names_on(token, variables)
    try:
        rendered(template or "", names)
        rendered(system or "", names)
    except TextError:
        return False
    return True


def text_of(payload: MessagePayload) -> str | None:
    """The content, else the task."""
    return payload.task if payload.content is None else payload.content


def as_text(value: Any) -> str:
    """Text as it stands, every other value as JSON on one line."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def read_json(text: str) -> Any:
    """The JSON value that a text is; TextError if it is none, or none that a message could carry."""
    try:
        return checked_json(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise TextError(str(error)) from None


def at_path(value: Any, path: Iterable[str]) -> Any:
    """What stands at a path of keys and list indexes; None if nothing does."""
    for key in path:
        if isinstance(value, dict):
            value = value.get(key)
        elif isinstance(value, list) and key.isascii() and key.isdigit() and len(key) < 10:
            value = value[int(key)] if int(key) < len(value) else None
        else:
            return None
    return value


def fitting_object(answer: str, schema: Schema) -> dict[str, Any] | None:
    """The object that a model's answer is the JSON of, if it fits; white space around it does not count."""
    try:
        value = read_json(answer.strip())
    except TextError:
        return None
    return value if isinstance(value, dict) and not schema.problems(value) else None


# --- what an answer means ------------------------------------------------------------------------------


def meant(answer: str, names: Sequence[str]) -> int | None:
    """Which name an answer means: the one it equals, else the only one that it mentions. None: none does."""
    index = equalled(answer, names)
    if index is not None:
        return index
    by_name = _by_name(names)
    said = _folded(answer)
    mentioned = [it for name, it in by_name.items() if has_word(said, name)]
    return mentioned[0] if len(mentioned) == 1 else None


def equalled(answer: str, names: Sequence[str]) -> int | None:
    """Which name an answer equals without case and outer white space, then also without outer punctuation."""
    by_name = _by_name(names)
    said = _folded(answer)
    if said in by_name:
        return by_name[said]
    bare = {name: index for name, index in by_name.items() if _bare(said) == _bare(name) != ""}
    # Which punctuation is the name's own: as much of it as the answer has.
    for name in sorted(bare, key=len, reverse=True):
        if name in said:
            return bare[name]
    return next(iter(bare.values()), None)


def has_word(text: str, word: str) -> bool:
    """Whether a folded word stands in a folded text as a whole."""
    return re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text) is not None


def _by_name(names: Sequence[str]) -> dict[str, int]:
    """The place of each name; of equal ones that of the first."""
    by_name: dict[str, int] = {}
    for index, name in enumerate(names):
        by_name.setdefault(_folded(name), index)
    by_name.pop("", None)
    return by_name


def _folded(text: str) -> str:
    return text.strip().casefold()


def _bare(text: str) -> str:
    """`text` without outer white space and punctuation."""
    return text.strip("".join(char for char in text if char.isspace() or unicodedata.category(char)[0] in "PS"))


def with_keyword(config: RouterConfig, content: str | None) -> RouteDefinition | None:
    """The first route with a keyword in the content."""
    for route in config.in_order():
        words = [_folded(keyword) for keyword in route.keywords]
        if any(word and has_word((content or "").casefold(), word) for word in words):
            return route
    return None


def labelled(config: RouterConfig, answer: str) -> tuple[RouteDefinition, ...]:
    """The routes that the parts of an answer name, in the answer's order, each once, at most `max_labels`."""
    routes = config.in_order()
    names = [route.name for route in routes]
    parts = (part for line in answer.splitlines() for part in line.split(","))
    labels = dict.fromkeys(index for part in parts if (index := equalled(part, names)) is not None)
    return tuple(routes[index] for index in [*labels][: config.max_labels])


def compound_of(config: RouterConfig, labels: Sequence[RouteDefinition]) -> CompoundRoute | None:
    """Of the compound routes all of whose domains were named, the one with most, by priority, then in the file."""
    routes = config.in_order()
    names = [route.name for route in routes]

    def is_named(domain: str) -> bool:
        index = equalled(domain, names)
        return index is not None and routes[index] in labels

    possible = [it for it in config.compound_routes if all(is_named(domain) for domain in it.domains)]
    # `max` takes the first of equals.
    return max(possible, key=lambda it: (len(it.domains), it.priority), default=None)


# --- transforms ----------------------------------------------------------------------------------------


def transformed(text: str, step: Step, names: Mapping[str, Any]) -> str:
    """What a step makes of a text; TextError if it fails."""
    result = _PLAIN[step.type](text) if step.type in _PLAIN else _with_params(text, step.params, names)
    if len(result) > max(TEXT_MAX, len(text)):
        raise TextError("too long")
    return result


def _parsed(text: str) -> str:
    read_json(text)
    return text


def _stringified(text: str) -> str:
    try:
        return json.dumps(read_json(text), indent=2, ensure_ascii=False)
    except TextError:
        return json.dumps(text, ensure_ascii=False)


_PLAIN: Mapping[str, Callable[[str], str]] = {
    "uppercase": str.upper,
    "lowercase": str.lower,
    "strip": str.strip,
    "json_parse": _parsed,
    "json_stringify": _stringified,
}


def _with_params(text: str, params: Any, names: Mapping[str, Any]) -> str:
    match params:
        case TruncateParams(max_length=length, suffix=suffix):
            return text if len(text) <= length else text[: max(length - len(suffix), 0)] + suffix[:length]
        case PathParams(path=path):
            return as_text(_present(at_path(read_json(text), path.split("."))))
        case WrapParams(key=key):
            return as_text({key: text})
        case ExtractParams(pattern=pattern, group=group):
            found = _compiled(pattern).search(_searchable(text))
            return str(_present(None if found is None else found.group(group)))
        case ReplaceParams(pattern=pattern, replacement=replacement):
            return _replaced(text, pattern, replacement)
        case TemplateParams(template=template):
            return rendered(template, {**names, "content": text})
        case SplitParams(separator=separator, index=index):
            return _part(text.split(separator), index)
        case JoinParams(separator=separator):
            items = read_json(text)
            if isinstance(items, list):
                return separator.join(as_text(item) for item in items)
    raise TextError("no list")


def _part(parts: list[str], index: int | None) -> str:
    if index is None:
        return as_text(parts)
    if not -len(parts) <= index < len(parts):
        raise TextError("out of range")
    return parts[index]


def _replaced(text: str, pattern: str, replacement: str) -> str:
    pieces: list[str] = []
    end = 0
    # By where they stand, since RE2's bindings tell some empty matches twice.
    matches = {found.span(): found for found in _compiled(pattern).finditer(_searchable(text))}
    if len(matches) > MATCHES_MAX:
        raise TextError("too many matches")
    for found in matches.values():
        pieces += [text[end : found.start()], _expanded(replacement, found)]
        end = found.end()
    return "".join([*pieces, text[end:]])


def _searchable(text: str) -> str:
    if len(text) > SEARCHED_MAX:
        raise TextError("too long to search")
    return text


def _expanded(replacement: str, found: Any) -> str:
    def group(reference: re.Match[str]) -> str:
        number, name = reference.groups()
        is_number = number is not None or name.isdigit()
        return found.group(int(number or name) if is_number else name) or ""

    return _GROUP.sub(group, replacement)


def _present(value: Any) -> Any:
    if value is None:
        raise TextError("nothing found")
    return value


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    return re2.compile(pattern, options)
