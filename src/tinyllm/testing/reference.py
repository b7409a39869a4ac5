"""The specification as a program: what a run of a graph may end with, given what its model and tool calls give.

Nothing here waits, and nothing here knows the engine. A *script* says how long each call takes and what it
gives; the rest takes no time. A step is interpreted from its start to its end at once and leaves a *story*: what
began and ended when. Targets of a fanout are interpreted one after another, each as if it were alone, and their
stories are put together. Three things cut stories short: a deadline, known beforehand, so that nothing is
interpreted beyond it (`until_ns`); what ends a fanout early, the first failure under `fail_fast` or the first
success; and a limit of the run, the first step over `max_steps` or the end of the one that crossed `max_tokens`.

The last two can strike while something else happens at the same moment, which may or may not be over then. Such
events stay in the story as uncertain ones, and the outcome says which of its counts they make inexact. What
decides how the run goes on is a choice, and every choice is followed: which of several failures of one moment is
told (with those after it in `details.failures`), which of several successes wins, and what a call gives if the
number of earlier ones is open, and whether a breaker lets through a step that begins as it opens or closes.

Circuit breakers are the one thing that targets of a fanout share. Where they run beside each other, all are
interpreted again, each with what the others did last time, until none does anything new.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

from tinyllm.config import (
    EntryConfig,
    ExecutorConfig,
    ExitConfig,
    FanoutConfig,
    GateConfig,
    LoopConfig,
    ModelConfig,
    NodeDefinition,
    NodeType,
    RouteDefinition,
    RouterConfig,
    TimeoutConfig,
    ToolConfig,
    TransformConfig,
)
from tinyllm.errors import ErrorCode, TinyLLMError, UsageError
from tinyllm.graph import Graph
from tinyllm.message import ErrorInfo, MessagePayload, ToolResult, checked_json
from tinyllm.schemas import Schema
from tinyllm.testing import reference_breaker as breakers
from tinyllm.testing import reference_text as texts
from tinyllm.testing.reference_judging import failure, iteration, judged, loop_names, passed_on, put_out, tally
from tinyllm.testing.reference_story import (
    Caller,
    Event,
    OpenLimitError,
    Ran,
    Room,
    Story,
    counted,
    limit_of,
    side_by_side,
    steps_of,
    up_to_limit,
)
from tinyllm.testing.reference_text import Token, holds, names_on

__all__ = [
    "Call",
    "Outcome",
    "Reply",
    "Script",
    "TooManyOutcomesError",
    "ToolCall",
    "ToolReply",
    "ToolScript",
    "interpret",
]

T = TypeVar("T")

NS_PER_MS = 1_000_000
WORLDS_MAX = 256  #: Sequences of choices that are followed in one run.
ROUNDS_MAX = 32  #: How often targets that share a circuit breaker are interpreted.
_REFUSED = -1  #: Stands for the number of a step that a breaker does not let through.


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
class ToolCall:
    """What the tool script is asked: one tool call. The fields are those of `Call`, and what the tool is given."""

    node_id: str
    branch: str
    number: int
    tool_id: str
    arguments: Mapping[str, Any]
    at_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolReply:
    """What the tool gives after `duration_ns`: `output`, or an error of this code.

    `recoverable` has no effect on codes that never are. Arguments and output that do not fit the tool's schema
    are for the script to refuse, with VALIDATION_ERROR; an output that is no JSON is refused here.
    """

    duration_ns: int = 0
    output: Any = None
    error_code: ErrorCode | None = None
    recoverable: bool = True


ToolScript: TypeAlias = Callable[[ToolCall], ToolReply]


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
    """Too much happens at one moment to tell every outcome.

    Over `WORLDS_MAX` choices; or a limit that hangs on what may or may not have happened, or on the order of
    what did; or a circuit breaker that does.
    """


def interpret(
    graph: Graph,
    config: ExecutorConfig,
    payload: MessagePayload,
    script: Script,
    *,
    seed: int,
    entry: str | None = None,
    variables: Mapping[str, Any] | None = None,
    tools: ToolScript | None = None,
) -> tuple[Outcome, ...]:
    """Every outcome that the specification allows, each once; one unless things of one moment meet.

    The scripts must be pure: they may be asked for the same call more than once. Raises UsageError if `entry` is
    no entry point of the graph, if a node's type is a custom one, if `max_message_bytes` is set (messages here
    have no ids), or if a tool is called without `tools`; TooManyOutcomesError if not every outcome can be told.
    """
    _require_interpretable(graph, config, entry)
    outcomes: list[Outcome] = []
    worlds: list[list[int]] = [[]]
    for laid_down in worlds:
        room = Room(config.max_steps, config.max_tokens)
        world = _World(graph, config, script, tools, seed, variables or {}, laid_down, room)
        try:
            outcome = world.run(payload, entry or graph.entry)
        except (OpenLimitError, breakers.OpenBreakerError) as error:
            raise TooManyOutcomesError(str(error)) from None
        outcomes += [outcome] if outcome not in outcomes else []
        worlds += world.untaken
        if len(worlds) > WORLDS_MAX:
            raise TooManyOutcomesError(f"more than {WORLDS_MAX} orders of what happens at one moment")
    return tuple(outcomes)


def _require_interpretable(graph: Graph, config: ExecutorConfig, entry: str | None) -> None:
    if entry is not None and entry not in graph.definition.entry_points:
        raise UsageError(f"{entry!r} is no entry point; there are {', '.join(graph.definition.entry_points)}")
    if config.max_message_bytes is not None:
        raise UsageError("max_message_bytes cannot be interpreted: messages have no ids here")
    for node in graph.definition.nodes:
        if not isinstance(node.type, NodeType):
            raise UsageError(f"{node.id!r} is of the custom type {node.type!r}, which cannot be interpreted")


# --- values --------------------------------------------------------------------------------------------

_Way: TypeAlias = str | tuple[str, ErrorInfo | None]  #: The node to go to, or status and error to end with.


@dataclass(frozen=True, slots=True)
class _Job:
    """Work on a node's behalf: from `at_ns` on, and over before `until_ns`."""

    node: NodeDefinition
    token: Token
    path: str
    at_ns: int
    until_ns: int

    def inside(self, node: NodeDefinition, payload: MessagePayload, suffix: str = "") -> _Job:
        """The step of a wrapped node, with a message of its own."""
        return replace(self, node=node, token=Token(payload), path=self.path + suffix)


