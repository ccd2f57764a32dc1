"""Checks that exit status 1 is always a verdict: with broken streams, full disks, killed workers and bugs of our own.

The kernel and the machines are stubs, so that each run takes a second. The processes, pytest and the files are real.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.errors import ExitCode, MachineryError
from harness.outputs import check_writable

ROOT = Path(__file__).resolve().parents[1]
ENTRY = (sys.executable, "-m", "harness.entry")

#: Runs the command with a simulated kernel and machines, and with the scenarios beside this script.
DRIVER = """
import sys
from pathlib import Path
from harness.outputs import hold_descriptors
hold_descriptors()
from harness.campaign import pytest_session, scenarios, wanted
from harness.kernel import ImageKind, Kconfig, KernelImage
from harness.machine import preparation
IMAGE = KernelImage(spec="debian:6.12", image=Path("/k"), kind=ImageKind.BZIMAGE, release="6.12.1", modules_dir=None,
                    config=Kconfig(""))
for module in pytest_session, scenarios, wanted:
    module.guest_tests_dir = lambda: Path(__file__).parent / "guest_tests"
preparation.preflight = lambda *_: None
preparation.resolve = lambda *_: IMAGE
from harness.entry import main
main()
"""
CONFTEST = """
import os
import pytest

@pytest.fixture
def kernel():
    return None

@pytest.fixture
def vm():
    return None

if "NO_DESCRIPTORS" in os.environ:
    from harness import pytest_plugin
    from harness.errors import MachineryError

    def refuse(_files):
        raise MachineryError("out.json cannot be written")

    pytest_plugin.check_writable = refuse

def pytest_collection_finish(session):
    if "BREAK_PYTEST" in os.environ:
        raise KeyError("a bug of ours")
"""
SCENARIOS = """
import os, signal
import pytest

@pytest.mark.levels("pte", "pmd", "pud")
def test_fork(vm, level, claim):
    if os.environ.get("KILL") == level.label:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("END") == level.label:
        os.kill(os.getpid(), signal.SIGTERM)
    with claim("the child has D"):
        assert os.environ.get("FAIL") != level.label
    if os.environ.get("BROKEN") == level.label:
        raise MemoryError

def test_zap(vm, claim):
    with claim("nothing is left"):
        pass
