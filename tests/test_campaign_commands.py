"""Tests for ``hugepfn matrix`` and ``hugepfn compare``, from the command line to the exit status. Boots no kernel."""

from __future__ import annotations

import html
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest

from harness import cli
from harness.campaign.kernels import RunOptions
from harness.campaign.progress import Live
from harness.campaign.units import local
from harness.errors import MachineryError, UsageError
from harness.machine import preparation
from harness.pagetable import Observation
from harness.selection.selected import Selected
from harness.verdict import Outcome, Run, ScenarioResult
from harness.verdict.table import TROUBLE
from tests import schemas

Say = Callable[[str], None]


class Done(NamedTuple):
    """How the command ended."""

    status: int
    out: str
    err: str


class Suite:
    """The answer of each kernel: an outcome, a Run, or an exception; or a list with one per run, whose last repeats."""

    def __init__(self) -> None:
        self.answers: dict[str, list[object]] = {}
        self.asked: list[tuple[str, tuple[str, ...]]] = []

    def run_kernel(self, spec: str, tests: Sequence[Selected], options: RunOptions, _say: Say) -> Run:
        assert options.config.smp == 2
        answers = self.answers[spec]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.asked.append((spec, tuple(map(str, tests))))
        if isinstance(answer, BaseException):
            raise answer
        if isinstance(answer, Run):
            return answer
        assert isinstance(answer, Outcome)
        return Run((ScenarioResult("fork", "pud", answer, "why" if answer is not Outcome.PASSED else ""),))


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Suite:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    suite = Suite()
    monkeypatch.setattr(local, "run_kernel", suite.run_kernel)
    monkeypatch.setattr(preparation, "preflight", lambda *_: None)
    monkeypatch.setattr("harness.kernel.spec.Kernel.resolve", lambda *_: SimpleNamespace(key=""))
    return suite


@pytest.fixture
def hugepfn(capfd: pytest.CaptureFixture[str]) -> Callable[..., Done]:
    def run(*args: str) -> Done:
        with pytest.raises(SystemExit) as ended:
            cli.main([*args, "--smp", "2"])
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        assert "Traceback" not in out + err
        return Done(ended.value.code, out, err)

    return run


Command = Callable[..., Done]
P, F, S, E = Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED, Outcome.ERROR
MATRIX = ("matrix", "-k", "debian:6.1", "-k", "debian:6.12", "fork")
COMPARE = ("compare", "debian:6.1", "debian:6.12", "fork")


@pytest.mark.parametrize(
    ("first", "second", "words", "status"),
    [(P, P, "pass  pass", 0), (P, S, "pass  skip 1", 0), (P, F, "pass  FAIL 1", 1), (E, P, "error 1  pass", 3)],
)
def test_the_table_and_the_exit_status(
    hugepfn: Command, suite: Suite, first: Outcome, second: Outcome, words: str, status: int
) -> None:
    suite.answers = {"debian:6.1": [first], "debian:6.12": [second]}
    done = hugepfn(*MATRIX)
    assert done.out.splitlines()[1] == f"fork pud  {words}"
    assert done.status == status
    assert suite.asked == [("debian:6.1", ("fork",)), ("debian:6.12", ("fork",))]


@pytest.mark.parametrize("option", ["--json", "--html"])
@pytest.mark.parametrize(("command", "good"), [(MATRIX, P), (COMPARE, P)])
def test_a_file_that_cannot_be_written_does_not_change_the_verdict(
    hugepfn: Command, suite: Suite, tmp_path: Path, command: tuple[str, ...], good: Outcome, option: str
) -> None:
    other = tmp_path / "other"
    others = ("--html", "--json")[option == "--html"], str(other)
    for second, status in ((good, 3), (F, 1)):
        suite.answers = {"debian:6.1": [good], "debian:6.12": [second]}
        done = hugepfn(*command, option, "/dev/full", *others)
        assert (done.status, "/dev/full cannot be written: No space left on device" in done.err) == (status, True)
        assert other.read_text(), "the other file must still be written"


