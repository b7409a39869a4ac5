"""The world of one graph: one loop, one network of scripted hosts, one clock, and the runs that live in it.

A world is made from values, lives through its storm, is healed, comes to rest, and leaves a `History`.
Nothing in it knows the real time, and two worlds made from equal values live the same life.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from tinyllm.config import ExecutorConfig
from tinyllm.executor import Executor
from tinyllm.graph import Graph
from tinyllm.message import TaskPayload
from tinyllm.models.ollama import OllamaClient
from tinyllm.testing.history import History, Rest, RunRecord
from tinyllm.testing.http.network import Network
from tinyllm.testing.loop import OWNER, LivelockError, SimulatedLoop, StuckError
from tinyllm.testing.ollama_host import CallRecord, OllamaHost, Voice
from tinyllm.testing.schedule import Schedule
from tinyllm.testing.script import Script
from tinyllm.testing.unhandled import described
from tinyllm.testing.units import EPOCH, NS_PER_MS

#: After the storm a world may take this much simulated time to come to rest.
REST_NS = 3_600 * 1_000 * NS_PER_MS
#: Steps of the loop that one world may take before it counts as a livelock.
STEPS_MAX = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class RunPlan:
    """One run to submit: its input, when it starts and whether it is cancelled, in simulated milliseconds."""

    content: str = ""
    context: str | None = None
    start_ms: int = 0
    cancel_after_ms: int | None = None


class GraphWorld:
    """Runs of one graph in a simulated world. Use it as a context manager, or call `close`."""

    def __init__(
        self,
        graph: Graph,
        script: Script,
        *,
        config: ExecutorConfig | None = None,
        schedule: Schedule = (),
        external_only: bool = True,
        seed: int = 0,
    ) -> None:
        self.graph = graph
        self.script = script
        self.config = config or ExecutorConfig()
        self.loop = SimulatedLoop(schedule, external_only=external_only, max_steps=STEPS_MAX)
        self.network = Network(self.loop)
        self.calls: list[CallRecord] = []
        self.runs: list[RunRecord] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ids = 0
        self._rest = Rest(at_rest=True)
        made: Counter[Voice] = Counter()
        for name in dict.fromkeys(script.hosts.values()):
            host = OllamaHost(
                name,
                script,
                self.calls,
                made,
                time_ns=lambda: self.loop.time_ns,
                clock=self.clock,
                run_index=lambda run_id: int(run_id.removeprefix("run-")) - 1,
            )
            self.network.serve(name, host)
        urls = {model: f"http://{host}:11434" for model, host in script.hosts.items()}
        self.model = OllamaClient("http://nowhere", hosts=urls, transport=self.network.transport())
        self.executor = Executor(
            graph, config=self.config, model=self.model, clock=self.clock, ids=self.new_id, rng=random.Random(seed)
        )

    def __enter__(self) -> GraphWorld:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Dispose of the loop and all that is left on it. Closing twice does nothing."""
        if not self.loop.is_closed():
            self.loop.close()

    def clock(self) -> datetime:
        """The wall clock of this world."""
        return EPOCH + timedelta(microseconds=self.loop.time_ns // 1_000)

    def new_id(self) -> str:
        """An identifier that was not used in this world before."""
        self._ids += 1
        return f"id-{self._ids}"

    # --- living ------------------------------------------------------------------------------------

    def submit(self, plan: RunPlan) -> int:
        """Start a run after `plan.start_ms` from now; gives its index. Nothing happens until time passes."""
        index = len(self.runs)
        record = RunRecord(index=index, run_id=f"run-{index + 1}", plan=plan)
        self.runs.append(record)
        context = contextvars.copy_context()
        context.run(OWNER.set, record.run_id)
        task = self.loop.create_task(self._live(record), name=record.run_id, context=context)
        self._tasks.append(task)
        return index

    def cancel(self, index: int) -> None:
        """Ask a run to stop, as its user would; does nothing before its start or after its end."""
        record = self.runs[index]
        if self.executor.cancel(record.run_id):
            record.cancelled_ns = self.loop.time_ns

    def advance(self, ms: int) -> None:
        """Let simulated time pass. What breaks the world while it does is put down in its `Rest`."""
        with self._watched():
            self.loop.advance(ms * NS_PER_MS)

    def heal(self) -> None:
        """End every fault; calls that are under way keep what they met. Healing twice does nothing."""
        if self.script.healed_at_ns is None:
            self.script.healed_at_ns = self.loop.time_ns

    def finish(self) -> History:
        """Let the storm end, heal, run once more, come to rest, and tell what happened.

        Every run has a deadline, so the storm ends by itself; the run after it must find the world whole.
        """
        self._settle()
        self.heal()
        self.submit(RunPlan(content="after the storm", start_ms=1))
        self._settle()
        self._come_to_rest()
        return History(
            graph=self.graph,
            config=self.config,
            script=self.script,
            runs=tuple(self.runs),
            calls=tuple(self.calls),
            holds=tuple(self.loop.applied_holds),
            rest=self._rest,
            simulated_ns=self.loop.time_ns,
        )

    async def _live(self, record: RunRecord) -> None:
        plan = record.plan
        await asyncio.sleep(plan.start_ms / 1_000)
        record.started_ns = self.loop.time_ns
        cancel: asyncio.TimerHandle | None = None
        if plan.cancel_after_ms is not None:
            # The cancel belongs to nobody's run: it is the user's.
            context = contextvars.copy_context()
            context.run(OWNER.set, None)
            delay_s = plan.cancel_after_ms / 1_000
            cancel = self.loop.call_later(delay_s, self.cancel, record.index, context=context)
        try:
            task = TaskPayload(content=plan.content, context=plan.context)
            record.result = await self.executor.execute(task, run_id=record.run_id)
        except Exception as error:  # noqa: BLE001
            # The engine promises never to raise for what happens inside a graph: a check judges this.
            record.raised = f"{type(error).__name__}: {error}"
        record.ended_ns = self.loop.time_ns
        if cancel is not None:
            cancel.cancel()
        record.orphans = tuple(self._left_behind(record.run_id))

    def _left_behind(self, run_id: str) -> Iterator[str]:
        """What a run that has just ended still has: tasks, timers, connections."""
        this = asyncio.current_task(self.loop)
        for task in self.loop.pending_tasks(run_id):
            if task is not this:
                yield f"task {task.get_name()}"
        for timer in self.loop.pending_timers(run_id):
            yield f"timer for {timer.when():.3f} s"
        for connection in self.network.open_connections(run_id):
            yield f"connection {connection.number} to {connection.host}"

    def _settle(self) -> None:
        """Wait until every run has ended."""
        with self._watched():
            waiting = [task for task in self._tasks if not task.done()]
            if waiting and self._rest.at_rest:
                self.loop.run_until_complete(_all_done(waiting))

    def _come_to_rest(self) -> None:
        with self._watched():
            if self._rest.at_rest and not self.loop.run_until_idle(REST_NS):
                self._rest.at_rest = False
                self._rest.reason = f"still busy {REST_NS // NS_PER_MS // 1_000} s after the last run"
            if self._rest.at_rest:
                self._rest.left = tuple(f"task {task.get_name()}" for task in self.loop.pending_tasks())
        self.loop.report_unseen()
        self._rest.unhandled = tuple(described(context) for context in self.loop.unhandled)

    def _watched(self) -> _Watch:
        return _Watch(self._rest)


class _Watch:
    """Puts down what stops the world, instead of raising it through the code that lets time pass."""

    def __init__(self, rest: Rest) -> None:
        self._rest = rest

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        if not isinstance(error, StuckError | LivelockError):
            return False
        self._rest.at_rest = False
        self._rest.reason = self._rest.reason or f"{type(error).__name__}: {error}"
        return True


async def _all_done(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        await asyncio.wait({task})
