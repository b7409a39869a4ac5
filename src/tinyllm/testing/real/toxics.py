"""Toxics: small frozen values that say what goes wrong on a real link between a client and a server.

The word is Toxiproxy's. A toxic has a direction: "up" is what the client sends, "down" what the server sends,
"both" is each of them. Several may be in force at once: delays add up, the lowest bandwidth counts, and the
connection ends by whichever limit is reached first. All numbers are whole, so a value goes through JSON unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

__all__ = ["Bandwidth", "Cut", "Direction", "Jitter", "Latency", "Partition", "Reset", "Toxic", "ToxicError"]

Direction = Literal["up", "down", "both"]

_MS_MAX: Final = 24 * 3_600_000
_BYTES_MAX: Final = 1 << 40


class ToxicError(ValueError):
    """A value that is no toxic: says which part and what is allowed there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Toxic:
    """What all toxics have in common."""

    direction: Direction = "both"

    def __post_init__(self) -> None:
        if self.direction not in get_args(Direction):
            raise ToxicError(f"direction is one of {', '.join(get_args(Direction))}, not {self.direction!r}")
        self._check()

    def _check(self) -> None:
        """Raise ToxicError if a field of the kind is out of its bounds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency(Toxic):
    """Each byte arrives at least `delay_ms` after it was sent. Opening a connection takes no longer."""

    delay_ms: int = 100

    def _check(self) -> None:
        _require("delay_ms", self.delay_ms, 0, _MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Jitter(Toxic):
    """Each piece that the kernel hands over takes up to `delay_ms` longer, by the proxy's seed; order is kept.

    The kernel decides what a piece is, so the seed repeats the delays but not always their places.
    """

    delay_ms: int = 100

    def _check(self) -> None:
        _require("delay_ms", self.delay_ms, 0, _MS_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth(Toxic):
    """No more than `bytes_per_s` pass, all connections together."""

    bytes_per_s: int = 1_000

    def _check(self) -> None:
        _require("bytes_per_s", self.bytes_per_s, 1, _BYTES_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Limit(Toxic):
    after_bytes: int = 0

    def _check(self) -> None:
        _require("after_bytes", self.after_bytes, 0, _BYTES_MAX)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reset(_Limit):
    """A connection is reset (RST to both ends) once `after_bytes` have passed on it since this began; 0: at once.

    A reset may overtake the bytes before it, as on any network: at most `after_bytes` are read.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut(_Limit):
    """A connection is closed (FIN to both ends) once `after_bytes` have passed on it since this began; 0: at once.

    Exactly `after_bytes` arrive, then the end. What either end still sends is thrown away.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition(Toxic):
    """No byte passes until it heals; then all of them do, in order.

    New connections are accepted, as the kernel does it, and hang: the server sees them when it heals, because
    opening one takes both directions.
    """


def _require(name: str, value: Any, low: int, high: int) -> None:
    if type(value) is not int or not low <= value <= high:
        raise ToxicError(f"{name} is a whole number from {low} to {high}, not {value!r}")
