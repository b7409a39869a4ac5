"""Asking a model on behalf of a node: the prompt, the call, and which of several names the answer means."""

from __future__ import annotations

import asyncio
import unicodedata
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, ModelError, NodeError, TemplateError
from tinyllm.message import Message, checked_text
from tinyllm.models.base import ModelRequest, ModelResponse
from tinyllm.templates import render
from tinyllm.tools.base import is_being_cancelled
from tinyllm.tools.failures import text_of


async def ask(request: ModelRequest, context: ExecutionContext, *, limit_ms: int | None = None) -> ModelResponse:
    """One call of the run's model client; its tokens count for the run.

    Raises ModelError when it fails, whatever the client raised, and NodeError `TIMEOUT` when `limit_ms`
    (None: no limit of its own) is over; what comes at that very moment is late.
    """
    if context.model is None:
        raise NodeError(ErrorCode.MODEL_ERROR, "no model client was handed in", recoverable=False)
    if context.is_over():
        # An answer that came at the very moment of the deadline is late, and nothing may follow from it.
        raise NodeError(ErrorCode.TIMEOUT, f"the time was up before {request.model} could be asked")
    try:
        answer: Any = await _within(limit_ms, context.model.complete(request))
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except NodeError as error:
        if getattr(error, "code", None) in (ErrorCode.MODEL_ERROR, ErrorCode.TIMEOUT):
            raise
        # A call that fails is `MODEL_ERROR`, whatever code its client gave it.
        recoverable = getattr(error, "recoverable", False) is True
        details = getattr(error, "details", None)
        text = f"{request.model}: {text_of(error)}"
        more = {**details} if isinstance(details, dict) else None
        raise ModelError(text, details=more, recoverable=recoverable) from error
    except BaseException as error:
        if isinstance(error, asyncio.CancelledError) and is_being_cancelled():
            raise
        # SystemExit, and a cancellation that nobody asked of us, are only this client's failure too.
        raise ModelError(f"{request.model}: {type(error).__name__}: {text_of(error)}") from error
    if answer is _LATE:
        raise NodeError(ErrorCode.TIMEOUT, f"{request.model} gave no answer within {limit_ms} ms")
    response = _checked(answer, request.model)
    context.count_tokens(response.tokens_in + response.tokens_out)
    return response


def _checked(answer: Any, model: str) -> ModelResponse:
    """A client's answer, or ModelError for what is none: clients are not ours."""
    if not isinstance(answer, ModelResponse):
        raise ModelError(f"{model}: the client gave {type(answer).__name__}, not a ModelResponse")
    for what, given in (("text", answer.text), ("model", answer.model)):
        text: Any = given
        if not isinstance(text, str):
            raise ModelError(f"{model}: the client gave {type(text).__name__} as {what}")
        try:
            checked_text(text)
        except ValueError as error:
            raise ModelError(f"{model}: the client gave a {what} with a {error}") from None
    for count in (answer.tokens_in, answer.tokens_out):
        if type(count) is not int or not 0 <= count < 2**63:
            raise ModelError(f"{model}: the client counted no number of tokens that could be")
    return answer


#: What a call that took too long gives; a client may give None.
_LATE = object()


async def _within(limit_ms: int | None, answer: Awaitable[ModelResponse]) -> object:
    if limit_ms is None:
        return await answer
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_ms / 1_000

    def over() -> bool:
        # Rounded, because equal moments can be different sums of floats.
        return round((deadline - loop.time()) * 1e9) <= 0

    try:
        async with asyncio.timeout_at(deadline):
            response = await answer
    except Exception:
        if not over():
            raise
        return _LATE
    return _LATE if over() else response


def rendered(template: str, names: Mapping[str, Any]) -> str:
    """The template with its names filled in; a name that is missing or null is a `VALIDATION_ERROR`."""
    try:
        return render(template, names)
    except TemplateError as error:
        raise NodeError(ErrorCode.VALIDATION_ERROR, str(error)) from None


def default_prompt(message: Message) -> str:
    """What a model is asked without a template: the content, else the task; without both `VALIDATION_ERROR`."""
    for text in (message.payload.content, message.payload.task):
        if text is not None:
            return text
    raise NodeError(ErrorCode.VALIDATION_ERROR, "there is nothing to ask: content and task are null")


def prompt_named(prompt_id: str | None, context: ExecutionContext) -> str | None:
    """The prompt of this name that was handed to the executor; None for no name, or an unknown one."""
    return None if prompt_id is None else context.prompts.get(prompt_id)


def equal_name(answer: str, names: Sequence[str]) -> str | None:
    """The name that `answer` equals without case and outer white space, else without outer punctuation, or None.

    Of names that differ in their own outer punctuation only, the longest that stands in the answer counts, else the
    first.
    """
    return Names(names).equal(answer)


def meant_name(answer: str, names: Sequence[str]) -> str | None:
    """The name that `answer` means, or None.

    The name that it equals without case and outer white space, and, failing that, without outer
    punctuation; else the only name that occurs in it as a whole word.
    """
    known = Names(names)
    equal = known.equal(answer)
    if equal is not None:
        return equal
    text = answer.casefold()
    occurring = [name for folded, name in known.folded.items() if _stands(folded, text)]
    return occurring[0] if len(occurring) == 1 else None


class Names:
    """Names to compare answers with; of equal ones the first counts, and blank ones never do."""

    def __init__(self, names: Sequence[str]) -> None:
        self.folded: dict[str, str] = {}
        #: Folded names by what is left of them without outer punctuation.
        self._bare: dict[str, list[str]] = {}
        for name in names:
            folded = _folded(name)
            if folded and folded not in self.folded:
                self.folded[folded] = name
                self._bare.setdefault(_bare(name), []).append(folded)
        self._bare.pop("", None)

    def equal(self, answer: str) -> str | None:
        """See `equal_name`."""
        folded = _folded(answer)
        if folded in self.folded:
            return self.folded[folded]
        alike = self._bare.get(_bare(answer), [])
        # Between c, c# and c++ the answer "c++." means the last: of those that stand in it, the longest.
        nearest = max((name for name in alike if name in folded), key=len, default=alike[0] if alike else None)
        return None if nearest is None else self.folded[nearest]


def _folded(text: str) -> str:
    return text.strip().casefold()


def _bare(text: str) -> str:
    """Without outer white space and punctuation of any script (Unicode categories P and S)."""
    start, end = 0, len(text)
    while start < end and _is_outer(text[start]):
        start += 1
    while end > start and _is_outer(text[end - 1]):
        end -= 1
    return text[start:end].casefold()


def _is_outer(character: str) -> bool:
    return character.isspace() or unicodedata.category(character)[0] in "PS"


def occurs(name: str, text: str) -> bool:
    """Whether `name` occurs in `text` as a whole word, ignoring case; a blank name does not."""
    folded = _folded(name)
    return bool(folded) and _stands(folded, text.casefold())


def _stands(word: str, text: str) -> bool:
    """Whether `word` stands in `text` with no letter, digit or underscore on either side."""
    start = text.find(word)
    while start >= 0:
        end = start + len(word)
        if not (start and _is_of_word(text[start - 1])) and not (end < len(text) and _is_of_word(text[end])):
            return True
        start = text.find(word, start + 1)
    return False


def _is_of_word(character: str) -> bool:
    """What `\\w` means in Python's regular expressions."""
    return character.isalnum() or character == "_"
