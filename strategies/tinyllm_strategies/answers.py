"""What models say: the plain, the odd, and what a graph's own conditions look for."""

from __future__ import annotations

import ast
import json
import re
from collections import deque
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, TypeGuard

from hypothesis import strategies as st

from tinyllm.config import (
    ExtractParams,
    FanoutConfig,
    GateConfig,
    JoinParams,
    LoopConfig,
    ModelConfig,
    Part,
    PathParams,
    ReplaceParams,
    RouterConfig,
    SplitParams,
    TimeoutConfig,
    ToolConfig,
    TransformConfig,
    TruncateParams,
)
from tinyllm.expressions import parse
from tinyllm.graph import Graph
from tinyllm.testing.script import models_of

ODD_ANSWERS = (
    " \n",
    "I'm sorry, I can't help with that.",
    "null",
    '{"answer": 42}',
    "0",
    "-1",
    "42",
    "0.5",
    "yes and no",
    "NaN",
    "\x00",
    "\N{ZERO WIDTH SPACE}",
    "\N{GRINNING FACE}\N{RIGHT-TO-LEFT OVERRIDE}",
    "word " * 400,
)
#: Texts that conditions on length look at are made as long as they ask, up to here.
LENGTH_MAX = 100_000
LITERALS_MAX = 40
#: Answers of a shape, for one graph; and values inside one of them.
SHAPED_MAX = 60
PARTS_MAX = 8
EXPRESSIONS = ("1 + 1", "2 * (3 + 4)", "sqrt(2)", "1 / 0", "one plus one")
JSON_TEXTS = ('{"a": 1}', '[{"a": [1, null]}, "b"]', '"text"', "{'a': 1}")
#: Iterations of one loop whose calls have answers and faults of their own.
ITERATIONS_MAX = 4
#: Steps to look for voices among; wrappers inside wrappers can have more branches than anyone will ever run.
STEPS_MAX = 2_000


def model_answers() -> st.SearchStrategy[str]:
    """Any answer. Shrinks to `ok`, then to the empty text."""
    return st.sampled_from(("ok", "", *ODD_ANSWERS)) | st.text(max_size=40)


#: What drawn graphs look for, alike but for spelling, and empty answers.
SHORT_ANSWERS = ("ok", "a", "b", " A", "a b", "is_a", "Is_B!", "", " ")


def short_answers(graph: Graph | None = None) -> st.SearchStrategy[str]:
    """The few answers that drawn graphs look for; with a graph also those that only some nodes can use.

    Shrinks to `ok`.
    """
    return _short_answers(() if graph is None else _special_answers(graph))


@lru_cache(maxsize=1_024)
def _short_answers(special: tuple[str, ...]) -> st.SearchStrategy[str]:
    plain = st.sampled_from(SHORT_ANSWERS)
    return plain | st.sampled_from(special) if special else plain


def _special_answers(graph: Graph) -> tuple[str, ...]:
    """Answers for the routers, schemas, transforms and tools of a drawn graph; few, so that they are met."""
    found: dict[str, None] = {}
    for node in graph.definition.nodes:
        match node.config:
            case RouterConfig(mode="model") as config if config.routes:
                found.update(dict.fromkeys(_labels([route.name for route in config.routes], config)))
            case RouterConfig(mode="keywords"):
                found.update(dict.fromkeys(("c++ is ok.", "books, b")))
            case ModelConfig(response_schema=schema) if schema is not None:
                found.update(dict.fromkeys((*_objects(schema)[:3], '{"score": 0.5}')))
            case TransformConfig(transforms=steps) if steps:
                found.update(dict.fromkeys(("b,a b", '{"a": [1, "b"]}', '["b", "a"]')))
            case ToolConfig():
                found.update(dict.fromkeys(("1 + 2 * 3", '{"a": [1, "b"]}')))
            case FanoutConfig(aggregation_strategy="majority_vote"):
                # Votes for what others say, in another dress.
                found.update(dict.fromkeys(("A", "OK", " is_a ", "A  B")))
    return tuple(found)


