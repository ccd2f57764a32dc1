"""hugepfn for pytest: fixtures ``kernel``, ``vm``, ``live_vm``, ``caps``, ``claim``; options ``--hugepfn-*``.

A test that takes ``vm`` gets a freshly booted kernel. ``@pytest.mark.levels("pte", "pmd", "pud")`` runs it once a
level, given as the argument ``level``; a level that this kernel cannot have is skipped with the reason, before
anything is booted where the kernel's files tell.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from harness.accounts import CONTEXT_PROPERTY, RESULT_PROPERTY, Accounts
from harness.claims import Claims
from harness.errors import ClaimFailed, HugepfnError, KernelError, PremiseNotMet, UsageError
from harness.kernel import Kernel, KernelImage, default_kernel
from harness.machine import VM, find_qemu
from harness.machine.binary import QEMU_VARIABLE
from harness.machine.probe import probe_image
from harness.machine.spec import Device, Root
from harness.outputs import check_writable
from harness.pagetable import NO_BITS, Bits, Level
from harness.results import (
    PLAIN_PROPERTY,
    USAGE_PROPERTY,
    WAIVED_PROPERTY,
    WISHES_PROPERTY,
    Results,
    context_of,
    failures_of,
    held_against_ledger,
    invariants_of,
    log_of,
    observations_of,
    outcome_of,
    reason_of,
    waivers_of,
)
from harness.selection import (
    LEVELS,
    facts_of,
    has_machine,
    ledger_of,
    level_of,
    pytest_collection_modifyitems,
    pytest_generate_tests,
    scenario_of,
    wanted_waivers,
)
from harness.settings import Settings
from harness.verdict import Outcome, ScenarioResult
from harness.verdict.capabilities import Capabilities
from harness.verdict.entries import as_text, rows
from harness.verdict.known_bugs import KnownBug

__all__ = ["pytest_collection_modifyitems", "pytest_generate_tests"]  # hooks that live beside this module

_MACHINE = pytest.StashKey[VM]()
_CLAIMS = pytest.StashKey[Claims]()
_SAY = pytest.StashKey[Callable[[str], None]]()
_LIVE = pytest.StashKey[VM]()
_BOOT_FAILURES = pytest.StashKey[dict[Settings, list[HugepfnError]]]()

#: A kernel that failed to boot so often in a row is not booted again in this session: the other tests fail at once.
BOOT_ATTEMPTS = 2


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, all with our prefix."""
    group = parser.getgroup("hugepfn", "kernel page tables under test (hugepfn)")
    add = group.addoption
    add(
        "--hugepfn-kernel",
        metavar="SPEC",
        help="debian[:6.12[@SUITE]], host, a bzImage, a vmlinux, a folder, tree:PATH[@REV][+PATCH...], "
        "debsrc:6.12[+PATCH...] (default: debian; host where there is no Debian mirror)",
    )
    add("--hugepfn-modules", metavar="DIR", type=Path, help="the modules of a kernel given by path")
    add("--hugepfn-qemu", metavar="QEMU", help="the QEMU to use: a path, or debian:11.1[@SUITE] from the mirror")
    add("--hugepfn-accel", choices=("auto", "kvm", "tcg"), default="auto", help="who runs the guest (default: auto)")
    add("--hugepfn-smp", metavar="N", type=int, default=1, help="vCPUs, 1 to 16")
    add("--hugepfn-memory", metavar="MIB", type=int, default=1024, help="guest RAM in MiB")
    add("--hugepfn-cpu", metavar="MODEL", default="max", help="QEMU's CPU model")
    add("--hugepfn-append", metavar="ARGS", default="", help="words for the kernel command line")
    add("--hugepfn-device", choices=[one.value for one in Device], default="pci-testdev", help="the device under test")
    add("--hugepfn-level", choices=LEVELS, action="append", help="only this level; may be given again")
    add("--hugepfn-scenario", metavar="NAME", action="append", help="only this scenario; may be given again")
    add("--hugepfn-json", metavar="FILE", type=Path, help="write the results there")
    add("--hugepfn-ram-dir", metavar="DIR", type=Path, help="where guest RAM lives (default: /dev/shm)")
    add("--hugepfn-boot-timeout", metavar="S", type=float, help="seconds that a kernel may take to boot")
    add("--hugepfn-no-clone", action="store_true", help="boot for every test instead of cloning a booted machine")
    add("--hugepfn-guest", choices=("initramfs", "host"), default="initramfs", help="what the guest has for /")
    add("--hugepfn-pvh", action="store_true", help="start a bzImage's vmlinux: no KASLR, four-level tables")
    add("--hugepfn-keep-vm", action="store_true", help="keep the machine of a failed test, for `hugepfn shell NAME`")
    add("--hugepfn-strict", action="store_true", help="a premise that is not met fails the test")


