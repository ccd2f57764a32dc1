"""The names that a test imports from hugepfn. ``python vm.py`` is the command ``hugepfn``."""

if __name__ == "__main__":  # before the imports below, so that Ctrl-C is one line from here on
    from harness.entry import main

    main()

from harness.claims import Claims
from harness.errors import BootError, ClaimFailed, HugepfnError, KernelError, MachineryError, UsageError
from harness.kernel import Kernel
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.observe.run_result import RunResult
from harness.observe.snapshot import ProcessView, Snapshot
from harness.pagetable import Bits, Entry, Leaf, Level, Observation, PagemapWord

__all__ = [
    "VM",
    "Bits",
    "BootError",
    "ClaimFailed",
    "Claims",
    "Entry",
    "GuestRun",
    "HugepfnError",
    "Kernel",
    "KernelError",
    "Leaf",
    "Level",
    "MachineryError",
    "Observation",
    "PagemapWord",
    "ProcessView",
    "RunResult",
    "Snapshot",
    "UsageError",
]