def _labels(names: list[str], config: RouterConfig) -> list[str]:
    """The names as answers give them; several at once where that means something."""
    said = [*names, f'"{names[-1].lower()}".', f"either {names[0]} or something else"]
    if config.multi_label:
        quoted = f'"{names[-1]}", {names[0]}.'
        said += [
            ", ".join(names),
            "\n".join(reversed(names)),
            f"{names[-1]},nothing, {names[0]},{names[-1]}",
            quoted,
        ] * 2
    return said


def answers_for(graph: Graph) -> st.SearchStrategy[str]:
    """Answers that matter to this graph: its own words in several spellings, and odd ones. Shrinks to `ok`."""
    texts, numbers = _literals(graph)
    lengths = ["x" * number for number in numbers if _is_length(number)]
    asked_for = st.sampled_from(("ok", "", *texts, *map(str, numbers), *lengths))
    shaped = _shaped(graph)
    return (
        asked_for
        | st.sampled_from(tuple(dict.fromkeys((*_words(texts, numbers), *ODD_ANSWERS))))
        | (st.sampled_from(shaped) | st.text(max_size=20) if shaped else st.text(max_size=20))
    )


def _words(texts: list[str], numbers: list[int | float]) -> list[str]:
    """Texts that only look like those that the graph asks for, and texts as long as it asks for."""
    words = []
    for text in texts:
        words += [text.upper(), text.lower(), f" {text}.", f"I think: {text}!", f"un{text}ly"]
    if len(texts) > 1:
        words += [" ".join(texts), " or ".join(texts[:2])]
    for number in numbers:
        words += [str(number + 1), str(number - 1)]
        if _is_length(number):
            words += ["x" * (number + 1), "x" * (number - 1)]
            words += [f"{text} {'x' * number}" for text in texts[:3]]
    return words


def _is_length(number: int | float) -> TypeGuard[int]:
    return isinstance(number, int) and 0 < number <= LENGTH_MAX


def _literals(graph: Graph) -> tuple[list[str], list[int | float]]:
    """The names and constants that decide where the graph goes on."""
    sources = [edge.condition for edge in graph.definition.edges if edge.condition is not None]
    texts: dict[str, None] = {}
    for node in graph.definition.nodes:
        match node.config:
            case GateConfig(mode=mode, conditions=conditions):
                if mode != "expression":
                    texts.update(dict.fromkeys(condition.name for condition in conditions))
                sources += [condition.expression for condition in conditions if mode != "llm"]
            case RouterConfig(mode="model", routes=routes):
                texts.update(dict.fromkeys(route.name for route in routes))
            case RouterConfig(mode="keywords", routes=routes):
                texts.update(dict.fromkeys(word for route in routes for word in route.keywords))
            case RouterConfig(routes=routes):
                sources += [route.condition for route in routes if route.condition is not None]
            case LoopConfig(condition_type="until_condition" | "while_condition", condition_expression=str(source)):
                sources.append(source)
    numbers: dict[int | float, None] = {}
    for source in sources:
        for part in ast.walk(parse(source).body):
            value = part.value if isinstance(part, ast.Constant) else None
            if isinstance(value, str) and value:
                texts[value] = None
            elif isinstance(value, int | float) and not isinstance(value, bool):
                numbers[value] = None
    return [*texts][:LITERALS_MAX], [*numbers][:LITERALS_MAX]


# --- answers of a shape ---------------------------------------------------------------------------------


def _shaped(graph: Graph) -> tuple[str, ...]:
    """Answers that schemas, transforms, tools and routers with several labels take apart."""
    found: dict[str, None] = {}
    for node in graph.definition.nodes:
        match node.config:
            case RouterConfig(mode="model", multi_label=True) as config if config.routes:
                found.update(dict.fromkeys(_labels([route.name for route in config.routes], config)))
            case ModelConfig(response_schema=schema) if schema is not None:
                found.update(dict.fromkeys(_objects(schema)))
            case TransformConfig(transforms=steps):
                found.update(dict.fromkeys(text for step in steps for text in _taken_apart(step.params)))
            case ToolConfig(tool_id=tool_id):
                found.update(dict.fromkeys(EXPRESSIONS if tool_id == "calculator" else JSON_TEXTS))
    return tuple(found)[:SHAPED_MAX]


