"""Faults of live machines: a session's process, its QEMU, its guest or its client goes away."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable

from tests.faults.kind import Ending, Kind, Moment
from tests.faults.scene import Scene, descendants, program_of

_GROUP = "Live machines"
_NAME = "one"
_START = ("start", "-s", _NAME)
#: A program in the guest that says when it runs, and ends only when somebody ends it.
_EXEC = ("exec", "sh", "-c", "echo up; exec sleep 600")
_UP = Moment(r"^up\r?$", within="restore")
_STOP = ("stop",)


def server(scene: Scene) -> int:
    """The pid of the session's process."""
    about = scene.world.folder / "run" / "hugepfn" / _NAME / "about.json"
    return int(json.loads(about.read_text())["pid"])


def _to_server(number: signal.Signals) -> Callable[[Scene], None]:
    return lambda scene: os.kill(server(scene), number)


def _kill_qemu(scene: Scene) -> None:
    (qemu,) = [pid for pid in descendants(server(scene)) if "qemu-system" in program_of(pid)]
    os.kill(qemu, signal.SIGKILL)


def _exec(
    name: str,
    done: str,
    act: Callable[[Scene], None],
    *endings: Ending,
    afterwards: tuple[tuple[str, ...], ...],
    patience_s: float = 0,
) -> Kind:
    return Kind(
        name,
        _GROUP,
        done,
        endings,
        _EXEC,
        before=(_START,),
        moment=_UP,
        act=act,
        afterwards=afterwards,
        patience_s=patience_s,
        runs=3,
        logs=False,
    )


KINDS = (
    Kind(
        "start-interrupted",
        _GROUP,
        "`hugepfn start` gets SIGINT",
        (Ending(130, ("interrupted",)),),
        _START,
        moment=Moment(r"cache\] key of initramfs", within="restore", share=0.5),
        act=lambda scene: scene.signal(signal.SIGINT),
        factor=2.0,
    ),
    Kind(
        "start-killed",
        _GROUP,
        "`hugepfn start` gets SIGKILL",
        (Ending(-9),),
        _START,
        moment=Moment(r"cache\] key of initramfs", within="restore", share=0.5),
        act=lambda scene: scene.signal(signal.SIGKILL),
    ),
    _exec(
        "session-killed",
        "a session's process gets SIGKILL while a program runs in its guest",
        _to_server(signal.SIGKILL),
        Ending(3, ("session",)),
        afterwards=(("ps",),),
    ),
    _exec(
        "session-terminated",
        "a session's process gets SIGTERM while a program runs in its guest",
        _to_server(signal.SIGTERM),
        Ending(3, ("session",)),
        afterwards=(("ps",),),
    ),
    _exec(
        "session-qemu-killed",
        "a session's QEMU gets SIGKILL while a program runs in its guest",
        _kill_qemu,
        Ending(3, ("QEMU was killed by SIGKILL",)),
        afterwards=(("ps",), _STOP),
    ),
    _exec(
        "exec-killed",
        "`hugepfn exec` gets SIGKILL; the session serves the next one",
        lambda scene: scene.signal(signal.SIGKILL),
        Ending(-9),
        afterwards=(("exec", "true"), _STOP),
    ),
    _exec(
        "exec-terminated",
        "`hugepfn exec` gets SIGTERM, which ends its program in the guest",
        lambda scene: scene.signal(signal.SIGTERM),
        Ending(143),
        afterwards=(("exec", "true"), _STOP),
    ),
    Kind(
        "session-panic",
        _GROUP,
        "the kernel of a session panics",
        (Ending(1, ("the kernel died: .*sysrq triggered crash",)),),
        ("exec", "sh", "-c", "echo c > /proc/sysrq-trigger"),
        before=(_START,),
        afterwards=(("ps",), _STOP),
        runs=3,
        logs=False,
    ),
)
