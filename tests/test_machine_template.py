"""Tests for templates on disk: they are restored as saved, and a damaged one is made again."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import MachineryError
from harness.events import Sparing
from harness.guest.kernel_log import SavedLog
from harness.host import cache
from harness.machine import template as template_module
from harness.machine.machine import Machine, Origin
from harness.machine.template import KIND, Template, discard, load, obtain, save_template, template_key, write_meta
from harness.pagetable import Level, Region
from harness.qemu.binary import QemuBinary
from harness.qemu.ram import SharedRam
from harness.qemu.spec import Accel, MachineSpec
from harness.verdict.capabilities import Capabilities, ImageCapabilities

PAGE = 4096
RAM_BYTES = 1 << 20
READY = {"release": "6.12.0", "missing": ""}
BARS = (Region("bar0", 0xFEBD0000, 16384), Region("bar", 0x380000000, 1 << 30))
CAPABILITIES = Capabilities(
    ImageCapabilities(True, frozenset({Level.PMD}), None), True, True, False, False, "always", five_level=False
)
LOG = SavedLog(("[    0.1] Linux version 6.12.0",), 12, "SeaBIOS\n")


@pytest.fixture(autouse=True)
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A separate cache, none of which was checked by this process."""
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(template_module, "_verified", set())


def write_ram(folder: Path, *pages: int, size_bytes: int = RAM_BYTES) -> None:
    """Write RAM with a word in each of these pages and holes elsewhere."""
    with (folder / "ram").open("wb") as file:
        file.truncate(size_bytes)
        for page in pages:
            file.seek(page * PAGE)
            file.write(b"\x01" + bytes(PAGE - 1))


def fill(folder: Path) -> None:
    """Make a template in an empty folder."""
    (folder / "state").write_bytes(b"registers")
    write_ram(folder, 1, 5)
    write_meta(folder, READY, BARS, CAPABILITIES, LOG, 4.5)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "key"
    folder.mkdir()
    fill(folder)
    return folder


def test_a_template_is_restored_as_saved(saved: Path) -> None:
    assert load(saved) == Template(saved, READY, BARS, CAPABILITIES, LOG, 4.5)
    assert (load(saved).ram, load(saved).state) == (saved / "ram", saved / "state")


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "state").write_bytes(b"registerz"),
        lambda folder: write_ram(folder, 1, 6),
        lambda folder: write_ram(folder, 1),
        lambda folder: write_ram(folder, 1, 5, 7),
        lambda folder: write_ram(folder, 1, 5, size_bytes=2 * RAM_BYTES),
    ],
    ids=["state", "a page elsewhere", "a page less", "a page more", "more RAM"],
)
def test_a_changed_template_is_refused(saved: Path, change: Callable[[Path], object]) -> None:
    change(saved)
    with pytest.raises(MachineryError, match=r"^the template key has changed since it was saved$"):
        load(saved)


def test_a_block_of_zeros_is_a_hole(saved: Path) -> None:
    """Some file systems allocate more than was written."""
    with (saved / "ram").open("r+b") as file:
        file.seek(20 * PAGE)
        file.write(bytes(4 * PAGE))
    assert load(saved).ready == READY


def test_the_content_is_checked_once_in_a_process(saved: Path) -> None:
    load(saved)
    (saved / "state").write_bytes(b"other")
    assert load(saved).ready == READY
    discard(saved)
    assert not saved.exists()
    discard(saved)  # another process was faster
    saved.mkdir()
    fill(saved)
    (saved / "state").write_bytes(b"other")
    with pytest.raises(MachineryError, match="has changed since it was saved"):
        load(saved)


