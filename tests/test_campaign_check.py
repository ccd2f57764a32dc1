"""Tests for one step of a bisection: the exit status for git, above all if something other than the commit is wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from harness import cli
from harness.errors import BootError, KernelBuildError, MachineryError
from harness.kernel import Kernel
from harness.kernel.build import BuiltSource
from harness.selection.selected import Selected
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.bisect import BisectVerdict, judge
from harness.verdict.table import TROUBLE


def result(outcome: Outcome, level: str = "pud") -> ScenarioResult:
    return ScenarioResult("fork", level, outcome, f"because of {outcome.value}")


P, F, S, K, E = Outcome.PASSED, Outcome.FAILED, Outcome.SKIPPED, Outcome.KNOWN_BUG, Outcome.ERROR
PASSED = Run((result(P),))


@pytest.mark.parametrize(
    ("outcomes", "step"),
    [
        ([P], BisectVerdict.GOOD),
        ([P, P], BisectVerdict.GOOD),
        ([P, F], BisectVerdict.BAD),
        ([K], BisectVerdict.BAD),
        ([S, F], BisectVerdict.BAD),
        ([P, S], BisectVerdict.CANNOT_TELL),
        ([S], BisectVerdict.CANNOT_TELL),
        ([F, E], BisectVerdict.BROKEN),
        ([], BisectVerdict.BROKEN),
    ],
)
def test_judge(outcomes: list[Outcome], step: BisectVerdict) -> None:
    assert judge([result(outcome) for outcome in outcomes])[0] is step


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A simulated tree that builds, boots and passes, except for what a test changes."""

    def make(build: Exception | None = None, boot: Exception | None = None, run: Run | BaseException = PASSED) -> None:
        class Machine:
            def start(self) -> Machine:
                if boot:
                    raise boot
                return self

            def close(self) -> None:
                pass

        def resolve(_say: Any) -> Any:
            if build:
                raise build
            return SimpleNamespace(image="/vmlinux", key="")

        def run_kernel(spec: str, tests: list[Selected], _options: Any, _say: Any) -> Run:
            assert (spec, [*map(str, tests)]) == ("/vmlinux", ["fork:pud"])
            if isinstance(run, BaseException):
                raise run
            return run

        source = BuiltSource.parse("/tree")
        monkeypatch.setattr(Kernel, "parse", lambda _spec: SimpleNamespace(resolve=resolve, source=source))
        monkeypatch.setattr("harness.campaign.units.local.VM", lambda *_args, **_fields: Machine())
        monkeypatch.setattr("harness.campaign.units.local.run_kernel", run_kernel)

    return make


def test_what_fails_otherwise_is_skipped(world: Callable[..., None], capfd: pytest.CaptureFixture[str]) -> None:
    claim = Claim("the child's entry is writable", Outcome.FAILED, "f()")
    world(run=Run((replace(result(F), claims=(claim,)),)))
    for symptom, status in ((f"claim: {claim.name}", BisectVerdict.BAD), ("hang: read", BisectVerdict.CANNOT_TELL)):
        assert ended([".", "fork:pud", "--symptom", symptom]) == status
    assert "cannot tell: it fails otherwise: fork pud: failed" in capfd.readouterr().out
    world(run=PASSED)
    assert ended([".", "fork:pud", "--symptom", "hang: read"]) == BisectVerdict.GOOD
    assert ended([".", "fork:pud", "--symptom", "read"]) == BisectVerdict.BROKEN
    assert "'read' is not a symptom; expected KIND: NAME, where KIND is one of claim, " in capfd.readouterr().err


def ended(args: list[str]) -> object:
    with pytest.raises(SystemExit) as error:
        cli.main(["check", *args])
    return error.value.code


@pytest.mark.parametrize(
    ("what", "status", "words"),
    [
        ({}, 0, "good: 1 of 1 passed"),
        ({"run": Run((result(F),))}, 1, "bad: fork pud: failed: because of failed"),
        ({"run": Run((result(S),))}, 125, "cannot tell: fork pud: skipped"),
        ({"build": KernelBuildError("mm/memory.c:7: error: x")}, 125, "cannot tell: it does not build: mm/memory.c:7"),
        ({"boot": BootError("panic", exit_status=None, console_tail="")}, 125, "does not boot: panic"),
        ({"build": MachineryError("the disk is full")}, 128, "hugepfn: the disk is full"),
        ({"boot": MachineryError("no QEMU")}, 128, "hugepfn: no QEMU"),
        ({"run": Run((), {TROUBLE: "killed by SIGKILL"})}, 128, "broken: killed by SIGKILL"),
        ({"run": KeyError("ours")}, 128, "KeyError: 'ours'"),
        ({"run": KeyboardInterrupt()}, 128, "interrupted"),
    ],
)
def test_the_exit_status_is_the_one_that_git_expects(
    world: Callable[..., None], capfd: pytest.CaptureFixture[str], what: dict[str, Any], status: int, words: str
) -> None:
    world(**what)
    assert ended(["/tree", "fork:pud"]) == status
    assert words in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("outcome", "said", "status", "words"),
    [
        (F, "fork=fail", 0, "good: 0 of 1 passed, 1 as expected"),
        (K, "fork:pud=fail", 0, "good: 0 of 1 passed, 1 as expected"),
        (
            P,
            "fork=fail",
            1,
            "bad: fork pud: failed: because of passed; 'fork=fail' is not met: expected it to fail",
        ),
        (S, "fork=fail", 125, "cannot tell: fork pud: skipped"),
        (S, "fork=skip", 0, "good: 0 of 1 passed, 1 as expected"),
        (F, "fork:a claim=fail", 1, "bad: fork pud: failed: because of failed"),
        (F, "zap=fail", 128, "'zap=fail' is expected of no test that was selected; these were: fork"),
    ],
)
def test_an_expected_failure_is_good_and_an_unmet_expectation_is_bad(
    world: Callable[..., None], capfd: pytest.CaptureFixture[str], outcome: Outcome, said: str, status: int, words: str
) -> None:
    world(run=Run((result(outcome),)))
    assert ended(["/tree", "fork:pud", "--expect", said]) == status
    assert words in "".join(capfd.readouterr())


@pytest.mark.parametrize("args", [[], ["/tree"], ["/tree", "fork:p4d"], ["/tree", "fork", "--smp=9"], ["--what"]])
def test_invalid_arguments_never_make_a_bad_commit(args: list[str]) -> None:
    assert ended(args) == 128
