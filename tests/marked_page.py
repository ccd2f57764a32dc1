"""Writes what was measured into the marked part of a page of docs/: ``<!-- NAME:begin -->...<!-- NAME:end -->``."""

from __future__ import annotations


def replaced(page: str, name: str, text: str) -> str:
    """The page with another text in one marked part; the rest stays as it is.

    :param text: whole lines.
    """
    begin, end = (f"<!-- {name}:{what} -->" for what in ("begin", "end"))
    before, _, rest = page.partition(begin)
    assert end in rest, f"the page has no part with the name {name}"
    return f"{before}{begin}\n{text}{end}{rest.partition(end)[2]}"
