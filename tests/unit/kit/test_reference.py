"""Worked examples of docs/semantics.md, by hand, for the reference interpreter.

A graph is written as its nodes and its edges ("a b" or ("a b", condition, priority)); `start` and `end` are there
unless said otherwise. A script gives each caller, a node or a node on a branch ("a.2"), its replies in order; the
last one repeats, and callers that are not named say "ok" after 10 ms.
"""

import random
from collections.abc import Mapping
from contextlib import contextmanager
from typing import Any

import pytest

from tinyllm.config import ExecutorConfig, NodeConfig, add_custom_config, remove_custom_config
from tinyllm.errors import ErrorCode, UsageError
from tinyllm.graph import build_graph, parse_graph
from tinyllm.message import ErrorInfo, MessagePayload, ToolResult
from tinyllm.testing.reference import (
    Outcome,
    Reply,
    Script,
    ToolCall,
    ToolReply,
    TooManyOutcomesError,
    interpret,
)

pytestmark = pytest.mark.unit

MS = 1_000_000
SEED = 7


def node(kind, on_error=None, **config):
    return {"type": kind, "on_error": on_error, "config": config}


def model(on_error=None, **config):
    return node("model", on_error, **config)


def gate(*conditions, on_error=None, **config):
    told = [{"name": name, "expression": text, "target": target} for name, text, target in conditions]
    return node("gate", on_error, conditions=told, **config)


def fanout(*targets, on_error=None, **config):
    return node(
        "fanout", on_error, **{"target_nodes": list(targets), "aggregation_strategy": "majority_vote", **config}
    )


def graph(nodes, edges, **more):
    nodes = {"start": node("entry"), "end": node("exit"), **nodes}
    entries = [name for name, it in nodes.items() if it["type"] == "entry"]
    exits = [name for name, it in nodes.items() if it["type"] == "exit"]
    return build_graph(
        {
            "id": "g",
            "version": "1.0.0",
            "name": "g",
            "nodes": [{"id": name, **it} for name, it in nodes.items()],
            "edges": [edge(it) for it in edges],
            "entry_points": entries,
            "exit_points": exits,
            **more,
        }
    )


def edge(it):
    ways, condition, priority = (it, None, 0) if isinstance(it, str) else (*it, 0)[:3]
    source, target = ways.split()
    return {"from_node": source, "to_node": target, "condition": condition, "priority": priority}


def says(text="ok", ms=10, tokens=0):
    return Reply(duration_ns=ms * MS, text=text, tokens_in=tokens)


def fails(ms=10, **more):
    return Reply(duration_ns=ms * MS, text=None, **more)


def script(replies: Mapping[str, Reply | list[Reply]]) -> Script:
    def reply(call):
        known = replies.get(call.node_id + call.branch, replies.get(call.node_id, says()))
        listed = known if isinstance(known, list) else [known]
        return listed[min(call.number, len(listed) - 1)]

    return reply


def every(graph, replies=None, payload=None, entry=None, variables=None, tools=None, **config):
    payload = MessagePayload(task="t", content="c") if payload is None else payload
    asked = replies if callable(replies) else script(replies or {})
    settings = ExecutorConfig(**config)
    return interpret(graph, settings, payload, asked, seed=SEED, entry=entry, variables=variables, tools=tools)


def run(*args, **kwargs) -> Outcome:
    """The outcome, which must be the only one."""
    outcomes = every(*args, **kwargs)
    assert len(outcomes) == 1, outcomes
    return outcomes[0]


def told(outcome):
    return outcome.status, outcome.error_code, outcome.error_node


def counts(outcome):
    return outcome.steps, outcome.attempts, outcome.tokens


def line(**config):
    """start -> a -> end, with `a` a model of this config."""
    return graph({"a": model(**config)}, ["start a", "a end"])


def voting(*targets, nodes=None, **config):
    """start -> f -> end, with `f` a fanout over models."""
    models = {target: model() for target in targets}
    return graph({"f": fanout(*targets, **config), **models, **(nodes or {})}, ["start f", "f end"])


# --- walking -------------------------------------------------------------------------------------------


def test_a_run_walks_from_the_entry_to_an_exit_and_counts_all_it_did():
    outcome = run(line(), {"a": Reply(duration_ns=5, text="hello", tokens_in=3, tokens_out=4)})

    payload = MessagePayload(task="t", content="hello", metadata={"exit_status": "success", "exit_message": None})
    assert outcome == Outcome(
        status="succeeded",
        error_code=None,
        error_node=None,
        payload=payload,
        visits=("start", "a", "end"),
        steps=3,
        attempts=3,
        tokens=7,
        elapsed_ns=5,
    )


def test_the_token_starts_at_the_entry_named():
    two = graph({"other": node("entry")}, ["start end", "other end"])

    assert run(two).visits == ("start", "end")
    assert run(two, entry="other").visits == ("other", "end")


def test_a_start_that_is_no_entry_point_is_refused():
    with pytest.raises(UsageError, match="'end' is no entry point"):
        run(line(), entry="end")


def test_yaml_graphs_are_walked_as_well():
    text = """
        {id: g, version: 1.0.0, name: g, entry_points: [s], exit_points: [e],
         nodes: [{id: s, type: entry}, {id: e, type: exit}], edges: [{from_node: s, to_node: e}]}
    """
    assert run(parse_graph(text)).visits == ("s", "e")


EDGES = [
    (["start end", ("start a", "True")], "a"),
    ([("start a", "True", 1), ("start b", "True", 2)], "b"),
    ([("start a", "True"), ("start b", "True")], "a"),
    ([("start a", "False"), ("start b", "content == 'c'")], "b"),
    ([("start a", "1 / 0"), "start b"], "b"),
    ([("start a", "1 / 0 == 1 or True"), "start b"], "b"),
    ([("start a", "nothing"), "start b"], "b"),
    ([("start a", "not nothing"), "start b"], "a"),
    ([("start a", None, 1), ("start b", None, 2)], "b"),
    ([("start a", None, 9), ("start b", "True", -1)], "b"),
    ([("start a", "variables['x'] == 1"), "start b"], "a"),
]


@pytest.mark.parametrize(("edges", "expected"), EDGES)
def test_the_first_condition_that_holds_leads_on_else_the_first_plain_edge(edges, expected):
    ways = graph({"a": model(), "b": model()}, [*edges, "a end", "b end"])
    assert run(ways, variables={"x": 1}).visits[1] == expected


def test_conditions_see_the_tokens_and_the_model_of_the_answer():
    seen = "metadata['tokens_in'] == 3 and metadata['tokens_out'] == 0 and metadata['model_used'] == 'm'"
    ways = graph({"a": model(model="m"), "b": model()}, ["start a", ("a b", seen), "a end", "b end"])

    assert run(ways, {"a": says(tokens=3)}).visits == ("start", "a", "b", "end")


def test_the_payloads_metadata_hides_what_was_measured():
    ways = graph({"a": model(), "b": model()}, ["start a", ("a b", "metadata['tokens_in'] == 1"), "a end", "b end"])
    payload = MessagePayload(task="t", metadata={"tokens_in": 1})

    assert "b" in run(ways, {"a": says(tokens=3)}, payload=payload).visits


def test_what_was_measured_is_forgotten_one_step_later():
    nodes = {"a": model(), "g": gate(default_target="h"), "h": gate(("x", "metadata.get('model_used')", "bad"))}
    nodes["h"]["config"]["default_target"] = "end"
    ways = graph({**nodes, "bad": model()}, ["start a", "a g", "bad end"])

    assert "bad" not in run(ways).visits


@pytest.mark.parametrize("policy", ["fail_fast", "skip_failed", "fallback_simple", "best_effort"])
def test_a_node_without_a_way_on_fails_the_run_whatever_the_policy(policy):
    stuck = graph({"a": model()}, ["start a", ("a end", "False")])
    outcome = run(stuck, {"a": says("put out")}, failure_policy=policy)

    assert told(outcome) == ("failed", "ROUTING_ERROR", "a")
    assert outcome.payload.content == "put out"


def test_a_skipped_node_without_a_way_on_fails_the_run_with_what_it_received():
    stuck = graph({"a": model()}, ["start a", ("a end", "False")])
    outcome = run(stuck, {"a": fails()}, failure_policy="skip_failed")

    assert told(outcome) == ("failed", "ROUTING_ERROR", "a")
    assert outcome.payload == MessagePayload(task="t", content="c")


def test_cycles_are_walked_until_a_condition_ends_them():
    cycle = graph({"a": model()}, ["start a", ("a end", "content == 'done'"), "a a"], allow_cycles=True)
    outcome = run(cycle, {"a": [says("no"), says("no"), says("done")]})

    assert outcome.visits == ("start", "a", "a", "a", "end")


EXITS = [
    ("success", "succeeded", None),
    ("fallback", "degraded", None),
    ("partial_success", "degraded", None),
    ("failure", "failed", "EXIT_FAILED"),
    ("error", "failed", "EXIT_FAILED"),
    ("timeout", "failed", "EXIT_FAILED"),
]


@pytest.mark.parametrize(("status", "expected", "code"), EXITS)
def test_an_exit_ends_the_run_with_its_status(status, expected, code):
    outcome = run(graph({"end": node("exit", status=status, message="m")}, ["start end"]))

    assert told(outcome) == (expected, code, code and "end")
    assert outcome.payload.metadata == {"exit_status": status, "exit_message": "m"}


def test_every_node_that_succeeds_drops_the_error_it_received():
    payload = MessagePayload(content="c", error=ErrorInfo(code=ErrorCode.UNKNOWN, message=""))

    assert run(graph({}, ["start end"]), payload=payload).payload.error is None


DROPPING = {
    "model": model(),
    "transform": node("transform"),
    "tool": {"type": "tool", "config": {"tool_id": "t1"}},
    "failed tool": {"type": "tool", "config": {"tool_id": "bad", "continue_on_error": True}},
    "all": {"type": "fanout", "config": {"target_nodes": ["a"]}},
    "empty loop": {
        "type": "loop",
        "config": {"body_node": "a", "condition_type": "while_condition", "condition_expression": "False"},
    },
    "late": {"type": "timeout", "config": {"inner_node": "slow", "timeout_ms": 5, "on_timeout": "skip"}},
}


@pytest.mark.parametrize("kind", DROPPING)
def test_a_condition_after_a_success_sees_no_error(kind):
    """x fails, and y receives the error."""
    nodes = {"x": model("y"), "y": DROPPING[kind], "a": model(), "slow": model(), "bad": node("exit", status="failure")}
    ways = graph(nodes, ["start x", "x end", ("y bad", "error"), "y end"])

    def use(call):
        return ToolReply(output="x", error_code=ErrorCode.TOOL_ERROR if call.tool_id == "bad" else None)

    assert run(ways, {"x": fails()}, tools=use).visits == ("start", "x", "y", "end")


@pytest.mark.parametrize("kind", ["gate", "router"])
def test_a_choice_of_way_drops_the_error(kind):
    chosen = {"gate": gate(("x", "error", "g")), "router": router(route("x", "g", condition="error"), mode="rules")}
    judge = gate(("bad", "error", "bad"), default_target="end")
    nodes = {"x": model("y"), "y": chosen[kind], "g": judge, "bad": node("exit", status="failure")}

    assert run(graph(nodes, ["start x", "x end"]), {"x": fails()}).visits == ("start", "x", "y", "g", "end")


# --- entries -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [MessagePayload(), MessagePayload(extra=None)])
def test_an_entry_fails_when_a_required_field_is_missing_or_null(payload):
    ways = graph({"start": node("entry", required_fields=["extra"])}, ["start end"])
    outcome = run(ways, payload=payload)

    assert told(outcome) == ("failed", "VALIDATION_ERROR", "start")
    assert outcome.payload == payload


def test_an_entry_takes_empty_values_for_present():
    ways = graph({"start": node("entry", required_fields=["content", "extra"])}, ["start end"])
    assert run(ways, payload=MessagePayload(content="", extra=0)).status == "succeeded"


@pytest.mark.parametrize("policy", ["fail_fast", "skip_failed", "fallback_simple", "best_effort"])
def test_a_failed_entry_always_fails_the_run(policy):
    ways = graph({"start": node("entry", required_fields=["route"])}, ["start end"])
    assert told(run(ways, failure_policy=policy)) == ("failed", "VALIDATION_ERROR", "start")


# --- failures ------------------------------------------------------------------------------------------


def test_a_failure_goes_to_on_error_with_the_payload_received_and_the_error():
    ways = graph(
        {"a": model("b"), "b": model(), "c": model()},
        ["start a", "a end", ("b c", "error"), "b end", "c end"],
    )
    outcome = run(ways, {"a": fails(), "b": fails()}, failure_policy="skip_failed")

    assert outcome.visits == ("start", "a", "b", "c", "end")
    assert told(outcome) == ("degraded", "MODEL_ERROR", "b")


def test_on_error_degrades_nothing_and_the_next_success_drops_the_error():
    ways = graph({"a": model("b"), "b": model()}, ["start a", "a end", "b end"])
    outcome = run(ways, {"a": fails()})

    assert told(outcome) == ("succeeded", None, None)
    assert outcome.payload.error is None


def test_the_error_in_the_payload_tells_code_and_node_and_an_empty_message():
    ways = graph({"a": model("b"), "b": model()}, ["start a", "a end", "b end"])
    outcome = run(ways, {"a": fails(recoverable=False, retry_after_s=2.0), "b": fails()})

    assert outcome.payload.error == ErrorInfo(
        code=ErrorCode.MODEL_ERROR,
        message="",
        details={"retry_after_s": 2.0},
        recoverable=False,
        node_id="a",
    )
    assert outcome.payload.content == "c"


def test_fail_fast_fails_the_run_with_the_message_received():
    outcome = run(line(), {"a": fails(3)})

    assert told(outcome) == ("failed", "MODEL_ERROR", "a")
    assert outcome.payload == MessagePayload(task="t", content="c")
    assert (outcome.visits, outcome.elapsed_ns) == (("start", "a"), 3 * MS)


def test_skip_failed_goes_on_with_the_payload_unchanged():
    outcome = run(line(), {"a": fails()}, failure_policy="skip_failed")

    assert told(outcome) == ("degraded", "MODEL_ERROR", "a")
    assert (outcome.visits, outcome.payload.content) == (("start", "a", "end"), "c")


def test_fallback_simple_goes_on_with_the_fallback_response():
    outcome = run(line(), {"a": fails()}, failure_policy="fallback_simple", fallback_response="sorry")

    assert told(outcome) == ("degraded", "MODEL_ERROR", "a")
    assert outcome.payload.content == "sorry"
    assert outcome.payload.metadata["fallback"] is True


def test_best_effort_ends_the_run_with_the_message_received():
    outcome = run(line(), {"a": fails()}, failure_policy="best_effort")

    assert told(outcome) == ("degraded", "MODEL_ERROR", "a")
    assert outcome.visits == ("start", "a")
    assert outcome.payload == MessagePayload(task="t", content="c")


def test_a_failed_gate_is_skipped_by_its_edges():
    ways = graph({"g": gate(("x", "False", "end")), "b": model()}, ["start g", "g b", "b end"])
    outcome = run(ways, failure_policy="skip_failed")

    assert told(outcome) == ("degraded", "GATE_FAILED", "g")
    assert outcome.visits == ("start", "g", "b", "end")


