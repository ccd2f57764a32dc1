"""The answer of ``compare`` and ``series`` as text for a mail: plain, narrow, with the command to run it again."""

from __future__ import annotations

import importlib.metadata
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from harness.verdict import Run

COLUMNS = 72
MOST = 3
"""The number of entries and of claims of each case in a mail; ``--json`` has all of them."""


def narrow(lines: Iterable[str]) -> str:
    """Return lines as a text of at most :data:`COLUMNS` columns. A long line continues with a deeper indent."""
    found = []
    for line in "\n".join(lines).splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 2)
        found += textwrap.wrap(line, COLUMNS, subsequent_indent=indent, break_on_hyphens=False) or [""]
    return "\n".join(found)


def mail(lines: Iterable[str], run: Run, command: str) -> str:
    """Return the whole text.

    :param lines: the answer.
    :param run: one of the runs, for the machine on which it ran.
    :param command: as the user typed it.
    """
    return "\n".join([narrow(lines), "", "To run it again:", *_shell_lines(command), "", narrow([_made_by(run)])])


def _made_by(run: Run) -> str:
    version = importlib.metadata.version("hugepfn")
    context = run.context
    qemu = f", QEMU {context['qemu']} ({context['accel']}, {context['smp']} vCPU)" if context.get("qemu") else ""
    return f"hugepfn {version}{qemu}, {datetime.now(UTC):%Y-%m-%d}"


def _shell_lines(command: str) -> Iterator[str]:
    """Yield a command in lines that a shell joins again. A single word may be wider than a mail."""
    line = " "
    for word in map(shlex.quote, shlex.split(command)):
        if len(line) + 1 + len(word) > COLUMNS - 2 and line.strip():
            yield f"{line} \\"
            line = "   "
        line += f" {word}"
    yield line
