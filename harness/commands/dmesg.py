"""``hugepfn dmesg``: what a kernel log complains about."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from harness.errors import ExitCode

if TYPE_CHECKING:
    from harness.verdict.log.complaints import Complaint
    from harness.verdict.log.taint import Taint

_PIECE_BYTES = 1 << 20


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, readable=True))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object: docs/schemas/hugepfn-dmesg.schema.json")
def dmesg(file: str, as_json: bool) -> None:
    """Name what a kernel log complains about: oopses, warnings, lockups, sanitizers' reports.

    FILE is the log of any kernel, as a console, dmesg, journalctl -k or /dev/kmsg shows it; - reads standard input.
    Each report has a title that is the same wherever the same bug is met ("WARNING in FUNC"), the function to blame,
    the process, the CPU, the kernel's taint, and its lines in the log. A corrupted report was cut off or mixed with
    others.

    Exit status 0: the log has no report. 1: it has some. 2: there is no such file.
    """
    from harness.printable import PrintableDecoder
    from harness.verdict.log.complaints import SCHEMA, VERSION
    from harness.verdict.log.scanner import ReportStream

    stream, decoder, found = ReportStream(), PrintableDecoder(), 0
    if as_json:
        click.echo(f'{{"schema": "{SCHEMA}", "version": {VERSION}, "reports": [', nl=False)
    for piece in _pieces(file):
        for report in stream.finish() if piece is None else stream.feed(decoder.feed(piece)):
            if as_json:
                click.echo(("," if found else "") + "\n" + json.dumps(report.to_json()), nl=False)
            else:
                click.echo(("\n" if found else "") + "\n".join(_report_lines(report)))
            found += 1
    if as_json:
        click.echo("\n]}" if found else "]}")
    elif not found:
        click.echo("the log has no report")
    sys.exit(ExitCode.CLAIM_FAILED if found else ExitCode.OK)


def _pieces(file: str) -> Iterator[bytes | None]:
    """What the file has, as it arrives; None at its end."""
    descriptor = 0 if file == "-" else os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while piece := os.read(descriptor, _PIECE_BYTES):
            yield piece
    finally:
        if file != "-":
            os.close(descriptor)
    yield None


def _report_lines(complaint: Complaint) -> tuple[str, ...]:
    """One complaint as lines for a reader: its title, and below what is known of it."""
    task = complaint.task
    process = f"{task.comm or 'process'}{'' if task.pid is None else f'/{task.pid}'}" if task.comm or task.pid else ""
    rows = (
        ("kind", complaint.kind.value),
        ("function", f"{complaint.frame}()" if complaint.frame else ""),
        ("process", process),
        ("cpu", "" if task.cpu is None else str(task.cpu)),
        ("taint", _taint(task.taint)),
        ("lines", f"{complaint.begin}-{complaint.end}"),
        ("corrupted", complaint.damage.value if complaint.damage else ""),
    )
    return (complaint.title, *(f"  {name:<9}  {value}" for name, value in rows if value))


def _taint(taint: Taint | None) -> str:
    from harness.verdict.log.taint import describe, letters

    if taint is None:
        return ""
    return f"{letters(taint)} ({'; '.join(line.partition(': ')[2] for line in describe(taint))})" if taint else "none"
