"""Faults: small frozen values that say what goes wrong, print as the code that makes them, and end.

A fault on a call ends with that call. A fault that lasts has a start and a duration, and healing the world
ends all of them at once. `FAULTS` names every kind; strategies, stories and JSON go through that table.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

MS_MAX = 24 * 3_600_000


class FaultError(ValueError):
    """A value that is no fault: says which part and what is allowed there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """The host answers `delay_ms` later than it would."""

    name: ClassVar[str] = "latency"
    family: ClassVar[str] = "network"
    delay_ms: int

    def __post_init__(self) -> None:
        _require("delay_ms", self.delay_ms, 0, MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """The host refuses the connection, at once."""

    name: ClassVar[str] = "refused"
    family: ClassVar[str] = "network"


@dataclass(frozen=True, slots=True, kw_only=True)
class CutMidBody:
    """The answer's headers and the first half of its body arrive, then the connection is gone."""

    name: ClassVar[str] = "cut mid-body"
    family: ClassVar[str] = "network"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerError:
    """The host answers with a status of the 500s, 500 unless said otherwise."""

    name: ClassVar[str] = "500"
    family: ClassVar[str] = "model"
    status: int = 500

    def __post_init__(self) -> None:
        _require("status", self.status, 500, 599)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDown:
    """The host is down: it refuses connections, and those that are open when it goes down break.

    From `start_ms` of the world's time for `duration_ms`; None lasts until the world is healed.
    """

    name: ClassVar[str] = "host down"
    family: ClassVar[str] = "model"
    host: str
    start_ms: int = 0
    duration_ms: int | None = None

    def __post_init__(self) -> None:
        if type(self.host) is not str or not self.host:
            raise FaultError(f"host is the name of a host, not {self.host!r}")
        _require("start_ms", self.start_ms, 0, MS_MAX)
        if self.duration_ms is not None:
            _require("duration_ms", self.duration_ms, 0, MS_MAX)

    def ends_ms(self) -> float:
        """When it ends by itself; infinity if only healing ends it."""
        return float("inf") if self.duration_ms is None else self.start_ms + self.duration_ms


CallFaultKind = Latency | Refused | CutMidBody | ServerError
FAULTS: Mapping[str, type[CallFaultKind | HostDown]] = {
    kind.name: kind for kind in (Latency, Refused, CutMidBody, ServerError, HostDown)
}


@dataclass(frozen=True, slots=True, kw_only=True)
class OnCall:
    """`fault` happens to one call: number `call` (from 0) of those that `node` makes in run `run` (from 0).

    Several steps of one node can run at once inside a fanout, so a call is counted per `branch`: the
    step's path without its first component, "" for a node that the token visits, ".2" for the second target.
    """

    run: int
    node: str
    branch: str = ""
    call: int = 0
    fault: CallFaultKind


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultPlan:
    """All that goes wrong in one simulated world."""

    calls: tuple[OnCall, ...] = ()
    lasting: tuple[HostDown, ...] = ()

    def __len__(self) -> int:
        return len(self.calls) + len(self.lasting)


def fault_to_json(fault: CallFaultKind | HostDown) -> dict[str, Any]:
    """A fault as plain JSON: its name under `fault`, then its settings."""
    return {"fault": fault.name, **asdict(fault)}


def fault_from_json(value: Any) -> Any:
    """The fault that `fault_to_json` wrote; raises FaultError for anything else."""
    if not isinstance(value, Mapping):
        raise FaultError(f"a fault is an object with its name under `fault`, not {value!r}")
    settings = {key: setting for key, setting in value.items() if key != "fault"}
    kind = FAULTS.get(str(value.get("fault")))
    if kind is None:
        raise FaultError(f"unknown fault {value.get('fault')!r}; there are {', '.join(FAULTS)}")
    try:
        return kind(**settings)
    except TypeError as error:
        raise FaultError(f"{kind.name}: {error}") from None


def _require(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise FaultError(f"{name} is a whole number from {low} to {high}, not {value!r}")
