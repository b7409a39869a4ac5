"""The HTTP network when clients leave, schedules differ, links part and hosts go."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import httpx
import pytest

from tests.support.nets import MS, URL, Net, both, echo, got, slow, streams
from tinyllm.testing.faults import At, Latency, Partition, Refused, Reset
from tinyllm.testing.http.clients import HttpxClients
from tinyllm.testing.http.lanes import Lane
from tinyllm.testing.http.values import Answer, HttpRequest, text_answer
from tinyllm.testing.schedule import decode

pytestmark = pytest.mark.unit


# --- leaving at any moment ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("left_ms", range(0, 60, 5))
def test_a_client_may_leave_at_any_await_and_nothing_is_left(left_ms):
    """Connection, request, answer and each piece take 10 ms one way; the client is cancelled before or after each."""

    async def main() -> str:
        async with httpx.AsyncClient() as client:
            try:
                async with asyncio.timeout(left_ms / 1_000):
                    return (await client.post(URL, content=b"x")).text
            except TimeoutError:
                return "left"

    with Net({"api": streams((b"a", 0), (b"b", 10))}, latency_ms=10) as net:
        assert ("left" if left_ms <= 50 else "ab") == net.run(main)
        net.rest()
        requests = net.network.servers["api"].requests
        # What was sent arrives: the request leaves at 20 ms.
        assert (left_ms > 20) == bool(requests)
        assert [] == net.network.open_connections(None)


def test_a_request_that_was_sent_has_its_effect_though_its_client_has_left():
    seen: list[int] = []

    def server(request: HttpRequest) -> Answer:
        seen.append(request.at_ns)
        return text_answer("done")

    with Net({"api": server}, latency_ms=10) as net:
        assert isinstance(got(net, timeout=httpx.Timeout(None, read=0.001)), httpx.ReadTimeout)
        net.rest()
        [request] = net.network.servers["api"].requests

        assert [30 * MS] == seen
        assert ("left", 21 * MS) == (request.ended, request.ended_ns)


# --- schedules ----------------------------------------------------------------------------------------------


def _three_streams(schedule: Any) -> tuple[list[tuple[int, str, float]], int]:
    """What three clients hear at which moment, and how many wake-ups were held back."""
    heard: list[tuple[int, str, float]] = []

    async def one(client: Any, number: int) -> None:
        async with client.stream("GET", f"http://api/{number}") as response:
            async for text in response.aiter_text():
                heard.append((number, text, net.now_ms))  # noqa: PERF401 - three clients, one list

    async def main() -> None:
        async with httpx.AsyncClient() as client:
            await asyncio.gather(*(one(client, number) for number in range(3)))

    pieces = [(str(number).encode(), 3) for number in range(5)]
    with Net({"api": streams(*pieces)}, latency_ms=1, schedule=schedule) as net:
        net.run(main)
        return heard, len(net.loop.applied_holds)


@pytest.mark.parametrize("seed", range(20))
def test_under_every_schedule_each_client_hears_its_pieces_in_order_and_a_world_repeats_itself(seed):
    schedule = decode(random.Random(seed).randbytes(24))
    heard, held = _three_streams(schedule)

    for client in range(3):
        assert "01234" == "".join(text for number, text, _ in heard if number == client)
    assert (heard, held) == _three_streams(schedule)


def test_what_comes_from_the_network_comes_from_outside_so_that_its_wake_ups_may_be_held_back():
    lives = [_three_streams(decode(random.Random(seed).randbytes(24))) for seed in range(20)]

    assert sum(held > 0 for _, held in lives) > 10
    assert len({tuple(heard) for heard, _ in lives}) > 10


# --- links and hosts that go ------------------------------------------------------------------------------------


def test_a_request_waits_for_a_partition_to_heal():
    with Net({"api": echo}, latency_ms=1) as net:
        net.lasting(Partition(), end_ms=500)
        assert 200 == got(net).status_code
        assert 504 == net.now_ms


def test_an_answer_waits_for_a_partition_of_one_way_to_heal():
    with Net({"api": slow(10)}) as net:
        net.lasting(Partition(hosts=("api",), one_way=True), start_ms=5, end_ms=500)
        assert "late" == got(net).text
        assert 500 == net.now_ms
        assert [0] == [request.at_ns for request in net.network.servers["api"].requests]


def test_a_stream_goes_on_in_order_when_a_partition_heals():
    async def main() -> list[tuple[str, float]]:
        async with httpx.AsyncClient() as client, client.stream("GET", URL) as response:
            return [(text, net.now_ms) async for text in response.aiter_text()]

    with Net({"api": streams((b"a", 5), (b"b", 5), (b"c", 5), (b"d", 100))}) as net:
        net.lasting(Partition(), start_ms=7, end_ms=50)
        assert [("a", 5), ("b", 50), ("c", 50), ("d", 115)] == net.run(main)


@both
def test_a_host_that_is_down_refuses(module):
    with Net({"api": echo}) as net:
        net.host("api").crash()
        error = got(net, module)

        assert (module.ConnectError, "connection refused") == (type(error), str(error))


@both
def test_a_host_that_crashes_resets_what_it_has_not_answered(module):
    with Net({"api": slow(30)}) as net:
        host = net.host("api")
        net.loop.call_later(0.01, host.crash)
        net.loop.call_later(0.02, host.restart)
        error = got(net, module)

        assert (module.ReadError, "connection reset by peer") == (type(error), str(error))
        assert 10 == net.now_ms
        net.rest()
        assert "late" == got(net, module).text
        assert ["broken", "delivered"] == [request.ended for request in net.network.servers["api"].requests]


def test_a_connection_kept_from_before_a_crash_is_not_used_again():
    async def main() -> list[float]:
        times = []
        async with httpx.AsyncClient() as client:
            for _ in range(2):
                began_ms = net.now_ms
                await client.post(URL)
                times.append(net.now_ms - began_ms)
                api.restart()
        return times

    with Net({"api": echo}, latency_ms=10) as net:
        api = net.host("api")
        assert [40, 40] == net.run(main)


def test_a_host_that_went_down_refuses_though_a_connection_was_kept():
    async def main() -> None:
        async with httpx.AsyncClient() as client:
            await client.post(URL)
            api.crash()
            with pytest.raises(httpx.ConnectError, match="refused"):
                await client.post(URL)

    with Net({"api": echo}, latency_ms=10) as net:
        api = net.host("api")
        net.run(main)
        assert 60 == net.now_ms


def test_a_host_that_stands_still_answers_when_it_goes_on():
    with Net({"api": slow(30)}) as net:
        host = net.host("api")
        host.pause()
        net.loop.call_later(0.1, host.resume)
        assert "late" == got(net).text
        assert 130 == net.now_ms


def test_a_host_that_stands_still_in_the_middle_of_an_answer_goes_on_with_it():
    with Net({"api": slow(30)}) as net:
        host = net.host("api")
        net.loop.call_later(0.01, host.pause)
        net.loop.call_later(0.1, host.resume)
        assert "late" == got(net).text
        assert 100 == net.now_ms


def test_a_client_that_crashes_is_gone_for_its_server():
    async def ask() -> None:
        async with httpx.AsyncClient() as client:
            await client.post(URL)

    with Net({"api": slow(30)}) as net, HttpxClients(net.network):
        worker = net.host("worker")
        worker.start(ask)
        net.loop.advance(10 * MS)
        worker.crash()
        [request] = net.network.servers["api"].requests

        assert ("broken", "worker", 10 * MS) == (request.ended, request.source, request.ended_ns)
        assert [] == net.network.open_connections(None)


def test_a_lane_keeps_its_order_whatever_becomes_of_the_link():
    arrived: list[str] = []
    with Net() as net:
        lane = Lane(net.loop, net.links, "a", "b", net.network.wire)
        net.links.begin(Partition(hosts=("a",)))
        lane.send(0, arrived.append, "first")
        net.links.faults.clear()  # and nobody was told
        net.links.latency_ns = MS
        lane.send(0, arrived.append, "second")
        assert [] == arrived
        lane.unblock()
        net.rest()

    assert ["first", "second"] == arrived


# --- faults of connections ----------------------------------------------------------------------------------


def test_latency_of_a_connection_comes_before_the_connect_timeout():
    latency = At(point="connection api", number=0, fault=Latency(delay_ms=50))
    with Net({"api": echo}, at=(latency,)) as net:
        assert isinstance(got(net, timeout=httpx.Timeout(None, connect=0.02)), httpx.ConnectTimeout)
        assert 20 == net.now_ms
        assert () == net.loop.pending_timers()
        assert 200 == got(net).status_code


def test_faults_of_connections_strike_the_exchange_that_makes_it():
    at = (At(point="connection", number=0, fault=Refused()), At(point="connection", number=1, fault=Reset()))
    with Net({"api": echo}, at=at) as net:
        assert [httpx.ConnectError, httpx.ReadError, httpx.Response] == [type(got(net)) for _ in range(3)]
