"""Kernels of another machine (``shipped:DIGEST:SPEC``), which are in this one's cache under a name of their content.

Only hugepfn itself writes such a spec, for a unit of a campaign that runs elsewhere (harness/campaign/cluster).
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path

from harness.errors import MachineryError, UsageError
from harness.events import Say
from harness.host import cache, parcel
from harness.kernel.image import KernelImage, open_image
from harness.kernel.offsets import OFFSETS_FILE

_KIND = "shipped"
_KEPT = 64  # as many as kernels that were built here
_NOTE = "shipped.json"
_BESIDE = ("System.map", OFFSETS_FILE)


@dataclass(frozen=True)
class ShippedSource:
    """A kernel that was sent here."""

    digest: str
    named: str
    """The spec of the kernel where it comes from, which results and messages have."""

    @classmethod
    def parse(cls, text: str) -> ShippedSource:
        """Parse ``shipped:DIGEST:SPEC``.

        :raises UsageError: text has another form.
        """
        _, digest, named = (*text.split(":", 2), "", "")[:3]
        if not digest or not named:
            raise UsageError(f"{text!r} is no kernel; expected shipped:DIGEST:SPEC, which hugepfn itself writes")
        return cls(digest, named)

    @property
    def spec(self) -> str:
        """The canonical string of this source."""
        return f"shipped:{self.digest}:{self.named}"

    def resolve(self, say: Say | None, offline: bool) -> KernelImage:  # noqa: ARG002 - Source's signature
        """Open it.

        :raises MachineryError: it is not in this cache.
        """
        entry = cache.find(_KIND, self.digest, say)
        if entry is None:
            raise MachineryError(f"{self.named} was not sent to this machine, or is no longer in its cache; run again")
        image = next(path for path in (entry / "vmlinuz", entry / "vmlinux") if path.is_file())
        modules = entry if (entry / "lib/modules").is_dir() else None
        config = entry / "config" if (entry / "config").is_file() else None
        note = cache.read_note(entry / _NOTE) or {}
        return replace(open_image(image, spec=self.named, modules=modules, config=config), tree=note.get("tree"))


def digest_of(image: KernelImage) -> str:
    """Return the name of a kernel by its content: image, modules, configuration, and the tree of its source."""
    parts = (image.key, image.config_hash or "", image.tree or "")
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def pack(image: KernelImage) -> bytes:
    """Put a kernel into a parcel: image, configuration, modules and offsets, but no debug information of a build tree.

    :raises UsageError: a file of it cannot be read.
    """
    name = "vmlinux" if image.kind.value == "vmlinux" else "vmlinuz"
    files: dict[str, Path | bytes] = {name: image.image, _NOTE: json.dumps({"tree": image.tree}).encode()}
    files |= {beside: image.image.with_name(beside) for beside in _BESIDE if image.image.with_name(beside).is_file()}
    if image.config is not None:
        files["config"] = image.config.text.encode()
    if image.modules_dir is not None:
        files |= parcel.files_below(image.modules_dir, f"lib/modules/{image.release}/")
    return parcel.pack(files)


def has(digest: str) -> bool:
    """Whether a kernel is in the cache."""
    return cache.has(_KIND, digest)


def keep(digest: str, packed: bytes) -> None:
    """Put a kernel from a parcel into the cache."""
    cache.obtain(_KIND, digest, lambda folder: parcel.unpack(packed, folder))
    cache.prune(_KIND, _KEPT)
