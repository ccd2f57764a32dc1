"""The control group: on every kind of ordinary memory the walk and the kernel's own account agree."""

import itertools
from collections import Counter

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.errors import PremiseNotMet
from harness.machine.vm import VM
from harness.observe.snapshot import ProcessView, Snapshot
from harness.pagetable import Bits, Leaf, Level, PagemapWord

pytestmark = pytest.mark.leaves_no_trace

PAGE_BYTES = 4096
#: What copies the entries of private memory at fork(), and what gives a writer a page of its own.
COPY = {
    "anon": (fn.copy_pte_range, fn.do_wp_page),
    "thp": (fn.copy_huge_pmd, fn.do_huge_pmd_wp_page),
    "hugetlb-private": (fn.copy_hugetlb_page_range, fn.hugetlb_wp),
}


def _level(memory: str) -> Level:
    return Level.PTE if memory in ("anon", "shmem") else Level.PMD


def _pages(process: ProcessView) -> list[tuple[PagemapWord, Leaf | None, int | None]]:
    """Of each page: pagemap's word, the leaf that maps it, its pfn by the walk."""
    view = process.mapping("memory")
    assert len(view.pagemap) == view.declared.size_bytes // PAGE_BYTES
    found = []
    for number, word in enumerate(view.pagemap):
        leaf = view.leaf_at(number * PAGE_BYTES)
        pfn = leaf.pfn_at(view.declared.vaddr + number * PAGE_BYTES) if leaf else None
        found.append((word, leaf, pfn))
    return found


def _pfns(process: ProcessView) -> list[int | None]:
    return [pfn for _, _, pfn in _pages(process)]


def _agree(at: Snapshot, *, file_or_shared: bool) -> None:
    """Walk and pagemap agree on every page of every process: present, pfn, protected, file or shared."""
    for process in at:
        for number, (word, leaf, pfn) in enumerate(_pages(process)):
            where = f"{process.name} page {number}: {word}, {leaf}"
            assert word.present == (leaf is not None), where
            assert word.pfn == pfn, where
            if leaf is not None:
                assert word.uffd_wp == leaf.uffd_wp, where
            if leaf is not None and not leaf.special:  # the zero page belongs to nobody
                assert word.file_or_shared == file_or_shared, where


def _exclusive(at: Snapshot) -> None:
    """Pagemap calls a page exclusive if, by the walk, only one process of the run maps it."""
    mapped = Counter(pfn for process in at for pfn in _pfns(process))
    for process in at:
        for number, (word, leaf, pfn) in enumerate(_pages(process)):
            if leaf is not None and not leaf.special:
                where = f"{process.name} page {number}, mapped by {mapped[pfn]}: {word}, {leaf}"
                assert word.exclusive == (mapped[pfn] == 1), where


#: Memory that parent and child go on sharing.
SHARED = ("shmem", "shmem-thp", "hugetlb")


