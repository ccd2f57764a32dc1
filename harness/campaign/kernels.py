"""Run the suite on one kernel after another, each in its own process, so that no kernel can affect the next."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from harness import logs
from harness.campaign.event_stream import RunEnded, RunEvent, decode
from harness.config import DEFAULT, MachineConfig
from harness.errors import ExitCode, HugepfnError, UsageError
from harness.events import Say
from harness.guest.compiler import guest_tests_dir
from harness.host.process import FOLLOW_TIMEOUT_S, ended_after, guarded
from harness.kernel import Kernel, Stock, available
from harness.selection.selected import Selected
from harness.verdict import Run, exit_code
from harness.verdict.expected.expectation import Expectation
from harness.verdict.table import TROUBLE

ALL_STOCK = "all-stock"
_GRACE_S = 10.0  # for a child that was asked to end, which ends its QEMUs and removes their RAM
_WORDS_MAX = 2000
#: Called with a child process.
Started = Callable[[subprocess.Popen[bytes]], None]


@dataclass(frozen=True)
class RunOptions:
    """The options of a run, apart from kernel and tests."""

    config: MachineConfig = DEFAULT
    levels: tuple[str, ...] = ()  # empty: all
    workers: int = 1
    strict: bool = False
    scheduler: str = ""  # the address of Dask's scheduler; empty for this host
    expected: tuple[Expectation, ...] = ()  # not of the run itself: whoever reads the results holds them against this

    def machine(self, spec: str) -> MachineConfig:
        """Return the machine for one kernel; the modules belong to kernels given by path only."""
        modules = self.config.modules if self.config.modules is not None and takes_modules(spec) else None
        return replace(self.config, kernel=spec, modules=modules)

    def argv(self, spec: str) -> list[str]:
        """Return the options as arguments of ``hugepfn run``."""
        words = [
            *self.machine(spec).argv(),
            *(f"--level={level}" for level in self.levels),
            f"--workers={self.workers}",
        ]
        return [*words, "--strict"] if self.strict else words

    def words(self, spec: str | None) -> tuple[str, ...]:
        """Return the machine of one kernel as arguments that a person types, without defaults."""
        usual = set(DEFAULT.argv())
        machine = replace(self.config, kernel=None) if spec is None else self.machine(spec)
        return tuple(word for word in machine.argv() if word not in usual)


def takes_modules(spec: str) -> bool:
    """Return whether a kernel is given by path, so that its modules are elsewhere.

    :raises UsageError: spec does not name a kernel.
    """
    Kernel.parse(spec)
    try:
        Kernel.parse(spec, "/")
    except UsageError:
        return False
    return True


@dataclass(frozen=True)
class Kernels:
    """The kernels of a campaign."""

    specs: tuple[str, ...]
    missing: dict[str, str]  # requested kernels that are not available, with the reason


def choose_kernels(words: Sequence[str], say: Say) -> Kernels:
    """Return the kernels that ``--kernel`` names, including ``all-stock``, each once.

    :raises UsageError: a word does not name a kernel.
    :raises MachineryError: the mirror cannot be reached, and no earlier answer is known.
    """
    specs: dict[str, None] = {}
    missing: dict[str, str] = {}
    for word in words:
        if word == ALL_STOCK:
            stock = Stock.of(available(say, incomplete=True))
            specs |= dict.fromkeys(f"debian:{offer.upstream}" for offer in stock.offers)
            missing |= stock.missing
        else:
            specs.setdefault(Kernel.parse(word).spec)
    return Kernels(tuple(specs), missing)


def run_kernel(
    spec: str, tests: Sequence[Selected], options: RunOptions, say: Callable[[RunEvent], None] = lambda _event: None
) -> Run:
    """Run tests on one kernel, in a child process that ends with this process.

    Never fails because of the kernel: a run without results has the reason in its context, under
    :data:`harness.verdict.table.TROUBLE`.

    :param tests: empty for every scenario.
    :param say: called with every event of the run as it happens.
    :raises KeyboardInterrupt: the run was interrupted; the child has ended.
    """
    with tempfile.TemporaryDirectory(prefix="hugepfn-") as folder:
        results = Path(folder) / "results.json"
        argv = [sys.executable, os.fspath(guest_tests_dir().parent / "vm.py"), "run", "--quiet"]
        argv += ["--json", os.fspath(results), *options.argv(spec), *map(str, tests)]
        with (Path(folder) / "stderr").open("w+") as stderr:
            status, message = run_child(argv, stderr.fileno(), say)
            if status == ExitCode.INTERRUPTED:
                raise KeyboardInterrupt
            words = last_words(stderr, message)
        return _read(results, spec, status, words, options.strict)


def last_words(stderr: TextIO, message: str) -> str:
    """Return why a child ended: the message of its last event, or else the last line on its standard error."""
    stderr.seek(0)
    return (message or (stderr.read().strip().splitlines() or [""])[-1])[:_WORDS_MAX]


def run_child(
    argv: Sequence[str], stderr: int, say: Callable[[RunEvent], None], started: Started = lambda _child: None
) -> tuple[int, str]:
    """Run a child in its own process group, so that Ctrl-C reaches only this process, which ends the child.

    :param started: called with the child as soon as it runs.
    :returns: its exit status, and the message of its last event.
    :raises MachineryError: its events cannot be read, or it took longer than FOLLOW_TIMEOUT_S.
    """
    environment, inherited = logs.for_child()
    message = ""
    ours, theirs = os.pipe()
    with open(ours, errors="replace") as events:  # noqa: PTH123 - a descriptor
        try:
            child = subprocess.Popen(
                guarded([*argv, f"--events=/dev/fd/{theirs}"], signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                env=environment,
                pass_fds=[theirs, *inherited],
                start_new_session=True,
            )
        finally:
            os.close(theirs)
        try:
            started(child)
            with ended_after(child, "hugepfn run", FOLLOW_TIMEOUT_S):
                for line in events:
                    event = decode(line)
                    if isinstance(event, RunEnded):
                        message = event.message
                    say(event)
                return child.wait(), message
        finally:
            if child.returncode is None:
                end_child(child)


def end_child(child: subprocess.Popen[bytes]) -> None:
    """End a child: SIGTERM, after which it cleans up even if it was stopped; then SIGKILL to its whole group."""
    child.send_signal(signal.SIGTERM)
    child.send_signal(signal.SIGCONT)
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def troubled(spec: str, trouble: str) -> Run:
    """Return a run without results, and the reason."""
    return Run((), {"kernel": {"spec": spec, "release": None, "config_hash": None, "tree": None}, TROUBLE: trouble})


def _read(results: Path, spec: str, status: int, words: str, strict: bool) -> Run:
    """Return the results that the child wrote, with the reason if some or all are missing."""
    trouble = ""
    try:
        run = Run.from_json(json.loads(results.read_text()))
    except (OSError, ValueError, HugepfnError):
        run = troubled(spec, "")
        trouble = words or "no results"
    if not run.results and not trouble:
        trouble = words or "nothing was run"
    if status not in tuple(ExitCode):
        how = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        trouble = f"the run ended ({how}): {words or 'it said nothing'}"
    elif not trouble and status != exit_code(run.results, strict=strict):  # there are results, but not all
        trouble = f"the run ended with exit status {status}: {words or 'it said nothing'}"
    return Run(run.results, {**run.context, TROUBLE: trouble}) if trouble else run
