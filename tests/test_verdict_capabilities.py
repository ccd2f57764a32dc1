"""Tests for the conclusions from a kernel's capabilities: its layout, and why it cannot have a huge leaf."""

from __future__ import annotations

import dataclasses
from typing import Any, cast

import pytest

from harness.pagetable import NO_BITS, Bits, Layout, Level
from harness.verdict.capabilities import Capabilities, ImageCapabilities

UNKNOWN = ImageCapabilities(None, None, None)


def kernel(image: ImageCapabilities = UNKNOWN, *, saved_dirty: bool = True, thp: str = "always") -> Capabilities:
    return Capabilities(image, saved_dirty, True, False, True, thp, five_level=False)


@pytest.mark.parametrize(
    ("devmap", "saved_dirty", "bit"),
    [
        (False, True, None),
        (False, False, None),
        (True, True, 57),
        (True, False, 58),
        (None, True, 57),
        (None, False, 58),
    ],
)
def test_devmap_is_decoded_if_the_kernel_may_have_it(devmap: bool | None, saved_dirty: bool, bit: int | None) -> None:
    """DEVMAP was bit 58 before SAVED_DIRTY took that bit (6.6). A kernel of unknown configuration may have it."""
    layout = kernel(ImageCapabilities(None, None, devmap), saved_dirty=saved_dirty).layout
    assert layout == Layout(saved_dirty=saved_dirty, devmap_bit=bit, five_level=False)


@pytest.mark.parametrize("level", [Level.PTE, Level.PMD, Level.PUD])
def test_a_level_is_ruled_out_by_the_configuration_and_by_the_handler(level: Level) -> None:
    assert kernel().why_not(level) == ""
    assert kernel(ImageCapabilities(True, frozenset({Level.PMD, Level.PUD}), None)).why_not(level) == ""
    if level is Level.PTE:
        assert kernel(ImageCapabilities(False, frozenset(), None)).why_not(level) == ""
        return
    symbol, handler = f"CONFIG_ARCH_SUPPORTS_{level.name}_PFNMAP is not set", "it has no vfio_pci_mmap_huge_fault()"
    begin = "no huge pfnmap in this kernel: "
    assert kernel(ImageCapabilities(True, frozenset(), None)).why_not(level) == begin + symbol
    assert kernel(ImageCapabilities(False, None, None)).why_not(level) == begin + handler
    assert kernel(ImageCapabilities(False, frozenset({level}), None)).why_not(level) == begin + handler
    assert kernel(ImageCapabilities(False, frozenset(), None)).why_not(level) == f"{begin}{symbol}, {handler}"


def test_one_fault_fills_the_vma_only_without_a_huge_fault_handler() -> None:
    known = [kernel(ImageCapabilities(handler, None, None)).fault_fills_vma for handler in (True, False, None)]
    assert known == [False, True, False]


@pytest.mark.parametrize(
    ("thp", "why"),
    [
        ("always", ""),
        ("madvise", ""),
        ("never", "transparent huge pages are off in this kernel (never)"),
        ("", "transparent huge pages are off in this kernel (not built in)"),
    ],
)
def test_why_there_are_no_transparent_huge_pages(thp: str, why: str) -> None:
    assert kernel(thp=thp).why_no_thp == why


@pytest.mark.parametrize(
    "image",
    [
        UNKNOWN,
        ImageCapabilities(True, frozenset({Level.PMD, Level.PUD}), False),
        ImageCapabilities(False, frozenset(), True),
    ],
)
def test_capabilities_can_be_stored_as_json(image: ImageCapabilities) -> None:
    for name in ("saved_dirty", "soft_dirty", "pagemap_scan", "guard_regions", "five_level", "kvm_clock"):
        caps = dataclasses.replace(kernel(image, saved_dirty=False), soft_dirty=False, guard_regions=False)
        caps = dataclasses.replace(caps, early=Bits.A, bar_misses=Bits.A | Bits.D)
        caps = dataclasses.replace(caps, **cast(Any, {name: True}))
        assert Capabilities.from_json(caps.to_json()) == caps
        assert [key for key, value in caps.to_json().items() if value is True and key in caps.__slots__] == [name]
    assert Capabilities.from_json(kernel(image).to_json()).early == NO_BITS


def test_levels_are_listed_from_small_to_large() -> None:
    image = ImageCapabilities(None, frozenset({Level.PUD, Level.PMD}), None)
    assert kernel(image).to_json()["pfnmap_levels"] == ["pmd", "pud"]
