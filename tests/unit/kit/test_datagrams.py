"""Datagrams of the simulated world: each on its own, with nobody to say what became of it."""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from typing import Any

import anyio
import anyio.abc
import pytest

from tinyllm.testing.faults import (
    At,
    DuplicateChunk,
    Fault,
    Jitter,
    Latency,
    LostPacket,
    PacketLoss,
    Partition,
    ReorderedChunks,
)
from tinyllm.testing.loop import FencedError
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.world import World

pytestmark = pytest.mark.unit


class Inbox(asyncio.DatagramProtocol):
    """Takes down what arrives, and when."""

    def __init__(self) -> None:
        self.log: list[Any] = []
        self.times: list[float] = []
        self.transport: Any = None
        self.lost = asyncio.get_running_loop().create_future()
        self.heard = asyncio.Event()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.log.append(data)
        self.times.append(asyncio.get_running_loop().time())
        self.heard.set()

    def error_received(self, exc: Exception) -> None:
        self.log.append(type(exc))
        self.times.append(asyncio.get_running_loop().time())
        self.heard.set()

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost.set_result(exc)


async def an_inbox(**settings: Any) -> Inbox:
    _, inbox = await asyncio.get_running_loop().create_datagram_endpoint(Inbox, **settings)
    return inbox


def plan_of(*faults: Fault) -> WorldPlan:
    """Fault number n strikes datagram number n to the host `db`."""
    return WorldPlan(
        strikes=tuple(At(point="datagram db", number=number, fault=fault) for number, fault in enumerate(faults))
    )


def arrived(plan: WorldPlan, *, latency_ms: int = 10, heal: bool = False) -> tuple[list[Any], list[float]]:
    """What of `first` and `second`, sent 100 ms apart to `db`, arrives there, and when."""
    inboxes: list[Inbox] = []

    async def serve() -> None:
        inboxes.append(await an_inbox(local_addr=("0.0.0.0", 53)))

    async def main() -> None:
        here = await an_inbox(remote_addr=("db", 53))
        for data in (b"first", b"second"):
            here.transport.sendto(data)
            await asyncio.sleep(0.1)
        here.transport.close()

    with World(plan, latency_ms=latency_ms) as world:
        world.host("db").start(serve)
        world.run(main)
        if heal:
            world.heal()
        world.loop.run_until_idle()
        assert [] == world.loop.unhandled
        assert () == world.loop.pending_timers()
    return inboxes[0].log, inboxes[0].times


# --- as over real loopback --------------------------------------------------------------------------------


async def there_and_back(log: list[Any]) -> None:
    there = await an_inbox(local_addr=("127.0.0.1", 0))
    here = await an_inbox(local_addr=("127.0.0.1", 0))
    here.transport.sendto(b"ping", there.transport.get_extra_info("sockname"))
    await there.heard.wait()
    there.transport.sendto(bytearray(b"pong"), here.transport.get_extra_info("sockname"))
    await here.heard.wait()
    log += [there.log, here.log, here.transport.get_extra_info("peername")]
    for inbox in (here, there):
        inbox.transport.close()
        log.append(inbox.transport.is_closing())
        inbox.transport.sendto(b"ignored", ("127.0.0.1", 9))
        log.append(await inbox.lost)


async def connected_to_nobody(log: list[Any]) -> None:
    gone = await an_inbox(local_addr=("127.0.0.1", 0))
    name = gone.transport.get_extra_info("sockname")
    gone.transport.close()
    await gone.lost
    here = await an_inbox(remote_addr=name)
    log.append(here.transport.get_extra_info("peername") == name)
    here.transport.sendto(b"anybody?")
    await here.heard.wait()
    log.append(here.log)
    here.transport.abort()
    log.append(await here.lost)


async def closed_by_the_first(log: list[Any]) -> None:
    class Once(Inbox):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            super().datagram_received(data, addr)
            self.transport.close()

    _, there = await asyncio.get_running_loop().create_datagram_endpoint(Once, local_addr=("127.0.0.1", 0))
    here = await an_inbox(remote_addr=there.transport.get_extra_info("sockname"))
    for data in (b"first", b"second"):
        here.transport.sendto(data)
    await there.lost
    here.transport.close()
    await here.lost
    log.append(there.log)


