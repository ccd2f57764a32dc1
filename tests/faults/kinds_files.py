"""Damage to what hugepfn keeps in its cache, and to a kernel that a user gives: cut off, changed, replaced, removed."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from tests.faults.kind import CASE, Ending, Kind, Moment
from tests.faults.scene import Scene

_GROUP = "Files"
_BOOT = ("run", CASE, "--no-clone", "--boot-timeout", "60")
_STATE, _RAM, _META = "templates/*/state", "templates/*/ram", "templates/*/meta.json"
_KERNEL, _INITRAMFS, _PROGRAM = "kernels/*/vmlinuz", "initramfs/*/initramfs.cpio", "programs/fork-*/fork"
_FINE = Ending(0, ("1 passed",), "passed")

Change = Callable[[Scene, Path], None]


def truncated(scene: Scene, path: Path) -> None:
    """Cut a file off at a random place."""
    os.truncate(path, scene.choose("cut after bytes", 0, path.stat().st_size - 1))


def flipped(scene: Scene, path: Path) -> None:
    """Change one bit of a file at a random place that is no hole."""
    with path.open("r+b") as file:
        offset = os.lseek(file.fileno(), scene.random.randrange(path.stat().st_size // 2), os.SEEK_DATA)
        offset += scene.random.randrange(4096)
        scene.drawn.append(f"bit at {offset}")
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << scene.random.randrange(8)]))


def garbage(scene: Scene, path: Path) -> None:
    """Replace a file's content by random bytes."""
    path.write_bytes(scene.random.randbytes(scene.choose("bytes", 0, 300)))


def removed(_scene: Scene, path: Path) -> None:
    """Remove a file."""
    path.unlink()


def changing(pattern: str, change: Change, forget: tuple[str, ...] = ()) -> Callable[[Scene], None]:
    """The preparation that changes the cache's files that match a pattern.

    :param forget: kinds of entry that are removed, so that they are made again of the changed file.
    """

    def prepare(scene: Scene) -> None:
        for kind in forget:
            shutil.rmtree(scene.world.cache / kind)
        paths = sorted(scene.world.cache.glob(pattern))
        assert paths, f"the cache has no {pattern}"
        for path in paths:
            change(scene, scene.world.own(path))

    return prepare


def _healed(
    name: str, done: str, pattern: str, change: Change, words: str = "1 passed", argv: tuple[str, ...] = ("run", CASE)
) -> Kind:
    """Damage that hugepfn repairs."""
    repairs = pattern if change in (truncated, flipped) else ""
    endings = (Ending(0, (words,), "passed"),)
    return Kind(name, _GROUP, done, endings, argv, changing(pattern, change), logs=False, runs=3, repairs=repairs)


def _lost(name: str, done: str, change: Change) -> Kind:
    """A kernel that has to be fetched again, and cannot be, because there is no network."""

    def prepare(scene: Scene) -> None:
        changing(_KERNEL, change)(scene)
        config = scene.world.folder / "apt.conf"
        config.write_text('Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::https::Proxy "http://127.0.0.1:9";\n')
        scene.environment["APT_CONFIG"] = str(config)

    endings = (Ending(3, ("vmlinuz has changed since it was saved", "is not cached and cannot be fetched")),)
    return Kind(name, _GROUP, done, endings, _BOOT, prepare, logs=False, runs=3)


def _own_kernel(scene: Scene) -> None:
    """Give hugepfn a copy of the kernel that was cut off."""
    (image,) = scene.world.cache.glob(_KERNEL)
    copy = scene.world.folder / "bzImage"
    shutil.copy(image, copy)
    truncated(scene, copy)
    scene.argv[scene.argv.index("--kernel") + 1] = str(copy)


def _replace_kernel(scene: Scene) -> None:
    (image,) = scene.world.cache.glob(_KERNEL)
    scene.world.own(image)
    os.utime(image)


def _remove(*kinds: str) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        for kind in kinds:
            shutil.rmtree(scene.world.cache / kind, ignore_errors=True)

    return act


_AGAIN = "has changed since it was saved; building it again"
_UNREADABLE = "building it again"

KINDS = (
    _healed("template-state-truncated", "the saved state of a template is cut off", _STATE, truncated, _AGAIN),
    _healed("template-state-flipped", "a bit of a template's saved state is changed", _STATE, flipped, _AGAIN),
    _healed("template-ram-truncated", "the RAM of a template is cut off", _RAM, truncated, _AGAIN),
    _healed("template-ram-flipped", "a bit of a template's RAM is changed", _RAM, flipped, _AGAIN),
    _healed("template-meta-garbage", "a template's description is garbage", _META, garbage, _UNREADABLE),
    _healed("template-meta-removed", "a template's description is gone", _META, removed, _UNREADABLE),
    _healed("template-incomplete", "a template lacks the mark that it is complete", "templates/*/.complete", removed),
    _healed("program-incomplete", "a program lacks the mark that it is complete", "programs/fork-*/.complete", removed),
    _healed("note-hashes-garbage", "the notes of file hashes are garbage", "hashes/*.json", garbage),
    _healed("note-kvm-garbage", "the notes about KVM are garbage", "accel/*.json", garbage),
    _lost("kernel-truncated", "the kernel in the cache is cut off, and there is no network", truncated),
    _lost("kernel-flipped", "a bit of the kernel in the cache is changed, and there is no network", flipped),
    _healed("initramfs-truncated", "the initramfs in the cache is cut off", _INITRAMFS, truncated, argv=_BOOT),
    _healed("initramfs-flipped", "a bit of the initramfs in the cache is changed", _INITRAMFS, flipped, argv=_BOOT),
    _healed("program-truncated", "the compiled program in the cache is cut off", _PROGRAM, truncated),
    _healed("program-flipped", "a bit of the compiled program in the cache is changed", _PROGRAM, flipped),
    Kind(
        "own-kernel-truncated",
        _GROUP,
        "the user's bzImage is cut off",
        (Ending(2, ("bzImage", "truncated|empty|expected")),),
        prepare=_own_kernel,
        logs=False,
    ),
    Kind(
        "kernel-replaced",
        _GROUP,
        "the kernel's file is replaced while it boots",
        (Ending(3, ("was replaced while it was in use",), "error"),),
        _BOOT,
        moment=Moment(r"qemu\] \S*qemu-system", within="boot", share=0.3),
        act=_replace_kernel,
        runs=3,
    ),
    Kind(
        "template-removed",
        _GROUP,
        "another hugepfn removes the template while a clone is restored",
        (_FINE,),
        moment=Moment(r"cache\] key of initramfs", within="restore"),
        act=_remove("templates"),
        runs=3,
    ),
    Kind(
        "cache-removed",
        _GROUP,
        "the kernels, programs and templates in the cache are removed during a run",
        (_FINE, Ending(3, ("was removed|was replaced|no such|cannot|No such file",), "error")),
        moment=Moment(r"cache\] key of initramfs", within="restore"),
        act=_remove("templates", "programs", "initramfs", "kernels"),
        runs=3,
    ),
)
