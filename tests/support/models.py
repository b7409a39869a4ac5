"""Model clients that say what a test tells them to, and remember what they were asked."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from tinyllm.models.base import ModelRequest, ModelResponse

Said = str | BaseException | tuple[float, "str | BaseException"]


class ScriptedModel:
    """Answers each model name with its text, its exception, or either of them after milliseconds.

    A list gives one of them per call; its last one stays. Every answer costs 3 tokens in and 2 out.
    """

    def __init__(self, answers: Mapping[str, Said | list[Said]] | Said = "ok") -> None:
        self._answers: Mapping[str, Any] = answers if isinstance(answers, Mapping) else {}
        self._plain: Any = "ok" if isinstance(answers, Mapping) else answers
        self.requests: list[ModelRequest] = []
        self._calls: dict[str, int] = {}

    async def complete(self, request: ModelRequest) -> ModelResponse:
        self.requests.append(request)
        number = self._calls.get(request.model, 0)
        self._calls[request.model] = number + 1
        said = self._answers.get(request.model, self._plain)
        if isinstance(said, list):
            said = said[min(number, len(said) - 1)]
        after_ms, said = said if isinstance(said, tuple) else (0, said)
        await asyncio.sleep(after_ms / 1_000)
        if isinstance(said, BaseException):
            raise said
        return ModelResponse(text=said, model=request.model, tokens_in=3, tokens_out=2)

    @property
    def asked(self) -> list[str]:
        """The models asked, in order."""
        return [request.model for request in self.requests]
