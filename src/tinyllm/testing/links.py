"""The links between hosts: how long a packet takes, whether it passes, and whether it is lost.

Pure but for its own state. Each direction of a link has a stream of chance of its own, drawn from the
world's seed and the two names, so that traffic elsewhere changes nothing here.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tinyllm.testing.faults import Bandwidth, Jitter, OfLinks, PacketLoss, Partition, SlowLink
from tinyllm.testing.units import NS_PER_MS, NS_PER_S

__all__ = ["LinkFault", "Links", "folded_name"]

LinkFault = SlowLink | Jitter | Bandwidth | PacketLoss | Partition

#: How long a connection waits before it sends a lost packet again; doubled with each further loss.
RESEND_NS: Final = 200 * NS_PER_MS
#: So often a packet is sent again before it arrives in any case; a loss of 100 % lets nothing pass.
RESENDS_MAX: Final = 6


@dataclass(slots=True)
class _Direction:
    """One direction of one link: until when it is busy sending, and its chance."""

    rng: random.Random
    busy_until_ns: int = 0


@dataclass(slots=True)
class Links:
    """All links of one world. `faults` are those that last now; change them with `begin` and `end`.

    `latency_ns` is what every packet takes between two hosts; within a host nothing takes time.
    `changed` is called after each change, in its order: what waited for a partition to heal goes on there.
    """

    seed: int = 0
    latency_ns: int = 0
    faults: list[LinkFault] = field(default_factory=list)
    changed: list[Callable[[], None]] = field(default_factory=list)
    #: Whether anything has ever changed.
    disturbed: bool = False
    _directions: dict[tuple[str, str], _Direction] = field(default_factory=dict)

    def begin(self, fault: LinkFault) -> None:
        """Let *fault* last from now on."""
        self.faults.append(fault)
        self._tell()

    def end(self, fault: LinkFault) -> None:
        """Let *fault* last no longer. Does nothing if it does not."""
        if fault in self.faults:
            self.faults.remove(fault)
            self._tell()

    def _tell(self) -> None:
        self.disturbed = True
        for call in list(self.changed):
            call()

    def passes(self, source: str, target: str) -> bool:
        """Whether anything gets from one host to the other now; with a loss of 100 % nothing does."""
        if not self.faults or source == target:
            return True
        return not any(_stops(fault, source, target) for fault in self.faults)

    def delay_ns(self, source: str, target: str, size_bytes: int, now_ns: int) -> int:
        """How long a packet sent now takes; with a bandwidth it waits until those before it are on their way."""
        if source == target:
            return 0
        delay_ns = self.latency_ns
        for fault in self.faults:
            if not _concerns(fault, source, target):
                continue
            if isinstance(fault, SlowLink):
                delay_ns += fault.delay_ms * NS_PER_MS
            elif isinstance(fault, Jitter):
                delay_ns += self._direction(source, target).rng.randint(0, fault.delay_ms * NS_PER_MS)
            elif isinstance(fault, Bandwidth):
                direction = self._direction(source, target)
                starts_ns = max(direction.busy_until_ns, now_ns)
                direction.busy_until_ns = starts_ns + size_bytes * NS_PER_S // fault.bytes_per_s
                delay_ns += direction.busy_until_ns - now_ns
        return delay_ns

    def loses(self, source: str, target: str) -> bool:
        """Whether the next packet is lost; asking takes the chance."""
        return any(
            isinstance(fault, PacketLoss)
            and _concerns(fault, source, target)
            and self._direction(source, target).rng.randrange(100) < fault.percent
            for fault in self.faults
        )

    def resend_ns(self, source: str, target: str) -> int:
        """How much later a packet of a connection arrives because it, and then its copies, are lost."""
        delay_ns = 0
        for number in range(RESENDS_MAX):
            if not self.faults or source == target or not self.loses(source, target):
                break
            delay_ns += RESEND_NS << number
        return delay_ns

    def _direction(self, source: str, target: str) -> _Direction:
        key = (source, target)
        direction = self._directions.get(key)
        if direction is None:
            # A text as seed goes through SHA-512: the same in every process.
            direction = self._directions[key] = _Direction(random.Random(f"{self.seed}/{source}/{target}"))
        return direction


def folded_name(name: str) -> str:
    """What of the name of a host counts when it is looked up, RFC 4343."""
    return name.lower().removesuffix(".")


def _concerns(fault: OfLinks, source: str, target: str) -> bool:
    return not fault.hosts or source in fault.hosts or target in fault.hosts


def _stops(fault: LinkFault, source: str, target: str) -> bool:
    """Whether nothing at all passes in this direction because of *fault*."""
    if isinstance(fault, PacketLoss):
        return fault.percent == 100 and _concerns(fault, source, target)
    return isinstance(fault, Partition) and _parts(fault, source, target)


def _parts(fault: Partition, source: str, target: str) -> bool:
    """Whether a packet in this direction would cross the partition."""
    if _crosses(fault, source, target):
        return True
    return not fault.one_way and _crosses(fault, target, source)


def _crosses(fault: Partition, source: str, target: str) -> bool:
    if source not in fault.hosts:
        return False
    return target in fault.others if fault.others else target not in fault.hosts
