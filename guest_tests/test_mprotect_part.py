"""mprotect() of a part of a leaf: the leaf is zapped, and what comes back fits the VMAs that the split made."""

from dataclasses import dataclass

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.kernel import has_symbol
from harness.machine.vm import VM
from harness.observe.snapshot import ProcessView
from harness.pagetable import Bits, Leaf, Level

pytestmark = pytest.mark.leaves_no_trace

BELOW = {Level.PMD: Level.PTE, Level.PUD: Level.PMD}
PAGE, MIB = 4096, 1 << 20
WHOLE, BEFORE, PART, AFTER = "bar", "bar-before", "bar-part", "bar-after"


@dataclass(frozen=True)
class Touch:
    """A byte of the mapping, its VMA after the split, and the level that a touch faults in there."""

    at: int
    vma: str
    level: Level


def _part(vm: VM, level: Level, claim: Claims, start: int, end: int, touches: list[Touch], rights: str = "ro") -> None:
    """A dirty leaf of which [start, end) gets other rights: what is left, what a touch faults in, and the way back."""
    allowed = [touch for touch in touches if rights != "none" or touch.vma != PART]
    inside = next(touch for touch in touches if touch.vma == PART)
    refused = f"try-{'read' if rights == 'none' else 'write'}@{inside.at + 8:x}"
    reads = [f"read@{touch.at:x}" for touch in allowed]
    write = f"write@{inside.at + 16:x}"
    words = [f"write@{start:x}", f"part-{rights}", *reads, refused, "part-rw", write]
    part = f"--part={start:x}-{end:x}"
    with vm.run("mprotect", f"--level={level.label}", part, "--steps=" + ",".join(words)) as guest:
        assert guest.until(words[0])["parent"].leaf(WHOLE).level is level
        cut = guest.until(words[1])["parent"]
        with claim(f"the {level.label} is gone, from both sides of the split", fn.SPLIT_BY[level]):
            assert [leaf for vma in (BEFORE, PART, AFTER) if vma in cut.mappings for leaf in cut.leaves(vma)] == []
        touched = guest.until(reads[-1])["parent"]
        for touch in allowed:
            with claim(f"a touch at {touch.at:#x} faults in a {touch.level.label}", fn.vfio_pci_mmap_huge_fault):
                assert _leaf(touched, touch).level is touch.level
        with claim("what comes back is clean, and writable where its VMA is", fn.vfio_pci_mmap_huge_fault):
            for touch in allowed:
                leaf = _leaf(touched, touch)
                assert not leaf.kernel_dirty
                assert leaf.write == (touch.vma != PART)
        before = guest.until(refused)["parent"]
        with claim("the refused access leaves all entries as they are", fn.access_error):
            for touch in allowed:
                assert _leaf(before, touch) == _leaf(touched, touch)
        back = guest.until("part-rw")["parent"]
        with claim("with the same rights again every entry is writable, and otherwise as it was", fn.change_pte_range):
            leaves = back.leaves(WHOLE)
            assert len(leaves) == len(allowed)
            for touch in allowed:
                assert back.leaf(WHOLE, touch.at).bits == _leaf(touched, touch).bits | Bits.W
        written = guest.until(write)["parent"].leaf(WHOLE, inside.at)
        with claim("a write there uses a leaf of the level that the split left", fn.__handle_mm_fault):
            assert written.level is inside.level
            assert written.dirty
        values = guest.result.values
        with claim("what the part's rights forbid gets SIGSEGV", fn.access_error):
            assert values[refused] == f"SEGV 2 {inside.at + 8:x}"
        with claim("one fault per leaf that came back, and no other", fn.__handle_mm_fault):
            assert [values[read] for read in reads] == ["1"] * len(reads)
            assert values[write] == ("1" if rights == "none" else "0")


