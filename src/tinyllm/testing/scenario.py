"""One life of a world as a value: what is asked, what the models say, what goes wrong, who runs when.

A scenario prints, compares, goes through JSON and plays the same life every time. Everything that is
found is found as a scenario, and everything that is replayed is one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

from pydantic import ValidationError

from tinyllm.config import ExecutorConfig
from tinyllm.errors import TinyLLMError
from tinyllm.graph import Graph
from tinyllm.testing import schedule as schedules
from tinyllm.testing.faults import MS_MAX, FaultPlan, HostDown, Latency, OnCall, fault_from_json, fault_to_json
from tinyllm.testing.graph_world import GraphWorld, RunPlan
from tinyllm.testing.history import History
from tinyllm.testing.schedule import Schedule
from tinyllm.testing.script import Says, Script, hosts_of
from tinyllm.testing.simplest import replaced
from tinyllm.testing.simplest import simplest as follow


class ScenarioError(TinyLLMError):
    """JSON that describes no scenario."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Everything that decides one life of a world, but for the graph itself.

    `schedule` holds tasks back; with `external_only` only where stock asyncio could.
    """

    runs: tuple[RunPlan, ...] = (RunPlan(),)
    plain_answer: str = "ok"
    says: tuple[Says, ...] = ()
    faults: FaultPlan = field(default_factory=FaultPlan)
    schedule: Schedule = ()
    external_only: bool = True
    seed: int = 0
    config: ExecutorConfig = field(default_factory=ExecutorConfig)

    @property
    def decisions(self) -> int:
        """How many things depart from the plainest life: answers, faults, holds and further runs."""
        return len(self.says) + len(self.faults) + len(self.schedule) + len(self.runs) - 1


def play(scenario: Scenario, graph: Graph) -> History:
    """Live the scenario on `graph` to its end."""
    script = Script(
        hosts=hosts_of(graph), plain_answer=scenario.plain_answer, says=scenario.says, faults=scenario.faults
    )
    world = GraphWorld(
        graph,
        script,
        config=scenario.config,
        schedule=scenario.schedule,
        external_only=scenario.external_only,
        seed=scenario.seed,
    )
    with world:
        for plan in scenario.runs:
            world.submit(plan)
        return world.finish()


# --- simpler ones --------------------------------------------------------------------------------------


def simplest(scenario: Scenario, still_fails: Callable[[Scenario], bool], *, tries: int = 200) -> Scenario:
    """The simplest scenario near this one that still fails, after at most `tries` of them."""
    return follow(scenario, simpler, still_fails, tries=tries)


def simpler(scenario: Scenario) -> Iterator[Scenario]:
    """Scenarios with one thing less, or one thing smaller."""
    for index in range(len(scenario.runs) - 1, -1, -1):
        if len(scenario.runs) > 1:
            yield _without_run(scenario, index)
    for calls in _dropped(scenario.faults.calls):
        yield replace(scenario, faults=replace(scenario.faults, calls=calls))
    for lasting in _dropped(scenario.faults.lasting):
        yield replace(scenario, faults=replace(scenario.faults, lasting=lasting))
    for says in _dropped(scenario.says):
        yield replace(scenario, says=says)
    for schedule in schedules.simpler(scenario.schedule):
        yield replace(scenario, schedule=schedule)
    yield from _smaller_faults(scenario)
    for index, run in enumerate(scenario.runs):
        for smaller in _smaller_runs(run):
            yield replace(scenario, runs=replaced(scenario.runs, index, smaller))


def _without_run(scenario: Scenario, index: int) -> Scenario:
    """The scenario without one run; what is said and done to later runs moves along."""

    def moved(run: int | None) -> int | None:
        return run if run is None or run < index else run - 1

    says = tuple(replace(s, run=moved(s.run)) for s in scenario.says if s.run != index)
    calls = tuple(replace(c, run=moved(c.run) or 0) for c in scenario.faults.calls if c.run != index)
    runs = scenario.runs[:index] + scenario.runs[index + 1 :]
    return replace(scenario, runs=runs, says=says, faults=replace(scenario.faults, calls=calls))


def _smaller_faults(scenario: Scenario) -> Iterator[Scenario]:
    faults = scenario.faults
    for index, call in enumerate(faults.calls):
        if isinstance(call.fault, Latency) and call.fault.delay_ms > 1:
            milder = replace(call, fault=Latency(delay_ms=call.fault.delay_ms // 10))
            yield replace(scenario, faults=replace(faults, calls=replaced(faults.calls, index, milder)))
    for index, down in enumerate(faults.lasting):
        if down.start_ms:
            earlier = replace(down, start_ms=0)
            yield replace(scenario, faults=replace(faults, lasting=replaced(faults.lasting, index, earlier)))


def _smaller_runs(run: RunPlan) -> Iterator[RunPlan]:
    if run.context is not None:
        yield replace(run, context=None)
    if run.cancel_after_ms is not None:
        yield replace(run, cancel_after_ms=None)
    if run.start_ms:
        yield replace(run, start_ms=0)
    if run.content:
        yield replace(run, content="")


def _dropped(items: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    for index in range(len(items)):
        yield items[:index] + items[index + 1 :]


# --- JSON ----------------------------------------------------------------------------------------------


def scenario_to_json(scenario: Scenario) -> dict[str, Any]:
    """The scenario as plain JSON values."""
    faults = scenario.faults
    return {
        "runs": [asdict(run) for run in scenario.runs],
        "plain_answer": scenario.plain_answer,
        "says": [asdict(said) for said in scenario.says],
        "faults": {
            "calls": [
                {"run": c.run, "node": c.node, "branch": c.branch, "call": c.call, **fault_to_json(c.fault)}
                for c in faults.calls
            ],
            "lasting": [fault_to_json(fault) for fault in faults.lasting],
        },
        "schedule": schedules.to_json(scenario.schedule),
        "external_only": scenario.external_only,
        "seed": scenario.seed,
        "config": scenario.config.model_dump(mode="json"),
    }


def scenario_from_json(value: Mapping[str, Any]) -> Scenario:
    """The scenario that `scenario_to_json` wrote; raises ScenarioError for anything else."""
    try:
        return Scenario(
            runs=tuple(_run(run) for run in _listed(value, "runs")),
            plain_answer=_text("plain_answer", value["plain_answer"]),
            says=tuple(_said(said) for said in _listed(value, "says")),
            faults=FaultPlan(
                calls=tuple(_on_call(call) for call in _listed(value["faults"], "calls")),
                lasting=tuple(_lasting(fault) for fault in _listed(value["faults"], "lasting")),
            ),
            schedule=schedules.from_json(value["schedule"]),
            external_only=_of_type(bool, "external_only", value["external_only"]),
            seed=_of_type(int, "seed", value["seed"]),
            config=ExecutorConfig(**value["config"]),
        )
    except (KeyError, TypeError, ValueError, ValidationError, AttributeError) as error:
        raise ScenarioError(f"this is no scenario: {type(error).__name__}: {error}") from None


def _run(value: Mapping[str, Any]) -> RunPlan:
    run = RunPlan(**value)
    _text("content", run.content)
    _whole("start_ms", run.start_ms)
    if run.context is not None:
        _text("context", run.context)
    if run.cancel_after_ms is not None:
        _whole("cancel_after_ms", run.cancel_after_ms)
    return run


def _said(value: Mapping[str, Any]) -> Says:
    said = Says(**value)
    _text("text", said.text)
    _text("node", said.node)
    if said.branch is not None:
        _text("branch", said.branch)
    for name, number in (("run", said.run), ("call", said.call)):
        if number is not None:
            _whole(name, number)
    return said


_CALL_KEYS = ("run", "node", "branch", "call")


def _on_call(value: Mapping[str, Any]) -> OnCall:
    where = {key: value[key] for key in _CALL_KEYS}
    fault = fault_from_json({key: setting for key, setting in value.items() if key not in _CALL_KEYS})
    if isinstance(fault, HostDown):
        raise ScenarioError(f"{fault.name!r} lasts, and happens to no single call")
    call = OnCall(**where, fault=fault)
    _text("node", call.node)
    _text("branch", call.branch)
    _whole("run", call.run)
    _whole("call", call.call)
    return call


def _lasting(value: Mapping[str, Any]) -> HostDown:
    fault = fault_from_json(value)
    if not isinstance(fault, HostDown):
        raise ScenarioError(f"{fault.name!r} does not last")
    return fault


_T = TypeVar("_T")


def _of_type(kind: type[_T], name: str, value: Any) -> _T:
    # No isinstance: to Python, true is a number.
    if type(value) is not kind:
        raise ScenarioError(f"{name} is a value of type {kind.__name__}, not {value!r}")
    return value


def _listed(value: Mapping[str, Any], name: str) -> list[Any] | tuple[Any, ...]:
    items = value[name]
    if not isinstance(items, list | tuple):
        raise ScenarioError(f"{name} is a list, not {items!r}")
    return items


def _text(name: str, value: Any) -> str:
    """The text, if a host could say it and a run be asked it: UTF-8 has no lone surrogates."""
    text = _of_type(str, name, value)
    text.encode()
    return text


def _whole(name: str, value: Any) -> int:
    number = _of_type(int, name, value)
    if not 0 <= number <= MS_MAX:
        raise ScenarioError(f"{name} is a whole number from 0 to {MS_MAX}, not {number}")
    return number
