"""Whether the CPU sets A and D in entries of the BAR, and what to do if it does not.

TCG walks the guest's tables at every access that is not in its TLB, and sets both (QEMU, target/i386/tcg/sysemu/
excp_helper.c mmu_translate()). Under KVM a BAR without memory behind it is never mapped in the second-level tables:
each access ends in an exit, and KVM emulates the instruction. It may take the guest-physical address from the exit,
without a walk of the guest's tables (arch/x86/kvm/x86.c emulator_read_write_onepage(), gpa_available); then A and D
are set only if the CPU did so before the exit, which no manual promises. RAM behind the BAR leaves all to the CPU.
"""

from __future__ import annotations

from harness.errors import CannotKnow, ClaimFailed, GuestProgramError, MachineryError, PremiseNotMet
from harness.observe.probed import ProbedMachine
from harness.pagetable import NO_BITS, Bits, Leaf
from harness.qemu.spec import Accel, Device

#: A CPU may set A in an entry that no access needed: SDM volume 3, 4.8, and APM volume 2, 5.4.2. TCG never does.
EARLY = {Accel.KVM: Bits.A, Accel.TCG: NO_BITS}
_STEPS = ("copied", "read", "written")
_TIMEOUT_S = 30.0


def probe_bar(vm: ProbedMachine) -> Bits | None:
    """Read and write one page of the BAR (bar_bits.c), and check whether the CPU sets A, and then D.

    :returns: those of A and D that it does not set as it would for RAM; None if that is not known: there is no BAR, or
        the kernel makes no sound entry for it, which the scenarios will report.
    :raises MachineryError: the walk and pagemap disagree, or the agent does not answer.
    """
    try:
        with vm.launch("bar_bits", (), _TIMEOUT_S) as run:
            copied, read, written = (run.until(step)["child"].leaf("bar") for step in _STEPS)
    except (PremiseNotMet, ClaimFailed, GuestProgramError):
        return None
    return misses(copied, read, written)


def misses(copied: Leaf, read: Leaf, written: Leaf) -> Bits:
    """Return which of A and D the CPU does not set as it should: A by a read, D by a write and by nothing else.

    Changes by the kernel do not count: only a bit that an access should have set, and a D that came with a read.
    """
    found = NO_BITS
    if not read.young or not written.young:
        found |= Bits.A
    if not written.dirty or (read.dirty and not copied.dirty):
        found |= Bits.D
    return found


def stand_in(device: Device, missed: Bits) -> Device:
    """Return the device to use instead of one for whose BAR the CPU does not set all bits.

    :param missed: the result of :func:`misses`.
    :raises CannotKnow: no other device has what this one has.
    :raises MachineryError: it already has RAM behind its BAR, so no kernel can be tested here.
    """
    said = what_is_missed(device, missed)
    if device is Device.NVME:
        raise CannotKnow(f"cannot know: {said}, and only nvme has reset and power states; use --accel tcg")
    if device is Device.SHMEM:
        raise MachineryError(f"{said}, although RAM is behind it, so no entry can be trusted; use --accel tcg")
    return Device.SHMEM


def what_is_missed(device: Device, missed: Bits) -> str:
    """Return the words for messages."""
    names = " and ".join(missed.names())
    return f"under KVM on this host, an access does not set {names} in an entry of {device.value}'s BAR"
