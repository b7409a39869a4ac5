"""Problems of a graph file without their place, in our words, and values on one short line."""

from __future__ import annotations

import difflib
import heapq
import reprlib
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from pydantic import ValidationError

from tinyllm import expressions
from tinyllm.documents import Document, PathKey, Position
from tinyllm.errors import ExpressionError, Problem

PROBLEMS_MAX = 100
#: Names of one condition that a likeness is looked for; the search is slow, and a hostile file holds only such names.
LIKENESSES_MAX = 3
#: Longer texts are cut where a problem shows them.
SHOWN_CHARS_MAX = 60

Finding = tuple[PathKey, Problem]

#: Names that a condition can count on: the payload's fields, what nodes publish in it, and the two mappings.
KNOWN_NAMES = (
    *("task", "content", "structured", "route", "confidence", "tool_call", "tool_result", "tool_calls"),
    *("error", "metadata", "variables", "matched_condition", "routes", "compound_route"),
)
#: What a loop's conditions know beside those.
LOOP_NAMES = (
    *("iteration", "success_count", "failure_count", "results"),
    *("last_result", "last_success", "last_output", "last_error"),
)


def an_error(code: str, message: str, **more: Any) -> Problem:
    """An error without its place, which `Reader.report` adds."""
    return Problem(code=code, message=message, path="", **more)


def a_warning(code: str, message: str, **more: Any) -> Problem:
    """A warning without its place, which `Reader.report` adds."""
    return Problem(code=code, message=message, path="", severity="warning", **more)


def placed(problem: Problem, path: PathKey, document: Document | None) -> Problem:
    """`problem`, found at `path` of the document, with its position there; without a document it has none."""
    line, column = (document.position(path) if document else None) or (None, None)
    return replace(problem, path=spelled(path), line=line, column=column)


#: Conditions have Python's syntax, and these are YAML's and JSON's.
_PYTHON_SPELLS = {"true": "True", "false": "False", "null": "None", "none": "None"}


def condition_findings(source: str, path: PathKey, known: tuple[str, ...] = KNOWN_NAMES) -> Iterable[Finding]:
    """An error if the condition does not parse; a warning for each name that nothing is known to set."""
    try:
        expression = expressions.parse(source)
    except ExpressionError as error:
        yield (path, an_error("condition", f"the condition {error}", value=short(source)))
        return
    unknown = [name for name in expression.names if name not in known]
    for number, name in enumerate(unknown):
        close = likeness(name, known) if number < LIKENESSES_MAX else None
        close = _PYTHON_SPELLS.get(name, close)
        hint = f"Did you mean {close}?" if close else "A payload key that is not set is null."
        message = f"nothing is known to set {short(name)}"
        yield (path, a_warning("unknown_name", message, value=short(source), hint=hint))


def spelled(path: PathKey) -> str:
    """A path as people write it: `nodes[3].config.timeout_ms`; a key that is no name stands in brackets and quotes."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        elif key.isidentifier() and len(key) <= SHOWN_CHARS_MAX:
            text += f".{key}" if text else key
        else:
            text += f"[{short(key)}]"
    return text


_SHOWN = reprlib.Repr()
_SHOWN.maxlist = _SHOWN.maxdict = 20
_SHOWN.maxstring = _SHOWN.maxlong = _SHOWN.maxother = SHOWN_CHARS_MAX


def short(value: Any) -> str:
    """`value` on one short line. Never spelled out in full first: through aliases a small file holds gigabytes."""
    if isinstance(value, str) and len(value) > SHOWN_CHARS_MAX:
        return f"{value[:57]!r}... ({len(value)} characters)"
    try:
        text = repr(value) if isinstance(value, str) else _SHOWN.repr(value)
    except ValueError:  # an integer too long for Python to print
        return type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def likeness(word: str, known: Iterable[str]) -> str | None:
    """The known word that `word` looks most like, if one does."""
    found = difflib.get_close_matches(word[:SHOWN_CHARS_MAX], known, 1)
    return found[0] if found else None


def first_in_file(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """As many problems as are told, in the order of the file."""
    return tuple(sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0))[:PROBLEMS_MAX])


def first_details(error: ValidationError, path: PathKey, document: Document | None) -> list[Any]:
    """What pydantic found wrong with the value at `path`, in the order of the file: as much as is told."""

    def place(detail: Any) -> Position:
        return (document and document.position((*path, *detail["loc"]))) or (0, 0)

    details = error.errors(include_url=False, include_context=False)
    # "At least 1 item" counts only the items that passed; those that did not are told one by one.
    told = (detail for detail in details if detail["type"] != "too_short" or not detail["input"])
    return heapq.nsmallest(PROBLEMS_MAX, told, place)
