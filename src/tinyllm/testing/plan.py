"""Everything that decides one life of a world but the program itself, as a value.

A plan prints as the code that makes it, goes through JSON, and says which plans are simpler than it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any

from tinyllm.testing import schedule as schedules
from tinyllm.testing.faults import (
    At,
    Fault,
    FaultError,
    FaultPlan,
    Lasting,
    fault_from_json,
    fault_to_json,
    shortest_code,
)
from tinyllm.testing.schedule import Schedule

__all__ = ["PlanError", "WorldPlan", "plan_from_json", "plan_to_json", "simpler_plans", "simplest_plan"]


class PlanError(ValueError):
    """JSON that describes no plan; the message names the part."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WorldPlan:
    """Who runs when, what goes wrong, and the seed of everything else that is chance.

    With `external_only` the schedule holds back only what stock asyncio could have made wait.

    Raises:
        FaultError: a fault of the life of a graph (`OnCall`), of which this world knows nothing.
    """

    schedule: Schedule = ()
    faults: FaultPlan = field(default_factory=FaultPlan)
    seed: int = 0
    external_only: bool = True

    def __post_init__(self) -> None:
        for call in self.faults.calls:
            if not isinstance(call, At):
                raise FaultError(f"a world of hosts takes At(point=..., number=..., fault=...), not {call!r}")

    __repr__ = shortest_code

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 - as IPython has it
        """How Hypothesis prints it in a failing example."""
        printer.text(repr(self))

    @property
    def decisions(self) -> int:
        """How many things depart from the plainest life: faults and holds."""
        return len(self.faults) + len(self.schedule)

    @property
    def strikes(self) -> tuple[At, ...]:
        """The faults of one moment."""
        return tuple(call for call in self.faults.calls if isinstance(call, At))


# --- simpler ones ----------------------------------------------------------------------------------------


def simplest_plan(plan: WorldPlan, still_fails: Callable[[WorldPlan], bool], *, tries: int = 200) -> WorldPlan:
    """The canonical plan near this one: nothing can be dropped or made smaller, or *tries* plans were tried.

    What a shrinker of bytes leaves behind goes here: a hold or a fault that does nothing, a level that is
    higher than it need be.
    """
    found = True
    while found:
        found = False
        for candidate in simpler_plans(plan):
            if not tries:
                return plan
            tries -= 1
            if still_fails(candidate):
                plan, found = candidate, True
                break
    return plan


def simpler_plans(plan: WorldPlan) -> Iterator[WorldPlan]:
    """Plans with one thing less, then with one thing smaller; each is simpler, so following them ends."""
    faults = plan.faults
    for index in range(len(faults.lasting)):
        yield replace(plan, faults=replace(faults, lasting=_without(faults.lasting, index)))
    for index in range(len(faults.calls)):
        yield replace(plan, faults=replace(faults, calls=_without(faults.calls, index)))
    for schedule in schedules.simpler(plan.schedule):
        yield replace(plan, schedule=schedule)
    for index, call in enumerate(plan.strikes):
        for fault in _milder(call.fault):
            yield replace(plan, faults=replace(faults, calls=_with(faults.calls, index, replace(call, fault=fault))))
    for index, lasting in enumerate(faults.lasting):
        for milder in _milder(lasting):
            yield replace(plan, faults=replace(faults, lasting=_with(faults.lasting, index, milder)))
    if plan.seed:
        yield replace(plan, seed=0)


def _milder(fault: Fault | Lasting) -> Iterator[Any]:
    """The fault with one of its lengths, sizes or counts a tenth of what it was."""
    for one in fields(fault):
        value = getattr(fault, one.name)
        if one.name in {"delay_ms", "after_bytes", "chunks", "chunk", "start_ms", "choice", "step_us"} and value:
            try:
                yield replace(fault, **{one.name: value // 10})
            except FaultError:  # below what this kind allows: then it is as mild as it can be
                continue


def _without(items: tuple[Any, ...], index: int) -> tuple[Any, ...]:
    return items[:index] + items[index + 1 :]


def _with(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    return (*items[:index], item, *items[index + 1 :])


# --- JSON ------------------------------------------------------------------------------------------------


def plan_to_json(plan: WorldPlan) -> dict[str, Any]:
    """The plan as plain JSON values."""
    return {
        "schedule": schedules.to_json(plan.schedule),
        "faults": {
            "calls": [
                {"point": call.point, "number": call.number, **fault_to_json(call.fault)} for call in plan.strikes
            ],
            "lasting": [fault_to_json(fault) for fault in plan.faults.lasting],
        },
        "seed": plan.seed,
        "external_only": plan.external_only,
    }


def plan_from_json(value: Any) -> WorldPlan:
    """The plan that `plan_to_json` wrote.

    Raises:
        PlanError: value is anything else.
    """
    try:
        return WorldPlan(
            schedule=schedules.from_json(value["schedule"]),
            faults=FaultPlan(
                calls=tuple(_strike(call) for call in value["faults"]["calls"]),
                lasting=tuple(_lasting(fault) for fault in value["faults"]["lasting"]),
            ),
            seed=_of_type(int, "seed", value["seed"]),
            external_only=_of_type(bool, "external_only", value["external_only"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"this is no plan of a world: {type(error).__name__}: {error}") from None


def _strike(value: Mapping[str, Any]) -> At:
    fault = fault_from_json({key: setting for key, setting in value.items() if key not in {"point", "number"}})
    return At(point=value["point"], number=value["number"], fault=fault)


def _lasting(value: Mapping[str, Any]) -> Any:
    fault = fault_from_json(value)
    if not isinstance(fault, Lasting):
        raise PlanError(f"{fault.name!r} does not last")
    return fault


def _of_type(kind: type, name: str, value: Any) -> Any:
    # No isinstance: to Python, true is a number.
    if type(value) is not kind:
        raise PlanError(f"{name} is a value of type {kind.__name__}, not {value!r}")
    return value
