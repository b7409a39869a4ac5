"""`@pytest.mark.simulated`: an asynchronous test runs in a world, with or without `@given`."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest
from hypothesis import settings

pytest_plugins = ["pytester"]

HEAD = """
import asyncio
import pytest
from hypothesis import given, settings, strategies as st
from tinyllm.testing.faults import At, Cancelled
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.schedule import Hold
from tinyllm_strategies import worlds

settings.register_profile("here", max_examples=200, deadline=None, database=None, derandomize=True)
settings.load_profile("here")
"""


@pytest.fixture
def run(pytester):
    """Runs tests in this process, and gives the suite back its own profile, which they replace by theirs."""
    profile = settings.get_current_profile_name()

    def run_test(body):
        pytester.makepyfile(HEAD + body)
        return pytester.runpytest_inprocess("-q", "-p", "no:cacheprovider", "-p", "no:cov", "-p", "no:xdist")

    yield run_test
    settings.load_profile(profile)


def test_an_hour_of_sleep_costs_nothing(run):
    run(
        """
@pytest.mark.simulated
async def test_sleeps(world):
    await asyncio.sleep(3600)
    assert 3_600_000 == world.now_ms

@pytest.mark.simulated
async def test_needs_no_world():
    await asyncio.sleep(3600)
"""
    ).assert_outcomes(passed=2)


def test_the_mark_takes_a_plan_and_options_of_the_world(run):
    run(
        """
@pytest.mark.simulated(plan=WorldPlan(schedule=(Hold(1, 8),)), latency_ms=5)
async def test_stalls(world):
    await asyncio.sleep(1)
    assert 1_010 == world.now_ms
    assert 5_000_000 == world.links.latency_ns
"""
    ).assert_outcomes(passed=1)


def test_with_given_each_example_has_a_world_of_its_own(run):
    run(
        """
seen = []

@pytest.mark.simulated
@given(number=st.integers(), world=worlds())
async def test_drawn(number, world):
    seen.append(world)
    await asyncio.sleep(1)

@given(number=st.integers())
@pytest.mark.simulated
async def test_without_a_drawn_world(number):
    await asyncio.sleep(1)

@given(world=worlds())
@pytest.mark.simulated
async def test_in_the_other_order(world):
    await asyncio.sleep(1)

def test_there_were_many():
    assert len({id(world) for world in seen}) >= 50
"""
    ).assert_outcomes(passed=4)


def test_classes_parameters_and_fixtures_work(run):
    run(
        """
@pytest.fixture
def base():
    return 10

@pytest.mark.simulated
class TestAll:
    @pytest.mark.parametrize("more", [1, 2])
    async def test_method(self, base, more, world):
        await asyncio.sleep(base + more)
        assert (base + more) * 1000 == world.now_ms

    @given(world=worlds())
    async def test_drawn(self, world):
        await asyncio.sleep(1)
"""
    ).assert_outcomes(passed=3)


def test_a_failure_is_shrunk_and_its_story_told(run):
    result = run(
        """
@pytest.mark.simulated
@given(extra=st.integers(0, 3), world=worlds(families=()))
async def test_adds(extra, world):
    box = [0]
    async def add(delay):
        await asyncio.sleep(delay)
        value = box[0]
        await asyncio.sleep(0.001)
        box[0] = value + 1
    await asyncio.gather(add(0.001), add(0.01))
    assert 2 == box[0]
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "*Failing test case: test_adds(*",
            "*extra=0*",
            "*world=WorldPlan(schedule=(Hold(gap=*",
            "*What was given*",
            "*What happened (virtual milliseconds)*",
            "*add#* its whole process stalls for *",
            "*Reachable on stock asyncio: yes*",
            "*Live it again: WorldPlan(schedule=(Hold(gap=*, level=*),))*",
        ]
    )


def test_no_line_of_the_world_is_traced_to_explain_a_failure(run):
    result = run(
        """
import sys

def tracer():
    monitoring = getattr(sys, "monitoring", None)
    return monitoring.get_tool(3) if monitoring else type(getattr(sys.gettrace(), "__self__", None)).__module__

tracers = set()

@pytest.mark.simulated
@given(world=worlds(), number=st.integers())
async def test_fails(world, number):
    tracers.add(tracer())
    if number > 1_000:
        raise ValueError

def test_was_not_traced():
    assert 1 == len(tracers)
    assert "hypothesis" not in str(tracers)

def test_the_settings_stay():
    assert "explain" in str(test_fails._hypothesis_internal_use_settings.phases)
"""
    )
    result.assert_outcomes(passed=2, failed=1)