FAILING = {"a": fails(), "b": fails()}
TWO = {"a": model(), "b": model()}
THREE = {**TWO, "c": model()}


@pytest.mark.parametrize(
    ("allowed", "expected"),
    [
        (0, ("failed", "MODEL_ERROR", "a")),
        (1, ("failed", "MODEL_ERROR", "b")),
        (2, ("degraded", "MODEL_ERROR", "a")),
    ],
)
def test_so_many_failures_are_absorbed_and_the_next_fails_the_run(allowed, expected):
    ways = graph(TWO, ["start a", "a b", "b end"])
    assert told(run(ways, FAILING, failure_policy="skip_failed", max_node_failures=allowed)) == expected


def test_best_effort_absorbs_nothing_when_no_failure_is_allowed():
    outcome = run(line(), {"a": fails()}, failure_policy="best_effort", max_node_failures=0)
    assert told(outcome) == ("failed", "MODEL_ERROR", "a")


def test_a_failing_exit_beats_an_absorbed_failure():
    ways = graph({"a": model(), "end": node("exit", status="failure")}, ["start a", "a end"])
    assert told(run(ways, {"a": fails()}, failure_policy="skip_failed")) == ("failed", "EXIT_FAILED", "end")


# --- attempts ------------------------------------------------------------------------------------------


def test_a_step_is_retried_until_an_attempt_succeeds():
    outcome = run(line(retry_count=3, retry_delay_ms=100), {"a": [fails(10), fails(20), says("ok", 30)]})

    assert (outcome.status, outcome.payload.content) == ("succeeded", "ok")
    assert counts(outcome) == (3, 5, 0)
    assert outcome.elapsed_ns == (10 + 100 + 20 + 100 + 30) * MS


def test_after_the_last_attempt_the_steps_error_is_that_attempts():
    outcome = run(line(retry_count=1, timeout_ms=50, retry_delay_ms=0), {"a": [says(ms=60), fails(10)]})

    assert told(outcome) == ("failed", "MODEL_ERROR", "a")
    assert outcome.elapsed_ns == 60 * MS


def test_an_unrecoverable_failure_is_not_retried():
    outcome = run(line(retry_count=3), {"a": fails(10, recoverable=False)})
    assert (counts(outcome), outcome.elapsed_ns) == ((2, 2, 0), 10 * MS)


def test_exponential_delays_double_up_to_a_minute_and_are_shortened_by_chance():
    outcome = run(
        line(retry_count=3, retry_delay_ms=25_000, retry_backoff="exponential"),
        {"a": [fails(0), fails(0), fails(0), says(ms=0)]},
    )
    chance = random.Random(f"{SEED}:2")
    us = [chance.random() for _ in range(3)]
    expected = [round(ms * (0.5 + u / 2) * MS) for ms, u in zip([25_000, 50_000, 60_000], us, strict=True)]

    assert outcome.elapsed_ns == sum(expected)


def test_exponential_delays_of_a_target_are_drawn_by_its_path():
    targets = {"a": model(retry_count=1, retry_backoff="exponential")}
    outcome = run(voting("b", "a", nodes=targets), {"a": [fails(0), says(ms=0)], "b": says(ms=0)})
    u = random.Random(f"{SEED}:2.2").random()

    assert outcome.elapsed_ns == round(1_000 * (0.5 + u / 2) * MS)


@pytest.mark.parametrize(("retry_after_s", "waited_ms"), [(0.05, 100), (0.25, 250)])
def test_the_models_own_delay_is_waited_if_it_is_longer(retry_after_s, waited_ms):
    outcome = run(line(retry_count=1, retry_delay_ms=100), {"a": [fails(0, retry_after_s=retry_after_s), says(ms=0)]})
    assert outcome.elapsed_ns == waited_ms * MS


@pytest.mark.parametrize(("ms", "status", "elapsed"), [(49, "succeeded", 49), (50, "failed", 50), (51, "failed", 50)])
def test_an_attempt_that_would_end_at_its_limit_is_too_late(ms, status, elapsed):
    outcome = run(line(timeout_ms=50), {"a": says(ms=ms, tokens=1)})

    assert (outcome.status, outcome.elapsed_ns) == (status, elapsed * MS)
    assert outcome.error_code == (None if status == "succeeded" else "TIMEOUT")
    assert outcome.tokens == (1 if status == "succeeded" else 0)


def test_each_attempt_has_the_whole_time():
    outcome = run(line(timeout_ms=50, retry_count=1, retry_delay_ms=7), {"a": [says(ms=99), says(ms=49)]})
    assert (outcome.status, outcome.elapsed_ns) == ("succeeded", (50 + 7 + 49) * MS)


# --- models --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", ["{nothing}", "{structured.x}", "{content.x}", "{metadata.x} {content}"])
@pytest.mark.parametrize("key", ["prompt_template", "system_prompt"])
def test_a_template_that_names_something_missing_fails_before_any_call(template, key):
    outcome = run(line(retry_count=2, **{key: template}))

    assert told(outcome) == ("failed", "VALIDATION_ERROR", "a")
    assert (counts(outcome), outcome.elapsed_ns) == ((2, 2, 0), 0)


@pytest.mark.parametrize(
    "template", ["", "{content} {task}", "{{nothing}}", "{ nothing }", "{}", '{"a": 1}', "{1}", "{variables.x}"]
)
def test_other_braces_are_plain_text(template):
    assert run(line(prompt_template=template), variables={"x": 0}).status == "succeeded"


def test_without_a_template_the_content_is_asked_else_the_task():
    assert run(line(), payload=MessagePayload(task="t")).status == "succeeded"
    assert run(line(), payload=MessagePayload(content="")).status == "succeeded"
    assert told(run(line(), payload=MessagePayload())) == ("failed", "VALIDATION_ERROR", "a")


def by_model(**replies):
    return lambda call: replies[call.model]


FALLBACK = {"model": "m1", "fallback_models": ["m2", "m3"]}


def test_fallback_models_are_tried_in_order_within_the_attempt():
    outcome = run(line(**FALLBACK), by_model(m1=fails(5, recoverable=False), m2=fails(6), m3=says("3", 7)))

    assert (outcome.payload.content, outcome.attempts, outcome.elapsed_ns) == ("3", 3, 18 * MS)


def test_each_call_has_the_fallback_time_and_the_error_is_the_last_models():
    ways = line(fallback_timeout_ms=20, **FALLBACK)

    late = run(ways, by_model(m1=says(ms=20), m2=fails(6), m3=says(ms=21)))
    assert (*told(late), late.elapsed_ns) == ("failed", "TIMEOUT", "a", 46 * MS)

    broken = run(ways, by_model(m1=says(ms=20), m2=says(ms=20), m3=fails(6)))
    assert (*told(broken), broken.elapsed_ns) == ("failed", "MODEL_ERROR", "a", 46 * MS)


def test_the_attempts_limit_wins_against_the_fallback_time_at_one_moment():
    asked = []

    def reply(call):
        asked.append(call.model)
        return says(ms=99)

    outcome = run(line(fallback_timeout_ms=20, timeout_ms=40, **FALLBACK), reply)

    assert asked == ["m1", "m2"]
    assert (outcome.error_code, outcome.elapsed_ns) == ("TIMEOUT", 40 * MS)


def test_without_fallback_models_the_fallback_time_has_no_effect():
    assert run(line(fallback_timeout_ms=1), {"a": says(ms=99)}).status == "succeeded"
    off = line(fallback_timeout_ms=1, enable_fallback=False, **FALLBACK)
    assert run(off, by_model(m1=says("1", 99))).payload.content == "1"


def test_calls_are_numbered_over_visits_attempts_and_fallbacks():
    asked = []

    def reply(call):
        asked.append((call.node_id, call.branch, call.number, call.model, call.at_ns // MS))
        return says("done") if call.number == 4 else fails()

    cycle = graph(
        {"a": model("a", model="m1", fallback_models=["m2"], retry_count=1, retry_delay_ms=0)},
        ["start a", "a end"],
        allow_cycles=True,
    )
    run(cycle, reply)

    assert asked == [("a", "", number, f"m{1 + number % 2}", number * 10) for number in range(5)]


# --- gates ---------------------------------------------------------------------------------------------


def gated(*conditions, **config):
    return graph(
        {"g": gate(*conditions, **config), "a": model(), "b": model()},
        ["start g", "a end", "b end"],
    )


def chosen(outcome):
    return outcome.visits[2:3], outcome.payload.fields().get("matched_condition")


def test_a_gate_takes_the_first_condition_that_holds():
    ways = gated(("bad", "1 / 0", "end"), ("no", "False", "end"), ("x", "content == 'c'", "a"), ("y", "True", "b"))
    assert chosen(run(ways)) == (("a",), "x")


def test_a_gate_whose_conditions_all_fail_takes_its_default():
    assert chosen(run(gated(("no", "1 / 0", "a"), default_target="b"))) == (("b",), "default")


def test_a_gate_without_any_way_fails_for_good():
    outcome = run(gated(("no", "False", "a"), ("y", "False", "b"), retry_count=3))

    assert told(outcome) == ("failed", "GATE_FAILED", "g")
    assert outcome.attempts == 2


def test_a_gate_without_conditions_asks_no_model():
    outcome = run(gated(mode="llm", default_target="a"), {"g": fails()})
    assert chosen(outcome) == (("a",), "default")


ANSWERS = [
    ("yes", "yes"),
    (" YES!\n", "yes"),
    ('"Yes."', "yes"),
    ("I think it is yes, surely", "yes"),
    ("yes or no", "default"),
    ("yesterday", "default"),
    ("a_yes", "default"),
    ("", "default"),
    ("...", "default"),
    ("tech support, please", "Tech Support"),
    ("STRASSE", "straße"),
]


@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_a_models_answer_means_the_name_it_equals_or_alone_mentions(answer, expected):
    names = ["yes", "no", "Tech Support", "straße"]
    ways = gated(*((name, "?!", "a") for name in names), mode="llm", default_target="b")

    assert chosen(run(ways, {"g": says(answer)}))[1] == expected


def test_of_equal_names_the_first_counts():
    ways = gated(("Yes", "x", "a"), ("yes", "x", "b"), mode="llm")
    assert chosen(run(ways, {"g": says("yes")})) == (("a",), "Yes")


def test_a_gate_that_asks_counts_its_tokens_even_if_it_fails():
    outcome = run(gated(("x", "?!", "a"), ("y", "?!", "b"), mode="llm"), {"g": says("z", tokens=5)})

    assert told(outcome) == ("failed", "GATE_FAILED", "g")
    assert counts(outcome) == (2, 2, 5)


def test_a_hybrid_gate_asks_only_if_no_condition_holds():
    ways = gated(("x", "content == 'c'", "a"), ("y", "False", "b"), mode="hybrid")

    assert chosen(run(ways, {"g": fails()})) == (("a",), "x")
    assert chosen(run(ways, {"g": says("y")}, payload=MessagePayload(content="d"))) == (("b",), "y")


def test_a_gates_model_can_fail_and_be_retried():
    ways = gated(("x", "?", "a"), ("y", "?", "b"), mode="llm", retry_count=1, retry_delay_ms=5, timeout_ms=20)
    outcome = run(ways, {"g": [says("x", 20), says("x", 19)], "a": says(ms=0)})

    assert outcome.elapsed_ns == (20 + 5 + 19) * MS


# --- fanouts: votes ------------------------------------------------------------------------------------


def votes(*texts, **config):
    """The outcome of one fanout whose targets say these texts; None fails."""
    replies = {f"a.{i}": fails() if text is None else says(text) for i, text in enumerate(texts, start=1)}
    return run(graph({"f": fanout(*["a"] * len(texts), **config), "a": model()}, ["start f", "f end"]), replies)


@pytest.mark.parametrize(
    ("texts", "quorum", "expected"),
    [
        (["x", "y", "x"], None, "x"),
        (["x", "y", "y"], None, "y"),
        (["a\n B", "  A  b ", "c"], None, "a\n B"),
        (["STRASSE", "straße", "c"], None, "STRASSE"),
        (["x", "y"], 1, "x"),
        (["x", "y", "y"], 1, "y"),
        (["x", "y", "y", "x"], 2, "x"),
        (["", " ", "x"], 1, "x"),
        ([None, "x", "x"], None, "x"),
        (["x"], None, "x"),
    ],
)
def test_the_answer_with_most_votes_wins_and_ties_go_to_the_earlier_first_voter(texts, quorum, expected):
    outcome = votes(*texts, quorum=quorum)
    assert (outcome.status, outcome.payload.content) == ("succeeded", expected)


@pytest.mark.parametrize(
    ("texts", "quorum"), [(["x", "y"], None), (["x", "x", "y", "z"], None), (["", " "], 1), (["x"], 2)]
)
def test_without_a_quorum_the_fanout_fails(texts, quorum):
    assert told(votes(*texts, quorum=quorum, retry_count=2)) == ("failed", "GATE_FAILED", "f")


def test_the_quorum_counts_all_targets_and_the_error_is_that_of_the_first_that_failed():
    outcome = votes("x", None, None)

    assert told(outcome) == ("failed", "MODEL_ERROR", "a")
    assert counts(outcome) == (5, 5, 0)


def test_the_winners_payload_is_put_out():
    ways = graph({"f": fanout("g", "a"), "g": gate(default_target="end"), "a": model()}, ["start f", "f end", "g end"])
    outcome = run(ways, {"a": says("C")})

    assert (outcome.payload.content, outcome.payload.fields()["matched_condition"]) == ("c", "default")


def test_the_ways_and_on_error_of_a_target_are_ignored():
    ways = voting("a", "b", "c", nodes={"a": model("start"), "b": gate(("x", "True", "start"))})
    assert run(ways, {"a": fails(), "c": says("c")}).visits == ("start", "f", "end")


def test_targets_do_not_see_what_was_measured_on_the_message():
    inner = {"a": model(prompt_template="{metadata.model_used}")}
    ways = graph({"m": model(), "f": fanout("a"), **inner}, ["start m", "m f", "f end"])
    assert told(run(ways)) == ("failed", "VALIDATION_ERROR", "a")

    plain = graph({"m": model(), **inner}, ["start m", "m a", "a end"])
    assert run(plain).status == "succeeded"


# --- fanouts: time -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({}, 40),
        ({"parallel": False}, 100),
        ({"max_parallel_branches": 1}, 100),
        # a 0-10, b 0-20, c 10-40, d 20-60
        ({"max_parallel_branches": 2}, 60),
        # a 0-10, b 0-20, c 0-30, d 10-50
        ({"max_parallel_branches": 3}, 50),
        ({"max_parallel_branches": 9}, 40),
        ({"parallel": False, "max_parallel_branches": 3}, 100),
    ],
)
def test_the_next_target_takes_the_slot_that_is_free_first(config, expected):
    replies = {name: says(ms=ms) for name, ms in zip("abcd", [10, 20, 30, 40], strict=True)}
    assert run(voting(*"abcd", **config), replies).elapsed_ns == expected * MS