def _put(job: _Job, **fields: Any) -> Token | ErrorInfo:
    """The payload received, without its error, with these fields."""
    return put_out(job.token.payload, job.node.id, **fields)


# --- a run ---------------------------------------------------------------------------------------------


@dataclass
class _World:
    """One run, with every choice taken: as `laid_down`, then always the first option."""

    graph: Graph
    config: ExecutorConfig
    script: Script
    tools: ToolScript | None
    seed: int
    variables: Mapping[str, Any]
    laid_down: list[int]
    room: Room
    taken: list[int] = field(default_factory=list)
    untaken: list[list[int]] = field(default_factory=list)
    offered: dict[int, int] = field(default_factory=dict)  #: How many options each choice had.
    visits: list[str] = field(default_factory=list)
    story: list[Event] = field(default_factory=list)
    absorbed: list[ErrorInfo] = field(default_factory=list)
    numbers: dict[Caller, set[int]] = field(default_factory=dict)  #: How many calls each caller may have made.
    marks: list[breakers.Mark] = field(default_factory=list)
    place: breakers.Place = ()
    counter: int = 0
    is_unclear: bool = False  #: Whether a breaker was asked that has seen what cannot be.

    def pick(self, options: Sequence[T]) -> T:
        if len(options) == 1:
            return options[0]
        place = len(self.taken)
        if place == len(self.laid_down):
            self.untaken += [[*self.taken, index] for index in range(1, len(options))]
            self.laid_down = [*self.taken, 0]
        # Targets that share a breaker may come to a choice again, and find it another one.
        if self.offered.setdefault(place, len(options)) != len(options):
            raise TooManyOutcomesError("choices hang on how targets disturb each other through a circuit breaker")
        self.taken.append(self.laid_down[place])
        return options[self.taken[-1]]

    def run(self, payload: MessagePayload, entry: str) -> Outcome:
        deadline_ns = self.config.timeout_ms * NS_PER_MS
        token, at_ns, way = Token(payload), 0, entry
        while not self._is_over_before_a_visit():
            self.visits.append(way)
            node = self.graph.nodes[way]
            ran = self._step(_Job(node, token, str(len(self.visits)), at_ns, deadline_ns))
            if self.is_unclear:
                raise TooManyOutcomesError("what a circuit breaker saw contradicts itself")
            limit = limit_of(tuple(event for event in ran.story if event.at_ns < deadline_ns), self.room)
            if limit is not None:
                self._tell(up_to_limit(ran.story, limit.at_ns, self.room))
                return self._bounds_exceeded(way, token, limit.at_ns, is_steps=limit.is_steps)
            self._tell(ran.story)
            at_ns = ran.end_ns
            token, next_way = self._after(node, token, ran.result)
            if not isinstance(next_way, str):
                return self._outcome(*next_way, token, at_ns)
            way = next_way
        return self._bounds_exceeded(way, token, at_ns, is_steps=self.room.steps == 0)

    def _is_over_before_a_visit(self) -> bool:
        if limit_of((Event(0, steps=1),), self.room) is not None:
            return True
        held, held_max = 1 + len(self.visits), self.config.max_messages
        # Pruning keeps the input and the newest.
        return held_max is not None and (min(held, 2) if self.config.prune else held) > held_max

    def _tell(self, story: Story) -> None:
        self.story += story
        self.room = self.room.after(story)

    def _bounds_exceeded(self, node_id: str, token: Token, at_ns: int, *, is_steps: bool) -> Outcome:
        outcome = self._outcome("failed", failure(ErrorCode.BOUNDS_EXCEEDED, node_id), token, at_ns)
        # However many of the open ones were among them.
        return replace(outcome, steps=self.config.max_steps, exact_steps=True) if is_steps else outcome

    def _outcome(self, status: str, error: ErrorInfo | None, token: Token, at_ns: int) -> Outcome:
        sure = [event for event in self.story if event.is_certain]
        unsure = [event for event in self.story if not event.is_certain]
        return Outcome(
            status=status,
            error_code=error.code.value if error else None,
            error_node=error.node_id if error else None,
            payload=token.payload,
            visits=tuple(self.visits),
            steps=sum(event.steps for event in sure),
            attempts=sum(event.attempts for event in sure),
            tokens=sum(event.tokens for event in sure),
            elapsed_ns=at_ns,
            exact_attempts=not any(event.attempts or event.tokens for event in unsure),
            exact_steps=not any(event.steps for event in unsure),
        )

    def _after(self, node: NodeDefinition, received: Token, result: Token | ErrorInfo | None) -> tuple[Token, _Way]:
        """What the token carries on after its visit of `node`, and its way."""
        if result is None:
            return received, ("timed_out", failure(ErrorCode.TIMEOUT, node.id))
        if isinstance(result, ErrorInfo):
            return self._after_failure(node, received, result)
        if isinstance(node.config, ExitConfig):
            return result, self._exit(node.id, node.config.status)
        if result.way is None:
            return result, self._edge(node.id, result)
        is_way = result.way in self.graph.ways(node.id)
        return result, result.way if is_way else ("failed", failure(ErrorCode.ROUTING_ERROR, node.id))

    def _after_failure(self, node: NodeDefinition, received: Token, error: ErrorInfo) -> tuple[Token, _Way]:
        policy, payload = self.config.failure_policy, received.payload
        if node.on_error is not None:
            return Token(payload.replace(error=error)), node.on_error
        is_fatal = policy == "fail_fast" or isinstance(node.config, EntryConfig)
        if is_fatal or len(self.absorbed) == self.config.max_node_failures:
            return received, ("failed", error)
        self.absorbed.append(error)
        if policy == "best_effort":
            return received, ("degraded", self.absorbed[0])
        if policy == "fallback_simple":
            metadata = {**payload.metadata, "fallback": True}
            received = Token(payload.replace(content=self.config.fallback_response, metadata=metadata))
        return received, self._edge(node.id, received)

    def _exit(self, node_id: str, status: str) -> _Way:
        if status in ("failure", "error", "timeout"):
            return "failed", failure(ErrorCode.EXIT_FAILED, node_id)
        first = self.absorbed[0] if self.absorbed else None
        return "succeeded" if status == "success" and first is None else "degraded", first

    def _edge(self, node_id: str, token: Token) -> _Way:
        names, edges = names_on(token, self.variables), self.graph.edges_from(node_id)
        holding = [edge.to_node for edge in edges if edge.condition is not None and holds(edge.condition, names)]
        plain = [edge.to_node for edge in edges if edge.condition is None]
        return next(iter(holding + plain), ("failed", failure(ErrorCode.ROUTING_ERROR, node_id)))

    # --- steps ---

    def _step(self, job: _Job, limit_ms: int | None = None, admission: int | None = None) -> Ran[Token]:
        """One execution of a node with its retries, in less than `limit_ms`; `admission` if its breaker was asked."""
        number = admission if admission is not None else self._admitted(job)
        if number == _REFUSED:
            refusal = failure(ErrorCode.CIRCUIT_OPEN, job.node.id)
            ran: Ran[Token] = Ran(job.at_ns, refusal, (Event(job.at_ns, steps=1),))
        else:
            ran = _limited(self._attempts, job, limit_ms)
            self._mark_end(job, number, ran)
        if self.room.tokens is None:
            return ran
        return replace(ran, story=(*ran.story, Event(ran.end_ns, ended=True, path=job.path)))

    def _attempts(self, job: _Job) -> Ran[Token]:
        config = job.node.config
        # The limit of a fanout is that of its targets, and a loop that reaches its own may still succeed.
        limit_ms = None if isinstance(config, FanoutConfig | LoopConfig) else config.timeout_ms
        story: Story = (Event(job.at_ns, steps=1, attempts=1),)
        retry = 0
        while True:
            ran = _limited(self._attempt, job, limit_ms)
            story += ran.story
            if not isinstance(ran.result, ErrorInfo):
                return replace(ran, story=story)
            retry += 1
            error, delay_ns = self._told(job, (ran.result, *ran.others), retry)
            if delay_ns is None:
                return Ran(ran.end_ns, _after_timeout(job, error), story)
            job = replace(job, at_ns=ran.end_ns + delay_ns)
            if job.at_ns >= job.until_ns or self._is_too_long(story):
                return Ran(job.until_ns, None, story)
            story += (Event(job.at_ns, attempts=1),)

    def _is_too_long(self, story: Story) -> bool:
        """Whether the run is over before what has this story ends, so that its end does not matter."""
        return steps_of(story) > self.room.steps

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

    def _attempt(self, job: _Job) -> Ran[Token]:
        payload = job.token.payload
        match job.node.config:
            case EntryConfig(required_fields=required):
                is_complete = all(payload.fields().get(name) is not None for name in required)
                put = _put(job) if is_complete else failure(ErrorCode.VALIDATION_ERROR, job.node.id)
                return Ran(job.at_ns, put)
            case ExitConfig(status=status, message=message):
                metadata = {**payload.metadata, "exit_status": status, "exit_message": message}
                return Ran(job.at_ns, _put(job, metadata=metadata))
            case TransformConfig() as config:
                return Ran(job.at_ns, self._transform(job, config))
            case ModelConfig() as config:
                return self._model(job, config)
            case RouterConfig() as config:
                return self._router(job, config)
            case GateConfig() as config:
                return self._gate(job, config)
            case ToolConfig() as config:
                return self._tool(job, config)
            case FanoutConfig() as config:
                return self._fanout(job, config)
            case LoopConfig() as config:
                return self._loop(job, config)
        assert isinstance(job.node.config, TimeoutConfig)
        ran = self._step(job.inside(self.graph.nodes[job.node.config.inner_node], payload))
        result = Token(ran.result.payload, way=ran.result.way) if isinstance(ran.result, Token) else ran.result
        return replace(ran, result=result)

    # --- nodes that ask ---

    def _numbered(self, job: _Job, ask: Callable[[str, int], T]) -> T:
        """What a call gives, by branch and number. A choice if its number is open and makes a difference."""
        _, dot, branch = job.path.partition(".")
        caller = (job.node.id, dot + branch)
        replies: list[tuple[T, set[int]]] = []
        for number in sorted(self.numbers.get(caller, {0})):
            reply = ask(caller[1], number)
            alike = next((after for known, after in replies if known == reply), None)
            if alike is None:
                replies.append((reply, {number + 1}))
            else:
                alike.add(number + 1)
        reply, self.numbers[caller] = self.pick(replies)
        return reply

    def _began(self, job: _Job) -> Event:
        _, dot, branch = job.path.partition(".")
        return Event(job.at_ns, caller=(job.node.id, dot + branch))

    def _ask(self, job: _Job, model: str) -> Ran[Reply]:
        """One model call; its answer has a text."""
        node_id, at_ns = job.node.id, job.at_ns

        def ask(branch: str, number: int) -> Reply:
            return self.script(Call(node_id=node_id, branch=branch, number=number, model=model, at_ns=at_ns))

        reply = self._numbered(job, ask)
        began, end_ns = self._began(job), at_ns + reply.duration_ns
        if end_ns >= job.until_ns:
            return Ran(job.until_ns, None, (began,))
        if reply.text is not None:
            tokens = reply.tokens_in + reply.tokens_out
            return Ran(end_ns, reply, (began, Event(end_ns, tokens=tokens, path=job.path)))
        details = {} if reply.retry_after_s is None else {"retry_after_s": reply.retry_after_s}
        error = failure(ErrorCode.MODEL_ERROR, node_id, **details)
        return Ran(end_ns, error.model_copy(update={"recoverable": reply.recoverable}), (began,))

    def _model(self, job: _Job, config: ModelConfig) -> Ran[Token]:
        if not texts.has_prompt(config.prompt_template, job.token, self.variables, system=config.system_prompt):
            return Ran(job.at_ns, failure(ErrorCode.VALIDATION_ERROR, job.node.id))
        models = config.models()
        limit_ms = config.fallback_timeout_ms if len(models) > 1 else None
        story: Story = ()
        for model in models:
            ran = self._answer(job, config, model, limit_ms)
            story += ran.story
            job = replace(job, at_ns=ran.end_ns)
            if not isinstance(ran.result, ErrorInfo):
                break
        return replace(ran, story=story)

    def _answer(self, job: _Job, config: ModelConfig, model: str, limit_ms: int | None) -> Ran[Token]:
        """What one model makes of the message, asked again while its answers do not fit the schema."""
        schema = None if config.response_schema is None else Schema(config.response_schema)
        story: Story = ()
        for _ in range(1 + config.repair_attempts):
            asked = _limited(partial(self._ask, model=model), job, limit_ms)
            story += asked.story
            if not isinstance(asked.result, Reply):
                return Ran(asked.end_ns, asked.result, story)
            reply, text = asked.result, asked.result.text or ""
            structured = None if schema is None else texts.fitting_object(text, schema)
            if schema is None or structured is not None:
                fields = {"content": text} if schema is None else {"content": text, "structured": structured}
                put = _put(job, **fields)
                measured = {"model_used": model, "tokens_in": reply.tokens_in, "tokens_out": reply.tokens_out}
                put = replace(put, measured=measured) if isinstance(put, Token) else put
                return Ran(asked.end_ns, put, story)
            job = replace(job, at_ns=asked.end_ns)
        return Ran(job.at_ns, failure(ErrorCode.MODEL_ERROR, job.node.id), story)

    def _tool(self, job: _Job, config: ToolConfig) -> Ran[Token]:
        if self.tools is None:
            raise UsageError(f"{job.node.id!r} calls a tool; hand `tools` to interpret()")
        script, node_id, tool_id, at_ns = self.tools, job.node.id, config.tool_id, job.at_ns
        names = names_on(job.token, self.variables)
        found = {name: texts.at_path(names, path.split(".")) for name, path in config.mapping().items()}
        arguments = {name: value for name, value in found.items() if value is not None}

        def ask(branch: str, number: int) -> ToolReply:
            call = ToolCall(
                node_id=node_id, branch=branch, number=number, tool_id=tool_id, arguments=arguments, at_ns=at_ns
            )
            return script(call)

        reply = self._numbered(job, ask)
        story, end_ns = (self._began(job),), at_ns + reply.duration_ns
        if end_ns >= job.until_ns:
            return Ran(job.until_ns, None, story)
        return Ran(end_ns, _after_tool(job, config, reply), story)

    def _gate(self, job: _Job, config: GateConfig) -> Ran[Token]:
        story: Story = ()
        names = names_on(job.token, self.variables)
        holding = (it for it in config.conditions if config.mode != "llm" and holds(it.expression, names))
        condition = next(holding, None)
        if condition is None and config.mode != "expression" and config.conditions:
            if not texts.has_prompt(config.evaluation_prompt, job.token, self.variables):
                return Ran(job.at_ns, failure(ErrorCode.VALIDATION_ERROR, job.node.id))
            asked = self._ask(job, config.model)
            if not isinstance(asked.result, Reply):
                return Ran(asked.end_ns, asked.result, asked.story)
            index = texts.meant(asked.result.text or "", [it.name for it in config.conditions])
            condition = None if index is None else config.conditions[index]
            job, story = replace(job, at_ns=asked.end_ns), asked.story
        name, target = (condition.name, condition.target) if condition else ("default", config.default_target)
        if target is None:
            return Ran(job.at_ns, failure(ErrorCode.GATE_FAILED, job.node.id), story)
        return Ran(job.at_ns, _named(_put(job, matched_condition=name), target), story)

    def _router(self, job: _Job, config: RouterConfig) -> Ran[Token]:
        if config.mode == "rules":
            names = names_on(job.token, self.variables)
            ruled = (it for it in config.in_order() if it.condition is not None and holds(it.condition, names))
            return Ran(job.at_ns, _routed(job, config, [*ruled][:1]))
        if config.mode == "keywords":
            named = texts.with_keyword(config, job.token.payload.content)
            return Ran(job.at_ns, _routed(job, config, [named] if named else []))
        if not texts.has_prompt(None, job.token, self.variables):
            return Ran(job.at_ns, failure(ErrorCode.VALIDATION_ERROR, job.node.id))
        if not config.routes:
            return Ran(job.at_ns, _routed(job, config, []))
        asked = self._ask(job, config.model)
        if not isinstance(asked.result, Reply):
            return Ran(asked.end_ns, asked.result, asked.story)
        answer = asked.result.text or ""
        if config.multi_label:
            return Ran(asked.end_ns, _routed(job, config, texts.labelled(config, answer)), asked.story)
        index = texts.meant(answer, [route.name for route in config.in_order()])
        route = [] if index is None else [config.in_order()[index]]
        return Ran(asked.end_ns, _routed(job, config, route), asked.story)

    def _transform(self, job: _Job, config: TransformConfig) -> Token | ErrorInfo:
        text = texts.text_of(job.token.payload)
        if text is None:
            return failure(ErrorCode.VALIDATION_ERROR, job.node.id)
        names = names_on(job.token, self.variables)
        for step in config.transforms:
            try:
                text = texts.transformed(text, step, names)
            except texts.TextError:
                if config.stop_on_error:
                    return failure(ErrorCode.VALIDATION_ERROR, job.node.id)
        return _put(job, content=text)

    # --- loops ---

    def _loop(self, job: _Job, config: LoopConfig) -> Ran[Token]:
        """One attempt of a loop. A deadline further out wins against its own at one moment."""
        own_ns = job.at_ns + config.timeout_ms * NS_PER_MS
        body, good, end_ns = self.graph.nodes[config.body_node], job.token, job.at_ns
        error = failure(ErrorCode.TIMEOUT, job.node.id)
        story: Story = ()
        results: list[dict[str, Any]] = []
        while (ended := self._loop_ended(config, good, results)) is None:
            number = len(results) + 1
            payload = good.payload.replace(metadata={**good.payload.metadata, "iteration": number})
            inner = replace(job.inside(body, payload, f".{number}"), at_ns=end_ns, until_ns=min(own_ns, job.until_ns))
            ran = self._step(inner)
            story += ran.story
            if self._is_too_long(story) or (ran.result is None and own_ns >= job.until_ns):
                return Ran(job.until_ns, None, story)
            end_ns = ran.end_ns
            if ran.result is None:
                ended = "timeout"
                break
            results.append(iteration(number, ran.result, job.token.payload))
            if isinstance(ran.result, Token):
                good = ran.result
                continue
            error = ran.result
            if config.condition_type != "until_success" and not config.continue_on_error:
                return Ran(end_ns, error, story)
        if not any(result["success"] for result in results) and (results or ended == "timeout"):
            return Ran(end_ns, error, story)
        loop_result = {**tally(results), "termination": ended, "results": results}
        metadata = {**good.payload.metadata, "loop_result": loop_result}
        return Ran(end_ns, put_out(good.payload, job.node.id, metadata=metadata), story)

    def _loop_ended(self, config: LoopConfig, good: Token, results: Sequence[Mapping[str, Any]]) -> str | None:
        """Why no further iteration begins; None if one does."""
        kind, finished = config.condition_type, len(results)
        last = results[-1] if results else {}
        if kind == "fixed_count" and finished == config.count:
            return "count"
        if kind == "until_success" and last.get("success"):
            return "success"
        asks = finished > 0 if kind == "until_condition" else finished < config.max_iterations
        if asks and kind in ("until_condition", "while_condition"):
            names = {**names_on(good, self.variables), **loop_names(results)}
            if holds(config.condition_expression or "", names) == (kind == "until_condition"):
                return "condition"
        return "max_iterations" if finished == config.max_iterations else None

    # --- fanouts ---

    def _fanout(self, job: _Job, config: FanoutConfig) -> Ran[Token]:
        """One attempt of a fanout. Of several failures at the moment when the first one ends it, any may be told."""
        numbers, marks = dict(self.numbers), [*self.marks]
        slots = min(config.at_once, len(config.target_nodes))
        lanes, marks_of = self._settled(job, config, slots)
        ending = [lane for lane in lanes if _ends_fanout(config, lane)]
        end_ns = min((lane.end_ns for lane in ending), default=job.until_ns)
        ending = [lane for lane in ending if lane.end_ns == end_ns]
        told, led_by = self._winner(config, ending)
        story = side_by_side(lanes, slots, end_ns, led_by)
        self.marks = marks + _seen_of(lanes, marks_of, end_ns, None if slots == 1 or not ending else led_by)
        if ending:
            self.numbers = counted(numbers, story)
            return Ran(end_ns, told[0], story, tuple(it for it in told[1:] if isinstance(it, ErrorInfo)))
        results = [lane.result for lane in lanes]
        if None in results or len(results) < len(config.target_nodes):
            return Ran(end_ns, None, story)
        return Ran(max(lane.end_ns for lane in lanes), judged(job.node.id, job.token.payload, config, results), story)

    def _winner(
        self, config: FanoutConfig, ending: Sequence[Ran[Token]]
    ) -> tuple[list[Token | ErrorInfo], Sequence[Ran[Token]]]:
        """What a fanout that is ended early may end with, and the targets that surely ended it."""
        if not ending or config.stops_at_failure:
            errors = [lane.result for lane in ending if isinstance(lane.result, ErrorInfo)]
            if self.config.breaker is not None and len(ending) > 1:
                # What breakers saw of the others is open, but not of the one that is told.
                index = self.pick(range(len(ending)))
                return [passed_on(errors[index:])], [ending[index]]
            return [passed_on(errors[i:]) for i, error in enumerate(errors) if error not in errors[:i]], ending
        # Winners that put out the same differ only in what they count, which matters if tokens are limited.
        counts = [_counted_at_its_end(lane) for lane in ending]
        looks = [
            (lane.result.payload, its if self.room.tokens is not None else None)
            for lane, its in zip(ending, counts, strict=True)
            if isinstance(lane.result, Token)
        ]
        look = self.pick([it for i, it in enumerate(looks) if it not in looks[:i]])
        alike = [index for index, it in enumerate(looks) if it == look]
        is_sure = all(counts[index] == counts[alike[0]] for index in alike)
        return [Token(look[0])], [ending[alike[0]]] if is_sure else []

    def _settled(
        self, job: _Job, config: FanoutConfig, slots: int
    ) -> tuple[list[Ran[Token]], list[list[breakers.Mark]]]:
        """The targets, and what breakers saw of each, once none does anything new because of the others."""
        before, numbers, picks, is_unclear = [*self.marks], dict(self.numbers), len(self.taken), self.is_unclear
        self.counter += 1
        uid = self.counter
        others: list[list[breakers.Mark]] = [[] for _ in config.target_nodes]
        for _ in range(ROUNDS_MAX):
            self.marks, self.numbers, self.is_unclear = [*before], dict(numbers), is_unclear
            lanes, marks_of = self._lanes(job, config, slots, uid, others)
            # One after another, each sees what those before it did.
            if slots == 1 or _look(marks_of) == _look(others) or not _is_shared(marks_of):
                return lanes, marks_of
            others = marks_of
            del self.taken[picks:]
        raise TooManyOutcomesError("targets that share a circuit breaker disturb each other too much")

    def _lanes(
        self, job: _Job, config: FanoutConfig, slots: int, uid: int, others: Sequence[Sequence[breakers.Mark]]
    ) -> tuple[list[Ran[Token]], list[list[breakers.Mark]]]:
        """The targets that start before the fanout ends, each as if none disturbed another.

        `others` is what breakers are to see of each while another one runs.
        """
        free = [(job.at_ns, slot) for slot in range(slots)]
        until_ns, place = job.until_ns, self.place
        jobs = [
            job.inside(self.graph.nodes[target], job.token.payload, f".{number}")
            for number, target in enumerate(config.target_nodes, start=1)
        ]
        prior, admissions = [*self.marks], []
        # Those that begin with the fanout do so in order, before anything else of that moment.
        for child in jobs[:slots] if slots > 1 else []:
            known = len(self.marks)
            admissions.append((self._admitted(child), self.marks[known:]))
        lanes: list[Ran[Token]] = []
        marks_of: list[list[breakers.Mark]] = []
        for index, child in enumerate(jobs):
            at_ns = min((at_ns for at_ns, _ in free), default=until_ns)
            if at_ns >= until_ns:
                break
            slots_now = [slot for free_ns, slot in free if free_ns == at_ns]
            # Whose slot it takes is a choice only if a breaker may have seen the one before it there.
            slot = self.pick(slots_now) if index >= slots and any(marks_of) else slots_now[0]
            free.remove((at_ns, slot))
            admission, own = admissions[index] if index < len(admissions) else (None, [])
            if slots > 1:
                self.place = (*place, (uid, slot))
                self.marks = [*prior, *own, *(mark for i, it in enumerate(others) if i != index for mark in it)]
            known = len(self.marks)
            lane = self._step(replace(child, at_ns=at_ns, until_ns=until_ns), config.timeout_ms, admission)
            lanes.append(lane)
            marks_of.append([*own, *self.marks[known:]])
            self.place = place
            if _ends_fanout(config, lane):
                until_ns = min(until_ns, lane.end_ns + 1)
            elif lane.result is not None:
                free.append((lane.end_ns, slot))
        self.marks = prior
        return lanes, marks_of + [[] for _ in jobs[len(lanes) :]]

    # --- circuit breakers ---

    def _admitted(self, job: _Job) -> int:
        """The number of a step for its breaker, which takes notice of its beginning; 0 without one, or _REFUSED."""
        breaker = None if self.config.breaker is None else _breaker_of(job.node)
        if self.config.breaker is None or breaker is None:
            return 0
        verdicts = breakers.verdicts(self.marks, breaker, job.at_ns, self.place, self.config.breaker)
        # Marks of another round may contradict each other; those of the last one must not.
        self.is_unclear |= not verdicts
        if not self.pick(sorted(verdicts, reverse=True) or [True]):
            self.marks.append(breakers.Mark(job.at_ns, breaker, 0, "refused", self.place))
            return _REFUSED
        self.counter += 1
        self.marks.append(breakers.Mark(job.at_ns, breaker, self.counter, "began", self.place))
        return self.counter

    def _mark_end(self, job: _Job, number: int, ran: Ran[Token]) -> None:
        breaker = _breaker_of(job.node)
        if number and breaker is not None:
            is_bad = isinstance(ran.result, ErrorInfo) and ran.result.recoverable
            what: breakers.What = "good" if isinstance(ran.result, Token) else "bad" if is_bad else "over"
            self.marks.append(breakers.Mark(ran.end_ns, breaker, number, what, self.place))


