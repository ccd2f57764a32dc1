"""The course of a bisection: its ends, what is skipped, kernels that are the same, and going on from a journal."""

from __future__ import annotations

import random

import numpy as np
import pytest

from harness.bisection.belief import CONFIDENCE, Contradiction
from harness.bisection.choice import Costs
from harness.bisection.history import CommitHistory, LinearHistory, MendedHistory
from harness.bisection.search import BAD_RUNS, DOUBT_MAX, END_RUNS_MAX, Search, Tip, Where
from harness.bisection.symptom import Sighting
from harness.errors import MachineryError, UsageError

SHOWS, PASSES, UNTESTABLE = Sighting.SHOWS, Sighting.PASSES, Sighting.UNTESTABLE
Told = list[tuple[Where, Sighting]]


def bisect(
    history: CommitHistory,
    culprit: int,
    rate: float = 1.0,
    broken: tuple[int, ...] = (),
    repeats: int | None = None,
    told: Told | None = None,
    most: int = 10_000,
) -> tuple[Search, Told]:
    """Bisect commits that fail at a rate.

    :param told: what an earlier bisection was told.
    :param most: end after so many runs.
    """
    dice, search, told = random.Random(culprit), Search(history, repeats), told or []
    for before, seen in told:
        dice.random()
        search.take(before, seen)
    while len(told) < most and (where := search.wanted(Costs.of_runs(history.size))) is not None:
        fails = dice.random() < rate
        if where in broken:
            seen = UNTESTABLE
        elif isinstance(where, Tip):
            seen = SHOWS if where is Tip.BAD and fails else PASSES
        else:
            seen = SHOWS if fails and history.blamed(where)[culprit] else PASSES
        search.take(where, seen)
        told.append((where, seen))
    return search, told


def test_a_bug_that_always_shows() -> None:
    search, told = bisect(LinearHistory(40), 17)
    assert search.culprit.candidates == (17,)
    assert search.culprit.probability >= CONFIDENCE
    assert [seen for where, seen in told if where is Tip.BAD] == [SHOWS] * BAD_RUNS
    assert all(seen is PASSES for where, seen in told if where is Tip.GOOD)
    assert search.passed[Tip.GOOD] >= 2
    assert (search.verdict(16), search.verdict(17)) == (False, True)
    assert len(told) <= 20


@pytest.mark.parametrize("culprit", [0, 5, 11])
def test_one_that_shows_in_one_run_of_three(culprit: int) -> None:
    search, _ = bisect(LinearHistory(12), culprit, rate=1 / 3)
    assert search.culprit.candidates == (culprit,)
    assert 0.2 < search.belief.rate < 0.6
    assert search.passed[Tip.GOOD] > 5, "the good end is run as often as it takes to believe it"


@pytest.mark.parametrize(("rate", "rounds_max"), [(1.0, 8), (1 / 3, 50)])
def test_several_at_once(rate: float, rounds_max: int) -> None:
    """What is asked for together is told together, in any order, and takes fewer rounds."""
    dice, search, rounds = random.Random(1), Search(LinearHistory(100)), 0
    while wanted := search.wanted_at_once(Costs(np.full(100, 15.0)), 4):
        rounds += 1
        assert len(wanted) <= 4
        for where in dice.sample(wanted, len(wanted)):
            bad = where is Tip.BAD or (isinstance(where, int) and where >= 42)
            search.take(where, SHOWS if bad and dice.random() < rate else PASSES)
    assert search.culprit.candidates == (42,)
    assert rounds <= rounds_max
    assert search.wanted_at_once(Costs.of_runs(100), 4) == ()


