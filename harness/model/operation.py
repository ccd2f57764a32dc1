"""One operation of a process on its memory, as a value, as a word for the actor, and as a line for people. Pure.

Addresses are offsets in the arena, a range of 4 GiB at :data:`ARENA_VADDR` in every process, where nothing else is.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Self

from harness.errors import UsageError

ARENA_VADDR = 1 << 44
ARENA_BYTES = 4 << 30
PROCESSES_MAX = 4
STEPS_MAX = 64
PTE, PMD, PUD = 1 << 12, 1 << 21, 1 << 30
_UNITS = (("G", PUD), ("M", 1 << 20), ("K", 1 << 10))


class Backing(enum.Enum):
    """What a VMA maps."""

    BAR = "bar"  # a pfnmap of the device, MAP_SHARED
    ANON = "anon"  # MAP_PRIVATE | MAP_ANONYMOUS
    SHM = "shm"  # MAP_SHARED | MAP_ANONYMOUS

    @property
    def shared(self) -> bool:
        """Whether a write is seen by every process that maps it."""
        return self is not Backing.ANON


class Verb(enum.Enum):
    """An operation; the value is its name for the actor, and in the list of operations that a user asks for."""

    MAP = "map"  # mmap(MAP_FIXED) of `size` bytes of `memory` at `at`; of a BAR, from its offset `to`
    READ = "read"  # load of the word at `at`; OTHER_THREAD in `how`: by the process's other thread, on another vCPU
    WRITE = "write"  # store of the number of the step, likewise
    FORK = "fork"  # the child is process `to`
    EXIT = "exit"
    PROTECT = "mprotect"  # to the rights `how`
    UNMAP = "munmap"
    MOVE = "mremap"  # with MREMAP_FIXED, to `to`
    SHRINK = "shrink"  # mremap() to the size `to`
    ADVISE = "madvise"  # `how`
    CLEAR = "clear_refs"  # writes `how` into /proc/self/clear_refs
    LOOK = "look"  # reads the file `how` of /proc/self to its end
    MEMORY = "memory"  # the memory bit of the device's PCI_COMMAND, "on" or "off"; "sleep" and "wake" it; "reset" it
    DMA = "dma"  # VFIO_IOMMU_MAP_DMA and UNMAP_DMA
    FILL = "fill"  # read() from a pipe stores the number of the step at `at`: the kernel writes there
    SEND = "send"  # write() to a pipe takes the word at `at`: the kernel reads there
    PEEK = "peek"  # the word at `at`, from /proc/self/mem; or by the system call `how`
    LOCK = "mlock"  # "on": mlock(), "off": munlock()
    GROW = "grow"  # mremap() with MREMAP_MAYMOVE to the size `to`
    RACE = "race"  # the next two operations run against each other, in two threads, `size` times
    SCAN = "scan"  # PAGEMAP_SCAN: how many pages are present
    MINCORE = "mincore"
    UFFD = "uffd"  # has userfaultfd watch the range for `how`, and takes that back


#: Verbs that concern the range [at, at + size) of the process that does them.
RANGED = (
    *(Verb.MAP, Verb.PROTECT, Verb.UNMAP, Verb.MOVE, Verb.SHRINK, Verb.ADVISE, Verb.DMA, Verb.LOCK, Verb.GROW),
    Verb.UFFD,
)
#: Verbs that load or store one word, in user mode or in the kernel.
ACCESSES = (Verb.READ, Verb.WRITE, Verb.FILL, Verb.SEND, Verb.PEEK)
STORES = (Verb.WRITE, Verb.FILL)
#: Verbs of the CPU's own accesses, which the other thread of a process can do, or a child that shares its memory.
BY_A_THREAD = (Verb.READ, Verb.WRITE)
OTHER_THREAD, VFORK = "other", "vfork"
#: What can race, one of them against another, or against one of those that change what is mapped.
RACING = (*BY_A_THREAD, Verb.CLEAR, Verb.LOOK, Verb.DMA, Verb.FILL, Verb.SEND, Verb.PEEK, Verb.SCAN, Verb.MINCORE)
#: What gives the same when it is done again. Of two that race, the first may be such a one.
CHANGING = (Verb.MAP, Verb.UNMAP, Verb.PROTECT, Verb.ADVISE, Verb.LOCK)


@dataclass(frozen=True, slots=True)
class Operation:
    """What one process does."""

    process: int
    """Which one, 0 to 3. Process 0 is there from the start."""
    verb: Verb
    at: int = 0
    """Where, in bytes from the start of the arena."""
    size: int = 0
    """In bytes."""
    to: int = 0
    """A second place, size or process, see :class:`Verb`."""
    how: str = ""
    """Rights, advice or the name of a file, see :class:`Verb`."""
    memory: Backing = Backing.BAR
    """What MAP maps."""

    @property
    def end(self) -> int:
        """First byte after the range."""
        return self.at + self.size

    @property
    def needs_two_vcpus(self) -> bool:
        """Whether it says little on a machine with one."""
        return self.verb is Verb.RACE or self.how == OTHER_THREAD

    @property
    def cause(self) -> str:
        """What it is called in a finding: "mprotect", "smaps", "madvise dontfork"."""
        if self.verb is Verb.LOOK or (self.verb is Verb.PEEK and self.how):
            return self.how
        return (
            f"{self.verb.value} {self.how}"
            if self.verb in (Verb.ADVISE, Verb.MEMORY, Verb.CLEAR, Verb.LOCK, Verb.UFFD)
            else self.verb.value
        )

    def word(self) -> str:
        """Return it as one argument of the actor."""
        fields = (self.process, self.verb.value, f"{self.at:x}", f"{self.size:x}", f"{self.to:x}")
        return ":".join(map(str, (*fields, self.memory.value, self.how)))

    @classmethod
    def parse(cls, word: str) -> Self:
        """Read what :meth:`word` wrote.

        :raises UsageError: it is not an operation.
        """
        try:
            process, verb, at, size, to, memory, how = word.split(":")
            where, length, second = (int(one, 16) for one in (at, size, to))
            return cls(int(process), Verb(verb), where, length, second, how, Backing(memory))
        except ValueError:
            raise UsageError(
                f"{word!r} is not an operation; expected PROCESS:VERB:AT:SIZE:TO:MEMORY:HOW, with AT, SIZE and TO in "
                f"hexadecimal digits, and a VERB of: {', '.join(verb.value for verb in Verb)}"
            ) from None

    def __str__(self) -> str:
        where = f"{size_words(self.at)}, {size_words(self.size)}"
        match self.verb:
            case Verb.MAP:
                offset = f" from {size_words(self.to)}" if self.memory is Backing.BAR else ""
                said = f"mmap({where}, {self.how}, {self.memory.value}{offset})"
            case Verb.PEEK if self.how:
                said = f"{self.how}({size_words(self.at)})"
            case Verb.READ | Verb.WRITE | Verb.FILL | Verb.SEND | Verb.PEEK:
                who = {OTHER_THREAD: ", other thread", VFORK: ", child of vfork()"}.get(self.how, "")
                said = f"{self.verb.value}({size_words(self.at)}){who}"
            case Verb.FORK:
                said = f"fork() makes p{self.to}"
            case Verb.MOVE:
                said = f"mremap({where} to {size_words(self.to)})"
            case Verb.RACE:
                said = f"{self.size} times, at once:"
            case Verb.SHRINK | Verb.GROW:
                said = f"mremap({where} to a size of {size_words(self.to)})"
            case Verb.LOOK | Verb.CLEAR | Verb.MEMORY:
                said = f"{self.verb.value}({self.how})"
            case Verb.EXIT:
                said = "exit()"
            case _:
                said = f"{self.verb.value}({where}{', ' * bool(self.how)}{self.how})"
        return f"p{self.process}: {said}"


def size_words(size_bytes: int) -> str:
    """Return a size or an offset in the largest units that it is made of: "1G+2M", "4K", "0"."""
    parts, left = [], size_bytes
    for name, unit in _UNITS:
        if left >= unit:
            parts.append(f"{left // unit}{name}")
            left %= unit
    return "+".join([*parts, *([str(left)] if left else [])]) or "0"
