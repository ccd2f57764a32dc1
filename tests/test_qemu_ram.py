"""Tests for guest RAM: a file without a name, errors in one line, and a clone's private view of a template."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from harness.errors import HugepfnError, MachineryError, RestoreError, UsageError
from harness.events import Sparing
from harness.pagetable import WalkError
from harness.qemu.ram import PrivateRam, SharedRam, check_room, data_ranges, find_room, low_ram_bytes, ram_folder

MIB = 1 << 20
ROOT = Path(__file__).resolve().parents[1]


def open_files() -> set[str]:
    """Return the open files of this process, except those that cannot be read."""
    found = set()
    for descriptor in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # the descriptor that reads this folder
            found.add(f"{descriptor.name} {descriptor.readlink()}")
    return found


def test_memory_and_file_are_the_same_and_have_no_name(tmp_path: Path) -> None:
    guest = SharedRam(16, tmp_path)
    try:
        assert list(tmp_path.iterdir()) == []
        assert guest.memory.size_bytes == 16 * MIB
        status = os.fstat(guest.fd)
        assert stat.S_ISREG(status.st_mode)
        assert (status.st_size, status.st_nlink) == (16 * MIB, 0)
        assert status.st_blocks * 512 < MIB, "the file must be sparse"
        guest.memory.write_u64(15 * MIB, 0x1122334455667788)
        assert os.pread(guest.fd, 8, 15 * MIB) == bytes.fromhex("8877665544332211")
        os.pwrite(guest.fd, b"\x01", 4096)
        assert guest.memory.read_u64(4096) == 1
    finally:
        guest.close()


def test_close_releases_everything_and_may_be_called_twice(tmp_path: Path) -> None:
    before = open_files()
    guest = SharedRam(1, tmp_path)
    assert len(open_files() - before) >= 1
    guest.close()
    guest.close()
    assert open_files() == before
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="released"):
        guest.memory.read_u64(0)


def test_the_folder_of_guest_ram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HUGEPFN_RAM_DIR", raising=False)
    assert ram_folder() == Path("/dev/shm")
    monkeypatch.setenv("HUGEPFN_RAM_DIR", "")
    assert ram_folder() == Path("/dev/shm"), "an empty variable counts as not set"
    monkeypatch.setenv("HUGEPFN_RAM_DIR", str(tmp_path))
    assert ram_folder() == tmp_path
    assert ram_folder(Path("/var/tmp")) == Path("/var/tmp"), "the option overrides the variable"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A container: /dev/shm has 64 MiB, and of the other folders only those named have a gigabyte."""
    monkeypatch.delenv("HUGEPFN_RAM_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    for name in ("tmp", "cache"):
        (tmp_path / name).mkdir()

    def only(*roomy: Path) -> None:
        def statvfs(folder: Path) -> SimpleNamespace:
            return SimpleNamespace(f_bavail=1024 if folder in roomy else 64, f_frsize=MIB)

        monkeypatch.setattr(os, "statvfs", statvfs)

    return only


def test_without_room_in_dev_shm_another_folder_is_used_and_reported(
    small: Callable[..., None], tmp_path: Path
) -> None:
    said: list[str] = []
    small(tmp_path / "tmp", Path("/var/tmp"), tmp_path / "cache")
    assert find_room(512, say=Sparing(said.append)) == tmp_path / "tmp"
    expected = "no space for guest RAM: /dev/shm has 64 MiB free, expected 512 MiB"
    assert said == [f"guest RAM goes to {tmp_path / 'tmp'}: {expected}"]
    assert find_room(64, say=Sparing(said.append)) == Path("/dev/shm")
    assert len(said) == 1
    small(Path("/var/tmp"), tmp_path / "cache")
    assert find_room(512) == Path("/var/tmp")
    small(tmp_path / "cache")
    guest = SharedRam(512)
    try:
        assert str(tmp_path / "cache") in str((Path("/proc/self/fd") / str(guest.fd)).readlink())
    finally:
        guest.close()


def test_a_chosen_folder_is_not_replaced(
    small: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small(Path("/var/tmp"))
    with pytest.raises(MachineryError, match=f"{tmp_path} has 64 MiB free, expected 512 MiB"):
        find_room(512, tmp_path)
    monkeypatch.setenv("HUGEPFN_RAM_DIR", str(tmp_path))
    with pytest.raises(MachineryError, match=f"{tmp_path} has 64 MiB free, expected 512 MiB"):
        find_room(512)


def test_if_no_folder_has_room_the_first_is_named(small: Callable[..., None]) -> None:
    small()
    with pytest.raises(MachineryError, match="/dev/shm has 64 MiB free, expected 512 MiB"):
        find_room(512)


def refused(memory_mib: int, folder: Path, family: type[HugepfnError] = MachineryError) -> str:
    """Return the message of the refusal. Checks that no file and no open descriptor is left."""
    before = open_files()
    with pytest.raises(family) as caught:
        SharedRam(memory_mib, folder)
    assert open_files() == before
    assert "\n" not in str(caught.value)
    assert "--ram-dir" in str(caught.value)
    return str(caught.value)


def has_free(monkeypatch: pytest.MonkeyPatch, size_bytes: int) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_bavail=size_bytes // 512, f_frsize=512))


def test_not_enough_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 64 * MIB - 512)
    assert f"no space for guest RAM: {tmp_path} has 63 MiB free, expected 64 MiB" in refused(64, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_just_enough_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    has_free(monkeypatch, 64 * MIB)
    SharedRam(64, tmp_path).close()


def test_a_real_file_system_without_room() -> None:
    assert "/sys has 0 MiB free" in refused(1, Path("/sys"))


def test_a_missing_folder(tmp_path: Path) -> None:
    assert f"{tmp_path}/nowhere: no such folder; choose" in refused(1, tmp_path / "nowhere", UsageError)


def test_a_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda *_: False)  # because root may write everywhere
    assert f"{tmp_path}: you may not write there; choose" in refused(1, tmp_path, UsageError)


def test_a_missing_default_folder_is_no_usage_error(tmp_path: Path) -> None:
    with pytest.raises(MachineryError, match=f"cannot put guest RAM into {tmp_path}/nowhere: No such file"):
        check_room(1, tmp_path / "nowhere")


def test_a_folder_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert f"{tmp_path}/file: no such folder" in refused(1, tmp_path / "file", UsageError)


@pytest.mark.parametrize("step", ["truncate", "mmap"])
def test_a_failed_allocation_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr({"truncate": os, "mmap": mmap}[step], step, fail)
    assert "Cannot allocate memory" in refused(1, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_checking_a_folder_creates_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_room(1, tmp_path)
    has_free(monkeypatch, MIB - 512)
    with pytest.raises(MachineryError, match="has 0 MiB free, expected 1 MiB"):
        check_room(1, tmp_path)


def test_a_copy_has_the_same_bytes_and_the_same_holes(tmp_path: Path) -> None:
    guest = SharedRam(16, Path("/dev/shm"))
    try:
        for paddr in (0, 5 * MIB, 16 * MIB - 8):
            guest.memory.write_u64(paddr, paddr + 1)
        guest.copy_to(tmp_path / "copy")
        copy = (tmp_path / "copy").read_bytes()
        assert copy == os.pread(guest.fd, 16 * MIB, 0)
        assert (tmp_path / "copy").stat().st_blocks * 512 < MIB
        assert (tmp_path / "copy").stat().st_mode & 0o777 == 0o600
        assert os.fstat(guest.fd).st_mode & 0o777 == 0o600
    finally:
        guest.close()


def test_the_data_ranges_of_a_sparse_file(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with path.open("wb") as file:
        file.truncate(16 * MIB)
    with path.open("r+b") as file:
        assert data_ranges(file.fileno()) == []
        for start in (2 * MIB, 9 * MIB):
            os.pwrite(file.fileno(), b"x" * MIB, start)
        assert data_ranges(file.fileno()) == [(2 * MIB, 3 * MIB), (9 * MIB, 10 * MIB)]
        os.pwrite(file.fileno(), b"x", 16 * MIB - 1)
        assert data_ranges(file.fileno())[-1][1] == 16 * MIB


# --- a clone's memory ----------------------------------------------------------------------------


@pytest.fixture
def template(tmp_path: Path) -> Path:
    """A template's RAM of 16 pages, each word its own address plus one."""
    path = tmp_path / "ram"
    path.write_bytes(b"".join((paddr + 1).to_bytes(8, "little") for paddr in range(0, 16 * 4096, 8)))
    return path


@pytest.fixture
def clone(template: Path) -> Iterator[PrivateRam]:
    """A clone whose QEMU is this process, which maps the file privately."""
    ram = PrivateRam(template)
    with mmap.mmap(ram.fd, 16 * 4096, flags=mmap.MAP_PRIVATE) as mapped:
        mapped[0] = mapped[0]  # the clone has its own copy of one page already
        ram.attach(os.getpid())
        yield ram
        ram.close()


def test_a_clone_is_read_from_its_process(clone: PrivateRam) -> None:
    assert clone.memory.size_bytes == 16 * 4096
    assert [clone.memory.read_u64(paddr) for paddr in (0, 4096, 16 * 4096 - 8)] == [1, 4097, 16 * 4096 - 7]


def test_writes_stay_in_the_clone(clone: PrivateRam, template: Path) -> None:
    before = template.read_bytes()
    clone.memory.write_u64(8192, 0x1122334455667788)
    assert clone.memory.read_u64(8192) == 0x1122334455667788
    assert clone.memory.read_u64(8200) == 8201
    assert template.read_bytes() == before


@pytest.mark.parametrize("pages", [[], [3], [3, 4, 5], [15, 0, 1, 7], [2, 2], [5, 4]])
def test_tables_of_a_clone(clone: PrivateRam, pages: list[int]) -> None:
    found = clone.memory.tables(np.array(pages, np.uint64) * np.uint64(4096))
    assert found.shape == (len(pages), 512)
    assert [(row[0], row[511]) for row in found.tolist()] == [(4096 * n + 1, 4096 * n + 4089) for n in pages]


@pytest.mark.parametrize("paddr", [16 * 4096, 16 * 4096 + 8, 1 << 40, -8])
def test_addresses_outside_a_clones_memory(clone: PrivateRam, paddr: int) -> None:
    with pytest.raises(WalkError, match="outside guest RAM, which ends at 0x10000"):
        clone.memory.read_u64(paddr)
    with pytest.raises(WalkError):
        clone.memory.write_u64(paddr, 0)
    if paddr > 0:
        with pytest.raises(WalkError):
            clone.memory.tables(np.array([0, paddr], np.uint64))


def test_a_clone_whose_qemu_has_ended_has_no_memory(template: Path) -> None:
    """The kernel reads nothing from a process that has ended, which must not look like empty tables."""
    script = "import mmap, signal; m = mmap.mmap(0, 0, flags=mmap.MAP_PRIVATE); print(flush=True); signal.pause()"
    ram = PrivateRam(template)
    with subprocess.Popen([sys.executable, "-c", script], stdin=ram.fd, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        ram.attach(child.pid)
        assert ram.memory.read_u64(4096) == 4097
        child.kill()
    for act in (
        lambda: ram.memory.read_u64(4096),
        lambda: ram.memory.tables(np.array([0], np.uint64)),
        lambda: ram.memory.write_u64(0, 1),
    ):
        with pytest.raises(MachineryError, match=rf"QEMU \(pid {child.pid}\) has ended, and its memory is gone"):
            act()
    ram.close()


def test_a_clone_releases_everything(template: Path) -> None:
    before = open_files()
    ram = PrivateRam(template)
    with mmap.mmap(ram.fd, 0, flags=mmap.MAP_PRIVATE):
        ram.attach(os.getpid())
        ram.close()
        ram.close()
    assert open_files() == before


def test_a_clone_without_its_template_or_its_process(tmp_path: Path, template: Path) -> None:
    with pytest.raises(RestoreError, match=r"cannot open the template's RAM .*nowhere: No such file"):
        PrivateRam(tmp_path / "nowhere")  # removed by another hugepfn, so the template is made again
    ram = PrivateRam(template)
    try:
        with pytest.raises(MachineryError, match="is not running yet"):
            ram.memory.read_u64(0)
        with pytest.raises(MachineryError, match=rf"QEMU \(pid {os.getpid()}\) does not map the template's RAM"):
            ram.attach(os.getpid())
    finally:
        ram.close()


def test_a_host_at_its_limits_says_nothing_about_the_template(monkeypatch: pytest.MonkeyPatch, template: Path) -> None:
    def refuse(*_args: object) -> int:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MachineryError, match="Too many open files") as refused:
        PrivateRam(template)
    assert not isinstance(refused.value, RestoreError)


ON_OVERLAY = """
mount -t tmpfs tmpfs {folder} || exit 77
cd {folder}
mkdir lower upper work merged
mount -t tmpfs tmpfs lower || exit 77  # of one file system alone, overlayfs shows the real numbers
mount -t overlay overlay -o lowerdir=lower,upperdir=upper,workdir=work merged || exit 77
cp {template} merged/ram
cd {root}
exec {python} -c '
import mmap, os, sys
from pathlib import Path
from harness.qemu.ram import PrivateRam
ram = PrivateRam(Path(sys.argv[1]))
with mmap.mmap(ram.fd, 0, flags=mmap.MAP_PRIVATE):
    ram.attach(os.getpid())
    print(ram.memory.read_u64(4096))
    ram.close()
' {folder}/merged/ram
"""


def test_a_clone_on_overlayfs(template: Path, tmp_path: Path) -> None:
    """On overlayfs and btrfs, /proc/PID/maps shows another device than fstat()."""
    folder = tmp_path / "overlay"
    folder.mkdir()
    script = ON_OVERLAY.format(folder=folder, template=template, python=sys.executable, root=ROOT)
    argv = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"needs a user namespace with overlayfs: {done.stderr.strip()}")
    assert (done.returncode, done.stdout) == (0, "4097\n"), done.stderr


def test_the_address_of_a_large_guests_ram() -> None:
    """QEMU 7.2 to 11.1: -m 2815M is one block, -m 2816M is split at 2 GiB (HMP info mtree)."""
    assert [low_ram_bytes(mib * MIB) // MIB for mib in (256, 2048, 2815, 2816, 65536)] == [256, 2048, 2815, 2048, 2048]


def test_a_large_guest_is_read_by_physical_address(tmp_path: Path) -> None:
    ram = SharedRam(3072, tmp_path)
    try:
        ram.memory.write_u64((4 << 30) + 8, 7)
        assert os.pread(ram.fd, 8, (2 << 30) + 8) == bytes([7, 0, 0, 0, 0, 0, 0, 0])
        assert ram.memory.size_bytes == (4 << 30) + (1 << 30)
    finally:
        ram.close()
