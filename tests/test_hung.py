"""Tests for finding out what hangs: the values, the words, and the conclusions from QEMU's and the agent's answers."""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import Awaitable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from harness.errors import AgentRefused, DeadlineError, KernelDied, MachineryError, ProtocolError
from harness.guest.kernel_log import KernelLog
from harness.guest.protocol import Frame
from harness.observe import hung
from harness.observe.hung import HangReport, diagnose
from harness.qemu.registers import CpuState, parse_cpu_states
from harness.qemu.threads import ThreadTime
from harness.verdict.hang import hang_words
from harness.verdict.hang.hang import Hang, HangKind, HungCpu, HungTask

REGISTERS = (Path(__file__).parent / "data/machine/registers-smp2-la57-pcid.txt").read_bytes().decode()
SLEEPS = HungTask("parent", 7, "S", 0.25, 1.5, ("__do_sys_pause", "do_syscall_64"))
SPINS = HungCpu(0, 0xFFFFFFFF81000010, in_kernel=True, interrupts=False, halted=False, ran_s=4.9)
IDLE = HungCpu(1, 0xFFFFFFFF81000020, in_kernel=True, interrupts=True, halted=True, ran_s=0.1)
HANG = Hang(HangKind.PROGRAM, "begin", 30.0, 5.0)
DUMP = ("[ 9.0] RIP: 0010:swap_off+0x1/0x2", "[ 9.0] RIP: 0033:0x7f", "[ 9.1] RIP: 0010:swap_off+0x1/0x2")


@pytest.mark.parametrize(
    "hang",
    [
        Hang(HangKind.PROGRAM, "begin", 30.0, 5.0, tasks=(SLEEPS,)),
        Hang(HangKind.KERNEL, "", 30.0, 5.0, cpus=(SPINS, IDLE), log=("a",), dump=DUMP),
    ],
)
def test_a_hang_is_the_same_after_json(hang: Hang) -> None:
    assert Hang.from_json(hang.to_json()) == hang


NOTHING = "nothing within 30 s; fork:"
PROCESSES = "processes ['child', 'parent']"
GOES_ON = f"{PROCESSES}; the program hangs, and the kernel goes on: parent (pid 7)"


@pytest.mark.parametrize(
    ("hang", "words"),
    [
        (
            Hang(HangKind.PROGRAM, "begin", 30.0, 5.0, tasks=(SLEEPS,)),
            f"{NOTHING} last at checkpoint 'begin', {GOES_ON} sleeps in pause() at __do_sys_pause < "
            "do_syscall_64 (CPU time 0.2 s in user space, 1.5 s in the kernel)",
        ),
        (
            Hang(HangKind.PROGRAM, "", 30.0, 5.0, tasks=(HungTask("parent", 7, "R", 2.0, 0.0, ()),)),
            f"{NOTHING} it reached no checkpoint, {GOES_ON} runs in user space (CPU time 2.0 s in user space, 0.0 s in "
            "the kernel)",
        ),
        (
            Hang(HangKind.KERNEL, "a", 30.0, 5.0, cpus=(SPINS, IDLE), dump=DUMP),
            f"{NOTHING} last at checkpoint 'a', {PROCESSES}; the kernel hangs: its agent did not answer within 5 s; "
            "vCPU 0 runs in the kernel (CPU time 4.9 s) at rip 0xffffffff81000010, interrupts off; vCPU 1 is halted at "
            "rip 0xffffffff81000020, interrupts on; the kernel says that it is in swap_off",
        ),
    ],
)
def test_the_words(hang: Hang, words: str) -> None:
    assert hang_words.told(hang, "fork", ["parent", "child"]) == words


@pytest.mark.parametrize(
    ("stack", "syscall"),
    [
        (("__do_sys_pause", "do_syscall_64"), "pause"),
        (("pipe_read", "vfs_read", "ksys_read", "do_syscall_64"), "read"),
        (("f", "__x64_sys_swapoff", "x64_sys_call"), "swapoff"),
        (("kthread",), ""),
        ((), ""),
    ],
)
def test_the_system_call_is_in_the_stack(stack: tuple[str, ...], syscall: str) -> None:
    assert HungTask("parent", 7, "S", 0.0, 0.0, stack).syscall == syscall


def test_the_state_of_each_cpu_is_in_qemus_text() -> None:
    assert parse_cpu_states(REGISTERS) == [
        CpuState(0, 0xF00CA, in_kernel=True, interrupts=False, halted=True),
        CpuState(1, 0xFFF0, in_kernel=True, interrupts=False, halted=True),
    ]
    with pytest.raises(ProtocolError, match=r"registers of vCPU 0: expected a line with RIP, RFL, CPL and HLT"):
        parse_cpu_states("\nCPU#0\nRAX=1\n")


# --- the diagnosis --------------------------------------------------------------------------------


