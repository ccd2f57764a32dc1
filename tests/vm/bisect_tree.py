"""Make a git tree to bisect: Debian's kernel source and 44 commits, one of which breaks fork(), and three traps.

    python tests/vm/bisect_tree.py FOLDER [--source debsrc:6.12]
    cd FOLDER && git bisect start HEAD v0
    git bisect run hugepfn check . fork:pud --symptom "claim: the parent's entry is as it was before fork"

Commit 36 contains the mutant. Three commits set a trap, and each has one that mends it: 22 does not compile (24 does),
with 32 every mmap() of a BAR kills the kernel (until 34), and 37 does not boot (39 does). They lie where git bisect and
hugepfn bisect come along. The others change a constant, or only a comment, so that the kernel is the one before. Every
commit changes one .c file. Each has its number as a tag, v0 (the source as it is) to v44.

The commits f1 to f44 are others after v0, on the branch ``sometimes``. They have no traps, and what f36 breaks shows in
one boot of three.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from harness.errors import HugepfnError
from harness.kernel.build.debsrc import DebsrcOrigin

COMMITS, MUTANT = 44, 36
_HERE = Path(__file__).resolve().parent
PATCH = _HERE.parent / "mutants" / "fork-pud-write-protected.patch"
SOMETIMES = _HERE / "write-protected-sometimes.patch"
MM, VFIO = Path("mm/huge_memory.c"), Path("drivers/vfio/pci/vfio_pci_core.c")
_COMMENT_EVERY = 5
_WHO = ("-c", "user.name=hugepfn", "-c", "user.email=hugepfn@example.org", "-c", "commit.gpgsign=false")


@dataclass(frozen=True)
class Trap:
    """Commits that say nothing about fork(): from the one that sets the trap to the one before it is mended."""

    first: int
    mended: int
    subject: str
    file: Path
    before: str
    """The code that is added goes before this line; "" for the end of the file."""
    code: str

    def is_set(self, number: int) -> bool:
        """Whether a commit has it."""
        return self.first <= number < self.mended


BROKEN = Trap(22, 24, "mm/huge_memory: work in progress", MM, "", "#error this commit does not build\n")
DEAD = Trap(
    *(37, 39, "mm/huge_memory: check that it works", MM, ""),
    'static int __init trap(void)\n{\n\tpanic("this commit does not boot");\n}\nearly_initcall(trap);\n',
)
OOPS = Trap(
    *(32, 34, "vfio/pci: check the flags of a VMA", VFIO),
    *("\tindex = vma->vm_pgoff >> (VFIO_PCI_OFFSET_SHIFT - PAGE_SHIFT);\n", "\tBUG_ON(vma->vm_flags & VM_SHARED);\n"),
)
TRAPS = (BROKEN, OOPS, DEAD)


def git(folder: Path, *words: str) -> str:
    """Run git in a folder, and return its output."""
    done = subprocess.run(["git", "-C", str(folder), *_WHO, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_tree(folder: Path, source: str) -> None:
    """Write the tree, with v44 checked out.

    :param source: ``debsrc:VERSION``; its objects are borrowed from the cache, not copied.
    """
    origin = DebsrcOrigin.parse(source.removeprefix("debsrc:"))
    tree = origin.tree(lambda line: print(line, file=sys.stderr), offline=False)
    folder.mkdir(parents=True)
    git(folder, "init", "--quiet", "--initial-branch=main")
    (folder / ".git/objects/info/alternates").write_text(f"{origin.slot.git_dir / 'objects'}\n")
    base = git(folder, "commit-tree", tree, "-m", f"{source} as it is")
    git(folder, "reset", "--quiet", "--hard", base)
    git(folder, "tag", "v0")
    _add_commits(folder, "v", PATCH, TRAPS)


def add_sometimes(folder: Path) -> None:
    """Add the branch ``sometimes`` to a tree; what is checked out stays so."""
    git(folder, "checkout", "--quiet", "-b", "sometimes", "v0")
    _add_commits(folder, "f", SOMETIMES, ())
    git(folder, "checkout", "--quiet", "main")


def _add_commits(folder: Path, letter: str, mutant: Path, traps: Sequence[Trap]) -> None:
    for number in range(1, COMMITS + 1):
        subject = _change(folder, number, mutant, traps)
        git(folder, "commit", "--quiet", "--all", "-m", subject)
        git(folder, "tag", f"{letter}{number}")


def _change(folder: Path, number: int, mutant: Path, traps: Sequence[Trap]) -> str:
    """Change the files for a commit, and return its subject."""
    if number == MUTANT:
        git(folder, "apply", str(mutant))
        return f"mm/huge_memory: {mutant.stem}"
    for trap in traps:
        path = folder / trap.file
        if number == trap.first:
            head, found, tail = path.read_text().partition(trap.before) if trap.before else (path.read_text(), "", "")
            assert bool(found) is bool(trap.before), f"{trap.file} has no line {trap.before!r}"
            path.write_text(head + trap.code + found + tail)
            return trap.subject
        if number == trap.mended:
            path.write_text(path.read_text().replace(trap.code, ""))
            return f'Revert "{trap.subject}"'
    file = (MM, VFIO)[number % 2]
    path, name = folder / file, f"hugepfn_commit_{number % 2}"
    if number % _COMMENT_EVERY == 0:
        path.write_text(f"{path.read_text()}/* {number} */\n")
        return f"{file}: a comment, {number}"
    kept = [line for line in path.read_text().splitlines(keepends=True) if name not in line]
    path.write_text("".join(kept) + f"extern const int {name}; const int {name} = {number};\n")
    return f"{file}: a constant, {number}"


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--source", default="debsrc:6.12", show_default=True)
def main(folder: Path, source: str) -> None:
    """Make the tree in FOLDER, which must not exist."""
    if folder.exists():
        raise click.UsageError(f"{folder} exists already; name a folder that does not")
    make_tree(folder, source)
    add_sometimes(folder)
    click.echo(f"hugepfn bisect --tree {folder} --good v0 --bad v{COMMITS} fork:pud")


if __name__ == "__main__":
    try:
        main()
    except HugepfnError as error:
        sys.exit(f"hugepfn: {error}")
