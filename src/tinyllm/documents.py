"""Text to plain values with positions: reads YAML and JSON, and refuses what is hostile before it grows.

PyYAML's event stream is folded into values here, with an explicit stack, because its own constructor
keeps no positions, takes the last of duplicate keys without a word, expands aliases without end and
recurses as deep as the file says. Every bound is checked while the events arrive.
"""

from __future__ import annotations

import json
import math
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from tinyllm.errors import GraphConfigError, Problem

FILE_BYTES_MAX = 1 << 20
DEPTH_MAX = 64
ALIASED_VALUES_MAX = 10_000
#: A text that is repeated by aliases counts as one value more for each so many characters.
VALUE_CHARS = 1_000
#: A file within the size limit could still hold half a million empty lists; with the path of each that is
#: far more than 64 MiB, and seconds.
VALUES_MAX = 40_000
#: Longer ones are no numbers that a graph needs, and `1:1:1:...`, which YAML reads in base 60, takes minutes.
NUMBER_CHARS_MAX = 1_000

PathKey = tuple[str | int, ...]
Position = tuple[int, int]

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_RESOLVER: Any = yaml.resolver.Resolver()
_CONSTRUCTOR: Any = yaml.constructor.SafeConstructor()
#: Dates stay text: a graph has no place for them, and `created_at: 2025-01-15` should stay what it says.
_PLAIN_TYPES = {f"tag:yaml.org,2002:{name}" for name in ("null", "bool", "int", "float")}
_MERGE = "tag:yaml.org,2002:merge"
_UNPRINTABLE: re.Pattern[str] = yaml.reader.Reader.NON_PRINTABLE
#: Each such line is compared with all before it, which a file of nothing else makes half a minute.
_TAG_DIRECTIVE = re.compile(r"^%TAG\b", re.MULTILINE)
#: JSON spells a character above U+FFFF as two escapes, which YAML refuses. `\\\\` is matched to step over it.
_SURROGATE_ESCAPE = re.compile(r"\\\\|\\(u[dD][89a-fA-F][0-9a-fA-F]{2})")


@dataclass(frozen=True, slots=True)
class Document:
    """Plain values as they were read, and where each stands: `positions[path]` is (line, column) from 1."""

    value: Any
    positions: dict[PathKey, Position] = field(repr=False)
    source: str = "<graph>"

    def position(self, path: PathKey) -> Position | None:
        """Where `path` stands, or the nearest part of the document around it; None for an empty document."""
        for length in range(len(path), -1, -1):
            if (found := self.positions.get(path[:length])) is not None:
                return found
        return None