def pytest_configure(config: pytest.Config) -> None:
    """The marker, and the collector of results."""
    config.addinivalue_line("markers", "levels(*names): run once a page-table level: pte, pmd, pud")
    config.addinivalue_line(
        "markers", "machine(smp=1, append=(), clone=True, device='pci-testdev', guest='initramfs'): what a test needs"
    )
    config.addinivalue_line(
        "markers", "waive(*names, reason): invariants that need not hold in this test; the reason is printed"
    )
    config.addinivalue_line("markers", "decided_by(*functions): the kernel's functions, of harness.kernel_functions")
    if qemu := config.getoption("hugepfn_qemu"):
        os.environ[QEMU_VARIABLE] = qemu
    if not config.pluginmanager.has_plugin("hugepfn-results"):
        accounts = Accounts(lambda: context_of(settings_of(config), None, None))
        config.pluginmanager.register(Results(config, accounts), "hugepfn-results")
        if not hasattr(config, "workerinput"):  # the last to come is asked first
            config.pluginmanager.register(accounts, "hugepfn-accounts")
    if not hasattr(config, "workerinput"):
        try:
            check_writable(config.getoption("hugepfn_json"))
        except HugepfnError as error:
            raise pytest.UsageError(f"--hugepfn-json {error}") from error


def settings_of(config: pytest.Config) -> Settings:
    """The options as a value."""
    option = config.getoption
    return Settings(
        kernel=option("hugepfn_kernel") or default_kernel().spec,
        modules=option("hugepfn_modules"),
        accel=option("hugepfn_accel"),
        smp=option("hugepfn_smp"),
        memory_mib=option("hugepfn_memory"),
        cpu=option("hugepfn_cpu"),
        append=tuple(option("hugepfn_append").split()),
        ram_dir=option("hugepfn_ram_dir"),
        boot_timeout_s=option("hugepfn_boot_timeout"),
        clone=not option("hugepfn_no_clone"),
        pvh=option("hugepfn_pvh"),
        guest=option("hugepfn_guest"),
        device=option("hugepfn_device"),
    )


def pytest_report_header(config: pytest.Config) -> str:
    """Kernel, accelerator and QEMU, as far as they are known without fetching or booting anything."""
    settings = settings_of(config)
    try:
        release = Kernel.parse(settings.kernel, settings.modules).resolve(offline=True).release
    except HugepfnError:
        release = "not fetched yet"
    try:
        qemu = f"QEMU {find_qemu().version}"
    except HugepfnError as error:
        qemu = str(error)
    return f"hugepfn: kernel {settings.kernel} ({release}), accelerator {settings.accel}, {qemu}"


def _say(config: pytest.Config) -> Callable[[str], None]:
    """Where progress lines go: the terminal itself, past pytest's capture."""
    if _SAY in config.stash:
        return config.stash[_SAY]

    said: set[str] = set()
    is_worker = hasattr(config, "workerinput")  # of xdist: the others would all say the same

    def say(line: str) -> None:
        if line in said or is_worker:
            return
        said.add(line)
        capture = config.pluginmanager.getplugin("capturemanager")
        if capture is None:
            print(f"hugepfn: {line}", file=sys.stderr, flush=True)
            return
        with capture.global_and_fixture_disabled():
            print(f"hugepfn: {line}", file=sys.stderr, flush=True)

    config.stash[_SAY] = say
    return say


def set_progress(config: pytest.Config, say: Callable[[str], None]) -> None:
    """Sends progress lines elsewhere."""
    config.stash[_SAY] = say


# --- fixtures ------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kernel(pytestconfig: pytest.Config) -> KernelImage:
    """The kernel under test, fetched if need be."""
    if _LIVE in pytestconfig.stash:
        return pytestconfig.stash[_LIVE].kernel
    return settings_of(pytestconfig).resolve(_say(pytestconfig))


def set_machine(config: pytest.Config, machine: VM) -> None:
    """Tests run on this machine, and boot none."""
    config.stash[_LIVE] = machine


def _lend(request: pytest.FixtureRequest, wanted: Settings) -> Iterator[VM]:
    """The machine that lives, where it is one that the test can have."""
    machine = request.config.stash[_LIVE]
    spec = machine.spec
    if wanted.smp > spec.smp:
        _unmet(request.config, f"the live machine has {spec.smp} vCPU, this test wants {wanted.smp}")
    if wanted.device not in (spec.device.value, machine.asked_device):
        _unmet(request.config, f"the live machine has {spec.device.value}, this test wants {wanted.device}")
    if missing := set(wanted.append) - set(spec.append):
        _unmet(request.config, f"the live machine was started without {' '.join(sorted(missing))}")
    if (wanted.guest == "host") is (spec.root is Root.INITRAMFS):
        _unmet(request.config, f"this test wants --guest {wanted.guest}")
    machine.runs.clear()
    machine.add_search(request.path.parent)
    yield machine