"""


class Done:
    """How a process ended."""

    def __init__(self, status: int, out: bytes, err: bytes) -> None:
        self.status, self.out, self.err = status, out.decode(), err.decode()

    def one_line(self) -> str:
        """Return standard error. Fails if it is not one line of ours without a traceback."""
        (line,) = self.err.strip().splitlines()
        assert line.startswith("hugepfn: "), line
        return line.removeprefix("hugepfn: ")


Shell = Callable[..., Done]


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    """Run a command line with a shell. ``hugepfn`` stands for the command under test."""
    scenarios = tmp_path / "guest_tests"
    scenarios.mkdir()
    (scenarios / "conftest.py").write_text(CONFTEST)
    (scenarios / "test_scenarios.py").write_text(SCENARIOS)
    (tmp_path / "driver.py").write_text(DRIVER)
    environment = {**os.environ, "HUGEPFN_CACHE_DIR": str(tmp_path / "cache"), "PYTHONPATH": str(ROOT)}
    environment.pop("PYTEST_ADDOPTS", None)

    def run(line: str, *, entry: bool = False, cwd: Path = tmp_path, **more: str) -> Done:
        ours = " ".join(ENTRY) if entry else f"{sys.executable} {tmp_path}/driver.py"
        words = ["bash", "-o", "pipefail", "-c", re.sub(r"^hugepfn|(?<=; )hugepfn", ours, line)]
        done = subprocess.run(
            words, cwd=cwd, env={**environment, **more}, stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        return Done(done.returncode, done.stdout, done.stderr)

    return run


# --- streams -------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["list", "run"])
@pytest.mark.parametrize(
    ("streams", "status", "words"),
    [
        ("", 0, ""),
        ("<&-", 0, ""),
        ("2>&-", 0, ""),
        ("2>/dev/full", 0, ""),
        (">/dev/full", 3, "standard output cannot be written: No space left on device"),
        (">&-", 3, "standard output cannot be written: Bad file descriptor"),
        (">&- 2>&- <&-", 3, ""),
        ("| head -c 1", 0, ""),
    ],
)
def test_broken_streams(shell: Shell, command: str, streams: str, status: int, words: str) -> None:
    """The streams are closed, full, or left by their reader. Nothing is printed if nothing is wrong."""
    done = shell(f"hugepfn {command} {streams}", entry=command != "run")
    assert (done.status, "Traceback" in done.err + done.out) == (status, False), done.err
    assert (done.one_line() if words else done.err).startswith(words)


@pytest.mark.parametrize("streams", ["| head -c 1", ">/dev/full", ">&- 2>&- <&-"])
def test_a_failure_keeps_its_status_with_broken_streams(shell: Shell, streams: str) -> None:
    assert shell(f"hugepfn run {streams}", FAIL="pmd").status == 1


@pytest.mark.parametrize("streams", ["", "| head -c 1", ">/dev/full"])
def test_broken_streams_never_make_a_commit_bad(shell: Shell, tmp_path: Path, streams: str) -> None:
    """The step fails, because there is no tree."""
    assert shell(f"hugepfn check {tmp_path}/none fork:pud {streams}", entry=True).status == 128


def test_a_command_that_cannot_start(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("raise ImportError('no click')\n")
    path = f"{tmp_path}:{ROOT}"
    done = shell("hugepfn list", entry=True, PYTHONPATH=path)
    assert (done.status, done.one_line()[:16]) == (3, "it cannot start:")
    assert shell("hugepfn check . fork", entry=True, PYTHONPATH=path).status == 128
    assert shell("hugepfn list 2>&-", entry=True, PYTHONPATH=path).status == 3


def test_a_working_directory_that_was_deleted(shell: Shell, tmp_path: Path) -> None:
    line = f"mkdir {tmp_path}/gone; cd {tmp_path}/gone; rmdir {tmp_path}/gone; hugepfn run"
    done = shell(line)
    assert (done.status, done.one_line()) == (
        3,
        "the working directory was deleted; change to another one and start again",
    )


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["--json", "--junit"])
@pytest.mark.parametrize("workers", ["", "-n 2"])
def test_a_file_on_a_full_disk(shell: Shell, option: str, workers: str) -> None:
    done = shell(f"hugepfn run {workers} {option} /dev/full")
    assert (done.status, "Traceback" in done.err) == (3, False)
    assert "No space left on device" in done.one_line()
    assert "/dev/full cannot be written" in done.err
    assert "4 passed; 4 of 4 claims hold" in done.out
    done = shell(f"hugepfn run {workers} {option} /dev/full", FAIL="pud")
    assert (done.status, "No space left on device" in done.one_line()) == (1, True)


def test_a_host_at_its_limits_is_no_wrong_request(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is tried twice, by the command and by the plugin in its pytest session."""
    done = shell("hugepfn run --json out.json", NO_DESCRIPTORS="1")
    assert (done.status, done.one_line()) == (3, "out.json cannot be written")

    def open_no_more(path: Path, _text: str) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    monkeypatch.setattr(Path, "write_text", open_no_more)
    with pytest.raises(MachineryError, match=r"--json x cannot be written: Too many open files; raise ulimit -n"):
        check_writable({"--json": Path("x")})


def test_a_full_disk_does_not_lose_the_other_file(shell: Shell, tmp_path: Path) -> None:
    assert shell("hugepfn run --json out.json --junit /dev/full").status == 3
    assert len(json.loads((tmp_path / "out.json").read_text())["results"]) == 4


def test_plain_pytest_does_not_report_a_failed_test(shell: Shell, tmp_path: Path) -> None:
    line = f"{sys.executable} -m pytest -q -p harness.pytest_plugin --hugepfn-json=/dev/full guest_tests"
    done = shell(line, PYTHONPATH=f"{ROOT}:{tmp_path}")
    assert "4 passed" in done.out
    assert done.status == pytest.ExitCode.INTERNAL_ERROR
    assert "hugepfn: /dev/full cannot be written: No space left on device" in done.err + done.out
    assert shell(line, FAIL="pte").status == pytest.ExitCode.TESTS_FAILED


# --- the session ---------------------------------------------------------------------------------


def results(tmp_path: Path) -> dict[str, Any]:
    data = json.loads((tmp_path / "out.json").read_text())
    assert isinstance(data, dict)
    return data


def test_a_worker_that_is_killed_leaves_its_case_by_name(shell: Shell, tmp_path: Path) -> None:
    done = shell("hugepfn run -n 2 --json out.json --junit out.xml", KILL="pud")
    assert done.status == 3
    assert "fork pud: error: its worker process ended while it ran, so there is no verdict" in done.out
    assert "3 passed, 1 error; 3 of 3 claims hold" in done.out
    found = {(one["scenario"], one["level"]): one["outcome"] for one in results(tmp_path)["results"]}
    assert found == {
        ("fork", "pte"): "passed",
        ("fork", "pmd"): "passed",
        ("fork", "pud"): "error",
        ("zap", None): "passed",
    }
    assert 'errors="1"' in (tmp_path / "out.xml").read_text()
    assert shell("hugepfn run -n 2", KILL="pud", FAIL="pte").status == 1


