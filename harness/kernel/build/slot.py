"""A build slot: a separate source folder for one origin, kept between builds so that the next build is incremental.

``git/`` has trees as git objects, ``src/`` is one of them checked out, and ``obj/KEY/`` is the O= folder of one
configuration and compiler. git decides by content which files in ``src/`` change from one tree to the next. Only those
get a new mtime, so make builds only what depends on them. Patches are applied to a tree, not to files, so one that
fails leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.errors import MachineryError, UsageError
from harness.events import Say, Waiting, tell
from harness.host import cache
from harness.host.process import FOLLOW_TIMEOUT_S, Finished, check_room, find_program, run
from harness.kernel.build.patches import Patch, why_not

_GIT_TIMEOUT_S = 3600.0
BUILD_TIMEOUT_S = 6 * 3600.0  # how long to wait for another process that builds
# The user's git configuration must not affect our folders.
_OURS = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null", "GIT_CONFIG_NOSYSTEM": "1"}


def git_environment(ours: Mapping[str, str | Path]) -> dict[str, str]:
    """Our environment without the variables of a surrounding git (a hook, `git bisect run`), and with ``ours``."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    return {**kept, "GIT_OPTIONAL_LOCKS": "0", **{name: os.fspath(value) for name, value in ours.items()}}


def git(*words: str | Path, env: Mapping[str, str], stdin: bytes | None = None, check: bool = True) -> Finished:
    """Run git and wait.

    :raises MachineryError: git is missing, the disk is full, or (``check``) git failed.
    """
    argv: list[str | Path] = [find_program("git", "git"), *words]
    finished = run(argv, timeout_s=_GIT_TIMEOUT_S, check=False, env=env, stdin=stdin)
    if finished.status != 0:
        if "unable to write" in finished.stderr or "No space left" in finished.stderr:
            check_disk(cache.root())
        check_room(finished, str(cache.root()))
        if check:
            raise MachineryError(f"git {words[0]} failed (exit status {finished.status}): {finished.words}")
    return finished


def check_disk(*folders: Path, least_bytes: int = 1 << 24) -> None:
    """Check that the folders have room.

    :raises MachineryError: one has less than ``least_bytes``; names it.
    """
    for folder in folders:
        if shutil.disk_usage(folder).free < least_bytes:
            raise MachineryError(
                f"no space left in {folder}; free some, or set HUGEPFN_CACHE_DIR to a folder on another disk"
            )