@pytest.mark.parametrize("command", [MATRIX, COMPARE])
def test_the_page_has_the_commands_that_made_it_and_that_run_a_case_again(
    hugepfn: Command, suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    suite.answers = {"debian:6.1": [P], "debian:6.12": [F]}
    monkeypatch.setattr(sys, "argv", ["/usr/bin/hugepfn", *command, "--append", "a b"])
    hugepfn(*command, "--append", "a b", "--html", str(tmp_path / "out.html"))
    page = (tmp_path / "out.html").read_text()
    made = " ".join(["hugepfn", *command, "--append 'a b'"])
    assert f"<code>{html.escape(made)}</code>" in page
    assert '"before":["run"],"after":["--kernel=debian:6.1","--smp=2","--append=a b"]' in page


@pytest.mark.parametrize("command", [MATRIX, COMPARE])
def test_an_invalid_source_url_leaves_nothing_behind(
    hugepfn: Command, suite: Suite, tmp_path: Path, command: tuple[str, ...]
) -> None:
    done = hugepfn(*command, "--html", str(tmp_path / "out.html"), "--source-url", "elixir")
    assert (done.status, suite.asked, list(tmp_path.iterdir())) == (2, [], [])
    assert len(done.err.splitlines()) == 1
    assert "--source-url 'elixir'; expected an address such as https://" in done.err


def test_a_failed_kernel_does_not_stop_the_next(hugepfn: Command, suite: Suite, tmp_path: Path) -> None:
    suite.answers = {"debian:6.1": [Run((), {TROUBLE: "QEMU is gone"})], "debian:6.12": [P]}
    file = tmp_path / "out.json"
    done = hugepfn(*MATRIX, "--json", str(file), "--html", str(tmp_path / "out.html"))
    assert done.status == 3
    assert done.out.splitlines()[1] == "fork pud  error 1  pass"
    assert "hugepfn: debian:6.1: QEMU is gone\nhugepfn: debian:6.12: 1 passed\n" in done.err
    data = json.loads(file.read_text())
    assert schemas.check(data) == "hugepfn-matrix"
    assert [kernel["trouble"] for kernel in data["kernels"]] == ["QEMU is gone", ""]
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")


def test_repeats_name_the_flakes(hugepfn: Command, suite: Suite) -> None:
    suite.answers = {"debian:6.1": [P, F, P], "debian:6.12": [P]}
    done = hugepfn(*MATRIX, "--repeat", "3")
    assert [spec for spec, _ in suite.asked] == ["debian:6.1", "debian:6.12"] * 3
    assert done.out.splitlines()[1] == "fork pud  flake 1  pass"
    assert "flake: fork pud on debian:6.1: 2 of 3 pass, 1 of 3 FAIL: why" in done.out
    assert "2 kernels, 1 cases, each 3 times: 1 pass, 1 flake" in done.out
    assert done.status == 1


def test_ctrl_c_while_a_kernel_is_reported_loses_nothing(
    hugepfn: Command, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite.answers = {"debian:6.1": [P], "debian:6.12": [P]}
    write = Live.line

    def interrupted(live: Live, line: str) -> None:
        write(live, line)
        if line.startswith("debian:6.1:"):
            raise KeyboardInterrupt

    monkeypatch.setattr(Live, "line", interrupted)
    done = hugepfn(*MATRIX)
    assert done.status == 130
    assert done.out.splitlines()[1] == "fork pud  pass  ? 1"


def test_results_before_ctrl_c_are_shown_and_written(hugepfn: Command, suite: Suite, tmp_path: Path) -> None:
    suite.answers = {"debian:6.1": [P], "debian:6.12": [KeyboardInterrupt()]}
    file = tmp_path / "out.json"
    done = hugepfn(*MATRIX, "--json", str(file))
    assert done.status == 130
    assert done.out.splitlines()[1] == "fork pud  pass  ? 1"
    assert "cannot know: it was not run" in done.out
    assert json.loads(file.read_text())["interrupted"] is True


def test_a_failure_of_the_mirror_is_shown_in_the_kernels_column(
    hugepfn: Command, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise MachineryError("the mirror is gone")

    monkeypatch.setattr("harness.kernel.spec.Kernel.resolve", refuse)
    suite.answers = {"debian:6.1": [P], "debian:6.12": [P]}
    assert hugepfn(*MATRIX).status == 0, "the kernel is cached, so the run itself decides"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("matrix", "-k", "debian:6.1", "frok"), "no scenario 'frok'"),
        (("matrix", "-k", "fedora:40"), "there is no kernel 'fedora:40'"),
        (("matrix",), "missing option '--kernel'"),
        (("matrix", "-k", "debian:6.1", "--json", "/proc/x/y.json"), "/proc/x"),
        (("matrix", "-k", "debian:6.1", "calibrate_thp", "--level", "pud"), "has the level pud"),
        (("compare", "debian:6.1"), "missing argument 'B'"),
        (("compare", "debian:6.1", "fedora:40"), "there is no kernel 'fedora:40'"),
    ],
)
def test_invalid_arguments_are_refused_before_anything_runs(
    hugepfn: Command, suite: Suite, args: tuple[str, ...], words: str
) -> None:
    done = hugepfn(*args)
    assert done.status == 2
    assert words in done.err
    assert suite.asked == []


