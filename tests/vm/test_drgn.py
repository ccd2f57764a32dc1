"""Checks that drgn on a stock kernel without debug information shows the same processes and tables as our walk."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.errors import PremiseNotMet
from harness.host import cache
from harness.kernel import Kernel
from harness.machine.vm import VM

drgn = pytest.importorskip("drgn")


@pytest.mark.parametrize(
    ("kernel", "append"), [("debian:6.12", ("pti=on",)), ("debian:6.12", ("no5lvl",)), ("debian:7.3", ())], ids=str
)
def test_drgn_and_the_walk_agree(kernel: str, append: tuple[str, ...]) -> None:
    from drgn.helpers.linux.mm import follow_phys, for_each_vma
    from drgn.helpers.linux.pid import find_task, for_each_task

    with VM(Kernel.parse(kernel), append=append) as vm:
        program = vm.drgn()
        ours = vm.processes.list()
        vmas = vm.vmas(1).vmas
        text = next(vma.line for vma in vmas if vma.line.perms == "r-xp")
        with vm.paused():
            assert program["init_task"].comm.string_() == b"swapper/0"
            theirs = {task.pid.value_(): task.comm.string_().decode() for task in for_each_task(program)}
            assert {task.pid: task.name for task in ours if task.mm or not task.name.startswith("kworker")}.items() <= (
                theirs.items()
            )
            init = find_task(program, 1)
            leaf = vm.walk(1, text.start).leaf
            assert leaf is not None
            assert follow_phys(init.mm, text.start).value_() == leaf.paddr_at(text.start)
            spans = [(vma.vm_start.value_(), vma.vm_end.value_()) for vma in for_each_vma(init.mm)]
            assert spans == [(vma.line.start, vma.line.end) for vma in vmas]
            assert program["PIDTYPE_TGID"].value_() == 1
            assert program.symbol(program.symbol("schedule").address + 1).name == "schedule"
            with pytest.raises(LookupError):
                program["no_such_variable"]


def test_a_kernel_without_types_is_refused_with_the_reason(tmp_path: Path) -> None:
    built = [entry / "vmlinux" for entry in cache.entries("built") if (entry / "vmlinux").is_file()]
    if not built:
        pytest.skip("no kernel was built on this host")
    alone = tmp_path / "vmlinux"  # without the files that its build stored beside it
    shutil.copyfile(built[0], alone)
    with VM(Kernel.image(alone)) as vm:
        with pytest.raises(
            PremiseNotMet, match=r"no BTF, there is no offsets\.json .* no vmlinux with DWARF .*`hugepfn build`"
        ):
            vm.process_root(1)
        with pytest.raises(PremiseNotMet, match="no /sys/kernel/vmcoreinfo"):
            vm.drgn()
