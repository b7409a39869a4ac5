"""What a graph file says, part by part, and how its runs are bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, StringConstraints, model_validator

from tinyllm.config.base import MS_MAX, Count, Milliseconds, NodeConfig, NodeId, NodeIds, Part, Priority
from tinyllm.config.kinds import NodeType, config_class, node_type
from tinyllm.message import JsonObject, Text

Version = Annotated[Text, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]


class NodeDefinition(Part):
    """A node. `config` is of the class that belongs to its type; a mapping is made into one."""

    id: NodeId
    type: NodeType | Text
    name: Text | None = None
    description: Text | None = None
    config: SerializeAsAny[NodeConfig]
    on_error: NodeId | None = None

    @model_validator(mode="before")
    @classmethod
    def _with_its_config(cls, value: Any) -> Any:
        if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
            return value
        kind = config_class(value["type"])
        if kind is None:
            raise ValueError(f"there is no node type '{value['type']}'")
        config = value.get("config")
        if isinstance(config, NodeConfig) and not isinstance(config, kind):
            raise ValueError(f"a node of type '{value['type']}' has a {kind.__name__}, not a {type(config).__name__}")
        if not isinstance(config, NodeConfig):
            config = kind.model_validate({} if config is None else config)
        return {**value, "type": node_type(value["type"]), "config": config}


class EdgeDefinition(Part):
    """A way from one node to another; `weight` has no effect, higher `priority` is asked first."""

    from_node: NodeId
    to_node: NodeId
    condition: Text | None = None
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    priority: Priority = 0


class GraphDefinition(Part):
    """All that a graph file says, well-formed part by part."""

    id: NodeId
    version: Version
    name: Text
    description: Text | None = None
    metadata: JsonObject = Field(default_factory=dict)
    nodes: tuple[NodeDefinition, ...]
    edges: tuple[EdgeDefinition, ...] = ()
    entry_points: NodeIds
    exit_points: NodeIds
    protected: NodeIds = ()
    allow_cycles: bool = False


FailurePolicy = Literal["fail_fast", "skip_failed", "fallback_simple", "best_effort"]


class CircuitBreakerConfig(Part):
    """After `threshold` recoverable failures in a row steps fail at once, until a probe after `cooldown_s` succeeds."""

    threshold: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    cooldown_s: Annotated[float, Field(ge=0, le=MS_MAX / 1_000, allow_inf_nan=False)] = 30.0


class ExecutorConfig(Part):
    """How runs are bounded and what a failed node means, for every run of one executor.

    None stands for no limit, no breaker. `max_messages` and `max_message_bytes` bound what a run holds: its
    input and what each visit put out, as JSON; with `prune` the oldest are dropped before the run is failed.
    """

    max_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    timeout_ms: Milliseconds = 600_000
    cancel_grace_ms: Annotated[int, Field(ge=0, le=MS_MAX)] = 1_000
    failure_policy: FailurePolicy = "fail_fast"
    fallback_response: Text = ""
    max_node_failures: Count = 3
    max_tokens: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    max_messages: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    max_message_bytes: Annotated[int, Field(ge=1, lt=2**63)] | None = None
    prune: bool = False
    breaker: CircuitBreakerConfig | None = None
    max_concurrent_runs: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_queued_runs: Count = 100
    tracing: bool = True
