"""Tasks that do not exist until somebody looks at them, and runs that cost no task at all."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support.runs import a_graph, a_line, an_executor, node, run_clean
from tinyllm.eager import EagerTasks, Started
from tinyllm.executor import Executor
from tinyllm.message import Message, NodeResult, TaskPayload
from tinyllm.nodes.base import passed_on, success
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.trace import RunResult

pytestmark = pytest.mark.unit

TASK = TaskPayload(content="question")
VARIABLE: contextvars.ContextVar[str] = contextvars.ContextVar("VARIABLE", default="unset")
QUICK = [node("transform"), node("transform")]


class Counting(SimulatedLoop):
    """Counts the tasks that are made on it."""

    tasks_made = 0

    def remember(self, task: Any) -> None:
        self.tasks_made += 1
        super().remember(task)


def on_a_counting_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    loop = Counting()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


def on_every_loop(main: Callable[[], Coroutine[Any, Any, Any]]) -> list[Any]:
    """The results on the simulated loop, on asyncio's, and on that with a task factory."""

    async def with_a_factory() -> Any:
        def factory(loop: asyncio.AbstractEventLoop, coro: Any, **how: Any) -> asyncio.Task[Any]:
            return asyncio.Task(coro, loop=loop, **how)

        asyncio.get_running_loop().set_task_factory(factory)
        return await main()

    async def with_eager_tasks() -> Any:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        return await main()

    told = [run_clean(main()), asyncio.run(main()), asyncio.run(with_a_factory())]
    return told if sys.version_info < (3, 12) else [*told, asyncio.run(with_eager_tasks())]


def started(*coroutines: Coroutine[Any, Any, Any]) -> list[Any]:
    """What each gives that is started after the others, named n1, n2, ..."""
    tasks = EagerTasks(asyncio.get_running_loop())
    return [tasks.start(coroutine, "node", f"n{number}") for number, coroutine in enumerate(coroutines, 1)]


async def sees_its_task() -> None:
    assert asyncio.current_task() is not None


async def me() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None
    return task


# --- what a node sees of its task ------------------------------------------------------------------------


def seen_of(task: asyncio.Task[Any]) -> tuple[Any, ...]:
    return (
        isinstance(task, asyncio.Task),
        task.get_name(),
        task.done(),
        task.cancelling(),
        task in asyncio.all_tasks(),
        {task: 1}[task],
        task == asyncio.current_task(),
        task.get_name() in repr(task),
        task.get_loop() is asyncio.get_running_loop(),
        weakref.ref(task)() is task,
    )


def test_a_node_that_never_waits_sees_a_task_like_any_other():
    async def looks() -> tuple[Any, ...]:
        return seen_of(await me())

    async def main() -> Any:
        result = started(looks())
        await asyncio.sleep(0)
        return result

    expected = (True, "node n1", False, 0, True, 1, True, True, True, True)

    assert all([expected] == told for told in on_every_loop(main))


@pytest.mark.parametrize(
    "look",
    [repr, hash, lambda task: task.get_name(), lambda task: setattr(task, "mine", 5), lambda task: task.cancelling()],
    ids=["repr", "hash", "name", "attribute", "cancelling"],
)
def test_the_first_look_makes_the_task_real_and_the_next_coroutine_has_another(look):
    async def looks() -> int:
        task = await me()
        look(task)
        return id(task)

    async def number() -> int:
        return id(await me())

    async def main() -> Any:
        first, second, third = started(looks(), number(), number())
        await asyncio.sleep(0)
        return first == second, second == third

    assert all((False, True) == told for told in on_every_loop(main))


def test_whoever_walks_all_objects_and_asks_for_their_kind_makes_no_task():
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        tasks = EagerTasks(loop)
        before = loop.tasks_made
        tasks.start(sees_its_task(), "n")
        tasks_seen = [found for found in gc.get_objects() if isinstance(found, asyncio.Task)]
        assert tasks_seen
        return loop.tasks_made - before

    assert 0 == on_a_counting_loop(main)


def test_a_task_that_nobody_looked_at_can_be_looked_at_after_its_node_has_ended():
    async def main() -> Any:
        (task,) = started(me())
        name = task.get_name()
        await asyncio.sleep(0)
        return name, task.done(), task.cancelled()

    assert all(("node n1", True, False) == told for told in on_every_loop(main))


