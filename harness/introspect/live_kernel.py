"""What looking into a running kernel needs of a machine, and no more. :class:`harness.machine.vm.VM` has it."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

from harness.host.private_folder import PrivateFolder
from harness.kernel import KernelImage
from harness.pagetable import Layout
from harness.qemu.process import Qemu
from harness.qemu.ram import GuestMemory
from harness.verdict.capabilities import Capabilities

T = TypeVar("T")


class LiveKernel(Protocol):
    """A running kernel: its files, its memory, and a way to make it stand still."""

    @property
    def known_kernel(self) -> KernelImage | None:
        """The kernel's files; None of a kept machine whose kernel is gone since, or was built anew."""

    @property
    def ready(self) -> Mapping[str, str]:
        """What the guest reported when it came up."""

    @property
    def layout(self) -> Layout:
        """The layout of its page-table entries; right once :attr:`caps` was asked for."""

    @property
    def caps(self) -> Capabilities:
        """What this kernel can do; probed when first asked for."""

    @property
    def qemu(self) -> Qemu:
        """The QEMU process."""

    @property
    def memory(self) -> GuestMemory:
        """Guest RAM."""

    @property
    def sockets(self) -> PrivateFolder:
        """A folder for sockets that only this user can enter."""

    def paused(self) -> AbstractContextManager[None]:
        """A block during which no vCPU runs."""

    def get(self, path: str) -> bytes:
        """Reads a file of the guest, /proc and /sys included."""

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the machine's event loop."""
