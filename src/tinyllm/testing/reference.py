"""The specification as a program: what a run of a graph may end with, given what its model calls give.

Nothing here waits, and nothing here knows the engine. A *script* says how long each model call takes and
what it gives; the rest takes no time. A step is interpreted from its start to its end at once, and leaves a
*story*: what began and ended when. Steps that run side by side are interpreted one after another, each with
its own start, and their stories lie side by side. Three things can then cut a story short:

- a deadline: it is known beforehand, so work is simply not interpreted beyond it (`until_ns`); what ends, or
  would begin, at the very moment of a deadline does not happen;
- `fail_fast`: the siblings' stories are cut at the moment of the first failure;
- `max_steps`: the steps of a story are counted in the order of time; the first one too many ends the run.

The last two can strike while something else happens at the same moment. The specification leaves open how
much of that moment is over by then, so each of these cuts has several results. Attempts and tokens decide
nothing later and are carried as a set of possible sums; what does decide something is a choice, and every
choice is followed.

What these choices take for settled: a step and its first attempt begin together; targets that a fanout can
start at its own start all begin before anything else happens; of targets that fail at one moment the first
in order is told, even if work had to begin at that moment for it to fail.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Generic, TypeAlias, TypeVar

from tinyllm import expressions
from tinyllm.config import (
    EntryConfig,
    ExecutorConfig,
    ExitConfig,
    FanoutConfig,
    GateCondition,
    GateConfig,
    ModelConfig,
    NodeDefinition,
)
from tinyllm.errors import RECOVERABLE, ErrorCode, ExpressionError, TinyLLMError, UsageError
from tinyllm.graph import Graph
from tinyllm.message import ErrorInfo, MessagePayload

__all__ = ["Call", "Outcome", "Reply", "Script", "TooManyOutcomesError", "interpret"]

MS = 1_000_000
"""Nanoseconds of a millisecond."""

WORLDS_MAX = 256
"""Sequences of choices that are followed in one run."""

SUMS_MAX = 32
"""Possible sums of attempts and tokens that are kept apart; more become one that is not exact."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What the script is asked: one model call.

    `branch` is the path of the calling step without its first component: "" for a visited node, ".2" for the
    second target of a fanout, ".2.1" for the first one inside it. `number` is how many calls this node made
    before on this branch, over all visits, attempts and fallbacks of the run: 0 for the first. `at_ns` counts
    from the run's start.
    """

    node_id: str
    branch: str
    number: int
    model: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the script gives: `text` after `duration_ns`, or, if `text` is None, a MODEL_ERROR then.

    `recoverable` and `retry_after_s` concern failures only.
    """

    duration_ns: int
    text: str | None
    tokens_in: int = 0
    tokens_out: int = 0
    recoverable: bool = True
    retry_after_s: float | None = None


