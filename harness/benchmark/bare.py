"""A QEMU without hugepfn around it: what a boot costs, and what a clone costs at least."""

from __future__ import annotations

import array
import contextlib
import json
import socket
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from harness.errors import MachineryError
from harness.guest.channel import Channel
from harness.guest.protocol import Frame
from harness.host import cache
from harness.host.process import guarded
from harness.kernel import KernelImage
from harness.machine.template import KIND, Template, load, template_key
from harness.qemu.binary import find_qemu
from harness.qemu.launch import connect
from harness.qemu.ram import GuestRam, PrivateRam, SharedRam
from harness.qemu.spec import Descriptors, MachineSpec, qemu_argv

_RAW_TIMEOUT_S = 300.0
_END_TIMEOUT_S = 5.0


@contextlib.contextmanager
def _bare_qemu(
    spec: MachineSpec, ram: GuestRam, *, incoming: bool = False
) -> Iterator[tuple[subprocess.Popen[bytes], Mapping[str, socket.socket]]]:
    """Start QEMU with hugepfn's command line; yield it and our ends of its channels. It ends with the block."""
    ours, theirs = connect()
    for end in ours.values():
        end.settimeout(_RAW_TIMEOUT_S)
    descriptors = Descriptors(ram=ram.fd, **{name: end.fileno() for name, end in theirs.items()})
    argv = qemu_argv(spec, descriptors, find_qemu().path, share=ram.share, incoming=incoming)
    inherited = [ram.fd, *(end.fileno() for end in theirs.values())]
    process = subprocess.Popen(guarded(argv), pass_fds=inherited, stdin=subprocess.DEVNULL)
    for end in theirs.values():
        end.close()
    console = threading.Thread(target=_drain, args=(ours["console"],), daemon=True)
    console.start()
    try:
        yield process, ours
    except OSError as error:  # also a timeout
        raise MachineryError(f"the rival, a bare QEMU, does not answer: {error}") from error
    finally:
        process.kill()
        process.wait()
        console.join(_END_TIMEOUT_S)
        for end in ours.values():
            end.close()
        ram.close()


def _drain(end: socket.socket) -> None:
    while end.recv(65536):
        pass


def raw_boot_s(spec: MachineSpec) -> float:
    """Return the time in seconds of the same QEMU command line, from its start to init's poweroff."""
    begin = time.perf_counter()
    poweroff = replace(spec, append=(*spec.append, "hugepfn.job=poweroff"))
    with _bare_qemu(poweroff, SharedRam(spec.memory_mib)) as (process, _ends):
        status = process.wait(timeout=_RAW_TIMEOUT_S)
        took_s = time.perf_counter() - begin
    if status:
        raise MachineryError(f"the rival, a plain QEMU boot, ended with exit status {status}; expected 0")
    return took_s


def existing_template(spec: MachineSpec, image: KernelImage) -> Template:
    """Return the template of a machine that was cloned before.

    :raises MachineryError: there is none.
    """
    folder = cache.find(KIND, template_key(spec, image.key, find_qemu()))
    if folder is None:
        raise MachineryError(f"{image.spec} has no template; start a clone first")
    return load(folder)


def raw_clone_s(spec: MachineSpec, template: Template) -> float:
    """Return the time in seconds until a bare QEMU has loaded a template's state, and the guest has answered."""
    begin = time.perf_counter()
    with (
        _bare_qemu(spec, PrivateRam(template.ram), incoming=True) as (_process, ends),
        template.state.open("rb") as state,
    ):
        monitor = _Monitor(ends["qmp"])
        wanted = {"events": True, "x-ignore-shared": True}
        capabilities = [{"capability": name, "state": on} for name, on in wanted.items()]
        monitor.ask("migrate-set-capabilities", {"capabilities": capabilities})
        monitor.ask("getfd", {"fdname": "state"}, state.fileno())
        monitor.ask("migrate-incoming", {"uri": "fd:state"})
        monitor.until_migrated()
        monitor.ask("cont")
        agent = ends[Channel(template.ready["channel"]).agent]
        agent.sendall(Frame("ping", 1).encode())
        if not agent.recv(1):
            raise MachineryError(
                "the rival, a bare QEMU with a template's state, ended before the guest's agent answered"
            )
        return time.perf_counter() - begin


class _Monitor:
    """QMP with as little as possible: one question at a time, on a blocking socket."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self._lines = end, end.makefile("rb")
        self._lines.readline()  # the greeting
        self.ask("qmp_capabilities")

    def ask(self, command: str, arguments: Mapping[str, Any] | None = None, descriptor: int | None = None) -> None:
        """Run a command.

        :param descriptor: goes with it.
        :raises MachineryError: QEMU refuses it.
        """
        line = json.dumps({"execute": command, "arguments": arguments or {}}).encode() + b"\n"
        if descriptor is None:
            self._end.sendall(line)
        else:
            rights = array.array("i", [descriptor])
            self._end.sendmsg([line], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        while "return" not in (answer := self._next()):
            if "error" in answer:
                raise MachineryError(f"the rival, a bare QEMU, refuses {command}: {answer['error'].get('desc')}")

    def until_migrated(self) -> None:
        """Wait until the state is loaded."""
        while self._next().get("data", {}).get("status") != "completed":
            pass

    def _next(self) -> dict[str, Any]:
        line = self._lines.readline()
        if not line:
            raise MachineryError("the rival, a bare QEMU, has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer
