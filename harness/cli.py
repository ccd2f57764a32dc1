"""The command ``hugepfn``."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from harness.commands import live, look
from harness.commands.build import build
from harness.commands.kselftest import kselftest
from harness.commands.many import compare, matrix
from harness.commands.options import kernel_option, modules_option, scenario_options, scenarios_argument
from harness.commands.patches import check, series
from harness.errors import ExitCode, HugepfnError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="hugepfn")
def cli() -> None:
    """Boot a real kernel, fork over huge pfnmaps, and read the answer from the page tables.

    Exit status: 0 all claims held, 1 a claim failed or the kernel died, 2 usage, 3 the machinery failed.
    """


@cli.command()
@scenarios_argument
@kernel_option
@scenario_options
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="write the results there")
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="write a JUnit report there")
@click.option("--keep-vm", is_flag=True, help="keep the machine of a failed test, for `hugepfn shell NAME`")
@click.option("--quiet", "-q", is_flag=True, help="claims and verdicts only, no entries")
@click.option("--pytest", "pytest_args", multiple=True, metavar="ARG", help="one more argument for pytest: --pytest=-x")
def run(scenarios: tuple[str, ...], **options: object) -> None:
    """Run scenarios on a kernel, and print every entry at every checkpoint.

    Without SCENARIO, all of them. `hugepfn list` names them.
    """
    import pytest

    from harness.campaign.reporter import QuietOnBrokenPipe, RunReporter
    from harness.campaign.session import run_session

    # A copy of stdout, since pytest takes the descriptor itself while a test runs.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as stdout:
        reporter = RunReporter(QuietOnBrokenPipe(file=stdout, highlight=False), entries=not options["quiet"])
        status = run_session(pytest, reporter, scenarios, options)
        if reporter.console.quiet and not options["quiet"]:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stdout.fileno())  # for what is still in the buffer
    sys.exit(status)


cli.add_command(matrix)
cli.add_command(build)
cli.add_command(compare)
cli.add_command(series)
cli.add_command(check)
cli.add_command(kselftest)


for command in (*live.COMMANDS, *look.COMMANDS):
    cli.add_command(command)


@cli.command("list")
def list_scenarios() -> None:
    """Name each scenario with its levels, its claim and the kernel's functions that decide it."""
    from harness.campaign.session import scenario_lines

    lines = scenario_lines()
    console = Console(highlight=False)
    for line in lines:
        console.print(f"[bold]{line.name}[/bold]  [cyan]{line.levels}[/cyan]", soft_wrap=True)
        console.print(f"    {escape(line.claim)}", soft_wrap=True)
        console.print(f"    [dim]{escape(line.decided_by)}[/dim]", soft_wrap=True)
    console.print(f"{len(lines)} scenarios, {sum(len(line.levels.split()) or 1 for line in lines)} cases")


@cli.command()
@click.option("--refresh", is_flag=True, help="ask the mirror again")
@click.option("--all", "show_all", is_flag=True, help="every version, not only the newest of each series and suite")
def kernels(refresh: bool, show_all: bool) -> None:
    """Show what the mirror offers and what is cached."""
    from harness.kernel import available

    table = Table(box=None, pad_edge=False)
    for heading in ("spec", "release", "suite", "cached"):
        table.add_column(heading, no_wrap=True)
    shown = set()
    for offer in available(_stderr, refresh=refresh):
        series = (".".join(offer.upstream.split(".")[:2]), offer.suite)
        if show_all or offer.cached or series not in shown:
            shown.add(series)
            table.add_row(f"debian:{offer.upstream}", offer.release, offer.suite, "yes" if offer.cached else "")
    Console(highlight=False, width=100).print(table, soft_wrap=True)


@cli.command()
@kernel_option
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="how often each pair is run")
@modules_option
@click.option("--clones", type=click.IntRange(1), default=50, show_default=True, help="so many in a row")
@click.option("--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="keep the figures there")
@click.option("--builds", metavar="SOURCE", help="CPU seconds of kernel builds instead: debsrc:6.12; takes an hour")
def bench(
    kernel: str, modules: Path | None, rounds: int, clones: int, json_file: Path | None, builds: str | None
) -> None:
    """Measure hugepfn beside its rivals, in turn, in one run."""
    if builds is not None:
        from harness.campaign.bench_build import bench_builds

        bench_builds(builds, rounds)
        return
    from harness.campaign.bench import bench as measure

    measure(kernel, modules, rounds, clones, json_file)


@cli.command()
@click.option("--missing", is_flag=True, help="print the missing packages, nothing else")
@click.option("--refresh", is_flag=True, help="try KVM anew; its proof is otherwise kept until the host boots again")
def doctor(missing: bool, refresh: bool) -> None:
    """Show what is missing on this machine, and the command that mends it."""
    from harness.machine.accel import forget_proofs

    if refresh:
        forget_proofs()
    from harness.doctor import examine
    from harness.packages import mending_command, translated

    findings, packages = examine()
    if missing:
        click.echo(" ".join(translated(packages)))
        return
    console = Console(highlight=False)
    for finding in findings:
        mark = (
            "[green]ok[/green]     "
            if finding.fine
            else "[red]missing[/red]"
            if finding.required
            else "[yellow]note[/yellow]   "
        )
        console.print(f"{mark} {finding.what}: {escape(finding.detail)}", soft_wrap=True)
    if packages:
        console.print(f"\nTo mend it: [bold]{mending_command(packages)}[/bold]", soft_wrap=True)
    if any(finding.required and not finding.fine for finding in findings):
        sys.exit(ExitCode.MACHINERY)


def _stderr(line: str) -> None:
    click.echo(f"hugepfn: {line}", err=True)


def _interrupt(_number: int, _frame: object) -> None:
    """A polite end from outside is Ctrl-C: everything is cleaned up on the way out."""
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The entry point: one line for every error that is ours, no traceback."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        cli.main(args=list(argv) if argv is not None else None, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except (click.Abort, KeyboardInterrupt):
        click.echo("hugepfn: interrupted", err=True)
        sys.exit(ExitCode.INTERRUPTED)
    except HugepfnError as error:
        click.echo(f"hugepfn: {error}", err=True)
        sys.exit(error.exit_code)
    sys.exit(ExitCode.OK)
