"""Circuit breakers: whether a step may begin, judged by how those before it ended. Pure: no await, no clock.

Michael Nygard, "Release It!", 2007; as in section 5 of docs/semantics.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from tinyllm.config import (
    CircuitBreakerConfig,
    GateConfig,
    ModelConfig,
    NodeDefinition,
    NodeType,
    RouterConfig,
    ToolConfig,
)
from tinyllm.message import ErrorInfo

State = Literal["closed", "open", "half-open"]


@dataclass(frozen=True, slots=True)
class Permit:
    """Leave to begin one step. What comes of it counts only if the breaker has not changed since."""

    generation: int
    probe: bool = False


@dataclass(slots=True)
class CircuitBreaker:
    """One breaker. Times are loop time in nanoseconds."""

    config: CircuitBreakerConfig
    state: State = "closed"
    _failures: int = 0
    _opened_ns: int = 0
    _probing: bool = False
    _generation: int = field(default=0, repr=False)

    def admit(self, now_ns: int) -> Permit | None:
        """Leave to begin a step now, or None: it fails at once. The first after the cooldown is a probe."""
        if self.state == "closed":
            return Permit(self._generation)
        if self.state == "open" and now_ns - self._opened_ns >= round(self.config.cooldown_s * 1e9):
            self._change("half-open")
        if self.state == "open" or self._probing:
            return None
        self._probing = True
        return Permit(self._generation, probe=True)

    def ended(self, permit: Permit, error: ErrorInfo | None, now_ns: int, *, cancelled: bool = False) -> None:
        """A step that was admitted has ended; `error` is None after a success."""
        if permit.generation != self._generation:
            return
        failed = error is not None and error.recoverable and not cancelled
        if error is None and not cancelled:
            self._failures = 0
            if permit.probe:
                self._change("closed")
        elif failed:
            self._failures += 1
            if permit.probe or self._failures >= self.config.threshold:
                self._opened_ns = now_ns
                self._change("open")
        elif permit.probe:
            # It told nothing, so the next step is the probe.
            self._probing = False

    def _change(self, state: State) -> None:
        self.state = state
        self._generation += 1
        self._probing = False
        self._failures = 0


def breaker_key(node: NodeDefinition) -> str | None:
    """The breaker that a node's steps belong to: one per model, tool or custom node; None for all others."""
    config = node.config
    if isinstance(config, ModelConfig):
        return f"model {config.model}"
    if isinstance(config, RouterConfig):
        return f"model {config.model}" if config.mode == "model" else None
    if isinstance(config, GateConfig):
        # A hybrid gate may succeed without asking, which would say nothing about the model.
        return f"model {config.model}" if config.mode == "llm" else None
    if isinstance(config, ToolConfig):
        return f"tool {config.tool_id}"
    return None if node.type in list(NodeType) else f"node {node.id}"