def test_a_target_that_fails_frees_its_slot_too():
    outcome = run(voting(*"abcd", parallel=False), {"a": fails(10, recoverable=False)})
    assert (outcome.status, outcome.steps, outcome.elapsed_ns) == ("succeeded", 7, 40 * MS)


def test_a_targets_time_bounds_its_step_with_all_retries():
    # 30 fail, 10 wait, 30 fail, 10 wait: at 80 the third attempt would begin.
    inner = {"a": model(retry_count=5, retry_delay_ms=10)}
    late = run(voting("a", nodes=inner, timeout_ms=80), {"a": fails(30)})
    assert (*told(late), late.elapsed_ns, late.attempts) == ("failed", "TIMEOUT", "a", 80 * MS, 4)

    later = run(voting("a", nodes=inner, timeout_ms=81), {"a": fails(30)})
    assert (*told(later), later.elapsed_ns, later.attempts) == ("failed", "TIMEOUT", "a", 81 * MS, 5)


def test_a_targets_time_counts_from_its_own_start():
    assert run(voting("a", "b", parallel=False, timeout_ms=15), {"a": says(ms=14), "b": says(ms=14)}).status == (
        "succeeded"
    )


def test_the_fanouts_limit_wins_against_the_attempts_at_one_moment():
    """Both are 30 s by default: the target is over, not retried."""
    outcome = run(voting("a", nodes={"a": model(retry_count=1)}), {"a": says(ms=99_000)})

    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "TIMEOUT", "a", 30_000 * MS)
    assert outcome.attempts == 3


def test_a_retried_fanout_runs_all_targets_again():
    ways = voting("a", "b", retry_count=1, retry_delay_ms=5)
    outcome = run(ways, {"a": [fails(10), says()], "b": says(ms=20, tokens=3)})

    assert outcome.status == "succeeded"
    assert counts(outcome) == (7, 8, 6)
    assert outcome.elapsed_ns == (20 + 5 + 20) * MS


def test_a_fanout_waits_as_long_as_the_error_it_passes_on_asks_for():
    ways = voting("a", retry_count=1, retry_delay_ms=5)
    assert run(ways, {"a": [fails(0, retry_after_s=1), says(ms=0)]}).elapsed_ns == 1_000 * MS


def test_a_nodes_own_limit_in_a_fanout_is_that_of_its_targets():
    """Two targets of 20 ms one after another take longer than the fanout's timeout_ms."""
    ways = voting("a", "b", parallel=False, timeout_ms=30)
    assert run(ways, {"a": says(ms=20), "b": says(ms=20)}).elapsed_ns == 40 * MS


# --- fanouts: failures ---------------------------------------------------------------------------------


def test_require_all_success_fails_after_all_targets_with_the_first_failure_in_order():
    ways = voting(*"abc", require_all_success=True)
    outcome = run(ways, {"a": says(ms=50, tokens=1), "b": fails(40), "c": fails(10)})

    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "MODEL_ERROR", "b", 50 * MS)
    assert outcome.tokens == 1


def test_fail_fast_ends_at_the_first_failure_and_cancels_the_rest():
    ways = voting(*"abc", fail_fast=True)
    outcome = run(ways, {"a": says(ms=50, tokens=1), "b": fails(20), "c": says(ms=10, tokens=2)})

    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "MODEL_ERROR", "b", 20 * MS)
    assert counts(outcome) == (5, 5, 2)


def nodes_told(outcomes):
    return sorted(outcome.error_node for outcome in outcomes)


def test_fail_fast_may_tell_any_of_those_that_fail_at_the_first_moment():
    outcomes = every(voting(*"abcd", fail_fast=True), {"b": fails(5), "c": fails(5), "d": fails(6)})

    assert nodes_told(outcomes) == ["b", "c"]
    assert {(counts(outcome), outcome.elapsed_ns) for outcome in outcomes} == {((6, 6, 0), 5 * MS)}
    assert all(outcome.exact_attempts and outcome.exact_steps for outcome in outcomes)


def test_failures_of_one_moment_that_look_the_same_are_one_outcome():
    ways = graph({"f": fanout("a", "a", fail_fast=True), "a": model()}, ["start f", "f end"])
    assert run(ways, {"a": fails(5)}).error_node == "a"


def test_which_of_the_failures_of_one_moment_is_told_decides_the_way_on():
    judged = gate(("a", "error['node_id'] == 'a'", "c"), default_target="end")
    ways = graph(
        {"f": fanout("a", "b", fail_fast=True, on_error="g"), "g": judged, **THREE}, ["start f", "f end", "c end"]
    )
    outcomes = every(ways, {"a": fails(5), "b": fails(5)})

    assert sorted(outcome.visits[3:] for outcome in outcomes) == [("c", "end"), ("end",)]


def test_failures_of_one_moment_are_no_choice_while_they_are_retried_alike():
    """Nine times two failures: which one is told matters only after the last attempt."""
    ways = voting("a", "b", fail_fast=True, retry_count=8, retry_delay_ms=1)
    outcomes = every(ways, {"a": fails(5), "b": fails(5)})

    assert nodes_told(outcomes) == ["a", "b"]
    assert {outcome.elapsed_ns for outcome in outcomes} == {53 * MS}


def test_failures_of_one_moment_may_be_retried_or_not():
    ways = voting("a", "b", fail_fast=True, retry_count=1, retry_delay_ms=1)
    outcomes = every(ways, {"a": [fails(5, recoverable=False), says()], "b": [fails(5), says()]})

    assert sorted((outcome.status, outcome.elapsed_ns) for outcome in outcomes) == [
        ("failed", 5 * MS),
        ("succeeded", 16 * MS),
    ]


def test_failures_of_one_moment_may_ask_for_different_delays():
    ways = voting("a", "b", fail_fast=True, retry_count=1, retry_delay_ms=1)
    outcomes = every(ways, {"a": [fails(5, retry_after_s=0.1), says()], "b": [fails(5), says()]})

    assert sorted(outcome.elapsed_ns for outcome in outcomes) == [16 * MS, 115 * MS]


def test_any_failure_of_the_first_moment_may_be_told_through_two_fanouts():
    ways = graph(
        {"f": fanout("a", "i", fail_fast=True), "i": fanout("b", "c", fail_fast=True), **THREE},
        ["start f", "f end"],
    )
    outcomes = every(ways, {name: fails(5) for name in "abc"})

    assert set(nodes_told(outcomes)) == {"a", "b", "c"}


def test_a_target_that_fails_as_it_begins_may_be_told_though_another_one_failed_before_it():
    """c begins at 5, when b leaves its slot, and has nothing to ask; a fails at 5."""
    nodes = {"c": model(prompt_template="{nothing}")}
    outcomes = every(
        voting(*"abc", nodes=nodes, fail_fast=True, max_parallel_branches=2), {"a": fails(5), "b": says(ms=5)}
    )

    assert nodes_told(outcomes) == ["a", "c"]
    assert not any(outcome.exact_steps for outcome in outcomes)


def test_one_after_another_no_two_fail_at_one_moment():
    outcome = run(
        voting(*"abc", fail_fast=True, parallel=False), {"a": says(ms=0, tokens=1), "b": fails(0), "c": fails(0)}
    )

    assert (outcome.error_node, counts(outcome)) == ("b", (4, 4, 1))
    assert outcome.exact_attempts


def test_a_target_that_has_not_started_when_the_rest_is_cancelled_is_no_step():
    outcome = run(voting(*"abc", fail_fast=True, parallel=False), {"a": fails(5)})
    assert (outcome.steps, outcome.elapsed_ns) == (3, 5 * MS)


def exact(outcome):
    return outcome.exact_steps, outcome.exact_attempts


def test_work_that_ends_as_the_rest_is_cancelled_makes_attempts_and_tokens_inexact():
    outcome = run(voting(*"ab", fail_fast=True), {"a": fails(5), "b": says(ms=5, tokens=3)})

    assert (outcome.error_node, outcome.steps, outcome.elapsed_ns) == ("a", 4, 5 * MS)
    assert exact(outcome) == (True, False)


def test_an_attempt_that_begins_as_the_rest_is_cancelled_makes_attempts_inexact():
    retried = {"b": model(retry_count=1, retry_delay_ms=2)}
    outcome = run(voting(*"ab", nodes=retried, fail_fast=True), {"a": fails(5), "b": [fails(3), says()]})

    assert (outcome.steps, exact(outcome)) == (4, (True, False))


def test_a_target_that_could_start_as_the_rest_is_cancelled_makes_steps_inexact():
    ways = voting(*"abc", fail_fast=True, max_parallel_branches=2)
    outcome = run(ways, {"a": fails(5), "b": says(ms=5)})

    assert (outcome.error_node, exact(outcome)) == ("a", (False, False))


def test_what_ends_just_before_or_after_the_cut_leaves_nothing_open():
    ways = voting(*"abc", fail_fast=True)
    outcome = run(ways, {"a": fails(5), "b": says(ms=4, tokens=3), "c": says(ms=6, tokens=5)})

    assert (counts(outcome), exact(outcome)) == ((5, 5, 3), (True, True))


def test_a_target_that_begins_in_the_slot_of_another_and_fails_at_once_leaves_nothing_open():
    nodes = {"c": model(prompt_template="{nothing}")}
    ways = voting(*"abc", nodes=nodes, fail_fast=True, max_parallel_branches=2)
    outcome = run(ways, {"a": says(ms=9), "b": says(ms=5, tokens=3)})

    assert (outcome.error_node, counts(outcome), exact(outcome)) == ("c", (5, 5, 3), (True, True))


def test_counts_stay_inexact_for_the_rest_of_the_run():
    ways = graph({"f": fanout("a", "b", fail_fast=True, on_error="c"), **THREE}, ["start f", "f end", "c end"])
    outcome = run(ways, {"a": fails(5), "b": says(ms=5, tokens=3)})

    assert (outcome.status, outcome.steps, exact(outcome)) == ("succeeded", 6, (True, False))


def test_calls_that_a_cancelled_target_did_not_make_are_not_numbered():
    """b's second call, at 30, is after a's failure at 20; the retried fanout makes it, at 25."""
    numbers = []

    def reply(call):
        if call.node_id == "b":
            numbers.append((call.number, call.at_ns // MS))
            return fails(10)
        return fails(20) if call.number == 0 else says(ms=90)

    inner = {"b": model(retry_count=1, retry_delay_ms=20)}
    run(voting("a", "b", nodes=inner, fail_fast=True, retry_count=1, retry_delay_ms=5), reply)

    assert (1, 25) in numbers
    assert (2, 25) not in numbers


def test_a_call_that_may_have_been_made_splits_the_outcomes_only_if_its_number_matters():
    """b may begin its second call at 20, as a fails; it makes another one when the fanout is retried."""
    inner = {"b": model(retry_count=1, retry_delay_ms=10)}
    ways = voting("a", "b", nodes=inner, fail_fast=True, retry_count=1, quorum=1)
    first = {"a": [fails(20), says("x")]}

    same = every(ways, {**first, "b": [fails(10), says("y")]})
    assert {outcome.payload.content for outcome in same} == {"x"}

    ways = graph(
        {"f": fanout("b", "a", fail_fast=True, retry_count=1, quorum=1), "a": model(), **inner},
        [
            "start f",
            "f end",
        ],
    )
    apart = every(ways, {**first, "b": [fails(10), says("y"), says("z")]})
    assert {outcome.payload.content for outcome in apart} == {"y", "z"}


def test_too_many_orders_are_refused():
    """Twelve times, b may or may not have called as a fails, and its number is part of what it says."""

    def reply(call):
        return fails(0) if call.node_id == "a" else says(str(call.number), 0)

    ways = voting("b", "a", fail_fast=True, retry_count=12, retry_delay_ms=1)
    with pytest.raises(TooManyOutcomesError):
        every(ways, reply)


# --- fanouts: shapes -----------------------------------------------------------------------------------


def test_nested_fanouts_call_on_their_own_branches():
    asked = []

    def reply(call):
        asked.append(call.node_id + call.branch)
        return says()

    ways = graph({"f": fanout("a", "i", "a"), "i": fanout("a", "a"), "a": model()}, ["start f", "f end"])
    outcome = run(ways, reply)

    assert asked == ["a.1", "a.2.1", "a.2.2", "a.3"]
    assert counts(outcome) == (8, 8, 0)
    assert outcome.elapsed_ns == 10 * MS


def test_an_inner_fanouts_failure_is_judged_by_the_outer_one():
    ways = graph({"f": fanout("a", "i", "a"), "i": fanout("b"), "a": model(), "b": model()}, ["start f", "f end"])
    assert run(ways, {"b": fails()}).status == "succeeded"
    assert told(run(ways, {"b": fails(), "a": says("")})) == ("failed", "MODEL_ERROR", "b")


def test_an_outer_fanouts_limit_cuts_the_inner_one_as_a_whole():
    ways = graph(
        {"f": fanout("i", timeout_ms=20), "i": fanout("a", timeout_ms=20, retry_count=3), "a": model()},
        ["start f", "f end"],
    )
    outcome = run(ways, {"a": says(ms=99)})

    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "TIMEOUT", "i", 20 * MS)
    assert counts(outcome) == (4, 4, 0)


def test_fanouts_fail_by_policy_like_any_node():
    outcome = run(voting("a"), {"a": fails()}, failure_policy="skip_failed")
    assert (*told(outcome), outcome.visits) == ("degraded", "MODEL_ERROR", "a", ("start", "f", "end"))


# --- limits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("steps", "expected", "visits"),
    [
        (0, ("failed", "BOUNDS_EXCEEDED", "start"), ()),
        (1, ("failed", "BOUNDS_EXCEEDED", "a"), ("start",)),
        (2, ("failed", "BOUNDS_EXCEEDED", "end"), ("start", "a")),
        (3, ("succeeded", None, None), ("start", "a", "end")),
    ],
)
def test_so_many_steps_run_and_the_next_never_starts(steps, expected, visits):
    outcome = run(line(), {"a": says("put out", tokens=2)}, max_steps=steps)

    assert (told(outcome), outcome.visits) == (expected, visits)
    assert counts(outcome) == (steps, steps, 2 if steps > 1 else 0)
    assert outcome.elapsed_ns == (10 * MS if steps > 1 else 0)
    assert outcome.payload.content == ("put out" if steps > 1 else "c")


def test_no_failure_policy_absorbs_the_limit():
    assert told(run(line(), max_steps=1, failure_policy="skip_failed"))[0] == "failed"


def test_an_endless_cycle_ends_at_the_limit():
    cycle = graph({"a": model()}, ["start a", "a a", ("a end", "False")], allow_cycles=True)
    outcome = run(cycle, max_steps=50)

    assert (told(outcome), outcome.steps) == (("failed", "BOUNDS_EXCEEDED", "a"), 50)
    assert outcome.elapsed_ns == 490 * MS


@pytest.mark.parametrize("steps", [2, 3, 4])
def test_targets_that_start_at_one_moment_count_in_order(steps):
    outcome = run(voting(*"abc"), {"a": says(ms=0, tokens=9)}, max_steps=steps)

    assert told(outcome) == ("failed", "BOUNDS_EXCEEDED", "f")
    assert (counts(outcome), outcome.elapsed_ns) == ((steps, steps, 0), 0)
    assert outcome.visits == ("start", "f")
    assert outcome.payload == MessagePayload(task="t", content="c")


