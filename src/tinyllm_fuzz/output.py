"""Printing that cannot change a verdict: a reader who has seen enough is no error."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from tinyllm.cli.replies import UnwritableError


def told(say: Callable[[], None]) -> None:
    """Call `say`, which prints; if nobody reads any more, drop what it and Python's own exit would still print.

    Raises UnwritableError where the output cannot be written.
    """
    try:
        say()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        raise UnwritableError(error.errno, error.strerror) from error
