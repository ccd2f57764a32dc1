"""``hugepfn kselftest``."""

from __future__ import annotations

import sys
from typing import Any

import click

from harness.commands.options import FILE, config_options
from harness.config import MachineConfig


@click.command()
@click.argument("tests", nargs=-1, required=True, metavar="COLLECTION[:TEST]...")
@click.option(
    "--source", metavar="SPEC", help="debsrc:VERSION[+PATCH...], tree:PATH[@REV][+PATCH...]  [default: the kernel's]"
)
@click.option("--junit", type=FILE, help="write a JUnit report to this file")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), metavar="S", help="seconds that a program may take")
@config_options()
@click.option("--pytest", "pytest_args", multiple=True, metavar="ARG", help="one more argument for pytest: --pytest=-x")
def kselftest(tests: tuple[str, ...], config: MachineConfig, **options: Any) -> None:
    """Build the kernel's own selftests, and run them in the guest.

    COLLECTION is a folder of tools/testing/selftests (mm, vfio). TEST is one of its programs, optionally with
    arguments: mm:soft-dirty, "mm:gup_test -u". Each program runs in its own machine, and each of its test points is
    reported.
    """
    import pytest
    from rich.console import Console

    from harness.kselftest.report import KselftestReporter
    from harness.kselftest.session import run_kselftest

    # The stream is passed on explicitly, because pytest replaces sys.stdout while a test runs.
    reporter = KselftestReporter(Console(file=sys.stdout, highlight=False))
    sys.exit(run_kselftest(pytest, reporter, tests, config, options))
