"""Servers for the simulated network that are not worth a file of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


def a_task_for_each_message(got: list[bytes]) -> Callable[[], Coroutine[Any, Any, None]]:
    """A server of port 7 of the host `db` that handles each message in a task of its own, which adds it to *got*."""

    class Takes(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            asyncio.get_running_loop().create_task(self.handle(data))

        async def handle(self, data: bytes) -> None:
            got.append(data)

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        await (await loop.create_server(Takes, "db", 7)).serve_forever()

    return serve
