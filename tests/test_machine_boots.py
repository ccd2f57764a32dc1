"""Tests for failed boots: a boot that QEMU's emulation breaks is tried again, one that the kernel breaks is not."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import (
    BootError,
    EmulatorError,
    HugepfnError,
    KernelDied,
    MachineryError,
    QemuRefused,
    RestoreError,
)
from harness.events import Sparing
from harness.guest.channel import Channel
from harness.guest.kernel_log import SavedLog
from harness.kernel import Kernel
from harness.kernel.identity import stamp_of
from harness.kernel.image import ImageKind, KernelImage
from harness.machine import bring_up, kept
from harness.machine import vm as vm_module
from harness.machine.bring_up import Timing
from harness.machine.vm import VM
from harness.qemu.end_error import QemuEnd, end_error
from harness.qemu.spec import BAR_SLOT, Accel, MachineSpec
from harness.qemu.standstill import Standstill
from harness.verdict import scan
from tests.test_kernel_image import RELEASE, bzimage

LOG = (Path(__file__).parent / "data" / "verdict" / "stale_breakpoint_6_12.log").read_text()
OOPS = (Path(__file__).parent / "data" / "verdict" / "null_deref_6_12.log").read_text()


def _end(log: str, accel: Accel, status: int | None = 0, stderr: str = "") -> HugepfnError:
    return end_error("waiting: ", QemuEnd(77, status, stderr, scan(log), accel, "7.2", Standstill().excuse))


def test_a_failure_of_the_emulation_is_not_blamed_on_the_kernel() -> None:
    error = _end(LOG, Accel.TCG)
    assert isinstance(error, EmulatorError)
    assert str(error).startswith("waiting: the kernel died at a breakpoint that is not in its memory")
    assert "in sched_clock_tick(), from sched_tick()" in str(error)


@pytest.mark.parametrize(
    ("status", "stderr", "told"),
    [
        (0, "qemu: terminating on signal 15 from pid 77 (systemd)", "ended with status 0: qemu: terminating on signal"),
        (-9, "", "QEMU was killed by SIGKILL: it printed nothing"),
        (1, "qemu: cannot go on", "QEMU ended with status 1: qemu: cannot go on"),
    ],
)
@pytest.mark.parametrize("log", ["", OOPS])
def test_a_killed_qemu_is_not_a_dead_kernel(log: str, status: int, stderr: str, told: str) -> None:
    error = _end(log, Accel.TCG, status, stderr)
    assert isinstance(error, MachineryError)
    assert told in str(error)


def test_a_qemu_that_closes_qmp_and_does_not_end_is_judged_by_its_log() -> None:
    assert isinstance(_end(OOPS, Accel.TCG, None), KernelDied)
    error = _end("", Accel.TCG, None)
    assert isinstance(error, MachineryError)
    assert str(error) == "waiting: QEMU (pid 77) closed QMP but did not end: it printed nothing"


@pytest.mark.parametrize(
    ("log", "accel"),
    [(LOG, Accel.KVM), (OOPS, Accel.TCG), (LOG.replace("66 <90>", "cc <90>"), Accel.TCG)],
    ids=["a processor runs what is in memory", "another oops", "the breakpoint is there"],
)
def test_every_other_death_is_the_kernels_fault(log: str, accel: Accel) -> None:
    assert isinstance(_end(log, accel), KernelDied)


class Boots:
    """Replaces boot(): raises the given errors, one per call, then succeeds."""

    def __init__(self, *errors: HugepfnError) -> None:
        self.errors = list(errors)
        self.count = 0

    async def __call__(self, *_args: Any) -> object:
        self.count += 1
        if self.errors:
            raise self.errors.pop(0)
        return object()


def _boot(monkeypatch: pytest.MonkeyPatch, *errors: HugepfnError) -> tuple[VM, Boots, list[str]]:
    said: list[str] = []
    boots = Boots(*errors)
    monkeypatch.setattr(vm_module, "boot", boots)
    vm = VM("debian:6.12", say=Sparing(said.append))
    vm.spec, vm.kernel = cast(Any, None), cast(Any, None)
    return vm, boots, said


def test_a_boot_that_the_emulation_breaks_is_repeated_and_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, boots, said = _boot(monkeypatch, EmulatorError("stale"))
    try:
        vm._boot(Timing())
        assert vm.running
        assert (boots.count, said) == (2, ["booting again: stale"])
    finally:
        vm.close()


def test_three_failed_boots_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, boots, _ = _boot(monkeypatch, *[EmulatorError(f"stale {number}") for number in range(4)])
    with pytest.raises(EmulatorError, match="stale 2"):
        vm._boot(Timing())
    assert boots.count == 3


def test_a_kernel_that_does_not_boot_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    vm, boots, said = _boot(monkeypatch, BootError("it died", exit_status=0, console_tail=""))
    with pytest.raises(BootError):
        vm._boot(Timing())
    assert (boots.count, said) == (1, [])


@pytest.mark.parametrize(
    ("error", "exit_status", "expected"),
    [
        (QemuRefused("migrate-incoming"), None, RestoreError),
        (RestoreError("migration failed"), None, RestoreError),
        (MachineryError("QEMU ended with status 1"), 1, RestoreError),
        (FileNotFoundError("state"), None, RestoreError),
        (MachineryError("the host is too busy"), None, MachineryError),
        (MachineryError("QEMU was killed by SIGKILL"), -9, MachineryError),
    ],
)
def test_only_an_error_about_the_template_rebuilds_it(
    monkeypatch: pytest.MonkeyPatch, error: Exception, exit_status: int | None, expected: type[Exception]
) -> None:
    async def fail(*_asked: object, **_how: object) -> None:
        raise error

    async def start(*, incoming: bool) -> None:
        assert incoming

    monkeypatch.setattr("harness.machine.bring_up.restore_state", fail)
    qemu: Any = SimpleNamespace(
        log=SimpleNamespace(restore=lambda _log: None),
        start=start,
        ram=SimpleNamespace(share=False),
        binary=SimpleNamespace(version="7.2"),
        exit_status=exit_status,
    )
    log: Any = None
    with pytest.raises(expected) as caught:
        asyncio.run(bring_up._restore(qemu, Path("/c/t/state"), log, lambda _data: None, {}))
    assert type(caught.value) is expected


# --- a kernel that is replaced during its boot -------------------------------------------------------


@pytest.fixture
def image(tmp_path: Path) -> KernelImage:
    path = tmp_path / "bzImage"
    path.write_bytes(b"first")
    return KernelImage("./k", path, ImageKind.BZIMAGE, "6.12.0", None, None, stamp_of(path))


def _rebuild(image: KernelImage, content: bytes | None = b"other") -> None:
    """Replace the kernel's files as `make` does; None: only some of them."""
    image.image.unlink()
    if content is not None:
        image.image.write_bytes(content)


