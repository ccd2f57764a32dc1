"""The host's root file system for a guest (``--guest host``): how a kernel mounts it, and QEMU's options for it.

The guest cannot write to the host's files: QEMU's own 9P server refuses to (``readonly=on``), so does a
virtiofsd (``--readonly``), and both serve a read-only view that has none of the host's /proc, /sys, /dev and /run
(readonly.py). What the guest writes is kept in its own memory, in an overlay that init/mounts.c mounts over it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Self

from harness.errors import MachineryError, UsageError
from harness.host.aside import aside
from harness.host.packages import find_command, how_to_install
from harness.host.process import guarded, run
from harness.kernel import KernelImage, load_order
from harness.printable import printable
from harness.qemu.spec import Root

#: The mount tag, which init/mounts.c knows too.
_TAG = "ROOTFS"
#: For each way: the configuration symbols a kernel needs, with the module of each.
_NEEDS: Mapping[Root, Mapping[str, str]] = {
    Root.HOST_9P: {"9P_FS": "9p", "NET_9P_VIRTIO": "9pnet_virtio", "VIRTIO_PCI": "virtio_pci", "OVERLAY_FS": "overlay"},
    Root.HOST_VIRTIOFS: {"VIRTIO_FS": "virtiofs", "VIRTIO_PCI": "virtio_pci", "OVERLAY_FS": "overlay"},
}
_READONLY = Path(__file__).with_name("readonly.py")
#: The folder that the view covers, only for the server: one that always exists and that no server needs.
VIEW = str(_READONLY.parent)
_ANOTHER = "build a kernel that can: hugepfn build TREE --fragment hostroot"
_ASK_TIMEOUT_S = 10.0
_END_TIMEOUT_S = 5.0  # after SIGKILL


class _Qemu:
    """What virtme-ng's export_virtfs() needs from its own QEMU helper, which would search for QEMU again."""

    has_multidevs = True  # since QEMU 4.2, below our floor

    @staticmethod
    def quote_optarg(text: str) -> str:
        return text.replace(",", ",,")


def root_modules(root: Root) -> tuple[str, ...]:
    """The modules to load before the host's root can be mounted."""
    return tuple(_NEEDS.get(root, {}).values())


def choose_root(kernel: KernelImage) -> Root:
    """How this kernel mounts the host's root: over 9P if possible, which needs only QEMU; otherwise over virtio-fs.

    :raises UsageError: it can do neither; names the symbols that its configuration lacks.
    :raises MachineryError: it can do virtio-fs only, and this host has no virtiofsd.
    """
    missing = {root: _missing(kernel, root) for root in _NEEDS}
    if not missing[Root.HOST_9P]:
        return Root.HOST_9P
    if not missing[Root.HOST_VIRTIOFS]:
        find_virtiofsd()
        return Root.HOST_VIRTIOFS
    raise UsageError(
        f"--guest host: {kernel.spec} ({kernel.release}) cannot mount the host's root. "
        f"Over 9P it lacks {', '.join(missing[Root.HOST_9P])}; "
        f"over virtio-fs {', '.join(missing[Root.HOST_VIRTIOFS])}. "
        f"Either {_ANOTHER}"
    )


def _missing(kernel: KernelImage, root: Root) -> list[str]:
    """The symbols that a kernel lacks for one way, as in a .config; empty if its configuration is not known."""
    config = kernel.config
    if config is None:
        return []
    lacking = [f"CONFIG_{symbol}" for symbol in _NEEDS[root] if not config.is_set(symbol)]
    as_modules = {symbol: module for symbol, module in _NEEDS[root].items() if config.get(symbol) == "m"}
    gone = set(load_order(kernel, as_modules.values()).missing)
    return lacking + [f"the module of CONFIG_{symbol}=m" for symbol, module in as_modules.items() if module in gone]


