"""CPython's own tests of asyncio pass on the simulated loop, but for a list of which each entry has its reason."""

from __future__ import annotations

import asyncio
import fnmatch
import gc
import sys
import unittest
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest

from tests.support import cpython_asyncio
from tinyllm.testing.loop import SimulatedLoop

pytestmark = pytest.mark.unit

if not cpython_asyncio.has_cpythons_tests():
    pytest.skip("this Python comes without test.test_asyncio", allow_module_level=True)

CASES: Final = cpython_asyncio.cases()


@dataclass(frozen=True)
class LeftOut:
    """Why cases fail here; in Python *since* and later, *before* another. Those that would hang are not run."""

    reason: str
    since: tuple[int, int] = (3, 11)
    before: tuple[int, int] = (4, 0)
    runs: bool = True

    def holds(self) -> bool:
        return self.since <= sys.version_info[:2] < self.before


_PRIVATE: Final = LeftOut("looks into private parts of BaseEventLoop")
_NETWORK: Final = LeftOut("real sockets")
_PROCESS: Final = LeftOut("real processes")
_PIPE: Final = LeftOut("real pipes")
_SIGNAL: Final = LeftOut("real signals")
_WATCH: Final = LeftOut("real file descriptors")
_FACTORY: Final = LeftOut("its factory makes tasks of another class, whose hash is an address: refused")
_THREAD_CALLS: Final = LeftOut("a real thread calls into the loop, is refused, and would be waited for", runs=False)
_LOOP_GIVEN: Final = LeftOut("a SimulatedFuture is made by its loop only")

LEFT_OUT: Final[dict[str, LeftOut]] = {
    "base_events.BaseEventLoopTests.test__add_callback_*": _PRIVATE,
    "base_events.BaseEventLoopTests.test__run_once*": _PRIVATE,
    "base_events.BaseEventLoopTests.test_call_later": _PRIVATE,
    "base_events.BaseEventLoopTests.test_call_soon_non_callable": LeftOut("a check of debug mode"),
    "base_events.BaseEventLoopTests.test_check_thread": _THREAD_CALLS,
    "base_events.BaseEventLoopTests.test_create_named_task_with_custom_factory": _FACTORY,
    "base_events.BaseEventLoopTests.test_custom_run_forever_integration": LeftOut(_PRIVATE.reason, since=(3, 13)),
    "base_events.BaseEventLoopTests.test_default_exc_handler_broken": LeftOut(
        "expects in the log what goes into `unhandled` here"
    ),
    "base_events.BaseEventLoopTests.test_default_exc_handler_coro": LeftOut(
        "an exception that nobody looked at is reported when the loop is closed, not when the task is collected"
    ),
    "base_events.BaseEventLoopTests.test_not_implemented": _PRIVATE,
    "base_events.BaseEventLoopTests.test_run_forever_pre_stopped": _PRIVATE,
    "base_events.BaseEventLoopTests.test_set_exc_handler_custom": LeftOut(
        "expects the traceback of a handle, which debug mode keeps"
    ),
    "base_events.BaseEventLoopTests.test_set_task_factory": _FACTORY,
    "base_events.BaseEventLoopTests.test_shutdown_default_executor_timeout": LeftOut("real threads", since=(3, 13)),
    "base_events.BaseEventLoopTests.test_single_selecter_event_callback_after_stopping": _PRIVATE,
    "events.SelectEventLoopTests.test_add_signal_handler": _SIGNAL,
    "events.SelectEventLoopTests.test_bidirectional_pty": _PIPE,
    "events.SelectEventLoopTests.test_*_fds_after_closing": _WATCH,
    "events.SelectEventLoopTests.test_call_soon_threadsafe": _THREAD_CALLS,
    "events.SelectEventLoopTests.test_close": _SIGNAL,
    "events.SelectEventLoopTests.test_connect_accepted_socket*": _NETWORK,
    "events.SelectEventLoopTests.test_create_*": _NETWORK,
    "events.SelectEventLoopTests.test_datagram_send_*": LeftOut(_NETWORK.reason, since=(3, 13)),
    "events.SelectEventLoopTests.test_prompt_cancellation": _NETWORK,
    "events.SelectEventLoopTests.test_read_*": _PIPE,
    "events.SelectEventLoopTests.test_reader_callback": _WATCH,
    "events.SelectEventLoopTests.test_run_in_executor": LeftOut("asks for a thread: here a job runs inline"),
    "events.SelectEventLoopTests.test_server_close": _NETWORK,
    "events.SelectEventLoopTests.test_signal_handling_*": _SIGNAL,
    "events.SelectEventLoopTests.test_ssl_connect_accepted_socket": _NETWORK,
    "events.SelectEventLoopTests.test_subprocess_*": _PROCESS,
    "events.SelectEventLoopTests.test_timeout_rounding": _PRIVATE,
    "events.SelectEventLoopTests.test_unclosed_pipe_transport": _PIPE,
    "events.SelectEventLoopTests.test_write_*": _PIPE,
    "events.SelectEventLoopTests.test_writer_callback": _WATCH,
    "futures.CSubFutureTests.test_constructor_use_*": _LOOP_GIVEN,
    "futures.CSubFutureTests.test_constructor_without_loop": _LOOP_GIVEN,
    "futures2.FutureReprTests.test_recursive_repr_for_pending_tasks": LeftOut(
        "expects the repr of a task to show what it waits for", before=(3, 12)
    ),
    "pep492.CoroutineTests.test_debug_mode_manages_coroutine_origin_tracking": LeftOut("a feature of debug mode"),
    "runners.RunTests.test_asyncio_run_debug": LeftOut("debug mode from the environment, which no run may depend on"),
    "runners.RunTests.test_asyncio_run_without_uncancel": _FACTORY,
    "runners.RunTests.test_loop_factory_default_event_loop": LeftOut("asks for asyncio's own loop", since=(3, 13)),
    "runners.RunnerTests.test_interrupt_call_soon": LeftOut("spins until a real signal comes, and is a livelock"),
    "streams.StreamTests.test_async_writer_api*": _NETWORK,
    "streams.StreamTests.test_drain_raises": _NETWORK,
    "streams.StreamTests.test_eof_feed_when_closing_writer": _NETWORK,
    "streams.StreamTests.test_loop_is_closed_resource_warnings": _NETWORK,
    "streams.StreamTests.test_open_*": _NETWORK,
    "streams.StreamTests.test_read_all_from_pipe_reader": _PIPE,
    "streams.StreamTests.test_start_*": _NETWORK,
    "streams.StreamTests.test_unclosed_*": _NETWORK,
    "streams.StreamTests.test_unhandled_*": _NETWORK,
    "streams.StreamTests.test_wait_closed_on_close*": _NETWORK,
    "tasks.CTask_CFuture_Tests.test_log_destroyed_pending_task": LeftOut(
        "the loop keeps its pending tasks: none is collected that nobody else keeps"
    ),
    "tasks.CTask_CFuture_Tests.test_stop_while_run_in_complete": LeftOut(
        "expects the clock of CPython's TestLoop, which moves on once more after `stop`"
    ),
    "tasks.CTask_CFuture_Tests.test_task_repr_autogenerated": LeftOut("a task is called after its coroutine"),
    "tasks.RunCoroutineThreadsafeTests.*": LeftOut("a thread waits for the loop: refused, as a job runs inline"),
}
"""The cases that fail or are not run, each or each group with its reason."""


