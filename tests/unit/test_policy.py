"""Decisions about failure, one by one."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinyllm.config import ExecutorConfig, NodeConfig, NodeDefinition, NodeType
from tinyllm.errors import ErrorCode
from tinyllm.message import ErrorInfo
from tinyllm.policy import Onward, RetryDelays, after_failure, may_retry

pytestmark = pytest.mark.unit

RECOVERABLE = ErrorInfo(code=ErrorCode.MODEL_ERROR, message="m", recoverable=True)
FINAL = ErrorInfo(code=ErrorCode.MODEL_ERROR, message="m", recoverable=False)


def asks(seconds: Any) -> ErrorInfo:
    return ErrorInfo(code=ErrorCode.MODEL_ERROR, message="m", recoverable=True, details={"retry_after_s": seconds})


def delays(count: int, error: ErrorInfo = RECOVERABLE, *, seed: int = 1, path: str = "2", **config: Any) -> list[float]:
    sequence = RetryDelays(NodeConfig(**config), seed=seed, path=path)
    return [sequence.next_ms(error) for _ in range(count)]


# --- whether to try again --------------------------------------------------------------------------------


@given(st.integers(0, 20), st.integers(1, 25))
def test_one_attempt_and_retry_count_more_are_made(retry_count, attempts_made):
    config = NodeConfig(retry_count=retry_count)

    assert (attempts_made < 1 + retry_count) is may_retry(config, attempts_made, RECOVERABLE)


@given(st.integers(0, 20), st.integers(1, 25))
def test_what_is_not_recoverable_is_never_tried_again(retry_count, attempts_made):
    assert may_retry(NodeConfig(retry_count=retry_count), attempts_made, FINAL) is False


# --- when ----------------------------------------------------------------------------------------------


def test_a_fixed_delay_stays_the_same():
    assert [250, 250, 250] == delays(3, retry_delay_ms=250)


def test_the_default_delay_is_a_second():
    assert [1_000] == delays(1)


def test_an_exponential_delay_doubles_within_its_jitter():
    chance = random.Random("1:2")
    expected = [100 * 2**k * (0.5 + chance.random() / 2) for k in range(4)]

    assert expected == delays(4, retry_delay_ms=100, retry_backoff="exponential")


def test_an_exponential_delay_is_capped_before_its_jitter():
    chance = random.Random("1:2")
    expected = [min(60_000, 40_000 * 2**k) * (0.5 + chance.random() / 2) for k in range(3)]

    assert expected == delays(3, retry_delay_ms=40_000, retry_backoff="exponential")


def test_a_thousand_retries_stay_within_the_cap():
    last = delays(1_000, retry_delay_ms=2**31 - 1, retry_backoff="exponential")[-1]

    assert 30_000 <= last <= 60_000


def test_no_delay_is_no_delay_whatever_the_backoff():
    assert [0.0] * 70 == delays(70, retry_delay_ms=0, retry_backoff="exponential")


def test_the_jitter_belongs_to_the_seed_and_the_path():
    def jitter(**which: Any) -> list[float]:
        return delays(2, retry_delay_ms=100, retry_backoff="exponential", **which)

    assert jitter() == jitter()
    assert jitter() != jitter(path="3")
    assert jitter() != jitter(seed=2)


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (2, 2_000),
        (2.5, 2_500),
        (0.5, 1_000),
        (0, 1_000),
        (-7, 1_000),
        ("3", 1_000),
        (None, 1_000),
        ([3], 1_000),
        (1e308, 2**31 - 1),
        (10**1_000, 2**31 - 1),
    ],
    ids=str,
)
def test_what_the_error_asks_for_is_waited_if_it_is_longer(asked, expected):
    assert [expected] == delays(1, asks(asked))


def test_an_asked_for_delay_uses_up_its_jitter():
    """The k-th value belongs to retry k, whether it decided or not."""
    config = NodeConfig(retry_delay_ms=100, retry_backoff="exponential")
    sequence = RetryDelays(config, seed=1, path="2")
    plain = RetryDelays(config, seed=1, path="2")
    sequence.next_ms(asks(9))
    plain.next_ms(RECOVERABLE)

    assert plain.next_ms(RECOVERABLE) == sequence.next_ms(RECOVERABLE)


# --- where the token goes --------------------------------------------------------------------------------


#: What a config of these types cannot do without.
NEEDED: dict[NodeType, dict[str, Any]] = {
    NodeType.TOOL: {"tool_id": "t"},
    NodeType.FANOUT: {"target_nodes": ["inner"]},
    NodeType.LOOP: {"body_node": "inner"},
    NodeType.TIMEOUT: {"inner_node": "inner"},
}


def onward(
    policy: str, absorbed: int = 0, *, kind: NodeType = NodeType.MODEL, on_error: str | None = None, most: int = 3
) -> Onward:
    parts = {"id": "n", "type": kind, "config": NEEDED.get(kind, {}), "on_error": on_error}
    node = NodeDefinition.model_validate(parts)
    config = ExecutorConfig.model_validate({"failure_policy": policy, "max_node_failures": most})
    return after_failure(node, config, absorbed)


ABSORBING = ["skip_failed", "fallback_simple", "best_effort"]


@pytest.mark.parametrize("policy", ["fail_fast", *ABSORBING])
@pytest.mark.parametrize("kind", list(NodeType))
def test_on_error_comes_first(policy, kind):
    assert Onward("on_error") == onward(policy, 99, kind=kind, on_error="there")


def test_fail_fast_ends_the_run():
    assert Onward("end") == onward("fail_fast")


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("skip_failed", Onward("absorbed", fallback=False)),
        ("fallback_simple", Onward("absorbed", fallback=True)),
        ("best_effort", Onward("stop")),
    ],
)
def test_each_policy_leads_where_it_says(policy, expected):
    assert expected == onward(policy)


@pytest.mark.parametrize("policy", ABSORBING)
def test_a_failed_entry_ends_the_run(policy):
    assert Onward("end") == onward(policy, kind=NodeType.ENTRY)


@pytest.mark.parametrize("policy", ABSORBING)
@given(absorbed=st.integers(0, 10), most=st.integers(0, 10))
def test_exactly_so_many_failures_are_absorbed(policy, absorbed, most):
    assert (absorbed >= most) is (onward(policy, absorbed, most=most) == Onward("end"))
