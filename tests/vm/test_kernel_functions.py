"""Checks the table of kernel functions against Debian's current source of 6.12, and other sources in the cache."""

from __future__ import annotations

import pytest

from harness.errors import MachineryError
from harness.verdict.seen import series_of
from tests.kernel_source import Source, Table

TABLE = Table.load()
FETCHED = "6.12"  # other tests build this source, too


@pytest.mark.parametrize("version", TABLE.versions)
def test_the_sources_agree_with_the_table(version: str) -> None:
    series = series_of(version)
    try:
        source = Source.read(f"debsrc:{series}", offline=series != FETCHED)
    except MachineryError as error:
        if series == FETCHED:
            raise
        pytest.skip(str(error))
    expected = [name for name, found in TABLE.defined_in.items() if version in found]
    assert sorted(map(str, source.defined)) == expected, (
        f"{source.version} differs from the table: run `make kernel-functions`"
    )
