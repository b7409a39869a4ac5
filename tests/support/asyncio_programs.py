"""Programs of asyncio's primitives as data, drawn by Hypothesis, and what runs them.

A program is a tree of small statements. Tasks, futures, locks, queues and the like are few and shared, and are
named by a number, so that statements of different tasks meet. Whatever a statement sees it writes into one log,
with the moment in ticks and with the path of the task that ran it.

A tick is 1/512 second: exact as a float and as integer nanoseconds, so that no rounding decides an order.

Hypothesis shrinks a program to fewer statements, then to the earlier ones of `_SIMPLE` and `_COMPOUND`.
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import re
import sys
import warnings
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias
from unittest import mock

from hypothesis import strategies as st

from tinyllm.testing.loop_errors import StuckError

TICK_S: Final = 1 / 512
_LIMIT_TICKS: Final = 40
"""After how long a program is cancelled: many wait for what never comes."""
_AFTERWARDS_TICKS: Final = 10
"""How long its tasks and timers go on when it has ended."""

_SHARED: Final = 2
"""How many there are of everything that is shared."""

_VARIABLE: Final[contextvars.ContextVar[int]] = contextvars.ContextVar("variable", default=0)

# --- statements --------------------------------------------------------------------------------------

Act: TypeAlias = Literal["say", "fail", "set future", "break future", "cancel task", "put", "set event", "notify later"]


@dataclass(frozen=True)
class Sleep:
    ticks: int


@dataclass(frozen=True)
class Fail:
    """Raise: 0 and 1 ValueError, 2 KeyError, 3 a group of them, 4 CancelledError."""

    kind: int


@dataclass(frozen=True)
class CancelTask:
    """Cancel a task that was spawned, or the current one."""

    task: int | None


@dataclass(frozen=True)
class Uncancel:
    pass


@dataclass(frozen=True)
class AwaitTask:
    task: int
    shielded: bool


@dataclass(frozen=True)
class AwaitFuture:
    future: int
    shielded: bool


@dataclass(frozen=True)
class Call:
    """Call something later: `soon`, `later` or `at` a moment in *ticks*, and cancel the handle if so."""

    how: Literal["soon", "later", "at"]
    ticks: int
    act: Act
    number: int
    cancelled: bool


@dataclass(frozen=True)
class OnDone:
    """Add callbacks to a task or a future, and remove the first one if so."""

    of_task: bool
    number: int
    callbacks: int
    remove: bool


@dataclass(frozen=True)
class EventDo:
    event: int
    what: Literal["wait", "set", "clear"]


@dataclass(frozen=True)
class ConditionDo:
    condition: int
    what: Literal["wait", "wait_for", "notify", "notify_all"]


@dataclass(frozen=True)
class QueueDo:
    """Queue 0 has a bound of 1, 1 is a PriorityQueue, 2 a LifoQueue."""

    queue: int
    what: Literal["put", "get", "put_nowait", "get_nowait", "join", "task_done"]
    item: int


@dataclass(frozen=True)
class BarrierDo:
    what: Literal["wait", "reset", "abort"]


@dataclass(frozen=True)
class ReleaseSemaphore:
    bounded: bool


@dataclass(frozen=True)
class SetVariable:
    value: int


@dataclass(frozen=True)
class InThread:
    fails: bool


@dataclass(frozen=True)
class Spawn:
    body: Body


@dataclass(frozen=True)
class Gather:
    bodies: tuple[Body, ...]
    return_exceptions: bool


@dataclass(frozen=True)
class Wait:
    bodies: tuple[Body, ...]
    when: Literal["FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"]
    ticks: int | None


@dataclass(frozen=True)
class AsCompleted:
    bodies: tuple[Body, ...]
    ticks: int | None


@dataclass(frozen=True)
class Group:
    bodies: tuple[Body, ...]
    own: Body


@dataclass(frozen=True)
class Timeout:
    how: Literal["timeout", "timeout_at", "wait_for"]
    ticks: int | None
    body: Body


@dataclass(frozen=True)
class Held:
    """Hold a lock or a semaphore around the body."""

    what: Literal["lock", "semaphore", "bounded"]
    number: int
    body: Body


@dataclass(frozen=True)
class Generate:
    """Read an asynchronous generator that yields before each of three runs of the body, and leave it early.

    The generator is kept, dropped, or closed.
    """

    reads: int
    end: Literal["drop", "keep", "close"]
    body: Body
    cleanup: Body


@dataclass(frozen=True)
class Try:
    """Run the body; catch if so, and go on; run the cleanup in any case."""

    catches: Literal["nothing", "Exception", "CancelledError", "TimeoutError", "BaseException"]
    body: Body
    cleanup: Body


Statement: TypeAlias = (
    Sleep | Fail | CancelTask | Uncancel | AwaitTask | AwaitFuture | Call | OnDone | EventDo | ConditionDo | QueueDo
    | BarrierDo | ReleaseSemaphore | SetVariable | InThread | Spawn | Gather | Wait | AsCompleted | Group | Timeout
    | Held | Generate | Try
)  # fmt: skip
Body: TypeAlias = tuple[Statement, ...]
Program: TypeAlias = tuple[Body, ...]

# --- strategies --------------------------------------------------------------------------------------

_shared = st.integers(0, _SHARED - 1)
_tasks = st.integers(0, 3)
_ticks = st.integers(0, 4)
_acts = st.sampled_from(Act.__args__)

_SIMPLE: Final = st.one_of(
    st.builds(Sleep, _ticks),
    st.builds(Fail, st.integers(0, 4)),
    st.builds(EventDo, _shared, st.sampled_from(["wait", "set", "clear"])),
    st.builds(QueueDo, st.integers(0, 2), st.sampled_from(["put", "get"]), st.integers(0, 3)),
    st.builds(AwaitTask, _tasks, st.booleans()),
    st.builds(AwaitFuture, _shared, st.booleans()),
    st.builds(CancelTask, st.none() | _tasks),
    st.builds(Call, st.sampled_from(["soon", "later", "at"]), _ticks, _acts, _tasks, st.booleans()),
    st.builds(OnDone, st.booleans(), _tasks, st.integers(1, 3), st.booleans()),
    st.builds(Uncancel),
    st.builds(ConditionDo, _shared, st.sampled_from(["wait", "wait_for", "notify", "notify_all"])),
    st.builds(QueueDo, st.integers(0, 2), st.sampled_from(["put_nowait", "get_nowait", "join", "task_done"]), _shared),
    st.builds(BarrierDo, st.sampled_from(["wait", "reset", "abort"])),
    st.builds(ReleaseSemaphore, st.booleans()),
    st.builds(SetVariable, st.integers(1, 3)),
    st.builds(InThread, st.booleans()),
)


def _compound(body: st.SearchStrategy[Body]) -> st.SearchStrategy[Statement]:
    bodies = st.lists(body, min_size=1, max_size=3).map(tuple)
    limit = st.none() | _ticks
    whens = st.sampled_from(["FIRST_COMPLETED", "FIRST_EXCEPTION", "ALL_COMPLETED"])
    caught = st.sampled_from(["nothing", "Exception", "CancelledError", "TimeoutError", "BaseException"])
    return st.one_of(
        st.builds(Spawn, body),
        st.builds(Gather, bodies, st.booleans()),
        st.builds(Try, caught, body, body),
        st.builds(Timeout, st.sampled_from(["timeout", "timeout_at", "wait_for"]), limit, body),
        st.builds(Group, bodies, body),
        st.builds(Held, st.sampled_from(["lock", "semaphore", "bounded"]), _shared, body),
        st.builds(Wait, bodies, whens, limit),
        st.builds(AsCompleted, bodies, limit),
        st.builds(Generate, st.integers(1, 4), st.sampled_from(["drop", "keep", "close"]), body, body),
    )


def _bodies(depth: int) -> st.SearchStrategy[Body]:
    statement = st.one_of(_SIMPLE, _compound(_bodies(depth - 1))) if depth else _SIMPLE
    return st.lists(statement, min_size=min(depth, 1), max_size=3 + min(depth, 2)).map(tuple)


programs: Final = st.lists(_bodies(2), min_size=1, max_size=4).map(tuple)
"""Programs: each body is a task from the start."""

# --- running -----------------------------------------------------------------------------------------


def describe(error: BaseException | None) -> Any:
    """The type and the arguments of *error*, and those of the errors inside; what a repr says is left out."""
    if error is None:
        return None
    if isinstance(error, BaseExceptionGroup):
        return type(error).__name__, error.message, tuple(describe(each) for each in error.exceptions)
    return type(error).__name__, tuple(re.sub("<.*>", "<>", str(arg), flags=re.DOTALL) for arg in error.args)


def _may_wait(path: str, other: str) -> bool:
    """Whether the statement at *path* may wait for the task of another path without closing a circle.

    Cancelling a circle recurses, and how deep is not the same for any two loops.
    """
    own_body, own_root, other_root = path.rpartition(".")[0], path.partition(".")[0], other.partition(".")[0]
    return int(other_root) < int(own_root) or other.startswith(f"{own_body}.")


_CAUGHT: Final[dict[str, type[BaseException] | tuple[()]]] = {
    "nothing": (),
    "Exception": Exception,
    "CancelledError": asyncio.CancelledError,
    "TimeoutError": TimeoutError,
    "BaseException": BaseException,
}


@dataclass
class Run:
    """One run of a program: what it shares, and what it wrote down until `over`."""

    loop: asyncio.AbstractEventLoop = field(init=False)
    log: list[Any] = field(default_factory=list)
    over: bool = False
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)

    def prepare(self) -> None:
        self.futures = [self.loop.create_future() for _ in range(_SHARED)]
        self.locks = [asyncio.Lock() for _ in range(_SHARED)]
        self.events = [asyncio.Event() for _ in range(_SHARED)]
        self.conditions = [asyncio.Condition() for _ in range(_SHARED)]
        self.semaphores = [asyncio.Semaphore(number + 1) for number in range(_SHARED)]
        self.bounded = [asyncio.BoundedSemaphore(number + 1) for number in range(_SHARED)]
        self.queues: list[asyncio.Queue[int]] = [asyncio.Queue(1), asyncio.PriorityQueue(), asyncio.LifoQueue(2)]
        self.barrier = asyncio.Barrier(2)

    def end(self) -> None:
        self.over = True

    def note(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "handle" in context or "asyncgen" in context:  # what nobody looked at is found at different moments
            self.say("handler", describe(context["exception"]))

    def say(self, path: str, *what: Any) -> None:
        if not self.over:
            self.log.append((round(self.loop.time() / TICK_S), path, _VARIABLE.get(), *what))

    def task(self, path: str, body: Body) -> asyncio.Task[Any]:
        task = self.loop.create_task(self.body(path, body), name=path)
        self.kept.append(task)
        return task

    def spawned(self, number: int) -> asyncio.Task[Any] | None:
        return self.tasks[number % len(self.tasks)] if self.tasks else None

    async def body(self, path: str, body: Body) -> str:
        try:
            for index, statement in enumerate(body):
                result = await self.statement(f"{path}.{index}", statement)
                self.say(f"{path}.{index}", type(statement).__name__, result)
        except BaseException as error:
            self.say(path, "left by", describe(error))
            raise
        return path

    async def statement(self, path: str, statement: Statement) -> Any:
        return await getattr(self, f"do_{type(statement).__name__}")(path, statement)

    # -- tasks --

    async def do_Sleep(self, path: str, it: Sleep) -> None:
        await asyncio.sleep(it.ticks * TICK_S)

    async def do_Fail(self, path: str, it: Fail) -> None:
        errors: list[BaseException] = [ValueError(path), ValueError("v"), KeyError(path)]
        errors.append(ExceptionGroup(path, [ValueError(path), KeyError(path)]))
        raise [*errors, asyncio.CancelledError(path)][it.kind]

    async def do_CancelTask(self, path: str, it: CancelTask) -> Any:
        task = asyncio.current_task() if it.task is None else self.spawned(it.task)
        return task and (task.cancel(path), task.cancelling(), task.done())

    async def do_Uncancel(self, path: str, it: Uncancel) -> int:
        task = asyncio.current_task()
        assert task is not None
        return task.uncancel()

    async def do_Spawn(self, path: str, it: Spawn) -> None:
        self.tasks.append(self.task(path, it.body))

    async def do_AwaitTask(self, path: str, it: AwaitTask) -> Any:
        task = self.spawned(it.task)
        if task is None or not _may_wait(path, task.get_name()):
            return "none"
        return await (asyncio.shield(task) if it.shielded else task)

    async def do_AwaitFuture(self, path: str, it: AwaitFuture) -> Any:
        future = self.futures[it.future]
        return await (asyncio.shield(future) if it.shielded else future)

    async def do_OnDone(self, path: str, it: OnDone) -> Any:
        of = self.spawned(it.number) if it.of_task else self.futures[it.number % _SHARED]
        if of is None:
            return "none"

        def callback(name: str) -> Callable[[Any], None]:
            return lambda future: self.say(name, "done", future.cancelled())

        callbacks = [callback(f"{path}.{number}") for number in range(it.callbacks)]
        for each in callbacks:
            of.add_done_callback(each)
        return of.remove_done_callback(callbacks[0]) if it.remove else len(callbacks)

    async def do_Call(self, path: str, it: Call) -> None:
        loop = asyncio.get_running_loop()
        if it.how == "soon":
            handle = loop.call_soon(self.act, path, it)
        elif it.how == "later":
            handle = loop.call_later(it.ticks * TICK_S, self.act, path, it)
        else:
            handle = loop.call_at((it.ticks + 2) * TICK_S, self.act, path, it)
        if it.cancelled:
            handle.cancel()

    def act(self, path: str, it: Call) -> None:
        self.say(path, it.act)
        future, task = self.futures[it.number % _SHARED], self.spawned(it.number)
        if it.act == "fail":
            raise ValueError(path)
        if it.act == "set future" and not future.done():
            future.set_result(path)
        elif it.act == "break future" and not future.done():
            future.set_exception(KeyError(path))
        elif it.act == "cancel task":
            self.say(path, task and task.cancel(path))
        elif it.act == "put":
            self.queues[it.number % 3].put_nowait(it.number)
        elif it.act == "set event":
            self.events[it.number % _SHARED].set()
        elif it.act == "notify later":
            self.loop.call_soon(self.say, path, "called by a callback")

    # -- several tasks --

    async def do_Gather(self, path: str, it: Gather) -> Any:
        tasks = [self.task(f"{path}.{number}", body) for number, body in enumerate(it.bodies)]
        results = await asyncio.gather(*tasks, return_exceptions=it.return_exceptions)
        return [describe(result) if isinstance(result, BaseException) else result for result in results]

    async def do_Wait(self, path: str, it: Wait) -> Any:
        tasks = [self.task(f"{path}.{number}", body) for number, body in enumerate(it.bodies)]
        limit = None if it.ticks is None else it.ticks * TICK_S
        done, pending = await asyncio.wait(tasks, timeout=limit, return_when=it.when)
        return [task in done for task in tasks], len(pending)

    async def do_AsCompleted(self, path: str, it: AsCompleted) -> Any:
        tasks = [self.task(f"{path}.{number}", body) for number, body in enumerate(it.bodies)]
        limit = None if it.ticks is None else it.ticks * TICK_S
        return [await each for each in asyncio.as_completed(tasks, timeout=limit)]

    async def do_Group(self, path: str, it: Group) -> Any:
        async with asyncio.TaskGroup() as group:
            for number, body in enumerate(it.bodies):
                self.kept.append(group.create_task(self.body(f"{path}.{number}", body), name=f"{path}.{number}"))
            await self.body(f"{path}.own", it.own)

    async def do_Timeout(self, path: str, it: Timeout) -> Any:
        limit = None if it.ticks is None else it.ticks * TICK_S
        if it.how == "wait_for":
            return await asyncio.wait_for(self.body(path, it.body), limit)
        if it.how == "timeout":
            scope = asyncio.timeout(limit)
        else:
            scope = asyncio.timeout_at(limit and self.loop.time() + limit)
        try:
            async with scope:
                await self.body(path, it.body)
        finally:
            self.say(path, "expired", scope.expired())

    # -- synchronisation --

    async def do_Held(self, path: str, it: Held) -> Any:
        shared: dict[str, list[Any]] = {"lock": self.locks, "semaphore": self.semaphores, "bounded": self.bounded}
        held = shared[it.what][it.number]
        async with held:
            self.say(path, "holds")
            await self.body(path, it.body)
        return held.locked()

    async def do_ReleaseSemaphore(self, path: str, it: ReleaseSemaphore) -> None:
        try:
            (self.bounded if it.bounded else self.semaphores)[0].release()
        except ValueError as error:
            self.say(path, describe(error))

    async def do_EventDo(self, path: str, it: EventDo) -> Any:
        result = getattr(self.events[it.event], it.what)()
        return await result if it.what == "wait" else result

    async def do_ConditionDo(self, path: str, it: ConditionDo) -> Any:
        condition = self.conditions[it.condition]
        async with condition:
            self.say(path, "holds")
            if it.what == "wait":
                return await condition.wait()
            if it.what == "wait_for":
                return await condition.wait_for(self.events[0].is_set)
            return getattr(condition, it.what)()

    async def do_QueueDo(self, path: str, it: QueueDo) -> Any:
        queue = self.queues[it.queue]
        try:
            result = getattr(queue, it.what)(*([it.item] if it.what.startswith("put") else []))
            return (await result if it.what in ("put", "get", "join") else result), queue.qsize()
        except (asyncio.QueueEmpty, asyncio.QueueFull, ValueError) as error:
            return describe(error)

    async def do_BarrierDo(self, path: str, it: BarrierDo) -> Any:
        return await getattr(self.barrier, it.what)(), self.barrier.n_waiting

    # -- the rest --

    async def do_SetVariable(self, path: str, it: SetVariable) -> None:
        _VARIABLE.set(it.value)

    async def do_InThread(self, path: str, it: InThread) -> Any:
        def job() -> str:
            self.say(path, "in a thread")
            if it.fails:
                raise KeyError(path)
            return path

        return await asyncio.to_thread(job)

    async def do_Try(self, path: str, it: Try) -> Any:
        try:
            await self.body(path, it.body)
        except _CAUGHT[it.catches] as error:
            if self.over:
                raise
            return "caught", describe(error)
        finally:
            await self.clean_up(path, it.cleanup)

    async def do_Generate(self, path: str, it: Generate) -> Any:
        generator = self.generator(path, it)
        seen = []
        if it.end == "keep":
            self.kept.append(generator)
        async for number in generator:
            seen.append(number)
            if len(seen) == it.reads:
                break
        if it.end == "close":
            await generator.aclose()
        return seen

    async def generator(self, path: str, it: Generate) -> AsyncGenerator[int, None]:
        try:
            for number in range(3):
                yield number
                await self.body(f"{path}.{number}", it.body)
        finally:
            await self.clean_up(path, it.cleanup)

    async def clean_up(self, path: str, body: Body) -> None:
        if not self.over:  # what is destroyed afterwards must not wait
            await self.body(f"{path}.cleanup", body)


def outcome(make_loop: Callable[[Callable[[], None]], asyncio.AbstractEventLoop], program: Program) -> Any:
    """What *program* comes to, and the whole log, on the loop that *make_loop* makes.

    *make_loop* is handed what to call when the loop is being closed: what runs after that is not part of it.
    """
    with warnings.catch_warnings(), mock.patch.object(sys, "unraisablehook"):
        # What is left may complain that it never ran, or that it cannot clean up because the loop is closed.
        warnings.simplefilter("ignore")
        result = _outcome(make_loop, program)
        gc.collect(0)  # what is left goes now and not later, in the run of another
    return result


def _outcome(make_loop: Callable[[Callable[[], None]], asyncio.AbstractEventLoop], program: Program) -> Any:
    run = Run()
    run.loop = make_loop(run.end)
    run.loop.set_exception_handler(run.note)

    async def main() -> Any:
        run.prepare()
        try:
            async with asyncio.timeout(_LIMIT_TICKS * TICK_S):
                run.tasks += [run.task(f"{number}", body) for number, body in enumerate(program)]
                return await asyncio.gather(*run.tasks)
        finally:
            await asyncio.sleep(_AFTERWARDS_TICKS * TICK_S)

    ending = _ending(run, main)
    run.over = True
    return ending, run.log


def _ending(run: Run, main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    ending: Any = None
    try:
        with asyncio.Runner(loop_factory=lambda: run.loop) as runner:
            try:
                ending = "returned", runner.run(main())
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException as error:
                ending = "raised", _described_end(error)
            run.say("main", *ending)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:
        return *ending, "closing raised", _described_end(error)
    return ending


def _described_end(error: BaseException) -> Any:
    return "stuck" if isinstance(error, StuckError) else describe(error)
