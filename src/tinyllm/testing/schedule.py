"""Who runs next, as a value.

A schedule is a tuple of holds. The empty tuple is ordinary asyncio: first in, first out. Each hold lets
`gap` contested wake-ups pass and delays the one after them, so the length of a schedule is the number of
times it departs from ordinary asyncio. That is what makes it shrink well: fewer bytes are fewer
departures.

A schedule is drawn once, before the run, as a byte string. A zero byte means nothing happens, so a byte
string that is shrunk towards zeros is shrunk towards ordinary asyncio.

Pure: this file knows neither the loop nor the clock.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

__all__ = [
    "GAP_MAX",
    "LEVEL_MAX",
    "Hold",
    "Schedule",
    "ScheduleError",
    "decode",
    "encode",
    "from_json",
    "simpler",
    "to_json",
]

STEP_LEVELS: Final = 7
"""Levels below this one hold for a number of steps, the others for a time."""

HOLD_NS: Final = (1_000_000, 10_000_000, 100_000_000, 1_000_000_000, 10_000_000_000)

GAP_MAX: Final = 15
LEVEL_MAX: Final = STEP_LEVELS + len(HOLD_NS) - 1


class ScheduleError(ValueError):
    """A value that is no schedule: the message names the part and what is allowed there."""


@dataclass(frozen=True, slots=True)
class Hold:
    """Let `gap` contested wake-ups pass, then hold the next one back for as long as `level` says.

    Levels 0 to 6 hold it while 1, 2, 4 ... 64 steps of other tasks run; levels 7 to 11 hold it for 1 ms,
    10 ms, 100 ms, 1 s and 10 s of virtual time.

    Raises:
        ScheduleError: gap is outside 0 to 15, or level outside 0 to 11, or either is no int.
    """

    gap: int
    level: int

    def __post_init__(self) -> None:
        _check("gap", self.gap, GAP_MAX)
        _check("level", self.level, LEVEL_MAX)

    @property
    def steps(self) -> int | None:
        """How many steps of other tasks this hold lasts; None if it lasts for a time."""
        return 1 << self.level if self.level < STEP_LEVELS else None

    @property
    def time_ns(self) -> int | None:
        """How many virtual nanoseconds this hold lasts; None if it lasts for a number of steps."""
        return HOLD_NS[self.level - STEP_LEVELS] if self.level >= STEP_LEVELS else None


Schedule: TypeAlias = tuple[Hold, ...]


def _check(name: str, value: object, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise ScheduleError(f"{name} must be an int from 0 to {highest}, not {value!r}")
    if not 0 <= value <= highest:
        nearest = 0 if value < 0 else highest
        raise ScheduleError(
            f"{name} must be from 0 to {highest}, not {value}; the nearest allowed is {nearest}"
        )


def decode(data: bytes, *, timed: bool = True) -> Schedule:
    """The schedule that *data* stands for, at most one hold a byte; every byte string is a schedule.

    The high nibble of a byte is the level plus one, the low nibble the gap. High nibbles 0 and 13 to 15
    are skipped, and so are the levels that hold for a time when *timed* is false.
    """
    levels = LEVEL_MAX + 1 if timed else STEP_LEVELS
    return tuple(Hold(byte & 15, (byte >> 4) - 1) for byte in data if 1 <= byte >> 4 <= levels)


def encode(schedule: Iterable[Hold]) -> bytes:
    """The shortest bytes that `decode` turns into *schedule*; b"" for the empty one."""
    return bytes((hold.level + 1) << 4 | hold.gap for hold in schedule)


def to_json(schedule: Iterable[Hold]) -> list[dict[str, int]]:
    """*schedule* as plain lists and dicts, ready for `json.dumps`."""
    return [{"gap": hold.gap, "level": hold.level} for hold in schedule]


def from_json(value: object) -> Schedule:
    """The schedule that `to_json` turned into *value*.

    Raises:
        ScheduleError: value is no list of objects with exactly the integers gap and level; names the entry.
    """
    if not isinstance(value, list | tuple):
        raise ScheduleError(f"a schedule must be a list of holds, not {value!r}")
    return tuple(_hold_from_json(index, entry) for index, entry in enumerate(value))


def _hold_from_json(index: int, entry: object) -> Hold:
    if not isinstance(entry, Mapping) or set(entry) != {"gap", "level"}:
        raise ScheduleError(f"hold {index} must be an object with exactly gap and level, not {entry!r}")
    try:
        return Hold(gap=entry["gap"], level=entry["level"])
    except ScheduleError as error:
        raise ScheduleError(f"hold {index}: {error}") from None


def simpler(schedule: Schedule) -> Iterator[Schedule]:
    """Schedules one step simpler than *schedule*, the boldest first; none for the empty one.

    Each hold dropped, then each level halved. A hold is dropped in two ways, because the gaps after it
    count on it: with the next hold staying at the wake-up it held before (where the gap allows), and with
    the gaps left alone. Each candidate has fewer holds, or as many and a lower level, so following
    candidates always ends.
    """
    seen = {schedule}
    for candidate in _candidates(schedule):
        if candidate not in seen:
            seen.add(candidate)
            yield candidate


def _candidates(schedule: Schedule) -> Iterator[Schedule]:
    for index, hold in enumerate(schedule):
        before, after = schedule[:index], schedule[index + 1 :]
        # The dropped hold let its gap pass and took one wake-up: the next one now lets all of them pass.
        if after and (gap := hold.gap + 1 + after[0].gap) <= GAP_MAX:
            yield (*before, replace(after[0], gap=gap), *after[1:])
        yield before + after
    for index, hold in enumerate(schedule):
        if hold.level:
            yield (*schedule[:index], replace(hold, level=hold.level // 2), *schedule[index + 1 :])
