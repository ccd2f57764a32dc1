"""``make fixes``: what the patches in fixes/ mend, and what else they change; writes docs/fixes.md.

    python tests/fixes/measure.py [--series 6.12]... [--test TEST]... [--fragment NAME]... [--all] [--write]
        [--from FILE]...

The patches of a series are applied one on top of the other, in the order of the bugs. Each kernel is built and run, and
is compared with the one before it; with ``--all``, only the one with all patches with the one without any. Without
``--test``, everything runs. The results are kept in build/fixes-SERIES.json (build/fixes-all-SERIES.json); ``--from``
takes them from such a file.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from harness.campaign.building import build_shown
from harness.campaign.facts import RunsByKernel
from harness.campaign.kernels import RunOptions
from harness.campaign.matrix import repeated, summary
from harness.campaign.progress import Live
from harness.campaign.units.executing import executing
from harness.campaign.wanted import choose
from harness.errors import HugepfnError
from harness.kernel.build.patches import split
from harness.selection.selected import Selected
from harness.verdict import Run
from harness.verdict.series import Change, changes
from harness.verdict.table import Column, Mark, Table
from tests.marked_page import replaced

ROOT = Path(__file__).resolve().parents[2]
FIXES = ROOT / "fixes"
PAGE = ROOT / "docs" / "fixes.md"
FRAGMENTS = ("outliers", "kvm")


@dataclass(frozen=True)
class Fix:
    """A candidate patch, for one series of kernels."""

    path: Path

    @property
    def bug(self) -> str:
        """The known bug that its file is named after."""
        return self.path.stem

    @property
    def subject(self) -> str:
        """The subject of its mail."""
        (patch,) = split(self.path.name, self.path.read_bytes())
        return patch.subject.removeprefix("[PATCH] ")


def fixes(series: str) -> list[Fix]:
    """The patches for a series of kernels, in the order of the bugs."""
    return [Fix(path) for path in sorted((FIXES / series).glob("HP-*.patch"))]


@dataclass(frozen=True)
class Effect:
    """What one patch changes, compared with the kernel before it."""

    fix: Fix
    mended: dict[str, int]  # cases that no longer show a bug, by the bug
    left: int  # cases that still show the bug of the patch
    other: tuple[str, ...]  # every other change of an answer

    @classmethod
    def of(cls, fix: Fix, step: int, table: Table, found: Sequence[Change]) -> Effect:
        """Sort the changes at a step of a table."""
        mended: dict[str, int] = defaultdict(int)
        other = []
        for change in found:
            if change.step != step:
                continue
            gone = change.before.bugs - change.after.bugs
            if (
                gone
                and change.after.mark in (Mark.PASS, Mark.BUG, Mark.FIXED)
                and change.after.bugs <= change.before.bugs
            ):
                for bug in gone:
                    mended[bug] += 1
            else:
                label = table.labels[change.case]
                other.append(f"{label}: {change.before.word} → {change.after.word}")
        left = sum(fix.bug in row[step].bugs for _, row in table.rows())
        return cls(fix, dict(sorted(mended.items())), left, tuple(other))

    def row(self) -> str:
        """Its row in the table of docs/fixes.md."""
        return f"| {self.fix.bug} | {self.fix.subject} | {self.gone} | {self.left or 'none'} | {self.changed} |"

    @property
    def gone(self) -> str:
        """What it mends, in words."""
        return ", ".join(f"{bug} ({count})" for bug, count in self.mended.items()) or "nothing"

    @property
    def changed(self) -> str:
        """What else it changes, in words."""
        return "; ".join(self.other) or "nothing"


def measure(
    series: str, tests: Sequence[Selected], fragments: Sequence[str], kept: Path, *, together: bool
) -> RunsByKernel:
    """Build and run the source of a series, without patches and with each one more, or all at once."""
    chosen = fixes(series)
    runs: dict[str, tuple[Run, ...]] = {}
    options = RunOptions(workers=2)
    for count in (0, len(chosen)) if together else range(len(chosen) + 1):
        name = chosen[count - 1].bug if count else f"debsrc:{series}"
        shown = f"{series} with all patches" if together and count else name
        paths = [one.path for one in chosen[:count]]
        image = str(build_shown(f"debsrc:{series}", paths, fragments, "tiny", False, "gcc", False).image)
        with Live() as live, executing(live, "") as executor:
            for _, answer in executor.run(repeated([image], tests, options, 1)):
                runs[name] = (answer.as_run(image),)
                live.line(summary(runs[name][0], shown))
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps(RunsByKernel(runs, {}).to_json()))
    return RunsByKernel(runs, {})


def _compared(
    series: str, results: RunsByKernel, tests: Sequence[Selected], date: str
) -> tuple[str, list[Effect], Table]:
    """A sentence about the runs, what each kernel changes, and all answers as a table."""
    columns = [Column(name, runs) for name, runs in results.runs.items()]
    table = Table.of(columns, choose(tests).cases)
    found = changes(table)
    on = columns[0].context
    said = f"On {on['kernel']['release']} with QEMU {on['qemu']}, {date}; {len(table.cases)} cases for each kernel."
    by_bug = {one.bug: one for one in fixes(series)}
    effects = [Effect.of(by_bug[column.spec], step, table, found) for step, column in enumerate(columns) if step]
    return said, effects, table


def section(series: str, results: RunsByKernel, tests: Sequence[Selected], date: str) -> Iterator[str]:
    """The lines of a series in docs/fixes.md.

    :param date: when it was measured.
    """
    said, effects, table = _compared(series, results, tests, date)
    yield f"{said}\n"
    yield "| patch | what it says | bugs that cases no longer show (cases) | cases left | other answers that change |"
    yield "|---|---|---|---|---|"
    yield from (effect.row() for effect in effects)
    last = sorted({bug for _, row in table.rows() for bug in row[-1].bugs})
    yield f"\nWith all of them, cases show {', '.join(last) or 'no known bug'}.\n"


def all_at_once(series: str, results: RunsByKernel, tests: Sequence[Selected], date: str) -> Iterator[str]:
    """The lines about all patches of a series together; see :func:`section`."""
    said, (effect,), _ = _compared(series, results, tests, date)
    yield f"{said} With all patches together, cases no longer show {effect.gone}."
    yield f"Other answers that change: {effect.changed}.\n"


@click.command()
@click.option("--series", multiple=True, help="as 6.12; all that fixes/ has if not given")
@click.option("--test", "tests", multiple=True, help="run only this; may be repeated")
@click.option("--fragment", "fragments", multiple=True, default=FRAGMENTS, show_default=True)
@click.option("--all", "together", is_flag=True, help="compare the kernel with all patches with the one without any")
@click.option("--write", is_flag=True, help=f"write {PAGE.relative_to(ROOT)}")
@click.option(
    "--from", "given", multiple=True, type=click.Path(path_type=Path), help="build/fixes-SERIES.json: run nothing"
)
def main(
    series: tuple[str, ...],
    tests: tuple[str, ...],
    fragments: tuple[str, ...],
    together: bool,
    write: bool,
    given: tuple[Path, ...],
) -> None:
    """Measure every series."""
    wanted = [Selected(None, name) for name in tests]
    names = series or tuple(sorted(path.name for path in FIXES.iterdir() if path.is_dir()))
    for name in names:
        mark = f"fixes-all-{name}" if together else f"fixes-{name}"
        kept = ROOT / "build" / f"{mark}.json"
        found = next((path for path in given if path.name == kept.name), None)
        results = RunsByKernel.read(found) if found else measure(name, wanted, fragments, kept, together=together)
        date = str(datetime.fromtimestamp((found or kept).stat().st_mtime, UTC).date())
        text = "\n".join((all_at_once if together else section)(name, results, wanted, date))
        if write:
            PAGE.write_text(replaced(PAGE.read_text(), mark, text))
        click.echo(f"## {name}\n\n{text}")


if __name__ == "__main__":
    try:
        main()
    except HugepfnError as error:
        sys.exit(f"hugepfn: {error}")
