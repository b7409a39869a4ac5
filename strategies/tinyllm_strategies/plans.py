"""Plans of worlds: who runs when and what goes wrong, drawn once before the world is made.

First it is drawn which families of faults there are at all, because most bugs need few (swarm testing: Groce
et al., ISSTA 2012). Then three byte strings decide: the schedule, the faults of one moment, and the few that
last. A byte of 0 and a missing byte mean that nothing happens, so the plainest world is the smallest choice
everywhere, and shrinking never adds a fault. Byte strings, because a plan is drawn for every example and a
strategy for each part of it took six times as long.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cache
from itertools import combinations, product
from typing import Any, Final

from hypothesis import strategies as st

from tinyllm.testing.faults import (
    FAMILIES,
    HOME,
    AnswerLost,
    At,
    Bandwidth,
    Cancelled,
    ClockDrift,
    ClockJump,
    CpuSaturation,
    Crash,
    CutMidBody,
    CutMidStream,
    DiskError,
    DiskFull,
    DnsFailure,
    DuplicateChunk,
    EmptyAnswer,
    EmptyBody,
    EndlessStream,
    Fault,
    FaultError,
    GarbageBytes,
    HostDown,
    HugeAnswer,
    Jitter,
    LastingFault,
    Latency,
    LostPacket,
    LostWrites,
    MemoryPressure,
    NoSuchRoute,
    OfDisk,
    OfHost,
    OutsideSchema,
    PacketLoss,
    Partition,
    Pause,
    QueueFull,
    RateLimited,
    ReadTimeout,
    Refusal,
    Refused,
    ReorderedChunks,
    ReorderedWrites,
    Reset,
    Restart,
    ServerError,
    SlowDrip,
    SlowLink,
    SlowSync,
    ToolHangs,
    ToolRaises,
    ToolSlow,
    TornWrite,
    TruncatedJson,
    WrongContentType,
    WrongModel,
    WrongShape,
    WrongType,
)
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.schedule import decode

__all__ = ["decode_lasting", "decode_strikes", "worlds"]

#: Faults that last, in one world.
LASTING_MAX: Final = 4
#: Bytes that decide faults of one moment: the first so many visits of each point.
STRIKES_MAX: Final = 32
RATES: Final = (0.1, 0.02, 0.3, 0.6)

#: The faults of one moment that are drawn, the plainest first, each at each of its points.
STRIKES: Final[tuple[Fault, ...]] = (
    Refused(),
    Reset(),
    Reset(after_bytes=20),
    Latency(delay_ms=10),
    Latency(delay_ms=1_000),
    Latency(delay_ms=60_000),
    ReadTimeout(),
    CutMidBody(),
    CutMidStream(),
    CutMidStream(chunks=3),
    SlowDrip(),
    DuplicateChunk(),
    DuplicateChunk(chunk=1),
    ReorderedChunks(),
    ReorderedChunks(chunk=1),
    DnsFailure(),
    LostPacket(),
    ServerError(),
    ServerError(status=503),
    RateLimited(),
    RateLimited(retry_after_s=1),
    NoSuchRoute(),
    EmptyBody(),
    TruncatedJson(),
    WrongShape(),
    WrongContentType(),
    GarbageBytes(),
    WrongModel(),
    EndlessStream(),
    Refusal(),
    EmptyAnswer(),
    HugeAnswer(),
    OutsideSchema(),
    ToolRaises(),
    AnswerLost(),
    WrongType(),
    ToolSlow(),
    ToolHangs(),
    DiskError(),
)

#: What lasts on links, on hosts that were named, and on any host.
OF_LINKS: Final[tuple[LastingFault, ...]] = (
    SlowLink(delay_ms=10),
    SlowLink(delay_ms=60_000),
    Jitter(delay_ms=10),
    Jitter(delay_ms=1_000),
    Bandwidth(bytes_per_s=10_000),
    Bandwidth(bytes_per_s=100),
    PacketLoss(percent=10),
    PacketLoss(percent=50),
)
OF_HOSTS: Final[tuple[OfHost, ...]] = (
    HostDown(),
    Pause(),
    Crash(),
    Restart(),
    LostWrites(),
    TornWrite(),
    ReorderedWrites(),
)
OF_ANY: Final[tuple[OfHost, ...]] = (
    CpuSaturation(step_us=1_000),
    CpuSaturation(step_us=10_000),
    QueueFull(),
    MemoryPressure(),
    DiskFull(),
    SlowSync(),
    ClockJump(jump_ms=1_000),
    ClockJump(jump_ms=-1_000),
    ClockJump(jump_ms=86_400_000),
    ClockDrift(ppm=10_000),
    ClockDrift(ppm=-10_000),
)
#: When a fault that lasts begins and how long it does, in milliseconds.
TIMES: Final = tuple(product((0, 5, 10, 100, 1_000), (None, 1, 10, 1_000, 60_000)))
#: Bytes of one fault that lasts: its kind, its times, its choice.
LASTING_BYTES: Final = 3

_BYTES = st.binary(max_size=STRIKES_MAX)
_LASTING = st.binary(max_size=LASTING_MAX * LASTING_BYTES)
#: How many wake-ups pass before the schedule begins: long programs have their races late.
_FIRST = st.sampled_from((0,) * 16 + tuple(range(8, 257, 8)))
#: Which await of a task that may be cancelled is its last, apart from the other faults: only such tasks have any.
_CANCELS = st.sampled_from((None, None, None, 0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15))
#: Whether it is cancelled when what it waits for is there, or so long after it has begun to wait.
_AFTER = st.sampled_from((None, None, None, 1, 20))
#: What is left of each byte of a schedule: few programs are long enough for gaps of up to 15.
_GAPS = st.sampled_from((0xF3, 0xFF, 0xF0))
_RATES = st.sampled_from(RATES)
_SEEDS = st.integers(0, 255)


def worlds(
    *,
    hosts: Sequence[str] = (),
    families: Collection[str] = FAMILIES,
    external_only: bool = True,
    timed: bool = True,
    max_holds: int = 64,
) -> st.SearchStrategy[WorldPlan]:
    """Plans of worlds in which faults of these *families* may happen.

    *hosts* are the names of those that may crash, pause, be partitioned, and so on; the program's own host is
    never taken down. Without *timed* no hold lasts for a time; unless *external_only* holds also make orders
    that stock asyncio never has.
    Shrinks to `WorldPlan()`: stock asyncio, no fault, seed 0; before that to few holds and faults, early ones
    and mild ones.

    Raises:
        FaultError: no such family, or the program's own host among *hosts*.
    """
    for name, value in (("hosts", hosts), ("families", families)):
        if isinstance(value, str):
            raise FaultError(f"{name} are several names, ({value!r},) for example, not one text")
    if HOME in hosts:
        raise FaultError(f"the program's own host, {HOME!r}, is never taken down: leave it out of hosts")
    for family in families:
        if family not in FAMILIES:
            raise FaultError(f"there is no family {family!r}; there are {', '.join(FAMILIES)}")
    swarms = st.sampled_from(_swarms(tuple(family for family in FAMILIES if family in families)))
    cancels = _CANCELS if "process" in families else st.none()
    return _worlds(tuple(hosts), swarms, cancels, external_only, timed, st.binary(max_size=max_holds))


def _swarms(families: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Which families there may be in one world: none in a third of them, else one, two or all."""
    some = [(family,) for family in families] + list(combinations(families, 2))
    return [()] * max(1, len(some) // 2) + some + [families]


@st.composite
def _worlds(
    draw: st.DrawFn,
    hosts: tuple[str, ...],
    swarms: st.SearchStrategy[tuple[str, ...]],
    cancels: st.SearchStrategy[int | None],
    external_only: bool,
    timed: bool,
    holds: st.SearchStrategy[bytes],
) -> WorldPlan:
    present = draw(swarms)
    # Drawn in any case: of two branches the one with fewer choices would count as simpler.
    schedule, gaps, strikes, rate, lasting = draw(holds), draw(_GAPS), draw(_BYTES), draw(_RATES), draw(_LASTING)
    cancelled, late = draw(cancels), draw(_FIRST)
    calls = decode_strikes(strikes, families=present, rate=rate)
    if cancelled is not None:
        calls = (At(point="await", number=cancelled, fault=Cancelled(after_ms=draw(_AFTER))), *calls)
    made = decode(bytes(byte & gaps for byte in schedule), timed=timed)
    return WorldPlan(
        schedule=made,
        begins=late if made else 0,
        strikes=calls,
        lasting=decode_lasting(lasting, families=present, hosts=hosts),
        seed=draw(_SEEDS),
        external_only=external_only,
    )


def decode_strikes(data: bytes, *, families: tuple[str, ...], rate: float) -> tuple[At, ...]:
    """Byte k decides visit k of one point: from `256 * (1 - rate)` up it is a fault, below none.

    The rate is raised until each fault of *families*, at each of its points, has a byte.
    """
    kinds = _strikes(families)
    if not kinds:
        return ()
    threshold = min(round(256 * (1 - rate)), 256 - len(kinds))
    return tuple(
        At(point=point, number=number, fault=fault)
        for number, byte in enumerate(data)
        if byte and byte >= threshold
        for point, fault in (kinds[(byte - threshold) % len(kinds)],)
    )


def decode_lasting(data: bytes, *, families: tuple[str, ...], hosts: tuple[str, ...]) -> tuple[LastingFault, ...]:
    """Three bytes decide one fault that lasts: which it is (0 none), when and how long, and its choice."""
    kinds = _lasting(families, hosts)
    if not kinds:
        return ()
    faults = []
    for kind, when, choice in zip(*(data[part::LASTING_BYTES] for part in range(LASTING_BYTES)), strict=False):
        if kind:
            fault = kinds[(kind - 1) % len(kinds)]
            start_ms, duration_ms = TIMES[when % len(TIMES)]
            if isinstance(fault, QueueFull) and duration_ms is None:
                duration_ms = 1_000  # nobody can do anything about a queue that is full for ever
            more = {"choice": choice} if isinstance(fault, OfDisk) else {}
            faults.append(replace(fault, start_ms=start_ms, duration_ms=duration_ms, **more))
    return tuple(faults)


@cache
def _strikes(families: tuple[str, ...]) -> tuple[tuple[str, Fault], ...]:
    return tuple((point, fault) for fault in STRIKES if fault.family in families for point in fault.points)


@cache
def _lasting(families: tuple[str, ...], hosts: tuple[str, ...]) -> tuple[LastingFault, ...]:
    kinds: list[Any] = [*OF_LINKS, *OF_ANY]
    kinds += [replace(fault, host=host) for host in hosts for fault in (*OF_HOSTS, *OF_ANY)]
    kinds += [Partition(hosts=(host,), one_way=one_way) for host in hosts for one_way in (False, True)]
    return tuple(fault for fault in kinds if fault.family in families)
