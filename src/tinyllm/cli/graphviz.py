"""Graphviz in a process of its own: `python -m tinyllm.cli.graphviz` reads DOT and prints the layout as JSON.

Layout is C code that no Ctrl-C stops and no limit of time bounds; a process can be ended, and can crash alone.
"""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from importlib.util import find_spec

from tinyllm.errors import TinyLLMError, UsageError

TIMEOUT_S = 60.0


def laid_out(dot: str, *, timeout_s: float = TIMEOUT_S) -> bytes:
    """The layout of this graph as Graphviz's JSON.

    Raises UsageError if that takes longer than `timeout_s` seconds, TinyLLMError if Graphviz itself fails.
    """
    command = [sys.executable, "-P", "-m", __name__]
    try:
        done = subprocess.run(command, input=dot.encode(), capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        raise UsageError(f"the graph is too large: no layout in {timeout_s:g} s; try --format mermaid") from None
    if done.returncode:
        words = done.stderr.decode("utf-8", "replace").split("\n")
        raise TinyLLMError(f"Graphviz failed with {done.returncode}: {' '.join(words[-3:])}")
    return done.stdout


def is_installed() -> bool:
    """Whether layouts can be made here."""
    return find_spec("pygraphviz") is not None


def _main() -> None:
    # By name, because it comes with an extra: a type checker must do without it, too.
    graph = import_module("pygraphviz").AGraph(string=sys.stdin.read())
    sys.stdout.buffer.write(graph.draw(format="json", prog="dot"))


if __name__ == "__main__":
    _main()
