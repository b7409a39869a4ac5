"""Model: renders a prompt, asks a model, puts out its answer."""

from __future__ import annotations

from tinyllm.config import ModelConfig
from tinyllm.context import ExecutionContext
from tinyllm.errors import NodeError
from tinyllm.expressions import names_of
from tinyllm.message import Message, MessageMetadata, NodeResult
from tinyllm.models.base import ModelRequest, ModelResponse
from tinyllm.nodes.asking import ask, default_prompt, rendered
from tinyllm.nodes.base import BaseNode, passed_payload, success


class ModelNode(BaseNode):
    """Asks its model, and within the same attempt its fallback models in order."""

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(ModelConfig)
        requests = self._requests(config, message, context)
        response = await self._first_answer(requests, config, context)
        output = context.child_of(message, passed_payload(message, content=response.text))
        measured = MessageMetadata(
            model_used=response.model, tokens_in=response.tokens_in, tokens_out=response.tokens_out
        )
        return success(output.model_copy(update={"metadata": measured}), model=response.model)

    def _requests(
        self, config: ModelConfig, message: Message, context: ExecutionContext
    ) -> list[ModelRequest]:
        prompt, system = self._prompts(config, message, context)
        return [
            ModelRequest(
                model=model,
                prompt=prompt,
                system=system,
                temperature=config.temperature,
                max_tokens=config.max_tokens,
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
        if config.prompt_template is not None:
            return rendered(config.prompt_template, names), system
        return default_prompt(message), system

    async def _first_answer(
        self, requests: list[ModelRequest], config: ModelConfig, context: ExecutionContext
    ) -> ModelResponse:
        limit_ms = config.fallback_timeout_ms if len(requests) > 1 else None
        failures: list[NodeError] = []
        for request in requests:
            try:
                return await ask(request, context, limit_ms=limit_ms)
            except NodeError as error:
                failures.append(error)
        last = failures[-1]
        if len(failures) > 1:
            asked = ", ".join(request.model for request in requests)
            last.details["models"] = [request.model for request in requests]
            last.message = f"{last.message} (no model answered: {asked})"
        raise last
