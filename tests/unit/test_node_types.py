"""Node types of one's own, by decorator and by entry point, and every type executed alone."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import pytest
from pydantic import Field, ValidationError

from tests.support.graphs_text import errors_of, framed, place, refusal_of, warnings_of
from tests.support.models import ScriptedModel
from tests.support.runs import a_graph, a_line, a_message, an_executor, code, events, go, node, run_clean, visited
from tinyllm.breaker import breaker_key
from tinyllm.config import (
    CONFIGS,
    CircuitBreakerConfig,
    Finding,
    NodeConfig,
    NodeDefinition,
    NodeType,
    Part,
    a_warning,
    an_error,
    config_class,
    custom_types,
    kinds,
    type_names,
)
from tinyllm.config.base import NodeIds
from tinyllm.context import ExecutionContext
from tinyllm.errors import ErrorCode, GraphConfigError, NodeError, UsageError
from tinyllm.executor import Executor
from tinyllm.graph import build_graph, parse_graph
from tinyllm.message import Message, NodeResult
from tinyllm.nodes import NODES, forget_node_type, make_node, node_type
from tinyllm.nodes.base import BaseNode, passed_on, success
from tinyllm.trace import EventKind

pytestmark = pytest.mark.unit

LINE = "- {from_node: start, to_node: n}\n- {from_node: n, to_node: done}"


class ShoutConfig(NodeConfig):
    """How loud."""

    marks: Annotated[int, Field(ge=1, le=3)] = 1
    word: str


class Shout(BaseNode):
    """Says its word."""

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        config = self.config_as(ShoutConfig)
        return success(passed_on(message, context, content=config.word.upper() + "!" * config.marks))


class Plain(BaseNode):
    """Passes everything on."""

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        return success(passed_on(message, context))


@pytest.fixture(autouse=True)
def _no_types_but_our_own() -> Iterator[None]:
    """Whatever a test registers is gone after it."""
    before = custom_types()
    yield
    for name in custom_types():
        if name not in before:
            forget_node_type(name)
    assert before == custom_types()


@pytest.fixture
def shout() -> str:
    node_type("voice.shout", config=ShoutConfig)(Shout)
    return "voice.shout"


# --- by decorator ----------------------------------------------------------------------------------------


def test_a_class_becomes_a_node_type_and_stays_what_it_is(shout):
    assert Shout is node_type("again", config=ShoutConfig)(Shout)
    assert ShoutConfig is config_class(shout)
    assert {"again", "voice.shout"} <= set(custom_types())
    assert [*NodeType, *custom_types()] == list(type_names())


def test_a_graph_names_it_and_runs_it(shout):
    text = framed(f"- {{id: n, type: {shout}, config: {{word: hey, marks: 3}}}}", LINE)
    graph = parse_graph(text)
    result = go(Executor(graph))

    assert () == graph.warnings
    assert (shout, ShoutConfig(word="hey", marks=3)) == (graph.nodes["n"].type, graph.nodes["n"].config)
    assert ("succeeded", "HEY!!!", ["start", "n", "done"]) == (result.status, result.content, visited(result))


def test_without_a_config_of_its_own_it_has_what_every_node_has():
    node_type("plain")(Plain)
    text = framed("- {id: n, type: plain, config: {retry_count: 2}}", LINE)

    assert NodeConfig(retry_count=2) == parse_graph(text).nodes["n"].config
    assert [("unknown_key", "nodes[0].config.word", 5, 33)] == errors_of(text.replace("retry_count: 2", "word: hey"))


def test_its_graph_survives_a_round_trip_through_its_definition(shout):
    graph = parse_graph(framed(f"- {{id: n, type: {shout}, config: {{word: hey}}}}", LINE))
    value = graph.definition.model_dump(mode="json")

    assert {"word": "hey", "marks": 1} == {key: value["nodes"][0]["config"][key] for key in ("word", "marks")}
    assert graph.definition == build_graph(value).definition


def test_every_problem_of_its_config_is_told_with_its_place(shout):
    text = framed(
        f"""
        - id: n
          type: {shout}
          config:
            marks: 4
            wrod: hey
            timeout_ms: 0
        """,
        LINE,
    )

    assert [
        ("invalid_value", "nodes[0].config.marks", 8, 5),
        ("missing_key", "nodes[0].config.word", 8, 5),
        ("unknown_key", "nodes[0].config.wrod", 9, 5),
        ("invalid_value", "nodes[0].config.timeout_ms", 10, 5),
    ] == errors_of(text)
    assert "Did you mean word?" in {problem.hint for problem in refusal_of(text).problems}


class Pair(Part):
    """One of a list."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"old"})

    left: str
    right: str


