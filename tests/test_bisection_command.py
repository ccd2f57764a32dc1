"""``hugepfn bisect`` from the command line to its answer, with an executor that has no kernels."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from harness import cli
from harness.archive.offers import Offer
from harness.bisection.search import Tip
from harness.bisection.symptom import Sighting
from harness.campaign.bisection import command, steps
from harness.campaign.bisection.bisect import Looked
from harness.campaign.bisection.command import Asked, print_log, run_bisect
from harness.campaign.bisection.costs import BUILT, CACHED, FETCHED, REBUILT, WIDE, costs_of
from harness.campaign.bisection.journal import Noted
from harness.campaign.bisection.steps import Course, of_debian, of_tree
from harness.campaign.units.journal import Journal, read
from harness.campaign.units.unit import Answers, Unit, UnitAnswer
from harness.errors import ExitCode, MachineryError, UsageError
from harness.host import cache
from harness.kernel.build import BuiltSource, are_built
from harness.selection.selected import Selected
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.table import TROUBLE

FORK = Looked(Selected(None, "fork", "pud"))
GOOD = ScenarioResult("fork", "pud", Outcome.PASSED, claims=(Claim("keeps dirty", Outcome.PASSED, "f()"),))
BAD = replace(GOOD, outcome=Outcome.FAILED, claims=(Claim("keeps dirty", Outcome.FAILED, "f()"),))
OTHER = replace(GOOD, outcome=Outcome.FAILED, claims=(Claim("something else", Outcome.FAILED, "f()"),))


def git(tree: Path, *args: str, stdin: str = "") -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    argv = ["git", "-C", str(tree), *who, *args]
    return subprocess.run(argv, capture_output=True, text=True, check=True, input=stdin).stdout


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Twelve commits, 0 to 11, of which each has its number in a file."""
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    folder = tmp_path / "tree"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for number in range(12):
        (folder / f"f{number % 2}").write_text(f"{number}\n")
        git(folder, "add", ".")
        git(folder, "commit", "-q", "-m", f"mm: change {number}")
        git(folder, "tag", f"v{number}")
    return folder


class Fake:
    """Kernels from ``culprit`` on fail."""

    def __init__(self, tree: Path, culprit: int, fixed: bool = False) -> None:
        ids = git(tree, "rev-list", "--reverse", "main").split()
        self.numbers = {one: number for number, one in enumerate(ids)}
        self.culprit, self.fixed = culprit, fixed
        self.broken: Sequence[int] = ()
        self.other: Sequence[int] = ()
        self.like: dict[int, int] = {}
        self.ran: list[int] = []
        self.most = 10_000

    def run(self, units: Sequence[Unit]) -> Answers:
        yield from enumerate(map(self._answer, units))

    def _answer(self, unit: Unit) -> UnitAnswer:
        number = self.numbers[unit.spec.rpartition("@")[2]]
        if number in self.broken:
            return UnitAnswer(unusable="it does not build: tree:x does not build:\n  f.c:1: error\nthe complete log: l")
        kernel = self.like.get(number, number)
        if (key := f"key {kernel}") in unit.known:
            return UnitAnswer(key)
        if len(self.ran) == self.most:
            raise KeyboardInterrupt
        self.ran.append(kernel)
        fails = (kernel >= self.culprit) is not self.fixed
        return UnitAnswer(key, run=Run((OTHER if number in self.other else BAD if fails else GOOD,)))


def bisected(
    tree: Path, fake: Fake, looked: Looked = FORK, resume: bool = False, good: str = "v0", bad: str = "main"
) -> ExitCode:
    asked = Asked(str(tree), good, bad, fixed=fake.fixed)
    return run_bisect(asked, looked, resume, fake)


