"""`tinyllm validate FILE...`: say of each graph file whether it loads, and all that is wrong or doubtful in it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import click

from tinyllm.cli.replies import FINE, REFUSED, counted, document_of, guarded, located, on_one_line, say, say_json

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tinyllm.config import Finding, Reader
    from tinyllm.errors import Problem


@click.command()
@click.argument("files", type=click.Path(), nargs=-1, required=True, metavar="FILE...")
@click.option("--strict", is_flag=True, help="Refuse files with warnings, too.")
@click.option("--format", "style", type=click.Choice(("text", "json")), default="text", help="What to print.")
def validate(files: tuple[str, ...], strict: bool, style: str) -> None:
    """Judge each FILE, a graph; `-` is standard input.

    Prints `ok` with what the file holds, or every problem and warning with its line and column. One bad
    file does not hide the others.

    Exit code 0: all are fine. 2: at least one is refused.
    """
    guarded(lambda: _validated(files, strict, style))


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What there is to say about one file; `problems` holds errors and warnings in the order of the file."""

    file: str
    source: str
    problems: tuple[Problem, ...]
    nodes: int = 0
    edges: int = 0

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    def refused(self, *, strict: bool) -> bool:
        return bool(self.problems if strict else self.errors)


def _validated(files: tuple[str, ...], strict: bool, style: str) -> int:
    verdicts = []
    for file in files:
        verdict = _judged(file)
        verdicts.append(verdict)
        if style == "text":
            say("\n".join(_lines(verdict, strict=strict)))
    refused = any(verdict.refused(strict=strict) for verdict in verdicts)
    if style == "json":
        entries = [_entry(verdict, strict=strict) for verdict in verdicts]
        say_json({"verdict": "refused" if refused else "ok", "files": entries})
    return REFUSED if refused else FINE


def _judged(file: str) -> _Verdict:
    """The verdict on one file. Raises no TinyLLMError: what cannot even be read is a verdict, too."""
    from tinyllm.config import Reader, first_in_file
    from tinyllm.errors import GraphConfigError
    from tinyllm.graph import structure_findings

    try:
        document = document_of(file)
    except GraphConfigError as error:
        return _Verdict(file, error.source, error.problems)
    # As `load_graph` does; but a refusal there holds no warnings, and who mends a file wants to see both.
    reader = Reader(document)
    for path, problem in structure_findings(reader):
        reader.report(path, problem)
    for path, problem in _beyond_the_graph(reader):
        reader.report(path, problem)
    told = [*first_in_file(reader.errors), *first_in_file(reader.warnings)]
    told.sort(key=lambda problem: (problem.line or 0, problem.column or 0))
    return _Verdict(file, document.source, tuple(told), nodes=len(reader.nodes), edges=len(reader.edges))


def _beyond_the_graph(reader: Reader) -> Iterator[Finding]:
    """What `run` and `check` would say of a file that loads: unknown tools, and promises that make no sense."""
    from tinyllm.cli.tools import tool_findings
    from tinyllm.config.promises import promise_findings

    yield from tool_findings(reader.nodes)
    promises = None if reader.errors else reader.definition().metadata.get("promises")
    if promises is not None:
        yield from promise_findings(promises, reader.document)


def _lines(verdict: _Verdict, *, strict: bool) -> list[str]:
    name = on_one_line(verdict.source)
    warnings = counted(len(verdict.warnings), "warning")
    if verdict.errors:
        head = f"{name}: refused ({counted(len(verdict.errors), 'problem')}, {warnings})"
    elif verdict.refused(strict=strict):
        head = f"{name}: refused by --strict ({warnings})"
    else:
        head = f"{name}: ok ({counted(verdict.nodes, 'node')}, {counted(verdict.edges, 'edge')}, {warnings})"
    return [head, *(f"  {located(problem, verdict.source)}" for problem in verdict.problems)]


def _entry(verdict: _Verdict, *, strict: bool) -> dict[str, Any]:
    return {
        "file": verdict.file,
        "verdict": "refused" if verdict.refused(strict=strict) else "ok",
        "nodes": verdict.nodes,
        "edges": verdict.edges,
        "problems": [asdict(problem) for problem in verdict.errors],
        "warnings": [asdict(problem) for problem in verdict.warnings],
    }
