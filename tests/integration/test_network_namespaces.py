"""A real client and a real server in two network namespaces, and a link between them that delays and loses.

As in the other tests of this tier, time is never bounded from above.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from tinyllm.testing.real import netns
from tinyllm.testing.real.netns import (
    Namespace,
    NamespaceError,
    NamespacePair,
    namespace_pair,
    netem_unavailable,
    unavailable,
)

pytestmark = pytest.mark.integration

#: How long a client waits that is to give up, and one that is not.
SHORT_S, LONG_S = 0.5, 120

SERVER = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    # Headers and body in one write, or the second would wait for the client's delayed acknowledgement.
    wbufsize = -1

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer((sys.argv[1], 80), Handler)
print("ready", flush=True)
server.serve_forever()
"""

#: A plain client without retries. Asks as each line of its input says, and says what came of it.
CLIENT = """
import json, socket, struct, sys, time
import httpx

client = httpx.Client(trust_env=False)
for line in sys.stdin:
    size_bytes, timeout_s = json.loads(line)
    body = bytes(size_bytes)
    resent = None
    since_ns = time.monotonic_ns()
    try:
        answer = client.post(f"http://{sys.argv[1]}/", content=body, timeout=timeout_s)
    except httpx.HTTPError as error:
        outcome = type(error).__name__
    else:
        outcome = "ok" if answer.content == body else "wrong answer"
        stream = answer.extensions["network_stream"]
        info = stream.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104)
        # struct tcp_info, tcpi_total_retrans
        resent = struct.unpack_from("I", info, 100)[0]
    took_ms = (time.monotonic_ns() - since_ns) / 1e6
    print(json.dumps({"outcome": outcome, "took_ms": took_ms, "resent": resent}), flush=True)
"""


class Client:
    """The plain client, running in its namespace."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def ask(self, timeout_s: float = LONG_S, *, size_bytes: int = 5) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([size_bytes, timeout_s]), file=self._process.stdin, flush=True)
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def outcome(self, timeout_s: float = LONG_S) -> str:
        return str(self.ask(timeout_s)["outcome"])


@contextmanager
def running(namespace: Namespace, program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program in *namespace*, for as long as the block runs."""
    command = namespace.command(sys.executable, "-c", program, *arguments)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def client_and_server() -> Iterator[tuple[NamespacePair, Client]]:
    with namespace_pair() as pair, ExitStack() as stack:
        server = stack.enter_context(running(pair.server, SERVER, pair.server.address))
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        yield pair, Client(stack.enter_context(running(pair.client, CLIENT, pair.server.address)))


@pytest.fixture(scope="module")
def namespaces() -> None:
    """Skips, with the reason, where there are none."""
    reason = unavailable()
    if reason is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def netem() -> None:
    """Skips, with the reason, where there is none."""
    reason = netem_unavailable()
    if reason is not None:
        pytest.skip(reason)


# --- without netem ---------------------------------------------------------------------------------------


def test_a_client_in_one_namespace_reaches_the_server_in_the_other(namespaces):
    with client_and_server() as (_, client):
        assert client.outcome() == "ok"


def test_over_a_link_that_drops_everything_no_connection_opens_until_it_heals(namespaces):
    with client_and_server() as (pair, client):
        pair.drop_all()
        assert client.outcome(SHORT_S) == "ConnectTimeout"
        pair.heal()
        assert client.outcome() == "ok"


def test_an_open_connection_over_a_link_that_drops_everything_gets_no_answer_until_it_heals(namespaces):
    with client_and_server() as (pair, client):
        assert client.outcome() == "ok"
        pair.drop_all()
        assert client.outcome(SHORT_S) == "ReadTimeout"
        pair.heal()
        assert client.outcome() == "ok"


# --- netem -----------------------------------------------------------------------------------------------


