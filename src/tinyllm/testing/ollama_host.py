"""A simulated host that speaks Ollama's wire format (`POST /api/chat`, not streamed) and follows a script."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx

from tinyllm.testing.network import Exchange
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
        self._under_way: dict[int, CallRecord] = {}

    def receive(self, request: httpx.Request) -> Exchange:
        if request.url.path != "/api/chat":
            return _error(404, f"path {request.url.path!r} not found")
        question = json.loads(request.content)
        model = str(question.get("model"))
        if self._script.hosts.get(model) != self.name:
            return _error(404, f"model {model!r} not found")
        record = self._record(model, question, request.headers.get("idempotency-key", ""))
        self._under_way[id(request)] = record
        return self._exchange(record)

    def finish(self, request: httpx.Request, *, delivered: bool) -> None:
        record = self._under_way.pop(id(request), None)
        if record is not None:
            record.ended_ns = self._time_ns()
            record.delivered = delivered

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

    def _exchange(self, record: CallRecord) -> Exchange:
        reply = record.reply
        if reply.how in ("refused", "reset"):
            return Exchange(duration_ns=reply.duration_ns, refused=reply.how == "refused", reset=reply.how == "reset")
        if reply.how == "error":
            return _error(reply.status, "the model runner has terminated", reply.duration_ns)
        body = json.dumps(self._answer(record), ensure_ascii=False).encode()
        return Exchange(duration_ns=reply.duration_ns, body=body, cut=reply.how == "cut")

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


def _error(status: int, text: str, duration_ns: int = 0) -> Exchange:
    return Exchange(duration_ns=duration_ns, status=status, body=json.dumps({"error": text}).encode())
