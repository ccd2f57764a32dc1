"""Run one cell of the compatibility table: a user's first steps, with this Python and QEMU, on this file system.

    python cell.py KERNEL

Prints a JSON object: each step, and "ok" or the first line of the error. The cache, the folder for RAM and the QEMU are
taken from the environment (HUGEPFN_CACHE_DIR, HUGEPFN_RAM_DIR, HUGEPFN_QEMU).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from vm import VM, Level

KEPT = "compat"


def main() -> None:
    """Do every step, even if an earlier one failed."""
    kernel = sys.argv[1]
    steps: dict[str, Callable[[], None]] = {
        "clone": lambda: fork_at_all_levels(kernel, clone=True),
        "boot": lambda: fork_at_all_levels(kernel, clone=False),
        "reset": lambda: device(kernel, "reset"),
        "d3hot": lambda: device(kernel, "sleep"),
        "keep": lambda: keep_and_revive(kernel),
    }
    print(json.dumps({name: outcome(step) for name, step in steps.items()}))


def outcome(step: Callable[[], None]) -> str:
    """Return ``ok``, or the first line that a user would see."""
    try:
        step()
    except Exception as error:  # the other steps are run after any error
        lines = str(error).splitlines() or [""]
        return f"{type(error).__name__}: {lines[0]}"
    return "ok"


def machine(kernel: str, *, clone: bool = True, device: str = "pci-testdev") -> VM:
    """A machine that does not try KVM, because the table is about TCG."""
    return VM(kernel, accel="tcg", clone=clone, device=device)


def fork_at_all_levels(kernel: str, *, clone: bool) -> None:
    """The leaf keeps its level and its write bit across fork(), in parent and child."""
    for level in (Level.PTE, Level.PMD, Level.PUD):
        with machine(kernel, clone=clone) as vm, vm.run("fork", f"--level={level.label}") as guest:
            forked = guest.until("forked")
            for name in ("parent", "child"):
                leaf = forked[name].leaf("bar")
                if leaf.level is not level or not leaf.write:
                    raise AssertionError(f"{name} at {level.label}: {leaf}")
            guest.finish()
            if guest.violations:
                raise AssertionError(str(guest.violations[0]))


def device(kernel: str, case: str) -> None:
    """A device that is reset or in D3hot still has its BAR, but loses its leaves."""
    with (
        machine(kernel, device="nvme") as vm,
        vm.run("device", f"--case={case}", "--top=pud", timeout_s=60) as guest,
    ):
        written, lost = guest.until("written"), guest.until("lost")
        leaf = written["parent"].leaf("as-pud")
        if leaf.level is not Level.PUD or lost["parent"].leaves("as-pud"):
            raise AssertionError(f"before {leaf}, after {lost['parent'].leaves('as-pud')}")
        guest.finish()


def keep_and_revive(kernel: str) -> None:
    """A kept machine comes back with its files."""
    with machine(kernel) as vm:
        vm.put("/tmp/note", b"kept")
        vm.keep(KEPT, "tests/compat")
    back = VM.revive(KEPT)
    try:
        if back.get("/tmp/note") != b"kept":
            raise AssertionError("the file is gone")
    finally:
        back.close()


if __name__ == "__main__":
    main()
