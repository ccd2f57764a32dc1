"""The processes of a guest, found in its kernel's own list of tasks.

Source: include/linux/sched.h (struct task_struct), include/linux/mm_types.h (struct mm_struct), for_each_process() and
for_each_thread() of include/linux/sched/signal.h. Everything is read at one stop, so no lock is needed: the lists are
protected by RCU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from harness.errors import MachineryError, UsageError
from harness.introspect.kernel_memory import FirstTask, KernelMemory
from harness.kernel.offsets import TASK_MEMBERS
from harness.pagetable.bits import PAGE_SIZE_BYTES

_COMM_BYTES = 16  # TASK_COMM_LEN
_PF_KTHREAD = 0x00200000
_MAX_TASKS = 1 << 22  # PID_MAX_LIMIT
_SHOWN = 12


@dataclass(frozen=True, slots=True)
class TaskOffsets:
    """Byte offsets of the members that lead from a task to its page tables: those of TASK_MEMBERS."""

    tasks: int
    pid: int
    tgid: int
    comm: int
    flags: int
    mm: int
    signal: int
    thread_node: int
    thread_head: int
    pgd: int

    @classmethod
    def of(cls, offset: Callable[[str], int]) -> TaskOffsets:
        """Make them from a function that returns each: ``offset("task_struct.mm")``."""
        return cls(**{member.partition(".")[2]: offset(member) for member in TASK_MEMBERS})


@dataclass(frozen=True, slots=True)
class Task:
    """One thread of the guest, or a kernel thread."""

    pid: int
    tgid: int
    name: str  # comm
    vaddr: int  # of its task_struct
    mm: int  # vaddr of its mm_struct, 0 for none
    kernel_thread: bool

    def __str__(self) -> str:
        return f"{self.pid} ({self.name})"


class Tasks:
    """The tasks of one stop."""

    def __init__(self, kernel: KernelMemory, init_task: int, offsets: TaskOffsets) -> None:
        self._kernel = kernel
        self._init_task = init_task
        self._offsets = offsets

    def __iter__(self) -> Iterator[Task]:
        """Yield every process, kernel threads included, but only the first thread of each."""
        for vaddr in self._list(self._init_task + self._offsets.tasks, self._offsets.tasks):
            yield self._task(vaddr)

    def find(self, pid: int) -> Task:
        """Return the task with this pid, which may be a thread's.

        :raises UsageError: there is none; names some that exist.
        """
        leaders = list(self)
        for task in leaders:
            if task.pid == pid:
                return task
        for leader in leaders:
            head = self._kernel.u64(leader.vaddr + self._offsets.signal) + self._offsets.thread_head
            for vaddr in self._list(head, self._offsets.thread_node):
                if (thread := self._task(vaddr)).pid == pid:
                    return thread
        with_memory = [str(task) for task in leaders if task.mm]
        more = f" and {len(with_memory) - _SHOWN} more" if len(with_memory) > _SHOWN else ""
        raise UsageError(
            f"there is no process {pid} in the guest; expected one of {', '.join(with_memory[:_SHOWN])}{more}"
        )

    def root(self, task: Task) -> int:
        """Return the physical address of a task's root table; with page-table isolation, that of the kernel's copy.

        :raises UsageError: it has no page tables of its own.
        :raises MachineryError: the table at mm->pgd does not map the kernel, so it is not a root.
        """
        if not task.mm:
            why = "a kernel thread" if task.kernel_thread else "exiting, or a zombie"
            raise UsageError(f"process {task} has no page tables of its own (its mm is NULL): it is {why}")
        pgd = self._kernel.u64(task.mm + self._offsets.pgd)
        root = self._kernel.paddr(pgd)
        if root % PAGE_SIZE_BYTES or not self._kernel.maps_the_same(root, self._init_task):
            raise MachineryError(f"mm->pgd of process {task} is {pgd:#x}, which is not the root of a page table")
        return root

    def _list(self, head: int, offset: int) -> Iterator[int]:
        """Yield the structs on a ``list_head``, without the head; ``offset`` is that of the links in a struct."""
        link = self._kernel.u64(head)
        for _ in range(_MAX_TASKS):
            if link == head:
                return
            yield link - offset
            link = self._kernel.u64(link)
        raise MachineryError(f"the list at {head:#x} in the guest's kernel does not end")

    def _task(self, vaddr: int) -> Task:
        kernel, at = self._kernel, self._offsets
        return Task(
            pid=kernel.u32(vaddr + at.pid),
            tgid=kernel.u32(vaddr + at.tgid),
            name=kernel.text(vaddr + at.comm, _COMM_BYTES),
            vaddr=vaddr,
            mm=kernel.u64(vaddr + at.mm),
            kernel_thread=bool(kernel.u32(vaddr + at.flags) & _PF_KTHREAD),
        )


def first_task(init_task: int, offsets: TaskOffsets) -> FirstTask:
    """Return what is needed to recognise the first task."""
    return FirstTask(init_task, offsets.comm, offsets.pid)
