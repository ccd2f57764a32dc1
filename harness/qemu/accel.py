"""Chooses the accelerator that runs the guest. KVM is used only after a test with guest code.

/dev/kvm can exist, open and create VMs, and still not run instructions correctly. So a small guest of our own
(guest_tests/lib/accel.S: real mode, protected mode, long mode with paging, CPUID) must report through a debug port
that it has run to its end, on the same machine and CPU model as the kernel, before a deadline. The result is stored
until the host reboots.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.errors import MachineryError, UsageError
from harness.events import Note, Say
from harness.guest.compiler import assemble_rom
from harness.host import cache
from harness.host.process import guarded
from harness.qemu.binary import QemuBinary
from harness.qemu.spec import Accel

_KVM = Path("/dev/kvm")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_DEADLINE_S = 10.0
_KIND = "accel"
#: QEMU's messages about temporary problems: another hypervisor uses the CPU (EBUSY of KVM_CREATE_VM), no memory.
_PASSING = re.compile(r"Device or resource busy|Cannot allocate memory|Resource temporarily unavailable")
#: isa-debug-exit ends QEMU with twice the value written, plus one; accel.S writes 42.
_PROVEN_STATUS = 42 * 2 + 1


@dataclass(frozen=True, slots=True)
class Proof:
    """Whether KVM runs guests on this host; if not, the reason."""

    works: bool
    reason: str
    lasting: bool = True  # the answer will be the same until the host reboots


def choose_accel(wanted: str, binary: QemuBinary, cpu: str) -> tuple[Accel, str]:
    """Choose ``tcg``, ``kvm`` if it works, or ``auto``: KVM if it works, otherwise TCG.

    :returns: the accelerator, and why ``auto`` is not KVM, for :func:`tell_why_tcg`; empty otherwise.

    :raises MachineryError: ``kvm`` was requested and does not work; gives the reason.
    :raises UsageError: the requested CPU is ``host``, which needs KVM.
    """
    if wanted == "tcg":
        _check_emulated(cpu, "--accel tcg")
        return Accel.TCG, ""
    proof = kvm_proof(binary, cpu)
    if proof.works:
        return Accel.KVM, ""
    if wanted == "kvm":
        raise MachineryError(f"--accel kvm: KVM does not work on this host: {proof.reason}; use --accel tcg")
    _check_emulated(cpu, f"KVM does not work on this host ({proof.reason})")
    return Accel.TCG, proof.reason


def tell_why_tcg(why: str, say: Say) -> None:
    """Tell the user why ``auto`` is not KVM, once until the host reboots. Not before an error with another cause.

    :param why: from :func:`choose_accel`.
    """
    if not why:
        return
    note = cache.root() / _KIND / f"{boot_id()}-told.json"
    told = (cache.read_note(note) or {}).get("reasons", [])
    if why in told:
        return
    say(Note(f"using TCG, because KVM does not work on this host: {why} (not repeated until the host reboots)"))
    with contextlib.suppress(MachineryError):  # whatever needs a cache that cannot be written reports it
        cache.write_note(note, {"reasons": [*told, why]})


def _check_emulated(cpu: str, why: str) -> None:
    if cpu.partition(",")[0] == "host":
        raise UsageError(f"--cpu host needs KVM, but {why}; use --cpu max")


def kvm_proof(binary: QemuBinary, cpu: str) -> Proof:
    """Whether KVM works, from the test that was run since the host booted; runs it now if there was none."""
    if not _KVM.exists():
        return Proof(False, "there is no /dev/kvm")
    if not os.access(_KVM, os.R_OK | os.W_OK):
        return Proof(False, "you may not open /dev/kvm; join the group kvm")
    note = _note(binary, cpu)
    known = cache.read_note(note)
    if known is not None and isinstance(known.get("works"), bool):
        return Proof(bool(known["works"]), str(known.get("reason", "")))
    proof = _prove(binary, cpu)
    if proof.lasting:
        cache.write_note(note, {"works": proof.works, "reason": proof.reason})
    return proof


def forget_proofs() -> None:
    """Run the test again next time, because the host was too busy, or because its KVM may work by now."""
    shutil.rmtree(cache.root() / _KIND, ignore_errors=True)


def remember_lie(binary: QemuBinary, cpu: str, reason: str) -> None:
    """KVM ran the probe, but not a kernel that TCG runs. Stop using it until the host reboots."""
    cache.write_note(_note(binary, cpu), {"works": False, "reason": reason})


def boot_id() -> str:
    """Return what differs between two boots of this host."""
    return _BOOT_ID.read_text().strip()


def _note(binary: QemuBinary, cpu: str) -> Path:
    # A digest, because a CPU model with all its features is too long for a file name.
    machine = hashlib.sha256("\0".join((binary.path, binary.version, cpu)).encode()).hexdigest()[:32]
    return cache.root() / _KIND / f"{boot_id()}-{machine}.json"


def _prove(binary: QemuBinary, cpu: str) -> Proof:
    argv = [
        binary.path,
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35,kernel-irqchip=split", "-accel", "kvm", "-cpu", cpu, "-m", "16M"),
        *("-device", "isa-debug-exit,iobase=0x501,iosize=0x01"),
        *("-bios", str(assemble_rom("accel"))),
    ]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            guarded(argv),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            status = process.wait(timeout=_DEADLINE_S)
        except subprocess.TimeoutExpired:
            return Proof(False, f"the test guest did not report within {_DEADLINE_S:g} s", lasting=False)
        finally:
            process.kill()
            process.wait()
        if status == _PROVEN_STATUS:
            return Proof(True, "")
        errors.seek(0)
        words = errors.read().decode("utf-8", "replace").strip().splitlines()
    reason = words[0] if words else f"QEMU ended with status {status} before the test guest reported"
    return Proof(False, reason, lasting=not any(_PASSING.search(line) for line in words))
