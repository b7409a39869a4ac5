"""What a graph file may say: one Pydantic model per node type, and every problem found at once.

This file judges the parts one by one: keys, types, ranges, conditions that do not parse. How the parts
fit together is `graph.py`'s business.
"""

from __future__ import annotations

import difflib
import heapq
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, StringConstraints, ValidationError

from tinyllm import expressions
from tinyllm.documents import Document, PathKey, Position
from tinyllm.errors import ExpressionError, GraphConfigError, Problem
from tinyllm.message import JsonObject, Text

PROBLEMS_MAX = 100
#: Names of one condition that a likeness is looked for; the search is slow, and a hostile file holds only such names.
LIKENESSES_MAX = 3
#: Milliseconds: 24 days, what a signed 32-bit number holds; longer times are mistakes.
MS_MAX = 2**31 - 1

NodeId = Annotated[Text, StringConstraints(pattern=r"^[a-z][a-z0-9_.]*$", max_length=200)]
#: Lists of a file become tuples, because a config is a value that nobody may change.
NodeIds = Annotated[tuple[NodeId, ...], Field(strict=False)]
Name = Annotated[Text, StringConstraints(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Milliseconds = Annotated[int, Field(ge=1, le=MS_MAX)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class NodeType(StrEnum):
    """The node types that this version runs."""

    ENTRY = "entry"
    EXIT = "exit"
    MODEL = "model"
    GATE = "gate"
    FANOUT = "fanout"


#: Other spellings of a type, and the types that the specification knows and this version does not run.
TYPE_ALIASES = {"dynamic_fanout": NodeType.FANOUT}
UNBUILT_TYPES = frozenset({"router", "transform", "tool", "loop", "timeout"})


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")


class NodeConfig(_Part):
    """What every node type has: how often a step is tried, how long an attempt may take."""

    #: Keys of the public 0.1 format that have no meaning here: they give a warning.
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    #: Keys of the specification that this version does not act on: refused, so that nobody relies on them.
    UNBUILT: ClassVar[frozenset[str]] = frozenset()

    timeout_ms: Milliseconds = 30_000
    retry_count: Annotated[int, Field(ge=0, le=1_000)] = 0
    retry_delay_ms: Annotated[int, Field(ge=0, le=MS_MAX)] = 1_000
    retry_backoff: Literal["fixed", "exponential"] = "fixed"

    def findings(self) -> Iterator[Finding]:
        """What is wrong or doubtful beyond single values. Most configs have nothing to say."""
        return iter(())


Finding = tuple[PathKey, Problem]


class EntryConfig(NodeConfig):
    """An entry checks that `required_fields` are present and not null."""

    IGNORED = frozenset({"input_schema", "output_schema"})

    required_fields: Names = ()


ExitStatus = Literal["success", "fallback", "partial_success", "failure", "error", "timeout"]


class ExitConfig(NodeConfig):
    """An exit ends the run with `status`; `message` explains it."""

    IGNORED = frozenset({"input_schema", "output_schema"})

    status: ExitStatus = "success"
    message: Text | None = None


class ModelConfig(NodeConfig):
    """A model call. `fallback_models` are tried in order within the same attempt."""

    IGNORED = frozenset(
        {"stream", "tools", "tools_enabled", "tool_ids", "output_format", "input_schema", "output_schema"}
    )
    UNBUILT = frozenset({"response_schema", "repair_attempts"})

    model: Name = "qwen2.5:3b"
    system_prompt: Text | None = None
    prompt_template: Text | None = None
    prompt_id: Text | None = None
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.7
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    enable_fallback: bool = True
    fallback_models: Names = ()
    fallback_timeout_ms: Milliseconds | None = None
    fallback_strategy: Text = "sequential"

    def findings(self) -> Iterator[Finding]:
        if self.prompt_id is not None:
            message = "no prompt of this name was handed in; the built-in prompt is used"
            yield (("prompt_id",), a_warning("unknown_prompt", message, value=short(self.prompt_id)))
        if self.fallback_strategy != "sequential":
            message = "fallback models are always tried in order"
            yield (("fallback_strategy",), a_warning("ignored_key", message, value=short(self.fallback_strategy)))

    def models(self) -> tuple[str, ...]:
        """The models that one attempt asks, in order."""
        return (self.model, *self.fallback_models) if self.enable_fallback else (self.model,)


class GateCondition(_Part):
    """A named way out. In mode `llm` the expression is a description for the model and is not parsed."""

    name: Name
    expression: Text
    target: NodeId


class GateConfig(NodeConfig):
    """A gate takes the first condition that holds, asks a model, or asks only if none holds."""

    mode: Literal["expression", "llm", "hybrid"] = "expression"
    conditions: Annotated[tuple[GateCondition, ...], Field(strict=False)] = ()
    default_target: NodeId | None = None
    model: Name = "qwen2.5:0.5b"
    evaluation_prompt: Text | None = None

    def findings(self) -> Iterator[Finding]:
        for index, condition in enumerate(self.conditions):
            if self.mode != "llm":
                yield from condition_findings(condition.expression, ("conditions", index, "expression"))
        if not self.conditions and self.default_target is None:
            yield ((), a_warning("gate_without_ways", "a gate without conditions or default_target always fails"))


class FanoutConfig(NodeConfig):
    """A fanout runs its targets on copies of the message and puts out one answer.

    `timeout_ms` bounds each target's step, retries included. `quorum` is the number of equal answers
    needed; None means more than half of all targets.
    """

    target_nodes: Annotated[tuple[NodeId, ...], Field(strict=False, min_length=1, max_length=1_000)]
    aggregation_strategy: Literal["majority_vote", "all", "first_success", "best_score"] = "all"
    quorum: Annotated[int, Field(ge=1)] | None = None
    parallel: bool = True
    max_parallel_branches: Annotated[int, Field(ge=1)] | None = None
    require_all_success: bool = False
    fail_fast: bool = False
    score_field: Name = "quality_score"

    def findings(self) -> Iterator[Finding]:
        if self.aggregation_strategy != "majority_vote":
            message = f"the strategy {self.aggregation_strategy!r} is not built yet"
            hint = "This version runs majority_vote; say it explicitly, the default is `all`."
            yield (("aggregation_strategy",), an_error("unbuilt", message, hint=hint))
        if self.quorum is not None and self.quorum > len(self.target_nodes):
            message = f"a quorum of {self.quorum} cannot be reached by {len(self.target_nodes)} targets"
            yield (("quorum",), a_warning("quorum_out_of_reach", message))

    @property
    def votes_needed(self) -> int:
        """The quorum, or more than half of all targets."""
        return self.quorum if self.quorum is not None else len(self.target_nodes) // 2 + 1


CONFIGS: dict[NodeType, type[NodeConfig]] = {
    NodeType.ENTRY: EntryConfig,
    NodeType.EXIT: ExitConfig,
    NodeType.MODEL: ModelConfig,
    NodeType.GATE: GateConfig,
    NodeType.FANOUT: FanoutConfig,
}


class NodeDefinition(_Part):
    """A node: `config` is of the class that `CONFIGS` names for its type."""

    id: NodeId
    type: NodeType
    name: Text | None = None
    description: Text | None = None
    config: SerializeAsAny[NodeConfig]
    on_error: NodeId | None = None


class EdgeDefinition(_Part):
    """A way from one node to another; `weight` has no effect, higher `priority` is asked first."""

    from_node: NodeId
    to_node: NodeId
    condition: Text | None = None
    weight: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 1.0
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0


class GraphDefinition(_Part):
    """All that a graph file says, well-formed part by part."""

    id: NodeId
    version: Annotated[Text, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]
    name: Text
    description: Text | None = None
    metadata: JsonObject = Field(default_factory=dict)
    nodes: tuple[NodeDefinition, ...]
    edges: tuple[EdgeDefinition, ...] = ()
    entry_points: NodeIds
    exit_points: NodeIds
    protected: NodeIds = ()
    allow_cycles: bool = False


FailurePolicy = Literal["fail_fast", "skip_failed", "fallback_simple", "best_effort"]


class ExecutorConfig(_Part):
    """How runs are bounded and what a failed node means, for every run of one executor."""

    max_steps: Annotated[int, Field(ge=0, le=1_000_000)] = 100
    timeout_ms: Milliseconds = 600_000
    cancel_grace_ms: Annotated[int, Field(ge=0, le=MS_MAX)] = 1_000
    failure_policy: FailurePolicy = "fail_fast"
    fallback_response: Text = ""
    max_node_failures: Count = 3


# --- reading -------------------------------------------------------------------------------------------


class _NodeShape(_Part):
    """A node before its type chose the class of its config."""

    id: NodeId
    type: Text
    name: Text | None = None
    description: Text | None = None
    config: JsonObject | None = None
    on_error: NodeId | None = None


class Points(_Part):
    """What the structure needs of the top level; it is checked even if the rest of the top level is wrong."""

    entry_points: NodeIds = ()
    exit_points: NodeIds = ()
    protected: NodeIds | None = None
    allow_cycles: bool = False


class _GraphShape(_Part):
    """The top level of a file, before its parts were judged."""

    id: NodeId
    version: Annotated[Text, StringConstraints(pattern=r"^[0-9]+\.[0-9]+\.[0-9]+$")]
    name: Text
    description: Text | None = None
    metadata: JsonObject | None = None
    nodes: Annotated[list[Any], Field(min_length=1)]
    edges: list[Any] | None = None
    entry_points: Annotated[NodeIds, Field(min_length=1, strict=False)]
    exit_points: Annotated[NodeIds, Field(min_length=1, strict=False)]
    protected: Annotated[NodeIds | None, Field(strict=False)] = None
    allow_cycles: bool = False


C = TypeVar("C", bound=NodeConfig)
M = TypeVar("M", bound=BaseModel)


class Reader:
    """Collects the well-formed parts of one document and every problem of the others."""

    def __init__(self, document: Document) -> None:
        self.document = document
        self.errors: list[Problem] = []
        self.warnings: list[Problem] = []
        self.header: _GraphShape | None = None
        self.points = Points()
        self.nodes: list[tuple[int, NodeDefinition]] = []
        self.edges: list[tuple[int, EdgeDefinition]] = []
        #: Ids of nodes that are named well but are otherwise refused, so that a reference to them is no second error.
        self.refused_ids: set[str] = set()
        #: How many nodes and edges were refused, also such as have no readable id.
        self.refused_parts = 0
        self._read(document.value)

    def report(self, path: PathKey, problem: Problem) -> None:
        """Add `problem`, found at `path` of the document, with its position there."""
        line, column = self.document.position(path) or (None, None)
        placed = Problem(
            code=problem.code,
            message=problem.message,
            path=spelled(path),
            line=line,
            column=column,
            value=problem.value,
            hint=problem.hint,
            severity=problem.severity,
        )
        found = self.errors if placed.severity == "error" else self.warnings
        found.append(placed)
        if len(found) == 2 * PROBLEMS_MAX:
            # A hostile file is wrong in all of its values; only the first are ever told.
            found[:] = first_in_file(found)

    def refuse_if_wrong(self) -> None:
        """Raise GraphConfigError with all errors in the order of the file, if there are any."""
        if self.errors:
            raise GraphConfigError(first_in_file(self.errors), source=self.document.source)

    def definition(self) -> GraphDefinition:
        """The graph as read; raises GraphConfigError if any part was refused."""
        self.refuse_if_wrong()
        assert self.header is not None
        header = {name: getattr(self.header, name) for name in type(self.header).model_fields}
        header = {name: value for name, value in header.items() if value is not None}
        parts = {"nodes": tuple(n for _, n in self.nodes), "edges": tuple(e for _, e in self.edges)}
        return GraphDefinition(**{**header, **parts})

    def _read(self, value: Any) -> None:
        if not isinstance(value, dict):
            shown = "an empty document" if value is None else f"a {type(value).__name__}"
            self.report((), an_error("not_a_graph", f"{shown}; a graph file is a mapping with id, nodes, edges ..."))
            return
        self.header = self._checked(_GraphShape, value, ())
        self.points = _well_formed_points(value)
        for index, raw in enumerate(_items(value.get("nodes"))):
            self._read_node(raw, index)
        for index, raw in enumerate(_items(value.get("edges"))):
            edge = self._checked(EdgeDefinition, raw, ("edges", index))
            if edge is None:
                self.refused_parts += 1
            else:
                self.edges.append((index, edge))
                if edge.condition is not None:
                    for path, problem in condition_findings(edge.condition, ("edges", index, "condition")):
                        self.report(path, problem)

    def _read_node(self, raw: Any, index: int) -> None:
        path: PathKey = ("nodes", index)
        shape = self._checked(_NodeShape, raw, path)
        if shape is None:
            self.refused_parts += 1
            if isinstance(raw, dict) and isinstance(raw.get("id"), str):
                self.refused_ids.add(raw["id"])
            return
        kind = self._node_type(shape.type, path)
        config = None if kind is None else self._read_config(CONFIGS[kind], shape.config or {}, (*path, "config"))
        if kind is None or config is None:
            self.refused_parts += 1
            self.refused_ids.add(shape.id)
            return
        node = NodeDefinition(
            id=shape.id,
            type=kind,
            name=shape.name,
            description=shape.description,
            config=config,
            on_error=shape.on_error,
        )
        self.nodes.append((index, node))

    def _node_type(self, name: str, path: PathKey) -> NodeType | None:
        if name in TYPE_ALIASES:
            return TYPE_ALIASES[name]
        if name in list(NodeType):
            return NodeType(name)
        known = ", ".join(NodeType)
        if name in UNBUILT_TYPES:
            text = f"the node type {name!r} is not built yet"
            problem = an_error("unbuilt", text, hint=f"This version runs {known}.")
        else:
            problem = an_error("unknown_type", "unknown node type", value=short(name), hint=f"One of {known}.")
        self.report((*path, "type"), problem)
        return None

    def _read_config(self, model: type[C], raw: dict[str, Any], path: PathKey) -> C | None:
        known = dict(raw)
        for key in [key for key in raw if key in model.IGNORED]:
            del known[key]
            self.report((*path, key), a_warning("ignored_key", f"{key!r} has no effect here"))
        unbuilt = [key for key in raw if key in model.UNBUILT]
        for key in unbuilt:
            del known[key]
            self.report((*path, key), an_error("unbuilt", f"{key!r} is not built yet", hint="Remove it."))
        config = self._checked(model, known, path)
        if config is None:
            return None
        for inner, problem in config.findings():
            self.report((*path, *inner), problem)
        return config

    def _checked(self, model: type[M], raw: Any, path: PathKey) -> M | None:
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            for detail in first_details(error, path, self.document):
                self.report((*path, *detail["loc"]), _problem_of(model, detail))
            return None


def condition_findings(source: str, path: PathKey) -> Iterator[Finding]:
    """An error if the condition does not parse; a warning for each name that nothing is known to set."""
    try:
        expression = expressions.parse(source)
    except ExpressionError as error:
        yield (path, an_error("condition", f"the condition {error}", value=short(source)))
        return
    unknown = [name for name in expression.names if name not in KNOWN_NAMES]
    for number, name in enumerate(unknown):
        close = _likeness(name, KNOWN_NAMES) if number < LIKENESSES_MAX else None
        hint = f"Did you mean {close}?" if close else "A payload key that is not set is null."
        message = f"nothing is known to set {short(name)}"
        yield (path, a_warning("unknown_name", message, value=short(source), hint=hint))


#: Names that a condition can count on: the payload's fields, what nodes publish in it, and the two mappings.
KNOWN_NAMES = (
    *("task", "content", "structured", "route", "confidence", "tool_call", "tool_result", "tool_calls"),
    *("error", "metadata", "variables", "matched_condition", "routes", "compound_route"),
)


def spelled(path: PathKey) -> str:
    """A path as people write it: `nodes[3].config.timeout_ms`; a key that is no name stands in brackets and quotes."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        elif key.isidentifier() and len(key) <= SHOWN_CHARS_MAX:
            text += f".{key}" if text else key
        else:
            text += f"[{short(key)}]"
    return text


#: Longer texts are cut where a problem shows them.
SHOWN_CHARS_MAX = 60
_SHOWN = reprlib.Repr()
_SHOWN.maxlist = _SHOWN.maxdict = 20
_SHOWN.maxstring = _SHOWN.maxlong = _SHOWN.maxother = SHOWN_CHARS_MAX


def short(value: Any) -> str:
    """`value` on one short line. Never spelled out in full first: through aliases a small file holds gigabytes."""
    if isinstance(value, str) and len(value) > SHOWN_CHARS_MAX:
        return f"{value[:57]!r}... ({len(value)} characters)"
    try:
        text = repr(value) if isinstance(value, str) else _SHOWN.repr(value)
    except ValueError:  # an integer too long for Python to print
        return type(value).__name__
    return text if len(text) <= 80 else f"{text[:77]}..."


def first_in_file(problems: Iterable[Problem]) -> tuple[Problem, ...]:
    """As many problems as are told, in the order of the file."""
    return tuple(sorted(problems, key=lambda problem: (problem.line or 0, problem.column or 0))[:PROBLEMS_MAX])


def first_details(error: ValidationError, path: PathKey, document: Document | None) -> list[Any]:
    """What pydantic found wrong with the value at `path`, in the order of the file: as much as is told."""

    def place(detail: Any) -> Position:
        return (document and document.position((*path, *detail["loc"]))) or (0, 0)

    details = error.errors(include_url=False, include_context=False)
    # "At least 1 item" counts only the items that passed; those that did not are told one by one.
    told = (detail for detail in details if detail["type"] != "too_short" or not detail["input"])
    return heapq.nsmallest(PROBLEMS_MAX, told, place)


def _well_formed_points(value: Mapping[str, Any]) -> Points:
    sound: dict[str, Any] = {}
    for key in value.keys() & Points.model_fields:
        try:
            sound[key] = getattr(Points.model_validate({key: value[key]}), key)
        except ValidationError:
            continue
    return Points(**sound)


def _likeness(word: str, known: Iterable[str]) -> str | None:
    found = difflib.get_close_matches(word[:SHOWN_CHARS_MAX], known, 1)
    return found[0] if found else None


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def an_error(code: str, message: str, **more: Any) -> Problem:
    """An error without its place, which `Reader.report` adds."""
    return Problem(code=code, message=message, path="", **more)


def a_warning(code: str, message: str, **more: Any) -> Problem:
    """A warning without its place, which `Reader.report` adds."""
    return Problem(code=code, message=message, path="", severity="warning", **more)


def _problem_of(model: type[BaseModel], detail: Any) -> Problem:
    """A pydantic error in our words: what is wrong, the value, what would be right."""
    kind, key = detail["type"], detail["loc"][-1] if detail["loc"] else ""
    if kind == "missing":
        return an_error("missing_key", f"the key {key!r} is missing")
    if kind == "extra_forbidden":
        # Conditions are the only parts that are read together with what is around them.
        known = (GateCondition if len(detail["loc"]) > 1 else model).model_fields
        close = _likeness(str(key), known)
        hint = f"Did you mean {close}?" if close else f"Known keys: {', '.join(known)}."
        return an_error("unknown_key", f"unknown key {short(key)}", hint=hint)
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "this should")
    message = message.replace("Tuple should", "this should").replace("String should", "this should")
    advice = None
    if kind == "string_type" and isinstance(detail["input"], bool | int | float):
        advice = "Put it in quotes."
    elif kind == "string_pattern_mismatch" and "a-z0-9_." in message:
        advice = "Ids start with a small letter, then small letters, digits, dots and underscores."
    return an_error("invalid_value", message, value=short(detail["input"]), hint=advice)
