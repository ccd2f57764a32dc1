"""Tests for the cache with two builders at once, a builder that dies or a full disk, and for running host commands."""

from __future__ import annotations

import contextlib
import errno
import gc
import multiprocessing
import os
import select
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from harness.errors import MachineryError
from harness.events import Event, Waiting
from harness.host import cache
from harness.host.process import find_program, follow, guarded, run

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


def leftovers(root: Path) -> list[str]:
    return sorted(p.name for p in (root / "kernels").iterdir()) if (root / "kernels").is_dir() else []


def test_an_entry_is_built_once(root: Path) -> None:
    assert cache.find("kernels", "a") is None
    entry = cache.obtain("kernels", "a", lambda folder: (folder / "x").touch())
    assert entry == root / "kernels/a"
    assert cache.find("kernels", "a") == entry
    assert cache.entries("kernels") == [entry]

    def never(_: Path) -> None:
        raise AssertionError("built twice")

    assert cache.obtain("kernels", "a", never) == entry
    assert leftovers(root) == ["a"]


@pytest.mark.parametrize("damaged", [b"", b"wholf", b"whole and more", None])
def test_an_entry_with_a_damaged_file_is_built_again(monkeypatch: pytest.MonkeyPatch, damaged: bytes | None) -> None:
    """The file is read once in a process: another process finds the damage."""

    def build(folder: Path) -> None:
        (folder / "one").write_bytes(b"whole")

    entry = cache.obtain("kernels", "a", build, summed=("one", "none"))
    assert cache.obtain("kernels", "a", build) == cache.find("kernels", "a") == entry
    if damaged is None:
        (entry / "one").unlink()
    else:
        (entry / "one").write_bytes(damaged)
    monkeypatch.setattr(cache, "_used", {})
    said: list[Event] = []
    assert cache.find("kernels", "a", said.append) is None
    assert str(said[0]) == f"{entry}/one has changed since it was saved; not using it"
    cache.obtain("kernels", "a", build, summed=("one",))
    assert (entry / "one").read_bytes() == b"whole"
    assert cache.find("kernels", "a") == entry


def test_a_marker_without_checksums_says_nothing_about_files(root: Path) -> None:
    entry = cache.obtain("kernels", "a", lambda folder: (folder / "one").touch())
    (entry / ".complete").write_text("")
    assert cache.find("kernels", "a") == entry == root / "kernels/a"


@pytest.mark.parametrize("marker", ["{", "[1]", '{"one": 7}', '{"one": [1, "x"]}', "\0" * 40])
def test_an_entry_with_a_damaged_marker_is_built_again(monkeypatch: pytest.MonkeyPatch, marker: str) -> None:
    entry = cache.obtain("kernels", "a", lambda folder: (folder / "one").touch())
    monkeypatch.setattr(cache, "_used", {})
    (entry / ".complete").write_text(marker)
    said: list[Event] = []
    assert cache.find("kernels", "a", said.append) is None
    assert str(said[0]) == f"{entry}/.complete has changed since it was saved; not using it"


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt()])
def test_a_build_that_fails_leaves_nothing(root: Path, error: BaseException) -> None:
    def fail(folder: Path) -> None:
        (folder / "half").touch()
        raise error

    with pytest.raises(type(error)):
        cache.obtain("kernels", "a", fail)
    assert leftovers(root) == []
    assert cache.obtain("kernels", "a", lambda _: None).is_dir()


