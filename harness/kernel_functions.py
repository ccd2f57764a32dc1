"""The kernel functions that decide the claims, each under its own name. Pure.

A scenario names them as values::

    from harness import kernel_functions as fn

    @pytest.mark.decided_by(fn.COPIED_BY)
    ...
        with claim("the child has the parent's leaf", fn.COPIED_BY[level]):

tests/test_kernel_functions.py checks this module against tests/data/kernel_functions.json, which says in which Debian
sources each function was found. After a change here, and for new sources, run ``make kernel-functions``.
"""

from __future__ import annotations

from collections.abc import Mapping

from harness.kernel_function import KernelFunction as KernelFunction  # scenarios name it
from harness.pagetable import Level

#: Decides a claim about bits that the kernel does not set.
CPU = "the CPU (SDM volume 3, 4.8)"

pgprot_modify = KernelFunction("arch/x86/include/asm/pgtable.h", "pgprot_modify")
pmd_modify = KernelFunction("arch/x86/include/asm/pgtable.h", "pmd_modify")
pte_modify = KernelFunction("arch/x86/include/asm/pgtable.h", "pte_modify")
pud_modify = KernelFunction("arch/x86/include/asm/pgtable.h", "pud_modify", since="6.12")
pte_wrprotect = KernelFunction("arch/x86/include/asm/pgtable.h", "pte_wrprotect")
pte_mkwrite = KernelFunction(
    "arch/x86/mm/pgtable.c",
    "pte_mkwrite",
    since="6.12",
    elsewhere=KernelFunction("arch/x86/include/asm/pgtable.h", "pte_mkwrite", until="6.1"),
)
pud_present = KernelFunction("arch/x86/include/asm/pgtable.h", "pud_present")
raw_copy_from_user = KernelFunction("arch/x86/include/asm/uaccess_64.h", "raw_copy_from_user")
host_pfn_mapping_level = KernelFunction("arch/x86/kvm/mmu/mmu.c", "host_pfn_mapping_level")
kvm_mmu_max_mapping_level = KernelFunction("arch/x86/kvm/mmu/mmu.c", "kvm_mmu_max_mapping_level")
kvm_mmu_slot_remove_write_access = KernelFunction("arch/x86/kvm/mmu/mmu.c", "kvm_mmu_slot_remove_write_access")
kvm_mmu_zap_collapsible_sptes = KernelFunction(
    "arch/x86/kvm/mmu/mmu.c",
    "kvm_mmu_zap_collapsible_sptes",
    until="6.12",
    elsewhere=KernelFunction("arch/x86/kvm/mmu/mmu.c", "kvm_mmu_recover_huge_pages", since="7.2"),
)
make_spte = KernelFunction("arch/x86/kvm/mmu/spte.c", "make_spte")
kvm_tdp_mmu_map = KernelFunction("arch/x86/kvm/mmu/tdp_mmu.c", "kvm_tdp_mmu_map")
kvm_tdp_mmu_try_split_huge_pages = KernelFunction("arch/x86/kvm/mmu/tdp_mmu.c", "kvm_tdp_mmu_try_split_huge_pages")
kvm_alloc_memslot_metadata = KernelFunction("arch/x86/kvm/x86.c", "kvm_alloc_memslot_metadata")
kvm_mmu_slot_apply_flags = KernelFunction("arch/x86/kvm/x86.c", "kvm_mmu_slot_apply_flags")
access_error = KernelFunction("arch/x86/mm/fault.c", "access_error")
do_sigbus = KernelFunction("arch/x86/mm/fault.c", "do_sigbus")
track_pfn_copy = KernelFunction(
    "arch/x86/mm/pat/memtype.c",
    "track_pfn_copy",
    until="6.12",
    elsewhere=KernelFunction("mm/memory.c", "copy_page_range"),
)
untrack_pfn_copy = KernelFunction(
    "arch/x86/mm/pat/memtype.c",
    "untrack_pfn_copy",
    until="6.12",
    elsewhere=KernelFunction("arch/x86/mm/pat/memtype.c", "pfnmap_untrack", since="7.2"),
)
hardware_largepage_caps = KernelFunction(
    "drivers/iommu/intel/iommu.c",
    "hardware_largepage_caps",
    until="6.12",
    elsewhere=KernelFunction("drivers/iommu/generic_pt/iommu_pt.h", "compute_best_pgsize", since="7.2"),
)
dev_dax_huge_fault = KernelFunction("drivers/dax/device.c", "dev_dax_huge_fault")
pci_mmap_resource_range = KernelFunction("drivers/pci/mmap.c", "pci_mmap_resource_range")
vfio_group_fops_open = KernelFunction(
    "drivers/vfio/group.c",
    "vfio_group_fops_open",
    since="6.12",
    elsewhere=KernelFunction("drivers/vfio/vfio_main.c", "vfio_group_fops_open", until="6.1"),
)
vfio_basic_config_write = KernelFunction("drivers/vfio/pci/vfio_pci_config.c", "vfio_basic_config_write")
vfio_lock_and_set_power_state = KernelFunction("drivers/vfio/pci/vfio_pci_config.c", "vfio_lock_and_set_power_state")
__vfio_pci_memory_enabled = KernelFunction("drivers/vfio/pci/vfio_pci_config.c", "__vfio_pci_memory_enabled")
vfio_pci_core_mmap = KernelFunction("drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_core_mmap")
vfio_pci_ioctl_get_pci_hot_reset_info = KernelFunction(
    "drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_ioctl_get_pci_hot_reset_info"
)
vfio_pci_ioctl_pci_hot_reset = KernelFunction("drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_ioctl_pci_hot_reset")
vfio_pci_ioctl_reset = KernelFunction("drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_ioctl_reset")
vfio_pci_mmap_fault = KernelFunction(
    "drivers/vfio/pci/vfio_pci_core.c",
    "vfio_pci_mmap_fault",
    until="6.1",
    elsewhere=KernelFunction("drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_mmap_page_fault", since="6.12"),
)
vfio_pci_mmap_huge_fault = KernelFunction(
    "drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_mmap_huge_fault", since="6.12", elsewhere=vfio_pci_mmap_fault
)
#: It was removed with the handler that fills a whole VMA and keeps a list of the VMAs that it filled. It zaps each VMA
#: that a split creates; at munmap(), that is everything from the hole on.
vfio_pci_mmap_open = KernelFunction("drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_mmap_open", until="6.1")
vfio_pci_runtime_pm_entry = KernelFunction("drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_runtime_pm_entry")
vfio_pci_runtime_pm_exit = KernelFunction("drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_runtime_pm_exit")
vfio_pci_zap_and_vma_lock = KernelFunction("drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_zap_and_vma_lock", until="6.1")
vfio_pci_zap_bars = KernelFunction(
    "drivers/vfio/pci/vfio_pci_core.c", "vfio_pci_zap_bars", since="6.12", elsewhere=vfio_pci_zap_and_vma_lock
)
follow_fault_pfn = KernelFunction("drivers/vfio/vfio_iommu_type1.c", "follow_fault_pfn")
vaddr_get_pfns = KernelFunction("drivers/vfio/vfio_iommu_type1.c", "vaddr_get_pfns")
vfio_dma_do_map = KernelFunction("drivers/vfio/vfio_iommu_type1.c", "vfio_dma_do_map")
vfio_dma_do_unmap = KernelFunction("drivers/vfio/vfio_iommu_type1.c", "vfio_dma_do_unmap")
vfio_iommu_map = KernelFunction("drivers/vfio/vfio_iommu_type1.c", "vfio_iommu_map")
vfio_iommu_type1_detach_group = KernelFunction("drivers/vfio/vfio_iommu_type1.c", "vfio_iommu_type1_detach_group")
vfio_unmap_unpin = KernelFunction("drivers/vfio/vfio_iommu_type1.c", "vfio_unmap_unpin")
vma_dump_size = KernelFunction("fs/coredump.c", "vma_dump_size")
exec_mmap = KernelFunction("fs/exec.c", "exec_mmap")
vfs_fallocate = KernelFunction("fs/open.c", "vfs_fallocate")
mem_rw = KernelFunction("fs/proc/base.c", "mem_rw")
clear_refs_pte_range = KernelFunction("fs/proc/task_mmu.c", "clear_refs_pte_range")
clear_refs_test_walk = KernelFunction("fs/proc/task_mmu.c", "clear_refs_test_walk")
clear_refs_write = KernelFunction("fs/proc/task_mmu.c", "clear_refs_write")
clear_soft_dirty = KernelFunction("fs/proc/task_mmu.c", "clear_soft_dirty")
pagemap_pmd_range = KernelFunction("fs/proc/task_mmu.c", "pagemap_pmd_range")
pagemap_pte_hole = KernelFunction("fs/proc/task_mmu.c", "pagemap_pte_hole")
pagemap_read = KernelFunction("fs/proc/task_mmu.c", "pagemap_read")
pagemap_scan_pmd_entry = KernelFunction("fs/proc/task_mmu.c", "pagemap_scan_pmd_entry", since="6.12")
pagemap_scan_test_walk = KernelFunction("fs/proc/task_mmu.c", "pagemap_scan_test_walk", since="6.12")
pagemap_scan_thp_entry = KernelFunction("fs/proc/task_mmu.c", "pagemap_scan_thp_entry", since="6.12")
show_numa_map = KernelFunction("fs/proc/task_mmu.c", "show_numa_map")
show_smap = KernelFunction("fs/proc/task_mmu.c", "show_smap")
show_smaps_rollup = KernelFunction("fs/proc/task_mmu.c", "show_smaps_rollup")
smap_gather_stats = KernelFunction("fs/proc/task_mmu.c", "smap_gather_stats")
vmsplice_to_pipe = KernelFunction("fs/splice.c", "vmsplice_to_pipe")
vfs_fsync_range = KernelFunction("fs/sync.c", "vfs_fsync_range")
dup_userfaultfd = KernelFunction(
    "fs/userfaultfd.c",
    "dup_userfaultfd",
    until="6.12",
    elsewhere=KernelFunction("mm/userfaultfd.c", "dup_userfaultfd", since="7.2"),
)
userfaultfd_register = KernelFunction(
    "fs/userfaultfd.c",
    "userfaultfd_register",
    until="6.12",
    elsewhere=KernelFunction("mm/userfaultfd.c", "userfaultfd_register", since="7.2"),
)
vma_can_userfault = KernelFunction(
    "include/linux/userfaultfd_k.h",
    "vma_can_userfault",
    until="6.12",
    elsewhere=KernelFunction("mm/userfaultfd.c", "vma_can_userfault", since="7.2"),
)
find_new_reaper = KernelFunction("kernel/exit.c", "find_new_reaper")
copy_mm = KernelFunction("kernel/fork.c", "copy_mm")
copy_process = KernelFunction("kernel/fork.c", "copy_process")
dup_mmap = KernelFunction(
    "kernel/fork.c", "dup_mmap", until="6.12", elsewhere=KernelFunction("mm/mmap.c", "dup_mmap", since="7.2")
)
mmput = KernelFunction("kernel/fork.c", "mmput")
ptrace_access_vm = KernelFunction("kernel/ptrace.c", "ptrace_access_vm")
revoke_iomem = KernelFunction("kernel/resource.c", "revoke_iomem")
check_vma_flags = KernelFunction("mm/gup.c", "check_vma_flags")
fixup_user_fault = KernelFunction("mm/gup.c", "fixup_user_fault")
gup_fast_pmd_leaf = KernelFunction(
    "mm/gup.c", "gup_fast_pmd_leaf", since="6.12", elsewhere=KernelFunction("mm/gup.c", "gup_huge_pmd", until="6.1")
)
gup_fast_pte_range = KernelFunction(
    "mm/gup.c", "gup_fast_pte_range", since="6.12", elsewhere=KernelFunction("mm/gup.c", "gup_pte_range", until="6.1")
)
gup_fast_pud_leaf = KernelFunction(
    "mm/gup.c", "gup_fast_pud_leaf", since="6.12", elsewhere=KernelFunction("mm/gup.c", "gup_huge_pud", until="6.1")
)
pin_user_pages_fast = KernelFunction("mm/gup.c", "pin_user_pages_fast")
populate_vma_page_range = KernelFunction("mm/gup.c", "populate_vma_page_range")
change_huge_pmd = KernelFunction("mm/huge_memory.c", "change_huge_pmd")
change_huge_pud = KernelFunction("mm/huge_memory.c", "change_huge_pud", since="6.12")
copy_huge_pmd = KernelFunction("mm/huge_memory.c", "copy_huge_pmd")
copy_huge_pud = KernelFunction("mm/huge_memory.c", "copy_huge_pud")
do_huge_pmd_wp_page = KernelFunction("mm/huge_memory.c", "do_huge_pmd_wp_page")
insert_pfn_pmd = KernelFunction(
    "mm/huge_memory.c",
    "insert_pfn_pmd",
    until="6.12",
    elsewhere=KernelFunction("mm/huge_memory.c", "insert_pmd", since="7.2"),
)
insert_pfn_pud = KernelFunction(
    "mm/huge_memory.c",
    "insert_pfn_pud",
    until="6.12",
    elsewhere=KernelFunction("mm/huge_memory.c", "insert_pud", since="7.2"),
)
move_huge_pmd = KernelFunction("mm/huge_memory.c", "move_huge_pmd")
__split_huge_pmd = KernelFunction("mm/huge_memory.c", "__split_huge_pmd")
__split_huge_pmd_locked = KernelFunction("mm/huge_memory.c", "__split_huge_pmd_locked")
__split_huge_pud = KernelFunction("mm/huge_memory.c", "__split_huge_pud")
__split_huge_pud_locked = KernelFunction("mm/huge_memory.c", "__split_huge_pud_locked")
__thp_get_unmapped_area = KernelFunction("mm/huge_memory.c", "__thp_get_unmapped_area")
__thp_vma_allowable_orders = KernelFunction(
    "mm/huge_memory.c",
    "__thp_vma_allowable_orders",
    since="6.12",
    elsewhere=KernelFunction("mm/huge_memory.c", "hugepage_vma_check", until="6.1"),
)
vma_adjust_trans_huge = KernelFunction("mm/huge_memory.c", "vma_adjust_trans_huge")
vmf_insert_pfn_pmd = KernelFunction(
    "mm/huge_memory.c",
    "vmf_insert_pfn_pmd",
    since="6.12",
    elsewhere=KernelFunction("mm/huge_memory.c", "vmf_insert_pfn_pmd_prot", until="6.1"),
)
vmf_insert_pfn_pud = KernelFunction(
    "mm/huge_memory.c",
    "vmf_insert_pfn_pud",
    since="6.12",
    elsewhere=KernelFunction("mm/huge_memory.c", "vmf_insert_pfn_pud_prot", until="6.1"),
)
zap_huge_pmd = KernelFunction("mm/huge_memory.c", "zap_huge_pmd")
zap_huge_pud = KernelFunction("mm/huge_memory.c", "zap_huge_pud")
copy_hugetlb_page_range = KernelFunction("mm/hugetlb.c", "copy_hugetlb_page_range")
hugetlb_change_protection = KernelFunction("mm/hugetlb.c", "hugetlb_change_protection")
hugetlb_fault = KernelFunction("mm/hugetlb.c", "hugetlb_fault")
hugetlb_wp = KernelFunction("mm/hugetlb.c", "hugetlb_wp")
hugepage_madvise = KernelFunction("mm/khugepaged.c", "hugepage_madvise")
madvise_collapse = KernelFunction("mm/khugepaged.c", "madvise_collapse")
ksm_madvise = KernelFunction("mm/ksm.c", "ksm_madvise")
can_madv_lru_vma = KernelFunction("mm/madvise.c", "can_madv_lru_vma")
is_valid_guard_vma = KernelFunction("mm/madvise.c", "is_valid_guard_vma", since="7.2")
madvise_dontneed_free_valid_vma = KernelFunction("mm/madvise.c", "madvise_dontneed_free_valid_vma")
madvise_inject_error = KernelFunction("mm/madvise.c", "madvise_inject_error")
madvise_vma_behavior = KernelFunction("mm/madvise.c", "madvise_vma_behavior")
madvise_willneed = KernelFunction("mm/madvise.c", "madvise_willneed")
__access_remote_vm = KernelFunction("mm/memory.c", "__access_remote_vm")
copy_page_range = KernelFunction("mm/memory.c", "copy_page_range")
copy_pte_range = KernelFunction("mm/memory.c", "copy_pte_range")
do_anonymous_page = KernelFunction("mm/memory.c", "do_anonymous_page")
do_set_pmd = KernelFunction("mm/memory.c", "do_set_pmd")
do_shared_fault = KernelFunction("mm/memory.c", "do_shared_fault")
do_wp_page = KernelFunction("mm/memory.c", "do_wp_page")
follow_pfnmap_start = KernelFunction(
    "mm/memory.c",
    "follow_pfnmap_start",
    since="6.12",
    elsewhere=KernelFunction("mm/memory.c", "follow_pte", until="6.1"),
)
free_pgd_range = KernelFunction("mm/memory.c", "free_pgd_range")
free_pgtables = KernelFunction("mm/memory.c", "free_pgtables")
__handle_mm_fault = KernelFunction("mm/memory.c", "__handle_mm_fault")
handle_mm_fault = KernelFunction("mm/memory.c", "handle_mm_fault")
handle_pte_marker = KernelFunction("mm/memory.c", "handle_pte_marker")
insert_pfn = KernelFunction("mm/memory.c", "insert_pfn")
remap_pfn_range = KernelFunction("mm/memory.c", "remap_pfn_range")
unmap_mapping_range = KernelFunction("mm/memory.c", "unmap_mapping_range")
unmap_page_range = KernelFunction(
    "mm/memory.c",
    "unmap_page_range",
    until="6.12",
    elsewhere=KernelFunction("mm/memory.c", "__zap_vma_range", since="7.2"),
)
vm_normal_page = KernelFunction("mm/memory.c", "vm_normal_page")
vma_needs_copy = KernelFunction("mm/memory.c", "vma_needs_copy")
wp_huge_pmd = KernelFunction("mm/memory.c", "wp_huge_pmd")
wp_huge_pud = KernelFunction("mm/memory.c", "wp_huge_pud")
wp_page_copy = KernelFunction("mm/memory.c", "wp_page_copy")
wp_page_reuse = KernelFunction("mm/memory.c", "wp_page_reuse")
wp_pfn_shared = KernelFunction("mm/memory.c", "wp_pfn_shared")
zap_pte_range = KernelFunction("mm/memory.c", "zap_pte_range")
lookup_node = KernelFunction("mm/mempolicy.c", "lookup_node")
do_pages_stat_array = KernelFunction("mm/migrate.c", "do_pages_stat_array")
mincore_pte_range = KernelFunction("mm/mincore.c", "mincore_pte_range")
mincore_unmapped_range = KernelFunction("mm/mincore.c", "mincore_unmapped_range")
mlock_fixup = KernelFunction("mm/mlock.c", "mlock_fixup")
exit_mmap = KernelFunction("mm/mmap.c", "exit_mmap")
__get_unmapped_area = KernelFunction(
    "mm/mmap.c",
    "__get_unmapped_area",
    since="6.12",
    elsewhere=KernelFunction("mm/mmap.c", "get_unmapped_area", until="6.1"),
)
mmap_region = KernelFunction(
    "mm/mmap.c", "mmap_region", until="6.12", elsewhere=KernelFunction("mm/vma.c", "mmap_region", since="7.2")
)
remap_file_pages = KernelFunction("mm/mmap.c", "remap_file_pages")
vma_set_page_prot = KernelFunction("mm/mmap.c", "vma_set_page_prot")
change_protection = KernelFunction("mm/mprotect.c", "change_protection")
change_pte_range = KernelFunction("mm/mprotect.c", "change_pte_range")
change_pud_range = KernelFunction("mm/mprotect.c", "change_pud_range")
do_mprotect_pkey = KernelFunction("mm/mprotect.c", "do_mprotect_pkey")
mprotect_fixup = KernelFunction("mm/mprotect.c", "mprotect_fixup")
get_old_pud = KernelFunction("mm/mremap.c", "get_old_pud")
move_huge_pud = KernelFunction("mm/mremap.c", "move_huge_pud")
move_normal_pmd = KernelFunction("mm/mremap.c", "move_normal_pmd")
move_normal_pud = KernelFunction("mm/mremap.c", "move_normal_pud")
move_page_tables = KernelFunction("mm/mremap.c", "move_page_tables")
move_ptes = KernelFunction("mm/mremap.c", "move_ptes")
mremap = KernelFunction("mm/mremap.c", "mremap")
mremap_to = KernelFunction("mm/mremap.c", "mremap_to")
vma_to_resize = KernelFunction(
    "mm/mremap.c", "vma_to_resize", until="6.12", elsewhere=KernelFunction("mm/mremap.c", "check_prep_vma", since="7.2")
)
do_mseal = KernelFunction(
    "mm/mseal.c", "do_mseal", since="6.12", until="7.2", elsewhere=KernelFunction("mm/mseal.c", "mseal", since="6.12")
)
msync = KernelFunction("mm/msync.c", "msync")
walk_page_test = KernelFunction("mm/pagewalk.c", "walk_page_test")
walk_pud_range = KernelFunction("mm/pagewalk.c", "walk_pud_range")
process_vm_rw_single_vec = KernelFunction("mm/process_vm_access.c", "process_vm_rw_single_vec")
mm_find_pmd = KernelFunction("mm/rmap.c", "mm_find_pmd")
mwriteprotect_range = KernelFunction("mm/userfaultfd.c", "mwriteprotect_range")
packet_mmap = KernelFunction("net/packet/af_packet.c", "packet_mmap")
hva_to_pfn_remapped = KernelFunction("virt/kvm/kvm_main.c", "hva_to_pfn_remapped")
kvm_destroy_vm = KernelFunction("virt/kvm/kvm_main.c", "kvm_destroy_vm")
kvm_mmu_notifier_invalidate_range_start = KernelFunction(
    "virt/kvm/kvm_main.c", "kvm_mmu_notifier_invalidate_range_start"
)
kvm_vcpu_ioctl = KernelFunction("virt/kvm/kvm_main.c", "kvm_vcpu_ioctl")

