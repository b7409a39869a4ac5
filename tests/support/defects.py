"""Wrong behaviours that the suite must catch, as one list: each changes a line of the engine's source.

A defect says which function it changes, what stands there now and what stands there instead. The function is
compiled anew from its changed source and put in the place of the old one, wherever that is known by name.
"""

from __future__ import annotations

import inspect
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest import mock

from tinyllm import policy
from tinyllm.nodes import asking, fanout
from tinyllm.nodes.entry import EntryNode
from tinyllm.nodes.exit import ExitNode
from tinyllm.nodes.fanout import FanoutNode
from tinyllm.nodes.gate import GateNode
from tinyllm.nodes.model import ModelNode
from tinyllm.running import Run, _Branches, _Targets, _Walk


@dataclass(frozen=True)
class Defect:
    """In `changes`, `old` stands exactly once and becomes `new`."""

    name: str
    changes: Callable[..., Any]
    old: str
    new: str

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def planted(self) -> Iterator[None]:
        """Plant the defect for the length of a `with` block."""
        replacement = self._compiled()
        with ExitStack() as patches:
            for owner, name in self._places():
                patches.enter_context(mock.patch.object(owner, name, replacement))
            yield

    def _compiled(self) -> Callable[..., Any]:
        source = textwrap.dedent(inspect.getsource(self.changes))
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.name}: {self.old!r} stands {source.count(self.old)} times in {self.changes.__name__}"
            )
        module = sys.modules[self.changes.__module__]
        made: dict[str, Any] = {}
        code = compile("from __future__ import annotations\n" + source.replace(self.old, self.new), "<defect>", "exec")
        exec(code, vars(module), made)
        return made[self.changes.__name__]

    def _places(self) -> list[tuple[object, str]]:
        """Where the function is known: its class, or every module of the engine that imported it."""
        name = self.changes.__name__
        *owners, _ = self.changes.__qualname__.split(".")
        if owners:
            return [(getattr(sys.modules[self.changes.__module__], owners[0]), name)]
        modules = [
            m for key, m in sorted(sys.modules.items()) if key.startswith("tinyllm.") and isinstance(m, ModuleType)
        ]
        return [(module, name) for module in modules if vars(module).get(name) is self.changes]


DEFECTS = (
    Defect("a retry too many", policy.may_retry, "<= config.retry_count", "<= config.retry_count + 1"),
    Defect("a retry too few", policy.may_retry, "<= config.retry_count", "< config.retry_count"),
    Defect("a retry of what is not recoverable", policy.may_retry, "error.recoverable and ", ""),
    Defect(
        "a join in order of completion",
        _Targets.run_targets,
        "[branches.outcomes.get(index) for index in range(len(targets))]",
        "list(branches.outcomes.values())",
    ),
    Defect(
        "a leaked task",
        Run._leaf,
        "await self._stop(task, where)",
        "self._loop.create_task(asyncio.sleep(3), name='leak')",
    ),
    Defect("a step too many", Run._step, "self._steps >= ", "self._steps > "),
    Defect("a step uncounted in a fanout", Run._step, "self._steps += 1", "self._steps += '.' not in path"),
    Defect("an attempt that runs on when it is cut off", Run._stop, "if task.done():", "if True:"),
    Defect(
        "a retry that forgets the deadline",
        Run._attempts,
        "await scope.sleep_until(self._loop.time() + delay_ms / 1_000)",
        "await asyncio.sleep(delay_ms / 1_000)",
    ),
    Defect(
        "a deadline that loses ties",
        Run._leaf,
        "is None:\n            # A node that cancelled",
        "is None or task.done():\n            # A node that cancelled",
    ),
    Defect(
        "a run deadline off by one",
        Run.__init__,
        "self._config.timeout_ms / 1_000",
        "(self._config.timeout_ms + 1) / 1_000",
    ),
    Defect("a lost default target", GateNode.execute, "elif config.default_target is not None:", "elif False:"),
    Defect(
        "a gate that takes the last condition",
        GateNode._first_that_holds,
        "in self._parsed:",
        "in reversed(self._parsed):",
    ),
    Defect("a hybrid gate that never asks", GateNode.execute, 'config.mode != "expression"', 'config.mode == "llm"'),
    Defect("a vote that the last voter wins", fanout.winning_vote, "voters[0]))[0]", "voters[0]))[-1]"),
    Defect(
        "a tie that the later voter wins",
        fanout.winning_vote,
        "(-len(voters), voters[0])",
        "(-len(voters), -voters[0])",
    ),
    Defect("votes compared with case", fanout.count_votes, ".casefold()", ""),
    Defect("an empty answer that votes", fanout.count_votes, "if answer:", "if True:"),
    Defect("a fanout that ignores failures", FanoutNode._joined, "if failures and strict:", "if False:"),
    Defect("a fanout without a cap", _Targets.run_targets, "len(branches.running) < at_once and ", ""),
    Defect("a fanout that does not fail fast", _Branches.collect, "self._group.close(SIBLING)", "pass"),
    Defect(
        "a target without a limit of its own", Run.run_target, "timeout_ms / 1_000) as limit", "timeout_ms) as limit"
    ),
    Defect(
        "a fixed delay that doubles",
        policy.RetryDelays._own_ms,
        "return delay\n",
        "self._retry += 1\n        return delay * 2 ** (self._retry - 1)\n",
    ),
    Defect("a jitter of another path", Run._attempts, "path=path)\n    attempt", "path='1')\n    attempt"),
    Defect(
        "an error way that degrades",
        Run._after_failure,
        'if onward.how == "on_error":',
        'if onward.how == "on_error":\n        walk.first_absorbed = error\n    if onward.how == "on_error":',
    ),
    Defect("an error that is not passed on", Run._after_failure, "replace(error=error)", "replace()"),
    Defect("an absorbed failure too many", policy.after_failure, "absorbed >= config", "absorbed > config"),
    Defect("an entry whose failure is absorbed", policy.after_failure, " or node.type is NodeType.ENTRY", ""),
    Defect("the last absorbed error told", Run._after_failure, "walk.first_absorbed or error", "error"),
    Defect(
        "unconditional edges first",
        Run._go_on,
        "if edge.condition is not None and self._holds",
        "if edge.condition is None or self._holds",
    ),
    Defect(
        "conditions on the message received",
        Run._visit,
        "walk.message = outcome.message",
        "walk.message = outcome.message if node.definition.type is NodeType.EXIT else walk.message",
    ),
    Defect("a failed condition that holds", Run._holds, "return False", "return True"),
    Defect(
        "an exit that keeps the error",
        ExitNode.execute,
        "passed_on(message, context, ",
        "passed_on(message, context, error=message.payload.error, ",
    ),
    Defect("a degraded run that claims success", _Walk.ending, '"degraded", self.first', '"succeeded", self.first'),
    Defect("an entry that checks nothing", EntryNode.execute, "if missing:", "if False:"),
    Defect("a model that asks no fallback", ModelNode._requests, "in config.models()", "in config.models()[:1]"),
    Defect(
        "fallback models without their limit",
        ModelNode._first_answer,
        "config.fallback_timeout_ms if len(requests) > 1 else None",
        "None",
    ),
    Defect(
        "tokens counted twice",
        asking.ask,
        "context.count_tokens(response.tokens_in + response.tokens_out)",
        "context.count_tokens(2 * (response.tokens_in + response.tokens_out))",
    ),
)
