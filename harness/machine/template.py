"""Templates: booted machines on disk, from which clones start in a tenth of a second.

A template consists of the machine's RAM (a sparse file) and its device state (QEMU's migration stream with
x-ignore-shared, so without the RAM). It is made when the agent has answered and the kernel was probed. Its key is
computed from everything that it depends on. Its content is checked before the first use, and again when its files were
written since, or when the host has rebooted; a template that is damaged is removed and made again.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import platform
import shutil
import time
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
from harness.qemu.accel import boot_id
from harness.qemu.binary import QemuBinary
from harness.qemu.migration import save_state
from harness.qemu.ram import SharedRam, data_ranges
from harness.qemu.spec import Accel, MachineSpec, machine_words
from harness.verdict.capabilities import Capabilities

KIND = "templates"
_FORMAT = 7
_KEPT = 32  # seven kernels, each with one vCPU, with two, with another device, and with KVM; 120 MB each
_CPUINFO, _MODULES = Path("/proc/cpuinfo"), Path("/sys/module")
_ZEROS = bytes(1 << 22)
_verified: set[Path] = set()
#: A file in a template with its :func:`_stamp`, when the content was checked.
_CHECKED = "checked"
#: Two writes that follow each other faster may have the same time in the file system.
_CLOCK_STEP_S = 1.0


@dataclass(frozen=True)
class Template:
    """A machine on disk."""

    folder: Path
    ready: Mapping[str, str]
    bars: tuple[Region, ...]  # as QEMU reported at boot: an idle device has its memory off, and shows no address
    capabilities: Capabilities
    log: SavedLog  # until the machine was saved
    boot_s: float = 0.0  # the CPU time of its boot, see harness/qemu/speed.py; 0: not known

    @property
    def ram(self) -> Path:
        """The file with guest RAM; an offset in it is a physical address."""
        return self.folder / "ram"

    @property
    def state(self) -> Path:
        """The file with everything else: QEMU's migration stream."""
        return self.folder / "state"


def template_key(spec: MachineSpec, kernel_key: str, binary: QemuBinary) -> str:
    """Return the key of a template: a hash of everything that it depends on."""
    status = Path(binary.path).stat()
    parts = {
        "format": str(_FORMAT),
        "machine": repr(spec),
        "command line": machine_words(spec),
        "kernel": kernel_key,
        "QEMU": binary.package,
        "QEMU's file": f"{status.st_size} {status.st_mtime_ns}",
    }
    if spec.accel is Accel.KVM:
        parts["KVM"] = _host_kvm()
    return key_of("template", parts)


def _host_kvm() -> str:
    """Return what a guest sees of the host through KVM: CPU, kernel, and the parameters of KVM's modules."""
    wanted = ("model name", "stepping", "microcode", "flags")
    lines = [line for line in _CPUINFO.read_text().split("\n\n")[0].splitlines() if line.startswith(wanted)]
    for path in sorted(_MODULES.glob("kvm*/parameters/*")):
        with contextlib.suppress(OSError):  # only root can read some of them
            lines.append(f"{path.relative_to(_MODULES)}={path.read_text().strip()}")
    return "\n".join([platform.release(), *lines])


async def save_template(machine: Machine, folder: Path, capabilities: Capabilities) -> None:
    """Make a template of a machine that booted, in an empty folder. The machine stands still afterwards.

    :raises MachineryError: QEMU cannot save it.
    """
    await machine.qemu.stop()
    await save_state(machine.qemu, folder / "state", with_ram=False)
    assert isinstance(machine.qemu.ram, SharedRam)
    await aside(functools.partial(machine.qemu.ram.copy_to, folder / "ram"))
    qemu = machine.qemu
    write_meta(folder, machine.ready, machine.bars, capabilities, qemu.log.saved(), qemu.boot_s)
    _verified.difference_update(cache.prune(KIND, _KEPT))


def obtain(key: str, build: Callable[[Path], None], say: Say) -> Template:
    """Return the template of a machine. One that has changed since it was saved is made again.

    :param build: makes it in an empty folder.
    :raises MachineryError: it was made, and cannot be read.
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
    folder: Path,
    ready: Mapping[str, str],
    bars: Sequence[Region],
    capabilities: Capabilities,
    log: SavedLog,
    boot_s: float,
) -> None:
    """Complete a template with what clones need to know, and with the checksum of its content."""
    meta = {
        "ready": dict(ready),
        "bars": [asdict(bar) for bar in bars],
        "capabilities": capabilities.to_json(),
        "boot_s": boot_s,
        "digest": _digest(folder),
    }
    log.write(folder)
    (folder / "meta.json").write_text(json.dumps(meta))


def load(folder: Path) -> Template:
    """Open a template, and check its content unless it was checked since its files were written.

    :raises MachineryError: it has changed since it was saved, or cannot be read.
    """
    try:
        meta: dict[str, Any] = json.loads((folder / "meta.json").read_text())
        if folder not in _verified:
            _check(folder, meta["digest"])
        capabilities = Capabilities.from_json(meta["capabilities"])
        log = SavedLog.read(folder)
        bars, boot_s = tuple(Region(**bar) for bar in meta["bars"]), float(meta["boot_s"])
        template = Template(folder, meta["ready"], bars, capabilities, log, boot_s)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise MachineryError(f"the template {folder.name} cannot be read: {error}") from error
    _verified.add(folder)
    return template


def discard(folder: Path) -> None:
    """Remove a template. Clones that run keep what they have mapped."""
    _verified.discard(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _check(folder: Path, digest: str) -> None:
    """Check the content, and note that for other processes: reading 120 MB takes a tenth of a second.

    :raises MachineryError: it has changed since it was saved.
    """
    stamp = _stamp(folder)  # before the content is read: what is written meanwhile is not what was checked
    note = folder / _CHECKED
    with contextlib.suppress(OSError, ValueError):
        if stamp and note.read_text() == stamp:
            return
    if _digest(folder) != digest:
        raise MachineryError(f"the template {folder.name} has changed since it was saved")
    if stamp:
        with contextlib.suppress(OSError):
            note.write_text(stamp)


def _stamp(folder: Path) -> str:
    """Return what changes when the files are written, or when the host reboots and may have lost what it wrote.

    "" if they were written just now, because the next write may have the same time.
    """
    found = [(folder / name).stat() for name in ("state", "ram")]
    if time.time() - max(one.st_ctime for one in found) <= _CLOCK_STEP_S:
        return ""
    return json.dumps([boot_id(), *((one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns) for one in found)])


def _digest(folder: Path) -> str:
    """Return a CRC of the state and of RAM, without holes. It detects accidents, not attacks."""
    crc = zlib.crc32((folder / "state").read_bytes())
    with (folder / "ram").open("rb") as file:
        crc = zlib.crc32(str(os.fstat(file.fileno()).st_size).encode(), crc)
        for start, end in data_ranges(file.fileno()):
            file.seek(start)
            while start < end:
                chunk = file.read(min(end - start, len(_ZEROS)))
                if not _ZEROS.startswith(chunk):  # a hole on one file system is zeros on another
                    crc = zlib.crc32(chunk, zlib.crc32(str(start).encode(), crc))
                start += len(chunk)
    return f"{crc:08x}"
