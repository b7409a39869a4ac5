"""The simulated disk: files as everywhere, faults that bite and heal, and crashes that keep only what they say."""

from __future__ import annotations

import errno
import gc
import os
import subprocess
import sys
from collections import Counter
from itertools import count, product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tinyllm.testing.disk.disk import SECTOR_BYTES, Disk, os_error
from tinyllm.testing.disk.state import UNSYNCED_MAX

pytestmark = pytest.mark.unit

quiet = settings(deadline=None, max_examples=200)
CHOICES = range(300)


class Faulty:
    """A decision that gives an error for the operations asked for, until it is healed."""

    def __init__(self, number, *operations):
        self.number, self.operations, self.asked = number, set(operations), []

    def __call__(self, operation, path):
        self.asked.append((operation, path))
        return os_error(self.number, path) if operation in self.operations else None

    def heal(self):
        self.operations = set()


def written(disk, path, *pieces):
    """Write pieces one after the other, each as a write of its own that nobody syncs."""
    with disk.open(path, "ab") as file:
        for piece in pieces:
            file.write(piece)
            file.flush()


def synced(disk, path, content):
    with disk.open(path, "wb") as file:
        file.write(content)
        file.fsync()
    disk.sync_directory(os.path.dirname(path) or "/")  # noqa: PTH120 - a path of the disk, not of this machine


def outcomes(build, unsynced, path="a", choices=CHOICES):
    """What a crash can leave of a file, each with the lowest choice that does, in the order of these."""
    found: dict = {}
    for choice in choices:
        disk = Disk()
        build(disk)
        disk.crash(unsynced, choice)
        found.setdefault(disk.read_bytes(path) if disk.exists(path) else None, choice)
    return found


# --- files as everywhere ---------------------------------------------------------------------------


def test_a_text_file_reads_back_what_was_written():
    disk = Disk()
    with disk.open("notes/a.txt", "w") as file:
        file.write("schön\nzwei\n")
    with disk.open("/notes/./x/../a.txt") as file:
        assert ["schön\n", "zwei\n"] == list(file)
    assert "schön\nzwei\n".encode() == disk.read_bytes("notes/a.txt")


def test_the_same_operations_give_the_same_as_on_a_real_file(tmp_path):
    def play(open_file):
        told = []
        with open_file("w+b") as file:
            told += [file.write(b"0123456789"), file.seek(-4, 2), file.read(2), file.write(b"AB"), file.tell()]
            told += [file.truncate(9), file.seek(12), file.write(b"!"), file.seek(0), file.read()]
        with open_file("r+") as file:
            told += [file.readline(), file.seek(0), file.write("zz"), file.flush(), file.read()]
        with open_file("ab") as file:
            told += [file.tell(), file.write(b"end"), file.tell(), file.seekable(), file.readable(), file.closed]
        with open_file("rb") as file:
            told += [file.read(), file.peek(1), file.writable(), file.mode]
            told.append(raised(lambda: file.write(b"x")))
        told.append(raised(file.read))
        told.append(raised(lambda: open_file("x")))
        told.append(raised(lambda: open_file("rw")))
        return told

    def raised(call):
        with pytest.raises((OSError, ValueError)) as caught:
            call()
        return type(caught.value).__mro__[-3:], getattr(caught.value, "errno", None)

    real: Path = tmp_path / "a"
    disk = Disk()
    assert play(real.open) == play(lambda mode: disk.open("a", mode))


@pytest.mark.parametrize("mode", ["", "rw", "rr", "rbt", "q", "+", "b"])
def test_a_mode_that_is_none_is_refused_with_what_is_allowed(mode):
    with pytest.raises(ValueError, match="a mode is one of r, w, a and x"):
        Disk().open("a", mode)


