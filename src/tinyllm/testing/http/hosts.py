"""Who serves HTTP under a name of the world, and what it does with a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any, Final

from tinyllm.testing.http.pieces import size_of
from tinyllm.testing.http.spoiling import misbehaved, stand_in
from tinyllm.testing.http.values import Answer, HttpRequest, Outcome, Server, ServerTypeError, answered

__all__ = ["Served"]


class Served:
    """A server under its name. Raises TypeError if *server* is none."""

    __slots__ = ("_answer", "_finished", "_meet", "name", "requests", "server")

    def __init__(self, name: str, server: Server) -> None:
        method = getattr(server, "answer", server)
        if not callable(method):
            raise TypeError(f"a server is a function or has a method `answer`, but {name!r} got {server!r}")
        self.name = name
        self.server = server
        #: Every request that arrived here, in the order of arrival.
        self.requests: list[HttpRequest] = []
        self._answer: Callable[[HttpRequest], Outcome | Awaitable[Outcome]] = method
        self._meet: Callable[..., Outcome | None] | None = getattr(server, "meet", None)
        self._finished: Callable[[HttpRequest], object] | None = getattr(server, "finished", None)

    def answer(self, request: HttpRequest) -> Outcome | Awaitable[Outcome]:
        """What the server makes of *request*. What comes of it must be `checked`."""
        self.requests.append(request)
        fault = request.fault
        if fault is None or fault.family != "model":
            return self._answer(request)
        outcome = None if self._meet is None else self._meet(request, fault)
        return outcome or stand_in(fault) or self._answer(request)

    def checked(self, outcome: object, request: HttpRequest) -> Outcome:
        """*outcome* as it goes out: what the server does wrong done, the length of its body told.

        Raises:
            ServerTypeError: it is no outcome, or has a body where HTTP allows none.
        """
        found = answered(outcome, self.server)
        if not isinstance(found, Answer):
            return found
        bodiless = found.status in _WITHOUT_BODY
        sent = found if request.fault is None or bodiless else misbehaved(found, request.fault)
        if sent.chunks is not found.chunks:
            sent = replace(sent, headers=_unframed(sent))
        return _framed(sent, head_only=request.method == "HEAD")

    def finished(self, request: HttpRequest) -> None:
        """The exchange is over, for a server that wants to know."""
        if self._finished is not None:
            self._finished(request)


def _framed(answer: Answer, *, head_only: bool) -> Answer:
    """*answer* with the header that tells where its body ends.

    A server may tell the length of a body that it makes piece by piece; of one that is known it is counted.

    Raises:
        ServerTypeError: a body where HTTP allows none.
    """
    known: Any = answer.chunks
    if answer.status in _WITHOUT_BODY:
        if isinstance(known, tuple) and any(map(size_of, known)):
            raise ServerTypeError(f"an answer of status {answer.status} has no body")
        return replace(answer, chunks=())
    counted = isinstance(known, tuple) and not answer.streamed
    # To HEAD the length of what a GET would give.
    if answer.header("content-length") is None or (counted and not head_only):
        length = ("content-length", str(sum(map(size_of, known)))) if counted else ("transfer-encoding", "chunked")
        answer = replace(answer, headers=(*_unframed(answer), length))
    return replace(answer, chunks=()) if head_only else answer


def _unframed(answer: Answer) -> tuple[tuple[str, str], ...]:
    """The headers without those that tell where the body ends."""
    return tuple(pair for pair in answer.headers if pair[0].lower() not in _FRAMING)


_FRAMING: Final = frozenset({"content-length", "transfer-encoding"})
#: 204 No Content and 304 Not Modified, RFC 9110, section 6.4.1.
_WITHOUT_BODY: Final = frozenset({204, 304})
