"""Faults of networks and of model servers, met by the official clients of ollama and openai as they are.

Each bites: the plain client without retries fails or slows as the fault's name says, at exactly the moment it
says. Each heals: the next call, or this one once the world is healed, is as if nothing had been.
"""

from __future__ import annotations

import json
from contextlib import aclosing, suppress
from typing import Any

import httpx
import httpx2
import ollama
import openai
import pytest

from tests.support.nets import Net
from tinyllm.testing import faults as f
from tinyllm.testing.http.values import Answer, Break, Chunk, HttpRequest, json_answer
from tinyllm.testing.servers.base import OUTSIDE_SCHEMA_TEXT, REFUSAL_TEXT, WRONG_MODEL
from tinyllm.testing.servers.ollama import OllamaServer
from tinyllm.testing.servers.openai import OpenAIServer
from tinyllm.testing.servers.script import Asked

pytestmark = pytest.mark.chaos

MESSAGES: Any = [{"role": "user", "content": "why"}]
#: How long an answer of three tokens takes: the first after 10 ms, each after it 5 ms later.
TIMES: Any = {"first_token_ms": 10, "token_ms": 5}
TEXT = "one two three"
HEALTHY = (TEXT, 20.0)


class Ollama:
    """Talks to an OllamaServer through the official client; `timeout` is that of its httpx client."""

    def server(self, answers: Any = (TEXT, TEXT, TEXT)) -> OllamaServer:
        return OllamaServer(answers, **TIMES)

    async def plain(self, timeout: Any = None) -> str:
        async with ollama.AsyncClient("http://api:11434", timeout=timeout) as client:
            answer = await client.chat(model="m", messages=MESSAGES)
            assert "m" == answer.model, answer.model
            return answer.message.content or ""

    async def streamed(self, timeout: Any = None) -> list[str]:
        return [piece async for piece in self.pieces(timeout)]

    async def pieces(self, timeout: Any = None) -> Any:
        async with ollama.AsyncClient("http://api:11434", timeout=timeout) as client:
            async for part in await client.chat(model="m", messages=MESSAGES, stream=True):
                yield part.message.content or ""


class OpenAI:
    """Talks to an OpenAIServer through the official client, which does not retry."""

    def server(self, answers: Any = (TEXT, TEXT, TEXT)) -> OpenAIServer:
        return OpenAIServer(answers, **TIMES)

    async def plain(self, timeout: Any = None) -> str:
        async with self.client(timeout) as client:
            answer = await client.chat.completions.create(model="m", messages=MESSAGES)
            assert "m" == answer.model, answer.model
            return answer.choices[0].message.content or ""

    async def streamed(self, timeout: Any = None) -> list[str]:
        return [piece async for piece in self.pieces(timeout)]

    async def pieces(self, timeout: Any = None) -> Any:
        async with (
            self.client(timeout) as client,
            await client.chat.completions.create(model="m", messages=MESSAGES, stream=True) as stream,
        ):
            async for part in stream:
                yield part.choices[0].delta.content or ""

    def client(self, timeout: Any = None, max_retries: int = 0) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url="http://api/v1", api_key="k", max_retries=max_retries, timeout=timeout)


apis = pytest.mark.parametrize("api", [Ollama(), OpenAI()], ids=["ollama", "openai"])


def outcome(net: Net, call: Any, *args: Any) -> tuple[Any, float]:
    """What `call` gives, or the exception it raises, and how many milliseconds it took."""
    began_ms = net.now_ms
    try:
        got = net.run(call, *args)
    except Exception as error:
        got = error
    return got, net.now_ms - began_ms


def struck(api: Any, fault: Any, *args: Any, streamed: bool = False, latency_ms: int = 0) -> tuple[Any, float, Net]:
    """What a call that meets *fault* comes to. The call after it is asserted to be healthy."""
    with Net({"api": api.server()}, fault, latency_ms=latency_ms) as net:
        call = api.streamed if streamed else api.plain
        got, took_ms = outcome(net, call, *args)
        assert [fault] == [strike.fault for strike in net.points.struck]
        text, after_ms = outcome(net, call, None)
        assert HEALTHY == ("".join(text), after_ms - 4 * latency_ms)
        return got, took_ms, net


