"""``make mutants``: build and run kernels that are broken on purpose. Each must break the claim that it names.

    python tests/mutants/kill.py [NAME...] [--kernel debsrc:6.12]

A mutant is a patch. The text above its first ``---`` line tells what it breaks and which claim has to notice it::

    fork() write-protects a pud in parent and child, as if it were private.

    Killed-by: fork:pud: the child's entry is writable
    ---

After "Killed-by:" come scenario, level (empty if the scenario has none) and what must fail: the name of a claim
that must be broken, or, in braces, a symptom as in the list of known bugs (harness/verdict/symptoms.py)::

    Killed-by: munmap_middle:pud: {complaint = "bad-pud"}

"Fragment: NAME" names a file of kconfigs/ that the mutant is built with.

tests/data/failures has the first lines of ``hugepfn run SCENARIO`` for some mutants. A mutant with other lines is not
killed as it should be. ``--record`` rewrites these files.
"""

from __future__ import annotations

import dataclasses
import io
import json
import re
import sys
import time
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from harness.campaign.building import build_shown
from harness.campaign.kernels import RunOptions
from harness.campaign.progress import Live
from harness.campaign.reporter import RunReporter
from harness.campaign.units.executing import executing
from harness.campaign.units.unit import Unit, run_one
from harness.errors import HugepfnError
from harness.selection.selected import Selected
from harness.verdict import Outcome, Run, ScenarioResult, words
from harness.verdict.symptoms import ClaimSymptom, Symptom, failures_of, symptom
from harness.verdict.table import TROUBLE

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent / "data" / "failures"
GOLDEN_LINES = 10  # as many lines as a person reads in ten seconds
_FRAGMENT = re.compile(r"^Fragment: (\w+)$", re.MULTILINE)
_KILLER = re.compile(r"^Killed-by: (\w+):(pte|pmd|pud|): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Killer:
    """The scenario and the claim that must notice a mutant."""

    scenario: str
    level: str | None
    sign: str

    @property
    def symptom(self) -> Symptom:
        """The symptom that must show in the result."""
        if self.sign.startswith("{"):
            return symptom(tomllib.loads(f"sign = {self.sign}")["sign"])
        return ClaimSymptom(re.compile(re.escape(self.sign)))

    def kills(self, result: ScenarioResult) -> bool:
        """Whether this result shows that the mutant was noticed."""
        if (result.scenario, result.level) != (self.scenario, self.level):
            return False
        return any(self.symptom.shows_in(failure) for failure in failures_of(result))


@dataclass(frozen=True)
class Mutant:
    """One broken kernel."""

    path: Path
    what: str
    killers: tuple[Killer, ...]
    fragments: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: Path) -> Mutant:
        """Read a patch's head.

        :raises ValueError: it has no description or no "Killed-by:" line.
        """
        head = path.read_text().partition("\n---\n")[0]
        killers = tuple(Killer(scenario, level or None, sign) for scenario, level, sign in _KILLER.findall(head))
        if not killers or head.startswith("Killed-by"):
            raise ValueError(
                f"{path.name}: no text that tells what it breaks, or no line 'Killed-by: SCENARIO:LEVEL: CLAIM'"
            )
        return cls(path, head.splitlines()[0], killers, tuple(_FRAGMENT.findall(head)))

    def kernel(self, base: str) -> str:
        """The spec of its kernel, which is built here where it has fragments, because no spec can name these."""
        if not self.fragments:
            return f"{base}+{self.path}"
        return str(build_shown(base, (self.path,), self.fragments, "tiny", False, "gcc", False).image)


def first_lines(run: Run) -> str:
    """The first lines that ``hugepfn run`` prints about a run."""
    console = Console(file=io.StringIO(), width=200)
    RunReporter(console).replay(run)
    assert isinstance(console.file, io.StringIO)
    return "".join(console.file.getvalue().splitlines(keepends=True)[:GOLDEN_LINES])


def stable(text: str) -> list[str]:
    """First lines without what differs on other hosts: QEMU, the BAR's address, callers, the number of tables."""
    lines = text.splitlines()[1:]
    return [re.sub(r"0x[0-9a-f]{16}|, from .*|(?<=on freeing mm: )\d+", "...", line) for line in lines]


def recorded(mutant: Mutant, run: Run) -> Run:
    """The part of a run that first lines are made from: no log or folder, and of a passed case only that it passed."""
    results = [
        dataclasses.replace(result, log=(), evidence="")
        if result.outcome is Outcome.FAILED
        else ScenarioResult(result.scenario, result.level, result.outcome, result.reason)
        for result in run.results
    ]
    kept = {key: run.context[key] for key in ("kernel", "qemu", "accel", "smp")}
    return Run(tuple(results), {**kept, "kernel": {**kept["kernel"], "spec": mutant.path.stem}})


