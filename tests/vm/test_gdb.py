"""Tests for gdb: the protocol of QEMU's stub, and gdb itself if it is installed."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess

import pytest

from harness.errors import UsageError
from harness.host import cache
from harness.introspect.gdb import GdbStub, gdb_is_attached
from harness.introspect.kernel_memory import KernelMemory
from harness.kernel import Kernel
from harness.machine.vm import VM

STOCK = "debian:6.12"


class Remote:
    """GDB's remote serial protocol, as far as needed."""

    def __init__(self, stub: GdbStub) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(30)
        self.socket.connect(str(stub.socket))
        self.received = b""

    def send(self, packet: str) -> None:
        data = packet.encode()
        self.socket.sendall(b"$%s#%02x" % (data, sum(data) % 256))

    def answer(self) -> str:
        while b"#" not in self.received or len(self.received.split(b"#", 1)[1]) < 2:
            more = self.socket.recv(4096)
            assert more, "QEMU hung up"
            self.received += more
        packet, rest = self.received.split(b"#", 1)
        self.received = rest[2:]
        self.socket.sendall(b"+")
        return packet.split(b"$", 1)[1].decode()

    def ask(self, packet: str) -> str:
        self.send(packet)
        return self.answer()


def test_the_stub_reads_kernel_memory_and_stops_the_machine(request: pytest.FixtureRequest) -> None:
    with VM(STOCK) as vm:
        stub = vm.gdb()
        assert vm.qemu.stopped
        assert stub.text is not None
        assert "no vmlinux of 6.12." in stub.note
        assert stub.argv[-1] == f"target remote {stub.socket}"

        assert not vm.on_loop(gdb_is_attached(vm.qemu))
        remote = Remote(stub)
        request.addfinalizer(remote.socket.close)
        assert "PacketSize" in remote.ask("qSupported:xmlRegisters=i386")
        assert vm.on_loop(gdb_is_attached(vm.qemu))
        assert len(remote.ask("g")) > 2 * 8 * 17  # 16 general registers and rip, in hex
        process = vm.process_root(1)
        kernel = KernelMemory(vm.memory, process.paddr, process.layout)
        assert bytes.fromhex(remote.ask(f"m{stub.text:x},40")) == kernel.read(stub.text, 64)
        with pytest.raises(UsageError, match="the machine is stopped"):
            vm.get("/proc/cmdline")

        remote.send("c")
        vm.on_loop(vm.qemu.until_resumed(30.0))
        assert not vm.qemu.stopped
        assert vm.get("/proc/cmdline")

        remote.socket.sendall(b"\x03")
        assert remote.answer()[0] == "T"
        assert vm.process_root(1) == process
        assert vm.on_loop(vm.qemu.is_stopped()), "a walk during gdb's stop must leave the guest stopped"

        assert remote.ask("D") == "OK"
        vm.on_loop(vm.qemu.until_resumed(30.0))
        assert vm.get("/proc/cmdline")


def ask_gdb(stub: GdbStub, *commands: str) -> str:
    """Run commands in gdb, detach, and return the output."""
    words = [word for command in (*commands, "detach") for word in ("-ex", command)]
    argv = [*stub.argv, "-batch", *words]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90, check=False, stdin=subprocess.DEVNULL)
    return done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_gdb_finds_the_symbols_of_a_stock_kernel_with_kaslr() -> None:
    with VM(STOCK) as vm:
        stub = vm.gdb()
        assert stub.offset
        said = ask_gdb(stub, "x/s &linux_banner", "info symbol schedule", "hbreak schedule_idle", "continue", "bt 1")
        assert "Linux version 6.12" in said
        assert "schedule in section .text" in said
        assert re.search(r"#0 .* in schedule_idle \(\)", said), said


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_gdb_shows_the_symbols_of_a_built_kernel() -> None:
    built = [entry / "vmlinux" for entry in cache.entries("built") if (entry / "vmlinux").is_file()]
    if not built:
        pytest.skip("no kernel was built on this host")
    with VM(Kernel.image(built[0])) as vm:
        stub = vm.gdb()
        assert stub.symbols == built[0]
        assert stub.note == ""
        said = ask_gdb(stub, "x/s &linux_banner", "info symbol schedule")
        assert "Linux version" in said
        assert "schedule in section .text" in said
        vm.on_loop(vm.qemu.until_resumed(30.0))
        assert vm.get("/proc/cmdline")
