"""Which process, on which CPU, in which kernel a complaint is about."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from harness.verdict.log.taint import Taint, of_letters

_CPU_LINE = re.compile(
    r"CPU: (?P<cpu>\d{1,5}) (?:UID: \d+ )?PID: (?P<pid>\d{1,10}) Comm: (?P<comm>.{1,40}?) "
    r"(?:Not tainted|Tainted: (?P<taint>[A-Z ]{1,40}?)(?=,| +\S*[^A-Z ]))"
)
_TAINTED = re.compile(
    r" *(?:\S{1,60} )?(?:\S{1,60} )?(?:Not tainted|Tainted: (?P<taint>[A-Z ]{1,40}?)(?=,| +\S*[^A-Z ]))"
)
#: The form of each line that names a process or a CPU, in which a report's own subject stands before the one of "CPU:".
_NAMED = tuple(
    re.compile(form)
    for form in (
        r"WARNING: .{0,400}, CPU#(?P<cpu>\d{1,5}): (?P<comm>.{1,40})/(?P<pid>\d{1,10})\s*$",
        r"WARNING: CPU: (?P<cpu>\d{1,5}) PID: (?P<pid>\d{1,10}) at ",
        r"(?:NMI )?(?:watchdog: )?BUG: soft lockup - CPU#(?P<cpu>\d{1,5}) stuck .{0,20}"
        r"\[(?P<comm>.{1,40}):(?P<pid>\d{1,10})\]",
        r"(?:NMI )?watchdog: .{0,20}hard LOCKUP on cpu (?P<cpu>\d{1,5})",
        r"INFO: task (?P<comm>.{1,40}):(?P<pid>\d{1,10}) (?:blocked|can't die)",
        r"(?:Read|Write) (?:of size|at addr) .{1,60} by task (?P<comm>.{1,40})/(?P<pid>\d{1,10})$",
        r"(?P<comm>.{1,40})/(?P<pid>\d{1,10}) (?:is trying to|just changed|takes|is leaving|is freeing)",
        r"BUG: Bad page .{1,10} in process (?P<comm>.{1,40}?)  ",
        r"BUG: scheduling while atomic: (?P<comm>.{1,40})/(?P<pid>\d{1,10})/0x",
        r"BUG: using \w+\(\) in preemptible \[[0-9a-f]+\] code: (?P<comm>.{1,40})/(?P<pid>\d{1,10})",
        r"in_atomic\(\): .{1,80}, pid: (?P<pid>\d{1,10}), name: (?P<comm>.{1,40})$",
        r"(?:kmemleak: )? +comm \"(?P<comm>.{1,40})\", pid (?P<pid>\d{1,10}), ",
        r"(?P<comm>.{1,40}) invoked oom-killer: ",
        r"EXT[234]-fs error .{1,200}: comm (?P<comm>.{1,40}): ",
    )
)
_LOOK_AT_LINES = 60
"""So many lines are searched: all of these stand at the beginning, before or right after the stack."""


@dataclass(frozen=True)
class RunningTask:
    """What a complaint says about the process that was running."""

    comm: str = ""
    pid: int | None = None
    cpu: int | None = None
    taint: Taint | None = None
    """None if the complaint does not tell, Taint(0) if it says "Not tainted"."""


def running_task(messages: Sequence[str]) -> RunningTask:
    """Find the process, the CPU and the taint in the text of a complaint.

    :param messages: its lines, without printk's prefix.
    """
    comm, pid, cpu = "", None, None
    taint: Taint | None = None
    for text in messages[:_LOOK_AT_LINES]:
        if match := _CPU_LINE.match(text) or next((found for form in _NAMED if (found := form.match(text))), None):
            said = match.groupdict()
            if not comm and pid in (None, _number(said.get("pid"))):
                comm = said.get("comm") or ""
            pid = _number(said.get("pid")) if pid is None else pid
            cpu = _number(said.get("cpu")) if cpu is None else cpu
        if taint is None and "ainted" in text and (found := _CPU_LINE.match(text) or _TAINTED.match(text)):
            taint = of_letters(found["taint"] or "")
    return RunningTask(comm, pid, cpu, taint)


def _number(digits: str | None) -> int | None:
    return int(digits) if digits else None