def _boots_meanwhile(monkeypatch: pytest.MonkeyPatch, meanwhile: Callable[[], None]) -> Callable[[KernelImage], object]:
    """Replaces QEMU and the agent by a boot during which ``meanwhile`` is called."""

    class FakeQemu:
        log = SimpleNamespace(text="", tail=lambda: "")
        argv, exit_status, pid = ("qemu",), 0, 0

        def __init__(self, *_args: object) -> None:
            pass

        async def start(self) -> None:
            pass

        async def execute(self, _command: str) -> object:
            bar = {"bar": 2, "type": "memory", "address": 1 << 32, "size": 1 << 30}
            return [{"devices": [{"slot": BAR_SLOT, "regions": [bar]}]}]

        def pump(self, *_args: object) -> None:
            pass

    class FakeAgent:
        channel = Channel.VIRTIO

        def __init__(self, _qemu: object) -> None:
            pass

        async def ready(self, _timeout_s: float) -> dict[str, str]:
            meanwhile()
            return {}

    for name, fake in (("Qemu", FakeQemu), ("Agent", FakeAgent)):
        monkeypatch.setattr(bring_up, name, fake)
    monkeypatch.setattr(bring_up, "SharedRam", lambda *_args: None)
    spec = cast(Any, SimpleNamespace(memory_mib=1024, accel=Accel.TCG))

    def boot(image: KernelImage) -> object:
        return asyncio.run(bring_up.boot(spec, cast(Any, None), image, None, print, lambda _qemu: None, Timing()))

    return boot