def all_of(error: Any) -> str:
    """The words of an exception and of what caused it, with their types."""
    words = []
    while error is not None:
        words.append(f"{type(error).__name__}: {error}")
        error = error.__cause__ or error.__context__
    return " <- ".join(words)


def test_every_fault_of_a_request_has_its_tests_here():
    """One that is added must be looked for here."""
    tested = {
        f.Latency, f.Refused, f.Reset, f.ReadTimeout, f.CutMidBody, f.CutMidStream, f.SlowDrip, f.DuplicateChunk,
        f.ReorderedChunks, f.DnsFailure, f.LostPacket, f.RateLimited, f.ServerError, f.NoSuchRoute, f.EmptyBody,
        f.TruncatedJson, f.WrongShape, f.WrongContentType, f.GarbageBytes, f.WrongModel, f.EndlessStream, f.Refusal,
        f.EmptyAnswer, f.HugeAnswer, f.OutsideSchema,
    }  # fmt: skip
    assert tested == {kind for kind in f.Fault.__args__ if "request" in kind.points}


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_a_healthy_call_takes_what_its_tokens_take(api, streamed):
    with Net({"api": api.server()}) as net:
        got, took_ms = outcome(net, api.streamed if streamed else api.plain)

        assert HEALTHY == ("".join(got), took_ms)


# --- networks ---------------------------------------------------------------------------------------------


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_latency_comes_before_the_answer(api, streamed):
    got, took_ms, _ = struck(api, f.Latency(delay_ms=300), streamed=streamed)

    assert (TEXT, 320) == ("".join(got), took_ms)


@apis
def test_latency_lets_a_read_timeout_pass(api):
    got, took_ms, _ = struck(api, f.Latency(delay_ms=300), 0.1)

    assert ("ReadTimeout" in all_of(got), 100) == (True, took_ms)


@apis
def test_refused_refuses_at_once(api):
    got, took_ms, net = struck(api, f.Refused())

    assert isinstance(got, ConnectionError | openai.APIConnectionError)
    assert "connection refused" in all_of(got)
    assert 0 == took_ms
    assert 1 == len(net.network.servers["api"].requests)  # only that of the call after it


@apis
def test_a_name_that_cannot_be_resolved_is_told_as_such(api):
    got, took_ms, _ = struck(api, f.DnsFailure())

    assert isinstance(got, ConnectionError | openai.APIConnectionError)
    assert ("Name or service not known" in all_of(got), 0) == (True, took_ms)


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_a_reset_in_the_place_of_the_answer(api, streamed):
    got, took_ms, _ = struck(api, f.Reset(), streamed=streamed)

    assert "ReadError: connection reset by peer" in all_of(got)
    assert (10 if streamed else 20) == took_ms


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_a_reset_after_some_bytes(api, streamed):
    got, took_ms, _ = struck(api, f.Reset(after_bytes=40), streamed=streamed)

    assert "ReadError: connection reset by peer" in all_of(got)
    assert (10 if streamed else 20) == took_ms


@apis
def test_a_reset_after_the_last_byte_hurts_nobody(api):
    got, took_ms, _ = struck(api, f.Reset(after_bytes=100_000))

    assert HEALTHY == (got, took_ms)


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_a_host_that_never_answers_is_ended_by_the_clients_timeout(api, streamed):
    got, took_ms, net = struck(api, f.ReadTimeout(), 0.25, streamed=streamed)

    assert ("ReadTimeout" in all_of(got), 250) == (True, took_ms)
    assert ["left", "delivered"] == [request.ended for request in net.network.servers["api"].requests]


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_a_host_that_never_answers_does_when_the_world_is_healed(api, streamed):
    with Net({"api": api.server()}, f.ReadTimeout()) as net:
        net.heal_after(500)
        got, took_ms = outcome(net, api.streamed if streamed else api.plain)

        assert (TEXT, 510 if streamed else 500) == ("".join(got), took_ms)


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_half_of_a_body_arrives_and_the_connection_is_gone(api, streamed):
    got, took_ms, _ = struck(api, f.CutMidBody(), streamed=streamed)

    assert "RemoteProtocolError: peer closed the connection after" in all_of(got)
    # Half of all bytes: the last line of Ollama's stream is its longest.
    assert (15 if streamed and isinstance(api, OpenAI) else 20) == took_ms


