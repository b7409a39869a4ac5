"""TinyLLM runs graphs of small language models, and hunts for the ways they break.

Everything that a user of the engine needs can be imported from here; a name is loaded when it is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm.builder import GraphBuilder
    from tinyllm.config import (
        CircuitBreakerConfig,
        EdgeDefinition,
        EntryConfig,
        ExecutorConfig,
        ExitConfig,
        FanoutConfig,
        GateConfig,
        GraphDefinition,
        LoopConfig,
        ModelConfig,
        NodeConfig,
        NodeDefinition,
        NodeType,
        RouterConfig,
        TimeoutConfig,
        ToolConfig,
        TransformConfig,
    )
    from tinyllm.context import ExecutionContext
    from tinyllm.errors import (
        ErrorCode,
        ExpressionError,
        GraphConfigError,
        ModelError,
        NodeError,
        OverloadedError,
        Problem,
        SchemaError,
        TemplateError,
        TinyLLMError,
        UsageError,
    )
    from tinyllm.executor import Executor
    from tinyllm.graph import Graph, build_graph, load_graph, parse_graph
    from tinyllm.message import (
        ErrorInfo,
        Message,
        MessageMetadata,
        MessagePayload,
        NodeResult,
        TaskPayload,
        ToolCall,
        ToolResult,
    )
    from tinyllm.models.base import ModelClient, ModelRequest, ModelResponse
    from tinyllm.models.ollama import OllamaClient
    from tinyllm.nodes import forget_node_type, node_type
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
    from tinyllm.streaming import RunStream
    from tinyllm.tools import Tool, ToolContext, ToolRegistry, default_tools, tool
    from tinyllm.trace import EventKind, RunResult, Trace, TraceEvent

#: Where each public name comes from.
_MODULES = {
    "builder": ("GraphBuilder",),
    "config": (
        *("CircuitBreakerConfig", "EdgeDefinition", "EntryConfig", "ExecutorConfig", "ExitConfig", "FanoutConfig"),
        *("GateConfig", "GraphDefinition", "LoopConfig", "ModelConfig", "NodeConfig", "NodeDefinition", "NodeType"),
        *("RouterConfig", "TimeoutConfig", "ToolConfig", "TransformConfig"),
    ),
    "context": ("ExecutionContext",),
    "errors": (
        *("ErrorCode", "ExpressionError", "GraphConfigError", "ModelError", "NodeError", "OverloadedError"),
        *("Problem", "SchemaError", "TemplateError", "TinyLLMError", "UsageError"),
    ),
    "executor": ("Executor",),
    "graph": ("Graph", "build_graph", "load_graph", "parse_graph"),
    "message": (
        *("ErrorInfo", "Message", "MessageMetadata", "MessagePayload", "NodeResult", "TaskPayload", "ToolCall"),
        "ToolResult",
    ),
    "models.base": ("ModelClient", "ModelRequest", "ModelResponse"),
    "models.ollama": ("OllamaClient",),
    "nodes": ("forget_node_type", "node_type"),
    "nodes.base": ("BaseNode",),
    "nodes.entry": ("EntryNode",),
    "nodes.exit": ("ExitNode",),
    "nodes.fanout": ("FanoutNode",),
    "nodes.gate": ("GateNode",),
    "nodes.loop": ("LoopNode",),
    "nodes.model": ("ModelNode",),
    "nodes.router": ("RouterNode",),
    "nodes.timeout": ("TimeoutNode",),
    "nodes.tool": ("ToolNode",),
    "nodes.transform": ("TransformNode",),
    "streaming": ("RunStream",),
    "tools": ("Tool", "ToolContext", "ToolRegistry", "default_tools", "tool"),
    "trace": ("EventKind", "RunResult", "Trace", "TraceEvent"),
}
_HOMES = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "BaseNode",
    "CircuitBreakerConfig",
    "EdgeDefinition",
    "EntryConfig",
    "EntryNode",
    "ErrorCode",
    "ErrorInfo",
    "EventKind",
    "ExecutionContext",
    "Executor",
    "ExecutorConfig",
    "ExitConfig",
    "ExitNode",
    "ExpressionError",
    "FanoutConfig",
    "FanoutNode",
    "GateConfig",
    "GateNode",
    "Graph",
    "GraphBuilder",
    "GraphConfigError",
    "GraphDefinition",
    "LoopConfig",
    "LoopNode",
    "Message",
    "MessageMetadata",
    "MessagePayload",
    "ModelClient",
    "ModelConfig",
    "ModelError",
    "ModelNode",
    "ModelRequest",
    "ModelResponse",
    "NodeConfig",
    "NodeDefinition",
    "NodeError",
    "NodeResult",
    "NodeType",
    "OllamaClient",
    "OverloadedError",
    "Problem",
    "RouterConfig",
    "RouterNode",
    "RunResult",
    "RunStream",
    "SchemaError",
    "TaskPayload",
    "TemplateError",
    "TimeoutConfig",
    "TimeoutNode",
    "TinyLLMError",
    "Tool",
    "ToolCall",
    "ToolConfig",
    "ToolContext",
    "ToolNode",
    "ToolRegistry",
    "ToolResult",
    "Trace",
    "TraceEvent",
    "TransformConfig",
    "TransformNode",
    "UsageError",
    "build_graph",
    "default_tools",
    "forget_node_type",
    "load_graph",
    "node_type",
    "parse_graph",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tinyllm' has no attribute {name!r}")
    value = getattr(import_module(f"tinyllm.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
