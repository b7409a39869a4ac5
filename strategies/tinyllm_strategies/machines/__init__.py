"""State machines that drive graphs in a simulated world. Their rules are thin; the base class owns the world."""

from tinyllm_strategies.machines.base import BrokenCheck, WorldMachine
from tinyllm_strategies.machines.execution import ExecutionMachine

__all__ = ["BrokenCheck", "ExecutionMachine", "WorldMachine"]