@pytest.mark.parametrize("module", [httpx, httpx2])
def test_exactly_half_of_a_body_arrives(module):
    async def main() -> tuple[int, int]:
        arrived = 0
        async with module.AsyncClient() as client:
            question = {"model": "m", "messages": MESSAGES, "stream": False}
            async with client.stream("POST", "http://api/api/chat", json=question) as response:
                with pytest.raises(module.RemoteProtocolError):  # noqa: PT012 - what comes before it counts
                    async for piece in response.aiter_raw():
                        arrived += len(piece)
        return arrived, int(response.headers["content-length"])

    with Net({"api": OllamaServer(["a"])}, f.CutMidBody()) as net:
        arrived, whole = net.run(main)

        assert whole // 2 == arrived > 0


@apis
@pytest.mark.parametrize(
    ("chunks", "words"), [(0, []), (1, ["one"]), (2, ["one", " two"]), (99, ["one", " two", " three"])]
)
def test_a_stream_is_cut_after_whole_chunks(api, chunks, words):
    heard: list[str] = []

    async def main() -> None:
        async for piece in api.pieces():
            heard.append(piece)  # noqa: PERF401 - what comes before the end counts

    with Net({"api": api.server()}, f.CutMidStream(chunks=chunks)) as net:
        got, took_ms = outcome(net, main)

        if isinstance(api, OpenAI) and chunks == 99:
            assert None is got  # it has seen the end, and does not look at what comes after it
        else:
            assert "RemoteProtocolError: peer closed the connection after" in all_of(got)
        assert words == [word for word in heard if word]
        assert min(20, 10 + 5 * max(0, chunks - 1)) == took_ms


@pytest.mark.parametrize("module", [httpx, httpx2])
def test_a_slow_drip_comes_in_pieces_each_of_which_takes_its_time(module):
    def server(request: HttpRequest) -> Answer:
        return Answer(chunks=(Chunk(b"x" * 250, 7_000_000), Chunk(b"y")), streamed=True)

    async def main() -> list[tuple[int, float]]:
        async with module.AsyncClient() as client, client.stream("GET", "http://api/") as response:
            return [(len(data), net.now_ms) async for data in response.aiter_raw()]

    with Net({"api": server}, f.SlowDrip(delay_ms=1_000, size_bytes=100)) as net:
        assert [(100, 1_007), (100, 2_007), (50, 3_007), (1, 4_007)] == net.run(main)
        assert [(250, 4_014), (1, 4_014)] == net.run(main)  # 4,007 and, without the fault, 7


@apis
def test_a_slow_drip_keeps_a_read_timeout_from_passing(api):
    """It is for each piece, and pieces come: only a timeout of the client's own making ends such a call."""
    got, took_ms, _ = struck(api, f.SlowDrip(delay_ms=90, size_bytes=10), 0.1)

    assert TEXT == got
    assert took_ms > 1_000


@apis
def test_a_body_that_has_arrived_whole_may_be_cut_after_it(api):
    """Its length is told, so no client misses the rest of the connection."""
    got, took_ms, _ = struck(api, f.CutMidStream(chunks=1))

    assert HEALTHY == (got, took_ms)


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_a_slow_drip_ends_when_the_world_is_healed(api, streamed):
    with Net({"api": api.server()}, f.SlowDrip(delay_ms=1_000, size_bytes=1)) as net:
        net.heal_after(10_000)
        got, took_ms = outcome(net, api.streamed if streamed else api.plain)

        assert (TEXT, 10_000) == ("".join(got), took_ms)


