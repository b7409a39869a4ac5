"""Decisions about failure: whether to try again, when, and where the token goes. Pure: no await, no clock."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

from tinyllm.config import MS_MAX, ExecutorConfig, NodeConfig, NodeDefinition, NodeType
from tinyllm.message import ErrorInfo

BACKOFF_MS_MAX = 60_000


def may_retry(config: NodeConfig, attempts_made: int, error: ErrorInfo) -> bool:
    """Whether another attempt follows after `attempts_made` of them, the last of which failed with `error`."""
    return error.recoverable and attempts_made <= config.retry_count


class RetryDelays:
    """The waits of one step, in order: the k-th value of its own random sequence belongs to retry k."""

    def __init__(self, config: NodeConfig, *, seed: int, path: str) -> None:
        self._config = config
        self._sequence: random.Random | None = None
        self._seed = f"{seed}:{path}"
        self._retry = 0

    def next_ms(self, error: ErrorInfo) -> float:
        """Milliseconds to wait before the next retry, at least what the error asks for (`retry_after_s`)."""
        asked = error.details.get("retry_after_s")
        # No run lasts longer than MS_MAX, and numbers far beyond it are no moments of any clock.
        if not isinstance(asked, int | float) or isinstance(asked, bool):
            asked = 0
        asked_ms = min(max(asked, 0), MS_MAX / 1_000) * 1_000.0
        return max(self._own_ms(), float(asked_ms))

    def _own_ms(self) -> float:
        delay = self._config.retry_delay_ms
        if self._config.retry_backoff != "exponential":
            return delay
        if self._sequence is None:
            self._sequence = random.Random(self._seed)
        self._retry += 1
        # Beyond 2**64 the cap has long decided, and the power would only grow.
        doubled: int = delay * 2 ** min(self._retry - 1, 64)
        return min(BACKOFF_MS_MAX, doubled) * (0.5 + self._sequence.random() / 2)


@dataclass(frozen=True, slots=True)
class Onward:
    """Where a failed visit leads.

    `end`: the run ends here, failed. `stop`: it ends degraded with the message received. `on_error`: the
    token goes there with the error. `absorbed`: it goes on as after success, degraded, with the payload
    received; with `fallback` its content is the fallback response.
    """

    how: Literal["end", "stop", "on_error", "absorbed"]
    fallback: bool = False


def after_failure(node: NodeDefinition, config: ExecutorConfig, absorbed: int) -> Onward:
    """What follows when a visited node failed and `absorbed` failures were absorbed before it in this run."""
    if node.on_error is not None:
        return Onward("on_error")
    if config.failure_policy == "fail_fast" or node.type is NodeType.ENTRY:
        return Onward("end")
    if absorbed >= config.max_node_failures:
        return Onward("end")
    if config.failure_policy == "best_effort":
        return Onward("stop")
    return Onward("absorbed", fallback=config.failure_policy == "fallback_simple")
