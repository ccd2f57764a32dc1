"""Tests for expectations of cases and claims: parsed, compared with results, and along a series."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ExitCode, UsageError
from harness.verdict import Claim, ClaimKind, Outcome, Run, ScenarioResult, exit_code, words
from harness.verdict.bisect import BisectVerdict
from harness.verdict.bisect import judge as bisected
from harness.verdict.differences import What, compare_runs
from harness.verdict.expected.expectation import Expectation, ExpectationAnswer, Expected
from harness.verdict.expected.judge import held, held_along, held_run
from harness.verdict.expected.split import split_differences
from harness.verdict.series import changes
from harness.verdict.table import Case, Column, Mark, Table
from tests.sample_pages import DIRTY, SAVED, observation
from tests.test_verdict_causes import FIRST, LATER, broken

P, F, S, K, E, X = (
    *(Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED, Outcome.KNOWN_BUG, Outcome.ERROR, Outcome.EXPECTED),
)
FORK = Case("fork", "pmd")


# --- parsing -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("fork=fail", ("fork", None, "", "fail")),
        ("fork:pmd=pass", ("fork", "pmd", "", "pass")),
        ("fork:2M=skip", ("fork", "pmd", "", "skip")),
        ("fork:1g:a=b: c=d=fail", ("fork", "pud", "a=b: c=d", "fail")),
        ("fork:the child's pmd keeps D=fail", ("fork", None, "the child's pmd keeps D", "fail")),
        (" fork:pmd : keeps D = fail ", ("fork", "pmd", "keeps D", "fail")),
        ("fork:pmd:pud=fail", ("fork", "pmd", "pud", "fail")),
        ("a/b.py=fail", ("a/b.py", None, "", "fail")),
        (
            "./a b/test_x.py::TestIt::test_y[thp-2]:4K:it holds=fail",
            ("./a b/test_x.py::TestIt::test_y[thp-2]", "pte", "it holds", "fail"),
        ),
        ("fork:pmd:see ./test_x.py::y=fail", ("fork", "pmd", "see ./test_x.py::y", "fail")),
    ],
)
def test_an_expectation_is_parsed(text: str, said: tuple[str, str | None, str, str]) -> None:
    found = Expectation.parse(text)
    assert (found.test, found.level, found.claim, found.outcome.value) == said
    assert Expectation.parse(str(found)) == found, (
        "the text must parse to the same value, because children get it as text"
    )
    assert Expectation.from_json(json.loads(json.dumps(found.to_json()))) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fork", "'fork': an expectation ends in =pass or =fail or =skip: TEST[:LEVEL]"),
        ("fork=fial", "'fork=fial': no outcome 'fial'; did you mean 'fail'? the outcomes are pass, fail, skip"),
        ("fork:a=b", "no outcome 'b'; the outcomes are pass, fail, skip"),
        ("fork:pdm=fail", "'fork:pdm=fail': no page-table level 'pdm'; did you mean"),
        ("fork:4M:x=fail", "no page-table level '4M'"),
        ("fork:=fail", "no page-table level ''"),
        ("fork:pmd:=fail", "the name of a claim is missing after the last colon"),
        ("=fail", "'=fail': expected TEST[:LEVEL][:CLAIM]=pass|fail|skip, where TEST is a scenario or FILE.py[::TEST]"),
        ("./mine=fail", "where TEST is"),
        ("./mine.py::=fail", "where TEST is"),
    ],
)
def test_an_invalid_expectation_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UsageError) as refused:
        Expectation.parse(text)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.text(alphabet=st.sampled_from("fp m\td:=[]/.py4KaiskPl\n'\\")) | st.text())
def test_any_text_is_parsed_or_refused(text: str) -> None:
    for words_ in (text, f"{text}=fail", f"fork:{text}=fail", f"x.py{text}=skip"):
        try:
            found = Expectation.parse(words_)
        except UsageError:
            continue
        assert Expectation.parse(str(found)) == found


# --- one result ----------------------------------------------------------------------------------


def result(outcome: Outcome, *claims: Claim, reason: str = "", cannot_know: bool = False) -> ScenarioResult:
    return ScenarioResult("fork", "pmd", outcome, reason, claims, cannot_know=cannot_know)


def claim(name: str, outcome: Outcome) -> Claim:
    return Claim(name, outcome, "f()")


def judged(found: ScenarioResult, *texts: str) -> ScenarioResult:
    """Return the judged result. Checks that it can be written and read back."""
    after = held(found, [Expectation.parse(text) for text in texts])
    assert ScenarioResult.from_json(json.loads(json.dumps(after.to_json()))) == after
    return after


HOLDS, BREAKS = claim("a", P), claim("a", F)


@pytest.mark.parametrize(
    ("found", "said", "outcome", "answer"),
    [
        (result(F, BREAKS), "fail", X, "met"),
        (result(F, reason="the kernel died"), "fail", X, "met"),
        (result(K), "fail", X, "met"),
        (result(P, HOLDS), "fail", F, "unmet"),
        (result(S), "fail", S, "unknown"),
        (result(E), "fail", E, "unknown"),
        (result(P), "pass", P, "met"),
        (result(S), "pass", F, "unmet"),
        (result(S, cannot_know=True), "pass", S, "unknown"),
        (result(K), "pass", F, "unmet"),
        (result(F), "pass", F, "unmet"),
        (result(E), "pass", E, "unknown"),
        (result(S), "skip", X, "met"),
        (result(P), "skip", F, "unmet"),
        (result(F), "skip", F, "unmet"),
        (result(F, BREAKS), "a=fail", X, "met"),
        (result(K, claim("a", K)), "a=fail", X, "met"),
        (result(P, HOLDS), "a=fail", F, "unmet"),
        (result(P, claim("a", S)), "a=fail", P, "unknown"),  # it cannot be known on this CPU
        (result(P, claim("a", S)), "a=pass", P, "unknown"),
        (result(P, claim("a", S)), "a=skip", P, "met"),
        (result(P, HOLDS), "a=pass", P, "met"),
        (result(F, BREAKS), "a=pass", F, "unmet"),
        (result(P, HOLDS), "b=fail", F, "no_claim"),
        (result(F, HOLDS, reason="the kernel died"), "b=fail", F, "unknown"),  # it may have ended before this claim
        (result(S), "b=fail", S, "unknown"),
        (result(S), "b=pass", F, "unmet"),
        (result(F, BREAKS, claim("b", F)), "a=fail", F, "met"),
        (result(K, claim("a", K), claim("b", K)), "a=fail", K, "met"),
        (result(F, BREAKS, reason="the kernel died"), "a=fail", F, "met"),
        (
            result(F, replace(BREAKS, message="oops"), reason="oops\n  and more"),
            "a=fail",
            X,
            "met",
        ),
        (result(F, BREAKS, Claim("", F, "", kind=ClaimKind.INVARIANTS)), "a=fail", F, "met"),
        (result(F, BREAKS, Claim("", F, "", kind=ClaimKind.INVARIANTS)), "fail", X, "met"),
    ],
)
def test_an_expectation_changes_the_outcome(found: ScenarioResult, said: str, outcome: Outcome, answer: str) -> None:
    text = f"fork:{said}" if "=" in said else f"fork={said}"
    after = judged(found, text)
    assert (after.outcome, [one.answer.value for one in after.expectations]) == (outcome, [answer])
    assert after.was is (found.outcome if outcome is X else None)
    assert after.as_found.claims == found.claims
    status = {F: ExitCode.CLAIM_FAILED, E: ExitCode.MACHINERY}.get(outcome, ExitCode.OK)
    assert exit_code([after]) == status
    verdict = {F: BisectVerdict.BAD, E: BisectVerdict.BROKEN, S: BisectVerdict.CANNOT_TELL, K: BisectVerdict.BAD}
    assert bisected([after])[0] is verdict.get(outcome, BisectVerdict.GOOD)


def test_an_expected_claim_covers_only_what_follows_from_it() -> None:
    other = broken("the parent's entry is writable", "-W", "forked", process="parent")
    name = FIRST.name
    after = judged(result(F, FIRST, LATER), f"fork:{name}=fail")
    assert (after.outcome, [one.outcome for one in after.claims]) == (X, [X, X])
    after = judged(result(F, FIRST, other, LATER), f"fork:{name}=fail")
    assert (after.outcome, [one.outcome for one in after.claims]) == (F, [X, F, X])
    assert words.failed(after)[:2] == ["1 claim does not hold", f"BROKEN {other.name} [{other.kernel_function}]"]
    after = judged(result(F, FIRST, LATER), f"fork:{LATER.name}=fail")
    assert (after.outcome, [one.outcome for one in after.claims]) == (F, [F, X]), "the cause itself was not expected"


def test_an_expected_skip_of_a_claim_passes_with_strict() -> None:
    found = result(P, claim("a", S))
    assert exit_code([found], strict=True) == ExitCode.CLAIM_FAILED
    assert exit_code([judged(found, "fork:a=skip")], strict=True) == ExitCode.OK


def test_several_expectations_of_one_case() -> None:
    after = judged(result(F, BREAKS, claim("b", F)), "fork:a=fail", "fork:b=fail")
    assert after.outcome is X
    after = judged(result(F, BREAKS, claim("b", P)), "fork:a=fail", "fork:b=fail")
    assert (after.outcome, [one.answer for one in after.expectations]) == (
        *(F, [ExpectationAnswer.MET, ExpectationAnswer.UNMET]),
    )


@pytest.mark.parametrize(
    ("found", "said", "line"),
    [
        (
            *(result(P, HOLDS), "fork=fail"),
            "'fork=fail' is not met: expected it to fail, but it passed; "
            "remove the expectation, or find out why the kernel does not do what was intended",
        ),
        (
            *(result(P, claim("it's kept", P)), "fork:it's kept=fail"),
            '"fork:it\'s kept=fail" is not met: expected the claim to fail, but it holds; remove the expectation, or',
        ),
        (
            *(result(P, claim("keeps D", P)), "fork:keps D=fail"),
            "'fork:keps D=fail' is not met: expected the claim to fail, but there is no claim of this name; "
            "did you mean 'keeps D'? `hugepfn run fork:pmd` prints them all",
        ),
        (result(S), "fork=pass", "expected it to pass, but it was skipped; remove the expectation if that may happen"),
        (result(K), "fork=pass", "but it has a known bug;"),
        (
            result(F),
            "fork=skip",
            "expected it to be skipped, but it failed; remove the expectation, or find",
        ),
    ],
)
def test_an_unmet_expectation_says_what_was_expected_what_happened_and_what_to_do(
    found: ScenarioResult, said: str, line: str
) -> None:
    after = judged(found, said)
    (told,) = words.unmet(after)
    assert line in told
    assert words.failed(after)[-1] == told
    assert told in words.reason(after)
    assert words.unmet_of([after]) == [f"fork pmd: {told}"]


def test_the_words_of_what_was_expected() -> None:
    after = judged(result(F, BREAKS), "fork:a=fail")
    assert (words.outcome(after), words.reason(after)) == ("expected (failed)", "1 claim does not hold: a [f()]")
    assert words.totals([after, result(P, HOLDS)]) == (
        "1 passed, 1 expected; 1 of 2 claims holds; what was expected does not count as a failure"
    )
    assert bisected([after, result(P)]) == (BisectVerdict.GOOD, "1 of 2 passed, 1 as expected")
    skipped = judged(replace(result(S), scenario="zap"), "zap=skip")
    table = Table.of([Column("k", (Run((after, skipped)),))])
    assert [row[0].word for row in table.cells] == ["expected fail", "expected skip"]
    assert [row[0].mark for row in table.cells] == [Mark.EXPECTED, Mark.EXPECTED]


def test_an_expectation_applies_only_to_its_case() -> None:
    run = Run((result(F), replace(result(F), level="pud")))
    after = held_run(run, {FORK: (Expectation.parse("fork:pmd=fail"),)})
    assert [one.outcome for one in after.results] == [X, F]


def test_real_failures_are_covered_by_their_first_claim() -> None:
    """The results of a run on a kernel whose fork() leaves the child's pte dirty."""
    path = Path(__file__).parent / "data" / "failures" / "fork-pte-stays-dirty.json"
    run = Run.from_json(json.loads(path.read_text()))
    (failed,) = [one for one in run.results if one.outcome is F]
    first = next(one for one in failed.claims if one.outcome is F)
    after = judged(failed, f"fork:pte:{first.name}=fail")
    assert after.outcome is X, words.failed(after)


