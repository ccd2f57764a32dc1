"""Tests for the parts of the cache. Checks that nothing is removed while somebody uses it."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.host import cache
from harness.host.cache_parts import CONTENTS, CacheEntry, parts, remove
from tests.compat import compat
from tests.test_cli import Command, hugepfn

__all__ = ["hugepfn"]  # the fixture

DAY_S = 86400.0


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write(size_kib: int) -> Callable[[Path], None]:
    def build(folder: Path) -> None:
        (folder / "data").write_bytes(os.urandom(size_kib << 10))

    return build


def unused(kind: str, name: str, *, days: float = 0, size_kib: int = 64) -> Path:
    """An entry that was made by a process which has ended."""
    entry = cache.obtain(kind, name, write(size_kib))
    os.close(cache._used.pop(entry))
    os.utime(entry, (time.time() - days * DAY_S,) * 2)
    return entry


def entry_of(path: Path) -> CacheEntry:
    (found,) = (one for part in parts() for one in part.entries if one.path == path)
    return found


def test_parts_are_shown_by_size(hugepfn: Command, root: Path) -> None:
    assert parts() == []
    unused("kernels", "a", size_kib=300)
    unused("kernels", "b", size_kib=300)
    unused("templates", "c", size_kib=100)
    cache.write_note(cache.root() / "resolved/debian.json", {})
    done = hugepfn("cache")
    heading, _, *rows = done.out.splitlines()
    assert heading.startswith(f"{root}: ")
    assert [row.split()[0] for row in rows] == ["kernels", "templates", "resolved"]
    assert rows[0].split()[1:4] == ["622.6", "kB", "2"]
    assert rows[0].rstrip().endswith(CONTENTS["kernels"])


def test_holes_do_not_count_as_size() -> None:
    def sparse(folder: Path) -> None:
        with (folder / "ram").open("wb") as file:
            file.truncate(1 << 30)

    cache.obtain("templates", "a", sparse)
    assert parts()[0].size_bytes < 1 << 20


@pytest.mark.parametrize(
    ("args", "left"),
    [
        (("kernels",), {"templates", "kept", "builds"}),
        (("kernels", "kept"), {"templates", "builds"}),
        (("--all",), {"kept"}),
        (("--older-than", "3d"), {"kernels", "templates", "kept"}),
        (("templates", "--older-than", "12h"), {"kernels", "templates", "kept", "builds"}),
        (("--older-than", "1w"), {"kernels", "templates", "kept", "builds"}),
    ],
)
def test_which_parts_are_cleaned(hugepfn: Command, root: Path, args: tuple[str, ...], left: set[str]) -> None:
    for kind in ("kernels", "templates", "kept"):
        unused(kind, "a")
    unused("kept", "old", days=30)
    slot = root / "builds/linux-1"
    slot.mkdir(parents=True)
    (slot / "index").write_bytes(b"x" * 4096)
    for path in (slot, slot / "index"):
        os.utime(path, (time.time() - 5 * DAY_S,) * 2)
    done = hugepfn("cache", "clean", *args)
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines()[-1].startswith("freed ")
    assert {part.name for part in parts() if part.entries} == left


def test_a_build_folder_is_as_old_as_its_newest_file(root: Path) -> None:
    slot = root / "builds/linux-1"
    slot.mkdir(parents=True)
    (slot / "index").touch()
    os.utime(slot, (0, 0))
    assert entry_of(slot).used_at > time.time() - DAY_S


def test_entries_in_use_by_this_process_stay_until_it_ends() -> None:
    entry = cache.obtain("kernels", "a", write(4))
    assert not remove(entry_of(entry))
    assert cache.find("kernels", "a") == entry
    os.close(cache._used.pop(entry))
    assert cache.has("kernels", "a")
    assert remove(entry_of(entry)), "a check that the entry exists does not count as use"
    assert cache.find("kernels", "a") is None


def test_entries_in_use_by_another_process_stay(hugepfn: Command) -> None:
    entry = unused("built", "a")
    use = "import sys; from pathlib import Path; from harness.host import cache; cache.use_path(Path(sys.argv[1]))"
    child = subprocess.Popen(
        [sys.executable, "-c", f"{use}; print('uses it', flush=True); sys.stdin.read()", str(entry / "vmlinux")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"uses it\n"
        done = hugepfn("cache", "clean", "built")
        assert done.out.splitlines() == ["built: removed 0 of 1, 0 bytes; 1 in use", "freed 0 bytes"]
        assert child.stdin is not None
        child.stdin.close()
        child.wait(30)
    assert hugepfn("cache", "clean", "built").out.startswith("built: removed 1 of 1, ")
    assert not entry.exists()


def test_entries_that_are_being_built_stay() -> None:
    built: list[bool] = []

    def build(folder: Path) -> None:
        built.append(remove(entry_of(folder)))
        (folder / "data").touch()

    entry = cache.obtain("built", "a", build)
    assert built == [False]
    assert entry.is_dir()


@pytest.mark.parametrize("lock", ["builds.linux-1", "builds.linux-1.import"])
def test_a_slot_stays_while_one_of_its_locks_is_held(root: Path, lock: str) -> None:
    slot = root / "builds/linux-1"
    slot.mkdir(parents=True)
    with cache.locked(lock, "reads a source"):
        assert not remove(entry_of(slot))
    with (slot / "lock").open("w") as file:  # make has inherited the lock
        fcntl.flock(file, fcntl.LOCK_EX)
        assert not remove(entry_of(slot))
    assert remove(entry_of(slot))


def test_leftovers_of_a_dead_builder_are_removed(root: Path) -> None:
    leftover = root / "built/.a.tmp-1234"
    leftover.mkdir(parents=True)
    with cache.locked("built.a", "builds"):
        assert not remove(entry_of(leftover))
    assert remove(entry_of(leftover))
    assert not leftover.exists()


def test_an_entry_that_is_being_removed_is_not_found_and_is_made_again() -> None:
    entry = unused("kernels", "a")
    with (entry / ".complete").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert cache.find("kernels", "a") is None
    assert cache.find("kernels", "a") == entry
    os.close(cache._used.pop(entry))
    assert remove(entry_of(entry))
    assert cache.obtain("kernels", "a", write(4)) == entry
    assert not remove(entry_of(entry)), "the new entry is in use, as the old one was"


def test_use_is_recorded_but_listing_is_not() -> None:
    entry = unused("kernels", "a", days=9)
    cache.has("kernels", "a")
    assert entry_of(entry).used_at < time.time() - 8 * DAY_S
    cache.find("kernels", "a")
    assert entry_of(entry).used_at > time.time() - DAY_S


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((), "nothing to remove was given; name parts, or use --all or --older-than AGE"),
        (("kernels", "--all"), "nothing to remove was given"),
        (("kernel",), "the cache has no part 'kernel'; expected one of: kernels"),
        (("--older-than", "soon"), "'soon'; expected a number of hours, days or weeks: 12h, 14d, 2w"),
    ],
)
def test_parts_that_cannot_be_cleaned(hugepfn: Command, args: tuple[str, ...], words: str) -> None:
    unused("kernels", "a")
    done = hugepfn("cache", "clean", *args)
    assert done.status == 2
    assert words in done.one_line()
    assert cache.has("kernels", "a")


def test_the_file_systems_of_a_running_make_compat_stay() -> None:
    with compat.scratch() as folder:
        (folder / "ext4.img").write_text("in use")
        (folder / "ext4").mkdir()
        assert not remove(entry_of(folder))
        assert (folder / "ext4.img").exists()
    assert not folder.exists()
    folder.mkdir()
    assert remove(entry_of(folder)), "the file systems of a killed make compat can be removed"
