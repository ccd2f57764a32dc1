"""The specification of a machine, and the QEMU command line for it. Pure."""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

#: The PCI address of the device under test, for vfio-pci in the guest.
BAR_SLOT = 5
BAR_BDF = f"0000:00:{BAR_SLOT:02x}.0"


class Accel(enum.Enum):
    """What executes the guest's instructions."""

    KVM = "kvm"
    TCG = "tcg"


class Device(enum.Enum):
    """The device under test. Scenarios map its BAR 2."""

    TESTDEV = "pci-testdev"  # BAR 2 has nothing behind it (it reads 0) and costs nothing; BAR 0 is a page of registers
    SHMEM = "ivshmem-plain"  # has RAM behind BAR 2, as large as pci-testdev's, which it replaces (bar_bits.py)
    NVME = "nvme"  # BAR 2 is its memory buffer; it has function-level reset and D3hot; QEMU cannot save it

    @property
    def can_be_saved(self) -> bool:
        """Whether QEMU can save a machine with this device (hw/nvme/ctrl.c, nvme_vmstate.unmigratable)."""
        return self is not Device.NVME


class Root(enum.Enum):
    """The root file system of the guest's programs. guest_tests/lib/init/mounts.c uses the same values."""

    INITRAMFS = "initramfs"
    HOST_9P = "9p"  # the host's, copy on write, served by QEMU itself
    HOST_VIRTIOFS = "virtiofs"  # the same, served by a virtiofsd

    @property
    def can_be_saved(self) -> bool:
        """Whether QEMU can save a machine that mounts it (hw/9pfs/9p.c v9fs_attach(), hw/virtio/vhost-user-fs.c)."""
        return self is Root.INITRAMFS


@dataclass(frozen=True)
class MachineSpec:
    """A machine before it runs. Everything here changes what the guest sees."""

    kernel: Path
    initramfs: Path
    accel: Accel = Accel.TCG
    smp: int = 1
    memory_mib: int = 1024  # at 512 MiB the kernel disables transparent huge pages (mm/huge_memory.c, hugepage_init())
    cpu: str = "max"  # under TCG: 1G pages, 5-level tables, PTI-able
    append: tuple[str, ...] = ()  # the user's words for the kernel command line; they are last, so they take precedence
    device: Device = Device.TESTDEV
    bar_size: str = "2G"  # of BAR 2; some scenarios map two leaves of 1G
    root: Root = Root.INITRAMFS
    modules: Path | None = None  # the kernel's, on the host's root: for modprobe
    kvm: bool = False  # KVM's modules are loaded in the guest
    load: tuple[str, ...] = ()  # the names of further modules in the initramfs, which are loaded at boot

    @property
    def why_not_saved(self) -> str:
        """Why QEMU cannot save this machine, which can then be neither cloned nor kept; empty if QEMU can."""
        if not self.device.can_be_saved:
            return f"QEMU cannot save a machine with {self.device.value}"
        return "" if self.root.can_be_saved else "QEMU cannot save a machine that has the host's root mounted"


@dataclass(frozen=True)
class Descriptors:
    """The file descriptors that QEMU inherits. Nothing of a machine has a name in the file system."""

    ram: int
    qmp: int
    console: int
    agent: int
    events: int
    agent_uart: int
    events_uart: int
    shell: int


def kernel_command_line(spec: MachineSpec) -> str:
    """The words of the kernel command line. An oops ends the machine at once, and with it every wait."""
    words = [
        "console=ttyS0",
        "oops=panic",
        "panic=-1",
        "printk.devkmsg=on",  # logs every checkpoint, however fast they follow each other
        "intel_iommu=on",
        # When the kernel tests its timer, it counts TSC cycles, which also pass while the guest does not run. On a busy
        # host it then panics (arch/x86/kernel/apic/io_apic.c, check_timer()). Under KVM it skips the test by itself.
        "no_timer_check",
        f"hugepfn.vfio={BAR_BDF}",
        *([f"hugepfn.root={spec.root.value}"] if spec.root is not Root.INITRAMFS else []),
        *([f"hugepfn.modules={spec.modules}"] if spec.modules is not None else []),
        *spec.append,
    ]
    return " ".join(words)


