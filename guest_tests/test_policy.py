"""What forbids huge leaves: madvise, prctl, and the setting for transparent huge pages."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

BELOW = {Level.PMD: Level.PTE, Level.PUD: Level.PMD}


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.__thp_vma_allowable_orders)
def test_nohugepage(vm: VM, level: Level, claim: Claims) -> None:
    """After MADV_NOHUGEPAGE a pfnmap gets 4K leaves, one fault each, wherever it is touched."""
    with vm.run("policy", f"--level={level.label}", "--case=nohugepage") as guest:
        small = guest.until("small")["parent"]
        with claim("a first touch faults in one pte", fn.__thp_vma_allowable_orders):
            assert [leaf.level for leaf in small.leaves("bar")] == [Level.PTE]
            assert guest.snapshots[-1]["parent"].leaf("bar").write
        more = guest.until("more")["parent"]
        with claim("a touch of the last page faults in another pte, at its address", fn.__thp_vma_allowable_orders):
            last = level.size_bytes - 4096
            assert [leaf.level for leaf in more.leaves("bar")] == [Level.PTE, Level.PTE]
            assert more.leaf("bar", last).vaddr == more.mapping("bar").declared.vaddr + last
            assert more.leaf("bar", last).dirty
        with claim("the first touch took one fault", fn.__thp_vma_allowable_orders):
            assert guest.result.values["faults"] == "1"


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.vma_adjust_trans_huge, fn.vfio_pci_mmap_huge_fault)
def test_nohugepage_part(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_NOHUGEPAGE on half of a leaf splits its VMA: the leaf is zapped, and what comes back fits its own VMA."""
    with vm.run("policy", f"--level={level.label}", "--case=part") as guest:
        assert guest.until("large")["parent"].leaf("bar").level is level
        parted = guest.until("parted")["parent"]
        with claim("the leaf does not outlive the split", fn.vma_adjust_trans_huge):
            assert parted.leaves("bar") == ()
            assert parted.leaves("bar-high") == ()
        touched = guest.until("touched")["parent"]
        with claim("the first half, advised against huge pages, gets a pte", fn.__thp_vma_allowable_orders):
            assert [leaf.level for leaf in touched.leaves("bar")] == [Level.PTE]
        with claim(f"the second half gets what fits it: a {BELOW[level].label}", fn.vfio_pci_mmap_huge_fault):
            assert [leaf.level for leaf in touched.leaves("bar-high")] == [BELOW[level]]


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.__thp_vma_allowable_orders)
def test_thp_disabled_process(vm: VM, level: Level, claim: Claims) -> None:
    """A process that disabled THP for itself gets 4K leaves; once it has enabled them again, huge ones."""
    with vm.run("policy", f"--level={level.label}", "--case=process") as guest:
        disabled = guest.until("disabled")["parent"]
        with claim("after PR_SET_THP_DISABLE a touch faults in a pte", fn.__thp_vma_allowable_orders):
            assert [leaf.level for leaf in disabled.leaves("bar")] == [Level.PTE]
        enabled = guest.until("enabled")["parent"]
        with claim(f"once THP is enabled again a touch faults in a {level.label}", fn.__thp_vma_allowable_orders):
            assert [leaf.level for leaf in enabled.leaves("bar-after")] == [level]
        with claim("what was mapped before is as it was", fn.__thp_vma_allowable_orders):
            assert enabled.leaves("bar") == disabled.leaves("bar")


@pytest.mark.levels("pmd", "pud")
@pytest.mark.decided_by(fn.__thp_vma_allowable_orders)
def test_thp_setting(vm: VM, level: Level, claim: Claims) -> None:
    """transparent_hugepage=never applies to a pfnmap if, and only if, the kernel itself says so in smaps."""
    # The command line sets the same flags (setup_transparent_hugepage(), enabled_store()). Measured: 6.12.43 and 6.16
    # to 6.18 obey the setting; 6.12.117, 6.12.118, 7.2 and 7.3 exempt a pfnmap that has a huge fault handler
    # (vma_file_bypass_thp_tuneables()): a BAR cannot be compacted. Both are intended, so THPeligible decides.
    with vm.run("policy", f"--level={level.label}", "--case=setting") as guest:
        at = guest.until("touched")["parent"]
        values = guest.result.values

        def levels(name: str) -> list[Level]:
            return [leaf.level for leaf in at.leaves(name)]

        for name, setting in (("always", "always"), ("advised", "madvise with MADV_HUGEPAGE")):
            with claim(f"under {setting} a touch faults in a {level.label}", fn.__thp_vma_allowable_orders):
                assert levels(name) == [level]
        for name, setting in (
            ("madvise", "madvise without advice"),
            ("never", "never"),
            ("never-advised", "never with MADV_HUGEPAGE"),
        ):
            with claim(f"under {setting} a touch faults in what smaps announces", fn.__thp_vma_allowable_orders):
                assert levels(name) == [level if values[f"{name}-eligible"] == "1" else Level.PTE]
        with claim("the setting applies to all three of these, or to none", fn.__thp_vma_allowable_orders):
            assert levels("never") == levels("madvise") == levels("never-advised")
