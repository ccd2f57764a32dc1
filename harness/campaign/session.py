"""A pytest session with the scenarios, with hugepfn's reporter instead of pytest's."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from harness.campaign.event_stream import RunEvent
from harness.campaign.pytest_session import run_pytest, told
from harness.campaign.reporter import RunReporter
from harness.campaign.wanted import choose
from harness.config import DEFAULT, MachineConfig
from harness.errors import ExitCode, UsageError
from harness.events import Event, Note, Say
from harness.guest.compiler import forget_library, guest_tests_dir
from harness.machine import preparation
from harness.machine.vm import VM
from harness.outputs import check_writable
from harness.plugin import fixtures
from harness.plugin import options as pytest_options
from harness.qemu.accel import tell_why_tcg
from harness.qemu.spec import Root
from harness.results import EVERY_TEST
from harness.selection.expected import read, resolve
from harness.selection.selected import Selected
from harness.verdict import exit_code
from harness.verdict.expected.expectation import Expectation

_OUTPUTS = {"json_file": "--hugepfn-json", "junit": "--junitxml"}

#: With more workers than these, the unit of work is a test instead of a file.
_FILE_WORKERS_MAX = 4


class _Wiring:
    """Connects the plugin's progress lines to the reporter once pytest is up, and its tests to a live machine."""

    def __init__(self, say: Say, machine: VM | None = None, stopping: Stopping | None = None) -> None:
        self._say = say
        self._machine = machine
        self._stopping = stopping

    def pytest_configure(self, config: Any) -> None:
        pytest_options.set_progress(config, self._say)
        config.stash[EVERY_TEST] = True
        if self._machine is not None:
            fixtures.set_machine(config, self._machine)

    def pytest_collection_finish(self) -> None:
        if self._machine is None:
            gc.freeze()  # what is there stays until the end; pytest collects garbage twice when it ends

    def pytest_sessionstart(self, session: Any) -> None:
        if self._stopping is not None:
            self._stopping.begin(session)


class Stopping:
    """Lets another thread end a pytest session after the current test."""

    def __init__(self) -> None:
        self._session: Any = None
        self._wanted = False

    def begin(self, session: Any) -> None:
        """Set the session to end. It ends at once if :meth:`stop` was called before."""
        self._session = session
        if self._wanted:
            self.stop()

    def stop(self) -> None:
        """Let no further test start."""
        self._wanted = True
        if self._session is not None:
            self._session.shouldstop = "its caller has gone"


def run_session(
    pytest: ModuleType,
    reporter: RunReporter,
    words: Sequence[Selected],
    config: MachineConfig,
    options: Mapping[str, Any],
    events: Callable[[RunEvent], None] | None = None,
) -> ExitCode:
    """Run tests and print their results.

    :param words: what to run; empty for every scenario.
    :param events: called with every event of the run, from this first line on.
    :raises UsageError: there is no such test or kernel.
    :raises MachineryError: the kernel is not available.
    """
    wanted = choose(words, options["levels"])
    expected = read(options["expected"], options["expect_files"])
    resolve(expected, wanted.tests, strict=bool(options["strict"]))
    # This is not done in a fixture, so that a missing kernel is one message instead of one error per test.
    check_writable({"--json": options["json_file"], "--junit": options["junit"]})

    def say(event: Event) -> None:
        reporter.live.say(event)
        if events is not None:
            events(event)

    why_tcg = preparation.preflight(config, say)
    image = preparation.resolve(config, say)
    preparation.check_guest(config, image)
    tell_why_tcg(why_tcg, say)
    if image.modules_dir is None and not (image.config is not None and image.config.is_builtin("VFIO_PCI")):
        say(Note("no --modules DIR was given: a BAR can be mapped only if vfio-pci is built into this kernel"))
    args = wanted.pytest_args()
    args += config.argv(pytest_options.PREFIX)
    args += [f"{flag}={options[name]}" for name, flag in _OUTPUTS.items() if options[name] is not None]
    args += ["--hugepfn-keep-vm"] if options["keep_vm"] else []
    files = 1 if config.pristine else len(wanted.files)
    args += distributed(options["workers"], files)
    args += ["--hugepfn-strict"] if options["strict"] else []
    args += [f"--hugepfn-expect={one}" for one in expected]
    args += options["pytest_args"]
    reporter.expect(wanted.cases)
    return _main(
        pytest,
        reporter,
        args,
        [_Wiring(say), *([events] if events is not None else [])],
        image.spec,
        strict=bool(options["strict"]),
    )


def distributed(workers: int, files: int) -> list[str]:
    """Return pytest's arguments for several workers. A file is one worker's: more of its cases then share a clone.

    With many workers, everybody would wait for the largest file.

    :param files: how many have cases that may share one.
    """
    if workers == 1:
        return []
    whole = workers <= min(files, _FILE_WORKERS_MAX)
    return ["-n", str(workers), "-p", "xdist", "--dist", "loadfile" if whole else "load"]


def rerun_session(
    pytest: ModuleType,
    reporter: RunReporter,
    words: Sequence[Selected],
    levels: Sequence[str],
    machine: VM,
    stopping: Stopping,
    expected: Sequence[Expectation] = (),
) -> ExitCode:
    """Run tests with their current files on a machine that is already running.

    :raises UsageError: there is no such test, or it does not have this level.
    """
    _forget({guest_tests_dir(), *(word.file.parent for word in words if word.file is not None)})
    wanted = choose(words, levels)
    resolve(expected, wanted.tests)
    reporter.expect(wanted.cases)
    # Nothing is captured, because the descriptors of this process are not those of the caller.
    args = [*wanted.pytest_args(), "--capture=no", *(f"--hugepfn-expect={one}" for one in expected)]
    # The environment was read when the machine was started.
    config = replace(
        DEFAULT,
        kernel=machine.kernel.spec,
        device=machine.spec.device.value,
        guest="initramfs" if machine.spec.root is Root.INITRAMFS else "host",
    )
    args += config.argv(pytest_options.PREFIX)
    return _main(
        pytest, reporter, args, [_Wiring(reporter.live.say, machine, stopping)], machine.kernel.spec, strict=False
    )


def _forget(folders: set[Path]) -> None:
    """Forget the modules of tests and the guest library, because their files may have changed."""
    for name, module in list(sys.modules.items()):
        if Path(getattr(module, "__file__", None) or "/").parent in folders:
            del sys.modules[name]
    forget_library()


def _main(
    pytest: ModuleType, reporter: RunReporter, args: list[str], plugins: list[object], kernel: str, *, strict: bool
) -> ExitCode:
    status = run_pytest(pytest, reporter, args, plugins)
    if status == pytest.ExitCode.USAGE_ERROR:
        return ExitCode.USAGE  # pytest has already reported the error
    reporter.verdict()
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise UsageError(f"nothing of {kernel} was run: no test has this level")
    code = exit_code(reporter.results, strict=strict)
    if code is ExitCode.MACHINERY and reporter.misused:
        return ExitCode.USAGE
    if code is ExitCode.OK and status != pytest.ExitCode.OK and not reporter.troubles:
        reporter.troubles.append(f"pytest ended with status {status}, though no test failed")
    return told(reporter, code)
