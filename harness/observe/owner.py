"""What a run needs of its machine, and the machine of its run: two Protocols, so that neither imports the other."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from typing import Any, Protocol, TypeVar

from harness.guest.agent import Agent
from harness.kernel import KernelImage
from harness.pagetable import Layout
from harness.qemu.process import Qemu
from harness.verdict.capabilities import Capabilities
from harness.verdict.invariants import Invariant
from harness.verdict.log.troubles import KernelTroubles

T = TypeVar("T")


class EndingRun(Protocol):
    """A run that ends. :class:`harness.observe.run.GuestRun` is one."""

    @property
    def program(self) -> str:
        """The name of the program."""

    async def end(self) -> None:
        """End the program after an error, if the guest still answers."""


class RunOwner(Protocol):
    """What a run needs of its machine. :class:`harness.machine.vm.VM` has it."""

    @property
    def qemu(self) -> Qemu:
        """The QEMU process."""

    @property
    def agent(self) -> Agent:
        """The agent, which is PID 1 of the guest."""

    @property
    def ready(self) -> Mapping[str, str]:
        """What the guest reported when it came up."""

    @property
    def known_kernel(self) -> KernelImage | None:
        """The kernel that was booted; None if its files no longer exist."""

    @property
    def layout(self) -> Layout:
        """The layout of its page-table entries."""

    @property
    def caps(self) -> Capabilities:
        """What this kernel can do."""

    @property
    def waived(self) -> Mapping[Invariant, str]:
        """The invariants that need not hold, and why."""

    def judged(self, troubles: KernelTroubles) -> KernelTroubles:
        """Return what remains of them if the complaints that are expected are taken away."""

    def on_loop(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine on the machine's event loop."""

    def forget(self, run: EndingRun) -> None:
        """The run is over."""

    def abandon(self, run: EndingRun, error: BaseException) -> None:
        """The run ended with an error: end its processes, or give the guest up."""
