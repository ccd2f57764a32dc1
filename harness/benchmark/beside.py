"""``hugepfn bench --beside DIR``: this hugepfn and another checkout of it, measured alternately."""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from harness.config import MachineConfig
from harness.errors import MachineryError, UsageError
from harness.host.process import run
from harness.kernel.build.job import children_cpu_s

_TIMEOUT_S = 3600.0
_WORKERS = "2"


class Cost(NamedTuple):
    """What a command took."""

    wall_s: float
    cpu_s: float  # user and system time of all its processes


@dataclass(frozen=True)
class Checkout:
    """A hugepfn that can be run. Another one gets a cache of its own, because its entries have another form."""

    command: tuple[str, ...]
    cache: Path | None = None

    @classmethod
    def of(cls, folder: Path) -> Checkout:
        """Return the one in a folder.

        :raises UsageError: it has no .venv with hugepfn.
        """
        command = folder.absolute() / ".venv/bin/hugepfn"
        if not command.is_file():
            raise UsageError(f"{folder} has no .venv/bin/hugepfn; expected a checkout of hugepfn after `make setup`")
        return cls((str(command),), folder.absolute() / "build/cache")

    def cost(self, args: Sequence[str]) -> Cost:
        """Run a command.

        :raises MachineryError: it failed.
        """
        environment = {**os.environ, **({"HUGEPFN_CACHE_DIR": str(self.cache)} if self.cache is not None else {})}
        cpu_s, begin = children_cpu_s(), time.perf_counter()
        done = run([*self.command, *args], env=environment, timeout_s=_TIMEOUT_S, check=False)
        cost = Cost(time.perf_counter() - begin, children_cpu_s() - cpu_s)
        if done.status:
            last = (done.stderr.splitlines() or ["without a word"])[-1]
            raise MachineryError(f"{' '.join([*self.command, *args])} ended with {done.status}: {last}")
        return cost


OURS = Checkout((sys.executable, "-m", "harness.entry"))


@dataclass(frozen=True)
class BesideRow:
    """A command, measured with both. A ratio is the median over the rounds, ours to theirs."""

    what: str
    ours: Cost
    theirs: Cost
    ratio: Cost
    rounds: int


def compared(what: str, ours: Callable[[], Cost], theirs: Callable[[], Cost], rounds: int) -> BesideRow:
    """Run both alternately."""
    pairs = [(theirs(), ours())[::-1] for _ in range(rounds)]
    mine, other = zip(*pairs, strict=True)
    ratio = _median([Cost(a.wall_s / b.wall_s, a.cpu_s / b.cpu_s) for a, b in pairs])
    return BesideRow(what, _median(mine), _median(other), ratio, rounds)


def _median(costs: Sequence[Cost]) -> Cost:
    return Cost(statistics.median(one.wall_s for one in costs), statistics.median(one.cpu_s for one in costs))


def scenarios_of(other: Checkout, words: Sequence[str]) -> tuple[str, ...]:
    """Return the scenarios of another checkout, by running them all, which also fills its cache."""
    with tempfile.TemporaryDirectory(prefix="hugepfn-bench-") as folder:
        results = Path(folder) / "results.json"
        other.cost([*words, "-n", _WORKERS, "--json", str(results)])
        return tuple(dict.fromkeys(one["scenario"] for one in json.loads(results.read_text())["results"]))


def bench_beside(folder: Path, config: MachineConfig, rounds: int) -> list[BesideRow]:
    """Measure this hugepfn beside another checkout, print a table, and return its rows.

    :param rounds: of short commands; the suite is run once by each, after one run that does not count.
    """
    other, words = Checkout.of(folder), ["run", "--kernel", str(config.kernel), "--quiet"]
    one, suite = [*words, "fork", "--level", "pud"], [*words, "-n", _WORKERS, *scenarios_of(other, words)]
    OURS.cost(suite)  # as the other's was run before
    console = Console(highlight=False)
    rows = [
        compared("hugepfn --help", lambda: OURS.cost(["--help"]), lambda: other.cost(["--help"]), rounds),
        compared("run fork --level pud", lambda: OURS.cost(one), lambda: other.cost(one), rounds),
        compared("the other's suite, two workers", lambda: OURS.cost(suite), lambda: other.cost(suite), 1),
    ]
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "s", "other", "ratio", "CPU s", "other", "ratio", "rounds"):
        table.add_column(heading)
    for row in rows:
        cells = zip(row.ours, row.theirs, row.ratio, strict=True)
        table.add_row(row.what, *(f"{value:.2f}" for three in cells for value in three), str(row.rounds))
    console.print(table)
    return rows