def _taken_apart(params: Part) -> list[str]:
    """Texts in which a step of a transform finds what it looks for."""
    match params:
        case PathParams(path=path):
            value: Any = "x"
            for key in reversed(path.split(".")):
                value = [value] * (int(key) + 1) if key.isdecimal() and int(key) < PARTS_MAX else {key: value}
            return [_json(value)]
        case ExtractParams(pattern=pattern) | ReplaceParams(pattern=pattern):
            plain = re.sub(r"\\[a-zA-Z]|[\\^$()\[\]{}|?*+.]", " ", pattern).strip()
            return [plain] if plain else []
        case SplitParams(separator=separator):
            return [separator.join(("a", "b", "c")), separator]
        case JoinParams():
            return ['["a", "b"]']
        case TruncateParams(max_length=length) if length < LENGTH_MAX:
            return ["x" * length, "x" * (length + 1)]
    return []


def _objects(schema: Mapping[str, Any]) -> list[str]:
    """JSON objects: one with every property, one with those that are required, and some that do not fit."""
    properties = schema.get("properties", {})
    whole = {name: _fitting(inner) for name, inner in properties.items()}
    required = {name: whole.get(name, "x") for name in schema.get("required", properties)}
    wrong = {name: [value] for name, value in whole.items()}
    odd = [whole, required, wrong, {}, {**whole, "unasked": 1}]
    fenced = f"```json\n{_json(whole)}\n```"
    return [*dict.fromkeys((*map(_json, odd), fenced, f" {_json(whole)}\n"))]


def _fitting(schema: Any, depth: int = 0) -> Any:
    """A value that fits a simple schema, as well as can be told from type, enum, items and bounds."""
    if not isinstance(schema, Mapping) or depth > PARTS_MAX:
        return "x"
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][0]
    kind = schema.get("type")
    match kind[0] if isinstance(kind, list) and kind else kind:
        case "object":
            return {name: _fitting(inner, depth + 1) for name, inner in schema.get("properties", {}).items()}
        case "array":
            return [_fitting(schema.get("items"), depth + 1)] * min(max(1, _bound(schema, "minItems")), PARTS_MAX)
        case "integer" | "number":
            return max(1, _bound(schema, "minimum")) if "minimum" in schema else min(1, _bound(schema, "maximum", 1))
        case "boolean":
            return True
        case "null":
            return None
    return "x" * min(max(1, _bound(schema, "minLength")), LENGTH_MAX)


def _bound(schema: Mapping[str, Any], key: str, missing: int = 0) -> Any:
    bound = schema.get(key, missing)
    return bound if isinstance(bound, int | float) else missing


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


# --- who speaks -----------------------------------------------------------------------------------------


def voices(graph: Graph, *, most: int = 48) -> list[tuple[str, str]]:
    """The (node, branch) pairs under which calls can be made, visited nodes first; at most `most`."""
    found: dict[tuple[str, str], None] = {}
    waiting = deque((node_id, "") for node_id in graph.nodes if node_id in graph.shape.visitable)
    for _ in range(STEPS_MAX):
        if not waiting or len(found) == most:
            break
        node_id, branch = waiting.popleft()
        config = graph.nodes[node_id].config
        if models_of(config):
            found[node_id, branch] = None
        match config:
            case FanoutConfig(target_nodes=targets):
                waiting += [(target, f"{branch}.{number}") for number, target in enumerate(targets, 1)]
            case LoopConfig(body_node=body, count=count):
                waiting += [(body, f"{branch}.{number}") for number in range(1, min(count, ITERATIONS_MAX) + 1)]
            case TimeoutConfig(inner_node=inner):
                waiting.append((inner, branch))
    return [*found]
