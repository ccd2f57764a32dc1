"""Tests for selftests as pytest items, and for the words of the command. The guest is a stub."""

from __future__ import annotations

import contextlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from harness.config import DEFAULT
from harness.errors import (
    BootError,
    ClaimFailed,
    DeadlineError,
    HugepfnError,
    KernelBuildError,
    KernelDied,
    MachineryError,
    PremiseNotMet,
    UsageError,
)
from harness.guest.job import ExitStatus
from harness.kernel import ImageKind, Kernel, KernelImage
from harness.kernel.build.selftests import Collection
from harness.kselftest import items as kselftest_items
from harness.kselftest import session as campaign
from harness.kselftest.items import KselftestPlugin, Runner, SelftestItem, knobs
from harness.kselftest.report import KselftestReporter
from harness.kselftest.session import commands_of, parse_selectors, recipes_of
from harness.machine import preparation
from harness.verdict.log.complaint_kinds import ComplaintKind
from harness.verdict.log.troubles import KernelComplaint, KernelTroubles

pytest_plugins = ["pytester"]

IMAGE = KernelImage("debian:6.12", Path("/k"), ImageKind.BZIMAGE, "6.12.117+deb13-cloud-amd64", None, None)
GOOD = "TAP version 13\n1..2\nok 1 first\nok 2 second\n"
SAYS: dict[str, tuple[str, ExitStatus | Exception]] = {
    "good": (GOOD, ExitStatus(0, None)),
    "mixed": (
        "TAP version 13\n1..4\n# no room\nnot ok 1 a::b[c]\nok 2 # SKIP no THP here\nok 3 # XFAIL as ever\nok 4 d\n",
        ExitStatus(1, None),
    ),
    "nested": ("TAP version 13\n1..1\n  TAP version 13\n  1..1\n  not ok 1 in\nnot ok 1 out\n", ExitStatus(1, None)),
    "crash": ("TAP version 13\n1..3\nok 1 first\n", ExitStatus(None, 11)),
    "bail": ("TAP version 13\n1..2\nok 1 first\nBail out! no memory\n", ExitStatus(1, None)),
    "planless": ("TAP version 13\nok 1 first\n", ExitStatus(0, None)),
    "skip": ("TAP version 13\n1..0 # SKIP no hugetlb\n", ExitStatus(4, None)),
    "xfail": ("TAP version 13\n1..1\nok 1 # XFAIL not yet\n", ExitStatus(2, None)),
    "tap12": ("1..1\nok 1 first\n", ExitStatus(0, None)),
    "plain": ("it works\n", ExitStatus(0, None)),
    "hang": ("TAP version 13\n1..2\nok 1 first\n", DeadlineError("nothing within 5 s; its last line was 'ok 1 first'")),
    "dies": ("TAP version 13\n1..2\nok 1 first\n", KernelDied("the kernel died: BUG: unable to handle page fault")),
    "warns": (GOOD, ExitStatus(0, None)),
    "gap": (GOOD, ExitStatus(0, None)),
    "lost": ("", MachineryError("QEMU is gone")),
}
UNBUILT = {
    "numa": PremiseNotMet("the header numa.h is missing; install with: apt-get install libnuma-dev"),
    "bad": KernelBuildError("mm/bad does not build: bad.c:1: no"),
}


class StubRun:
    """A :class:`harness.kselftest.program.PlainRun` without a machine."""

    def __init__(self, _vm: object, path: str, _args: object, environment: dict[str, str]) -> None:
        self.output, self._end = SAYS[path.rpartition("/")[2]]
        warning = KernelComplaint(ComplaintKind.WARNING, "WARNING: mm/memory.c:1")
        warned = KernelTroubles((warning,) if path.endswith("warns") else ())
        gap = "the kernel's log has a gap of 7 records" if path.endswith("gap") else ""
        self.kernel = SimpleNamespace(troubles=lambda: warned, gap=gap)
        assert environment == {"VFIO_SELFTESTS_BDF": "0000:00:05.0"}

    def finish(self, timeout_s: float) -> ExitStatus:
        assert timeout_s == 900
        if isinstance(self._end, Exception):
            raise self._end
        return self._end


