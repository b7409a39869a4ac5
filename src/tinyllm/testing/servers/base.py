"""What servers of models have in common: a script, a time for each token, and faults in a model's own words.

A protocol says how an answer, an error and a stream of pieces look; see `ollama_server` and `openai_server`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from tinyllm.testing.faults import (
    DuplicateChunk,
    EmptyAnswer,
    EndlessStream,
    Fault,
    HugeAnswer,
    NoSuchRoute,
    OutsideSchema,
    RateLimited,
    Refusal,
    ReorderedChunks,
    ServerError,
    WrongContentType,
    WrongModel,
)
from tinyllm.testing.http.spoiling import retry_after
from tinyllm.testing.http.values import Answer, Chunk, HttpRequest, Outcome
from tinyllm.testing.servers.script import Answers, Asked, ModelScript, Said, Says, words
from tinyllm.testing.units import NS_PER_MS

__all__ = ["ModelServer", "Question"]

REFUSAL_TEXT: Final = "I cannot help with that."
OUTSIDE_SCHEMA_TEXT: Final = '{"unexpected": [null]}'
#: The model that answers in the place of another.
WRONG_MODEL: Final = "another-model"
#: Headers, as a server gives them.
Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A request to a model: what it asks, and whether the answer is streamed."""

    asked: Asked
    streamed: bool


