"""hugepfn's fixtures for pytest: ``kernel``, ``vm``, ``live_vm``, ``caps``, ``claim``."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import pytest

from harness.claims import Claims
from harness.config import MachineConfig
from harness.errors import KERNELS_FAULT, HugepfnError, PremiseNotMet, UsageError
from harness.events import Note
from harness.kernel import KernelImage
from harness.machine import preparation
from harness.machine.vm import VM
from harness.observe.probe import probe_image
from harness.pagetable import NO_BITS, Bits, Level
from harness.plugin import evidence, sharing
from harness.plugin.failures import compared, history_of
from harness.plugin.options import config_of, say_of, unmet
from harness.qemu.spec import Root
from harness.selection.tests import expected_complaints, level_of, scenario_of, wanted_waivers
from harness.verdict.capabilities import Capabilities

MACHINE = pytest.StashKey[VM]()  # of a test
CLAIMS = pytest.StashKey[Claims]()  # of a test
_LIVE = pytest.StashKey[VM]()
_BOOT_FAILURES = pytest.StashKey[dict[MachineConfig, list[HugepfnError]]]()

#: After so many failed boots in a row, a kernel is not booted again in this session, and its other tests fail at once.
BOOT_ATTEMPTS = 2


@pytest.fixture(scope="session")
def kernel(pytestconfig: pytest.Config) -> KernelImage:
    """The kernel under test, a :class:`harness.kernel.image.KernelImage`; it is fetched or built if necessary."""
    if _LIVE in pytestconfig.stash:
        return pytestconfig.stash[_LIVE].kernel
    return preparation.resolve(config_of(pytestconfig), say_of(pytestconfig))


def set_machine(config: pytest.Config, machine: VM) -> None:
    """Let tests run on this machine, and boot none."""
    config.stash[_LIVE] = machine


def is_live(config: pytest.Config) -> bool:
    """Whether :func:`set_machine` has given the tests a machine."""
    return _LIVE in config.stash


def _lend(request: pytest.FixtureRequest, wanted: MachineConfig) -> Iterator[VM]:
    """Yield the live machine if it has what the test wants; otherwise skip the test."""
    machine = request.config.stash[_LIVE]
    spec = machine.spec
    if wanted.smp > spec.smp:
        unmet(request.config, f"the live machine has {spec.smp} vCPU, this test wants {wanted.smp}")
    if wanted.device not in (spec.device.value, machine.asked_device):
        unmet(request.config, f"the live machine has {spec.device.value}, this test wants {wanted.device}")
    if missing := set(wanted.append) - set(spec.append):
        unmet(request.config, f"the live machine was started without {' '.join(sorted(missing))}")
    if wanted.memory_mib > spec.memory_mib:
        unmet(request.config, f"the live machine has {spec.memory_mib} MiB, this test wants {wanted.memory_mib}")
    if missing := set(wanted.load) - set(spec.load):
        unmet(request.config, f"the live machine was started without --load {' '.join(sorted(missing))}")
    if wanted.kvm and not spec.kvm:
        unmet(request.config, "the live machine was started without --nested")
    if (wanted.guest == "host") is (spec.root is Root.INITRAMFS):
        unmet(request.config, f"this test wants --guest {wanted.guest}")
    machine.runs.clear()
    request.node.stash[evidence.TRIED] = machine
    machine.kernel_log  # noqa: B018 - what it has by now is not about the test
    machine.programs.add_search(request.path.parent)
    yield machine


def _start(request: pytest.FixtureRequest, image: KernelImage, config: MachineConfig) -> VM:
    failures = request.config.stash.setdefault(_BOOT_FAILURES, {}).setdefault(config, [])
    if len(failures) >= BOOT_ATTEMPTS:  # each attempt may take a minute, and a suite has a hundred tests
        raise failures[-1]
    try:
        machine = VM(image, config, search=[request.path.parent], say=say_of(request.config))
        request.node.stash[evidence.TRIED] = machine
        machine.start()
    except KERNELS_FAULT as error:
        failures.append(error)
        raise
    failures.clear()
    return machine


def _config_for(item: pytest.Item) -> MachineConfig:
    """Return the requested machine, with what the test's ``machine`` marker wants in addition."""
    config = config_of(item.config)
    marker = item.get_closest_marker("machine")
    return config.with_wishes(marker.kwargs) if marker is not None else config


