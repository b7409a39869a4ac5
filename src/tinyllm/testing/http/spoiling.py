"""What a fault of one moment makes of an HTTP answer. Pure: an answer goes in, another comes out.

There are two steps, because the length of a body is told before it is broken. `misbehaved` is what a server
does wrong: it means what it sends. `damaged` is what happens on the way: the answer's headers promise what
does not arrive. What a fault says about connections (refused, no such name) is the network's to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Sequence
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
from tinyllm.testing.http.pieces import (
    Breaking,
    Cutting,
    Doubling,
    Dripping,
    Halving,
    Repeating,
    Spoiled,
    SpoiledStream,
    Spoiling,
    Swapping,
    part_of,
    size_of,
)
from tinyllm.testing.http.values import Answer, Break, Chunk, Outcome, Piece, text_answer
from tinyllm.testing.units import NS_PER_MS

__all__ = ["damaged", "ends_by_healing", "misbehaved", "retry_after", "stand_in"]

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
            if isinstance(answer.chunks, tuple):
                return replace(answer, chunks=_truncated(answer.chunks))
            return _with(answer, Halving())
        case EndlessStream(delay_ms=delay_ms):
            if isinstance(answer.chunks, tuple) and not answer.streamed:
                return replace(answer, held=True)
            return _with(answer, Repeating(delay_ms * NS_PER_MS))
    return answer


_WRONG_SHAPE: Final = {_LINES: b"[]\n", _EVENTS: b"data: []\n\ndata: [DONE]\n\n"}


def _truncated(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """The first half of the pieces, and half of the next: a stream sends a piece of JSON in each."""
    middle = len(pieces) // 2
    halves = (part_of(piece, 0, max(1, size_of(piece) // 2)) for piece in pieces[middle : middle + 1])
    return (*pieces[:middle], *halves)


def _with(answer: Answer, spoiling: Spoiling) -> Answer:
    """*answer* with *spoiling* done to its body as it goes out."""
    if isinstance(answer.chunks, AsyncIterable):
        return replace(answer, chunks=SpoiledStream(answer.chunks, spoiling))
    return replace(answer, chunks=Spoiled(answer.chunks, spoiling))


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
            return _with(outcome, Breaking(size_bytes, Break(how="reset")))
        case CutMidBody():
            return _with(outcome, _cut_in_the_middle(outcome))
        case CutMidStream() if _is_empty(outcome):
            return outcome  # its client is done when the head is there
        case CutMidStream(chunks=0):
            return replace(outcome, chunks=(Break(how="cut"),))
        case CutMidStream(chunks=chunks):
            return _with(outcome, Cutting(chunks))
        case SlowDrip(delay_ms=delay_ms, size_bytes=size_bytes):
            return _with(outcome, Dripping(delay_ms * NS_PER_MS, size_bytes))
        case DuplicateChunk(chunk=chunk):
            return _doubled(outcome, chunk)
        case ReorderedChunks(chunk=chunk):
            return _with(outcome, Swapping(_last_pair(outcome, chunk)))
    return outcome


def ends_by_healing(fault: Fault | None) -> bool:
    """Whether *fault* goes on until the world is healed, or the client leaves."""
    return isinstance(fault, ReadTimeout | SlowDrip | EndlessStream)


def _cut_in_the_middle(answer: Answer) -> Spoiling:
    """A cut after half of the body; where nobody knows how long that is, in the middle of the first piece."""
    cut = Break(how="cut")
    if not isinstance(answer.chunks, tuple):
        return Halving(cut)
    return Breaking(sum(map(size_of, answer.chunks)) // 2, cut)


def _is_empty(answer: Answer) -> bool:
    return isinstance(answer.chunks, tuple) and not answer.streamed and not any(map(size_of, answer.chunks))


def _doubled(answer: Answer, number: int) -> Answer:
    """Whatever sends a piece twice tells the length of what it sends."""
    sent, known = _with(answer, Doubling(number)), answer.chunks
    if not isinstance(known, tuple) or not known:
        return sent
    twice = known[min(number, len(known) - 1)]
    lengths = {"content-length": str(sum(map(size_of, (*known, twice))))}
    return replace(sent, headers=tuple((name, lengths.get(name.lower(), value)) for name, value in sent.headers))


def _last_pair(answer: Answer, number: int) -> int:
    """*number*, or that of the last piece but one if the body is known to be shorter."""
    return min(number, max(0, len(answer.chunks) - 2)) if isinstance(answer.chunks, tuple) else number
