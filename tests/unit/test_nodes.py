"""Each node type alone, and what the engine makes of its answers."""

from __future__ import annotations

import asyncio
import string
from collections.abc import Sequence
from itertools import count as counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.models import ScriptedModel
from tests.support.nodes import Wrapping, fails, in_turn, noting, now_ms, raises, says
from tests.support.runs import a_graph, a_message, an_executor, code, count, events, go, node, run_clean
from tinyllm.config import (
    CompoundRoute,
    EntryConfig,
    ExitConfig,
    FanoutConfig,
    GateCondition,
    GateConfig,
    ModelConfig,
    NodeConfig,
    NodeDefinition,
    NodeType,
)
from tinyllm.context import ExecutionContext, Joined, StepOutcome
from tinyllm.errors import ErrorCode, ModelError, NodeError, UsageError
from tinyllm.message import ErrorInfo, Message, NodeResult
from tinyllm.models.base import ModelRequest, ModelResponse
from tinyllm.nodes import NODES, make_node
from tinyllm.nodes.asking import ask, default_prompt, meant_name
from tinyllm.nodes.base import passed_on, success
from tinyllm.nodes.fanout import count_votes, winning_vote
from tinyllm.nodes.router import best_compound
from tinyllm.testing import reference_text
from tinyllm.trace import EventKind, RunResult

pytestmark = pytest.mark.unit

KINDS = {
    EntryConfig: NodeType.ENTRY,
    ExitConfig: NodeType.EXIT,
    ModelConfig: NodeType.MODEL,
    GateConfig: NodeType.GATE,
    FanoutConfig: NodeType.FANOUT,
}


def alone(config: NodeConfig, message: Message | None = None, **context: Any) -> NodeResult:
    """What a node of this config makes of `message`, outside of any run."""
    single = make_node(NodeDefinition(id="n", type=KINDS[type(config)], config=config))
    return run_clean(single.execute(message or a_message(content="question"), ExecutionContext(**context)))


def refused(config: NodeConfig, message: Message | None = None, **context: Any) -> NodeError:
    with pytest.raises(NodeError) as caught:
        alone(config, message, **context)
    return caught.value


# --- all of them ---------------------------------------------------------------------------------------


def test_every_type_has_its_node():
    assert set(NodeType) == set(NODES)


@pytest.mark.parametrize(
    "config",
    [EntryConfig(), ExitConfig(), ModelConfig(), GateConfig(default_target="t")],
    ids=lambda config: type(config).__name__,
)
def test_a_node_puts_out_a_child_of_its_input_without_the_error(config):
    error = ErrorInfo(code=ErrorCode.UNKNOWN, message="m")
    message = a_message(task="t", content="c", structured={"k": [1]}, route="r", extra={"e": 1}, error=error)
    output = alone(config, message, model=ScriptedModel("c"), node_id="n").output_messages[-1]
    kept = {"task": "t", "content": "c", "structured": {"k": [1]}, "route": "r", "extra": {"e": 1}}

    assert (message.trace_id, message.message_id, "n") == (output.trace_id, output.parent_id, output.source_node)
    assert output.payload.error is None
    assert kept == {name: output.payload.fields()[name] for name in kept}
    assert message.payload.structured is not output.payload.structured


def test_a_node_with_the_config_of_another_says_so():
    single = NODES[NodeType.EXIT](NodeDefinition(id="n", type=NodeType.ENTRY, config=EntryConfig()))

    with pytest.raises(TypeError, match="n has a EntryConfig, not a ExitConfig"):
        run_clean(single.execute(a_message(), ExecutionContext()))


def test_the_idempotency_key_names_run_path_and_node():
    assert "r:2.1:n" == ExecutionContext(run_id="r", path="2.1", node_id="n").idempotency_key


# --- entry and exit --------------------------------------------------------------------------------------


def test_an_entry_passes_on_what_has_its_required_fields():
    config = EntryConfig(required_fields=("content", "mine", "metadata"))

    assert alone(config, a_message(content="", mine=0)).success


@pytest.mark.parametrize("payload", [{}, {"route": None, "mine": None}])
def test_an_entry_refuses_what_lacks_a_field_or_has_it_null(payload):
    error = refused(EntryConfig(required_fields=("content", "route", "mine")), a_message(content="c", **payload))

    assert ErrorCode.VALIDATION_ERROR == error.code
    assert {"missing": ["route", "mine"]} == error.details
    assert "required and missing: route, mine" == error.message


@pytest.mark.parametrize("message", [None, "told"])
def test_an_exit_writes_its_status_and_message_beside_the_metadata(message):
    config = ExitConfig(status="fallback", message=message)
    output = alone(config, a_message(metadata={"k": 1, "exit_status": "old"})).output_messages[-1]

    assert {"k": 1, "exit_status": "fallback", "exit_message": message} == output.payload.metadata


# --- gate: expressions -----------------------------------------------------------------------------------


def conditions(**expressions: str) -> tuple[GateCondition, ...]:
    return tuple(GateCondition(name=n, expression=e, target=f"to_{n}") for n, e in expressions.items())


def way(result: NodeResult) -> tuple[list[str], Any]:
    return result.next_nodes, result.output_messages[-1].payload.fields()["matched_condition"]


def test_a_gate_takes_the_first_condition_that_holds_and_publishes_its_name():
    config = GateConfig(conditions=conditions(a="content == 'x'", b="1", c="1"))

    assert (["to_b"], "b") == way(alone(config))


def test_a_gate_takes_its_default_if_none_holds():
    config = GateConfig(conditions=conditions(a="0"), default_target="there")

    assert (["there"], "default") == way(alone(config))