Script: TypeAlias = Callable[[Call], Reply]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a run may end. An error inside the payload has an empty `message`.

    `visits` are the nodes the token visited, in order; `steps` and `attempts` are those that began, wrapped
    ones too. `attempts` and `tokens` say nothing if `exact_attempts` is False: then the moment at which work
    was cut off left too many sums possible.
    """

    status: str
    error_code: str | None
    error_node: str | None
    payload: MessagePayload
    visits: tuple[str, ...]
    steps: int
    attempts: int
    tokens: int
    elapsed_ns: int
    exact_attempts: bool = True


class TooManyOutcomesError(TinyLLMError):
    """More than `WORLDS_MAX` sequences of choices: too much happens at one moment to follow all orders."""


def interpret(
    graph: Graph,
    config: ExecutorConfig,
    payload: MessagePayload,
    script: Script,
    *,
    seed: int,
    entry: str | None = None,
    variables: Mapping[str, Any] | None = None,
) -> tuple[Outcome, ...]:
    """Every outcome that the specification allows, each once; one unless things of one moment meet.

    `script` must be pure: it may be asked for the same call more than once.

    Raises:
        UsageError: `entry` is no entry point of the graph.
        TooManyOutcomesError: there are too many orders to follow.
    """
    if entry is not None and entry not in graph.definition.entry_points:
        raise UsageError(f"{entry!r} is no entry point; there are {', '.join(graph.definition.entry_points)}")
    outcomes: list[Outcome] = []
    for choices in _every_choice():
        world = _World(graph, config, script, seed, variables or {}, choices)
        outcomes += [found for found in world.run(payload, entry or graph.entry) if found not in outcomes]
    return tuple(outcomes)


# --- choices -------------------------------------------------------------------------------------------


class _Choices:
    """Takes the options that `taken` numbers, then first ones, and remembers how many there were."""

    def __init__(self, taken: Sequence[int]) -> None:
        self.taken = list(taken)
        self.counts: list[int] = []

    def pick(self, options: Sequence[T]) -> T:
        if len(self.counts) == len(self.taken):
            self.taken.append(0)
        option = options[self.taken[len(self.counts)]]
        self.counts.append(len(options))
        return option


def _every_choice() -> Iterator[_Choices]:
    """One `_Choices` per sequence of choices; each must be used up before the next is asked for."""
    taken: list[int] = []
    for _ in range(WORLDS_MAX):
        choices = _Choices(taken)
        yield choices
        following = _following(choices)
        if following is None:
            return
        taken = following
    raise TooManyOutcomesError(f"more than {WORLDS_MAX} orders of what happens at one moment")


def _following(choices: _Choices) -> list[int] | None:
    """The next sequence in counting order; None after the last."""
    for place in reversed(range(len(choices.counts))):
        if choices.taken[place] + 1 < choices.counts[place]:
            return [*choices.taken[:place], choices.taken[place] + 1]
    return None


# --- stories -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, order=True)
class _Tally:
    """What is counted."""

    steps: int = 0
    attempts: int = 0
    tokens: int = 0
    exact: bool = True

    def __add__(self, other: _Tally) -> _Tally:
        exact = self.exact and other.exact
        return _Tally(self.steps + other.steps, self.attempts + other.attempts, self.tokens + other.tokens, exact)


_NOTHING = _Tally()
_Caller: TypeAlias = tuple[str, str]
"""A node and the branch on which it calls."""


@dataclass(frozen=True, slots=True)
class _Event:
    """Something began or ended at `at_ns`.

    `tallies` are the possible sums, all with the same steps; `calls` how many calls who may have begun. Only
    what a cut left of a moment (`is_rest`) has more than one of either, or more than one step.
    """

    at_ns: int
    tallies: frozenset[_Tally] = frozenset({_NOTHING})
    calls: tuple[tuple[_Caller, frozenset[int]], ...] = ()
    is_rest: bool = False

    @property
    def steps(self) -> int:
        return next(iter(self.tallies)).steps


@dataclass(frozen=True, slots=True)
class _Lane:
    """One target of a fanout that started. `frees` is False if no other target may follow it."""

    story: _Story
    end_ns: int
    frees: bool

    @property
    def start_ns(self) -> int:
        first = self.story[0]
        return first.at_ns


@dataclass(frozen=True, slots=True)
class _Fan:
    """Targets that ran side by side from `at_ns` on, `slots` at a time, in the order of their starts."""

    at_ns: int
    slots: int
    lanes: tuple[_Lane, ...]


_Story: TypeAlias = "tuple[_Event | _Fan, ...]"


def _step_began(at_ns: int) -> _Event:
    return _Event(at_ns, frozenset({_Tally(steps=1, attempts=1)}))


def _attempt_began(at_ns: int) -> _Event:
    return _Event(at_ns, frozenset({_Tally(attempts=1)}))


def _call_began(at_ns: int, caller: _Caller) -> _Event:
    return _Event(at_ns, calls=((caller, frozenset({1})),))


def _call_ended(at_ns: int, tokens: int = 0) -> _Event:
    return _Event(at_ns, frozenset({_Tally(tokens=tokens)}))


def _events(story: _Story) -> Iterator[_Event]:
    for item in story:
        if isinstance(item, _Event):
            yield item
        else:
            for lane in item.lanes:
                yield from _events(lane.story)


def _steps(story: _Story) -> int:
    return sum(event.steps for event in _events(story))


def _before(story: _Story, at_ns: int) -> _Story:
    """What happened earlier than `at_ns`."""
    kept: list[_Event | _Fan] = []
    for item in story:
        if item.at_ns >= at_ns:
            break
        kept.append(item if isinstance(item, _Event) else replace(item, lanes=_lanes_before(item, at_ns)))
    return tuple(kept)


def _lanes_before(fan: _Fan, at_ns: int) -> tuple[_Lane, ...]:
    return tuple(
        replace(lane, story=_before(lane.story, at_ns), end_ns=min(lane.end_ns, at_ns))
        for lane in fan.lanes
        if lane.start_ns < at_ns
    )


def _sums(story: _Story) -> frozenset[_Tally]:
    """Every sum that the story's events may have."""
    sums = frozenset({_NOTHING})
    for event in _events(story):
        sums = _added(sums, event.tallies)
    return sums


