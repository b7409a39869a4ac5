"""Where modules of the user keep functions of the standard library under names of their own.

`from time import monotonic` copies a reference, and replacing `time.monotonic` does not reach it. The modules
that were imported since the last look are looked through, each once; those of Python itself, of installed packages
and of this project are left alone, because the test runner and the tools around it live there.
"""

from __future__ import annotations

import site
import sys
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any, Final

__all__ = ["BorrowedNames"]

_OURS: Final = frozenset({"tinyllm", "tinyllm_fuzz", "tinyllm_strategies", "_tinyllm_pytest"})
#: What runs the tests, for those who work on it and have its source tree on the path.
_RUNNERS: Final = frozenset({"_hypothesis_pytestplugin", "_pytest", "coverage", "execnet", "hypothesis", "pluggy",
                             "pytest", "pytest_timeout", "xdist"})  # fmt: skip


class BorrowedNames:
    """Finds, and remembers, the names under which modules of the user hold any of *functions*."""

    def __init__(self, functions: dict[str, Callable[..., Any]]) -> None:
        self._names = {id(function): name for name, function in functions.items()}
        self._functions = functions  # keeps them, so that no other thing gets one of their addresses
        self._looked_through: dict[str, ModuleType] = {}
        self._count = 0
        self._found: list[tuple[ModuleType, str, str]] = []

    def found(self) -> list[tuple[ModuleType, str, str]]:
        """Each such name as (module, the name there, the name in *functions*), in the order of import."""
        # As long as no module has come the answer is the last one, and costs nothing.
        if len(sys.modules) != self._count:
            for name, module in list(sys.modules.items()):
                if self._looked_through.get(name) is not module:
                    self._looked_through[name] = module
                    self._found.extend(self._in(name, module))
            self._count = len(sys.modules)
        return self._found

    def _in(self, name: str, module: ModuleType) -> Iterator[tuple[ModuleType, str, str]]:
        if not _is_users(name, module):
            return
        for attribute, value in list(vars(module).items()):
            if isinstance(value, BuiltinFunctionType | FunctionType) and (function := self._names.get(id(value))):
                yield module, attribute, function


def _is_users(name: str, module: ModuleType) -> bool:
    if name.partition(".")[0] in _OURS | _RUNNERS:
        return False
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and not file.startswith(_INSTALLED)


def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.update(site.getsitepackages())
    if user := site.getusersitepackages():
        folders.add(user)
    return tuple(sorted({f"{path}/" for folder in folders for path in (folder, Path(folder).resolve())}))


_INSTALLED: Final = _installed()
