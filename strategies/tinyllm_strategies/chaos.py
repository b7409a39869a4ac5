"""Chaos injectors whose failures are drawn."""

from __future__ import annotations

from hypothesis import strategies as st

from tinyllm.testing.chaos import ChaosInjector

RATES = (0.3, 0.05, 0.6)
LATENCIES_MS = (0, 1, 100, 10_000)


def chaos_injectors(*, max_calls: int = 64) -> st.SearchStrategy[ChaosInjector]:
    """Injectors that let any of their first `max_calls` calls fail, and the later ones succeed.

    Shrinks to one that never fails and takes no time; else to few and early failures, as fast as they can be.
    """
    return st.builds(
        ChaosInjector,
        failure_rate=st.sampled_from(RATES),
        latency_ms=st.sampled_from(LATENCIES_MS),
        decisions=st.binary(max_size=max_calls),
    )
