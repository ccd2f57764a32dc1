"""``make bench``: times and ratios. Everything and its baseline are measured alternately in one run."""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from harness.benchmark.bare import existing_template, raw_boot_s, raw_clone_s
from harness.benchmark.beside import OURS
from harness.benchmark.rows import BenchRow, paired
from harness.benchmark.sequences import explorer_row, step_rows
from harness.benchmark.tables import checkpoint_row, map_dma_rows, nested_walk_row, walk_row
from harness.config import MachineConfig
from harness.errors import MachineryError, PremiseNotMet
from harness.kernel import ImageKind, Kernel, KernelImage
from harness.machine import preparation
from harness.machine.vm import VM
from harness.outputs import check_writable, write_text
from harness.qemu.binary import find_qemu
from harness.qemu.ram import ram_folder
from harness.qemu.spec import MachineSpec

SCHEMA = "hugepfn-bench"
VERSION = 1

#: A suite that is small enough to be measured several times.
_SIX = ("fork", "calibrate_anon", "calibrate_thp", "calibrate_shmem")
_RAW_TIMEOUT_S = 300
#: The kernel with which others are compared: its VFIO looks up page by page (HP-016).
_SLOW_MAP_DMA = "debian:6.12"


def command_s(args: Sequence[str]) -> float:
    """Return the time in seconds of a ``hugepfn`` command, from its start to its end."""
    return OURS.cost(args).wall_s


def first_command_s(image: KernelImage, clone: bool, kvm: bool = False) -> float:
    """Return the time in seconds until the agent of a new machine has answered its first request.

    :param kvm: a machine with KVM in the guest.
    """
    begin = time.perf_counter()
    with VM(image, clone=clone, kvm=kvm) as vm:
        vm.on_loop(vm.agent.request("ping"))
        return time.perf_counter() - begin


def limit_row(image: KernelImage, spec: MachineSpec, runs: int) -> BenchRow:
    """Measure a clone beside the limit: a bare QEMU that loads the same state and answers one byte."""
    template = existing_template(spec, image)
    return paired(
        "clone to first command",
        lambda: first_command_s(image, clone=True),
        "the limit: bare QEMU, same state, one byte",
        lambda: raw_clone_s(spec, template),
        runs,
    )


def kvm_clone_row(image: KernelImage, runs: int) -> BenchRow:
    """Measure a clone of a machine with KVM in the guest, beside one without."""
    return paired(
        "clone with KVM in the guest to first command",
        lambda: first_command_s(image, clone=True, kvm=True),
        "without",
        lambda: first_command_s(image, clone=True),
        runs,
    )


def vng_s(image: KernelImage) -> float:
    """Return the time in seconds of ``vng --run KERNEL -- true``, virtme-ng's command for a newly booted kernel.

    :raises MachineryError: virtme-ng cannot boot this kernel.
    """
    vng = Path(sys.executable).with_name("vng")
    environment = {**os.environ, "PATH": f"{vng.parent}:{os.environ['PATH']}"}
    argv = [str(vng), "--disable-kvm", "--verbose", "--run", str(_bzimage(image)), "--", "true"]
    begin = time.perf_counter()
    done = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=_RAW_TIMEOUT_S)
    said = done.stdout + done.stderr
    # Without the ports that it expects, vng reports this and exits with 255, although it has run the command.
    if done.returncode and "script exited with code 0" not in said:
        words = [line for line in said.splitlines() if "Failed to mount" in line or "Kernel panic" in line]
        raise MachineryError(f"vng cannot boot this kernel: {words[0] if words else f'exit status {done.returncode}'}")
    return time.perf_counter() - begin


def _bzimage(image: KernelImage) -> Path:
    """Return the bzImage that virtme-ng needs; there is one beside a built vmlinux."""
    beside = image.image.parent / "arch/x86/boot/bzImage"
    return beside if image.kind is ImageKind.VMLINUX and beside.exists() else image.image


