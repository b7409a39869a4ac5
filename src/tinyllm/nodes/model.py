"""Model: renders a prompt, asks a model, puts out its answer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tinyllm.config import ModelConfig, NodeDefinition
from tinyllm.context import ExecutionContext
from tinyllm.errors import ModelError, NodeError
from tinyllm.expressions import names_of
from tinyllm.message import Message, MessageMetadata, NodeResult
from tinyllm.models.base import ModelRequest, ModelResponse
from tinyllm.nodes.asking import ask, default_prompt, prompt_named, rendered
from tinyllm.nodes.base import BaseNode, passed_payload, success
from tinyllm.schemas import Schema
from tinyllm.texts import parsed

_REPAIR = """{prompt}

Your last answer was:
{answer}

It cannot be used: {problems}
Answer again, with nothing but one JSON object that fits the schema."""
_REPAIR_CHARS_MAX = 4_000


class ModelNode(BaseNode):
    """Asks its model, and within the same attempt its fallback models in order.

    With a `response_schema` the answer must be a JSON object that fits; a model that gave another is told what
    is wrong and asked again, up to `repair_attempts` times.
    """

    def __init__(self, definition: NodeDefinition) -> None:
        super().__init__(definition)
        schema = self.config_as(ModelConfig).response_schema
        self._schema = None if schema is None else Schema(schema)

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(ModelConfig)
        requests = self._requests(config, message, context)
        response, fields = await self._first_answer(requests, config, context)
        payload = passed_payload(message, content=response.text, **fields)
        measured = MessageMetadata(
            model_used=response.model, tokens_in=response.tokens_in, tokens_out=response.tokens_out
        )
        return success(context.child_owning(message, payload, measured), model=response.model)

    def _requests(self, config: ModelConfig, message: Message, context: ExecutionContext) -> list[ModelRequest]:
        prompt, system = self._prompts(config, message, context)
        return [
            ModelRequest(
                model=model,
                prompt=prompt,
                system=system,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
                response_schema=config.response_schema,
                idempotency_key=context.idempotency_key,
            )
            for model in config.models()
        ]

    def _prompts(
        self, config: ModelConfig, message: Message, context: ExecutionContext
    ) -> tuple[str, str | None]:
        """The rendered prompt and system prompt; without a template the content, else the task."""
        names = names_of(message, context.variables)
        system = None if config.system_prompt is None else rendered(config.system_prompt, names)
        template = config.prompt_template
        if template is None:
            template = prompt_named(config.prompt_id, context)
        return (default_prompt(message) if template is None else rendered(template, names)), system

    async def _first_answer(
        self, requests: list[ModelRequest], config: ModelConfig, context: ExecutionContext
    ) -> tuple[ModelResponse, dict[str, Any]]:
        limit_ms = config.fallback_timeout_ms if len(requests) > 1 else None
        failures: list[NodeError] = []
        for request in requests:
            try:
                return await self._good_answer(request, config, context, limit_ms)
            except NodeError as error:
                failures.append(error)
        last = failures[-1]
        if len(failures) == 1:
            raise last
        # A new one: the client may raise the same error again and again.
        asked = [request.model for request in requests]
        text = f"{last.message} (no model answered: {', '.join(asked)})"
        details = {**last.details, "models": asked}
        raise NodeError(last.code, text, details=details, recoverable=last.recoverable) from last

    async def _good_answer(
        self, request: ModelRequest, config: ModelConfig, context: ExecutionContext, limit_ms: int | None
    ) -> tuple[ModelResponse, dict[str, Any]]:
        """One model's answer and, if a schema asks for it, the object that it is."""
        response = await ask(request, context, limit_ms=limit_ms)
        if self._schema is None:
            return response, {}
        for left in range(config.repair_attempts, -1, -1):
            found, problems = _checked(response.text, self._schema)
            if found is not None:
                return response, {"structured": found}
            if left:
                response = await ask(_repairing(request, response, problems), context, limit_ms=limit_ms)
        raise ModelError(f"{request.model} gave no answer that fits its schema: {problems}")


def _checked(answer: str, schema: Schema) -> tuple[dict[str, Any] | None, str]:
    """The object that an answer is, or None and what is wrong with it."""
    try:
        value = parsed(answer)
    except ValueError as error:
        return None, f"it is not JSON ({error})"
    if not isinstance(value, dict):
        return None, f"a JSON object is needed, not {type(value).__name__}"
    problems = schema.problems(value)
    return (None, "; ".join(problems)) if problems else (value, "")


def _repairing(request: ModelRequest, response: ModelResponse, problems: str) -> ModelRequest:
    answer = response.text[:_REPAIR_CHARS_MAX]
    prompt = _REPAIR.format(prompt=request.prompt, answer=answer, problems=problems[:_REPAIR_CHARS_MAX])
    return replace(request, prompt=prompt)
