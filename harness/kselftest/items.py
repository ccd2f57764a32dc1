"""The kernel's selftests as pytest items: a collector for each collection, an item for each program.

Each program is an item and runs when it is its turn. So ``--collect-only`` and ``-k`` boot nothing, and ``-x`` stops
after the program that failed. The points of a program are known only after it has run, and a single point cannot be
run. So points are not items that can be selected, but each is reported like one, ``mm::soft-dirty::Test test_simple``,
with setup, call and teardown, which JUnit files and other plugins rely on.
"""

from __future__ import annotations

import contextlib
import enum
import shlex
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from _pytest.runner import runtestprotocol

from harness.config import MachineConfig
from harness.errors import KERNELS_FAULT, ClaimFailed, HugepfnError, KernelError, MachineryError, PremiseNotMet
from harness.events import Say
from harness.kernel import KernelImage
from harness.kernel.build.selftests import Collection
from harness.kselftest.program import PlainRun
from harness.machine.vm import VM
from harness.plugin.fixtures import BOOT_ATTEMPTS
from harness.verdict import KtapOutcome, parse_ktap, words
from harness.verdict.selftest import Judgement, Point, judge, points

#: kselftest's own default is 45 s (kselftest/runner.sh), for machines that are not emulated.
LEAST_TIMEOUT_S = 300.0
#: Settings from the tests' own script (mm/run_vmtests.sh), so that fewer tests are skipped: 256 MiB of huge pages, and
#: overcommit, because mremap_test and virtual_address_range map more than the guest has but hardly touch it.
_KNOBS = {"/proc/sys/vm/nr_hugepages": "128", "/proc/sys/vm/overcommit_memory": "1"}
_ONE_HUGE_PAGE = ("hugetlb_fault_after_madv", "hugetlb_madv_vs_map")  # "one and just one" (mm/run_vmtests.sh)
_TAIL_LINES = 20
_ATTRIBUTE = "hugepfn"  # of a report


class Verdict(enum.Enum):
    """The verdict on a point or a program."""

    PASSED = "passed"
    FAILED = "failed"
    SKIPPED = "skipped"
    XFAILED = "xfailed"
    ERROR = "error"  # the machinery failed: nothing is known about the program or the kernel


@dataclass(frozen=True)
class Told:
    """What a report says about a point or a program."""

    verdict: Verdict
    reason: str = ""


def told_by(report: pytest.TestReport) -> Told | None:
    """Return what a report says; None for one that is not shown, such as a successful setup."""
    found = getattr(report, _ATTRIBUTE, None)
    return found if isinstance(found, Told) else None


@dataclass
class Runner:
    """Runs programs in machines."""

    config: MachineConfig
    image: KernelImage
    timeout_s: float | None  # deadline of one program; None for the collection's own
    say: Say
    broken: bool = False  # the machinery failed somewhere
    failed: bool = False  # a program or the kernel failed
    _boot_failures: list[KernelError | ClaimFailed] = field(default_factory=list)

    @contextlib.contextmanager
    def machine(self, program: str) -> Iterator[VM]:
        """A new machine with the settings that a program needs."""
        if len(self._boot_failures) >= BOOT_ATTEMPTS:
            raise self._boot_failures[-1]
        vm = VM(self.image, config=self.config, say=self.say)
        try:
            try:
                vm.start()
            except KERNELS_FAULT as error:
                self._boot_failures.append(error)
                raise
            self._boot_failures.clear()
            for path, value in knobs(program).items():
                with contextlib.suppress(MachineryError):  # the kernel has no such file; the tests report it
                    vm.on_loop(vm.agent.put(path, value.encode()))
            yield vm
        finally:
            vm.close()


def knobs(program: str) -> dict[str, str]:
    """The values to write to files in /proc before a program starts, by file."""
    return {**_KNOBS, **({"/proc/sys/vm/nr_hugepages": "1"} if program in _ONE_HUGE_PAGE else {})}


class SelftestFailed(ClaimFailed):
    """A program did not pass."""


class SelftestItem(pytest.Item):
    """One program of a collection, with its arguments."""

    def __init__(self, *, command: str, collection: Collection, runner: Runner, **rest: Any) -> None:
        super().__init__(name=command, **rest)
        self.selftest = collection
        self.program, *self.args = shlex.split(command)
        self.runner = runner
        self.points: list[Point] = []
        self.unplaced: list[str] = []
        self.note = ""  # a remark about a pass
        self._elf: Path | None = None

    def setup(self) -> None:
        """Build the program."""
        try:
            self._elf = self.selftest.build(self.program, self.runner.say)
        except PremiseNotMet as unmet:
            pytest.skip(str(unmet))

    def runtest(self) -> None:
        """Run the program in its own machine.

        :raises SelftestFailed: it did not pass, because of a point, its exit status, or a complaint of the kernel.
        """
        assert self._elf is not None, "set-up built it"
        with self.runner.machine(self.program) as vm:
            path = f"/tests/{self.program}"
            vm.on_loop(vm.agent.put(path, self._elf.read_bytes()))
            judgement = self._run(vm, path)
        match judgement.outcome:
            case KtapOutcome.SKIPPED:
                pytest.skip(judgement.reason)
            case KtapOutcome.TODO:
                pytest.xfail(judgement.reason)
            case KtapOutcome.PASSED:
                self.note = judgement.reason
            case _:
                raise SelftestFailed("\n".join([judgement.reason, *self.unplaced[-_TAIL_LINES:]]))

    def _run(self, vm: VM, path: str) -> Judgement:
        environment = {"VFIO_SELFTESTS_BDF": vm.ready["vfio_bdf"]} if vm.ready["vfio_group"] else {}
        run = PlainRun(vm, path, self.args, environment)
        status, ended, error = None, "", None
        timeout_s = self.runner.timeout_s or max(self.selftest.timeout_s or 0, LEAST_TIMEOUT_S)
        try:
            end = run.finish(timeout_s)
            status, ended = end.status, str(end)
        except KernelError as error_:  # the kernel is dead or does not answer; what was reported until then counts
            error, ended = error_, str(error_)
        report = parse_ktap(run.output, headless=True)
        self.points = points(report)
        said = run.output.strip().splitlines()
        # Output outside of all points: after the last one, and everything of a program that prints no TAP.
        self.unplaced = said if report.silent else list(report.diagnostics)
        troubles = [] if error else words.troubles(run.kernel.troubles())
        judgement = judge(report, status, ended, said[-1].strip() if said else "", troubles)
        if run.kernel.gap and judgement.outcome not in (KtapOutcome.FAILED, KtapOutcome.CRASHED):
            raise MachineryError(run.kernel.gap)
        return judgement

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """The location that pytest shows."""
        return self.path, None, self.name


