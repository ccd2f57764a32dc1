"""What happens to mappings and data when the device's memory is off, or it is reset, asleep, or its file closed."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.errors import PremiseNotMet
from harness.machine.vm import VM
from harness.observe.snapshot import ProcessView, Snapshot
from harness.pagetable import Bits, Leaf, Level

pytestmark = pytest.mark.leaves_no_trace

#: What zaps a shared mapping, by level.
TAKEN_BY = {
    Level.PTE: fn.zap_pte_range,
    Level.PMD: fn.zap_huge_pmd,
    Level.PUD: fn.zap_huge_pud,
}
#: PAT index of uncached-minus: PCD alone (arch/x86/mm/pat/memtype.c, pat_bp_init()).
UC_MINUS = 2
#: BUS_ADRERR, include/uapi/asm-generic/siginfo.h
REFUSED = "BUS code 2 at the address"


def is_fresh(leaf: Leaf, before: Leaf) -> bool:
    """Whether a leaf is as a first read makes it: at the place of the one before, young and clean."""
    return (leaf.level, leaf.pfn) == (before.level, before.pfn) and leaf.young and not leaf.kernel_dirty


def holders(at: Snapshot, *mappings: str) -> list[str]:
    """Who has an entry in which of the mappings: "child bar"."""
    return [f"{process.name} {name}" for process in at for name in mappings if process.leaves(name)]


def holds(process: ProcessView, level: Level) -> bool:
    """Whether a process has a dirty leaf of the level."""
    leaf = process.find_leaf("bar")
    return leaf is not None and leaf.level is level and leaf.dirty


def highest(vm: VM) -> Level:
    """The largest leaf of a BAR that this kernel makes."""
    return next(level for level in (Level.PUD, Level.PMD, Level.PTE) if not vm.caps.why_not(level))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_zap_bars, fn.vfio_basic_config_write, fn.vfio_pci_mmap_huge_fault)
def test_device_memory_off(vm: VM, level: Level, claim: Claims) -> None:
    """Turning the device's memory off zaps the leaf of parent and child; on again, an access faults in a fresh one."""
    with vm.run("device", "--case=memory", f"--level={level.label}") as guest:
        held = guest.until("held")
        before = held["parent"].leaf("bar")
        with claim("parent and child hold a dirty leaf", fn.INSERTED_BY[level]):
            assert holds(held["parent"], level)
            assert holds(held["child"], level)
        at = guest.until("off")
        with claim("memory off zaps the leaf of the process that turned it off", fn.vfio_pci_zap_bars):
            assert at["parent"].find_leaf("bar") is None
        with claim("memory off zaps the child's leaf as well", TAKEN_BY[level]):
            assert at["child"].find_leaf("bar") is None
        at = guest.until("refused")
        with claim("an access while the memory is off makes no entry", fn.vfio_pci_mmap_huge_fault):
            assert holders(at, "bar") == []
        at = guest.until("on")
        with claim("turning the memory on brings no entry back by itself", fn.vfio_basic_config_write):
            assert holders(at, "bar") == []
        at = guest.until("read")
        with claim("a read faults in a fresh leaf: same level and pfn, young and clean", fn.INSERTED_BY[level]):
            again = at["parent"].leaf("bar")
            assert is_fresh(again, before)
            assert again.bits == before.bits & ~Bits.D
        with claim("the parent's access maps nothing in the child", fn.INSERTED_BY[level]):
            assert at["child"].find_leaf("bar") is None
        at = guest.until("written")
        with claim("the child's write faults in the child's own leaf again, dirty", fn.INSERTED_BY[level]):
            child = at["child"].leaf("bar")
            assert child.dirty
            assert (child.level, child.pfn) == (before.level, before.pfn)
        with claim("the child's write leaves the parent's fresh leaf clean", fn.CPU):
            assert not at["parent"].leaf("bar").kernel_dirty
        for who in ("parent", "child"):
            with claim(f"memory off: the {who}'s read gets SIGBUS, BUS_ADRERR, at the address itself", fn.do_sigbus):
                assert guest.result.values[f"{who}-read"] == REFUSED
            with claim(f"memory off: the {who}'s write gets SIGBUS, BUS_ADRERR, at the address itself", fn.do_sigbus):
                assert guest.result.values[f"{who}-write"] == REFUSED
        with claim("memory on: the child's write takes one fault", fn.handle_mm_fault):
            assert guest.result.values["child-faults-on"] == "1"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_zap_bars, fn.vfio_pci_mmap_huge_fault)
