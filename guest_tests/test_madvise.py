"""Advice, locks, syncs and seals on a pfnmap: whether accepted or refused, the entry stays as it is."""

from collections.abc import Mapping

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.errors import PremiseNotMet
from harness.machine.vm import VM
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

#: How a call ends, and which function decides it.
Answer = tuple[str, fn.KernelFunction]

GUP_FAST = {Level.PTE: fn.gup_fast_pte_range, Level.PMD: fn.gup_fast_pmd_leaf, Level.PUD: fn.gup_fast_pud_leaf}


def _advise(vm: VM, level: Level, claim: Claims, group: str, answers: Mapping[str, Answer]) -> None:
    """Each call ends as it must, and leaves a written leaf as it is."""
    with vm.run("madvise", f"--level={level.label}", f"--group={group}", timeout_s=20.0) as guest:
        before = guest.until("before")["parent"].leaf("bar")
        with claim(f"the mapping begins as a dirty {level.label}", fn.vfio_pci_mmap_huge_fault):
            assert before.level is level
            assert before.dirty
        for name, (_, by) in answers.items():
            at = guest.until(name)["parent"]
            with claim(f"{name}: the entry stays as it is", by):
                assert at.leaf("bar").entry == before.entry
        _ended(claim, guest.result.values, answers)
        with claim("a write needs no fault after all of this", next(iter(answers.values()))[1]):
            assert guest.result.values["write-faults"] == "0"


def _makes_none(vm: VM, level: Level, claim: Claims, group: str, answers: Mapping[str, Answer]) -> None:
    """The same calls where nothing is mapped yet: none of them makes an entry."""
    with vm.run("madvise", f"--level={level.label}", f"--group={group}", "--touch=0", timeout_s=20.0) as guest:
        with claim("MAP_POPULATE makes no entry", fn.populate_vma_page_range):
            assert guest.until("before")["parent"].leaves("bar") == ()
        for name, (_, by) in answers.items():
            at = guest.until(name)["parent"]
            with claim(f"{name}: no entry is made", by):
                assert at.leaves("bar") == ()
        with claim("the first write still needs its fault after all of this", fn.vfio_pci_mmap_huge_fault):
            assert guest.result.values["write-faults"] == "1"


def _ended(claim: Claims, values: Mapping[str, str], answers: Mapping[str, Answer]) -> None:
    for name, (error, by) in answers.items():
        with claim(f"{name}: {'accepted' if error == '0' else error}", by):
            assert values[name] == error


def _is_built_in(vm: VM, symbol: str) -> bool:
    config = vm.kernel.config
    if config is None:
        raise PremiseNotMet(f"whether the kernel has CONFIG_{symbol} is not known: there is no configuration")
    return config.is_set(symbol)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.madvise_dontneed_free_valid_vma, fn.vfs_fallocate)
def test_madvise_discard(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_DONTNEED, DONTNEED_LOCKED, FREE and REMOVE are refused, and discard nothing."""
    answers = dict.fromkeys(("dontneed", "dontneed-locked", "free"), ("EINVAL", fn.madvise_dontneed_free_valid_vma))
    # ENODEV and not EOPNOTSUPP: vfio's file has an inode that is neither a file nor a block device.
    _advise(vm, level, claim, "discard", answers | {"remove": ("ENODEV", fn.vfs_fallocate)})


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.can_madv_lru_vma)
def test_madvise_reclaim(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_COLD and MADV_PAGEOUT are refused: a device's memory is on no LRU list."""
    _advise(
        vm,
        level,
        claim,
        "reclaim",
        {"cold": ("EINVAL", fn.can_madv_lru_vma), "pageout": ("EINVAL", fn.can_madv_lru_vma)},
    )


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.check_vma_flags, fn.populate_vma_page_range)
def test_madvise_populate(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_POPULATE_READ and WRITE are refused; with MAP_POPULATE, none makes an entry."""
    answers = {"populate-read": ("EINVAL", fn.check_vma_flags), "populate-write": ("EINVAL", fn.check_vma_flags)}
    _advise(vm, level, claim, "populate", answers)
    _makes_none(vm, level, claim, "populate", answers)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.madvise_vma_behavior, fn.madvise_collapse)
def test_madvise_flags(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_COLLAPSE, DODUMP, DOFORK and WIPEONFORK are refused, and change nothing."""
    answers = dict.fromkeys(("dodump", "dofork", "wipeonfork"), ("EINVAL", fn.madvise_vma_behavior))
    _advise(vm, level, claim, "flags", {"collapse": ("EINVAL", fn.madvise_collapse)} | answers)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.is_valid_guard_vma)
