"""Asking a model on behalf of a node: the prompt, the call, and which of several names the answer means."""

from __future__ import annotations

import asyncio
import re
import string
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, ModelError, NodeError, TemplateError
from tinyllm.message import Message
from tinyllm.models.base import ModelRequest, ModelResponse
from tinyllm.templates import render

_OUTER = string.whitespace + string.punctuation


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
    """What a model is asked without a template: the content, else the task, else nothing."""
    content = message.payload.content
    return content if content is not None else message.payload.task or ""


def meant_name(answer: str, names: Sequence[str]) -> str | None:
    """The name that `answer` means, or None.

    The name that it equals without case and outer white space and punctuation; else the only name that
    occurs in it as a whole word.
    """
    bare = _bare(answer)
    for name in names:
        if bare == _bare(name):
            return name
    lowered = answer.lower()
    occurring = [name for name in dict.fromkeys(names) if _occurs(name.lower(), lowered)]
    return occurring[0] if len({name.lower() for name in occurring}) == 1 else None


def _bare(text: str) -> str:
    return text.strip(_OUTER).lower()


def _occurs(name: str, text: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
