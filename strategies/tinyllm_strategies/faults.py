"""What goes wrong: scattered, where one byte decides one call, or stubborn, at every call of a step.

Scattered faults are drawn densely, and 0 always means that nothing happens.
"""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import strategies as st

from tinyllm.config import ModelConfig, NodeConfig
from tinyllm.graph import Graph
from tinyllm.testing.faults import CallFaultKind, CutMidBody, FaultPlan, HostDown, Latency, OnCall, Refused, ServerError
from tinyllm.testing.script import SERVICE_MS, calls_of, hosts_of
from tinyllm_strategies.answers import voices

#: Calls of one voice in one run that a fault can hit.
CALLS_PER_VOICE = 4
BYTES_MAX = 512
#: Calls that stubborn faults can hit: of one step, and of one life.
STUBBORN_PER_STEP, STUBBORN_MAX = 32, 128
#: With the time of service some of them meet the limits of drawn wrappers to the moment.
LATENCIES_MS = (1, 5, 7, 100, 1_000, 60_000)
RATES = (0.3, 0.1, 0.6)
FAMILIES = ("network", "model")


@st.composite
def fault_plans(draw: st.DrawFn, graph: Graph, *, runs: int, lasting: int = 2) -> FaultPlan:
    """Faults on the calls of `runs` runs, and at most `lasting` hosts that go down for a while.

    Which families may happen at all is drawn first, because most bugs need few. Shrinks to no fault.
    """
    families: Sequence[str] = draw(st.sampled_from((FAMILIES, FAMILIES[:1], FAMILIES[1:])))
    # Both kinds are drawn, whichever is used: of two branches the one with fewer choices would count as simpler.
    stubborn = draw(_stubborn(graph, families))
    rate = draw(st.sampled_from(RATES))
    slots = _slots(graph, runs)
    data = draw(st.binary(min_size=len(slots), max_size=len(slots)))
    scattered = decode_faults(data, slots, graph, families=families, rate=rate)
    calls = stubborn if draw(st.booleans()) else scattered
    hosts = _hosts(graph)
    down = draw(st.lists(host_downs(hosts), max_size=lasting)) if hosts else []
    return FaultPlan(calls=calls, lasting=tuple(down) if "model" in families else ())


def host_downs(hosts: Sequence[str]) -> st.SearchStrategy[HostDown]:
    """One host that is down for a while. Shrinks to the first one, down from the start until healed."""
    return st.builds(
        HostDown,
        host=st.sampled_from(hosts),
        start_ms=st.sampled_from((0, 5, SERVICE_MS, 15, 1_000)),
        duration_ms=st.sampled_from((None, 1, SERVICE_MS, 1_000, 60_000)),
    )


Slot = tuple[int, int, str, str]


def _slots(graph: Graph, runs: int) -> list[Slot]:
    """The calls that bytes decide, as (call, run, node, branch): first calls first."""
    spoken = voices(graph)
    slots = [(call, run, *voice) for call in range(CALLS_PER_VOICE) for run in range(runs) for voice in spoken]
    return slots[:BYTES_MAX]


def decode_faults(
    data: bytes, slots: Sequence[Slot], graph: Graph, *, families: Sequence[str], rate: float
) -> tuple[OnCall, ...]:
    """Byte k decides slot k: from `256 * (1 - rate)` up it is a fault, below none; a missing byte is none."""
    faults = []
    for byte, (call, run, node, branch) in zip(data, slots, strict=False):
        kinds = _kinds(graph.nodes[node].config.timeout_ms, families)
        threshold = min(round(256 * (1 - rate)), 256 - len(kinds))
        if byte and byte >= threshold:
            fault = kinds[(byte - threshold) % len(kinds)]
            faults.append(OnCall(run=run, node=node, branch=branch, call=call, fault=fault))
    return tuple(faults)


@st.composite
def _stubborn(draw: st.DrawFn, graph: Graph, families: Sequence[str]) -> tuple[OnCall, ...]:
    """What retries and fallback models are made for: in the first run one fault hits every call of a step.

    Or every call but the last, which is answered just in time. All voices are spared, hit, or hit but for
    the last call, but one in four draws a way of its own. Shrinks to all spared.
    """
    spoken = voices(graph)
    for_all, number = draw(st.sampled_from((0, 1, 1, 2))), draw(st.integers(0, 3))
    modes = draw(st.binary(min_size=len(spoken), max_size=len(spoken)))
    faults: list[OnCall] = []
    for (node, branch), byte in zip(spoken, modes, strict=True):
        hits = _hits(graph.nodes[node].config, families, number, mode=byte % 3 if byte >= 192 else for_all)
        faults += [OnCall(run=0, node=node, branch=branch, call=call, fault=hit) for call, hit in enumerate(hits)]
    return tuple(faults[:STUBBORN_MAX])


def _hits(config: NodeConfig, families: Sequence[str], number: int, *, mode: int) -> list[CallFaultKind]:
    """The faults of one step's calls: mode 0 none, 1 all, 2 all but the last, which is only just in time."""
    if mode == 0:
        return []
    late_ms = max(0, _limit_ms(config) - SERVICE_MS)
    late = Latency(delay_ms=late_ms)
    slow: list[CallFaultKind] = [late, late, Refused()]
    kinds = [*(slow if "network" in families else []), *([ServerError()] if "model" in families else [])]
    count = min((1 + config.retry_count) * calls_of(config), STUBBORN_PER_STEP)
    hits = [kinds[number % len(kinds)]] * count
    if mode == 2 and "network" in families:
        hits[-1] = Latency(delay_ms=max(0, late_ms - 1))
    return hits


def _limit_ms(config: NodeConfig) -> int:
    """How long one call of a node of this config may take."""
    if isinstance(config, ModelConfig) and config.fallback_timeout_ms is not None and len(config.models()) > 1:
        return min(config.timeout_ms, config.fallback_timeout_ms)
    return config.timeout_ms


def _kinds(timeout_ms: int, families: Sequence[str]) -> list[CallFaultKind]:
    """Every kind of fault of these families; one latency makes the answer arrive at the moment of the deadline."""
    kinds: list[CallFaultKind] = []
    if "network" in families:
        just_late_ms = max(0, timeout_ms - SERVICE_MS)
        kinds += [Refused(), CutMidBody(), *(Latency(delay_ms=ms) for ms in (*LATENCIES_MS, just_late_ms))]
    if "model" in families:
        kinds += [ServerError(), ServerError(status=503)]
    return kinds


def _hosts(graph: Graph) -> list[str]:
    return list(dict.fromkeys(hosts_of(graph).values()))
