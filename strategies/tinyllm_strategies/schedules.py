"""Who runs next, drawn once before a run."""

from __future__ import annotations

from hypothesis import strategies as st

from tinyllm.testing.schedule import Schedule, decode


def schedules(*, timed: bool = True, max_size: int = 64) -> st.SearchStrategy[Schedule]:
    """Schedules; without `timed`, only such as let no simulated time pass. Shrinks to (): stock asyncio."""
    return st.binary(max_size=max_size).map(lambda data: decode(data, timed=timed))
