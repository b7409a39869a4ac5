"""The hunt: Hypothesis draws lives of one graph, checks judge them, and the first that breaks a rule is shrunk."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import HypothesisException

from tinyllm.config.promises import Promises
from tinyllm.errors import TinyLLMError
from tinyllm.graph import Graph
from tinyllm.testing.checks import ENGINE_CHECKS, Check, Verdict, deterministic, judge
from tinyllm.testing.history import History
from tinyllm.testing.promises import graph_checks, tolerance_judged
from tinyllm.testing.scenario import Scenario, play, simplest
from tinyllm.testing.script import hosts_of
from tinyllm_strategies.profiles import ProfileName, profile_settings
from tinyllm_strategies.scenarios import scenarios

#: One life in so many is lived twice, to see that it is the same life.
DETERMINISM_SHARE = 20


class HarnessError(TinyLLMError):
    """The hunt itself failed, or a check could not say; nothing is known about the graph."""


@dataclass(slots=True)
class Figures:
    """What a hunt has done so far. `tolerance_judged` counts the lives that could have broken that promise."""

    examples: int = 0
    runs: int = 0
    calls: int = 0
    faults: int = 0
    holds: int = 0
    simulated_ns: int = 0
    lived_twice: int = 0
    tolerance_judged: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    errors: Counter[str] = field(default_factory=Counter)

    @property
    def ended_well(self) -> bool:
        """Whether any run succeeded, be it degraded."""
        return bool(self.endings["succeeded"] + self.endings["degraded"])

    @property
    def commonest_error(self) -> str:
        """How most of the runs that failed did so."""
        return next((f"{count} ended with {error}" for error, count in self.errors.most_common(1)), "no run failed")

    def count(self, history: History) -> None:
        self.examples += 1
        self.runs += len(history.runs)
        self.calls += len(history.calls)
        self.faults += sum(call.reply.fault is not None for call in history.calls)
        self.holds += len(history.holds)
        self.simulated_ns += history.simulated_ns
        for record in history.runs:
            if record.result is not None:
                self.endings[record.result.status] += 1
                if (error := record.result.error) is not None:
                    self.errors[f"{error.code} at {error.node_id}"] += 1


@dataclass(frozen=True, slots=True)
class Finding:
    """The simplest life that was found to break a rule, and the verdict on it."""

    scenario: Scenario
    history: History
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class Hunt:
    """How a hunt ended: with a finding, or with None when everything held."""

    finding: Finding | None
    figures: Figures
    checks: tuple[str, ...]


class _Broken(Exception):
    """A life broke a rule. Each check has a subclass of its own, so that shrinking never slips to another check."""

    def __init__(self, scenario: Scenario, verdict: Verdict) -> None:
        super().__init__(f"{verdict.check}: {verdict.breach.reason if verdict.breach else ''}")
        self.scenario = scenario
        self.verdict = verdict


@cache
def _broken(check: str) -> type[_Broken]:
    return type(f"Broken[{check}]", (_Broken,), {})


def hunt(
    graph: Graph,
    promises: Promises,
    *,
    profile: ProfileName,
    seed_number: int,
    max_examples: int | None = None,
    progress: Callable[[Figures], None] = lambda figures: None,
    shrinking: Callable[[], None] = lambda: None,
    before_each: Callable[[], None] = lambda: None,
) -> Hunt:
    """Look for a life of `graph` that breaks a rule, and for the simplest one like it.

    Before each life that is lived it calls `before_each`, which may end the hunt by raising KeyboardInterrupt.

    Raises HarnessError when a check says `unknown`, when one scenario does not always live the same life,
    or when Hypothesis gives up.
    """
    checks = {**ENGINE_CHECKS, **graph_checks(promises)}
    figures = Figures()
    broken: list[_Broken] = []

    def life(scenario: Scenario) -> None:
        before_each()
        history = play(scenario, graph)
        if not broken:
            figures.count(history)
            _live_twice(history, scenario, graph, figures)
            if promises.tolerates_failures is not None:
                figures.tolerance_judged += tolerance_judged(history, promises)
            progress(figures)
        for verdict in judge(history, checks):
            if verdict.verdict == "unknown":
                raise HarnessError(f"the check {verdict.check!r} could not say: {_reason(verdict)}")
            if verdict.verdict == "bad":
                if not broken:
                    shrinking()
                broken.append(_broken(verdict.check)(scenario, verdict))
                raise broken[-1]

    chosen = settings(
        profile_settings(profile),
        max_examples=max_examples or profile_settings(profile).max_examples,
        derandomize=False,
        database=None,
        phases=(Phase.generate, Phase.shrink),
        report_multiple_bugs=False,
        # Whether drawing is slow says something about this machine now, and nothing about the graph.
        suppress_health_check=(HealthCheck.too_slow,),
    )
    strategy = scenarios(graph, tolerated=_tolerated(promises))
    try:
        seed(seed_number)(chosen(given(strategy)(life)))()
    except _Broken as error:
        return Hunt(_simplest(error, graph, checks, before_each), figures, tuple(checks))
    except HypothesisException as error:
        raise HarnessError(f"Hypothesis gave up: {type(error).__name__}: {error}") from error
    if promises.tolerates_failures and hosts_of(graph) and not figures.tolerance_judged:
        raise HarnessError(
            "tolerates_failures could not be judged: in no life that was drawn does the graph end `succeeded` "
            f"with every host up and the models agreeing. Of {figures.runs} runs {figures.commonest_error}. "
            "If that can be otherwise, more examples may show it (--max-examples)."
        )
    return Hunt(None, figures, tuple(checks))


def _tolerated(promises: Promises) -> int:
    return promises.tolerates_failures or 0


def _reason(verdict: Verdict) -> str:
    return verdict.breach.reason if verdict.breach else "no reason given"


def _live_twice(history: History, scenario: Scenario, graph: Graph, figures: Figures) -> None:
    """Live one life in twenty again, the first one of them too."""
    if (figures.examples - 1) % DETERMINISM_SHARE:
        return
    figures.lived_twice += 1
    _require_same(history, play(scenario, graph))


def _require_same(history: History, again: History) -> None:
    verdict = deterministic(history, again)
    if verdict.verdict != "ok":
        raise HarnessError(_reason(verdict))


def _simplest(
    error: _Broken, graph: Graph, checks: Mapping[str, Check], before_each: Callable[[], None]
) -> Finding:
    """What Hypothesis shrank, made simpler where it left something over, and lived twice."""
    name = error.verdict.check
    check = {name: checks[name]}

    def still_fails(scenario: Scenario) -> bool:
        before_each()
        return judge(play(scenario, graph), check)[0].verdict == "bad"

    scenario = simplest(error.scenario, still_fails)
    history = play(scenario, graph)
    _require_same(history, play(scenario, graph))
    return Finding(scenario, history, judge(history, check)[0])
