"""Signals to hugepfn itself, at a random moment of a run."""

from __future__ import annotations

import signal

from tests.faults.kind import CASE, Ending, Kind, Moment
from tests.faults.scene import Scene

_GROUP = "Signals to hugepfn"
_STARTS = r"cache\] key of initramfs"
_INTERRUPTED = Ending(130, ("hugepfn: interrupted|interrupted",))


def _ending(number: signal.Signals, name: str, when: str, argv: tuple[str, ...], within: str) -> Kind:
    return Kind(
        f"hugepfn-{number.name.lower()}-{name}",
        _GROUP,
        f"hugepfn gets {number.name} {when}",
        (_INTERRUPTED,),
        argv,
        moment=Moment(_STARTS, within=within, share=0.6),
        act=lambda scene: scene.signal(number),
        factor=2.0,
        runs=3,
    )


def _kill(scene: Scene) -> None:
    scene.signal(signal.SIGKILL)


KINDS = (
    *(
        _ending(number, "run", "during a run", ("run", CASE), "restore")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ),
    *(
        _ending(number, "boot", "while the kernel boots", ("run", CASE, "--no-clone"), "boot")
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    ),
    Kind(
        "hugepfn-sigkill-run",
        _GROUP,
        "hugepfn gets SIGKILL during a run",
        (Ending(-9),),
        moment=Moment(_STARTS, within="restore", share=0.6),
        act=_kill,
        afterwards=(("run", CASE),),
    ),
    Kind(
        "hugepfn-sigkill-boot",
        _GROUP,
        "hugepfn gets SIGKILL while the kernel boots",
        (Ending(-9),),
        ("run", CASE, "--no-clone"),
        moment=Moment(_STARTS, within="boot", share=0.6),
        act=_kill,
        afterwards=(("run", CASE),),
    ),
)
