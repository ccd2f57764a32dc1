"""What a kind of fault is, as a value: what is done, when, and how the command has to end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from tests.faults.scene import Scene

#: The case that is run unless a kind says otherwise.
CASE = "fork:pmd"


@dataclass(frozen=True)
class Ending:
    """One way in which the command may end.

    :ivar status: its exit status; negative for the signal that ends it.
    :ivar words: regular expressions, each of which its output must match.
    :ivar outcome: of the case in the file of ``--json``; "" if there need not be one.
    :ivar end: the kind of the case's end there: died, hang, program, boot; "" for none.
    :ivar signal: the one that ended the guest program, or "".
    """

    status: int
    words: tuple[str, ...] = ()
    outcome: str = ""
    end: str = ""
    signal: str = ""

    def __str__(self) -> str:
        return f"{self.status}" + "".join(f", {words}" for words in (self.outcome, self.end) if words)


@dataclass(frozen=True)
class Moment:
    """When the fault happens: after a line of the command's log, and then a random part of a measured time.

    :ivar after: a regular expression that the line matches; "" for the start of the command.
    :ivar most: the line is the n-th of its kind, with a random n from 1 to this.
    :ivar within: the name of a measured time (:class:`tests.faults.measure.Measured`) of which a random part passes
        before the fault happens; "" for none: it happens at the line.
    :ivar share: the part of that time from which the moment is drawn, so that it comes before the end.
    """

    after: str = ""
    most: int = 1
    within: str = ""
    share: float = 1.0


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    :ivar name: its name: letters, digits and dashes.
    :ivar group: the heading under which it stands in the table.
    :ivar done: what is done, as a clause of the table.
    :ivar endings: the ways in which the command may end; any of them is right.
    :ivar argv: the arguments of ``hugepfn``. ``--json`` is added to ``run``.
    :ivar before: commands that have to succeed before it, in the same world.
    :ivar prepare: changes the world before the command starts.
    :ivar moment: when ``act`` happens; None if the fault is there from the start.
    :ivar act: injects the fault.
    :ivar patience_s: what hugepfn itself may wait before it notices (docs/waits.md).
    :ivar factor: how often the time of an undisturbed run may pass, beside that.
    :ivar runs: how many there are of it in a whole campaign.
    :ivar afterwards: commands that have to succeed after it, in the same world.
    :ivar repairs: the files of the cache that ``prepare`` damages, as a glob pattern, and hugepfn has to replace.
    :ivar may_leave: names of files that are no leftovers of it.
    :ivar terminal: the command gets a terminal.
    :ivar sampled: it may be in the sample of the test-suite, which has no time for some.
    :ivar logs: the command is started with -vv; necessary for a moment after a line.
    """

    name: str
    group: str
    done: str
    endings: tuple[Ending, ...]
    argv: tuple[str, ...] = ("run", CASE)
    prepare: Callable[[Scene], None] = field(default=lambda _scene: None, repr=False)
    moment: Moment | None = None
    act: Callable[[Scene], None] = field(default=lambda _scene: None, repr=False)
    patience_s: float = 0.0
    factor: float = 10.0
    runs: int = 3
    before: tuple[tuple[str, ...], ...] = ()
    afterwards: tuple[tuple[str, ...], ...] = ()
    repairs: str = ""
    may_leave: tuple[str, ...] = ()
    terminal: bool = False
    sampled: bool = True
    logs: bool = True

    @property
    def quick(self) -> bool:
        """Whether it is fit for a sample: it waits for none of hugepfn's own deadlines."""
        return self.sampled and self.patience_s == 0


@dataclass(frozen=True)
class Fault:
    """One fault of a campaign. All that is random about it comes from its seed."""

    kind: Kind
    seed: str

    def random(self) -> Random:
        """A fresh source of this fault's random numbers."""
        return Random(self.seed)
