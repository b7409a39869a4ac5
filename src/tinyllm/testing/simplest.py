"""From a value that fails to the simplest one near it, after a shrinker of bytes has done what it can."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

__all__ = ["replaced", "simplest"]

_T = TypeVar("_T")


def simplest(
    value: _T, simpler: Callable[[_T], Iterable[_T]], still_fails: Callable[[_T], bool], *, tries: int
) -> _T:
    """Follow the first of *simpler* values that still fails, until none does or *tries* were tried.

    What a shrinker of bytes leaves behind goes here: a hold or a fault that does nothing, a delay that is longer
    than it need be.
    """
    found = True
    while found:
        found = False
        for candidate in simpler(value):
            if tries <= 0:
                return value
            tries -= 1
            if still_fails(candidate):
                value, found = candidate, True
                break
    return value


def replaced(items: tuple[Any, ...], index: int, item: Any) -> tuple[Any, ...]:
    """The items with another one at *index*."""
    return (*items[:index], item, *items[index + 1 :])
