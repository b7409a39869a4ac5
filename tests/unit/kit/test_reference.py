"""Worked examples of docs/semantics.md, by hand, for the reference interpreter.

A graph is written as its nodes and its edges ("a b" or ("a b", condition, priority)); `start` and `end` are there
unless said otherwise. A script gives each caller, a node or a node on a branch ("a.2"), its replies in order; the
last one repeats, and callers that are not named say "ok" after 10 ms.
"""

import random
from collections.abc import Mapping

import pytest

from tinyllm.config import ExecutorConfig
from tinyllm.errors import ErrorCode, GraphConfigError, UsageError
from tinyllm.graph import build_graph, parse_graph
from tinyllm.message import ErrorInfo, MessagePayload
from tinyllm.testing.reference import Outcome, Reply, Script, TooManyOutcomesError, interpret

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
    return node("fanout", on_error, target_nodes=list(targets), aggregation_strategy="majority_vote", **config)


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


def every(graph, replies=None, payload=None, entry=None, variables=None, **config):
    payload = MessagePayload(task="t", content="c") if payload is None else payload
    asked = replies if callable(replies) else script(replies or {})
    settings = ExecutorConfig(**config)
    return interpret(graph, settings, payload, asked, seed=SEED, entry=entry, variables=variables)


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


def test_node_types_that_are_not_built_are_refused_when_the_graph_is_loaded():
    with pytest.raises(GraphConfigError):
        graph({"x": node("loop")}, ["start x", "x end"])
