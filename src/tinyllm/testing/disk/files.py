"""Open files of a simulated disk, as Python's own file objects.

`OpenFile` is what a file descriptor is to a system: it reads and writes at an offset, asks the disk first
whether a fault strikes, and is dead once the host has crashed. On it stand a raw file and Python's buffers,
so buffering, seeking, lines and encodings behave as everywhere, and what was never flushed is lost with its
process. Every operation of a file of a crashed host raises OSError (ESTALE), also reading from its buffer:
a `finally` block that runs late can do nothing. Such a file counts as closed, so nobody flushes it either.
"""

from __future__ import annotations

import errno
import io
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar

from typing_extensions import Buffer

from tinyllm.testing.disk.paths import os_error, stale
from tinyllm.testing.disk.state import Inode, Truncate, Write

if TYPE_CHECKING:
    from tinyllm.testing.disk.disk import Disk

__all__ = ["BUFFER_BYTES", "DiskFile", "Mode", "OpenFile", "file_object"]

#: The size of a buffer, fixed because Python's own differs between its versions.
BUFFER_BYTES: Final = 8_192


class OpenFile:
    """One opening of a file, for as long as the host lives. `number` is unique on its disk."""

    __slots__ = ("_disk", "_incarnation", "inode", "number", "path")

    def __init__(self, disk: Disk, path: str, inode: Inode, number: int) -> None:
        self._disk = disk
        self._incarnation = disk.incarnation
        self.path = path
        self.inode = inode
        self.number = number

    @property
    def alive(self) -> bool:
        """Whether the host has not crashed since."""
        return self._incarnation == self._disk.incarnation

    def check_alive(self) -> None:
        if not self.alive:
            raise stale(self.path)

    @property
    def size_bytes(self) -> int:
        self.check_alive()
        return len(self.inode.seen)

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """At most *size_bytes* from *offset*; fewer only at the end of the file."""
        self.check_alive()
        self._disk.strike("read", self.path)
        return bytes(self.inode.seen[offset : offset + size_bytes])

    def write_at(self, offset: int, data: Buffer) -> int:
        """Write at *offset* and give the number of bytes that found room, fewer than all on a full disk.

        Raises:
            OSError: ENOSPC, not one byte found room.
        """
        self.check_alive()
        self._disk.strike("write", self.path)
        written = bytes(data)
        if not written:
            return 0
        end = self._disk.fitting_size(self.inode, offset + len(written))
        if end <= offset:
            raise os_error(errno.ENOSPC, self.path)
        self._disk.change(Write(self.inode, offset, written[: end - offset]))
        return min(len(written), end - offset)

    def truncate(self, size_bytes: int) -> None:
        """Cut the file to a size, or fill it with zeros up to it.

        Raises:
            OSError: EINVAL, the size is negative; ENOSPC, the zeros do not all fit, and nothing has changed.
        """
        self.check_alive()
        self._disk.strike("truncate", self.path)
        if size_bytes < 0:
            raise os_error(errno.EINVAL, self.path)
        if self._disk.fitting_size(self.inode, size_bytes) < size_bytes:
            raise os_error(errno.ENOSPC, self.path)
        if size_bytes != len(self.inode.seen):
            self._disk.change(Truncate(self.inode, size_bytes))

    def sync(self) -> None:
        """Make the bytes durable, and the name of a new file."""
        self.check_alive()
        self._disk.sync_open(self)


@dataclass(frozen=True, slots=True)
class Mode:
    """What the mode of `open` asks for."""

    text: str
    readable: bool
    writable: bool
    create: bool
    exclusive: bool
    truncate: bool
    append: bool
    binary: bool

    @classmethod
    def parse(cls, mode: str) -> Mode:
        """Read a mode as `open` does.

        Raises:
            ValueError: it is none.
        """
        kinds = [letter for letter in mode if letter in "rwax"]
        letters = set(mode)
        if len(letters) != len(mode) or letters - set("rwax+bt") or len(kinds) != 1 or letters >= {"b", "t"}:
            raise ValueError(f"a mode is one of r, w, a and x, with + or not, and b or t, not {mode!r}")
        kind, both = kinds[0], "+" in letters
        return cls(
            text=mode,
            readable=kind == "r" or both,
            writable=kind != "r" or both,
            create=kind != "r",
            exclusive=kind == "x",
            truncate=kind == "w",
            append=kind == "a",
            binary="b" in letters,
        )


