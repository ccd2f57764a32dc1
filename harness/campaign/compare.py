"""``hugepfn compare A B``: runs the suite on both kernels, and shows only what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.campaign import mail
from harness.campaign.kernels import RunOptions
from harness.campaign.matrix import as_json, check_kernels, lost_lines, prepare, print_lines, summary, write_files
from harness.campaign.progress import Live
from harness.campaign.report import PageColumn, PageRequest, compare_page, selecting
from harness.campaign.units.executing import executing
from harness.campaign.units.journal import noting
from harness.campaign.units.unit import Unit, UnitExecutor
from harness.errors import ExitCode, MachineryError
from harness.kernel import Kernel
from harness.selection.selected import Selected
from harness.verdict import Run, words
from harness.verdict.differences import (
    SCHEMA,
    VERSION,
    CaseDifference,
    Difference,
    What,
    compare_runs,
    folded,
    lasting,
    unknown_cases,
)
from harness.verdict.expected.judge import Unmet, held_along
from harness.verdict.expected.split import split_differences
from harness.verdict.table import TROUBLE, Case, Column, Table, labels

_UNSTABLE = "Differs from time to time on one kernel"
_EXPECTED = "Differs as expected"
_UNMET = "Expected, but not so"


@dataclass(frozen=True)
class Comparison:
    """The answer: what differs, and what does not count."""

    specs: tuple[str, ...]
    runs: tuple[Run, Run]  # the second held against what was expected
    counted: tuple[CaseDifference, ...]
    expected: tuple[CaseDifference, ...] = ()
    unmet: tuple[Unmet, ...] = ()
    passing: tuple[CaseDifference, ...] = ()  # varies on one kernel
    unknown: Mapping[Case, str] = field(default_factory=dict)  # not compared, and why

    @property
    def same(self) -> bool:
        """Whether nothing differs but what was expected, and all of that does."""
        return not self.counted and not self.unmet


def run_compare(
    before: str,
    after: str,
    tests: Sequence[Selected],
    options: RunOptions,
    confirm: int,
    json_file: Path | None,
    page: PageRequest,
    resume: bool = False,
) -> ExitCode:
    """Run everything on both kernels, print what differs, and write the files.

    :param confirm: how often to run again what differs; an answer that varies on one kernel does not count as a
        difference.
    :param resume: go on with this comparison, which was interrupted.
    :returns: OK if nothing differs but what was expected, CLAIM_FAILED if something does or what was expected does not
        happen, MACHINERY if that is not known.
    :raises UsageError: there is no such kernel or scenario, or a file cannot be written.
    :raises MachineryError: a kernel could not be run at all.
    """
    _, said = prepare(tests, options, json_file, page.file)
    specs = tuple(Kernel.parse(word).spec for word in (before, after))
    with Live() as live:
        question = {"command": "compare", "kernels": check_kernels(specs, options, live)}
        sides: tuple[list[Run], list[Run]] = ([], [])
        with executing(live, options.scheduler) as anybody:
            executor = noting(anybody, question, tests, options, resume, live.line)
            _run_both(executor, [Unit(spec, tuple(tests), options, spec) for spec in specs], live, sides)
            rounds = [compare_runs(sides[0][0], sides[1][0])]
            for number in range(confirm):
                if not (again := lasting(rounds)[0]):
                    break
                live.line(f"running again what differs ({number + 1} of {confirm})")
                differing = tuple(selecting(one.case) for one in again)
                _run_both(executor, [Unit(spec, differing, options, spec) for spec in specs], live, sides)
                # Compare each new run with all runs of the other side, including its new one.
                rounds += [compare_runs(sides[0][-1], run) for run in sides[1]]
                rounds += [compare_runs(run, sides[1][-1]) for run in sides[0][:-1]]
    differences, passing = lasting(rounds)
    found, unmet = held_along([Column(spec, (side[0],)) for spec, side in zip(specs, sides, strict=True)], said)
    runs = found[0].runs[0], found[1].runs[0]
    counted, expected = split_differences(differences, found[1])
    answer = Comparison(specs, runs, counted, expected, unmet, passing, unknown_cases(*runs))
    short = [line.plain for line in report_lines(answer, mail.MOST)]
    if page.mail:
        print(mail.mail(short, runs[0], page.command))
    else:
        print_lines(Console(highlight=False), report_lines(answer))
    lost = write_files(
        live.line,
        (json_file, as_json(to_json(answer))),
        (page.file, lambda: page_of(page, answer, differences, short, options)),
    )
    return (ExitCode.OK if answer.same else ExitCode.CLAIM_FAILED).without(answer.unknown or lost)


def page_of(
    request: PageRequest,
    answer: Comparison,
    differences: Sequence[CaseDifference],
    printed: Sequence[str],
    options: RunOptions,
) -> str:
    """The page of ``--html``.

    :param differences: those that count, and those that were expected.
    """
    sides = zip(answer.specs, answer.runs, strict=True)
    columns = [PageColumn(Column(spec, (run,)), spec, options.words(spec)) for spec, run in sides]
    shown = Table.of([one.column for one in columns]).labels
    lists = [
        (_UNMET, [f"{shown[one.case]}: {line}" for one in answer.unmet for line in words.unmet(one.result)]),
        (f"{_EXPECTED}, so not counted", [f"{shown[one.case]}: {_summary(one)}" for one in answer.expected]),
        (f"{_UNSTABLE}, so not counted", [f"{shown[one.case]}: {_summary(one)}" for one in answer.passing]),
        ("Not compared", [f"{shown[case]}: {why}" for case, why in answer.unknown.items()]),
    ]
    return compare_page(request, columns, differences, lists, printed)


def _run_both(executor: UnitExecutor, units: Sequence[Unit], live: Live, sides: tuple[list[Run], list[Run]]) -> None:
    for number, answer in executor.run(units):
        spec = units[number].spec
        run = answer.as_run(spec)
        if run.context.get(TROUBLE):
            raise MachineryError(f"{spec}: {run.context[TROUBLE]}")
        sides[number].append(run)
        live.line(summary(run, spec))


def to_json(answer: Comparison) -> dict[str, Any]:
    """The object for ``hugepfn compare --json``."""
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "same": answer.same,
        "before": dict(answer.runs[0].context),
        "after": dict(answer.runs[1].context),
        "cases": [one.to_json() for one in answer.counted],
        "expected": [one.to_json() for one in answer.expected],
        "unmet": [unmet_json(one) for one in answer.unmet],
        "unstable": [one.to_json() for one in answer.passing],
        "unknown": [
            {"scenario": case.scenario, "file": case.file, "level": case.level, "reason": why}
            for case, why in answer.unknown.items()
        ],
    }


def unmet_json(one: Unmet) -> dict[str, Any]:
    """An expectation that is not met, for ``--json``."""
    case = {"scenario": one.case.scenario, "file": one.case.file, "level": one.case.level}
    return {**case, "expectation": one.result.expectations[0].to_json(), "reason": words.unmet(one.result)[0]}


def report_lines(answer: Comparison, most: int | None = None) -> Iterator[Text]:
    """The lines that the command prints.

    :param most: how many lines of entries for each case; None for all of them.
    """
    names = "AB"
    for name, spec, run in zip(names, answer.specs, answer.runs, strict=True):
        kernel = run.context.get("kernel")
        release = kernel.get("release") if isinstance(kernel, dict) else None
        yield Text(f"{name}  {spec}" + (f": Linux {release}" if release else ""), style="bold")
    shown = labels([case for run in answer.runs for case in Column("", (run,)).by_case[0]])
    for one in answer.counted:
        yield Text(f"\n{shown[one.case]}", style="bold cyan").append(_outcomes(one), style="not bold default")
        yield from case_lines(one, most)
    for one in answer.expected:
        yield Text(f"\n{shown[one.case]}, as expected", style="bold yellow").append(
            _outcomes(one), style="not bold default"
        )
        yield from case_lines(one, most)
    if answer.unmet:
        yield Text(f"\n{_UNMET}:", style="bold red")
    for missed in answer.unmet:
        yield from (Text(f"  {shown.get(missed.case, missed.case)}: {line}") for line in words.unmet(missed.result))
    if answer.passing:
        yield Text(f"\n{_UNSTABLE}, so not counted:", style="dim")
    for one in answer.passing:
        yield Text(f"  {shown[one.case]}: {_summary(one)}", style="dim")
    yield from lost_lines(Column(spec, (run,)) for spec, run in zip(answer.specs, answer.runs, strict=True))
    for case, reason in answer.unknown.items():
        yield Text(f"not compared: {shown[case]}: {reason.partition(chr(10))[0]}", style="bold magenta")
    yield Text(f"\n{_total(answer)}", style="bold")


def _total(answer: Comparison) -> str:
    cases = len(Column("", (answer.runs[0],)).by_case[0])
    counted, expected = ({one.case for one in found} for found in (answer.counted, answer.expected))
    if not counted | expected:
        return f"the same in {cases} cases"
    only = len(expected - counted)
    also = "" if not only else ", as expected" if not counted else f", {only} of them only as expected"
    return f"{len(counted | expected)} of {cases} cases differ{also}"


def _outcomes(one: CaseDifference) -> str:
    return "".join(map(_both, (*one.of(What.OUTCOME), *one.of(What.REASON))))


def case_lines(one: CaseDifference, most: int | None = None) -> Iterator[Text]:
    """The differences in one case, one line each: entries first, then claims and checkpoints.

    :param most: how many lines of entries and of claims, those of the first checkpoint that differs; None for all.
    """
    entries, claims = list(folded(one.of(What.ENTRY))), one.of(What.CLAIM)
    shown = (
        entries if most is None else [each for each in entries if _checkpoint(each) == _checkpoint(entries[0])][:most]
    )
    for difference, count in shown:
        yield _entry_line(difference, count)
    if left := len(entries) - len(shown):
        yield Text(f"  and {left} more {'entry' if left == 1 else 'entries'}", style="dim")
    for difference in claims[:most]:
        by = f" [{difference.kernel_function}]" if difference.kernel_function else ""
        yield Text(f"  claim: {difference.name}").append(by, style="dim").append(_both(difference))
    if left := len(claims) - len(claims[:most]):
        yield Text(f"  and {left} more {'claim' if left == 1 else 'claims'}", style="dim")
    for difference in one.of(What.CHECKPOINT):
        yield Text(f"  checkpoint {difference.name}{_both(difference)}")


def _checkpoint(entry: tuple[Difference, int]) -> str:
    change = entry[0].change
    return change.key.checkpoint if change else ""


def _both(difference: Difference) -> str:
    return f": {difference.before} -> {difference.after}"


def _entry_line(difference: Difference, count: int) -> Text:
    """The process, the checkpoint, the place, both raw words, and the difference in bits."""
    change = difference.change
    assert change is not None
    key = change.key
    words = [f"{seen.level} {seen.raw:016x}" if seen else "absent" for seen in (change.before, change.after)]
    if change.before and change.after and not change.level:
        words[1] = f"{change.after.raw:016x}"
    again = f" (time {key.turn + 1})" if key.turn else ""
    many = f" x{count}" if count > 1 else ""
    line = Text(f"  {key.process} at {key.checkpoint}{again}, {key.mapping}+{key.offset:#x}{many}:")
    line.append(f" {words[0]} -> {words[1]}")
    line.append("".join(f" +{name}" for name in change.appeared), style="bold green")
    line.append("".join(f" -{name}" for name in change.vanished), style="bold red")
    for what, pair in (("pfn", change.pfn), ("pagemap", change.pagemap)):
        line.append(f" {what} {pair[0] or 'none'} -> {pair[1] or 'none'}" if pair else "")
    return line


def _summary(one: CaseDifference) -> str:
    def name(difference: Difference) -> str:
        key = difference.change.key if difference.change else None
        return f"{key.checkpoint} {key.process} {key.mapping}+{key.offset:#x}" if key else difference.name

    names = [name(difference) or difference.what.value for difference in one.differences]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