def left_out(case_id: str) -> LeftOut | None:
    held = (each for names, each in LEFT_OUT.items() if each.holds() and fnmatch.fnmatchcase(case_id, names))
    return next(held, None)


@pytest.fixture(autouse=True, scope="module")
def _collections_are_quick() -> Iterator[None]:
    """The cases collect garbage often; what the session has loaded so far need not be looked through."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def complaints(result: unittest.TestResult) -> list[str]:
    unexpected = [f"{case} was expected to fail" for case in result.unexpectedSuccesses]
    return [text for _case, text in (*result.errors, *result.failures)] + unexpected


@pytest.mark.parametrize("case_id", CASES)
def test_cpythons_own(case_id):
    why = left_out(case_id)
    if why is not None and not why.runs:
        pytest.skip(why.reason)
    result = cpython_asyncio.run_case(case_id, CASES[case_id])
    if result.skipped:
        pytest.skip(result.skipped[0][1])
    assert 1 == result.testsRun

    if why is not None:
        assert complaints(result), f"{case_id} passes and must not be left out any more"
        pytest.xfail(why.reason)
    assert [] == complaints(result), "\n".join(complaints(result))


def test_no_entry_of_the_list_is_there_for_nothing():
    held = [names for names, each in LEFT_OUT.items() if each.holds()]

    assert [] == [names for names in held if not fnmatch.filter(CASES, names)]


def test_almost_every_case_is_run_and_passes():
    assert 400 < sum(left_out(case_id) is None for case_id in CASES)


WAYS: Final = (
    "base_events.BaseEventLoopTests.test_run_forever_keyboard_interrupt",  # setUp
    "events.SelectEventLoopTests.test_run_until_complete",  # setUp
    "futures.CSubFutureDoneCallbackTests.test_callbacks_invoked_on_set_result",  # new_test_loop
    "locks.LockTests.test_lock_by_with_statement",  # the policy, by asyncio.Runner
    "tasks.CTask_CFuture_Tests.test_sleep",  # new_test_loop
    "tasks.SleepTests.test_sleep_zero",  # the policy, by asyncio.new_event_loop
)


@pytest.mark.parametrize("case_id", WAYS)
def test_whichever_way_a_case_gets_its_loop_it_is_the_simulated_one(case_id, monkeypatch):
    soon: list[SimulatedLoop] = []
    original = SimulatedLoop.call_soon

    def call_soon(self, *args, **kwargs):
        soon.append(self)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(SimulatedLoop, "call_soon", call_soon)
    monkeypatch.delattr(asyncio.BaseEventLoop, "call_soon")

    assert [] == complaints(cpython_asyncio.run_case(case_id, CASES[case_id]))
    assert soon
