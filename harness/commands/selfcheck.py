"""``hugepfn selfcheck``: checks whether hugepfn can be trusted on this host."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from harness.commands.options import kernel_option, modules_option, qemu_option


@click.command()
@kernel_option
@modules_option
@qemu_option
@click.option("--accel", type=click.Choice(["auto", "kvm", "tcg"]), default="auto", show_default=True)
def selfcheck(kernel: str, modules: Path | None, accel: str) -> None:
    """Check in two minutes whether hugepfn can be trusted on this host, and print a page to paste into a bug report.

    The exit status is 0 if it can be trusted, and 3 if a check failed; the line of that check says what to do.
    """
    from harness.kernel import Kernel
    from harness.selfcheck.checks import run_selfcheck

    said: set[str] = set()

    def say(line: str) -> None:
        if line not in said:
            said.add(line)
            click.echo(f"hugepfn: {line}", err=True)

    image = Kernel.parse(kernel, modules).resolve(say)
    sys.exit(run_selfcheck(image, accel, lambda line: click.echo(line), say))
