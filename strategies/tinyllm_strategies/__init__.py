"""Hypothesis strategies for everything TinyLLM is made of. Everything that imports Hypothesis lives here."""

from tinyllm_strategies.answers import answers_for, model_answers
from tinyllm_strategies.chaos import chaos_injectors
from tinyllm_strategies.explore import Exploration, explore
from tinyllm_strategies.faults import fault_plans, host_downs
from tinyllm_strategies.graphs import graphs
from tinyllm_strategies.messages import json_values, messages, payloads, tasks
from tinyllm_strategies.plans import worlds
from tinyllm_strategies.scenarios import executor_configs, lives, scenarios
from tinyllm_strategies.schedules import schedules

__all__ = [
    "Exploration",
    "answers_for",
    "chaos_injectors",
    "executor_configs",
    "explore",
    "fault_plans",
    "graphs",
    "host_downs",
    "json_values",
    "lives",
    "messages",
    "model_answers",
    "payloads",
    "scenarios",
    "schedules",
    "tasks",
    "worlds",
]
