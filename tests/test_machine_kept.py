"""Tests for machines that were kept: what is read again, and what another version of hugepfn has kept."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from harness.errors import UsageError
from harness.guest.kernel_log import KernelLog
from harness.host import cache
from harness.machine import kept
from harness.qemu.spec import Accel, Device, MachineSpec

SPEC = MachineSpec(Path("bzImage"), Path("initramfs"), Accel.TCG, smp=2, device=Device.SHMEM, append=("pti=on",))
FACTS = {"kernel": "debian:6.12", "why": "a test", "ready": {"channel": "virtio"}, "bars": []}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep a machine with the name fork-pud."""

    async def stop() -> None:
        pass

    async def save_state(_qemu: object, state: Path, **_how: object) -> None:
        state.touch()

    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(kept, "save_state", save_state)
    qemu: Any = SimpleNamespace(spec=SPEC, boot_s=3.5, log=KernelLog(), stop=stop)
    cache.obtain(kept.KIND, "fork-pud", lambda folder: asyncio.run(kept.keep(qemu, folder, FACTS)))


def test_a_machine_is_described_as_it_was_kept() -> None:
    found = kept.find("fork-pud")
    assert (found.spec, found.kernel, found.why, found.boot_s) == (SPEC, "debian:6.12", "a test", 3.5)


def test_a_machine_with_other_devices_is_one_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "machine_words", lambda _: "qemu -device another")
    with pytest.raises(UsageError, match="was kept by another version of hugepfn; `hugepfn kept --rm fork-pud`"):
        kept.find("fork-pud")
    assert kept.everything() == [("fork-pud", None)]
