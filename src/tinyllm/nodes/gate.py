"""Gate: chooses one of several named ways."""

from __future__ import annotations

from tinyllm import expressions
from tinyllm.config import GateCondition, GateConfig, NodeDefinition
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, ExpressionError, NodeError
from tinyllm.message import Message, NodeResult
from tinyllm.models.base import ModelRequest
from tinyllm.nodes.asking import ask, default_prompt, meant_name, rendered
from tinyllm.nodes.base import BaseNode, passed_on, success

_QUESTION = """Which option fits the content best?

Content: {content}

Options:
{options}

Answer with the name of one option and nothing else."""


class GateNode(BaseNode):
    """Takes the first condition that holds, asks a model (`llm`), or asks only if none holds (`hybrid`)."""

    def __init__(self, definition: NodeDefinition) -> None:
        super().__init__(definition)
        config = self.config_as(GateConfig)
        self._parsed = (
            [] if config.mode == "llm" else [(c, expressions.parse(c.expression)) for c in config.conditions]
        )

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(GateConfig)
        chosen = self._first_that_holds(message, context)
        if chosen is None and config.mode != "expression" and config.conditions:
            chosen = await self._asked(config, message, context)
        if chosen is not None:
            name, target = chosen.name, chosen.target
        elif config.default_target is not None:
            name, target = "default", config.default_target
        else:
            tried = ", ".join(condition.name for condition in config.conditions)
            raise NodeError(
                ErrorCode.GATE_FAILED, f"none of {tried or 'no conditions'} holds and there is no default_target"
            )
        return success(passed_on(message, context, matched_condition=name), target)

    def _first_that_holds(self, message: Message, context: ExecutionContext) -> GateCondition | None:
        names = expressions.names_of(message, context.variables) if self._parsed else {}
        for condition, expression in self._parsed:
            try:
                if expression.evaluate(names):
                    return condition
            except ExpressionError as error:
                context.condition_failed(condition.expression, str(error))
        return None

    async def _asked(
        self, config: GateConfig, message: Message, context: ExecutionContext
    ) -> GateCondition | None:
        request = ModelRequest(
            model=config.model,
            prompt=self._question(config, message, context),
            temperature=0.0,
            idempotency_key=context.idempotency_key,
        )
        response = await ask(request, context)
        name = meant_name(response.text, [condition.name for condition in config.conditions])
        return next((condition for condition in config.conditions if condition.name == name), None)

    def _question(self, config: GateConfig, message: Message, context: ExecutionContext) -> str:
        if config.evaluation_prompt is not None:
            return rendered(config.evaluation_prompt, expressions.names_of(message, context.variables))
        options = "\n".join(f"- {condition.name}: {condition.expression}" for condition in config.conditions)
        return _QUESTION.format(content=default_prompt(message), options=options)
