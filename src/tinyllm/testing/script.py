"""What every model host does: a pure function of who asks, for the how-manieth time, and when.

The simulated server acts on it and the reference interpreter is told it, so that both speak of the same
world. Answers belong to the node that asks, not to the order in which requests arrive: which task
runs first must never change what a model says.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from tinyllm.config import GateConfig, ModelConfig, NodeConfig, RouterConfig
from tinyllm.graph import Graph, wrapped_by
from tinyllm.testing.faults import CallFaultKind, CutMidBody, FaultPlan, HostDown, Latency, Refused, ServerError
from tinyllm.testing.units import NS_PER_MS

#: How long a healthy host takes to answer.
SERVICE_MS = 10
#: The prompt's tokens, whatever the prompt; an answer has one token for each of its words.
TOKENS_IN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Says:
    """A model answers `text` to a node. None stands for every run, every branch, every call."""

    text: str
    run: int | None = None
    node: str
    branch: str | None = None
    call: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call as the world sees it; `at_ns` is the world's time."""

    run: int
    node: str
    branch: str
    call: int
    model: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What comes of a call after `duration_ns`: a text, or how it fails and by which fault."""

    duration_ns: int
    how: Literal["answered", "refused", "reset", "cut", "error"]
    text: str | None = None
    fault: CallFaultKind | HostDown | None = None
    status: int = 200

    @property
    def tokens_out(self) -> int:
        return len((self.text or "").split())


@dataclass(slots=True)
class Script:
    """Who answers what, and what goes wrong. `hosts` maps each model to its host.

    `healed_at_ns` is when the world was healed: calls that begin later meet no fault; those that began
    before, or at that very moment, keep what they met.
    """

    hosts: Mapping[str, str]
    plain_answer: str = "ok"
    says: tuple[Says, ...] = ()
    faults: FaultPlan = field(default_factory=FaultPlan)
    healed_at_ns: int | None = None
    _said: dict[tuple[object, ...], str] = field(init=False, repr=False)
    _faults: dict[tuple[object, ...], CallFaultKind] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._said = {(s.run, s.node, s.branch, s.call): s.text for s in self.says}
        self._faults = {(f.run, f.node, f.branch, f.call): f.fault for f in self.faults.calls}

    def reply(self, ask: Ask) -> Reply:
        """What this call gives."""
        healed = self.healed_at_ns is not None and ask.at_ns > self.healed_at_ns
        fault = None if healed else self._faults.get((ask.run, ask.node, ask.branch, ask.call))
        delay_ms = fault.delay_ms if isinstance(fault, Latency) else 0
        duration_ns = 0 if isinstance(fault, Refused) else (SERVICE_MS + delay_ms) * NS_PER_MS
        down = None if healed else self._down(self.hosts[ask.model], ask.at_ns, ask.at_ns + duration_ns)
        if down is not None:
            left_ns = max(0, down.start_ms * NS_PER_MS - ask.at_ns)
            return Reply(duration_ns=left_ns, how="reset" if left_ns else "refused", fault=down)
        match fault:
            case Refused():
                return Reply(duration_ns=duration_ns, how="refused", fault=fault)
            case CutMidBody():
                return Reply(duration_ns=duration_ns, how="cut", text=self.answer(ask), fault=fault)
            case ServerError(status=status):
                return Reply(duration_ns=duration_ns, how="error", fault=fault, status=status)
        return Reply(duration_ns=duration_ns, how="answered", text=self.answer(ask), fault=fault)

    def answer(self, ask: Ask) -> str:
        """What the model says when nothing goes wrong: the most particular entry decides."""
        said = self._said
        for run in (ask.run, None):
            for branch in (ask.branch, None):
                for call in (ask.call, None):
                    if (text := said.get((run, ask.node, branch, call))) is not None:
                        return text
        return self.plain_answer

    def _down(self, host: str, from_ns: int, until_ns: int) -> HostDown | None:
        """The fault that has `host` down at `from_ns`, else the first to take it down before `until_ns`."""
        found: list[HostDown] = []
        for fault in self.faults.lasting:
            ends_ns = fault.ends_ms() * NS_PER_MS
            start_ns = fault.start_ms * NS_PER_MS
            begins_before_end = start_ns <= from_ns or start_ns < until_ns
            if fault.host == host and begins_before_end and ends_ns > max(from_ns, start_ns):
                found.append(fault)
        return min(found, key=lambda fault: max(from_ns, fault.start_ms * NS_PER_MS), default=None)


def models_of(config: NodeConfig) -> tuple[str, ...]:
    """The models that a node of this config may ask, in the order in which it asks."""
    if isinstance(config, ModelConfig):
        return config.models()
    if isinstance(config, GateConfig) and config.mode != "expression" and config.conditions:
        return (config.model,)
    if isinstance(config, RouterConfig) and config.mode == "model" and config.routes:
        return (config.model,)
    return ()


def calls_of(config: NodeConfig) -> int:
    """How many calls one attempt of a node of this config may make: each model's first, and its repairs."""
    repairs = config.repair_attempts if isinstance(config, ModelConfig) and config.response_schema is not None else 0
    return len(models_of(config)) * (1 + repairs)


def leaves_of(graph: Graph, node_id: str) -> tuple[str, ...]:
    """The nodes that run when this one does, and wrap nothing: itself, or what lies inside it at any depth."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    waiting = [node_id]
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            inside = wrapped_by(graph.nodes[name].config)
            waiting += reversed(inside)
            if not inside:
                found[name] = None
    return tuple(found)


def hosts_of(graph: Graph) -> dict[str, str]:
    """A simulated host for each model that the graph can ask, in the order of the file."""
    shape = graph.shape
    live = (node for node in graph.definition.nodes if node.id in shape.visitable or node.id in shape.wrapped)
    models = dict.fromkeys(model for node in live for model in models_of(node.config))
    hosts: dict[str, str] = {}
    for model in models:
        hosts[model] = _host_name(model, hosts.values())
    return hosts


def _host_name(model: str, taken: Iterable[str]) -> str:
    """A host name that looks like the model's, and that no other model has."""
    used = set(taken)
    plain = re.sub(r"[^a-z0-9.]+", "-", model.lower()).strip("-.")[:50]
    plain = re.sub(r"\.+", ".", plain) or "model"
    # A host that is all digits and dots would be read as an address.
    name = plain if re.search(r"[a-z]", plain) else f"model-{plain}"
    number = 2
    candidate = name
    while candidate in used:
        candidate = f"{name}-{number}"
        number += 1
    return candidate
