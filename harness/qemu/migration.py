"""Saves a machine's state to a file and restores it, with QEMU's migration over a descriptor that we open."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from qemu.qmp import EventListener

from harness.errors import QemuRefused, RestoreError
from harness.qemu.process import Qemu

_LOG = logging.getLogger("hugepfn.qemu")
_SAVE_TIMEOUT_S = _RESTORE_TIMEOUT_S = 60.0


async def save_state(qemu: Qemu, path: Path, *, with_ram: bool) -> None:
    """Write the state of a stopped machine to a new file.

    :param with_ram: save RAM, too; otherwise it must be a shared file, and stays there.
    :raises MachineryError: QEMU cannot save it.
    """
    # Only for writing: QEMU uses a descriptor of a set only if its access mode is exactly the one it wants.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    await _migrate(qemu, "migrate", descriptor, with_ram=with_ram, timeout_s=_SAVE_TIMEOUT_S)
    await qemu.of_qemu(_finalized(qemu), "end of finish-migrate", _SAVE_TIMEOUT_S)


async def restore_state(qemu: Qemu, path: Path, *, with_ram: bool) -> None:
    """Read a saved machine's state into a QEMU that waits for it. The machine is stopped afterwards.

    :param with_ram: restore RAM, too; otherwise it comes from its file.
    :raises MachineryError: QEMU does not accept it.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    await _migrate(qemu, "migrate-incoming", descriptor, with_ram=with_ram, timeout_s=_RESTORE_TIMEOUT_S)


async def _migrate(qemu: Qemu, command: str, descriptor: int, *, with_ram: bool, timeout_s: float) -> None:
    """Run a migration to its end, and close the descriptor.

    Since 8.2 QEMU accepts ``file:``, which may name a descriptor set; since 11.0 it refuses ``fd:`` for a file.
    """
    wanted = {"events": True, "x-ignore-shared": not with_ram}
    capabilities = [{"capability": name, "state": state} for name, state in wanted.items()]
    try:
        await qemu.execute("migrate-set-capabilities", {"capabilities": capabilities})
        qemu.qmp.send_fd_scm(descriptor)
        added = await qemu.execute("add-fd", {"opaque": "state"})
        assert isinstance(added, dict)
        try:
            await _run(qemu, command, f"file:/dev/fdset/{added['fdset-id']}", timeout_s)
        except QemuRefused:
            _LOG.debug("QEMU %s cannot migrate to file: (8.2 and newer can); using fd:", qemu.binary.version)
            qemu.qmp.send_fd_scm(descriptor)
            await qemu.execute("getfd", {"fdname": "state"})
            await _run(qemu, command, "fd:state", timeout_s)
        await qemu.execute("remove-fd", {"fdset-id": added["fdset-id"]})
    finally:
        os.close(descriptor)


async def _run(qemu: Qemu, command: str, uri: str, timeout_s: float) -> None:
    with qemu.qmp.listener("MIGRATION") as events:
        await qemu.execute(command, {"uri": uri})
        await qemu.of_qemu(_completed(events), f"end of {command}", timeout_s)


async def _finalized(qemu: Qemu) -> None:
    """Wait until QEMU accepts ``cont`` again.

    Its migration thread reports "completed" before it leaves the state finish-migrate, in which ``cont`` is refused
    (migration/migration.c, migration_iteration_finish(); monitor/qmp-cmds.c, qmp_cont()). There is no event for that.
    """
    while await qemu.run_state() == "finish-migrate":
        pass  # each answer waits for the lock that the migration thread needs


async def _completed(events: EventListener) -> None:
    """Wait for the end of a migration."""
    async for event in events:
        data = event.get("data")
        status = data.get("status") if isinstance(data, dict) else None
        if status == "completed":
            return
        if status in ("failed", "cancelled"):
            raise RestoreError(f"QEMU could not save or restore the machine: migration {status}")
