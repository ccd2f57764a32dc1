"""The specification: what each operation must answer, and which VMAs and data there are after it. Pure.

It says nothing about levels of page tables, which a kernel may choose. Each rule names where it is documented.
:func:`after` gives the world after one operation, and what the operation must have answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from harness.model.operation import CHANGING, STORES, Backing, Operation, Verb
from harness.model.state import MappedRange, ModelProcess, Race, World

READ, WRITE = "r", "w"
DONE = "0"
ABSENT = "absent"  # the process does not exist, or the child that fork() shall make exists already
UNMAPPED, REFUSED, NO_DEVICE = "SEGV.1", "SEGV.2", "BUS.2"  # SEGV_MAPERR, SEGV_ACCERR, BUS_ADRERR
BAD_ADDRESS = "EFAULT"  # what a system call answers where an access would get a signal

#: Advice that a VMA keeps, and that changes none of its entries (man 2 madvise).
KEPT_ADVICE = ("normal", "random", "sequential", "dontfork", "dontdump", "nohugepage")
#: Advice that a pfnmap refuses with EINVAL: there are no pages to drop, and its VMA has to stay what it is (VM_IO for
#: dofork, VM_SPECIAL for dodump, VM_PFNMAP for the others; mm/madvise.c madvise_vma_behavior()).
NOT_FOR_A_BAR = ("dofork", "dodump", "dontneed", "cold", "pageout", "free", "wipeonfork", "collapse", "guard")
ADVICE = (*KEPT_ADVICE, "hugepage", *NOT_FOR_A_BAR)

#: What advice adds to a VMA, and takes from it. The kernel splits the VMA where they differ.
_ADDS: Mapping[str, frozenset[str]] = {
    **{how: frozenset({how}) for how in ("random", "sequential", "dontfork", "dontdump")},
    **dict.fromkeys(("normal", "dofork", "dodump"), frozenset()),
}
_TAKES_AWAY: Mapping[str, frozenset[str]] = {
    **dict.fromkeys(("normal", "random", "sequential"), frozenset({"random", "sequential"})),
    "dofork": frozenset({"dontfork"}),
    "dodump": frozenset({"dontdump"}),
}


class Unspecified(Exception):
    """No document says what the kernel does here: such a sequence says nothing, and is not run."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What an operation may answer: "0", the name of an errno, or signal and code of an access ("SEGV.1")."""

    allowed: tuple[str, ...]
    word: int | None = None
    """What a read must give; None if it is not known."""


def after(world: World, op: Operation, step: int) -> tuple[World, Reply]:
    """Return the world after an operation, and what it must answer.

    :param step: the number of the operation, 1 for the first, which is also what WRITE stores.
    :raises Unspecified: no document says what happens.
    """
    if op.verb is Verb.RACE:
        reply = Reply((DONE if op.process in world.processes else ABSENT,))
        return replace(world, race=Race()), reply
    if world.race is None:
        return _alone(world, op, step)
    return _racing(replace(world, race=None), world.race, op, step)


def _racing(world: World, race: Race, op: Operation, step: int) -> tuple[World, Reply]:
    """One of two that run against each other, in any order. What a load gives is not asked.

    The second changes nothing that is mapped, so it may answer what it would before the first, and after it.
    """
    then, reply = _alone(world, op, step)
    if race.first is None or race.before is None:
        return replace(then, race=Race(op, world)), Reply(reply.allowed)
    _, otherwise = _alone(race.before, op, step)
    if race.first.verb in CHANGING and race.first.at < max(op.end, op.at + 1) and op.at < race.first.end:
        if op.verb is Verb.DMA:
            raise Unspecified("what MAP_DMA answers while its memory is mapped anew")
        then = _unsure(_unsure(then, then, op), race.before, op) if op.verb in STORES else then
    return then, Reply(tuple(dict.fromkeys((*reply.allowed, *otherwise.allowed))))


def _unsure(world: World, mapped: World, op: Operation) -> World:
    """Return the world in which a store may have been done or not.

    :param mapped: what it stores to, if it is done: the world before a change of the mapping, or after it.
    """
    process = world.processes.get(op.process)
    there = mapped.processes.get(op.process)
    vma = there.at(op.at) if there is not None else None
    if process is None or vma is None:
        return world
    word = vma.word_at(op.at)
    if vma.memory.shared:
        return replace(world, words={**world.words, word: None})
    return world.of(op.process, replace(process, words={**process.words, word: None}))