def test_device_memory_off_readonly(vm: VM, level: Level, claim: Claims) -> None:
    """A read-only leaf that is revoked comes back read-only, without the dirty bit of the old one."""
    with vm.run("device", "--case=readonly", f"--level={level.label}") as guest:
        before = guest.until("readonly")["parent"].leaf("bar")
        with claim("before: a read-only leaf that keeps its dirty bit", fn.pte_wrprotect):
            assert before.level is level
            assert not before.write
            assert before.kernel_dirty
        after = guest.until("read")["parent"].leaf("bar")
        with claim("the fresh leaf is read-only, as its VMA is", fn.INSERTED_BY[level]):
            assert not after.write
        with claim("the fresh leaf is clean, by D and by SAVED_DIRTY", fn.INSERTED_BY[level]):
            assert is_fresh(after, before)
            assert not after.saved_dirty
        writable = guest.until("writable")["parent"].leaf("bar")
        with claim("made writable, the fresh leaf is writable and clean", fn.change_protection):
            assert writable.write
            assert writable.entry.bits == after.bits | Bits.W
        with claim("a write to the fresh leaf while it is read-only gets SIGSEGV", fn.access_error):
            assert guest.result.values["readonly-write"] == "SEGV code 2 at the address"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_zap_bars, fn.vfio_basic_config_write, fn.vfio_pci_mmap_huge_fault)
def test_device_fork_while_off(vm: VM, level: Level, claim: Claims) -> None:
    """A child forked while the memory is off inherits no leaf; it can turn the memory on for all processes."""
    with vm.run("device", "--case=fork-off", f"--level={level.label}") as guest:
        at = guest.until("off")
        with claim("neither parent nor child has a leaf", fn.vfio_pci_zap_bars):
            assert holders(at, "bar") == []
            assert "child" in at
        at = guest.until("child-on")
        with claim("the child turns the memory on through the descriptor it inherited", fn.vfio_basic_config_write):
            child = at["child"].leaf("bar")
            assert (child.level, child.young, child.dirty, child.write) == (level, True, False, True)
        with claim("that maps nothing in the parent yet", fn.INSERTED_BY[level]):
            assert at["parent"].find_leaf("bar") is None
        at = guest.until("later")
        with claim("the parent's own write faults in its leaf", fn.INSERTED_BY[level]):
            assert holds(at["parent"], level)
            assert at["parent"].leaf("bar").pfn == child.pfn
        with claim("a child forked after that has the leaf at once, writable", fn.COPIED_BY[level]):
            assert at["later"].leaf("bar").level is level
            assert at["later"].leaf("bar").write
        with claim("the child's read while the memory is off gets SIGBUS", fn.do_sigbus):
            assert guest.result.values["child-read"] == REFUSED
        with claim("the child's write while the memory is off gets SIGBUS", fn.do_sigbus):
            assert guest.result.values["child-write"] == REFUSED


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_zap_bars, fn.unmap_mapping_range)
def test_device_memory_off_everywhere(vm: VM, level: Level, claim: Claims) -> None:
    """Memory off zaps every entry: of four processes, and of two mappings of the same memory at different levels."""
    who = ["parent", "child", "grandchild", "sibling"]
    with vm.run("device", "--case=many", f"--level={level.label}") as guest:
        held = guest.until("held")
        with claim("four processes hold a dirty leaf, and 4K entries of the same memory", fn.INSERTED_BY[level]):
            assert sorted(process.name for process in held) == sorted(who)
            for process in held:
                assert holds(process, level)
                low = process.leaf("low")
                assert (low.level, low.dirty, low.pfn) == (Level.PTE, True, process.leaf("bar").pfn)
        at = guest.until("off")
        for name in who:
            with claim(f"{name} has lost its leaf", TAKEN_BY[level]):
                assert not at[name].leaves("bar")
            with claim(f"{name} has lost its 4K entries", TAKEN_BY[Level.PTE]):
                assert not at[name].leaves("low")
        at = guest.until("on")
        with claim("each mapping has its own level again", fn.INSERTED_BY[level]):
            assert holds(at["parent"], level)
            assert at["parent"].leaf("low").level is Level.PTE
        with claim("no other process has an entry yet", fn.INSERTED_BY[level]):
            assert holders(at, "bar", "low") == ["parent bar", "parent low"]


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.__handle_mm_fault, fn.zap_pte_range)
def test_device_memory_off_keeps_tables(vm: VM, level: Level, claim: Claims) -> None:
    """Revocation empties page tables but does not free them: where 4K entries were, no larger leaf comes back."""
    decided_by = fn.__handle_mm_fault
    with vm.run("device", "--case=tables", f"--level={level.label}") as guest:
        small = guest.until("small")["parent"].leaf("bar")
        with claim("without huge pages the first touch faults in a 4K entry", fn.__thp_vma_allowable_orders):
            assert small.level is Level.PTE
        with claim("memory off zaps it", TAKEN_BY[Level.PTE]):
            assert not guest.until("off")["parent"].leaves("bar")
        at = guest.until("again")["parent"]
        with claim(
            "with huge pages allowed again, it is a 4K entry as before: its page table is still there", decided_by
        ):
            assert at.leaf("bar").level is Level.PTE
            assert at.leaf("bar").pfn == small.pfn
        last = at.mapping("bar").declared.size_bytes - 8
        with claim("elsewhere in the VMA: the largest leaf for which no page table is in the way", decided_by):
            assert at.leaf("bar", last).level is (Level.PMD if level is Level.PUD else Level.PTE)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault, fn.vfio_pci_zap_bars)
