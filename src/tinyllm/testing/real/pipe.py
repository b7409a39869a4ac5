"""One direction of one connection: a bounded buffer between a reader and a writer, and the limits on it.

The buffer is what makes latency cost no bandwidth, and its bound is what makes a slow reader slow the writer:
when it is full the reader stops, the kernel's buffers fill, and the sender has to wait.
"""

from __future__ import annotations

import asyncio
import random
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

from tinyllm.testing.real.lane import Lane
from tinyllm.testing.real.toxics import Cut, Reset

__all__ = ["HELD_BYTES_MAX", "Fate", "Limit", "Pipe"]

_CHUNK_BYTES: Final = 8_192
_CHUNKS_MAX: Final = 32
#: The most that one pipe holds: the full buffer, and one chunk each in the hands of its reader and its writer.
HELD_BYTES_MAX: Final = (_CHUNKS_MAX + 2) * _CHUNK_BYTES

Limit = Cut | Reset
#: How a connection ends: "closed" is its ends' own doing.
Fate = Literal["closed", "cut", "reset"]


@dataclass(frozen=True, slots=True)
class _Chunk:
    """What was read at once: bytes, b"" for the end of the stream, None for a reset."""

    data: bytes | None
    sent_ns: int
    chance: float


@dataclass(slots=True)
class _Count:
    """How many bytes a limit still lets pass."""

    limit: Limit
    left_bytes: int


class Pipe:
    """Carries bytes from *source* to *target* as *lane* lets them. Calls *end* when a limit is reached."""

    def __init__(
        self, source: socket.socket, target: socket.socket, lane: Lane, rng: random.Random, end: Callable[[Fate], None]
    ) -> None:
        self._source = source
        self._target = target
        self._lane = lane
        self._rng = rng
        self._end = end
        self._chunks: asyncio.Queue[_Chunk] = asyncio.Queue(_CHUNKS_MAX)
        self._counts: list[_Count] = []
        self._ended = False

    def begin(self, limit: Limit) -> None:
        """Count from here on what passes."""
        if limit.direction in (self._lane.name, "both"):
            self._counts.append(_Count(limit, limit.after_bytes))
            self._judge()

    def finish(self, limit: Limit) -> None:
        """Count no more for *limit*."""
        for count in self._counts:
            if count.limit == limit:
                self._counts.remove(count)
                return

    async def read(self) -> None:
        """Take in what the source sends, until its end."""
        loop = asyncio.get_running_loop()
        data: bytes | None = None
        while data != b"":
            try:
                data = await loop.sock_recv(self._source, _CHUNK_BYTES)
            except ConnectionError:
                # A reset takes the same way as bytes: a partition keeps it back too.
                await self._chunks.put(self._chunk(None))
                return
            await self._chunks.put(self._chunk(data))

    async def write(self) -> None:
        """Give out what was taken in, when it is due, until its end or a limit.

        Raises:
            ConnectionError: either end has reset the connection.
        """
        while not self._ended:
            chunk = await self._chunks.get()
            await self._lane.until_arrived(chunk.sent_ns, chunk.chance)
            if chunk.data is None:
                raise ConnectionResetError("the source has reset the connection")
            if not chunk.data:
                self._target.shutdown(socket.SHUT_WR)
                return
            await self._send(memoryview(chunk.data))

    async def _send(self, data: memoryview) -> None:
        loop = asyncio.get_running_loop()
        while data and not self._ended:
            size_bytes = self._allowed(self._lane.piece_bytes(len(data)))
            await self._lane.until_sent(size_bytes)
            # A limit may have begun while this waited.
            piece = data[: self._allowed(size_bytes)]
            await loop.sock_sendall(self._target, piece)
            data = data[len(piece) :]
            for count in self._counts:
                count.left_bytes -= len(piece)
            self._judge()

    def _chunk(self, data: bytes | None) -> _Chunk:
        return _Chunk(data, time.monotonic_ns(), self._rng.random())

    def _allowed(self, size_bytes: int) -> int:
        return min([size_bytes, *(count.left_bytes for count in self._counts)])

    def _judge(self) -> None:
        """End the connection if a limit is reached; the one that began first says how."""
        for count in self._counts:
            if count.left_bytes <= 0 and not self._ended:
                self._ended = True
                self._end("cut" if isinstance(count.limit, Cut) else "reset")
