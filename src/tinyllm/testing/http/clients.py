"""Puts every client built on httpx or httpx2 into the world, also those that an application makes for itself.

The transport that such a client makes when it is given none, and those that it makes for proxies, ask here
first. A request goes into the network of the loop that runs; on any other loop all is as it always was, so
that clients of the test itself still work, and worlds may live side by side.

Both modules are imported when the first world in the process begins, if they are installed: one that the
application imported later would be missed. That takes a tenth of a second for each, once.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from types import ModuleType
from typing import Any, ClassVar, Final

from tinyllm.testing.http.network import Network
from tinyllm.testing.http.pool import Pool
from tinyllm.testing.http.transport import dialect_of
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.loop_errors import FencedError
from tinyllm.testing.units import NS_PER_S

__all__ = ["HttpxClients"]

_MODULES: Final = ("httpx", "httpx2")


class HttpxClients:
    """While it is entered, clients on the loop of *network* reach that network. A synchronous client is refused.

    Entering it again is counted. Nothing stays patched when the last one has been left.

    Raises:
        RuntimeError: entered while another network has the same loop.
    """

    _entered: ClassVar[dict[int, tuple[Network, int]]] = {}
    _originals: ClassVar[list[tuple[type[Any], str, Callable[..., Any]]]] = []

    def __init__(self, network: Network) -> None:
        self._network = network

    def __enter__(self) -> None:
        # By the loop's address, which is looked up and never listed: the loop lives as long as its network.
        key = id(self._network.loop)
        network, times = self._entered.get(key, (self._network, 0))
        if network is not self._network:
            raise RuntimeError("another network has this loop; a loop has one network")
        if not self._entered:
            self._patch()
        self._entered[key] = (network, times + 1)

    def __exit__(self, *_: object) -> None:
        key = id(self._network.loop)
        network, times = self._entered.pop(key)
        if times > 1:
            self._entered[key] = (network, times - 1)
        if not self._entered:
            self._restore()

    @classmethod
    def _patch(cls) -> None:
        for module in _installed():
            classes: Any = module
            for kind, name, make in (
                (classes.AsyncHTTPTransport, "__init__", _quickly_made),
                (classes.AsyncHTTPTransport, "handle_async_request", _asynchronous),
                (classes.AsyncHTTPTransport, "aclose", _closing),
                (classes.AsyncHTTPTransport, "__aexit__", _closing),
                (classes.HTTPTransport, "handle_request", _synchronous),
            ):
                original = getattr(kind, name)
                cls._originals.append((kind, name, original))
                setattr(kind, name, make(module, original))

    @classmethod
    def _restore(cls) -> None:
        while cls._originals:
            kind, name, original = cls._originals.pop()
            setattr(kind, name, original)

    @classmethod
    def network_here(cls) -> Network | None:
        """The network of the loop that runs, if it was put in here."""
        loop = asyncio._get_running_loop()
        found = cls._entered.get(id(loop))
        return None if found is None else found[0]

    @classmethod
    def runs(cls) -> bool:
        """Whether the loop of some network runs, also where its program believes itself in a thread."""
        return any(network.loop.is_running() for network, _ in cls._entered.values())


@cache
def _installed() -> tuple[ModuleType, ...]:
    return tuple(importlib.import_module(name) for name in _MODULES if find_spec(name) is not None)


@cache
def _asynchronous(module: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    dialect = dialect_of(module)

    async def handle_async_request(self: Any, request: Any) -> Any:
        network = HttpxClients.network_here()
        if network is None:
            return await original(self, request)
        name = network.name_of(request.url.host)
        if network.reaches_socket(name):
            return await original(self, request)
        return await dialect.respond(network, network.pool_of(self, _pool), name, request)

    return handle_async_request


@cache
def _closing(_module: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    async def close(self: Any, *args: Any) -> None:
        network = HttpxClients.network_here()
        if network is not None:
            network.pool_of(self, _pool).close()
        await original(self, *args)

    return close


@cache
def _quickly_made(module: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    """A constructor that loads no certificates of its own: 30 ms of each client, where a whole life takes one."""

    def __init__(self: Any, *args: Any, **settings: Any) -> None:  # noqa: N807 - it is the constructor of a class
        if not args and settings.get("verify", True) is True and settings.get("cert") is None:
            settings["verify"] = _certificates(module, settings.get("trust_env", True))
        original(self, *args, **settings)

    return __init__


@cache
def _certificates(module: ModuleType, trust_env: bool) -> Any:
    classes: Any = module
    return classes.create_ssl_context(trust_env=trust_env)


@cache
def _synchronous(module: ModuleType, original: Callable[..., Any]) -> Callable[..., Any]:
    def handle_request(self: Any, request: Any) -> Any:
        if HttpxClients.runs():
            raise FencedError(f"{module.__name__}.Client", f"use {module.__name__}.AsyncClient")
        return original(self, request)

    return handle_request


def _pool(loop: SimulatedLoop, transport: Any) -> Pool:
    """A pool with the limits of the client's own, which has no public name for them."""
    own = getattr(transport, "_pool", None)
    expiry_s = getattr(own, "_keepalive_expiry", None)
    return Pool(
        loop,
        max_connections=_finite(getattr(own, "_max_connections", None)),
        max_idle=_finite(getattr(own, "_max_keepalive_connections", None)),
        keepalive_ns=None if expiry_s is None else round(expiry_s * NS_PER_S),
        retries=getattr(own, "_retries", 0),
    )


def _finite(limit: int | None) -> int | None:
    """httpcore writes the greatest integer for no limit."""
    return None if limit is None or limit >= 1 << 31 else limit
