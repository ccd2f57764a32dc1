"""One pytest session over the scenarios, with our reporter in the terminal's place."""

from __future__ import annotations

import ast
import os
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

from harness import pytest_plugin
from harness.campaign.reporter import RunReporter, SessionReporter
from harness.errors import ExitCode, MachineryError, UsageError
from harness.guest.compiler import guest_tests_dir
from harness.settings import Settings
from harness.verdict import exit_code

_OPTIONS = {
    "kernel": "--hugepfn-kernel",
    "modules": "--hugepfn-modules",
    "accel": "--hugepfn-accel",
    "smp": "--hugepfn-smp",
    "memory": "--hugepfn-memory",
    "cpu": "--hugepfn-cpu",
    "append": "--hugepfn-append",
    "json_file": "--hugepfn-json",
    "junit": "--junitxml",
    "ram_dir": "--hugepfn-ram-dir",
    "boot_timeout": "--hugepfn-boot-timeout",
}


#: Our session is ours: no plugin that happens to be installed, no options that were meant for others.
_PYTEST_ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}


_PYTEST_ARGS = ("-p", "no:terminal", "-p", "no:cacheprovider", "--import-mode=importlib", "-c", "/dev/null")


class _Wiring:
    """Connects the plugin's progress lines to the reporter once pytest is up."""

    def __init__(self, reporter: RunReporter) -> None:
        self._reporter = reporter

    def pytest_configure(self, config: Any) -> None:
        pytest_plugin.set_progress(config, self._reporter.say)


def settings_of(options: Mapping[str, Any]) -> Settings:
    """What the options of a command mean."""
    return Settings(
        kernel=options["kernel"],
        modules=options["modules"],
        accel=options["accel"],
        smp=options["smp"],
        memory_mib=options["memory"],
        cpu=options["cpu"],
        append=tuple(options["append"].split()),
        device=options.get("device", Settings.device),
        ram_dir=options["ram_dir"],
        boot_timeout_s=options["boot_timeout"],
        clone=not options["no_clone"],
        pvh=options["pvh"],
    )


def run_session(
    pytest: ModuleType, reporter: RunReporter, scenarios: Sequence[str], options: Mapping[str, Any]
) -> ExitCode:
    """Runs scenarios and says what became of them.

    :raises UsageError: there is no such scenario, or kernel.
    :raises MachineryError: the kernel cannot be had.
    """
    known = {line.name for line in scenario_lines()}
    for name in scenarios:
        if name not in known:
            raise UsageError(f"no scenario {name!r}; there are: {', '.join(sorted(known))}")
    settings = settings_of(options)
    # Here, not in a fixture: what cannot be had is one line, not one error a test.
    settings.preflight(reporter.say)
    image = settings.resolve(reporter.say)
    if image.modules_dir is None and not (image.config is not None and image.config.is_builtin("VFIO_PCI")):
        reporter.say("no --modules DIR was given: a BAR can be had only if vfio-pci is built into this kernel")
    args = [str(guest_tests_dir()), "--rootdir", str(guest_tests_dir().parent)]
    args += [f"{flag}={options[name]}" for name, flag in _OPTIONS.items() if options[name] not in (None, "")]
    args += [f"--hugepfn-level={level}" for level in options["levels"]]
    args += [f"--hugepfn-scenario={name}" for name in scenarios]
    args += ["--hugepfn-keep-vm"] if options["keep_vm"] else []
    args += ["--hugepfn-pvh"] if options["pvh"] else []
    args += ["--hugepfn-no-clone"] if options["no_clone"] else []
    args += ["-n", str(options["workers"])] if options["workers"] > 1 else []
    args += ["--hugepfn-strict"] if options["strict"] else []
    args += options["pytest_args"]
    args += ["-p", "harness.pytest_plugin", *(["-p", "xdist"] if options["workers"] > 1 else [])]
    status = run_pytest(pytest, reporter, args, [_Wiring(reporter)])
    if status == pytest.ExitCode.USAGE_ERROR:
        return ExitCode.USAGE  # pytest has said what it does not understand
    reporter.verdict()
    if status == pytest.ExitCode.NO_TESTS_COLLECTED:
        raise UsageError(f"nothing of {image.spec} was run: no scenario has this level")
    if status == pytest.ExitCode.INTERNAL_ERROR:
        return ExitCode.MACHINERY
    code = exit_code(reporter.results, strict=bool(options["strict"]))
    if code is ExitCode.OK and status == pytest.ExitCode.TESTS_FAILED:
        return ExitCode.CLAIM_FAILED  # a test that is about no machine
    return code


def run_pytest(pytest: ModuleType, reporter: SessionReporter, args: Sequence[str], plugins: Sequence[object]) -> int:
    """One session of our own; its status.

    :raises MachineryError: what is to be run cannot be read.
    :raises KeyboardInterrupt: it was ended from outside.
    """
    before = {name: os.environ.get(name) for name in _PYTEST_ENVIRONMENT}
    os.environ.update(_PYTEST_ENVIRONMENT)
    try:
        status = int(pytest.main([*_PYTEST_ARGS, *args], plugins=[reporter, *plugins]))
    finally:
        reporter.close()
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
    if reporter.collect_errors:
        raise MachineryError("the tests cannot be read:\n" + "\n".join(reporter.collect_errors))
    if status == pytest.ExitCode.INTERRUPTED:
        raise KeyboardInterrupt
    return status


class ScenarioLine(NamedTuple):
    """What ``hugepfn list`` says of one scenario."""

    name: str
    levels: str  # "pte pmd pud"; empty for one that knows no levels
    claim: str  # the docstring's first line
    decided_by: str  # the kernel's functions


def scenario_lines() -> list[ScenarioLine]:
    """Every scenario, read from the source."""
    found = []
    for path in sorted(guest_tests_dir().glob("test_*.py")):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                claim = (ast.get_docstring(node) or "").splitlines()[:1]
                name, levels = node.name.removeprefix("test_"), " ".join(_marked(node, "levels"))
                found.append(ScenarioLine(name, levels, "".join(claim), ", ".join(_marked(node, "decided_by"))))
    return found


def _marked(test: ast.FunctionDef, marker: str) -> list[str]:
    for decorator in test.decorator_list:
        if isinstance(decorator, ast.Call) and ast.unparse(decorator.func).endswith(f"mark.{marker}"):
            return [str(ast.literal_eval(argument)) for argument in decorator.args]
    return []
