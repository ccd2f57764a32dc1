"""``hugepfn matrix`` and ``hugepfn compare``: the suite on several kernels."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from harness.commands.options import (
    campaign_options,
    mail_option,
    page_request,
    report_options,
    resume_option,
    run_options,
    tests_argument,
)
from harness.config import MachineConfig

if TYPE_CHECKING:
    from harness.selection.selected import Selected


@click.command()
@tests_argument
@click.option(
    *("--kernel", "-k", "kernels"),
    multiple=True,
    required=True,
    metavar="SPEC",
    help="a kernel; may be repeated; all-stock: the newest of each series that the mirror has",
)
@campaign_options
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="number of runs of everything")
@resume_option
@report_options("the table and every run")
def matrix(words: tuple[Selected, ...], kernels: tuple[str, ...], config: MachineConfig, **options: Any) -> None:
    """Run tests on many kernels, and print a table.

    With --repeat, a cell whose repeats differ is a flake. The exit status is that of `hugepfn run`.
    """
    from harness.campaign.matrix import run_matrix

    files = options["json_file"], page_request(options)
    sys.exit(run_matrix(kernels, words, run_options(config, options), options["repeat"], *files, options["resume"]))


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@tests_argument
@campaign_options
@click.option(
    "--confirm",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="how often to run again what differs; only what differs every time counts",
)
@mail_option
@resume_option
@report_options("the differences")
def compare(before: str, after: str, words: tuple[Selected, ...], config: MachineConfig, **options: Any) -> None:
    """Run tests on kernels A and B, and show what differs.

    The exit status is 0 if nothing differs, 1 if something does, and otherwise that of `hugepfn run`.
    """
    from harness.campaign.compare import run_compare

    files = options["json_file"], page_request(options)
    sys.exit(
        run_compare(before, after, words, run_options(config, options), options["confirm"], *files, options["resume"])
    )
