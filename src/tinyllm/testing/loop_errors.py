"""What can be wrong with a simulated run.

    SimulationError
    ├── FencedError         something that needs the real world; says what to use instead
    ├── StuckError          nothing can happen any more; says who waits for what
    └── LivelockError       the run does not end; says who kept running

They stand apart from the errors of the engine: the engine runs without the simulation, and never catches
these by its own names.
"""

from __future__ import annotations

from collections import Counter

from tinyllm.testing.waiting import Waiting

__all__ = ["FencedError", "LivelockError", "SimulationError", "StuckError"]


class SimulationError(Exception):
    """Base of the errors of the simulated loop."""


class FencedError(SimulationError):
    """The program reached for the real world. `what` it used, and what to use `instead`."""

    def __init__(self, what: str, instead: str) -> None:
        self.what = what
        self.instead = instead
        super().__init__(f"{what} leaves the simulated world; {instead}")


class StuckError(SimulationError):
    """Nothing is ready, no timer is set, and the run has not ended. `waiting` has each task, oldest first."""

    def __init__(self, waiting: tuple[Waiting, ...], at_ns: int) -> None:
        self.waiting = waiting
        self.at_ns = at_ns
        lines = [f"stuck at {at_ns / 1e9:.9g} s of virtual time: nothing is ready and no timer is set"]
        lines += [f"  {task}" for task in waiting] or ["  no task is left that could go on"]
        super().__init__("\n".join(lines))


class LivelockError(SimulationError):
    """The step budget is used up. `tasks` ran in the last steps, in the order of their first one there.

    `still_steps` is how many ran since time last moved; they alone were too many if it *spun*.
    """

    def __init__(self, steps: int, at_ns: int, recent: list[str], *, still_steps: int = 0, spun: bool = False) -> None:
        counts = Counter(recent)
        self.still_steps = still_steps
        self.steps = steps
        self.at_ns = at_ns
        self.tasks = tuple(counts)
        ran = ", ".join(f"{name} ({times} times)" for name, times in counts.items())
        budget = "max_still_steps" if spun else "max_steps"
        super().__init__(
            f"not at an end after {steps} steps, at {at_ns / 1e9:.9g} s of virtual time; "
            f"the last {len(recent)} were of {ran}. If the run is just long, raise {budget}."
        )
