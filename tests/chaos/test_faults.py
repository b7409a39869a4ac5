"""Faults: each bites exactly as it is named, each ends, and each travels as JSON."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.runs import a_graph, a_line, node
from tinyllm.errors import ModelError
from tinyllm.models.base import ModelRequest, ModelResponse
from tinyllm.models.ollama import OllamaClient
from tinyllm.testing.faults import (
    FAULTS,
    MS_MAX,
    CallFaultKind,
    CutMidBody,
    FaultError,
    FaultPlan,
    HostDown,
    Latency,
    OnCall,
    Refused,
    ServerError,
    fault_from_json,
    fault_to_json,
)
from tinyllm.testing.graph_world import GraphWorld, RunPlan
from tinyllm.testing.http.network import Network
from tinyllm.testing.loop import SimulatedLoop
from tinyllm.testing.ollama_host import CallRecord, OllamaHost, Voice
from tinyllm.testing.script import SERVICE_MS, TOKENS_IN, Ask, Reply, Says, Script, hosts_of, models_of
from tinyllm.testing.units import NS_PER_MS

pytestmark = pytest.mark.chaos

EXAMPLES = [
    Latency(delay_ms=50),
    Refused(),
    CutMidBody(),
    ServerError(),
    ServerError(status=503),
    HostDown(host="m"),
    HostDown(host="m", start_ms=3, duration_ms=7),
]
ON_CALLS = [fault for fault in EXAMPLES if not isinstance(fault, HostDown)]


class Wire:
    """One model `m` on one host, a plain client without retries, and the calls it makes."""

    def __init__(self, script: Script) -> None:
        self.loop = SimulatedLoop()
        self.network = Network(self.loop)
        self.calls: list[CallRecord] = []
        self.script = script
        made: Counter[Voice] = Counter()
        for name in dict.fromkeys(script.hosts.values()):
            host = OllamaHost(
                name,
                script,
                self.calls,
                made,
                time_ns=lambda: self.loop.time_ns,
                clock=lambda: datetime(2030, 1, 1, tzinfo=UTC),
                run_index=int,
            )
            self.network.serve(name, host)

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        assert () == self.loop.pending_timers()
        assert [] == self.network.open_connections(None)
        self.loop.close()
        assert [] == self.loop.unhandled

    @property
    def now_ms(self) -> float:
        return self.loop.time_ns / NS_PER_MS

    def call(self, model: str = "m", *, key: str = "0:1:n") -> ModelResponse:
        """What one call of the plain client gives; raises its ModelError."""

        async def main() -> ModelResponse:
            async with OllamaClient(f"http://{model}:1", transport=self.network.transport()) as client:
                return await client.complete(ModelRequest(model=model, prompt="question", idempotency_key=key))

        return self.loop.run_until_complete(main())

    def refused(self) -> ModelError:
        with pytest.raises(ModelError) as caught:
            self.call()
        return caught.value

    def get(self, timeout: httpx.Timeout | float | None, *, read: bool = True) -> httpx.Response:
        """What a client of the test's own gets."""

        async def main() -> httpx.Response:
            async with httpx.AsyncClient(transport=self.network.transport(), timeout=timeout) as client:
                body = {"model": "m", "messages": [{"role": "user", "content": "q"}]}
                how: Any = {"json": body, "headers": {"Idempotency-Key": "0:1:n"}}
                if read:
                    return await client.post("http://m:1/api/chat", **how)
                async with client.stream("POST", "http://m:1/api/chat", **how) as got:
                    assert 1 == len(self.network.open_connections(None))
                    return got

        return self.loop.run_until_complete(main())


def with_faults(*calls: Any, lasting: tuple[HostDown, ...] = (), **script: Any) -> Wire:
    """A wire on which call k of node `n` meets the k-th fault."""
    plan = tuple(OnCall(run=0, node="n", call=number, fault=fault) for number, fault in enumerate(calls) if fault)
    return Wire(Script({"m": "m"}, faults=FaultPlan(calls=plan, lasting=lasting), **script))