def test_the_culprit_with_its_claim_and_how_sure_it_is(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, fake = git(tree, "rev-parse", "v7").strip(), Fake(tree, 7)
    before = git(tree, "status", "--porcelain", "--branch")
    assert bisected(tree, fake) is ExitCode.OK
    said = capsys.readouterr().out
    assert f"first bad: {head} mm: change 7\nshows claim: keeps dirty\n" in said
    assert "claim: keeps dirty [f()]: passed -> failed" in said
    assert " % sure: P(c | runs) ~ P(c) E[p**F (1-p)**P], a bad commit shows it in 9" in said
    assert git(tree, "status", "--porcelain", "--branch") == before


class Together(Fake):
    """Answers units in the reverse order, and notes how many came together, and which were not wanted any more."""

    def __init__(self, tree: Path, culprit: int) -> None:
        super().__init__(tree, culprit)
        self.sizes: list[int] = []
        self.units: list[Unit] = []

    def run(self, units: Sequence[Unit]) -> Answers:
        self.sizes.append(len(units))
        self.units += units
        for number in reversed(range(len(units))):
            yield number, self._answer(units[number])


def test_several_at_once(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = Together(tree, 7)
    assert bisected(tree, fake, replace(FORK, at_once=3)) is ExitCode.OK
    assert "mm: change 7\nshows claim: keeps dirty\n" in capsys.readouterr().out
    assert max(fake.sizes) == 3
    assert len(fake.sizes) < sum(fake.sizes) / 2, "they came together"
    again = Fake(tree, 7)
    assert bisected(tree, again, FORK, resume=True) is ExitCode.OK
    assert again.ran == [], "a journal does not care how many ran at once"


def test_a_kernel_that_ran_is_not_booted_only_to_see_whether_it_boots(tree: Path) -> None:
    fake = Together(tree, 7)
    bisected(tree, fake)
    seen: set[str] = set()
    for unit in fake.units:
        assert unit.boots is (unit.spec in seen), unit.name
        seen.add(unit.spec)
    assert len(fake.units) > len(seen)


def test_what_was_mended(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bisected(tree, Fake(tree, 4, fixed=True), good="main", bad="v0") is ExitCode.OK
    assert "mm: change 4\nno longer shows claim: keeps dirty" in capsys.readouterr().out


def test_traps_are_skipped_and_all_that_is_left_is_named(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake(tree, 7)
    fake.broken, fake.other = (5,), (6,)
    assert bisected(tree, fake) is ExitCode.MACHINERY
    said = capsys.readouterr().out
    assert "first bad: one of these 3, between which nothing can be tested" in said
    assert [f"mm: change {number}\n" in said for number in range(4, 9)] == [False, True, True, True, False]
    assert "mm: change 5: it does not build: tree:x does not build: f.c:1: error\n" in said
    assert "mm: change 6: it fails otherwise: claim: something else" in said


def test_any_failure_counts_if_that_is_asked_for(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake(tree, 7)
    fake.other = (6,)
    assert bisected(tree, fake, replace(FORK, any_failure=True)) is ExitCode.OK
    assert "mm: change 6\nshows a failure" in capsys.readouterr().out


def test_the_same_kernel_is_not_run_again(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake(tree, 7)
    fake.like = dict.fromkeys(range(7, 11), 11) | dict.fromkeys(range(1, 7), 0)
    assert bisected(tree, fake) is ExitCode.OK
    assert set(fake.ran) == {0, 11}, "only the ends were run"
    assert "first bad: " in capsys.readouterr().out


def test_ends_that_are_the_same_kernel(tree: Path) -> None:
    fake = Fake(tree, 7)
    fake.like = {0: 11}
    with pytest.raises(UsageError, match="both ends make the same kernel"):
        bisected(tree, fake)


@pytest.mark.parametrize("most", [0, 2, 5, 9])
def test_after_an_interruption_the_answer_is_the_same_and_nothing_runs_twice(
    tree: Path, capsys: pytest.CaptureFixture[str], most: int
) -> None:
    whole, first, second = Fake(tree, 7), Fake(tree, 7), Fake(tree, 7)
    bisected(tree, whole)
    answer = capsys.readouterr().out
    first.most = most
    with pytest.raises(KeyboardInterrupt):
        bisected(tree, first)
    assert bisected(tree, second, resume=True) is ExitCode.OK
    assert capsys.readouterr().out == answer
    assert first.ran + second.ran == whole.ran


def test_a_journal_is_about_commits_and_not_about_the_names_of_branches(tree: Path) -> None:
    bisected(tree, Fake(tree, 7))
    (tree / "f0").write_text("x\n")
    git(tree, "commit", "-q", "-a", "-m", "mm: change 12")
    again = Fake(tree, 7)
    with pytest.raises(UsageError, match="v0 or main is another commit now"):
        print_log()
    assert bisected(tree, again, resume=True) is ExitCode.OK
    assert again.ran[:3] == [12, 12, 12], "nothing is known about the new end"


def test_the_log_can_be_replayed_by_git(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fake = Fake(tree, 7)
    fake.broken = (5,)
    bisected(tree, fake)
    capsys.readouterr()
    print_log()
    log = tree.parent / "log"
    log.write_text(capsys.readouterr().out)
    git(tree, "bisect", "replay", str(log))
    first_bad = git(tree, "rev-parse", "v7").strip()
    assert f"# first bad commit: [{first_bad}]" in git(tree, "bisect", "log")


def test_ends_that_are_the_wrong_way_round_or_not_there(tree: Path) -> None:
    for good, bad, why in (
        ("main", "v0", "not an ancestor"),
        ("v0", "v0", "no commit between"),
        ("v0", "no", "no such"),
    ):
        with pytest.raises(UsageError, match=why):
            bisected(tree, Fake(tree, 7), good=good, bad=bad)
    with pytest.raises(UsageError, match="the bad end passed 2 runs"):
        bisected(tree, Fake(tree, 99), replace(FORK, repeats=2))
    with pytest.raises(UsageError, match="the good end shows the symptom, too"):
        bisected(tree, Fake(tree, 0))


def test_only_commits_that_touch_a_path(tree: Path) -> None:
    course = of_tree(str(tree), "v0", "main", ["f0"], fixed=False)
    assert [one.subject for one in course.steps] == [f"mm: change {number}" for number in (2, 4, 6, 8, 10)]
    assert course.parents == ((), (0,), (1,), (2,), (3,))


def test_a_history_with_a_merge(tree: Path) -> None:
    git(tree, "checkout", "-q", "-b", "side", "v3")
    (tree / "g").write_text("1\n")
    git(tree, "add", "g")
    git(tree, "commit", "-q", "-m", "side")
    git(tree, "merge", "-q", "-m", "merge", "v5")
    course = of_tree(str(tree), "v2", "side", [], fixed=False)
    numbers = {one.subject: at for at, one in enumerate(course.steps)}
    assert set(course.parents[numbers["merge"]]) == {numbers["side"], numbers["mm: change 5"]}
    assert course.history.blamed(numbers["side"]).sum() == 2


def offers(*versions: str) -> list[Offer]:
    return [Offer(f"linux-image-{one}-cloud-amd64", f"{one}-1", one, "sid", one) for one in versions]


def test_the_versions_of_debian_between_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "available", lambda _say: offers("6.12.118", "6.12.9", "6.1.5", "6.12.117", "7.3"))

    def names(course: Course) -> tuple[str, str, list[str]]:
        return course.good.name, course.bad.name, [one.spec for one in course.steps]

    between = ["debian:6.12.117-1", "debian:6.12.118-1"]
    assert names(of_debian("6.12.9", "6.12", False, None)) == ("6.12.9-1", "6.12.118-1", between)
    assert names(of_debian("6.12.118", "6.12.117", True, None)) == ("6.12.118-1", "6.12.117-1", between[1:])
    with pytest.raises(UsageError, match=r"6\.12\.118-1 is not older than 6\.12\.117-1"):
        of_debian("6.12.118", "6.12.117", False, None)
    with pytest.raises(UsageError, match=r"neither the mirror nor the cache has 6\.18"):
        of_debian("6.12", "6.18", False, None)


def test_a_line_of_the_journal_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j" / "x.jsonl", {"test": "fork"}, Noted.from_json)
    journal.start()
    notes = [
        Noted("good", Sighting.PASSES, key="k", result=GOOD),
        Noted("v1", Sighting.UNTESTABLE, "why", same_as="v2"),
    ]
    for one in notes:
        journal.note(one)
    os.utime(journal.file, ns=(0, 0))
    journal.resume()
    assert journal.file.stat().st_mtime_ns > 0, "the log is that of the one that goes on"
    whole = journal.file.read_bytes()
    journal.file.write_bytes(whole + json.dumps(notes[0].to_json()).encode()[:50])
    assert journal.resume() == notes
    journal.note(notes[0])
    assert read(journal.file, Noted.from_json)[1] == [*notes, notes[0]]
    with pytest.raises(UsageError, match="the journal of another campaign"):
        Journal(journal.file, {"test": "zap"}, Noted.from_json).resume()


@pytest.mark.parametrize(
    "run", [Run((), {TROUBLE: "no QEMU"}), Run((replace(GOOD, outcome=Outcome.ERROR, reason="no QEMU"),))]
)
def test_a_failing_machine_is_no_verdict(run: Run) -> None:
    with pytest.raises(MachineryError, match="no QEMU"):
        UnitAnswer(run=run).checked()
    assert UnitAnswer(run=Run((BAD,))).checked() == Run((BAD,))


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["fork"], "give --good REV and --bad REV, --series A..B, --mbox FILE or --debian GOOD BAD"),
        (["fork", "--good", "a"], "give both --good REV and --bad REV"),
        (["fork", "--good", "a", "--bad", "b", "--series", "a..b"], "give --good REV and --bad REV, --series"),
        (["fork", "--series", "a"], "a range of commits is written A..B"),
        (["frok", "--good", "a", "--bad", "b"], "no scenario 'frok'"),
    ],
)
def test_a_wrong_command_line(args: list[str], words: str, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        cli.main(["bisect", *args])
    assert error.value.code == ExitCode.USAGE
    assert words in "".join(capfd.readouterr())


def test_the_words_of_the_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def note(*words: object) -> ExitCode:
        asked.append(words[:2])
        return ExitCode.OK

    monkeypatch.setattr(command, "run_bisect", note)
    for words in (
        ["--series", "a..", "--fixed", "fork"],
        ["--good=a", "--bad=b", "--runs=3", "--any", "fork", "--", "mm"],
    ):
        with pytest.raises(SystemExit):
            cli.main(["bisect", *words])
    fork = Selected(None, "fork")
    assert asked == [
        (Asked(good="HEAD", bad="a", fixed=True), Looked(fork)),
        (Asked(good="a", bad="b", paths=("mm",)), Looked(fork, any_failure=True, repeats=3)),
    ]


def test_costs(tree: Path) -> None:
    (tree / "a.h").write_text("1\n")
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "a header")
    (tree / "f0").write_text("x\n")
    git(tree, "commit", "-q", "-a", "-m", "after it")
    course = of_tree(str(tree), "v8", "main", [], fixed=False)
    assert course.wide == (0, 0, 0, 1, 1)
    assert not any(course.cached)

    def costs(*ready: int | Tip, last: int | Tip | None, of: Course = course) -> list[float]:
        return list(costs_of(of, ready, last).build)

    near, far = REBUILT, REBUILT + WIDE
    assert costs(last=None) == [BUILT] * 5
    assert costs(Tip.BAD, last=Tip.BAD) == [far, far, far, near, near]
    assert costs(Tip.BAD, Tip.GOOD, last=Tip.GOOD) == [near, near, near, far, far]
    assert costs(4, 1, last=1) == [near, 0.0, near, far, 0.0]
    mended = replace(course, fixed=True)
    assert costs(last=Tip.GOOD, of=mended) == [far, far, far, near, near]
    seen = replace(course, cached=(False, True, False, False, True))
    assert costs(4, last=None, of=seen) == [BUILT, CACHED, BUILT, BUILT, 0.0]
    assert costs(last=None, of=replace(seen, fetched=True)) == [FETCHED, CACHED, FETCHED, FETCHED, CACHED]
    assert costs(last=0, of=replace(course, wide=(0, 0, 0, 9, 9)))[3] == BUILT


def test_what_was_built_before_is_known(tree: Path) -> None:
    contents = git(tree, "rev-parse", "v5^{tree}").strip()
    recipe = BuiltSource.parse(f"tree:{tree}@v5").recipe
    asked: list[str] = []

    def has(_kind: str, name: str) -> bool:
        asked.append(name)
        return len(asked) == 2

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cache, "has", has)
        assert list(are_built(recipe, ["1", contents, "3"])) == [False, True, False]
    assert len(set(asked)) == 3