def test_a_gate_fails_if_none_holds_and_there_is_no_default():
    error = refused(GateConfig(conditions=conditions(a="0", b="''")))

    assert (ErrorCode.GATE_FAILED, False) == (error.code, error.recoverable)
    assert "none of a, b holds and there is no default_target" == error.message


def test_a_gate_without_conditions_fails():
    assert "none of no conditions holds and there is no default_target" == refused(GateConfig()).message


def test_a_condition_that_fails_is_false_and_told():
    told: list[tuple[str, str]] = []
    config = GateConfig(conditions=conditions(a="content + 1", b="1"))
    result = alone(config, condition_failed=lambda source, reason: told.append((source, reason)))

    assert (["to_b"], "b") == way(result)
    assert ["content + 1"] == [source for source, _ in told]


def test_conditions_of_a_gate_see_variables_and_metadata():
    message = a_message(metadata={"k": 1})
    config = GateConfig(conditions=conditions(a="variables.get('v') == 2 and metadata.get('k') == 1"))

    assert (["to_a"], "a") == way(alone(config, message, variables={"v": 2}))


def test_a_condition_that_fails_inside_a_fanout_is_traced_with_its_own_path():
    gate = node("gate", conditions=[{"name": "n", "expression": "1 / 0", "target": "end"}], default_target="end")
    result = fan({}, ["gate"], extra={"gate": gate})

    assert ["2.1"] == [event.path for event in events(result, EventKind.CONDITION_ERROR)]


# --- gate: asking a model ----------------------------------------------------------------------------------


def asked_gate(answer: Any, *, mode: Any = "llm", message: Message | None = None, **more: Any) -> Any:
    model = ScriptedModel(answer)
    config = GateConfig(mode=mode, conditions=conditions(yes="it is good", no="it is bad"), **more)
    return alone(config, message, model=model), model


def test_a_gate_asks_a_model_and_takes_the_way_it_names():
    result, model = asked_gate("No.")

    assert (["to_no"], "no") == way(result)
    assert ["qwen2.5:0.5b"] == model.asked
    assert 0.0 == model.requests[0].temperature
    assert "run:1:node" == model.requests[0].idempotency_key


def test_the_question_holds_the_content_and_every_option():
    _, model = asked_gate("yes", message=a_message(content="{braces} stay"))

    assert "Content: {braces} stay\n" in model.requests[0].prompt
    assert "- yes: it is good\n- no: it is bad\n" in model.requests[0].prompt


def test_a_prompt_of_its_own_is_a_template():
    model = ScriptedModel("yes")
    template = "Is {content} for {variables.v}?"
    config = GateConfig(mode="llm", conditions=conditions(yes="y"), evaluation_prompt=template, model="judge")
    alone(config, a_message(content="it"), model=model, variables={"v": "us"})

    assert [("judge", "Is it for us?")] == [(request.model, request.prompt) for request in model.requests]


def test_a_template_with_a_hole_fails_before_any_call():
    model = ScriptedModel("yes")
    config = GateConfig(mode="llm", conditions=conditions(yes="y"), evaluation_prompt="{nothing}")
    error = refused(config, model=model)

    assert (ErrorCode.VALIDATION_ERROR, []) == (error.code, model.asked)


@pytest.mark.parametrize("answer", ["", "perhaps", "yes and no", "yesterday"])
def test_an_answer_that_means_none_takes_the_default_or_fails(answer):
    result, _ = asked_gate(answer, default_target="there")
    config = GateConfig(mode="llm", conditions=conditions(yes="y", no="n"))
    error = refused(config, model=ScriptedModel(answer))

    assert (["there"], "default") == way(result)
    assert ErrorCode.GATE_FAILED == error.code


def test_descriptions_of_an_llm_gate_are_not_evaluated():
    config = GateConfig(mode="llm", conditions=conditions(yes="True", no="1 / 0"))

    assert (["to_no"], "no") == way(alone(config, model=ScriptedModel("no")))


def test_a_hybrid_gate_asks_only_if_no_condition_holds():
    holds, model = ScriptedModel("b"), ScriptedModel("b")
    config = GateConfig(mode="hybrid", conditions=conditions(a="content == 'question'", b="0"))
    other = a_message(content="other")

    assert (["to_a"], "a") == way(alone(config, model=holds))
    assert (["to_b"], "b") == way(alone(config, other, model=model))
    assert ([], ["qwen2.5:0.5b"]) == (holds.asked, model.asked)


@pytest.mark.parametrize("mode", ["llm", "hybrid"])
def test_a_gate_without_conditions_asks_no_model(mode):
    model = ScriptedModel("anything")

    assert (["there"], "default") == way(alone(GateConfig(mode=mode, default_target="there"), model=model))
    assert [] == model.asked


def test_an_expression_gate_asks_no_model():
    model = ScriptedModel("a")
    refused(GateConfig(conditions=conditions(a="0")), model=model)

    assert [] == model.asked


def test_a_gate_s_model_error_is_its_own():
    config = GateConfig(mode="llm", conditions=conditions(a="a"), default_target="there")
    error = refused(config, model=ScriptedModel(ModelError("down")))

    assert (ErrorCode.MODEL_ERROR, "down") == (error.code, error.message)


def test_a_gate_that_asks_counts_its_tokens_even_if_it_fails():
    counted: list[int] = []
    config = GateConfig(mode="llm", conditions=conditions(a="a"))
    refused(config, model=ScriptedModel("neither"), count_tokens=counted.append)

    assert [5] == counted


# --- which name an answer means ----------------------------------------------------------------------------

