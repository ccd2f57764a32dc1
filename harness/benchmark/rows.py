"""What a benchmark shows: a measurement, beside its baseline."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class BenchRow:
    """A measurement and its baseline, in seconds."""

    what: str
    median_s: float
    rival: str = ""
    rival_median_s: float | None = None
    ratio: float | None = None
    runs: int = 0
    worst_s: float = 0.0


def paired(what: str, ours: Callable[[], float], rival: str, theirs: Callable[[], float], rounds: int) -> BenchRow:
    """Run both alternately, after one round that does not count; the ratio is the median over the rounds."""
    ours(), theirs()
    pairs = [(theirs(), ours())[::-1] for _ in range(rounds)]
    mine, other = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return BenchRow(what, statistics.median(mine), rival, statistics.median(other), ratio, rounds, max(mine))
