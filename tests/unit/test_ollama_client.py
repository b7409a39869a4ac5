"""The client of Ollama hosts: what goes over the wire, and which error each outcome becomes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.support.runs import a_line, an_executor, go, node, run_clean
from tinyllm.errors import ErrorCode, ModelError
from tinyllm.models.base import ModelRequest, ModelResponse
from tinyllm.models.ollama import OllamaClient

pytestmark = pytest.mark.unit

Handler = Callable[[httpx.Request], httpx.Response]


def answer(**more: Any) -> dict[str, Any]:
    return {"model": "m", "message": {"role": "assistant", "content": "hello"}, "done": True, **more}


def asked(handler: Handler, *requests: ModelRequest, **how: Any) -> list[ModelResponse]:
    """The answers of one client, which is closed afterwards."""

    async def main() -> list[ModelResponse]:
        async with OllamaClient("http://host:1", transport=httpx.MockTransport(handler), **how) as client:
            return [await client.complete(request) for request in requests or (ModelRequest(model="m", prompt="p"),)]

    return run_clean(main())


def refused(handler: Handler) -> ModelError:
    with pytest.raises(ModelError) as caught:
        asked(handler)
    return caught.value


def seen(*requests: ModelRequest, **how: Any) -> list[httpx.Request]:
    """What reached the wire."""
    arrived: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        arrived.append(request)
        return httpx.Response(200, json=answer())

    asked(handler, *requests, **how)
    return arrived


# --- what goes out ---------------------------------------------------------------------------------------


def test_a_request_becomes_one_chat_without_streaming():
    request = ModelRequest(model="m", prompt="p", system="s", temperature=0.0, max_tokens=7)
    wire = seen(request)[0]
    body = json.loads(wire.content)

    assert ("POST", "http://host:1/api/chat") == (wire.method, str(wire.url))
    assert ("m", False) == (body["model"], body["stream"])
    assert [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}] == body["messages"]
    assert {"temperature": 0.0, "num_predict": 7} == body["options"]


def test_what_was_not_said_is_not_sent():
    body = json.loads(seen(ModelRequest(model="m", prompt="p"))[0].content)

    assert [{"role": "user", "content": "p"}] == body["messages"]
    assert {} == body.get("options", {})


def test_empty_prompts_are_messages_too():
    """The official client leaves their content out, which hosts take for an empty text."""
    body = json.loads(seen(ModelRequest(model="m", prompt="", system=""))[0].content)

    assert [("system", ""), ("user", "")] == [(m["role"], m.get("content", "")) for m in body["messages"]]


def test_the_idempotency_key_of_each_request_is_its_header():
    wires = seen(
        ModelRequest(model="m", prompt="p", idempotency_key="r:1:a"),
        ModelRequest(model="m", prompt="p"),
        ModelRequest(model="m", prompt="p", idempotency_key="r:1:ü"),
    )

    assert [b"r:1:a", None, "r:1:ü".encode()] == [dict(w.headers.raw).get(b"Idempotency-Key") for w in wires]


def test_requests_at_once_keep_their_own_keys():
    pairs: list[tuple[str, str]] = []

    async def handler(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.01)
        pairs.append((json.loads(request.content)["messages"][0]["content"], request.headers["idempotency-key"]))
        return httpx.Response(200, json=answer())

    async def main() -> None:
        async with OllamaClient("http://host:1", transport=httpx.MockTransport(handler)) as client:
            requests = [ModelRequest(model="m", prompt=str(n), idempotency_key=str(n)) for n in range(5)]
            await asyncio.gather(*(client.complete(request) for request in requests))

    run_clean(main())

    assert [(str(n), str(n)) for n in range(5)] == sorted(pairs)


def test_a_run_names_its_step_the_same_in_every_attempt():
    keys: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        keys.append(request.headers["idempotency-key"])
        return httpx.Response(200 if len(keys) == 3 else 503, json=answer())

    client = OllamaClient("http://host:1", transport=httpx.MockTransport(handler))
    graph = a_line(node("model", retry_count=5, retry_delay_ms=1))
    result = go(an_executor(graph, model=client), run_id="r")

    assert ("succeeded", ["r:2:work"] * 3) == (result.status, keys)


def test_models_that_live_elsewhere_are_asked_there():
    requests = [ModelRequest(model=name, prompt="p") for name in ("m", "far", "m", "other", "far")]
    hosts = {"far": "http://far:2", "other": "http://host:1"}

    assert ["host", "far", "host", "host", "far"] == [wire.url.host for wire in seen(*requests, hosts=hosts)]


def test_no_proxy_of_the_environment_comes_between_a_transport_and_its_hosts(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:9")

    assert ["host"] == [wire.url.host for wire in seen()]


# --- what comes back -------------------------------------------------------------------------------------


def test_an_answer_has_its_text_its_counts_and_the_model_that_was_asked():
    body = answer(model="alias", prompt_eval_count=11, eval_count=5)

    assert [ModelResponse(text="hello", model="m", tokens_in=11, tokens_out=5)] == asked(
        lambda _: httpx.Response(200, json=body)
    )


@pytest.mark.parametrize("counts", [{}, {"prompt_eval_count": None}, {"prompt_eval_count": -3, "eval_count": -1}])
def test_counts_that_make_no_sense_are_no_tokens(counts):
    response = asked(lambda _: httpx.Response(200, json=answer(**counts)))[0]

    assert (0, 0) == (response.tokens_in, response.tokens_out)


@pytest.mark.parametrize("content", [None, ""])
def test_an_empty_answer_is_an_empty_text(content):
    body = answer(message={"role": "assistant", "content": content})

    assert "" == asked(lambda _: httpx.Response(200, json=body))[0].text


@pytest.mark.parametrize(
    ("status", "recoverable"),
    [
        (400, False),
        (401, False),
        (404, False),
        (408, True),
        (413, False),
        (425, True),
        (429, True),
        (499, False),
        (500, True),
        (502, True),
        (503, True),
        (599, True),
        (304, False),
    ],
)
def test_a_status_is_a_model_error_that_says_whether_asking_again_can_help(status, recoverable):
    error = refused(lambda _: httpx.Response(status, json={"error": "why"}))

    assert (ErrorCode.MODEL_ERROR, recoverable) == (error.code, error.recoverable)
    assert {"status": status} == error.details
    assert f"m: the server answered {status}: why" in error.message


def test_an_unknown_model_comes_with_the_command_that_gets_it():
    error = refused(lambda _: httpx.Response(404, json={"error": "model 'm' not found"}))

    assert "m: the server answered 404: model 'm' not found; try `ollama pull m`" == error.message


def test_only_a_404_comes_with_that_hint():
    assert "pull" not in refused(lambda _: httpx.Response(500, json={"error": "why"})).message


@pytest.mark.parametrize("body", [b"", b"plain text", b"[]", b"null", b"7", b'{"error": null}', b"\xff\xfe"])
@pytest.mark.parametrize("status", [404, 500])
def test_an_error_with_any_body_is_a_model_error(status, body):
    assert ErrorCode.MODEL_ERROR == refused(lambda _: httpx.Response(status, content=body)).code


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"message": {"role": "assi',
        b"plain text",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"7",
        b'"text"',
        b"{}",
        b'{"message": null}',
        b'{"message": {"role": "assistant", "content": 7}}',
        b'{"message": {"role": "assistant", "content": "\\ud800"}}',
        b'{"error": "inside"}',
        b"[" * 100_000,
        b'{"message": {"role": "assistant", "content": "one"}}\n{"done": true}',
    ],
    ids=lambda body: repr(body[:40]),
)
def test_a_body_that_is_no_answer_is_a_recoverable_model_error(body):
    error = refused(lambda _: httpx.Response(200, content=body))

    assert (ErrorCode.MODEL_ERROR, True) == (error.code, error.recoverable)
    assert error.message.startswith("m: ")


@pytest.mark.parametrize(
    "raised",
    [
        httpx.ConnectError("c"),
        httpx.ConnectTimeout("c"),
        httpx.ReadError("r"),
        httpx.ReadTimeout("r"),
        httpx.RemoteProtocolError("p"),
        httpx.TooManyRedirects("t"),
        httpx.InvalidURL("u"),
        OSError("o"),
        RuntimeError("r"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_breaks_on_the_way_is_a_recoverable_model_error(raised):
    def handler(request: httpx.Request) -> httpx.Response:
        raise raised

    error = refused(handler)

    assert (ErrorCode.MODEL_ERROR, True) == (error.code, error.recoverable)


# --- its life ------------------------------------------------------------------------------------------


class Noted(httpx.MockTransport):
    closed = 0

    async def aclose(self) -> None:
        self.closed += 1


def test_closing_closes_every_connection_pool_once():
    transport = Noted(lambda _: httpx.Response(200, json=answer()))

    async def main() -> int:
        client = OllamaClient("http://host:1", hosts={"far": "http://far:2"}, transport=transport)
        for model in ("m", "far", "m"):
            await client.complete(ModelRequest(model=model, prompt="p"))
        await client.aclose()
        after_one = transport.closed
        await client.aclose()
        return after_one

    assert 2 == run_clean(main())
    assert 2 == transport.closed


def test_a_client_that_was_never_used_can_be_closed():
    run_clean(OllamaClient().aclose())


def test_a_client_can_be_used_again_after_it_was_closed():
    transport = Noted(lambda _: httpx.Response(200, json=answer()))

    async def main() -> str:
        client = OllamaClient("http://host:1", transport=transport)
        await client.complete(ModelRequest(model="m", prompt="p"))
        await client.aclose()
        response = await client.complete(ModelRequest(model="m", prompt="p"))
        await client.aclose()
        return response.text

    assert "hello" == run_clean(main())
