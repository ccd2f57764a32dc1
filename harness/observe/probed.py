"""What a probe of a new kernel needs of a machine. :class:`harness.machine.vm.VM` has it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from harness.kernel import KernelImage
from harness.observe.run import GuestRun
from harness.qemu.spec import MachineSpec


class ProbedMachine(Protocol):
    """A machine whose kernel was not probed yet: it can run a program, and it has files."""

    @property
    def kernel(self) -> KernelImage:
        """The kernel that was booted."""

    @property
    def spec(self) -> MachineSpec:
        """The spec of the machine."""

    @property
    def ready(self) -> Mapping[str, str]:
        """What the guest reported when it came up."""

    def get(self, path: str) -> bytes:
        """Return the contents of a file of the guest, /proc and /sys included."""

    def launch(self, program: str | Path, args: Sequence[str], timeout_s: float) -> GuestRun:
        """Start a guest program without a probe of the kernel."""
