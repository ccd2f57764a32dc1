"""A kernel that is present on this host: its image, release, modules and configuration."""

from __future__ import annotations

import enum
import gzip
import mmap
import re
import struct
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import BinaryIO

from harness.errors import MachineryError, UsageError
from harness.host import cache
from harness.kernel.identity import Stamp, content_key, stamp_of
from harness.kernel.kconfig import Kconfig
from harness.printable import printable

_EXPECTED = "expected an x86-64 bzImage or vmlinux"

# Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
_BOOT_FLAG, _HEADER, _PROTOCOL, _VERSION_POINTER, _XLOADFLAGS = 0x1FE, 0x202, 0x206, 0x20E, 0x236
_SETUP_SECTS, _SYSSIZE = 0x1F1, 0x1F4
_SETUP_START = 0x200  # kernel_version counts from the end of the boot sector
_XLF_KERNEL_64 = 1
_SETUP_MAX_BYTES = 0x200 + 0x10000  # kernel_version is 16 bits wide, so nothing that we read is beyond this

_ET_REL, _ET_EXEC, _ET_DYN, _ET_CORE = 1, 2, 3, 4
_EM_X86_64 = 62
_BANNER = re.compile(rb"Linux version (\d+\.\d+[^\s\0]*) \(")  # init/version.c linux_banner
_IKCONFIG = re.compile(rb"IKCFG_ST(\x1f\x8b.*?)IKCFG_ED", re.DOTALL)  # kernel/configs.c

_MAGICS: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "a gzip file"),
    (b"\xfd7zXZ\0", "an xz file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"!<arch>\ndebian-binary", "a Debian package"),
    (b"!<arch>\n", "an ar archive"),
    (b"070701", "a cpio archive"),
    (b"QFI\xfb", "a qcow2 disk image"),
    (b"PK\x03\x04", "a zip file"),
    (b"#!", "a script"),
    (b"MZ", "an EFI program without a Linux boot header"),
)


class ImageKind(enum.Enum):
    """How QEMU's ``-kernel`` starts it."""

    BZIMAGE = "bzImage"  # the x86 boot protocol
    VMLINUX = "vmlinux"  # ELF, through PVH (CONFIG_PVH)


@dataclass(frozen=True)
class KernelImage:
    """A kernel that can be booted, with everything that other rooms need to know about it."""

    spec: str  # what the user asked for, in canonical form: "debian:6.12", "./bzImage"
    image: Path  # absolute
    kind: ImageKind
    release: str  # what uname -r prints in the guest
    modules_dir: Path | None  # .../lib/modules/RELEASE, absolute; None if no modules were given
    config: Kconfig | None  # None if it was not found beside the image
    stamp: Stamp | None = None  # of the image when it was opened
    tree: str | None = None  # id of the git tree of its source, which the slot has; None unless it was built here

    @property
    def config_hash(self) -> str | None:
        """Sha256 of the configuration's text, in hex; None if there is none."""
        return self.config.sha256 if self.config else None

    @cached_property
    def key(self) -> str:
        """Content identity in hex: the image's bytes and the listing of its modules; it changes when either does."""
        return content_key(self.image, self.modules_dir)

    def check_unchanged(self) -> None:
        """Check that the image is the one that was opened, after QEMU has read it.

        :raises MachineryError: it was replaced meanwhile, so :attr:`key` and the rest may describe another kernel.
        """
        try:
            same = self.stamp is None or stamp_of(self.image) == self.stamp
        except OSError:
            same = False
        if not same:
            raise MachineryError(
                f"{self.image} was replaced while it was in use, so it is not known which kernel booted; run again "
                "when `make` has finished"
            )


def open_image(
    path: Path, *, spec: str | None = None, modules: Path | None = None, config: Path | None = None
) -> KernelImage:
    """Recognise a kernel file.

    :param path: a bzImage or an uncompressed vmlinux.
    :param modules: ``/lib/modules/RELEASE``, or a root with ``lib/modules/RELEASE`` in it.
    :param config: its configuration; searched for beside the image if None.
    :raises UsageError: the file is missing or not an x86-64 kernel, or the modules belong to another release.
    """
    path = path.expanduser().absolute()
    cache.use_path(path)
    stamp = stamp_of(path) if path.exists() else None  # before anything is read
    kind, release, embedded = _recognise(path)
    modules_dir = find_modules_dir(modules, release) if modules is not None else None
    found = config or _config_beside(path, release, modules_dir)
    try:
        kconfig = Kconfig(_text(found)) if found else embedded
    except OSError as error:
        raise UsageError(f"cannot read the kernel configuration {found}: {error.strerror or error}") from error
    return KernelImage(spec or str(path), path, kind, release, modules_dir, kconfig, stamp)


def _text(config: Path) -> str:
    """A configuration's text; /proc/config.gz is compressed."""
    data = config.read_bytes()
    return (gzip.decompress(data) if config.suffix == ".gz" else data).decode(errors="replace")