def test_a_kernel_that_does_not_exist_is_a_usage_error(
    hugepfn: Command, suite: Suite, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise UsageError("debian:5.4: no such kernel")

    monkeypatch.setattr("harness.kernel.spec.Kernel.resolve", refuse)
    assert hugepfn(*MATRIX).status == 2
    assert suite.asked == []


# --- compare -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("second", "status", "words"), [(P, 0, "the same in 1 cases"), (F, 1, "1 of 1 cases differ")])
def test_the_same_or_different(
    hugepfn: Command, suite: Suite, tmp_path: Path, second: Outcome, status: int, words: str
) -> None:
    suite.answers = {"debian:6.1": [P], "debian:6.12": [second]}
    done = hugepfn(*COMPARE, "--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html"))
    assert (done.status, done.out.splitlines()[-1]) == (status, words)
    data = json.loads((tmp_path / "out.json").read_text())
    assert (schemas.check(data), data["same"], len(data["cases"])) == ("hugepfn-compare", status == 0, status)
    assert len(suite.asked) == (6 if status else 2), "only cases that differ are run again, twice"
    assert (tmp_path / "out.html").read_text().startswith("<!DOCTYPE html>")


def test_an_outcome_that_varies_between_runs_is_no_difference(hugepfn: Command, suite: Suite) -> None:
    suite.answers = {"debian:6.1": [P, P], "debian:6.12": [F, P]}
    done = hugepfn(*COMPARE)
    assert done.status == 0
    assert "Differs from time to time on one kernel, so not counted:\n  fork pud: outcome" in done.out
    assert len(suite.asked) == 4, "no third round if nothing differs any more"


def test_an_outcome_that_both_kernels_show_is_no_difference(hugepfn: Command, suite: Suite) -> None:
    """Each round alone differs, but both kernels give both answers."""
    suite.answers = {"debian:6.1": [P, F], "debian:6.12": [F, P]}
    assert hugepfn(*COMPARE, "--confirm", "1").status == 0
    suite.answers = {"debian:6.1": [P, F], "debian:6.12": [F, P]}
    assert hugepfn(*COMPARE, "--confirm", "0").status == 1


def test_an_error_on_one_side_is_not_compared(hugepfn: Command, suite: Suite) -> None:
    suite.answers = {"debian:6.1": [P], "debian:6.12": [E]}
    done = hugepfn(*COMPARE)
    assert done.status == 3
    assert "not compared: fork pud: why" in done.out


def test_a_side_without_results_ends_the_comparison(hugepfn: Command, suite: Suite) -> None:
    suite.answers = {"debian:6.1": [P], "debian:6.12": [Run((), {TROUBLE: "QEMU is gone"})]}
    done = hugepfn(*COMPARE)
    assert done.status == 3
    assert done.err.splitlines()[-1] == "hugepfn: debian:6.12: QEMU is gone"


def test_only_differing_cases_are_run_again(hugepfn: Command, suite: Suite) -> None:
    def run(bits: tuple[str, ...]) -> Run:
        seen = Observation("forked", "child", "bar", 0, "pud", 1, bits, "bar+0x0", None)
        return Run((ScenarioResult("fork", "pud", P, "", (), (seen,)), ScenarioResult("calibrate_anon", "pte", P)))

    suite.answers = {"debian:6.1": [run(("P", "D"))], "debian:6.12": [run(("P",))]}
    done = hugepfn("compare", "debian:6.1", "debian:6.12", "--confirm", "1")
    assert done.status == 1
    assert [scenarios for _, scenarios in suite.asked] == [(), (), ("fork:pud",), ("fork:pud",)]
    assert "  child at forked, bar+0x0: pud 0000000000000001 -> 0000000000000001 -D\n" in done.out
    assert "1 of 2 cases differ" in done.out


