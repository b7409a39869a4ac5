"""`tinyllm replay FILE`: live a story again and show that it is the same one."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path

import click

from tinyllm.cli.interrupts import Stop, on_ctrl_c
from tinyllm.cli.replies import UnwritableError
from tinyllm.errors import GraphConfigError, TinyLLMError
from tinyllm.graph import build_graph
from tinyllm.testing.checks import ENGINE_CHECKS, judge
from tinyllm.testing.promises import graph_checks, promises_of
from tinyllm.testing.scenario import ScenarioError, play, scenario_from_json
from tinyllm_fuzz import story as stories
from tinyllm_fuzz.hunt import Finding, HarnessError
from tinyllm_fuzz.output import told

GONE, SAME, REFUSED, DIFFERENT, INTERRUPTED = 0, 1, 2, 3, 130


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
def replay(file: Path) -> None:
    """Live the story in FILE again.

    Exit code 1: it still breaks, with the very same story, which is shown. 0: the check holds now. 2: the
    file is no story. 3: it breaks in another way than it did, so something changed since it was told, or
    the harness itself failed.
    """
    stop = Stop()
    try:
        with on_ctrl_c(stop.ask, "stopped"):
            code = _replayed(file, stop)
    except stories.StoryError as error:
        click.echo(str(error), err=True)
        code = REFUSED
    except (ScenarioError, GraphConfigError) as error:
        click.echo(f"{file}: {error}", err=True)
        code = REFUSED
    except KeyboardInterrupt:
        click.echo("stopped", err=True)
        code = INTERRUPTED
    except TinyLLMError as error:
        click.echo(f"{file}: {error}", err=True)
        code = DIFFERENT
    except UnwritableError:
        raise
    except Exception as error:  # noqa: BLE001 - Python's own exit code, 1, would say that the story was seen again
        click.echo(traceback.format_exc(), err=True)
        click.echo(f"{file}: nothing is known about the story: {type(error).__name__}: {error}", err=True)
        code = DIFFERENT
    sys.exit(code)


def _replayed(file: Path, stop: Stop) -> int:
    story = stories.load(file)
    definition = story["graph"].get("definition") if isinstance(story["graph"], dict) else None
    if not isinstance(definition, dict):
        raise stories.StoryError(f"{file}: the story holds no graph")
    graph = build_graph(definition, source=str(story["graph"].get("name")))
    scenario = scenario_from_json(story["scenario"])
    checks = {**ENGINE_CHECKS, **graph_checks(promises_of(graph))}
    if not isinstance(story["check"], str) or story["check"] not in checks:
        raise stories.StoryError(f"{file}: there is no check {story['check']!r}; there are {', '.join(checks)}")
    history = play(scenario, graph)
    stop.obey()
    verdict = judge(history, {story["check"]: checks[story["check"]]})[0]
    if verdict.verdict == "ok":
        click.echo(f"{story['check']} holds now: this story does not happen any more")
        return GONE
    if verdict.verdict == "unknown":
        reason = verdict.breach.reason if verdict.breach else "no reason given"
        raise HarnessError(f"the check {verdict.check!r} could not say: {reason}")
    again = stories.tell(Finding(scenario, history, verdict), graph)
    told(lambda: click.echo(stories.render(again, path=str(file)), nl=False))
    if again == story:
        return SAME
    differing = ", ".join(sorted(key for key in {*again, *story} if again.get(key) != story.get(key)))
    click.echo(f"\nThis is not the story that was told: {differing} changed since.", err=True)
    return DIFFERENT
