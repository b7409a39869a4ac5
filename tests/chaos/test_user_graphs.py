"""Graphs as users write them: those that keep what they promise hold, the others are found out in a few decisions."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass

import pytest

from tinyllm.graph import Graph, parse_graph
from tinyllm.testing.promises import promises_of
from tinyllm_fuzz.hunt import Finding, Hunt, hunt

pytestmark = pytest.mark.chaos

#: Flaws are found long before; what holds is looked at this often.
EXAMPLES, SOUND_EXAMPLES = 300, 60
DEAD_END = "no dead end"
PROMISES = "keeps its promises"


@dataclass(frozen=True)
class Flawed:
    """A graph with a flaw: which check finds it, what the reason says, and in how many decisions at most."""

    check: str
    reason: str
    text: str
    decisions_max: int = 0


def user_graph(text: str) -> Graph:
    return parse_graph("id: g\nversion: 1.0.0\nname: g\nentry_points: [start]\n" + textwrap.dedent(text))


def hunted(text: str, *, seed_number: int = 0, max_examples: int = EXAMPLES) -> Hunt:
    graph = user_graph(text)
    return hunt(graph, promises_of(graph), profile="ci", seed_number=seed_number, max_examples=max_examples)


# --- shapes that several graphs share ------------------------------------------------------------------


def one_model(config: str, *, promises: str, on_error: str = "", more: str = "", exits: str = "done") -> str:
    """start -> ask -> done; `more` are further nodes, each of which leads to `done`."""
    names = [line.split("id: ")[1].split(",")[0] for line in more.splitlines() if "id: " in line]
    models = [name for name in names if name not in exits]
    on_error_line = f", on_error: {on_error}" if on_error else ""
    edges = "".join(f"  - {{from_node: {name}, to_node: done}}\n" for name in ["ask", *models])
    return (
        f"metadata: {{promises: {{{promises}}}}}\n"
        "nodes:\n"
        "  - {id: start, type: entry}\n"
        f"  - {{id: ask, type: model, config: {{{config}}}{on_error_line}}}\n"
        f"{more}"
        "  - {id: done, type: exit}\n"
        "edges:\n"
        "  - {from_node: start, to_node: ask}\n"
        f"{edges}"
        f"exit_points: [{exits}]\n"
    )


def one_gate(conditions: str, *, default: str = "", config: str = "") -> str:
    """start -> ask -> judge, which leads to `yes`, `no` or `done`."""
    default_line = f", default_target: '{default}'" if default else ""
    return f"""
    nodes:
      - {{id: start, type: entry}}
      - {{id: ask, type: model}}
      - id: judge
        type: gate
        config: {{{config} conditions: [{conditions}]{default_line}}}
      - {{id: 'yes', type: exit}}
      - {{id: 'no', type: exit}}
      - {{id: done, type: exit}}
    edges:
      - {{from_node: start, to_node: ask}}
      - {{from_node: ask, to_node: judge}}
    exit_points: ['yes', 'no', done]
    """


def three_voters(models: str, *, promises: str, config: str = "", on_error: str = "", voter: str = "") -> str:
    """start -> vote -> done; an `on_error` of `unsure` leads to an exit with status fallback."""
    nodes = "".join(
        f"      - {{id: v{number}, type: model, config: {{model: {model}{voter}}}}}\n"
        for number, model in enumerate(models.split(), 1)
    )
    targets = ", ".join(f"v{number}" for number in range(1, len(models.split()) + 1))
    on_error_line = f"on_error: {on_error}" if on_error else ""
    return f"""
    metadata: {{promises: {{{promises}}}}}
    nodes:
      - {{id: start, type: entry}}
      - id: vote
        type: fanout
        config: {{target_nodes: [{targets}], aggregation_strategy: majority_vote{config}}}
        {on_error_line}
{nodes}
      - {{id: done, type: exit}}
      - {{id: unsure, type: exit, config: {{status: fallback}}}}
    edges:
      - {{from_node: start, to_node: vote}}
      - {{from_node: vote, to_node: done}}
    exit_points: [done, unsure]
    """


def two_edges(first: str, second: str) -> str:
    """start -> ask, and from there two conditional edges and nothing else."""
    return f"""
    nodes:
      - {{id: start, type: entry}}
      - {{id: ask, type: model}}
      - {{id: 'yes', type: exit}}
      - {{id: 'no', type: exit}}
    edges:
      - {{from_node: start, to_node: ask}}
      - {{from_node: ask, to_node: 'yes', condition: "{first}"}}
      - {{from_node: ask, to_node: 'no', condition: "{second}"}}
    exit_points: ['yes', 'no']
    """


SHORTEN = """
    nodes:
      - {id: start, type: entry}
      - {id: ask, type: model}
      - id: length
        type: gate
        config: {conditions: [{name: long, expression: len(content) > 280, target: shorten}], default_target: done}
      - {id: shorten, type: model, config: {prompt_template: "In 280 characters: {content}"}}
      - id: shorter
        type: gate
        config: {conditions: [{name: short, expression: len(content) <= 280, target: done}]}
      - {id: done, type: exit}
    edges:
      - {from_node: start, to_node: ask}
      - {from_node: ask, to_node: length}
      - {from_node: shorten, to_node: shorter}
    exit_points: [done]
