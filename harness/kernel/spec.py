"""What a user writes for a kernel: ``debian:6.12@trixie-backports``, ``host``, a path, ``tree:~/linux+fix.patch``.

A new kind is one class with ``spec`` and ``resolve`` and one line in ``_SCHEMES``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.cache import Progress
from harness.errors import MachineryError, UsageError
from harness.kernel import apt
from harness.kernel.build import BuiltSource
from harness.kernel.debian import DebianSource
from harness.kernel.folder import HostSource, open_folder
from harness.kernel.image import KernelImage, open_image
from harness.packages import distribution, find_command


class Source(Protocol):
    """Where a kernel comes from."""

    @property
    def spec(self) -> str:
        """The canonical string: parsing it gives this source again."""
        ...

    def resolve(self, progress: Progress | None, offline: bool) -> KernelImage:
        """Get the kernel onto this machine."""
        ...


@dataclass(frozen=True)
class ImageSource:
    """A kernel file of the user's own, or a folder that has one."""

    path: Path
    modules: Path | None = None

    @property
    def spec(self) -> str:
        """The path as given."""
        return str(self.path)

    def resolve(self, progress: Progress | None, offline: bool) -> KernelImage:  # noqa: ARG002 - Source's signature
        """Recognise the file or the folder.

        :raises UsageError: missing, or no kernel, or the modules do not fit.
        """
        if self.path.expanduser().is_dir():
            return open_folder(self.path, spec=self.spec, modules=self.modules)
        return open_image(self.path, spec=self.spec, modules=self.modules)


_SCHEMES: dict[str, Callable[[str], Source]] = {
    "debian": DebianSource.parse,
    "debsrc": BuiltSource.parse,
    "host": HostSource.parse,
    "tree": BuiltSource.parse,
}
_UNDERSTOOD = (
    "debian[:VERSION[@SUITE]], host, the path of a bzImage, a vmlinux or a folder with one, or, to build, "
    "debsrc:VERSION[@SUITE][+PATCH...] or tree:PATH[@REVISION][+PATCH...]"
)


@dataclass(frozen=True)
class Kernel:
    """A kernel somebody asks for. A value: nothing is looked up before :meth:`resolve`."""

    source: Source

    @classmethod
    def debian(cls, version: str | None = None, suite: str | None = None) -> Kernel:
        """A stock Debian cloud kernel from the machine's own mirror.

        :param version: "6.12" the newest 6.12.*, "6.12.95" that upstream version; None: the newest release at or
            above 6.12 (no rc) of any suite of the mirror.
        :param suite: only this suite, "trixie-backports".
        :raises UsageError: not a version, not a suite's name.
        """
        return cls(DebianSource.of(version, suite))

    @classmethod
    def image(cls, path: Path | str, modules: Path | str | None = None) -> Kernel:
        """A bzImage, a vmlinux or a build tree of one's own, and the folder of its modules."""
        return cls(ImageSource(Path(path), Path(modules) if modules is not None else None))

    @classmethod
    def parse(cls, text: str, modules: Path | str | None = None) -> Kernel:
        """A kernel as written on the command line.

        :param modules: ``--modules DIR``; only with a path.
        :raises UsageError: a kind that nobody knows; lists what is understood.
        """
        scheme = re.match(r"([A-Za-z][\w+.-]*)(?=:|@|$)", text)
        if scheme and scheme[1] in _SCHEMES:
            if modules is not None:
                raise UsageError(f"--modules goes with the path of a kernel; {text} brings its own")
            return cls(_SCHEMES[scheme[1]](text))
        if not text or (scheme and text[scheme.end() :].startswith(":")):
            raise UsageError(f"kernel {text!r} is not understood; expected {_UNDERSTOOD}")
        return cls.image(text, modules)

    @property
    def spec(self) -> str:
        """The canonical string of this kernel."""
        return self.source.spec

    def resolve(self, progress: Progress | None = None, offline: bool = False) -> KernelImage:
        """Get the kernel onto this machine: fetch, unpack, recognise; at once when it is cached.

        :param progress: called with one line at a time; None: silent.
        :param offline: never ask the mirror.
        :raises UsageError: there is no such kernel.
        :raises MachineryError: the mirror or this machine failed.
        """
        return self.source.resolve(progress, offline)

    def __str__(self) -> str:
        return self.spec


def default_kernel() -> Kernel:
    """What runs where nobody names a kernel: the Debian mirror's newest, or the host's own where there is no mirror."""
    if find_command("apt-get") is None:
        return Kernel(HostSource())
    if distribution() != "debian":  # Ubuntu has apt, too
        try:
            apt.mirror_sources()
        except MachineryError:
            return Kernel(HostSource())
    return Kernel.debian()
