"""The server's end of one HTTP exchange: asks the server, and sends its answer piece by piece.

All of it runs in the context of the server's host, so that a host that is paused sends nothing until it goes
on, and one that is down never will.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Coroutine, Iterator
from contextvars import Context
from typing import Any, Final, Protocol

from tinyllm.testing.http.arrivals import Arrival
from tinyllm.testing.http.hosts import Served
from tinyllm.testing.http.lanes import Lane
from tinyllm.testing.http.pieces import Spoiled, SpoiledStream, Spoiling
from tinyllm.testing.http.spoiling import damaged, ends_by_healing
from tinyllm.testing.http.values import WINDOW_BYTES, Answer, Break, HttpRequest, Outcome, Piece, text_answer
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.processes import Process
from tinyllm.testing.tasks import SimulatedHandle, SimulatedTask, SimulatedTimer, nobodys_context
from tinyllm.testing.units import NS_PER_S

__all__ = ["Receiver", "Serving", "window_of"]

#: The size of a head, where bytes take time.
HEAD_BYTES: Final = 200


class Receiver(Protocol):
    """The client's end, as far as the server's end knows it."""

    unread_bytes: int

    @property
    def window_bytes(self) -> int: ...
    def head_came(self, answer: Answer) -> None: ...
    def chunk_came(self, data: bytes) -> None: ...
    def over_came(self, how: Break | None) -> None: ...


class Serving:
    """Serves *request* by *served*, in *context*, and sends what comes of it down *lane* to *receiver*."""

    __slots__ = (
        "_begun", "_chunks", "_context", "_held", "_lane", "_loop", "_next", "_pause", "_receiver", "_request", "_room",
        "_sender", "_served", "_spoiling", "_stalled", "_timer", "all_sent", "asked", "gone", "process", "whole_sent",
    )  # fmt: skip

    def __init__(
        self,
        loop: SimulatedLoop,
        served: Served,
        request: HttpRequest,
        lane: Lane,
        receiver: Receiver,
        process: Process | None,
        context: Context,
    ) -> None:
        self._loop = loop
        self._served = served
        self._request = request
        self._lane = lane
        self._receiver = receiver
        self._context = context
        self._chunks: Iterator[Piece] = iter(())
        self._next: Piece | None = None
        self._held: Answer | None = None
        self._begun = False
        self._stalled = False
        self._timer: SimulatedTimer | SimulatedHandle | None = None
        self._sender: SimulatedTask[None] | None = None
        self._room: Arrival | None = None
        self._pause: Arrival | None = None
        self._spoiling: Spoiling | None = None
        self.process = process
        self.asked = False
        self.all_sent = False
        self.whole_sent = False
        self.gone = False

    # --- asking the server ---------------------------------------------------------------------------

    def arrive(self) -> None:
        """All of the request is at the host, which asks its server when it can."""
        if self.process is None or self.process.idle(self._loop.batch_ns):
            self._context.run(self._ask)
        elif not self.process.dead:
            self._timer = self._loop.call_external(self._ask, context=self._context)

    def _ask(self) -> None:
        self.asked = True
        self._request.at_ns = self._loop.time_ns
        try:
            outcome = self._served.answer(self._request)
        except Exception as error:  # noqa: BLE001 - told by _failed
            outcome = self._failed(error)
        if isinstance(outcome, Awaitable):
            self._begin_task(self._wait_for(outcome))
        else:
            self._step()
            self._begin_if_wanted(outcome)
        if self.gone:
            self._served.finished(self._request)

    def _step(self) -> None:
        """What no task of the host does takes it as long as a step of one."""
        if self.process is not None and self.process.host.step_ns:
            self.process.host.charge(self.process.host.step_ns)

    async def _wait_for(self, coming: Awaitable[Outcome]) -> None:
        try:
            outcome = await coming
        except Exception as error:  # noqa: BLE001 - told by _failed
            outcome = self._failed(error)
        self._begin_if_wanted(outcome)

    def _failed(self, error: Exception) -> Answer:
        """A server that fails is a mistake in the world, and must not pass for a fault that the program met."""
        self._loop.call_exception_handler({"message": "a simulated host failed", "exception": error})
        return text_answer(f"a simulated host failed: {type(error).__name__}: {error}", status=500)

    def _begin_task(self, work: Coroutine[Any, Any, None]) -> SimulatedTask[None]:
        name = f"{self._request.host}: {self._request}"
        return self._loop.create_task(work, name=name, context=self._context.copy())

    # --- sending -------------------------------------------------------------------------------------

    def _begin_if_wanted(self, outcome: Outcome) -> None:
        if not self.gone:
            self._begin(outcome)

    def _begin(self, outcome: Outcome) -> None:
        self._begun = True
        try:
            outcome = self._served.checked(outcome, self._request)
        except Exception as error:  # noqa: BLE001 - told by _failed
            outcome = self._served.checked(self._failed(error), self._request)
        outcome = damaged(outcome, self._request.fault)
        if isinstance(outcome, Break):
            self._after(outcome.after_ns, self._emit, outcome)
            return
        if isinstance(outcome.chunks, Spoiled | SpoiledStream):
            self._spoiling = outcome.chunks.spoiling
        if not isinstance(outcome.chunks, AsyncIterable):
            self._chunks = iter(outcome.chunks)
        if outcome.held:
            self._held = outcome
        else:
            self._after(outcome.after_ns, self._send_head, outcome)

    def _after(self, ns: int, call: Callable[..., object], *args: Any) -> None:
        # What a step sends goes out at its end, before whatever else the host has to do.
        context = nobodys_context() if self._loop.blocked_ns and not ns else self._context
        self._timer = self._loop.call_external_later(ns / NS_PER_S, call, *args, context=context)

    def _send_head(self, answer: Answer) -> None:
        self._lane.send(HEAD_BYTES, self._receiver.head_came, answer)
        if isinstance(answer.chunks, AsyncIterable):
            self._sender = self._begin_task(self._pump_async(answer.chunks))
        else:
            self._pump()

    def _pump(self) -> None:
        """Send all that is due now, and come again when the next piece is."""
        while not (self.gone or self.all_sent):
            if self._receiver.unread_bytes >= self._receiver.window_bytes:
                self._stalled = True
                return
            piece = next(self._chunks, None)
            if piece is None:
                self._end(None)
            elif piece.after_ns:
                self._next = piece
                self._after(piece.after_ns, self._send_next)
                return
            else:
                self._emit(piece)

    def _send_next(self) -> None:
        self._step()
        if self._loop.blocked_ns:
            self._after(0, self._go_on)
        else:
            self._go_on()

    def _go_on(self) -> None:
        piece, self._next = self._next, None
        if piece is not None:
            self._emit(piece)
        self._pump()

    async def _pump_async(self, chunks: AsyncIterable[Piece]) -> None:
        async for piece in chunks:
            if piece.after_ns:
                self._pause = Arrival(self._loop)
                await self._pause.wait(piece.after_ns / NS_PER_S)
                self._pause = None
            while self._receiver.unread_bytes >= self._receiver.window_bytes:
                self._room = Arrival(self._loop)
                await self._room.wait(None)
            if self.all_sent:
                return
            self._emit(piece)
        if not self.all_sent:
            self._end(None)

    def _emit(self, piece: Piece) -> None:
        if isinstance(piece, Break):
            self._end(piece)
        else:
            self._receiver.unread_bytes += len(piece.data)
            self._lane.send(len(piece.data), self._receiver.chunk_came, piece.data)

    def _end(self, how: Break | None) -> None:
        self.all_sent = True
        self.whole_sent = how is None
        self._lane.send(0, self._receiver.over_came, how)

    # --- what else happens ---------------------------------------------------------------------------

    def room_came(self) -> None:
        """The client has read something."""
        if self._receiver.unread_bytes >= self._receiver.window_bytes:
            return
        if self._stalled:
            self._stalled = False
            self._timer = self._loop.call_external(self._pump, context=self._context)
        elif self._room is not None:
            room, self._room = self._room, None
            self._loop.call_external(room.come, context=self._context)

    def heal(self) -> None:
        """Let an answer that hangs or drips because of a fault come to its end, or never begin to."""
        if self.gone or self.all_sent:
            return
        if not self._begun:
            if ends_by_healing(self._request.fault):
                self._request.fault = None
        elif self._held is not None:
            answer, self._held = self._held, None
            self._timer = self._loop.call_external(self._send_head, answer, context=self._context)
        elif self._spoiling is not None and ends_by_healing(self._request.fault):
            self._spoiling.heal()
            if self._pause is not None:
                self._loop.call_external(self._pause.come, context=self._context)
            elif self._next is not None and self._timer is not None:
                self._timer.cancel()
                self._timer = self._loop.call_external(self._send_next, context=self._context)

    def leave(self) -> None:
        """The client is gone. What the server does for it goes on; what only sends, a generator, is cancelled."""
        self.gone = True
        self._stop_sending()
        if self._sender is not None:
            self._sender.cancel()
        if self.asked:
            self._served.finished(self._request)

    def crash(self) -> None:
        """The host is down: what it has not sent yet is a broken connection."""
        if not self.all_sent:
            self._stop_sending()
            self._end(Break(how="reset"))

    def _stop_sending(self) -> None:
        if self.asked and self._timer is not None:
            self._timer.cancel()


def window_of(process: Process | None) -> int:
    """How many bytes the system under *process* takes before it reads them."""
    return WINDOW_BYTES if process is None else process.host.window(WINDOW_BYTES)
