"""What the user asked for, in one value, from ``hugepfn run``'s options or pytest's."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.kernel import Kernel, KernelImage
from harness.machine.vm import VM
from harness.qemu.accel import choose_accel
from harness.qemu.binary import check_cpu, find_qemu
from harness.qemu.hostroot import choose_root
from harness.qemu.ram import find_room
from harness.qemu.spec import Device


@dataclass(frozen=True)
class Settings:
    """One kernel and one machine; the names are those of :class:`harness.machine.VM`."""

    kernel: str = "debian"
    modules: Path | None = None
    accel: str = "auto"
    smp: int = 1
    memory_mib: int = 1024
    cpu: str = "max"
    append: tuple[str, ...] = field(default=())
    device: str = Device.TESTDEV.value
    ram_dir: Path | None = None
    boot_timeout_s: float | None = None
    clone: bool = True
    pvh: bool = False
    guest: str = "initramfs"

    @classmethod
    def from_options(cls, options: Mapping[str, Any]) -> Settings:
        """What the options of a command mean (harness/commands/options.py)."""
        return cls(
            kernel=options["kernel"],
            modules=options["modules"],
            accel=options["accel"],
            smp=options["smp"],
            memory_mib=options["memory"],
            cpu=options["cpu"],
            append=tuple(options["append"].split()),
            device=options["device"],
            ram_dir=options["ram_dir"],
            boot_timeout_s=options["boot_timeout"],
            clone=not options["no_clone"],
            pvh=options["pvh"],
            guest=options["guest"],
        )

    def resolve(self, say: Callable[[str], None]) -> KernelImage:
        """Gets the kernel onto this machine."""
        return Kernel.parse(self.kernel, self.modules).resolve(say)

    def check_guest(self, kernel: KernelImage) -> None:
        """Whether this kernel can have the guest that is asked for.

        :raises UsageError: it cannot; names what its configuration lacks.
        :raises MachineryError: this host cannot.
        """
        if self.guest == "host":
            choose_root(kernel)

    def with_wishes(self, wishes: Mapping[str, Any]) -> Settings:
        """These settings, with at least what a test needs of its machine.

        :param wishes: ``smp`` (at least so many vCPUs), ``append`` (further words for the kernel command line),
            ``clone`` (False: boot one of its own), ``device`` (the one under test), ``guest`` (what it has for /).
        :raises UsageError: something else is wished for.
        """
        if unknown := sorted(wishes.keys() - {"smp", "append", "clone", "device", "guest"}):
            raise UsageError(f"machine({unknown[0]}=...): a test may wish for smp, append, clone, device and guest")
        return replace(
            self,
            smp=max(self.smp, wishes.get("smp", 1)),
            append=(*self.append, *wishes.get("append", ())),
            clone=self.clone and wishes.get("clone", True),
            device=wishes.get("device", self.device),
            guest=wishes.get("guest", self.guest),
        )

    def preflight(self, say: Callable[[str], None]) -> None:
        """Looks at what every machine needs, before the first is built: one error instead of one a test.

        :raises MachineryError: QEMU, the accelerator or room for RAM is missing.
        :raises UsageError: QEMU has no such CPU.
        """
        if self.cpu not in ("max", "host"):
            check_cpu(find_qemu(), self.cpu)
        choose_accel(self.accel, find_qemu(), self.cpu, say)
        find_room(self.memory_mib, self.ram_dir, say)

    def vm(self, kernel: KernelImage, search: Sequence[Path], say: Callable[[str], None]) -> VM:
        """A machine for it, not yet started."""
        return VM(
            kernel,
            accel=self.accel,
            smp=self.smp,
            memory_mib=self.memory_mib,
            cpu=self.cpu,
            append=self.append,
            device=self.device,
            search=search,
            ram_dir=self.ram_dir,
            boot_timeout_s=self.boot_timeout_s,
            say=say,
            clone=self.clone,
            pvh=self.pvh,
            guest=self.guest,
        )