# --- each bites ------------------------------------------------------------------------------------------


def test_every_fault_of_a_graph_has_its_tests_here():
    assert {type(fault) for fault in EXAMPLES} == {*CallFaultKind.__args__, HostDown}


def test_a_healthy_host_answers_after_its_service_time():
    with with_faults(plain_answer="two words") as wire:
        response = wire.call()

        assert ("two words", TOKENS_IN, 2) == (response.text, response.tokens_in, response.tokens_out)
        assert SERVICE_MS == wire.now_ms
        assert (True, SERVICE_MS * NS_PER_MS) == (wire.calls[0].delivered, wire.calls[0].ended_ns)


def test_latency_delays_the_answer_by_what_it_says():
    with with_faults(Latency(delay_ms=50)) as wire:
        assert "ok" == wire.call().text
        assert SERVICE_MS + 50 == wire.now_ms


def test_refused_refuses_at_once():
    with with_faults(Refused()) as wire:
        assert "m: cannot connect to its Ollama host" == wire.refused().message
        assert 0 == wire.now_ms
        assert ("refused", False) == (wire.calls[0].reply.how, wire.calls[0].delivered)


def test_cut_mid_body_sends_half_and_breaks():
    with with_faults(CutMidBody()) as wire:
        message = wire.refused().message

        assert "RemoteProtocolError: peer closed the connection after" in message
        assert SERVICE_MS == wire.now_ms
        assert ("cut", False) == (wire.calls[0].reply.how, wire.calls[0].delivered)


def test_half_of_a_body_that_is_cut_arrives():
    async def main(wire: Wire) -> tuple[int, int]:
        arrived = b""
        async with httpx.AsyncClient(transport=wire.network.transport()) as client:
            body = {"model": "m", "messages": [{}]}
            headers = {"Idempotency-Key": "0:1:n"}
            async with client.stream("POST", "http://m:1/api/chat", json=body, headers=headers) as response:
                with pytest.raises(httpx.RemoteProtocolError):  # noqa: PT012 - the chunks before it are what counts
                    async for chunk in response.aiter_raw():
                        arrived += chunk
                return len(arrived), int(response.headers["content-length"])

    with with_faults(CutMidBody()) as wire:
        half, whole = wire.loop.run_until_complete(main(wire))

        assert whole // 2 == half > 0


@pytest.mark.parametrize("status", [500, 503, 599])
def test_a_server_error_has_its_status(status):
    with with_faults(ServerError(status=status)) as wire:
        error = wire.refused()

        assert ({"status": status}, True) == (error.details, error.recoverable)
        assert SERVICE_MS == wire.now_ms


def test_a_host_that_is_down_refuses_at_once():
    with with_faults(lasting=(HostDown(host="m"),)) as wire:
        assert "m: cannot connect to its Ollama host" == wire.refused().message
        assert 0 == wire.now_ms
        assert "refused" == wire.calls[0].reply.how


def test_a_host_that_goes_down_breaks_what_is_open():
    with with_faults(lasting=(HostDown(host="m", start_ms=4),)) as wire:
        assert "ReadError: connection reset by peer" in wire.refused().message
        assert 4 == wire.now_ms
        assert "reset" == wire.calls[0].reply.how


def test_only_the_host_that_is_named_is_down():
    script = Script({"m": "m", "other": "other"}, faults=FaultPlan(lasting=(HostDown(host="other"),)))
    with Wire(script) as wire:
        assert "ok" == wire.call("m").text
        with pytest.raises(ModelError):
            wire.call("other")


# --- each heals ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ON_CALLS, ids=repr)
def test_a_fault_on_a_call_ends_with_that_call(fault):
    with with_faults(None, fault) as wire:
        outcomes: list[Any] = []
        for _ in range(3):
            began = wire.now_ms
            try:
                outcomes.append((wire.call().text, wire.now_ms - began))
            except ModelError:
                outcomes.append("failed")

        healthy = ("ok", SERVICE_MS)
        assert [healthy, healthy] == [outcomes[0], outcomes[2]]
        assert healthy != outcomes[1]