@pytest.mark.parametrize(
    ("first", "second", "said", "status", "words"),
    [
        (P, F, "fork:pud=fail", 0, "fork pud  pass 1  expected fail 2"),
        (P, P, "fork:pud=fail", 1, "fork pud  FAIL 1  FAIL 1"),
        (F, F, "fork:pud=fail", 0, "fork pud  expected fail 1  expected fail 1"),
        (S, F, "fork=fail", 0, "fork pud  skip 1  expected fail 1"),
        (S, S, "fork:1G=skip", 0, "fork pud  expected skip 1  expected skip 1"),
        (E, F, "fork:pud=fail", 3, "fork pud  error 1  expected fail 1"),
        (F, F, "fork:pud:a claim=fail", 1, "fork pud  FAIL 1  FAIL 1"),
    ],
)
def test_a_table_with_an_expectation_for_every_kernel(
    hugepfn: Command, suite: Suite, tmp_path: Path, first: Outcome, second: Outcome, said: str, status: int, words: str
) -> None:
    suite.answers = {"debian:6.1": [first], "debian:6.12": [second]}
    files = ("--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html"))
    done = hugepfn(*MATRIX, "--expect", said, *files)
    if (first, second) == (P, F):
        words, status = "fork pud  FAIL 1  expected fail 2", 1  # the first kernel does not meet this expectation
    assert (done.out.splitlines()[1], done.status) == (words, status)
    data = json.loads((tmp_path / "out.json").read_text())
    assert schemas.check(data) == "hugepfn-matrix"
    assert ("fails or is skipped, as --expect says" in done.out) is ("expected" in words)
    assert ('"mark":"EXPECTED"' in (tmp_path / "out.html").read_text()) is ("expected" in words)


@pytest.mark.parametrize(
    ("first", "second", "said", "status", "last"),
    [
        (P, F, "fork:pud=fail", 0, "1 of 1 cases differ, as expected"),
        (P, P, "fork:pud=fail", 1, "the same in 1 cases"),
        (F, F, "fork:pud=fail", 0, "the same in 1 cases"),
        (F, P, "fork:pud=fail", 1, "1 of 1 cases differ"),
        (P, S, "fork=skip", 0, "1 of 1 cases differ, as expected"),
        (P, F, "fork=skip", 1, "1 of 1 cases differ"),
        (P, F, "fork:a claim=fail", 1, "1 of 1 cases differ"),
    ],
)
def test_a_comparison_whose_second_kernel_changes_on_purpose(
    hugepfn: Command, suite: Suite, tmp_path: Path, first: Outcome, second: Outcome, said: str, status: int, last: str
) -> None:
    suite.answers = {"debian:6.1": [first], "debian:6.12": [second]}
    files = ("--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html"))
    done = hugepfn(*COMPARE, "--expect", said, *files)
    assert (done.out.splitlines()[-1], done.status) == (last, status)
    data = json.loads((tmp_path / "out.json").read_text())
    assert schemas.check(data) == "hugepfn-compare"
    assert data["same"] is (status == 0)
    assert ("\nfork pud, as expected: passed -> " in done.out) is bool(data["expected"]) is ("as expected" in last)
    assert ("Expected, but not so:\n  fork pud: '" in done.out) is bool(data["unmet"])
    assert bool(data["cases"]) is (last == "1 of 1 cases differ")
    page = (tmp_path / "out.html").read_text()
    assert ("Expected, but not so" in page and "is not met" in page) or not data["unmet"]
    if data["expected"]:
        assert '"word":"expected ' in page
        suite.answers = {"debian:6.1": [first], "debian:6.12": [second]}
        assert "\nfork pud, as expected: passed -> " in hugepfn(*COMPARE, "--expect", said, "--mail").out


@pytest.mark.parametrize("command", [MATRIX, COMPARE])
def test_an_expectation_without_a_test_is_refused(
    hugepfn: Command, suite: Suite, tmp_path: Path, command: tuple[str, ...]
) -> None:
    (tmp_path / "expected").write_text("# one\nfork:p4d=fail\n")
    for words in (("--expect", "frok=fail"), ("--expect", "fork"), ("--expect-file", str(tmp_path / "expected"))):
        done = hugepfn(*command, *words)
        assert (done.status, suite.asked, len(done.err.splitlines())) == (2, [], 1)
