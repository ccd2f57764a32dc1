"""What hangs when a guest program passes its deadline, as values. Pure."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass
from typing import Any, Self

from harness.verdict.json_fields import JsonObject, as_object, member, objects, strings, value_of

#: The lines of the kernel log that a hang has.
LOG_LINES = 50
#: The lines that it has of the kernel's answer.
DUMP_LINES = 300
_PLACE = re.compile(r"\bRIP: 0010:([\w.]+)\+0x")


class HangKind(enum.Enum):
    """What hangs."""

    PROGRAM = "program"
    """The guest program: the kernel runs other programs, and answers through one of them (the agent, PID 1)."""
    KERNEL = "kernel"
    """The kernel: a vCPU executes instructions, or waits for interrupts and takes them, and the agent does not run."""
    STANDSTILL = "standstill"
    """All vCPUs are halted and take no interrupts."""


@dataclass(frozen=True, slots=True)
class HungTask:
    """A process of the guest program, as /proc shows it (proc(5))."""

    name: str
    pid: int
    state: str
    """The letter of /proc/PID/stat: R runs, S sleeps, D cannot be interrupted; "" if it was not known."""
    user_s: float
    """CPU time that it has spent in user space, in seconds of the guest."""
    system_s: float
    """CPU time that it has spent in the kernel."""
    stack: tuple[str, ...]
    """The functions of the kernel in which it is, innermost first; empty in user space, or if they are not known."""

    @property
    def syscall(self) -> str:
        """The name of the system call in which it is; "" if its stack does not tell."""
        for function in reversed(self.stack):
            for prefix in ("__x64_sys_", "__se_sys_", "__do_sys_", "__ia32_sys_", "ksys_"):
                if function.startswith(prefix):
                    return function.removeprefix(prefix)
        return ""

    def to_json(self) -> dict[str, Any]:
        """Return this task as an object of schema hugepfn-run."""
        return {
            "name": self.name,
            "pid": self.pid,
            "state": self.state,
            "user_s": self.user_s,
            "system_s": self.system_s,
            "stack": list(self.stack),
        }

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: data has another form.
        """
        name, state = strings(data, "name", "state")
        user_s, system_s = value_of(data, "user_s", float), value_of(data, "system_s", float)
        stack = tuple(str(one) for one in value_of(data, "stack", list))
        return cls(name, value_of(data, "pid", int), state, user_s, system_s, stack)


@dataclass(frozen=True, slots=True)
class HungCpu:
    """A vCPU when the agent did not answer."""

    cpu: int
    rip: int
    in_kernel: bool
    """CPL is 0."""
    interrupts: bool
    """RFLAGS.IF: it takes interrupts."""
    halted: bool
    """It executed HLT, and waits for an interrupt."""
    ran_s: float
    """CPU time of its thread on this host while the agent was waited for."""

    def to_json(self) -> dict[str, Any]:
        """Return this vCPU as an object of schema hugepfn-run."""
        return {
            "cpu": self.cpu,
            "rip": f"{self.rip:#x}",
            "in_kernel": self.in_kernel,
            "interrupts": self.interrupts,
            "halted": self.halted,
            "ran_s": self.ran_s,
        }

    @classmethod
    def from_json(cls, data: JsonObject) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: data has another form.
        """
        return cls(
            cpu=value_of(data, "cpu", int),
            rip=int(value_of(data, "rip", str), 16),
            in_kernel=value_of(data, "in_kernel", bool),
            interrupts=value_of(data, "interrupts", bool),
            halted=value_of(data, "halted", bool),
            ran_s=value_of(data, "ran_s", float),
        )


@dataclass(frozen=True, slots=True)
class Hang:
    """What hangs, and where."""

    kind: HangKind
    checkpoint: str
    """The last one that the program reached; "" if none."""
    waited_s: float
    """The deadline that had passed."""
    asked_s: float
    """For how long the agent was then asked."""
    tasks: tuple[HungTask, ...] = ()
    """For PROGRAM: its processes."""
    cpus: tuple[HungCpu, ...] = ()
    """For the other kinds: every vCPU."""
    log: tuple[str, ...] = ()
    """The last lines of the kernel log."""
    dump: tuple[str, ...] = ()
    """What the kernel then logged about its tasks and CPUs, as it was asked to (sysrq w and l)."""

    @property
    def places(self) -> tuple[str, ...]:
        """The functions in which the kernel's CPUs were, as it logged them."""
        return tuple(dict.fromkeys(found[1] for line in self.dump if (found := _PLACE.search(line))))

    def to_json(self) -> dict[str, Any]:
        """Return this hang as an object of schema hugepfn-run."""
        return {
            "kind": self.kind.value,
            "checkpoint": self.checkpoint,
            "waited_s": self.waited_s,
            "asked_s": self.asked_s,
            "tasks": [one.to_json() for one in self.tasks],
            "cpus": [one.to_json() for one in self.cpus],
            "log": list(self.log),
            "dump": list(self.dump),
        }

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "a hang")
        return cls(
            kind=member(data, "kind", HangKind),
            checkpoint=value_of(data, "checkpoint", str),
            waited_s=value_of(data, "waited_s", float),
            asked_s=value_of(data, "asked_s", float),
            tasks=tuple(map(HungTask.from_json, objects(data, "tasks"))),
            cpus=tuple(map(HungCpu.from_json, objects(data, "cpus"))),
            log=tuple(str(line) for line in value_of(data, "log", list)),
            dump=tuple(str(line) for line in value_of(data, "dump", list)),
        )
