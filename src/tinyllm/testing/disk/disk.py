"""The durable storage of one simulated host: files in memory that forget, at a crash, what was not synced.

A `Disk` knows no event loop. Whoever owns it says what an operation costs (`charge`), whether a fault
strikes it (`decide`) and what time it is (`wall_ns`), and lets the host crash. Faults that last are attributes:
`capacity_bytes`, `sync_cost_ns`, `lies_about_sync`.

Decisions, and why:

- **Durable is what was synced**, per file; the rules for names are those of `disk_state`, what else may
  survive a crash is told in `disk_crash`. Of more than 4,096 changes that wait for a sync the older half becomes
  durable by itself, as systems write their caches back, so that no world grows without end.
- **Directories** come with the first file below them, stay, and are durable at once: the faults that this disk
  is for strike files and their names. There are neither links nor rights nor times.
- **A fault strikes before the operation**, which then has not begun. So a sync that failed can be tried again
  and then makes everything durable, which is kinder than Linux, where the pages may be gone.
- **A full disk takes what fits**: a write is short, as POSIX has it, and the next one raises ENOSPC; Python's
  buffers ask again by themselves. A truncation that grows a file does so whole or not at all.
- **The size of a disk counts the bytes of its named files**, holes too, and neither names nor blocks. A removed
  file gives its room back at once, even if it is still open: when an open file is collected is chance.
- **A crash of the process only** is `crash("kept")`: the system writes its cache back, buffers of Python are lost.
- **Open files of a host that crashed are dead**: see `disk_files`.
"""

from __future__ import annotations

import errno
import os
import posixpath
from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Final, Literal

from tinyllm.testing.disk.crash import SECTOR_BYTES, Unsynced, survivors
from tinyllm.testing.disk.files import DiskFile, Mode, OpenFile, file_object
from tinyllm.testing.disk.paths import above, normalised, os_error, stale
from tinyllm.testing.disk.state import Change, Create, DiskState, Inode, Remove, Rename, Truncate
from tinyllm.testing.units import EPOCH, NS_PER_S

if TYPE_CHECKING:
    from tinyllm.testing.disk.sqlite import DiskVFS

__all__ = ["SECTOR_BYTES", "Disk", "DiskFile", "Operation", "Unsynced", "os_error"]

Operation = Literal["open", "read", "write", "truncate", "sync", "rename", "remove"]

#: The first moment of a simulated world in nanoseconds of Unix time.
EPOCH_NS: Final = int(EPOCH.timestamp()) * NS_PER_S


def _free(_cost_ns: int) -> None:
    """The charge of a disk that nobody waits for."""


def _no_fault(_operation: Operation, _path: str) -> OSError | None:
    return None


def _epoch() -> int:
    return EPOCH_NS


