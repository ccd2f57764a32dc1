"""The offers of a Debian archive: Packages files in, kernels and kernel sources out. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.archive.versions import newest_of_each_series, series_of, upstream_of

_IMAGE = re.compile(r"linux-image-(\d\S*-cloud-amd64)")
_OTHER_IMAGE = re.compile(r"\blinux-image-\d")
_SOURCE = re.compile(r"linux-source-\d+\.\d+")
_START = b"Package: linux-"


@dataclass(frozen=True)
class PackageFile:
    """One package to download."""

    package: str
    uri: str
    size_bytes: int
    sha256: str  # from the signed index


@dataclass(frozen=True)
class Offer:
    """An available kernel: a suite offers it, or it is cached."""

    package: str  # linux-image-6.12.117+deb13-cloud-amd64
    version: str  # Debian's: 6.12.117-1
    release: str  # uname -r: 6.12.117+deb13-cloud-amd64
    suite: str  # trixie-security
    upstream: str  # 6.12.117, or 7.3~rc7
    cached: bool = False
    files: tuple[PackageFile, ...] = field(default=(), repr=False)  # the image first; empty if no suite has it any more

    gone: tuple[str, ...] = field(default=(), repr=False)  # parts that the mirror no longer has: it cannot be fetched

    @property
    def entry(self) -> str:
        """The name of its cache entry."""
        return f"{self.package}_{self.version}"


@dataclass(frozen=True)
class SourceOffer:
    """A linux-source package: Debian's patched source of one series as a tarball."""

    package: str  # linux-source-6.12
    version: str  # Debian's: 6.12.117-1
    suite: str
    upstream: str  # 6.12.117
    file: PackageFile = field(repr=False)

    @property
    def tarball(self) -> str:
        """The path of the source inside the package."""
        return f"usr/src/{self.package}.tar.xz"


def parse_source_packages(data: bytes, uri: str, suite: str) -> list[SourceOffer]:
    """The linux-source packages of a Packages file; without the meta package linux-source.

    :param uri: URI of the mirror; ends with a slash.
    """
    return [
        SourceOffer(s["package"], s["version"], suite, upstream_of(s["version"]), _file(s, uri))
        for s in _linux_stanzas(data)
        if _SOURCE.match(s["package"])
    ]


def _file(stanza: dict[str, str], uri: str) -> PackageFile:
    return PackageFile(stanza["package"], uri + stanza["filename"], int(stanza["size"]), stanza["sha256"])


def parse_packages(data: bytes, uri: str, suite: str) -> list[Offer]:
    """The stock amd64 cloud kernels of a Packages file, without meta packages, debug and unsigned ones.

    :param uri: URI of the mirror; ends with a slash.
    """
    stanzas = {(s["package"], s["version"]): s for s in _linux_stanzas(data)}
    offers = []
    for (package, version), stanza in stanzas.items():
        image = _IMAGE.fullmatch(package)
        depends = stanza.get("depends", "")
        # A meta package (linux-image-6.12-cloud-amd64) depends on the real image; the real one on no other image.
        if image is None or _OTHER_IMAGE.search(depends):
            continue
        release = image[1]
        # Since 7.x an image is split: linux-binary- has vmlinuz, linux-base- has the config, linux-modules- the rest.
        parts = [n for n in re.findall(r"linux-[a-z]+-\S+", depends) if n.endswith(f"-{release}")]
        # Backports keep the signed image of an old version for long after its modules are gone. An image that depends
        # only on linux-base- (6.18, 6.19) contains everything that is needed to boot, including the configuration.
        missing = [part for part in parts if (part, version) not in stanzas]
        split = any(part.startswith(("linux-binary-", "linux-modules-")) for part in parts)
        gone = tuple(part for part in missing if split)
        whole = [stanza, *(stanzas[part, version] for part in parts if part not in missing)]
        files = tuple(_file(s, uri) for s in whole)
        offers.append(Offer(package, version, release, suite, upstream_of(version), files=files, gone=gone))
    return offers


@dataclass(frozen=True)
class Stock:
    """The newest available kernel of each series (6.1, 6.12, 7.3)."""

    offers: tuple[Offer, ...]  # oldest series first
    missing: dict[str, str]  # series without a complete kernel, and why

    @classmethod
    def of(cls, offers: Sequence[Offer]) -> Stock:
        """Choose from everything that the mirror has, including incomplete kernels.

        A cached kernel is complete, even if the mirror has dropped parts of it.
        """
        whole = newest_of_each_series([offer for offer in offers if not offer.gone or offer.cached])
        series = {series_of(offer.upstream) for offer in whole}
        missing = {
            series_of(offer.upstream): f"the mirror has {offer.package} only in part, without {', '.join(offer.gone)}"
            for offer in reversed(newest_of_each_series(offers))
            if series_of(offer.upstream) not in series
        }
        return cls(tuple(reversed(whole)), missing)


def _linux_stanzas(data: bytes) -> list[dict[str, str]]:
    """The stanzas of packages called linux-*; the file has 60 MB, so it is filtered before it is parsed."""
    data = b"\n" + data
    stanzas = []
    at = data.find(b"\n" + _START)
    while at >= 0:
        end = data.find(b"\n\n", at + 1)
        end = len(data) if end < 0 else end
        fields = {
            name.lower(): value.strip()
            for name, colon, value in (
                line.partition(":") for line in data[at:end].decode(errors="replace").splitlines()
            )
            if colon and not name.startswith((" ", "\t"))
        }
        if {"package", "version", "filename", "size", "sha256"} <= fields.keys():
            stanzas.append(fields)
        at = data.find(b"\n" + _START, end)
    return stanzas
