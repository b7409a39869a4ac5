"""`tinyllm check GRAPH`: hunt a graph file under faults and say whether it held."""

from __future__ import annotations

import json
import os
import random
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from tinyllm.cli.interrupts import Stop, on_ctrl_c
from tinyllm.cli.replies import UnwritableError, graph_of
from tinyllm.config.promises import Promises
from tinyllm.errors import GraphConfigError, Problem, TinyLLMError, UsageError
from tinyllm.graph import Graph
from tinyllm.testing.promises import promises_of
from tinyllm.testing.script import hosts_of
from tinyllm_fuzz import story as stories
from tinyllm_fuzz.hunt import Figures, Hunt, hunt
from tinyllm_fuzz.output import told
from tinyllm_fuzz.progress import HuntProgress, spoken_time
from tinyllm_strategies.profiles import PROFILES, ProfileName, profile_settings

HELD, FOUND, REFUSED, BROKEN, INTERRUPTED = 0, 1, 2, 3, 130
STORIES = Path(".tinyllm") / "stories"
#: `ci` looks at the same examples every time; the other profiles at new ones.
CI_SEED = 0


@click.command()
@click.argument("graph", type=click.Path(path_type=Path))
@click.option(
    "--profile",
    type=click.Choice(PROFILES),
    default=lambda: os.environ.get("TINYLLM_PROFILE", "dev"),
    help="How long to look: dev (seconds, default), ci (the same examples every time), nightly (hours).",
)
@click.option("--max-examples", type=click.IntRange(1, 100_000_000), help="Lives to live at most.")
@click.option("--seed", type=click.IntRange(0, 2**64 - 1), help="Repeats the examples of an earlier hunt.")
@click.option("--format", "style", type=click.Choice(("text", "json")), default="text", help="What to print.")
def check(graph: Path, profile: ProfileName, max_examples: int | None, seed: int | None, style: str) -> None:
    """Break GRAPH, a file (`-`: standard input), in a simulated world.

    Draws messages, model answers, schedules and faults, runs the graph under them, and judges every run.

    Exit code 0: everything held. 1: something broke; the story follows. 2: the file is refused. 3: the
    harness itself failed, or a check could not say.
    """
    reply = _Reply(style)
    stop = Stop()
    with on_ctrl_c(stop.ask, "stopped"):
        code = _guarded(reply, lambda: _checked(reply, stop, graph, profile, max_examples, seed))
    sys.exit(code)


def _guarded(reply: _Reply, work: Callable[[], int]) -> int:
    """The exit code of `work`; whatever it raises is told and has a code too."""
    try:
        return work()
    except GraphConfigError as error:
        refusal = error
        told(lambda: reply.refused(refusal))
        return REFUSED
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        return INTERRUPTED
    except UsageError as error:
        # A graph that no executor here would take, since it names a tool of its owner's, say.
        reason = str(error)
        told(lambda: reply.failed(reason))
        return REFUSED
    except TinyLLMError as error:
        reason = str(error)
        told(lambda: reply.failed(reason))
        return BROKEN
    except UnwritableError:
        raise
    except Exception as error:  # noqa: BLE001 - whatever breaks the harness must end in its exit code
        click.echo(traceback.format_exc(), err=True)
        reason = f"{type(error).__name__}: {error}"
        told(lambda: reply.failed(reason))
        return BROKEN


def _checked(
    reply: _Reply, stop: Stop, path: Path, profile: ProfileName, max_examples: int | None, seed: int | None
) -> int:
    graph = graph_of(str(path))
    promises = promises_of(graph)
    reply.warnings(graph)
    if seed is None:
        seed = CI_SEED if profile == "ci" else random.SystemRandom().getrandbits(32)
    most = max_examples or profile_settings(profile).max_examples
    with HuntProgress(most) as progress:
        result = hunt(
            graph,
            promises,
            profile=profile,
            seed_number=seed,
            max_examples=most,
            progress=progress,
            shrinking=progress.shrinking,
            before_each=stop.obey,
        )
        elapsed_s = progress.elapsed_s()
    summary = _summary(graph, promises, result, seed, elapsed_s)
    if result.finding is None:
        told(lambda: reply.held(summary, result))
        return HELD
    story = stories.tell(result.finding, graph)
    path_saved = _saved(story)
    told(lambda: reply.found(summary, story, path_saved))
    return FOUND


def _saved(story: stories.Story) -> str | None:
    """Where the story was written; None, with a word about it, if it could not be: what was found is told anyway."""
    try:
        return str(stories.save(story, STORIES))
    except OSError as error:
        click.echo(f"the story could not be saved: {error}", err=True)
        return None