def _share(vm: VM, claim: Claims, memory: str) -> None:
    """fork() and writes: which processes share which pages, by the walk and by pagemap."""
    shared = memory in SHARED
    copied_by, broken_by = COPY.get(memory, (fn.vma_needs_copy, fn.do_shared_fault))
    level = _level(memory)
    with vm.run("control", f"--memory={memory}", "--case=share") as guest:

        def look(checkpoint: str, when: str) -> Snapshot:
            """Stop, and claim what holds at every stop."""
            at = guest.until(checkpoint)
            with claim(f"walk and pagemap agree on present, pfn and file or shared: {when}", fn.pagemap_read):
                _agree(at, file_or_shared=shared)
            with claim(
                f"pagemap's exclusive pages are those that only one process maps, by the walk: {when}", fn.pagemap_read
            ):
                _exclusive(at)
            return at

        filled = at = look("filled", "filled")
        with claim(f"the memory is mapped as {level.label}, writable and dirty", fn.pagemap_read):
            assert {leaf.level for leaf in at["parent"].leaves("memory")} == {level}
            assert all(leaf.write and leaf.dirty for leaf in at["parent"].leaves("memory"))

        at = look("forked", "after fork")
        if shared:
            with claim("fork copies no entry of shared memory that a fault can find again", copied_by):
                assert at["child"].leaves("memory") == ()
                before, after = (one["parent"].leaf("memory") for one in (filled, at))
                # Ordinary memory ages: the kernel may clear the accessed bit at any time (mm/vmscan.c), seen on 6.18.
                assert after.bits | Bits.A == before.bits | Bits.A
                assert after.pfn == before.pfn
        else:
            with claim("after fork every page is read-only in parent and child, and the same page", copied_by):
                assert _pfns(at["parent"]) == _pfns(at["child"]) == _pfns(filled["parent"])
                assert not any(leaf.write for process in at for leaf in process.leaves("memory"))

        at = look("child-written", "after the child's write")
        with claim(
            "the child writes to the shared page" if shared else "the child's write gets a page of its own", broken_by
        ):
            assert (_pfns(at["child"])[0] == _pfns(at["parent"])[0]) == shared
            assert at["child"].leaf("memory").write
        with claim("the child's write leaves the parent's pages where they are", broken_by):
            assert _pfns(at["parent"]) == _pfns(filled["parent"])

        at = look("child-owns", "after the child wrote everything")
        with claim("all pages are shared" if shared else "no page is shared any more", broken_by):
            if shared:
                assert _pfns(at["child"]) == _pfns(at["parent"])
            else:
                assert not set(_pfns(at["child"])) & set(_pfns(at["parent"]))

        at = look("parent-written", "after the parent's write")
        with claim("the parent writes to the page that it had, without a copy", broken_by):
            assert _pfns(at["parent"]) == _pfns(filled["parent"])
            assert at["parent"].leaf("memory").write
        at = look("exited", "after the child's end")
        with claim("the parent sees what the child wrote" if shared else "the parent sees nothing of it", broken_by):
            assert guest.result.values["page-1"] == ("3" if shared else "1")


def _need_thp(vm: VM) -> None:
    if vm.caps.why_no_thp:
        raise PremiseNotMet(vm.caps.why_no_thp)


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.copy_pte_range, fn.do_wp_page)
def test_control_share_anon(vm: VM, claim: Claims) -> None:
    """Anonymous pages and fork: shared read-only, then copied for each writer; pagemap's bits agree with the walk."""
    _share(vm, claim, "anon")


@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.copy_huge_pmd, fn.do_huge_pmd_wp_page)
def test_control_share_thp(vm: VM, claim: Claims) -> None:
    """A transparent huge page and fork: the writer's is split, and copied page by page; pagemap's bits agree."""
    _need_thp(vm)
    _share(vm, claim, "thp")


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.vma_needs_copy, fn.do_shared_fault)
def test_control_share_shmem(vm: VM, claim: Claims) -> None:
    """A shared file and fork: no entry is copied, both write to the same pages; pagemap's bits agree."""
    _share(vm, claim, "shmem")


@pytest.mark.levels("pmd")
@pytest.mark.leaves_a_trace("sets shmem_enabled")
@pytest.mark.decided_by(fn.vma_needs_copy, fn.do_set_pmd)
def test_control_share_shmem_thp(vm: VM, claim: Claims) -> None:
    """A huge page of a shared file and fork: parent and child map it as one pmd; pagemap's bits agree."""
    _need_thp(vm)
    _share(vm, claim, "shmem-thp")


@pytest.mark.levels("pmd")
@pytest.mark.leaves_a_trace("sets vm.nr_hugepages")
@pytest.mark.decided_by(fn.hugetlb_fault, fn.vma_needs_copy)
def test_control_share_hugetlb(vm: VM, claim: Claims) -> None:
    """A shared page of hugetlbfs and fork: parent and child map it as one pmd; pagemap's bits agree."""
    _share(vm, claim, "hugetlb")