"""
TOLERANT = "tolerates_failures: 1"
YES = "{name: y, expression: \"content.strip().lower() == 'yes'\", target: 'yes'}"
NO = "{name: n, expression: \"content.strip().lower() == 'no'\", target: 'no'}"
REFINE_FOREVER = """
    allow_cycles: true
    nodes:
      - {id: start, type: entry}
      - {id: draft, type: model, config: {prompt_template: "Improve this: {content}"}}
      - id: good
        type: gate
        config:
          conditions: [{name: good, expression: "'DONE' in content", target: done}]
          default_target: draft
      - {id: done, type: exit}
    edges:
      - {from_node: start, to_node: draft}
      - {from_node: draft, to_node: good}
    exit_points: [done]
"""
REFINE_TWICE = """
    nodes:
      - {id: start, type: entry}
      - {id: draft, type: model, config: {prompt_template: "Improve this: {content}"}}
      - id: good
        type: gate
        config:
          conditions: [{name: good, expression: "'DONE' in content", target: done}]
          default_target: again
      - {id: again, type: model, config: {prompt_template: "Improve this: {content}"}}
      - {id: done, type: exit}
    edges:
      - {from_node: start, to_node: draft}
      - {from_node: draft, to_node: good}
      - {from_node: again, to_node: done}
    exit_points: [done]
