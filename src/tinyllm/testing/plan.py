"""Everything that decides one life of a world but the program itself, as a value.

A plan prints as the code that makes it, goes through JSON, and says which plans are simpler than it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from tinyllm.testing import schedule as schedules
from tinyllm.testing.faults import (
    At,
    Fault,
    FaultError,
    Lasting,
    LastingFault,
    fault_from_json,
    fault_to_json,
    shortest_code,
)
from tinyllm.testing.schedule import Hold, Schedule
from tinyllm.testing.simplest import replaced, simplest

__all__ = ["PlanError", "WorldPlan", "plan_from_json", "plan_to_json", "simpler_plans", "simplest_plan"]


class PlanError(ValueError):
    """JSON that describes no plan; the message names the part."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class WorldPlan:
    """Who runs when, what goes wrong, and the seed of everything else that is chance.

    `strikes` are the faults of one moment, `lasting` those that last. The schedule begins when `begins` wake-ups
    and arrivals have passed; with `external_only` it makes only what stock asyncio could have done.

    Raises:
        PlanError: a part is of another type than it says, or `begins` is below 0.
    """

    schedule: Schedule = ()
    begins: int = 0
    strikes: tuple[At, ...] = ()
    lasting: tuple[LastingFault, ...] = ()
    seed: int = 0
    external_only: bool = True

    __repr__ = shortest_code

    def __post_init__(self) -> None:
        _require_all("schedule", self.schedule, Hold)
        _require_all("strikes", self.strikes, At)
        _require_all("lasting", self.lasting, Lasting)
        _of_type(int, "begins", self.begins)
        if self.begins < 0:
            raise PlanError(f"begins is at least 0, not {self.begins}")
        _of_type(int, "seed", self.seed)
        _of_type(bool, "external_only", self.external_only)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:  # noqa: ARG002 - as IPython has it
        """How Hypothesis prints it in a failing example."""
        printer.text(repr(self))

    @property
    def is_sound(self) -> bool:
        """Whether its schedule makes nothing that stock asyncio could not have done."""
        return self.external_only or not self.schedule

    @property
    def decisions(self) -> int:
        """How many things depart from the plainest life: faults and holds."""
        return len(self.strikes) + len(self.lasting) + len(self.schedule)


def _require_all(name: str, values: object, kind: type) -> None:
    if not isinstance(values, tuple):
        raise PlanError(f"{name} is a tuple of {kind.__name__}, not {values!r}")
    for value in values:
        if not isinstance(value, kind):
            raise PlanError(f"{name} has {value!r}, which is no {kind.__name__}")


# --- simpler ones ----------------------------------------------------------------------------------------


def simplest_plan(plan: WorldPlan, still_fails: Callable[[WorldPlan], bool], *, tries: int = 200) -> WorldPlan:
    """The canonical plan near this one: nothing can be dropped or made smaller, or *tries* plans were tried."""
    return simplest(plan, simpler_plans, still_fails, tries=tries)


def simpler_plans(plan: WorldPlan) -> Iterator[WorldPlan]:
    """Plans with one thing less, then with one thing smaller; each is simpler, so following them ends."""
    for name in ("lasting", "strikes"):
        faults = getattr(plan, name)
        for index in range(len(faults)):
            yield replace(plan, **{name: faults[:index] + faults[index + 1 :]})
    for schedule in schedules.simpler(plan.schedule):
        yield replace(plan, schedule=schedule)
    if len(plan.schedule) > 1:
        # The first hold let its gap pass and took one wake-up: the others begin after all of them.
        first, *rest = plan.schedule
        yield replace(plan, begins=plan.begins + first.gap + 1, schedule=tuple(rest))
    if plan.begins:
        yield replace(plan, begins=0)
    for index, strike in enumerate(plan.strikes):
        for fault in _milder(strike.fault):
            yield replace(plan, strikes=replaced(plan.strikes, index, replace(strike, fault=fault)))
    for index, lasting in enumerate(plan.lasting):
        for milder in _milder(lasting):
            yield replace(plan, lasting=replaced(plan.lasting, index, milder))
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


# --- JSON ------------------------------------------------------------------------------------------------


def plan_to_json(plan: WorldPlan) -> dict[str, Any]:
    """The plan as plain JSON values."""
    strikes = [{"point": at.point, "number": at.number, **fault_to_json(at.fault)} for at in plan.strikes]
    return {
        "schedule": schedules.to_json(plan.schedule),
        "begins": plan.begins,
        "strikes": strikes,
        "lasting": [fault_to_json(fault) for fault in plan.lasting],
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
            begins=value["begins"],
            strikes=tuple(_strike(at) for at in value["strikes"]),
            lasting=tuple(fault_from_json(fault) for fault in value["lasting"]),
            seed=value["seed"],
            external_only=value["external_only"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise PlanError(f"this is no plan of a world: {type(error).__name__}: {error}") from None


def _strike(value: Mapping[str, Any]) -> At:
    fault = fault_from_json({key: setting for key, setting in value.items() if key not in {"point", "number"}})
    return At(point=value["point"], number=value["number"], fault=fault)


def _of_type(kind: type, name: str, value: object) -> None:
    # No isinstance: to Python, true is a number.
    if type(value) is not kind:
        raise PlanError(f"{name} is a value of type {kind.__name__}, not {value!r}")
