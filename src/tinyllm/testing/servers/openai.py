"""A server of scripted models that speaks OpenAI's API: chat completions, plain and streamed, and models.

Streams are server-sent events with `data: [DONE]` at the end; see platform.openai.com/docs/api-reference/chat
for every field. Ids count from 1 and are those of this server.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from tinyllm.testing.http.values import Answer, HttpRequest, json_answer
from tinyllm.testing.servers.base import Headers, ModelServer, Question, tokens_in
from tinyllm.testing.servers.script import Said, ToolCall, json_text, words

__all__ = ["OpenAIServer"]

#: The type that OpenAI gives to an error of this status; of any other in the 500s the last.
_TYPES: Final = {400: "invalid_request_error", 404: "invalid_request_error", 429: "rate_limit_error"}
_CODES: Final = {429: "rate_limit_exceeded"}
#: So many characters of a tool call's arguments come in one piece of a stream.
_ARGUMENT_CHARS: Final = 8


class OpenAIServer(ModelServer):
    """`POST /v1/chat/completions`, and `GET /v1/models` with one model or all; the `/v1` may be left out."""

    marks_end = True

    def question(self, request: HttpRequest) -> Question | Answer:
        path = request.path.removeprefix("/v1")
        if request.method == "GET" and (path == "/models" or path.startswith("/models/")):
            return self._models(request, path.removeprefix("/models").removeprefix("/"))
        if (request.method, path) != ("POST", "/chat/completions"):
            return self.error(404, f"Invalid URL ({request})")
        try:
            body = request.json
        except ValueError as error:
            return self.error(400, f"could not parse the JSON body: {error}")
        if not isinstance(body, Mapping) or not body.get("model"):
            return self.error(400, "you must provide a model parameter")
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages:
            return self.error(400, "Missing required parameter: 'messages'", param="messages")
        if body.get("n", 1) not in {1, None}:
            return self.error(400, "this server gives one choice only: 'n' must be 1", param="n")
        model = str(body["model"])
        if self.models is not None and model not in self.models:
            return self._no_such_model(model)
        asked = self.asked(request, body, [message for message in messages if isinstance(message, Mapping)])
        return Question(asked=asked, streamed=body.get("stream") is True)

    def told(self, request: HttpRequest, question: Question, answer: Said, model: str) -> Answer:
        number = self.next_number()
        head = {"id": f"chatcmpl-{number}", "created": int(request.clock().timestamp()), "model": model}
        usage = self._usage(question, answer)
        if question.streamed:
            return self._streamed(head, number, question, answer, usage)
        choice = {"index": 0, "message": _message(answer, number), "logprobs": None, "finish_reason": _finish(answer)}
        value = {**head, "object": "chat.completion", "choices": [choice], "usage": usage}
        return json_answer(value, after_ns=self.duration_ns(usage["completion_tokens"]))

    def _streamed(
        self, head: Mapping[str, Any], number: int, question: Question, answer: Said, usage: Mapping[str, int]
    ) -> Answer:
        options = question.asked.body.get("stream_options")
        with_usage = isinstance(options, Mapping) and options.get("include_usage") is True
        # With usage asked for, every piece has the field, and only the last one a value.
        common = {**head, "object": "chat.completion.chunk", **({"usage": None} if with_usage else {})}

        def piece(delta: Mapping[str, Any], finish: str | None = None) -> bytes:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
            return _event({**common, "choices": [choice]})

        deltas = _deltas(answer, number)
        first: dict[str, Any] = {"role": "assistant", "content": None if answer.tool_calls else ""}
        last = [piece({}, _finish(answer))]
        if with_usage:
            last.append(_event({**common, "choices": [], "usage": usage}))
        pieces = [piece(delta) for delta in deltas] or [b""]
        # The role comes with the first token.
        pieces[0] = piece(first) + pieces[0]
        return Answer(
            headers=(("content-type", "text/event-stream; charset=utf-8"),),
            chunks=self.timed(pieces, [*last, b"data: [DONE]\n\n"]),
            after_ns=self.duration_ns(1),
            streamed=True,
        )

    def error(self, status: int, text: str, *, headers: Headers = (), **fields: Any) -> Answer:
        error = {
            "message": text,
            "type": _TYPES.get(status, "server_error"),
            "param": fields.get("param"),
            "code": fields.get("code", _CODES.get(status)),
        }
        return json_answer({"error": error}, status=status, headers=headers)

    def _no_such_model(self, model: str) -> Answer:
        return self.error(404, f"The model '{model}' does not exist", code="model_not_found")

    def _usage(self, question: Question, answer: Said) -> dict[str, int]:
        before, after = tokens_in(question.asked.messages), max(1, len(_deltas(answer, 0)))
        return {"prompt_tokens": before, "completion_tokens": after, "total_tokens": before + after}

    def _models(self, request: HttpRequest, model: str) -> Answer:
        created = int(request.clock().timestamp())

        def listed(name: str) -> dict[str, Any]:
            return {"id": name, "object": "model", "created": created, "owned_by": "script"}

        if not model:
            return json_answer({"object": "list", "data": [listed(name) for name in self.models or ()]})
        if self.models is not None and model not in self.models:
            return self._no_such_model(model)
        return json_answer(listed(model))


def _finish(answer: Said) -> str:
    return "tool_calls" if answer.tool_calls else "length" if answer.cut_short else "stop"


def _message(answer: Said, number: int) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": None if answer.refusal or (answer.tool_calls and not answer.text) else answer.text,
        "refusal": answer.text if answer.refusal else None,
    }
    if answer.tool_calls:
        message["tool_calls"] = [_call(call, number, index) for index, call in enumerate(answer.tool_calls)]
    return message


def _call(call: ToolCall, number: int, index: int, arguments: str | None = None) -> dict[str, Any]:
    written = json_text(dict(call.arguments)) if arguments is None else arguments
    return {
        "id": f"call_{number}_{index}",
        "type": "function",
        "function": {"name": call.name, "arguments": written},
    }


def _deltas(answer: Said, number: int) -> Sequence[Mapping[str, Any]]:
    """The answer in pieces, one a token: words of its text, then each tool call and parts of its arguments."""
    what = "refusal" if answer.refusal else "content"
    deltas: list[dict[str, Any]] = [{what: token} for token in words(answer.text)]
    for index, call in enumerate(answer.tool_calls):
        deltas.append({"tool_calls": [{"index": index, **_call(call, number, index, "")}]})
        text = json_text(dict(call.arguments))
        for start in range(0, len(text), _ARGUMENT_CHARS):
            part = {"index": index, "function": {"arguments": text[start : start + _ARGUMENT_CHARS]}}
            deltas.append({"tool_calls": [part]})
    return deltas


def _event(value: Mapping[str, Any]) -> bytes:
    return b"data: " + json_text(value).encode() + b"\n\n"