# --- what calls and answers come to ---------------------------------------------------------------------


def _limited(work: Callable[[_Job], Ran[T]], job: _Job, limit_ms: int | None) -> Ran[T]:
    """`job` done in less than `limit_ms`: at that moment it is a TIMEOUT. An outer deadline wins if not later."""
    own_ns = job.until_ns if limit_ms is None else job.at_ns + limit_ms * NS_PER_MS
    ran = work(replace(job, until_ns=min(own_ns, job.until_ns)))
    if ran.result is None and own_ns < job.until_ns:
        return Ran(own_ns, failure(ErrorCode.TIMEOUT, job.node.id), ran.story)
    return ran


def _named(put: Token | ErrorInfo, way: str) -> Token | ErrorInfo:
    return replace(put, way=way) if isinstance(put, Token) else put


def _routed(job: _Job, config: RouterConfig, labels: Sequence[RouteDefinition]) -> Token | ErrorInfo:
    """The way of these routes, or the default one; they stand in the order in which they were named."""
    compound = texts.compound_of(config, labels) if config.multi_label and config.mode == "model" else None
    if not labels and config.default_route is not None:
        default = config.route_named(config.default_route)
        labels = [default] if default else []
    if not labels:
        return failure(ErrorCode.ROUTING_ERROR, job.node.id)
    route = next(route for route in config.in_order() if route in labels)
    name, target = ("+".join(compound.domains), compound.target) if compound else (route.name, route.target)
    routes = [label.name for label in labels]
    return _named(_put(job, route=name, routes=routes, compound_route=compound is not None), target)


