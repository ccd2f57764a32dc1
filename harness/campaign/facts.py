"""``make facts``: measure every stock kernel, update the documents, and show what changed.

    python -m harness.campaign.facts [--kernel SPEC]... [--workers N] [--from FILE]... [--offline] [--also FILE]...

It runs what ``hugepfn matrix -k all-stock`` runs. It writes docs/matrix.md, guest_tests/known_bugs_seen.toml, the
marked pieces of the documents, and the commands of known bugs that name a kernel on which the bug is fixed. A second
run with the same results changes only the date. The results are kept in build/facts.json, kernel by kernel. With
``--from build/facts.json``, only what it lacks is run: the kernels of an interrupted run, and new scenarios.
"""

from __future__ import annotations

import functools
import importlib.metadata
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from harness.archive.versions import is_exact, upstream_of
from harness.campaign.facts_text import Grid, Known, changes, fill, matrix_document, mended_command
from harness.campaign.kernels import ALL_STOCK, RunOptions, choose_kernels
from harness.campaign.matrix import as_json, check_kernels, print_table, repeated, summary
from harness.campaign.progress import Live
from harness.campaign.units.executing import executing
from harness.campaign.wanted import choose
from harness.config import MachineConfig
from harness.errors import ExitCode, HugepfnError, MachineryError, UsageError
from harness.guest.compiler import guest_tests_dir
from harness.outputs import write_text
from harness.selection.selected import Selected
from harness.selection.tests import facts_of, ledger_of
from harness.verdict import Outcome, Run, ScenarioResult
from harness.verdict import claims as run_schema
from harness.verdict import table as matrix_schema
from harness.verdict.known_bugs import KnownBug, judge
from harness.verdict.seen import Facts, Measured, Sightings, dump_facts, version_key
from harness.verdict.table import TROUBLE, Case, Column, Mark, Table

DOCUMENTS = ("README.md", "CHANGELOG.md", "docs/truth.md", "docs/tutorial.md")
_UNSURE = {Mark.FAIL, Mark.ERROR, Mark.FLAKE, Mark.UNKNOWN}
_HIDING = _UNSURE | {Mark.BUG}  # another bug, which may have ended the scenario before this one showed


