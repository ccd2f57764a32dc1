"""Kernels given as a folder (a build tree, or vmlinuz, config and lib/modules side by side), and the running kernel."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.errors import UsageError
from harness.events import Say
from harness.host import cache
from harness.host.process import find_program, run
from harness.kernel.image import KernelImage, looks_like_modules, open_image

_BZIMAGE = "arch/x86/boot/bzImage"
_IMAGES = ("vmlinuz", "bzImage", "boot/vmlinuz", "vmlinuz-*", "boot/vmlinuz-*", "vmlinux")
_CONFIGS = ("config", ".config")
_MODULES = ("lib/modules", "usr/lib/modules")
_KIND = "staged"
_KEPT = 32  # folders of links, a few MB each
_DEPMOD_TIMEOUT_S = 300.0


def open_folder(folder: Path, *, spec: str | None = None, modules: Path | None = None) -> KernelImage:
    """Open the kernel in a folder: a build tree or its O= folder, or an image beside its configuration and
    lib/modules.

    Modules of a build tree are taken as they were built, without ``make modules_install``.

    :param modules: as for :func:`open_image`; used instead of the folder's own.
    :raises UsageError: there is no kernel in it, or more than one; says what was looked for.
    """
    folder = folder.expanduser().absolute()
    image = _built_image(folder)
    if image is not None:
        kernel = open_image(image, spec=spec, modules=modules, config=_config(folder))
        return kernel if modules is not None else _with_built_modules(kernel, folder)
    image = _plain_image(folder)
    own = any((folder / name).is_dir() for name in _MODULES) or looks_like_modules(folder)
    return open_image(image, spec=spec, modules=modules or (folder if own else None), config=_config(folder))


def _config(folder: Path) -> Path | None:
    """The configuration in the folder itself; open_image() searches the other places."""
    return next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)


def _built_image(folder: Path) -> Path | None:
    """The bzImage of a build tree, or its vmlinux if there is no bzImage; None if it is not a build tree.

    :raises UsageError: the bzImage is older than the vmlinux, and therefore another kernel.
    """
    bzimage, vmlinux = folder / _BZIMAGE, folder / "vmlinux"
    if not bzimage.is_file():
        return vmlinux if vmlinux.is_file() and (folder / ".config").is_file() else None
    if vmlinux.is_file() and vmlinux.stat().st_mtime_ns > bzimage.stat().st_mtime_ns:
        raise UsageError(
            f"{folder}: {_BZIMAGE} is older than vmlinux; run `make bzImage` there, or give the path of one of the two"
        )
    return bzimage


def _plain_image(folder: Path) -> Path:
    for pattern in _IMAGES:
        found = sorted(path for path in folder.glob(pattern) if path.is_file())
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise UsageError(f"{folder} has several kernels: {names}; give the path of one of them")
        if found:
            return found[0]
    hint = f"; it is a kernel source: build it, or use tree:{folder}" if (folder / "Kconfig").is_file() else ""
    raise UsageError(f"{folder} has no kernel: expected one of {', '.join((_BZIMAGE, *_IMAGES))} in it{hint}")


def _with_built_modules(kernel: KernelImage, folder: Path) -> KernelImage:
    files = dict(_built_modules(folder))
    if not files:
        return kernel
    stats = ((name, path, path.stat()) for name, path in files.items())
    listing = "\n".join(f"{name} {path} {stat.st_size} {stat.st_mtime_ns}" for name, path, stat in stats)
    key = hashlib.sha256(f"{kernel.release}\n{listing}".encode(errors="surrogateescape")).hexdigest()[:32]

    def stage(entry: Path) -> None:
        """Make ``lib/modules/RELEASE`` with links to the files and depmod's tables."""
        depmod = find_program("depmod", "kmod")
        target = entry / "lib/modules" / kernel.release
        for name, path in files.items():
            link = target / "kernel" / name
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
        for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
            if (folder / name).is_file():
                (target / name).write_bytes((folder / name).read_bytes())
        (entry / "usr").symlink_to(".")  # some builds of depmod look below usr/lib, others below lib
        run([depmod, "-b", entry, kernel.release], timeout_s=_DEPMOD_TIMEOUT_S)

    entry = cache.obtain(_KIND, key, stage)
    cache.prune(_KIND, _KEPT)
    return open_image(kernel.image, spec=kernel.spec, modules=entry, config=_config(folder))


def _built_modules(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and files of the modules built in a tree, by modules.order (kernel/fs/x.ko, since 6.3 fs/x.o)."""
    try:
        lines = (folder / "modules.order").read_text(errors="surrogateescape").split()
    except FileNotFoundError:
        return
    for line in lines:
        for name in (line.removeprefix("kernel/"), line):
            path = (folder / name).with_suffix(".ko")
            if path.is_file():
                yield str(path.relative_to(folder)), path
                break


@dataclass(frozen=True)
class HostSource:
    """The kernel that runs on this host, with its modules and its configuration."""

    root: Path = Path("/")
    release: str = os.uname().release

    @classmethod
    def parse(cls, text: str) -> HostSource:
        """Parse ``host``.

        :raises UsageError: something follows it.
        """
        if text != "host":
            raise UsageError(f"{text!r} is not a kernel; expected just `host` for the kernel that runs on this host")
        return cls()

    @property
    def spec(self) -> str:
        """Always the same word, although the kernel changes with an update."""
        return "host"

    def resolve(self, say: Say | None, offline: bool) -> KernelImage:  # noqa: ARG002 - Source's signature
        """The first image of the running release.

        :raises UsageError: there is none, it cannot be read, or it is another release.
        """
        modules = next((path for path in self._module_folders() if looks_like_modules(path)), None)
        places = [self.root / "boot" / f"vmlinuz-{self.release}", *(d / "vmlinuz" for d in self._module_folders())]
        kernel = open_image(self._readable(places), spec=self.spec, modules=modules, config=self._config())
        if kernel.release != self.release:
            raise UsageError(
                f"host: {kernel.image} is Linux {kernel.release}, but the running kernel is {self.release}; "
                "reboot, or give the path of a kernel"
            )
        return kernel

    def _module_folders(self) -> list[Path]:
        return [self.root / name / self.release for name in _MODULES]

    def _config(self) -> Path | None:
        configs = [self.root / "boot" / f"config-{self.release}", *(d / "config" for d in self._module_folders())]
        return next((path for path in [*configs, self.root / "proc/config.gz"] if path.is_file()), None)

    def _readable(self, places: Sequence[Path]) -> Path:
        there = [path for path in places if path.is_file()]
        for path in there:
            if os.access(path, os.R_OK):
                return path
        if there:  # Ubuntu's
            raise UsageError(
                f"host: only root may read {there[0]}; run `sudo chmod a+r {there[0]}`, or choose another --kernel"
            )
        looked = ", ".join(map(str, places))
        raise UsageError(
            f"host: no image of the running kernel {self.release} (a container has none): looked for {looked}; "
            "give the path of a kernel, or tree:PATH to build one"
        )
