"""Wall clocks: they jump, drift and are corrected, to the nanosecond."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.testing.clocks import WallClock
from tinyllm.testing.units import EPOCH

pytestmark = pytest.mark.unit

S = 1_000_000_000


class Truth:
    ns = 0

    def __call__(self) -> int:
        return self.ns


@pytest.fixture
def truth():
    return Truth()


@pytest.fixture
def clock(truth):
    return WallClock(truth)


def test_a_clock_begins_at_its_epoch_and_goes_with_the_world(truth, clock):
    assert EPOCH == clock.now() == datetime(2026, 1, 1, tzinfo=UTC)
    truth.ns = 90 * S + 1_999
    assert EPOCH + timedelta(seconds=90, microseconds=1) == clock.now()
    assert 1_767_225_690 * S + 1_999 == clock.time_ns()
    assert 1_767_225_690.000002 == pytest.approx(clock.time(), abs=1e-6)


def test_the_epoch_may_be_in_any_zone(truth):
    elsewhere = datetime(2020, 5, 17, 12, tzinfo=timezone(timedelta(hours=2)))
    assert elsewhere == WallClock(truth, epoch=elsewhere).now()


def test_an_epoch_without_a_zone_is_refused(truth):
    with pytest.raises(ValueError, match="epoch needs a time zone"):
        WallClock(truth, epoch=datetime(2026, 1, 1))  # noqa: DTZ001


def test_a_jump_moves_the_clock_and_its_correction_moves_it_back(truth, clock):
    clock.jump(-3_600_000)
    assert EPOCH - timedelta(hours=1) == clock.now()
    clock.jump(1_000)
    assert EPOCH - timedelta(hours=1) + timedelta(seconds=1) == clock.now()
    clock.correct()
    assert EPOCH == clock.now()


def test_a_clock_drifts_from_the_moment_that_it_is_told_to(truth, clock):
    truth.ns = 100 * S
    clock.drift(10_000)
    assert 0 == clock.wrong_by_ns()
    truth.ns = 200 * S
    assert 1 * S == clock.wrong_by_ns()


def test_a_new_drift_keeps_what_the_last_one_gained(truth, clock):
    clock.drift(10_000)
    truth.ns = 100 * S
    clock.drift(-20_000)
    assert 1 * S == clock.wrong_by_ns()
    truth.ns = 200 * S
    assert -1 * S == clock.wrong_by_ns()


def test_a_corrected_clock_drifts_no_more(truth, clock):
    clock.drift(10_000)
    truth.ns = 100 * S
    clock.correct()
    assert 0 == clock.wrong_by_ns()
    truth.ns = 200 * S
    assert 0 == clock.wrong_by_ns()


@given(ppm=st.integers(-1_000_000, 1_000_000), steps_ns=st.lists(st.integers(0, 10 * S)))
def test_a_drifting_clock_does_not_go_back(ppm, steps_ns):
    truth = Truth()
    clock = WallClock(truth)
    clock.drift(ppm)
    shown = [clock.time_ns()]
    for step_ns in steps_ns:
        truth.ns += step_ns
        shown.append(clock.time_ns())
    assert sorted(shown) == shown
