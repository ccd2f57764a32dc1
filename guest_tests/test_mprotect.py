"""mprotect() of whole leaves: the rights change, and nothing else; a part of a leaf is test_mprotect_part.py."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.errors import PremiseNotMet
from harness.kernel import has_symbol
from harness.machine.vm import VM
from harness.pagetable import Bits, Level
from harness.pagetable.bits import PADDR_MASK

pytestmark = pytest.mark.leaves_no_trace

MODIFIED_BY = {
    Level.PTE: fn.pte_modify,
    Level.PMD: fn.pmd_modify,
    Level.PUD: fn.pud_modify,
}
#: SIGSEGV of an access that the VMA forbids, and the offset in the mapping at which it was made.
ACCERR = "SEGV 2 {:x}"


def steps(*words: str) -> str:
    """The option of mprotect.c."""
    return "--steps=" + ",".join(words)


def set_aside(vm: VM, bits: Bits) -> Bits:
    """The bits of a writable dirty leaf after it became read-only: D moves to SAVED_DIRTY (pte_mksaveddirty(), 6.6)."""
    bits &= ~Bits.W
    return (bits & ~Bits.D) | Bits.SAVED_DIRTY if vm.caps.saved_dirty else bits


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.CHANGED_BY)
def test_mprotect_readonly(vm: VM, level: Level, claim: Claims) -> None:
    """A dirty leaf set read-only loses its write bit, not its dirty bit; writable again it is the entry that it was."""
    with vm.run("mprotect", f"--level={level.label}", steps("write@0", "ro", "try-write@8", "rw", "write@10")) as guest:
        written = guest.until("write@0")["parent"].leaf("bar")
        readonly = guest.until("ro")["parent"].leaf("bar")
        with claim("read-only: still the same leaf, of the same level", fn.CHANGED_BY[level]):
            assert readonly.level is level
            assert readonly.pfn == written.pfn
        with claim(
            "read-only: the write bit is clear, the dirty bit is kept, and no other bit changes", MODIFIED_BY[level]
        ):
            assert readonly.bits == set_aside(vm, written.bits)
            assert readonly.kernel_dirty
        refused = guest.until("try-write@8")["parent"].leaf("bar")
        with claim("a refused write leaves the entry as it is", fn.access_error):
            assert refused.entry == readonly.entry
        back = guest.until("rw")["parent"].leaf("bar")
        with claim("writable again: the entry that was there before", MODIFIED_BY[level]):
            assert back.entry == written.entry
        again = guest.until("write@10")["parent"].leaf("bar")
        with claim("the next write leaves it as it is", fn.CPU):
            assert again.entry == written.entry
        with claim("the refused write gets SIGSEGV", fn.access_error):
            assert guest.result.values["try-write@8"] == ACCERR.format(8)
        with claim("the write after it takes no fault", fn.CHANGED_BY[level]):
            assert guest.result.values["write@10"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.CHANGED_BY)
def test_mprotect_clean(vm: VM, level: Level, claim: Claims) -> None:
    """A clean leaf stays clean through read-only and back; then a write makes it dirty without a fault."""
    with vm.run("mprotect", f"--level={level.label}", steps("read@0", "ro", "rw", "write@8")) as guest:
        read = guest.until("read@0")["parent"].leaf("bar")
        readonly = guest.until("ro")["parent"].leaf("bar")
        with claim("read-only: the write bit is clear, and no other bit changes", MODIFIED_BY[level]):
            assert readonly.bits == read.bits & ~Bits.W
            assert readonly.pfn == read.pfn
        back = guest.until("rw")["parent"].leaf("bar")
        with claim("writable again: the entry that was there before", MODIFIED_BY[level]):
            assert back.entry == read.entry
        written = guest.until("write@8")["parent"].leaf("bar")
        with claim("a write sets the dirty bit and nothing else", fn.CPU):
            assert written.bits == read.bits | Bits.D
        with claim("the write takes no fault", fn.CHANGED_BY[level]):
            assert guest.result.values["write@8"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.CHANGED_BY)
def test_mprotect_none(vm: VM, level: Level, claim: Claims) -> None:
    """PROT_NONE keeps the leaf, hidden from the CPU, its pfn inverted; back again it is the entry that it was."""
    words = ("write@0", "none", "try-read@8", "try-write@10", "rw", "write@18")
    with vm.run("mprotect", f"--level={level.label}", steps(*words)) as guest:
        written = guest.until("write@0")["parent"].leaf("bar")
        none = guest.until("none")["parent"].leaf("bar")
        with claim(
            "PROT_NONE: still a leaf of the level, with the present bit clear and PROTNONE set", fn.CHANGED_BY[level]
        ):
            assert none.level is level
            assert not none.hardware_present
            assert none.protnone
        with claim(
            "PROT_NONE: the write, user and NX bits are clear, the dirty bit is kept, and no other bit changes",
            MODIFIED_BY[level],
        ):
            hidden = set_aside(vm, written.bits) & ~(Bits.P | Bits.U | Bits.NX)
            assert none.bits == hidden | Bits.PROTNONE
        with claim("PROT_NONE: the pfn is the same, and stored inverted", MODIFIED_BY[level]):
            assert none.pfn == written.pfn
            mask = PADDR_MASK & -level.size_bytes
            assert none.raw & mask == ~written.raw & mask
        for step in words[2:4]:
            refused = guest.until(step)["parent"].leaf("bar")
            with claim(f"a refused {step[4:].partition('@')[0]} leaves the entry as it is", fn.access_error):
                assert refused.entry == none.entry
        back = guest.until("rw")["parent"].leaf("bar")
        with claim("back again: the entry that was there before", MODIFIED_BY[level]):
            assert back.entry == written.entry
        with claim("a read and a write of it get SIGSEGV", fn.access_error):
            assert guest.result.values["try-read@8"] == ACCERR.format(8)
            assert guest.result.values["try-write@10"] == ACCERR.format(0x10)
        with claim("the write after it takes no fault", fn.CHANGED_BY[level]):
            assert guest.result.values["write@18"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.CHANGED_BY)
def test_mprotect_none_to_readonly(vm: VM, level: Level, claim: Claims) -> None:
    """From PROT_NONE to read-only to writable, a dirty leaf is at each step what it would be without the detour."""
    words = ("write@0", "ro", "none", "ro", "read@8", "rw")
    with vm.run("mprotect", f"--level={level.label}", steps(*words)) as guest:
        written = guest.until("write@0")["parent"].leaf("bar")
        readonly = guest.until("ro")["parent"].leaf("bar")
        none = guest.until("none")["parent"].leaf("bar")
        with claim("PROT_NONE after read-only keeps the dirty bit", MODIFIED_BY[level]):
            assert none.protnone
            assert none.kernel_dirty
        back = guest.until("ro")["parent"].leaf("bar")
        with claim("read-only after PROT_NONE is the entry that it was read-only before", MODIFIED_BY[level]):
            assert back.entry == readonly.entry
        with claim("writable again: the entry that was written", MODIFIED_BY[level]):
            assert guest.until("rw")["parent"].leaf("bar").entry == written.entry
        with claim("a read of the read-only leaf takes no fault", fn.CHANGED_BY[level]):
            assert guest.result.values["read@8"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.mprotect_fixup, fn.vfio_pci_mmap_huge_fault)
def test_mprotect_untouched(vm: VM, level: Level, claim: Claims) -> None:
    """mprotect() before the first touch maps nothing; the touch then faults in a leaf with the present rights."""
    words = ("none", "try-read@0", "ro", "read@8", "rw", "write@10")
    with vm.run("mprotect", f"--level={level.label}", steps(*words)) as guest:
        for step in ("none", "try-read@0", "ro"):
            with claim(f"nothing is mapped after {step.partition('@')[0]}", fn.mprotect_fixup):
                assert guest.until(step)["parent"].leaves("bar") == ()
        read = guest.until("read@8")["parent"].leaf("bar")
        with claim(
            f"the touch of the read-only mapping faults in a read-only {level.label}", fn.vfio_pci_mmap_huge_fault
        ):
            assert read.level is level
            assert not read.write
            assert not read.kernel_dirty
        back = guest.until("rw")["parent"].leaf("bar")
        with claim("writable again: the write bit is set, and no other bit changes", MODIFIED_BY[level]):
            assert back.bits == read.bits | Bits.W
        with claim("an access while it is PROT_NONE gets SIGSEGV", fn.access_error):
            assert guest.result.values["try-read@0"] == ACCERR.format(0)
        with claim("the write after it takes no fault", fn.CHANGED_BY[level]):
            assert guest.result.values["write@10"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.CHANGED_BY)
def test_mprotect_exec(vm: VM, level: Level, claim: Claims) -> None:
    """PROT_EXEC clears NX, and PROT_WRITE sets it again; where the device's file is noexec, EACCES and no change."""
    words = ("read@0", "map-exec", "rx", "rw", "write@8")
    with vm.run("mprotect", f"--level={level.label}", steps(*words)) as guest:
        read = guest.until("read@0")["parent"].leaf("bar")
        executable = guest.until("rx")["parent"].leaf("bar")
        back = guest.until("rw")["parent"].leaf("bar")
        values = guest.result.values
        refused = values["map-exec"] == "EPERM"  # the file system of the device's file is noexec
        with claim("mprotect() allows what mmap() allows", fn.do_mprotect_pkey):
            assert values["rx"] == ("EACCES" if refused else "0")
        if refused:
            with claim("a refused PROT_EXEC changes nothing", fn.do_mprotect_pkey):
                assert executable.entry == read.entry
        else:
            with claim("executable: NX and the write bit are clear, and no other bit changes", MODIFIED_BY[level]):
                assert executable.bits == read.bits & ~(Bits.W | Bits.NX)
        with claim("back again: the entry that was there before", MODIFIED_BY[level]):
            assert back.entry == read.entry
        with claim("the write after it takes no fault", fn.CHANGED_BY[level]):
            assert values["write@8"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.CHANGED_BY)
