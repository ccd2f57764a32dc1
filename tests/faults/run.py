"""Injects one fault and judges what came of it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.faults.command import Command, Ended
from tests.faults.judge import problems
from tests.faults.kind import Fault, Kind
from tests.faults.leftovers import leftovers, look
from tests.faults.measure import Measured
from tests.faults.scene import Scene
from tests.faults.world import World, hugepfn

_TAIL_LINES = 40
_UNDISTURBED_S = 300
_WITH_KERNEL = ("run", "start")
#: A host that is busy may be slower than the measured run by any factor; below this, it is not worth a thought.
_LEAST_S = 20.0
#: By what the delay of a fault is multiplied, at the first attempt and if it came too late.
_HURRY = (1.0, 0.5, 0.1)


@dataclass(frozen=True)
class Outcome:
    """What came of one fault.

    :ivar wrong: what is wrong, in words; empty if the fault gave the right end and left nothing.
    :ivar drawn: what was drawn at random.
    :ivar tail: the end of the command's output.
    """

    kind: str
    seed: str
    status: int | None
    took_s: float
    deadline_s: float
    wrong: tuple[str, ...]
    drawn: str
    tail: str

    @property
    def held(self) -> bool:
        """Whether hugepfn did what it promises."""
        return not self.wrong


def inject(fault: Fault, world: World, measured: Measured) -> Outcome:
    """Run the command with one fault in a world made anew.

    If the command was faster than when it was measured, and the fault too late, it runs again with an earlier one.
    """
    for hurry in _HURRY:
        outcome, missed = _inject(fault, world, measured, hurry)
        if not missed:
            break
    return outcome


def _inject(fault: Fault, world: World, measured: Measured, hurry: float) -> tuple[Outcome, bool]:
    """Run it once; returns whether the command had ended before the fault came."""
    kind, marker = fault.kind, f"{os.getpid()}-{fault.seed}"
    world.reset()
    scene = Scene(world, fault.random(), [*kind.argv])
    scene.argv += ["--kernel", world.kernel] if kind.argv[0] in _WITH_KERNEL else []
    scene.argv += ["--json", str(world.results)] if kind.argv[0] == "run" else []
    kind.prepare(scene)
    scene.argv += ["-vv"] if kind.logs else []
    deadline_s = max(kind.patience_s + kind.factor * measured.boot, _LEAST_S)
    before, damaged = look(world), _contents(world, kind.repairs)
    wrong = _undisturbed(scene, kind.before, "before", marker)
    ended = _follow(scene, kind, marker, deadline_s, hurry, measured)
    wrong += problems(kind, ended, _results(world))
    now = _contents(world, kind.repairs)
    wrong += [f"{path} is still damaged" for path, crc in damaged.items() if now.get(path) == crc]
    wrong += _undisturbed(scene, kind.afterwards, "afterwards", marker)
    wrong += [f"left behind: {one}" for one in leftovers(world, before, marker, kind.may_leave)]
    tail = "\n".join((ended.out + ended.err).splitlines()[-_TAIL_LINES:])
    drawn = ", ".join(scene.drawn)
    outcome = Outcome(kind.name, fault.seed, ended.status, ended.took_s, deadline_s, tuple(wrong), drawn, tail)
    return outcome, kind.moment is not None and not ended.injected and ended.status is not None


def _follow(scene: Scene, kind: Kind, marker: str, deadline_s: float, hurry: float, measured: Measured) -> Ended:
    moment, nth, delay_s = kind.moment, 0, 0.0
    if moment is not None:
        nth = scene.choose("line", 1, moment.most) if moment.most > 1 else 1
        if moment.within:
            delay_s = scene.random.random() * moment.share * measured.of(moment.within) * hurry
            scene.drawn.append(f"after {delay_s:.3f} s")
    command = Command(
        scene.world.isolated([*scene.prefix, *hugepfn(*scene.argv)], scene.mounts),
        deadline_s,
        terminal=kind.terminal,
        env={**scene.world.environment(marker), **scene.environment},
        cwd=scene.cwd or scene.world.work(),
        start_new_session=not kind.terminal,
    )
    scene.pid, scene.terminal = command.pid, command.terminal

    def act() -> bool:
        try:
            kind.act(scene)
        except LookupError:  # what it is done to has ended
            return False
        return True

    return command.follow(moment.after if moment is not None else "", nth, delay_s, act)


def _contents(world: World, pattern: str) -> dict[Path, int]:
    """The CRC of the cache's files that match a pattern."""
    return {path: zlib.crc32(path.read_bytes()) for path in world.cache.glob(pattern)} if pattern else {}


def _results(world: World) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads(world.results.read_text())
        return found
    return None


def _undisturbed(scene: Scene, commands: Sequence[Sequence[str]], when: str, marker: str) -> list[str]:
    """Run commands that have to succeed before or after the fault; returns what is wrong."""
    wrong = []
    for words in commands:
        kernel = ["--kernel", scene.world.kernel] if words[0] in _WITH_KERNEL else []
        done = subprocess.run(
            scene.world.isolated(hugepfn(*words, *kernel)),
            env=scene.world.environment(marker),
            cwd=scene.world.work(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_UNDISTURBED_S,
            check=False,
        )
        if done.returncode != 0:
            wrong.append(f"hugepfn {' '.join(words)} {when}: status {done.returncode}: {done.stderr[-300:]}")
    return wrong
