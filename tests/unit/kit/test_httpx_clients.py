"""All clients of httpx and httpx2 are put into the world, and nothing stays behind."""

from __future__ import annotations

import asyncio
import socket
import ssl
import subprocess
import sys
from typing import Any

import pytest

from tests.support.nets import MODULES, URL, Net, both, echo, got
from tinyllm.testing.http.clients import HttpxClients
from tinyllm.testing.http.network import Network
from tinyllm.testing.http.values import text_answer
from tinyllm.testing.loop import FencedError
from tinyllm.testing.world import World

pytestmark = pytest.mark.unit


def _patchable() -> list[Any]:
    return [
        getattr(kind, name)
        for module in MODULES
        for kind, name in (
            (module.AsyncHTTPTransport, "handle_async_request"),
            (module.HTTPTransport, "handle_request"),
        )
    ]


def test_nothing_stays_patched():
    before = _patchable()
    with Net() as net, pytest.raises(KeyError), HttpxClients(net.network):  # noqa: PT012 - the error is a user's
        assert all(now is not then for now, then in zip(_patchable(), before, strict=True))
        raise KeyError
    assert before == _patchable()


def test_entering_again_is_counted_and_worlds_live_side_by_side():
    before = _patchable()
    one, two = (Net({"api": lambda request, text=text: text_answer(text)}) for text in ("one", "two"))
    with one, two, HttpxClients(one.network):
        with HttpxClients(one.network), HttpxClients(two.network):
            assert ["one", "two"] == [got(one).text, got(two).text]
        assert "one" == got(one).text
    assert before == _patchable()


def test_a_loop_has_one_network():
    with Net() as net, HttpxClients(net.network), pytest.raises(RuntimeError, match="another network has this loop"):
        HttpxClients(Network(net.loop)).__enter__()


@both
def test_a_client_made_before_or_with_a_proxy_reaches_the_world(module, monkeypatch):
    before = module.AsyncClient()
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    proxied = module.AsyncClient()

    async def main() -> list[str]:
        async with before, proxied:
            return [(await client.post(URL, content=b"x")).text for client in (before, proxied)]

    with Net({"api": echo}) as net:
        assert ["x", "x"] == net.run(main)


@both
def test_a_synchronous_client_is_refused_and_told_what_to_use(module):
    def call() -> None:
        with module.Client() as client:
            client.get(URL)

    async def main() -> None:
        with pytest.raises(FencedError, match=f"use {module.__name__}.AsyncClient"):
            call()
        with pytest.raises(FencedError, match=f"{module.__name__}.Client leaves the simulated world"):
            await asyncio.to_thread(call)

    with Net({"api": echo}) as net:
        net.run(main)


@both
def test_on_another_loop_a_client_is_what_it_always_was(module):
    async def main(port: int) -> None:
        async with module.AsyncClient(trust_env=False) as client:
            await client.get(f"http://127.0.0.1:{port}/")

    with Net({"local": echo}) as net, HttpxClients(net.network), socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with pytest.raises(module.ConnectError, match="All connection attempts failed"):
            asyncio.run(main(nobody.getsockname()[1]))


@both
def test_clients_made_in_a_world_share_the_certificates_that_take_so_long_to_load(module, monkeypatch):
    loaded: list[object] = []
    monkeypatch.setattr(ssl.SSLContext, "load_verify_locations", lambda *where, **how: loaded.append(where))
    monkeypatch.setattr(ssl.SSLContext, "load_default_certs", lambda *where, **how: loaded.append(where))

    async def main() -> None:
        for _ in range(3):
            async with module.AsyncClient() as client:
                await client.post(URL)

    with Net({"api": echo}) as net:
        net.run(main)
        net.run(main)
    assert len(loaded) <= 1


@both
def test_a_request_to_a_host_without_server_goes_through_sockets_to_the_program_that_listens(module):
    """Through the client's own transport, and through one that the network made."""

    async def hello(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
        writer.close()

    async def listens() -> None:
        async with await asyncio.start_server(hello, port=5_000) as server:
            await server.serve_forever()

    async def main() -> list[Any]:
        got: list[Any] = []
        for how in ({}, {"transport": world.network.transport(module)}):
            async with module.AsyncClient(**how) as client:
                got.append((await client.get("http://db:5000/")).text)
                for url in ("http://db:5001/", "http://nobody/"):
                    with pytest.raises(module.ConnectError):
                        await client.get(url)
        return got

    with World(latency_ms=1) as world:
        world.host("db").start(listens)
        assert ["hello", "hello"] == world.run(main)
        assert () == world.finish().problems


def test_the_network_imports_neither_module_before_it_is_used():
    code = (
        "import sys, tinyllm.testing.http.network, tinyllm.testing.http.clients, tinyllm.testing.servers.openai;"
        "sys.exit('httpx' in sys.modules or 'httpx2' in sys.modules)"
    )
    assert 0 == subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode
