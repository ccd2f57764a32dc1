"""One session of pytest in this process, isolated from the user's: no other plugins, options or configuration."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from harness.campaign.reporter import SessionReporter
from harness.errors import ExitCode, MachineryError
from harness.guest.compiler import guest_tests_dir

#: Isolate the session from installed plugins, and from options that are meant for other sessions.
_PYTEST_ENVIRONMENT = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
_PYTEST_ARGS = ("-p", "no:terminal", "-p", "no:cacheprovider", "--import-mode=importlib", "-c", "/dev/null")


def place_args(files: Sequence[Path]) -> list[str]:
    """Return the arguments for tests in these files.

    conftest.py and modules beside a test are used, but nothing from folders above it. Test names are relative to the
    common parent of the folders, so that no two tests have the same name.
    """
    folders = [os.fspath(folder) for folder in dict.fromkeys(file.parent for file in files)]
    ours = os.fspath(guest_tests_dir())
    root = os.fspath(guest_tests_dir().parent) if folders in ([], [ours]) else os.path.commonpath(folders)
    own = [folder for folder in folders if folder != ours]
    args = ["-p", "harness.pytest_plugin", f"--rootdir={root}", f"--confcutdir={(own or [ours])[0]}"]
    return args + (["-o", f"pythonpath={shlex.join(own)}"] if own else [])


def told(reporter: SessionReporter, code: ExitCode) -> ExitCode:
    """Return the exit status of a session, and report its problems on standard error.

    :raises MachineryError: there are problems, and no test is known to have failed.
    """
    troubles = "\n".join(dict.fromkeys(reporter.troubles))
    if troubles and code is not ExitCode.CLAIM_FAILED:
        raise MachineryError(troubles)
    if troubles:
        print(f"hugepfn: {troubles}", file=sys.stderr)
    return code


def run_pytest(pytest: ModuleType, reporter: SessionReporter, args: Sequence[str], plugins: Sequence[object]) -> int:
    """Run a pytest session and return its exit status. A session that stopped early (-x) counts as a normal end.

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
