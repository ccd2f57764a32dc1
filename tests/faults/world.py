"""A private world for each fault: home, cache, runtime and temporary folders, so that everything left can be seen.

The cache of a world is made once, by runs without a fault. Before each fault it is made anew, of hard links to the
files of the first one: a fault that changes a file replaces it (:meth:`World.own`), and so never spoils the first.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.host import cache, cache_sums
from harness.kernel import Kernel

ROOT = Path(__file__).resolve().parents[2]
#: In the environment of every process that a fault's command starts.
MARKER = "HUGEPFN_FAULT"
_FOLDERS = ("home", "run", "tmp", "shm", "work")
#: Shows the command folders of the world in place of the host's own, and then becomes the command.
_ISOLATE = 'mount --bind "$1/tmp" /tmp && mount --bind "$1/tmp" /var/tmp && mount --bind "$1/shm" /dev/shm && shift'
_COPIED = ("accel", "resolved")


@dataclass(frozen=True)
class World:
    """The folders of one worker.

    :ivar folder: holds all of them.
    :ivar kernel: the exact spec of the kernel, which needs no mirror.
    """

    folder: Path
    kernel: str

    @property
    def cache(self) -> Path:
        """The cache folder, always at the same path, because the keys of its entries depend on it."""
        return self.folder / "cache"

    @property
    def pristine(self) -> Path:
        """The cache as it was before the first fault. Only read it."""
        return self.folder / "pristine"

    def work(self) -> Path:
        """The command's working directory."""
        return self.folder / "work"

    @property
    def results(self) -> Path:
        """The file of ``--json``."""
        return self.folder / "out.json"

    def environment(self, marker: str) -> dict[str, str]:
        """The environment of a command in this world."""
        ours = {name: value for name, value in os.environ.items() if not name.startswith(("HUGEPFN_", "PYTEST_"))}
        return {
            **ours,
            "HOME": str(self.folder / "home"),
            "XDG_CACHE_HOME": str(self.folder / "home" / ".cache"),
            "XDG_RUNTIME_DIR": str(self.folder / "run"),
            "HUGEPFN_CACHE_DIR": str(self.cache),
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            MARKER: marker,
        }

    def isolated(self, argv: Sequence[str], then: str = "true") -> list[str]:
        """A command line that runs another where /tmp, /var/tmp and /dev/shm are this world's: in its own namespace.

        :param then: a shell command that runs there first; it may mount more.
        """
        return [*namespace(), "sh", "-c", f'{_ISOLATE} && {then} && exec "$@"', "sh", str(self.folder), *argv]

    def reset(self) -> None:
        """Make everything as it was before the first fault."""
        for name in _FOLDERS:
            _remove(self.folder / name)
            (self.folder / name).mkdir(mode=0o700)
        for path in self.folder.iterdir():
            if path.is_file():
                path.unlink()
        _remove(self.cache)
        _link_tree(self.pristine, self.cache)

    def seal(self) -> None:
        """Keep the cache as it is now for every later :meth:`reset`."""
        _remove(self.pristine)
        shutil.rmtree(self.cache / "locks", ignore_errors=True)
        self.cache.rename(self.pristine)

    def own(self, path: Path) -> Path:
        """Replace a file of the cache by a copy of its own, which may be changed. Its times stay as they are."""
        copy = path.with_name(f"{path.name}.own")
        shutil.copy2(path, copy)
        copy.replace(path)
        return path


def make_world(folder: Path, spec: str) -> World:
    """Make a world whose cache has a kernel, and nothing that depends on the world's path.

    :param folder: of the world; what is there is removed.
    :param spec: of a Debian kernel, which is fetched if it is not in the user's cache.
    """
    Kernel.parse(spec).resolve()
    entry = _newest(spec)
    exact = f"debian:{json.loads((entry / 'offer.json').read_text())['upstream']}"
    Kernel.parse(exact).resolve()
    _remove(folder)
    folder.mkdir(parents=True)
    world = World(folder, exact)
    world.cache.mkdir(mode=0o700)
    for kind in _COPIED:
        if (cache.root() / kind).is_dir():
            shutil.copytree(cache.root() / kind, world.cache / kind, symlinks=True)
    copy = world.cache / "kernels" / entry.name
    shutil.copytree(entry, copy, symlinks=True)
    cache_sums.write(copy, ("vmlinuz",))  # an older hugepfn may have made the user's
    for name in _FOLDERS:
        (folder / name).mkdir(mode=0o700)
    return world


@functools.cache
def namespace() -> tuple[str, ...]:
    """What gives a command a mount namespace of its own.

    :raises RuntimeError: this user may have none.
    """
    for words in (("unshare", "--mount"), ("unshare", "--user", "--map-root-user", "--mount")):
        if subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0:
            return words
    raise RuntimeError("faults are injected in mount namespaces, which this user may not make: run it as root")


def _newest(spec: str) -> Path:
    """The entry of a kernel that was just resolved."""
    image = Kernel.parse(spec).resolve(offline=True)
    return image.image.parent


def _link_tree(source: Path, target: Path) -> None:
    """Copy a tree as hard links."""
    shutil.copytree(source, target, symlinks=True, copy_function=os.link)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)


def hugepfn(*words: str) -> list[str]:
    """The command line of hugepfn in this checkout."""
    return [sys.executable, str(ROOT / "vm.py"), *words]


def undisturbed(world: World, *words: str, timeout_s: float = 600) -> subprocess.CompletedProcess[str]:
    """Run the command without a fault.

    :raises RuntimeError: it fails.
    """
    done = subprocess.run(
        world.isolated(hugepfn(*words)),
        env=world.environment("undisturbed"),
        cwd=world.work(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"hugepfn {' '.join(words)} fails without a fault:\n{done.stdout}{done.stderr}")
    return done
