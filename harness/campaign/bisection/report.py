"""The answer of a bisection in words, and its log as ``git bisect replay`` takes it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from rich.text import Text

from harness.bisection.belief import CONFIDENCE
from harness.bisection.search import Search, Tip, Where
from harness.campaign.bisection.bisect import Bisection
from harness.campaign.bisection.steps import Course, short
from harness.campaign.compare import case_lines
from harness.verdict import Run
from harness.verdict.differences import compare_runs

_SHOWN_MAX = 20


def report_lines(bisection: Bisection) -> Iterator[Text]:
    """The culprit, what turned red, what differs, and how sure that is."""
    search, course = bisection.search, bisection.course
    found, steps = search.culprit, course.steps
    what = "first fixed" if course.fixed else "first bad"
    if len(found.candidates) == 1:
        step = steps[found.candidates[0]]
        yield Text(f"{what}: {step.name} {step.subject}", style="bold red" if not course.fixed else "bold green")
    else:
        yield Text(
            f"{what}: one of these {len(found.candidates)}, between which nothing can be tested", style="bold red"
        )
        for candidate in found.candidates[:_SHOWN_MAX]:
            yield Text(f"  {steps[candidate].name} {steps[candidate].subject}")
        if len(found.candidates) > _SHOWN_MAX:
            yield Text(f"  and {len(found.candidates) - _SHOWN_MAX} more")
    yield Text(f"{'no longer shows' if course.fixed else 'shows'} {bisection.sought or 'a failure'}")
    good, bad = (_nearest(bisection, is_bad) for is_bad in (False, True))
    if good is not None and bad is not None:
        yield Text(f"{short(bisection.step_of(good).name)} -> {short(bisection.step_of(bad).name)}:")
        results = (bisection.results[where].as_found for where in (good, bad))
        before, after = (Run((one,), {}) for one in results)
        for one in compare_runs(before, after):
            yield from case_lines(one)
    for where, reason in search.untestable.items():
        yield Text(f"not tested: {short(steps[where].name)} {steps[where].subject}: {reason}", style="yellow")
    yield Text(confidence(search), style="bold")


def confidence(search: Search) -> str:
    """How sure the answer is, and why."""
    fails, passes = sum(search.shown.values()), sum(search.passed.values())
    sure = f"{100 * search.confidence:.2f} % sure" if search.confidence <= 0.9999 else "more than 99.99 % sure"
    runs = f"{fails} runs showed it, {passes} did not ({search.passed[Tip.GOOD]} of these of the good end)"
    if search.culprit.probability < CONFIDENCE:
        return f"{sure}; {runs}; nothing that can be tested tells more"
    rate = f"a bad commit shows it in {100 * search.belief.rate:.0f} % of its runs"
    return f"{sure}: P(c | runs) ~ P(c) E[p**F (1-p)**P], {rate}; {runs}; see docs/bisection.md"


def _nearest(bisection: Bisection, bad: bool) -> Where | None:
    """The commit nearest to the culprit that was run and is bad, or good; an end if there is none."""
    culprit = bisection.search.culprit.candidates[-1 if bad is not bisection.course.fixed else 0]
    ran = [at for at in bisection.results if isinstance(at, int) and bisection.search.verdict(at) is bad]
    end = Tip.BAD if bad else Tip.GOOD
    nearest = min(ran, key=lambda at: abs(at - culprit), default=None)
    return nearest if nearest is not None else end if end in bisection.results else None


def git_log(course: Course, search: Search, paths: Sequence[str] = ()) -> Iterator[str]:
    """The lines that ``git bisect replay`` takes: what is known to be bad or good, and what is skipped."""
    bad, good = ("old", "new") if course.fixed else ("bad", "good")
    ends = {bad: course.bad, good: course.good}
    for word, step in ends.items():
        yield f"# {word}: [{step.name}] {step.subject}"
    yield " ".join(["git bisect start", *(shlex.quote(one) for one in (["--", *paths] if paths else []))])
    for word, step in ends.items():
        yield f"git bisect {word} {step.name}"
    tested = sorted({at for at in (*search.shown, *search.passed) if isinstance(at, int)})
    # git takes the last one that it is told for the newest bad (or fixed) commit.
    for is_bad, order in ((course.fixed, tested), (not course.fixed, reversed(tested))):
        word = bad if is_bad else good
        for step in (course.steps[at] for at in order if search.verdict(at) is is_bad):
            yield f"# {word}: [{step.name}] {step.subject}"
            yield f"git bisect {word} {step.name}"
    for at, reason in search.untestable.items():
        yield f"# skip: [{course.steps[at].name}] {course.steps[at].subject}: {reason}"
        yield f"git bisect skip {course.steps[at].name}"