NAMES = ["yes", "no", "not sure", "c", "c++", "Änderung"]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("yes", "yes"),
        ("  YES!\n", "yes"),
        ('"No."', "no"),
        ("**not sure**", "not sure"),
        ("C++", "c++"),
        ("C", "c"),
        ("«Yes»", "yes"),
        ("änderung", "Änderung"),
        ("The answer is yes.", "yes"),
        ("I would say: not sure, really", "not sure"),
        ("use c++ here", None),
        ("yes, no", None),
        ("yes yes", "yes"),
        ("yesterday", None),
        ("no_way", None),
        ("nothing", None),
        ("", None),
        ("?!", None),
    ],
)
def test_an_answer_means_the_name_it_equals_else_the_only_one_it_holds_as_a_word(answer, expected):
    assert expected == meant_name(answer, NAMES)


def test_the_name_it_equals_comes_before_those_that_occur_in_it():
    assert "not sure" == meant_name("Not sure!", ["sure", "not", "not sure"])


def test_two_names_that_occur_are_no_answer_even_if_one_is_part_of_the_other():
    assert meant_name("it is very good", ["good", "very good"]) is None


def test_of_equal_names_the_first_counts():
    assert "Yes" == meant_name("YES", ["Yes", "yes"])
    assert "Yes" == meant_name("oh yes please", ["Yes", "yes"])


def test_without_names_no_answer_means_anything():
    assert meant_name("anything", []) is None


words = st.text(string.ascii_lowercase, min_size=1, max_size=6)


@given(st.lists(words, min_size=1, max_size=5, unique=True), st.data())
def test_every_name_is_meant_by_itself_however_it_is_dressed(names, data):
    name = data.draw(st.sampled_from(names))
    dress = st.text(string.whitespace + string.punctuation, max_size=4)
    answer = data.draw(dress) + data.draw(st.sampled_from([name, name.upper(), name.title()])) + data.draw(dress)

    assert name == meant_name(answer, names)


@given(st.lists(words, max_size=5), st.text(max_size=30))
def test_only_a_name_is_ever_meant_and_the_order_of_different_names_does_not_matter(names, answer):
    names = list(dict.fromkeys(names))
    meant = meant_name(answer, names)

    assert meant is None or meant in names
    assert meant == meant_name(answer, names[::-1])


# --- model ---------------------------------------------------------------------------------------------


def asked_model(config: ModelConfig, message: Message | None = None, **context: Any) -> ModelRequest:
    model = ScriptedModel()
    alone(config, message, model=model, **context)
    return model.requests[0]


def test_a_model_s_answer_becomes_the_content_and_its_counts_the_metadata():
    result = alone(ModelConfig(model="m"), model=ScriptedModel("answer"))
    output = result.output_messages[-1]

    assert ("answer", "answer") == (output.payload.content, result.output)
    assert ("m", 3, 2) == (output.metadata.model_used, output.metadata.tokens_in, output.metadata.tokens_out)


def test_a_model_counts_its_tokens():
    counted: list[int] = []
    alone(ModelConfig(), model=ScriptedModel(), count_tokens=counted.append)

    assert [5] == counted


@pytest.mark.parametrize(
    ("payload", "prompt"),
    [({"content": "c", "task": "t"}, "c"), ({"task": "t"}, "t"), ({"content": "", "task": "t"}, "")],
)
def test_without_a_template_the_content_is_asked_else_the_task(payload, prompt):
    assert prompt == default_prompt(a_message(**payload))
    assert prompt == asked_model(ModelConfig(), a_message(**payload)).prompt


@pytest.mark.parametrize(
    "config", [ModelConfig(), GateConfig(mode="llm", conditions=conditions(a="a"), default_target="t")], ids=type
)
def test_with_neither_content_nor_task_there_is_nothing_to_ask(config):
    model = ScriptedModel("a")
    error = refused(config, a_message(), model=model)

    assert (ErrorCode.VALIDATION_ERROR, []) == (error.code, model.asked)


def test_templates_are_filled_from_payload_variables_and_metadata():
    message = a_message(task="t", content="c", structured={"k": {"d": [1, "ü"]}}, extra=True, metadata={"m": 1.5})
    config = ModelConfig(
        prompt_template="{task}|{content}|{structured.k}|{extra}|{metadata.m}|{variables.v}|{{task}}|{ task }|{}",
        system_prompt="be {variables.v}",
    )
    request = asked_model(config, message, variables={"v": "kind"})

    assert 't|c|{"d": [1, "ü"]}|true|1.5|kind|{task}|{ task }|{}' == request.prompt
    assert "be kind" == request.system


def test_what_a_value_contains_is_never_filled_again():
    config = ModelConfig(prompt_template="{content}")

    assert "{task}" == asked_model(config, a_message(task="t", content="{task}")).prompt


def test_an_empty_template_is_an_empty_prompt():
    assert "" == asked_model(ModelConfig(prompt_template="", system_prompt="")).prompt
    assert "" == asked_model(ModelConfig(prompt_template="", system_prompt="")).system


def test_without_a_system_prompt_there_is_none():
    assert asked_model(ModelConfig()).system is None


@pytest.mark.parametrize("which", ["prompt_template", "system_prompt"])
@pytest.mark.parametrize("template", ["{route}", "{nothing}", "{content.deeper}", "{structured.missing}"])
def test_a_template_that_names_what_is_missing_fails_before_any_call(which, template):
    model = ScriptedModel()
    message = a_message(content="c", structured={})
    error = refused(ModelConfig.model_validate({which: template}), message, model=model)

    assert (ErrorCode.VALIDATION_ERROR, False, []) == (error.code, error.recoverable, model.asked)
    assert template in error.message


