"""hugepfn for pytest: fixtures ``kernel``, ``vm``, ``live_vm``, ``caps``, ``claim``; options ``--hugepfn-*``.

A test that takes ``vm`` gets a freshly booted kernel, or one in which tests that leave no trace have passed.
``@pytest.mark.levels("pte", "pmd", "pud")`` runs it once per level, which it gets as the argument ``level``. A level
that this kernel cannot have is skipped with the reason; nothing is booted if the kernel's files show it.
"""

from __future__ import annotations

import sys
from collections.abc import Generator
from dataclasses import replace
from typing import Any

import pytest

from harness import logs
from harness.claims import Claims
from harness.errors import KERNELS_FAULT, CannotKnow, HugepfnError, KernelBuildError, PremiseNotMet, UsageError
from harness.kernel import KernelImage
from harness.machine.preparation import kernel_of
from harness.outputs import check_writable
from harness.plugin import again, evidence, sharing
from harness.plugin.accounts import Accounts
from harness.plugin.again import pytest_runtest_protocol
from harness.plugin.bisect_results import BISECT, BisectResults
from harness.plugin.carried import Carried, Crossing, carry
from harness.plugin.failures import (
    hide_own_frames,
    in_short,
    pytest_assertrepr_compare,
    show_without_own_source,
    told,
)
from harness.plugin.fixtures import CLAIMS as _CLAIMS
from harness.plugin.fixtures import MACHINE as _MACHINE
from harness.plugin.fixtures import caps, claim, kernel, live_vm, vm
from harness.plugin.options import MARKERS, config_of, past_capture, pytest_addoption
from harness.plugin.options import unmet as _unmet
from harness.qemu.binary import find_qemu
from harness.results import (
    WAIVED_PROPERTY,
    Results,
    context_of,
    end_of,
    held_against_ledger,
    invariants_of,
    log_of,
    observations_of,
    outcome_of,
    reason_of,
)
from harness.selection.expected import ExpectedOutcomes, expected_of, read
from harness.selection.tests import (
    facts_of,
    has_machine,
    ledger_of,
    level_of,
    own_file,
    pytest_collection_modifyitems,
    pytest_generate_tests,
    scenario_of,
)
from harness.verdict import Outcome, ScenarioResult, words
from harness.verdict.bisect import BisectVerdict
from harness.verdict.expected.complaints import claims_of
from harness.verdict.expected.judge import held

#: Hooks and fixtures from other modules; this one is the plugin's entry point.
__all__ = ["caps", "claim", "kernel", "live_vm", "vm"]
__all__ += ["pytest_addoption", "pytest_assertrepr_compare", "pytest_collection_modifyitems", "pytest_generate_tests"]
__all__ += ["pytest_runtest_protocol"]

_VERBOSITY = "hugepfn_verbosity"


def pytest_configure(config: pytest.Config) -> None:
    """Register the markers, and the plugins that collect the results."""
    for marker in MARKERS:
        config.addinivalue_line("markers", marker)
    if verbosity := getattr(config, "workerinput", {}).get(_VERBOSITY, 0):
        with past_capture(config):
            logs.show(verbosity)
    config_of(config)  # an invalid value is one line, and nothing runs
    try:
        said = read(config.getoption("hugepfn_expect") or (), config.getoption("hugepfn_expect_file") or ())
    except UsageError as error:
        raise pytest.UsageError(str(error)) from error
    config.pluginmanager.register(ExpectedOutcomes(said), "hugepfn-expected")
    if not config.pluginmanager.has_plugin("hugepfn-results"):
        config.pluginmanager.register(Crossing(), "hugepfn-crossing")
        accounts = Accounts(lambda: context_of(config_of(config), None, None), config.rootpath)
        config.pluginmanager.register(Results(config, accounts), "hugepfn-results")
        if not hasattr(config, "workerinput"):  # pytest calls the plugin that was registered last first
            config.pluginmanager.register(accounts, "hugepfn-accounts")
            if config.getoption("hugepfn_bisect"):
                config.pluginmanager.register(BisectResults(), BISECT)
    if not hasattr(config, "workerinput"):
        try:
            check_writable({"--hugepfn-json": config.getoption("hugepfn_json")})
        except UsageError as error:  # a full disk is nobody's wrong request, and no usage error
            raise pytest.UsageError(str(error)) from error


