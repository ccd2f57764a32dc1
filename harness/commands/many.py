"""``hugepfn matrix`` and ``hugepfn compare``: the suite on several kernels."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from harness.commands.options import machine_options, scenarios_argument

_FILE = click.Path(path_type=Path, dir_okay=False)
_html_option = click.option("--html", "html_file", type=_FILE, help="write one self-contained page there")


@click.command()
@scenarios_argument
@click.option(
    *("--kernel", "-k", "kernels"),
    multiple=True,
    required=True,
    metavar="SPEC",
    help="a kernel, may be repeated; all-stock: the newest of each series that the mirror has",
)
@machine_options
@click.option("--repeat", type=click.IntRange(1), default=1, show_default=True, help="run everything so often")
@click.option("--json", "json_file", type=_FILE, help="write the table and every run there")
@_html_option
def matrix(scenarios: tuple[str, ...], kernels: tuple[str, ...], **options: Any) -> None:
    """Run scenarios on many kernels, and print the table of what became of them.

    With --repeat, a cell whose repeats differ is a flake. Exit status as of `hugepfn run`.
    """
    from harness.campaign.matrix import run_matrix

    files = options.pop("json_file"), options.pop("html_file")
    sys.exit(run_matrix(kernels, scenarios, run_options(options), options["repeat"], *files))


@click.command()
@click.argument("before", metavar="A")
@click.argument("after", metavar="B")
@scenarios_argument
@machine_options
@click.option(
    "--confirm",
    type=click.IntRange(0),
    default=2,
    show_default=True,
    help="run what differs so often again; only what differs every time counts",
)
@click.option("--json", "json_file", type=_FILE, help="write the differences there")
@_html_option
def compare(before: str, after: str, scenarios: tuple[str, ...], **options: Any) -> None:
    """Run scenarios on kernels A and B, and show only what differs.

    Exit status: 0 they do the same, 1 they differ, 2 usage, 3 the machinery failed.
    """
    from harness.campaign.compare import run_compare

    files = options.pop("json_file"), options.pop("html_file")
    sys.exit(run_compare(before, after, scenarios, run_options(options), options["confirm"], *files))


def run_options(options: dict[str, Any]) -> Any:
    """The options of :func:`harness.commands.options.machine_options` as a value."""
    from harness.campaign.kernels import RunOptions

    return RunOptions(
        levels=options["levels"],
        accel=options["accel"],
        smp=options["smp"],
        memory_mib=options["memory"],
        cpu=options["cpu"],
        append=options["append"],
        ram_dir=options["ram_dir"],
        boot_timeout_s=options["boot_timeout"],
        workers=options["workers"],
        pvh=options["pvh"],
        no_clone=options["no_clone"],
        strict=options["strict"],
        modules=options["modules"],
    )