def test_a_limit_inside_a_fanout_cuts_what_runs_beside():
    """c would start at 10, when a ends, while b is in its third attempt."""
    ways = voting(*"abc", max_parallel_branches=2, nodes={"b": model(retry_count=9, retry_delay_ms=0)})
    outcome = run(ways, {"a": says(ms=10, tokens=5), "b": fails(4)}, max_steps=4)

    assert (told(outcome), outcome.elapsed_ns) == (("failed", "BOUNDS_EXCEEDED", "f"), 10 * MS)
    assert counts(outcome) == (4, 6, 5)


def test_one_after_another_leaves_nothing_open_at_the_limit():
    outcome = run(voting(*"abc", parallel=False), {"a": says(ms=0, tokens=1), "b": says(ms=0, tokens=2)}, max_steps=4)
    assert counts(outcome) == (4, 4, 3)


def test_two_that_end_as_the_limit_is_hit_make_attempts_and_tokens_inexact():
    ways = voting(*"abc", max_parallel_branches=2)
    outcome = run(ways, {"a": says(tokens=1), "b": says(tokens=2)}, max_steps=4)

    assert (told(outcome), outcome.steps) == (("failed", "BOUNDS_EXCEEDED", "f"), 4)
    assert (outcome.elapsed_ns, exact(outcome)) == (10 * MS, (True, False))


def test_a_fanout_that_begins_in_the_slot_of_another_target_leaves_nothing_open_at_the_limit():
    """Of the steps of the inner fanout, which begins at 10 when a ends, one more is allowed."""
    ways = graph(
        {"f": fanout("a", "b", "i", max_parallel_branches=2), "i": fanout("a", "c"), **THREE}, ["start f", "f end"]
    )
    outcome = run(ways, {"a": says(tokens=5), "b": says(ms=99)}, max_steps=6)

    assert (counts(outcome), outcome.elapsed_ns, exact(outcome)) == ((6, 6, 5), 10 * MS, (True, True))


def test_steps_that_begin_at_one_moment_in_any_order_count_the_same():
    inner = {"i": fanout("a", "b"), "j": fanout("b", "a")}
    ways = graph({"f": fanout("i", "j"), **inner, **TWO}, ["start f", "f end"])
    outcome = run(ways, max_steps=7)

    assert (counts(outcome), exact(outcome)) == ((7, 7, 0), (True, True))


@pytest.mark.parametrize("steps", [4, 6])
def test_open_steps_on_which_the_limit_hangs_are_refused(steps):
    """c may begin at 5, as a fails; then there are three more, d and end after f."""
    ways = graph(
        {"f": fanout(*"abc", fail_fast=True, max_parallel_branches=2, on_error="d"), **THREE, "d": model()},
        ["start f", "f end", "d end"],
    )
    replies = {"a": fails(5), "b": says(ms=5)}

    with pytest.raises(TooManyOutcomesError, match="max_steps"):
        every(ways, replies, max_steps=steps)


@pytest.mark.parametrize(("steps", "code"), [(3, "BOUNDS_EXCEEDED"), (7, None)])
def test_open_steps_on_which_no_limit_hangs_are_not_refused(steps, code):
    ways = graph(
        {"f": fanout(*"abc", fail_fast=True, max_parallel_branches=2, on_error="d"), **THREE, "d": model()},
        ["start f", "f end", "d end"],
    )
    outcome = run(ways, {"a": fails(5), "b": says(ms=5)}, max_steps=steps)

    assert outcome.error_code == code
    assert exact(outcome) == ((True, True) if code else (False, False))


def test_many_that_end_as_the_rest_is_cancelled_are_one_outcome():
    names = [f"a{number}" for number in range(10)]
    replies = {name: says(tokens=2**number) for number, name in enumerate(names)}
    outcome = run(voting(*names, "z", fail_fast=True), {**replies, "z": fails(10)})

    assert told(outcome) == ("failed", "MODEL_ERROR", "z")
    assert (outcome.steps, exact(outcome)) == (13, (True, False))


def test_retries_of_a_fanout_end_at_the_limit():
    ways = voting("a", retry_count=1_000, retry_delay_ms=1)
    outcome = run(ways, {"a": fails(1)}, max_steps=12)

    assert (told(outcome), outcome.steps) == (("failed", "BOUNDS_EXCEEDED", "f"), 12)
    assert (outcome.attempts, outcome.elapsed_ns) == (1 + 11 + 10, 20 * MS)


@pytest.mark.parametrize(("ms", "status"), [(99, "succeeded"), (100, "timed_out"), (101, "timed_out")])
def test_a_run_that_would_end_at_its_deadline_is_too_late(ms, status):
    outcome = run(line(), {"a": says("put out", ms, tokens=1)}, timeout_ms=100)

    assert outcome.status == status
    if status == "timed_out":
        assert told(outcome)[1:] == ("TIMEOUT", "a")
        assert (counts(outcome), outcome.elapsed_ns) == ((2, 2, 0), 100 * MS)
        assert outcome.payload == MessagePayload(task="t", content="c")


def test_the_runs_deadline_wins_against_the_attempts_at_one_moment():
    outcome = run(line(timeout_ms=100), {"a": says(ms=200)}, timeout_ms=100, failure_policy="skip_failed")
    assert told(outcome) == ("timed_out", "TIMEOUT", "a")


def test_the_runs_deadline_cuts_a_retry_wait():
    outcome = run(line(retry_count=1, retry_delay_ms=95), {"a": fails(5)}, timeout_ms=100)

    assert (*told(outcome), outcome.elapsed_ns) == ("timed_out", "TIMEOUT", "a", 100 * MS)
    assert outcome.attempts == 2


def test_the_runs_deadline_inside_a_fanout_names_the_node_visited():
    ways = voting(*"abc", parallel=False, timeout_ms=100)
    outcome = run(ways, {"a": says(ms=50, tokens=1), "b": says(ms=50, tokens=1)}, timeout_ms=100)

    assert (*told(outcome), outcome.elapsed_ns) == ("timed_out", "TIMEOUT", "f", 100 * MS)
    assert counts(outcome) == (4, 4, 1)


def test_the_same_run_gives_the_same_outcomes():
    ways = voting(*"abc", fail_fast=True, nodes={"a": model(retry_count=2, retry_backoff="exponential")})
    replies = {"a": fails(1), "b": fails(2), "c": says(ms=2, tokens=4)}

    assert every(ways, replies) == every(ways, replies)


# --- transforms ----------------------------------------------------------------------------------------


def step(kind, **params):
    return {"type": kind, "params": params}


def transforming(*steps, payload=None, variables=None, **config):
    ways = graph({"t": node("transform", transforms=list(steps), **config)}, ["start t", "t end"])
    return run(ways, payload=payload, variables=variables)


TRANSFORMS = [
    (step("uppercase"), "straße", "STRASSE"),
    (step("lowercase"), "ABC", "abc"),
    (step("strip"), " \n a b\t", "a b"),
    ({}, " a ", "a"),
    (step("truncate", max_length=5), "abcdef", "ab..."),
    (step("truncate", max_length=6), "abcdef", "abcdef"),
    (step("truncate", max_length=2), "abcdef", ".."),
    (step("truncate", max_length=0), "abcdef", ""),
    (step("truncate", max_length=4, suffix="!"), "abcdef", "abc!"),
    (step("json_parse"), ' {"a":1} ', ' {"a":1} '),
    (step("json_stringify"), '{"a":[1,"é"]}', '{\n  "a": [\n    1,\n    "é"\n  ]\n}'),
    (step("json_stringify"), 'say "é"', '"say \\"é\\""'),
    (step("json_extract", path="a.1.b"), '{"a": [0, {"b": "x"}]}', "x"),
    (step("json_extract", path="a"), '{"a":{"b":1,"c":"é"}}', '{"b": 1, "c": "é"}'),
    (step("json_extract", path="a"), '{"a":false}', "false"),
    (step("json_wrap"), 'é"', '{"content": "é\\""}'),
    (step("json_wrap", key="k"), "1", '{"k": "1"}'),
    (step("regex_extract", pattern="b+"), "abbcb", "bb"),
    (step("regex_extract", pattern="a(b+)", group=1), "abbcb", "bb"),
    (step("regex_extract", pattern="a(?P<x>b+)", group="x"), "abbcb", "bb"),
    (step("regex_replace", pattern="(a)(?P<n>b)?", replacement=r"<\g<n>\1\n>"), "abca", r"<ba\n>c<a\n>"),
    (step("regex_replace", pattern="x", replacement="y"), "abc", "abc"),
    (step("template", template="{content}/{task}/{{task}}"), "x", "x/t/{task}"),
    (step("template", template="{variables.n} {metadata}"), "x", '[1] {"é": null}'),
    (step("split", separator=","), "a,é,", '["a", "é", ""]'),
    (step("split", separator=",", index=-2), "a,b,c", "b"),
    (step("split", separator=",", index=0), "abc", "abc"),
    (step("join", separator="-"), '["a", 1, null, {"é": 2}]', 'a-1-null-{"é": 2}'),
]


@pytest.mark.parametrize(("transform", "text", "expected"), TRANSFORMS)
def test_each_step_of_a_transform_makes_text_of_text(transform, text, expected):
    payload = MessagePayload(task="t", content=text, metadata={"é": None})
    outcome = transforming(transform, payload=payload, variables={"n": [1]})

    assert (outcome.status, outcome.payload.content) == ("succeeded", expected)


FAILING_STEPS = [
    (step("json_parse"), "{"),
    (step("json_parse"), "NaN"),
    (step("json_parse"), "1e999"),
    (step("json_parse"), r'"\ud800"'),
    (step("json_parse"), "[" * 65 + "]" * 65),
    (step("json_extract", path="a"), "no"),
    (step("json_extract", path="a"), '{"a": null}'),
    (step("json_extract", path="a"), "{}"),
    (step("json_extract", path="2"), "[1, 2]"),
    (step("json_extract", path="-1"), "[1, 2]"),
    (step("json_extract", path="a.b"), '{"a": "b"}'),
    (step("regex_extract", pattern="x"), "abc"),
    (step("regex_extract", pattern="a(x)?", group=1), "abc"),
    (step("template", template="{route}"), "x"),
    (step("split", separator=",", index=1), "a"),
    (step("split", separator=",", index=-2), "a"),
    (step("join", separator=","), '{"a": 1}'),
    (step("join", separator=","), "a"),
    (step("regex_replace", pattern="a", replacement="b" * 1_001), "a" * 1_000),
    (step("regex_replace", pattern="a", replacement="b"), "a" * 10_001),
    (step("regex_replace", pattern="x", replacement="y"), "a" * 100_001),
    (step("regex_extract", pattern="a"), "a" * 100_001),
]


@pytest.mark.parametrize(("transform", "text"), FAILING_STEPS)
def test_a_step_that_fails_fails_the_transform_or_is_left_out(transform, text):
    payload = MessagePayload(content=text)
    steps = [transform, step("template", template="{content}!")]

    assert told(transforming(*steps, payload=payload)) == ("failed", "VALIDATION_ERROR", "t")
    assert transforming(*steps, payload=payload, stop_on_error=False).payload.content == text + "!"


def test_steps_are_applied_in_order():
    steps = [step("split", separator=","), step("json_extract", path="1"), step("uppercase")]
    assert transforming(*steps, payload=MessagePayload(content="a,b")).payload.content == "B"


def test_a_text_that_was_too_long_before_may_stay_as_long():
    text = "a" * 1_000_001
    assert transforming(step("uppercase"), payload=MessagePayload(content=text)).status == "succeeded"


def test_a_transform_takes_the_task_when_there_is_no_content():
    outcome = transforming(step("uppercase"), payload=MessagePayload(task="t", error=AN_ERROR))
    assert (outcome.payload.content, outcome.payload.error) == ("T", None)


@pytest.mark.parametrize("stop", [True, False])
def test_a_transform_of_neither_content_nor_task_fails(stop):
    outcome = transforming(payload=MessagePayload(), stop_on_error=stop)
    assert told(outcome) == ("failed", "VALIDATION_ERROR", "t")


AN_ERROR = ErrorInfo(code=ErrorCode.UNKNOWN, message="")


# --- routers -------------------------------------------------------------------------------------------


def route(name, target="a", **more):
    return {"name": name, "target": target, **more}


def router(*routes, **config):
    return node("router", routes=list(routes), **config)


def routed(*routes, say="", content="c", **config):
    ways = {"r": router(*routes, **config), "a": node("transform"), "b": node("transform")}
    return run(graph(ways, ["start r", "a end", "b end"]), {"r": says(say)}, payload=MessagePayload(content=content))


def published(outcome):
    fields = outcome.payload.fields()
    return outcome.visits[2], fields["route"], fields["routes"], fields["compound_route"]


@pytest.mark.parametrize(("answer", "expected"), [(" PAY. ", "pay"), ("say pay please", "pay"), ("Help", "Help")])
def test_a_router_takes_the_route_that_a_models_answer_means(answer, expected):
    outcome = routed(route("pay"), route("Help", "b"), say=answer)
    assert published(outcome) == ({"pay": "a", "Help": "b"}[expected], expected, [expected], False)


def test_of_equal_names_the_first_in_the_order_of_routes_counts():
    outcome = routed(route("pay"), route("PAY", "b", priority=1), say="pay")
    assert published(outcome) == ("b", "PAY", ["PAY"], False)


@pytest.mark.parametrize("answer", ["neither", "pay or help", ""])
def test_a_router_without_a_match_takes_its_default_or_fails(answer):
    outcome = routed(route("pay"), route("help", "b"), say=answer)
    assert told(outcome) == ("failed", "ROUTING_ERROR", "r")

    outcome = routed(route("pay"), route("Help", "b"), say=answer, default_route=" help")
    assert published(outcome) == ("b", "Help", ["Help"], False)


def test_a_router_that_asks_counts_its_tokens_and_needs_content_or_task():
    ways = graph({"r": router(route("x"))} | {"a": model()}, ["start r", "a end"])
    outcome = run(ways, {"r": says("y", tokens=5)})
    assert (*told(outcome), outcome.tokens) == ("failed", "ROUTING_ERROR", "r", 5)

    assert told(run(ways, payload=MessagePayload())) == ("failed", "VALIDATION_ERROR", "r")


def test_a_router_without_routes_asks_no_model():
    ways = graph({"r": router()}, ["start r", "r end"])
    outcome = run(ways, {"r": says("x", tokens=5)})
    assert (*told(outcome), outcome.tokens, outcome.elapsed_ns) == ("failed", "ROUTING_ERROR", "r", 0, 0)


RULES = [
    (["1 / 0", "content == 'c'"], [0, 0], "r1"),
    (["True", "True"], [0, 0], "r0"),
    (["True", "True"], [0, 1], "r1"),
]


@pytest.mark.parametrize(("conditions", "priorities", "expected"), RULES)
def test_rules_take_the_first_route_whose_condition_holds(conditions, priorities, expected):
    routes = [
        route(f"r{i}", condition=condition, priority=priority)
        for i, (condition, priority) in enumerate(zip(conditions, priorities, strict=True))
    ]
    assert published(routed(*routes, mode="rules"))[1] == expected


