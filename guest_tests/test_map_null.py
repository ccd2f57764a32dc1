"""mmap(NULL, ...) of a BAR, as most programs map one: where the kernel puts it, and which leaves fit there."""

import pytest

from harness import kernel_functions as fn
from harness.claims import Claims
from harness.machine.vm import VM
from harness.observe.snapshot import Snapshot
from harness.pagetable import Level

pytestmark = pytest.mark.leaves_no_trace

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
#: Length and offset into the BAR of each mapping, in bytes.
AREAS = {
    "2M": (2 * MIB, 0),
    "1G": (GIB, 0),
    "2M at an odd multiple of 2M": (2 * MIB, 6 * MIB),
    "4M at an odd page": (4 * MIB, 4 * KIB),
    "1G at an odd page": (GIB, 4 * KIB),
}


def _allowed(vm: VM, at: Snapshot, vaddr: int) -> Level:
    """The largest leaf that holds an address, lies in the mapping, and is congruent with the BAR's memory."""
    declared = at["parent"].mapping("bar").declared
    delta = declared.vaddr - (at.bar("bar").start_paddr + declared.offset_bytes)
    for level in (Level.PUD, Level.PMD):
        size = level.size_bytes
        start = vaddr // size * size
        within = declared.vaddr <= start and start + size <= declared.vaddr + declared.size_bytes
        if within and delta % size == 0 and not vm.caps.why_not(level):
            return level
    return Level.PTE


@pytest.mark.decided_by(fn.__get_unmapped_area, fn.__thp_get_unmapped_area, fn.vfio_pci_mmap_huge_fault)
def test_map_null(vm: VM, claim: Claims) -> None:
    """A BAR mapped where the kernel chooses gets the largest leaves that fit there, whatever its size and offset."""
    aligns: bool | None = None
    for name, (length, offset) in AREAS.items():
        with vm.run("map_null", f"--length={length:x}", f"--offset={offset:x}") as guest:
            at = guest.until("touched")
            declared = at["parent"].mapping("bar").declared
            places = {"first": 0, "first whole 2M's": -declared.vaddr % (2 * MIB), "last": length - 8}
            for place, where in places.items():
                if where >= length:
                    continue
                with claim(
                    f"{name}: the {place} leaf is the largest that the address allows", fn.vfio_pci_mmap_huge_fault
                ):
                    assert at["parent"].leaf("bar", where).level is _allowed(vm, at, declared.vaddr + where)
            count, congruent = (int(guest.result.values[key]) for key in ("count", "congruent-2m"))
            with claim(
                f"{name}: every address is congruent with the offset modulo 2M, or none is except by chance",
                fn.__get_unmapped_area,
            ):
                assert congruent == count or congruent <= 2
            # The first mapping is the probe: nothing else shows whether this kernel aligns mappings of a device.
            aligns = congruent == count if aligns is None else aligns
            with claim(f"{name}: it is aligned to its offset if 2M at the BAR's start is", fn.__thp_get_unmapped_area):
                assert (congruent == count) is aligns