# --- a series, and two kernels -------------------------------------------------------------------


def columns(*outcomes: Outcome | None) -> list[Column]:
    def run(outcome: Outcome | None) -> Run:
        claims = (claim("a", outcome),) if outcome in (P, F) else ()
        return Run(() if outcome is None else (result(outcome, *claims),))

    return [Column(str(number), (run(outcome),)) for number, outcome in enumerate(outcomes)]


@pytest.mark.parametrize(
    ("outcomes", "said", "found", "unmet", "changed"),
    [
        ((P, P, F, F), "fork:a=fail", (P, P, X, X), [], [(2, True)]),
        ((P, F, F), "fork=fail", (P, X, X), [], [(1, True)]),
        ((P, S, S), "fork=skip", (P, X, X), [], [(1, True)]),
        ((P, None, F), "fork=fail", (P, None, X), [], [(2, True)]),
        ((P, F, E, F), "fork=fail", (P, X, E, X), [], [(1, True)]),
        ((F, P, F), "fork=fail", (F, P, X), [], [(1, False), (2, True)]),
        ((F, F, F), "fork=fail", (F, X, X), [], []),  # the failure exists before the series
        ((P, F, P), "fork=fail", (P, X, P), [2], [(1, True), (2, False)]),  # and undone by a later patch
        ((P, P, P), "fork=fail", (P, P, P), [2], []),
        ((P, P, E), "fork=fail", (P, P, E), [1], []),
        ((P, F, F), "fork:b=fail", (P, F, F), [2], [(1, False)]),
        ((P, F), "fork=pass", (P, F), [1], [(1, False)]),
        ((F, P, P), "fork=pass", (F, P, P), [], [(1, False)]),  # a change that is no failure
        ((P, E, None), "fork=fail", (P, E, None), [], []),
    ],
)
def test_an_expectation_holds_from_the_first_patch_that_meets_it(
    outcomes: tuple[Outcome | None, ...],
    said: str,
    found: tuple[Outcome | None, ...],
    unmet: list[int],
    changed: list[tuple[int, bool]],
) -> None:
    after, missed = held_along(columns(*outcomes), {FORK: (Expectation.parse(said),)})
    results = [next(iter(column.runs[0].results), None) for column in after]
    assert tuple(one.outcome if one else None for one in results) == found
    assert [one.column for one in missed] == unmet
    assert all(words.unmet(one.result) for one in missed)
    assert [(change.step, change.expected) for change in changes(Table.of(after))] == changed


