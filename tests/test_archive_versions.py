"""Tests for the order of Debian versions, and for which kernel a requested version means."""

from __future__ import annotations

import pytest

from harness.archive.offers import Offer, Stock, parse_packages
from harness.archive.versions import (
    check_wanted,
    choose,
    compare,
    is_exact,
    newest_of_each_series,
    series_of,
    upstream_of,
)
from harness.errors import UsageError


# dpkg --compare-versions LEFT lt RIGHT holds for each.
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("6.1.192-2", "6.12.1-1"),
        ("6.9-1", "6.12-1"),
        ("7.3~rc7-1~exp1", "7.3-1"),
        ("7.3~rc6-1", "7.3~rc10-1"),
        ("6.12.117-1~bpo12+1", "6.12.117-1"),
        ("6.12.117-1~deb12u1", "6.12.117-1"),
        ("6.12.117-1~bpo12+1", "6.12.117-1~deb12u1"),
        ("6.12.115-1", "6.12.115-2"),
        ("6.12.90-1", "6.12.90-1+b1"),
        ("9.9", "1:1.0"),
        ("1.0", "1.0a"),
        ("1.0a", "1.0+b"),
        ("1.0-1", "1.0-1.1"),
    ],
)
def test_order(left: str, right: str) -> None:
    assert compare(left, right) < 0 < compare(right, left)
    assert compare(left, left) == 0


def test_leading_zeros_do_not_matter() -> None:
    assert compare("1.02-1", "1.2-01") == 0


def offer(version: str, suite: str = "sid") -> Offer:
    return Offer(f"linux-image-{version}", version, version, suite, upstream_of(version))


OFFERS = [
    offer("6.1.192-2"),
    offer("6.12.95-1"),
    offer("6.12.117-1~bpo12+1", "bookworm-backports"),
    offer("6.12.117-1", "trixie-security"),
    offer("6.16.12-1~bpo13+1"),
    offer("7.2.13-1"),
    offer("7.3~rc7-1~exp1", "experimental"),
    offer("7.4~rc1-1~exp1", "experimental"),
    offer("7.4~rc2-1~exp1", "experimental"),
]


@pytest.mark.parametrize(
    ("wanted", "version"),
    [
        ("6.1", "6.1.192-2"),
        ("6.12", "6.12.117-1"),
        ("6.12.95", "6.12.95-1"),
        ("6.12.9", None),
        ("6.12.117-1~bpo12+1", "6.12.117-1~bpo12+1"),
        ("6.16", "6.16.12-1~bpo13+1"),
        ("6", "6.16.12-1~bpo13+1"),
        ("7.3", "7.3~rc7-1~exp1"),
        ("7.4", "7.4~rc2-1~exp1"),
        ("7.4~rc1", "7.4~rc1-1~exp1"),
        ("7", "7.2.13-1"),
        (None, "7.2.13-1"),
        ("6.11", None),
    ],
)
def test_what_a_version_means(wanted: str | None, version: str | None) -> None:
    chosen = choose(OFFERS, wanted, "6.12")
    assert (chosen and chosen.version) == version


def test_the_default_takes_a_release_candidate_only_if_there_is_no_release() -> None:
    assert choose(OFFERS[:1], None, "6.12") is None
    only = choose([OFFERS[0], OFFERS[6]], None, "6.12")
    assert only is OFFERS[6]


def test_the_first_suite_wins_for_equal_versions() -> None:
    twice = [offer("6.12.1-1", "own"), offer("6.12.1-1", "other")]
    chosen = choose(twice, "6.12", "6.12")
    assert chosen is not None
    assert chosen.suite == "own"


def test_series() -> None:
    newest = [o.upstream for o in newest_of_each_series(OFFERS)]
    assert newest == ["7.4~rc2", "7.3~rc7", "7.2.13", "6.16.12", "6.12.117", "6.1.192"]
    assert series_of("7.3~rc7") == "7.3"


def test_what_is_a_version() -> None:
    assert check_wanted("7.3-rc7") == "7.3~rc7"
    assert [is_exact(v) for v in ("6.12", "6.12.95", "7.3~rc7", "")] == [False, True, True, False]
    for wrong in ("", "six", "6.", "v6.12", "6.12 ", "6.12/x", "../6"):
        with pytest.raises(UsageError, match="not a kernel version"):
            check_wanted(wrong)


