"""Stock Debian kernels (``debian``, ``debian:6.12.95@trixie-security``): fetched, unpacked, never installed."""

from __future__ import annotations

import enum
import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from harness.archive import apt
from harness.archive.apt import DownloadError, Index, MirrorError
from harness.archive.offers import Offer
from harness.archive.versions import check_wanted, choose, is_exact, matches, newest_of_each_series, series_of, sort_key
from harness.errors import MachineryError, UsageError
from harness.host import cache
from harness.host.cache import Progress, say
from harness.host.process import find_program, run
from harness.kernel.image import KernelImage, open_image

DEFAULT_AT_LEAST = "6.12"  # the first series with huge pfnmaps
_KIND = "kernels"
_UNPACK_TIMEOUT_S = 300.0
_REPEAT_S = 600.0  # if the index is younger than this and lacks a version, the mirror is not asked again


class _Asked(enum.Enum):
    """Whether the mirror was asked for the answer."""

    BEFORE = enum.auto()  # within the last day, which is when the index was fetched
    NOW = enum.auto()
    IN_VAIN = enum.auto()  # it did not answer, or may not be asked


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
            raise UsageError(f"{text!r} is not understood; expected debian, debian:VERSION or debian:VERSION@SUITE")
        return cls.of(match[1], match[2])

    @property
    def spec(self) -> str:
        """The canonical string of this source."""
        return "debian" + (f":{self.version}" if self.version else "") + (f"@{self.suite}" if self.suite else "")

    def resolve(self, progress: Progress | None, offline: bool) -> KernelImage:
        """The kernel, from the cache if the answer is known: for a day, or forever if the version is exact.

        :raises UsageError: the mirror has no such version or suite.
        :raises MachineryError: the kernel is not cached and cannot be fetched.
        """
        note = cache.root() / "resolved" / f"{self.spec.replace(':', '_')}.json"
        known = cache.read_note(note)
        if known and (0 <= time.time() - known["at"] < apt.INDEX_TTL_S or is_exact(self.version or "")):
            entry = cache.find(_KIND, known["entry"])
            if entry is not None:
                return _open(entry, self.spec)
        offer, asked = self._find(progress, offline)
        entry = cache.find(_KIND, offer.entry)
        if entry is None:
            try:
                entry = _obtain(offer, progress)
            except DownloadError as error:
                if asked is not _Asked.BEFORE:
                    raise self._unavailable(str(error)) from error
                offer = self._after_failed_download(progress)
                entry = _obtain(offer, progress)
        if not offline:  # without the mirror the answer is kept only for a while, because the mirror may be back soon
            at = time.time() - (apt.INDEX_TTL_S - _REPEAT_S if asked is _Asked.IN_VAIN else 0)
            cache.write_note(note, {"entry": offer.entry, "at": at})
        return _open(entry, self.spec)

    def _after_failed_download(self, progress: Progress | None) -> Offer:
        """Ask again, because the index may be older than the mirror, which drops versions."""
        try:
            index = apt.refresh((), progress)
        except MirrorError as error:
            raise self._unavailable(str(error)) from error
        return self._choose(index.offers) or self._no_such(index)

    def _find(self, progress: Progress | None, offline: bool) -> tuple[Offer, _Asked]:
        """The offer to use, and whether the mirror was asked for it."""
        index, asked = apt.load_index(), _Asked.BEFORE
        if offline or index is None or index.age_s > apt.INDEX_TTL_S or self._lacks(index):
            try:
                if offline:
                    raise MirrorError("offline")
                index, asked = apt.refresh([self.suite] if self.suite else (), progress), _Asked.NOW
            except MirrorError as error:
                found = self._choose(_only_cached(index.offers if index else ())) or self._choose(cached())
                if found is None:
                    raise self._unavailable(str(error)) from error
                say(progress, f"{error}; using {found.package} from the cache")
                return found, _Asked.IN_VAIN
        found = self._choose(index.offers) or self._choose(cached())
        return (found or self._no_such(index)), asked

    def _lacks(self, index: Index) -> bool:
        """Whether asking again may help: a suite that was not requested before, or a version that was missing."""
        if self.suite and self.suite not in index.suites and self.suite not in index.left_out:
            return True
        return index.age_s > _REPEAT_S and self._choose([*index.offers, *cached()]) is None

    def _choose(self, offers: Sequence[Offer]) -> Offer | None:
        fitting = [offer for offer in offers if self.suite in (None, offer.suite) and not offer.gone]
        return choose(fitting, self.version, DEFAULT_AT_LEAST)

    def _no_such(self, index: Index) -> Offer:
        """:raises UsageError: always; lists what exists."""
        if self.suite and self.suite not in index.suites:
            reason = index.left_out.get(self.suite, "unknown")
            raise UsageError(f"{self.spec}: no suite {self.suite} ({reason}); the mirror has {', '.join(index.suites)}")
        offers = [offer for offer in index.offers if self.suite in (None, offer.suite)]
        for offer in (o for o in offers if o.gone and self.version and matches(self.version, o)):
            raise UsageError(
                f"{self.spec}: the mirror has {offer.package} only in part, without {', '.join(offer.gone)}"
            )
        offers = [offer for offer in offers if not offer.gone]
        series = [o for o in offers if self.version and series_of(o.upstream) == series_of(self.version)]
        if series and self.version:
            versions = dict.fromkeys(o.upstream for o in sorted(series, key=sort_key))
            raise UsageError(f"{self.spec}: of {series_of(self.version)} the mirror has only {', '.join(versions)}")
        exist = ", ".join(o.upstream for o in newest_of_each_series(offers)) or "no kernel at all"
        raise UsageError(f"{self.spec}: no such kernel; the mirror has (newest of each series) {exist}")

    def _unavailable(self, why: str) -> MachineryError:
        have = ", ".join(dict.fromkeys(f"debian:{offer.upstream}" for offer in cached())) or "no kernel"
        return MachineryError(f"{self.spec} is not cached and cannot be fetched ({why}); cached: {have}")


