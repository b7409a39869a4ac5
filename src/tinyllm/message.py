"""The values that travel through a graph: messages, their payloads, results and errors.

All are frozen Pydantic models that equal themselves after a JSON round trip. Free JSON (`structured`,
`metadata`, unknown payload keys) is checked and copied when a value is built, so that no two messages
ever share a dict, and what JSON cannot carry is refused with the name of its field.
"""

from __future__ import annotations

import inspect
import json
import math
import os
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cache, partial
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, Self

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
    if kind is not list and kind is not dict:
        return _checked_scalar(value)
    if depth == DEPTH_MAX:
        raise ValueError(f"nested more than {DEPTH_MAX} levels deep")
    depth += 1
    # Most values of most messages are plain text, and every message is checked.
    if kind is list:
        return [
            item if item is None or (type(item) is str and item.isascii()) else checked_json(item, depth)
            for item in value
        ]
    copy = value.copy()
    for key, item in value.items():
        if not (type(key) is str and key.isascii()):
            _checked_key(key)
        kind = type(item)
        if item is not None and kind is not bool and not (kind is str and item.isascii()):
            copy[key] = checked_json(item, depth)
    return copy


def _checked_scalar(value: Any) -> Any:
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
    raise ValueError(f"{kind.__name__} is not JSON; use null, booleans, numbers, text, lists or dicts")


def _checked_key(key: Any) -> str:
    if type(key) is not str:
        raise ValueError(f"the key {key!r} is not text")
    return checked_text(key)