@apis
def test_a_chunk_arrives_twice(api):
    got, took_ms, _ = struck(api, f.DuplicateChunk(chunk=1), streamed=True)

    assert ("one two two three", 20) == ("".join(got), took_ms)


@apis
def test_a_body_of_one_chunk_that_arrives_twice_is_no_json(api):
    got, _, _ = struck(api, f.DuplicateChunk())

    assert "JSONDecodeError: Extra data" in all_of(got)


@apis
def test_two_chunks_change_places(api):
    got, took_ms, _ = struck(api, f.ReorderedChunks(chunk=1), streamed=True)

    assert ("one three two", 20) == ("".join(got), took_ms)


@apis
def test_nothing_changes_places_in_a_body_of_one_chunk(api):
    got, took_ms, _ = struck(api, f.ReorderedChunks(chunk=7))

    assert HEALTHY == (got, took_ms)


@apis
def test_a_lost_packet_is_sent_again(api):
    got, took_ms, _ = struck(api, f.LostPacket())

    assert (TEXT, 220) == (got, took_ms)


@apis
@pytest.mark.parametrize("fault", [f.Refused(), f.Reset(), f.Latency(delay_ms=7), f.CutMidBody()], ids=repr)
def test_faults_meet_links_that_take_time(api, fault):
    got, took_ms, _ = struck(api, fault, latency_ms=10)

    assert {"refused": 0, "reset": 60, "latency": 67, "cut mid-body": 60}[fault.name] == took_ms
    assert (fault.name == "latency") == (got == TEXT)


@apis
@pytest.mark.parametrize("fault", [f.SlowDrip(), f.EndlessStream()], ids=repr)
def test_a_stream_that_is_healed_before_its_first_piece_is_whole(api, fault):
    with Net({"api": api.server()}, fault) as net:
        net.heal_after(5)
        got, took_ms = outcome(net, api.streamed)

        assert HEALTHY == ("".join(got), took_ms)


@apis
@pytest.mark.parametrize("fault", [f.ReadTimeout(), f.SlowDrip(), f.EndlessStream()], ids=repr)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize("heal_ms", [5, 25])
def test_a_world_that_is_healed_before_the_request_arrives_answers_as_if_nothing_had_been(
    api, fault, streamed, heal_ms
):
    with Net({"api": api.server()}, fault, latency_ms=10) as net:
        net.heal_after(heal_ms)
        got, took_ms = outcome(net, api.streamed if streamed else api.plain)

        assert (TEXT, 60) == ("".join(got), took_ms)


# --- model servers: statuses -------------------------------------------------------------------------------


@apis
@pytest.mark.parametrize("retry_after_s", [None, 7])
def test_429_has_its_retry_after_or_not(api, retry_after_s):
    got, took_ms, _ = struck(api, f.RateLimited(retry_after_s=retry_after_s))

    assert (429, 0) == (got.status_code, took_ms)
    if isinstance(got, openai.RateLimitError):
        header = None if retry_after_s is None else str(retry_after_s)
        assert header == got.response.headers.get("retry-after")
        assert ("rate_limit_exceeded", "rate_limit_error") == (got.code, got.type)


@apis
@pytest.mark.parametrize("status", [500, 503, 599])
@pytest.mark.parametrize("streamed", [False, True])
def test_a_server_error_has_its_status_and_the_words_of_its_api(api, status, streamed):
    got, took_ms, _ = struck(api, f.ServerError(status=status), streamed=streamed)

    assert isinstance(got, ollama.ResponseError | openai.InternalServerError)
    assert (status, 0) == (got.status_code, took_ms)
    assert "the model runner has terminated" in str(got)


@apis
def test_a_route_that_does_not_exist_is_a_404_without_json(api):
    got, took_ms, _ = struck(api, f.NoSuchRoute())

    assert (404, 0) == (got.status_code, took_ms)
    text = got.response.text if isinstance(got, openai.NotFoundError) else str(got)
    assert "404 page not found" in text


