"""The kernel's selftests as pytest items: a collector for each collection, an item for each program.

A program is an item of its own, run when its turn comes, so that ``--collect-only`` and ``-k`` boot nothing and ``-x``
stops behind the program that failed. What points it has is known only once it has run, and a single one cannot be run:
so they are no items to be chosen, but each is reported like one, ``mm::soft-dirty::Test test_simple``, with set-up,
call and teardown, which is what JUnit files and other plugins go by.
"""

from __future__ import annotations

import contextlib
import shlex
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from _pytest.runner import runtestprotocol

from harness.cache import Progress
from harness.errors import BootError, ClaimFailed, HugepfnError, KernelError, MachineryError, PremiseNotMet
from harness.kernel import KernelImage
from harness.kernel.build.selftests import Collection
from harness.machine import VM
from harness.machine.plain import PlainRun
from harness.pytest_plugin import BOOT_ATTEMPTS
from harness.settings import Settings
from harness.verdict import KtapOutcome, parse_ktap
from harness.verdict.selftest import Judgement, Point, judge, points

#: kselftest's own default is 45 s (kselftest/runner.sh), on a machine that is not emulated.
LEAST_TIMEOUT_S = 300.0
#: What the tests' own scripts set before they run them (mm/run_vmtests.sh), so that fewer are skipped: 256 MiB of huge
#: pages; and mappings larger than the guest, which mremap_test and virtual_address_range make but hardly touch.
_KNOBS = {"/proc/sys/vm/nr_hugepages": "128", "/proc/sys/vm/overcommit_memory": "1"}
_ONE_HUGE_PAGE = ("hugetlb_fault_after_madv", "hugetlb_madv_vs_map")  # "one and just one" (mm/run_vmtests.sh)
_TAIL_LINES = 20
#: The property of a report that says nothing about the program or the kernel: the machinery failed.
NO_VERDICT = "hugepfn_no_verdict"


@dataclass
class Runner:
    """What programs run on."""

    settings: Settings
    image: KernelImage
    timeout_s: float | None  # of one program; None: the collection's own
    say: Progress
    broken: bool = False  # the machinery failed somewhere
    failed: bool = False  # a program or the kernel did
    _boot_failures: list[BootError] = field(default_factory=list)

    @contextlib.contextmanager
    def machine(self, program: str) -> Iterator[VM]:
        """A machine as a program wants it, pristine."""
        if len(self._boot_failures) >= BOOT_ATTEMPTS:
            raise self._boot_failures[-1]
        vm = self.settings.vm(self.image, (), self.say)
        try:
            vm.start()
            for path, value in knobs(program).items():
                with contextlib.suppress(MachineryError):  # this kernel has no such knob: the tests say so themselves
                    vm.on_loop(vm.agent.put(path, value.encode()))
            yield vm
        except BootError as error:
            self._boot_failures.append(error)
            raise
        finally:
            vm.close()


def knobs(program: str) -> dict[str, str]:
    """What is written to which file of /proc before a program starts."""
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
        self._elf: Path | None = None

    def setup(self) -> None:
        """Builds it."""
        try:
            self._elf = self.selftest.build(self.program, self.runner.say)
        except PremiseNotMet as unmet:
            pytest.skip(str(unmet))

    def runtest(self) -> None:
        """Runs it in a machine of its own.

        :raises SelftestFailed: it did not pass, by its points, its exit status, or what the kernel said.
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
                if judgement.reason:
                    self.user_properties.append(("note", judgement.reason))
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
        except KernelError as error_:  # dead or silent: what it had reported by then still counts
            error, ended = error_, str(error_)
        report = parse_ktap(run.output, headless=True)
        self.points = points(report)
        said = run.output.strip().splitlines()
        # What stands in no point: the words after the last, and everything of a program that speaks no TAP.
        self.unplaced = said if report.silent else list(report.diagnostics)
        troubles = [] if error else run.kernel.troubles()
        judgement = judge(report, status, ended, said[-1].strip() if said else "", troubles)
        if run.kernel.gap and judgement.outcome not in (KtapOutcome.FAILED, KtapOutcome.CRASHED):
            raise MachineryError(run.kernel.gap)
        return judgement

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Where it is told to be."""
        return self.path, None, self.name


class SelftestCollection(pytest.Directory):
    """One collection: a folder of tools/testing/selftests."""

    plugin: KselftestPlugin

    def collect(self) -> Iterator[pytest.Item]:
        """Its programs that are wanted; nothing is built or booted."""
        collection, commands = self.plugin.wanted[self.path]
        for command in commands:
            yield SelftestItem.from_parent(self, command=command, collection=collection, runner=self.plugin.runner)


class KselftestPlugin:
    """Makes a session one of selftests.

    :param wanted: collections, and of each the programs with their arguments.
    """

    def __init__(self, runner: Runner, wanted: Sequence[tuple[Collection, Sequence[str]]]) -> None:
        self.runner = runner
        self.wanted = {collection.folder: (collection, commands) for collection, commands in wanted}

    def pytest_collect_directory(self, path: Path, parent: pytest.Collector) -> pytest.Collector | None:
        """A collection's folder is ours."""
        if path not in self.wanted:
            return None
        node: SelftestCollection = SelftestCollection.from_parent(parent, path=path)
        node.plugin = self
        return node

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Whose fault it is; our own words need no traceback."""
        report = yield
        error = call.excinfo.value if call.excinfo else None
        if report.failed and isinstance(error, HugepfnError):
            report.longrepr = str(error)
        if report.failed:
            judged = isinstance(error, ClaimFailed | KernelError)
            self.runner.failed |= judged
            self.runner.broken |= not judged
            report.user_properties += [] if judged else [(NO_VERDICT, True)]
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
        """Runs a program, and reports its points before itself."""
        if not isinstance(item, SelftestItem):
            return None
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        setup, *rest = runtestprotocol(item, nextitem=nextitem, log=False)
        for report in (setup, *_reports(item), *rest):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True


def _reports(item: SelftestItem) -> Iterator[pytest.TestReport]:
    """What pytest says of an item, of each point: set-up, call, teardown."""
    for point in item.points:
        nodeid = f"{item.nodeid}::{point.name.replace('::', ':')}"
        for when in ("setup", "call", "teardown"):
            yield _report(item, nodeid, point, when)


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
    if here and point.outcome is KtapOutcome.TODO:
        report.wasxfail = point.reason
    return report
