"""The results of the tests: each one's result, what it ran on, and the file with all of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from harness.claims import Claims, is_our_bug
from harness.config import MachineConfig
from harness.errors import (
    BootError,
    DeadlineError,
    GivenUp,
    GuestProgramError,
    HugepfnError,
    KernelDied,
    MachineryError,
    RunBroken,
    UsageError,
)
from harness.guest import bounds
from harness.kernel import KernelImage
from harness.machine.vm import VM
from harness.outputs import write_text
from harness.pagetable import Observation
from harness.plugin.accounts import Accounts, keep_worse
from harness.plugin.carried import carried_by
from harness.printable import clipped
from harness.verdict import Claim, ClaimKind, Outcome, Run, ScenarioResult
from harness.verdict.known_bugs import KnownBug, judge
from harness.verdict.log.troubles import End, EndKind
from harness.verdict.seen import Facts
from harness.verdict.symptoms import failures_of

LOG_LINES_MAX = 400
#: Whether tests that use no machine have results, too, as in hugepfn's own sessions, whose tests were all requested.
EVERY_TEST = pytest.StashKey[bool]()
WAIVED_PROPERTY = "waived"  # for people who read a JUnit file
_ENDS: Sequence[tuple[type[BaseException], EndKind]] = (
    (KernelDied, EndKind.DIED),
    (DeadlineError, EndKind.HANG),
    (GivenUp, EndKind.HANG),
    (GuestProgramError, EndKind.PROGRAM),
    (BootError, EndKind.BOOT),
    (AssertionError, EndKind.ASSERTION),
)


def outcome_of(error: BaseException | None, report: pytest.TestReport) -> Outcome:
    """Return whether the kernel is at fault (failed) or something else (error)."""
    if error is None:
        return Outcome.PASSED
    if report.skipped:
        return Outcome.SKIPPED
    if isinstance(error, AssertionError | pytest.fail.Exception) and not is_our_bug(error):
        return Outcome.FAILED
    if isinstance(error, HugepfnError) and not isinstance(error, MachineryError | UsageError):
        return Outcome.FAILED
    return Outcome.ERROR


def observations_of(machine: VM) -> tuple[Observation, ...]:
    """Return everything that was seen in all runs of a machine."""
    return tuple(one for run in machine.runs for at in run.snapshots for one in at.observations())


def invariants_of(machine: VM) -> Claim:
    """Return the invariants of every stop and the kernel log, as one claim of each scenario."""
    troubles = machine.kernel_troubles()
    broken = any(run.broken for run in machine.runs) or any(one.found for one in troubles)
    unknown = any(one.gap for one in troubles) and not broken
    unknown |= any(run.uncalibrated for run in machine.runs)
    outcome = Outcome.ERROR if unknown else Outcome.FAILED if broken else Outcome.PASSED
    return Claim("", outcome, "", kind=ClaimKind.INVARIANTS)


def log_of(machine: VM | None, error: BaseException | None) -> tuple[str, ...]:
    """Return the lines of the kernel log since the first guest program started; the last lines if it did not boot.

    The middle of a log with more than LOG_LINES_MAX lines is left out, and that of a very long line.
    """
    if isinstance(error, BootError):
        lines = error.console_tail.splitlines()
    elif machine is not None and machine.runs:
        lines = machine.runs[0].log.splitlines()
    else:
        return ()
    if len(lines) > LOG_LINES_MAX:
        half = LOG_LINES_MAX // 2
        lines = [*lines[:half], f"... {len(lines) - 2 * half} lines ...", *lines[-half:]]
    return tuple(clipped(line, bounds.LOG_LINE_MAX) for line in lines)


def reason_of(claims: Claims, error: BaseException | None) -> str:
    """Return what ended the test; "" if its claims did, which have their own messages."""
    return "" if error is None or error is claims.failure else str(getattr(error, "msg", None) or error)


def end_of(claims: Claims, machine: VM | None, error: BaseException | None) -> End | None:
    """Return what ended the test; None where its claims, or what its runs say, are the failure."""
    if error is claims.failure:
        return None
    if isinstance(error, RunBroken) and machine is not None:
        told = any(run.broken for run in machine.runs) or any(one.found for one in machine.kernel_troubles())
        if told:
            return None
    kind = next((kind for family, kind in _ENDS if isinstance(error, family)), None)
    if kind is None:
        return None
    report = machine.runs[-1].hang_report if machine is not None and machine.runs else None
    hang = report.hang if report is not None and isinstance(error, DeadlineError) else None
    return End(kind, error.signal if isinstance(error, GuestProgramError) else "", hang)


def held_against_ledger(
    result: ScenarioResult, ledger: Sequence[KnownBug], facts: Facts, release: str
) -> ScenarioResult:
    """Return the result with what the list of known bugs says about it.

    :param facts: the kernels that were seen with each bug.
    :param release: of this kernel; "" if it is not known.
    """
    failures = failures_of(result)
    if result.outcome not in (Outcome.PASSED, Outcome.FAILED) or bool(failures) != (result.outcome is Outcome.FAILED):
        return result
    scenario = result.scenario.partition("[")[0]  # known bugs do not depend on parameters
    finding = judge(ledger, scenario, result.level, failures, facts, release)
    if not finding.known:
        return replace(result, fixed_bugs=finding.fixed, returned_bugs=finding.returned)
    hangs = result.end is not None and result.end.kind is EndKind.HANG
    claims = (replace(c, outcome=Outcome.KNOWN_BUG) if _shows(c, hangs) else c for c in result.claims)
    return replace(result, outcome=Outcome.KNOWN_BUG, known_bugs=finding.known, claims=tuple(claims))


def _shows(claim: Claim, hangs: bool) -> bool:
    """Whether a claim is about a known bug: also that the log could not be read to its end, because something hangs."""
    return claim.outcome is Outcome.FAILED or (
        hangs and claim.outcome is Outcome.ERROR and claim.kind is ClaimKind.INVARIANTS
    )


def context_of(config: MachineConfig, image: KernelImage | None, machine: VM | None) -> dict[str, object]:
    """Return what a test ran on, as far as it got."""
    described: dict[str, object] = {"spec": config.kernel, "release": None, "config_hash": None, "tree": None}
    if image is not None:
        described = {
            "spec": image.spec,
            "release": image.release,
            "config_hash": image.config_hash,
            "tree": image.tree,
        }
    booted = machine is not None and machine.running
    return {
        "kernel": described,
        "accel": machine.spec.accel.value if machine is not None and booted else config.accel,
        "qemu": machine.qemu.binary.version if machine is not None and booted else None,
        "image": machine.spec.kernel.name if machine is not None and booted else None,
        "origin": machine.origin.value if machine is not None and booted else None,
        "smp": config.smp,
        "append": list(config.append),
        "guest": config.guest,
        "capabilities": machine.caps.to_json() if machine is not None and machine.probed else None,
    }


class Results:
    """Collects every test's result, from this process or from xdist's workers, and writes the file."""

    def __init__(self, config: pytest.Config, accounts: Accounts) -> None:
        self._config = config
        self._accounts = accounts
        self.trouble = ""  # why the file could not be written
        self._by_test: dict[str, ScenarioResult] = {}
        self.context: Mapping[str, object] = {}
        self._context_rank = (False, False, False)

    @property
    def results(self) -> tuple[ScenarioResult, ...]:
        """One result per test, in the order in which the tests ended."""
        return tuple(self._by_test.values())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect one phase of one test."""
        carried = carried_by(report)
        context = carried.context if carried is not None else None
        if carried is None or (context is None and not self._config.stash.get(EVERY_TEST, False)):
            return
        keep_worse(self._by_test, report.nodeid, carried.result)
        if context is None:
            return
        # Prefer the requested machine to another one that a single test wanted.
        rank = (bool(context["capabilities"]), not carried.wished, bool(context["qemu"]))
        if rank >= self._context_rank:
            self.context, self._context_rank = context, rank

    @pytest.hookimpl(tryfirst=True)  # other plugins that write files may fail
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write the file of --hugepfn-json, which also says if the session ended early.

        If that fails, pytest's exit status becomes 3, unless it is 1: no test has failed because of it.
        """
        path = self._config.getoption("hugepfn_json")
        if path is None or hasattr(self._config, "workerinput"):
            return
        stamped = {**self.context, "date": datetime.now(UTC).isoformat(timespec="seconds")}
        if self._accounts.interrupted:
            stamped["interrupted"] = True
        if self._accounts.stopped:
            stamped["stopped"] = self._accounts.stopped
        try:
            write_text(path, lambda: json.dumps(Run(self.results, stamped).to_json(), indent=1) + "\n")
        except MachineryError as error:
            self.trouble = str(error)
            if session.exitstatus != pytest.ExitCode.TESTS_FAILED:
                session.exitstatus = pytest.ExitCode.INTERNAL_ERROR

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Report that the file could not be written. hugepfn's own sessions do that themselves."""
        if self.trouble:
            terminalreporter.write_line(f"hugepfn: {self.trouble}", red=True)
