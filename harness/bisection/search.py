"""The course of a bisection: first both ends, then what tells most, until the culprit is known. Pure.

Its state follows from what was told to it, in order. So a bisection that was interrupted goes on where a journal ends.
"""

from __future__ import annotations

import enum
import math
from collections import Counter
from dataclasses import replace

import numpy as np

from harness.bisection.belief import ALWAYS, BAD, CONFIDENCE, Belief, Culprit, Side
from harness.bisection.choice import Costs, Trial, next_trial
from harness.bisection.history import CommitHistory
from harness.bisection.symptom import Sighting
from harness.errors import MachineryError, UsageError


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
#: The good end is run again while the probability is higher that it is bad itself. It is small beside 1 - CONFIDENCE.
DOUBT_MAX = 0.0005
#: How many runs for each bit that is looked for. With the lowest rate that an end can show, 1 in END_RUNS_MAX, a bit
#: takes about 100.
RUNS_PER_BIT_MAX = 1000
_TINY = 1e-300


class Search:
    """A bisection.

    :param repeats: how many runs make a commit good; None to find that out from how often the bad end fails.
    """

    def __init__(self, history: CommitHistory, repeats: int | None = None) -> None:
        self._repeats = repeats
        self._runs_max = int(RUNS_PER_BIT_MAX * (1 + math.log2(1 + history.size)))
        self._told = self._otherwise = 0
        self._twins: dict[int, int] = {}
        # How much likelier it is that all commits are bad, the good end as well, than that the culprit is one of them.
        self._log_odds = -math.log(history.size)
        self._all_bad = Side.of(BAD, np.ones(1))
        self.belief = Belief.of(history, bad=BAD if repeats is None else ALWAYS)
        self.shown: Counter[Where] = Counter()
        self.passed: Counter[Where] = Counter()
        self.untestable: dict[int, str] = {}

    def wanted(self, costs: Costs) -> Where | None:
        """Return what to run next, once; None if the culprit is known, or nothing tells more."""
        if not self.shown[Tip.BAD]:
            return Tip.BAD
        if self._repeats is None and self.shown[Tip.BAD] + self.passed[Tip.BAD] < BAD_RUNS:
            return Tip.BAD
        if self.passed[Tip.GOOD] < self._good_runs():
            return Tip.GOOD
        if self.culprit.probability >= CONFIDENCE:
            again = self.doubt > DOUBT_MAX and self.passed[Tip.GOOD] < END_RUNS_MAX
            return Tip.GOOD if again else None
        trial = next_trial(self.belief, costs)
        return self._twins.get(trial.commit, trial.commit) if trial is not None else None

    def wanted_at_once(self, costs: Costs, most: int) -> tuple[Where, ...]:
        """Return what to run next at the same time; empty if the culprit is known, or nothing tells more.

        What the others may answer counts: each commit is the one that tells most for its costs on average over that.

        :param most: how many, at least 1. Of an end, no more than are wanted anyway.
        """
        first = self.wanted(costs)
        if first is None:
            return ()
        if isinstance(first, Tip):
            runs = self.shown[first] + self.passed[first]
            left = (self._good_runs() if first is Tip.GOOD else BAD_RUNS if self._repeats is None else 1) - runs
            return (first,) * max(1, min(most, left))
        pending, costs = list[Trial](), Costs(costs.build.copy(), costs.run)
        while len(pending) < most and (trial := next_trial(self.belief, costs, pending)) is not None:
            pending.append(replace(trial, runs=1))
            costs.build[trial.commit] = 0.0
        return tuple(self._twins.get(trial.commit, trial.commit) for trial in pending)

    def take(self, where: Where, seen: Sighting, reason: str = "") -> None:
        """Note the outcome of one run.

        :raises UsageError: an end is not what it was said to be.
        :raises Contradiction: no culprit explains it.
        :raises MachineryError: so many runs have not led anywhere.
        """
        self._count()
        if seen is Sighting.UNTESTABLE:
            if isinstance(where, Tip):
                self._otherwise += 1
                if self.shown[where] and self._otherwise < END_RUNS_MAX:
                    return  # what shows only sometimes may hide behind another failure now and then
                raise UsageError(f"{where.value} cannot be tested: {reason}")
            for each in (where, *(twin for twin, other in self._twins.items() if other == where)):
                self.untestable[each] = reason
                self.belief = self.belief.without(each)
            return
        (self.shown if seen is Sighting.SHOWS else self.passed)[where] += 1
        shows = seen is Sighting.SHOWS
        if self._repeats is None:
            self._doubt(where, shows)
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
        :raises MachineryError: so many runs have not led anywhere.
        """
        self._count()
        if isinstance(other, int):
            self._twins[commit] = other
        self.belief = self.belief.alike(commit, other if isinstance(other, int) else None, other is Tip.BAD)
        if isinstance(other, int) and other in self.untestable:
            self.take(commit, Sighting.UNTESTABLE, self.untestable[other])

    @property
    def doubt(self) -> float:
        """The probability that the good end is bad as well, and that it has passed by chance so far."""
        return 1.0 / (1.0 + math.exp(min(-self._log_odds, 700.0))) if self._repeats is None else 0.0

    @property
    def confidence(self) -> float:
        """The probability that the culprit is what :attr:`culprit` says. The good end's runs count."""
        return self.culprit.probability * (1.0 - self.doubt)

    @property
    def culprit(self) -> Culprit:
        """What is known about the culprit if the good end is good."""
        return self.belief.culprit()

    def verdict(self, commit: int) -> bool | None:
        """Return whether a commit is bad; None if that is not known."""
        bad = float(self.belief.weights[self.belief.history.blamed(commit)].sum())
        return True if bad > 1 - SURE else False if bad < SURE else None

    def _doubt(self, where: Where, shows: bool) -> None:
        """Compare how likely a run is if all commits are bad, and if the culprit is one of them."""
        self._all_bad, likely = self._all_bad.after(np.ones(1, np.bool_), shows)
        told = 1.0 if where is Tip.GOOD else self.belief.chance(where if isinstance(where, int) else None, shows)
        self._log_odds += math.log(max(float(likely[0]), _TINY)) - math.log(max(told, _TINY))

    def _count(self) -> None:
        self._told += 1
        if self._told > self._runs_max:
            raise MachineryError(
                f"{self._runs_max} runs of {self.belief.history.size} commits have not found the culprit, which no "
                "bisection should take; please report this as a bug of hugepfn, with the journal"
            )

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
