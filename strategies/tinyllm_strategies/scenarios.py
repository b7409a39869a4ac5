"""Whole lives of a world: inputs, answers, faults and schedule as one value with one shrinker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from hypothesis import strategies as st

from tinyllm.config import CircuitBreakerConfig, ExecutorConfig, FailurePolicy, FanoutConfig
from tinyllm.graph import Graph
from tinyllm.testing.faults import FaultPlan, HostDown
from tinyllm.testing.graph_world import RunPlan
from tinyllm.testing.scenario import Scenario
from tinyllm.testing.script import Says, hosts_of, leaves_of
from tinyllm_strategies.answers import answers_for, short_answers, voices
from tinyllm_strategies.faults import fault_plans
from tinyllm_strategies.graphs import graphs
from tinyllm_strategies.messages import task_texts
from tinyllm_strategies.schedules import schedules

RUNS_MAX = 3
#: Different answers in one life; few, so that models agree now and then.
ANSWERS_MAX = 4
#: Answers of one voice that bytes decide: what it always says, then its first calls.
SAYINGS_PER_VOICE = 3
SAYINGS_MAX = 256
#: Bytes below this one leave an answer the plain one.
PLAIN_BELOW = 80
#: Nodes that can say something else than the rest while hosts are down.
SPEAKERS_MAX = 8


_STARTS = st.sampled_from((0, 0, 5, 10, 1_000))
_CONTEXTS = st.sampled_from((None, None, "", "some context"))
_CANCELS = st.sampled_from((*[None] * 45, 0, 5, 10, 15, 1_000))
_POLICIES: st.SearchStrategy[FailurePolicy] = st.sampled_from((*get_args(FailurePolicy), "skip_failed"))
_LIMITS: st.SearchStrategy[dict[str, Any]] = st.sampled_from(
    (
        *[{}] * 40,
        *({"max_steps": steps} for steps in (0, 1, 3, 4, 5, 8)),
        *({"timeout_ms": timeout_ms} for timeout_ms in (10, 20, 25, 1_010)),
        *({"max_tokens": tokens} for tokens in (0, 4, 8, 12)),
        *({"max_messages": held, "prune": prune} for held in (1, 2, 4) for prune in (False, True)),
        *(
            {"breaker": CircuitBreakerConfig(threshold=threshold, cooldown_s=cooldown_s)}
            for threshold in (1, 2, 2, 1, 2, 1, 1, 2)
            for cooldown_s in (1.0, 0.0, 0.01, 0.02, 30.0)
        ),
        *[{}] * 40,
    )
)
_STORMY = st.sampled_from((False, True, True))
_TIMED = st.sampled_from((False, False, False, True))
_SPELLED = st.sampled_from((False, True, True))
_NO_CANCELS = st.none()
_TASKS = task_texts()


def run_plans(*, contents: st.SearchStrategy[str] | None = None, cancels: bool = False) -> st.SearchStrategy[RunPlan]:
    """One run; its content is a plain question or one of `contents`. Shrinks to empty content, not cancelled."""
    asked = _TASKS if contents is None else _TASKS | contents
    moments = _CANCELS if cancels else _NO_CANCELS
    return st.builds(RunPlan, content=asked, context=_CONTEXTS, start_ms=_STARTS, cancel_after_ms=moments)


@st.composite
def executor_configs(draw: st.DrawFn) -> ExecutorConfig:
    """Policies, and now and then a limit that really bites. Shrinks to the defaults under `fail_fast`."""
    limits = draw(_LIMITS)
    policy = draw(_POLICIES)
    if "breaker" in limits and policy == "fail_fast":
        # What a breaker refuses comes after a failure, and needs a run that goes on.
        policy = "skip_failed"
    if policy == "fail_fast":
        return ExecutorConfig(**limits)
    return ExecutorConfig(
        **limits,
        failure_policy=policy,
        fallback_response=draw(st.sampled_from(("", "a", "sorry"))),
        max_node_failures=draw(st.sampled_from((3, 0, 1))),
    )


@dataclass(frozen=True, slots=True)
class _Cast:
    """What the lives of one graph have in common, found once and not for every example."""

    graph: Graph
    hosts: tuple[str, ...]
    voices: tuple[tuple[str, str], ...]
    answers: st.SearchStrategy[str]

    @property
    def speakers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(node for node, _ in self.voices))


def scenarios(
    graph: Graph,
    *,
    config: ExecutorConfig | None = None,
    answers: st.SearchStrategy[str] | None = None,
    cancels: bool = False,
    tolerated: int = 0,
) -> st.SearchStrategy[Scenario]:
    """Lives of this graph, with `answers` (default: `answers_for(graph)`).

    `tolerated` hosts are, in half of the lives, all that goes wrong: they are down throughout.
    Shrinks to one run in which every model says `ok`, stock asyncio decides and nothing goes wrong, unless
    hosts are tolerated: then the first ones are down.
    """
    hosts = tuple(dict.fromkeys(hosts_of(graph).values()))
    cast = _Cast(graph, hosts, tuple(voices(graph)), answers_for(graph) if answers is None else answers)
    stormy = _storms(cast, config or ExecutorConfig(), cancels)
    if not tolerated or not hosts:
        return stormy
    return stormy | _with_hosts_down(cast, config or ExecutorConfig(), tolerated)


@st.composite
def _storms(draw: st.DrawFn, cast: _Cast, config: ExecutorConfig, cancels: bool) -> Scenario:
    # Runs share their circuit breakers, and the reference knows of one run only.
    most = RUNS_MAX if config.breaker is None else 1
    runs = tuple(draw(st.lists(run_plans(contents=cast.answers, cancels=cancels), min_size=1, max_size=most)))
    pool = draw(st.lists(cast.answers, min_size=2, max_size=ANSWERS_MAX, unique=True))
    if draw(_SPELLED):
        # Spelled otherwise it is the same vote, and another payload.
        pool.append(f" {pool[0].upper()}\n")
    says = _sayings(draw, cast, runs=len(runs), pool=pool)
    stormy = draw(_STORMY)
    faults = draw(fault_plans(cast.graph, runs=len(runs))) if stormy else FaultPlan()
    timed = draw(_TIMED) if stormy else False
    return Scenario(
        runs=runs,
        plain_answer=pool[0],
        says=says,
        faults=faults,
        schedule=draw(schedules(timed=timed, max_size=16)),
        seed=draw(st.integers(0, 255)),
        config=config,
    )


def _sayings(draw: st.DrawFn, cast: _Cast, *, runs: int, pool: Sequence[str]) -> tuple[Says, ...]:
    """Byte k decides one answer: a small one is the plain one, which others then agree with; else pool number
    `byte % len(pool)`."""
    slots = [Says(text="", node=node) for node in cast.speakers]
    slots += [
        Says(text="", run=run, node=node, branch=branch, call=call)
        for call in range(SAYINGS_PER_VOICE)
        for run in range(runs)
        for node, branch in cast.voices
    ]
    slots = slots[:SAYINGS_MAX]
    data = draw(st.binary(min_size=len(slots), max_size=len(slots)))
    return tuple(
        _saying(slot, pool[byte % len(pool)])
        for byte, slot in zip(data, slots, strict=True)
        if byte >= PLAIN_BELOW and byte % len(pool)
    )


def _saying(slot: Says, text: str) -> Says:
    return Says(text=text, run=slot.run, node=slot.node, branch=slot.branch, call=slot.call)


@st.composite
def _with_hosts_down(draw: st.DrawFn, cast: _Cast, config: ExecutorConfig, tolerated: int) -> Scenario:
    """One run with that many hosts down throughout, or all there are; the targets of each fanout agree."""
    down = draw(st.permutations(cast.hosts))[:tolerated]
    plain = draw(cast.answers)
    others = draw(st.fixed_dictionaries({}, optional=dict.fromkeys(cast.speakers[:SPEAKERS_MAX], cast.answers)))
    return Scenario(
        runs=(RunPlan(content=draw(task_texts() | cast.answers), context=draw(st.none() | st.just("some context"))),),
        plain_answer=plain,
        says=tuple(Says(text=text, node=node) for node, text in _agreed(cast.graph, others).items() if text != plain),
        faults=FaultPlan(lasting=tuple(HostDown(host=host) for host in down)),
        config=config,
    )


def _agreed(graph: Graph, answers: dict[str, str]) -> dict[str, str]:
    """The answers, with one answer for all targets of a fanout: that of the first one inside that has one."""
    agreed = dict(answers)
    for node in graph.definition.nodes:
        if not isinstance(node.config, FanoutConfig):
            continue
        targets = [leaf for target in node.config.target_nodes for leaf in leaves_of(graph, target)]
        said = next((agreed[target] for target in targets if target in agreed), None)
        if said is not None:
            agreed.update(dict.fromkeys(targets, said))
    return agreed


@st.composite
def lives(draw: st.DrawFn, *, max_nodes: int = 4, cancels: bool = False) -> tuple[Graph, Scenario]:
    """A graph and a life of it, for properties of the engine. Shrinks to the smallest graph and the plainest life."""
    graph = draw(graphs(max_nodes=max_nodes))
    config = draw(executor_configs())
    return graph, draw(scenarios(graph, config=config, answers=short_answers(graph), cancels=cancels))
