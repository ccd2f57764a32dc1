"""The stacks in the text of a complaint, and the function on them that is to blame."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from harness.verdict.log.complaint_kinds import Choice, FrameSource, Rule
from harness.verdict.log.passed_over import BARRIERS, DISPATCHERS, PASSED_OVER, WAITS
from harness.verdict.log.rust_names import demangled

_PC = r"(?:\[(?:<[^>]{1,20}>|[0-9a-f]{16})\] *){0,2}"
#: One line of a stack. What follows the function's name ("foo.isra.0", "foo.cold") is the compiler's.
_FRAME = re.compile(rf"(?:kmemleak: )? *{_PC}(?P<guess>\? )?(?P<name>\w+)(?:\.[\w.$]+)?\+0x[0-9a-f]+(?:/0x[0-9a-f]+)?")
_UNRELIABLE = "(unreliable)"
_RIP = re.compile(rf"(?:RIP|EIP|IP): *(?:[0-9a-f]{{4}}:)?{_PC}(?:(?P<name>[A-Za-z_]\w*)(?:\.[\w.$]+)?\+0x|\S)")
_HEADING = re.compile(
    r"(?:kmemleak: )? *(?:(?P<call>Call [Tt]race|Backtrace)|(?:Allocated|Freed)(?: by task \d+.*)?:"
    r"|(?P<back>backtrace)(?: \(crc \w*\))?:|stack backtrace:|Uninit was (?:stored|created)|Local variable"
    r"|page last (?P<page>allocated|free)|Last potentially related work|Second to last potentially|Object was "
    r"|\w.{0,80} created by)"
)
_AT = re.compile(rf".* at: {_PC}(?P<name>\w+)(?:\.[\w.$]+)?\+0x|\[<[0-9a-f]{{8,16}}>\] (?P<old>\w+)\+0x")


@dataclass(frozen=True)
class StackFrame:
    """A function on a stack."""

    line: int
    """Of the block, counted from 0."""
    name: str
    guess: bool = False
    """Found on the stack, but not by the unwinder ("? ")."""


@dataclass
class Stack:
    """One stack of a block."""

    line: int
    """Of its heading."""
    heading: str
    """"call", "page" (where it was allocated), "backtrace" (where a leak was), "other"; "" if there is none."""
    frames: list[StackFrame] = field(default_factory=list)


@dataclass(frozen=True)
class Stacks:
    """All stacks of a block."""

    rips: tuple[StackFrame, ...]
    """The registers' dumps with a kernel address; the name is "" where it has no symbol."""
    all: tuple[Stack, ...]
    """The first one has no heading."""
    held: tuple[StackFrame, ...]
    """Where locks were taken, as lockdep says it (" at: FUNC")."""

    @property
    def bare(self) -> Stack:
        """The frames before any heading."""
        return self.all[0]

    def after(self, line: int, heading: str) -> Stack | None:
        """The first stack with this heading that begins after a line."""
        return next((one for one in self.all if one.heading == heading and one.line >= line), None)


def stacks(messages: Sequence[str]) -> Stacks:
    """Read the stacks of a block.

    :param messages: its lines from the first line proper on, without printk's prefix.
    """
    found = [Stack(0, "")]
    rips: list[StackFrame] = []
    held: list[StackFrame] = []
    for number, text in enumerate(messages):
        if match := _FRAME.match(text):
            guess = match["guess"] is not None or text.endswith(_UNRELIABLE)
            found[-1].frames.append(StackFrame(number, demangled(match["name"]), guess))
        elif match := _HEADING.match(text):
            heading = "call" if match["call"] else "page" if match["page"] == "allocated" else ""
            heading = heading or ("backtrace" if match["back"] else "other")
            found.append(Stack(number, heading))
        elif match := _RIP.match(text):
            if not text.startswith("RIP: 0033:"):
                rips.append(StackFrame(number, match["name"] or ""))
            continue
        if match := _AT.match(text):
            held.append(StackFrame(number, demangled(match["name"] or match["old"])))
    return Stacks(tuple(rips), tuple(found), tuple(held))