def test_device_two_bars(vm: VM, level: Level, claim: Claims) -> None:
    """BAR 0 and BAR 2 mapped at once: each has its own pfns, and memory off zaps both."""
    registers = next((bar for bar in vm.bars if bar.name == "bar0"), None)
    if registers is None or registers.size_bytes % 4096:
        raise PremiseNotMet("the device has no BAR 0 of whole pages")
    with vm.run("device", "--case=bars", f"--level={level.label}") as guest:
        at = guest.until("both")
        for process in at:
            with claim(f"the {process.name}'s 4K entry of BAR 0 has BAR 0's pfn", fn.vfio_pci_mmap_huge_fault):
                assert process.leaf("registers").level is Level.PTE
                assert process.leaf("registers").pfn == registers.start_paddr >> 12
            with claim(f"the {process.name}'s leaf of BAR 2 has BAR 2's pfn", fn.vfio_pci_mmap_huge_fault):
                assert process.leaf("bar").level is level
                assert process.leaf("bar").pfn == vm.bar.start_paddr >> 12
        with claim("each entry has its own dirty bit", fn.CPU):
            assert [at["parent"].leaf(name).dirty for name in ("registers", "bar")] == [False, True]
            assert at["child"].leaf("registers").dirty
        with claim("both BARs have the same cache bits", fn.vfio_pci_core_mmap):
            assert at["parent"].leaf("registers").cache == at["parent"].leaf("bar").cache
        held = at
        with claim("memory off zaps both, in parent and child", fn.vfio_pci_zap_bars):
            assert holders(guest.until("off"), "registers", "bar") == []
        with claim("an access to either while off makes no entry", fn.vfio_pci_mmap_huge_fault):
            assert holders(guest.until("refused"), "registers", "bar") == []
        at = guest.until("on")
        for name in ("registers", "bar"):
            with claim(f"memory on: {name} is read through a fresh entry", fn.vfio_pci_mmap_huge_fault):
                assert is_fresh(at["parent"].leaf(name), held["parent"].leaf(name))
        for which in ("child", "child-registers"):
            with claim(f"{which}: access while off gets SIGBUS", fn.do_sigbus):
                assert guest.result.values[f"{which}-read"] == REFUSED
                assert guest.result.values[f"{which}-write"] == REFUSED


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault)
def test_device_mapped_twice(vm: VM, level: Level, claim: Claims) -> None:
    """The same memory mapped twice in a process, as a leaf and as 4K entries: same pfn, and nothing else in common."""
    with vm.run("device", "--case=twice", f"--level={level.label}") as guest:
        at = guest.until("written")["parent"]
        written = at.leaf("bar")
        with claim("a write through one mapping maps nothing in the other", fn.handle_mm_fault):
            assert written.level is level
            assert not at.leaves("low")
        at = guest.until("read")["parent"]
        with claim("the other mapping has 4K entries with the same pfn", fn.vfio_pci_mmap_huge_fault):
            assert at.leaf("low").level is Level.PTE
            assert at.leaf("low").pfn == written.pfn
        with claim("its entry is clean: the dirty bit belongs to an entry, not to the memory", fn.CPU):
            assert not at.leaf("low").dirty
            assert at.leaf("bar").dirty
        with claim("unmapping one leaves the other as it was", fn.unmap_page_range):
            assert guest.until("alone")["parent"].leaf("bar").entry == written.entry


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.machine(device="ivshmem-plain")
@pytest.mark.decided_by(fn.vfio_pci_mmap_huge_fault, fn.vfio_pci_zap_bars)
def test_device_data(vm: VM, level: Level, claim: Claims) -> None:
    """What is written through a leaf is read through every other level, in a child, and by the device."""
    top = highest(vm)
    levels = [each for each in (Level.PTE, Level.PMD, Level.PUD) if each <= top]
    first, second = ("1000 1001 1002 1003", "2000 2001 2002 2003")
    with vm.run("device", "--case=data", f"--level={level.label}", f"--top={top.label}") as guest:
        writer = guest.until("written")["parent"]
        with claim("the writes are in the device's memory, page by page", fn.INSERTED_BY[level]):
            assert [vm.bar_word(4096 * page) for page in range(4)] == [0x1000, 0x1001, 0x1002, 0x1003]
        with claim("the writer's leaf has its level and is dirty", fn.INSERTED_BY[level]):
            assert writer.leaf(f"as-{level.label}").level is level
            assert writer.leaf(f"as-{level.label}").dirty
        at = guest.until("child-written")
        for each in levels:
            with claim(f"the mapping by {each.label} has a leaf of its level, with the same pfn", fn.INSERTED_BY[each]):
                leaf = at["parent"].leaf(f"as-{each.label}")
                assert leaf.level is each
                assert leaf.pfn == vm.bar.start_paddr >> 12
        with claim("RAM behind the BAR is mapped uncached-minus too, at every level", fn.vfio_pci_core_mmap):
            assert {at["parent"].leaf(f"as-{each.label}").cache for each in levels} == {UC_MINUS}
        with claim("reading through the other levels set no dirty bit there", fn.CPU):
            others = [each for each in levels if each is not level]
            assert not any(at["parent"].leaf(f"as-{each.label}").dirty for each in others)
        with claim("the child's writes are in the device's memory", fn.COPIED_BY[level]):
            assert [vm.bar_word(4096 * page) for page in range(4)] == [0x2000, 0x2001, 0x2002, 0x2003]
        with claim("the data outlives revocation: it belongs to the device", fn.vfio_pci_zap_bars):
            assert guest.until("read")["parent"].find_leaf(f"as-{level.label}") is not None
            assert guest.result.values["revoked-saw"] == second
        with claim("the child reads what the parent wrote, through the leaf it got at fork", fn.COPIED_BY[level]):
            assert guest.result.values["child-saw"] == first
        for each in levels:
            with claim(f"what was written by {level.label} is read by {each.label}", fn.INSERTED_BY[each]):
                assert guest.result.values[f"{each.label}-saw"] == first
            with claim(f"what the child wrote is read by {each.label} in the parent", fn.INSERTED_BY[each]):
                assert guest.result.values[f"then-{each.label}-saw"] == second


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.mmap_region, fn.vfio_group_fops_open)
def test_device_closed_while_mapped(vm: VM, level: Level, claim: Claims) -> None:
    """A mapping outlives every descriptor of its device: the VMA holds the file, and the file holds the device."""
    opened_by = fn.vfio_group_fops_open
    with vm.run("device", "--case=closed", f"--level={level.label}") as guest:
        written = guest.until("written")["parent"].leaf("bar")
        at = guest.until("closed")["parent"]
        with claim("the leaf is as it was", fn.mmap_region):
            assert at.leaf("bar").entry == written.entry
            assert written.level is level
        at = guest.until("touched")["parent"]
        with claim("what was not touched yet can still be faulted in", fn.vfio_pci_mmap_huge_fault):
            second = at.leaf("second")
            assert (second.level, second.dirty) == (level, True)
        with claim("what is faulted in is the BAR's next memory", fn.vfio_pci_mmap_huge_fault):
            assert second.pfn == written.pfn + at.mapping("second").declared.offset_bytes // 4096
        at = guest.until("unmapped")["parent"]
        with claim("once unmapped, the device can be opened, mapped and read again", opened_by):
            again = guest.until("reopened")["parent"].leaf("bar")
            assert is_fresh(again, written)
        with claim("while it is mapped, the group cannot be opened a second time", opened_by):
            assert guest.result.values["open-while-mapped"] == "EBUSY"
        with claim("one of two mappings is enough to keep the group busy", opened_by):
            assert guest.result.values["open-half-mapped"] == "EBUSY"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_zap_bars, fn.vfio_group_fops_open)
