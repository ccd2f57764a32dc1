"""What somebody wants of a machine, before it is known on which kernel and under which accelerator it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.guest.initramfs import build_initramfs
from harness.kernel import Kernel, KernelImage, default_kernel, unpacked
from harness.qemu.hostroot import choose_root, root_modules
from harness.qemu.spec import Accel, Device, MachineSpec, Root

#: QEMU 7.2's TCG now and then leaves a pointer in EFLAGS when an interrupt follows CMPXCHG16B, and the guest dies of a
#: double fault in kmalloc (docs/decisions.md). Without the instruction the kernel's allocator takes its other path.
_TCG_CPU = "max,cx16=off"
ACCELS = ("auto", "kvm", "tcg")
DEVICES = tuple(device.value for device in Device)
GUESTS = ("initramfs", "host")


@dataclass(frozen=True)
class Wanted:
    """The parameters of :class:`harness.machine.vm.VM`, which says what each means.

    :raises UsageError: there is no such accelerator, device or guest.
    """

    accel: str = "auto"
    smp: int = 1
    memory_mib: int = 1024
    cpu: str = "max"
    append: tuple[str, ...] = ()
    device: str = Device.TESTDEV.value
    ram_dir: Path | None = None
    boot_timeout_s: float | None = None
    clone: bool = True
    pvh: bool = False
    guest: str = "initramfs"

    def __post_init__(self) -> None:
        if self.accel not in ACCELS:
            raise UsageError(f"accel {self.accel!r}; valid values: {', '.join(ACCELS)}")
        if self.device not in DEVICES:
            raise UsageError(f"device {self.device!r}; valid values: {', '.join(DEVICES)}")
        if self.guest not in GUESTS:
            raise UsageError(f"guest {self.guest!r}; valid values: {', '.join(GUESTS)}")

    def spec(self, kernel: KernelImage, accel: Accel) -> MachineSpec:
        """The machine that it comes to."""
        vmlinux = unpacked(kernel) if self.pvh else None
        root = choose_root(kernel) if self.guest == "host" else Root.INITRAMFS
        return MachineSpec(
            kernel=vmlinux or kernel.image,
            initramfs=build_initramfs(kernel, root_modules(root)),
            accel=accel,
            smp=self.smp,
            memory_mib=self.memory_mib,
            cpu=_TCG_CPU if self.cpu == "max" and accel is Accel.TCG else self.cpu,
            append=self.append,
            device=Device(self.device),
            root=root,
            modules=kernel.modules_dir if self.guest == "host" else None,
        )


def kernel_image(asked: Kernel | KernelImage | str | None, say: Callable[[str], None]) -> KernelImage:
    """The kernel that was asked for, fetched if need be; None: the default one."""
    if isinstance(asked, KernelImage):
        return asked
    kernel = Kernel.parse(asked) if isinstance(asked, str) else asked or default_kernel()
    return kernel.resolve(say)
