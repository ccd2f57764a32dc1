"""The kernel specs that users write: ``debian:6.12@trixie-backports``, ``host``, a path, ``tree:~/linux+fix.patch``.

A new kind is one class with ``spec`` and ``resolve`` and one line in ``_SCHEMES``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.archive import apt
from harness.errors import MachineryError, UsageError
from harness.events import Say
from harness.host.packages import distribution, find_command
from harness.kernel.debian import DebianSource
from harness.kernel.folder import HostSource, open_folder
from harness.kernel.image import KernelImage, open_image
from harness.kernel.shipped import ShippedSource


class Source(Protocol):
    """The source of a kernel."""

    @property
    def spec(self) -> str:
        """The canonical string: parsing it gives an equal source."""
        ...

    def resolve(self, say: Say | None, offline: bool) -> KernelImage:
        """Get the kernel onto this host."""
        ...


@dataclass(frozen=True)
class ImageSource:
    """A kernel file that the user names, or a folder that contains one."""

    path: Path
    modules: Path | None = None

    @property
    def spec(self) -> str:
        """The path as given."""
        return str(self.path)

    def resolve(self, say: Say | None, offline: bool) -> KernelImage:  # noqa: ARG002 - Source's signature
        """Recognise the file or the folder.

        :raises UsageError: it is missing or not a kernel, or the modules do not fit.
        """
        if self.path.expanduser().is_dir():
            return open_folder(self.path, spec=self.spec, modules=self.modules)
        return open_image(self.path, spec=self.spec, modules=self.modules)


def _built(text: str) -> Source:
    from harness.kernel.build import BuiltSource  # what builds takes 30 ms to import

    return BuiltSource.parse(text)


_SCHEMES: dict[str, Callable[[str], Source]] = {
    "debian": DebianSource.parse,
    "debsrc": _built,
    "host": HostSource.parse,
    "shipped": ShippedSource.parse,
    "tree": _built,
}
_UNDERSTOOD = (
    "debian[:VERSION[@SUITE]], host, the path of a bzImage, a vmlinux or a folder with one, or, to build, "
    "debsrc:VERSION[@SUITE][+PATCH...] or tree:PATH[@REVISION][+PATCH...]"
)


@dataclass(frozen=True)
class Kernel:
    """A requested kernel. A value: nothing is looked up before :meth:`resolve`."""

    source: Source

    @classmethod
    def debian(cls, version: str | None = None, suite: str | None = None) -> Kernel:
        """A stock Debian cloud kernel from the host's own mirror.

        :param version: "6.12" for the newest 6.12.*, "6.12.95" for that upstream version; None for the newest release
            at or above 6.12 (no rc) in any suite of the mirror.
        :param suite: search only this suite, "trixie-backports".
        :raises UsageError: not a version, or not the name of a suite.
        """
        return cls(DebianSource.of(version, suite))

    @classmethod
    def image(cls, path: Path | str, modules: Path | str | None = None) -> Kernel:
        """A bzImage, a vmlinux or a build tree, and the folder of its modules."""
        return cls(ImageSource(Path(path), Path(modules) if modules is not None else None))

    @classmethod
    def parse(cls, text: str, modules: Path | str | None = None) -> Kernel:
        """Parse a kernel as written on the command line.

        :param modules: ``--modules DIR``; only with a path.
        :raises UsageError: an unknown kind of kernel; lists the known ones.
        """
        scheme = re.match(r"([A-Za-z][\w+.-]*)(?=:|@|$)", text)
        if scheme and scheme[1] in _SCHEMES:
            if modules is not None:
                raise UsageError(f"--modules is only for the path of a kernel; {text} has its own modules")
            return cls(_SCHEMES[scheme[1]](text))
        if not text or (scheme and text[scheme.end() :].startswith(":")):
            raise UsageError(f"there is no kernel {text!r}; expected {_UNDERSTOOD}")
        return cls.image(text, modules)

    @property
    def spec(self) -> str:
        """The canonical string of this kernel."""
        return self.source.spec

    def resolve(self, say: Say | None = None, offline: bool = False) -> KernelImage:
        """Get the kernel onto this host: fetch, unpack, recognise; immediate if it is cached.

        :param say: called with one line at a time; None for silence.
        :param offline: never ask the mirror.
        :raises UsageError: there is no such kernel.
        :raises MachineryError: the mirror or this host failed.
        """
        return self.source.resolve(say, offline)

    def __str__(self) -> str:
        return self.spec


def default_kernel() -> Kernel:
    """The kernel that is used by default: the newest of the Debian mirror, or the host's own if there is no mirror."""
    if find_command("apt-get") is None:
        return Kernel(HostSource())
    if distribution() != "debian":  # Ubuntu has apt, too
        try:
            apt.mirror_sources()
        except MachineryError:
            return Kernel(HostSource())
    return Kernel.debian()
