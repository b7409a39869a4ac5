"""The node types. `NODES` names the class of each."""

from tinyllm.config import NodeDefinition, NodeType
from tinyllm.nodes.base import BaseNode
from tinyllm.nodes.entry import EntryNode
from tinyllm.nodes.exit import ExitNode
from tinyllm.nodes.fanout import FanoutNode
from tinyllm.nodes.gate import GateNode
from tinyllm.nodes.model import ModelNode

NODES: dict[NodeType, type[BaseNode]] = {
    NodeType.ENTRY: EntryNode,
    NodeType.EXIT: ExitNode,
    NodeType.MODEL: ModelNode,
    NodeType.GATE: GateNode,
    NodeType.FANOUT: FanoutNode,
}


def make_node(definition: NodeDefinition) -> BaseNode:
    """The node that runs `definition`."""
    return NODES[definition.type](definition)