def test_the_openai_client_comes_again_when_retry_after_says():
    async def main() -> str:
        async with OpenAI().client(max_retries=2) as client:
            answer = await client.chat.completions.create(model="m", messages=MESSAGES)
            return answer.choices[0].message.content or ""

    with Net({"api": OpenAI().server()}, f.RateLimited(retry_after_s=7), f.RateLimited(retry_after_s=30)) as net:
        assert (TEXT, 37_020) == outcome(net, main)
        assert [0, 7_000, 37_000] == [request.at_ns / 1e6 for request in net.network.servers["api"].requests]


# --- model servers: bodies ---------------------------------------------------------------------------------


@apis
def test_an_empty_body_is_no_json(api):
    got, took_ms, _ = struck(api, f.EmptyBody())

    assert ("JSONDecodeError" in all_of(got), 20) == (True, took_ms)


@apis
def test_an_empty_stream_says_nothing(api):
    got, took_ms, _ = struck(api, f.EmptyBody(), streamed=True)

    assert ([], 10) == (got, took_ms)


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_truncated_json_ends_in_the_middle_with_nothing_on_the_wire_to_show_it(api, streamed):
    got, _, net = struck(api, f.TruncatedJson(), streamed=streamed)

    if not streamed:
        assert "delivered" == net.network.servers["api"].requests[0].ended
    if streamed and isinstance(api, OpenAI):
        # An event without its empty line is none: the client does not notice, and has lost the end.
        assert ["", "one", " two"] == got
    else:
        assert "JSONDecodeError" in all_of(got)


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_json_of_the_wrong_shape_is_a_list(api, streamed):
    got, took_ms, _ = struck(api, f.WrongShape(), streamed=streamed)

    assert isinstance(got, AttributeError | TypeError | ValueError)
    assert (10 if streamed else 20) == took_ms


@apis
def test_a_page_of_html_comes_in_the_place_of_the_answer(api):
    got, took_ms, _ = struck(api, f.WrongContentType())

    assert isinstance(got, ValueError | AttributeError)
    assert 0 == took_ms


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_garbage_is_no_utf_8(api, streamed):
    got, took_ms, _ = struck(api, f.GarbageBytes(), streamed=streamed)

    assert isinstance(got, ValueError), all_of(got)
    assert (10 if streamed else 20) == took_ms


@apis
def test_an_endless_stream_says_the_same_until_the_client_leaves(api):
    heard: list[str] = []

    async def main() -> None:
        async with aclosing(api.pieces()) as pieces:
            async for piece in pieces:
                heard.append(piece)
                if len(heard) == 100:
                    return

    with Net({"api": api.server()}, f.EndlessStream(delay_ms=100)) as net:
        got, took_ms = outcome(net, main)

        # A piece of OpenAI's stream has the role and a word, which come as two.
        assert (None, {"one"}) == (got, {piece for piece in heard if piece})
        assert 10 + 100 * (99 if isinstance(api, Ollama) else 49) == took_ms


@apis
def test_an_endless_stream_comes_to_its_end_when_the_world_is_healed(api):
    with Net({"api": api.server()}, f.EndlessStream(delay_ms=100)) as net:
        net.heal_after(1_050)
        got, took_ms = outcome(net, api.streamed)

        # At 10, 110 ... 1010 ms, and the one that was on its way.
        assert ("one" * 12 + " two three", 1_050) == ("".join(got), took_ms)


@apis
def test_an_endless_answer_that_is_not_streamed_never_begins(api):
    got, took_ms, _ = struck(api, f.EndlessStream(), 60)

    assert ("ReadTimeout" in all_of(got), 60_000) == (True, took_ms)


# --- model servers: what the model says --------------------------------------------------------------------


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_another_model_answers(api, streamed):
    if streamed:
        got, took_ms, _ = struck(api, f.WrongModel(), streamed=True)
        assert HEALTHY == ("".join(got), took_ms)
    else:
        got, _, _ = struck(api, f.WrongModel())
        assert isinstance(got, AssertionError)
        assert WRONG_MODEL in str(got)