@pytest.mark.parametrize("fault", ON_CALLS, ids=repr)
def test_calls_that_begin_after_the_world_was_healed_meet_no_fault(fault):
    with with_faults(fault) as wire:
        wire.script.healed_at_ns = 0
        wire.loop.advance(NS_PER_MS)

        assert "ok" == wire.call().text
        assert 1 + SERVICE_MS == wire.now_ms


@pytest.mark.parametrize("fault", [Refused(), HostDown(host="m")], ids=repr)
def test_a_call_of_the_very_moment_of_healing_meets_what_it_met_before(fault):
    lasting = (fault,) if isinstance(fault, HostDown) else ()
    with with_faults(None if lasting else fault, lasting=lasting) as wire:
        wire.script.healed_at_ns = 0
        wire.refused()


@pytest.mark.parametrize(("start_ms", "duration_ms", "how"), [(0, 5, "refused"), (5, 5, "reset")])
def test_a_host_is_up_again_from_the_moment_its_time_is_over(start_ms, duration_ms, how):
    down = HostDown(host="m", start_ms=start_ms, duration_ms=duration_ms)
    with with_faults(lasting=(down,)) as wire:
        wire.refused()
        wire.loop.advance((start_ms + duration_ms) * NS_PER_MS - wire.loop.time_ns - 1)
        wire.refused()
        wire.loop.advance(1)

        assert "ok" == wire.call().text
        assert [how, "refused", "answered"] == [call.reply.how for call in wire.calls]


def test_a_host_that_is_down_for_good_is_up_when_the_world_is_healed():
    with with_faults(lasting=(HostDown(host="m"),)) as wire:
        wire.refused()
        wire.script.healed_at_ns = wire.loop.time_ns
        wire.loop.advance(1)

        assert "ok" == wire.call().text


def test_healing_leaves_a_call_that_is_under_way_what_it_met():
    with with_faults(Latency(delay_ms=50)) as wire:

        def heal() -> None:
            wire.script.healed_at_ns = wire.loop.time_ns

        wire.loop.call_later(0.02, heal)
        wire.call()

        assert SERVICE_MS + 50 == wire.now_ms


# --- what meets what -------------------------------------------------------------------------------------


def reply(*lasting: HostDown, fault: Any = None, at_ms: int = 0) -> Reply:
    calls = () if fault is None else (OnCall(run=0, node="n", fault=fault),)
    script = Script({"m": "m"}, faults=FaultPlan(calls=calls, lasting=lasting))
    return script.reply(Ask(run=0, node="n", branch="", call=0, model="m", at_ns=at_ms * NS_PER_MS))


@pytest.mark.parametrize(
    ("start_ms", "how"), [(0, "refused"), (1, "reset"), (SERVICE_MS - 1, "reset"), (SERVICE_MS, "answered")]
)
def test_a_call_ends_before_the_host_goes_down_at_that_moment(start_ms, how):
    assert how == reply(HostDown(host="m", start_ms=start_ms)).how


def test_a_host_that_is_down_for_no_time_is_not_down():
    assert "answered" == reply(HostDown(host="m", start_ms=0, duration_ms=0)).how
    assert "answered" == reply(HostDown(host="m", start_ms=5, duration_ms=0)).how


def test_a_host_that_went_down_and_came_back_during_a_call_broke_it():
    assert "reset" == reply(HostDown(host="m", start_ms=3, duration_ms=1)).how


def test_of_several_downs_the_one_that_comes_first_counts_wherever_it_stands():
    later, now = HostDown(host="m", start_ms=8), HostDown(host="m", start_ms=0)

    assert ("refused", now) == (reply(later, now).how, reply(later, now).fault)
    assert 3 * NS_PER_MS == reply(later, HostDown(host="m", start_ms=3)).duration_ns


def test_a_refused_call_is_refused_at_once_even_if_the_host_goes_down_later():
    refused = reply(HostDown(host="m", start_ms=5), fault=Refused())

    assert ("refused", 0, Refused()) == (refused.how, refused.duration_ns, refused.fault)