def _added(ones: Iterable[_Tally], others: Iterable[_Tally]) -> frozenset[_Tally]:
    others = tuple(others)
    return _few(frozenset(one + other for one in ones for other in others))


def _few(sums: frozenset[_Tally]) -> frozenset[_Tally]:
    """The same sums, or, if they are too many, one that is not exact."""
    return sums if len(sums) <= SUMS_MAX else frozenset({replace(max(sums), exact=False)})


# --- cuts: how much of a moment may be over when something cuts it off ---------------------------------


@dataclass(frozen=True, slots=True)
class _Cut:
    """One way to cut a story within a moment: `tally` sums what of that moment has happened.

    `is_done`: the story is over, all of it has happened. `step_is_next`: one of its steps could begin now.
    `freed` counts the targets of the fanout at hand whose slots are free again.
    """

    tally: _Tally = _NOTHING
    is_done: bool = False
    step_is_next: bool = False
    freed: int = 0


def _cuts(story: _Story, at_ns: int) -> set[_Cut]:
    """Every way to cut `story` within the moment `at_ns`; causes come before their effects."""
    found: set[_Cut] = set()
    complete = frozenset({_NOTHING})
    for item in story:
        cuts = _event_cuts(item, at_ns) if isinstance(item, _Event) else _fan_cuts(item, at_ns)
        partial = [cut for cut in cuts if not cut.is_done]
        found |= {replace(cut, tally=sum_ + cut.tally) for sum_ in complete for cut in partial}
        complete = _added(complete, [cut.tally for cut in cuts if cut.is_done])
    return _few_cuts(found | {_Cut(sum_, is_done=True) for sum_ in complete})


def _event_cuts(event: _Event, at_ns: int) -> set[_Cut]:
    if event.at_ns < at_ns:
        return {_Cut(is_done=True)}
    if event.at_ns > at_ns:
        return {_Cut()}
    return {_Cut(step_is_next=event.steps > 0), *(_Cut(tally, is_done=True) for tally in event.tallies)}


def _fan_cuts(fan: _Fan, at_ns: int, told: int = -1) -> set[_Cut]:
    """The cuts of a fanout; with `told`, only those in which this target has ended."""
    found = _half_started(fan) if fan.at_ns == at_ns and told < 0 else set()
    running = {_Cut(is_done=True)}
    for index, lane in enumerate(fan.lanes):
        waiting = {cut for cut in running if not _may_start(fan, index, cut.freed, at_ns)}
        options = _lane_cuts(lane, at_ns)
        if lane.start_ns == at_ns:
            options = {option for option in options if option.tally.steps}
        if index == told:
            options = {option for option in options if option.is_done}
        elif index > told:
            found |= {replace(cut, is_done=False) for cut in waiting}
            if lane.start_ns == at_ns and index >= fan.slots:
                found |= {replace(cut, is_done=False, step_is_next=True) for cut in running - waiting}
        running = _few_cuts(_side_by_side(cut, option) for cut in running - waiting for option in options)
    return {replace(cut, freed=0) for cut in found | running}


def _may_start(fan: _Fan, index: int, freed: int, at_ns: int) -> bool:
    start_ns = fan.lanes[index].start_ns
    return start_ns < at_ns or (start_ns == at_ns and index - freed < fan.slots)


def _half_started(fan: _Fan) -> set[_Cut]:
    """Some of the first targets have begun, in order; nothing else happens before all of them have."""
    first = min(fan.slots, len(fan.lanes))
    return {_Cut(_Tally(steps=count, attempts=count), step_is_next=True) for count in range(first)}


def _lane_cuts(lane: _Lane, at_ns: int) -> set[_Cut]:
    """The cuts of one target; done only if its step has ended by `at_ns`."""
    cuts = _cuts(lane.story, at_ns)
    if lane.end_ns > at_ns:
        return {replace(cut, is_done=False) for cut in cuts}
    return {replace(cut, freed=int(cut.is_done and lane.frees)) for cut in cuts}


def _side_by_side(one: _Cut, other: _Cut) -> _Cut:
    return _Cut(
        one.tally + other.tally,
        one.is_done and other.is_done,
        one.step_is_next or other.step_is_next,
        one.freed + other.freed,
    )


def _few_cuts(cuts: Iterable[_Cut]) -> set[_Cut]:
    """The same cuts, with the sums thinned out where they are too many."""
    groups: dict[_Cut, set[_Tally]] = {}
    for cut in cuts:
        groups.setdefault(replace(cut, tally=_Tally(steps=cut.tally.steps)), set()).add(cut.tally)
    return {replace(group, tally=sum_) for group, sums in groups.items() for sum_ in _few(frozenset(sums))}