@pytest.hookimpl(wrapper=True)
def pytest_cmdline_main(config: pytest.Config) -> Generator[None, object, object]:
    """With --hugepfn-bisect, end the session with the exit status that git expects."""
    if not config.getoption("hugepfn_bisect"):
        return (yield)
    try:
        ended = yield
    except pytest.UsageError as error:
        verdict, reason = BisectVerdict.BROKEN, str(error)
    else:
        found = config.pluginmanager.get_plugin(BISECT)
        results = found if isinstance(found, BisectResults) else BisectResults()
        verdict, reason = results.verdict(ended)
    line = f"{verdict.name.lower().replace('_', ' ')}: {reason}".splitlines()[0]
    with past_capture(config):
        print(f"hugepfn: {line}", file=sys.stderr)
    return int(verdict)


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Let a worker of xdist show its log as this process does."""
    node.workerinput[_VERBOSITY] = logs.verbosity()


@pytest.hookimpl(trylast=True)  # after the fixtures of a test that was interrupted have ended
def pytest_sessionfinish(session: pytest.Session) -> None:
    """End the machine that waits for a case that did not come."""
    sharing.close(session.config)


def pytest_report_header(config: pytest.Config) -> str:
    """Show kernel, accelerator and QEMU, as far as they are known without fetching or booting anything."""
    asked = config_of(config)
    try:
        release = kernel_of(asked).resolve(offline=True).release
    except HugepfnError:
        release = "not fetched yet"
    try:
        qemu = f"QEMU {find_qemu(asked.qemu).version}"
    except HugepfnError as error:
        qemu = str(error)
    return f"hugepfn: kernel {asked.kernel} ({release}), accelerator {asked.accel}, {qemu}"


# --- results -------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Fail a test with broken claims when it has made all its claims."""
    try:
        result = yield
    except PremiseNotMet as unmet:
        _fail_if_broken(pyfuncitem)
        _unmet(pyfuncitem.config, str(unmet), unmet)
        raise
    except pytest.skip.Exception:
        _fail_if_broken(pyfuncitem)  # a skip does not hide broken claims
        raise
    _end(pyfuncitem)
    return result


def _end(item: pytest.Item) -> None:
    """Look at the kernel's log once more when a test has made all its claims, and fail it if anything is wrong."""
    machine = item.stash.get(_MACHINE, None)
    if machine is None:
        _fail_if_broken(item)
        return
    machine.end_test()
    claims = item.stash.setdefault(_CLAIMS, Claims())
    claims.made += claims_of(machine.expected_complaints, machine.kernel_troubles())
    _fail_if_broken(item)
    machine.check_kernel()


