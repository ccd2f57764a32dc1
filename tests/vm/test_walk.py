"""Compares walks with pagemap on every present page, for processes that never called checkpoint()."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.guest.compiler import compile_program
from harness.introspect.processes import ProcessVmas, RangeWalk
from harness.kernel import Kernel
from harness.machine.vm import VM
from harness.pagetable import Bits, Layout, PagemapWord
from harness.pagetable.bits import PAGE_SIZE_BYTES

HERE = Path(__file__).parent
#: VMAs that are pfnmaps or were filled by special faults. pagemap shows nothing there.
BLIND = ("[vvar]", "[vvar_vclock]")

Pages = dict[int, int]  # vaddr -> pfn


def start_sleeper(vm: VM) -> int:
    """Start a sleeping process, from a program that does not use hugepfn. Returns its pid."""
    built = compile_program(HERE / "sleeper.c")

    async def work() -> int:
        await vm.agent.put("/tests/sleeper", built.read())
        job = await vm.agent.run(["/tests/sleeper"])
        status = await vm.qemu.expect(job.exited, 60.0, "sleeper")
        assert status.ok, (status, job.stderr)
        return int(job.stdout)

    return vm.on_loop(work())


def pages(walk: RangeWalk, vmas: ProcessVmas) -> Pages:
    """Return what a walk found, page by page, without VMAs that pagemap does not show."""
    blind = [vma.line for vma in vmas.vmas if vma.line.name in BLIND]
    return {
        vaddr: leaf.pfn_at(vaddr)
        for leaf in walk.leaves
        if not any(line.start <= leaf.vaddr < line.end for line in blind)
        for vaddr in range(leaf.vaddr, leaf.vaddr + leaf.size_bytes, PAGE_SIZE_BYTES)
    }


def both(vm: VM, pid: int) -> tuple[Pages, Pages]:
    """Return the present pages by the walk of the whole user half, and by pagemap, at the same moment."""
    vmas = vm.vmas(pid)
    with vm.run(HERE / "other_pagemap.c", f"--pid={pid}") as guest:
        guest.until("read")
        walk = vm.walk_range(pid, 0, 1 << vmas.process.layout.address_bits - 1)
        said = re.findall(r"^# page (\w+) (\w+)$", guest.result.stdout, re.MULTILINE)
    words = {int(vaddr, 16): PagemapWord(int(word, 16)) for vaddr, word in said}
    return pages(walk, vmas), {vaddr: word.pfn for vaddr, word in words.items() if word.pfn is not None}


MACHINES = [
    ("debian:6.12", 1, ()),
    ("debian:6.12", 2, ("pti=on",)),
    ("debian:6.12", 2, ("pti=on", "no5lvl")),
    ("debian:6.12", 1, ("nokaslr",)),
    ("debian:6.1", 1, ("pti=on",)),
    ("debian:7.3", 2, ("pti=on",)),
    ("debsrc:6.12", 2, ("pti=on",)),  # the minimal kernel has no BTF: its build stored the offsets
]


@pytest.fixture(
    scope="module", params=MACHINES, ids=lambda one: "-".join([one[0].removeprefix("debian:"), f"smp{one[1]}", *one[2]])
)
def vm(request: pytest.FixtureRequest) -> Iterator[VM]:
    spec, smp, append = request.param
    with VM(Kernel.parse(spec), smp=smp, append=append) as vm:
        if "pti=on" in append:
            assert "page tables isolation: enabled" in vm.kernel_log.lower()
        yield vm


@pytest.fixture(scope="module")
def sleeper(vm: VM) -> int:
    return start_sleeper(vm)


def test_walk_and_pagemap_agree_on_a_sleeping_process(vm: VM, sleeper: int) -> None:
    walked, words = both(vm, sleeper)
    assert len(walked) > 2048 + 16 + 22  # 8 MiB, the shared pages, and every third of 64 pages
    assert walked == words
    process = vm.process_root(sleeper)
    assert (process.pid, process.tgid, process.name) == (sleeper, sleeper, "sleeper")


def test_walk_and_pagemap_agree_on_pid_1(vm: VM) -> None:
    walked, words = both(vm, 1)
    assert len(walked) > 100
    assert walked == words
    assert vm.process_root(1).name == "init"


def test_walks_of_single_addresses_agree_with_the_range(vm: VM, sleeper: int) -> None:
    with vm.paused():
        found = vm.walk_range(sleeper, 0, 1 << 46)
        for leaf in found.leaves[::17]:
            assert vm.walk(sleeper, leaf.vaddr).leaf == leaf
        runs = list(found.runs())
    assert [run.end for run in runs[:-1]] == [run.vaddr for run in runs[1:]]
    assert (runs[0].vaddr, runs[-1].end) == (0, 1 << 46)
    assert sum(run.count for run in runs if run.entry.leaf) == len(found.leaves)


def test_vmas_count_the_leaves_of_the_sleeper(vm: VM, sleeper: int) -> None:
    found = vm.vmas(sleeper)
    assert found.elsewhere == 0
    layout = found.process.layout
    big = next(vma for vma in found.vmas if vma.line.end - vma.line.start >= 8 << 20)
    assert sum(level.size_bytes * count for level, count in big.leaves.items()) == 8 << 20
    assert big.bits[Bits.W] == big.bits[Bits.D] == sum(big.leaves.values())
    protnone = next(vma for vma in found.vmas if vma.line.perms == "---p" and not vma.line.name)
    assert protnone.bits[Bits.PROTNONE] == 1
    assert Bits.P not in protnone.bits
    assert layout == dataclasses.replace(vm.caps.layout, five_level=layout.five_level)


def test_a_task_without_tables_is_refused(vm: VM) -> None:
    with pytest.raises(UsageError, match=r"2 \(kthreadd\).*kernel thread"):
        vm.process_root(2)
    with pytest.raises(UsageError, match=r"no process 4000000 .*1 \(init\)"):
        vm.vmas(4000000)
    with pytest.raises(UsageError, match="canonical"):
        vm.walk(1, 1 << 60)
    assert isinstance(vm.layout, Layout)