def test_a_model_is_asked_with_what_its_config_says():
    request = asked_model(ModelConfig(model="m", temperature=0.2, max_tokens=7), run_id="r", path="3.1", node_id="n")

    assert ("m", 0.2, 7, "r:3.1:n") == (
        request.model,
        request.temperature,
        request.max_tokens,
        request.idempotency_key,
    )


def test_the_default_models_are_those_of_the_format():
    assert ("qwen2.5:3b", "qwen2.5:0.5b") == (ModelConfig().model, GateConfig().model)


def test_without_a_client_a_model_fails_for_good():
    error = refused(ModelConfig())

    assert (ErrorCode.MODEL_ERROR, False) == (error.code, error.recoverable)


@pytest.mark.parametrize("raised", [RuntimeError("odd"), TimeoutError("odd"), OSError("odd")], ids=str)
def test_whatever_a_client_raises_is_a_model_error(raised):
    error = refused(ModelConfig(model="m"), model=ScriptedModel(raised))

    assert (ErrorCode.MODEL_ERROR, True) == (error.code, error.recoverable)
    assert f"m: {type(raised).__name__}: odd" == error.message


def test_a_client_that_says_it_is_no_use_to_ask_again_is_believed():
    error = refused(ModelConfig(model="m"), model=ScriptedModel(ModelError("no such model", recoverable=False)))

    assert error.recoverable is False


# --- fallback models -------------------------------------------------------------------------------------

FALLBACKS = ModelConfig(model="a", fallback_models=("b", "c"), fallback_timeout_ms=100)


def test_fallback_models_are_asked_in_order_until_one_answers():
    model = ScriptedModel({"a": ModelError("down"), "b": "from b"})
    result = alone(FALLBACKS, model=model)

    assert ("from b", ["a", "b"]) == (result.output, model.asked)
    assert "b" == result.output_messages[-1].metadata.model_used


def test_every_call_of_an_attempt_asks_the_same_with_the_same_key():
    model = ScriptedModel({"a": ModelError("down"), "b": ModelError("down")})
    alone(FALLBACKS, model=model, run_id="r")

    assert 1 == len({(r.prompt, r.system, r.temperature, r.idempotency_key) for r in model.requests})
    assert 3 == len(model.requests)


def test_an_answer_of_the_first_model_asks_no_other():
    model = ScriptedModel("ok")
    alone(FALLBACKS, model=model)

    assert ["a"] == model.asked


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    "raised",
    [
        *(ModelError("d", recoverable=False), RuntimeError("odd"), TimeoutError("odd"), Mute()),
        *(asyncio.CancelledError("its own"), NodeError(ErrorCode.GATE_FAILED, "odd"), SystemExit(3)),
    ],
    ids=repr,
)
def test_any_failure_moves_on_to_the_next_model(raised):
    assert "from b" == alone(FALLBACKS, model=ScriptedModel({"a": raised, "b": "from b"})).output


@pytest.mark.parametrize("raised", [Mute(), asyncio.CancelledError(), NodeError(ErrorCode.GATE_FAILED, "no")], ids=repr)
def test_a_call_that_fails_in_any_way_is_a_model_error(raised):
    with pytest.raises(NodeError) as caught:
        alone(ModelConfig(model="a"), model=ScriptedModel({"a": raised}))

    assert ErrorCode.MODEL_ERROR is caught.value.code


@pytest.mark.parametrize("error_code", [ErrorCode.MODEL_ERROR, ErrorCode.TOOL_ERROR])
def test_what_a_client_s_error_asks_for_and_where_it_came_from_is_kept(error_code):
    said = NodeError(error_code, "busy", details={"retry_after_s": 1})
    said.__cause__ = OSError("reset")
    with pytest.raises(NodeError) as caught:
        alone(ModelConfig(model="a"), model=ScriptedModel({"a": said}))

    assert {"retry_after_s": 1} == caught.value.details
    causes = [caught.value.__cause__, caught.value.__cause__ and caught.value.__cause__.__cause__]
    assert any(isinstance(cause, OSError) for cause in causes)
    assert caught.value not in causes


def test_a_model_name_that_no_message_could_carry_is_a_failed_call():
    class Named:
        async def complete(self, request: ModelRequest) -> ModelResponse:
            return ModelResponse(text="from b", model="\ud800" if request.model == "a" else request.model)

    assert "from b" == alone(FALLBACKS, model=Named()).output


def test_without_enable_fallback_only_the_model_is_asked():
    model = ScriptedModel({"a": ModelError("down")})
    error = refused(FALLBACKS.model_copy(update={"enable_fallback": False}), model=model)

    assert (["a"], "down") == (model.asked, error.message)


def test_the_error_is_that_of_the_last_model_and_names_all():
    answers = {"a": ModelError("first"), "b": ModelError("second"), "c": ModelError("third", recoverable=False)}
    error = refused(FALLBACKS, model=ScriptedModel(answers))

    assert (ErrorCode.MODEL_ERROR, False) == (error.code, error.recoverable)
    assert "third (no model answered: a, b, c)" == error.message
    assert ["a", "b", "c"] == error.details["models"]


def taking(config: ModelConfig, answers: dict[str, Any]) -> tuple[Any, list[str], float, list[int]]:
    """Text or code, who was asked, how long it took, and the tokens."""
    model = ScriptedModel(answers)
    counted: list[int] = []
    single = make_node(NodeDefinition(id="n", type=NodeType.MODEL, config=config))

    async def main() -> tuple[Any, float]:
        context = ExecutionContext(model=model, count_tokens=counted.append)
        try:
            return (await single.execute(a_message(content="q"), context)).output, now_ms()
        except NodeError as error:
            return error.code, now_ms()

    outcome, took = run_clean(main())
    return outcome, model.asked, took, counted


