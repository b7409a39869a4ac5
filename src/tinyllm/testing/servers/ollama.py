"""A server of scripted models that speaks Ollama's API: chat, generate, tags, show.

Streams are lines of JSON; see github.com/ollama/ollama, docs/api.md, for every field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

from tinyllm.testing.http.values import Answer, HttpRequest, json_answer, text_answer
from tinyllm.testing.servers.base import Headers, ModelServer, Question, tokens_in
from tinyllm.testing.servers.script import Said, json_text

__all__ = ["OllamaServer"]

_DETAILS: Final = {
    "parent_model": "",
    "format": "gguf",
    "family": "scripted",
    "families": ["scripted"],
    "parameter_size": "1B",
    "quantization_level": "Q4_0",
}


class OllamaServer(ModelServer):
    """`POST /api/chat` and `/api/generate`, streamed unless the request says `"stream": false`; `GET /api/tags`;
    `POST /api/show`. A model that it does not know is a 404 with Ollama's JSON, as is any other mistake.
    """

    def question(self, request: HttpRequest) -> Question | Answer:
        route = (request.method, request.path)
        if route == ("GET", "/api/tags"):
            return json_answer({"models": [self._listed(model, request) for model in self.models or ()]})
        if route not in _ROUTES:
            return text_answer("404 page not found", status=404)
        try:
            body = request.json
        except ValueError as error:
            return self.error(400, f"invalid JSON: {error}")
        if not isinstance(body, Mapping) or not body.get("model"):
            return self.error(400, "model is required")
        model = str(body["model"])
        if not self._knows(model):
            return self.error(404, f"model '{model}' not found")
        if request.path == "/api/show":
            return json_answer(self._shown(request))
        asked = self.asked(request, body, _messages(body))
        return Question(asked=asked, streamed=body.get("stream", True) is not False)

    def told(self, request: HttpRequest, question: Question, answer: Said, model: str) -> Answer:
        chat = request.path == "/api/chat"
        words = answer.tokens
        tokens = len(words) + bool(answer.tool_calls)
        reason = "length" if answer.cut_short else "stop"
        last = {"done": True, "done_reason": reason, **self._counts(question, tokens)}
        now = request.clock()

        def line(said: Said, tokens: int, more: Mapping[str, Any]) -> dict[str, Any]:
            at = now + timedelta(microseconds=self.duration_ns(tokens) // 1_000)
            return {"model": model, "created_at": at.isoformat(), **_content(said, chat), **more}

        if not question.streamed:
            return json_answer(line(answer, tokens, last), after_ns=self.duration_ns(tokens))
        parts = [Said(text=word) for word in words]
        if answer.tool_calls:
            parts.append(Said(tool_calls=answer.tool_calls))
        pieces = [_line(line(part, number, _NOT_DONE)) for number, part in enumerate(parts, 1)]
        return Answer(
            headers=(("content-type", "application/x-ndjson"),),
            chunks=self.timed(pieces, [_line(line(Said(), tokens, last))]),
            after_ns=self.duration_ns(1),
            streamed=True,
        )

    def error(self, status: int, text: str, *, headers: Headers = ()) -> Answer:
        return json_answer({"error": text}, status=status, headers=headers)

    def _knows(self, model: str) -> bool:
        return self.models is None or model in self.models or model.removesuffix(":latest") in self.models

    def _counts(self, question: Question, tokens: int) -> dict[str, int]:
        first_ns, all_ns = self.duration_ns(1), self.duration_ns(tokens)
        return {
            "total_duration": all_ns,
            "load_duration": 0,
            "prompt_eval_count": tokens_in(question.asked.messages),
            "prompt_eval_duration": first_ns,
            "eval_count": tokens,
            "eval_duration": all_ns - first_ns,
        }

    def _listed(self, model: str, request: HttpRequest) -> dict[str, Any]:
        return {
            "name": model,
            "model": model,
            "modified_at": request.clock().isoformat(),
            "size": 1_000_000_000,
            "digest": model.encode().hex().ljust(64, "0")[:64],
            "details": _DETAILS,
        }

    def _shown(self, request: HttpRequest) -> dict[str, Any]:
        return {
            "modelfile": "",
            "parameters": "",
            "template": "{{ .Prompt }}",
            "details": _DETAILS,
            "model_info": {"general.architecture": "scripted", "general.parameter_count": 1_000_000_000},
            "capabilities": ["completion", "tools"],
            "modified_at": request.clock().isoformat(),
        }


_NOT_DONE: Final = {"done": False}
_ROUTES: Final = frozenset({("POST", "/api/chat"), ("POST", "/api/generate"), ("POST", "/api/show")})


def _messages(body: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    messages = body.get("messages")
    if isinstance(messages, list):
        return [message for message in messages if isinstance(message, Mapping)]
    system = [{"role": "system", "content": body["system"]}] if body.get("system") else []
    return [*system, {"role": "user", "content": str(body.get("prompt", ""))}]


def _content(answer: Said, chat: bool) -> dict[str, Any]:
    if not chat:
        return {"response": answer.text}
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.tool_calls:
        message["tool_calls"] = [
            {"function": {"name": call.name, "arguments": dict(call.arguments)}} for call in answer.tool_calls
        ]
    return {"message": message}


def _line(value: Mapping[str, Any]) -> bytes:
    return json_text(value).encode() + b"\n"
