"""The memory of a host, as far as programs ask it: a budget that a fault can shrink, and accounts that balance."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from tinyllm.testing.loop_errors import SimulationError

__all__ = ["Memory", "MemoryAccountError", "OutOfMemoryError"]


class OutOfMemoryError(MemoryError):
    """`size_bytes` more were refused: `used_bytes` of `budget_bytes` are in use."""

    def __init__(self, size_bytes: int, used_bytes: int, budget_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = used_bytes
        self.budget_bytes = budget_bytes
        super().__init__(f"{size_bytes} bytes refused: {used_bytes} of a budget of {budget_bytes} bytes are in use")


class MemoryAccountError(SimulationError, ValueError):
    """A size that is none, or more was freed than is in use."""


class Memory:
    """A budget of *budget_bytes*; None is without end. Nothing is really allocated.

    `used_bytes` is what is allocated now, `most_bytes` the most that ever was at once.

    Raises:
        MemoryAccountError: the budget, or a size below, is no whole number of at least 0.
    """

    __slots__ = ("_budget_bytes", "_shrunk_bytes", "most_bytes", "used_bytes")

    def __init__(self, budget_bytes: int | None = None) -> None:
        if budget_bytes is not None:
            _require_size("budget_bytes", budget_bytes)
        self._budget_bytes = budget_bytes
        self._shrunk_bytes: int | None = None
        self.used_bytes = 0
        self.most_bytes = 0

    @property
    def budget_bytes(self) -> int | None:
        """The budget that holds now: the smaller one while it is shrunk."""
        budgets = [budget for budget in (self._budget_bytes, self._shrunk_bytes) if budget is not None]
        return min(budgets, default=None)

    @property
    def free_bytes(self) -> int | None:
        """What can still be allocated; 0 if more than the budget is in use, None if there is no end."""
        budget_bytes = self.budget_bytes
        return None if budget_bytes is None else max(0, budget_bytes - self.used_bytes)

    def allocate(self, size_bytes: int) -> None:
        """Take *size_bytes*.

        Raises:
            OutOfMemoryError: they are not free; nothing is taken then. 0 bytes are always free.
        """
        _require_size("size_bytes", size_bytes)
        budget_bytes = self.budget_bytes
        if size_bytes and budget_bytes is not None and self.used_bytes + size_bytes > budget_bytes:
            raise OutOfMemoryError(size_bytes, self.used_bytes, budget_bytes)
        self.used_bytes += size_bytes
        self.most_bytes = max(self.most_bytes, self.used_bytes)

    def free(self, size_bytes: int) -> None:
        """Give *size_bytes* back.

        Raises:
            MemoryAccountError: so much is not in use.
        """
        _require_size("size_bytes", size_bytes)
        if size_bytes > self.used_bytes:
            raise MemoryAccountError(f"{size_bytes} bytes cannot be freed, for only {self.used_bytes} are in use")
        self.used_bytes -= size_bytes

    @contextmanager
    def reserve(self, size_bytes: int) -> Iterator[None]:
        """`allocate` now and `free` at the end of the `with`, also after an error."""
        self.allocate(size_bytes)
        try:
            yield
        finally:
            self.free(size_bytes)

    def shrink(self, budget_bytes: int) -> None:
        """Let the budget be *budget_bytes* for a while, if that is less. What is allocated stays."""
        _require_size("budget_bytes", budget_bytes)
        self._shrunk_bytes = budget_bytes

    def restore(self) -> None:
        """Have the first budget again. Does nothing if it was not shrunk."""
        self._shrunk_bytes = None

    def clear(self) -> None:
        """Forget all that is allocated, as a crash does."""
        self.used_bytes = 0


def _require_size(name: str, value: object) -> None:
    if type(value) is not int or value < 0:
        raise MemoryAccountError(f"{name} is a whole number of at least 0, not {value!r}")
