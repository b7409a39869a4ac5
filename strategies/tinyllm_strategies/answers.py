"""What models say: the plain, the odd, and what a graph's own conditions look for."""

from __future__ import annotations

import ast
from collections import deque
from typing import TypeGuard

from hypothesis import strategies as st

from tinyllm.config import FanoutConfig, GateConfig
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
#: Steps to look for voices among; fanouts inside fanouts can have more branches than anyone will ever run.
STEPS_MAX = 2_000


def model_answers() -> st.SearchStrategy[str]:
    """Any answer. Shrinks to `ok`, then to the empty text."""
    return st.sampled_from(("ok", "", *ODD_ANSWERS)) | st.text(max_size=40)


def short_answers() -> st.SearchStrategy[str]:
    """The few answers that drawn graphs look for, alike but for spelling, and empty ones. Shrinks to `ok`."""
    return st.sampled_from(("ok", "a", "b", " A", "a b", "is_a", "Is_B!", "", " "))


def answers_for(graph: Graph) -> st.SearchStrategy[str]:
    """Answers that matter to this graph: its own words in several spellings, and odd ones. Shrinks to `ok`."""
    texts, numbers = _literals(graph)
    lengths = ["x" * number for number in numbers if _is_length(number)]
    asked_for = st.sampled_from(("ok", "", *texts, *map(str, numbers), *lengths))
    return (
        asked_for
        | st.sampled_from(tuple(dict.fromkeys((*_words(texts, numbers), *ODD_ANSWERS))))
        | st.text(max_size=20)
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
    sources = [edge.condition for edge in graph.definition.edges if edge.condition is not None]
    texts: dict[str, None] = {}
    for node in graph.definition.nodes:
        if isinstance(node.config, GateConfig):
            texts.update(
                dict.fromkeys(
                    condition.name for condition in node.config.conditions if node.config.mode != "expression"
                )
            )
            sources += [condition.expression for condition in node.config.conditions if node.config.mode != "llm"]
    numbers: dict[int | float, None] = {}
    for source in sources:
        for part in ast.walk(parse(source).body):
            value = part.value if isinstance(part, ast.Constant) else None
            if isinstance(value, str) and value:
                texts[value] = None
            elif isinstance(value, int | float) and not isinstance(value, bool):
                numbers[value] = None
    return [*texts][:LITERALS_MAX], [*numbers][:LITERALS_MAX]


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
        if isinstance(config, FanoutConfig):
            waiting += [(target, f"{branch}.{number}") for number, target in enumerate(config.target_nodes, 1)]
    return [*found]