class Disk:
    """The disk of one host. A path is a string; relative ones start at `/`.

    *charge* is told the virtual nanoseconds that an operation takes, before it takes effect. *decide* is asked
    before each operation on a file, with its absolute path, or on a directory that is synced; the error that
    it gives is raised. `os_error(errno.EIO, path)` makes one. *wall_ns* gives nanoseconds of Unix time and
    *seed* the randomness of SQLite. `close` it, or use it as a context manager, to give up what SQLite has of it.

    Public to set: `capacity_bytes`, None for no end, may also be less than what is used, and then nothing
    grows; `sync_cost_ns`, what each sync costs; `lies_about_sync`, a sync that succeeds and does nothing.
    """

    def __init__(
        self,
        *,
        capacity_bytes: int | None = None,
        charge: Callable[[int], None] = _free,
        decide: Callable[[Operation, str], OSError | None] = _no_fault,
        wall_ns: Callable[[], int] = _epoch,
        seed: int = 0,
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self.sync_cost_ns = 0
        self.lies_about_sync = False
        self.incarnation = 0
        self.charge = charge
        self.decide = decide
        self.wall_ns = wall_ns
        self.seed = seed
        self._state = DiskState()
        self._directories = {"/"}
        self._next_file = count(1).__next__
        self.next_connection = count(1).__next__
        self._vfs: DiskVFS | None = None

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Take the disk away from SQLite. Closing twice does nothing, and its files can still be used."""
        if self._vfs is not None:
            self._vfs.unregister()
            self._vfs = None

    # --- files ---------------------------------------------------------------------------------------

    def open(
        self,
        path: str | os.PathLike[str],
        mode: str = "r",
        *,
        encoding: str = "utf-8",
        errors: str = "strict",
        newline: str | None = None,
    ) -> DiskFile:
        """Open a file as Python's `open` does; text is UTF-8 unless said otherwise. `fsync` flushes and syncs it.

        Raises:
            ValueError: *mode* is none.
            OSError: FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, or the fault.
        """
        asked = Mode.parse(mode)
        file = self.open_file(path, create=asked.create, exclusive=asked.exclusive)
        if asked.truncate and file.inode.seen:
            self.change(Truncate(file.inode, 0))
        return file_object(file, asked, encoding=encoding, errors=errors, newline=newline)

    def open_file(
        self, path: str | os.PathLike[str] | None, *, create: bool = False, exclusive: bool = False
    ) -> OpenFile:
        """Open a file without buffers, for `disk_sqlite`; None is a temporary file. Raises as `open`."""
        if path is None:
            return OpenFile(self, "(temporary file)", self._state.new_inode(temporary=True), self._next_file())
        where = normalised(path)
        self.strike("open", where)
        if where in self._directories:
            raise os_error(errno.EISDIR, where)
        inode = self._state.names.get(where)
        if inode is None:
            inode = self._created(where, create)
        elif exclusive:
            raise os_error(errno.EEXIST, where)
        return OpenFile(self, where, inode, self._next_file())

    def read_bytes(self, path: str | os.PathLike[str]) -> bytes:
        """The whole file. Raises as `open`."""
        with self.open(path, "rb") as file:
            return bytes(file.read())

    def write_bytes(self, path: str | os.PathLike[str], data: bytes) -> int:
        """Make the file hold *data* only, and give its length. Nothing is synced. Raises as `open`."""
        with self.open(path, "wb") as file:
            return file.write(data)

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is such a file or directory."""
        where = normalised(path)
        return where in self._state.names or where in self._directories

    def size_bytes(self, path: str | os.PathLike[str]) -> int:
        """The size of a file.

        Raises:
            FileNotFoundError: there is no such file.
        """
        return len(self._named(normalised(path)).seen)

    def listdir(self, path: str | os.PathLike[str] = "/") -> list[str]:
        """The names of the files and directories in a directory, sorted.

        Raises:
            OSError: FileNotFoundError; NotADirectoryError, it is a file.
        """
        where = normalised(path)
        self._require_directory(where)
        paths = (*self._state.names, *self._directories)
        return sorted(posixpath.basename(path) for path in paths if path != "/" and posixpath.dirname(path) == where)

    def make_directory(self, path: str | os.PathLike[str]) -> None:
        """Make a directory and those above it; does nothing if it is there.

        Raises:
            OSError: FileExistsError, it is a file; NotADirectoryError, it lies below one.
        """
        where = normalised(path)
        if where in self._state.names:
            raise os_error(errno.EEXIST, where)
        if self._below_a_file(where):
            raise os_error(errno.ENOTDIR, where)
        self._directories.update(above(f"{where}/file"))

    def remove(self, path: str | os.PathLike[str]) -> None:
        """Take the name of a file away; who has it open can go on using it. Durable once its directory is synced.

        Raises:
            OSError: FileNotFoundError; IsADirectoryError; or the fault.
        """
        where = normalised(path)
        self.strike("remove", where)
        self._named(where)
        self.change(Remove(where))

    def rename(self, source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
        """Give a file another name, at once also if that named another file. Durable once the directory is synced.

        Raises:
            OSError: FileNotFoundError; IsADirectoryError, one of them is a directory, which cannot be renamed;
                NotADirectoryError; or the fault. It names both paths.
        """
        old, new = normalised(source), normalised(target)
        self.strike("rename", old)
        self._named(old, new)
        if new in self._directories:
            raise os_error(errno.EISDIR, old, new)
        if self._below_a_file(new):
            raise os_error(errno.ENOTDIR, old, new)
        if old != new:
            self._directories.update(above(new))
            self.change(Rename(old, new))

    def sync_directory(self, path: str | os.PathLike[str] = "/") -> None:
        """Make every change of a name in this directory durable.

        Raises:
            OSError: as `listdir`; or the fault.
        """
        where = normalised(path)
        self._require_directory(where)
        self.strike("sync", where, cost_ns=self.sync_cost_ns)
        if not self.lies_about_sync:
            self._state.sync_directory(where)

    def sync_all(self) -> None:
        """Make everything durable, as a system does when it has time; no fault strikes it and it costs nothing."""
        self._state.sync_all()

    @property
    def used_bytes(self) -> int:
        """How many bytes the files hold."""
        return sum(len(inode.seen) for inode in self._state.names.values())

    @property
    def unsynced_count(self) -> int:
        """How many changes would be lost in a crash that loses everything."""
        return len(self._state.unsynced)

    # --- the host ------------------------------------------------------------------------------------

    def crash(self, unsynced: Unsynced = "lost", choice: int = 0) -> None:
        """The host loses its power and comes back: what was synced stays, and of the rest what `disk_crash` says.

        All that is there afterwards is durable, and every file that was open is dead.

        Raises:
            ValueError: as `disk_crash.survivors`; nothing has happened.
        """
        self._state.crash(survivors(self._state.unsynced, unsynced, choice))
        self.incarnation += 1
        self.close()

    # --- SQLite --------------------------------------------------------------------------------------

    def vfs(self) -> DiskVFS:
        """What lets SQLite run on this disk, registered with it until `close` or `crash`; see `disk_sqlite.connect`.

        Raises:
            ImportError: apsw is not installed.
        """
        if self._vfs is None:
            from tinyllm.testing.disk.sqlite import DiskVFS

            self._vfs = DiskVFS(self)
        return self._vfs

    # --- what open files need ------------------------------------------------------------------------

    def strike(self, operation: Operation, path: str, *, cost_ns: int = 0) -> None:
        """Pay for the operation and raise the fault that strikes it, if any.

        Raises:
            OSError: the fault; ESTALE, the owner let the host crash on being asked.
        """
        incarnation = self.incarnation
        if cost_ns:
            self.charge(cost_ns)
        fault = self.decide(operation, path)
        if incarnation != self.incarnation:
            raise stale(path)
        if fault is not None:
            raise fault

    def change(self, change: Change) -> None:
        """Let programs see a change that is not durable yet."""
        self._state.change(change)

    def fitting_size(self, inode: Inode, wanted_bytes: int) -> int:
        """How far a file may reach that wants to reach *wanted_bytes*: less on a full disk."""
        size_bytes = len(inode.seen)
        if self.capacity_bytes is None or wanted_bytes <= size_bytes:
            return wanted_bytes
        room_bytes = max(0, self.capacity_bytes - self.used_bytes)
        return min(wanted_bytes, size_bytes + room_bytes)

    def sync_open(self, file: OpenFile) -> None:
        """Make the bytes of an open file durable, and its name if it is new."""
        self.strike("sync", file.path, cost_ns=self.sync_cost_ns)
        if not self.lies_about_sync:
            self._state.sync_file(file.inode)

    # --- names ---------------------------------------------------------------------------------------

    def _created(self, path: str, create: bool) -> Inode:
        if self._below_a_file(path):
            raise os_error(errno.ENOTDIR, path)
        if not create:
            raise os_error(errno.ENOENT, path)
        inode = self._state.new_inode()
        self._directories.update(above(path))
        self.change(Create(path, inode))
        return inode

    def _named(self, path: str, to_path: str | None = None) -> Inode:
        inode = self._state.names.get(path)
        if inode is None:
            raise os_error(errno.EISDIR if path in self._directories else errno.ENOENT, path, to_path)
        return inode

    def _require_directory(self, path: str) -> None:
        if path not in self._directories:
            raise os_error(errno.ENOTDIR if path in self._state.names else errno.ENOENT, path)

    def _below_a_file(self, path: str) -> bool:
        return any(parent in self._state.names for parent in above(path))
