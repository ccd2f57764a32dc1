"""QEMU: what machine to build, how to run it, stop it and look into it."""

from harness.machine.accel import Proof, kvm_proof
from harness.machine.agent import ExitStatus
from harness.machine.binary import QemuBinary, find_qemu
from harness.machine.channel import Channel
from harness.machine.result import RunResult
from harness.machine.run import GuestRun
from harness.machine.snapshot import MappingView, ProcessView, Snapshot
from harness.machine.spec import Accel, MachineSpec
from harness.machine.vm import VM

__all__ = [
    "VM",
    "Accel",
    "Channel",
    "ExitStatus",
    "GuestRun",
    "MachineSpec",
    "MappingView",
    "ProcessView",
    "Proof",
    "QemuBinary",
    "RunResult",
    "Snapshot",
    "find_qemu",
    "kvm_proof",
]
