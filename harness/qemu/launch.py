"""Starts QEMU with everything that it inherits: its ends of the channels, guest RAM, and the pipe for its stderr."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import MachineryError
from harness.host.aside import aside
from harness.host.process import guarded
from harness.qemu.binary import QemuBinary
from harness.qemu.hostroot import FileServer, in_view, root_args
from harness.qemu.ram import GuestRam
from harness.qemu.sandbox import sandbox_args
from harness.qemu.spec import Descriptors, MachineSpec, Root, qemu_argv
from harness.qemu.stderr import LastWords

CHANNELS = ("qmp", "console", "agent", "events", "agent_uart", "events_uart", "shell")
_LOG = logging.getLogger("hugepfn.qemu")


@dataclass(frozen=True)
class Launched:
    """A QEMU process that was started."""

    process: asyncio.subprocess.Process
    argv: tuple[str, ...]
    words: LastWords  # what it prints on stderr


def connect() -> tuple[dict[str, socket.socket], dict[str, socket.socket]]:
    """Return our ends and QEMU's ends of all channels, by name."""
    ours: dict[str, socket.socket] = {}
    theirs: dict[str, socket.socket] = {}
    for name in CHANNELS:
        ours[name], theirs[name] = socket.socketpair()
        ours[name].setblocking(False)
    return ours, theirs


async def launch(
    spec: MachineSpec,
    binary: QemuBinary,
    ram: GuestRam,
    theirs: Mapping[str, socket.socket],
    files: FileServer | None,
    *,
    incoming: bool,
) -> Launched:
    """Start QEMU, and close its ends of the channels here.

    :param files: what serves the guest's root over virtio-fs.
    :param incoming: it waits for a saved machine's state instead of booting.
    :raises MachineryError: it cannot be executed.
    """
    with contextlib.ExitStack() as ends:
        for end in theirs.values():
            ends.callback(end.close)
        if files is not None:
            ends.callback(files.connection.close)  # QEMU has it then, and the server ends when QEMU does
        descriptors = Descriptors(ram=ram.fd, **{name: end.fileno() for name, end in theirs.items()})
        root = root_args(spec.root, files)
        more = {"root": root, "sandbox": await aside(lambda _check: sandbox_args(binary))}
        argv = qemu_argv(spec, descriptors, binary.path, share=ram.share, incoming=incoming, **more)
        # If QEMU itself serves files, it gets the view; a virtiofsd has its own.
        argv = in_view("view", argv) if spec.root is Root.HOST_9P else argv
        inherited = [ram.fd, *(end.fileno() for end in theirs.values())]
        inherited += [files.connection.fileno()] if files is not None else []
        _LOG.info("%s", shlex.join(argv))
        words, stderr = await LastWords.listen()
        ends.callback(os.close, stderr)
        try:
            process = await asyncio.create_subprocess_exec(
                *guarded(argv),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=inherited,
                start_new_session=True,
            )
        except OSError as error:
            words.close()
            raise MachineryError(f"cannot start {binary.path}: {error.strerror}") from error
    return Launched(process, tuple(argv), words)
