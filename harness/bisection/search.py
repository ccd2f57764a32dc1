"""The course of a bisection: first both ends, then what tells most, until the culprit is known. Pure.

Its state follows from what was told to it, in order. So a bisection that was interrupted goes on where a journal ends.
"""

from __future__ import annotations

import enum
from collections import Counter
from dataclasses import dataclass

import numpy as np

from harness.bisection.belief import ALWAYS, BAD, CONFIDENCE, Belief, Culprit, Side
from harness.bisection.choice import Costs, next_trial
from harness.bisection.history import CommitHistory
from harness.bisection.symptom import Sighting
from harness.errors import UsageError


class Tip(enum.Enum):
    """The two ends of a history."""

    BAD = "the bad end"
    GOOD = "the good end"


Where = int | Tip
"""A commit by its number, or an end."""
#: The bad end is run as often even if it shows the symptom at once, because that tells how often it does.
BAD_RUNS = 3
#: An end that has been run as often says nothing more.
END_RUNS_MAX = 60
#: A commit is good or bad if the probability of the opposite is less.
SURE = 0.01


@dataclass(frozen=True)
class NextRuns:
    """What to run next."""

    where: Where
    runs: int
    """At most so many; a run that does not pass ends them."""


class Search:
    """A bisection.

    :param repeats: how many runs make a commit good; None to find that out from how often the bad end fails.
    """

    def __init__(self, history: CommitHistory, repeats: int | None = None) -> None:
        self._repeats = repeats
        self.belief = Belief.of(history, bad=BAD if repeats is None else ALWAYS)
        self.shown: Counter[Where] = Counter()
        self.passed: Counter[Where] = Counter()
        self.untestable: dict[int, str] = {}

    def wanted(self, costs: Costs) -> NextRuns | None:
        """Return what to run next; None if the culprit is known, or nothing tells more."""
        most = END_RUNS_MAX if self._repeats is None else self._repeats
        if not self.shown[Tip.BAD]:
            return NextRuns(Tip.BAD, most - self.passed[Tip.BAD])
        if self._repeats is None and self.shown[Tip.BAD] + self.passed[Tip.BAD] < BAD_RUNS:
            return NextRuns(Tip.BAD, 1)
        if self.passed[Tip.GOOD] < self._good_runs():
            return NextRuns(Tip.GOOD, self._good_runs() - self.passed[Tip.GOOD])
        if self.culprit.probability >= CONFIDENCE:
            return None
        trial = next_trial(self.belief, costs)
        if trial is None:
            return None
        return NextRuns(
            trial.commit, trial.runs if self._repeats is None else self._repeats - self.passed[trial.commit]
        )

    def take(self, where: Where, seen: Sighting, reason: str = "") -> None:
        """Note the outcome of one run.

        :raises UsageError: an end is not what it was said to be.
        :raises Contradiction: no culprit explains it.
        """
        if seen is Sighting.UNTESTABLE:
            if isinstance(where, Tip):
                raise UsageError(f"{where.value} cannot be tested: {reason}")
            self.untestable[where] = reason
            self.belief = self.belief.without(where)
            return
        (self.shown if seen is Sighting.SHOWS else self.passed)[where] += 1
        shows = seen is Sighting.SHOWS
        if where is Tip.GOOD:
            if shows:
                raise UsageError(f"{where.value} shows the symptom, too ({reason}); choose another one")
        elif where is Tip.BAD:
            if not shows and not self.shown[where] and self.passed[where] >= (self._repeats or END_RUNS_MAX):
                raise UsageError(f"{where.value} passed {self.passed[where]} runs; choose another one, or more --runs")
            if self._repeats is None:
                self.belief = self.belief.after_bad_end(shows)
        elif shows or self._repeats is None or self.passed[where] == self._repeats:
            self.belief = self.belief.after(where, shows)

    def same(self, commit: int, other: Where) -> None:
        """Note that a commit makes the same kernel as another one: the culprit does not lie between them.

        :raises Contradiction: no culprit is left.
        """
        self.belief = self.belief.alike(commit, other if isinstance(other, int) else None, other is Tip.BAD)
        if isinstance(other, int) and other in self.untestable:
            self.take(commit, Sighting.UNTESTABLE, self.untestable[other])

    @property
    def culprit(self) -> Culprit:
        """What is known about the culprit."""
        return self.belief.culprit()

    def verdict(self, commit: int) -> bool | None:
        """Return whether a commit is bad; None if that is not known."""
        bad = float(self.belief.weights[self.belief.history.blamed(commit)].sum())
        return True if bad > 1 - SURE else False if bad < SURE else None

    def _good_runs(self) -> int:
        if self._repeats is not None:
            return self._repeats
        enough = (runs for runs in range(1, END_RUNS_MAX) if self._first.passing(runs)[0] < SURE)
        return next(enough, END_RUNS_MAX)

    @property
    def _first(self) -> Side:
        """What the bad end alone tells about the rate."""
        side = Side.of(BAD, np.ones(1))
        for failed, runs in ((True, self.shown[Tip.BAD]), (False, self.passed[Tip.BAD])):
            for _ in range(runs):
                side, _ = side.after(np.ones(1, np.bool_), failed)
        return side
