"""The struct offsets that walks need. The build of a kernel stores them beside the vmlinux.

``offsets.json`` is ``{"build_id": HEX or null, "offsets": {"task_struct.mm": BYTES, ...}}``. If the build could not
find the offsets, it has ``problem`` instead of ``offsets``: the reason, in words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.errors import PremiseNotMet
from harness.host import cache
from harness.kernel.image import KernelImage

OFFSETS_FILE = "offsets.json"

#: The members that lead from a task to the root of its page tables.
TASK_MEMBERS = (
    *(f"task_struct.{name}" for name in ("tasks", "pid", "tgid", "comm", "flags", "mm", "signal", "thread_node")),
    "signal_struct.thread_head",
    "mm_struct.pgd",
)
#: The members that lead from a task to the nested tables of its virtual machines.
KVM_MEMBERS = (
    *("task_struct.files", "files_struct.fdt", "fdtable.max_fds", "fdtable.fd", "file.private_data"),
    *("kvm.mm", "kvm_vcpu.kvm", "kvm_vcpu.arch.root_mmu.root.hpa", "kvm_vcpu.arch.root_mmu.root_role"),
)


@dataclass(frozen=True, slots=True)
class BuiltOffsets:
    """The offsets that the build of one kernel stored, or the problem.

    They are all of ``TASK_MEMBERS``, and all of ``KVM_MEMBERS`` if the kernel has KVM.
    """

    build_id: bytes | None  # of the vmlinux; None if it has none
    bytes_to: Mapping[str, int]  # "task_struct.mm": bytes from the struct's start
    problem: str = ""  # why there are none

    def offset(self, member: str) -> int:
        """Return the bytes from the start of its struct to a member.

        :raises PremiseNotMet: it was not stored, because the kernel has no KVM.
        """
        if member not in self.bytes_to:
            raise PremiseNotMet(f"the build of this kernel stored no offset of {member}: it was built without KVM")
        return self.bytes_to[member]

    def write(self, folder: Path) -> None:
        """Store the offsets in a folder, beside the vmlinux.

        :raises MachineryError: no room, or no permission.
        """
        said = {"problem": self.problem} if self.problem else {"offsets": dict(self.bytes_to)}
        note = {"build_id": self.build_id.hex() if self.build_id else None, **said}
        cache.write_note(folder / OFFSETS_FILE, note)


def find_offsets(kernel: KernelImage, running: bytes | None) -> BuiltOffsets | None:
    """The offsets that the build of a kernel stored beside its image.

    :param running: build ID of the running kernel; the offsets of another build are ignored. None if it is not known.
    :returns: None if there is no file; an invalid file is returned as a problem.
    """
    path = kernel.image.parent / OFFSETS_FILE
    if not path.is_file():
        return None
    try:
        found = _parse(cache.read_note(path) or {})
    except (KeyError, TypeError, ValueError):
        return BuiltOffsets(running, {}, f"{path.name} is not valid")
    return found if running in (None, found.build_id) else None


def _parse(note: Mapping[str, Any]) -> BuiltOffsets:
    """:raises KeyError, TypeError, ValueError: note is not what write() wrote."""
    build_id = None if note["build_id"] is None else bytes.fromhex(note["build_id"])
    if "problem" in note:
        return BuiltOffsets(build_id, {}, str(note["problem"]))
    members = (*TASK_MEMBERS, *(KVM_MEMBERS if KVM_MEMBERS[0] in note["offsets"] else ()))
    found = {member: note["offsets"][member] for member in members}
    if not all(type(bytes_to) is int and bytes_to >= 0 for bytes_to in found.values()):
        raise ValueError(found)
    return BuiltOffsets(build_id, found)