def test_a_delay_takes_its_time_on_every_round_trip_until_it_heals(netem):
    """50 ms each way: one round trip opens the connection, another one carries the request and its answer."""
    with client_and_server() as (pair, client):
        pair.impair(delay_ms=50)
        first, second = client.ask(), client.ask()
        assert ("ok", "ok") == (first["outcome"], second["outcome"])
        assert first["took_ms"] >= 200
        assert second["took_ms"] >= 100
        pair.impair(delay_ms=60_000)
        assert client.outcome(SHORT_S) == "ReadTimeout"
        pair.heal()
        assert client.outcome() == "ok"


def test_a_loss_of_all_packets_lets_no_connection_open_until_it_heals(netem):
    with client_and_server() as (pair, client):
        pair.impair(loss_percent=100)
        assert client.outcome(SHORT_S) == "ConnectTimeout"
        pair.heal()
        assert client.outcome() == "ok"


def test_a_loss_of_a_twentieth_only_slows_the_client_because_tcp_sends_again(netem):
    with client_and_server() as (pair, client):
        pair.impair(loss_percent=5)
        # However long chance takes to lose one: each of these has to arrive whole.
        while not (answer := client.ask(size_bytes=1 << 18))["resent"]:
            assert answer["outcome"] == "ok"
        assert answer["outcome"] == "ok"


# --- names, ends and mistakes ----------------------------------------------------------------------------


def named() -> list[str]:
    return [name for name in netns._names() if name.startswith(f"tinyllm-{os.getpid()}-")]


def failure_of_a_pair() -> str | None:
    try:
        with namespace_pair():
            assert 2 == len(named())
            return None
    except NamespaceError as error:
        return str(error)


def test_nothing_is_left_after_a_failure_wherever_it_happens(namespaces, monkeypatch):
    """Each command of the set-up fails once."""
    run = netns._run
    for fails_at in range(100):
        commands: list[str] = []

        def failing(*command: str, commands: list[str] = commands, fails_at: int = fails_at) -> str:
            if command[:3] not in {("ip", "netns", "list"), ("ip", "netns", "delete")}:
                commands.append(" ".join(command))
                if len(commands) == fails_at + 1:
                    raise NamespaceError("on purpose")
            return run(*command)

        monkeypatch.setattr(netns, "_run", failing)
        error = failure_of_a_pair()
        assert [] == named()
        if error is None:
            break
        assert error == "on purpose"
    assert len(commands) == fails_at == 11


def test_nothing_is_left_after_an_error_in_the_block(namespaces):
    with pytest.raises(ZeroDivisionError), namespace_pair():
        raise ZeroDivisionError
    assert [] == named()


def test_names_that_a_killed_run_has_left_are_passed_over_and_left_alone(namespaces):
    leftover = f"tinyllm-{os.getpid()}-0-server"
    netns._run("ip", "netns", "add", leftover)
    try:
        with namespace_pair() as one, namespace_pair() as other:
            names = {end.name for pair in (one, other) for end in (pair.client, pair.server)}
            assert 4 == len(names - {leftover})
        assert [leftover] == named()
    finally:
        netns._run("ip", "netns", "delete", leftover)


def test_a_missing_program_is_the_reason(monkeypatch):
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    assert unavailable() == "no network namespaces here: the program `tc` (iproute2) is not installed"
    assert netem_unavailable() == unavailable()


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"delay_ms": -1}, "delay_ms is a whole number from 0 to 60000, not -1"),
        ({"loss_percent": 101}, "loss_percent is a whole number from 0 to 100, not 101"),
        ({"loss_percent": 0.5}, "loss_percent is a whole number from 0 to 100, not 0.5"),
    ],
)
def test_a_number_out_of_its_bounds_says_what_is_allowed(numbers, message):
    end = Namespace(name="none", address="", mac="")
    with pytest.raises(ValueError, match="is a whole number") as caught:
        NamespacePair(client=end, server=end).impair(**numbers)
    assert message == str(caught.value)
