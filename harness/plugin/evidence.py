"""The folder that a failed test leaves behind, with what explains the failure (docs/reference/evidence.md).

It is written when the test fails, in the process in which it ran. A test that passes leaves nothing.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from harness.config import MachineConfig
from harness.errors import HugepfnError, PremiseNotMet, UsageError
from harness.events import Note
from harness.guest import bounds
from harness.host import cache
from harness.host.cache_limits import Limits, add
from harness.host.load import HostLoad
from harness.introspect.source_lines import SourceLines, told
from harness.kernel import KernelImage
from harness.kernel.vmlinux import find_vmlinux
from harness.machine.vm import VM
from harness.plugin.options import config_of, say_of
from harness.printable import clipped, printable
from harness.qemu.process import Qemu
from harness.verdict import Outcome, Run, ScenarioResult, scan
from harness.verdict.log.trace import places

KIND = "failures"
LIMITS = Limits(age_s=30 * 86400, size_bytes=500 << 20)
#: A JUnit file has the folder's path as a property of this name.
EVIDENCE_PROPERTY = "evidence"
#: The machine of a test, even one that did not boot.
TRIED = pytest.StashKey[VM]()
_STARTED = pytest.StashKey[HostLoad]()
_LOG_MAX = 16 << 20  # characters of a log: what is beyond is left out in its middle
_OUTPUT_MAX = 1 << 20


def begin(item: pytest.Item) -> None:
    """Note how busy the host is when a test begins."""
    item.stash[_STARTED] = _load(config_of(item.config))


def keep(item: pytest.Item, result: ScenarioResult, context: Mapping[str, object], error: BaseException | None) -> str:
    """Keep the evidence of a test that failed, and return the folder; "" if it did not fail, or if none is wanted."""
    if result.outcome not in (Outcome.FAILED, Outcome.ERROR) or isinstance(error, UsageError):
        return ""
    machine = item.stash.get(TRIED, None) or getattr(item, "funcargs", {}).get("live_vm")
    config = machine.config if machine is not None else config_of(item.config)
    if not config.evidence:
        return ""
    now = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    name = re.sub(r"[^\w.-]+", "-", f"{now}-{result.scenario}-{result.level or ''}").strip("-.")[:100]
    try:
        about = _about(item, result, machine, config)
        folder = add(KIND, name, lambda folder: _fill(folder, about, Run((result,), context), machine), LIMITS)
    except (HugepfnError, OSError) as error:  # it does not change the verdict
        say_of(item.config)(Note(f"no evidence of {result.scenario} is kept: {error}"))
        return ""
    item.user_properties.append((EVIDENCE_PROPERTY, str(folder)))
    return str(folder)


def _load(config: MachineConfig) -> HostLoad:
    return HostLoad.now(config.ram_dir or Path("/dev/shm"), cache.root())


def _about(item: pytest.Item, result: ScenarioResult, machine: VM | None, config: MachineConfig) -> dict[str, Any]:
    started = item.stash.get(_STARTED, None)
    emulator = machine.emulator if machine is not None else None
    return {
        "test": item.nodeid,
        "cause": {
            "outcome": result.outcome.value,
            "reason": result.reason,
            "end": result.end.to_json() if result.end is not None else None,
        },
        "hugepfn": {
            "argv": getattr(item.config, "workerinput", {}).get("mainargv", sys.argv),
            "folder": str(item.config.invocation_params.dir),
            "machine": config.argv(),
            "version": importlib.metadata.version("hugepfn"),
            "pid": os.getpid(),
        },
        "qemu": _about_qemu(emulator) if emulator is not None else None,
        "kernel": _about_kernel(getattr(machine, "kernel", None)),
        "host": {
            "system": " ".join(os.uname()),
            "at_start": _to_json(started) if started is not None else None,
            "at_end": _to_json(_load(config)),
        },
    }


def _to_json(load: HostLoad) -> dict[str, Any]:
    return {
        "date": load.date,
        "load": list(load.load),
        "cpus": load.cpus,
        "memory_available_mib": load.memory_available_mib,
        "free_mib": load.free_mib,
    }


def _about_qemu(emulator: Qemu) -> dict[str, Any]:
    return {
        "argv": list(emulator.argv),
        "version": emulator.binary.package,
        "accel": emulator.spec.accel.value,
        "boot_s": emulator.boot_s,
        "exit_status": emulator.exit_status,
        "stderr": emulator.stderr,
    }


def _about_kernel(kernel: KernelImage | None) -> dict[str, Any] | None:
    if kernel is None:
        return None
    named = {"spec": kernel.spec, "release": kernel.release, "key": kernel.key, "image": str(kernel.image)}
    return {**named, "config_hash": kernel.config_hash, "tree": kernel.tree}


def _fill(folder: Path, about: Mapping[str, Any], run: Run, machine: VM | None) -> None:
    """Write all files into an empty folder."""
    (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n")
    (folder / "results.json").write_text(json.dumps(run.to_json(), indent=1) + "\n")
    if machine is None:
        return
    if machine.emulator is not None:
        log = machine.emulator.log
        (folder / "console.log").write_text(clipped(log.console, _LOG_MAX), "utf-8", "replace")
        (folder / "kernel.log").write_text(clipped(log.text, _LOG_MAX), "utf-8", "replace")
        kernel = getattr(machine, "kernel", None)  # it is not known before the machine is started
        if kernel is not None and (traces := _traces(log.text, kernel)):
            (folder / "traces.txt").write_text(traces, "utf-8", "replace")
    for number, one in enumerate(machine.runs, 1):
        if one.hang_report is not None and one.hang_report.registers:
            (folder / f"program-{number}.registers").write_text(one.hang_report.registers, "utf-8", "replace")
        for stream, said in (("stdout", one.job.stdout), ("stderr", one.job.stderr)):
            if said:
                (folder / f"program-{number}.{stream}").write_text(
                    clipped(printable(bytes(said)), _OUTPUT_MAX), "utf-8", "replace"
                )


def _traces(log: str, kernel: KernelImage) -> str:
    """Return the traces of all complaints with file and line; "" if there are none, or the kernel does not tell."""
    complaints = scan(log)[: bounds.COMPLAINTS_MAX]
    if not complaints or (vmlinux := find_vmlinux(kernel, None)) is None or not vmlinux.has_dwarf:
        return ""
    try:
        lines = SourceLines(vmlinux.path)
    except PremiseNotMet:  # no drgn
        return ""
    return "\n".join(
        f"{one.title}\n" + "".join(f"  {line}\n" for line in told(places(one.messages), lines)) for one in complaints
    )