#: Copies an entry at fork(). The levels differ: the child's D is cleared at pte, and kept at pmd and pud.
COPIED_BY: Mapping[Level, KernelFunction] = {
    Level.PTE: copy_pte_range,
    Level.PMD: copy_huge_pmd,
    Level.PUD: copy_huge_pud,
}
#: Handles a fault on a BAR.
FAULTED_BY: Mapping[Level, KernelFunction] = {
    Level.PTE: vfio_pci_mmap_fault,
    Level.PMD: vfio_pci_mmap_huge_fault,
    Level.PUD: vfio_pci_mmap_huge_fault,
}
#: Makes the entry at a fault on a BAR.
INSERTED_BY: Mapping[Level, KernelFunction] = {
    Level.PTE: insert_pfn,
    Level.PMD: insert_pfn_pmd,
    Level.PUD: insert_pfn_pud,
}
#: Changes an entry at mprotect().
CHANGED_BY: Mapping[Level, KernelFunction] = {
    Level.PTE: change_pte_range,
    Level.PMD: change_huge_pmd,
    Level.PUD: change_huge_pud,
}
#: Zaps a leaf of which only a part is to be unmapped or changed, because a leaf of device memory cannot be split.
SPLIT_BY: Mapping[Level, KernelFunction] = {
    Level.PMD: __split_huge_pmd_locked,
    Level.PUD: __split_huge_pud_locked,
}


def every_function() -> set[KernelFunction]:
    """Return the functions of this module, including those that do the same in other series."""
    named = {value for value in globals().values() if isinstance(value, KernelFunction)}
    return named | {function.elsewhere for function in named if function.elsewhere is not None}