class Guest:
    """The parts of QEMU, the agent and the kernel watch that a diagnosis needs."""

    def __init__(self, files: dict[str, str] | None, registers: str = REGISTERS) -> None:
        self.files = files  # None: the agent does not answer
        self.registers = registers
        self.said: list[str] = []
        self.log = "[ 1.0] before\n"
        self.pid = 1
        self.qemu, self.agent = self, self
        self.frozen = False
        self.slowness = 1.0

    def deadline(self, timeout_s: float) -> object:
        return SimpleNamespace(timeout_s=timeout_s * self.slowness)

    async def request(self, verb: str, payload: bytes = b"", timeout_s: float = 30.0) -> Frame:
        assert timeout_s <= 5.0
        if self.files is None:
            raise DeadlineError("the agent's answer")
        if verb == "get":
            text = self.files.get(payload.decode())
            if text is None:
                raise AgentRefused("no such file", 2)
            return Frame("done", 1, text.encode())
        return Frame("done", 1, b"")

    async def put(self, path: str, data: bytes) -> None:
        assert self.frozen, "what the kernel logs during the diagnosis is no complaint"
        self.said.append(f"{path} {data.decode()}")

    async def execute(self, command: str, arguments: dict[str, Any] | None = None) -> object:
        self.said.append(command)
        if command == "query-cpus-fast":
            return [{"cpu-index": 0, "thread-id": 11}, {"cpu-index": 1, "thread-id": 12}]
        assert command == "chardev-send-break" or arguments == {"command-line": "info registers -a"}
        return self.registers

    def ask(self) -> None:
        self.frozen = True

    def answered(self) -> None:
        assert self.frozen
        assert "sysrq" in self.log or "RIP" in self.log or self.registers == "nonsense"
        self.frozen = False

    async def last_words(self) -> str:
        return "no complaint"

    def complaint(self) -> str:
        return "nothing on the console"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Any:
    async def read_log(guest: Guest, _occasion: str, _timeout_s: float) -> None:
        guest.log += "[ 2.0] sysrq: Show Blocked State\n"

    async def break_(guest: Guest, letter: bytes) -> None:
        guest.said.append(f"break {letter.decode()}")
        guest.log += f"[ 2.0] RIP: 0010:swap_off_{letter.decode()}+0x1/0x2\n"

    times = iter(
        [{11: ThreadTime(0, 0), 12: ThreadTime(0, 0)}, {11: ThreadTime(4_000_000_000, 0), 12: ThreadTime(5, 0)}]
    )
    monkeypatch.setattr(hung, "thread_times", lambda _pid: next(times))
    monkeypatch.setattr(hung, "read_log", read_log)
    monkeypatch.setattr(hung, "_sysrq_by_break", break_)

    def run(guest: Guest) -> HangReport:
        names = {7: "parent", 8: "child"}
        return asyncio.run(diagnose(cast(Any, guest), names, "begin", 30))

    return run


def test_an_agent_that_answers_means_that_the_program_hangs(run: Any) -> None:
    stat = "7 (a) b) S 1 7 7 0 -1 4194560 20 0 0 0 25 150 0 0 20 0 1 0"
    stack = "[<0>] __do_sys_pause+0x37/0x60\n[<0>] do_syscall_64+0x82/0x190\n"
    guest = Guest({"/proc/7/stat": stat, "/proc/7/stack": stack})
    report = run(guest)
    gone = HungTask("child", 8, "", 0.0, 0.0, ())
    assert report.hang == Hang(
        *(HangKind.PROGRAM, "begin", 30.0, 5.0, (SLEEPS, gone)),
        log=("[ 1.0] before",),
        dump=("[ 2.0] sysrq: Show Blocked State",),
    )
    assert guest.said == ["/proc/sysrq-trigger w", "/proc/sysrq-trigger l"]
    assert report.told("fork", {7: "parent"}).endswith("; child (pid 8) has ended; no complaint")


def test_a_program_that_was_interrupted_in_user_space_is_not_in_the_kernel(run: Any) -> None:
    stack = "[<0>] irqentry_exit_to_user_mode+0x37/0x60\n[<0>] asm_sysvec_apic_timer_interrupt+0x82/0x190\n"
    report = run(Guest({"/proc/7/stat": "7 (a) R" + " 0" * 20, "/proc/7/stack": stack}))
    assert report.hang.tasks[0] == HungTask("parent", 7, "R", 0.0, 0.0, ())


def test_a_page_fault_is_in_the_kernel_although_it_is_no_system_call(run: Any) -> None:
    stack = "[<0>] vfio_pci_mmap_huge_fault+0x37/0x60\n[<0>] asm_exc_page_fault+0x26/0x30\n"
    report = run(Guest({"/proc/7/stat": "7 (a) D" + " 0" * 20, "/proc/7/stack": stack}))
    assert report.hang.tasks[0].stack == ("vfio_pci_mmap_huge_fault", "asm_exc_page_fault")


def test_what_a_guest_says_about_its_tasks_has_limits(run: Any) -> None:
    stack = "".join(f"[<0>] {'f' * 9000}+0x37/0x60\n" for _ in range(1000))
    guest = Guest({"/proc/7/stat": "7 (a) " + "S" * 9000 + " 0" * 20, "/proc/7/stack": stack})
    guest.log = "x" * 9000 + "\n"
    hang = run(guest).hang
    assert (hang.tasks[0].state, len(hang.tasks[0].stack), len(hang.tasks[0].stack[0])) == ("S", 64, 512)
    assert [len(line) for line in hang.log] == [2000]


