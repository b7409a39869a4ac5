"""What a node asks of a model, and what it gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRequest:
    """One question to one model. `idempotency_key` names the step that asks, the same in all its attempts.

    `response_schema` is the JSON Schema that the answer is held to afterwards, for clients whose server can be
    told of it.
    """

    model: str
    prompt: str
    system: str | None = None
    temperature: float | None = None
    max_tokens: int | None = None
    response_schema: Mapping[str, Any] | None = None
    idempotency_key: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResponse:
    """One answer. Token counts are 0 where the server gives none."""

    text: str
    model: str
    tokens_in: int = 0
    tokens_out: int = 0


class ModelClient(Protocol):
    """Whatever answers requests."""

    async def complete(self, request: ModelRequest) -> ModelResponse:
        """Answer one request; raises ModelError, and obeys cancellation at once."""
        ...
