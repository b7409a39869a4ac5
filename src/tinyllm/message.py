"""The values that travel through a graph: messages, their payloads, results and errors.

All are frozen Pydantic models that equal themselves after a JSON round trip. Free JSON (`structured`,
`metadata`, unknown payload keys) is checked and copied when a value is built, so that no two messages
ever share a dict, and what JSON cannot carry is refused with the name of its field.
"""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Annotated, Any, Self
from uuid import uuid4

from pydantic import AfterValidator, AwareDatetime, BaseModel, ConfigDict, Field, PlainValidator

from tinyllm.errors import RECOVERABLE, ErrorCode

DEPTH_MAX = 64
#: Longer integers cannot be printed by Python's default settings (4,300 digits), so no JSON could carry them.
INTEGER_BITS_MAX = 4096


def checked_text(value: str) -> str:
    """Return `value`, or raise ValueError for a lone surrogate, which no JSON text can carry."""
    if value.isascii():
        return value
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"lone surrogate U+{ord(value[error.start]):04X} at character {error.start}") from None
    return value


def checked_json(value: Any, depth: int = 0) -> Any:
    """Return a deep copy of `value`, or raise ValueError where JSON cannot carry it.

    Lists and dicts count as one level each; more than `DEPTH_MAX` levels are refused. A tuple is refused,
    not turned into a list, because it would not come back as what it was.
    """
    kind = type(value)
    if value is None or kind is bool:
        return value
    if kind is str:
        return checked_text(value)
    if kind is int:
        if value.bit_length() > INTEGER_BITS_MAX:
            raise ValueError(f"an integer of {value.bit_length()} bits; at most {INTEGER_BITS_MAX}")
        return value
    if kind is float:
        if not math.isfinite(value):
            raise ValueError(f"{value} is not JSON; use null or text")
        return value
    if kind is not list and kind is not dict:
        raise ValueError(f"{kind.__name__} is not JSON; use null, booleans, numbers, text, lists or dicts")
    if depth == DEPTH_MAX:
        raise ValueError(f"nested more than {DEPTH_MAX} levels deep")
    if kind is list:
        return [checked_json(item, depth + 1) for item in value]
    return {_checked_key(key): checked_json(item, depth + 1) for key, item in value.items()}


def _checked_key(key: Any) -> str:
    if type(key) is not str:
        raise ValueError(f"the key {key!r} is not text")
    return checked_text(key)


def _checked_object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError(f"a JSON object (dict) is needed, not {type(value).__name__}")
    copy: dict[str, Any] = checked_json(value)
    return copy


Text = Annotated[str, AfterValidator(checked_text)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Json = Annotated[Any, PlainValidator(checked_json)]
JsonObject = Annotated[dict[str, Any], PlainValidator(_checked_object)]


def new_id() -> str:
    """A random identifier, for messages built by hand; a run takes its ids from its executor."""
    return uuid4().hex


def utc_now() -> datetime:
    """The wall clock, for messages built by hand; a run takes its time from its executor."""
    return datetime.now(UTC)


class _Value(BaseModel):
    #: A value inside another is checked and copied like the rest, or the two would share its dicts.
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", ser_json_inf_nan="strings", revalidate_instances="always"
    )

    def to_json(self) -> str:
        """This value as one line of JSON with sorted keys: equal values give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The value that `to_json` wrote; raises pydantic.ValidationError for anything else."""
        return cls.model_validate_json(text)


def _recoverable_by_code(fields: dict[str, Any]) -> bool:
    return fields.get("code") in RECOVERABLE


class ErrorInfo(_Value):
    """Why a step or a run failed.

    `recoverable` is what the code says, unless it is said. `node_id` is None only for failures of no node.
    """

    code: ErrorCode
    message: Text
    details: JsonObject = Field(default_factory=dict)
    recoverable: bool = Field(default_factory=_recoverable_by_code)
    node_id: Text | None = None


class ToolCall(_Value):
    """A request to call a tool."""

    tool_id: Text
    input: JsonObject = Field(default_factory=dict)
    call_id: Text


