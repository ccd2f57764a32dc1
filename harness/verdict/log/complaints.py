"""One complaint of a kernel: a block of its log, and what can be read from it.

Its first line says what it is, later lines have registers and a stack. :mod:`harness.verdict.log.scanner` finds them.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from typing import Any

from harness.verdict.log import titles
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.first_lines import classify
from harness.verdict.log.lines import message
from harness.verdict.log.running_task import RunningTask, running_task
from harness.verdict.log.titles import Damage, Reading

SCHEMA, VERSION = "hugepfn-dmesg", 1
"""Of docs/schemas/hugepfn-dmesg.schema.json."""

_RIP = re.compile(r"RIP: 0010:([\w.]+)\+0x")
_FRAME = re.compile(r"(\? )?([A-Za-z_][\w.]*)\+0x[0-9a-f]+/0x[0-9a-f]+")
_FRAMES = 8
"""So many functions tell one bug from another, some of them guesses."""

_INT3 = re.compile(r"(?:Oops: )?int3: ")
_CODE = re.compile(r"Code: .*\b(?P<before>[0-9a-f]{2}) <[0-9a-f]{2}>")  # after a breakpoint, RIP points behind it


@dataclass(frozen=True)
class Complaint:
    """One thing the kernel complained about."""

    kind: ComplaintKind
    line: str
    """The message that gave it away, without printk's prefix."""
    excerpt: str
    """The whole block as the log has it, timestamps included, lines parted by newlines.

    Where the log tells who printed a line (CONFIG_PRINTK_CALLER), lines of others are left out.
    """
    after: str
    """Name of the last checkpoint written to the log before it; "" if there was none."""
    number: int
    """Where `line` stands in the log, counted from 1."""
    begin: int = 0
    """Where the block's first line stands: before `line` where "cut here" opens it."""
    end: int = 0
    """Where its last line stands."""
    mixed: bool = False
    """Another complaint began before this one had ended, and the log does not tell their lines apart."""

    @functools.cached_property
    def messages(self) -> tuple[str, ...]:
        """The block's lines without printk's prefix."""
        return tuple(message(line) for line in self.excerpt.split("\n"))

    @functools.cached_property
    def _reading(self) -> Reading:
        rule = classify(self.line)
        if rule is None:
            return Reading(titles.canonical(self.line), "", None)
        first = self.messages.index(self.line) if self.line in self.messages else 0
        return titles.read(rule, (self.line, *self.messages[first + 1 :]))

    @property
    def title(self) -> str:
        """What it is about, without anything that differs from one occurrence to the next: "WARNING in FUNC"."""
        return self._reading.title

    @property
    def frame(self) -> str:
        """The function that is to blame: the innermost one that is no helper. "" if there is none."""
        return self._reading.frame

    @property
    def damage(self) -> Damage | None:
        """Why its text is not to be trusted; None for a whole complaint."""
        return self._reading.damage or (Damage.MIXED if self.mixed else None)

    @property
    def corrupted(self) -> bool:
        """True if it was cut off, or interleaved with something else."""
        return self.damage is not None

    @functools.cached_property
    def task(self) -> RunningTask:
        """The process, the CPU and the taint that it tells of."""
        return running_task(self.messages)

    @property
    def trace(self) -> tuple[str, ...]:
        """The functions of the trace, innermost first: that of RIP, then the call trace.

        Guesses ("? ...") are left out unless there is nothing else (CONFIG_UNWINDER_GUESS).
        """
        own = [text.strip() for text in self.messages]
        rip = [match[1] for line in own if (match := _RIP.match(line))][:1]
        called = [(match[1], match[2]) for line in own if (match := _FRAME.match(line))]
        certain = [name for guess, name in called if not guess]
        return tuple(dict.fromkeys([*rip, *(certain or [name for _, name in called])]))

    @property
    def innermost(self) -> tuple[str, ...]:
        """The functions of the trace that tell one bug from another."""
        return self.trace[:_FRAMES]

    @property
    def where(self) -> str:
        """The innermost functions, in words: "in f(), from g(), h()"; "" if the log has no trace."""
        names = [f"{name}()" for name in self.innermost]
        return f"in {names[0]}" + (f", from {', '.join(names[1:])}" if names[1:] else "") if names else ""

    @property
    def stale_breakpoint(self) -> bool:
        """True for a breakpoint exception without a breakpoint in memory: the CPU ran a replaced instruction.

        Code patching ends with an IPI to every CPU (arch/x86/kernel/alternative.c, text_poke_sync()), after which a
        processor sees what is in memory. QEMU's TCG before 8.1 sometimes does not, with several vCPUs.
        """
        if not _INT3.match(self.line):
            return False
        code = next((match for text in self.messages if (match := _CODE.match(text))), None)
        return code is not None and code["before"] != "cc"

    @property
    def fatal(self) -> bool:
        """True if nothing more can be expected from the guest (:attr:`ComplaintKind.fatal`)."""
        return self.kind.fatal

    def to_json(self) -> dict[str, Any]:
        """This complaint as an object of schema hugepfn-dmesg."""
        task = self.task
        return {
            "kind": self.kind.value,
            "title": self.title,
            "function": self.frame,
            "process": task.comm,
            "pid": task.pid,
            "cpu": task.cpu,
            "taint": None if task.taint is None else int(task.taint),
            "first_line": self.begin,
            "line": self.number,
            "last_line": self.end,
            "corrupted": self.corrupted,
            "damage": self.damage.value if self.damage else "",
            "text": self.excerpt,
        }
