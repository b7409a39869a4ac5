"""Hostile graph files, each read in a process of its own: refused or read, never slow, never large.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit

#: Of processor time; each of these files is read in a tenth of it, and each bug takes ten times as long.
SECONDS = 5
MEBIBYTES = 64
LINE = {
    "id": "g",
    "version": "1.0.0",
    "name": "g",
    "nodes": [{"id": "s", "type": "entry"}, {"id": "e", "type": "exit"}],
    "edges": [{"from_node": "s", "to_node": "e"}],
    "entry_points": ["s"],
    "exit_points": ["e"],
}
#: Reads a good file first, so that what the modules themselves take is not counted.
READER = """
import json, resource, sys
from tinyllm import TinyLLMError, load_graph, parse_graph

def kibibytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

parse_graph(sys.argv[2])
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[3]), int(sys.argv[3])))
before = kibibytes()
try:
    load_graph(sys.argv[1])
    told = "read"
except TinyLLMError as error:
    told = error.problems[0].code
print(json.dumps([told, (kibibytes() - before) / 1024]))
"""


def reading(path: str | Path) -> str:
    """`read`, or the code of the first problem."""
    command = [sys.executable, "-c", READER, str(path), json.dumps(LINE), str(SECONDS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert 0 == done.returncode, f"{done.returncode}: {done.stderr[-300:]}"
    told, mebibytes = json.loads(done.stdout)
    assert mebibytes < MEBIBYTES
    return str(told)


def a_file(folder: Path, content: str | bytes) -> Path:
    path = folder / "graph.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def with_node(kind: str, config: Any) -> str:
    work = {"id": "w", "type": kind, "config": config}
    edges = [{"from_node": "s", "to_node": "w"}, {"from_node": "w", "to_node": "e"}]
    return json.dumps({**LINE, "nodes": [*LINE["nodes"], work], "edges": edges})


def extracting(*patterns: str) -> str:
    steps = [{"type": "regex_extract", "params": {"pattern": pattern}} for pattern in patterns]
    return with_node("transform", {"transforms": steps})


@pytest.mark.parametrize("kind", ["folder", "pipe", "endless", "link to endless", "sparse", "nothing", "circle"])
def test_what_is_no_small_file_is_refused_at_once(kind: str, tmp_path: Path):
    path = tmp_path / "graph.yaml"
    match kind:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "endless":
            path = Path("/dev/zero")
        case "link to endless":
            path.symlink_to("/dev/zero")
        case "sparse":
            with path.open("wb") as file:
                file.truncate(2 << 30)
        case "circle":
            path.symlink_to(path)

    assert reading(path) in {"not_a_file", "unreadable", "too_large"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32"])
def test_another_encoding_is_refused(encoding: str, tmp_path: Path):
    assert reading(a_file(tmp_path, json.dumps(LINE).encode(encoding))) in {"encoding", "character"}


@pytest.mark.parametrize(
    "content",
    [
        "[" * 500_000,
        "{a: " * 250_000,
        "- " * 500_000,
        "? " * 500_000,
        "{?" * 300_000,
        '"' * 1_000_000,
        "a:" * 500_000,
        "[" + "," * 1_000_000,
        "---\n" * 250_000,
        "%A b\n" * 200_000 + "---\n",
        "\0" * 1_000_000,
        "k: 1\n" * 200_000,
        "- &a x\n" + "- *a\n" * 200_000,
        "[" + "[]," * 349_000 + "[]]",
        "[" + "9" * 1_000_000 + "]",
        "[" + '"ab",' * 200_000 + '"a"]',
        "a: |\n" + " \n" * 500_000 + " x",
    ],
    ids=lambda content: repr(content[:8]),
)
def test_a_mebibyte_of_one_thing_is_refused(content: str, tmp_path: Path):
    assert "read" != reading(a_file(tmp_path, content))


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("transform", {"transforms": [{"type": "regex_extract", "params": {"pattern": "(a|a)*{1000}"}}]}),
        ("transform", {"transforms": [{"type": "regex_extract", "params": {"pattern": "((a{100}){100}){100}"}}]}),
        ("transform", {"transforms": [{"type": "truncate", "params": {"max_length": -5}}]}),
        ("model", {"response_schema": {"$ref": "#"}}),
        ("model", {"response_schema": {"$ref": "http://localhost:1/x"}}),
        ("model", {"response_schema": {"pattern": "(((a{1000}){1000}){1000})"}}),
        ("model", {"retry_count": 10**20}),
        ("model", ["list"]),
        ("fanout", {"target_nodes": ["e"] * 30_000}),
        ("unheard_of", {}),
    ],
)
def test_a_hostile_config_is_refused(kind: str, config: Any, tmp_path: Path):
    assert "read" != reading(a_file(tmp_path, with_node(kind, config)))


@pytest.mark.parametrize("template", ["{" * 400_000 + "}" * 400_000, "{a}" * 300_000, "{{" * 400_000])
def test_a_template_of_nothing_but_braces_is_read(template: str, tmp_path: Path):
    assert "read" == reading(a_file(tmp_path, with_node("model", {"prompt_template": template})))


def test_a_long_pattern_is_refused_at_once(tmp_path: Path):
    assert "read" != reading(a_file(tmp_path, extracting(r"\pL" * 100_000)))


def test_a_pattern_that_is_too_large_takes_no_memory(tmp_path: Path):
    assert "read" != reading(a_file(tmp_path, extracting(r"\pL" * 4_000)))


def test_many_patterns_are_read_or_refused_in_no_time(tmp_path: Path):
    assert reading(a_file(tmp_path, extracting(*(rf"(\pL{{{count}}})" for count in range(900)))))


def test_many_compound_routes_are_read_in_no_time(tmp_path: Path):
    routes = [{"name": f"r{number}", "target": "e"} for number in range(3_000)]
    compound = [{"domains": [f"r{number}" for number in range(2_900, 3_000)], "target": "e"}] * 200
    config = {"multi_label": True, "routes": routes, "compound_routes": compound}

    assert "read" == reading(a_file(tmp_path, with_node("router", config)))
