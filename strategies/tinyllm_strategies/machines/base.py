"""What every machine has: one world per example, and a judgement at its end."""

from __future__ import annotations

from hypothesis.stateful import RuleBasedStateMachine

from tinyllm.config import ExecutorConfig
from tinyllm.graph import Graph
from tinyllm.testing.checks import ENGINE_CHECKS, Verdict, judge
from tinyllm.testing.faults import FaultPlan
from tinyllm.testing.graph_world import GraphWorld
from tinyllm.testing.history import History
from tinyllm.testing.schedule import Schedule
from tinyllm.testing.script import Says, Script, hosts_of


class BrokenCheck(AssertionError):
    """A check did not say `ok` about the world that a machine drove."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        reason = verdict.breach.reason if verdict.breach else ""
        super().__init__(f"{verdict.check} is {verdict.verdict}: {reason}")


class WorldMachine(RuleBasedStateMachine):
    """Owns one world. A machine builds it in an `@initialize` rule and drives it in its rules.

    When the rules are over the world's storm ends, it is healed, comes to rest and is judged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world: GraphWorld | None = None

    def build(
        self,
        graph: Graph,
        *,
        config: ExecutorConfig,
        plain_answer: str = "ok",
        says: tuple[Says, ...] = (),
        faults: FaultPlan | None = None,
        schedule: Schedule = (),
    ) -> None:
        """Make this example's world."""
        plan = FaultPlan() if faults is None else faults
        script = Script(hosts=hosts_of(graph), plain_answer=plain_answer, says=says, faults=plan)
        self.world = GraphWorld(graph, script, config=config, schedule=schedule)

    def teardown(self) -> None:
        if self.world is None:
            return
        world, self.world = self.world, None
        with world:
            self.judge(world.finish())

    def judge(self, history: History) -> None:
        """Raise BrokenCheck for the first engine check that does not say `ok`."""
        for verdict in judge(history, ENGINE_CHECKS):
            if verdict.verdict != "ok":
                raise BrokenCheck(verdict)