class Named:
    """What user code may keep a task in: it holds it, or only refers to it."""

    def __init__(self, task: asyncio.Task[Any]) -> None:
        self.held = task
        self.referred_to = weakref.ref(task)


@pytest.mark.parametrize("keep", [lambda task: task, Named, lambda task: lambda: task], ids=["itself", "in", "closure"])
def test_a_task_that_is_kept_is_of_nobody_else_and_ends(keep):
    kept: list[Any] = []

    async def keeps() -> None:
        kept.append(keep(await me()))

    async def main() -> Any:
        kept.clear()
        started(keeps(), keeps())
        tasks = [it if isinstance(it, asyncio.Task) else it.held if isinstance(it, Named) else it() for it in kept]
        names = [task.get_name() for task in tasks]
        # One turn after the first look.
        await asyncio.sleep(0)
        return [(name, task.done()) for name, task in zip(names, tasks, strict=True)], tasks[0] is tasks[1]

    assert all(([("node n1", True), ("node n2", True)], False) == told for told in on_every_loop(main))


def test_neither_errors_nor_garbage_decide_how_many_tasks_there_are():
    """When garbage is collected depends on all else in the process, and what is simulated must not."""
    kept: list[Any] = []

    async def fails() -> None:
        raise LookupError

    async def leaves_garbage() -> None:
        task = await me()
        cycle: list[Any] = [task]
        cycle.append(cycle)

    async def keeps() -> None:
        kept.append(await me())

    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        before = loop.tasks_made
        started(fails(), leaves_garbage(), keeps(), fails(), sees_its_task())
        return loop.tasks_made - before

    assert 0 == on_a_counting_loop(main)


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="there an error's frames keep those of their callers")
def test_an_error_is_freed_with_what_it_held_and_no_garbage_collection():
    class Held:
        pass

    async def fails() -> None:
        held = Held()
        freed.append(weakref.ref(held))
        raise LookupError

    async def main() -> None:
        started(fails(), sees_its_task())

    freed: list[weakref.ref[Held]] = []
    gc.disable()
    try:
        asyncio.run(main())
        assert freed[0]() is None
    finally:
        gc.enable()


def test_a_loop_inside_a_node_starts_tasks_of_its_own():
    async def inner(tasks: EagerTasks) -> asyncio.Task[Any]:
        nested = tasks.start(me(), "inner")
        assert isinstance(nested, asyncio.Task)
        return nested

    async def outer(tasks: EagerTasks) -> Any:
        before = await me()
        coroutine = inner(tasks)
        with pytest.raises(StopIteration) as stopped:
            coroutine.send(None)
        await asyncio.sleep(0)
        return before is await me(), stopped.value.value is before, before.get_name()

    async def main() -> Any:
        tasks = EagerTasks(asyncio.get_running_loop())
        going = tasks.start(outer(tasks), "outer")
        await asyncio.wait({going.task})
        return going.result()

    assert all((True, False, "outer") == told for told in on_every_loop(main))


def test_a_task_that_is_only_referred_to_is_of_nobody_else():
    referred: list[weakref.ref[asyncio.Task[Any]]] = []

    async def refers() -> None:
        referred.append(weakref.ref(await me()))

    async def main() -> Any:
        referred.clear()
        started(refers(), refers())
        return referred[0] is referred[1]

    assert all(told is False for told in on_every_loop(main))


def test_cancelling_a_task_that_was_kept_cancels_nobody_else():
    kept: list[asyncio.Task[Any]] = []

    async def keeps(message: Message, context: Any) -> NodeResult:
        kept.append(await me())
        return success(passed_on(message, context))

    async def waits(message: Message, context: Any) -> NodeResult:
        kept.pop().cancel()
        await asyncio.sleep(0)
        return success(passed_on(message, context))

    executor = an_executor(a_line(*QUICK), {"work": keeps, "work2": waits})

    assert all("succeeded" == told.status for told in on_every_loop(lambda: executor.execute(TASK)))


def test_its_task_can_be_awaited_by_whom_it_starts():
    async def starts() -> asyncio.Task[None]:
        async def waits_for(task: asyncio.Task[Any]) -> None:
            await task

        return asyncio.create_task(waits_for(await me()))

    async def main() -> Any:
        (helper,) = started(starts())
        async with asyncio.timeout(5):
            await helper
        return helper.cancelled()

    assert all(told is False for told in on_every_loop(main))


