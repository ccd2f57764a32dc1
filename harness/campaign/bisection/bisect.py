"""``hugepfn bisect``: runs what the search wants, and notes it before anything else happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.bisection.choice import Costs
from harness.bisection.search import Search, Tip, Where
from harness.bisection.symptom import Sighting, Trait, sighting, traits_of
from harness.campaign.bisection.costs import costs_of
from harness.campaign.bisection.journal import Noted
from harness.campaign.bisection.steps import Course, short
from harness.campaign.kernels import RunOptions
from harness.campaign.series import PatchStep
from harness.campaign.units.journal import Journal
from harness.campaign.units.unit import Unit, UnitAnswer, UnitExecutor, Work
from harness.errors import UsageError
from harness.selection.selected import Selected
from harness.verdict.claims import ScenarioResult

_ENDS = {"bad": Tip.BAD, "good": Tip.GOOD}


@dataclass(frozen=True)
class Looked:
    """What is looked for."""

    test: Selected
    any_failure: bool = False
    repeats: int | None = None
    options: RunOptions = field(default_factory=RunOptions)
    at_once: int = 1
    """How many kernels are run at the same time."""


class Bisection:
    """A bisection of a course.

    :param line: called with each line of the progress.
    """

    def __init__(
        self,
        course: Course,
        looked: Looked,
        executor: UnitExecutor,
        journal: Journal[Noted],
        line: Callable[[str], None],
    ) -> None:
        self.course, self._looked, self._executor, self._journal, self._line = course, looked, executor, journal, line
        self.search = Search(course.history, looked.repeats)
        self.sought: Trait | None = None
        self.results: dict[Where, ScenarioResult] = {}
        self._test = looked.test
        self._keys: dict[str, Where] = {}
        self._last: Where | None = None
        self._numbers: dict[str, Where] = {**_ENDS, **{one.name: at for at, one in enumerate(course.steps)}}

    def run(self, noted: Sequence[Noted] = ()) -> None:
        """Bisect.

        :param noted: what an earlier run noted, which is not run again.
        :raises UsageError: an end is not what it was said to be.
        :raises MachineryError: the machinery failed, or the results contradict each other.
        """
        self.replay(noted)
        while wanted := self.search.wanted_at_once(self._costs, self._looked.at_once):
            with closing(self._executor.run([self._unit(where) for where in wanted])) as answers:
                for count, (number, answer) in enumerate(answers, 1):
                    where = wanted[number]
                    one = self._noted(self._name(where), answer)
                    self._journal.note(one)
                    self._take(one)
                    self._line(self._told(where, one))
                    if count < len(wanted) and self.search.wanted(self._costs) is None:
                        break  # the culprit is known; what still runs is ended

    def replay(self, noted: Sequence[Noted]) -> None:
        """Take what an earlier run noted."""
        for one in noted:
            self._take(one)

    def step_of(self, where: Where) -> PatchStep:
        """The step at a place."""
        ends = {Tip.BAD: self.course.bad, Tip.GOOD: self.course.good}
        return ends[where] if isinstance(where, Tip) else self.course.steps[where]

    def _name(self, where: Where) -> str:
        return next(name for name, at in self._numbers.items() if at == where)

    def _unit(self, where: Where) -> Unit:
        step, others = self.step_of(where), frozenset(key for key, at in self._keys.items() if at != where)
        title = f"{short(self._name(where))} {step.subject}".strip()
        boots = where in self.results
        return Unit(step.spec, (self._test,), self._looked.options, title, Work.TRY, others, boots)

    def _noted(self, name: str, answer: UnitAnswer) -> Noted:
        if answer.unusable:
            said = answer.unusable.splitlines()
            first = " ".join(line.strip() for line in said[: 1 + said[0].endswith(":")])  # with the compiler's error
            return Noted(name, Sighting.UNTESTABLE, first, answer.key)
        if answer.run is None:
            other = self._keys[answer.key]
            same = next(name for name, at in self._numbers.items() if at == other)
            return Noted(name, Sighting.UNTESTABLE, key=answer.key, same_as=same)
        seen = [(*sighting(one, self.sought), one) for one in answer.checked().results]
        rank = (Sighting.SHOWS, Sighting.UNTESTABLE, Sighting.PASSES)
        best, reason, result = min(seen, key=lambda one: rank.index(one[0]))
        return Noted(name, best, reason, answer.key, result=result)

    def _take(self, one: Noted) -> None:
        where = self._numbers[one.step]
        self._last = where
        if one.same_as:
            if isinstance(where, Tip):
                raise UsageError("both ends make the same kernel, so nothing between them is the culprit")
            self.search.same(where, self._numbers[one.same_as])
            return
        if one.key:
            self._keys.setdefault(one.key, where)
        if one.result is not None:
            self.results[where] = one.result
            if where is Tip.BAD and one.seen is Sighting.SHOWS and not self.search.shown[where]:
                self._narrow(one.result)
        self.search.take(where, one.seen, one.reason)

    def _narrow(self, result: ScenarioResult) -> None:
        """From now on, look for what the bad end showed first, and run only that test."""
        if not self._looked.any_failure:
            self.sought = next(iter(traits_of(result)), None)
        file = Path(result.file) if result.file else self._test.file
        self._test = replace(self._test, file=file, scenario=result.scenario, level=result.level)

    @property
    def _costs(self) -> Costs:
        return costs_of(self.course, self._keys.values(), self._last)

    def _told(self, where: Where, one: Noted) -> str:
        name = where.value if isinstance(where, Tip) else f"{short(one.step)} {self.step_of(where).subject}"
        said = f"the same kernel as {short(one.same_as)}" if one.same_as else f"{one.seen.value} {one.reason}".strip()
        return f"{name}: {said} ({self.search.belief.entropy_bits:.1f} bits are missing)"
