"""Tests for decoding pagemap words as Documentation/admin-guide/mm/pagemap.rst describes."""

from __future__ import annotations

import pytest

from harness.errors import UsageError
from harness.pagetable import PagemapWord

GOLDEN = [
    (0x0000000000000000, "", "pagemap 0x0000000000000000 hole"),
    (0x0080000000000000, "SOFT_DIRTY", "pagemap 0x0080000000000000 SOFT_DIRTY hole"),
    (0x8180000000012345, "SOFT_DIRTY EXCLUSIVE PRESENT", "SOFT_DIRTY EXCLUSIVE PRESENT pfn=0x12345"),
    (0xA100000000012345, "EXCLUSIVE FILE_OR_SHARED PRESENT", "pfn=0x12345"),
    (0x8300000000000000, "UFFD_WP EXCLUSIVE PRESENT", "pfn=0x0"),
    (0x4000000000024682, "SWAPPED", "SWAPPED swap=2:0x1234"),
    (0x4480000000000000, "SOFT_DIRTY GUARD SWAPPED", "swap=0:0x0"),
    (0x807FFFFFFFFFFFFF, "PRESENT", "pfn=0x7fffffffffffff"),
]


@pytest.mark.parametrize(("raw", "names", "text"), GOLDEN)
def test_golden(raw: int, names: str, text: str) -> None:
    word = PagemapWord(raw)
    assert set(word.names()) == set(names.split())
    assert str(word).endswith(text)
    facts = {
        "PRESENT": word.present,
        "SWAPPED": word.swapped,
        "FILE_OR_SHARED": word.file_or_shared,
        "GUARD": word.guard,
        "UFFD_WP": word.uffd_wp,
        "EXCLUSIVE": word.exclusive,
        "SOFT_DIRTY": word.soft_dirty,
    }
    assert {name for name, is_set in facts.items() if is_set} == set(names.split())


def test_a_frame_is_read_only_from_a_present_page() -> None:
    assert PagemapWord(0x4000000000024682).pfn is None
    assert PagemapWord(0x0080000000000000).pfn is None
    assert PagemapWord(0x8000000000024682).swap_type is None
    assert PagemapWord(0x8000000000024682).swap_offset is None


def test_a_word_with_another_bit_is_no_hole() -> None:
    for bit in range(64):
        assert PagemapWord(1 << bit).hole is (bit == 55)


def test_invalid_words_are_refused() -> None:
    with pytest.raises(UsageError, match="64 bits"):
        PagemapWord(1 << 64)
