"""Tests for the steps of a series, from a git range or from an mbox."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from harness.campaign.kernels import RunOptions
from harness.campaign.report import PageRequest
from harness.campaign.series import PatchStep, change_lines, run_series, steps_of_mbox, steps_of_range
from harness.campaign.units import local
from harness.errors import ExitCode, UsageError
from harness.machine import preparation
from harness.selection.selected import Selected
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.expected.expectation import Expectation
from harness.verdict.expected.judge import held_along
from harness.verdict.series import changes
from harness.verdict.table import TROUBLE, Case, Column, Table
from tests import schemas

FORK = Selected(None, "fork")


def git(tree: Path, *args: str) -> str:
    who = ("-c", "user.name=A", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", "-C", str(tree), *who, *args], capture_output=True, text=True, check=True)
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    folder = tmp_path / "tree"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    for number in range(4):
        (folder / "f").write_text(f"{number}\n")
        git(folder, "add", "f")
        git(folder, "commit", "-q", "-m", f"mm: change {number}")
    return folder


def commits(tree: Path) -> list[str]:
    return git(tree, "rev-list", "--reverse", "main").split()


def test_the_steps_of_a_range(tree: Path) -> None:
    ids = commits(tree)
    assert steps_of_range(str(tree), f"{ids[0]}..main") == [
        PatchStep("base", ids[0], f"tree:{tree}@{ids[0]}"),
        PatchStep("1/3", "mm: change 1", f"tree:{tree}@{ids[1]}"),
        PatchStep("2/3", "mm: change 2", f"tree:{tree}@{ids[2]}"),
        PatchStep("3/3", "mm: change 3", f"tree:{tree}@{ids[3]}"),
    ]
    assert [step.subject for step in steps_of_range(f"tree:{tree}", "main~1..")] == ["main~1", "mm: change 3"]


@pytest.mark.parametrize("revisions", ["main", "main...main~1", "nobody..main", "main..nobody", "..main", "main..main"])
def test_an_invalid_range_is_refused(tree: Path, revisions: str) -> None:
    with pytest.raises(UsageError):
        steps_of_range(str(tree), revisions)


def test_a_folder_without_git_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a git repository"):
        steps_of_range(str(tmp_path), "a..b")


def test_the_steps_of_an_mbox_without_its_cover_letter(tree: Path, tmp_path: Path) -> None:
    mbox = tmp_path / "series.mbox"
    mbox.write_text(git(tree, "format-patch", "--stdout", "--cover-letter", "main~2"))
    folder = tmp_path / "patches"
    folder.mkdir()
    base, first, second = steps_of_mbox("debsrc:6.12", mbox, folder)
    assert (base.name, base.spec) == ("base", "debsrc:6.12")
    assert (first.name, first.subject) == ("1/2", "mm: change 2")
    assert (second.name, second.subject) == ("2/2", "mm: change 3")
    spec, one, two = second.spec.split("+")
    assert (spec, f"{spec}+{one}") == ("debsrc:6.12", first.spec)
    assert "+2\n" in Path(one).read_text()
    assert "+3\n" in Path(two).read_text()


def test_a_patch_without_a_subject_is_named_by_its_file(tree: Path, tmp_path: Path) -> None:
    patch = tmp_path / "fix.patch"
    patch.write_text("mm: some words\n\n" + git(tree, "diff", "main~1"))
    (tmp_path / "p").mkdir()
    assert [step.subject for step in steps_of_mbox("debsrc:6.12", patch, tmp_path / "p")] == [
        "debsrc:6.12",
        "fix.patch",
    ]


@pytest.mark.parametrize("text", ["", "From: a@example.org\n\nno patch\n"])
def test_an_mbox_without_a_patch(tmp_path: Path, text: str) -> None:
    mbox = tmp_path / "m"
    mbox.write_text(text)
    (tmp_path / "p").mkdir()
    with pytest.raises(UsageError):
        steps_of_mbox("debsrc:6.12", mbox, tmp_path / "p")
    with pytest.raises(UsageError, match="no such file"):
        steps_of_mbox("debsrc:6.12", tmp_path / "none", tmp_path / "p")


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))


def follow_steps(monkeypatch: pytest.MonkeyPatch, *outcomes: Outcome | None) -> None:
    """Run steps with these outcomes, one after another. A step without an outcome has no kernel."""
    left = list(outcomes)

    def run_kernel(*_: object) -> Run:
        outcome = left.pop(0)
        if outcome is None:
            return Run((), {TROUBLE: "f.c:1: error: expected ';'"})
        return Run((ScenarioResult("fork", "pud", outcome),))

    monkeypatch.setattr(local, "run_kernel", run_kernel)
    monkeypatch.setattr(preparation, "preflight", lambda *_: None)


@pytest.mark.parametrize(
    ("last", "lost", "status"),
    [
        (Outcome.PASSED, False, 0),
        (Outcome.PASSED, True, 3),
        (Outcome.FAILED, False, 1),
        (Outcome.FAILED, True, 1),
        (Outcome.ERROR, False, 3),
        (None, False, 3),  # the step's patch does not build, or this host failed
    ],
)
def test_the_exit_status_of_a_series(
    tree: Path, monkeypatch: pytest.MonkeyPatch, last: Outcome | None, lost: bool, status: int
) -> None:
    follow_steps(monkeypatch, Outcome.PASSED, Outcome.PASSED, last)
    file = Path("/dev/full") if lost else None
    assert run_series(str(tree), "main~2..main", [FORK], RunOptions(), file, PageRequest()) == status


def test_a_patch_that_does_not_build_does_not_hide_the_others(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow_steps(monkeypatch, Outcome.PASSED, None, Outcome.FAILED)
    file = tmp_path / "out.json"
    assert run_series(str(tree), "main~2..main", [FORK], RunOptions(), file, PageRequest()) == ExitCode.CLAIM_FAILED
    data = json.loads(file.read_text())
    assert (schemas.check(data), [one["step"] for one in data["changes"]]) == ("hugepfn-matrix", ["2/2"])
    said = capsys.readouterr().out
    assert "at 2/2 mm: change 3 (the patches after base have no result)" in said
    assert "1/2 mm: change 2: f.c:1: error: expected ';'" in said
    follow_steps(monkeypatch, Outcome.PASSED, None, Outcome.PASSED)
    assert run_series(str(tree), "main~2..main", [FORK], RunOptions(), None, PageRequest()) == ExitCode.MACHINERY
    assert "the same at every step: 1 pass" in capsys.readouterr().out


def test_the_reason_of_an_error_at_every_step_is_shown(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow_steps(monkeypatch, Outcome.ERROR, Outcome.ERROR, Outcome.ERROR)
    assert run_series(str(tree), "main~2..main", [FORK], RunOptions(), None, PageRequest()) == ExitCode.MACHINERY
    assert "\nfork pud: error: " in capsys.readouterr().out


def test_a_mail_has_the_changes_without_the_table(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    follow_steps(monkeypatch, Outcome.PASSED, Outcome.PASSED, Outcome.FAILED)
    request = PageRequest(command="hugepfn series . main~2..main fork --mail", mail=True)
    assert run_series(str(tree), "main~2..main", [FORK], RunOptions(), None, request) == ExitCode.CLAIM_FAILED
    said = capsys.readouterr().out
    assert "\nfork pud: pass -> FAIL at 2/2 mm: change 3" in said
    assert "3 kernels" not in said
    assert "\n\nTo run it again:\n  hugepfn series . 'main~2..main' fork --mail\n" in said


@pytest.mark.parametrize(
    ("outcomes", "status", "words"),
    [
        ("PPF", 0, "fork pud: pass -> expected fail at 2/2 mm: change 3"),
        ("PFF", 0, "fork pud: pass -> expected fail at 1/2 mm: change 2"),
        ("PFP", 1, "fork pud: expected fail -> pass at 2/2 mm: change 3"),
        ("PPP", 1, "fork pud at 2/2 mm: change 3: 'fork:pud=fail' is not met: expected it to fail, but it passed;"),
        ("PFE", 3, "fork pud: pass -> expected fail at 1/2"),
    ],
)
@pytest.mark.parametrize("mail", [False, True])
def test_an_expected_change_is_shown_and_is_no_failure(
    tree: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    outcomes: str,
    status: int,
    words: str,
    mail: bool,
) -> None:
    letters = {"P": Outcome.PASSED, "F": Outcome.FAILED, "E": Outcome.ERROR}
    follow_steps(monkeypatch, *(letters[one] for one in outcomes))
    options = RunOptions(expected=(Expectation.parse("fork:pud=fail"),))
    files = tmp_path / "out.json", PageRequest(tmp_path / "out.html", mail=mail)
    assert run_series(str(tree), "main~2..main", [FORK], options, *files) == status
    assert words in " ".join(capsys.readouterr().out.split())
    data = json.loads((tmp_path / "out.json").read_text())
    assert schemas.check(data) == "hugepfn-matrix"
    assert [one["expected"] for one in data["changes"]] == {"PFP": [True, False], "PPP": []}.get(outcomes, [True])
    assert [one["step"] for one in data["unmet"]] == (["2/2"] if outcomes.endswith("P") else [])
    page = (tmp_path / "out.html").read_text()
    assert '"word":"expected fail"' in page or outcomes == "PPP"
    assert ("Expected, but not so" in page and "is not met" in page) or not data["unmet"]


def test_an_expectation_without_a_case_is_refused_before_a_build(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow_steps(monkeypatch)
    options = RunOptions(expected=(Expectation.parse("frok=fail"),))
    with pytest.raises(UsageError, match="is expected of no test that was selected; did you mean 'fork'"):
        run_series(str(tree), "main~2..main", [FORK], options, None, PageRequest())


def test_expected_parts_of_a_change_are_shown_separately() -> None:
    def run(outcome: Outcome) -> Run:
        claims = tuple(Claim(name, outcome, "f()") for name in ("on purpose", "not so"))
        return Run((ScenarioResult("fork", "pud", outcome, "", claims),))

    columns = [Column(name, (run(outcome),)) for name, outcome in (("base", Outcome.PASSED), ("1/1", Outcome.FAILED))]
    said = {Case("fork", "pud"): (Expectation.parse("fork:on purpose=fail"),)}
    table = Table.of(held_along(columns, said)[0])
    steps = [PatchStep("base", "", "a"), PatchStep("1/1", "mm: x", "b")]
    assert [line.plain for line in change_lines(steps, table, changes(table))] == [
        "fork pud: pass -> FAIL at 1/1 mm: x: 1 claim does not hold: not so [f()]",
        "  claim: not so [f()]: passed -> failed",
        "  as expected:",
        "  claim: on purpose [f()]: passed -> failed",
    ]
