"""Stock Debian kernels (``debian``, ``debian:6.12.95@trixie-security``): fetched, unpacked, never installed."""

from __future__ import annotations

import re
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.archive import apt
from harness.archive.apt import DownloadError, Index, MirrorError
from harness.archive.offers import Offer
from harness.archive.request import REPEAT_S, Request
from harness.archive.versions import check_wanted, matches, sort_key
from harness.errors import MachineryError, UsageError
from harness.events import Fetching, Note, Say, tell
from harness.host import cache
from harness.host.process import find_program, run
from harness.kernel.image import KernelImage, open_image

DEFAULT_AT_LEAST = "6.12"  # the first series with huge pfnmaps
_KIND = "kernels"
_UNPACK_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class DebianSource:
    """A stock cloud-amd64 kernel from the host's own Debian mirror.

    Without a version, this is the newest release (no rc) at or above 6.12 in any suite of the mirror, because huge
    pfnmaps start there, and bugs of the newest kernel can still be fixed.
    """

    version: str | None = None  # "6.12", "6.12.95", "6.12.117-1", "7.3~rc7"
    suite: str | None = None

    @classmethod
    def of(cls, version: str | None, suite: str | None) -> DebianSource:
        """Check the arguments and make a source.

        :raises UsageError: not a version, or not the name of a suite.
        """
        if suite is not None and not re.fullmatch(r"[a-z][a-z0-9-]*", suite):
            raise UsageError(f"{suite!r} is not a Debian suite; expected a name like trixie-backports")
        return cls(check_wanted(version) if version is not None else None, suite)

    @classmethod
    def parse(cls, text: str) -> DebianSource:
        """Parse ``debian[:VERSION][@SUITE]``.

        :raises UsageError: text has another form.
        """
        match = re.fullmatch(r"debian(?::([^@]*))?(?:@(.*))?", text)
        if match is None:
            raise UsageError(f"{text!r} is no Debian kernel; expected debian, debian:VERSION or debian:VERSION@SUITE")
        return cls.of(match[1], match[2])

    @property
    def spec(self) -> str:
        """The canonical string of this source."""
        return "debian" + (f":{self.version}" if self.version else "") + (f"@{self.suite}" if self.suite else "")

    def resolve(self, say: Say | None, offline: bool) -> KernelImage:
        """The kernel, from the cache if the answer is known: for a day, or forever if the version is exact.

        :raises UsageError: the mirror has no such version or suite.
        :raises MachineryError: the kernel is not cached and cannot be fetched.
        """
        request = self._request
        known = request.recall()
        entry = cache.find(_KIND, known["entry"], say) if known else None
        if entry is not None:
            return _open(entry, self.spec)
        try:
            index, just_asked = request.index(lambda index: [*_whole(index), *cached()], say, offline)
        except MirrorError as error:
            return self._from_cache(error, say, offline)
        offer = self._chosen(index)
        entry = cache.find(_KIND, offer.entry)
        if entry is None:
            try:
                entry = _obtain(offer, say)
            except DownloadError as error:
                if just_asked:
                    raise self._unavailable(error) from error
                offer = self._after_failed_download(say)
                entry = _obtain(offer, say)
        request.remember({"entry": offer.entry})
        return _open(entry, self.spec)

    @property
    def _request(self) -> Request:
        return Request(self.spec, self.version, self.suite, DEFAULT_AT_LEAST)

    def _from_cache(self, error: MirrorError, say: Say | None, offline: bool) -> KernelImage:
        """The kernel without the mirror.

        :raises MachineryError: nothing that fits is cached.
        """
        index = apt.load_index()
        here = [offer for offer in _whole(index) if cache.has(_KIND, offer.entry)] if index else []
        found = self._request.choose(here) or self._request.choose(cached())
        entry = cache.find(_KIND, found.entry) if found else None
        if found is None or entry is None:
            raise self._unavailable(error) from error
        tell(say, Note(f"{error}; using {found.package} from the cache"))
        if not offline:  # the mirror may be back soon
            self._request.remember({"entry": found.entry}, REPEAT_S)
        return _open(entry, self.spec)

    def _chosen(self, index: Index) -> Offer:
        """:raises UsageError: there is no such kernel; lists what exists."""
        found = self._request.choose(_whole(index)) or self._request.choose(cached())
        if found is not None:
            return found
        for offer in index.offers:
            if offer.gone and self.version and matches(self.version, offer) and self.suite in (None, offer.suite):
                raise UsageError(
                    f"{self.spec}: the mirror has {offer.package} only in part, without {', '.join(offer.gone)}"
                )
        raise self._request.no_such("kernel", index, _whole(index))

    def _after_failed_download(self, say: Say | None) -> Offer:
        """Ask again, because the index may be older than the mirror, which drops versions."""
        try:
            return self._chosen(apt.refresh((), say))
        except MirrorError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, why: MachineryError) -> MachineryError:
        have = ", ".join(dict.fromkeys(f"debian:{offer.upstream}" for offer in cached())) or "no kernel"
        return MachineryError(f"{self.spec} is not cached and cannot be fetched ({why}); cached: {have}")


