"""Templates: a booted machine on disk, from which clones come back in a tenth of a second.

A template is the machine's RAM (a sparse file) and its device state (QEMU's migration stream with x-ignore-shared, so
without the RAM), made once the agent answered and the kernel was probed. Its key is everything that went in; its
content is checked before the first use in a process; whatever is wrong with it, it is thrown away and made again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import shutil
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.errors import MachineryError
from harness.events import Note, Say
from harness.guest.kernel_log import SavedLog
from harness.host import cache
from harness.host.aside import aside
from harness.host.cache_key import key_of
from harness.machine.machine import Machine
from harness.pagetable import Region
from harness.qemu.binary import QemuBinary
from harness.qemu.migration import save_state
from harness.qemu.ram import SharedRam, data_ranges
from harness.qemu.spec import Accel, MachineSpec, kernel_command_line
from harness.verdict.capabilities import Capabilities

KIND = "templates"
_FORMAT = 6
_KEPT = 24  # seven kernels, each as it is, with two vCPUs and with another device; 120 MB each
_CPUINFO, _MODULES = Path("/proc/cpuinfo"), Path("/sys/module")
_verified: set[Path] = set()


@dataclass(frozen=True)
class Template:
    """A machine on disk."""

    folder: Path
    ready: Mapping[str, str]
    bars: tuple[Region, ...]  # asked of QEMU at boot: an idle device has its memory off, and then shows no address
    capabilities: Capabilities
    log: SavedLog  # until the machine was saved

    @property
    def ram(self) -> Path:
        """Guest RAM; offset is physical address."""
        return self.folder / "ram"

    @property
    def state(self) -> Path:
        """Everything else."""
        return self.folder / "state"


def template_key(spec: MachineSpec, kernel_key: str, binary: QemuBinary) -> str:
    """Everything that a template depends on, as one name."""
    status = Path(binary.path).stat()
    parts = {
        "format": str(_FORMAT),
        "machine": repr(spec),
        "command line": kernel_command_line(spec),  # includes the words that every kernel gets
        "kernel": kernel_key,
        "QEMU": binary.package,
        "QEMU's file": f"{status.st_size} {status.st_mtime_ns}",
    }
    if spec.accel is Accel.KVM:
        parts["KVM"] = _host_kvm()
    return key_of("template", parts)


def _host_kvm() -> str:
    """What a guest sees of the host through KVM: its CPU, its kernel and how KVM's modules are set."""
    wanted = ("model name", "stepping", "microcode", "flags")
    lines = [line for line in _CPUINFO.read_text().split("\n\n")[0].splitlines() if line.startswith(wanted)]
    for path in sorted(_MODULES.glob("kvm*/parameters/*")):
        with contextlib.suppress(OSError):  # some are only for root
            lines.append(f"{path.relative_to(_MODULES)}={path.read_text().strip()}")
    return "\n".join([platform.release(), *lines])


async def save_template(machine: Machine, folder: Path, capabilities: Capabilities) -> None:
    """Makes a template of a machine that booted, in an empty folder. The machine stands still afterwards.

    :raises MachineryError: QEMU cannot save it.
    """
    await machine.qemu.stop()
    await save_state(machine.qemu, folder / "state", with_ram=False)
    assert isinstance(machine.qemu.ram, SharedRam)
    await aside(functools.partial(machine.qemu.ram.copy_to, folder / "ram"))
    write_meta(folder, machine.ready, machine.bars, capabilities, machine.qemu.log.saved())
    _verified.difference_update(cache.prune(KIND, _KEPT))


def obtain(key: str, build: Callable[[Path], None], say: Say) -> Template:
    """The template of a machine; one that is not what was saved is made again.

    :param build: makes it, in an empty folder.
    :raises MachineryError: it can be made, but not be read.
    """
    for last in (False, True):
        folder = cache.obtain(KIND, key, build, say)
        try:
            return load(folder)
        except MachineryError as error:
            if last:
                raise
            say(Note(f"{error}; building it again"))
            discard(folder)
    raise AssertionError


def write_meta(
    folder: Path, ready: Mapping[str, str], bars: Sequence[Region], capabilities: Capabilities, log: SavedLog
) -> None:
    """Seals a template: what clones need to know, and what its content must be."""
    meta = {
        "ready": dict(ready),
        "bars": [asdict(bar) for bar in bars],
        "capabilities": capabilities.to_json(),
        "digest": _digest(folder),
    }
    log.write(folder)
    (folder / "meta.json").write_text(json.dumps(meta))


def load(folder: Path) -> Template:
    """Opens a template, and checks its content the first time in this process.

    :raises MachineryError: it is not what was saved.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        if folder not in _verified and _digest(folder) != meta["digest"]:
            raise MachineryError(f"the template {folder.name} has changed since it was saved")
        capabilities = Capabilities.from_json(meta["capabilities"])
        log = SavedLog.read(folder)
        template = Template(folder, meta["ready"], tuple(Region(**bar) for bar in meta["bars"]), capabilities, log)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MachineryError(f"the template {folder.name} cannot be read: {error}") from error
    _verified.add(folder)
    return template


def discard(folder: Path) -> None:
    """Throws a template away. Clones that run keep what they mapped."""
    _verified.discard(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _digest(folder: Path) -> str:
    """CRC of the state and of the parts of RAM that hold data, with their places. Against accidents, not attacks."""
    crc = zlib.crc32((folder / "state").read_bytes())
    with (folder / "ram").open("rb") as file:
        crc = zlib.crc32(str(os.fstat(file.fileno()).st_size).encode(), crc)
        for start, end in data_ranges(file.fileno()):
            file.seek(start)
            while start < end:
                chunk = file.read(min(end - start, 1 << 22))
                if not chunk.strip(b"\0"):  # a hole on one file system is zeroes on another
                    start += len(chunk)
                    continue
                crc = zlib.crc32(chunk, zlib.crc32(str(start).encode(), crc))
                start += len(chunk)
    return f"{crc:08x}"
