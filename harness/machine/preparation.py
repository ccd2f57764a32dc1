"""From a configuration to a machine on this host: its kernel, whether any machine can run, and the machine's spec."""

from __future__ import annotations

from pathlib import Path

from harness.config import MachineConfig
from harness.events import Say
from harness.guest.initramfs import build_initramfs
from harness.kernel import Kernel, KernelImage, default_kernel, unpacked, why_missing
from harness.qemu.accel import choose_accel
from harness.qemu.binary import check_cpu, find_qemu
from harness.qemu.hostroot import choose_root, root_modules
from harness.qemu.ram import find_room
from harness.qemu.spec import Accel, Device, MachineSpec, Root

#: QEMU 7.2's TCG sometimes leaves a pointer in EFLAGS when an interrupt follows CMPXCHG16B, and the guest dies of a
#: double fault in kmalloc (docs/decisions/machines.md). Without the instruction, the kernel's allocator takes its other
#: path.
_TCG_CPU = "max,cx16=off"
#: What TCG needs for KVM in the guest: it emulates AMD's SVM, with nested paging, but only if it is asked to.
_TCG_SVM = ",svm=on"
_CPUINFO = Path("/proc/cpuinfo")


def kernel_of(config: MachineConfig) -> Kernel:
    """Return the requested kernel, or the default one.

    :raises UsageError: the spec does not name a kernel.
    """
    return Kernel.parse(config.kernel, config.modules) if config.kernel is not None else default_kernel()


def resolve(config: MachineConfig, say: Say) -> KernelImage:
    """Get the kernel onto this host."""
    return kernel_of(config).resolve(say)


def check_guest(config: MachineConfig, kernel: KernelImage) -> None:
    """Check that this kernel and this host can have the requested guest.

    :raises UsageError: the kernel cannot; names what its configuration lacks.
    :raises PremiseNotMet: the kernel was built without KVM, which was requested.
    :raises MachineryError: this host cannot.
    """
    if config.guest == "host":
        choose_root(kernel)
    if config.kvm and (reason := why_missing(kernel, "kvm")) is not None:
        raise reason


def _kvm_module(accel: Accel) -> str:
    """Return the module of the guest's kernel that runs KVM's guests on the CPU that the guest sees."""
    if accel is Accel.TCG:
        return "kvm_amd"
    flags = next((line for line in _CPUINFO.read_text().splitlines() if line.startswith("flags")), "")
    return "kvm_intel" if "vmx" in flags.split() else "kvm_amd"


def _cpu(config: MachineConfig, accel: Accel) -> str:
    if config.cpu != "max" or accel is not Accel.TCG:
        return config.cpu
    return _TCG_CPU + (_TCG_SVM if config.kvm else "")


def preflight(config: MachineConfig, say: Say) -> str:
    """Check what every machine needs before the first one is built, so that there is one error instead of one per test.

    :returns: why KVM is not used, for :func:`harness.qemu.accel.tell_why_tcg`.
    :raises MachineryError: QEMU, the accelerator or room for RAM is missing.
    :raises UsageError: QEMU does not have the requested CPU model.
    """
    binary = find_qemu(config.qemu)
    if config.cpu not in ("max", "host"):
        check_cpu(binary, config.cpu)
    _, why_tcg = choose_accel(config.accel, binary, config.cpu)
    find_room(config.memory_mib, config.ram_dir, say)
    return why_tcg


def machine_spec(config: MachineConfig, kernel: KernelImage, accel: Accel) -> MachineSpec:
    """Return the spec of the machine that a configuration describes."""
    vmlinux = unpacked(kernel) if config.pvh else None
    root = choose_root(kernel) if config.guest == "host" else Root.INITRAMFS
    modules = (*root_modules(root), *([_kvm_module(accel)] if config.kvm else []), *config.load)
    return MachineSpec(
        kernel=vmlinux or kernel.image,
        initramfs=build_initramfs(kernel, modules),
        accel=accel,
        smp=config.smp,
        memory_mib=config.memory_mib,
        cpu=_cpu(config, accel),
        append=config.append,
        device=Device(config.device),
        root=root,
        modules=kernel.modules_dir if config.guest == "host" else None,
        kvm=config.kvm,
        load=config.load,
    )
