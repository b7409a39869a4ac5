"""The steps inside a wrapper: targets that run at once, and steps within a limit of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from tinyllm.context import Joined, StepOutcome
from tinyllm.eager import TURN_EVERY, Started, one_turn, start_own
from tinyllm.errors import ErrorCode
from tinyllm.message import ErrorInfo, Message, MessagePayload, child_owning
from tinyllm.scopes import CutShort, Scope

if TYPE_CHECKING:
    from tinyllm.stepping import Attempt, Stepper

#: Why the scope around the targets of a fanout is closed.
SIBLING, BROKEN = "a sibling decided", "what runs them broke"

Variables = Mapping[str, Any]
#: A target that has begun: its task if it waits, what came of it if not, or what is over around it.
_Begun = Started | StepOutcome | CutShort


class InnerSteps:
    """Runs the nodes inside one wrapper's attempt."""

    def __init__(self, stepper: Stepper, attempt: Attempt) -> None:
        self._stepper = stepper
        self._source = attempt.node.id
        self._path = attempt.path
        self._scope = attempt.scope

    def limit(self, timeout_ms: int) -> InnerLimit:
        """See `Steps.limit`."""
        deadline = self._stepper.now() + timeout_ms / 1_000
        return InnerLimit(self._stepper, self._source, self._path, Scope(self._scope, deadline=deadline))

    async def run_targets(
        self,
        targets: tuple[str, ...],
        message: Message,
        variables: Variables,
        *,
        timeout_ms: int,
        at_once: int,
        stop_at: Literal["failure", "success"] | None,
    ) -> Joined:
        """See `Steps.run_targets`. When a scope around all of them is over, all end before CutShort is raised."""
        with Scope(self._scope) as group:
            branches = _Branches(group, stop_at)
            following, total = 0, len(targets)
            try:
                while following < total or branches.running:
                    while following < total and len(branches.running) < at_once and not group.is_over():
                        path = f"{self._path}.{following + 1}"
                        begun = self._begun_target(targets[following], message, variables, path, group, timeout_ms)
                        branches.add(following, begun)
                        following += 1
                    if branches.running:
                        await branches.collect()
                    elif group.is_over():
                        break
            except BaseException as error:
                # A clock that raises, say: no target may go on without the fanout.
                if not group.tree.loop.is_closed():
                    group.close(BROKEN)
                if not isinstance(error, (GeneratorExit, KeyboardInterrupt)):
                    await branches.all_ended()
                raise
        self._scope.check()
        return Joined([branches.outcomes.get(index) for index in range(total)], branches.decided_by)

    def _begun_target(
        self, target: str, message: Message, variables: Variables, path: str, group: Scope, timeout_ms: int
    ) -> _Begun:
        """Begin one target within its own limit: what came of it if it did not wait, else the task that goes on."""
        stepper = self._stepper
        executor = stepper.executor
        payload = message.payload.copied()
        child = child_owning(message, payload, self._source, target, executor.ids(), executor.clock())
        limit = Scope(group, deadline=stepper.now() + timeout_ms / 1_000)
        try:
            begun = stepper.begin(executor.nodes[target], child, path, limit, variables)
        except CutShort as cut:
            return cut if cut.scope is not limit else self._too_late(target, child, timeout_ms)
        if type(begun) is StepOutcome:
            return begun
        rest: _Begun = start_own(self._rest_of_target(begun, child, limit, timeout_ms), target, path)
        return rest

    async def _rest_of_target(
        self, attempt: Attempt, child: Message, limit: Scope, timeout_ms: int
    ) -> StepOutcome | CutShort:
        with limit:
            try:
                outcome = await self._stepper.rest(attempt, child, fails_at=limit)
                limit.check()
            except CutShort as cut:
                return cut if cut.scope is not limit else self._too_late(attempt.node.id, child, timeout_ms)
            return outcome

    def _too_late(self, target: str, child: Message, timeout_ms: int) -> StepOutcome:
        """Being cut off by the limit of a target is its `TIMEOUT`."""
        text = f"{target!r} took the {timeout_ms} ms that {self._source!r} allows"
        return StepOutcome(child, error=ErrorInfo(code=ErrorCode.TIMEOUT, message=text, node_id=target))


class InnerLimit:
    """A time for the steps inside a loop or a timeout; use it in a `with`."""

    def __init__(self, stepper: Stepper, source: str, path: str, scope: Scope) -> None:
        self._stepper = stepper
        self._source = source
        self._path = path
        self._scope = scope
        self._runs = 0

    def __enter__(self) -> InnerLimit:
        return self

    def __exit__(self, *_: object) -> None:
        self._scope.__exit__()

    def over(self) -> bool:
        """Whether this time is up; raises CutShort if something around it is over."""
        outermost = self._scope.outermost_over()
        if outermost is None or outermost is self._scope:
            return outermost is not None
        raise CutShort(outermost)

    async def run(
        self, node_id: str, message: Message, payload: MessagePayload, variables: Variables, *, suffix: str = ""
    ) -> StepOutcome | None:
        """See `Limit.run`."""
        stepper = self._stepper
        self._runs += 1
        if self._runs % TURN_EVERY == 0:
            await one_turn()
        child = stepper.child(message, self._source, node_id, payload.copied())
        try:
            node = stepper.executor.nodes[node_id]
            outcome = await stepper.step(node, child, self._path + suffix, self._scope, variables)
        except CutShort as cut:
            if cut.scope is not self._scope:
                raise
            return None
        return None if self.over() else outcome


class _Branches:
    """Branches that run at once, and what came of those that ended."""

    def __init__(self, group: Scope, stop_at: Literal["failure", "success"] | None) -> None:
        self._group = group
        self._stop_at = stop_at
        self._someone_ended: asyncio.Future[None] | None = None
        #: Those whose end was not taken in yet, and of them those that wait.
        self.running: dict[int, _Begun] = {}
        self.outcomes: dict[int, StepOutcome] = {}
        self.decided_by: int | None = None

    def add(self, index: int, begun: _Begun) -> None:
        """A branch that has begun. What its end decides is decided when all that can begin have begun."""
        if type(begun) is StepOutcome and self._stop_at is None:
            self.outcomes[index] = begun
            return
        self.running[index] = begun
        if type(begun) is Started:
            assert begun.task is not None
            begun.task.add_done_callback(self._wake)

    def _wake(self, _: object) -> None:
        if self._someone_ended is not None and not self._someone_ended.done():
            self._someone_ended.set_result(None)

    async def collect(self) -> None:
        """Wait until a branch has ended, and take the results of all that have, in order."""
        while not (ended := self._ended()):
            await self._one_more_end()
        for index in ended:
            result = self.running.pop(index)
            if type(result) is Started:
                result = result.result()
            if type(result) is not StepOutcome:
                continue
            self.outcomes[index] = result
            if self.decided_by is None and self._stop_at == ("success" if result.success else "failure"):
                self.decided_by = index
                self._group.close(SIBLING)

    async def all_ended(self) -> None:
        """Wait until all have ended, and take no results."""
        while len(self._ended()) < len(self.running):
            await self._one_more_end()

    async def _one_more_end(self) -> None:
        self._someone_ended = self._group.tree.loop.create_future()
        await self._someone_ended

    def _ended(self) -> list[int]:
        return [index for index, it in self.running.items() if type(it) is not Started or it.is_over()]