@pytest.mark.levels("pmd")
@pytest.mark.leaves_a_trace("sets vm.nr_hugepages")
@pytest.mark.decided_by(fn.copy_hugetlb_page_range, fn.hugetlb_wp)
def test_control_share_hugetlb_private(vm: VM, claim: Claims) -> None:
    """A private page of hugetlbfs and fork: shared read-only, then copied whole; pagemap's bits agree."""
    _share(vm, claim, "hugetlb-private")


def _uffd(vm: VM, claim: Claims, memory: str) -> None:
    """userfaultfd's write protection, by the walk and by bit 57 of pagemap."""
    shared = memory in SHARED
    released = range(512) if memory == "hugetlb" else range(3, 4)
    torn_down = memory == "shmem-thp"
    with vm.run("control", f"--memory={memory}", "--case=uffd") as guest:
        filled = guest.until("filled")["parent"]
        with claim(f"the memory is mapped as {_level(memory).label}, and none of it is protected", fn.pagemap_read):
            assert {leaf.level for leaf in filled.leaves("memory")} == {_level(memory)}
            assert not any(word.uffd_wp for word in filled.pagemap("memory"))
            assert not any(leaf.uffd_wp or not leaf.write for leaf in filled.leaves("memory"))

        at = guest.until("protected")
        process = at["parent"]
        with claim("pagemap shows every page protected", fn.mwriteprotect_range):
            assert all(word.uffd_wp for word in process.pagemap("memory"))
        if torn_down:
            with claim("the pmd of a file is replaced by markers", fn.change_protection):
                assert process.leaves("memory") == ()
                assert [way.terminal.swap for way in process.holes["memory"]] == [True]
        else:
            with claim(
                "every entry has UFFD_WP set and its write bit clear, at the level it had", fn.mwriteprotect_range
            ):
                assert {leaf.level for leaf in process.leaves("memory")} == {_level(memory)}
                assert all(leaf.uffd_wp and not leaf.write for leaf in process.leaves("memory"))
                assert _pfns(process) == _pfns(filled)
        with claim("walk and pagemap agree on every bit: protected", fn.pagemap_read):
            _agree(at, file_or_shared=shared)

        at = guest.until("released")
        with claim("what was released, and nothing else, is not protected", fn.mwriteprotect_range):
            for number, (word, leaf, _) in enumerate(_pages(at["parent"])):
                assert word.uffd_wp == (number not in released), f"page {number}: {word}"
                assert leaf is None or leaf.uffd_wp == (number not in released), f"page {number}: {leaf}"
        with claim("walk and pagemap agree on every bit: released", fn.pagemap_read):
            _agree(at, file_or_shared=shared)

        at = guest.until("written")
        with claim("a write to what was released keeps the page, and makes it writable", fn.do_wp_page):
            leaf = at["parent"].leaf("memory", 3 * PAGE_BYTES)
            assert leaf.write
            assert leaf.dirty
            assert _pfns(at["parent"])[3] == _pfns(filled)[3]
        with claim("walk and pagemap agree on every bit: written", fn.pagemap_read):
            _agree(at, file_or_shared=shared)


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.mwriteprotect_range, fn.change_pte_range)
def test_control_uffd_anon(vm: VM, claim: Claims) -> None:
    """userfaultfd protects anonymous pages: UFFD_WP in the entry is bit 57 of pagemap."""
    _uffd(vm, claim, "anon")


@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.mwriteprotect_range, fn.change_huge_pmd)
def test_control_uffd_thp(vm: VM, claim: Claims) -> None:
    """userfaultfd protects a transparent huge page whole, and splits it to release one page."""
    _need_thp(vm)
    _uffd(vm, claim, "thp")


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.mwriteprotect_range, fn.change_pte_range)
def test_control_uffd_shmem(vm: VM, claim: Claims) -> None:
    """userfaultfd protects pages of a shared file: UFFD_WP in the entry is bit 57 of pagemap."""
    _uffd(vm, claim, "shmem")