def _leaf(process: ProcessView, touch: Touch) -> Leaf:
    view = process.mapping(touch.vma)
    return process.leaf(touch.vma, touch.at - view.declared.offset_bytes)


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.SPLIT_BY, fn.vfio_pci_mmap_huge_fault)
def test_mprotect_first_part(vm: VM, level: Level, claim: Claims) -> None:
    """Of a leaf whose first 2M (pmd: 4K) is set read-only nothing is left; the rest comes back writable, smaller."""
    below = BELOW[level]
    end = below.size_bytes
    touches = [Touch(0, PART, below), Touch(end, AFTER, below), Touch(level.size_bytes - PAGE, AFTER, below)]
    _part(vm, level, claim, 0, end, touches)


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.SPLIT_BY, fn.vfio_pci_mmap_huge_fault)
def test_mprotect_last_part(vm: VM, level: Level, claim: Claims) -> None:
    """Of a leaf whose last 2M (pmd: 4K) is set read-only nothing is left; the rest comes back writable, smaller."""
    below = BELOW[level]
    start = level.size_bytes - below.size_bytes
    touches = [Touch(0, BEFORE, below), Touch(start - PAGE, BEFORE, below), Touch(start, PART, below)]
    _part(vm, level, claim, start, level.size_bytes, touches)


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.SPLIT_BY, fn.vfio_pci_mmap_huge_fault)
def test_mprotect_middle_part(vm: VM, level: Level, claim: Claims) -> None:
    """Of a leaf whose middle 2M (pmd: 4K) is PROT_NONE nothing is left; both sides come back, the middle only later."""
    below = BELOW[level]
    start = level.size_bytes // 2
    end = start + below.size_bytes
    touches = [Touch(0, BEFORE, below), Touch(start, PART, below), Touch(end, AFTER, below)]
    _part(vm, level, claim, start, end, touches, rights="none")


@pytest.mark.levels("pud")
@pytest.mark.decided_by(fn.SPLIT_BY, fn.vfio_pci_mmap_huge_fault)
def test_mprotect_unaligned_part(vm: VM, level: Level, claim: Claims) -> None:
    """A part of a pud that starts and ends between 2M boundaries: 4K leaves next to the splits, 2M leaves elsewhere."""
    start, end = 2 * MIB + PAGE, 6 * MIB + 2 * PAGE
    touches = [
        Touch(0, BEFORE, Level.PMD),
        Touch(2 * MIB, BEFORE, Level.PTE),
        Touch(start, PART, Level.PTE),
        Touch(4 * MIB, PART, Level.PMD),
        Touch(6 * MIB, PART, Level.PTE),
        Touch(end, AFTER, Level.PTE),
        Touch(8 * MIB, AFTER, Level.PMD),
    ]
    _part(vm, level, claim, start, end, touches)


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.change_pte_range)
def test_mprotect_some_pages(vm: VM, level: Level, claim: Claims) -> None:
    """At 4K mprotect() changes the entries of its pages, dirty or clean, and leaves their neighbours as they are."""
    words = ["write@0", "read@1000", "write@2000", "read@3000", "part-ro", "part-rw", "read@0"]
    with vm.run(
        "mprotect", f"--level={level.label}", "--leaves=4", "--part=1000-3000", "--steps=" + ",".join(words)
    ) as guest:
        entries = [leaf.entry for leaf in guest.until("read@3000")["parent"].leaves(WHOLE)]
        cut = guest.until("part-ro")["parent"]
        if zapped := has_symbol(vm.kernel, "vfio_pci_core", "vfio_pci_mmap_open"):
            with claim("the driver zaps the VMAs that the splits make, to see them fault", fn.vfio_pci_mmap_open):
                assert cut.leaves(BEFORE) == cut.leaves(AFTER) == ()
        else:
            with claim("the neighbours' entries do not change", fn.change_pte_range):
                assert cut.leaf(BEFORE).entry == entries[0]
                assert cut.leaf(AFTER).entry == entries[3]
        with claim("both entries lose the write bit, and the dirty one keeps its dirty bit", fn.change_pte_range):
            clean, dirty = cut.leaves(PART)
            assert clean.bits == entries[1].bits & ~Bits.W
            aside = Bits.SAVED_DIRTY if vm.caps.saved_dirty else Bits.D
            assert dirty.bits == entries[2].bits & ~(Bits.W | Bits.D) | aside
        back = guest.until("part-rw")["parent"]
        with claim("with the same rights again every entry is what it was", fn.change_pte_range):
            assert [leaf.entry for leaf in back.leaves(WHOLE)] == (entries[1:3] if zapped else entries)
        last = guest.until("read@0")["parent"]
        with claim("the first page can be touched again", fn.change_pte_range):
            assert last.leaf(WHOLE).write
