"""SQLite on a simulated disk: what apsw needs to keep its databases there.

`connect(disk, "app.db")` gives an ordinary `apsw.Connection`. Its files live on the disk, its syncs are the
disk's, the faults of the disk reach it as SQLite's own errors (IOERR, FULL, CANTOPEN), connections to one
database lock each other out, and after a crash its connections are as dead as open files. Nothing reads the
machine: time and sleep come from the disk, and so does randomness.

What to know:

- SQLite's random numbers (its `random()`, the salts of journals) come from one generator for the whole process,
  which `connect` seeds anew from the seed of the disk and the number of the connection. So a run that
  interleaves two worlds in one process does not repeat; one after the other they do.
- A write-ahead log needs shared memory, which apsw does not let Python offer. SQLite does without where the
  database belongs to one connection, so `connect(..., wal=True)` locks it exclusively. Rollback journals allow
  many connections.
- The disk tells SQLite what it is: sectors of 512 bytes, and overwriting a part of a file harms nothing beside it
  (powersafe overwrite), since bytes outside a write never change in `disk_crash`. It promises nothing else:
  neither atomic pages nor safe appends nor order.
- With `journal_mode=DELETE` a transaction is over when the journal is removed, and SQLite syncs the directory
  after that only with `synchronous=EXTRA`. With FULL, its default, a crash can bring the journal back and take
  the last transaction away, here as on a real disk.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from itertools import count
from posixpath import dirname
from random import Random
from typing import TYPE_CHECKING, Any, Final, TypeVar

from tinyllm.testing.disk.crash import SECTOR_BYTES
from tinyllm.testing.disk.files import OpenFile
from tinyllm.testing.disk.paths import normalised

try:
    import apsw
except ModuleNotFoundError as missing:
    raise ImportError(
        "SQLite on a simulated disk needs the package apsw; install it with: pip install 'tinyllm[testing]'"
    ) from missing

if TYPE_CHECKING:
    from tinyllm.testing.disk.disk import Disk

__all__ = ["DiskVFS", "connect"]

_T = TypeVar("_T")

#: Milliseconds from the beginning of the Julian calendar to that of Unix time, as SQLite counts them.
_UNIX_EPOCH_MS: Final = 210_866_760_000_000
_SHARED, _RESERVED, _PENDING, _EXCLUSIVE = (
    apsw.SQLITE_LOCK_SHARED,
    apsw.SQLITE_LOCK_RESERVED,
    apsw.SQLITE_LOCK_PENDING,
    apsw.SQLITE_LOCK_EXCLUSIVE,
)
_JOURNALS: Final = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_SUPER_JOURNAL | apsw.SQLITE_OPEN_WAL


def connect(disk: Disk, path: str, *, wal: bool = False) -> apsw.Connection:
    """Open the database at *path* of *disk*, or make it; with *wal* for this connection alone, in WAL mode.

    A database in WAL mode can be read only so. SQLite looks at the file when it first needs to: without *wal*
    that is later than here.

    Raises:
        apsw.Error: as `apsw.Connection`; `apsw.BusyError` if with *wal* another connection has the database.
    """
    vfs = disk.vfs()
    vfs.seed_sqlite(disk.next_connection())
    connection = apsw.Connection(path, vfs=vfs.name)
    if wal:
        try:
            connection.pragma("locking_mode", "exclusive")
            mode = connection.pragma("journal_mode", "wal")
            if mode != "wal":
                raise apsw.SQLError(f"the journal mode of {path!r} stays {mode}")
        except BaseException:
            connection.close()
            raise
    return connection


class DiskVFS(apsw.VFS):
    """The operating system that SQLite sees: one disk, its clock and its randomness. Made by `Disk.vfs`.

    It dies with the host, or a connection of a crashed host could remove, when it is closed, the write-ahead
    log of the next one.
    """

    def __init__(self, disk: Disk) -> None:
        self._disk = disk
        self._incarnation = disk.incarnation
        self.name = _free_name(disk.incarnation)
        super().__init__(self.name)

    def seed_sqlite(self, number: int) -> None:
        """Seed the generator of SQLite for connection *number* of the disk."""
        seeder = _Seeder(Random(f"{self._disk.seed}/{number}").randbytes(64))
        try:
            apsw.randomness(0)
            apsw.randomness(1)
        finally:
            seeder.unregister()

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return normalised(name)

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> Any:  # noqa: N802
        self._check_alive(apsw.SQLITE_CANTOPEN)
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        create = bool(flags[0] & apsw.SQLITE_OPEN_CREATE)
        exclusive = bool(flags[0] & apsw.SQLITE_OPEN_EXCLUSIVE)
        file = _told(apsw.SQLITE_CANTOPEN, lambda: self._disk.open_file(path, create=create, exclusive=exclusive))
        flags[1] = flags[0]
        return DiskVFSFile(self._disk, file, sync_name=create and bool(flags[0] & _JOURNALS))

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: ARG002, N802
        self._check_alive(apsw.SQLITE_IOERR_ACCESS)
        return self._disk.exists(pathname)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        self._check_alive(apsw.SQLITE_IOERR_DELETE)
        if not self._disk.exists(filename):
            raise apsw.exception_for(apsw.SQLITE_IOERR_DELETE_NOENT)
        _told(apsw.SQLITE_IOERR_DELETE, lambda: self._disk.remove(filename))
        if syncdir:
            _told(apsw.SQLITE_IOERR_DIR_FSYNC, lambda: self._disk.sync_directory(dirname(filename)))

    def xCurrentTimeInt64(self) -> int:  # noqa: N802
        return _UNIX_EPOCH_MS + self._disk.wall_ns() // 1_000_000

    def xCurrentTime(self) -> float:  # noqa: N802
        return self.xCurrentTimeInt64() / 86_400_000

    def xSleep(self, microseconds: int) -> int:  # noqa: N802
        self._disk.charge(microseconds * 1_000)
        return microseconds

    def xRandomness(self, numbytes: int) -> bytes:  # noqa: N802
        return Random(self._disk.seed).randbytes(numbytes)

    def xGetLastError(self) -> tuple[int, str | None]:  # noqa: N802
        return 0, None

    def _check_alive(self, extended: int) -> None:
        if self._incarnation != self._disk.incarnation:
            raise apsw.exception_for(extended)


class DiskVFSFile:
    """One file that SQLite has open. With *sync_name* its first sync is one of its directory too.

    SQLite on Unix does so for journals, and needs it: that sync also ends for good the journal that was
    removed before, which a crash could bring back to undo what the new journal or log has acknowledged.
    """

    def __init__(self, disk: Disk, file: OpenFile, *, sync_name: bool) -> None:
        self._disk = disk
        self._file = file
        self._sync_name = sync_name

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        return _told(apsw.SQLITE_IOERR_READ, lambda: self._file.read_at(offset, amount))

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802
        if _told(apsw.SQLITE_IOERR_WRITE, lambda: self._file.write_at(offset, data)) < len(data):
            raise apsw.exception_for(apsw.SQLITE_FULL)

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        _told(apsw.SQLITE_IOERR_TRUNCATE, lambda: self._file.truncate(newsize))

    def xSync(self, flags: int) -> None:  # noqa: ARG002, N802
        _told(apsw.SQLITE_IOERR_FSYNC, self._file.sync)
        if self._sync_name:
            _told(apsw.SQLITE_IOERR_DIR_FSYNC, lambda: self._disk.sync_directory(dirname(self._file.path)))
            self._sync_name = False

    def xFileSize(self) -> int:  # noqa: N802
        return _told(apsw.SQLITE_IOERR_FSTAT, lambda: self._file.size_bytes)

    def xLock(self, level: int) -> None:  # noqa: N802
        """The five levels of SQLite's file locks: see https://sqlite.org/lockingv3.html."""
        _told(apsw.SQLITE_IOERR_LOCK, self._file.check_alive)
        locks, number = self._file.inode.locks, self._file.number
        strongest = max((held for other, held in locks.items() if other != number), default=0)
        if locks.get(number, 0) >= level:
            return
        if strongest >= (_PENDING if level == _SHARED else _RESERVED):
            raise apsw.exception_for(apsw.SQLITE_BUSY)
        if level == _EXCLUSIVE and strongest >= _SHARED:
            # Lets the readers go on, and no new ones in.
            locks[number] = _PENDING
            raise apsw.exception_for(apsw.SQLITE_BUSY)
        locks[number] = level

    def xUnlock(self, level: int) -> None:  # noqa: N802
        # Also for the dead, whose locks went with the crash: nobody could do anything about an error.
        if level:
            self._file.inode.locks[self._file.number] = level
        else:
            self._file.inode.locks.pop(self._file.number, None)

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return any(held >= _RESERVED for held in self._file.inode.locks.values())

    def xSectorSize(self) -> int:  # noqa: N802
        return SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE

    def xFileControl(self, op: int, ptr: int) -> bool:  # noqa: ARG002, N802
        return False

    def xClose(self) -> None:  # noqa: N802
        self.xUnlock(0)


class _Seeder(apsw.VFS):
    """Takes the place of the default while SQLite asks the default for randomness."""

    def __init__(self, seed: bytes) -> None:
        self._seed = seed
        super().__init__("tinyllm-seeder", makedefault=True)

    def xRandomness(self, numbytes: int) -> bytes:  # noqa: N802
        return self._seed[:numbytes]


def _free_name(incarnation: int) -> str:
    """The first name that no VFS has, so that it depends on what is open and not on what was.

    With the incarnation, because ATTACH looks the VFS of its connection up by name.
    """
    taken = set(apsw.vfs_names())
    return next(name for number in count(1) if (name := f"tinyllm-disk-{incarnation}-{number}") not in taken)


def _told(extended: int, operation: Callable[[], _T]) -> _T:
    """Do it, and tell SQLite of an OSError in the way that it knows."""
    try:
        return operation()
    except OSError as error:
        raise apsw.exception_for(apsw.SQLITE_FULL if error.errno == errno.ENOSPC else extended) from error
