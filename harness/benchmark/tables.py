"""Rows of the benchmark about page tables: stops, walks, and VFIO_IOMMU_MAP_DMA."""

from __future__ import annotations

import functools
import re
import statistics
import time

from harness.benchmark.rows import BenchRow, paired
from harness.kernel import KernelImage
from harness.machine.vm import VM
from harness.observe.run import GuestRun
from harness.pagetable import LEAF_LABELS

_CHECKPOINTS = 200
_LEAVES = 262144
_MAP_DMA_TIMEOUT_S = 300.0
_NESTED_TIMEOUT_S = 900.0  # the vCPU faults on each page, and TCG emulates its CPU


def checkpoint_row(image: KernelImage) -> BenchRow:
    """Measure a stop with two registered processes: stop, walk both with all their mappings, resume."""
    times = []
    with VM(image) as vm, vm.run("fork", "--level=pud") as guest:
        guest.until("forked")
        for _ in range(_CHECKPOINTS):
            begin = time.perf_counter()
            at = guest.look_again()
            times.append(time.perf_counter() - begin)
            assert set(at.processes) == {"parent", "child"}
    what = "checkpoint with two processes: resume, stop, two walks"
    return BenchRow(what, statistics.median(times), runs=len(times), worst_s=max(times))


def walk_row(image: KernelImage) -> BenchRow:
    """Measure a walk of 1 GiB as 262,144 entries of 4K, and reading pagemap of the same range in the guest."""
    times = []
    with VM(image) as vm, vm.run("wide", timeout_s=300) as guest:
        guest.until("filled")
        for _ in range(20):
            begin = time.perf_counter()
            leaves = guest.leaf_arrays("parent", "bar")
            times.append(time.perf_counter() - begin)
            assert len(leaves.raw) == _LEAVES
        said = re.search(r"pagemap_ns=(\d+)", guest.result.stdout)
        assert said is not None
    theirs = int(said[1]) / 1e9
    ours = statistics.median(times)
    return BenchRow(
        "walk of 1 GiB as 4K entries", ours, "pagemap of it, in the guest", theirs, ours / theirs, 20, max(times)
    )


def nested_walk_row(image: KernelImage, rounds: int) -> BenchRow:
    """Measure a walk of nested tables with 262,144 entries of 4K, and of the process's own tables with as many."""

    def walk_s(guest: GuestRun, name: str) -> float:
        begin = time.perf_counter()
        leaves = guest.leaf_arrays(name, "bar")
        took_s = time.perf_counter() - begin
        assert len(leaves.raw) == _LEAVES
        return took_s

    with VM(image, kvm=True) as vm, vm.run("wide", "--vcpu=yes", timeout_s=_NESTED_TIMEOUT_S) as guest:
        guest.until("nested")
        return paired(
            "walk of nested tables, 1 GiB as 4K entries",
            functools.partial(walk_s, guest, "vm"),
            "of the process's tables, as many entries",
            functools.partial(walk_s, guest, "parent"),
            rounds,
        )


def map_dma_rows(image: KernelImage, rival: KernelImage, runs: int) -> list[BenchRow]:
    """Measure the CPU time of VFIO_IOMMU_MAP_DMA of 1 GiB of a BAR, by the level of the process's leaves.

    :param rival: another kernel, which is measured in turn with it.
    """
    with VM(image) as vm, VM(rival) as other:
        return [
            paired(
                f"MAP_DMA of 1 GiB of {level} leaves, {image.release}",
                functools.partial(map_dma_s, vm, level),
                f"the same, {rival.release}",
                functools.partial(map_dma_s, other, level),
                runs,
            )
            for level in LEAF_LABELS
        ]


def map_dma_s(vm: VM, level: str) -> float:
    """Return the CPU time in seconds, by the guest's own clock, of one call that maps 1 GiB."""
    with vm.run("iommu_gigabyte", f"--level={level}", timeout_s=_MAP_DMA_TIMEOUT_S) as guest:
        return int(guest.result.values["map-ns"]) / 1e9