async def misuse(log: list[Any]) -> None:
    here = await an_inbox(remote_addr=("127.0.0.1", 9))
    for data, address in (("text", None), (b"elsewhere", ("127.0.0.1", 10))):
        try:
            here.transport.sendto(data, address)
        except (TypeError, ValueError) as error:
            log.append(repr(error))
    here.transport.sendto(b"x" * 70_000)
    await asyncio.sleep(0)
    log.append(here.log)
    here.transport.close()
    await here.lost
    try:
        await asyncio.get_running_loop().create_datagram_endpoint(Inbox)
    except ValueError as error:
        log.append(repr(error))


async def taken_ports(log: list[Any]) -> None:
    here = await an_inbox(local_addr=("127.0.0.1", 0))
    try:
        await an_inbox(local_addr=here.transport.get_extra_info("sockname"))
    except OSError as error:
        log.append(error.errno)
    here.transport.close()
    await here.lost


@pytest.mark.skipif(sys.platform != "linux", reason="that nobody is there is told as Linux tells it")
@pytest.mark.parametrize("program", [there_and_back, connected_to_nobody, closed_by_the_first, misuse, taken_ports])
def test_a_program_sees_in_the_world_what_it_sees_over_real_loopback(program):
    stock: list[Any] = []
    asyncio.run(program(stock))
    simulated: list[Any] = []
    with World() as world:
        world.run(program(simulated))
        assert ((), []) == (world.loop.pending_timers(), world.loop.unhandled)

    assert stock
    assert stock == simulated


# --- what the world adds ----------------------------------------------------------------------------------


def test_a_datagram_takes_what_the_link_takes():
    assert ([b"first", b"second"], [0.01, 0.11]) == arrived(plan_of())


def test_a_connected_socket_hears_only_its_peer():
    async def main() -> list[Any]:
        server = await an_inbox(local_addr=("127.0.0.1", 53))
        stranger = await an_inbox(local_addr=("127.0.0.1", 0))
        here = await an_inbox(remote_addr=("127.0.0.1", 53))
        name = here.transport.get_extra_info("sockname")
        stranger.transport.sendto(b"from a stranger", name)
        server.transport.sendto(b"from the server", name)
        await here.heard.wait()
        await asyncio.sleep(1)
        return here.log

    with World() as world:
        assert [b"from the server"] == world.run(main)


def test_a_socket_tells_the_address_on_the_way_to_its_peer():
    async def main() -> tuple[Any, Any]:
        far, near = await an_inbox(remote_addr=("db", 53)), await an_inbox(remote_addr=("localhost", 53))
        return far.transport.get_extra_info("sockname"), near.transport.get_extra_info("sockname")

    with World() as world:
        world.host("db")

        assert ((world.host("local").address, 49152), ("127.0.0.1", 49153)) == world.run(main)


def test_an_address_of_nobody_takes_datagrams_and_loses_them():
    async def main() -> list[Any]:
        here = await an_inbox(local_addr=("0.0.0.0", 0))
        here.transport.sendto(b"lost", ("10.9.9.9", 53))
        await asyncio.sleep(1)
        return here.log

    with World() as world:
        assert [] == world.run(main)


@pytest.mark.parametrize(
    ("lasting", "seen"),
    [
        ((), ([ConnectionRefusedError], [0.02])),
        ((Partition(hosts=("db",), one_way=True),), ([], [])),
        ((Partition(),), ([], [])),
    ],
)
def test_a_connected_socket_hears_after_a_round_trip_that_nobody_is_there(lasting, seen):
    async def main() -> tuple[Any, Any]:
        here = await an_inbox(remote_addr=("db", 53))
        here.transport.sendto(b"anybody?")
        await asyncio.sleep(1)
        here.transport.sendto(b"and now?")
        here.transport.close()
        await asyncio.sleep(1)
        return here.log, here.times

    with World(WorldPlan(lasting=lasting), latency_ms=10) as world:
        world.host("db")

        assert seen == world.run(main)


def test_within_a_host_no_datagram_is_lost():
    async def main() -> list[Any]:
        there = await an_inbox(local_addr=("127.0.0.1", 53))
        here = await an_inbox(remote_addr=("127.0.0.1", 53))
        here.transport.sendto(b"ping")
        await there.heard.wait()
        return there.log

    with World(WorldPlan(lasting=(PacketLoss(percent=100),))) as world:
        world.advance(0)

        assert [b"ping"] == world.run(main)