@pytest.mark.levels("pmd")
@pytest.mark.leaves_a_trace("sets shmem_enabled")
@pytest.mark.decided_by(fn.change_protection, fn.handle_pte_marker)
def test_control_uffd_shmem_thp(vm: VM, claim: Claims) -> None:
    """userfaultfd protects a huge page of a shared file by replacing its pmd with 512 markers."""
    _need_thp(vm)
    _uffd(vm, claim, "shmem-thp")


@pytest.mark.levels("pmd")
@pytest.mark.leaves_a_trace("sets vm.nr_hugepages")
@pytest.mark.decided_by(fn.mwriteprotect_range, fn.hugetlb_change_protection)
def test_control_uffd_hugetlb(vm: VM, claim: Claims) -> None:
    """userfaultfd protects a page of hugetlbfs: UFFD_WP in its pmd is bit 57 of pagemap on 512 pages."""
    _uffd(vm, claim, "hugetlb")


def _scanned(pages: str, *categories: str) -> str:
    """What the guest reports about one range, in the order of the categories' bits (include/uapi/linux/fs.h)."""
    order = ("WPALLOWED", "WRITTEN", "FILE", "PRESENT", "SWAPPED", "PFNZERO", "HUGE", "SOFT_DIRTY")
    return f"{pages}:{'+'.join(name for name in order if name in categories)}"


def _present(memory: str, *more: str) -> str:
    """The ranges of everything that is present, each with the memory's own categories and MORE."""
    if memory == "thp":
        return _scanned("0-512", "WRITTEN", "PRESENT", "HUGE", *more)
    if memory == "shmem-thp":
        return _scanned("0-512", "WRITTEN", "PRESENT", "HUGE", "FILE", *more)
    if memory == "shmem":
        return _scanned("1-16", "WRITTEN", "PRESENT", "FILE", *more)
    zero = _scanned("1-2", "WRITTEN", "PRESENT", "PFNZERO", *more)
    return f"{zero},{_scanned('2-16', 'WRITTEN', 'PRESENT', *more)}"


