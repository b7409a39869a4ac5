"""The schedule as a value: bytes, JSON, and the way to simpler ones."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.testing.schedule import Hold, ScheduleError, decode, encode, from_json, simpler, to_json

pytestmark = pytest.mark.unit

holds = st.builds(Hold, gap=st.integers(0, 15), level=st.integers(0, 11))
schedules = st.lists(holds, max_size=8).map(tuple)
quiet = settings(deadline=None, max_examples=100)


@quiet
@given(schedules)
def test_decode_undoes_encode(schedule):
    assert schedule == decode(encode(schedule))


@quiet
@given(schedules)
def test_a_schedule_survives_json(schedule):
    assert schedule == from_json(json.loads(json.dumps(to_json(schedule))))


@quiet
@given(st.binary(max_size=64))
def test_every_byte_string_is_a_schedule_of_at_most_one_hold_a_byte(data):
    assert len(decode(data)) <= len(data)


@quiet
@given(st.binary(max_size=64), st.integers(0, 64))
def test_a_zero_byte_means_nothing_wherever_it_stands(data, at):
    assert decode(data) == decode(data[:at] + b"\0" + data[at:])


def test_high_nibbles_0_and_13_to_15_are_skipped():
    used = {byte >> 4 for byte in range(256) if decode(bytes([byte]))}

    assert used == set(range(1, 13))


def test_the_high_nibble_is_the_level_plus_one_and_the_low_one_the_gap():
    assert decode(bytes([0x1F, 0xC0])) == (Hold(gap=15, level=0), Hold(gap=0, level=11))


def test_untimed_decoding_skips_the_holds_for_a_time_and_keeps_the_others():
    data = bytes((level + 1) << 4 for level in range(12))

    assert [hold.level for hold in decode(data, timed=False)] == [0, 1, 2, 3, 4, 5, 6]


def test_a_level_lasts_for_steps_or_for_a_time_and_never_both():
    lasting = [(Hold(0, level).steps, Hold(0, level).time_ns) for level in range(12)]

    assert lasting[:7] == [(1, None), (2, None), (4, None), (8, None), (16, None), (32, None), (64, None)]
    assert lasting[7:] == [(None, 10**exponent) for exponent in (6, 7, 8, 9, 10)]


@pytest.mark.parametrize(
    ("gap", "level", "words"),
    [
        (-1, 0, "gap must be from 0 to 15, not -1; the nearest allowed is 0"),
        (16, 0, "gap must be from 0 to 15, not 16; the nearest allowed is 15"),
        (0, 12, "level must be from 0 to 11, not 12; the nearest allowed is 11"),
        (0, True, "level must be an int from 0 to 11, not True"),
        ("1", 0, "gap must be an int from 0 to 15, not '1'"),
    ],
)
def test_a_hold_outside_its_bounds_is_refused_with_the_nearest_that_is_allowed(gap, level, words):
    with pytest.raises(ScheduleError) as caught:
        Hold(gap=gap, level=level)

    assert words == str(caught.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"gap": 1}, "a schedule must be a list of holds"),
        ([{"gap": 1, "level": 2}, {"gap": 1}], "hold 1 must be an object with exactly gap and level"),
        ([{"gap": 1, "level": 2, "x": 3}], "hold 0 must be an object with exactly gap and level"),
        ([{"gap": 99, "level": 2}], "hold 0: gap must be from 0 to 15"),
        ([7], "hold 0 must be an object"),
    ],
)
def test_json_that_is_no_schedule_is_refused_with_the_entry(value, words):
    with pytest.raises(ScheduleError, match=words):
        from_json(value)


def test_a_hold_cannot_be_changed_and_has_no_dict():
    hold = Hold(1, 2)

    with pytest.raises(AttributeError):
        hold.gap = 3
    assert not hasattr(hold, "__dict__")


def test_nothing_is_simpler_than_no_hold():
    assert list(simpler(())) == []


def test_a_dropped_hold_leaves_the_next_at_its_place_or_the_gaps_alone():
    assert list(simpler((Hold(2, 5), Hold(1, 0)))) == [
        (Hold(4, 0),),
        (Hold(1, 0),),
        (Hold(2, 5),),
        (Hold(2, 2), Hold(1, 0)),
    ]


@quiet
@given(schedules)
def test_each_candidate_has_fewer_holds_or_as_many_and_a_lower_level(schedule):
    def weight(holds_):
        return len(holds_), sum(hold.level for hold in holds_)

    candidates = list(simpler(schedule))

    assert all(weight(candidate) < weight(schedule) for candidate in candidates)
    assert len(set(candidates)) == len(candidates)


@quiet
@given(schedules)
def test_every_hold_can_be_dropped_and_every_level_halved(schedule):
    candidates = set(simpler(schedule))

    for index, hold in enumerate(schedule):
        assert schedule[:index] + schedule[index + 1 :] in candidates
        if hold.level:
            halved = Hold(hold.gap, hold.level // 2)
            assert (*schedule[:index], halved, *schedule[index + 1 :]) in candidates