def test_madvise_guard(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_GUARD_INSTALL and REMOVE are refused, and no marker takes the leaf's place."""
    if not vm.caps.guard_regions:
        raise PremiseNotMet("the kernel has no guard regions: MADV_GUARD_INSTALL fails on anonymous memory")
    by = fn.is_valid_guard_vma
    _advise(vm, level, claim, "guard", {"guard-install": ("EINVAL", by), "guard-remove": ("EINVAL", by)})


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.madvise_inject_error, fn.gup_fast_pmd_leaf)
def test_madvise_poison(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_HWPOISON and SOFT_OFFLINE find no page behind a special entry: nothing is poisoned."""
    # Without CONFIG_MEMORY_FAILURE the kernel does not know the advice. With it, get_user_pages_fast() looks first.
    error = "EFAULT" if _is_built_in(vm, "MEMORY_FAILURE") else "EINVAL"
    by = GUP_FAST[level]
    _advise(vm, level, claim, "poison", {"hwpoison": (error, by), "soft-offline": (error, by)})


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.madvise_vma_behavior, fn.madvise_willneed)
def test_madvise_accepted(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_RANDOM, SEQUENTIAL, NORMAL, WILLNEED, DONTDUMP, KEEPONFORK and DONTFORK are accepted; the leaf stays."""
    taken = ("random", "sequential", "normal", "willneed", "dontdump", "keeponfork", "dontfork")
    _advise(vm, level, claim, "accepted", dict.fromkeys(taken, ("0", fn.madvise_vma_behavior)))


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.hugepage_madvise, fn.ksm_madvise)
def test_madvise_huge(vm: VM, level: Level, claim: Claims) -> None:
    """MADV_NOHUGEPAGE, HUGEPAGE, MERGEABLE and UNMERGEABLE are accepted, and an existing leaf keeps its size."""
    huge = ("0" if _is_built_in(vm, "TRANSPARENT_HUGEPAGE") else "EINVAL", fn.hugepage_madvise)
    same = ("0" if _is_built_in(vm, "KSM") else "EINVAL", fn.ksm_madvise)
    answers = {"nohugepage": huge, "hugepage": huge, "mergeable": same, "unmergeable": same}
    _advise(vm, level, claim, "huge", answers)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.mlock_fixup, fn.populate_vma_page_range)
def test_mlock(vm: VM, level: Level, claim: Claims) -> None:
    """mlock(), mlock2(), mlockall() and their opposites are accepted, change no leaf and make none."""
    calls = ("mlock", "munlock", "mlock-onfault", "munlock-again", "mlockall", "munlockall", "mlock-last")
    answers = dict.fromkeys(calls, ("0", fn.mlock_fixup))
    _advise(vm, level, claim, "lock", answers)
    _makes_none(vm, level, claim, "lock", answers)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.msync, fn.vfs_fsync_range)
def test_msync(vm: VM, level: Level, claim: Claims) -> None:
    """msync(): MS_ASYNC and MS_INVALIDATE do nothing, MS_SYNC fails with EINVAL (no fsync); no dirty bit is cleared."""
    answers = {
        "async": ("0", fn.msync),
        "sync": ("EINVAL", fn.vfs_fsync_range),
        "invalidate": ("0", fn.msync),
    }
    _advise(vm, level, claim, "msync", answers)


@pytest.mark.levels("pte", "pmd", "pud")
@pytest.mark.decided_by(fn.do_mseal)
def test_mseal(vm: VM, level: Level, claim: Claims) -> None:
    """mseal(): munmap(), mremap(), mprotect() and mmap() over a sealed pfnmap fail with EPERM, and its leaf stays."""
    by = fn.do_mseal
    refused = ("munmap", "munmap-part", "mremap", "mprotect", "mmap-fixed")
    answers: dict[str, Answer] = {"mseal": ("0", by)}
    answers |= dict.fromkeys(refused, ("EPERM", by))
    _advise(vm, level, claim, "seal", answers | {"dontneed": ("EINVAL", fn.madvise_dontneed_free_valid_vma)})
