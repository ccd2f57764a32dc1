"""Checks of the host itself, which need no machine."""

from __future__ import annotations

import enum
import os
import platform
import resource
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from harness.errors import MachineryError
from harness.events import Sparing
from harness.host import cache
from harness.host.process import run
from harness.qemu.accel import Proof, kvm_proof
from harness.qemu.binary import QemuBinary
from harness.qemu.ram import find_room, ram_folder

MOUNTS = Path("/proc/self/mountinfo")
PTRACE_SCOPE = Path("/proc/sys/kernel/yama/ptrace_scope")
#: The file systems on which the whole suite was run, for the cache and for RAM (make compat).
TRIED = frozenset({"ext4", "xfs", "btrfs", "overlay", "tmpfs"})
_QEMU_TIMEOUT_S = 30.0
_MACHINE_MIB = 1024
_CACHE_MIB = 2048  # enough for a kernel with its modules and some templates of 120 MB
_FILES_MIN = 256
_CAP_SYS_PTRACE = 19


class State(enum.Enum):
    """The result of a check; the value is what the page shows."""

    OK = "ok"
    NOTE = "note"  # it works, but you should know about it
    SKIPPED = "skip"
    FAILED = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the page."""

    what: str  # what was checked
    state: State
    found: str
    advice: str = ""  # what to do about it


@dataclass(frozen=True)
class Space:
    """The file system of a folder."""

    kind: str  # its type in /proc/self/mountinfo, "ext4"
    free_mib: int


def host_findings(qemu: QemuBinary) -> Iterator[Finding]:
    """Yield all findings that need no machine."""
    yield of_versions(qemu)
    yield of_accelerators(_accelerators(qemu.path), kvm_proof(qemu, "max"))
    yield of_space("file system of the cache", space(cache.root()), _CACHE_MIB, "HUGEPFN_CACHE_DIR")
    yield of_ram()
    yield of_ptrace(PTRACE_SCOPE.read_text().strip() if PTRACE_SCOPE.exists() else None, has_capability=_may_trace())
    yield of_limits({name: resource.getrlimit(getattr(resource, name))[0] for name in _LIMITS})


def of_versions(qemu: QemuBinary) -> Finding:
    """Report the versions of the programs involved."""
    words = [f"hugepfn {version('hugepfn')}", f"Python {platform.python_version()}", qemu.package]
    return Finding("versions", State.OK, ", ".join([*words, f"host Linux {platform.release()}"]))


def _accelerators(qemu: str) -> str:
    return run([qemu, "-accel", "help"], timeout_s=_QEMU_TIMEOUT_S, check=False).stdout.decode()


def of_accelerators(listed: str, proof: Proof) -> Finding:
    """Check whether KVM runs guests, and whether QEMU has TCG.

    :param listed: the output of ``qemu -accel help``: a heading, and one name per line.
    """
    names = [line.strip() for line in listed.splitlines()[1:] if line.strip()]
    has = f"QEMU has {', '.join(names) or 'none'}"
    if proof.works:
        return Finding("accelerators", State.OK, f"{has}; KVM runs guest code")
    if "tcg" not in names:
        return Finding("accelerators", State.FAILED, f"{has}, and {proof.reason}", "install a QEMU with TCG")
    return Finding(
        "accelerators", State.NOTE, f"{has}; TCG is used, because KVM does not work on this host: {proof.reason}"
    )


def space(folder: Path) -> Space:
    """Return the file system of a folder, which need not exist."""
    there = folder.resolve()
    while not there.exists():
        there = there.parent
    status = os.statvfs(there)
    return Space(kind_of_mount(there, MOUNTS.read_text()), status.f_bavail * status.f_frsize >> 20)


def kind_of_mount(path: Path, mounts: str) -> str:
    """Return the type of the file system whose mount point is nearest above a path; "unknown" if none is listed.

    :param mounts: /proc/PID/mountinfo (Documentation/filesystems/proc.rst, 3.5): the mount point is the fifth word, the
        type the first one after the dash.
    """
    found, depth = "unknown", -1
    for line in mounts.splitlines():
        before, _, after = line.partition(" - ")
        point = Path(before.split()[4].replace("\\040", " "))
        if path.is_relative_to(point) and len(point.parts) >= depth:
            found, depth = after.split()[0], len(point.parts)
    return found


def of_space(what: str, seen: Space, needed_mib: int, variable: str) -> Finding:
    """Check that a folder has enough space, and that its file system was tested."""
    found = f"{seen.kind}, {seen.free_mib} MiB free"
    if seen.free_mib < needed_mib:
        return Finding(
            what,
            State.FAILED,
            f"{found}; expected at least {needed_mib} MiB",
            f"free some, or choose another folder with {variable}",
        )
    if seen.kind not in TRIED:
        advice = f"if a check below fails, choose a folder on one of {', '.join(sorted(TRIED))} with {variable}"
        return Finding(what, State.NOTE, f"{found}; hugepfn was not tested on this file system", advice)
    return Finding(what, State.OK, found)


def of_ram() -> Finding:
    """Check the folder for guest RAM, which need not be /dev/shm."""
    elsewhere: list[str] = []
    try:
        folder = find_room(_MACHINE_MIB, say=Sparing(elsewhere.append))
    except MachineryError:
        folder = ram_folder()
    found = of_space("file system of guest RAM", space(folder), _MACHINE_MIB, "HUGEPFN_RAM_DIR or --ram-dir")
    return replace(found, state=State.NOTE, found=f"{found.found}; {elsewhere[0]}") if elsewhere else found


def _may_trace() -> bool:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff:"))
    return bool(int(line.split()[1], 16) >> _CAP_SYS_PTRACE & 1)


def of_ptrace(scope: str | None, *, has_capability: bool) -> Finding:
    """Check that a clone's RAM, which is private to its QEMU, can be read through /proc/PID/mem.

    Documentation/admin-guide/LSM/Yama.rst: 0 and 1 allow a parent to trace its children, 2 requires CAP_SYS_PTRACE, and
    3 allows nobody.
    """
    what, found = "ptrace scope", f"kernel.yama.ptrace_scope is {scope}"
    if scope is None:
        return Finding(what, State.OK, "the host's kernel has no Yama: a parent may read its children's memory")
    if scope in ("0", "1") or (scope == "2" and has_capability):
        return Finding(what, State.OK, found)
    advice = "use --no-clone, with which the RAM is shared"
    if scope == "2":
        advice += ", or sysctl kernel.yama.ptrace_scope=1"
    return Finding(what, State.FAILED, f"{found}: a clone's memory cannot be read", advice)


#: The minimum of each limit. MEMLOCK is only shown: no guest memory is locked on the host.
_LIMITS = {"RLIMIT_NOFILE": _FILES_MIN, "RLIMIT_FSIZE": _MACHINE_MIB << 20, "RLIMIT_AS": 4 << 30, "RLIMIT_MEMLOCK": 0}


def of_limits(soft: dict[str, int]) -> Finding:
    """Check that the limits of this process leave room for a machine.

    :param soft: limits by name, each in its own unit; RLIM_INFINITY for none.
    """
    said = ", ".join(
        f"{name.removeprefix('RLIMIT_')} {'unlimited' if value == resource.RLIM_INFINITY else value}"
        for name, value in soft.items()
    )
    low = [name for name, value in soft.items() if value != resource.RLIM_INFINITY and value < _LIMITS[name]]
    if low:
        needed = ", ".join(f"{name.removeprefix('RLIMIT_')} of at least {_LIMITS[name]}" for name in low)
        return Finding("limits", State.FAILED, said, f"a machine needs {needed}: raise it with prlimit(1) or ulimit")
    return Finding("limits", State.OK, said)
