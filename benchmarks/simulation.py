"""How fast simulated runs are, side by side with the stock event loop, detangle and looptime.

    make bench-simulation

makes an environment of its own (`benchmarks/requirements.txt`) and runs this file in it; `measuring.py` says how
it measures.

The program that all loops run, unchanged, is a diamond of eight nodes in plain asyncio: `PREDECESSORS`, in layers
of one, three, three and one. Each node is a task of one TaskGroup. It awaits the future of each of its
predecessors, sleeps a millisecond three times, and sets its own future to the number of paths that lead to it.
A run makes a loop, runs the program on it and closes it, and is checked to count six paths. It takes 74 callbacks
on our loop, and at least 12 ms where time is real.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import detangle
import httpx
import looptime
import ollama
from measuring import Turn, ratio, seconds_by_round, show_growth, show_heading, shown, timed, timed_on

from tinyllm.graph import load_graph
from tinyllm.testing import loop as simulated
from tinyllm.testing.graph_world import GraphWorld, RunPlan
from tinyllm.testing.script import Script, hosts_of
from tinyllm.testing.servers.ollama import OllamaServer
from tinyllm.testing.world import World

PREDECESSORS = {"a": "", "b": "a", "c": "a", "d": "a", "e": "bc", "f": "cd", "g": "bd", "h": "efg"}
SLEEPS = 3
PATHS = 6

SERVER = "http://ollama:11434"
MODEL = "llama3.2:1b"
ANSWER = "yes"
QUESTION = "May this be published?"
MESSAGES = [{"role": "user", "content": QUESTION}]
CONSENSUS = Path(__file__).parents[1] / "examples" / "graphs" / "consensus.yaml"


async def eight_nodes() -> int:
    """The number of paths from the first node to the last."""
    loop = asyncio.get_running_loop()
    paths: dict[str, asyncio.Future[int]] = {name: loop.create_future() for name in PREDECESSORS}

    async def node(name: str) -> None:
        leading_here = [await paths[predecessor] for predecessor in PREDECESSORS[name]]
        for _ in range(SLEEPS):
            await asyncio.sleep(0.001)
        paths[name].set_result(sum(leading_here) or 1)

    async with asyncio.TaskGroup() as group:
        for name in PREDECESSORS:
            group.create_task(node(name))
    return paths["h"].result()


async def nothing() -> None:
    """A program that ends at once."""


# --- the loops -----------------------------------------------------------------------------------------


def run_simulated() -> int:
    return simulated.run(eight_nodes())


def run_detangle() -> int:
    return detangle.run(eight_nodes)


def run_looptime() -> int:
    return _run_and_close(looptime.new_event_loop())


def run_stock() -> int:
    return _run_and_close(asyncio.new_event_loop())


def _run_and_close(loop: asyncio.AbstractEventLoop) -> int:
    try:
        return loop.run_until_complete(eight_nodes())
    finally:
        loop.close()


def checked(run: Callable[[], int]) -> Callable[[], None]:
    """Runs the eight-node program, and refuses a wrong answer."""

    def run_once() -> None:
        if (paths := run()) != PATHS:
            raise AssertionError(f"{run.__name__} counted {paths} paths instead of {PATHS}")

    return run_once


# --- a chat --------------------------------------------------------------------------------------------


class Canned(httpx.AsyncBaseTransport):
    """Answers every request at once with the same bytes."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = {"content-type": "application/json"}
        return httpx.Response(200, headers=headers, content=self._content, request=request)


def chat_through(transport: httpx.AsyncBaseTransport) -> Callable[[], Awaitable[None]]:
    """A call of the official client, which is checked to bring the answer."""
    client = ollama.AsyncClient(SERVER, transport=transport, trust_env=False)

    async def chat() -> None:
        answer = await client.chat(model=MODEL, messages=MESSAGES)
        if answer.message.content != ANSWER:
            raise AssertionError(f"the model said {answer.message.content!r} instead of {ANSWER!r}")

    return chat


