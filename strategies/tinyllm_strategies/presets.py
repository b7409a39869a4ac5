"""Settings of drawn nodes, each one choice out of all combinations, plain ones first.

Strategies are made once: making and validating small strategies for every example cost more than drawing from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from hypothesis import strategies as st

Json = dict[str, Any]

MODELS = ("m1", "m2", "m3")
#: Conditions that really branch on the answers of `short_answers`, that hold often, and that fail to evaluate.
CONDITIONS = (
    "content == 'a'",
    "content != 'a'",
    "'b' in content",
    "len(content) > 1 or content == 'b'",
    "error == None",
    "error != None",
    "matched_condition == 'is_a' or route == 'a'",
    "metadata.get('fallback') or metadata.get('timeout')",
    "structured['context'] == ''",
    "content > 3",
    "True",
    "'a' in routes and not compound_route",
    "structured.get('a') == 1",
    "len(structured.get('results')) > 1",
    "metadata.get('loop_result')['termination'] in ('count', 'success')",
    "tool_result.get('success')",
    "metadata.get('tokens_out') == 1",
)
#: What ends a loop, or lets its next iteration begin.
LOOP_CONDITIONS = (
    "iteration >= 2",
    "iteration < 2",
    "last_output == 'a'",
    "content == 'a'",
    "success_count > failure_count",
    "failure_count < 1",
    "last_success",
    "last_error == None",
    "len(results) == 1",
    "metadata.get('iteration') == 2",
    "'b' in content",
    "last_result.get('iteration', 0) < 2",
    "content > 3",
)
GATE_NAMES = ("is_a", "is_b", "other")
#: Names of routes: plain ones, ones with punctuation, ones that equal each other or lie inside each other.
ROUTE_NAMES = (
    ("a", "b", "is_a"),
    ("a b", "a", "b"),
    ("Yes!", "C++", "c"),
    ("b", "A", "a"),
)
KEYWORDS = (("a",), ("b", "is_a"), ("C++", "OK"))
STATUSES = ("success", "fallback", "partial_success", "failure", "error", "timeout")
SCHEMAS: tuple[Json, ...] = (
    {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    {"type": "object", "properties": {"score": {"type": "number"}}, "additionalProperties": False},
)
#: Steps of transforms: those that change their order, those that fail on most texts, those that read the message.
STEPS: tuple[Json, ...] = (
    {"type": "strip"},
    {"type": "uppercase"},
    {"type": "lowercase"},
    {"type": "truncate", "params": {"max_length": 4}},
    {"type": "truncate", "params": {"max_length": 1, "suffix": ""}},
    {"type": "truncate", "params": {"max_length": 2}},
    {"type": "template", "params": {"template": "{content}!"}},
    {"type": "template", "params": {"template": "{task}, {content}"}},
    {"type": "template", "params": {"template": "{metadata.iteration}"}},
    {"type": "json_wrap"},
    {"type": "json_wrap", "params": {"key": "a"}},
    {"type": "json_parse"},
    {"type": "json_stringify"},
    {"type": "json_extract", "params": {"path": "a"}},
    {"type": "json_extract", "params": {"path": "a.1"}},
    {"type": "regex_extract", "params": {"pattern": "[a-z]+"}},
    {"type": "regex_extract", "params": {"pattern": "(a)|(b)", "group": 2}},
    {"type": "regex_replace", "params": {"pattern": "(a|b)", "replacement": "<\\1>"}},
    {"type": "regex_replace", "params": {"pattern": "^a", "replacement": "b"}},
    {"type": "split", "params": {"separator": ","}},
    {"type": "split", "params": {"separator": " ", "index": 1}},
    {"type": "split", "params": {"separator": "b", "index": -1}},
    {"type": "join", "params": {"separator": "-"}},
)
TOOLS: tuple[Json, ...] = (
    {"tool_id": "text_clean"},
    {"tool_id": "calculator"},
    {"tool_id": "json_parse"},
    {"tool_id": "json_parse", "input_mapping": {"data": "structured.a"}},
    {"tool_id": "text_split"},
    {"tool_id": "text_join", "input_mapping": {"parts": "routes", "separator": "task", "prefix": "metadata.iteration"}},
    {"tool_id": "json_flatten", "input_mapping": {"data": "structured"}},
    {"tool_id": "text_truncate", "input_mapping": {"text": "content", "max_length": "metadata.iteration"}},
)


def combined(**options: Sequence[Any]) -> tuple[Json, ...]:
    """Every combination of settings; None leaves a setting out."""
    return tuple(
        {key: value for key, value in zip(options, values, strict=True) if value is not None}
        for values in product(*options.values())
    )


#: What every node has. Some limits are just met by an answer, or by the second one.
COMMON = st.sampled_from(
    combined(
        retry_count=(None, 1, 2),
        retry_delay_ms=(None, 0, 10),
        retry_backoff=(None, "exponential"),
        timeout_ms=(*[None] * 5, 10, 15, 1_010, *[None] * 5),
    )
)
#: A wrapper has limits of its own, and is not retried as often: that would multiply what it runs.
RETRIES = st.sampled_from(combined(retry_count=(None, None, 1), retry_delay_ms=(10, 0, None)))
ASKING = st.sampled_from(
    combined(
        model=(*MODELS, "m1"),
        fallback_models=(None, None, ["m2"], ["m1", "m3"]),
        fallback_timeout_ms=(None, None, 10, 15, None, None),
        enable_fallback=(None, False, None),
        prompt_template=(None, None, "{structured.context}", "{content}", "{task}?", "{{task}}", None, None),
    )
)
ANSWERING = st.sampled_from(
    (*[{}] * 14, *combined(response_schema=SCHEMAS, repair_attempts=(None, 0, 2), system_prompt=(None, "{task}")))
)
STRATEGIES = st.sampled_from(
    ("all", "majority_vote", "first_success", "best_score", "majority_vote", "best_score", "majority_vote")
)
FANOUTS = st.sampled_from(
    combined(
        parallel=(None, False, None),
        max_parallel_branches=(None, 1, 2, None),
        require_all_success=(None, None, True, None),
        fail_fast=(None, True, None, None),
        timeout_ms=(*[None] * 4, 10, 20, 1_010, *[None] * 4),
    )
)
QUORUMS = st.sampled_from((None, 1, 2, None, 1))
SCORES = st.sampled_from(("tokens_out", "score", "tokens_out", "quality_score", "tokens_out"))
LOOPS = st.sampled_from(
    combined(
        condition_type=("fixed_count", "until_success", "until_condition", "while_condition"),
        max_iterations=(2, 1, 3),
        timeout_ms=(None, None, 15, 20, 25, 1_010, 10, None, None, None),
        continue_on_error=(None, True),
    )
)
COUNTS = st.sampled_from((None, 1, 2))
ENDS_OF_LOOPS = st.sampled_from(LOOP_CONDITIONS)
TIMEOUTS = st.sampled_from(
    combined(
        timeout_ms=(None, 15, 10, 1_010, 20, 25, None, 5),
        on_timeout=("error", "fallback", "skip"),
        propagate_metadata=(None, None, False),
    )
)
ROUTERS = st.sampled_from(
    combined(
        mode=("model", "rules", "keywords", "model", "model"),
        model=MODELS,
        multi_label=(None, True, True),
        max_labels=(None, 1, None, 2),
    )
)
#: Which names, which priorities, how many at most, and which route is the default: none, the first, the last.
ROUTES = st.sampled_from(
    [*product(ROUTE_NAMES, ((0, 0, 0), (0, 0, 0), (0, 1, 1), (1, 0, 2)), (*[3] * 9, 0), (None, 0, 0, -1))]
)
_COMPOUNDS = [*product(((0, 1), (0,), (0, 1, 2), (1, 2), (1, 0)), (0, 1))]
#: Compound routes of one router, at most two: which routes they join, and their priorities.
COMPOUNDS = st.sampled_from(
    [*[()] * 150, *((it,) for it in _COMPOUNDS for _ in range(5)), *product(_COMPOUNDS, repeat=2)]
)
TRANSFORMS = st.lists(st.sampled_from(STEPS), max_size=3)
CALLS = st.sampled_from((*TOOLS, *({**tool, "continue_on_error": True} for tool in TOOLS)))
EVALUATIONS = st.sampled_from((None, None, "{content}", "{structured.context}", None, None))
REQUIRED = st.sampled_from((*[()] * 15, ("content",), ("structured",), *[()] * 15))
EXITS = st.sampled_from((*["success"] * 6, *STATUSES, *["success"] * 6))
_RULES = [*product(CONDITIONS, (0, 1, 2))]
#: Conditional edges of one node: their conditions and priorities.
EDGES = st.sampled_from([*[()] * 900, *((rule,) for rule in _RULES for _ in range(20)), *product(_RULES, repeat=2)])
FORWARD = st.sampled_from((*[(None, 0)] * 12, (None, 1), (CONDITIONS[0], 0), *[(None, 0)] * 12))
_COUNT = len(CONDITIONS)
_TRIPLES = [
    (CONDITIONS[first], CONDITIONS[(first * step + 3) % _COUNT], CONDITIONS[(first + step) % _COUNT])
    for step in range(1, _COUNT)
    for first in range(_COUNT)
]
_CHOICES = [*((it,) for it in CONDITIONS for _ in range(16)), *product(CONDITIONS, repeat=2), *_TRIPLES]
#: The conditions of a gate, and those of a router's routes, of which there is at least one.
GATES = st.sampled_from([*[()] * 80, *_CHOICES])
RULES = st.sampled_from(
    [*((it,) for it in CONDITIONS for _ in range(3)), *product(CONDITIONS, repeat=2), *_TRIPLES * 2]
)
