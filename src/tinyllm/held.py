"""The messages that a run holds: its input, and what each visit put out. Pure: bounds and pruning, no await."""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

from tinyllm.config import ExecutorConfig
from tinyllm.message import Message


class UnfitError(ValueError):
    """A message that is none (any more), and so has no size."""


def _size_bytes(message: Message) -> int:
    try:
        return len(message.to_json().encode())
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise UnfitError(type(error).__name__) from None


class HeldMessages(Sequence[Message]):
    """Messages in order, oldest first. Nobody but its run can change it."""

    __slots__ = ("_bytes", "_config", "_messages", "_sizes_bytes", "bounded")

    def __init__(self, config: ExecutorConfig, first: Message) -> None:
        self._config = config
        #: Whether there is a bound at all.
        self.bounded = config.max_messages is not None or config.max_message_bytes is not None
        self._messages: list[Message] = []
        self._sizes_bytes: list[int] | None = None if config.max_message_bytes is None else []
        self._bytes = 0
        self.add(first)

    def add(self, message: Message) -> None:
        """Hold one more; raises UnfitError if its size counts and it has none."""
        self._messages.append(message)
        if self._sizes_bytes is not None:
            size_bytes = _size_bytes(message)
            self._sizes_bytes.append(size_bytes)
            self._bytes += size_bytes

    def exceeded(self) -> str | None:
        """Which bound is exceeded, in words; None if all hold."""
        config = self._config
        if config.max_messages is not None and len(self._messages) > config.max_messages:
            return f"{len(self._messages)} messages are held, max_messages is {config.max_messages}"
        if config.max_message_bytes is not None and self._bytes > config.max_message_bytes:
            return f"{self._bytes} bytes of messages are held, max_message_bytes is {config.max_message_bytes}"
        return None

    def prune(self) -> int:
        """Drop the oldest messages until the bounds hold, never the first nor the newest; gives their number."""
        dropped = 0
        while self.exceeded() is not None and len(self._messages) > 2:
            del self._messages[1]
            if self._sizes_bytes is not None:
                self._bytes -= self._sizes_bytes.pop(1)
            dropped += 1
        return dropped

    def __len__(self) -> int:
        return len(self._messages)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | Sequence[Message]:
        return self._messages[index]
