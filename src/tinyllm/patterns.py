"""Regular expressions of graph files: RE2's, which take time in proportion to the text and so cannot hang."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import re2

from tinyllm.errors import PatternError

_OPTIONS = re2.Options()
#: The library would write what it refuses to stderr; we say it ourselves.
_OPTIONS.log_errors = False
#: What takes more than this when it is compiled takes long as well.
_SMALL = re2.Options()
_SMALL.log_errors = False
_SMALL.max_mem = 1 << 18
PATTERN_CHARS_MAX = 1_000


@lru_cache(maxsize=64)
def compiled(pattern: str) -> Any:
    """The pattern, ready to search; raises PatternError for what RE2 refuses, as back-references."""
    if len(pattern) > PATTERN_CHARS_MAX:
        raise PatternError(f"a pattern of {len(pattern)} characters; at most {PATTERN_CHARS_MAX}")
    try:
        re2.compile(pattern, _SMALL)
        # Searching has all the memory it likes: it would be slower without.
        return re2.compile(pattern, _OPTIONS)
    except re2.error as error:
        reason = error.args[0]
        text = reason.decode("utf-8", "replace") if isinstance(reason, bytes) else str(reason)
        raise PatternError(f"RE2 refuses the pattern: {text[:200]}") from None


def found_in(expression: Any, text: str) -> Iterator[Any]:
    """All matches, left to right, each once: the library gives some empty ones twice (`$`, `\\b`, `(?m)^`)."""
    last: tuple[int, int] | None = None
    for match in expression.finditer(text):
        span = match.span()
        if span != last:
            yield match
        last = span


def group_of(pattern: str, group: int | str) -> int:
    """The number of a group that is named by number or name; raises PatternError if there is none."""
    expression = compiled(pattern)
    number = expression.groupindex.get(group) if isinstance(group, str) else group
    if number is None or not 0 <= number <= expression.groups:
        raise PatternError(f"the pattern has no group {group!r}")
    return int(number)
