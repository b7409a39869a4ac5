"""A simulated host that speaks Ollama's wire format (`POST /api/chat`, not streamed) and follows a script."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tinyllm.testing.faults import CutMidBody
from tinyllm.testing.http.values import Answer, Break, HttpRequest, Outcome, json_answer
from tinyllm.testing.script import TOKENS_IN, Ask, Reply, Script

#: Who calls: run, node and branch.
Voice = tuple[int, str, str]


@dataclass(slots=True, kw_only=True)
class CallRecord:
    """One request that reached a host. `ended_ns` is None while it is under way.

    `how` says what the host did; `delivered` is False if the client left first or the connection broke.
    """

    ask: Ask
    path: str
    host: str
    prompt: str
    reply: Reply
    ended_ns: int | None = None
    delivered: bool = False


class OllamaHost:
    """One host. All hosts of a world share one `Script`, one list of `calls`, and the count of calls `made`."""

    def __init__(
        self,
        name: str,
        script: Script,
        calls: list[CallRecord],
        made: Counter[Voice],
        *,
        time_ns: Callable[[], int],
        clock: Callable[[], datetime],
        run_index: Callable[[str], int],
    ) -> None:
        self.name = name
        self._script = script
        self._calls = calls
        self._made = made
        self._time_ns = time_ns
        self._clock = clock
        self._run_index = run_index
        self._under_way: dict[HttpRequest, CallRecord] = {}

    def answer(self, request: HttpRequest) -> Outcome:
        """What comes of *request*; its record ends with it."""
        if request.path != "/api/chat":
            return _error(404, f"path {request.path!r} not found")
        question = request.json
        model = str(question.get("model"))
        if self._script.hosts.get(model) != self.name:
            return _error(404, f"model {model!r} not found")
        record = self._record(model, question, request.headers.get("idempotency-key", ""))
        self._under_way[request] = record
        return self._outcome(record, request)

    def finished(self, request: HttpRequest) -> None:
        """The exchange is over."""
        record = self._under_way.pop(request, None)
        if record is not None:
            record.ended_ns = self._time_ns()
            record.delivered = request.ended == "delivered"

    def _record(self, model: str, question: dict[str, Any], key: str) -> CallRecord:
        run_id, path, node = key.split(":", 2)
        branch = path[len(path.split(".")[0]) :]
        run = self._run_index(run_id)
        voice = (run, node, branch)
        ask = Ask(run=run, node=node, branch=branch, call=self._made[voice], model=model, at_ns=self._time_ns())
        self._made[voice] += 1
        # The official client leaves an empty content out.
        prompt = str(question["messages"][-1].get("content", ""))
        record = CallRecord(ask=ask, path=path, host=self.name, prompt=prompt, reply=self._script.reply(ask))
        self._calls.append(record)
        return record

    def _outcome(self, record: CallRecord, request: HttpRequest) -> Outcome:
        reply = record.reply
        if reply.how == "refused":
            return Break(how="refused", after_ns=reply.duration_ns)
        if reply.how == "reset":
            return Break(how="reset", after_ns=reply.duration_ns)
        if reply.how == "error":
            return _error(reply.status, "the model runner has terminated", reply.duration_ns)
        if reply.how == "cut":
            request.fault = CutMidBody()  # what the script says, the network does
        return json_answer(self._answer(record), after_ns=reply.duration_ns)

    def _answer(self, record: CallRecord) -> dict[str, Any]:
        return {
            "model": record.ask.model,
            "created_at": self._clock().isoformat(),
            "message": {"role": "assistant", "content": record.reply.text},
            "done": True,
            "done_reason": "stop",
            "total_duration": record.reply.duration_ns,
            "prompt_eval_count": TOKENS_IN,
            "eval_count": record.reply.tokens_out,
        }


def _error(status: int, text: str, duration_ns: int = 0) -> Answer:
    return json_answer({"error": text}, status=status, after_ns=duration_ns)