def cached() -> list[Offer]:
    """The Debian kernels that need no network, newest first."""
    notes = (cache.read_note(entry / "offer.json") for entry in cache.entries(_KIND))
    found = [Offer(**{**note, "cached": True, "files": (), "gone": ()}) for note in notes if note]
    return sorted(found, key=sort_key, reverse=True)


def available(
    progress: Progress | None = None, *, refresh: bool = False, offline: bool = False, incomplete: bool = False
) -> list[Offer]:
    """Every available stock kernel, each once, newest first: what the mirror offers and what is cached.

    :param refresh: ask the mirror now, even if the index is recent.
    :param incomplete: include kernels of which the mirror has only parts (:attr:`Offer.gone`).
    :raises MachineryError: the mirror cannot be reached, and no earlier answer is known.
    """
    index = apt.load_index()
    if not offline and (refresh or index is None or index.age_s > apt.INDEX_TTL_S):
        try:
            index = apt.refresh((), progress)
        except MirrorError as error:
            if index is None and not cached():
                raise
            say(progress, f"{error}; showing what is known")
    offers: dict[str, Offer] = {}
    for offer in [*(o for o in (index.offers if index else ()) if incomplete or not o.gone), *cached()]:
        offers.setdefault(offer.entry, replace(offer, cached=cache.find(_KIND, offer.entry) is not None))
    return sorted(offers.values(), key=sort_key, reverse=True)


def _only_cached(offers: Sequence[Offer]) -> list[Offer]:
    return [offer for offer in offers if cache.find(_KIND, offer.entry) is not None]


def _open(entry: Path, spec: str) -> KernelImage:
    (modules,) = (entry / "lib/modules").iterdir()
    return open_image(entry / "vmlinuz", spec=spec, modules=modules, config=entry / "config")


def _obtain(offer: Offer, progress: Progress | None) -> Path:
    return cache.obtain(_KIND, offer.entry, lambda folder: _build(offer, folder, progress), progress)


def _build(offer: Offer, folder: Path, progress: Progress | None) -> None:
    """Fill a cache entry: ``vmlinuz``, ``config``, ``lib/modules/RELEASE`` with modules.dep, ``offer.json``."""
    depmod, dpkg = find_program("depmod", "kmod"), find_program("dpkg-deb", "dpkg")  # found before 30 MB are fetched
    size_mb = sum(file.size_bytes for file in offer.files) / 1e6
    say(progress, f"fetching {offer.package} {offer.version} from {offer.suite} ({size_mb:.0f} MB)")
    debs, unpacked = folder / "debs", folder / "unpacked"
    debs.mkdir()
    packages = apt.download(offer.files, debs)
    say(progress, f"unpacking {offer.package}")
    for package in packages:
        run([dpkg, "-x", package, unpacked], timeout_s=_UNPACK_TIMEOUT_S)
    release = offer.release
    trees = [unpacked / "lib/modules" / release, unpacked / "usr/lib/modules" / release]
    tree = next((t for t in trees if (t / "kernel").is_dir()), None)
    if tree is None:
        raise MachineryError(f"{offer.package} has no modules in lib/modules/{release}: a package layout not known yet")
    for name in ("vmlinuz", "config"):
        places = [unpacked / "boot" / f"{name}-{release}", *(t / name for t in trees)]
        place = next((p for p in places if p.is_file()), None)
        if place is None:
            raise MachineryError(f"{offer.package} has no {name}: a package layout not known yet")
        place.rename(folder / name)
    (folder / "lib/modules").mkdir(parents=True)
    tree.rename(folder / "lib/modules" / release)
    (folder / "usr").symlink_to(".")  # some builds of depmod look below usr/lib, others below lib
    shutil.rmtree(unpacked)
    shutil.rmtree(debs)
    run([depmod, "-b", folder, release], timeout_s=_UNPACK_TIMEOUT_S)
    cache.write_note(folder / "offer.json", {**asdict(offer), "cached": True, "files": []})
