"""Tests for a machine's QEMU command line, word for word, and for machines that are refused."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest

from harness.qemu.launch import CHANNELS
from harness.qemu.spec import Accel, Descriptors, Device, MachineSpec, kernel_command_line, qemu_argv

DESCRIPTORS = Descriptors(ram=10, qmp=11, console=12, agent=13, events=14, agent_uart=16, events_uart=17, shell=15)
SPEC = MachineSpec(kernel=Path("/k/bzImage"), initramfs=Path("/c/initramfs.cpio"))

GOLDEN = """
qemu-system-x86_64
-nodefaults
-no-user-config
-no-reboot
-display none
-machine q35,memory-backend=ram
-accel tcg
-cpu max
-smp 1
-m 1024M
-object memory-backend-file,id=ram,size=1024M,mem-path=/proc/self/fd/10,share=on
-chardev socket,id=qmp,fd=11
-qmp chardev:qmp
-chardev socket,id=console,fd=12
-device isa-serial,chardev=console,index=0
-chardev socket,id=shell,fd=15
-device isa-serial,chardev=shell,index=3
-chardev socket,id=agent,fd=13
-chardev socket,id=events,fd=14
-chardev socket,id=agent-uart,fd=16
-device isa-serial,chardev=agent-uart,index=1
-chardev socket,id=events-uart,fd=17
-device isa-serial,chardev=events-uart,index=2
-device virtio-serial-pci,id=serial,addr=04.0,max_ports=3,ioeventfd=off
-device virtserialport,bus=serial.0,nr=1,chardev=agent,name=hugepfn.agent
-device virtserialport,bus=serial.0,nr=2,chardev=events,name=hugepfn.events
-device intel-iommu
-device pci-testdev,membar=2G,id=bar,addr=05.0
-kernel /k/bzImage
-initrd /c/initramfs.cpio
"""
COMMAND_LINE = (
    "console=ttyS0 oops=panic panic=-1 printk.devkmsg=on intel_iommu=on no_timer_check hugepfn.vfio=0000:00:05.0"
)


def lines(argv: list[str]) -> list[str]:
    """An option and its value on one line, as a person would write them."""
    found: list[str] = []
    for word in argv:
        takes_this = found and found[-1].startswith("-") and " " not in found[-1] and not word.startswith("-")
        if takes_this:
            found[-1] += f" {word}"
        else:
            found.append(word)
    return found


def test_the_whole_command_line() -> None:
    assert lines(qemu_argv(SPEC, DESCRIPTORS)) == [*GOLDEN.split("\n")[1:-1], f"-append {COMMAND_LINE}"]


def difference(spec: MachineSpec) -> tuple[list[str], list[str]]:
    """Return what a machine's command line lacks, and what it has in addition to the golden one."""
    before, after = lines(qemu_argv(SPEC, DESCRIPTORS)), lines(qemu_argv(spec, DESCRIPTORS))
    return [one for one in before if one not in after], [one for one in after if one not in before]


def test_kvm_splits_the_interrupt_controller() -> None:
    assert difference(replace(SPEC, accel=Accel.KVM)) == (
        ["-machine q35,memory-backend=ram", "-accel tcg"],
        ["-machine q35,memory-backend=ram,kernel-irqchip=split", "-accel kvm"],
    )


def test_size_and_cpu() -> None:
    gone, new = difference(replace(SPEC, smp=4, memory_mib=2048, cpu="qemu64,+pdpe1gb", bar_size="4G"))
    assert len(gone) == len(new)
    assert new == [
        "-cpu qemu64,+pdpe1gb",
        "-smp 4",
        "-m 2048M",
        "-object memory-backend-file,id=ram,size=2048M,mem-path=/proc/self/fd/10,share=on",
        "-device pci-testdev,membar=4G,id=bar,addr=05.0",
    ]


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        (
            Device.SHMEM,
            [
                "-object memory-backend-ram,id=shmem,size=2G,share=off",
                "-device ivshmem-plain,memdev=shmem,master=on,id=bar,addr=05.0",
            ],
        ),
        (Device.NVME, ["-device nvme,serial=hugepfn,cmb_size_mb=2048,legacy-cmb=on,id=bar,addr=05.0"]),
    ],
)
def test_another_device_takes_the_slot(device: Device, expected: list[str]) -> None:
    gone, new = difference(replace(SPEC, device=device))
    assert (gone, new) == (["-device pci-testdev,membar=2G,id=bar,addr=05.0"], expected)


def test_a_clone_waits_for_its_state_and_maps_its_ram_privately() -> None:
    original = qemu_argv(SPEC, DESCRIPTORS)
    clone = qemu_argv(SPEC, DESCRIPTORS, share=False, incoming=True)
    assert clone == [*(word.replace("share=on", "share=off") for word in original), "-incoming", "defer"]
    assert clone != [*original, "-incoming", "defer"]


def test_the_users_kernel_arguments_come_last() -> None:
    spec = replace(SPEC, append=("pti=on", "intel_iommu=off"))
    assert kernel_command_line(spec) == f"{COMMAND_LINE} pti=on intel_iommu=off"
    assert qemu_argv(spec, DESCRIPTORS)[-1] == kernel_command_line(spec), "the kernel command line is a single argument"


def test_another_qemu() -> None:
    assert qemu_argv(SPEC, DESCRIPTORS, "/opt/qemu")[0] == "/opt/qemu"


@pytest.mark.parametrize("memory_mib", [256, 65536])
@pytest.mark.parametrize("smp", [1, 16])
def test_the_limits_themselves_are_allowed(memory_mib: int, smp: int) -> None:
    argv = qemu_argv(replace(SPEC, memory_mib=memory_mib, smp=smp), DESCRIPTORS)
    assert argv[argv.index("-m") + 1] == f"{memory_mib}M"
    assert argv[argv.index("-smp") + 1] == str(smp)


def test_qemu_gets_a_descriptor_for_ram_and_for_each_channel() -> None:
    assert [one.name for one in dataclasses.fields(Descriptors)] == ["ram", *CHANNELS]
