"""The simulation of ``make bisect-simulation``, small: few wrong answers, and fewer runs than with a fixed count."""

from __future__ import annotations

import numpy as np
import pytest

from harness.bisection.belief import CONFIDENCE, Belief
from harness.bisection.choice import Costs, next_trial
from harness.bisection.history import LinearHistory
from tests.bisection import simulation
from tests.bisection.simulation import Case, Score, hugepfn, plain, repeats_for, table


@pytest.mark.parametrize("rate", [0.3, 0.7, 1.0])
def test_few_answers_are_wrong_and_few_runs_are_needed(rate: float) -> None:
    case = Case(20, rate, 500)
    ours, fixed = hugepfn(case), plain(case, "lowest")
    assert ours.wrong <= 0.01
    assert fixed.wrong <= 0.02
    assert ours.runs < fixed.runs


def test_one_bisection_after_the_other_gives_the_same() -> None:
    """The simulation computes all of them at once, in arrays; the command does it as it is done here."""
    case = Case(12, 0.5, 1)
    random = case.random()
    culprit = int(random.integers(12, size=1)[0])
    first = int(random.geometric(0.5, 1)[0])
    belief, runs = Belief.of(LinearHistory(12)), first
    for number in range(first):
        belief = belief.after_bad_end(number == first - 1)
    while belief.culprit().probability < CONFIDENCE:
        trial = next_trial(belief, Costs.of_runs(12))
        assert trial is not None
        shows = bool(random.random(1)[0] < 0.5)
        belief, runs = belief.after(trial.commit, shows and trial.commit >= culprit), runs + 1
    assert hugepfn(case) == Score(runs, float(belief.culprit().candidates != (culprit,)), 1)


def test_the_number_of_repeats() -> None:
    assert [int(repeats_for(rate, 1024)) for rate in (0.1, 0.5, 1.0)] == [59, 9, 1]
    assert plain(Case(1024, 0.5, 4000), "true").wrong == pytest.approx(0.01, abs=0.006)
    assert plain(Case(1024, 1.0, 100), "true") == Score(10.0, 0.0, 100)


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulation, "CONTESTANTS", dict.fromkeys(["one", "other"], (hugepfn, [1])))
    found = {(10, rate): {"one": Score(10, 0.0, 5), "other": Score(20, 0.04, 5)} for rate in (0.5, 1.0)}
    lines = table(found).splitlines()
    assert lines[0] == "| commits | rate | one | other |"
    assert lines[2] == "| 10 | 0.5 | 10 (0.0 %) | 20 (4.0 %) |"
    assert lines[-1] == "| other | 20.0 | 4.00 % | 10 |"
    assert np.isclose(float(lines[-2].split("|")[2]), 10.0)
