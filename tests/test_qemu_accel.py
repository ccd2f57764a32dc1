"""Tests for the probe of the accelerator, with shell scripts in place of QEMU: passed, refused, hanging, stored."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from harness.errors import MachineryError, UsageError
from harness.events import Say
from harness.qemu import accel
from harness.qemu.accel import Proof, choose_accel, kvm_proof, remember_lie, tell_why_tcg
from harness.qemu.binary import QemuBinary
from harness.qemu.spec import Accel

PROVEN = "exit 85"  # isa-debug-exit: 42 * 2 + 1


@dataclass
class Host:
    """A host whose /dev/kvm is a file in the test's folder, and whose QEMU is a script that counts its starts."""

    folder: Path

    @property
    def kvm(self) -> Path:
        return self.folder / "kvm"

    @property
    def boot_id(self) -> Path:
        return self.folder / "boot_id"

    def qemu(self, body: str) -> QemuBinary:
        """A QEMU that records its arguments and then runs this script."""
        script = self.folder / "qemu"
        script.write_text(f'#!/bin/sh\necho "$@" >> {self.folder}/starts\n{body}\n')
        script.chmod(0o755)
        return QemuBinary(str(script), "7.2.22", "QEMU emulator version 7.2.22")

    @property
    def starts(self) -> list[str]:
        """The arguments of each start so far."""
        path = self.folder / "starts"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    host = Host(tmp_path)
    host.kvm.touch()
    host.boot_id.write_text("0f0e0d0c-boot-1\n")
    monkeypatch.setattr(accel, "_KVM", host.kvm)
    monkeypatch.setattr(accel, "_BOOT_ID", host.boot_id)
    monkeypatch.setattr(accel, "assemble_rom", lambda name: tmp_path / f"{name}.rom")
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(tmp_path / "cache"))
    return host


@pytest.fixture
def said() -> list[str]:
    return []


def noting(said: list[str]) -> Say:
    return lambda event: said.append(str(event))


def test_kvm_is_used_after_guest_code_has_reported(host: Host) -> None:
    assert choose_accel("auto", host.qemu(PROVEN), "max") == (Accel.KVM, "")
    assert choose_accel("kvm", host.qemu(PROVEN), "max") == (Accel.KVM, "")


def test_the_probe_uses_the_machine_and_cpu_of_the_kernel(host: Host) -> None:
    kvm_proof(host.qemu(PROVEN), "Skylake-Server")
    assert len(host.starts) == 1
    for words in (
        "-machine q35,kernel-irqchip=split",
        "-accel kvm",
        "-cpu Skylake-Server",
        "-device isa-debug-exit,iobase=0x501",
        f"-bios {host.folder}/accel.rom",
        "-nodefaults",
    ):
        assert words in host.starts[0]


def test_tcg_is_not_probed(host: Host) -> None:
    assert choose_accel("tcg", host.qemu(PROVEN), "max") == (Accel.TCG, "")
    assert host.starts == []


REFUSALS = [
    ("echo 'Could not access KVM kernel module: No such device' >&2\necho more >&2\nexit 1", "Could not access KVM"),
    ("echo 'KVM internal error. Suberror: 1' >&2\nexit 84", "KVM internal error. Suberror: 1"),
    ("exit 1", "QEMU ended with status 1 before the test guest reported"),
    ("exit 0", "QEMU ended with status 0 before the test guest reported"),
    ("exit 42", "QEMU ended with status 42 before the test guest reported"),
    ("kill -ABRT $$", "QEMU ended with status -6 before the test guest reported"),
]


@pytest.mark.parametrize(("body", "reason"), REFUSALS)
def test_auto_falls_back_with_one_line_that_says_why(host: Host, said: list[str], body: str, reason: str) -> None:
    chosen, why = choose_accel("auto", host.qemu(body), "max")
    assert chosen is Accel.TCG
    assert why.startswith(reason)
    assert "\n" not in why
    tell_why_tcg(why, noting(said))
    assert said == [f"using TCG, because KVM does not work on this host: {why} (not repeated until the host reboots)"]


def test_the_reason_is_shown_once_per_boot_of_the_host(host: Host, said: list[str]) -> None:
    for why in ("", "no KVM", "no KVM", "broken", "no KVM", "broken"):
        tell_why_tcg(why, noting(said))
    assert [line.split(": ")[1].split(" (")[0] for line in said] == ["no KVM", "broken"]
    host.boot_id.write_text("another boot\n")
    tell_why_tcg("no KVM", noting(said))
    accel.forget_proofs()
    tell_why_tcg("no KVM", noting(said))
    assert len(said) == 4


