"""One client's connection through the proxy: from its dial to one of its three ends."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from typing import Final

from tinyllm.testing.real.lane import Lane
from tinyllm.testing.real.pipe import Fate, Limit, Pipe

__all__ = ["KERNEL_BYTES", "Connection"]

#: So much each of the kernel's buffers may hold; it would grow them to megabytes.
KERNEL_BYTES: Final = 65_536
#: struct linger: on, for 0 seconds. close() then sends RST and drops what is unsent.
_LINGER_NOT: Final = struct.pack("ii", 1, 0)


class Connection:
    """Between *client*, which is connected, and *upstream*, an (IP address, port) that `run` connects to."""

    def __init__(self, client: socket.socket, upstream: tuple[str, int], up: Lane, down: Lane, seed: str) -> None:
        self._client = client
        self._upstream = upstream
        self._server = socket.socket(socket.AF_INET6 if ":" in upstream[0] else socket.AF_INET)
        self._server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        self._lanes = (up, down)
        self._fate: asyncio.Future[Fate] = asyncio.get_running_loop().create_future()
        self._pipes = (
            Pipe(self._client, self._server, up, random.Random(f"{seed}/up"), self._end),
            Pipe(self._server, self._client, down, random.Random(f"{seed}/down"), self._end),
        )
        for end in (self._client, self._server):
            end.setblocking(False)
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, KERNEL_BYTES)
            # Or the kernel would add a delay of its own, up to 40 ms, to whatever is sent in small pieces.
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def begin(self, limit: Limit) -> None:
        """Let *limit* count from here on, in its directions."""
        for pipe in self._pipes:
            pipe.begin(limit)

    def finish(self, limit: Limit) -> None:
        """Let *limit* count no more."""
        for pipe in self._pipes:
            pipe.finish(limit)

    async def run(self) -> None:
        """Carry bytes both ways until the connection ends; close both of its sockets in any case."""
        try:
            fate = await self._outcome()
            if fate == "cut":
                await self._hang_up()
            elif fate == "reset":
                for end in (self._client, self._server):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER_NOT)
        finally:
            self.close()

    def close(self) -> None:
        """Close both sockets. Does nothing if they are closed."""
        self._client.close()
        self._server.close()

    def _end(self, fate: Fate) -> None:
        if not self._fate.done():
            self._fate.set_result(fate)

    async def _outcome(self) -> Fate:
        """How the connection ends: as a limit says, or else as its own ends do."""
        carrying = asyncio.create_task(self._carry())
        try:
            await asyncio.wait([carrying, self._fate], return_when=asyncio.FIRST_COMPLETED)
        finally:
            carrying.cancel()
            await asyncio.wait([carrying])
        return self._fate.result() if self._fate.done() else carrying.result()

    async def _carry(self) -> Fate:
        up, down = self._lanes
        while up.held or down.held:
            await up.until_open()
            await down.until_open()
        fate: Fate = "closed"
        try:
            await asyncio.get_running_loop().sock_connect(self._server, self._upstream)
            async with asyncio.TaskGroup() as group:
                for pipe in self._pipes:
                    group.create_task(pipe.read())
                    group.create_task(pipe.write())
        except* OSError:
            # A server that refuses looks like this too: the client was accepted before anyone asked the server.
            fate = "reset"
        return fate

    async def _hang_up(self) -> None:
        """Send both ends a FIN, and read what they still send until they are done too.

        Closing a socket with unread bytes would send RST, and a cut would be a reset.
        """
        async with asyncio.TaskGroup() as group:
            for end in (self._client, self._server):
                group.create_task(_drain(end))


async def _drain(end: socket.socket) -> None:
    # An end that resets the connection now, or was never connected, is done as well.
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_WR)
        while await asyncio.get_running_loop().sock_recv(end, 65_536):
            pass