def test_an_ollama_model_refuses_in_words():
    got, took_ms, _ = struck(Ollama(), f.Refusal())

    assert (REFUSAL_TEXT, 30) == (got, took_ms)


@pytest.mark.parametrize("streamed", [False, True])
def test_an_openai_model_refuses_in_a_field_of_its_own(streamed):
    api = OpenAI()

    async def main() -> tuple[str | None, str]:
        async with api.client() as client:
            if not streamed:
                message = (await client.chat.completions.create(model="m", messages=MESSAGES)).choices[0].message
                return message.content, message.refusal or ""
            stream = await client.chat.completions.create(model="m", messages=MESSAGES, stream=True)
            return None, "".join([part.choices[0].delta.refusal or "" async for part in stream])

    with Net({"api": api.server()}, f.Refusal()) as net:
        assert (None, REFUSAL_TEXT) == net.run(main)


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_an_empty_answer_is_well_formed(api, streamed):
    got, took_ms, _ = struck(api, f.EmptyAnswer(), streamed=streamed)

    assert ("", 10) == ("".join(got), took_ms)


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_a_huge_answer_has_its_size(api, streamed):
    got, _, _ = struck(api, f.HugeAnswer(size_bytes=300_000), streamed=streamed)

    assert 300_000 == len("".join(got))


@apis
@pytest.mark.parametrize("streamed", [False, True])
def test_an_answer_outside_the_schema_is_json_that_nobody_asked_for(api, streamed):
    got, _, _ = struck(api, f.OutsideSchema(), streamed=streamed)

    assert OUTSIDE_SCHEMA_TEXT == "".join(got)
    assert {"unexpected": [None]} == json.loads(OUTSIDE_SCHEMA_TEXT)


# --- servers without a protocol ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fault", "status", "text", "calls"),
    [
        (f.RateLimited(retry_after_s=7), 429, "too many requests\n", 0),
        (f.RateLimited(), 429, "too many requests\n", 0),
        (f.ServerError(status=503), 503, "the server failed\n", 0),
        (f.NoSuchRoute(), 404, "404 page not found\n", 0),
        (f.EmptyBody(), 200, "", 1),
        (f.WrongShape(), 200, "[]", 1),
        (f.TruncatedJson(), 200, '{"whole', 1),
        (f.EmptyAnswer(), 200, '{"whole": true}', 1),  # it has no model whose answer could be empty
        (f.WrongModel(), 200, '{"whole": true}', 1),
    ],
)
def test_any_server_meets_what_makes_sense_without_a_model(fault, status, text, calls):
    seen: list[HttpRequest] = []

    def server(request: HttpRequest) -> Answer:
        seen.append(request)
        return json_answer({"whole": True})

    async def main() -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.get("http://api/")

    with Net({"api": server}, fault) as net:
        response = net.run(main)
        assert (status, text, calls) == (response.status_code, response.text, len(seen))
        assert str(len(response.content)) == response.headers["content-length"]
        assert ("7" if fault == f.RateLimited(retry_after_s=7) else None) == response.headers.get("retry-after")
        assert {"whole": True} == net.run(main).json()


def test_an_endless_stream_of_nothing_sends_empty_lines():
    async def main() -> list[bytes]:
        got: list[bytes] = []
        async with httpx.AsyncClient() as client, client.stream("GET", "http://api/") as response:
            async for data in response.aiter_raw():
                got.append(data)
                if len(got) == 3:
                    break
        return got

    with Net({"api": lambda request: Answer(streamed=True)}, f.EndlessStream(delay_ms=5)) as net:
        assert [b"\n"] * 3 == net.run(main)
        assert 10 == net.now_ms