def test_the_reason_is_shown_if_the_cache_cannot_be_written(
    host: Host, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUGEPFN_CACHE_DIR", str(host.kvm / "cache"))
    tell_why_tcg("no KVM", noting(said))
    assert len(said) == 1


def test_a_requested_kvm_fails_with_the_reason(host: Host) -> None:
    with pytest.raises(MachineryError, match="does not work on this host: KVM is broken here; use --accel tcg"):
        choose_accel("kvm", host.qemu("echo 'KVM is broken here' >&2; exit 1"), "max")


def test_a_kvm_that_hangs_is_killed_and_not_used(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []

    class Watched(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Watched)
    monkeypatch.setattr(accel, "_DEADLINE_S", 0.05)
    assert kvm_proof(host.qemu("exec tail -f /dev/null"), "max") == Proof(
        False, "the test guest did not report within 0.05 s", lasting=False
    )
    assert [process.returncode for process in started] == [-signal.SIGKILL], "the probe's QEMU must be ended and reaped"


def test_no_dev_kvm(host: Host) -> None:
    host.kvm.unlink()
    binary = host.qemu(PROVEN)
    assert choose_accel("auto", binary, "max") == (Accel.TCG, "there is no /dev/kvm")
    with pytest.raises(MachineryError, match="--accel kvm: KVM does not work on this host: there is no /dev/kvm"):
        choose_accel("kvm", binary, "max")
    assert host.starts == []
    host.kvm.touch()
    assert choose_accel("auto", binary, "max") == (Accel.KVM, ""), "a missing /dev/kvm must not be stored"


def test_dev_kvm_without_permission(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Path, int]] = []

    def access(path: Path, mode: int) -> bool:
        asked.append((path, mode))
        return False

    monkeypatch.setattr(os, "access", access)
    assert kvm_proof(host.qemu(PROVEN), "max") == Proof(False, "you may not open /dev/kvm; join the group kvm")
    assert asked == [(host.kvm, os.R_OK | os.W_OK)]
    assert host.starts == []


@pytest.mark.parametrize("body", [PROVEN, "echo no >&2; exit 1"])
def test_the_result_is_stored_for_this_boot_of_the_host(host: Host, body: str) -> None:
    binary = host.qemu(body)
    first = kvm_proof(binary, "max")
    assert kvm_proof(binary, "max") == first
    assert len(host.starts) == 1
    host.boot_id.write_text("0f0e0d0c-boot-2\n")
    assert kvm_proof(binary, "max") == first
    assert len(host.starts) == 2, "KVM must be probed again after a reboot"


@pytest.mark.parametrize(
    "other",
    [
        lambda binary: (binary, "Skylake-Server"),
        lambda binary: (replace(binary, version="9.2.0"), "max"),
        lambda binary: (replace(binary, path=f"{binary.path}-other"), "max"),
    ],
    ids=["cpu", "version", "path"],
)
def test_another_cpu_or_qemu_has_its_own_result(
    host: Host, other: Callable[[QemuBinary], tuple[QemuBinary, str]]
) -> None:
    binary = host.qemu(PROVEN)
    remember_lie(binary, "max", "it lied")
    other_binary, cpu = other(binary)
    remember_lie(other_binary, cpu, "it lied too")
    assert kvm_proof(binary, "max") == Proof(False, "it lied")
    assert kvm_proof(other_binary, cpu) == Proof(False, "it lied too")


def test_a_disproved_result_is_stored_until_the_host_reboots(host: Host) -> None:
    binary = host.qemu(PROVEN)
    assert choose_accel("auto", binary, "max") == (Accel.KVM, "")
    remember_lie(binary, "max", "a kernel printed nothing")
    assert choose_accel("auto", binary, "max") == (Accel.TCG, "a kernel printed nothing")
    with pytest.raises(MachineryError, match="a kernel printed nothing"):
        choose_accel("kvm", binary, "max")
    host.boot_id.write_text("0f0e0d0c-boot-2\n")
    assert choose_accel("auto", binary, "max") == (Accel.KVM, "")


@pytest.mark.parametrize("note", ["", "{", "[]", '{"works": "yes"}', "{}"])
def test_a_damaged_note_is_ignored(host: Host, note: str) -> None:
    binary = host.qemu(PROVEN)
    remember_lie(binary, "max", "it lied")
    (path,) = (host.folder / "cache").rglob("*.json")
    path.write_text(note)
    assert kvm_proof(binary, "max") == Proof(True, "")
    assert len(host.starts) == 1


def test_a_cpu_model_with_many_words(host: Host) -> None:
    cpu = "max," + ",".join(f"+feature{number}" for number in range(40))
    assert kvm_proof(host.qemu(PROVEN), cpu).works
    assert kvm_proof(host.qemu("exit 1"), cpu).works, "the result must be stored"
    assert len(host.starts) == 1


def test_no_setpriv_is_one_line(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(host.folder))
    with pytest.raises(MachineryError, match="setpriv"):
        kvm_proof(host.qemu(PROVEN), "max")


@pytest.mark.parametrize(
    "body",
    [
        "echo 'ioctl(KVM_CREATE_VM) failed: 16 Device or resource busy' >&2; exit 1",  # kvm_init(), accel/kvm/kvm-all.c
        "echo 'ioctl(KVM_CREATE_VM) failed: 12 Cannot allocate memory' >&2; exit 1",
        "exec tail -f /dev/null",
    ],
    ids=["another hypervisor", "memory", "a busy host"],
)
def test_a_temporary_failure_is_not_stored(host: Host, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    monkeypatch.setattr(accel, "_DEADLINE_S", 0.05 if "tail" in body else 10.0)
    assert not kvm_proof(host.qemu(body), "max").works
    monkeypatch.setattr(accel, "_DEADLINE_S", 10.0)
    assert kvm_proof(host.qemu(PROVEN), "max").works


@pytest.mark.parametrize("cpu", ["host", "host,pmu=off"])
def test_the_hosts_cpu_without_kvm_is_one_line(host: Host, cpu: str) -> None:
    with pytest.raises(
        UsageError, match=r"--cpu host needs KVM, but KVM does not work on this host \(broken\); use --cpu"
    ):
        choose_accel("auto", host.qemu("echo broken >&2; exit 1"), cpu)
    with pytest.raises(UsageError, match="--cpu host needs KVM, but --accel tcg"):
        choose_accel("tcg", host.qemu(PROVEN), cpu)
    host.boot_id.write_text("another boot\n")
    assert choose_accel("auto", host.qemu(PROVEN), cpu) == (Accel.KVM, "")
