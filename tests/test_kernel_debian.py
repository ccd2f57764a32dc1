"""Tests for Debian kernels, with a small signed mirror made here: real apt, real signatures, no network."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.errors import MachineryError, UsageError
from harness.events import Event, Sparing
from harness.host import cache
from harness.kernel import Kernel
from harness.kernel.build import DebsrcOrigin
from harness.kernel.debian import available

NEEDED = ("apt-get", "dpkg-deb", "gpg", "gpgconf")
pytestmark = pytest.mark.skipif(
    any(shutil.which(name) is None for name in NEEDED),
    reason=f"needs {', '.join(NEEDED)}: the tests make and sign a mirror",
)

SPLIT = "7.3.4+deb13-cloud-amd64"
DEPMOD = """#!/bin/sh
# depmod -b ROOT RELEASE: enough of it for one module
[ -f "$2/lib/modules/$3/kernel/vfio.ko" ] && echo kernel/vfio.ko: > "$2/lib/modules/$3/modules.dep"
"""


def bzimage(release: str) -> bytes:
    data = bytearray(0x800)
    data[0x1FE:0x200], data[0x202:0x206], data[0x206:0x208], data[0x236] = b"\x55\xaa", b"HdrS", b"\x0f\x02", 1
    data[0x20E:0x210] = b"\x00\x03"
    data[0x500 : 0x500 + len(release)] = release.encode()
    return bytes(data)


@dataclass
class Mirror:
    """A Debian mirror in a folder, and the apt configuration of a machine that has one of its suites."""

    folder: Path
    gnupg: Path

    def gpg(self, *words: str | Path) -> None:
        argv: list[str | Path] = ["gpg", "--homedir", self.gnupg, "--batch", "--quiet", "--passphrase", "", *words]
        subprocess.run(argv, check=True, timeout=60, stderr=subprocess.DEVNULL)

    def package(self, suite: str, name: str, version: str, files: dict[str, bytes | str], depends: str = "") -> None:
        """Build a .deb and put it into the suite's Packages."""
        tree = self.folder / "build" / name
        control = f"Package: {name}\nVersion: {version}\nArchitecture: amd64\nMaintainer: me <me@here>\n"
        control += f"Depends: {depends}\n" if depends else ""
        for path, content in {**files, "DEBIAN/control": control + "Description: test\n"}.items():
            target = tree / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        base = self.folder / ("debian-security" if suite.endswith("-security") else "debian")
        deb = base / "pool" / f"{name}_{version}_amd64.deb"
        deb.parent.mkdir(parents=True, exist_ok=True)
        argv: list[str | Path] = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, deb]
        subprocess.run(argv, check=True, timeout=60, stdout=subprocess.DEVNULL)
        index = base / "dists" / suite / "main/binary-amd64/Packages"
        index.parent.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        stanza = control + f"Filename: pool/{deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n\n"
        with index.open("a") as file:
            file.write(stanza)

    def kernel(self, suite: str, release: str, version: str, modules: str = "lib/modules") -> None:
        """A kernel in one package."""
        files: dict[str, bytes | str] = {
            f"boot/vmlinuz-{release}": bzimage(release),
            f"boot/config-{release}": "CONFIG_VFIO=m\n",
            f"boot/System.map-{release}": "dropped\n",
            f"{modules}/{release}/kernel/vfio.ko": "module\n",
        }
        self.package(suite, f"linux-image-{release}", version, files, "kmod, linux-base (>= 4.3~)")

    def source(self, suite: str, package: str, version: str) -> None:
        """A source package whose only file says which version it is."""
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w:xz") as archive:
            text = f"{version}\n".encode()
            member = tarfile.TarInfo(f"{package}/Kconfig")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
        self.package(suite, package, version, {f"usr/src/{package}.tar.xz": data.getvalue()})

    def sign(self, suite: str, key: str = "debian@test", origin: str = "Debian") -> None:
        base = self.folder / ("debian-security" if suite.endswith("-security") else "debian") / "dists" / suite
        index = base / "main/binary-amd64/Packages"
        digest = hashlib.sha256(index.read_bytes()).hexdigest()
        text = f"Origin: {origin}\nSuite: {suite}\nCodename: {suite}\nDate: Sun, 01 Nov 2026 00:00:00 UTC\n"
        text += "Architectures: amd64\nComponents: main\n"
        text += f"SHA256:\n {digest} {index.stat().st_size} main/binary-amd64/Packages\n"
        (base / "Release").write_text(text)
        self.gpg("--yes", "--local-user", key, "--clearsign", "-o", base / "InRelease", base / "Release")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mirror]:
    folder = tmp_path_factory.mktemp("mirror")
    folder.chmod(0o755)
    # gpg-agent's socket is in its home folder, and a socket's path may have only 107 bytes
    gnupg = tmp_path_factory.mktemp("g")
    mirror = Mirror(folder, gnupg)
    gnupg.chmod(0o700)
    try:
        for key in ("debian@test", "stranger@test"):
            mirror.gpg("--quick-generate-key", key, "ed25519", "sign", "never")
        mirror.gpg("-o", folder / "debian-test.gpg", "--export", "debian@test")
        mirror.gpg("-o", folder / "tool.gpg", "--export", "stranger@test")
        mirror.kernel("bookworm", "6.1.0-1-cloud-amd64", "6.1.100-1")
        mirror.kernel("trixie", "6.12.5+deb13-cloud-amd64", "6.12.5-1", "usr/lib/modules")
        mirror.kernel("trixie-security", "6.12.9+deb13-cloud-amd64", "6.12.9-1", "usr/lib/modules")
        mirror.kernel("experimental", "7.4-cloud-amd64", "7.4~rc1-1~exp1")
        mirror.kernel("forky", "9.0-cloud-amd64", "9.0-1")  # the key is not in the machine's keyring
        mirror.kernel("sid", "8.0-cloud-amd64", "8.0-1")  # another archive in place of Debian's
        parts: dict[str, dict[str, bytes | str]] = {
            "binary": {f"usr/lib/modules/{SPLIT}/vmlinuz": bzimage(SPLIT)},
            "base": {f"usr/lib/modules/{SPLIT}/config": "CONFIG_VFIO=m\nCONFIG_SPLIT=y\n"},
            "modules": {f"usr/lib/modules/{SPLIT}/kernel/vfio.ko": "module\n"},
        }
        depends = ", ".join(f"linux-{part}-{SPLIT} (= 7.3.4-1~bpo13+1)" for part in parts)
        mirror.package("trixie-backports", f"linux-image-{SPLIT}", "7.3.4-1~bpo13+1", {}, depends)
        for part, files in parts.items():
            mirror.package("trixie-backports", f"linux-{part}-{SPLIT}", "7.3.4-1~bpo13+1", files)
        mirror.package(
            "trixie-backports", "linux-image-7.1.2-cloud-amd64", "7.1.2-1", {}, "linux-modules-7.1.2-cloud-amd64"
        )
        for suite, version in (("trixie", "6.12.5-1"), ("trixie-security", "6.12.9-1")):
            mirror.source(suite, "linux-source-6.12", version)
        for suite in ("bookworm", "trixie", "trixie-security", "trixie-backports", "experimental"):
            mirror.sign(suite, origin="Debian Backports" if "backports" in suite else "Debian")
        mirror.sign("forky", key="stranger@test")
        mirror.sign("sid", origin="Derivative")
        yield mirror
    finally:
        subprocess.run(["gpgconf", "--homedir", gnupg, "--kill", "all"], check=False, timeout=60)