def in_view(mode: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs another one with the view at :data:`VIEW`; for the modes, see readonly.py."""
    return [sys.executable, "-I", "-S", str(_READONLY), VIEW, mode, *argv]


@dataclass(frozen=True)
class Virtiofsd:
    """A virtiofsd of this host. There are two with different options: QEMU's in C, up to 7.2, and one in Rust."""

    path: str
    words: str  # the output of --help

    @property
    def refuses_to_write(self) -> bool:
        """Whether it has a read-only mode."""
        return "--readonly" in self.words

    def argv(self, listener: int) -> list[str]:
        """Its command line: it serves the view, and cannot write anything anywhere.

        :param listener: a listening socket that it inherits.
        """
        source = VIEW.replace("\\", "\\\\").replace(",", "\\,")
        options = ["-o", f"source={source}", "-o", "sandbox=chroot", "-o", "log_level=err"]
        if "--shared-dir" in self.words:
            # An announced submount is an automount in the guest, and overlayfs does not cross automounts.
            options = [f"--shared-dir={VIEW}", "--no-announce-submounts", "--sandbox=none", "--log-level=error"]
        readonly = ["--readonly"] if self.refuses_to_write else []
        return in_view("all", [self.path, f"--fd={listener}", *options, *readonly])


def find_virtiofsd() -> Virtiofsd:
    """Find the daemon that serves virtio-fs: in PATH, or where distributions install it.

    :raises MachineryError: there is none, or none that keeps the guest from writing.
    """
    path = find_command("virtiofsd")
    if path is None:
        raise MachineryError(
            "--guest host needs virtiofsd for a kernel without 9P, and there is none; install it with: "
            f"{how_to_install(['virtiofsd'])} (Debian 12: qemu-system-common), or {_ANOTHER}"
        )
    asked = run([path, "--help"], timeout_s=_ASK_TIMEOUT_S, check=False)
    found = Virtiofsd(path, asked.stdout.decode("utf-8", "replace") + asked.stderr)
    if not found.refuses_to_write and os.geteuid() != 0:
        raise MachineryError(
            f"--guest host needs virtiofsd for a kernel without 9P, and only root can use {path}; "
            f"install one that has --readonly (virtiofsd 1.13), or {_ANOTHER}"
        )
    return found


class FileServer:
    """A virtiofsd that serves one QEMU through an unnamed connection, and ends with it."""

    def __init__(self, process: asyncio.subprocess.Process, connection: socket.socket, said: IO[bytes]) -> None:
        self._process = process
        self._said = said
        self.connection = connection  # for QEMU to inherit

    @classmethod
    async def start(cls) -> Self:
        """Start it, already connected.

        :raises MachineryError: there is none, or it cannot be started.
        """
        daemon = await aside(lambda _check: find_virtiofsd())
        connection, said = socket.socket(socket.AF_UNIX), tempfile.TemporaryFile()  # noqa: SIM115 - end() closes it
        try:
            with socket.socket(socket.AF_UNIX) as listener:
                # The socket is in a folder that no other user can enter, and is removed before the server starts.
                # Anybody could connect to an abstract name (unix(7)), and the server would serve the first client.
                with tempfile.TemporaryDirectory(prefix="hugepfn-") as folder:
                    listener.bind(f"{folder}/fs")
                    listener.listen(1)
                    connection.connect(f"{folder}/fs")
                process = await asyncio.create_subprocess_exec(
                    *guarded(daemon.argv(listener.fileno())),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=said,
                    pass_fds=[listener.fileno()],
                    start_new_session=True,
                )
        except BaseException as error:
            connection.close()
            said.close()
            if isinstance(error, OSError):
                raise MachineryError(f"cannot start {daemon.path}: {error.strerror}") from error
            raise
        return cls(process, connection, said)

    @property
    def words(self) -> str:
        """The last line that it printed on stderr."""
        self._said.seek(0)
        return (printable(self._said.read()).strip().splitlines() or [""])[-1]

    async def end(self) -> None:
        """End and reap it."""
        self.connection.close()
        # Not with its kill(), which polls first and would reap the process that asyncio's watcher waits for.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._process.wait(), _END_TIMEOUT_S)
        self._said.close()


def root_args(root: Root, server: FileServer | None) -> list[str]:
    """QEMU's options for the guest's root."""
    args: list[str] = []
    if root is Root.HOST_9P:
        from virtme.architectures import get as virtme_arch
        from virtme.commands.run import VirtFSConfig, export_virtfs

        export_virtfs(_Qemu(), virtme_arch("x86_64"), args, VirtFSConfig(path=VIEW, mount_tag=_TAG, readonly=True))
    elif server is not None:
        args += ["-chardev", f"socket,id=hostroot,fd={server.connection.fileno()}"]
        args += ["-device", f"vhost-user-fs-pci,chardev=hostroot,tag={_TAG}"]
    return args