def test_each_call_is_cut_off_after_the_fallback_timeout_the_first_one_s_too():
    assert ("from c", ["a", "b", "c"], 250.0, [5]) == taking(
        FALLBACKS, {"a": (1_000, "late"), "b": (1_000, "late"), "c": (50, "from c")}
    )


@pytest.mark.parametrize(("after_ms", "text"), [(99, "in time"), (100, "ok"), (101, "ok")])
def test_an_answer_at_the_very_moment_of_the_fallback_timeout_is_late(after_ms, text):
    assert text == taking(FALLBACKS, {"a": (after_ms, "in time")})[0]


def test_the_last_model_s_time_is_up_with_timeout():
    late = (1_000, "late")

    assert (ErrorCode.TIMEOUT, ["a", "b", "c"], 300.0, []) == taking(FALLBACKS, {"a": late, "b": late, "c": late})


@pytest.mark.parametrize("raised", [ModelError("down"), RuntimeError("odd")])
def test_a_last_model_that_fails_after_its_time_is_too_late_to_say_why(raised):
    class Slow(ScriptedModel):
        async def complete(self, request: ModelRequest) -> ModelResponse:
            if request.model != "c":
                raise ModelError("down")
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                raise raised from None
            raise AssertionError("unreachable")

    single = make_node(NodeDefinition(id="n", type=NodeType.MODEL, config=FALLBACKS))

    with pytest.raises(NodeError) as caught:
        run_clean(single.execute(a_message(content="q"), ExecutionContext(model=Slow())))
    assert ErrorCode.TIMEOUT == caught.value.code


def test_a_client_that_swallows_its_cancellation_is_late_all_the_same():
    class Stubborn(ScriptedModel):
        async def complete(self, request: ModelRequest) -> ModelResponse:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                return ModelResponse(text="late", model=request.model, tokens_in=1)
            raise AssertionError("unreachable")

    request = ModelRequest(model="m", prompt="p")
    counted: list[int] = []

    with pytest.raises(NodeError) as caught:
        run_clean(ask(request, ExecutionContext(model=Stubborn(), count_tokens=counted.append), limit_ms=10))
    assert (ErrorCode.TIMEOUT, []) == (caught.value.code, counted)


def test_without_fallback_models_the_fallback_timeout_means_nothing():
    config = ModelConfig(model="a", fallback_timeout_ms=100)

    assert ("slow", ["a"], 500.0, [5]) == taking(config, {"a": (500, "slow")})


def test_without_a_fallback_timeout_only_the_attempt_s_own_limit_counts():
    config = ModelConfig(model="a", fallback_models=("b",))

    assert ("slow", ["a"], 20_000.0, [5]) == taking(config, {"a": (20_000, "slow")})


def test_the_attempt_s_limit_bounds_all_its_calls_together():
    model = ScriptedModel({"a": (80, ModelError("down")), "b": (80, "late")})
    work = node("model", model="a", fallback_models=["b"], timeout_ms=100)
    graph = a_graph({"work": work}, [("start", "work"), ("work", "end")])
    result = go(an_executor(graph, model=model))

    assert ("TIMEOUT", 100.0, 0) == (code(result), result.total_latency_ms, result.tokens_used)


# --- votes ---------------------------------------------------------------------------------------------

answers = st.lists(st.sampled_from([None, "", " ", "a", "A", " a\n", "b", "B  b", "b b", "ß", "SS"]), max_size=9)


def winner(contents: Sequence[str | None], needed: int) -> str | None:
    """The answer that wins, folded."""
    votes = count_votes(contents)
    index = winning_vote(votes, needed)
    return None if index is None else next(text for text, voters in votes.items() if index in voters)


def test_votes_are_compared_without_case_and_with_white_space_folded():
    assert {"a b": [0, 1, 2], "ss": [3, 4]} == count_votes(["A b", " a\n B ", "a\t b", "ß", "SS"])


def test_empty_answers_and_failures_are_no_votes():
    assert {} == count_votes([None, "", " \n\t"])


@pytest.mark.parametrize(
    ("contents", "needed", "expected"),
    [
        (["a", "b", "b"], 2, 1),
        (["a", "b"], 1, 0),
        (["b", "a", "a", "b"], 2, 0),
        (["c", "a", "b", "b", "a"], 2, 1),
        (["a", "b", "c"], 2, None),
        ([], 1, None),
        (["a", "b", "b", "a", "b"], 1, 1),
    ],
)
def test_most_votes_win_if_they_are_enough_and_ties_go_to_the_earlier_first_voter(contents, needed, expected):
    assert expected == winning_vote(count_votes(contents), needed)


@given(answers, st.integers(1, 9))
def test_the_winner_is_the_first_voter_of_an_answer_with_enough_votes_and_most(contents, needed):
    votes = count_votes(contents)
    index = winning_vote(votes, needed)

    if index is None:
        assert all(len(voters) < needed for voters in votes.values())
    else:
        own = next(voters for voters in votes.values() if index in voters)
        assert index == own[0]
        assert len(own) >= needed
        assert len(own) == max(map(len, votes.values()))


@given(answers, st.integers(1, 9), st.data())
def test_permuting_the_targets_changes_only_who_wins_a_tie(contents, needed, data):
    permuted = data.draw(st.permutations(contents))
    before, after = count_votes(contents), count_votes(permuted)
    most = max(map(len, before.values()), default=0)
    tied = {text for text, voters in before.items() if len(voters) == most}
    won = winner(permuted, needed)

    assert {text: len(voters) for text, voters in before.items()} == {t: len(v) for t, v in after.items()}
    assert (winner(contents, needed) is None) is (won is None)
    assert won is None or won in tied
    if len(tied) == 1:
        assert winner(contents, needed) == won


