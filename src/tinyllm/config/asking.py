"""Configs of the nodes that ask models or tools, or choose a way: model, router, gate, tool."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from tinyllm.config.base import Milliseconds, Name, Names, NodeConfig, NodeId, Part, Priority
from tinyllm.config.problems import Finding, a_warning, an_error, condition_findings, short
from tinyllm.errors import SchemaError
from tinyllm.message import JsonObject, Text
from tinyllm.schemas import Schema


def _prompt_findings(prompt_id: str | None) -> Iterable[Finding]:
    if prompt_id is not None:
        message = "the built-in prompt is used unless a prompt of this name is handed to the executor"
        yield (("prompt_id",), a_warning("unknown_prompt", message, value=short(prompt_id)))


class ModelConfig(NodeConfig):
    """A model call. `fallback_models` are tried in order within the same attempt."""

    IGNORED: ClassVar[frozenset[str]] = frozenset(
        {"stream", "tools", "tools_enabled", "tool_ids", "output_format", "input_schema", "output_schema"}
    )

    model: Name = "qwen2.5:3b"
    system_prompt: Text | None = None
    prompt_template: Text | None = None
    prompt_id: Text | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.7
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    response_schema: JsonObject | None = None
    repair_attempts: Annotated[int, Field(ge=0, le=100)] = 1
    enable_fallback: bool = True
    fallback_models: Names = ()
    fallback_timeout_ms: Milliseconds | None = None
    fallback_strategy: Text = "sequential"

    def findings(self) -> Iterable[Finding]:
        yield from _prompt_findings(self.prompt_id)
        if self.fallback_strategy != "sequential":
            message = "fallback models are always tried in order"
            yield (("fallback_strategy",), a_warning("ignored_key", message, value=short(self.fallback_strategy)))
        if self.response_schema is not None:
            try:
                Schema(self.response_schema)
            except SchemaError as error:
                hint = "A JSON Schema of an object, as in {type: object, properties: {...}}."
                yield (("response_schema",), an_error("schema", f"this is no JSON Schema: {error}", hint=hint))

    def models(self) -> tuple[str, ...]:
        """The models that one attempt asks, in order."""
        return (self.model, *self.fallback_models) if self.enable_fallback else (self.model,)


class GateCondition(Part):
    """A named way out. In mode `llm` the expression is a description for the model and is not parsed."""

    name: Name
    expression: Text
    target: NodeId


class GateConfig(NodeConfig):
    """A gate takes the first condition that holds, asks a model, or asks only if none holds."""

    LISTED: ClassVar[Mapping[str, type[Part]]] = {"conditions": GateCondition}

    mode: Literal["expression", "llm", "hybrid"] = "expression"
    conditions: Annotated[tuple[GateCondition, ...], Field(strict=False)] = ()
    default_target: NodeId | None = None
    model: Name = "qwen2.5:0.5b"
    evaluation_prompt: Text | None = None

    def findings(self) -> Iterable[Finding]:
        for index, condition in enumerate(self.conditions):
            if self.mode != "llm":
                yield from condition_findings(condition.expression, ("conditions", index, "expression"))
        if not self.conditions and self.default_target is None:
            yield ((), a_warning("gate_without_ways", "a gate without conditions or default_target always fails"))

    def ways(self) -> tuple[str, ...]:
        targets = tuple(condition.target for condition in self.conditions)
        return targets if self.default_target is None else (*targets, self.default_target)

    def references(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        for number, condition in enumerate(self.conditions):
            yield ("conditions", number, "target"), condition.target
        if self.default_target is not None:
            yield ("default_target",), self.default_target


class RouteDefinition(Part):
    """A named way out. `condition` is for the mode `rules`, `keywords` for the mode of that name."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"domains"})

    name: Name
    description: Text = ""
    target: NodeId
    priority: Priority = 0
    condition: Text | None = None
    keywords: Names = ()


class CompoundRoute(Part):
    """A way out for an answer that names all of `domains`, which are names of routes."""

    domains: Annotated[tuple[Name, ...], Field(strict=False, min_length=1)]
    target: NodeId
    priority: Priority = 0


