"""`tinyllm draw` as a shell sees it, and what a picture of a graph shows."""

from __future__ import annotations

import itertools
import re
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from tests.support.graphs_text import framed
from tinyllm.cli import graphviz
from tinyllm.cli.drawing import Box, Link, Picture, picture_of, shortened
from tinyllm.cli.layout import Placed, box_size, dot_of, layout_of
from tinyllm.cli.lettering import width_of
from tinyllm.cli.main import cli
from tinyllm.cli.mermaid import escaped, mermaid
from tinyllm.cli.svg import can_rasterise, svg
from tinyllm.config import CONFIGS
from tinyllm.errors import TinyLLMError, UsageError
from tinyllm.graph import load_graph, parse_graph

pytestmark = pytest.mark.unit

THIRTY_NODES = Path(__file__).parents[1] / "support" / "thirty_nodes.yaml"
SVG = "{http://www.w3.org/2000/svg}"
#: What Mermaid, Markdown, HTML, XML and DOT each take for something of their own.
NASTY = "\"'<b>&amp;]]>`#35;%%{{}}[[(|)]]; --> end subgraph \\ _x_ *y* 1. 模型 🙂 ﷽"

needs_layout = pytest.mark.skipif(not graphviz.is_installed(), reason="needs the extra `draw`")
needs_png = pytest.mark.skipif(not (graphviz.is_installed() and can_rasterise()), reason="needs the extra `draw`")


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def draw(*arguments: str | Path, stdin: str | None = None) -> Result:
    return CliRunner().invoke(cli, ["draw", *map(str, arguments)], input=stdin)


def a_file(text: str | None = None) -> str:
    Path("graph.yaml").write_text(framed() if text is None else text, encoding="utf-8")
    return "graph.yaml"


def links_of(text: str) -> set[tuple[str, str, str, tuple[str, ...]]]:
    return {(link.start, link.end, link.kind, link.labels) for link in picture_of(parse_graph(text)).links}


def a_nasty_picture(name: str = NASTY) -> Picture:
    """Texts that mean something to everyone, wherever there are texts."""
    boxes = tuple(
        Box(id=f"{number}", type=kind, name=name, detail=name, about=name, point="entry" if number == 0 else "")
        for number, kind in enumerate([*CONFIGS, name])
    )
    links = tuple(
        Link(start=a.id, end=b.id, kind="way", labels=(name, name)) for a, b in itertools.pairwise([*boxes, boxes[0]])
    )
    return Picture(title=name, about=name, boxes=boxes, links=links)


# --- the command ---------------------------------------------------------------------------------------


def test_without_options_mermaid_goes_to_stdout():
    result = draw(a_file())

    assert 0 == result.exit_code
    assert "flowchart TB" in result.stdout.splitlines()


def test_a_graph_can_come_from_stdin():
    assert draw(a_file()).stdout == draw("-", stdin=framed()).stdout


def test_the_format_is_taken_from_the_name_of_the_output():
    assert 0 == draw(a_file(), "-o", "out.mmd").exit_code
    assert Path("out.mmd").read_text(encoding="utf-8") == draw("graph.yaml").stdout


@needs_layout
def test_svg_goes_to_stdout_or_into_a_file():
    printed = draw(a_file(), "--format", "svg")
    draw("graph.yaml", "-o", "out.svg")

    assert printed.stdout.startswith("<svg ")
    assert printed.stdout == Path("out.svg").read_text(encoding="utf-8")


@needs_png
def test_png_goes_into_a_file_or_a_pipe():
    draw(a_file(), "-o", "out.png")

    assert Path("out.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert Path("out.png").read_bytes() == draw("graph.yaml", "--format", "png").stdout_bytes


def test_png_is_not_for_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)

    with pytest.raises(SystemExit) as ended:
        cli(["draw", a_file(), "--format", "png"])

    assert 2 == ended.value.code
    assert "-o" in capsys.readouterr().err


