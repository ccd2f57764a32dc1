"""Where a kernel's source comes from: a git tree at a revision, a work tree, or a plain folder. It is only read."""

from __future__ import annotations

import hashlib
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from harness.errors import UsageError
from harness.events import Say
from harness.host import cache
from harness.kernel.build.slot import Slot, git, git_environment


class SourceOrigin(Protocol):
    """A requested source. A value: nothing is read before :meth:`tree`."""

    @property
    def spec(self) -> str:
        """The canonical string, with its scheme."""
        ...

    @property
    def slot(self) -> Slot:
        """The slot in which it is built."""
        ...

    def tree(self, say: Say | None, offline: bool) -> str:
        """The id of its git tree, which the slot's repository can read from then on.

        :raises UsageError: there is no such source.
        :raises MachineryError: the source is not available.
        """
        ...


@dataclass(frozen=True)
class TreeOrigin:
    """A source tree of the user.

    Without a revision, the work tree of a git tree is used, with tracked changes and untracked files that are not
    ignored. In a folder without git, the .gitignore files of the kernel source apply too, so that built files are
    ignored.
    """

    path: Path
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> TreeOrigin:
        """Parse ``PATH[@REV]``; an @ may be part of the path if that folder exists.

        :raises UsageError: there is no path.
        """
        cuts = [*(m.start() for m in re.finditer("@", text)), len(text)]
        cut = next((c for c in reversed(cuts) if c and Path(text[:c]).expanduser().is_dir()), cuts[0])
        if not text[:cut] or text[cut:] == "@":
            raise UsageError(f"{text!r} is not a source tree; expected PATH or PATH@REVISION")
        return cls(Path(text[:cut]), text[cut + 1 :] or None)

    @property
    def spec(self) -> str:
        """``tree:PATH[@REV]``, the path as given."""
        return f"tree:{self.path}" + (f"@{self.revision}" if self.revision else "")

    @property
    def folder(self) -> Path:
        """The path with links resolved."""
        return self.path.expanduser().resolve()

    @property
    def slot(self) -> Slot:
        """The slot: one per folder, for all revisions."""
        name = re.sub(r"[^\w.-]", "_", self.folder.name)[:40]
        return Slot(f"{name}-{hashlib.sha256(str(self.folder).encode(errors='surrogateescape')).hexdigest()[:12]}")

    def tree(self, say: Say | None, offline: bool) -> str:  # noqa: ARG002 - SourceOrigin's signature
        """The id of its tree.

        :raises UsageError: there is no such folder or revision, or it is not a kernel source.
        """
        if not self.folder.is_dir():
            raise UsageError(f"{self.path}: no such folder; expected a kernel source tree")
        repository = self._repository()
        if self.revision is not None:
            return self._at_revision(repository)
        missing = [name for name in ("Makefile", "Kconfig", "arch/x86") if not (self.folder / name).exists()]
        if missing:
            raise UsageError(f"{self.path} is not a kernel source tree: it has no {missing[0]}")
        slot = self.slot
        slot.create(repository[1] if repository else None)
        with (
            cache.room_errors(slot.folder),
            tempfile.TemporaryDirectory(prefix="index.", dir=slot.folder) as scratch,
        ):
            index = Path(scratch) / "index"
            # The stat data in an index shows which files have not changed; they are not read again.
            known = slot.folder / "plain-index" if repository is None else repository[0] / "index"
            if known.is_file():
                shutil.copy2(known, index)
            if repository is None:
                tree = slot.add_folder(self.folder, index, ignored=False)
                index.replace(known)
                return tree
            return self._as_it_stands(repository[0], slot, index)

    def _repository(self) -> tuple[Path, Path] | None:
        """The git folder and the object folder, if this folder is the top of a git tree or a bare repository."""
        env = git_environment({})
        asked = ["--absolute-git-dir", "--git-path", "objects", "--show-prefix"]
        answer = git("-C", self.folder, "rev-parse", *asked, env=env, check=False)
        lines = answer.stdout.decode(errors="surrogateescape").split("\n")
        if "dubious ownership" in answer.stderr:
            raise UsageError(f"{self.path}: git refuses to read it: {answer.words}")
        if answer.status != 0 or len(lines) < 3 or lines[2]:
            return None  # no git, or a folder somewhere inside another repository
        return Path(lines[0]), (self.folder / lines[1]).resolve()

    def _at_revision(self, repository: tuple[Path, Path] | None) -> str:
        if repository is None:
            raise UsageError(f"{self.path} is not a git tree, so it has no revision {self.revision}")
        env = git_environment({"GIT_DIR": repository[0]})
        wanted = ["rev-parse", "--verify", "--quiet", "--end-of-options", f"{self.revision}^{{tree}}"]
        answer = git(*wanted, env=env, check=False)
        if answer.status != 0:
            raise UsageError(f"{self.path} has no revision {self.revision}")
        tree = answer.stdout.decode().split()[-1]
        if git("cat-file", "-e", f"{tree}:Kconfig", env=env, check=False).status != 0:
            raise UsageError(f"{self.path} at {self.revision} is not a kernel source tree: it has no Kconfig")
        self.slot.create(repository[1])
        return tree

    def _as_it_stands(self, git_dir: Path, slot: Slot, index: Path) -> str:
        """Make a tree of the work tree; new objects go into the slot, through a copy of the index."""
        ours = {"GIT_DIR": git_dir, "GIT_WORK_TREE": self.folder, "GIT_INDEX_FILE": index}
        env = git_environment({**ours, "GIT_OBJECT_DIRECTORY": slot.git_dir / "objects"})
        # Each of these would make git write beside the user's index, or start a daemon there.
        quiet = [
            "core.fsmonitor=false",
            "core.untrackedCache=false",
            "core.splitIndex=false",
            "core.hooksPath=/dev/null",
        ]
        options = [word for setting in quiet for word in ("-c", setting)]
        git(*options, "add", "--all", ".", env=env)
        return git(*options, "write-tree", env=env).stdout.decode().strip()
