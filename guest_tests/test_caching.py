"""The memory type of a BAR: the same at every level, after every change of protection, and in a child."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.errors import PremiseNotMet
from harness.machine.vm import VM
from harness.observe.snapshot import ProcessView
from harness.pagetable import Bits, Leaf, Level

pytestmark = pytest.mark.leaves_no_trace

LEVELS = (Level.PTE, Level.PMD, Level.PUD)
#: PAT index of uncached-minus: PCD alone (arch/x86/mm/pat/memtype.c, pat_bp_init()).
UC_MINUS = 2


def three(process: ProcessView) -> list[Leaf]:
    """The pte, the pmd and the pud that map the BAR's first byte."""
    return [process.leaf(f"bar-{level.label}") for level in LEVELS]


@pytest.mark.decided_by(fn.vfio_pci_core_mmap, fn.pgprot_modify, fn.copy_page_range)
def test_cache_bits(vm: VM, claim: Claims) -> None:
    """One BAR mapped as pte, pmd and pud at once has the same cache bits in each, through mprotect() and fork()."""
    for level in LEVELS:
        if why_not := vm.caps.why_not(level):
            raise PremiseNotMet(why_not)
    with vm.run("caching") as guest:
        touched = three(guest.until("touched")["parent"])
        with claim("the BAR is mapped at three levels at once", fn.vfio_pci_core_mmap):
            assert [leaf.level for leaf in touched] == list(LEVELS)
            assert len({leaf.pfn for leaf in touched}) == 1
        with claim("all three are uncached-minus, and differ only in PSE", fn.vfio_pci_core_mmap):
            assert [leaf.cache for leaf in touched] == [UC_MINUS] * 3
            assert [leaf.bits & ~Bits.PSE for leaf in touched] == [touched[0].bits] * 3
        written = three(guest.until("one-written")["parent"])
        with claim("a write through one sets the dirty bit there, and in none of the others", fn.CPU):
            assert [leaf.dirty for leaf in written] == [False, True, False]
        for step in ("readonly", "none", "writable"):
            leaves = three(guest.until(step)["parent"])
            with claim(f"{step}: all three are still mapped, and uncached-minus", fn.pgprot_modify):
                assert [leaf.level for leaf in leaves] == list(LEVELS)
                assert [leaf.cache for leaf in leaves] == [UC_MINUS] * 3
        forked = guest.until("forked")
        with claim("forked: parent and child have all three, uncached-minus", fn.copy_page_range):
            for process in forked:
                assert [leaf.level for leaf in three(process)] == list(LEVELS)
                assert [leaf.cache for leaf in three(process)] == [UC_MINUS] * 3
        child = three(guest.until("child-readonly")["child"])
        with claim("the child's leaves, set read-only, are uncached-minus as well", fn.pgprot_modify):
            assert [leaf.cache for leaf in child] == [UC_MINUS] * 3
            assert not any(leaf.write for leaf in child)
