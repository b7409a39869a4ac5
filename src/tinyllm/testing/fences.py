"""What the simulated loop refuses, and what to use instead: one table, one entry a line."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NoReturn

from tinyllm.testing.loop_errors import FencedError

if TYPE_CHECKING:
    from tinyllm.testing.sockets.network import SocketNetwork

__all__ = ["TLS", "FencedLoop"]

_NETWORK: Final = "use the simulated network, or a client whose transport needs no socket"
TLS: Final = "use http://, or the httpx transport of the world, which needs no TLS"
_PROCESS: Final = "give the code under test a function to call in place of the process"
_PIPE: Final = "use an asyncio.Queue"
_WATCH: Final = "let simulated input arrive with loop.call_external or loop.call_external_later"
_SIGNAL: Final = "cancel the task that the signal would end"
_FOREIGN: Final = "let it return SimulatedTask(coro, loop=loop, **kwargs): the hash of others is an address"
_EAGER: Final = (
    "a task must start when the schedule says so; use a factory that starts it with call_soon, or none"
)

_REFUSED: Final = {
    "an eager task factory": _EAGER,
    "eager_start": _EAGER,
    "a task factory whose tasks are no SimulatedTask": _FOREIGN,
    "call_soon_threadsafe from another thread": "use asyncio.to_thread, which runs the work inline",
}


def _fence(what: str, instead: str) -> Any:
    def refused(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise FencedError(f"loop.{what}", instead)

    return refused


def _through_network(what: str) -> Any:
    def reach(self: FencedLoop, *args: Any, **kwargs: Any) -> Any:
        if self.network is None:
            raise FencedError(f"loop.{what}", _NETWORK)
        return getattr(self.network, what)(*args, **kwargs)

    return reach


class FencedLoop(asyncio.AbstractEventLoop):
    """The parts of an event loop that need the real world, each with what to use instead."""

    #: Where connections, servers, datagrams and names are, in a world that has a network.
    network: SocketNetwork | None = None

    create_connection: Any = _through_network("create_connection")
    create_server: Any = _through_network("create_server")
    create_unix_connection: Any = _fence("create_unix_connection", _NETWORK)
    create_unix_server: Any = _fence("create_unix_server", _NETWORK)
    create_datagram_endpoint: Any = _through_network("create_datagram_endpoint")
    connect_accepted_socket: Any = _fence("connect_accepted_socket", _NETWORK)
    start_tls: Any = _fence("start_tls", TLS)
    sendfile: Any = _fence("sendfile", _NETWORK)
    getaddrinfo: Any = _through_network("getaddrinfo")
    getnameinfo: Any = _through_network("getnameinfo")
    sock_accept: Any = _fence("sock_accept", _NETWORK)
    sock_connect: Any = _fence("sock_connect", _NETWORK)
    sock_recv: Any = _fence("sock_recv", _NETWORK)
    sock_recv_into: Any = _fence("sock_recv_into", _NETWORK)
    sock_recvfrom: Any = _fence("sock_recvfrom", _NETWORK)
    sock_recvfrom_into: Any = _fence("sock_recvfrom_into", _NETWORK)
    sock_sendall: Any = _fence("sock_sendall", _NETWORK)
    sock_sendto: Any = _fence("sock_sendto", _NETWORK)
    sock_sendfile: Any = _fence("sock_sendfile", _NETWORK)
    subprocess_exec: Any = _fence("subprocess_exec", _PROCESS)
    subprocess_shell: Any = _fence("subprocess_shell", _PROCESS)
    connect_read_pipe: Any = _fence("connect_read_pipe", _PIPE)
    connect_write_pipe: Any = _fence("connect_write_pipe", _PIPE)
    add_reader: Any = _fence("add_reader", _WATCH)
    add_writer: Any = _fence("add_writer", _WATCH)
    add_signal_handler: Any = _fence("add_signal_handler", _SIGNAL)

    def refuse(self, what: str) -> NoReturn:
        """Raise the FencedError about *what*, one of a short table."""
        raise FencedError(what, _REFUSED[what])

    # Cleaning up what was never there is harmless, and asyncio too answers False.
    def remove_reader(self, fd: Any) -> bool:  # noqa: ARG002
        return False

    def remove_writer(self, fd: Any) -> bool:  # noqa: ARG002
        return False

    def remove_signal_handler(self, sig: int) -> bool:  # noqa: ARG002
        return False