def stanza(package: str, version: str, depends: str = "") -> str:
    return (
        f"Package: {package}\nVersion: {version}\nArchitecture: amd64\nDepends: {depends}\nDescription: x\n more\n"
        f"Filename: pool/{package}_{version}.deb\nSize: 1000\nSHA256: {'ab' * 32}\n"
    )


def test_both_package_layouts_are_offered_and_nothing_else() -> None:
    rel = "7.3.4+deb13-cloud-amd64"
    split = f"kmod, linux-base-{rel} (= 7.3.4-1), linux-binary-{rel} (= 7.3.4-1), linux-modules-{rel} (= 7.3.4-1)"
    old = "linux-image-7.1.2-cloud-amd64"
    text = "\n".join(
        [
            stanza("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2", "kmod, linux-base (>= 4.3~)"),
            stanza("linux-image-6.1.0-56-cloud-amd64-dbg", "6.1.192-2"),
            stanza("linux-image-6.1.0-56-cloud-amd64-unsigned", "6.1.192-2"),
            stanza("linux-image-6.1.0-56-amd64", "6.1.192-2"),
            stanza("zlib", "1"),
            stanza("linux-image-cloud-amd64", "6.1.192-2", "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)"),
            stanza("linux-image-6.1-cloud-amd64", "6.1.192-2", "linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2)"),
            stanza(f"linux-image-{rel}", "7.3.4-1", split),
            *(stanza(f"linux-{part}-{rel}", "7.3.4-1") for part in ("base", "binary", "modules")),
            stanza(old, "7.1.2-1", "linux-binary-7.1.2-cloud-amd64, linux-modules-7.1.2-cloud-amd64"),
            stanza("linux-binary-7.1.2-cloud-amd64", "7.1.2-1"),
        ]
    )
    offers = {o.release: o for o in parse_packages(text.encode(), "file:/m/", "sid")}
    assert sorted(offers) == ["6.1.0-56-cloud-amd64", "7.1.2-cloud-amd64", rel]
    assert [f.uri for f in offers["6.1.0-56-cloud-amd64"].files] == [
        "file:/m/pool/linux-image-6.1.0-56-cloud-amd64_6.1.192-2.deb"
    ]
    assert [f.package.split("-")[1] for f in offers[rel].files] == ["image", "base", "binary", "modules"]
    assert offers["7.1.2-cloud-amd64"].gone == ("linux-modules-7.1.2-cloud-amd64",)
    assert offers[rel].upstream == "7.3.4"


@pytest.mark.parametrize(
    "data", [b"", b"\n", b"Package: linux-", b"Package: linux-image-6-cloud-amd64\nVersion: 1\n\n"]
)
def test_an_empty_or_poor_packages_file_offers_nothing(data: bytes) -> None:
    assert parse_packages(data, "file:/m/", "sid") == []


def test_a_missing_linux_base_does_not_make_an_image_incomplete() -> None:
    """The packages of 6.18 and 6.19 have vmlinuz, modules and configuration, and depend on linux-base-REL."""
    name = "linux-image-6.18.15+deb13-cloud-amd64"
    data = stanza(name, "6.18.15-1", "kmod, linux-base-6.18.15+deb13-cloud-amd64 (= 6.18.15-1)").encode()
    (offer,) = parse_packages(data, "http://mirror/", "backports")
    assert offer.gone == ()
    assert [file.package for file in offer.files] == [name]


def test_stock_is_the_newest_complete_kernel_of_each_series() -> None:
    def offer(upstream: str, *gone: str, cached: bool = False) -> Offer:
        return Offer(f"linux-image-{upstream}", f"{upstream}-1", upstream, "sid", upstream, cached, gone=gone)

    stock = Stock.of(
        [
            offer("6.1.5"),
            offer("6.1.20"),
            offer("7.3~rc7"),
            offer("6.19.2", "linux-modules-6.19.2"),
            offer("6.19.14", "linux-base-6.19.14", "linux-modules-6.19.14"),
            offer("7.0.13", "linux-modules-7.0.13"),
            offer("7.0.12"),
            offer("7.1.1", "linux-modules-7.1.1", cached=True),
        ]
    )
    assert [one.upstream for one in stock.offers] == ["6.1.20", "7.0.12", "7.1.1", "7.3~rc7"]
    assert stock.missing == {
        "6.19": "the mirror has linux-image-6.19.14 only in part, without linux-base-6.19.14, linux-modules-6.19.14"
    }