def _alone(world: World, op: Operation, step: int) -> tuple[World, Reply]:
    process = world.processes.get(op.process)
    if process is None:
        return world, Reply((ABSENT,))
    match op.verb:
        case Verb.READ | Verb.WRITE | Verb.FILL | Verb.SEND:
            return _access(world, process, op, step)
        case Verb.PEEK:
            return world, _peek(world, process, op)
        case Verb.FORK:
            return _fork(world, process, op)
        case Verb.EXIT:
            rest = {number: one for number, one in world.processes.items() if number != op.process}
            return replace(world, processes=rest), Reply((DONE,))
        case Verb.MEMORY:
            return _memory(world, op)
        case Verb.CLEAR:  # Documentation/filesystems/proc.rst: what is mapped stays
            return world, Reply((DONE,))
        case Verb.LOOK:  # the same; a kernel may have no such file (numa_maps: CONFIG_NUMA)
            return world, Reply((DONE, "ENOENT"))
        case Verb.DMA:
            return world, _dma(world, process, op)
        case Verb.UFFD:
            return _uffd(world, process, op)
        case Verb.SCAN:
            return world, _scan(process, op)
        case Verb.MINCORE:  # ENOMEM where there is a hole (man 2 mincore)
            return world, Reply((DONE if process.hole(op.at, op.end) >= op.end else "ENOMEM",))
    changed, answer = _RANGE_RULES[op.verb](process, op, step)
    return world.of(op.process, replace(changed, cuts=changed.cuts | set(bounds(op)))), answer


def bounds(op: Operation) -> tuple[int, ...]:
    """Return the addresses at which an operation may split a VMA."""
    match op.verb:
        case Verb.MOVE:
            return op.at, op.end, op.to, op.to + op.size
        case Verb.SHRINK:
            return (op.at + op.to,)
        case Verb.MAP | Verb.UNMAP | Verb.PROTECT | Verb.ADVISE | Verb.LOCK | Verb.UFFD:
            return op.at, op.end
    return ()


def _access(world: World, process: ModelProcess, op: Operation, step: int) -> tuple[World, Reply]:
    """A load or store of a word (man 2 mmap: signals; SDM 4.6: rights), or the kernel's (man 2 read: EFAULT)."""
    vma, stores = process.at(op.at), op.verb in STORES
    refusal = None
    if vma is None:
        refusal = UNMAPPED
    elif (WRITE if stores else READ) not in vma.rights:
        refusal = REFUSED
    elif vma.memory is Backing.BAR and not world.bar_answers:
        refusal = NO_DEVICE
    if vma is None or refusal is not None:
        return world, Reply((BAD_ADDRESS if op.verb in (Verb.FILL, Verb.SEND) else refusal or "",))
    if not stores:
        return world, Reply((DONE,), _word(world, process, vma, op.at))
    word = vma.word_at(op.at)
    if vma.memory.shared:
        return replace(world, words={**world.words, word: step}), Reply((DONE,))
    return world.of(op.process, replace(process, words={**process.words, word: step})), Reply((DONE,))


def _word(world: World, process: ModelProcess, vma: MappedRange, at: int) -> int | None:
    """Return what a load gives; None if it is not known: nobody has written there, or the BAR holds nothing."""
    words = world.words if vma.memory.shared else process.words
    if vma.memory is Backing.BAR:
        return words.get(vma.word_at(at)) if world.bar_holds else None
    return words.get(vma.word_at(at), 0)


def _peek(world: World, process: ModelProcess, op: Operation) -> Reply:
    """Who reads by pages finds none of a pfnmap (mm/gup.c check_vma_flags()).

    /proc/PID/mem answers EIO (man 5 proc_pid_mem), process_vm_readv() and vmsplice() EFAULT, as they do where memory
    cannot be read. Whether /proc/PID/mem ignores rights (FOLL_FORCE) is configured: proc_mem.force_override=,
    admin-guide/kernel-parameters.
    """
    vma, refusal = process.at(op.at), BAD_ADDRESS if op.how else "EIO"
    if vma is None or vma.memory is Backing.BAR:
        return Reply((refusal,))
    if READ not in vma.rights:
        return Reply((refusal,) if op.how else (DONE, refusal))
    return Reply((DONE,), _word(world, process, vma, op.at))


