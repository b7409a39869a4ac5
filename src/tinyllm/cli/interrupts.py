"""Ctrl-C that ends a command where it can end, and never in the middle of what it happens to be doing."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tinyllm.cli.replies import INTERRUPTED


@contextmanager
def on_ctrl_c(first: Callable[[], None], last_words: str) -> Iterator[None]:
    """Within it the first SIGINT calls `first`, the second says `last_words` and ends the process with 130.

    After it SIGINT does what it did before; but once there was one, nothing: the command is on its way out,
    and only has its answer left to print.
    """
    if threading.current_thread() is not threading.main_thread():
        # Elsewhere Python sets no handlers.
        yield
        return
    presses = 0

    def pressed(*_: object) -> None:
        nonlocal presses
        presses += 1
        if presses > 1:
            os.write(2, f"{last_words}\n".encode())
            os._exit(INTERRUPTED)
        first()

    # Not `loop.add_signal_handler`, which waits for its turn when a node blocks the loop.
    before = signal.signal(signal.SIGINT, pressed)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN if presses else before)


class Stop:
    """Whether the command was asked to stop: `on_ctrl_c(stop.ask, ...)` around work that calls `obey` often.

    Raising from a signal's handler could be swallowed by whatever ran then, or taken for its failure.
    """

    def __init__(self) -> None:
        self._asked = False

    def ask(self) -> None:
        self._asked = True

    def obey(self) -> None:
        """Raise KeyboardInterrupt here if that was asked for; else do nothing."""
        if self._asked:
            raise KeyboardInterrupt