def test_an_unchanged_kernel_boots(monkeypatch: pytest.MonkeyPatch, image: KernelImage) -> None:
    assert _boots_meanwhile(monkeypatch, lambda: None)(image)


@pytest.mark.parametrize("content", [b"other", None])
def test_a_kernel_replaced_during_its_boot_is_an_error(
    monkeypatch: pytest.MonkeyPatch, image: KernelImage, content: bytes | None
) -> None:
    boot = _boots_meanwhile(monkeypatch, lambda: _rebuild(image, content))
    with pytest.raises(
        MachineryError, match="bzImage was replaced while it was in use, so it is not known which kernel"
    ):
        boot(image)


def test_a_half_written_kernel_that_does_not_boot_is_no_verdict(
    monkeypatch: pytest.MonkeyPatch, image: KernelImage
) -> None:
    def dies() -> None:
        _rebuild(image)
        raise KernelDied("Kernel panic - not syncing")

    with pytest.raises(MachineryError, match="was replaced while it was in use"):
        _boots_meanwhile(monkeypatch, dies)(image)


@pytest.mark.parametrize("rebuilt", [False, True])
def test_a_kept_machine_knows_its_kernel_only_if_unchanged(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, image: KernelImage, rebuilt: bool
) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    saved = SimpleNamespace(kernel="./k", asked=Kernel.image("./k"), kernel_key=image.key, spec=None, capabilities=None)
    if rebuilt:
        _rebuild(image)
    now = dataclasses.replace(image, stamp=stamp_of(image.image))
    monkeypatch.setattr(kept, "find", lambda _name: saved)
    monkeypatch.setattr(vm_module, "revive", lambda *_args: None)
    monkeypatch.setattr(Kernel, "resolve", lambda _kernel, offline: now)  # noqa: ARG005
    monkeypatch.setattr(VM, "_use", lambda *_args: None)
    assert VM.revive("fork-pud").known_kernel == (None if rebuilt else now)


@pytest.mark.parametrize("given", [False, True])
def test_a_kept_machine_finds_its_kernel_with_the_given_modules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, given: bool
) -> None:
    """The key of a kernel includes the list of its modules."""
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "bzImage").write_bytes(bzimage())
    (tmp_path / "root/lib/modules" / RELEASE / "kernel").mkdir(parents=True)
    (tmp_path / "root/lib/modules" / RELEASE / "kernel/vfio.ko").touch()
    vm = VM(Kernel.image(tmp_path / "bzImage", tmp_path / "root" if given else None))
    vm.kernel = vm._resolve()
    vm.spec = MachineSpec(vm.kernel.image, Path("initramfs"))
    log = SimpleNamespace(saved=lambda: SavedLog((), 0, ""))
    qemu = SimpleNamespace(spec=vm.spec, boot_s=4.5, log=log, stop=lambda: asyncio.sleep(0))
    vm._machine = cast(Any, SimpleNamespace(qemu=qemu, agent=SimpleNamespace(next_id=1), ready={}, bars=()))
    vm._qemu = cast(Any, qemu)
    monkeypatch.setattr(VM, "paused", contextlib.nullcontext)
    monkeypatch.setattr(VM, "on_loop", lambda _vm, work: asyncio.run(work))
    monkeypatch.setattr(kept, "save_state", lambda *_args, **_words: asyncio.sleep(0))
    vm.keep("fork-pud", "a test")
    monkeypatch.setattr(vm_module, "revive", lambda *_args: None)
    monkeypatch.setattr(VM, "_use", lambda *_args: None)
    assert VM.revive("fork-pud").known_kernel == vm.kernel