@pytest.mark.parametrize("fault", [f.DuplicateChunk(), f.ReorderedChunks(), f.CutMidBody(), f.Reset(after_bytes=1)])
def test_a_body_without_a_byte_has_nothing_to_spoil(fault):
    async def main() -> Any:
        async with httpx.AsyncClient() as client:
            return (await client.get("http://api/")).content

    with Net({"api": lambda request: Answer()}, fault) as net:
        assert b"" == net.run(main)


def test_a_host_of_the_script_may_break_the_connection_itself():
    """And what breaks on its own meets no other fault but latency."""

    async def main() -> None:
        async with httpx.AsyncClient() as client:
            with pytest.raises(httpx.ReadError):
                await client.get("http://api/")

    def server(request: HttpRequest) -> Break:
        return Break(how="reset", after_ns=5_000_000)

    with Net({"api": server}, f.Latency(delay_ms=7), f.CutMidBody()) as net:
        net.run(main)
        assert 12 == net.now_ms
        net.run(main)
        assert 17 == net.now_ms


# --- a script and its faults -------------------------------------------------------------------------------

EVERY: list[Any] = [
    f.Latency(delay_ms=5), f.Refused(), f.Reset(), f.Reset(after_bytes=9), f.ReadTimeout(), f.CutMidBody(),
    f.DnsFailure(), f.RateLimited(), f.ServerError(), f.NoSuchRoute(), f.EmptyBody(), f.TruncatedJson(),
    f.WrongShape(), f.WrongContentType(), f.GarbageBytes(), f.WrongModel(), f.EndlessStream(), f.Refusal(),
    f.EmptyAnswer(), f.HugeAnswer(), f.OutsideSchema(),
]  # fmt: skip


@apis
@pytest.mark.parametrize("fault", EVERY, ids=repr)
def test_a_client_that_tries_again_hears_every_answer_of_the_script_once(api, fault):
    heard: list[str] = []

    async def main() -> None:
        for _ in range(4):
            try:
                text = await api.plain(1.0)
            except Exception:
                continue
            if text in {"a", "b"}:
                heard.append(text)
            if len(heard) == 2:
                break

    with Net({"api": api.server(["a", "b"])}, fault) as net:
        net.run(main)

        assert ["a", "b"] == heard
        net.network.servers["api"].server.script.check_used_up()


@apis
def test_an_answer_lost_in_a_crash_is_given_again(api):
    async def main() -> str:
        try:
            return str(await api.plain())
        except Exception:
            return f"then {await api.plain()}"

    with Net({"api": api.server(["a"])}) as net:
        host = net.host("api")
        net.loop.call_later(0.005, host.restart)
        assert "then a" == net.run(main)


@apis
def test_an_answer_to_one_who_had_left_before_the_question_came_is_given_again(api):
    """The request is on its way when its timeout passes, arrives all the same, and is answered to nobody."""

    async def main() -> str:
        with pytest.raises((httpx.ReadTimeout, openai.APITimeoutError)):
            await api.plain(module.Timeout(None, read=0.005))
        return str(await api.plain())

    module = httpx if isinstance(api, Ollama) else httpx2
    with Net({"api": api.server(["a"])}, latency_ms=10) as net:
        assert "a" == net.run(main)
        assert ["left", "delivered"] == [request.ended for request in net.network.servers["api"].requests]


@apis
def test_an_answer_that_its_client_did_not_wait_for_is_used_up(api):
    async def main() -> str:
        with pytest.raises((httpx.ReadTimeout, openai.APITimeoutError)):
            await api.plain(0.005)
        return str(await api.plain())

    with Net({"api": api.server(["a", "b"])}) as net:
        assert "b" == net.run(main)


@apis
def test_a_question_that_is_asked_again_has_the_number_it_had(api):
    numbers: list[int] = []

    def says(question: Asked) -> str:
        numbers.append(question.number)
        return "a"

    async def main() -> None:
        for _ in range(3):
            with suppress(Exception):
                await api.plain()

    with Net({"api": api.server(says)}, f.Reset()) as net:
        net.run(main)
        assert [0, 0, 1] == numbers