@given(answers, st.integers(1, 9))
def test_case_and_white_space_change_no_vote(contents, needed):
    dressed = [None if text is None else f"  {text.upper()}\n" for text in contents]

    assert winning_vote(count_votes(contents), needed) == winning_vote(count_votes(dressed), needed)


@given(answers, st.integers(1, 9))
def test_another_vote_for_the_winner_does_not_unseat_it(contents, needed):
    won = winner(contents, needed)

    if won is not None:
        assert won == winner([*contents, won], needed)


@given(st.integers(1, 9))
def test_without_a_quorum_more_than_half_of_all_targets_are_needed(targets):
    names = tuple(f"t{number}" for number in range(targets))
    needed = FanoutConfig(target_nodes=names).votes_needed

    assert 2 * needed > targets >= 2 * (needed - 1)


# --- fanout --------------------------------------------------------------------------------------------


def fan(acts: dict[str, Any], targets: list[str], *, extra: dict[str, Any] | None = None, **config: Any) -> RunResult:
    """start -> fan -> end, whose targets do what `acts` says."""
    how = {key: config.pop(key) for key in list(config) if key in ("max_steps", "failure_policy", "timeout_ms_of_run")}
    retries = config.pop("retries", {})
    nodes: dict[str, Any] = {name: node("model", **retries.get(name, {})) for name in acts}
    nodes.update(extra or {})
    nodes["fan"] = node("fanout", target_nodes=targets, aggregation_strategy="majority_vote", **config)
    graph = a_graph(nodes, [("start", "fan"), ("fan", "end")])
    return go(an_executor(graph, acts, **how))


def test_a_fanout_puts_out_the_payload_of_the_first_voter_of_the_winner():
    acts = {"a": says("Yes", route="a"), "b": says("no", route="b"), "c": says(" yes ", route="c")}
    result = fan(acts, ["b", "c", "a"])

    assert ("succeeded", " yes ", "c") == (result.status, result.content, result.message.payload.route)
    assert 6 == result.nodes_executed
    assert ["2.1", "2.2", "2.3"] == [
        e.path for e in events(result, EventKind.STEP_STARTED) if e.path and e.path.startswith("2.")
    ]


def test_all_targets_run_at_once_and_are_waited_for():
    acts = {"a": says("x", after_ms=10), "b": says("x", after_ms=30), "c": says("x", after_ms=20)}

    assert 30.0 == fan(acts, ["a", "b", "c"]).total_latency_ms


@pytest.mark.parametrize(("config", "took"), [({"parallel": False}, 60.0), ({"max_parallel_branches": 2}, 30.0)])
def test_at_most_so_many_run_at_once(config, took):
    acts = {"a": says("x", after_ms=10), "b": says("x", after_ms=30), "c": says("x", after_ms=20)}

    assert took == fan(acts, ["a", "b", "c"], **config).total_latency_ms


def test_a_waiting_target_starts_when_another_has_ended():
    log: list[float] = []
    act = noting(log, in_turn(says("x", after_ms=10), says("x", after_ms=30), says("x", after_ms=5)))
    fan({"a": act}, ["a", "a", "a"], max_parallel_branches=2)

    assert [0.0, 0.0, 10.0] == log


def test_one_after_another_means_in_order_whatever_the_cap_says():
    log: list[float] = []
    fan({"a": noting(log, says("x", after_ms=10))}, ["a", "a", "a"], parallel=False, max_parallel_branches=3)

    assert [0.0, 10.0, 20.0] == log


def test_targets_may_repeat_and_each_has_its_own_path_and_message():
    seen: list[tuple[str, str, str | None]] = []

    async def act(message: Message, context: Any) -> NodeResult:
        seen.append((context.path, message.source_node, message.target_node))
        return success(passed_on(message, context, content="x"))

    fan({"a": act}, ["a", "a"])

    assert [("2.1", "fan", "a"), ("2.2", "fan", "a")] == seen


def test_without_a_quorum_it_fails_with_the_first_failed_target_s_error_in_order():
    acts = {"a": says("x", after_ms=1), "b": fails(text="from b", after_ms=30), "c": fails(text="from c", after_ms=5)}
    result = fan(acts, ["a", "b", "c"])
    error = result.error

    assert error is not None
    assert ("failed", "MODEL_ERROR", "b") == (result.status, error.code, error.node_id)
    assert "from b" in error.message
    assert [
        {"node": "b", "code": "MODEL_ERROR", "message": "from b"},
        {"node": "c", "code": "MODEL_ERROR", "message": "from c"},
    ] == error.details["failures"]


def test_disagreement_without_a_failure_is_gate_failed_of_the_fanout():
    result = fan({"a": says("x"), "b": says("y")}, ["a", "b"], retry_count=3)
    error = result.error

    assert error is not None
    assert ("GATE_FAILED", "fan", []) == (error.code, error.node_id, error.details["failures"])
    assert 1 == count(result, EventKind.ATTEMPT_STARTED, "fan")


def test_a_failed_target_is_no_vote_but_still_a_target():
    """Two of four answers are not more than half of all targets."""
    acts = {"a": says("x"), "b": fails()}

    assert "failed" == fan(acts, ["a", "a", "b", "b"]).status
    assert "succeeded" == fan(acts, ["a", "a", "b"]).status


def test_a_quorum_replaces_the_majority():
    acts = {"a": says("x"), "b": fails(), "c": says("z")}

    assert "z" == fan(acts, ["b", "c", "a"], quorum=1).content
    assert "failed" == fan({"a": says("x")}, ["a", "a", "a"], quorum=4).status


