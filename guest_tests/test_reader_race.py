"""A thread that reads what the kernel tells of a process's memory, against one that changes its mapping of a BAR."""

import pytest

from harness.claims import Claims
from harness.machine import VM
from harness.pagetable import Level

#: Each actor, its rounds, and what decides that it gets what it would get alone.
ACTORS = {
    "fault": (400, "drivers/vfio/pci/vfio_pci_core.c vfio_pci_mmap_huge_fault()"),
    "dma": (2000, "drivers/vfio/vfio_iommu_type1.c follow_fault_pfn()"),
    "fork": (60, "mm/memory.c copy_page_range()"),
    "memory": (200, "drivers/vfio/pci/vfio_pci_core.c vfio_pci_zap_bars()"),
}
MOVED = {"mremap": (300, "mm/mremap.c move_page_tables()")}
INSERTED_BY = {
    Level.PTE: "mm/memory.c insert_pfn()",
    Level.PMD: "mm/huge_memory.c insert_pfn_pmd()",
    Level.PUD: "mm/huge_memory.c insert_pfn_pud()",
}
TIMEOUT_S = 120.0


def _against(vm: VM, level: Level, claim: Claims, reader: str, actors: dict[str, tuple[int, str]] = ACTORS) -> None:
    """Runs one reader against the actors, one after the other."""
    for actor, (rounds, by) in actors.items():
        words = (f"--level={level.label}", f"--reader={reader}", f"--actors={actor}", f"--rounds={rounds}")
        with vm.run("reader_race", *words, timeout_s=TIMEOUT_S) as guest:
            at = guest.until(f"after-{actor}")["parent"]
            with claim(f"{actor}: one leaf a place is left, of the level", INSERTED_BY[level]):
                assert {leaf.level for leaf in at.leaves("bar")} == {level}
                assert len(at.leaves("bar")) == 1 or level is Level.PTE
            outcome, _, tables = guest.result.values[actor].partition(", ")
            with claim(f"{actor}: no call is refused while another thread reads", by):
                assert outcome == "none"
            with claim(f"{actor}: no table is left over", "mm/memory.c free_pgtables()"):
                assert tables == "0 KiB of tables more"


LEVELS = pytest.mark.levels("pte", "pmd", "pud")
TWO_CPUS = pytest.mark.machine(smp=2)


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by("mm/pagewalk.c walk_pud_range()", "fs/proc/task_mmu.c pagemap_read()")
def test_reader_race_pagemap(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/pagemap is read while the mapping faults, is mapped for the device, forked and revoked."""
    _against(vm, level, claim, "pagemap")


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by("mm/pagewalk.c walk_pud_range()", "fs/proc/task_mmu.c show_smap()")
def test_reader_race_smaps(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/smaps is read while the mapping faults, is mapped for the device, forked and revoked."""
    _against(vm, level, claim, "smaps")


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by("mm/pagewalk.c walk_pud_range()", "fs/proc/task_mmu.c show_numa_map()")
def test_reader_race_numa_maps(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/numa_maps is read while the mapping faults, is mapped for the device, forked and revoked."""
    _against(vm, level, claim, "numa-maps")


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by("mm/pagewalk.c walk_pud_range()", "mm/mremap.c move_page_tables()")
def test_reader_race_mremap(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/numa_maps is read while the mapping moves."""
    _against(vm, level, claim, "numa-maps", MOVED)
