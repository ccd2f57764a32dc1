"""Checks that every machine shows the same entries: 1 to 4 vCPUs, isolated page tables, 4 levels, UART channels."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.guest.channel import Channel
from harness.kernel import Kernel, KernelImage
from harness.machine.machine import Origin
from harness.machine.vm import VM
from harness.pagetable import Level, Observation
from harness.selfcheck.checks import seen


@pytest.fixture(scope="module")
def image() -> KernelImage:
    return Kernel.debian("6.12").resolve()


def _fork(vm: VM, level: str) -> list[Observation]:
    return seen(vm, "fork", f"--level={level}")


@pytest.fixture(scope="module")
def plain(image: KernelImage) -> list[Observation]:
    """The observations with one vCPU, five levels and no isolation."""
    with VM(image) as vm:
        assert vm.caps.five_level
        return _fork(vm, "pud")


@pytest.mark.parametrize(
    ("smp", "append"),
    [(2, ()), (4, ("pti=on",)), (1, ("pti=on", "no5lvl")), (3, ("no5lvl",))],
    ids=["smp2", "smp4-pti", "pti-4levels", "smp3-4levels"],
)
def test_every_machine_shows_the_same(
    image: KernelImage, plain: list[Observation], smp: int, append: tuple[str, ...]
) -> None:
    with VM(image, smp=smp, append=append) as vm:
        assert _fork(vm, "pud") == plain
        assert vm.caps.five_level == ("no5lvl" not in append)
        if "pti=on" in append:
            assert "page tables isolation: enabled" in vm.kernel_log


@pytest.mark.parametrize(("device", "origin"), [("ivshmem-plain", Origin.CLONE), ("nvme", Origin.BOOT)])
def test_another_device_in_the_same_place_shows_the_same(
    image: KernelImage, plain: list[Observation], device: str, origin: Origin
) -> None:
    with VM(image, device=device) as vm:
        assert vm.origin is origin
        assert {bar.name for bar in vm.bars} >= {"bar", "bar0"}
        assert vm.bar.size_bytes >= 2 << 30
        # Its physical address is its own; everything else is the same.
        assert [(one.level, one.bits, one.pfn, one.pagemap) for one in _fork(vm, "pud")] == [
            (one.level, one.bits, one.pfn, one.pagemap) for one in plain
        ]


def test_no_such_device(image: KernelImage) -> None:
    with pytest.raises(UsageError, match="pci-testdev, ivshmem-plain, nvme"):
        VM(image, device="e1000")


def test_kaslr_is_on_by_default_and_off_with_pvh(image: KernelImage, plain: list[Observation]) -> None:
    def text(vm: VM) -> str:
        return vm.get("/proc/kallsyms").split(b" T _text\n")[0].split()[-1].decode()

    with VM(image) as vm:
        assert vm.spec.kernel == image.image
        assert text(vm) != "ffffffff81000000"
    with VM(image, pvh=True) as vm:
        assert vm.spec.kernel != image.image
        assert text(vm) == "ffffffff81000000"
        assert not vm.caps.five_level
        assert _fork(vm, "pud") == plain


def test_uarts_carry_the_channels_without_virtio(image: KernelImage, plain: list[Observation]) -> None:
    with VM(image, append=["hugepfn.channel=serial"]) as vm:
        assert vm.agent.channel is Channel.SERIAL
        assert _fork(vm, "pud") == plain
        data = os.urandom(64 << 10)  # the program has 700 KB, more than the tty layer keeps (TTYB_DEFAULT_MEM_LIMIT)
        vm.put("/tmp/data", data)
        assert vm.get("/tmp/data") == data


def test_programs_one_after_another_in_one_machine(image: KernelImage) -> None:
    with VM(image) as vm:
        for level in ("pud", "pte", "pmd", "pud"):
            found = {one.level for one in _fork(vm, level)}
            assert found - {"none"} == {level}  # at pte, one page of four is touched
        with vm.run("calibrate", "--memory=thp") as guest:
            at = guest.until("filled")
            assert at["parent"].leaf("memory").level is Level.PMD
            again = guest.look_again()
            assert again["parent"].leaf("memory") == at["parent"].leaf("memory")


def test_a_shell_in_the_guest(image: KernelImage) -> None:
    with VM(image) as vm:
        console = vm.console()
        console.expect("guest# ")
        console.sendline("echo $((6 * 7)) > /tmp/answer; cat /tmp/answer")
        console.expect(r"\r\n42\r\n")
        assert vm.get("/tmp/answer") == b"42\n"
        console.close()


def test_a_program_of_the_users_own(image: KernelImage, program: Callable[[str, str], Path]) -> None:
    source = program(
        "mine",
        """\tchar *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
\tktap_plan(1);
\thp_map(&(struct hp_mapping){ .name = "page", .addr = page, .length = 4096, .prot = 3, .backing = HP_RAM,
\t\t.pagemap_pages = 1 });
\tcheckpoint("untouched");
\thp_write(page, 1);
\tcheckpoint("touched");
\tktap_ok(true, "done");""",
    )
    with VM(image) as vm, vm.run(source) as guest:
        assert guest.until("untouched")["parent"].find_leaf("page") is None
        leaf = guest.until("touched")["parent"].leaf("page")
        assert leaf.write
        assert leaf.dirty
        assert not leaf.special


def test_the_time_of_the_last_stop_is_known(image: KernelImage) -> None:
    with VM(image) as vm:
        before = time.time()
        vm.on_loop(vm.qemu.stop())
        assert vm.qemu.last_stop.at is not None
        assert before <= vm.qemu.last_stop.at <= time.time()
        vm.on_loop(vm.qemu.resume())
