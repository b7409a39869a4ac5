"""The specification as a program: what a run of a graph may end with, given what its model calls give.

Nothing here waits, and nothing here knows the engine. A *script* says how long each model call takes and what it
gives; the rest takes no time. A step is interpreted from its start to its end at once and leaves a *story*: what
began and ended when. Targets of a fanout are interpreted one after another, each as if it were alone, and their
stories are put together. Three things cut stories short: a deadline, known beforehand, so that nothing is
interpreted beyond it (`until_ns`); the first failure under `fail_fast`; and the first step over `max_steps`.

The last two can strike while something else happens at the same moment, which may or may not be over then. Such
events stay in the story as uncertain ones, and the outcome says which of its counts they make inexact. What
decides how the run goes on is a choice, and every choice is followed: which of several failures of one moment is
told (with those after it in `details.failures`), and what a model says if the number of earlier calls is open.
"""

from __future__ import annotations

import random
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
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

T = TypeVar("T")

NS_PER_MS = 1_000_000
WORLDS_MAX = 256  #: Sequences of choices that are followed in one run.
#: A name, or a name and a key, in a template; none if the braces are doubled, which makes them text.
_HOLE = re.compile(r"\{\{[^\W\d]\w*(?:\.\w+)?\}\}|\{([^\W\d]\w*)(?:\.(\w+))?\}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What the script is asked: one model call.

    `branch` is the path of the calling step without its first component: "" for a visited node, ".2" for the
    second target of a fanout, ".2.1" for the first one inside it. `number` is how many calls this node made
    before on this branch, over all visits, attempts and fallbacks of the run. `at_ns` counts from its start.
    """

    node_id: str
    branch: str
    number: int
    model: str
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What the script gives after `duration_ns`: `text`, or, if that is None, a MODEL_ERROR of the last two fields."""

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
    ones too. Where a cut met other things of the same moment, counts are open: unless `exact_attempts`,
    `attempts` and `tokens` say nothing, and unless `exact_steps`, `steps` does not.
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
    exact_steps: bool = True


class TooManyOutcomesError(TinyLLMError):
    """Too much happens at one moment: over `WORLDS_MAX` choices, or `max_steps` hangs on steps that are open."""


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

    `script` must be pure: it may be asked for the same call more than once. Raises UsageError if `entry` is no
    entry point of the graph, TooManyOutcomesError if not every outcome can be told.
    """
    if entry is not None and entry not in graph.definition.entry_points:
        raise UsageError(f"{entry!r} is no entry point; there are {', '.join(graph.definition.entry_points)}")
    outcomes: list[Outcome] = []
    worlds: list[list[int]] = [[]]
    for laid_down in worlds:
        world = _World(graph, config, script, seed, variables or {}, laid_down, steps_left=config.max_steps)
        outcome = world.run(payload, entry or graph.entry)
        outcomes += [outcome] if outcome not in outcomes else []
        worlds += world.untaken
        if len(worlds) > WORLDS_MAX:
            raise TooManyOutcomesError(f"more than {WORLDS_MAX} orders of what happens at one moment")
    return tuple(outcomes)


# --- values --------------------------------------------------------------------------------------------

_Caller: TypeAlias = tuple[str, str]  #: A node and the branch on which it calls.
_Way: TypeAlias = str | tuple[str, ErrorInfo | None]  #: The node to go to, or status and error to end with.
_Story: TypeAlias = "tuple[_Event, ...]"
_Lanes: TypeAlias = "Sequence[_Ran[_Token]]"  #: A fanout's targets that started; each story begins with its step.


@dataclass(frozen=True, slots=True)
class _Token:
    """The message at hand: its payload, the fields of its metadata that were set, and the way that was named."""

    payload: MessagePayload
    measured: Mapping[str, Any] = field(default_factory=dict)
    way: str | None = None


@dataclass(frozen=True, slots=True)
class _Job:
    """Work on a node's behalf: from `at_ns` on, and over before `until_ns`."""

    node: NodeDefinition
    token: _Token
    path: str
    at_ns: int
    until_ns: int


@dataclass(frozen=True, slots=True)
class _Event:
    """A step or an attempt began, a call ended with `tokens`, or one of `caller` began, which counts nothing.

    Unless `is_certain`, a cut left open whether it happened. Unless `is_ordered`, other things of its moment may
    come before or after it, wherever they stand in the story.
    """

    at_ns: int
    steps: int = 0
    attempts: int = 0
    tokens: int = 0
    caller: _Caller | None = None
    is_certain: bool = True
    is_ordered: bool = True


@dataclass(frozen=True, slots=True)
class _Ran(Generic[T]):
    """A job ended at `end_ns` with a result, with an error (or one of `others`), or was cut off there (None)."""

    end_ns: int
    result: T | ErrorInfo | None
    story: _Story = ()
    others: tuple[ErrorInfo, ...] = ()


def _failure(code: ErrorCode, node_id: str, **details: Any) -> ErrorInfo:
    return ErrorInfo(code=code, message="", details=details, recoverable=code in RECOVERABLE, node_id=node_id)


# --- a run ---------------------------------------------------------------------------------------------


@dataclass
class _World:
    """One run, with every choice taken: as `laid_down`, then always the first option."""

    graph: Graph
    config: ExecutorConfig
    script: Script
    seed: int
    variables: Mapping[str, Any]
    laid_down: list[int]
    steps_left: int
    steps_open: int = 0  #: Steps that may have begun beside those that did.
    taken: list[int] = field(default_factory=list)
    untaken: list[list[int]] = field(default_factory=list)
    visits: list[str] = field(default_factory=list)
    story: list[_Event] = field(default_factory=list)
    absorbed: list[ErrorInfo] = field(default_factory=list)
    numbers: dict[_Caller, set[int]] = field(default_factory=dict)  #: How many calls each caller may have made.

    def pick(self, options: Sequence[T]) -> T:
        if len(self.taken) == len(self.laid_down):
            self.untaken += [[*self.taken, index] for index in range(1, len(options))]
            self.laid_down = [*self.taken, 0]
        self.taken.append(self.laid_down[len(self.taken)])
        return options[self.taken[-1]]

    def run(self, payload: MessagePayload, entry: str) -> Outcome:
        token, at_ns, way = _Token(payload), 0, entry
        while self._limit_ns((_Event(at_ns, steps=1),)) is None:
            self.visits.append(way)
            node = self.graph.nodes[way]
            ran = self._step(_Job(node, token, str(len(self.visits)), at_ns, self.config.timeout_ms * NS_PER_MS))
            limit_ns = self._limit_ns(ran.story)
            if limit_ns is not None:
                self.story += _up_to_limit(ran.story, limit_ns, self.steps_left)
                at_ns = limit_ns
                break
            self.story += ran.story
            self.steps_left -= _steps(ran.story)
            self.steps_open += sum(event.steps for event in ran.story if not event.is_certain)
            at_ns = ran.end_ns
            token, next_way = self._after(node, token, ran.result)
            if not isinstance(next_way, str):
                return self._outcome(*next_way, token, at_ns)
            way = next_way
        self.steps_left = self.steps_open = 0
        return self._outcome("failed", _failure(ErrorCode.BOUNDS_EXCEEDED, way), token, at_ns)

    def _limit_ns(self, story: _Story) -> int | None:
        """When the first step too many would begin; None if there is none in `story`."""
        certain_ns = sorted(event.at_ns for event in story if event.steps and event.is_certain)
        all_ns = sorted(event.at_ns for event in story if event.steps)
        latest_ns = certain_ns[self.steps_left :][:1]
        if all_ns[self.steps_left - self.steps_open :][:1] != latest_ns:
            raise TooManyOutcomesError("steps that may or may not have begun decide when max_steps is reached")
        return latest_ns[0] if latest_ns else None

    def _outcome(self, status: str, error: ErrorInfo | None, token: _Token, at_ns: int) -> Outcome:
        return Outcome(
            status=status,
            error_code=error.code.value if error else None,
            error_node=error.node_id if error else None,
            payload=token.payload,
            visits=tuple(self.visits),
            steps=self.config.max_steps - self.steps_left,
            attempts=sum(event.attempts for event in self.story if event.is_certain),
            tokens=sum(event.tokens for event in self.story if event.is_certain),
            elapsed_ns=at_ns,
            exact_attempts=all(event.is_certain for event in self.story if event.caller is None),
            exact_steps=self.steps_open == 0,
        )

    def _after(self, node: NodeDefinition, received: _Token, result: _Token | ErrorInfo | None) -> tuple[_Token, _Way]:
        """What the token carries on after its visit of `node`, and its way."""
        if result is None:
            return received, ("timed_out", _failure(ErrorCode.TIMEOUT, node.id))
        if isinstance(result, ErrorInfo):
            return self._after_failure(node, received, result)
        if isinstance(node.config, ExitConfig):
            return result, self._exit(node.id, node.config.status)
        if result.way is None:
            return result, self._edge(node.id, result)
        is_way = result.way in self.graph.ways(node.id)
        return result, result.way if is_way else ("failed", _failure(ErrorCode.ROUTING_ERROR, node.id))

    def _after_failure(self, node: NodeDefinition, received: _Token, error: ErrorInfo) -> tuple[_Token, _Way]:
        policy, payload = self.config.failure_policy, received.payload
        if node.on_error is not None:
            return _Token(payload.replace(error=error)), node.on_error
        is_fatal = policy == "fail_fast" or isinstance(node.config, EntryConfig)
        if is_fatal or len(self.absorbed) == self.config.max_node_failures:
            return received, ("failed", error)
        self.absorbed.append(error)
        if policy == "best_effort":
            return received, ("degraded", self.absorbed[0])
        if policy == "fallback_simple":
            metadata = {**payload.metadata, "fallback": True}
            received = _Token(payload.replace(content=self.config.fallback_response, metadata=metadata))
        return received, self._edge(node.id, received)

    def _exit(self, node_id: str, status: str) -> _Way:
        if status in ("failure", "error", "timeout"):
            return "failed", _failure(ErrorCode.EXIT_FAILED, node_id)
        first = self.absorbed[0] if self.absorbed else None
        return "succeeded" if status == "success" and first is None else "degraded", first

    def _edge(self, node_id: str, token: _Token) -> _Way:
        names, edges = _names(token, self.variables), self.graph.edges_from(node_id)
        holding = [edge.to_node for edge in edges if edge.condition is not None and _holds(edge.condition, names)]
        plain = [edge.to_node for edge in edges if edge.condition is None]
        return next(iter(holding + plain), ("failed", _failure(ErrorCode.ROUTING_ERROR, node_id)))

    def _step(self, job: _Job) -> _Ran[_Token]:
        """One execution of a node with its retries."""
        config = job.node.config
        limit_ms = None if isinstance(config, FanoutConfig) else config.timeout_ms
        story: _Story = (_Event(job.at_ns, steps=1, attempts=1),)
        retry = 0
        while True:
            ran = _limited(self._attempt, job, limit_ms)
            story += ran.story
            if not isinstance(ran.result, ErrorInfo):
                return replace(ran, story=story)
            retry += 1
            error, delay_ns = self._told(job, (ran.result, *ran.others), retry)
            if delay_ns is None:
                return _Ran(ran.end_ns, error, story)
            job = replace(job, at_ns=ran.end_ns + delay_ns)
            # With a step too many the run is over before this one ends, so its end does not matter.
            if job.at_ns >= job.until_ns or _steps(story) > self.steps_left:
                return _Ran(job.until_ns, None, story)
            story += (_Event(job.at_ns, attempts=1),)

    def _told(self, job: _Job, errors: Sequence[ErrorInfo], retry: int) -> tuple[ErrorInfo, int | None]:
        """Which error an attempt ended with, and the delay before this retry. A choice only if it matters."""
        delays_ns = [self._delay_ns(job, error, retry) for error in errors]
        if None in delays_ns or len(set(delays_ns)) > 1:
            return self.pick([*zip(errors, delays_ns, strict=True)])
        return errors[0], delays_ns[0]

    def _delay_ns(self, job: _Job, error: ErrorInfo, retry: int) -> int | None:
        """How long to wait before retry number `retry`, from 1, in whole nanoseconds; None: no such retry."""
        config = job.node.config
        if not error.recoverable or retry > config.retry_count:
            return None
        delay_ms: float = config.retry_delay_ms
        if config.retry_backoff == "exponential":
            generator = random.Random(f"{self.seed}:{job.path}")
            u = [generator.random() for _ in range(retry)][-1]
            delay_ms = min(60_000, config.retry_delay_ms * 2 ** (retry - 1)) * (0.5 + u / 2)
        retry_after_s: float = error.details.get("retry_after_s", 0)
        return max(round(delay_ms * NS_PER_MS), round(retry_after_s * 1_000 * NS_PER_MS))

    def _attempt(self, job: _Job) -> _Ran[_Token]:
        payload = job.token.payload
        match job.node.config:
            case EntryConfig(required_fields=required):
                is_complete = all(payload.fields().get(name) is not None for name in required)
                put = _Token(payload.replace(error=None))
                return _Ran(job.at_ns, put if is_complete else _failure(ErrorCode.VALIDATION_ERROR, job.node.id))
            case ExitConfig(status=status, message=message):
                metadata = {**payload.metadata, "exit_status": status, "exit_message": message}
                return _Ran(job.at_ns, _Token(payload.replace(error=None, metadata=metadata)))
            case ModelConfig() as config:
                return self._model(job, config)
            case GateConfig() as config:
                return self._gate(job, config)
        assert isinstance(job.node.config, FanoutConfig)
        return self._fanout(job, job.node.config)

    def _ask(self, job: _Job, model: str) -> _Ran[Reply]:
        """One model call; its answer has a text. A choice if its number is open and makes a difference."""
        _, dot, branch = job.path.partition(".")
        caller = (job.node.id, dot + branch)
        replies: dict[Reply, set[int]] = {}
        for number in sorted(self.numbers.get(caller, {0})):
            call = Call(node_id=caller[0], branch=caller[1], number=number, model=model, at_ns=job.at_ns)
            replies.setdefault(self.script(call), set()).add(number + 1)
        reply = self.pick([*replies])
        self.numbers[caller] = replies[reply]
        began, end_ns = _Event(job.at_ns, caller=caller), job.at_ns + reply.duration_ns
        if end_ns >= job.until_ns:
            return _Ran(job.until_ns, None, (began,))
        if reply.text is not None:
            return _Ran(end_ns, reply, (began, _Event(end_ns, tokens=reply.tokens_in + reply.tokens_out)))
        details = {} if reply.retry_after_s is None else {"retry_after_s": reply.retry_after_s}
        error = _failure(ErrorCode.MODEL_ERROR, job.node.id, **details)
        return _Ran(end_ns, error.model_copy(update={"recoverable": reply.recoverable}), (began,))

    def _model(self, job: _Job, config: ModelConfig) -> _Ran[_Token]:
        if not _has_prompt(config.prompt_template, job.token, self.variables, system=config.system_prompt):
            return _Ran(job.at_ns, _failure(ErrorCode.VALIDATION_ERROR, job.node.id))
        models = config.models()
        limit_ms = config.fallback_timeout_ms if len(models) > 1 else None
        story: _Story = ()
        for model in models:
            asked = _limited(partial(self._ask, model=model), job, limit_ms)
            story += asked.story
            job = replace(job, at_ns=asked.end_ns)
            if not isinstance(asked.result, ErrorInfo):
                break
        reply = asked.result
        if not isinstance(reply, Reply):
            return _Ran(asked.end_ns, reply, story)
        measured = {"model_used": model, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
        return _Ran(asked.end_ns, _Token(job.token.payload.replace(error=None, content=reply.text), measured), story)

    def _gate(self, job: _Job, config: GateConfig) -> _Ran[_Token]:
        end_ns = job.at_ns
        story: _Story = ()
        names = _names(job.token, self.variables)
        holding = (it for it in config.conditions if config.mode != "llm" and _holds(it.expression, names))
        condition = next(holding, None)
        if condition is None and config.mode != "expression" and config.conditions:
            if not _has_prompt(config.evaluation_prompt, job.token, self.variables):
                return _Ran(end_ns, _failure(ErrorCode.VALIDATION_ERROR, job.node.id))
            asked = self._ask(job, config.model)
            if not isinstance(asked.result, Reply):
                return _Ran(asked.end_ns, asked.result, asked.story)
            condition = _meant(asked.result.text or "", config.conditions)
            end_ns, story = asked.end_ns, asked.story
        name, target = (condition.name, condition.target) if condition else ("default", config.default_target)
        if target is None:
            return _Ran(end_ns, _failure(ErrorCode.GATE_FAILED, job.node.id), story)
        payload = job.token.payload.replace(error=None, matched_condition=name)
        return _Ran(end_ns, _Token(payload, way=target), story)

    def _fanout(self, job: _Job, config: FanoutConfig) -> _Ran[_Token]:
        """One attempt of a fanout. Of several failures at the moment when the first one ends it, any may be told."""
        numbers = dict(self.numbers)
        count = len(config.target_nodes)
        slots = min(config.max_parallel_branches or count, count) if config.parallel else 1
        lanes = self._lanes(job, config, slots)
        failed = [lane for lane in lanes if config.fail_fast and isinstance(lane.result, ErrorInfo)]
        end_ns = min((lane.end_ns for lane in failed), default=job.until_ns)
        failed = [lane for lane in failed if lane.end_ns == end_ns]
        story = _side_by_side(lanes, slots, end_ns, failed)
        if failed:
            self.numbers = _counted(numbers, story)
            errors = [lane.result for lane in failed if isinstance(lane.result, ErrorInfo)]
            told = [_passed_on(errors[i:]) for i, error in enumerate(errors) if error not in errors[:i]]
            return _Ran(end_ns, told[0], story, tuple(told[1:]))
        results = [lane.result for lane in lanes]
        if None in results or len(results) < count:
            return _Ran(end_ns, None, story)
        return _Ran(max(lane.end_ns for lane in lanes), _voted(job.node.id, config, results), story)

    def _lanes(self, job: _Job, config: FanoutConfig, slots: int) -> list[_Ran[_Token]]:
        """The targets that start before `until_ns`, each as if none disturbed another."""
        free_ns = [job.at_ns] * slots
        lanes: list[_Ran[_Token]] = []
        for number, target in enumerate(config.target_nodes, start=1):
            at_ns = min(free_ns, default=job.until_ns)
            if at_ns >= job.until_ns:
                break
            free_ns.remove(at_ns)
            child = _Job(
                self.graph.nodes[target], _Token(job.token.payload), f"{job.path}.{number}", at_ns, job.until_ns
            )
            lane = _limited(self._step, child, config.timeout_ms)
            lanes.append(lane)
            if isinstance(lane.result, _Token) or (lane.result is not None and not config.fail_fast):
                free_ns.append(lane.end_ns)
        return lanes


# --- stories -------------------------------------------------------------------------------------------


def _steps(story: Iterable[_Event]) -> int:
    """The steps that began for certain."""
    return sum(event.steps for event in story if event.is_certain)


def _up_to_limit(story: _Story, at_ns: int, steps_left: int) -> _Story:
    """What of `story` had happened when, at `at_ns`, the first step too many would have begun."""
    earlier = tuple(event for event in story if event.at_ns < at_ns)
    now = tuple(event for event in story if event.at_ns == at_ns and event.caller is None)
    starts = [place for place, event in enumerate(now) if event.steps and event.is_certain]
    too_many = starts[steps_left - _steps(earlier)]
    # Of events that are all steps, as many count the same in any order.
    if len(starts) == len(now) or all(event.is_ordered for event in now[: too_many + 1]):
        return (*earlier, *now[:too_many])
    return (*earlier, *(replace(event, is_certain=False) for event in now))


def _side_by_side(lanes: _Lanes, slots: int, end_ns: int, failed: _Lanes) -> _Story:
    """The story of a fanout up to `end_ns`, when these targets failed, if any.

    `slots` targets begin with it, and do so before anything else of that moment. What happens as it ends is open
    but for what led there: the only failure, and targets that ended then while nothing else happened.
    """
    crowded = _crowded(lanes, slots)
    story = [lane.story[0] for lane in lanes[:slots]]
    for index, lane in enumerate(lanes):
        led = [lane] == failed or (lane.end_ns == end_ns and end_ns not in crowded)
        for event in lane.story[int(index < slots) :]:
            if event.at_ns <= end_ns:
                is_certain = event.is_certain and (led or event.at_ns < end_ns)
                is_ordered = event.is_ordered and event.at_ns not in crowded
                story.append(replace(event, is_certain=is_certain, is_ordered=is_ordered))
    return tuple(story)


def _crowded(lanes: _Lanes, slots: int) -> set[int]:
    """When several targets do something, other than begin, and not each when the one before left it its slot."""
    crowded: set[int] = set()
    latest: dict[int, _Ran[_Token]] = {}
    for index, lane in enumerate(lanes):
        for at_ns in {lane.end_ns, *(event.at_ns for event in lane.story[1:] if event.caller is None)}:
            before = latest.get(at_ns, lane)
            if before is not lane and not (before.end_ns == at_ns == lane.story[0].at_ns and index >= slots):
                crowded.add(at_ns)
            latest[at_ns] = lane
    return crowded


def _counted(numbers: Mapping[_Caller, set[int]], story: _Story) -> dict[_Caller, set[int]]:
    """How many calls each caller may have made after `story`; those of work that was cut off no longer count."""
    counted = dict(numbers)
    for event in story:
        if event.caller is not None:
            known = counted.get(event.caller, {0})
            made = {number + 1 for number in known}
            counted[event.caller] = made if event.is_certain else known | made
    return counted


def _limited(work: Callable[[_Job], _Ran[T]], job: _Job, limit_ms: int | None) -> _Ran[T]:
    """`job` done in less than `limit_ms`: at that moment it is a TIMEOUT. An outer deadline wins if not later."""
    own_ns = job.until_ns if limit_ms is None else job.at_ns + limit_ms * NS_PER_MS
    ran = work(replace(job, until_ns=min(own_ns, job.until_ns)))
    if ran.result is None and own_ns < job.until_ns:
        return _Ran(own_ns, _failure(ErrorCode.TIMEOUT, job.node.id), ran.story)
    return ran


def _voted(node_id: str, config: FanoutConfig, results: Sequence[_Token | ErrorInfo | None]) -> _Token | ErrorInfo:
    """The majority's answer, or why there is none."""
    voters: dict[str, list[_Token]] = {}
    for result in results:
        if isinstance(result, _Token) and (words := (result.payload.content or "").casefold().split()):
            voters.setdefault(" ".join(words), []).append(result)
    # `max` takes the first of equals, and the answers stand in the order of their first voters.
    most = max(voters.values(), key=len, default=[])
    errors = [result for result in results if isinstance(result, ErrorInfo)]
    if len(most) >= config.votes_needed and not (errors and config.require_all_success):
        return _Token(most[0].payload)
    return _passed_on(errors) if errors else _failure(ErrorCode.GATE_FAILED, node_id, failures=[])


def _passed_on(errors: Sequence[ErrorInfo]) -> ErrorInfo:
    """The first of the targets' errors; its details tell all."""
    failures = [{"node": error.node_id, "code": error.code.value, "message": ""} for error in errors]
    return errors[0].model_copy(update={"details": {**errors[0].details, "failures": failures}})


def _names(token: _Token, variables: Mapping[str, Any]) -> dict[str, Any]:
    """What conditions and templates can name on a message."""
    names = token.payload.model_dump(mode="json")
    return {**names, "metadata": {**token.measured, **names["metadata"]}, "variables": dict(variables)}


def _holds(condition: str, names: Mapping[str, Any]) -> bool:
    """Whether a condition is true; one that fails is not."""
    try:
        return bool(expressions.parse(condition).evaluate(names))
    except ExpressionError:
        return False


def _has_prompt(template: str | None, token: _Token, variables: Mapping[str, Any], system: str | None = None) -> bool:
    """Whether all names of the templates have values; without a template, whether there is content or a task."""
    if template is None and token.payload.content is None and token.payload.task is None:
        return False
    names = _names(token, variables)
    for name, key in _HOLE.findall(f"{template or ''}\n{system or ''}"):
        value = names.get(name)
        if key:
            value = value.get(key) if isinstance(value, dict) else None
        if name and value is None:
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
    return text.strip("".join(char for char in text if char.isspace() or unicodedata.category(char)[0] in "PS"))