class Slot:
    """The folder of one origin, ``builds/NAME`` in the cache."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = cache.root() / "builds" / name
        self.git_dir = self.folder / "git"
        self.source = self.folder / "src"

    def environment(self, **more: str | Path) -> dict[str, str]:
        """The environment for git on this slot's own repository."""
        return git_environment({**_OURS, "GIT_DIR": self.git_dir, **more})

    def create(self, alternate: Path | None = None) -> None:
        """Make the slot's repository if there is none.

        :param alternate: the user's folder of git objects, which it may read.
        """
        if re.search(r"[\s:]", str(self.folder)):
            raise MachineryError(
                f"cannot build kernels in {self.folder}: its path has a space or a colon; set HUGEPFN_CACHE_DIR"
            )
        with cache.room_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            if not (self.git_dir / "HEAD").is_file():
                git("init", "--quiet", "--bare", self.git_dir, env=git_environment(_OURS))
            if alternate is not None:
                info = self.git_dir / "objects/info"
                info.mkdir(exist_ok=True)
                text = f"{alternate}\n"
                if not (info / "alternates").is_file() or (info / "alternates").read_text() != text:
                    (info / "alternates").write_text(text)

    def has_tree(self, tree: str) -> bool:
        """Whether a tree is in this repository or in the user's."""
        return git("cat-file", "-e", f"{tree}^{{tree}}", env=self.environment(), check=False).status == 0

    def add_folder(self, folder: Path, index: Path, *, ignored: bool) -> str:
        """Add the contents of a folder as a tree to this slot's repository; only files that changed since ``index`` are
        read.

        :param ignored: include files that the folder's .gitignore files ignore.
        """
        options = ["-c", "core.compression=1", "-c", "core.autocrlf=false"]
        if not index.is_file():
            # One pack instead of 85,000 files: git streams files that it considers big directly into a pack.
            options += ["-c", "core.bigFileThreshold=1"]
        env = self.environment(GIT_WORK_TREE=folder, GIT_INDEX_FILE=index)
        git(*options, "add", "--all", *(["--force"] if ignored else []), ".", env=env)
        return git("write-tree", env=env).stdout.decode().strip()

    def apply(self, tree: str, patches: Sequence[Patch]) -> str:
        """Make the tree with patches applied in order. No file is changed.

        :raises UsageError: a patch does not apply; names the patch, the file and the hunk.
        """
        if not patches:
            return tree
        with self._scratch_index() as index:
            env = self.environment(GIT_INDEX_FILE=index)
            git("read-tree", tree, env=env)
            for patch in patches:
                applied = git("apply", "--cached", "--whitespace=nowarn", "-", env=env, stdin=patch.diff, check=False)
                if applied.status != 0:
                    undone = git("apply", "--cached", "--check", "-R", "-", env=env, stdin=patch.diff, check=False)
                    hint = "; it is already applied" if undone.status == 0 else ""
                    raise UsageError(f"{patch.name} does not apply: {why_not(applied.stderr, patch)}{hint}")
            return git("write-tree", env=env).stdout.decode().strip()

    @contextlib.contextmanager
    def _scratch_index(self) -> Iterator[Path]:
        with cache.room_errors(self.folder), tempfile.TemporaryDirectory(prefix="index.", dir=self.folder) as folder:
            yield Path(folder) / "index"

    @contextlib.contextmanager
    def locked(self, spec: str, say: Say | None) -> Iterator[int]:
        """Lock the source and O= folders; yields a descriptor for make to inherit.

        The lock lasts until make and all its children have ended, even if we are killed.

        :param spec: what is built with it, for those who wait.
        """
        with cache.room_errors(self.folder), (self.folder / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                what = f"builds {file.readline().strip() or 'a kernel'} in {self.folder}"
                tell(say, Waiting(what, cache.lock_holder(file.fileno())))
                cache.flock(file, f"another hugepfn that {what}", FOLLOW_TIMEOUT_S)
            file.truncate(0)
            print(spec, file=file, flush=True)
            yield file.fileno()

    def check_out(self, tree: str) -> None:
        """Check out a tree in ``src/``. Only files whose content differs are written. Call it with the lock held."""
        mark = self.folder / "half-updated"
        interrupted = mark.exists()
        with cache.room_errors(self.folder):
            self.source.mkdir(exist_ok=True)
            mark.touch()
            (self.folder / "index.lock").unlink(missing_ok=True)  # left by a git that was killed
            env = self.environment(GIT_WORK_TREE=self.source, GIT_INDEX_FILE=self.folder / "index")
            # From the stat data in the index, git also detects and restores files that were changed in the meantime.
            git("-c", "core.autocrlf=false", "read-tree", "--reset", "-u", tree, env=env)
            if interrupted:
                git("clean", "-ffdxq", env=env)  # files of a tree that git was writing when it was interrupted
            mark.unlink()

    def identities(self, tree: str, paths: Sequence[str]) -> dict[str, str]:
        """The object ids of these files and folders, as far as they are in a tree."""
        answer = git("ls-tree", "-z", tree, "--", *paths, env=self.environment())
        rows = (row.split("\t") for row in answer.stdout.decode(errors="replace").split("\0")[:-1])
        return {path: described.split()[-1] for described, path in rows}

    def links(self, tree: str, paths: Sequence[str]) -> list[str]:
        """The targets, in the tree, of the symbolic links below these folders."""
        answer = git("ls-tree", "-rz", tree, "--", *paths, env=self.environment())
        rows = [row.split("\t") for row in answer.stdout.decode(errors="replace").split("\0")[:-1]]
        found = []
        for described, path in rows:
            if described.startswith("120000 "):
                target = git("cat-file", "blob", described.split()[-1], env=self.environment()).stdout.decode()
                found.append(os.path.normpath(os.path.join(os.path.dirname(path), target)))  # noqa: PTH118, PTH120
        return found

    def text(self, tree: str, path: str) -> str:
        """A file of a tree; "" if it is not in there."""
        answer = git("cat-file", "blob", f"{tree}:{path}", env=self.environment(), check=False)
        return answer.stdout.decode(errors="replace") if answer.status == 0 else ""

    def export(self, tree: str, paths: Sequence[str], folder: Path) -> None:
        """Write files and folders of a tree into another folder."""
        with self._scratch_index() as index:
            env = self.environment(GIT_WORK_TREE=folder, GIT_INDEX_FILE=index)
            git("-c", "core.autocrlf=false", "checkout", "--quiet", tree, "--", *paths, env=env)

    def diff(self, before: str, after: str) -> str:
        """The difference between two trees, without context lines."""
        answer = git("diff-tree", "-r", "-p", "-U0", "--no-renames", before, after, env=self.environment())
        return answer.stdout.decode(errors="replace")

    def changed(self, before: str, after: str) -> list[str]:
        """The paths in which two trees differ."""
        answer = git("diff-tree", "-r", "-z", "--name-only", before, after, env=self.environment(), check=False)
        return answer.stdout.decode(errors="replace").split("\0")[:-1] if answer.status == 0 else ["Kconfig"]
