"""First accesses: which leaf a fault maps, with which bits, and what a refused access leaves behind."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.snapshot import Snapshot
from harness.pagetable import Bits, Leaf, Level
from harness.verdict.capabilities import Capabilities

pytestmark = pytest.mark.leaves_no_trace

INSERTED_BY = {
    Level.PTE: fn.insert_pfn,
    Level.PMD: fn.vmf_insert_pfn_pmd,
    Level.PUD: fn.vmf_insert_pfn_pud,
}
#: What vm_get_page_prot() gives a shared writable VMA, and pgprot_noncached() and pte_mkspecial() add.
FRESH = Bits.P | Bits.W | Bits.U | Bits.PCD | Bits.A | Bits.SPECIAL | Bits.NX
BUS_ADRERR, SEGV_ACCERR = "2", "2"


def fresh(level: Level) -> Bits:
    """The bits of a leaf of a writable mapping that was read once."""
    return FRESH if level is Level.PTE else FRESH | Bits.PSE


def nothing_before(claim: Claims, at: Snapshot) -> None:
    with claim("mmap() populates no entry by itself", fn.vfio_pci_core_mmap):
        assert at["parent"].leaves("bar") == ()


def one_leaf(at: Snapshot, level: Level, caps: Capabilities) -> Leaf:
    """The leaf of the first byte, the only one there is; a kernel without huge faults fills a whole VMA at once."""
    leaf = at["parent"].leaf("bar")
    assert leaf.level is level
    leaves = at["parent"].leaves("bar")
    expected = at["parent"].mapping("bar").declared.size_bytes // leaf.size_bytes if caps.fault_fills_vma else 1
    assert len(leaves) == expected, leaves
    return leaf


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.FAULTED_BY, fn.insert_pfn, fn.vmf_insert_pfn_pmd, fn.vmf_insert_pfn_pud)
def test_first_read(vm: VM, level: Level, claim: Claims) -> None:
    """A first read faults in one leaf, writable, young and clean; the next read takes no fault."""
    by = INSERTED_BY[level]
    with vm.run("fault", f"--level={level.label}", "--case=read") as guest:
        nothing_before(claim, guest.until("mapped"))
        read = guest.until("read")
        with claim(f"one {level.label} is mapped", fn.vfio_pci_mmap_huge_fault):
            one_leaf(read, level, vm.caps)
        with claim("it has the VMA's rights, the accessed bit, SPECIAL and uncached-minus, and no other bit", by):
            assert read["parent"].leaf("bar").bits == fresh(level)
        again = guest.until("read-again")
        with claim("a second read changes no entry", fn.__handle_mm_fault):
            assert again["parent"].leaves("bar") == read["parent"].leaves("bar")
        with claim("the first read took one fault, the second none", fn.__handle_mm_fault):
            assert guest.result.values["read-faults"] == "1"
            assert guest.result.values["again-faults"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.FAULTED_BY, fn.insert_pfn, fn.vmf_insert_pfn_pmd, fn.vmf_insert_pfn_pud)
def test_first_write(vm: VM, level: Level, claim: Claims) -> None:
    """A first write faults in one leaf; the CPU sets its dirty bit, and SOFT_DIRTY stays clear."""
    by = INSERTED_BY[level]
    with vm.run("fault", f"--level={level.label}", "--case=write") as guest:
        nothing_before(claim, guest.until("mapped"))
        written = guest.until("written")
        with claim(f"one {level.label} is mapped", fn.vfio_pci_mmap_huge_fault):
            one_leaf(written, level, vm.caps)
        with claim("it is as after a read, with the dirty bit set", by):
            assert written["parent"].leaf("bar").bits == fresh(level) | Bits.D
        with claim("SOFT_DIRTY is clear in the entry, though pagemap shows it for the new VMA", by):
            assert not written["parent"].leaf("bar").soft_dirty
            assert written["parent"].pagemap("bar")[0].soft_dirty == vm.caps.soft_dirty
        if vm.caps.fault_fills_vma:
            with claim("the fault's other entries are clean", by):
                assert not any(leaf.kernel_dirty for leaf in written["parent"].leaves("bar")[1:])
        with claim("the write took one fault", fn.__handle_mm_fault):
            assert guest.result.values["write-faults"] == "1"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.__handle_mm_fault, fn.insert_pfn, fn.vmf_insert_pfn_pmd, fn.vmf_insert_pfn_pud)
def test_read_then_write(vm: VM, level: Level, claim: Claims) -> None:
    """A write after a read takes no fault: the leaf was writable from the start, and the CPU sets the dirty bit."""
    with vm.run("fault", f"--level={level.label}", "--case=read-write") as guest:
        read = guest.until("read")["parent"].leaf("bar")
        with claim("the leaf that the read faulted in is writable and clean", INSERTED_BY[level]):
            assert read.level is level
            assert read.write
            assert not read.kernel_dirty
        written = guest.until("written")["parent"].leaf("bar")
        with claim("the write sets the dirty bit and nothing else", fn.CPU):
            assert written.bits == read.bits | Bits.D
            assert written.pfn == read.pfn
        with claim("the write took no fault", fn.__handle_mm_fault):
            assert guest.result.values["read-faults"] == "1"
            assert guest.result.values["write-faults"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.access_error, fn.insert_pfn, fn.vmf_insert_pfn_pmd, fn.vmf_insert_pfn_pud)
def test_readonly_fault(vm: VM, level: Level, claim: Claims) -> None:
    """In a VMA without PROT_WRITE the leaf is read-only, and a write gets SIGSEGV and leaves the entry as it is."""
    with vm.run("fault", f"--level={level.label}", "--case=readonly") as guest:
        read = guest.until("read")
        with claim(f"one {level.label} is mapped", fn.vfio_pci_mmap_huge_fault):
            one_leaf(read, level, vm.caps)
        with claim("it is as in a writable VMA, without the write bit", INSERTED_BY[level]):
            assert read["parent"].leaf("bar").bits == fresh(level) & ~Bits.W
        refused = guest.until("refused")
        with claim("the refused write leaves the entry as it is", fn.access_error):
            assert refused["parent"].leaves("bar") == read["parent"].leaves("bar")
        values = guest.result.values
        with claim("the write gets SIGSEGV, SEGV_ACCERR, at the address written", fn.access_error):
            assert (values["write-signal"], values["write-code"]) == ("SEGV", SEGV_ACCERR)
            assert values["write-offset"] == "8"
        with claim("the leaf can still be read without a fault", fn.__handle_mm_fault):
            assert values["again-faults"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault, fn.vfio_pci_mmap_fault)
def test_memory_off_fault(vm: VM, level: Level, claim: Claims) -> None:
    """While the device's memory is off, a first access gets SIGBUS and maps nothing; after that, the whole leaf."""
    with vm.run("fault", f"--level={level.label}", "--case=memory-off") as guest:
        refused = guest.until("refused")
        with claim("the refused accesses make no entry", fn.vfio_pci_mmap_huge_fault):
            assert refused["parent"].leaves("bar") == ()
        touched = guest.until("touched")
        with claim(f"with the memory on, one fault maps the {level.label}", fn.vfio_pci_mmap_huge_fault):
            assert one_leaf(touched, level, vm.caps).bits == fresh(level)
            assert guest.result.values["read-faults"] == "1"
        values = guest.result.values
        for access, offset in (("read", "0"), ("write", "8")):
            with claim(f"the {access} gets SIGBUS, BUS_ADRERR, at the address", fn.vfio_pci_mmap_huge_fault):
                assert (values[f"{access}-signal"], values[f"{access}-code"]) == ("BUS", BUS_ADRERR)
                assert values[f"{access}-offset"] == offset


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.__handle_mm_fault, fn.unmap_mapping_range)
def test_sticky_level(vm: VM, level: Level, claim: Claims) -> None:
    """A fault never maps a larger leaf than the existing page tables leave room for, not even after a zap."""
    with vm.run("fault", f"--level={level.label}", "--case=sticky") as guest:
        small = guest.until("small")["parent"]
        with claim("with MADV_NOHUGEPAGE the touch faults in a pte", fn.__thp_vma_allowable_orders):
            assert [leaf.level for leaf in small.leaves("bar")] == [Level.PTE]
        same = guest.until("same-table")["parent"]
        with claim("with MADV_HUGEPAGE a touch where a pte table exists faults in another pte", fn.__handle_mm_fault):
            assert same.leaf("bar", 0x2000).level is Level.PTE
            assert same.leaf("bar") == small.leaf("bar")
            assert len(same.leaves("bar")) == 2
        other = guest.until("other-table")["parent"]
        if level is Level.PUD:
            with claim("a touch where a pmd table has room faults in a pmd, not a pud", fn.__handle_mm_fault):
                assert other.leaf("bar", 4 << 20).level is Level.PMD
                assert other.leaf("bar", 4 << 20).bits == fresh(Level.PMD)
                assert len(other.leaves("bar")) == 3
        zapped = guest.until("zapped")["parent"]
        with claim("memory off zaps every leaf", fn.unmap_mapping_range):
            assert zapped.leaves("bar") == ()
        again = guest.until("again")["parent"]
        with claim("after the zap the page tables still decide: a pte where a pte was", fn.__handle_mm_fault):
            assert again.leaf("bar").level is Level.PTE
        if level is Level.PUD:
            with claim("after the zap the page tables still decide: a pmd where a pmd was", fn.__handle_mm_fault):
                assert again.leaf("bar", 4 << 20).level is Level.PMD
