"""What every part of a graph file has in common: strictness, kinds of values, and what each node's config holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from tinyllm.config.problems import Finding
from tinyllm.message import Text

#: Milliseconds: 24 days, what a signed 32-bit number holds; longer times are mistakes.
MS_MAX = 2**31 - 1

NodeId = Annotated[Text, StringConstraints(pattern=r"^[a-z][a-z0-9_.]*$", max_length=200)]
#: Lists of a file become tuples, because a config is a value that nobody may change.
NodeIds = Annotated[tuple[NodeId, ...], Field(strict=False)]
Name = Annotated[Text, StringConstraints(min_length=1)]
Names = Annotated[tuple[Name, ...], Field(strict=False)]
Milliseconds = Annotated[int, Field(ge=1, le=MS_MAX)]
Count = Annotated[int, Field(ge=0, le=1_000_000)]
Priority = Annotated[int, Field(ge=-(2**31), lt=2**31)]


class Part(BaseModel):
    """A piece of a graph file: strict, frozen, and without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    #: Keys of the public 0.1 format that have no meaning here: they give a warning.
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    #: The keys that hold lists of parts, and the class of those.
    LISTED: ClassVar[Mapping[str, type[Part]]] = {}


class NodeConfig(Part):
    """What every node type has: how often a step is tried, how long an attempt may take."""

    timeout_ms: Milliseconds = 30_000
    retry_count: Annotated[int, Field(ge=0, le=1_000)] = 0
    retry_delay_ms: Annotated[int, Field(ge=0, le=MS_MAX)] = 1_000
    retry_backoff: Literal["fixed", "exponential"] = "fixed"

    def findings(self) -> Iterable[Finding]:
        """What is wrong or doubtful beyond single values. Most configs have nothing to say."""
        return ()

    def ways(self) -> tuple[str, ...]:
        """The ways that this config names, beside the node's edges."""
        return ()

    def wrapped(self) -> tuple[str, ...]:
        """The nodes that a node of this config runs inside itself; empty for all but wrappers."""
        return ()

    def references(self) -> Iterable[tuple[tuple[str | int, ...], str]]:
        """Every place inside this config that names a node, in the order of the fields."""
        return ()