def cached() -> list[Offer]:
    """The Debian kernels that need no network, newest first."""
    notes = (cache.read_note(entry / "offer.json") for entry in cache.entries(_KIND))
    found = [Offer(**{**note, "cached": True, "files": (), "gone": ()}) for note in notes if note]
    return sorted(found, key=sort_key, reverse=True)


def available(
    say: Say | None = None, *, refresh: bool = False, offline: bool = False, incomplete: bool = False
) -> list[Offer]:
    """Every available stock kernel, each once, newest first: what the mirror offers and what is cached.

    :param refresh: ask the mirror now, even if the index is recent.
    :param incomplete: include kernels of which the mirror has only parts (:attr:`Offer.gone`).
    :raises MachineryError: the mirror cannot be reached, and no earlier answer is known.
    """
    index = apt.load_index()
    if not offline and (refresh or index is None or index.age_s > apt.INDEX_TTL_S):
        try:
            index = apt.refresh((), say)
        except MirrorError as error:
            if index is None and not cached():
                raise
            tell(say, Note(f"{error}; showing its last known answer"))
    offers: dict[str, Offer] = {}
    for offer in [*(o for o in (index.offers if index else ()) if incomplete or not o.gone), *cached()]:
        offers.setdefault(offer.entry, replace(offer, cached=cache.has(_KIND, offer.entry)))
    return sorted(offers.values(), key=sort_key, reverse=True)


def _whole(index: Index) -> list[Offer]:
    return [offer for offer in index.offers if not offer.gone]


def _open(entry: Path, spec: str) -> KernelImage:
    (modules,) = (entry / "lib/modules").iterdir()
    return open_image(entry / "vmlinuz", spec=spec, modules=modules, config=entry / "config")


def _obtain(offer: Offer, say: Say | None) -> Path:
    return cache.obtain(_KIND, offer.entry, lambda folder: _build(offer, folder, say), say, summed=("vmlinuz",))


def _build(offer: Offer, folder: Path, say: Say | None) -> None:
    """Fill a cache entry: ``vmlinuz``, ``config``, ``lib/modules/RELEASE`` with modules.dep, ``offer.json``."""
    depmod, dpkg = find_program("depmod", "kmod"), find_program("dpkg-deb", "dpkg")  # found before 30 MB are fetched
    size_bytes = sum(file.size_bytes for file in offer.files)
    tell(say, Fetching(f"{offer.package} {offer.version} from {offer.suite}", size_bytes))
    debs, unpacked = folder / "debs", folder / "unpacked"
    debs.mkdir()
    packages = apt.download(offer.files, debs)
    tell(say, Note(f"unpacking {offer.package}"))
    for package in packages:
        run([dpkg, "-x", package, unpacked], timeout_s=_UNPACK_TIMEOUT_S)
    release = offer.release
    trees = [unpacked / "lib/modules" / release, unpacked / "usr/lib/modules" / release]
    tree = next((t for t in trees if (t / "kernel").is_dir()), None)
    if tree is None:
        raise MachineryError(f"{offer.package} has an unknown layout: expected modules in lib/modules/{release}")
    for name in ("vmlinuz", "config"):
        places = [unpacked / "boot" / f"{name}-{release}", *(t / name for t in trees)]
        place = next((p for p in places if p.is_file()), None)
        if place is None:
            raise MachineryError(f"{offer.package} has an unknown layout: expected a file {name}")
        place.rename(folder / name)
    (folder / "lib/modules").mkdir(parents=True)
    tree.rename(folder / "lib/modules" / release)
    (folder / "usr").symlink_to(".")  # some builds of depmod look below usr/lib, others below lib
    shutil.rmtree(unpacked)
    shutil.rmtree(debs)
    run([depmod, "-b", folder, release], timeout_s=_UNPACK_TIMEOUT_S)
    cache.write_note(folder / "offer.json", {**asdict(offer), "cached": True, "files": []})
