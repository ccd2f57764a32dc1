"""Tests for decoding the taint mask."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ProtocolError
from harness.verdict.log.taint import HARMLESS, Taint, added, alarming, describe, parse


def letters(taint: Taint) -> str:
    return "".join(line[0] for line in describe(taint))


@pytest.mark.parametrize(
    ("text", "expected", "shown"),
    [
        ("0\n", Taint(0), ""),
        ("512", Taint.WARN, "W"),
        ("4609", Taint.PROPRIETARY_MODULE | Taint.WARN | Taint.OOT_MODULE, "PWO"),
        (" 160 ", Taint.BAD_PAGE | Taint.DIE, "BD"),
        ("1048575", Taint((1 << 20) - 1), "PFSRMBUDAWCIOELKXTNJ"),
    ],
)
def test_decode(text: str, expected: Taint, shown: str) -> None:
    assert parse(text) == expected
    assert letters(expected) == shown


@pytest.mark.parametrize("text", ["", "-1", "0x200", "W", "1 2", "9" * 5000])
def test_invalid_masks_are_refused(text: str) -> None:
    with pytest.raises(ProtocolError, match="tainted reads"):
        parse(text)


def test_describe_names_value_and_meaning() -> None:
    assert describe(Taint.WARN) == ("W (512): the kernel issued a warning",)


def test_an_unknown_bit_is_kept_and_is_not_harmless() -> None:
    taint = parse(str(1 << 40 | 512))
    assert letters(taint) == "W?"
    assert int(alarming(taint)) == 1 << 40 | 512


def test_added() -> None:
    before = Taint.UNSIGNED_MODULE
    after = before | Taint.WARN | Taint.OOT_MODULE
    assert added(before, after) == Taint.WARN | Taint.OOT_MODULE
    assert alarming(added(before, after)) == Taint.WARN
    assert not added(after, before)


def test_harmless() -> None:
    assert letters(HARMLESS) == "OETN"
    assert not alarming(HARMLESS)


@given(before=st.integers(0, 2**64 - 1), after=st.integers(0, 2**64 - 1))
def test_added_is_in_after_and_not_in_before(before: int, after: int) -> None:
    new = int(added(Taint(before), Taint(after)))
    assert new & before == 0
    assert new | (before & after) == after
    assert len(letters(Taint(after))) == after.bit_count()
