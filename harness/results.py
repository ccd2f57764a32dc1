"""What became of the tests: each one's result, what it ran on, and the file that holds them all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from harness.accounts import CONTEXT_PROPERTY, RESULT_PROPERTY, Accounts, keep_worse
from harness.claims import Claims, is_our_bug
from harness.config import MachineConfig
from harness.errors import (
    BootError,
    ClaimFailed,
    HugepfnError,
    KernelDied,
    KernelError,
    MachineryError,
    UsageError,
)
from harness.kernel import KernelImage
from harness.machine.vm import VM
from harness.outputs import write_text
from harness.pagetable import Observation
from harness.verdict import Claim, Outcome, Run, ScenarioResult
from harness.verdict.known_bugs import Failure, KnownBug, judge

LOG_LINES_MAX = 400
USAGE_PROPERTY = "hugepfn_usage"  # there where what was asked for is the error
WAIVED_PROPERTY = "waived"  # for people who read a JUnit file
WISHES_PROPERTY = "hugepfn_wishes"  # there where the test had another machine than was asked for
PLAIN_PROPERTY = "hugepfn_plain"  # the outcome of a test that is about no machine: no result of ours, but no silence


def outcome_of(error: BaseException | None, report: pytest.TestReport) -> Outcome:
    """Whose fault it is: the kernel's (failed), or everybody else's (error)."""
    if error is None:
        return Outcome.PASSED
    if report.skipped:
        return Outcome.SKIPPED
    if isinstance(error, AssertionError | pytest.fail.Exception) and not is_our_bug(error):
        return Outcome.FAILED
    if isinstance(error, HugepfnError) and not isinstance(error, MachineryError | UsageError):
        return Outcome.FAILED
    return Outcome.ERROR


def observations_of(machine: VM) -> list[Observation]:
    """Everything that was seen in a machine's life."""
    return [one for run in machine.runs for at in run.snapshots for one in at.observations()]


def invariants_of(machine: VM) -> Claim:
    """The invariants of every stop and the kernel log, as one claim of each scenario."""
    stops = sum(len(run.snapshots) for run in machine.runs)
    broken = [str(violation) for run in machine.runs for violation in run.broken]
    broken += [trouble for run in machine.runs for trouble in run.kernel_troubles()]
    gaps = [] if broken else [run.log_gap for run in machine.runs if run.log_gap]
    unknown = bool(gaps) or any(run.uncalibrated for run in machine.runs)
    outcome = Outcome.ERROR if unknown else Outcome.FAILED if broken else Outcome.PASSED
    plural = "" if stops == 1 else "s"
    name = f"the invariants held at {stops} stop{plural}, and the kernel log has no complaint"
    excused = [line for run in machine.runs for line in run.excused()]
    return Claim(name, outcome, "", "\n".join(broken + gaps + excused))


def waivers_of(machine: VM) -> tuple[str, ...]:
    """What a test waived, and why, in words: how often it did not hold and the first place, or that it held."""
    told = []
    for invariant, reason in machine.waived.items():
        broken = [one for run in machine.runs for one in run.violations if one.invariant is invariant]
        times = f"{len(broken)} times" if len(broken) > 1 else "once"
        seen = f"broken {times}, first {broken[0].message}" if broken else "not needed: it held"
        told.append(f"{invariant.value}: {reason} ({seen})")
    return tuple(told)


def log_of(machine: VM | None, error: BaseException | None) -> tuple[str, ...]:
    """The kernel's log since the first guest program began, a line each; of a kernel that did not boot, its last words.

    A log longer than LOG_LINES_MAX has its middle left out: what began it and what ended it are at its ends.
    """
    if isinstance(error, BootError):
        lines = error.console_tail.splitlines()
    elif machine is not None and machine.runs:
        lines = machine.runs[0].log.splitlines()
    else:
        return ()
    if len(lines) <= LOG_LINES_MAX:
        return tuple(lines)
    half = LOG_LINES_MAX // 2
    return (*lines[:half], f"... {len(lines) - 2 * half} lines ...", *lines[-half:])


