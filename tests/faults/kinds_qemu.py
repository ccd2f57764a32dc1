"""Faults of QEMU: it is killed, stopped, or ends, at a random moment of each part of a run."""

from __future__ import annotations

import signal
from collections.abc import Callable

from tests.faults.kind import CASE, Ending, Kind, Moment
from tests.faults.scene import Scene

_GROUP = "QEMU"
_QEMU_STARTS = r"qemu\] \S*qemu-system"
_RESTORING = Moment(_QEMU_STARTS, within="restore")
_BOOTING = Moment(_QEMU_STARTS, within="boot", share=0.6)
_AT_CHECKPOINT = Moment(r"run\] fork: entries at checkpoint", most=7)
_AT_WALK = Moment(r"qemu\] QMP stop", most=8)
_NO_CLONE = ("run", CASE, "--no-clone", "--boot-timeout", "20")


def sending(number: signal.Signals) -> Callable[[Scene], None]:
    """Sends QEMU a signal."""
    return lambda scene: scene.signal_qemu(number)


def _killed(name: str, when: str, argv: tuple[str, ...], moment: Moment, number: signal.Signals) -> Kind:
    words = (f"QEMU was killed by {number.name}",)
    return Kind(
        f"qemu-{number.name.lower()}-{name}",
        _GROUP,
        f"QEMU gets {number.name} {when}",
        (Ending(3, words, "error"),),
        argv,
        moment=moment,
        act=sending(number),
    )


def _ended(name: str, when: str, argv: tuple[str, ...], moment: Moment) -> Kind:
    return Kind(
        f"qemu-sigterm-{name}",
        _GROUP,
        f"QEMU gets SIGTERM {when}, and ends in its own way",
        (Ending(3, ("QEMU ended with status 0: .*terminating on signal 15",), "error"),),
        argv,
        moment=moment,
        act=sending(signal.SIGTERM),
    )


def _stopped(name: str, when: str, argv: tuple[str, ...], moment: Moment, patience_s: float) -> Kind:
    return Kind(
        f"qemu-sigstop-{name}",
        _GROUP,
        f"QEMU gets SIGSTOP {when}",
        (Ending(3, ("was stopped by SIGSTOP or by a debugger",), "error"),),
        argv,
        moment=moment,
        act=sending(signal.SIGSTOP),
        patience_s=patience_s,
        runs=3,
    )


_RUN = ("run", CASE)

KINDS = (
    _killed("boot", "while the kernel boots", _NO_CLONE, _BOOTING, signal.SIGKILL),
    _killed("restore", "while a clone is restored", _RUN, _RESTORING, signal.SIGKILL),
    _killed("checkpoint", "at a checkpoint", _RUN, _AT_CHECKPOINT, signal.SIGKILL),
    _killed("walk", "while the page tables are walked", _RUN, _AT_WALK, signal.SIGKILL),
    _killed("walk", "while the page tables are walked", _RUN, _AT_WALK, signal.SIGSEGV),
    _ended("checkpoint", "at a checkpoint", _RUN, _AT_CHECKPOINT),
    _stopped("boot", "while the kernel boots", _NO_CLONE, _BOOTING, 60),
    _stopped("restore", "while a clone is restored", _RUN, _RESTORING, 60),
    _stopped("checkpoint", "at a checkpoint", _RUN, _AT_CHECKPOINT, 60),
    _stopped("walk", "while the page tables are walked", _RUN, _AT_WALK, 60),
)
