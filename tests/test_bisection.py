"""The mathematics of a bisection: what is known after some runs, and what to test next."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bisection.belief import ALWAYS, CONFIDENCE, Belief, Contradiction, Rate, known_rate
from harness.bisection.choice import Costs, Trial, next_trial
from harness.bisection.history import CommitHistory, LinearHistory, MendedHistory, MergedHistory, history_of

UNIFORM = Rate(1.0, 1.0)
# 0 - 1 - 2 ------- 5 - 6
#      \- 3 - 4 ---/
MERGED = [[], [0], [1], [1], [3], [2, 4], [5]]


def ancestors(parents: Sequence[Sequence[int]], commit: int) -> set[int]:
    return {commit}.union(*(ancestors(parents, one) for one in parents[commit]))


@st.composite
def graphs(draw: st.DrawFn) -> list[list[int]]:
    size = draw(st.integers(1, 20))
    return [draw(st.lists(st.integers(0, n - 1), max_size=3, unique=True)) if n else [] for n in range(size)]


def uniform_likelihood(fails: int, passes: int) -> Fraction:
    """The integral of p**fails * (1-p)**passes."""
    return Fraction(1, (fails + passes + 1) * comb(fails + passes, fails))


def seen(belief: Belief, runs: Sequence[tuple[int, bool]]) -> Belief:
    for commit, failed in runs:
        belief = belief.after(commit, failed)
    return belief


def test_a_line_is_the_graph_without_merges() -> None:
    line = history_of([[], [0], [1], [2]])
    assert isinstance(line, LinearHistory)
    assert isinstance(history_of([[], [0], [0]]), MergedHistory)
    graph, weights = MergedHistory([[], [0], [1], [2]]), np.array([[0.1, 0.2, 0.3, 0.4], [1, 0, 0, 2]])
    assert np.allclose(line.gathered(weights), graph.gathered(weights))
    testable = np.array([True, False, False, True])
    groups = [[int(one) for one in np.unique(h.classes(testable), return_inverse=True)[1]] for h in (line, graph)]
    assert [[one == row[1] for one in row] for row in groups] == [[False, True, True, True]] * 2


@given(graphs())
def test_the_ancestors_of_a_graph(parents: list[list[int]]) -> None:
    graph, weights = MergedHistory(parents), np.arange(1.0, len(parents) + 1)
    for commit in range(len(parents)):
        wanted = ancestors(parents, commit)
        assert set(np.flatnonzero(graph.blamed(commit))) == wanted
        assert set(np.flatnonzero(MendedHistory(graph).blamed(commit))) == set(range(len(parents))) - wanted
        assert graph.gathered(weights)[commit] == sum(weights[one] for one in wanted)
        assert MendedHistory(graph).gathered(weights)[commit] == weights.sum() - sum(weights[one] for one in wanted)


@given(graphs(), st.data())
def test_the_classes_of_a_graph(parents: list[list[int]], data: st.DataObject) -> None:
    size = len(parents)
    testable = np.array(data.draw(st.lists(st.booleans(), min_size=size, max_size=size)))
    told = [
        {commit for commit in range(size) if testable[commit] and c in ancestors(parents, commit)} for c in range(size)
    ]
    classes = MergedHistory(parents).classes(testable)
    assert all((classes[a] == classes[b]) == (told[a] == told[b]) for a in range(size) for b in range(size))


@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), max_size=12),
    st.sampled_from([LinearHistory(7), MergedHistory(MERGED), MendedHistory(MergedHistory(MERGED))]),
)
def test_the_posterior_is_the_one_of_bayes_theorem(runs: list[tuple[int, bool]], history: CommitHistory) -> None:
    """Exactly, in fractions, with both rates unknown."""
    belief = seen(Belief.of(history, bad=UNIFORM, good=UNIFORM), runs)
    weights = []
    for candidate in range(7):
        of_bad = [failed for commit, failed in runs if history.blamed(commit)[candidate]]
        of_good = [failed for commit, failed in runs if not history.blamed(commit)[candidate]]
        bad, good = (uniform_likelihood(sum(side), len(side) - sum(side)) for side in (of_bad, of_good))
        weights.append(bad * good)
    assert np.allclose(belief.weights, [float(one / sum(weights)) for one in weights])


def test_a_failure_is_certain_and_a_pass_is_not() -> None:
    belief = seen(Belief.of(LinearHistory(4), bad=UNIFORM), [(1, True), (0, False)])
    # 0 is the culprit with B(2, 2) = 1/6 of the whole, and 1 with B(2, 1) = 1/2.
    assert np.allclose(belief.weights, [0.25, 0.75, 0, 0])
    assert belief.after_bad_end(True).weights[1] > 0.75, "it fails more often, so the pass says more"


def test_the_prior_of_the_commits() -> None:
    belief = Belief.of(LinearHistory(3), np.array([1.0, 2.0, 1.0]), bad=ALWAYS)
    assert np.allclose(belief.weights, [0.25, 0.5, 0.25])
    assert belief.entropy_bits == 1.5
    assert belief.after(0, False).culprit().probability == pytest.approx(2 / 3)


def test_a_bug_that_always_shows_is_learnt() -> None:
    belief = Belief.of(LinearHistory(2), bad=Rate(1.0, 1.0, 0.5))
    for _ in range(8):
        belief = belief.after_bad_end(True)
    # Whether all runs fail has the odds 1 to 1/9. Else one passes with the probability 1/10.
    assert belief.bad.sure == pytest.approx(0.9)
    assert belief.bad.passing(1) == pytest.approx(0.01)
    assert belief.rate == pytest.approx(0.99)
    assert belief.after(0, False).weights == pytest.approx([0.01 / 1.01, 1 / 1.01])
    once_passed = belief.after_bad_end(False)
    assert np.all(once_passed.bad.sure == 0.0)
    assert once_passed.bad.passing(2) == pytest.approx((2 / 11) * (3 / 12))


def test_a_good_commit_that_fails_now_and_then() -> None:
    belief = Belief.of(LinearHistory(2), bad=ALWAYS, good=known_rate(0.1)).after(0, True)
    assert np.allclose(belief.weights, [1 / 1.1, 0.1 / 1.1])


def test_observations_that_no_culprit_explains() -> None:
    belief = Belief.of(LinearHistory(3), bad=ALWAYS).after(1, False)
    with pytest.raises(Contradiction):
        belief.after(0, True)


def test_a_culprit_that_only_untestable_commits_tell_from_others() -> None:
    belief = seen(Belief.of(LinearHistory(6), bad=ALWAYS).without(2).without(3), [(1, False), (4, True)])
    assert next_trial(belief, Costs.of_runs(6)) is None
    assert belief.culprit().candidates == (2, 3, 4)
    assert belief.culprit().probability == pytest.approx(1.0)


def test_an_untestable_commit_may_be_the_culprit() -> None:
    belief = seen(Belief.of(MergedHistory(MERGED), bad=ALWAYS).without(4), [(5, True), (2, False), (3, False)])
    assert belief.culprit().candidates == (4, 5)


@pytest.mark.parametrize("size", [1, 2, 7, 64, 100])
@pytest.mark.parametrize("mended", [False, True])
def test_a_bug_that_always_shows_takes_as_many_tests_as_git_bisect_needs(size: int, mended: bool) -> None:
    for culprit in range(size):
        history = MendedHistory(LinearHistory(size)) if mended else LinearHistory(size)
        belief, tests = Belief.of(history, bad=ALWAYS), 0
        while belief.culprit().probability < CONFIDENCE:
            trial = next_trial(belief, Costs.of_runs(size))
            assert trial is not None
            belief, tests = belief.after(trial.commit, (trial.commit >= culprit) is not mended), tests + 1
        assert belief.culprit().candidates == (culprit,)
        assert tests <= np.ceil(np.log2(size))


def test_the_search_goes_around_what_cannot_be_tested() -> None:
    belief = Belief.of(LinearHistory(1000), bad=ALWAYS)
    middle, tried = 500, 0
    while True:
        trial = next_trial(belief, Costs.of_runs(1000))
        assert trial is not None
        if abs(trial.commit - middle) > 100:
            break
        belief, tried = belief.without(trial.commit), tried + 1
    assert tried < 10, "200 commits in a row do not build"
    belief = seen(belief, [(middle - 101, False), (middle + 101, True)])
    assert next_trial(belief, Costs.of_runs(1000)) is not None


def test_a_kernel_that_is_there_is_run_again_before_another_one_is_built() -> None:
    belief = seen(Belief.of(LinearHistory(100), bad=UNIFORM), [(99, True), (99, False), (50, False)])
    build = np.full(100, 100.0)
    assert next_trial(belief, Costs(build)).commit != 50  # type: ignore[union-attr]  # it has not been built here
    build[50] = 0.0
    assert next_trial(belief, Costs(build)).commit == 50  # type: ignore[union-attr]
    cheap = next_trial(belief, Costs.of_runs(100))
    assert cheap is not None
    assert (cheap.runs, cheap.commit == 50) == (1, False), "where only runs cost something, another one tells more"


def test_the_more_a_build_costs_the_more_runs_it_gets() -> None:
    belief = Belief.of(LinearHistory(100), bad=UNIFORM)
    for failed in (True, False, False, True, False, False):
        belief = belief.after_bad_end(failed)
    runs = [next_trial(belief, Costs(np.full(100, cost))).runs for cost in (0.0, 1.0, 100.0)]  # type: ignore[union-attr]
    assert runs == sorted(runs)
    assert runs[0] == 1
    assert runs[-1] >= 8


def test_a_cheap_commit_is_taken_instead_of_a_slightly_better_one() -> None:
    build = np.full(100, 100.0)
    build[40] = 1.0
    trial = next_trial(Belief.of(LinearHistory(100), bad=ALWAYS), Costs(build))
    assert trial is not None
    assert (trial.commit, trial.runs) == (40, 1)
    assert trial.gain_bits == pytest.approx(0.976, abs=1e-3)


@pytest.mark.parametrize(("jobs", "places"), [(1, [49]), (2, [33, 66]), (3, [24, 49, 74])])
def test_several_at_once_split_what_is_left_evenly(jobs: int, places: list[int]) -> None:
    pending: list[Trial] = []
    for _ in range(jobs):
        trial = next_trial(Belief.of(LinearHistory(100), bad=ALWAYS), Costs.of_runs(100), pending)
        assert trial is not None
        pending.append(trial)
    found = sorted(one.commit for one in pending)
    gaps = np.diff([-1, *found, 99])
    assert max(gaps) <= 50, f"{found}, evenly it would be {places}"
    assert len(set(found)) == jobs


def test_what_is_already_being_tested_is_not_tested_again() -> None:
    belief = Belief.of(LinearHistory(2), bad=ALWAYS)
    first = next_trial(belief, Costs.of_runs(2))
    assert first is not None
    assert next_trial(belief, Costs.of_runs(2), [first]) is None, "it tells all that there is"


def test_a_large_history_with_merges() -> None:
    """As many commits as between two releases of Linux, in branches of 20."""
    parents: list[list[int]] = []
    for number in range(6000):
        start = number % 20 == 0
        parents.append(([max(0, number - 60)] if number else []) if start else [number - 1])
        if start and number >= 60:
            parents[-1].append(number - 1)
    belief, culprit = Belief.of(MergedHistory(parents), bad=ALWAYS), 3210
    tests = 0
    while belief.culprit().probability < CONFIDENCE:
        trial = next_trial(belief, Costs.of_runs(len(parents)))
        assert trial is not None
        belief, tests = belief.after(trial.commit, bool(belief.history.blamed(trial.commit)[culprit])), tests + 1
    assert belief.culprit().candidates == (culprit,)
    assert tests <= 16