KEYWORDS = [
    ("Please PAY now", "pay"),
    ("payment by card", "card"),
    ("card or pay", "pay"),
    ("pay_now", None),
    ("c++ is hard", "card"),
    (None, None),
]


@pytest.mark.parametrize(("content", "expected"), KEYWORDS)
def test_keywords_take_the_first_route_with_one_of_its_words_in_the_content(content, expected):
    routes = [route("card", keywords=["card", "C++"]), route("pay", keywords=["bill", "pay"], priority=1)]
    outcome = routed(*routes, mode="keywords", content=content)
    assert (outcome.payload.route, outcome.error_code) == (expected, None if expected else "ROUTING_ERROR")


LABELS = [
    ("b, A", {}, ("b", ["b", "a"])),
    ("x, c; b\nA!,a", {}, ("a", ["a"])),
    ("a\nb\nc", {}, ("c", ["a", "b", "c"])),
    ("a,b,c", {"max_labels": 2}, ("b", ["a", "b"])),
    ("x,a,A,b", {"max_labels": 2}, ("b", ["a", "b"])),
    ("take a", {"default_route": "c"}, ("c", ["c"])),
]


@pytest.mark.parametrize(("answer", "config", "expected"), LABELS)
def test_multi_label_takes_the_first_route_in_order_of_all_that_the_answer_lists(answer, config, expected):
    routes = [route("a"), route("b", priority=1), route("c", priority=2)]
    outcome = routed(*routes, say=answer, multi_label=True, **config)
    assert published(outcome)[1:] == (*expected, False)


def compound(*domains, target="a", **more):
    return {"domains": list(domains), "target": target, **more}


COMPOUNDS = [
    ("a,b", [compound("a", target="a"), compound("B", "a ", target="b")], ("b", "B+a ", ["a", "b"], True)),
    ("a,b", [compound("a", "c")], ("a", "a", ["a", "b"], False)),
    ("b,a", [compound("a", target="a"), compound("b", target="b", priority=1)], ("b", "b", ["b", "a"], True)),
    ("b,a", [compound("b", target="a"), compound("a", target="b")], ("a", "b", ["b", "a"], True)),
    ("a,b", [compound("a", priority=9), compound("a", "b", target="b")], ("b", "a+b", ["a", "b"], True)),
    ("a,b,c", [compound("a", "c", target="b")], ("b", "a+c", ["a", "b", "c"], True)),
]


@pytest.mark.parametrize(("answer", "compounds", "expected"), COMPOUNDS)
def test_a_compound_route_wins_when_all_its_domains_were_named(answer, compounds, expected):
    routes = [route("a"), route("b", "b"), route("c", "b")]
    outcome = routed(*routes, say=answer, multi_label=True, compound_routes=compounds)
    assert published(outcome) == expected


def test_labels_over_the_maximum_make_no_compound():
    outcome = routed(
        route("a"), route("b", "b"), say="a,b", multi_label=True, max_labels=1, compound_routes=[compound("a", "b")]
    )
    assert published(outcome) == ("a", "a", ["a"], False)


# --- models with a schema ------------------------------------------------------------------------------

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


def asked_for_json(*replies, **config):
    return run(line(response_schema=SCHEMA, **config), {"a": list(replies)})


def test_an_answer_that_fits_becomes_structured_and_stays_as_it_came():
    payload = MessagePayload(content="c", structured={"old": 1})
    outcome = run(line(response_schema=SCHEMA), {"a": says(' {"n":1}\n')}, payload=payload)

    assert (outcome.payload.content, outcome.payload.structured) == (' {"n":1}\n', {"n": 1})


@pytest.mark.parametrize("bad", ["no", "[1]", '{"n": "1"}', "{}", '{"n": NaN}', '```{"n": 1}```', '{"n":1} x'])
def test_a_bad_answer_is_asked_for_again_and_counts_its_tokens(bad):
    outcome = asked_for_json(says(bad, 10, tokens=2), says('{"n": 1}', 20, tokens=3))

    assert (outcome.status, outcome.payload.structured) == ("succeeded", {"n": 1})
    assert (counts(outcome), outcome.elapsed_ns) == ((3, 3, 5), 30 * MS)


def test_after_its_repairs_a_model_has_failed_and_the_step_may_be_retried():
    bad = says("no", 10, tokens=2)
    outcome = asked_for_json(bad, repair_attempts=2, retry_count=1, retry_delay_ms=1)

    assert told(outcome) == ("failed", "MODEL_ERROR", "a")
    assert (counts(outcome), outcome.elapsed_ns) == ((2, 3, 12), 61 * MS)


def test_without_repairs_one_bad_answer_is_a_failure():
    assert asked_for_json(says("no", 10), repair_attempts=0).elapsed_ns == 10 * MS


def test_a_call_that_fails_is_not_repaired():
    outcome = asked_for_json(says("no", 10, tokens=2), fails(5, recoverable=False), says('{"n": 1}'), retry_count=1)
    assert (*told(outcome), outcome.attempts, outcome.elapsed_ns) == ("failed", "MODEL_ERROR", "a", 2, 15 * MS)


def test_the_next_model_is_asked_after_the_repairs_of_the_one_before():
    asked = []

    def reply(call):
        asked.append((call.model, call.number))
        return says("no") if call.model == "m1" else says('{"n": 2}')

    outcome = run(line(response_schema=SCHEMA, **FALLBACK), reply)
    assert (asked, outcome.payload.structured) == ([("m1", 0), ("m1", 1), ("m2", 2)], {"n": 2})


def test_each_repair_has_the_fallback_time_and_the_attempt_bounds_all():
    late = asked_for_json(says("no", 15), says("no", 25), repair_attempts=5, fallback_timeout_ms=20, **FALLBACK)
    assert late.elapsed_ns == (15 + 20 + 20 + 20) * MS

    outcome = asked_for_json(says("no", 15, tokens=2), repair_attempts=5, timeout_ms=40)
    assert (*told(outcome), outcome.tokens, outcome.elapsed_ns) == ("failed", "TIMEOUT", "a", 4, 40 * MS)


def test_conditions_see_the_tokens_of_the_good_answer():
    ways = graph(
        {"a": model(response_schema=SCHEMA), "b": model()},
        ["start a", ("a b", "metadata['tokens_in'] == 3"), "a end", "b end"],
    )
    assert "b" in run(ways, {"a": [says("no", tokens=2), says('{"n": 1}', tokens=3)]}).visits


# --- tools ---------------------------------------------------------------------------------------------


def tool(on_error=None, **config):
    return node("tool", on_error, **{"tool_id": "t1", **config})


def tooled(replies, payload=None, variables=None, nodes=None, edges=(), **config):
    """start -> x -> end with a tool `x`; also all that the tool was asked."""
    asked = []

    def reply(call):
        asked.append(call)
        return replies[min(call.number, len(replies) - 1)]

    ways = graph({"x": tool(**config), **(nodes or {})}, ["start x", "x end", *edges])
    return run(ways, payload=payload, variables=variables, tools=reply), asked


def test_a_tool_gets_the_content_as_its_input_and_puts_out_text_as_it_is():
    outcome, asked = tooled([ToolReply(duration_ns=5, output="hé")])

    call = ToolCall(node_id="x", branch="", number=0, tool_id="t1", arguments={"input": "c"}, at_ns=0)
    assert asked == [call]
    result = ToolResult(call_id="", tool_id="t1", success=True, output="hé")
    assert (outcome.payload.content, outcome.payload.tool_result) == ("hé", result)
    assert (outcome.elapsed_ns, outcome.payload.structured) == (5, None)


@pytest.mark.parametrize(
    ("output", "content", "structured"),
    [
        ({"é": [1, None]}, '{"é": [1, null]}', {"é": [1, None]}),
        ([1, "a"], '[1, "a"]', {"old": 1}),
        (2.5, "2.5", {"old": 1}),
        (True, "true", {"old": 1}),
    ],
)
def test_what_a_tool_gives_becomes_content_and_an_object_becomes_structured(output, content, structured):
    outcome, _ = tooled([ToolReply(output=output)], payload=MessagePayload(content="c", structured={"old": 1}))
    assert (outcome.payload.content, outcome.payload.structured) == (content, structured)


def test_parameters_are_mapped_from_dotted_fields_and_left_out_if_missing_or_null():
    paths = {"a": "structured.list.1.x", "b": "variables.v", "c": "metadata.m", "d": "route", "e": "content.x"}
    paths |= {"f": "structured.list.7", "g": "extra", "h": "structured.list"}
    payload = MessagePayload(content="c", structured={"list": [0, {"x": "X"}]}, metadata={"m": False}, extra=0)
    _, [call] = tooled([ToolReply()], payload=payload, variables={"v": [1]}, input_mapping=paths)

    assert call.arguments == {"a": "X", "b": [1], "c": False, "g": 0, "h": [0, {"x": "X"}]}


def test_a_tool_without_content_gets_no_input():
    _, [call] = tooled([ToolReply()], payload=MessagePayload(task="t"))
    assert call.arguments == {}


TOOL_FAILURES = [
    (ToolReply(error_code=ErrorCode.TOOL_ERROR), "TOOL_ERROR", 3),
    (ToolReply(error_code=ErrorCode.TOOL_ERROR, recoverable=False), "TOOL_ERROR", 1),
    (ToolReply(error_code=ErrorCode.VALIDATION_ERROR), "VALIDATION_ERROR", 1),
    (ToolReply(output=float("nan")), "VALIDATION_ERROR", 1),
    (ToolReply(output=(1, 2)), "VALIDATION_ERROR", 1),
]


@pytest.mark.parametrize(("reply", "code", "attempts"), TOOL_FAILURES)
def test_a_tool_that_fails_is_retried_if_that_can_help(reply, code, attempts):
    outcome, asked = tooled([reply], retry_count=2, retry_delay_ms=0)
    assert (*told(outcome), len(asked)) == ("failed", code, "x", attempts)


@pytest.mark.parametrize("reply", [reply for reply, _, _ in TOOL_FAILURES])
def test_a_tool_that_continues_on_error_passes_its_failure_on(reply):
    payload = MessagePayload(content="c", structured={"s": 1})
    outcome, _ = tooled([reply], payload=payload, continue_on_error=True)

    assert told(outcome) == ("succeeded", None, None)
    assert outcome.payload.tool_result == ToolResult(call_id="", tool_id="t1", success=False, error="")
    assert (outcome.payload.content, outcome.payload.structured) == ("c", {"s": 1})


def test_a_tool_that_is_cut_off_fails_all_the_same():
    outcome, _ = tooled([ToolReply(duration_ns=20 * MS)], timeout_ms=20, continue_on_error=True)
    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "TIMEOUT", "x", 20 * MS)


def test_tool_calls_are_numbered_by_node_and_branch():
    asked = []

    def reply(call):
        asked.append((call.branch, call.number, call.at_ns // MS))
        return ToolReply(duration_ns=3 * MS, output="same")

    ways = graph({"f": fanout("x", "x"), "x": tool()}, ["start f", "f f", ("f end", "False")], allow_cycles=True)
    run(ways, tools=reply, max_steps=7)
    assert asked == [(".1", 0, 0), (".2", 0, 0), (".1", 1, 3), (".2", 1, 3)]


def test_a_tool_without_a_script_is_refused():
    with pytest.raises(UsageError, match="tools"):
        run(graph({"x": tool()}, ["start x", "x end"]))


# --- fanouts: strategies -------------------------------------------------------------------------------


def strategy(name, *targets, nodes=None, **config):
    """start -> f -> end, with `f` a fanout of this strategy over models."""
    return voting(*targets, nodes=nodes, aggregation_strategy=name, **config)


def entry(name, content, structured=None):
    return {"node": name, "success": True, "content": content, "structured": structured, "error": None}


def untold(code, node_id, *, recoverable=True):
    return {"code": code, "message": "", "details": {}, "recoverable": recoverable, "node_id": node_id}


def test_all_joins_the_contents_in_target_order_and_lists_every_result():
    payload = MessagePayload(task="t", content="c", structured={"s": 1})
    outcome = run(strategy("all", *"abc"), {"a": says("A", 30), "b": fails(5), "c": says("C", 10)}, payload=payload)

    failed = {"node": "b", "success": False, "content": None, "structured": None, "error": untold("MODEL_ERROR", "b")}
    assert outcome.payload.content == "A\n\nC"
    assert outcome.payload.structured == {
        "s": 1,
        "results": [entry("a", "A", {"s": 1}), failed, entry("c", "C", {"s": 1})],
    }
    assert (outcome.payload.task, outcome.elapsed_ns) == ("t", 30 * MS)


def test_all_leaves_out_the_results_that_it_received():
    payload = MessagePayload(content="c", structured={"results": [1], "s": 2})
    outcome = run(strategy("all", "a", "b"), payload=payload)
    assert outcome.payload.structured is not None
    assert outcome.payload.structured["results"] == [entry("a", "ok", {"s": 2}), entry("b", "ok", {"s": 2})]


def test_all_keeps_the_results_of_a_fanout_inside():
    inner = {"i": fanout("a", aggregation_strategy="all")}
    outcome = run(strategy("all", "a", nodes={}), {"a": says("A")})
    assert outcome.payload.structured == {"results": [entry("a", "A")]}

    ways = graph({"f": fanout("i", aggregation_strategy="all"), **inner, "a": model()}, ["start f", "f end"])
    assert run(ways, {"a": says("A")}).payload.structured == {
        "results": [entry("i", "A", {"results": [entry("a", "A")]})]
    }


def test_contents_that_are_null_are_not_joined():
    nodes = {"g": gate(default_target="end"), "x": tool(input_mapping={"p": "route"})}
    ways = graph({"f": fanout("g", "x", "g", aggregation_strategy="all"), **nodes}, ["start f", "f end", "g end"])

    assert run(ways, payload=MessagePayload(), tools=lambda _: ToolReply(output="")).payload.content == ""
    none = graph({"f": fanout("g", aggregation_strategy="all"), **nodes}, ["start f", "f end", "g end"])
    assert run(none, payload=MessagePayload()).payload.content is None


@pytest.mark.parametrize("name", ["all", "first_success", "best_score"])
def test_a_fanout_of_failures_fails_with_the_first_in_order(name):
    outcome = run(strategy(name, *"ab"), {"a": fails(30), "b": says(ms=40_000)}, failure_policy="skip_failed")
    assert (*told(outcome), outcome.elapsed_ns) == ("degraded", "MODEL_ERROR", "a", 30_000 * MS)


@pytest.mark.parametrize(
    ("name", "status"), [("all", "failed"), ("best_score", "failed"), ("first_success", "succeeded")]
)
def test_require_all_success_and_fail_fast_do_not_concern_first_success(name, status):
    replies = {"a": fails(5), "b": says(ms=20)}
    slow = run(strategy(name, *"ab", require_all_success=True), replies)
    assert (slow.status, slow.elapsed_ns) == (status, 20 * MS)

    fast = run(strategy(name, *"ab", fail_fast=True), replies)
    assert (fast.status, fast.elapsed_ns) == (status, 5 * MS if status == "failed" else 20 * MS)


def test_all_waits_for_every_target_though_one_would_do():
    outcome = run(strategy("best_score", *"ab"), {"a": says("A", 5, tokens=1), "b": says("B", 50, tokens=2)})
    assert (counts(outcome), outcome.elapsed_ns) == ((5, 5, 3), 50 * MS)


def scored(*scores):
    """Runs a fanout over tools that put {"q": score} into `structured`, which it gives; None puts nothing there."""
    replies = {f".{i}": ToolReply(output={} if score is None else {"q": score}) for i, score in enumerate(scores, 1)}
    ways = graph(
        {"f": fanout(*["x"] * len(scores), aggregation_strategy="best_score", score_field="q"), "x": tool()},
        ["start f", "f end"],
    )
    return lambda **more: run(ways, tools=lambda call: replies[call.branch], **more).payload.structured


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([1, 3, 2], {"q": 3}),
        ([None, -5], {"q": -5}),
        ([0.5, True, "9"], {"q": 0.5}),
        ([None, True], {}),
        ([2, 2.0], {"q": 2}),
    ],
)
def test_the_highest_number_wins_and_ties_go_to_target_order(scores, expected):
    found = scored(*scores)()
    assert (found, [type(it) for it in found.values()]) == (expected, [type(it) for it in expected.values()])


