"""What a fault makes of the pieces of a body, one by one as they come: the body may have no end.

A `Spoiling` takes each piece and gives what is sent in its place; `Spoiled` and `SpoiledStream` are a body
that goes through one. Pure, but for how far it has come.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Iterable, Iterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace
from typing import Any

from tinyllm.testing.http.values import Break, Chunk, Piece

__all__ = [
    "Breaking",
    "Cutting",
    "Doubling",
    "Dripping",
    "Halving",
    "Repeating",
    "Spoiled",
    "SpoiledStream",
    "Spoiling",
    "Swapping",
    "part_of",
    "size_of",
]


class Spoiling:
    """What is done to a body. This one does nothing."""

    #: Nothing more is sent: the rest of the body is not asked for.
    over = False

    def take(self, piece: Piece) -> Iterator[Piece]:
        """What is sent in the place of *piece*; asked for one after another, each when the one before is sent."""
        yield piece

    def end(self) -> Iterator[Piece]:
        """What is sent after the last piece."""
        return iter(())

    def heal(self) -> None:
        """Let what is left come as it would have."""


class Spoiled(Iterator[Piece]):
    """The body *pieces* with *spoiling* done to it."""

    def __init__(self, pieces: Iterable[Piece], spoiling: Spoiling) -> None:
        self.spoiling = spoiling
        self._sent = self._all(pieces)

    def _all(self, pieces: Iterable[Piece]) -> Iterator[Piece]:
        for piece in pieces:
            yield from self.spoiling.take(piece)
            if self.spoiling.over:
                return
        yield from self.spoiling.end()

    def __next__(self) -> Piece:
        return next(self._sent)


class SpoiledStream:
    """The body *pieces*, which is made piece by piece, with *spoiling* done to it."""

    def __init__(self, pieces: AsyncIterable[Piece], spoiling: Spoiling) -> None:
        self.spoiling = spoiling
        self._pieces: Any = pieces

    async def __aiter__(self) -> AsyncIterator[Piece]:
        async with AsyncExitStack() as stack:
            if hasattr(self._pieces, "aclose"):
                await stack.enter_async_context(aclosing(self._pieces))
            async for piece in self._pieces:
                for sent in self.spoiling.take(piece):
                    yield sent
                if self.spoiling.over:
                    return
        for sent in self.spoiling.end():
            yield sent


class Breaking(Spoiling):
    """*how* after *size_bytes*; a body that is no longer stays whole. A late piece breaks when it would have come."""

    def __init__(self, size_bytes: int, how: Break) -> None:
        self._left_bytes = size_bytes
        self._how = how

    def take(self, piece: Piece) -> Iterator[Piece]:
        size = size_of(piece)
        if size <= self._left_bytes:
            self._left_bytes -= size
            yield piece
            return
        self.over = True
        if self._left_bytes:
            yield part_of(piece, 0, self._left_bytes)
            yield self._how
        else:
            yield replace(self._how, after_ns=piece.after_ns)


class Cutting(Spoiling):
    """The connection goes after so many *pieces*, one at least, and at the end if there are fewer."""

    def __init__(self, pieces: int) -> None:
        self._left = pieces

    def take(self, piece: Piece) -> Iterator[Piece]:
        yield piece
        self._left -= 1
        if not self._left:
            self.over = True
            yield from self.end()

    def end(self) -> Iterator[Piece]:
        yield Break(how="cut")


class Halving(Spoiling):
    """The first half of the first piece that has bytes, and then the end of the body, or *how*."""

    def __init__(self, how: Break | None = None) -> None:
        self._how = how

    def take(self, piece: Piece) -> Iterator[Piece]:
        if size_of(piece):
            self.over = True
            piece = part_of(piece, 0, max(1, size_of(piece) // 2))
        yield piece
        if self.over:
            yield from self.end()

    def end(self) -> Iterator[Piece]:
        if self._how is not None:
            yield self._how


class Doubling(Spoiling):
    """Piece *number*, from 0, comes twice; the last one does if there are fewer."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._last: Piece | None = None

    def take(self, piece: Piece) -> Iterator[Piece]:
        yield piece
        self._last = piece
        if not self._left:
            yield from self.end()
        self._left -= 1

    def end(self) -> Iterator[Piece]:
        if self._last is not None and self._left >= 0:
            yield _at(self._last, 0)


class Swapping(Spoiling):
    """Piece *number*, from 0, and the next change places; without a next one nothing does."""

    def __init__(self, number: int) -> None:
        self._left = number
        self._first: Piece | None = None

    def take(self, piece: Piece) -> Iterator[Piece]:
        self._left -= 1
        if self._left == -1:
            self._first = piece
            return
        if self._first is None:
            yield piece
            return
        first, self._first = self._first, None
        yield _at(piece, first.after_ns)
        yield _at(first, piece.after_ns)

    def end(self) -> Iterator[Piece]:
        if self._first is not None:
            yield self._first


class Dripping(Spoiling):
    """Pieces of at most *size_bytes*, each *delay_ns* later than it would come; once healed, the rest at once."""

    def __init__(self, delay_ns: int, size_bytes: int) -> None:
        self._delay_ns = delay_ns
        self._size_bytes = size_bytes
        self._begun = False
        self._healed = False

    def take(self, piece: Piece) -> Iterator[Piece]:
        start, after_ns = 0, piece.after_ns
        while not self._healed and size_of(piece) - start > self._size_bytes:
            self._begun = True
            yield _at(part_of(piece, start, start + self._size_bytes), after_ns + self._delay_ns)
            start, after_ns = start + self._size_bytes, 0
        rest = part_of(piece, start, size_of(piece))
        if self._healed:
            yield _at(rest, 0) if self._begun else piece
        else:
            self._begun = True
            yield _at(rest, after_ns + self._delay_ns)

    def heal(self) -> None:
        self._healed = True


class Repeating(Spoiling):
    """The first piece again and again, each *delay_ns* after the last; once healed, the rest follows.

    A repetition that is on its way when the world is healed still comes. A body without pieces repeats an
    empty line.
    """

    def __init__(self, delay_ns: int) -> None:
        self._delay_ns = delay_ns
        self._seen = False
        self._begun = False
        self._healed = False

    def take(self, piece: Piece) -> Iterator[Piece]:
        if self._seen:
            yield _at(piece, 0) if self._begun else piece
            return
        self._seen = True
        yield piece
        while not self._healed:
            self._begun = True
            yield _at(piece, self._delay_ns)

    def end(self) -> Iterator[Piece]:
        if not self._seen:
            yield from self.take(Chunk(b"\n"))

    def heal(self) -> None:
        self._healed = True


def size_of(piece: Piece) -> int:
    """Its bytes; a Break has none."""
    return len(piece.data) if isinstance(piece, Chunk) else 0


def part_of(piece: Piece, start: int, end: int) -> Piece:
    """Bytes *start* to *end* of *piece*; a Break is whole."""
    return Chunk(piece.data[start:end], piece.after_ns) if isinstance(piece, Chunk) else piece


def _at(piece: Piece, after_ns: int) -> Piece:
    return replace(piece, after_ns=after_ns)
