"""Finds the vmlinux of a kernel, the ELF file with its symbols, for gdb, drgn, and symbols that kallsyms leaves out."""

from __future__ import annotations

import mmap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from harness.errors import MachineryError
from harness.kernel.elf import Elf
from harness.kernel.image import ImageKind, KernelImage


@dataclass(frozen=True)
class Vmlinux:
    """A vmlinux with symbols."""

    path: Path
    symbols: dict[str, int]  # linked addresses, without KASLR
    has_dwarf: bool
    build_id: bytes | None


def find_vmlinux(kernel: KernelImage, running: bytes | None) -> Vmlinux | None:
    """Find the vmlinux of a kernel: the image itself, in its build tree, beside its modules, or in a debug package.

    :param running: build ID of the running kernel; a file of another build is ignored. None if it is not known.
    :returns: None if there is none with symbols.
    """
    for path in _places(kernel):
        if path.is_file() and (found := _open(path)) is not None and running in (None, found.build_id):
            return found
    return None


def _places(kernel: KernelImage) -> Iterable[Path]:
    if kernel.kind is ImageKind.VMLINUX:
        yield kernel.image
    if kernel.image.parts[-4:-1] == ("arch", "x86", "boot"):
        yield kernel.image.parents[3] / "vmlinux"
    yield kernel.image.parent / "vmlinux"
    if kernel.modules_dir is not None:
        yield kernel.modules_dir / "build/vmlinux"
    yield Path(f"/usr/lib/debug/boot/vmlinux-{kernel.release}")


def _open(path: Path) -> Vmlinux | None:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            elf = Elf(data, str(path))
            symbols = elf.symbols()
        except MachineryError:
            return None
        if "_text" not in symbols:
            return None
        return Vmlinux(path, symbols, elf.has_section(".debug_info"), elf.build_id())