def test_scores_are_looked_for_in_the_metadata_first():
    found = scored(1, 3)(payload=MessagePayload(content="c", metadata={"q": 7}))
    assert found == {"q": 1}
    found = scored(1, 3)(payload=MessagePayload(content="c", metadata={"q": "7"}))
    assert found == {"q": 3}


def test_scores_are_also_what_was_measured_on_the_targets_message():
    ways = strategy("best_score", "a", "b", score_field="tokens_in")
    assert run(ways, {"a": says("A", tokens=1), "b": says("B", tokens=2)}).payload.content == "B"


def test_the_earliest_success_wins_and_the_rest_is_cancelled():
    outcome = run(
        strategy("first_success", *"abcd"),
        {"a": says("A", 30, tokens=1), "b": fails(5), "c": says("C", 20, tokens=2), "d": says("D", 21, tokens=4)},
    )
    assert (outcome.payload.content, outcome.elapsed_ns) == ("C", 20 * MS)
    assert (counts(outcome), exact(outcome)) == ((7, 7, 2), (True, True))


def test_after_a_failure_the_next_target_takes_its_turn_and_after_a_success_none():
    """a 0-5 fails, b 0-40, c 5-15 succeeds; d never starts."""
    outcome = run(
        strategy("first_success", *"abcd", max_parallel_branches=2),
        {"a": fails(5), "b": says("B", 40, tokens=1), "c": says("C", 10, tokens=2)},
    )
    assert (outcome.payload.content, outcome.elapsed_ns) == ("C", 15 * MS)
    assert (counts(outcome), exact(outcome)) == ((6, 6, 2), (True, True))


def test_one_after_another_the_first_success_leaves_the_rest_unstarted():
    outcome = run(strategy("first_success", *"abc", parallel=False), {"a": fails(5), "b": says("B", 0, tokens=1)})
    assert (outcome.payload.content, counts(outcome), exact(outcome)) == ("B", (5, 5, 1), (True, True))


def contents(outcomes):
    return sorted(outcome.payload.content for outcome in outcomes)


def test_of_several_successes_at_the_earliest_moment_any_may_win():
    outcomes = every(
        strategy("first_success", *"abcd"),
        {"a": says("A", 20, tokens=1), "b": says("B", 20, tokens=1), "c": says("C", 21), "d": fails(20)},
    )
    assert contents(outcomes) == ["A", "B"]
    assert {(outcome.steps, outcome.elapsed_ns, exact(outcome)) for outcome in outcomes} == {
        (7, 20 * MS, (True, False))
    }


def test_successes_of_one_moment_that_look_the_same_are_one_outcome():
    outcome = run(strategy("first_success", *"ab"), {"a": says("A"), "b": says("A")})
    assert (outcome.payload.content, counts(outcome), exact(outcome)) == ("A", (5, 5, 0), (True, True))


def test_winners_that_differ_only_in_tokens_make_them_inexact():
    outcome = run(strategy("first_success", *"ab"), {"a": says("A", tokens=3), "b": says("A")})
    assert (outcome.payload.content, outcome.steps, exact(outcome)) == ("A", 5, (True, False))


def test_a_loser_that_fails_as_another_one_wins_leaves_nothing_open():
    outcome = run(strategy("first_success", *"ab"), {"a": fails(10), "b": says("B", 10, tokens=3)})
    assert (outcome.payload.content, counts(outcome), exact(outcome)) == ("B", (5, 5, 3), (True, True))


def test_a_target_that_could_start_as_another_one_wins_makes_steps_inexact():
    """c could start at 10, when a fails and b succeeds."""
    outcome = run(strategy("first_success", *"abc", max_parallel_branches=2), {"a": fails(10), "b": says("B", 10)})
    assert (outcome.payload.content, exact(outcome)) == ("B", (False, False))


def test_a_target_that_starts_and_succeeds_at_the_earliest_moment_may_win_too():
    """c starts at 10, when a fails, and succeeds at once; b succeeds at 10."""
    outcomes = every(
        strategy("first_success", *"abc", max_parallel_branches=2),
        {"a": fails(10), "b": says("B", 10), "c": says("C", 0)},
    )
    assert contents(outcomes) == ["B", "C"]


def test_which_of_the_successes_wins_decides_the_way_on():
    ways = graph(
        {"f": fanout("a", "b", aggregation_strategy="first_success"), **THREE},
        ["start f", ("f c", "content == 'A'"), "f end", "c end"],
    )
    outcomes = every(ways, {"a": says("A"), "b": says("B")})
    assert sorted(outcome.visits[2:] for outcome in outcomes) == [("c", "end"), ("end",)]


def test_a_cancelled_loser_calls_anew_on_the_next_visit():
    """b is cut off in its second call at 20; the visits that follow number it on from there."""
    asked = []

    def reply(call):
        if call.node_id == "a":
            return says("A", 20)
        asked.append((call.number, call.at_ns // MS))
        return fails(15)

    nodes = {"b": model(retry_count=5, retry_delay_ms=0)}
    ways = graph(
        {"f": fanout("a", "b", aggregation_strategy="first_success"), "a": model(), **nodes},
        ["start f", "f f", ("f end", "False")],
        allow_cycles=True,
    )
    run(ways, reply, max_steps=7)
    assert asked == [(0, 0), (1, 15), (2, 20), (3, 35)]


# --- loops ---------------------------------------------------------------------------------------------


def loop(body="a", on_error=None, **config):
    return node("loop", on_error, body_node=body, **config)


def looping(replies=None, payload=None, nodes=None, variables=None, limits=None, **config):
    ways = graph({"l": loop(**config), "a": model(), **(nodes or {})}, ["start l", "l end"])
    return run(ways, replies, payload=payload, variables=variables, **(limits or {}))


def each(*replies):
    """What `a` says in each iteration of a loop that is visited; then the last again."""
    return {f"a.{number}": replies[min(number, len(replies)) - 1] for number in range(1, 11)}


def of_loop(outcome):
    result = outcome.payload.metadata["loop_result"]
    return result["termination"], result["iterations"], result["success_count"], result["failure_count"]


def test_a_loop_tells_of_each_iteration():
    outcome = looping(each(says("A", tokens=1), fails(), says("B")), fixed_count=3, continue_on_error=True)

    def good(number, output, tokens):
        metadata = {"model_used": "qwen2.5:3b", "tokens_in": tokens, "tokens_out": 0, "iteration": number}
        return {"iteration": number, "success": True, "output": output, "metadata": metadata, "error": None}

    error = untold("MODEL_ERROR", "a")
    failed = {"iteration": 2, "success": False, "output": None, "metadata": {}, "error": error}
    assert outcome.payload.metadata["loop_result"] == {
        "iterations": 3,
        "success_count": 2,
        "failure_count": 1,
        "success_rate": 2 / 3,
        "termination": "count",
        "results": [good(1, "A", 1), failed, good(3, "B", 0)],
    }
    assert (outcome.payload.content, outcome.payload.metadata["iteration"]) == ("B", 3)
    assert (counts(outcome), outcome.elapsed_ns) == ((6, 6, 1), 30 * MS)


ADDING = {"a": node("transform", transforms=[step("template", template="{content}{metadata.iteration}")])}


@pytest.mark.parametrize(
    ("config", "content", "termination"),
    [
        ({"fixed_count": 3}, "c123", "count"),
        ({"fixed_count": 2, "max_iterations": 2}, "c12", "count"),
        ({"max_iterations": 4}, "c1234", "count"),
        ({"condition_type": "until_success"}, "c1", "success"),
        ({"condition_type": "until_success", "max_iterations": 1}, "c1", "success"),
    ],
)
def test_each_iteration_receives_the_last_good_output_and_its_number(config, content, termination):
    outcome = looping(nodes=ADDING, **config)
    assert (outcome.payload.content, of_loop(outcome)[0]) == (content, termination)


CONDITIONS = [
    ("until_condition", "iteration == 2", 5, "c12", "condition"),
    ("until_condition", "True", 5, "c1", "condition"),
    ("until_condition", "iteration == 3", 3, "c123", "condition"),
    ("until_condition", "1 / 0", 3, "c123", "max_iterations"),
    ("until_condition", "content == 'c12'", 5, "c12", "condition"),
    ("until_condition", "metadata['iteration'] == 2", 5, "c12", "condition"),
    ("until_condition", "variables['n'] == iteration", 5, "c12", "condition"),
    ("until_condition", "success_count == 2 and failure_count == 0 and len(results) == 2", 5, "c12", "condition"),
    ("until_condition", "last_result['output'] == 'c12' and last_success is True", 5, "c12", "condition"),
    ("until_condition", "last_output == 'c12' and last_error is None", 5, "c12", "condition"),
    ("until_condition", "results[1]['iteration'] == 2", 5, "c12", "condition"),
    ("while_condition", "iteration < 2", 5, "c12", "condition"),
    ("while_condition", "iteration < 3", 3, "c123", "max_iterations"),
    ("while_condition", "iteration < 2", 2, "c12", "max_iterations"),
    ("while_condition", "1 / 0", 3, "c", "condition"),
    ("while_condition", "last_result != {} or last_success is not None", 3, "c", "condition"),
    ("while_condition", "last_result == {} and last_output is None and last_error is None", 3, "c1", "condition"),
]


@pytest.mark.parametrize(("kind", "condition", "most", "content", "termination"), CONDITIONS)
def test_until_is_asked_after_each_iteration_and_while_before(kind, condition, most, content, termination):
    outcome = looping(
        nodes=ADDING, condition_type=kind, condition_expression=condition, max_iterations=most, variables={"n": 2}
    )
    assert (outcome.payload.content, of_loop(outcome)[0]) == (content, termination)


def test_a_loop_that_begins_no_iteration_succeeds_with_what_it_received():
    payload = MessagePayload(content="c", error=AN_ERROR)
    outcome = looping(payload=payload, condition_type="while_condition", condition_expression="False")

    expected = {"iterations": 0, "success_count": 0, "failure_count": 0, "success_rate": 0}
    assert outcome.payload.metadata["loop_result"] == {**expected, "termination": "condition", "results": []}
    assert (outcome.payload.error, "iteration" in outcome.payload.metadata) == (None, False)


def test_a_failed_iteration_fails_the_loop():
    outcome = looping(each(says("A", 5), fails(7), says("B")), fixed_count=3)
    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "MODEL_ERROR", "a", 12 * MS)


@pytest.mark.parametrize("kind", ["until_condition", "while_condition", "fixed_count"])
def test_a_loop_goes_on_after_failures_if_it_may(kind):
    config = {} if kind == "fixed_count" else {"condition_expression": f"(iteration == 2) == {kind[0] == 'u'}"}
    outcome = looping(
        each(fails(1), says("A", 1)), condition_type=kind, continue_on_error=True, max_iterations=2, **config
    )
    assert (outcome.payload.content, of_loop(outcome)[1:]) == ("A", (2, 1, 1))


def test_until_success_goes_on_after_failures_by_itself():
    outcome = looping(each(fails(1), fails(2), says("A", 4)), condition_type="until_success")
    assert (of_loop(outcome), outcome.elapsed_ns) == (("success", 3, 1, 2), 7 * MS)


@pytest.mark.parametrize(
    ("config", "asked"),
    [
        ({"condition_type": "until_success", "max_iterations": 3}, 3),
        ({"fixed_count": 2, "continue_on_error": True}, 2),
        ({"condition_type": "until_condition", "condition_expression": "True", "continue_on_error": True}, 1),
        ({"condition_type": "while_condition", "condition_expression": "iteration < 1", "continue_on_error": True}, 1),
    ],
)
def test_a_loop_without_a_success_fails_with_the_last_iterations_error(config, asked):
    replies = [fails(1), fails(1, recoverable=False), fails(1)][:asked]
    outcome = looping(each(*replies), **config)

    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "MODEL_ERROR", "a", asked * MS)
    assert "loop_result" not in outcome.payload.metadata


def test_after_a_failure_the_last_good_output_is_received_again():
    fallible = {"a": model(prompt_template="{metadata.iteration}")}
    ways = {"l": loop(fixed_count=3, continue_on_error=True), **fallible}
    told_of = graph(
        {
            **ways,
            "g": gate(("x", "content == 'A'", "end"), default_target="bad"),
            "bad": node("exit", status="failure"),
        },
        ["start l", "l g"],
    )
    outcome = run(told_of, each(says("A"), fails()))
    assert (outcome.status, outcome.payload.metadata["iteration"]) == ("succeeded", 1)


@pytest.mark.parametrize(("ms", "expected"), [(33, ("count", 3, 3, 0)), (34, ("timeout", 2, 2, 0))])
def test_a_loop_that_reaches_its_limit_succeeds_if_an_iteration_did(ms, expected):
    """Three iterations of 33 end before 100; the third one of 34 would end at the limit of 102."""
    outcome = looping({"a": says("A", ms)}, fixed_count=3, timeout_ms=100 if ms == 33 else 102)
    assert of_loop(outcome) == expected
    assert outcome.elapsed_ns == 3 * ms * MS
    assert outcome.attempts == 1 + 1 + 3 + 1


def test_a_loop_that_reaches_its_limit_without_a_success_fails():
    cut = looping({"a": says(ms=100)}, timeout_ms=100)
    assert (*told(cut), cut.elapsed_ns) == ("failed", "TIMEOUT", "l", 100 * MS)

    failed = looping(each(fails(10), says(ms=500)), timeout_ms=100, continue_on_error=True)
    assert (*told(failed), failed.elapsed_ns) == ("failed", "MODEL_ERROR", "a", 100 * MS)


def test_the_limit_of_a_loop_bounds_an_attempt_of_it():
    outcome = looping(
        {"a": [says(ms=100), says("A", 60)]}, timeout_ms=100, retry_count=1, retry_delay_ms=5, fixed_count=1
    )
    assert (outcome.status, outcome.elapsed_ns, outcome.attempts) == ("succeeded", 165 * MS, 6)