def test_require_all_success_fails_though_the_vote_is_won():
    acts = {"a": says("x", after_ms=5), "b": fails()}
    result = fan(acts, ["a", "a", "b"], require_all_success=True)

    assert ("failed", "MODEL_ERROR", "b") == (result.status, code(result), result.error and result.error.node_id)
    assert 5.0 == result.total_latency_ms


def test_fail_fast_fails_at_the_first_failure_and_cancels_the_rest():
    acts = {"a": says("x", after_ms=50), "b": fails(after_ms=5)}
    result = fan(acts, ["a", "b", "a"], fail_fast=True)
    ends = events(result, EventKind.STEP_ENDED, "a")

    assert ("failed", "MODEL_ERROR", 5.0) == (result.status, code(result), result.total_latency_ms)
    assert [{"cut_off": "a sibling decided"}] * 2 == [dict(event.details) for event in ends]


def test_fail_fast_fails_though_the_vote_was_won_before():
    acts = {"a": says("x"), "b": fails(after_ms=5)}

    assert "MODEL_ERROR" == code(fan(acts, ["a", "a", "b"], fail_fast=True))


def test_fail_fast_does_not_start_what_is_waiting():
    acts = {"a": says("x", after_ms=50), "b": fails(after_ms=5)}
    result = fan(acts, ["b", "a", "a"], fail_fast=True, parallel=False)

    assert 0 == count(result, EventKind.STEP_STARTED, "a")
    assert 3 == result.nodes_executed


def test_what_fail_fast_does_not_start_is_given_no_message():
    def ids_used(*targets: str) -> int:
        fanout = node(
            "fanout", target_nodes=list(targets), aggregation_strategy="majority_vote", fail_fast=True, parallel=False
        )
        graph = a_graph({"fan": fanout, "b": node("model")}, [("start", "fan"), ("fan", "end")])
        executor = an_executor(graph, {"b": fails()})
        used = counter()
        executor.ids = lambda: f"id-{next(used)}"
        go(executor)
        return next(used)

    assert ids_used("b") == ids_used("b", "b", "b")


def test_fail_fast_waits_for_all_if_none_fails():
    acts = {"a": says("x", after_ms=5), "b": says("x", after_ms=9)}

    result = fan(acts, ["a", "b"], fail_fast=True)

    assert ("succeeded", 9.0) == (result.status, result.total_latency_ms)


def test_each_target_s_time_counts_from_its_own_start():
    acts = {"a": says("x", after_ms=15)}

    assert "succeeded" == fan(acts, ["a", "a", "a"], parallel=False, timeout_ms=20).status


@pytest.mark.parametrize(("after_ms", "status"), [(19, "succeeded"), (20, "failed"), (21, "failed")])
def test_a_target_has_the_fanout_s_timeout_to_the_very_moment(after_ms, status):
    result = fan({"a": says("x", after_ms=after_ms)}, ["a"], timeout_ms=20)

    assert status == result.status
    assert (None if status == "succeeded" else "TIMEOUT") == code(result)


def test_a_target_s_retries_are_within_the_fanout_s_timeout():
    log: list[float] = []
    acts = {"a": noting(log, fails(after_ms=10))}
    result = fan(acts, ["a"], timeout_ms=50, retries={"a": {"retry_count": 9, "retry_delay_ms": 10}})

    assert [0.0, 20.0, 40.0] == log
    assert ("TIMEOUT", "a", 50.0) == (code(result), result.error and result.error.node_id, result.total_latency_ms)


def test_a_target_that_is_too_late_is_no_vote_and_the_others_decide():
    acts = {"a": says("x", after_ms=5), "slow": says("y", after_ms=99)}
    result = fan(acts, ["slow", "a", "a"], timeout_ms=20)

    assert ("succeeded", "x", 20.0) == (result.status, result.content, result.total_latency_ms)


def test_a_retried_fanout_runs_all_targets_again_under_the_same_paths():
    acts = {"a": says("x"), "b": in_turn(fails(), says("x"))}
    result = fan(acts, ["a", "b"], retry_count=1, retry_delay_ms=10, require_all_success=True)
    paths = [e.path for e in events(result, EventKind.STEP_STARTED) if e.node_id in ("a", "b")]

    assert ("succeeded", ["2.1", "2.2", "2.1", "2.2"]) == (result.status, paths)
    assert 10.0 == result.total_latency_ms


def test_a_fanout_whose_target_failed_for_good_is_not_retried():
    acts = {"a": fails(recoverable=False)}

    assert 1 == count(fan(acts, ["a"], retry_count=3), EventKind.ATTEMPT_STARTED, "fan")


def test_ways_and_policies_of_a_target_are_ignored():
    """Inside a wrapper the wrapper judges."""
    acts = {"a": says("x", way="nowhere"), "b": fails()}
    result = fan(acts, ["a", "a", "b"], failure_policy="skip_failed")

    assert ("succeeded", None) == (result.status, result.error)


def writes(name: str, text: str) -> Any:
    async def act(message: Message, context: ExecutionContext) -> NodeResult:
        context.variables.setdefault("list", []).append(name)
        context.variables[name] = 1
        return success(passed_on(message, context, content=text))

    return act


def test_targets_work_on_copies_and_only_the_winner_s_writes_are_kept():
    nodes = {
        "fan": node("fanout", target_nodes=["a", "b", "c"], aggregation_strategy="majority_vote"),
        **{name: node("model") for name in "abc"},
        "last": node("model"),
    }
    seen: list[Any] = []

    async def last(message: Message, context: ExecutionContext) -> NodeResult:
        seen.append(dict(context.variables))
        return success(passed_on(message, context))

    graph = a_graph(nodes, [("start", "fan"), ("fan", "last"), ("last", "end")])
    acts = {"a": writes("a", "no"), "b": writes("b", "yes"), "c": writes("c", "yes"), "last": last}
    go(an_executor(graph, acts), variables={"list": ["given"]})

    assert [{"list": ["given", "b"], "b": 1}] == seen