def test_it_can_not_await_itself():
    async def awaits() -> str:
        try:
            await (await me())
        except RuntimeError as error:
            return str(error)
        return "it could"

    async def main() -> Any:
        (going,) = started(awaits())
        await asyncio.wait({going.task})
        return going.result()

    assert all("await" in told and told != "it could" for told in on_every_loop(main))


def test_callbacks_on_its_own_task_are_called_when_the_node_has_ended():
    async def main() -> Any:
        heard: list[bool] = []

        async def adds() -> None:
            (await me()).add_done_callback(lambda task: heard.append(task.done()))

        async def adds_and_waits() -> None:
            await adds()
            await asyncio.sleep(0)

        started(adds(), adds_and_waits())
        for _ in range(6):
            await asyncio.sleep(0)
        return heard

    assert all([True, True] == told for told in on_every_loop(main))


def test_a_task_group_and_a_timeout_inside_work_without_a_wait_before_them():
    async def opens() -> Any:
        async with asyncio.timeout(5), asyncio.TaskGroup() as group:
            task = group.create_task(asyncio.sleep(0, "x"))
        return task.result(), (await me()).cancelling()

    async def main() -> Any:
        (going,) = started(opens())
        assert isinstance(going, Started)
        assert going.task is not None
        await asyncio.wait({going.task})
        return going.result()

    assert all(("x", 0) == told for told in on_every_loop(main))


@pytest.mark.parametrize("looks", [False, True])
def test_what_one_coroutine_sets_the_next_does_not_see(looks):
    async def sets() -> str:
        VARIABLE.set("inside")
        if looks:
            (await me()).get_name()
        return VARIABLE.get()

    async def reads() -> str:
        return VARIABLE.get()

    async def main() -> Any:
        VARIABLE.set("outside")
        return started(sets(), reads(), sets(), reads()), VARIABLE.get()

    expected = (["inside", "outside"] * 2, "outside")

    assert all(expected == told for told in on_every_loop(main))


def test_values_of_context_variables_are_never_compared():
    class Column:
        def __eq__(self, other: object) -> bool:
            raise TypeError("elementwise")

        __hash__ = object.__hash__

    columns: contextvars.ContextVar[Any] = contextvars.ContextVar("columns")

    async def sets() -> None:
        columns.set(Column())

    async def reads() -> Any:
        return columns.get()

    async def main() -> Any:
        mine = Column()
        columns.set(mine)
        return started(sets(), reads())[1] is mine

    assert all(told is True for told in on_every_loop(main))


def test_a_value_that_equals_the_one_before_it_is_not_seen_by_the_next():
    async def sets() -> None:
        VARIABLE.set("".join(["out", "side"]))

    async def reads() -> str:
        return VARIABLE.get()

    async def main() -> Any:
        outside = "".join(["outsid", "e"])
        VARIABLE.set(outside)
        return started(sets(), reads())[1] is outside

    assert all(told is True for told in on_every_loop(main))


def test_a_coroutine_inside_another_has_a_task_of_its_own():
    async def outer() -> Any:
        before = await me()
        (inner,) = started(me())
        return before is await me(), inner is before

    async def main() -> Any:
        return started(outer())

    assert all([(True, False)] == told for told in on_every_loop(main))


# --- tasks that others make -------------------------------------------------------------------------------


def wraps(loop: asyncio.AbstractEventLoop, coro: Any, **how: Any) -> asyncio.Task[Any]:
    """What libraries that watch tasks do."""

    async def wrapped() -> Any:
        return await coro

    return asyncio.Task(wrapped(), loop=loop, **how)


def insists(loop: asyncio.AbstractEventLoop, coro: Any, **how: Any) -> asyncio.Task[Any]:
    if not inspect.iscoroutine(coro):
        raise TypeError(f"a coroutine was expected, got {coro!r}")
    return asyncio.Task(coro, loop=loop, **how)


async def waits(message: Message, context: Any) -> NodeResult:
    await asyncio.sleep(0.001)
    return success(passed_on(message, context))


FAN = {"fan": node("fanout", target_nodes=["a", "b"]), "a": node("model"), "b": node("model")}


def a_fan(acts: dict[str, Any], **config: Any) -> Executor:
    return an_executor(a_graph(FAN, [("start", "fan"), ("fan", "end")]), acts, **config)


