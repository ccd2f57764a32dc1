"""Kernel modules as seen from the host: their load order, contents, and defined symbols."""

from __future__ import annotations

import functools
import gzip
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

import zstandard

from harness.errors import MachineryError, PremiseNotMet, UsageError
from harness.kernel.elf import Elf
from harness.kernel.image import KernelImage

_DEPENDENCIES, _BUILTIN = "modules.dep", "modules.builtin"  # man 5 modules.dep, Documentation/kbuild/kbuild.rst
_SUFFIXES = (".ko", ".ko.xz", ".ko.zst", ".ko.gz")


@dataclass(frozen=True)
class Module:
    """One module file of a kernel."""

    name: str  # as in lsmod, with underscores
    path: Path  # absolute, compressed or not


@dataclass(frozen=True)
class LoadOrder(Sequence[Module]):
    """Modules in the order for insmod, and what happened to the other requested names."""

    modules: tuple[Module, ...]
    builtin: tuple[str, ...] = ()  # requested, but part of the image (modules.builtin)
    missing: tuple[str, ...] = ()  # requested, but neither modules nor built in

    def __len__(self) -> int:
        return len(self.modules)

    def __iter__(self) -> Iterator[Module]:
        return iter(self.modules)

    @overload
    def __getitem__(self, index: int) -> Module: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Module, ...]: ...
    def __getitem__(self, index: int | slice) -> Module | tuple[Module, ...]:
        return self.modules[index]


def load_order(image: KernelImage, names: Iterable[str]) -> LoadOrder:
    """The modules to insmod, in order, so that every named module is loaded: dependencies first, each file once.

    :param names: module names; dash and underscore are equivalent.
    :returns: the order; names that the kernel does not have are in ``missing``. For a kernel without a modules folder,
        all names are missing, because only its configuration could tell whether they are built in.
    :raises UsageError: the modules folder has no modules.dep.
    """
    if image.modules_dir is None:
        return LoadOrder((), missing=tuple(names))
    there = _list_of(image.modules_dir)
    order: dict[str, None] = {}
    builtin, missing = [], []

    def add(path: str, pending: tuple[str, ...] = ()) -> None:
        if path in order or path in pending:
            return
        for dependency in there.needs.get(path, ()):
            add(dependency, (*pending, path))
        order[path] = None

    for name in names:
        wanted = name.replace("-", "_")
        if wanted in there.files:
            add(there.files[wanted])
        elif wanted in there.builtin:
            builtin.append(name)
        else:
            missing.append(name)
    modules = tuple(Module(_module_name(path), image.modules_dir / path) for path in order)
    return LoadOrder(modules, tuple(builtin), tuple(missing))


def why_missing(image: KernelImage, name: str) -> UsageError | PremiseNotMet | None:
    """The error to raise if a running kernel lacks a driver. It was built without the driver, or lacks its modules.

    :param name: name of the module; its symbol is CONFIG_ and the name in capitals.
    :returns: None if the driver should be there, as far as is known.
    """
    symbol, said = name.upper(), name.replace("_", "-")
    order = load_order(image, [name])
    if not order.missing or (image.config is not None and image.config.is_builtin(symbol)):
        return None
    if image.config is not None and not image.config.is_set(symbol):
        return PremiseNotMet(f"{image.spec} ({image.release}) was built without {said}: CONFIG_{symbol} is not set")
    known = "is not built in" if image.config is None else f"is a module of this kernel (CONFIG_{symbol}=m)"
    if image.modules_dir is None:
        given = "and there are no modules: pass --modules DIR with"
    else:
        given = f"and is not in {image.modules_dir}: pass --modules DIR with"
    return UsageError(f"{image.spec}: {said} {known} {given} the complete lib/modules/{image.release} of this kernel")


def find(image: KernelImage, name: str) -> Module | None:
    """The file of one module; None if it is built in or missing."""
    order = load_order(image, [name])
    return order.modules[-1] if order.modules else None


def read(module: Module) -> bytes:
    """The module's ELF bytes, decompressed.

    :raises MachineryError: the file cannot be read or its compression is broken.
    """
    name = module.path.name
    try:
        data = module.path.read_bytes()
        if name.endswith(".xz"):
            return lzma.decompress(data)
        if name.endswith(".zst"):
            return _unzstd(data)
        if name.endswith(".gz"):
            return gzip.decompress(data)
    except (OSError, EOFError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise MachineryError(f"cannot read the module {module.path}: {error}") from error
    return data


def _unzstd(data: bytes) -> bytes:
    unpacker = zstandard.ZstdDecompressor().decompressobj()
    unpacked = unpacker.decompress(data)
    if not unpacker.eof:  # it accepts a truncated file without an error
        raise EOFError("the zstd stream is truncated")
    return unpacked


def has_symbol(image: KernelImage, module: str, symbol: str) -> bool | None:
    """Whether a module defines a symbol, including static ones. This probes a capability without a boot.

    :returns: None if it cannot be known here, because there is no module file (built in, or missing).
    """
    found = find(image, module)
    return None if found is None else symbol in defined_symbols(read(found))


def defined_symbols(elf: bytes) -> frozenset[str]:
    """Every symbol that an x86-64 object file defines (its .symtab without the undefined ones).

    :raises MachineryError: not a 64-bit little-endian ELF file, or truncated.
    """
    return frozenset(Elf(elf, "a module").symbols())


def _module_name(path: str) -> str:
    base = path.rsplit("/", 1)[-1]
    for suffix in _SUFFIXES:
        base = base.removesuffix(suffix)
    return base.replace("-", "_")


@dataclass(frozen=True)
class _ModuleList:
    """What a modules folder has. The paths are relative to it."""

    needs: Mapping[str, tuple[str, ...]]
    """The paths that each module needs, in modprobe's order."""
    files: Mapping[str, str]
    """The path of each module by its name."""
    builtin: frozenset[str]
    """Names of modules that are part of the image."""


def _list_of(modules_dir: Path) -> _ModuleList:
    """Return the list of a modules folder, which is read again only if its files have changed.

    :raises UsageError: it has no modules.dep.
    """
    return _read_list(modules_dir, *(_stamp(modules_dir / name) for name in (_DEPENDENCIES, _BUILTIN)))


def _stamp(path: Path) -> tuple[int, ...]:
    """Return what changes when a file is written; nothing if there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_ino, status.st_size, status.st_mtime_ns


@functools.lru_cache(maxsize=8)  # each clone asks, and 1,000 modules take 10 ms, a tenth of a clone
def _read_list(modules_dir: Path, *_stamps: tuple[int, ...]) -> _ModuleList:
    needs = _read_modules_dep(modules_dir)
    return _ModuleList(needs, {_module_name(path): path for path in needs}, _read_builtin(modules_dir))


def _read_modules_dep(modules_dir: Path) -> dict[str, tuple[str, ...]]:
    """``{path: paths that it needs}``, relative to the modules folder."""
    try:
        text = (modules_dir / _DEPENDENCIES).read_text()
    except FileNotFoundError:
        root, release = modules_dir.parents[2], modules_dir.name
        raise UsageError(f"{modules_dir} has no modules.dep; generate it with: depmod -b {root} {release}") from None
    pairs = (line.partition(":") for line in text.splitlines() if ":" in line)
    # The file lists the nearest dependency first and modprobe loads from the right; keep modprobe's order.
    return {path: tuple(reversed(needs.split())) for path, _, needs in pairs}


def _read_builtin(modules_dir: Path) -> frozenset[str]:
    try:
        return frozenset(map(_module_name, (modules_dir / _BUILTIN).read_text().split()))
    except FileNotFoundError:
        return frozenset()