class RouterConfig(NodeConfig):
    """A router asks a model for the name of a route, or takes the first whose rule holds or keyword occurs."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"fanout_enabled", "confidence_threshold"})
    LISTED: ClassVar[Mapping[str, type[Part]]] = {"routes": RouteDefinition, "compound_routes": CompoundRoute}

    mode: Literal["model", "rules", "keywords"] = "model"
    model: Name = "qwen2.5:0.5b"
    prompt_id: Text | None = None
    routes: Annotated[tuple[RouteDefinition, ...], Field(strict=False)] = ()
    default_route: Name | None = None
    multi_label: bool = False
    max_labels: Annotated[int, Field(ge=1, le=1_000)] = 3
    compound_routes: Annotated[tuple[CompoundRoute, ...], Field(strict=False)] = ()

    def findings(self) -> Iterable[Finding]:
        yield from _prompt_findings(self.prompt_id)
        for index, route in enumerate(self.routes):
            yield from self._route_findings(route, index)
        if not self.routes:
            yield ((), a_warning("router_without_ways", "a router without routes always fails"))
        if self.default_route is not None and self.route_named(self.default_route) is None:
            known = f"Routes: {', '.join(route.name for route in self.routes)}."
            message = f"there is no route {short(self.default_route)}"
            yield (("default_route",), an_error("unknown_route", message, hint=known))
        asks = self.mode == "model"
        if self.multi_label and not asks:
            yield (("multi_label",), a_warning("ignored_key", f"'multi_label' has no effect in mode {self.mode!r}"))
        if self.compound_routes and not (self.multi_label and asks):
            message = "compound routes have no effect without multi_label"
            yield (("compound_routes",), a_warning("ignored_key", message))
        names = {route.name.strip().casefold() for route in self.routes}
        for index, compound in enumerate(self.compound_routes):
            for number, name in enumerate(compound.domains):
                if name.strip().casefold() not in names:
                    path = ("compound_routes", index, "domains", number)
                    message = f"there is no route {short(name)}, so this compound route is never taken"
                    yield (path, a_warning("unknown_route", message))

    def _route_findings(self, route: RouteDefinition, index: int) -> Iterable[Finding]:
        path = ("routes", index)
        if self.mode == "rules" and route.condition is None:
            yield (path, an_error("missing_key", "in mode 'rules' a route needs a condition"))
        elif self.mode == "rules" and route.condition is not None:
            yield from condition_findings(route.condition, (*path, "condition"))
        elif route.condition is not None:
            message = f"'condition' has no effect in mode {self.mode!r}"
            yield ((*path, "condition"), a_warning("ignored_key", message))
        if self.mode == "keywords" and not route.keywords:
            yield (path, a_warning("never_taken", f"the route {route.name!r} has no keywords and is never taken"))
        elif self.mode != "keywords" and route.keywords:
            message = f"'keywords' have no effect in mode {self.mode!r}"
            yield ((*path, "keywords"), a_warning("ignored_key", message))

    def route_named(self, name: str) -> RouteDefinition | None:
        """The first route of this name, in order; without case and outer white space."""
        folded = name.strip().casefold()
        return next((route for route in self.in_order() if route.name.strip().casefold() == folded), None)

    def in_order(self) -> tuple[RouteDefinition, ...]:
        """The routes as they are asked: by priority, then in the order of the file."""
        return tuple(sorted(self.routes, key=lambda route: -route.priority))

    def ways(self) -> tuple[str, ...]:
        return tuple(target for _, target in self.references())

    def references(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        for number, route in enumerate(self.routes):
            yield ("routes", number, "target"), route.target
        for number, compound in enumerate(self.compound_routes):
            yield ("compound_routes", number, "target"), compound.target


class ToolConfig(NodeConfig):
    """A tool call. `input_mapping` gives each parameter the value of a dotted payload field."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"output_field", "input_schema", "output_schema"})

    tool_id: Name
    input_mapping: Annotated[dict[Name, Name], Field(strict=False)] = Field(default_factory=dict)
    continue_on_error: bool = False

    def mapping(self) -> dict[str, str]:
        """Which payload field each parameter gets: as configured, else `input` gets `content`."""
        configured: dict[str, Any] = self.input_mapping
        return configured or {"input": "content"}