def test_a_slow_call_is_long_enough_to_be_broken():
    assert "reset" == reply(HostDown(host="m", start_ms=40), fault=Latency(delay_ms=50)).how
    assert "answered" == reply(HostDown(host="m", start_ms=40)).how


def test_faults_and_answers_belong_to_run_node_branch_and_number_of_the_call():
    says = (
        Says(text="any", node="n"),
        Says(text="run 1", node="n", run=1),
        Says(text="branch", node="n", branch=".2"),
        Says(text="call", node="n", call=1),
    )
    script = Script({"m": "m"}, says=says)

    def said(run: int, branch: str, call: int, who: str = "n") -> str | None:
        return script.reply(Ask(run=run, node=who, branch=branch, call=call, model="m", at_ns=0)).text

    assert "any" == said(0, "", 0)
    assert "run 1" == said(1, ".2", 1)
    assert "branch" == said(0, ".2", 1)
    assert "call" == said(0, "", 1)
    assert "ok" == said(0, "", 0, "other")


def test_a_call_is_counted_per_run_node_and_branch():
    with with_faults() as wire:
        for key in ("0:1:n", "0:1.1:n", "0:2.1:n", "0:2:n", "0:1:other", "1:1:n"):
            wire.call(key=key)

        assert [
            (0, "n", "", 0),
            (0, "n", ".1", 0),
            (0, "n", ".1", 1),
            (0, "n", "", 1),
            (0, "other", "", 0),
            (1, "n", "", 0),
        ] == [(c.ask.run, c.ask.node, c.ask.branch, c.ask.call) for c in wire.calls]


def test_the_calls_of_one_step_are_counted_together_whichever_model_they_ask():
    with Wire(Script({"m": "m", "other": "other"})) as wire:
        for model in ("m", "other", "m"):
            wire.call(model)

        assert [("m", 0), ("other", 1), ("m", 2)] == [(c.ask.model, c.ask.call) for c in wire.calls]


# --- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit_ms", "in_time"), [(9, False), (10, False), (10.001, True), (11, True)])
def test_a_read_timeout_is_honoured_at_its_very_moment(limit_ms, in_time):
    with with_faults() as wire:
        if in_time:
            assert 200 == wire.get(limit_ms / 1_000).status_code
        else:
            with pytest.raises(httpx.ReadTimeout):
                wire.get(limit_ms / 1_000)
        assert min(limit_ms, SERVICE_MS) == wire.now_ms
        assert in_time is wire.calls[0].delivered


def test_without_a_read_timeout_the_client_waits():
    with with_faults(Latency(delay_ms=MS_MAX)) as wire:
        assert 200 == wire.get(httpx.Timeout(1, read=None)).status_code


def test_a_refused_connection_comes_before_any_timeout():
    with with_faults(Refused()) as wire, pytest.raises(httpx.ConnectError):
        wire.get(0.000_001)


def test_an_unknown_host_cannot_be_reached():
    with with_faults() as wire, pytest.raises(ModelError, match="nobody: cannot connect"):
        wire.call("nobody")


def test_a_connection_is_open_until_its_body_was_read_or_given_up():
    with with_faults() as wire:
        assert 200 == wire.get(1, read=False).status_code
        assert [] == wire.network.open_connections(None)
        assert wire.calls[0].delivered is False


def test_a_client_that_leaves_closes_its_connection_then():
    async def main(wire: Wire) -> float:
        async with OllamaClient("http://m:1", transport=wire.network.transport()) as client:
            request = ModelRequest(model="m", prompt="q", idempotency_key="0:1:n")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.004):
                    await client.complete(request)
            assert [] == wire.network.open_connections(None)
            return wire.now_ms

    with with_faults() as wire:
        assert 4 == wire.loop.run_until_complete(main(wire))
        assert (False, 4 * NS_PER_MS) == (wire.calls[0].delivered, wire.calls[0].ended_ns)


# --- Ollama's own ------------------------------------------------------------------------------------------


