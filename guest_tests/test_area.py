"""Which leaves a mapping of a BAR gets, by its address, offset and length."""

from dataclasses import dataclass

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.observe.snapshot import Snapshot
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
PAGE = 4 * KIB
#: The next smaller leaf.
BELOW = {Level.PMD: Level.PTE, Level.PUD: Level.PMD}


@dataclass(frozen=True)
class Area:
    """A mapping of a part of the BAR; all in bytes."""

    length: int
    align: int  # the address is a multiple of this
    offset: int = 0  # into the BAR
    skew: int = 0  # and this much more

    def words(self, *touches: int) -> list[str]:
        """Arguments of area.c."""
        touch = ",".join(f"{at:x}" for at in touches)
        numbers = {"length": self.length, "align": self.align, "offset": self.offset, "skew": self.skew}
        return [*(f"--{name}={value:x}" for name, value in numbers.items()), f"--touch={touch}"]


def leaves_of(at: Snapshot) -> list[tuple[int, Level]]:
    """Where each leaf starts in the mapping, and its level. A leaf that starts before it has a negative offset."""
    process = at["parent"]
    start = process.mapping("bar").declared.vaddr
    return [(leaf.vaddr - start, leaf.level) for leaf in process.leaves("bar")]


def expected(vm: VM, area: Area, *leaves: tuple[int, Level]) -> list[tuple[int, Level]]:
    """Those leaves; on a kernel whose fault fills the VMA, a pte for each page of it."""
    if vm.caps.fault_fills_vma:
        return [(at, Level.PTE) for at in range(0, area.length, PAGE)]
    return list(leaves)


def faults_of(guest: GuestRun, *touches: int) -> list[int]:
    """How many faults each touch took."""
    return [int(guest.result.values[f"faults-{at:x}"]) for at in touches]


def one_leaf_area(level: Level) -> Area:
    """As hp_bar_map() makes it: one leaf; four pages at pte."""
    return Area(length=4 * PAGE if level is Level.PTE else level.size_bytes, align=level.size_bytes)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault, fn.vfio_pci_mmap_fault)