def _platform_args(spec: MachineSpec, descriptors: Descriptors, share: bool) -> list[str]:
    # An emulated IOMMU needs the interrupt controller split between KVM and QEMU (docs/system/i386/intel-iommu).
    irqchip = ",kernel-irqchip=split" if spec.accel is Accel.KVM else ""
    ram = f"memory-backend-file,id=ram,size={spec.memory_mib}M,mem-path=/proc/self/fd/{descriptors.ram}"
    ram += f",share={'on' if share else 'off'}"
    return [
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", f"q35,memory-backend=ram{irqchip}"),
        *("-accel", spec.accel.value),
        *("-cpu", spec.cpu),
        *("-smp", str(spec.smp)),
        *("-m", f"{spec.memory_mib}M"),
        *("-object", ram),
    ]


def _channel_args(descriptors: Descriptors) -> list[str]:
    """Agent and events twice: the guest uses virtio-serial if it can, otherwise UARTs (init/channels.c).

    With ioeventfd, QEMU would make an eventfd for each queue at every ``cont`` and close it at every ``stop``
    (hw/virtio/virtio-bus.c, virtio_bus_set_host_notifier()); 31 ports have 64 queues.
    """

    def chardev(name: str, fd: int) -> list[str]:
        return ["-chardev", f"socket,id={name},fd={fd}"]

    args = [*chardev("qmp", descriptors.qmp), "-qmp", "chardev:qmp"]  # -mon: deprecated in 11.1
    args += [*chardev("console", descriptors.console), "-device", "isa-serial,chardev=console,index=0"]
    args += [*chardev("shell", descriptors.shell), "-device", "isa-serial,chardev=shell,index=3"]
    args += [*chardev("agent", descriptors.agent), *chardev("events", descriptors.events)]
    args += [*chardev("agent-uart", descriptors.agent_uart), "-device", "isa-serial,chardev=agent-uart,index=1"]
    args += [*chardev("events-uart", descriptors.events_uart), "-device", "isa-serial,chardev=events-uart,index=2"]
    return [
        *args,
        *("-device", "virtio-serial-pci,id=serial,addr=04.0,max_ports=3,ioeventfd=off"),
        *("-device", "virtserialport,bus=serial.0,nr=1,chardev=agent,name=hugepfn.agent"),
        *("-device", "virtserialport,bus=serial.0,nr=2,chardev=events,name=hugepfn.events"),
    ]


def _device_args(spec: MachineSpec) -> list[str]:
    place = f"id=bar,addr={BAR_SLOT:02x}.0"
    match spec.device:
        case Device.TESTDEV:
            args = ["-device", f"pci-testdev,membar={spec.bar_size},{place}"]
        case Device.SHMEM:
            # Private to QEMU, so it is saved with the machine's state, in which a gigabyte of zeroes takes 2 MB.
            args = ["-object", f"memory-backend-ram,id=shmem,size={spec.bar_size},share=off"]
            args += ["-device", f"ivshmem-plain,memdev=shmem,master=on,{place}"]
        case Device.NVME:
            args = ["-device", f"nvme,serial=hugepfn,cmb_size_mb=2048,legacy-cmb=on,{place}"]
    return ["-device", "intel-iommu", *args]


def qemu_argv(
    spec: MachineSpec,
    descriptors: Descriptors,
    qemu: str = "qemu-system-x86_64",
    *,
    root: Sequence[str] = (),
    sandbox: Sequence[str] = (),
    share: bool = True,
    incoming: bool = False,
) -> list[str]:
    """The complete command line.

    :param root: what serves the guest's root, see :func:`harness.qemu.hostroot.root_args`.
    :param sandbox: see :func:`harness.qemu.sandbox.sandbox_args`.
    :param share: the guest writes to the RAM file; otherwise its writes are private to QEMU.
    :param incoming: wait for a saved machine's state instead of booting.
    """
    return [
        qemu,
        *sandbox,
        *_platform_args(spec, descriptors, share),
        *_channel_args(descriptors),
        *_device_args(spec),
        *root,
        *("-kernel", str(spec.kernel), "-initrd", str(spec.initramfs)),
        *("-append", kernel_command_line(spec)),
        *(("-incoming", "defer") if incoming else ()),
    ]


def machine_words(spec: MachineSpec) -> str:
    """Return QEMU's command line without its descriptors. A saved state fits only the machine that it describes."""
    return " ".join(qemu_argv(spec, Descriptors(*range(len(fields(Descriptors))))))
