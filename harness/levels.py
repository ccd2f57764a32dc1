"""The page-table levels that have leaves, as people name them: by the table, or by the size of the page.

This is not in :mod:`harness.pagetable`, because that loads numpy, which takes too long for ``--help``.
"""

from __future__ import annotations

from harness.errors import UsageError, did_you_mean

PAGE_SIZES = {"pte": "4K", "pmd": "2M", "pud": "1G"}
_LABELS = {size: label for label, size in PAGE_SIZES.items()}


def level_label(text: str) -> str:
    """Return the label of a level: "pmd" for "2M". A text that names no level is returned as it is."""
    return _LABELS.get(text.upper(), text)


def is_level(text: str) -> bool:
    """Whether somebody named a level."""
    return level_label(text) in PAGE_SIZES


def checked_level(word: str, level: str) -> str:
    """The label of a level that is named in a word.

    :raises UsageError: there is no such level; names what comes close.
    """
    if is_level(level):
        return level_label(level)
    close = did_you_mean(level, PAGE_SIZES)
    raise UsageError(f"{word!r}: no page-table level {level!r}{close} the levels are {', '.join(PAGE_SIZES)}")
