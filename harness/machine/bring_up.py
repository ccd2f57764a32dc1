"""Bring a machine up: by a boot, as a clone of a template, or as a kept machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BootError, HugepfnError, KernelError, QemuRefused, RestoreError
from harness.guest.agent import Agent
from harness.guest.channel import Channel
from harness.guest.kernel_log import SavedLog
from harness.kernel import KernelImage
from harness.machine.kept import Kept
from harness.machine.machine import Machine, Origin
from harness.machine.template import Template
from harness.observe.bars import bars_from_pci, bars_from_sysfs
from harness.printable import printable
from harness.qemu.binary import QemuBinary
from harness.qemu.migration import restore_state
from harness.qemu.process import Qemu
from harness.qemu.ram import PrivateRam, SharedRam
from harness.qemu.spec import BAR_BDF, BAR_SLOT, Accel, MachineSpec
from harness.qemu.speed import boot_cpu_s

_BOOT_TIMEOUT_S = {Accel.KVM: 60.0, Accel.TCG: 180.0}

#: How PID 1 begins a complaint (guest_tests/lib/init/complain.c). The panic that follows may push it out of the tail.
_INIT = "hugepfn init: "


@dataclass(frozen=True)
class Timing:
    """How long a boot may take, in seconds."""

    boot_s: float | None = None
    first_line_s: float | None = None  # until the kernel's first output; None: no such deadline


async def boot(
    spec: MachineSpec,
    binary: QemuBinary,
    kernel: KernelImage,
    ram_dir: Path | None,
    on_event: Callable[[bytes], None],
    started: Callable[[Qemu], None],
    timing: Timing,
) -> Machine:
    """Boot a machine.

    :param on_event: called with what arrives on the events channel.
    :param started: called with QEMU as soon as it exists, so that the caller can end it whatever happens next.
    :raises BootError: the kernel did not reach the agent.
    :raises MachineryError: the kernel's file was replaced meanwhile.
    """
    qemu = Qemu(spec, binary, SharedRam(spec.memory_mib, ram_dir))
    started(qemu)
    await qemu.start()
    agent = Agent(qemu)
    try:
        if timing.first_line_s is not None:
            await qemu.expect(qemu.log.first_line(), timing.first_line_s, "the kernel's first output")
        ready = await agent.ready(timing.boot_s or _BOOT_TIMEOUT_S[spec.accel])
        kernel.check_unchanged()
    except KernelError as error:
        kernel.check_unchanged()
        init = [line for line in qemu.log.text.splitlines() if line.startswith(_INIT)][:1]
        raise BootError(
            "\n".join([f"{kernel.spec} ({kernel.release}) does not boot: {error}", *init, qemu.log.tail()]),
            exit_status=qemu.exit_status,
            console_tail=qemu.log.tail(),
        ) from error
    qemu.boot_s = boot_cpu_s(qemu.pid)
    qemu.pump(agent.channel.events, on_event)
    bars = bars_from_pci(await qemu.execute("query-pci"), BAR_SLOT)
    if not bars:  # the device is in D3hot
        bars = bars_from_sysfs(printable(await agent.get(f"/sys/bus/pci/devices/{BAR_BDF}/resource")))
    return Machine(qemu, agent, ready, bars, Origin.BOOT)


async def clone(
    spec: MachineSpec,
    binary: QemuBinary,
    template: Template,
    on_event: Callable[[bytes], None],
    started: Callable[[Qemu], None],
) -> Machine:
    """Start a clone of a template, whose RAM file is mapped privately and does not change.

    :raises MachineryError: QEMU cannot restore it.
    """
    qemu = Qemu(spec, binary, PrivateRam(template.ram))
    qemu.boot_s = template.boot_s
    started(qemu)
    agent = await _restore(qemu, template.state, template.log, on_event, template.ready)
    return Machine(qemu, agent, template.ready, template.bars, Origin.CLONE)


async def revive(
    kept: Kept,
    binary: QemuBinary,
    ram_dir: Path | None,
    on_event: Callable[[bytes], None],
    started: Callable[[Qemu], None],
) -> Machine:
    """Restore a machine that was saved with its RAM.

    :raises MachineryError: QEMU cannot restore it.
    """
    qemu = Qemu(kept.spec, binary, SharedRam(kept.spec.memory_mib, ram_dir))
    qemu.boot_s = kept.boot_s
    started(qemu)
    agent = await _restore(qemu, kept.state, kept.log, on_event, kept.ready, kept.next_id)
    return Machine(qemu, agent, kept.ready, kept.bars, Origin.KEPT)


async def _restore(
    qemu: Qemu,
    state: Path,
    log: SavedLog,
    on_event: Callable[[bytes], None],
    ready: Mapping[str, str],
    first_id: int = 1,
) -> Agent:
    """Start QEMU with a saved state and let it run. Private RAM is read from its file."""
    qemu.log.restore(log)
    await qemu.start(incoming=True)
    try:
        await restore_state(qemu, state, with_ram=qemu.ram.share)
    except (HugepfnError, OSError) as error:
        ended_by_itself = qemu.exit_status is not None and qemu.exit_status >= 0
        refused = isinstance(error, QemuRefused | RestoreError | OSError)  # OSError: another hugepfn has removed it
        if not (refused or ended_by_itself):
            raise  # a QEMU that is stopped, killed or gets no CPU time says nothing about the saved state
        raise RestoreError(f"QEMU {qemu.binary.version} cannot restore {state.parent.name}: {error}") from error
    agent = Agent(qemu, first_id, Channel(ready["channel"]))
    qemu.log_from = qemu.log.mark()  # the log before this is the template's
    qemu.pump(agent.channel.events, on_event)
    await qemu.execute("cont")
    return agent
