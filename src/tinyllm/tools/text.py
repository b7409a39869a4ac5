"""Text tools: split, join, clean, change case, shorten, extract, and regular expressions.

All are pure. Texts have at most 1,000,000 characters, going in and coming out. Regular expressions are RE2's,
whose one search takes linear time; since a search per match adds up, they get shorter texts and a bound on matches.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any

import re2
from pydantic import Field
from typing_extensions import TypedDict

from tinyllm.patterns import found_in
from tinyllm.tools.base import Tool
from tinyllm.tools.decorator import tool
from tinyllm.tools.failures import refusal, text_of

TEXT_CHARS_MAX = 1_000_000
SEARCHED_CHARS_MAX = 100_000
PATTERN_CHARS_MAX = 1_000
MATCHES_MAX = 10_000
#: Unicode's own format for streams allows 30 in a row; sorting a run takes quadratic time.
MARKS_IN_A_ROW_MAX = 100

Text = Annotated[str, Field(max_length=TEXT_CHARS_MAX, description="The text to work on")]
SearchedText = Annotated[str, Field(max_length=SEARCHED_CHARS_MAX, description="The text to search")]
Pattern = Annotated[str, Field(max_length=PATTERN_CHARS_MAX, description="A regular expression (RE2)")]
Flags = Annotated[list[str], Field(max_length=3, description="i: ignore case, m: multi-line, s: dot matches newline")]
Short = Annotated[str, Field(max_length=1_000)]
NotNegative = Annotated[int, Field(ge=0, le=TEXT_CHARS_MAX)]

OF_TEXT = {"input": "text"}


def _short_enough(text: str) -> str:
    if len(text) > TEXT_CHARS_MAX:
        raise refusal(f"the result has {len(text)} characters; at most {TEXT_CHARS_MAX}")
    return text


# --- regular expressions -------------------------------------------------------------------------------


class Match(TypedDict):
    """One match: its text, where it begins and ends (in characters), its groups by number and by name."""

    match: str
    start: int
    end: int
    groups: list[str | None]
    group_dict: dict[str, str | None]


def _compiled(pattern: str, flags: list[str]) -> Any:
    letters = {flag.lower() for flag in flags}
    if unknown := letters - {"i", "m", "s"}:
        raise refusal(f"unknown flag {min(unknown)!r}; known are i, m and s")
    options = re2.Options()
    options.log_errors = False  # they are told, not printed
    prefix = f"(?{''.join(sorted(letters))})" if letters else ""
    try:
        return re2.compile(prefix + pattern, options)
    except re2.error as error:
        reason = error.args[0].decode("utf-8", "replace") if isinstance(error.args[0], bytes) else text_of(error)
        raise refusal(f"the pattern is no regular expression of RE2: {reason}") from None


def _matches(compiled: Any, text: str) -> Iterator[Any]:
    for number, match in enumerate(found_in(compiled, text)):
        if number == MATCHES_MAX:
            raise refusal(f"more than {MATCHES_MAX} matches")
        yield match


@tool(aliases=OF_TEXT)
async def text_regex_match(
    text: SearchedText,
    pattern: Pattern,
    flags: Flags = [],  # noqa: B006 - never changed
    find_all: bool = True,
    include_groups: bool = True,
) -> list[Match]:
    """Find the matches of a regular expression, all or the first; an empty list without any."""
    found: list[Match] = []
    chars = 0
    for match in _matches(_compiled(pattern, flags), text):
        groups = list(match.groups()) if include_groups else []
        named = dict(match.groupdict()) if include_groups else {}
        chars += sum(len(group or "") for group in (match.group(), *groups, *named.values()))
        if chars > TEXT_CHARS_MAX:
            raise refusal(f"the matches have more than {TEXT_CHARS_MAX} characters")
        found.append(Match(match=match.group(), start=match.start(), end=match.end(), groups=groups, group_dict=named))
        if not find_all:
            break
    return found


@tool(aliases=OF_TEXT)
async def text_regex_replace(
    text: SearchedText,
    pattern: Pattern,
    replacement: Annotated[Short, Field(description=r"What to put there; \1 and \g<name> give groups")],
    flags: Flags = [],  # noqa: B006
    count: Annotated[NotNegative, Field(description="How many at most; 0 for all")] = 0,
) -> str:
    r"""Replace the matches of a regular expression; `\1` and `\g<name>` in the replacement give groups."""
    parts: list[str] = []
    end, chars = 0, 0
    for number, match in enumerate(_matches(_compiled(pattern, flags), text)):
        if count and number == count:
            break
        parts += [text[end : match.start()], _expanded(match, replacement)]
        end = match.end()
        chars += len(parts[-1])
        if chars > TEXT_CHARS_MAX:
            raise refusal(f"the result has more than {TEXT_CHARS_MAX} characters")
    return _short_enough("".join([*parts, text[end:]]))


def _expanded(match: Any, replacement: str) -> str:
    # Known before it is built: no group is longer than the match.
    if len(replacement) + replacement.count("\\") * len(match.group()) > 10 * TEXT_CHARS_MAX:
        raise refusal("the replacement repeats groups that are too long")
    try:
        expanded: str = match.expand(replacement)
    except Exception as error:  # noqa: BLE001 - the wrapper of RE2 names no errors of its templates
        raise refusal(f"the replacement does not fit the pattern: {text_of(error)}") from None
    return expanded


# --- parts ---------------------------------------------------------------------------------------------


@tool(aliases=OF_TEXT)
async def text_split(
    text: Text,
    separator: Annotated[Short | None, Field(description="Where to split; null for white space")] = None,
    regex: Annotated[bool, Field(description="Whether the separator is a regular expression")] = False,
    max_splits: Annotated[NotNegative, Field(description="How many splits at most; 0 for all")] = 0,
    keep_empty: bool = False,
) -> list[str]:
    """Split text at a separator, a regular expression, or white space; empty parts are left out unless asked for."""
    if not separator:
        parts = text.split(maxsplit=max_splits or -1)
    elif regex:
        parts = _split_at_matches(text, separator, max_splits)
    else:
        parts = text.split(separator, maxsplit=max_splits or -1)
    return [part for part in parts if part or keep_empty]


def _split_at_matches(text: str, pattern: str, max_splits: int) -> list[str]:
    if len(text) > SEARCHED_CHARS_MAX:
        raise refusal(f"a text of {len(text)} characters; with a regular expression at most {SEARCHED_CHARS_MAX}")
    parts: list[str] = []
    begin = 0
    for match in _matches(_compiled(pattern, []), text):
        if match.end() == match.start():
            continue  # an empty match separates nothing
        if max_splits and len(parts) == max_splits:
            break
        parts.append(text[begin : match.start()])
        begin = match.end()
    return [*parts, text[begin:]]


@tool(aliases={"input": "parts"})
async def text_join(
    parts: Annotated[list[str] | str, Field(description="The texts, or a JSON list of texts")],
    separator: Short = "",
    prefix: Short = "",
    suffix: Short = "",
) -> str:
    """Join texts with a separator between them, a prefix before and a suffix behind."""
    texts = _listed(parts) if isinstance(parts, str) else parts
    chars = sum(map(len, texts)) + len(separator) * max(len(texts) - 1, 0) + len(prefix) + len(suffix)
    if chars > TEXT_CHARS_MAX:
        raise refusal(f"the result has {chars} characters; at most {TEXT_CHARS_MAX}")
    return f"{prefix}{separator.join(texts)}{suffix}"


def _listed(text: str) -> list[str]:
    if len(text) > TEXT_CHARS_MAX:
        raise refusal(f"a text of {len(text)} characters; at most {TEXT_CHARS_MAX}")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise refusal(f"the parts are no JSON list of texts: {text_of(error)}") from None
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise refusal("the parts are no JSON list of texts")
    return value


class Extract(StrEnum):
    """What can be extracted."""

    EMAILS = "emails"
    URLS = "urls"
    PHONES = "phones"
    NUMBERS = "numbers"
    DATES = "dates"
    IPS = "ips"
    HASHTAGS = "hashtags"
    MENTIONS = "mentions"
    WORDS = "words"
    SENTENCES = "sentences"
    LINES = "lines"


_EXTRACTED = {
    Extract.EMAILS: re2.compile(r"[A-Za-z0-9._%+-]+@(?:[A-Za-z0-9-]+\.)+[A-Za-z]{2,}"),
    Extract.URLS: re2.compile(r"(?:https?://|www\.)[^\s<>\"]+"),
    Extract.PHONES: re2.compile(r"\+?\(?[0-9]{1,4}\)?(?:[ ./-]?\(?[0-9]{2,8}\)?){2,4}"),
    Extract.NUMBERS: re2.compile(r"-?[0-9]+(?:\.[0-9]+)?"),
    Extract.DATES: re2.compile(
        r"\b(?:[0-9]{4}[-/][0-9]{1,2}[-/][0-9]{1,2}|[0-9]{1,2}[-/.][0-9]{1,2}[-/.][0-9]{2,4})\b"
    ),
    Extract.IPS: re2.compile(
        r"\b(?:(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])\b"
    ),
    Extract.HASHTAGS: re2.compile(r"#[\p{L}\p{N}_]+"),
    Extract.MENTIONS: re2.compile(r"@[\p{L}\p{N}_]+"),
    Extract.WORDS: re2.compile(r"[\p{L}\p{M}\p{N}_]+"),
}
_SENTENCE_END = re2.compile(r"[.!?][\s\p{Z}]+")


@tool(aliases=OF_TEXT)
async def text_extract(
    text: SearchedText,
    extract_type: Extract,
    unique: Annotated[bool, Field(description="Whether to leave out repeats")] = False,
    limit: Annotated[int, Field(ge=1)] | None = None,
) -> list[str]:
    """Extract what looks like emails, urls, phones, numbers, dates, ips, hashtags or mentions, or all words,
    sentences or lines, in order.
    """
    items = _items(text, extract_type)
    return (list(dict.fromkeys(items)) if unique else items)[:limit]


def _items(text: str, kind: Extract) -> list[str]:
    if kind is Extract.LINES:
        return [line for line in text.splitlines() if line.strip()]
    if kind is Extract.SENTENCES:
        ends = [match.start() + 1 for match in _SENTENCE_END.finditer(text)]
        cut = [text[begin:end].strip() for begin, end in zip([0, *ends], [*ends, len(text)], strict=True)]
        return [sentence for sentence in cut if sentence]
    return [match.group() for match in _EXTRACTED[kind].finditer(text)]


# --- whole texts ---------------------------------------------------------------------------------------


class Clean(StrEnum):
    """Ways of cleaning."""

    WHITESPACE = "whitespace"
    UNICODE = "unicode"
    HTML = "html"
    PUNCTUATION = "punctuation"
    DIGITS = "digits"
    NON_ASCII = "non_ascii"
    LOWERCASE = "lowercase"


_TAG = re2.compile(r"<[^>]+>")


def _normalized(text: str) -> str:
    row = 0
    for char in text:
        row = row + 1 if unicodedata.combining(char) else 0
        if row > MARKS_IN_A_ROW_MAX:
            raise refusal(f"more than {MARKS_IN_A_ROW_MAX} combining marks in a row")
    return unicodedata.normalize("NFC", text)


def _without(text: str, unwanted: Callable[[str], bool]) -> str:
    return "".join(char for char in text if not unwanted(char))


_CLEANED: dict[Clean, Callable[[str], str]] = {
    Clean.WHITESPACE: lambda text: " ".join(text.split()),
    Clean.UNICODE: _normalized,
    Clean.HTML: lambda text: str(_TAG.sub("", text)),
    Clean.PUNCTUATION: lambda text: _without(text, lambda char: char != "_" and unicodedata.category(char)[0] in "PS"),
    Clean.DIGITS: lambda text: _without(text, str.isdecimal),
    Clean.NON_ASCII: lambda text: text.encode("ascii", "ignore").decode("ascii"),
    Clean.LOWERCASE: str.lower,
}


@tool(aliases=OF_TEXT)
async def text_clean(
    text: Text,
    operations: Annotated[list[Clean], Field(max_length=10, description="What to do, in order")] = [Clean.WHITESPACE],  # noqa: B006
) -> str:
    """Clean text: fold white space, normalize Unicode (NFC), drop HTML tags, punctuation and symbols, digits or
    what is not ASCII, lower the case.
    """
    for operation in operations:
        text = _short_enough(_CLEANED[operation](text))
    return text


class Case(StrEnum):
    """Ways of writing."""

    LOWER = "lower"
    UPPER = "upper"
    TITLE = "title"
    CAPITALIZE = "capitalize"
    SWAP = "swap"
    CAMEL = "camel"
    SNAKE = "snake"
    KEBAB = "kebab"


def _words(text: str) -> list[str]:
    """The words of a name: parted by white space, _ or -, or by a capital after anything but a capital."""
    words, begin, before = [], 0, ""
    for place, char in enumerate(text):
        if char.isspace() or char in "_-":
            words.append(text[begin:place])
            begin = place + 1
        elif char.isupper() and not before.isupper():
            words.append(text[begin:place])
            begin = place
        before = char
    return [word for word in (*words, text[begin:]) if word]


def _camel(text: str) -> str:
    first, *rest = _words(text) or [""]
    return first.lower() + "".join(word.capitalize() for word in rest)


_CASED: dict[Case, Callable[[str], str]] = {
    Case.LOWER: str.lower,
    Case.UPPER: str.upper,
    Case.TITLE: str.title,
    Case.CAPITALIZE: str.capitalize,
    Case.SWAP: str.swapcase,
    Case.CAMEL: _camel,
    Case.SNAKE: lambda text: "_".join(_words(text)).lower(),
    Case.KEBAB: lambda text: "-".join(_words(text)).lower(),
}


@tool(aliases=OF_TEXT)
async def text_case(text: Text, operation: Case) -> str:
    """Change case: lower, upper, title, capitalize, swap, or write as camelCase, snake_case or kebab-case."""
    return _short_enough(_CASED[operation](text))


class Position(StrEnum):
    """Where to cut."""

    END = "end"
    START = "start"
    MIDDLE = "middle"


@tool(aliases=OF_TEXT)
async def text_truncate(
    text: Text,
    max_length: Annotated[int, Field(ge=1, le=TEXT_CHARS_MAX, description="Characters at most, the ellipsis included")],
    position: Position = Position.END,
    ellipsis: Short = "...",
    word_boundary: Annotated[bool, Field(description="Whether to cut between words where one is near")] = False,
) -> str:
    """Shorten text to a length that includes the ellipsis; a text that fits is returned as it is."""
    if len(text) <= max_length:
        return text
    room = max_length - len(ellipsis)
    if room <= 0:
        return ellipsis[:max_length]
    front = {Position.END: room, Position.START: 0, Position.MIDDLE: room // 2}[position]
    begin, end = text[:front], text[len(text) - (room - front) :]
    if word_boundary:
        begin, end = _to_last_space(begin), _to_last_space(end[::-1])[::-1]
    return f"{begin}{ellipsis}{end}"


def _to_last_space(text: str) -> str:
    place = text.rfind(" ")
    return text[:place] if place > len(text) // 2 else text


TEXT_TOOLS: tuple[Tool, ...] = (
    *(text_regex_match, text_regex_replace, text_split, text_join),
    *(text_clean, text_case, text_extract, text_truncate),
)
