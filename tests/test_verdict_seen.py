"""Tests for the file of kernels that were seen to have a bug, and for the meaning of "fixed"."""

from __future__ import annotations

from datetime import date

import pytest

from harness.errors import UsageError
from harness.verdict.seen import Facts, Measured, Sightings, dump_facts, parse_facts, series_of, version_key

DAY = date(2026, 11, 26)
FACTS = Facts(
    Measured(DAY, "7.2.22", "tcg", "0.1.0", 147, 372),
    {"6.1.192": "6.1.0-56-cloud-amd64", "6.12.118": "6.12.118+deb13-cloud-amd64"},
    {"HP-1": Sightings({"6.12.117": date(2026, 11, 22)}, {"6.12.118": DAY}), "HP-2": Sightings({"6.1.192": DAY})},
)


def test_a_written_file_is_read_back() -> None:
    assert parse_facts(dump_facts(FACTS)) == FACTS
    assert dump_facts(parse_facts(dump_facts(FACTS))) == dump_facts(FACTS)
    assert parse_facts("") == Facts()


@pytest.mark.parametrize(
    ("version", "older"),
    [
        ("6.12.118", "6.12.117"),
        ("6.12.118+deb13-cloud-amd64", "6.12.117"),
        ("6.12.117", "6.12.117"),  # built from that release, with a patch
        ("6.12.50", "6.12.43"),
        ("6.12.42", None),
        ("6.12.0-rc3", None),
        ("6.13.0", None),  # a pass in mainline's next series is not a fix
        ("6.1.192", None),
    ],
)
def test_a_bug_is_fixed_only_within_a_series(version: str, older: str | None) -> None:
    assert Sightings({"6.12.43": DAY, "6.12.117": DAY, "6.2.9": DAY}).had_it(version) == older


def test_versions_are_ordered_by_number() -> None:
    assert sorted(["6.12.118", "6.12", "6.2.1", "6.12-rc7", "6.12.9"], key=version_key) == [
        *("6.2.1", "6.12-rc7", "6.12", "6.12.9", "6.12.118")
    ]
    assert series_of("7.3~rc7") == "7.3"
    with pytest.raises(UsageError, match="not a kernel version"):
        version_key("sid")


def test_the_newest_measured_release_of_a_series() -> None:
    seen = FACTS.of("HP-1")
    assert seen.newest_of("6.12") == "6.12.118"
    assert seen.newest_of("6.1") is None
    assert FACTS.versions == {"6.1.192", "6.12.117", "6.12.118"}
    assert FACTS.of("HP-9") == Sightings()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[HP-1", "no TOML"),
        ('[HP-1.present]\n"six" = 2026-11-26', "not a kernel version"),
        ('[HP-1.present]\n"6.12.1" = "today"', "expected a day"),
        ('[HP-1.fixed]\n"6.12.1" = 2026-11-26', "expected present and absent"),
        ("[measured]\nqemu = 7", "wants date, qemu"),
    ],
)
def test_the_error_about_an_invalid_file_has_a_reason(text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        parse_facts(text)
