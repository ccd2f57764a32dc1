"""Extracts the vmlinux from a bzImage. Under TCG, decompression takes a fifth of a stock kernel's boot."""

from __future__ import annotations

import lzma
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import zstandard

from harness.host import cache
from harness.kernel.image import ImageKind, KernelImage

# Documentation/arch/x86/boot.rst: setup_sects, payload_offset and payload_length of the real-mode header.
_SETUP_SECTS, _PAYLOAD = 0x1F1, 0x248
_SECTOR_BYTES = 512
_UNPACKERS: tuple[tuple[bytes, Callable[[bytes], bytes]], ...] = (
    (b"\x28\xb5\x2f\xfd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
    (b"\xfd7zXZ\0", lambda data: lzma.LZMADecompressor(lzma.FORMAT_XZ).decompress(data)),
    (b"\x1f\x8b", lambda data: zlib.decompressobj(31).decompress(data)),
    (b"\x5d\0\0", lambda data: lzma.LZMADecompressor(lzma.FORMAT_ALONE).decompress(data)),
)


def unpack(bzimage: bytes) -> bytes | None:
    """The ELF inside a bzImage; None if its compression is not supported (bzip2, lzo, lz4), or it is broken."""
    setup_bytes = ((bzimage[_SETUP_SECTS] or 4) + 1) * _SECTOR_BYTES
    offset, length = struct.unpack_from("<II", bzimage, _PAYLOAD)
    payload = bzimage[setup_bytes + offset : setup_bytes + offset + length]
    for magic, unpacker in _UNPACKERS:
        if payload.startswith(magic):
            try:
                elf = unpacker(payload)  # ignores the 4 bytes after the stream, which are its size
            except (zstandard.ZstdError, lzma.LZMAError, zlib.error):
                return None
            return elf if elf.startswith(b"\x7fELF") else None
    return None


def unpacked(image: KernelImage) -> Path | None:
    """The vmlinux of a bzImage that can start through PVH, from the cache; None if there is none.

    A kernel that starts like this has neither KASLR nor five-level tables, because the code that enables them is in the
    part that is skipped (arch/x86/boot/compressed). So this is only done on request.
    """
    if image.kind is not ImageKind.BZIMAGE or image.config is None or not image.config.is_builtin("PVH"):
        return None

    def build(folder: Path) -> None:
        elf = unpack(image.image.read_bytes())
        (folder / "vmlinux").write_bytes(elf or b"")

    vmlinux = cache.obtain("vmlinux", image.key[:32], build) / "vmlinux"
    return vmlinux if vmlinux.stat().st_size else None
