"""Tests for what the outliers need of a machine: modules, memory, and a skip with the reason where it is missing."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.config import DEFAULT
from harness.errors import PremiseNotMet
from harness.machine.vm import VM

HERE = Path(__file__).parent
LOAD = ("nd_e820", "nd_pmem", "dax_pmem", "device_dax")
MEMMAP = ("memmap=256M!512M",)


@pytest.mark.parametrize(
    ("wishes", "level", "reason"),
    [
        ({"load": LOAD}, "pmd", r"no persistent memory in this machine: the kernel needs memmap=SIZE!START"),
        ({"append": MEMMAP, "load": LOAD[:1]}, "pmd", r"no device-dax in this machine: the kernel needs .* dax_pmem"),
        ({"append": MEMMAP, "load": LOAD}, "pud", r"the persistent memory of this machine has no room for a pud leaf"),
    ],
)
def test_what_device_dax_needs_is_a_skip_with_the_reason(
    wishes: dict[str, tuple[str, ...]], level: str, reason: str
) -> None:
    with (
        VM("debian:6.12", DEFAULT.with_wishes(wishes), search=[HERE]) as machine,
        pytest.raises(PremiseNotMet, match=reason),
        machine.run("outliers", "--map=devdax", f"--level={level}") as guest,
    ):
        guest.until("mapped")


def test_256_mib_are_enough_for_a_leaf_of_2m() -> None:
    with (
        VM("debian:6.12", DEFAULT.with_wishes({"append": MEMMAP, "load": LOAD}), search=[HERE]) as machine,
        machine.run("outliers", "--map=devdax", "--level=pmd") as guest,
    ):
        assert guest.until("read")["parent"].leaf("memory").level.label == "pmd"
        guest.finish()