def test_mprotect_one_leaf(vm: VM, level: Level, claim: Claims) -> None:
    """mprotect() of one of two leaves splits the VMA between them: that leaf changes, the other stays as it is."""
    size = level.size_bytes
    words = ("write@0", f"write@{size:x}", "part-ro", f"try-write@{size:x}", "part-rw", f"write@{size + 8:x}")
    with vm.run(
        "mprotect", f"--level={level.label}", "--leaves=2", f"--part={size:x}-{2 * size:x}", steps(*words)
    ) as guest:
        before = guest.until(words[1])["parent"]
        low, high = before.leaf("bar"), before.leaf("bar", size)
        parted = guest.until("part-ro")["parent"]
        if zapped := has_symbol(vm.kernel, "vfio_pci_core", "vfio_pci_mmap_open"):
            with claim("the driver zaps the VMA that the split makes, to see it fault", fn.vfio_pci_mmap_open):
                assert parted.leaves("bar-before") == ()
        else:
            with claim("the other leaf's entry does not change", fn.CHANGED_BY[level]):
                assert parted.leaf("bar-before").entry == low.entry
        with claim(
            "that leaf: the write bit is clear, the dirty bit is kept, and no other bit changes", MODIFIED_BY[level]
        ):
            part = parted.leaf("bar-part")
            assert part.level is level
            assert part.bits == set_aside(vm, high.bits)
        whole = guest.until("part-rw")["parent"]
        with claim("writable again: every entry is what it was", MODIFIED_BY[level]):
            assert [leaf.entry for leaf in whole.leaves("bar")] == [high.entry] if zapped else [low.entry, high.entry]
        with claim("the refused write gets SIGSEGV, the one after it takes no fault", fn.access_error):
            assert guest.result.values[words[3]] == ACCERR.format(size)
            assert guest.result.values[words[5]] == "0"


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.change_pte_range)
def test_mprotect_memory(vm: VM, claim: Claims) -> None:
    """The control: an anonymous 4K page keeps its dirty bit through read-only and back as well."""
    _memory(vm, Level.PTE, claim)


