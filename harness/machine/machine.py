"""A machine that runs: booted, or a clone of a template. The async half of :class:`harness.machine.vm.VM`."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import BootError, HugepfnError, KernelError, QemuRefused, RestoreError
from harness.kernel import KernelImage
from harness.machine.agent import Agent
from harness.machine.binary import find_qemu
from harness.machine.channel import Channel
from harness.machine.kept import Kept
from harness.machine.kernel_log import SavedLog
from harness.machine.migration import restore_state
from harness.machine.qemu import Qemu
from harness.machine.ram import PrivateRam, SharedRam
from harness.machine.spec import BAR_BDF, BAR_SLOT, Accel, MachineSpec
from harness.machine.template import Template
from harness.machine.witness import bars_from_pci, bars_from_sysfs
from harness.pagetable import Region
from harness.printable import printable

_BOOT_TIMEOUT_S = {Accel.KVM: 60.0, Accel.TCG: 180.0}

#: What PID 1 complains with (guest_tests/lib/init/complain.c); the panic that follows may push it out of the tail.
_INIT = "hugepfn init: "


class Origin(enum.Enum):
    """How a machine came to be."""

    BOOT = "boot"
    CLONE = "clone"
    KEPT = "kept"  # saved whole at a failure, and brought back


@dataclass(frozen=True)
class Machine:
    """QEMU, the agent in it, and what both said about the guest."""

    qemu: Qemu
    agent: Agent
    ready: Mapping[str, str]
    bars: tuple[Region, ...]
    origin: Origin


@dataclass(frozen=True)
class Timing:
    """How long a boot may take, in seconds."""

    boot_s: float | None = None
    first_line_s: float | None = None  # None: not looked at


async def boot(
    spec: MachineSpec,
    kernel: KernelImage,
    ram_dir: Path | None,
    on_event: Callable[[bytes], None],
    started: Callable[[Qemu], None],
    timing: Timing,
) -> Machine:
    """Boots.

    :param on_event: gets what comes through the events channel.
    :param started: gets the QEMU as soon as there is one, so that somebody can end it whatever happens next.
    :raises BootError: the kernel did not reach the agent.
    """
    qemu = Qemu(spec, find_qemu(), SharedRam(spec.memory_mib, ram_dir))
    started(qemu)
    await qemu.start()
    agent = Agent(qemu)
    try:
        if timing.first_line_s is not None:
            await qemu.expect(qemu.log.first_line(), timing.first_line_s, "the kernel's first words")
        ready = await agent.ready(timing.boot_s or _BOOT_TIMEOUT_S[spec.accel])
    except KernelError as error:
        init = [line for line in qemu.log.text.splitlines() if line.startswith(_INIT)][:1]
        raise BootError(
            "\n".join([f"{kernel.spec} ({kernel.release}) does not boot: {error}", *init, qemu.log.tail()]),
            argv=qemu.argv,
            exit_status=qemu.exit_status,
            console_tail=qemu.log.tail(),
        ) from error
    qemu.pump(agent.channel.events, on_event)
    bars = bars_from_pci(await qemu.execute("query-pci"), BAR_SLOT)
    if not bars:  # it sleeps
        bars = bars_from_sysfs(printable(await agent.get(f"/sys/bus/pci/devices/{BAR_BDF}/resource")))
    return Machine(qemu, agent, ready, bars, Origin.BOOT)


async def clone(
    spec: MachineSpec, template: Template, on_event: Callable[[bytes], None], started: Callable[[Qemu], None]
) -> Machine:
    """Brings a template back to life; its RAM file is mapped privately and stays as it is.

    :raises MachineryError: QEMU does not take it.
    """
    qemu = Qemu(spec, find_qemu(), PrivateRam(template.ram))
    started(qemu)
    agent = await _restore(qemu, template.state, template.log, on_event, template.ready)
    return Machine(qemu, agent, template.ready, template.bars, Origin.CLONE)


async def revive(
    kept: Kept, ram_dir: Path | None, on_event: Callable[[bytes], None], started: Callable[[Qemu], None]
) -> Machine:
    """Brings back a machine that was saved whole.

    :raises MachineryError: QEMU does not take it.
    """
    qemu = Qemu(kept.spec, find_qemu(), SharedRam(kept.spec.memory_mib, ram_dir))
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
    """Starts QEMU with a saved state and lets it run. RAM that is private to it comes from its file."""
    qemu.log.restore(log)
    await qemu.start(incoming=True)
    try:
        await restore_state(qemu, state, with_ram=qemu.ram.share)
    except (HugepfnError, OSError) as error:
        ended_by_itself = qemu.exit_status is not None and qemu.exit_status >= 0
        refused = isinstance(error, QemuRefused | RestoreError | OSError)  # OSError: another hugepfn has pruned it
        if not (refused or ended_by_itself):
            raise  # a QEMU that is stopped, killed or gets no CPU says nothing about what was saved
        raise RestoreError(f"QEMU {qemu.binary.version} does not restore {state.parent.name}: {error}") from error
    agent = Agent(qemu, first_id, Channel(ready["channel"]))
    qemu.log_from = qemu.log.mark()  # what the template's life had to say is over
    qemu.pump(agent.channel.events, on_event)
    await qemu.execute("cont")
    return agent