def test_another_claim_that_breaks_is_a_change_that_counts() -> None:
    runs = [result(P, HOLDS, claim("b", P)), result(F, BREAKS, claim("b", P)), result(F, BREAKS, claim("b", F))]
    after, missed = held_along(
        [Column(str(n), (Run((one,)),)) for n, one in enumerate(runs)], {FORK: (Expectation.parse("fork:a=fail"),)}
    )
    found = [(change.step, change.expected, change.after.word) for change in changes(Table.of(after))]
    assert (found, missed) == ([(1, True, "expected fail"), (2, False, "FAIL")], ())


def test_an_expectation_does_not_cover_another_claim_that_holds_again() -> None:
    runs = [result(F, BREAKS, claim("b", F)), result(F, BREAKS, claim("b", P))]
    after, _ = held_along(
        [Column(str(n), (Run((one,)),)) for n, one in enumerate(runs)], {FORK: (Expectation.parse("fork:a=fail"),)}
    )
    assert [change.expected for change in changes(Table.of(after))] == [False]


def pair() -> tuple[Run, Run]:
    """Results of two kernels. The second has SAVED_DIRTY where the first has D and W, and a claim is about that."""
    place = broken("keeps D", "-D", "forked")
    assert place.mismatch is not None
    assert place.mismatch.entry is not None
    bits = frozenset({"-D", "-W", "-A", "+SAVED_DIRTY"})
    lost = replace(place, mismatch=replace(place.mismatch, wrong=bits, reference=None))
    before = ScenarioResult("fork", "pmd", P, "", (replace(lost, outcome=P, mismatch=None),), (observation(DIRTY, 1),))
    after = ScenarioResult("fork", "pmd", F, "", (lost,), (observation(SAVED, 2),))
    return Run((before,)), Run((after,))


