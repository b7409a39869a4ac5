"""Router: chooses one of several routes by a model's answer, by rules, or by keywords."""

from __future__ import annotations

from collections.abc import Sequence

from tinyllm import expressions
from tinyllm.config import CompoundRoute, NodeDefinition, RouteDefinition, RouterConfig
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, ExpressionError, NodeError
from tinyllm.message import Message, NodeResult
from tinyllm.models.base import ModelRequest
from tinyllm.nodes.asking import Names, ask, default_prompt, meant_name, occurs, prompt_named, rendered
from tinyllm.nodes.base import BaseNode, passed_on, success

_QUESTION = """Which route fits this request best?

Request: {content}

Routes:
{routes}

Answer with the name of one route and nothing else."""
_QUESTION_LABELS = """Which routes does this request belong to?

Request: {content}

Routes:
{routes}

Answer with the names of at most {most} routes, separated by commas, and nothing else."""


class RouterNode(BaseNode):
    """Publishes the route it takes as `route`, `routes` and `compound_route`."""

    def __init__(self, definition: NodeDefinition) -> None:
        super().__init__(definition)
        config = self.config_as(RouterConfig)
        self._routes = config.in_order()
        self._rules = [
            (route, expressions.parse(route.condition))
            for route in self._routes
            if config.mode == "rules" and route.condition is not None
        ]

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(RouterConfig)
        route: RouteDefinition | None
        if config.mode == "model" and self._routes:
            answer = await self._answer(config, message, context)
            if config.multi_label:
                return self._labelled(config, answer, message, context)
            name = meant_name(answer, [route.name for route in self._routes])
            route = next((route for route in self._routes if route.name == name), None)
        elif config.mode == "model":
            # Nothing to choose from, so nothing is asked; a message without a question fails all the same.
            default_prompt(message)
            route = None
        elif config.mode == "rules":
            route = self._first_that_holds(message, context)
        else:
            route = self._first_with_a_keyword(message.payload.content or "")
        return self._taken(route or self._default(config), message, context)

    def _first_that_holds(self, message: Message, context: ExecutionContext) -> RouteDefinition | None:
        names = expressions.names_of(message, context.variables)
        for route, rule in self._rules:
            try:
                if rule.evaluate(names):
                    return route
            except ExpressionError as error:
                context.condition_failed(rule.source, str(error))
        return None

    def _first_with_a_keyword(self, content: str) -> RouteDefinition | None:
        return next((r for r in self._routes if any(occurs(keyword, content) for keyword in r.keywords)), None)

    def _default(self, config: RouterConfig) -> RouteDefinition:
        route = None if config.default_route is None else config.route_named(config.default_route)
        if route is None:
            tried = ", ".join(route.name for route in self._routes)
            text = f"none of {tried or 'no routes'} was chosen and there is no default_route"
            raise NodeError(ErrorCode.ROUTING_ERROR, text)
        return route

    # --- asking ------------------------------------------------------------------------------------

    async def _answer(self, config: RouterConfig, message: Message, context: ExecutionContext) -> str:
        request = ModelRequest(
            model=config.model,
            prompt=self._question(config, message, context),
            temperature=0.0,
            idempotency_key=context.idempotency_key,
        )
        return (await ask(request, context)).text

    def _question(self, config: RouterConfig, message: Message, context: ExecutionContext) -> str:
        template = prompt_named(config.prompt_id, context)
        if template is not None:
            return rendered(template, expressions.names_of(message, context.variables))
        routes = "\n".join(f"- {route.name}: {route.description}" for route in self._routes)
        question = _QUESTION_LABELS if config.multi_label else _QUESTION
        return question.format(content=default_prompt(message), routes=routes, most=config.max_labels)

    # --- several labels ----------------------------------------------------------------------------

    def _labelled(
        self, config: RouterConfig, answer: str, message: Message, context: ExecutionContext
    ) -> NodeResult:
        names = [route.name for route in self._routes]
        labels = labels_of(answer, names)[: config.max_labels]
        compound = best_compound(config.compound_routes, labels, names)
        if compound is not None:
            published = {"route": "+".join(compound.domains), "routes": labels, "compound_route": True}
            return success(passed_on(message, context, **published), compound.target)
        route = next((route for route in self._routes if route.name in labels), None)
        return self._taken(route or self._default(config), message, context, labels)

    def _taken(
        self,
        route: RouteDefinition,
        message: Message,
        context: ExecutionContext,
        labels: Sequence[str] = (),
    ) -> NodeResult:
        published = {"route": route.name, "routes": [*labels] or [route.name], "compound_route": False}
        return success(passed_on(message, context, **published), route.target)


def labels_of(answer: str, names: Sequence[str]) -> list[str]:
    """The names that the parts of an answer equal, each once, in the order of the answer."""
    known = Names(names)
    parts = (part for line in answer.splitlines() for part in line.split(","))
    found = (known.equal(part) for part in parts)
    return [*dict.fromkeys(name for name in found if name is not None)]


def best_compound(
    routes: Sequence[CompoundRoute], labels: Sequence[str], names: Sequence[str]
) -> CompoundRoute | None:
    """Of the compound routes whose domains are all among the labels, the one with most domains; then by priority.

    A domain is that of the names it equals: `C++` is no `c` because only `c` was answered.
    """
    known = Names(names)
    matching = [route for route in routes if all(known.equal(domain) in labels for domain in route.domains)]
    return max(matching, key=lambda route: (len(route.domains), route.priority), default=None)