def memory_of_clones(image: KernelImage, count: int) -> list[int]:
    """Return the memory of ``count`` simultaneous clones after a fork at 1G in each: the Pss of each QEMU, in bytes."""
    with contextlib.ExitStack() as stack:
        vms = [stack.enter_context(VM(image)) for _ in range(count)]
        for vm in vms:
            with vm.run("fork", "--level=pud") as guest:
                assert guest.result.passed
        rollups = [Path(f"/proc/{vm.qemu.pid}/smaps_rollup").read_text() for vm in vms]
    return [int(re.findall(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[0]) << 10 for rollup in rollups]


def clones_in_a_row(image: KernelImage, count: int) -> tuple[dict[str, int], dict[str, int]]:
    """Return the resources of this process after one clone, and after ``count`` more."""
    first_command_s(image, clone=True)
    before = _held()
    for _ in range(count):
        with VM(image) as vm, vm.run("fork", "--level=pud") as guest:
            assert guest.result.passed
    return before, _held()


def _held() -> dict[str, int]:
    status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
    return {
        "descriptors": sum(1 for _ in Path("/proc/self/fd").iterdir()),
        "threads": int(status["Threads"]),
        "children": len(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()),
        "anonymous_kib": int(status["RssAnon"].split()[0]),
        "ram_files": sum(1 for path in ram_folder().iterdir() if path.name.startswith("hugepfn-ram-")),
    }


def bench(config: MachineConfig, rounds: int, clones: int, json_file: Path | None) -> None:
    """Measure everything, print one table, and save the figures."""
    check_writable({"--json": json_file})
    console = Console(highlight=False)
    image = preparation.resolve(config, lambda line: console.print(line, style="dim", markup=False))
    with VM(image) as vm:
        spec = vm.spec
    console.print(
        f"{image.release}, {spec.accel.value}, QEMU {find_qemu().version}, {os.cpu_count()} cores, {rounds} rounds"
    )
    run = ["run", *config.argv(), "--quiet"]
    one = [*run, "fork", "--level", "pud"]
    raw = "same QEMU command line, boot to poweroff"
    rows = [
        paired("run fork --level pud, start to verdict", lambda: command_s(one), raw, lambda: raw_boot_s(spec), rounds),
        paired(
            "the same with --no-clone", lambda: command_s([*one, "--no-clone"]), raw, lambda: raw_boot_s(spec), rounds
        ),
        paired(
            "clone to first command",
            lambda: first_command_s(image, clone=True),
            "boot to first command",
            lambda: first_command_s(image, clone=False),
            rounds,
        ),
        limit_row(image, spec, 4 * rounds),
        paired(
            "fork and calibrate, 6 cases",
            lambda: command_s([*run, *_SIX]),
            "the same with --no-clone",
            lambda: command_s([*run, *_SIX, "--no-clone"]),
            1,
        ),
        paired("fork and calibrate, 6 cases", lambda: command_s([*run, *_SIX]), raw, lambda: raw_boot_s(spec), rounds),
        paired("the whole suite, one worker", lambda: command_s(run), raw, lambda: raw_boot_s(spec), 1),
        checkpoint_row(image),
        walk_row(image),
    ]
    try:
        rows += [kvm_clone_row(image, 4 * rounds), nested_walk_row(image, 4 * rounds)]
    except (MachineryError, PremiseNotMet) as error:
        console.print(f"KVM in the guest: {error}", markup=False)
    try:
        vng_row = paired(
            "clone to first command",
            lambda: first_command_s(image, clone=True),
            "vng --run KERNEL -- true",
            lambda: vng_s(image),
            rounds,
        )
        rows.append(vng_row)
    except MachineryError as error:
        console.print(f"vng: {error}", markup=False)
    try:
        rows += map_dma_rows(image, Kernel.parse(_SLOW_MAP_DMA).resolve(), rounds)
    except MachineryError as error:
        console.print(f"MAP_DMA: {error}", markup=False)
    try:
        rows += [*step_rows(image, rounds), explorer_row(config)]
    except MachineryError as error:
        console.print(f"explorer: {error}", markup=False)
    console.print(_table(rows))
    sizes = memory_of_clones(image, 8)
    console.print(f"8 clones at once: {sum(sizes) >> 20} MiB in all, {max(sizes) >> 20} MiB the largest (Pss)")
    before, after = clones_in_a_row(image, clones)
    console.print(f"{clones} clones in a row: before {before}, after {after}", markup=False)
    if json_file is not None:
        head = {"schema": SCHEMA, "version": VERSION, "kernel": image.release}
        figures = {"rows": [asdict(row) for row in rows], "clones_pss_bytes": sizes, "before": before, "after": after}
        write_text(json_file, lambda: json.dumps({**head, **figures}, indent=1) + "\n")


def _table(rows: Sequence[BenchRow]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "median", "worst", "rival", "median", "ratio", "runs"):
        table.add_column(heading, no_wrap=heading not in ("what", "rival"))
    for row in rows:
        other = _seconds(row.rival_median_s) if row.rival_median_s is not None else ""
        ratio = f"{row.ratio:.3f}" if row.ratio is not None else ""
        table.add_row(row.what, _seconds(row.median_s), _seconds(row.worst_s), row.rival, other, ratio, str(row.runs))
    return table


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{value * 1000:.1f} ms"
