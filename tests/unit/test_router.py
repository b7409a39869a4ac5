"""The router: which way an answer, a rule or a keyword means, and what is published of it."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import ScriptedModel
from tests.support.runs import a_graph, a_message, an_executor, code, count, events, go, node, run_clean, visited
from tinyllm.config import NodeDefinition
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, ModelError, NodeError
from tinyllm.executor import Executor
from tinyllm.message import Message, NodeResult, TaskPayload
from tinyllm.nodes import make_node
from tinyllm.trace import EventKind

pytestmark = pytest.mark.unit

Published = tuple[list[str], str | None, list[str], bool]


def route(name: str, **more: Any) -> dict[str, Any]:
    """A route to `to_<name>`, in small letters."""
    return {"name": name, "target": f"to_{re.sub('[^a-z]', '', name.lower())}", **more}


def compound(target: str, *domains: str, priority: int = 0) -> dict[str, Any]:
    return {"domains": [*domains], "target": target, "priority": priority}


def routed(message: Message, config: dict[str, Any], **context: Any) -> NodeResult:
    single = make_node(NodeDefinition.model_validate({"id": "n", "type": "router", "config": config}))
    return run_clean(single.execute(message, ExecutionContext(**context)))


def published(result: NodeResult) -> Published:
    """The way, and what the payload says of it."""
    fields = result.output_messages[-1].payload.fields()
    return result.next_nodes, fields["route"], fields["routes"], fields["compound_route"]


def answered(answer: Any, *names: Any, message: Message | None = None, **config: Any) -> Published:
    """What comes of a model's answer; a name stands for a plain route."""
    routes = [name if isinstance(name, dict) else route(name) for name in names]
    message = a_message(content="question") if message is None else message
    return published(routed(message, {"routes": routes, **config}, model=ScriptedModel(answer)))


def refusal(content: str | None, config: dict[str, Any], **context: Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        routed(a_message(content=content, task="t"), config, **context)
    return caught.value


def one(name: str) -> Published:
    return [f"to_{name.lower()}"], name, [name], False


# --- mode: model ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", ["Math", "math", " MATH.\n", '"math"', "**Math**", "«math»", "It is math, I think"])
def test_an_answer_means_the_name_it_equals_else_the_only_one_in_it(answer):
    assert one("Math") == answered(answer, "Code", "Math")


@pytest.mark.parametrize("answer", ["", "?", "mathematics", "math or code", "neither"])
def test_an_answer_that_means_no_route_takes_the_default_or_fails(answer):
    assert one("Code") == answered(answer, "Math", "Code", default_route="Code")
    error = refusal("q", {"routes": [route("Math"), route("Code")]}, model=ScriptedModel(answer))
    assert (ErrorCode.ROUTING_ERROR, False) == (error.code, error.recoverable)


def test_the_default_is_published_as_the_file_spells_it():
    assert one("Code") == answered("none", "Math", "Code", default_route=" code ")


def test_of_equal_names_the_first_in_the_order_of_routes_is_taken():
    first, second = route("a"), {"name": "A", "target": "second"}

    assert ["to_a"] == answered("a", first, second)[0]
    assert ["second"] == answered("a", first, {**second, "priority": 1})[0]
    assert ["second"] == answered("?", first, {**second, "priority": 1}, default_route="a")[0]


def test_the_question_is_put_to_the_model_of_the_router_and_names_the_routes():
    model = ScriptedModel("b")
    routes = [route("a", description="about {apples}"), route("b", description="about bees")]
    routed(a_message(content="{what}?"), {"routes": routes, "model": "judge"}, model=model)
    prompt = model.requests[0].prompt

    assert ["judge"] == model.asked
    assert [] == [part for part in ("{what}?", "a", "about {apples}", "b", "about bees") if part not in prompt]
    assert "run:1:node" == model.requests[0].idempotency_key


def test_the_default_model_is_that_of_the_format():
    model = ScriptedModel("a")
    routed(a_message(content="q"), {"routes": [route("a")]}, model=model)

    assert ["qwen2.5:0.5b"] == model.asked


def test_without_content_the_task_is_asked_and_with_neither_nothing():
    model = ScriptedModel("a")
    routed(a_message(task="the task"), {"routes": [route("a")]}, model=model)
    with pytest.raises(NodeError) as caught:
        routed(a_message(), {"routes": [route("a")], "default_route": "a"}, model=model)

    assert "the task" in model.requests[0].prompt
    assert (ErrorCode.VALIDATION_ERROR, 1) == (caught.value.code, len(model.requests))


@pytest.mark.parametrize("multi_label", [True, False])
def test_a_router_without_routes_asks_no_model_and_fails(multi_label):
    model = ScriptedModel("a")
    error = refusal("q", {"routes": [], "multi_label": multi_label}, model=model)

    assert (ErrorCode.ROUTING_ERROR, []) == (error.code, model.asked)


def test_a_model_that_fails_is_no_answer_and_takes_no_default():
    config = {"routes": [route("a")], "default_route": "a"}

    assert ErrorCode.MODEL_ERROR == refusal("q", config, model=ScriptedModel(ModelError("down"))).code


def test_a_prompt_that_is_handed_in_is_a_template_and_an_unknown_one_is_the_built_in():
    known, unknown = ScriptedModel("a"), ScriptedModel("a")
    config = {"routes": [route("a")], "prompt_id": "mine"}
    routed(a_message(content="q"), config, model=known, prompts={"mine": "Where to with {content}?"})
    routed(a_message(content="q"), config, model=unknown, prompts={"other": "x"})

    assert "Where to with q?" == known.requests[0].prompt
    assert "x" != unknown.requests[0].prompt
    assert "q" in unknown.requests[0].prompt


def test_a_prompt_with_a_hole_fails_before_any_call():
    model = ScriptedModel("a")
    config = {"routes": [route("a")], "prompt_id": "mine", "default_route": "a"}
    error = refusal("q", config, model=model, prompts={"mine": "{nothing}"})

    assert (ErrorCode.VALIDATION_ERROR, []) == (error.code, model.asked)


def test_all_but_what_is_published_is_passed_on():
    message = a_message(content="q", task="t", structured={"k": 1}, metadata={"m": 1}, mine=2, route="old")
    payload = routed(message, {"routes": [route("a")]}, model=ScriptedModel("a")).output_messages[-1].payload
    expected = {**message.payload.fields(), "route": "a", "routes": ["a"], "compound_route": False}

    assert expected == payload.fields()


# --- several labels ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "labels"),
    [
        ("a", ["a"]),
        ("c, a", ["c", "a"]),
        ("b\nc\r\na", ["b", "c", "a"]),
        (" A. ,\t*b* ", ["a", "b"]),
        ("a, a, A!, b", ["a", "b"]),
        ("x, a, , y, b", ["a", "b"]),
        ("a and b, c", ["c"]),
        ("d, c, b, a", ["d", "c", "b"]),
        ("d, d, x, c, b, a", ["d", "c", "b"]),
    ],
)
def test_each_part_of_an_answer_must_be_a_name_and_the_first_three_count(answer, labels):
    first = min(labels)

    assert ([f"to_{first}"], first, labels, False) == answered(answer, *"abcd", multi_label=True)


