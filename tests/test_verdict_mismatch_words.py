"""Tests for the words about expected and found values."""

from __future__ import annotations

import pytest

from harness.verdict.mismatch_words import word_of


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ([], "none"),
        ([7, 7, 7], "7 x3"),
        (list(range(8)), "0, 1, 2, 3, 4, 5, 6, 7"),
        ([*range(8), 8, 9], "0, 1, 2, 3, 4, 5, 6, 7, and 2 more"),
    ],
)
def test_equal_neighbours_are_joined_and_at_most_eight_are_shown(values: list[int], said: str) -> None:
    assert word_of(values) == said
