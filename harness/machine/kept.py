"""Machines kept at a failure: saved with their RAM, and restored as often as you like."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import UsageError
from harness.guest.kernel_log import SavedLog
from harness.host import cache, cache_parts
from harness.kernel.spec import ImageSource, Kernel
from harness.pagetable import Region
from harness.qemu.migration import save_state
from harness.qemu.process import Qemu
from harness.qemu.spec import Accel, Device, MachineSpec, Root, machine_words
from harness.verdict.capabilities import Capabilities

KIND = "kept"
_NAME = re.compile(r"[\w.-]+")


@dataclass(frozen=True)
class Kept:
    """One saved machine."""

    folder: Path
    spec: MachineSpec
    kernel: str  # as requested, "debian:6.12"
    kernel_key: str  # of the image that was booted, see :attr:`harness.kernel.image.KernelImage.key`
    modules: Path | None  # the kernel's, absolute
    why: str
    ready: Mapping[str, str]
    bars: tuple[Region, ...]
    capabilities: Capabilities | None  # None: it was not probed yet
    next_id: int  # of the agent's requests, whose jobs still exist
    log: SavedLog
    boot_s: float  # the CPU time of its boot, see harness/qemu/speed.py; 0: not known

    @property
    def asked(self) -> Kernel:
        """The requested kernel; for a path, with the modules that were given, if they still exist."""
        kernel = Kernel.parse(self.kernel)
        given = isinstance(kernel.source, ImageSource) and self.modules is not None and self.modules.is_dir()
        return Kernel.image(self.kernel, self.modules) if given else kernel

    @property
    def state(self) -> Path:
        """QEMU's state, RAM included."""
        return self.folder / "state"


async def keep(qemu: Qemu, folder: Path, facts: Mapping[str, Any]) -> None:
    """Save a machine into an empty folder. The machine stands still afterwards."""
    await qemu.stop()
    await save_state(qemu, folder / "state", with_ram=True)
    spec = asdict(qemu.spec)
    plain = {
        name: str(getattr(value, "value", value)) if not isinstance(value, int | tuple) else value
        for name, value in spec.items()
    }
    qemu.log.saved().write(folder)
    (folder / "meta.json").write_text(
        json.dumps({"spec": plain, "machine": machine_words(qemu.spec), "boot_s": qemu.boot_s, **facts})
    )


def find(name: str) -> Kept:
    """Return a kept machine by its name.

    :raises UsageError: there is none, or another version of hugepfn kept it; names the existing ones.
    """
    try:
        return _load(_folder(name))
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"the machine {name} was kept by another version of hugepfn; `hugepfn kept --rm {name}` removes it"
        ) from error


def everything() -> list[tuple[str, Kept | None]]:
    """Return every kept machine by its name; None for one of another version, which cannot be read."""
    found: list[tuple[str, Kept | None]] = []
    for folder in cache.entries(KIND):
        try:
            found.append((folder.name, _load(folder)))
        except (OSError, KeyError, TypeError, ValueError):
            found.append((folder.name, None))
    return found


def remove(name: str) -> int:
    """Remove a kept machine. Machines that were restored from it go on.

    :returns: the bytes that it took.
    :raises UsageError: there is none.
    """
    folder = _folder(name)
    size_bytes = cache_parts.size_bytes(folder)
    shutil.rmtree(folder)
    return size_bytes


def _folder(name: str) -> Path:
    folder = cache.find(KIND, name) if _NAME.fullmatch(name) else None
    if folder is None:
        names = ", ".join(entry.name for entry in cache.entries(KIND))
        known = f"expected one of: {names}" if names else "none is kept; --keep-vm keeps one when a test fails"
        raise UsageError(f"there is no kept machine {name!r}; {known}")
    return folder


def _load(folder: Path) -> Kept:
    meta = json.loads((folder / "meta.json").read_text())
    plain = meta["spec"]
    spec = MachineSpec(
        **{
            **plain,
            "kernel": Path(plain["kernel"]),
            "initramfs": Path(plain["initramfs"]),
            "accel": Accel(plain["accel"]),
            "device": Device(plain["device"]),
            "append": tuple(plain["append"]),
            "load": tuple(plain["load"]),
            "root": Root.INITRAMFS,  # a machine with another root cannot be kept
            "modules": None,
        }
    )
    if meta["machine"] != machine_words(spec):
        raise ValueError("this version of hugepfn makes another machine of it")
    probed = meta.get("capabilities")
    return Kept(
        folder=folder,
        spec=spec,
        kernel=meta["kernel"],
        kernel_key=meta.get("kernel_key", ""),
        modules=Path(meta["modules"]) if meta.get("modules") else None,
        why=meta["why"],
        ready=meta["ready"],
        bars=tuple(Region(**bar) for bar in meta["bars"]),
        capabilities=Capabilities.from_json(probed) if probed is not None else None,
        next_id=meta.get("next_id", 1),
        log=SavedLog.read(folder),
        boot_s=float(meta.get("boot_s", 0.0)),
    )