@pytest.mark.parametrize("style", ["svg", "png"])
def test_without_the_extra_it_says_how_to_install_it(style, monkeypatch):
    monkeypatch.setattr(graphviz, "find_spec", lambda name: None)

    result = draw(a_file(), "--format", style)

    assert 2 == result.exit_code
    assert "pip install -e '.[draw]'" in result.stderr
    assert 0 == draw("graph.yaml", "--format", "mermaid").exit_code


@pytest.mark.parametrize("name", ["x.pdf", "x.JPG", "x.html"])
def test_a_kind_of_picture_that_cannot_be_drawn_is_refused(name):
    result = draw(a_file(), "-o", name)

    assert 2 == result.exit_code
    assert name in result.stderr
    assert not Path(name).exists()


def test_a_refused_graph_exits_2_with_its_problems():
    result = draw(a_file(framed(edges="- {from_node: start, to_node: dome}")))

    assert 2 == result.exit_code
    assert "graph.yaml:9:22: error: there is no node 'dome'" in result.stderr


def test_output_that_cannot_be_written_exits_2():
    result = draw(a_file(), "-o", "no/such/folder/out.mmd")

    assert 2 == result.exit_code
    assert "cannot be written" in result.stderr


def test_the_graph_itself_is_never_overwritten():
    result = draw(a_file(), "-o", "./graph.yaml")

    assert 2 == result.exit_code
    assert framed() == Path("graph.yaml").read_text(encoding="utf-8")


def test_a_layout_that_takes_too_long_is_refused():
    with pytest.raises(UsageError, match="--format mermaid"):
        graphviz.laid_out("digraph {}", timeout_s=0.0)


@needs_layout
def test_a_layout_that_fails_is_an_error_of_ours():
    with pytest.raises(TinyLLMError, match="Graphviz failed"):
        graphviz.laid_out("no graph")


# --- what is shown -------------------------------------------------------------------------------------


def test_ways_come_from_edges_configs_and_on_error():
    shown = {(link.start, link.end, link.kind): link.labels for link in picture_of(load_graph(THIRTY_NODES)).links}

    assert ("len(content.strip()) == 0", "priority 10") == shown["clean", "exit.failed", "way"]
    assert ("billing",) == shown["sort", "billing.lookup", "way"]
    assert ("technical, priority 5",) == shown["sort", "tech.vote", "way"]
    assert ("small talk (default)",) == shown["sort", "chat", "way"]
    assert ("billing + technical",) == shown["sort", "both", "way"]
    assert ("polite and complete",) == shown["check", "publish", "way"]
    assert ("default",) == shown["check", "ask.person", "way"]
    assert ("on error",) == shown["sort", "exit.failed", "error"]
    assert () == shown["tech.vote", "tech.qwen", "wraps"]


def test_what_a_timeout_wraps_chooses_for_the_timeout():
    starts = {link.start for link in picture_of(load_graph(THIRTY_NODES)).links if "accepted" in link.labels}

    assert {"guarded"} == starts


def test_ways_of_what_only_runs_inside_a_wrapper_are_never_taken():
    shown = {(link.start, link.end): link.kind for link in picture_of(load_graph(THIRTY_NODES)).links}

    assert "idle" == shown["tech.qwen", "join"]
    assert "idle" == shown["old.prompt", "join"]


def test_nodes_that_no_way_leads_to_are_told_apart():
    assert ["old.prompt"] == [box.id for box in picture_of(load_graph(THIRTY_NODES)).boxes if not box.reached]


def test_entries_and_exits_are_marked():
    points = {box.id: box.point for box in picture_of(load_graph(THIRTY_NODES)).boxes if box.point}

    assert {"entry": 2, "exit": 4} == {point: list(points.values()).count(point) for point in ("entry", "exit")}


