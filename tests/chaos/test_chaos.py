"""The chaos injector: it fails at its rate, takes its time, counts, and does the same again."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from tinyllm.testing.chaos import ChaosError, ChaosInjector
from tinyllm.testing.faults import FaultError
from tinyllm.testing.loop import SimulatedLoop, run
from tinyllm_strategies.chaos import chaos_injectors

__all__ = ["ChaosInjector"]

pytestmark = pytest.mark.chaos


async def outcomes(chaos, calls):
    """True for each call that failed."""
    return [await fails(chaos) for _ in range(calls)]


async def fails(chaos):
    try:
        await chaos.maybe_fail("op")
    except ChaosError:
        return True
    return False


def test_it_fails_at_about_its_rate():
    chaos = ChaosInjector(failure_rate=0.3, latency_ms=100)
    failures = sum(run(outcomes(chaos, 1_000)))
    # The seed is fixed, so this is one number and not a matter of luck.
    assert 250 < failures < 350
    assert {
        "total_calls": 1_000,
        "injected_failures": failures,
        "actual_failure_rate": failures / 1_000,
    } == chaos.get_stats()


def test_at_rate_0_it_never_fails_and_at_rate_1_always():
    assert not any(run(outcomes(ChaosInjector(failure_rate=0), 100)))
    assert all(run(outcomes(ChaosInjector(failure_rate=1), 100)))


def test_nobody_having_called_is_a_rate_of_0():
    assert {
        "total_calls": 0,
        "injected_failures": 0,
        "actual_failure_rate": 0.0,
    } == ChaosInjector().get_stats()


def test_an_error_says_which_operation_failed():
    chaos = ChaosInjector(failure_rate=1)
    with pytest.raises(ChaosError, match="chaos: 'fetch' failed, call 0 of this injector") as caught:
        run(chaos.maybe_fail("fetch"))
    assert ("fetch", 0) == (caught.value.operation, caught.value.number)
    assert isinstance(caught.value, ConnectionError)


def test_calls_take_virtual_time_up_to_the_latency():
    async def program():
        loop, chaos, took = asyncio.get_running_loop(), ChaosInjector(failure_rate=0, latency_ms=100), []
        for _ in range(300):
            before = loop.time()
            await chaos.maybe_fail("op")
            took.append(round((loop.time() - before) * 1_000))
        return took

    took = run(program())
    assert (0, 100) == (min(took), max(took))


def test_without_latency_a_call_takes_no_time():
    loop = SimulatedLoop()
    loop.run_until_complete(outcomes(ChaosInjector(latency_ms=0), 100))
    assert 0 == loop.time_ns
    loop.close()


def test_the_same_seed_fails_the_same_calls_and_another_seed_others():
    first, again, other = (run(outcomes(ChaosInjector(0.5, 10, seed=seed), 64)) for seed in (1, 1, 2))
    assert first == again != other


def test_calls_that_overlap_are_decided_in_the_order_in_which_they_come():
    async def together(chaos):
        return await asyncio.gather(*(fails(chaos) for _ in range(64)))

    alone = run(outcomes(ChaosInjector(0.5, 100, seed=3), 64))
    assert alone == run(together(ChaosInjector(0.5, 100, seed=3)))


def test_it_works_on_the_loop_of_asyncio_too():
    assert asyncio.run(outcomes(ChaosInjector(failure_rate=1, latency_ms=0), 3)) == [True] * 3


# --- decided by bytes ------------------------------------------------------------------------------------


def test_byte_k_decides_call_k_and_a_missing_byte_is_no_failure():
    chaos = ChaosInjector(failure_rate=0.5, decisions=bytes([0, 127, 128, 255]))
    assert [False, False, True, True, False, False] == run(outcomes(chaos, 6))


@given(decisions=st.binary(), rate=st.floats(0, 1))
def test_byte_0_is_no_failure_at_any_rate(decisions, rate):
    chaos = ChaosInjector(failure_rate=rate, latency_ms=0, decisions=decisions)
    failed = run(outcomes(chaos, len(decisions) + 1))
    assert not any(failure for failure, byte in zip(failed, decisions + b"\0", strict=True) if not byte)


def test_any_rate_above_0_leaves_one_byte_that_fails():
    assert [True] == run(outcomes(ChaosInjector(failure_rate=1e-9, decisions=b"\xff"), 1))
    assert [False] == run(outcomes(ChaosInjector(failure_rate=0, decisions=b"\xff"), 1))


def test_bytes_decide_how_long_a_call_takes():
    loop = SimulatedLoop()
    loop.run_until_complete(outcomes(ChaosInjector(failure_rate=0, latency_ms=255, decisions=b"\x00\x01\xff"), 9))
    assert 256_000_000 == loop.time_ns
    loop.close()


@pytest.mark.parametrize(
    "chaos",
    [ChaosInjector(), ChaosInjector(0.5, 0, seed=7), ChaosInjector(1, latency_ms=5, decisions=b"\x00\xff")],
    ids=repr,
)
def test_it_prints_as_the_code_that_makes_it(chaos):
    made = eval(repr(chaos))
    assert run(outcomes(chaos, 20)) == run(outcomes(made, 20))
    assert repr(chaos) == repr(made)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"failure_rate": 1.1}, "failure_rate is a number from 0 to 1, not 1.1"),
        ({"failure_rate": -0.1}, "failure_rate is"),
        ({"failure_rate": float("nan")}, "failure_rate is"),
        ({"failure_rate": True}, "failure_rate is"),
        ({"failure_rate": "0.3"}, "failure_rate is"),
        ({"latency_ms": -1}, "latency_ms is a whole number from 0 to"),
        ({"latency_ms": 0.5}, "latency_ms is"),
        ({"latency_ms": None}, "latency_ms is"),
        ({"seed": "x"}, "seed is a whole number, not 'x'"),
        ({"decisions": [1]}, r"decisions are bytes, not \[1\]"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings, message):
    with pytest.raises(FaultError, match=message):
        ChaosInjector(**settings)


# --- drawn -----------------------------------------------------------------------------------------------


async def fetch(chaos, *, tries):
    for number in range(tries):
        try:
            await chaos.maybe_fail("fetch")
            return "fetched"
        except ChaosError:
            if number + 1 == tries:
                raise
    return None


@given(chaos=chaos_injectors(max_calls=2))
@settings(max_examples=50)
def test_a_third_try_survives_an_injector_of_two_calls(chaos):
    assert "fetched" == run(fetch(chaos, tries=3))


def test_a_property_finds_the_failure_that_two_tries_do_not_survive_and_it_is_the_least():
    def breaks(chaos):
        try:
            run(fetch(chaos, tries=2))
        except ChaosError:
            return True
        return False

    chaos = find(chaos_injectors(), breaks)
    # Which rate and which bytes is a matter of the search; that no byte and no time is too much is not.
    assert (2, 0) == (len(chaos.decisions or b""), chaos.latency_ms)


def test_the_simplest_injector_never_fails_and_takes_no_time():
    chaos = find(chaos_injectors(), lambda _: True)
    assert "ChaosInjector(failure_rate=0.3, latency_ms=0, decisions=b'')" == repr(chaos)
