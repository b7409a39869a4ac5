"""The node types, and how a type of one's own joins them. `NODES` names the class of each."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType
from typing import TypeVar

from tinyllm.config import NodeConfig, NodeDefinition, NodeType, add_custom_config, config_class, remove_custom_config
from tinyllm.errors import UsageError
from tinyllm.nodes.base import BaseNode
from tinyllm.nodes.entry import EntryNode
from tinyllm.nodes.exit import ExitNode
from tinyllm.nodes.fanout import FanoutNode
from tinyllm.nodes.gate import GateNode
from tinyllm.nodes.loop import LoopNode
from tinyllm.nodes.model import ModelNode
from tinyllm.nodes.router import RouterNode
from tinyllm.nodes.timeout import TimeoutNode
from tinyllm.nodes.tool import ToolNode
from tinyllm.nodes.transform import TransformNode

NODES: MappingProxyType[NodeType, type[BaseNode]] = MappingProxyType(
    {
        NodeType.ENTRY: EntryNode,
        NodeType.EXIT: ExitNode,
        NodeType.TRANSFORM: TransformNode,
        NodeType.ROUTER: RouterNode,
        NodeType.GATE: GateNode,
        NodeType.MODEL: ModelNode,
        NodeType.TOOL: ToolNode,
        NodeType.FANOUT: FanoutNode,
        NodeType.LOOP: LoopNode,
        NodeType.TIMEOUT: TimeoutNode,
    }
)
_custom: dict[str, type[BaseNode]] = {}
N = TypeVar("N", bound=type[BaseNode])


def node_type(name: str, *, config: type[NodeConfig] = NodeConfig) -> Callable[[N], N]:
    """A class decorator: graphs may name `name` as a node's type, with a config of class `config`.

    The class is a `BaseNode` with one `async def execute(self, message, context)`; an entry point of group
    `tinyllm.nodes`, called like the type, makes it known wherever its package is installed. Raises UsageError for
    a name that is taken, and for a class or a config that is none.
    """
    if not isinstance(name, str):
        raise UsageError(f"a node type is named by text, not {type(name).__name__}")
    if not _is_kind_of(NodeConfig, config):
        raise UsageError(f"the config of {name!r} must be a class derived from tinyllm.NodeConfig")

    def register(kind: N) -> N:
        if not _is_kind_of(BaseNode, kind):
            raise UsageError(f"{name!r} must be a class derived from tinyllm.BaseNode")
        if kind.wraps:
            raise UsageError(f"{name!r} says that it wraps other nodes; only TinyLLM's own types can")
        if _custom.get(name, kind) is not kind:
            raise UsageError(f"the node type {name!r} is registered already, as {_custom[name].__qualname__}")
        add_custom_config(name, config)
        _custom[name] = kind
        return kind

    return register


def _is_kind_of(base: type, given: object) -> bool:
    return isinstance(given, type) and issubclass(given, base)


def forget_node_type(name: str) -> None:
    """Undo `node_type`; does nothing for a name that was not registered."""
    remove_custom_config(name)
    _custom.pop(name, None)


def make_node(definition: NodeDefinition) -> BaseNode:
    """The node that runs `definition`; raises UsageError if its type is not known any more."""
    if isinstance(definition.type, NodeType):
        return NODES[definition.type](definition)
    config_class(definition.type)
    if definition.type not in _custom:
        raise UsageError(f"{definition.id!r} is of type {definition.type!r}, which is not registered")
    try:
        return _custom[definition.type](definition)
    except Exception as error:
        text = f"{definition.id!r} of type {definition.type!r} cannot be made: {type(error).__name__}: {error}"
        raise UsageError(text) from error