class StubRunner(Runner):
    """Counts how many machines are requested; starts none."""

    machines = 0

    @contextlib.contextmanager
    def machine(self, program: str) -> Iterator[Any]:  # noqa: ARG002 - Runner's signature
        self.machines += 1

        async def put(_path: str, _data: bytes) -> None: ...

        agent = SimpleNamespace(put=put)
        ready = {"vfio_bdf": "0000:00:05.0", "vfio_group": "2"}
        yield SimpleNamespace(agent=agent, on_loop=lambda work: work.close(), ready=ready)


class Session:
    """One pytest session over stub programs."""

    def __init__(self, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pytester = pytester
        self.folder = pytester.path / "mm"
        self.folder.mkdir()
        (self.folder / "settings").write_text("timeout=900\n")
        self.runner = StubRunner(DEFAULT, IMAGE, None, lambda _line: None)
        self.console = Console(record=True, width=200)
        self.reporter = KselftestReporter(self.console)
        monkeypatch.setattr(kselftest_items, "PlainRun", StubRun)
        monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # as our own sessions do
        monkeypatch.setattr(Collection, "build", self.build)

    def build(self, name: str, _progress: object) -> Path:
        if name in UNBUILT:
            raise UNBUILT[name]
        return self.folder / "settings"

    def collection(self) -> Collection:
        listed: dict[str, tuple[str, ...]] = {"TEST_GEN_PROGS": (*SAYS,), "TEST_PROGS": ("run.sh",)}
        listed |= {"TEST_CUSTOM_PROGS": (), "TEST_GEN_FILES": ()}
        return Collection("mm", "debsrc:6.12", self.folder, self.folder, "gcc", "key", listed)

    def __call__(self, *commands: str, args: tuple[str, ...] = ()) -> pytest.HookRecorder:
        plugin = KselftestPlugin(self.runner, [(self.collection(), commands)])
        return self.pytester.inline_run(
            str(self.folder), "--rootdir", str(self.pytester.path), *args, plugins=[plugin, self.reporter]
        )

    def told(self, *commands: str) -> dict[str, str]:
        """The outcome of each item and point."""
        recorder = self(*commands)
        reports = recorder.getreports("pytest_runtest_logreport")
        return {
            report.nodeid: "xfailed" if hasattr(report, "wasxfail") else report.outcome
            for report in reports
            if isinstance(report, pytest.TestReport) and (report.when == "call" or not report.passed)
        }

    @property
    def printed(self) -> str:
        return self.console.export_text(clear=False)


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Session:
    return Session(pytester, monkeypatch)


def test_each_point_is_reported_beside_its_program(session: Session) -> None:
    assert session.told("mixed", "good") == {
        "mm::mixed::a:b[c]": "failed",
        "mm::mixed::no THP here": "skipped",
        "mm::mixed::as ever": "xfailed",
        "mm::mixed::d": "passed",
        "mm::mixed": "failed",
        "mm::good::first": "passed",
        "mm::good::second": "passed",
        "mm::good": "passed",
    }
    session.reporter.verdict()
    assert "  FAILED   a:b[c]\n             no room\n" in session.printed
    assert "  skipped  no THP here\n" in session.printed
    assert "mm::mixed: failed: 1 of 4 points failed; exit status 1" in session.printed
    assert "1 passed, 1 failed of 2 programs; 3 passed, 1 failed, 1 skipped, 1 xfailed of 6 points" in session.printed


@pytest.mark.parametrize(
    ("program", "outcome", "points", "words"),
    [
        ("crash", "failed", {"first": "passed"}, "2 of 3 planned tests never reported: 2, 3; signal SIGSEGV"),
        ("bail", "failed", {"first": "passed"}, "Bail out! no memory"),
        ("planless", "failed", {"first": "passed"}, "no plan"),
        ("nested", "failed", {"out / in": "failed"}, "1 of 1 points failed"),
        ("skip", "skipped", {}, "no hugetlb"),
        ("xfail", "xfailed", {"not yet": "xfailed"}, "not yet"),
        ("tap12", "passed", {"first": "passed"}, "mm::tap12: passed"),
        ("plain", "passed", {}, "by its exit status; it reports no test points"),
        ("hang", "failed", {"first": "passed"}, "its last line was 'ok 1 first'"),
        ("dies", "failed", {"first": "passed"}, "BUG: unable to handle page fault"),
        ("warns", "failed", {"first": "passed", "second": "passed"}, "the kernel log: WARNING: mm/memory.c:1"),
        ("numa", "skipped", {}, "apt-get install libnuma-dev"),
        ("bad", "failed", {}, "bad.c:1: no"),
    ],
)
def test_how_programs_end(session: Session, program: str, outcome: str, points: dict[str, str], words: str) -> None:
    told = session.told(program)
    name = next(iter(told)) if not points and outcome == "failed" else f"mm::{program}"
    assert told == {**{f"mm::{program}::{point}": one for point, one in points.items()}, name: outcome}
    assert words in session.printed
    assert session.runner.broken == (program == "bad"), "only a program that does not build counts as broken"


@pytest.mark.parametrize(("program", "points"), [("lost", {}), ("gap", {"first": "passed", "second": "passed"})])
def test_a_broken_harness_and_a_gap_in_the_log_are_no_verdict(
    session: Session, program: str, points: dict[str, str]
) -> None:
    own = {f"mm::{program}::{point}": one for point, one in points.items()}
    assert session.told(program) == {**own, f"mm::{program}": "failed"}
    assert (session.runner.broken, session.runner.failed) == (True, False)
    assert f"mm::{program}: error: " in session.printed


@pytest.mark.parametrize(
    ("programs", "status"),
    [
        (("good", "skip", "xfail"), 0),
        (("good", "mixed"), 1),
        (("good", "lost"), 3),
        (("bad",), 3),
        (("lost", "dies"), 1),
    ],
)
def test_the_exit_status_is_a_verdict_or_a_machinery_error(
    session: Session, monkeypatch: pytest.MonkeyPatch, programs: tuple[str, ...], status: int
) -> None:
    """A failed program counts even if other results are lost. A failure of the harness is not a failed program."""
    monkeypatch.setattr(campaign, "Runner", lambda *_: session.runner)
    monkeypatch.setattr(campaign, "collection", lambda *_: session.collection())
    monkeypatch.setattr(campaign, "_root", lambda _folder: session.pytester.path)
    monkeypatch.setattr(preparation, "preflight", lambda *_: None)
    monkeypatch.setattr(preparation, "resolve", lambda *_: IMAGE)
    monkeypatch.setattr(campaign, "commands_of", lambda _found, asked: [*asked])
    words = [f"mm:{program}" for program in programs]
    options = {"source": "debsrc:6.12", "timeout": None, "pytest_args": ("-p", "no:hypothesispytest")}

    def ended(junit: Path | None) -> int:
        try:
            return int(campaign.run_kselftest(pytest, session.reporter, words, DEFAULT, {**options, "junit": junit}))
        except MachineryError as error:
            return int(error.exit_code)

    assert ended(None) == status
    assert ended(Path("/dev/full")) == (status or 3)


def test_collecting_and_choosing_run_nothing(session: Session) -> None:
    recorder = session("good", "mixed", "xfail", args=("--collect-only",))
    items = recorder.getcalls("pytest_collection_finish")[0].session.items
    assert [item.nodeid for item in items] == ["mm::good", "mm::mixed", "mm::xfail"]
    assert all(isinstance(item, SelftestItem) for item in items)
    assert session.runner.machines == 0
    session("good", "mixed", args=("-k", "mixed"))
    assert session.runner.machines == 1


def test_x_stops_after_the_failed_program_with_all_its_points(session: Session) -> None:
    recorder = session("mixed", "good", args=("-x",))
    reports = recorder.getreports("pytest_runtest_logreport")
    assert len({report.nodeid for report in reports}) == 5
    assert session.runner.machines == 1
    assert recorder.ret == pytest.ExitCode.TESTS_FAILED


def test_junit_has_a_testcase_for_each_point_and_each_program(session: Session) -> None:
    session("mixed", "skip", "good", args=("--junitxml=out.xml",))
    cases = ElementTree.parse(session.pytester.path / "out.xml").getroot().findall(".//testcase")
    found = {(case.get("classname"), case.get("name")): [child.tag for child in case] for case in cases}
    assert found == {
        ("mm", "mixed"): ["failure"],
        ("mm.mixed", "a:b[c]"): ["failure"],
        ("mm.mixed", "no THP here"): ["skipped"],
        ("mm.mixed", "as ever"): ["skipped"],
        ("mm.mixed", "d"): [],
        ("mm", "skip"): ["skipped"],
        ("mm", "good"): [],
        ("mm.good", "first"): [],
        ("mm.good", "second"): [],
    }


@pytest.mark.parametrize(
    "error",
    [
        BootError("no", exit_status=1, console_tail=""),
        KernelDied("it died in the probe"),
        ClaimFailed("the probe: a dirty page set read-only is still writable"),
    ],
)
def test_a_kernel_that_cannot_start_twice_in_a_row_is_not_booted_again(
    monkeypatch: pytest.MonkeyPatch, error: HugepfnError
) -> None:
    ends: list[HugepfnError | None] = [error, None, error, error]
    attempts = []

    def start() -> None:
        attempts.append(1)
        if (end := ends.pop(0)) is not None:
            raise end

    vm = SimpleNamespace(start=start, close=lambda: None)
    monkeypatch.setattr(kselftest_items, "knobs", lambda _program: {})
    monkeypatch.setattr("harness.kselftest.items.VM", lambda *_args, **_fields: vm)
    runner = Runner(DEFAULT, IMAGE, None, lambda _line: None)
    for starts in (False, True, False, False, False):
        with contextlib.nullcontext() if starts else pytest.raises(type(error)), runner.machine("soft-dirty"):
            pass
    assert len(attempts) == 4
    ends.append(None)
    again = Runner(DEFAULT, IMAGE, None, lambda _line: None)
    with pytest.raises(ClaimFailed, match="of the program"), again.machine("soft-dirty"):
        raise ClaimFailed("a failure of the program, not of the boot")
    assert again._boot_failures == []


def test_huge_pages_as_the_tests_own_script_reserves_them() -> None:
    wanted = [knobs(name)["/proc/sys/vm/nr_hugepages"] for name in ("pagemap_ioctl", "hugetlb_madv_vs_map")]
    assert wanted == ["128", "1"]


def test_the_arguments_of_the_command() -> None:
    assert parse_selectors(["mm:a", "vfio", "mm:b -x 1", "mm:a"]) == {"mm": ["a", "b -x 1"], "vfio": []}
    assert parse_selectors(["mm:a", "mm"]) == {"mm": []}
    for wrong in ("", ":a", "mm:", "mm: "):
        with pytest.raises(UsageError, match="expected COLLECTION"):
            parse_selectors([wrong])


def test_the_selected_programs(session: Session) -> None:
    found = session.collection()
    assert commands_of(found, []) == list(SAYS)
    assert commands_of(found, ["good", "good -v", "good"]) == ["good", "good -v"]
    with pytest.raises(UsageError, match=r"mm of debsrc:6.12 has no test 'soft'; expected one of: good, mixed,"):
        commands_of(found, ["soft"])
    with pytest.raises(UsageError, match=r"run.sh is a shell script"):
        commands_of(found, ["run.sh"])


@pytest.mark.parametrize(
    ("kernel", "release", "sources"),
    [
        ("debian:6.12", "6.12.117+deb13-cloud-amd64", ["debsrc:6.12.117", "debsrc:6.12"]),
        ("debian:6.1", "6.1.0-56-cloud-amd64", ["debsrc:6.1"]),
        ("debian", "7.3-cloud-amd64", ["debsrc:7.3"]),
        ("debsrc:6.12+fix.patch", "6.12.117", ["debsrc:6.12+fix.patch"]),
    ],
)
def test_the_source_that_fits_a_kernel(kernel: str, release: str, sources: list[str]) -> None:
    image = KernelImage(kernel, Path("/k"), ImageKind.BZIMAGE, release, None, None)
    assert [recipe.spec for recipe in recipes_of(Kernel.parse(kernel), image, None)] == sources
    assert [recipe.spec for recipe in recipes_of(Kernel.parse(kernel), image, "/linux@v7.0")] == ["tree:/linux@v7.0"]


def test_a_kernel_given_by_path_needs_a_source() -> None:
    with pytest.raises(UsageError, match="--source tree:PATH or --source debsrc:VERSION"):
        recipes_of(Kernel.parse("./bzImage"), IMAGE, None)
