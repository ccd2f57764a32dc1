"""Finds out what hangs when a guest program has passed its deadline: the program, or the kernel.

The agent is asked first: it is an ordinary process, so a kernel on which it answers schedules, takes interrupts and
serves system calls. /proc then tells where the program is, and sysrq (w: blocked tasks, l: backtraces of all CPUs)
makes the kernel log it. If the agent does not answer, QEMU tells the registers, and sysrq is sent as a break on the
serial console, which works as long as a vCPU takes interrupts (drivers/tty/serial, uart_handle_break()).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice

from harness.errors import (
    AgentRefused,
    DeadlineError,
    HugepfnError,
    MachineryError,
    ProtocolError,
    QemuRefused,
)
from harness.guest import bounds
from harness.guest.agent import Agent
from harness.guest.log_reader import read_log
from harness.observe.kernel_watch import KernelWatch
from harness.printable import printable
from harness.qemu.process import Qemu
from harness.qemu.registers import CpuState, parse_cpu_states
from harness.qemu.threads import ThreadTime, disk_waiters, thread_times
from harness.verdict.hang import hang_words
from harness.verdict.hang.hang import DUMP_LINES, LOG_LINES, Hang, HangKind, HungCpu, HungTask

_PING_S = 5.0
_FILE_S = 2.0
_QUIET_S = 1.0  # the kernel has logged everything if it is silent for so long
_DUMP_S = 10.0
_USER_HZ = 100
_RUNS = 0.01  # of the time: a thread that has run less than this executed nothing
#: The outermost function of a stack that begins with an interrupt (arch/x86/include/asm/idtentry.h). One that begins
#: with a page fault is different: there the kernel works for the program.
_INTERRUPTS = ("asm_sysvec_", "asm_common_interrupt", "asm_spurious_interrupt")
_FRAME = re.compile(r"^\[<[0-9a-f]+>\] ([\w.]+)", re.MULTILINE)


@dataclass(frozen=True)
class HangReport:
    """What hangs, and what is too long for a result."""

    hang: Hang
    last_words: str
    """The last complaint in the kernel log, in words."""
    registers: str = ""
    """Of every vCPU, as QEMU prints them; "" if the agent answered."""

    def told(self, program: str, names: Mapping[int, str]) -> str:
        """Return what hangs, and what the kernel said about it, in one line."""
        return f"{hang_words.told(self.hang, program, list(names.values()))}; {self.last_words}"


async def diagnose(kernel: KernelWatch, names: Mapping[int, str], checkpoint: str, waited_s: float) -> HangReport:
    """Find out what hangs. The machine must run; afterwards its log has what the kernel told about itself.

    :param names: of the program's processes, by pid.
    :param checkpoint: the last one that it reached; "" if none.
    :param waited_s: the deadline that has passed.
    :raises KernelDied: the kernel died meanwhile, which is the better answer.
    :raises MachineryError: QEMU failed, or this host did not run it.
    """
    qemu, agent = kernel.qemu, kernel.agent
    before, waiting = thread_times(qemu.pid), disk_waiters(qemu.pid)
    hang = Hang(HangKind.PROGRAM, checkpoint, float(waited_s), qemu.deadline(_PING_S).timeout_s)
    try:
        await agent.request("ping", timeout_s=_PING_S)
    except DeadlineError:
        return await _hung_kernel(kernel, qemu, hang, before, waiting)
    last_words = await kernel.last_words()
    tasks = [await _task(agent, pid, name) for pid, name in sorted(names.items())]
    log = kernel.log
    kernel.ask()
    with contextlib.suppress(AgentRefused, DeadlineError):  # no CONFIG_MAGIC_SYSRQ
        for letter in (b"w", b"l"):
            await agent.put("/proc/sysrq-trigger", letter)
        await read_log(agent, "the program hangs", _DUMP_S)
    kernel.answered()
    return HangReport(_with_log(replace(hang, tasks=tuple(tasks)), log, kernel.log), last_words)


async def _task(agent: Agent, pid: int, name: str) -> HungTask:
    """Return where a process is. Nothing is read that needs a lock of its memory, which may be held for ever."""
    task = HungTask(name, pid, "", 0.0, 0.0, ())
    with contextlib.suppress(HugepfnError, ValueError, IndexError):  # it has ended
        stat = (await _file(agent, f"/proc/{pid}/stat")).rpartition(")")[2].split()
        task = replace(task, state=stat[0][:1], user_s=int(stat[11]) / _USER_HZ, system_s=int(stat[12]) / _USER_HZ)
        frames = _FRAME.finditer(await _file(agent, f"/proc/{pid}/stack"))
        stack = tuple(one[1][: bounds.SYMBOL_MAX] for one in islice(frames, bounds.STACK_MAX))
        in_user_space = bool(stack) and stack[-1].startswith(_INTERRUPTS)  # interrupted there, and not in a system call
        task = replace(task, stack=() if in_user_space else stack)
    return task


async def _file(agent: Agent, path: str) -> str:
    return printable((await agent.request("get", path.encode(), _FILE_S)).payload)


async def _hung_kernel(
    kernel: KernelWatch, qemu: Qemu, hang: Hang, before: Mapping[int, ThreadTime], waiting: Set[int]
) -> HangReport:
    """The agent did not answer: ask QEMU."""
    ran_s = {
        thread: (time.ran_ns - before[thread].ran_ns) / 1e9
        for thread, time in thread_times(qemu.pid).items()
        if thread in before
    }
    _check_host(qemu.pid, waiting, ran_s, hang.asked_s)
    kernel.ask()
    log, registers = kernel.log, ""
    cpus: tuple[HungCpu, ...] = ()
    with contextlib.suppress(DeadlineError, ProtocolError, QemuRefused):  # the hang is the error
        registers = await _registers(qemu)
        cpus = _cpus(parse_cpu_states(registers), await qemu.execute("query-cpus-fast"), ran_s)
        for letter in (b"w", b"l"):
            await _sysrq_by_break(qemu, letter)
        registers += f"\n--- after sysrq ---\n{await _registers(qemu)}"
    kernel.answered()
    stands_still = bool(cpus) and all(one.halted and not one.interrupts for one in cpus)
    hang = replace(hang, kind=HangKind.STANDSTILL if stands_still else HangKind.KERNEL, cpus=cpus)
    return HangReport(_with_log(hang, log, kernel.log), qemu.complaint(), registers)


async def _registers(qemu: Qemu) -> str:
    said = await qemu.execute("human-monitor-command", {"command-line": "info registers -a"})
    return str(said).replace("\r", "")


def _cpus(states: Sequence[CpuState], threads: object, ran_s: Mapping[int, float]) -> tuple[HungCpu, ...]:
    """Return the vCPUs.

    :param threads: the answer to query-cpus-fast (qapi/machine.json, CpuInfoFast).
    :param ran_s: how long each thread of QEMU has run.
    """
    of_cpu: dict[int, int] = (
        {one["cpu-index"]: one["thread-id"] for one in threads} if isinstance(threads, list) else {}
    )
    return tuple(
        HungCpu(one.cpu, one.rip, one.in_kernel, one.interrupts, one.halted, ran_s.get(of_cpu.get(one.cpu, 0), 0.0))
        for one in states
    )


def _check_host(pid: int, waiting: Set[int], ran_s: Mapping[int, float], asked_s: float) -> None:
    """Check that this host ran QEMU. Waiting for a CPU has extended the deadline, but waiting for a disk has not.

    :param waiting: the threads of QEMU that waited for a disk before the agent was asked.
    :raises MachineryError: one of them has done nothing else since.
    """
    for thread in sorted(waiting & disk_waiters(pid)):
        if ran_s.get(thread, 0.0) < _RUNS * asked_s:
            raise MachineryError(
                f"this host has not run QEMU (pid {pid}) for {asked_s:g} s: its thread {thread} waits for a disk, for "
                "instance for swapped memory, so this says nothing about the kernel; give the host more free memory "
                "or run fewer things at the same time (--workers), and try again"
            )


async def _sysrq_by_break(qemu: Qemu, letter: bytes) -> None:
    """Send a break and a letter to the serial console, and wait for what the kernel logs."""
    await qemu.execute("chardev-send-break", {"id": "console"})
    sending = asyncio.get_running_loop().sock_sendall(qemu.end("console"), letter)
    await qemu.expect(sending, _FILE_S, "QEMU to take a key of sysrq")
    await _silence(qemu)


async def _silence(qemu: Qemu) -> None:
    """Wait until the kernel has logged what it was asked for."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _DUMP_S
    with contextlib.suppress(DeadlineError):
        while (left_s := end - loop.time()) > 0:
            await qemu.expect(qemu.log.more(), min(left_s, _QUIET_S), "what sysrq logs")


def _with_log(hang: Hang, before: str, after: str) -> Hang:
    """Add the last lines before the kernel was asked, and what it has answered."""
    old, new = before.splitlines(), after.splitlines()[len(before.splitlines()) :]
    log, dump = ([line[: bounds.LOG_LINE_MAX] for line in part] for part in (old[-LOG_LINES:], new[:DUMP_LINES]))
    return replace(hang, log=tuple(log), dump=tuple(dump))