# --- what is passed on ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Token:
    """The message at hand: its payload, and the fields of its metadata that were set."""

    payload: MessagePayload
    measured: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Put:
    """What a step that succeeded puts out, and the way that it names."""

    token: _Token
    way: str | None = None


@dataclass(frozen=True, slots=True)
class _Ran(Generic[T]):
    """Something ended at `end_ns` with a result, failed, or (None) was still at work at its `until_ns`."""

    end_ns: int
    result: T | ErrorInfo | None
    story: _Story = ()


@dataclass(frozen=True, slots=True)
class _GoOn:
    token: _Token
    node_id: str


@dataclass(frozen=True, slots=True)
class _End:
    status: str
    error: ErrorInfo | None
    token: _Token


def _failure(code: ErrorCode, node_id: str, **details: Any) -> ErrorInfo:
    return ErrorInfo(code=code, message="", details=details, recoverable=code in RECOVERABLE, node_id=node_id)


# --- a run ---------------------------------------------------------------------------------------------


class _World:
    """One run, with every choice taken."""

    def __init__(
        self,
        graph: Graph,
        config: ExecutorConfig,
        script: Script,
        seed: int,
        variables: Mapping[str, Any],
        choices: _Choices,
    ) -> None:
        self.graph = graph
        self.config = config
        self.script = script
        self.seed = seed
        self.variables = variables
        self.choices = choices
        self.visits: list[str] = []
        self.steps_left = config.max_steps
        self.sums = frozenset({_NOTHING})
        self.absorbed: list[ErrorInfo] = []
        #: How many calls each caller may have made: several numbers where a cut left that open.
        self.numbers: dict[_Caller, frozenset[int]] = {}

    def run(self, payload: MessagePayload, entry: str) -> list[Outcome]:
        until_ns = self.config.timeout_ms * MS
        token, node_id, at_ns = _Token(payload), entry, 0
        while self.steps_left:
            self.visits.append(node_id)
            node = self.graph.nodes[node_id]
            ran = self._step(node, token, str(len(self.visits)), at_ns, until_ns)
            if _steps(ran.story) > self.steps_left:
                at_ns = self._count_to_limit(ran.story)
                break
            self.steps_left -= _steps(ran.story)
            self.sums = _added(self.sums, _sums(ran.story))
            at_ns = ran.end_ns
            if ran.result is None:
                return self._outcomes("timed_out", _failure(ErrorCode.TIMEOUT, node_id), token, at_ns)
            after = self._after(node, token, ran.result)
            if isinstance(after, _End):
                return self._outcomes(after.status, after.error, after.token, at_ns)
            token, node_id = after.token, after.node_id
        return self._outcomes("failed", _failure(ErrorCode.BOUNDS_EXCEEDED, node_id), token, at_ns)

    def _count_to_limit(self, story: _Story) -> int:
        """Add what of `story` had happened when its first step too many would have begun; tell when."""
        starts_ns = sorted(event.at_ns for event in _events(story) for _ in range(event.steps))
        at_ns = starts_ns[self.steps_left]
        earlier = _sums(_before(story, at_ns))
        steps = self.steps_left - next(iter(earlier)).steps
        now = {cut.tally for cut in _cuts(story, at_ns) if cut.step_is_next and cut.tally.steps == steps}
        if any(event.is_rest and event.at_ns == at_ns for event in _events(story)):
            # Two cuts within one moment: what the first one left of it cannot be cut again.
            now = {_Tally(steps=steps, exact=False)}
        self.sums = _added(self.sums, _added(earlier, now))
        return at_ns

    def _outcomes(self, status: str, error: ErrorInfo | None, token: _Token, at_ns: int) -> list[Outcome]:
        return [
            Outcome(
                status=status,
                error_code=error.code.value if error else None,
                error_node=error.node_id if error else None,
                payload=token.payload,
                visits=tuple(self.visits),
                steps=tally.steps,
                attempts=tally.attempts,
                tokens=tally.tokens,
                elapsed_ns=at_ns,
                exact_attempts=tally.exact,
            )
            for tally in sorted(self.sums)
        ]

    # --- between two visits ----------------------------------------------------------------------------

    def _after(self, node: NodeDefinition, received: _Token, result: _Put | ErrorInfo) -> _GoOn | _End:
        if isinstance(result, ErrorInfo):
            return self._after_failure(node, received, result)
        if isinstance(node.config, ExitConfig):
            return self._after_exit(node, node.config, result.token)
        if result.way is not None and result.way in self.graph.ways(node.id):
            return _GoOn(result.token, result.way)
        if result.way is not None:
            return _End("failed", _failure(ErrorCode.ROUTING_ERROR, node.id), result.token)
        return self._by_edge(node, result.token)

    def _after_exit(self, node: NodeDefinition, config: ExitConfig, token: _Token) -> _End:
        if config.status in ("failure", "error", "timeout"):
            return _End("failed", _failure(ErrorCode.EXIT_FAILED, node.id), token)
        first = self.absorbed[0] if self.absorbed else None
        return _End("succeeded" if config.status == "success" and first is None else "degraded", first, token)

    def _after_failure(self, node: NodeDefinition, received: _Token, error: ErrorInfo) -> _GoOn | _End:
        policy = self.config.failure_policy
        if node.on_error is not None:
            return _GoOn(_Token(received.payload.replace(error=error)), node.on_error)
        is_fatal = policy == "fail_fast" or isinstance(node.config, EntryConfig)
        if is_fatal or len(self.absorbed) == self.config.max_node_failures:
            return _End("failed", error, received)
        self.absorbed.append(error)
        if policy == "best_effort":
            return _End("degraded", self.absorbed[0], received)
        if policy == "fallback_simple":
            metadata = {**received.payload.metadata, "fallback": True}
            content = self.config.fallback_response
            received = _Token(received.payload.replace(content=content, metadata=metadata))
        return self._by_edge(node, received)

    def _by_edge(self, node: NodeDefinition, token: _Token) -> _GoOn | _End:
        edges = self.graph.edges_from(node.id)
        names = _names(token, self.variables)
        holding = [edge for edge in edges if edge.condition is not None and _holds(edge.condition, names)]
        plain = [edge for edge in edges if edge.condition is None]
        for edge in (*holding, *plain):
            return _GoOn(token, edge.to_node)
        return _End("failed", _failure(ErrorCode.ROUTING_ERROR, node.id), token)

    # --- steps and attempts ----------------------------------------------------------------------------

    def _step(self, node: NodeDefinition, token: _Token, path: str, at_ns: int, until_ns: int) -> _Ran[_Put]:
        """One execution of a node with its retries. `at_ns` is earlier than `until_ns`."""
        story: list[_Event | _Fan] = [_step_began(at_ns)]
        steps, retry = 1, 0
        while True:
            ran = self._attempt(node, token, path, at_ns, until_ns)
            story += ran.story
            steps += _steps(ran.story)
            error = ran.result
            if not isinstance(error, ErrorInfo) or not error.recoverable or retry == node.config.retry_count:
                return replace(ran, story=tuple(story))
            retry += 1
            at_ns = ran.end_ns + self._delay_ns(node, error, path, retry)
            if at_ns >= until_ns or steps > self.steps_left:
                # With so many steps the run is over before this one ends, so its end does not matter.
                return _Ran(until_ns, None, tuple(story))
            story.append(_attempt_began(at_ns))

    def _delay_ns(self, node: NodeDefinition, error: ErrorInfo, path: str, retry: int) -> int:
        """How long to wait before retry number `retry`, from 1; rounded to whole nanoseconds."""
        config = node.config
        delay_ns = config.retry_delay_ms * MS
        if config.retry_backoff == "exponential":
            generator = random.Random(f"{self.seed}:{path}")
            u = [generator.random() for _ in range(retry)][-1]
            delay_ns = round(min(60_000, config.retry_delay_ms * 2 ** (retry - 1)) * (0.5 + u / 2) * MS)
        retry_after_s: float = error.details.get("retry_after_s", 0)
        return max(delay_ns, round(retry_after_s * 1_000 * MS))

    def _attempt(self, node: NodeDefinition, token: _Token, path: str, at_ns: int, until_ns: int) -> _Ran[_Put]:
        config = node.config
        if isinstance(config, FanoutConfig):
            return self._fanout(node.id, config, token, path, at_ns, until_ns)

        def work(until_ns: int) -> _Ran[_Put]:
            match config:
                case EntryConfig():
                    return _Ran(at_ns, _entered(node.id, config, token))
                case ExitConfig():
                    return _Ran(at_ns, _exited(config, token))
                case ModelConfig():
                    return self._model(node.id, config, token, path, at_ns, until_ns)
                case GateConfig():
                    return self._gate(node.id, config, token, path, at_ns, until_ns)
            raise AssertionError(f"no meaning for {type(config).__name__}")

        return _limited(work, config.timeout_ms, node.id, at_ns, until_ns)

    # --- models and gates ------------------------------------------------------------------------------

    def _ask(self, node_id: str, path: str, model: str, at_ns: int, until_ns: int) -> _Ran[Reply]:
        """One model call; its answer has a text."""
        caller = (node_id, _branch(path))
        reply = self._reply(caller, model, at_ns)
        began, end_ns = _call_began(at_ns, caller), at_ns + reply.duration_ns
        if end_ns >= until_ns:
            return _Ran(until_ns, None, (began,))
        if reply.text is not None:
            return _Ran(end_ns, reply, (began, _call_ended(end_ns, reply.tokens_in + reply.tokens_out)))
        details = {} if reply.retry_after_s is None else {"retry_after_s": reply.retry_after_s}
        error = _failure(ErrorCode.MODEL_ERROR, node_id, **details)
        error = error.model_copy(update={"recoverable": reply.recoverable})
        return _Ran(end_ns, error, (began, _call_ended(end_ns)))

    def _reply(self, caller: _Caller, model: str, at_ns: int) -> Reply:
        """What the script gives. A choice if the call's number is open and makes a difference."""
        node_id, branch = caller
        replies: dict[Reply, set[int]] = {}
        for number in sorted(self.numbers.get(caller, {0})):
            call = Call(node_id=node_id, branch=branch, number=number, model=model, at_ns=at_ns)
            replies.setdefault(self.script(call), set()).add(number)
        reply = self.choices.pick([*replies])
        self.numbers[caller] = frozenset(number + 1 for number in replies[reply])
        return reply

    def _model(
        self, node_id: str, config: ModelConfig, token: _Token, path: str, at_ns: int, until_ns: int
    ) -> _Ran[_Put]:
        if not _has_prompt(config.prompt_template, token, self.variables, system=config.system_prompt):
            return _Ran(at_ns, _failure(ErrorCode.VALIDATION_ERROR, node_id))
        models = config.models()
        limit_ms = config.fallback_timeout_ms if len(models) > 1 else None
        story: _Story = ()
        for model in models:

            def work(until_ns: int, model: str = model, at_ns: int = at_ns) -> _Ran[Reply]:
                return self._ask(node_id, path, model, at_ns, until_ns)

            asked = work(until_ns) if limit_ms is None else _limited(work, limit_ms, node_id, at_ns, until_ns)
            story += asked.story
            at_ns = asked.end_ns
            if not isinstance(asked.result, ErrorInfo):
                break
        put = _answered(token, model, asked.result) if isinstance(asked.result, Reply) else asked.result
        return _Ran(at_ns, put, story)

    def _gate(
        self, node_id: str, config: GateConfig, token: _Token, path: str, at_ns: int, until_ns: int
    ) -> _Ran[_Put]:
        names = _names(token, self.variables)
        asks = config.mode != "expression" and bool(config.conditions)
        if config.mode != "llm":
            for condition in config.conditions:
                if _holds(condition.expression, names):
                    return _Ran(at_ns, _passed(node_id, config, token, condition))
        if not asks:
            return _Ran(at_ns, _passed(node_id, config, token, None))
        if not _has_prompt(config.evaluation_prompt, token, self.variables):
            return _Ran(at_ns, _failure(ErrorCode.VALIDATION_ERROR, node_id))
        asked = self._ask(node_id, path, config.model, at_ns, until_ns)
        if not isinstance(asked.result, Reply):
            return _Ran(asked.end_ns, asked.result, asked.story)
        meant = _meant(asked.result.text or "", config.conditions)
        return _Ran(asked.end_ns, _passed(node_id, config, token, meant), asked.story)

    # --- fanouts ---------------------------------------------------------------------------------------

    def _fanout(
        self, node_id: str, config: FanoutConfig, token: _Token, path: str, at_ns: int, until_ns: int
    ) -> _Ran[_Put]:
        """One attempt of a fanout: all its targets, side by side."""
        numbers = dict(self.numbers)
        slots = _slots(config)
        results, lanes = self._targets(config, token, path, at_ns, until_ns)
        fan = _Fan(at_ns, slots, tuple(lanes))
        failed = [index for index, result in enumerate(results) if isinstance(result, ErrorInfo)]
        if failed and config.fail_fast:
            first_ns = min(lanes[index].end_ns for index in failed)
            told = [index for index in failed if lanes[index].end_ns == first_ns]
            error = _passed_on([result for i in told if isinstance(result := results[i], ErrorInfo)])
            return _Ran(first_ns, error, self._cut_short(fan, first_ns, told[0], numbers))
        if None in results or len(results) < len(config.target_nodes):
            return _Ran(until_ns, None, (fan,))
        end_ns = max(lane.end_ns for lane in lanes)
        return _Ran(end_ns, _voted(node_id, config, results), (fan,))

    def _targets(
        self, config: FanoutConfig, token: _Token, path: str, at_ns: int, until_ns: int
    ) -> tuple[list[_Put | ErrorInfo | None], list[_Lane]]:
        """Interpret the targets that start before `until_ns`, each as if none disturbed another."""
        free_ns = [at_ns] * _slots(config)
        results: list[_Put | ErrorInfo | None] = []
        lanes: list[_Lane] = []
        for number, target in enumerate(config.target_nodes, start=1):
            if not free_ns or min(free_ns) >= until_ns:
                break
            start_ns = min(free_ns)
            free_ns.remove(start_ns)
            ran = self._target(config, target, token, f"{path}.{number}", start_ns, until_ns)
            frees = isinstance(ran.result, _Put) or (ran.result is not None and not config.fail_fast)
            if frees:
                free_ns.append(ran.end_ns)
            results.append(ran.result)
            lanes.append(_Lane(ran.story, ran.end_ns, frees))
        return results, lanes

    def _target(
        self, config: FanoutConfig, target: str, token: _Token, path: str, at_ns: int, until_ns: int
    ) -> _Ran[_Put]:
        child = _Token(token.payload)

        def work(until_ns: int) -> _Ran[_Put]:
            return self._step(self.graph.nodes[target], child, path, at_ns, until_ns)

        return _limited(work, config.timeout_ms, target, at_ns, until_ns)

    def _cut_short(self, fan: _Fan, at_ns: int, told: int, numbers: dict[_Caller, frozenset[int]]) -> _Story:
        """The story of a fanout whose target `told` failed at `at_ns`, which cancelled the others.

        `numbers` are those from before the fanout; calls that were not made after all no longer count.
        """
        sums = {cut.tally for cut in _fan_cuts(fan, at_ns, told)}
        steps = self.choices.pick(sorted({tally.steps for tally in sums}))
        earlier = (replace(fan, lanes=_lanes_before(fan, at_ns)),)
        calls = _calls_at(fan, at_ns, told)
        tallies = _few(frozenset(tally for tally in sums if tally.steps == steps))
        now = _Event(at_ns, tallies, calls, is_rest=True)
        for event in _events((*earlier, now)):
            for caller, counts in event.calls:
                known = numbers.get(caller, frozenset({0}))
                numbers[caller] = frozenset(number + count for number in known for count in counts)
        self.numbers = numbers
        return (*earlier, now)


