"""Tasks that do not exist until somebody looks at them, and runs that cost no task at all."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from tests.support.runs import a_graph, a_line, an_executor, node, run_clean
from tinyllm.eager import EagerTasks, Started
from tinyllm.message import Message, TaskPayload
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
    async def looks() -> asyncio.Task[Any]:
        look(await me())
        return await me()

    async def main() -> Any:
        first, second, third = started(looks(), me(), me())
        same = (first is second, second is third)
        await asyncio.sleep(0)
        return first.done(), *same

    assert all((True, False, True) == told for told in on_every_loop(main))


def test_whoever_walks_all_objects_and_asks_for_their_kind_makes_no_task():
    async def main() -> int:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        tasks = EagerTasks(loop)
        before = loop.tasks_made
        tasks.start(me(), "n")
        tasks_seen = [found for found in gc.get_objects() if isinstance(found, asyncio.Task)]
        assert tasks_seen
        return loop.tasks_made - before

    loop = Counting()
    try:
        assert 0 == loop.run_until_complete(main())
    finally:
        loop.close()


def test_a_task_that_nobody_looked_at_can_be_looked_at_after_its_node_has_ended():
    async def main() -> Any:
        (task,) = started(me())
        name = task.get_name()
        await asyncio.sleep(0)
        return name, task.done(), task.cancelled()

    assert all(("node n1", True, False) == told for told in on_every_loop(main))


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


def test_a_coroutine_inside_another_has_a_task_of_its_own():
    async def outer() -> Any:
        before = await me()
        (inner,) = started(me())
        return before is await me(), inner is before

    async def main() -> Any:
        return started(outer())

    assert all([(True, False)] == told for told in on_every_loop(main))


# --- runs ------------------------------------------------------------------------------------------------


def test_a_run_that_never_waits_costs_no_task_and_one_turn_of_the_loop():
    executor = an_executor(a_line(*QUICK))

    async def main() -> Any:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Counting)
        before = (loop.tasks_made, loop.steps)
        result = await executor.execute(TASK)
        return result.status, loop.tasks_made - before[0], loop.steps - before[1]

    loop = Counting()
    try:
        assert ("succeeded", 0, 1) == loop.run_until_complete(main())
    finally:
        loop.close()


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

    loop = Counting()
    try:
        assert ("succeeded", 3) == loop.run_until_complete(main())
    finally:
        loop.close()


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
