"""What this room needs of a machine to look into a running kernel. :class:`harness.machine.vm.VM` has it."""

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
    """A running kernel: its files, its memory, and a way to stop it for a moment."""

    @property
    def known_kernel(self) -> KernelImage | None:
        """The kernel's files; None for a kept machine whose kernel was removed or built again."""

    @property
    def ready(self) -> Mapping[str, str]:
        """What the guest reported when it came up."""

    @property
    def layout(self) -> Layout:
        """The layout of its page-table entries; correct after the first use of :attr:`caps`."""

    @property
    def caps(self) -> Capabilities:
        """What this kernel can do, probed on first use."""

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
        """A block in which no vCPU runs."""

    def get(self, path: str) -> bytes:
        """Return the contents of a file of the guest, /proc and /sys included."""

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the machine's event loop."""
