"""The node types, and the class of each one's config. Types that users make join them here."""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import StrEnum
from importlib.metadata import entry_points
from types import MappingProxyType

from tinyllm.config.asking import GateConfig, ModelConfig, RouterConfig, ToolConfig
from tinyllm.config.base import NodeConfig
from tinyllm.config.points import EntryConfig, ExitConfig
from tinyllm.config.transform import TransformConfig
from tinyllm.config.wrappers import FanoutConfig, LoopConfig, TimeoutConfig
from tinyllm.errors import UsageError

#: Entry points of this group name modules or classes that register node types when they are loaded.
GROUP = "tinyllm.nodes"


class NodeType(StrEnum):
    """The node types that every TinyLLM knows. A custom type is plain text."""

    ENTRY = "entry"
    EXIT = "exit"
    TRANSFORM = "transform"
    ROUTER = "router"
    GATE = "gate"
    MODEL = "model"
    TOOL = "tool"
    FANOUT = "fanout"
    LOOP = "loop"
    TIMEOUT = "timeout"


#: Other spellings of a type.
TYPE_ALIASES = MappingProxyType({"dynamic_fanout": NodeType.FANOUT})
#: Types of the 0.1 format that are refused: what they do is written as a graph or as a custom type.
REFUSED_TYPES = frozenset({"reasoning", "custom"})

CONFIGS: MappingProxyType[str, type[NodeConfig]] = MappingProxyType(
    {
        NodeType.ENTRY: EntryConfig,
        NodeType.EXIT: ExitConfig,
        NodeType.TRANSFORM: TransformConfig,
        NodeType.ROUTER: RouterConfig,
        NodeType.GATE: GateConfig,
        NodeType.MODEL: ModelConfig,
        NodeType.TOOL: ToolConfig,
        NodeType.FANOUT: FanoutConfig,
        NodeType.LOOP: LoopConfig,
        NodeType.TIMEOUT: TimeoutConfig,
    }
)
_TYPE_NAME = re.compile(r"[a-z][a-z0-9_.]*")
_custom: dict[str, type[NodeConfig]] = {}
_loaded: set[str] = set()


def add_custom_config(name: str, config: type[NodeConfig]) -> None:
    """Make `name` a node type whose config is of class `config`; raises UsageError for a name that is taken."""
    if not _TYPE_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name of a node type: small letters, digits, dots and underscores")
    if name in CONFIGS or name in TYPE_ALIASES or name in REFUSED_TYPES:
        raise UsageError(f"{name!r} is a node type of TinyLLM itself; choose another name")
    if _custom.get(name, config) is not config:
        raise UsageError(f"the node type {name!r} is registered already, with {_custom[name].__qualname__}")
    _custom[name] = config


def remove_custom_config(name: str) -> None:
    """Forget a custom node type; does nothing if there is none of this name."""
    _custom.pop(name, None)


def config_class(name: str) -> type[NodeConfig] | None:
    """The class of the config of this node type, by any spelling; None if no such type is known.

    A name that is not known yet is looked for among the entry points of group `tinyllm.nodes`; raises UsageError
    if one of that name cannot be loaded.
    """
    name = TYPE_ALIASES.get(name, name)
    if name in CONFIGS:
        return CONFIGS[name]
    if name not in _custom and name not in _loaded:
        for entry in entry_points(group=GROUP, name=name):
            try:
                entry.load()
            except Exception as error:
                text = f"{entry.value} of its entry point cannot be loaded: {type(error).__name__}: {error}"
                raise UsageError(f"the node type {name!r} is installed, but {text}") from error
            _loaded.add(name)
    return _custom.get(name)


def custom_types() -> tuple[str, ...]:
    """The custom types that are known, those of installed entry points among them, in order of their names."""
    installed = (entry.name for entry in entry_points(group=GROUP))
    return tuple(sorted({*_custom, *installed}))


def type_names() -> Iterable[str]:
    """Every node type that can be written in a file."""
    return (*NodeType, *custom_types())


def node_type(name: str) -> NodeType | str:
    """The type of this name as nodes hold it: a `NodeType`, or text for a custom one."""
    name = TYPE_ALIASES.get(name, name)
    return NodeType(name) if name in CONFIGS else name
