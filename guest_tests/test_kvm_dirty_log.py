"""KVM's log of dirty pages, over a leaf of a BAR: switched on and off."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

TIMEOUT_S = 60.0
PAGE_SIZE_BYTES = 4096
WRITTEN_AT = 2 * PAGE_SIZE_BYTES


@pytest.mark.machine(kvm=True)
@pytest.mark.levels("pte", "pmd")
@pytest.mark.decided_by(fn.kvm_mmu_slot_apply_flags, fn.kvm_tdp_mmu_try_split_huge_pages)
def test_kvm_dirty_log(vm: VM, level: Level, claim: Claims) -> None:
    """While KVM logs dirty pages, its leaves are small and catch writes; afterwards they are as large as before."""
    with vm.run("kvm_dirty_log", f"--level={level.label}", timeout_s=TIMEOUT_S) as guest:
        written = guest.until("written")
        host = written["parent"].leaf("bar")
        with claim(f"KVM has a writable {level.label}", fn.host_pfn_mapping_level):
            assert written["vm"].leaf("bar").level is level
            assert written["vm"].leaf("bar").write
        logging = guest.until("logging")
        with claim("no leaf is larger than a page now", fn.kvm_tdp_mmu_try_split_huge_pages):
            assert {leaf.level for leaf in logging["vm"].leaves("bar")} <= {Level.PTE}
        with claim("no leaf is writable now", fn.kvm_mmu_slot_remove_write_access):
            assert not any(leaf.write for leaf in logging["vm"].leaves("bar"))
        caught = guest.until("caught")
        with claim("the page that the vCPU wrote is writable, and no other", fn.make_spte):
            assert caught["vm"].leaf("bar", WRITTEN_AT).write
            assert sum(leaf.write for leaf in caught["vm"].leaves("bar")) == 1
        fetched = guest.until("fetched")
        with claim("when the log is fetched, that page catches writes again", fn.kvm_mmu_slot_apply_flags):
            assert not any(leaf.write for leaf in fetched["vm"].leaves("bar"))
        off = guest.until("off")
        with claim(
            f"when logging is off, a write maps a writable {level.label} again", fn.kvm_mmu_zap_collapsible_sptes
        ):
            assert off["vm"].leaf("bar").level is level
            assert off["vm"].leaf("bar").write
        with claim("the host's entry was never changed", fn.hva_to_pfn_remapped):
            for at in (logging, caught, fetched, off):
                assert at["parent"].leaf("bar").entry == host.entry
        values = guest.result.values
        with claim("the log has the one page that was written", fn.kvm_mmu_slot_apply_flags):
            assert values["dirty-pages"] == "1"
        with claim("every write is done", fn.kvm_tdp_mmu_map):
            assert (values["before"], values["logged"], values["after"]) == ("done", "done", "done")
