"""What this machine lacks, and the command that mends it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import HugepfnError
from harness.kernel.build import LIBELF, TOOLS, has_libelf
from harness.machine import find_qemu, kvm_proof
from harness.machine.hostroot import find_virtiofsd
from harness.machine.ram import ram_folder


@dataclass(frozen=True, slots=True)
class Need:
    """A command that something needs, and the Debian package that brings it."""

    command: str
    package: str
    why: str
    required: bool = True


NEEDS = (
    Need(os.environ.get("HUGEPFN_QEMU") or "qemu-system-x86_64", "qemu-system-x86", "boots the kernel"),
    Need("gcc", "gcc", "compiles the guest programs"),
    Need("strip", "binutils", "makes guest programs small"),
    Need("depmod", "kmod", "orders a kernel's modules"),
    Need("dpkg-deb", "dpkg", "unpacks Debian kernels"),
    Need("apt-get", "apt", "fetches Debian kernels"),
    Need("setpriv", "util-linux", "ends QEMU with its parent"),
    Need("busybox", "busybox-static", "a shell in the guest, for people", required=False),
    Need("dropbear", "dropbear-bin", "SSH into the guest", required=False),
)
_LIBC = Path("/usr/lib/x86_64-linux-gnu/libc.a")
_RAM_MIB = 1024


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at."""

    what: str
    fine: bool
    detail: str
    required: bool = True


def _which(command: str) -> str | None:
    # depmod is in sbin, which is not in every user's PATH
    return shutil.which(command) or shutil.which(command, path="/usr/sbin:/sbin")


def examine() -> tuple[list[Finding], list[str]]:
    """Everything looked at, and the Debian packages that are missing."""
    findings, packages = [], []
    for need in NEEDS:
        path = _which(need.command)
        findings.append(Finding(need.command, path is not None, path or f"missing: {need.why}", need.required))
        if path is None:
            packages.append(need.package)
    findings.append(
        Finding("static C library", _LIBC.exists(), str(_LIBC) if _LIBC.exists() else "missing: links guest programs")
    )
    if not _LIBC.exists():
        packages.append("libc6-dev")
    building, wanted = _building()
    findings += [building, _try("virtiofsd", lambda: find_virtiofsd().path, required=False)]
    packages = list(dict.fromkeys([*packages, *wanted]))
    if findings[0].fine:
        findings.append(_try("QEMU version", lambda: find_qemu().package))
        findings.append(_kvm())
    status = os.statvfs(ram_folder()) if ram_folder().exists() else None
    free_mib = status.f_bavail * status.f_frsize >> 20 if status else 0
    room = Finding(
        "room for guest RAM", free_mib >= _RAM_MIB, f"{free_mib} MiB free in {ram_folder()}, {_RAM_MIB} MiB per VM"
    )
    return [*findings, room], packages


def _building() -> tuple[Finding, list[str]]:
    """Whether kernels can be built here; stock kernels need none of it."""
    missing = [tool for tool in TOOLS if _which(tool.command) is None]
    missing += [] if has_libelf() else [LIBELF]
    detail = ", ".join(f"{tool.command} ({tool.why})" for tool in missing)
    words = f"missing: {detail}" if missing else "everything is here" + (", ccache too" if _which("ccache") else "")
    return Finding("to build kernels", not missing, words, required=False), [tool.package for tool in missing]


def _try(what: str, look: Callable[[], str], *, required: bool = True) -> Finding:
    try:
        return Finding(what, True, look(), required)
    except HugepfnError as error:
        return Finding(what, False, str(error), required)


def _kvm() -> Finding:
    try:
        proof = kvm_proof(find_qemu(), "max")
    except HugepfnError as error:
        return Finding("KVM", False, str(error), required=False)
    return Finding(
        "KVM", proof.works, "runs guest code" if proof.works else f"TCG is used: {proof.reason}", required=False
    )


def install_command(packages: list[str]) -> str:
    """The command that installs what is missing."""
    sudo = "" if os.geteuid() == 0 else "sudo "
    return f"{sudo}apt-get install --no-install-recommends {' '.join(packages)}"
