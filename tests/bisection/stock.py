"""``make bisect-stock``: between which stock kernels of Debian a known bug was mended; writes docs/bisected.md.

    python tests/bisection/stock.py [--write] [--resume]

The versions of a mirror come and go. The ends below have to be changed if it has one no longer.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click

from harness.bisection.symptom import Sighting
from harness.campaign.bisection.journal import Noted
from harness.campaign.units.journal import read
from tests.marked_page import replaced

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "bisected.md"
_ENDS = {"good": "the good end", "bad": "the bad end"}


@dataclass(frozen=True)
class Pair:
    """A known bug that was mended between two versions."""

    bug: str
    test: str
    good: str
    bad: str

    @property
    def words(self) -> tuple[str, ...]:
        """The command line."""
        return ("bisect", "--debian", self.good, self.bad, "--fixed", self.test)


PAIRS = (
    Pair("HP-002", "munmap_page:pud", "6.12.118", "6.12.95"),
    Pair("HP-006", "mprotect_readonly:pmd", "7.2.13", "6.16.12"),
    Pair("HP-011", "mremap_leaf:pte", "6.12.118", "6.1.176"),
)


def section(pair: Pair, resume: bool) -> Iterator[str]:
    """Bisect a pair, and return the lines of its section.

    :raises SystemExit: no single version was found.
    """
    argv = [sys.executable, str(ROOT / "vm.py"), *pair.words, *["--resume"] * resume]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    journal = re.search(r"journal: (\S+)$", done.stderr, re.MULTILINE)
    if done.returncode or journal is None:
        sys.exit(f"{pair.bug}: hugepfn bisect ended with status {done.returncode}\n{done.stdout}{done.stderr}")
    bugs = tomllib.loads((ROOT / "guest_tests" / "known_bugs.toml").read_text())["bug"]
    yield f"## {pair.bug}\n"
    yield next(one["title"] for one in bugs if one["id"] == pair.bug) + ".\n"
    yield f"```\n$ hugepfn {' '.join(pair.words)}\n{done.stdout.rstrip()}\n```\n"
    counts: dict[str, Counter[Sighting]] = {}
    for one in read(Path(journal[1]), Noted.from_json)[1]:
        counts.setdefault(one.step, Counter())[one.seen] += 1
    yield "| kernel, in the order of the runs | showed it | passed | not tested |\n|---|---|---|---|"
    for name, seen in counts.items():
        kernel = f"{getattr(pair, name)} ({_ENDS[name]})" if name in _ENDS else name
        yield f"| {kernel} | {' | '.join(str(seen[one]) for one in Sighting)} |"
    yield ""


@click.command()
@click.option("--write", is_flag=True, help=f"write {PAGE.relative_to(ROOT)}")
@click.option("--resume", is_flag=True, help="go on with bisections that were interrupted, or use those that ended")
def main(write: bool, resume: bool) -> None:
    """Bisect all pairs."""
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, text=True, check=True).stdout
    head = f"Measured on {datetime.now(UTC).date()} with QEMU {qemu.split()[3]}.\n"
    text = "\n".join([head, *(line for pair in PAIRS for line in section(pair, resume))])
    if write:
        PAGE.write_text(replaced(PAGE.read_text(), "bisected", text))
    click.echo(text)


if __name__ == "__main__":
    main()