class SelftestCollection(pytest.Directory):
    """One collection: a folder of tools/testing/selftests."""

    plugin: KselftestPlugin

    def collect(self) -> Iterator[pytest.Item]:
        """Yield the selected programs; nothing is built or booted."""
        collection, commands = self.plugin.wanted[self.path]
        for command in commands:
            yield SelftestItem.from_parent(self, command=command, collection=collection, runner=self.plugin.runner)


class KselftestPlugin:
    """Make a pytest session collect selftests.

    :param wanted: the commands (programs with arguments) of each collection.
    """

    def __init__(self, runner: Runner, wanted: Sequence[tuple[Collection, Sequence[str]]]) -> None:
        self.runner = runner
        self.wanted = {collection.folder: (collection, commands) for collection, commands in wanted}

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """Take over the folders of collections."""
        if path not in self.wanted:
            return None
        node: SelftestCollection = SelftestCollection.from_parent(parent, path=path)
        node.plugin = self
        return node

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Decide whether the kernel or the machinery failed. hugepfn's own errors need no traceback."""
        report = yield
        error = call.excinfo.value if call.excinfo else None
        if report.failed and isinstance(error, HugepfnError):
            report.longrepr = str(error)
        judged = isinstance(error, KERNELS_FAULT)
        self.runner.failed |= report.failed and judged
        self.runner.broken |= report.failed and not judged
        match error:
            case pytest.skip.Exception():
                setattr(report, _ATTRIBUTE, Told(Verdict.SKIPPED, str(error.msg)))
            case pytest.xfail.Exception():
                setattr(report, _ATTRIBUTE, Told(Verdict.XFAILED, str(error.msg)))
            case None if report.when == "call" and isinstance(item, SelftestItem):
                setattr(report, _ATTRIBUTE, Told(Verdict.PASSED, item.note))
            case _ if report.failed:
                verdict = Verdict.FAILED if judged and report.when == "call" else Verdict.ERROR
                setattr(report, _ATTRIBUTE, Told(verdict, report.longreprtext))
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Run a program, and report its points before the program itself."""
        if not isinstance(item, SelftestItem):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        setup, *rest = runtestprotocol(item, nextitem=nextitem, log=False)
        for report in (setup, *_reports(item), *rest):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def _reports(item: SelftestItem) -> Iterator[pytest.TestReport]:
    """The reports that pytest makes for an item, for each point: setup, call, teardown."""
    for point in item.points:
        nodeid = f"{item.nodeid}::{point.name.replace('::', ':')}"
        for when in ("setup", "call", "teardown"):
            yield _report(item, nodeid, point, when)


_VERDICTS = {
    KtapOutcome.PASSED: Verdict.PASSED,
    KtapOutcome.SKIPPED: Verdict.SKIPPED,
    KtapOutcome.TODO: Verdict.XFAILED,
    KtapOutcome.FAILED: Verdict.FAILED,
    KtapOutcome.CRASHED: Verdict.FAILED,
}


def _report(
    item: SelftestItem, nodeid: str, point: Point, when: Literal["setup", "call", "teardown"]
) -> pytest.TestReport:
    outcome: Literal["passed", "failed", "skipped"] = "passed"
    longrepr: str | tuple[str, int, str] | None = None
    here = when == "call"
    if here and point.outcome in (KtapOutcome.FAILED, KtapOutcome.CRASHED):
        outcome, longrepr = "failed", "\n".join([point.reason, *point.lines]).strip() or point.outcome.value
    elif here and point.outcome is KtapOutcome.SKIPPED:
        outcome, longrepr = "skipped", (str(item.path), 0, f"Skipped: {point.reason}")
    elif here and point.outcome is KtapOutcome.TODO:
        outcome = "skipped"
    location = (item.location[0], None, f"{item.location[2]}::{point.name}")
    report = pytest.TestReport(nodeid, location, {}, outcome, longrepr, when)
    if here:
        reason = report.longreprtext if outcome == "failed" else point.reason
        setattr(report, _ATTRIBUTE, Told(_VERDICTS[point.outcome], reason))
    if here and point.outcome is KtapOutcome.TODO:
        report.wasxfail = point.reason
    return report
