"""Reads a document into well-formed parts, and collects every problem of the others with its place."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError

from tinyllm.config.base import NodeConfig, NodeId, NodeIds, Part
from tinyllm.config.definitions import EdgeDefinition, GraphDefinition, NodeDefinition, Version
from tinyllm.config.kinds import REFUSED_TYPES, config_class, node_type, type_names
from tinyllm.config.problems import (
    PROBLEMS_MAX,
    a_warning,
    an_error,
    condition_findings,
    first_details,
    first_in_file,
    likeness,
    placed,
    short,
)
from tinyllm.config.transform import PARAMS
from tinyllm.documents import Document, PathKey
from tinyllm.errors import GraphConfigError, Problem, UsageError
from tinyllm.message import JsonObject, Text


class _NodeShape(Part):
    """A node before its type chose the class of its config."""

    id: NodeId
    type: Text
    name: Text | None = None
    description: Text | None = None
    config: JsonObject | None = None
    on_error: NodeId | None = None


class Points(Part):
    """What the structure needs of the top level; it is checked even if the rest of the top level is wrong."""

    entry_points: NodeIds = ()
    exit_points: NodeIds = ()
    protected: NodeIds | None = None
    allow_cycles: bool = False


class _GraphShape(Part):
    """The top level of a file, before its parts were judged."""

    id: NodeId
    version: Version
    name: Text
    description: Text | None = None
    metadata: JsonObject | None = None
    nodes: Annotated[list[Any], Field(min_length=1)]
    edges: list[Any] | None = None
    entry_points: Annotated[NodeIds, Field(min_length=1, strict=False)]
    exit_points: Annotated[NodeIds, Field(min_length=1, strict=False)]
    protected: Annotated[NodeIds | None, Field(strict=False)] = None
    allow_cycles: bool = False


#: Regular expressions of one graph, and the characters of all of them.
PATTERNS_MAX = 200
PATTERNS_CHARS_MAX = 20_000
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
        found = self.errors if problem.severity == "error" else self.warnings
        found.append(placed(problem, path, self.document))
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
        patterns = [*_patterns(value.get("nodes"))]
        characters = sum(map(len, patterns))
        if len(patterns) > PATTERNS_MAX or characters > PATTERNS_CHARS_MAX:
            # Each is compiled to see whether it can be; more would take long.
            most = f"at most {PATTERNS_MAX} of {PATTERNS_CHARS_MAX}"
            text = f"{len(patterns)} regular expressions of {characters} characters together; {most}"
            self.report(("nodes",), an_error("too_large", text))
            self.refused_parts += 1
            return
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
        kind = self._config_class(shape.type, path)
        config = None if kind is None else self._read_config(kind, shape.config or {}, (*path, "config"))
        if config is None:
            self.refused_parts += 1
            self.refused_ids.add(shape.id)
            return
        node = NodeDefinition(
            id=shape.id,
            type=node_type(shape.type),
            name=shape.name,
            description=shape.description,
            config=config,
            on_error=shape.on_error,
        )
        self.nodes.append((index, node))

    def _config_class(self, name: str, path: PathKey) -> type[NodeConfig] | None:
        try:
            kind = None if name in REFUSED_TYPES else config_class(name)
        except UsageError as error:
            self.report((*path, "type"), an_error("unknown_type", str(error), value=short(name)))
            return None
        if kind is None:
            known = ", ".join(type_names())
            if name in REFUSED_TYPES:
                text = f"the node type {name!r} of the 0.1 format is not run here"
                hint = "Register a node type of your own (see @node_type), under another name."
            else:
                close = likeness(name, type_names())
                text, hint = "unknown node type", f"Did you mean {close}?" if close else f"One of {known}."
            self.report((*path, "type"), an_error("unknown_type", text, value=short(name), hint=hint))
        return kind

    def _read_config(self, model: type[C], raw: dict[str, Any], path: PathKey) -> C | None:
        config = self._checked(model, self._without_ignored(model, raw, path), path)
        if config is None:
            return None
        for inner, problem in config.findings():
            self.report((*path, *inner), problem)
        return config

    def _without_ignored(self, model: type[Part], raw: dict[str, Any], path: PathKey) -> dict[str, Any]:
        """The mapping without keys that have no meaning here, each of which gives a warning."""
        known = {key: value for key, value in raw.items() if key not in model.IGNORED}
        for key in raw:
            if key not in known:
                self.report((*path, key), a_warning("ignored_key", f"{key!r} has no effect here"))
        for key, part in model.LISTED.items():
            if isinstance(known.get(key), list):
                known[key] = [
                    self._without_ignored(part, item, (*path, key, index)) if isinstance(item, dict) else item
                    for index, item in enumerate(known[key])
                ]
        return known

    def _checked(self, model: type[M], raw: Any, path: PathKey) -> M | None:
        try:
            return model.model_validate(raw)
        except ValidationError as error:
            for detail in first_details(error, path, self.document):
                self.report((*path, *detail["loc"]), _problem_of(model, detail))
            return None


def _well_formed_points(value: Mapping[str, Any]) -> Points:
    sound: dict[str, Any] = {}
    for key in value.keys() & Points.model_fields:
        try:
            sound[key] = getattr(Points.model_validate({key: value[key]}), key)
        except ValidationError:
            continue
    return Points(**sound)


def _patterns(nodes: Any) -> Iterator[str]:
    """The regular expressions of all transforms, whatever else is wrong with them."""
    for node in _items(nodes):
        config = node.get("config") if isinstance(node, dict) else None
        for step in _items(config.get("transforms") if isinstance(config, dict) else None):
            params = step.get("params") if isinstance(step, dict) else None
            pattern = params.get("pattern") if isinstance(params, dict) else None
            if isinstance(pattern, str):
                yield pattern


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


#: What any transform step can be told.
_PARAMETERS = [*dict.fromkeys(name for params in PARAMS.values() for name in params.model_fields)]


def _problem_of(model: type[BaseModel], detail: Any) -> Problem:
    """A pydantic error in our words: what is wrong, the value, what would be right."""
    kind, key = detail["type"], detail["loc"][-1] if detail["loc"] else ""
    if kind == "missing":
        return an_error("missing_key", f"the key {key!r} is missing")
    if kind == "extra_forbidden":
        in_params = "params" in detail["loc"][:-1]
        # The parameters of a step are those of its type, which is not told here: one that none has may be misspelt.
        known = _PARAMETERS if in_params else [*_part_at(model, detail["loc"]).model_fields]
        close = likeness(str(key), known)
        hint = None if in_params else f"Known keys: {', '.join(known) or 'none'}."
        if close and close != key:
            hint = f"Did you mean {close}?"
        return an_error("unknown_key", f"unknown key {short(key)}", hint=hint)
    if kind == "pattern":
        return an_error("pattern", detail["msg"], value=short(detail["input"]))
    message = detail["msg"].removeprefix("Value error, ").replace("Input should", "this should")
    for kind_of_value in ("Tuple", "List", "String"):
        message = message.replace(f"{kind_of_value} should", "this should")
    message = message.replace("a valid tuple", "a list")
    advice = None
    if kind == "string_type" and isinstance(detail["input"], bool | int | float):
        advice = "Put it in quotes."
    elif kind == "string_pattern_mismatch" and "a-z0-9_." in message:
        advice = "Ids start with a small letter, then small letters, digits, dots and underscores."
    return an_error("invalid_value", message, value=short(detail["input"]), hint=advice)


def _part_at(model: type[BaseModel], loc: tuple[str | int, ...]) -> type[BaseModel]:
    """The part that holds the key at the end of `loc`: the parts of a list are read together with it."""
    if len(loc) > 2 and issubclass(model, Part) and loc[0] in model.LISTED:
        return model.LISTED[str(loc[0])]
    return model