def reason_of(claims: Claims, error: BaseException | None) -> str:
    """What ended the test, in short where the claims themselves say it at length."""
    if error is None:
        return ""
    text = str(getattr(error, "msg", None) or error)
    return f"{len(claims.broken)} claims do not hold" if text == claims.verdict else text


def failures_of(claims: Claims, machine: VM | None, error: BaseException | None) -> list[Failure]:
    """Each thing that went wrong, once: broken claims, broken invariants, the kernel log, what ended the run."""
    runs = machine.runs if machine is not None else []
    seen = [Failure("invariant", str(violation)) for run in runs for violation in run.broken]
    if not isinstance(error, KernelDied):  # its message has the log's first complaint already
        seen += [Failure("kernel log", trouble) for run in runs for trouble in run.kernel_troubles()]
    broken = [Failure(claim.name, claim.message) for claim in claims.broken]
    told = error is None or str(error) in [one.message for one in broken]
    told = told or (isinstance(error, ClaimFailed) and any(str(error).startswith(one.message) for one in seen))
    if not told and isinstance(error, KernelError | AssertionError):
        broken.append(Failure("end", str(error)))
    return broken + seen


def held_against_ledger(
    result: ScenarioResult,
    failures: Sequence[Failure],
    ledger: Sequence[KnownBug],
    had_it: Callable[[KnownBug], str | None],
) -> ScenarioResult:
    """The result, told by the ledger of known bugs where it covers the scenario; ``had_it`` is :func:`judge`'s."""
    if result.outcome not in (Outcome.PASSED, Outcome.FAILED) or bool(failures) != (result.outcome is Outcome.FAILED):
        return result
    finding = judge(ledger, result.scenario, result.level, failures, had_it)
    if not finding.reason:
        return result
    if not finding.known:
        return replace(result, reason=finding.reason)
    claims = (replace(c, outcome=Outcome.KNOWN_BUG) if c.outcome is Outcome.FAILED else c for c in result.claims)
    return replace(result, outcome=Outcome.KNOWN_BUG, reason=finding.reason, claims=tuple(claims))


def context_of(config: MachineConfig, image: KernelImage | None, machine: VM | None) -> dict[str, object]:
    """What a test ran on, as far as it came."""
    described: dict[str, object] = {"spec": config.kernel, "release": None, "config_hash": None}
    if image is not None:
        described = {"spec": image.spec, "release": image.release, "config_hash": image.config_hash}
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
        self.context: dict[str, object] = {}
        self._context_rank = (False, False, False)

    @property
    def results(self) -> tuple[ScenarioResult, ...]:
        """One of each test, in the order in which they ended."""
        return tuple(self._by_test.values())

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One phase of one test."""
        properties = dict(report.user_properties)
        if RESULT_PROPERTY not in properties:
            return
        result = ScenarioResult.from_json(json.loads(str(properties[RESULT_PROPERTY])))
        keep_worse(self._by_test, report.nodeid, result)
        context = json.loads(str(properties[CONTEXT_PROPERTY]))
        # Of the machine that was asked for, rather than of one that a single test wished for.
        rank = (bool(context["capabilities"]), WISHES_PROPERTY not in properties, bool(context["qemu"]))
        if rank >= self._context_rank:
            self.context, self._context_rank = context, rank

    @pytest.hookimpl(tryfirst=True)  # whoever else writes a file may fail
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Writes --hugepfn-json; of a session that ended before its end, it says so.

        Where it cannot, the session has not failed as one with a failed test has: pytest's status 3, unless it is 1.
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
        """In a session that is not ours, nobody else says it."""
        if self.trouble:
            terminalreporter.write_line(f"hugepfn: {self.trouble}", red=True)
