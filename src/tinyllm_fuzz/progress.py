"""What a hunt shows while it works: a live line on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn

from tinyllm_fuzz.hunt import Figures

#: Seconds between two lines where there is no terminal.
PLAIN_EVERY_S = 2.0


class HuntProgress:
    """Call it with the figures after each example. Everything goes to standard error."""

    def __init__(self, examples_max: int) -> None:
        self._console = Console(stderr=True)
        self._began_s = time.perf_counter()
        self._next_plain_s = self._began_s + PLAIN_EVERY_S
        self._live: Progress | None = None
        self._task: TaskID | None = None
        if self._console.is_terminal:
            columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._live = Progress(*columns, console=self._console, transient=True)
            self._task = self._live.add_task("hunting", total=examples_max)

    def __enter__(self) -> HuntProgress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def elapsed_s(self) -> float:
        """Real seconds since the hunt began."""
        return time.perf_counter() - self._began_s

    def __call__(self, figures: Figures) -> None:
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=figures.examples, description=self._text(figures))
        elif time.perf_counter() >= self._next_plain_s:
            self._next_plain_s = time.perf_counter() + PLAIN_EVERY_S
            self._console.print(f"{figures.examples} examples, {self._text(figures)}", highlight=False)

    def shrinking(self) -> None:
        """Something broke; from here on it is made simpler."""
        if self._live is not None and self._task is not None:
            self._live.update(self._task, description="something broke; looking for the simplest story")
        else:
            self._console.print("something broke; looking for the simplest story", highlight=False)

    def _text(self, figures: Figures) -> str:
        rate = figures.examples / max(self.elapsed_s(), 1e-9)
        return f"{spoken_time(figures.simulated_ns)} simulated, {rate:.0f} examples/s"


def spoken_time(ns: int) -> str:
    """Simulated time as people say it: 850 ms, 12.3 s, 4 min 5 s, 3 h 20 min."""
    seconds = ns / 1e9
    if seconds < 1:
        return f"{seconds * 1_000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"
