"""A picture with a layout as SVG, and SVG as PNG."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from xml.sax.saxutils import escape

from tinyllm.cli.drawing import MEANINGS, Box, Link, LinkKind, Picture, shortened
from tinyllm.cli.layout import (
    DETAIL_SIZE,
    LABEL_SIZE,
    LEADING,
    NAME_SIZE,
    PADDING_Y,
    SLANT,
    TYPE_SIZE,
    Curve,
    Layout,
    Placed,
)
from tinyllm.cli.lettering import width_of
from tinyllm.cli.mermaid import COLOURS, CUSTOM_COLOURS, UNREACHED_COLOURS

MARGIN = 24.0
TITLE_SIZE = 18.0
TITLE_CHARS_MAX = 80
LEGEND_SIZE = 11.0
TEXT, FAINT = "#1b1f24", "#8a8a8a"
FONT_FAMILY = "Open Sans"
FONTS = f"'{FONT_FAMILY}', 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
#: Colour and dashes by kind of link.
STROKES: dict[LinkKind, tuple[str, str]] = {
    "way": ("#3d4654", ""),
    "error": ("#b3262b", "6 4"),
    "wraps": ("#6b3fc4", "1.5 3.5"),
    "idle": ("#b5b5b5", "1 4"),
}
ZOOM = 2.0
#: More pixels than this in one direction are more than viewers show, and than memory should hold.
PNG_SIDE_MAX = 12_000
#: Scripts from here on are not in the font that comes with the package.
FONT_ENDS_AT = 0x0590


def svg(picture: Picture, layout: Layout) -> str:
    """A document of its own, well-formed whatever names hold; equal pictures and layouts give equal text."""
    return "\n".join(_lines(picture, layout)) + "\n"


def _lines(picture: Picture, layout: Layout) -> Iterator[str]:
    title = shortened(picture.title, TITLE_CHARS_MAX)
    legend_width = sum(_legend_width(kind) for kind in picture.kinds)
    width = max(layout.width, width_of(title, TITLE_SIZE, bold=True), legend_width) + 2 * MARGIN
    top = MARGIN + TITLE_SIZE * LEADING + MARGIN / 2
    height = top + layout.height + (2 * MARGIN if picture.kinds else 0) + MARGIN
    # The graph stands in the middle if its title or legend is wider.
    left = (width - layout.width) / 2
    size = f'width="{_n(width)}" height="{_n(height)}" viewBox="0 0 {_n(width)} {_n(height)}"'
    yield f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-labelledby="title desc">'
    yield f'<title id="title">{_escaped(picture.title)}</title>'
    yield f'<desc id="desc">{_escaped(picture.about)}</desc>'
    yield from _markers()
    yield f'<rect width="{_n(width)}" height="{_n(height)}" fill="#ffffff"/>'
    yield f'<g font-family="{FONTS}" text-anchor="middle" fill="{TEXT}">'
    yield _text(title, width / 2, MARGIN + TITLE_SIZE, TITLE_SIZE, bold=True)
    yield f'<g transform="translate({_n(left)} {_n(top)})">'
    for box, placed in zip(picture.boxes, layout.boxes, strict=True):
        yield from _box(box, placed)
    # Over the boxes, or the second sheet of a fanout would hide the tip of an arrow.
    yield from (_path(link, curve) for link, curve in zip(picture.links, layout.links, strict=True))
    # Labels come last: where a line has to cross one, the text stays readable.
    for link, curve in zip(picture.links, layout.links, strict=True):
        yield from _label(link, curve)
    yield "</g>"
    yield from _legend(picture, width, top + layout.height + 1.5 * MARGIN)
    yield "</g>"
    yield "</svg>"


# --- boxes ---------------------------------------------------------------------------------------------


def _box(box: Box, at: Placed) -> Iterator[str]:
    fill, stroke = COLOURS.get(box.type, CUSTOM_COLOURS) if box.reached else UNREACHED_COLOURS
    about = f"{box.type} {box.id}" + (f": {box.about}" if box.about else "")
    text = TEXT if box.reached else FAINT
    yield f'<g fill="{text}"><title>{_escaped(about if box.reached else f"{about} (no way leads here)")}</title>'
    paint = f'fill="{fill}" stroke="{stroke}" stroke-width="{2.5 if box.point else 1.5}"'
    yield from (f"<{part} {paint}/>" for part in _outline(box, at))
    y = at.y - at.height / 2 + PADDING_Y + TYPE_SIZE
    if box.point:
        yield _mark(box, at.x - width_of(box.type, TYPE_SIZE) / 2 - 8, y - TYPE_SIZE * 0.36, stroke)
    yield _text(box.type, at.x + (4 if box.point else 0), y, TYPE_SIZE, fill=stroke)
    y += NAME_SIZE * LEADING
    yield _text(box.name, at.x, y, NAME_SIZE, bold=True)
    if box.detail:
        y += DETAIL_SIZE * LEADING + 1
        yield _text(box.detail, at.x, y, DETAIL_SIZE)
    yield "</g>"


def _mark(box: Box, x: float, y: float, colour: str) -> str:
    """A triangle where runs can start, a square where they can end."""
    if box.point == "entry":
        return f'<path d="M{_n(x - 4)} {_n(y - 4.5)}l8 4.5l-8 4.5z" fill="{colour}"/>'
    return f'<rect x="{_n(x - 4)}" y="{_n(y - 4)}" width="8" height="8" fill="{colour}"/>'


def _outline(box: Box, at: Placed) -> Iterator[str]:
    """The shape that belongs to the type, as elements without their paint."""
    left, top, right, bottom = at.x - at.width / 2, at.y - at.height / 2, at.x + at.width / 2, at.y + at.height / 2
    s = SLANT
    match box.type:
        case "entry" | "exit":
            yield _rect(at, at.height / 2)
        case "gate":
            corners = [(left + s, top), (right - s, top), (right, at.y), (right - s, bottom), (left + s, bottom)]
            yield _polygon([*corners, (left, at.y)])
        case "router":
            yield _polygon([(left + s, top), (right - s, top), (right, bottom), (left, bottom)])
        case "transform":
            yield _polygon([(left + s, top), (right, top), (right - s, bottom), (left, bottom)])
        case "model":
            yield _rect(at, 12)
        case "fanout":
            yield _rect(Placed(at.x + 4, at.y - 4, at.width, at.height), 3)
            yield _rect(at, 3)
        case "loop":
            yield _rect(at, 3)
            # An arrow that comes back to where it began.
            yield f'path d="M{_n(right - 14)} {_n(top + 9)}a5 5 0 1 0 5 5m-3 -2l3 2l2.5 -3"'
        case "timeout":
            yield _rect(at, 3)
            yield f'path d="M{_n(right - 12)} {_n(top + 7)}a6 6 0 1 0 0.1 0m0 2v4l3 1.5"'
        case "tool":
            yield _rect(at, 0)
            yield f'path d="M{_n(left + 7)} {_n(top)}V{_n(bottom)}M{_n(right - 7)} {_n(top)}V{_n(bottom)}"'
        case _:
            yield _rect(at, 0)


def _rect(at: Placed, radius: float) -> str:
    place = f'x="{_n(at.x - at.width / 2)}" y="{_n(at.y - at.height / 2)}"'
    return f'rect {place} width="{_n(at.width)}" height="{_n(at.height)}" rx="{_n(radius)}"'


def _polygon(points: list[tuple[float, float]]) -> str:
    return f'polygon points="{" ".join(f"{_n(x)},{_n(y)}" for x, y in points)}"'


# --- links ---------------------------------------------------------------------------------------------


def _markers() -> Iterator[str]:
    yield "<defs>"
    for kind, (colour, _) in STROKES.items():
        shape = '<circle cx="6" cy="5" r="3.5"' if kind == "wraps" else '<path d="M0 1L10 5L0 9z"'
        size = 'viewBox="0 0 10 10" refX="9" refY="5" markerWidth="9" markerHeight="9" markerUnits="userSpaceOnUse"'
        yield f'<marker id="{kind}" {size} orient="auto">{shape} fill="{colour}"/></marker>'
    yield "</defs>"


def _path(link: Link, curve: Curve) -> str:
    first, *rest = curve.points
    line = " ".join(f"{_n(x)},{_n(y)}" for x, y in rest)
    head = f"L{_n(curve.head[0])},{_n(curve.head[1])}"
    return f'<path d="M{_n(first[0])},{_n(first[1])}C{line}{head}" {_stroke(link.kind)}/>'


def _stroke(kind: LinkKind) -> str:
    colour, dashes = STROKES[kind]
    dashed = f' stroke-dasharray="{dashes}" stroke-linecap="round"' if dashes else ""
    return f'fill="none" stroke="{colour}" stroke-width="1.5"{dashed} marker-end="url(#{kind})"'


def _label(link: Link, curve: Curve) -> Iterator[str]:
    if curve.label is None:
        return
    at, colour = curve.label, STROKES[link.kind][0] if link.kind != "idle" else FAINT
    height = len(link.labels) * LABEL_SIZE * LEADING
    wide = max(width_of(line, LABEL_SIZE) for line in link.labels) + 4
    corner = f'x="{_n(at.x - wide / 2)}" y="{_n(at.y - height / 2)}"'
    yield f'<rect {corner} width="{_n(wide)}" height="{_n(height)}" fill="#ffffff" fill-opacity="0.85" rx="2"/>'
    for number, line in enumerate(link.labels):
        y = at.y - height / 2 + (number + 0.77) * LABEL_SIZE * LEADING
        yield _text(line, at.x, y, LABEL_SIZE, fill=colour)


def _legend(picture: Picture, width: float, y: float) -> Iterator[str]:
    x = (width - sum(_legend_width(kind) for kind in picture.kinds)) / 2
    for kind in picture.kinds:
        meaning = MEANINGS[kind]
        yield f'<path d="M{_n(x)} {_n(y)}h40" {_stroke(kind)}/>'
        middle = x + 48 + width_of(meaning, LEGEND_SIZE) / 2
        yield _text(meaning, middle, y + LEGEND_SIZE * 0.36, LEGEND_SIZE)
        x += _legend_width(kind)


def _legend_width(kind: LinkKind) -> float:
    return 48 + width_of(MEANINGS[kind], LEGEND_SIZE) + 28


# --- text ----------------------------------------------------------------------------------------------


def _text(text: str, x: float, y: float, size: float, *, bold: bool = False, fill: str | None = None) -> str:
    """A text with its middle at `x`, as wide as it was reckoned to be."""
    more = (' font-weight="700"' if bold else "") + (f' fill="{fill}"' if fill else "")
    width = width_of(text, size, bold=bold)
    fitted = f' textLength="{_n(width)}" lengthAdjust="spacingAndGlyphs"' if width else ""
    return f'<text x="{_n(x)}" y="{_n(y)}" font-size="{_n(size)}"{more}{fitted}>{_escaped(text)}</text>'


def _escaped(text: str) -> str:
    """`text` in XML, without what XML cannot hold even as an entity."""
    return escape("".join(c if c.isprintable() else "\ufffd" for c in text))


def _n(number: float) -> str:
    """A number as short as it can be, to a tenth; never in exponents."""
    return f"{number:.1f}".removesuffix(".0")


# --- PNG -----------------------------------------------------------------------------------------------


def can_rasterise() -> bool:
    """Whether PNG can be made here."""
    return find_spec("resvg_py") is not None and find_spec("fontpkg_open_sans") is not None


def png(text: str) -> bytes:
    """An SVG of ours as PNG, twice as large unless that is too large.

    Letters come from the package's own font; only where a text has others, fonts of the system help out.
    """
    width, height = _size_of(text)
    zoom = min(ZOOM, PNG_SIDE_MAX / max(width, height))
    return bytes(
        import_module("resvg_py").svg_to_bytes(
            svg_string=text,
            font_files=_font_files(),
            font_family=FONT_FAMILY,
            sans_serif_family=FONT_FAMILY,
            skip_system_fonts=all(ord(character) < FONT_ENDS_AT or character == "…" for character in text),
            zoom=zoom,
        )
    )


def _size_of(text: str) -> tuple[float, float]:
    found = re.search(r'viewBox="0 0 (\S+) (\S+)"', text)
    assert found is not None, "every SVG of ours has one"
    return float(found[1]), float(found[2])


def _font_files() -> list[str]:
    folder = Path(str(import_module("fontpkg_open_sans").__file__)).parent / "files"
    return sorted(str(file) for file in folder.iterdir() if "Italic" not in file.name)
