"""pytest's options of hugepfn, and what they say: which machine, how strict, and where progress lines go."""

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
from harness.selection import LEVELS

PREFIX = "--hugepfn-"

#: What a test may be marked with, as ``pytest --markers`` shows it.
MARKERS = (
    "levels(*names): run once per page-table level: pte, pmd, pud",
    "machine(smp=1, append=(), clone=True, device='pci-testdev', guest='initramfs'): what a test needs",
    "waive(*names, reason): invariants that need not hold in this test; the reason is printed",
    "decided_by(*functions): the kernel's functions, of harness.kernel_functions",
)

EXPECT_HELP = (
    "how a test or one of its claims is to end: TEST[:LEVEL][:CLAIM]=pass|fail|skip; what ends so does not count; "
    "may be given again"
)
EXPECT_FILE_HELP = "a file of such expectations, one a line, comments from # on; may be given again"

_CONFIG = pytest.StashKey[MachineConfig]()
_SAY = pytest.StashKey[Say]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options, all with our prefix; those of the machine are ini settings as well."""
    group = parser.getgroup("hugepfn", "kernel page tables under test (hugepfn)")
    add = group.addoption
    for one in fields(MachineConfig):
        option, name, dest = option_of(one), name_of(one), _dest(one.name)
        text = f"{option.help} (default: {default_of(one)})"
        if option.is_flag:
            add(f"{PREFIX}{name}", action="store_true", default=None, dest=dest, help=text)
            add(f"{PREFIX}no-{name}", action="store_false", default=None, dest=dest, help="the contrary")
        else:
            add(f"{PREFIX}{name}", metavar=option.metavar, dest=dest, help=text)
        parser.addini(variable_of(one).lower(), text, default=None)
    levels = {"choices": LEVELS, "type": level_label, "action": "append"}
    add("--hugepfn-level", **levels, help="only this level, also as 4K, 2M or 1G; may be given again")
    words = "NAME[:LEVEL] or FILE[::TEST][:LEVEL]"
    add("--hugepfn-scenario", metavar="TEST", action="append", help=f"only this test: {words}; may be given again")
    add("--hugepfn-json", metavar="FILE", type=Path, help="write the results there")
    add(
        "--hugepfn-keep-vm",
        action="store_true",
        help="keep the machine of a failed test, for `hugepfn shell --kept NAME`",
    )
    add("--hugepfn-bisect", action="store_true", help="end with the exit status that `git bisect run` expects")
    add("--hugepfn-expect", metavar="TEST[:CLAIM]=OUTCOME", action="append", help=EXPECT_HELP)
    add("--hugepfn-expect-file", metavar="FILE", type=Path, action="append", help=EXPECT_FILE_HELP)
    add("--hugepfn-strict", action="store_true", help="a precondition that is not met fails the test")


def _dest(name: str) -> str:
    return f"hugepfn_{name}"


def config_of(config: pytest.Config) -> MachineConfig:
    """The machine that was asked for.

    :raises pytest.UsageError: a value is not valid; says where it stands.
    """
    if _CONFIG not in config.stash:
        given = {one.name: config.getoption(_dest(one.name)) for one in fields(MachineConfig)}
        try:
            config.stash[_CONFIG] = MachineConfig.read(given, PREFIX, config.getini)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from error
    return config.stash[_CONFIG]


def past_capture(config: pytest.Config) -> contextlib.AbstractContextManager[None]:
    """A block in which standard error is the terminal's."""
    capture = config.pluginmanager.getplugin("capturemanager")
    return capture.global_and_fixture_disabled() if capture is not None else contextlib.nullcontext()


def say_of(config: pytest.Config) -> Say:
    """Where progress goes: the terminal itself, past pytest's capture."""
    if _SAY in config.stash:
        return config.stash[_SAY]

    def write(line: str) -> None:
        if hasattr(config, "workerinput"):  # of xdist: the workers would all say the same
            return
        with past_capture(config):
            print(f"hugepfn: {line}", file=sys.stderr, flush=True)

    say: Say = Sparing(write)
    config.stash[_SAY] = say
    return say


def set_progress(config: pytest.Config, say: Say) -> None:
    """Sends progress elsewhere."""
    config.stash[_SAY] = say


def unmet(config: pytest.Config, reason: str, cause: PremiseNotMet | None = None) -> NoReturn:
    """A precondition is not met: skip, or fail under --hugepfn-strict."""
    if config.getoption("hugepfn_strict"):
        pytest.fail(f"precondition not met: {reason}", pytrace=False)
    raise pytest.skip.Exception(reason) from cause
