"""The simulated world, and everything that needs neither Hypothesis nor pytest.

What most programs need stands here, and is imported when it is first asked for: `import tinyllm.testing` costs
nothing, and who wants the loop alone does not pay for HTTP. docs/world.md shows how it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tinyllm.testing.chaos import ChaosError, ChaosInjector
    from tinyllm.testing.chronicle import Chronicle, WorldError
    from tinyllm.testing.disk.disk import Disk
    from tinyllm.testing.faults import At
    from tinyllm.testing.http.asgi import AsgiServer
    from tinyllm.testing.http.values import Answer, Chunk, HttpRequest, json_answer, text_answer
    from tinyllm.testing.lives import Life, NotDeterministicError, live, live_twice
    from tinyllm.testing.loop import FencedError, LivelockError, SimulatedLoop, SimulationError, StuckError, run
    from tinyllm.testing.plan import WorldPlan, plan_from_json, plan_to_json
    from tinyllm.testing.schedule import Hold
    from tinyllm.testing.servers.ollama import OllamaServer
    from tinyllm.testing.servers.openai import OpenAIServer
    from tinyllm.testing.servers.script import Asked, Said, ScriptError, ToolCall
    from tinyllm.testing.world import World

__all__ = [
    "Answer",
    "AsgiServer",
    "Asked",
    "At",
    "ChaosError",
    "ChaosInjector",
    "Chronicle",
    "Chunk",
    "Disk",
    "FencedError",
    "Hold",
    "HttpRequest",
    "Life",
    "LivelockError",
    "NotDeterministicError",
    "OllamaServer",
    "OpenAIServer",
    "Said",
    "ScriptError",
    "SimulatedLoop",
    "SimulationError",
    "StuckError",
    "ToolCall",
    "World",
    "WorldError",
    "WorldPlan",
    "json_answer",
    "live",
    "live_twice",
    "plan_from_json",
    "plan_to_json",
    "run",
    "text_answer",
]

_MODULES = {
    "chaos": ("ChaosError", "ChaosInjector"),
    "chronicle": ("Chronicle", "WorldError"),
    "disk.disk": ("Disk",),
    "faults": ("At",),
    "http.asgi": ("AsgiServer",),
    "http.values": ("Answer", "Chunk", "HttpRequest", "json_answer", "text_answer"),
    "lives": ("Life", "NotDeterministicError", "live", "live_twice"),
    "loop": ("FencedError", "LivelockError", "SimulatedLoop", "SimulationError", "StuckError", "run"),
    "plan": ("WorldPlan", "plan_from_json", "plan_to_json"),
    "schedule": ("Hold",),
    "servers.ollama": ("OllamaServer",),
    "servers.openai": ("OpenAIServer",),
    "servers.script": ("Asked", "Said", "ScriptError", "ToolCall"),
    "world": ("World",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