@pytest.mark.parametrize(("most", "labels"), [(1, ["c"]), (2, ["c", "b"]), (3, ["c", "b", "a"])])
def test_exactly_max_labels_count(most, labels):
    assert labels == answered("c, b, a", *"abc", multi_label=True, max_labels=most)[2]


def test_the_first_of_the_named_is_the_first_in_the_order_of_routes():
    routes = [route("a"), route("b", priority=5), route("c", priority=5)]

    assert (["to_b"], "b", ["a", "c", "b"], False) == answered("a, c, b", *routes, multi_label=True)
    assert (["to_c"], "c", ["a", "c"], False) == answered("a, c", *routes, multi_label=True)


@pytest.mark.parametrize("answer", ["", "a b", "none", ",\n,"])
def test_an_answer_without_any_name_takes_the_default_or_fails(answer):
    config = {"routes": [route("a"), route("b")], "multi_label": True}

    assert one("b") == answered(answer, "a", "b", multi_label=True, default_route="b")
    assert ErrorCode.ROUTING_ERROR == refusal("q", config, model=ScriptedModel(answer)).code


def test_a_compound_whose_domains_are_all_named_is_taken_and_joined_as_the_file_spells_them():
    ways = [compound("both", "B", "a")]

    assert (["both"], "B+a", ["a", "b"], True) == answered(
        "a, b", "a", "b", "c", multi_label=True, compound_routes=ways
    )
    assert (["to_a"], "a", ["c", "a"], False) == answered("c, a", "a", "b", "c", multi_label=True, compound_routes=ways)


def test_the_compound_with_most_domains_wins_then_priority_then_the_file():
    two = [compound("ab", "a", "b"), compound("bc", "b", "c", priority=1), compound("cb", "c", "b", priority=1)]
    three = compound("abc", "a", "b", "c", priority=-9)

    assert "abc" == answered("a, b, c", *"abc", multi_label=True, compound_routes=[*two, three])[0][0]
    assert "bc" == answered("a, b, c", *"abc", multi_label=True, compound_routes=two)[0][0]
    assert "ab" == answered("a, b", *"abc", multi_label=True, compound_routes=[*two, three])[0][0]


