"""Which mutants does the explorer notice by itself, without the scenarios: ``make explore-mutants``.

    python tests/mutants/explore.py [--minutes 5] [--seed 1] [--race] [NAME...]

Each mutant's kernel is explored until something is found that is no known bug, or the time is over. The unmutated
kernel comes first, for the whole time: what is found there is a false alarm, or a bug that is not in the list, and no
mutant counts as noticed by it.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Sequence

import click
from rich.console import Console
from rich.table import Table

from harness.campaign.progress import Live
from harness.commands.explore import verbs_of
from harness.config import MachineConfig
from harness.errors import HugepfnError
from harness.explorer.campaign import Progress, run_exploration
from harness.explorer.groups import Group, Groups
from harness.explorer.worker import Exploration
from harness.guest.compiler import guest_tests_dir
from harness.model.operation import Verb
from harness.selection.tests import bugs_of
from tests.mutants.kill import mutants


class _FoundError(Exception):
    """Something is found, so the exploration is over."""


def first_finding(
    spec: str, minutes: float, seed: int, verbs: Sequence[Verb], false_alarms: Sequence[str]
) -> tuple[Group | None, Progress]:
    """Explore a kernel until there is a finding that is no known bug and no false alarm."""
    with Live() as live:
        task = Exploration.prepared(MachineConfig(kernel=spec), seed, 10, verbs, live.say)
        groups = Groups(bugs_of(guest_tests_dir(), task.kernel.release))
        progress = Progress(groups)

        def tell(_progress: Progress, _line: str) -> None:
            live.now(str(progress))
            if any(one.symptom not in false_alarms for one in groups.new):
                raise _FoundError

        with contextlib.suppress(_FoundError):
            run_exploration(task, progress, minutes, 2, tell)
    return next((one for one in groups.new if one.symptom not in false_alarms), None), progress


@click.command()
@click.argument("names", nargs=-1)
@click.option("--kernel", default="debsrc:6.12", show_default=True, help="what is mutated")
@click.option("--minutes", default=5.0, show_default=True, help="the most for each kernel")
@click.option("--seed", default=1, show_default=True)
@click.option("--race", is_flag=True, help="as of hugepfn explore")
@click.option("--no-base", is_flag=True, help="do not explore the unmutated kernel first")
def main(names: tuple[str, ...], kernel: str, minutes: float, seed: int, race: bool, no_base: bool) -> None:
    """Explore every mutant, or the named ones."""
    console = Console(highlight=False)
    verbs = verbs_of("", race=race)
    false_alarms: list[str] = []
    if not no_base:
        _, progress = first_finding(kernel, minutes, seed, verbs, ())
        false_alarms = [one.symptom for one in progress.groups.new]
        told = ", ".join(false_alarms) or "nothing but known bugs"
        console.print(f"{kernel} unmutated, {progress.sequences} sequences: {told}", soft_wrap=True)
    table = Table("mutant", "verdict", "by", "sequences", "s", box=None, pad_edge=False)
    killed = 0
    for mutant in mutants(names):
        spec = mutant.kernel(kernel)
        begin = time.monotonic()
        found, progress = first_finding(spec, minutes, seed, verbs, false_alarms)
        killed += found is not None
        took = f"{time.monotonic() - begin:.0f}"
        row = (mutant.path.stem, "killed" if found else "survived", found.symptom if found else "")
        table.add_row(*row, str(progress.sequences), took)
        console.print(f"{' '.join(row)} ({progress.sequences} sequences, {took} s)", soft_wrap=True, markup=False)
    console.print(table, soft_wrap=True)
    console.print(f"{killed} of {len(table.rows)} killed")
    sys.exit(0)


if __name__ == "__main__":
    try:
        main()
    except HugepfnError as error:
        sys.exit(f"hugepfn: {error}")