@pytest.mark.parametrize(
    ("call", "kind", "number"),
    [
        (lambda disk: disk.open("none"), FileNotFoundError, errno.ENOENT),
        (lambda disk: disk.open("file", "x"), FileExistsError, errno.EEXIST),
        (lambda disk: disk.open("dir", "w"), IsADirectoryError, errno.EISDIR),
        (lambda disk: disk.open("file/under", "w"), NotADirectoryError, errno.ENOTDIR),
        (lambda disk: disk.open("", "w"), FileNotFoundError, errno.ENOENT),
        (lambda disk: disk.remove("none"), FileNotFoundError, errno.ENOENT),
        (lambda disk: disk.remove("dir"), IsADirectoryError, errno.EISDIR),
        (lambda disk: disk.rename("none", "new"), FileNotFoundError, errno.ENOENT),
        (lambda disk: disk.rename("file", "dir"), IsADirectoryError, errno.EISDIR),
        (lambda disk: disk.rename("dir/a", "file/under"), NotADirectoryError, errno.ENOTDIR),
        (lambda disk: disk.listdir("none"), FileNotFoundError, errno.ENOENT),
        (lambda disk: disk.listdir("file"), NotADirectoryError, errno.ENOTDIR),
        (lambda disk: disk.sync_directory("none"), FileNotFoundError, errno.ENOENT),
        (lambda disk: disk.make_directory("file"), FileExistsError, errno.EEXIST),
        (lambda disk: disk.make_directory("file/under"), NotADirectoryError, errno.ENOTDIR),
        (lambda disk: disk.size_bytes("none"), FileNotFoundError, errno.ENOENT),
    ],
)
def test_each_mistake_raises_its_own_os_error_with_number_and_path(call, kind, number):
    disk = Disk()
    disk.write_bytes("file", b"")
    disk.write_bytes("dir/a", b"")
    with pytest.raises(kind) as caught:
        call(disk)
    assert (number, True) == (caught.value.errno, caught.value.filename is not None)
    assert ["dir", "file"] == disk.listdir()


def test_a_failed_rename_names_both_paths():
    with pytest.raises(FileNotFoundError) as caught:
        Disk().rename("old", "new")
    assert ("/old", "/new") == (caught.value.filename, caught.value.filename2)


def test_paths_that_are_no_paths_are_refused():
    with pytest.raises(TypeError, match="a path is a string"):
        Disk().exists(b"a")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no null character"):
        Disk().open("a\0b")


def test_names_come_and_go():
    disk = Disk()
    disk.write_bytes("dir/a", b"1")
    disk.write_bytes("dir/b", b"22")
    disk.make_directory("dir/deep/er")
    assert ["a", "b", "deep"] == disk.listdir("dir")
    disk.rename("dir/a", "dir/b")
    assert (["b", "deep"], 1) == (disk.listdir("dir"), disk.size_bytes("dir/b"))
    disk.rename("dir/b", "dir/b")
    assert 1 == disk.size_bytes("dir/b")
    disk.remove("dir/b")
    assert (["deep"], False, True) == (disk.listdir("dir"), disk.exists("dir/b"), disk.exists("dir"))


def test_two_who_append_to_one_file_never_overwrite_each_other():
    disk = Disk()
    with disk.open("a", "a") as one, disk.open("a", "a") as two:
        for file, line in ((one, "1\n"), (two, "2\n"), (one, "3\n")):
            file.write(line)
            file.flush()
    assert b"1\n2\n3\n" == disk.read_bytes("a")


def test_who_has_a_removed_file_open_goes_on_using_it():
    disk = Disk()
    with disk.open("a", "w+") as file:
        disk.remove("a")
        file.write("still here")
        file.seek(0)
        assert ("still here", False) == (file.read(), disk.exists("a"))


# --- faults bite and heal --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operation", "act"),
    [
        ("open", lambda disk: disk.open("a")),
        ("read", lambda disk: disk.read_bytes("a")),
        ("write", lambda disk: written(disk, "a", b"x")),
        ("truncate", lambda disk: disk.open("a", "r+").truncate(0)),
        ("sync", lambda disk: disk.open("a").fsync()),
        ("sync", lambda disk: disk.sync_directory()),
        ("rename", lambda disk: disk.rename("a", "b")),
        ("remove", lambda disk: disk.remove("a")),
    ],
)
def test_an_io_error_reaches_the_caller_and_the_next_try_works(operation, act):
    faulty = Faulty(errno.EIO)
    disk = Disk(decide=faulty)
    disk.write_bytes("a", b"old")
    faulty.operations = {operation}
    with pytest.raises(OSError, match="/") as caught:
        act(disk)
    assert errno.EIO == caught.value.errno
    faulty.heal()
    assert (["a"], b"old") == (disk.listdir(), disk.read_bytes("a"))
    act(disk)
    assert operation in {asked for asked, _ in faulty.asked}


