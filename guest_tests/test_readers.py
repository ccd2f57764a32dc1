"""Whoever reads a process's memory gets nothing out of a pfnmap, and leaves the entries of parent and child alone."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.kernel import load_order, read
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace


def _reader(
    vm: VM, level: Level, claim: Claims, case: str, expected: dict[str, str], by: fn.KernelFunction, *options: str
) -> dict[str, str]:
    """Runs one reader; claims what it got, and that no entry changed. Returns all that it reported."""
    with vm.run("readers", f"--level={level.label}", f"--case={case}", *options) as guest:
        before = guest.until("before")
        with claim("parent and child each have their own leaf, young and dirty", by):
            for name in ("parent", "child"):
                assert before[name].leaf("bar").level is level
                assert before[name].leaf("bar").young
                assert before[name].leaf("bar").dirty
        after = guest.until("after")
        for name in ("parent", "child"):
            with claim(f"the {name}'s entry is as it was before the reader ran", by):
                assert after[name].leaf("bar").entry == before[name].leaf("bar").entry
        again = guest.until("again")
        with claim("the parent's next write uses the same leaf, at the same level", by):
            assert again["parent"].leaf("bar").entry == before["parent"].leaf("bar").entry
        values = guest.result.values
        for what, value in expected.items():
            with claim(f"{case}: {what} gives {value}", by):
                assert values[what] == value
        return values


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.pagemap_read, fn.walk_page_test)
def test_readers_pagemap(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/pagemap shows no page of a pfnmap, and reading it changes no entry."""
    expected = {"pages": "0", "control": "ok"}
    _reader(vm, level, claim, "pagemap", expected, fn.walk_page_test)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.smap_gather_stats, fn.walk_pud_range)
def test_readers_smaps(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/smaps counts no page of a pfnmap (Rss 0 kB, flags pf io de dd), and reading it changes no entry."""
    expected = {"rss": "0 kB", "control": "4 kB"}
    values = _reader(
        vm, level, claim, "smaps", expected, fn.walk_pud_range if level is Level.PUD else fn.vm_normal_page
    )
    with claim("its flags are pf, io, de and dd: no pages, no growing, no dump", fn.remap_pfn_range):
        assert {"pf", "io", "de", "dd", "sh", "wr"} <= set(values["flags"].split())


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.show_smaps_rollup, fn.walk_pud_range)
def test_readers_smaps_rollup(vm: VM, level: Level, claim: Claims) -> None:
    """Reading /proc/PID/smaps_rollup changes no entry of a pfnmap."""
    _reader(vm, level, claim, "smaps-rollup", {}, fn.walk_pud_range)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.show_numa_map, fn.walk_pud_range)
def test_readers_numa_maps(vm: VM, level: Level, claim: Claims) -> None:
    """/proc/PID/numa_maps counts no page of a pfnmap, and reading it changes no entry."""
    _reader(vm, level, claim, "numa-maps", {"pages": "none", "control": "ok"}, fn.walk_pud_range)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.process_vm_rw_single_vec, fn.check_vma_flags)
def test_readers_process_vm(vm: VM, level: Level, claim: Claims) -> None:
    """process_vm_readv and process_vm_writev of another's pfnmap: EFAULT."""
    _reader(vm, level, claim, "process-vm", {"read": "EFAULT", "write": "EFAULT", "control": "ok"}, fn.check_vma_flags)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.ptrace_access_vm, fn.__access_remote_vm)
def test_readers_ptrace(vm: VM, level: Level, claim: Claims) -> None:
    """PTRACE_PEEKDATA and POKEDATA of a pfnmap: EIO, since vfio-pci's VMAs have no access method."""
    expected = {"peek": "EIO", "poke": "EIO", "control": "ok"}
    _reader(vm, level, claim, "ptrace", expected, fn.__access_remote_vm)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.mem_rw, fn.__access_remote_vm)
def test_readers_mem(vm: VM, level: Level, claim: Claims) -> None:
    """Reading and writing a pfnmap through /proc/PID/mem: EIO."""
    expected = {"read": "EIO", "write": "EIO", "control": "ok"}
    _reader(vm, level, claim, "mem", expected, fn.__access_remote_vm)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vmsplice_to_pipe, fn.check_vma_flags)