@pytest.mark.parametrize("said", ["fork:pmd=fail", "fork:pmd:keeps D=fail"])
def test_expected_differences_do_not_count(said: str) -> None:
    one, other = pair()
    found, unmet = held_along([Column("A", (one,)), Column("B", (other,))], {FORK: (Expectation.parse(said),)})
    counted, expected = split_differences(compare_runs(one, other), found[1])
    assert (counted, unmet) == ((), ())
    assert [each.what for each in expected[0].differences] == [What.OUTCOME, What.CLAIM, What.ENTRY]


def test_other_bits_and_other_mappings_count() -> None:
    one, other = pair()
    for change in ({"process": "parent"}, {"mapping": "ram"}):
        before = replace(one.results[0], observations=(observation(DIRTY, 1, **change),))
        after = replace(other.results[0], observations=(observation(SAVED, 2, **change),))
        runs = Run((before,)), Run((after,))
        found, _ = held_along(
            [Column("A", (runs[0],)), Column("B", (runs[1],))], {FORK: (Expectation.parse("fork:keeps D=fail"),)}
        )
        counted, expected = split_differences(compare_runs(*runs), found[1])
        assert [each.what for each in counted[0].differences] == [What.ENTRY]
        assert [each.what for each in expected[0].differences] == [What.OUTCOME, What.CLAIM]
    after = replace(other.results[0], observations=(observation(SAVED.replace(" NX", ""), 2),))
    found, _ = held_along(
        [Column("A", (one,)), Column("B", (Run((after,)),))], {FORK: (Expectation.parse("fork:keeps D=fail"),)}
    )
    assert [one.what for one in split_differences(compare_runs(one, Run((after,))), found[1])[0][0].differences] == [
        What.ENTRY
    ]


def test_without_an_expectation_everything_counts() -> None:
    one, other = pair()
    differences = compare_runs(one, other)
    assert split_differences(differences, Column("B", (other,))) == (differences, ())
    assert Expected("fail") is Expected.FAIL