def test_a_sync_that_failed_makes_nothing_durable_and_the_next_one_does():
    faulty = Faulty(errno.EIO, "sync")
    disk = Disk(decide=faulty)
    file = disk.open("a", "wb")
    file.write(b"x")
    with pytest.raises(OSError, match="/a"):
        file.fsync()
    assert 2 == disk.unsynced_count
    faulty.heal()
    file.fsync()
    disk.crash()
    assert b"x" == disk.read_bytes("a")


def test_a_full_disk_takes_what_fits_and_freed_space_can_be_used():
    disk = Disk(capacity_bytes=1_000)
    disk.write_bytes("big", bytes(900))
    with pytest.raises(OSError, match="/a") as caught:
        disk.write_bytes("a", bytes(200))
    assert (errno.ENOSPC, 100, 1_000) == (caught.value.errno, disk.size_bytes("a"), disk.used_bytes)
    disk.remove("big")
    disk.write_bytes("a", bytes(1_000))
    assert 1_000 == disk.used_bytes


def test_a_full_disk_allows_overwriting_and_refuses_growing():
    disk = Disk()
    disk.write_bytes("a", b"0123456789")
    disk.capacity_bytes = 5
    with disk.open("a", "r+b") as file:
        file.write(b"ABCDE")
        file.flush()
        with pytest.raises(OSError, match="/a") as caught:
            file.truncate(11)
    assert (errno.ENOSPC, b"ABCDE56789") == (caught.value.errno, disk.read_bytes("a"))
    disk.capacity_bytes = None
    written(disk, "a", b"!")
    assert b"ABCDE56789!" == disk.read_bytes("a")


def test_a_slow_sync_charges_its_time_until_it_is_quick_again():
    charged: list[int] = []
    disk = Disk(charge=charged.append)
    disk.sync_cost_ns = 7_000_000
    with disk.open("a", "wb") as file:
        file.fsync()
    disk.sync_directory()
    assert [7_000_000, 7_000_000] == charged
    disk.sync_cost_ns = 0
    disk.sync_directory()
    assert 2 == len(charged)


def test_a_disk_that_lies_about_sync_forgets_and_an_honest_one_does_not():
    disk = Disk()
    disk.lies_about_sync = True
    synced(disk, "a", b"x")
    disk.crash()
    assert not disk.exists("a")
    disk.lies_about_sync = False
    synced(disk, "a", b"x")
    disk.crash()
    assert b"x" == disk.read_bytes("a")


# --- what a crash leaves ---------------------------------------------------------------------------


def two_pages(disk):
    """A synced file of 3 bytes, and three writes since, the second over four sectors."""
    synced(disk, "a", b"old")
    written(disk, "a", b"1", b"2" * 4 * SECTOR_BYTES, b"3")


FIRST, LAST = b"old1", b"old1" + b"2" * 4 * SECTOR_BYTES + b"3"


def test_lost_keeps_what_was_synced_whatever_the_choice():
    assert {b"old": 0} == outcomes(two_pages, "lost")


def test_kept_keeps_everything_whatever_the_choice():
    assert {LAST: 0} == outcomes(two_pages, "kept")


def test_prefix_keeps_the_first_changes_in_their_order():
    assert {b"old": 0, FIRST: 1, LAST[:-1]: 2, LAST: 3} == outcomes(two_pages, "prefix")


def test_prefix_counts_over_all_files():
    def build(disk):
        for path in ("a", "b"):
            synced(disk, path, b"")
        for number in b"12":
            for path in ("a", "b"):
                written(disk, path, bytes([number]))

    both = []
    for choice in range(5):
        disk = Disk()
        build(disk)
        disk.crash("prefix", choice)
        both.append((disk.read_bytes("a"), disk.read_bytes("b")))
    assert [(b"", b""), (b"1", b""), (b"1", b"1"), (b"12", b"1"), (b"12", b"12")] == both