def golden(mutant: Mutant, run: Run, record: bool) -> str:
    """What is wrong with the first lines of a mutant's run; "" if they are as recorded, or none were recorded."""
    path = GOLDEN / f"{mutant.path.stem}.txt"
    if record:
        path.with_suffix(".json").write_text(json.dumps(recorded(mutant, run).to_json(), indent=1) + "\n")
        path.write_text(first_lines(recorded(mutant, run)))
    if not path.is_file() or stable(first_lines(recorded(mutant, run))) == stable(path.read_text()):
        return ""
    return f"its first lines are not those of {path.name}"


def mutants(names: Sequence[str] = ()) -> list[Mutant]:
    """Return all mutants, or the named ones, sorted by name."""
    found = [Mutant.read(path) for path in sorted(HERE.glob("*.patch"))]
    unknown = set(names) - {one.path.stem for one in found}
    if unknown:
        raise click.UsageError(f"no mutant {', '.join(sorted(unknown))}; expected names of {HERE}/*.patch")
    return [one for one in found if not names or one.path.stem in names]


def verdict(mutant: Mutant, run: Run) -> tuple[str, str]:
    """Return what happened to a mutant: "killed", "killed by another", "survived" or "error"; and by what, or why."""
    for killer in mutant.killers:
        if not any(killer.kills(result) for result in run.results):
            break
    else:
        return "killed", "; ".join(f"{one.scenario} {one.level or ''}: {one.sign}" for one in mutant.killers)
    if trouble := run.context.get(TROUBLE):
        return "error", str(trouble)
    failed = [one for one in run.results if one.outcome in (Outcome.FAILED, Outcome.ERROR)]
    if not failed:
        return "survived", f"{len(run.results)} cases passed"
    claims = words.broken_claims(failed[0]) or [failed[0].reason]
    return "killed by another", f"{failed[0].scenario} {failed[0].level or ''}: {claims[0]}"


def unit_of(mutant: Mutant, kernel: str, record: bool) -> Unit:
    """What has to run to see whether a mutant is killed.

    :param kernel: the spec of what is mutated.
    :param record: run everything whose first lines are recorded.
    """
    tests = [Selected(None, name) for name in sorted({killer.scenario for killer in mutant.killers})]
    # The first lines are those of a run without a given level.
    whole = record or (GOLDEN / f"{mutant.path.stem}.txt").is_file()
    levels = () if whole else tuple(sorted({killer.level for killer in mutant.killers if killer.level}))
    return Unit(mutant.kernel(kernel), tuple(tests), RunOptions(levels=levels), mutant.path.stem)


@click.command()
@click.argument("names", nargs=-1)
@click.option("--kernel", default="debsrc:6.12", show_default=True, help="what is mutated")
@click.option("--record", is_flag=True, help="write the first lines of the named mutants anew: tests/data/failures")
@click.option("--no-base", is_flag=True, help="do not run everything on the unmutated kernel first")
@click.option("--scheduler", envvar="HUGEPFN_SCHEDULER", default="", help="run on the workers of this Dask scheduler")
def main(names: tuple[str, ...], kernel: str, record: bool, no_base: bool, scheduler: str) -> None:
    """Build and run every mutant. Exit 0 if each is killed as it names, and the unmutated kernel passes."""
    console = Console(highlight=False)
    table = Table("mutant", "breaks", "verdict", "by", "s", box=None, pad_edge=False)
    bad = 0
    chosen = mutants(names)
    units = [unit_of(mutant, kernel, record and bool(names)) for mutant in chosen]
    with Live() as live, executing(live, scheduler) as executor:
        if not no_base:
            base = run_one(executor, Unit(kernel, (), RunOptions(), kernel)).as_run(kernel)
            failed = [one for one in base.results if one.outcome in (Outcome.FAILED, Outcome.ERROR)]
            words = str(base.context.get(TROUBLE, "")) or ", ".join(f"{one.scenario} {one.level}" for one in failed)
            bad += bool(words)
            console.print(f"{kernel} unmutated: {len(base.results)} cases, {words or 'nothing failed'}", soft_wrap=True)
        begin = time.monotonic()
        for number, answer in executor.run(units):
            mutant, run = chosen[number], answer.as_run(units[number].spec)
            what, by = verdict(mutant, run)
            if what == "killed" and (wrong := golden(mutant, run, record and bool(names))):
                what, by = "told otherwise", wrong
            bad += what != "killed"
            row = (mutant.path.stem, mutant.what, what, by, f"{time.monotonic() - begin:.0f}")
            table.add_row(*row)
            console.print(f"{row[0]}: {what} by {by} ({row[-1]} s)", soft_wrap=True, markup=False)
            begin = time.monotonic()
    console.print()
    console.print(table, soft_wrap=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    try:
        main()
    except HugepfnError as error:
        sys.exit(f"hugepfn: {error}")
