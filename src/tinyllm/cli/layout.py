"""Where everything of a picture stands: sizes are reckoned here, places are found by Graphviz.

Graphviz is given numbers only, never a name: nothing of a graph file can be taken for its language.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tinyllm.cli.drawing import Box, Link, Picture
from tinyllm.cli.graphviz import laid_out
from tinyllm.cli.lettering import width_of

TYPE_SIZE, NAME_SIZE, DETAIL_SIZE, LABEL_SIZE = 10.0, 14.0, 11.0, 11.0
#: Letter size to line height.
LEADING = 1.35
PADDING_X, PADDING_Y = 16.0, 8.0
#: Room for slanted and pointed sides.
SLANTED = frozenset({"gate", "router", "transform", "entry", "exit"})
SLANT = 10.0
LABEL_PADDING = 4.0
#: With more links than this a careful layout can take minutes; a quick one with straight lines must do.
CAREFUL_LINKS_MAX = 250
CAREFUL, QUICK = "splines=spline", "splines=line, nslimit=1, nslimit1=1, mclimit=0.2"
#: Nodes inside one wrapper that stand in one row.
ROW_MAX = 4

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Placed:
    """A rectangle by its middle and its size; y grows downwards."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Curve:
    """A Bézier spline of one start and three points for each piece; `head` is the tip of the arrow."""

    points: tuple[Point, ...]
    head: Point
    label: Placed | None


@dataclass(frozen=True, slots=True)
class Layout:
    """Places of all boxes and links, in their order, within (0, 0) to (width, height)."""

    width: float
    height: float
    boxes: tuple[Placed, ...]
    links: tuple[Curve, ...]


def layout_of(picture: Picture) -> Layout:
    """Places for everything; equal pictures get equal layouts. Raises like `graphviz.laid_out`."""
    found = json.loads(laid_out(dot_of(picture)))
    _, _, width, height = _numbers(found["bb"])
    places = {part["name"]: _numbers(part["pos"]) for part in found["objects"] if "pos" in part}
    curves = {int(edge["id"]): edge for edge in found.get("edges", ())}
    boxes = (
        Placed(_round(places[f"n{number}"][0]), _round(height - places[f"n{number}"][1]), *box_size(box))
        for number, box in enumerate(picture.boxes)
    )
    links = (_curve(curves[number], link, height) for number, link in enumerate(picture.links))
    return Layout(_round(width), _round(height), tuple(boxes), tuple(links))


def box_size(box: Box) -> tuple[float, float]:
    """Width and height of a box that holds its texts."""
    widest = max(
        width_of(box.type, TYPE_SIZE) + (14 if box.point else 0),
        width_of(box.name, NAME_SIZE, bold=True),
        width_of(box.detail, DETAIL_SIZE),
    )
    width = widest + 2 * PADDING_X + (2 * SLANT if box.type in SLANTED else 0)
    lines = TYPE_SIZE + NAME_SIZE + (DETAIL_SIZE if box.detail else 0)
    return _round(max(width, 90)), _round(lines * LEADING + 2 * PADDING_Y)


def label_size(link: Link) -> tuple[float, float]:
    """Width and height of all lines of a label."""
    width = max(width_of(line, LABEL_SIZE) for line in link.labels)
    return _round(width + 2 * LABEL_PADDING), _round(len(link.labels) * LABEL_SIZE * LEADING + LABEL_PADDING)


def dot_of(picture: Picture) -> str:
    """The picture in Graphviz's language: nothing but sizes, and what is linked with what."""
    return "\n".join(_dot_lines(picture)) + "\n"


def _dot_lines(picture: Picture) -> Iterator[str]:
    numbers = {box.id: number for number, box in enumerate(picture.boxes)}
    yield "digraph {"
    care = CAREFUL if len(picture.links) <= CAREFUL_LINKS_MAX else QUICK
    yield f"  graph [rankdir=TB, nodesep=0.35, ranksep=0.45, {care}]"
    yield '  node [shape=box, fixedsize=true, label=""]'
    for number, box in enumerate(picture.boxes):
        width, height = box_size(box)
        yield f"  n{number} [width={width / 72:.4f}, height={height / 72:.4f}]"
    starts = " ".join(f"n{number};" for number, box in enumerate(picture.boxes) if box.point == "entry")
    yield f"  {{ rank=source; {starts} }}"
    lowered = _lowered(picture)
    for number, link in enumerate(picture.links):
        options = [f'id="{number}"', f"weight={3 if link.kind == 'way' else 1}"]
        if number in lowered:
            options.append("minlen=2")
        if link.labels:
            width, height = label_size(link)
            options.append(f"label={_blank(width, height)}")
        yield f"  n{numbers[link.start]} -> n{numbers[link.end]} [{', '.join(options)}]"
    yield "}"


def _lowered(picture: Picture) -> set[int]:
    """Every second link of a wrapper to many nodes that lead nowhere: in one row they would be too wide to read."""
    leaving = {link.start for link in picture.links}
    leaves: dict[str, list[int]] = {}
    for number, link in enumerate(picture.links):
        if link.kind == "wraps" and link.end not in leaving:
            leaves.setdefault(link.start, []).append(number)
    return {number for numbers in leaves.values() if len(numbers) > ROW_MAX for number in numbers[1::2]}


def _blank(width: float, height: float) -> str:
    """A label of a size without a text, so that no font of this machine has a say."""
    frame = 'BORDER="0" CELLBORDER="0" CELLSPACING="0" CELLPADDING="0" FIXEDSIZE="TRUE"'
    return f'<<TABLE {frame} WIDTH="{width:.0f}" HEIGHT="{height:.0f}"><TR><TD></TD></TR></TABLE>>'


def _curve(edge: dict[str, Any], link: Link, height: float) -> Curve:
    head: Point | None = None
    points: list[Point] = []
    for word in edge["pos"].split():
        marked = word.startswith(("e,", "s,"))
        x, y = _numbers(word[2:] if marked else word)
        point = (_round(x), _round(height - y))
        if word.startswith("e,"):
            head = point
        elif not marked:
            points.append(point)
    label = None
    if link.labels:
        x, y = _numbers(edge["lp"])
        label = Placed(_round(x), _round(height - y), *label_size(link))
    return Curve(tuple(points), head or points[-1], label)


def _numbers(text: str) -> list[float]:
    return [float(number) for number in text.split(",")]


def _round(number: float) -> float:
    return round(number, 1) + 0.0
