"""hugepfn's options for pytest: which machine, which tests, how strict; and where progress lines go."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

import pytest

from harness.config import MachineConfig, default_of, name_of, option_of, variable_of
from harness.errors import PremiseNotMet, UsageError
from harness.events import Say, Sparing
from harness.levels import level_label
from harness.selection.tests import LEVELS

PREFIX = "--hugepfn-"

#: The markers of a test, as ``pytest --markers`` shows them.
MARKERS = (
    "levels(*names): run the test once per page-table level (pte, pmd, pud, also as 4K, 2M, 1G), which it gets as the "
    "argument level",
    "machine(smp=1, append=(), clone=True, device='pci-testdev', guest='initramfs', kvm=False, load=(), memory_mib=0): "
    "what the test needs: at least so many vCPUs, words for the kernel command line, a boot of its own (clone=False), "
    "a device, a root, KVM in the guest, further modules of the kernel, at least so much RAM",
    "waive(*names, reason): invariants, by name, that need not hold in this test; the reason is printed",
    "expect_complaint(*titles): complaints of the kernel that have to come in this test, each by its title as `hugepfn "
    "dmesg` gives it, or by a regular expression that matches all of the title; any other complaint fails the test",
    "leaves_no_trace: the cases of this test, and of others in its file, may share a clone, one after the other; what "
    "does not pass there runs again in a clone of its own",
    "leaves_a_trace(reason): the next case does not get this one's clone, although the file has leaves_no_trace",
    "decided_by(*functions): the kernel functions that decide the test, values of harness.kernel_functions",
)

EXPECT_HELP = (
    "how a test or one of its claims is expected to end: TEST[:LEVEL][:CLAIM]=pass|fail|skip; an expected result does "
    "not count as a failure; may be repeated"
)
EXPECT_FILE_HELP = "a file of such expectations, one per line, comments from # on; may be repeated"

_CONFIG = pytest.StashKey[MachineConfig]()
_SAY = pytest.StashKey[Say]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options, all with hugepfn's prefix. Those of the machine are also ini settings."""
    group = parser.getgroup("hugepfn", "kernel page tables under test (hugepfn)")
    add = group.addoption
    for one in fields(MachineConfig):
        option, name, dest = option_of(one), name_of(one), _dest(one.name)
        text = f"{option.help} (default: {default_of(one)})"
        if option.is_flag:
            add(f"{PREFIX}{name}", action="store_true", default=None, dest=dest, help=text)
            opposite = f"the opposite of {PREFIX}{name}"
            add(f"{PREFIX}no-{name}", action="store_false", default=None, dest=dest, help=opposite)
        else:
            add(f"{PREFIX}{name}", metavar=option.metavar, dest=dest, help=text)
        parser.addini(variable_of(one).lower(), text, default=None)
    levels = {"choices": LEVELS, "type": level_label, "action": "append"}
    add("--hugepfn-level", **levels, help="only this level, also as 4K, 2M or 1G; may be repeated")
    words = "NAME[:LEVEL] or FILE[::TEST][:LEVEL]"
    add("--hugepfn-scenario", metavar="TEST", action="append", help=f"only this test: {words}; may be repeated")
    add("--hugepfn-json", metavar="FILE", type=Path, help="write the results to this file, see docs/results.md")
    add(
        "--hugepfn-keep-vm",
        action="store_true",
        help="keep the machine of a failed test, for `hugepfn shell --kept NAME`",
    )
    add("--hugepfn-bisect", action="store_true", help="end with the exit status that `git bisect run` expects")
    add("--hugepfn-expect", metavar="TEST[:CLAIM]=OUTCOME", action="append", help=EXPECT_HELP)
    add("--hugepfn-expect-file", metavar="FILE", type=Path, action="append", help=EXPECT_FILE_HELP)
    add("--hugepfn-strict", action="store_true", help="fail a test whose precondition is not met")


def _dest(name: str) -> str:
    return f"hugepfn_{name}"


def config_of(config: pytest.Config) -> MachineConfig:
    """Return the requested machine.

    :raises pytest.UsageError: a value is not valid; the message says where it comes from.
    """
    if _CONFIG not in config.stash:
        given = {one.name: config.getoption(_dest(one.name)) for one in fields(MachineConfig)}
        try:
            config.stash[_CONFIG] = MachineConfig.read(given, PREFIX, config.getini)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error
    return config.stash[_CONFIG]


def past_capture(config: pytest.Config) -> contextlib.AbstractContextManager[None]:
    """Return a block in which standard error is not captured."""
    capture = config.pluginmanager.getplugin("capturemanager")
    return capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext()


def say_of(config: pytest.Config) -> Say:
    """Return where progress goes: to standard error, past pytest's capture."""
    if _SAY in config.stash:
        return config.stash[_SAY]

    def write(line: str) -> None:
        if hasattr(config, "workerinput"):  # all workers of xdist would print the same
            return
        with past_capture(config):
            print(f"hugepfn: {line}", file=sys.stderr, flush=True)

    say: Say = Sparing(write)
    config.stash[_SAY] = say
    return say


def set_progress(config: pytest.Config, say: Say) -> None:
    """Send progress elsewhere."""
    config.stash[_SAY] = say


def unmet(config: pytest.Config, reason: str, cause: PremiseNotMet | None = None) -> NoReturn:
    """A precondition is not met: skip, or fail under --hugepfn-strict."""
    if config.getoption("hugepfn_strict"):
        pytest.fail(f"precondition not met: {reason}", pytrace=False)
    raise pytest.skip.Exception(reason) from cause