def _scan(vm: VM, claim: Claims, memory: str) -> None:
    """PAGEMAP_SCAN, compared with the walk at each stop."""
    if not vm.caps.pagemap_scan:
        raise PremiseNotMet("this kernel has no PAGEMAP_SCAN")
    if not vm.caps.soft_dirty:
        raise PremiseNotMet("this kernel tracks no soft-dirty pages (CONFIG_MEM_SOFT_DIRTY)")
    shared, single = memory.startswith("shmem"), _level(memory) is Level.PTE
    with vm.run("control", f"--memory={memory}", "--case=scan") as guest:
        filled = guest.until("filled")
        with claim("walk and pagemap agree on every bit: filled", fn.pagemap_read):
            _agree(filled, file_or_shared=shared)
        if memory == "anon":
            with claim("a page that was only read is the zero page: special, read-only", fn.do_anonymous_page):
                leaf = filled["parent"].leaf("memory", PAGE_BYTES)
                assert leaf.special
                assert not leaf.write

        at = guest.until("cleaned")
        with claim("after clear_refs 4 the walk shows nothing writable or soft-dirty", fn.clear_refs_write):
            assert not any(leaf.write or leaf.soft_dirty for leaf in at["parent"].leaves("memory"))
        with claim("after clear_refs 4 pagemap shows nothing soft-dirty", fn.clear_refs_write):
            assert not any(word.soft_dirty for word in at["parent"].pagemap("memory"))

        at = guest.until("protected")
        with claim("PM_SCAN_WP_MATCHING protects every entry, at the level it had", fn.pagemap_scan_pmd_entry):
            assert {leaf.level for leaf in at["parent"].leaves("memory")} == {_level(memory)}
            assert all(leaf.uffd_wp and not leaf.write for leaf in at["parent"].leaves("memory"))
        with claim("after PM_SCAN_WP_MATCHING pagemap shows every present page protected", fn.pagemap_scan_pmd_entry):
            assert all(word.uffd_wp for word in at["parent"].pagemap("memory") if word.present)
        hole_protected = single and at["parent"].pagemap("memory")[0].uffd_wp

        at = guest.until("rewritten")
        with claim("a write clears UFFD_WP of its page, and the page is the same", fn.do_wp_page):
            word, found, pfn = _pages(at["parent"])[5]
            assert found is not None
            assert found.write
            assert found.dirty
            assert not found.uffd_wp
            assert not word.uffd_wp
            assert pfn == _pfns(filled["parent"])[5]
        if memory != "shmem-thp":  # that is split by zapping, and comes back whole
            with claim("a write clears UFFD_WP of no other page", fn.do_wp_page):
                words = at["parent"].pagemap("memory")
                assert [number for number, word in enumerate(words) if word.present and not word.uffd_wp] == [5]
        with claim("walk and pagemap agree on every bit: rewritten", fn.pagemap_read):
            _agree(at, file_or_shared=shared)

        values = guest.result.values
        # For memory that is not registered, kernels differ on WRITTEN (7.3 does not report it), undocumented.
        with claim("a scan of what was written reports its categories", fn.pagemap_scan_pmd_entry):
            assert values["filled"].replace("WRITTEN+", "") == _present(memory, "SOFT_DIRTY").replace("WRITTEN+", "")
        with claim("a scan after clear_refs 4 has no SOFT_DIRTY", fn.pagemap_scan_pmd_entry):
            assert values["cleaned"].replace("WRITTEN+", "") == _present(memory).replace("WRITTEN+", "")
        with claim("a scan after registration has WPALLOWED", fn.pagemap_scan_pmd_entry):
            assert values["registered"] == _present(memory, "WPALLOWED")
        with claim(
            "the scan that protects reports all that it protects, a hole included where it protects one",
            fn.pagemap_scan_pmd_entry,
        ):
            hole = f"{_scanned('0-1', 'WPALLOWED', 'WRITTEN')}," if hole_protected else ""
            assert values["protecting"] == hole + _present(memory, "WPALLOWED")
        with claim("after that nothing is WRITTEN", fn.pagemap_scan_pmd_entry):
            assert values["protected"] == "none"
        with claim("after a write its page is WRITTEN", fn.pagemap_scan_pmd_entry):
            file = ("FILE",) if shared else ()
            expected = _scanned("5-6", "WPALLOWED", "WRITTEN", "PRESENT", "SOFT_DIRTY", *file)
            if memory == "shmem-thp":
                expected = _present(memory, "WPALLOWED", "SOFT_DIRTY")
            assert values["rewritten"] == expected


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.pagemap_scan_pmd_entry)
def test_control_scan_anon(vm: VM, claim: Claims) -> None:
    """PAGEMAP_SCAN of anonymous pages, a hole and the zero page: its categories agree with the walk."""
    _scan(vm, claim, "anon")


@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.pagemap_scan_thp_entry)
def test_control_scan_thp(vm: VM, claim: Claims) -> None:
    """PAGEMAP_SCAN of a transparent huge page: protected whole, split by a write, its categories agree."""
    _need_thp(vm)
    _scan(vm, claim, "thp")


@pytest.mark.levels("pte")
@pytest.mark.decided_by(fn.pagemap_scan_pmd_entry)
def test_control_scan_shmem(vm: VM, claim: Claims) -> None:
    """PAGEMAP_SCAN of a shared file's pages and a hole: its categories agree with the walk."""
    _scan(vm, claim, "shmem")


@pytest.mark.levels("pmd")
@pytest.mark.leaves_a_trace("sets shmem_enabled")
@pytest.mark.decided_by(fn.pagemap_scan_thp_entry)
def test_control_scan_shmem_thp(vm: VM, claim: Claims) -> None:
    """PAGEMAP_SCAN of a shared file's huge page: protected whole, written whole, its categories agree."""
    _need_thp(vm)
    _scan(vm, claim, "shmem-thp")


