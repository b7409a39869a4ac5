"""The units of virtual time, which is counted in whole nanoseconds, and the moment at which every world begins."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

__all__ = ["EPOCH", "NS_PER_MS", "NS_PER_S"]

NS_PER_MS: Final = 1_000_000
NS_PER_S: Final = 1_000_000_000

#: What right clocks show when a world begins.
EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)