class RawFile(io.RawIOBase):
    """An unbuffered file object on an OpenFile."""

    def __init__(self, file: OpenFile, mode: Mode) -> None:
        super().__init__()
        self.file = file
        self.name = file.path
        self.mode = mode.text
        self._mode = mode
        self._position = file.size_bytes if mode.append else 0

    @property
    def closed(self) -> bool:
        return super().closed or not self.file.alive

    def __repr__(self) -> str:
        return f"<RawFile {self.name!r} mode={self.mode!r}>"

    def readable(self) -> bool:
        return self._mode.readable

    def writable(self) -> bool:
        return self._mode.writable

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        self._require(self._mode.readable, "not readable")
        view = memoryview(buffer).cast("B")
        data = self.file.read_at(self._position, len(view))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def write(self, data: Buffer) -> int:
        self._require(self._mode.writable, "not writable")
        if self._mode.append:
            self._position = self.file.size_bytes
        written = self.file.write_at(self._position, data)
        self._position += written
        return written

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.file.size_bytes}.get(whence)
        if start is None or start + offset < 0:
            raise os_error(errno.EINVAL, self.file.path)
        self._position = start + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self._require(self._mode.writable, "not writable")
        size_bytes = self._position if size is None else size
        self.file.truncate(size_bytes)
        return size_bytes

    def _require(self, allowed: bool, otherwise: str) -> None:
        self.file.check_alive()
        if not allowed:
            raise io.UnsupportedOperation(otherwise)


class DiskFile(IO[Any]):
    """The type of a file of a simulated disk: a file object of Python that also knows how to sync itself."""

    def fsync(self) -> None:
        """Flush, and make the bytes durable, and the name of a new file."""
        raise NotImplementedError


_OPERATIONS: Final = (
    "__enter__", "__iter__", "__next__", "close", "detach", "flush", "peek", "read", "read1", "readinto", "readinto1",
    "readline", "readlines", "reconfigure", "seek", "tell", "truncate", "write", "writelines",
)  # fmt: skip

_Kind = TypeVar("_Kind", bound="type[io.IOBase]")


def _mortal(kind: _Kind) -> _Kind:
    """A kind of Python's files whose operations raise OSError once the host has crashed."""

    def guarded(name: str) -> Callable[..., Any]:
        operation = getattr(kind, name)

        def guard(self: Any, *args: Any, **settings: Any) -> Any:
            _open_file(self).check_alive()
            return operation(self, *args, **settings)

        return guard

    def fsync(self: Any) -> None:
        self.flush()
        _open_file(self).sync()

    body = {name: guarded(name) for name in _OPERATIONS if hasattr(kind, name)}
    mortal: Any = type(f"Disk{kind.__name__}", (kind,), {**body, "fsync": fsync, "__module__": __name__})
    return mortal  # type: ignore[no-any-return]


def _open_file(file: Any) -> OpenFile:
    """The OpenFile below a buffered or a text file."""
    binary = file.buffer if isinstance(file, io.TextIOWrapper) else file
    raw: RawFile = binary.raw
    return raw.file


_Reader = _mortal(io.BufferedReader)
_Writer = _mortal(io.BufferedWriter)
_Random = _mortal(io.BufferedRandom)
_Text = _mortal(io.TextIOWrapper)


def file_object(file: OpenFile, mode: Mode, *, encoding: str, errors: str, newline: str | None) -> DiskFile:
    """A binary or a text file over *file*, as *mode* says; the last three matter to text only."""
    raw = RawFile(file, mode)
    kind: Any = _Random if mode.readable and mode.writable else _Reader if mode.readable else _Writer
    binary = kind(raw, BUFFER_BYTES)
    if mode.binary:
        return binary  # type: ignore[no-any-return]
    made: Any = _Text(binary, encoding=encoding, errors=errors, newline=newline)
    made.mode = mode.text  # as `open` does, because the class has none
    return made  # type: ignore[no-any-return]