@pytest.fixture
def vm(request: pytest.FixtureRequest, kernel: KernelImage) -> Iterator[VM]:
    """A freshly booted machine, a :class:`vm.VM`, for this test alone. Guest programs beside the test come first.

    Tests that have the marker ``leaves_no_trace`` may get one after the other. A test is skipped if the kernel cannot
    have a leaf of its level, or this host cannot have the machine.
    """
    evidence.begin(request.node)
    # Only a test that takes the level as an argument is about a pfnmap's leaf of that level.
    level = request.getfixturevalue("level") if "level" in request.fixturenames else Level.PTE
    if reason := probe_image(kernel).why_not(level):
        unmet(request.config, reason)
    config = _config_for(request.node)
    try:
        preparation.check_guest(config, kernel)
    except (UsageError, PremiseNotMet) as error:
        unmet(request.config, str(error))
    for machine in _booted(request, kernel, config):
        request.node.stash[MACHINE] = request.node.stash[evidence.TRIED] = machine
        machine.waived = wanted_waivers(request.node)
        machine.expected_complaints = expected_complaints(request.node)
        keeps = request.config.getoption("hugepfn_keep_vm") and not sharing.runs_again(request.node)
        machine.on_failure = (lambda failed: _keep(request.node, failed)) if keeps else None
        if reason := machine.caps.why_not(level):
            unmet(request.config, reason)
        machine.begin_test()
        yield machine


def _booted(request: pytest.FixtureRequest, kernel: KernelImage, config: MachineConfig) -> Iterator[VM]:
    """Yield a machine; if this host cannot have it, skip the test with the reason."""
    try:
        if is_live(request.config):
            yield from _lend(request, config)
        else:
            item = request.node
            yield from sharing.machine_for(item, config, kernel, lambda: _start(request, kernel, config))
    except PremiseNotMet as error:
        unmet(request.config, str(error), error)


@pytest.fixture(scope="module")
def live_vm(request: pytest.FixtureRequest, kernel: KernelImage) -> Iterator[VM]:
    """A booted machine, a :class:`vm.VM`, that the tests of a module share."""
    config = config_of(request.config)
    if is_live(request.config):
        yield from _lend(request, config)
        return
    with contextlib.closing(_start(request, kernel, config)) as machine:
        yield machine


@pytest.fixture
def caps(vm: VM) -> Capabilities:
    """What the kernel under test can do, as probed: :class:`harness.verdict.capabilities.Capabilities`."""
    return vm.caps


@pytest.fixture
def claim(request: pytest.FixtureRequest) -> Claims:
    """Makes claims, see :class:`vm.Claims`: ``with claim("what holds", by=FUNCTION): assert ...``."""
    claims = Claims(
        lambda: history_of(request.node.stash.get(MACHINE, None)),
        lambda: _failed(request.node),
        lambda: _early(request.node),
        lambda: compared(request.config),
    )
    request.node.stash[CLAIMS] = claims
    return claims


def _early(item: pytest.Item) -> Bits:
    """Return the bits that the CPU of the test's machine may set in an entry without an access."""
    machine = item.stash.get(MACHINE, None)
    return machine.caps.early if machine is not None and machine.probed else NO_BITS


def _failed(item: pytest.Item) -> None:
    """Report a broken claim while the processes that it is about still wait at their checkpoint."""
    machine = item.stash.get(MACHINE, None)
    if machine is not None and machine.on_failure is not None:
        machine.on_failure(machine)


def _keep(item: pytest.Item, machine: VM) -> None:
    """Save the machine under the scenario's name (--hugepfn-keep-vm)."""
    machine.on_failure = None  # once
    if reason := machine.spec.why_not_saved:
        say_of(item.config)(Note(f"the machine of {item.name} is not kept: {reason}"))
        return
    name = re.sub(r"[^\w.-]+", "-", "-".join(filter(None, (scenario_of(item), level_of(item))))).strip("-")
    try:
        machine.keep(name, item.nodeid)
    except HugepfnError as error:  # it does not change the verdict
        say_of(item.config)(Note(f"the machine of {item.name} is not kept: {error}"))
    else:
        say_of(item.config)(Note(f"kept the machine of {item.name}; look inside with: hugepfn shell --kept {name}"))
