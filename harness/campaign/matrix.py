"""``hugepfn matrix``: kernels × scenarios, as text, JSON and HTML."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from harness.campaign import mail
from harness.campaign.kernels import RunOptions, choose_kernels
from harness.campaign.progress import Live
from harness.campaign.report import PageColumn, PageRequest, matrix_page
from harness.campaign.units.executing import executing
from harness.campaign.units.journal import noting
from harness.campaign.units.unit import Unit
from harness.campaign.wanted import choose
from harness.errors import ExitCode, MachineryError, UsageError
from harness.kernel import Kernel
from harness.kernel.build import BuiltSource
from harness.kernel.build.builder import source_tree
from harness.machine import preparation
from harness.outputs import check_writable, write_text
from harness.qemu.accel import tell_why_tcg
from harness.selection.expected import resolve
from harness.selection.selected import Selected
from harness.verdict import Outcome, Run
from harness.verdict.expected.judge import Expectations, held_run
from harness.verdict.table import TROUBLE, Case, Cell, Column, Mark, Table
from harness.verdict.words import number_of

STYLE = {
    Mark.PASS: "green",
    Mark.FIXED: "green",
    Mark.SKIP: "dim",
    Mark.EXPECTED: "yellow",
    Mark.BUG: "yellow",
    Mark.UNKNOWN: "yellow",
    Mark.ERROR: "bold magenta",
    Mark.FLAKE: "bold magenta",
    Mark.FAIL: "bold red",
}
_MEANING = {
    Mark.FIXED: "passes, and an older kernel of its series had the known bug",
    Mark.EXPECTED: "fails or is skipped, as --expect says",
    Mark.UNKNOWN: "cannot know",
    Mark.FLAKE: "repeats differ",
}


def run_matrix(
    kernels: Sequence[str],
    tests: Sequence[Selected],
    options: RunOptions,
    repeat: int,
    json_file: Path | None,
    page: PageRequest,
    resume: bool = False,
) -> ExitCode:
    """Run everything, print the table, and write the files.

    Ctrl-C ends the current run; the table of the earlier ones is still printed.

    :param resume: go on with this matrix, which was interrupted.
    :raises UsageError: there is no such kernel or scenario, or a file cannot be written.
    :raises MachineryError: QEMU is missing, or the mirror cannot be reached.
    """
    expected, said = prepare(tests, options, json_file, page.file)
    interrupted = False
    with Live() as live:
        chosen = choose_kernels(kernels, live.say)
        if not chosen.specs:
            raise UsageError(
                "no kernel is left: " + "; ".join(f"{name}: {why}" for name, why in chosen.missing.items())
            )
        question = {"command": "matrix", "kernels": check_kernels(chosen.specs, options, live), "repeat": repeat}
        units = repeated(chosen.specs, tests, options, repeat)
        runs: dict[int, Run] = {}
        try:
            with executing(live, options.scheduler) as executor:
                noted = noting(executor, question, tests, options, resume, live.line)
                for number, answer in noted.run(units):
                    unit = units[number]
                    runs[number] = held_run(answer.as_run(unit.spec), said)  # before the reader may interrupt
                    live.line(summary(runs[number], unit.name))
        except KeyboardInterrupt:
            interrupted = True
    table, lost = Table.of(columns_of(units, runs), expected), False
    stamp = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "missing": dict(chosen.missing)}
    if runs:
        print_table(Console(highlight=False), table, chosen.missing, repeat)
        data = {**table.to_json(), **stamp, **({"interrupted": True} if interrupted else {})}
        lost = write_files(
            live.line,
            (json_file, as_json(data)),
            (page.file, lambda: page_of(page, table, chosen.missing, repeat, options)),
        )
    if interrupted:
        raise KeyboardInterrupt
    return table.exit_code(strict=options.strict).without(lost)


def repeated(specs: Sequence[str], tests: Sequence[Selected], options: RunOptions, repeat: int) -> list[Unit]:
    """Every kernel once, then every kernel again, as often as it is repeated."""
    times = [f" (run {number + 1} of {repeat})" if repeat > 1 else "" for number in range(repeat)]
    return [Unit(spec, tuple(tests), options, f"{spec}{time}") for time in times for spec in specs]


def columns_of(units: Sequence[Unit], runs: Mapping[int, Run]) -> list[Column]:
    """The column of each kernel, with its runs in the order of their units."""
    found: dict[str, list[Run]] = {unit.spec: [] for unit in units}
    for number, unit in enumerate(units):
        if number in runs:
            found[unit.spec].append(runs[number])
    return [Column(spec, tuple(each)) for spec, each in found.items()]


def page_of(request: PageRequest, table: Table, missing: Mapping[str, str], repeat: int, options: RunOptions) -> str:
    """The page of ``--html``."""
    columns = [PageColumn(column, column.spec, options.words(column.spec)) for column in table.columns]
    printed = (line.plain for line in report_lines(table, missing, repeat, mail.COLUMNS))
    return matrix_page(request, columns, table, missing, printed)


def prepare(
    tests: Sequence[Selected], options: RunOptions, json_file: Path | None, html_file: Path | None
) -> tuple[list[Case], Expectations]:
    """Check everything that may be wrong before an hour is spent on it.

    :returns: the requested rows, and what is expected of them.
    """
    wanted = choose(tests, options.levels)
    said = resolve(options.expected, wanted.tests, strict=options.strict)
    check_writable({"--json": json_file, "--html": html_file})
    return wanted.cases, said


def check_kernels(specs: Sequence[str], options: RunOptions, live: Live) -> dict[str, str]:
    """Check what every machine needs, and fetch the kernels.

    :returns: the identity of each kernel, by its content; "" if it is not known.
    :raises UsageError: a kernel does not exist.
    :raises MachineryError: this host cannot run any kernel.
    """
    why_tcg = preparation.preflight(options.machine(specs[0]), live.say) if not options.scheduler else ""
    keys = dict.fromkeys(specs, "")
    for spec in specs:
        live.now(f"{spec}: looking for it")
        try:
            keys[spec] = _key(spec, options, live)
        except MachineryError as error:
            live.line(f"{spec}: {error}")  # its column will say so too; the others still run
    tell_why_tcg(why_tcg, live.say)  # so no child tells it again
    return keys


def _key(spec: str, options: RunOptions, live: Live) -> str:
    source = Kernel.parse(spec).source
    if not options.scheduler or not isinstance(source, BuiltSource):
        return preparation.resolve(options.machine(spec), live.say).key
    return "" if source.anywhere else source_tree(source.recipe, live.say)  # it is built later, where that is best


def summary(run: Run, name: str) -> str:
    """One run, in one line."""
    counts = Counter(result.outcome for result in run.results)
    numbers = ", ".join(number_of(outcome, counts[outcome]) for outcome in Outcome if counts[outcome])
    return f"{name}: " + "; ".join(filter(None, (numbers, str(run.context.get(TROUBLE, "")))))


def print_table(console: Console, table: Table, missing: Mapping[str, str], repeat: int = 1) -> None:
    """Print :func:`report_lines`."""
    print_lines(console, report_lines(table, missing, repeat, width_of(console)))


def print_lines(console: Console, lines: Iterable[Text]) -> None:
    """Print lines, which a terminal may wrap."""
    for line in lines:
        console.print(line, soft_wrap=True)


def width_of(console: Console) -> int | None:
    """The width of a terminal in characters; None for anything else, where a table is one block."""
    return console.width if console.is_terminal else None


def report_lines(table: Table, missing: Mapping[str, str], repeat: int, width: int | None) -> Iterator[Text]:
    """The table with as many kernels side by side as fit, then the reasons, unavailable kernels, and totals."""
    yield from table_lines(table, width)
    if table.notes:
        yield Text()
    for note, number in table.notes.items():
        yield Text(f"{number:>3}  {note}")
    for case, column, cell in table.flakes:
        yield Text(f"flake: {table.labels[case]} on {column.spec}: {cell.note}", style=STYLE[Mark.FLAKE])
    for series, why in missing.items():
        yield Text(f"not available: {series}: {why}")
    yield from lost_lines(table.columns)
    words = [f"{table.counts[mark]} {mark.value}" for mark in Mark if table.counts[mark]]
    meanings = [f"{mark.value} {_MEANING[mark]}" for mark in _MEANING if table.counts[mark]]
    times = f", each {repeat} times" if repeat > 1 else ""
    total = Text(f"\n{len(table.columns)} kernels, {len(table.cases)} cases{times}: {', '.join(words)}", style="bold")
    yield total.append(f"  ({'; '.join(meanings)})" if meanings else "", style="not bold")


def lost_lines(columns: Iterable[Column]) -> Iterator[Text]:
    """What ran again, because its worker was lost."""
    for column in columns:
        if column.lost:
            yield Text(f"{column.spec} ran again, because its worker was lost: {', '.join(column.lost)}")


def table_lines(table: Table, width: int | None) -> Iterator[Text]:
    """The table alone, in blocks of as many columns as fit.

    :param width: width of the terminal in characters; None for a single block.
    """
    names = [table.labels[case] for case in table.cases]
    first = max(map(len, names), default=0)
    texts = [[_cell_text(table, row[number]) for row in table.cells] for number in range(len(table.columns))]
    widths = [max([len(column.label), *map(len, cells)]) for column, cells in zip(table.columns, texts, strict=True)]
    numbers = list(range(len(table.columns)))
    while numbers:
        block = [numbers.pop(0)]
        while numbers and (width is None or first + sum(widths[n] + 2 for n in (*block, numbers[0])) <= width):
            block.append(numbers.pop(0))
        heading = "".join(f"  {table.columns[number].label:<{widths[number]}}" for number in block)
        yield Text(" " * first + heading.rstrip(), style="bold")
        for row, name in enumerate(names):
            line = Text(f"{name:<{first}}")
            for number in block:
                line.append("  ").append_text(texts[number][row])
                line.append(" " * (widths[number] - len(texts[number][row])))
            line.rstrip()
            yield line
        if numbers:
            yield Text()


def _cell_text(table: Table, cell: Cell) -> Text:
    text = Text(cell.word, style=STYLE[cell.mark])
    if cell.note:
        text.append(f" {table.notes[cell.note]}", style="not bold dim")
    return text


def as_json(data: Mapping[str, Any]) -> Callable[[], str]:
    """The function that makes the text for ``--json``."""
    return lambda: json.dumps(data, indent=1) + "\n"


def write_files(line: Callable[[str], None], *files: tuple[Path | None, Callable[[], str]]) -> bool:
    """Write the requested files, even if one of them fails; return whether one did."""
    lost = False
    for file, make in files:
        try:
            write_text(file, make)
        except MachineryError as error:  # the verdict is already printed, and does not change
            line(str(error))
            lost = True
    return lost