def test_torn_keeps_some_sectors_of_one_write_and_all_before_it():
    found = outcomes(two_pages, "torn")
    # The write touches five sectors, of which it never keeps none and never all.
    assert 30 == len(found)
    assert LAST[:SECTOR_BYTES] == next(iter(found))
    for content in found:
        assert content.startswith(FIRST)
        assert not content.endswith(b"3")
        for start in range(0, len(content), SECTOR_BYTES):
            sector = content[start : start + SECTOR_BYTES].removeprefix(FIRST)
            assert {*sector} <= {0} or {*sector} == {ord("2")}


def test_torn_keeps_a_prefix_where_no_write_can_tear():
    def build(disk):
        synced(disk, "a", b"old")
        written(disk, "a", b"1", b"2")

    assert {b"old": 0, b"old1": 1, b"old12": 2} == outcomes(build, "torn")


def test_reordered_keeps_a_later_write_without_an_earlier_one():
    def build(disk):
        synced(disk, "a", b"-" * 2 * SECTOR_BYTES)
        with disk.open("a", "r+b") as file:
            for offset, letter in ((0, b"1"), (SECTOR_BYTES, b"2")):
                file.seek(offset)
                file.write(letter)
                file.flush()

    found = {content.replace(b"-", b"") for content in outcomes(build, "reordered")}
    assert {b"", b"1", b"2", b"12"} == found
    assert b"-" * 2 * SECTOR_BYTES == next(iter(outcomes(build, "reordered")))


def test_reordered_never_loses_an_earlier_write_of_a_sector_that_it_keeps():
    def build(disk):
        synced(disk, "a", b"")
        written(disk, "a", b"1", b"2", b"3")

    assert {b"", b"1", b"12", b"123"} == {content.rstrip(b"\0") for content in outcomes(build, "reordered")}


def test_reordered_can_keep_the_length_of_a_file_without_its_bytes():
    def build(disk):
        synced(disk, "a", b"log:")
        written(disk, "a", b"line")

    assert {b"log:", b"log:line", b"log:" + bytes(4)} == set(outcomes(build, "reordered"))


def test_reordered_keeps_what_follows_a_truncation_only_with_it():
    def build(disk):
        synced(disk, "a", b"old content")
        with disk.open("a", "wb") as file:
            file.write(b"new and longer")

    assert {b"old content", b"", bytes(14), b"new and longer"} == set(outcomes(build, "reordered"))


def test_the_choice_decides_alone_and_every_choice_is_allowed():
    for unsynced in ("prefix", "torn", "reordered"):
        for choice in (0, 1, 10**30):
            assert outcomes(two_pages, unsynced, choices=[choice]) == outcomes(two_pages, unsynced, choices=[choice])


def test_a_crash_that_is_none_is_refused_and_nothing_happens():
    disk = Disk()
    file = disk.open("a", "w")
    with pytest.raises(ValueError, match="unsynced is one of lost, kept, prefix, torn, reordered, not 'most'"):
        disk.crash("most")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="choice is a whole number from 0 up, not -1"):
        disk.crash("prefix", -1)
    file.write("alive")
    file.close()
    assert b"alive" == disk.read_bytes("a")


def test_after_a_crash_all_that_is_left_is_durable():
    disk = Disk()
    two_pages(disk)
    disk.crash("kept")
    disk.crash("lost")
    assert (LAST, 0) == (disk.read_bytes("a"), disk.unsynced_count)


def test_a_buffer_that_was_never_flushed_is_lost_even_if_all_writes_are_kept():
    disk = Disk()
    file = disk.open("a", "w")
    file.write("in the buffer")
    disk.crash("kept")
    assert b"" == disk.read_bytes("a")


# --- names in a crash ------------------------------------------------------------------------------


def test_syncing_a_new_file_makes_its_name_durable():
    disk = Disk()
    with disk.open("dir/a", "wb") as file:
        file.write(b"x")
        file.fsync()
    disk.write_bytes("dir/never-synced", b"x")
    disk.crash()
    assert ["a"] == disk.listdir("dir")


def test_a_rename_is_durable_only_when_the_directory_is():
    for sync, expected in ((False, b"old"), (True, b"new")):
        disk = Disk()
        synced(disk, "a", b"old")
        synced(disk, "a.tmp", b"new")
        disk.rename("a.tmp", "a")
        if sync:
            disk.sync_directory()
        else:
            with disk.open("a") as file:
                file.fsync()
        disk.crash()
        assert (expected, not sync) == (disk.read_bytes("a"), disk.exists("a.tmp"))


