"""Storms over HTTP: whatever strikes whomever, each exchange comes to an end, and afterwards all is well.

Each seed makes a plan of faults of requests, of links and of the host, and a schedule. The official clients
live through it with a timeout and no retries; then the world is healed.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import ollama
import openai
import pytest

from tests.support.nets import Net
from tinyllm.testing import faults as f
from tinyllm.testing.schedule import decode
from tinyllm.testing.servers.ollama import OllamaServer
from tinyllm.testing.servers.openai import OpenAIServer

pytestmark = pytest.mark.chaos

MESSAGES: Any = [{"role": "user", "content": "why"}]
TEXT = "one two three"
STRIKES: list[Any] = [
    f.Latency(delay_ms=400), f.Refused(), f.Reset(), f.Reset(after_bytes=50), f.ReadTimeout(), f.CutMidBody(),
    f.CutMidStream(chunks=1), f.SlowDrip(delay_ms=100, size_bytes=40), f.DuplicateChunk(), f.ReorderedChunks(),
    f.DnsFailure(), f.LostPacket(), f.RateLimited(), f.ServerError(), f.NoSuchRoute(), f.EmptyBody(),
    f.TruncatedJson(), f.WrongShape(), f.WrongContentType(), f.GarbageBytes(), f.WrongModel(), f.EndlessStream(),
    f.Refusal(), f.EmptyAnswer(), f.HugeAnswer(size_bytes=100_000), f.OutsideSchema(),
]  # fmt: skip


def a_net(seed: int) -> tuple[Net, random.Random]:
    chance = random.Random(seed)
    strikes = [chance.choice([None, *STRIKES]) for _ in range(12)]
    how: Any = {"first_token_ms": 10, "token_ms": 5}
    servers = {"ollama": OllamaServer(lambda q: TEXT, **how), "openai": OpenAIServer(lambda q: TEXT, **how)}
    net = Net(servers, *strikes, latency_ms=chance.choice([0, 3]), schedule=decode(chance.randbytes(12)))
    for _ in range(chance.randrange(3)):
        lasting = chance.choice(
            [f.Partition(), f.Partition(one_way=True), f.PacketLoss(percent=50), f.Bandwidth(), f.Jitter()]
        )
        start_ms = chance.randrange(500)
        net.lasting(lasting, start_ms, start_ms + chance.randrange(1, 2_000))
    host = net.host("openai")
    happens = chance.choice([None, (host.crash, host.restart), (host.pause, host.resume)])
    if happens:
        start_ms = chance.randrange(500)
        net.loop.call_later(start_ms / 1_000, happens[0])
        net.loop.call_later((start_ms + chance.randrange(1, 1_000)) / 1_000, happens[1])
    return net, chance


async def ask_ollama(stream: bool, timeout: float | None) -> str:
    async with ollama.AsyncClient("http://ollama", timeout=timeout) as client:
        if not stream:
            return (await client.chat(model="m", messages=MESSAGES)).message.content or ""
        got = await client.chat(model="m", messages=MESSAGES, stream=True)
        return "".join([part.message.content or "" async for part in got])


async def ask_openai(stream: bool, timeout: float | None) -> str:
    async with openai.AsyncOpenAI(base_url="http://openai/v1", api_key="k", max_retries=0, timeout=timeout) as client:
        if not stream:
            whole = await client.chat.completions.create(model="m", messages=MESSAGES)
            return whole.choices[0].message.content or ""
        async with await client.chat.completions.create(model="m", messages=MESSAGES, stream=True) as got:
            return "".join([part.choices[0].delta.content or "" async for part in got])


CALLS: list[tuple[Any, bool]] = [(ask, stream) for ask in (ask_ollama, ask_openai) for stream in (True, False)]


def lived(seed: int) -> list[str]:
    """Who heard what, and when; asserts that all is over afterwards and that the next calls are healthy."""
    told: list[str] = []
    net, chance = a_net(seed)

    async def client(name: str, ask: Any, stream: bool) -> None:
        await asyncio.sleep(chance.randrange(100) / 1_000)
        for _ in range(2):
            try:
                async with asyncio.timeout(3):
                    what = (await ask(stream, 1.0))[:20]
            except Exception as error:
                what = type(error).__name__
            told.append(f"{net.now_ms} {name} {what}")

    async def storm() -> None:
        await asyncio.gather(*(client(f"{ask.__name__} {stream}", ask, stream) for ask, stream in CALLS))

    async def afterwards() -> list[str]:
        return [await ask(stream, None) for ask, stream in CALLS]

    with net:
        net.run(storm)
        net.points.heal()
        net.network.heal()
        net.rest()
        assert [] == net.network.open_connections(None)
        assert [TEXT] * len(CALLS) == net.run(afterwards)
        for served in net.network.servers.values():
            told += [f"{served.name} {request.at_ns} {request.ended}" for request in served.requests]
            assert None not in {request.ended for request in served.requests}
    return told


@pytest.mark.parametrize("first_seed", range(0, 200, 20))
def test_after_any_storm_no_exchange_is_left_and_the_next_calls_are_healthy(first_seed):
    for seed in range(first_seed, first_seed + 20):
        lived(seed)


@pytest.mark.parametrize("seed", range(20))
def test_a_storm_repeats_itself(seed):
    assert lived(seed) == lived(seed)


def test_storms_bite():
    """Or the tests above would be of fair weather."""
    heard = [line.split(" ", 3)[3] for seed in range(40) for line in lived(seed) if "ask_" in line]

    assert 0.2 < heard.count(TEXT) / len(heard) < 0.8
    assert len(set(heard)) > 12
