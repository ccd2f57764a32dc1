"""A pytest plugin that simulates a CPU which sets the accessed bit before any access, as one may under KVM.

TCG never does this. At every stop, each old leaf of each named mapping gets the accessed bit in the guest's tables, so
the kernel sees it, too. Usage: ``pytest guest_tests -p harness.pytest_plugin -p tests.vm.eager_cpu``. With
HUGEPFN_EAGER_CPU=some, only every second leaf gets it. HUGEPFN_EAGER_CPU=lazy instead simulates a CPU that leaves
the dirty bit clear in every entry of pci-testdev's BAR.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from harness.machine import template, vm
from harness.observe import bar_bits
from harness.observe.snapshot import CALIBRATION_MAPPING, Snapshot
from harness.observe.witness import Process, Witness
from harness.pagetable import Bits, Leaf, walk, walk_range
from harness.qemu.binary import QemuBinary
from harness.qemu.spec import Accel, Device, MachineSpec

_ACCESSED, _DIRTY = 1 << 5, 1 << 6
_MODE = os.environ.get("HUGEPFN_EAGER_CPU", "all")
_turn = itertools.count()
_look = Witness.snapshot


def _leaves(witness: Witness, process: Process) -> Iterator[tuple[Leaf, int]]:
    """Yield each leaf, and the physical address of its entry."""
    layout = witness._layout_for(process.five_level)
    for name, declared in process.mappings.items():
        if name == CALIBRATION_MAPPING:
            continue
        end = declared.vaddr + declared.size_bytes
        for leaf in walk_range(witness._memory, process.root, declared.vaddr, end, layout):
            path = walk(witness._memory, process.root, leaf.vaddr, layout).path
            table = path[-2].table_paddr if len(path) > 1 else process.root
            yield leaf, table + 8 * ((leaf.vaddr >> layout.shift(leaf.level)) % 512)


def _snapshot(witness: Witness, checkpoint: str, pid: int, check: Callable[[], None] = lambda: None) -> Snapshot:
    for process in witness.processes.values():
        for leaf, where in [*_leaves(witness, process)]:
            if not leaf.hardware_present:
                continue
            if _MODE == "lazy":
                if leaf.special and witness._qemu.spec.device is Device.TESTDEV:
                    witness._memory.write_u64(where, leaf.raw & ~_DIRTY)
            elif not leaf.young and (_MODE == "all" or next(_turn) % 2):
                witness._memory.write_u64(where, leaf.raw | _ACCESSED)
    return _look(witness, checkpoint, pid, check)


def pytest_configure() -> None:
    """Give every machine such a CPU, and tell the host about it as under KVM."""
    key = template.template_key

    def own_key(spec: MachineSpec, kernel_key: str, binary: QemuBinary) -> str:
        return key(spec, f"{kernel_key}-{_MODE}", binary)  # no other machine may use a template of this machine

    patch = pytest.MonkeyPatch()
    patch.setattr(Witness, "snapshot", _snapshot)
    patch.setitem(bar_bits.EARLY, Accel.TCG, Bits.A)
    patch.setattr(vm, "template_key", own_key)