def test_the_runs_deadline_wins_against_a_loops():
    outcome = looping({"a": says("A", 60)}, timeout_ms=100, limits={"timeout_ms": 100})
    assert (*told(outcome), outcome.elapsed_ns) == ("timed_out", "TIMEOUT", "l", 100 * MS)


def test_retries_of_a_body_are_no_iterations():
    replies = {"a.1": [fails(10), says("A", 10)], "a.2": says("B", 10)}
    outcome = looping(replies, nodes={"a": model(retry_count=1, retry_delay_ms=0)}, fixed_count=2)
    assert (of_loop(outcome), outcome.attempts) == (("count", 2, 2, 0), 6)


def test_each_iteration_has_a_path_of_its_own():
    asked = []

    def reply(call):
        asked.append((call.branch, call.number))
        return says()

    nodes = {"l": loop("f", fixed_count=2), "f": fanout("a", "a"), "a": model()}
    run(graph(nodes, ["start l", "l end"]), reply)
    assert asked == [(".1.1", 0), (".1.2", 0), (".2.1", 0), (".2.2", 0)]


def test_a_way_that_the_body_names_is_dropped():
    nodes = {"g": gate(("x", "True", "start"), default_target="end")}
    assert looping(nodes=nodes, body="g", fixed_count=1).visits == ("start", "l", "end")


def test_what_a_loop_received_from_another_one_is_not_repeated_in_its_results():
    two = graph({"k": loop(fixed_count=1), "l": loop("b", fixed_count=1), **TWO}, ["start k", "k l", "l end"])
    results = run(two).payload.metadata["loop_result"]["results"]
    assert "loop_result" not in results[0]["metadata"]

    nested = looping(nodes={"k": loop("b", fixed_count=2), "b": model()}, body="k", fixed_count=1)
    [inner] = nested.payload.metadata["loop_result"]["results"]
    assert inner["metadata"]["loop_result"]["iterations"] == 2


def test_a_loops_condition_sees_what_was_measured_on_its_input_but_the_body_does_not():
    condition = {"condition_type": "while_condition", "condition_expression": "metadata.get('tokens_in') == 3"}
    nodes = {"m": model(), "l": loop(max_iterations=2, **condition), "a": node("transform")}
    outcome = run(graph(nodes, ["start m", "m l", "l end"]), {"m": says(tokens=3)})
    assert of_loop(outcome) == ("condition", 1, 1, 0)

    inner = {"m": model(), "l": loop(fixed_count=1), "a": model(prompt_template="{metadata.tokens_in}")}
    outcome = run(graph(inner, ["start m", "m l", "l end"]))
    assert told(outcome) == ("failed", "VALIDATION_ERROR", "a")


# --- timeouts ------------------------------------------------------------------------------------------


def timeout(inner="a", on_error=None, **config):
    return node("timeout", on_error, **{"inner_node": inner, "timeout_ms": 50, **config})


def timed(replies=None, payload=None, nodes=None, limits=None, **config):
    ways = graph({"w": timeout(**config), "a": model(), **(nodes or {})}, ["start w", "w end"])
    return run(ways, replies, payload=payload, **(limits or {}))


@pytest.mark.parametrize(("ms", "status"), [(49, "succeeded"), (50, "failed")])
def test_a_timeout_bounds_the_step_inside_it(ms, status):
    outcome = timed({"a": says("A", ms, tokens=1)})

    assert (outcome.status, outcome.error_node, outcome.elapsed_ns) == (status, "w" if ms == 50 else None, ms * MS)
    assert counts(outcome) == ((4, 4, 1) if ms == 49 else (3, 3, 0))


def test_a_timeout_passes_on_payload_and_failure():
    outcome = timed({"a": says("A")})
    assert outcome.payload.metadata == {"exit_status": "success", "exit_message": None}
    assert told(timed({"a": fails()}, on_timeout="skip")) == ("failed", "MODEL_ERROR", "a")


def test_what_a_timeout_passes_on_has_no_measurements():
    nodes = {"w": timeout(), "a": model(), "b": model()}
    ways = graph(nodes, ["start w", ("w b", "metadata.get('model_used')"), "w end", "b end"])
    assert run(ways).visits == ("start", "w", "end")


def test_an_unrecoverable_failure_inside_is_not_retried_by_the_timeout():
    outcome = timed({"a": fails(5, recoverable=False)}, retry_count=3)
    assert outcome.attempts == 3


@pytest.mark.parametrize(
    ("config", "content", "metadata"),
    [
        ({"on_timeout": "skip"}, "c", {"timeout": {"timed_out": True, "action": "skip"}}),
        ({"on_timeout": "skip", "propagate_metadata": False}, "c", {}),
        (
            {"on_timeout": "fallback", "fallback_response": "F"},
            "F",
            {"fallback": True, "timeout": {"timed_out": True, "action": "fallback"}},
        ),
        ({"on_timeout": "fallback", "fallback_response": "F", "propagate_metadata": False}, "F", {"fallback": True}),
    ],
)
def test_when_the_time_is_up_a_timeout_may_succeed(config, content, metadata):
    payload = MessagePayload(content="c", metadata={"m": 1}, error=AN_ERROR)
    outcome = timed({"a": says("A", 99)}, payload=payload, **config)

    assert (told(outcome), outcome.elapsed_ns) == (("succeeded", None, None), 50 * MS)
    exit_keys = {"exit_status": "success", "exit_message": None}
    assert (outcome.payload.content, outcome.payload.metadata) == (content, {"m": 1, **metadata, **exit_keys})
    assert outcome.payload.error is None


def test_the_action_follows_the_last_attempt_only():
    outcome = timed({"a": [says(ms=99), says("A", 10)]}, on_timeout="skip", retry_count=1, retry_delay_ms=5)
    assert (outcome.payload.content, outcome.elapsed_ns) == ("A", 65 * MS)

    outcome = timed({"a": says(ms=99)}, on_timeout="skip", retry_count=1, retry_delay_ms=5)
    assert (outcome.payload.content, outcome.elapsed_ns, outcome.attempts) == ("c", 105 * MS, 6)

    outcome = timed({"a": [says(ms=99), fails(10)]}, on_timeout="skip", retry_count=1, retry_delay_ms=5)
    assert told(outcome) == ("failed", "MODEL_ERROR", "a")


def test_a_timeout_of_the_inner_node_counts_as_well():
    nodes = {"a": model(timeout_ms=20)}
    assert timed({"a": says(ms=99)}, nodes=nodes, on_timeout="skip").elapsed_ns == 20 * MS
    assert told(timed({"a": says(ms=99)}, nodes=nodes)) == ("failed", "TIMEOUT", "a")


def test_an_outer_timeout_wins_against_an_inner_one_at_one_moment():
    nodes = {"v": timeout(on_timeout="fallback", fallback_response="V")}
    outcome = timed({"a": says(ms=99)}, nodes=nodes, inner="v", on_timeout="skip")
    assert (outcome.payload.content, outcome.elapsed_ns) == ("c", 50 * MS)

    nodes = {"v": timeout(on_timeout="fallback", fallback_response="V", timeout_ms=49)}
    outcome = timed({"a": says(ms=99)}, nodes=nodes, inner="v", on_timeout="skip")
    assert (outcome.payload.content, outcome.elapsed_ns) == ("V", 49 * MS)


def test_an_outer_deadline_leaves_a_timeout_no_action():
    target = voting("w", nodes={"w": timeout(on_timeout="skip", timeout_ms=20), "a": model()}, timeout_ms=20)
    assert told(run(target, {"a": says(ms=99)})) == ("failed", "TIMEOUT", "w")

    outcome = timed({"a": says(ms=99)}, on_timeout="skip", limits={"timeout_ms": 50})
    assert told(outcome) == ("timed_out", "TIMEOUT", "w")


@pytest.mark.parametrize("inner", ["g", "r", "v"])
def test_a_timeout_passes_on_the_way_that_its_inner_node_names(inner):
    nodes = {
        "w": timeout(inner),
        "v": timeout("g"),
        "g": gate(("x", "True", "b")),
        "r": router(route("x", "b", condition="True"), mode="rules"),
        "b": model(),
    }
    ways = graph(nodes, ["start w", ("w end", "False"), "b end"])
    assert run(ways).visits == ("start", "w", "b", "end")


def test_a_timeout_that_skips_goes_on_by_its_edges():
    nodes = {"w": timeout("g", on_timeout="skip"), "g": gate(("x", "?", "b"), mode="llm"), "b": model()}
    assert run(graph(nodes, ["start w", "w end", "b end"]), {"g": says("x", 99)}).visits == ("start", "w", "end")


def test_a_timeouts_inner_step_has_its_own_path():
    asked = []

    def reply(call):
        asked.append((call.node_id, call.branch))
        return says()

    run(voting("w", "a", nodes={"w": timeout()}), reply)
    assert asked == [("a", ".1"), ("a", ".2")]

    waits = timed(
        {"a": [fails(0), says(ms=0)]}, nodes={"a": model(retry_count=1, retry_backoff="exponential")}, timeout_ms=9999
    )
    assert waits.elapsed_ns == round(1_000 * (0.5 + random.Random(f"{SEED}:2").random() / 2) * MS)


# --- nesting -------------------------------------------------------------------------------------------


def test_a_limit_inside_a_loop_inside_a_fanout_is_that_of_the_nearest():
    """The body takes 30: two iterations fit in the loop's 70, which ends before the timeout's 80."""
    nodes = {"w": timeout("l", timeout_ms=80), "l": loop(timeout_ms=70, fixed_count=9), "a": model()}
    outcome = run(strategy("first_success", "w", nodes=nodes), {"a": says("A", 30)})
    assert (of_loop(outcome), outcome.elapsed_ns) == (("timeout", 2, 2, 0), 70 * MS)

    nodes["w"] = timeout("l", timeout_ms=70)
    outcome = run(strategy("first_success", "w", nodes=nodes), {"a": says("A", 30)})
    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "TIMEOUT", "w", 70 * MS)


@pytest.mark.parametrize("wrapper", [timeout, loop, fanout])
def test_wrappers_nest_64_levels_deep(wrapper):
    more: dict[str, Any] = {"timeout_ms": 1_000} | ({"fixed_count": 1} if wrapper is loop else {})
    more |= {"aggregation_strategy": "first_success"} if wrapper is fanout else {}
    nodes = {f"w{i}": wrapper(f"w{i + 1}", **more) for i in range(64)} | {"w64": node("transform")}
    outcome = run(graph(nodes, ["start w0", "w0 end"]), max_steps=70)

    if wrapper is loop:
        assert told(outcome) == ("failed", "VALIDATION_ERROR", outcome.error_node)
    else:
        assert (outcome.status, outcome.steps) == ("succeeded", 67)


def test_max_steps_ends_the_run_inside_whatever_wraps_the_step():
    nodes = {"w": timeout("l", on_timeout="skip"), "l": loop(continue_on_error=True), "a": model()}
    outcome = run(graph({"f": fanout("w"), **nodes}, ["start f", "f end"]), {"a": says("A", 5, tokens=1)}, max_steps=6)

    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "BOUNDS_EXCEEDED", "f", 10 * MS)
    assert (counts(outcome), outcome.payload.content) == ((6, 6, 2), "c")


def test_a_retried_timeout_runs_its_loop_anew():
    """30 + 30 and cut at 50; then again the same."""
    outcome = timed({"a": says("A", 30)}, nodes={"l": loop()}, inner="l", retry_count=1, retry_delay_ms=1)
    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "TIMEOUT", "w", 101 * MS)
    assert (outcome.steps, outcome.attempts) == (2 + 2 * 3, 2 + 1 + 2 * 3)


# --- limits: tokens and messages -----------------------------------------------------------------------


@pytest.mark.parametrize(("most", "visits"), [(4, ("start", "a")), (5, ("start", "a", "b")), (9, ("start", "a", "b"))])
def test_the_step_that_crosses_max_tokens_is_the_last(most, visits):
    ways = graph(TWO, ["start a", "a b", "b end"])
    outcome = run(ways, {"a": says("A", 3, tokens=5), "b": says("B", 4, tokens=5)}, max_tokens=most)

    assert (told(outcome), outcome.visits) == (("failed", "BOUNDS_EXCEEDED", visits[-1]), visits)
    assert counts(outcome) == (len(visits), len(visits), 5 * (len(visits) - 1))
    assert outcome.elapsed_ns == (3 if len(visits) == 2 else 7) * MS


def test_as_many_tokens_as_allowed_are_no_crossing():
    assert run(line(), {"a": says(tokens=5)}, max_tokens=5).status == "succeeded"


def test_no_policy_and_no_wrapper_absorbs_the_token_limit():
    nodes = {"w": timeout("l", on_timeout="skip"), "l": loop(continue_on_error=True), "a": model("end")}
    ways = graph({"f": fanout("w", on_error="end"), **nodes}, ["start f", "f end"])
    outcome = run(ways, {"a": says("A", 5, tokens=2)}, max_tokens=5, failure_policy="skip_failed")

    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "BOUNDS_EXCEEDED", "f", 15 * MS)
    assert (counts(outcome), outcome.payload.content) == ((7, 7, 6), "c")


def test_a_failed_step_can_cross_the_limit_too_but_only_as_it_ends():
    """The bad answers of three attempts count 2 each; the limit of 3 is met when the step ends, at 30."""
    outcome = asked_for_tokens(3)
    assert (*told(outcome), outcome.elapsed_ns, counts(outcome)) == (
        "failed",
        "BOUNDS_EXCEEDED",
        "a",
        30 * MS,
        (2, 4, 6),
    )
    assert asked_for_tokens(6).error_code == "MODEL_ERROR"


def asked_for_tokens(most):
    ways = line(response_schema=SCHEMA, repair_attempts=0, retry_count=2, retry_delay_ms=0)
    return run(ways, {"a": says("no", tokens=2)}, max_tokens=most)


def test_tokens_of_targets_count_as_each_ends():
    """a ends at 5 with 3, b at 10 with 3: 6 are too many; c runs on until then."""
    replies = {"a": says(ms=5, tokens=3), "b": says(ms=10, tokens=3), "c": says(ms=20, tokens=3)}
    outcome = run(voting(*"abc"), replies, max_tokens=5)
    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "BOUNDS_EXCEEDED", "f", 10 * MS)
    assert (counts(outcome), exact(outcome)) == ((5, 5, 6), (True, True))


def test_two_that_cross_the_limit_together_end_the_run_then():
    outcome = run(voting(*"ab"), {"a": says(ms=5, tokens=3), "b": says(ms=5, tokens=3)}, max_tokens=5)
    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "BOUNDS_EXCEEDED", "f", 5 * MS)


def test_tokens_that_may_or_may_not_count_and_decide_are_refused():
    """b may have answered as a wins, at 10: then 8 tokens were used, else 4."""
    ways = strategy("first_success", *"ab")
    replies = {"a": says("A", 10, tokens=4), "b": says("A", 10, tokens=4)}
    with pytest.raises(TooManyOutcomesError, match="max_tokens"):
        every(ways, replies, max_tokens=7)
    assert run(ways, replies, max_tokens=8).status == "succeeded"
    longer = graph({"f": fanout("a", "b", aggregation_strategy="first_success"), **THREE}, ["start f", "f c", "c end"])
    with pytest.raises(TooManyOutcomesError, match="max_tokens"):
        every(longer, {**replies, "c": says(tokens=3)}, max_tokens=8)
    assert run(ways, replies, max_tokens=3).error_code == "BOUNDS_EXCEEDED"