@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.change_huge_pmd)
def test_mprotect_thp(vm: VM, claim: Claims) -> None:
    """The control: a transparent huge page keeps its dirty bit through read-only and back as well."""
    _memory(vm, Level.PMD, claim)


def _memory(vm: VM, level: Level, claim: Claims) -> None:
    words = ("write@0", "ro", "try-write@8", "rw", "write@10")
    with vm.run("mprotect", f"--level={level.label}", "--memory=anon", steps(*words)) as guest:
        written = guest.until("write@0")["parent"].leaf("memory")
        if written.level is not level:
            raise PremiseNotMet(f"the kernel gave no huge page, but {written}")
        readonly = guest.until("ro")["parent"].leaf("memory")
        with claim(
            "read-only: the write bit is clear, the dirty bit is kept, and no other bit but the accessed bit changes",
            MODIFIED_BY[level],
        ):
            assert readonly.bits | Bits.A == set_aside(vm, written.bits) | Bits.A  # reclaim may clear A at any time
            assert readonly.pfn == written.pfn
        back = guest.until("rw")["parent"].leaf("memory")
        with claim("writable again: still dirty, and the same page", MODIFIED_BY[level]):
            assert back.kernel_dirty
            assert back.pfn == written.pfn
        again = guest.until("write@10")["parent"].leaf("memory")
        with claim("the next write is made in the same page", fn.CHANGED_BY[level]):
            assert again.pfn == written.pfn
            assert again.write
            assert again.dirty
        with claim("the refused write gets SIGSEGV", fn.access_error):
            assert guest.result.values["try-write@8"] == ACCERR.format(8)
