"""``hugepfn dmesg``: what a kernel log complains about."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from harness.errors import ExitCode, PremiseNotMet, UsageError

if TYPE_CHECKING:
    from harness.introspect.source_lines import SourceLines
    from harness.verdict.log.complaints import Complaint
    from harness.verdict.log.taint import Taint

_PIECE_BYTES = 1 << 20


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, readable=True))
@click.option("--json", "as_json", is_flag=True, help="print one JSON object: docs/schemas/hugepfn-dmesg.schema.json")
@click.option(
    "--vmlinux",
    metavar="FILE|KERNEL",
    help="show file and line of each function, from this kernel's debug information: a vmlinux, or a kernel as for run",
)
def dmesg(file: str, as_json: bool, vmlinux: str | None) -> None:
    """Name what a kernel log complains about: oopses, warnings, lockups, sanitizers' reports.

    FILE is the log of any kernel, as a console, dmesg, journalctl -k or /dev/kmsg shows it; - reads standard input.
    Each report has a title that is the same wherever the same bug is met ("WARNING in FUNC"), the function to blame,
    the process, the CPU, the kernel's taint, and its lines in the log. A corrupted report was cut off or mixed with
    others.

    Exit status 0: the log has no report. 1: it has some. 2: there is no such file.
    """
    import json

    from harness.printable import PrintableDecoder
    from harness.verdict.log.complaints import SCHEMA, VERSION
    from harness.verdict.log.scanner import ReportStream

    lines = _source_lines(vmlinux) if vmlinux is not None else None
    stream, decoder, found = ReportStream(), PrintableDecoder(), 0
    if as_json:
        click.echo(f'{{"schema": "{SCHEMA}", "version": {VERSION}, "reports": [', nl=False)
    for piece in _pieces(file):
        for report in stream.finish() if piece is None else stream.feed(decoder.feed(piece)):
            if as_json:
                data = report.to_json() | ({} if lines is None else {"trace": _trace(report, lines)})
                click.echo(("," if found else "") + "\n" + json.dumps(data), nl=False)
            else:
                told = (*_report_lines(report), *(_trace_lines(report, lines) if lines is not None else ()))
                click.echo(("\n" if found else "") + "\n".join(told))
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


def _source_lines(said: str) -> SourceLines | None:
    """The source of a vmlinux, or of the kernel that a spec names; None, which is said, if it has no lines."""
    from harness.introspect.source_lines import SourceLines

    path = Path(said) if Path(said).is_file() else _vmlinux_of(said)
    try:
        return SourceLines(path)
    except PremiseNotMet as error:
        click.echo(f"hugepfn: {error}", err=True)
        return None


def _vmlinux_of(said: str) -> Path:
    from harness.kernel import Kernel
    from harness.kernel.vmlinux import find_vmlinux

    image = Kernel.parse(said).resolve()
    found = find_vmlinux(image, None)
    if found is None:
        raise UsageError(f"{said}: {image.release} has no vmlinux with symbols; give its file: --vmlinux FILE")
    return found.path


def _trace(complaint: Complaint, lines: SourceLines) -> list[dict[str, Any]]:
    """The places of a report's stacks as values of schema hugepfn-dmesg."""
    from harness.verdict.log.trace import places

    return [
        {
            "place": str(place),
            "source": [{"function": one.function, "file": one.file, "line": one.line} for one in lines.of(place)],
        }
        for place in places(complaint.messages)
    ]


def _trace_lines(complaint: Complaint, lines: SourceLines) -> Iterator[str]:
    from harness.introspect.source_lines import told
    from harness.verdict.log.trace import places

    for number, line in enumerate(told(places(complaint.messages), lines)):
        yield f"  {'' if number else 'trace':<9}  {line}"


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
