"""The command line: a group that other packages extend through the entry point group `tinyllm.commands`."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points, version

import click

GROUP = "tinyllm.commands"
INSTALL_HINT = "it needs the extra `testing`: pip install -e '.[testing]' in a checkout of TinyLLM"


class _Extensible(click.Group):
    """Loads a command's module only when that command is asked for, so that `--help` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        return sorted(_commands())

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        entry = _commands().get(cmd_name)
        if entry is None:
            return None
        try:
            command = entry.load()
        except ImportError as error:
            reason = f"{error.name or error} is not installed; {INSTALL_HINT}"
            return _missing(cmd_name, reason)
        assert isinstance(command, click.Command), f"{entry.value} is no click command"
        return command


@click.group(cls=_Extensible, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("tinyllm"), prog_name="tinyllm")
def cli() -> None:
    """Graphs of small language models, and the suite that breaks them before production does."""


def main() -> None:
    """The console script. Exit codes: 0 fine, 1 a finding, 2 bad input, 3 the harness itself failed, 130 Ctrl-C."""
    try:
        try:
            code = _command()
        finally:
            if sys.stdout is not None:
                sys.stdout.flush()
        sys.exit(code)
    except BrokenPipeError:
        # Whoever read our output has seen enough.
        sys.stderr.close()
        sys.exit(141)
    except OSError as error:
        # A full disk behind standard output, say. What could not be written is not tried again at exit.
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        click.echo(f"tinyllm: cannot write: {error}", err=True)
        sys.exit(3)


def _command() -> int:
    """The exit code of the command, where it does not end the process itself."""
    try:
        # Or Ctrl-C while a command's modules are loaded would end with 1, which is a finding's code.
        code = cli.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        click.echo("stopped", err=True)
        return 130
    return code if isinstance(code, int) else 0


def _commands() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _missing(name: str, reason: str) -> click.Command:
    """A command that only says why it cannot run."""

    def refuse(**_: object) -> None:
        raise click.UsageError(f"`tinyllm {name}` cannot run: {reason}")

    anything = click.Argument(["arguments"], nargs=-1, type=click.UNPROCESSED)
    return click.Command(
        name,
        callback=refuse,
        params=[anything],
        short_help=f"(not available: {INSTALL_HINT})",
        context_settings={"ignore_unknown_options": True},
    )
