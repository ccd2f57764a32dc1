"""A unit of work of a campaign: this kernel, these tests, this machine. Its answer is a value.

:class:`UnitExecutor` is all that a campaign knows of who runs its units.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from harness.campaign.event_stream import RunEvent
from harness.campaign.kernels import RunOptions, troubled
from harness.errors import MachineryError
from harness.selection.selected import Selected
from harness.verdict import Outcome, Run, words
from harness.verdict.json_fields import as_object, strings
from harness.verdict.table import TROUBLE


class Work(enum.Enum):
    """What is to be done."""

    RUN = "run the tests"
    TRY = "build and boot the kernel first, so that one that cannot run is no failure of the tests; then run them"
    BUILD = "only get the kernel onto this host"


@dataclass(frozen=True)
class Unit:
    """A piece of work."""

    spec: str
    """Of the kernel."""
    tests: tuple[Selected, ...]
    """Empty for every scenario."""
    options: RunOptions
    name: str = ""
    """What it is called in the progress: "debian:6.12 (run 1 of 2)"."""
    work: Work = Work.RUN
    known: frozenset[str] = frozenset()
    """For :attr:`Work.TRY`: the keys of kernels that need not be run, because they have been."""
    boots: bool = False
    """For :attr:`Work.TRY`: it is known that the kernel boots, so that this is not tried once more."""


@dataclass(frozen=True)
class UnitAnswer:
    """What became of a unit."""

    key: str = ""
    """The identity of the kernel, by its content; "" if there is none, or if nobody asked."""
    unusable: str = ""
    """Why the kernel cannot be run; "" if it can."""
    run: Run | None = None
    """None if it was not run."""

    def as_run(self, spec: str) -> Run:
        """Return the run; if there is none, one without results that says why, under :data:`TROUBLE`."""
        return self.run if self.run is not None else troubled(spec, self.unusable)

    def checked(self) -> Run:
        """Return a run that says something about the kernel.

        :raises MachineryError: the machinery failed.
        """
        assert self.run is not None, "the kernel was run"
        if trouble := self.run.context.get(TROUBLE):
            raise MachineryError(str(trouble))
        if error := next((one for one in self.run.results if one.outcome is Outcome.ERROR), None):
            raise MachineryError(words.reason(error) or words.errors(error))
        return self.run

    def to_json(self) -> dict[str, Any]:
        """Return it in types that JSON has."""
        run = self.run.to_json() if self.run is not None else None
        return {"key": self.key, "unusable": self.unusable, "run": run}

    @classmethod
    def from_json(cls, value: object) -> Self:
        """Read what :meth:`to_json` wrote.

        :raises UsageError: value has another form.
        """
        data = as_object(value, "the answer of a unit")
        key, unusable = strings(data, "key", "unusable")
        return cls(key, unusable, Run.from_json(data["run"]) if data.get("run") is not None else None)


def unbuilt(unit: Unit, why: str) -> UnitAnswer:
    """Return the answer of a unit whose kernel does not build."""
    if unit.work is Work.TRY:
        return UnitAnswer(unusable=f"it does not build: {why}")
    return UnitAnswer(unusable=why) if unit.work is Work.BUILD else UnitAnswer(run=troubled(unit.spec, why))


@dataclass(frozen=True)
class UnitStarted:
    """A unit begins to run."""

    worker: str = ""
    """The address of the machine; "" for this one."""


UnitEvent = RunEvent | UnitStarted
Show = Callable[[Unit, UnitEvent], None]


#: What a unit answered, with its index. Whatever still runs ends when this is closed.
Answers = Generator[tuple[int, UnitAnswer], None, None]


class UnitExecutor(Protocol):
    """Runs units."""

    def run(self, units: Sequence[Unit]) -> Answers:
        """Run units to their end. Yield each answer as it comes, with the index of its unit.

        Whatever still runs ends when the iterator is closed. A failure of the machinery is a run with a trouble.
        """
        ...


def run_one(executor: UnitExecutor, unit: Unit) -> UnitAnswer:
    """Run a single unit."""
    ((_, answer),) = executor.run([unit])
    return answer