def test_a_full_disk_is_one_line_and_leaves_nothing(root: Path) -> None:
    def full(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(MachineryError, match=r"no space left for .*HUGEPFN_CACHE_DIR"):
        cache.obtain("kernels", "a", full)
    assert leftovers(root) == []


def test_an_entry_without_its_marker_is_built_again(root: Path) -> None:
    (root / "kernels/a").mkdir(parents=True)
    (root / "kernels/a/torn").touch()
    entry = cache.obtain("kernels", "a", lambda folder: (folder / "whole").touch())
    assert sorted(p.name for p in entry.iterdir()) == [".complete", "whole"]


def _build_slowly(ready: Connection, go: Connection) -> None:
    def build(folder: Path) -> None:
        (folder / "x").write_text("one")
        ready.send("building")
        go.recv()

    cache.obtain("kernels", "a", build)


def test_two_processes_build_an_entry_once(root: Path) -> None:
    ready, child_ready = FORK.Pipe()
    child_go, go = FORK.Pipe()
    builder = FORK.Process(target=_build_slowly, args=(child_ready, child_go))
    builder.start()
    try:
        assert ready.poll(20)
        said: list[Event] = []

        def progress(event: Event) -> None:
            said.append(event)
            go.send("go on")  # the builder ends only once we have reported that we wait

        entry = cache.obtain("kernels", "a", lambda folder: (folder / "x").touch(), progress)
        assert (entry / "x").read_text() == "one"
        assert said == [Waiting("prepares a", builder.pid)], "the message names the builder's pid"
        builder.join(20)
        assert builder.exitcode == 0
    finally:
        builder.kill()
        builder.join()
    assert leftovers(root) == ["a"]


def test_leftovers_of_a_killed_builder_are_removed_but_not_those_of_a_living_one(root: Path) -> None:
    ready, child_ready = FORK.Pipe()
    child_go, _go = FORK.Pipe()
    builder = FORK.Process(target=_build_slowly, args=(child_ready, child_go))
    builder.start()
    try:
        assert ready.poll(20)
        cache.obtain("kernels", "other", lambda _: None)
        assert any(name.startswith(".a.tmp-") for name in leftovers(root)), "the folder of a living builder was removed"
        assert builder.pid is not None
        os.kill(builder.pid, signal.SIGKILL)
        builder.join(20)
    finally:
        builder.kill()
        builder.join()
    cache.obtain("kernels", "third", lambda _: None)
    assert leftovers(root) == ["other", "third"]


def test_waiting_for_a_lock_has_a_deadline() -> None:
    with (
        cache.locked("x", "does something"),
        pytest.raises(MachineryError, match="still does something after"),
        cache.locked("x", "does something", timeout_s=0.1),
    ):
        pass


def test_a_read_only_cache_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "file/cache"))
    with pytest.raises(MachineryError, match="cannot write to"):
        cache.obtain("kernels", "a", lambda _: None)


def test_a_note_is_read_back_and_a_damaged_one_is_ignored(root: Path) -> None:
    note = root / "notes/a.json"
    assert cache.read_note(note) is None
    cache.write_note(note, {"a": 1})
    assert cache.read_note(note) == {"a": 1}
    note.write_text("{")
    assert cache.read_note(note) is None


def test_a_failed_command_reports_its_first_useful_line() -> None:
    with pytest.raises(MachineryError, match=r"sh failed \(exit status 3\): no such thing$"):
        run(["sh", "-c", "echo 'W: noise' >&2; echo 'E: no such thing' >&2; exit 3"], timeout_s=20)
    with pytest.raises(MachineryError, match="no space left for sh"):
        run(["sh", "-c", "echo 'write: No space left on device' >&2; exit 1"], timeout_s=20)
    with pytest.raises(MachineryError, match="cannot start nosuchprogram"):
        run(["nosuchprogram"], timeout_s=20)
    assert run(["sh", "-c", "exit 3"], timeout_s=20, check=False).status == 3


@pytest.mark.parametrize("ends_early", [False, True])
def test_a_followed_command_leaves_no_pipe_open(tmp_path: Path, ends_early: bool) -> None:
    """Python does not warn about an "unclosed file", whichever way the command ended."""

    def on_line(_line: str) -> None:
        if ends_early:
            raise MachineryError("enough")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with contextlib.suppress(MachineryError):
            follow(["echo", "x"], on_line, cwd=tmp_path, env={}, on_end=lambda _status: None)
        gc.collect()
    assert [str(warning.message) for warning in caught if warning.category is ResourceWarning] == []