def test_labels_beyond_max_labels_make_no_compound():
    ways = [compound("ab", "a", "b")]

    assert (["to_a"], "a", ["a"], False) == answered(
        "a, b", "a", "b", multi_label=True, max_labels=1, compound_routes=ways
    )


def test_a_compound_of_one_domain_is_a_compound():
    ways = [compound("alone", "a")]

    assert (["alone"], "a", ["a"], True) == answered("a", "a", "b", multi_label=True, compound_routes=ways)


def test_a_compound_with_a_domain_that_is_no_route_is_never_taken():
    ways = [compound("ax", "a", "x")]

    assert ["to_a"] == answered("a, x", "a", "b", multi_label=True, compound_routes=ways)[0]


def test_compounds_mean_nothing_without_multi_label_or_by_default():
    ways = [compound("alone", "a")]

    assert one("a") == answered("a", "a", "b", compound_routes=ways)
    assert one("a") == answered("none", "a", "b", multi_label=True, default_route="a", compound_routes=ways)


@given(
    st.lists(st.sampled_from("abcdx"), max_size=8),
    st.lists(st.sets(st.sampled_from("abcd"), min_size=1), max_size=4),
    st.lists(st.integers(-1, 1), min_size=8, max_size=8),
    st.integers(1, 4),
)
def test_labels_and_compounds_are_those_of_a_plain_model(said, domains, priorities, most):
    routes = [route(name, priority=p) for name, p in zip("abcd", priorities, strict=False)]
    ways = [compound(f"c{i}", *sorted(d), priority=priorities[4 + i]) for i, d in enumerate(domains)]
    labels = [name for name in dict.fromkeys(said) if name != "x"][:most]
    fitting = sorted((-len(d), -priorities[4 + i], i) for i, d in enumerate(domains) if d <= {*labels})
    config = {"multi_label": True, "max_labels": most, "compound_routes": ways}
    if not labels:
        error = refusal("q", {"routes": routes, **config}, model=ScriptedModel(", ".join(said)))
        assert ErrorCode.ROUTING_ERROR == error.code
        return
    if fitting:
        index = fitting[0][2]
        expected: Published = ([f"c{index}"], "+".join(sorted(domains[index])), labels, True)
    else:
        first = min(labels, key=lambda name: (-priorities["abcd".index(name)], name))
        expected = ([f"to_{first}"], first, labels, False)

    assert expected == answered(", ".join(said), *routes, **config)


# --- mode: rules ---------------------------------------------------------------------------------------


def ruled(*rules: tuple[str, str] | tuple[str, str, int], **more: Any) -> dict[str, Any]:
    routes = [route(rule[0], condition=rule[1], priority=rule[2] if len(rule) > 2 else 0) for rule in rules]
    return {"mode": "rules", "routes": routes, **more}


def test_the_first_rule_that_holds_by_priority_then_file_is_taken():
    message = a_message(content="q")

    assert one("b") == published(routed(message, ruled(("a", "content == 'x'"), ("b", "1"), ("c", "1"))))
    assert one("c") == published(routed(message, ruled(("a", "1"), ("b", "0", 9), ("c", "1", 1), ("d", "1", 1))))


def test_rules_see_what_conditions_of_a_gate_see():
    message = a_message(content="q", structured={"n": 3}, metadata={"m": 1}, mine=2)
    rule = "structured.get('n') == 3 and metadata.get('m') == 1 and mine == 2 and variables.get('v') == [1]"

    assert one("a") == published(routed(message, ruled(("a", rule)), variables={"v": [1]}))


def test_a_rule_that_fails_is_false_as_a_whole_and_told():
    told: list[tuple[str, str]] = []
    config = ruled(("a", "1 / 0 or True"), ("b", "1"))
    result = routed(a_message(), config, condition_failed=lambda *what: told.append(what))

    assert one("b") == published(result)
    assert ["1 / 0 or True"] == [source for source, _ in told]


def test_rules_that_hold_for_nothing_take_the_default_or_fail():
    assert one("b") == published(routed(a_message(), ruled(("a", "0"), ("b", "0"), default_route="b")))
    assert ErrorCode.ROUTING_ERROR == refusal("q", ruled(("a", "0"))).code


# --- mode: keywords ------------------------------------------------------------------------------------


def by_keywords(content: str | None, *keywords: str, **more: Any) -> list[str] | None:
    """The way of a router whose route a has these keywords; None if it has none."""
    config = {"mode": "keywords", "routes": [route("a", keywords=[*keywords])], **more}
    try:
        return routed(a_message(content=content, task=keywords[0]), config).next_nodes
    except NodeError as error:
        code_of_it = error.code
    assert ErrorCode.ROUTING_ERROR == code_of_it
    return None


