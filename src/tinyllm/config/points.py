"""Configs of the nodes where a run starts and ends."""

from __future__ import annotations

from typing import ClassVar, Literal

from tinyllm.config.base import Names, NodeConfig
from tinyllm.message import Text

ExitStatus = Literal["success", "fallback", "partial_success", "failure", "error", "timeout"]


class EntryConfig(NodeConfig):
    """An entry checks that `required_fields` are present and not null."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"input_schema", "output_schema"})

    required_fields: Names = ()


class ExitConfig(NodeConfig):
    """An exit ends the run with `status`; `message` explains it."""

    IGNORED: ClassVar[frozenset[str]] = frozenset({"input_schema", "output_schema"})

    status: ExitStatus = "success"
    message: Text | None = None
