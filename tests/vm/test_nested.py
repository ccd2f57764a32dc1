"""Tests for nested tables on a real machine: both witnesses agree, and the run is an error if one of them lies."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config import DEFAULT
from harness.errors import MachineryError, PremiseNotMet, UsageError
from harness.guest.protocol import VmEvent
from harness.introspect.address_spaces import AddressSpaces
from harness.introspect.kvm import KvmRoots
from harness.introspect.processes import RangeWalk
from harness.machine.vm import VM
from harness.observe.nested import TableRoot
from harness.observe.snapshot import NestedLook
from harness.pagetable import Layout, Level, Walk
from harness.pagetable.memory import Memory

HERE = Path(__file__).parent
TIMEOUT_S = 60.0


@pytest.fixture(scope="module")
def vm() -> Iterator[VM]:
    with VM("debian:6.12", DEFAULT, search=[HERE], kvm=True) as machine:
        yield machine


def test_both_witnesses_agree(vm: VM) -> None:
    with vm.run("nested", timeout_s=TIMEOUT_S) as guest:
        at = guest.until("seen")
        leaf = at["vm"].leaf("bar")
        assert (leaf.level, leaf.write) == (Level.PMD, True)
        for name, leaves in (("vm", (1, 1, 0)), ("other", (1, 0, 0))):
            look = at[name].nested
            assert isinstance(look, NestedLook)
            assert (look.owner, look.walked, look.counted) == ("parent", leaves, leaves)
        at = guest.until("one-left")
        assert ("vm" in at, "other" in at) == (True, False)


def test_the_virtual_machines_of_a_process_can_be_walked_live(vm: VM) -> None:
    spaces = AddressSpaces(vm, vm.processes, vm.kvm_roots)
    spaces.learn_machines()
    with vm.run("nested", timeout_s=TIMEOUT_S) as guest:
        at = guest.until("seen")
        leaf, pid = at["vm"].leaf("bar"), at.pid
        with pytest.raises(
            UsageError, match=r"has 2 virtual machines; expected PID:FD with one of .* \d+, \d+"
        ) as caught:
            spaces.machine(pid, None, leaf.vaddr, None)
        first, second = map(int, re.findall(r"\d+", str(caught.value).rpartition("descriptors")[2]))
        _, way = spaces.machine(pid, first, leaf.vaddr, None)
        assert isinstance(way, Walk)
        assert way.leaf == leaf
        root, found = spaces.machine(pid, second, 0, 4 << 30)
        assert isinstance(found, RangeWalk)
        assert (root.vm_fd, [one.level for one in found.leaves]) == (second, [Level.PTE])
        with pytest.raises(UsageError, match=r"file descriptor 0 .* is no virtual machine"):
            spaces.machine(pid, 0, 0, None)
        guest.until("one-left")
        root, way = spaces.machine(pid, None, leaf.vaddr, None)
        assert isinstance(way, Walk)
        assert (root.vm_fd, way.leaf) == (first, leaf)


def _run_to_its_end(vm: VM, *args: str) -> None:
    with vm.run("nested", *args, timeout_s=TIMEOUT_S) as guest:
        guest.until("seen")


def test_counts_of_another_virtual_machine_are_an_error(vm: VM) -> None:
    expected = r"KVM's statistics disagree, .* vm: walk 4k=1 2m=1 1g=0; KVM counts 4k=1 2m=0 1g=0"
    with pytest.raises(MachineryError, match=expected):
        _run_to_its_end(vm, "--case=lie")


def test_a_walk_with_the_root_of_another_virtual_machine_is_an_error(vm: VM, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = KvmRoots.find
    found: list[TableRoot | None] = []

    def always_the_first(self: KvmRoots, memory: Memory, root: int, layout: Layout, said: VmEvent) -> TableRoot | None:
        found.append(honest(self, memory, root, layout, said))
        return found[0]

    monkeypatch.setattr(KvmRoots, "find", always_the_first)
    with pytest.raises(MachineryError, match=r"disagree, .* other: walk 4k=1 2m=1 1g=0; KVM counts 4k=1 2m=0 1g=0"):
        _run_to_its_end(vm)


def test_a_cpu_without_svm_is_a_skip_with_the_reason() -> None:
    cpu = "Nehalem,cx16=off"  # an Intel CPU, which has no SVM, and TCG emulates no VMX
    with (
        VM("debian:6.12", search=[HERE], kvm=True, cpu=cpu, accel="tcg", clone=False) as machine,
        pytest.raises(PremiseNotMet, match="its CPU has neither svm nor vmx"),
    ):
        _run_to_its_end(machine)
