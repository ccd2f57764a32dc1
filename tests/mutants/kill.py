"""``make mutants``: kernels that are broken on purpose, each with the claim that must turn red.

    python tests/mutants/kill.py [NAME...] [--kernel debsrc:6.12]

A mutant is a patch. Above its first ``---`` line it says what it breaks and who has to notice::

    fork() write-protects a pud in parent and child, as if it were private.

    Killed-by: fork:pud: the child's entry is writable
    ---

After "Killed-by:" come scenario, level (empty where the scenario knows none) and a text: the name of a claim that must
be broken, the id of an invariant (shadow_stack), or words of the kernel log or of what ended the run. "Fragment: NAME"
names a file of kconfigs/ that the mutant is built with.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from harness.campaign.building import build_shown
from harness.campaign.kernels import RunOptions, run_kernel
from harness.errors import HugepfnError
from harness.selected import Selected
from harness.verdict import Outcome, Run, ScenarioResult, words
from harness.verdict.table import TROUBLE

HERE = Path(__file__).resolve().parent
_FRAGMENT = re.compile(r"^Fragment: (\w+)$", re.MULTILINE)
_KILLER = re.compile(r"^Killed-by: (\w+):(pte|pmd|pud|): (.+)$", re.MULTILINE)


@dataclass(frozen=True)
class Killer:
    """Who must notice a mutant."""

    scenario: str
    level: str | None
    words: str

    def kills(self, result: ScenarioResult) -> bool:
        """Whether this result shows it."""
        if (result.scenario, result.level) != (self.scenario, self.level):
            return False
        broken = [claim.name for claim in result.claims if claim.outcome is Outcome.FAILED]
        broken += [one.invariant.id for one in result.broken]
        said = [line for seen in result.kernel for line in seen.complaints] + [result.reason]
        return self.words in broken or any(self.words in line for line in said)


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

        :raises ValueError: nobody is said to kill it.
        """
        head = path.read_text().partition("\n---\n")[0]
        killers = tuple(Killer(scenario, level or None, words) for scenario, level, words in _KILLER.findall(head))
        if not killers or head.startswith("Killed-by"):
            raise ValueError(f"{path.name}: what it breaks, and a line 'Killed-by: SCENARIO:LEVEL: CLAIM', are missing")
        return cls(path, head.splitlines()[0], killers, tuple(_FRAGMENT.findall(head)))

    def kernel(self, base: str) -> str:
        """What :func:`run_kernel` is given for it; built here where it has fragments, which such a name cannot tell."""
        if not self.fragments:
            return f"{base}+{self.path}"
        return str(build_shown(base, (self.path,), self.fragments, "tiny", False, "gcc", False).image)


def mutants(names: Sequence[str] = ()) -> list[Mutant]:
    """All of them, or those named, by name."""
    found = [Mutant.read(path) for path in sorted(HERE.glob("*.patch"))]
    unknown = set(names) - {one.path.stem for one in found}
    if unknown:
        raise click.UsageError(f"no mutant {', '.join(sorted(unknown))}")
    return [one for one in found if not names or one.path.stem in names]


def verdict(mutant: Mutant, run: Run) -> tuple[str, str]:
    """What became of a mutant: "killed", "killed by another", "survived" or "error"; and by whom, or why."""
    for killer in mutant.killers:
        if not any(killer.kills(result) for result in run.results):
            break
    else:
        return "killed", "; ".join(f"{one.scenario} {one.level or ''}: {one.words}" for one in mutant.killers)
    if trouble := run.context.get(TROUBLE):
        return "error", str(trouble)
    failed = [one for one in run.results if one.outcome in (Outcome.FAILED, Outcome.ERROR)]
    if not failed:
        return "survived", f"{len(run.results)} cases passed"
    claims = words.broken_claims(failed[0]) or [failed[0].reason]
    return "killed by another", f"{failed[0].scenario} {failed[0].level or ''}: {claims[0]}"


@click.command()
@click.argument("names", nargs=-1)
@click.option("--kernel", default="debsrc:6.12", show_default=True, help="what is mutated")
@click.option("--no-base", is_flag=True, help="do not run everything on the unmutated kernel first")
def main(names: tuple[str, ...], kernel: str, no_base: bool) -> None:
    """Builds and runs every mutant; exit 0 when each is killed by whom it names and the unmutated kernel passes."""
    console = Console(highlight=False)
    table = Table("mutant", "breaks", "verdict", "by", "s", box=None, pad_edge=False)
    bad = 0
    if not no_base:
        base = run_kernel(kernel, (), RunOptions())
        failed = [one for one in base.results if one.outcome in (Outcome.FAILED, Outcome.ERROR)]
        words = str(base.context.get(TROUBLE, "")) or ", ".join(f"{one.scenario} {one.level}" for one in failed)
        bad += bool(words)
        console.print(f"{kernel} unmutated: {len(base.results)} cases, {words or 'nothing failed'}", soft_wrap=True)
    for mutant in mutants(names):
        begin = time.monotonic()
        tests = [Selected(None, name) for name in sorted({killer.scenario for killer in mutant.killers})]
        levels = tuple(sorted({killer.level for killer in mutant.killers if killer.level}))
        run = run_kernel(mutant.kernel(kernel), tests, RunOptions(levels=levels))
        what, by = verdict(mutant, run)
        bad += what != "killed"
        row = (mutant.path.stem, mutant.what, what, by, f"{time.monotonic() - begin:.0f}")
        table.add_row(*row)
        console.print(f"{row[0]}: {what} by {by} ({row[-1]} s)", soft_wrap=True, markup=False)
    console.print()
    console.print(table, soft_wrap=True)
    sys.exit(1 if bad else 0)


if __name__ == "__main__":
    try:
        main()
    except HugepfnError as error:
        sys.exit(f"hugepfn: {error}")