def test_fanouts_nest_and_count_their_steps_and_tokens():
    inner = node("fanout", target_nodes=["a", "a"], aggregation_strategy="majority_vote")
    model = ScriptedModel("x")
    graph = a_graph(
        {
            "fan": node("fanout", target_nodes=["inner", "a"], aggregation_strategy="majority_vote"),
            "inner": inner,
            "a": node("model"),
        },
        [("start", "fan"), ("fan", "end")],
    )
    result = go(an_executor(graph, model=model))
    paths = [e.path for e in events(result, EventKind.STEP_STARTED)]

    assert ["1", "2", "2.1", "2.2", "2.1.1", "2.1.2", "3"] == paths
    assert (15, 7) == (result.tokens_used, result.nodes_executed)


def test_a_nested_fanout_s_failures_do_not_hide_the_outer_ones():
    nodes = {
        "fan": node("fanout", target_nodes=["inner", "b"], aggregation_strategy="majority_vote"),
        "inner": node("fanout", target_nodes=["a", "a"], aggregation_strategy="majority_vote"),
        "a": node("model"),
        "b": node("model"),
    }
    graph = a_graph(nodes, [("start", "fan"), ("fan", "end")])
    result = go(an_executor(graph, {"a": fails(), "b": fails()}))

    assert result.error is not None
    assert "a" == result.error.node_id
    assert ["inner", "b"] == [failure["node"] for failure in result.error.details["failures"]]


def test_an_error_that_kills_only_its_node_leaves_the_other_branches_alone():
    acts = {"a": says("x", after_ms=5), "b": raises(SystemExit(1))}

    result = fan(acts, ["a", "b", "a"])

    assert ("succeeded", "x") == (result.status, result.content)


def test_a_wrapper_that_raises_is_a_failed_node_like_any_other():
    fanout = node("fanout", target_nodes=["a"], aggregation_strategy="majority_vote")
    graph = a_graph({"fan": fanout, "a": node("model")}, [("start", "fan"), ("fan", "end")])
    executor = an_executor(graph)
    executor.nodes["fan"] = Wrapping(graph.nodes["fan"], raises(ValueError("odd")))
    result = go(executor)

    assert result.error is not None
    assert ("failed", "UNKNOWN", "fan", "ValueError: odd") == (
        result.status,
        code(result),
        result.error.node_id,
        result.error.message,
    )


def test_a_fanout_alone_says_what_it_needs():
    with pytest.raises(UsageError, match="execute it through an Executor"):
        alone(FanoutConfig(target_nodes=("a",)))


class Echo:
    """Targets that answer their own names."""

    async def run_targets(self, targets: Any, message: Message, variables: Any, **how: Any) -> Joined:
        assert {"timeout_ms": 30_000, "at_once": 2, "stop_at": None} == how
        assert {"given": 1} == variables
        return Joined([StepOutcome(message=a_message(content=target)) for target in targets])

    def limit(self, timeout_ms: int) -> Any:
        raise AssertionError("a fanout has no time of its own")


def vote_of(*targets: str) -> NodeResult:
    config = FanoutConfig(target_nodes=targets, aggregation_strategy="majority_vote")
    return alone(config, steps=Echo(), variables={"given": 1})


def test_a_fanout_alone_works_with_steps_of_a_test_s_own():
    result = vote_of("same", "same")

    assert "same" == result.output
    assert {"votes": {"same": 2}, "needed": 2} == result.metadata


def test_a_fanout_alone_names_itself_when_nobody_agrees():
    error = vote_of("one", "other").error

    assert error is not None
    assert (ErrorCode.GATE_FAILED, "n") == (error.code, error.node_id)
    assert {"one": 1, "other": 1} == error.details["votes"]


@pytest.mark.parametrize(
    ("names", "answer", "meant"),
    [
        (["c#", "c++"], "c++.", "c++"),
        (["c#", "c++"], '"C++"', "c++"),
        (["c++", "c#"], "(C#)", "c#"),
        (["c", "c++"], "c++!", "c++"),
        (["c++", "c"], "c.", "c"),
        (["c#", "c++"], "c", "c#"),
        (["c#"], "c++", "c#"),
        (["c#", "c++"], "I choose c++", "c++"),
        (["-a-", "a"], "-a.", "a"),
    ],
)
def test_between_names_that_differ_in_outer_signs_only_the_longest_in_the_answer_is_meant(names, answer, meant):
    assert meant == meant_name(answer, names)
    place = reference_text.meant(answer, names)
    assert place is not None
    assert meant == names[place]


def test_failures_of_a_fanout_are_told_by_its_targets():
    nodes = {
        "fan": node("fanout", target_nodes=["t1", "t2"], aggregation_strategy="all"),
        "t1": node("timeout", inner_node="m"),
        "t2": node("timeout", inner_node="m"),
        "m": node("model"),
    }
    graph = a_graph(nodes, [("start", "fan"), ("fan", "end")])
    result = go(an_executor(graph, {"m": fails()}))

    assert result.error is not None
    assert ("m", ["t1", "t2"]) == (
        result.error.node_id,
        [failure["node"] for failure in result.error.details["failures"]],
    )


def test_a_domain_is_named_by_the_name_that_it_equals_and_by_no_other():
    compound = CompoundRoute(domains=("C++", "c"), target="both")

    assert best_compound([compound], ["c"], ["c", "C++"]) is None
    assert compound is best_compound([compound], ["c", "C++"], ["c", "C++"])
