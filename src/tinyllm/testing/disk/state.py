"""What a simulated disk holds: as programs see it, as it would be after a power cut, and the changes in between.

Every change goes at once into the state that programs see, and into one list, in order, of what is not yet
durable. A sync applies the changes of one file, or of the names in one directory, to the durable state and
takes them off the list. A crash applies those that survive (see `disk_crash`) and forgets the others. When
the list grows beyond `UNSYNCED_MAX` its older half becomes durable, as a system writes its cache back in time.

The rules for names follow a journalling file system such as ext4. Syncing a file that is new makes its name
durable too, because there its inode cannot be reached from anywhere else. Renaming and removing become
durable only when the directory is synced. Two changes that touch one path become durable in their order.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Final

__all__ = [
    "UNSYNCED_MAX", "ByteChange", "Change", "Create", "DiskState", "Extend", "Inode", "NameChange", "Remove", "Rename",
    "Truncate", "Write",
]  # fmt: skip


#: So many changes wait for a sync at most; without a bound a program that never syncs would grow the world.
UNSYNCED_MAX: Final = 4_096


@dataclass(slots=True, eq=False)
class Inode:
    """One file without its name: the bytes that programs see, and those that survive whatever happens.

    A temporary file never had a name, so no crash can leave anything of it. `locks` is for `disk_sqlite`:
    the lock that each open file holds, by the number of the open file.
    """

    number: int
    seen: bytearray = field(default_factory=bytearray)
    durable: bytearray = field(default_factory=bytearray)
    temporary: bool = False
    locks: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class Write:
    """`data` goes to `offset`; a hole before it is filled with zeros."""

    inode: Inode
    offset: int
    data: bytes

    def apply(self, content: bytearray) -> None:
        if len(content) < self.offset:
            content.extend(bytes(self.offset - len(content)))
        content[self.offset : self.offset + len(self.data)] = self.data


@dataclass(frozen=True, slots=True, eq=False)
class Truncate:
    """The file is cut to `size_bytes`, or filled with zeros up to it."""

    inode: Inode
    size_bytes: int

    def apply(self, content: bytearray) -> None:
        del content[self.size_bytes :]
        content.extend(bytes(self.size_bytes - len(content)))


@dataclass(frozen=True, slots=True, eq=False)
class Extend:
    """The file is at least `size_bytes` long; only a crash makes it, of a write whose bytes did not survive."""

    inode: Inode
    size_bytes: int

    def apply(self, content: bytearray) -> None:
        content.extend(bytes(max(0, self.size_bytes - len(content))))


@dataclass(frozen=True, slots=True, eq=False)
class Create:
    """`path` names a new file."""

    path: str
    inode: Inode

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)

    def apply(self, names: dict[str, Inode]) -> None:
        names[self.path] = self.inode


@dataclass(frozen=True, slots=True, eq=False)
class Rename:
    """What `source` named is named `target`, at once also if that named something else."""

    source: str
    target: str

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.source, self.target)

    def apply(self, names: dict[str, Inode]) -> None:
        names[self.target] = names.pop(self.source)


@dataclass(frozen=True, slots=True, eq=False)
class Remove:
    """`path` names nothing any more."""

    path: str

    @property
    def paths(self) -> tuple[str, ...]:
        return (self.path,)

    def apply(self, names: dict[str, Inode]) -> None:
        del names[self.path]


NameChange = Create | Rename | Remove
ByteChange = Write | Truncate | Extend
Change = ByteChange | NameChange


class DiskState:
    """The two states and the changes between them. Pure: no errors, no faults, no limits."""

    __slots__ = ("_durable_names", "_next_number", "names", "unsynced")

    def __init__(self) -> None:
        self._next_number = count(1).__next__
        self.names: dict[str, Inode] = {}
        self._durable_names: dict[str, Inode] = {}
        self.unsynced: list[Change] = []

    def new_inode(self, *, temporary: bool = False) -> Inode:
        """An empty file that no path names yet."""
        return Inode(self._next_number(), temporary=temporary)

    def change(self, change: Change) -> None:
        """Let programs see *change*, which is not durable yet."""
        if isinstance(change, ByteChange):
            change.apply(change.inode.seen)
            if change.inode.temporary:
                return
        else:
            change.apply(self.names)
        self.unsynced.append(change)
        if len(self.unsynced) > UNSYNCED_MAX:
            self._make_durable(self.unsynced[: UNSYNCED_MAX // 2])
            del self.unsynced[: UNSYNCED_MAX // 2]

    def sync_all(self) -> None:
        """Make every change durable."""
        self._make_durable(self.unsynced)
        self.unsynced = []

    def sync_file(self, inode: Inode) -> None:
        """Make the bytes of a file durable, and its name if the file is new."""
        rest = []
        for change in self.unsynced:
            if isinstance(change, ByteChange) and change.inode is inode:
                change.apply(inode.durable)
            else:
                rest.append(change)
        self.unsynced = rest
        self._sync_names(lambda change: isinstance(change, Create) and change.inode is inode)

    def sync_directory(self, directory: str) -> None:
        """Make every change of a name in *directory* durable."""
        self._sync_names(lambda change: any(posixpath.dirname(path) == directory for path in change.paths))

    def _sync_names(self, wanted: Callable[[NameChange], bool]) -> None:
        """Make the wanted changes durable, and those before them on which they build."""
        taken: list[NameChange] = []
        rest: list[Change] = []
        touched: set[str] = set()
        for change in reversed(self.unsynced):
            if isinstance(change, ByteChange) or not (wanted(change) or touched.intersection(change.paths)):
                rest.append(change)
            else:
                taken.append(change)
                touched.update(change.paths)
        self._make_durable(reversed(taken))
        self.unsynced = rest[::-1]

    def _make_durable(self, changes: Iterable[Change]) -> None:
        for change in changes:
            if isinstance(change, ByteChange):
                change.apply(change.inode.durable)
            else:
                change.apply(self._durable_names)

    def crash(self, survivors: Iterable[Change]) -> None:
        """Go back to what is durable plus *survivors*. All inodes are new, so open files see nothing of it."""
        self._make_durable(survivors)
        names: dict[str, Inode] = {}
        for path, inode in self._durable_names.items():
            names[path] = Inode(self._next_number(), bytearray(inode.durable), inode.durable)
        self.names = names
        self._durable_names = dict(names)
        self.unsynced = []
