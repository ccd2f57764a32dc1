"""Tests for reading apt's configuration files and the messages of apt."""

from __future__ import annotations

from harness.archive.apt import parse_failures
from harness.archive.apt_sources import Archive, candidates, debian_archives, parse_sources

KEY = "/usr/share/keyrings/debian-archive-keyring.gpg"

DEB822 = f"""\
# a comment
Types: deb deb-src
URIs: http://mirror.example/debian
Suites: bookworm bookworm-updates
# a comment inside
Components: main non-free-firmware
Signed-By: {KEY}

types: deb
URIs: http://mirror.example/debian-security/
Suites: bookworm-security
Components: main
Signed-By: {KEY}

Enabled: no
Types: deb
URIs: http://mirror.example/off
Suites: sid
Components: main

Types: deb-src
URIs: http://mirror.example/source
Suites: sid
Components: main

Types: deb
URIs: https://thirdparty.example/node
Suites: nodistro
Components: main
Signed-By: /usr/share/keyrings/thirdparty.gpg
"""

ONE_LINE = f"""\
# deb http://mirror.example/debian sid main
deb http://mirror.example/debian trixie main contrib # why
deb [ arch=amd64 signed-by={KEY} check-valid-until=no ] http://snap.example/debian/ forky main
deb-src http://mirror.example/debian trixie main
deb [signed-by=/k/tool.gpg] https://thirdparty.example/tool bookworm main
deb https://thirdparty.example/sdk sdk-bookworm main
deb http://flat.example/ ./
deb cdrom:[Debian]/ bookworm main
"""


def test_deb822() -> None:
    archives = parse_sources([("debian.sources", DEB822)])
    assert archives == [
        Archive("http://mirror.example/debian/", "bookworm", KEY),
        Archive("http://mirror.example/debian/", "bookworm-updates", KEY),
        Archive("http://mirror.example/debian-security/", "bookworm-security", KEY),
        Archive("https://thirdparty.example/node/", "nodistro", "/usr/share/keyrings/thirdparty.gpg"),
    ]


def test_an_embedded_key_is_kept() -> None:
    key = "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abc\n -----END PGP PUBLIC KEY BLOCK-----"
    text = f"Types: deb\nURIs: file:/m\nSuites: sid\nComponents: main\nSigned-By:{key}\n"
    (archive,) = parse_sources([("x.sources", text)])
    assert archive.signed_by == key
    assert parse_sources([("again.sources", archive.stanza())]) == [archive]


def test_one_line_files() -> None:
    archives = parse_sources([("sources.list", ONE_LINE)])
    assert [(a.uri, a.suite) for a in archives][:2] == [
        ("http://mirror.example/debian/", "trixie"),
        ("http://snap.example/debian/", "forky"),
    ]
    assert archives[0].signed_by is None
    assert (archives[1].signed_by, archives[1].check_valid_until) == (KEY, False)
    assert parse_sources([("a.sources", archives[1].stanza())]) == [archives[1]]


def test_only_debians_archives_are_taken() -> None:
    configured = parse_sources([("debian.sources", DEB822), ("sources.list", ONE_LINE)])
    found = debian_archives(configured, {})
    assert [a.suite for a in found] == ["bookworm", "bookworm-updates", "bookworm-security", "trixie", "forky"]
    derived = {("http://mirror.example/debian/", "trixie"): "Derivative"}
    assert "trixie" not in [a.suite for a in debian_archives(configured, derived)]
    backports = [Archive("http://m/", "bookworm-backports", "/k/mine.gpg")]
    assert debian_archives(backports, {}) == []
    assert debian_archives(backports, {("http://m/", "bookworm-backports"): "Debian Backports"}) == backports


def test_other_suites_use_the_configured_mirrors() -> None:
    own = debian_archives(parse_sources([("debian.sources", DEB822)]), {})
    asked = candidates(own, extra=["bullseye", "bullseye-security"])
    suites = [a.suite for a in asked]
    assert suites[:3] == ["bookworm", "bookworm-updates", "bookworm-security"]
    assert len(set(suites)) == len(suites)
    assert {"trixie-backports", "experimental", "trixie-security", "bullseye"} <= set(suites)
    assert {a.uri for a in asked if a.is_security} == {"http://mirror.example/debian-security/"}
    assert {a.uri for a in asked if not a.is_security} == {"http://mirror.example/debian/"}
    assert {a.signed_by for a in asked} == {KEY}


def test_without_a_security_mirror_there_are_no_security_suites() -> None:
    assert not [a for a in candidates([Archive("http://m/", "sid", KEY)]) if a.is_security]
    assert candidates([]) == []


# From apt 2.6, with other host names: a suite that the mirror lacks, a keyring without the key, no network.
UPDATE = """\
Get:1 http://mirror.example/debian experimental InRelease [91.7 kB]
Ign:2 http://mirror.example/debian forky-backports InRelease
Get:3 http://mirror.example/debian bookworm InRelease [151 kB]
Err:3 http://mirror.example/debian bookworm InRelease
  The following signatures couldn't be verified because the public key is not available: NO_PUBKEY 6ED0E7B82643E131
Err:6 http://mirror.example/debian forky-backports Release
  404  Not Found [IP: 203.0.113.80 80]
Err:5 http://mirror.example/debian-security trixie-security InRelease
  Unable to connect to 127.0.0.1:9:
Get:7 http://mirror.example/debian experimental/main amd64 Packages [365 kB]
Err:9 http://mirror.example/debian trixie/main amd64 Packages
  Error writing to file - write (28: No space left on device)
Err:8 file:/srv/debian sid Release
Reading package lists...
"""


def test_the_reason_why_a_suite_is_missing() -> None:
    assert parse_failures(UPDATE) == {
        ("http://mirror.example/debian/", "bookworm"): "The following signatures couldn't be verified because the "
        "public key is not available: NO_PUBKEY 6ED0E7B82643E131",
        ("http://mirror.example/debian/", "forky-backports"): "404 Not Found",
        ("http://mirror.example/debian-security/", "trixie-security"): "Unable to connect to 127.0.0.1:9",
        ("http://mirror.example/debian/", "trixie"): "Error writing to file - write (28: No space left on device)",
        ("file:/srv/debian/", "sid"): "no reason given",
    }
