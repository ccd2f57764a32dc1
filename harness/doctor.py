"""What this host lacks, what does not work without it, and the command that installs it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from harness.archive.suites import PREFIX
from harness.config import MachineConfig
from harness.errors import HugepfnError
from harness.events import Sparing
from harness.host import packages
from harness.host.packages import Need, Part
from harness.kernel import default_kernel
from harness.kernel.build import missing_tools
from harness.qemu.accel import kvm_proof
from harness.qemu.binary import find_qemu
from harness.qemu.hostroot import find_virtiofsd
from harness.qemu.ram import find_room

_RAM_MIB = 1024


@dataclass(frozen=True, slots=True)
class Examined:
    """One thing that was examined."""

    what: str
    fine: bool
    detail: str
    required: bool = True


def examine() -> tuple[list[Examined], list[str]]:
    """Return everything that was examined, and the packages that are missing, by Debian's names."""
    wanted = [_qemu(need) for need in packages.needs(Part.RUN, *_mirror(), Part.GUEST)]
    missing = [need for need in wanted if _found(need) is None]
    findings = [_examined(need, _found(need)) for need in wanted]
    building, tools = _building()
    findings += [_default_kernel(), building, _try("virtiofsd", lambda: find_virtiofsd().path, required=False)]
    if findings[0].fine:
        findings.append(_try("QEMU version", lambda: find_qemu(_asked()).package))
        findings.append(_kvm())
    return [*findings, _room()], list(dict.fromkeys(need.package for need in (*missing, *tools)))


def _asked() -> str | None:
    return MachineConfig.read({"qemu": None}).qemu


def _qemu(need: Need) -> Need:
    chosen = _asked()
    return replace(need, name=chosen) if chosen and need.name == "qemu-system-x86_64" else need


def _found(need: Need) -> str | None:
    if need.name.startswith(PREFIX):  # HUGEPFN_QEMU=debian:...; the line about its version says whether it exists
        return "fetched from the Debian mirror"
    return packages.find(need)


def _mirror() -> tuple[Part, ...]:
    """Debian's kernels come through apt; on other distributions they are not needed."""
    return (Part.MIRROR,) if packages.manager() is packages.Manager.APT else ()


def _examined(need: Need, path: str | None) -> Examined:
    return Examined(need.name, path is not None, path or f"missing; it {need.why}", need.part is not Part.GUEST)


def _default_kernel() -> Examined:
    """Return what runs without ``--kernel``. The running kernel is examined now, the mirror only when it is used."""
    kernel = default_kernel()
    if kernel.spec != "host":
        return Examined("default kernel", True, f"{kernel.spec}, the newest of the Debian mirror")
    return _try("default kernel", lambda: f"host, {kernel.resolve().image}", required=False)


def _building() -> tuple[Examined, tuple[Need, ...]]:
    """Return whether kernels can be built on this host, which stock kernels do not need."""
    missing = missing_tools()
    ccache = all(packages.find(need) for need in packages.needs(Part.FASTER))
    llvm = not missing_tools(packages.needs(Part.LLVM))
    extra = ", ccache too" * ccache + ", and with --llvm" * llvm
    detail = ", ".join(f"{need.name} ({need.why})" for need in missing)
    words = f"missing: {detail}" if missing else f"everything is installed{extra}"
    return Examined("to build kernels", not missing, words, required=False), tuple(missing)


def _try(what: str, look: Callable[[], str], *, required: bool = True) -> Examined:
    try:
        return Examined(what, True, look(), required)
    except HugepfnError as error:
        return Examined(what, False, str(error), required)


def _kvm() -> Examined:
    try:
        proof = kvm_proof(find_qemu(_asked()), "max")
    except HugepfnError as error:
        return Examined("KVM", False, str(error), required=False)
    return Examined(
        "KVM", proof.works, "runs guest code" if proof.works else f"TCG is used: {proof.reason}", required=False
    )


def _room() -> Examined:
    said: list[str] = []

    def look() -> str:
        folder = find_room(_RAM_MIB, say=Sparing(said.append))
        return said[0] if said else f"{folder} has the {_RAM_MIB} MiB that a VM needs"

    return _try("room for guest RAM", look)
