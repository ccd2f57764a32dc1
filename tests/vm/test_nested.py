"""Tests for nested tables on a real machine: both witnesses agree, and the run is an error if one of them lies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.config import DEFAULT
from harness.errors import MachineryError, PremiseNotMet
from harness.guest.protocol import VmEvent
from harness.introspect.kvm import KvmRoots
from harness.machine.vm import VM
from harness.observe.nested import TableRoot
from harness.observe.snapshot import NestedLook
from harness.pagetable import Layout, Level
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
