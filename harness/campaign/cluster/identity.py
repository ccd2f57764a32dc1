"""What a machine has to have in common with the one that sends it units, so that their results mean the same."""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import sys
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from harness.errors import HugepfnError
from harness.guest.compiler import guest_tests_dir
from harness.qemu.binary import find_qemu


@dataclass(frozen=True)
class Identity:
    """The versions of a machine, in words."""

    hugepfn: str
    """With a digest of its files: "0.1.0 (1a2b3c4d)"."""
    qemu: str
    python: str
    """"3.11": the patch level makes no difference."""

    @property
    def resource(self) -> str:
        """The resource that a worker with this identity offers, and a unit asks for."""
        return f"hugepfn-{hashlib.sha256(repr(astuple(self)).encode()).hexdigest()[:12]}"

    def differences(self, other: Identity) -> str:
        """Say in one line what another machine has instead; "" if there is no difference."""
        pairs = ((one.name, getattr(self, one.name), getattr(other, one.name)) for one in fields(self))
        shown = {"hugepfn": "hugepfn", "qemu": "QEMU", "python": "Python"}
        return ", ".join(f"{shown[name]} {theirs} instead of {ours}" for name, ours, theirs in pairs if ours != theirs)


def identity_of(qemu: str | None) -> Identity:
    """Return the identity of this machine.

    :param qemu: which QEMU was asked for; None for the one in PATH.
    """
    try:
        version = find_qemu(qemu).version
    except HugepfnError as error:
        version = f"none ({error})"
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Identity(f"{importlib.metadata.version('hugepfn')} ({_digest()})", version, python)


@functools.cache
def _digest() -> str:
    """A digest of everything that is run: two checkouts of one version differ."""
    whole = hashlib.sha256()
    for folder in (Path(__file__).resolve().parents[2], guest_tests_dir()):
        for path in sorted(folder.rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                whole.update(f"{path.relative_to(folder.parent)}\0".encode() + path.read_bytes())
    return whole.hexdigest()[:8]