def _limited(work: Callable[[int], _Ran[T]], limit_ms: int, node_id: str, at_ns: int, until_ns: int) -> _Ran[T]:
    """`work` from `at_ns` on, for less than `limit_ms`: at that moment it is a TIMEOUT of `node_id`.

    `until_ns` is the outer deadline; it wins if it is not later.
    """
    own_ns = at_ns + limit_ms * MS
    ran = work(min(own_ns, until_ns))
    if ran.result is None and own_ns < until_ns:
        return _Ran(own_ns, _failure(ErrorCode.TIMEOUT, node_id), ran.story)
    return ran


def _branch(path: str) -> str:
    _, dot, rest = path.partition(".")
    return dot + rest


# --- what single nodes do ------------------------------------------------------------------------------


def _entered(node_id: str, config: EntryConfig, token: _Token) -> _Put | ErrorInfo:
    fields = token.payload.fields()
    if any(fields.get(name) is None for name in config.required_fields):
        return _failure(ErrorCode.VALIDATION_ERROR, node_id)
    return _Put(_Token(token.payload.replace(error=None)))


def _exited(config: ExitConfig, token: _Token) -> _Put:
    told = {"exit_status": config.status, "exit_message": config.message}
    return _Put(_Token(token.payload.replace(error=None, metadata={**token.payload.metadata, **told})))