def _after_tool(job: _Job, config: ToolConfig, reply: ToolReply) -> Token | ErrorInfo:
    code = reply.error_code
    try:
        output = checked_json(reply.output)
    except ValueError:
        code = code or ErrorCode.VALIDATION_ERROR
    if code is not None and not config.continue_on_error:
        error = failure(code, job.node.id)
        return error.model_copy(update={"recoverable": error.recoverable and reply.recoverable})
    if code is not None:
        return _put(job, tool_result=ToolResult(call_id="", tool_id=config.tool_id, success=False, error=""))
    told = ToolResult(call_id="", tool_id=config.tool_id, success=True, output=output)
    structured = {"structured": output} if isinstance(output, dict) else {}
    return _put(job, tool_result=told, content=texts.as_text(output), **structured)


def _after_timeout(job: _Job, error: ErrorInfo) -> Token | ErrorInfo:
    """What a step ends with whose last attempt ended with this error: a timeout may have something to put out."""
    config, payload = job.node.config, job.token.payload
    if not isinstance(config, TimeoutConfig) or config.on_timeout == "error" or error.code is not ErrorCode.TIMEOUT:
        return error
    metadata, fields = payload.metadata, {}
    if config.on_timeout == "fallback":
        metadata, fields = {**metadata, "fallback": True}, {"content": config.fallback_response}
    if config.propagate_metadata:
        metadata = {**metadata, "timeout": {"timed_out": True, "action": config.on_timeout}}
    return _put(job, metadata=metadata, **fields)


