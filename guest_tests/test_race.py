"""Two threads on two CPUs use one mapping at once: what they leave is what one of the possible orders leaves."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.observe.snapshot import ProcessView
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 30.0


def _one_leaf_a_place(process: ProcessView, level: Level) -> None:
    leaves = process.leaves("bar")
    assert {leaf.level for leaf in leaves} <= {level}
    if level is not Level.PTE:
        assert len(leaves) <= 1
    assert all(leaf.write for leaf in leaves)


def _accesses(guest: GuestRun, claim: Claims) -> None:
    """Every access of the other thread either got through or ended by the signal that it should."""
    values = guest.result.values
    with claim(
        "some of the thread's accesses succeeded, some were refused, and nothing else happened", fn.handle_mm_fault
    ):
        assert int(values["values"]) > 0
        assert int(values["refusals"]) > 0
        assert values["others"] == "0"


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.machine(smp=2)
@pytest.mark.decided_by(fn.INSERTED_BY)
def test_race_fault(vm: VM, level: Level, claim: Claims) -> None:
    """A read and a write that fault on one fresh leaf at once make one leaf of the level, and leak no page table."""
    with vm.run("race", f"--level={level.label}", "--case=fault", "--rounds=80", timeout_s=TIMEOUT_S) as guest:
        at = guest.until("raced")
        with claim("both faults made one leaf of the level", fn.INSERTED_BY[level]):
            _one_leaf_a_place(at["parent"], level)
            assert at["parent"].leaf("bar").young
        with claim("the write set the dirty bit, whether it won or lost the race", fn.INSERTED_BY[level]):
            half = at["parent"].mapping("bar").declared.size_bytes // 2
            assert at["parent"].leaf("bar", half).dirty
        with claim("no round leaked a page table", fn.free_pgtables):
            assert guest.result.values["tables-most"] == guest.result.values["tables-first"]


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.machine(smp=2)
@pytest.mark.decided_by(fn.COPIED_BY)
def test_race_fork(vm: VM, level: Level, claim: Claims) -> None:
    """fork() while another thread remaps and faults: the child has the leaf or a hole, and can write either way."""
    with vm.run("race", f"--level={level.label}", "--case=fork", "--rounds=25", timeout_s=TIMEOUT_S) as guest:
        at = guest.until("forked")
        with claim("the child has the parent's leaf of the level, or none", fn.COPIED_BY[level]):
            _one_leaf_a_place(at["child"], level)
        at = guest.until("child-written")
        with claim("the child's write has a leaf of its own", fn.INSERTED_BY[level]):
            _one_leaf_a_place(at["child"], level)
            assert at["child"].leaf("bar").dirty
        at = guest.until("raced")
        with claim("the parent is left with its own leaf", fn.COPIED_BY[level]):
            _one_leaf_a_place(at["parent"], level)
            assert at["parent"].leaf("bar").dirty
        with claim("every child could read and write", fn.COPIED_BY[level]):
            assert (guest.result.values["failed"], guest.result.values["last"]) == ("0", "0")


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.machine(smp=2)
@pytest.mark.decided_by(fn.unmap_page_range)
def test_race_munmap(vm: VM, level: Level, claim: Claims) -> None:
    """munmap() during another thread's accesses: each succeeds or gets SIGSEGV, and no leaf stays behind."""
    with vm.run("race", f"--level={level.label}", "--case=munmap", "--rounds=80", timeout_s=TIMEOUT_S) as guest:
        at = guest.until("raced")
        with claim("no leaf is left where nothing is mapped", fn.unmap_page_range):
            assert not at["parent"].leaves("bar")
        at = guest.until("again")
        with claim("mapped again, a read makes one leaf of the level, clean", fn.INSERTED_BY[level]):
            _one_leaf_a_place(at["parent"], level)
            assert not at["parent"].leaf("bar").dirty
        _accesses(guest, claim)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.machine(smp=2)
@pytest.mark.decided_by(fn.vfio_pci_zap_bars)
def test_race_memory(vm: VM, level: Level, claim: Claims) -> None:
    """Memory off during another thread's accesses: each succeeds or gets SIGBUS, and no leaf is left while off."""
    with vm.run("race", f"--level={level.label}", "--case=memory", "--rounds=80", timeout_s=TIMEOUT_S) as guest:
        at = guest.until("raced")
        with claim("no leaf while the device's memory is off", fn.vfio_pci_zap_bars):
            assert not at["parent"].leaves("bar")
        at = guest.until("again")
        with claim("on again, a read makes one leaf of the level, clean", fn.INSERTED_BY[level]):
            _one_leaf_a_place(at["parent"], level)
            assert not at["parent"].leaf("bar").dirty
        _accesses(guest, claim)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.machine(smp=2)
@pytest.mark.decided_by(fn.CHANGED_BY)
def test_race_mprotect(vm: VM, level: Level, claim: Claims) -> None:
    """mprotect() during another thread's writes: each succeeds or gets SIGSEGV, and no dirty bit is lost."""
    with vm.run("race", f"--level={level.label}", "--case=mprotect", "--rounds=80", timeout_s=TIMEOUT_S) as guest:
        at = guest.until("raced")
        readonly = at["parent"].leaf("bar")
        with claim("the leaf is not writable, and of the level", fn.CHANGED_BY[level]):
            assert readonly.level is level
            assert not readonly.write
        with claim("the dirty bit of a write that succeeded before is not lost", fn.CHANGED_BY[level]):
            assert readonly.kernel_dirty
        at = guest.until("again")
        with claim("writable again, it is as dirty as it was", fn.CHANGED_BY[level]):
            assert at["parent"].leaf("bar").write
            assert at["parent"].leaf("bar").dirty is readonly.kernel_dirty
        _accesses(guest, claim)
