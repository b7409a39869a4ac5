"""How the benchmarks measure: short rounds in turn, and the median over the rounds of what holds within one.

The machine's speed changes from one second to the next, so only what was measured side by side is compared.
Times are those of the process unless a work brings a clock of its own. Garbage is collected before each turn,
so that each pays for its own. Nothing fails when a target is missed: the row says MISSED.
"""

from __future__ import annotations

import gc
import platform
import statistics
import time
import tracemalloc
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

Timed = Callable[[int], float]
"""Does a piece of work so many times in a row, and gives the seconds that they took together."""


class Stopwatch:
    """Collects garbage, then counts `seconds` until the end of the `with` by `clock`."""

    def __init__(self, clock: Callable[[], float] = time.process_time) -> None:
        self._clock = clock
        self.seconds = 0.0

    def __enter__(self) -> Stopwatch:
        gc.collect()
        self._began = self._clock()
        return self

    def __exit__(self, *_: object) -> None:
        self.seconds = self._clock() - self._began


def timed(piece: Callable[[], object], clock: Callable[[], float] = time.process_time) -> Timed:
    """Times calls of *piece*."""

    def times_of(times: int) -> float:
        with Stopwatch(clock) as watch:
            for _ in range(times):
                piece()
        return watch.seconds

    return times_of


def timed_on(run: Callable[[Coroutine[Any, Any, float]], float], piece: Callable[[], Awaitable[object]]) -> Timed:
    """Times what *piece* gives to await, in one task of the loop that *run* runs a coroutine on."""

    async def times_of(times: int) -> float:
        # The watch runs inside, so that the start of the loop is no part of the time.
        with Stopwatch() as watch:
            for _ in range(times):
                await piece()
        return watch.seconds

    return lambda times: run(times_of(times))


@dataclass(frozen=True, slots=True)
class Turn:
    """What one round does of a work: `times` pieces."""

    work: Timed
    times: int

    def seconds(self) -> float:
        """Seconds per piece."""
        return self.work(self.times) / self.times


def seconds_by_round(turns: Mapping[str, Turn], rounds: int) -> dict[str, list[float]]:
    """Seconds per piece of each work, round by round, in turn; each is done once before."""
    for turn in turns.values():
        turn.work(1)
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            seconds[name].append(turn.seconds())
    return seconds


def ratio(seconds: Mapping[str, list[float]], slow: str, fast: str) -> float:
    """How many times as long `slow` takes as `fast`: the median over the rounds."""
    return statistics.median(one / other for one, other in zip(seconds[slow], seconds[fast], strict=True))


def growth(work: Timed, runs: int, warm_up: int = 100) -> tuple[int, int]:
    """How many bytes and objects more there are after `runs` runs, counted from the end of `warm_up` runs."""
    work(warm_up)
    gc.collect()
    objects = len(gc.get_objects())
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    work(runs)
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return after - before, len(gc.get_objects()) - objects


# --- the table -----------------------------------------------------------------------------------------


def shown(work: str, target: str, measured: str, ok: bool | None = None, note: str = "") -> None:
    """Print a row of the table; without `ok` it is there to compare with, and has no verdict."""
    verdict = {True: "ok", False: "MISSED", None: ""}[ok]
    print(f"{work:58} {target:14} {measured:>12}   {verdict:7} {note}".rstrip(), flush=True)


def show_growth(work: Timed, runs: int) -> None:
    """The rows that say whether anything is left of `runs` runs whose results nobody holds."""
    size_bytes, objects = growth(work, runs)
    per_run = size_bytes / runs
    shown(f"bytes that stay per run, after {runs:,} runs", "< 1", f"{per_run:.2f}", per_run < 1)
    shown(f"objects more, after {runs:,} runs", "< 100", f"{objects}", objects < 100)


def show_heading(packages: Iterable[str], what: str) -> None:
    """Where this runs, with what, and the heads of the columns."""
    print(f"{_machine()}\n{', '.join(_version(name) for name in packages)}\n{what}\n")
    shown("work", "target", "measured")


def _machine() -> str:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = f"{len(names)} x {names[0].partition(':')[2].strip()}" if names else model
    return f"{platform.system()} {platform.release()}, {model}, Python {platform.python_version()}"


def _version(name: str) -> str:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return f"{name} missing"