@pytest.mark.parametrize("factory", [wraps, insists])
@pytest.mark.parametrize(
    "make", [lambda: an_executor(a_line(), {"work": waits}), lambda: a_fan({"a": waits, "b": waits})]
)
def test_task_factories_get_a_coroutine_that_can_be_awaited(factory, make):
    async def main() -> RunResult:
        asyncio.get_running_loop().set_task_factory(factory)
        return await make().execute(TASK)

    assert "succeeded" == asyncio.run(main()).status


@pytest.mark.parametrize("factory", [None, insists, wraps])
@pytest.mark.parametrize(
    "make", [lambda **c: an_executor(a_line(), {"work": waits}, **c), lambda **c: a_fan({"a": waits, "b": waits}, **c)]
)
def test_a_run_cancelled_before_its_task_had_a_turn_leaves_nothing(factory, make):
    executor = make(max_concurrent_runs=1, max_queued_runs=0)

    async def main() -> tuple[bool, int, str]:
        asyncio.get_running_loop().set_task_factory(factory)
        caller = asyncio.ensure_future(executor.execute(TASK))
        # In this turn of the loop the caller begins its run, whose tasks come behind this one.
        await asyncio.sleep(0)
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert len(others) >= 3
        # As `asyncio.run` does when it ends.
        for task in others:
            task.cancel()
        await asyncio.wait({caller})
        for _ in range(20):
            await asyncio.sleep(0)
        return caller.cancelled(), len(asyncio.all_tasks()), (await executor.execute(TASK)).status

    assert (True, 1, "succeeded") == asyncio.run(main())


def test_a_task_factory_that_refuses_stops_what_had_begun():
    def refuses(loop: asyncio.AbstractEventLoop, coro: Any, **how: Any) -> asyncio.Task[Any]:
        raise ValueError("no tasks here")

    executor = an_executor(a_line(), {"work": waits}, max_concurrent_runs=1, max_queued_runs=0)

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        loop.set_task_factory(refuses)
        with pytest.raises(ValueError, match="no tasks here"):
            await executor.execute(TASK)
        loop.set_task_factory(None)
        for _ in range(20):
            await asyncio.sleep(0)
        return len(asyncio.all_tasks()), (await executor.execute(TASK)).status

    assert (1, "succeeded") == asyncio.run(main())


def test_tasks_written_in_python_serve_as_well(monkeypatch):
    """There are programs that put them in the place of the compiled ones, to run loops inside loops."""
    monkeypatch.setattr(asyncio, "Task", asyncio.tasks._PyTask)

    async def main() -> Any:
        quick, looking, waiting = started(asyncio.sleep(0, "slept"), me(), asyncio.sleep(0.001, "slept"))
        await asyncio.wait({quick.task, waiting.task})
        return quick.result(), isinstance(looking, asyncio.tasks._PyTask), waiting.result()

    assert ("slept", True, "slept") == asyncio.run(main())


def test_callers_may_run_in_tasks_of_their_own_kind():
    class Labelled(asyncio.Task[Any]):
        def __init__(self, coro: Any, label: str, *, loop: asyncio.AbstractEventLoop) -> None:
            super().__init__(coro, loop=loop)
            self.label = label

    async def main() -> RunResult:
        return await Labelled(
            an_executor(a_line(), {"work": waits}).execute(TASK), "label", loop=asyncio.get_running_loop()
        )

    assert "succeeded" == asyncio.run(main()).status


# --- runs ------------------------------------------------------------------------------------------------


def test_a_run_that_never_waits_costs_no_task_and_one_turn_of_the_loop():
    executor = an_executor(a_line(*QUICK))

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        before = (loop.tasks_made, loop.steps)
        result = await executor.execute(TASK)
        return result.status, loop.tasks_made - before[0], loop.steps - before[1]

    assert ("succeeded", 0, 1) == on_a_counting_loop(main)


def test_a_fanout_costs_a_task_only_for_targets_that_wait():
    """Each of those has two: one is the node's, one waits for it and would stop it."""
    nodes = {
        "fan": node("fanout", target_nodes=["quick", "slow", "quick"]),
        "quick": node("transform"),
        "slow": node("model"),
    }
    executor = an_executor(a_graph(nodes, [("start", "fan"), ("fan", "end")]))

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        before = loop.tasks_made
        result = await executor.execute(TASK)
        # The run itself waits too.
        return result.status, loop.tasks_made - before

    assert ("succeeded", 3) == on_a_counting_loop(main)