def test_device_passed_on(vm: VM, level: Level, claim: Claims) -> None:
    """Two processes map one device, the second through a passed descriptor: a leaf each, and memory off zaps both."""
    with vm.run("device", "--case=passed", f"--level={level.label}") as guest:
        at = guest.until("both")
        parent, other = at["parent"].leaf("bar"), at["other"].leaf("bar")
        with claim("both have a leaf of the level, with the same pfn", fn.INSERTED_BY[level]):
            assert (parent.level, other.level) == (level, level)
            assert parent.pfn == other.pfn
        with claim("each has its own dirty bit", fn.CPU):
            assert [parent.dirty, other.dirty] == [False, True]
        with claim("memory off zaps the leaf of both", fn.vfio_pci_zap_bars):
            assert holders(guest.until("off"), "bar") == []
        at = guest.until("back")
        with claim("the second process turns it on again, and has a fresh leaf", fn.vfio_basic_config_write):
            assert is_fresh(at["other"].leaf("bar"), other)
        with claim("the first process has no leaf until its own access", fn.INSERTED_BY[level]):
            assert at["parent"].find_leaf("bar") is None
        with claim("a group that is open cannot be opened by a second process", fn.vfio_group_fops_open):
            assert guest.result.values["second-open"] == "EBUSY"
        with claim("the second process's access while off gets SIGBUS", fn.do_sigbus):
            assert guest.result.values["other-read"] == REFUSED
            assert guest.result.values["other-write"] == REFUSED


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_ioctl_reset, fn.vfio_pci_ioctl_get_pci_hot_reset_info)
def test_device_reset_refused(vm: VM, level: Level, claim: Claims) -> None:
    """A reset that the device does not support is refused, and zaps nothing."""
    with vm.run("device", "--case=no-reset", f"--level={level.label}") as guest:
        written = guest.until("written")["parent"].leaf("bar")
        refused = guest.until("refused")["parent"].leaf("bar")
        with claim("the leaf is as it was", fn.vfio_pci_ioctl_reset):
            assert written.level is level
            assert refused.entry == written.entry
        with claim("VFIO_DEVICE_RESET fails with EINVAL", fn.vfio_pci_ioctl_reset):
            assert guest.result.values["reset"] == "EINVAL"
        with claim("there is no bus to reset: ENODEV", fn.vfio_pci_ioctl_pci_hot_reset):
            assert guest.result.values["hot-reset-info"] == "ENODEV"
            assert guest.result.values["hot-reset"] == "ENODEV"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.vfio_pci_runtime_pm_entry, fn.vfio_pci_mmap_huge_fault)