def test_the_content_is_checked_again_only_when_the_files_were_written(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each load is one of another process."""
    read: list[Path] = []
    digest = template_module._digest
    now_s = time.time()

    def counted(folder: Path) -> str:
        read.append(folder)
        return digest(folder)

    monkeypatch.setattr(template_module, "_digest", counted)

    def checks(*, after_s: float) -> int:
        template_module._verified.clear()
        monkeypatch.setattr(time, "time", lambda: now_s + after_s)
        read.clear()
        assert load(saved).ready == READY
        return len(read)

    assert checks(after_s=0) == 1
    assert checks(after_s=2) == 1, "a file that was just written may be written again at the same time of its clock"
    assert checks(after_s=3) == 0
    monkeypatch.setattr(template_module, "boot_id", lambda: "another")
    assert [checks(after_s=4), checks(after_s=5)] == [1, 0]
    (saved / "state").write_bytes(b"registers")
    assert checks(after_s=1e6) == 1, "its content is what it was"
    (saved / "state").write_bytes(b"registerz")
    template_module._verified.clear()
    for _ in range(2):
        with pytest.raises(MachineryError, match="has changed since it was saved"):
            load(saved)


@pytest.mark.parametrize("name", ["meta.json", "state", "ram", "log.json"])
def test_a_missing_file_is_an_error(saved: Path, name: str) -> None:
    (saved / name).unlink()
    with pytest.raises(MachineryError, match=r"^the template key cannot be read: .*No such file"):
        load(saved)


@pytest.mark.parametrize("lacking", ["ready", "bars", "capabilities", "digest"])
def test_a_template_of_another_version_is_refused(saved: Path, lacking: str) -> None:
    meta = json.loads((saved / "meta.json").read_text())
    del meta[lacking]
    (saved / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(MachineryError, match=f"cannot be read: .*{lacking}"):
        load(saved)
    (saved / "meta.json").write_text("{")
    with pytest.raises(MachineryError, match="cannot be read"):
        load(saved)


# --- in the cache --------------------------------------------------------------------------------------


def test_a_template_is_made_once() -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        fill(folder)

    said: list[str] = []
    first = obtain("one", build, Sparing(said.append))
    assert obtain("one", build, Sparing(said.append)) == first
    assert (len(built), said) == (1, [])
    assert first.folder == cache.find(KIND, "one")


def test_a_damaged_template_is_made_again_once() -> None:
    def build(folder: Path) -> None:
        fill(folder)

    spoilt = obtain("one", build, lambda _line: None).folder
    (spoilt / "state").write_bytes(b"other")
    template_module._verified.clear()  # another process
    said: list[str] = []
    assert obtain("one", build, Sparing(said.append)).state.read_bytes() == b"registers"
    assert said == ["the template one has changed since it was saved; building it again"]

    def build_badly(folder: Path) -> None:
        fill(folder)
        (folder / "state").write_bytes(b"other")

    said.clear()
    with pytest.raises(MachineryError, match="the template two has changed since it was saved"):
        obtain("two", build_badly, Sparing(said.append))
    assert said == ["the template two has changed since it was saved; building it again"], "and not for ever"


def test_a_machine_is_saved_while_it_is_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    happened: list[str] = []
    folder = tmp_path / "new"
    folder.mkdir()
    ram = SharedRam(1, tmp_path)
    ram.memory.write_u64(3 * PAGE, 7)

    async def stop() -> None:
        happened.append("stop")

    async def save(qemu: object, path: Path, *, with_ram: bool) -> None:
        assert qemu is machine.qemu
        happened.append(f"state, RAM {with_ram}")
        path.write_bytes(b"registers")

    monkeypatch.setattr(template_module, "save_state", save)

    def prune(kind: str, count: int) -> list[Path]:
        happened.append(f"{kind} {count}")
        return []

    monkeypatch.setattr(cache, "prune", prune)
    qemu = SimpleNamespace(stop=stop, ram=ram, boot_s=4.5, log=SimpleNamespace(saved=lambda: LOG))
    machine = Machine(cast(Any, qemu), cast(Any, None), READY, BARS, Origin.BOOT)
    try:
        asyncio.run(save_template(machine, folder, CAPABILITIES))
    finally:
        ram.close()
    assert happened == ["stop", "state, RAM False", "templates 32"]
    template = load(folder)
    assert (template.ready, template.bars, template.capabilities, template.log) == (READY, BARS, CAPABILITIES, LOG)
    data = template.ram.read_bytes()
    assert (len(data), data[3 * PAGE]) == (RAM_BYTES, 7)
    assert template.ram.stat().st_mode & 0o777 == 0o600, "only the user may read a guest's memory"


def test_a_pruned_template_is_checked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saved: Path) -> None:
    async def nothing(*_asked: object, **_how: object) -> None:
        (folder / "state").write_bytes(b"")

    load(saved)
    folder = tmp_path / "new"
    folder.mkdir()
    ram = SharedRam(1, tmp_path)
    monkeypatch.setattr(template_module, "save_state", nothing)
    monkeypatch.setattr(cache, "prune", lambda _kind, _count: [saved])
    qemu = SimpleNamespace(stop=nothing, ram=ram, boot_s=4.5, log=SimpleNamespace(saved=lambda: LOG))
    try:
        asyncio.run(
            save_template(
                cast(Any, Machine(cast(Any, qemu), cast(Any, None), {}, (), Origin.BOOT)), folder, CAPABILITIES
            )
        )
    finally:
        ram.close()
    (saved / "state").write_bytes(b"other")
    with pytest.raises(MachineryError, match="has changed since it was saved"):
        load(saved)


# --- its key -------------------------------------------------------------------------------------------


def test_every_input_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "qemu"
    program.write_text("one")
    binary = QemuBinary(str(program), "7.2.0", "QEMU emulator version 7.2.0")

    def key(*, kernel: str = "kernel", package: str = binary.package, **other: Any) -> str:
        spec = MachineSpec(Path("bzImage"), Path("initramfs"), **{"accel": Accel.TCG, **other})
        return template_key(spec, kernel, QemuBinary(str(program), "7.2.0", package))

    keys = [key(), key(kernel="other"), key(package="other"), key(smp=2), key(memory_mib=2048), key(append=("pti=on",))]
    program.write_text("another")
    keys.append(key())
    os.utime(program, (1.0, 1.0))
    keys.append(key())
    assert key() == keys[-1]
    monkeypatch.setattr(template_module, "machine_words", lambda _: "qemu -device another")
    keys.append(key())
    assert len(set(keys)) == len(keys)
    assert all(len(one) == 32 for one in keys)