class ToolResult(_Value):
    """What a tool answered: `output` when it succeeded, `error` when not."""

    call_id: Text
    tool_id: Text
    success: bool
    output: Json = None
    error: Text | None = None
    latency_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0


class MessagePayload(_Value):
    """What a message says. Unknown keys are kept, and conditions and templates can name them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[Text, Json]

    task: Text | None = None
    content: Text | None = None
    structured: JsonObject | None = None
    route: Text | None = None
    confidence: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    tool_call: ToolCall | None = None
    tool_result: ToolResult | None = None
    tool_calls: list[JsonObject] | None = None
    error: ErrorInfo | None = None
    metadata: JsonObject = Field(default_factory=dict)

    def replace(self, /, **fields: Any) -> MessagePayload:
        """A validated copy with the named fields replaced; it shares no mutable state with this one."""
        return MessagePayload(**{**self.fields(), **fields})

    def fields(self) -> dict[str, Any]:
        """All fields and extra keys by name, unconverted."""
        return {**{name: getattr(self, name) for name in type(self).model_fields}, **(self.model_extra or {})}


class MessageMetadata(_Value):
    """Measurements about a message; None where nothing was measured."""

    latency_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    model_used: Text | None = None
    tokens_in: Count | None = None
    tokens_out: Count | None = None
    quality_score: Annotated[float, Field(allow_inf_nan=False)] | None = None
    iteration: Count | None = None
    retry_count: Count | None = None
    is_cached: bool = False


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{value} lies outside the years 1 to 9999 in UTC") from None


class Message(_Value):
    """One immutable message. A step's output is a child of its input."""

    #: A result holds the very messages it was given; they share nothing with any other.
    model_config = ConfigDict(revalidate_instances="never")

    message_id: Text = Field(default_factory=new_id)
    trace_id: Text
    parent_id: Text | None = None
    source_node: Text
    target_node: Text | None = None
    payload: MessagePayload
    metadata: MessageMetadata = Field(default_factory=MessageMetadata)
    created_at: Annotated[AwareDatetime, AfterValidator(_in_utc)] = Field(default_factory=utc_now)

    def create_child(
        self,
        source_node: str,
        target_node: str | None = None,
        payload: MessagePayload | None = None,
        *,
        message_id: str | None = None,
        created_at: datetime | None = None,
    ) -> Message:
        """A message that follows from this one.

        It keeps `trace_id`, has this message as parent and empty metadata, and carries `payload`, or a copy
        of this one's if None. It shares no mutable state with its parent. `message_id` and `created_at` are
        random and now unless given; a run gives both.
        """
        return Message(
            message_id=new_id() if message_id is None else message_id,
            trace_id=self.trace_id,
            parent_id=self.message_id,
            source_node=source_node,
            target_node=target_node,
            payload=self.payload if payload is None else payload,
            created_at=utc_now() if created_at is None else created_at,
        )


class TaskPayload(_Value):
    """The input of a run as a user writes it."""

    content: Text
    context: Text | None = None
    options: JsonObject | None = None

    def to_payload(self) -> MessagePayload:
        """`content` becomes `task` and `content`, `context` `structured.context`, `options` `metadata.options`."""
        return MessagePayload(
            task=self.content,
            content=self.content,
            structured=None if self.context is None else {"context": self.context},
            metadata={} if self.options is None else {"options": self.options},
        )


class NodeResult(_Value):
    """What one attempt of a node gave.

    The last output message goes on (none: a child of the input); only `next_nodes[0]` counts.
    """

    success: bool
    output_messages: list[Message] = Field(default_factory=list)
    next_nodes: list[Text] = Field(default_factory=list)
    error: ErrorInfo | None = None
    metadata: JsonObject = Field(default_factory=dict)
    latency_ms: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0

    @property
    def output(self) -> str | None:
        """The content of the last output message; None without one."""
        return self.output_messages[-1].payload.content if self.output_messages else None
