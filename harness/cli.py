"""The command ``hugepfn``."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import click

from harness.commands.bisect import bisect
from harness.commands.bugs import report, reproducer
from harness.commands.build import build
from harness.commands.cache import cache
from harness.commands.coverage import coverage
from harness.commands.dmesg import dmesg
from harness.commands.explore import explore
from harness.commands.inspect import gdb, maps, walk
from harness.commands.kselftest import kselftest
from harness.commands.live import exec_, rerun, shell, ssh
from harness.commands.matrix import compare, matrix
from harness.commands.options import config_options, scenario_options, tests_argument
from harness.commands.patches import check, series
from harness.commands.scenarios import list_scenarios
from harness.commands.selfcheck import selfcheck
from harness.commands.sessions import kept, log, pause, ps, resume, serve_session, start, stop
from harness.commands.units import run_unit
from harness.config import MachineConfig
from harness.ending import explain
from harness.errors import ExitCode, HugepfnError, MachineryError
from harness.host.signals import handle
from harness.outputs import print_table, standard_streams

if TYPE_CHECKING:
    from harness.selection.selected import Selected


class CommandSection(NamedTuple):
    """Commands that belong together in ``hugepfn --help``."""

    title: str
    commands: tuple[click.Command, ...]
    example: str


class _Commands(click.Group):
    """hugepfn's commands. Click alone would turn an EPIPE or EOFError into exit status 1 or an interrupt."""

    def format_commands(self, _ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the commands in sections, each with an example."""
        width = max(len(str(command.name)) for section in SECTIONS for command in section.commands)
        for section in SECTIONS:
            rows = [
                (str(command.name).ljust(width), command.get_short_help_str(formatter.width - 4 - width))
                for command in section.commands
            ]
            with formatter.section(section.title):
                formatter.write_dl(rows)
                formatter.write(f"{'':{formatter.current_indent}}Example: {section.example}\n")

    def invoke(self, ctx: click.Context) -> Any:
        """Report unexpected errors here, before click handles them."""
        try:
            return super().invoke(ctx)
        except (OSError, EOFError) as error:
            raise MachineryError(explain(error)) from error
        except KeyboardInterrupt as error:  # click would print an empty line
            raise click.Abort from error


_EPILOG = f"Exit status: {'; '.join(f'{code.value} {code.meaning}' for code in ExitCode)}."


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]}, epilog=_EPILOG)
@click.version_option(package_name="hugepfn")
def cli() -> None:
    """Boot a real kernel, fork over huge pfnmaps, and read the answer from the page tables."""


@click.command()
@tests_argument
@scenario_options
@config_options()
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="write the results to this file"
)
@click.option("--junit", type=click.Path(path_type=Path, dir_okay=False), help="write a JUnit report to this file")
@click.option("--keep-vm", is_flag=True, help="keep the machine of a failed test, for `hugepfn shell --kept NAME`")
@click.option(
    "--events", type=click.Path(path_type=Path), help="write each event to this file as it happens: docs/events.md"
)
@click.option("--quiet", "-q", is_flag=True, help="one line per case")
@click.option("--pytest", "pytest_args", multiple=True, metavar="ARG", help="one more argument for pytest: --pytest=-x")
def run(words: tuple[Selected, ...], config: MachineConfig, events: Path | None, **options: object) -> None:
    """Run tests on a kernel, and print the page-table entries.

    The entries are those at every checkpoint. Tests that failed come first. Without TEST, only tests that fail show
    their entries.

    TEST is a scenario (`hugepfn list` names them; without TEST, all of them), optionally at one level: fork, fork:pud.
    Or it is a test file of your own, optionally with one of its tests and a level: ./mine/test_mine.py::test_mine:pud.
    conftest.py, Python modules and guest programs are found beside it.
    """
    import pytest
    from rich.console import Console

    from harness.campaign import event_stream
    from harness.campaign.reporter import RunReporter
    from harness.campaign.session import run_session

    # This stream is kept, because pytest replaces sys.stdout while a test runs.
    console = Console(file=sys.stdout, highlight=False)
    reporter = RunReporter(console, quiet=bool(options["quiet"]), details=bool(words))
    with event_stream.writing(events) as say:
        sys.exit(run_session(pytest, reporter, words, config, options, say))


@click.command()
@click.option("--refresh", is_flag=True, help="ask the mirror again")
@click.option("--all", "show_all", is_flag=True, help="every version, not only the newest of each series and suite")
def kernels(refresh: bool, show_all: bool) -> None:
    """Show what the mirror offers and what is cached."""
    from rich.console import Console
    from rich.table import Table

    from harness.events import Sparing
    from harness.kernel import available

    table = Table(box=None, pad_edge=False)
    for heading in ("spec", "release", "suite", "cached"):
        table.add_column(heading, no_wrap=True)
    shown = set()
    for offer in available(Sparing(_stderr), refresh=refresh):
        series = (".".join(offer.upstream.split(".")[:2]), offer.suite)
        if show_all or offer.cached or series not in shown:
            shown.add(series)
            table.add_row(f"debian:{offer.upstream}", offer.release, offer.suite, "yes" if offer.cached else "")
    print_table(Console(highlight=False, markup=False, emoji=False, width=100), table)


@click.command()
@config_options("kernel", "modules")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="how often each pair is run")
@click.option(
    "--clones",
    type=click.IntRange(1),
    default=50,
    show_default=True,
    help="number of clones that are started one after another",
)
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path, dir_okay=False), help="write the figures to this file"
)
@click.option(
    "--builds", metavar="SOURCE", help="measure kernel builds of this source instead (debsrc:6.12), for an hour"
)
@click.option(
    "--beside",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="measure another checkout of hugepfn alternately instead",
)
def bench(
    config: MachineConfig, rounds: int, clones: int, json_file: Path | None, builds: str | None, beside: Path | None
) -> None:
    """Measure hugepfn and its rivals alternately, in one run."""
    if beside is not None:
        from harness.benchmark.beside import bench_beside

        bench_beside(beside, config, rounds)
        return
    if builds is not None:
        from harness.benchmark.builds import bench_builds

        bench_builds(builds, rounds)
        return
    from harness.benchmark.bench import bench as measure

    measure(config, rounds, clones, json_file)


@click.command()
@click.option("--missing", is_flag=True, help="print only the names of the missing packages")
@click.option("--refresh", is_flag=True, help="try KVM again; the result is otherwise kept until the host reboots")
def doctor(missing: bool, refresh: bool) -> None:
    """Show what is missing on this host, and how to install it."""
    from rich.console import Console
    from rich.markup import escape

    from harness.qemu.accel import forget_proofs

    if refresh:
        forget_proofs()
    from harness.doctor import examine
    from harness.host.packages import mending_command, translated

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
        console.print(f"{mark} {escape(finding.what)}: {escape(finding.detail)}", soft_wrap=True)
    if packages:
        console.print(f"\nTo fix this: [bold]{mending_command(packages)}[/bold]", soft_wrap=True)
    if any(finding.required and not finding.fine for finding in findings):
        sys.exit(ExitCode.MACHINERY)


def _show_log(_context: click.Context, _parameter: click.Parameter, verbosity: int) -> None:
    from harness import logs

    logs.show(verbosity) if verbosity else logs.show_as_parent()


SECTIONS = (
    CommandSection("Verdicts", (run, list_scenarios, kselftest), "hugepfn run fork --level pud"),
    CommandSection("Kernels", (kernels, build), "hugepfn build ~/linux --patch fix.patch"),
    CommandSection(
        "Campaigns", (matrix, compare, series, bisect, check), "hugepfn compare debian:6.12 tree:~/linux fork"
    ),
    CommandSection(
        "Live machines",
        *((start, ps, shell, ssh, exec_, rerun, walk, maps, gdb, pause, resume, log, stop, kept),),
        "hugepfn start --kernel debian:6.12; hugepfn exec ./program; hugepfn stop",
    ),
    CommandSection("Bugs", (explore, reproducer, report), "hugepfn explore --kernel debian:6.12 --minutes 10"),
    CommandSection("Tools", (dmesg, coverage, doctor, selfcheck, cache, bench), "hugepfn doctor"),
)

for command in (*(command for section in SECTIONS for command in section.commands), serve_session, run_unit):
    cli.add_command(command)
    click.option(
        *("--verbose", "-v"),
        count=True,
        is_eager=True,
        expose_value=False,
        callback=_show_log,
        help="show QEMU's command line and what was cached; -vv also shows every protocol step with its time",
    )(command)


def _stderr(line: str) -> None:
    click.echo(f"hugepfn: {line}", err=True)


def _interrupt(_number: int, _frame: object) -> None:
    """Treat SIGTERM like Ctrl-C, so that everything is cleaned up."""
    raise KeyboardInterrupt


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run the command: one line for every error, no traceback, and an exit status of :class:`ExitCode`."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        handle(number, _interrupt)
    words = list(sys.argv[1:] if argv is None else argv)
    with standard_streams() as stdout:
        status, judged = _run(words)
        if stdout.lost:
            _stderr(f"standard output cannot be written: {stdout.lost}; the output is incomplete")
            status, judged = (status or ExitCode.MACHINERY), judged and bool(status)
    if words[:1] == ["check"] and not judged:
        status = ExitCode.STOP  # git takes 1 to 127 for a bad commit
    sys.exit(status)


def _usage_error(error: click.ClickException) -> str:
    """Return click's message in hugepfn's form: one line, with the command that explains more."""
    said = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    where = context.command_path if context is not None else "hugepfn"
    return f"{said[:1].lower()}{said[1:]} (see `{where} --help`)"


def _run(words: list[str]) -> tuple[int, bool]:
    """Run a command; return its exit status, and whether that is its verdict or its program's status, not an error."""
    try:
        status = cli.main(args=words, prog_name="hugepfn", standalone_mode=False)
    except SystemExit as ended:
        return (ended.code, True) if isinstance(ended.code, int) else (ExitCode.MACHINERY, False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE, False
    except click.ClickException as error:
        _stderr(_usage_error(error))
        return ExitCode.USAGE, False
    except (click.Abort, KeyboardInterrupt):
        _stderr("interrupted")
        return ExitCode.INTERRUPTED, False
    except BaseException as error:
        _stderr(explain(error))
        return error.exit_code if isinstance(error, HugepfnError) else ExitCode.MACHINERY, False
    return status or ExitCode.OK, True
