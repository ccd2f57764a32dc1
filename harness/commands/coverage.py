"""``hugepfn coverage``: which lines of a kernel did the tests execute?"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import FILE, config_options, level_option, tests_argument
from harness.config import MachineConfig
from harness.errors import ExitCode

if TYPE_CHECKING:
    from harness.coverage.measure import MeasuredKernel
    from harness.selection.selected import Selected


@click.command()
@tests_argument
@level_option
@click.option(
    "--workers", "-n", type=click.IntRange(1), default=1, show_default=True, help="number of tests that run at once"
)
@click.option("--file", "files", multiple=True, metavar="PATH", help="all functions of this file, too: mm/mremap.c")
@click.option(
    "--fragment", "-f", "fragments", multiple=True, metavar="NAME|FILE", help="a further fragment, as for `build`"
)
@click.option("--removed", is_flag=True, help="the lines that the patch takes away, on the kernel without it")
@click.option("--json", "json_file", type=FILE, help="write what was executed to this file")
@click.option(
    "--html",
    "html_folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="write a page for each file into this folder (needs gcovr: pip install 'hugepfn[coverage]')",
)
@config_options()
def coverage(words: tuple[Selected, ...], config: MachineConfig, **options: Any) -> None:
    """Show which lines of a patch, and of the functions that claims name, the tests execute.

    The kernel has to be one that is built: --kernel tree:PATH+PATCH, debsrc:6.12. It is built once more, such that it
    counts the lines of the files in question. Lines of the patch that nothing executed come first, then each function
    with its share. Of a patch that only takes lines away, these lines are measured on the kernel without it.

    Exit status 0: every line of the patch was executed. 1: at least one was not.
    """
    import json

    from harness.coverage.measure import CoverageRequest, measure
    from harness.coverage.page import check_page, write_page
    from harness.coverage.report import lines_of
    from harness.events import Sparing
    from harness.machine.preparation import kernel_of
    from harness.outputs import check_writable, write_text

    if options["html_folder"] is not None:
        check_page()
    check_writable({"--json": options["json_file"]})
    spec = kernel_of(config).spec
    request = CoverageRequest(spec, words, options["files"], options["removed"], options["fragments"])
    say = Sparing(lambda line: click.echo(f"hugepfn: {line}", err=True))

    def execute(image: Path, folder: Path) -> None:
        _run(words, replace(config, kernel=str(image)), options, folder)

    measured = measure(request, execute, say)
    click.echo("\n".join(["", *lines_of(measured.report, measured.what, patched=measured.patched)]))
    for one in measured.lost:
        click.echo(f"the counts of this test are lost: {one}")
    write_text(options["json_file"], lambda: json.dumps(_json(spec, measured), indent=1) + "\n")
    if options["html_folder"] is not None:
        write_page(measured.counts, sorted(measured.counts), measured.export, options["html_folder"])
        click.echo(f"the page: {options['html_folder'] / 'index.html'}")
    sys.exit(ExitCode.CLAIM_FAILED if measured.report.missed else ExitCode.OK)


def _run(words: tuple[Selected, ...], config: MachineConfig, options: dict[str, Any], folder: Path) -> None:
    """Run the tests. How they end is told, and does not matter."""
    import pytest
    from rich.console import Console

    from harness.campaign.reporter import RunReporter
    from harness.campaign.session import run_session

    plugin = ["-p", "harness.coverage.plugin", f"--hugepfn-coverage={folder}"]
    plain: dict[str, Any] = {"expected": (), "expect_files": (), "strict": False, "keep_vm": False, "junit": None}
    asked = {"levels": options["levels"], "workers": options["workers"], "json_file": None, "pytest_args": plugin}
    reporter = RunReporter(Console(file=sys.stdout, highlight=False), quiet=True, details=False)
    run_session(pytest, reporter, words, config, {**plain, **asked})


def _json(spec: str, measured: MeasuredKernel) -> dict[str, Any]:
    from harness.coverage.report import SCHEMA, VERSION

    return {
        "schema": SCHEMA,
        "version": VERSION,
        "kernel": {"spec": spec, "release": measured.release},
        "lines": measured.what,
        **measured.report.to_json(),
        "lost": list(measured.lost),
    }
