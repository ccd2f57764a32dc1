"""``hugepfn report``: the mail that reports a known bug. ``hugepfn reproducer``: a scenario as a C file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from harness.commands.options import FILE, TEST, config_options
from harness.config import MachineConfig
from harness.errors import MachineryError, UsageError, did_you_mean

if TYPE_CHECKING:
    from harness.selection.selected import Selected
    from harness.verdict.known_bugs import KnownBug


@click.command()
@click.argument("bug", metavar="HP-nnn")
@click.option("--kernel", "-k", metavar="SPEC", help="as for run  [default: the one that the list of known bugs names]")
@config_options(without=["kernel"])
def report(bug: str, kernel: str | None, config: MachineConfig) -> None:
    """Write the mail that reports a known bug to the kernel's maintainers.

    The bug is shown on the kernel first, and the mail has what was seen: the entries at each stop, what does not hold,
    the kernel log, the kernels that have the bug, and a program that shows it without hugepfn.

    Exit status 0: the mail was written. 3: the bug does not show on this kernel, so there is nothing to report.
    """
    from harness.bugs import report as text
    from harness.campaign.kernels import RunOptions
    from harness.campaign.mail import mail
    from harness.campaign.progress import Live
    from harness.campaign.units.executing import executing
    from harness.campaign.units.unit import Unit, run_one
    from harness.guest.compiler import guest_tests_dir
    from harness.selection.selected import Selected
    from harness.selection.tests import facts_of, ledger_of

    known = _known(bug, ledger_of(guest_tests_dir()))
    shows = text.Reproduction.of(known)
    spec = kernel or shows.kernel
    if not spec:
        raise UsageError(f"{known.id} needs --kernel; the kernel that shows it is built first: {known.reproduce}")
    options = RunOptions(config, (shows.level,) if shows.level else ())
    with Live() as live, executing(live) as executor:
        run = run_one(executor, Unit(spec, (Selected(None, shows.scenario, shows.level),), options, spec)).checked()
    found = text.shown_in(known, run)
    if found is None:
        raise MachineryError(f"{known.id} does not show on {spec}, so there is nothing to report; try another --kernel")
    lines = text.report_lines(known, found, run, facts_of(guest_tests_dir()).of(known.id))
    click.echo(mail(lines, run, text.command_of(known, spec)))
    program = guest_tests_dir().parent / f"reproducers/{known.id}.c"
    click.echo("\n".join(text.attached(program.name, program.read_text())))


@click.command()
@click.argument("word", metavar="SCENARIO[:LEVEL]", type=TEST)
@click.option("--output", "-o", type=FILE, help="write to this file  [default: standard output]")
def reproducer(word: Selected, output: Path | None) -> None:
    """Write a scenario as one C file of plain system calls, which needs nothing of hugepfn.

    \b
        hugepfn reproducer fork:pud -o fork.c
        gcc -static -pthread -o fork fork.c
        hugepfn exec --kernel debian:6.12 ./fork {bdf}

    The first comment of the file says what is claimed, and how to run it. Its exit status says whether the kernel is
    fine (0) or broken (1), wherever user space can tell, and otherwise 2.
    """
    from harness.bugs.scenario import reproducer_of
    from harness.outputs import check_writable, write_text

    check_writable({"--output": output})
    text = reproducer_of(word)
    if output is None:
        click.echo(text, nl=False)
    write_text(output, lambda: text)


def _known(word: str, ledger: tuple[KnownBug, ...]) -> KnownBug:
    names = [bug.id for bug in ledger]
    if word.upper() not in names:
        raise UsageError(
            f"no known bug is called {word!r}{did_you_mean(word.upper(), names)} {names[0]} to {names[-1]}"
        )
    return ledger[names.index(word.upper())]
