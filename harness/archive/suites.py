"""Programs from another Debian suite, unpacked into the cache with all their libraries. Nothing is installed.

The host's C library and loader are not used. ``ld.so`` of the same suite starts the program, so it runs on any host.
apt resolves the dependencies as if nothing were installed, and checks what it fetches.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.archive import apt
from harness.archive.versions import version_key
from harness.errors import MachineryError, UsageError
from harness.events import Note, Say, tell
from harness.host import cache
from harness.host.process import check_room, find_program, run

PREFIX = "debian:"
_ASK_TIMEOUT_S, _FETCH_TIMEOUT_S, _UNPACK_TIMEOUT_S = 120.0, 1800.0, 300.0
_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_OLD_LOADER = "lib64/ld-linux-x86-64.so.2"  # if / and /usr are not merged inside the packages, before trixie
_SPEC = re.compile(r"debian:(?P<wanted>\d+(\.\d+)*)(@(?P<suite>[\w-]+))?")

# The loader gets the folders of the libraries, and does not search those of the host.
_WRAPPER = """\
#!/bin/sh
root=${{0%/*}}/root
lib=$root/usr/lib/x86_64-linux-gnu
{more}
exec "$root/{loader}" --argv0 "$0" --library-path "$lib:$root/lib/x86_64-linux-gnu:$lib/systemd" {command} "$@"
"""


@dataclass(frozen=True, slots=True)
class SuiteProgram:
    """A program of a Debian package, and how it finds its files."""

    package: str
    name: str  # below usr/bin
    words: str = ""  # its first arguments, in shell syntax; $root is the folder of the unpacked packages
    more: str = ""  # shell lines to run before it starts


@dataclass(frozen=True, slots=True)
class SuiteOffer:
    """One version of a package in one suite of the mirror."""

    version: str  # Debian's, "1:11.1.3+ds-1"
    suite: str

    @property
    def upstream(self) -> str:
        """``11.1.3`` of ``1:11.1.3+ds-1``."""
        match = re.match(r"(?:\d+:)?([\d.]+)", self.version)
        return match[1] if match else self.version

    @property
    def name(self) -> str:
        """The name of its cache entry."""
        return f"{self.upstream}@{self.suite}"


def parse_policy(text: str) -> list[SuiteOffer]:
    """Parse the version table of ``apt-cache policy``: each version, followed by the suites that have it.

    ::

             1:11.1.3+ds-1 500
                500 <mirror> sid/main amd64 Packages
    """
    offers: list[SuiteOffer] = []
    version = ""
    for line in text.partition("Version table:")[2].splitlines():
        words = line.removeprefix(" ***").split()
        if len(words) == 2 and words[0][0].isdigit() and not words[0].isdigit():
            version = words[0]
        elif len(words) >= 4 and words[-1] == "Packages" and version:
            offers.append(SuiteOffer(version, words[2].partition("/")[0]))
    return offers


def choose_offer(offers: Sequence[SuiteOffer], spec: str, what: str) -> SuiteOffer:
    """The result of :func:`fitting`, or an error.

    :param what: what is requested, for messages: "--qemu".
    :raises UsageError: the spec is malformed, or the mirror has no such version; lists the existing ones.
    """
    found = fitting(offers, spec, what)
    if found is None:
        there = ", ".join(dict.fromkeys(f"{PREFIX}{offer.name}" for offer in offers)) or "none"
        raise UsageError(f"{what} {spec}: the mirror has no such version; expected one of: {there}")
    return found


def fitting(offers: Sequence[SuiteOffer], spec: str, what: str) -> SuiteOffer | None:
    """The newest version that matches a spec: ``debian:11.1``, ``debian:10.0.13``, ``debian:10.0@trixie``.

    :raises UsageError: the spec is malformed.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UsageError(f"{what} {spec}: expected a path, or debian:VERSION[@SUITE], such as debian:11.1")
    meant = [
        offer
        for offer in offers
        if f"{offer.upstream}.".startswith(f"{match['wanted']}.") and match["suite"] in (None, offer.suite)
    ]
    return max(meant, key=lambda offer: version_key(offer.version), default=None)


def unpacked_program(program: SuiteProgram, spec: str, what: str, say: Say | None = None) -> Path:
    """The path of a program from the mirror, or from the cache if it was unpacked before.

    :param spec: ``debian:VERSION[@SUITE]``.
    :param what: what is requested, for messages: "--qemu".
    :raises UsageError: there is no such version.
    :raises MachineryError: the mirror cannot be reached, or there is no room.
    """
    here = [SuiteOffer(*entry.name.split("@", 1)) for entry in cache.entries(program.name)]
    if found := fitting(here, spec, what):
        return (cache.find(program.name, found.name) or cache.root() / program.name / found.name) / program.name
    options = apt.state_options(say)
    policy = run([find_program("apt-cache", "apt"), *options, "policy", program.package], timeout_s=_ASK_TIMEOUT_S)
    offer = choose_offer(parse_policy(policy.stdout.decode(errors="replace")), spec, what)

    def build(folder: Path) -> None:
        tell(say, Note(f"fetching {program.package} {offer.upstream} of {offer.suite} with its libraries"))
        _unpack(_fetch(program.package, offer, options, folder / "packages"), folder / "root")
        loader = next((name for name in (_LOADER, _OLD_LOADER) if (folder / "root" / name).exists()), None)
        if loader is None:
            raise MachineryError(f"{program.package} {offer.version} has no loader: expected root/{_LOADER}")
        wrapper = folder / program.name
        command = f'"$root/usr/bin/{program.name}" {program.words}'.rstrip()
        wrapper.write_text(_WRAPPER.format(loader=loader, command=command, more=program.more))
        wrapper.chmod(0o755)

    return cache.obtain(program.name, offer.name, build, say) / program.name


def _fetch(package: str, offer: SuiteOffer, options: Sequence[str], folder: Path) -> list[Path]:
    """Let apt fetch the package and all its dependencies, including the C library."""
    (folder / "partial").mkdir(parents=True)
    argv: list[str | Path] = [find_program("apt-get", "apt"), *options]
    argv += ["-o", f"Dir::Cache::archives={folder}", "-o", "Debug::NoLocking=true", "-q", "-y"]
    argv += ["--no-install-recommends", "--download-only", "-t", offer.suite, "install", f"{package}={offer.version}"]
    fetched = run(argv, timeout_s=_FETCH_TIMEOUT_S, check=False)
    if fetched.status != 0:
        check_room(fetched, "apt")
        raise apt.DownloadError(f"cannot fetch {package} {offer.version} of {offer.suite}: {fetched.words}")
    return sorted(folder.glob("*.deb"))


def _unpack(packages: Sequence[Path], root: Path) -> None:
    for package in packages:
        run([find_program("dpkg-deb", "dpkg"), "-x", package, root], timeout_s=_UNPACK_TIMEOUT_S)
        package.unlink()
