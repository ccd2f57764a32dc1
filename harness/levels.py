"""The page-table levels that have leaves, as people name them: by the table, or by the size of the page.

Apart from :mod:`harness.pagetable`, which loads numpy, and ``--help`` does not wait for that.
"""

from __future__ import annotations

PAGE_SIZES = {"pte": "4K", "pmd": "2M", "pud": "1G"}
_LABELS = {size: label for label, size in PAGE_SIZES.items()}


def level_label(text: str) -> str:
    """The label of a level that somebody named: "pmd" for "2M"; what names no level is returned as it is."""
    return _LABELS.get(text.upper(), text)
