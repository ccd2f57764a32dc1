"""Tests for programs of another suite: which version a spec means, and how the unpacked packages are run."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from harness.archive import apt, suites
from harness.archive.suites import SuiteOffer, SuiteProgram, choose_offer, fitting, parse_policy, unpacked_program
from harness.errors import MachineryError, UsageError
from harness.events import Say, Sparing
from harness.host import cache
from harness.host.process import Finished

POLICY = """\
qemu-system-x86:
  Installed: 1:7.2+dfsg-7+deb12u18
  Candidate: 1:11.1.3+ds-1
  Version table:
     1:11.1.3+ds-1 500
        500 http://mirror.example/debian sid/main amd64 Packages
     1:11.1.3+ds-1~bpo13+1 100
        100 http://mirror.example/debian trixie-backports/main amd64 Packages
     1:10.0.13+ds-0+deb13u1 500
        500 http://mirror.example/debian trixie/main amd64 Packages
        500 http://mirror.example/debian trixie-security/main amd64 Packages
 *** 1:7.2+dfsg-7+deb12u18 500
        500 http://mirror.example/debian bookworm/main amd64 Packages
        100 /var/lib/dpkg/status
"""
OFFERS = [
    SuiteOffer("1:11.1.3+ds-1", "sid"),
    SuiteOffer("1:11.1.3+ds-1~bpo13+1", "trixie-backports"),
    SuiteOffer("1:10.0.13+ds-0+deb13u1", "trixie"),
    SuiteOffer("1:10.0.13+ds-0+deb13u1", "trixie-security"),
    SuiteOffer("1:7.2+dfsg-7+deb12u18", "bookworm"),
]


def test_the_versions_on_the_mirror() -> None:
    assert parse_policy(POLICY) == OFFERS
    assert [offer.name for offer in OFFERS][2:] == ["10.0.13@trixie", "10.0.13@trixie-security", "7.2@bookworm"]
    assert parse_policy("N: Unable to locate package qemu-system-x86\n") == []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("debian:11.1", OFFERS[0]),
        ("debian:11", OFFERS[0]),
        ("debian:11.1.3@trixie-backports", OFFERS[1]),
        ("debian:10.0", OFFERS[2]),
        ("debian:7.2", OFFERS[4]),
    ],
)
def test_the_newest_matching_version_is_taken(spec: str, expected: SuiteOffer) -> None:
    assert choose_offer(OFFERS, spec, "--qemu") == expected


@pytest.mark.parametrize("spec", ["debian:1", "debian:11.1@bookworm", "debian:9.2"])
def test_a_version_that_does_not_exist(spec: str) -> None:
    with pytest.raises(UsageError, match=rf"--qemu {spec}: the mirror has no such version; expected one of: debian:11"):
        choose_offer(OFFERS, spec, "--qemu")


@pytest.mark.parametrize("spec", ["debian:", "debian:latest", "debian:11.1@", "debian:../x"])
def test_a_malformed_spec(spec: str) -> None:
    with pytest.raises(UsageError, match="expected a path, or debian:VERSION"):
        fitting(OFFERS, spec, "--qemu")


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """A mirror whose packages are scripts; the loader prints its arguments. Returns the commands that were run."""
    ran: list[list[str]] = []

    def run(argv: list[object], **_options: object) -> Finished:
        words = [str(word) for word in argv]
        ran.append(words)
        if words[0] == "apt-get":
            (folder,) = [word.partition("=")[2] for word in words if word.startswith("Dir::Cache::archives=")]
            (Path(folder) / "qemu.deb").touch()
        if words[0] == "dpkg-deb":
            loader = Path(words[-1]) / "usr/lib64/ld-linux-x86-64.so.2"
            loader.parent.mkdir(parents=True)
            loader.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
            loader.chmod(0o755)
        return Finished(0, POLICY.encode() if words[0] == "apt-cache" else b"", "")

    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(apt, "state_options", lambda _progress: ["-c", "apt.conf"])
    monkeypatch.setattr(suites, "find_program", lambda name, _package: name)
    monkeypatch.setattr(suites, "run", run)
    return ran


QEMU = SuiteProgram(
    "qemu-system-x86", "qemu-system-x86_64", '-L "$root/usr/share/qemu"', "export QEMU_MODULE_DIR=$lib/qemu"
)


def debian_qemu(spec: str, say: Say | None = None) -> Path:
    return unpacked_program(QEMU, spec, "--qemu", say)


def test_a_program_starts_with_its_own_loader_libraries_and_firmware(mirror: list[list[str]]) -> None:
    said: list[str] = []
    program = debian_qemu("debian:10.0", Sparing(said.append))
    assert said == ["fetching qemu-system-x86 10.0.13 of trixie with its libraries"]
    root = cache.root() / "qemu-system-x86_64/10.0.13@trixie/root"
    words = subprocess.run([program, "--version"], capture_output=True, text=True, check=True).stdout.splitlines()
    assert words[:3] == ["--argv0", str(program), "--library-path"]
    assert words[3].split(":")[0] == str(root / "usr/lib/x86_64-linux-gnu")
    assert words[4:7] == [str(root / "usr/bin/qemu-system-x86_64"), "-L", str(root / "usr/share/qemu")]
    assert words[-1] == "--version"
    fetch = next(words for words in mirror if words[0] == "apt-get")
    assert fetch[-3:] == ["trixie", "install", "qemu-system-x86=1:10.0.13+ds-0+deb13u1"]
    assert "--download-only" in fetch, "packages are downloaded, not installed"
    assert not list(program.parent.rglob("*.deb")), "packages are deleted after they are unpacked"


def test_an_unpacked_program_is_used_without_the_mirror(mirror: list[list[str]]) -> None:
    first = debian_qemu("debian:10.0")
    mirror.clear()
    assert debian_qemu("debian:10.0") == debian_qemu("debian:10.0.13@trixie") == first
    assert mirror == []


def test_packages_without_a_loader_are_an_error_that_leaves_nothing(
    mirror: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(suites, "_unpack", lambda _packages, root: root.mkdir())
    with pytest.raises(MachineryError, match="has no loader: expected root/usr/lib64/ld-linux"):
        debian_qemu("debian:10.0")
    assert cache.entries("qemu-system-x86_64") == []
    assert mirror