def _boot(request: pytest.FixtureRequest, image: KernelImage, settings: Settings) -> Iterator[VM]:
    if _LIVE in request.config.stash:
        yield from _lend(request, settings)
        return
    failures = request.config.stash.setdefault(_BOOT_FAILURES, {}).setdefault(settings, [])
    if len(failures) >= BOOT_ATTEMPTS:  # each attempt may take a minute, and a suite has a hundred tests
        raise failures[-1]
    with contextlib.ExitStack() as stack:
        try:
            machine = stack.enter_context(settings.vm(image, [request.path.parent], _say(request.config)))
        except (KernelError, ClaimFailed) as error:  # a kernel that dies in the probe is no better
            failures.append(error)
            raise
        failures.clear()
        yield machine


def _settings_for(item: pytest.Item) -> Settings:
    """The options, and what the test's ``machine`` marker wants beside them."""
    settings = settings_of(item.config)
    marker = item.get_closest_marker("machine")
    return settings.with_wishes(marker.kwargs) if marker is not None else settings


@pytest.fixture
def vm(request: pytest.FixtureRequest, kernel: KernelImage) -> Iterator[VM]:
    """A freshly booted kernel, the test's own. Guest programs are looked for beside the test first."""
    # Only a test that takes the level as an argument is about a pfnmap's leaf of that level.
    level = request.getfixturevalue("level") if "level" in request.fixturenames else Level.PTE
    if reason := probe_image(kernel).why_not(level):
        _unmet(request.config, reason)
    settings = _settings_for(request.node)
    try:
        settings.check_guest(kernel)
    except UsageError as error:
        _unmet(request.config, str(error))
    for machine in _booted(request, kernel, settings):
        request.node.stash[_MACHINE] = machine
        machine.waived = wanted_waivers(request.node)
        if request.config.getoption("hugepfn_keep_vm"):
            machine.on_failure = lambda failed: _keep(request.node, failed)
        if reason := machine.caps.why_not(level):
            _unmet(request.config, reason)
        yield machine


def _booted(request: pytest.FixtureRequest, kernel: KernelImage, settings: Settings) -> Iterator[VM]:
    """A machine; of one that this host cannot give the test is skipped, with the reason."""
    try:
        yield from _boot(request, kernel, settings)
    except PremiseNotMet as unmet:
        _unmet(request.config, str(unmet))


@pytest.fixture(scope="module")
def live_vm(request: pytest.FixtureRequest, kernel: KernelImage) -> Iterator[VM]:
    """A booted kernel that the tests of a module share."""
    yield from _boot(request, kernel, settings_of(request.config))


@pytest.fixture
def caps(vm: VM) -> Capabilities:
    """What the kernel under test can do, as probed."""
    return vm.caps


@pytest.fixture
def claim(request: pytest.FixtureRequest) -> Claims:
    """``with claim("what holds", by=FUNCTION): assert ...``, see :class:`harness.claims.Claims`."""
    claims = Claims(lambda: _last_entries(request.node), lambda: _failed(request.node), lambda: _early(request.node))
    request.node.stash[_CLAIMS] = claims
    return claims


def _early(item: pytest.Item) -> Bits:
    """What the CPU of the test's machine may set in an entry by itself."""
    machine = item.stash.get(_MACHINE, None)
    return machine.caps.early if machine is not None and machine.probed else NO_BITS


def _failed(item: pytest.Item) -> None:
    """A claim is broken; the processes that it is about still wait at their checkpoint."""
    machine = item.stash.get(_MACHINE, None)
    if machine is not None and machine.on_failure is not None:
        machine.on_failure(machine)


def _keep(item: pytest.Item, machine: VM) -> None:
    """--hugepfn-keep-vm: saves the machine under the scenario's name."""
    machine.on_failure = None  # once
    if reason := machine.spec.why_not_saved:
        _say(item.config)(f"the machine of {item.name} is not kept: {reason}")
        return
    name = "-".join(word for word in (scenario_of(item), level_of(item)) if word)
    try:
        machine.keep(name, item.nodeid)
    except HugepfnError as error:  # the verdict is not about that
        _say(item.config)(f"the machine of {item.name} is not kept: {error}")
    else:
        _say(item.config)(f"kept the machine of {item.name}; look inside with: hugepfn shell {name}")


