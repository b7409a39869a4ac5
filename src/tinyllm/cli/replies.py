"""What every command of the engine says the same way: output, refusals, exit codes, and graphs from files or stdin."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import click

if TYPE_CHECKING:
    from tinyllm.documents import Document
    from tinyllm.errors import GraphConfigError, Problem
    from tinyllm.graph import Graph

FINE, FAILED, REFUSED, BROKEN, INTERRUPTED, PIPE_CLOSED = 0, 1, 2, 3, 130, 141
STDIN = "-"


class UnwritableError(OSError):
    """Our output cannot be written, since the disk behind it is full, say; `main` tells it, and it is no bug."""


def say(text: str, *, end: str = "\n") -> None:
    """Print on standard output, at once; ends the process with 141 if nobody reads any more."""
    _written(text + end, sys.stdout, sys.stdout.fileno if sys.stdout else None)


def say_json(value: Any) -> None:
    """Print one JSON value on one line of standard output."""
    say(json.dumps(value, sort_keys=True))


def say_bytes(data: bytes) -> None:
    """Write bytes to standard output; ends the process with 141 if nobody reads any more."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        _end_unread(sys.stdout.fileno())
    except OSError as error:
        raise UnwritableError(error.errno, error.strerror) from error


def note(text: str) -> None:
    """Print on standard error."""
    _written(text + "\n", sys.stderr, sys.stderr.fileno if sys.stderr else None)


def on_one_line(text: str) -> str:
    """`text` without line breaks or anything else that a terminal would obey."""
    line = " ".join(text.split())
    return line if line.isprintable() else "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)


def counted(number: int, noun: str) -> str:
    """`1 node`, `2 nodes`, `no nodes`."""
    return f"{number or 'no'} {noun}" + ("" if number == 1 else "s")


def located(problem: Problem, source: str) -> str:
    """A problem on one line, after the file and the place it is about."""
    return on_one_line(f"{source}:{problem}" if problem.line is not None else f"{source}: {problem}")


def refuse(reason: str) -> NoReturn:
    """End the command because its input is bad."""
    note(f"Error: {reason}")
    sys.exit(REFUSED)


def guarded(work: Callable[[], int]) -> NoReturn:
    """Do `work` and exit with the code it returns; whatever it raises is told, and has a code too."""
    from tinyllm.errors import GraphConfigError, TinyLLMError, UsageError

    try:
        code = work()
    except GraphConfigError as error:
        _tell_refusal(error)
        code = REFUSED
    except UsageError as error:
        refuse(on_one_line(str(error)))
    except KeyboardInterrupt:
        note("stopped")
        code = INTERRUPTED
    except TinyLLMError as error:
        note(f"Error: {on_one_line(str(error))}")
        code = BROKEN
    except (click.ClickException, UnwritableError):
        raise
    except Exception:  # noqa: BLE001 - a bug of ours, or of a node type's code, must end in its own exit code
        note(traceback.format_exc())
        code = BROKEN
    sys.exit(code)


def document_of(path: str) -> Document:
    """The document in this file, `-` being standard input; raises GraphConfigError like `load_graph`."""
    from pathlib import Path

    from tinyllm.documents import FILE_BYTES_MAX, parse_document, read_document

    if path != STDIN:
        return read_document(Path(path))
    return parse_document(read_stdin(FILE_BYTES_MAX), source="<stdin>")


def graph_of(path: str) -> Graph:
    """The graph in this file, `-` being standard input; raises GraphConfigError like `load_graph`."""
    from tinyllm.documents import FILE_BYTES_MAX
    from tinyllm.graph import load_graph, parse_graph

    if path != STDIN:
        return load_graph(path)
    return parse_graph(read_stdin(FILE_BYTES_MAX), source="<stdin>")


def read_stdin(bytes_max: int) -> bytes:
    """At most one byte more than `bytes_max` of standard input; nothing if it is closed."""
    if sys.stdin is None:
        return b""
    binary: BinaryIO = sys.stdin.buffer
    return binary.read(bytes_max + 1)


def _tell_refusal(error: GraphConfigError) -> None:
    note(f"{on_one_line(error.source)} is refused:")
    for problem in error.problems:
        note(f"  {located(problem, error.source)}")


def _written(text: str, stream: Any, fileno: Callable[[], int] | None) -> None:
    if stream is None or fileno is None:
        return
    # A name from a file may hold what the terminal's encoding lacks, or a byte of a file name that is no text.
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        _end_unread(fileno())
    except OSError as error:
        raise UnwritableError(error.errno, error.strerror) from error


def _end_unread(fileno: int) -> NoReturn:
    # Python's own exit would flush, and fail, once more.
    os.dup2(os.open(os.devnull, os.O_WRONLY), fileno)
    sys.exit(PIPE_CLOSED)
