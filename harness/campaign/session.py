"""A pytest session with the scenarios, with our reporter instead of the terminal reporter."""

from __future__ import annotations

import ast
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from harness import kernel_functions, pytest_fixtures, pytest_options
from harness.campaign.event_stream import RunEvent
from harness.campaign.reporter import RunReporter, SessionReporter
from harness.config import DEFAULT, MachineConfig
from harness.errors import ExitCode, MachineryError, UsageError
from harness.events import Event, Note, Say
from harness.guest.compiler import forget_library, guest_tests_dir
from harness.machine import preparation
from harness.machine.vm import VM
from harness.outputs import check_writable
from harness.qemu.accel import tell_why_tcg
from harness.qemu.spec import Root
from harness.verdict import exit_code

_OUTPUTS = {"json_file": "--hugepfn-json", "junit": "--junitxml"}

#: Isolate our session: no plugins that happen to be installed, and no options meant for other sessions.
_PYTEST_ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}


_PYTEST_ARGS = ("-p", "no:terminal", "-p", "no:cacheprovider", "--import-mode=importlib", "-c", "/dev/null")
_OURS = ("-p", "harness.pytest_plugin", "--rootdir", str(guest_tests_dir().parent))


class _Wiring:
    """Connects the plugin's progress lines to the reporter once pytest is up, and its tests to a live machine."""

    def __init__(self, say: Say, machine: VM | None = None, stopping: Stopping | None = None) -> None:
        self._say = say
        self._machine = machine
        self._stopping = stopping

    def pytest_configure(self, config: Any) -> None:
        pytest_options.set_progress(config, self._say)
        if self._machine is not None:
            pytest_fixtures.set_machine(config, self._machine)

    def pytest_sessionstart(self, session: Any) -> None:
        if self._stopping is not None:
            self._stopping.begin(session)


class Stopping:
    """Lets another thread end a pytest session after the current test."""

    def __init__(self) -> None:
        self._session: Any = None
        self._wanted = False

    def begin(self, session: Any) -> None:
        """Set the session to end; ends it at once if :meth:`stop` was called before it began."""
        self._session = session
        if self._wanted:
            self.stop()

    def stop(self) -> None:
        """Let no further test start."""
        self._wanted = True
        if self._session is not None:
            self._session.shouldstop = "nobody waits for it any more"


def run_session(
    pytest: ModuleType,
    reporter: RunReporter,
    scenarios: Sequence[str],
    config: MachineConfig,
    options: Mapping[str, Any],
    events: Callable[[RunEvent], None] | None = None,
) -> ExitCode:
    """Run scenarios and print their results.

    :param events: called with every event of the run, from this first line on.
    :raises UsageError: there is no such scenario or kernel.
    :raises MachineryError: the kernel is not available.
    """
    files = _known(scenarios) if scenarios else [guest_tests_dir()]
    # Done here and not in a fixture, so that a missing kernel is one message instead of one error per test.
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
    args = [*map(str, files), *_OURS]  # collecting thirty files takes a second
    args += config.argv(pytest_options.PREFIX)
    args += [f"{flag}={options[name]}" for name, flag in _OUTPUTS.items() if options[name] is not None]
    args += _selection(scenarios, options["levels"])
    args += ["--hugepfn-keep-vm"] if options["keep_vm"] else []
    args += ["-n", str(options["workers"]), "-p", "xdist"] if options["workers"] > 1 else []
    args += ["--hugepfn-strict"] if options["strict"] else []
    args += options["pytest_args"]
    return _main(
        pytest,
        reporter,
        args,
        [_Wiring(say), *([events] if events is not None else [])],
        image.spec,
        strict=bool(options["strict"]),
    )


def rerun_session(
    pytest: ModuleType,
    reporter: RunReporter,
    scenarios: Sequence[str],
    levels: Sequence[str],
    machine: VM,
    stopping: Stopping,
) -> ExitCode:
    """Run scenarios with their current files on a machine that is already running.

    :param scenarios: names, or paths of the user's own test_*.py files.
    :raises UsageError: there is no such scenario, or it does not have this level.
    """
    own = [Path(name) for name in scenarios if name.endswith(".py")]
    names = [name for name in scenarios if not name.endswith(".py")]
    if own and names:
        raise UsageError("either names of scenarios or files of tests, not both")
    files = own or _known(names)
    for missing in (path for path in files if not path.is_file()):
        raise UsageError(f"{missing}: no such file")
    _forget({path.parent for path in files})
    # Nothing is captured, because the descriptors of this process are not the caller's.
    args = [*map(str, files), *_OURS, "--capture=no", *_selection(names, levels)]
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


