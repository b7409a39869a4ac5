"""Runs of one graph: submitted, cancelled, stormed upon, healed."""

from __future__ import annotations

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, initialize, rule

from tinyllm.graph import Graph
from tinyllm.testing.graph_world import RunPlan
from tinyllm.testing.scenario import Scenario
from tinyllm_strategies.machines.base import WorldMachine
from tinyllm_strategies.scenarios import lives, run_plans


class ExecutionMachine(WorldMachine):
    """Four rules over one world. Cancels also reach for runs that have ended long ago."""

    runs = Bundle("runs")

    @initialize(target=runs, life=lives())
    def begin(self, life: tuple[Graph, Scenario]) -> int:
        """Faults, answers and schedule are drawn up front; the first run of the life is the first here."""
        graph, scenario = life
        self.build(
            graph,
            config=scenario.config,
            plain_answer=scenario.plain_answer,
            says=scenario.says,
            faults=scenario.faults,
            schedule=scenario.schedule,
        )
        assert self.world is not None
        return self.world.submit(scenario.runs[0])

    @rule(target=runs, plan=run_plans())
    def submit(self, plan: RunPlan) -> int:
        assert self.world is not None
        return self.world.submit(plan)

    @rule(ms=st.sampled_from((1, 5, 10, 1_000, 60_000)))
    def advance(self, ms: int) -> None:
        assert self.world is not None
        self.world.advance(ms)

    @rule(run=runs)
    def cancel(self, run: int) -> None:
        assert self.world is not None
        self.world.cancel(run)

    @rule()
    def heal(self) -> None:
        assert self.world is not None
        self.world.heal()
