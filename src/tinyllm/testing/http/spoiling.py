"""What a fault of one moment makes of an HTTP answer. Pure: an answer goes in, another comes out.

There are two steps, because the length of a body is told before it is broken. `misbehaved` is what a server
does wrong: it means what it sends. `damaged` is what happens on the way: the answer's headers promise what
does not arrive. What a fault says about connections (refused, no such name) is the network's to do.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final

from tinyllm.testing.faults import (
    CutMidBody,
    CutMidStream,
    DuplicateChunk,
    EmptyBody,
    EndlessStream,
    Fault,
    GarbageBytes,
    Latency,
    NoSuchRoute,
    RateLimited,
    ReadTimeout,
    ReorderedChunks,
    Reset,
    ServerError,
    SlowDrip,
    TruncatedJson,
    WrongContentType,
    WrongShape,
)
from tinyllm.testing.http.values import Answer, Break, Chunk, Outcome, Piece, text_answer
from tinyllm.testing.units import NS_PER_MS

__all__ = ["damaged", "ends_by_healing", "misbehaved", "needs_whole_body", "retry_after", "stand_in"]

#: No UTF-8: a start byte without its end, bytes that begin nothing, and a NUL.
GARBAGE: Final = b"\xc3\x28\xff\xfe\x00\x80garbage\xf8"
_EVENTS: Final = "text/event-stream"
_LINES: Final = "application/x-ndjson"


# --- what a server does wrong ----------------------------------------------------------------------------


def stand_in(fault: Fault) -> Answer | None:
    """The answer of a server that does not even look at the request; None if this fault leaves it to look."""
    match fault:
        case RateLimited():
            answer = text_answer("too many requests\n", status=429)
            return replace(answer, headers=answer.headers + retry_after(fault))
        case ServerError(status=status):
            return text_answer("the server failed\n", status=status)
        case NoSuchRoute():
            return text_answer("404 page not found\n", status=404)
        case WrongContentType():
            page = "<!DOCTYPE html>\n<html><body><h1>Please sign in</h1></body></html>\n"
            return text_answer(page, content_type="text/html; charset=utf-8")
    return None


def retry_after(fault: RateLimited) -> tuple[tuple[str, str], ...]:
    """The headers that go with a 429."""
    return () if fault.retry_after_s is None else (("retry-after", str(fault.retry_after_s)),)


def misbehaved(answer: Answer, fault: Fault) -> Answer:
    """What the server sends in the place of the healthy *answer*. Other faults than those of servers change nothing."""
    match fault:
        case EmptyBody():
            return replace(answer, chunks=())
        case GarbageBytes():
            return replace(answer, chunks=(Chunk(GARBAGE),))
        case WrongShape():
            return replace(answer, chunks=(Chunk(_WRONG_SHAPE.get(answer.content_type, b"[]")),))
        case TruncatedJson():
            return replace(answer, chunks=_truncated(_pieces(answer)))
        case EndlessStream(delay_ms=delay_ms):
            if not answer.streamed:
                return replace(answer, held=True)
            return replace(answer, chunks=Endless(_pieces(answer), delay_ms * NS_PER_MS))
    return answer


_WRONG_SHAPE: Final = {_LINES: b"[]\n", _EVENTS: b"data: []\n\ndata: [DONE]\n\n"}


def _truncated(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The first half of the pieces, and half of the next: a stream sends a piece of JSON in each."""
    middle = len(pieces) // 2
    return (*pieces[:middle], *(_part(piece, 0, max(1, _size(piece) // 2)) for piece in pieces[middle : middle + 1]))


class Endless(Iterator[Piece]):
    """The first piece again and again, each *delay_ns* after the last; once healed, the rest follows at once.

    A repetition that is on its way when the world is healed still comes.
    """

    def __init__(self, pieces: Sequence[Piece], delay_ns: int) -> None:
        self._rest = iter(pieces or (Chunk(b"\n"),))
        self._delay_ns = delay_ns
        self._again: Piece | None = None
        self._healed = False

    def __next__(self) -> Piece:
        if self._again is None:
            piece = next(self._rest)
            if not self._healed:
                self._again = _later(piece, self._delay_ns)
            return piece
        return _later(next(self._rest), 0) if self._healed else self._again

    def heal(self) -> None:
        """Come to the end; do not begin to repeat."""
        self._healed = True


# --- what happens on the way -----------------------------------------------------------------------------


def damaged(outcome: Outcome, fault: Fault | None) -> Outcome:
    """What arrives of *outcome*. Other faults than those of networks change nothing."""
    if fault is None:
        return outcome
    if isinstance(fault, Latency):
        return replace(outcome, after_ns=outcome.after_ns + fault.delay_ms * NS_PER_MS)
    if isinstance(outcome, Break):
        return outcome
    match fault:
        case ReadTimeout():
            return replace(outcome, held=True)
        case Reset(after_bytes=0):
            return Break(how="reset", after_ns=outcome.after_ns)
        case Reset(after_bytes=size_bytes):
            pieces = _pieces(outcome)
            whole = sum(map(_size, pieces)) <= size_bytes
            return outcome if whole else replace(outcome, chunks=_broken(pieces, size_bytes, Break(how="reset")))
        case CutMidBody():
            pieces = _pieces(outcome)
            half = sum(map(_size, pieces)) // 2
            return replace(outcome, chunks=_broken(pieces, half, Break(how="cut")))
        case CutMidStream(chunks=chunks):
            return replace(outcome, chunks=(*_pieces(outcome)[:chunks], Break(how="cut")))
        case SlowDrip(delay_ms=delay_ms, size_bytes=size_bytes):
            return replace(outcome, chunks=Dripping(_pieces(outcome), delay_ms * NS_PER_MS, size_bytes))
        case DuplicateChunk(chunk=chunk):
            return replace(outcome, chunks=_duplicated(_pieces(outcome), chunk))
        case ReorderedChunks(chunk=chunk):
            return replace(outcome, chunks=_reordered(_pieces(outcome), chunk))
    return outcome


def ends_by_healing(fault: Fault | None) -> bool:
    """Whether *fault* goes on until the world is healed, or the client leaves."""
    return isinstance(fault, ReadTimeout | SlowDrip | EndlessStream)


def needs_whole_body(fault: Fault | None) -> bool:
    """Whether a body that is made piece by piece must be collected before *fault* can be done to it."""
    return not isinstance(fault, Latency | ReadTimeout | None)


def _pieces(answer: Answer) -> Sequence[Piece]:
    if not isinstance(answer.chunks, tuple):
        raise TypeError(f"a body must be collected before a fault strikes it: {answer.chunks!r}")
    return answer.chunks


def _size(piece: Piece) -> int:
    return len(piece.data) if isinstance(piece, Chunk) else 0


def _part(piece: Piece, start: int, end: int) -> Piece:
    return Chunk(piece.data[start:end], piece.after_ns) if isinstance(piece, Chunk) else piece


def _later(piece: Piece, after_ns: int) -> Piece:
    return replace(piece, after_ns=after_ns)


def _broken(pieces: Sequence[Piece], size_bytes: int, end: Break) -> tuple[Piece, ...]:
    """The first *size_bytes* of the body, and then *end*. A piece that comes late breaks when it would have come."""
    arrived: list[Piece] = []
    for piece in pieces:
        size = _size(piece)
        if size > size_bytes:
            if size_bytes:
                return (*arrived, _part(piece, 0, size_bytes), end)
            return (*arrived, replace(end, after_ns=piece.after_ns))
        arrived.append(piece)
        size_bytes -= size
    return (*arrived, end)


def _duplicated(pieces: Sequence[Piece], chunk: int) -> tuple[Piece, ...]:
    if not pieces:
        return ()
    index = min(chunk, len(pieces) - 1)
    return (*pieces[: index + 1], _later(pieces[index], 0), *pieces[index + 1 :])


def _reordered(pieces: Sequence[Piece], chunk: int) -> tuple[Piece, ...]:
    """With the two changing places, at the times at which pieces came before."""
    if len(pieces) < 2:
        return tuple(pieces)
    index = min(chunk, len(pieces) - 2)
    first, second = pieces[index], pieces[index + 1]
    swapped = (_later(second, first.after_ns), _later(first, second.after_ns))
    return (*pieces[:index], *swapped, *pieces[index + 2 :])


class Dripping(Iterator[Piece]):
    """The body in pieces of *size_bytes*, each *delay_ns* after the last; once healed, the rest at once."""

    def __init__(self, pieces: Sequence[Piece], delay_ns: int, size_bytes: int) -> None:
        self._pieces = list(reversed(pieces))
        self._delay_ns = delay_ns
        self._size_bytes = size_bytes
        self._begun = False
        self._healed = False

    def __next__(self) -> Piece:
        if not self._pieces:
            raise StopIteration
        piece = self._pieces.pop()
        if self._healed:
            return _later(piece, 0) if self._begun else piece
        self._begun = True
        if _size(piece) > self._size_bytes:
            self._pieces.append(_later(_part(piece, self._size_bytes, _size(piece)), 0))
            piece = _part(piece, 0, self._size_bytes)
        return _later(piece, piece.after_ns + self._delay_ns)

    def heal(self) -> None:
        """Let what is left come at once; do not begin to drip."""
        self._healed = True