def test_touch_in_the_middle(vm: VM, level: Level, claim: Claims) -> None:
    """A first touch anywhere in a leaf faults in the whole leaf, from its first byte on."""
    area = one_leaf_area(level)
    at = 2 * PAGE + 8 if level is Level.PTE else area.length // 2 + 3 * PAGE + 8
    with vm.run("area", *area.words(at)) as guest:
        touched = guest.until("touched")
        leaf = (at // level.size_bytes * level.size_bytes, level)
        with claim(
            f"one {level.label} is mapped, and it starts at a multiple of its size", fn.vfio_pci_mmap_huge_fault
        ):
            assert leaves_of(touched) == expected(vm, area, leaf)
        with claim("its pfn is that of the same offset in the BAR", fn.vfio_pci_mmap_huge_fault):
            assert touched["parent"].leaf("bar", at).pfn << 12 == touched.bar("bar").start_paddr + leaf[0]


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault, fn.vfio_pci_mmap_fault, fn.__handle_mm_fault)
def test_one_fault_a_leaf(vm: VM, level: Level, claim: Claims) -> None:
    """Each leaf of a mapping takes one fault, wherever it is touched first; the next touch of it takes none."""
    size = level.size_bytes
    area = Area(length=2 * size, align=size)
    touches = (size - 8, 0, size, 2 * size - 8)
    with vm.run("area", *area.words(*touches)) as guest:
        touched = guest.until("touched")
        with claim(f"two {level.label} leaves are mapped", fn.vfio_pci_mmap_huge_fault):
            assert leaves_of(touched) == [(0, level), (size, level)]
        with claim("they have the same bits and neighbouring pfns", fn.vfio_pci_mmap_huge_fault):
            low, high = touched["parent"].leaves("bar")
            assert low.bits == high.bits
            assert high.pfn - low.pfn == size // PAGE
        with claim(
            "one fault per leaf" if not vm.caps.fault_fills_vma else "one fault for the whole VMA", fn.__handle_mm_fault
        ):
            assert faults_of(guest, *touches) == ([1, 0, 0, 0] if vm.caps.fault_fills_vma else [1, 0, 1, 0])


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault, fn.vfio_pci_mmap_fault)
def test_congruence(vm: VM, level: Level, claim: Claims) -> None:
    """The leaf is as large as virtual and physical address are congruent, in a VMA with room for more."""
    area = {  # by the level that has to come of it
        Level.PTE: Area(offset=PAGE, length=4 * MIB, align=2 * MIB),
        Level.PMD: Area(offset=2 * MIB, length=GIB, align=GIB),
        Level.PUD: Area(offset=GIB, length=GIB, align=GIB),
    }[level]
    last = area.length - 8
    size = level.size_bytes
    with vm.run("area", *area.words(0, last)) as guest:
        touched = guest.until("touched")
        with claim(f"a {level.label} at each end of the mapping, and none larger", fn.vfio_pci_mmap_huge_fault):
            ends = [(0, level), (area.length - size, level)] if area.length > size else [(0, level)]
            assert leaves_of(touched) == expected(vm, area, *ends)
        with claim("the last byte's pfn is that of the same offset in the BAR", fn.vfio_pci_mmap_huge_fault):
            page = (area.offset + last) // PAGE
            assert touched["parent"].leaf("bar", last).pfn_at(
                touched["parent"].mapping("bar").declared.vaddr + last
            ) == (touched.bar("bar").start_paddr // PAGE + page)


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault)
def test_area_shorter_than_a_leaf(vm: VM, level: Level, claim: Claims) -> None:
    """A VMA one page shorter than a leaf gets the next smaller leaves, and 4K leaves in the incomplete last part."""
    below = BELOW[level]
    area = Area(length=level.size_bytes - PAGE, align=level.size_bytes)
    last = area.length - PAGE
    with vm.run("area", *area.words(0, last)) as guest:
        touched = guest.until("touched")
        with claim(f"the first touch faults in a {below.label}, the last a pte", fn.vfio_pci_mmap_huge_fault):
            assert leaves_of(touched) == [(0, below), (last, Level.PTE)]


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault)
def test_area_of_a_leaf_and_a_bit(vm: VM, level: Level, claim: Claims) -> None:
    """A VMA a little longer than a leaf gets that leaf, and smaller ones beyond it."""
    size = level.size_bytes
    bit = [(size, Level.PTE)] if level is Level.PMD else [(size, Level.PMD), (size + 2 * MIB, Level.PTE)]
    area = Area(length=bit[-1][0] + PAGE, align=size)
    with vm.run("area", *area.words(0, *(at for at, _ in bit))) as guest:
        touched = guest.until("touched")
        with claim(f"a {level.label}, and smaller leaves beyond it", fn.vfio_pci_mmap_huge_fault):
            assert leaves_of(touched) == [(0, level), *bit]
        with claim("every leaf has the same bits but for PSE", fn.vfio_pci_mmap_huge_fault):
            first, *others = touched["parent"].leaves("bar")
            for leaf in others:
                assert (leaf.bits ^ first.bits).names() in ((), ("PSE",))


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault)
def test_area_from_the_middle_of_a_leaf(vm: VM, level: Level, claim: Claims) -> None:
    """A VMA that begins in the middle of a leaf gets smaller leaves up to the boundary, and whole ones after it."""
    size, below = level.size_bytes, BELOW[level]
    half = size // 2
    area = Area(offset=half, length=half + size, align=size, skew=half)
    with vm.run("area", *area.words(0, half - PAGE, half)) as guest:
        touched = guest.until("touched")
        with claim(f"{below.label} leaves before the boundary, a {level.label} after it", fn.vfio_pci_mmap_huge_fault):
            assert leaves_of(touched) == [(0, below), (half - below.size_bytes, below), (half, level)]