@pytest.mark.levels("pmd")
@pytest.mark.decided_by(fn.move_huge_pmd, fn.__split_huge_pmd_locked)
def test_control_split_thp(vm: VM, claim: Claims) -> None:
    """A transparent huge page is moved as one pmd, and split where a part of it changes; its pages stay."""
    _need_thp(vm)
    move, split = fn.move_huge_pmd, fn.__split_huge_pmd_locked
    with vm.run("control", "--memory=thp", "--case=split") as guest:
        filled = guest.until("filled")["parent"]
        with claim("the memory is one pmd", fn.pagemap_read):
            assert [leaf.level for leaf in filled.leaves("memory")] == [Level.PMD]

        at = guest.until("moved")
        with claim("mremap to a 2M-aligned address moves the pmd as it is, and marks it soft-dirty", move):
            assert at["parent"].leaf("memory").level is Level.PMD
            before, after = filled.leaf("memory"), at["parent"].leaf("memory")  # reclaim may age it meanwhile
            assert (after.pfn, after.bits | Bits.A) == (
                before.pfn,
                before.bits | Bits.A,
            )
            assert after.soft_dirty
        with claim("walk and pagemap agree on every bit: moved", fn.pagemap_read):
            _agree(at, file_or_shared=False)

        at = guest.until("mprotected")
        with claim("mprotect of a part splits the pmd into 512 entries of the same pages", split):
            assert {leaf.level for leaf in at["parent"].leaves("memory")} == {Level.PTE}
            assert _pfns(at["parent"]) == _pfns(filled)
        with claim("the write bit is set where the VMA is writable", fn.change_pte_range):
            writable = [leaf.write for leaf in at["parent"].leaves("memory")]
            assert [(write, len(list(run))) for write, run in itertools.groupby(writable)] == [
                (True, 64),
                (False, 64),
                (True, 384),
            ]
        with claim("walk and pagemap agree on every bit: mprotected", fn.pagemap_read):
            _agree(at, file_or_shared=False)

        at = guest.until("unmapped")
        with claim("munmap of a part removes that part's entries and no other", fn.zap_pte_range):
            expected = [None if 256 <= number < 384 else pfn for number, pfn in enumerate(_pfns(filled))]
            assert _pfns(at["parent"]) == expected
        with claim("walk and pagemap agree on every bit: unmapped", fn.pagemap_read):
            _agree(at, file_or_shared=False)


@pytest.mark.decided_by(fn.move_ptes, fn.move_normal_pmd)
def test_control_tracked(vm: VM, claim: Claims) -> None:
    """After clear_refs 4, the pages that mremap() moves are soft-dirty, also where their page table moves as a whole.

    Who saves a process by its soft-dirty pages has no such pages at that address (admin-guide/mm/soft-dirty.rst).
    """
    if not vm.caps.soft_dirty:
        raise PremiseNotMet("this kernel tracks no soft-dirty pages (CONFIG_MEM_SOFT_DIRTY)")
    with vm.run("control", "--memory=anon-table", "--case=tracked") as guest:
        for cleared, moved, by in (
            ("cleared", "table-moved", fn.move_normal_pmd),
            ("cleared-again", "pages-moved", fn.move_ptes),
        ):
            before = guest.until(cleared)["parent"]
            with claim(f"{cleared}: no page is soft-dirty", fn.clear_refs_write):
                assert not any(word.soft_dirty for word in before.pagemap("memory"))
            after = guest.until(moved)["parent"]
            with claim(f"{moved}: the same pages are at the new address", by):
                assert _pfns(after) == _pfns(before)
            with claim(f"{moved}: every page is soft-dirty", by):
                assert all(word.soft_dirty for word in after.pagemap("memory"))
        with claim("the program passed", fn.move_ptes):
            assert guest.result.passed, guest.result.reason