def test_device_low_power(vm: VM, level: Level, claim: Claims) -> None:
    """Low power on request zaps the leaf of parent and child, and an access does not wake the device."""
    with vm.run("device", "--case=low-power", f"--level={level.label}") as guest:
        held = guest.until("written")
        before = held["parent"].leaf("bar")
        with claim("parent and child hold a dirty leaf", fn.INSERTED_BY[level]):
            assert holds(held["parent"], level)
            assert holds(held["child"], level)
        with claim("low power zaps the leaf of both", fn.vfio_pci_runtime_pm_entry):
            assert holders(guest.until("asleep"), "bar") == []
        with claim("an access makes no entry", fn.vfio_pci_mmap_huge_fault):
            assert holders(guest.until("refused"), "bar") == []
        with claim("waking brings no entry back by itself", fn.vfio_pci_runtime_pm_exit):
            assert holders(guest.until("awake"), "bar") == []
        with claim("awake, a read faults in a fresh leaf", fn.INSERTED_BY[level]):
            assert is_fresh(guest.until("read")["parent"].leaf("bar"), before)
        for who in ("parent", "child"):
            with claim(f"the {who}'s access gets SIGBUS", fn.do_sigbus):
                assert guest.result.values[f"{who}-read"] == REFUSED
                assert guest.result.values[f"{who}-write"] == REFUSED


