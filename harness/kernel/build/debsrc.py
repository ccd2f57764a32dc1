"""Debian's kernel source (``debsrc:6.12``, ``debsrc:6.12@trixie``): fetched and unpacked, never installed."""

from __future__ import annotations

import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.archive import apt
from harness.archive.apt import MirrorError
from harness.archive.offers import SourceOffer
from harness.archive.versions import check_wanted, choose, is_exact, newest_of_each_series, series_of
from harness.errors import MachineryError, UsageError
from harness.host import cache
from harness.host.cache import Progress, say
from harness.host.process import find_program, run
from harness.kernel.build.slot import Slot

_REPEAT_S = 600.0  # if the index is younger than this and lacks a version, the mirror is not asked again
_UNPACK_TIMEOUT_S = 1800.0
_ROOM_BYTES = 4_000_000_000  # the package, the source (1.5 GB unpacked, 0.35 GB as git objects), and the built objects


@dataclass(frozen=True)
class DebsrcOrigin:
    """A linux-source package of the mirror: the newest one that matches."""

    version: str
    suite: str | None = None

    @classmethod
    def parse(cls, text: str) -> DebsrcOrigin:
        """Parse ``VERSION[@SUITE]``.

        :raises UsageError: text has another form.
        """
        match = re.fullmatch(r"([^@]+)(?:@([a-z][a-z0-9-]*))?", text)
        if match is None:
            raise UsageError(f"debsrc:{text} is not understood; expected debsrc:VERSION or debsrc:VERSION@SUITE")
        return cls(check_wanted(match[1]), match[2])

    @property
    def spec(self) -> str:
        """The canonical string of this origin."""
        return f"debsrc:{self.version}" + (f"@{self.suite}" if self.suite else "")

    @property
    def slot(self) -> Slot:
        """The slot: one per series, so that building its next stable release is incremental."""
        return Slot(f"debsrc-{series_of(self.version)}")

    def tree(self, progress: Progress | None, offline: bool) -> str:
        """The id of its tree, which is fetched and unpacked the first time.

        :raises UsageError: the mirror has no such source.
        :raises MachineryError: the source is not cached and cannot be fetched.
        """
        slot = self.slot
        note = cache.root() / "resolved" / f"{self.spec.replace(':', '_')}.json"
        known = cache.read_note(note)
        fresh = known and (0 <= time.time() - known["at"] < apt.INDEX_TTL_S or is_exact(self.version))
        if known and fresh and (tree := _imported(slot, known["version"])) is not None:
            return tree
        offer = self._find(progress, offline)
        if isinstance(offer, str):
            return offer
        with cache.locked(f"builds.{slot.name}.import", f"fetches {offer.package}", progress):
            tree = _imported(slot, offer.version)
            if tree is None:
                tree = _import(slot, offer, progress)
        cache.write_note(note, {"version": offer.version, "at": time.time()})
        return tree

    def _find(self, progress: Progress | None, offline: bool) -> SourceOffer | str:
        """The mirror's offer; if the mirror does not answer, the tree of the newest cached source."""
        index = apt.load_index()
        stale = index is None or index.age_s > apt.INDEX_TTL_S
        if index is None or stale or (index.age_s > _REPEAT_S and self._choose(index.sources) is None):
            try:
                if offline:
                    raise MirrorError("offline")
                index = apt.refresh([self.suite] if self.suite else (), progress)
            except MirrorError as error:
                offers = [o for o in (index.sources if index else ()) if _imported(self.slot, o.version)]
                offer = self._choose(offers)
                tree = _imported(self.slot, offer.version) if offer else None
                if offer is None or tree is None:
                    raise MachineryError(f"{self.spec} is not here and cannot be fetched ({error})") from error
                say(progress, f"{error}; using {offer.package} {offer.version}, which is here")
                return tree
        found = self._choose(index.sources)
        if found is not None:
            return found
        have = ", ".join(o.upstream for o in newest_of_each_series(index.sources)) or "none at all"
        raise UsageError(f"{self.spec}: no such source; the mirror has (newest of each series) {have}")

    def _choose(self, offers: Sequence[SourceOffer]) -> SourceOffer | None:
        return choose([o for o in offers if self.suite in (None, o.suite)], self.version, "0")


def _imported(slot: Slot, version: str) -> str | None:
    """The tree of a version, if it was unpacked before."""
    known = cache.read_note(slot.folder / "versions.json") or {}
    tree = known.get(version)
    return tree if isinstance(tree, str) and slot.has_tree(tree) else None


def _import(slot: Slot, offer: SourceOffer, progress: Progress | None) -> str:
    """Fetch a package and add its source as a tree to the slot's repository."""
    dpkg, tar = find_program("dpkg-deb", "dpkg"), find_program("tar", "tar")
    find_program("xz", "xz-utils")
    slot.create()
    free = shutil.disk_usage(slot.folder).free
    if free < _ROOM_BYTES:
        raise MachineryError(
            f"no room left in {slot.folder}: {free >> 20} MiB free, {_ROOM_BYTES >> 20} MiB needed to build "
            f"{offer.package}; free some, or set HUGEPFN_CACHE_DIR elsewhere"
        )
    with cache.room_errors(slot.folder):
        for leftover in slot.folder.glob("import.*"):
            shutil.rmtree(leftover, ignore_errors=True)  # left by an interrupted import; we hold the lock
        with tempfile.TemporaryDirectory(prefix="import.", dir=slot.folder) as scratch:
            folder = Path(scratch)
            say(progress, f"fetching {offer.package} {offer.version} ({offer.file.size_bytes / 1e6:.0f} MB)")
            (package,) = apt.download([offer.file], folder)
            say(progress, f"unpacking {offer.package}, once")
            run([dpkg, "-x", package, folder / "package"], timeout_s=_UNPACK_TIMEOUT_S)
            tarball, source = folder / "package" / offer.tarball, folder / "source"
            if not tarball.is_file():
                raise MachineryError(f"{offer.package} has no {offer.tarball}: a package layout not known yet")
            source.mkdir()
            run([tar, "-xJf", tarball, "-C", source, "--strip-components=1"], timeout_s=_UNPACK_TIMEOUT_S)
            tree = slot.add_folder(source, folder / "index", ignored=True)
        versions = cache.read_note(slot.folder / "versions.json") or {}
        cache.write_note(slot.folder / "versions.json", {**versions, offer.version: tree})
    return tree