def test_another_path_is_not_found():
    with with_faults() as wire:

        async def main() -> httpx.Response:
            async with httpx.AsyncClient(transport=wire.network.transport()) as client:
                return await client.get("http://m:1/api/nothing")

        response = wire.loop.run_until_complete(main())

        assert (404, {"error": "path '/api/nothing' not found"}) == (response.status_code, response.json())
        assert [] == wire.calls


def test_a_model_that_lives_elsewhere_is_not_found_and_no_call():
    script = Script({"m": "m", "other": "elsewhere"})
    with Wire(script) as wire:
        wire.network.serve("other", wire.network.servers["m"].server)
        with pytest.raises(ModelError, match="model 'other' not found; try `ollama pull other`"):
            wire.call("other")
        assert [] == wire.calls


def test_the_wire_format_is_ollama_s():
    with with_faults(plain_answer="ü b") as wire:
        body = wire.get(1).json()

        assert {"role": "assistant", "content": "ü b"} == body["message"]
        assert ("m", True, "stop", TOKENS_IN, 2) == (
            body["model"],
            body["done"],
            body["done_reason"],
            body["prompt_eval_count"],
            body["eval_count"],
        )
        assert SERVICE_MS * NS_PER_MS == body["total_duration"]


# --- in a world ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["question", ""])
def test_a_run_without_retries_fails_by_a_fault_and_the_run_after_the_storm_succeeds(content):
    graph = a_line()
    model = next(iter(hosts_of(graph)))
    faults = FaultPlan(lasting=(HostDown(host=hosts_of(graph)[model]),))
    with GraphWorld(graph, Script(hosts_of(graph), faults=faults)) as world:
        world.submit(RunPlan(content=content))
        history = world.finish()

        assert ["failed", "succeeded"] == [record.result and record.result.status for record in history.runs]


def test_an_empty_prompt_is_answered_like_any_other():
    graph = a_line()
    with GraphWorld(graph, Script(hosts_of(graph))) as world:
        world.submit(RunPlan(content=""))
        history = world.finish()

        assert ["succeeded", "succeeded"] == [record.result and record.result.status for record in history.runs]
        assert "" == history.calls[0].prompt


# --- as values ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", EXAMPLES, ids=repr)
def test_a_fault_comes_back_from_its_json(fault):
    written = json.loads(json.dumps(fault_to_json(fault)))

    assert fault == fault_from_json(written)
    assert fault.name == written["fault"]


@pytest.mark.parametrize("fault", EXAMPLES, ids=repr)
def test_a_fault_prints_as_the_code_that_makes_it_and_cannot_change(fault):
    assert fault == eval(repr(fault), {kind.__name__: kind for kind in FAULTS.values()})
    assert hash(fault) == hash(dataclasses.replace(fault))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Latency(delay_ms=-1),
        lambda: Latency(delay_ms=MS_MAX + 1),
        lambda: Latency(delay_ms=1.5),  # type: ignore[arg-type]
        lambda: Latency(delay_ms=True),
        lambda: Latency(delay_ms=None),  # type: ignore[arg-type]
        lambda: ServerError(status=499),
        lambda: ServerError(status=600),
        lambda: HostDown(host=""),
        lambda: HostDown(host=7),  # type: ignore[arg-type]
        lambda: HostDown(host="m", start_ms=-1),
        lambda: HostDown(host="m", start_ms=MS_MAX + 1),
        lambda: HostDown(host="m", duration_ms=-1),
        lambda: HostDown(host="m", duration_ms=MS_MAX + 1),
    ],
)
def test_bad_settings_are_refused(make):
    with pytest.raises(FaultError):
        make()


@pytest.mark.parametrize("delay_ms", [0, MS_MAX])
def test_settings_at_the_edge_are_not(delay_ms):
    assert delay_ms == Latency(delay_ms=delay_ms).delay_ms
    assert delay_ms == HostDown(host="m", start_ms=delay_ms, duration_ms=delay_ms).start_ms


