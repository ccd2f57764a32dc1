"""``make bisect-simulation``: bisects histories that exist in numbers only, and writes the table of docs/bisection.md.

    python tests/bisection/simulation.py [--workers 2] [--sizes 10 100 1000 10000] [--scale 1.0] [--write]

Every contestant looks for a culprit that is drawn anew each time, and whose descendants fail at the given rate; others
never fail. What counts is the mean number of runs, those of the bad end included, and the share of wrong answers.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.bisection.belief import CONFIDENCE, Belief, Side
from harness.bisection.choice import gain_of
from harness.bisection.history import LinearHistory
from tests.marked_page import replaced

PAGE = Path(__file__).resolve().parents[2] / "docs/bisection.md"
SIZES = (10, 100, 1000, 10_000)
RATES = (0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0)
#: Of all rates, for whoever has one number of repeats for all of them.
LOWEST_RATE = min(RATES)
MOST_WRONG = 0.01
#: A bisection that has not ended by then counts as a wrong answer.
RUNS_MAX = 5000
#: How often the bad end has to fail before its rate counts as measured.
MEASURED_FAILS = 10

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Score:
    """What a contestant came to."""

    runs: float
    wrong: float
    trials: int


@dataclass(frozen=True)
class Case:
    """A number of commits, a rate, and the culprits."""

    commits: int
    rate: float
    trials: int

    def random(self) -> np.random.Generator:
        """Return the same numbers each time."""
        return np.random.default_rng([self.commits, int(1000 * self.rate), self.trials])


def hugepfn(case: Case) -> Score:
    """Bisect with :mod:`harness.bisection`, all trials at once; only runs cost something."""
    random, trials = case.random(), case.trials
    culprits = random.integers(case.commits, size=trials)
    belief = Belief.of(LinearHistory(case.commits), np.ones((trials, case.commits)))
    runs, wrong, live = np.zeros(trials, np.int64), np.zeros(trials, np.bool_), np.arange(trials)
    first = random.geometric(case.rate, trials)  # the bad end is run until it fails
    belief = replace(belief, bad=_ended(belief.bad, first))
    runs += first
    while len(live):
        done = belief.weights.max(axis=-1) >= CONFIDENCE
        wrong[live[done]] = belief.weights[done].argmax(axis=-1) != culprits[live[done]]
        live, belief = live[~done], _only(belief, ~done)
        commits = gain_of(belief, 1)[0].argmax(axis=-1)
        failed = (commits >= culprits[live]) & (random.random(len(live)) < case.rate)
        belief = belief.after(commits, failed[:, np.newaxis])
        runs[live] += 1
    return Score(float(runs.mean()), float(wrong.mean()), trials)


def _ended(side: Side, runs: Counts) -> Side:
    """The side after the bad end passed all of so many runs but the last."""
    for number in range(int(runs.max())):
        where = np.less(number, runs)[:, np.newaxis] & np.ones_like(side.fails, np.bool_)
        side, _ = side.after(where, np.equal(number, runs - 1)[:, np.newaxis])
    return side


def _only(belief: Belief, kept: NDArray[np.bool_]) -> Belief:
    sides = (
        replace(one, fails=one.fails[kept], passes=one.passes[kept], sure=one.sure[kept])
        for one in (belief.bad, belief.good)
    )
    bad, good = sides
    return replace(belief, weights=belief.weights[kept], bad=bad, good=good)


def bayesect(case: Case, told: bool) -> Score:
    """Bisect with git-bayesect, up to the same confidence.

    :param told: it knows that a good commit hardly ever fails.
    """
    from git_bayesect import Bisector

    random, total, wrong = case.random(), 0, 0
    # Its commits are counted from the newest. The last one is the good end, which it may run, too.
    weights = np.append(np.ones(case.commits), 0.0)
    known = {"alpha_old": 0.001, "beta_old": 1.0} if told else {}
    for _ in range(case.trials):
        culprit, runs = int(random.integers(case.commits)), 0
        bisector = Bisector(weights.copy(), **known)
        while bisector.distribution.max() < CONFIDENCE and runs < RUNS_MAX:
            commit = bisector.select()
            bisector.record(commit, commit <= culprit and bool(random.random() < case.rate))
            runs += 1
        total += runs
        wrong += runs == RUNS_MAX or int(np.argmax(bisector.distribution)) != culprit
    return Score(total / case.trials, wrong / case.trials, case.trials)


def repeats_for(rate: float | NDArray[np.float64], commits: int) -> Counts:
    """Return how many runs must pass before a commit is good, so that 1 % of the answers are wrong.

    Half of the log2(n) commits that are tested are bad; each of them passes k runs with the probability (1 - p)**k.
    """
    missed = 2 * (1 - (1 - MOST_WRONG) ** (1 / math.log2(commits)))
    passing = np.clip(1 - np.asarray(rate, np.float64), 1e-9, 1 - 1e-9)
    return np.maximum(1, np.ceil(math.log(missed) / np.log(passing))).astype(np.int64)


def plain(case: Case, known: str) -> Score:
    """``git bisect`` with a number of repeats, which end at the first failure.

    :param known: what the number is chosen by: "lowest" of all rates, "measured" at the bad end, or the "true" rate.
    """
    random, trials = case.random(), case.trials
    culprits = random.integers(case.commits, size=trials)
    runs = np.zeros(trials, np.int64)
    rate = np.full(trials, LOWEST_RATE if known == "lowest" else case.rate)
    if known == "measured":
        runs += MEASURED_FAILS + random.negative_binomial(MEASURED_FAILS, case.rate, trials)
        rate = (MEASURED_FAILS - 1) / (runs - 1)
    repeats = repeats_for(rate, case.commits)
    oldest, newest = np.zeros(trials, np.int64), np.full(trials, case.commits - 1)  # the culprit is one of them
    while (open_ := oldest < newest).any():
        middle = (oldest + newest) // 2
        failing = np.where(middle >= culprits, random.geometric(case.rate, trials), repeats + 1)
        bad = failing <= repeats
        runs += np.where(open_, np.minimum(failing, repeats), 0)
        newest = np.where(open_ & bad, middle, newest)
        oldest = np.where(open_ & ~bad, middle + 1, oldest)
    return Score(float(runs.mean()), float((oldest != culprits).mean()), trials)


#: By its heading: the contestant, and how many trials it has for each number of commits.
CONTESTANTS: dict[str, tuple[Callable[[Case], Score], Sequence[int]]] = {
    "hugepfn": (hugepfn, (20_000, 5000, 1000, 40)),
    "git-bayesect": (lambda case: bayesect(case, told=False), (100, 60, 20, 5)),
    "git-bayesect, told": (lambda case: bayesect(case, told=True), (100, 60, 20, 5)),
    "repeats for 0.1": (lambda case: plain(case, "lowest"), (20000, 20000, 20000, 20000)),
    "repeats measured": (lambda case: plain(case, "measured"), (20000, 20000, 20000, 20000)),
    "repeats known": (lambda case: plain(case, "true"), (20000, 20000, 20000, 20000)),
}


def score(name: str, commits: int, rate: float, scale: float) -> Score:
    """Return what a contestant comes to in one case."""
    contestant, trials = CONTESTANTS[name]
    return contestant(Case(commits, rate, max(1, int(scale * trials[SIZES.index(commits)]))))


def table(found: dict[tuple[int, float], dict[str, Score]]) -> str:
    """Return the table, and what of it counts."""
    lines = [f"| commits | rate | {' | '.join(CONTESTANTS)} |", "|---|---|" + "---|" * len(CONTESTANTS)]
    for (commits, rate), scores in found.items():
        cells = (f"{one.runs:.0f} ({100 * one.wrong:.1f} %)" for one in scores.values())
        lines.append(f"| {commits:,} | {rate} | {' | '.join(cells)} |")
    lines += ["", f"| mean of these {len(found)} rows | runs | wrong answers | bisections |", "|---|---|---|---|"]
    for name in CONTESTANTS:
        column = [row[name] for row in found.values()]
        runs, wrong = (np.mean([getattr(one, field) for one in column]) for field in ("runs", "wrong"))
        lines.append(f"| {name} | {runs:.1f} | {100 * wrong:.2f} % | {sum(one.trials for one in column):,} |")
    return "\n".join(lines)


def main() -> None:
    """Simulate, print the table, and write it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--sizes", type=int, nargs="+", choices=SIZES, default=SIZES)
    parser.add_argument("--scale", type=float, default=1.0, help="so many times the usual number of bisections")
    parser.add_argument("--write", action="store_true", help="write the table into docs/bisection.md")
    wanted = parser.parse_args()
    started = time.monotonic()
    cases = [(commits, rate) for commits in wanted.sizes for rate in RATES]
    with ProcessPoolExecutor(wanted.workers) as pool:
        jobs = {case: {name: pool.submit(score, name, *case, wanted.scale) for name in CONTESTANTS} for case in cases}
        found = {case: {name: job.result() for name, job in row.items()} for case, row in jobs.items()}
    text = table(found)
    print(text)
    print(f"{time.monotonic() - started:.0f} s")
    if wanted.write:
        PAGE.write_text(replaced(PAGE.read_text(), "simulation", f"{text}\n"))


if __name__ == "__main__":
    main()