def test_workers_that_all_die_are_reported(shell: Shell, tmp_path: Path) -> None:
    done = shell("hugepfn run -n 2 --pytest=--max-worker-restart=0 --json out.json", KILL="pte")
    assert done.status == 3
    assert len(results(tmp_path)["results"]) == 4


@pytest.mark.parametrize("workers", ["", "-n 2"])
def test_a_run_that_stops_at_the_first_failure_says_so(shell: Shell, tmp_path: Path, workers: str) -> None:
    """The first case fails, so some cases are left over, unless two workers have one case each."""
    many = "".join(f"\n\ndef test_more{n}(vm):\n    pass\n" for n in range(20))
    (tmp_path / "guest_tests/test_scenarios.py").write_text(SCENARIOS + many)
    done = shell(f"hugepfn run {workers} --pytest=-x --json out.json", FAIL="pte")
    assert (done.status, done.err) == (1, "")
    (line,) = [line for line in done.out.splitlines() if "not run" in line]
    assert re.fullmatch(r"\d+ not run: stopping after 1 failures", line)
    assert results(tmp_path)["stopped"] == "stopping after 1 failures"
    assert "interrupted" not in results(tmp_path)


def test_an_internal_error_of_pytest(shell: Shell) -> None:
    done = shell("hugepfn run", BREAK_PYTEST="1")
    assert done.status == 3
    assert done.one_line().startswith("a bug of hugepfn: KeyError: 'a bug of ours' (conftest.py:")


def test_out_of_memory_in_a_test(shell: Shell) -> None:
    assert shell("hugepfn run", BROKEN="pte").status == 3
    assert shell("hugepfn run", BROKEN="pte", FAIL="pud").status == 1


def test_a_run_that_is_terminated(shell: Shell, tmp_path: Path) -> None:
    done = shell("hugepfn run --json out.json", END="pmd")
    assert (done.status, done.one_line()) == (130, "interrupted")
    assert (results(tmp_path)["interrupted"], len(results(tmp_path)["results"])) == (True, 1)


def test_a_test_without_a_machine_is_reported_too(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "guest_tests/test_scenarios.py"
    for body, status, word in (("pass", 0, "passed"), ("assert not 1", 1, "failed"), ("raise KeyError", 3, "error")):
        file.write_text(f"def test_plain():\n    {body}\n")
        done = shell("hugepfn run")
        assert (done.status, f"plain: {word}" in done.out, f"1 {word}; 0 of 0" in done.out) == (status, True, True)


def test_both_ways_to_start_it(shell: Shell) -> None:
    line = f"{sys.executable} {ROOT}/vm.py list >/dev/full"
    assert shell(line).status == 3


# --- the documented table ------------------------------------------------------------------------


def test_the_exit_statuses_are_documented() -> None:
    assert {code.value for code in ExitCode} == {0, 1, 2, 3, 125, 128, 130}
    assert all(code.meaning for code in ExitCode)
    assert ExitCode(3) is ExitCode.MACHINERY
    assert [code.without(True) for code in (ExitCode.OK, ExitCode.CLAIM_FAILED)] == [3, 1]
    assert ExitCode.OK.without(False) is ExitCode.OK


# --- what was expected ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", ["", "-n 2"])
@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ("fork:pmd=fail", 0, "3 passed, 1 expected; 3 of 4 claims hold; what was expected does not count as a failure"),
        ("fork:2M:the child has D=fail", 0, "fork pmd: expected (failed): 1 claim does not hold: the child has D"),
        (
            "zap=fail",
            1,
            "  UNMET  zap: 'zap=fail' is not met: expected it to fail, but it passed; remove",
        ),
        (
            "fork:pmd:the child has W=fail",
            1,
            "there is no claim of this name; did you mean 'the child has D'? ",
        ),
    ],
)
def test_an_expected_failure_is_no_failure(shell: Shell, said: str, status: int, words: str, workers: str) -> None:
    done = shell(f"hugepfn run {workers} --expect '{said}'", FAIL="pmd")
    assert (done.status, done.err) == (status, "")
    assert words in done.out


def test_an_expectation_without_a_test_is_refused_before_a_kernel_is_resolved(shell: Shell) -> None:
    done = shell("hugepfn run --expect frok=fail")
    assert (done.status, done.out) == (2, "")
    assert done.one_line() == (
        "'frok=fail' is expected of no test that was selected; did you mean 'fork'? these were: fork, zap"
    )