def test_a_refused_setting_says_which_and_what_is_allowed():
    with pytest.raises(FaultError, match="delay_ms is a whole number from 0 to 86400000, not -1"):
        Latency(delay_ms=-1)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({}, "unknown fault None; there are latency, refused"),
        ({"fault": "nothing"}, "unknown fault 'nothing'"),
        ({"fault": "latency"}, "latency: .*delay_ms"),
        ({"fault": "latency", "delay_ms": 1, "more": 2}, "latency: .*more"),
        ({"fault": "latency", "delay_ms": -1}, "delay_ms is a whole number"),
        ([], "a fault is an object"),
        ("latency", "a fault is an object"),
        (None, "a fault is an object"),
    ],
    ids=str,
)
def test_json_that_is_no_fault_is_refused(value, why):
    with pytest.raises(FaultError, match=why):
        fault_from_json(value)


def test_a_host_that_is_down_for_good_ends_by_healing_only():
    assert float("inf") == HostDown(host="m", start_ms=5).ends_ms()
    assert 12 == HostDown(host="m", start_ms=5, duration_ms=7).ends_ms()


def test_the_size_of_a_plan_is_how_much_goes_wrong():
    assert 0 == len(FaultPlan())
    assert 3 == len(FaultPlan(calls=(OnCall(run=0, node="n", fault=Refused()),) * 2, lasting=(HostDown(host="m"),)))


# --- hosts of a graph --------------------------------------------------------------------------------------


def hosts(*models: str) -> dict[str, str]:
    return hosts_of(a_line(*(node("model", model=model) for model in models)))


def test_each_model_has_a_host_that_looks_like_it():
    assert {"qwen2.5:3b": "qwen2.5-3b", "Llama 3": "llama-3"} == hosts("qwen2.5:3b", "Llama 3")


def test_models_whose_hosts_would_look_alike_are_kept_apart():
    assert {"a": "a", "A": "a-2", "a!": "a-3", "a-2": "a-2-2"} == hosts("a", "A", "a!", "a-2")


@pytest.mark.parametrize(
    ("model", "host"),
    [("7", "model-7"), ("1.2.3.4", "model-1.2.3.4"), ("???", "model"), ("ü", "model"), ("a...b", "a.b")],
)
def test_a_host_is_never_an_address_and_never_empty(model, host):
    assert {model: host} == hosts(model)


model_names = st.text(min_size=1, max_size=60) | st.sampled_from(["xn--a", "XN--a", "-", ".", "0x7f"])


@given(st.lists(model_names, min_size=1, max_size=5))
def test_every_host_can_be_reached_by_its_url_and_no_two_models_share_one(models):
    from_models = hosts(*models)

    assert set(models) == set(from_models)
    assert len(from_models) == len(set(from_models.values()))
    assert list(from_models.values()) == [httpx.URL(f"http://{name}:11434").host for name in from_models.values()]


def test_only_models_that_the_graph_can_ask_have_hosts():
    gate: dict[str, Any] = {"conditions": [{"name": "n", "expression": "1", "target": "end"}]}
    graph = a_graph(
        {
            "work": node("model", model="a", fallback_models=["b"]),
            "off": node("model", model="a", fallback_models=["c"], enable_fallback=False),
            "asks": node("gate", mode="llm", model="d", **gate),
            "reads": node("gate", mode="expression", model="e", **gate),
            "bare": node("gate", mode="llm", model="f", default_target="fan"),
            "fan": node("fanout", target_nodes=["wrapped"], aggregation_strategy="majority_vote"),
            "wrapped": node("model", model="g"),
            "nobody": node("model", model="h"),
        },
        [
            *[("start", "work"), ("work", "off"), ("off", "asks"), ("asks", "reads"), ("reads", "bare")],
            *[("fan", "end"), ("nobody", "end")],
        ],
    )

    assert ["a", "b", "d", "g"] == list(hosts_of(graph))
    assert ("a", "b") == models_of(graph.nodes["work"].config)
    assert ("a",) == models_of(graph.nodes["off"].config)