def _counted_at_its_end(lane: Ran[Token]) -> tuple[int, int, int]:
    """The steps, attempts and tokens of a target at the moment when it ends."""
    now = [event for event in lane.story if event.at_ns == lane.end_ns]
    return sum(it.steps for it in now), sum(it.attempts for it in now), sum(it.tokens for it in now)


def _ends_fanout(config: FanoutConfig, lane: Ran[Token]) -> bool:
    """Whether this target ends a fanout before all have ended."""
    if config.aggregation_strategy == "first_success":
        return isinstance(lane.result, Token)
    return config.stops_at_failure and isinstance(lane.result, ErrorInfo)


# --- what breakers see ----------------------------------------------------------------------------------


def _breaker_of(node: NodeDefinition) -> str | None:
    match node.config:
        case ModelConfig(model=model) | RouterConfig(mode="model", model=model) | GateConfig(mode="llm", model=model):
            return f"model {model}"
        case ToolConfig(tool_id=tool_id):
            return f"tool {tool_id}"
    return None


def _look(marks_of: Sequence[Sequence[breakers.Mark]]) -> list[list[tuple[int, str, str]]]:
    return [[(mark.at_ns, mark.breaker, mark.what) for mark in marks] for marks in marks_of]


def _is_shared(marks_of: Sequence[Sequence[breakers.Mark]]) -> bool:
    """Whether several targets have steps of one breaker."""
    asked = [{mark.breaker for mark in marks} for marks in marks_of]
    return sum(len(names) for names in asked) > len(set().union(*asked))


def _seen_of(
    lanes: Sequence[Ran[Token]],
    marks_of: Sequence[Sequence[breakers.Mark]],
    end_ns: int,
    led_by: Sequence[Ran[Token]] | None,
) -> list[breakers.Mark]:
    """What breakers saw of a fanout that ended at `end_ns`, by time; `led_by` None if nothing then is open."""
    sure = [led_by is None or [id(lane)] == [id(it) for it in led_by] for lane in lanes]
    cuts = [breakers.cut(marks, end_ns, led=led) for led, marks in zip(sure, marks_of, strict=False)]
    seen = sorted((mark for kept, _ in cuts for mark in kept), key=lambda mark: mark.at_ns)
    return [*seen, *(mark for _, over in cuts for mark in over)]