def read_document(path: Path) -> Document:
    """Read a YAML or JSON file; raises GraphConfigError for what cannot be read as one."""
    source = str(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            # A directory fails by itself; a pipe or a device would block or never end.
            raise refusal(source, "not_a_file", "this is not a regular file")
        with path.open("rb") as file:
            data = file.read(FILE_BYTES_MAX + 1)
    except (OSError, ValueError) as error:
        raise refusal(source, "unreadable", f"cannot be read: {error}") from None
    return parse_document(data, source=source)


def parse_document(data: bytes | str, *, source: str = "<graph>") -> Document:
    """Read YAML or JSON text; raises GraphConfigError with the position of the first thing that is refused."""
    text = _decoded(data, source)
    stripped = text.lstrip()
    if stripped.startswith(("{", "[")):
        try:
            # Duplicate keys are refused below, with their position; JSON's own escapes are not YAML's.
            json_value = json.loads(text, parse_constant=_no_constant)
        except json.JSONDecodeError as error:
            if source.endswith(".json"):
                where = error.lineno, error.colno
                raise refusal(source, "syntax", f"not JSON: {error.msg}", where) from None
            return _folded(text, source)
        except (ValueError, RecursionError):
            return _folded(text, source)
        document = _folded(_SURROGATE_ESCAPE.sub(_same_width, text.replace("\t", " ")), source)
        return Document(json_value, document.positions, source)
    return _folded(text, source)


def refusal(source: str, code: str, message: str, position: Position | None = None, **more: Any) -> GraphConfigError:
    """A GraphConfigError with one problem about the document as a whole."""
    line, column = position or (None, None)
    problem = Problem(code=code, message=message, path="", line=line, column=column, **more)
    return GraphConfigError((problem,), source=source)


def _same_width(escape: re.Match[str]) -> str:
    return f"_{escape[1]}" if escape[1] else escape[0]


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _decoded(data: bytes | str, source: str) -> str:
    size = len(data) if isinstance(data, bytes) else len(data.encode("utf-8", "replace"))
    if size > FILE_BYTES_MAX:
        raise refusal(source, "too_large", f"larger than {FILE_BYTES_MAX} bytes")
    try:
        text = data.decode("utf-8-sig") if isinstance(data, bytes) else data.removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1 if isinstance(data, bytes) else 1
        hint = "Save the file as UTF-8."
        raise refusal(source, "encoding", f"not UTF-8: {error.reason}", (line, 1), hint=hint) from None
    return text


# --- from events to values -----------------------------------------------------------------------------


@dataclass(slots=True)
class _Open:
    """A list or mapping that is still being read."""

    value: Any
    path: PathKey
    anchor: str | None
    count: int = 1
    key: str | None = None
    merging: bool = False
    merges: list[dict[str, Any]] = field(default_factory=list)


class _Folder:
    """Folds one document's events into values."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.positions: dict[PathKey, Position] = {}
        self.anchors: dict[str, tuple[Any, int] | None] = {}
        self.stack: list[_Open] = []
        self.aliased = 0
        self.result: Any = None
        self.documents = 0
        self.values = 0

    def feed(self, event: Any) -> None:
        self.values += 1
        if self.values > VALUES_MAX:
            raise self.refused(event, "too_large", f"more than {VALUES_MAX} values")
        match event:
            case yaml.DocumentStartEvent():
                self.documents += 1
                if self.documents > 1:
                    raise self.refused(event, "documents", "a second document; a graph file holds one")
            case yaml.AliasEvent():
                self.add(self.expand(event), event)
            case yaml.ScalarEvent():
                self.scalar(event)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                self.open(event)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self.close(event)

    def refused(self, event: Any, code: str, message: str, **more: Any) -> GraphConfigError:
        return refusal(self.source, code, message, _position(event.start_mark), **more)

    def here(self) -> PathKey:
        """The path of the value that is read next."""
        if not self.stack:
            return ()
        top = self.stack[-1]
        return (*top.path, top.key if isinstance(top.value, dict) and top.key is not None else len(top.value))

    def expects_key(self) -> bool:
        return bool(self.stack) and isinstance(self.stack[-1].value, dict) and self.stack[-1].key is None

    def expand(self, event: Any) -> Any:
        known = self.anchors.get(event.anchor)
        if event.anchor not in self.anchors:
            raise self.refused(event, "alias", f"the alias *{event.anchor} names no anchor")
        if known is None:
            raise self.refused(event, "alias", f"the alias *{event.anchor} contains itself")
        value, count = known
        self.aliased += count
        if self.aliased > ALIASED_VALUES_MAX:
            raise self.refused(event, "alias", f"aliases expand to more than {ALIASED_VALUES_MAX} values")
        if self.expects_key():
            raise self.refused(event, "key", "an alias as a key")
        if self.stack:
            self.stack[-1].count += count - 1
        depth = len(self.stack) + _depth(value)
        if depth > DEPTH_MAX:
            raise self.refused(event, "too_deep", f"nested more than {DEPTH_MAX} levels deep")
        return value

    def scalar(self, event: Any) -> None:
        self.check_tag(event)
        weight = 1 + len(event.value) // VALUE_CHARS
        if self.stack:
            self.stack[-1].count += weight - 1
        plain = event.implicit[0]
        tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (plain, not plain))
        if self.expects_key():
            self.remember(event.anchor, event.value, weight)
            self.begin_key(event, is_merge=plain and tag == _MERGE)
            return
        value: Any = event.value
        if plain and tag in _PLAIN_TYPES:
            value = self.constructed(event, tag)
        self.remember(event.anchor, value, weight)
        self.add(value, event)

    def constructed(self, event: Any, tag: str) -> Any:
        """The number, truth value or null that a plain scalar spells."""
        if len(event.value) > NUMBER_CHARS_MAX:
            message = f"a number of {len(event.value)} characters; at most {NUMBER_CHARS_MAX}"
            raise self.refused(event, "value", message, value=_short(event.value))
        try:
            # Not `construct_object`: that one keeps every node it was ever given.
            value = _CONSTRUCTOR.yaml_constructors[tag](_CONSTRUCTOR, yaml.ScalarNode(tag, event.value))
        except (ValueError, OverflowError, KeyError) as error:
            raise self.refused(event, "value", f"cannot be read: {error}", value=_short(event.value)) from None
        if isinstance(value, float) and not math.isfinite(value):
            raise self.refused(event, "value", "not a finite number", value=_short(event.value))
        return value

    def begin_key(self, event: Any, *, is_merge: bool) -> None:
        top = self.stack[-1]
        key = event.value
        if key in top.value and not is_merge:
            raise self.refused(event, "duplicate_key", f"the key {_short(key)} stands here twice")
        top.key, top.merging = key, is_merge
        if not is_merge:
            self.positions.setdefault((*top.path, key), _position(event.start_mark))

    def open(self, event: Any) -> None:
        self.check_tag(event)
        if self.expects_key():
            raise self.refused(event, "key", "a list or a mapping as a key; keys are text")
        if len(self.stack) >= DEPTH_MAX:
            raise self.refused(event, "too_deep", f"nested more than {DEPTH_MAX} levels deep")
        path = self.here()
        self.positions[path] = _position(event.start_mark)
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        self.stack.append(_Open([] if isinstance(event, yaml.SequenceStartEvent) else {}, path, event.anchor))

    def close(self, event: Any) -> None:
        done = self.stack.pop()
        for merged in done.merges:
            for key, value in merged.items():
                done.value.setdefault(key, value)
        self.remember(done.anchor, done.value, done.count)
        if self.stack:
            self.stack[-1].count += done.count - 1
        self.add(done.value, event)

    def remember(self, anchor: str | None, value: Any, count: int) -> None:
        if anchor is not None:
            self.anchors[anchor] = (value, count)

    def add(self, value: Any, event: Any) -> None:
        if not self.stack:
            self.result = value
            self.positions.setdefault((), _position(event.start_mark))
            return
        top = self.stack[-1]
        top.count += 1
        path = self.here()
        self.positions.setdefault(path, _position(event.start_mark))
        if isinstance(top.value, list):
            top.value.append(value)
            return
        if top.merging:
            top.merges.append(self.merged(value, event))
        else:
            top.value[top.key] = value
        top.key = None

    def merged(self, value: Any, event: Any) -> dict[str, Any]:
        """What `<<: *anchor` or `<<: [*a, *b]` brings in; earlier mappings win."""
        mappings = value if isinstance(value, list) else [value]
        result: dict[str, Any] = {}
        for mapping in mappings:
            if not isinstance(mapping, dict):
                raise self.refused(event, "merge", "`<<` needs a mapping, or a list of mappings")
            for key, item in mapping.items():
                result.setdefault(key, item)
        return result

    def check_tag(self, event: Any) -> None:
        if event.tag is not None and event.tag != "!":
            hint = "Remove the tag; plain YAML is enough."
            raise self.refused(event, "tag", "tags are not allowed", value=_short(event.tag), hint=hint)


def _folded(text: str, source: str) -> Document:
    folder = _Folder(source)
    if found := _UNPRINTABLE.search(text):
        character = _short(found.group())
        raise refusal(source, "character", "a character that no text holds", _place(text, found), value=character)
    if found := _TAG_DIRECTIVE.search(text):
        raise refusal(source, "tag", "tags are not allowed", _place(text, found), hint="Remove this line.")
    try:
        for event in _events(text):
            folder.feed(event)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = ", ".join(part for part in (error.context, error.problem) if part)
        raise refusal(source, "syntax", what or "not YAML", _position(mark) if mark else None) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise refusal(source, "syntax", _first_line(error)) from None
    folder.positions.setdefault((), (1, 1))
    return Document(folder.result, folder.positions, source)


def _events(text: str) -> Iterator[Any]:
    events: Iterator[Any] = yaml.parse(text, Loader=_LOADER)
    return events


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _place(text: str, found: re.Match[str]) -> Position:
    at = found.start()
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


def _position(mark: Any) -> Position:
    return mark.line + 1, mark.column + 1


def _short(text: str) -> str:
    shown = repr(text)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


def _depth(value: Any) -> int:
    """How many levels of lists and mappings `value` has; it is at most `DEPTH_MAX` deep itself."""
    if isinstance(value, dict):
        return 1 + max(map(_depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(_depth, value), default=0)
    return 0


def more_values_than(value: Any, most: int) -> bool:
    """Whether plain values, that were not read from a text, are more than `most`."""
    waiting, count = [value], 0
    while waiting and count <= most:
        current = waiting.pop()
        count += 1
        if isinstance(current, Mapping):
            # No further than needed: what is too large may be far too large.
            waiting += islice(current.values(), most)
        elif isinstance(current, list | tuple):
            waiting += islice(current, most)
    return count > most
