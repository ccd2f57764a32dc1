"""The guest's root: our init, the modules that scenarios need, and busybox for people. An uncompressed newc archive."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from virtme.cpiowriter import CpioWriter

from harness.guest.compiler import compile_init
from harness.guest.libraries import libraries
from harness.host import cache
from harness.host.cache_key import key_of
from harness.host.packages import find_command
from harness.host.process import run
from harness.kernel import KernelImage, load_order
from harness.kernel import read as read_module

#: The modules that vfio-pci depends on come from modules.dep; built-in ones are skipped.
MODULES = ("virtio_pci", "virtio_console", "vfio_iommu_type1", "vfio_pci")
_FORMAT = 3  # version of the archive's layout
_FILE = "initramfs.cpio"
_FOLDERS = ("bin", "dev", "proc", "run", "sys", "tests", "tmp", "modules")


def build_initramfs(kernel: KernelImage, extra_modules: Sequence[str] = ()) -> Path:
    """The initramfs for ``kernel``, from the cache if nothing in it has changed.

    Modules that this kernel has neither as files nor built in are left out. The guest reports them as missing when they
    are needed.
    """
    init = compile_init()
    order = load_order(kernel, (*MODULES, *extra_modules))
    busybox = find_command("busybox")
    modules = " ".join(module.name for module in order.modules)
    parts = {"format": str(_FORMAT), "init": str(init.stripped), "kernel": kernel.key, "modules": modules}
    if busybox:
        stat = Path(busybox).stat()
        parts["busybox"] = f"{stat.st_size} {stat.st_mtime_ns}"
    key = key_of("initramfs", parts)

    def build(folder: Path) -> None:
        modules = [(f"{module.name}.ko", read_module(module)) for module in order.modules]
        archive = _archive(init.read(), modules, Path(busybox) if busybox else None)
        (folder / _FILE).write_bytes(archive)

    return cache.obtain("initramfs", key, build, summed=(_FILE,)) / _FILE


def _archive(init: bytes, modules: Sequence[tuple[str, bytes]], busybox: Path | None) -> bytes:
    """The archive's bytes. For init, /modules/order lists the modules in the order for insmod."""
    buffer = io.BytesIO()
    writer = CpioWriter(buffer)
    for folder in _FOLDERS:
        writer.mkdir(folder.encode(), 0o755)
    writer.mkchardev(b"dev/console", (5, 1), 0o600)
    writer.write_file(b"init", init, 0o755)
    for name, body in modules:
        writer.write_file(f"modules/{name}".encode(), body, 0o644)
    writer.write_file(b"modules/order", "".join(f"{name}\n" for name, _ in modules).encode(), 0o644)
    if busybox is not None:
        writer.write_file(b"bin/busybox", busybox.read_bytes(), 0o755)
        _write_libraries(writer, libraries(busybox))
        listed = run([busybox, "--list"], timeout_s=10)
        for applet in sorted({"sh", *listed.stdout.decode().split()} - {"busybox"}):
            writer.symlink(b"busybox", f"bin/{applet}".encode())
    writer.write_trailer()
    return buffer.getvalue()


def _write_libraries(writer: CpioWriter, paths: Sequence[Path]) -> None:
    """The libraries that a dynamically linked busybox (Debian's package busybox) needs, at the host's paths."""
    folders = {folder for path in paths for folder in path.parents if folder.name}
    for folder in sorted(folders, key=lambda path: len(path.parts)):
        writer.mkdir(str(folder).lstrip("/").encode(), 0o755)
    for path in paths:
        writer.write_file(str(path).lstrip("/").encode(), path.read_bytes(), 0o755)