def _known(scenarios: Sequence[str]) -> list[Path]:
    """The files of scenarios, each once."""
    known = {line.name: line.file for line in scenario_lines()}
    for name in scenarios:
        if name not in known:
            raise UsageError(f"no scenario {name!r}; there are: {', '.join(sorted(known))}")
    return list(dict.fromkeys(known[name] for name in scenarios or known))


def _selection(scenarios: Sequence[str], levels: Sequence[str]) -> list[str]:
    return [*(f"--hugepfn-level={level}" for level in levels), *(f"--hugepfn-scenario={name}" for name in scenarios)]


def _main(
    pytest: ModuleType, reporter: RunReporter, args: list[str], plugins: list[object], kernel: str, *, strict: bool
) -> ExitCode:
    status = run_pytest(pytest, reporter, args, plugins)
    if status == pytest.ExitCode.USAGE_ERROR:
        return ExitCode.USAGE  # pytest has already reported the error
    reporter.verdict()
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise UsageError(f"nothing of {kernel} was run: no scenario has this level")
    code = exit_code(reporter.results, strict=strict)
    if code is ExitCode.MACHINERY and reporter.misused:
        return ExitCode.USAGE
    if code is ExitCode.OK and status != pytest.ExitCode.OK and not reporter.troubles:
        reporter.troubles.append(f"pytest ended with status {status}, though no test failed")
    return told(reporter, code)


def told(reporter: SessionReporter, code: ExitCode) -> ExitCode:
    """The exit status of a session; its problems are reported on standard error.

    :raises MachineryError: there are problems, and no failure is known.
    """
    troubles = "\n".join(dict.fromkeys(reporter.troubles))
    if troubles and code is not ExitCode.CLAIM_FAILED:
        raise MachineryError(troubles)
    if troubles:
        print(f"hugepfn: {troubles}", file=sys.stderr)
    return code


def run_pytest(pytest: ModuleType, reporter: SessionReporter, args: Sequence[str], plugins: Sequence[object]) -> int:
    """Run a pytest session and return its status; one that stopped by itself (-x) counts as ended normally.

    :raises MachineryError: the tests cannot be read.
    :raises KeyboardInterrupt: the session was ended from outside.
    """
    before = {name: os.environ.get(name) for name in _PYTEST_ENVIRONMENT}
    os.environ.update(_PYTEST_ENVIRONMENT)
    try:
        status = int(pytest.main([*_PYTEST_ARGS, *args], plugins=[reporter, *plugins]))
    finally:
        reporter.live.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    if reporter.collect_errors:
        raise MachineryError("the tests cannot be read:\n" + "\n".join(reporter.collect_errors))
    if status != pytest.ExitCode.INTERRUPTED:
        return status
    if reporter.interrupted:
        raise KeyboardInterrupt
    return int(pytest.ExitCode.OK)  # the results decide


class ScenarioLine(NamedTuple):
    """The line of ``hugepfn list`` about one scenario."""

    name: str
    levels: str  # "pte pmd pud"; empty for a scenario without levels
    claim: str  # the first line of the docstring
    decided_by: tuple[str, ...]  # the kernel functions: "mm/memory.c copy_pte_range()"
    file: Path


def scenario_lines() -> list[ScenarioLine]:
    """Every scenario, read from the source."""
    found = []
    for path in sorted(guest_tests_dir().glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                claim = (ast.get_docstring(node) or "").splitlines()[:1]
                name = node.name.removeprefix("test_")
                levels = " ".join(ast.literal_eval(argument) for argument in _marked(node, "levels"))
                decided_by = tuple(map(str, _functions(_marked(node, "decided_by"))))
                found.append(ScenarioLine(name, levels, "".join(claim), decided_by, path))
    return found


def _functions(arguments: Iterable[ast.expr]) -> Iterator[kernel_functions.KernelFunction]:
    """The functions that ``fn.NAME`` and the tables ``fn.NAME_BY`` of harness/kernel_functions.py stand for."""
    for argument in arguments:
        value = getattr(kernel_functions, ast.unparse(argument).removeprefix("fn."))
        yield from dict.fromkeys(value.values()) if isinstance(value, Mapping) else (value,)


def _marked(test: ast.FunctionDef, marker: str) -> list[ast.expr]:
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(f"mark.{marker}"):
            return decorator.args
    return []
