"""Asking a model on behalf of a node: the prompt, the call, and which of several names the answer means."""

from __future__ import annotations

import asyncio
import re
import unicodedata
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, ModelError, NodeError, TemplateError
from tinyllm.message import Message
from tinyllm.models.base import ModelRequest, ModelResponse
from tinyllm.templates import render


async def ask(request: ModelRequest, context: ExecutionContext, *, limit_ms: int | None = None) -> ModelResponse:
    """One call of the run's model client; its tokens count for the run.

    Raises ModelError when it fails, whatever the client raised, and NodeError `TIMEOUT` when `limit_ms`
    (None: no limit of its own) is over; what comes at that very moment is late.
    """
    if context.model is None:
        raise NodeError(ErrorCode.MODEL_ERROR, "no model client was handed in", recoverable=False)
    try:
        response = await _within(limit_ms, context.model.complete(request))
    except NodeError:
        raise
    except Exception as error:
        raise ModelError(f"{request.model}: {type(error).__name__}: {error}") from error
    if response is None:
        raise NodeError(ErrorCode.TIMEOUT, f"{request.model} gave no answer within {limit_ms} ms")
    context.count_tokens(response.tokens_in + response.tokens_out)
    return response


async def _within(limit_ms: int | None, answer: Awaitable[ModelResponse]) -> ModelResponse | None:
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
        return None
    return None if over() else response


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
    """The name that `answer` equals without case and outer white space, else without outer punctuation, or None."""
    for shaped in (_folded, _bare):
        for name in names:
            if shaped(name) and shaped(name) == shaped(answer):
                return name
    return None


def meant_name(answer: str, names: Sequence[str]) -> str | None:
    """The name that `answer` means, or None.

    The name that it equals without case and outer white space, and, failing that, without outer
    punctuation; else the only name that occurs in it as a whole word.
    """
    equal = equal_name(answer, names)
    if equal is not None:
        return equal
    occurring = {folded: name for name in reversed(names) if (folded := _folded(name)) and occurs(name, answer)}
    return next(iter(occurring.values())) if len(occurring) == 1 else None


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
    return bool(folded) and re.search(rf"(?<!\w){re.escape(folded)}(?!\w)", text.casefold()) is not None
