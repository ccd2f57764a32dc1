"""Faults of the host: a full disk, a full RAM folder, no descriptors, no memory, a clock that jumps, closed streams."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

from tests.faults.kind import CASE, Ending, Kind, Moment
from tests.faults.kinds_guest import ARGV, doing
from tests.faults.scene import Scene

_GROUP, _STREAMS = "The host", "Streams, terminal and working directory"
_FINE = Ending(0, ("1 passed",), "passed")
_BOOT = ("run", CASE, "--no-clone")
_STARTS = r"qemu\] \S*qemu-system"
#: Runs the command on a file system that vanishes with it, and then names what it has left there.
_LIST = '"$@"; status=$?; find "$CACHE" -name ".*.tmp-*" -printf "LEFT BEHIND %p\\n"; exit $status'


def _full_disk(scene: Scene) -> None:
    """Put the cache on a file system that has no room for a template."""
    world = scene.world
    scene.mounts = (
        f"mount -t tmpfs -o size={scene.choose('MiB', 60, 150)}m tmpfs {world.cache} && "
        f"cp -a {world.pristine}/. {world.cache} 2>/dev/null; rm -rf {world.cache}/templates; "
        f"rm -rf {world.cache}/initramfs"
    )
    scene.environment["CACHE"] = str(world.cache)
    scene.prefix = ["bash", "-c", _LIST, "bash"]


def _small_shm(size: str) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        scene.mounts = f"mount -t tmpfs -o size={size} tmpfs /dev/shm"

    return prepare


def _fill_shm(scene: Scene) -> None:
    """Take the room that guest RAM counts on."""
    folder = Path(f"/proc/{scene.pid}/root/dev/shm")
    with (folder / "filler").open("wb", 0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 20))


def _limits(option: str, least: int, most: int, unit: int = 1) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        scene.prefix = ["prlimit", f"--{option}={scene.choose(option, least, most) * unit}"]

    return prepare


def _redirected(words: str) -> Callable[[Scene], None]:
    def prepare(scene: Scene) -> None:
        scene.prefix = ["bash", "-c", f'exec "$@" {words}', "bash"]

    return prepare


def _in_deleted_folder(scene: Scene) -> None:
    scene.prefix = ["bash", "-c", 'mkdir gone && cd gone && rmdir ../gone && exec "$@"', "bash"]


def _delete_folder(scene: Scene) -> None:
    shutil.rmtree(scene.world.work())


def _stop_for_a_while(pid: Callable[[Scene], int]) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        number = pid(scene)
        os.kill(number, signal.SIGSTOP)
        timer = threading.Timer(scene.choose("s", 1, 4), os.kill, (number, signal.SIGCONT))
        timer.daemon = True
        timer.start()

    return act


def _jumping_clock(scene: Scene) -> None:
    """Let the wall clock that hugepfn and QEMU see jump by years, after a random number of looks at it."""
    library = scene.world.folder / "jump.so"
    source = Path(__file__).with_name("jump.c")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O2", "-o", library, source, "-ldl"], check=True)
    scene.environment |= {
        "LD_PRELOAD": str(library),
        "JUMP_AFTER": str(scene.choose("after looks", 1, 400)),
        "JUMP_S": str(scene.choose("by s", -300_000_000, 300_000_000)),
    }


_NO_ROOM = Ending(3, ("no space left for .*; free some",))
_LIMIT = Ending(3, ("at its limits|Too many open files|it cannot start|cannot start",))

KINDS = (
    Kind(
        "disk-full",
        _GROUP,
        "the cache's disk is full while a template is made",
        (Ending(3, ("no space left for|No space left",)),),
        prepare=_full_disk,
        logs=False,
    ),
    Kind(
        "ram-folder-small",
        _GROUP,
        "/dev/shm has 64 MiB, as in a container",
        (Ending(0, ("guest RAM goes to /var/tmp", "1 passed"), "passed"),),
        _BOOT,
        prepare=_small_shm("64m"),
        logs=False,
        runs=3,
    ),
    Kind(
        "ram-folder-fills",
        _GROUP,
        "another program fills /dev/shm while the kernel boots",
        (Ending(3, ("no space left for guest RAM",), "error"),),
        (*_BOOT, "--memory", "256"),
        prepare=_small_shm("260m"),
        moment=Moment(_STARTS, within="boot", share=0.2),
        act=_fill_shm,
    ),
    Kind(
        "descriptors-out",
        _GROUP,
        "the limit of open files is 8 to 40",
        (_FINE, _LIMIT),
        prepare=_limits("nofile", 8, 40),
        may_leave=("traceback.txt",),
        logs=False,
        runs=6,
    ),
    Kind(
        "memory-out",
        _GROUP,
        "the limit of address space is 200 to 1800 MiB",
        (_FINE, Ending(3, ("memory|it cannot start|cannot start|does not start",))),
        prepare=_limits("as", 200, 1800, 1 << 20),
        may_leave=("traceback.txt",),
        logs=False,
        runs=6,
    ),
    Kind(
        "clock-jumps",
        _GROUP,
        "the host's wall clock jumps by up to ten years",
        (_FINE,),
        prepare=_jumping_clock,
        logs=False,
    ),
    Kind(
        "guest-clock-jumps",
        _GROUP,
        "the guest's wall clock jumps by up to ten years",
        (_FINE,),
        ARGV,
        prepare=doing("--do=jump --seconds={seed}"),
        logs=False,
    ),
    Kind(
        "qemu-paused",
        _GROUP,
        "QEMU is stopped for a few seconds, and continued",
        (_FINE,),
        moment=Moment(r"run\] fork: entries at checkpoint", most=6),
        act=_stop_for_a_while(lambda scene: scene.qemu()),
    ),
    Kind(
        "hugepfn-paused",
        _GROUP,
        "hugepfn is stopped for a few seconds, and continued",
        (_FINE,),
        moment=Moment(r"run\] fork: entries at checkpoint", most=6),
        act=_stop_for_a_while(lambda scene: scene.pid),
    ),
    *(
        Kind(f"stream-{name}", _STREAMS, done, (ending,), prepare=_redirected(words), logs=False, runs=3)
        for name, done, words, ending in (
            ("stdin-closed", "standard input is closed", "<&-", _FINE),
            ("stderr-closed", "standard error is closed", "2>&-", _FINE),
            ("stderr-full", "standard error is on a full disk", "2>/dev/full", _FINE),
            (
                "stdout-closed",
                "standard output is closed",
                ">&-",
                Ending(3, ("standard output cannot be written: Bad file descriptor",), "passed"),
            ),
            (
                "stdout-full",
                "standard output is on a full disk",
                ">/dev/full",
                Ending(3, ("standard output cannot be written: No space left",), "passed"),
            ),
            ("all-closed", "all three streams are closed", ">&- 2>&- <&-", Ending(3, (), "passed")),
            ("reader-leaves", "the reader of standard output leaves", "> >(head -c 1)", Ending(0, (), "passed")),
        )
    ),
    Kind(
        "results-full",
        _STREAMS,
        "the file of the results is on a full disk",
        (Ending(3, ("No space left on device",)),),
        ("run", CASE, "--junit", "/dev/full"),
        logs=False,
        runs=3,
    ),
    Kind(
        "directory-gone",
        _STREAMS,
        "the working directory was deleted",
        (Ending(3, ("the working directory was deleted",)),),
        prepare=_in_deleted_folder,
        logs=False,
        runs=3,
    ),
    Kind(
        "directory-deleted",
        _STREAMS,
        "the working directory is deleted during a run",
        (_FINE, Ending(3, ("working directory was deleted",))),
        moment=Moment(_STARTS, within="restore"),
        act=_delete_folder,
        runs=3,
    ),
    Kind(
        "terminal-ctrl-c",
        _STREAMS,
        "Ctrl-C is typed at the terminal while the kernel boots",
        (Ending(130, ("interrupted",)),),
        _BOOT,
        moment=Moment(_STARTS, within="boot", share=0.6),
        act=lambda scene: scene.type(b"\x03"),
        factor=2.0,
        terminal=True,
    ),
    Kind(
        "terminal-ctrl-c-run",
        _STREAMS,
        "Ctrl-C is typed three times at the terminal during a run",
        (Ending(130, ("interrupted",)),),
        moment=Moment(_STARTS, within="restore"),
        act=lambda scene: scene.type(b"\x03\x03\x03"),
        factor=2.0,
        terminal=True,
    ),
    Kind(
        "terminal-closed",
        _STREAMS,
        "the terminal is closed while the kernel boots",
        (Ending(130),),
        _BOOT,
        moment=Moment(_STARTS, within="boot", share=0.6),
        act=lambda scene: scene.hang_up(),
        factor=2.0,
        terminal=True,
    ),
)