@dataclass(frozen=True)
class RunsByKernel:
    """The runs of each kernel, by its spec, and the series that are not available."""

    runs: Mapping[str, tuple[Run, ...]]
    missing: Mapping[str, str]

    @classmethod
    def read(cls, path: Path) -> RunsByKernel:
        """Read what ``matrix --json`` or ``run --json`` wrote.

        :raises UsageError: the file is something else.
        """
        try:
            data = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: {error}; expected a file that --json has written") from error
        schemas = {matrix_schema.SCHEMA: matrix_schema.VERSION, run_schema.SCHEMA: run_schema.VERSION}
        if isinstance(data, dict) and data.get("schema") in schemas and data.get("version") != schemas[data["schema"]]:
            raise UsageError(
                f"{path} has {data['schema']} version {data.get('version')}; expected version "
                f"{schemas[data['schema']]}: remove it and run again"
            )
        if isinstance(data, dict) and data.get("schema") == matrix_schema.SCHEMA:
            runs = {one["spec"]: tuple(map(Run.from_json, one["runs"])) for one in data["kernels"]}
            return cls({spec: found for spec, found in runs.items() if found}, data.get("missing", {}))
        if isinstance(data, dict) and data.get("schema") == run_schema.SCHEMA:
            run = Run.from_json(data)
            return cls({str(run.context["kernel"]["spec"]): (run,)}, {})
        raise UsageError(f"{path}; expected a file that `hugepfn matrix --json` or `hugepfn run --json` has written")

    def to_json(self) -> dict[str, Any]:
        """Return the results as ``matrix --json`` writes them."""
        table = Table.of([Column(spec, runs) for spec, runs in self.runs.items()])
        return {
            **table.to_json(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "missing": dict(self.missing),
        }


def version_of(column: Column) -> str:
    """Return the upstream version of a column.

    :raises UsageError: the version is not known, for instance because Debian's 6.1 has the release 6.1.0-56.
    """
    kind, _, version = column.spec.partition(":")
    if kind == "debian" and is_exact(version):
        return upstream_of(version)
    release = str((column.context.get("kernel") or {}).get("release") or "")
    if re.match(r"\d+\.\d+\.0-\d", release):
        raise UsageError(
            f"{column.spec}: the release {release} does not contain the version; name it exactly, as debian:6.1.192"
        )
    return ".".join(map(str, version_key(release)))


def check_exact(specs: Iterable[str]) -> None:
    """Reject kernels whose column would not be a version.

    :raises UsageError: there is one; the message names the first.
    """
    for spec in specs:
        kind, _, version = spec.partition(":")
        if kind != "debian" or upstream_of(version) != version or not is_exact(version):
            raise UsageError(f"{spec}; expected a stock kernel with its version, such as debian:6.12.118")


def sightings(table: Table, ledger: Sequence[KnownBug], before: Facts) -> dict[str, Sightings]:
    """Return which bugs the kernels of a table have, combined with what was known before.

    A kernel has a bug if a case showed it. It does not have the bug if a case about the bug passed and no such case is
    in doubt or shows another bug. Bugs that show only sometimes, or only with a certain configuration, are never
    recorded as absent.
    """
    found = {bug: (dict(seen.present), dict(seen.absent)) for bug, seen in before.bugs.items()}
    for number, column in enumerate(table.columns):
        version, day = version_of(column), date.fromisoformat(str(column.context["date"])[:10])
        for bug in ledger:
            cells = [row[number] for case, row in table.rows() if bug.covers(case.scenario, case.level)]
            present, absent = found.setdefault(bug.id, ({}, {}))
            marks = {cell.mark for cell in cells}
            if any(bug.id in cell.bugs for cell in cells):
                absent.pop(version, None)
                present.setdefault(version, day)
            elif marks & {Mark.PASS, Mark.FIXED} and not marks & _HIDING and not (bug.sometimes or bug.config):
                present.pop(version, None)
                absent.setdefault(version, day)
    ids = [bug.id for bug in ledger]  # if an entry is removed from the list, its sightings are dropped too
    return {bug: Sightings(*found[bug]) for bug in ids}


def measured(table: Table, ledger: Sequence[KnownBug], before: Facts) -> Facts:
    """Return the facts from a table of stock kernels."""
    contexts = [column.context for column in table.columns]
    latest = max(contexts, key=lambda context: str(context["date"]))
    head = Measured(
        date.fromisoformat(str(latest["date"])[:10]),
        str(latest["qemu"]),
        str(latest["accel"]),
        importlib.metadata.version("hugepfn"),
        len({case.scenario for case in table.cases}),
        len(table.cases),
    )
    kernels = {version_of(one): str(one.context["kernel"]["release"]) for one in table.columns}
    return Facts(head, kernels, sightings(table, ledger, before))


def judged_again(results: RunsByKernel, ledger: Sequence[KnownBug], facts: Facts) -> Table:
    """Return the table with each pass judged again: whether a bug is fixed depends on what other kernels showed."""
    stock = [bug for bug in ledger if not bug.config]

    def again(one: ScenarioResult, version: str) -> ScenarioResult:
        if one.outcome is not Outcome.PASSED:
            return one
        return replace(one, fixed_bugs=judge(stock, one.scenario, one.level, (), facts, version).fixed)

    columns = []
    for spec, runs in results.runs.items():
        version = version_of(Column(spec, runs))
        new = tuple(replace(run, results=tuple(again(one, version) for one in run.results)) for run in runs)
        columns.append(Column(spec, new))
    columns.sort(key=lambda column: version_key(version_of(column)))
    return Table.of(columns, choose(()).cases)


def lacking(runs: Sequence[Run], cases: Iterable[Case]) -> tuple[Selected, ...]:
    """Return the scenarios of which a run of a kernel has not every case; all of them if there is no run."""
    have = [{(one.scenario, one.level) for one in run.results} for run in runs] or [set()]
    lost = [case.scenario for case in cases if any((case.scenario, case.level) not in each for each in have)]
    return tuple(Selected(None, name) for name in dict.fromkeys(lost))


def joined(before: Run, later: Run) -> Run:
    """Return a run with the results of two, of which the later ones count.

    :raises MachineryError: they are of different kernels.
    """
    old, new = before.context.get("kernel"), later.context.get("kernel")
    if before.results and old != new and not later.context.get(TROUBLE):
        raise MachineryError(f"the earlier results are of another kernel ({old}, now {new}); run without --from")
    anew = {(one.scenario, one.level) for one in later.results}
    kept = (one for one in before.results if (one.scenario, one.level) not in anew)
    return Run((*kept, *later.results), later.context)


def collect(specs: Sequence[str], options: RunOptions, repeat: int, have: RunsByKernel, offline: bool) -> RunsByKernel:
    """Return the results of every kernel: existing ones, and those of new runs, of what these lack."""
    if offline:
        return have
    kept, cases = Path("build/facts.json"), choose(()).cases
    with Live() as live:
        chosen = choose_kernels(specs, live.say)
        check_exact(chosen.specs)
        runs = {spec: found for spec, found in have.runs.items() if spec in chosen.specs}
        wanted = {spec: tests for spec in chosen.specs if (tests := lacking(runs.get(spec, ()), cases))}
        if wanted:
            check_kernels(list(wanted), options, live)
            kept.parent.mkdir(exist_ok=True)
        with executing(live, options.scheduler) as executor:
            for spec, tests in wanted.items():
                before = runs.get(spec, ())
                units = repeated([spec], tests if before else (), options, len(before) or repeat)
                found = {}
                for number, answer in executor.run(units):
                    run = answer.as_run(spec)
                    live.line(summary(run, units[number].name))
                    found[number] = joined(before[number], run) if before else run
                runs[spec] = tuple(found[number] for number in range(len(units)))
                write_text(kept, as_json(RunsByKernel(runs, chosen.missing).to_json()))
    return RunsByKernel(runs, chosen.missing)


def write(results: RunsByKernel, also: Sequence[RunsByKernel], root: Path) -> list[str]:
    """Write everything that was measured, and return what changed, in words.

    :raises MachineryError: a kernel has no results, or a file cannot be written; then nothing is written.
    """
    check_exact(results.runs)
    for column in (Column(spec, runs) for spec, runs in results.runs.items()):
        if column.trouble or not all(run.results for run in column.runs):
            raise MachineryError(f"{column.spec} has no complete results, so nothing is written: {column.trouble}")
    ledger, before = ledger_of(root / "guest_tests"), facts_of(root / "guest_tests")
    facts = measured(Table.of([Column(spec, runs) for spec, runs in results.runs.items()]), ledger, before)
    for one in also:
        more = Table.of([Column(spec, runs) for spec, runs in one.runs.items()])
        facts = replace(facts, bugs=sightings(more, ledger, facts))
    table = judged_again(results, ledger, facts)
    facts = replace(facts, kernels={version_of(one): facts.kernels[version_of(one)] for one in table.columns})
    matrix_path = root / "docs" / "matrix.md"
    old = Known(before, Grid.parse(matrix_path.read_text()), ledger)
    matrix = matrix_document(facts, _printed(table, results.missing), max(len(one.runs) for one in table.columns))
    commands = {bug.reproduce: mended_command(bug, facts) for bug in ledger}
    new = Known(facts, Grid.parse(matrix), [replace(bug, reproduce=commands[bug.reproduce]) for bug in ledger])
    texts = {root / name: fill((root / name).read_text(), new, name) for name in DOCUMENTS}
    list_path = root / "guest_tests" / "known_bugs.toml"
    texts[list_path] = list_path.read_text()
    for command, mended in commands.items():
        texts[list_path] = texts[list_path].replace(f'"{command}"', f'"{mended}"')
    texts |= {matrix_path: matrix, root / "guest_tests" / "known_bugs_seen.toml": dump_facts(facts)}
    for path, text in texts.items():
        write_text(path, functools.partial(str, text))
    said = [f"command: {command} -> {mended}" for command, mended in commands.items() if command != mended]
    return [*changes(old, new), *said]


def _printed(table: Table, missing: Mapping[str, str]) -> str:
    console = Console(file=io.StringIO(), width=10_000, highlight=False)
    print_table(console, table, missing)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())