def _checked_object(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise ValueError(f"a JSON object (dict) is needed, not {type(value).__name__}")
    copy: dict[str, Any] = checked_json(value) if value else {}
    return copy


Text = Annotated[str, AfterValidator(checked_text)]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Json = Annotated[Any, PlainValidator(checked_json)]
JsonObject = Annotated[dict[str, Any], PlainValidator(_checked_object)]


def new_id() -> str:
    """A random identifier of 128 bits, for messages built by hand; a run takes its ids from its executor."""
    try:
        return _IDS.pop()
    except IndexError:
        # What a random UUID is made of, some at a time: asking the system for each would cost more than all the rest.
        pool = os.urandom(16 * _IDS_AT_ONCE).hex()
        _IDS.extend(pool[start : start + 32] for start in range(32, len(pool), 32))
        return pool[:32]


_IDS_AT_ONCE = 32
_IDS: list[str] = []
if hasattr(os, "register_at_fork"):
    # A forked process must not go on with the ids of its parent.
    os.register_at_fork(after_in_child=_IDS.clear)


#: The wall clock, for messages built by hand; a run takes its time from its executor.
utc_now: Callable[[], datetime] = partial(datetime.now, UTC)

# Values of parts that were checked and copied already are assembled: what validation would give, for a fifth of its
# cost. Pydantic's own way to do that goes through all fields one by one. Of a model's slots only those are filled
# that differ from value to value; `_Value.__getattr__` answers for the others.
_new = object.__new__
_set_fields = vars(BaseModel)["__dict__"].__set__
_set_extra = vars(BaseModel)["__pydantic_extra__"].__set__


class _Value(BaseModel):
    #: A value inside another is checked and copied like the rest, or the two would share its dicts.
    model_config = ConfigDict(
        frozen=True, strict=True, extra="forbid", ser_json_inf_nan="strings", revalidate_instances="always"
    )
    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Asked only for what is not there: the slots that an assembled value leaves empty."""
            if name in _EMPTY_SLOTS:
                return None
            if name == "__pydantic_fields_set__":
                return self._fields_set()
            return super().__getattr__(name)

    def _fields_set(self) -> set[str]:
        """The fields that are set in an assembled value: those that are not what they are without being named."""
        unset = _unset(type(self))
        extra = self.__pydantic_extra__ or {}
        return {name for name, value in self.__dict__.items() if name not in unset or value != unset[name]} | {*extra}

    def to_json(self) -> str:
        """This value as one line of JSON with sorted keys: equal values give equal text."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The value that `to_json` wrote; raises pydantic.ValidationError for anything else."""
        return cls.model_validate_json(text)


_EMPTY_SLOTS = frozenset({"__pydantic_extra__", "__pydantic_private__"})


@cache
def _unset(kind: type[BaseModel]) -> dict[str, Any]:
    """What the fields are of a value of which nothing was named."""
    return kind.model_construct().__dict__


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

    def copied(self) -> MessagePayload:
        """A copy that shares no mutable state with this one."""
        values = self.__dict__.copy()
        if values["metadata"] or _seldom_set(values) != _NONE_SET or self.__pydantic_extra__:
            return self.replace()
        values["metadata"] = {}
        copy = _new(MessagePayload)
        _set_fields(copy, values)
        _set_extra(copy, {})
        return copy

    def replace(self, /, **fields: Any) -> MessagePayload:
        """A validated copy with the named fields replaced; it shares no mutable state with this one."""
        try:
            quick = self._replaced(fields)
        except ValueError:
            # The constructor says what is wrong, and with which field.
            quick = None
        return MessagePayload(**{**self.fields(), **fields}) if quick is None else quick

    def _replaced(self, fields: dict[str, Any]) -> MessagePayload | None:
        """The same for fields that are quick to check, and None for others. Raises ValueError for what is no JSON."""
        values = self.__dict__.copy()
        extra: dict[str, Any] = {**(self.__pydantic_extra__ or {})}
        for name, value in fields.items():
            if name not in values:
                extra[_checked_key(name)] = value
            else:
                values[name] = value
        for text in (values["task"], values["content"], values["route"]):
            if text is not None and not (type(text) is str and text.isascii()):
                if type(text) is not str:
                    return None
                checked_text(text)
        if values["error"] is not None or values["tool_result"] is not None:
            return None
        if values["confidence"] is not None or values["tool_call"] is not None or values["tool_calls"] is not None:
            return None
        if values["structured"] is not None:
            values["structured"] = _checked_object(values["structured"])
        values["metadata"] = _checked_object(values["metadata"])
        if extra:
            extra = {name: checked_json(value) for name, value in extra.items()}
        return _payload(values, extra)

    def fields(self) -> dict[str, Any]:
        """All fields and extra keys by name, unconverted."""
        return {**self.__dict__, **(self.__pydantic_extra__ or {})}


_seldom_set = itemgetter("structured", "error", "tool_result", "confidence", "tool_call", "tool_calls")
_NONE_SET = (None,) * 6


def _payload(values: dict[str, Any], extra: dict[str, Any]) -> MessagePayload:
    payload = _new(MessagePayload)
    _set_fields(payload, values)
    _set_extra(payload, extra)
    return payload


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

    @classmethod
    def of_task(cls, task: TaskPayload, *, message_id: str, trace_id: str, created_at: datetime) -> Message:
        """The message with which a run of `task` begins; `trace_id` may be any text."""
        return _message(checked_text(trace_id), None, task.to_payload(), "user", None, message_id, created_at, None)

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
        payload = self.payload if payload is None else payload
        copied = payload.copied() if type(payload) is MessagePayload else payload
        mine = self.__dict__
        return _message(
            mine["trace_id"], mine["message_id"], copied, source_node, target_node, message_id, created_at, None
        )


def child_owning(
    parent: Message,
    payload: MessagePayload,
    source_node: str,
    target_node: str | None,
    message_id: str | None,
    created_at: datetime | None,
    metadata: MessageMetadata | None = None,
) -> Message:
    """Like `create_child`, for a payload that nobody else holds: it is taken as it is."""
    mine = parent.__dict__
    return _message(
        mine["trace_id"], mine["message_id"], payload, source_node, target_node, message_id, created_at, metadata
    )


def _message(
    trace_id: str,
    parent_id: str | None,
    payload: MessagePayload,
    source_node: str,
    target_node: str | None,
    message_id: str | None,
    created_at: datetime | None,
    metadata: MessageMetadata | None,
) -> Message:
    """A message of a trace and with a payload that are checked already; the rest is checked here."""
    sound = (
        type(source_node) is str
        and source_node.isascii()
        and (target_node is None or (type(target_node) is str and target_node.isascii()))
        and type(payload) is MessagePayload
    )
    if message_id is None:
        message_id = new_id()
    else:
        sound = sound and type(message_id) is str and message_id.isascii()
    if created_at is None:
        created_at = utc_now()
    else:
        # Any other time zone would have to become UTC, and no time zone is an error.
        sound = sound and type(created_at) is datetime and created_at.tzinfo is UTC
    fields: dict[str, Any] = {
        "message_id": message_id,
        "trace_id": trace_id,
        "parent_id": parent_id,
        "source_node": source_node,
        "target_node": target_node,
        "payload": payload,
        "metadata": _UNMEASURED if metadata is None else metadata,
        "created_at": created_at,
    }
    if not sound:
        return Message(**fields)
    message = _new(Message)
    _set_fields(message, fields)
    return message


def has_texts_as_ids(message: Message) -> bool:
    """Whether a message's ids are texts, and can be in JSON: a child takes them over as they are."""
    fields = message.__dict__
    message_id, trace_id, parent_id = fields.get("message_id"), fields.get("trace_id"), fields.get("parent_id")
    return (
        type(message_id) is str
        and message_id.isascii()
        and type(trace_id) is str
        and trace_id.isascii()
        and (parent_id is None or (type(parent_id) is str and parent_id.isascii()))
    )


def unfit(message: Message) -> str | None:
    """Why a message is none, or None if it is one: a node may have changed what lies inside it."""
    fields = message.__dict__
    payload: Any = fields.get("payload")
    try:
        assembled = fields.get("metadata") is _UNMEASURED and has_texts_as_ids(message)
        if assembled and type(payload) is MessagePayload:
            # What the payload's own check is quick for; the rest of such a message was assembled.
            payload = payload._replaced({})
        if payload is None or payload is fields.get("payload"):
            # A kind of message of a user's own may have more fields, of which we know nothing.
            Message(**{name: fields[name] for name in Message.model_fields})
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    return None


#: Frozen and without mutable parts, so that all messages may share it.
_UNMEASURED = MessageMetadata()


class TaskPayload(_Value):
    """The input of a run as a user writes it."""

    content: Text
    context: Text | None = None
    options: JsonObject | None = None

    def to_payload(self) -> MessagePayload:
        """`content` becomes `task` and `content`, `context` `structured.context`, `options` `metadata.options`."""
        values = {**_EMPTY.__dict__, "task": self.content, "content": self.content, "metadata": {}}
        if self.context is not None:
            values["structured"] = {"context": self.context}
        if self.options is not None:
            values["metadata"] = {"options": checked_json(self.options)}
        return _payload(values, {})


_EMPTY = MessagePayload()


_NOT_GIVEN: Any = object()


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

    if not TYPE_CHECKING:

        def __init__(self, /, *, success: Any = _NOT_GIVEN, output_messages: Any = _NOT_GIVEN, **fields: Any) -> None:
            # What most results are: one message of ours, which validation would take as it is.
            plain = type(output_messages) is list and len(output_messages) == 1 and type(output_messages[0]) is Message
            if plain and success is True and not fields and type(self) is NodeResult:
                values = {
                    "success": True,
                    "output_messages": [output_messages[0]],
                    "next_nodes": [],
                    "error": None,
                    "metadata": {},
                    "latency_ms": 0.0,
                }
                _set_fields(self, values)
                return
            if success is not _NOT_GIVEN:
                fields["success"] = success
            if output_messages is not _NOT_GIVEN:
                fields["output_messages"] = output_messages
            super().__init__(**fields)

        # Or Pydantic would build with this what it has validated already, JSON too, and show other parameters.
        __init__.__pydantic_base_init__ = True
        __init__.__signature__ = inspect.signature(BaseModel.__init__)

    @property
    def output(self) -> str | None:
        """The content of the last output message; None without one."""
        return self.output_messages[-1].payload.content if self.output_messages else None