def test_a_datagram_that_is_sent_to_no_address_is_a_clear_error():
    async def main() -> None:
        here = await an_inbox(local_addr=("0.0.0.0", 0))
        here.transport.sendto(b"where to?")

    with World() as world, pytest.raises(ValueError, match="needs an address: the socket is connected to none"):
        world.run(main)


def test_a_socket_of_ones_own_is_refused():
    async def main() -> None:
        settings: dict[str, Any] = {"sock": object()}
        await asyncio.get_running_loop().create_datagram_endpoint(Inbox, **settings)

    with World() as world, pytest.raises(FencedError, match="a socket of one's own"):
        world.run(main)


def test_addresses_that_are_not_ones_own_cannot_be_bound():
    async def main() -> None:
        await an_inbox(local_addr=("10.9.9.9", 53))

    with World() as world, pytest.raises(OSError, match=r"10\.9\.9\.9") as caught:
        world.run(main)

    assert errno.EADDRNOTAVAIL == caught.value.errno


def test_anyio_sends_datagrams_through_the_world():
    async def main() -> tuple[bytes, bytes]:
        async with (
            await anyio.create_udp_socket(family=socket.AF_INET, local_port=53) as there,
            await anyio.create_connected_udp_socket("localhost", 53) as here,
        ):
            await here.send(b"ping")
            data, name = await there.receive()
            await there.sendto(b"pong", *name)
            return data, await here.receive()

    with World() as world:
        assert (b"ping", b"pong") == world.run(main)


# --- faults -----------------------------------------------------------------------------------------------


def test_latency_lets_a_datagram_come_later_and_be_overtaken():
    assert ([b"second", b"first"], [0.11, 0.51]) == arrived(plan_of(Latency(delay_ms=500)))


def test_a_lost_datagram_never_comes():
    assert ([b"second"], [0.11]) == arrived(plan_of(LostPacket()))


def test_a_duplicate_comes_twice():
    assert ([b"first", b"first", b"second"], [0.01, 0.01, 0.11]) == arrived(plan_of(DuplicateChunk()))


def test_a_reordered_datagram_comes_after_the_next_one():
    assert ([b"second", b"first"], [0.11, 0.11]) == arrived(plan_of(ReorderedChunks()))


def test_healing_lets_a_datagram_go_that_waits_to_be_overtaken():
    plan = WorldPlan(strikes=(At(point="datagram", number=1, fault=ReorderedChunks()),))

    assert ([b"first"], [0.01]) == arrived(plan)
    assert ([b"first", b"second"], [0.01, 0.2]) == arrived(plan, heal=True)


@pytest.mark.parametrize("fault", [Partition(), Partition(one_way=True), PacketLoss(percent=100)])
def test_what_does_not_pass_the_link_vanishes(fault):
    assert ([], []) == arrived(WorldPlan(lasting=(fault,)))


def test_a_partition_that_ends_lets_the_next_datagram_pass():
    plan = WorldPlan(lasting=(Partition(duration_ms=50),))

    assert ([b"second"], [0.11]) == arrived(plan)


def test_jitter_delays_datagrams_each_on_its_own():
    orders = set()
    for seed in range(20):
        plan = WorldPlan(lasting=(Jitter(delay_ms=1_000),), seed=seed)
        orders.add(tuple(arrived(plan)[0]))

    assert {(b"first", b"second"), (b"second", b"first")} == orders


def test_sockets_die_with_their_host_and_are_bound_again_by_the_next_life():
    inboxes: list[Inbox] = []

    async def serve() -> None:
        inboxes.append(await an_inbox(local_addr=("0.0.0.0", 53)))

    async def main() -> list[Any]:
        here = await an_inbox(remote_addr=("db", 53))
        db = world.host("db")
        for act in (lambda: None, db.crash, db.restart):
            act()
            await asyncio.sleep(1)
            here.transport.sendto(b"ping")
            await asyncio.sleep(1)
        return here.log

    with World() as world:
        world.host("db").start(serve)

        assert [ConnectionRefusedError] == world.run(main)
        assert [[b"ping"], [b"ping"]] == [inbox.log for inbox in inboxes]