@pytest.fixture
def mirror(made: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """A new machine, with its own copy of the mirror, an empty cache, an apt configuration and a depmod."""
    folder = tmp_path / "m"
    shutil.copytree(made.folder, folder, ignore=shutil.ignore_patterns("build"))
    etc = tmp_path / "etc"
    (etc / "sources.list.d").mkdir(parents=True)
    (etc / "apt.conf.d").mkdir()
    entry = "Types: deb\nURIs: file:{}\nSuites: {}\nComponents: main\nSigned-By: {}\n"
    sources = [
        entry.format(folder / "debian", "bookworm", folder / "debian-test.gpg"),
        entry.format(folder / "debian-security", "bookworm-security", folder / "debian-test.gpg"),
        entry.format(folder / "nowhere", "bookworm", folder / "tool.gpg"),
    ]
    (etc / "sources.list.d/debian.sources").write_text("\n".join(sources))
    (etc / "sources.list").write_text("deb file:/nowhere tool-stable main\n")
    conf = {
        "Dir::Etc::sourcelist": etc / "sources.list",
        "Dir::Etc::sourceparts": etc / "sources.list.d/",
        "Dir::Etc::parts": etc / "apt.conf.d/",
        "Dir::State::lists": tmp_path / "nolists/",
    }
    (etc / "apt.conf").write_text("".join(f'{name} "{value}";\n' for name, value in conf.items()))
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/depmod").write_text(DEPMOD)
    (tmp_path / "bin/depmod").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("APT_CONFIG", str(etc / "apt.conf"))
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache with a space"))
    return Mirror(folder, made.gnupg)


@pytest.fixture
def no_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if a command is run."""

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a command was run")

    monkeypatch.setattr(subprocess, "Popen", refuse)


@pytest.mark.usefixtures("mirror")
def test_the_default_is_the_newest_release_of_any_suite_and_comes_from_split_packages() -> None:
    said: list[str] = []
    image = Kernel.parse("debian").resolve(Sparing(said.append))
    assert (image.spec, image.release) == ("debian", SPLIT)
    assert image.config is not None
    assert image.config.is_builtin("SPLIT")
    assert image.modules_dir is not None
    assert (image.modules_dir / "modules.dep").read_text() == "kernel/vfio.ko:\n"
    entry = image.image.parent
    assert sorted(p.name for p in entry.iterdir()) == [".complete", "config", "lib", "offer.json", "usr", "vmlinuz"]
    assert not (image.modules_dir / "vmlinuz").exists()
    assert [line.split()[0] for line in said] == ["asking", "fetching", "unpacking"]
    assert "from trixie-backports" in said[1]


@pytest.mark.usefixtures("mirror")
def test_the_second_call_runs_nothing_and_is_fast(request: pytest.FixtureRequest) -> None:
    first = Kernel.debian("6.12").resolve()
    request.getfixturevalue("no_commands")
    before_s = time.thread_time()
    second = Kernel.debian("6.12").resolve()
    took_s = time.thread_time() - before_s
    assert second == first
    assert second.release == "6.12.9+deb13-cloud-amd64", "the newer kernel of the security suite must not be taken"
    assert took_s < 0.02, "the second call takes too many CPU seconds"
    assert second.key == first.key


@pytest.mark.usefixtures("mirror")
def test_modules_in_lib_and_in_usr_lib_are_unpacked_the_same_way() -> None:
    for version, release in (("6.1", "6.1.0-1-cloud-amd64"), ("6.12.5", "6.12.5+deb13-cloud-amd64")):
        image = Kernel.debian(version).resolve()
        assert image.release == release
        assert image.modules_dir == image.image.parent / "lib/modules" / release
        assert (image.image.parent / "usr/lib/modules" / release / "modules.dep").is_file()


@pytest.mark.usefixtures("mirror")
def test_a_release_candidate_is_found_by_name() -> None:
    assert Kernel.debian("7.4").resolve().release == "7.4-cloud-amd64"


UNKNOWN = [
    (
        "debian:9.9",
        r"there is no such kernel; the newest of each series on the mirror: 7\.4~rc1, 7\.3\.4, 6\.12\.9, 6\.1\.100$",
    ),
    ("debian:6.12.7", r"the only versions of 6\.12 on the mirror are 6\.12\.5, 6\.12\.9$"),
    ("debian:7.1", r"only in part, without linux-modules-7\.1\.2-cloud-amd64$"),
    ("debian:6.12@bookworm", r"no such kernel; .* 6\.1\.100$"),
    ("debian@duke", r"no suite duke \(.+\); the mirror has bookworm, "),
    ("debian@forky", r"no suite forky \(.*(public key|signature|signed).*\); the mirror has"),
    ("debian@sid", r"no suite sid \(its Release file says Origin: Derivative, not Debian\)"),
]


@pytest.mark.usefixtures("mirror")
def test_a_missing_version_gets_a_list_of_existing_ones() -> None:
    for spec, words in UNKNOWN:
        with pytest.raises(UsageError, match=words) as caught:
            Kernel.parse(spec).resolve()
        assert "\n" not in str(caught.value)


@pytest.mark.usefixtures("mirror")
def test_offers_are_listed_once_newest_first() -> None:
    Kernel.debian("6.1").resolve()
    offers = available()
    assert [(o.upstream, o.suite, o.cached) for o in offers] == [
        ("7.3.4", "trixie-backports", False),
        ("6.12.9", "trixie-security", False),
        ("6.12.5", "trixie", False),
        ("6.1.100", "bookworm", True),
        ("7.4~rc1", "experimental", False),
    ]


needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git: sources are kept as git trees")


def source_version(origin: DebsrcOrigin, tree: str) -> str:
    argv = ["git", "--git-dir", str(origin.slot.git_dir), "show", f"{tree}:Kconfig"]
    return subprocess.run(argv, check=True, timeout=60, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def plain_cache(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mirror:
    """A cache folder without a space, because kbuild takes no path with a space."""
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    return mirror


@needs_git
@pytest.mark.usefixtures("plain_cache")
def test_debians_source_is_the_newest_of_its_series_or_of_a_suite() -> None:
    newest, older = DebsrcOrigin.parse("6.12"), DebsrcOrigin.parse("6.12@trixie")
    said: list[str] = []
    tree = newest.tree(Sparing(said.append), False)
    assert source_version(newest, tree) == "6.12.9-1"
    assert [line.split()[0] for line in said] == ["asking", "fetching", "unpacking"]
    assert source_version(older, older.tree(None, False)) == "6.12.5-1"
    assert source_version(older, DebsrcOrigin.parse("6.12.5").tree(None, False)) == "6.12.5-1"
    said.clear()
    assert newest.tree(Sparing(said.append), True) == tree
    assert said == []
    assert list(newest.slot.folder.glob("import.*")) == []
    with pytest.raises(UsageError, match=r"no such source; the newest of each series on the mirror: 6\.12\.9$"):
        DebsrcOrigin.parse("7.2").tree(None, False)


@needs_git
def test_debians_source_without_a_network(plain_cache: Mirror) -> None:
    origin = DebsrcOrigin.parse("6.12")
    with pytest.raises(MachineryError, match=r"debsrc:6\.12 is not cached and cannot be fetched \(offline\)"):
        origin.tree(None, True)
    tree = origin.tree(None, False)
    lose_network(plain_cache)
    expire("debsrc_6.12.json")
    said: list[str] = []
    assert origin.tree(Sparing(said.append), False) == tree
    assert "using linux-source-6.12 6.12.9-1 from the cache" in said[-1]


def lose_network(mirror: Mirror) -> None:
    mirror.folder.rename(mirror.folder.with_name("unplugged"))


def expire(name: str) -> None:
    """Make the stored answers of the mirror a day old."""
    for note in (cache.root() / "apt/index.json", cache.root() / "resolved" / name):
        value = cache.read_note(note)
        if value is not None:
            for field in ("at", "fetched_at"):
                if field in value:
                    value[field] -= 25 * 3600
            cache.write_note(note, value)


def test_without_a_network_the_cached_kernel_is_used(mirror: Mirror) -> None:
    release = Kernel.debian("6.12").resolve().release
    lose_network(mirror)
    expire("debian_6.12.json")
    said: list[str] = []
    assert Kernel.debian("6.12").resolve(Sparing(said.append)).release == release
    assert "cannot be reached" in said[-1]
    assert "from the cache" in said[-1]
    again: list[str] = []
    assert Kernel.debian("6.12").resolve(Sparing(again.append)).release == release
    assert again == [], "a mirror that did not answer must not be asked again at every start"
    expire("debian_6.12.json")
    assert Kernel.debian("6.12").resolve(offline=True).release == release
    assert available()[0].upstream == "7.3.4"


def test_without_a_network_an_uncached_kernel_gets_a_list_of_cached_ones(mirror: Mirror) -> None:
    with pytest.raises(MachineryError, match=r"debian:7\.3 is not cached .*\(offline\); cached: no kernel"):
        Kernel.debian("7.3").resolve(offline=True)
    Kernel.debian("6.1").resolve()
    lose_network(mirror)
    with pytest.raises(
        MachineryError, match=r"debian:7\.3 is not cached and cannot be fetched .*; cached: debian:6\.1\.100"
    ):
        Kernel.debian("7.3").resolve()
    expire("debian_7.3.json")
    with pytest.raises(
        MachineryError, match=r"cannot be fetched \(the Debian mirror cannot be reached: .*debian:6\.1\.100"
    ):
        Kernel.debian("7.3").resolve()
    assert [p.name for p in (cache.root() / "kernels").iterdir()] == ["linux-image-6.1.0-1-cloud-amd64_6.1.100-1"]


def test_a_mirror_that_was_never_reached_is_reported(mirror: Mirror) -> None:
    lose_network(mirror)
    with pytest.raises(MachineryError, match=r"cannot be reached.*cached: no kernel"):
        Kernel.debian().resolve()
    with pytest.raises(MachineryError, match="cannot be reached"):
        available()


@pytest.mark.usefixtures("mirror")
def test_an_exact_version_is_cached_without_expiry(request: pytest.FixtureRequest) -> None:
    Kernel.debian("6.12.5").resolve()
    expire("debian_6.12.5.json")
    request.getfixturevalue("no_commands")
    Kernel.debian("6.12.5").resolve()


def test_a_tampered_package_is_refused_and_leaves_nothing(mirror: Mirror) -> None:
    deb = mirror.folder / "debian/pool/linux-image-6.1.0-1-cloud-amd64_6.1.100-1_amd64.deb"
    data = bytearray(deb.read_bytes())
    data[-100] ^= 1
    deb.write_bytes(data)
    with pytest.raises(MachineryError, match="Hash Sum mismatch"):
        Kernel.debian("6.1").resolve()
    assert list((cache.root() / "kernels").iterdir()) == []


def test_a_package_that_the_mirror_dropped_is_looked_up_again(mirror: Mirror) -> None:
    available()
    pool = mirror.folder / "debian-security/pool"
    shutil.rmtree(pool)
    packages = mirror.folder / "debian-security/dists/trixie-security/main/binary-amd64/Packages"
    packages.unlink()
    mirror.kernel("trixie-security", "6.12.11+deb13-cloud-amd64", "6.12.11-1", "usr/lib/modules")
    mirror.sign("trixie-security")
    assert Kernel.debian("6.12").resolve().release == "6.12.11+deb13-cloud-amd64"


@pytest.mark.usefixtures("mirror")
def test_without_depmod_its_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "bin/depmod").unlink()
    monkeypatch.setattr("harness.host.process.os.access", lambda path, _: "depmod" not in str(path))
    with pytest.raises(MachineryError, match="apt-get install kmod"):
        Kernel.debian("6.1").resolve()


@pytest.mark.usefixtures("mirror")
def test_a_machine_without_a_debian_mirror_is_reported(tmp_path: Path) -> None:
    (tmp_path / "etc/sources.list.d/debian.sources").unlink()
    with pytest.raises(MachineryError, match="names no Debian mirror"):
        Kernel.debian().resolve()


@pytest.mark.usefixtures("mirror")
def test_a_full_disk_is_reported_before_apt_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(".")._replace(free=1_000_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(MachineryError, match="no space left for"):
        Kernel.debian().resolve()


@pytest.mark.usefixtures("mirror")
def test_an_interrupt_leaves_nothing() -> None:
    def interrupted(event: Event) -> None:
        if str(event).startswith("unpacking"):
            raise KeyboardInterrupt

    with contextlib.suppress(KeyboardInterrupt):
        Kernel.debian("6.1").resolve(interrupted)
    assert list((cache.root() / "kernels").iterdir()) == []
    assert Kernel.debian("6.1").resolve().release == "6.1.0-1-cloud-amd64"
