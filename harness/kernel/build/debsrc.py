"""Debian's kernel source (``debsrc:6.12``, ``debsrc:6.12@trixie``): fetched and unpacked, never installed."""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from harness.archive import apt
from harness.archive.apt import MirrorError
from harness.archive.offers import SourceOffer
from harness.archive.request import Request
from harness.archive.versions import check_wanted, series_of
from harness.errors import MachineryError, UsageError
from harness.events import Fetching, Note, Say, tell
from harness.host import cache
from harness.host.process import find_program, run
from harness.kernel.build.slot import Slot

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
            raise UsageError(f"debsrc:{text} is not a Debian source; expected debsrc:VERSION or debsrc:VERSION@SUITE")
        return cls(check_wanted(match[1]), match[2])

    @property
    def spec(self) -> str:
        """The canonical string of this origin."""
        return f"debsrc:{self.version}" + (f"@{self.suite}" if self.suite else "")

    @property
    def slot(self) -> Slot:
        """The slot: one per series, so that building its next stable release is incremental."""
        return Slot(f"debsrc-{series_of(self.version)}")

    def tree(self, say: Say | None, offline: bool) -> str:
        """The id of its tree, which is fetched and unpacked the first time.

        :raises UsageError: the mirror has no such source.
        :raises MachineryError: the source is not cached and cannot be fetched.
        """
        slot, request = self.slot, Request(self.spec, self.version, self.suite)
        known = request.recall()
        if known and (tree := _imported(slot, known["version"])) is not None:
            return tree
        try:
            index, _ = request.index(lambda index: index.sources, say, offline)
        except MirrorError as error:
            return self._from_cache(error, say)
        offer = request.choose(index.sources)
        if offer is None:
            raise request.no_such("source", index, index.sources)
        with cache.locked(f"builds.{slot.name}.import", f"fetches {offer.package}", say):
            tree = _imported(slot, offer.version)
            if tree is None:
                tree = _import(slot, offer, say)
        request.remember({"version": offer.version})
        return tree

    def _from_cache(self, error: MirrorError, say: Say | None) -> str:
        """The tree of the newest source that was unpacked before.

        :raises MachineryError: there is none.
        """
        index = apt.load_index()
        here = [one for one in (index.sources if index else ()) if _imported(self.slot, one.version)]
        offer = Request(self.spec, self.version, self.suite).choose(here)
        tree = _imported(self.slot, offer.version) if offer else None
        if offer is None or tree is None:
            raise MachineryError(f"{self.spec} is not cached and cannot be fetched ({error})") from error
        tell(say, Note(f"{error}; using {offer.package} {offer.version} from the cache"))
        return tree


def _imported(slot: Slot, version: str) -> str | None:
    """The tree of a version, if it was unpacked before."""
    known = cache.read_note(slot.folder / "versions.json") or {}
    tree = known.get(version)
    return tree if isinstance(tree, str) and slot.has_tree(tree) else None


def _import(slot: Slot, offer: SourceOffer, say: Say | None) -> str:
    """Fetch a package and add its source as a tree to the slot's repository."""
    dpkg, tar = find_program("dpkg-deb", "dpkg"), find_program("tar", "tar")
    find_program("xz", "xz-utils")
    slot.create()
    free = shutil.disk_usage(slot.folder).free
    if free < _ROOM_BYTES:
        raise MachineryError(
            f"no space left in {slot.folder}: {free >> 20} MiB free, {_ROOM_BYTES >> 20} MiB needed to build "
            f"{offer.package}; free some, or set HUGEPFN_CACHE_DIR to a folder on another disk"
        )
    with cache.room_errors(slot.folder):
        for leftover in slot.folder.glob("import.*"):
            shutil.rmtree(leftover, ignore_errors=True)  # left by an interrupted import; we hold the lock
        with tempfile.TemporaryDirectory(prefix="import.", dir=slot.folder) as scratch:
            folder = Path(scratch)
            tell(say, Fetching(f"{offer.package} {offer.version}", offer.file.size_bytes))
            (package,) = apt.download([offer.file], folder)
            tell(say, Note(f"unpacking {offer.package} (only this once)"))
            run([dpkg, "-x", package, folder / "package"], timeout_s=_UNPACK_TIMEOUT_S)
            tarball, source = folder / "package" / offer.tarball, folder / "source"
            if not tarball.is_file():
                raise MachineryError(f"{offer.package} has an unknown layout: expected a file {offer.tarball}")
            source.mkdir()
            run([tar, "-xJf", tarball, "-C", source, "--strip-components=1"], timeout_s=_UNPACK_TIMEOUT_S)
            tree = slot.add_folder(source, folder / "index", ignored=True)
        versions = cache.read_note(slot.folder / "versions.json") or {}
        cache.write_note(slot.folder / "versions.json", {**versions, offer.version: tree})
    return tree
