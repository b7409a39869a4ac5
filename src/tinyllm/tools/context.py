"""What a tool may know about the call it serves."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """Who calls a tool. The defaults are for calls by hand and in unit tests.

    `idempotency_key` is `run_id:path:node_id`: the same in every attempt of a step and after every resume, so
    a tool that remembers the keys it has served has its effect exactly once.
    """

    idempotency_key: str = "run:1:node"
    run_id: str = "run"
    node_id: str = "node"