def test_a_rename_without_a_sync_of_the_file_can_leave_it_without_its_bytes():
    def build(disk):
        synced(disk, "a", b"old")
        disk.write_bytes("a.tmp", b"new")
        disk.rename("a.tmp", "a")

    assert {b"old", b"", bytes(3), b"new"} == set(outcomes(build, "reordered"))


def test_a_removal_is_durable_only_when_the_directory_is():
    for sync in (False, True):
        disk = Disk()
        synced(disk, "a", b"x")
        disk.remove("a")
        if sync:
            disk.sync_directory()
        disk.crash()
        assert sync is not disk.exists("a")


def test_syncing_one_directory_does_not_sync_another():
    disk = Disk()
    disk.write_bytes("one/a", b"")
    disk.write_bytes("two/b", b"")
    disk.sync_directory("one")
    disk.crash()
    assert (["a"], []) == (disk.listdir("one"), disk.listdir("two"))


def test_a_name_that_becomes_durable_takes_along_what_it_builds_on():
    disk = Disk()
    synced(disk, "a", b"old")
    disk.rename("a", "elsewhere/b")
    with disk.open("a", "wb") as file:
        file.write(b"new")
        file.fsync()
    disk.crash()
    assert (b"new", b"old") == (disk.read_bytes("a"), disk.read_bytes("elsewhere/b"))


STEPS = ["write", "sync", "rename", "remove", "directory"]


@quiet
@given(
    steps=st.lists(st.tuples(st.sampled_from(STEPS), st.sampled_from("abc"), st.sampled_from("abc"))),
    unsynced=st.sampled_from(["lost", "kept", "prefix", "torn", "reordered"]),
    choice=st.integers(0, 1_000),
)
def test_whatever_was_synced_and_not_touched_since_survives_every_crash(steps, unsynced, choice):
    disk = Disk()
    safe: dict = {}
    for number, (step, path, other) in enumerate(steps):
        content = f"{number}".encode() * 400
        if step == "write":
            disk.write_bytes(path, content)
            safe.pop(path, None)
        elif step == "directory":
            disk.sync_directory()
        elif disk.exists(path) and step == "sync":
            with disk.open(path, "rb") as file:
                file.fsync()
                disk.sync_directory()
                safe[path] = file.read()
        elif disk.exists(path) and step == "rename":
            disk.rename(path, other)
            safe.pop(path, None)
            safe.pop(other, None)
        elif disk.exists(path):
            disk.remove(path)
            safe.pop(path, None)
    disk.crash(unsynced, choice)
    assert safe == {path: disk.read_bytes(path) for path in safe}


# --- a program that replaces a file --------------------------------------------------------------


def replaced(disk, *, sync_file=True, sync_directory=True):
    """Put new content into a file so that no crash leaves anything but the old or the new."""
    with disk.open("a.tmp", "wb") as file:
        file.write(b"new" * 1_000)
        if sync_file:
            file.fsync()
    disk.rename("a.tmp", "a")
    if sync_directory:
        disk.sync_directory()


def what_a_crash_leaves(**steps):
    """What the file holds after a crash before each operation, or after the last, in many ways."""
    found: Counter = Counter()
    for crash_at, choice in product(range(10), range(40)):
        asked = count()
        disk = Disk()
        synced(disk, "a", b"old")

        def decide(operation, path, crash_at=crash_at, asked=asked, disk=disk, choice=choice):
            if next(asked) == crash_at:
                disk.crash("reordered", choice)

        disk.decide = decide
        try:
            replaced(disk, **steps)
            ended = "acknowledged"
        except OSError:
            ended = "interrupted"
        disk.decide = lambda operation, path: None
        if ended == "acknowledged":
            disk.crash("reordered", choice)
        content = disk.read_bytes("a")
        found[ended, {b"old": "old", b"new" * 1_000: "new"}.get(content, "broken")] += 1
    return set(found)


