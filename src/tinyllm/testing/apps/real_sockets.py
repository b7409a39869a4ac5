"""The real world is fenced off: sockets, names and processes are refused, each with what to use instead.

Only the thread that is in the simulated world is kept from them; others of the process, that of a test runner
for example, go on as they do. What is not fenced: `socket.socketpair`, which stays inside the process, files, and code
in C that opens sockets of its own.
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable
from functools import lru_cache
from threading import get_ident
from typing import Any, Final, Self

from tinyllm.testing.apps.replacements import Replacements
from tinyllm.testing.loop_errors import FencedError

__all__ = ["RealSockets"]

_NETWORK: Final = (
    "use asyncio.open_connection or an httpx client, which reach the hosts of the world, or make the world with "
    "real_sockets=True"
)
_PROCESS: Final = "give the code under test a function to call in place of the process"

_REFUSED: Final[tuple[tuple[Any, str, str], ...]] = (
    (socket.socket, "connect connect_ex bind sendto sendmsg", _NETWORK),
    (socket, "create_connection create_server getaddrinfo getnameinfo", _NETWORK),
    (socket, "gethostbyname gethostbyname_ex gethostbyaddr", _NETWORK),
    (os, "fork forkpty posix_spawn posix_spawnp system", _PROCESS),
)
#: The same in single entries: owner, name, what it really is, what the error calls it, what to use instead.
_FENCED: Final = (
    *(
        (owner, name, getattr(owner, name), f"{'os' if owner is os else 'socket'}.{name}", instead)
        for owner, names, instead in _REFUSED
        for name in names.split()
        if hasattr(owner, name)  # not every system has every function
    ),
    (subprocess.Popen, "__init__", subprocess.Popen.__init__, "subprocess.Popen", _PROCESS),
)


class RealSockets:
    """While the `with` lasts, this thread reaches no real socket, no real name and no other process.

    Raises:
        FencedError: inside, where the program tries to.
    """

    def __init__(self) -> None:
        self._replacements = Replacements()

    def __enter__(self) -> Self:
        self._replacements.put_all(_fences(get_ident()))
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._replacements.undo()


@lru_cache(maxsize=8)
def _fences(here: int) -> tuple[tuple[Any, str, Callable[..., Any]], ...]:
    """What is put in place for one thread: what stands there does not change, so neither does this."""
    return tuple((owner, name, _fence(here, real, what, instead)) for owner, name, real, what, instead in _FENCED)


def _fence(here: int, real: Callable[..., Any], what: str, instead: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        if get_ident() == here:
            raise FencedError(what, instead)
        return real(*args, **kwargs)

    return call
