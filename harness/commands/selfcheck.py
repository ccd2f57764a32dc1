"""``hugepfn selfcheck``: checks whether hugepfn can be trusted on this host."""

from __future__ import annotations

import sys

import click

from harness.commands.options import config_options
from harness.config import MachineConfig


@click.command()
@config_options("kernel", "modules", "qemu", "accel")
def selfcheck(config: MachineConfig) -> None:
    """Check whether hugepfn can be trusted on this host.

    It takes two minutes, and prints a page to paste into a bug report. The exit status is 0 if hugepfn can be trusted,
    and 3 if a check failed; the line of that check says what to do.
    """
    from harness.events import Sparing
    from harness.machine.preparation import resolve
    from harness.selfcheck.checks import run_selfcheck

    say = Sparing(lambda line: click.echo(f"hugepfn: {line}", err=True))
    sys.exit(run_selfcheck(resolve(config, say), config, lambda line: click.echo(line), say))