def test_links_of_a_kind_between_two_nodes_are_one_with_all_labels():
    conditions = "\n".join(
        f"- {{from_node: start, to_node: done, condition: \"content == '{number}'\"}}" for number in range(6)
    )
    ((_, _, kind, labels),) = links_of(framed(edges=f"{conditions}\n- {{from_node: start, to_node: done}}"))

    assert ("way", 4, "and 3 more") == (kind, len(labels), labels[-1])


def test_an_edge_to_what_a_wrapper_runs_is_no_second_link():
    text = framed(
        "- {id: f, type: fanout, config: {target_nodes: [m, m]}}\n- {id: m, type: model}",
        edges="""
        - {from_node: start, to_node: f}
        - {from_node: f, to_node: m}
        - {from_node: f, to_node: done}
        """,
    )

    assert ("f", "m", "wraps", ("2 times",)) in links_of(text)
    assert {"wraps"} == {kind for start, end, kind, _ in links_of(text) if (start, end) == ("f", "m")}


@given(st.text(max_size=80), st.integers(4, 60))
def test_a_shortened_text_fits_on_one_line(text, chars_max):
    short = shortened(text, chars_max)

    assert len(short) <= chars_max
    assert [short] == short.splitlines() or not short


# --- Mermaid -------------------------------------------------------------------------------------------

#: Every line that a flowchart of ours can have: what stands in quotes holds nothing that ends them.
LINES = [
    r'title: "(?:[ !#-\[\]-~]|\\.)*"',
    r"---|flowchart TB|  end|    direction LR",
    r"  acc(Title|Descr): [^\n;{}]*(?:#\d+;[^\n;{}]*)*",
    r'  n\d+(?:\(\[|\{\{|\[\[|\[/|\[\\|\(|\[)"[^"]*"(?:\]\)|\}\}|\]\]|/\]|\\\]|\)|\]):::\w+',
    r'  n\d+ (?:-->|-\.->|-\.-o)(?:\|"[^"|]*"\|)? n\d+',
    r'  subgraph legend\["Legend"\]',
    r'    l\d+a\[" "\] (?:-->|-\.->|-\.-o)\|"[a-z ]+"\| l\d+b\[" "\]',
    r"  classDef \w+ fill:#\w+,stroke:#\w+,color:#\w+",
    r"  linkStyle [\d,]+ stroke:#\w+(?:,stroke-dasharray:\d+ \d+)?",
]


def assert_is_a_flowchart(text: str) -> None:
    for line in text.splitlines():
        assert any(re.fullmatch(pattern, line) for pattern in LINES), line


def unescaped(label: str) -> str:
    """What a label shows: Mermaid's entities, undone."""
    return re.sub(r"#(\d+);", lambda found: chr(int(found[1])), label)


def test_thirty_nodes_are_a_flowchart():
    assert_is_a_flowchart(mermaid(picture_of(load_graph(THIRTY_NODES))))


def test_nasty_names_leave_a_flowchart_whole():
    assert_is_a_flowchart(mermaid(a_nasty_picture()))


@given(st.text())
def test_an_escaped_text_holds_nothing_that_means_something_and_shows_what_it_was(text):
    label = escaped(text)

    shown = "".join(c for c in " ".join(text.split()) if c.isprintable())
    assert shown == unescaped(label)
    assert not set('"<>&|[]{}`%*\\') & set(label)
    assert not re.match(r"\d*[.)+-]( |$)", label)


@pytest.mark.parametrize("name", ["end", "default", "graph", "subgraph", "a.b", "click", "o1", "x1"])
def test_words_of_mermaid_are_never_its_names(name):
    node = f"- {{id: {name}, type: model}}"
    edges = f"- {{from_node: start, to_node: {name}}}\n- {{from_node: {name}, to_node: done}}"

    text = draw(a_file(framed(node, edges=edges))).stdout

    assert_is_a_flowchart(text)
    assert f"<b>{name}</b>" in text