def test_each_of_several_failures_tells_its_story(run):
    result = run(
        """
@pytest.mark.simulated
@given(number=st.integers(0, 20))
async def test_two_ways(number, world):
    world.note("here")
    if number == 3:
        raise ValueError("three")
    if number == 7:
        raise KeyError("seven")
"""
    )
    result.assert_outcomes(failed=1)
    assert 2 == result.stdout.str().count("Live it again: WorldPlan()")


def test_a_cancellation_that_escapes_is_a_failure_of_the_test(run):
    result = run(
        """
@pytest.mark.simulated
@given(world=worlds(families=()))
async def test_leaks(world):
    task = asyncio.create_task(asyncio.sleep(1))
    await asyncio.sleep(0)
    task.cancel()
    await task
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*CancellationEscapedError*", "*Live it again: WorldPlan()*"])


def test_hypothesis_knows_the_tests_apart_as_it_does_without_the_mark(run):
    run(
        """
from hypothesis.internal.reflection import function_digest
from tinyllm.testing.simulated import SimulatedTest
from _tinyllm_pytest import _plain

async def one(): await asyncio.sleep(1)
async def other(): await asyncio.sleep(2)

def test_digests():
    digests = [function_digest(_plain(SimulatedTest(test), test)) for test in (one, other)]
    assert [function_digest(one), function_digest(other)] == digests
"""
    ).assert_outcomes(passed=1)


def test_the_fixture_is_a_new_world_for_each_example(run):
    run(
        """
@pytest.mark.simulated
@given(number=st.integers(0, 100))
async def test_given(number, world):
    await asyncio.sleep(number)
    assert number * 1000 == world.now_ms
"""
    ).assert_outcomes(passed=1)


def test_a_failure_without_given_tells_its_story_too(run):
    result = run(
        """
@pytest.mark.simulated(plan=WorldPlan(strikes=(At(point="await", fault=Cancelled()),)))
async def test_times_out(world):
    await world.may_time_out(asyncio.sleep(1))
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*TimeoutError*", "*is cancelled where it waits*"])


def test_what_is_wrong_after_the_storm_fails_the_test(run):
    result = run(
        """
@pytest.mark.simulated
async def test_leaves_a_failed_task(world):
    async def fails():
        raise ValueError("unseen")
    asyncio.create_task(fails())
    await asyncio.sleep(1)

@pytest.mark.simulated
async def test_promises_too_much(world):
    world.eventually(lambda: False)

@pytest.mark.simulated
async def test_waits_for_ever(world):
    await asyncio.Event().wait()
"""
    )
    result.assert_outcomes(failed=3)
    result.stdout.fnmatch_lines(["*never retrieved: ValueError: unseen*", "*stuck at 0 s*"])


def test_a_test_that_escapes_the_world_is_told(run):
    result = run(
        """
lives = []

@pytest.mark.simulated
async def test_remembers(world):
    lives.append(1)
    await asyncio.sleep(len(lives))
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*NotDeterministicError: one plan, two lives*", "*first: *", "*then: *"])


def test_with_fixtures_that_a_life_may_change_each_is_lived_once(run):
    run(
        """
lives = []

@pytest.fixture
def changed():
    return lives

@pytest.mark.simulated
async def test_remembers(world, changed):
    changed.append(1)
    await asyncio.sleep(len(changed))
    assert 1 == len(changed)
"""
    ).assert_outcomes(passed=1)


def test_arguments_that_a_test_changes_are_given_to_its_second_life_as_they_were(run):
    run(
        """
@pytest.mark.simulated
@given(numbers=st.lists(st.integers(), min_size=1))
async def test_empties(numbers):
    while numbers:
        numbers.pop()
        await asyncio.sleep(1)
"""
    ).assert_outcomes(passed=1)


def test_assumptions_and_skips_work(run):
    result = run(
        """
from hypothesis import assume

@pytest.mark.simulated
@given(number=st.integers(0, 10))
async def test_assumes(number):
    assume(number % 2)
    await asyncio.sleep(number)

@pytest.mark.simulated
async def test_skips():
    pytest.skip("not today")

@pytest.mark.simulated
async def test_fails_by_name():
    pytest.fail("by name")
"""
    )
    result.assert_outcomes(passed=1, skipped=1, failed=1)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("@pytest.mark.simulated\ndef test_plain(): pass", "*is marked as simulated and is no `async def`*"),
        ("@pytest.mark.simulated(3)\nasync def test_args(): pass", "*the mark takes keywords only*"),
        ("@pytest.mark.simulated(plan=3)\nasync def test_plan(world): pass", "*plan is a WorldPlan, not 3*"),
        ("@pytest.mark.simulated(colour=3)\nasync def test_option(): pass", "*the mark takes *, not colour*"),
        (
            "@pytest.mark.simulated\n@given(a=worlds(), b=worlds())\nasync def test_two(a, b): pass",
            "*a test has one world, but a and b are plans of worlds*",
        ),
    ],
)
def test_wrong_use_is_told(run, body, why):
    result = run(body)
    assert 0 == result.parseoutcomes().get("passed", 0)
    result.stdout.fnmatch_lines([why])


def test_without_the_mark_the_fixture_is_a_world_to_run_programs_in(run):
    run(
        """
def test_plain(world):
    async def main():
        await asyncio.sleep(5)
        return 7
    assert 7 == world.run(main)
    assert 5_000 == world.now_ms
"""
    ).assert_outcomes(passed=1)


def test_nothing_of_the_suite_is_imported_by_a_run_that_needs_none_of_it(pytester):
    pytester.makepyfile(
        """
import sys

def test_plain():
    assert not [name for name in sys.modules if name.startswith(("tinyllm", "hypothesis"))]
"""
    )
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest", "-p", "no:cov")
    result.assert_outcomes(passed=1)


def test_the_suite_keeps_its_profile():
    """The others here run before it: what they loaded must be gone."""
    chosen = os.environ.get("TINYLLM_PROFILE", "dev")
    assert chosen == settings.get_current_profile_name()


def test_the_example_of_the_guide_ends_as_the_guide_says(run):
    guide = (Path(__file__).parents[3] / "docs" / "world.md").read_text(encoding="utf-8")
    example, told = re.findall(r"```(?:python)?\n(.*?)```", guide, re.DOTALL)[:2]
    _, _, story = told.partition("\n\n")
    plan = re.search(r"Live it again: (.*)", story).group(1)
    mark = f"\nfrom tinyllm.testing.faults import Refused\n@pytest.mark.simulated(plan={plan})\n"

    run(example).assert_outcomes(passed=1, failed=1)
    again = run(re.sub(r"\n@pytest.mark.simulated\n@given.*\n", mark, example))

    again.assert_outcomes(passed=1, failed=1)
    printed = [line.removeprefix("E").strip() for line in again.outlines]
    assert "\n".join(map(str.strip, story.strip().splitlines())) in "\n".join(printed)


def test_the_example_among_the_examples_holds(run):
    example = Path(__file__).parents[3] / "examples" / "apps" / "test_ask.py"
    run(example.read_text(encoding="utf-8")).assert_outcomes(passed=2)


def test_with_a_fixture_the_life_that_failed_is_the_one_that_is_told(run):
    result = run(
        """
@pytest.fixture
def seen():
    return []

@pytest.mark.simulated
async def test_fails(world, seen):
    seen.append(1)
    world.note(f"life {len(seen)}")
    assert len(seen) > 1, "the real one"
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*the real one*", "*note * life 1*"])


def test_a_test_that_draws_as_it_goes_is_lived_once_and_shrinks(run):
    result = run(
        """
@pytest.mark.simulated
@given(world=worlds(), data=st.data())
async def test_draws(world, data):
    assert data.draw(st.integers(0, 100)) < 50
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Draw 1: 50*", "*What was given*"])


def test_what_else_was_wrong_is_told_beside_the_failure_of_the_test(run):
    result = run(
        """
@pytest.mark.simulated
async def test_fails(world):
    async def breaks():
        raise KeyError("no such table")

    asyncio.create_task(breaks())
    await asyncio.sleep(1)
    assert False
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*Also wrong*", "*no such table*"])


def test_a_life_may_take_longer_than_the_deadline_of_hypothesis(run):
    run(
        """
@pytest.mark.simulated
@settings(deadline=1, max_examples=5)
@given(world=worlds(families=()))
async def test_takes_long(world):
    for _ in range(2_000):
        await asyncio.sleep(0.4)
"""
    ).assert_outcomes(passed=1)


def test_two_plans_for_one_test_are_refused(run):
    result = run(
        """
@pytest.mark.simulated(plan=WorldPlan(seed=3))
@given(world=worlds())
async def test_two(world):
    pass
"""
    )
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["*@given draws another*"])
