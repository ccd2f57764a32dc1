"""``hugepfn build``."""

from __future__ import annotations

from pathlib import Path

import click


@click.command()
@click.argument("tree")
@click.option(
    "--patch", "-p", "patches", multiple=True, type=click.Path(path_type=Path), help="a patch, mail or mailbox"
)
@click.option(
    "--fragment",
    "-f",
    "fragments",
    multiple=True,
    metavar="NAME|FILE",
    help="a further fragment, after base and pfnmap",
)
@click.option(
    "--config",
    type=click.Choice(["tiny", "virtme"]),
    default="tiny",
    show_default=True,
    help="the configuration to start from",
)
@click.option("--lax", is_flag=True, help="build even if a symbol of a fragment was dropped")
@click.option("--cc", default="gcc", show_default=True, metavar="COMMAND", help="the compiler")
@click.option("--llvm", is_flag=True, help="build with clang, ld.lld and the other LLVM tools (make LLVM=1)")
def build(
    tree: str, patches: tuple[Path, ...], fragments: tuple[str, ...], config: str, lax: bool, cc: str, llvm: bool
) -> None:
    """Build a kernel, and print the path of its vmlinux.

    TREE is PATH (a git tree with its uncommitted changes, or a folder), PATH@REVISION, or debsrc:6.12 (Debian's source
    from your mirror). Append +FILE.patch to apply a patch. Nothing is written to your tree. The next build of the same
    tree is incremental.
    """
    from harness.campaign.building import build_shown

    image = build_shown(tree, patches, fragments, config, lax, cc, llvm)
    click.echo(image.image)
    click.echo(f"hugepfn: Linux {image.release}; run it with: hugepfn run --kernel {image.image}", err=True)
