"""Who serves HTTP under a name of the world, and what it does with a request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

from tinyllm.testing.http.spoiling import misbehaved, stand_in
from tinyllm.testing.http.values import Answer, HttpRequest, Outcome, Server, answered

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
            ServerTypeError: it is no outcome.
        """
        found = answered(outcome, self.server)
        if not isinstance(found, Answer):
            return found
        if request.fault is not None:
            found = misbehaved(found, request.fault)
        return _with_length(found, head_only=request.method == "HEAD")

    def finished(self, request: HttpRequest) -> None:
        """The exchange is over, for a server that wants to know."""
        if self._finished is not None:
            self._finished(request)


def _with_length(answer: Answer, *, head_only: bool) -> Answer:
    """*answer* with the header that tells where its body ends."""
    known: Any = answer.chunks
    if answer.streamed or not isinstance(known, tuple):
        framing = ("transfer-encoding", "chunked")
    else:
        framing = ("content-length", str(sum(len(getattr(piece, "data", b"")) for piece in known)))
    return replace(answer, headers=(*answer.headers, framing), chunks=() if head_only else known)

