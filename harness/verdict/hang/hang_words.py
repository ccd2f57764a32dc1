"""The words for a hang. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from harness.verdict.hang.hang import Hang, HangKind, HungCpu, HungTask

_STATES = {"S": "sleeps", "D": "sleeps and cannot be interrupted", "Z": "has ended", "T": "is stopped"}
_FRAMES_MAX = 4


def told(hang: Hang, program: str, processes: Sequence[str]) -> str:
    """Return what hangs and where, in one line."""
    last = f"last at checkpoint {hang.checkpoint!r}" if hang.checkpoint else "it reached no checkpoint"
    waited = f"nothing within {hang.waited_s:g} s; {program}: {last}, processes {sorted(processes)}"
    return f"{waited}; {_what(hang)}"


def _what(hang: Hang) -> str:
    match hang.kind:
        case HangKind.PROGRAM:
            where = "; ".join(map(_task, hang.tasks)) or "its processes are gone"
            return f"the program hangs, and the kernel goes on: {where}"
        case HangKind.KERNEL:
            where = "; ".join(map(_cpu, hang.cpus)) or "its registers are not known"
            return f"the kernel hangs: its agent did not answer within {hang.asked_s:g} s; {where}{_places(hang)}"
        case HangKind.STANDSTILL:
            where = "; ".join(map(_cpu, hang.cpus))
            return f"the machine stands still: all vCPUs are halted and take no interrupts; {where}"


def _places(hang: Hang) -> str:
    return f"; the kernel says that it is in {', '.join(hang.places[:_FRAMES_MAX])}" if hang.places else ""


def _task(task: HungTask) -> str:
    who = f"{task.name} (pid {task.pid})"
    if not task.state:
        return f"{who} has ended"
    spent = f"CPU time {task.user_s:.1f} s in user space, {task.system_s:.1f} s in the kernel"
    if task.state == "R":
        place = "the kernel" if task.stack or task.system_s > task.user_s else "user space"
        return f"{who} runs in {place}{_at(task)} ({spent})"
    return f"{who} {_STATES.get(task.state, f'is in state {task.state}')}{_at(task)} ({spent})"


def _at(task: HungTask) -> str:
    if not task.stack:
        return ""
    call = f" in {task.syscall}()" if task.syscall else ""
    return f"{call} at {' < '.join(task.stack[:_FRAMES_MAX])}"


def _cpu(cpu: HungCpu) -> str:
    if cpu.halted:
        what = "is halted"
    else:
        what = f"runs in {'the kernel' if cpu.in_kernel else 'user space'} (CPU time {cpu.ran_s:.1f} s)"
    return f"vCPU {cpu.cpu} {what} at rip {cpu.rip:#x}, interrupts {'on' if cpu.interrupts else 'off'}"