def _fork(world: World, process: ModelProcess, op: Operation) -> tuple[World, Reply]:
    """The child has what MADV_DONTFORK did not take out (man 2 fork, man 2 madvise)."""
    if op.to in world.processes:
        return world, Reply((ABSENT,))
    child = replace(
        process, vmas=tuple(replace(vma, locked=False) for vma in process.vmas if "dontfork" not in vma.advice)
    )
    return world.of(op.to, child), Reply((DONE,))


def _memory(world: World, op: Operation) -> tuple[World, Reply]:
    """Without the memory bit, and in low power, an access is SIGBUS (drivers/vfio/pci/vfio_pci_core.c).

    Low power is VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY and _EXIT of include/uapi/linux/vfio.h, which kernels before 6.1 do
    not have. VFIO_DEVICE_RESET gives the registers back as they were; some devices cannot be reset.
    """
    match op.how:
        case "sleep" if not world.awake:
            return world, Reply(("EINVAL",))
        case "sleep" | "wake":
            return replace(world, awake=op.how == "wake"), Reply((DONE,))
        case "reset":
            return world, Reply((DONE, "EINVAL", "ENOTTY"))
    return replace(world, device_memory=op.how == "on"), Reply((DONE,))


def _map(process: ModelProcess, op: Operation, step: int) -> tuple[ModelProcess, Reply]:
    """mmap() with MAP_FIXED replaces what is there (man 2 mmap). A pfnmap is VM_DONTDUMP from the start."""
    bar = op.memory is Backing.BAR
    vma = MappedRange(op.at, op.end, op.memory, op.to if bar else 0, op.how, object=0 if bar else step)
    vma = replace(vma, advice=frozenset({"dontdump"} if bar else ()))
    return process.without(op.at, op.end).having(vma), Reply((DONE,))


def _unmap(process: ModelProcess, op: Operation, _step: int) -> tuple[ModelProcess, Reply]:
    """No error if a part is not mapped (man 2 munmap)."""
    return process.without(op.at, op.end), Reply((DONE,))


def _protect(process: ModelProcess, op: Operation, _step: int) -> tuple[ModelProcess, Reply]:
    """ENOMEM at the first hole, and what is before it has its new rights (mm/mprotect.c do_mprotect_pkey())."""
    hole = process.hole(op.at, op.end)
    changed = [replace(vma, rights=op.how) for vma in process.within(op.at, hole)] if hole > op.at else []
    return process.having(*changed), Reply((DONE,) if hole >= op.end else ("ENOMEM",))


def _move(process: ModelProcess, op: Operation, _step: int) -> tuple[ModelProcess, Reply]:
    """Mapping, rights and content move (man 2 mremap). The old address is no longer mapped."""
    if op.at < op.to + op.size and op.to < op.end:
        return process, Reply(("EINVAL",))
    if process.may_be_several(op.at, op.end):
        raise Unspecified("mremap() of several VMAs: EFAULT, or, from 6.17 on, a move of each")
    (source,) = process.within(op.at, op.end)
    moved = replace(source, start=op.to, end=op.to + op.size)
    return process.without(op.at, op.end).without(op.to, op.to + op.size).having(moved), Reply((DONE,))


def _shrink(process: ModelProcess, op: Operation, _step: int) -> tuple[ModelProcess, Reply]:
    """mremap() to a smaller size unmaps the tail (man 2 mremap)."""
    if not 0 < op.to < op.size:
        raise Unspecified("only a smaller size is meant")
    if process.may_be_several(op.at, op.end):
        raise Unspecified("mremap() of several VMAs, or of none")
    return process.without(op.at + op.to, op.end), Reply((DONE,))


def _grow(process: ModelProcess, op: Operation, _step: int) -> tuple[ModelProcess, Reply]:
    """The mapping of a BAR cannot grow (VM_DONTEXPAND), and of no mapping, or several, can be none (man 2 mremap)."""
    if op.to <= op.size or any(vma.memory is not Backing.BAR for vma in process.within(op.at, op.end)):
        raise Unspecified("where ordinary memory grows to")
    return process, Reply((BAD_ADDRESS,))


