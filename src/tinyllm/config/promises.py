"""What a graph's author claims of it, in `metadata.promises` of its file; the suite holds the graph to it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tinyllm.config.base import MS_MAX
from tinyllm.config.problems import Finding, an_error, first_details, short
from tinyllm.documents import Document, PathKey
from tinyllm.errors import ErrorCode


class Promises(BaseModel):
    """The promises of one graph; None and () promise nothing. See section 9 of docs/semantics.md."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    tolerates_failures: Annotated[int, Field(ge=0, le=100)] | None = None
    answers_within_ms: Annotated[int, Field(ge=1, le=MS_MAX)] | None = None
    never: Annotated[tuple[Annotated[ErrorCode, Field(strict=False)], ...], Field(strict=False)] = ()


def promise_findings(raw: Any, document: Document | None) -> Iterator[Finding]:
    """What is wrong with the value of `metadata.promises`, in the order of the file."""
    path: PathKey = ("metadata", "promises")
    hint = f"Promises are {', '.join(Promises.model_fields)}."
    if not isinstance(raw, dict):
        message = f"promises are a mapping, not a {type(raw).__name__}"
        yield path, an_error("promise", message, value=short(raw), hint=hint)
        return
    try:
        Promises.model_validate(raw)
    except ValidationError as error:
        for detail in first_details(error, path, document):
            found = an_error("promise", _text_of(detail), value=short(detail["input"]), hint=hint)
            yield (*path, *detail["loc"]), found


def _text_of(detail: Any) -> str:
    if detail["type"] == "extra_forbidden":
        return "unknown promise"
    return str(detail["msg"]).replace("Input should", "this should").replace("a valid tuple", "a list, like [TIMEOUT]")
