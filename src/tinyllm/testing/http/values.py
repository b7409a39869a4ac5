"""What passes between a client and an HTTP host of the world, as values: a request, and what comes of it.

A server is a function from a request to an `Answer`, or an object with a method `answer` that is one; it may
be a coroutine function, which then runs as a task of its host. The network does the rest: it carries the
answer's pieces at their times, breaks what a fault breaks, and tells the server how the exchange ended.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal, Protocol, TypeAlias

from tinyllm.testing.faults import Fault
from tinyllm.testing.loop_errors import SimulationError

__all__ = [
    "WINDOW_BYTES",
    "Answer",
    "Break",
    "Chunk",
    "Ended",
    "HttpRequest",
    "HttpServer",
    "Outcome",
    "Piece",
    "Server",
    "ServerTypeError",
    "answered",
    "json_answer",
    "text_answer",
]

JSON: Final = "application/json"
#: So much may be under way or unread before a sender waits, as the buffers of two systems allow.
WINDOW_BYTES: Final = 64 * 1024
#: One encoder for all: making one takes as long as writing a short answer.
_to_json: Final = json.JSONEncoder(ensure_ascii=False).encode

#: How an exchange can end: the answer arrived whole and was read; the client went; something broke it.
Ended: TypeAlias = Literal["delivered", "left", "broken"]


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a body, that the server sends `after_ns` nanoseconds after the one before it."""

    data: bytes
    after_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """The connection goes, `after_ns` nanoseconds after what came before it.

    `refused` and `reset` are what the client's system says; `cut` is a peer that closes before the end. With
    `closed` the client itself has closed it.
    """

    how: Literal["refused", "reset", "cut", "closed"]
    after_ns: int = 0


Piece: TypeAlias = Chunk | Break


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """Status and headers `after_ns` nanoseconds after the request arrived, and then the pieces of the body.

    Nothing follows a Break. A body that is no tuple, or `streamed`, has no length that is known before its
    end: no `content-length` goes with it. What is `held` is sent only when the network is healed.
    """

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    chunks: Iterable[Piece] | AsyncIterable[Piece] = ()
    after_ns: int = 0
    streamed: bool = False
    held: bool = False

    @property
    def content_type(self) -> str:
        """The value of its content-type header without parameters, "" if there is none."""
        return (self.header("content-type") or "").partition(";")[0].strip()

    def header(self, name: str) -> str | None:
        """The value of the first header of that name, which is given in lower case; None if there is none."""
        return next((value for told, value in self.headers if told.lower() == name), None)


#: What comes of a request that arrived: an answer, or a broken connection in its place.
Outcome: TypeAlias = Answer | Break


@dataclass(slots=True, eq=False, kw_only=True)
class HttpRequest:
    """One request as its host sees it, and how it ended.

    `url` is the client's own URL object, `path` its path. `at_ns` is when all of it had arrived, `source` the
    host that sent it; `clock()` tells what the wall clock of the server's host shows. `fault` is what struck
    it, if anything did. `ended` is None while it is under way. Then `all_read` tells whether the client has read
    all bytes of the answer, `heard` whether it did not wait in vain for more either, and `hindered` whether
    anything had gone wrong in the world by then: a fault of any kind, or a hold of the schedule.
    """

    method: str
    url: Any
    path: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    source: str
    host: str
    at_ns: int = 0
    clock: Callable[[], datetime]
    fault: Fault | None = None
    all_read: bool = False
    heard: bool = False
    hindered: bool = False
    status: int | None = None
    ended: Ended | None = None
    ended_ns: int | None = None

    @property
    def json(self) -> Any:
        """The body as JSON; raises ValueError if it is none."""
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"

    def __repr__(self) -> str:
        return f"<HttpRequest {self.method} {self.url} from {self.source}: {self.ended or 'under way'}>"


class HttpServer(Protocol):
    """A simulated HTTP server.

    It may also have `meet(request, fault) -> Outcome | None`, asked in the place of `answer` when a fault of
    the family "model" strikes (None: what any server would do), and `finished(request)`, called when the
    exchange is over.
    """

    def answer(self, request: HttpRequest, /) -> Outcome | Awaitable[Outcome]:
        """What comes of *request*; called when all of it has arrived."""
        ...


Server: TypeAlias = HttpServer | Callable[[HttpRequest], Outcome | Awaitable[Outcome]]


class ServerTypeError(SimulationError, TypeError):
    """A server that is none, or that answers with something that is no answer."""


def answered(outcome: object, server: object) -> Outcome:
    """*outcome*, if a server may answer with it."""
    if isinstance(outcome, Answer | Break):
        return outcome
    raise ServerTypeError(f"{type(server).__qualname__} answers with an Answer or a Break, not {outcome!r}")


def text_answer(
    text: str, *, status: int = 200, content_type: str = "text/plain; charset=utf-8", after_ns: int = 0
) -> Answer:
    """An answer whose body is *text*, in one piece."""
    return Answer(
        status=status, headers=(("content-type", content_type),), chunks=(Chunk(text.encode()),), after_ns=after_ns
    )


def json_answer(
    value: Any, *, status: int = 200, headers: Sequence[tuple[str, str]] = (), after_ns: int = 0
) -> Answer:
    """An answer whose body is *value* as JSON, in one piece."""
    body = _to_json(value).encode()
    return Answer(
        status=status, headers=(("content-type", JSON), *headers), chunks=(Chunk(body),), after_ns=after_ns
    )
