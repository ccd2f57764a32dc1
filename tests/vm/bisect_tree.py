"""Make a git tree to bisect: Debian's kernel source and 16 commits, one of which breaks fork() and one the build.

    python tests/vm/bisect_tree.py FOLDER [--source debsrc:6.12]
    cd FOLDER && git bisect start HEAD v0 && git bisect run hugepfn check . fork:pud

Commit 9 contains the mutant fork-pud-write-protected; commit 12 does not compile, and commit 13 fixes that. The others
change nothing that a test could see. Each commit has its number as a tag, v0 (the source as it is) to v16.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click

from harness.errors import HugepfnError
from harness.kernel.build.debsrc import DebsrcOrigin

COMMITS, MUTANT, BROKEN = 16, 9, 12
PATCH = Path(__file__).resolve().parents[1] / "mutants" / "fork-pud-write-protected.patch"
TOUCHED = Path("mm/huge_memory.c")
_WHO = ("-c", "user.name=hugepfn", "-c", "user.email=hugepfn@example.org", "-c", "commit.gpgsign=false")


def git(folder: Path, *words: str) -> str:
    """Run git in a folder, and return its output."""
    done = subprocess.run(["git", "-C", str(folder), *_WHO, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def make_tree(folder: Path, source: str) -> list[str]:
    """Write the tree, and return its 17 commits, oldest first.

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
    broken_line = "#error this commit does not build\n"
    for number in range(1, COMMITS + 1):
        path = folder / TOUCHED
        text = path.read_text()
        subject = f"mm/huge_memory: a comment, {number}"
        if number == MUTANT:
            git(folder, "apply", str(PATCH))
            subject = "mm/huge_memory: write-protect a pud that is copied"
        elif number == BROKEN:
            path.write_text(text + broken_line)
            subject = "mm/huge_memory: work in progress"
        elif number == BROKEN + 1:
            path.write_text(text.replace(broken_line, ""))
            subject = "mm/huge_memory: finish it"
        else:
            path.write_text(f"{text}/* {number} */\n")
        git(folder, "commit", "--quiet", "--all", "-m", subject)
        git(folder, "tag", f"v{number}")
    return [git(folder, "rev-parse", f"v{number}") for number in range(COMMITS + 1)]


@click.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--source", default="debsrc:6.12", show_default=True)
def main(folder: Path, source: str) -> None:
    """Make the tree in FOLDER, which must not exist."""
    if folder.exists():
        raise click.UsageError(f"{folder} exists already; name a folder that does not")
    make_tree(folder, source)
    click.echo(f"cd {folder} && git bisect start HEAD v0 && git bisect run hugepfn check . fork:pud")


if __name__ == "__main__":
    try:
        main()
    except HugepfnError as error:
        sys.exit(f"hugepfn: {error}")