"""
BACKUP = "  - {{id: backup, type: model, config: {{model: {model}}}}}\n"
FAILURE_EXIT = "  - {id: sorry, type: exit, config: {status: failure}}\n"
FALLBACK_EXIT = "  - {id: sorry, type: exit, config: {status: fallback}}\n"
RETRIED = "timeout_ms: 2000, retry_count: 1, retry_delay_ms: 500"
BACKED_OFF = "timeout_ms: 2000, retry_count: 2, retry_delay_ms: 1000, retry_backoff: exponential"

SOUND = {
    "a gate with a default": one_gate(f"{YES}, {NO}", default="done"),
    "a gate that covers every length": one_gate(
        "{name: s, expression: len(content) < 100, target: 'no'}, "
        "{name: l, expression: len(content) >= 100, target: 'yes'}"
    ),
    "a gate that reads a number, with a default for what is none": one_gate(
        "{name: high, expression: float(content) > 0.5, target: 'yes'}", default="no"
    ),
    "a gate that asks a model, with a default": one_gate(
        "{name: polite, target: 'yes', expression: it is polite}", default="no", config="mode: llm, model: judge,"
    ),
    "an answer that is refined twice": REFINE_TWICE,
    "conditional edges that leave nothing out": two_edges("'yes' in content.lower()", "'yes' not in content.lower()"),
    "voters who may disagree": three_voters("a b c", promises="never: [GATE_FAILED]", on_error="unsure"),
    "two of three on hosts of their own": three_voters("a b c", promises=TOLERANT, on_error="unsure"),
    "three of five when two may fail": three_voters("a b c d e", promises="tolerates_failures: 2", on_error="unsure"),
    "exactly the worst case of two attempts": one_model(RETRIED, promises="answers_within_ms: 4500"),
    "exactly the worst case of an exponential backoff": one_model(BACKED_OFF, promises="answers_within_ms: 9000"),
    "a fanout that cuts its voters off": three_voters(
        "a b c", promises="answers_within_ms: 3000", config=", timeout_ms: 3000", on_error="unsure"
    ),
    "a fallback on another host": one_model("model: a, fallback_models: [b]", promises=TOLERANT),
    "two fallbacks when two may fail": one_model("model: a, fallback_models: [b, c]", promises="tolerates_failures: 2"),
    "a backup model on another host": one_model(
        "model: a", promises=TOLERANT, on_error="backup", more=BACKUP.format(model="b")
    ),
    "an exit for what took too long": one_model(
        "timeout_ms: 900",
        promises="never: [TIMEOUT]",
        on_error="sorry",
        more=FAILURE_EXIT,
        exits="done, sorry",
    ),
    "a model that promises nothing": one_model("model: a", promises=""),
}

FLAWED = {
    "a gate without a default": Flawed(DEAD_END, "GATE_FAILED", one_gate(f"{YES}, {NO}")),
    "a gate that forgets one length": Flawed(
        DEAD_END,
        "GATE_FAILED",
        one_gate(
            "{name: s, expression: len(content) < 100, target: 'no'}, "
            "{name: l, expression: len(content) > 100, target: 'yes'}"
        ),
        decisions_max=1,
    ),
    "a gate that takes every answer for a number": Flawed(
        DEAD_END,
        "GATE_FAILED",
        one_gate(
            "{name: high, expression: float(content) > 0.5, target: 'yes'}, "
            "{name: low, expression: float(content) <= 0.5, target: 'no'}"
        ),
    ),
    "a gate that asks a model and has no default": Flawed(
        DEAD_END,
        "GATE_FAILED",
        one_gate("{name: polite, target: 'yes', expression: it is polite}", config="mode: llm, model: judge,"),
    ),
    "an answer that is refined until it is good": Flawed(DEAD_END, "BOUNDS_EXCEEDED", REFINE_FOREVER),
    "a model that is trusted to shorten": Flawed(
        DEAD_END, "dead end at shorter: GATE_FAILED", SHORTEN, decisions_max=2
    ),
    "three votes of one model": Flawed(
        PROMISES, "tolerates_failures", three_voters("a a a", promises=TOLERANT, on_error="unsure"), decisions_max=1
    ),
    "conditional edges that only know yes and no": Flawed(
        DEAD_END, "ROUTING_ERROR", two_edges("content == 'yes'", "content == 'no'")
    ),
    "voters who must agree": Flawed(
        DEAD_END, "at vote: GATE_FAILED", three_voters("a b c", promises=""), decisions_max=2
    ),
    "three of three": Flawed(
        PROMISES,
        "tolerates_failures",
        three_voters("a b c", promises=TOLERANT, config=", quorum: 3", on_error="unsure"),
        1,
    ),
    "two voters on one host": Flawed(
        PROMISES, "tolerates_failures", three_voters("a b a", promises=TOLERANT, on_error="unsure"), 1
    ),
    "two of three when two may fail": Flawed(
        PROMISES, "tolerates_failures", three_voters("a b c", promises="tolerates_failures: 2", on_error="unsure"), 2
    ),
    "a limit that forgets the retry": Flawed(
        PROMISES, "answers_within_ms", one_model(RETRIED, promises="answers_within_ms: 2000"), 1
    ),
    "a limit that is a millisecond short": Flawed(
        PROMISES, "answers_within_ms", one_model(RETRIED, promises="answers_within_ms: 4499"), 2
    ),
    "a fallback on the same host": Flawed(
        PROMISES, "tolerates_failures", one_model("model: a, fallback_models: [a]", promises=TOLERANT), 1
    ),
    "a fallback that is switched off": Flawed(
        PROMISES,
        "tolerates_failures",
        one_model("model: a, fallback_models: [b], enable_fallback: false", promises=TOLERANT),
        1,
    ),
    "a backup model on the same host": Flawed(
        PROMISES,
        "tolerates_failures",
        one_model("model: a", promises=TOLERANT, on_error="backup", more=BACKUP.format(model="a")),
        1,
    ),
    "a fallback answer where success was promised": Flawed(
        PROMISES,
        "tolerates_failures",
        one_model("model: a", promises=TOLERANT, on_error="sorry", more=FALLBACK_EXIT, exits="done, sorry"),
        1,
    ),
    "a model alone": Flawed(PROMISES, "tolerates_failures", one_model("model: a", promises=TOLERANT), 1),
    "an answer that never takes too long": Flawed(
        PROMISES, "ended with TIMEOUT", one_model("timeout_ms: 900", promises="never: [TIMEOUT]"), 1
    ),
    "retries that never take too long": Flawed(
        PROMISES, "ended with TIMEOUT", one_model(RETRIED, promises="never: [TIMEOUT]"), 2
    ),
    "a question that always has its context": Flawed(
        PROMISES,
        "ended with VALIDATION_ERROR",
        one_model("prompt_template: 'By {structured.context}: {content}'", promises="never: [VALIDATION_ERROR]"),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_graph_that_keeps_what_it_promises_holds(name):
    assert hunted(SOUND[name], max_examples=SOUND_EXAMPLES).finding is None


@pytest.mark.parametrize("name", FLAWED)
def test_a_flaw_is_found_by_its_check_and_told_in_few_decisions(name):
    flawed = FLAWED[name]

    finding = hunted(flawed.text).finding

    assert isinstance(finding, Finding)
    assert flawed.check == finding.verdict.check
    assert finding.verdict.breach is not None
    assert flawed.reason in finding.verdict.breach.reason
    assert flawed.decisions_max >= finding.scenario.decisions
