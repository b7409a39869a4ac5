"""Attributes of modules and classes that are replaced for a while, and put back exactly."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Iterable
from typing import Any, Final

__all__ = ["Replacements"]

_ABSENT: Final = object()

# Tells CPython to forget what it has cached about the attributes of a class; part of its stable C API.
_forget_cached = ctypes.pythonapi.PyType_Modified
_forget_cached.argtypes = [ctypes.py_object]
_forget_cached.restype = None


class Replacements:
    """What was replaced, and what stood there before. `undo` goes back in reverse order, so uses can nest."""

    __slots__ = ("_replaced",)

    def __init__(self) -> None:
        self._replaced: list[tuple[Any, str, Any]] = []

    def put(self, owner: Any, name: str, value: Any) -> None:
        """Let attribute *name* of *owner*, a module or a class, be *value*; its own, if it was inherited."""
        self._replaced.append((owner, name, vars(owner).get(name, _ABSENT)))
        setattr(owner, name, value)

    def put_all(self, replaced: Iterable[tuple[Any, str, Any]]) -> None:
        """`put` for many, each an owner, a name and a value."""
        note = self._replaced.append
        for owner, name, value in replaced:
            note((owner, name, vars(owner).get(name, _ABSENT)))
            setattr(owner, name, value)

    def put_into_builtin(self, owner: type, name: str, value: Any) -> None:
        """`put` for a class that is written in C, which refuses setattr.

        The class stays the same object, so that `isinstance`, pickling and every reference that somebody took
        earlier are not disturbed. CPython only: its classes keep their attributes in a dict behind a read-only view.
        """
        self._replaced.append((owner, name, vars(owner)[name]))
        _set_builtin(owner, name, value)

    def undo(self) -> None:
        """Put everything back. Does nothing the second time."""
        while self._replaced:
            owner, name, before = self._replaced.pop()
            if before is _ABSENT:
                delattr(owner, name)
            elif isinstance(owner, type) and not owner.__flags__ & _HEAP_TYPE:
                _set_builtin(owner, name, before)
            else:
                setattr(owner, name, before)


_HEAP_TYPE: Final = 1 << 9
"""The flag of classes that are made at run time, as all of Python's own are: Py_TPFLAGS_HEAPTYPE."""


def _set_builtin(owner: type, name: str, value: Any) -> None:
    # The read-only view refers to one thing only, the dict. What it held must outlive the caches of the class.
    (attributes,) = gc.get_referents(vars(owner))
    before = attributes[name]
    attributes[name] = value
    _forget_cached(owner)
    del before