def _unmet(config: pytest.Config, reason: str) -> None:
    """A premise is not met: skip, or fail under --hugepfn-strict."""
    if config.getoption("hugepfn_strict"):
        pytest.fail(f"premise not met: {reason}", pytrace=False)
    pytest.skip(reason)


def _last_entries(item: pytest.Item) -> str:
    """The entries at the last two stops, for the message of a broken claim."""
    machine = item.stash.get(_MACHINE, None)
    if machine is None or not machine.runs:
        return ""
    observations = [one for at in machine.runs[-1].snapshots for one in at.observations()]
    stops = list(dict.fromkeys(one.checkpoint for one in observations))[-2:]
    return as_text([row for row in rows(observations) if row.checkpoint in stops])


# --- results -------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """A test whose claims did not all hold fails when it has said everything."""
    try:
        result = yield
    except PremiseNotMet as unmet:
        _fail_if_broken(pyfuncitem)
        _unmet(pyfuncitem.config, str(unmet))
        raise
    except pytest.skip.Exception:
        _fail_if_broken(pyfuncitem)  # what was broken before the skip stays broken
        raise
    _fail_if_broken(pyfuncitem)
    return result


def _fail_if_broken(item: pytest.Item) -> None:
    if _CLAIMS in item.stash and (verdict := item.stash[_CLAIMS].verdict):
        pytest.fail(verdict, pytrace=False)  # each message already says where and what


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Puts the result where the report carries it: past xdist to whoever writes the file."""
    report = yield
    error = call.excinfo.value if call.excinfo else None
    if not has_machine(item):
        if call.when == "call" or error is not None:
            report.user_properties.append((PLAIN_PROPERTY, outcome_of(error, report).value))
        return report
    if call.when == "call" or error is not None:
        result = _result(item, error, report)
        if result.outcome is Outcome.KNOWN_BUG:  # to pytest, a failure that was expected
            report.outcome, report.wasxfail = "skipped", result.reason
        item.user_properties += [(WAIVED_PROPERTY, told) for told in result.waived]  # the teardown's report has them
        report.user_properties.append((RESULT_PROPERTY, json.dumps(result.to_json())))
        report.user_properties.append((CONTEXT_PROPERTY, json.dumps(_context(item))))
        if isinstance(error, UsageError):
            report.user_properties.append((USAGE_PROPERTY, True))
        if item.get_closest_marker("machine") is not None:
            report.user_properties.append((WISHES_PROPERTY, True))
        if isinstance(error, HugepfnError) and not isinstance(error, AssertionError):
            # Our own words need no traceback; what was broken before belongs to it.
            told = item.stash[_CLAIMS].verdict if _CLAIMS in item.stash else ""
            report.longrepr = f"{type(error).__name__}: {error}" + (f"\n{told}" if told else "")
    return report


def _result(item: pytest.Item, error: BaseException | None, report: pytest.TestReport) -> ScenarioResult:
    claims = item.stash[_CLAIMS] if _CLAIMS in item.stash else Claims()
    machine = item.stash.get(_MACHINE, None)
    observations = observations_of(machine) if machine is not None else []
    made = list(claims.made)
    if machine is not None and any(run.uncalibrated for run in machine.runs):
        # What was read is not what the tables hold, so nothing that was claimed of it is known.
        made = [replace(one, outcome=Outcome.ERROR) if one.outcome is Outcome.FAILED else one for one in made]
    if machine is not None and observations and report.when == "call":
        made.append(invariants_of(machine))
    result = ScenarioResult(
        scenario=scenario_of(item),
        level=level_of(item),
        outcome=outcome_of(error, report),
        reason=reason_of(claims, error),
        claims=tuple(made),
        observations=tuple(one.to_json() for one in observations),
        log=log_of(machine, error),
        waived=waivers_of(machine) if machine is not None and report.when == "call" else (),
    )
    if report.when != "call":
        return result
    image, ledger = _image(item), ledger_of(item.path.parent)
    if image is not None and image.config is not None:
        ledger = tuple(bug for bug in ledger if bug.shows(image.config.is_set))
    seen = facts_of(item.path.parent)

    def had_it(bug: KnownBug) -> str | None:
        return seen.of(bug.id).had_it(image.release) if image is not None else None

    return held_against_ledger(result, failures_of(claims, machine, error), ledger, had_it)


def _image(item: pytest.Item) -> KernelImage | None:
    image = item.funcargs.get("kernel") if isinstance(item, pytest.Function) else None
    return image if isinstance(image, KernelImage) else None


def _context(item: pytest.Item) -> dict[str, object]:
    machine = item.stash.get(_MACHINE, None)
    return context_of(settings_of(item.config), _image(item), machine)