class PickyConfig(NodeConfig):
    """Says all that a config can say of itself."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"legacy"})
    LISTED: ClassVar[dict[str, type[Part]]] = {"pairs": Pair}

    pairs: Annotated[tuple[Pair, ...], Field(strict=False)] = ()
    targets: NodeIds = ()

    def findings(self) -> Iterable[Finding]:
        for number, pair in enumerate(self.pairs):
            if pair.left == pair.right:
                yield ("pairs", number, "right"), an_error("same", "left and right are the same")
        if not self.targets:
            yield (), a_warning("no_targets", "it goes nowhere of its own")

    def ways(self) -> tuple[str, ...]:
        return self.targets

    def references(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        for number, name in enumerate(self.targets):
            yield ("targets", number), name


class Picky(BaseNode):
    """Goes to its last target."""

    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        return success(passed_on(message, context), self.config_as(PickyConfig).targets[-1])


def test_its_config_may_judge_itself_ignore_keys_and_list_parts():
    node_type("picky", config=PickyConfig)(Picky)
    text = framed(
        """
        - id: n
          type: picky
          config:
            legacy: 1
            pairs:
              - {left: a, right: b, old: 1}
              - {left: c, right: d}
        """,
        LINE,
    )

    assert [
        ("ignored_key", "nodes[0].config.legacy", 8, 5),
        ("no_targets", "nodes[0].config", 8, 5),
        ("ignored_key", "nodes[0].config.pairs[0].old", 10, 29),
    ] == warnings_of(text)
    assert [("same", "nodes[0].config.pairs[1].right", 11, 19)] == errors_of(text.replace("right: d", "right: c"))
    problem = refusal_of(text.replace("right: d", "rihgt: d")).problems[-1]
    assert ("unknown_key", "nodes[0].config.pairs[1].rihgt", 11, 19) == place(problem)
    assert "Did you mean right?" == problem.hint


def test_its_config_may_name_ways_which_are_checked_and_taken():
    node_type("picky", config=PickyConfig)(Picky)
    nodes = {"n": node("picky", targets=["a", "b"]), "a": node("transform"), "b": node("transform")}
    graph = a_graph(nodes, [("start", "n"), ("a", "end"), ("b", "end")])

    assert () == graph.warnings
    assert ("a", "b") == graph.ways("n")
    assert ["start", "n", "b", "end"] == visited(go(Executor(graph)))
    with pytest.raises(GraphConfigError) as error:
        a_graph({"n": node("picky", targets=["ghost"])}, [("start", "n"), ("n", "end")])
    assert [("unknown_node", "nodes[2].config.targets[0]")] == [(p.code, p.path) for p in error.value.problems]


@pytest.mark.parametrize(
    "around",
    [
        node("fanout", target_nodes=["n", "n"], aggregation_strategy="majority_vote"),
        node("loop", body_node="n", fixed_count=2),
        node("timeout", inner_node="n"),
    ],
    ids=lambda around: around["type"],
)
def test_it_runs_inside_every_wrapper(around, shout):
    graph = a_graph({"w": around, "n": node(shout, word="x")}, [("start", "w"), ("w", "end")])

    assert "X!" == go(Executor(graph)).content


def test_it_is_retried_and_timed_like_any_node():
    attempts: list[int] = []

    class Flaky(BaseNode):
        async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
            attempts.append(1)
            if len(attempts) < 3:
                raise OSError("not yet")
            return success(passed_on(message, context))

    node_type("flaky")(Flaky)
    result = go(Executor(a_line(node("flaky", retry_count=2, retry_delay_ms=7))))

    assert ("succeeded", 3, 14.0) == (result.status, len(attempts), result.total_latency_ms)


def test_each_of_its_nodes_has_a_breaker_of_its_own():
    class Broken(BaseNode):
        async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
            raise NodeError(ErrorCode.TOOL_ERROR, "broken")

    node_type("broken")(Broken)
    graph = a_line(node("broken"), node("broken"))
    executor = an_executor(
        graph, breaker=CircuitBreakerConfig(threshold=1), failure_policy="skip_failed", max_node_failures=9
    )
    codes = [[(e.node_id, e.code) for e in events(go(executor), EventKind.STEP_ENDED) if e.code] for _ in range(2)]

    assert ["node work", "node work2"] == [breaker_key(graph.nodes[name]) for name in ("work", "work2")]
    assert [
        [("work", "TOOL_ERROR"), ("work2", "TOOL_ERROR")],
        [("work", "CIRCUIT_OPEN"), ("work2", "CIRCUIT_OPEN")],
    ] == codes


def test_it_gets_what_the_executor_was_given():
    seen: list[ExecutionContext] = []

    class Looks(BaseNode):
        async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
            seen.append(context)
            context.variables["n"] = 2
            return success(passed_on(message, context))

    node_type("looks")(Looks)
    model = ScriptedModel()
    executor = Executor(a_line(node("looks"), node("looks")), model=model, prompts={"p": "x"})
    go(executor, run_id="r", variables={"n": 1})
    first, second = seen

    assert ("r", "work", "2", "r:2:work") == (first.run_id, first.node_id, first.path, first.idempotency_key)
    assert (model, {"p": "x"}, None) == (first.model, dict(first.prompts), first.steps)
    assert ({"n": 2}, 1, 2) == (second.variables, len(first.history[:1]), len(second.history[:2]))


# --- what is refused -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "Shout", "1st", "_a", ".a", "a-b", "a b", "ä", "a\n", "shout!"])
def test_a_name_that_no_file_could_hold_is_refused(name):
    with pytest.raises(UsageError, match="is no name of a node type"):
        node_type(name)(Plain)
    assert name not in custom_types()


@pytest.mark.parametrize("name", [*NodeType, "dynamic_fanout", "reasoning", "custom"])
def test_a_name_of_tinyllm_itself_is_refused(name):
    with pytest.raises(UsageError, match="is a node type of TinyLLM itself"):
        node_type(name)(Plain)
    assert CONFIGS.get(name) is (None if name in ("reasoning", "custom", "dynamic_fanout") else CONFIGS[name])


def test_the_same_class_may_be_registered_again_and_another_may_not(shout):
    node_type(shout, config=ShoutConfig)(Shout)

    with pytest.raises(UsageError, match="is registered already, as Shout"):
        node_type(shout, config=ShoutConfig)(Plain)
    assert isinstance(make_node(definition(shout, word="x")), Shout)


def test_the_same_class_with_another_config_is_refused_and_changes_nothing(shout):
    with pytest.raises(UsageError, match="is registered already, with ShoutConfig"):
        node_type(shout)(Shout)
    assert ShoutConfig is config_class(shout)


@pytest.mark.parametrize("thing", [5, "Shout", lambda message, context: None, dict, Shout.execute])
def test_what_is_no_node_class_is_refused(thing):
    with pytest.raises(UsageError, match=r"must be a class derived from tinyllm\.BaseNode"):
        node_type("thing")(thing)
    assert config_class("thing") is None


@pytest.mark.parametrize("config", [5, "x", dict, Part, ShoutConfig(word="x"), {"word": str}])
def test_what_is_no_class_of_a_config_is_refused(config):
    with pytest.raises(UsageError, match=r"must be a class derived from tinyllm\.NodeConfig"):
        node_type("thing", config=config)
    assert config_class("thing") is None


def test_a_class_that_claims_to_wrap_others_is_refused():
    class Wraps(Plain):
        wraps: ClassVar[bool] = True

    with pytest.raises(UsageError, match="only TinyLLM's own types can"):
        node_type("wraps")(Wraps)
    assert config_class("wraps") is None


def test_a_class_without_execute_is_refused_where_its_graph_is_used():
    class Empty(BaseNode):
        pass

    node_type("empty")(Empty)

    with pytest.raises(UsageError, match=r"'work' of type 'empty' cannot be made: TypeError: .*abstract"):
        Executor(a_line(node("empty")))


def definition(kind: str, **config: Any) -> NodeDefinition:
    return NodeDefinition.model_validate({"id": "n", "type": kind, "config": config})


def test_a_type_that_was_forgotten_is_unknown_to_files_definitions_and_executors(shout):
    text = framed(f"- {{id: n, type: {shout}, config: {{word: hey}}}}", LINE)
    graph = parse_graph(text)
    forget_node_type(shout)
    forget_node_type(shout)

    assert [("unknown_type", "nodes[0].type", 5, 11)] == errors_of(text)
    with pytest.raises(ValidationError, match="there is no node type"):
        definition(shout, word="x")
    with pytest.raises(UsageError, match="which is not registered"):
        Executor(graph)


def test_a_forgotten_name_is_free_again(shout):
    forget_node_type(shout)
    node_type(shout)(Plain)

    assert isinstance(make_node(definition(shout)), Plain)


def test_an_unknown_type_is_compared_with_custom_ones_too(shout):
    (problem,) = refusal_of(framed("- {id: n, type: voice.shuot}", LINE)).problems

    assert f"Did you mean {shout}?" == problem.hint


def test_forgetting_a_type_of_tinyllm_itself_does_nothing():
    forget_node_type("model")

    assert "model" in CONFIGS
    assert NODES[NodeType.MODEL] is type(make_node(definition("model")))


# --- by entry point --------------------------------------------------------------------------------------


@dataclass
class Installed:
    """An entry point as an installed package has it."""

    name: str
    load_it: Callable[[], Any]
    loads: list[str] = field(default_factory=list)
    value: str = "package.module:Node"

    def load(self) -> Any:
        self.loads.append(self.name)
        return self.load_it()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Installed]:
    """Makes a package look installed whose entry point of this name does `load_it`."""
    packages: list[Installed] = []

    def found(*, group: str, name: str | None = None) -> list[Installed]:
        assert "tinyllm.nodes" == group
        return [package for package in packages if name in (None, package.name)]

    def installed(name: str, load_it: Callable[[], Any]) -> Installed:
        packages.append(Installed(name, load_it))
        return packages[-1]

    monkeypatch.setattr(kinds, "entry_points", found)
    monkeypatch.setattr(kinds, "_loaded", set())
    return installed


def test_an_entry_point_makes_its_type_known_where_a_graph_names_it(install):
    package = install("pack.shout", lambda: node_type("pack.shout", config=ShoutConfig)(Shout))
    install("pack.other", lambda: pytest.fail("nobody named this one"))
    text = framed("- {id: n, type: pack.shout, config: {word: hey}}", LINE)

    assert [] == package.loads
    assert "HEY!" == go(Executor(parse_graph(text))).content
    assert [("missing_key", "nodes[0].config.word", 5, 37)] == errors_of(text.replace("word: hey", ""))
    assert ["pack.shout"] == package.loads
    forget_node_type("pack.shout")


def test_installed_types_are_listed_without_being_loaded(install):
    install("pack.b", lambda: pytest.fail("only listed"))
    install("pack.a", lambda: pytest.fail("only listed"))
    node_type("pack.b2")(Plain)

    assert ["pack.a", "pack.b", "pack.b2"] == [name for name in custom_types() if name.startswith("pack.")]
    (problem,) = refusal_of(framed("- {id: n, type: xyz}", LINE)).problems
    assert "pack.a, pack.b, pack.b2." in str(problem.hint)
    forget_node_type("pack.b2")


def test_an_entry_point_that_registers_nothing_leaves_its_type_unknown_and_is_loaded_once(install):
    package = install("pack.none", lambda: None)
    text = framed("- {id: n, type: pack.none}", LINE)

    assert [("unknown_type", "nodes[0].type", 5, 11)] == errors_of(text) == errors_of(text)
    assert ["pack.none"] == package.loads


def test_a_package_that_cannot_be_loaded_is_a_problem_of_the_file_that_names_it(install):
    def broken() -> None:
        raise ImportError("no module named torch")

    install("pack.broken", broken)
    text = framed("- {id: n, type: pack.broken}", LINE)

    for _ in range(2):
        (problem,) = refusal_of(text).problems
        assert ("nodes[0].type", 5, 11) == place(problem)[1:]
        assert "torch" in str(problem)


def test_no_entry_point_takes_the_place_of_a_type_of_tinyllm_itself(install):
    package = install("model", lambda: node_type("model")(Plain))

    assert CONFIGS["model"] is config_class("model")
    assert [] == package.loads


def test_a_class_that_was_registered_by_hand_comes_before_an_entry_point(install, shout):
    package = install(shout, lambda: node_type(shout)(Plain))

    assert ShoutConfig is config_class(shout)
    assert [] == package.loads


def test_the_real_entry_points_are_those_of_the_group():
    names = {entry.name for entry in importlib.metadata.entry_points(group="tinyllm.nodes")}

    assert names <= set(custom_types())


# --- one node alone --------------------------------------------------------------------------------------


ROUTE = {"name": "a", "target": "x"}


def alone(kind: str, message: Message | None = None, **config: Any) -> NodeResult:
    """One execution with nothing but an empty context."""
    single = make_node(definition(kind, **config))
    return run_clean(single.execute(message or a_message(content="1 + 1", task="t"), ExecutionContext()))


@pytest.mark.parametrize(
    ("kind", "config", "content", "way"),
    [
        ("entry", {"required_fields": ["content"]}, "1 + 1", []),
        ("exit", {"status": "success"}, "1 + 1", []),
        ("transform", {"transforms": [{"type": "json_wrap", "params": {}}]}, '{"content": "1 + 1"}', []),
        ("gate", {"conditions": [{"name": "a", "expression": "'1' in content", "target": "x"}]}, "1 + 1", ["x"]),
        ("gate", {"default_target": "y"}, "1 + 1", ["y"]),
        ("router", {"mode": "rules", "routes": [{**ROUTE, "condition": "task == 't'"}]}, "1 + 1", ["x"]),
        ("router", {"mode": "keywords", "routes": [{**ROUTE, "keywords": ["1"]}]}, "1 + 1", ["x"]),
        ("tool", {"tool_id": "calculator", "input_mapping": {"expression": "content"}}, "2", []),
    ],
)
def test_every_type_but_wrappers_runs_alone(kind, config, content, way):
    result = alone(kind, **config)

    assert (True, way) == (result.success, list(result.next_nodes))
    assert content == str(result.output)[: len(content)]
    assert "node" == result.output_messages[-1].source_node


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("model", {}),
        ("gate", {"mode": "llm", "conditions": [{"name": "a", "expression": "good", "target": "x"}]}),
        ("gate", {"mode": "hybrid", "conditions": [{"name": "a", "expression": "0", "target": "x"}]}),
        ("router", {"routes": [{"name": "a", "target": "x"}]}),
    ],
)
def test_what_asks_a_model_says_alone_that_there_is_none(kind, config):
    with pytest.raises(NodeError, match="no model client was handed in") as caught:
        alone(kind, **config)

    assert (ErrorCode.MODEL_ERROR, False) == (caught.value.code, caught.value.recoverable)


@pytest.mark.parametrize(
    ("kind", "config"),
    [("fanout", {"target_nodes": ["x"]}), ("loop", {"body_node": "x"}), ("timeout", {"inner_node": "x"})],
)
def test_a_wrapper_alone_says_what_it_needs(kind, config):
    with pytest.raises(UsageError, match="a wrapper runs other nodes: execute it through an Executor"):
        alone(kind, **config)


def test_a_custom_type_runs_alone(shout):
    assert "HEY!" == alone(shout, word="hey").output


def test_a_context_of_a_test_is_enough_to_see_what_a_node_writes():
    class Writes(Plain):
        async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
            context.variables["seen"] = message.payload.content
            return await super().execute(message, context)

    node_type("writes")(Writes)
    context = ExecutionContext()
    run_clean(make_node(definition("writes")).execute(a_message(content="c"), context))

    assert {"seen": "c"} == context.variables
    assert {} == ExecutionContext().variables


def test_a_custom_type_s_failure_is_the_run_s_error():
    class Fails(BaseNode):
        async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
            raise NodeError(ErrorCode.VALIDATION_ERROR, "no")

    node_type("fails")(Fails)

    assert "VALIDATION_ERROR" == code(go(Executor(a_line(node("fails")))))