def test_styles_count_the_links_as_they_stand():
    lines = mermaid(picture_of(load_graph(THIRTY_NODES))).splitlines()

    arrows = [found[1] for line in lines if (found := re.match(r"\s+[nl]\w+(?:\[\" \"\])? (-\S\S[>o]?)", line))]
    styled = sorted(int(n) for line in lines if "linkStyle" in line for n in line.split()[1].split(","))
    assert list(range(len(arrows))) == styled


# --- layout and SVG ------------------------------------------------------------------------------------


def overlap(a: Placed, b: Placed, slack: float = 1.0) -> bool:
    return abs(a.x - b.x) < (a.width + b.width) / 2 - slack and abs(a.y - b.y) < (a.height + b.height) / 2 - slack


@needs_layout
@pytest.mark.parametrize("picture", [picture_of(load_graph(THIRTY_NODES)), a_nasty_picture("model")])
def test_neither_boxes_nor_labels_cover_a_box(picture):
    layout = layout_of(picture)

    labels = [curve.label for curve in layout.links if curve.label is not None]
    assert not [pair for pair in itertools.combinations(layout.boxes, 2) if overlap(*pair)]
    assert not [(label, box) for label in labels for box in layout.boxes if overlap(label, box)]
    assert not [pair for pair in itertools.combinations(labels, 2) if overlap(*pair)]


@needs_layout
def test_everything_stands_inside_the_picture():
    layout = layout_of(picture_of(load_graph(THIRTY_NODES)))

    for box in layout.boxes:
        assert -0.2 <= box.x - box.width / 2
        assert box.x + box.width / 2 <= layout.width + 0.2
        assert -0.2 <= box.y - box.height / 2
        assert box.y + box.height / 2 <= layout.height + 0.2


@given(st.text(max_size=40), st.text(max_size=40))
def test_a_box_is_wider_than_its_texts(name, detail):
    width, _ = box_size(Box(id="x", type="gate", name=name, detail=detail))

    assert width >= max(width_of(name, 14, bold=True), width_of(detail, 11))


@given(st.text(), st.text())
def test_texts_are_as_wide_as_their_parts_together(first, second):
    assert width_of(first + second, 10) == pytest.approx(width_of(first, 10) + width_of(second, 10), abs=0.11)


def test_graphviz_is_told_nothing_but_numbers():
    dot = dot_of(a_nasty_picture("SECRET"))

    assert "SECRET" not in dot


@needs_layout
def test_svg_is_well_formed_whatever_names_hold():
    picture = a_nasty_picture(NASTY + "\x00\x1b\x7f\ufffe\ud800")

    root = ElementTree.fromstring(svg(picture, layout_of(picture)).encode())

    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    assert f"{SVG}svg" == root.tag
    assert any(NASTY in text for text in texts)


@needs_layout
def test_svg_has_a_title_a_description_and_a_legend():
    root = ElementTree.fromstring(draw(THIRTY_NODES, "--format", "svg").stdout)

    texts = {element.text for element in root.iter(f"{SVG}text")}
    assert "Support desk" == root.find(f"{SVG}title").text
    assert root.find(f"{SVG}desc").text.startswith("Sorts questions")
    assert {"way of the token", "way after an error", "runs it inside itself", "never taken"} < texts
    assert {"sort", "by qwen2.5:0.5b", "technical, priority 5"} < texts


@needs_layout
def test_svg_is_the_same_byte_for_byte():
    first, second = (draw(THIRTY_NODES, "--format", "svg").stdout_bytes for _ in range(2))

    assert first == second


@needs_png
def test_a_picture_larger_than_viewers_show_is_made_smaller():
    wide = "\n".join(f"- {{id: m{number}, type: model}}" for number in range(120))
    draw(a_file(framed(wide)), "-o", "out.png")

    data = Path("out.png").read_bytes()
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    assert max(width, height) <= 12_000