class ModelServer(ABC):
    """A server of scripted models.

    *answers*, *drawn* and *seed* make a `ModelScript`; *models* are those that it knows, any if that is
    None and the script names none. The first token comes after *first_token_ms*, each after it *token_ms*
    later. `requests` has every request in the order of arrival.

    Being asked for more than the script has is answered with status 500, and told to the world as an
    exception that nobody handled.
    """

    def __init__(
        self,
        answers: Answers = (),
        *,
        drawn: Sequence[Says] | None = None,
        seed: int = 0,
        models: Sequence[str] | None = None,
        first_token_ms: int = 0,
        token_ms: int = 0,
    ) -> None:
        for name, value in (("first_token_ms", first_token_ms), ("token_ms", token_ms)):
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} is a whole number, 0 or more, not {value!r}")
        self.script = ModelScript(answers, drawn=drawn, seed=seed)
        self.models = tuple(models) if models is not None else self.script.models or None
        self.requests: list[HttpRequest] = []
        self._first_ns = first_token_ms * NS_PER_MS
        self._token_ns = token_ms * NS_PER_MS
        self._answered: dict[str, int] = {}
        self._numbered = 0
        self._given: dict[HttpRequest, tuple[Asked, Said]] = {}
        # What askers who left have not heard, while other things went wrong: who asks the same again gets it.
        self._unheard: list[tuple[str, Sequence[Mapping[str, Any]], Said]] = []

    #: Whether the last piece of a stream says that it is the last, so that clients do not wait for the end behind it.
    marks_end: ClassVar[bool] = False

    # --- what the network calls ----------------------------------------------------------------------

    def answer(self, request: HttpRequest) -> Outcome:
        """What comes of *request*."""
        return self._meet(request, None)

    def meet(self, request: HttpRequest, fault: Fault) -> Outcome | None:
        """What comes of *request* when a fault of a model server strikes."""
        match fault:
            case RateLimited():
                self.requests.append(request)
                return self.error(429, "too many requests", headers=retry_after(fault))
            case ServerError(status=status):
                self.requests.append(request)
                return self.error(status, "the model runner has terminated")
            case NoSuchRoute() | WrongContentType():
                self.requests.append(request)
                return None
        return self._meet(request, fault)

    def finished(self, request: HttpRequest) -> None:
        """The exchange is over: an answer that a fault kept from arriving is to be given again."""
        if request not in self._given:
            return
        heard = request.heard or (self.marks_end and request.all_read)
        if not heard and (request.fault is not None or request.ended == "broken"):
            self._give_back(request)
            return
        asked, answer = self._given.pop(request)
        if not heard and request.hindered and self.script.is_listed:
            self._unheard.append((asked.model, asked.messages, answer))

    def _meet(self, request: HttpRequest, fault: Fault | None) -> Outcome:
        self.requests.append(request)
        found = self.question(request)
        if isinstance(found, Answer):
            return found
        answer = self._said(request, found.asked, spoiled=_spoils(request.fault, streamed=found.streamed))
        model = WRONG_MODEL if isinstance(fault, WrongModel) else found.asked.model
        return self.told(request, found, spoiled(answer, fault), model)

    def _said(self, request: HttpRequest, asked: Asked, *, spoiled: bool) -> Said:
        if request.ended is not None and self.script.is_listed:
            return Said()  # its asker has left before it arrived, and hears nothing
        answer = self._not_heard(asked)
        if answer is None:
            answer = self.script.take(asked)
            self._answered[asked.model] = asked.number + 1
        self._given[request] = (asked, answer)
        if spoiled:
            # At once: a client that cannot read what came may keep the response, and never be seen to leave.
            self._give_back(request)
        return answer

    def _give_back(self, request: HttpRequest) -> None:
        asked, answer = self._given.pop(request)
        self._answered[asked.model] -= 1
        self.script.give_back(asked, answer)

    def _not_heard(self, asked: Asked) -> Said | None:
        for index, (model, messages, answer) in enumerate(self._unheard):
            if model == asked.model and messages == asked.messages:
                del self._unheard[index]
                return answer
        return None

    # --- what protocols use --------------------------------------------------------------------------

    def asked(self, request: HttpRequest, body: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> Asked:
        """The question in *body*."""
        model = str(body["model"])
        return Asked(
            model=model,
            number=self._answered.get(model, 0),
            messages=messages,
            body=body,
            source=request.source,
            at_ns=request.at_ns,
        )

    def next_number(self) -> int:
        """A number for an id, from 1."""
        self._numbered += 1
        return self._numbered

    def duration_ns(self, tokens: int) -> int:
        """How long an answer of so many tokens takes."""
        return self._first_ns + max(0, tokens - 1) * self._token_ns

    def timed(self, pieces: Sequence[bytes], last: Sequence[bytes] = ()) -> tuple[Chunk, ...]:
        """*pieces* of a stream, each a token later than the one before, and what follows the last one at once."""
        later = (Chunk(piece, self._token_ns if number else 0) for number, piece in enumerate(pieces))
        return (*later, *(Chunk(piece) for piece in last))

    # --- what a protocol is --------------------------------------------------------------------------

    @abstractmethod
    def question(self, request: HttpRequest) -> Question | Answer:
        """What *request* asks a model, or the answer if it asks none."""

    @abstractmethod
    def told(self, request: HttpRequest, question: Question, answer: Said, model: str) -> Answer:
        """*answer* of *model* as it goes over the wire."""

    @abstractmethod
    def error(self, status: int, text: str, *, headers: Headers = ()) -> Answer:
        """An error as this API tells it."""


def _spoils(fault: Fault | None, *, streamed: bool) -> bool:
    """Whether *fault* lets something else come, in full, than the model said."""
    if isinstance(fault, EndlessStream | ReorderedChunks):
        return streamed  # in one piece it only comes late, or as it is
    return isinstance(fault, DuplicateChunk) or (fault is not None and fault.family == "model")


def spoiled(answer: Said, fault: Fault | None) -> Said:
    """What the model says in the place of *answer* because of *fault*."""
    match fault:
        case Refusal():
            return Said(text=REFUSAL_TEXT, refusal=True)
        case EmptyAnswer():
            return Said()
        case HugeAnswer(size_bytes=size_bytes):
            return Said(text="x" * size_bytes)
        case OutsideSchema():
            return Said(text=OUTSIDE_SCHEMA_TEXT)
    return answer


def tokens_in(messages: Sequence[Mapping[str, Any]]) -> int:
    """The tokens of a prompt: its words, and one for each message."""
    return sum(1 + len(words(str(message.get("content") or ""))) for message in messages)