def test_an_agent_that_does_not_answer_means_that_the_kernel_hangs(run: Any) -> None:
    guest = Guest(None, REGISTERS.replace("HLT=1", "HLT=0", 1))
    report = run(guest)
    assert (report.hang.kind, report.hang.tasks) == (HangKind.KERNEL, ())
    assert [(one.halted, one.ran_s) for one in report.hang.cpus] == [(False, 4.0), (True, 5e-9)]
    assert report.hang.places == ("swap_off_w", "swap_off_l")
    assert [one for one in guest.said if one.startswith("break")] == ["break w", "break l"]
    assert report.registers.count("CPU#1") == 2
    assert not guest.frozen
    assert report.last_words == "nothing on the console"


@pytest.mark.parametrize(
    ("before", "after", "hosts_fault"), [({12}, {12}, True), ({12}, set(), False), ({11}, {11}, False)]
)
def test_a_qemu_that_waits_for_a_disk_says_nothing_about_the_kernel(
    run: Any, monkeypatch: pytest.MonkeyPatch, before: set[int], after: set[int], hosts_fault: bool
) -> None:
    waiting = iter([before, after])
    monkeypatch.setattr(hung, "disk_waiters", lambda _pid: next(waiting))
    guest = Guest(None, REGISTERS.replace("HLT=1", "HLT=0"))
    if hosts_fault:
        with pytest.raises(MachineryError, match=r"has not run QEMU \(pid 1\) for 5 s: its thread 12 waits for a disk"):
            run(guest)
    else:
        assert run(guest).hang.kind is HangKind.KERNEL


def test_a_kernel_that_dies_while_it_is_asked_did_not_hang(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def died(*_: object) -> None:
        raise KernelDied("the kernel died: panic")

    monkeypatch.setattr(Guest, "put", died)
    with pytest.raises(KernelDied, match="panic"):
        run(Guest({}))
    monkeypatch.setattr(Guest, "execute", died)
    with pytest.raises(KernelDied, match="panic"):
        asyncio.run(hung._hung_kernel(cast(Any, Guest(None)), cast(Any, Guest(None)), HANG, {}, set()))


@pytest.mark.parametrize(
    ("hlt", "interrupts", "kind"),
    [("1", "00000002", HangKind.STANDSTILL), ("1", "00000202", HangKind.KERNEL), ("0", "00000002", HangKind.KERNEL)],
)
def test_only_cpus_that_cannot_wake_up_stand_still(run: Any, hlt: str, interrupts: str, kind: HangKind) -> None:
    registers = re.sub(r"FL=[0-9a-f]+", f"FL={interrupts}", REGISTERS).replace("HLT=1", f"HLT={hlt}")
    assert run(Guest(None, registers)).hang.kind is kind


def test_halted_cpus_are_a_standstill(run: Any) -> None:
    assert run(Guest(None)).hang.kind is HangKind.STANDSTILL


def test_a_slow_guest_is_asked_for_longer_and_the_words_say_so(run: Any) -> None:
    guest = Guest(None)
    guest.slowness = 3.0
    assert run(guest).hang.asked_s == 15.0


def test_a_qemu_that_ends_while_it_gets_a_key_is_no_traceback() -> None:
    async def send() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.close()

        async def expect(awaitable: Awaitable[object], _limit: float, what: str) -> object:
            try:
                return await awaitable
            except OSError as error:  # as Qemu.expect() does
                raise KernelDied(what) from error

        async def execute(*_: object) -> None:
            pass

        with ours:
            await hung._sysrq_by_break(
                cast(Any, SimpleNamespace(end=lambda _: ours, expect=expect, execute=execute)), b"w"
            )

    with pytest.raises(KernelDied, match="a key of sysrq"):
        asyncio.run(send())


def test_registers_that_cannot_be_read_do_not_hide_the_hang(run: Any) -> None:
    report = run(Guest(None, "nonsense"))
    assert (report.hang.kind, report.hang.cpus) == (HangKind.KERNEL, ())
    assert "its registers are not known" in report.told("fork", {})


def test_a_kernel_that_died_meanwhile_did_not_hang(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def died(*_: object, **__: object) -> Frame:
        raise KernelDied("the kernel died: soft lockup")

    monkeypatch.setattr(Guest, "request", died)
    with pytest.raises(KernelDied, match="soft lockup"):
        run(Guest({}))


def test_the_kernels_answer_ends_when_the_log_is_silent() -> None:
    log, asked = KernelLog(), []

    async def expect(awaitable: Awaitable[object], _limit: float, what: str) -> object:
        asked.append(what)
        if len(asked) == 3:
            cast(Any, awaitable).close()
            raise DeadlineError(what)
        task = asyncio.ensure_future(awaitable)
        await asyncio.sleep(0)
        log.write(b"a line\n")
        return await task

    asyncio.run(hung._silence(cast(Any, SimpleNamespace(log=log, expect=expect))))
    assert len(asked) == 3
