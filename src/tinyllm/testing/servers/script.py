"""What the models of a simulated server say: scripted in order, decided by a function, or drawn by a seed.

A script is strict: being asked more often than it has answers is a mistake of the test, or the bug that it
was to find, and never passes unseen. An answer counts as given when all of it was heard, or when its client left
it in a world in which nothing had gone wrong. One that a fault spoiled or broke is given to the next request
instead. One that was left for any other reason, after something went wrong, is given to whoever asks the same
again. So a script says what a client without faults would hear.
"""

from __future__ import annotations

import json
import random
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from tinyllm.testing.loop_errors import SimulationError

__all__ = ["Asked", "ModelScript", "Said", "ScriptError", "ToolCall"]

_TOLD_CHARS: Final = 80
_WORD: Final = re.compile(r"\s*\S+|\s+\Z")


class ScriptError(SimulationError):
    """A model was asked something that its script does not answer; says what, and what the script has."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """The model wants *name* called with *arguments*, JSON."""

    name: str
    arguments: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """One answer of a model. `refusal` says that `text` declines to answer; `cut_short` that it hit its limit."""

    text: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    refusal: bool = False
    cut_short: bool = False

    @property
    def tokens(self) -> tuple[str, ...]:
        """The text in pieces of one word each, with the white space before it."""
        return words(self.text)


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One question to a model. `number` counts, from 0, what that model was asked before and answered.

    `messages` are as in the request's JSON `body`; of a plain prompt they are one of the role "user".
    """

    model: str
    number: int
    messages: Sequence[Mapping[str, Any]]
    body: Mapping[str, Any]
    source: str
    at_ns: int

    @property
    def prompt(self) -> str:
        """The text of the last message."""
        content = self.messages[-1].get("content") if self.messages else ""
        if isinstance(content, str):
            return content
        parts: Any = content or ()
        return "".join(str(part.get("text", "")) for part in parts if isinstance(part, Mapping))


#: What may stand in a script for an answer.
Says: TypeAlias = "str | ToolCall | Said | Sequence[ToolCall]"
Answers: TypeAlias = "Sequence[Says] | Mapping[str, Sequence[Says]] | Callable[[Asked], Says]"


class ModelScript:
    """Who says what.

    *answers* are given in order, whichever model is asked; as a mapping in the order of each model; as a
    function it is asked each time. *drawn* are the answers of which one is drawn each time, by *seed* and
    the model. Exactly one of the two is given; with neither, no question has an answer.

    Raises:
        TypeError: an answer that is none of a text, a ToolCall, several of them, or a Said.
        ValueError: both are given, or *drawn* is empty.
    """

    def __init__(self, answers: Answers = (), *, drawn: Sequence[Says] | None = None, seed: int = 0) -> None:
        if drawn is not None and (not drawn or callable(answers) or len(answers)):
            raise ValueError("a script has answers, or drawn ones to draw from, one at least; not both")
        self._decide: Callable[[Asked], Says] | None = answers if callable(answers) else None
        self._left: dict[str | None, deque[Said]] = {}
        self._had: dict[str | None, int] = {}
        self._drawn = None if drawn is None else [said(one) for one in drawn]
        self._seed = seed
        self._chance: dict[str, random.Random] = {}
        if not callable(answers):
            by_model: Mapping[Any, Iterable[Says]] = answers if isinstance(answers, Mapping) else {None: answers}
            for model, listed in by_model.items():
                if isinstance(listed, str):
                    raise TypeError(f"answers are a list, not one text: {listed!r}")
                self._left[model] = deque(said(one) for one in listed)
                self._had[model] = len(self._left[model])

    @property
    def is_listed(self) -> bool:
        """Whether its answers are a list, and can be used up."""
        return self._decide is None and self._drawn is None

    @property
    def models(self) -> tuple[str, ...]:
        """The models that the script names."""
        return tuple(model for model in self._left if model is not None)

    def take(self, asked: Asked) -> Said:
        """The next answer, which is then used up.

        Raises:
            ScriptError: there is none.
        """
        if self._decide is not None:
            return said(self._decide(asked))
        if self._drawn is not None:
            return self._chance_of(asked.model).choice(self._drawn)
        left = self._queue(asked.model)
        if not left:
            raise ScriptError(self._exhausted(asked))
        return left.popleft()

    def give_back(self, asked: Asked, answer: Said) -> None:
        """*answer* did not come to its asker: let it be the next one again."""
        if self.is_listed:
            self._queue(asked.model).appendleft(answer)

    def check_used_up(self) -> None:
        """Raise ScriptError if answers are left that nobody asked for."""
        left = {model: len(answers) for model, answers in self._left.items() if answers}
        for model, number in left.items():
            whose = "" if model is None else f" of model {model!r}"
            raise ScriptError(f"{number} of {self._had[model]} scripted answers{whose} were never asked for")

    def _queue(self, model: str) -> deque[Said]:
        key = None if None in self._left else model
        return self._left.setdefault(key, deque())

    def _chance_of(self, model: str) -> random.Random:
        # One stream for each model, so that what one is asked changes nothing for another.
        if model not in self._chance:
            self._chance[model] = random.Random(f"{self._seed}/{model}")
        return self._chance[model]

    def _exhausted(self, asked: Asked) -> str:
        key = None if None in self._left else asked.model
        had = self._had.get(key, 0)
        whose = "the script" if key is None else f"the script of model {asked.model!r}"
        prompt = asked.prompt if len(asked.prompt) <= _TOLD_CHARS else asked.prompt[:_TOLD_CHARS] + "..."
        answers = {0: "no answers", 1: "1 answer"}.get(had, f"{had} answers")
        return f"{whose} has {answers}, all given, but host {asked.source!r} asks {asked.model!r} for more: {prompt!r}"


def said(answer: object) -> Said:
    """*answer* as a Said; raises TypeError if it is nothing that can stand for one."""
    if isinstance(answer, Said):
        return answer
    if isinstance(answer, str):
        return Said(text=answer)
    if isinstance(answer, ToolCall):
        return Said(tool_calls=(answer,))
    if isinstance(answer, Sequence) and answer and all(isinstance(one, ToolCall) for one in answer):
        return Said(tool_calls=tuple(answer))
    raise TypeError(f"an answer is a text, a ToolCall or several, or a Said, not {answer!r}")


def words(text: str) -> tuple[str, ...]:
    """*text* in pieces of one word each; white space goes with the word after it, or stands alone at the end."""
    return tuple(_WORD.findall(text))


#: A value as compact JSON.
json_text: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode
