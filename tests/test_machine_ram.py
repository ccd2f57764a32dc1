"""Guest RAM: a file without a name, and one line where it cannot be had."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import MachineryError, UsageError
from harness.machine.ram import GuestRam, ram_folder

MIB = 1 << 20


def open_files() -> set[str]:
    """What this process has open, less what cannot be looked at."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the one that reads this folder
            found.add(f"{descriptor.name} {descriptor.readlink()}")
    return found


def test_host_and_file_see_the_same_memory_and_nothing_has_a_name(tmp_path: Path) -> None:
    guest = GuestRam(16, tmp_path)
    try:
        assert list(tmp_path.iterdir()) == []
        assert guest.memory.size_bytes == 16 * MIB
        status = os.fstat(guest.fd)
        assert stat.S_ISREG(status.st_mode)
        assert (status.st_size, status.st_nlink) == (16 * MIB, 0)
        assert status.st_blocks * 512 < MIB, "sparse"
        guest.memory.write_u64(15 * MIB, 0x1122334455667788)
        assert os.pread(guest.fd, 8, 15 * MIB) == bytes.fromhex("8877665544332211")
        os.pwrite(guest.fd, b"\x01", 4096)
        assert guest.memory.read_u64(4096) == 1
    finally:
        guest.close()


def test_close_gives_everything_back_and_may_be_called_twice(tmp_path: Path) -> None:
    before = open_files()
    guest = GuestRam(1, tmp_path)
    assert len(open_files() - before) >= 1
    guest.close()
    guest.close()
    assert open_files() == before
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="released"):
        guest.memory.read_u64(0)


def test_where_it_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUGEPFN_RAM_DIR", raising=False)
    assert ram_folder() == Path("/dev/shm")
    monkeypatch.setenv("HUGEPFN_RAM_DIR", "")
    assert ram_folder() == Path("/dev/shm"), "an empty variable is none"
    monkeypatch.setenv("HUGEPFN_RAM_DIR", str(tmp_path))
    assert ram_folder() == tmp_path
    assert ram_folder(Path("/var/tmp")) == Path("/var/tmp"), "the option wins"


def refused(memory_mib: int, folder: Path) -> str:
    """The message, once it is known that nothing was left: no file, nothing open."""
    before = open_files()
    with pytest.raises(MachineryError) as caught:
        GuestRam(memory_mib, folder)
    assert open_files() == before
    assert "\n" not in str(caught.value)
    assert "--ram-dir" in str(caught.value)
    return str(caught.value)


def has_free(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=size_bytes // 512, f_frsize=512))


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 64 * MIB - 512)
    assert f"no room for guest RAM: {tmp_path} has 63 MiB free, 64 needed" in refused(64, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_just_enough_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 64 * MIB)
    GuestRam(64, tmp_path).close()


def test_no_room_in_a_real_file_system_that_has_none() -> None:
    assert "/sys has 0 MiB free" in refused(1, Path("/sys"))


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"{tmp_path}/nowhere: No such file or directory" in refused(1, tmp_path / "nowhere")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert "Not a directory" in refused(1, tmp_path / "file")


@pytest.mark.parametrize("step", ["truncate", "mmap"])
def test_what_fails_on_the_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr({"truncate": os, "mmap": mmap}[step], step, fail)
    assert "Cannot allocate memory" in refused(1, tmp_path)
    assert list(tmp_path.iterdir()) == []
