"""The wall clock of a host: it may jump and drift, while monotonic time, which is the loop's, never does."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Final

from tinyllm.testing.units import EPOCH

__all__ = ["WallClock"]

_UNIX: Final = datetime(1970, 1, 1, tzinfo=UTC)
_PPM: Final = 1_000_000


class WallClock:
    """A clock that shows *epoch* when *time_ns*, the world's true time, is 0. All arithmetic is in whole ns.

    Raises:
        ValueError: *epoch* has no time zone.
    """

    __slots__ = ("_drift_began_ns", "_drifted_ns", "_epoch_ns", "_jumped_ns", "_ppm", "_true_ns")

    def __init__(self, time_ns: Callable[[], int], *, epoch: datetime = EPOCH) -> None:
        if epoch.tzinfo is None:
            raise ValueError(f"epoch needs a time zone, UTC for example, but {epoch!r} has none")
        self._true_ns = time_ns
        self._epoch_ns = (epoch - _UNIX) // timedelta(microseconds=1) * 1_000
        self._jumped_ns = 0
        self._ppm = 0
        self._drift_began_ns = 0
        self._drifted_ns = 0

    def now(self) -> datetime:
        """What it shows, in UTC, to the microsecond; a nanosecond that is not full is not shown."""
        return _UNIX + timedelta(microseconds=self.time_ns() // 1_000)

    def time(self) -> float:
        """Seconds since 1970, as `time.time` gives them."""
        return self.time_ns() / 1e9

    def time_ns(self) -> int:
        """Nanoseconds since 1970."""
        return self._epoch_ns + self._true_ns() + self.wrong_by_ns()

    def wrong_by_ns(self) -> int:
        """How far it is ahead of the truth; negative if it is behind."""
        return self._jumped_ns + self._drift_ns()

    def jump(self, ms: int) -> None:
        """Jump by *ms* milliseconds, back if they are negative; jumps add up."""
        self._jumped_ns += ms * 1_000_000

    def drift(self, ppm: int) -> None:
        """From now on gain *ppm* microseconds each second, or lose them; what was gained before stays."""
        self._drifted_ns = self._drift_ns()
        self._drift_began_ns = self._true_ns()
        self._ppm = ppm

    def correct_drift(self) -> None:
        """Take back what was gained or lost by drifting, and drift no longer. Jumps stay."""
        self._drifted_ns = self._ppm = 0

    def correct(self) -> None:
        """Show the truth again, and keep it."""
        self._jumped_ns = 0
        self.correct_drift()

    def _drift_ns(self) -> int:
        return self._drifted_ns + (self._true_ns() - self._drift_began_ns) * self._ppm // _PPM
