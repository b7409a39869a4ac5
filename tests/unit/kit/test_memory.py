"""Memory: a budget is kept, pressure bites and ends, and the accounts balance."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.testing.memory import Memory, MemoryAccountError, OutOfMemoryError

pytestmark = pytest.mark.unit


def test_what_fits_the_budget_to_the_byte_is_given_and_one_more_is_refused():
    memory = Memory(100)
    memory.allocate(60)
    memory.allocate(40)
    with pytest.raises(OutOfMemoryError, match="1 bytes refused: 100 of a budget of 100 bytes are in use") as caught:
        memory.allocate(1)
    assert (1, 100, 100) == (caught.value.size_bytes, caught.value.used_bytes, caught.value.budget_bytes)
    assert isinstance(caught.value, MemoryError)
    assert 100 == memory.used_bytes


def test_without_a_budget_nothing_is_refused():
    memory = Memory()
    memory.allocate(1 << 50)
    assert memory.budget_bytes is memory.free_bytes is None


def test_what_was_freed_can_be_allocated_again():
    memory = Memory(100)
    memory.allocate(100)
    memory.free(30)
    assert 30 == memory.free_bytes
    memory.allocate(30)
    assert 100 == memory.most_bytes


def test_a_reservation_ends_with_its_block_and_with_an_error():
    memory = Memory(100)
    with memory.reserve(70):
        assert 30 == memory.free_bytes
    with pytest.raises(ZeroDivisionError), memory.reserve(70):
        raise ZeroDivisionError
    assert (0, 70) == (memory.used_bytes, memory.most_bytes)


def test_a_refused_reservation_takes_nothing():
    memory = Memory(100)
    with pytest.raises(OutOfMemoryError), memory.reserve(101):
        pytest.fail("it was refused, so its block must not run")
    assert 0 == memory.used_bytes


def test_under_pressure_what_is_allocated_stays_and_more_is_refused():
    memory = Memory(100)
    memory.allocate(60)
    memory.shrink(50)
    assert (60, 50, 0) == (memory.used_bytes, memory.budget_bytes, memory.free_bytes)
    with pytest.raises(OutOfMemoryError):
        memory.allocate(1)
    memory.free(60)
    memory.allocate(50)


def test_when_the_pressure_ends_the_first_budget_holds_again():
    memory = Memory(100)
    memory.shrink(0)
    with pytest.raises(OutOfMemoryError):
        memory.allocate(1)
    memory.restore()
    memory.allocate(100)
    endless = Memory()
    endless.shrink(10)
    endless.restore()
    assert endless.budget_bytes is None


def test_pressure_never_widens_a_budget():
    memory = Memory(10)
    memory.shrink(1_000)
    assert 10 == memory.budget_bytes


def test_a_crash_forgets_what_was_allocated():
    memory = Memory(10)
    memory.allocate(10)
    memory.clear()
    assert 10 == memory.free_bytes


@pytest.mark.parametrize("size", [-1, 1.5, True, "1", None])
def test_a_size_that_is_none_is_refused(size):
    memory = Memory(100)
    for call in (memory.allocate, memory.free, memory.shrink):
        with pytest.raises(MemoryAccountError, match="a whole number of at least 0"):
            call(size)


def test_more_than_is_in_use_cannot_be_freed():
    memory = Memory(100)
    memory.allocate(5)
    with pytest.raises(MemoryAccountError, match="6 bytes cannot be freed, for only 5 are in use"):
        memory.free(6)
    assert 5 == memory.used_bytes


@given(budget=st.integers(0, 50), sizes=st.lists(st.integers(0, 20)))
def test_the_accounts_balance(budget, sizes):
    memory = Memory(budget)
    held: list[int] = []
    for size in sizes:
        try:
            memory.allocate(size)
        except OutOfMemoryError:
            assert sum(held) + size > budget
        else:
            held.append(size)
        assert sum(held) == memory.used_bytes <= budget
    for size in held:
        memory.free(size)
    assert 0 == memory.used_bytes