def test_a_command_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    script = f"sleep 600 & echo $! > {tmp_path}/pid; wait"
    with pytest.raises(MachineryError, match=r"took more than 0\.5 s"):
        run(["sh", "-c", script], timeout_s=0.5)
    child = int((tmp_path / "pid").read_text())
    with contextlib.suppress(ProcessLookupError):  # gone already
        death = os.pidfd_open(child)
        assert select.select([death], [], [], 20)[0], "a child outlived its command"
        os.close(death)


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """Handle SIGINT: a shell starts background processes with SIGINT ignored, and Python leaves it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
def test_ctrl_c_ends_the_command(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "started")

    def interrupt() -> None:
        (tmp_path / "started").read_text()  # blocks until the command has opened and closed it
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", f"echo $$ > {tmp_path}/pid; echo > {tmp_path}/started; exec sleep 600"], timeout_s=20)
    thread.join(20)
    assert not Path(f"/proc/{int((tmp_path / 'pid').read_text())}").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_guarded_child_does_not_outlive_us(number: signal.Signals) -> None:
    ask = "import ctypes; v = ctypes.c_int(); ctypes.CDLL(None).prctl(2, ctypes.byref(v)); print(v.value)"
    done = run(guarded([sys.executable, "-c", ask], number), timeout_s=30)
    assert int(done.stdout) == number


def test_a_missing_program_names_its_package() -> None:
    assert find_program("sh", "dash").name == "sh"
    with pytest.raises(MachineryError, match="apt-get install kmod"):
        find_program("nosuchprogram", "kmod")


# --- files with a guest's memory -----------------------------------------------------------------


@pytest.fixture
def umask() -> Iterator[None]:
    """Set the umask that most users have: everybody may read new files."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("kind", ["kept", "templates"])
def test_only_the_user_can_read_a_guests_memory(kind: str) -> None:
    entry = cache.obtain(kind, "one", lambda folder: (folder / "ram").touch())
    assert [path.stat().st_mode & 0o777 for path in (cache.root(), entry.parent, entry)] == [0o700] * 3


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("look", [lambda kind: cache.find(kind, "one"), cache.entries])
def test_permissions_left_by_an_older_version_are_fixed(look: Callable[[str], object]) -> None:
    for kind in ("kept", "templates"):
        old = cache.root() / kind / "one"
        old.mkdir(parents=True)
        (old / ".complete").touch()
        assert look(kind)
        assert old.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder away takes root")
def test_machines_of_another_user_are_not_restored() -> None:
    folder = cache.root() / "templates"
    folder.mkdir(parents=True)
    os.chown(folder, 65534, 65534)
    with pytest.raises(MachineryError, match="must be a directory that you own"):
        cache.obtain("templates", "one", lambda _folder: None)


def test_a_world_writable_cache_is_refused() -> None:
    cache.root().mkdir(parents=True)
    cache.root().chmod(0o777)
    with pytest.raises(MachineryError, match=r"run `chmod o-w .*`"):
        cache.obtain("programs", "one", lambda _folder: None)


def test_a_folder_that_another_user_may_have_made_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    folder = cache.obtain("kernels", "one", lambda _folder: None).parent
    cache.root().chmod(0o1777)  # the mode of a new tmpfs
    assert cache.find("kernels", "one") == folder / "one"
    if os.geteuid():
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
    else:
        os.chown(folder, 12345, -1)
    for look in (lambda: cache.find("kernels", "one"), lambda: cache.entries("kernels")):
        with pytest.raises(MachineryError, match=r"run `chmod o-w .*`"):
            look()
    assert cache.find("kernels", "two") is None


def test_entries_in_a_cache_without_the_sticky_bit_are_refused() -> None:
    cache.obtain("kernels", "one", lambda _folder: None)
    cache.root().chmod(0o777)
    with pytest.raises(MachineryError, match=r"run `chmod o-w .*`"):
        cache.find("kernels", "one")