_INTERRUPT = re.compile("apic_timer_interrupt")
#: One system call has many entries: __x64_sys_mremap() calls __se_sys_mremap(), which calls __do_sys_mremap().
_ENTRY = re.compile(
    r"__(?:se|do)_sys_|_{2,4}sys_|ksys_|sys_|SyS_|SYSC_|compat_Sy?S[C]?_|__(?:x64|ia32|arm64|se)_(?=\w)"
)


def guilty(rule: Rule, named: str, stacks: Stacks) -> str:
    """The function that is to blame; "" if the text does not tell.

    :param named: the function in the first line, "" if there is none.
    """
    names = [name for source in rule.sources for name in _candidates(source, rule, named, stacks)]
    if rule.choice is Choice.FIRST:
        return names[0] if names else ""
    over = rule.over
    left = [
        _without_entry(name)
        for name in names
        if name and not PASSED_OVER.search(name) and not (over is not None and over.search(name))
    ]
    return _CHOICES[rule.choice](left)


def _candidates(source: FrameSource, rule: Rule, named: str, stacks: Stacks) -> Iterable[str]:
    match source:
        case FrameSource.NAMED:
            return [named]
        case FrameSource.RIP:
            return [one.name for one in stacks.rips[:1]]
        case FrameSource.CALL:
            return _called(stacks, behind_rip=FrameSource.RIP in rule.sources)
        case FrameSource.BARE:
            return _names(stacks.bare.frames)
        case FrameSource.HELD:
            return _names(stacks.held[:2])
        case FrameSource.ALLOCATED:
            page = stacks.after(0, "page") or stacks.after(0, "backtrace")
            return _names(page.frames) if page else ()
        case FrameSource.INTERRUPTED:
            return _interrupted(stacks)
    return ()


def _called(stacks: Stacks, *, behind_rip: bool) -> Iterator[str]:
    """The first call trace, or the one behind the registers: their dump may stand in the middle of a trace."""
    rip = stacks.rips[0].line if behind_rip and stacks.rips else 0
    trace = stacks.after(rip, "call")
    if trace is None:
        frames = [frame for stack in stacks.all[1:] for frame in stack.frames if frame.line > rip]
        trace = stacks.after(0, "call")
        return _names(frames or (trace.frames if trace else ()))
    return _names(trace.frames)


def _interrupted(stacks: Stacks) -> list[str]:
    """The function that the timer's interrupt stopped, by its registers and its stack."""
    for stack in stacks.all:
        for index, frame in enumerate(stack.frames):
            if not frame.guess and _INTERRUPT.search(frame.name):
                rip = next((one.name for one in stacks.rips if one.line > frame.line), "")
                return [rip, *_names(stack.frames[index + 1 :])]
    return []


def _names(frames: Sequence[StackFrame]) -> Iterator[str]:
    return (frame.name for frame in frames if not frame.guess)


def _without_entry(name: str) -> str:
    match = _ENTRY.match(name)
    return name[match.end() :] if match else name


def _innermost(names: Sequence[str]) -> str:
    return names[0] if names else ""


def _loop(names: Sequence[str]) -> str:
    before = names[0] if names else ""
    for name in names:
        if DISPATCHERS.search(name):
            return "smp_call_function" if "smp_call_function" in name else before
        before = name
    return ""


def _wait(names: Sequence[str]) -> str:
    for name in names:
        for barrier, shown in BARRIERS:
            if barrier.search(name):
                return shown or name
    return next((name for name in names if not WAITS.search(name)), "")


_CHOICES: dict[Choice, Callable[[Sequence[str]], str]] = {
    Choice.INNERMOST: _innermost,
    Choice.LOOP: _loop,
    Choice.WAIT: _wait,
}