def test_a_program_that_syncs_file_and_directory_replaces_whole_and_for_good():
    assert {("interrupted", "old"), ("interrupted", "new"), ("acknowledged", "new")} == what_a_crash_leaves()


def test_one_that_forgets_the_directory_can_find_the_old_file_again():
    assert ("acknowledged", "old") in what_a_crash_leaves(sync_directory=False)


def test_one_that_forgets_the_file_can_find_it_broken():
    assert ("acknowledged", "broken") in what_a_crash_leaves(sync_file=False)


# --- the dead, and what they leave behind ----------------------------------------------------------

OPERATIONS = {
    "read": lambda file: file.read(1),
    "readline": lambda file: file.readline(),
    "iterate": lambda file: next(iter(file)),
    "write": lambda file: file.write(b"x" if "b" in file.mode else "x"),
    "seek": lambda file: file.seek(0),
    "tell": lambda file: file.tell(),
    "truncate": lambda file: file.truncate(0),
    "flush": lambda file: file.flush(),
    "fsync": lambda file: file.fsync(),
    "enter": lambda file: file.__enter__(),
    "close": lambda file: file.close(),
}


@pytest.mark.parametrize("mode", ["r+", "r+b"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_operation_of_a_file_of_a_crashed_host_raises(mode, operation):
    disk = Disk()
    synced(disk, "a", b"one\ntwo\n")
    file = disk.open("a", mode)
    file.readline()  # so that there is something left in the buffer to read
    file.write(b"unflushed" if "b" in mode else "unflushed")
    disk.crash("kept")
    with pytest.raises(OSError, match="the host has crashed") as caught:
        OPERATIONS[operation](file)
    assert (errno.ESTALE, "/a") == (caught.value.errno, caught.value.filename)
    assert b"one\ntwo\n" == disk.read_bytes("a")


def test_a_file_that_died_with_a_full_buffer_vanishes_in_silence():
    program = """
from tinyllm.testing.disk.disk import Disk
disk = Disk()
files = [disk.open(mode, mode) for mode in ("w", "wb", "w+", "w+b")]
for file in files:
    file.write("x" if "b" not in file.mode else b"x")
disk.crash()
"""
    # In development mode Python tells of errors in finalizers, as it does by default from 3.13 on.
    command = [sys.executable, "-P", "-X", "dev", "-c", program]
    assert "" == subprocess.run(command, capture_output=True, text=True, check=True).stderr


def test_a_crash_while_the_disk_is_asked_ends_the_operation():
    for act in (
        lambda disk: disk.write_bytes("new", b"x"),
        lambda disk: disk.remove("a"),
        lambda disk: disk.rename("a", "b"),
        lambda disk: disk.sync_directory(),
    ):
        disk = Disk()
        synced(disk, "a", b"x")
        disk.decide = lambda operation, path, disk=disk: disk.crash()
        with pytest.raises(OSError, match="the host has crashed"):
            act(disk)
        assert (["a"], 0) == (disk.listdir(), disk.unsynced_count)


def test_a_disk_that_nobody_syncs_does_not_grow_without_end():
    disk = Disk()
    file = disk.open("a", "wb")
    for _ in range(3 * UNSYNCED_MAX):
        file.write(b"x")
        file.flush()
    assert UNSYNCED_MAX >= disk.unsynced_count
    disk.crash()
    assert UNSYNCED_MAX <= disk.size_bytes("a")


def test_sync_all_makes_everything_durable():
    disk = Disk()
    two_pages(disk)
    disk.rename("a", "b")
    disk.sync_all()
    disk.crash()
    assert (LAST, ["b"]) == (disk.read_bytes("b"), disk.listdir())


def test_ten_thousand_disks_leave_nothing_behind():
    def live_and_die():
        with Disk() as disk:
            file = disk.open("a", "w")
            file.write("x")
            disk.crash("torn")
            disk.write_bytes("b", b"x")

    def objects():
        gc.collect()
        return Counter(type(thing).__name__ for thing in gc.get_objects())

    live_and_die()
    before = objects()
    for _ in range(10_000):
        live_and_die()
    grown = objects() - before
    # One object of a life that stays would make 10,000; the caches of Python may hold a few more than before.
    assert {} == {name: number for name, number in grown.items() if number >= 1_000}
