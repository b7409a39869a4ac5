"""What a graph file may say, and every problem of its parts found at once.

These modules judge the parts one by one: keys, types, ranges, conditions that do not parse. How the parts
fit together is `graph.py`'s business.
"""

from tinyllm.config.asking import (
    CompoundRoute,
    GateCondition,
    GateConfig,
    ModelConfig,
    RouteDefinition,
    RouterConfig,
    ToolConfig,
)
from tinyllm.config.base import MS_MAX, NodeConfig, Part
from tinyllm.config.definitions import (
    CircuitBreakerConfig,
    EdgeDefinition,
    ExecutorConfig,
    FailurePolicy,
    GraphDefinition,
    NodeDefinition,
)
from tinyllm.config.kinds import (
    CONFIGS,
    NodeType,
    add_custom_config,
    config_class,
    custom_types,
    remove_custom_config,
    type_names,
)
from tinyllm.config.points import EntryConfig, ExitConfig
from tinyllm.config.problems import (
    PROBLEMS_MAX,
    Finding,
    a_warning,
    an_error,
    first_details,
    first_in_file,
    short,
    spelled,
)
from tinyllm.config.reader import Reader
from tinyllm.config.transform import (
    GROUP_REFERENCE,
    ExtractParams,
    JoinParams,
    PathParams,
    ReplaceParams,
    SplitParams,
    Step,
    TemplateParams,
    TransformConfig,
    TruncateParams,
    WrapParams,
)
from tinyllm.config.wrappers import FanoutConfig, LoopConfig, TimeoutConfig

__all__ = [
    "CONFIGS",
    "GROUP_REFERENCE",
    "MS_MAX",
    "PROBLEMS_MAX",
    "CircuitBreakerConfig",
    "CompoundRoute",
    "EdgeDefinition",
    "EntryConfig",
    "ExecutorConfig",
    "ExitConfig",
    "ExtractParams",
    "FailurePolicy",
    "FanoutConfig",
    "Finding",
    "GateCondition",
    "GateConfig",
    "GraphDefinition",
    "JoinParams",
    "LoopConfig",
    "ModelConfig",
    "NodeConfig",
    "NodeDefinition",
    "NodeType",
    "Part",
    "PathParams",
    "Reader",
    "ReplaceParams",
    "RouteDefinition",
    "RouterConfig",
    "SplitParams",
    "Step",
    "TemplateParams",
    "TimeoutConfig",
    "ToolConfig",
    "TransformConfig",
    "TruncateParams",
    "WrapParams",
    "a_warning",
    "add_custom_config",
    "an_error",
    "config_class",
    "custom_types",
    "first_details",
    "first_in_file",
    "remove_custom_config",
    "short",
    "spelled",
    "type_names",
]
