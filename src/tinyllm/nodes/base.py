"""What every node type is."""

from __future__ import annotations

import inspect
import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar, TypeVar

from tinyllm.config import NodeConfig, NodeDefinition, NodeType
from tinyllm.context import ExecutionContext, Steps
from tinyllm.errors import UsageError
from tinyllm.message import ErrorInfo, Message, MessagePayload, NodeResult

C = TypeVar("C", bound=NodeConfig)


class BaseNode(ABC):
    """A node holds its definition and nothing of any run, so that one object serves all runs at once."""

    #: A wrapper runs other nodes through `context.steps`; its own `timeout_ms` bounds those, not itself.
    wraps: ClassVar[bool] = False

    def __init__(self, definition: NodeDefinition) -> None:
        self.definition = definition
        #: What is called for an attempt: a plain function would be code that runs before its coroutine begins.
        self.is_async = inspect.iscoroutinefunction(self.execute)
        self.config = definition.config
        #: Of an attempt; that of a wrapper bounds the nodes inside it.
        self.timeout_s = math.inf if self.wraps else definition.config.timeout_ms / 1_000
        self.id = definition.id
        #: Whether the token goes no further.
        self.is_exit = definition.type is NodeType.EXIT

    @abstractmethod
    async def execute(self, message: Message, context: ExecutionContext) -> NodeResult:
        """One attempt. Raises NodeError to fail with a code; any other exception fails as `UNKNOWN`."""

    def instead_of(self, error: ErrorInfo, message: Message, context: ExecutionContext) -> Message | None:  # noqa: ARG002
        """What a step puts out whose last attempt failed with `error`; None: it fails. Most nodes have nothing."""
        return None

    def config_as(self, kind: type[C]) -> C:
        """This node's config, checked to be of `kind`."""
        config = self.config
        if not isinstance(config, kind):
            raise TypeError(f"{self.id} has a {type(config).__name__}, not a {kind.__name__}")
        return config


def passed_on(message: Message, context: ExecutionContext, **fields: Any) -> Message:
    """The payload received, without `error`, with the named fields replaced, as a child message."""
    return context.child_owning(message, passed_payload(message, **fields))


def passed_payload(message: Message, **fields: Any) -> MessagePayload:
    """The payload received, without `error`, with the named fields replaced; it shares no mutable state with that."""
    payload = message.payload
    if payload.error is not None:
        fields.setdefault("error", None)
    return payload.replace(**fields) if fields else payload.copied()


def success(message: Message, *next_nodes: str, **metadata: Any) -> NodeResult:
    """A successful result with one output message."""
    if not next_nodes and not metadata:
        return NodeResult(success=True, output_messages=[message])
    return NodeResult(success=True, output_messages=[message], next_nodes=[*next_nodes], metadata=metadata)


def inner_steps(context: ExecutionContext) -> Steps:
    """What a wrapper runs its inner nodes with; raises UsageError where there are none to run."""
    if context.steps is None:
        raise UsageError("a wrapper runs other nodes: execute it through an Executor, with the graph they are in")
    return context.steps
