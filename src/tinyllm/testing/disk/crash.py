"""Which changes survive a crash although nobody synced them.

Pure: the changes since the last syncs go in, in order, and those that reach the disk come out. Five answers:

- `lost`: none. `kept`: all, as when only the process dies and the system writes its cache back.
- `prefix`: the first k, in the order in which they were made, over all files and names.
- `torn`: the first k, and of the next one, a write over several sectors, only some of its sectors.
- `reordered`: any of them, sector by sector, as the cache of a system is written back in any order. A sector
  has the content it had at some moment: a change survives with every earlier change of the same sector,
  since the cache held both. A change of a name survives with the earlier ones of the same paths, and what
  was written after a truncation survives only with the truncation, because freed blocks are not given out
  again before it is durable. The length of a file can survive without its bytes, which then are zeros.

A sector is 512 bytes and is written whole or not at all; bytes outside a write never change.

`choice` picks one of the possibilities: 0 is always the one that keeps least. It counts prefixes and torn
writes up; the sets of sectors are too many to count, so there it seeds a generator.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import pairwise
from random import Random
from typing import Final, Literal, get_args

from tinyllm.testing.disk.state import Change, Extend, Truncate, Write

__all__ = ["SECTOR_BYTES", "Unsynced", "survivors"]

SECTOR_BYTES: Final = 512

Unsynced = Literal["lost", "kept", "prefix", "torn", "reordered"]


def survivors(changes: Sequence[Change], unsynced: Unsynced, choice: int = 0) -> list[Change]:
    """The changes that survive, in order; a write may come back as several smaller ones.

    Every *choice* from 0 up is allowed, also far beyond the number of possibilities.

    Raises:
        ValueError: *unsynced* is none of the five, or *choice* is no whole number from 0 up.
    """
    if type(choice) is not int or choice < 0:
        raise ValueError(f"choice is a whole number from 0 up, not {choice!r}")
    if unsynced == "lost":
        return []
    if unsynced == "kept":
        return list(changes)
    if unsynced == "prefix":
        return list(changes[: choice % (len(changes) + 1)])
    if unsynced == "torn":
        return _torn(changes, choice)
    if unsynced == "reordered":
        return _reordered(changes, choice)
    raise ValueError(f"unsynced is one of {', '.join(get_args(Unsynced))}, not {unsynced!r}")


def sectors(write: Write) -> list[Write]:
    """The write as one write for each sector that it touches."""
    first_end = SECTOR_BYTES - write.offset % SECTOR_BYTES
    cuts = [0, *range(first_end, len(write.data), SECTOR_BYTES), len(write.data)]
    return [Write(write.inode, write.offset + start, write.data[start:end]) for start, end in pairwise(cuts)]


def _torn(changes: Sequence[Change], choice: int) -> list[Change]:
    """A prefix and part of the write after it; only a prefix if no write is long enough to tear."""
    tearable = [index for index, change in enumerate(changes) if isinstance(change, Write) and len(sectors(change)) > 1]
    if not tearable:
        return list(changes[: choice % (len(changes) + 1)])
    which, index = divmod(choice, len(tearable))
    torn = changes[tearable[index]]
    assert isinstance(torn, Write)
    pieces = sectors(torn)
    # Bit n says whether sector n is there; neither none nor all of them are.
    mask = 1 if which == 0 else Random(which).randrange(1, (1 << len(pieces)) - 1)
    return [*changes[: tearable[index]], *(piece for n, piece in enumerate(pieces) if mask >> n & 1)]


def _reordered(changes: Sequence[Change], choice: int) -> list[Change]:
    if choice == 0:
        return []
    kept: list[Change] = []
    needed: set[Hashable] = set()
    # Backwards, so that whatever survives has already said what it needs of the past.
    for change, drawn in reversed(list(_drawn(changes, Random(choice)))):
        answers, calls = _ties(change)
        if drawn or needed.intersection(answers):
            needed.update(calls)
            kept.append(change)
    return kept[::-1]


def _ties(change: Change) -> tuple[tuple[Hashable, ...], tuple[Hashable, ...]]:
    """To which needs of later changes this one answers, and what it needs itself of earlier ones.

    A need is a path, or the number of an inode for its truncations, or that with a sector for its bytes.
    """
    if isinstance(change, Write):
        sector = (change.inode.number, change.offset // SECTOR_BYTES)
        return (sector,), (sector, change.inode.number)
    if isinstance(change, Truncate):
        return (change.inode.number,), (change.inode.number,)
    if isinstance(change, Extend):
        return (), (change.inode.number,)
    return change.paths, change.paths


def _drawn(changes: Sequence[Change], rng: Random) -> Iterator[tuple[Change, bool]]:
    """Each change, a write in sectors, with whether it is drawn to survive.

    Half of the changes stay in one piece, and how many survive is drawn first: a coin for each sector would
    next to never give the whole of one page and nothing of another, or all but one.
    """
    share = rng.choice((0.1, 0.5, 0.9))
    for change in changes:
        if isinstance(change, Write):
            pieces = sectors(change)
            whole = rng.random() < share if rng.random() < 0.5 else None
            for piece in pieces:
                yield piece, (rng.random() < share if whole is None else whole)
            yield Extend(change.inode, change.offset + len(change.data)), rng.random() < share
        else:
            yield change, rng.random() < share