def find_modules_dir(directory: Path, release: str) -> Path:
    """The ``lib/modules/RELEASE`` folder that ``--modules DIR`` refers to.

    :raises UsageError: there is none for this release; lists the releases that are there.
    """
    directory = directory.expanduser().absolute()
    if not directory.is_dir():
        raise UsageError(f"--modules {directory}: no such directory")
    if directory.name == release and looks_like_modules(directory):
        return directory
    parents = [directory / "lib/modules", directory / "usr/lib/modules"]
    for parent in [*parents, directory]:
        if looks_like_modules(parent / release):
            return parent / release
    found = sorted({entry.name for p in parents if p.is_dir() for entry in p.iterdir() if looks_like_modules(entry)})
    if looks_like_modules(directory):
        found.append(directory.name)
    there = "has modules of " + ", ".join(found) if found else "has no modules"
    raise UsageError(f"--modules {directory}: the folder {there}, but the kernel's release is {release}")


def looks_like_modules(directory: Path) -> bool:
    """Whether a folder is a ``lib/modules/RELEASE``."""
    return any((directory / name).exists() for name in ("modules.dep", "modules.order", "modules.builtin", "kernel"))


def _recognise(path: Path) -> tuple[ImageKind, str, Kconfig | None]:
    try:
        with path.open("rb") as file:
            head = file.read(_SETUP_MAX_BYTES)
            if head[_HEADER : _HEADER + 4] == b"HdrS" and head[_BOOT_FLAG : _BOOT_FLAG + 2] == b"\x55\xaa":
                return ImageKind.BZIMAGE, _bzimage_release(path, head), None
            if head[:4] == b"\x7fELF":
                return _vmlinux(path, head, file)
    except FileNotFoundError:
        hint = f" (a Debian kernel is written debian:{path.name})" if re.fullmatch(r"\d+(\.\d+)+", path.name) else ""
        raise UsageError(f"{path}: no such file; {_EXPECTED}{hint}") from None
    except OSError as error:
        raise UsageError(f"cannot read the kernel {path}: {error.strerror}") from error
    raise UsageError(f"{path} is {_describe(head)}; {_EXPECTED}")


def _bzimage_release(path: Path, head: bytes) -> str:
    """The first word of the version string that the header points to (arch/x86/boot/version.c)."""
    if len(head) < _XLOADFLAGS + 2:
        raise UsageError(f"{path} is a bzImage that is truncated after {len(head)} bytes; {_EXPECTED}")
    protocol, pointer = (
        struct.unpack_from("<H", head, _PROTOCOL)[0],
        struct.unpack_from("<H", head, _VERSION_POINTER)[0],
    )
    xloadflags = struct.unpack_from("<H", head, _XLOADFLAGS)[0]
    if protocol < 0x20C or not xloadflags & _XLF_KERNEL_64:
        raise UsageError(f"{path} is a 32-bit bzImage; {_EXPECTED}")
    sectors, paragraphs = head[_SETUP_SECTS] or 4, struct.unpack_from("<I", head, _SYSSIZE)[0]
    size_bytes, announced_bytes = path.stat().st_size, (sectors + 1) * 512 + paragraphs * 16
    if paragraphs and size_bytes < announced_bytes:
        raise UsageError(
            f"{path} is a bzImage that is truncated after {size_bytes} bytes: its header announces {announced_bytes}; "
            "copy or build it again"
        )
    text = head[_SETUP_START + pointer :].split(b"\0", 1)[0] if pointer else b""
    words = printable(text).split()
    if not words or not words[0][0].isdigit():
        raise UsageError(f"{path} is a bzImage without a version string (header field kernel_version); {_EXPECTED}")
    return words[0]


def _vmlinux(path: Path, head: bytes, file: BinaryIO) -> tuple[ImageKind, str, Kconfig | None]:
    if len(head) < 64:
        raise UsageError(f"{path} is an ELF file that is truncated after {len(head)} bytes; {_EXPECTED}")
    elf_type, machine = struct.unpack_from("<HH", head, 16)
    if head[4:6] != b"\x02\x01" or machine != _EM_X86_64:
        raise UsageError(f"{path} is an ELF file of another architecture (machine {machine}); {_EXPECTED}")
    if elf_type != _ET_EXEC:
        what = {_ET_REL: "an object file or a module", _ET_DYN: "a program or shared library", _ET_CORE: "a core dump"}
        raise UsageError(f"{path} is {what.get(elf_type, 'an unknown ELF file')}; {_EXPECTED}")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        banner = _BANNER.search(data)
        if banner is None:
            raise UsageError(f"{path} is an ELF program without the words 'Linux version'; {_EXPECTED}")
        embedded = _IKCONFIG.search(data)
        config = Kconfig(gzip.decompress(embedded[1]).decode(errors="replace")) if embedded else None
        return ImageKind.VMLINUX, printable(banner[1]), config


def _config_beside(image: Path, release: str, modules_dir: Path | None) -> Path | None:
    """Look for the configuration in the usual places: Debian's /boot, Debian 7.x's modules folder, a build tree."""
    places = [image.parent / f"config-{release}"]
    if modules_dir is not None:
        places += [
            modules_dir / "config",
            modules_dir / "build/.config",
            modules_dir.parents[2] / f"boot/config-{release}",
        ]
    places += [image.parent / "config", image.parent / ".config"]
    if image.parts[-4:-1] == ("arch", "x86", "boot"):
        places.append(image.parents[3] / ".config")
    return next((place for place in places if place.is_file()), None)


def _describe(head: bytes) -> str:
    if not head:
        return "an empty file"
    for magic, what in _MAGICS:
        if head.startswith(magic):
            return what
    printable = sum(byte in b"\t\n\r" or 32 <= byte < 127 for byte in head[:512])
    return "a text file" if printable == len(head[:512]) else "no kernel"
