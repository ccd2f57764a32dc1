"""``make bench``: what things cost, each beside its rival, both measured in turn in one run; medians and ratios."""

from __future__ import annotations

import json
import os
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.kernel import Kernel, KernelImage
from harness.machine import VM, MachineSpec
from harness.machine.qemu import find_qemu
from harness.machine.ram import SharedRam
from harness.machine.spec import Descriptors, qemu_argv

_RAW_TIMEOUT_S = 300
_CHECKPOINTS = 200


@dataclass(frozen=True)
class Row:
    """One thing and its rival, in seconds."""

    what: str
    median_s: float
    rival: str = ""
    rival_median_s: float | None = None
    ratio: float | None = None
    runs: int = 0
    worst_s: float = 0.0


def paired(what: str, ours: Callable[[], float], rival: str, theirs: Callable[[], float], rounds: int) -> Row:
    """Runs both in turn, after one round that does not count; the ratio is the median of the rounds' ratios."""
    ours(), theirs()
    pairs = [(theirs(), ours())[::-1] for _ in range(rounds)]
    mine, other = zip(*pairs, strict=True)
    ratio = statistics.median(a / b for a, b in pairs)
    return Row(what, statistics.median(mine), rival, statistics.median(other), ratio, rounds, max(mine))


def raw_boot_s(spec: MachineSpec) -> float:
    """Seconds that the same QEMU command line takes from its start to init's poweroff."""
    spec = replace(spec, append=(*spec.append, "hugepfn.job=poweroff"))
    ram = SharedRam(spec.memory_mib)
    pairs = [socket.socketpair() for _ in range(5)]
    names = ("qmp", "console", "agent", "events", "shell")
    ends = dict(zip(names, (pair[1] for pair in pairs), strict=True))
    descriptors = Descriptors(ram=ram.fd, **{name: end.fileno() for name, end in ends.items()})
    console = pairs[1][0]
    reader = threading.Thread(target=_drain, args=(console,), daemon=True)
    begin = time.perf_counter()
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", "--", *qemu_argv(spec, descriptors, find_qemu().path)],
        pass_fds=[ram.fd, *(end.fileno() for end in ends.values())],
        stdin=subprocess.DEVNULL,
    )
    for end in ends.values():
        end.close()
    reader.start()
    try:
        process.wait(timeout=_RAW_TIMEOUT_S)
        return time.perf_counter() - begin
    finally:
        process.kill()
        process.wait()
        reader.join()
        for pair in pairs:
            pair[0].close()
        ram.close()


def _drain(end: socket.socket) -> None:
    while end.recv(65536):
        pass


def whole_run_s(kernel: str, level: str) -> float:
    """Seconds of ``hugepfn run fork --level LEVEL``, from the command to its end."""
    argv = [sys.executable, "-m", "harness.entry", "run", "fork", "--kernel", kernel, "--level", level, "--quiet"]
    begin = time.perf_counter()
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - begin


def checkpoint_row(image: KernelImage) -> Row:
    """A stop with two processes in sight: stop, both walks with all their mappings, resume."""
    times = []
    with VM(image) as vm, vm.run("fork", "--level=pud") as guest:
        guest.until("forked")
        for _ in range(_CHECKPOINTS):
            begin = time.perf_counter()
            at = guest.look_again()
            times.append(time.perf_counter() - begin)
            assert set(at.processes) == {"parent", "child"}
    what = "checkpoint with two processes: resume, stop, two walks"
    return Row(what, statistics.median(times), runs=len(times), worst_s=max(times))


def bench(kernel: str, rounds: int, json_file: Path | None) -> None:
    """Measures, prints one table, keeps the figures."""
    console = Console(highlight=False)
    image = Kernel.parse(kernel).resolve(lambda line: console.print(f"[dim]{line}[/dim]"))
    with VM(image) as vm:
        spec = vm.spec
    console.print(
        f"{image.release}, {spec.accel.value}, QEMU {find_qemu().version}, {os.cpu_count()} cores, {rounds} rounds"
    )
    rows = [
        paired(
            "hugepfn run fork --level pud, start to verdict",
            lambda: whole_run_s(kernel, "pud"),
            "same QEMU command line, boot to poweroff",
            lambda: raw_boot_s(spec),
            rounds,
        ),
        checkpoint_row(image),
    ]
    console.print(_table(rows))
    if json_file is not None:
        json_file.write_text(
            json.dumps({"kernel": image.release, "rows": [asdict(row) for row in rows]}, indent=1) + "\n"
        )


def _table(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "median", "worst", "rival", "median", "ratio", "runs"):
        table.add_column(heading, no_wrap=heading != "what" and heading != "rival")
    for row in rows:
        other = _seconds(row.rival_median_s) if row.rival_median_s is not None else ""
        ratio = f"{row.ratio:.2f}" if row.ratio is not None else ""
        table.add_row(row.what, _seconds(row.median_s), _seconds(row.worst_s), row.rival, other, ratio, str(row.runs))
    return table


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
