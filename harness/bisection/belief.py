"""What is known about the culprit, as a probability for each candidate. Pure.

A run of a bad commit fails with the rate p, a run of a good one with the rate q. Neither is known: each has a prior
(:class:`Rate`), and is learnt from the same runs that look for the culprit. With the observations D, of which a
candidate c says that F failures and P passes are of bad commits, and f and s of good ones, Bayes' theorem is

    P(c | D)  ~  P(c) * E[p**F * (1-p)**P] * E[q**f * (1-q)**s]

where the expectations are over the priors. For Beta(a, b), E[p**F * (1-p)**P] = B(a+F, b+P) / B(a, b); it is not
computed as such: one observation more multiplies it by the rate that is expected after the others.

After Henderson et al., Flake Aware Culprit Culprit (ICST 2023), and the package git-bayesect, which learns both rates
as well; docs/decisions/bisection.md says what differs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from harness.bisection.history import Commit, CommitHistory, Floats, Mask
from harness.errors import MachineryError

Answers = bool | Mask
"""Whether a run failed. An array, with an axis more than that of the commits, is for several bisections at once."""
#: The probability at which a culprit counts as found. One answer in 100 may be wrong. That takes a little more than
#: 99 %, because the rate is learnt from few runs: docs/bisection.md has a simulation.
CONFIDENCE = 0.997
_TINY = 1e-300


class Contradiction(MachineryError):
    """No single culprit explains all observations."""

    def __init__(self) -> None:
        super().__init__(
            "the results contradict each other: no single commit explains them; either the symptom shows only "
            "sometimes (then do not give --runs), or more than one commit changed it"
        )


@dataclass(frozen=True)
class Rate:
    """What is known beforehand about the rate at which the runs of one side fail.

    It is ``extreme`` with the probability ``sure``; otherwise it has the distribution Beta(fails, passes).
    """

    fails: float
    passes: float
    sure: float = 0.0
    extreme: float = 1.0


#: A bad commit. Many bugs show in every run; about the rate of the others nothing is known (Jeffreys' prior).
BAD = Rate(0.5, 0.5, 0.1, 1.0)
#: A good commit never shows a symptom, which is more than "fails".
GOOD = Rate(1.0, 1.0, 1.0, 0.0)
#: A bad commit always fails: one pass makes a commit good. For a number of runs that the user has chosen.
ALWAYS = Rate(1.0, 1.0, 1.0, 1.0)


def known_rate(rate: float) -> Rate:
    """Return a rate that is known, from other measurements."""
    return Rate(1.0, 1.0, 1.0, rate)


@dataclass(frozen=True)
class Side:
    """What the commits of one side have done, for each candidate: its observations are other ones for each of them."""

    prior: Rate
    fails: Floats
    passes: Floats
    sure: Floats
    """The probability that the rate is the extreme one."""

    @classmethod
    def of(cls, prior: Rate, like: Floats) -> Side:
        """Return a side without observations, for as many candidates."""
        return cls(prior, np.zeros_like(like), np.zeros_like(like), np.full_like(like, prior.sure))

    def passing(self, runs: int) -> Floats:
        """Return the probability that all of the next runs pass."""
        extreme = (1.0 - self.prior.extreme) ** runs
        if self.prior.sure == 1.0:
            return np.full_like(self.fails, extreme)
        a, b = self.prior.fails + self.fails, self.prior.passes + self.passes
        usual = b / (a + b)
        for number in range(1, runs):
            usual *= (b + number) / (a + b + number)
        return self.sure * extreme + (1.0 - self.sure) * usual

    def after(self, where: Mask, failed: Answers) -> tuple[Side, Floats]:
        """Return this side after a run, and the likelihood of the run.

        :param where: the candidates for which the run was one of this side.
        """
        passing = self.passing(1)
        likely = np.where(where, np.where(failed, 1.0 - passing, passing), 1.0)
        extreme = np.where(failed, self.prior.extreme, 1.0 - self.prior.extreme)
        sure = np.where(where, self.sure * extreme / np.maximum(likely, _TINY), self.sure)
        fails, passes = self.fails + (where & failed), self.passes + (where & ~np.asarray(failed))
        return Side(self.prior, fails, passes, np.minimum(sure, 1.0)), likely


@dataclass(frozen=True)
class Culprit:
    """The likeliest culprit, or the likeliest candidates that nothing tells apart."""

    candidates: tuple[int, ...]
    probability: float


@dataclass(frozen=True)
class Belief:
    """What is known after some observations. A value: an observation returns another one."""

    history: CommitHistory
    weights: Floats
    """The probability of each candidate; they add up to 1."""
    bad: Side
    good: Side
    testable: Mask
    """The commits of which it is not known that they cannot be tested."""

    @classmethod
    def of(cls, history: CommitHistory, prior: Floats | None = None, bad: Rate = BAD, good: Rate = GOOD) -> Belief:
        """Return what is known before the first observation.

        :param prior: the weight of each candidate, in any unit; None if all are alike.
        """
        weights = np.ones(history.size) if prior is None else np.asarray(prior, np.float64)
        sides = Side.of(bad, weights), Side.of(good, weights)
        return cls(history, weights / weights.sum(axis=-1, keepdims=True), *sides, np.ones(history.size, np.bool_))

    def after(self, commit: Commit, failed: Answers) -> Belief:
        """Return what is known after a run of a commit.

        :raises Contradiction: no candidate is left.
        """
        return self._after(self.history.blamed(commit), failed)

    def after_bad_end(self, failed: Answers) -> Belief:
        """Return what is known after a run of the bad end, which tells something about the rate only."""
        return self._after(np.ones(self.history.size, np.bool_), failed)

    def without(self, commit: int) -> Belief:
        """Return what is known after a commit turned out to be untestable. It remains a candidate."""
        testable = self.testable.copy()
        testable[commit] = False
        return replace(self, testable=testable)

    def alike(self, commit: int, other: int | None, bad: bool = False) -> Belief:
        """Return what is known after a commit turned out to be the same as another one: both are bad, or both are good.

        :param other: None for an end.
        :param bad: for an end, whether it is the bad one.
        :raises Contradiction: no candidate is left.
        """
        of_other = bad if other is None else self.history.blamed(other)
        return self._weighted(self.weights * (self.history.blamed(commit) == of_other))

    def _weighted(self, weights: Floats) -> Belief:
        if not (total := weights.sum(axis=-1, keepdims=True)).all():
            raise Contradiction
        return replace(self, weights=weights / total)

    def _after(self, bad: Mask, failed: Answers) -> Belief:
        bad_side, bad_likely = self.bad.after(bad, failed)
        good_side, good_likely = self.good.after(~bad, failed)
        return replace(self, bad=bad_side, good=good_side)._weighted(self.weights * bad_likely * good_likely)

    def chance(self, commit: int | None, failed: bool) -> float:
        """Return how likely the next run of a commit fails, or passes.

        :param commit: None for the bad end.
        """
        bad = np.ones(self.history.size, np.bool_) if commit is None else self.history.blamed(commit)
        passing = float(self.weights @ np.where(bad, self.bad.passing(1), self.good.passing(1)))
        return 1.0 - passing if failed else passing

    @property
    def entropy_bits(self) -> float:
        """How much is not known about the culprit."""
        left = self.weights[self.weights > 0.0]
        return float(-(left @ np.log2(left))) + 0.0

    @property
    def rate(self) -> float:
        """The rate at which a run of a bad commit is expected to fail."""
        return float(self.weights @ (1.0 - self.bad.passing(1)))

    def culprit(self) -> Culprit:
        """Return the likeliest culprit; with it those that only untestable commits tell apart."""
        if self.testable.all():
            best = int(np.argmax(self.weights))
            return Culprit((best,), float(self.weights[best]))
        classes, of = np.unique(self.history.classes(self.testable), return_inverse=True)
        sums = np.bincount(of, self.weights, len(classes))
        best = int(np.argmax(sums))
        candidates = np.nonzero((of == best) & (self.weights > 0.0))[0]
        return Culprit(tuple(map(int, candidates)), float(sums[best]))