def _lock(process: ModelProcess, op: Operation, _step: int) -> tuple[ModelProcess, Reply]:
    """ENOMEM where there is a hole; a pfnmap is passed over, as it is never paged out (man 2 mlock)."""
    vmas = list(process.within(op.at, op.end))
    if process.hole(op.at, op.end) < op.end:
        raise Unspecified("how much of a range with a hole is locked")
    ordinary = [vma for vma in vmas if vma.memory is not Backing.BAR]
    if any(not vma.rights for vma in ordinary):
        raise Unspecified("mlock() of memory that cannot be read")
    return process.having(*(replace(vma, locked=op.how == "on") for vma in ordinary)), Reply((DONE,))


def _advise(process: ModelProcess, op: Operation, _step: int) -> tuple[ModelProcess, Reply]:
    """A VMA that refuses ends it with EINVAL; a hole is passed over, and gives ENOMEM (man 2 madvise)."""
    answer = DONE if process.hole(op.at, op.end) >= op.end else "ENOMEM"
    for vma in process.within(op.at, op.end):
        if vma.memory is Backing.BAR and op.how in NOT_FOR_A_BAR:
            return process, Reply(("EINVAL",))
        if op.how in ("collapse", "guard") or (vma.locked and op.how not in KEPT_ADVICE):
            raise Unspecified("what happens to ordinary memory, and to memory that is locked")
        if op.how in ("free", "wipeonfork") and vma.memory is not Backing.ANON:
            return process, Reply(("EINVAL",))
        if op.how == "dontneed" and vma.memory is Backing.ANON:
            process = _forget(process, vma)
        elif op.how == "free" and vma.memory is Backing.ANON:
            raise Unspecified("when the content of freed memory is lost")
        elif op.how == "wipeonfork":
            raise Unspecified("not modelled")
        if op.how in _ADDS:
            advice = vma.advice - _TAKES_AWAY.get(op.how, frozenset()) | _ADDS[op.how]
            process = process.having(replace(vma, advice=advice))
    if op.how == "hugepage":  # refused for a VMA that can have no huge page, by some kernels and configurations
        return process, Reply((answer, "EINVAL"))
    return process, Reply((answer,))


def _forget(process: ModelProcess, vma: MappedRange) -> ModelProcess:
    """MADV_DONTNEED of private memory: zeros from now on (man 2 madvise)."""
    first, last = vma.offset, vma.offset + vma.end - vma.start
    kept = {
        (piece, offset): word
        for (piece, offset), word in process.words.items()
        if piece != vma.object or not first <= offset < last
    }
    return replace(process, words=kept)


def _dma(world: World, process: ModelProcess, op: Operation) -> Reply:
    """MAP_DMA pins, or looks up, what the process can write, and EFAULTs elsewhere (vfio_iommu_type1.c)."""
    vmas = list(process.within(op.at, op.end))
    if process.hole(op.at, op.end) < op.end or any(vma.rights != "rw" for vma in vmas):
        raise Unspecified("which of EFAULT, EINVAL and ENOMEM an address has that cannot be mapped for DMA")
    if not world.bar_answers and any(vma.memory is Backing.BAR for vma in vmas):
        raise Unspecified("how a lookup of a device without memory fails")
    return Reply((DONE,))


def _scan(process: ModelProcess, op: Operation) -> Reply:
    """PAGEMAP_SCAN passes over a pfnmap, as it has no pages (admin-guide/mm/pagemap.rst; ENOTTY before 6.7)."""
    ordinary = any(vma.memory is not Backing.BAR for vma in process.within(op.at, op.end))
    return Reply((DONE, "ENOTTY"), None if ordinary else 0)


def _uffd(world: World, process: ModelProcess, op: Operation) -> tuple[World, Reply]:
    """A pfnmap cannot be watched: EINVAL (man 2 ioctl_userfaultfd). A kernel may lack userfaultfd, or parts of it."""
    if process.hole(op.at, op.end) < op.end:
        raise Unspecified("which of EINVAL and ENOMEM a range with a hole has")
    if any(vma.memory is Backing.BAR for vma in process.within(op.at, op.end)):
        return world, Reply(("EINVAL", "ENOSYS"))
    cut = replace(process, cuts=process.cuts | set(bounds(op)))
    return world.of(op.process, cut), Reply((DONE, "EINVAL", "ENOSYS"))


_RANGE_RULES = {
    Verb.MAP: _map,
    Verb.UNMAP: _unmap,
    Verb.PROTECT: _protect,
    Verb.MOVE: _move,
    Verb.SHRINK: _shrink,
    Verb.ADVISE: _advise,
    Verb.LOCK: _lock,
    Verb.GROW: _grow,
}
