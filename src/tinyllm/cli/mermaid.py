"""A picture as a Mermaid flowchart."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from tinyllm.cli.drawing import MEANINGS, Box, Link, LinkKind, Picture

#: What stands around the label of a box; other types are rectangles.
SHAPES = {
    "entry": ("([", "])"),
    "exit": ("([", "])"),
    "gate": ("{{", "}}"),
    "router": ("{{", "}}"),
    "model": ("(", ")"),
    "tool": ("[[", "]]"),
    "transform": ("[/", "/]"),
    "fanout": ("[/", "\\]"),
    "loop": ("[\\", "/]"),
    "timeout": ("[\\", "\\]"),
}
RECTANGLE = ("[", "]")
#: Fill and stroke by type; SVG has the same.
COLOURS = {
    "entry": ("#dcf5e3", "#1d7a3e"),
    "exit": ("#e4e7ec", "#3d4654"),
    "model": ("#dbe9fc", "#1f5fb8"),
    "gate": ("#fff0cc", "#a86b00"),
    "router": ("#ffe3d1", "#b54a08"),
    "fanout": ("#eadffc", "#6b3fc4"),
    "loop": ("#f9dff0", "#a8327e"),
    "timeout": ("#fbdede", "#b3262b"),
    "tool": ("#d8f3f3", "#0b7378"),
    "transform": ("#eef3d4", "#5f7311"),
}
CUSTOM_COLOURS = ("#f4f1ea", "#6e6250")
UNREACHED_COLOURS = ("#f3f3f3", "#a3a3a3")
ARROWS: dict[LinkKind, str] = {"way": "-->", "error": "-.->", "wraps": "-.-o", "idle": "-.->"}
LINK_STYLES: dict[LinkKind, str] = {
    "way": "stroke:#3d4654",
    "error": "stroke:#b3262b,stroke-dasharray:6 4",
    "wraps": "stroke:#6b3fc4,stroke-dasharray:2 4",
    "idle": "stroke:#b5b5b5,stroke-dasharray:1 4",
}
#: All ASCII that means something to Mermaid, to Markdown or to HTML somewhere.
_MEANT = re.compile(r"[^\w .,:+/=!?()-]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", re.ASCII)
#: What Markdown takes for the start of a list.
_LIST_START = re.compile(r"^(\d*)([.)+-])(?= |$)")


def mermaid(picture: Picture) -> str:
    """A flowchart; valid whatever names and conditions hold. Equal pictures give equal text."""
    return "\n".join(_lines(picture)) + "\n"


def _lines(picture: Picture) -> Iterator[str]:
    # Names of our own: ids hold dots, and `end` and `default` are words of Mermaid's.
    names = {box.id: f"n{number}" for number, box in enumerate(picture.boxes)}
    yield "---"
    # JSON in ASCII is YAML, too.
    yield f"title: {json.dumps(_plain(picture.title))}"
    yield "---"
    yield "flowchart TB"
    yield f"  accTitle: {escaped(picture.title)}"
    yield f"  accDescr: {escaped(picture.about)}"
    for box in picture.boxes:
        yield f"  {names[box.id]}{_box(box)}"
    styles: list[LinkKind] = []
    for link in picture.links:
        yield f"  {_link(link, names[link.start], names[link.end])}"
        styles.append(link.kind)
    if len(picture.kinds) > 1:
        yield from _legend(picture)
        styles += picture.kinds
    yield from _classes(picture)
    for kind in dict.fromkeys(styles):
        numbers = ",".join(str(number) for number, style in enumerate(styles) if style == kind)
        yield f"  linkStyle {numbers} {LINK_STYLES[kind]}"


def _box(box: Box) -> str:
    first, last = SHAPES.get(box.type, RECTANGLE)
    marks = {"entry": "▶ ", "exit": "■ ", "": ""}
    lines = [f"{marks[box.point]}<small>{escaped(box.type)}</small>", f"<b>{escaped(box.name)}</b>"]
    lines += [escaped(box.detail)] if box.detail else []
    return f'{first}"{"<br/>".join(lines)}"{last}:::{_class(box)}'


def _link(link: Link, start: str, end: str) -> str:
    label = f'|"{"<br/>".join(map(escaped, link.labels))}"|' if link.labels else ""
    return f"{start} {ARROWS[link.kind]}{label} {end}"


def _legend(picture: Picture) -> Iterator[str]:
    yield '  subgraph legend["Legend"]'
    yield "    direction LR"
    for number, kind in enumerate(picture.kinds):
        yield f'    l{number}a[" "] {ARROWS[kind]}|"{MEANINGS[kind]}"| l{number}b[" "]'
    yield "  end"


def _class(box: Box) -> str:
    if not box.reached:
        return "unreached"
    return f"type_{box.type}" if box.type in COLOURS else "type_custom"


def _classes(picture: Picture) -> Iterator[str]:
    colours = {f"type_{name}": pair for name, pair in COLOURS.items()}
    colours |= {"type_custom": CUSTOM_COLOURS, "unreached": UNREACHED_COLOURS}
    for name in dict.fromkeys(map(_class, picture.boxes)):
        fill, stroke = colours[name]
        text = "#8a8a8a" if name == "unreached" else "#1b1f24"
        yield f"  classDef {name} fill:{fill},stroke:{stroke},color:{text}"


def escaped(text: str) -> str:
    """`text` as a Mermaid label shows it, character by character."""
    line = _plain(text)
    start = _LIST_START.match(line)
    first = f"{start[1]}{_entity(start[2])}" if start else ""
    rest = line[start.end() :] if start else line
    return first + _MEANT.sub(lambda found: _entity(found[0]) if found[0].isascii() else found[0], rest)


def _entity(character: str) -> str:
    return f"#{ord(character)};"


def _plain(text: str) -> str:
    return "".join(c for c in " ".join(text.split()) if c.isprintable())
