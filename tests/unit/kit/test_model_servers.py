"""Servers of scripted models: what they say, how strict they are, and that official clients understand them."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import ollama
import openai
import pytest

from tests.support.nets import MS, Net
from tinyllm.testing.faults import (
    At,
    Cancelled,
    ClockJump,
    CpuSaturation,
    Crash,
    DuplicateChunk,
    EndlessStream,
    Partition,
    Pause,
    ReorderedChunks,
    Reset,
    SlowLink,
    WrongModel,
    WrongShape,
)
from tinyllm.testing.plan import WorldPlan
from tinyllm.testing.schedule import Hold
from tinyllm.testing.servers.ollama import OllamaServer
from tinyllm.testing.servers.openai import OpenAIServer
from tinyllm.testing.servers.script import Asked, ModelScript, Said, ScriptError, ToolCall, words
from tinyllm.testing.world import World

pytestmark = pytest.mark.unit

MESSAGES: Any = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why is that so"}]
CALL = ToolCall("add", {"a": 1, "b": [2, "ü"]})
TIMES: Any = {"first_token_ms": 10, "token_ms": 5}


def asked(model: str = "m", prompt: str = "why", number: int = 0) -> Asked:
    messages = [{"role": "user", "content": prompt}]
    return Asked(model=model, number=number, messages=messages, body={}, source="local", at_ns=0)


def a_chat(**how: Any) -> Any:
    return lambda client: client.chat(model=how.pop("model", "m"), messages=MESSAGES, **how)


def ollama_says(server: Any, *calls: Any, url: str = "http://api:11434") -> list[Any]:
    """What the official client gives for each call; of a stream the list of its parts."""

    async def main() -> list[Any]:
        async with ollama.AsyncClient(url) as client:
            return [await _whole(call(client)) for call in calls]

    with Net({"api": server}) as net:
        got: list[Any] = net.run(main)
        return got


def openai_says(server: Any, *calls: Any) -> list[Any]:
    async def main() -> list[Any]:
        async with openai.AsyncOpenAI(base_url="http://api/v1", api_key="k", max_retries=0) as client:
            return [await _whole(call(client)) for call in calls]

    with Net({"api": server}) as net:
        got: list[Any] = net.run(main)
        return got


async def _whole(call: Any) -> Any:
    try:
        got = await call
        return [part async for part in got] if hasattr(got, "__anext__") else got
    except (openai.APIError, ollama.ResponseError) as error:
        return error


def completion(**how: Any) -> Any:
    return lambda client: client.chat.completions.create(**{"model": "m", "messages": MESSAGES, **how})


# --- the script --------------------------------------------------------------------------------------------


def test_answers_are_given_in_order_whoever_is_asked():
    script = ModelScript(["a", CALL, [CALL, CALL], Said(text="b", cut_short=True)])

    assert [
        Said(text="a"),
        Said(tool_calls=(CALL,)),
        Said(tool_calls=(CALL, CALL)),
        Said(text="b", cut_short=True),
    ] == [script.take(asked(model)) for model in ("m", "n", "m", "o")]


def test_answers_of_a_mapping_belong_to_models():
    script = ModelScript({"m": ["a", "b"], "n": ["c"]})

    assert ["a", "c", "b"] == [script.take(asked(model)).text for model in ("m", "n", "m")]
    assert ("m", "n") == script.models


def test_a_function_answers_each_question():
    script = ModelScript(lambda question: f"{question.model} {question.number} {question.prompt}")

    assert "m 3 why" == script.take(asked(number=3)).text


def test_drawn_answers_depend_on_seed_and_model_only():
    def drawn(seed: int, models: str) -> list[str]:
        script = ModelScript(drawn=["a", "b", "c"], seed=seed)
        return [script.take(asked(model)).text for model in models]

    assert drawn(1, "mmmmmm") == drawn(1, "mnmnmnmnmnmn")[::2]
    assert drawn(1, "mmmmmm") != drawn(2, "mmmmmm")
    assert {"a", "b", "c"} == set(drawn(1, "m" * 50))


@pytest.mark.parametrize(
    ("answers", "models", "why"),
    [
        ([], "m", "the script has no answers, all given, but host 'local' asks 'm' for more: 'why'"),
        (["a"], "mn", "the script has 1 answer, all given, but host 'local' asks 'n' for more: 'why'"),
        ({"m": ["a", "b"]}, "mmm", "the script of model 'm' has 2 answers, all given"),
        ({"m": ["a"]}, "n", "the script of model 'n' has no answers"),
    ],
)
def test_a_script_is_strict_and_says_what_was_asked(answers, models, why):
    script = ModelScript(answers)
    for model in models[:-1]:
        script.take(asked(model))
    with pytest.raises(ScriptError, match=why):
        script.take(asked(models[-1]))


def test_a_long_question_is_told_in_part():
    with pytest.raises(ScriptError, match=r"for more: 'x{80}\.\.\.'$"):
        ModelScript().take(asked(prompt="x" * 500))


def test_what_was_never_asked_for_can_be_found():
    script = ModelScript({"m": ["a", "b"], "n": ["c"]})
    script.take(asked("m"))
    with pytest.raises(ScriptError, match="1 of 2 scripted answers of model 'm' were never asked for"):
        script.check_used_up()
    script.take(asked("m"))
    script.take(asked("n"))
    script.check_used_up()


@pytest.mark.parametrize("answers", [[7], [None], [[]], [["a"]], "text", {"m": "text"}])
def test_what_is_no_answer_is_refused(answers):
    with pytest.raises(TypeError, match="answer"):
        ModelScript(answers)


def test_a_function_that_gives_no_answer_is_refused_then():
    with pytest.raises(TypeError, match="an answer is a text, a ToolCall or several, or a Said, not 7"):
        ModelScript(lambda question: 7).take(asked())  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("how", [{"drawn": []}, {"answers": ["a"], "drawn": ["b"]}])
def test_a_script_has_one_source(how):
    with pytest.raises(ValueError, match="not both"):
        ModelScript(**how)


@pytest.mark.parametrize("how", [{"token_ms": -1}, {"first_token_ms": 1.5}, {"token_ms": True}])
def test_times_are_whole_milliseconds(how):
    with pytest.raises(ValueError, match="is a whole number, 0 or more"):
        OllamaServer(**how)


@pytest.mark.parametrize("text", ["", "a", " a", "a ", "a b", "  a \n b\t", "   ", "ü b c"])
def test_words_make_up_the_text(text):
    assert text == "".join(words(text))
    assert len(text.split()) <= len(words(text)) <= len(text.split()) + 1


def test_a_prompt_may_be_made_of_parts():
    parts = [{"type": "text", "text": "a"}, {"type": "image_url"}, {"type": "text", "text": "b"}]
    question = Asked(model="m", number=0, messages=[{"content": parts}], body={}, source="local", at_ns=0)

    assert "ab" == question.prompt


# --- both servers ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("server", "says"), [(OllamaServer, ollama_says), (OpenAIServer, openai_says)])
def test_being_asked_too_often_fails_the_world_and_the_call(server, says):
    call = a_chat() if server is OllamaServer else completion()
    net = Net({"api": server(["a"])})

    async def main() -> list[Any]:
        clients: Any = {
            OllamaServer: lambda: ollama.AsyncClient("http://api"),
            OpenAIServer: lambda: openai.AsyncOpenAI(base_url="http://api/v1", api_key="k", max_retries=0),
        }
        async with clients[server]() as client:
            return [await _whole(call(client)) for _ in range(2)]

    _, error = net.run(main)
    net.loop.close()

    assert 500 == error.status_code
    [context] = net.loop.unhandled
    assert isinstance(context["exception"], ScriptError)
    assert "asks 'm' for more: 'why is that so'" in str(context["exception"])


@pytest.mark.parametrize("server", [OllamaServer, OpenAIServer])
def test_the_script_sees_who_asks_what_and_how_often_it_was_answered(server):
    seen: list[Asked] = []

    def says(question: Asked) -> str:
        seen.append(question)
        return "a"

    if server is OllamaServer:
        ollama_says(server(says), a_chat(), a_chat(), lambda client: client.generate(model="n", prompt="p", system="s"))
        assert [{"role": "system", "content": "s"}, {"role": "user", "content": "p"}] == seen[2].messages
    else:
        openai_says(server(says), completion(), completion(), completion(model="n", temperature=0.5))
        assert 0.5 == seen[2].body["temperature"]
    assert [("m", 0), ("m", 1), ("n", 0)] == [(question.model, question.number) for question in seen]
    assert ("local", "why is that so", MESSAGES) == (seen[0].source, seen[0].prompt, seen[0].messages)


def test_requests_are_recorded_with_how_they_ended():
    server = OllamaServer(["a", "b"], **TIMES)

    async def main() -> None:
        for timeout, error in ((0.004, httpx.ReadTimeout), (None, httpx.ReadError)):
            with pytest.raises(error):
                await ollama.AsyncClient("http://api", timeout=timeout).chat(model="m", messages=MESSAGES)

    with Net({"api": server}, None, Reset()) as net:
        net.host("worker").start(main)
        net.rest()

    first, second = server.requests
    assert ("POST", "/api/chat", "worker", 0, "left", 4 * MS) == (
        first.method,
        first.path,
        first.source,
        first.at_ns,
        first.ended,
        first.ended_ns,
    )
    assert MESSAGES == first.json["messages"]
    assert ("broken", 14 * MS, Reset()) == (second.ended, second.ended_ns, second.fault)


# --- Ollama ------------------------------------------------------------------------------------------------


def test_ollama_answers_whole_or_in_lines():
    whole, parts, generated, pieces = ollama_says(
        OllamaServer(["one two", "one two", "three", "three four"], **TIMES),
        a_chat(),
        a_chat(stream=True),
        lambda client: client.generate(model="m", prompt="p"),
        lambda client: client.generate(model="m", prompt="p", stream=True),
    )

    assert ("m", "one two", True, "stop") == (whole.model, whole.message.content, whole.done, whole.done_reason)
    assert "2026-01-01T00:00:00.015000+00:00" == whole.created_at
    assert (8, 2, 15 * MS, 10 * MS, 5 * MS) == (
        whole.prompt_eval_count,
        whole.eval_count,
        whole.total_duration,
        whole.prompt_eval_duration,
        whole.eval_duration,
    )
    assert [("one", False), (" two", False), ("", True)] == [(part.message.content, part.done) for part in parts]
    assert [None, None, 2] == [part.eval_count for part in parts]
    assert ["00.025000", "00.030000", "00.030000"] == [part.created_at[17:26] for part in parts]
    assert ("three", 1) == (generated.response, generated.eval_count)
    assert [("three", False), (" four", False), ("", True)] == [(piece.response, piece.done) for piece in pieces]


def test_ollama_streams_unless_told_otherwise():
    async def main() -> list[tuple[str, int]]:
        async with httpx.AsyncClient() as client:
            answers = []
            for more in ({}, {"stream": True}, {"stream": False}):
                response = await client.post("http://api/api/chat", json={"model": "m", "messages": MESSAGES, **more})
                answers.append((response.headers["content-type"], len(response.text.splitlines())))
            return answers

    with Net({"api": OllamaServer(lambda question: "a b")}) as net:
        lines = ("application/x-ndjson", 3)
        assert [lines, lines, ("application/json", 1)] == net.run(main)


def test_ollama_tells_of_an_answer_at_its_limit():
    [answer] = ollama_says(OllamaServer([Said(text="a", cut_short=True)]), a_chat())

    assert "length" == answer.done_reason


@pytest.mark.parametrize("stream", [False, True])
def test_ollama_calls_tools(stream):
    [got] = ollama_says(OllamaServer([[CALL, ToolCall("now")]]), a_chat(stream=stream))
    message = got[0].message if stream else got.message

    assert [("add", dict(CALL.arguments)), ("now", {})] == [
        (call.function.name, call.function.arguments) for call in message.tool_calls
    ]


def test_ollama_lists_and_shows_its_models():
    listed, shown = ollama_says(
        OllamaServer(models=["m", "n:1b"]), lambda client: client.list(), lambda client: client.show("m:latest")
    )

    assert ["m", "n:1b"] == [model.model for model in listed.models]
    assert ["completion", "tools"] == shown.capabilities


@pytest.mark.parametrize("call", [a_chat(model="x"), a_chat(model="x", stream=True), lambda client: client.show("x")])
def test_ollama_does_not_know_other_models(call):
    [error] = ollama_says(OllamaServer({"m": ["a"]}), call)

    assert (404, "model 'x' not found") == (error.status_code, error.error)


@pytest.mark.parametrize(
    ("method", "path", "content", "status", "text"),
    [
        ("GET", "/api/chat", b"", 404, "404 page not found"),
        ("POST", "/api/nothing", b"{}", 404, "404 page not found"),
        ("POST", "/api/chat", b"{", 400, "invalid JSON"),
        ("POST", "/api/chat", b"[]", 400, "model is required"),
        ("POST", "/api/chat", b"{}", 400, "model is required"),
    ],
)
def test_ollama_refuses_what_it_does_not_understand(method, path, content, status, text):
    async def main() -> httpx.Response:
        async with httpx.AsyncClient() as client:
            return await client.request(method, f"http://api{path}", content=content)

    with Net({"api": OllamaServer()}) as net:
        response = net.run(main)
        assert (status, True) == (response.status_code, text in response.text)


# --- OpenAI ------------------------------------------------------------------------------------------------


def test_openai_answers_whole():
    first, second = openai_says(OpenAIServer(["one two", "three"], **TIMES), completion(), completion())

    assert ("chatcmpl-1", "chatcmpl-2") == (first.id, second.id)
    assert ("m", "chat.completion", 1_767_225_600) == (first.model, first.object, first.created)
    [choice] = first.choices
    assert ("one two", "assistant", None, "stop") == (
        choice.message.content,
        choice.message.role,
        choice.message.refusal,
        choice.finish_reason,
    )
    assert (8, 2, 10) == (first.usage.prompt_tokens, first.usage.completion_tokens, first.usage.total_tokens)


@pytest.mark.parametrize("usage", [False, True])
def test_openai_answers_in_events(usage):
    options = {"stream_options": {"include_usage": True}} if usage else {}
    [parts] = openai_says(OpenAIServer(["one two"]), completion(stream=True, **options))

    assert ["", "one", " two", None] == [part.choices[0].delta.content for part in parts[:4]]
    assert ("assistant", "stop") == (parts[0].choices[0].delta.role, parts[3].choices[0].finish_reason)
    assert {"chatcmpl-1"} == {part.id for part in parts}
    assert [(8, 2, 10)] * usage == [
        (part.usage.prompt_tokens, part.usage.completion_tokens, part.usage.total_tokens) for part in parts[4:]
    ]


def test_openai_streams_end_with_done_each_event_when_its_token_is_made():
    async def main() -> list[tuple[str, float]]:
        async with httpx.AsyncClient() as client:
            question = {"model": "m", "messages": MESSAGES, "stream": True}
            async with client.stream("POST", "http://api/v1/chat/completions", json=question) as response:
                assert "text/event-stream" in response.headers["content-type"]
                return [(line, net.now_ms) async for line in response.aiter_lines() if line]

    with Net({"api": OpenAIServer(["one two"], **TIMES)}) as net:
        lines = net.run(main)

        assert [10, 10, 15, 15, 15] == [ms for _, ms in lines]
        assert "data: [DONE]" == lines[-1][0]
        assert all(line.startswith("data: {") for line, _ in lines[:-1])


@pytest.mark.parametrize("text", ["", "first some words"])
def test_openai_calls_tools_whole_and_in_pieces(text):
    says = Said(text=text, tool_calls=(CALL, ToolCall("now")))

    async def collected(client: Any) -> Any:
        async with client.chat.completions.stream(model="m", messages=MESSAGES) as stream:
            return await stream.get_final_completion()

    whole, streamed, parts = openai_says(OpenAIServer([says] * 3), completion(), collected, completion(stream=True))

    for answer in (whole, streamed):
        [choice] = answer.choices
        assert "tool_calls" == choice.finish_reason
        assert [("add", '{"a":1,"b":[2,"ü"]}'), ("now", "{}")] == [
            (call.function.name, call.function.arguments) for call in choice.message.tool_calls
        ]
        assert 2 == len({call.id for call in choice.message.tool_calls})
        assert text == (choice.message.content or "")
    arguments = [call.function.arguments for part in parts for call in part.choices[0].delta.tool_calls or ()]
    assert ["", '{"a":1,"', 'b":[2,"ü', '"]}', "", "{}"] == arguments


def test_openai_lists_its_models():
    server = OpenAIServer(models=["m", "n"])
    listed, found, missing = openai_says(
        server,
        lambda client: client.models.list(),
        lambda client: client.models.retrieve("n"),
        lambda client: client.models.retrieve("x"),
    )

    assert ["m", "n"] == [model.id for model in listed.data]
    assert ("n", 404) == (found.id, missing.status_code)


def test_openai_does_not_know_other_models():
    [error] = openai_says(OpenAIServer({"m": ["a"]}), completion(model="x"))

    assert isinstance(error, openai.NotFoundError)
    assert ("model_not_found", "invalid_request_error") == (error.code, error.type)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (completion(n=2), openai.BadRequestError, "'n' must be 1"),
        (completion(messages=[]), openai.BadRequestError, "'messages'"),
        (completion(model=""), openai.BadRequestError, "model parameter"),
        (lambda client: client.embeddings.create(model="m", input="a"), openai.NotFoundError, "Invalid URL"),
    ],
)
def test_openai_refuses_what_it_does_not_understand(call, kind, text):
    [error] = openai_says(OpenAIServer(["a"]), call)

    assert (kind, True) == (type(error), text in str(error))


# --- what counts as given ------------------------------------------------------------------------------------


def impatient(world: World) -> Any:
    async def main() -> str | None:
        settings: Any = {"base_url": "http://llm/v1", "api_key": "k", "max_retries": 1, "timeout": 0.5}
        async with openai.AsyncOpenAI(**settings) as client:
            answer = await completion()(client)
            return answer.choices[0].message.content

    return world.run(main)


@pytest.mark.parametrize(
    "fault",
    [
        Pause(host="llm", start_ms=35, duration_ms=700),
        Partition(hosts=("llm",), start_ms=35, duration_ms=490),
        SlowLink(start_ms=35, duration_ms=600, delay_ms=600),
        CpuSaturation(host="llm", duration_ms=100, step_us=700_000),
        Crash(host="llm", start_ms=35, duration_ms=100),
    ],
    ids=lambda fault: fault.name,
)
def test_an_answer_that_a_lasting_fault_kept_from_arriving_in_time_is_given_again(fault):
    """A client that asks again hears the answer of the script, and the script has no other."""
    server = OpenAIServer(["one two three"], token_ms=5)

    with World(WorldPlan(lasting=(fault,)), latency_ms=10) as world:
        world.host("llm", server)
        assert "one two three" == impatient(world)
        assert 2 == len(server.requests)
        assert () == world.finish().problems


def test_an_answer_that_nothing_but_its_own_time_made_late_counts_as_given():
    server = OpenAIServer(["one", "two"], first_token_ms=600)

    with World(WorldPlan(lasting=(ClockJump(host="llm", jump_ms=1_000),)), latency_ms=10) as world:
        world.host("llm", server)
        with pytest.raises(openai.APITimeoutError):
            impatient(world)
        assert () == world.finish().problems
    server.script.check_used_up()


ONE, TWO = "one a b c", "two d e f"


async def first_words(question: str, *, whole: bool) -> str:
    """What is heard of an answer until the client leaves it, after its last piece or after the first."""
    body = {"model": "m", "messages": [{"role": "user", "content": question}], "stream": True}
    heard = ""
    async with httpx.AsyncClient() as client, client.stream("POST", "http://llm/v1/chat/completions", json=body) as it:
        async for line in it.aiter_lines():
            if line == "data: [DONE]" or (heard and not whole):
                break
            if line:
                choices = json.loads(line.removeprefix("data: "))["choices"]
                heard += (choices[0]["delta"].get("content") or "") if choices else ""
    return heard


@pytest.mark.parametrize("lasting", [(), (SlowLink(delay_ms=1),), (SlowLink(hosts=("db",), delay_ms=1),)], ids=repr)
def test_an_answer_that_was_heard_to_its_end_is_not_given_again(lasting):
    server = OpenAIServer([ONE, TWO])

    async def main() -> list[str]:
        return [await first_words(question, whole=True) for question in ("q", "q")]

    with World(WorldPlan(lasting=lasting)) as world:
        world.host("llm", server)
        assert [ONE, TWO] == world.run(main)
        assert () == world.finish().problems


def test_an_answer_that_was_heard_before_the_network_broke_is_not_given_again():
    lasting = (SlowLink(start_ms=10, delay_ms=100), Partition(hosts=("llm",), start_ms=100, duration_ms=500))

    async def main() -> list[str | None]:
        return [await hears_openai() for _ in range(2)]

    with World(WorldPlan(lasting=lasting)) as world:
        world.host("llm", OpenAIServer([ONE, TWO], token_ms=5))
        assert [ONE, TWO] == world.run(main)


@pytest.mark.parametrize("again", ["q", "another question"])
def test_what_a_client_left_among_faults_is_given_to_whoever_asks_the_same(again):
    server = OpenAIServer([ONE, TWO], token_ms=10)

    async def main() -> list[str]:
        return [await first_words("q", whole=False), await first_words(again, whole=True)]

    with World(WorldPlan(lasting=(SlowLink(delay_ms=1),))) as world:
        world.host("llm", server)
        assert ["one", ONE if again == "q" else TWO] == world.run(main)


@pytest.mark.parametrize("fault", [DuplicateChunk(), ReorderedChunks(), EndlessStream(), WrongModel()], ids=repr)
@pytest.mark.parametrize("streamed", [True, False])
def test_an_answer_that_was_spoiled_on_its_way_is_given_again_and_one_that_only_came_late_is_not(fault, streamed):
    server = OpenAIServer([ONE, TWO])
    body = {"model": "m", "messages": [{"role": "user", "content": "q"}], "stream": streamed}

    async def main() -> list[str]:
        async with httpx.AsyncClient(timeout=None) as client:
            return [(await client.post("http://llm/v1/chat/completions", json=body)).text for _ in range(2)]

    with World(WorldPlan(strikes=(At(point="request", fault=fault),))) as world:
        world.host("llm", server)
        world.loop.call_later(5, world.network.heal)
        _, second = world.run(main)
    only_late = not streamed and isinstance(fault, EndlessStream | ReorderedChunks)
    assert ("two" if only_late else "one") in second


def test_a_request_that_comes_when_its_client_has_left_uses_up_nothing():
    server = OpenAIServer([ONE])

    async def main() -> str | None:
        settings: Any = {"base_url": "http://llm/v1", "api_key": "k", "max_retries": 0}
        async with openai.AsyncOpenAI(**settings) as client:
            for _ in range(3):
                try:
                    async with asyncio.timeout(5):
                        answer = await completion()(client)
                        return answer.choices[0].message.content
                except TimeoutError:
                    continue
        return None

    for gap in range(8):
        with World(WorldPlan(schedule=(Hold(gap, 11),))) as world:
            world.host("llm", server := OpenAIServer([ONE]))
            assert ONE == world.run(main)
            assert () == world.finish(rest_ms=60_000).problems
    assert 1 <= len(server.requests) <= 2


@pytest.mark.parametrize("number", range(6))
def test_an_answer_that_a_cancelled_client_did_not_hear_is_given_again(number):
    async def main(world: World) -> str | None:
        settings: Any = {"base_url": "http://llm/v1", "api_key": "k", "max_retries": 0}
        async with openai.AsyncOpenAI(**settings) as client:
            for _ in range(2):
                try:
                    answer = await world.may_time_out(completion()(client))
                    return answer.choices[0].message.content
                except TimeoutError:
                    continue
        return None

    with World(WorldPlan(strikes=(At(point="await", number=number, fault=Cancelled()),)), latency_ms=1) as world:
        world.host("llm", OpenAIServer([ONE], token_ms=1))
        assert ONE == world.run(main, world)
        assert () == world.finish().problems


async def hears_openai() -> str | None:
    settings: Any = {"base_url": "http://llm/v1", "api_key": "k", "max_retries": 0}
    async with openai.AsyncOpenAI(**settings) as client:
        stream = await completion(stream=True)(client)
        return "".join([piece.choices[0].delta.content or "" async for piece in stream])


async def hears_ollama() -> str | None:
    pieces = await ollama.AsyncClient("http://llm").chat(model="m", messages=MESSAGES, stream=True)
    return "".join([piece.message.content or "" async for piece in pieces])


@pytest.mark.parametrize(("server", "hears"), [(OpenAIServer, hears_openai), (OllamaServer, hears_ollama)])
@pytest.mark.parametrize("begins", range(24))
def test_whatever_comes_late_a_client_that_asks_again_hears_the_script(server, hears, begins):
    """Also where the end of a stream is late: some clients wait for it, and some are done before it."""

    async def main() -> list[str | None]:
        heard: list[str | None] = []
        while len(heard) < 2:
            try:
                async with asyncio.timeout(5):
                    heard.append(await hears())
            except TimeoutError:
                continue
        return heard

    for level in (8, 10, 11):
        with World(WorldPlan(schedule=(Hold(0, level),), begins=begins)) as world:
            world.host("llm", server([ONE, TWO], token_ms=5))
            assert [ONE, TWO] == world.run(main)
            assert () == world.finish(rest_ms=60_000).problems


def test_a_spoiled_answer_is_given_again_though_its_response_is_never_closed():
    async def main() -> tuple[str, str]:
        client = httpx.AsyncClient()
        body = {"model": "m", "messages": MESSAGES, "stream": True}
        request = client.build_request("POST", "http://llm/v1/chat/completions", json=body)
        kept = await client.send(request, stream=True)
        answer = await client.post("http://llm/v1/chat/completions", json={**body, "stream": False})
        return kept.headers["content-type"], answer.json()["choices"][0]["message"]["content"]

    with World(WorldPlan(strikes=(At(point="request", fault=WrongShape()),))) as world:
        world.host("llm", OpenAIServer([ONE]))
        assert ONE == world.run(main)[1]
