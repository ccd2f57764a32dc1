"""What ``hugepfn bisect`` and ``hugepfn bisect log`` do."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from harness.bisection.belief import CONFIDENCE
from harness.campaign.bisection.bisect import Bisection, Looked
from harness.campaign.bisection.journal import Noted
from harness.campaign.bisection.report import git_log, report_lines
from harness.campaign.bisection.steps import Course, of_debian, of_series, of_tree
from harness.campaign.matrix import print_lines
from harness.campaign.progress import Live
from harness.campaign.series import steps_of_mbox
from harness.campaign.units.executing import executing
from harness.campaign.units.journal import Journal, named_by, read
from harness.campaign.units.unit import Answers, Unit, UnitExecutor
from harness.campaign.wanted import choose
from harness.errors import ExitCode, UsageError
from harness.events import Say
from harness.host import cache
from harness.selection.selected import Selected

_FOLDER = "bisections"  # of the cache


@dataclass(frozen=True)
class Asked:
    """What is bisected, in the words of the command line."""

    tree: str = "."
    good: str = ""
    bad: str = ""
    paths: tuple[str, ...] = ()
    debian: bool = False
    """``good`` and ``bad`` are versions of Debian's kernels."""
    mbox: str = ""
    fixed: bool = False

    def course(self, folder: Path, say: Say | None) -> Course:
        """Look up what lies between the ends.

        :param folder: for the patches of an mbox.
        :raises UsageError: there is no such tree, revision, version or file.
        """
        if self.debian:
            return of_debian(self.good, self.bad, self.fixed, say)
        if self.mbox:
            return of_series(steps_of_mbox(self.tree, Path(self.mbox), folder), self.fixed)
        return of_tree(self.tree.removeprefix("tree:"), self.good, self.bad, self.paths, self.fixed)


def run_bisect(asked: Asked, looked: Looked, resume: bool, executor: UnitExecutor | None = None) -> ExitCode:
    """Bisect, and print the answer.

    :param executor: who runs the units; None for the one that the options name.
    :returns: OK if one culprit is found; MACHINERY if several are left.
    :raises UsageError: what was asked for does not exist, or an end is not what it was said to be.
    :raises MachineryError: there is no verdict; what was run so far is in the journal.
    """
    choose([looked.test])
    with Live() as live, tempfile.TemporaryDirectory(prefix="hugepfn-bisect-") as folder:
        course = asked.course(Path(folder), live.say)
        question = _question(asked, looked, course)
        journal = Journal(named_by(question, _FOLDER), question, Noted.from_json)
        noted = journal.resume() if resume else []
        if not resume:
            journal.start()
        live.line(f"{len(course.steps)} candidates; journal: {journal.file}")
        with (
            executing(live, looked.options.scheduler, looked.at_once) if executor is None else nullcontext(executor)
        ) as runner:
            bisection = Bisection(course, looked, runner, journal, live.line)
            bisection.run(noted)
    print_lines(Console(highlight=False), report_lines(bisection))
    found = bisection.search.culprit
    one = len(found.candidates) == 1 and found.probability >= CONFIDENCE
    return ExitCode.OK if one else ExitCode.MACHINERY


def print_log() -> None:
    """Print the newest journal as ``git bisect replay`` takes it.

    :raises UsageError: there is none, or it is not about a git tree.
    """
    files = sorted(_folder().glob("*.jsonl"), key=lambda file: file.stat().st_mtime_ns)
    if not files:
        raise UsageError(f"there is no journal in {_folder()}; run hugepfn bisect first")
    question, noted = read(files[-1], Noted.from_json)
    asked = Asked(**{**question["asked"], "paths": tuple(question["asked"]["paths"])})
    if asked.debian or asked.mbox:
        raise UsageError("the last bisection was not of a git tree, so there is nothing for git bisect replay")
    course = asked.course(Path(), None)
    if _contents(asked, course) != question.get("steps"):
        raise UsageError(f"{asked.good} or {asked.bad} is another commit now, so the journal does not fit the tree")
    looked = Looked(Selected.parse(question["test"]), question["any"], question["repeats"])
    bisection = Bisection(course, looked, _Nobody(), Journal(files[-1], question, Noted.from_json), lambda _line: None)
    bisection.replay(noted)
    print("\n".join(git_log(course, bisection.search, asked.paths)))


class _Nobody:
    """Runs nothing: a journal is only read."""

    def run(self, units: Sequence[Unit]) -> Answers:
        raise AssertionError(units)


def _question(asked: Asked, looked: Looked, course: Course) -> dict[str, Any]:
    """What a journal is about. A branch moves, a file is edited, and the mirror has other versions tomorrow."""
    words = {**vars(asked), "paths": list(asked.paths)}
    if not asked.debian:
        tree = asked.tree.removeprefix("tree:")
        words["tree"] = tree if tree.startswith("debsrc:") else str(Path(tree).expanduser().resolve())
    found = {"asked": words, "test": str(looked.test), "any": looked.any_failure, "repeats": looked.repeats}
    return {**found, "machine": list(looked.options.words(None)), "steps": _contents(asked, course)}


def _contents(asked: Asked, course: Course) -> str:
    """The identity of all candidates."""
    patches = Path(asked.mbox).read_bytes() if asked.mbox else b""
    steps = [course.good.name, course.bad.name, *(one.name for one in course.steps)]
    return hashlib.sha256("\n".join(steps).encode() + patches).hexdigest()


def _folder() -> Path:
    return cache.root() / _FOLDER
