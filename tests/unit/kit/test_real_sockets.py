"""The fence around the real world: what it refuses, whom it spares, and that it is gone afterwards."""

from __future__ import annotations

import os
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from tinyllm.testing.apps.real_sockets import RealSockets
from tinyllm.testing.loop_errors import FencedError

pytestmark = pytest.mark.unit


def _fork():
    return os.fork()  # looked up when it is called, inside the fence


def _forkpty():
    return os.forkpty()


@pytest.fixture
def plain():
    with socket.socket() as plain:
        yield plain


@pytest.mark.parametrize(
    ("name", "reach"),
    [
        ("socket.connect", lambda plain: plain.connect(("127.0.0.1", 9))),
        ("socket.connect_ex", lambda plain: plain.connect_ex(("127.0.0.1", 9))),
        ("socket.bind", lambda plain: plain.bind(("127.0.0.1", 0))),
        ("socket.sendto", lambda plain: plain.sendto(b"", ("127.0.0.1", 9))),
        ("socket.sendmsg", lambda plain: plain.sendmsg([b""], [], 0, ("127.0.0.1", 9))),
        ("socket.create_connection", lambda plain: socket.create_connection(("127.0.0.1", 9))),
        ("socket.create_server", lambda plain: socket.create_server(("127.0.0.1", 0))),
        ("socket.getaddrinfo", lambda plain: socket.getaddrinfo("localhost", 9)),
        ("socket.getnameinfo", lambda plain: socket.getnameinfo(("127.0.0.1", 9), 0)),
        ("socket.gethostbyname", lambda plain: socket.gethostbyname("localhost")),
        ("socket.gethostbyname_ex", lambda plain: socket.gethostbyname_ex("localhost")),
        ("socket.gethostbyaddr", lambda plain: socket.gethostbyaddr("127.0.0.1")),
    ],
)
def test_the_network_is_refused_with_what_to_use_instead(plain, name, reach):
    with RealSockets(), pytest.raises(FencedError, match=f"^{name} leaves .*; use asyncio.open_connection"):
        reach(plain)


@pytest.mark.parametrize(
    ("name", "reach"),
    [
        ("subprocess.Popen", lambda: subprocess.run(["true"], check=True)),
        ("os.fork", _fork),
        ("os.forkpty", _forkpty),
        ("os.posix_spawn", lambda: os.posix_spawn("/bin/true", ["true"], {})),
        ("os.posix_spawnp", lambda: os.posix_spawnp("true", ["true"], {})),
        ("os.system", lambda: os.system("true")),
    ],
)
def test_processes_are_refused_with_what_to_use_instead(name, reach):
    with RealSockets(), pytest.raises(FencedError, match=f"^{name} leaves .*; give the code under test a function"):
        reach()


def test_other_threads_reach_the_real_world():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        with RealSockets():
            with pool.submit(socket.create_server, ("127.0.0.1", 0)).result() as server:
                pool.submit(socket.create_connection, server.getsockname()).result().close()
            assert 0 == pool.submit(subprocess.run, ["true"], check=True).result().returncode


def test_a_pair_of_sockets_inside_the_process_is_not_fenced():
    with RealSockets():
        one, other = socket.socketpair()
        with one, other:
            one.send(b"through")
            assert b"through" == other.recv(10)


def test_the_fence_is_gone_afterwards_also_after_an_error():
    before = [dict(vars(owner)) for owner in (socket, socket.socket, subprocess.Popen, os)]
    with pytest.raises(ZeroDivisionError), RealSockets():
        raise ZeroDivisionError
    assert before == [dict(vars(owner)) for owner in (socket, socket.socket, subprocess.Popen, os)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
