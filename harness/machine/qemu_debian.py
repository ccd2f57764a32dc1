"""A QEMU of another Debian suite (``debian:11.1``), unpacked into the cache with its libraries; nothing is installed.

The host's C library and loader are not used: ``ld.so`` of the same suite starts the program, so that any suite's QEMU
runs on any host. apt resolves the dependencies, as if nothing were installed, and checks what it fetches.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness import cache
from harness.errors import MachineryError, UsageError
from harness.kernel import apt
from harness.kernel.process import check_room, find_program, run
from harness.kernel.versions import version_key

PREFIX = "debian:"
_PACKAGE = "qemu-system-x86"
_KIND = "qemu"
_ASK_TIMEOUT_S, _FETCH_TIMEOUT_S, _UNPACK_TIMEOUT_S = 120.0, 1800.0, 300.0
_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
_OLD_LOADER = "lib64/ld-linux-x86-64.so.2"  # where / and /usr are not merged inside the packages: before trixie
_SPEC = re.compile(r"debian:(?P<wanted>\d+(\.\d+)*)(@(?P<suite>[\w-]+))?")

# The loader is given the libraries' folders, and QEMU its firmware and modules: none of the host's is looked at.
_WRAPPER = """\
#!/bin/sh
root=${{0%/*}}/root
lib=$root/usr/lib/x86_64-linux-gnu
export QEMU_MODULE_DIR=$lib/qemu
exec "$root/{loader}" --library-path "$lib:$root/lib/x86_64-linux-gnu:$lib/systemd" \\
	"$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" "$@"
"""


@dataclass(frozen=True, slots=True)
class QemuOffer:
    """One version of QEMU in one suite of the mirror."""

    version: str  # Debian's, "1:11.1.3+ds-1"
    suite: str

    @property
    def upstream(self) -> str:
        """``11.1.3`` of ``1:11.1.3+ds-1``."""
        match = re.match(r"(?:\d+:)?([\d.]+)", self.version)
        return match[1] if match else self.version

    @property
    def name(self) -> str:
        """Of its entry in the cache."""
        return f"{self.upstream}@{self.suite}"


def parse_policy(text: str) -> list[QemuOffer]:
    """Reads ``apt-cache policy``'s version table: each version, and below it the suites that have it.

    ::

             1:11.1.3+ds-1 500
                500 <mirror> sid/main amd64 Packages
    """
    offers: list[QemuOffer] = []
    version = ""
    for line in text.partition("Version table:")[2].splitlines():
        words = line.removeprefix(" ***").split()
        if len(words) == 2 and words[0][0].isdigit() and not words[0].isdigit():
            version = words[0]
        elif len(words) >= 4 and words[-1] == "Packages" and version:
            offers.append(QemuOffer(version, words[2].partition("/")[0]))
    return offers


def choose_offer(offers: Sequence[QemuOffer], spec: str) -> QemuOffer:
    """What :func:`fitting` finds among the mirror's offers.

    :raises UsageError: the spec is malformed, or the mirror has no such version; names what there is.
    """
    found = fitting(offers, spec)
    if found is None:
        there = ", ".join(dict.fromkeys(f"debian:{offer.name}" for offer in offers)) or "none"
        raise UsageError(f"--qemu {spec}: the mirror has no such QEMU; it has {there}")
    return found


def fitting(offers: Sequence[QemuOffer], spec: str) -> QemuOffer | None:
    """The newest version that a spec means: ``debian:11.1``, ``debian:10.0.13``, ``debian:10.0@trixie``.

    :raises UsageError: the spec is malformed.
    """
    match = _SPEC.fullmatch(spec)
    if match is None:
        raise UsageError(f"--qemu {spec}: expected a path, or debian:VERSION[@SUITE], such as debian:11.1")
    meant = [
        offer
        for offer in offers
        if f"{offer.upstream}.".startswith(f"{match['wanted']}.") and match["suite"] in (None, offer.suite)
    ]
    return max(meant, key=lambda offer: version_key(offer.version), default=None)


def debian_qemu(spec: str, say: Callable[[str], None] = lambda _line: None) -> Path:
    """The program of a QEMU from the mirror, from the cache where it was unpacked before.

    :param spec: ``debian:VERSION[@SUITE]``.
    :raises UsageError: there is no such version.
    :raises MachineryError: the mirror cannot be reached, or there is no room.
    """
    here = [QemuOffer(*entry.name.split("@", 1)) for entry in cache.entries(_KIND)]
    if found := fitting(here, spec):
        return cache.root() / _KIND / found.name / "qemu-system-x86_64"
    options = apt.state_options(say)
    policy = run([find_program("apt-cache", "apt"), *options, "policy", _PACKAGE], timeout_s=_ASK_TIMEOUT_S)
    offer = choose_offer(parse_policy(policy.stdout.decode(errors="replace")), spec)

    def build(folder: Path) -> None:
        say(f"fetching QEMU {offer.upstream} of {offer.suite} with its libraries (about 50 MB)")
        _unpack(_fetch(offer, options, folder / "packages"), folder / "root")
        loader = next((name for name in (_LOADER, _OLD_LOADER) if (folder / "root" / name).exists()), None)
        if loader is None:
            raise MachineryError(f"the packages of QEMU {offer.version} have no loader: expected root/{_LOADER}")
        wrapper = folder / "qemu-system-x86_64"
        wrapper.write_text(_WRAPPER.format(loader=loader))
        wrapper.chmod(0o755)

    return cache.obtain(_KIND, offer.name, build, say) / "qemu-system-x86_64"


def _fetch(offer: QemuOffer, options: Sequence[str], folder: Path) -> list[Path]:
    """Has apt fetch the package and all that it depends on, the C library included."""
    (folder / "partial").mkdir(parents=True)
    argv: list[str | Path] = [find_program("apt-get", "apt"), *options]
    argv += ["-o", f"Dir::Cache::archives={folder}", "-o", "Debug::NoLocking=true", "-q", "-y"]
    argv += ["--no-install-recommends", "--download-only", "-t", offer.suite, "install", f"{_PACKAGE}={offer.version}"]
    fetched = run(argv, timeout_s=_FETCH_TIMEOUT_S, check=False)
    if fetched.status != 0:
        check_room(fetched, "apt")
        raise apt.DownloadError(f"QEMU {offer.version} of {offer.suite}: {fetched.words}")
    return sorted(folder.glob("*.deb"))


def _unpack(packages: Sequence[Path], root: Path) -> None:
    for package in packages:
        run([find_program("dpkg-deb", "dpkg"), "-x", package, root], timeout_s=_UNPACK_TIMEOUT_S)
        package.unlink()