def test_a_caller_with_many_runs_that_never_wait_lets_others_go_on_and_can_be_cancelled():
    executor = an_executor(a_line(*QUICK))

    async def for_ever() -> None:
        while True:
            await executor.execute(TASK)

    async def main() -> bool:
        caller = asyncio.create_task(for_ever())
        for _ in range(10):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait({caller})
        return caller.cancelled()

    assert run_clean(main()) is True


ROUND = a_graph(
    {"work": node("transform"), "work2": node("transform")},
    [("start", "work"), ("work", "work2"), ("work2", "work"), ("work2", "end", "content == 'never'", 5)],
    allow_cycles=True,
)
LOOP = a_graph(
    {"loop": node("loop", body_node="body", max_iterations=1_000), "body": node("transform")},
    [("start", "loop"), ("loop", "end")],
)


@pytest.mark.parametrize("graph", [ROUND, LOOP], ids=["visits", "iterations"])
def test_a_run_that_never_waits_lets_others_go_on_and_can_be_cancelled(graph):
    executor = an_executor(graph, max_steps=1_000_000)

    async def main() -> tuple[str, bool]:
        run = asyncio.create_task(executor.execute(TASK, run_id="r"))
        await asyncio.sleep(0)
        assert executor.cancel("r")
        result = await run
        return result.status, 50 < result.nodes_executed < 500

    assert ("cancelled", True) == run_clean(main())


def test_of_runs_that_ended_nothing_is_held_but_their_results():
    """Also while their callers have not gone on yet: a thousand at once would keep the garbage collector busy."""
    executor = an_executor(a_line(*QUICK))
    of_runs: list[int] = []

    def count() -> None:
        messages = [found for found in gc.get_objects() if type(found) is Message]
        of_runs.append(sum(message.trace_id not in before for message in messages))

    async def main() -> list[RunResult]:
        runs = [asyncio.create_task(executor.execute(TASK)) for _ in range(20)]
        asyncio.get_running_loop().call_soon(count)
        return list(await asyncio.gather(*runs))

    gc.collect()
    before = {found.trace_id for found in gc.get_objects() if type(found) is Message}

    assert 20 == len(run_clean(main()))
    assert [20] == of_runs


def test_runs_inside_runs_do_not_use_up_the_stack():
    def around(inner: Executor) -> Executor:
        async def runs(message: Message, context: Any) -> NodeResult:
            result = await inner.execute(TASK)
            return NodeResult(success=result.status == "succeeded", error=result.error)

        return an_executor(a_line(), {"work": runs})

    executor = an_executor(a_line(*QUICK))
    for _ in range(150):
        executor = around(executor)

    assert "succeeded" == run_clean(executor.execute(TASK)).status


def test_a_node_that_is_interrupted_ends_its_fanout_when_the_loop_goes_on():
    async def interrupted(message: Message, context: Any) -> NodeResult:
        raise KeyboardInterrupt

    # With a breaker a target begins in a task of its own.
    executor = a_fan({"a": waits, "b": interrupted}, breaker={})
    loop = asyncio.new_event_loop()
    loop.set_exception_handler(lambda *_: None)
    try:
        run = loop.create_task(executor.execute(TASK))
        interrupts = 0
        while not run.done() or asyncio.all_tasks(loop):
            try:
                loop.run_until_complete(asyncio.sleep(0.01))
            except KeyboardInterrupt:
                interrupts += 1
                # Or this would not end where it fails.
                assert interrupts < 10
    finally:
        loop.close()

    assert isinstance(run.exception(), KeyboardInterrupt)


def test_a_run_of_a_loop_that_was_closed_does_not_keep_its_id():
    executor = an_executor(a_line(), {"work": waits})

    async def main() -> str:
        return (await executor.execute(TASK, run_id="r")).status

    lost = asyncio.new_event_loop()
    run = lost.create_task(main())
    lost.run_until_complete(asyncio.sleep(0))
    lost.run_until_complete(asyncio.sleep(0))
    run._log_destroy_pending = False
    for task in asyncio.all_tasks(lost):
        task._log_destroy_pending = False
    lost.close()

    assert "succeeded" == asyncio.run(main())
