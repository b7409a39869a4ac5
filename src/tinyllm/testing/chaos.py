"""`ChaosInjector`: the simple face of faults, for code that can be told where it may fail."""

from __future__ import annotations

import asyncio
from random import Random
from typing import TypedDict

from tinyllm.testing.faults import MS_MAX, FaultError

__all__ = ["ChaosError", "ChaosInjector", "ChaosStats"]


class ChaosError(ConnectionError):
    """The injector let an operation fail: call `number` (from 0) of all, to `operation`.

    A ConnectionError, because it stands for what a real operation meets, and what retries are made for.
    """

    def __init__(self, operation: str, number: int) -> None:
        self.operation = operation
        self.number = number
        super().__init__(f"chaos: {operation!r} failed, call {number} of this injector")


class ChaosStats(TypedDict):
    """What an injector did so far; the rate is 0.0 as long as nobody called."""

    total_calls: int
    injected_failures: int
    actual_failure_rate: float


class ChaosInjector:
    """Lets operations take up to *latency_ms*, and fail at *failure_rate*.

    The same *seed* gives the same failures and latencies, call by call. With *decisions* they decide in its
    place, so that a strategy can draw them: byte k is call k, which fails from `256 * (1 - failure_rate)`
    up; a higher byte takes longer. A missing byte is a call at once that succeeds, and so is 0 at every rate.

    Raises:
        FaultError: a rate outside 0 to 1, a latency that is no whole number from 0 to a day, a seed that is no
            int, decisions that are no bytes.
    """

    def __init__(
        self,
        failure_rate: float = 0.3,
        latency_ms: int = 100,
        *,
        seed: int = 0,
        decisions: bytes | None = None,
    ) -> None:
        if type(failure_rate) not in {int, float} or not 0 <= failure_rate <= 1:
            raise FaultError(f"failure_rate is a number from 0 to 1, not {failure_rate!r}")
        if type(latency_ms) is not int or not 0 <= latency_ms <= MS_MAX:
            raise FaultError(f"latency_ms is a whole number from 0 to {MS_MAX}, not {latency_ms!r}")
        if type(seed) is not int:
            raise FaultError(f"seed is a whole number, not {seed!r}")
        if decisions is not None and not isinstance(decisions, bytes):
            raise FaultError(f"decisions are bytes, not {decisions!r}")
        self.failure_rate = failure_rate
        self.latency_ms = latency_ms
        self.seed = seed
        self.decisions = decisions
        self._random = Random(seed)
        self._calls = 0
        self._failures = 0

    def __repr__(self) -> str:
        source = f"seed={self.seed}" if self.decisions is None else f"decisions={self.decisions!r}"
        return f"ChaosInjector(failure_rate={self.failure_rate!r}, latency_ms={self.latency_ms}, {source})"

    async def maybe_fail(self, operation: str) -> None:
        """Take a while, then return or fail. A call counts from its beginning, a failure when it is raised.

        Raises:
            ChaosError: this call fails.
        """
        number = self._calls
        self._calls += 1
        # Decided before the await, so that calls that overlap are decided in the order in which they came.
        latency_ms, fails = self._drawn() if self.decisions is None else self._decided(self.decisions, number)
        await asyncio.sleep(latency_ms / 1_000)
        if fails:
            self._failures += 1
            raise ChaosError(operation, number)

    def get_stats(self) -> ChaosStats:
        """What happened so far: `total_calls`, `injected_failures` and `actual_failure_rate`."""
        return {
            "total_calls": self._calls,
            "injected_failures": self._failures,
            "actual_failure_rate": self._failures / self._calls if self._calls else 0.0,
        }

    def _drawn(self) -> tuple[float, bool]:
        latency_ms = self._random.randint(0, self.latency_ms)
        return latency_ms, self._random.random() < self.failure_rate

    def _decided(self, decisions: bytes, number: int) -> tuple[float, bool]:
        byte = decisions[number] if number < len(decisions) else 0
        # However low the rate, as long as there is one the highest byte is a failure.
        threshold = min(round(256 * (1 - self.failure_rate)), 255) if self.failure_rate else 256
        return self.latency_ms * byte / 255, 0 < byte >= threshold
