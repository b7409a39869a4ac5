"""An event loop without a clock, sockets or threads, on which a run is a function of its inputs.

Tasks, task groups, timeouts, locks, queues, asynchronous generators, threads of `asyncio.to_thread` and
context variables work as on the loop of asyncio. Time stands still while anything is ready and then jumps
to the next timer, so `sleep(3600)` costs microseconds. With an empty schedule callbacks run in exactly
the order of asyncio; a schedule (see `tinyllm.testing.schedule`) holds single task wake-ups back.

Two house rules. Time is in integer nanoseconds, because floats drift; `time()` gives seconds to asyncio
only. And nothing here may depend on the real clock, on an address, or on the order of a set.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Generator, Iterable
from contextvars import Context
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Any, ClassVar, Final, TypeVar, TypeVarTuple, cast

from tinyllm.testing.holds import AppliedHold, Holds
from tinyllm.testing.leftovers import bury_dead, close_asyncgens, end_leftovers, report_unseen, start_closing
from tinyllm.testing.loop_errors import FencedError, LivelockError, SimulationError, StuckError
from tinyllm.testing.processes import Governor, Host, Process
from tinyllm.testing.schedule import Hold, Schedule
from tinyllm.testing.tasks import (
    NOBODY,
    OUTSIDE,
    OWNER,
    STEP,
    TIMER,
    Runnable,
    SimulatedFuture,
    SimulatedHandle,
    SimulatedTask,
    SimulatedTimer,
    current_process,
    forget_maker,
    name_of,
    nobodys_context,
)
from tinyllm.testing.threads import fence_wait, is_job, job_name, run_job
from tinyllm.testing.unhandled import ReportingLoop
from tinyllm.testing.waiting import Waiting, place_of, waiting

__all__ = [
    "ANY",
    "OWNER",
    "AppliedHold",
    "FencedError",
    "LivelockError",
    "SimulatedFuture",
    "SimulatedLoop",
    "SimulatedTask",
    "SimulatedTimer",
    "SimulationError",
    "StuckError",
    "Waiting",
    "run",
]

_T = TypeVar("_T")
_Ts = TypeVarTuple("_Ts")

ANY: Final[Any] = object()
"""Every owner, where an owner may be given."""

STALL_STEP_NS: Final = 1_000
"""How long the process stands still for each step of a hold that meets the wake-up of a timer."""

_END_OF_SLEEP: Final = asyncio.futures._set_result_unless_cancelled  # type: ignore[attr-defined]
"""What the timer of a sleep calls: it wakes the task, and no code of the program."""

_WATCHED_STEPS: Final = 64
"""How many of the last steps a LivelockError tells about."""

_CLOSE_STEPS: Final = 10_000
"""How many steps leftovers may take in all when the loop is closed."""

_COLLECT_STEPS: Final = 100_000
"""After so many steps cycles are collected, at a moment that does not hang on what else the process has made."""

_PURGE_TIMERS: Final = 64
"""From this many cancelled timers on the heap is cleared of them, once they are more than half of it."""


class SimulatedLoop(ReportingLoop):
    """An event loop in virtual time that starts at 0, and in which *schedule* is the only freedom.

    With *external_only* a hold delays only wake-ups caused by a timer, by simulated input
    (`call_external`) or by the end of an executor job: the moments that are not in the program's hands.
    Otherwise it delays any wake-up, also in orders that asyncio never produces. A hold counts, and takes,
    only contested wake-ups: those that find the wake-up of another task ready or held. A hold for steps
    ends early when nothing else is ready, before time moves.

    With *stalls* as well no wake-up is held alone: the whole process stands still for the hold's time (1 us for
    each of its steps), and then goes on in the order of asyncio. On stock asyncio timers run in the order of
    their moments, however late, and callbacks in that of their call, so that holding one of them alone makes
    orders that it never has; a step that takes long, or a loop that wakes up late, is all that can happen there.
    What comes from outside may come late as well: see `outside_delay_ns`. Every wake-up counts then, contested
    or not, and so does whatever comes from outside.

    The schedule begins when *schedule_begins* of what counts have passed.

    Public to read: `steps` run so far (callbacks of every kind; at most *max_steps* in the life of the
    loop), `applied_holds`, and `unhandled`, the contexts that reached the default exception handler.
    Nothing is printed.

    Raises:
        TypeError: *schedule* holds something that is no Hold.
    """

    #: What the engine makes of the tasks that it does not make through `create_task`.
    tinyllm_task_class: ClassVar[type[asyncio.Task[Any]]] = SimulatedTask

    def __init__(
        self,
        schedule: Schedule = (),
        *,
        external_only: bool = True,
        stalls: bool = False,
        schedule_begins: int = 0,
        max_steps: int = 1_000_000,
        max_still_steps: int | None = None,
    ) -> None:
        for hold in schedule:
            if not isinstance(hold, Hold):
                raise TypeError(f"a schedule is a tuple of Hold, but it has {hold!r}; see schedule.decode")
        super().__init__()
        self.steps = 0
        #: How long calls that block have kept the callback that runs now.
        self.blocked_ns = 0
        #: How many batches of callbacks were begun: between two of them asyncio looks at its timers.
        self.batch = 0
        self._in_front = 0
        self._batch_left: int | None = None
        #: The last job of each executor with one thread, which runs them one after the other.
        self._last_jobs: weakref.WeakKeyDictionary[Any, SimulatedTask[Any]] = weakref.WeakKeyDictionary()
        self._default_executor: Any = None
        # How many steps may run while time stands still, and the step at which it last moved.
        self._max_still_steps = max_still_steps
        self._moved_at_step = 0
        self._spun = False
        self._collect_at_step = _COLLECT_STEPS
        #: Whether the clock has moved and no step of the program has run since.
        self._just_woke = False
        self.next_task_number = count(1).__next__
        self.next_future_number = count(1).__next__
        self._next_sequence = count(1).__next__
        self._now_ns = 0
        self._ready: deque[Runnable] = deque()
        # Timers, and wake-ups held for a time. The sequence decides ties, so handles are never compared.
        self._timers: list[tuple[int, int, Runnable]] = []
        self._cancelled_timers = 0
        self._holds = Holds(schedule, schedule_begins)
        self.applied_holds = self._holds.applied
        self._stalls = stalls and external_only
        #: What every wake-up counts as, unless something outside the program caused it.
        self._at_least = OUTSIDE if not external_only else STEP if stalls else NOBODY
        self._external = NOBODY
        self._ready_wakeups = 0
        self._task_steps = 0
        self._max_steps = max_steps
        self._recent: list[str] = []
        self._tasks: dict[int, SimulatedTask[Any]] = {}
        self._tasks_prune_at = 64
        self._dead: list[SimulatedTask[Any]] = []
        self._asyncgens: dict[int, tuple[weakref.ref[AsyncGenerator[Any, Any]], Process | None]] = {}
        #: What the executor job that runs now has cost so far; None while none does.
        self.job_cost_ns: int | None = None
        #: What the answer of the executor job that runs now waits for; set by a fault.
        self.job_awaits: asyncio.Future[None] | None = None
        #: The host whose process everything belongs to that says none, in a world of hosts.
        self.home: Host | None = None
        #: Asked before each callback, while some process of the world is not simply up.
        self.governor: Governor | None = None
        self._task_factory: Callable[..., Any] | None = None
        self._thread = threading.get_ident()
        self._running = False
        self._stopping = False
        self._debug = False

    def __repr__(self) -> str:
        state = "running" if self._running else "closed" if self._closed else "idle"
        return f"<SimulatedLoop {state} at {self._now_ns} ns>"

    # --- time and callbacks --------------------------------------------------------------------------

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return (self._now_ns + self.blocked_ns) / 1e9

    @property
    def time_ns(self) -> int:
        """Virtual nanoseconds since the loop was made."""
        return self._now_ns + self.blocked_ns

    @property
    def batch_ns(self) -> int:
        """The time at which the callback that runs now began: `time_ns` without what blocked it since."""
        return self._now_ns

    def call_soon(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> SimulatedHandle:
        if self._closed:  # before the call, because this method is the busiest
            self._check_open()
        handle = SimulatedHandle(callback, args, self, context, self._external or self._at_least)
        if handle.task is not None:
            self._ready_wakeups += 1
        self._ready.append(handle)
        return handle

    def call_soon_threadsafe(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> SimulatedHandle:
        """`call_soon`, from the loop's own thread.

        Raises:
            FencedError: called from another thread, whose moment nobody could repeat.
        """
        if threading.get_ident() != self._thread:
            self.refuse("call_soon_threadsafe from another thread")
        if self._running and asyncio._get_running_loop() is None:  # so it comes from a job
            fence_wait(callback)
        return self.call_soon(callback, *args, context=context)

    def call_external(
        self, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> SimulatedHandle:
        """`call_soon` for simulated input and output: what *callback* wakes counts as woken from outside."""
        handle = self.call_soon(callback, *args, context=context)
        handle.external = OUTSIDE
        return handle

    def call_external_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> SimulatedTimer:
        """`call_later` for simulated input and output."""
        timer = self.call_later(delay, callback, *args, context=context)
        timer.external = OUTSIDE
        return timer

    def call_later(
        self, delay: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> SimulatedTimer:
        """Call *callback* in *delay* virtual seconds, rounded to nanoseconds; never, if that is infinite.

        Every delay above 0 takes a nanosecond at least: what rounding left of a deadline would be slept for ever.
        """
        when_ns = None
        if delay != float("inf"):
            when_ns = self._now_ns + self.blocked_ns + (round(delay * 1e9) or delay > 0)
        return self._set_timer(when_ns, callback, args, context)

    def call_at(
        self, when: float, callback: Callable[[*_Ts], object], *args: *_Ts, context: Context | None = None
    ) -> SimulatedTimer:
        """Call *callback* at *when* virtual seconds, rounded to nanoseconds; never, if that is infinite.

        A *when* that `time()` has not reached, by less than rounding shows, is the next nanosecond: whoever looks
        at the clock and sets the timer again, as anyio does, would do so for ever at one moment.
        """
        when_ns = None
        if when != float("inf"):
            when_ns = round(when * 1e9)
            now_ns = self._now_ns + self.blocked_ns
            if when_ns == now_ns and when > now_ns / 1e9:
                when_ns += 1
        return self._set_timer(when_ns, callback, args, context)

    def _set_timer(
        self,
        when_ns: int | None,
        callback: Callable[[*_Ts], object],
        args: tuple[*_Ts],
        context: Context | None,
    ) -> SimulatedTimer:
        self._check_open()
        timer = SimulatedTimer(when_ns, callback, args, self, context)
        if when_ns is not None:
            timer._scheduled = True
            heappush(self._timers, (when_ns, self._next_sequence(), timer))
        return timer

    def forget_timer(self) -> None:
        """Called by a scheduled timer that was cancelled; it leaves the heap later."""
        self._cancelled_timers += 1
        if self._cancelled_timers > _PURGE_TIMERS and 2 * self._cancelled_timers > len(self._timers):
            self._timers[:] = [entry for entry in self._timers if not entry[2]._cancelled]
            heapify(self._timers)
            self._cancelled_timers = 0

    def pending_timers(self, owner: object = ANY) -> tuple[SimulatedTimer, ...]:
        """The timers that are neither cancelled nor run, the next first; only those of *owner* if given."""
        handles = [*self._ready, *(entry[2] for entry in sorted(self._timers))]
        live = (handle for handle in handles if isinstance(handle, SimulatedTimer) and not handle._cancelled)
        return tuple(timer for timer in live if owner is ANY or timer.owner == owner)

    # --- tasks and futures ---------------------------------------------------------------------------

    def create_future(self) -> SimulatedFuture[Any]:
        return SimulatedFuture(loop=self)

    def create_task(
        self,
        coro: Generator[Any, None, _T] | Coroutine[Any, Any, _T],
        *,
        name: str | None = None,
        context: Context | None = None,
        eager_start: bool | None = None,
    ) -> SimulatedTask[_T]:
        """Start *coro* as a task; without a name it is called `qualname#number`.

        Raises:
            FencedError: *eager_start* is true, or the task factory returned a task that is no SimulatedTask.
        """
        self._check_open()
        if self._task_factory is None:
            made = SimulatedTask(coro, loop=self, name=name, context=context, eager_start=bool(eager_start))
            if self._debug:
                forget_maker(made)
            return made
        task = self._task_factory(self, coro, **({} if context is None else {"context": context}))
        if not isinstance(task, SimulatedTask):
            task.cancel()
            self.refuse("a task factory whose tasks are no SimulatedTask")
        if name is not None:
            task.set_name(name)
        return task

    def set_task_factory(self, factory: Callable[..., Any] | None) -> None:
        """Let *factory* make the tasks, out of SimulatedTask; None for the default.

        Raises:
            FencedError: it is an eager task factory, which would bypass the schedule.
            TypeError: it cannot be called.
        """
        if factory is not None and not callable(factory):
            raise TypeError("task factory must be a callable or None")
        # Every eager factory, asyncio.eager_task_factory too, is the inner function of this one.
        if name_of(factory).startswith("create_eager_task_factory."):
            self.refuse("an eager task factory")
        self._task_factory = factory

    def get_task_factory(self) -> Callable[..., Any] | None:
        return self._task_factory

    def has_ready(self) -> bool:
        """Whether anything would run before time moves."""
        return bool(self._ready or self._holds.for_steps)

    def pending_tasks(self, owner: object = ANY) -> tuple[SimulatedTask[Any], ...]:
        """The tasks that are not done, in creation order; only those of *owner* if given; none of dead processes."""
        return tuple(
            task
            for task in self._tasks.values()
            if not task.done()
            and (owner is ANY or task.owner == owner)
            and (task.process is None or not task.process.dead)
        )

    def tasks_here(self) -> set[asyncio.Task[Any]]:
        """What `asyncio.all_tasks` gives the process that runs now: its own tasks that are not done, and no jobs."""
        here = self._process_here()
        return {task for task in self.pending_tasks() if task.process is here and not is_job(task)}

    def keep_dead(self, task: SimulatedTask[Any]) -> None:
        """Keep a task of a dead process from being collected, and so from running its `finally` blocks, before
        the loop is closed."""
        self._dead.append(task)

    def remember(self, task: SimulatedTask[Any]) -> None:
        """Called by each new task. A task is kept until it is done and somebody has seen its exception."""
        self._tasks[task.number] = task
        if len(self._tasks) >= self._tasks_prune_at:
            self._tasks = {number: it for number, it in self._tasks.items() if not it.done() or it._log_traceback}
            self._tasks_prune_at = max(64, 2 * len(self._tasks))

    def run_in_executor(
        self,
        executor: Any,
        func: Callable[[*_Ts], _T],
        *args: *_Ts,
    ) -> SimulatedFuture[_T]:
        """Run *func* inline, as a task of its own with a copy of the context.

        Jobs of an *executor* with one thread run one after the other; otherwise it is ignored. As with a
        thread, no loop is running while *func* does, and cancelling the future does not stop
        the job: its late result is discarded. One that still waits for its thread then never runs.
        """
        self._check_open()
        future = self.create_future()
        outer, self._external = self._external, OUTSIDE  # a thread starts when it likes
        try:
            if executor is None:
                executor = self._default_executor
            one_thread = getattr(executor, "_max_workers", None) == 1
            before = self._last_jobs.get(executor) if one_thread else None
            job = SimulatedTask(run_job(self, future, func, args, before), loop=self)
        finally:
            self._external = outer
        if one_thread:
            self._last_jobs[executor] = job
        job.set_name(f"{job_name(func)}#{job.number}")
        return future

    def outside_delay_ns(self, what: str) -> int:
        """How much later the schedule lets *what* come from outside than it would: a packet, the end of a job.

        Asked once for each, as it departs, so that whoever carries it can keep its order. Always 0 without stalls.
        """
        if not self._stalls or self._holds.upcoming is None:
            return 0
        hold = self._holds.next_of_contested()
        if hold is None:
            return 0
        self._holds.applied.append(AppliedHold(self.time_ns, what, hold, "late"))
        return _length_ns(hold)

    def come_from_outside(self) -> None:
        """Let what the running callback wakes from here on count as woken from outside."""
        self._external = OUTSIDE

    def set_default_executor(self, executor: Any) -> None:
        """Have its one thread, if it has one only, run the jobs that name no executor one after the other.

        Raises:
            TypeError: *executor* is no ThreadPoolExecutor.
        """
        from concurrent.futures import ThreadPoolExecutor

        if not isinstance(executor, ThreadPoolExecutor):
            raise TypeError(f"executor must be ThreadPoolExecutor instance, not {executor!r}")
        self._default_executor = executor

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Does nothing: there are no threads to wait for."""

    # --- running -------------------------------------------------------------------------------------

    def run_until_complete(self, future: Generator[Any, None, _T] | Awaitable[_T]) -> _T:
        """Run until *future*, or the task made of it, is done; return its result or raise its exception.

        Raises:
            StuckError: nothing can happen any more and it is not done.
            LivelockError: the step budget is used up.
            RuntimeError: the loop is closed, a loop is running, or `stop` came first.
        """
        self._check_startable()
        target: asyncio.Future[_T] = asyncio.ensure_future(cast("Awaitable[_T]", future), loop=self)
        # Whoever drives the loop belongs to no process, and must not wait for one.
        target.add_done_callback(_stop_loop_of, context=None if self.home is None else nobodys_context())
        try:
            stopped = self._drive()
        finally:
            target.remove_done_callback(_stop_loop_of)
        if target.done():
            return target.result()
        if stopped:
            raise RuntimeError("Event loop stopped before Future completed.")
        raise self._stuck()

    def run_forever(self) -> None:
        """Run until `stop`.

        Raises:
            StuckError: nothing can happen any more, so nobody could call `stop`.
        """
        if not self._drive():
            raise self._stuck()

    def run_until_idle(self, max_ns: int | None = None) -> bool:
        """Run until nothing is ready and no timer is set, at most *max_ns* nanoseconds; tell whether so.

        If the time runs out the clock stands exactly at its end; otherwise where the last thing happened.
        Ends early, with False unless at rest, if somebody calls `stop`.
        """
        limit_ns = None if max_ns is None else self._now_ns + max_ns
        stopped = self._drive(limit_ns)
        at_rest = not self.has_ready() and self._next_timer_ns() is None
        if limit_ns is not None and not at_rest and not stopped:
            self._now_ns = limit_ns
        return at_rest

    def advance(self, ns: int) -> None:
        """Run everything that is due within the next *ns* nanoseconds, and leave the clock exactly there.

        Ends early, with the clock where it is, if somebody calls `stop`.
        """
        if ns < 0:
            raise ValueError(f"time does not go back: ns must be 0 or more, not {ns}")
        limit_ns = self._now_ns + ns
        if not self._drive(limit_ns):
            self._now_ns = limit_ns

    def stop(self) -> None:
        """End the run after the callbacks that are ready now, as asyncio does."""
        self._stopping = True

    def _drive(self, limit_ns: int | None = None) -> bool:
        """Run until `stop`, or until nothing more happens up to *limit_ns*; tell whether it was `stop`."""
        self._check_startable()
        hooks = sys.get_asyncgen_hooks()
        self._thread = threading.get_ident()
        self._running = True
        asyncio._set_running_loop(self)
        sys.set_asyncgen_hooks(firstiter=self._note_asyncgen, finalizer=self._end_asyncgen)
        try:
            # Told to stop before it began, asyncio runs what is due and does not wait.
            while self._ready or self._wake_next(self._now_ns if self._stopping else limit_ns):
                self._run_batch()
                if self._stopping:
                    break
            return self._stopping
        finally:
            self._running = self._stopping = False
            self.blocked_ns = 0
            self._external = NOBODY
            asyncio._set_running_loop(None)
            sys.set_asyncgen_hooks(*hooks)

    def _wake_next(self, limit_ns: int | None) -> bool:
        """Make something ready when nothing is: a wake-up held for steps first, then by moving the clock."""
        if self._holds.for_steps:
            self._release([self._holds.earliest()])
            return True
        when_ns = self._next_timer_ns()
        if when_ns is None or (limit_ns is not None and when_ns > limit_ns):
            return False
        self._just_woke = True
        self._moved_at_step = self.steps
        if self.steps >= self._collect_at_step:
            self._collect_at_step = self.steps + _COLLECT_STEPS
            gc.collect()
        # A timer may have been set for the past; the clock never goes back.
        self._now_ns = max(self._now_ns, when_ns)
        return True

    def _next_timer_ns(self) -> int | None:
        timers = self._timers
        while timers and timers[0][2]._cancelled:
            heappop(timers)
            self._cancelled_timers -= 1
        return timers[0][0] if timers else None

    def _run_batch(self) -> None:
        """Run what is ready now. As in asyncio, timers and `stop` wait for the end of a batch."""
        self._ready_due_timers()
        self.batch += 1
        if self._max_still_steps is not None and self.steps - self._moved_at_step > self._max_still_steps:
            self._spins()
        ready, holds = self._ready, self._holds
        todo = len(ready)
        while todo:
            todo -= 1
            handle = ready.popleft()
            governor = self.governor
            if governor is not None and governor.keeps(handle):
                self._ready_wakeups -= handle.task is not None
                continue
            if handle.task is not None:
                self._ready_wakeups -= 1
                if holds.upcoming is not None and handle.eligible and self._holds_back(handle):
                    if self._batch_left is not None:
                        todo, self._batch_left = self._batch_left, None
                    continue
                self._task_steps += 1
            if handle._cancelled:
                continue
            if governor is not None:
                governor.begins(handle)
            self.steps += 1
            if self._just_woke and handle._callback is not _END_OF_SLEEP:
                self._just_woke = False
            if self.steps > self._max_steps - _WATCHED_STEPS:
                self._watch(handle)
            self._external = handle.external
            try:
                handle._context.run(handle._callback, *handle._args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - it must not end the run of the others
                self._report_callback(handle, error)
            if handle.task is not None and handle.task.done():
                self._forget(handle.task)
            if self._in_front:
                todo += self._in_front
                self._in_front = 0
            if holds.for_steps and holds.for_steps[0][0] <= self._task_steps:
                todo += self._release(holds.due(self._task_steps))

    def _forget(self, task: asyncio.Task[Any]) -> None:
        """Keep a task that is done no longer than asyncio does, unless nobody has seen how it failed."""
        if isinstance(task, SimulatedTask) and not task._log_traceback:
            self._tasks.pop(task.number, None)

    def _spins(self) -> None:
        """Time has stood still for too many steps: let the budget end here."""
        self._max_steps = min(self._max_steps, self.steps + _WATCHED_STEPS)
        self._max_still_steps = None
        self._spun = True

    def grant_steps(self, steps: int) -> None:
        """Let so many steps run from now on, whatever was left."""
        self._max_steps = self.steps + steps
        self._recent.clear()

    def _ready_due_timers(self) -> None:
        timers = self._timers
        while timers and timers[0][0] <= self._now_ns:
            handle = heappop(timers)[2]
            if handle._cancelled:
                self._cancelled_timers -= 1
            elif isinstance(handle, SimulatedTimer):
                handle._scheduled = False
                self._ready.append(handle)
            else:
                self._holds.held -= 1
                self._ready_wakeups += 1
                self._ready.append(handle)

    def _watch(self, handle: Runnable) -> None:
        """Take down who runs in the last steps of the budget, and end the run after them."""
        if self.steps > self._max_steps:
            self.steps -= 1
            self._ready.appendleft(handle)
            self._ready_wakeups += handle.task is not None
            still = self.steps - self._moved_at_step
            raise LivelockError(self._max_steps, self._now_ns, self._recent, still_steps=still, spun=self._spun)
        self._recent.append(name_of(handle._callback) if handle.task is None else handle.task.get_name())

    def _holds_back(self, handle: SimulatedHandle) -> bool:
        """Hold this eligible wake-up back if it is contested and the schedule says so."""
        if handle.task is None or not (self._stalls or self._ready_wakeups or self._holds.held):
            return False
        hold = self._holds.next_of_contested()
        if hold is None:
            return False
        cause, handle.eligible = handle.eligible, NOBODY  # a wake-up is held once
        if self._stalls:
            return self._stall(handle, handle.task, hold, late=cause == TIMER and self._just_woke)
        self._holds.note(self._now_ns, handle.task.get_name(), hold)
        if hold.time_ns is not None:
            heappush(self._timers, (self._now_ns + hold.time_ns, self._next_sequence(), handle))
        elif hold.steps is not None:
            self._holds.keep(handle, self._task_steps + hold.steps)
        return True

    def _stall(self, handle: SimulatedHandle, task: asyncio.Task[Any], hold: Hold, *, late: bool) -> bool:
        """Let *task*, and all of its process, go on later; tell whether *handle* was put back.

        Either the step before took so long; or the loop woke up so *late*, if no step has run since it did, and
        then all timers that are due by then go before the task, in the order of their moments.
        """
        duration_ns = _length_ns(hold)
        where = place_of(task) if isinstance(task, SimulatedTask) else ""
        self._holds.applied.append(AppliedHold(self._now_ns, task.get_name(), hold, "stall", where))
        process = getattr(task, "process", None)
        if process is not None:
            process.host.stall(handle, duration_ns, late=late)
            return True
        self._now_ns += duration_ns
        if late:
            others = list(self._ready)
            self._ready.clear()
            self._ready_due_timers()
            # They are a batch of their own; the task goes on in the next, with those that they wake.
            self._batch_left = len(self._ready)
            self._ready_wakeups += 1
            self._ready.append(handle)
            self._ready.extend(others)
        return late

    def _release(self, handles: list[SimulatedHandle]) -> int:
        """Put wake-ups that were held in front of everything else; tell how many."""
        for handle in reversed(handles):
            self._ready_wakeups += 1
            self._ready.appendleft(handle)
        return len(handles)

    def put_in_front(self, handles: Iterable[Runnable]) -> None:
        """Let callbacks that were kept back run before everything that is ready, in this batch, in their order."""
        for handle in reversed(tuple(handles)):
            self._in_front += 1
            self._ready_wakeups += handle.task is not None
            self._ready.appendleft(handle)

    def cut_hold(self, task: SimulatedTask[Any]) -> None:
        """Make a held wake-up of *task* ready; does nothing if none is held. For `SimulatedTask.cancel`."""
        if not self._holds.held:
            return
        handle = self._holds.take(task) or self._taken_from_timers(task)
        if handle is not None:
            self._ready_wakeups += 1
            self._ready.append(handle)

    def _taken_from_timers(self, task: SimulatedTask[Any]) -> SimulatedHandle | None:
        for entry in self._timers:
            handle = entry[2]
            if isinstance(handle, SimulatedHandle) and handle.task is task:
                self._timers.remove(entry)
                heapify(self._timers)
                self._holds.held -= 1
                return handle
        return None

    # --- errors and leftovers ------------------------------------------------------------------------

    def _stuck(self) -> StuckError:
        return StuckError(tuple(waiting(task) for task in self.pending_tasks()), self._now_ns)

    def _report_callback(self, handle: Runnable, error: BaseException) -> None:
        message = f"Exception in callback {name_of(handle._callback)}"
        self.call_exception_handler({"message": message, "exception": error, "handle": handle})

    def _note_asyncgen(self, agen: AsyncGenerator[Any, Any]) -> None:
        key = self._next_sequence()
        # By number and not in a WeakSet, whose order is that of addresses.
        self._asyncgens[key] = (weakref.ref(agen, lambda _: self._asyncgens.pop(key, None)), self._process_here())

    def _process_here(self) -> Process | None:
        process = current_process()
        return self.home.process if process is None and self.home is not None else process

    def _end_asyncgen(self, agen: AsyncGenerator[Any, Any]) -> None:
        """An unfinished generator is about to vanish: let it run its cleanup first."""
        if not self._closed:
            self.call_soon(start_closing, self, agen)  # not at once, because asyncio does not either

    def open_asyncgens(self) -> list[AsyncGenerator[Any, Any]]:
        """The asynchronous generators that were started and not finished, the oldest first; none of dead processes."""
        live = (ref for ref, process in self._asyncgens.values() if process is None or not process.dead)
        # One that has ended is kept by whoever keeps it, a traceback for example, until the collector comes.
        return [agen for ref in live if (agen := ref()) is not None and getattr(agen, "ag_frame", agen) is not None]

    async def shutdown_asyncgens(self) -> None:
        """Close every asynchronous generator that was started and not finished, the oldest first.

        An error in one goes to the exception handler and does not keep the others open.
        """
        left = self.open_asyncgens()
        self._asyncgens.clear()
        await close_asyncgens(self, left)

    def report_unseen(self) -> None:
        """Report the exceptions of ended tasks that nobody has looked at; each is reported once."""
        report_unseen(self, self._tasks.values())

    def end_leftovers(self) -> None:
        """Cancel what still runs, as `asyncio.run` does at its end, and report what does not end by it.

        In creation order; the schedule plays no part in it, and 10,000 steps must do.
        """
        self._holds.end()
        self.grant_steps(_CLOSE_STEPS)
        if self._ready or self._tasks or self._asyncgens:
            end_leftovers(self)

    def close(self) -> None:
        """End what is left and give everything up. Does nothing the second time.

        Pending tasks are cancelled in creation order and may clean up, also in virtual time, for 10,000
        steps in all; then unfinished asynchronous generators are closed in creation order. The schedule
        plays no part in it. Whatever would not end, and every task exception that nobody looked at, goes
        to the exception handler: both are found by looking, because the garbage collector's moment is not
        part of the simulation.

        Raises:
            RuntimeError: the loop is running.
        """
        if self._running:
            raise RuntimeError("Cannot close a running event loop")
        if self._closed:
            return
        try:
            self.end_leftovers()
            report_unseen(self, self._tasks.values())
        finally:
            bury_dead(self, [*self._tasks.values(), *self._dead])
            self._closed = True
            self._ready.clear()
            self._timers.clear()
            self._holds.for_steps.clear()
            self._tasks.clear()
            self._dead.clear()
            self._asyncgens.clear()

    # --- state ---------------------------------------------------------------------------------------

    def is_running(self) -> bool:
        return self._running

    def get_debug(self) -> bool:
        return self._debug

    def set_debug(self, enabled: bool) -> None:
        """Make tasks and futures remember where they were made; the loop itself does nothing more."""
        self._debug = enabled

    def _check_startable(self) -> None:
        self._check_open()
        if self._running:
            raise RuntimeError("This event loop is already running")
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("Cannot run the event loop while another loop is running")


def _length_ns(hold: Hold) -> int:
    """How long a hold lasts that is no matter of steps of others."""
    return hold.steps * STALL_STEP_NS if hold.steps is not None else hold.time_ns or 0


def _stop_loop_of(future: asyncio.Future[Any]) -> None:
    # An exit is on its way out of the run already, and must not stop the next one.
    if future.cancelled() or not isinstance(future.exception(), SystemExit | KeyboardInterrupt):
        future.get_loop().stop()


def run(
    main: Coroutine[Any, Any, _T],
    *,
    schedule: Schedule = (),
    external_only: bool = True,
    max_steps: int = 1_000_000,
) -> _T:
    """Run *main* on a new simulated loop, close it, and return the result of *main* or raise its exception.

    Raises:
        SimulationError: as `SimulatedLoop.run_until_complete`.
    """
    loop = SimulatedLoop(schedule, external_only=external_only, max_steps=max_steps)
    try:
        return loop.run_until_complete(main)
    finally:
        loop.close()