@pytest.mark.parametrize(
    ("content", "keyword"),
    [
        ("sum", "sum"),
        ("The SUM of it", "sum"),
        ("the sum.", "Sum"),
        ("(sum)", "sum"),
        ("a\nsum\tb", "sum"),
        ("what a GRÖSSE!", "größe"),
        ("no way out", "no way"),
        ("sums; sum", "sum"),
    ],
)
def test_a_keyword_is_found_as_a_whole_word_ignoring_case(content, keyword):
    assert ["to_a"] == by_keywords(content, "other", keyword)


@pytest.mark.parametrize("content", ["sums", "asum", "s um", "", "su", "sum_up", "sum1"])
def test_a_part_of_a_word_is_no_keyword(content):
    assert by_keywords(content, "sum") is None


def test_only_the_content_has_keywords_and_null_has_none():
    assert by_keywords(None, "t") is None


def test_a_keyword_is_no_pattern():
    assert by_keywords("axb", "a.b") is None
    assert ["to_a"] == by_keywords("is a.b here", "a.b")


def test_the_first_route_with_a_keyword_by_priority_then_file_is_taken():
    routes = [route("a", keywords=["x"]), route("b", keywords=["y"]), route("c", keywords=["y", "x"], priority=1)]
    config = {"mode": "keywords", "routes": routes}

    assert one("c") == published(routed(a_message(content="x y"), config))
    assert one("a") == published(routed(a_message(content="y x"), {**config, "routes": routes[:2]}))


def test_no_keyword_takes_the_default():
    assert ["to_a"] == by_keywords("nothing", "sum", default_route="a")


# --- in a run ------------------------------------------------------------------------------------------


def a_router(config: dict[str, Any], *edges: tuple[Any, ...], **more: Any) -> Any:
    nodes = {"r": node("router", **config), **{f"to_{name}": node("transform") for name in "abcd"}}
    nodes["r"] |= more
    return a_graph(nodes, [("start", "r"), *((f"to_{name}", "end") for name in "abcd"), *edges])


def test_the_token_goes_where_the_route_leads_before_any_edge():
    graph = a_router({"routes": [route("a"), route("b")]}, ("r", "to_c", "1"), ("r", "to_d"))
    result = go(an_executor(graph, model=ScriptedModel("b")))

    assert ["start", "r", "to_b", "end"] == visited(result)
    assert ("b", 5) == (result.message.payload.route, result.tokens_used)


def test_conditions_on_edges_know_what_was_published():
    graph = a_router({"routes": [route("a")]}, ("to_a", "to_b", "route == 'a' and routes == ['a']", 1))

    assert ["start", "r", "to_a", "to_b", "end"] == visited(go(an_executor(graph, model=ScriptedModel("a"))))


def test_without_a_route_on_error_and_policies_apply():
    config = {"routes": [route("a")]}
    model = ScriptedModel("none")
    with_way = go(an_executor(a_router(config, on_error="to_b"), model=model))
    skipped = go(an_executor(a_router(config, ("r", "to_c")), model=model, failure_policy="skip_failed"))
    failed = go(an_executor(a_router(config, ("r", "to_c")), model=model))

    assert ("succeeded", "to_b") == (with_way.status, visited(with_way)[2])
    assert ("degraded", "to_c", "ROUTING_ERROR") == (skipped.status, visited(skipped)[2], code(skipped))
    assert ("failed", "ROUTING_ERROR", "r") == (failed.status, code(failed), failed.error.node_id)


def test_a_failed_answer_counts_its_tokens_and_is_not_asked_again():
    result = go(an_executor(a_router({"routes": [route("a")], "retry_count": 3}), model=ScriptedModel("none")))

    assert (5, 1) == (result.tokens_used, count(result, EventKind.ATTEMPT_STARTED, "r"))


def test_a_model_that_is_down_is_asked_again():
    model = ScriptedModel({"qwen2.5:0.5b": [ModelError("down"), "a"]})
    result = go(an_executor(a_router({"routes": [route("a")], "retry_count": 1}), model=model))

    assert ("succeeded", 2, 5) == (result.status, count(result, EventKind.ATTEMPT_STARTED, "r"), result.tokens_used)


def test_a_rule_that_fails_is_traced_at_its_router():
    config = ruled(("a", "missing > 1"), ("b", "1"))
    result = go(an_executor(a_router(config)))

    assert [("r", "2")] == [(e.node_id, e.path) for e in events(result, EventKind.CONDITION_ERROR)]
    assert "to_b" == visited(result)[2]


@pytest.mark.parametrize("config", [ruled(("a", "1")), {"mode": "keywords", "routes": [route("a", keywords=["q"])]}])
def test_a_router_that_asks_nobody_needs_no_model_and_counts_no_tokens(config):
    result = run_clean(Executor(a_router(config)).execute(TaskPayload(content="q")))

    assert ("succeeded", "to_a", 0) == (result.status, visited(result)[2], result.tokens_used)
