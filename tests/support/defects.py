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

from tinyllm import leaf, policy
from tinyllm.breaker import CircuitBreaker
from tinyllm.held import HeldMessages
from tinyllm.inner import InnerSteps, _Branches
from tinyllm.nodes import asking, fanout, model, router, transform
from tinyllm.nodes.entry import EntryNode
from tinyllm.nodes.exit import ExitNode
from tinyllm.nodes.fanout import FanoutNode
from tinyllm.nodes.gate import GateNode
from tinyllm.nodes.loop import LoopNode, _State
from tinyllm.nodes.model import ModelNode
from tinyllm.nodes.router import RouterNode
from tinyllm.nodes.timeout import TimeoutNode
from tinyllm.nodes.tool import ToolNode
from tinyllm.nodes.transform import TransformNode
from tinyllm.running import Run, _Walk
from tinyllm.stepping import Attempt, Stepper


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


CORE_DEFECTS = (
    Defect("a retry too many", policy.may_retry, "<= config.retry_count", "<= config.retry_count + 1"),
    Defect("a retry too few", policy.may_retry, "<= config.retry_count", "< config.retry_count"),
    Defect("a retry of what is not recoverable", policy.may_retry, "error.recoverable and ", ""),
    Defect(
        "a join in order of completion",
        InnerSteps.run_targets,
        "[branches.outcomes.get(index) for index in range(total)]",
        "list(branches.outcomes.values())",
    ),
    Defect(
        "a leaked task",
        Stepper._cut_off,
        "attempt.ended_at = self.now()",
        "asyncio.get_running_loop().create_task(asyncio.sleep(3), name='leak')",
    ),
    Defect("a step too many", Stepper.begin, "self.steps >= self._steps_max", "self.steps > self._steps_max"),
    Defect("a step uncounted in a fanout", Stepper.begin, "self.steps += 1", "self.steps += '.' not in path"),
    Defect("an attempt that runs on when it is cut off", leaf.stop_task, "while not task.done():", "while False:"),
    Defect(
        "a retry that forgets the deadline",
        Stepper._after_failed,
        "await scope.sleep_until(self.now() + delay_ms / 1_000)",
        "await asyncio.sleep(delay_ms / 1_000)",
    ),
    Defect(
        "a deadline that loses ties",
        Attempt.is_late,
        ">=",
        ">",
    ),
    Defect(
        "a run deadline off by one",
        Run.walk,
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
    Defect(
        "a fanout that ignores failures",
        FanoutNode._result,
        "if failed and (config.require_all_success or config.fail_fast):",
        "if False:",
    ),
    Defect("a fanout without a cap", InnerSteps.run_targets, "len(branches.running) < at_once and ", ""),
    Defect(
        "a fanout that does not fail fast", _Branches.collect, "self._group.close(SIBLING)", "self._stop_at is self"
    ),
    Defect(
        "a target without a limit of its own",
        InnerSteps._begun_target,
        "timeout_ms / 1_000)",
        "timeout_ms)",
    ),
    Defect(
        "a fixed delay that doubles",
        policy.RetryDelays._own_ms,
        "return delay\n",
        "self._retry += 1\n        return delay * 2 ** (self._retry - 1)\n",
    ),
    Defect(
        "a jitter of another path", Stepper._after_failed, "seed=self._seed, path=path)", "seed=self._seed, path='1')"
    ),
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
        "if conditional and (",
        "if to is None and conditional and (",
    ),
    Defect(
        "conditions on the message received",
        Run._after_visit,
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

#: Fanouts: strategies, ties, quorums.
FANOUT_DEFECTS = (
    Defect("contents joined backwards", FanoutNode._all, "join(contents)", "join(reversed(contents))"),
    Defect(
        "results of those that succeeded only",
        FanoutNode._all,
        "joined.outcomes, strict=True)",
        "joined.outcomes, strict=True) if outcome is not None and outcome.success",
    ),
    Defect("a join that needs every target", FanoutNode._all, "if not good:", "if len(good) < len(joined.outcomes):"),
    Defect("results instead of what was there", FanoutNode._all, "{**received, ", "{"),
    Defect(
        "a race that fails fast",
        FanoutNode.execute,
        'if config.aggregation_strategy == "first_success":',
        'if config.aggregation_strategy == "first_success" and not config.fail_fast:',
    ),
    Defect("a race that waits for all", _Branches.collect, 'self._stop_at == ("success"', 'None == ("success"'),
    Defect(
        "a race in which all must succeed",
        FanoutNode._result,
        'if strategy == "first_success":',
        'if strategy == "first_success" and not (failed and config.require_all_success):',
    ),
    Defect("the lowest score", fanout.best_score, "max(scores", "min(scores"),
    Defect("a tie of scores that the last wins", fanout.best_score, "max(scores", "max(list(scores)[::-1]"),
    Defect(
        "scores of structured only",
        fanout._scores,
        "(metadata.get(field), structured.get(field))",
        "(structured.get(field),)",
    ),
    Defect("a quorum one short", fanout.winning_vote, ">= needed", ">= needed - 1"),
    Defect(
        "a winner without its structured",
        FanoutNode._winner,
        "chosen.message.payload)",
        "chosen.message.payload.replace(structured=message.payload.structured))",
    ),
)

LOOP_DEFECTS = (
    Defect("an iteration too many", LoopNode._ends_after, ">= config.count", "> config.count"),
    Defect(
        "a bound of iterations off by one", LoopNode._ends_before, ">= config.max_iterations", "> config.max_iterations"
    ),
    Defect(
        "a while that is asked after",
        LoopNode._ends_before,
        '== "while_condition" and not',
        '== "while_condition" and state.iterations and not',
    ),
    Defect(
        "an until that is asked before",
        LoopNode._ends_before,
        'if config.condition_type == "while_condition" and not self._holds(state, context):',
        'if config.condition_type != "fixed_count" and self._condition and self._holds(state, context) '
        '== (config.condition_type == "until_condition"):',
    ),
    Defect(
        "iterations that all begin with the input", _State.add, "self.good = outcome.message", "self.good = self.good"
    ),
    Defect("iterations counted from zero", LoopNode._iterate, "iteration=number", "iteration=number - 1"),
    Defect(
        "a loop without a limit", LoopNode.execute, ".limit(config.timeout_ms)", ".limit(config.timeout_ms * 1_000)"
    ),
    Defect(
        "a loop that fails at its time",
        LoopNode.execute,
        "if outcome is None:",
        "if outcome is None:\n                state.successes = 0",
    ),
    Defect(
        "an output of a failed iteration",
        _State.add,
        "outcome.message.payload.content if outcome.success else None",
        "outcome.message.payload.content",
    ),
    Defect("a failure that ends until_success", LoopNode.execute, ' or config.condition_type == "until_success"', ""),
    Defect("a loop that never continues", LoopNode.execute, "goes_on = config.continue_on_error or ", "goes_on = "),
    Defect(
        "a while that let none begin and fails",
        LoopNode._ended,
        'not (termination == "condition" and not state.iterations)',
        "True",
    ),
    Defect("a condition on the message received", LoopNode._holds, "names_of(state.good", "names_of(state.received"),
)

TIMEOUT_DEFECTS = (
    Defect("a fallback that is not taken", TimeoutNode.instead_of, '== "error"', '!= "skip"'),
    Defect("a skip that puts out the fallback", TimeoutNode.instead_of, '== "skip"', '== "none"'),
    Defect("a timeout that is always told", TimeoutNode.instead_of, "if config.propagate_metadata:", "if True:"),
    Defect("any failure taken for a timeout", TimeoutNode.instead_of, "error.code is not ErrorCode.TIMEOUT or ", ""),
    Defect("a fallback that is not marked", TimeoutNode.instead_of, ', "fallback": True', ""),
    Defect("ways that a timeout keeps", TimeoutNode.execute, ", *outcome.next_nodes)", ")"),
    Defect(
        "a timeout twice as long", TimeoutNode.execute, ".limit(config.timeout_ms)", ".limit(2 * config.timeout_ms)"
    ),
    Defect(
        "an action before the retries",
        Stepper._after_failed,
        "if not may_retry(node.config, attempt.number, failure):",
        "if not may_retry(node.config, attempt.number, failure) or node.instead_of(failure, message, attempt):",
    ),
)

ROUTER_DEFECTS = (
    Defect("a compound route of any label", router.best_compound, "all(", "any("),
    Defect("a compound route that hides", RouterNode._labelled, '"compound_route": True', '"compound_route": False'),
    Defect(
        "labels in order of the routes",
        router.labels_of,
        "[*dict.fromkeys(name for name in found if name is not None)]",
        "sorted(dict.fromkeys(name for name in found if name is not None), key=[*names].index)",
    ),
    Defect(
        "labels named twice",
        router.labels_of,
        "[*dict.fromkeys(name for name in found if name is not None)]",
        "[name for name in found if name is not None]",
    ),
    Defect("a lost default route", RouterNode._default, "if config.default_route is None", "if True"),
    Defect("the last rule that holds", RouterNode._first_that_holds, "in self._rules", "in self._rules[::-1]"),
    Defect("keywords inside words", asking.occurs, "_stands(folded, text.casefold())", "folded in text.casefold()"),
)

TRANSFORM_DEFECTS = (
    Defect("steps in reverse", TransformNode.execute, "enumerate(self._steps, ", "enumerate(self._steps[::-1], "),
    Defect(
        "a failed step that always fails",
        TransformNode.execute,
        "if self.config_as(TransformConfig).stop_on_error:",
        "if True:",
    ),
    Defect(
        "a suffix that does not count", transform._truncated, "params.max_length - len(suffix)", "params.max_length"
    ),
    Defect("one match replaced", transform._replaced, "finditer(text))", "finditer(text, 0, text.find(' ') + 2))"),
    Defect("the part before", transform._split, "parts[params.index]", "parts[params.index - 1]"),
    Defect("a template on the message", transform._change_of, '{**names, "content": text}', "names"),
)

MODEL_DEFECTS = (
    Defect(
        "a repair too many",
        ModelNode._good_answer,
        "range(config.repair_attempts,",
        "range(config.repair_attempts + 1,",
    ),
    Defect("a schema that all fits", model._checked, "problems = schema.problems(value)", "problems = ()"),
    Defect("an object that is not kept", ModelNode._good_answer, '{"structured": found}', "{}"),
    Defect(
        "tokens of good answers only",
        ModelNode._good_answer,
        "if left:",
        "context.count_tokens(-response.tokens_in - response.tokens_out)\n        if left:",
    ),
    Defect("a failed tool that always fails", ToolNode.execute, "if not config.continue_on_error:", "if True:"),
    Defect("a failed tool that claims success", ToolNode.execute, "success=False", "success=True"),
    Defect(
        "a tool's object that is not kept",
        ToolNode.execute,
        '{"structured": output} if isinstance(output, dict) else {}',
        "{}",
    ),
)

GUARD_DEFECTS = (
    Defect(
        "a token too few", Stepper._check_tokens, "self.tokens > self._tokens_max", "self.tokens >= self._tokens_max"
    ),
    Defect("a message too many", HeldMessages.exceeded, "> config.max_messages:", "> config.max_messages + 1:"),
    Defect("the newest message pruned", HeldMessages.prune, "> 2:", "> 1:"),
    Defect(
        "a failure too many for a breaker", CircuitBreaker.ended, ">= self.config.threshold", "> self.config.threshold"
    ),
    Defect("any failure counts for a breaker", CircuitBreaker.ended, "error.recoverable and not", "not"),
    Defect("a cooldown that is late", CircuitBreaker.admit, ">= round(", "> round("),
)

DEFECTS = (
    *CORE_DEFECTS,
    *FANOUT_DEFECTS,
    *LOOP_DEFECTS,
    *TIMEOUT_DEFECTS,
    *ROUTER_DEFECTS,
    *TRANSFORM_DEFECTS,
    *MODEL_DEFECTS,
    *GUARD_DEFECTS,
)
