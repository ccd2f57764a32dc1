"""``hugepfn series``: runs a series of patches one by one, and makes a table of patches × scenarios."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.campaign import mail
from harness.campaign.compare import case_lines, unmet_json
from harness.campaign.kernels import RunOptions
from harness.campaign.matrix import (
    STYLE,
    as_json,
    lost_lines,
    prepare,
    print_lines,
    report_lines,
    summary,
    width_of,
    write_files,
)
from harness.campaign.progress import Live
from harness.campaign.report import PageChange, PageColumn, PageRequest, series_page
from harness.campaign.units.executing import executing
from harness.campaign.units.journal import noting
from harness.campaign.units.unit import Unit
from harness.errors import ExitCode, UsageError
from harness.kernel.build import BuiltSource
from harness.kernel.build.builder import source_tree
from harness.kernel.build.patches import split
from harness.kernel.build.slot import git, git_environment
from harness.machine import preparation
from harness.printable import printable
from harness.qemu.accel import tell_why_tcg
from harness.selection.selected import Selected
from harness.verdict import Outcome, Run, words
from harness.verdict.expected.judge import Unmet, held_along
from harness.verdict.expected.split import split_differences
from harness.verdict.series import Change, changes, difference_of, steady
from harness.verdict.table import Case, Column, Mark, Table


@dataclass(frozen=True)
class PatchStep:
    """One kernel of a series: the base, or the base with some patches."""

    name: str  # "base", "2/3"
    subject: str  # subject of the patch that it adds
    spec: str  # spec of the kernel


def run_series(
    tree: str,
    what: str | Path,
    tests: Sequence[Selected],
    options: RunOptions,
    json_file: Path | None,
    page: PageRequest,
    resume: bool = False,
) -> ExitCode:
    """Build and run every step, and print what changes at which patch.

    :param tree: a git tree or a source folder, or ``debsrc:VERSION``.
    :param what: ``"BASE..TIP"`` of the git tree, or the path of an mbox of patches.
    :param resume: go on with this series, which was interrupted.
    :returns: CLAIM_FAILED if something changes that was not expected, or does not change as expected; else MACHINERY
        if a step has not said everything that it could.
    :raises UsageError: no such tree, range, mbox or scenario.
    """
    expected, said = prepare(tests, options, json_file, page.file)
    with tempfile.TemporaryDirectory(prefix="hugepfn-series-") as folder:
        steps = steps_of_range(tree, what) if isinstance(what, str) else steps_of_mbox(tree, what, Path(folder))
        with Live() as live:
            if not options.scheduler:
                tell_why_tcg(preparation.preflight(options.machine(steps[0].spec), live.say), live.say)
            units = [Unit(one.spec, tuple(tests), options, f"{one.name} {one.subject}".strip()) for one in steps]
            runs: dict[int, Run] = {}
            with executing(live, options.scheduler) as executor:
                noted = noting(executor, _question(tree, what, steps), tests, options, resume, live.line)
                for number, answer in noted.run(units):
                    runs[number] = answer.as_run(units[number].spec)
                    live.line(summary(runs[number], units[number].name))
    columns, unmet = held_along([Column(step.name, (runs[at],)) for at, step in enumerate(steps)], said)
    table = Table.of(columns, expected)
    found = changes(table)
    if page.mail:
        lines = _report_lines(steps, table, found, unmet, mail.COLUMNS, mail.MOST)
        print(mail.mail((line.plain for line in lines), columns[-1].runs[0], page.command))
    else:
        console = Console(highlight=False)
        print_lines(console, _report_lines(steps, table, found, unmet, width_of(console)))
    data = {"steps": [vars(step) for step in steps], "date": datetime.now(UTC).isoformat(timespec="seconds")}
    whole = {**table.to_json(), **data, "changes": [_change_json(steps, one) for one in found]}
    whole["unmet"] = [{**unmet_json(one), "step": steps[one.column].name} for one in unmet]
    lost = write_files(
        live.line,
        (json_file, as_json(whole)),
        (page.file, lambda: page_of(page, tree, what, steps, table, options, unmet)),
    )
    unknown = [column for column in columns if column.trouble or _has_errors(column)]
    changed = unmet or any(not one.expected for one in found)
    return (ExitCode.CLAIM_FAILED if changed else ExitCode.OK).without(lost or unknown)


def _question(tree: str, what: str | Path, steps: Sequence[PatchStep]) -> dict[str, Any]:
    """What a series is about: its commits, or its patches and the tree that they are for."""
    if isinstance(what, str):
        return {"command": "series", "steps": [step.spec for step in steps]}
    base = source_tree(BuiltSource.parse(tree).recipe)
    return {"command": "series", "base": base, "patches": hashlib.sha256(what.read_bytes()).hexdigest()}


def page_of(
    request: PageRequest,
    tree: str,
    what: str | Path,
    steps: Sequence[PatchStep],
    table: Table,
    options: RunOptions,
    unmet: Sequence[Unmet] = (),
) -> str:
    """The page of ``--html``. Each step has the command that runs it again."""
    columns = []
    for step, column in zip(steps, table.columns, strict=True):
        if isinstance(what, Path) and step is not steps[0]:  # its kernel is made of temporary files
            again = ("series", tree, *(request.patches or ("--mbox", os.fspath(what))))
            columns.append(PageColumn(column, step.name, options.words(None), again, subject=step.subject))
        else:
            columns.append(PageColumn(column, step.name, options.words(step.spec), subject=step.subject))
    found = changes(table)
    told = [
        PageChange(one.case, one.step, _change_line(steps, one, table.labels).plain, one.after.note) for one in found
    ]
    printed = (line.plain for line in _report_lines(steps, table, found, unmet, mail.COLUMNS, mail.MOST))
    lists = [("Expected, but not so", [line.plain for line in _unmet_lines(steps, table, unmet)])]
    return series_page(request, columns, table, told, printed, lists)


def _has_errors(column: Column) -> bool:
    return any(result.outcome is Outcome.ERROR for run in column.runs for result in run.results)


def steps_of_range(tree: str, revisions: str) -> list[PatchStep]:
    """The commits of ``BASE..TIP``, oldest first, after the base itself.

    :raises UsageError: tree is not a git tree, or has no such revisions.
    """
    path = Path(tree.removeprefix("tree:"))
    base, dots, tip = revisions.partition("..")
    if not base or not dots or tip.startswith("."):
        raise UsageError(f"{revisions!r}: a range of commits is written BASE..TIP")
    start = _git(path, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{base}^{{commit}}").strip()
    said = _git(path, "log", "--reverse", "--topo-order", "--format=%H %s", f"{start}..{tip or 'HEAD'}", "--")
    commits = [line.partition(" ") for line in said.splitlines()]
    if not commits:
        raise UsageError(f"{revisions}: there is no commit in this range")
    steps = [PatchStep("base", base, f"tree:{path}@{start}")]
    for number, (commit, _, subject) in enumerate(commits, start=1):
        steps.append(PatchStep(f"{number}/{len(commits)}", subject, f"tree:{path}@{commit}"))
    return steps


def steps_of_mbox(tree: str, mbox: Path, folder: Path) -> list[PatchStep]:
    """The patches of an mbox in its order, after the tree itself. A cover letter is not a step.

    :param folder: where to write the patches, one file each.
    :raises UsageError: there is no such file, or it has no patch.
    """
    if not mbox.is_file():
        raise UsageError(f"{mbox}: no such file")
    base = BuiltSource.parse(tree).spec
    steps = [PatchStep("base", tree, base)]
    found = split(mbox.name, mbox.read_bytes())
    for number, patch in enumerate(found, start=1):
        file = folder / f"{number:04}.patch"
        file.write_bytes(patch.diff)
        subject = re.sub(r"^\[[^]]*\]\s*", "", patch.subject) or patch.name
        steps.append(PatchStep(f"{number}/{len(found)}", subject, f"{steps[-1].spec}+{file}"))
    return steps


def git_lines(folder: str | Path, *words: str) -> list[str]:
    """Return what git prints about a repository, which is only read.

    :raises UsageError: git refuses.
    """
    return _git(Path(folder).expanduser(), *words).splitlines()


def _git(folder: Path, *words: str) -> str:
    done = git("-C", folder, *words, env=git_environment({}), check=False)
    if done.status:
        said = done.words if done.stderr.strip() else "there is no such revision"
        raise UsageError(f"{folder}: git {words[0]} {words[-1]}: {said}")
    return printable(done.stdout)


def _report_lines(
    steps: Sequence[PatchStep],
    table: Table,
    found: Sequence[Change],
    unmet: Sequence[Unmet],
    width: int | None,
    most: int | None = None,
) -> Iterator[Text]:
    for step in steps:
        yield Text(f"{step.name:>6}  {step.subject}")
    yield Text()
    changing = table.only([change.case for change in found])
    if changing.cases and most is None:  # a mail has the lines below
        yield from report_lines(changing, {}, 1, width)
    yield from change_lines(steps, table, found, most)
    yield from _unmet_lines(steps, table, unmet)
    for step, column in zip(steps, table.columns, strict=True):
        if column.trouble:
            yield Text(f"{step.name} {step.subject}: {column.trouble}", style="bold red")
    yield from lost_lines(table.columns)
    changed = {change.case for change in found}
    for case, row in table.rows():
        if case not in changed and row and row[-1].mark is Mark.ERROR and not table.columns[-1].trouble:
            yield Text(
                f"{table.labels[case]}: {row[-1].word}: {row[-1].reason.partition(chr(10))[0]}", style="bold magenta"
            )
    marks = ", ".join(f"{count} {mark.value}" for mark, count in steady(table).most_common())
    yield Text(f"the same at every step: {marks or 'nothing'}", style="bold")


def _unmet_lines(steps: Sequence[PatchStep], table: Table, unmet: Sequence[Unmet]) -> Iterator[Text]:
    for one in unmet:
        name = table.labels.get(one.case, str(one.case))
        step = steps[one.column]
        for line in words.unmet(one.result):
            yield Text(f"{name} at {step.name} {step.subject}: {line}", style="bold red")


def change_lines(
    steps: Sequence[PatchStep], table: Table, found: Sequence[Change], most: int | None = None
) -> Iterator[Text]:
    """Each change: the case, its old and new answer, the patch, the reason; then the entries and claims that differ.

    :param most: how many lines of entries for each change; None for all of them.
    """
    for change in found:
        line = _change_line(steps, change, table.labels)
        yield line.append(f": {change.after.note}") if change.after.note else line
        one = difference_of(table, change)
        counted, expected = split_differences([one] if one is not None else [], table.columns[change.step])
        for each in counted:
            yield from case_lines(each, most)
        if counted and expected:
            yield Text("  as expected:", style="yellow")
        for each in expected:
            yield from case_lines(each, most)


def _change_line(steps: Sequence[PatchStep], change: Change, names: Mapping[Case, str]) -> Text:
    step, last = steps[change.step], steps[change.since]
    between = f" (the patches after {last.name} have no result)" if change.step - change.since > 1 else ""
    line = Text(f"{names[change.case]}: {change.before.word} -> ")
    line.append(change.after.word, style=STYLE[change.after.mark])
    return line.append(f" at {step.name} {step.subject}{between}")


def _change_json(steps: Sequence[PatchStep], change: Change) -> dict[str, Any]:
    return {
        "scenario": change.case.scenario,
        "file": change.case.file,
        "level": change.case.level,
        "step": steps[change.step].name,
        "subject": steps[change.step].subject,
        "expected": change.expected,
        "before": change.before.word,
        "after": change.after.word,
        "reason": change.after.reason,
    }