def _answered(token: _Token, model: str, reply: Reply) -> _Put:
    measured = {"model_used": model, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
    return _Put(_Token(token.payload.replace(error=None, content=reply.text), measured))


def _passed(node_id: str, config: GateConfig, token: _Token, condition: GateCondition | None) -> _Put | ErrorInfo:
    """What a gate puts out when `condition` is its choice; None: no condition is."""
    name, target = (condition.name, condition.target) if condition else ("default", config.default_target)
    if target is None:
        return _failure(ErrorCode.GATE_FAILED, node_id)
    return _Put(_Token(token.payload.replace(error=None, matched_condition=name)), target)


def _slots(config: FanoutConfig) -> int:
    """How many targets may run at a time."""
    count = len(config.target_nodes)
    return min(config.max_parallel_branches or count, count) if config.parallel else 1


def _voted(node_id: str, config: FanoutConfig, results: Sequence[_Put | ErrorInfo | None]) -> _Put | ErrorInfo:
    """The majority's answer, or why there is none."""
    errors = [result for result in results if isinstance(result, ErrorInfo)]
    if errors and config.require_all_success:
        return _passed_on(errors)
    voters: dict[str, list[_Put]] = {}
    for result in results:
        if isinstance(result, _Put):
            words = (result.token.payload.content or "").casefold().split()
            voters.setdefault(" ".join(words), []).append(result)
    voters.pop("", None)
    # `max` takes the first of equals, and the answers stand in the order of their first voters.
    most = max(voters.values(), key=len, default=[])
    if len(most) >= config.votes_needed:
        return _Put(_Token(most[0].token.payload))
    return _passed_on(errors) if errors else _failure(ErrorCode.GATE_FAILED, node_id, failures=[])


def _passed_on(errors: Sequence[ErrorInfo]) -> ErrorInfo:
    """The first of the targets' errors; its details tell all."""
    failures = [{"node": error.node_id, "code": error.code.value, "message": ""} for error in errors]
    return errors[0].model_copy(update={"details": {**errors[0].details, "failures": failures}})


def _calls_at(fan: _Fan, at_ns: int, told: int) -> tuple[tuple[_Caller, frozenset[int]], ...]:
    """How many calls each caller may have begun at `at_ns`: all of `told`, any number of the others."""
    found: dict[_Caller, frozenset[int]] = {}
    for index, lane in enumerate(fan.lanes):
        for event in _events(lane.story):
            for caller, counts in event.calls if event.at_ns == at_ns else ():
                options = counts if index == told else {0, *counts}
                known = found.get(caller, frozenset({0}))
                found[caller] = frozenset(one + other for one in known for other in options)
    return tuple(found.items())


# --- names, templates, answers -------------------------------------------------------------------------


def _names(token: _Token, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What conditions and templates can name on a message."""
    names = token.payload.model_dump(mode="json")
    names["metadata"] = {**token.measured, **names["metadata"]}
    names["variables"] = dict(variables)
    return names


_parsed = lru_cache(maxsize=1_024)(expressions.parse)


def _holds(condition: str, names: Mapping[str, Any]) -> bool:
    """Whether a condition is true; one that fails is not."""
    try:
        return bool(_parsed(condition).evaluate(names))
    except ExpressionError:
        return False


_NAME = r"[^\W\d]\w*"
_HOLE = re.compile(rf"\{{\{{{_NAME}(?:\.\w+)?\}}\}}|\{{({_NAME})(?:\.(\w+))?\}}")


def _has_prompt(template: str | None, token: _Token, variables: Mapping[str, Any], system: str | None = None) -> bool:
    """Whether there is something to ask: every name of the templates has a value.

    Without a template the content is asked, else the task. Scripts do not see prompts, so none is rendered.
    """
    if template is None:
        payload = token.payload
        has_text = payload.content is not None or payload.task is not None
    else:
        has_text = _is_filled(template, _names(token, variables))
    return has_text and (system is None or _is_filled(system, _names(token, variables)))


def _is_filled(template: str, names: Mapping[str, Any]) -> bool:
    for hole in _HOLE.finditer(template):
        name, key = hole.groups()
        if name is None:
            continue
        value = names.get(name)
        if key is not None:
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            return False
    return True


def _meant(answer: str, conditions: Sequence[GateCondition]) -> GateCondition | None:
    """The condition that a model's answer names: by equality, else as the only one that it mentions."""
    by_name: dict[str, GateCondition] = {}
    for condition in conditions:
        by_name.setdefault(condition.name.strip().casefold(), condition)
    by_name.pop("", None)
    said = answer.strip().casefold()
    equal = [name for name in by_name if said == name]
    bare = [name for name in by_name if _bare(said) == _bare(name) != ""]
    mentioned = [name for name in by_name if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", said)]
    meant = equal or bare[:1] or mentioned
    return by_name[meant[0]] if len(meant) == 1 else None


def _bare(text: str) -> str:
    """`text` without outer white space and punctuation."""
    kept = [index for index, char in enumerate(text) if not _is_outer(char)]
    return text[kept[0] : kept[-1] + 1] if kept else ""


def _is_outer(char: str) -> bool:
    return char.isspace() or unicodedata.category(char)[0] in "PS"
