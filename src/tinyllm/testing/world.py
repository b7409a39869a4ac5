"""The world: a loop, hosts, the links between them, their disks and clocks, and all that goes wrong there.

A world is made from a plan, a value that decides everything but the program. Programs run in it, a storm of
faults passes over them, then every fault is healed and the world comes to rest. Only then is it judged:
safety while it storms, liveness afterwards. Nothing in it knows the real time, and two worlds made from equal
plans in which the same programs run live the same life.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final, TypeVar

from tinyllm.testing.apps.patches import Patches
from tinyllm.testing.apps.queues import Queues
from tinyllm.testing.apps.real_sockets import RealSockets
from tinyllm.testing.apps.thread_shims import ThreadShims
from tinyllm.testing.chronicle import HEALED, Chronicle, Event, Problem, events_of
from tinyllm.testing.faults import HOME, Cancelled, QueueFull
from tinyllm.testing.http.clients import HttpxClients
from tinyllm.testing.http.network import Network
from tinyllm.testing.links import Links
from tinyllm.testing.loop import LivelockError, SimulatedLoop, SimulatedTask, StuckError
from tinyllm.testing.machines import Machine
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.points import Points
from tinyllm.testing.processes import Governor, current_host
from tinyllm.testing.sockets.network import SocketNetwork
from tinyllm.testing.storm import Storm
from tinyllm.testing.tasks import name_of, nobodys_context
from tinyllm.testing.tool_faults import faulty
from tinyllm.testing.unhandled import described
from tinyllm.testing.units import NS_PER_MS
from tinyllm.testing.waiting import place_of

__all__ = ["World"]

_T = TypeVar("_T")
_Condition = TypeVar("_Condition", bound=Callable[[], Any])

#: After the storm a world may take this much virtual time to come to rest; less if nothing is to hold then.
REST_MS: Final = 60_000
SHORT_REST_MS: Final = 5_000


class World:
    """One life, as *plan* decides it. Use it as a context manager: outside, no patch and no task of it is left.

    Whatever is sent between two hosts takes *latency_ms*. A life of more than *max_steps* steps, or of more than
    *max_still_steps* while time stands still, is a livelock. With *trace* the chronicle has every step.
    Unless *patched* is false, the clock, chance, ids and HTTP clients of the code that runs inside are the
    world's too; real sockets are fenced unless *real_sockets* is true.
    """

    def __init__(
        self,
        plan: WorldPlan = WorldPlan(),  # noqa: B008 - a frozen value
        *,
        latency_ms: int = 0,
        max_steps: int = 1_000_000,
        max_still_steps: int = 100_000,
        trace: bool = False,
        patched: bool = True,
        real_sockets: bool = False,
    ) -> None:
        if not isinstance(plan, WorldPlan):
            raise TypeError(f"a world is made from a WorldPlan, not {plan!r}")
        if type(latency_ms) is not int or latency_ms < 0:
            raise ValueError(f"latency_ms is a whole number of at least 0, not {latency_ms!r}")
        self.plan = plan
        self.loop = SimulatedLoop(
            plan.schedule,
            external_only=plan.external_only,
            stalls=True,
            schedule_begins=plan.begins,
            max_steps=max_steps,
            max_still_steps=max_still_steps,
        )
        self.points = Points(plan.strikes, time_ns=self._time_ns)
        self.links = Links(seed=plan.seed, latency_ns=latency_ms * NS_PER_MS)
        self.hosts: dict[str, Machine] = {}
        self.notes: list[Event] = []
        self.governor = Governor(self.loop)
        self.sockets = SocketNetwork(self.loop, self.links, self.points, self.hosts)
        self.loop.network = self.sockets
        self.network = Network(self.loop, links=self.links, points=self.points, hosts=self.hosts)
        self.queues = Queues()
        self._conditions: list[Callable[[], Any]] = []
        # Numbers of tasks: those that a fault may cancel wherever they wait, that were, and how often each that has
        # begun went on after an await.
        self._may_cancel: set[int] = set()
        self._struck: set[int] = set()
        self._awaits: dict[int, int] = {}
        self._healed = False
        self._patched = patched
        self._real_sockets = real_sockets
        self._depth = 0
        self._time_and_chance = Patches(
            self.loop, seed=plan.seed, clock_of=lambda: self._here().clock, block_ns=lambda ns: self._here().charge(ns)
        )
        self._threads = ThreadShims()
        self._fence = RealSockets()
        self._clients = HttpxClients(self.network)
        if trace:
            self.governor.trace = []
        if self.points.expects("await"):
            self.governor.awaits = self._about_to_go_on
        self.governor.engage()
        self._max_steps = max_steps
        self._max_still_steps = max_still_steps
        self.loop.home = self.host(HOME)
        self.storm = Storm(self, plan.lasting)

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _time_ns(self) -> int:
        return self.loop.time_ns

    @property
    def now_ms(self) -> float:
        """Virtual milliseconds since the world began."""
        return self.loop.time_ns / NS_PER_MS

    def _here(self) -> Machine:
        return self.host(current_host())

    def note(self, what: str, *, who: str = "note") -> None:
        """Put a line into the story of this life."""
        self.notes.append(Event(self.loop.time_ns, who, what))

    # --- what is in the world ------------------------------------------------------------------------

    def host(self, name: str, server: Any = None) -> Machine:
        """The host of that name, new if there was none; with a *server* it answers HTTP, on every port."""
        machine = self.hosts.get(name)
        if machine is None:
            number = len(self.hosts) + 1
            machine = Machine(name, number, self.loop, self.governor, self.points, seed=self.plan.seed)
            self.hosts[name] = machine
        if server is not None:
            self.network.serve(name, server)
        return machine

    def tool(self, function: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
        """*function* as a tool of this world: faults at the point "tool NAME" strike it, by default by its own name."""
        return faulty(function, name or _short(name_of(function)), self.points, loop=self.loop)

    def may_cancel(self, work: Coroutine[Any, Any, _T]) -> SimulatedTask[_T]:
        """A task for *work* that a fault may cancel at any of its awaits, as a user who leaves would."""
        task = self.loop.create_task(work)
        self._may_cancel.add(task.number)
        return task

    async def may_time_out(self, work: Coroutine[Any, Any, _T]) -> _T:
        """Await *work*, unless a fault lets it time out at one of its awaits.

        Raises:
            TimeoutError: it did; *work* was cancelled there.
        """
        task = self.may_cancel(work)
        try:
            return await task
        except asyncio.CancelledError:
            if task.number in self._struck:
                raise TimeoutError("timed out, as the plan of this world says") from None
            raise
        finally:
            task.cancel()

    def _about_to_go_on(self, task: SimulatedTask[Any]) -> None:
        """Count the awaits of *task*, and cancel it where the plan says so. Its start is no await."""
        general = task.number in self._may_cancel
        name = _short(name_of(task.get_coro()))
        awaits = self._awaits.get(task.number)
        self._awaits[task.number] = 0 if awaits is None else awaits + 1
        if awaits is not None:
            self._end_of_await(task, name, general=general)
        after = self.points.upcoming("await", name, general=general)
        if isinstance(after, Cancelled) and after.after_ms is not None:
            # A timer of the world, because the process of the task may stand still meanwhile.
            how = (task, self._awaits[task.number])
            self.loop.call_later(after.after_ms / 1_000, self._leave, *how, context=nobodys_context())

    def _end_of_await(self, task: SimulatedTask[Any], name: str, *, general: bool) -> None:
        fault = self.points.upcoming("await", name, general=general)
        if isinstance(fault, Cancelled) and fault.after_ms is not None and task.number not in self._struck:
            self.points.pass_by("await", name, general=general)
            return
        struck = self.points.strike("await", name, general=general)
        if isinstance(struck, Cancelled) and struck.after_ms is None:
            self._cancel(task)

    def _leave(self, task: SimulatedTask[Any], awaits: int) -> None:
        """Cancel *task* if it has not gone on since."""
        if not task.done() and self._awaits[task.number] == awaits and not self.points.healed:
            self._cancel(task)

    def _cancel(self, task: SimulatedTask[Any]) -> None:
        self._struck.add(task.number)
        self.note(f"is cancelled where it waits, {place_of(task)}", who=task.get_name())
        task.cancel()

    def eventually(self, condition: _Condition) -> _Condition:
        """Hold the world to *condition* once it is healed and at rest; usable as a decorator.

        A function or coroutine function without arguments. It fails by False or by an exception.
        """
        self._conditions.append(condition)
        return condition

    # --- living --------------------------------------------------------------------------------------

    def run(
        self, main: Callable[..., Coroutine[Any, Any, _T]] | Coroutine[Any, Any, _T], *args: Any, host: str = HOME
    ) -> _T:
        """Run *main* on *host* until it is done; return its result or raise its exception.

        As a function it starts again when its host does, and the first of its lives to end counts; as a
        coroutine it cannot. What else runs on the hosts goes on meanwhile, and stands still when main is done.

        Raises:
            StuckError: nothing can happen any more, and main is not done.
            LivelockError: the step budget is used up.
        """
        if asyncio._get_running_loop() is not None:
            raise RuntimeError("a world runs a loop of its own: call it from a plain function, not inside another loop")
        machine = self.host(host)
        with self.inside():
            self.storm.set_in()
            if not callable(main):
                return self._drive(self.loop.create_task(main, context=machine.context()))
            done: asyncio.Future[_T] = self.loop.create_future()
            program = _until_done(main, done)
            machine.start(program, *args, name=name_of(main))
            try:
                return self._drive(done)
            finally:
                machine.forget(program)

    def _drive(self, future: asyncio.Future[_T]) -> _T:
        try:
            return self.loop.run_until_complete(future)
        except StuckError as error:
            for host in self.hosts.values():
                if host.process.state != "up":
                    error.add_note(f"  host {host.name} is {host.process.state}")
            for fault in self.links.faults:
                error.add_note(f"  {fault!r} lasts")
            raise

    def advance(self, ms: int) -> None:
        """Let *ms* milliseconds of virtual time pass on all hosts."""
        with self.inside():
            self.storm.set_in()
            self.loop.advance(ms * NS_PER_MS)

    def heal(self) -> None:
        """End every fault: every host that is down or paused is up again, what was held goes on.

        Healing twice does nothing more.
        """
        if not self._healed:
            self._healed = True
            self.note(HEALED, who="world")
            self.points.heal()
            self.storm.heal()
            self.sockets.heal()
            self.network.heal()
            for host in self.hosts.values():
                if host.process.dead:
                    host.restart()
                host.resume()

    def finish(self, *, rest_ms: int | None = None) -> Chronicle:
        """Heal, let the world come to rest, end what still runs, and tell what happened and what is wrong with it.

        Wrong is: an exception that nobody saw, a condition that does not hold, tasks that keep running while time
        stands still, a task that does not end when it is cancelled at last, as `asyncio.run` would. A task that
        waits for ever is not, and nor is one that still works after *rest_ms*, or after as many steps as the
        whole life had. Without *rest_ms* it is a minute if there are conditions of `eventually`, else 5 s.
        """
        if rest_ms is None:
            rest_ms = REST_MS if self._conditions else SHORT_REST_MS
        problems: list[Problem] = []
        with self.inside():
            self.heal()
            problems += self._come_to_rest(rest_ms)
            for condition in self._conditions:
                self.loop.grant_steps(self._max_steps)
                problems += self._judged(condition)
            left = tuple(task.get_name() for task in self.loop.pending_tasks())
            self.loop.end_leftovers()
        self.loop.report_unseen()
        problems += _unhandled(self.loop)
        trace = self.governor.trace
        return Chronicle(
            plan=self.plan,
            events=events_of(self),
            problems=tuple(problems),
            left=left,
            simulated_ns=self.loop.time_ns,
            steps=self.loop.steps,
            missed=self.points.missed,
            trace=None if trace is None else tuple(trace),
        )

    def _come_to_rest(self, rest_ms: int) -> Iterator[Problem]:
        self.loop.grant_steps(self._max_steps)
        try:
            self.loop.run_until_idle(rest_ms * NS_PER_MS)
        except LivelockError as error:
            if error.still_steps >= min(self._max_steps, self._max_still_steps):
                yield Problem(f"after all is healed: {error}", error)

    def _judged(self, condition: Callable[[], Any]) -> Iterator[Problem]:
        name = name_of(condition)
        try:
            held = condition()
            if asyncio.iscoroutine(held):
                held = self.loop.run_until_complete(held)
        except Exception as error:  # noqa: BLE001 - it is the finding
            yield Problem(f"{name} does not hold after all is healed: {type(error).__name__}: {error}", error)
            return
        if held is False:
            yield Problem(f"{name} does not hold after all is healed")

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """Make the clock, chance, ids and clients of the code that runs now those of the world.

        `run`, `advance`, `finish` and `close` do so by themselves; around all of them it is done once.
        """
        with contextlib.ExitStack() as stack:
            if self._patched and not self._depth:
                for patch in self._patches():
                    stack.enter_context(patch)
            self._depth += 1
            try:
                yield
            finally:
                self._depth -= 1

    def _patches(self) -> Iterator[contextlib.AbstractContextManager[Any]]:
        yield _no_collector()
        yield self._threads
        if not self._real_sockets:
            yield self._fence
        yield self._clients
        if any(isinstance(fault, QueueFull) for fault in self.plan.lasting):
            yield self.queues
        # The last, because modules that the others import may draw random numbers.
        yield self._time_and_chance

    def close(self) -> None:
        """Give everything up. Closing twice does nothing."""
        if self.loop.is_closed():
            return
        with self.inside():
            self.loop.close()
        self.governor.trace = None  # a traceback may keep this world for long
        for host in self.hosts.values():
            host.close()


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Keep Python from collecting cycles when it likes: that closes generators, and their `finally` is a step.

    The loop does so instead, at a step that is the same in each life.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _short(name: str) -> str:
    """The name of a function without that of what it stands in."""
    return name.rpartition(".")[2]


def _until_done(main: Callable[..., Coroutine[Any, Any, _T]], done: asyncio.Future[_T]) -> Callable[..., Any]:
    """*main* as a program that settles *done* when it ends."""

    async def program(*args: Any) -> None:
        try:
            result = await main(*args)
        except asyncio.CancelledError:
            done.cancel()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001 - raised by whoever waits for main
            done.set_exception(error)
        else:
            done.set_result(result)

    program.__qualname__ = name_of(main)
    return program


def _unhandled(loop: SimulatedLoop) -> Iterator[Problem]:
    """What reached the loop's exception handler.

    But no cancellation: asyncio's own streams of Python 3.11 report the handlers that are cancelled at the end.
    """
    for context in loop.unhandled:
        error = context.get("exception")
        if not isinstance(error, asyncio.CancelledError):
            yield Problem(described(context), error)