async def content_of_answer(transport: httpx.AsyncBaseTransport) -> bytes:
    """What the simulated server sends for that call."""
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        question = {"model": MODEL, "messages": MESSAGES, "stream": False}
        return (await client.post(f"{SERVER}/api/chat", json=question)).content


# --- the rows ------------------------------------------------------------------------------------------


def bare_runs(rounds: int) -> None:
    """Runs a second of the eight-node program on each loop."""
    turns = {
        "ours": Turn(timed(checked(run_simulated)), 20),
        "detangle": Turn(timed(checked(run_detangle)), 4),
        "looptime": Turn(timed(checked(run_looptime)), 4),
        "the stock loop, time of the process": Turn(timed(checked(run_stock)), 2),
        "the stock loop, time of the clock": Turn(timed(checked(run_stock), time.perf_counter), 2),
    }
    seconds = seconds_by_round(turns, rounds)
    rate = 1 / statistics.median(seconds["ours"])
    shown("runs a second of the eight-node program", ">= 1,500", f"{rate:,.0f}", rate >= 1_500)
    for name in list(turns)[1:]:
        rate = 1 / statistics.median(seconds[name])
        shown(f"  on {name}", "", f"{rate:,.0f}", note=f"ours is {ratio(seconds, name, 'ours'):.1f} times as fast")


def bare_loop(rounds: int) -> None:
    """What a loop costs that has nothing to do."""
    turns = {"ours": Turn(timed(lambda: simulated.run(nothing())), 200)}
    taken_us = statistics.median(seconds_by_round(turns, rounds)["ours"]) * 1e6
    shown("loop created, run and closed", "<= 25 us", f"{taken_us:.1f} us", taken_us <= 25)


def chat_calls(rounds: int) -> None:
    """A simulated chat call through the official client, against one that is answered at once by its transport."""
    with World() as world:
        world.host("ollama", OllamaServer(lambda _: ANSWER))
        content = world.run(content_of_answer(world.network.transport()))
        transports = {"simulated": world.network.transport(), "canned": Canned(content)}
        turns = {
            name: Turn(timed_on(world.run, chat_through(transport)), 10) for name, transport in transports.items()
        }
        seconds = seconds_by_round(turns, rounds)
    times = ratio(seconds, "simulated", "canned")
    whole_us, alone_us = (statistics.median(seconds[name]) * 1e6 for name in turns)
    note = f"{whole_us:.0f} us against {alone_us:.0f} us"
    shown("a chat of the ollama client: times its cost by itself", "<= 2.00", f"{times:.2f}", times <= 2, note)


def day_of_consensus() -> None:
    """A run every 30 seconds for 24 virtual hours, all in one world, by the clock on the wall."""
    graph = load_graph(CONSENSUS)
    began = time.perf_counter()
    with GraphWorld(graph, Script(hosts=hosts_of(graph), plain_answer=ANSWER)) as world:
        for _ in range(24 * 120):
            world.submit(RunPlan(content=QUESTION))
            world.advance(30_000)
        history = world.finish()
    taken_s = time.perf_counter() - began
    succeeded = sum(run.result is not None and run.result.status == "succeeded" for run in history.runs)
    if succeeded != 24 * 120 + 1 or not history.rest.at_rest:
        raise AssertionError(f"{succeeded} of {len(history.runs)} runs succeeded; {history.rest}")
    shown("24 virtual hours of one consensus run every 30 seconds", "< 60 s", f"{taken_s:.1f} s", taken_s < 60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=60, help="rounds per comparison; a figure is their median")
    parser.add_argument("--runs", type=int, default=100_000, help="runs after which nothing may have grown")
    options = parser.parse_args()
    packages = ("tinyllm", "detangle", "looptime", "ollama", "httpx")
    show_heading(packages, f"{options.rounds} rounds")
    bare_runs(options.rounds)
    bare_loop(options.rounds)
    chat_calls(options.rounds)
    show_growth(timed(checked(run_simulated)), options.runs)
    day_of_consensus()
    return 0


if __name__ == "__main__":
    sys.exit(main())