def _fail_if_broken(item: pytest.Item) -> None:
    claims = item.stash.get(_CLAIMS, None)
    if claims is not None and claims.broken:
        claims.failure = pytest.fail.Exception(claims.verdict, pytrace=False)  # each message says where and what
        raise claims.failure


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the result to the report, which takes it past xdist to whoever writes the file."""
    if call.excinfo is not None:
        hide_own_frames(item.config, call.excinfo)
    report = yield
    error = call.excinfo.value if call.excinfo else None
    again.note(item, error)
    if call.when != "call" and error is None:
        return report
    if not has_machine(item):
        told = "" if error is None else str(getattr(error, "msg", None) or error)
        plain = ScenarioResult(
            scenario_of(item), level_of(item), outcome_of(error, report), told, file=own_file(item.path)
        )
        plain = _held_against_expectations(item, plain, report)
        carry(report, Carried(plain))
        if error is not None:
            show_without_own_source(item, error, report)
        _tell_pytest(plain, report)
        return report
    result = _held_against_expectations(item, _result(item, error, report), report)
    sharing.note(item, result)
    if not sharing.runs_again(item):
        result = replace(result, evidence=evidence.keep(item, result, _context(item), error))
    report.sections += [("hugepfn", line) for line in words.returned(result)]
    item.user_properties += [(WAIVED_PROPERTY, told) for told in words.waived(result)]  # the teardown's report has them
    wished = item.get_closest_marker("machine") is not None
    no_kernel = call.when == "setup" and isinstance(error, (KernelBuildError, *KERNELS_FAULT))
    carry(report, Carried(result, _context(item), isinstance(error, UsageError), wished, no_kernel))
    _tell_pytest(result, report)
    if result.outcome is Outcome.FAILED:  # these words need no traceback
        report.longrepr = "\n".join([*words.failed(result), *words.evidence(result)])
    elif isinstance(error, HugepfnError):
        report.longrepr = "\n".join([in_short(error, item), *words.evidence(result)])
    elif error is not None:
        show_without_own_source(item, error, report)
        report.sections += [("hugepfn", line) for line in words.evidence(result)]
    return report


def _held_against_expectations(item: pytest.Item, result: ScenarioResult, report: pytest.TestReport) -> ScenarioResult:
    """The end of a teardown is not what was expected to fail: the test has had its verdict."""
    return result if report.when == "teardown" else held(result, expected_of(item))


def _tell_pytest(result: ScenarioResult, report: pytest.TestReport) -> None:
    """To pytest, a known bug and what was expected are a failure that was expected; an unmet expectation is one."""
    if result.outcome in (Outcome.KNOWN_BUG, Outcome.EXPECTED):
        expected = f"{words.outcome(result)}: " if result.was is not None else ""
        report.outcome, report.wasxfail = "skipped", f"{expected}{words.reason(result)}"
    elif any(one.unmet for one in result.expectations):
        report.outcome, report.longrepr = "failed", "\n".join(words.failed(result))


def _result(item: pytest.Item, error: BaseException | None, report: pytest.TestReport) -> ScenarioResult:
    claims = item.stash[_CLAIMS] if _CLAIMS in item.stash else Claims()
    machine = item.stash.get(_MACHINE, None)
    runs = machine.runs if machine is not None else []
    called = runs if report.when == "call" else []  # a teardown gives no verdict on them
    troubles = machine.kernel_troubles() if machine is not None and report.when == "call" else ()
    made = list(claims.made)
    outcome, reason = outcome_of(error, report), reason_of(claims, error)
    if outcome is Outcome.FAILED and error is not None and reason:
        reason = told(error, item, machine, claims) or reason
    if wrong := [one for run in runs for one in run.uncalibrated]:
        # What was read is not what the tables contain, so no broken claim about it is known.
        if outcome is Outcome.FAILED and isinstance(error, AssertionError | pytest.fail.Exception):
            outcome, reason = Outcome.ERROR, words.uncalibrated(wrong[0])
        made = [replace(one, outcome=Outcome.ERROR) if one.outcome is Outcome.FAILED else one for one in made]
    observations = observations_of(machine) if machine is not None else ()
    if machine is not None and observations and report.when == "call":
        made.append(invariants_of(machine))
    result = ScenarioResult(
        scenario=scenario_of(item),
        level=level_of(item),
        file=own_file(item.path),
        outcome=outcome,
        reason=reason,
        end=end_of(claims, machine, error) if outcome is Outcome.FAILED else None,
        claims=tuple(made),
        observations=observations,
        log=log_of(machine, error),
        waived=tuple(machine.waived.items()) if machine is not None and report.when == "call" else (),
        cannot_know=error is not None and isinstance(error.__cause__, CannotKnow) and report.skipped,
        stops=sum(len(run.snapshots) for run in called),
        violations=tuple(one for run in called for one in run.violations),
        kernel=troubles,
    )
    if report.when != "call":
        return result
    image, ledger, folder = _image(item), ledger_of(item.path.parent), item.path.parent
    if image is not None and image.config is not None:
        ledger = tuple(bug for bug in ledger if bug.shows(image.config.is_set))
    release = image.release if image is not None else ""
    return held_against_ledger(result, ledger, facts_of(folder), release)


def _image(item: pytest.Item) -> KernelImage | None:
    image = item.funcargs.get("kernel") if isinstance(item, pytest.Function) else None
    return image if isinstance(image, KernelImage) else None


def _context(item: pytest.Item) -> dict[str, object]:
    machine = item.stash.get(_MACHINE, None)
    return context_of(config_of(item.config), _image(item), machine)