@click.command()
@click.option("--kernel", "-k", "kernels", multiple=True, default=(ALL_STOCK,), show_default=True, metavar="SPEC")
@click.option("--workers", "-n", type=click.IntRange(1), default=2, show_default=True, help="tests at once")
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="number of runs of everything")
@click.option(
    "--from",
    "given",
    multiple=True,
    type=click.Path(path_type=Path),
    help="a file with results, which are not measured again",
)
@click.option("--offline", is_flag=True, help="run nothing, and use only the results of --from")
@click.option("--also", multiple=True, type=click.Path(path_type=Path), help="more results, for known bugs only")
def main(
    kernels: tuple[str, ...],
    workers: int,
    repeat: int,
    given: tuple[Path, ...],
    offline: bool,
    also: tuple[Path, ...],
) -> None:
    """Measure the stock kernels, update the documents, and show what changed."""
    root = guest_tests_dir().parent
    if not (root / "docs" / "matrix.md").is_file():
        raise UsageError(f"{root} is not a source tree of hugepfn; run `make facts` in one")
    read = [RunsByKernel.read(path) for path in given]
    have = RunsByKernel(
        {spec: runs for one in read for spec, runs in one.runs.items()},
        {series: why for one in read for series, why in one.missing.items()},
    )
    if offline and not have.runs:
        raise UsageError("--offline runs nothing, and there are no results; give some with --from FILE")
    options = RunOptions(MachineConfig(pristine=True), workers=workers)  # a fact is what a kernel does after a boot
    results = collect(kernels, options, repeat, have, offline)
    said = write(results, [RunsByKernel.read(path) for path in also], root)
    click.echo("\n".join(said) or "nothing changed but the date")


if __name__ == "__main__":
    try:
        main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted; continue with: make facts FACTS='--from build/facts.json'", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except HugepfnError as error:
        click.echo(f"hugepfn: {error}", err=True)
        sys.exit(error.exit_code)