@pytest.mark.machine(device="nvme")
@pytest.mark.decided_by(fn.vfio_pci_ioctl_reset, fn.vfio_pci_zap_bars)
def test_device_reset(vm: VM, claim: Claims) -> None:
    """A reset zaps every leaf, of every level, in parent and child; an access faults in a fresh one at once."""
    top = highest(vm)
    with vm.run("device", "--case=reset", f"--top={top.label}") as guest:
        written, lost, back = (guest.until(name) for name in ("written", "lost", "back"))
        _lost_and_back(claim, top, (written, lost, back), fn.vfio_pci_ioctl_reset)


@pytest.mark.machine(device="nvme")
@pytest.mark.decided_by(fn.vfio_lock_and_set_power_state, fn.vfio_pci_zap_bars)
def test_device_d3hot(vm: VM, claim: Claims) -> None:
    """D3hot zaps every leaf, of every level, in parent and child; until D0 an access gets SIGBUS, then a fresh leaf."""
    top = highest(vm)
    with vm.run("device", "--case=sleep", f"--top={top.label}") as guest:
        written, lost, back = (guest.until(name) for name in ("written", "lost", "back"))
        _lost_and_back(claim, top, (written, lost, back), fn.vfio_lock_and_set_power_state)
        for who in ("child", *(level.label for level in Level if level <= top)):
            with claim(f"in D3hot an access gets SIGBUS: {who}", fn.__vfio_pci_memory_enabled):
                assert guest.result.values[f"{who}-read"] == REFUSED
                assert guest.result.values[f"{who}-write"] == REFUSED


def _lost_and_back(
    claim: Claims, top: Level, stops: tuple[Snapshot, Snapshot, Snapshot], by: fn.KernelFunction
) -> None:
    written, lost, back = stops
    for level in (Level.PTE, Level.PMD, Level.PUD):
        if level > top:
            continue
        name = f"as-{level.label}"
        for who in ("parent", "child"):
            with claim(f"{level.label}: the {who} held a dirty leaf", fn.INSERTED_BY[level]):
                assert (written[who].leaf(name).level, written[who].leaf(name).dirty) == (level, True)
            with claim(f"{level.label}: the {who} has lost it", by):
                assert not lost[who].leaves(name)
        with claim(f"{level.label}: a fresh leaf at the same place", fn.INSERTED_BY[level]):
            assert is_fresh(back["parent"].leaf(name), written["parent"].leaf(name))
