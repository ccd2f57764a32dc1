"""A thread that reads what the kernel reports about a process's memory, against one that changes a BAR's mapping."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.errors import PremiseNotMet
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

#: Of each actor: its rounds, and the function that decides whether it gets what it would get alone.
ACTORS = {
    "dma": (10000, fn.follow_fault_pfn),
    "fork": (50, fn.copy_page_range),
    # Last, since HP-014 kills the kernel here.
    "fault": (2000, fn.vfio_pci_mmap_huge_fault),
}
REVOKE = {"revoke": (60, fn.vfio_pci_zap_bars)}
MREMAP = {"mremap": (60, fn.move_page_tables)}
#: Only a pud leaf is taken for a table when it comes back at the wrong moment: HP-014, one fault in 300 on 6.18.15. At
#: the other levels, a quarter of these rounds must do: they take longer than all other races.
LONG = {"dma", "fault"}
TIMEOUT_S = 120.0
LEVELS = pytest.mark.levels("pte", "pmd", "pud")
TWO_CPUS = pytest.mark.machine(smp=2)


def _against(
    vm: VM, level: Level, claim: Claims, reader: str, actors: dict[str, tuple[int, fn.KernelFunction]] = ACTORS
) -> None:
    """Runs one reader against the actors, one after the other."""
    for actor, (most, by) in actors.items():
        rounds = most // 4 if actor in LONG and level is not Level.PUD else most
        words = (f"--level={level.label}", f"--reader={reader}", f"--actor={actor}", f"--rounds={rounds}")
        with vm.run("reader_race", *words, timeout_s=TIMEOUT_S) as guest:
            at = guest.until("raced")["parent"]
            pair = f"{reader} against {actor}"
            with claim(f"{pair}: one leaf per place is left, of the level", fn.INSERTED_BY[level]):
                assert {leaf.level for leaf in at.leaves("bar")} == {level}
                assert len(at.leaves("bar")) == 1 or level is Level.PTE
            values = guest.result.values
            with claim(f"{pair}: no call fails because another thread reads", by):
                assert values["refusal"] == "none"
            with claim(f"{pair}: no page table is leaked", fn.free_pgtables):
                assert values["tables-kib"] == "0"


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by(fn.pagemap_read, fn.walk_page_test)
def test_reader_race_pagemap(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/pagemap is read while the BAR is faulted in, mapped for DMA and forked."""
    _against(vm, level, claim, "pagemap")


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by(fn.pagemap_scan_test_walk)
def test_reader_race_scan(vm: VM, level: Level, claim: Claims) -> None:
    """PAGEMAP_SCAN walks the mapping while the BAR is faulted in, mapped for DMA and forked."""
    if not vm.caps.pagemap_scan:
        raise PremiseNotMet("this kernel has no PAGEMAP_SCAN")
    _against(vm, level, claim, "scan")


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by(fn.clear_refs_test_walk)
def test_reader_race_clear_refs(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/clear_refs is written while the BAR is faulted in, mapped for DMA and forked."""
    _against(vm, level, claim, "clear-refs")


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by(fn.show_smap, fn.walk_pud_range)
def test_reader_race_smaps(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/smaps is read while the BAR is faulted in, mapped for DMA and forked."""
    _against(vm, level, claim, "smaps")


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by(fn.show_smaps_rollup, fn.walk_pud_range)
def test_reader_race_smaps_rollup(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/smaps_rollup is read while the BAR is faulted in, mapped for DMA and forked."""
    _against(vm, level, claim, "smaps-rollup")


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by(fn.show_numa_map, fn.walk_pud_range)
def test_reader_race_numa_maps(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/numa_maps is read while the BAR is faulted in, mapped for DMA and forked."""
    _against(vm, level, claim, "numa-maps")


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by(fn.move_page_tables, fn.walk_pud_range)
def test_reader_race_mremap(vm: VM, level: Level, claim: Claims) -> None:
    """pagemap, clear_refs, PAGEMAP_SCAN, smaps, smaps_rollup and numa_maps are each used while the BAR is remapped."""
    _all_against(vm, level, claim, MREMAP)


@LEVELS
@TWO_CPUS
@pytest.mark.decided_by(fn.vfio_pci_zap_bars, fn.walk_pud_range)
def test_reader_race_revoke(vm: VM, level: Level, claim: Claims) -> None:
    """pagemap, clear_refs, PAGEMAP_SCAN, smaps, smaps_rollup and numa_maps are each used while the BAR is revoked."""
    _all_against(vm, level, claim, REVOKE)


def _all_against(vm: VM, level: Level, claim: Claims, actors: dict[str, tuple[int, fn.KernelFunction]]) -> None:
    # Those that walk first: where the actor alone makes the kernel complain (HP-003), the first pair is the only one.
    for reader in ("numa-maps", "smaps", "smaps-rollup", "pagemap", "clear-refs", "scan"):
        if reader != "scan" or vm.caps.pagemap_scan:
            _against(vm, level, claim, reader, actors)