def test_readers_vmsplice(vm: VM, level: Level, claim: Claims) -> None:
    """vmsplice of a pfnmap into a pipe: EFAULT."""
    _reader(vm, level, claim, "vmsplice", {"gift": "EFAULT", "control": "ok"}, fn.check_vma_flags)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.leaves_a_trace("loads the module loop")
@pytest.mark.decided_by(fn.pin_user_pages_fast, fn.check_vma_flags)
def test_readers_direct(vm: VM, level: Level, claim: Claims) -> None:
    """Direct I/O (O_DIRECT) from and to a pfnmap: EFAULT."""
    for module in load_order(vm.kernel, ("loop",)).modules:
        vm.on_loop(vm.agent.put(f"/tests/{module.name}.ko", read(module)))
    expected = {"write": "EFAULT", "read": "EFAULT", "control": "ok"}
    _reader(vm, level, claim, "direct", expected, fn.check_vma_flags, "--module=/tests/loop.ko")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.raw_copy_from_user)
def test_readers_write(vm: VM, level: Level, claim: Claims) -> None:
    """write(2) from a pfnmap and read(2) into it work: the kernel copies through the process's own mapping."""
    expected = {"write": "ok", "read": "ok", "control": "ok"}
    _reader(vm, level, claim, "write", expected, fn.raw_copy_from_user)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.leaves_a_trace("sets kernel.core_pattern, and leaves a file")
@pytest.mark.decided_by(fn.vma_dump_size)
def test_readers_core(vm: VM, level: Level, claim: Claims) -> None:
    """A core dump contains no byte of a pfnmap, and dumping one process leaves the others' entries alone."""
    _reader(vm, level, claim, "core", {"bytes": "0", "control": "4096"}, fn.vma_dump_size)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.do_pages_stat_array)
def test_readers_move_pages(vm: VM, level: Level, claim: Claims) -> None:
    """move_pages() that asks for the node of a page of a pfnmap gets the answer that there is no page."""
    by = fn.do_pages_stat_array
    # follow_page(), which folio_walk_start() replaced there in 6.12, answered EFAULT for a special entry.
    walks_folios = b" folio_walk_start\n" in vm.get("/proc/kallsyms")
    expected = {"status": "ENOENT" if walks_folios else "EFAULT", "control": "ok"}
    _reader(vm, level, claim, "move-pages", expected, by)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.lookup_node, fn.check_vma_flags)
def test_readers_mempolicy(vm: VM, level: Level, claim: Claims) -> None:
    """get_mempolicy() gets EFAULT for the node of a page of a pfnmap, and an answer for the policy of its VMA."""
    _reader(vm, level, claim, "mempolicy", {"node": "EFAULT", "policy": "ok", "control": "ok"}, fn.check_vma_flags)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn, fn.follow_pfnmap_start)
def test_readers_map_dma(vm: VM, level: Level, claim: Claims) -> None:
    """VFIO_IOMMU_MAP_DMA maps the BAR for DMA, from the middle of a leaf too, and UNMAP_DMA unmaps all of it."""
    by = fn.follow_fault_pfn
    values = _reader(vm, level, claim, "map-dma", {"map": "ok", "control": "ok", "control-unmapped": "4096"}, by)
    with claim("VFIO_IOMMU_UNMAP_DMA unmaps all that was mapped", fn.vfio_dma_do_unmap):
        assert values["unmapped"] == values["size"]


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.follow_fault_pfn, fn.fixup_user_fault)
def test_readers_map_dma_untouched(vm: VM, level: Level, claim: Claims) -> None:
    """VFIO_IOMMU_MAP_DMA of an untouched BAR faults in its leaf, as a first write would."""
    by = fn.follow_fault_pfn
    with vm.run("readers", f"--level={level.label}", "--case=map-dma", "--untouched=1") as guest:
        at = guest.until("before")
        with claim("nothing is mapped before", by):
            assert at["parent"].leaves("bar") == ()
        made = guest.until("after")["parent"]
        with claim(f"a writable {level.label} is faulted in", by):
            assert made.leaf("bar").level is level
            assert made.leaf("bar").write
        with claim("mapping for DMA leaves the leaf clean: the process has not written", by):
            assert not made.leaf("bar").kernel_dirty
        written = guest.until("again")["parent"].leaf("bar")
        with claim("the process's own write uses that leaf and sets its dirty bit", fn.CPU):
            assert written.dirty
            assert written.pfn == made.leaf("bar").pfn
        with claim("the BAR was mapped for DMA", by):
            assert guest.result.values["map"] == "ok"