def test_the_deadline_wins_against_the_token_limit():
    ways = line(response_schema=SCHEMA, repair_attempts=9)
    assert run(ways, {"a": says("no", 30, tokens=5)}, max_tokens=1, timeout_ms=100).status == "timed_out"


@pytest.mark.parametrize(
    ("config", "visits"),
    [
        ({"max_messages": 1}, ("start",)),
        ({"max_messages": 2}, ("start", "a")),
        ({"max_messages": 3}, ("start", "a", "end")),
        ({"max_messages": 2, "prune": True}, ("start", "a", "end")),
        ({"max_messages": 1, "prune": True}, ("start",)),
    ],
)
def test_more_messages_than_allowed_end_the_run_before_the_next_visit(config, visits):
    outcome = run(line(), {"a": fails()}, failure_policy="skip_failed", **config)

    assert outcome.visits == visits
    after = {"start": "a", "a": "end"}.get(visits[-1])
    assert outcome.error_code == ("BOUNDS_EXCEEDED" if after else "MODEL_ERROR")
    assert outcome.error_node == (after or "a")


def test_bytes_of_messages_and_custom_nodes_cannot_be_interpreted():
    with pytest.raises(UsageError, match="max_message_bytes"):
        run(line(), max_message_bytes=10**9)
    with custom_type("echo.reference", NodeConfig), pytest.raises(UsageError, match="custom"):
        run(graph({"x": node("echo.reference")}, ["start x", "x end"]))


@contextmanager
def custom_type(name, config):
    add_custom_config(name, config)
    try:
        yield
    finally:
        remove_custom_config(name)


# --- circuit breakers ----------------------------------------------------------------------------------


def cycling(replies, steps, nodes=None, breaker=None, **config):
    """start -> a -> a -> ... with a model `a` whose failures come back to it; and when it was asked, in ms."""
    asked = []

    def reply(call):
        asked.append(call.at_ns // MS)
        return replies[min(call.number, len(replies) - 1)]

    nodes = {"a": model("p", **config), "p": tool(), **(nodes or {})}
    ways = graph(nodes, ["start a", "a p", "p a", ("p end", "False")], allow_cycles=True)

    def pause(_):
        return ToolReply(duration_ns=10 * MS)

    outcome = run(ways, reply, tools=pause, max_steps=steps, breaker=breaker or {"threshold": 2, "cooldown_s": 0.05})
    return outcome, asked


BAD, GOOD, FATAL = fails(0), says("A", 0), fails(0, recoverable=False)

#: The visits of `a` come 10 ms apart: at 0, 10, 20, ...
BREAKING = [
    ([BAD], [0, 10, 60, 110]),
    ([BAD, GOOD, BAD, BAD], [0, 10, 20, 30, 80]),
    ([BAD, FATAL, BAD], [0, 10, 20, 70]),
    ([FATAL], [*range(0, 120, 10)]),
    ([BAD, BAD, GOOD, BAD, GOOD], [0, 10, *range(60, 120, 10)]),
    ([BAD, BAD, FATAL, BAD, BAD], [0, 10, 60, 70]),
    ([BAD, BAD, GOOD, BAD, BAD], [0, 10, 60, 70, 80]),
]


@pytest.mark.parametrize(("replies", "expected"), BREAKING)
def test_failures_in_a_row_open_a_breaker_until_a_probe_succeeds(replies, expected):
    _, asked = cycling(replies, 1 + 2 * 12)
    assert asked == expected


def test_a_step_that_a_breaker_fails_is_a_step_without_an_attempt():
    """Twelve visits of a and p each; a is asked at 0, 10, 60 and 110."""
    outcome, _ = cycling([BAD], 25)
    assert (outcome.steps, outcome.attempts) == (25, 1 + 12 + 4)


def test_a_breaker_counts_steps_not_attempts():
    """Each step fails after two attempts: at 0 and 1, at 11 and 12, when it opens."""
    _, asked = cycling([BAD], 7, retry_count=1, retry_delay_ms=1)
    assert asked == [0, 1, 11, 12]


def test_circuit_open_is_never_recoverable_and_names_the_node():
    nodes = {"a": model(retry_count=3, retry_delay_ms=0), "b": model(retry_count=3)}
    outcome = run(
        graph({**nodes, "a": model("b")}, ["start a", "a b", "b end"]),
        {"a": fails(5), "b": says()},
        breaker={"threshold": 1},
    )
    assert (*told(outcome), outcome.elapsed_ns, counts(outcome)) == ("failed", "CIRCUIT_OPEN", "b", 5 * MS, (3, 2, 0))


@pytest.mark.parametrize(
    ("b", "code"),
    [
        (model(), "CIRCUIT_OPEN"),
        (model(model="other"), None),
        (model(model="other", fallback_models=["qwen2.5:3b"]), None),
        (gate(("x", "?", "end"), mode="llm", model="qwen2.5:3b"), "CIRCUIT_OPEN"),
        (gate(("x", "False", "end"), mode="hybrid", model="qwen2.5:3b"), None),
        (router(route("x", "end"), model="qwen2.5:3b"), "CIRCUIT_OPEN"),
        (router(route("x", "end", keywords=["c"]), mode="keywords", model="qwen2.5:3b"), None),
        (tool(tool_id="qwen2.5:3b"), None),
        (node("transform"), None),
    ],
)
def test_a_breaker_is_that_of_a_model(b, code):
    ways = graph({"a": model("b"), "b": b}, ["start a", "a b", "b end"])
    outcome = run(ways, {"a": fails(), "b": says("x")}, breaker={"threshold": 1}, tools=lambda _: ToolReply())
    assert outcome.error_code == code


def test_a_tool_has_a_breaker_too():
    ways = graph({"x": tool("y"), "y": tool()}, ["start x", "x y", "y end"])
    reply = ToolReply(error_code=ErrorCode.TOOL_ERROR)
    assert told(run(ways, tools=lambda _: reply, breaker={"threshold": 1})) == ("failed", "CIRCUIT_OPEN", "y")
    assert told(run(ways, tools=lambda _: reply)) == ("failed", "TOOL_ERROR", "y")


def test_what_a_timeout_cuts_off_changes_nothing_for_the_breaker():
    nodes = {"w": timeout(retry_count=2, retry_delay_ms=0), "a": model()}
    outcome = run(graph(nodes, ["start w", "w end"]), {"a": says(ms=99)}, breaker={"threshold": 1})
    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "TIMEOUT", "w", 150 * MS)


def test_a_target_that_runs_out_of_time_counts_as_a_failure():
    ways = voting("a", "a", nodes={}, parallel=False, timeout_ms=20)
    outcome = run(ways, {"a": says(ms=99)}, breaker={"threshold": 1})
    assert (*told(outcome), outcome.elapsed_ns, outcome.attempts) == ("failed", "TIMEOUT", "a", 20 * MS, 3)


def test_steps_begun_before_a_breaker_opened_change_nothing():
    """a fails at 10 and opens it; b succeeds at 20; c, of the same model, is failed at 30."""
    nodes = {"c": model(), "t": node("transform")}
    replies = {"a": fails(10), "b": says("B", 20)}
    ways = graph({"f": fanout("a", "b", quorum=1), **TWO, **nodes}, ["start f", "f c", "c end"])
    outcome = run(ways, replies, breaker={"threshold": 1, "cooldown_s": 1})
    assert (*told(outcome), outcome.elapsed_ns) == ("failed", "CIRCUIT_OPEN", "c", 20 * MS)


def test_a_step_begun_before_a_breaker_opened_changes_nothing_after_it_has_closed():
    """b opens it at 1 and, as a probe at 26, closes it; at 100 a fails, which began at 0."""
    nodes = {
        "f": fanout("a", "l", aggregation_strategy="all"),
        "l": loop("i", fixed_count=2),
        "i": fanout("b", "x", aggregation_strategy="all", parallel=False),
        "x": tool(),
        "c": model(),
    }
    outcome = run(
        graph({**nodes, **TWO}, ["start f", "f c", "c end"]),
        {"a": fails(100), "b.2.1.1": fails(1), "b.2.2.1": says("B", 0)},
        tools=lambda _: ToolReply(duration_ns=25 * MS),
        breaker={"threshold": 1, "cooldown_s": 0.02},
    )
    assert (outcome.status, outcome.elapsed_ns) == ("succeeded", 110 * MS)


def test_targets_beside_each_other_see_what_a_breaker_saw_of_the_others():
    """a fails at 10, which opens it; the loop beside begins its second iteration at 15."""
    nodes = {"l": loop("b", continue_on_error=True, fixed_count=3), "b": model()}
    outcome = run(
        strategy("all", "a", "l", nodes=nodes), {"a": fails(10), "b": says("B", 15)}, breaker={"threshold": 1}
    )
    assert [it["error"] and it["error"]["code"] for it in results_of(outcome)] == ["MODEL_ERROR", None]
    assert (counts(outcome), outcome.elapsed_ns) == ((1 + 1 + 2 + 3 + 1, 1 + 1 + 2 + 1 + 1, 0), 15 * MS)


def results_of(outcome):
    return outcome.payload.structured["results"]


def test_of_targets_that_begin_together_the_first_is_the_probe():
    """b fails at 0 and opens it; at 20, after x, it may be probed: by the first target only."""
    nodes = {"b": model("x"), "x": tool(), "f": fanout("a", "a", "a", aggregation_strategy="all"), "a": model()}
    outcome = run(
        graph(nodes, ["start b", "b x", "x f", "f end"]),
        {"b": fails(0), "a": says("A", 5)},
        tools=lambda _: ToolReply(duration_ns=20 * MS),
        breaker={"threshold": 1, "cooldown_s": 0.02},
    )
    codes = [it["error"] and it["error"]["code"] for it in results_of(outcome)]
    assert (codes, outcome.elapsed_ns) == ([None, "CIRCUIT_OPEN", "CIRCUIT_OPEN"], 25 * MS)


def test_a_probe_that_is_cancelled_leaves_the_next_step_to_be_one():
    """b opens it at 0. At 20 the first target is the probe, cut off at 25 as x2 wins; c is let through at 25."""
    nodes = {
        "b": model("x"),
        "x": tool(),
        "f": fanout("a", "x2", aggregation_strategy="first_success"),
        "a": model(),
        "x2": tool(tool_id="t2"),
        "c": model(),
    }
    outcome = run(
        graph(nodes, ["start b", "b x", "x f", "f c", "c end"]),
        {"b": fails(0), "a": says("A", 50)},
        tools=lambda call: ToolReply(duration_ns=(20 if call.node_id == "x" else 5) * MS),
        breaker={"threshold": 1, "cooldown_s": 0.02},
    )
    assert (outcome.status, outcome.visits[-2:], outcome.elapsed_ns) == ("succeeded", ("c", "end"), 35 * MS)


def test_a_target_that_begins_as_a_breaker_opens_may_be_let_through_or_not():
    """At 10 a fails, which opens it, and x, in the other slot, ends: b begins in either's place."""
    nodes = {"x": tool()}
    ways = strategy("all", "a", "x", "b", nodes=nodes, max_parallel_branches=2)
    outcomes = every(
        ways,
        {"a": fails(10), "b": says("B")},
        tools=lambda _: ToolReply(duration_ns=10 * MS, output="X"),
        breaker={"threshold": 1},
    )
    assert contents(outcomes) == ["X", "X\n\nB"]


def test_a_failure_that_is_told_was_seen_by_its_breaker():
    """a, or the tool x, ends the fanout at 10; if a did, c, of the same model, is not let through."""
    nodes = {"f": fanout("a", "x", fail_fast=True, on_error="g"), "x": tool(), "c": model()}
    judge = gate(("a", "error['node_id'] == 'a'", "c"), default_target="end")
    outcomes = every(
        graph({**nodes, "a": model(), "g": judge}, ["start f", "f end", "c end"]),
        {"a": fails(10)},
        tools=lambda _: ToolReply(duration_ns=10 * MS, error_code=ErrorCode.TOOL_ERROR),
        breaker={"threshold": 1},
    )
    assert sorted(outcome.visits[3:] for outcome in outcomes) == [("c",), ("end",)]
    assert {outcome.error_code for outcome in outcomes} == {"CIRCUIT_OPEN", None}


def test_a_breaker_may_or_may_not_have_seen_a_failure_of_the_moment_that_is_not_told():
    """The tool x ends the fanout at 10, when a may have failed; c asks the model of a."""
    nodes = {"f": fanout("a", "x", fail_fast=True, on_error="c"), "x": tool(), "a": model(), "c": model()}
    outcomes = every(
        graph(nodes, ["start f", "f end", "c end"]),
        {"a": fails(10)},
        tools=lambda _: ToolReply(duration_ns=10 * MS, error_code=ErrorCode.TOOL_ERROR),
        breaker={"threshold": 1},
    )
    assert {outcome.error_code for outcome in outcomes} == {"CIRCUIT_OPEN", None}


def test_a_success_may_have_come_before_the_failure_that_ended_a_fanout():
    """m fails once; then a fails as b succeeds. Unless b came between, that opens it, and the retry is refused."""
    nodes = {"m": model("f"), "f": fanout("a", "b", "a", fail_fast=True, retry_count=1, retry_delay_ms=0)}
    outcomes = every(
        graph({**nodes, **TWO}, ["start m", "m f", "f end"]),
        {"m": fails(5), "a": [fails(5), says()], "b": says(ms=5), "a.3": says(ms=9)},
        breaker={"threshold": 2},
    )
    assert {(it.error_code, it.elapsed_ns) for it in outcomes} == {(None, 20 * MS), ("CIRCUIT_OPEN", 10 * MS)}


def test_what_a_target_did_at_one_moment_keeps_its_order():
    """At 0 b fails and succeeds in a loop, and c fails for good beside it; d's failure is then the first in a row."""
    nodes = {
        "f": fanout("l", "c", aggregation_strategy="all"),
        "l": loop("b", condition_type="until_success"),
        "b": model(),
        "c": model(),
        "d": model("e"),
        "e": model(),
    }
    outcome = run(
        graph(nodes, ["start f", "f d", "d end", "e end"]),
        {"b.1.1": fails(0), "b.1.2": says(ms=0), "c": fails(0, recoverable=False), "d": fails(0)},
        breaker={"threshold": 2},
    )
    assert outcome.visits == ("start", "f", "d", "e", "end")
    assert outcome.status == "succeeded"


def test_one_after_another_a_target_sees_what_those_before_it_did():
    ways = strategy("all", *"abc", parallel=False, require_all_success=False)
    outcome = run(ways, {"a": says("A", 0), "b": fails(0)}, breaker={"threshold": 1})
    assert [it["error"] and it["error"]["code"] for it in results_of(outcome)] == [None, "MODEL_ERROR", "CIRCUIT_OPEN"]


def test_what_happens_at_one_moment_in_a_breaker_matters_only_if_it_is_asked():
    outcome = run(voting(*"abcdefgh", quorum=1), {"a": fails(), "b": fails()}, breaker={"threshold": 2})
    assert outcome.status == "succeeded"
