"""Which commit to test next: the one that tells most about the culprit for what it costs. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.bisection.belief import Belief
from harness.bisection.history import Floats

#: How often a kernel that has to be built may be run before something else is considered.
_RUNS = (1, 2, 4, 8, 16, 32)
#: What a test has to tell. Below this, nothing is left to be learnt.
_LEAST_BITS = 1e-9
#: How many combinations of the outcomes of pending tests are considered: the likeliest.
_BRANCHES = 32


@dataclass(frozen=True)
class Costs:
    """What a test costs, in any unit."""

    build: Floats
    """To get the kernel of each commit ready; 0 for one that is."""
    run: float = 1.0

    @classmethod
    def of_runs(cls, size: int) -> Costs:
        """Only runs cost something."""
        return cls(np.zeros(size))


@dataclass(frozen=True)
class Trial:
    """A commit to test: run it until a run fails, at most so many times."""

    commit: int
    runs: int
    gain_bits: float
    """How much it is expected to tell."""


def next_trial(belief: Belief, costs: Costs, pending: Sequence[Trial] = ()) -> Trial | None:
    """Return the trial with the highest expected gain of information for its cost; None if no trial tells anything.

    :param pending: trials that have been started, and of which the outcome is not known.
    """
    branches = [(1.0, belief)]
    for one in pending:
        branches = [(p * q, then) for p, before in branches for q, then in _outcomes(before, one)]
        branches = sorted(branches, key=lambda branch: -branch[0])[:_BRANCHES]
    whole = sum(p for p, _ in branches)
    chance = _chance_of_testing(belief)
    best, best_score = None, 0.0
    spent, failing = np.zeros(belief.history.size), np.zeros(belief.history.size)
    for runs, more in zip(_RUNS, np.diff(_RUNS, prepend=0), strict=True):
        spent = spent + more * (1.0 - failing) * costs.run
        told = [(p / whole, *gain_of(then, runs)) for p, then in branches]
        gain = np.sum([p * bits for p, bits, _ in told], axis=0)
        failing = np.sum([p * fails for p, _, fails in told], axis=0)
        score = np.where(gain > _LEAST_BITS, gain * chance / (costs.build + spent), 0.0)
        commit = int(np.argmax(score))
        if score[commit] > best_score:
            best, best_score = Trial(commit, runs, float(gain[commit])), score[commit]
        if not costs.build.any():
            break  # each run is decided on after the one before
    return best


def gain_of(belief: Belief, runs: int) -> tuple[Floats, Floats]:
    """Return, for every commit, what it tells whether one of so many runs fails, in bits, and how likely that is.

    This is the mutual information of the culprit and the answer: H(answer) - H(answer | culprit).
    """
    bad, good = 1.0 - belief.bad.passing(runs), 1.0 - belief.good.passing(runs)
    answer, known = belief.weights * (bad - good), belief.weights * (_entropy(bad) - _entropy(good))
    fails = belief.history.gathered(answer) + (belief.weights * good).sum(axis=-1, keepdims=True)
    left = belief.history.gathered(known) + (belief.weights * _entropy(good)).sum(axis=-1, keepdims=True)
    fails = np.clip(fails, 0.0, 1.0)
    return _entropy(fails) - left, fails


def _entropy(probability: Floats) -> Floats:
    """The entropy of yes or no, in bits."""
    p = np.clip(probability, 1e-300, 1.0)
    q = np.clip(1.0 - probability, 1e-300, 1.0)
    return -(p * np.log2(p) + q * np.log2(q))


def _outcomes(belief: Belief, trial: Trial) -> list[tuple[float, Belief]]:
    """Return both outcomes of a trial: a run fails, which is taken to be the first, or all pass."""
    failing = float(gain_of(belief, trial.runs)[1][trial.commit])
    found = []
    if failing > 0.0:
        found.append((failing, belief.after(trial.commit, True)))
    if failing < 1.0:
        passed = belief
        for _ in range(trial.runs):
            passed = passed.after(trial.commit, False)
        found.append((1.0 - failing, passed))
    return found


def _chance_of_testing(belief: Belief) -> Floats:
    """Return how likely each commit can be tested: what breaks one commit breaks its neighbours, too.

    With n untestable commits, one at the distance d of them is testable with the probability d / (d + n), so that each
    further one drives the search further away.
    """
    (broken,) = np.nonzero(~belief.testable)
    if not len(broken):
        return np.ones(belief.history.size)
    commits = np.arange(belief.history.size)
    after = np.clip(np.searchsorted(broken, commits), 0, len(broken) - 1)
    before = np.clip(after - 1, 0, None)
    distance = np.minimum(np.abs(broken[after] - commits), np.abs(broken[before] - commits))
    chance: Floats = distance / (distance + len(broken))
    return chance