def test_an_end_is_not_run_oftener_because_there_is_room() -> None:
    search, costs = Search(LinearHistory(100)), Costs.of_runs(100)
    assert search.wanted_at_once(costs, 9) == (Tip.BAD,) * BAD_RUNS
    for _ in range(BAD_RUNS):
        search.take(Tip.BAD, SHOWS)
    needed = search.wanted_at_once(costs, 99)
    assert set(needed) == {Tip.GOOD}
    for _ in needed:
        search.take(Tip.GOOD, PASSES)
    assert search.wanted_at_once(costs, 1) == (search.wanted(costs),)
    thirds = search.wanted_at_once(costs, 2)
    assert [one // 30 for one in thirds if isinstance(one, int)] != [1, 1], "not the middle twice"


def test_what_was_mended() -> None:
    search, _ = bisect(MendedHistory(LinearHistory(40)), 17)
    assert search.culprit.candidates == (17,)
    assert (search.verdict(16), search.verdict(17)) == (True, False)


def test_the_broken_ones_are_candidates() -> None:
    assert bisect(LinearHistory(40), 17, broken=(14, 15, 16, 20))[0].culprit.candidates == (14, 15, 16, 17)
    assert bisect(LinearHistory(40), 17, broken=(3, 20, 30))[0].culprit.candidates == (17,)


def test_a_number_of_runs_that_the_user_chose() -> None:
    search, told = bisect(LinearHistory(32), 9, repeats=2)
    assert search.culprit.candidates == (9,)
    assert search.culprit.probability == pytest.approx(1.0)
    assert all(count == 2 for where, count in search.passed.items())
    assert len(told) <= 1 + 2 + 2 * 5


@pytest.mark.parametrize("most", [0, 1, 4, 7, 11, 30])
def test_it_goes_on_where_it_was_interrupted(most: int) -> None:
    whole, told = bisect(LinearHistory(100), 42, rate=0.5)
    _, part = bisect(LinearHistory(100), 42, rate=0.5, most=most)
    resumed, again = bisect(LinearHistory(100), 42, rate=0.5, told=part)
    assert again == told
    assert np.array_equal(resumed.belief.weights, whole.belief.weights)


def test_ends_that_are_not_what_they_were_said_to_be() -> None:
    search = Search(LinearHistory(4))
    for _ in range(END_RUNS_MAX - 1):
        search.take(Tip.BAD, PASSES)
    with pytest.raises(UsageError, match=f"the bad end passed {END_RUNS_MAX} runs"):
        search.take(Tip.BAD, PASSES)
    with pytest.raises(UsageError, match="the good end shows the symptom, too"):
        Search(LinearHistory(4)).take(Tip.GOOD, SHOWS, "claim: x")
    with pytest.raises(UsageError, match="the good end cannot be tested: it does not build"):
        Search(LinearHistory(4)).take(Tip.GOOD, UNTESTABLE, "it does not build")


def test_a_kernel_that_is_the_same_says_what_the_other_one_said() -> None:
    search = Search(LinearHistory(10), repeats=1)
    search.take(4, PASSES)
    search.same(6, 4)
    assert [search.verdict(one) for one in (4, 6, 7, 9)] == [False, False, None, True]
    search.same(8, Tip.BAD)
    assert [search.verdict(one) for one in (7, 8)] == [None, True]
    search.same(7, Tip.GOOD)
    assert search.culprit.candidates == (8,)
    with pytest.raises(Contradiction):
        search.same(8, Tip.GOOD)


def test_a_kernel_that_is_the_same_as_an_untestable_one() -> None:
    search = Search(LinearHistory(10))
    search.take(4, UNTESTABLE, "it does not boot")
    search.same(5, 4)
    assert search.untestable == {4: "it does not boot", 5: "it does not boot"}
    assert search.belief.weights[5] == 0.0, "what is between them is no culprit"


def test_a_commit_whose_kernel_is_another_ones_is_not_asked_again() -> None:
    for other, seen in ((4, PASSES), (4, UNTESTABLE), (20, SHOWS)):
        search = Search(LinearHistory(40))
        search.take(other, seen)
        search.same(other + 1, other)
        wanted = {search.wanted(Costs.of_runs(40))}
        for _ in range(60):
            if (where := search.wanted(Costs.of_runs(40))) is None:
                break
            wanted.add(where)
            fails = where is not Tip.GOOD and (where is Tip.BAD or where >= 17)
            search.take(where, SHOWS if fails else PASSES)
        assert search.culprit.candidates == (17,)
        assert other + 1 not in wanted
    search.take(20, UNTESTABLE, "it does not boot any more")
    assert search.untestable[21] == "it does not boot any more"


def test_the_good_end_is_run_again_until_it_can_be_believed() -> None:
    """The only candidate is the culprit at once; whether there is one depends on the good end alone."""
    search, told = bisect(LinearHistory(1), 0)
    alone = [where for where, _ in told].count(Tip.GOOD)
    assert search.culprit.probability == 1.0
    assert search.doubt <= DOUBT_MAX
    assert search.confidence == 1.0 - search.doubt < 1.0
    many = Search(LinearHistory(1))
    for where, seen in told[:-1]:
        many.take(where, seen)
    assert many.doubt > DOUBT_MAX, "one run less was not enough"
    assert alone > [where for where, _ in bisect(LinearHistory(40), 17)[1]].count(Tip.GOOD)


def test_the_doubt_is_bayes_theorem() -> None:
    """With Beta(1/2, 1/2) and an atom at 1: one failure, then two passes of the good end, then a passing commit."""
    search = Search(LinearHistory(2))
    for where, seen in ((Tip.BAD, SHOWS), (Tip.GOOD, PASSES), (Tip.GOOD, PASSES), (0, PASSES)):
        search.take(where, seen)
    beta = 0.9  # the part of the prior that is not the atom; E[p (1-p)**n] for Beta(1/2, 1/2) is below
    fails, fails_passes = 1 / 2, 1 / 8
    fails_three_passes = 5 / 128
    first, second = 0.5 * beta * fails_passes, 0.5 * (0.1 + beta * fails)
    outside = 0.5 * beta * fails_three_passes
    assert search.doubt == pytest.approx(outside / (outside + first + second))


def test_a_search_that_does_not_come_to_an_end() -> None:
    search = Search(LinearHistory(3))
    for _ in range(3000):
        search.take(1, PASSES)
    with pytest.raises(MachineryError, match="3000 runs of 3 commits have not found the culprit"):
        search.take(1, PASSES)


def test_a_bad_end_that_fails_otherwise_now_and_then() -> None:
    search = Search(LinearHistory(4))
    search.take(Tip.BAD, SHOWS)
    for _ in range(END_RUNS_MAX - 1):
        search.take(Tip.BAD, UNTESTABLE, "it fails otherwise")
    with pytest.raises(UsageError, match="the bad end cannot be tested: it fails otherwise"):
        search.take(Tip.BAD, UNTESTABLE, "it fails otherwise")