def _summary(graph: Graph, promises: Promises, result: Hunt, seed: int, elapsed_s: float) -> dict[str, Any]:
    """The figures of a hunt, as plain JSON values."""
    figures: Figures = result.figures
    return {
        "graph": graph.document.source if graph.document else graph.id,
        "promises": promises.model_dump(mode="json", exclude_defaults=True),
        "hosts": hosts_of(graph),
        "checks": [*result.checks, "deterministic"],
        "seed": seed,
        "examples": figures.examples,
        "runs": figures.runs,
        "endings": dict(sorted(figures.endings.items())),
        "errors": dict(figures.errors.most_common()),
        "model_calls": figures.calls,
        "calls_with_faults": figures.faults,
        "holds": figures.holds,
        "lived_twice": figures.lived_twice,
        "tolerance_judged": figures.tolerance_judged,
        "simulated_s": figures.simulated_ns / 1e9,
        "elapsed_s": round(elapsed_s, 3),
        "examples_per_s": round(figures.examples / max(elapsed_s, 1e-9), 1),
    }


class _Reply:
    """Says how it went, as text or as one JSON object, on standard output."""

    def __init__(self, style: str) -> None:
        self._json = style == "json"

    def held(self, summary: dict[str, Any], result: Hunt) -> None:
        if self._json:
            self._print({"verdict": "held", **summary})
            return
        console = Console(highlight=False, soft_wrap=True)
        # Captured, because rich answers a closed pipe with an exit code of its own.
        with console.capture() as printed:
            console.print(f"{summary['graph']} held", style="bold green", markup=False)
            console.print(_checks_table(summary))
            console.print(_figures_table(summary, result.figures))
        click.echo(printed.get(), nl=False)
        if not result.figures.ended_well:
            click.echo(f"\nBut no run got anywhere: {result.figures.commonest_error}.", err=True)

    def found(self, summary: dict[str, Any], story: stories.Story, path: str | None) -> None:
        if self._json:
            self._print({"verdict": "broken", **summary, "story": story, "story_file": path})
            return
        click.echo(stories.render(story, path=path), nl=False)
        click.echo(f"\nFound after {summary['examples']} examples (seed {summary['seed']}).")

    def refused(self, error: GraphConfigError) -> None:
        if self._json:
            problems = [asdict(problem) for problem in error.problems]
            self._print({"verdict": "refused", "graph": error.source, "problems": problems})
            return
        click.echo(f"{error.source} is refused:", err=True)
        for problem in error.problems:
            click.echo(f"  {_located(problem, error.source)}", err=True)

    def warnings(self, graph: Graph) -> None:
        for warning in graph.warnings:
            click.echo(_located(warning, graph.document.source if graph.document else graph.id), err=True)

    def failed(self, reason: str) -> None:
        if self._json:
            self._print({"verdict": "error", "reason": reason})
        click.echo(f"nothing is known about the graph: {reason}", err=True)

    @staticmethod
    def _print(value: dict[str, Any]) -> None:
        click.echo(json.dumps(value, sort_keys=True))


def _located(problem: Problem, source: str) -> str:
    return f"{source}:{problem}" if problem.line is not None else f"{source}: {problem}"


def _checks_table(summary: dict[str, Any]) -> Table:
    table = Table("check", "verdict", title=None, show_edge=False)
    for name in summary["checks"]:
        table.add_row(name, "ok")
    return table


def _figures_table(summary: dict[str, Any], figures: Figures) -> Table:
    table = Table("figure", "value", show_edge=False)
    endings = ", ".join(f"{count} {status}" for status, count in summary["endings"].items())
    rows = {
        "examples": f"{summary['examples']} ({summary['examples_per_s']:g} a second, {summary['elapsed_s']:.1f} s)",
        "runs": f"{summary['runs']} ({endings})",
        "errors": ", ".join(f"{count} {error}" for error, count in figures.errors.most_common(3)) or "none",
        "model calls": f"{summary['model_calls']}, {summary['calls_with_faults']} of them hit by a fault",
        "simulated time": spoken_time(figures.simulated_ns),
        "tasks held back": str(summary["holds"]),
        "lived twice": f"{summary['lived_twice']}, each the same life",
        "seed": str(summary["seed"]),
    }
    for promise, value in summary["promises"].items():
        judged = f" (at stake in {summary['tolerance_judged']} examples)" if promise == "tolerates_failures" else ""
        rows[f"promise {promise}"] = f"{value}{judged}"
    for name, value in rows.items():
        table.add_row(name, value)
    return table
