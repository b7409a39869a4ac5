"""`tinyllm draw FILE`: a picture of a graph, as Mermaid, SVG or PNG."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tinyllm.cli.replies import FINE, graph_of, guarded, note, refuse, say_bytes

if TYPE_CHECKING:
    from tinyllm.cli.drawing import Picture

INSTALL_HINT = "needs the extra `draw`: pip install -e '.[draw]' in a checkout (--format mermaid needs nothing)"
#: Formats by how a file's name ends; any other ending that names a kind of picture is one that we cannot make.
ENDINGS = {".svg": "svg", ".png": "png"}
PICTURES = (".pdf", ".jpg", ".jpeg", ".gif", ".webp", ".dot", ".html", ".eps", ".ps", ".bmp", ".tif", ".tiff")


@click.command()
@click.argument("file", type=click.Path())
@click.option(
    "--format",
    "style",
    type=click.Choice(("mermaid", "svg", "png")),
    help="What to draw (default: what OUT ends in, else mermaid).",
)
@click.option("-o", "--output", "out", type=click.Path(path_type=Path), metavar="OUT", help="Write here.")
def draw(file: str, style: str | None, out: Path | None) -> None:
    """Draw FILE, a graph; `-` is standard input.

    Shows every node with its type, and every way that the token can take; nodes that none leads to are grey.
    SVG and PNG need the extra `draw`. The same file is always drawn the same.

    Exit code 0, or 2: the file is refused, or cannot be drawn or written.
    """
    guarded(lambda: _drawn(file, style or _style_of(out), out))


def _style_of(out: Path | None) -> str:
    if out is not None and out.suffix.lower() in PICTURES:
        refuse(f"{out}: only .svg and .png can be drawn, and Mermaid's text under any other name")
    return ENDINGS.get(out.suffix.lower(), "mermaid") if out else "mermaid"


def _drawn(file: str, style: str, out: Path | None) -> int:
    from tinyllm.cli.drawing import picture_of

    if style == "png" and out is None and sys.stdout is not None and sys.stdout.isatty():
        refuse("a PNG is nothing for a terminal: name a file with -o, or pipe it on")
    if out is not None and out.exists() and Path(file).exists() and out.samefile(file):
        refuse(f"{out} is the graph itself")
    picture = picture_of(graph_of(file))
    _delivered(_rendered(picture, style), style, out)
    return FINE


def _rendered(picture: Picture, style: str) -> bytes:
    if style == "mermaid":
        from tinyllm.cli.mermaid import mermaid

        return mermaid(picture).encode()
    from tinyllm.cli import graphviz, svg
    from tinyllm.cli.layout import layout_of

    if not graphviz.is_installed() or (style == "png" and not svg.can_rasterise()):
        refuse(f"--format {style} {INSTALL_HINT}")
    text = svg.svg(picture, layout_of(picture))
    return svg.png(text) if style == "png" else text.encode()


def _delivered(data: bytes, style: str, out: Path | None) -> None:
    if out is None:
        say_bytes(data)
        return
    try:
        out.write_bytes(data)
    except OSError as error:
        refuse(f"cannot be written: {error}")
    note(f"{style} written to {out}")
