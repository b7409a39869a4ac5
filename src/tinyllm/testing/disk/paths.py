"""Paths of a simulated disk, which are plain POSIX strings, and the errors that name them."""

from __future__ import annotations

import errno
import os
import posixpath

__all__ = ["above", "normalised", "os_error", "stale"]


def os_error(number: int, path: str, to_path: str | None = None) -> OSError:
    """The OSError that a system raises for `errno` *number*, of the right subclass, with its path or paths."""
    if to_path is None:
        return OSError(number, os.strerror(number), path)
    return OSError(number, os.strerror(number), path, None, to_path)


def stale(path: str) -> OSError:
    """The error of using what was open when the host crashed."""
    return OSError(errno.ESTALE, "the host has crashed since this file was opened", path)


def normalised(path: str | os.PathLike[str]) -> str:
    """The absolute path without `.`, `..`, or a slash too many.

    Raises:
        FileNotFoundError: it is empty.
        TypeError: it is no path, or one of bytes.
        ValueError: it holds a null character.
    """
    text = os.fspath(path)
    if not isinstance(text, str):
        raise TypeError(f"a path is a string, not {text!r}")
    if not text:
        raise os_error(errno.ENOENT, text)
    if "\0" in text:
        raise ValueError(f"a path holds no null character, but {text!r} does")
    return posixpath.normpath(f"/{text.lstrip('/')}")


def above(path: str) -> list[str]:
    """The directories above a path, the nearest first."""
    above = []
    while path != "/":
        path = posixpath.dirname(path)
        above.append(path)
    return above
